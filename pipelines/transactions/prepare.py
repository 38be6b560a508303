#!/usr/bin/env python3
"""Make what the pipeline needs on running servers: the topic, the bucket; and Spark's connectors.

    python pipelines/transactions/prepare.py

What is already there stays as it is. Output:

    topic transactions: made, 3 partitions
    bucket transactions: made
    Spark's connectors: 28 jars

Environment (or .env): KAFKA_BOOTSTRAP_SERVERS, TRANSACTIONS_TOPIC, and those of store.py.

Exit codes: 0 all is there, 1 a server does not answer or refuses, 2 wrong usage or configuration.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError
from pyarrow import fs

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.transactions.broker import addresses, topic_name  # noqa: E402
from pipelines.transactions.env_file import load_env  # noqa: E402
from pipelines.transactions.spark_session import SparkError, connectors  # noqa: E402
from pipelines.transactions.store import Store, StoreError  # noqa: E402

PARTITIONS = 3


def setting(name: str, default: str, kind: Callable[[str], str]) -> str:
    """Return a setting of the environment.

    Args:
        name: its variable.
        default: what it is without that.
        kind: an argparse type.

    Raises:
        ValueError: it is wrong; the message names it.
    """
    try:
        return kind(os.environ.get(name) or default)
    except argparse.ArgumentTypeError as exc:
        raise ValueError(f"{name}: {exc}") from exc


def make_topic(servers: str, topic: str) -> str:
    """Make the topic unless it is there; return what was done.

    Raises:
        KafkaError: no broker answers, or it refuses.
    """
    admin = KafkaAdminClient(
        bootstrap_servers=servers.split(","), api_version_auto_timeout_ms=10_000
    )
    with closing(admin):
        try:
            admin.create_topics([NewTopic(topic, PARTITIONS, replication_factor=1)])
        except TopicAlreadyExistsError:
            return "was there"
    return f"made, {PARTITIONS} partitions"


def make_bucket(store: Store) -> str:
    """Make the bucket unless it is there; return what was done.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    client = store.filesystem()
    try:
        if client.get_file_info(store.bucket).type == fs.FileType.Directory:
            return "was there"
        client.create_dir(store.bucket)
    except OSError as exc:
        raise StoreError(store.explain(exc)) from exc
    return "made"


def main() -> int:
    """Make what is missing; return the exit code (see the module docstring)."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    load_env()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        topic = setting("TRANSACTIONS_TOPIC", "transactions", topic_name)
        servers = setting("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", addresses)
        store = Store.from_env(os.environ)
    except (StoreError, ValueError) as exc:
        sys.stderr.write(f"prepare: {exc}\n")
        return 2
    try:
        sys.stdout.write(f"topic {topic}: {make_topic(servers, topic)}\n")
        sys.stdout.write(f"bucket {store.bucket}: {make_bucket(store)}\n")
        sys.stdout.write(f"Spark's connectors: {len(connectors())} jars\n")
    except KafkaError as exc:
        sys.stderr.write(f"prepare: Kafka does not answer at {servers} ({exc}): is it started?\n")
        return 1
    except (StoreError, SparkError) as exc:
        sys.stderr.write(f"prepare: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
