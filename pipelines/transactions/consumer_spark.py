#!/usr/bin/env python3
"""Write the transactions of a Kafka topic as Parquet into an S3 bucket: none lost, none twice.

    spark-submit pipelines/transactions/consumer_spark.py       # until Ctrl-C
    python pipelines/transactions/consumer_spark.py --available-now   # what is there, then end

What happens to a record:

    Kafka -> parse -> judge --+-- valid -> in euros, in UTC and in Paris' time -> output/
                              +-- wrong -> its bytes, its place in Kafka, the reason -> rejects/

A batch is a stretch of offsets that Spark has noted in checkpoint/ before it is worked on. Its
files lie in folders of its number; when a batch is done again, after a crash, what it had left
there, and in _temporary, is deleted first. So every reader finds each row once, not only one that
knows Spark's log.

Rules, and where they are from:
    amount      a decimal number, more than 0, at most 1 000 000 000, with at most two decimals
    euros       montant / rate, the rate being units of the currency for one euro; rounded to the
                cent, half a cent up (Regulation (EC) 1103/97, article 5)
    rate        the ECB's of the day in Paris, or the last before, a week old at most (rates.csv)
    timestamp   ISO 8601 with its offset from UTC: without one it could be any of 24 instants; of
                the years 2000 to 2099 (UTC): another is a mistake, and Spark does not write every
                year, nor does every reader know it
    date        the day in Paris

A line for each batch, and one at the end. read is what Kafka gave; a batch of which it is not the
sum of the two that follow is not written:

    batch id=12 read=1000 written=990 rejected=10 seconds=2.1

With --metrics-port PORT, http://127.0.0.1:PORT/metrics says the same to Prometheus.

Environment (or .env in the project's folder; a flag wins over both), and those of store.py:
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    TRANSACTIONS_TOPIC        default transactions

Exit codes: 0 done or stopped cleanly, 1 a server unreachable at the start, or a batch that fails
again and again, 2 wrong usage or configuration.
"""

import argparse
import logging
import math
import os
import signal
import sys
import threading
import time
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram, start_http_server
from prometheus_client import Counter as Total
from py4j.protocol import Py4JError
from pyarrow import fs
from pyspark.errors import PySparkException
from pyspark.ml import PipelineModel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # as Spark's own documentation does
from pyspark.sql.streaming.query import StreamingQuery

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.transactions.broker import addresses, topic_name  # noqa: E402
from pipelines.transactions.env_file import load_env  # noqa: E402
from pipelines.transactions.rates import RATES_FILE, rates_in_force, read_rates  # noqa: E402
from pipelines.transactions.spark_session import (  # noqa: E402
    SPARK_LOG,
    SparkError,
    last_cause,
    spark_session,
)
from pipelines.transactions.store import (  # noqa: E402
    CHECKPOINT,
    MODEL,
    OUTPUT,
    REJECTS,
    TOPIC_ID,
    Store,
    StoreError,
)

log = logging.getLogger("consumer_spark")

FIELDS = ("transaction_id", "montant", "devise", "timestamp")
# 18 decimals, so that one too many is seen and not rounded away while parsing. MANY_DIGITS sees
# those beyond: 15 digits or more from the first to the last that is no zero, where the largest
# amount has 12. No group is repeated in it, as Java would go one call deeper for each digit.
MANY_DIGITS = r'"montant"\s*:\s*-?[0.]*[1-9][\d.]{14,}[1-9]'
SCHEMA = "transaction_id BIGINT, montant DECIMAL(38,18), devise STRING, timestamp STRING"
TEXT_SCHEMA = "transaction_id STRING, montant STRING, devise STRING, timestamp STRING"
RATES_SCHEMA = "rate_day DATE, rate_currency STRING, taux DECIMAL(12,6), taux_date DATE"
NUMBER = r"^-?\d+(\.\d+)?([eE][-+]?\d+)?\z"
FIRST_INSTANT, LAST_INSTANT = "2000-01-01T00:00:00Z", "2099-12-31T23:59:59.999999Z"
INSTANT = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)\z"
MAX_AMOUNT = 1_000_000_000
MONEY = "DECIMAL(18,2)"
WRITTEN = (
    "transaction_id", "montant", "devise", "montant_eur", "taux", "taux_date", "timestamp_utc",
    "timestamp_paris", "score", "suspect", "kafka_partition", "kafka_offset", "date", "batch_id",
)  # fmt: skip
REJECTED = ("reason", "detail", "value", "kafka_partition", "kafka_offset", "batch_id")
CLIENT_TIMEOUTS_MS = {"default.api.timeout.ms": "20000", "request.timeout.ms": "10000"}
MAX_FAILURES = 5  # of one batch in a row, with both servers there
MAX_WAIT_S = 10.0


