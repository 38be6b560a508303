"""The benches' testbed: servers of their own, filled topics, fresh indices.

No bench measures the servers that `make up` starts: each one starts ZooKeeper, Kafka and
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
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from elasticsearch import Elasticsearch
from elasticsearch.helpers import scan
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import NewTopic
from kafka.structs import TopicPartition

from stack.console import CommandError
from stack.lifecycle import Stack
from stack.servers import free_port

PROJECT = Path(__file__).resolve().parent.parent

SERVERS = ("kafka", "elasticsearch")
CONSUMER = [sys.executable, str(PROJECT / "kafka_to_elasticsearch.py")]
GENERATOR = [sys.executable, str(PROJECT / "sensor_generator.py")]
# A seed makes the generator's readings the same every time; 10 simulated years hold enough of them
# for a topic of any size.
SEEDED = ["--seed", "1", "--start", "2026-01-01", "--backfill", "3650d", "--rate", "100"]
BULK_DOCUMENTS = 5000  # in each bulk body that is written in advance
PAGE_SIZE = 10_000  # hits of a search, of which Elasticsearch allows no more; messages of a poll

Fingerprint = tuple[int, int]  # the number of ids, and the sum of their hashes


class BenchError(CommandError):
    """The reason why a run gives no result, in one line."""


@dataclass(frozen=True)
class Topic:
    """A filled topic.

    Attributes:
        ids: fingerprint of the ids of its readings.
        size_bytes: sum of the messages' values, without their keys.
    """

    name: str
    ids: Fingerprint
    size_bytes: int

    @property
    def readings(self) -> int:
        """The number of readings in it."""
        return self.ids[0]


def fingerprint(ids: Iterable[str]) -> Fingerprint:
    """Return the number of ids and the sum of their hashes.

    Two sets of ids are compared by these two numbers, because millions of ids would need much
    memory. The order does not matter, but an id that comes twice does.

    >>> fingerprint(["a", "b"]) == fingerprint(["b", "a"])
    True
    >>> fingerprint(["a", "b"]) == fingerprint(["a", "c"])
    False
    """
    count = total = 0
    for document_id in ids:
        count += 1
        total += hash(document_id)
    return count, total


def reading_id(value: bytes) -> str:
    """Return the id that the consumer gives to the reading in a message."""
    return id_from_fields(json.loads(value))


def id_from_fields(reading: dict[str, Any]) -> str:
    """Return the id that the consumer gives to a reading."""
    return f"{reading['sensor_id']}@{reading['timestamp']}"


@dataclass
class Testbed:
    """Running servers, and a folder for the files of the runs."""

    __test__ = False  # pytest takes other classes whose names begin with "Test" for tests
    stack: Stack
    folder: Path

    def address(self, server: str) -> str:
        """Return the HOST:PORT of one of the servers."""
        return self.stack.servers[server].address

    @cached_property
    def client(self) -> Elasticsearch:
        """The client of Elasticsearch; `open_testbed` closes it."""
        return Elasticsearch(f"http://{self.address('elasticsearch')}", request_timeout=120)

    def environment(self, topic: str, index: str = "none", readings: int = 0) -> dict[str, str]:
        """Return a measured process's environment; its consumer group has the index's name."""
        return {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.address("kafka"),
            "KAFKA_TOPIC": topic,
            "KAFKA_GROUP_ID": index,
            "ELASTICSEARCH_URL": f"http://{self.address('elasticsearch')}",
            "ELASTICSEARCH_INDEX": index,
            "ELASTICSEARCH_DEAD_LETTER_INDEX": f"dead-{index}",
            "READINGS": str(readings),
            "PYTHON_DOTENV_DISABLED": "1",
        }

    # Topics.

    def new_topic(self, partitions: int = 1) -> str:
        """Create a topic; return its name."""
        name = f"bench-{uuid4().hex[:6]}"
        with closing(KafkaAdminClient(bootstrap_servers=self.address("kafka"))) as admin:
            admin.create_topics([NewTopic(name, partitions, replication_factor=1)])
        return name

    def fill_topic(
        self, readings: int, partitions: int = 1, sensors: int = 5, with_bodies: bool = False
    ) -> Topic:
        """Create a topic, let the generator fill it from a seed, and read it by `read_topic`.

        Raises:
            BenchError: the generator failed, or the topic does not hold so many readings.
        """
        name = self.new_topic(partitions)
        self.generate(name, *SEEDED, "--sensors", str(sensors), "--count", str(readings))
        return self.read_topic(name, readings, with_bodies)

    def generate(self, topic: str, *options: str) -> None:
        """Run the generator until it ends.

        Raises:
            BenchError: the generator failed.
        """
        command, env = [*GENERATOR, *options], self.environment(topic)
        ended = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
        if ended.returncode:
            raise BenchError(f"the generator failed: {ended.stderr.strip().splitlines()[-1]}")

    def copy_topic(
        self,
        source: Topic,
        changes: Sequence[Callable[[bytes], bytes]],
        codec: str = "lz4",
        with_bodies: bool = False,
    ) -> Topic:
        """Create a topic of one partition that holds a copy of another for each of the changes.

        A change takes the value of a message and returns the value of its copy. Kafka's own
        console producer writes the topic, as it is several times as fast as a Python client.

        Raises:
            BenchError: the topic does not hold as many readings as the copies make.
        """
        name = self.new_topic()
        options = ["--bootstrap-server", self.address("kafka"), "--topic", name]
        options += ["--compression-codec", codec, "--batch-size", "131072"]
        command = self.stack.tool("kafka", "kafka-console-producer", options)
        values = [message.value for message in self.messages(source.name)]
        with tempfile.TemporaryFile(dir=self.folder) as lines:
            for change in changes:
                lines.writelines(change(value) + b"\n" for value in values)
            lines.seek(0)
            # Its exit code does not tell whether messages were lost, so read_topic counts them.
            subprocess.run(command, stdin=lines, capture_output=True, check=False)
        return self.read_topic(name, len(changes) * source.readings, with_bodies)

    def read_topic(self, name: str, readings: int, with_bodies: bool = False) -> Topic:
        """Read a whole topic, and return what it holds.

        Args:
            name: name of the topic.
            readings: how many it must hold.
            with_bodies: also write bulk requests of its documents into files, see `bodies`.

        Raises:
            BenchError: the topic does not hold so many readings.
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
        """Return the files of the bulk requests that `read_topic` wrote of a topic's documents."""
        return sorted(self.folder.glob(f"{topic}-*.bulk"))

    def stored_bytes(self, topic: str) -> int:
        """Return the size of a topic in the broker's files, compressed as it is there."""
        with closing(KafkaAdminClient(bootstrap_servers=self.address("kafka"))) as admin:
            folders = admin.describe_log_dirs().log_dirs
        return sum(
            partition_bytes
            for _error, _folder, topics in folders
            for name, partitions in topics
            for _number, partition_bytes, _lag, _is_future in partitions
            if name == topic
        )

    def messages(self, topic: str) -> Iterator[Any]:
        """Yield all messages of a topic, in order within each partition."""
        options = {"metrics_enabled": False, "max_partition_fetch_bytes": 8_000_000}
        with closing(KafkaConsumer(bootstrap_servers=self.address("kafka"), **options)) as consumer:
            partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
            consumer.assign(partitions)
            consumer.seek_to_beginning()
            ends = consumer.end_offsets(partitions)
            while any(consumer.position(p) < end for p, end in ends.items()):
                for polled in consumer.poll(1000, max_records=PAGE_SIZE).values():
                    yield from polled

    # Indices.

    def new_index(self, name: str) -> str:
        """Create an index with the project's mapping; return its name."""
        index = f"bench-{re.sub('[^a-z0-9]+', '-', name)}-{uuid4().hex[:6]}"
        template = json.loads((PROJECT / "mappings/sensors_data.json").read_text())
        self.client.indices.create(index=index, **template)
        return index

    def delete_index(self, index: str) -> None:
        """Delete an index, and the dead letters and templates that the consumer made beside it."""
        for name in (index, f"dead-{index}"):
            self.client.indices.delete(index=name, ignore_unavailable=True)
            self.client.options(ignore_status=404).indices.delete_index_template(name=name)

    def indexed_count(self, index: str) -> int:
        """Return the number of documents indexed; a search need not find them yet."""
        stats = self.client.indices.stats(index=index, metric="indexing")
        count: int = stats["_all"]["primaries"]["indexing"]["index_total"]
        return count

    def check_index(self, index: str, expected: Fingerprint, by_id: bool = True) -> None:
        """Compare the documents of an index with the readings that were sent.

        Args:
            index: name of the index.
            expected: fingerprint of the readings' ids.
            by_id: whether the documents have the readings' ids; if not, their fields are read.

        Raises:
            BenchError: a reading is missing, is there twice, or was never sent.
        """
        self.client.indices.refresh(index=index)
        fields = ["_scroll_id", "_shards", "hits.hits._id", "hits.hits._source"]
        source = False if by_id else ["sensor_id", "timestamp"]
        hits = scan(self.client, index=index, size=PAGE_SIZE, _source=source, filter_path=fields)
        found = fingerprint(hit["_id"] if by_id else id_from_fields(hit["_source"]) for hit in hits)
        if found[0] != expected[0]:
            raise BenchError(f"{index}: {found[0]} documents for {expected[0]} readings")
        if found != expected:
            raise BenchError(f"{index}: {found[0]} documents, but not the readings that were sent")


@contextmanager
def own_servers() -> Iterator[Testbed]:
    """Start servers on free ports; stop and delete them at the end.

    Raises:
        StackError: a server does not start.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are deleted then
    with tempfile.TemporaryDirectory() as folder:
        names = ("ZOOKEEPER", "KAFKA", "ELASTICSEARCH")
        ports = {f"{name}_HOST_PORT": str(free_port()) for name in names}
        environment = {**os.environ, "ELASTICSEARCH_HEAP": "1g", **ports, "STACK_STATE": folder}
        stack = Stack([PROJECT / "docker-compose.yml"], environment)
        try:
            stack.up(SERVERS)
            with open_testbed(stack, Path(folder)) as testbed:
                yield testbed
        finally:
            stack.down(wipe=True)


@contextmanager
def open_testbed(stack: Stack, folder: Path) -> Iterator[Testbed]:
    """Yield a testbed on servers that run already."""
    testbed = Testbed(stack, folder)
    with closing(testbed.client):
        yield testbed
