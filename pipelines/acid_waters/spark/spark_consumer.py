#!/usr/bin/env python3
"""Integrate the lots of the topic into the data set: every good lot makes a version.

    python pipelines/acid_waters/spark/spark_consumer.py              # until Ctrl-C
    python pipelines/acid_waters/spark/spark_consumer.py --once       # what is there now
    python pipelines/acid_waters/spark/spark_consumer.py --reprocess last     # or a batch id

    WARNING spark_consumer: quarantined batch_id=LTM_Data_sample-000002 reason=short: 99 rows, ...
    INFO spark_consumer: published integrated=6 quarantined=2 rows=560 version=6

What is done with the lots of a Spark micro-batch, in this order:

    1. archived in HDFS, byte for byte     /acid-waters/raw/<attempt>
    2. checked                             spark/lots.py: size, checksum, schema, ranges, known site
    3. received                            PostgreSQL, a transaction
    4. rows of the good ones, in HDFS      /acid-waters/dataset/<attempt>
    5. joined and aggregated               site, method, year, water-body type
    6. published                           PostgreSQL, one transaction: versions, members, metrics

A version's rows are those of its lots (lot_id) in the files of 4. It is there when 6
has committed, and whole. Before that, files are written under a name of their own that no version
knows: killed at any moment, nothing is half there. Where to go on in the
topic is read from PostgreSQL, where 6 has written it: nothing is lost, nothing twice. A server that
is away is waited for, and everything begins again at 1.

--reprocess does 2 to 6 again with an archived lot, for instance when a site was missing: what
comes out takes the place of what was made of it before.

Environment (or .env at the project's root; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    WATER_TOPIC               default water-quality
    HDFS_URL                  default hdfs://localhost:8020/acid-waters
    POSTGRESQL_URL            default postgresql://water@localhost:5433/water

Exit codes: 0 done or stopped cleanly, 1 a server unreachable at the start, messages lost by Kafka,
lots that Spark fails at again and again, a lot refused by --reprocess, or Spark's Java process
killed; 2 wrong usage.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.hdfs.load_reference import read_reference  # noqa: E402  # works from
from pipelines.acid_waters.postgresql import versions  # noqa: E402  # any folder
from pipelines.acid_waters.settings import addresses, load_env  # noqa: E402
from pipelines.acid_waters.spark import lots as transform  # noqa: E402
from pipelines.acid_waters.spark.session import (  # noqa: E402
    SparkError,
    java,
    new_session,
    one_line,
)

log = logging.getLogger("spark_consumer")

# Another try may help: a server was away. (psycopg: the connection; Spark: HDFS or Kafka.)
AWAY = (
    psycopg.OperationalError, psycopg.InterfaceError, Py4JJavaError, PySparkException, KafkaError,
    versions.SettledError,
)  # fmt: skip
LONGEST_PAUSE_S = 10.0
SAME_FAILURES = 12  # so often the same at the same lots, all servers answering: it is the lots
YEARS_AHEAD = 10  # so long a consumer may run: methods still in use are known until then
REFUSED_SHOWN = 10  # of one micro-batch, in the log
RAW_COLUMNS = ("topic", "partition", "offset", "timestamp", "key", "value", "headers")


@dataclass(frozen=True)
class Config:
    """What the command line and the environment say; see load_config."""

    bootstrap_servers: str
    topic: str
    hdfs_url: str
    postgresql_url: str
    once: bool
    reprocess: str | None
    lots_per_batch: int
    accept_loss: bool
    wait_s: float


class LossError(Exception):
    """Kafka no longer has what should be read next."""


class Integration:
    """What turns archived lots into versions: the session, a connection, the reference tables."""

    def __init__(self, spark: SparkSession, conn: versions.Connection, hdfs_url: str) -> None:
        self.spark = spark
        self.conn = conn
        self.hdfs_url = hdfs_url
        today = datetime.now(UTC).date()
        sites = read_reference(spark, hdfs_url, "sites").collect()
        methods = read_reference(spark, hdfs_url, "methods").collect()
        names = transform.parameter_rows()
        site_keys, parameter_keys, method_keys = versions.dimension_keys(
            conn, sites, [(parameter, unit) for _, parameter, unit in names], methods
        )
        self.sites = spark.createDataFrame(
            [(key, row.SITE_ID, row.PROGRAM_ID) for key, row in zip(site_keys, sites, strict=True)],
            "site_key int, SITE_ID string, PROGRAM_ID string",
        )
        self.parameters = spark.createDataFrame(
            [(key, *row[:2]) for key, row in zip(parameter_keys, names, strict=True)],
            "parameter_key int, measure string, PARAMETER string",
        )
        keyed = spark.createDataFrame(
            [(key, *row) for key, row in zip(method_keys, methods, strict=True)],
            "method_key int, PROGRAM_ID string, PARAMETER string, START_YEAR int, END_YEAR int, "
            "METHOD string, METHOD_DESCRIPTION string",
        )
        self.methods = transform.choose_methods(keyed, today.year + YEARS_AHEAD).cache()

    def archive(self, messages: DataFrame) -> str:
        """Write Kafka messages into HDFS, byte for byte; return the new folder."""
        folder = f"raw/{new_name()}"
        messages.select(*RAW_COLUMNS).coalesce(1).write.parquet(f"{self.hdfs_url}/{folder}")
        return folder

    def integrate(self, raw_path: str, condition: str = "true", attempt: int = 0) -> list[Any]:
        """Check, store and publish archived lots; return what became of each, in order.

        Args:
            raw_path: folder of the archive.
            condition: which of its messages, in SQL.
            attempt: 0 from Kafka, more when they are processed again.
        """
        messages = self.spark.read.parquet(f"{self.hdfs_url}/{raw_path}").where(condition)
        lots = transform.read_lots(messages)
        samples = transform.read_samples(lots)
        today = datetime.now(UTC).date()
        checked = transform.check(lots, samples, self.sites, today)
        found = checked.orderBy("sent_at_ms", *transform.LOT).collect()
        if not found:
            return []
        topic = messages.select("topic").first()["topic"]  # type: ignore[index, unused-ignore]
        common = {"topic": topic, "attempt": attempt, "raw_path": raw_path}
        received = [{**row.asDict(), **common, "sent_at": moment(row.sent_at_ms)} for row in found]
        ids = versions.receive(self.conn, received)
        good = {
            lot_id: (row["partition"], row["offset"])
            for lot_id, row in zip(ids, found, strict=True)
            if row.reason is None
        }
        folder = f"dataset/{new_name()}"
        facts = self.store(samples, good, folder) if good else {}
        verdicts = [
            versions.Verdict(lot_id, row.reason, folder)
            for lot_id, row in zip(ids, found, strict=True)
        ]
        return versions.publish(self.conn, verdicts, facts)

    def store(
        self, samples: DataFrame, good: Mapping[int, tuple[int, int]], folder: str
    ) -> dict[str, list[Any]]:
        """Write the rows of good lots into a file in HDFS; return the facts of what is in it."""
        ids = [(lot_id, *place) for lot_id, place in good.items()]
        named = self.spark.createDataFrame(ids, "lot_id long, partition int, offset long")
        rows = transform.typed(samples.join(named, transform.LOT)).drop(*transform.LOT)
        rows = rows.coalesce(1).sortWithinPartitions("lot_id", "row")
        path = f"{self.hdfs_url}/{folder}"
        rows.write.parquet(path)
        stored = self.spark.read.schema(rows.schema).parquet(path).cache()
        values = transform.measures(stored, self.sites, self.parameters, self.methods)
        try:
            return {
                "fact_measure": transform.measure_facts(values).collect(),
                "fact_sample": transform.sample_facts(stored, self.sites).collect(),
            }
        finally:
            stored.unpersist()

    def reprocess(self, target: str) -> list[Any]:
        """Process an archived lot again: "last" for the last good one, else a batch id.

        Raises:
            VersionError: there is none.
        """
        lot = versions.archived_lot(self.conn, None if target == "last" else target)
        place = f"partition = {lot.partition} AND offset = {lot.offset}"
        return self.integrate(lot.raw_path, place, lot.next_attempt)


class Stream:
    """The streaming query: it gives each micro-batch of the topic to an Integration."""

    def __init__(self, config: Config, integration: Integration) -> None:
        self.config = config
        self.integration = integration
        self.failure: Exception | None = None
        self._one_at_a_time = threading.Lock()
        self._closed = False

    def run(self, stop: threading.Event, answered: Callable[[str], None]) -> None:
        """Consume until stopped, or with --once until nothing is left.

        A micro-batch in hand is finished first. All servers have answered when the query starts:
        answered is then told where.

        Raises:
            LossError: Kafka has deleted what should be read next.
            Exception: one of AWAY.
        """
        offsets = starting_offsets(self.config, self.integration.conn)
        query = self._start(offsets)
        answered(offsets)
        try:
            while query.isActive and not stop.wait(0.2):
                pass
            if error := self.failure or query.exception():
                raise error
        finally:
            with self._one_at_a_time:  # one in hand is finished first; none is begun after it
                self._closed = True
            query.stop()  # without the lock: it waits for a micro-batch that waits for the lock

    def _start(self, offsets: str) -> Any:
        # No checkpoint of Spark's: where to begin is in PostgreSQL, with what was made of the lots.
        config = self.config
        messages = (
            self.integration.spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", config.bootstrap_servers)
            .option("kafka.isolation.level", "read_committed")  # not what was taken back
            .option("subscribe", config.topic)
            .option("startingOffsets", offsets)
            .option("maxOffsetsPerTrigger", config.lots_per_batch)
            .option("includeHeaders", "true")
            .load()
        )
        writer = messages.writeStream.foreachBatch(self._micro_batch)
        if config.once:
            return writer.trigger(availableNow=True).start()
        return writer.trigger(processingTime="1 second").start()

    def _micro_batch(self, messages: DataFrame, _number: int) -> None:
        with self._one_at_a_time:
            if self._closed:  # nothing is noted of these lots: they are read again
                return
            try:
                report(self.integration.integrate(self.integration.archive(messages)))
            except Exception as exc:
                self.failure = exc  # what Spark makes of it is a page of two languages' traces
                raise


def starting_offsets(config: Config, conn: versions.Connection) -> str:
    """Return where to begin, as Spark wants it: after what PostgreSQL has settled.

    Raises:
        LossError: the topic does not hold it, or no longer.
        KafkaError: Kafka does not answer, or does not have the topic yet.
    """
    settled = versions.next_offsets(conn, config.topic)
    consumer = KafkaConsumer(
        bootstrap_servers=config.bootstrap_servers.split(","),
        isolation_level="read_committed",
        api_version_auto_timeout_ms=5000,
        allow_auto_create_topics=False,
    )
    with closing(consumer):
        numbers = consumer.partitions_for_topic(config.topic)
        if not numbers:
            raise KafkaError(f"no topic {config.topic} yet: the producer makes it")
        partitions = [TopicPartition(config.topic, number) for number in sorted(numbers)]
        first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    # With more messages than the old one had, only its id gives it away. It is all zeros where
    # Kafka gives none, and for a topic that was just made.
    current_id = topic_id(config)
    if current_id.strip("0-") and not versions.note_topic(conn, config.topic, current_id):
        raise LossError(
            f"{config.topic} was deleted and made anew. Give it another name (WATER_TOPIC)"
        )
    begin = {}
    for partition in partitions:
        number = partition.partition
        wanted = settled.get(number, 0)
        if wanted > end[partition]:
            raise LossError(
                f"{config.topic} was made anew: partition {number} ends at {end[partition]}, "
                f"{wanted} were read. Give it another name (WATER_TOPIC)"
            )
        if wanted < first[partition] and not config.accept_loss:
            raise LossError(
                f"Kafka has deleted unread lots: partition {number}, offsets {wanted} to "
                f"{first[partition] - 1}. Go on without: --accept-loss, and send them again"
            )
        begin[str(number)] = max(wanted, first[partition])
    return json.dumps({config.topic: begin})


def topic_id(config: Config) -> str:
    """Return the id that Kafka has given the topic, asked by Java: kafka-python 2 does not know it.

    Raises:
        Py4JJavaError: Kafka does not answer.
    """
    settings = {"bootstrap.servers": config.bootstrap_servers, "default.api.timeout.ms": "10000",
                "request.timeout.ms": "5000"}  # fmt: skip
    admin = java().jvm.org.apache.kafka.clients.admin.Admin.create(settings)
    try:
        found = admin.describeTopics([config.topic]).allTopicNames().get()[config.topic].topicId()
    finally:
        admin.close()
    halves = (found.getMostSignificantBits(), found.getLeastSignificantBits())
    return str(UUID(bytes=b"".join(half.to_bytes(8, "big", signed=True) for half in halves)))


def moment(milliseconds: int) -> datetime:
    """Return a time that Kafka has given.

    >>> moment(1_500).isoformat()
    '1970-01-01T00:00:01.500000+00:00'
    """
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


def new_name() -> str:
    """Return a folder's name that nobody has used: names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:12]}"


