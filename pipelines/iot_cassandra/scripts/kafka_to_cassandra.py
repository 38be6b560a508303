#!/usr/bin/env python3
"""Write the readings of a Kafka topic into Cassandra: none lost, none twice, none hidden.

    python pipelines/iot_cassandra/scripts/kafka_to_cassandra.py                      # until Ctrl-C
    python pipelines/iot_cassandra/scripts/kafka_to_cassandra.py --exit-when-idle 5

What happens to a message:

    poll -> validate -> INSERT into each table -> all acknowledged -> commit its offset
                |
                +-- malformed -> dead letter: topic <topic>.dead-letter, with the original bytes,
                                 the reason, and the topic, partition and offset it came from

A row's key is its sensor and its time, so a message that is read again changes nothing. Two readings
of one sensor and one millisecond: the later in Kafka stays, also when both are read again, because
a row's write time is its message's (milliseconds of Kafka's time stamp, then the offset modulo 1000).
Offsets are committed, in order, only when everything before them is acknowledged by Cassandra or by
the dead-letter topic. While one of them is away it waits, and reads no more than --window messages.

A progress line, every 5 seconds (consumed is always the sum of the three that follow):

    progress consumed=5000 written=4996 dead_lettered=2 in_flight=2 rate_hz=1000

Environment (or .env in the project's folder; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    IOT_TOPIC                 default iotdata
    IOT_GROUP_ID              default iot-cassandra-writer
    CASSANDRA_HOSTS           default localhost:9042
    CASSANDRA_KEYSPACE        default iot_keyspace

Exit codes: 0 done or stopped cleanly, 1 a server unreachable or a reading unaccounted for,
2 wrong usage or configuration.
"""

import argparse
import json
import logging
import math
import os
import queue
import random
import re
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar

import msgspec
from cassandra import ConsistencyLevel, DriverException, InvalidRequest
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import (
    ConstantReconnectionPolicy,
    DCAwareRoundRobinPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import BoundStatement, PreparedStatement
from cassandra.util import Date
from dotenv import load_dotenv
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata, TopicPartition
from msgspec import Meta

log = logging.getLogger("kafka_to_cassandra")
T = TypeVar("T")

PROJECT = Path(__file__).resolve().parents[3]
INSERTS = (
    "INSERT INTO {keyspace}.sensor_data (sensor_id, timestamp, temperature, humidity) "
    "VALUES (:sensor_id, :timestamp, :temperature, :humidity) USING TIMESTAMP :write_time",
    "INSERT INTO {keyspace}.sensor_data_by_day (sensor_id, day, timestamp, temperature, humidity) "
    "VALUES (:sensor_id, :day, :timestamp, :temperature, :humidity) USING TIMESTAMP :write_time",
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS_PER_DAY = 86_400_000
REQUEST_TIMEOUT_S = 10.0  # Cassandra itself gives a write up after 2 s
RETRY_BASE_S, RETRY_CAP_S = 0.2, 5.0
COMMIT_S = 0.5  # between two commits
SESSION_TIMEOUT_MS = 20_000  # a killed member's partitions are free after that
DEAD_LETTER_BYTES = 100_000_000  # with its headers it is larger than what could be read
KAFKA_TIMEOUT_MS = 5000
STOP_GRACE_S = 10.0  # for what is in flight when told to stop
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
    window: int
    exit_when_idle_s: float
    wait_s: float

    @property
    def dead_letter_topic(self) -> str:
        """Topic for the messages that are no readings."""
        return f"{self.topic}.dead-letter"


class InvalidReadingError(ValueError):
    """A message that is not a reading; the text says why."""


class SetupError(Exception):
    """What the user must change before the writer can run, in one line."""


class UnreachableError(Exception):
    """A server that did not answer in time at the start, in one line."""


class StoppedError(Exception):
    """Told to stop before all servers answered."""


# What a message must be.


class Reading(msgspec.Struct, forbid_unknown_fields=True):
    """The four fields: what fits the columns, and what a working sensor can measure."""

    sensor_id: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]  # INT has 32 bits
    timestamp: str  # see epoch_ms
    temperature: Annotated[float, Meta(ge=-40, le=80)]  # degrees Celsius
    humidity: Annotated[float, Meta(ge=0, le=100)]  # %


DECODER = msgspec.json.Decoder(Reading)
QUOTES = 10  # around four names and one text; a field given twice adds to them
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:[0-5]\d)", re.ASCII)


