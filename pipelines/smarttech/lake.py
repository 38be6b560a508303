"""The lake: where its tables are, how far its streams have come, and who may write.

LAKE/sensor_data_bronze/  _silver/  _gold/  _anomalies/  _rejects/  _duplicates/
LAKE/checkpoints/bronze/  silver/  gold/     how far each stage has come
LAKE/checkpoints/bronze/topic_id             which topic of its name bronze is read from
LAKE/options.json                            what its rows depend on; the same at each start
LAKE/spark.log                               what Java says; our own log goes to the terminal
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from delta import DeltaTable
from deltalake import DeltaTable as RustTable
from pyspark.sql import DataFrame, SparkSession

from pipelines.common import next_copy
from pipelines.smarttech import transforms

log = logging.getLogger("smarttech")

SCHEMAS = {
    "bronze": transforms.BRONZE,
    "silver": transforms.SILVER,
    "gold": transforms.GOLD,
    "anomalies": transforms.ANOMALIES,
    "rejects": transforms.REJECTS,
    "duplicates": transforms.DUPLICATES,
}
# Each stream's tables, the streams in this order when one follows the other.
STAGES = {
    "bronze": ["bronze"],
    "silver": ["silver", "rejects", "duplicates"],
    "gold": ["gold", "anomalies"],
}
PARTITIONED_BY = ["building", "type"]
LOCK_WAIT_S = 30.0


class LakeError(Exception):
    """What stops the work, in one line for the user: what is wrong, where, and what to do."""


class UsageError(LakeError):
    """The same, when the command was given the wrong options."""


class StoppedError(Exception):
    """The user has ended the work before it began."""


def table_path(lake: Path, table: str) -> Path:
    """Return the folder of a table."""
    return lake / f"sensor_data_{table}"


@contextmanager
def lock(*folders: Path, stop: threading.Event | None = None) -> Iterator[list[TextIO]]:
    """Take folders for this process and the Java process of its `spark_session` alone.

    A folder is free again when neither of them has its file open. Java must hold the file too: when
    Python is killed, Java works on for a moment, for which this waits.

    Args:
        folders: to take.
        stop: ends the waiting.

    Yields:
        The open files.

    Raises:
        LakeError: another process holds one of the folders and keeps it.
        StoppedError: told to stop while waiting.
    """
    stop = stop or threading.Event()
    deadline = time.monotonic() + LOCK_WAIT_S
    with ExitStack() as files:
        held: list[TextIO] = []
        for folder in dict.fromkeys(folders):
            wrong = f"another consumer is at work on {folder}"
            say = partial(log.info, "%s: waiting for its end", wrong)
            file = files.enter_context(next_copy(folder / "lock", deadline, stop, say))
            if not file:
                raise StoppedError if stop.is_set() else LakeError(f"{wrong}: stop it first")
            held.append(file)
        yield held


def newest_file(folder: Path) -> int:
    """Return the highest number that names a file of a folder, -1 without any."""
    return max((int(f.name) for f in folder.glob("[0-9]*") if f.name.isdigit()), default=-1)


def open_batches(checkpoint: Path) -> set[str]:
    """Return the stages of which a batch is begun and not noted as done."""
    return {
        stage
        for stage in STAGES
        if newest_file(checkpoint / stage / "offsets") > newest_file(checkpoint / stage / "commits")
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


def check_checkpoints(lake: Path, checkpoint: Path) -> None:
    """Check the tables and the checkpoint of each stage.

    Raises:
        LakeError: one is there without the other.
    """
    for stage, tables in STAGES.items():
        check_checkpoint(stage, [table_path(lake, table) for table in tables], checkpoint / stage)


def check_topic(checkpoint: Path, topic: str, topic_id: str) -> None:
    """Refuse to go on in a topic that was made anew; the first time, note which one it is.

    Spark knows a topic by its name alone: in a new one it would go on at the old one's offsets, and
    pass over what is before them.

    Args:
        checkpoint: of bronze; a folder, which is made.
        topic: its name.
        topic_id: of `pipelines.spark.topic_id`.

    Raises:
        LakeError: the checkpoint is of another topic of this name.
    """
    file = checkpoint / "topic_id"
    if not file.exists():
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_whole(file, f"{topic_id}\n")
    elif file.read_bytes().strip() != topic_id.encode():
        raise LakeError(
            f"topic={topic} was deleted and made anew: its offsets are not those of {checkpoint}; "
            "take another lake (--lake)"
        )


def write_whole(file: Path, text: str) -> None:
    """Write a file that is whole or not there, whenever this process is killed."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(file)


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


def append(rows: DataFrame, path: Path, schema: str, batch_id: int) -> None:
    """Append a batch of the stream whose thread this is to a table, unless it is in it already.

    Delta notes the stream and the batch in the same commit as the rows.
    """
    # Gathered, a batch makes one file in each folder, instead of one from each task.
    gathered = rows.select(*transforms.names(schema)).repartition(*PARTITIONED_BY)
    writer = gathered.write.format("delta").mode("append")
    writer = writer.option("txnAppId", stream_id(rows.sparkSession))
    writer.option("txnVersion", batch_id).save(str(path))


def stream_id(spark: SparkSession) -> str:
    """Return the id of the stream whose batch this thread handles.

    It belongs to the checkpoint: a new checkpoint, whose batches count from 0, has another.

    Raises:
        LakeError: this is no thread of a stream.
    """
    found: str = spark.sparkContext.getLocalProperty("sql.streaming.queryId")
    if not found:
        raise LakeError("Spark does not say which stream this is")
    return found
