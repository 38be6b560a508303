#!/usr/bin/env python3
"""Index a Kafka topic of sensor readings into Elasticsearch: none lost, none twice, none hidden.

    python kafka_to_elasticsearch.py                        # until Ctrl-C
    python kafka_to_elasticsearch.py --exit-when-idle 5     # until nothing has come for 5 s

    poll -> validate -> bulk request -> commit the offsets
               |             |
               +-------------+-> dead letter: topic <topic>.dead-letter, the original bytes with the
                                 reason and where they came from; and, for Kibana, an index of them

A document's id is sensor_id@timestamp, so a message that is read again changes nothing: it counts
as a duplicate. The offsets of a batch are committed once each of its messages is indexed, already
there or a dead letter. While Elasticsearch or Kafka is away, the script waits and says so. It logs:

    progress consumed=5000 indexed=4990 duplicates=8 dead_lettered=2 in_flight=0 rate_hz=1000 lag=0

Environment (or .env beside this file). --help names the variable of an option; besides these:
    KAFKA_CA_FILE, ELASTICSEARCH_CA_FILE           certificate of the authority to trust (PEM): TLS
    CONSUMER_KAFKA_USER, CONSUMER_KAFKA_PASSWORD   SCRAM-SHA-512 over TLS
    CONSUMER_ELASTICSEARCH_API_KEY, or CONSUMER_ELASTICSEARCH_USER and _PASSWORD

Exit codes: 0 done or stopped cleanly, 1 a server unreachable or messages left unsettled, 2 wrong
usage or configuration.
"""

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
import warnings
from base64 import b64encode
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import elasticsearch
import msgspec
import prometheus_client as prometheus
from dotenv import load_dotenv
from dotenv.parser import parse_stream
from elasticsearch import ApiError, BadRequestError, Elasticsearch, TransportError
from kafka import (
    ConsumerRebalanceListener,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    TopicPartition,
    errors,
)
from kafka.admin import NewTopic
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata
from msgspec import Meta

log = logging.getLogger("kafka_to_elasticsearch")
Options = argparse.Namespace

MAPPING_FILE = Path(__file__).with_name("mappings") / "sensors_data.json"
DEAD_LETTER_MAPPING_FILE = MAPPING_FILE.with_name("sensors_dead_letters.json")
BATCH_MESSAGES, BATCH_BYTES = 5000, 5_000_000  # a batch is full when it holds so many
BATCH_WAIT_S = 0.2  # a batch that is not full waits for more messages so long
BATCHES_IN_FLIGHT = 4  # Elasticsearch indexes them while the next is read and validated
RETRY_BASE_S, RETRY_CAP_S = 0.2, 10.0
REQUEST_TIMEOUT_S = 30.0  # Elasticsearch may work for so long on one bulk request
START_TIMEOUT_S = 10.0  # for each answer at the start, when somebody watches
SESSION_TIMEOUT_MS = 10_000  # after that, the partitions of a killed consumer go to another
MAX_POLL_INTERVAL_MS = 300_000  # a consumer that does not poll for so long is taken for dead
KAFKA_TIMEOUT_MS = 5000
DEAD_LETTER_BYTES = 100_000_000  # as large as any message that can be read
STOP_GRACE_S = 10.0  # for what is in flight, when told to stop
PROGRESS_S = 5.0
INDEX_AWAY = {"index_not_found_exception", "index_closed_exception"}
# What Python raises when an answer does not have the expected form.
MALFORMED_RESPONSE_ERRORS = (LookupError, TypeError, AttributeError, ValueError)
FATAL_KAFKA_ERRORS = (  # asked again, kafka-python would say the same, or never return
    errors.InconsistentGroupProtocolError,
    errors.UnsupportedCodecError,
    errors.CorruptRecordError,  # such as a header whose name is not UTF-8
)

MESSAGES = prometheus.Counter("smart_city_messages", "Messages by outcome.", ["outcome"])
RETRIES = prometheus.Counter("smart_city_retries", "Times that a server was waited for.")
IN_FLIGHT = prometheus.Gauge("smart_city_in_flight", "Messages read and not settled.")
LAG = prometheus.Gauge("smart_city_lag", "Messages of our partitions that are not settled.")
WAITING = prometheus.Gauge(
    "smart_city_waiting", "Servers that are waited for now, by workers and by the loop."
)
QUIET = prometheus.Gauge(
    "smart_city_seconds_since_settled",
    "Seconds since a batch was settled, or since nothing was left to settle.",
)
DELAY = prometheus.Histogram(
    "smart_city_delay_seconds",
    "From when the oldest message of a batch came into the topic until it is settled.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)


class SetupError(Exception):
    """What the user must change before the consumer can run, in one line."""


class GaveUpError(Exception):
    """Told to stop while a server was away."""


# 1. A message is a reading, or a dead letter.


class Reading(msgspec.Struct, forbid_unknown_fields=True):
    """The six fields, each within what a working sensor can measure."""

    sensor_id: str  # see SENSOR_ID
    timestamp: str  # ISO 8601 with its offset from UTC
    temperature: Annotated[float, Meta(ge=-40, le=60)]  # degrees Celsius
    humidity: Annotated[float, Meta(ge=0, le=100)]  # %
    co2_level: Annotated[int, Meta(ge=350, le=10_000)]  # ppm
    light_intensity: Annotated[int, Meta(ge=0, le=200_000)]  # lux


decode_reading = msgspec.json.Decoder(Reading).decode
SENSOR_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:[0-5]\d)", re.ASCII
)
QUOTES_PER_READING = 16  # six names and two texts; msgspec lets a field come twice


