"""Spark's jobs on real servers, and the failure that the report ended with."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from kafka.errors import TopicAlreadyExistsError
from pyspark.sql import SparkSession

from pipelines.iot_cassandra.scripts import spark_cassandra
from pipelines.iot_cassandra.scripts.spark_cassandra import tables_of_readings
from pipelines.iot_cassandra.spark_session import connectors, spark_session
from pipelines.iot_cassandra.tests.conftest import HERE, PROJECT, Scene
from pipelines.iot_cassandra.tests.examples import (
    IMPOSSIBLE_TIMES,
    INVALID,
    VALID,
    as_large_as_kafka_takes,
    reading,
)
from pipelines.tests.other_producers import send_in_transactions
from pipelines.tests.waiting import wait_until
from stack.servers import free_port

README = (HERE / "README.md").read_text()
JOB = "scripts/spark_cassandra.py"


def submit(scene: Scene, *arguments: str, code: int = 0) -> str:
    """Run spark-submit in the pipeline's folder; return what it printed."""
    ended = subprocess.run(
        ["spark-submit", *arguments],
        cwd=HERE,
        env=scene.environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout


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


@pytest.fixture
def job(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    restored_signals: None,
) -> Iterator[Callable[..., str]]:
    """Run jobs in this process, in one session of Spark; each returns what is on its stdout."""
    for name, value in scene.environ.items():
        monkeypatch.setenv(name, value)
    spark, java = spark_session({"spark.cassandra.connection.host": scene.cassandra})
    monkeypatch.setattr(spark_cassandra, "spark_session", lambda *_: (spark, java))

    def run(*arguments: str) -> str:
        assert spark_cassandra.main(arguments) == 0
        printed = capsys.readouterr()
        assert ("Spark, stage " in printed.err) == sys.stderr.isatty()
        return printed.out

    with monkeypatch.context() as patched:
        patched.setattr(spark, "stop", lambda: None)
        yield run
    spark.stop()
    java.shutdown()
    java.proc.stdin.close()  # it ends then
    java.proc.wait(timeout=60)


def test_stream_then_batch(
    scene: Scene,
    job: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene.create_topic()
    scene.create_topic(f"{scene.name}.rejects")  # as Kafka makes one by itself: up to 1 MB
    scene.send(*VALID, *INVALID, as_large_as_kafka_takes())
    for time in IMPOSSIBLE_TIMES:
        scene.send(reading(), at=time)
    send_in_transactions(scene.kafka, scene.name, [reading(sensor_id=404), b"nonsense"], [])
    scene.simulate("--count", "2000", "--backfill", "1d", "--rate", "0.5", "--bad", "0.02")
    stream = ("stream", "--once", "--checkpoint")
    said = job(*stream, str(tmp_path / "mon é"))
    assert len(list((tmp_path / "mon é").iterdir())) == 1  # a folder for the topic's id
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert said == f"batch=0 written={verdict.readings} rejected={verdict.rejected}\n"
    assert verdict.messages == scene.end() - 3  # two were taken back, and the mark of that
    reasons = {dict(reject.headers)["reason"].decode() for reject in scene.rejects()}
    assert {"invalid: NaN is not a number", "invalid: sensor_id is beyond 32 bits"} <= reasons
    assert "None" not in reasons

    # Neither a second run from the beginning nor the other writer finds anything to change. The
    # second run has the document's own table only.
    times = "SELECT sensor_id, timestamp, WRITETIME(humidity) FROM KS.sensor_data"
    before = sorted(scene.rows(times))
    scene.session.execute(f"DROP TABLE {scene.name}.sensor_data_by_day", timeout=60)
    spark = SparkSession.getActiveSession()
    wait_until(lambda: len(tables_of_readings(spark, scene.name)) == 1, "Spark's driver knows it")
    assert job(*stream, str(tmp_path / "another")) == said
    assert scene.verify().twice == 0
    scene.write()
    assert sorted(scene.rows(times)) == before
    assert scene.verify().rows == {"sensor_data": verdict.readings}

    def stop_when_written() -> None:
        wait_until(lambda: scene.verify().holds, "one more is written")
        os.kill(os.getpid(), signal.SIGTERM)

    scene.send(reading(sensor_id=405))
    threading.Thread(target=stop_when_written).start()
    job("stream", "--checkpoint", str(tmp_path / "another"))  # until it is told to stop

    with monkeypatch.context() as terminal:
        terminal.setattr(sys.stderr, "isatty", lambda: True)
        said = job("batch")
    expected = hours_of(
        scene.rows("SELECT sensor_id, timestamp, temperature, humidity FROM KS.sensor_data")
    )
    assert f"readings={verdict.readings + 1} loaded from" in said
    assert f"hours={len(expected)} written to" in said
    columns = ", ".join(
        f"{n}_{f}" for n in ("temperature", "humidity") for f in ("min", "avg", "max")
    )
    query = f"SELECT sensor_id, hour, readings, {columns} FROM KS.sensor_data_hourly"  # noqa: S608
    found = {(row[0], row[1]): list(row[2:]) for row in scene.rows(query)}
    assert found == expected
    assert len(found) > 20

    def made_anew() -> bool:
        with suppress(TopicAlreadyExistsError):  # the old one is being deleted
            scene.create_topic()
            return True
        return False

    with scene.admin() as admin:
        admin.delete_topics([scene.name])
    wait_until(made_anew, "the topic made anew")
    scene.send(reading(sensor_id=406))
    assert job(*stream, str(tmp_path / "another")) == "batch=0 written=1 rejected=0\n"


def test_a_job_that_waits_ends_with_its_spark_submit() -> None:
    """Its stdin is at its end when spark-submit, which holds the other end, is killed."""
    waits = ("batch", "--wait", "600", "--hosts", f"127.0.0.1:{free_port()}")
    ended = subprocess.run(
        [sys.executable, str(HERE / JOB), *waits],
        env={**os.environ, "PYSPARK_GATEWAY_PORT": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1


def test_a_reader_that_leaves_stops_a_job_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        spark_cassandra.report("readings=1", stop)
    assert stop.is_set()


def test_the_stream_goes_on_where_it_was(scene: Scene, tmp_path: Path) -> None:
    """After kill -9, after Cassandra was away, until Ctrl-C; and it is alone."""
    scene.simulate("--count", "1000", "--backfill", "1d", "--bad", "0.02")
    stream = (JOB, "stream", "--checkpoint", str(tmp_path / "checkpoint"))

    def settle(process: subprocess.Popen[bytes]) -> None:
        """Wait for a batch, and until all that was sent has arrived.

        What it says of its batches does not tell: the one that was being ended comes again.
        """
        wait_until(lambda: process.poll() is not None or "batch=" in scene.log(process), "a batch")
        wait_until(lambda: process.poll() is not None or scene.verify().holds, "all has arrived")
        assert process.poll() is None, scene.log(process)

    first = scene.start(*stream)
    settle(first)
    waiting, refused = scene.run(*stream, code=1).splitlines()
    assert refused == f"spark_cassandra: another stream works on {tmp_path / 'checkpoint'}"
    (java,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(int(java), signal.SIGSTOP)  # as long as it is there, it may write
    first.kill()
    assert first.wait() == -signal.SIGKILL

    scene.send(reading(sensor_id=1))
    second = scene.start(*stream)
    wait_until(lambda: waiting in scene.log(second), "it waits for Java's end")
    os.kill(int(java), signal.SIGCONT)
    settle(second)
    scene.stack.stop("cassandra", signal.SIGKILL)
    scene.send(reading(sensor_id=2), b"nonsense")
    assert second.wait(timeout=60) == 1
    said = re.findall("^spark_cassandra: .*", scene.log(second), re.MULTILINE)
    assert said[:-1] == [waiting]
    assert said[-1].endswith(f" (Kafka at {scene.kafka}, Cassandra at {scene.cassandra})")
    scene.stack.up(["cassandra"])

    third = scene.start(*stream)  # and takes what came while it did not run
    settle(third)
    third.send_signal(signal.SIGINT)
    assert third.wait(timeout=60) == 0
    assert "Traceback" not in scene.log(third)
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.messages, verdict.twice) == (1003, 0)


@contextmanager
def another_network() -> Iterator[tuple[list[str], str]]:
    """Yield a command that runs another in its own network, and this machine's address there."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("another network needs root, and the program ip")
    name, ours, theirs = f"iot{os.getpid() % 10_000}", "10.213.77.1", "10.213.77.2"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", "worker", "netns", name)
        ip("addr", "add", f"{ours}/30", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "addr", "add", f"{theirs}/30", "dev", "worker")
        ip("-n", name, "link", "set", "worker", "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "route", "add", "default", "via", ours)
        yield ["ip", "netns", "exec", name], ours
    finally:
        ip("netns", "del", name)  # and with it the pair of interfaces


@contextmanager
def standalone(scene: Scene) -> Iterator[tuple[str, str]]:
    """Spark's own master here and a worker in another network; yield the master and its page."""
    port, page = free_port(), free_port()
    deploy = "org.apache.spark.deploy"
    log = scene.folder / "spark.log"
    with another_network() as (elsewhere, here), log.open("wb") as output:
        at = ["--host", here, "--port", str(port), "--webui-port", str(page)]
        worker = ["--cores", "1", "--memory", "512m", "--work-dir", str(scene.folder / "work")]
        servers = [
            subprocess.Popen(
                [*prefix, "spark-class", f"{deploy}.{name}", *arguments],
                env=scene.environ,
                stdout=output,
                stderr=output,
            )
            for prefix, name, arguments in (
                ([], "master.Master", at),
                (elsewhere, "worker.Worker", [*worker, f"spark://{here}:{port}"]),
            )
        ]
        try:
            yield f"spark://{here}:{port}", f"http://{here}:{page}"
        finally:
            for server in servers:
                server.terminate()
                server.wait(timeout=30)


# What needs no server but Spark's: its worker reaches neither Cassandra nor Kafka here.
COUNT = """
import sys
PROJECT = sys.argv[1]
sys.path.insert(0, str(PROJECT))
from pipelines.iot_cassandra.spark_session import connectors, spark_session
spark, _ = spark_session()
print("counted", spark.range(100).repartition(3).count())
spark.stop()
"""


def test_a_job_runs_on_a_master_whose_worker_is_on_another_machine(scene: Scene) -> None:
    with standalone(scene) as (master, page):

        def state(text: bytes) -> bool:
            with suppress(URLError), urlopen(page, timeout=30) as answer:
                return text in answer.read()
            return False

        wait_until(lambda: state(b"ALIVE") and state(b"worker-"), "the worker is known")
        job = scene.folder / "count.py"
        job.write_text(COUNT)
        memory = ["--executor-memory", "512m"]
        said = submit(scene, "--master", master, *memory, str(job), str(PROJECT))
        assert "counted 100" in said
        wait_until(lambda: state(b"FINISHED") and state(b"iot_cassandra"), "its page shows the job")


def test_thin_jars_copied_by_hand_fail_as_the_readme_says(scene: Scene, tmp_path: Path) -> None:
    """The report's own code, in the Java that spark-submit has started with these jars."""
    (load,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    copy = ["mvn", "-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"]
    copy += ["-Dartifact=com.datastax.oss:java-driver-core:4.14.1", f"-DoutputDirectory={tmp_path}"]
    subprocess.run(copy, check=True, capture_output=True)
    jars = [str(jar) for jar in connectors() if jar.name.startswith("spark-cassandra-connector")]
    jars += map(str, tmp_path.glob("*.jar"))
    assert len(jars) == 3  # Spark has a guava.jar of its own
    program = tmp_path / "report.py"
    session = "from pyspark.sql import SparkSession\nspark = SparkSession.builder.getOrCreate()\n"
    program.write_text(session + load)
    failed = submit(scene, "--master", "local[2]", "--jars", ",".join(jars), str(program), code=1)
    message = (
        "java.lang.NoClassDefFoundError: "
        "com/datastax/oss/driver/shaded/guava/common/base/Preconditions"
    )
    assert message in failed  # spark-submit joins the two streams of a Python program
    assert message in README
