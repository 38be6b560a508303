#!/usr/bin/env python3
"""Simulate the sensors of a few buildings and send their readings to Kafka.

    python pipelines/smarttech/kafka_producer.py                          # 1 per second
    python pipelines/smarttech/kafka_producer.py --backfill 3h --rate 2   # the last 3 hours, now
    python pipelines/smarttech/kafka_producer.py --console --count 3      # without Kafka

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

Environment (or .env in this folder, then at the project's root; an option wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    SMARTTECH_TOPIC           default sensor_data

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable, a message not acknowledged, or not all
written or noted; 2 wrong usage or configuration.
"""

import logging
import os
import random
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from kafka import KafkaProducer
from kafka.errors import KafkaError

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import configure_logging, load_env, number, stop_on_signals  # noqa: E402
from pipelines.smarttech.ledger import Ledger  # noqa: E402
from pipelines.smarttech.prepare import NoTopicError, wait_for_topic  # noqa: E402
from pipelines.smarttech.sender import Sender  # noqa: E402
from pipelines.smarttech.settings import (  # noqa: E402
    FOLDER,
    add_kafka_options,
    command_parser,
    parse_time,
    period,
)
from pipelines.smarttech.simulation import Message, Simulation, timestamp  # noqa: E402
from stack.console import command  # noqa: E402

log = logging.getLogger("smarttech")
MOST_LATE = 100  # messages per second; each is kept in memory for up to 15 minutes


def paced(
    messages: Iterable[Message], options: Namespace, stop: threading.Event
) -> Iterator[Message]:
    """Yield as many messages as asked for when they are due, or at once, until told to stop."""
    began = time.monotonic()
    for message in islice(messages, options.count):
        if not options.backfill:
            stop.wait(max(0.0, began + message.due_s - time.monotonic()))
        if stop.is_set():
            return
        yield message


def print_messages(messages: Iterable[Message]) -> int:
    """Write the messages to stdout, a line each; return how many."""
    printed = 0
    for printed, message in enumerate(messages, 1):  # noqa: B007  # the last one counts
        sys.stdout.write(message.value.decode() + "\n")
        sys.stdout.flush()
    return printed


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


def make_producer(bootstrap_servers: str) -> KafkaProducer:
    """Return a producer whose messages are stored once, however long Kafka is away.

    Raises:
        KafkaError: no broker answers.
    """
    return KafkaProducer(
        bootstrap_servers=bootstrap_servers.split(","),
        acks="all",
        enable_idempotence=True,  # a send that is retried is stored once
        # A message waits for Kafka as long as it takes. With a shorter time-out this producer may
        # never send again after a message that expired.
        delivery_timeout_ms=30 * 86_400_000,
        reconnect_backoff_max_ms=2000,
        linger_ms=20,
        batch_size=128 * 1024,
        compression_type="gzip",
    )


def send_to_kafka(
    messages: Iterable[Message], options: Namespace, ledger: Ledger, stop: threading.Event
) -> int:
    """Send the messages; return the exit code."""
    try:
        wait_for_topic(options, stop)
        if stop.is_set():
            return 0
        producer = make_producer(options.bootstrap_servers)
    except (NoTopicError, KafkaError) as exc:
        log.error("%s", exc)
        return 1
    log.info("sending to topic=%s at %s", options.topic, options.bootstrap_servers)
    sender = Sender(producer, options.topic, ledger, stop)
    sender.send_all(messages)
    log.info(
        "stopped sent=%d acknowledged=%d failed=%d", sender.sent, sender.acknowledged, sender.failed
    )
    if sender.failed:
        log.error("not acknowledged: %d messages (%s)", sender.failed, sender.last_error)
    return 1 if sender.failed else 0


def load_options(
    argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime
) -> Namespace:
    """Return the options: command line > environment > default. A bad value exits with code 2."""
    parser = command_parser(__doc__)
    add, share = parser.add_argument, number(0, 1)
    add("--console", action="store_true", help="print the messages instead of sending them")
    add("--count", type=number(1, 10**12, int), metavar="N", help="stop after N messages")
    add("--rate", type=number(0.001, 10**9), default=1.0, metavar="PER_SECOND",
        help="messages per second of simulated time (default: 1)")  # fmt: skip
    add("--backfill", type=period, metavar="DURATION",
        help="send so much simulated time at once, such as 15m or 3h: up to now, or from --start "
        "on")  # fmt: skip
    add("--devices", type=number(1, 10**6, int), default=12, metavar="N", help="(default: 12)")
    add("--seed", type=int, metavar="N", help="for the same messages again (default: a new one, "
        "shown)")  # fmt: skip
    add("--start", type=parse_time, metavar="TIME", help="of the first reading, ISO 8601")
    add("--bad", type=share, default=0.0, metavar="RATE", help="share that is no reading")
    add("--duplicate", type=share, default=0.0, metavar="RATE", help="share that is sent again")
    add("--late", type=share, default=0.0, metavar="RATE", help="share that comes late")
    add("--spike", type=share, default=0.0, metavar="RATE", help="share that is anomalous")
    add("--ledger", type=Path, metavar="FILE", help="note what was sent (see below)")
    add_kafka_options(parser, environ)
    options = parser.parse_args(argv)
    if sum((options.bad, options.duplicate, options.late, options.spike)) > 1:
        parser.error("--bad, --duplicate, --late and --spike add up to more than 1")
    if options.late * options.rate > MOST_LATE:
        parser.error(f"--late holds too many back: --late times --rate is {MOST_LATE} at most")
    if options.rate > 1000 * options.devices:
        parser.error(f"--rate {options.rate:g} needs more --devices: 1000 each, times are in ms")
    backfill = options.backfill or timedelta()
    if options.backfill:
        expected = max(1, round(backfill.total_seconds() * options.rate))
        options.count = min(expected, options.count or expected)
    try:
        start = options.start or (now - backfill).replace(microsecond=0)
        options.start = start.astimezone(UTC)
        options.start + timedelta(seconds=(options.count or 0) / options.rate)
    except OverflowError:
        parser.error("--start, --count and --backfill lead out of the years 1 to 9999")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**32)
    return options


@command("kafka_producer")
def main(argv: Sequence[str] | None = None) -> int:
    """Send readings until done or stopped; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    options = load_options(argv, os.environ, datetime.now(UTC))
    configure_logging("smarttech")
    stop = threading.Event()
    stop_on_signals(stop)
    log.info(
        "simulating devices=%d seed=%d start=%s",
        options.devices, options.seed, timestamp(options.start),
    )  # fmt: skip
    messages = paced(Simulation(options).messages(), options, stop)
    if options.console:
        return print_all(messages)
    try:
        ledger = Ledger(options.ledger)
    except OSError as exc:
        log.error("%s: %s", exc.filename, exc.strerror)
        return 2
    with closing(ledger):
        code = send_to_kafka(messages, options, ledger, stop)
    if ledger.error:
        log.error("the ledger is not whole: %s: %s", options.ledger, ledger.error.strerror)
        return 1
    return code


if __name__ == "__main__":
    raise SystemExit(main())
