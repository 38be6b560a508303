"""Fixtures of all tests: a clean environment, real servers started once, names used only once."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from elasticsearch import Elasticsearch
from kafka import KafkaConsumer, KafkaProducer
from kafka.structs import TopicPartition

from stack.lifecycle import Stack
from stack.servers import free_port

PROJECT = Path(__file__).resolve().parent.parent

# A developer's shell or .env must not change a result.
OURS = ("KAFKA_", "ELASTICSEARCH_", "KIBANA_", "STACK_", "COMPOSE_")
ROLES = ("GENERATOR_", "CONSUMER_", "VERIFIER_", "REPLAYER_", "ADMIN_")
for name in list(os.environ):
    if name.startswith((*OURS, *ROLES)) and name not in ("STACK_CACHE", "COMPOSE_GO"):
        del os.environ[name]
os.environ["PYTHON_DOTENV_DISABLED"] = "1"
# Elasticsearch runs only for minutes here. Without Java's optimising compiler it needs half the
# processor time to start.
os.environ["ELASTICSEARCH_HEAP"] = "512m -XX:TieredStopAtLevel=1"


def new_stack(state: Path, *overlays: str) -> Stack:
    """Return the servers of the compose files on free ports, with their state in a folder."""
    files = [PROJECT / file for file in ("docker-compose.yml", *overlays)]
    names = {name for file in files for name in re.findall(r"\$\{(\w+_PORT)\b", file.read_text())}
    ports = {name: str(free_port()) for name in names}
    given = {"STACK_STATE": str(state), "PROMETHEUS_SCRAPE_INTERVAL": "1s"}
    return Stack(files, {**os.environ, **ports, **given})


@pytest.fixture(scope="session")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Real ZooKeeper, Kafka and Elasticsearch for the whole session; a test may add Prometheus."""
    overlays = ("tests/faults/proxied.yml", "extensions/monitoring/compose.yml")
    servers = new_stack(tmp_path_factory.mktemp("stack"), *overlays)
    servers.default = ["kafka", "elasticsearch"]
    try:
        servers.up()
        yield servers
    finally:
        if request.session.testsfailed:
            for server in servers.servers.values():
                if servers.log(server).exists():
                    lines = servers.log(server).read_text(errors="replace").splitlines()[-20:]
                    sys.stderr.write("\n".join([f"--- {server.name}", *lines, ""]))
        servers.down(wipe=True)


def program(name: str) -> list[str]:
    """Return Python's arguments for a script, by its path, or a module, by its dotted name."""
    return [name] if name.endswith(".py") else ["-m", name]


