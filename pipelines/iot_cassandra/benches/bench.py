#!/usr/bin/env python3
"""Measure three ways of writing the same readings into the same two tables of Cassandra.

    python3 benches/bench.py            # 9 minutes, on a quiet machine

    way      readings/s: min  median     max   of the writer's median
    writer             ....    ....    ....   1.00
    helper             ....    ....    ....   ....
    helper_1000        ....    ....    ....   ....
    spark              ....    ....    ....   ....

writer   kafka_to_cassandra.py: reads Kafka, validates, writes, commits. From its first assignment
         to its last commit.
helper   cassandra-driver's execute_concurrent_with_args with its default concurrency (100), and
         with as many writes under way as the writer has (1000): the rows are in memory, no Kafka,
         nothing is validated or tried again. What the driver can do.
spark    the connector's write in local[2]: the rows are in Spark's cache, its start is not counted.

The servers are its own, on free ports; the ways take turns; the tables are emptied before each run
and counted after it. A wrong count ends the bench without a result. The result is also a line of
JSON (date, machine, versions, each run) in results.jsonl beside this file. Not measured: latency,
more than one node, other settings of the connector.

Exit codes: 0 measured, 1 a run failed or lost a row, 2 wrong usage.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from cassandra.cluster import Cluster, Session  # noqa: E402  # after the path, with the next ones
from cassandra.concurrent import execute_concurrent_with_args  # noqa: E402
from kafka import KafkaConsumer  # noqa: E402
from kafka.structs import TopicPartition  # noqa: E402

from pipelines.common import number  # noqa: E402
from pipelines.iot_cassandra.kafka_topic import read_topic  # noqa: E402
from pipelines.iot_cassandra.prepare import apply_schema  # noqa: E402
from pipelines.iot_cassandra.scripts.clients import insert_into  # noqa: E402
from pipelines.iot_cassandra.scripts.rules import row_of  # noqa: E402
from pipelines.iot_cassandra.settings import FOLDER, TABLES, addresses  # noqa: E402
from stack.lifecycle import Stack  # noqa: E402
from stack.servers import free_port  # noqa: E402

TOPIC, KEYSPACE = "bench", "bench"


class BenchError(Exception):
    """A run that failed, in one line."""


class Bench:
    """The servers, the data in Kafka, and the three ways; each returns its seconds."""

    def __init__(self, stack: Stack, readings: int) -> None:
        self.stack = stack
        self.readings = readings
        self.kafka = stack.servers["kafka"].address
        self.hosts = stack.servers["cassandra"].address
        self.environ = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "IOT_TOPIC": TOPIC,
            "CASSANDRA_HOSTS": self.hosts,
            "CASSANDRA_KEYSPACE": KEYSPACE,
        }

    def run(self, *command: str) -> str:
        """Run a command to its end; return what it wrote.

        Raises:
            BenchError: it failed.
        """
        done = subprocess.run(
            command, cwd=PROJECT, env=self.environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"{command[0]}: {(done.stdout + done.stderr)[-1000:]}")
        return done.stdout

    def prepare(self) -> None:
        """Put the readings into the topic, the tables into Cassandra."""
        simulator = str(FOLDER / "scripts/iot_simulator.py")
        self.run(
            *(sys.executable, simulator, "--seed", "1", "--backfill", "30d", "--rate", "1000"),
            *("--sensors", "100", "--count", str(self.readings)),
        )
        apply_schema(self.hosts, KEYSPACE)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A connection to Cassandra."""
        # After millions of writes Cassandra is busy for a while: the defaults are 5 and 2 s.
        patience = {"connect_timeout": 60, "control_connection_timeout": 60}
        with Cluster(addresses(self.hosts), **patience) as cluster:
            yield cluster.connect(KEYSPACE)

    def by_writer(self) -> float:
        """Let kafka_to_cassandra.py write everything."""
        group = f"bench-{uuid4().hex[:8]}"
        command = [
            sys.executable,
            str(FOLDER / "scripts/kafka_to_cassandra.py"),
            "--group-id",
            group,
        ]
        with subprocess.Popen(
            command, cwd=PROJECT, env=self.environ, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr  # noqa: S101  # it is piped
            try:
                for line in process.stderr:
                    if "assigned" in line:
                        break
                began = time.monotonic()
                consumer = KafkaConsumer(bootstrap_servers=self.kafka, group_id=group)
                with closing(consumer):
                    partition = TopicPartition(TOPIC, 0)
                    while (consumer.committed(partition) or 0) < self.readings:
                        if process.poll() is not None:
                            raise BenchError("the writer ended early")
                        time.sleep(0.05)
                seconds = time.monotonic() - began
            finally:
                process.terminate()  # else leaving the block would wait for ever
        return seconds

    def by_helper(self, concurrency: int = 100) -> float:
        """Let the driver's own helper write rows that are in memory."""
        rows = [row_of(message) for message in read_topic(self.kafka, TOPIC)[0]]
        seconds = 0.0
        with self.session() as session:
            for table in TABLES:
                insert = session.prepare(insert_into(KEYSPACE, table))
                names = [column.name for column in insert.column_metadata]
                values = [tuple(row[name] for name in names) for row in rows]
                began = time.monotonic()
                execute_concurrent_with_args(session, insert, values, concurrency)
                seconds += time.monotonic() - began
        return seconds

    def by_spark(self) -> float:
        """Let Spark's connector write rows that are in its cache."""
        script = str(FOLDER / "benches/spark_write.py")
        said = self.run(sys.executable, script, self.kafka, TOPIC, self.hosts, KEYSPACE)
        if not (found := re.search(r"seconds=([\d.]+)", said)):
            raise BenchError("Spark has not said how long it took")
        return float(found[1])

    def measure(self, way: Callable[[], float]) -> float:
        """Empty the tables, run one way, count; return its readings per second.

        Raises:
            BenchError: a table does not hold every reading.
        """
        with self.session() as session:
            for table in TABLES:
                session.execute(f"TRUNCATE {table}", timeout=120)
        seconds = way()
        with self.session() as session:
            for table in TABLES:
                query = f"SELECT sensor_id FROM {table}"  # noqa: S608  # a name of our own
                found = sum(1 for _ in session.execute(query, timeout=120))
                if found != self.readings:
                    raise BenchError(f"{table} holds {found} rows, not {self.readings}")
        return self.readings / seconds


def print_table(rates: dict[str, list[float]]) -> None:
    """Print the rates of each way, and their ratio to the writer's."""
    base = statistics.median(rates["writer"])
    sys.stdout.write("way      readings/s: min  median     max   of the writer's median\n")
    for way, found in rates.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        sys.stdout.write(f"{way:<15} {low:>8.0f}{middle:>8.0f}{high:>8.0f}   {middle / base:.2f}\n")


def result(rates: dict[str, list[float]], readings: int) -> dict[str, Any]:
    """Return what is kept of a bench."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True,
        check=False,
    ).stdout.strip()  # fmt: skip
    packages = ("cassandra-driver", "kafka-python", "pyspark")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "readings": readings,
        "readings_per_s": {way: [round(rate) for rate in found] for way, found in rates.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--readings", type=number(1, 1e9, int), default=100_000, metavar="N", help="(100000)"
    )
    parser.add_argument(
        "--runs", type=number(1, 1e9, int), default=3, metavar="N", help="of each way (3)"
    )
    results = FOLDER / "benches/results.jsonl"
    parser.add_argument("--results", type=Path, default=results, metavar="FILE",
        help="where the result is added (results.jsonl beside this file)")  # fmt: skip
    options = parser.parse_args(argv)
    ports = {f"{n}_HOST_PORT": str(free_port()) for n in ("ZOOKEEPER", "KAFKA", "CASSANDRA")}
    with tempfile.TemporaryDirectory() as state:
        stack = Stack(
            [FOLDER / "docker-compose.yml"], {**os.environ, **ports, "STACK_STATE": state}
        )
        try:
            stack.up(["kafka", "cassandra"])
            bench = Bench(stack, options.readings)
            bench.prepare()
            ways: dict[str, Callable[[], float]] = {
                "writer": bench.by_writer,
                "helper": bench.by_helper,
                "helper_1000": partial(bench.by_helper, 1000),
                "spark": bench.by_spark,
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for run in range(-1, options.runs):  # the first warms Cassandra up
                for name, way in ways.items():
                    if run < 0 and name == "spark":
                        continue  # a Java of its own each time: nothing of it stays warm
                    rate = bench.measure(way)
                    label = f"run {run + 1}" if run >= 0 else "warm-up"
                    sys.stdout.write(f"{label:<8} {name:<11} {rate:>8.0f} readings/s\n")
                    sys.stdout.flush()
                    if run >= 0:
                        rates[name].append(rate)
        except BenchError as exc:
            sys.stderr.write(f"bench: {exc}\n")
            return 1
        finally:
            stack.down(wipe=True)
    print_table(rates)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result(rates, options.readings)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
