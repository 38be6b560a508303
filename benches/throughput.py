"""Measure how fast readings go from Kafka into Elasticsearch: ours, the limit, and its peers.

    make bench                                              # 500 000 readings, 3 runs each
    python -m benches.throughput --readings 20000 --runs 1 --only ours,limit

A seed fills one topic of one partition. In each round every contestant runs once, alone, into a
fresh index with the project's mapping. The rate is counted from the first to the last document, by
Elasticsearch's own counter of index operations; a run is an error, not a result, if its index does
not hold exactly the readings of the topic. Before each round a few runs of the limit warm
Elasticsearch up, because it is slow again after the slow contestants; they are not counted.

    limit           the same documents as ready bulk bodies of 5000, by curl on 2 connections
    ours            kafka_to_elasticsearch.py, with everything on
    confluent       the same work with another Kafka client: peers/confluent_consumer.py
    rsyslog         imkafka, mmjsonparse, omelasticsearch: peers/rsyslog.conf
    connect         Kafka Connect with Camel's sink in bulks: peers/connect-*.properties; its
                    documents do not have our ids: they are compared by sensor_id and timestamp
    connect_safe    the same with extensions/connect/camel.json, which loses nothing; it sends one
                    request for each message, hence on SLOW_READINGS only
    parallel_bulk, bulk, streaming_bulk    elasticsearch.helpers: peers/scripts.py
    naive           one index() for each message: the same file; on SLOW_READINGS only

A peer that cannot be installed is named, with the reason. The machine must be quiet, as the servers
and the contestant share it.

Exit codes: 0 measured, 1 a contestant failed or its result is wrong, 2 wrong usage.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benches.command import add_only, option_parser, positive, write_result
from benches.processes import Run, run_processes, summarize
from benches.testbed import CONSUMER, PROJECT, BenchError, Testbed, Topic, own_servers
from stack.compose import StackError
from stack.console import command, say
from stack.native.connect import CAMEL_VERSION, link_plugin
from stack.native.kafka import fetch_jars, kafka_version
from stack.prerequisites import has_rsyslog
from stack.servers import free_port

PEERS = Path(__file__).parent / "peers"
LIMIT_CONNECTIONS = 2
SLOW_READINGS = 5000  # for the contestants that index some hundreds of readings a second
WARM_UP_RUNS = 3  # not counted: Elasticsearch is slow until its code is compiled
RSYSLOG_PLUGINS = ("imkafka", "omelasticsearch")


@dataclass(frozen=True)
class Contestant:
    """One way from Kafka into Elasticsearch.

    Attributes:
        command: returns its command line, given its environment, and writes the files it needs.
        why_absent: returns the reason why it cannot run on this machine, "" when it can.
        is_slow: whether its topic holds SLOW_READINGS only.
        by_id: whether its documents have the readings' ids.
        runs_on: whether it runs until it is told to stop.
        processes: number of processes that share the work.
    """

    command: Callable[[Testbed, Mapping[str, str]], list[str]]
    why_absent: Callable[[Testbed], str] = lambda _: ""
    is_slow: bool = False
    by_id: bool = True
    runs_on: bool = False
    processes: int = 1


def ours(_: Testbed, __: Mapping[str, str]) -> list[str]:
    """Return the command of the project's consumer, with everything on."""
    return [*CONSUMER, "--exit-when-idle", "1"]


def peer(module: str, *options: str) -> Callable[[Testbed, Mapping[str, str]], list[str]]:
    """Return a function that returns the command of one of the peers in Python."""
    return lambda _, __: [sys.executable, "-m", f"benches.peers.{module}", *options]