@dataclass(frozen=True)
class Config:
    """One run of the consumer, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    available_now: bool
    every_s: float
    max_records: int
    metrics_port: int | None
    score: bool
    wait_s: float


# From a record's bytes to a row: DataFrame -> DataFrame, without a session and without a server.


def parse(records: DataFrame) -> DataFrame:
    """Return the records with what their JSON says, typed and as text, null where it does not.

    Args:
        records: columns value (binary), kafka_partition, kafka_offset.

    Returns:
        The same, with the structs `typed` and `text` of the four fields; `json`: the value as text
        when it is exactly one JSON object with no name twice, else null; and `montant_json`: the
        amount as JSON, so in quotes when it is a string.
    """
    text = F.col("value").cast("string")
    # Spark's parser reads the first object and forgets what follows, and takes the first of a list.
    # Hence two lists: `{..}],[{..}` makes the first object the only one of both.
    alone, followed = (F.concat(F.lit("["), text, F.lit(end)) for end in ("]", ",0]"))
    names = F.json_object_keys(text)
    is_one_object = (
        text.rlike(r"^\s*\{[\s\S]*\}\s*$")
        & (F.json_array_length(alone) == 1)
        & (F.json_array_length(followed) == 2)
        & (F.size(names) == F.size(F.array_distinct(names)))  # of two, which one is meant?
    )
    parsed = records.withColumn("json", F.when(is_one_object, text))
    as_list = F.concat(F.lit("["), "json", F.lit("]"))
    return parsed.withColumns(
        {
            "typed": F.from_json("json", SCHEMA),
            "text": F.from_json("json", TEXT_SCHEMA),
            # Spark leaves the quotes only where a path may find several.
            "montant_json": F.get_json_object(as_list, "$[*].montant"),
        }
    )


def with_values(parsed: DataFrame, rates: DataFrame) -> DataFrame:
    """Return parsed records with the columns of a transaction; null where there is no such value.

    Args:
        parsed: what `parse` returns.
        rates: columns of RATES_SCHEMA, one row for each day and currency that has a rate.
    """
    is_instant = F.col("text.timestamp").rlike(INSTANT)
    instant = F.when(is_instant, F.try_to_timestamp("text.timestamp"))
    first, last = (F.lit(text).cast("timestamp") for text in (FIRST_INSTANT, LAST_INSTANT))
    values = parsed.select(
        "*",
        F.col("typed.transaction_id").alias("transaction_id"),
        F.col("typed.montant").cast(MONEY).alias("montant"),
        F.col("text.devise").alias("devise"),
        F.when(instant.between(first, last), instant).alias("timestamp_utc"),
    )
    values = values.withColumn(
        "timestamp_paris",
        F.convert_timezone(
            F.lit("UTC"), F.lit("Europe/Paris"), F.col("timestamp_utc").cast("timestamp_ntz")
        ),
    ).withColumn("date", F.col("timestamp_paris").cast("date"))
    same = (F.col("date") == F.col("rate_day")) & (F.col("devise") == F.col("rate_currency"))
    joined = values.join(F.broadcast(rates), on=same, how="left")
    # The quotient has 15 decimals or more, rounded; rounding that again to two gives what rounding
    # the exact quotient would: a quotient that is no half cent is further than that from one.
    euros = F.when(F.col("devise") == "EUR", F.col("montant")).otherwise(
        F.round(F.col("montant") / F.col("taux"), 2)  # half up
    )
    return joined.withColumn("montant_eur", euros.cast(MONEY))


def judge(values: DataFrame, currencies: Iterable[str]) -> DataFrame:
    """Return the rows with `reason`, why a row is wrong, null when it is right, and `detail`.

    Args:
        values: what `with_values` returns.
        currencies: the known ones.
    """
    amount = F.col("typed.montant")
    missing = F.concat_ws(",", *[F.when(F.col(f"text.{n}").isNull(), F.lit(n)) for n in FIELDS])
    is_number = F.coalesce(F.col("montant_json").rlike(NUMBER), F.lit(False))
    is_rounded_to_0 = (amount == 0) & F.col("text.montant").rlike("^[0.]*[1-9]")
    is_too_precise = (
        (amount != F.round(amount, 2)) | F.col("json").rlike(MANY_DIGITS) | is_rounded_to_0
    )
    wrong = F.concat_ws(
        ",",
        F.when(F.col("typed.transaction_id").isNull(), F.lit("transaction_id")),
        F.when(~is_number, F.lit("montant")),
    )
    rules: list[tuple[str, Column, Column]] = [
        ("not_json", F.col("json").isNull(), F.lit(None)),
        ("missing_field", missing != "", missing),
        ("wrong_type", wrong != "", wrong),
        ("amount_too_large", amount.isNull() | (amount > MAX_AMOUNT), F.col("text.montant")),
        ("amount_too_precise", is_too_precise, F.col("text.montant")),
        ("amount_not_positive", amount <= 0, F.col("text.montant")),
        ("unknown_currency", ~F.col("devise").isin("EUR", *currencies), F.col("devise")),
        ("bad_timestamp", F.col("timestamp_utc").isNull(), F.col("text.timestamp")),
        ("no_rate", F.col("montant_eur").isNull(), F.concat_ws(" ", "devise", "date")),
    ]
    reason, detail = F.lit(None).cast("string"), F.lit(None).cast("string")
    for name, applies, found in reversed(rules):  # the first that applies is given
        reason = F.when(applies, F.lit(name)).otherwise(reason)
        detail = F.when(applies, found).otherwise(detail)
    return values.withColumns({"reason": reason, "detail": detail})


def with_score(rows: DataFrame, model: PipelineModel | None) -> DataFrame:
    """Return the rows with `score` and `suspect` (see score.py); null without a model."""
    if model is None:
        return rows.selectExpr("*", "CAST(null AS DOUBLE) score", "CAST(null AS BOOLEAN) suspect")
    return model.transform(rows)


def rates_frame(spark: SparkSession, path: Path = RATES_FILE) -> DataFrame:
    """Return the rate of each currency in force on each day, with the columns of RATES_SCHEMA."""
    rows: list[tuple[date, str, Decimal, date]] = list(rates_in_force(read_rates(path)))
    return spark.createDataFrame(rows, RATES_SCHEMA)


# What others can ask.


class Metrics:
    """Counts of this run, for the log and for Prometheus; one for a process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.counts: Counter[str] = Counter()
        counter = partial(Total, registry=registry)
        self.read = counter("transactions_read", "Records read from Kafka")
        self.written = counter("transactions_written", "Transactions written to output/")
        self.rejected = counter("transactions_rejected", "Records written to rejects/", ["reason"])
        self.failures = counter("transactions_failures", "Batches tried again after an error")
        buckets = (0.5, 1, 2, 5, 10, 30, 60)
        self.batch_seconds = Histogram(
            "transactions_batch_seconds", "Duration of a batch", buckets=buckets, registry=registry
        )
        gauge = partial(Gauge, registry=registry)
        self.last_batch = gauge(
            "transactions_last_batch_timestamp_seconds", "When the last batch was written"
        )
        self.lag = gauge("transactions_lag_records", "Records that the last batch did not reach")
        self.last_id = -1

    def note(
        self, batch_id: int, read: int, reasons: Mapping[str | None, int], seconds: float
    ) -> None:
        """Count a batch that is written.

        Args:
            batch_id: its number.
            read: records that Kafka gave.
            reasons: rows written, by the reason for their refusal, None for the valid ones.
            seconds: how long it took.
        """
        if batch_id <= self.last_id:
            return  # done again, as its commit had failed: counted already
        self.last_id = batch_id
        written = reasons.get(None, 0)
        rejected = sum(reasons.values()) - written
        self.counts.update(read=read, written=written, rejected=rejected)
        self.read.inc(read)
        self.written.inc(written)
        for reason, number in reasons.items():
            if reason:
                self.rejected.labels(reason).inc(number)
        self.batch_seconds.observe(seconds)
        self.last_batch.set_to_current_time()
        log.info(
            "batch id=%d read=%d written=%d rejected=%d seconds=%.1f",
            batch_id, read, written, rejected, seconds,
        )  # fmt: skip


