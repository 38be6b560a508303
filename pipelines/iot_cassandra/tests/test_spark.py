"""Spark's jobs by spark-submit on real servers, and the failure that the report ended with."""

import json
import os
import re
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from kafka import KafkaProducer

from pipelines.iot_cassandra.tests.conftest import HERE, PROJECT, Scene, wait_until
from pipelines.iot_cassandra.tests.test_writer import (
    IMPOSSIBLE_TIMES,
    INVALID,
    VALID,
    as_large_as_kafka_takes,
    reading,
)
from stack.servers import free_port

CONF = ("--properties-file", str(HERE / "spark.conf"))
JOB = str(HERE / "scripts/spark_cassandra.py")
README = (HERE / "README.md").read_text()


def hours_of(rows: list[tuple[Any, ...]]) -> dict[tuple[int, datetime], list[Any]]:
    """Return what sensor_data_hourly must hold, by other means than Spark's."""
    groups = defaultdict(list)
    for sensor_id, timestamp, temperature, humidity in rows:
        hour = timestamp.replace(minute=0, second=0, microsecond=0)
        groups[sensor_id, hour].append((temperature, humidity))
    hours: dict[tuple[int, datetime], list[Any]] = {}
    for key, values in groups.items():
        hours[key] = [len(values)]
        for column in zip(*values, strict=True):
            hours[key] += [min(column), pytest.approx(sum(column) / len(column)), max(column)]
    return hours


# Both jobs in one process, which starts once; README's commands are tested one by one.
BOTH = """
import sys
sys.path.insert(0, ".")  # the project's folder
from pipelines.iot_cassandra.scripts import spark_cassandra as job
stream = ["stream", "--once", "--checkpoint", sys.argv[1]]
raise SystemExit(job.main(stream) or job.main(["batch"]))
"""


def send_and_take_back(scene: Scene, *values: bytes) -> None:
    """Send messages in a transaction that is aborted."""
    producer = KafkaProducer(bootstrap_servers=scene.kafka, transactional_id=scene.name)
    with closing(producer):
        producer.init_transactions()
        producer.begin_transaction()
        for value in values:
            producer.send(scene.name, value, partition=0)
        producer.flush()
        producer.abort_transaction()


def test_stream_then_batch(scene: Scene, tmp_path: Path) -> None:
    scene.create_topic()
    scene.create_topic(f"{scene.name}.dead-letter")  # as Kafka makes one by itself: up to 1 MB
    scene.send(*VALID, *INVALID, as_large_as_kafka_takes())
    for time in IMPOSSIBLE_TIMES:
        scene.send(reading(), at=time)
    send_and_take_back(scene, reading(sensor_id=404), b"nonsense")
    scene.simulate("--count", "2000", "--at-once", "--rate", "0.5", "--bad", "0.02")
    both = tmp_path / "both.py"
    both.write_text(BOTH)
    said = scene.submit(*CONF, str(both), str(tmp_path / "checkpoint")).stdout
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert f"written={verdict.readings} dead_lettered={verdict.dead_lettered}" in said
    assert verdict.messages == scene.end() - 3  # two were taken back, and the mark of that
    letters = {dict(letter.headers)["reason"].decode() for letter in scene.dead_letters()}
    assert {"invalid: NaN is not a number", "invalid: sensor_id is beyond 32 bits"} <= letters
    assert "None" not in letters

    # The other writer of the same topic finds nothing to change: same rows, same write times.
    times = "SELECT sensor_id, timestamp, WRITETIME(humidity) FROM KS.sensor_data"
    before = sorted(scene.rows(times))
    scene.write()
    assert sorted(scene.rows(times)) == before
    assert scene.verify().rows == verdict.rows

    expected = hours_of(
        scene.rows("SELECT sensor_id, timestamp, temperature, humidity FROM KS.sensor_data")
    )
    assert f"readings={verdict.readings} loaded from" in said
    assert f"hours={len(expected)} written to" in said
    columns = ", ".join(
        f"{n}_{f}" for n in ("temperature", "humidity") for f in ("min", "avg", "max")
    )
    query = f"SELECT sensor_id, hour, readings, {columns} FROM KS.sensor_data_hourly"  # noqa: S608
    found = {(row[0], row[1]): list(row[2:]) for row in scene.rows(query)}
    assert found == expected
    assert len(found) > 20


