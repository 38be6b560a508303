#!/usr/bin/env python3
"""Without Kafka: take JSON files that are dropped into a folder into a Delta table, as a stream.

    python pipelines/smarttech/pipeline_streaming_simple.py                   # until Ctrl-C
    python pipelines/smarttech/pipeline_streaming_simple.py --available-now   # what is there

    (kafka_producer.py --folder pipelines/smarttech/lake/simple/sensor_data makes some)

    LAKE/simple/sensor_data/*.json -> LAKE/simple/sensor_data_bronze/

A file holds one JSON object per line and must appear complete: write it elsewhere (or under a name
that begins with a dot), then move it in. Each is taken once; a line that is more or less than the
seven fields of a reading is kept as it came, in the column `malformed`.

    2026-11-25T08:34:36.350Z INFO smarttech: batch=1 rows=149 seconds=12.8

Environment (or .env at the root of the project; a flag wins over it):
    SMARTTECH_LAKE   folder of the tables (default: lake/ beside this file)

Exit codes: 0 done or stopped cleanly, 1 the stream cannot go on, 2 wrong usage.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltalake.exceptions import DeltaError
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.smarttech import transforms  # noqa: E402  # works from any folder
from pipelines.smarttech.lake import (  # noqa: E402
    DEFAULT_LAKE,
    PARTITIONED_BY,
    LakeError,
    check_checkpoint,
    configure_logging,
    create_table,
    lock,
    one_line,
    spark_session,
    stop_on_signals,
    table_path,
    what_ended,
)
from pipelines.smarttech.options import at_least, load_env  # noqa: E402

log = logging.getLogger("smarttech")

PARSED = f"{transforms.READING}, malformed string"
TABLE = f"{PARSED}, file string, ingested_at timestamp"
JSON = {**transforms.STRICT_JSON, "columnNameOfCorruptRecord": "malformed"}
POLL_S = 0.2


@dataclass(frozen=True)
class Config:
    """One run, as asked for; defaults are written in `load_config` only."""

    folder: Path
    available_now: bool
    interval_s: float


def start(spark: SparkSession, config: Config) -> StreamingQuery:
    """Start the stream where its checkpoint says."""
    files = spark.readStream.option("maxFilesPerTrigger", 1000)
    # By default a file is passed over, and nothing said, that is 7 days older than the newest one
    # taken: one that is moved in keeps its time.
    files = files.option("maxFileAge", "36500d")
    lines = files.text(str(config.folder / "sensor_data"))
    rows = parsed(lines.where(F.trim("value") != ""))
    writer = rows.repartition(*PARTITIONED_BY).writeStream.format("delta")
    writer = writer.partitionBy(*PARTITIONED_BY).queryName("simple")
    writer = writer.option("checkpointLocation", str(config.folder / "checkpoints"))
    if config.available_now:
        writer = writer.trigger(availableNow=True)
    else:
        writer = writer.trigger(processingTime=f"{config.interval_s} seconds")
    return writer.start(str(table_path(config.folder, "bronze")))


def parsed(lines: DataFrame) -> DataFrame:
    """Read each line by the schema; one that the columns do not hold whole is kept as it came.

    Args:
        lines: DataFrame(value string).

    Returns:
        DataFrame(TABLE); building and type are null where they cannot be a folder's name.
    """
    read = lines.select(
        "value",
        F.from_json("value", PARSED, JSON).alias("read"),
        F.from_json("value", "map<string, string>", transforms.STRICT_JSON).alias("given"),
    )
    folder = transforms.folder_of(F.col("read.building"), F.col("read.type"))
    is_whole = (
        F.col("value").rlike(transforms.OBJECT)
        & F.col("read.malformed").isNull()
        & (F.size("given") == len(transforms.FIELDS))
        & F.forall(F.map_values("given"), lambda value: value.isNotNull())
        & folder["building"].isNotNull()
        & folder["type"].isNotNull()
    )
    malformed = F.when(F.coalesce(is_whole, F.lit(False)), None).otherwise(F.col("value"))
    fields = {name: F.col(f"read.{name}") for name in transforms.FIELDS} | folder
    columns = {
        **fields,
        "malformed": malformed.cast("string"),
        "file": F.input_file_name(),
        "ingested_at": F.current_timestamp(),
    }
    return read.select(*(columns[name].alias(name) for name in transforms.names(TABLE)))


def run(config: Config, stop: threading.Event) -> None:
    """Run the stream on a session of its own until it is done or told to stop.

    Raises:
        LakeError: it cannot start, or cannot go on.
    """
    with lock(config.folder) as locks, spark_session(config.folder, {}, locks) as spark:
        stop_on_signals(stop)  # once more: Spark has put its own handler there
        checkpoint = config.folder / "checkpoints"
        check_checkpoint("the simple mode", [table_path(config.folder, "bronze")], checkpoint)
        create_table(spark, table_path(config.folder, "bronze"), TABLE)
        (config.folder / "sensor_data").mkdir(exist_ok=True)
        log.info("watching %s", config.folder / "sensor_data")
        query = start(spark, config)
        seen = -1
        while True:
            is_active = query.isActive  # asked before the progress: none is missed
            for progress in query.recentProgress:
                rows, batch_id = progress["numInputRows"], progress["batchId"]
                if batch_id > seen and rows:
                    seen, took_s = batch_id, progress["durationMs"]["triggerExecution"] / 1000
                    log.info("batch=%d rows=%d seconds=%.1f", batch_id, rows, took_s)
            if not is_active or stop.wait(POLL_S):
                break
        query.stop()
        if failure := query.exception():
            raise LakeError(f"{one_line(failure)} (see {config.folder / 'spark.log'})")


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    summary, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--available-now", action="store_true", help="take what is there and end")
    add("--interval", type=at_least(0, float), default=5.0, metavar="SECONDS",
        help="between two batches (default: 5)")  # fmt: skip
    add("--lake", type=Path, metavar="FOLDER",
        default=environ.get("SMARTTECH_LAKE") or DEFAULT_LAKE,
        help="environment: SMARTTECH_LAKE (default: lake/ beside this file)")  # fmt: skip
    options = parser.parse_args(argv)
    return Config(options.lake.absolute() / "simple", options.available_now, options.interval)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stream until done or stopped; return the exit code (see the module docstring)."""
    load_env()
    config = load_config(argv, os.environ)
    configure_logging()
    stop = threading.Event()
    stop_on_signals(stop)
    try:
        run(config, stop)
    except LakeError as exc:
        log.error("%s", exc)
        return 1
    except (PySparkException, DeltaError, Py4JError, OSError) as exc:
        if not stop.wait(1.0):  # else Java was told to stop as well
            log.error("%s (see %s)", what_ended(exc), config.folder / "spark.log")
            return 1
    log.info("stopped")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
