#!/usr/bin/env python3
"""The versions of the data set: list them, show one, isolate a lot, restore a version.

    python postgresql/versions.py list
    python postgresql/versions.py show 3
    python postgresql/versions.py isolate LTM_Data_sample-000002 --reason "wrong bottle"
    python postgresql/versions.py restore 3

A version is a set of lots. Integrating a lot makes a version, isolating one too, and to restore one
is to make a new version of the same lots: history is only ever added to. Each command is one
transaction, and so is what the consumer publishes: a version is there whole, or not at all.

To process a lot again, from its archive: spark/spark_consumer.py --reprocess last (or its id).

Environment (or .env in the pipeline's folder, then in the project's; an option wins over all):
    POSTGRESQL_URL   default postgresql://water@localhost:5433/water

Exit codes: 0 done, 1 PostgreSQL unreachable or no such version or lot, 2 wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.postgresql.database import Connection, connect  # noqa: E402
from pipelines.acid_waters.postgresql.history import (  # noqa: E402
    VersionError,
    changes,
    isolate,
    list_events,
    restore,
)
from pipelines.acid_waters.settings import HERE, command_line  # noqa: E402
from pipelines.acid_waters.tables import ID  # noqa: E402
from pipelines.common import load_env, text  # noqa: E402
from stack.console import command  # noqa: E402


def as_table(rows: Sequence[Any]) -> str:
    """Return named tuples as a table with aligned columns.

    >>> from collections import namedtuple
    >>> print(as_table([namedtuple("Row", "version reason")(12, None)]))
    version  reason
    12       -
    """
    if not rows:
        return "(nothing)"
    lines = [rows[0]._fields, *rows]
    texts = [["-" if value is None else str(value) for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    padded = (
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        for line in texts
    )
    return "\n".join(line.rstrip() for line in padded)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's choices; a bad one exits with code 2."""
    parser = command_line(__doc__, os.environ, "--postgresql-url")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="what has happened, oldest first")
    listing.add_argument("--all", action="store_true", help="also when each lot was received")
    show = commands.add_parser("show", help="what a version added or took out")
    show.add_argument("version", type=int)
    isolation = commands.add_parser("isolate", help="make a version without a lot")
    isolation.add_argument("batch_id", type=text(ID, "a batch id"))
    isolation.add_argument("--reason", type=text(r".*\S.*", "a reason, in a line"), required=True)
    restoration = commands.add_parser("restore", help="make a version equal to an earlier one")
    restoration.add_argument("version", type=int)
    return parser.parse_args(argv)


def run(conn: Connection, options: argparse.Namespace) -> Sequence[Any]:
    """Carry out one command; return the rows to print."""
    if options.command == "list":
        return list_events(conn, options.all)
    if options.command == "show":
        return changes(conn, options.version)
    if options.command == "isolate":
        event = isolate(conn, options.batch_id, options.reason)
    else:
        event = restore(conn, options.version)
    return [row for row in list_events(conn, True) if row.version == event.version]


@command("versions", {VersionError: 1})
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code (see the module docstring)."""
    load_env(HERE)
    options = parse_arguments(argv)
    try:
        with connect(options.postgresql_url) as conn:
            sys.stdout.write(as_table(run(conn, options)) + "\n")
    except psycopg.Error as exc:
        raise VersionError(f"PostgreSQL: {str(exc).strip().splitlines()[0]}") from exc
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
