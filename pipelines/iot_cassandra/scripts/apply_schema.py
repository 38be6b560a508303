#!/usr/bin/env python3
"""Create the keyspace and its tables where they are missing; what is there stays as it is.

    python pipelines/iot_cassandra/scripts/apply_schema.py

    INFO apply_schema: 4 statements of schema.cql applied to keyspace=iot_keyspace at localhost:9042

The statements are those of cql/schema.cql, which `cqlsh -f` takes as well.

Environment (or .env in the project's folder; a flag wins over both):
    CASSANDRA_HOSTS      default localhost:9042
    CASSANDRA_KEYSPACE   default iot_keyspace

Exit codes: 0 applied, 1 Cassandra unreachable or a statement refused, 2 wrong usage.
"""

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cassandra import DriverException
from cassandra.cluster import Cluster, NoHostAvailable
from cassandra.protocol import ErrorMessage

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.iot_cassandra.scripts.options import (  # noqa: E402  # after the path
    add_shared,
    addresses,
    at_least,
    load_env,
    parser_of,
)

log = logging.getLogger("apply_schema")

SCHEMA = Path(__file__).parents[1] / "cql/schema.cql"
WRITTEN = "iot_keyspace"  # as it is written in the schema


def statements(text: str, keyspace: str) -> list[str]:
    """Return the statements of a CQL file for another keyspace.

    >>> statements("CREATE KEYSPACE iot_keyspace; USE iot_keyspace; -- and so on", "mine")
    ['CREATE KEYSPACE mine', 'USE mine']
    """
    code = re.sub(r"--.*", "", text).replace(WRITTEN, keyspace)
    return [statement.strip() for statement in code.split(";") if statement.strip()]


def apply(hosts: str, keyspace: str, wait_s: float) -> int:
    """Run the statements, in order, waiting for Cassandra if need be; return how many.

    Raises:
        NoHostAvailable: Cassandra did not answer in time.
        DriverException, ErrorMessage: it refuses a statement.
        OSError: the schema cannot be read.
    """
    todo = statements(SCHEMA.read_text(encoding="utf-8"), keyspace)
    deadline = time.monotonic() + wait_s
    while True:
        with Cluster(addresses(hosts)) as cluster:
            try:
                session = cluster.connect()
            except NoHostAvailable:
                if time.monotonic() > deadline:
                    raise
                log.warning("waiting for Cassandra at %s", hosts)
                time.sleep(2)
                continue
            for statement in todo:
                session.execute(statement, timeout=60)
            return len(todo)


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    parser = add_shared(parser_of(__doc__), environ, "--hosts", "--keyspace")
    parser.add_argument("--wait", type=at_least(0, float), default=60.0, metavar="SECONDS",
        help="how long to wait for Cassandra (default: 60)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Apply the schema; return the exit code (see the module docstring)."""
    load_env(PROJECT / ".env")
    config = load_config(argv, os.environ)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("cassandra").setLevel(logging.CRITICAL)
    try:
        count = apply(config.hosts, config.keyspace, config.wait)
    except NoHostAvailable:
        log.error("Cassandra at %s does not answer: is it started? (see README)", config.hosts)
        return 1
    except (DriverException, ErrorMessage, OSError) as exc:
        log.error("%s", " ".join(str(exc).split()))
        return 1
    except KeyboardInterrupt:
        log.error("interrupted: run it again for what is missing")
        return 1
    log.info(
        "%d statements of %s applied to keyspace=%s at %s",
        count, SCHEMA.name, config.keyspace, config.hosts,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
