"""How the tools reach the servers: at the addresses of the two scripts, each tool in its own role.

Environment: as the two scripts, but the variables of user and password begin with the tool's role.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from elasticsearch import ApiError, Elasticsearch, TransportError
from elasticsearch.helpers import BulkIndexError, ScanError
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, NoBrokersAvailable

from kafka_to_elasticsearch import (
    elasticsearch_security,
    elasticsearch_urls,
    index_name,
    kafka_security,
    last_kafka_error,
    one_line,
    server_list,
    shown_urls,
    topic_name,
)
from kibana.command_line import variable
from stack.console import CommandError

CONNECT_TIMEOUT_MS = 10_000
ANSWER_TIMEOUT_MS = 30_000
ELASTICSEARCH_ERRORS = (ApiError, TransportError, ScanError, BulkIndexError)

Offsets = dict[TopicPartition, int]


# Addresses and names; each function raises SetupError where the scripts would refuse the value.


def kafka_servers() -> str:
    """Return the brokers' addresses, HOST:PORT with commas between."""
    return variable("KAFKA_BOOTSTRAP_SERVERS", server_list, "localhost:9092")


def kafka_topic() -> str:
    """Return the topic of the readings."""
    return variable("KAFKA_TOPIC", topic_name, "smart-city-sensors")


def elasticsearch_index() -> str:
    """Return the index of the readings."""
    return variable("ELASTICSEARCH_INDEX", index_name, "sensors_data")


def dead_letter_index() -> str:
    """Return the index of the dead letters."""
    return variable("ELASTICSEARCH_DEAD_LETTER_INDEX", index_name, "sensors_dead_letters")


def elasticsearch_url() -> str:
    """Return Elasticsearch's addresses, with commas between."""
    return variable("ELASTICSEARCH_URL", elasticsearch_urls, "http://localhost:9200")


# Kafka


def keep_kafka_errors() -> None:
    """Keep kafka-python's log from the user, who gets its last error in our own line."""
    logger = logging.getLogger("kafka")
    logger.addHandler(last_kafka_error)
    logger.propagate = False


def kafka_options(role: str) -> dict[str, Any]:
    """Return kafka-python's options for TLS and a password.

    Raises:
        SetupError: a variable is missing or wrong.
    """
    keep_kafka_errors()
    return kafka_security(os.environ, role)


def existing_topics(servers: str, security: Mapping[str, Any]) -> set[str]:
    """Return the topics that Kafka shows us.

    This is asked first, because kafka-python's other calls wait for ever when Kafka refuses us.

    Raises:
        KafkaError: Kafka does not answer, or does not let us in.
    """
    with closing(kafka_admin(servers, security)) as admin:
        return set(admin.list_topics())


def kafka_admin(servers: str, security: Mapping[str, Any]) -> KafkaAdminClient:
    """Return an administrator's client, once Kafka has let it in.

    Raises:
        KafkaError: Kafka does not answer, or does not let us in.
    """
    try:
        return KafkaAdminClient(
            bootstrap_servers=servers.split(","),
            api_version_auto_timeout_ms=CONNECT_TIMEOUT_MS,
            **security,
        )
    except (OSError, ValueError) as exc:  # a certificate or an address is wrong
        raise NoBrokersAvailable(one_line(exc)) from exc
    except KafkaError as exc:  # it only says that no broker answers; the log says why
        raise NoBrokersAvailable(last_kafka_error.text or one_line(exc)) from exc


def kafka_consumer(servers: str, security: Mapping[str, Any], **options: Any) -> KafkaConsumer:
    """Return a consumer that reads committed messages only, and commits no offset by itself."""
    common = {
        "bootstrap_servers": servers.split(","),
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",  # where retention has deleted what comes next
        "isolation_level": "read_committed",
        "api_version_auto_timeout_ms": CONNECT_TIMEOUT_MS,
        "request_timeout_ms": ANSWER_TIMEOUT_MS,
        "receive_message_max_bytes": 2**31 - 1,  # the default is less than what is fetched at once
    }
    return KafkaConsumer(**{**common, **security, **options})


