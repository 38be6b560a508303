"""Real Kafka and Cassandra for the session; fresh names and the scripts for each test."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cassandra.cluster import Cluster, Session
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from kafka.structs import TopicPartition

from pipelines.iot_cassandra.kafka_topic import read_topic
from pipelines.iot_cassandra.prepare import apply_schema
from pipelines.iot_cassandra.settings import addresses, rejects_topic
from pipelines.iot_cassandra.verify import Verdict, verify
from pipelines.tests.quick_spark import quick_spark  # noqa: F401  # a fixture of every test
from stack.lifecycle import Stack
from stack.servers import free_port

PROJECT = Path(__file__).resolve().parents[3]
HERE = PROJECT / "pipelines/iot_cassandra"
COMPOSE = HERE / "docker-compose.yml"
PORTS = ("ZOOKEEPER", "KAFKA", "CASSANDRA", "SPARK", "SPARK_WORKER")

# A developer's shell or .env must not change a result.
for name in list(os.environ):
    inherited = name.startswith(("KAFKA_", "IOT_", "CASSANDRA_", "SPARK_", "STACK_"))
    if inherited and name != "STACK_CACHE":
        del os.environ[name]
os.environ["PYTHON_DOTENV_DISABLED"] = "1"
# Every Java here lives a minute: what its second compiler would gain later, it costs now.
os.environ["JAVA_TOOL_OPTIONS"] = "-XX:TieredStopAtLevel=1"

# The writer itself, only quicker to give up on a server or on a dead member of its group, to try
# again, and to say that it waits.
QUICKER = """
from pipelines.iot_cassandra.scripts import clients, kafka_to_cassandra, writer
clients.SESSION_TIMEOUT_MS = writer.SESSION_TIMEOUT_MS = 6000
clients.KAFKA_TIMEOUT_MS = writer.KAFKA_TIMEOUT_MS = 2000
clients.REQUEST_TIMEOUT_S = 2.0
writer.PROGRESS_S = writer.RETRY_CAP_S = 1
raise SystemExit(kafka_to_cassandra.main())
"""


@pytest.fixture(scope="session")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Real ZooKeeper, Kafka and Cassandra, on free ports, for the whole session."""
    ports = {f"{name}_HOST_PORT": str(free_port()) for name in PORTS}
    state = tmp_path_factory.mktemp("stack")
    servers = Stack([COMPOSE], {**os.environ, **ports, "STACK_STATE": str(state)})
    try:
        servers.up(["kafka", "cassandra"])
        yield servers
    finally:
        if request.session.testsfailed:
            for server in servers.servers.values():
                if servers.log(server).exists():
                    lines = servers.log(server).read_text(errors="replace").splitlines()[-20:]
                    sys.stderr.write("\n".join([f"--- {server.name}", *lines, ""]))
        servers.down(wipe=True)


def stack_environ(stack: Stack) -> dict[str, str]:
    """Return what `python -m stack` needs to find these servers."""
    ports = {name: server.address.rpartition(":")[2] for name, server in stack.servers.items()}
    return {
        **{f"{name.upper()}_HOST_PORT": port for name, port in ports.items()},
        "STACK_STATE": str(stack.state),
    }


