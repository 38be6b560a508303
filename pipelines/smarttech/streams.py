"""The three streams between Kafka and the tables: what is read, done with a batch, and written."""

import logging
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from delta import DeltaTable
from delta.tables import DeltaMergeBuilder
from deltalake import DeltaTable as RustTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.streaming.readwriter import DataStreamWriter

from pipelines.smarttech import transforms
from pipelines.smarttech.lake import (
    PARTITIONED_BY,
    SCHEMAS,
    append,
    check_topic,
    stream_id,
    table_path,
)
from pipelines.smarttech.transforms import names, said_rejects, seconds
from pipelines.spark import topic_id

log = logging.getLogger("smarttech")

BATCH_FILES = 200  # of bronze or silver in one batch; full ones hold a million readings or more


class Pipeline:
    """The three streams on one session.

    Args:
        spark: the session.
        jvm: of py4j, by which Python calls Spark's Java.
        options: of spark_kafka_consumer.py; its checkpoint is a folder.

    Attributes:
        last_seen: series (device_id, type) -> newest time in silver, microseconds since 1970.
    """

    def __init__(self, spark: SparkSession, jvm: Any, options: Namespace) -> None:
        self.spark = spark
        self.jvm = jvm
        self.options = options
        self.last_seen: dict[tuple[str, str], int] = {}

    def path(self, table: str) -> str:
        """Return the folder of a table."""
        return str(table_path(self.options.lake, table))

    def start(self, stage: str) -> StreamingQuery:
        """Start one of the streams where its checkpoint says.

        Raises:
            LakeError: the checkpoint is of another topic.
            PySparkException, Py4JJavaError: it cannot start now.
        """
        writer = {
            "bronze": self.kafka_to_bronze,
            "silver": self.bronze_to_silver,
            "gold": self.silver_to_gold,
        }[stage]()
        writer = writer.queryName(stage)
        writer = writer.option("checkpointLocation", str(self.options.checkpoint / stage))
        if self.options.once:
            writer = writer.trigger(availableNow=True)
        else:
            writer = writer.trigger(processingTime=f"{self.options.every * 1000:.0f} milliseconds")
        query: StreamingQuery = writer.start()
        return query

    def kafka_to_bronze(self) -> DataStreamWriter:
        """Return the stream of the topic into bronze.

        Raises:
            LakeError: the checkpoint is of another topic.
            Py4JJavaError: Kafka does not answer, or has no such topic.
        """
        servers, topic = self.options.bootstrap_servers, self.options.topic
        check_topic(self.options.checkpoint / "bronze", topic, topic_id(self.jvm, servers, topic))
        messages = (
            self.spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", servers)
            .option("subscribe", topic)
            .option("startingOffsets", "earliest")  # when there is no checkpoint yet
            .option("maxOffsetsPerTrigger", self.options.batch)
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
        """Write each row of a batch into silver, rejects or duplicates."""
        began = time.monotonic()
        # Silver, written last, has it: all is done but the note in the checkpoint. It must not be
        # judged again, for now its own readings are among those that have come before.
        done = RustTable(self.path("silver")).transaction_version(stream_id(self.spark))
        if done is not None and done >= batch_id:
            log.info("silver batch=%d was already written", batch_id)
            return
        last_seen = self.last_seen_rows(batch.sparkSession)
        parsed = transforms.parse(batch)
        with persisted(transforms.mark_late(parsed, last_seen, self.options.lateness)) as checked:
            kind = F.split("reason", ":")[0]
            earliest = F.unix_micros(F.min("timestamp"))
            kinds = checked.groupBy(kind).agg(F.count("*"), earliest).collect()
            rejected = Counter({name: count for name, count, _ in kinds if name})
            first_valid = next((first for name, _, first in kinds if name is None), None)
            silver = batch.sparkSession.read.format("delta").load(self.path("silver"))
            recent = silver.where(F.col("timestamp") >= micros(first_valid))
            is_valid = F.col("reason").isNull()
            with persisted(transforms.judge(checked.where(is_valid), recent)) as judged:
                outcomes = self.write_outcomes(checked, judged, rejected, batch_id)
        log.info(
            "silver batch=%d rows=%d silver=%d duplicates=%d %s seconds=%.1f",
            batch_id, sum(count for _, count, _ in kinds), outcomes["silver"],
            outcomes["duplicate"], said_rejects(rejected), time.monotonic() - began,
        )  # fmt: skip

    def last_seen_rows(self, session: SparkSession) -> DataFrame:
        """Return `last_seen` as DataFrame(device_id, type, last timestamp)."""
        rows = [(*series, newest) for series, newest in self.last_seen.items()]
        known = session.createDataFrame(rows, "device_id string, type string, newest bigint")
        return known.select(*transforms.SERIES, F.timestamp_micros("newest").alias("last"))

    def write_outcomes(
        self, checked: DataFrame, judged: DataFrame, rejected: Counter[str], batch_id: int
    ) -> Counter[str]:
        """Write a batch's rows to the three tables, silver last; return how many went where.

        The conflicts are counted in `rejected` as well.
        """
        newest = F.unix_micros(F.max("timestamp"))
        found = judged.groupBy("outcome", *transforms.SERIES).agg(F.count("*"), newest).collect()
        outcomes: Counter[str] = Counter()
        for outcome, _, _, rows, _ in found:
            outcomes[outcome] += rows
        rejected += Counter(conflict=outcomes["conflict"])
        if rejected:
            conflicts = judged.where(F.col("outcome") == "conflict").drop("outcome")
            refused = checked.where(F.col("reason").isNotNull()).unionByName(conflicts)
            self.append("rejects", transforms.rejects(refused), batch_id)
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
        append(rows, table_path(self.options.lake, table), SCHEMAS[table], batch_id)

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
            margin_s = max(seconds(self.options.window), seconds(transforms.HISTORY_SPAN))
            begin, end = first - margin_s * 1_000_000, last + margin_s * 1_000_000
            silver = batch.sparkSession.read.format("delta").load(self.path("silver"))
            # The two constants let Delta leave out the files that hold other times.
            near = silver.where(F.col("timestamp").between(micros(begin), micros(end)))
            since = f"timestamp_micros({begin})"
            self.merge_gold(transforms.touched_gold(new, near, self.options.window), since)
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