def limit(testbed: Testbed, environment: Mapping[str, str]) -> list[str]:
    """Return the command of curl, which posts the bulk bodies that were written in advance.

    Raises:
        BenchError: curl is not installed.
    """
    if not shutil.which("curl"):
        raise BenchError("curl is not installed (sudo apt-get install curl)")
    index_url = f"{environment['ELASTICSEARCH_URL']}/{environment['ELASTICSEARCH_INDEX']}"
    blocks = [
        f'url = "{index_url}/_bulk?filter_path=errors"\n'
        f'data-binary = "@{body}"\n'
        'header = "Content-Type: application/x-ndjson"\n'
        f'output = "{testbed.folder / "answers"}"\n'
        for body in testbed.bodies(environment["KAFKA_TOPIC"])
    ]
    config = testbed.folder / "curl.conf"
    config.write_text("next\n".join(blocks))
    options = ["--silent", "--fail", "--parallel", "--parallel-max", str(LIMIT_CONNECTIONS)]
    return ["curl", *options, "--config", str(config)]


def fill_template(name: str, testbed: Testbed, environment: Mapping[str, str]) -> str:
    """Write a peer's configuration with the values of a run; return its path."""
    values = {
        **environment,
        "FOLDER": str(testbed.folder),
        "PORT": str(free_port()),
        "ELASTICSEARCH_ADDRESS": testbed.address("elasticsearch"),
    }
    text = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], (PEERS / name).read_text())
    file = testbed.folder / name
    file.write_text(text)
    return str(file)


def rsyslogd() -> str | None:
    """Return the program's path; Debian puts it where only root's PATH leads."""
    return shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin")


def rsyslog(testbed: Testbed, environment: Mapping[str, str]) -> list[str]:
    """Return the command of rsyslog, in the foreground, without the system's own configuration."""
    config = fill_template("rsyslog.conf", testbed, environment)
    return [str(rsyslogd()), "-n", "-f", config, "-i", str(testbed.folder / "rsyslog.pid")]


def why_no_rsyslog(_: Testbed) -> str:
    """Return why rsyslog cannot run here, "" when it can."""
    if rsyslogd() and all(has_rsyslog(plugin) for plugin in RSYSLOG_PLUGINS):
        return ""
    return "not installed: python3 -m stack.prerequisites rsyslog-kafka rsyslog-elasticsearch"


def connect(testbed: Testbed, environment: Mapping[str, str]) -> list[str]:
    """Return the command of Kafka Connect with Camel's sink in bulks."""
    connector = fill_template("connect-sink.properties", testbed, environment)
    return connect_standalone(testbed, environment, connector)


def connect_safe(testbed: Testbed, environment: Mapping[str, str]) -> list[str]:
    """Return the command of Kafka Connect with the project's own connector."""
    config = json.loads((PROJECT / "extensions/connect/camel.json").read_text())
    url = config["camel.sink.url"].replace("127.0.0.1:9200", testbed.address("elasticsearch"))
    config |= {
        "name": environment["KAFKA_GROUP_ID"],
        "topics": environment["KAFKA_TOPIC"],
        "camel.sink.url": url.replace("sensors_connect", environment["ELASTICSEARCH_INDEX"]),
    }
    file = testbed.folder / "connector.json"
    file.write_text(json.dumps(config))
    return connect_standalone(testbed, environment, str(file))


def connect_standalone(
    testbed: Testbed, environment: Mapping[str, str], connector: str
) -> list[str]:
    """Return the command of a standalone Kafka Connect, given the path of a connector's file."""
    site, service = testbed.stack.site, testbed.stack.services["kafka"]
    link_plugin(site, testbed.folder / "plugins")
    java = site.java(fetch_jars(kafka_version(service), site), ["-Xmx1g", "-Dstack.log.level=WARN"])
    worker = fill_template("connect-worker.properties", testbed, environment)
    return [*java, "org.apache.kafka.connect.cli.ConnectStandalone", worker, connector]


def why_no_connect(testbed: Testbed) -> str:
    """Return why Kafka Connect cannot run here, "" when it can."""
    try:
        link_plugin(testbed.stack.site, testbed.folder / "plugins")
    except StackError as exc:
        return str(exc)
    return ""


