#!/usr/bin/env python3
"""Index the readings of a Kafka topic into Elasticsearch: none lost, none twice, none hidden.

    python kafka_to_elasticsearch.py                        # until Ctrl-C
    python kafka_to_elasticsearch.py --exit-when-idle 5     # until nothing has come for 5 s

What happens to a message:

    poll -> validate -> bulk -> Elasticsearch -> commit its offset
                |         |
                |         +-- refused for good -> dead letter
                +-- malformed -> dead letter: topic <topic>.dead-letter, with the original bytes,
                                 the reason, and the topic, partition and offset it came from;
                                 what Kibana shows of it is indexed too (unless into "none")

A document's id is made of sensor_id and timestamp, so a message that is read again changes nothing:
it is counted as a duplicate. Offsets are committed, in order, only when everything before them is
indexed, already there, or in the dead-letter topic. While Elasticsearch or Kafka is away it waits.

A progress line, every 5 seconds (consumed is always the sum of the four that follow; lag counts
the messages of the assigned partitions that are not settled yet):

    progress consumed=5000 indexed=4990 duplicates=8 dead_lettered=2 in_flight=0 rate_hz=1000 lag=0

With --metrics-port PORT, http://127.0.0.1:PORT/metrics says the same to Prometheus, and /health
answers 200 "ok", or 503 and the reason when it is stuck.

Environment (or .env beside this file; a flag wins over both; commas between several servers):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    KAFKA_TOPIC               default smart-city-sensors
    KAFKA_GROUP_ID            default smart-city-indexer
    ELASTICSEARCH_URL         default http://localhost:9200
    ELASTICSEARCH_INDEX       default sensors_data
    ELASTICSEARCH_INDEX_BY    day or month: an index for each (default: one index for all)
    ELASTICSEARCH_DEAD_LETTER_INDEX   default sensors_dead_letters
    KAFKA_CA_FILE             certificate (PEM) of the authority that vouches for Kafka: use TLS
    ELASTICSEARCH_CA_FILE     the same for Elasticsearch, with https
    CONSUMER_KAFKA_USER, CONSUMER_KAFKA_PASSWORD   who we are, for Kafka (SCRAM-SHA-512, TLS)
    CONSUMER_ELASTICSEARCH_API_KEY, or CONSUMER_ELASTICSEARCH_USER and _PASSWORD   for Elasticsearch

Exit codes: 0 done or stopped cleanly, 1 a server unreachable or a reading unaccounted for,
2 wrong usage or configuration.
"""

# To read it, begin at Pipeline.run, the loop. A message goes through poll, take (parse_reading,
# Batch.add), submit (Settler.settle: the bulk, the dead letters), collect and commit. What stands
# before Pipeline is what it works with; what follows is metrics, connecting, and the command line.

import argparse
import gc
import json
import logging
import math
import os
import random
import re
import signal
import ssl
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from dotenv import load_dotenv
from elasticsearch import (
    ApiError,
    AuthenticationException,
    AuthorizationException,
    BadRequestError,
    Elasticsearch,
    TransportError,
)
from msgspec import Meta
from prometheus_client import CollectorRegistry, Histogram, MetricsHandler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger("kafka_to_elasticsearch")
T = TypeVar("T")
OnCommit = Callable[[KafkaError | None, list[TopicPartition]], None]

MAPPING_FILE = Path(__file__).with_name("mappings") / "sensors_data.json"
DEAD_LETTER_MAPPING_FILE = MAPPING_FILE.with_name("sensors_dead_letters.json")

BULK_READINGS = 5000  # a bulk is closed when it holds so many readings ...
BULK_BYTES = 5_000_000  # ... or so many bytes ...
BULK_WAIT_S = 0.5  # ... or was opened so long ago, or nothing else is there to be done
INDEX_DATES = {"day": 10, "month": 7}  # so many characters of a reading's time name its index
BULKS_IN_FLIGHT = 3  # Elasticsearch indexes them while the next is read and validated
POLL_MESSAGES = 1000  # what one poll may add to a bulk; fewer when messages are large
FETCH_BYTES = 250_000  # of one answer, as compressed: also what bounds a sudden run of large ones
READ_AHEAD_KB = 4_000  # of all partitions, as uncompressed
POLL_WAIT_S, MORE_WAIT_S = 0.1, 0.02  # for messages; for more of them when the batch has some
PAUSE_AFTER_S = 1.0  # of back-pressure: then the partitions are paused
MESSAGE_SHOWN_BYTES = 500  # of a dead letter, in its index; the topic has all of them
RETRY_BASE_S, RETRY_CAP_S = 0.2, 10.0
# Statuses of one document that say "not now": overload, a node away, rights or a block to lift.
RETRY_STATUSES = {401, 403, 429, 502, 503, 504}
INDEX_GONE, INDEX_CLOSED = "index_not_found_exception", "index_closed_exception"
GARBLED = (LookupError, TypeError, AttributeError, ValueError)  # what a wrong answer raises
# Cooperative: when a member comes or goes, the others keep the partitions that do not move.
ASSIGNOR = "cooperative-sticky"
INCURABLE = {KafkaError.INCONSISTENT_GROUP_PROTOCOL}  # the group has members of another kind
SESSION_TIMEOUT_MS = 20_000  # a killed member's partitions are free after that
HEARTBEAT_MS = 1000  # how soon the group hears of a new member: it works after 3 s, not 7
MAX_POLL_INTERVAL_MS = 300_000  # one that does not poll for so long is taken for dead
DEAD_LETTER_BYTES = 100_000_000  # with its headers it is larger than what could be read
REQUEST_TIMEOUT_S = 30.0  # Elasticsearch may work for so long on one bulk
STUCK_S = 30.0  # waiting for longer than that is trouble
STOP_GRACE_S = 10.0  # for what is in flight when told to stop
REVOKE_GRACE_S = 3.0  # for what is in flight when a rebalance takes its partition
KAFKA_TIMEOUT_S = 5.0
DELIVERY_TIMEOUT_MS = 10_000  # of a dead letter that is not acknowledged: then it is sent again
PROGRESS_S = 5.0
DELAYS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)  # of the histogram
# Why Kafka does not let us in, in librdkafka's words -> what to mend.
REMEDIES = {
    "SASL authentication error": "correct CONSUMER_KAFKA_USER and CONSUMER_KAFKA_PASSWORD",
    "certificate verify failed": "KAFKA_CA_FILE must name who signed its certificate",
    "authorization failed": "CONSUMER_KAFKA_USER has not the right to do this",
}