def serve_metrics(port: int) -> None:
    """Answer /metrics on a loopback port, in a thread that ends with the process.

    Raises:
        ValueError: the port is taken.
    """
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as exc:
        raise ValueError(f"--metrics-port {port}: {exc.strerror}: choose another") from exc


# The stream.


class Writer:
    """Writes batches into the bucket.

    Attributes:
        may_be_replay: whether the next batch may have been begun before: the first of a query.
    """

    def __init__(self, spark: SparkSession, store: Store, config: Config, metrics: Metrics) -> None:
        self.spark = spark
        self.store = store
        self.metrics = metrics
        self.may_be_replay = True
        self.rates = rates_frame(spark).cache()
        self.currencies = {row["rate_currency"] for row in self.rates.collect()}
        self.model = load_model(store) if config.score else None

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        """Write a batch: what is right under output/, what is not under rejects/."""
        began = time.monotonic()
        if self.may_be_replay:
            self.delete(batch_id)
        values = with_values(parse(batch), self.rates)
        rows = judge(values, self.currencies).withColumn("batch_id", F.lit(batch_id)).persist()
        try:
            counted = rows.groupBy("reason").count().collect()
            reasons = {row["reason"]: row["count"] for row in counted}
            # Asked of Kafka anew: of the rows it would agree with itself, whatever became of them.
            if (read := batch.count()) != (found := sum(reasons.values())):
                raise ValueError(f"batch {batch_id} has {read} records, but {found} rows of them")
            if reasons.get(None):
                valid = with_score(rows.where("reason IS NULL"), self.model)
                # One file for each day of the batch.
                files = valid.select(*WRITTEN).repartition("date").write
                files.mode("append").partitionBy("date", "batch_id").parquet(self.store.url(OUTPUT))
            if reasons.keys() - {None}:
                files = rows.where("reason IS NOT NULL").select(*REJECTED).coalesce(1).write
                files.mode("append").partitionBy("batch_id").parquet(self.store.url(REJECTS))
        finally:
            rows.unpersist()
        self.may_be_replay = False
        if reasons:
            self.metrics.note(batch_id, read, reasons, time.monotonic() - began)
        if 2 * reasons.get("no_rate", 0) > sum(reasons.values()):
            log.warning("no_rate: %d; rates.csv is too old (rates.py)", reasons["no_rate"])

    def delete(self, batch_id: int) -> None:
        """Delete what an earlier attempt has left of a batch."""
        client, bucket = self.store.filesystem(), self.store.bucket
        days = client.get_file_info(fs.FileSelector(f"{bucket}/{OUTPUT}", allow_not_found=True))
        # _temporary: what a job that was killed while it committed has left there, Hadoop takes for
        # a part of the next job, and commits with it.
        left = [
            *(f"{day.path}/batch_id={batch_id}" for day in days if "=" in day.base_name),
            f"{bucket}/{REJECTS}/batch_id={batch_id}",
            f"{bucket}/{OUTPUT}/_temporary",
            f"{bucket}/{REJECTS}/_temporary",
        ]
        for found in client.get_file_info(left):
            if found.type == fs.FileType.Directory:
                log.info("batch id=%d was begun before: deleting %s", batch_id, found.path)
                client.delete_dir(found.path)


