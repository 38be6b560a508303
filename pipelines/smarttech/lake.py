"""The lake: where its tables are, the Spark session that writes them, and who may.

LAKE/sensor_data_bronze/  _silver/  _gold/  _anomalies/  _quarantine/  _duplicates/
LAKE/checkpoints/bronze/  silver/  gold/     how far each stage has come
LAKE/options.json                            what its rows depend on; the same at each start
LAKE/spark.log                               what Java says; our own log goes to the terminal
"""

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from delta import DeltaTable
from deltalake import DeltaTable as RustTable
from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from pipelines.smarttech import transforms

log = logging.getLogger("smarttech")

DEFAULT_LAKE = Path(__file__).with_name("lake")
SCHEMAS = {
    "bronze": transforms.BRONZE,
    "silver": transforms.SILVER,
    "gold": transforms.GOLD,
    "anomalies": transforms.ANOMALIES,
    "quarantine": transforms.QUARANTINE,
    "duplicates": transforms.DUPLICATES,
}
# Each stream's tables, the streams in this order when one follows the other.
STAGES = {
    "bronze": ["bronze"],
    "silver": ["silver", "quarantine", "duplicates"],
    "gold": ["gold", "anomalies"],
}
PARTITIONED_BY = ["building", "type"]
CONNECTORS = (
    f"io.delta:delta-spark_2.12:{version('delta-spark')}",
    "org.apache.spark:spark-sql-kafka-0-10_2.12:3.5.7",
)
LOCK_WAIT_S = 30.0
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


class LakeError(Exception):
    """What stops the work, in one line for the user: what is wrong, where, and what to do."""


class UsageError(LakeError):
    """The same, when the command was given the wrong options."""


def table_path(lake: Path, table: str) -> Path:
    """Return the folder of a table."""
    return lake / f"sensor_data_{table}"


@contextmanager
def spark_session(
    lake: Path, settings: Mapping[str, str], locks: Sequence[TextIO] = ()
) -> Iterator[SparkSession]:
    """Give a Spark session whose Java process writes into LAKE/spark.log; stop it at the end.

    Args:
        lake: folder of the tables.
        settings: of Spark, besides SETTINGS.
        locks: what `lock` gave; Java holds them too.

    Raises:
        LakeError: it cannot be started, most often because Maven Central cannot be reached.
    """
    lake.mkdir(parents=True, exist_ok=True)
    file = lake / "spark.log"
    # Its default is a folder spark-warehouse/ wherever we are called from.
    warehouse = {"spark.sql.warehouse.dir": str(lake / "warehouse")}
    conf = SparkConf().setAll(list((SETTINGS | warehouse | dict(settings)).items()))
    log.info("starting Spark (the first time it fetches its connectors); its log is %s", file)
    try:
        with output_into(file):  # Java keeps it
            java = launch_gateway(conf, {"pass_fds": [held.fileno() for held in locks]})
            spark = SparkSession(SparkContext(conf=conf, gateway=java))
    except (PySparkException, Py4JError, OSError) as exc:
        raise LakeError(f"Spark does not start: {one_line(exc)} (see {file})") from exc
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
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


@contextmanager
def lock(*folders: Path) -> Iterator[list[TextIO]]:
    """Take folders for this process and the Java process of its `spark_session` alone.

    A folder is free again when neither of them has its file open. Java must hold the file too: when
    Python is killed, Java works on for a moment.

    Yields:
        The open files.

    Raises:
        LakeError: another process holds one of the folders and keeps it.
    """
    deadline = time.monotonic() + LOCK_WAIT_S
    with ExitStack() as files:
        held: list[TextIO] = []
        for folder in dict.fromkeys(folders):
            folder.mkdir(parents=True, exist_ok=True)
            file = files.enter_context((folder / "lock").open("w", encoding="ascii"))
            while not try_lock(file):
                if time.monotonic() > deadline:
                    raise LakeError(f"another consumer is at work on {folder}: stop it first")
                time.sleep(0.5)
            held.append(file)
        yield held


def try_lock(file: TextIO) -> bool:
    """Lock a file unless another process holds its lock; return whether it is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def newest_file(folder: Path) -> int:
    """Return the highest number that names a file of a folder, -1 without any."""
    return max((int(f.name) for f in folder.glob("[0-9]*") if f.name.isdigit()), default=-1)


def open_batches(checkpoints: Path) -> set[str]:
    """Return the stages of which a batch is begun and not noted as done."""
    return {
        stage
        for stage in STAGES
        if newest_file(checkpoints / stage / "offsets")
        > newest_file(checkpoints / stage / "commits")
    }


def check_checkpoint(stage: str, tables: Sequence[Path], checkpoint: Path) -> None:
    """Refuse tables and a checkpoint that do not belong together: rows would come twice, or never.

    Raises:
        LakeError: one is there without the other.
    """
    has_begun = newest_file(checkpoint / "offsets") >= 0
    has_done = newest_file(checkpoint / "commits") >= 0
    for table in tables:
        is_there = RustTable.is_deltatable(str(table))
        has_rows = is_there and RustTable(str(table)).count() > 0
        if (has_rows and not has_begun) or (has_done and not is_there):
            there, missing = (table, checkpoint) if has_rows else (checkpoint, table)
            raise LakeError(
                f"{there} is there but {missing} is not: put it back, or delete the tables and the "
                f"checkpoints of {stage} and of what comes after it, to have them made again"
            )


def create_tables(spark: SparkSession, lake: Path) -> None:
    """Create the tables that are not there yet, empty, with their schemas and partitions."""
    for table, schema in SCHEMAS.items():
        create_table(spark, table_path(lake, table), schema)


def create_table(spark: SparkSession, path: Path, schema: str) -> None:
    """Create one table if it is not there yet."""
    if DeltaTable.isDeltaTable(spark, str(path)):
        return
    columns = spark.createDataFrame([], schema).schema
    builder = DeltaTable.createIfNotExists(spark).location(str(path)).addColumns(columns)
    builder.partitionedBy(*PARTITIONED_BY).execute()


def stop_on_signals(stop: threading.Event) -> None:
    """Have Ctrl-C and SIGTERM set an event."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())


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


def configure_logging() -> None:
    """Log to stderr, in UTC; of the libraries, errors only."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    log.setLevel(logging.INFO)
    for library in ("kafka", "py4j"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # their errors reach us as exceptions