def parse_reading(value: bytes | None) -> Reading:
    """Return the reading in a message.

    Raises:
        InvalidReadingError: it is not a JSON object in UTF-8 with exactly the four fields, each
            once, or a field has a wrong type or lies outside its range.

    >>> parse_reading(b'{"sensor_id": 1, "temperature": NaN}')
    Traceback (most recent call last):
    kafka_to_cassandra.InvalidReadingError: NaN is not a number
    """
    if not value:
        raise InvalidReadingError("empty message")
    try:
        reading = DECODER.decode(value)
    except UnicodeDecodeError as exc:
        raise InvalidReadingError("not UTF-8") from exc
    except msgspec.DecodeError as exc:
        with suppress(ValueError, RecursionError):  # Python's parser knows what NaN is meant to be
            json.loads(value, parse_constant=refuse_constant)
        raise InvalidReadingError(str(exc)) from exc
    if value.count(b'"') != QUOTES:
        raise InvalidReadingError("a field is given twice")
    return reading


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN, Infinity and -Infinity, which many programs write and JSON does not have."""
    raise InvalidReadingError(f"{name} is not a number")


def epoch_ms(text: str) -> int:
    """Return an ISO 8601 time with its offset as milliseconds since 1970, cut, not rounded.

    Raises:
        InvalidReadingError: it is not such a time, or lies outside the years 1 to 9999.

    >>> epoch_ms("1970-01-01T01:00:00.0079+01:00"), epoch_ms("1969-12-31T23:59:59.999Z")
    (7, -1)
    """
    if not TIMESTAMP.fullmatch(text):
        raise InvalidReadingError("timestamp is not an ISO 8601 time with its offset")
    try:
        return (datetime.fromisoformat(text).astimezone(UTC) - EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as exc:
        raise InvalidReadingError(f"timestamp: {exc}") from exc


def row_of(message: Any) -> dict[str, Any]:
    """Return the values of a message's row, for both tables.

    Raises:
        InvalidReadingError: the message is not a reading.
    """
    reading = parse_reading(message.value)
    time_ms = epoch_ms(reading.timestamp)
    return {
        "sensor_id": reading.sensor_id,
        "day": Date(time_ms // MS_PER_DAY),
        "timestamp": time_ms,
        "temperature": reading.temperature,
        "humidity": reading.humidity,
        "write_time": message.timestamp * 1000 + message.offset % 1000,  # microseconds
    }


def one_line(exc: Exception) -> str:
    """Return an exception's message in one line, not too long."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return f"{text[:297]}..." if len(text) > 300 else text


# The loop: poll, start deliveries, count acknowledgements, commit.


@dataclass
class Entry:
    """A message on its way.

    Attributes:
        outcome: what it will be counted as: "written" or "dead_lettered".
        awaited: acknowledgements that are still missing.
    """

    offset: int
    outcome: str
    awaited: int


class Delivery(NamedTuple):
    """One thing to be acknowledged for an entry: a row in a table, or a dead letter.

    Attributes:
        start: begins it; returns a future with add_callback and add_errback.
    """

    entry: Entry
    start: Callable[[], Any]


