#!/usr/bin/env python3
"""Simulate the sensors of a few buildings and send their readings to Kafka.

    python pipelines/smarttech/kafka_producer.py                           # 1 per second
    python pipelines/smarttech/kafka_producer.py --count 20000 --at-once   # hours of them, now
    python pipelines/smarttech/kafka_producer.py --console --count 3       # without Kafka
    python pipelines/smarttech/kafka_producer.py --folder DIR --count 500  # as JSON files

A reading, one JSON object; the message's key is the device:

    {"timestamp": "2025-12-15T10:00:00Z", "device_id": "sensor_001", "building": "A", "floor": 2,
     "type": "temperature", "value": 22.5, "unit": "C"}

Each device measures four things in turn: temperature (C), humidity (%), energy (kWh used in the
last minute) and co2 (ppm). The same --seed and --start give the same messages, byte for byte.

Some of them wrong on purpose, as shares of the messages, all 0 by default:

    --bad RATE         not a reading: not JSON, a field missing, a wrong type, unit, time or value
    --duplicate RATE   the device's last reading once more, the same bytes
    --late RATE        sent up to 15 minutes after its time, out of order
    --spike RATE       a value far from its neighbours, but possible: an anomaly to find

--ledger FILE notes each message as CSV: partition and offset as acknowledged (empty when not),
CRC-32 of its bytes, label (reading, duplicate, late, spike, bad_json, missing_field...).

Environment (or .env at the root of the project; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    SMARTTECH_TOPIC           default sensor_data

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable, a message not acknowledged, or not all
written or noted; 2 wrong usage or configuration.
"""

import argparse
import csv
import heapq
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.producer.future import RecordMetadata

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.smarttech.options import (  # noqa: E402  # works from any folder
    KAFKA_START,
    at_least,
    load_env,
    servers,
    topic_name,
)

log = logging.getLogger("kafka_producer")

UNITS = {"temperature": "C", "humidity": "%", "energy": "kWh", "co2": "ppm"}
BUILDINGS, FLOORS = "ABC", 4
LATEST_S = 900.0  # of a late reading
FILE_READINGS = 100  # in one file of --folder
GIVE_UP_S = 15.0  # at the end, without an acknowledgement
MAX_PENDING = 20_000  # messages that are not acknowledged yet
PROGRESS_S = 5.0