def test_the_stream_goes_on_where_it_was(scene: Scene, tmp_path: Path) -> None:
    """After kill -9, after Cassandra was away, after Ctrl-C and SIGTERM."""
    scene.simulate("--count", "1000", "--at-once", "--bad", "0.02")

    def started() -> tuple[subprocess.Popen[bytes], Path]:
        """Start the stream; return it when all that was sent has arrived.

        What it says of its batches does not tell: the one that was being ended comes again.
        """
        command = ["--master", "local[2]", "--conf", "spark.ui.enabled=false", *CONF, JOB]
        log = tmp_path / f"{len(scene.started)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["spark-submit", *command, "stream", "--checkpoint", str(tmp_path / "checkpoint")],
                cwd=PROJECT, env=scene.environ, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        scene.started.append(process)
        wait_until(lambda: process.poll() is not None or scene.verify().holds, "all has arrived")
        assert process.poll() is None, log.read_text()
        return process, log

    stream, log = started()
    os.killpg(stream.pid, signal.SIGKILL)
    assert stream.wait() == -signal.SIGKILL

    scene.send(reading(sensor_id=1))
    stream, log = started()
    scene.stack.stop("cassandra", signal.SIGKILL)
    scene.send(reading(sensor_id=2), b"nonsense")
    assert stream.wait(timeout=60) == 1
    (said,) = re.findall("^spark_cassandra: .*", log.read_text(), re.MULTILINE)
    assert said.endswith(f" (Kafka at {scene.kafka}, Cassandra at {scene.cassandra})")
    scene.stack.up(["cassandra"])

    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        stream, log = started()  # and takes what came while it did not run
        os.killpg(stream.pid, signum)
        assert stream.wait(timeout=60) in (0, code)  # Python's, or that of Java if it is faster
        # Of a batch that it ends Spark reports Python's trace; the job has none of its own.
        assert not re.search("^Traceback", log.read_text(), re.MULTILINE)
        if signum == signal.SIGINT:
            scene.send(reading(sensor_id=3))
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert verdict.messages == 1004


@contextmanager
def standalone(scene: Scene, folder: Path) -> Iterator[tuple[str, str]]:
    """Spark's own master and one worker, as compose.yml has them; yield the master and its page."""
    port, page = free_port(), free_port()
    master, deploy = f"spark://127.0.0.1:{port}", "org.apache.spark.deploy"
    at = ["--host", "127.0.0.1"]
    commands = (
        [f"{deploy}.master.Master", *at, "--port", str(port), "--webui-port", str(page)],
        [f"{deploy}.worker.Worker", *at, "--webui-port", str(free_port()), "--cores", "1",
         "--memory", "512m", "--work-dir", str(folder / "work"), master],
    )  # fmt: skip
    environ = {**scene.environ, "SPARK_LOCAL_IP": "127.0.0.1"}
    with (folder / "spark.log").open("wb") as log:
        servers = [
            subprocess.Popen(["spark-class", *command], env=environ, stdout=log, stderr=log)
            for command in commands
        ]
    try:
        yield master, f"http://127.0.0.1:{page}"
    finally:
        for server in servers:
            server.terminate()
            server.wait(timeout=30)


def test_the_batch_runs_on_a_standalone_master_and_worker(scene: Scene, tmp_path: Path) -> None:
    scene.simulate("--count", "500", "--at-once", "--rate", "0.5")
    scene.write()
    with standalone(scene, tmp_path) as (master, page):

        def state() -> dict[str, Any]:
            with suppress(URLError), urlopen(f"{page}/json/", timeout=30) as answer:
                return dict(json.load(answer))
            return {}

        wait_until(lambda: state().get("aliveworkers") == 1, "the worker is known to its master")
        on_it = ["--master", master, "--executor-memory", "512m"]
        on_it += ["--conf", "spark.driver.host=127.0.0.1"]
        said = scene.submit(*on_it, *CONF, JOB, "batch").stdout
        assert f"readings=500 loaded from {scene.name}.sensor_data" in said
        wait_until(lambda: state()["completedapps"], "the job has ended for its master")
        (job,) = state()["completedapps"]
        assert (job["name"], job["state"], job["cores"] > 0) == ("iot_cassandra", "FINISHED", True)
        with urlopen(page, timeout=30) as answer:  # what a browser shows
            assert b"iot_cassandra" in answer.read()
    assert len(scene.rows("SELECT hour FROM KS.sensor_data_hourly")) > 1


def test_thin_jars_copied_by_hand_fail_as_the_readme_says(scene: Scene, tmp_path: Path) -> None:
    copy = ["mvn", "-B", "-q", "-f", str(HERE / "tests/thin_jars.pom.xml")]
    copy += ["org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"]
    copy += ["-DexcludeTransitive=true", f"-DoutputDirectory={tmp_path}"]
    subprocess.run(copy, check=True, capture_output=True)
    jars = sorted(str(jar) for jar in tmp_path.glob("*.jar"))
    assert len(jars) == 4
    failed = scene.submit("--jars", ",".join(jars), JOB, "batch", code=1)
    message = (
        "java.lang.NoClassDefFoundError: "
        "com/datastax/oss/driver/shaded/guava/common/base/Preconditions"
    )
    assert message in failed.stdout  # spark-submit joins the two streams of a Python program
    assert message in README