def report(events: Sequence[Any]) -> None:
    """Log what was published."""
    integrated = [event for event in events if event.state == "integrated"]
    refused = [event for event in events if event.state == "quarantined"]
    for event in refused[:REFUSED_SHOWN]:
        log.warning("quarantined batch_id=%s reason=%s", event.batch_id, event.reason)
    if len(refused) > REFUSED_SHOWN:
        log.warning("and %d more: versions.py list", len(refused) - REFUSED_SHOWN)
    log.info(
        "published integrated=%d quarantined=%d rows=%d version=%s",
        len(integrated), len(refused), sum(event.size for event in integrated),
        integrated[-1].version if integrated else "-",
    )  # fmt: skip


def patiently(
    config: Config, stop: threading.Event, work: Callable[[Callable[[str], None]], int]
) -> int:
    """Do work again and again while servers are away; return its exit code, 1 when given up.

    Args:
        config: how long to be patient at the start.
        stop: ends the patience.
        work: calls its argument, with where in the topic it begins, once all servers have answered.
            Until then patience ends after config.wait_s seconds; afterwards only when the same
            fails at the same place SAME_FAILURES times in a row.
    """
    deadline = time.monotonic() + config.wait_s
    pause_s = 1.0
    begins = place = ""  # where this try begins, "" before all have answered; and the one before
    failures: list[str] = []  # at the place

    def answered(offsets: str) -> None:
        nonlocal deadline, pause_s, begins, place
        deadline, begins = float("inf"), offsets
        if offsets != place:  # there was progress
            place, pause_s = offsets, 1.0
            failures.clear()

    while True:
        begins = ""
        try:
            return work(answered)
        except AWAY as exc:
            if stop.is_set():
                return 0
            if not begins or failures[-1:] != [one_line(exc)]:
                failures.clear()
            if begins:
                failures.append(one_line(exc))
            if len(failures) >= SAME_FAILURES:
                log.error(
                    "given up: all servers answer, and the lots from %s on (partition: offset) "
                    "failed %d times: %s", place, len(failures), failures[-1],
                )  # fmt: skip
                return 1
            if time.monotonic() > deadline:
                log.error("given up after %.0f s: %s: are the servers started?", config.wait_s,
                          one_line(exc))  # fmt: skip
                return 1
            log.warning("trying again in %.0f s: %s", pause_s, one_line(exc))
        if stop.wait(pause_s):
            return 0
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def work_once(
    config: Config, spark: SparkSession, stop: threading.Event, answered: Callable[[str], None]
) -> int:
    """Connect and consume, or reprocess one lot; return the exit code."""
    with versions.connect(config.postgresql_url) as conn:
        integration = Integration(spark, conn, config.hdfs_url)
        if config.reprocess:
            events = integration.reprocess(config.reprocess)
            report(events)
            return 0 if all(event.state == "integrated" for event in events) else 1
        stream = Stream(config, integration)
        log.info("consuming topic=%s at %s into %s", config.topic, config.bootstrap_servers,
                 config.hdfs_url)  # fmt: skip
        stream.run(stop, answered)
    return 0


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    for flag, name, default, kind in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", addresses),
        ("--topic", "WATER_TOPIC", "water-quality", str),
        ("--hdfs-url", "HDFS_URL", "hdfs://localhost:8020/acid-waters", str),
        ("--postgresql-url", "POSTGRESQL_URL", versions.DEFAULT_URL, str),
    ):
        add(flag, default=environ.get(name) or default, type=kind, metavar=name.split("_")[-1],
            help=f"environment: {name} (default: {default})")  # fmt: skip
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--once", action="store_true", help="integrate what is there now, and end")
    choice.add_argument(
        "--reprocess",
        metavar="BATCH_ID",
        help='process an archived lot again; "last": the last good',
    )
    add("--lots-per-batch", type=positive, default=100, metavar="N",
        help="at most so many lots in a micro-batch (default: 100)")  # fmt: skip
    add("--accept-loss", action="store_true", help="go on where Kafka has deleted unread lots")
    add("--wait", type=positive, default=60, metavar="SECONDS",
        help="how long to wait for the servers at the start (default: 60)")  # fmt: skip
    options = parser.parse_args(argv)
    return Config(
        bootstrap_servers=options.bootstrap_servers,
        topic=options.topic,
        hdfs_url=options.hdfs_url.rstrip("/"),
        postgresql_url=options.postgresql_url,
        once=options.once,
        reprocess=options.reprocess,
        lots_per_batch=options.lots_per_batch,
        accept_loss=options.accept_loss,
        wait_s=options.wait,
    )