class Pipeline(ConsumerRebalanceListener):  # type: ignore[misc]
    """The way of the messages through one process, and the accounts of what became of them.

    Attributes:
        entries: partition that is ours -> its entries that are not committed, oldest first.
        next_offset: partition -> what should be read next, where that is known.
        settled, committed: partition -> offset before which all is acknowledged, or committed.
        unsettled: number of messages read whose outcome is not known yet.
    """

    def __init__(
        self,
        config: Config,
        consumer: KafkaConsumer,
        producer: KafkaProducer,
        session: Session,
        inserts: Sequence[PreparedStatement],
    ) -> None:
        self.config = config
        self.consumer = consumer
        self.producer = producer
        self.session = session
        self.inserts = inserts
        self.entries: dict[TopicPartition, deque[Entry]] = {}
        self.next_offset: dict[TopicPartition, int] = {}
        self.settled: dict[TopicPartition, int] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.revoked: deque[TopicPartition] = deque()
        self.waiting: deque[Delivery] = deque()
        # Filled by the clients' own threads: what became of a delivery, None when acknowledged.
        self.answers: queue.SimpleQueue[tuple[Delivery, Exception | None]] = queue.SimpleQueue()
        self.unsettled = self.attempt = 0
        self.retry_at = -math.inf
        self.totals: Counter[str] = Counter()
        self.began = self.last_progress = self.last_commit = self.last_busy = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Move messages until told to stop or idle for --exit-when-idle seconds."""
        self.consumer.subscribe([self.config.topic], listener=self)
        while not stop.is_set() and not self.is_idle():
            polled = self.poll()
            self.note_assignment()
            self.take(polled)
            self.deliver()
            self.settle(0.0 if self.has_room else 0.2)
            if time.monotonic() - self.last_commit >= COMMIT_S:
                self.commit()
            self.report()

    @property
    def has_room(self) -> bool:
        """Whether it is worth reading more: a quarter of the window is free."""
        return self.unsettled <= self.config.window * 3 // 4

    def poll(self) -> Mapping[TopicPartition, Sequence[Any]]:
        """Return new messages, none while the window is full; also keeps us in the group."""
        try:
            if not self.has_room:  # back-pressure
                self.consumer.pause(*self.consumer.assignment())
                self.consumer.poll(0)
                return {}
            self.consumer.resume(*self.consumer.paused())
            room = self.config.window - self.unsettled
            polled: Mapping[TopicPartition, Sequence[Any]]
            polled = self.consumer.poll(0 if self.unsettled else 100, max_records=room)
        except KafkaError as exc:
            log.warning("Kafka: nothing can be read now (%s)", one_line(exc))
            time.sleep(1)
            return {}
        return polled

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Note which partitions a rebalance takes from us: called during poll."""
        self.revoked.extend(revoked)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Do nothing: see note_assignment."""

    def note_assignment(self) -> None:
        """Forget the partitions that are ours no more, begin with those that are new.

        What is in flight of the former is settled, but not committed: their next owner reads it
        again, and the same rows are written.
        """
        assigned, before = set(self.consumer.assignment() or ()), set(self.entries)
        for partition in {*self.revoked, *(before - assigned)}:
            for known in (self.entries, self.next_offset, self.settled, self.committed):
                known.pop(partition, None)  # type: ignore[attr-defined]
        self.revoked.clear()
        for partition in assigned - self.entries.keys():
            self.entries[partition] = deque()
            with suppress(KafkaError):  # then a gap before the first message is not noticed
                offset = self.consumer.committed(partition, timeout_ms=KAFKA_TIMEOUT_MS)
                if offset is not None:
                    self.next_offset[partition] = offset
        if assigned != before:
            numbers = ",".join(str(p.partition) for p in sorted(assigned)) or "none"
            log.info("assigned partitions=%s of topic=%s", numbers, self.config.topic)

    def take(self, polled: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Validate the polled messages and queue what is to be delivered of them."""
        for partition, messages in polled.items():
            if partition not in self.entries:
                continue  # taken from us meanwhile: its next owner reads them
            expected = self.next_offset.get(partition, messages[0].offset)
            if messages[0].offset != expected:
                log.error(
                    "partition %d: offsets %d to %d are not there: deleted by the topic's retention "
                    "before they were read, or the topic was made anew",
                    partition.partition, expected, messages[0].offset - 1,
                )  # fmt: skip
            self.next_offset[partition] = messages[-1].offset + 1
            for message in messages:
                entry, starts = self.plan(message)
                self.entries[partition].append(entry)
                self.waiting.extend(Delivery(entry, start) for start in starts)
            self.totals["consumed"] += len(messages)
            self.unsettled += len(messages)

    def plan(self, message: Any) -> tuple[Entry, list[Callable[[], Any]]]:
        """Return the entry of a message, and what starts each of its deliveries."""
        try:
            row = row_of(message)
        except InvalidReadingError as exc:
            reason = f"invalid: {one_line(exc)}"
            return Entry(message.offset, "dead_lettered", 1), [lambda: self.bury(message, reason)]
        statements = [self.bind(insert, row) for insert in self.inserts]
        starts = [lambda s=s: self.session.execute_async(s) for s in statements]
        return Entry(message.offset, "written", len(starts)), starts

    def bind(self, insert: PreparedStatement, row: Mapping[str, Any]) -> BoundStatement:
        """Return the insert of a row into one table."""
        return insert.bind({column.name: row[column.name] for column in insert.column_metadata})

    def bury(self, message: Any, reason: str) -> Any:
        """Send a message to the dead-letter topic: its key and bytes, why, where it came from."""
        headers = {
            "reason": reason,
            "source.topic": message.topic,
            "source.partition": message.partition,
            "source.offset": message.offset,
            "source.timestamp": message.timestamp,  # epoch ms
        }
        return self.producer.send(
            self.config.dead_letter_topic,
            key=message.key,
            value=message.value or b"",
            headers=[(name, str(value).encode()) for name, value in headers.items()],
        )

    def deliver(self) -> None:
        """Start the deliveries that wait, unless a failure says not yet."""
        while self.waiting and time.monotonic() >= self.retry_at:
            delivery = self.waiting.popleft()
            try:
                future = delivery.start()
            except KafkaError as exc:  # the producer takes no more
                self.waiting.appendleft(delivery)
                self.back_off(exc)
            else:
                self.watch(delivery, future)

    def watch(self, delivery: Delivery, future: Any) -> None:
        """Have the future report to `answers`."""
        future.add_callback(lambda _: self.answers.put((delivery, None)))
        future.add_errback(lambda exc: self.answers.put((delivery, exc)))

    def settle(self, wait_s: float) -> None:
        """Count the answers that are there, waiting for some; what failed is delivered again.

        A valid row cannot be refused for what it says: whatever the error, it is the server's, and
        may pass.
        """
        deadline = time.monotonic() + wait_s
        failure = None
        while True:
            left_s = deadline - time.monotonic() if not self.has_room else 0.0
            try:
                delivery, exc = self.answers.get(left_s > 0, max(left_s, 0.0))
            except queue.Empty:
                break
            if exc:
                self.waiting.append(delivery)
                failure = exc
                continue
            self.attempt = 0
            delivery.entry.awaited -= 1
            if not delivery.entry.awaited:
                self.totals[delivery.entry.outcome] += 1
                self.unsettled -= 1
        if failure:
            self.back_off(failure)

    def back_off(self, exc: Exception) -> None:
        """Deliver nothing for a while: longer at each failure in a row, up to a cap, at random."""
        if time.monotonic() < self.retry_at:
            return  # one that had started before the last failure
        self.attempt += 1
        delay_s = min(RETRY_CAP_S, RETRY_BASE_S * 2 ** min(self.attempt, 10)) * random.uniform(0.5, 1)
        self.retry_at = time.monotonic() + delay_s
        server = "Kafka" if isinstance(exc, KafkaError) else "Cassandra"
        level = logging.WARNING if self.attempt <= 3 else logging.ERROR  # it lasts: louder
        log.log(level, "%s: %d messages wait (%s: %s); next try in %.1f s",
                server, self.unsettled, type(exc).__name__, one_line(exc), delay_s)  # fmt: skip

    def commit(self) -> None:
        """Commit, in each partition that is ours, the offset before which all is acknowledged."""
        self.last_commit = time.monotonic()
        for partition, entries in self.entries.items():
            while entries and not entries[0].awaited:
                self.settled[partition] = entries.popleft().offset + 1
        offsets = self.uncommitted
        try:
            if offsets:
                marks = {p: OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}
                self.consumer.commit(marks, timeout_ms=KAFKA_TIMEOUT_MS)
        except KafkaError as exc:  # a rebalance, or Kafka away: they go with the next commit
            log.warning("offsets not committed yet (%s)", type(exc).__name__)
            return
        self.committed.update(offsets)

    @property
    def uncommitted(self) -> dict[TopicPartition, int]:
        """The partitions that are ours and further settled than committed, with that offset."""
        return {p: o for p, o in self.settled.items() if o != self.committed.get(p)}

    def is_idle(self) -> bool:
        """Return whether nothing has come for --exit-when-idle seconds with partitions assigned."""
        if self.unsettled or self.uncommitted or any(self.entries.values()) or not self.entries:
            self.last_busy = time.monotonic()
        return time.monotonic() - self.last_busy >= self.config.exit_when_idle_s

    def accounts(self) -> str:
        """Return consumed = written + dead_lettered + in_flight, as key=value pairs."""
        names = ("consumed", "written", "dead_lettered")
        counts = {name: self.totals[name] for name in names} | {"in_flight": self.unsettled}
        return " ".join(f"{name}={count}" for name, count in counts.items())

    def report(self) -> None:
        """Log the accounts every few seconds."""
        now = time.monotonic()
        if (seconds := now - self.last_progress) >= PROGRESS_S:
            rate_hz = (self.totals["consumed"] - self.totals["reported"]) / seconds
            log.info("progress %s rate_hz=%.0f", self.accounts(), rate_hz)
            self.last_progress, self.totals["reported"] = now, self.totals["consumed"]

    def finish(self) -> bool:
        """Settle and commit what can be in bounded time; return whether nothing is left open.

        What is left is not committed: it will be read again, and nothing of it is lost.
        """
        deadline = time.monotonic() + STOP_GRACE_S
        while self.unsettled and time.monotonic() < deadline:
            self.deliver()
            self.settle(0.1)
            time.sleep(0.01)
        self.commit()
        while self.uncommitted and time.monotonic() < deadline:  # perhaps a rebalance: let it end
            self.poll()  # what this brings is left to the next start
            self.note_assignment()
            self.commit()
        seconds = time.monotonic() - self.began
        log.info("stopped %s seconds=%.1f", self.accounts(), seconds)
        if self.unsettled:
            log.error("not acknowledged, to be read again: %d messages", self.unsettled)
        if self.uncommitted:
            log.error("not committed, to be read again: partitions %s",
                      ",".join(str(p.partition) for p in self.uncommitted))  # fmt: skip
        return not (self.unsettled or self.uncommitted)


