#!/usr/bin/env python3
"""Write the transactions of a Kafka topic as Parquet into an S3 bucket: none lost, none twice.

    spark-submit consumer_spark.py        # until Ctrl-C
    python consumer_spark.py --once       # what is there, then end

What happens to a record:

    Kafka -> parse -> judge --+-- valid -> in euros, in UTC and in Paris' time -> output/
                              +-- wrong -> its bytes, its place in Kafka, the reason -> rejects/

A batch is a stretch of offsets that Spark has noted in checkpoint/ before it is worked on. Its
files lie in folders of its number; when a batch is done again, after a crash, what it had left
there, and in _temporary, is deleted first. So every reader finds each row once, not only one that
knows Spark's log.

rules.py says what is right, and where the rules are from.

A line for each batch, and one at the end. read is what Kafka gave; a batch of which it is not the
sum of the two that follow is not written:

    batch id=12 read=1000 written=990 rejected=10 seconds=2.1 reasons=bad_timestamp:3,not_json:7

A topic or a bucket that is missing at the start is made. One consumer at a time may work on a
checkpoint: a second one on this machine is refused after half a minute, in which the Java of one
that was killed has ended; one on another machine ends as soon as Spark finds a batch of the other's
in the checkpoint.

With --metrics-port PORT, http://127.0.0.1:PORT/metrics says the same to Prometheus.

Environment (or .env in this folder, or in the project's; a flag wins over all), and those of
store.py and spark_session.py:
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    TRANSACTIONS_TOPIC        default transactions

Exit codes: 0 done or stopped cleanly, 1 a server unreachable at the start, another consumer at
work, records that are deleted or cannot be read, or a batch that fails again and again, 2 wrong
usage or configuration.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, TextIO

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from pipelines.common import (  # noqa: E402
    configure_logging,
    load_env,
    number,
    stop_on_signals,
)
from pipelines.spark import stop_with_submit  # noqa: E402
from pipelines.transactions.checkpoint import (  # noqa: E402
    check_checkpoint,
    check_topic,
    lock,
)
from pipelines.transactions.metrics import Metrics, serve_metrics  # noqa: E402
from pipelines.transactions.servers import MAX_WAIT_S, Servers  # noqa: E402
from pipelines.transactions.settings import (  # noqa: E402
    add_kafka_options,
    add_wait_option,
    described_parser,
    port,
)
from pipelines.transactions.spark_session import (  # noqa: E402
    SPARK_LOG,
    last_cause,
    spark_session,
)
from pipelines.transactions.store import (  # noqa: E402
    CHECKPOINT,
    SettingError,
    Store,
)
from pipelines.transactions.writer import Writer, check_model  # noqa: E402
from stack.console import CommandError, command  # noqa: E402

log = logging.getLogger("consumer_spark")
CLIENT_TIMEOUTS_MS = {"default.api.timeout.ms": "20000", "request.timeout.ms": "10000"}
MAX_FAILURES = 5  # of one batch in a row, with both servers there
# Errors of Spark that another attempt does not mend: words of the message, and what they mean.
FATAL_ERRORS = {
    "data may have been lost": "Kafka has deleted records before they were read",
    # HDFSMetadataLog and MicroBatchExecution say so when a file of the checkpoint is there already.
    "Multiple streaming": f"another consumer works on the same {CHECKPOINT}/",
    # Kafka's client says so of a batch of records that is damaged, or in a codec that it lacks.
    "seek past the record": "Kafka holds a record that cannot be read",
    # Spark takes a record's time in milliseconds to microseconds (see servers.BROKER_TIMES).
    "long overflow": "Kafka holds a record whose time is too large for Spark",
}


@dataclass(frozen=True)
class Config:
    """One run of the consumer, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    once: bool
    every: float  # s
    batch: int  # records
    metrics_port: int | None
    score: bool
    wait: float  # s


def start_query(
    spark: SparkSession, servers: Servers, config: Config, writer: Writer
) -> StreamingQuery:
    """Start the stream where its checkpoint says."""
    records = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", servers.kafka)
        .option("subscribe", servers.topic)
        .option("startingOffsets", "earliest")  # the first time only; then the checkpoint's
        .option("maxOffsetsPerTrigger", config.batch)
        .option("kafka.isolation.level", "read_committed")  # not what a transaction took back
        .option("fetchOffset.numRetries", 1)  # `run` tries again, and says so
        .options(**{f"kafka.{name}": value for name, value in CLIENT_TIMEOUTS_MS.items()})
        .load()
        .selectExpr("value", "partition AS kafka_partition", "offset AS kafka_offset")
    )
    writer.may_be_replay = True
    stream = records.writeStream.foreachBatch(writer)
    stream = stream.option("checkpointLocation", servers.store.url(CHECKPOINT))
    if config.once:
        return stream.trigger(availableNow=True).start()
    return stream.trigger(processingTime=f"{round(1000 * config.every)} milliseconds").start()