def parse_reading(value: bytes | None) -> Reading:
    """Return the reading in a message, its time in UTC with milliseconds (cut, not rounded).

    Raises:
        ValueError: it is none: not JSON, a field missing, unknown, twice, of another type or out
            of its range. The text says why.

    >>> parse_reading(b"[1, 2]")
    Traceback (most recent call last):
    msgspec.ValidationError: Expected `object`, got `array`
    """
    if not value:
        raise ValueError("empty message")
    try:
        reading = decode_reading(value)
    except UnicodeDecodeError as exc:
        raise ValueError("not UTF-8") from exc
    if not SENSOR_ID.fullmatch(reading.sensor_id):
        raise ValueError("sensor_id is not 1 to 128 letters, digits or . _ : -")
    if not TIMESTAMP.fullmatch(reading.timestamp):
        raise ValueError("timestamp is not an ISO 8601 time with its offset")
    try:
        when = datetime.fromisoformat(reading.timestamp)
        if len(reading.timestamp) != 24 or reading.timestamp[-1] != "Z":  # not our form yet
            in_utc = when.astimezone(UTC).isoformat(timespec="milliseconds")
            reading.timestamp = in_utc.removesuffix("+00:00") + "Z"
    except (ValueError, OverflowError) as exc:  # no such day, or not in the years 1 to 9999
        raise ValueError(f"timestamp: {exc}") from exc
    if value.count(b'"') != QUOTES_PER_READING:
        raise ValueError("a field is given twice")
    return reading


class Document(msgspec.Struct, gc=False):
    """What is indexed (the source is JSON), and the message that it came from."""

    id: str
    source: bytes
    message: Any


DeadLetter = tuple[Any, str]  # the message, and the reason: "kind: details"


@dataclass
class Batch:
    """Messages that are settled together, and the offsets that are committed then."""

    documents: list[Document] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    outcome: Counter[str] = field(default_factory=Counter)  # complete when the batch is settled
    messages: int = 0
    size_bytes: int = 0
    oldest_ms: float = math.inf  # when its oldest message came into the topic, Unix time
    opened: float = field(default_factory=time.monotonic)

    @property
    def is_full(self) -> bool:
        """Whether no more messages may be added."""
        return self.messages >= BATCH_MESSAGES or self.size_bytes >= BATCH_BYTES

    def add(self, partition: TopicPartition, messages: Sequence[Any]) -> None:
        """Validate messages and take them in, as documents or as dead letters."""
        self.messages += len(messages)
        self.size_bytes += sum(map(size_of, messages))
        self.offsets[partition] = messages[-1].offset + 1
        self.oldest_ms = min(self.oldest_ms, messages[0].timestamp)
        for message in messages:
            try:
                reading = parse_reading(message.value)
            except ValueError as exc:
                self.dead_letters.append((message, f"invalid: {one_line(exc)}"))
            else:
                document_id = f"{reading.sensor_id}@{reading.timestamp}"
                source = msgspec.json.encode(reading)
                self.documents.append(Document(document_id, source, message))


def size_of(message: Any) -> int:
    """Return how many bytes a message holds: key, value, headers."""
    size_bytes = len(message.key or b"") + len(message.value or b"")
    for name, value in message.headers:
        size_bytes += len(name) + len(value or b"")
    return size_bytes


def one_line(exc: BaseException) -> str:
    """Return what an exception says, in one line without control characters, not too long."""
    try:
        text = str(exc.message if isinstance(exc, TransportError) else exc)
    except MALFORMED_RESPONSE_ERRORS:  # an answer that Elasticsearch's client cannot print
        text = ""
    cut = (text or type(exc).__name__)[:300]
    return " ".join("".join(c if c.isprintable() else " " for c in cut).split())


# What varies between equal causes becomes a *, so that Kibana can count them.
VARYING = re.compile(r"'.*'|\".*\"|\d{4,}|(?<=byte )\d+|\d+:\d+")


def dead_letter_document(letter: DeadLetter) -> Document:
    """Return what Kibana shows of a dead letter: see mappings/sensors_dead_letters.json."""
    message, reason = letter
    value = message.value or b""
    where = f"{message.topic}/{message.partition}/{message.offset}@{message.timestamp}"
    fields = {
        "timestamp": message.timestamp,
        "kind": reason.partition(":")[0],
        "cause": VARYING.sub("*", reason),
        "reason": reason,
        "sensor_id": (message.key or b"")[:128].decode(errors="backslashreplace"),
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "size_bytes": len(value),
        "message": value[:500].decode(errors="backslashreplace"),  # the topic has all of it
    }
    return Document(where, msgspec.json.encode(fields), message)


# 2. A batch goes to Elasticsearch, in a worker thread.

WithReason = list[tuple[Any, str]]  # documents or dead letters, each with the server's reason


