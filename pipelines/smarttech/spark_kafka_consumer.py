#!/usr/bin/env python3
"""Bring the readings of a Kafka topic into Delta tables: bronze, silver, gold, anomalies.

    python pipelines/smarttech/spark_kafka_consumer.py                   # until Ctrl-C
    python pipelines/smarttech/spark_kafka_consumer.py --available-now   # what is there, then end

Three streams, each with its own checkpoint; the rules are in transforms.py:

    Kafka -> bronze                                   every message, as it came; nothing is dropped
    bronze -> silver | quarantine | duplicates        each message in exactly one of the three
    silver -> gold, anomalies                         both always what silver makes them

Exactly once, also when it is killed at any moment:
  - bronze is written by Delta's own sink, which notes the batch in the same commit as its rows;
  - so do the three writes of the second stream (txnAppId, txnVersion): when a batch is done again,
    what is already written is skipped. Silver, on which the verdicts depend, is written last;
  - gold and anomalies are computed anew from silver wherever a batch touches them, and merged.

A line of the log:

    silver batch=0 rows=20000 silver=19241 quarantine=542 duplicates=217 seconds=15.0

Environment (or .env at the root of the project; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    SMARTTECH_TOPIC           default sensor_data
    SMARTTECH_LAKE            folder of the tables (default: lake/ beside this file)
    SMARTTECH_CHECKPOINTS     folder of the checkpoints (default: checkpoints/ in the lake)

Exit codes: 0 done or stopped cleanly, 1 a server unreachable or a stream that cannot go on,
2 wrong usage or configuration.
"""

import argparse
import json
import logging
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from delta import DeltaTable
from delta.tables import DeltaMergeBuilder
from deltalake import DeltaTable as RustTable
from deltalake.exceptions import DeltaError
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.streaming.readwriter import DataStreamWriter

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.smarttech import transforms  # noqa: E402  # works from any folder
from pipelines.smarttech.kafka_producer import NoTopicError, make_topic  # noqa: E402
from pipelines.smarttech.lake import (  # noqa: E402
    DEFAULT_LAKE,
    PARTITIONED_BY,
    SCHEMAS,
    STAGES,
    LakeError,
    UsageError,
    check_checkpoint,
    configure_logging,
    create_tables,
    lock,
    one_line,
    spark_session,
    stop_on_signals,
    table_path,
    what_ended,
)
from pipelines.smarttech.options import (  # noqa: E402
    KAFKA_START,
    at_least,
    load_env,
    servers,
    topic_name,
)
from pipelines.smarttech.transforms import names  # noqa: E402

log = logging.getLogger("smarttech")

DURATION = re.compile(r"[1-9]\d* (second|minute|hour|day)s?")
OPTIONS_FILE = "options.json"
TIMESTAMP_TYPE = "message.timestamp.type"
POLL_S = 0.2
BATCH_FILES = 200  # of bronze or silver in one batch; full ones hold a million readings or more
RESTART_BASE_S, RESTART_CAP_S = 0.5, 30.0
RESTARTS = 3  # of one stream, in a row without a batch, while Kafka answers