# Connecting, and what must be there before the first row.


def patiently(
    server: str, address: str, connect: Callable[[], T], config: Config, stop: threading.Event
) -> T:
    """Return what connect returns, tried again until --wait seconds are over.

    Raises:
        UnreachableError: the server did not answer in time.
        StoppedError: told to stop before that.
    """
    deadline = time.monotonic() + config.wait_s
    while True:
        try:
            return connect()
        except (NoHostAvailable, DriverException, KafkaError) as exc:
            why, left_s = one_line(exc), deadline - time.monotonic()
            if left_s <= 0:
                raise UnreachableError(
                    f"{server} does not answer at {address} ({why}): is it started? (see README)"
                ) from exc
            log.warning("waiting for %s at %s (%s), %.0f s left", server, address, why, left_s)
        if stop.wait(min(2.0, left_s)):
            raise StoppedError


def connect_to_cassandra(config: Config) -> tuple[Session, list[PreparedStatement]]:
    """Return a session and the prepared inserts.

    Raises:
        SetupError: a table is missing or has other columns.
        NoHostAvailable, DriverException: Cassandra does not answer yet.
    """
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy()),
        retry_policy=FallthroughRetryPolicy(),  # the retries are ours: with back-off, without end
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,  # of one copy: that one
        request_timeout=REQUEST_TIMEOUT_S,
    )
    points = [host.rsplit(":", 1) for host in config.hosts.split(",")]
    cluster = Cluster(
        [(host, int(port)) for host, port in points],
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ConstantReconnectionPolicy(1.0, max_attempts=None),
    )
    try:
        session = cluster.connect()
        return session, [session.prepare(i.format(keyspace=config.keyspace)) for i in INSERTS]
    except InvalidRequest as exc:
        cluster.shutdown()
        raise SetupError(
            f"Cassandra at {config.hosts}: {one_line(exc)}: apply the schema "
            "(python pipelines/iot_cassandra/scripts/apply_schema.py)"
        ) from exc
    except BaseException:
        cluster.shutdown()  # or its threads would go on trying
        raise