def check_model(store: Store) -> None:
    """Make sure that score.py has stored a score.

    Raises:
        StoreError: it has not.
    """
    found = store.filesystem().get_file_info(f"{store.bucket}/{MODEL}/metadata")
    if found.type == fs.FileType.NotFound:
        raise StoreError(
            "--score: there is no trained score in the bucket: "
            "run python pipelines/transactions/score.py first"
        )


def load_model(store: Store) -> PipelineModel:
    """Return the trained score.

    Raises:
        StoreError: it is not whole.
    """
    try:
        return PipelineModel.load(store.url(MODEL))
    except (PySparkException, Py4JError, ValueError) as exc:
        raise StoreError(
            f"--score: the trained score in the bucket is not whole ({last_cause(exc)}): "
            "run python pipelines/transactions/score.py again"
        ) from exc


def check_checkpoint(store: Store) -> None:
    """Make sure that what is stored has the checkpoint that it was written with.

    Without it the batches are numbered from 0 again, and each clears the folders of its number.

    Raises:
        StoreError: there are batches and no checkpoint.
    """
    client = store.filesystem()

    def names(folder: str) -> list[str]:
        path = fs.FileSelector(f"{store.bucket}/{folder}", allow_not_found=True)
        return [info.base_name for info in client.get_file_info(path)]

    has_batches = any("=" in name for folder in (OUTPUT, REJECTS) for name in names(folder))
    if has_batches and not any(name.isdecimal() for name in names(f"{CHECKPOINT}/offsets")):
        raise StoreError(
            f"the bucket {store.bucket} holds {OUTPUT}/ or {REJECTS}/ but not their {CHECKPOINT}/: "
            "a new start would overwrite them; choose another bucket by S3_BUCKET (prepare.py "
            "makes it)"
        )


