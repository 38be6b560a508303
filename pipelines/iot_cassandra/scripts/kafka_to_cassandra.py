#!/usr/bin/env python3
"""Write the readings of a Kafka topic into Cassandra: none lost, none twice, none hidden.

    python pipelines/iot_cassandra/scripts/kafka_to_cassandra.py                      # until Ctrl-C
    python pipelines/iot_cassandra/scripts/kafka_to_cassandra.py --exit-when-idle 5

What happens to a message:

    poll -> validate -> INSERT into each table -> all acknowledged -> commit its offset
                |
                +-- malformed -> dead letter: topic <topic>.dead-letter, with the original bytes,
                                 the reason, and the topic, partition and offset it came from

A row's key is its sensor and its time, so a message that is read again changes nothing. Of two
readings of one sensor and one millisecond, the one with the later time in Kafka stays, in whatever
order they are read; in the same millisecond of Kafka, the one whose offset modulo 1000 is higher
(999 wins over 1000). That is a row's write time, in microseconds: Kafka's milliseconds, then the
offset's last three digits. Offsets are committed only when all before them is acknowledged by
Cassandra or by the dead-letter topic. While one of them is away the writer waits, and holds no more
than --batch messages.

A progress line, every 5 seconds (consumed is always the sum of the three that follow), or what it
waits for:

    progress consumed=5000 written=4996 dead_lettered=2 in_flight=2 rate_hz=1000
    waiting for partitions of topic=iotdata; those of a writer that was killed are free after 20 s

Environment (or .env in the project's folder; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    IOT_TOPIC                 default iotdata
    IOT_GROUP_ID              default iot-cassandra-writer
    CASSANDRA_HOSTS           default localhost:9042
    CASSANDRA_KEYSPACE        default iot_keyspace

Exit codes: 0 done or stopped cleanly, 1 a server unreachable, a reading unaccounted for or messages
that cannot be decoded, 2 wrong usage or configuration.
"""

import json
import logging
import math
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from cassandra import ConsistencyLevel, DriverException, InvalidRequest
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import ConstantReconnectionPolicy, FallthroughRetryPolicy
from cassandra.protocol import ErrorMessage, SyntaxException
from cassandra.query import PreparedStatement
from cassandra.util import Date
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError
from kafka.structs import OffsetAndMetadata, TopicPartition
from msgspec import Meta

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.iot_cassandra.scripts.options import (  # noqa: E402  # after the path
    SHARED,
    add_shared,
    addresses,
    at_least,
    load_env,
    parser_of,
)

log = logging.getLogger("kafka_to_cassandra")
T = TypeVar("T")

INSERTS = (
    "INSERT INTO {keyspace}.sensor_data (sensor_id, timestamp, temperature, humidity) "
    "VALUES (:sensor_id, :timestamp, :temperature, :humidity) USING TIMESTAMP :write_time",
    "INSERT INTO {keyspace}.sensor_data_by_day (sensor_id, day, timestamp, temperature, humidity) "
    "VALUES (:sensor_id, :day, :timestamp, :temperature, :humidity) USING TIMESTAMP :write_time",
)
EPOCH, MS_PER_DAY = datetime(1970, 1, 1, tzinfo=UTC), 86_400_000
# The years 1900 to 9999. Before, clocks and calendars differ from program to program; Spark's do.
FIRST_MS, LAST_MS = -2_208_988_800_000, 253_402_300_799_999
REQUEST_TIMEOUT_S = 5.0  # Cassandra itself gives a write up after 2 s
RETRY_BASE_S, RETRY_CAP_S = 0.2, 5.0
SESSION_TIMEOUT_MS = 20_000  # a killed member's partitions are free after that
DEAD_LETTER_BYTES = 100_000_000  # with its headers it is larger than what could be read
LARGEST_ANSWER = 2**31 - 1  # bytes: Kafka's own limit (kafka-python's is 1 MB, for its first fetch)
SET_BY_USER = 1  # for this topic: where a setting comes from, in Kafka's protocol
KAFKA_TIMEOUT_MS = 5000
PROGRESS_S = 5.0


@dataclass(frozen=True)
class Config:
    """One run of the writer, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    group_id: str
    hosts: str
    keyspace: str
    partitions: int
    batch: int
    exit_when_idle_s: float
    wait_s: float

    @property
    def dead_letter_topic(self) -> str:
        """Topic for the messages that are no readings."""
        return f"{self.topic}.dead-letter"


class InvalidReadingError(ValueError):
    """A message that is not a reading; the text says why."""


class WriterError(Exception):
    """What keeps the writer from starting or going on, in one line, and the exit code for it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