@dataclass
class Pipeline:
    """A topic, an index and a group of its own on the real servers, and the scripts run on them.

    Attributes:
        kafka: the broker, HOST:PORT.
        elasticsearch: the URL.
        topic: its messages and, in `<topic>.dead-letter`, the dead letters.
        index: of the readings.
        group: the consumer group.
        client: a client of Elasticsearch.
        started: processes that are killed when the test ends.
    """

    kafka: str
    elasticsearch: str
    topic: str
    index: str
    group: str
    client: Elasticsearch
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def dead_letter_index(self) -> str:
        """The index in which Kibana shows the dead letters."""
        return f"sensors_dead_{self.topic}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a script that uses these names."""
        return {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "KAFKA_TOPIC": self.topic,
            "KAFKA_GROUP_ID": self.group,
            "ELASTICSEARCH_URL": self.elasticsearch,
            "ELASTICSEARCH_INDEX": self.index,
            "ELASTICSEARCH_DEAD_LETTER_INDEX": self.dead_letter_index,
        }

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a script by its path, or a module by its dotted name, from the project's folder."""
        process = subprocess.Popen(
            [sys.executable, *program(script), *arguments],
            cwd=PROJECT,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, script: str, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run a script to its end and check its exit code; return its stdout and stderr."""
        process = self.start(script, *arguments)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, err
        assert "Traceback" not in err
        return out, err

    def generate(self, *arguments: str) -> str:
        """Run the generator to its end; return its log."""
        return self.run("sensor_generator.py", *arguments)[1]

    def generate_faulty(self, *arguments: str) -> str:
        """Run the generator that also takes --fault and --ledger; return its log."""
        return self.run("tools.faulty_sensors", *arguments)[1]

    def consume(self, *arguments: str, code: int = 0) -> str:
        """Run the consumer until it has read everything; return its log."""
        idle = ("--exit-when-idle", "2")
        return self.run("kafka_to_elasticsearch.py", *idle, *arguments, code=code)[1]

    def send(self, *values: bytes | None, key: bytes = b"k") -> None:
        """Send raw messages to partition 0."""
        with closing(KafkaProducer(bootstrap_servers=self.kafka)) as producer:
            for future in [producer.send(self.topic, v, key=key, partition=0) for v in values]:
                future.get(timeout=30)

    def messages(self, topic: str | None = None) -> list[Any]:
        """Return all messages of a topic, by default of the one that is consumed."""
        topic = topic or self.topic
        options = {"bootstrap_servers": self.kafka, "isolation_level": "read_committed"}
        with closing(KafkaConsumer(**options)) as consumer:
            partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
            if not partitions:  # the topic does not exist yet
                return []
            ends = consumer.end_offsets(partitions)
            consumer.assign(partitions)
            consumer.seek_to_beginning()
            found: list[Any] = []
            while any(consumer.position(p) < end for p, end in ends.items()):
                for polled in consumer.poll(1000).values():
                    found += polled
            return found

    def dead_letters(self) -> list[Any]:
        """Return the messages of the dead-letter topic."""
        return self.messages(f"{self.topic}.dead-letter")

    def documents(self, index: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the documents of an index by id, fewer than 10,000."""
        index = index or self.index
        self.client.indices.refresh(index=index)
        answer = self.client.search(index=index, size=10_000)
        assert answer["hits"]["total"]["value"] < 10_000
        return {hit["_id"]: hit["_source"] for hit in answer["hits"]["hits"]}

    def count(self) -> int:
        """Return the number of documents in the index, 0 while it or its shard is not there."""
        self.client.indices.refresh(index=self.index, ignore_unavailable=True)
        client = self.client.options(ignore_status=503)
        return int(client.count(index=self.index, ignore_unavailable=True).get("count", 0))

    def ends(self) -> int:
        """Return the sum of the end offsets of the topic's partitions."""
        with closing(KafkaConsumer(bootstrap_servers=self.kafka)) as consumer:
            numbers = consumer.partitions_for_topic(self.topic)
            partitions = [TopicPartition(self.topic, number) for number in numbers]
            return sum(consumer.end_offsets(partitions).values())

    def committed_offsets(self) -> dict[int, int]:
        """Return the group's committed offset of each partition; 0 where there is none."""
        options = {"bootstrap_servers": self.kafka, "group_id": self.group}
        with closing(KafkaConsumer(**options)) as consumer:
            numbers = consumer.partitions_for_topic(self.topic)
            return {n: consumer.committed(TopicPartition(self.topic, n)) or 0 for n in numbers}

    def committed(self) -> int:
        """Return the sum of the group's committed offsets."""
        return sum(self.committed_offsets().values())


@pytest.fixture
def pipeline(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """A topic, an index and a group that no other test uses."""
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40]
    name = f"{stem}-{uuid4().hex[:8]}"
    url = f"http://{stack.servers['elasticsearch'].address}"
    with Elasticsearch(url, request_timeout=60) as client:
        index = f"sensors_{name}"  # tools/retention.py deletes only from such indices
        pipeline = Pipeline(stack.servers["kafka"].address, url, name, index, name, client)
        yield pipeline
        for process in pipeline.started:  # a failed test may have left some running
            with process:
                process.kill()
        for index in (pipeline.index, pipeline.dead_letter_index):
            client.indices.delete(index=index, ignore_unavailable=True)
            client.options(ignore_status=404).indices.delete_index_template(
                name=f"smart-city-{index}"
            )


def interrupt(process: subprocess.Popen[str], signum: signal.Signals = signal.SIGTERM) -> str:
    """Send a signal to a process, wait until it ends with exit code 0; return its stderr."""
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return err