def topic_id(jvm: Any, config: Config) -> str:
    """Return the id that Kafka gave the topic when it was made, "" where Kafka tells none.

    Asked by Kafka's own client, which Spark's connector brings: kafka-python does not know the id.

    Args:
        jvm: of `spark_session`.
        config: names the topic.

    Raises:
        Py4JError: Kafka does not answer, or has no such topic.
    """
    settings = {"bootstrap.servers": config.bootstrap_servers, **CLIENT_TIMEOUTS_MS}
    with closing(jvm.org.apache.kafka.clients.admin.AdminClient.create(settings)) as admin:
        topics = admin.describeTopics([config.topic]).allTopicNames().get()
        text = topics[config.topic].topicId().toString()  # in base 64
    found = str(UUID(bytes=urlsafe_b64decode(f"{text}==")))
    return found if found.strip("0-") else ""  # zeros: of an old Kafka


def check_topic(jvm: Any, store: Store, config: Config) -> None:
    """Make sure that the topic is the one that the checkpoint is of; the first time, note it.

    Spark knows a topic by its name alone: in a new one of the same name it would go on at the old
    one's offsets, and pass over what is before them.

    Raises:
        StoreError: it is another one.
        Py4JError, OSError: a server does not answer.
    """
    if not (found := topic_id(jvm, config)):
        return
    client, path = store.filesystem(), f"{store.bucket}/{TOPIC_ID}"
    if client.get_file_info(path).type == fs.FileType.NotFound:
        with client.open_output_stream(path) as file:
            file.write(f"{config.topic} {found}\n".encode())
        return
    with client.open_input_file(path) as file:
        topic, _, noted = file.read().decode().strip().partition(" ")
    if topic != config.topic:
        raise StoreError(
            f"{CHECKPOINT}/ is that of topic {topic}, not of {config.topic}: "
            "choose another bucket (S3_BUCKET)"
        )
    if noted != found:
        raise StoreError(
            f"topic {topic} was deleted and made anew: its offsets are not those of {CHECKPOINT}/; "
            "choose another bucket (S3_BUCKET)"
        )


