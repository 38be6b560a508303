#!/usr/bin/env python3
"""Make what the pipeline needs on running servers: the topic, the bucket; and Spark's connectors.

    python prepare.py

consumer_spark.py makes them, too, when they are missing. What is there already stays as it is.
Output:

    topic transactions: made, 3 partitions
    bucket transactions: made
    Spark's connectors: 28 jars

Environment (or .env in this folder, or in the project's): KAFKA_BOOTSTRAP_SERVERS,
TRANSACTIONS_TOPIC, and those of store.py.

Exit codes: 0 all is there, 1 a server does not answer or refuses, 2 wrong usage or configuration.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kafka.errors import KafkaError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from pipelines.common import load_env, say  # noqa: E402
from pipelines.transactions.servers import PARTITIONS, Servers, explain  # noqa: E402
from pipelines.transactions.settings import add_kafka_options, described_parser  # noqa: E402
from pipelines.transactions.spark_session import connectors  # noqa: E402
from pipelines.transactions.store import SettingError, Store, StoreError  # noqa: E402
from stack.console import command  # noqa: E402


@command("prepare", {SettingError: 2})
def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing; return the exit code (see the module docstring)."""
    load_env(HERE)
    parser = described_parser(__doc__)
    add_kafka_options(parser, os.environ)
    options = parser.parse_args(argv)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    servers = Servers(options.bootstrap_servers, options.topic, Store.from_env(os.environ))
    try:
        made = f"made, {PARTITIONS} partitions" if servers.make_topic() else "was there"
    except KafkaError as exc:
        raise StoreError(explain(servers.kafka, exc)) from exc
    say(f"topic {servers.topic}: {made}")
    say(f"bucket {servers.store.bucket}: {'made' if servers.make_bucket() else 'was there'}")
    say(f"Spark's connectors: {len(connectors())} jars")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
