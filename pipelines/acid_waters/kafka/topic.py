"""The topic of the lots, and how this pipeline reaches Kafka."""

from contextlib import closing
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import InvalidTopicError, KafkaError, TopicAlreadyExistsError

from pipelines.common import words_of_kafka

PARTITIONS = 3
DAY_MS = 86_400_000
# Kafka refuses messages with other times, whoever sends them: Spark cannot even read some.
TIME_LIMITS_MS = {
    "message.timestamp.before.max.ms": 36_525 * DAY_MS,
    "message.timestamp.after.max.ms": DAY_MS,
}


def kafka_client(bootstrap_servers: str, wait_s: float) -> dict[str, Any]:
    """Return the options of a Kafka client that gives up after a while."""
    return {
        "bootstrap_servers": bootstrap_servers.split(","),
        "api_version_auto_timeout_ms": max(1000, round(wait_s * 1000)),  # with 0 never
        "reconnect_backoff_max_ms": 1000,
    }


def is_it_started(exc: Exception) -> str:
    """Return the question that ends an error's line, unless the server has answered with it."""
    is_answer = not getattr(exc, "retriable", True) or "FATAL" in str(exc)  # Kafka's; PostgreSQL's
    return "" if is_answer else ": is it started?"


def make_topic(bootstrap_servers: str, topic: str, wait_s: float) -> bool:
    """Make the topic; return False when it is there already, and is left as it is.

    Raises:
        KafkaError: Kafka does not answer in time, or refuses it.
    """
    limits = {name: str(limit) for name, limit in TIME_LIMITS_MS.items()}
    with closing(KafkaAdminClient(**kafka_client(bootstrap_servers, wait_s))) as admin:
        try:
            admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs=limits)])
        except TopicAlreadyExistsError:
            return False
        except InvalidTopicError as exc:
            raise KafkaError(words_of_kafka(exc)) from exc
    return True