def connect_to_kafka(config: Config) -> tuple[KafkaConsumer, KafkaProducer]:
    """Return a consumer in the group and a producer for dead letters; make missing topics.

    Raises:
        KafkaError: no broker answers yet.
    """
    servers = config.bootstrap_servers.split(",")
    common = {"bootstrap_timeout_ms": 2000, "reconnect_backoff_max_ms": 5000}
    with KafkaAdminClient(bootstrap_servers=servers, **common) as admin:
        topics = {
            config.topic: {"num_partitions": config.partitions},
            config.dead_letter_topic: {"configs": {"max.message.bytes": str(DEAD_LETTER_BYTES)}},
        }
        for name in topics.keys() - set(admin.list_topics()):
            with suppress(TopicAlreadyExistsError):  # another was faster
                admin.create_topics({name: topics[name]})
    producer = KafkaProducer(
        bootstrap_servers=servers,
        acks="all",
        # An idempotent producer never recovers from a message that the broker has refused. The
        # price: a dead letter may be there twice after an answer was lost, with the same origin.
        enable_idempotence=False,
        compression_type="gzip",
        max_request_size=DEAD_LETTER_BYTES,
        max_block_ms=KAFKA_TIMEOUT_MS,
        request_timeout_ms=KAFKA_TIMEOUT_MS,
        delivery_timeout_ms=2 * KAFKA_TIMEOUT_MS,
        **common,
    )
    consumer = KafkaConsumer(
        bootstrap_servers=servers,
        group_id=config.group_id,
        auto_offset_reset="earliest",  # started after the simulator, it misses nothing
        enable_auto_commit=False,  # only what is acknowledged is committed
        isolation_level="read_committed",  # not what a transaction has taken back
        # When a member comes or goes, the others keep the partitions that do not move.
        partition_assignment_strategy=(CooperativeStickyAssignor,),
        session_timeout_ms=SESSION_TIMEOUT_MS,
        metadata_max_age_ms=10_000,  # a partition that is added is read within that time
        **common,
    )
    # Without the topic's metadata kafka-python can join with an empty assignment and stay there
    # ("No partition metadata for topic"): ask for it before joining, which the first poll does.
    if not consumer.partitions_for_topic(config.topic):
        raise UnknownTopicOrPartitionError(f"topic {config.topic} does not exist")
    # When a poll ends between the two answers of a join, kafka-python 3.0.12 may forget the join:
    # it commits no more, for ever. Its own flag says that one is under way.
    coordinator = consumer._coordinator
    need_rejoin = coordinator.need_rejoin
    coordinator.need_rejoin = lambda: coordinator.rejoining or need_rejoin()
    return consumer, producer


