"""What the tests share: a clean environment, one Spark session, one real Kafka."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import pytest
from pyspark.sql import SparkSession

from pipelines.smarttech import (
    compact,
    lake,
    pipeline_streaming_simple,
    spark_kafka_consumer,
    spark_session,
)
from pipelines.smarttech.settings import FOLDER
from pipelines.tests.quick_spark import quick_spark  # noqa: F401  # a fixture of every test
from stack.lifecycle import Stack
from stack.servers import free_port

from .helpers import Scripts

# A developer's shell or .env must not change a result.
for name in list(os.environ):
    if name.startswith(("KAFKA_", "SMARTTECH_", "STACK_")) and name != "STACK_CACHE":
        del os.environ[name]
os.environ["PYTHON_DOTENV_DISABLED"] = "1"
# ZooKeeper forgets a killed broker after 4 s instead of 18: until then no new one may start.
FORGET_SOON = "services: {kafka: {environment: {KAFKA_ZOOKEEPER_SESSION_TIMEOUT_MS: 4000}}}\n"


@pytest.fixture(scope="session")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TextIO]]:
    """The lock of a folder, which the Java process of `session` holds too."""
    with lake.lock(tmp_path_factory.mktemp("locked")) as held:
        yield held


@pytest.fixture(scope="session")
def session(
    locks: list[TextIO], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SparkSession, Any]]:
    with spark_session.spark_session(tmp_path_factory.mktemp("spark"), {}, locks) as session:
        yield session


@pytest.fixture(scope="session")
def spark(session: tuple[SparkSession, Any]) -> SparkSession:
    return session[0]


@pytest.fixture
def lent_spark(session: tuple[SparkSession, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts that are called in this process work on the session of the tests."""
    spark, _ = session

    @contextmanager
    def lend(
        _: object, settings: Mapping[str, str], __: object
    ) -> Iterator[tuple[SparkSession, Any]]:
        for key, value in settings.items():
            spark.conf.set(key, value)
        try:
            yield session
        finally:
            for key in settings:
                spark.conf.unset(key)

    for script in (compact, pipeline_streaming_simple, spark_kafka_consumer):
        monkeypatch.setattr(script, "spark_session", lend)
    monkeypatch.setattr(compact, "READINGS", 1)


@pytest.fixture(scope="session")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Real ZooKeeper and Kafka on free ports, for the whole session."""
    ports = {f"{name}_HOST_PORT": str(free_port()) for name in ("ZOOKEEPER", "KAFKA")}
    state = tmp_path_factory.mktemp("stack")
    overlay = state / "overlay.yml"
    overlay.write_text(FORGET_SOON)
    files = [FOLDER / "docker-compose.yml", overlay]
    servers = Stack(files, {**os.environ, **ports, "STACK_STATE": str(state)})
    try:
        servers.up()
        yield servers
    finally:
        if request.session.testsfailed:
            log = servers.log(servers.servers["kafka"])
            lines = log.read_text(errors="replace").splitlines()[-20:] if log.exists() else []
            sys.stderr.write("\n".join(["--- kafka", *lines, ""]))
        servers.down(wipe=True)


@pytest.fixture(scope="session")
def scripts(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scripts]:
    """Scripts on a topic and a lake of a name."""

    def make(name: str) -> Scripts:
        return Scripts(stack.servers["kafka"].address, name, tmp_path_factory.mktemp(name) / "lake")

    return make
