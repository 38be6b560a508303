#!/usr/bin/env python3
"""Measure how fast readings go from Kafka into Elasticsearch: ours, the limit, and its peers.

    make bench                                              # 500 000 readings, 3 runs each
    python benches/throughput.py --readings 20000 --runs 1 --only ours,limit

One topic of one partition, filled once from a seed. In each round every contestant runs once,
alone, into a fresh index with the project's mapping. The rate is counted from the first to the last
document, as Elasticsearch's own counter of index operations shows them; a run whose index does not
hold exactly the readings of the topic is an error, not a result. A few runs of the limit that are
not counted warm Elasticsearch up before each round: after the slow contestants it is slow again.

    limit           the same documents as ready bulk bodies of 5000, by curl on 2 connections
    ours            kafka_to_elasticsearch.py, with everything on
    confluent       the same work with another Kafka client: peers/confluent_consumer.py
    rsyslog         imkafka, mmjsonparse, omelasticsearch: peers/rsyslog.conf
    connect         Kafka Connect with Camel's sink in bulks: peers/connect-*.properties; its
                    documents have no ids of ours: they are known by their sensor_id and timestamp
    connect_safe    the same with connect/camel.json, which loses nothing: one request a message,
                    hence on SHORT_READINGS only
    parallel_bulk, bulk, streaming_bulk    elasticsearch.helpers: peers/scripts.py
    naive           one index() a message: the same file; on SHORT_READINGS only

A peer that is not installed and cannot be is named, with the reason. Quiet the machine before:
the servers, the contestant and everything else share it.

Exit codes: 0 measured, 1 a contestant failed or its result is wrong, 2 wrong usage.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.command import arguments, command, positive, say, write_result
from benches.processes import Run, spread, watched
from benches.scene import CONSUMER, PROJECT, BenchError, Scene, Topic, own_servers
from stack.compose import StackError
from stack.images.connect import CAMEL_VERSION, link_plugin
from stack.images.kafka import fetch_jars, kafka_version
from stack.prerequisites import has_rsyslog
from stack.servers import free_port

PEERS = Path(__file__).parent / "peers"
LIMIT_CONNECTIONS = 2
SHORT_READINGS = 5000  # for those that index some hundreds a second
WARM_UP_RUNS = 3  # not counted: Elasticsearch is slow until its code is compiled
RSYSLOG_PLUGINS = ("imkafka", "omelasticsearch")


@dataclass(frozen=True)
class Contestant:
    """One way from Kafka into Elasticsearch.

    Attributes:
        command: its command line, given its environment; makes ready what it needs.
        missing: says why it cannot run on this machine, "" when it can.
        is_slow: whether it gets a short topic.
        by_id: whether it gives its documents the readings' ids.
        stays: whether it runs until it is told to stop.
    """

    command: Callable[[Scene, Mapping[str, str]], list[str]]
    missing: Callable[[Scene], str] = lambda _: ""
    is_slow: bool = False
    by_id: bool = True
    stays: bool = False


def ours(_: Scene, __: Mapping[str, str]) -> list[str]:
    """Return the command of the project's consumer, with everything on."""
    return [*CONSUMER, "--exit-when-idle", "1"]


def peer(*words: str) -> Callable[[Scene, Mapping[str, str]], list[str]]:
    """Return what makes the command of a Python script among the peers."""
    script, *options = words
    return lambda _, __: [sys.executable, str(PEERS / script), *options]


def limit(scene: Scene, environ: Mapping[str, str]) -> list[str]:
    """Return the command of curl, which posts the bodies that lie ready.

    Raises:
        BenchError: there is no curl.
    """
    if not shutil.which("curl"):
        raise BenchError("curl is not installed (sudo apt-get install curl)")
    blocks = [
        f'url = "{scene.url}/{environ["ELASTICSEARCH_INDEX"]}/_bulk?filter_path=errors"\n'
        f'data-binary = "@{body}"\n'
        'header = "Content-Type: application/x-ndjson"\n'
        f'output = "{scene.folder / "answers"}"\n'
        for body in scene.bodies(environ["KAFKA_TOPIC"])
    ]
    config = scene.folder / "curl.conf"
    config.write_text("next\n".join(blocks))
    options = ["--silent", "--fail", "--parallel", "--parallel-max", str(LIMIT_CONNECTIONS)]
    return ["curl", *options, "--config", str(config)]


def filled_in(name: str, scene: Scene, environ: Mapping[str, str]) -> str:
    """Write a peer's configuration with the run's values; return the file."""
    values = {
        **environ,
        "FOLDER": str(scene.folder),
        "PORT": str(free_port()),
        "ELASTICSEARCH_ADDRESS": scene.stack.servers["elasticsearch"].address,
    }
    text = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], (PEERS / name).read_text())
    file = scene.folder / name
    file.write_text(text)
    return str(file)


def rsyslogd() -> str | None:
    """Return the program; Debian puts it where only root's PATH leads."""
    return shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin")


def rsyslog(scene: Scene, environ: Mapping[str, str]) -> list[str]:
    """Return the command of rsyslog, in the foreground, with nothing of the system's own."""
    config = filled_in("rsyslog.conf", scene, environ)
    return [str(rsyslogd()), "-n", "-f", config, "-i", str(scene.folder / "rsyslog.pid")]


def no_rsyslog(_: Scene) -> str:
    """Return why rsyslog cannot run here."""
    if rsyslogd() and all(has_rsyslog(plugin) for plugin in RSYSLOG_PLUGINS):
        return ""
    return "not installed: python3 -m stack.prerequisites rsyslog-kafka rsyslog-elasticsearch"