@dataclass(frozen=True)
class Config:
    """One run of the producer, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    console: bool
    folder: Path | None
    count: int | None
    rate_hz: float
    at_once: bool
    devices: int
    seed: int
    start: datetime
    bad: float
    duplicate: float
    late: float
    spike: float
    ledger: Path | None
    wait_s: float


class Message(NamedTuple):
    """What is sent, when (seconds after the start), and why it is as it is."""

    due_s: float
    device_id: str
    value: bytes
    label: str


# The buildings: what a sensor reads.


def occupancy(when: datetime) -> float:
    """Return how full an office building is, from 0 to 1: working days, 8 to 18 h UTC.

    >>> [occupancy(datetime(2025, 12, 15, hour, tzinfo=UTC)) for hour in (3, 8, 13)]
    [0.0, 0.5, 1.0]
    >>> occupancy(datetime(2025, 12, 14, 13, tzinfo=UTC))
    0.0
    """
    if when.weekday() >= 5:
        return 0.0
    hour = when.hour + when.minute / 60 + when.second / 3600
    return min(1.0, max(0.0, min((hour - 7) / 2, (19 - hour) / 2)))


def expected_value(kind: str, when: datetime, floor: int) -> float:
    """Return what a sensor would read without noise, in the unit of its type.

    >>> noon = datetime(2025, 12, 15, 12, tzinfo=UTC)
    >>> [expected_value(kind, noon, 2) for kind in UNITS]
    [22.1, 41.0, 0.5, 900.0]
    """
    full = occupancy(when)
    if kind == "temperature":
        return 19.5 + 2.0 * full + 0.3 * floor
    if kind == "humidity":
        return 45.0 - 4.0 * full
    if kind == "energy":
        return 0.1 + 0.4 * full
    return 420.0 + 480.0 * full  # co2: outdoor air, and what people breathe out


NOISE = {"temperature": 0.2, "humidity": 1.0, "energy": 0.03, "co2": 15.0}  # standard deviation


class Simulation:
    """The devices, one message after another, without end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.random = random.Random(config.seed)
        self.last: dict[str, Message] = {}  # device -> its last reading

    def messages(self) -> Iterator[Message]:
        """Yield the messages in the order in which they are sent."""
        held: list[tuple[float, int, Message]] = []  # late ones: when to send, serial number
        turn = 0
        while True:
            due_s = turn / self.config.rate_hz
            while held and held[0][0] <= due_s:
                release_s, _, message = heapq.heappop(held)
                yield message._replace(due_s=release_s)
            message = self.message(turn, due_s)
            if message.label == "late":
                heapq.heappush(held, (due_s + self.random.uniform(1, LATEST_S), turn, message))
            else:
                yield message
            turn += 1

    def message(self, turn: int, due_s: float) -> Message:
        """Return the message of a turn: a reading, most of the time."""
        device = turn % self.config.devices
        device_id = f"sensor_{device + 1:03}"
        label = self.draw_label()
        if label == "duplicate" and device_id in self.last:
            return self.last[device_id]._replace(due_s=due_s, label=label)
        kind = list(UNITS)[turn // self.config.devices % len(UNITS)]
        reading = self.reading(device, kind, due_s, label == "spike")
        if label == "bad":
            label, value = self.spoil(reading)
        else:
            label = "reading" if label == "duplicate" else label
            value = json.dumps(reading).encode()
        message = Message(due_s, device_id, value, label)
        if label in ("reading", "spike"):
            self.last[device_id] = message
        return message

    def draw_label(self) -> str:
        """Return what is to be wrong with the next message, most often nothing ("reading")."""
        draw = self.random.random()
        for label in ("bad", "duplicate", "late", "spike"):
            draw -= getattr(self.config, label)
            if draw < 0:
                return label
        return "reading"

    def reading(self, device: int, kind: str, due_s: float, is_spike: bool) -> dict[str, Any]:
        """Return a valid reading."""
        when = self.config.start + timedelta(seconds=due_s)
        floor = device // len(BUILDINGS) % FLOORS
        value = expected_value(kind, when, floor) + self.random.gauss(0, NOISE[kind])
        if is_spike:
            value += self.random.choice((20, 40)) * NOISE[kind]
        return {
            "timestamp": timestamp(when),
            "device_id": f"sensor_{device + 1:03}",
            "building": BUILDINGS[device % len(BUILDINGS)],
            "floor": floor,
            "type": kind,
            "value": round(max(value, 0.0), 3 if kind == "energy" else 1),
            "unit": UNITS[kind],
        }

    def spoil(self, reading: dict[str, Any]) -> tuple[str, bytes]:
        """Return a kind of defect, named as the consumer should, and a message that has it."""
        label = self.random.choice(
            (
                "bad_json",
                "missing_field",
                "wrong_type",
                "bad_timestamp",
                "wrong_unit",
                "out_of_range",
            )
        )
        if label == "bad_json":
            return label, json.dumps(reading).encode()[: self.random.randrange(1, 60)]
        if label == "missing_field":
            del reading[self.random.choice(list(reading))]
        changed: dict[str, dict[str, Any]] = {
            "wrong_type": {"value": "n/a"},
            "bad_timestamp": {"timestamp": "15/12/2025 10:00"},
            "wrong_unit": {"unit": "F"},
            "out_of_range": {"value": self.random.choice((-1e6, 1e6))},
        }
        return label, json.dumps(reading | changed.get(label, {})).encode()


def timestamp(when: datetime) -> str:
    """Return a time as ISO 8601 in UTC, with milliseconds where it has some.

    >>> timestamp(datetime(2025, 12, 15, 10, tzinfo=UTC))
    '2025-12-15T10:00:00Z'
    """
    text = when.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00").removesuffix(".000") + "Z"


def paced(messages: Iterable[Message], config: Config, stop: threading.Event) -> Iterator[Message]:
    """Yield messages when they are due, or at once, until told to stop."""
    began = time.monotonic()
    for message in islice(messages, config.count):
        if not config.at_once:
            stop.wait(max(0.0, began + message.due_s - time.monotonic()))
        if stop.is_set():
            return
        yield message


# Where they go.


def print_messages(messages: Iterable[Message]) -> int:
    """Write the messages to stdout, a line each; return how many."""
    printed = 0
    for printed, message in enumerate(messages, 1):  # noqa: B007  # the last one counts
        sys.stdout.write(message.value.decode() + "\n")
        sys.stdout.flush()
    return printed


def write_files(messages: Iterable[Message], folder: Path) -> int:
    """Write the messages into files of JSON lines; return how many.

    A file gets its name when it is complete: a stream that watches the folder takes each once.
    """
    written = 0
    messages = iter(messages)
    while batch := list(islice(messages, FILE_READINGS)):
        name = f"{time.time_ns()}-{written:09}.json"
        partial = folder / f".{name}"  # Spark passes over names that begin with a dot
        partial.write_bytes(b"".join(message.value + b"\n" for message in batch))
        partial.rename(folder / name)
        written += len(batch)
    return written


class Ledger:
    """Notes what became of each message; without a file, nothing.

    Attributes:
        error: why it is not whole; after the first it notes no more.
    """

    def __init__(self, path: Path | None) -> None:
        self.error: OSError | None = None
        self.file = path.open("w", encoding="ascii", newline="") if path else None
        self.writer = csv.writer(self.file) if self.file else None
        if self.writer:
            self.writer.writerow(["partition", "offset", "crc32", "label"])

    def note(self, message: Message, stored: RecordMetadata | None) -> None:
        """Note a message, and where it is stored if it was acknowledged."""
        if not self.writer or self.error:
            return
        where = [stored.partition, stored.offset] if stored else ["", ""]
        try:
            self.writer.writerow([*where, f"{zlib.crc32(message.value):08x}", message.label])
        except OSError as exc:  # kept: most often this is Kafka's thread, which would swallow it
            self.error = exc

    def close(self) -> None:
        """Close the file, which writes the rest of it."""
        if not self.file:
            return
        try:
            self.file.close()
        except OSError as exc:
            self.error = self.error or exc


class Sender:
    """Sends messages, keyed by device, and counts what becomes of them."""

    def __init__(
        self, producer: KafkaProducer, topic: str, ledger: Ledger, stop: threading.Event
    ) -> None:
        self.producer = producer
        self.topic = topic
        self.ledger = ledger
        self.stop = stop
        self.lock = threading.Lock()  # outcomes come in the producer's own thread
        self.pending: dict[int, Message] = {}
        self.sent = self.acknowledged = self.failed = 0
        self.last_error = ""
        self.next_report = time.monotonic() + PROGRESS_S

    def send_all(self, messages: Iterable[Message]) -> None:
        """Send messages and wait for their outcomes; a message without one has failed."""
        for message in messages:
            self.send(message)
            self.report()
        self.wait_for_outcomes()
        for serial in list(self.pending):
            self.settle(serial, None, KafkaTimeoutError("Kafka does not answer"))

    def report(self) -> None:
        """Log the counts every few seconds."""
        if time.monotonic() >= self.next_report:
            log.info("progress sent=%d acknowledged=%d", self.sent, self.acknowledged)
            self.next_report = time.monotonic() + PROGRESS_S

    def send(self, message: Message) -> None:
        """Hand a message to the producer."""
        if len(self.pending) >= MAX_PENDING:
            self.wait_for_room()
        self.sent += 1
        serial = self.sent
        self.pending[serial] = message
        key = message.device_id.encode()
        try:
            future = self.producer.send(self.topic, key=key, value=message.value)
        except KafkaError as exc:
            self.settle(serial, None, exc)
            return
        future.add_callback(lambda stored: self.settle(serial, stored))
        future.add_errback(lambda error: self.settle(serial, None, error))

    def wait_for_room(self) -> None:
        """Wait until half of what is on its way has an outcome: kafka-python takes any number.

        Its thread, which sends them, gets little of Python's time while this one makes more: they
        would fill the memory.
        """
        while len(self.pending) > MAX_PENDING // 2 and not self.stop.wait(0.01):
            self.report()

    def wait_for_outcomes(self) -> None:
        """Close the producer; wait as long as outcomes come.

        kafka-python's close() waits for Kafka without limit, so it gets a thread that need not end.
        """
        ending = threading.Thread(target=self.producer.close, daemon=True)
        ending.start()
        left, last_outcome = len(self.pending), time.monotonic()
        while ending.is_alive() and time.monotonic() < last_outcome + GIVE_UP_S:
            ending.join(0.1)
            if len(self.pending) < left:
                left, last_outcome = len(self.pending), time.monotonic()

    def settle(
        self, serial: int, stored: RecordMetadata | None, error: BaseException | None = None
    ) -> None:
        """Count and note what became of a message; only its first outcome counts."""
        with self.lock:
            if (message := self.pending.pop(serial, None)) is None:
                return
            if stored:
                self.acknowledged += 1
            else:
                self.failed += 1
                self.last_error = str(error)
            self.ledger.note(message, stored)


class NoTopicError(Exception):
    """Kafka answers, but has no such topic and makes none."""


def make_topic(bootstrap_servers: str, topic: str) -> None:
    """Have the broker make a topic by its own rules, if it is not there and the broker may.

    A producer's question for one topic makes it; a consumer's, which is for all of them, does not.
    By a producer of its own, which waits for a short time only: that of the one that sends bounds
    its every send as well.

    Raises:
        KafkaError: no broker answers.
        NoTopicError: one does, but there is no topic.
    """
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers.split(","), max_block_ms=5000)
    try:
        producer.partitions_for(topic)
    except KafkaTimeoutError as exc:
        raise NoTopicError(f"there is no topic {topic}") from exc
    finally:
        producer.close(timeout=1)