def classify(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return what Elasticsearch did with one document, and why in its own words.

    indexed: it is stored now. existing: its id was there. refused: by a rule. again: not now.

    >>> classify({"status": 429, "error": {"type": "es_rejected_execution_exception"}})
    ('again', '429 es_rejected_execution_exception: None')
    """
    if (status := item["status"]) == 201:
        return "indexed", ""
    error = item.get("error", {})
    why = f"{status} {error.get('type')}: {error.get('reason')}"
    if status == 409:
        return "existing", why
    if status == 200:
        return "refused", "200: an ingest pipeline has dropped it"
    if status in (400, 413) and error.get("type") not in INDEX_AWAY:
        return "refused", why
    return "again", why


class BulkWriter:
    """Settles batches: every message is indexed, already there, or a dead letter."""

    def __init__(self, options: Options, client: Elasticsearch, producer: KafkaProducer) -> None:
        self.options, self.client, self.producer = options, client, producer
        self.stopping = threading.Event()  # set: nobody waits for a server any more
        self.next_check = time.monotonic() + PROGRESS_S  # of the indices

    def settle(self, batch: Batch) -> None:
        """Settle a batch and count its outcome. Raises GaveUpError: told to stop before that."""
        if self.stopping.is_set():
            raise GaveUpError("Elasticsearch: no time was left to send them")
        index_readings = partial(self.index_readings, batch)
        self.retry_until_done("Elasticsearch", batch.documents, index_readings)
        if letters := batch.dead_letters:
            log.warning("dead letters: %d messages, the last: %s", len(letters), letters[-1][1])
        self.retry_until_done("dead-letter topic", batch.dead_letters, self.send_dead_letters)
        if self.options.dead_letter_index:
            shown = [dead_letter_document(letter) for letter in batch.dead_letters]
            self.retry_until_done("dead-letter index", shown, self.index_dead_letters)
        batch.outcome["dead_lettered"] = len(batch.dead_letters)

    def retry_until_done(
        self, server: str, pending: list[Any], send: Callable[[list[Any]], WithReason]
    ) -> None:
        """Send what is pending, then what is left of it, until nothing is; wait in between."""
        attempt = 0
        while pending:
            left = send(pending)
            if not left:
                return
            attempt = attempt + 1 if len(left) == len(pending) else 1  # short waits after progress
            pending, why = [item for item, _ in left], left[0][1]
            delay_s = min(RETRY_CAP_S, RETRY_BASE_S * 2 ** min(attempt, 10))
            delay_s *= random.uniform(0.5, 1)  # so that the workers do not march in step
            level = logging.WARNING if attempt <= 3 else logging.ERROR
            text = f"{server}: {len(pending)} messages wait ({why})"
            log.log(level, "%s; next try in %.1f s", text, delay_s)
            RETRIES.inc()
            with WAITING.track_inprogress():
                if self.stopping.wait(delay_s):
                    raise GaveUpError(text)

    def index_readings(self, batch: Batch, documents: list[Document]) -> WithReason:
        """Index readings once; return those to send again.

        What is refused while others are taken is at fault itself: a dead letter. When all are
        refused, the index is at fault: they wait until somebody mends it.
        """
        replies = self.create(self.options.index, documents)
        taken = [document for document, _ in replies["indexed"] + replies["existing"]]
        if taken and replies["refused"]:
            self.send_refused_again(replies, taken[0])
        batch.outcome["indexed"] += len(replies["indexed"])
        again = replies["again"]
        if taken:
            refused = [(doc.message, f"refused: {why}") for doc, why in replies["refused"]]
            batch.dead_letters += refused
        else:
            again += replies["refused"]
        existing = [document for document, _ in replies["existing"]]
        return again + self.tell_duplicates_from_conflicts(batch, existing)

    def send_refused_again(self, replies: dict[str, WithReason], control: Document) -> None:
        """Send what was refused beside a control, a document that was taken; put it anew by reply.

        A setting of the index may have changed in the middle of the first bulk. If the control is
        not taken a second time, the index is at fault: what is refused waits.
        """
        documents = [control, *(document for document, _ in replies.pop("refused"))]
        second = self.create(self.options.index, documents)
        is_taken = any(doc is control for doc, _ in second["indexed"] + second["existing"])
        for verdict, found in second.items():
            verdict = "again" if verdict == "refused" and not is_taken else verdict
            replies[verdict] += [reply for reply in found if reply[0] is not control]

    def index_dead_letters(self, documents: list[Document]) -> WithReason:
        """Index what Kibana shows of dead letters. What is refused is only logged: it is safe."""
        replies = self.create(self.options.dead_letter_index, documents)
        if refused := replies["refused"]:
            log.warning("dead-letter index: %d refused (%s)", len(refused), refused[0][1])
        return replies["again"]

    def create(self, index: str, documents: list[Document]) -> dict[str, WithReason]:
        """Store documents whose ids are not there yet; return them by what became of them.

        Sending one again is safe, whatever became of the first request: its id is the same.
        """
        if why := self.why_not_ready():
            return defaultdict(list, again=[(document, why) for document in documents])
        replies: dict[str, WithReason] = defaultdict(list)
        for document, (verdict, why) in zip(documents, self.bulk(index, documents), strict=True):
            replies[verdict].append((document, why))
        if any("index_not_found_exception" in why for _, why in replies["again"]):
            self.next_check = 0
        return replies

    def why_not_ready(self) -> str:
        """Make the indices that are missing, every few seconds; return why one cannot be used."""
        if time.monotonic() < self.next_check:
            return ""
        try:
            ensure_indices(self.client, self.options)
        except (SetupError, ApiError, TransportError, *MALFORMED_RESPONSE_ERRORS) as exc:
            return one_line(exc)
        self.next_check = time.monotonic() + PROGRESS_S
        return ""

    def bulk(self, index: str, documents: list[Document]) -> list[tuple[str, str]]:
        """Send one bulk request, in halves if it is refused whole; classify each answer."""
        lines = [b'{"create":{"_id":"%b"}}\n%b\n' % (d.id.encode(), d.source) for d in documents]
        try:
            answer = self.client.bulk(
                index=index,
                operations=[b"".join(lines)],  # type: ignore[list-item]  # bytes go as they are
                filter_path="items.*.status,items.*.error.type,items.*.error.reason",
            )
            verdicts = [classify(item["create"]) for item in answer["items"]]
            if len(verdicts) != len(documents):
                raise ValueError(f"it answered for {len(verdicts)} of {len(documents)}")
            return verdicts
        except ApiError as exc:
            is_refused = exc.status_code in (400, 413)
            if is_refused and len(documents) > 1 and not self.stopping.is_set():
                half = len(documents) // 2
                return self.bulk(index, documents[:half]) + self.bulk(index, documents[half:])
            verdict = "refused" if is_refused and len(documents) == 1 else "again"
            return [(verdict, one_line(exc))] * len(documents)
        except (TransportError, *MALFORMED_RESPONSE_ERRORS) as exc:
            return [("again", one_line(exc))] * len(documents)

    def tell_duplicates_from_conflicts(self, batch: Batch, documents: list[Document]) -> WithReason:
        """Compare documents with what has their ids; return those that cannot be compared yet."""
        try:
            ids = [document.id for document in documents]
            found = self.client.mget(index=self.options.index, ids=ids)["docs"] if ids else []
            stored = {answer["_id"]: answer for answer in found}
        except (ApiError, TransportError, *MALFORMED_RESPONSE_ERRORS) as exc:
            return [(document, one_line(exc)) for document in documents]
        undecided: WithReason = []
        for document in documents:
            answer = stored.get(document.id, {})
            if "_source" not in answer:
                why = f"what is there cannot be read: {answer.get('error')}"[:300]
                undecided.append((document, why))
            elif answer["_source"] == msgspec.json.decode(document.source):
                batch.outcome["duplicates"] += 1
            else:
                why = "conflict: this sensor has another reading of the same time in the index"
                batch.dead_letters.append((document.message, why))
        return undecided

    def send_dead_letters(self, letters: list[DeadLetter]) -> WithReason:
        """Send messages to the dead-letter topic; return those that it does not acknowledge."""
        sent: list[tuple[DeadLetter, Any]] = []
        left: WithReason = []
        for number, letter in enumerate(letters):
            try:
                sent.append((letter, self.send_dead_letter(*letter)))
            except KafkaError as exc:  # the producer takes no more
                left = [(unsent, one_line(exc)) for unsent in letters[number:]]
                break
        for letter, acknowledged in sent:
            try:
                acknowledged.get(timeout=3 * KAFKA_TIMEOUT_MS / 1000)
            except KafkaError as exc:
                left.append((letter, one_line(exc)))
        return left

    def send_dead_letter(self, message: Any, reason: str) -> Any:
        """Hand one message to the producer: its key and bytes, the reason, where it came from."""
        headers = {
            "reason": reason,
            "source.topic": message.topic,
            "source.partition": message.partition,
            "source.offset": message.offset,
            "source.timestamp": message.timestamp,
        }
        is_empty = message.key is message.value is None  # kafka-python refuses to send that
        return self.producer.send(
            f"{self.options.topic}.dead-letter",
            key=message.key,
            value=b"" if is_empty else message.value,
            headers=[(name, str(value).encode()) for name, value in headers.items()],
        )


# 3. The loop: read, hand over, commit.


class Pipeline(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """The main thread: reads, hands batches to the workers, commits what they have settled.

    At any time, consumed = indexed + duplicates + dead_lettered + in_flight.
    """

    def __init__(self, options: Options, consumer: KafkaConsumer, writer: BulkWriter) -> None:
        self.options, self.consumer, self.writer = options, consumer, writer
        self.workers = ThreadPoolExecutor(BATCHES_IN_FLIGHT)
        self.batch = Batch()
        self.in_flight: deque[tuple[Batch, Future[None]]] = deque()  # the oldest first
        self.settled: dict[TopicPartition, int] = {}  # up to which offsets, not yet committed
        self.assigned: set[TopicPartition] = set()
        self.partitions = 0  # how many the topic has, as of the last report
        self.totals: Counter[str] = Counter()
        self.message_bytes = BATCH_BYTES / 10  # of a message to come; a cautious guess at first
        self.is_kafka_silent = False
        self.began = self.last_busy = self.last_progress = self.last_settled = time.monotonic()
        self.next_commit = self.last_warning = -math.inf
        self.outside_since = math.inf  # since when the group refuses our commits
        self.count(consumed=0, indexed=0, duplicates=0, dead_lettered=0)  # Prometheus: from 0 on
        IN_FLIGHT.set_function(self.unsettled)
        QUIET.set_function(lambda: time.monotonic() - self.last_settled)

    def run(self, stop: threading.Event) -> None:
        """Move messages until told to stop, or idle for --exit-when-idle seconds."""
        self.consumer.subscribe([self.options.topic], listener=self)
        while not stop.is_set() and not self.is_idle():
            polled = self.poll()
            self.collect()
            is_alone = not polled and not self.in_flight
            is_due = self.batch.is_full or time.monotonic() - self.batch.opened >= BATCH_WAIT_S
            has_room = len(self.in_flight) < BATCHES_IN_FLIGHT
            if self.batch.messages and has_room and (is_due or is_alone):
                self.submit()
            self.commit()
            self.report()

    def poll(self) -> bool:
        """Take in new messages; return whether there were any. It also keeps us in the group."""
        if self.batch.is_full:  # back-pressure: nothing is read, but Kafka must see us
            wait([self.in_flight[0][1]], timeout=1)
            if self.in_flight[0][1].done():
                return False
            self.consumer.pause(*self.consumer.assignment())
            polled = self.ask_kafka(1)  # after a rebalance it may bring one all the same
            self.consumer.resume(*self.consumer.assignment())
        else:
            room = (BATCH_BYTES - self.batch.size_bytes) / self.message_bytes
            polled = self.ask_kafka(max(1, min(BATCH_MESSAGES - self.batch.messages, int(room))))
        for partition, messages in polled.items():
            if not (messages := self.what_fits(partition, messages)):
                continue
            if not self.batch.messages:
                self.batch.opened = time.monotonic()
            before = self.batch.size_bytes
            self.batch.add(partition, messages)
            mean = (self.batch.size_bytes - before) / len(messages)
            self.message_bytes = max(1, mean, self.message_bytes / 2)
            self.count(consumed=len(messages))
        return bool(polled)

    def what_fits(self, partition: TopicPartition, messages: list[Any]) -> list[Any]:
        """Return the messages that the batch has room for; the others will be polled again."""
        size_bytes = self.batch.size_bytes
        for number, message in enumerate(messages):
            if size_bytes >= BATCH_BYTES:
                self.consumer.seek(partition, message.offset)
                return messages[:number]
            size_bytes += size_of(message)
        return messages

    def ask_kafka(self, most: int) -> dict[TopicPartition, list[Any]]:
        """Return new messages by partition; none, and a log line, after an error that can heal."""
        try:
            return self.read(most)
        except FATAL_KAFKA_ERRORS:
            raise
        except KafkaError as exc:
            self.warn("Kafka: nothing can be read now (%s)", exc)
        except AssertionError:  # how kafka-python 2.3 says that the group forgot us as we joined
            self.join_anew()
        time.sleep(1)
        return {}

    def read(self, most: int) -> dict[TopicPartition, list[Any]]:
        """Poll the consumer: from the earliest message on where nothing was committed yet.

        Kafka also says when retention deleted messages before they were read: so do we.
        """
        polled: dict[TopicPartition, list[Any]] = {}
        try:
            polled = self.consumer.poll(20 if self.batch.messages else 200, max_records=most)
        except errors.NoOffsetForPartitionError as exc:
            self.consumer.seek_to_beginning(*exc.args[0])  # the partitions
        except errors.OffsetOutOfRangeError as exc:
            for partition, offset in exc.args[0].items():
                first = self.consumer.beginning_offsets([partition])[partition]
                self.consumer.seek(partition, first)
                text = "partition %d: reading on from offset %d: %d messages were deleted unread"
                log.error(text, partition.partition, first, max(0, first - offset))
        return polled

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Forget what is not committed: whoever gets these partitions next reads it again.

        A late commit of ours could take the group back behind what others have committed since.
        """
        self.settled.clear()
        for batch in (self.batch, *(batch for batch, _ in self.in_flight)):
            batch.offsets.clear()

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Say which partitions are ours."""
        self.assigned = set(assigned)
        self.outside_since = math.inf
        numbers = ",".join(str(p.partition) for p in sorted(assigned)) or "none"
        log.info("assigned partitions=%s of topic=%s", numbers, self.options.topic)

    def submit(self) -> None:
        """Hand the batch to a worker, and open the next."""
        self.in_flight.append((self.batch, self.workers.submit(self.writer.settle, self.batch)))
        self.batch = Batch()

    def collect(self) -> None:
        """Count the settled batches and note their offsets. Raises GaveUpError: see settle.

        Only from the oldest on, so that no offset is committed before those that precede it.
        """
        while self.in_flight and self.in_flight[0][1].done():
            batch, settled = self.in_flight[0]
            settled.result()
            self.in_flight.popleft()
            self.count(**batch.outcome)
            self.settled |= batch.offsets
            self.last_settled = time.monotonic()
            DELAY.observe(max(0, time.time() - batch.oldest_ms / 1000))

    def commit(self) -> bool:
        """Commit what is settled; return whether nothing is left to commit.

        A commit that is refused (Kafka is away, or moves partitions) is tried again. At worst the
        messages are read again, as duplicates.
        """
        if self.settled and time.monotonic() >= self.next_commit:
            offsets = {p: OffsetAndMetadata(offset, "", -1) for p, offset in self.settled.items()}
            try:
                self.consumer.commit(offsets, timeout_ms=KAFKA_TIMEOUT_MS)
                self.settled.clear()
                self.outside_since = math.inf
            except KafkaError as exc:
                self.warn("offsets not committed yet (%s)", exc)
                self.next_commit = time.monotonic() + 1
                if isinstance(exc, errors.CommitFailedError):  # we are no member of the group now
                    self.outside_since = min(self.outside_since, time.monotonic())
        return not self.settled

    def unsettled(self) -> int:
        """Return the number of messages whose outcome is not known yet."""
        return self.batch.messages + sum(batch.messages for batch, _ in list(self.in_flight))

    def is_idle(self) -> bool:
        """Return whether nothing has come for --exit-when-idle seconds, and all is read."""
        if self.unsettled() or self.settled:
            self.last_busy = time.monotonic()
        if time.monotonic() - self.last_busy < self.options.exit_when_idle:
            return False
        if self.assigned and self.lag() == 0:
            return True
        self.last_busy = time.monotonic()  # Kafka is slow or away: that is no idleness
        return False

    def lag(self) -> int | None:
        """Return how many messages of our partitions are not settled; None: Kafka does not say."""
        try:
            ends = self.consumer.end_offsets(list(self.assigned)) if self.assigned else {}
            unread = (end - self.consumer.position(p, KAFKA_TIMEOUT_MS) for p, end in ends.items())
            return self.unsettled() + int(sum(unread))
        except (KafkaError, AssertionError, TypeError, LookupError) as exc:  # or one has no leader
            self.warn("Kafka: the lag is not known (%s)", exc)
            return None

    def report(self) -> None:
        """Log the accounts every few seconds, and set what Prometheus is told."""
        if (seconds := time.monotonic() - self.last_progress) < PROGRESS_S:
            return
        lag = self.lag()
        if lag is not None:  # else Kafka is away, and the next would wait for it without limit
            self.join_anew_if_it_was_forgotten()
        rate_hz = (self.totals["consumed"] - self.totals["reported"]) / seconds
        shown = "unknown" if lag is None else lag
        log.info("progress %s rate_hz=%.0f lag=%s", self.accounts(), rate_hz, shown)
        if not self.assigned:
            log.warning("no partition is ours: waiting for one")
        if self.is_kafka_silent != (lag is None):
            self.is_kafka_silent = lag is None
            WAITING.inc(1 if self.is_kafka_silent else -1)
        if lag is not None:
            LAG.set(lag)
        if lag == 0:
            self.last_settled = time.monotonic()
        self.last_progress, self.totals["reported"] = time.monotonic(), self.totals["consumed"]

    def join_anew_if_it_was_forgotten(self) -> None:
        """Join the group where kafka-python 2.3 forgets to: it would read on, and commit no more.

        It may forget it when partitions were added, and when a rebalance met a restart of Kafka.
        """
        count = len(self.consumer.partitions_for_topic(self.options.topic))
        outside_s = time.monotonic() - self.outside_since
        if 0 < self.partitions < count or outside_s > SESSION_TIMEOUT_MS / 1000:
            self.join_anew()
        self.partitions = max(count, self.partitions)

    def join_anew(self) -> None:
        """Leave the group and join it again, from what is committed on."""
        log.info("joining the group anew for topic=%s", self.options.topic)
        self.on_partitions_revoked(list(self.assigned))
        self.outside_since = math.inf
        self.consumer.unsubscribe()
        self.consumer.subscribe([self.options.topic], listener=self)

    def count(self, **outcome: int) -> None:
        """Add to the accounts."""
        self.totals.update(outcome)
        for name, number in outcome.items():
            MESSAGES.labels(name).inc(number)

    def accounts(self) -> str:
        """Return what became of the messages."""
        names = ("consumed", "indexed", "duplicates", "dead_lettered")
        return " ".join(f"{n}={self.totals[n]}" for n in names) + f" in_flight={self.unsettled()}"

    def warn(self, text: str, exc: Exception) -> None:
        """Log what may go wrong again and again, once every few seconds."""
        if time.monotonic() - self.last_warning >= PROGRESS_S:
            log.warning(text, one_line(exc))
            self.last_warning = time.monotonic()

    def finish(self) -> bool:
        """Settle and commit what can be in bounded time; return whether nothing is left.

        What is left is not committed: the next start reads it again.
        """
        if self.batch.messages:
            self.submit()
        wait([settled for _, settled in self.in_flight], timeout=STOP_GRACE_S)
        self.writer.stopping.set()
        self.workers.shutdown()
        try:
            self.collect()
        except GaveUpError as exc:
            log.error("not settled, to be read again: %d messages (%s)", self.unsettled(), exc)
        deadline = time.monotonic() + STOP_GRACE_S
        while not self.commit() and time.monotonic() < deadline:
            self.consumer.pause(*self.consumer.assignment())
            self.ask_kafka(1)  # a rebalance must end first
        if self.settled:
            log.error("settled but not committed: it will be read again, as duplicates")
        seconds = max(0.001, time.monotonic() - self.began)
        rate_hz = self.totals["consumed"] / seconds
        log.info("stopped %s seconds=%.1f rate_hz=%.1f", self.accounts(), seconds, rate_hz)
        return not (self.unsettled() or self.settled)


# 4. Before the first message: the index, the connections, the options.


def ensure_indices(client: Elasticsearch, options: Options) -> None:
    """Make the indices, unless they are there. Raises SetupError: they cannot be as they must."""
    template = {} if options.dynamic_mapping else load_template(MAPPING_FILE)
    check_documents_are_kept(options.index, ensure_index(client, options.index, template))
    if options.dead_letter_index:
        ensure_index(client, options.dead_letter_index, load_template(DEAD_LETTER_MAPPING_FILE))


def load_template(file: Path) -> dict[str, Any]:
    """Return the settings and mappings in a file. Raises SetupError: it cannot be read."""
    try:
        template: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        template["mappings"]["properties"].items()
    except (OSError, *MALFORMED_RESPONSE_ERRORS) as exc:
        raise SetupError(f"{file}: {exc}; --dynamic-mapping does without it") from exc
    return template


def ensure_index(client: Elasticsearch, index: str, template: dict[str, Any]) -> dict[str, Any]:
    """Make an index with a mapping, unless it is there; return its settings and mappings.

    {}: Elasticsearch guesses the mapping.

    The index template, for this one name, keeps Elasticsearch from guessing when the index is
    deleted in mid-run: then it is missing, and made again here.
    """
    template_name = f"smart-city-{index}"
    if template:
        client.indices.put_index_template(
            name=template_name,
            index_patterns=[index],
            priority=1_000_000,  # above those of others, whose patterns may match too
            allow_auto_create=False,
            template=template,
        )
    else:  # an earlier run may have left ours
        client.options(ignore_status=404).indices.delete_index_template(name=template_name)
        guess = client.indices.simulate_index_template(name=index)
        if guess.get("template", {}).get("mappings"):
            raise SetupError(f"a template of others gives {index} its mapping: choose another name")
    if not client.indices.exists(index=index):
        try:
            client.indices.create(index=index, **template)
            log.info("index %s was not there: made", index)
        except BadRequestError as exc:
            if exc.error != "resource_already_exists_exception":  # another consumer was faster
                raise
    return check_index(index, dict(client.indices.get(index=index)), template)


def check_index(index: str, found: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
    """Check the fields' types; return the index's settings and mappings. Raises SetupError."""
    if len(found) != 1:
        names = ", ".join(found)
        raise SetupError(f"{index} stands for several indices ({names}): name one (--index)")
    ((name, state),) = found.items()
    fields = state["mappings"].get("properties", {})
    for key, definition in template.get("mappings", {}).get("properties", {}).items():
        if (kind := fields.get(key, {}).get("type")) != definition["type"]:
            delete = f"delete it (curl -X DELETE http://.../{name}) or " if name == index else ""
            raise SetupError(
                f"index {name} has {key} as {kind}, not as {definition['type']}: it was made with "
                f"another mapping; {delete}choose another name (--index, --dead-letter-index)"
            )
    return dict(state)


def check_documents_are_kept(index: str, state: dict[str, Any]) -> None:
    """Check that readings are stored, and read back, as they were sent. Raises SetupError."""
    if state["mappings"].get("_source"):
        raise SetupError(f"index {index} does not keep all of _source: a reading must be read back")
    for name in ("default_pipeline", "final_pipeline"):
        if (pipeline := state["settings"]["index"].get(name, "_none")) != "_none":
            raise SetupError(
                f"index {index}: {name} {pipeline} may change or drop readings: unset it"
            )


def connect_to_elasticsearch(options: Options) -> Elasticsearch:
    """Return a client; the indices are there. Raises SetupError: Elasticsearch refuses us."""
    where = f"Elasticsearch at {shown_urls(options.elasticsearch_url)}"
    try:
        client = Elasticsearch(
            options.elasticsearch_url.split(","),
            max_retries=0,
            request_timeout=REQUEST_TIMEOUT_S,
            **options.elasticsearch_security,
        )
        ensure_indices(client.options(request_timeout=START_TIMEOUT_S), options)
    except ApiError as exc:
        can_heal = exc.status_code in (408, 429) or exc.status_code >= 500
        if can_heal or exc.error in ("index_not_found_exception", "cluster_block_exception"):
            raise
        raise SetupError(f"{where} refuses: {one_line(exc)}") from exc
    except elasticsearch.SSLError as exc:
        raise SetupError(f"{where} refuses: {one_line(exc)}") from exc
    except MALFORMED_RESPONSE_ERRORS as exc:  # its text may show a password
        raise SetupError(f"{where}: this URL is not one of Elasticsearch's") from exc
    return client


def connect_to_kafka(options: Options) -> tuple[KafkaConsumer, KafkaProducer]:
    """Return a consumer, and a producer of dead letters. Raises SetupError: Kafka refuses us."""
    where = f"Kafka at {options.bootstrap_servers}"
    servers = options.bootstrap_servers.split(",")
    common = {"bootstrap_servers": servers, "reconnect_backoff_max_ms": 5000}
    common |= options.kafka_security
    try:
        ensure_topics(options.topic, common)
        return make_consumer(options, common), make_producer(common)
    except (errors.AuthorizationError, errors.InvalidTopicError) as exc:
        said = re.search(r"error_message=(['\"])(.*?)\1", str(exc))  # in the server's own words
        raise SetupError(f"{where} refuses: {said[2] if said else one_line(exc)}") from exc
    except (KafkaError, OSError, ValueError) as exc:  # the last: a connection that was cut at once
        raise KafkaError(f"{one_line(exc)}; {last_kafka_error.text}") from exc


def make_consumer(options: Options, common: dict[str, Any]) -> KafkaConsumer:
    """Return a consumer in a group; it takes part from its first poll on."""
    consumer = KafkaConsumer(
        group_id=options.group_id,
        auto_offset_reset="none",  # from the earliest, and said: see Pipeline.read
        enable_auto_commit=False,  # only what is settled is committed
        isolation_level="read_committed",  # not what a transaction has taken back
        session_timeout_ms=SESSION_TIMEOUT_MS,
        request_timeout_ms=SESSION_TIMEOUT_MS + 1000,
        heartbeat_interval_ms=1000,
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        metadata_max_age_ms=10_000,  # partitions that are added are read after that
        fetch_max_bytes=4_000_000,
        receive_message_max_bytes=2**31 - 1,  # the library's own limit is below that
        check_crcs=False,  # TCP and the broker have checked
        metrics_enabled=False,
        **common,
    )
    consumer.partitions_for_topic(options.topic)  # kafka-python 3 needs it before it joins
    return consumer


def make_producer(common: dict[str, Any]) -> KafkaProducer:
    """Return a producer for dead letters: large ones, each acknowledged by all replicas."""
    return KafkaProducer(
        acks="all",
        enable_idempotence=False,  # one that is sent twice does no harm
        compression_type="lz4",
        max_request_size=2**31 - 1,  # of what is not compressed yet
        max_block_ms=KAFKA_TIMEOUT_MS,
        request_timeout_ms=KAFKA_TIMEOUT_MS,
        delivery_timeout_ms=2 * KAFKA_TIMEOUT_MS,
        **common,
    )


def ensure_topics(topic: str, common: dict[str, Any]) -> None:
    """Make the topic and that of its dead letters, unless they are there."""
    with closing(KafkaAdminClient(request_timeout_ms=2 * KAFKA_TIMEOUT_MS, **common)) as admin:
        large = {"max.message.bytes": str(DEAD_LETTER_BYTES)}
        for new in (NewTopic(topic), NewTopic(f"{topic}.dead-letter", topic_configs=large)):
            if new.name not in admin.list_topics():
                with suppress(errors.TopicAlreadyExistsError):  # another consumer was faster
                    admin.create_topics([new])


def wait_for(server: str, connect: Callable[[], Any], wait_s: float, stop: threading.Event) -> Any:
    """Return what connect returns; try again for wait_s seconds, then exit with code 1."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return connect()
        except (ApiError, TransportError, KafkaError) as exc:
            why, left_s = one_line(exc), deadline - time.monotonic()
            hint = "" if isinstance(exc, ApiError) else ": is it started? (docker compose up)"
        if left_s <= 0:
            log.error("%s is not ready (%s)%s", server, why, hint)
            raise SystemExit(1)
        until = f", {left_s:.0f} s left" if left_s < math.inf else ""
        log.warning("waiting for %s (%s)%s", server, why, until)
        if stop.wait(min(2.0, left_s)):
            raise SystemExit(0)


def parse_options(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Options:
    """Return the options: flag > environment > default. A bad value exits with code 2."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, variable, default, kind in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", server_list),
        ("--topic", "KAFKA_TOPIC", "smart-city-sensors", topic_name),
        ("--group-id", "KAFKA_GROUP_ID", "smart-city-indexer", not_blank),
        ("--elasticsearch-url", "ELASTICSEARCH_URL", "http://localhost:9200", elasticsearch_urls),
        ("--index", "ELASTICSEARCH_INDEX", "sensors_data", index_name),
        (
            "--dead-letter-index",
            "ELASTICSEARCH_DEAD_LETTER_INDEX",
            "sensors_dead_letters",
            index_name,
        ),
    ):
        text = f"environment: {variable} (default: {default})"  # not what it is now: no secret
        value = environ.get(variable) or default
        parser.add_argument(flag, default=value, type=kind, metavar="TEXT", help=text)
    seconds, port = number(0, 1e9), number(1, 65_535, int)
    text = "stop when nothing has come for so many seconds"
    parser.add_argument("--exit-when-idle", type=seconds, default=math.inf, metavar="S", help=text)
    text = "seconds to wait for the servers at the start (default: 60)"
    parser.add_argument("--wait", type=seconds, default=60.0, metavar="S", help=text)
    text = "let Prometheus read /metrics on this port of 127.0.0.1"
    parser.add_argument("--metrics-port", type=port, metavar="PORT", help=text)
    text = "let Elasticsearch guess the mapping; dead letters are not indexed then"
    parser.add_argument("--dynamic-mapping", action="store_true", help=text)
    options = parser.parse_args(argv)
    if options.dead_letter_index == options.index:
        parser.error("--dead-letter-index is --index: dead letters have an index of their own")
    if options.dead_letter_index == "none" or options.dynamic_mapping:
        options.dead_letter_index = None
    options.kafka_security = kafka_security(environ, "CONSUMER")
    urls = options.elasticsearch_url
    options.elasticsearch_security = elasticsearch_security(environ, "CONSUMER", urls)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Move readings until stopped; return the exit code (see above)."""
    configure_logging()
    stop = stop_on_signals()
    try:
        load_env(Path(__file__).with_name(".env"))
        options = parse_options(argv, os.environ)
        serve_metrics(options.metrics_port)
        where = f"Elasticsearch at {shown_urls(options.elasticsearch_url)}"
        client = wait_for(where, partial(connect_to_elasticsearch, options), options.wait, stop)
        where = f"Kafka at {options.bootstrap_servers}"
        clients = wait_for(where, partial(connect_to_kafka, options), options.wait, stop)
    except SetupError as exc:
        log.error("%s", exc)
        return 2
    log.info(
        "indexing topic=%s group=%s into index=%s", options.topic, options.group_id, options.index
    )
    # Messages lie in no cycles: looking for those less often saves a tenth of the processor.
    gc.freeze()
    gc.set_threshold(50_000)
    consumer, producer = clients
    pipeline = Pipeline(options, consumer, BulkWriter(options, client, producer))
    failed = False
    try:
        pipeline.run(stop)
    except KafkaError as exc:
        log.error("Kafka: %s", one_line(exc))
        failed = True
    finally:
        is_settled = pipeline.finish()
        consumer.close(autocommit=False, timeout_ms=KAFKA_TIMEOUT_MS)
        producer.close(timeout=0)
    return 0 if is_settled and not failed else 1


# 5. What a first reader may skip: logging, signals, metrics, the form of values, security.


class LastError(logging.Handler):
    """Keeps the last error of kafka-python's log: its exceptions do not say the cause."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a record says, without the connection's description before it."""
        self.text = record.getMessage().rpartition(">: ")[2].removeprefix("Closing connection. ")


last_kafka_error = LastError(logging.ERROR)


def configure_logging() -> None:
    """Log to stderr, in UTC. What goes wrong inside the libraries is said by us, once."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: str(message)  # without a line of code
    logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)
    logging.getLogger("kafka").addHandler(last_kafka_error)
    logging.getLogger("kafka").propagate = False


def stop_on_signals() -> threading.Event:
    """Return a flag that is set when the process is told to end."""
    stop = threading.Event()
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signals.append(signal.SIGHUP)  # the terminal is closed, and nohup has not asked to go on
    for signum in signals:
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    return stop


def serve_metrics(port: int | None) -> None:
    """Answer /metrics on this machine, if wanted. Raises SetupError: the port is taken."""
    try:
        if port:
            prometheus.start_http_server(port, addr="127.0.0.1")
    except OSError as exc:
        raise SetupError(f"--metrics-port {port}: {exc.strerror}: choose another") from exc


def load_env(file: Path) -> None:
    """Put what a .env file says into the environment, where it is not set yet.

    Raises SetupError: the file cannot be read; the text names the line, and shows nothing of it.
    """
    try:
        content = file.read_text("utf-8-sig") if file.exists() else ""
        for binding in parse_stream(StringIO(content)):
            statement = binding.original.string
            is_incomplete = binding.key is not None and binding.value is None
            if binding.error or is_incomplete or "\0" in statement:
                line = binding.original.line + statement.count("\n", 0, -len(statement.lstrip()))
                raise SetupError(f"{file}, line {line}: not NAME=VALUE, or a quote is not closed")
        load_dotenv(stream=StringIO(content), interpolate=False)  # $ is a letter of a password
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise SetupError(f"{file}, line {line}: not in UTF-8: save it so") from exc
    except (OSError, ValueError) as exc:
        raise SetupError(f"{file}: {exc}") from exc


def number(lowest: float, highest: float, kind: type[int] | type[float] = float) -> Any:
    """Return an argparse type: a number within these limits."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if lowest <= (value := kind(text)) <= highest:
                return value
        limits = f"{'whole ' if kind is int else ''}number from {lowest:g} to {highest:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {limits}")

    return parse


def text(pattern: str, form: str) -> Callable[[str], str]:
    """Return an argparse type: a text of this form."""

    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value) or re.search("[\ud800-\udfff]", value):  # not UTF-8
            raise argparse.ArgumentTypeError(f"{value!r} is not {form}")
        return value

    return parse


