#!/usr/bin/env python3
"""Without Kafka: take JSON files that are dropped into a folder into a Delta table, as a stream.

    python pipelines/smarttech/pipeline_streaming_simple.py          # until Ctrl-C
    python pipelines/smarttech/pipeline_streaming_simple.py --once   # what is there, then end

    FOLDER/sensor_data/*.json -> FOLDER/sensor_data_bronze/    the readings
                              -> FOLDER/sensor_data_rejects/   what is none, with the reason
    how far it is, and Spark's log: FOLDER/sensor_data_checkpoint/

A file is one JSON object, on as many lines as it likes, or holds one object a line; it must fit in
memory. One of which no line is an object, such as a list over several lines, is one reject. A file
must appear complete: write it elsewhere (or under a name that begins with a dot), then move it in.
Each file is taken once. The rules of a reading are those of the other streams, in transforms.py; in
the future is what comes after the time at which its file is taken.

    batch=0 rows=9 readings=8 rejected=1 (bad_json=1) seconds=12.8

Environment (or .env in this folder, then at the project's root; an option wins over both):
    SMARTTECH_SIMPLE   folder of the three (default: the one of this file)

Exit codes: 0 done or stopped cleanly, 1 the stream cannot go on, 2 wrong usage.
"""

import logging
import os
import re
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltalake.exceptions import DeltaError
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import configure_logging, load_env, number, stop_on_signals  # noqa: E402
from pipelines.smarttech import transforms  # noqa: E402
from pipelines.smarttech.lake import (  # noqa: E402
    LakeError,
    StoppedError,
    append,
    check_checkpoint,
    create_table,
    lock,
    table_path,
)
from pipelines.smarttech.settings import FOLDER, command_parser, folder  # noqa: E402
from pipelines.smarttech.spark_session import (  # noqa: E402
    one_line,
    spark_session,
    what_ended,
)
from pipelines.spark import stop_with_submit  # noqa: E402

log = logging.getLogger("smarttech")

SCHEMAS = {
    "bronze": f"{transforms.TYPED_READING}, file string, ingested_at timestamp",
    "rejects": "reason string, value binary, file string, ingested_at timestamp, "
    "building string, type string",
}
LINE_END = "\r\n|\r|\n"
LINE_OBJECT = r"(?s)^\s*\{.*\}\s*\z"  # what it holds is checked later
BYTE_ORDER_MARK = "^\ufeff"  # with which some editors begin a file
PATTERN = r"[][{}*?\\]"  # what makes a pattern of a path, for Spark
POLL_S = 0.2


def start(spark: SparkSession, options: Namespace) -> StreamingQuery:
    """Start the stream where its checkpoint says."""
    files = spark.readStream.option("maxFilesPerTrigger", 1000)
    # By default a file is passed over, and nothing said, that is 7 days older than the newest one
    # taken: one that is moved in keeps its time.
    files = files.option("maxFileAge", "36500d")
    contents = files.text(str(options.folder / "sensor_data"), wholetext=True)
    contents = contents.select(
        "value",
        F.input_file_name().alias("file"),
        F.current_timestamp().alias("ingested_at"),
    )

    def write(batch: DataFrame, batch_id: int) -> None:
        write_batch(batch, batch_id, options.folder)

    writer = contents.writeStream.foreachBatch(write).queryName("simple")
    writer = writer.option("checkpointLocation", str(table_path(options.folder, "checkpoint")))
    if options.once:
        return writer.trigger(availableNow=True).start()
    return writer.trigger(processingTime=f"{options.every * 1000:.0f} milliseconds").start()


def checked(files: DataFrame) -> DataFrame:
    """Read each file, line by line if a line is an object, else whole, and check what it holds.

    Args:
        files: DataFrame(value string, ingested_at timestamp, ...), a row per file.

    Returns:
        What `transforms.parse` gives, and the other columns of the file.
    """
    content = F.regexp_replace("value", BYTE_ORDER_MARK, "")
    lines = F.split(content, LINE_END)
    has_line = F.exists(lines, lambda line: line.rlike(LINE_OBJECT))
    pieces = F.when(has_line, lines).otherwise(F.array(content))
    pieces = F.filter(pieces, lambda piece: piece.rlike(r"\S"))
    rows = files.withColumn("value", F.explode(pieces))
    as_messages = {"value": F.col("value").cast("binary"), "kafka_timestamp": F.col("ingested_at")}
    return transforms.parse(rows.withColumns(as_messages))