@dataclass(frozen=True)
class Config:
    """One run of the consumer, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    group_id: str
    elasticsearch_url: str = field(repr=False)  # with a user and a password perhaps: shown_url
    index: str
    index_by: str | None  # a key of INDEX_DATES; None: one index
    dead_letter_index: str | None
    dynamic_mapping: bool
    exit_when_idle_s: float
    wait_s: float
    metrics_port: int | None
    # The two clients' options; secrets are in them.
    kafka_security: Mapping[str, str] = field(repr=False)
    elasticsearch_security: Mapping[str, Any] = field(repr=False)

    @property
    def dead_letter_topic(self) -> str:
        """Topic for the messages that cannot be indexed."""
        return f"{self.topic}.dead-letter"


class InvalidReadingError(ValueError):
    """A message that is not a reading; the text says why."""


class GaveUpError(Exception):
    """Told to stop while readings were still waiting for a server."""


class SetupError(Exception):
    """What the user must change before the consumer can run, in one line."""


# What a message must be.


class Reading(msgspec.Struct, forbid_unknown_fields=True):
    """The six fields, each within what a working sensor can measure outdoors or in a building."""

    sensor_id: str  # see SENSOR_ID
    timestamp: str  # see normalised_timestamp
    temperature: Annotated[float, Meta(ge=-40, le=60)]  # degrees Celsius
    humidity: Annotated[float, Meta(ge=0, le=100)]  # %
    co2_level: Annotated[int, Meta(ge=350, le=10_000)]  # ppm
    light_intensity: Annotated[int, Meta(ge=0, le=200_000)]  # lux


DECODER = msgspec.json.Decoder(Reading)
SENSOR_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# In a reading, six names and two strings stand between quotes; a field given twice adds to them.
QUOTES = 16
# RFC 3339: what is left to Python's own parser after this is whether the date exists.
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:[0-5]\d)", re.ASCII)
# As nearly all are: left as they are, which saves 1.3 µs each (benches/tuning.py). (Newer Pythons
# read 24:00, as the next day.)
NORMAL_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d\.\d{3}Z", re.ASCII)


def parse_reading(value: bytes | None) -> Reading:
    """Return the reading in a message: checked, the time normalised.

    Raises:
        InvalidReadingError: it is not a JSON object in UTF-8 with exactly the six fields, each
            once, or a field has a wrong type or lies outside its range.

    >>> parse_reading(b"[1, 2]")
    Traceback (most recent call last):
    kafka_to_elasticsearch.InvalidReadingError: Expected `object`, got `array`
    """
    if not value:
        raise InvalidReadingError("empty message")
    try:
        reading = DECODER.decode(value)
    except UnicodeDecodeError as exc:
        raise InvalidReadingError("not UTF-8") from exc
    except msgspec.DecodeError as exc:
        raise InvalidReadingError(str(exc)) from exc
    if not SENSOR_ID.fullmatch(reading.sensor_id):
        raise InvalidReadingError("sensor_id is not 1 to 128 letters, digits or . _ : -")
    reading.timestamp = normalised_timestamp(reading.timestamp)
    if value.count(b'"') != QUOTES:
        raise InvalidReadingError("a field is given twice")
    return reading


def normalised_timestamp(text: str) -> str:
    """Return an ISO 8601 time with its offset as UTC with milliseconds, cut, not rounded.

    Raises:
        InvalidReadingError: it is not such a time, or lies outside the years 1 to 9999.

    >>> normalised_timestamp("2026-06-01T14:00:00.0079+02:00")
    '2026-06-01T12:00:00.007Z'
    """
    is_normal = NORMAL_TIMESTAMP.fullmatch(text)
    if not (is_normal or TIMESTAMP.fullmatch(text)):
        raise InvalidReadingError("timestamp is not an ISO 8601 time with its offset")
    try:
        when = datetime.fromisoformat(text)
        if is_normal:
            return text
        when = when.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise InvalidReadingError(f"timestamp: {exc}") from exc
    return when.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


# Readings on their way: message -> entry of a batch -> document or dead letter.


class Entry(msgspec.Struct):
    """A valid reading on its way: its message, its document's id and source (JSON, UTF-8)."""

    message: Message
    document_id: str
    source: bytes


class DeadLetter(NamedTuple):
    """A message that cannot be indexed, and why: "kind: details"."""

    message: Message
    reason: str

    def entry(self) -> Entry:
        """Return what is indexed of it: mappings/sensors_dead_letters.json."""
        message, value = self.message, self.message.value() or b""
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        _, epoch_ms = message.timestamp()  # Kafka's
        fields = {
            "timestamp": epoch_ms,
            "kind": self.reason.partition(":")[0],
            "cause": VARYING.sub("*", self.reason),
            "reason": self.reason,
            "sensor_id": (message.key() or b"")[:128].decode(errors="backslashreplace"),
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "size_bytes": len(value),
            "message": value[:MESSAGE_SHOWN_BYTES].decode(errors="backslashreplace"),
        }
        where = f"{topic}/{partition}/{offset}@{epoch_ms}"
        return Entry(message, where, msgspec.json.encode(fields))


# What differs between two dead letters of the same cause: what is quoted, and numbers.
VARYING = re.compile(r"'.*'|\".*\"|\d{4,}|(?<=byte )\d+|\d+:\d+")

Left = tuple[list[T], str]  # what is still to be sent, and why


@dataclass
class Batch:
    """Messages that are settled together, and what is committed when they all are.

    Attributes:
        entries: the valid ones.
        dead_letters: the others.
        offsets: for each partition that is still ours, the offset after its last message here.
        outcome: how many went which way, complete when the batch is settled.
        oldest_ms: when its first message came into the topic, in Unix time.
    """

    entries: list[Entry] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)
    outcome: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    size_bytes: int = 0
    oldest_ms: float = math.inf
    opened: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return self.messages

    def add(self, partition: int, messages: Sequence[Message]) -> None:
        """Validate messages of a partition and take them in, as entries or as dead letters."""
        self.messages += len(messages)
        self.size_bytes += sum(map(len, messages))
        self.offsets[partition] = messages[-1].offset() + 1
        self.oldest_ms = min(self.oldest_ms, messages[0].timestamp()[1])
        for message in messages:
            try:
                reading = parse_reading(message.value())
            except InvalidReadingError as exc:
                self.dead_letters.append(DeadLetter(message, f"invalid: {one_line(exc)}"))
            else:
                document_id = f"{reading.sensor_id}@{reading.timestamp}"
                self.entries.append(Entry(message, document_id, msgspec.json.encode(reading)))

    @property
    def is_full(self) -> bool:
        """Whether it must go before another message is taken in."""
        return self.messages >= BULK_READINGS or self.size_bytes >= BULK_BYTES

    @property
    def is_due(self) -> bool:
        """Whether it should go, whatever is under way."""
        age_s = time.monotonic() - self.opened
        return self.is_full or (self.messages > 0 and age_s >= BULK_WAIT_S)


