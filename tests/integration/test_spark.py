"""The job of extensions/spark on a real standalone cluster: its README's commands, its faults.

A master and two workers, each a process of its own, run beside the session's servers.
"""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.structs import TopicPartition

import kafka_to_elasticsearch as script
from extensions.spark import spark_indexing
from extensions.spark.spark_indexing import held_otherwise, prepare
from kafka_to_elasticsearch import SetupError
from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack
from stack.servers import free_port
from tests.conftest import PROJECT, Pipeline
from tests.documents import blocks, commands, skeleton, write_docker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("spark"), pytest.mark.timeout(600)]

README = "extensions/spark/README.md"
OVERLAYS = ("tests/faults/proxied.yml", "extensions/spark/compose.yml")
WORKERS = ("spark-worker-1", "spark-worker-2")
PORTS = ("SPARK_MASTER", "SPARK", "SPARK_WORKER_1", "SPARK_WORKER_2")
SUBMIT = """--properties-file extensions/spark/spark.conf --master spark://spark-master:7077
    --py-files kafka_to_elasticsearch.py extensions/spark/spark_to_elasticsearch.py"""
QUICK = "-XX:TieredStopAtLevel=1"  # a Java lives for seconds here


@pytest.fixture(scope="module")
def cluster(stack: Stack) -> Iterator[Stack]:
    """A master and two workers beside the session's servers."""
    ports = {f"{name}_HOST_PORT": str(free_port()) for name in PORTS}
    files = [PROJECT / file for file in ("docker-compose.yml", *OVERLAYS)]
    cluster = Stack(files, {**stack.site.environ, **ports})
    try:
        cluster.up(WORKERS)
        yield cluster
    finally:
        cluster.down(["spark-master", *WORKERS])


@dataclass
class Jobs:
    """Submits jobs on the cluster, for a pipeline.

    Attributes:
        checkpoint: of the jobs, unless they are given another.
    """

    cluster: Stack
    pipeline: Pipeline
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def checkpoint(self) -> str:
        return str(self.folder / "checkpoint")

    def submit(self, *arguments: str) -> Path:
        """Start a job; return the file of its log."""
        given = [*SUBMIT.split(), "--checkpoint", self.checkpoint, *arguments]
        given = ["--conf", f"spark.executor.extraJavaOptions={QUICK}", *given]
        file = self.folder / f"{len(self.started)}.log"
        with file.open("wb") as log:
            job = subprocess.Popen(
                self.cluster.tool("spark-master", "spark-submit", given),
                cwd=PROJECT,
                env=with_programs(self.pipeline) | {"SPARK_SUBMIT_OPTS": QUICK},
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that `kill` reaches Java and Python
            )
        self.started.append(job)
        return file

    def kill(self) -> None:
        """End the last job's Java and Python by SIGKILL."""
        os.killpg(self.started[-1].pid, signal.SIGKILL)
        self.started[-1].wait()

    def end(self, file: Path, code: int = 0) -> str:
        """Wait until the last job ends, with a code and without a trace; return its log."""
        assert self.started[-1].wait(timeout=180) == code, file.read_text()
        log = file.read_text()
        assert "Traceback" not in log
        return log

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a job to its end; return its log."""
        return self.end(self.submit(*arguments), code)


def with_programs(pipeline: Pipeline) -> dict[str, str]:
    """Return the environment of a pipeline's programs, with those of this Python on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**pipeline.environ, "PATH": path}


@pytest.fixture
def jobs(cluster: Stack, pipeline: Pipeline, tmp_path: Path) -> Iterator[Jobs]:
    """What submits jobs; none of them outlives the test."""
    jobs = Jobs(cluster, pipeline, tmp_path)
    yield jobs
    for job in jobs.started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def accounts(log: str, line: str) -> dict[str, int]:
    """Return the sum of the accounts in the lines of a log that begin so; they close."""
    total: dict[str, int] = {}
    for found in re.findall(rf": {line}(.*)", log):
        numbers = {name: int(n) for name, n in re.findall(r"([a-z_]+)=(\d+)\b(?!\.)", found)}
        assert numbers["consumed"] == sum(
            numbers[name] for name in ("indexed", "duplicates", "dead_lettered")
        )
        total = {name: total.get(name, 0) + number for name, number in numbers.items()}
    return total


