#!/usr/bin/env python3
"""Compact the tables (OPTIMIZE), delete what no version needs (VACUUM), and say what it brought.

    python pipelines/smarttech/compact.py                      # all tables
    python pipelines/smarttech/compact.py silver gold
    python pipelines/smarttech/compact.py --retain-hours 0     # also what is needed for time travel

Each batch adds a file to each folder it touches: soon there are thousands of small ones, and a
reader opens them all. OPTIMIZE writes them together; the old files stay, for readers of older
versions, until VACUUM deletes those that have not been needed for 168 hours (--retain-hours).

The read time is that of an average over all rows by building and type, the median of 5 readings,
before and after, in this run; a line per table:

    table  files before -> after  read s before -> after  bytes on disk before -> after

OPTIMIZE and VACUUM may run beside the consumer. Less than 168 hours may not: then the consumer must
be stopped and have read everything, for VACUUM deletes what a stream behind has yet to read.

Environment (or .env in this folder, then at the project's root; an option wins over both):
    SMARTTECH_LAKE         folder of the tables (default: lake/ beside this file)
    SMARTTECH_CHECKPOINT   folder of the checkpoints (default: checkpoints/ in the lake)

Exit codes: 0 done, 1 it cannot be done, 2 wrong usage.
"""

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from delta import DeltaTable
from delta.exceptions import (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
)
from deltalake import DeltaTable as RustTable
from deltalake.exceptions import DeltaError
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import configure_logging, load_env, number  # noqa: E402
from pipelines.smarttech.lake import (  # noqa: E402
    PARTITIONED_BY,
    SCHEMAS,
    LakeError,
    check_checkpoints,
    lock,
    open_batches,
    table_path,
)
from pipelines.smarttech.settings import (  # noqa: E402
    FOLDER,
    add_checkpoint_option,
    add_lake_option,
    command_parser,
)
from pipelines.smarttech.spark_session import one_line, spark_session  # noqa: E402
from stack.console import command, discard_output  # noqa: E402

log = logging.getLogger("smarttech")

SAFE_HOURS = 168.0
READINGS = 5
TRIES = 10
CONFLICTS = (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
)
# What is averaged, to read a column of every row.
MEASURE = {"bronze": "offset", "rejects": "offset", "duplicates": "offset", "gold": "mean"}


def read_s(spark: SparkSession, path: Path, column: str) -> float:
    """Return how long it takes to average a column over all rows, seconds."""
    spark.catalog.clearCache()
    began = time.monotonic()
    rows = spark.read.format("delta").load(str(path))
    rows.groupBy(*PARTITIONED_BY).agg(F.mean(column), F.count("*")).collect()
    return time.monotonic() - began


def measure(spark: SparkSession, table: str, path: Path) -> tuple[int, float, int]:
    """Return a table's number of files, its read time in seconds, its bytes on disk."""
    column = MEASURE.get(table, "value")
    times = [read_s(spark, path, column) for _ in range(READINGS + 1)][1:]  # the first warms up
    on_disk = sum(file.stat().st_size for file in path.rglob("*.parquet"))
    files = len(RustTable(str(path)).file_uris())
    return files, statistics.median(times), on_disk


def optimize(stored: DeltaTable, table: str) -> None:
    """Write a table's small files together, again if a consumer has changed them meanwhile."""
    for tries_left in reversed(range(TRIES)):
        try:
            stored.optimize().executeCompaction()
            return
        except CONFLICTS:
            if not tries_left:
                raise
            log.info("%s was changed meanwhile: once more", table)


def compact(spark: SparkSession, table: str, path: Path, retain_hours: float) -> str:
    """Compact and clean one table; return the line that says what it brought."""
    before = measure(spark, table, path)
    stored = DeltaTable.forPath(spark, str(path))
    optimize(stored, table)
    stored.vacuum(retain_hours)
    after = measure(spark, table, path)
    return (
        f"{table:<12}{before[0]:>6} -> {after[0]:>5}{before[1]:>10.2f} -> {after[1]:>5.2f}"
        f"{before[2]:>13} -> {after[2]:>9}"
    )


def say(line: str) -> None:
    """Print a line at once; when its reader has left, as `head` does, it and the next are lost.

    Raises:
        LakeError: it cannot be written.
    """
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError as exc:
        discard_output()
        if not isinstance(exc, BrokenPipeError):
            raise LakeError(f"standard output: {exc.strerror}") from exc


def check_read(lake: Path, checkpoint: Path) -> None:
    """Refuse to go on while a stream has something left to read.

    Raises:
        LakeError: it has, or these are not the checkpoints of this lake.
    """
    # In others no batch would be open, whatever this lake's streams have left to read.
    check_checkpoints(lake, checkpoint)
    # A batch that is not noted as done is read again, though its rows may be in the tables already.
    is_open = bool(open_batches(checkpoint))
    rows = {name: RustTable(str(table_path(lake, name))).count() for name in SCHEMAS}
    sorted_out = rows["silver"] + rows["rejects"] + rows["duplicates"]
    counts = RustTable(str(table_path(lake, "gold"))).to_pyarrow_table(columns=["count"])
    summarised = sum(counts["count"].to_pylist())
    if is_open or (rows["bronze"], rows["silver"]) != (sorted_out, summarised):
        raise LakeError(
            "not all of bronze is in silver and gold yet, and VACUUM could delete what is missing: "
            "first run spark_kafka_consumer.py --once"
        )


def run(options: argparse.Namespace) -> None:
    """Compact the tables on a session of their own.

    Raises:
        LakeError: it cannot be done.
    """
    lake = options.lake
    there = [name for name in SCHEMAS if RustTable.is_deltatable(str(table_path(lake, name)))]
    if missing := [name for name in options.tables if name not in there] or not there:
        raise LakeError(f"no table {missing if there else 'at all'} in {lake}")
    is_short = options.retain_hours < SAFE_HOURS
    settings = {"spark.databricks.delta.retentionDurationCheck.enabled": str(not is_short).lower()}
    checkpoint = options.checkpoint or lake / "checkpoints"
    folders = [lake, checkpoint] if is_short else []
    with lock(*folders) as locks, spark_session(lake, settings, locks) as (spark, _):
        if is_short:
            check_read(lake, checkpoint)
        say(f"{'table':<12}{'files':>9}{'read s':>18}{'bytes on disk':>26}")
        for table in options.tables or there:
            say(compact(spark, table, table_path(lake, table), options.retain_hours))


def load_options(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help=f"{', '.join(SCHEMAS)} (default: all)")
    add("--retain-hours", type=number(0, 876_000), default=SAFE_HOURS, metavar="HOURS",
        help="VACUUM spares what a version of that long ago needs (default: 168)")  # fmt: skip
    add_lake_option(parser, environ)
    add_checkpoint_option(parser, environ)
    options = parser.parse_args(argv)
    if unknown := set(options.tables) - set(SCHEMAS):
        parser.error(f"no table {', '.join(sorted(unknown))}: there is {', '.join(SCHEMAS)}")
    return options


@command("compact")
def main(argv: Sequence[str] | None = None) -> int:
    """Compact the tables; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    options = load_options(argv, os.environ)
    configure_logging("smarttech")
    try:
        run(options)
    except (LakeError, PySparkException, Py4JError, DeltaError, OSError) as exc:
        log.error("%s", one_line(exc))
        return 1
    except KeyboardInterrupt:
        log.error("interrupted: what was begun is either done or without effect")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