def start_query(
    spark: SparkSession, store: Store, config: Config, writer: Writer
) -> StreamingQuery:
    """Start the stream where its checkpoint says."""
    records = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", config.bootstrap_servers)
        .option("subscribe", config.topic)
        .option("startingOffsets", "earliest")  # the first time only; then the checkpoint's
        .option("maxOffsetsPerTrigger", config.max_records)
        .option("kafka.isolation.level", "read_committed")  # not what a transaction took back
        .options(**{f"kafka.{name}": value for name, value in CLIENT_TIMEOUTS_MS.items()})
        .load()
        .selectExpr("value", "partition AS kafka_partition", "offset AS kafka_offset")
    )
    writer.may_be_replay = True
    stream = records.writeStream.foreachBatch(writer)
    stream = stream.option("checkpointLocation", store.url(CHECKPOINT))
    if config.available_now:
        return stream.trigger(availableNow=True).start()
    return stream.trigger(processingTime=f"{round(1000 * config.every_s)} milliseconds").start()


def run(
    spark: SparkSession, jvm: Any, store: Store, config: Config, metrics: Metrics,
    stop: threading.Event,
) -> int:  # fmt: skip
    """Run the stream until it is done or told to stop, through outages; return the exit code."""
    try:
        return stream(spark, jvm, store, config, metrics, stop)
    finally:  # however it ends
        counts = metrics.counts
        log.info(
            "stopped read=%d written=%d rejected=%d",
            counts["read"], counts["written"], counts["rejected"],
        )  # fmt: skip


def stream(
    spark: SparkSession, jvm: Any, store: Store, config: Config, metrics: Metrics,
    stop: threading.Event,
) -> int:  # fmt: skip
    """Do what `run` says, without its last line."""
    writer = Writer(spark, store, config, metrics)
    failures, progress = 0, metrics.counts["read"]
    while not stop.is_set():
        try:
            check_topic(jvm, store, config)
            query = start_query(spark, store, config, writer)
            log.info(
                "reading topic=%s at %s into %s",
                config.topic, config.bootstrap_servers, store.url(""),
            )  # fmt: skip
            watch(query, metrics, stop)
            break
        except (PySparkException, Py4JError, OSError) as exc:
            if stop.is_set():
                break
            cause = last_cause(exc)
            if "data may have been lost" in str(exc):
                log.error("Kafka has deleted records before they were read: %s", cause)
                return 1
            if metrics.counts["read"] != progress:
                failures, progress = 0, metrics.counts["read"]
            metrics.failures.inc()
            log.warning("batch failed, nothing is lost, trying again: %s", cause)
            if check_servers(store, config):
                wait_for_servers(store, config, stop, deadline=None)
                continue  # an outage is not the batch's fault: it is not counted
            failures += 1
            if failures >= MAX_FAILURES:
                log.error("gave up after %d failures in a row: see %s", failures, SPARK_LOG)
                return 1
            stop.wait(min(2.0**failures, MAX_WAIT_S))
    return 0


def watch(query: StreamingQuery, metrics: Metrics, stop: threading.Event) -> None:
    """Wait for the end of a query, or end it when told to.

    Raises:
        PySparkException: the query has failed.
    """
    while not query.awaitTermination(1):
        progress = query.lastProgress
        if progress and progress["sources"]:
            lag = (progress["sources"][0].get("metrics") or {}).get("maxOffsetsBehindLatest")
            metrics.lag.set(float(lag or 0))
        if stop.is_set():
            query.stop()
            return


# Waiting for the servers.


def check_servers(store: Store, config: Config) -> str:
    """Return what is wrong with Kafka or the store, "" when both are there."""
    try:
        store.check()
        admin = KafkaAdminClient(
            bootstrap_servers=config.bootstrap_servers.split(","), api_version_auto_timeout_ms=5000
        )
        with closing(admin):
            if config.topic in admin.list_topics():
                return ""
        return (
            f"there is no topic {config.topic} in Kafka: "
            "run python pipelines/transactions/prepare.py"
        )
    except StoreError as exc:
        return str(exc)
    except KafkaError as exc:
        return f"Kafka does not answer at {config.bootstrap_servers} ({exc})"