def run(
    spark: SparkSession, java: Any, servers: Servers, config: Config, metrics: Metrics,
    stop: threading.Event,
) -> int:  # fmt: skip
    """Run the stream until it is done or told to stop, through outages; return the exit code.

    Args:
        spark: see `spark_session`.
        java: see `spark_session`.
        servers: what is read and written.
        config: how.
        metrics: are counted up.
        stop: is set when the process is told to end.

    Raises:
        StoreError: the stored score is not whole, or the topic is not the checkpoint's.
    """
    try:
        writer = Writer(spark, servers.store, metrics, config.score)
        failures, progress = 0, 0
        while not stop.is_set():
            try:
                check_topic(java.jvm, servers)
                query = start_query(spark, servers, config, writer)
                where = (servers.topic, servers.kafka, servers.store.url(""))
                log.info("reading topic=%s at %s into %s", *where)
                watch(query, metrics, stop)
                break
            except (PySparkException, Py4JError, OSError) as exc:
                if stop.is_set():
                    break
                if why := fatal(exc, java):
                    log.error("%s", why)
                    return 1
                if metrics.counts["read"] != progress:
                    failures, progress = 0, metrics.counts["read"]
                metrics.failures.inc()
                log.warning("batch failed, nothing is lost, trying again: %s", last_cause(exc))
                if servers.check():
                    servers.wait(stop)
                    continue  # an outage is not the batch's fault: it is not counted
                failures += 1
                if failures >= MAX_FAILURES:
                    log.error("gave up after %d failures in a row: see %s", failures, SPARK_LOG)
                    return 1
                stop.wait(min(2.0**failures, MAX_WAIT_S))
        return 0
    finally:  # however it ends
        counts = [metrics.counts[name] for name in ("read", "written", "rejected")]
        log.info("stopped read=%d written=%d rejected=%d", *counts)


def fatal(exc: Exception, java: Any) -> str:
    """Return why another attempt would be of no use, "" when it may be."""
    with suppress(TimeoutExpired):  # a process that was killed has ended within this second
        java.proc.wait(1)
        return f"Spark's Java has ended: killed, or out of memory? See {SPARK_LOG}"
    for words, meaning in FATAL_ERRORS.items():
        if words in str(exc):
            return f"{meaning}: {last_cause(exc)}"
    return ""


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


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("--once", action="store_true", help="end when all that is there now is written")
    add("--every", type=number(0.001, 86_400), default=5.0, metavar="SECONDS",
        help="time from the start of a batch to that of the next (default: 5)")  # fmt: skip
    add("--batch", type=number(1, 1e12, int), default=100_000, metavar="N",
        help="records in a batch at most (default: 100000)")  # fmt: skip
    add("--metrics-port", type=port, metavar="PORT",
        help="serve /metrics on this port of 127.0.0.1 (default: none)")  # fmt: skip
    add("--score", action="store_true", help="score each transaction (train with score.py first)")
    add_wait_option(parser, "Kafka and the store")
    add_kafka_options(parser, environ)
    return Config(**vars(parser.parse_args(argv)))


def consume(servers: Servers, config: Config, held: TextIO, stop: threading.Event) -> int:
    """Wait for the servers and run the stream; return the exit code.

    Raises:
        CommandError, OSError, ValueError: it cannot begin.
    """
    if not servers.wait(stop, time.monotonic() + config.wait, make=True):
        return 0 if stop.is_set() else 1
    check_checkpoint(servers.store)
    if config.score:
        check_model(servers.store)
    metrics = Metrics()
    if config.metrics_port:
        serve_metrics(config.metrics_port)
    spark, java = spark_session("transactions", servers.store, [held])
    stop_on_signals(stop)  # again: Spark has put its own in place of the first
    return run(spark, java, servers, config, metrics, stop)


@command("consumer_spark", {SettingError: 2})
def main(argv: Sequence[str] | None = None) -> int:
    """Write transactions until done or stopped; return the exit code."""
    stop = threading.Event()
    stop_with_submit(stop)
    load_env(HERE)
    config = load_config(argv, os.environ)
    servers = Servers(config.bootstrap_servers, config.topic, Store.from_env(os.environ))
    configure_logging("consumer_spark")
    stop_on_signals(stop)
    try:
        with lock(servers.store, stop) as held:
            return consume(servers, config, held, stop) if held else 0
    except (CommandError, OSError, ValueError, PySparkException, Py4JError) as exc:
        if stop.is_set():  # Java, or who fetches its jars, was told to stop as well
            return 0
        is_spark = isinstance(exc, PySparkException | Py4JError)
        log.error("%s", f"Spark has failed: {last_cause(exc)}" if is_spark else exc)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
