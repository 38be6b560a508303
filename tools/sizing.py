"""Measure what a reading takes on disk, and compute what a bigger load would need.

    python -m tools.sizing               # 10 000 sensors, one reading a second, for a year
    python -m tools.sizing --sensors 200 --every 60 --days 30
    python -m tools.sizing --sensors 100000 --index-by day     # on Spark, see extensions/spark

It measures, in one copy, the bytes of the topic's log files for each message (compressed as the
generator does it) and those of the index's files for each document. Both are smaller where there
are more of them, so fill them first, for instance with
`python sensor_generator.py --backfill 100d --sensors 100 --count 1000000`.

It computes the disk for all copies, the shards and the nodes, for one index a day or a month, and
what must pass through the network and through each partition, with these limits:
    50 GB and 200 million documents a shard       Elastic, "Size your shards"
    1000 shards a node                            cluster.max_shards_per_node
    85 % of a disk                                cluster.routing.allocation.disk.watermark.low
    10 000 readings a second and core (--core-rate)   much less than measured: make bench-spark

Environment (or .env): as the consumer, see kafka_to_elasticsearch.py, with VERIFIER_ in the place
of CONSUMER_.

Exit codes: 0 printed, 1 a server is unreachable or holds nothing, 2 wrong usage or configuration,
130 Ctrl-C.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from typing import Any

from elasticsearch import Elasticsearch
from kafka.protocol.admin import DescribeLogDirsRequest

from kafka_to_elasticsearch import number
from kibana.command_line import command, load_env
from stack.console import CommandError, command_parser, say
from tools.connection import (
    asking_servers,
    elasticsearch_client,
    elasticsearch_index,
    kafka_admin,
    kafka_consumer,
    kafka_options,
    kafka_servers,
    kafka_topic,
    partitions_of,
    with_dated,
)

ROLE = "VERIFIER"
DAY_S = 86_400
SHARD_BYTES = 50e9
SHARD_DOCUMENTS = 200e6
NODE_SHARDS = 1000
DISK_SHARE = 0.85
BULK_BYTES = 200  # of a reading in a bulk request: its id, and the document as JSON
# --index-by: the days of the longest period, and the mean number of days of one.
PERIODS = {"day": (1, 1.0), "month": (31, 365 / 12)}


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
        index_by: the period of an index, a key of PERIODS.
        core_rate: readings that one core of the consumers indexes in a second.
    """

    sensors: int = 10_000
    every_s: float = 1.0
    days: int = 365
    kafka_days: int = 7
    copies: int = 2
    kafka_copies: int = 3
    disk_bytes: float = 4e12
    index_by: str = "day"
    core_rate: float = 10_000

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
        primaries: primary shards of one index.
        shards: of all indices, copies included.
        nodes: of Elasticsearch, one number for their disks and one for their shards; the larger
            counts.
        kafka_rate: bytes a second into all brokers together, copies included.
        elasticsearch_rate: the same into all nodes.
        cores: of the consumers; each reads one partition or more, so there must be as many.
    """

    kafka_bytes: float
    elasticsearch_bytes: float
    primaries: int
    shards: int
    nodes: tuple[int, int]
    kafka_rate: float
    elasticsearch_rate: float
    cores: int


def needs(load: Load, message_bytes: float, document_bytes: float) -> Needs:
    """Return what a load needs, from the bytes of one message and of one document in one copy.

    >>> year = needs(Load(), message_bytes=50, document_bytes=100)  # 864 million a day
    >>> year.primaries, year.shards, year.nodes
    (5, 3650, (19, 4))
    >>> year.elasticsearch_bytes / 1e12, year.kafka_bytes / 1e12
    (63.072, 0.9072)
    """
    daily = load.readings_a_day
    longest_days, mean_days = PERIODS[load.index_by]
    documents = daily * longest_days  # of one index
    primaries = max(
        ceil(documents * document_bytes / SHARD_BYTES), ceil(documents / SHARD_DOCUMENTS)
    )
    shards = primaries * ceil(load.days / mean_days) * load.copies
    readings_hz = daily / DAY_S
    stored = daily * load.days * document_bytes * load.copies
    return Needs(
        kafka_bytes=daily * load.kafka_days * message_bytes * load.kafka_copies,
        elasticsearch_bytes=stored,
        primaries=primaries,
        shards=shards,
        nodes=(ceil(stored / (load.disk_bytes * DISK_SHARE)), ceil(shards / NODE_SHARDS)),
        kafka_rate=readings_hz * message_bytes * load.kafka_copies,
        elasticsearch_rate=readings_hz * BULK_BYTES * load.copies,
        cores=ceil(readings_hz / load.core_rate),
    )


def measure_topic(servers: str, topic: str, security: Mapping[str, Any]) -> tuple[int, float]:
    """Return how many messages the topic holds, and the bytes of log that each takes in one copy.

    Raises:
        KafkaError: Kafka does not answer.
        CommandError: there is no such topic, or no message in it, or Kafka hides its size.
    """
    with closing(kafka_admin(servers, security)) as admin:
        if topic not in admin.list_topics():
            raise CommandError(f"there is no topic {topic}, or none that we may see")
        brokers = [broker["node_id"] for broker in admin.describe_cluster()["brokers"]]
        # Each broker knows the sizes of the copies that it holds.
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
        raise CommandError(f"no message in topic {topic}: start the generator first")
    if not sizes:  # Kafka answers without an error, but without sizes
        raise CommandError(f"Kafka does not tell the size of {topic}: no right to DESCRIBE CLUSTER")
    return messages, sum(sizes) / (len(sizes) / len(numbers)) / messages


def measure_index(client: Elasticsearch, index: str) -> tuple[int, float]:
    """Return how many documents an index has, and the bytes of disk of each in one copy.

    The indices of days or months beside it count too.

    Raises:
        ApiError, TransportError: Elasticsearch does not answer, or has no such index.
        CommandError: there is no document.
    """
    indices = with_dated(client, index)
    client.indices.flush(index=indices, wait_if_ongoing=True)
    found = client.indices.stats(index=indices, metric="docs,store")["_all"]["primaries"]
    documents = found.get("docs", {"count": 0})["count"]
    if documents == 0:
        raise CommandError(f"no document in index {index}: start the consumer first")
    return documents, found["store"]["size_in_bytes"] / documents


def parse_arguments(argv: Sequence[str] | None) -> Load:
    """Return the load that the command line asks for; a wrong number ends with code 2."""
    parser = command_parser("tools.sizing", __doc__)
    load, count = Load(), number(1, 1e12, int)
    for name, kind, default, text in (
        ("--sensors", count, load.sensors, "how many"),
        ("--every", number(1e-6, 1e12), load.every_s, "seconds between readings of a sensor"),
        ("--days", count, load.days, "kept by Elasticsearch"),
        ("--kafka-days", count, load.kafka_days, "kept by Kafka"),
        ("--copies", count, load.copies, "of each shard, the primary included"),
        ("--kafka-copies", count, load.kafka_copies, "of each partition"),
        ("--disk-gb", number(1e-6, 1e12), load.disk_bytes / 1e9, "of one Elasticsearch node"),
        ("--core-rate", number(1e-6, 1e12), load.core_rate, "readings that a core indexes in 1 s"),
    ):
        text = f"{text} (default: {default:g})"
        parser.add_argument(name, type=kind, default=default, metavar="N", help=text)
    text = "the period of an index (default: day)"
    parser.add_argument("--index-by", choices=tuple(PERIODS), default=load.index_by, help=text)
    given = parser.parse_args(argv)
    return Load(
        sensors=given.sensors,
        every_s=given.every,
        days=given.days,
        kafka_days=given.kafka_days,
        copies=given.copies,
        kafka_copies=given.kafka_copies,
        disk_bytes=given.disk_gb * 1e9,
        index_by=given.index_by,
        core_rate=given.core_rate,
    )


def print_row(name: str, value: str, how: str = "") -> None:
    """Print one line of the table."""
    say(f"{name:<36}{value:>18}   {how}".rstrip())


def print_needs(load: Load, found: Needs) -> None:
    """Print what a load needs, with how it was computed."""
    daily = load.readings_a_day
    kept = f"{load.days} days, {load.copies} copies"
    for_disks, for_shards = found.nodes
    disk = f"{load.disk_bytes / 1e9:,.0f} GB"
    print_row("readings a second", f"{daily / DAY_S:,.0f}")
    print_row("readings a day", f"{daily:,.0f}")
    print_row("documents", f"{daily * load.days:,.0f}", f"{load.days} days")
    kept_by_kafka = f"{load.kafka_days} days, {load.kafka_copies} copies"
    print_row("disk of Kafka", f"{found.kafka_bytes / 1e9:,.0f} GB", kept_by_kafka)
    print_row("disk of Elasticsearch", f"{found.elasticsearch_bytes / 1e9:,.0f} GB", kept)
    period = load.index_by
    print_row(f"primary shards a {period}", f"{found.primaries:,}", f"one index a {period}")
    print_row("shards", f"{found.shards:,}", kept)
    nodes = f"{for_disks} for disks of {disk}, {for_shards} for the shards"
    print_row("Elasticsearch nodes", f"{max(found.nodes):,}", nodes)
    into = f"MB/s into Kafka, {load.kafka_copies} copies"
    print_row("network", f"{found.kafka_rate / 1e6:,.1f}", into)
    into = f"MB/s into Elasticsearch, {load.copies} copies, {BULK_BYTES} B a reading"
    print_row("network", f"{found.elasticsearch_rate / 1e6:,.1f}", into)
    each = f"{load.core_rate:,.0f} readings a second each"
    print_row("cores, and partitions at least", f"{found.cores:,}", each)


@command("sizing")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, compute and print; return the exit code (see the module docstring)."""
    load = parse_arguments(argv)
    load_env()
    servers, topic, index = kafka_servers(), kafka_topic(), elasticsearch_index()
    security, client = kafka_options(ROLE), elasticsearch_client(ROLE)
    with asking_servers(ROLE):
        messages, message_bytes = measure_topic(servers, topic, security)
        documents, document_bytes = measure_index(client, index)
    print_row(f"a message in {topic}", f"{message_bytes:.1f} bytes", f"measured on {messages:,}")
    print_row(f"a document in {index}", f"{document_bytes:.1f} bytes", f"measured on {documents:,}")
    print_needs(load, needs(load, message_bytes, document_bytes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
