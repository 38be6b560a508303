"""The methods and the sites in HDFS: written, and read back with explicit schemas.

The files Methods… and Site_Information… of the data folder become CSV files in HDFS, in the one
form that tables.py gives. They are written beside those that are there and take their place once
they are whole: killed at any moment, there is the old table, the new one, or none, which the
consumer says.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.types import (
    DecimalType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
)

from pipelines.acid_waters.spark.spark_session import SparkError, java
from pipelines.acid_waters.tables import (
    DECIMALS,
    METHODS,
    SITES,
    WHOLE_NUMBERS,
    Row,
    TableError,
    cell_text,
    find_file,
    read_table,
)

CSV = {  # how the files in HDFS are written and read
    "header": "true",
    "multiLine": "true",  # some descriptions have several lines
    "escape": '"',
    "ignoreLeadingWhiteSpace": "false",  # Spark's writer trims unless told
    "ignoreTrailingWhiteSpace": "false",
}
TYPES = {  # of the columns that are no texts
    **dict.fromkeys(METHODS.numbers, IntegerType()),
    **dict.fromkeys(SITES.numbers, DecimalType(24, DECIMALS)),
    **dict.fromkeys(WHOLE_NUMBERS, LongType()),
    "UPDATE_DATE": TimestampNTZType(),  # with a zone, Python would get it in its own
}
LOAD_FIRST = "run prepare.py first"
REFERENCE = {"methods": METHODS, "sites": SITES}


def read_reference(spark: SparkSession, hdfs_url: str, name: str) -> list[Any]:
    """Return "methods" or "sites" as HDFS has it; a value of another type is an error.

    Raises:
        SparkError: HDFS does not have it, or not all of it.
    """
    found = read_folder(spark, f"{hdfs_url}/reference/{name}", name)
    if not found:
        raise SparkError(f"{hdfs_url}/reference/{name} is empty: {LOAD_FIRST}")
    return found


def read_folder(spark: SparkSession, folder: str, name: str) -> list[Any]:
    """Return "methods" or "sites" as a folder has it.

    Raises:
        SparkError: it is not there, or whoever wrote it did not come to the end.
    """
    columns = REFERENCE[name].columns
    schema = StructType(
        [StructField(column, TYPES.get(column, StringType())) for column in columns]
    )
    files, path = file_system(folder)
    if not files.exists(path):
        raise SparkError(f"{folder} is not there: {LOAD_FIRST}")
    if not files.exists(path.suffix("/_SUCCESS")):
        raise SparkError(f"{folder} is not whole: {LOAD_FIRST}")
    table = spark.read.options(**CSV, mode="FAILFAST").schema(schema).csv(folder)
    return list(table.collect())


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
    table = REFERENCE[name]
    folder = f"{hdfs_url}/reference/{name}"
    new = f"{folder}.new"
    schema = ", ".join(f"{column} string" for column in table.columns)
    texts = spark.createDataFrame([tuple(row.values()) for row in rows], schema)
    texts.coalesce(1).write.options(**CSV).mode("overwrite").csv(new)
    given = Counter(tuple(row.values()) for row in rows)
    found = Counter(
        tuple(cell_text(value, column, table) for column, value in row.asDict().items())
        for row in read_folder(spark, new, name)
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
    rows: dict[str, list[Row]] = {}
    for name, table in REFERENCE.items():
        file = find_file(folder, table)
        rows[name] = list(read_table(file, table))
        if not rows[name]:
            raise TableError(f"{file} has no rows")
    keys = Counter((row["SITE_ID"], row["PROGRAM_ID"]) for row in rows["sites"])
    if twice := [key for key, number in keys.items() if number > 1]:
        raise TableError(
            f"{find_file(folder, SITES)}: twice the same SITE_ID and PROGRAM_ID: {twice}"
        )
    return rows