# What a message must be.


class Reading(msgspec.Struct, forbid_unknown_fields=True):
    """The four fields: what fits the columns, and what a working sensor can measure."""

    sensor_id: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]  # INT has 32 bits
    timestamp: str  # see epoch_ms
    temperature: Annotated[float, Meta(ge=-40, le=80)]  # degrees Celsius
    humidity: Annotated[float, Meta(ge=0, le=100)]  # %


DECODER = msgspec.json.Decoder(Reading)
QUOTES = 10  # around four names and one text; a field given twice adds to them
TIMESTAMP = re.compile(  # as Spark reads it: offsets up to 18 hours
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]((0\d|1[0-7]):[0-5]\d|18:00))", re.ASCII
)


def parse_reading(value: bytes | None) -> Reading:
    """Return the reading in a message.

    Raises:
        InvalidReadingError: it is not a JSON object in UTF-8 with exactly the four fields, each
            once, or a field has a wrong type or lies outside its range.
    """
    if not value:
        raise InvalidReadingError("empty message")
    try:
        reading = DECODER.decode(value)
    except UnicodeDecodeError as exc:
        raise InvalidReadingError("not UTF-8") from exc
    except msgspec.DecodeError as exc:
        raise InvalidReadingError(no_number(value) or str(exc)) from exc
    if value.count(b'"') != QUOTES:
        raise InvalidReadingError("a field is given twice")
    return reading


def no_number(value: bytes) -> str:
    """Return what many programs write and JSON does not have: NaN, Infinity; empty: not there.

    >>> no_number(b'{"temperature": NaN}'), no_number(b'{"temperature": 1')
    ('NaN is not a number', '')
    """
    found: list[str] = []
    with suppress(ValueError, RecursionError):
        json.loads(value, parse_constant=found.append)
    return f"{found[0]} is not a number" if found else ""


def epoch_ms(text: str) -> int:
    """Return an ISO 8601 time with its offset as milliseconds since 1970, cut, not rounded.

    Raises:
        InvalidReadingError: it is not such a time, or lies outside the years 1900 to 9999.

    >>> epoch_ms("1970-01-01T01:00:00.0079+01:00"), epoch_ms("1969-12-31T23:59:59.999Z")
    (7, -1)
    """
    if not TIMESTAMP.fullmatch(text):
        raise InvalidReadingError("timestamp is not an ISO 8601 time with its offset")
    try:
        time_ms = (datetime.fromisoformat(text).astimezone(UTC) - EPOCH) // timedelta(
            milliseconds=1
        )
    except (ValueError, OverflowError) as exc:
        raise InvalidReadingError(f"timestamp: {exc}") from exc
    if time_ms < FIRST_MS:
        raise InvalidReadingError("timestamp is before 1900")
    return time_ms


