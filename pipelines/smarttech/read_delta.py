#!/usr/bin/env python3
"""Print the tables of the lake: sizes, last rows, schema, history. No Spark, no waiting.

    python pipelines/smarttech/read_delta.py                        # all: sizes, last rows
    python pipelines/smarttech/read_delta.py silver
    python pipelines/smarttech/read_delta.py gold --rows 20
    python pipelines/smarttech/read_delta.py silver --version 3     # as it was: time travel

Works while the consumer runs: a reader of Delta sees the last complete version, never half of one.

    table       version   rows  files   bytes
    bronze            1  20000     20  472295

"simple" and "simple_rejects" are the tables of pipeline_streaming_simple.py.

Environment (or .env in this folder, then at the project's root; an option wins over both):
    SMARTTECH_LAKE     folder of the tables (default: lake/ beside this file)
    SMARTTECH_SIMPLE   folder of the two of the simple mode (default: the one of this file)

Exit codes: 0 printed, 1 there is no such table or version, 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import load_env, number  # noqa: E402
from pipelines.smarttech.settings import (  # noqa: E402
    FOLDER,
    add_lake_option,
    command_parser,
    leave,
)
from stack.console import command  # noqa: E402

TABLES = ("bronze", "silver", "gold", "anomalies", "rejects", "duplicates")
SIMPLE = {"simple": "sensor_data_bronze", "simple_rejects": "sensor_data_rejects"}
# What the last rows are the last by, the first of these that a table has.
ORDERS = (
    ["kafka_timestamp", "partition", "offset"],
    ["window_start"],
    ["timestamp"],
    ["ingested_at"],
)
CELL_WIDTH = 40


def table_folders(lake: Path, simple: Path) -> dict[str, Path]:
    """Return the folder of each table; the last two are in the folder of the simple mode."""
    folders = {name: lake / f"sensor_data_{name}" for name in TABLES}
    return folders | {name: simple / folder for name, folder in SIMPLE.items()}


def cell(value: Any) -> str:
    """Return a value as it is shown.

    >>> cell(datetime(2025, 12, 15, 10, tzinfo=UTC)), cell(b"{}"), cell(0.123456789), cell(None)
    ('2025-12-15T10:00:00Z', '{}', '0.123457', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, datetime):
        text = value.astimezone(UTC).isoformat().removesuffix("+00:00")
        text = (text.rstrip("0") if "." in text else text) + "Z"
    elif isinstance(value, bytes):
        text = value.decode(errors="backslashreplace")
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"


def grid(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as aligned columns, numbers to the right.

    >>> print(grid(["name", "rows"], [["bronze", 20000], ["gold", 12]]))
    name     rows
    bronze  20000
    gold       12
    """
    shown = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    is_number = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(header))
    ]
    lines = []
    for cells in shown:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(cells, widths, is_number, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def overview(folders: Mapping[str, Path], number_of_rows: int) -> str:
    """Return a line per table that is there, then the last rows of each.

    Raises:
        ValueError: none is there.
    """
    tables = {
        name: DeltaTable(str(folder))
        for name, folder in folders.items()
        if DeltaTable.is_deltatable(str(folder))
    }
    if not tables:
        raise ValueError("there is no table")
    sizes = []
    for name, table in tables.items():
        files = pa.table(table.get_add_actions(flatten=True)).to_pydict()["size_bytes"]
        sizes.append([name, table.version(), table.count(), len(files), sum(files)])
    parts = [grid(["table", "version", "rows", "files", "bytes"], sizes)]
    for name, table in tables.items() if number_of_rows else ():
        parts.append(f"{name}, last {number_of_rows} rows\n{last_rows(table, number_of_rows)}")
    return "\n\n".join(parts)


def last_rows(table: DeltaTable, number: int) -> str:
    """Return the last rows of a table by arrival, window or time."""
    names = [field.name for field in table.schema().fields]
    order = next(keys for keys in ORDERS if set(keys) <= set(names))
    content = table.to_pyarrow_table().sort_by([(key, "ascending") for key in order])
    tail = content.slice(max(0, content.num_rows - number))
    return grid(names, [[row[name] for name in names] for row in tail.to_pylist()])


def history(table: DeltaTable, number: int) -> str:
    """Return a line per version, the newest first."""
    rows = []
    for commit in table.history(number):
        when = datetime.fromtimestamp(commit["timestamp"] / 1000, UTC)
        metrics = commit.get("operationMetrics", {})
        told = {
            name: metrics[name]
            for name in ("numOutputRows", "numAddedFiles", "numRemovedFiles", "numDeletedFiles")
            if metrics.get(name) not in (None, "0")
        }
        details = " ".join(f"{name}={value}" for name, value in told.items())
        rows.append([commit["version"], when, commit.get("operation", ""), details])
    return grid(["version", "time", "operation", "details"], rows)


def describe(folder: Path, version: int | None, rows: int, commits: int) -> str:
    """Return everything about a table, as it is or was in a version."""
    table = DeltaTable(str(folder))
    versions = history(table, commits)  # now: of an older version the library numbers them wrongly
    if version is not None:
        if version > (newest := table.version()):
            raise ValueError(f"there is no version {version}, the newest is {newest}")
        table.load_as_version(version)
        if gone := [uri for uri in table.file_uris() if not Path(unquote(uri)).exists()]:
            raise ValueError(
                f"of version {version}, {len(gone)} files have been deleted (VACUUM: compact.py "
                "--retain-hours); `--history` lists newer ones"
            )
    metadata = table.metadata()
    schema = [[field.name, field.type.type] for field in table.schema().fields]
    parts = [
        f"{folder}\nversion {table.version()}, {table.count()} rows, "
        f"{len(table.file_uris())} files, partitioned by {', '.join(metadata.partition_columns)}",
        grid(["column", "type"], schema),
        f"last {rows} rows\n{last_rows(table, rows)}",
        f"history\n{versions}",
    ]
    return "\n\n".join(parts)


def load_options(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = command_parser(__doc__)
    add, tables = parser.add_argument, [*TABLES, *SIMPLE]
    add("table", nargs="?", choices=tables, metavar="TABLE", help=", ".join(tables))
    for flag, default, text in (
        ("--version", None, "as it was in that version"),
        ("--rows", 5, "last rows to show (default: 5)"),
        ("--history", 10, "versions to show (default: 10)"),
    ):
        add(flag, type=number(0, 10**9, int), default=default, metavar="N", help=text)
    add_lake_option(parser, environ)
    return parser.parse_args(argv)


@command("read_delta")
def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    options = load_options(argv, os.environ)
    folders = table_folders(options.lake, Path(os.environ.get("SMARTTECH_SIMPLE") or FOLDER))
    try:
        if options.table:
            folder = folders[options.table]
            text = describe(folder, options.version, options.rows, options.history)
        else:
            text = overview(folders, options.rows)
    except (DeltaError, OSError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:300]
        where = folders[options.table] if options.table else f"the tables in {options.lake}"
        sys.stderr.write(f"read_delta: cannot read {where}: {reason}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    leave(main())
