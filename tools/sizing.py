#!/usr/bin/env python3
"""Measure what a reading takes on disk, and compute what a bigger load would need.

    python tools/sizing.py               # 10 000 sensors, one reading a second, for a year
    python tools/sizing.py --sensors 200 --every 60 --days 30

What is measured, of one copy: the topic's log files by message (as the generator compresses them),
and the index's files by document. Both are smaller where there are more: fill them first, as with
`python sensor_generator.py --backfill 100d --sensors 100 --count 1000000`.

What is computed: disk for all copies, shards, and nodes, one index a day, under these limits:
    50 GB and 200 million documents a shard       Elastic, "Size your shards"
    1000 shards a node                            cluster.max_shards_per_node
    85 % of a disk                                cluster.routing.allocation.disk.watermark.low

Environment (or .env): as the consumer, see kafka_to_elasticsearch.py, with VERIFIER_ in the place
of CONSUMER_.

Exit codes: 0 printed, 1 a server is unreachable or holds nothing, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from elasticsearch import Elasticsearch
from kafka.errors import KafkaError
from kafka.protocol.admin import DescribeLogDirsRequest

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kafka_to_elasticsearch import SetupError  # noqa: E402  # works from any folder
from tools.connection import (  # noqa: E402
    ELASTICSEARCH_ERRORS,
    elasticsearch_client,
    elasticsearch_index,
    failure,
    kafka_admin,
    kafka_consumer,
    kafka_options,
    kafka_servers,
    kafka_topic,
    load_env,
    partitions_of,
    run,
    with_dated,
)

ROLE = "VERIFIER"
DAY_S = 86_400
SHARD_BYTES = 50e9
SHARD_DOCUMENTS = 200e6
NODE_SHARDS = 1000
DISK_PART = 0.85
SMALLEST, LARGEST = 1e-6, 1e12  # of the numbers that can be asked for


@dataclass(frozen=True)
class Load:
    """What is to be kept.

    Attributes:
        sensors: how many.
        every_s: seconds between two readings of one sensor.
        days: how long Elasticsearch keeps them.
        kafka_days: how long Kafka keeps them.
        copies: of each shard, the primary included.
        kafka_copies: of each partition (replication factor).
        disk_bytes: of one Elasticsearch node.
    """

    sensors: int = 10_000
    every_s: float = 1.0
    days: int = 365
    kafka_days: int = 7
    copies: int = 2
    kafka_copies: int = 3
    disk_bytes: float = 4e12

    @property
    def readings_a_day(self) -> float:
        """Readings of all sensors in a day."""
        return self.sensors * DAY_S / self.every_s


@dataclass(frozen=True)
class Needs:
    """What a load needs.

    Attributes:
        kafka_bytes: disk of all brokers together.
        elasticsearch_bytes: disk of all nodes together.
        primaries_a_day: primary shards of a day's index.
        shards: of all indices, copies included.
        nodes: of Elasticsearch, for their disks and for their shards; the larger counts.
    """

    kafka_bytes: float
    elasticsearch_bytes: float
    primaries_a_day: int
    shards: int
    nodes: tuple[int, int]


def needs(load: Load, message_bytes: float, document_bytes: float) -> Needs:
    """Return what a load needs, from what one message and one document take in one copy.

    >>> year = needs(Load(), message_bytes=50, document_bytes=100)  # 864 million a day
    >>> year.primaries_a_day, year.shards, year.nodes
    (5, 3650, (19, 4))
    >>> year.elasticsearch_bytes / 1e12, year.kafka_bytes / 1e12
    (63.072, 0.9072)
    """
    daily = load.readings_a_day
    primaries = max(ceil(daily * document_bytes / SHARD_BYTES), ceil(daily / SHARD_DOCUMENTS))
    shards = primaries * load.days * load.copies
    stored = daily * load.days * document_bytes * load.copies
    return Needs(
        kafka_bytes=daily * load.kafka_days * message_bytes * load.kafka_copies,
        elasticsearch_bytes=stored,
        primaries_a_day=primaries,
        shards=shards,
        nodes=(ceil(stored / (load.disk_bytes * DISK_PART)), ceil(shards / NODE_SHARDS)),
    )


def measure_topic(servers: str, topic: str, security: Mapping[str, Any]) -> tuple[int, float]:
    """Return how many messages the topic holds, and the bytes of log that each takes in one copy.

    Raises:
        KafkaError: Kafka does not answer.
        ValueError: there is none.
    """
    with closing(kafka_admin(servers, security)) as admin:
        if topic not in admin.list_topics():
            raise ValueError(f"there is no topic {topic}, or none that we may see")
        brokers = [broker["node_id"] for broker in admin.describe_cluster()["brokers"]]
        # Each broker tells the sizes of the copies that it holds.
        answers = [admin.send_request(DescribeLogDirsRequest[0](), node_id=n) for n in brokers]
    sizes = [
        partition_bytes
        for answer in answers
        for _error, _folder, topics in answer.log_dirs
        for name, partitions in topics
        for _number, partition_bytes, _lag, _is_future in partitions
        if name == topic
    ]
    with closing(kafka_consumer(servers, security)) as consumer:
        numbers = partitions_of(consumer, topic)
        first, end = consumer.beginning_offsets(numbers), consumer.end_offsets(numbers)
    messages = sum(end.values()) - sum(first.values())
    if messages == 0:
        raise ValueError(f"no message in topic {topic}: start the generator first")
    if not sizes:  # Kafka's answer is empty then
        raise ValueError(f"Kafka does not tell the size of {topic}: no right to DESCRIBE CLUSTER")
    return messages, sum(sizes) / (len(sizes) / len(numbers)) / messages


def measure_index(client: Elasticsearch, index: str) -> tuple[int, float]:
    """Return how many documents the indices have, and the bytes of disk of each in one copy.

    The index and those of a day or a month beside it.

    Raises:
        ApiError, TransportError: Elasticsearch does not answer, or has no such index.
        ValueError: it is empty.
    """
    indices = with_dated(index)
    client.indices.flush(index=indices, wait_if_ongoing=True)
    found = client.indices.stats(index=indices, metric="docs,store")["_all"]["primaries"]
    documents = found.get("docs", {"count": 0})["count"]
    if documents == 0:
        raise ValueError(f"no document in index {index}: start the consumer first")
    return documents, found["store"]["size_in_bytes"] / documents


def parse_arguments(argv: Sequence[str] | None) -> Load:
    """Return the load that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    load = Load()

    def option(name: str, kind: type, default: float, text: str) -> None:
        parser.add_argument(
            name, type=kind, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )

    option("--sensors", int, load.sensors, "how many")
    option("--every", float, load.every_s, "seconds between two readings of a sensor")
    option("--days", int, load.days, "kept by Elasticsearch")
    option("--kafka-days", int, load.kafka_days, "kept by Kafka")
    option("--copies", int, load.copies, "of each shard, the primary included")
    option("--kafka-copies", int, load.kafka_copies, "of each partition")
    option("--disk-gb", float, load.disk_bytes / 1e9, "of one Elasticsearch node")
    given = parser.parse_args(argv)
    if not all(SMALLEST <= number <= LARGEST for number in vars(given).values()):
        parser.error(f"every number must be above 0: from {SMALLEST:g} to {LARGEST:g}")
    return Load(
        given.sensors, given.every, given.days, given.kafka_days, given.copies,
        given.kafka_copies, given.disk_gb * 1e9,
    )  # fmt: skip


