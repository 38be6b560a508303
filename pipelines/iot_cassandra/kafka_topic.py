"""A topic of Kafka: created; read from its beginning to its end."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import NewTopic
from kafka.errors import InvalidTopicError, KafkaTimeoutError, TopicAlreadyExistsError
from kafka.structs import TopicPartition
from tqdm import tqdm

from pipelines.common import poll, words_of_kafka
from pipelines.iot_cassandra.settings import ClientError

SILENCE_S = 60.0  # of Kafka, within a topic: then nothing comes any more


def create_topic(admin: KafkaAdminClient, topic: str, partitions: int = -1) -> bool:
    """Create a topic, with the broker's defaults for what is -1; return False if it was there.

    Raises:
        KafkaError: Kafka does not answer.
        ClientError: it refuses that name, such as a_b beside a.b.
    """
    try:
        admin.create_topics([NewTopic(topic, partitions, -1)])
    except TopicAlreadyExistsError:
        return False
    except InvalidTopicError as exc:
        text = f"Kafka refuses the topic {topic}: {words_of_kafka(exc)}"
        raise ClientError(text, code=1) from exc
    return True


def shown(items: Iterable[Any], what: str, expected: int) -> Iterator[Any]:
    """Yield the items; on a terminal, a bar shows meanwhile how many of them have come."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    yield from tqdm(items, what, expected, leave=False, disable=not is_terminal)


def read_topic(servers: str, topic: str) -> tuple[Iterator[Any], Mapping[int, int]]:
    """Return the messages that the topic holds now, and each partition's first offset.

    Raises:
        KafkaError: Kafka does not answer; while they are read also: nothing comes for SILENCE_S,
            some were deleted before they were read, or some cannot be decoded.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        isolation_level="read_committed",
        api_version_auto_timeout_ms=10_000,
        receive_message_max_bytes=2**31 - 1,  # its default, 1 MB, is less than a fetch may bring
        auto_offset_reset="none",  # else it goes on after what is deleted, and says nothing
        allow_auto_create_topics=False,  # one that is absent stays so
    )
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)

    def messages() -> Iterator[Any]:
        left = {p: first[p] for p in partitions if first[p] < end[p]}  # what is read next
        with closing(consumer):
            consumer.assign(sorted(left))
            for partition, offset in left.items():
                consumer.seek(partition, offset)
            silent_since = time.monotonic()
            while left:
                found = poll(consumer, timeout_ms=1000, max_records=5000)
                for partition, polled in found.items():
                    yield from (message for message in polled if message.offset < end[partition])
                # What is no message counts, too: the marks of transactions.
                reached = {p: consumer.position(p, timeout_ms=1000) for p in left}
                if reached != left:
                    silent_since = time.monotonic()
                elif time.monotonic() - silent_since > SILENCE_S:
                    raise KafkaTimeoutError("nothing comes any more")
                left = {p: offset for p, offset in reached.items() if offset < end[p]}

    expected = sum(end.values()) - sum(first.values())
    read = shown(messages(), f"reading {topic}", expected)
    return read, {partition.partition: offset for partition, offset in first.items()}