def partitions_of(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """Return the partitions of a topic that exists, sorted.

    Raises:
        KafkaError: Kafka names none, for instance because it has just gone away.
    """
    if not (numbers := consumer.partitions_for_topic(topic)):
        raise KafkaError(f"it names no partition of {topic}")
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def hidden_offsets(servers: str, security: Mapping[str, Any], end: Offsets) -> int:
    """Return how many offsets an open transaction hides for now, behind the ends of partitions.

    Raises:
        KafkaError: Kafka does not answer.
    """
    uncommitted = {"isolation_level": "read_uncommitted"}
    with closing(kafka_consumer(servers, security, **uncommitted)) as consumer:
        written: Offsets = consumer.end_offsets(list(end))
    return max(0, sum(written.values()) - sum(end.values()))


def read_between(
    consumer: KafkaConsumer, begin: Offsets, end: Offsets, at_once: int
) -> Iterator[list[Any]]:
    """Yield the messages of each partition in order, in lists of at_once messages at most.

    Args:
        consumer: assigned to nothing yet.
        begin: the first offset to read in each partition.
        end: the offset after the last one to read in each partition.
        at_once: the length of a list, at most.

    Raises:
        KafkaTimeoutError: Kafka has delivered nothing for ANSWER_TIMEOUT_MS.
    """
    left = {partition for partition in begin if begin[partition] < end[partition]}
    consumer.assign(sorted(left))
    for partition in left:
        consumer.seek(partition, begin[partition])
    last = time.monotonic()
    while left:
        polled = consumer.poll(1000, max_records=at_once)
        messages = [m for p, some in polled.items() for m in some if m.offset < end[p]]
        if messages:
            yield messages
        # Positions are compared, since a transaction's marker has an offset and is not delivered.
        at = {p: consumer.position(p, timeout_ms=ANSWER_TIMEOUT_MS) or 0 for p in left}
        reached = {p for p in left if at[p] >= end[p]}
        consumer.pause(*reached)
        left -= reached
        if polled or reached:
            last = time.monotonic()
        elif time.monotonic() - last > ANSWER_TIMEOUT_MS / 1000:
            names = ", ".join(sorted({partition.topic for partition in left}))
            raise KafkaTimeoutError(f"it delivers nothing more of {names}")


# Elasticsearch


def elasticsearch_client(role: str) -> Elasticsearch:
    """Return a client of Elasticsearch, which has not been asked anything yet.

    Raises:
        SetupError: a variable is missing or wrong, or a password would be sent unencrypted.
    """
    urls = elasticsearch_url()
    security = elasticsearch_security(os.environ, role, urls)
    return Elasticsearch(urls.split(","), request_timeout=60, **security)


def dated_period(name: str, index: str) -> tuple[datetime, datetime] | None:
    """Return the day or month (UTC) of a dated index: its start and its end, which is not in it.

    None means that the name is not that of a dated index beside `index`.

    >>> [f"{edge:%F}" for edge in dated_period("sensors_data-2026.12", "sensors_data") or ()]
    ['2026-12-01', '2027-01-01']
    >>> dated_period("sensors_data-2026.02.30", "sensors_data")
    >>> dated_period("sensors_data_x", "sensors_data")
    """
    match = re.fullmatch(rf"{re.escape(index)}-(\d{{4}})\.(\d\d)(?:\.(\d\d))?", name)
    if not match:
        return None
    try:
        start = datetime(int(match[1]), int(match[2]), int(match[3] or 1), tzinfo=UTC)
        if match[3]:
            return start, start + timedelta(days=1)
        return start, (start + timedelta(days=31)).replace(day=1)
    except (ValueError, OverflowError):  # there is no such day
        return None


def with_dated(client: Elasticsearch, index: str) -> str:
    """Return an index and those of days or months beside it, which the Spark variant writes.

    They are given as a pattern, because the names of a year's indices make too long a URL. Other
    indices that match the pattern are excluded by name.

    Raises:
        ApiError, TransportError: Elasticsearch does not answer, or refuses.
    """
    pattern = f"{index}-*.*"
    matching = client.indices.get(index=pattern, filter_path="*.aliases")
    others = [f"-{name}" for name in matching if not dated_period(name, index)]
    return ",".join([index, pattern, *others])


# What the user is told.


def failure(exc: Exception, role: str) -> str:
    """Return in one line what went wrong; for a server, where it is and as whom we came."""
    if isinstance(exc, KafkaError):
        return f"Kafka at {kafka_servers()}, as {role}: {one_line(exc)}"
    if isinstance(exc, ELASTICSEARCH_ERRORS):
        return f"Elasticsearch at {shown_urls(elasticsearch_url())}, as {role}: {one_line(exc)}"
    return one_line(exc)


@contextmanager
def asking_servers(role: str) -> Iterator[None]:
    """Turn an error of a server into a CommandError, which says where it is and as whom we came.

    Raises:
        CommandError: Kafka or Elasticsearch does not answer, or refuses.
    """
    try:
        yield
    except (KafkaError, *ELASTICSEARCH_ERRORS) as exc:
        raise CommandError(failure(exc, role)) from exc