not_blank = text(r"(?s)\s*\S.*", "a name: it is blank")
topic_name = text(r"(?!\.\.?$)[A-Za-z0-9._-]{1,237}", "1 to 237 letters, digits or . _ -")
index_name = text(
    r"(?![-_+.])[^\sA-Z\\/*?\"<>|,#:]{1,255}", "the name of one index (small letters, digits)"
)


def server_list(text: str) -> str:
    """Return a list of servers if each is HOST:PORT, such as localhost:9092 or [::1]:9092."""
    for server in text.split(","):
        match = re.fullmatch(r"(?:\[[^\s\[\]]+\]|[^\s:\[\]]+):(\d{1,5})", server)
        if not match or not 0 < int(match[1]) <= 65_535:
            raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT[,HOST:PORT...]")
    return text


def elasticsearch_urls(text: str) -> str:
    """Return URLs, with commas between, if each is one. They are not shown: see shown_urls."""
    pattern = r"https?://([^\s,/\\?#@\[\]]+@)?(\[[0-9A-Fa-f:]+\]|[\w.-]+):\d+(/[^\s,\\?#@]*)?"
    for url in text.split(","):
        is_url = False
        with suppress(ValueError):  # a host or port that cannot be
            is_url = bool(url.isascii() and re.fullmatch(pattern, url) and urlsplit(url).port)
        if not is_url:
            raise argparse.ArgumentTypeError(
                "ELASTICSEARCH_URL is not http://HOST:PORT or https://HOST:PORT; in a password, "
                "special characters are percent-encoded: @ is %40, / is %2F, [ is %5B"
            )
    return text


