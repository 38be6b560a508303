#!/usr/bin/env python3
"""Integrate the lots of the topic into the data set: every good lot makes a version.

    python spark_consumer.py                    # until Ctrl-C
    python spark_consumer.py --once             # what is there now
    python spark_consumer.py --reprocess last   # or a batch id

    WARNING spark_consumer: rejected batch_id=LTM_Data_sample-000002 reason=short: 99 rows, ...
    INFO spark_consumer: published integrated=6 rejected=2 rows=560 version=6

What is done with the lots of a Spark micro-batch, in this order:

    1. archived in HDFS, byte for byte     /acid-waters/raw/<attempt>
    2. checked                             spark/lots.py: size, checksum, schema, ranges, known site
    3. received                            PostgreSQL, a transaction
    4. rows of the good ones, in HDFS      /acid-waters/dataset/<attempt>
    5. joined and aggregated               site, method, year, water-body type
    6. published                           PostgreSQL, one transaction: versions, members, metrics

A version's rows are those of its lots (lot_id) in the files of 4. It is there when 6 has committed,
and whole. Before that, files are written under a name of their own that no version knows: killed at
any moment, nothing is half there. Where to go on in the topic is read from PostgreSQL, where 6 has
written it: nothing is lost, nothing twice. A server that is away is waited for, and everything
begins again at 1. On a terminal, Spark shows how far it is.

--reprocess does 2 to 6 again with an archived lot, for instance when a site was missing: what
comes out takes the place of what was made of it before.

spark-submit works too; what it is told (--master, --conf, --properties-file, --jars) counts, and
when it is killed, the consumer stops.

One consumer at a time integrates a topic into a database: another one is refused.

Environment (or .env in the pipeline's folder, then in the project's; an option wins over all):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    WATER_TOPIC               default water-quality
    HDFS_URL                  default hdfs://localhost:8020/acid-waters
    POSTGRESQL_URL            default postgresql://water@localhost:5433/water

Exit codes: 0 done or stopped cleanly, 1 a server unreachable at the start, messages lost by Kafka
or that cannot be decoded, lots that Spark fails at again and again, a lot rejected by --reprocess,
another consumer at work, Spark's Java process killed, or ended by force 2 minutes after a signal,
when a server holds it up; 2 wrong usage.
"""

import argparse
import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
from kafka.errors import KafkaError
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.postgresql.database import connect, note_positions  # noqa: E402
from pipelines.acid_waters.postgresql.history import SettledError, VersionError  # noqa: E402
from pipelines.acid_waters.settings import HERE, add_wait, command_line  # noqa: E402
from pipelines.acid_waters.spark.integration import Integration  # noqa: E402
from pipelines.acid_waters.spark.offsets import LossError, starting_offsets  # noqa: E402
from pipelines.acid_waters.spark.spark_session import (  # noqa: E402
    CACHE,
    SparkError,
    new_session,
    one_line,
)
from pipelines.acid_waters.tables import ID  # noqa: E402
from pipelines.common import (  # noqa: E402
    configure_logging,
    end_by_force,
    load_env,
    number,
    only_copy,
    stop_on_signals,
    text,
)
from pipelines.spark import stop_with_submit  # noqa: E402

log = logging.getLogger("spark_consumer")

# Another try may help: a server was away. (psycopg: the connection; Spark: HDFS or Kafka.)
AWAY = (
    psycopg.OperationalError, psycopg.InterfaceError, Py4JJavaError, PySparkException, KafkaError,
)  # fmt: skip
# Another try would not help.
FINAL = (SparkError, LossError, SettledError, VersionError, psycopg.Error, OSError)
# What Kafka's client says in Java of messages that it has fetched and cannot read.
UNDECODABLE = (
    "CorruptRecordException",
    "fetching the next record",
    "is corrupt",
    "is invalid, cause",
)
LONGEST_PAUSE_S = 10.0
STOP_S = 120.0  # after a signal; a micro-batch in hand needs some seconds, many lots a minute
SAME_FAILURES = 12  # so often the same at the same lots, all servers answering: it is the lots
REJECTS_SHOWN = 10  # of one micro-batch, in the log


class Stream:
    """The streaming query: it gives each micro-batch of the topic to an Integration."""

    def __init__(self, config: argparse.Namespace, integration: Integration) -> None:
        self.config = config
        self.integration = integration
        self.failure: Exception | None = None
        self._one_at_a_time = threading.Lock()
        self._closed = False
        self._noted: Any = None

    def run(self, stop: threading.Event, answered: Callable[[str], None]) -> None:
        """Consume until stopped, or with --once until nothing is left.

        A micro-batch in hand is finished first. All servers have answered when the query starts:
        answered is then told where.

        Raises:
            LossError: Kafka has deleted what should be read next, or it cannot be decoded.
            Exception: one of AWAY.
        """
        config = self.config
        offsets = starting_offsets(
            self.integration.conn, config.bootstrap_servers, config.topic, config.accept_loss
        )
        query = self._start(offsets)
        answered(offsets)
        try:
            is_active = True
            while is_active and not stop.wait(0.2):
                is_active = query.isActive  # asked first: its last micro-batch is noted, too
                self._note_positions(query)
            if error := self.failure or query.exception():
                if any(words in str(error) for words in UNDECODABLE):
                    raise LossError(
                        f"messages from {offsets} on (partition: offset) cannot be decoded: "
                        f"{one_line(error)}"
                    ) from error
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
            .option("maxOffsetsPerTrigger", config.batch)
            .option("includeHeaders", "true")
            .load()
        )
        writer = messages.writeStream.foreachBatch(self.micro_batch)
        if config.once:
            return writer.trigger(availableNow=True).start()
        pause = f"{round(config.every * 1000)} milliseconds"
        return writer.trigger(processingTime=pause).start()

    def _note_positions(self, query: Any) -> None:
        """Note how far the topic is read: transactions' markers leave no other trace.

        A micro-batch that has failed is not in the query's progress.
        """
        with self._one_at_a_time:  # the connection is in no transaction
            sources = (query.lastProgress or {}).get("sources") or [{}]
            if (ends := sources[0].get("endOffset")) and ends != self._noted:
                note_positions(self.integration.conn, ends)
                self._noted = ends

    def micro_batch(self, messages: DataFrame, _number: int) -> None:
        """Integrate a micro-batch, unless the stream was closed meanwhile."""
        with self._one_at_a_time:
            if self._closed:  # nothing is noted of these lots: they are read again
                return
            try:
                if not messages.isEmpty():  # as is a query's first, when nothing is new
                    folder = self.integration.archive(messages)
                    report(self.integration.integrate(folder, self.config.topic))
            except Exception as exc:
                self.failure = exc  # what Spark makes of it is a page of two languages' traces
                raise