# The command.


def address_list(text: str) -> str:
    """Return a list of servers if each is HOST:PORT."""
    if not re.fullmatch(r"([^:,\s]+:\d{1,5})(,[^:,\s]+:\d{1,5})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT[,HOST:PORT...]")
    return text


def topic_name(text: str) -> str:
    """Return a topic's name if Kafka allows it (and that of its dead letters)."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 200 letters, digits or . _ -")
    return text


def keyspace_name(text: str) -> str:
    """Return a keyspace's name if it needs no quotes."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 48 of a-z, 0-9, _, a letter first")
    return text


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def seconds(text: str) -> float:
    """Return a number of seconds that is not negative."""
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError(text)
    return number


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, variable, default, kind in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", address_list),
        ("--topic", "IOT_TOPIC", "iotdata", topic_name),
        ("--group-id", "IOT_GROUP_ID", "iot-cassandra-writer", str),
        ("--hosts", "CASSANDRA_HOSTS", "localhost:9042", address_list),
        ("--keyspace", "CASSANDRA_KEYSPACE", "iot_keyspace", keyspace_name),
    ):
        parser.add_argument(flag, default=environ.get(variable) or default, type=kind,
            metavar=variable.split("_")[-1], help=f"environment: {variable} (default: {default})")  # fmt: skip
    parser.add_argument("--partitions", type=positive, default=1, metavar="N",
        help="of the topic, when it is not there yet (default: 1)")  # fmt: skip
    parser.add_argument("--window", type=positive, default=256, metavar="N",
        help="messages that may wait for an acknowledgement (default: 256)")  # fmt: skip
    parser.add_argument("--exit-when-idle", type=seconds, default=math.inf, metavar="SECONDS",
        dest="exit_when_idle_s", help="stop when nothing has come for that long (default: never)")  # fmt: skip
    parser.add_argument("--wait", type=seconds, default=60.0, metavar="SECONDS", dest="wait_s",
        help="how long to wait for the servers at the start (default: 60)")  # fmt: skip
    return Config(**vars(parser.parse_args(argv)))


