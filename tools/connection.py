"""How the tools reach the servers: by the addresses of the two scripts, each in a role of its own.

Environment: as the scripts; the names of users and passwords have the role before them.
"""

import argparse
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from elasticsearch import ApiError, Elasticsearch, TransportError
from elasticsearch.helpers import ScanError
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, NoBrokersAvailable

import kafka_to_elasticsearch
from kafka_to_elasticsearch import (
    SetupError,
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

ENV_FILE = Path(__file__).resolve().parent.parent / ".env"
CONNECT_TIMEOUT_MS = 10_000
ANSWER_TIMEOUT_MS = 30_000
ELASTICSEARCH_ERRORS = (ApiError, TransportError, ScanError)

Offsets = dict[TopicPartition, int]


def load_env() -> None:
    """Read .env; the real environment wins. Exit with code 2, in one line, where it is wrong."""
    try:
        kafka_to_elasticsearch.load_env(ENV_FILE)
    except SetupError as exc:
        sys.stderr.write(f"{exc}\n")
        raise SystemExit(2) from None


def variable(name: str, kind: Callable[[str], str], default: str) -> str:
    """Return an environment variable's value, if the scripts would take it too.

    Raises:
        SetupError: they would not.
    """
    try:
        return kind(os.environ.get(name) or default)
    except argparse.ArgumentTypeError as exc:
        raise SetupError(f"{name}: {exc}") from None


def kafka_servers() -> str:
    """Return the brokers' addresses. Raises SetupError: they are none."""
    return variable("KAFKA_BOOTSTRAP_SERVERS", server_list, "localhost:9092")


def kafka_topic() -> str:
    """Return the topic of the readings. Raises SetupError: Kafka allows no such name."""
    return variable("KAFKA_TOPIC", topic_name, "smart-city-sensors")


def elasticsearch_index() -> str:
    """Return the index of the readings. Raises SetupError: it is no name of one index."""
    return variable("ELASTICSEARCH_INDEX", index_name, "sensors_data")


def elasticsearch_url() -> str:
    """Return Elasticsearch's addresses, with commas between. Raises SetupError: they are none."""
    return variable("ELASTICSEARCH_URL", elasticsearch_urls, "http://localhost:9200")


def with_dated(index: str) -> str:
    """Return an index and those of days or months beside it, which the Spark variant writes."""
    return f"{index},{index}-*.*"


# Kafka


def keep_kafka_errors() -> None:
    """Let kafka-python print nothing: what concerns the user, we say."""
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
    """Return the topics that Kafka shows us. Ask this first: other calls wait for ever if refused.

    Raises:
        KafkaError: Kafka does not answer, or does not let us in.
    """
    with closing(kafka_admin(servers, security)) as admin:
        return set(admin.list_topics())


def kafka_admin(servers: str, security: Mapping[str, Any]) -> KafkaAdminClient:
    """Return an administrator's client, when Kafka has let it in.

    Raises:
        KafkaError: Kafka does not answer, or does not let us in.
    """
    try:
        return KafkaAdminClient(
            bootstrap_servers=servers.split(","),
            api_version_auto_timeout_ms=CONNECT_TIMEOUT_MS,
            **security,
        )
    except (OSError, ValueError) as exc:  # of TLS, of the address
        raise NoBrokersAvailable(one_line(exc)) from exc
    except KafkaError as exc:  # it says that nobody answers; the log says why
        raise NoBrokersAvailable(last_kafka_error.text or one_line(exc)) from exc


def kafka_consumer(servers: str, security: Mapping[str, Any], **options: Any) -> KafkaConsumer:
    """Return a consumer that reads what is committed, and commits nothing by itself."""
    common = {
        "bootstrap_servers": servers.split(","),
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",  # when retention overtakes us, go on behind it
        "isolation_level": "read_committed",
        "api_version_auto_timeout_ms": CONNECT_TIMEOUT_MS,
        "request_timeout_ms": ANSWER_TIMEOUT_MS,
        "receive_message_max_bytes": 2**31 - 1,  # the default is less than what is fetched at once
    }
    return KafkaConsumer(**{**common, **security, **options})


def partitions_of(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """Return the partitions of a topic that exists, sorted.

    Raises:
        KafkaError: Kafka tells none, as when it goes away now.
    """
    if not (numbers := consumer.partitions_for_topic(topic)):
        raise KafkaError(f"it tells no partition of {topic}")
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def read_between(
    consumer: KafkaConsumer, begin: Offsets, end: Offsets, at_once: int
) -> Iterator[list[Any]]:
    """Yield the messages from begin to before end, up to at_once, each partition in order.

    Raises:
        KafkaTimeoutError: Kafka has ceased to deliver.
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
        # By position: a transaction's marker has an offset, but is no message to count.
        at = {p: consumer.position(p, timeout_ms=ANSWER_TIMEOUT_MS) or 0 for p in left}
        reached = {p for p in left if at[p] >= end[p]}
        consumer.pause(*reached)
        left -= reached
        if polled or reached:
            last = time.monotonic()
        elif time.monotonic() - last > ANSWER_TIMEOUT_MS / 1000:
            names = ", ".join(sorted({partition.topic for partition in left}))
            raise KafkaTimeoutError(f"it delivers nothing any more of {names}")


# Elasticsearch


def elasticsearch_client(role: str) -> Elasticsearch:
    """Return a client of Elasticsearch, which has not been asked anything yet.

    Raises:
        SetupError: a variable is missing or wrong, or a password would go there in the clear.
    """
    urls = elasticsearch_url()
    security = elasticsearch_security(os.environ, role, urls)
    return Elasticsearch(urls.split(","), request_timeout=60, **security)


# What a user sees of it


def failure(exc: BaseException, role: str) -> str:
    """Return in one line what went wrong; for a server, where it is and as whom we came."""
    if isinstance(exc, KafkaError):
        return f"Kafka at {kafka_servers()}, as {role}: {one_line(exc)}"
    if isinstance(exc, ELASTICSEARCH_ERRORS):
        return f"Elasticsearch at {shown_urls(elasticsearch_url())}, as {role}: {one_line(exc)}"
    return one_line(exc)


def run(main: Callable[[], int]) -> int:
    """Return the exit code of a tool's main, without a trace when its output cannot be written."""
    if sys.stdout is None:  # closed by the shell's >&-
        sys.stdout = io.StringIO()
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # its reader has left, as `head` does
        why = ""
    except OSError as exc:
        why = f"{exc.filename or 'standard output'}: {exc.strerror or exc}\n"
    except KeyboardInterrupt:
        return 130
    sys.stderr.write(why)
    # What is still in the buffer is not tried again at the end of the process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