def wait_for_servers(
    store: Store, config: Config, stop: threading.Event, deadline: float | None
) -> bool:
    """Wait until both servers answer; return False when told to stop or when it is too late."""
    wait_s = 1.0
    while wrong := check_servers(store, config):
        if stop.is_set():
            return False
        left_s = math.inf if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            log.error("%s", wrong)
            return False
        log.warning("waiting: %s", wrong)
        stop.wait(min(wait_s, left_s))
        wait_s = min(2 * wait_s, MAX_WAIT_S)
    return not stop.is_set()


# The command.


def number_from(least: float, kind: type[int] | type[float]) -> Any:
    """Return an argparse type for a number from a bound up."""

    def parse_number(text: str) -> float:
        number = kind(text)
        if not least <= number < 1e12:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and 1e12")
        return number

    parse_number.__name__ = "whole number" if kind is int else "number"
    return parse_number


def port(text: str) -> int:
    """Return a port; an argparse type."""
    if not 0 < int(text) < 65_536:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 65535")
    return int(text)


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--available-now", action="store_true", help="end when all that is there now is written")
    add("--every", type=number_from(0.001, float), default=5.0, metavar="SECONDS",
        help="time from the start of a batch to that of the next (default: 5)")  # fmt: skip
    add("--max-records", type=number_from(1, int), default=100_000, metavar="N",
        help="records in a batch at most (default: 100000)")  # fmt: skip
    add("--metrics-port", type=port, metavar="PORT",
        help="serve /metrics on this port of 127.0.0.1 (default: none)")  # fmt: skip
    add("--score", action="store_true", help="score each transaction (train with score.py first)")
    add("--wait", type=number_from(0, float), default=60.0, metavar="SECONDS",
        help="how long to wait for Kafka and the store at the start (default: 60)")  # fmt: skip
    for flag, name, default in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        ("--topic", "TRANSACTIONS_TOPIC", "transactions"),
    ):
        add(flag, default=environ.get(name) or default, metavar=name.split("_")[-1],
            type=addresses if name.endswith("SERVERS") else topic_name,
            help=f"environment: {name} (default: {default})")  # fmt: skip
    options = parser.parse_args(argv)
    return Config(
        bootstrap_servers=options.bootstrap_servers,
        topic=options.topic,
        available_now=options.available_now,
        every_s=options.every,
        max_records=options.max_records,
        metrics_port=options.metrics_port,
        score=options.score,
        wait_s=options.wait,
    )


def configure_logging() -> None:
    """Log to stderr, in UTC; the libraries' own say nothing that is not said here."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    for library in ("kafka", "py4j"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def stop_on_signals(stop: threading.Event) -> None:
    """Stop on Ctrl-C and `kill`."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())


def stop_with(parent: int, stop: threading.Event) -> None:
    """Stop when spark-submit, which has started this process, has ended: `kill` reaches only it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    stop.set()


def main(argv: Sequence[str] | None = None) -> int:
    """Write transactions until done or stopped; return the exit code."""
    load_env()
    config = load_config(argv, os.environ)
    configure_logging()
    stop = threading.Event()
    stop_on_signals(stop)
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        threading.Thread(target=stop_with, args=(os.getppid(), stop), daemon=True).start()
    try:
        store = Store.from_env(os.environ)
    except StoreError as exc:
        log.error("%s", exc)
        return 2
    try:
        if not wait_for_servers(store, config, stop, time.monotonic() + config.wait_s):
            return 0 if stop.is_set() else 1
        check_checkpoint(store)
        if config.score:
            check_model(store)
        metrics = Metrics()
        if config.metrics_port:
            serve_metrics(config.metrics_port)
        spark, jvm = spark_session("transactions", store)
        stop_on_signals(stop)  # again: Spark has put its own in place of the first
        return run(spark, jvm, store, config, metrics, stop)
    except (SparkError, StoreError, OSError, ValueError) as exc:
        log.error("%s", exc)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
