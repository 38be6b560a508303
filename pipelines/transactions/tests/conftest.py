"""What the tests share: a clean environment, real servers started once, fresh names, one Spark."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry
from pyarrow import fs
from pyspark.sql import SparkSession

from pipelines.tests.quick_spark import quick_spark  # noqa: F401  # a fixture of every test
from pipelines.tests.waiting import wait_until
from pipelines.transactions import capteur, consumer_spark
from pipelines.transactions.metrics import Metrics
from pipelines.transactions.rates import RATES_FILE
from pipelines.transactions.servers import Servers
from pipelines.transactions.simulation import all_records
from pipelines.transactions.spark_session import spark_session
from pipelines.transactions.store import OUTPUT, REJECTS, Store, StoreError
from pipelines.transactions.verify import Verdict, read_folder, verify
from stack.lifecycle import Stack
from stack.servers import free_port

HERE = Path(__file__).resolve().parents[1]
PROJECT = HERE.parents[1]
COMPOSE = HERE / "docker-compose.yml"
# Not the default ones: what works with these does not have them written anywhere.
CREDENTIALS = {"MINIO_ROOT_USER": "tester", "MINIO_ROOT_PASSWORD": "of the tests"}

# A developer's shell or .env must not change a result.
for name in list(os.environ):
    prefixes = ("KAFKA_", "MINIO_", "S3_", "STACK_", "TRANSACTIONS_", "SPARK_", "PROMETHEUS_")
    if name.startswith(prefixes) and name != "STACK_CACHE":
        del os.environ[name]
os.environ["PYTHON_DOTENV_DISABLED"] = "1"
# ZooKeeper forgets a killed broker after 4 s instead of 6: until then no new one may start.
# Prometheus asks at the ports of the tests.
OVERLAY = """
services:
  kafka: {environment: {KAFKA_ZOOKEEPER_SESSION_TIMEOUT_MS: 4000}}
  prometheus: {volumes: ["%s:/etc/prometheus/prometheus.yml"]}
"""
BAD = ("--bad", "0.03", "--fraud", "0.01")
ONCE = "--once"
SERVERS = ("kafka", "minio")


@pytest.fixture(scope="session")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Real Kafka and S3 store, on free ports, for the whole session; Prometheus can be started."""
    names = ("ZOOKEEPER", "KAFKA", "KAFKA_METRICS", "MINIO", "MINIO_CONSOLE", "PROMETHEUS")
    ports = {f"{name}_HOST_PORT": str(free_port()) for name in names}
    state = tmp_path_factory.mktemp("stack")
    asked = (HERE / "prometheus.yml").read_text().replace("10s", "1s")
    for name, port in (("KAFKA_METRICS", "9404"), ("MINIO", "9000")):
        asked = asked.replace(f":{port}", f":{ports[f'{name}_HOST_PORT']}")
    (state / "prometheus.yml").write_text(asked.replace(":9109", f":{free_port()}"))
    (state / "overlay.yml").write_text(OVERLAY % (state / "prometheus.yml"))
    settings = {**os.environ, **ports, **CREDENTIALS, "STACK_STATE": str(state)}
    servers = Stack([COMPOSE, state / "overlay.yml"], settings)
    try:
        servers.up(SERVERS)
        yield servers
    finally:
        if request.session.testsfailed:
            for server in servers.servers.values():
                if servers.log(server).exists():
                    lines = servers.log(server).read_text(errors="replace").splitlines()[-20:]
                    sys.stderr.write("\n".join([f"--- {server.name}", *lines, ""]))
        servers.down(wipe=True)