def classify(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return what Elasticsearch did with one document of a bulk, and why in its own words.

    indexed: it is stored. exists: the id is there already. again: not now. refused: never.

    >>> classify({"status": 429, "error": {"type": "es_rejected_execution_exception"}})
    ('again', '429 es_rejected_execution_exception: None')
    """
    if (status := int(item["status"])) == 201:
        return "indexed", ""
    error = item.get("error", {})
    reason = f"{status} {error.get('type')}: {error.get('reason')}"
    if status == 409:
        return "exists", reason
    if status in RETRY_STATUSES or error.get("type") in (INDEX_GONE, INDEX_CLOSED):
        return "again", reason
    return "refused", reason


class Settler:
    """Brings the readings of a batch to where they stay. Its methods run in worker threads."""

    def __init__(self, config: Config, client: Elasticsearch, producer: Producer) -> None:
        self.config = config
        self.client = client
        self.producer = producer
        self.sending = threading.Lock()  # dead letters of one batch at a time
        self.abandon = threading.Event()  # set: stop waiting for servers
        self.waits: dict[int, str] = {}  # worker thread -> what it waits for
        self.retries = 0
        self.indices = {config.index, config.dead_letter_index}  # that were there once

    def settle(self, batch: Batch) -> None:
        """Index what is valid, dead-letter the rest, and count both in the batch's outcome.

        Retries what can succeed later for as long as it takes. When it returns, every message of
        the batch is indexed, already there, or acknowledged by the dead-letter topic.

        Raises:
            GaveUpError: told to abandon before that.
        """
        for index, entries in self.by_index(batch.entries).items():
            self.insist("Elasticsearch", entries, partial(self.index, batch, index))
        self.insist("dead-letter topic", batch.dead_letters, self.send_dead_letters)
        if self.config.dead_letter_index:
            self.index_dead_letters(batch.dead_letters)
        batch.outcome["dead_lettered"] = len(batch.dead_letters)
        self.waits.pop(threading.get_ident(), None)

    def insist(self, server: str, pending: list[T], send: Callable[[list[T]], Left[T]]) -> None:
        """Send what is pending, and again what is left of it, until nothing is.

        Raises:
            GaveUpError: told to abandon before that.
        """
        attempt = 0
        while pending:
            before = len(pending)
            pending, why = send(pending)
            attempt = attempt + 1 if len(pending) == before else 1
            if pending:
                self.back_off(attempt, f"{server}: {len(pending)} messages wait ({why})")

    def by_index(self, entries: list[Entry]) -> dict[str, list[Entry]]:
        """Return the entries by the index they belong to: one for all, or one a day or month."""
        if not self.config.index_by:
            return {self.config.index: entries}
        found: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            found[dated_index(entry, self.config.index, self.config.index_by)].append(entry)
        return found

    def index(self, batch: Batch, index: str, entries: list[Entry]) -> Left[Entry]:
        """Send one bulk request; return the entries to send again, and why."""
        if index not in self.indices:
            self.make_index(index)
        try:
            verdicts = self.bulk(index, entries)
        except ApiError as exc:
            if exc.status_code not in (400, 413):
                return entries, one_line(exc)
            if len(entries) == 1:  # too large, or unreadable, by itself
                batch.dead_letters.append(
                    DeadLetter(entries[0].message, f"refused: {one_line(exc)}")
                )
                return [], ""
            half = len(entries) // 2
            first, why = self.index(batch, index, entries[:half])
            second, why_too = self.index(batch, index, entries[half:])
            return first + second, why if first else why_too
        except TransportError as exc:  # refused, timed out, cut: what it did is unknown, ids tell
            return entries, one_line(exc)
        again, existing, why = [], [], ""
        for entry, (verdict, reason) in zip(entries, verdicts, strict=True):
            if verdict == "indexed":
                batch.outcome["indexed"] += 1
            elif verdict == "exists":
                existing.append(entry)
            elif verdict == "refused":
                batch.dead_letters.append(DeadLetter(entry.message, f"refused: {reason}"))
            else:
                again.append(entry)
                why = reason
        undecided = self.compare(batch, index, existing)
        return again + undecided, why or "cannot read what is already there"

    def bulk(self, index: str, entries: list[Entry]) -> list[tuple[str, str]]:
        """Send one bulk request; return what became of each entry, see classify.

        Raises:
            ApiError, TransportError: Elasticsearch refuses the whole, or does not answer this.
        """
        lines = [
            b'{"create":{"_id":"%b"}}\n%b\n' % (e.document_id.encode(), e.source) for e in entries
        ]
        answer = self.client.bulk(
            index=index,
            operations=[b"".join(lines)],  # type: ignore[list-item]  # bytes go as they are
            filter_path="items.*.status,items.*.error.type,items.*.error.reason",
        )
        try:
            verdicts = [classify(item["create"]) for item in answer["items"]]
        except GARBLED:
            verdicts = []
        if len(verdicts) != len(entries):
            raise TransportError(f"it answered for {len(verdicts)} of {len(entries)}")
        if any(INDEX_GONE in why for _, why in verdicts):
            self.make_index(index)
        return verdicts

    def make_index(self, index: str) -> None:
        """Create an index with its mapping: of a new day or month, or deleted in mid-run."""
        try:
            ensure_indices(self.client, self.config)
            create_index(self.client, index)
            level = logging.WARNING if index in self.indices else logging.INFO
            log.log(level, "index %s was not there: made with its mapping", index)
            self.indices.add(index)
        except (SetupError, ApiError, TransportError, *GARBLED) as exc:
            log.error("index %s cannot be made: %s", index, one_line(exc))

    def compare(self, batch: Batch, index: str, entries: list[Entry]) -> list[Entry]:
        """Tell duplicates from conflicts, by what is stored; return the entries left undecided."""
        if not entries:
            return []
        try:
            ids = [entry.document_id for entry in entries]
            answer = self.client.mget(index=index, ids=ids)
            stored = {document["_id"]: document.get("_source") for document in answer["docs"]}
        except (ApiError, TransportError, *GARBLED):
            return entries
        undecided = []
        for entry in entries:
            source = stored.get(entry.document_id)
            if source is None:  # deleted meanwhile
                undecided.append(entry)
            elif source == json.loads(entry.source):
                batch.outcome["duplicates"] += 1
            else:
                reason = "conflict: this sensor has another reading of the same time in the index"
                batch.dead_letters.append(DeadLetter(entry.message, reason))
        return undecided

    def send_dead_letters(self, letters: list[DeadLetter]) -> Left[DeadLetter]:
        """Send messages to the dead-letter topic; return those not acknowledged, and why."""
        unacknowledged = dict(enumerate(letters))
        reasons: list[str] = []

        def note(number: int, error: KafkaError | None, _: Message) -> None:
            if error:
                reasons.append(error.str())
            else:
                del unacknowledged[number]

        with self.sending:  # flush waits for what all threads have sent, and calls back here
            if self.abandon.is_set():  # meanwhile
                return letters, "told to stop"
            try:
                for number, letter in enumerate(letters):
                    self.send_dead_letter(letter, partial(note, number))
            except (BufferError, KafkaException) as exc:  # the producer takes no more
                reasons.append(one_line(exc))
            self.producer.flush(2 * DELIVERY_TIMEOUT_MS / 1000)  # it gives up each one before that
        return list(unacknowledged.values()), reasons[0] if reasons else "no answer"

    def send_dead_letter(
        self, letter: DeadLetter, on_delivery: Callable[[KafkaError | None, Message], None]
    ) -> None:
        """Hand one message to the producer: its key and bytes, the reason, where it came from."""
        message = letter.message
        _, epoch_ms = message.timestamp()
        headers = {
            "reason": letter.reason,
            "source.topic": message.topic(),
            "source.partition": message.partition(),
            "source.offset": message.offset(),
            "source.timestamp": epoch_ms,
        }
        self.producer.produce(
            self.config.dead_letter_topic,
            key=message.key(),
            value=message.value(),
            headers=[(name, str(value).encode()) for name, value in headers.items()],
            on_delivery=on_delivery,
        )

    def index_dead_letters(self, letters: list[DeadLetter]) -> None:
        """Index what Kibana shows of dead letters.

        They are safe in their topic by now: what Elasticsearch refuses for good is only logged.
        """
        shown, index = Batch(), str(self.config.dead_letter_index)
        entries = [letter.entry() for letter in letters]
        self.insist("dead-letter index", entries, partial(self.index, shown, index))
        if refused := shown.dead_letters:
            log.warning("dead-letter index: %d %s", len(refused), refused[0].reason)

    def back_off(self, attempt: int, why: str) -> None:
        """Wait longer at each attempt, up to a cap, at random so that workers do not march in step.

        Raises:
            GaveUpError: told to abandon.
        """
        ceiling_s = min(RETRY_CAP_S, RETRY_BASE_S * 2 ** min(attempt, 10))
        delay_s = ceiling_s * random.uniform(0.5, 1.0)
        level = logging.WARNING if attempt <= 3 else logging.ERROR  # it lasts: louder
        log.log(level, "%s; next try in %.1f s", why, delay_s)
        self.waits[threading.get_ident()] = why
        self.retries += 1
        if self.abandon.wait(delay_s):
            raise GaveUpError(why)


def dated_index(entry: Entry, index: str, index_by: str) -> str:
    """Return the index of a reading's day or month, INDEX-2026.11.25 or INDEX-2026.11.

    By the reading's own time, so that the same message always finds its document there. Against
    clocks that are wrong, what is from before 2000, or from more than a day after it came into the
    topic, goes into INDEX.
    """
    when = entry.document_id.rpartition("@")[2]
    # Not Kafka's time made a date: a producer may give it any number, of any year.
    _, epoch_ms = entry.message.timestamp()
    ahead_s = datetime.fromisoformat(when).timestamp() - epoch_ms / 1000
    if when < "2000" or ahead_s > timedelta(days=1).total_seconds():
        return index
    return f"{index}-{when[: INDEX_DATES[index_by]].replace('-', '.')}"


def one_line(exc: Exception) -> str:
    """Return an exception's message in one line: no control character, not too long."""
    try:
        text = exc.args[0].str() if isinstance(exc, KafkaException) else str(exc)
        if isinstance(exc, TransportError):  # whose text keeps the cause to itself
            text = str(exc.message)
    except GARBLED:  # an error in a form that Elasticsearch's client cannot read
        text = ""
    text = text or type(exc).__name__
    cut = f"{text[:297]}..." if len(text) > 300 else text
    return " ".join("".join(c if c.isprintable() else " " for c in cut).split())


# Kafka.


class Kafka:
    """The connections to Kafka, and what is asked beside reading and writing."""

    def __init__(self, config: Config) -> None:
        self.topic = config.topic
        self.common = {
            "bootstrap.servers": config.bootstrap_servers,
            "reconnect.backoff.max.ms": 5000,
            **config.kafka_security,
        }
        self.errors: list[KafkaError] = []  # why it cannot be reached, as of the last admin.poll()
        quiet = {"log_level": 0}  # what goes wrong is an answer to us, and said by us
        self.admin = AdminClient({**self.common, **quiet, "error_cb": self.errors.append})
        self.producer = Producer(
            {
                **self.common,
                **quiet,
                "acks": "all",
                "compression.type": "lz4",
                "message.max.bytes": DEAD_LETTER_BYTES,
                "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
            }
        )

    def consumer(self, group_id: str, on_commit: OnCommit) -> Consumer:
        """Return a consumer in a group; nothing is asked of Kafka yet."""
        return Consumer(
            {
                **self.common,
                "group.id": group_id,
                "auto.offset.reset": "earliest",  # started after the generator, it misses nothing
                "enable.auto.commit": False,  # only what is settled is committed
                "on_commit": on_commit,
                "isolation.level": "read_committed",  # not what a transaction has taken back
                "enable.partition.eof": True,  # tells of offsets without messages at the end
                "partition.assignment.strategy": ASSIGNOR,
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "heartbeat.interval.ms": HEARTBEAT_MS,
                "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
                "max.partition.fetch.bytes": FETCH_BYTES,
                "fetch.max.bytes": FETCH_BYTES,
                "message.max.bytes": FETCH_BYTES,  # else the library raises the one before
                "queued.max.messages.kbytes": READ_AHEAD_KB,
                "fetch.queue.backoff.ms": 20,  # when that is read ahead, look again so soon
                "topic.metadata.refresh.interval.ms": 10_000,  # added partitions: read by then
            },
            logger=logging.getLogger("kafka"),
        )

    def ensure_topics(self, dead_letter_topic: str) -> None:
        """Make sure that the topic and that of its dead letters exist.

        Raises:
            KafkaException: Kafka does not answer yet, or there is no topic and it makes none.
        """
        find_topic(self.admin, self.topic)
        if dead_letter_topic in self.admin.list_topics(timeout=KAFKA_TIMEOUT_S).topics:
            return
        new = NewTopic(dead_letter_topic, config={"max.message.bytes": str(DEAD_LETTER_BYTES)})
        try:
            made = self.admin.create_topics([new], request_timeout=KAFKA_TIMEOUT_S)
            made[dead_letter_topic].result()
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another one was faster
                raise

    def offsets(self, numbers: Iterable[int], spec: OffsetSpec) -> dict[int, int]:
        """Return the first or the end offset of partitions of the topic.

        Raises:
            KafkaException: no answer.
        """
        futures = self.admin.list_offsets(
            {TopicPartition(self.topic, number): spec for number in numbers},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=KAFKA_TIMEOUT_S,
        )
        return {asked.partition: future.result().offset for asked, future in futures.items()}

    def describe(self) -> tuple[str, list[int]]:
        """Return the id that Kafka gave the topic when it was made, and its partitions.

        Raises:
            KafkaException: no answer, or there is no such topic.
        """
        futures = self.admin.describe_topics(
            TopicCollection([self.topic]), request_timeout=KAFKA_TIMEOUT_S
        )
        found = futures[self.topic].result()
        return str(found.topic_id), [partition.id for partition in found.partitions]


def find_topic(client: AdminClient, topic: str) -> None:
    """Ask for a topic, which makes it where the broker allows that.

    Raises:
        KafkaException: no answer, no such topic, or no right to it.
    """
    deadline = time.monotonic() + 1
    while error := client.list_topics(topic, timeout=2).topics[topic].error:
        if error.code() == KafkaError.LEADER_NOT_AVAILABLE:  # so it is just made
            return
        if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART or time.monotonic() > deadline:
            raise KafkaException(error)
        time.sleep(0.1)  # perhaps it is being made


# The loop: poll, fill batches, hand them to the workers, commit what is settled.


@dataclass
class Progress:
    """How far we are in a partition that is ours, as offsets; None where nothing is known yet."""

    next: int | None = None  # to be read
    settled: int | None = None  # everything before it is
    committed: int | None = None
    end: int | None = None  # where there was nothing more to read


class Pipeline:
    """The way of the messages through one process, and the accounts of what became of them.

    Attributes:
        accounts: messages consumed = indexed + duplicates + dead_lettered + in_flight.
        partitions: those that are ours, by number.
        lags: partition -> messages in it that are not settled, as of the last progress line.
        delays: histogram, one value a batch: from when its oldest message came until it is settled.
    """

    def __init__(self, config: Config, kafka: Kafka, settler: Settler) -> None:
        self.config = config
        self.kafka = kafka
        self.consumer = kafka.consumer(config.group_id, self.note_commit)
        self.settler = settler
        self.workers = ThreadPoolExecutor(BULKS_IN_FLIGHT, thread_name_prefix="bulk")
        self.batch = Batch()
        self.in_flight: deque[tuple[Batch, Future[None]]] = deque()
        self.partitions: dict[int, Progress] = {}
        self.revoked: set[int] = set()
        self.is_committing = self.commit_refused = False
        self.is_paused = self.is_caught_up = False
        self.topic_id: str | None = None
        self.totals: Counter[str] = Counter()
        self.accounts: dict[str, int] = {}
        self.lags: dict[int, int] = {}
        what = "from when the oldest message of a bulk came into the topic until it is settled"
        self.delays = Histogram("smart_city_delay_seconds", what, registry=None, buckets=DELAYS_S)
        self.expected_bytes = BULK_BYTES / 10  # of a message; cautious, and slow to forget
        self.began = self.last_turn = self.last_progress = self.last_busy = time.monotonic()
        self.last_assigned = self.last_settled = self.last_answer = self.last_commit = self.began
        self.last_room, self.last_error = self.began, -math.inf
        self.next_progress = self.began + PROGRESS_S
        self.close_accounts()

    def run(self, stop: threading.Event) -> None:
        """Move messages until told to stop or idle for --exit-when-idle seconds."""
        with suppress(KafkaException):  # then as soon as it answers
            self.note_topic()
        self.consumer.subscribe(
            [self.config.topic], on_revoke=self.hand_over, on_lost=self.note_lost
        )
        while not stop.is_set() and not self.is_idle():
            self.collect()
            self.commit()
            if self.must_submit():
                self.submit()
            polled = self.poll()
            self.note_assignment()
            self.take(polled)
            self.report()

    def must_submit(self) -> bool:
        """Return whether the batch goes now: it is due, or neither Kafka nor we have more to do.

        So a lone reading does not wait, and bulks are the larger the more there is to index.
        """
        is_idle = self.is_caught_up and not self.in_flight and len(self.batch) > 0
        return is_idle or (self.batch.is_due and len(self.in_flight) < BULKS_IN_FLIGHT)

    def poll(self) -> list[Message]:
        """Return new messages, none while the batch is full; also keeps us in the group."""
        if self.batch.is_full:  # back-pressure
            wait([self.in_flight[0][1]], timeout=0.1)
            if time.monotonic() - self.last_room < PAUSE_AFTER_S:
                return []
            # It lasts: Kafka must see us poll. (To pause at once would throw away what is read
            # ahead, several times a second.)
            self.consumer.pause(self.consumer.assignment())
            self.is_paused = True
            return self.consume(1)
        self.last_room = time.monotonic()
        if self.is_paused:
            self.consumer.resume(self.consumer.assignment())
            self.is_paused = False
        room = int((BULK_BYTES - self.batch.size_bytes) / self.expected_bytes) + 1
        return self.consume(min(POLL_MESSAGES, room))

    def consume(self, count: int) -> list[Message]:
        """Return up to so many messages and events, waiting for them; callbacks are called then."""
        wait_s = MORE_WAIT_S if len(self.batch) else POLL_WAIT_S
        polled: list[Message] = self.consumer.consume(count, timeout=wait_s)
        self.is_caught_up = len(polled) < count
        return polled

    def hand_over(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        """Settle and commit what is in flight of the partitions that a rebalance takes from us.

        Their next owner would read it again. Called during poll; in bounded time, as it waits.
        """
        numbers = {partition.partition for partition in revoked}
        if not self.settler.abandon.is_set():  # else all that could be done is done
            if numbers & self.batch.offsets.keys() and len(self.in_flight) < BULKS_IN_FLIGHT:
                self.submit()
            # All of it: what is settled out of turn cannot be committed.
            wait([future for _, future in self.in_flight], timeout=REVOKE_GRACE_S)
            self.collect()
        self.commit(at_once=True)  # Kafka has it before it hears that we let go
        self.note_lost(consumer, revoked)

    def note_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        """Note which partitions are no longer ours, or soon not: called during poll."""
        consumer.resume(lost)  # else the library would give them back as paused as they go
        self.revoked.update(partition.partition for partition in lost)

    def note_assignment(self) -> None:
        """After each rebalance, say which partitions are ours and note where we go on in them."""
        assigned = {partition.partition for partition in self.consumer.assignment()}
        before = set(self.partitions)
        self.forget(self.revoked | (before - assigned))
        self.revoked.clear()
        for number in assigned - self.partitions.keys():
            offset = self.where_to_go_on(number)
            self.partitions[number] = Progress(offset, offset, offset)
        if assigned != before:
            numbers = ",".join(map(str, sorted(assigned))) or "none"
            log.info("assigned partitions=%s of topic=%s", numbers, self.config.topic)
        if assigned:
            self.last_assigned = time.monotonic()

    def where_to_go_on(self, number: int) -> int | None:
        """Return the committed offset, or the first where nothing is; None if Kafka is silent."""
        try:
            (found,) = self.consumer.committed(
                [TopicPartition(self.config.topic, number)], timeout=KAFKA_TIMEOUT_S
            )
            if found.error:
                raise KafkaException(found.error)
            committed: int = found.offset
            if committed >= 0:
                return committed
            return self.kafka.offsets([number], OffsetSpec.earliest())[number]
        except KafkaException as exc:
            log.warning("what is already committed is not known (%s)", one_line(exc))
            return None

    def forget(self, numbers: set[int]) -> None:
        """Commit nothing more of what was read from these partitions.

        What is in flight is settled, but it is read again, by us or by their next owner: it would
        be wrong to commit it once that one has gone further.
        """
        for number in numbers:
            self.partitions.pop(number, None)
            for batch in (self.batch, *(batch for batch, _ in self.in_flight)):
                batch.offsets.pop(number, None)

    def take(self, polled: Sequence[Message]) -> None:
        """Add the polled messages to the batch."""
        size_bytes, messages_before = self.batch.size_bytes, len(self.batch)
        for number, group in groupby(polled, key=Message.partition):
            messages = []
            for message in group:
                if error := message.error():
                    self.note_event(message, error)
                else:
                    messages.append(message)
            if not messages or (progress := self.partitions.get(number)) is None:
                continue  # taken from us meanwhile: its next owner reads them
            first, last = messages[0].offset(), messages[-1].offset()
            self.check_offsets(number, first)
            progress.next = last + 1
            if progress.settled is None:  # Kafka has not said where we start: it is here
                progress.settled = progress.committed = first
            self.totals["consumed"] += len(messages)
            self.batch.add(number, messages)
        if added := len(self.batch) - messages_before:
            mean_bytes = (self.batch.size_bytes - size_bytes) / added
            self.expected_bytes = max(1.0, mean_bytes, 0.9 * self.expected_bytes)

    def note_event(self, message: Message, error: KafkaError) -> None:
        """Note what is not a message but an event of the library's.

        Raises:
            KafkaException: one that waiting does not cure.
        """
        if error.code() == KafkaError._PARTITION_EOF:
            if progress := self.partitions.get(message.partition()):
                progress.end = message.offset()
        elif error.fatal() or error.code() in INCURABLE:
            raise KafkaException(error)
        elif time.monotonic() - self.last_error > PROGRESS_S:
            log.warning("Kafka: nothing can be read now (%s)", one_line(KafkaException(error)))
            self.last_error = time.monotonic()

    def check_offsets(self, number: int, reached: int) -> None:
        """Say so when the offset that was reached is not the one that follows the last.

        The policy is to go on with the first that the topic still holds. What it had deleted by
        then is lost to us, so it is said how much. Transactions leave gaps that lose nothing.
        """
        progress = self.partitions[number]
        expected = reached if progress.next is None else progress.next
        if reached > expected:
            try:
                first = self.kafka.offsets([number], OffsetSpec.earliest())
            except KafkaException:
                first = {number: reached}
            if (lost := min(first[number], reached) - expected) > 0:
                log.error(
                    "partition %d: %d messages from offset %d on were deleted by the topic's "
                    "retention before they were read", number, lost, expected,
                )  # fmt: skip
        elif reached < expected:
            log.warning(
                "partition %d: offsets go back from %d to %d: the topic was made anew; reading it "
                "from there", number, expected, reached,
            )  # fmt: skip

    def note_topic(self) -> None:
        """Read the topic from its beginning when it was deleted and made anew under our feet.

        Our position may well be an offset of the new topic too, with messages before it.

        Raises:
            KafkaException: Kafka does not answer; to be called again.
        """
        topic_id, numbers = self.kafka.describe()
        if self.topic_id not in (None, topic_id):
            log.error("topic %s was made anew: read from its beginning", self.config.topic)
            # Also what the group has committed, perhaps since: a rebalance would take us back.
            begin = [TopicPartition(self.config.topic, number, 0) for number in numbers]
            self.consumer.commit(offsets=begin, asynchronous=False)
            self.forget(set(self.partitions))
            for partition in self.consumer.assignment():
                self.partitions[partition.partition] = Progress()
                partition.offset = OFFSET_BEGINNING
                self.consumer.seek(partition)
        self.topic_id = topic_id  # only now: what failed is done again

    def submit(self) -> None:
        """Hand the batch to a worker and open the next."""
        self.in_flight.append((self.batch, self.workers.submit(self.settler.settle, self.batch)))
        self.batch = Batch()

    def collect(self) -> None:
        """Count the batches that are settled, oldest first, and note how far that is.

        Only from the front of the queue: a later batch that is settled sooner waits for its turn,
        so an offset is never committed before one that precedes it.

        Raises:
            GaveUpError: the worker of the oldest batch was told to abandon it.
        """
        while self.in_flight and self.in_flight[0][1].done():
            batch, settled = self.in_flight[0]
            settled.result()
            self.in_flight.popleft()
            self.totals += batch.outcome
            self.delays.observe(max(0.0, time.time() - batch.oldest_ms / 1000))
            for number, offset in batch.offsets.items():
                self.partitions[number].settled = offset
            self.last_settled = time.monotonic()

    def commit(self, at_once: bool = False) -> None:
        """Commit the offsets of what is settled, in the partitions that are ours.

        One commit at a time, answered in note_commit, except at_once.
        """
        if self.is_committing and not at_once:
            return
        offsets = [
            TopicPartition(self.config.topic, number, done.settled or 0)
            for number, done in self.uncommitted.items()
        ]
        if not offsets:
            self.last_commit = time.monotonic()
            return
        self.is_committing = True
        try:
            self.consumer.commit(offsets=offsets)
        except KafkaException as exc:  # it was not even sent
            self.note_commit(exc.args[0], [])

    def note_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """Note Kafka's answer to a commit: called during poll.

        Refused in a rebalance, or while Kafka is away: the offsets go with the next commit.
        """
        self.is_committing = False
        if error := error or next((p.error for p in partitions if p.error), None):
            if not self.commit_refused:  # said once: it is tried ten times a second
                log.warning("offsets not committed yet (%s): with the next commit", error.str())
            self.commit_refused = True
            return
        self.last_commit, self.commit_refused = time.monotonic(), False
        for partition in partitions:
            if progress := self.partitions.get(partition.partition):  # else taken from us meanwhile
                progress.committed = partition.offset

    @property
    def uncommitted(self) -> dict[int, Progress]:
        """The partitions that are ours and further settled than committed."""
        return {
            n: done
            for n, done in self.partitions.items()
            if done.settled not in (None, done.committed)
        }

    def is_idle(self) -> bool:
        """Return whether nothing has come for --exit-when-idle seconds, the ends being reached.

        A broker that is slow to send the first messages has not reached them: that is no idleness.
        """
        is_read = self.partitions and all(
            p.end is not None and p.end >= (p.next or 0) for p in self.partitions.values()
        )
        if self.unsettled or self.uncommitted or not is_read:
            self.last_busy = time.monotonic()
        return time.monotonic() - self.last_busy >= self.config.exit_when_idle_s

    @property
    def unsettled(self) -> int:
        """Number of messages read whose outcome is not known yet."""
        return len(self.batch) + sum(len(batch) for batch, _ in self.in_flight)

    def close_accounts(self) -> str:
        """Bring the accounts up to date; return them as key=value pairs."""
        names = ("consumed", "indexed", "duplicates", "dead_lettered")
        # Made whole, then set at once: who reads them from another thread sees a true sum.
        self.accounts = {name: self.totals[name] for name in names} | {"in_flight": self.unsettled}
        return " ".join(f"{name}={count}" for name, count in self.accounts.items())

    def report(self) -> None:
        """Keep the accounts; every few seconds, log them, the lag and what is wrong."""
        accounts, now = self.close_accounts(), time.monotonic()
        self.last_turn = now
        if now < self.next_progress:
            return
        self.note_lag()
        rate_hz = (self.totals["consumed"] - self.totals["reported"]) / (now - self.last_progress)
        lag = sum(self.lags.values())
        log.info("progress %s rate_hz=%.0f lag=%d", accounts, rate_hz, lag)
        self.last_progress, self.totals["reported"] = now, self.totals["consumed"]
        if trouble := self.trouble():
            log.error("stuck: %s", trouble)
        self.next_progress = time.monotonic() + PROGRESS_S  # however long Kafka took to answer

    def note_lag(self) -> None:
        """Ask where each partition ends; what is not settled before that is its lag."""
        try:
            self.note_topic()
            ends = self.kafka.offsets(self.partitions, OffsetSpec.latest())
        except KafkaException as exc:
            log.warning("the lag is not known (%s)", one_line(exc))
            return
        self.last_answer = time.monotonic()
        unsettled = set(self.batch.offsets).union(*(batch.offsets for batch, _ in self.in_flight))
        for number, progress in self.partitions.items():
            if number not in unsettled and (end := progress.end or 0) > (progress.next or 0):
                # Nothing to read in between: deleted, or the marks that transactions leave.
                self.check_offsets(number, end)
                progress.next = progress.settled = end
        self.lags = {
            number: ends[number] - (progress.settled or 0)
            for number, progress in self.partitions.items()
        }
        if not sum(self.lags.values()):
            self.last_settled = time.monotonic()

    def trouble(self) -> str:
        """Return why nothing has moved for STUCK_S seconds although it should, or ""."""
        now, lag = time.monotonic(), sum(self.lags.values())
        if (for_s := now - self.last_turn) > STUCK_S:
            return f"the loop has stood still for {for_s:.0f} s"
        if (for_s := now - self.last_answer) > STUCK_S:
            return f"Kafka has not answered for {for_s:.0f} s"
        if (for_s := now - self.last_assigned) > STUCK_S:
            return f"no partition assigned for {for_s:.0f} s (more consumers than partitions?)"
        if (for_s := now - self.last_commit) > STUCK_S:
            return f"no commit for {for_s:.0f} s"
        if lag and (for_s := now - self.last_settled) > STUCK_S:
            why = "; ".join(set(self.settler.waits.copy().values())) or "Kafka delivers nothing"
            return f"nothing settled for {for_s:.0f} s, lag {lag}: {why}"
        return ""

    def finish(self) -> bool:
        """Settle and commit what can be in bounded time; return whether the accounts close at zero.

        What is left is not committed: it will be read again, and nothing of it is lost.
        """
        if len(self.batch):
            self.submit()
        wait([future for _, future in self.in_flight], timeout=STOP_GRACE_S)
        self.settler.abandon.set()
        self.workers.shutdown()
        try:
            self.collect()
        except GaveUpError as exc:
            log.error("not settled, to be read again: %d messages (%s)", self.unsettled, exc)
        self.commit()  # also when a later batch was given up: what is sure is sure
        deadline = time.monotonic() + STOP_GRACE_S
        while self.uncommitted and time.monotonic() < deadline:  # perhaps a rebalance: let it end
            self.consume(1)  # what this brings is left to the next start
            self.note_assignment()
            self.commit()
        seconds = time.monotonic() - self.began
        rate_hz = self.totals["consumed"] / seconds
        log.info("stopped %s seconds=%.1f rate_hz=%.1f", self.close_accounts(), seconds, rate_hz)
        unaccounted = 2 * self.accounts["consumed"] - sum(self.accounts.values())
        if unaccounted:
            log.error("the accounts do not close: %d messages unaccounted for", unaccounted)
        if self.uncommitted:
            numbers = ",".join(map(str, self.uncommitted))
            log.error("not committed, to be read again as duplicates: partitions %s", numbers)
        return not (unaccounted or self.unsettled or self.uncommitted)


# What others can ask: metrics for Prometheus, and health.


class Metrics(Collector):
    """The pipeline's accounts in Prometheus's terms, read when they are asked for."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its present value."""
        pipeline, outcomes = self.pipeline, dict(self.pipeline.accounts)
        in_flight, retries = outcomes.pop("in_flight", 0), pipeline.settler.retries
        quiet_s = time.monotonic() - pipeline.last_settled
        messages = CounterMetricFamily("smart_city_messages", "by outcome", labels=["outcome"])
        for outcome, count in outcomes.items():
            messages.add_metric([outcome], count)
        lag = GaugeMetricFamily("smart_city_lag", "messages not settled", labels=["partition"])
        for partition, count in pipeline.lags.items():
            lag.add_metric([str(partition)], count)
        yield from (messages, lag, *pipeline.delays.collect())
        yield CounterMetricFamily("smart_city_retries", "waits for a server", value=retries)
        for name, text, value in (
            ("in_flight", "messages read and not settled", in_flight),
            ("retrying", "workers that wait for a server now", len(pipeline.settler.waits)),
            ("seconds_since_settled", "or since there was no lag", quiet_s),
            ("stuck", "1 when nothing moves although it should", int(bool(pipeline.trouble()))),
        ):
            yield GaugeMetricFamily(f"smart_city_{name}", text, value=value)


def serve_state(pipeline: Pipeline, port: int) -> None:
    """Answer /metrics and /health on a loopback port, in a thread that ends with the process.

    Raises:
        SetupError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(Metrics(pipeline))

    class Handler(MetricsHandler.factory(registry)):  # type: ignore[misc]
        def do_GET(self) -> None:
            if self.path != "/health":
                super().do_GET()
                return
            trouble = pipeline.trouble()
            self.send_response(503 if trouble else 200)
            self.end_headers()
            self.wfile.write(f"{trouble or 'ok'}\n".encode())

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Who asked has left before the answer: no news."""

    try:
        server = Server(("127.0.0.1", port), Handler)
    except OSError as exc:
        raise SetupError(f"--metrics-port {port}: {exc.strerror}: choose another") from exc
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


# Connecting, and what must be there before the first document.


def patiently(
    server: str, address: str, connect: Callable[[], T], config: Config, stop: threading.Event
) -> T:
    """Return what connect returns, tried again until --wait seconds are over.

    Raises:
        SystemExit: told to stop before that (0), or the server did not answer in time (1).
    """
    deadline = time.monotonic() + config.wait_s
    while True:
        try:
            return connect()
        except (ApiError, TransportError, KafkaException) as exc:
            why, left_s = one_line(exc), deadline - time.monotonic()
            if left_s <= 0:
                log.error("%s does not answer at %s (%s): is it started? "
                          "(docker compose up -d --wait)", server, address, why)  # fmt: skip
                raise SystemExit(1) from exc
            log.warning("waiting for %s at %s (%s), %.0f s left", server, address, why, left_s)
        if stop.wait(min(2.0, left_s)):
            raise SystemExit(0)


def connect_to_elasticsearch(config: Config) -> Elasticsearch:
    """Return a client of an Elasticsearch that answers.

    Raises:
        SetupError: the URL, the rights or the certificate are wrong.
        ApiError, TransportError: it does not answer yet.
    """
    try:
        client = Elasticsearch(
            config.elasticsearch_url.split(","),
            request_timeout=REQUEST_TIMEOUT_S,
            max_retries=0,
            **config.elasticsearch_security,
        )
    except ValueError as exc:
        why = f"ELASTICSEARCH_URL: {shown_url(config)} is no URL (try http://localhost:9200)"
        raise SetupError(why) from exc
    if config.elasticsearch_security or urlsplit(config.elasticsearch_url).password:
        refuse_plain(config.elasticsearch_url)  # before a password goes there in clear
    try:
        client.options(request_timeout=5).cluster.health(wait_for_status="yellow", timeout="2s")
    except (AuthenticationException, AuthorizationException) as exc:
        raise SetupError(f"Elasticsearch refuses us: {one_line(exc)}") from exc
    except TransportError as exc:
        if "CERTIFICATE_VERIFY_FAILED" in repr(exc):
            why = "ELASTICSEARCH_CA_FILE must name who signed its certificate"
            raise SetupError(f"Elasticsearch at {shown_url(config)}: {why}") from exc
        refuse_plain(config.elasticsearch_url)
        raise
    return client


def refuse_plain(urls: str) -> None:
    """Look whether the first of Elasticsearch's URLs says http where it speaks TLS.

    Raises:
        SetupError: so it is.
    """
    url = urlsplit(urls.split(",")[0])
    if url.scheme == "http" and speaks_tls(where := f"{url.hostname}:{url.port}"):
        why = "let ELASTICSEARCH_URL begin with https"
        raise SetupError(f"Elasticsearch at http://{where} speaks TLS: {why}")


def ensure_indices(client: Elasticsearch, config: Config) -> None:
    """Make sure that the indices exist, with their mappings by an index template each.

    The templates also cover a later index of the same prefix. They forbid Elasticsearch to create
    one by itself (docker-compose.yml forbids it once more): an index that is deleted in mid-run
    comes back here, not by a guess.

    Raises:
        SetupError: a mapping file is missing or wrong, or an index has another mapping.
        ApiError, TransportError: Elasticsearch does not answer.
    """
    if config.dynamic_mapping:
        simulated = client.indices.simulate_index_template(name=config.index)
        if simulated.get("template", {}).get("mappings"):
            raise SetupError(
                f"--dynamic-mapping: an index template still gives {config.index} its mapping; "
                "choose an index of another name (ELASTICSEARCH_INDEX)"
            )
        create_index(client, config.index)
        return
    files = {config.index: MAPPING_FILE, config.dead_letter_index: DEAD_LETTER_MAPPING_FILE}
    for index, file in files.items():
        if index:
            template = load_template(file)
            create_index(client, index, template)
            check_mapping(client, index, template, config)


def create_index(client: Elasticsearch, index: str, template: dict[str, Any] | None = None) -> None:
    """Create an index that is not there yet, from an index template if one is given."""
    try:
        if template:
            client.indices.put_index_template(
                name=index,
                index_patterns=[f"{index}*"],
                priority=100 + len(index),  # of two patterns that match, the longer wins
                allow_auto_create=False,
                template=template,
            )
        if not client.indices.exists(index=index):
            client.indices.create(index=index)
    except AuthorizationException as exc:
        if exc.error == "cluster_block_exception":  # it can be lifted
            raise
        raise SetupError(f"index {index}: we have no right to make it: {one_line(exc)}") from exc
    except BadRequestError as exc:
        if exc.error != "resource_already_exists_exception":  # another consumer was faster
            raise SetupError(f"index {index}: {one_line(exc)}") from exc


def check_mapping(
    client: Elasticsearch, index: str, template: dict[str, Any], config: Config
) -> None:
    """Compare the types of an index's fields with those of a template.

    Raises:
        SetupError: they are not the same.
    """
    url = shown_url(config).partition(",")[0]
    for name, found in client.indices.get_mapping(index=index).items():
        fields = found["mappings"].get("properties", {})
        for key, definition in template["mappings"]["properties"].items():
            if (kind := fields.get(key, {}).get("type")) != definition["type"]:
                raise SetupError(
                    f"index {name} has {key} as {kind}, not as {definition['type']}: it was made "
                    f"with another mapping; delete it (curl -X DELETE {url}/{name}) "
                    "or choose another name (ELASTICSEARCH_INDEX)"
                )


def load_template(file: Path) -> dict[str, Any]:
    """Return the settings and mappings of a file.

    Raises:
        SetupError: it is missing or wrong.
    """
    try:
        template: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        template["mappings"]["properties"].items()
    except OSError as exc:
        raise SetupError(
            f"cannot read {file} ({exc.strerror}): put the project's mapping file there, or let "
            "Elasticsearch guess with --dynamic-mapping"
        ) from exc
    except GARBLED as exc:
        raise SetupError(f"{file} is not a JSON object with mappings: {exc!r}") from exc
    return template


def connect_to_kafka(config: Config) -> Kafka:
    """Return the connections to a Kafka that answers, with the topics made where they are missing.

    Raises:
        SetupError: Kafka does not let us in.
        KafkaException: no broker answers yet, or the topic does not exist.
    """
    kafka = Kafka(config)
    try:
        kafka.ensure_topics(config.dead_letter_topic)
    except KafkaException as exc:
        kafka.admin.poll(0)
        reasons, where = [*kafka.errors, exc.args[0]], f"Kafka at {config.bootstrap_servers}"
        told = " ".join(error.str() for error in reasons)
        for sign, remedy in REMEDIES.items():
            if sign in told:
                raise SetupError(f"{where}: {sign}: {remedy}") from exc
        if not config.kafka_security and speaks_tls(config.bootstrap_servers):
            remedy = "set KAFKA_CA_FILE, CONSUMER_KAFKA_USER and CONSUMER_KAFKA_PASSWORD"
            raise SetupError(f"{where} speaks TLS: {remedy}") from exc
        raise KafkaException(reasons[0]) from exc
    return kafka


def speaks_tls(brokers: str) -> bool:
    """Return whether the first of some servers, HOST:PORT, shows a certificate."""
    host, _, port = brokers.split(",")[0].rpartition(":")
    with suppress(OSError, ValueError):  # no such server, or it cannot even be a name
        return bool(ssl.get_server_certificate((host, int(port)), timeout=5))
    return False


# The command.


def shown_url(config: Config) -> str:
    """Return Elasticsearch's URLs without the user and password they may carry."""
    return re.sub(r"//((?!,https?://).)*@", "//", config.elasticsearch_url)


def topic_name(text: str) -> str:
    """Return a topic's name if Kafka allows it (and that of its dead letters)."""
    if not re.fullmatch(r"(?!\.\.?$)[A-Za-z0-9._-]{1,200}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 200 letters, digits or . _ -")
    return text


def name(text: str) -> str:
    """Return a name if there is one."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def servers(text: str) -> str:
    """Return a list of brokers if each is HOST:PORT."""
    if not re.fullmatch(r"([^:,\s]+:\d{1,5})(,[^:,\s]+:\d{1,5})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT[,HOST:PORT...]")
    return text


def seconds(text: str) -> float:
    """Return a number of seconds that is not negative."""
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError(text)
    return number


def port_number(text: str) -> int:
    """Return a TCP port."""
    if not 1 <= (number := int(text)) <= 65_535:
        raise ValueError(text)
    return number


def login(environ: Mapping[str, str], role: str, server: str) -> tuple[str, str, str]:
    """Return user, password and file of certificates for a server, "" where there is none.

    Raises:
        ValueError: only one of the first two is set, or there is no certificate in the file.
    """
    start, file = f"{role}_{server}_", environ.get(f"{server}_CA_FILE") or ""
    user, password = (environ.get(start + name) or "" for name in ("USER", "PASSWORD"))
    if bool(user) != bool(password):
        raise ValueError(f"{start}USER and {start}PASSWORD: set both, or neither")
    try:
        ssl.create_default_context(cafile=file or None)
    except OSError as exc:
        raise ValueError(f"{server}_CA_FILE: {file} has no certificates ({exc})") from exc
    return user, password, file


def kafka_security(environ: Mapping[str, str]) -> dict[str, str]:
    """Return librdkafka's options for TLS and a password, as far as they are wanted."""
    user, password, file = login(environ, "CONSUMER", "KAFKA")
    options = {"security.protocol": "SSL", "ssl.ca.location": file} if file else {}
    if user:
        options |= {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512"}
        options |= {"sasl.username": user, "sasl.password": password}
    return options


def elasticsearch_security(environ: Mapping[str, str], role: str, url: str) -> dict[str, Any]:
    """Return the options of Elasticsearch's client for TLS and who we are, as far as wanted.

    Raises:
        ValueError: see login; or the key cannot be one.
    """
    user, password, file = login(environ, role, "ELASTICSEARCH")
    options: dict[str, Any] = {"basic_auth": (user, password)} if user else {}
    if key := environ.get(variable := f"{role}_ELASTICSEARCH_API_KEY"):  # it wins
        if not re.fullmatch(r"[!-~]+", key):  # else the client's error would show it
            raise ValueError(f"{variable}: a key has no space and no other than ASCII characters")
        options = {"api_key": key}
    return options | ({"ca_certs": file} if file and url.startswith("https:") else {})


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag: str, variable: str, default: str, kind: Callable[[str], str] = str) -> None:
        value = environ.get(variable) or default
        text = f"environment: {variable} (default: {default})"  # not what it is now: no secret
        parser.add_argument(
            flag, default=value, type=kind, metavar=variable.split("_")[-1], help=text
        )

    add("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", servers)
    add("--topic", "KAFKA_TOPIC", "smart-city-sensors", topic_name)
    add("--group-id", "KAFKA_GROUP_ID", "smart-city-indexer", name)
    add("--elasticsearch-url", "ELASTICSEARCH_URL", "http://localhost:9200")
    add("--index", "ELASTICSEARCH_INDEX", "sensors_data", name)
    add("--dead-letter-index", "ELASTICSEARCH_DEAD_LETTER_INDEX", "sensors_dead_letters", name)
    parser.add_argument("--index-by", metavar="{day,month}",
        default=environ.get("ELASTICSEARCH_INDEX_BY") or None,
        help="an index for each day or month (UTC) of the readings' times, INDEX-2026.11.25 or "
        "INDEX-2026.11; environment: ELASTICSEARCH_INDEX_BY (default: one index)")  # fmt: skip
    parser.add_argument("--dynamic-mapping", action="store_true",
        help="let Elasticsearch guess the mapping; without mappings/, and without an index of "
        "dead letters")  # fmt: skip
    parser.add_argument("--exit-when-idle", type=seconds, default=math.inf, metavar="SECONDS",
        dest="exit_when_idle_s", help="stop when nothing has come for that long (default: never)",
    )  # fmt: skip
    parser.add_argument("--wait", type=seconds, default=60.0, metavar="SECONDS", dest="wait_s",
        help="how long to wait for the servers at the start (default: 60)")  # fmt: skip
    parser.add_argument("--metrics-port", type=port_number, metavar="PORT",
        help="serve /metrics and /health on this port of 127.0.0.1 (default: none)")  # fmt: skip
    options = vars(parser.parse_args(argv))
    if (period := options["index_by"]) not in (None, *INDEX_DATES):
        parser.error(f"argument --index-by: {period!r} is not {' or '.join(INDEX_DATES)}")
    if options["dead_letter_index"] == options["index"]:
        parser.error("--dead-letter-index is --index: dead letters have an index of their own")
    if options["dead_letter_index"] == "none" or options["dynamic_mapping"]:
        options["dead_letter_index"] = None
    try:
        options["kafka_security"] = kafka_security(environ)
        options["elasticsearch_security"] = elasticsearch_security(
            environ, "CONSUMER", options["elasticsearch_url"]
        )
    except ValueError as exc:
        parser.error(str(exc))
    return Config(**options)


class Throttle(logging.Filter):
    """Lets a library's errors through, one every few seconds: in an outage they repeat."""

    last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is ours, or an error and the first for a while."""
        if record.name == log.name:
            return True
        if record.levelno < logging.ERROR or time.monotonic() - self.last < PROGRESS_S:
            return False
        self.last = time.monotonic()
        record.exc_info = None  # one line each, without the trace
        return True


def configure_logging() -> None:
    """Log to stderr, in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.root.handlers[0].addFilter(Throttle())
    logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)  # we say it ourselves


def main(argv: Sequence[str] | None = None) -> int:
    """Move readings until stopped; return the exit code (see the module docstring)."""
    configure_logging()
    try:
        load_dotenv(Path(__file__).with_name(".env"))  # the real environment wins over it
    except UnicodeDecodeError:
        log.error(".env is not in UTF-8: save it so")
        return 2
    config = load_config(argv, os.environ)
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    try:
        where = ("Elasticsearch", shown_url(config))
        client = patiently(*where, lambda: connect_to_elasticsearch(config), config, stop)
        patiently(*where, lambda: ensure_indices(client, config), config, stop)
        where = ("Kafka", config.bootstrap_servers)
        kafka = patiently(*where, lambda: connect_to_kafka(config), config, stop)
        pipeline = Pipeline(config, kafka, Settler(config, client, kafka.producer))
        if config.metrics_port:
            serve_state(pipeline, config.metrics_port)
    except SetupError as exc:
        log.error("%s", exc)
        return 2
    log.info("indexing topic=%s group=%s into index=%s at %s",
             config.topic, config.group_id, config.index, shown_url(config))  # fmt: skip
    # Messages and readings lie in no cycles: to look for those less often saves 0.3 µs of the 4.5
    # that a document costs (benches/tuning.py).
    gc.freeze()
    gc.set_threshold(50_000)
    failed = False
    try:
        pipeline.run(stop)
    except KafkaException as exc:
        log.error("%s", one_line(exc))
        failed = True
    finally:
        closed_at_zero = pipeline.finish()
        logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what closing cuts short is no news
        pipeline.consumer.close()
    return 0 if closed_at_zero and not failed else 1


if __name__ == "__main__":
    raise SystemExit(main())
