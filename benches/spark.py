"""Measure the same indexing on Spark (extensions/spark), beside the script itself.

    make bench-spark                                        # a million readings, 3 runs each
    python -m benches.spark --readings 20000 --runs 1 --partitions 1

On topics of 1, 3 and 6 partitions, in turn: kafka_to_elasticsearch.py, one process; then Spark, on
a standalone cluster of its own (extensions/spark/compose.yml), with one executor of one core, and
with two. The rate is counted from the first to the last document, as in throughput.py. The
processor time of Spark is that of the driver, with its start, and of the executors; the master's
and the workers' own is not in it. A run is an error if its index does not hold exactly the readings
of the topic.

The machine must be quiet: the servers, the driver and the executors share it.

Exit codes: 0 measured, 1 a run failed or its result is wrong, 2 wrong usage.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benches.command import option_parser, positive, write_result
from benches.processes import Run, cpu_s, run_processes, summarize
from benches.testbed import PROJECT, Testbed, Topic, own_servers
from benches.throughput import CONTESTANTS, WARM_UP_RUNS
from benches.throughput import run as run_contestant
from stack.console import command, say
from stack.lifecycle import Stack
from stack.servers import free_port

PARTITIONS = (1, 3, 6)
SENSORS = 60  # the sensor decides the partition: with so many, each partition gets its share
WORKERS = ("spark-worker-1", "spark-worker-2")
EXECUTORS = {"script": 0, "1 executor": 1, "2 executors": 2}
PORTS = ("SPARK_MASTER", "SPARK", "SPARK_WORKER_1", "SPARK_WORKER_2")
SUBMIT = """spark-submit --properties-file extensions/spark/spark.conf
    --master spark://spark-master:7077 --py-files kafka_to_elasticsearch.py
    extensions/spark/spark_to_elasticsearch.py --once"""


@contextmanager
def spark_cluster(testbed: Testbed) -> Iterator[Stack]:
    """Start a master and two workers beside the testbed's servers; stop them at the end.

    Raises:
        StackError: one does not start.
    """
    ports = {f"{name}_HOST_PORT": str(free_port()) for name in PORTS}
    files = [PROJECT / name for name in ("docker-compose.yml", "extensions/spark/compose.yml")]
    cluster = Stack(files, {**testbed.stack.site.environ, **ports})
    try:
        cluster.up(WORKERS)
        yield cluster
    finally:
        cluster.down(["spark-master", *WORKERS])


def executors_cpu_s(cluster: Stack) -> float:
    """Return the processor time that the workers' sessions have used, in seconds.

    A worker and its executors, with their Python workers, are one session, not one process group.
    """
    sessions = {cluster.pid(worker) for worker in WORKERS}
    return cpu_s(lambda fields: int(fields[3]) in sessions, slice(11, 15))


def run_spark(testbed: Testbed, cluster: Stack, executors: int, topic: Topic) -> Run:
    """Let Spark index a topic into a fresh index; check the index, then delete it.

    Raises:
        BenchError: Spark failed, or indexed other readings.
    """
    index = testbed.new_index("spark")
    environment = testbed.environment(topic.name, index)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    _, *arguments = SUBMIT.split()
    cores = ["--conf", f"spark.cores.max={executors}"]
    checkpoint = ["--checkpoint", str(testbed.folder / index)]
    submit = cluster.tool("spark-master", "spark-submit", [*cores, *arguments, *checkpoint])
    before, at_the_end = executors_cpu_s(cluster), 0.0

    def count() -> int:
        nonlocal at_the_end
        if (arrived := testbed.indexed_count(index)) >= topic.readings:
            at_the_end = executors_cpu_s(cluster)  # the executors end with the driver
        return arrived

    try:
        figures = run_processes(testbed, [submit], environment, count, topic.readings)
        testbed.check_index(index, topic.ids)
    finally:
        testbed.delete_index(index)
    return replace(figures, client_cpu_s=figures.client_cpu_s + at_the_end - before)


def run_script(testbed: Testbed, topic: Topic) -> Run:
    """Let the script index a topic into a fresh index: see throughput.run."""
    return run_contestant(testbed, testbed.new_index("script"), CONTESTANTS["ours"], topic)


def measure(
    testbed: Testbed, cluster: Stack, topics: Mapping[int, Topic], rounds: int
) -> dict[str, dict[str, Any]]:
    """Run each once in each round; return the summaries by contestant and partitions.

    Raises:
        BenchError: see the runs.
    """
    runs: dict[tuple[str, int], list[Run]] = {(n, p): [] for n in EXECUTORS for p in topics}
    for _ in range(WARM_UP_RUNS):
        run_script(testbed, topics[min(topics)])
    for number in range(1, rounds + 1):
        for partitions, topic in topics.items():
            for name, executors in EXECUTORS.items():
                if executors:
                    figures = run_spark(testbed, cluster, executors, topic)
                else:
                    figures = run_script(testbed, topic)
                runs[name, partitions].append(figures)
                point = f"run {number}: {partitions} partitions, {name:<12}"
                say(f"{point}{figures.per_s:>9.0f} docs/s{figures.client_cpu_s:>7.1f} s of CPU")
    found: dict[str, dict[str, Any]] = {name: {} for name in EXECUTORS}
    for (name, partitions), its_runs in runs.items():
        row = {"readings": topics[partitions].readings, **summarize(its_runs)}
        found[name][str(partitions)] = row
    return found


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = option_parser("spark", __doc__, runs=3)
    text = "readings in each topic"
    parser.add_argument("--readings", type=positive, default=1_000_000, metavar="N", help=text)
    text = "partitions of the topics"
    default = list(PARTITIONS)
    parser.add_argument(
        "--partitions", type=positive, nargs="+", default=default, metavar="N", help=text
    )
    options = parser.parse_args(argv)
    with own_servers() as testbed, spark_cluster(testbed) as cluster:
        say("filling the topics ...")
        topics = {n: testbed.fill_topic(options.readings, n, SENSORS) for n in options.partitions}
        found = measure(testbed, cluster, topics, options.runs)
        versions = {"spark": cluster.services["spark-master"].tag}
        write_result(testbed, "spark", vars(options), found, versions=versions)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
