#!/usr/bin/env python3
"""Print a table of the lake: schema, number of rows, last rows, history. No Spark, no waiting.

    python pipelines/smarttech/read_delta.py                        # the tables and their sizes
    python pipelines/smarttech/read_delta.py silver
    python pipelines/smarttech/read_delta.py gold --rows 20
    python pipelines/smarttech/read_delta.py silver --version 3     # as it was: time travel

Works while the consumer runs: a reader of Delta sees the last complete version, never half of one.

    table       version   rows  files   bytes
    bronze            1  20000     20  472295

Environment (or .env at the root of the project; a flag wins over it):
    SMARTTECH_LAKE   folder of the tables (default: lake/ beside this file)

Exit codes: 0 printed, 1 there is no such table or version, 2 wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.smarttech.options import leave, load_env  # noqa: E402  # works from any folder

TABLES = ("bronze", "silver", "gold", "anomalies", "quarantine", "duplicates", "simple")
# What the last rows are the last by, the first of these that a table has.
ORDERS = (
    ["kafka_timestamp", "partition", "offset"],
    ["window_start"],
    ["timestamp"],
)
CELL_WIDTH = 40


def table_folder(lake: Path, name: str) -> Path:
    """Return the folder of a table; "simple" is the one of pipeline_streaming_simple.py."""
    return lake / "simple/sensor_data_bronze" if name == "simple" else lake / f"sensor_data_{name}"


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


def overview(lake: Path) -> str:
    """Return a line per table that is there."""
    rows = []
    for name in TABLES:
        folder = table_folder(lake, name)
        if DeltaTable.is_deltatable(str(folder)):
            table = DeltaTable(str(folder))
            files = pa.table(table.get_add_actions(flatten=True)).to_pydict()
            sizes = files["size_bytes"]
            rows.append([name, table.version(), table.count(), len(sizes), sum(sizes)])
    if not rows:
        raise ValueError("there is no table")
    return grid(["table", "version", "rows", "files", "bytes"], rows)


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
    summary, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", nargs="?", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    add("--version", type=int, metavar="N", help="as it was in that version")
    add("--rows", type=int, default=5, metavar="N", help="last rows to show (default: 5)")
    add("--history", type=int, default=10, metavar="N", help="versions to show (default: 10)")
    add("--lake", type=Path, metavar="FOLDER",
        default=environ.get("SMARTTECH_LAKE") or Path(__file__).with_name("lake"),
        help="environment: SMARTTECH_LAKE (default: lake/ beside this file)")  # fmt: skip
    options = parser.parse_args(argv)
    for name in ("version", "rows", "history"):
        if (getattr(options, name) or 0) < 0:
            parser.error(f"--{name} is below 0")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; return the exit code (see the module docstring)."""
    load_env()
    options = load_options(argv, os.environ)
    try:
        if options.table:
            folder = table_folder(options.lake, options.table)
            text = describe(folder, options.version, options.rows, options.history)
        else:
            text = overview(options.lake)
    except (DeltaError, OSError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:300]
        what = options.table or "the tables"
        sys.stderr.write(f"read_delta: cannot read {what} in {options.lake}: {reason}\n")
        return 1
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has had enough, as `head` has: no fault
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor at Python's own end
    return 0


if __name__ == "__main__":
    leave(main())
