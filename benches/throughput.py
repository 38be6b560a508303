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
    rsyslog         imkafka, mmjsonparse, omelasticsearch: peers/rsyslog.conf
    connect         Kafka Connect with Camel's sink in bulks: peers/connect-*.properties; its
                    documents have no ids of ours: they are known by their sensor_id and timestamp
    connect_safe    the same with connect/camel.json, which loses nothing: one request a message,
                    hence on CONNECT_SAFE_READINGS only
    parallel_bulk, bulk, streaming_bulk    elasticsearch.helpers: peers/scripts.py
    naive           one index() a message: the same file; on the first NAIVE_READINGS only

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

from benches.scene import (
    CONSUMER,
    PROJECT,
    WARM_UP_RUNS,
    BenchError,
    Scene,
    Topic,
    Usage,
    arguments,
    check,
    exit_code,
    own_servers,
    positive,
    rate,
    say,
    spread,
    watched,
    write_result,
)
from stack.compose import StackError
from stack.images.connect import CAMEL_VERSION, link_plugin
from stack.images.kafka import fetch_jars, kafka_version
from stack.prerequisites import has_rsyslog
from stack.servers import free_port

PEERS = Path(__file__).parent / "peers"
LIMIT_DOCUMENTS = 5000  # a bulk body
LIMIT_CONNECTIONS = 2
NAIVE_READINGS = 10_000  # at a thousand a second
CONNECT_SAFE_READINGS = 5000  # at some hundreds a second
RSYSLOG_PLUGINS = ("imkafka", "omelasticsearch")


@dataclass
class Run(Usage):
    """What one run gave.

    Attributes:
        docs_per_s: from the first to the last document.
        seconds: from the start of the process to the last document.
    """

    docs_per_s: float
    seconds: float


@dataclass(frozen=True)
class Contestant:
    """One way from Kafka into Elasticsearch.

    Attributes:
        command: its command line, given its environment; makes ready what it needs.
        missing: says why it cannot run on this machine, "" when it can.
        readings: how many of the topic's it takes, when not all.
        by_id: whether it gives its documents the readings' ids.
        stays: whether it runs until it is told to stop.
    """

    command: Callable[[Scene, Mapping[str, str]], list[str]]
    missing: Callable[[Scene], str] = lambda _: ""
    readings: int | None = None
    by_id: bool = True
    stays: bool = False


def ours(_: Scene, __: Mapping[str, str]) -> list[str]:
    """Return the command of the project's consumer, with everything on."""
    return [*CONSUMER, "--exit-when-idle", "1"]


def script(way: str) -> Callable[[Scene, Mapping[str, str]], list[str]]:
    """Return the command of one of peers/scripts.py."""
    return lambda _, __: [sys.executable, str(PEERS / "scripts.py"), way]


def limit(scene: Scene, environ: Mapping[str, str]) -> list[str]:
    """Return the command of curl, which posts the bodies that lie ready."""
    blocks = [
        f'url = "{scene.url}/{environ["ELASTICSEARCH_INDEX"]}/_bulk?filter_path=errors"\n'
        f'data-binary = "@{body}"\n'
        'header = "Content-Type: application/x-ndjson"\n'
        f'output = "{scene.folder / "answers"}"\n'
        for body in sorted(scene.folder.glob(f"{environ['KAFKA_TOPIC']}-*.bulk"))
    ]
    config = scene.folder / "curl.conf"
    config.write_text("next\n".join(blocks))
    options = ["--silent", "--fail", "--parallel", "--parallel-max", str(LIMIT_CONNECTIONS)]
    return ["curl", *options, "--config", str(config)]


