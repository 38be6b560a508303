"""How the tools reach the servers: with the addresses of the two scripts, each in its own role.

Environment: as the scripts. In a .env that is for all, VERIFIER_ or REPLAYER_ goes before the names
of users and passwords.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from elasticsearch import Elasticsearch
from kafka.errors import KafkaError

from kafka_to_elasticsearch import (
    Reasons,
    elasticsearch_security,
    hear_last_answer,
    kafka_security,
    refusal,
)


def kafka_options(role: str) -> dict[str, str]:
    """Return what kafka-python must know to be let in.

    Raises:
        ValueError: a variable is missing or wrong.
    """
    hear_last_answer()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return kafka_security(os.environ, role)


def elasticsearch_client(role: str) -> Elasticsearch:
    """Return a client of Elasticsearch.

    Raises:
        ValueError: a variable is missing or wrong.
    """
    url = os.environ.get("ELASTICSEARCH_URL") or "http://localhost:9200"
    return Elasticsearch(url, request_timeout=60, **elasticsearch_security(os.environ, role, url))


class AccessError(Exception):
    """What the user must change for a server to let us in, in one line."""


@contextmanager
def explained(brokers: str, security: dict[str, str]) -> Iterator[None]:
    """Say why Kafka does not let us in, where it can be known.

    Raises:
        AccessError: instead of a KafkaError, when there is something to change.
    """
    with Reasons() as reasons:
        try:
            yield
        except KafkaError as exc:
            if why := refusal(brokers, security, reasons.last or exc):
                raise AccessError(why) from exc
            raise
