"""What the tests share: a clean environment, real servers started once, fresh names, one Spark."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from pyarrow import fs
from pyspark.sql import SparkSession

from pipelines.tests.quick_spark import quick_spark  # noqa: F401  # a fixture of every test
from pipelines.transactions.store import OUTPUT, REJECTS, Store, StoreError
from pipelines.transactions.verify import read_folder
from stack.lifecycle import Stack
from stack.native.s3 import MINIO_VERSION
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
SERVERS = ("kafka", "minio", "prometheus")


def wait_until(
    condition: Callable[[], Any], what: str | Callable[[], str], timeout_s: float = 120
) -> Any:
    """Return the condition's first true value; fail, saying what was waited for, after a while."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(
                f"not within {timeout_s:.0f} s: {what if isinstance(what, str) else what()}"
            )
        time.sleep(0.02)
    return value


def new_stack(state: Path, environ: Mapping[str, str] = os.environ) -> Stack:
    """Return the servers of the compose file on free ports, with their state in a folder."""
    names = ("ZOOKEEPER", "KAFKA", "KAFKA_METRICS", "MINIO", "MINIO_CONSOLE", "PROMETHEUS")
    ports = {f"{name}_HOST_PORT": str(free_port()) for name in names}
    state.mkdir(exist_ok=True)
    asked = (HERE / "prometheus.yml").read_text().replace("10s", "1s")
    for name, port in (("KAFKA_METRICS", "9404"), ("MINIO", "9000")):
        asked = asked.replace(f":{port}", f":{ports[f'{name}_HOST_PORT']}")
    (state / "prometheus.yml").write_text(asked.replace(":9109", f":{free_port()}"))
    (state / "overlay.yml").write_text(OVERLAY % (state / "prometheus.yml"))
    settings = {**environ, **ports, **CREDENTIALS, "STACK_STATE": str(state)}
    return Stack([COMPOSE, state / "overlay.yml"], settings)


@pytest.fixture(scope="session")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Real Kafka, S3 store and Prometheus, for the whole session."""
    servers = new_stack(tmp_path_factory.mktemp("stack"))
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


def is_real_minio(stack: Stack) -> bool:
    """Return whether the store is MinIO itself, not S3Proxy in its place."""
    return (stack.cache / f"minio-{MINIO_VERSION}" / "minio").exists()


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

    def kill(self, whole_group: bool = True) -> None:
        """Kill -9, with all that it has started or alone."""
        if whole_group:
            with suppress(ProcessLookupError):  # all have ended
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
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
    s3_endpoint: str = ""
    ledgers: list[Path] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        endpoint = self.s3_endpoint or f"http://{self.stack.servers['minio'].address}"
        return {
            **os.environ,
            **CREDENTIALS,
            # As in an activated environment: spark-submit looks there for Python.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KAFKA_BOOTSTRAP_SERVERS": self.stack.servers["kafka"].address,
            "TRANSACTIONS_TOPIC": self.name,
            "S3_ENDPOINT": endpoint,
            "S3_BUCKET": self.name,
        }

    @property
    def store(self) -> Store:
        return Store.from_env(self.environ)

    def start(self, script: str, *arguments: str, launcher: str = sys.executable) -> Script:
        return Script([launcher, str(HERE / script), *arguments], self.environ)

    def run(self, script: str, *arguments: str, code: int = 0) -> str:
        return self.start(script, *arguments).end(code)

    def send(self, *arguments: str) -> Path:
        """Send transactions; return the ledger, which `verify` will ask for too."""
        self.ledgers.append(self.folder / f"ledger-{len(self.ledgers)}.csv")
        at_once = ("--backfill", "30000d", "--ledger", str(self.ledgers[-1]))
        self.run("capteur.py", *arguments, *at_once)
        return self.ledgers[-1]

    def verify(self, code: int = 0) -> str:
        named = [option for path in self.ledgers for option in ("--ledger", str(path))]
        return self.run("verify.py", *named, code=code)

    def batch_files(self, batch_id: int) -> list[str]:
        """Return the data files of a batch under output/."""
        client = self.store.filesystem()
        selector = fs.FileSelector(f"{self.name}/output", recursive=True, allow_not_found=True)
        pattern = re.compile(rf"/output/date=[^/]+/batch_id={batch_id}/[^/]+\.parquet$")
        return [i.path for i in client.get_file_info(selector) if pattern.search(i.path)]


def new_pipeline(stack: Stack, name: str, folder: Path, s3_endpoint: str = "") -> Pipeline:
    """Return a pipeline with its topic and bucket made."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    pipeline = Pipeline(stack, f"{stem}-{uuid4().hex[:8]}", folder, s3_endpoint)
    pipeline.run("prepare.py")
    return pipeline


@pytest.fixture
def pipeline(stack: Stack, request: pytest.FixtureRequest, tmp_path: Path) -> Pipeline:
    """A fresh topic and bucket on the servers of the session."""
    return new_pipeline(stack, request.node.name, tmp_path)


@pytest.fixture(autouse=True)
def _no_script_is_left() -> Iterator[None]:
    """End what a failed test has left running."""
    yield
    for script in Script.started:
        script.kill()
    Script.started.clear()


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """Spark alone, without connectors and servers, for the pure transforms."""
    options: dict[str, bool | float | int | str | None] = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.session.timeZone": "UTC",
        "spark.log.level": "ERROR",
    }
    session = SparkSession.builder.master("local[1]").config(map=options).getOrCreate()
    yield session
    session.stop()


# What the bucket holds, for a reader without Spark


def rows_by_place(pipeline: Pipeline) -> list[tuple[int, int]]:
    """Return the place in Kafka of each row that a reader without Spark sees, sorted."""
    found = []
    for folder in (OUTPUT, REJECTS):
        rows = read_folder(pipeline.store, folder, ["kafka_partition", "kafka_offset"])
        found += [(row["kafka_partition"], row["kafka_offset"]) for row in rows]
    return sorted(found)


def number_seen(pipeline: Pipeline) -> int:
    """Return how many rows a reader sees, -1 where a file went away while it was reading."""
    try:
        return len(rows_by_place(pipeline))
    except StoreError:
        return -1


def assert_none_twice(pipeline: Pipeline) -> int:
    """Make sure that a reader sees no row twice; return how many it sees."""
    places = rows_by_place(pipeline)
    assert len(places) == len(set(places))
    return len(places)


def numbers(line: str) -> dict[str, int]:
    """Return the counts of a line such as "stopped read=3 written=2 rejected=1"."""
    return {name: int(value) for name, value in re.findall(r"(read|written|rejected)=(\d+)", line)}
