#!/usr/bin/env python3
"""Load the methods and the sites into HDFS, and read them back from Spark with explicit schemas.

    python pipelines/acid_waters/hdfs/load_reference.py
    methods    rows=217    hdfs://localhost:8020/acid-waters/reference/methods
    sites      rows=12     hdfs://localhost:8020/acid-waters/reference/sites

The files Methods… and Site_Information… of the data folder (Excel, else CSV) become CSV files in
HDFS, in the one form that tables.py gives. They are read back with METHODS_SCHEMA and SITES_SCHEMA,
and the rows compared with the files, one by one.

They are written beside those that are there and take their place once they are whole: killed at any
moment, there is the old table, the new one, or none, which the consumer says.

The consumer reads them when it starts: after a change, load them again and start it again.

Environment (or .env at the project's root; a flag wins over both):
    LTM_DATA   folder with the three files (default: the sample of this pipeline)
    HDFS_URL   default hdfs://localhost:8020/acid-waters

Exit codes: 0 loaded and read back the same, 1 HDFS unreachable or not the same, 2 wrong usage or
unreadable file.
"""

import argparse
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    DecimalType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
)

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.settings import load_env  # noqa: E402  # works from any folder
from pipelines.acid_waters.spark.session import (  # noqa: E402
    SparkError,
    java,
    new_session,
    one_line,
)
from pipelines.acid_waters.tables import (  # noqa: E402
    DECIMALS,
    METHODS,
    SITES,
    Row,
    TableError,
    cell_text,
    find_file,
    read_table,
)

log = logging.getLogger("load_reference")

SAMPLE_FOLDER = Path(__file__).resolve().parent.parent / "sample"
CSV = {  # how the files in HDFS are written and read
    "header": "true",
    "multiLine": "true",  # some descriptions have several lines
    "escape": '"',
    "ignoreLeadingWhiteSpace": "false",  # Spark's writer trims unless told
    "ignoreTrailingWhiteSpace": "false",
}
METHODS_SCHEMA = StructType(
    [
        StructField("PROGRAM_ID", StringType()),
        StructField("PARAMETER", StringType()),
        StructField("START_YEAR", IntegerType()),
        StructField("END_YEAR", IntegerType()),
        StructField("METHOD", StringType()),
        StructField("METHOD_DESCRIPTION", StringType()),
    ]
)
SITE_TYPES = {
    **dict.fromkeys(SITES.numbers, DecimalType(24, DECIMALS)),
    **dict.fromkeys(("COMID", "FEATUREID"), LongType()),
    "UPDATE_DATE": TimestampNTZType(),  # with a zone, Python would get it in its own
}
SITES_SCHEMA = StructType(
    [StructField(name, SITE_TYPES.get(name, StringType())) for name in SITES.columns]
)
LOAD_FIRST = "run hdfs/load_reference.py first"
REFERENCE = {"methods": (METHODS, METHODS_SCHEMA), "sites": (SITES, SITES_SCHEMA)}


def read_reference(spark: SparkSession, hdfs_url: str, name: str) -> DataFrame:
    """Return "methods" or "sites" as HDFS has it; a value of another type is an error.

    Raises:
        SparkError: HDFS does not have it, or not all of it.
    """
    found = read_folder(spark, f"{hdfs_url}/reference/{name}", name)
    if found.isEmpty():
        raise SparkError(f"{hdfs_url}/reference/{name} is empty: {LOAD_FIRST}")
    return found


def read_folder(spark: SparkSession, folder: str, name: str) -> DataFrame:
    """Return "methods" or "sites" as a folder has it.

    Raises:
        SparkError: it is not there, or whoever wrote it did not come to the end.
    """
    _, schema = REFERENCE[name]
    files, path = file_system(folder)
    if not files.exists(path):
        raise SparkError(f"{folder} is not there: {LOAD_FIRST}")
    if not files.exists(path.suffix("/_SUCCESS")):
        raise SparkError(f"{folder} is not whole: {LOAD_FIRST}")
    return spark.read.options(**CSV, mode="FAILFAST").schema(schema).csv(folder)


