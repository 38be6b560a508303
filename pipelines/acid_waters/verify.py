#!/usr/bin/env python3
"""Compare what was sent with what is stored, for the current version or another one.

    python verify.py
    python verify.py --version 3
    python verify.py --data FOLDER     # and the data set with LTM_Data…
    python verify.py --ledger FILE     # and the topic with what a producer has noted

Every message of the topic is read again and must be settled exactly once, integrated or
rejected, and be in the archive in HDFS, byte for byte. What the topic has deleted must have been
read before, else it is "deleted unread", also when the consumer was told to go on without it. The
members of every version are derived anew from the versions table, event by event. The rows that the
members' messages hold must be those of the Parquet files in HDFS, each one, and the metrics that
DuckDB computes from them (verification/) those of PostgreSQL, row for row, to the last digit. Only
tables.py, which names the columns and reads the files, and settings.py are shared with the
consumer.

Environment (or .env in the pipeline's folder, then in the project's): as the consumer, and
    HDFS_WEB_URL   default http://localhost:9870

Exit codes: 0 they agree, 1 they do not, or there is nothing to compare, or a server is unreachable;
2 wrong usage, for instance a version that does not exist.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

import duckdb
import psycopg
from kafka.errors import KafkaError
from psycopg.rows import namedtuple_row

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.settings import HERE, command_line  # noqa: E402
from pipelines.acid_waters.tables import TableError  # noqa: E402
from pipelines.acid_waters.verification.data import compare_data  # noqa: E402
from pipelines.acid_waters.verification.lots import (  # noqa: E402
    compare_ledgers,
    compare_lots,
    compare_versions,
    read_topic,
)
from pipelines.acid_waters.verification.verdict import (  # noqa: E402
    NoVersionError,
    Verdict,
    VerifyError,
)
from pipelines.acid_waters.verification.webhdfs import WebHdfs  # noqa: E402
from pipelines.common import load_env  # noqa: E402
from stack.console import command  # noqa: E402

# What keeps from comparing: a server that does not answer, or what cannot be read.
UNREADABLE = (KafkaError, psycopg.Error, duckdb.Error, OSError, HTTPException, ValueError, KeyError)


def verify(options: argparse.Namespace) -> Verdict:
    """Compare topic, versions table, HDFS and metrics.

    Args:
        options: bootstrap_servers, topic, hdfs_url, hdfs_web_url, postgresql_url, version (None for
            the current one), data (None or a folder), ledger (files).

    Raises:
        KafkaError, psycopg.Error, OSError, HTTPException: a server does not answer.
        VerifyError, duckdb.Error, ValueError: what should be compared cannot be read.
        NoVersionError: there is no such version.
        TableError: the file of --data cannot be read.
    """
    verdict = Verdict()
    messages, first = read_topic(options.bootstrap_servers, options.topic)
    with psycopg.connect(
        options.postgresql_url, row_factory=namedtuple_row, connect_timeout=10,
        options="-c search_path=water -c default_transaction_isolation=repeatable\\ read",
    ) as conn:  # fmt: skip
        (current,) = conn.execute("SELECT current_version()").fetchone() or (0,)
        if options.version is not None and not 1 <= options.version <= current:
            raise NoVersionError(f"there is no version {options.version}: 1 to {current}")
        verdict.version = options.version or current
        compare_lots(verdict, conn, options.topic, messages, first)
        compare_versions(verdict, conn)
        compare_ledgers(verdict, conn, options.topic, messages, options.ledger)
        hdfs = WebHdfs(options.hdfs_web_url, options.hdfs_url)
        compare_data(verdict, conn, hdfs, messages, options.data)
    return verdict


def print_verdict(verdict: Verdict) -> None:
    """Print numbers and, of what is wrong, the number and the first three."""
    for name, found in vars(verdict).items():
        shown = len(found) if isinstance(found, list) else found
        sys.stdout.write(f"{name.replace('_', ' '):<24} {shown:>8}\n")
        if isinstance(found, list):
            for one in found[:3]:
                sys.stdout.write(f"    {one}\n")


def parse_arguments(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the command line's choices; a bad one exits with code 2."""
    parser = command_line(
        __doc__, environ,
        "--bootstrap-servers", "--topic", "--hdfs-url", "--hdfs-web-url", "--postgresql-url",
    )  # fmt: skip
    parser.add_argument("--version", type=int, metavar="N", help="(default: the current one)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="compare with LTM_Data… there")
    parser.add_argument(
        "--ledger", type=Path, action="append", default=[], metavar="FILE",
        help="what kafka_producer.py --ledger has noted; as often as you like",
    )  # fmt: skip
    return parser.parse_args(argv)


@command("verify", {TableError: 2, NoVersionError: 2, VerifyError: 1})
def main(argv: Sequence[str] | None = None) -> int:
    """Verify and print; return the exit code (see the module docstring)."""
    load_env(HERE)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    options = parse_arguments(argv, os.environ)
    try:
        verdict = verify(options)
    except UNREADABLE as exc:
        lines = str(exc).strip().splitlines() or [type(exc).__name__]
        raise VerifyError(lines[0]) from exc
    print_verdict(verdict)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
