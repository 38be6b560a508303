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
from pathlib import Path

from dotenv import load_dotenv
from kafka import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError
from pyarrow import fs

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.transactions.broker import addresses  # noqa: E402
from pipelines.transactions.spark_session import SparkError, connectors  # noqa: E402
from pipelines.transactions.store import Store, StoreError  # noqa: E402

PARTITIONS = 3


def make_topic(servers: str, topic: str) -> str:
    """Make the topic unless it is there; return what was done.

    Raises:
        KafkaError: no broker answers, or it refuses.
    """
    with KafkaAdminClient(
        bootstrap_servers=servers.split(","), bootstrap_timeout_ms=10_000
    ) as admin:
        try:
            admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}})
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
    load_dotenv(PROJECT / ".env")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    topic = os.environ.get("TRANSACTIONS_TOPIC") or "transactions"
    try:
        servers = addresses(os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092")
        store = Store.from_env(os.environ)
    except argparse.ArgumentTypeError as exc:
        sys.stderr.write(f"prepare: KAFKA_BOOTSTRAP_SERVERS: {exc}\n")
        return 2
    except StoreError as exc:
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