def report(events: Sequence[Any]) -> None:
    """Log what was published."""
    integrated = [event for event in events if event.state == "integrated"]
    rejects = [event for event in events if event.state == "rejected"]
    for event in rejects[:REJECTS_SHOWN]:
        log.warning("rejected batch_id=%s reason=%s", event.batch_id, event.reason)
    if len(rejects) > REJECTS_SHOWN:
        log.warning("and %d more: versions.py list", len(rejects) - REJECTS_SHOWN)
    log.info(
        "published integrated=%d rejected=%d rows=%d version=%s",
        len(integrated), len(rejects), sum(event.size for event in integrated),
        integrated[-1].version if integrated else "-",
    )  # fmt: skip


def patiently(
    wait_s: float, stop: threading.Event, work: Callable[[Callable[[str], None]], int]
) -> int:
    """Do work again and again while servers are away; return its exit code, 1 when given up.

    Args:
        wait_s: how long to be patient at the start.
        stop: ends the patience.
        work: calls its argument, with where in the topic it begins, once all servers have answered.
            Until then patience ends after wait_s seconds; afterwards only when the same
            fails at the same place SAME_FAILURES times in a row.
    """
    deadline = time.monotonic() + wait_s
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
                log.error("given up after %.0f s: %s: are the servers started?", wait_s,
                          one_line(exc))  # fmt: skip
                return 1
            log.warning("trying again in %.0f s: %s", pause_s, one_line(exc))
        if stop.wait(pause_s):
            return 0
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def work_once(
    config: argparse.Namespace,
    spark: SparkSession,
    stop: threading.Event,
    answered: Callable[[str], None],
) -> int:
    """Connect and consume, or reprocess one lot; return the exit code."""
    with connect(config.postgresql_url) as conn:
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


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the options, with the environment's values and the defaults; a bad one exits with 2.

    Returns:
        Namespace: bootstrap_servers, topic, hdfs_url, postgresql_url, reprocess (None or a batch id
        or "last"), once, batch (lots), every (seconds), accept_loss, wait (seconds).
    """
    parser = command_line(
        __doc__, environ, "--bootstrap-servers", "--topic", "--hdfs-url", "--postgresql-url"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--once", action="store_true", help="integrate what is there now, and end")
    choice.add_argument(
        "--reprocess", type=text(ID, 'a batch id, or "last"'), metavar="BATCH_ID",
        help='process an archived lot again; "last": the last good one',
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=number(1, 1e6, int), default=100, metavar="N",
        help="at most so many lots in a micro-batch (default: 100)",
    )  # fmt: skip
    parser.add_argument(
        "--every", type=number(0.1, 86_400), default=1.0, metavar="SECONDS",
        help="from micro-batch to micro-batch (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--accept-loss", action="store_true", help="go on where Kafka has deleted unread lots"
    )
    add_wait(parser)
    config = parser.parse_args(argv)
    config.hdfs_url = config.hdfs_url.rstrip("/")
    return config


def lock_file(config: argparse.Namespace) -> Path:
    """Return the file whose lock a consumer holds: one for each topic and database."""
    state = f"{config.postgresql_url} {config.topic}"
    return CACHE / f"locks/{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def consume(config: argparse.Namespace, stop: threading.Event) -> int:
    """Start Spark and consume until done or stopped; return the exit code."""
    # Before Spark starts, for Java would go on alone if that was cut short; and after, for it sets
    # its own.
    stop_on_signals(stop)
    end_by_force(stop, STOP_S, log, "published")
    spark = new_session("spark_consumer")
    stop_on_signals(stop)
    if stop.is_set():
        code = 0
    else:
        code = patiently(
            config.wait, stop, lambda answered: work_once(config, spark, stop, answered)
        )
    spark.stop()
    log.info("stopped")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Consume alone, until done or stopped; return the exit code (see the module docstring)."""
    stop = threading.Event()
    stop_with_submit(stop)
    load_env(HERE)
    config = load_config(argv, os.environ)
    configure_logging(log.name)
    try:
        if config.reprocess:  # beside a consumer, too: it makes one version, under a lock
            return consume(config, stop)
        with only_copy(lock_file(config)) as lock:
            if lock is None:
                log.error("another consumer integrates %s into this database: stop it first",
                          config.topic)  # fmt: skip
                return 1
            return consume(config, stop)
    except KeyboardInterrupt:  # in between: there is nothing to finish
        log.info("stopped")
        return 0
    except (Py4JError, ConnectionError) as exc:  # those of AWAY are dealt with
        log.error("Spark's Java process has ended, start again: %s", one_line(exc))
        return 1
    except FINAL as exc:
        log.error("%s", one_line(exc))
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