def write_bodies(scene: Scene, topic: Topic) -> None:
    """Write the bulk bodies of a topic's readings, for the limit."""
    lines: list[bytes] = []
    for number, message in enumerate(scene.messages(topic.name), 1):
        document_id = topic.ids[number - 1].encode()
        lines.append(b'{"create":{"_id":"%b"}}\n%b\n' % (document_id, message.value))
        if len(lines) == LIMIT_DOCUMENTS or number == len(topic.ids):
            file = scene.folder / f"{topic.name}-{number:09d}.bulk"
            file.write_bytes(b"".join(lines))
            lines.clear()


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
    site, service = scene.stack.site, scene.stack.services["kafka"]
    link_plugin(site, scene.folder / "plugins")
    java = site.java(fetch_jars(kafka_version(service), site), ["-Xmx1g", "-Dstack.log.level=WARN"])
    files = [filled_in(f"connect-{part}.properties", scene, environ) for part in ("worker", "sink")]
    return [*java, "org.apache.kafka.connect.cli.ConnectStandalone", *files]


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
    return [*connect(scene, environ)[:-1], str(file)]


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
    "rsyslog": Contestant(rsyslog, no_rsyslog, stays=True),
    "connect": Contestant(connect, no_connect, by_id=False, stays=True),
    "connect_safe": Contestant(
        connect_safe, no_connect, CONNECT_SAFE_READINGS, by_id=False, stays=True
    ),
    "parallel_bulk": Contestant(script("parallel_bulk")),
    "bulk": Contestant(script("bulk")),
    "streaming_bulk": Contestant(script("streaming_bulk")),
    "naive": Contestant(script("naive"), readings=NAIVE_READINGS),
}


def run(scene: Scene, name: str, contestant: Contestant, topic: Topic) -> Run:
    """Run a contestant into a fresh index.

    Raises:
        BenchError: it failed, stood still, or indexed something else than the topic.
    """
    wanted = topic.ids[: contestant.readings]
    index = scene.new_index(name)
    environ = scene.environ(topic.name, index, len(wanted))
    command = contestant.command(scene, environ)
    try:
        seen, began, usage = watched(
            scene, [command], environ, lambda: scene.indexed(index), len(wanted), contestant.stays
        )
        check(scene, index, wanted, contestant.by_id)
    finally:
        scene.delete_index(index)
    return Run(docs_per_s=rate(seen), seconds=seen[-1][0] - began, **vars(usage))


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
    topic = scene.filled_topic(readings)
    shorter = scene.filled_topic(min(readings, CONNECT_SAFE_READINGS))  # Connect reads to the end
    write_bodies(scene, topic)
    runs: dict[str, list[Run]] = {name: [] for name in chosen if name not in left_out}
    failed: dict[str, str] = {}
    for turn in range(turns):
        for _ in range(WARM_UP_RUNS):
            run(scene, "limit", CONTESTANTS["limit"], topic)
        for name in runs:
            if name in failed:
                continue
            try:
                one = run(scene, name, chosen[name], shorter if name == "connect_safe" else topic)
            except BenchError as exc:
                failed[name] = str(exc)
                say(f"run {turn + 1}: {name:<24}failed: {exc}")
            else:
                runs[name].append(one)
                say(f"run {turn + 1}: {name:<24}{one.docs_per_s:>9.0f} docs/s")
    found = {
        name: {"readings": len(topic.ids[: chosen[name].readings]), **spread(theirs)}
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


def bench(argv: Sequence[str] | None) -> int:
    """Measure; return the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--readings", type=positive, default=500_000, metavar="N",
                        help="in the topic (default: %(default)s)")  # fmt: skip
    parser.add_argument("--only", default=",".join(CONTESTANTS), metavar="NAMES",
                        help="(default: %(default)s)")  # fmt: skip
    options = parser.parse_args(argv)
    names = options.only.split(",")
    if unknown := set(names) - set(CONTESTANTS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    chosen = {name: CONTESTANTS[name] for name in names}
    if not shutil.which("curl"):
        parser.error("curl is not installed (sudo apt-get install curl)")
    parameters = {"readings": options.readings, "runs": options.runs, "partitions": 1}
    with own_servers() as scene:
        found, left_out, failed = measure(scene, chosen, options.readings, options.runs)
        write_result(
            scene, "throughput", parameters, found, options.output,
            versions=peer_versions(), left_out=left_out, failed=failed,
        )  # fmt: skip
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    return exit_code(lambda: bench(argv))


if __name__ == "__main__":
    raise SystemExit(main())
