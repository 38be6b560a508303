"""Spark on this machine, with its connectors to Kafka and Delta, and what its errors say.

The connectors come from Maven Central, once: Spark fetches them into a folder of the user's.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from pipelines.smarttech.lake import LakeError
from pipelines.spark import start_java, use_utf8

log = logging.getLogger("smarttech")

CONNECTORS = (
    f"io.delta:delta-spark_2.12:{version('delta-spark')}",
    f"org.apache.spark:spark-sql-kafka-0-10_2.12:{version('pyspark')}",
)
# For one laptop; README says what each is worth.
SETTINGS = {
    "spark.app.name": "smarttech",
    "spark.jars.packages": ",".join(CONNECTORS),
    "spark.master": "local[2]",  # two tasks at a time, all in this one process
    "spark.driver.memory": "1g",  # so the driver's memory is all there is
    "spark.driver.host": "127.0.0.1",  # listen on loopback only
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "2",  # the default of 200 is as many tasks for each exchange
    "spark.databricks.delta.snapshotPartitions": "2",  # and 50 for the state of each table
    # VACUUM lists a table in so many tasks: by default 10 000 of them, mostly empty.
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    "spark.sql.streaming.minBatchesToRetain": "20",  # of 100: smaller checkpoint folders
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}


@contextmanager
def spark_session(
    folder: Path, settings: Mapping[str, str], locks: Sequence[TextIO] = ()
) -> Iterator[tuple[SparkSession, Any]]:
    """Give a Spark session whose Java process writes into FOLDER/spark.log; stop it at the end.

    Args:
        folder: of Spark's log; it is made.
        settings: of Spark, besides SETTINGS.
        locks: what `lake.lock` gave; Java holds them too.

    Yields:
        The session, and py4j's gateway to its Java: `jvm`, by which Python calls it.

    Raises:
        LakeError: it cannot be started, most often because Maven Central cannot be reached.
    """
    use_utf8(os.environ)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spark.log"
    # Its default is a folder spark-warehouse/ wherever we are called from.
    warehouse = {"spark.sql.warehouse.dir": str(folder / "warehouse")}
    conf = SparkConf().setAll(list((SETTINGS | warehouse | dict(settings)).items()))
    log.info("starting Spark (the first time it fetches its connectors); its log is %s", file)
    try:
        with output_into(file):  # Java keeps it
            java = start_java(conf, pass_fds=[held.fileno() for held in locks])
            spark = SparkSession(SparkContext(conf=conf, gateway=java))
    except (PySparkException, Py4JError, OSError) as exc:
        raise LakeError(f"Spark does not start: {one_line(exc)} (see {file})") from exc
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark, java
    finally:
        try:
            spark.stop()
        except (Py4JError, OSError):
            log.debug("Java had ended before")


@contextmanager
def output_into(file: Path) -> Iterator[None]:
    """Send what this process and those that it starts print into a file."""
    terminal = {number: os.dup(number) for number in (1, 2)}
    with file.open("ab") as target:
        for number in terminal:
            os.dup2(target.fileno(), number)
    try:
        yield
    finally:
        for number, saved in terminal.items():
            os.dup2(saved, number)
            os.close(saved)


def one_line(exc: BaseException, length: int = 300) -> str:
    """Return what an error says, without Java's trace."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    telling = next((line for line in reversed(lines) if line.startswith("Caused by:")), None)
    return (telling or (lines[0] if lines else repr(exc)))[:length]


def what_ended(exc: BaseException) -> str:
    """Return what has gone wrong with a session, in one line.

    Of an OSError only a connection's says that Java has ended; another may be a full disk.
    """
    has_java_ended = isinstance(exc, Py4JNetworkError | ConnectionError)
    return f"Java has ended: {one_line(exc)}" if has_java_ended else one_line(exc)