def row_of(message: Any) -> dict[str, Any]:
    """Return the values of a message's row, for both tables.

    Raises:
        InvalidReadingError: the message is not a reading, or has no write time.
    """
    reading = parse_reading(message.value)
    time_ms = epoch_ms(reading.timestamp)
    # Not clamped: one that claims the year 58000 would win over every later reading, for ever.
    if not 0 <= message.timestamp <= LAST_MS:
        raise InvalidReadingError(
            f"Kafka's time of the message, {message.timestamp}, is not in milliseconds since 1970"
        )
    return {
        "sensor_id": reading.sensor_id,
        "day": Date(time_ms // MS_PER_DAY),
        "timestamp": time_ms,
        "temperature": reading.temperature,
        "humidity": reading.humidity,
        "write_time": message.timestamp * 1000 + message.offset % 1000,  # microseconds
    }


def one_line(exc: Exception | None) -> str:
    """Return an exception's message in one line, not too long."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return f"{text[:297]}..." if len(text) > 300 else text


# Where messages go.

# Starts a row's or a dead letter's way, and returns what waits for the answer, or raises an error.
Delivery = Callable[[], Callable[[], Any]]


@dataclass
class Clients:
    """Cassandra's session with its prepared inserts, and the producer of dead letters."""

    session: Session
    inserts: Sequence[PreparedStatement]
    producer: KafkaProducer
    dead_letter_topic: str

    def plan(self, message: Any) -> tuple[str, list[Delivery]]:
        """Return what a message will be counted as, and what must be acknowledged before."""
        try:
            row = row_of(message)
        except InvalidReadingError as exc:
            return "dead_lettered", [partial(self.bury, message, f"invalid: {one_line(exc)}")]
        statements = [
            insert.bind({column.name: row[column.name] for column in insert.column_metadata})
            for insert in self.inserts
        ]
        return "written", [partial(self.write, statement) for statement in statements]

    def write(self, statement: Any) -> Callable[[], Any]:
        """Send a row to Cassandra."""
        wait: Callable[[], Any] = self.session.execute_async(statement).result
        return wait

    def bury(self, message: Any, reason: str) -> Callable[[], Any]:
        """Send a message to the dead-letter topic: its key and bytes, why, where it came from."""
        headers = {
            "reason": reason,
            "source.topic": message.topic,
            "source.partition": message.partition,
            "source.offset": message.offset,
            "source.timestamp": message.timestamp,  # epoch ms
        }
        future = self.producer.send(
            self.dead_letter_topic,
            key=message.key,
            value=message.value or b"",
            headers=[(name, str(value).encode()) for name, value in headers.items()],
        )
        return partial(future.get, timeout=4 * KAFKA_TIMEOUT_MS / 1000)  # it is given up before


# The loop: poll a batch, have all of it acknowledged, commit.


class Pipeline(ConsumerRebalanceListener):  # type: ignore[misc]
    """The way of the messages through one process, and the accounts of what became of them.

    Partitions come and go only during a poll, when all that was read before is settled. What could
    not be committed by then is read again by the next owner, and that changes no row.

    Attributes:
        has_joined: whether the group has given us our share of the partitions (perhaps none).
        settled: partition -> offset before which all is acknowledged: what should be read next.
        committed: partition -> the same, as far as Kafka knows it.
        in_flight: number of messages read that are not acknowledged yet.
    """

    def __init__(
        self, config: Config, clients: Clients, consumer: KafkaConsumer, stop: threading.Event
    ) -> None:
        self.config = config
        self.clients = clients
        self.consumer = consumer
        self.stop = stop
        self.has_joined = False
        self.settled: dict[TopicPartition, int] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.commit_refused = False
        self.totals: Counter[str] = Counter()
        self.in_flight = 0
        self.began = self.last_progress = self.last_busy = time.monotonic()

    def run(self) -> None:
        """Move messages until told to stop or idle for --exit-when-idle seconds.

        Raises:
            WriterError: messages cannot be read.
        """
        self.consumer.subscribe([self.config.topic], listener=self)
        while not self.stop.is_set() and not self.is_idle():
            self.report()
            polled = self.poll()
            if self.settle(chain.from_iterable(polled.values())):
                for partition, messages in polled.items():
                    self.settled[partition] = messages[-1].offset + 1
                self.commit()

    def poll(self) -> Mapping[TopicPartition, Sequence[Any]]:
        """Return the next messages, at most --batch.

        Raises:
            WriterError: they cannot be read.
        """
        polled: Mapping[TopicPartition, Sequence[Any]]
        try:
            polled = self.consumer.poll(100, max_records=self.config.batch)
        except Exception as exc:
            if getattr(exc, "retriable", False):  # Kafka is away
                log.warning("Kafka: nothing can be read now (%s)", one_line(exc))
                time.sleep(1)
                return {}
            # Not asked again: after a batch that it cannot decode, kafka-python never returns.
            at = {p.partition: self.consumer.position(p, 0) for p in self.consumer.assignment()}
            text = f"messages cannot be read: {one_line(exc)}; partition: next offset {at}"
            raise WriterError(text, code=1) from exc
        for partition, messages in polled.items():
            self.last_busy = time.monotonic()
            self.check_gap(partition, messages[0].offset)
        return polled

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Forget where we are: called during a poll, before the partitions are shared out anew."""
        self.has_joined = False
        self.settled.clear()
        self.committed.clear()

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Say which partitions come to us."""
        self.has_joined = True
        numbers = ",".join(str(p.partition) for p in sorted(assigned)) or "none"
        log.info("assigned partitions=%s of topic=%s", numbers, self.config.topic)

    def check_gap(self, partition: TopicPartition, first: int) -> None:
        """Say so when messages are gone that we have not read."""
        expected = self.settled.get(partition)
        with suppress(KafkaError):  # then a gap before our first message is not noticed
            if expected is None:
                expected = self.consumer.committed(partition, timeout_ms=KAFKA_TIMEOUT_MS)
        if expected is not None and expected != first:
            log.warning(
                "partition %d: offset %d follows where %d was expected: messages were deleted "
                "before they were read, or the topic made anew (or the marks of transactions)",
                partition.partition, first, expected,
            )  # fmt: skip

    def settle(self, messages: Iterable[Any]) -> bool:
        """Have each message written or dead-lettered; return whether all of them are.

        When told to stop it tries once more at most; what is open is then read again.
        """
        deliveries: list[Delivery] = []
        outcomes: Counter[str] = Counter()
        for message in messages:
            outcome, planned = self.clients.plan(message)
            outcomes[outcome] += 1
            deliveries += planned
        self.in_flight = outcomes.total()
        self.totals["consumed"] += self.in_flight
        for attempt in count(1):
            deliveries, failure = self.deliver(deliveries)
            if not deliveries:
                break
            if self.stop.is_set():
                return False
            self.back_off(attempt, failure)
        self.totals += outcomes
        self.in_flight = 0
        return True

    def deliver(self, deliveries: list[Delivery]) -> tuple[list[Delivery], Exception | None]:
        """Start deliveries, wait for every answer; return those to start again, and why.

        A valid row cannot be refused for what it says: whatever the error, it may pass.
        """
        started: list[tuple[Delivery, Callable[[], Any]]] = []
        failed: list[Delivery] = []
        failure: Exception | None = None
        for number, delivery in enumerate(deliveries):
            try:
                started.append((delivery, delivery()))
            except KafkaError as exc:  # the producer takes no more
                failed, failure = deliveries[number:], exc
                break
        for delivery, wait in started:
            try:
                wait()
            except Exception as exc:  # noqa: BLE001  # see above
                failed.append(delivery)
                failure = exc
        return failed, failure

    def back_off(self, attempt: int, failure: Exception | None) -> None:
        """Wait longer at each attempt, up to a cap, at random, or until told to stop."""
        delay_s = min(RETRY_CAP_S, RETRY_BASE_S * 2 ** min(attempt, 10)) * random.uniform(0.5, 1)
        server = "Kafka" if isinstance(failure, KafkaError) else "Cassandra"
        level = logging.WARNING if attempt <= 3 else logging.ERROR  # it lasts: louder
        log.log(level, "%s: %d messages wait (%s: %s); next try in %.1f s", server,
                self.in_flight, type(failure).__name__, one_line(failure), delay_s)  # fmt: skip
        self.report()
        self.stop.wait(delay_s)

    def commit(self) -> None:
        """Commit the offsets of what is acknowledged."""
        if self.settled == self.committed:
            return
        marks = {p: OffsetAndMetadata(offset, "", -1) for p, offset in self.settled.items()}
        try:
            self.consumer.commit(marks, timeout_ms=KAFKA_TIMEOUT_MS)
        except KafkaError as exc:  # a rebalance, or Kafka away: they go with the next commit
            if not self.commit_refused:  # said once: it is tried again and again
                log.warning("offsets not committed yet (%s)", type(exc).__name__)
            self.commit_refused = True
            return
        self.committed, self.commit_refused = dict(self.settled), False

    def is_idle(self) -> bool:
        """Return whether nothing has come for --exit-when-idle seconds, and all of ours is read."""
        if not self.has_joined or self.settled != self.committed:
            self.last_busy = time.monotonic()
            return False
        idle_s = time.monotonic() - self.last_busy
        return idle_s >= self.config.exit_when_idle_s and self.is_at_end()

    def is_at_end(self) -> bool:
        """Return whether Kafka answers, and says that our partitions are read to their ends.

        A poll does not tell: it brings nothing, without an error, also while Kafka is away.
        """
        mine = self.consumer.assignment()
        asked = mine or {TopicPartition(self.config.topic, 0)}  # which every topic has
        try:
            ends = self.consumer.end_offsets(asked)
            return all(
                (self.consumer.position(partition, timeout_ms=KAFKA_TIMEOUT_MS) or 0)
                >= ends[partition]
                for partition in mine
            )
        except (KafkaError, KeyError) as exc:  # KeyError: kafka-python's, of one without a leader
            log.warning("Kafka: not known whether all is read (%s)", one_line(exc))
            time.sleep(1)
            return False

    def accounts(self) -> str:
        """Return consumed = written + dead_lettered + in_flight, as key=value pairs."""
        names = ("consumed", "written", "dead_lettered")
        counts = {name: self.totals[name] for name in names} | {"in_flight": self.in_flight}
        return " ".join(f"{name}={number}" for name, number in counts.items())

    def report(self) -> None:
        """Log the accounts every few seconds, or what we wait for."""
        now = time.monotonic()
        if (seconds := now - self.last_progress) < PROGRESS_S:
            return
        if self.has_joined:
            rate_hz = (self.totals["consumed"] - self.totals["reported"]) / seconds
            log.info("progress %s rate_hz=%.0f", self.accounts(), rate_hz)
        else:
            log.info("waiting for partitions of topic=%s; those of a writer that was killed are "
                     "free after %d s", self.config.topic, SESSION_TIMEOUT_MS // 1000)  # fmt: skip
        self.last_progress, self.totals["reported"] = now, self.totals["consumed"]

    def finish(self) -> bool:
        """Say what became of all; return whether nothing is left open."""
        log.info("stopped %s seconds=%.1f", self.accounts(), time.monotonic() - self.began)
        uncommitted = len(self.settled.items() - self.committed.items())
        if self.in_flight or uncommitted:
            log.error("not acknowledged: %d messages; not committed: %d partitions; all of that "
                      "is read again", self.in_flight, uncommitted)  # fmt: skip
        return not (self.in_flight or uncommitted)


# Connecting, and what must be there before the first row.


def patiently(where: str, connect: Callable[[], T], wait_s: float, stop: threading.Event) -> T:
    """Return what connect returns, tried again until wait_s seconds are over.

    Raises:
        WriterError: the server did not answer in time, or we were told to stop.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return connect()
        except (NoHostAvailable, DriverException, ErrorMessage, KafkaError) as exc:
            why, left_s = one_line(exc), deadline - time.monotonic()
            if left_s <= 0:
                text = f"{where} does not answer ({why}): is it started? (see README)"
                raise WriterError(text, code=1) from exc
        log.warning("waiting for %s (%s), %.0f s left", where, why, left_s)
        if stop.wait(min(2.0, left_s)):
            raise WriterError("stopped while waiting", code=0)


def connect_to_cassandra(config: Config) -> tuple[Session, list[PreparedStatement]]:
    """Return a session and the prepared inserts.

    Raises:
        WriterError: a table is missing or has other columns, or the keyspace can have no such name.
        NoHostAvailable, DriverException, ErrorMessage: Cassandra does not answer yet.
    """
    profile = ExecutionProfile(
        retry_policy=FallthroughRetryPolicy(),  # the retries are ours: with back-off, without end
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,  # most copies have it: one of one here
        request_timeout=REQUEST_TIMEOUT_S,
    )
    cluster = Cluster(
        addresses(config.hosts),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ConstantReconnectionPolicy(1.0, max_attempts=None),
    )
    try:
        session = cluster.connect()
        return session, [session.prepare(i.format(keyspace=config.keyspace)) for i in INSERTS]
    except Exception as exc:
        cluster.shutdown()  # or its threads would go on trying
        if isinstance(exc, SyntaxException):  # the rest of the statements is written here
            text = f"{one_line(exc)}: is {config.keyspace} a reserved word of CQL?"
            raise WriterError(text, code=2) from exc
        if not isinstance(exc, InvalidRequest):
            raise
        apply = "python pipelines/iot_cassandra/scripts/apply_schema.py"
        raise WriterError(f"{one_line(exc)}: apply the schema ({apply})", code=2) from exc


def connect_to_kafka(config: Config) -> tuple[KafkaConsumer, KafkaProducer]:
    """Return a consumer in the group and a producer of dead letters; make the missing topics.

    Raises:
        KafkaError: no broker answers yet.
    """
    common = {
        "bootstrap_servers": config.bootstrap_servers.split(","),
        "reconnect_backoff_max_ms": 5000,
    }
    topics = {config.topic: config.partitions, config.dead_letter_topic: -1}
    with closing(KafkaAdminClient(**common)) as admin:
        for topic, partitions in topics.items():
            with suppress(TopicAlreadyExistsError):
                admin.create_topics([NewTopic(topic, partitions, -1)])  # -1: the broker's default
        allow_large_messages(admin, config.dead_letter_topic)
    consumer = KafkaConsumer(
        group_id=config.group_id,
        auto_offset_reset="earliest",  # started after the simulator, it misses nothing
        enable_auto_commit=False,  # only what is acknowledged is committed
        isolation_level="read_committed",  # not what a transaction has taken back
        session_timeout_ms=SESSION_TIMEOUT_MS,
        request_timeout_ms=SESSION_TIMEOUT_MS + KAFKA_TIMEOUT_MS,  # it must be longer
        heartbeat_interval_ms=1000,  # so soon it is told that partitions are shared out anew
        metadata_max_age_ms=10_000,  # a partition that is added is read within that time
        receive_message_max_bytes=LARGEST_ANSWER,
        **common,
    )
    producer = KafkaProducer(
        # An idempotent producer never recovers from a message that the broker has refused. The
        # price: a dead letter may be there twice after an answer was lost, with the same origin.
        enable_idempotence=False,
        acks="all",
        compression_type="gzip",
        max_request_size=DEAD_LETTER_BYTES,
        max_block_ms=KAFKA_TIMEOUT_MS,
        request_timeout_ms=KAFKA_TIMEOUT_MS,
        delivery_timeout_ms=2 * KAFKA_TIMEOUT_MS,
        **common,
    )
    return consumer, producer


def allow_large_messages(admin: KafkaAdminClient, topic: str) -> None:
    """Let a topic take messages of DEAD_LETTER_BYTES: Kafka may have made it for up to 1 MB."""
    [answer] = admin.describe_configs([ConfigResource("topic", topic)])
    [(*_, entries)] = answer.resources
    # A change replaces all that is set for the topic: what was set before goes along.
    settings = {name: value for name, value, _, source, *_ in entries if source == SET_BY_USER}
    settings["max.message.bytes"] = str(DEAD_LETTER_BYTES)
    answer = admin.alter_configs([ConfigResource("topic", topic, settings)])
    [(error_code, error_text, *_)] = answer.resources
    if error_code:
        log.warning("large dead letters may be refused: %s", error_text)


# The command.


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    parser = add_shared(parser_of(__doc__), environ, *SHARED)
    add = parser.add_argument
    add("--partitions", type=at_least(1, int), default=1, metavar="N",
        help="of the topic, when it is not there yet (default: 1)")  # fmt: skip
    add("--batch", type=at_least(1, int), default=500, metavar="N",
        help="messages that are read and written together (default: 500)")  # fmt: skip
    add("--exit-when-idle", type=at_least(0, float), default=math.inf, metavar="SECONDS",
        dest="exit_when_idle_s",
        help="stop when nothing came for so long and all is read (never)")  # fmt: skip
    add("--wait", type=at_least(0, float), default=60.0, metavar="SECONDS", dest="wait_s",
        help="for the servers, at the start (default: 60)")  # fmt: skip
    return Config(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Move readings until stopped; return the exit code (see the module docstring)."""
    load_env(PROJECT / ".env")
    config = load_config(argv, os.environ)
    logging.Formatter.converter = time.gmtime
    line = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, datefmt="%Y-%m-%dT%H:%M:%S")
    for client in ("cassandra", "kafka"):  # what they meet in an outage is said by us, once
        logging.getLogger(client).setLevel(logging.CRITICAL)
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    try:
        where = f"Cassandra at {config.hosts}"
        session, inserts = patiently(
            where, lambda: connect_to_cassandra(config), config.wait_s, stop
        )
        where = f"Kafka at {config.bootstrap_servers}"
        consumer, producer = patiently(where, lambda: connect_to_kafka(config), config.wait_s, stop)
    except WriterError as exc:
        log.log(logging.ERROR if exc.code else logging.INFO, "%s", exc)
        return exc.code
    log.info("writing topic=%s group=%s into keyspace=%s at %s",
             config.topic, config.group_id, config.keyspace, config.hosts)  # fmt: skip
    clients = Clients(session, inserts, producer, config.dead_letter_topic)
    pipeline = Pipeline(config, clients, consumer, stop)
    code = 0
    try:
        pipeline.run()
    except WriterError as exc:
        log.error("%s", exc)
        code = exc.code
    finally:
        all_settled = pipeline.finish()
        with suppress(KafkaError):  # Kafka is away: what is left open is said by now
            consumer.close(timeout_ms=KAFKA_TIMEOUT_MS)
        with suppress(KafkaError):
            producer.close(timeout=1)
        session.cluster.shutdown()
    return code if all_settled else 1


if __name__ == "__main__":
    raise SystemExit(main())