def connect(config: Config, stop: threading.Event) -> KafkaProducer | None:
    """Return a producer whose topic is there, None when told to stop.

    Raises:
        KafkaError: no broker answered in time.
        NoTopicError: one did, but there is no topic.
    """
    deadline = time.monotonic() + config.wait_s
    while not stop.is_set():
        try:
            make_topic(config.bootstrap_servers, config.topic)
            return KafkaProducer(
                bootstrap_servers=config.bootstrap_servers.split(","),
                acks="all",
                enable_idempotence=True,  # a send that is retried is stored once
                # A message waits for Kafka as long as it takes. With a shorter time-out this
                # producer may never send again after a message that expired.
                delivery_timeout_ms=30 * 86_400_000,
                reconnect_backoff_max_ms=2000,
                linger_ms=20,
                batch_size=128 * 1024,
                compression_type="gzip",
            )
        except (KafkaError, NoTopicError) as exc:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            log.warning(
                "waiting for Kafka at %s (%s), %.0f s left", config.bootstrap_servers, exc, left_s
            )
            stop.wait(min(2.0, left_s))
    return None


# The command.


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time; one without an offset is UTC.

    >>> parse_time("2025-12-15T11:00:00+01:00").isoformat()
    '2025-12-15T11:00:00+01:00'
    """
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    summary, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--console", action="store_true", help="print the messages instead of sending them")
    add("--folder", type=Path, metavar="DIR", help="write them as JSON files instead")
    add("--count", type=at_least(1, int), metavar="N", help="stop after N messages")
    add("--rate", type=at_least(0.001, float), default=1.0, metavar="PER_SECOND",
        help="messages per second (default: 1)")  # fmt: skip
    add("--at-once", action="store_true",
        help="send --count messages without waiting; their times end now")  # fmt: skip
    add("--devices", type=at_least(1, int), default=12, metavar="N", help="(default: 12)")
    add("--seed", type=int, help="for the same messages again (default: a new one, shown)")
    add("--start", type=parse_time, metavar="TIME", help="of the first reading, ISO 8601")
    add("--bad", type=share, default=0.0, metavar="RATE", help="share that is no reading")
    add("--duplicate", type=share, default=0.0, metavar="RATE", help="share that is sent again")
    add("--late", type=share, default=0.0, metavar="RATE", help="share that comes late")
    add("--spike", type=share, default=0.0, metavar="RATE", help="share that is anomalous")
    add("--ledger", type=Path, metavar="FILE", help="note what was sent (see below)")
    add("--wait", type=at_least(0, float), default=60.0, metavar="SECONDS",
        help="how long to wait for Kafka at the start (default: 60)")  # fmt: skip
    for flag, name, default, kind in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", servers),
        ("--topic", "SMARTTECH_TOPIC", "sensor_data", topic_name),
    ):
        add(flag, default=environ.get(name) or default, type=kind, metavar=name.split("_")[-1],
            help=f"environment: {name} (default: {default})")  # fmt: skip
    options = parser.parse_args(argv)
    if options.at_once and not options.count:
        parser.error("--at-once needs --count")
    if options.console and options.folder:
        parser.error("--console and --folder exclude each other")
    if sum((options.bad, options.duplicate, options.late, options.spike)) > 1:
        parser.error("--bad, --duplicate, --late and --spike add up to more than 1")
    most_hz = 1000 * options.devices
    if options.rate > most_hz:
        parser.error(f"--rate {options.rate:g} needs more --devices: 1000 each, times are in ms")
    lasts_s = (options.count or 0) / options.rate
    try:
        period = timedelta(seconds=lasts_s if options.at_once else 0)
        start = (options.start or (now - period).replace(microsecond=0)).astimezone(UTC)
        start + timedelta(seconds=lasts_s)
    except OverflowError:
        parser.error("--start, --count and --rate lead out of the years 1 to 9999")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    taken = {**vars(options), "rate_hz": options.rate, "wait_s": options.wait}
    taken |= {"seed": seed, "start": start}
    return Config(**{name: taken[name] for name in Config.__dataclass_fields__})


def configure_logging() -> None:
    """Log to stderr, in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # its errors reach us as exceptions