@dataclass(frozen=True)
class Config:
    """One run, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    lake: Path
    checkpoints: Path
    available_now: bool
    interval_s: float
    batch_messages: int
    lateness: str
    window: str
    wait_s: float
    settings: Mapping[str, str]


class Pipeline:
    """The three streams on one session.

    Attributes:
        last_seen: series (device_id, type) -> newest time in silver, microseconds since 1970.
    """

    def __init__(self, spark: SparkSession, config: Config) -> None:
        self.spark = spark
        self.config = config
        self.last_seen: dict[tuple[str, str], int] = {}

    def path(self, table: str) -> str:
        """Return the folder of a table."""
        return str(table_path(self.config.lake, table))

    def start(self, stage: str) -> StreamingQuery:
        """Start one of the streams where its checkpoint says."""
        writer = {
            "bronze": self.kafka_to_bronze,
            "silver": self.bronze_to_silver,
            "gold": self.silver_to_gold,
        }[stage]()
        writer = writer.queryName(stage)
        writer = writer.option("checkpointLocation", str(self.config.checkpoints / stage))
        if self.config.available_now:
            writer = writer.trigger(availableNow=True)
        else:
            writer = writer.trigger(processingTime=f"{self.config.interval_s} seconds")
        query: StreamingQuery = writer.start()
        return query

    def kafka_to_bronze(self) -> DataStreamWriter:
        """Return the stream of the topic into bronze."""
        messages = (
            self.spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", self.config.bootstrap_servers)
            .option("subscribe", self.config.topic)
            .option("startingOffsets", "earliest")  # when there is no checkpoint yet
            .option("maxOffsetsPerTrigger", self.config.batch_messages)
            .option("failOnDataLoss", "true")  # a gap is said, never passed over
            .option("kafka.isolation.level", "read_committed")  # not what a transaction took back
            .load()
        )
        stamped = messages.withColumnRenamed("timestamp", "kafka_timestamp")
        stamped = stamped.withColumn("ingested_at", F.current_timestamp())
        rows = transforms.with_partition_columns(stamped).select(*names(transforms.BRONZE))
        # Gathered, a batch makes one file in each folder, instead of one from each task.
        gathered = rows.repartition(*PARTITIONED_BY)
        writer = gathered.writeStream.format("delta").partitionBy(*PARTITIONED_BY)
        return writer.option("path", self.path("bronze"))

    def bronze_to_silver(self) -> DataStreamWriter:
        """Return the stream that sorts out what is in bronze."""
        silver = self.spark.read.format("delta").load(self.path("silver"))
        newest = silver.groupBy(*transforms.SERIES).agg(F.unix_micros(F.max("timestamp")))
        self.last_seen = {(row[0], row[1]): row[2] for row in newest.collect()}
        return self.appended("bronze").writeStream.foreachBatch(self.sort_out)

    def silver_to_gold(self) -> DataStreamWriter:
        """Return the stream that keeps gold and anomalies what silver makes them."""
        return self.appended("silver").writeStream.foreachBatch(self.refresh)

    def appended(self, table: str) -> DataFrame:
        """Return the stream of what is appended to a table."""
        stream = self.spark.readStream.format("delta").option("maxFilesPerTrigger", BATCH_FILES)
        return stream.load(self.path(table))

    # What is done with a batch of bronze.

    def sort_out(self, batch: DataFrame, batch_id: int) -> None:
        """Write each row of a batch into silver, quarantine or duplicates."""
        began = time.monotonic()
        # Silver, written last, has it: all is done but the note in the checkpoint. It must not be
        # judged again, for now its own readings are among those that have come before.
        done = RustTable(self.path("silver")).transaction_version(self.stream_id())
        if done is not None and done >= batch_id:
            log.info("silver batch=%d was already written", batch_id)
            return
        last_seen = self.last_seen_rows(batch.sparkSession)
        parsed = transforms.parse(batch)
        with persisted(transforms.mark_late(parsed, last_seen, self.config.lateness)) as checked:
            is_valid = F.col("reason").isNull()
            valid_time = F.when(is_valid, F.col("timestamp"))
            rows, invalid, earliest = checked.agg(
                F.count("*"), F.count("reason"), F.unix_micros(F.min(valid_time))
            ).collect()[0]
            silver = batch.sparkSession.read.format("delta").load(self.path("silver"))
            recent = silver.where(F.col("timestamp") >= micros(earliest))
            with persisted(transforms.judge(checked.where(is_valid), recent)) as judged:
                outcomes = self.write_outcomes(checked, judged, invalid, batch_id)
        log.info(
            "silver batch=%d rows=%d silver=%d quarantine=%d duplicates=%d seconds=%.1f",
            batch_id, rows, outcomes["silver"], outcomes["quarantine"], outcomes["duplicate"],
            time.monotonic() - began,
        )  # fmt: skip

    def last_seen_rows(self, session: SparkSession) -> DataFrame:
        """Return `last_seen` as DataFrame(device_id, type, last timestamp)."""
        rows = [(*series, newest) for series, newest in self.last_seen.items()]
        known = session.createDataFrame(rows, "device_id string, type string, newest bigint")
        return known.select(*transforms.SERIES, F.timestamp_micros("newest").alias("last"))

    def write_outcomes(
        self, checked: DataFrame, judged: DataFrame, invalid: int, batch_id: int
    ) -> Counter[str]:
        """Write a batch's rows to the three tables, silver last; return how many went where."""
        newest = F.unix_micros(F.max("timestamp"))
        found = judged.groupBy("outcome", *transforms.SERIES).agg(F.count("*"), newest).collect()
        outcomes: Counter[str] = Counter()
        for outcome, _, _, rows, _ in found:
            outcomes[outcome] += rows
        outcomes["quarantine"] = invalid + outcomes["conflict"]
        conflicts = judged.where(F.col("outcome") == "conflict").drop("outcome")
        rejected = checked.where(F.col("reason").isNotNull()).unionByName(conflicts)
        if outcomes["quarantine"]:
            self.append("quarantine", transforms.quarantined(rejected), batch_id)
        for table, outcome in (("duplicates", "duplicate"), ("silver", "silver")):
            if outcomes[outcome]:
                self.append(table, judged.where(F.col("outcome") == outcome), batch_id)
        for outcome, *series, _, last in found:
            if outcome == "silver":
                key = (series[0], series[1])
                self.last_seen[key] = max(last, self.last_seen.get(key, last))
        return outcomes

    def append(self, table: str, rows: DataFrame, batch_id: int) -> None:
        """Append a batch's rows to a table, unless this batch of this stream is in it already."""
        gathered = rows.select(*names(SCHEMAS[table])).repartition(*PARTITIONED_BY)
        writer = gathered.write.format("delta").mode("append")
        writer = writer.option("txnAppId", self.stream_id()).option("txnVersion", batch_id)
        writer.save(self.path(table))

    def stream_id(self) -> str:
        """Return the id of the stream whose batch this thread handles.

        It belongs to the checkpoint: a new checkpoint, whose batches count from 0, has another.
        """
        found: str = self.spark.sparkContext.getLocalProperty("sql.streaming.queryId")
        if not found:
            raise LakeError("Spark does not say which stream this is")
        return found

    # What is done with a batch of silver.

    def refresh(self, batch: DataFrame, batch_id: int) -> None:
        """Compute anew what a batch of silver touches, and merge it into gold and anomalies."""
        began = time.monotonic()
        with persisted(batch.select(*transforms.FIELDS)) as new:
            rows, first, last = new.agg(
                F.count("*"), F.unix_micros(F.min("timestamp")), F.unix_micros(F.max("timestamp"))
            ).collect()[0]
            if not rows:
                return
            margin_s = max(seconds(self.config.window), seconds(transforms.HISTORY_SPAN))
            begin, end = first - margin_s * 1_000_000, last + margin_s * 1_000_000
            silver = batch.sparkSession.read.format("delta").load(self.path("silver"))
            # The two constants let Delta leave out the files that hold other times.
            near = silver.where(F.col("timestamp").between(micros(begin), micros(end)))
            since = f"timestamp_micros({begin})"
            self.merge_gold(transforms.touched_gold(new, near, self.config.window), since)
            self.merge_anomalies(transforms.touched_scores(new, near), since)
        log.info("gold batch=%d rows=%d seconds=%.1f", batch_id, rows, time.monotonic() - began)

    def merge_gold(self, rows: DataFrame, since: str) -> None:
        """Bring rows of gold up to date."""
        keys = [*transforms.GROUP, "window_start"]
        merge = self.merge("gold", rows, keys, f"old.window_start >= {since}")
        # Readings are never taken out of silver: as many as before are the same as before.
        merge = merge.whenMatchedUpdateAll("old.count <> new.count").whenNotMatchedInsertAll()
        merge.execute()

    def merge_anomalies(self, scores: DataFrame, since: str) -> None:
        """Bring anomalies up to date; a reading that came late may have made or unmade some."""
        merge = self.merge("anomalies", scores, transforms.IDENTITY, f"old.timestamp >= {since}")
        columns: dict[str, str | Column] = {
            name: f"new.{name}" for name in names(transforms.ANOMALIES)
        }
        merge = merge.whenMatchedDelete("not new.is_anomaly")
        # A late reading may lengthen the history and leave the score as it was.
        numbers = ("median", "mad", "score", "history")
        differs = " or ".join(f"old.{name} <> new.{name}" for name in numbers)
        merge = merge.whenMatchedUpdate(differs, set=columns)
        merge.whenNotMatchedInsert("new.is_anomaly", values=columns).execute()

    def merge(self, table: str, rows: DataFrame, keys: list[str], scope: str) -> DeltaMergeBuilder:
        """Return a merge of rows ("new") into a table ("old") by its keys, within a scope."""
        equal = [f"old.{key} = new.{key}" for key in keys]
        target = DeltaTable.forPath(rows.sparkSession, self.path(table)).alias("old")
        return target.merge(rows.alias("new"), " and ".join([*equal, scope]))


