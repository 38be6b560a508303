#!/usr/bin/env python3
"""Index the readings of a Kafka topic into Elasticsearch: none lost, none twice, none hidden.

    python kafka_to_elasticsearch.py                        # until Ctrl-C
    python kafka_to_elasticsearch.py --exit-when-idle 5     # until nothing has come for 5 s

What happens to a message:

    poll -> validate -> bulk -> Elasticsearch -> commit its offset
                |         |
                |         +-- refused for good -> dead letter
                +-- malformed -> dead letter: topic <topic>.dead-letter, with the original bytes,
                                 the reason, and the topic, partition and offset it came from

A document's id is made of sensor_id and timestamp, so a message that is read again changes nothing:
it is counted as a duplicate. Offsets are committed, in order, only when everything before them is
indexed, already there, or in the dead-letter topic. While Elasticsearch or Kafka is away it waits.

A progress line, every 5 seconds (consumed is always the sum of the four that follow):

    progress consumed=5000 indexed=4990 duplicates=8 dead_lettered=2 in_flight=0 rate_hz=1000 lag=0

Environment (or .env beside this file; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    KAFKA_TOPIC               default smart-city-sensors
    KAFKA_GROUP_ID            default smart-city-indexer
    ELASTICSEARCH_URL         default http://localhost:9200
    ELASTICSEARCH_INDEX       default sensors_data

Exit codes: 0 done or stopped cleanly, 1 a server unreachable or a reading unaccounted for,
2 wrong usage or configuration.
"""

import argparse
import itertools
import json
import logging
import math
import os
import random
import re
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dotenv import load_dotenv
from elasticsearch import (
    ApiError,
    AuthenticationException,
    AuthorizationException,
    BadRequestError,
    Elasticsearch,
    TransportError,
)
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata, TopicPartition

log = logging.getLogger("kafka_to_elasticsearch")
T = TypeVar("T")

MAPPING_FILE = Path(__file__).with_name("mappings") / "sensors_data.json"
# Physical range of each measured field: what a working sensor can read outdoors or in a building.
RANGES: dict[str, tuple[type[int] | type[float], float, float]] = {
    "temperature": (float, -40.0, 60.0),  # degrees Celsius
    "humidity": (float, 0.0, 100.0),  # %
    "co2_level": (int, 350, 10_000),  # ppm
    "light_intensity": (int, 0, 200_000),  # lux
}
FIELDS = {"sensor_id", "timestamp", *RANGES}
SENSOR_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# RFC 3339: what is left to Python's own parser after this is whether the date exists.
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)

BULK_READINGS = 2000  # a bulk is closed when it holds so many readings ...
BULK_BYTES = 5_000_000  # ... or so many bytes ...
BULK_WAIT_S = 0.5  # ... or was opened so long ago: a lone reading is searchable within 2 s
BULKS_IN_FLIGHT = 2  # Elasticsearch indexes one while the next is read and validated
RETRY_BASE_S, RETRY_CAP_S = 0.2, 10.0
# Statuses of one document that say "not now": overload, a node away, rights or a block to lift.
RETRY_STATUSES = {401, 403, 429, 502, 503, 504}
INDEX_GONE, INDEX_CLOSED = "index_not_found_exception", "index_closed_exception"
STOP_GRACE_S = 10.0  # for what is in flight when told to stop
COMMIT_TIMEOUT_MS = 5000
PROGRESS_S = 5.0