def shown_urls(urls: str) -> str:
    """Return URLs without the user and password they may carry."""
    return re.sub(r"//((?!,https?://).)*@", "//", urls)


def login(environ: Mapping[str, str], role: str, server: str) -> tuple[str, str, str]:
    """Return user, password and certificates' file for a server, each "" where there is none."""
    names = (f"{role}_{server}_USER", f"{role}_{server}_PASSWORD", f"{server}_CA_FILE")
    user, password, file = (environ.get(name, "").strip() for name in names)
    if bool(user) != bool(password):
        raise SetupError(f"{names[0]} and {names[1]}: set both, or neither")
    try:
        if file:
            ssl.create_default_context(cafile=file)
    except OSError as exc:
        raise SetupError(f"{names[2]}: {file} has no certificates ({exc})") from exc
    return user, password, file


def kafka_security(environ: Mapping[str, str], role: str) -> dict[str, Any]:
    """Return kafka-python's options for TLS and a password, as far as they are wanted."""
    user, password, file = login(environ, role, "KAFKA")
    if not user and not file:
        return {}
    context = ssl.create_default_context(cafile=file or None)
    tls = {"security_protocol": "SASL_SSL" if user else "SSL", "ssl_context": context}
    sasl = {"sasl_plain_username": user, "sasl_plain_password": password}
    return tls | {"sasl_mechanism": "SCRAM-SHA-512", **sasl} if user else tls


def elasticsearch_security(environ: Mapping[str, str], role: str, urls: str) -> dict[str, Any]:
    """Return the same of Elasticsearch's client. Raises SetupError: a secret would be seen."""
    user, password, file = login(environ, role, "ELASTICSEARCH")
    # Of letters beyond ASCII the client takes only what is encoded already.
    basic = b64encode(f"{user}:{password}".encode(errors="surrogateescape")).decode()
    options: dict[str, Any] = {"basic_auth": basic} if user else {}
    if key := environ.get(variable := f"{role}_ELASTICSEARCH_API_KEY", "").strip():  # it wins
        if not re.fullmatch(r"[!-~]+", key):  # else the client's error would show it
            raise SetupError(f"{variable}: a key has no space and no other than ASCII characters")
        options = {"api_key": key}
    for url in map(urlsplit, urls.split(",")):
        is_here = url.hostname in ("localhost", "127.0.0.1", "::1")
        if url.scheme == "http" and not is_here and (options or url.password):
            raise SetupError(f"ELASTICSEARCH_URL: a password goes to {url.hostname} by https only")
    return options | ({"ca_certs": file} if file and "https:" in urls else {})


if __name__ == "__main__":
    raise SystemExit(main())