def test_the_commands_of_the_readme_work_and_print_what_it_shows(
    cluster: Stack, pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.generate_faulty(
        "--backfill", "3d", "--interval", "400", "460", "--fault", "malformed=0.01"
    )
    ours = {
        "localhost:8080": f"127.0.0.1:{cluster.site.host_port('spark-master', 8080)}",
        "sensors_daily": f"{pipeline.index}_daily",
    }
    write_docker(tmp_path / "bin")
    environ = {**cluster.site.environ, **with_programs(pipeline), "SPARK_SUBMIT_OPTS": QUICK}
    environ["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environ['PATH']}"
    printed = ""
    for command in commands(README):
        if command.endswith("down"):  # the module's cluster is stopped at its end
            continue
        moved = re.sub("|".join(map(re.escape, ours)), lambda found: ours[found[0]], command)
        ended = subprocess.run(
            ["bash", "-c", moved],
            cwd=PROJECT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
        assert "Traceback" not in ended.stderr
        printed += ended.stdout + ended.stderr
    shown = [line for kind, text in blocks(README) if kind == "text" for line in text.splitlines()]
    missing = [line for line in shown if skeleton(line) not in map(skeleton, printed.splitlines())]
    assert missing == [], printed
    for checkpoint in (PROJECT / ".spark").glob(f"{pipeline.topic}-*"):
        shutil.rmtree(checkpoint)
    daily = pipeline.client.indices.get(index=f"{pipeline.index}_daily-*.*.*")
    assert len(daily) in (3, 4)  # days that the readings touch
    for state in daily.values():
        assert state["mappings"]["dynamic"] == "strict"
    # Without --index-by, or with another, all would be indexed once more.
    for by, refused in (("day", 0), ("month", len(daily)), (None, len(daily))):
        names = held_otherwise(pipeline.client, ours["sensors_daily"], by)
        assert len(names) == refused, (by, names)
    pipeline.client.indices.delete(index=[f"{pipeline.index}_daily", *daily])


def test_another_mapping_of_a_dated_index_is_refused(pipeline: Pipeline) -> None:
    """Where it is there already, and where a template that counts more would give it."""
    client, index = pipeline.client, pipeline.index
    given = ("--index", index, "--dead-letter-index", "none")
    servers = ("--elasticsearch-url", pipeline.elasticsearch, "--bootstrap-servers", pipeline.kafka)
    options = script.parse_options([*given, *servers, "--topic", pipeline.topic], {})
    text: dict[str, Any] = {"mappings": {"properties": {"timestamp": {"type": "text"}}}}
    client.indices.create(index=f"{index}-2026.06", **text)
    client.indices.create(index=f"{index}-of.others", **text)
    prepare(options, "day")
    with pytest.raises(SetupError, match=rf"index {index}-2026.06 has sensor_id as None"):
        prepare(options, "month")
    client.indices.put_index_template(
        name=index, index_patterns=[f"{index}-*"], priority=2_000_000, template=text
    )
    try:
        with pytest.raises(SetupError, match=rf"a template of others gives {index}-2026.06.01"):
            prepare(options, "day")
    finally:
        for name in (index, f"smart-city-{index}-by-day", f"smart-city-{index}-by-month"):
            client.indices.delete_index_template(name=name)
        client.indices.delete(index=[f"{index}-2026.06", f"{index}-of.others"])


def test_a_time_that_spark_cannot_hold_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A message may say any number of milliseconds; Spark counts in microseconds."""
    monkeypatch.setitem(sys.modules, "spark_indexing", spark_indexing)
    job = importlib.import_module("extensions.spark.spark_to_elasticsearch")

    def start() -> None:
        raise job.PySparkException("java.lang.ArithmeticException: long overflow")

    stream: Any = SimpleNamespace(start=start)
    assert job.run(stream, Counter(), Event(), lambda **_: None) == 1
    (line,) = caplog.messages
    assert line.startswith("a message's time is later than Spark can hold")


def test_a_worker_is_killed_in_mid_batch_and_nothing_is_missing_or_doubled(
    jobs: Jobs, cluster: Stack, pipeline: Pipeline
) -> None:
    faults = ("--fault", "malformed=0.01", "--fault", "duplicate=0.01")
    pipeline.generate_faulty("--count", "60000", "--backfill", "60d", "--sensors", "30", *faults)
    log = jobs.submit("--once")  # one micro-batch, of three tasks
    wait_until(lambda: pipeline.count() > 1000, "a part is indexed", 120)
    assert cluster.stop("spark-worker-1", signal.SIGKILL)
    assert "batch=" not in log.read_text()
    text = jobs.end(log)
    cluster.up(["spark-worker-1"])
    assert "Lost executor" in text
    done = accounts(text, "batch=")
    assert done["consumed"] == pipeline.ends()
    assert done["duplicates"] > 100  # those sent, and what the lost tasks had indexed
    assert done["dead_lettered"] > 0
    pipeline.run("tools.verify")


def test_driver_killed_elasticsearch_away_checkpoint_lost_messages_deleted(
    jobs: Jobs, stack: Stack, pipeline: Pipeline
) -> None:
    """And a second copy beside the first; one start of Spark serves for several of them."""
    pipeline.generate("--count", "20000", "--backfill", "60d", "--sensors", "30")
    log = jobs.submit("--max-readings", "1000")
    wait_until(lambda: "batch=1" in log.read_text(), "micro-batches are done", 120)
    other = Jobs(jobs.cluster, pipeline, jobs.folder / "other")
    other.folder.mkdir()
    refused = other.run("--checkpoint", jobs.checkpoint, code=2)
    assert "another copy works with the checkpoint" in refused
    assert "batch=" not in refused

    assert stack.stop("elasticsearch", signal.SIGKILL)
    wait_until(lambda: "a micro-batch failed; nothing is lost" in log.read_text(), "it is said")
    stack.up(["elasticsearch"])
    before = log.read_text().count("batch=")
    wait_until(lambda: log.read_text().count("batch=") > before, "it goes on", 120)
    jobs.kill()
    assert "Traceback" not in log.read_text()
    assert accounts(log.read_text(), "batch=")["consumed"] < 20_000

    rest = accounts(jobs.run("--once"), "batch=")
    assert 0 < rest["consumed"] < 20_000  # from the checkpoint on
    pipeline.run("tools.verify")
    again = accounts(jobs.run("--once", "--checkpoint", str(jobs.folder / "new")), "stopped ")
    assert again == {"consumed": 20_000, "indexed": 0, "duplicates": 20_000, "dead_lettered": 0}
    pipeline.run("tools.verify")
    pipeline.generate("--count", "300", "--backfill", "1d", "--sensors", "30")
    with closing(KafkaAdminClient(bootstrap_servers=pipeline.kafka)) as admin:
        admin.delete_records({TopicPartition(pipeline.topic, n): -1 for n in range(3)})  # all
        assert "Kafka has deleted messages that were not read" in jobs.run("--once", code=1)
        admin.delete_topics([pipeline.topic])
        wait_until(lambda: pipeline.topic not in admin.list_topics(), "the topic is gone")
    pipeline.generate("--count", "500", "--backfill", "5d")
    assert accounts(jobs.run("--once"), "stopped ")["consumed"] == 500
