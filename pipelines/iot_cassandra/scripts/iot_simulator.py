#!/usr/bin/env python3
"""Simulate IoT sensors and send their readings to Kafka.

    python pipelines/iot_cassandra/scripts/iot_simulator.py                         # until Ctrl-C
    python pipelines/iot_cassandra/scripts/iot_simulator.py --count 1000 --at-once
    python pipelines/iot_cassandra/scripts/iot_simulator.py --console --count 2     # without Kafka

A reading, one JSON object; its key in Kafka is the sensor's id:

    {"sensor_id": 1, "timestamp": "2026-01-15T06:00:00.000Z", "temperature": -4.3, "humidity": 81.2}

    sensor_id     integer  1, 2, 3...
    timestamp     text     ISO 8601 in UTC with milliseconds
    temperature   float    degrees Celsius
    humidity      float    relative humidity, %

The same --seed and --start give the same readings, however fast they are sent. With --bad SHARE,
that share of the messages is spoiled, each in one of these ways: cut short, a field missing, text
where a number belongs, NaN, an id beyond 32 bits.

Environment (or .env in the project's folder; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    IOT_TOPIC                 default iotdata

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable or a reading not acknowledged or not
printed, 2 wrong usage or configuration.
"""

import argparse
import itertools
import json
import logging
import math
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.iot_cassandra.scripts.options import (  # noqa: E402  # after the path
    add_shared,
    at_least,
    load_env,
    parser_of,
)

log = logging.getLogger("iot_simulator")

PROGRESS_S = 5.0
# What the writer takes for a time.
FIRST, LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
YEAR_S = 366 * 86_400
FLUSH_S = 10.0  # for what is not acknowledged at the end
MAX_PENDING = 20_000  # messages whose outcome is not known yet


