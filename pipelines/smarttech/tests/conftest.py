"""What the tests share: a clean environment, one Spark session, one real Kafka."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
from pyspark.sql import SparkSession

from pipelines.smarttech import lake
from pipelines.tests.quick_spark import quick_spark  # noqa: F401  # a fixture of every test
from stack.lifecycle import Stack
from stack.servers import free_port

FOLDER = Path(__file__).resolve().parents[1]
PROJECT = FOLDER.parents[1]

# A developer's shell or .env must not change a result.
for name in list(os.environ):
    if name.startswith(("KAFKA_", "SMARTTECH_", "STACK_")) and name != "STACK_CACHE":
        del os.environ[name]
os.environ["PYTHON_DOTENV_DISABLED"] = "1"
# ZooKeeper forgets a killed broker after 4 s instead of 18: until then no new one may start.
FORGET_SOON = "services: {kafka: {environment: {KAFKA_ZOOKEEPER_SESSION_TIMEOUT_MS: 4000}}}\n"


@pytest.fixture(scope="session")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TextIO]]:
    """The lock of a folder, which the Java process of `spark` holds too."""
    with lake.lock(tmp_path_factory.mktemp("locked")) as held:
        yield held


@pytest.fixture(scope="session")
def spark(locks: list[TextIO], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    with lake.spark_session(tmp_path_factory.mktemp("spark"), {}, locks) as session:
        yield session


@pytest.fixture(scope="session")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Real ZooKeeper and Kafka on free ports, for the whole session."""
    ports = {
        f"{name}_HOST_PORT": str(free_port())
        for name in ("ZOOKEEPER", "KAFKA", "ELASTICSEARCH", "KIBANA")
    }
    state = tmp_path_factory.mktemp("stack")
    overlay = state / "overlay.yml"
    overlay.write_text(FORGET_SOON)
    files = [PROJECT / "docker-compose.yml", FOLDER / "compose.yml", overlay]
    servers = Stack(files, {**os.environ, **ports, "STACK_STATE": str(state)})
    try:
        servers.up(["kafka"])
        yield servers
    finally:
        if request.session.testsfailed:
            log = servers.log(servers.servers["kafka"])
            lines = log.read_text(errors="replace").splitlines()[-20:] if log.exists() else []
            sys.stderr.write("\n".join(["--- kafka", *lines, ""]))
        servers.down(wipe=True)


class Scripts:
    """Runs the scripts as a user would, on one topic and one lake."""

    def __init__(self, kafka: str, topic: str, lake: Path) -> None:
        self.kafka = kafka
        self.topic = topic
        self.lake = lake
        self.ledger = lake.with_name("ledger.csv")
        self.environ = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "SMARTTECH_TOPIC": topic,
            "SMARTTECH_LAKE": str(lake),
        }

    @contextmanager
    def started(self, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start a script in a process group of its own: Java, which it starts, is in it too."""
        process = subprocess.Popen(
            [sys.executable, FOLDER / script, *arguments],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:  # a failed test leaves none behind
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, script: str, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run a script to its end, check its exit code; return what it wrote to stdout, stderr."""
        with self.started(script, *arguments) as process:
            out, err = process.communicate(timeout=600)
        assert process.returncode == code, out + err
        assert "Traceback" not in err
        return out, err


@pytest.fixture(scope="session")
def scripts(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scripts]:
    """Scripts on a topic and a lake of a name."""

    def make(name: str) -> Scripts:
        return Scripts(stack.servers["kafka"].address, name, tmp_path_factory.mktemp(name) / "lake")

    return make