def say(name: str, value: str, how: str = "") -> None:
    """Print one line of the table."""
    sys.stdout.write(f"{name:<36}{value:>18}   {how}".rstrip() + "\n")


def say_needs(load: Load, found: Needs) -> None:
    """Print what a load needs, with how it was computed."""
    daily = load.readings_a_day
    kept = f"{load.days} days, {load.copies} copies"
    disks, limits = found.nodes
    disk = f"{load.disk_bytes / 1e9:,.0f} GB"
    say("readings a second", f"{daily / DAY_S:,.0f}")
    say("readings a day", f"{daily:,.0f}")
    say("documents", f"{daily * load.days:,.0f}", f"{load.days} days")
    say("disk of Kafka", f"{found.kafka_bytes / 1e9:,.0f} GB",
        f"{load.kafka_days} days, {load.kafka_copies} copies")  # fmt: skip
    say("disk of Elasticsearch", f"{found.elasticsearch_bytes / 1e9:,.0f} GB", kept)
    say("primary shards a day", f"{found.primaries_a_day:,}", "one index a day")
    say("shards", f"{found.shards:,}", kept)
    say("Elasticsearch nodes", f"{max(disks, limits):,}",
        f"{disks} for disks of {disk}, {limits} for the shards")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, compute and print; return the exit code (see the module docstring)."""
    load = parse_arguments(argv)
    load_env()
    try:
        servers, topic, index = kafka_servers(), kafka_topic(), elasticsearch_index()
        security, client = kafka_options(ROLE), elasticsearch_client(ROLE)
    except SetupError as exc:
        sys.stderr.write(f"sizing: {exc}\n")
        return 2
    try:
        messages, message_bytes = measure_topic(servers, topic, security)
        documents, document_bytes = measure_index(client, index)
    except (KafkaError, *ELASTICSEARCH_ERRORS, ValueError) as exc:
        sys.stderr.write(f"sizing: cannot measure: {failure(exc, ROLE)}\n")
        return 1
    say(f"a message in {topic}", f"{message_bytes:.1f} bytes", f"measured on {messages:,}")
    say(f"a document in {index}", f"{document_bytes:.1f} bytes", f"measured on {documents:,}")
    say_needs(load, needs(load, message_bytes, document_bytes))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