@dataclass(frozen=True)
class Config:
    """One run of the simulator, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    partitions: int
    console: bool
    count: int | None
    at_once: bool
    sensors: int
    rate_hz: float
    bad_share: float
    seed: int
    start: datetime
    wait_s: float


# The readings: pure functions of seed and time.


def air_temperature_c(when: datetime) -> float:
    """Return the air's usual temperature at a time, degrees Celsius.

    Two cosines: the year's, coldest in mid-January, and the day's, warmest at 15:00.

    >>> [round(air_temperature_c(datetime(2026, month, 15, 15, tzinfo=UTC))) for month in (1, 7)]
    [3, 27]
    """
    year = (when.timetuple().tm_yday - 15) / 365.25
    day = (when.hour + when.minute / 60 - 15) / 24
    return 10 - 12 * math.cos(math.tau * year) + 5 * math.cos(math.tau * day)


def make_reading(sensor_id: int, when: datetime, rng: random.Random) -> dict[str, Any]:
    """Return what a sensor reads: each stands in its own place; it is drier when it is warmer."""
    place_c = random.Random(sensor_id).uniform(-3, 3)
    temperature_c = air_temperature_c(when) + place_c + rng.gauss(0, 0.5)
    humidity_pct = 75 - 1.5 * (temperature_c - 5) + rng.gauss(0, 2)
    return {
        "sensor_id": sensor_id,
        "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "temperature": round(temperature_c, 2),
        "humidity": round(min(100.0, max(0.0, humidity_pct)), 1),
    }


def spoil(reading: Mapping[str, Any], rng: random.Random) -> bytes:
    """Return a message that is no valid reading any more."""
    text = json.dumps(reading)
    without = {name: value for name, value in reading.items() if name != "humidity"}
    return rng.choice(
        [
            text[: rng.randrange(1, len(text))],
            json.dumps(without),
            json.dumps({**reading, "temperature": str(reading["temperature"])}),
            json.dumps({**reading, "temperature": math.nan}),
            json.dumps({**reading, "sensor_id": 2**31 + reading["sensor_id"]}),
        ]
    ).encode()


def messages(config: Config) -> Iterator[tuple[float, int, bytes]]:
    """Yield (seconds after the start, sensor's id, message); the sensors take turns."""
    rng = random.Random(config.seed)
    for number in itertools.islice(itertools.count(), config.count):
        due_s = number / config.rate_hz
        sensor_id = number % config.sensors + 1
        reading = make_reading(sensor_id, config.start + timedelta(seconds=due_s), rng)
        is_bad = rng.random() < config.bad_share
        yield due_s, sensor_id, spoil(reading, rng) if is_bad else json.dumps(reading).encode()


def paced(config: Config, stop: threading.Event) -> Iterator[tuple[int, bytes]]:
    """Yield the messages when they are due, or at once, until told to stop.

    Each is due at an absolute time, so that a late one does not delay the next.
    """
    began = time.monotonic()
    for due_s, sensor_id, value in messages(config):
        if not config.at_once and (early_s := began + due_s - time.monotonic()) > 0.001:
            stop.wait(early_s)
        if stop.is_set():
            return
        yield sensor_id, value


# Sending.


def connect(config: Config, stop: threading.Event) -> KafkaProducer | None:
    """Return a producer, the topic made if it is missing, or None when told to stop.

    Raises:
        KafkaError: no broker answered within --wait seconds.
    """
    deadline = time.monotonic() + config.wait_s
    servers = config.bootstrap_servers.split(",")
    while not stop.is_set():
        try:
            with (
                closing(KafkaAdminClient(bootstrap_servers=servers)) as admin,
                suppress(TopicAlreadyExistsError),
            ):  # with as many copies as the broker makes by default
                admin.create_topics([NewTopic(config.topic, config.partitions, -1)])
            return KafkaProducer(
                bootstrap_servers=servers,
                acks="all",
                enable_idempotence=True,  # a send that is retried is stored once
                # 30 days: after a message has expired, kafka-python 2.3 may send no more.
                delivery_timeout_ms=30 * 86_400_000,
                linger_ms=20,  # a batch waits this long to fill
                max_block_ms=5000,
                reconnect_backoff_max_ms=5000,
            )
        except KafkaError as exc:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            log.warning("waiting for Kafka at %s (%s), %.0f s left",
                        config.bootstrap_servers, exc, left_s)  # fmt: skip
            stop.wait(min(2.0, left_s))
    return None


def publish(producer: KafkaProducer, config: Config, stop: threading.Event) -> Counter[str]:
    """Send the messages and wait for the outcome of each; return counts: sent, acknowledged."""
    counts: Counter[str] = Counter()
    next_progress = time.monotonic() + PROGRESS_S

    def note(outcome: str) -> None:  # called by the producer's own thread
        counts[outcome] += 1

    def pending() -> int:
        return counts["sent"] - counts["acknowledged"] - counts["failed"]

    for sensor_id, value in paced(config, stop):
        if pending() >= MAX_PENDING:
            # kafka-python takes any number, but its thread, which sends them, gets little of
            # Python's time while this one makes more: they would fill the memory, and expire.
            while pending() > MAX_PENDING // 2 and not stop.wait(0.01):
                pass
        counts["sent"] += 1
        try:
            future = producer.send(config.topic, key=str(sensor_id).encode(), value=value)
            future.add_callback(lambda _: note("acknowledged"))
            future.add_errback(lambda _: note("failed"))
        except KafkaError as exc:
            log.error("Kafka does not take messages: %s", exc)
            break
        if time.monotonic() >= next_progress:
            log.info("progress sent=%d acknowledged=%d", counts["sent"], counts["acknowledged"])
            next_progress = time.monotonic() + PROGRESS_S
    with suppress(KafkaError):
        producer.close(timeout=FLUSH_S)
    return counts


def print_messages(config: Config, stop: threading.Event) -> int:
    """Write one message a line on stdout; return how many. A reader that leaves ends it.

    Raises:
        OSError: they cannot be written.
    """
    printed = 0
    try:
        for _, value in paced(config, stop):
            sys.stdout.write(value.decode() + "\n")
            sys.stdout.flush()
            printed += 1
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return printed


# The command.


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time in UTC; one without an offset is taken for UTC.

    Raises:
        ArgumentTypeError: it is no such time.

    >>> parse_time("2026-01-15T06:00:00+02:00").isoformat()
    '2026-01-15T04:00:00+00:00'
    """
    try:
        when = datetime.fromisoformat(text)
        return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no ISO 8601 time ({exc})") from exc


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    parser = add_shared(parser_of(__doc__), environ, "--bootstrap-servers", "--topic")
    add = parser.add_argument
    add("--console", action="store_true", help="print the readings instead of sending them")
    add("--count", type=at_least(1, int), metavar="N", help="stop after N messages")
    add("--at-once", action="store_true", help="send --count messages as fast as possible, as if "
        "they had come at --rate until now")  # fmt: skip
    add("--sensors", type=at_least(1, int), default=10, metavar="N", help="(default: 10)")
    add("--rate", type=at_least(0.001, float), default=10.0, metavar="PER_SECOND", dest="rate_hz",
        help="messages per second, all sensors together (default: 10)")  # fmt: skip
    add("--bad", type=at_least(0, float), default=0.0, metavar="SHARE", dest="bad_share",
        help="share of spoiled messages, 0 to 1 (default: 0)")  # fmt: skip
    add("--seed", type=int, help="for the same readings again (default: a new one, shown)")
    add("--start", type=parse_time, metavar="TIME", help="time of the first reading (default: now)")
    add("--partitions", type=at_least(1, int), default=1, metavar="N",
        help="of the topic, when it is not there yet (default: 1)")  # fmt: skip
    add("--wait", type=at_least(0, float), default=60.0, metavar="SECONDS", dest="wait_s",
        help="how long to wait for Kafka at the start (default: 60)")  # fmt: skip
    options = vars(parser.parse_args(argv))
    if options["bad_share"] > 1:
        parser.error("--bad is a share, from 0 to 1")
    if options["at_once"] and not options["count"]:
        parser.error("--at-once needs --count")
    if options["rate_hz"] > 1000 * options["sensors"]:
        parser.error(
            f"--rate {options['rate_hz']:g} needs more --sensors: times are in milliseconds, and "
            "no sensor gives two readings in the same one"
        )
    if options["seed"] is None:
        options["seed"] = random.SystemRandom().randrange(2**32)
    try:
        # Without --count they come as time passes: a year is left for them.
        lasts_s = options["count"] / options["rate_hz"] if options["count"] else YEAR_S
        ago = timedelta(seconds=lasts_s if options["at_once"] else 0)
        options["start"] = options["start"] or now - ago
        last = options["start"] + timedelta(seconds=lasts_s)
        if options["start"] < FIRST or last > LAST:
            raise OverflowError
    except OverflowError:
        parser.error("--start, --count and --rate give times beyond the years 1900 to 9999")
    return Config(**options)


def configure_logging() -> None:
    """Log to stderr, in UTC; what the client meets in an outage is said by us, once."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    # Else a producer that is deleted while messages wait prints a trace: they are counted by us.
    sys.unraisablehook = lambda _: None


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate until done or stopped; return the exit code (see the module docstring)."""
    load_env(PROJECT / ".env")
    config = load_config(argv, os.environ, datetime.now(UTC))
    configure_logging()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    log.info("simulating sensors=%d seed=%d", config.sensors, config.seed)
    if config.console:
        try:
            log.info("stopped printed=%d", print_messages(config, stop))
        except OSError as exc:
            log.error("stdout: %s", exc.strerror)
            return 1
        return 0
    try:
        producer = connect(config, stop)
    except KafkaError as exc:
        log.error("Kafka at %s does not answer (%s): is it started? (see README)",
                  config.bootstrap_servers, exc)  # fmt: skip
        return 1
    if producer is None:
        return 0
    log.info("sending to topic=%s at %s", config.topic, config.bootstrap_servers)
    counts = publish(producer, config, stop)
    failed = counts["sent"] - counts["acknowledged"]
    log.info("stopped sent=%d acknowledged=%d", counts["sent"], counts["acknowledged"])
    if failed:
        log.error("not acknowledged: %d messages", failed)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