@dataclass(frozen=True)
class Config:
    """One run of the consumer, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    group_id: str
    elasticsearch_url: str
    index: str
    dynamic_mapping: bool
    exit_when_idle_s: float
    wait_s: float

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


class UnreachableError(Exception):
    """A server that did not answer in time at the start, in one line."""


class StoppedError(Exception):
    """Told to stop before all servers answered."""


# What a message must be.


def reject_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads but JSON does not have."""
    raise InvalidReadingError(f"not JSON: {name}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that says two things under one name."""
    if len(found := dict(pairs)) != len(pairs):
        raise InvalidReadingError("a field is given twice")
    return found


JSON_DECODER = json.JSONDecoder(parse_constant=reject_constant, object_pairs_hook=unique_keys)


def parse_reading(value: bytes | None) -> dict[str, Any]:
    """Return the reading in a message: the six fields, checked, the time normalised.

    Raises:
        InvalidReadingError: it is not a JSON object in UTF-8 with exactly the six fields, or a
            field has a wrong type or lies outside its physical range.

    >>> parse_reading(b'[1, 2]')
    Traceback (most recent call last):
    kafka_to_elasticsearch.InvalidReadingError: not a JSON object but a list
    """
    if not value:
        raise InvalidReadingError("empty message")
    try:
        reading = JSON_DECODER.decode(value.decode())
    except InvalidReadingError:
        raise
    except UnicodeDecodeError as exc:
        raise InvalidReadingError(f"not UTF-8 at byte {exc.start}") from exc
    except RecursionError as exc:
        raise InvalidReadingError("nested too deep") from exc
    except ValueError as exc:
        raise InvalidReadingError(f"not JSON: {exc}") from exc
    if not isinstance(reading, dict):
        raise InvalidReadingError(f"not a JSON object but a {type(reading).__name__}")
    if reading.keys() != FIELDS:
        missing, unknown = sorted(FIELDS - reading.keys()), sorted(reading.keys() - FIELDS)
        names = [f"missing field {name}" for name in missing]
        names += [f"unknown field {shown(name)}" for name in unknown[:3]]
        raise InvalidReadingError(", ".join(names))
    sensor_id = reading["sensor_id"]
    if not isinstance(sensor_id, str) or not SENSOR_ID.fullmatch(sensor_id):
        raise InvalidReadingError(
            f"sensor_id: {shown(sensor_id)} is not 1 to 128 letters, digits or . _ : -"
        )
    for name, (kind, low, high) in RANGES.items():
        number = reading[name]
        # By exact type: True is an int in Python, and 412.0 ppm is not a whole number in JSON.
        if type(number) is not int and type(number) is not kind:
            wanted = "an integer" if kind is int else "a number"
            raise InvalidReadingError(f"{name}: {shown(number)} is not {wanted}")
        if not low <= number <= high:
            raise InvalidReadingError(f"{name}: {shown(number)} is outside {low:g} to {high:g}")
    return {**reading, "timestamp": normalised_timestamp(reading["timestamp"])}


def normalised_timestamp(text: Any) -> str:
    """Return an ISO 8601 time with its offset as UTC with milliseconds, cut, not rounded.

    Raises:
        InvalidReadingError: it is not such a time, or lies outside the years 1 to 9999.

    >>> normalised_timestamp("2026-06-01T14:00:00.0079+02:00")
    '2026-06-01T12:00:00.007Z'
    """
    if not isinstance(text, str) or not TIMESTAMP.fullmatch(text):
        raise InvalidReadingError(f"timestamp: {shown(text)} is not an ISO 8601 time with offset")
    try:
        when = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise InvalidReadingError(f"timestamp: {shown(text)}: {exc}") from exc
    return when.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def shown(value: Any) -> str:
    """Return a value as a reason shows it: in one line, and short."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Readings on their way: message -> entry of a batch -> document or dead letter.


class Entry(NamedTuple):
    """A valid reading on its way: its message, its document's id and source (JSON, UTF-8)."""

    message: Any
    document_id: str
    source: bytes


@dataclass
class Batch:
    """Messages that are settled together, and what is committed when they all are.

    Attributes:
        entries: the valid ones.
        dead_letters: the others, each with its reason.
        offsets: for each partition, the offset after its last message here.
    """

    entries: list[Entry] = field(default_factory=list)
    dead_letters: list[tuple[Any, str]] = field(default_factory=list)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    messages: int = 0
    size_bytes: int = 0
    opened: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return self.messages

    def add(self, partition: TopicPartition, message: Any) -> None:
        """Validate a message and take it in, as an entry or as a dead letter."""
        self.messages += 1
        try:
            reading = parse_reading(message.value)
        except InvalidReadingError as exc:
            self.dead_letters.append((message, str(exc)))
        else:
            document_id = f"{reading['sensor_id']}@{reading['timestamp']}"
            source = json.dumps(reading, separators=(",", ":")).encode()
            self.entries.append(Entry(message, document_id, source))
            self.size_bytes += len(source)
        self.offsets[partition] = message.offset + 1

    @property
    def is_full(self) -> bool:
        """Whether it must go before another message is taken in."""
        return self.messages >= BULK_READINGS or self.size_bytes >= BULK_BYTES

    @property
    def is_due(self) -> bool:
        """Whether it should go."""
        age_s = time.monotonic() - self.opened
        return self.is_full or (self.messages > 0 and age_s >= BULK_WAIT_S)


def classify(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return what Elasticsearch did with one document of a bulk, and why in its own words.

    indexed: it is stored. exists: the id is there already. again: not now. refused: never.

    >>> classify({"status": 429, "error": {"type": "es_rejected_execution_exception"}})
    ('again', '429 es_rejected_execution_exception: None')
    """
    status, error = item["status"], item.get("error", {})
    reason = f"{status} {error.get('type')}: {error.get('reason')}"
    if status == 201:
        return "indexed", ""
    if status == 409:
        return "exists", reason
    if status in RETRY_STATUSES or error.get("type") in (INDEX_GONE, INDEX_CLOSED):
        return "again", reason
    return "refused", reason


class Settler:
    """Brings the readings of a batch to where they stay. Its methods run in worker threads."""

    def __init__(self, config: Config, client: Elasticsearch, producer: KafkaProducer) -> None:
        self.config = config
        self.client = client
        self.producer = producer
        self.abandon = threading.Event()  # set: stop waiting for servers

    def settle(self, batch: Batch) -> Counter[str]:
        """Index what is valid, dead-letter the rest; return how many went which way.

        Retries what can succeed later for as long as it takes. When it returns, every message of
        the batch is indexed, already there, or acknowledged by the dead-letter topic.

        Raises:
            GaveUpError: told to abandon before that.
        """
        outcome: Counter[str] = Counter()
        pending, attempt = batch.entries, 0
        while pending:
            before = len(pending)
            pending, why = self.index(pending, batch, outcome)
            attempt = attempt + 1 if len(pending) == before else 1
            if pending:
                self.back_off(attempt, f"Elasticsearch: {len(pending)} readings wait ({why})")
        self.send_dead_letters(batch.dead_letters)
        outcome["dead_lettered"] = len(batch.dead_letters)
        return outcome

    def index(
        self, entries: list[Entry], batch: Batch, outcome: Counter[str]
    ) -> tuple[list[Entry], str]:
        """Send one bulk request; return the entries to send again, and why."""
        lines = [
            b'{"create":{"_id":"%b"}}\n%b\n' % (e.document_id.encode(), e.source) for e in entries
        ]
        try:
            answer = self.client.bulk(
                index=self.config.index,
                operations=[b"".join(lines)],  # type: ignore[list-item]  # bytes go as they are
                filter_path="items.*.status,items.*.error.type,items.*.error.reason",
            )
        except ApiError as exc:
            if exc.status_code not in (400, 413):
                return entries, one_line(exc)
            if len(entries) == 1:  # too large, or unreadable, by itself
                batch.dead_letters.append((entries[0].message, f"Elasticsearch: {one_line(exc)}"))
                return [], ""
            half = len(entries) // 2
            first, why = self.index(entries[:half], batch, outcome)
            second, why_too = self.index(entries[half:], batch, outcome)
            return first + second, why or why_too
        except TransportError as exc:  # refused, timed out, cut: what it did is unknown, ids tell
            return entries, one_line(exc)
        items = [item["create"] for item in answer.get("items", [])]
        if len(items) != len(entries):
            return entries, f"it answered for {len(items)} of {len(entries)}"
        again, existing, why = [], [], ""
        for entry, item in zip(entries, items, strict=True):
            verdict, reason = classify(item)
            if verdict == "indexed":
                outcome["indexed"] += 1
            elif verdict == "exists":
                existing.append(entry)
            elif verdict == "refused":
                batch.dead_letters.append((entry.message, f"Elasticsearch: {reason}"))
            else:
                again.append(entry)
                why = reason
        if INDEX_GONE in why:
            self.make_index_anew()
        undecided = self.compare(existing, batch, outcome)
        return again + undecided, why or "cannot read what is already there"

    def make_index_anew(self) -> None:
        """Create the index that somebody has deleted in mid-run, with its mapping."""
        try:
            ensure_index(self.client, self.config)
            log.warning("index %s was gone: made anew with its mapping", self.config.index)
        except (SetupError, ApiError, TransportError) as exc:
            log.error("index %s is gone and cannot be made: %s", self.config.index, one_line(exc))

    def compare(self, entries: list[Entry], batch: Batch, outcome: Counter[str]) -> list[Entry]:
        """Tell duplicates from conflicts, by what is stored; return the entries left undecided."""
        if not entries:
            return []
        try:
            answer = self.client.mget(index=self.config.index, ids=[e.document_id for e in entries])
        except (ApiError, TransportError):
            return entries
        undecided = []
        for entry, stored in zip(entries, answer["docs"], strict=True):
            if not stored.get("found"):  # deleted meanwhile
                undecided.append(entry)
            elif stored["_source"] == json.loads(entry.source):
                outcome["duplicates"] += 1
            else:
                reason = f"conflict: {entry.document_id} is already there with other values"
                batch.dead_letters.append((entry.message, reason))
        return undecided

    def send_dead_letters(self, letters: list[tuple[Any, str]]) -> None:
        """Send messages to the dead-letter topic until all are acknowledged.

        After a failure all are sent again: rather a dead letter twice than none.
        """
        for attempt in itertools.count(1):
            try:
                for future in [self.send_dead_letter(*letter) for letter in letters]:
                    future.get(timeout=30)
                return
            except KafkaError as exc:
                self.back_off(attempt, f"dead-letter topic: {len(letters)} messages wait ({exc})")

    def send_dead_letter(self, message: Any, reason: str) -> Any:
        """Hand one message to the producer: its key and bytes, the reason, where it came from."""
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

    def back_off(self, attempt: int, why: str) -> None:
        """Wait longer at each attempt, up to a cap, at random so that workers do not march in step.

        Raises:
            GaveUpError: told to abandon.
        """
        ceiling_s = min(RETRY_CAP_S, RETRY_BASE_S * 2 ** min(attempt, 10))
        delay_s = ceiling_s * random.uniform(0.5, 1.0)
        log.warning("%s; next try in %.1f s", why, delay_s)
        if self.abandon.wait(delay_s):
            raise GaveUpError(why)


def one_line(exc: Exception) -> str:
    """Return an exception's message in one line, not too long."""
    text = " ".join(str(exc).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


# The loop: poll, fill batches, hand them to the workers, commit what is settled.


class Pipeline:
    """The way of the messages through one process, and the accounts of what became of them."""

    def __init__(self, config: Config, consumer: KafkaConsumer, settler: Settler) -> None:
        self.config = config
        self.consumer = consumer
        self.settler = settler
        self.workers = ThreadPoolExecutor(BULKS_IN_FLIGHT, thread_name_prefix="bulk")
        self.batch = Batch()
        self.in_flight: deque[tuple[Batch, Future[Counter[str]]]] = deque()
        self.to_commit: dict[TopicPartition, int] = {}
        self.totals: Counter[str] = Counter()
        self.generation: int | None = None
        self.assigned: set[TopicPartition] = set()
        self.next_offset: dict[TopicPartition, int] = {}
        self.began = self.last_progress = self.last_busy = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Move messages until told to stop or idle for --exit-when-idle seconds."""
        while not stop.is_set() and not self.is_idle():
            self.collect()
            self.commit()
            if self.batch.is_due and len(self.in_flight) < BULKS_IN_FLIGHT:
                self.submit()
            if self.batch.is_full:  # back-pressure: read no more, but stay in the group
                self.consumer.pause(*self.consumer.assignment())
                wait([self.in_flight[0][1]], timeout=0.2)
                polled = self.consumer.poll(0)
            else:
                self.consumer.resume(*self.consumer.paused())
                polled = self.consumer.poll(100, max_records=BULK_READINGS - len(self.batch))
            self.note_assignment()
            self.take(polled)
            self.report()

    def note_assignment(self) -> None:
        """After each rebalance, say which partitions are ours and note where we go on in them."""
        generation = self.consumer.group_metadata().generation_id  # grows with each rebalance
        assigned = set(self.consumer.assignment() or ())
        if (generation, assigned) == (self.generation, self.assigned):
            return
        if assigned != self.assigned:
            numbers = ",".join(str(p.partition) for p in sorted(assigned)) or "none"
            log.info("assigned partitions=%s of topic=%s", numbers, self.config.topic)
        self.generation, self.assigned, self.next_offset = generation, assigned, {}
        try:
            for partition in assigned:
                offset = self.consumer.committed(partition, timeout_ms=COMMIT_TIMEOUT_MS)
                if offset is not None:
                    self.next_offset[partition] = offset
        except KafkaError as exc:
            log.warning("offsets already committed are not known (%s)", type(exc).__name__)

    def take(self, polled: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Add the polled messages to the batch, and say so when their offsets do not follow on."""
        for partition, messages in polled.items():
            expected = self.next_offset.get(partition, messages[0].offset)
            self.next_offset[partition] = messages[-1].offset + 1
            skipped = self.next_offset[partition] - expected - len(messages)
            if skipped > 0:  # markers of transactions leave gaps too
                log.warning(
                    "partition %d: %d offsets after %d hold nothing to read: deleted by the "
                    "topic's retention before we came", partition.partition, skipped, expected,
                )  # fmt: skip
            elif skipped < 0:
                log.warning(
                    "partition %d: offsets go back from %d to %d: the topic was made anew; reading "
                    "it from there", partition.partition, expected, messages[0].offset,
                )  # fmt: skip
            self.totals["consumed"] += len(messages)
            for message in messages:
                self.batch.add(partition, message)

    def submit(self) -> None:
        """Hand the batch to a worker and open the next."""
        self.in_flight.append((self.batch, self.workers.submit(self.settler.settle, self.batch)))
        self.batch = Batch()

    def collect(self) -> None:
        """Count the batches that are settled, oldest first, and note their offsets for the commit.

        Only from the front of the queue: a later batch that is settled sooner waits for its turn,
        so an offset is never committed before one that precedes it.

        Raises:
            GaveUpError: the worker of the oldest batch was told to abandon it.
        """
        while self.in_flight and self.in_flight[0][1].done():
            batch, settled = self.in_flight[0]
            self.totals += settled.result()
            self.to_commit |= batch.offsets
            self.in_flight.popleft()

    def commit(self) -> None:
        """Commit the offsets of what is settled, in the partitions that are still ours."""
        owned = self.consumer.assignment() or set()
        offsets = {p: OffsetAndMetadata(o, "", -1) for p, o in self.to_commit.items() if p in owned}
        if not offsets:
            return
        try:
            self.consumer.commit(offsets, timeout_ms=COMMIT_TIMEOUT_MS)
            self.to_commit = {}
        except KafkaError as exc:  # a rebalance, or Kafka away: they go with the next commit
            log.warning("offsets not committed yet (%s): with the next commit", type(exc).__name__)

    def is_idle(self) -> bool:
        """Return whether nothing has come for --exit-when-idle seconds with partitions assigned."""
        if self.unsettled or not self.assigned:
            self.last_busy = time.monotonic()
        return time.monotonic() - self.last_busy >= self.config.exit_when_idle_s

    @property
    def unsettled(self) -> int:
        """Number of messages read whose outcome is not known yet."""
        return len(self.batch) + sum(len(batch) for batch, _ in self.in_flight)

    def accounts(self) -> str:
        """Return the totals as key=value pairs."""
        names = ("consumed", "indexed", "duplicates", "dead_lettered")
        counts = " ".join(f"{name}={self.totals[name]}" for name in names)
        return f"{counts} in_flight={self.unsettled}"

    def report(self) -> None:
        """Log the progress every few seconds."""
        now = time.monotonic()
        if now - self.last_progress >= PROGRESS_S:
            rate_hz = (self.totals["consumed"] - self.totals["reported"]) / (
                now - self.last_progress
            )
            log.info("progress %s rate_hz=%.0f lag=%d", self.accounts(), rate_hz, self.lag())
            self.last_progress = now
            self.totals["reported"] = self.totals["consumed"]

    def lag(self) -> int:
        """Return how many messages of the assigned partitions are not settled."""
        behind = self.unsettled
        for partition in self.assigned:
            position = self.consumer.position(partition, timeout_ms=0)
            behind += max(0, (self.consumer.highwater(partition) or 0) - (position or 0))
        return behind

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
        seconds = time.monotonic() - self.began
        log.info(
            "stopped %s seconds=%.1f rate_hz=%.1f",
            self.accounts(), seconds, self.totals["consumed"] / seconds,
        )  # fmt: skip
        known = sum(self.totals[name] for name in ("indexed", "duplicates", "dead_lettered"))
        if known + self.unsettled != self.totals["consumed"]:
            log.error("the accounts do not close: %d messages unaccounted for",
                      self.totals["consumed"] - known - self.unsettled)  # fmt: skip
            return False
        return self.unsettled == 0


# Connecting, and what must be there before the first document.


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
        except (ApiError, TransportError, KafkaError) as exc:
            why, left_s = one_line(exc), deadline - time.monotonic()
            if left_s <= 0:
                raise UnreachableError(
                    f"{server} does not answer at {address} ({why}): is it started? "
                    "(docker compose up -d --wait)"
                ) from exc
            log.warning("waiting for %s at %s (%s), %.0f s left", server, address, why, left_s)
        if stop.wait(min(2.0, left_s)):
            raise StoppedError


def connect_to_elasticsearch(config: Config) -> Elasticsearch:
    """Return a client of an Elasticsearch that answers.

    Raises:
        SetupError: the URL or the rights are wrong.
        ApiError, TransportError: it does not answer yet.
    """
    try:
        client = Elasticsearch(config.elasticsearch_url, request_timeout=30, max_retries=0)
    except ValueError as exc:
        raise SetupError(f"ELASTICSEARCH_URL: {exc} (for example http://localhost:9200)") from exc
    try:
        client.options(request_timeout=5).cluster.health(wait_for_status="yellow", timeout="2s")
    except (AuthenticationException, AuthorizationException) as exc:
        raise SetupError(f"Elasticsearch refuses us: {one_line(exc)}") from exc
    return client


def ensure_index(client: Elasticsearch, config: Config) -> None:
    """Make sure that the index exists with the mapping of MAPPING_FILE, by an index template.

    The template also covers a later index of the same prefix. It forbids Elasticsearch to create
    one by itself: an index that is deleted in mid-run comes back here, not by a guess.

    Raises:
        SetupError: the mapping file is missing or wrong, or the index has another mapping.
        ApiError, TransportError: Elasticsearch does not answer.
    """
    index = config.index
    if config.dynamic_mapping:
        simulated = client.indices.simulate_index_template(name=index)
        if simulated.get("template", {}).get("mappings"):
            raise SetupError(
                f"--dynamic-mapping: an index template still gives {index} its mapping; choose "
                "an index of another name (ELASTICSEARCH_INDEX)"
            )
        return
    template = load_template()
    try:
        client.indices.put_index_template(
            name=index,
            index_patterns=[f"{index}*"],
            priority=100 + len(index),  # of two patterns that match, the longer wins
            allow_auto_create=False,
            template=template,
        )
        if not client.indices.exists(index=index):
            client.indices.create(index=index)
    except BadRequestError as exc:
        if exc.error != "resource_already_exists_exception":  # another consumer was faster
            raise SetupError(f"index {index}: {one_line(exc)}") from exc
    for name, found in client.indices.get_mapping(index=index).items():
        fields = found["mappings"].get("properties", {})
        for key, definition in template["mappings"]["properties"].items():
            if (kind := fields.get(key, {}).get("type")) != definition["type"]:
                raise SetupError(
                    f"index {name} has {key} as {kind}, not as {definition['type']}: it was made "
                    f"with another mapping; delete it (curl -X DELETE {shown_url(config)}/{name}) "
                    "or choose another name (ELASTICSEARCH_INDEX)"
                )


def load_template() -> dict[str, Any]:
    """Return the settings and mappings of MAPPING_FILE.

    Raises:
        SetupError: it is missing or wrong.
    """
    try:
        template = json.loads(MAPPING_FILE.read_text(encoding="utf-8"))
        template["mappings"]["properties"].items()
    except OSError as exc:
        raise SetupError(
            f"cannot read {MAPPING_FILE} ({exc.strerror}): put the project's mapping file there, "
            "or let Elasticsearch guess with --dynamic-mapping"
        ) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SetupError(f"{MAPPING_FILE} is not a JSON object with mappings: {exc!r}") from exc
    return dict(template)


def connect_to_kafka(config: Config) -> tuple[KafkaConsumer, KafkaProducer]:
    """Return a consumer in the group and a producer for dead letters.

    Raises:
        KafkaError: no broker answers yet, or the topic does not exist.
    """
    servers = config.bootstrap_servers.split(",")
    common = {"bootstrap_timeout_ms": 2000, "reconnect_backoff_max_ms": 5000}
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # here the waiting is said by us
    producer = KafkaProducer(
        bootstrap_servers=servers,
        acks="all",
        enable_idempotence=True,
        compression_type="gzip",
        max_request_size=64 * 1024 * 1024,  # whatever could be read can be written
        max_block_ms=5000,
        **common,
    )
    for topic in (config.topic, config.dead_letter_topic):
        producer.partitions_for(topic)  # creates it, where the broker allows that
    consumer = KafkaConsumer(
        bootstrap_servers=servers,
        group_id=config.group_id,
        auto_offset_reset="earliest",  # started after the generator, it misses nothing
        enable_auto_commit=False,  # only what is settled is committed
        session_timeout_ms=20_000,  # a killed member's partitions are free after that
        max_partition_fetch_bytes=4 * 1024 * 1024,
        **common,
    )
    # Without the topic's metadata kafka-python can join with an empty assignment and stay there
    # ("No partition metadata for topic"): ask for it before joining.
    if not consumer.partitions_for_topic(config.topic):
        raise UnknownTopicOrPartitionError(f"topic {config.topic} does not exist")
    consumer.subscribe([config.topic])
    logging.getLogger("kafka").setLevel(logging.ERROR)
    return consumer, producer


# The command.


def shown_url(config: Config) -> str:
    """Return Elasticsearch's URL without the user and password it may carry."""
    return re.sub(r"//[^/@]*@", "//", config.elasticsearch_url)


def topic_name(text: str) -> str:
    """Return a topic's name if Kafka allows it (and that of its dead letters)."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 200 letters, digits or . _ -")
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
    add("--group-id", "KAFKA_GROUP_ID", "smart-city-indexer")
    add("--elasticsearch-url", "ELASTICSEARCH_URL", "http://localhost:9200")
    add("--index", "ELASTICSEARCH_INDEX", "sensors_data")
    parser.add_argument("--dynamic-mapping", action="store_true",
        help="let Elasticsearch guess the mapping, without mappings/sensors_data.json")  # fmt: skip
    parser.add_argument("--exit-when-idle", type=seconds, default=math.inf, metavar="SECONDS",
        help="stop when nothing has come for that long (default: never)")  # fmt: skip
    parser.add_argument("--wait", type=seconds, default=60.0, metavar="SECONDS",
        help="how long to wait for the servers at the start (default: 60)")  # fmt: skip
    options = vars(parser.parse_args(argv))
    return Config(
        exit_when_idle_s=options.pop("exit_when_idle"), wait_s=options.pop("wait"), **options
    )


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
    load_dotenv(Path(__file__).with_name(".env"))  # the real environment wins over it
    config = load_config(argv, os.environ)
    configure_logging()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    try:
        where = ("Elasticsearch", shown_url(config))
        client = patiently(*where, lambda: connect_to_elasticsearch(config), config, stop)
        patiently(*where, lambda: ensure_index(client, config), config, stop)
        where = ("Kafka", config.bootstrap_servers)
        consumer, producer = patiently(*where, lambda: connect_to_kafka(config), config, stop)
    except StoppedError:
        return 0
    except (SetupError, UnreachableError) as exc:
        log.error("%s", exc)
        return 2 if isinstance(exc, SetupError) else 1
    log.info("indexing topic=%s group=%s into index=%s at %s",
             config.topic, config.group_id, config.index, shown_url(config))  # fmt: skip
    pipeline = Pipeline(config, consumer, Settler(config, client, producer))
    try:
        pipeline.run(stop)
    finally:
        closed_at_zero = pipeline.finish()
        consumer.close(timeout_ms=5000)
        producer.close(timeout=5)
    return 0 if closed_at_zero else 1


if __name__ == "__main__":
    raise SystemExit(main())