class Script:
    """A running script, its output collected line by line."""

    started: ClassVar[list["Script"]] = []

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        self.started.append(self)
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            self.lines.extend(iter(output.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, times: int = 1, timeout_s: float = 120) -> None:
        """Wait until a pattern has been printed so many times."""

        def found() -> bool:
            if len(re.findall(pattern, self.text)) >= times:
                return True
            if self.process.poll() is not None:
                self.reader.join(10)
                if len(re.findall(pattern, self.text)) >= times:
                    return True
                pytest.fail(f"ended without {pattern!r}:\n{self.text}")
            return False

        wait_until(found, f"{pattern!r} printed by {self.process.args!r}", timeout_s)

    def end(self, code: int = 0, timeout_s: float = 180) -> str:
        """Wait for the end, check the exit code; return what was printed."""
        try:
            ended = self.process.wait(timeout=timeout_s)
        finally:
            self.kill()
        assert ended == code, self.text
        assert "Traceback" not in self.text, self.text
        return self.text

    def is_gone(self) -> bool:
        """Return whether it and all that it has started have ended."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self) -> None:
        """Kill -9, with all that it has started."""
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(30)  # until Java, too, has let go of the pipe


@dataclass(frozen=True)
class FolderStore(Store):
    """A store whose buckets are folders, for Spark too."""

    folder: Path = Path()

    def url(self, folder: str) -> str:
        return f"file://{self.folder}/{self.bucket}/{folder}"

    def filesystem(self) -> Any:
        return fs.SubTreeFileSystem(str(self.folder), fs.LocalFileSystem())


@dataclass
class Pipeline:
    """A topic and a bucket that no other test knows, and the scripts run on them as a user does."""

    stack: Stack
    name: str
    folder: Path
    ledgers: list[Path] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            **CREDENTIALS,
            # As in an activated environment: spark-submit looks there for Python.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KAFKA_BOOTSTRAP_SERVERS": self.stack.servers["kafka"].address,
            "TRANSACTIONS_TOPIC": self.name,
            "S3_ENDPOINT": f"http://{self.stack.servers['minio'].address}",
            "S3_BUCKET": self.name,
        }

    @property
    def store(self) -> Store:
        return Store.from_env(self.environ)

    @property
    def servers(self) -> Servers:
        return Servers(self.environ["KAFKA_BOOTSTRAP_SERVERS"], self.name, self.store)

    def start(self, script: str, *arguments: str, launcher: str = sys.executable) -> Script:
        return Script([launcher, str(HERE / script), *arguments], self.environ)

    def send(self, *arguments: str) -> None:
        """Send transactions, without a process; `verify` asks for their ledger, too."""
        self.ledgers.append(self.folder / f"ledger-{len(self.ledgers)}.csv")
        at_once = ("--backfill", "30000d", "--ledger", str(self.ledgers[-1]))
        config = capteur.load_config([*arguments, *at_once], self.environ)
        made = all_records(config.simulation)
        assert capteur.send_to_kafka(made, config, threading.Event()) == 0

    def verify(self) -> Verdict:
        """Make sure that what is stored is what was sent."""
        verdict = verify(self.store, self.ledgers, RATES_FILE)
        assert verdict.holds, verdict
        return verdict

    def batch_files(self, batch_id: int) -> list[str]:
        """Return the data files of a batch under output/."""
        client = self.store.filesystem()
        selector = fs.FileSelector(f"{self.name}/output", recursive=True, allow_not_found=True)
        pattern = re.compile(rf"/output/date=[^/]+/batch_id={batch_id}/[^/]+\.parquet$")
        return [i.path for i in client.get_file_info(selector) if pattern.search(i.path)]


@pytest.fixture
def pipeline(stack: Stack, request: pytest.FixtureRequest, tmp_path: Path) -> Pipeline:
    """A fresh topic and bucket on the servers of the session."""
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40]
    pipeline = Pipeline(stack, f"{stem}-{uuid4().hex[:8]}", tmp_path)
    assert pipeline.servers.make_bucket()
    assert pipeline.servers.make_topic()
    return pipeline


class Job:
    """The consumer's `main` in the tests' own process, on their Spark: no Java has to start."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog
        self.thread = ThreadPoolExecutor(1)
        self.stops: list[threading.Event] = []

    @property
    def log(self) -> list[str]:
        """What it has logged since its start, without the times."""
        records = [one for one in self.caplog.records if one.name == "consumer_spark"]
        return [f"{one.levelname} {one.getMessage()}" for one in records]

    @property
    def text(self) -> str:
        return "\n".join(self.log)

    def start(self, *options: str) -> "Future[int]":
        self.caplog.clear()
        return self.thread.submit(consumer_spark.main, options)

    def run(self, *options: str, code: int = 0) -> list[str]:
        """Wait for its end, check the exit code; return its log."""
        assert self.start(*options).result(280) == code, self.log
        return self.log


@pytest.fixture
def job(
    pipeline: Pipeline,
    java: tuple[SparkSession, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Job]:
    """The consumer of the test's topic and bucket."""
    context = java[1].jvm.org.apache.spark.SparkContext.getOrCreate()
    hadoop = context.hadoopConfiguration()
    for name, value in pipeline.store.spark_options().items():
        hadoop.set(name.removeprefix("spark.hadoop."), value)
    for name, value in pipeline.environ.items():
        monkeypatch.setenv(name, value)
    caplog.set_level("INFO", "consumer_spark")
    job = Job(caplog)
    monkeypatch.setattr(consumer_spark, "spark_session", lambda *_: java)
    monkeypatch.setattr(consumer_spark, "Metrics", lambda: Metrics(CollectorRegistry()))
    monkeypatch.setattr(consumer_spark, "configure_logging", lambda _: None)
    monkeypatch.setattr(consumer_spark, "stop_on_signals", job.stops.append)
    yield job
    for stop in job.stops:
        stop.set()
    job.thread.shutdown()


@pytest.fixture(autouse=True)
def _no_script_is_left() -> Iterator[None]:
    """End what a failed test has left running."""
    yield
    for script in Script.started:
        script.kill()
    Script.started.clear()


@pytest.fixture(scope="session")
def java() -> Iterator[tuple[SparkSession, Any]]:
    """Spark as the scripts start it, and its gateway: one for all tests without a process."""
    nowhere = Store("http://127.0.0.1:9", "none", *CREDENTIALS.values())
    spark, gateway = spark_session("tests", nowhere)
    yield spark, gateway
    spark.stop()


@pytest.fixture
def spark(java: tuple[SparkSession, Any]) -> SparkSession:
    """The session alone, for what needs no servers."""
    return java[0]


# What the bucket holds, for a reader without Spark


def rows_seen(pipeline: Pipeline) -> int:
    """Return how many rows a reader without Spark sees, none of them twice."""
    places = []
    for folder in (OUTPUT, REJECTS):
        rows = read_folder(pipeline.store, folder, ["kafka_partition", "kafka_offset"])
        places += [(row["kafka_partition"], row["kafka_offset"]) for row in rows]
    assert len(places) == len(set(places))
    return len(places)


def wait_for_rows(pipeline: Pipeline, least: int) -> None:
    """Wait until a reader sees so many rows; it fails where a file goes away while it reads."""

    def seen() -> bool:
        time.sleep(0.3)  # what it reads, it takes from the consumer's time
        with suppress(StoreError):
            return rows_seen(pipeline) >= least
        return False

    wait_until(seen, f"{least} rows", 180)