def micros(number: int | None) -> Column:
    """Return the time so many microseconds after 1970 began, UTC; null for None."""
    return F.timestamp_micros(F.lit(number).cast("bigint"))


@contextmanager
def persisted(rows: DataFrame) -> Iterator[DataFrame]:
    """Keep rows that are used several times."""
    rows = rows.persist()
    try:
        yield rows
    finally:
        rows.unpersist()


# Keeping the streams going.


class Supervisor:
    """Runs streams until they are done or told to stop; starts again those that fail.

    Attributes:
        rows: what each stream has taken in.
    """

    def __init__(self, pipeline: Pipeline, stop: threading.Event) -> None:
        self.pipeline = pipeline
        self.stop = stop
        self.queries: dict[str, StreamingQuery] = {}
        self.rows: Counter[str] = Counter()
        self.last_batch: dict[str, int] = {}
        self.failures: Counter[str] = Counter()  # in a row, without a batch in between
        self.retry_at: dict[str, float] = {}

    def run(self, stages: Sequence[str]) -> None:
        """Run streams side by side until they end by themselves, or told to stop.

        Raises:
            LakeError: one fails again and again although Kafka answers.
        """
        pending = list(stages)
        try:
            while pending and not self.stop.is_set():
                for stage in list(pending):
                    if self.advance(stage):
                        pending.remove(stage)
                self.stop.wait(POLL_S)
        finally:
            for stage, query in self.queries.items():
                self.note_progress(stage)
                if query.isActive:
                    query.stop()

    def advance(self, stage: str) -> bool:
        """Start a stream, or see after it; return whether it has ended well."""
        if time.monotonic() < self.retry_at.get(stage, 0):
            return False
        query = self.queries.get(stage)
        try:
            if query is None:
                self.queries[stage] = self.pipeline.start(stage)
                return False
            self.note_progress(stage)
            if query.isActive:
                return False
            failure: PySparkException | None = query.exception()
            if not failure:
                return True
            del self.queries[stage]
        except PySparkException as exc:  # it did not start
            failure = exc
        self.note_failure(stage, failure)
        return False

    def note_progress(self, stage: str) -> None:
        """Count and log the batches that a stream has done since the last time."""
        query = self.queries[stage]
        seen = self.last_batch.get(stage, -1)
        for progress in query.recentProgress:
            rows, batch_id = progress["numInputRows"], progress["batchId"]
            if batch_id <= seen or not rows:
                continue
            self.last_batch[stage] = batch_id
            self.failures[stage] = 0
            self.rows[stage] += rows
            if stage == "bronze":  # the others have more to say, and say it themselves
                took_s = progress["durationMs"]["triggerExecution"] / 1000
                log.info("bronze batch=%d rows=%d seconds=%.1f", batch_id, rows, took_s)

    def note_failure(self, stage: str, failure: BaseException) -> None:
        """Say why a stream has failed, and when it is started again.

        Raises:
            LakeError: that is of no use.
        """
        config = self.pipeline.config
        reason = one_line(failure)
        self.failures[stage] += 1
        if self.failures[stage] > RESTARTS and kafka_answers(config.bootstrap_servers):
            raise LakeError(f"{stage} cannot go on: {reason} (see {config.lake / 'spark.log'})")
        delay_s = min(RESTART_CAP_S, RESTART_BASE_S * 2 ** min(self.failures[stage], 10))
        self.retry_at[stage] = time.monotonic() + delay_s
        log.warning("%s failed, again in %.0f s: %s", stage, delay_s, reason)