def configure_logging() -> None:
    """Log to stderr, in UTC; what the clients meet in an outage is said by us, once."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    for client in ("cassandra", "kafka"):
        logging.getLogger(client).setLevel(logging.CRITICAL)


def main(argv: Sequence[str] | None = None) -> int:
    """Move readings until stopped; return the exit code (see the module docstring)."""
    load_dotenv(PROJECT / ".env")  # the real environment wins over it
    config = load_config(argv, os.environ)
    configure_logging()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    try:
        where = ("Cassandra", config.hosts)
        session, inserts = patiently(*where, lambda: connect_to_cassandra(config), config, stop)
        where = ("Kafka", config.bootstrap_servers)
        consumer, producer = patiently(*where, lambda: connect_to_kafka(config), config, stop)
    except StoppedError:
        return 0
    except (SetupError, UnreachableError) as exc:
        log.error("%s", exc)
        return 2 if isinstance(exc, SetupError) else 1
    log.info("writing topic=%s group=%s into keyspace=%s at %s",
             config.topic, config.group_id, config.keyspace, config.hosts)  # fmt: skip
    pipeline = Pipeline(config, consumer, producer, session, inserts)
    try:
        pipeline.run(stop)
    finally:
        all_settled = pipeline.finish()
        with suppress(KafkaError):  # Kafka is away: what is left open is said by now
            consumer.close(timeout_ms=KAFKA_TIMEOUT_MS)
        with suppress(KafkaError):
            producer.close(timeout=1)
        session.cluster.shutdown()
    return 0 if all_settled else 1


if __name__ == "__main__":
    raise SystemExit(main())