def file_system(folder: str) -> tuple[Any, Any]:
    """Return Hadoop's file system that holds a folder, and the folder's path there."""
    jvm = java().jvm
    path = jvm.org.apache.hadoop.fs.Path(folder)
    context = jvm.org.apache.spark.sql.SparkSession.active().sparkContext()
    return path.getFileSystem(context.hadoopConfiguration()), path


def load(spark: SparkSession, hdfs_url: str, name: str, rows: Sequence[Row]) -> Counter[Any]:
    """Write rows into HDFS and return those that are not read back the same; if none, use them.

    Returns:
        Counter: each such row, once for the file and once for HDFS.
    """
    table, _ = REFERENCE[name]
    folder = f"{hdfs_url}/reference/{name}"
    new = f"{folder}.new"
    schema = ", ".join(f"{column} string" for column in table.columns)
    texts = spark.createDataFrame([tuple(row.values()) for row in rows], schema)
    texts.coalesce(1).write.options(**CSV).mode("overwrite").csv(new)
    given = Counter(tuple(row.values()) for row in rows)
    found = Counter(
        tuple(cell_text(value, column, table) for column, value in row.asDict().items())
        for row in read_folder(spark, new, name).collect()
    )
    differing = (given - found) + (found - given)
    if not differing:
        files, path = file_system(folder)
        files.delete(path, True)
        if not files.rename(path.suffix(".new"), path):
            raise SparkError(f"{new} cannot be renamed to {path.getName()}")
    return differing


def read_files(folder: Path) -> dict[str, list[Row]]:
    """Return the rows of both files.

    Raises:
        TableError: one cannot be read, is empty, or has a site twice.
    """
    rows = {
        name: list(read_table(find_file(folder, table), table))
        for name, (table, _) in REFERENCE.items()
    }
    for name, (table, _) in REFERENCE.items():
        if not rows[name]:
            raise TableError(f"{find_file(folder, table)} has no rows")
    keys = Counter((row["SITE_ID"], row["PROGRAM_ID"]) for row in rows["sites"])
    if twice := [key for key, number in keys.items() if number > 1]:
        raise TableError(
            f"{find_file(folder, SITES)}: twice the same SITE_ID and PROGRAM_ID: {twice}"
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Load and read back both files; return the exit code (see the module docstring)."""
    load_env()
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, name, default in (
        ("--data", "LTM_DATA", str(SAMPLE_FOLDER)),
        ("--hdfs-url", "HDFS_URL", "hdfs://localhost:8020/acid-waters"),
    ):
        parser.add_argument(flag, default=os.environ.get(name) or default,
                            metavar=name.split("_")[-1], help=f"environment: {name}")  # fmt: skip
    options = parser.parse_args(argv)
    configure_logging()
    try:
        files = read_files(Path(options.data))
        spark = new_session("load_reference")
        differing = 0
        for name, rows in files.items():
            wrong = load(spark, options.hdfs_url, name, rows)
            differing += wrong.total()
            sys.stdout.write(
                f"{name:<10} rows={len(rows):<6} {options.hdfs_url}/reference/{name}\n"
            )
            for row in list(wrong)[:3]:
                log.error("%s: not the same in the file and in HDFS: %s", name, row)
    except TableError as exc:
        log.error("%s", exc)
        return 2
    except SparkError as exc:
        log.error("%s", exc)
        return 1
    except (Py4JError, PySparkException, ConnectionError) as exc:  # HDFS, or Java was killed
        log.error("HDFS at %s: %s", options.hdfs_url, one_line(exc))
        return 1
    return 1 if differing else 0


def configure_logging() -> None:
    """Log to stderr, in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # What the libraries log, traces included, is not for the user: what matters is said here.
    logging.root.handlers[0].addFilter(logging.Filter(log.name))


if __name__ == "__main__":
    raise SystemExit(main())