def kafka_answers(bootstrap_servers: str) -> bool:
    """Return whether a broker answers."""
    try:
        KafkaConsumer(bootstrap_servers=bootstrap_servers.split(",")).close()
    except KafkaError:
        return False
    return True


def wait_for_kafka(config: Config, stop: threading.Event) -> None:
    """Wait until a broker answers and knows the topic, which it makes if it may.

    Raises:
        LakeError: not within the time.
    """
    deadline = time.monotonic() + config.wait_s
    while not stop.is_set():
        try:
            make_topic(config.bootstrap_servers, config.topic)
            return
        except NoTopicError as exc:
            trouble = str(exc)
        except KafkaError as exc:
            trouble = f"Kafka does not answer at {config.bootstrap_servers} ({exc})"
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise LakeError(f"{trouble}: is it started? ({KAFKA_START})")
        log.warning("%s, %.0f s left", trouble, left_s)
        stop.wait(min(2.0, left_s))


def warn_of_sender_times(config: Config) -> None:
    """Say so when a message's time is the sender's: then its clock says what is in the future."""
    asked = ConfigResource(ConfigResourceType.TOPIC, config.topic, {TIMESTAMP_TYPE: None})
    brokers = config.bootstrap_servers.split(",")
    try:
        with closing(KafkaAdminClient(bootstrap_servers=brokers)) as admin:
            [answer] = admin.describe_configs([asked])
        [topic] = answer.to_object()["resources"]
        [entry] = topic["config_entries"]
        kind = entry["config_value"]
    except (KafkaError, ValueError) as exc:  # some brokers do not let everybody ask
        log.debug("%s of %s is not known: %s", TIMESTAMP_TYPE, config.topic, exc)
        return
    if kind != "LogAppendTime":
        log.warning(
            "%s of topic=%s is %s: what is in the future is told by the sender's clock, not by the "
            "broker's (pipelines/smarttech/compose.yml sets that)",
            TIMESTAMP_TYPE, config.topic, kind,
        )  # fmt: skip