def main(argv: Sequence[str] | None = None) -> int:
    """Send readings until done or stopped; return the exit code (see the module docstring)."""
    load_env()
    config = load_config(argv, os.environ, datetime.now(UTC))
    configure_logging()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    log.info(
        "simulating devices=%d seed=%d start=%s",
        config.devices, config.seed, timestamp(config.start),
    )  # fmt: skip
    messages = paced(Simulation(config).messages(), config, stop)
    if config.console:
        return print_all(messages)
    try:
        if config.folder:
            config.folder.mkdir(parents=True, exist_ok=True)
            return write_all(messages, config.folder)
        ledger = Ledger(config.ledger)
    except OSError as exc:
        log.error("%s: %s", exc.filename, exc.strerror)
        return 2
    with closing(ledger):
        code = send_to_kafka(messages, config, ledger, stop)
    if ledger.error:
        log.error("the ledger is not whole: %s: %s", config.ledger, ledger.error.strerror)
        return 1
    return code


def print_all(messages: Iterable[Message]) -> int:
    """Print the messages; return the exit code."""
    try:
        log.info("stopped printed=%d", print_messages(messages))
    except OSError as exc:
        # What was not written fails once more at Python's own end, unless it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(exc, BrokenPipeError):  # the reader has had enough, as `head` has
            log.error("stdout: %s", exc.strerror)
            return 1
    return 0