def connect(scene: Scene, environ: Mapping[str, str]) -> list[str]:
    """Return the command of Kafka Connect, standalone, with Camel's sink as its one plug-in."""
    return connect_with(scene, environ, filled_in("connect-sink.properties", scene, environ))


def connect_safe(scene: Scene, environ: Mapping[str, str]) -> list[str]:
    """Return the command of Kafka Connect with the project's own connector."""
    config = json.loads((PROJECT / "connect/camel.json").read_text())
    address = scene.stack.servers["elasticsearch"].address
    url = config["camel.sink.url"].replace("127.0.0.1:9200", address)
    config |= {
        "name": environ["KAFKA_GROUP_ID"],
        "topics": environ["KAFKA_TOPIC"],
        "camel.sink.url": url.replace("sensors_connect", environ["ELASTICSEARCH_INDEX"]),
    }
    file = scene.folder / "connector.json"
    file.write_text(json.dumps(config))
    return connect_with(scene, environ, str(file))


def connect_with(scene: Scene, environ: Mapping[str, str], connector: str) -> list[str]:
    """Return the command of Kafka Connect with a connector's file."""
    site, service = scene.stack.site, scene.stack.services["kafka"]
    link_plugin(site, scene.folder / "plugins")
    java = site.java(fetch_jars(kafka_version(service), site), ["-Xmx1g", "-Dstack.log.level=WARN"])
    worker = filled_in("connect-worker.properties", scene, environ)
    return [*java, "org.apache.kafka.connect.cli.ConnectStandalone", worker, connector]


def no_connect(scene: Scene) -> str:
    """Return why Kafka Connect cannot run here."""
    try:
        link_plugin(scene.stack.site, scene.folder / "plugins")
    except StackError as exc:
        return str(exc)
    return ""


CONTESTANTS = {
    "limit": Contestant(limit),
    "ours": Contestant(ours),
    "confluent": Contestant(peer("confluent_consumer.py")),
    "rsyslog": Contestant(rsyslog, no_rsyslog, stays=True),
    "connect": Contestant(connect, no_connect, by_id=False, stays=True),
    "connect_safe": Contestant(connect_safe, no_connect, is_slow=True, by_id=False, stays=True),
    "parallel_bulk": Contestant(peer("scripts.py", "parallel_bulk")),
    "bulk": Contestant(peer("scripts.py", "bulk")),
    "streaming_bulk": Contestant(peer("scripts.py", "streaming_bulk")),
    "naive": Contestant(peer("scripts.py", "naive"), is_slow=True),
}


def run(scene: Scene, name: str, contestant: Contestant, topic: Topic) -> Run:
    """Run a contestant into a fresh index.

    Raises:
        BenchError: it failed, stood still, or indexed something else than the topic.
    """
    index = scene.new_index(name)
    environ = scene.environ(topic.name, index, topic.readings)
    command = contestant.command(scene, environ)
    try:
        one = watched(
            scene,
            [command],
            environ,
            lambda: scene.indexed(index),
            topic.readings,
            contestant.stays,
        )
        scene.check(index, topic.ids, contestant.by_id)
    finally:
        scene.delete_index(index)
    return one


def measure(
    scene: Scene, chosen: Mapping[str, Contestant], readings: int, turns: int
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Let each contestant run once a turn.

    Returns:
        What was found of each; why others could not run here; how others failed.
    """
    left_out = {name: why for name, one in chosen.items() if (why := one.missing(scene))}
    for name, why in left_out.items():
        say(f"{name}: not measured: {why}")
    here = {name: one for name, one in chosen.items() if name not in left_out}
    topic = scene.filled_topic(readings, with_bodies=True)
    short = scene.filled_topic(min(readings, SHORT_READINGS))
    topics = {name: short if one.is_slow else topic for name, one in here.items()}
    runs: dict[str, list[Run]] = {name: [] for name in here}
    failed: dict[str, str] = {}
    for turn in range(turns):
        for _ in range(WARM_UP_RUNS):
            run(scene, "limit", CONTESTANTS["limit"], topic)
        for name in [name for name in here if name not in failed]:
            try:
                one = run(scene, name, here[name], topics[name])
            except BenchError as exc:
                failed[name] = str(exc)
                say(f"run {turn + 1}: {name:<24}failed: {exc}")
            else:
                runs[name].append(one)
                say(f"run {turn + 1}: {name:<24}{one.per_s:>9.0f} docs/s")
    found = {
        name: {"readings": topics[name].readings, **spread(theirs)}
        for name, theirs in runs.items()
        if name not in failed  # not even by its good runs
    }
    return found, left_out, failed


def peer_versions() -> dict[str, str]:
    """Return the versions of the peers that are not Python packages."""
    found = {"camel": CAMEL_VERSION}
    for name, program, flag in (("rsyslog", rsyslogd(), "-v"), ("curl", "curl", "--version")):
        if program:
            shown = subprocess.run([program, flag], capture_output=True, text=True, check=False)
            found[name] = shown.stdout.split()[1]
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = arguments(__doc__, runs=3)
    text = "in the topic (default: %(default)s)"
    parser.add_argument("--readings", type=positive, default=500_000, metavar="N", help=text)
    text = "(default: %(default)s)"
    parser.add_argument("--only", default=",".join(CONTESTANTS), metavar="NAMES", help=text)
    options = parser.parse_args(argv)
    names = options.only.split(",")
    if unknown := set(names) - set(CONTESTANTS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    chosen = {name: CONTESTANTS[name] for name in names}
    with own_servers() as scene:
        found, left_out, failed = measure(scene, chosen, options.readings, options.runs)
        write_result(
            scene,
            "throughput",
            vars(options),
            found,
            versions=peer_versions(),
            left_out=left_out,
            failed=failed,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