def positive(text: str) -> int:
    """Return a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def configure_logging() -> None:
    """Log to stderr, in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # What the libraries log, traces included, is not for the user: what matters is said here.
    logging.root.handlers[0].addFilter(logging.Filter(log.name))


def stop_on_signals(stop: threading.Event) -> None:
    """Let Ctrl-C and SIGTERM stop what is done, cleanly."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())


def main(argv: Sequence[str] | None = None) -> int:
    """Consume until done or stopped; return the exit code (see the module docstring)."""
    load_env()
    config = load_config(argv, os.environ)
    configure_logging()
    stop = threading.Event()
    try:
        # Before Spark starts, for Java would go on alone if that was cut short; and after, for it
        # sets its own.
        stop_on_signals(stop)
        spark = new_session("spark_consumer")
        stop_on_signals(stop)
        code = (
            0
            if stop.is_set()
            else patiently(config, stop, lambda answered: work_once(config, spark, stop, answered))
        )
    except (SparkError, LossError, versions.VersionError, psycopg.Error) as exc:
        log.error("%s", one_line(exc))
        return 1
    except KeyboardInterrupt:  # in between: there is nothing to finish
        log.info("stopped")
        return 0
    except (Py4JError, ConnectionError) as exc:  # those of AWAY are dealt with
        log.error("Spark's Java process has ended, start again: %s", one_line(exc))
        return 1
    spark.stop()
    log.info("stopped")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
