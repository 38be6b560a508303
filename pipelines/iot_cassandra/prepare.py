#!/usr/bin/env python3
"""Create what must be there before the scripts run; what is there already stays as it is.

    python3 prepare.py          # the topic, the keyspace and its tables
    python3 prepare.py --jars   # only Spark's connectors with all they depend on, into jars/

    2026-06-01T12:00:00.000Z INFO prepare: topic=iotdata created at localhost:9092
    2026-06-01T12:00:00.000Z INFO prepare: 4 statements of schema.cql applied to keyspace=iot_keyspace at localhost:9042

The statements are those of cql/schema.cql, which `cqlsh -f` takes as well.

Environment (or .env in this folder or the project's; an option wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    IOT_TOPIC                 default iotdata
    CASSANDRA_HOSTS           default localhost:9042
    CASSANDRA_KEYSPACE        default iot_keyspace

Exit codes: 0 done, 1 a server unreachable, a statement refused or a jar not fetched, 2 wrong usage.
"""  # noqa: E501  # a line of its output

import argparse
import logging
import os
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from cassandra import DriverException
from cassandra.cluster import Cluster
from cassandra.protocol import ErrorMessage
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import configure_logging, load_env  # noqa: E402  # after the path
from pipelines.iot_cassandra.kafka_topic import create_topic  # noqa: E402
from pipelines.iot_cassandra.scripts.clients import CASSANDRA_ERRORS  # noqa: E402
from pipelines.iot_cassandra.settings import (  # noqa: E402
    FOLDER,
    ClientError,
    add_partitions,
    add_shared,
    add_wait,
    addresses,
    one_line,
    parser_of,
    patiently,
)

log = logging.getLogger("prepare")

SCHEMA = FOLDER / "cql/schema.cql"
WRITTEN = "iot_keyspace"  # as it is written in the schema


def statements(text: str, keyspace: str) -> list[str]:
    """Return the statements of a CQL file for another keyspace.

    >>> statements("CREATE KEYSPACE iot_keyspace; USE iot_keyspace; -- and so on", "mine")
    ['CREATE KEYSPACE mine', 'USE mine']
    """
    code = re.sub(r"--.*", "", text).replace(WRITTEN, keyspace)
    return [statement.strip() for statement in code.split(";") if statement.strip()]


def apply_schema(hosts: str, keyspace: str) -> int:
    """Run the schema's statements, in order; return how many.

    Raises:
        ClientError: Cassandra refuses one.
        NoHostAvailable: Cassandra does not answer.
    """
    todo = statements(SCHEMA.read_text(encoding="utf-8"), keyspace)
    with Cluster(addresses(hosts)) as cluster:
        session = cluster.connect()
        for statement in todo:
            try:
                session.execute(statement, timeout=60)
            except (DriverException, ErrorMessage) as exc:
                raise ClientError(one_line(exc), code=1) from exc
    return len(todo)


def prepare(options: argparse.Namespace) -> None:
    """Create the topic, the keyspace and the tables, waiting for their servers if need be.

    Raises:
        ClientError: a server does not answer, or refuses.
    """
    servers, topic = options.bootstrap_servers, options.topic
    stop = threading.Event()  # never set: Ctrl-C ends the wait itself

    def create() -> bool:
        with closing(KafkaAdminClient(bootstrap_servers=servers.split(","))) as admin:
            return create_topic(admin, topic, options.partitions)

    kafka = f"Kafka at {servers}"
    is_new = patiently(log, kafka, create, (KafkaError,), options.wait, stop)
    log.info("topic=%s %s at %s", topic, "created" if is_new else "is there", servers)
    hosts, keyspace = options.hosts, options.keyspace
    count = patiently(
        log,
        f"Cassandra at {hosts}",
        lambda: apply_schema(hosts, keyspace),
        CASSANDRA_ERRORS,
        options.wait,
        stop,
    )
    applied = "%d statements of %s applied to keyspace=%s at %s"
    log.info(applied, count, SCHEMA.name, keyspace, hosts)


def prepare_jars() -> int:
    """Put Spark's connectors into jars/; return the exit code."""
    from pipelines.iot_cassandra import spark_session  # only here: it needs PySpark

    try:
        jars = spark_session.connectors()
    except spark_session.SparkError as exc:
        log.error("%s", exc)
        return 1
    log.info("%d jars in %s", len(jars), jars[0].parent)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare everything, or the jars; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    wanted = ("--bootstrap-servers", "--topic", "--hosts", "--keyspace")
    parser = add_shared(parser_of(__doc__), os.environ, *wanted)
    parser.add_argument("--jars", action="store_true", help="only Spark's connectors, into jars/")
    add_partitions(parser)
    add_wait(parser)
    options = parser.parse_args(argv)
    configure_logging("prepare")
    try:
        if options.jars:
            return prepare_jars()
        prepare(options)
    except ClientError as exc:
        log.error("%s", exc)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted: run it again for what is missing")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
