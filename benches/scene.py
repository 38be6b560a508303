"""Where the benches measure: servers of their own, filled topics, fresh indices.

Nothing is measured on the servers that `make up` starts: each bench starts ZooKeeper, Kafka and
Elasticsearch on free ports and deletes them afterwards.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from elasticsearch import Elasticsearch
from elasticsearch.helpers import scan
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import NewTopic
from kafka.structs import TopicPartition

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # a bench is started from any folder, by its file

from stack.__main__ import Stack  # noqa: E402
from stack.servers import free_port  # noqa: E402

SERVERS = ("kafka", "elasticsearch")
CONSUMER = [sys.executable, str(PROJECT / "kafka_to_elasticsearch.py")]
GENERATOR = [sys.executable, str(PROJECT / "sensor_generator.py")]
# The generator's readings of a seed, on 10 simulated years: a topic of any size fits in them.
SEEDED = ["--seed", "1", "--start", "2026-01-01", "--backfill", "3650d", "--rate", "100"]
BULK_DOCUMENTS = 5000  # in each of the bulk bodies that are written in advance
PAGE = 10_000  # the most that a search may return, and what is read of a topic at once

Fingerprint = tuple[int, int]  # how many ids there are, and the sum of their hashes


class BenchError(Exception):
    """A run that gives no result, in one line."""


@dataclass(frozen=True)
class Topic:
    """A filled topic.

    Attributes:
        ids: fingerprint of the ids of its readings.
        size_bytes: of all messages together, without their keys.
    """

    name: str
    ids: Fingerprint
    size_bytes: int

    @property
    def readings(self) -> int:
        """How many readings it holds."""
        return self.ids[0]


def fingerprint(ids: Iterable[str]) -> Fingerprint:
    """Return what is equal for the same ids in any order, however many: the memory stays small.

    >>> fingerprint(["a", "b"]) == fingerprint(["b", "a"])
    True
    >>> fingerprint(["a", "b"]) == fingerprint(["a", "c"])
    False
    """
    count = total = 0
    for one in ids:
        count += 1
        total += hash(one)
    return count, total


def reading_id(value: bytes) -> str:
    """Return the id of the reading in a message, as our consumer makes it."""
    return id_of(json.loads(value))


def id_of(reading: dict[str, Any]) -> str:
    """Return the id of a reading."""
    return f"{reading['sensor_id']}@{reading['timestamp']}"


@dataclass
class Scene:
    """Running servers, and a folder for what a run needs."""

    stack: Stack
    folder: Path
    client: Elasticsearch

    @property
    def kafka(self) -> str:
        """Where Kafka is, HOST:PORT."""
        return self.stack.servers["kafka"].address

    @property
    def url(self) -> str:
        """Where Elasticsearch is."""
        return f"http://{self.stack.servers['elasticsearch'].address}"

    def environ(self, topic: str, index: str = "none", readings: int = 0) -> dict[str, str]:
        """Return the environment of what is measured."""
        return {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "KAFKA_TOPIC": topic,
            "KAFKA_GROUP_ID": index,
            "ELASTICSEARCH_URL": self.url,
            "ELASTICSEARCH_INDEX": index,
            "ELASTICSEARCH_DEAD_LETTER_INDEX": f"dead-{index}",
            "READINGS": str(readings),
            "PYTHON_DOTENV_DISABLED": "1",
        }

    # Topics

    def new_topic(self, partitions: int = 1) -> str:
        """Create a topic; return its name."""
        name = f"bench-{uuid4().hex[:6]}"
        with closing(KafkaAdminClient(bootstrap_servers=self.kafka)) as admin:
            admin.create_topics([NewTopic(name, partitions, replication_factor=1)])
        return name

    def filled_topic(
        self, readings: int, partitions: int = 1, sensors: int = 5, with_bodies: bool = False
    ) -> Topic:
        """Create a topic and let the generator fill it from a seed; for the rest see read_topic.

        Raises:
            BenchError: the generator failed, or the topic holds something else.
        """
        name = self.new_topic(partitions)
        self.generate(name, *SEEDED, "--sensors", str(sensors), "--count", str(readings))
        return self.read_topic(name, readings, with_bodies)

    def generate(self, topic: str, *options: str) -> None:
        """Let the generator send until it ends.

        Raises:
            BenchError: it failed.
        """
        command, environ = [*GENERATOR, *options], self.environ(topic)
        ended = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
        if ended.returncode:
            raise BenchError(f"the generator failed: {ended.stderr.strip().splitlines()[-1]}")

    def copied_topic(
        self,
        source: Topic,
        changes: Sequence[Callable[[bytes], bytes]],
        codec: str = "lz4",
        with_bodies: bool = False,
    ) -> Topic:
        """Create a topic of one partition with another's messages, as each of the changes has them.

        Kafka's own console producer writes it: it is several times as fast as a client in Python.

        Raises:
            BenchError: the topic holds something else.
        """
        name = self.new_topic()
        options = ["--bootstrap-server", self.kafka, "--topic", name]
        options += ["--compression-codec", codec, "--batch-size", "131072"]
        command = self.stack.tool("kafka", "kafka-console-producer", options)
        values = [message.value for message in self.messages(source.name)]
        with tempfile.TemporaryFile(dir=self.folder) as lines:
            for change in changes:
                lines.writelines(change(value) + b"\n" for value in values)
            lines.seek(0)
            # Its exit code says nothing of lost messages; how many arrived is counted below.
            subprocess.run(command, stdin=lines, capture_output=True, check=False)
        return self.read_topic(name, len(changes) * source.readings, with_bodies)

    def read_topic(self, name: str, readings: int, with_bodies: bool = False) -> Topic:
        """Return what a topic holds.

        Args:
            name: which topic.
            readings: how many it must hold.
            with_bodies: also write bulk requests of its documents, see `bodies`.

        Raises:
            BenchError: it does not hold so many.
        """
        count = hashes = size_bytes = 0
        body: list[bytes] = []
        for count, message in enumerate(self.messages(name), 1):
            document_id = reading_id(message.value)
            hashes += hash(document_id)
            size_bytes += len(message.value)
            if with_bodies:
                action = b'{"create":{"_id":"%b"}}' % document_id.encode()
                body += [action, message.value]
                if count % BULK_DOCUMENTS == 0 or count == readings:
                    file = self.folder / f"{name}-{count:09d}.bulk"
                    file.write_bytes(b"\n".join([*body, b""]))
                    body.clear()
        if count != readings:
            raise BenchError(f"the topic holds {count} readings, not {readings}")
        return Topic(name, (count, hashes), size_bytes)

    def bodies(self, topic: str) -> list[Path]:
        """Return the bulk requests that are written in advance for a topic's documents."""
        return sorted(self.folder.glob(f"{topic}-*.bulk"))

    def stored_bytes(self, topic: str) -> int:
        """Return what a topic takes in the broker's files."""
        with closing(KafkaAdminClient(bootstrap_servers=self.kafka)) as admin:
            folders = admin.describe_log_dirs().log_dirs
        return sum(
            partition_bytes
            for _error, _folder, topics in folders
            for name, partitions in topics
            for _number, partition_bytes, _lag, _is_future in partitions
            if name == topic
        )

    def messages(self, topic: str) -> Iterator[Any]:
        """Yield a topic's messages, in order within each partition."""
        options = {"metrics_enabled": False, "max_partition_fetch_bytes": 8_000_000}
        with closing(KafkaConsumer(bootstrap_servers=self.kafka, **options)) as consumer:
            partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
            consumer.assign(partitions)
            consumer.seek_to_beginning()
            ends = consumer.end_offsets(partitions)
            while any(consumer.position(p) < end for p, end in ends.items()):
                for polled in consumer.poll(1000, max_records=PAGE).values():
                    yield from polled

    # Indices

    def new_index(self, name: str) -> str:
        """Create an index with the project's mapping; return its name."""
        index = f"bench-{re.sub('[^a-z0-9]+', '-', name)}-{uuid4().hex[:6]}"
        template = json.loads((PROJECT / "mappings/sensors_data.json").read_text())
        self.client.indices.create(index=index, **template)
        return index

    def delete_index(self, index: str) -> None:
        """Delete an index, and what the consumer made beside it."""
        for left in (index, f"dead-{index}"):
            self.client.indices.delete(index=left, ignore_unavailable=True)
            self.client.options(ignore_status=404).indices.delete_index_template(name=left)

    def indexed(self, index: str) -> int:
        """Return how many documents an index took; they need not be searchable yet."""
        stats = self.client.indices.stats(index=index, metric="indexing")
        count: int = stats["_all"]["primaries"]["indexing"]["index_total"]
        return count

    def check(self, index: str, wanted: Fingerprint, by_id: bool = True) -> None:
        """Compare what is in an index with what was sent.

        Args:
            index: which.
            wanted: fingerprint of the readings' ids.
            by_id: False for who gives no such ids to its documents: then their fields are read.

        Raises:
            BenchError: a reading is missing, twice, or was never sent.
        """
        self.client.indices.refresh(index=index)
        fields = ["_scroll_id", "_shards", "hits.hits._id", "hits.hits._source"]
        source = False if by_id else ["sensor_id", "timestamp"]
        hits = scan(self.client, index=index, size=PAGE, _source=source, filter_path=fields)
        found = fingerprint(hit["_id"] if by_id else id_of(hit["_source"]) for hit in hits)
        if found[0] != wanted[0]:
            raise BenchError(f"{index}: {found[0]} documents for {wanted[0]} readings")
        if found != wanted:
            raise BenchError(f"{index}: {found[0]} documents, but not the readings that were sent")


@contextmanager
def own_servers() -> Iterator[Scene]:
    """Start servers on free ports; stop and delete them at the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: through what follows
    with tempfile.TemporaryDirectory() as folder:
        names = ("ZOOKEEPER", "KAFKA", "ELASTICSEARCH")
        ports = {f"{name}_HOST_PORT": str(free_port()) for name in names}
        environ = {**os.environ, "ELASTICSEARCH_HEAP": "1g", **ports, "STACK_STATE": folder}
        stack = Stack([PROJECT / "docker-compose.yml"], environ)
        try:
            stack.up(SERVERS)
            with scene_on(stack, Path(folder)) as scene:
                yield scene
        finally:
            stack.down(wipe=True)


@contextmanager
def scene_on(stack: Stack, folder: Path) -> Iterator[Scene]:
    """Return the scene on servers that run."""
    url = f"http://{stack.servers['elasticsearch'].address}"
    with Elasticsearch(url, request_timeout=120) as client:
        yield Scene(stack, folder, client)