CONTESTANTS = {
    "limit": Contestant(limit),
    "ours": Contestant(ours),
    "confluent": Contestant(peer("confluent_consumer")),
    "rsyslog": Contestant(rsyslog, why_no_rsyslog, runs_on=True),
    "connect": Contestant(connect, why_no_connect, by_id=False, runs_on=True),
    "connect_safe": Contestant(
        connect_safe, why_no_connect, is_slow=True, by_id=False, runs_on=True
    ),
    "parallel_bulk": Contestant(peer("scripts", "parallel_bulk")),
    "bulk": Contestant(peer("scripts", "bulk")),
    "streaming_bulk": Contestant(peer("scripts", "streaming_bulk")),
    "naive": Contestant(peer("scripts", "naive"), is_slow=True),
}


def run(testbed: Testbed, index: str, contestant: Contestant, topic: Topic) -> Run:
    """Run a contestant into a fresh index; check the index, then delete it.

    Raises:
        BenchError: the contestant failed, stopped too early, or indexed other readings.
    """
    environment = testbed.environment(topic.name, index, topic.readings)
    commands = [contestant.command(testbed, environment)] * contestant.processes
    count = partial(testbed.indexed_count, index)
    try:
        figures = run_processes(
            testbed, commands, environment, count, topic.readings, contestant.runs_on
        )
        testbed.check_index(index, topic.ids, contestant.by_id)
    finally:
        testbed.delete_index(index)
    return figures


def measure(
    testbed: Testbed, chosen: Mapping[str, Contestant], readings: int, rounds: int
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Let each contestant run once in each round.

    Returns:
        The summary of each contestant's runs; why others could not run here; how others failed.
    """
    reasons = {name: contestant.why_absent(testbed) for name, contestant in chosen.items()}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    for name, reason in left_out.items():
        say(f"{name}: not measured: {reason}")
    here = {name: chosen[name] for name in chosen if name not in left_out}
    topic = testbed.fill_topic(readings, with_bodies=True)
    small_topic = testbed.fill_topic(min(readings, SLOW_READINGS))
    topics = {name: small_topic if here[name].is_slow else topic for name in here}
    runs: dict[str, list[Run]] = {name: [] for name in here}
    failed: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for _ in range(WARM_UP_RUNS):
            run(testbed, testbed.new_index("limit"), CONTESTANTS["limit"], topic)
        for name in [name for name in here if name not in failed]:
            try:
                figures = run(testbed, testbed.new_index(name), here[name], topics[name])
            except BenchError as exc:
                failed[name] = str(exc)
                say(f"run {number}: {name:<24}failed: {exc}")
            else:
                runs[name].append(figures)
                say(f"run {number}: {name:<24}{figures.per_s:>9.0f} docs/s")
    found = {
        name: {"readings": topics[name].readings, **summarize(runs[name])}
        for name in here
        if name not in failed  # one that failed once gets no figure, even if other runs were good
    }
    return found, left_out, failed


def peer_versions() -> dict[str, str]:
    """Return the versions of the peers that are not Python packages."""
    found = {"camel": CAMEL_VERSION}
    for name, program, option in (("rsyslog", rsyslogd(), "-v"), ("curl", "curl", "--version")):
        if program:
            shown = subprocess.run([program, option], capture_output=True, text=True, check=False)
            found[name] = shown.stdout.split()[1]
    return found


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = option_parser("throughput", __doc__, runs=3)
    text = "readings in the topic"
    parser.add_argument("--readings", type=positive, default=500_000, metavar="N", help=text)
    add_only(parser, CONTESTANTS, "contestants to measure")
    options = parser.parse_args(argv)
    chosen = {name: CONTESTANTS[name] for name in options.only.split(",")}
    with own_servers() as testbed:
        found, left_out, failed = measure(testbed, chosen, options.readings, options.runs)
        write_result(
            testbed,
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