@pytest.fixture
def restored_signals() -> Iterator[None]:
    """The signals are as before after a program that has run in this process."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.getsignal(signum) for signum in signals}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@dataclass
class Scene:
    """A topic, a group and a keyspace that no other test knows, and the scripts run on them."""

    stack: Stack
    name: str
    session: Session
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def kafka(self) -> str:
        return self.stack.servers["kafka"].address

    @property
    def cassandra(self) -> str:
        return self.stack.servers["cassandra"].address

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "IOT_TOPIC": self.name,
            "IOT_GROUP_ID": self.name,
            "CASSANDRA_HOSTS": self.cassandra,
            "CASSANDRA_KEYSPACE": self.name,
        }

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start one of this folder's scripts, or Python code; its output goes to `logs`."""
        if command[0].endswith(".py"):
            command = (str(HERE / command[0]), *command[1:])
        with (self.folder / f"{len(self.started):02d}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=PROJECT, env=self.environ, stdout=log, stderr=log
            )
        self.started.append(process)
        return process

    def start_writer(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start("-c", QUICKER, *arguments)

    def run(self, *command: str, code: int = 0) -> str:
        """Run a script to its end, check its exit code; return what it wrote."""
        process = self.start(*command)
        ended = process.wait(timeout=240)
        written = self.log(process)
        assert ended == code, written
        assert "Traceback" not in written
        return written

    def simulate(self, *arguments: str) -> str:
        return self.run("scripts/iot_simulator.py", "--seed", "1", *arguments)

    def write(self, *arguments: str) -> str:
        """Run the writer until all is read."""
        return self.run("scripts/kafka_to_cassandra.py", "--once", *arguments)

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """A server does nothing meanwhile, not even end a connection."""
        pid = self.stack.pid(name)
        assert pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"{self.started.index(process):02d}.log").read_text()

    def send(self, *values: bytes | None, at: int | None = None, **options: Any) -> None:
        """Send raw messages to partition 0, with a time of their own (epoch ms) if need be."""
        options = {"topic": self.name, "key": b"key", "partition": 0, "timestamp_ms": at, **options}
        with closing(KafkaProducer(bootstrap_servers=self.kafka)) as producer:
            for future in [producer.send(value=value, **options) for value in values]:
                future.get(timeout=30)

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        with closing(KafkaAdminClient(bootstrap_servers=self.kafka)) as admin:
            yield admin

    def create_topic(self, name: str = "", settings: Mapping[str, str] | None = None) -> None:
        topic = NewTopic(name or self.name, 1, 1, topic_configs=settings)
        with self.admin() as admin:
            admin.create_topics([topic])

    def rejects(self) -> list[Any]:
        return list(read_topic(self.kafka, rejects_topic(self.name))[0])

    def end(self) -> int:
        """Return the number of messages in the topic."""
        with closing(KafkaConsumer(bootstrap_servers=self.kafka)) as consumer:
            numbers = consumer.partitions_for_topic(self.name)
            partitions = [TopicPartition(self.name, number) for number in numbers]
            return sum(consumer.end_offsets(partitions).values())

    def committed(self) -> int:
        """Return the sum of the group's committed offsets."""
        options = {"bootstrap_servers": self.kafka, "group_id": self.name}
        with closing(KafkaConsumer(**options, enable_auto_commit=False)) as consumer:
            numbers = consumer.partitions_for_topic(self.name)
            return sum(consumer.committed(TopicPartition(self.name, n)) or 0 for n in numbers)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query on this keyspace finds; it names tables after KS, as `KS.table`."""
        return [tuple(row) for row in self.session.execute(query.replace("KS", self.name))]

    def verify(self) -> Verdict:
        """Return what the independent verifier says."""
        with connected(self.stack) as session:  # anew: the server may have been away
            return verify(self.kafka, self.name, session, self.name, {})


@contextmanager
def connected(stack: Stack) -> Iterator[Session]:
    """A connection to Cassandra of our own."""
    with Cluster(addresses(stack.servers["cassandra"].address)) as cluster:
        yield cluster.connect()


@pytest.fixture
def scene(stack: Stack, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    stem = re.sub(r"[^a-z0-9]+", "_", request.node.name.lower())[:30]
    with connected(stack) as session:
        scene = Scene(stack, f"{stem}_{uuid4().hex[:8]}", session, tmp_path)
        apply_schema(scene.cassandra, scene.name)
        try:
            yield scene
        finally:
            for process in scene.started:  # what a failed test has left running
                process.kill()
                process.wait()
            stack.up(["cassandra"])  # whatever a failed test has left stopped