def check_checkpoints(config: Config) -> None:
    """Refuse tables and checkpoints that do not belong together: rows would come twice, or never.

    Raises:
        LakeError: one is there without the other.
    """
    for stage, tables in STAGES.items():
        paths = [table_path(config.lake, table) for table in tables]
        check_checkpoint(stage, paths, config.checkpoints / stage)


def check_options(config: Config) -> None:
    """Refuse options that would treat the next messages otherwise than those in the lake.

    Raises:
        UsageError: the lake was begun with others.
        LakeError: what it was begun with cannot be read.
    """
    file = config.lake / OPTIONS_FILE
    if not file.exists():
        return
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        begun = {name: kept[name] for name in ("topic", "lateness", "window")}
        is_same = {
            "topic": begun["topic"] == config.topic,
            "lateness": seconds(begun["lateness"]) == seconds(config.lateness),
            "window": seconds(begun["window"]) == seconds(config.window),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise LakeError(f"{file} cannot be read: {one_line(exc)}") from exc
    if wrong := [name for name, same in is_same.items() if not same]:
        said = ", ".join(f"--{name} '{begun[name]}'" for name in wrong)
        raise UsageError(f"{config.lake} was begun with {said}: say the same, or take another lake")


def keep_options(config: Config) -> None:
    """Note with the lake, once, what its rows depend on. The lake must be locked.

    Raises:
        UsageError: it was begun with other options.
    """
    check_options(config)
    file = config.lake / OPTIONS_FILE
    if not file.exists():
        kept = {"topic": config.topic, "lateness": config.lateness, "window": config.window}
        partial = file.with_suffix(".partial")  # whole or not there, whenever we are killed
        partial.write_text(json.dumps(kept) + "\n", encoding="utf-8")
        partial.rename(file)


# The command.


def seconds(duration: str) -> int:
    """Return a duration in seconds.

    >>> seconds("5 minutes"), seconds("1 hour")
    (300, 3600)
    """
    number, unit = duration.split()
    return int(number) * {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}[unit.rstrip("s")]


def duration(text: str) -> str:
    """Return a duration if Spark and we understand it."""
    if not DURATION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not such as '10 minutes'")
    return text


def setting(text: str) -> tuple[str, str]:
    """Return a setting of Spark, written KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key.startswith("spark."):
        raise argparse.ArgumentTypeError(f"{text!r} is not spark.KEY=VALUE")
    return key, value


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    summary, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--available-now", action="store_true",
        help="bring in what the topic holds now, one stage after the other, and end")  # fmt: skip
    add("--interval", type=at_least(0, float), default=5.0, metavar="SECONDS",
        help="between two batches of a stream (default: 5)")  # fmt: skip
    add("--batch", type=at_least(1, int), default=100_000, metavar="MESSAGES",
        help="at most, of one batch from Kafka (default: 100000)")  # fmt: skip
    add("--lateness", type=duration, default="10 minutes", metavar="DURATION",
        help="how long after a newer one of its series a reading may come "
        "(default: 10 minutes)")  # fmt: skip
    add("--window", type=duration, default="5 minutes", metavar="DURATION",
        help="length of gold's windows (default: 5 minutes)")  # fmt: skip
    add("--wait", type=at_least(0, float), default=60.0, metavar="SECONDS",
        help="how long to wait for Kafka at the start (default: 60)")  # fmt: skip
    add("--conf", type=setting, action="append", default=[], metavar="KEY=VALUE",
        help="a setting of Spark, as often as you like")  # fmt: skip
    add("--bootstrap-servers", type=servers, metavar="SERVERS",
        default=environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092",
        help="environment: KAFKA_BOOTSTRAP_SERVERS (default: localhost:9092)")  # fmt: skip
    add("--topic", type=topic_name, metavar="TOPIC",
        default=environ.get("SMARTTECH_TOPIC") or "sensor_data",
        help="environment: SMARTTECH_TOPIC (default: sensor_data)")  # fmt: skip
    add("--lake", type=Path, metavar="FOLDER",
        default=environ.get("SMARTTECH_LAKE") or DEFAULT_LAKE,
        help="environment: SMARTTECH_LAKE (default: lake/ beside this file)")  # fmt: skip
    add("--checkpoints", type=Path, metavar="FOLDER",
        default=environ.get("SMARTTECH_CHECKPOINTS") or None,
        help="environment: SMARTTECH_CHECKPOINTS (default: checkpoints/ in the lake)")  # fmt: skip
    options = parser.parse_args(argv)
    lake = options.lake.absolute()
    return Config(
        bootstrap_servers=options.bootstrap_servers,
        topic=options.topic,
        lake=lake,
        checkpoints=(options.checkpoints or lake / "checkpoints").absolute(),
        available_now=options.available_now,
        interval_s=options.interval,
        batch_messages=options.batch,
        lateness=options.lateness,
        window=options.window,
        wait_s=options.wait,
        settings=dict(options.conf),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the streams until done or stopped; return the exit code (see the module docstring)."""
    load_env()
    config = load_config(argv, os.environ)
    configure_logging()
    stop = threading.Event()
    stop_on_signals(stop)
    try:
        check_options(config)
        wait_for_kafka(config, stop)
        if not stop.is_set():
            warn_of_sender_times(config)
            run(config, stop)
    except LakeError as exc:
        log.error("%s", exc)
        return 2 if isinstance(exc, UsageError) else 1
    except (PySparkException, DeltaError, Py4JError, OSError) as exc:
        if not stop.wait(1.0):  # else Java was told to stop as well
            log.error("%s (see %s)", what_ended(exc), config.lake / "spark.log")
            return 1
    log.info("stopped")
    return 0


def run(config: Config, stop: threading.Event) -> None:
    """Run the streams on a session of their own.

    Raises:
        LakeError: they cannot start, or one cannot go on.
    """
    with (
        lock(config.lake, config.checkpoints) as locks,
        spark_session(config.lake, config.settings, locks) as spark,
    ):
        stop_on_signals(stop)  # once more: Spark has put its own handler there
        keep_options(config)
        check_checkpoints(config)
        create_tables(spark, config.lake)
        supervisor = Supervisor(Pipeline(spark, config), stop)
        log.info(
            "reading topic=%s at %s into %s", config.topic, config.bootstrap_servers, config.lake
        )
        for group in [[stage] for stage in STAGES] if config.available_now else [list(STAGES)]:
            began = time.monotonic()
            supervisor.run(group)
            took_s = time.monotonic() - began
            for stage in group:
                rows = supervisor.rows[stage]
                log.info(
                    "%s total rows=%d seconds=%.1f rate_hz=%.0f", stage, rows, took_s, rows / took_s
                )


if __name__ == "__main__":
    raise SystemExit(main())