def write_all(messages: Iterable[Message], folder: Path) -> int:
    """Write the messages as files; return the exit code."""
    try:
        log.info("stopped written=%d", write_files(messages, folder))
    except OSError as exc:
        log.error("%s: %s: not all is written", folder, exc.strerror)
        return 1
    return 0


def send_to_kafka(
    messages: Iterable[Message], config: Config, ledger: Ledger, stop: threading.Event
) -> int:
    """Send the messages; return the exit code."""
    try:
        producer = connect(config, stop)
    except KafkaError as exc:
        log.error(
            "Kafka does not answer at %s (%s): is it started? (%s)",
            config.bootstrap_servers, exc, KAFKA_START,
        )  # fmt: skip
        return 1
    except NoTopicError as exc:
        log.error(
            "%s at %s, and the broker makes none: make it first", exc, config.bootstrap_servers
        )
        return 1
    if producer is None:
        return 0
    log.info("sending to topic=%s at %s", config.topic, config.bootstrap_servers)
    sender = Sender(producer, config.topic, ledger, stop)
    sender.send_all(messages)
    log.info(
        "stopped sent=%d acknowledged=%d failed=%d", sender.sent, sender.acknowledged, sender.failed
    )
    if sender.failed:
        log.error("not acknowledged: %d messages (%s)", sender.failed, sender.last_error)
    return 1 if sender.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
