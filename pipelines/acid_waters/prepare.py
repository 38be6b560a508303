#!/usr/bin/env python3
"""Make what must be there before: the topic, the tables in PostgreSQL, the reference in HDFS.

    python prepare.py
    topic      made      water-quality
    tables     ready     schema water of the database water
    methods    rows=217  hdfs://localhost:8020/acid-waters/reference/methods
    sites      rows=12   hdfs://localhost:8020/acid-waters/reference/sites

Methods and sites are read back from Spark with explicit schemas, and compared with the files row
by row. It can be run again at any time: what is there stays, methods and sites are replaced. The
consumer reads these when it starts: after a change, start it again.

Environment (or .env in the pipeline's folder, then in the project's; an option wins over all):
    LTM_DATA                  folder with the three files (default: the sample of this pipeline)
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    WATER_TOPIC               default water-quality
    HDFS_URL                  default hdfs://localhost:8020/acid-waters
    POSTGRESQL_URL            default postgresql://water@localhost:5433/water

Exit codes: 0 ready, 1 a server unreachable, or HDFS does not hold what was written; 2 wrong usage
or unreadable file.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psycopg
from kafka.errors import KafkaError
from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark.errors import PySparkException

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.hdfs.reference import load, read_files  # noqa: E402
from pipelines.acid_waters.kafka.topic import is_it_started, make_topic  # noqa: E402
from pipelines.acid_waters.postgresql.database import connect  # noqa: E402
from pipelines.acid_waters.settings import HERE, add_wait, command_line  # noqa: E402
from pipelines.acid_waters.spark.spark_session import (  # noqa: E402
    SparkError,
    new_session,
    one_line,
)
from pipelines.acid_waters.tables import TableError  # noqa: E402
from pipelines.common import configure_logging, load_env, say  # noqa: E402
from stack.console import CommandError, command  # noqa: E402


@command("prepare", {TableError: 2, SparkError: 1})
def main(argv: Sequence[str] | None = None) -> int:
    """Prepare everything; return the exit code (see the module docstring)."""
    load_env(HERE)
    parser = command_line(
        __doc__, os.environ,
        "--data", "--bootstrap-servers", "--topic", "--hdfs-url", "--postgresql-url",
    )  # fmt: skip
    add_wait(parser)
    options = parser.parse_args(argv)
    configure_logging("prepare")  # the libraries' own lines are not for the user
    files = read_files(options.data)  # an unreadable file is said before anything is made
    server = f"Kafka at {options.bootstrap_servers}"
    try:
        made = make_topic(options.bootstrap_servers, options.topic, options.wait)
        say(f"topic      {'made' if made else 'is there':<9} {options.topic}")
        server = "PostgreSQL"
        with connect(options.postgresql_url) as conn:
            say(f"tables     ready     schema water of the database {conn.info.dbname}")
        server = f"HDFS at {options.hdfs_url}"
        spark = new_session("prepare")
        for name, rows in files.items():
            folder = f"{options.hdfs_url.rstrip('/')}/reference/{name}"
            if wrong := load(spark, options.hdfs_url.rstrip("/"), name, rows):
                row = next(iter(wrong))
                raise CommandError(f"{folder}: not the same in the file and in HDFS: {row}")
            say(f"{name:<10} rows={len(rows):<4} {folder}")
    except (Py4JNetworkError, ConnectionError) as exc:
        raise CommandError(f"Spark's Java process has ended, start again: {one_line(exc)}") from exc
    except (KafkaError, psycopg.Error, Py4JError, PySparkException) as exc:
        raise CommandError(f"{server}: {one_line(exc)}{is_it_started(exc)}") from exc
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