def write_batch(batch: DataFrame, batch_id: int, folder: Path) -> None:
    """Write what a batch of files holds into the two tables, each row once: see `lake.append`."""
    began = time.monotonic()
    # For each file whose name matches PATTERN, Spark reads all files of the batch once more.
    batch = checked(batch.dropDuplicates(["file"])).persist()
    kinds = batch.groupBy(F.split("reason", ":")[0]).count().collect()
    counts = Counter({kind: count for kind, count in kinds})
    readings = counts.pop(None, 0)
    refused = transforms.rejects(batch.where("reason is not null"))
    for table, rows in (("rejects", refused), ("bronze", batch.where("reason is null"))):
        append(rows, table_path(folder, table), SCHEMAS[table], batch_id)
    batch.unpersist()
    log.info(
        "batch=%d rows=%d readings=%d %s seconds=%.1f",
        batch_id, readings + counts.total(), readings, transforms.said_rejects(counts),
        time.monotonic() - began,
    )  # fmt: skip


def run(options: Namespace, stop: threading.Event) -> None:
    """Run the stream on a session of its own until it is done or told to stop.

    Raises:
        LakeError: it cannot start, or cannot go on.
        StoppedError: told to stop before it started.
    """
    checkpoint = table_path(options.folder, "checkpoint")
    with (
        lock(checkpoint, stop=stop) as locks,
        spark_session(checkpoint, {}, locks) as (spark, _),
    ):
        stop_on_signals(stop)  # once more: Spark has put its own handler there
        tables = {name: table_path(options.folder, name) for name in SCHEMAS}
        check_checkpoint("the simple mode", list(tables.values()), checkpoint)
        for name, path in tables.items():
            create_table(spark, path, SCHEMAS[name])
        (options.folder / "sensor_data").mkdir(exist_ok=True)
        log.info("watching %s", options.folder / "sensor_data")
        query = start(spark, options)
        while query.isActive and not stop.wait(POLL_S):
            pass
        query.stop()
        if failure := query.exception():
            raise LakeError(f"{one_line(failure)} (see {checkpoint / 'spark.log'})")


def load_options(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Namespace:
    """Return the options: command line > environment > default. A bad value exits with code 2."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--once", action="store_true", help="take what is there and end")
    add("--every", type=number(0, 86_400), default=5.0, metavar="SECONDS",
        help="the trigger: between the starts of two batches (default: 5)")  # fmt: skip
    add("--folder", type=folder, metavar="FOLDER",
        default=environ.get("SMARTTECH_SIMPLE") or str(FOLDER),
        help="environment: SMARTTECH_SIMPLE (default: the folder of this file)")  # fmt: skip
    options = parser.parse_args(argv)
    if re.search(PATTERN, str(options.folder)):
        parser.error(
            f"Spark cannot watch {options.folder}: give --folder one without any of []{{}}*?\\"
        )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stream until done or stopped; return the exit code (see the module docstring)."""
    stop = threading.Event()
    stop_with_submit(stop)
    load_env(FOLDER)
    options = load_options(argv, os.environ)
    configure_logging("smarttech")
    stop_on_signals(stop)
    try:
        run(options, stop)
    except LakeError as exc:
        log.error("%s", exc)
        return 1
    except StoppedError:
        log.debug("told to stop before it began")
    except (PySparkException, DeltaError, Py4JError, OSError) as exc:
        if not stop.wait(1.0):  # else Java was told to stop as well
            spark_log = table_path(options.folder, "checkpoint") / "spark.log"
            log.error("%s (see %s)", what_ended(exc), spark_log)
            return 1
    log.info("stopped")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
