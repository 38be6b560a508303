#!/usr/bin/env python3
"""Simulate IoT sensors and send their readings to Kafka.

    python3 scripts/iot_simulator.py                                # until Ctrl-C
    python3 scripts/iot_simulator.py --backfill 7d --rate 0.1       # the last week's, at once
    python3 scripts/iot_simulator.py --console --count 2            # without Kafka

A reading, one JSON object; its key in Kafka is the sensor's id:

    {"sensor_id": 1, "timestamp": "2026-01-15T06:00:00.000Z", "temperature": -4.3, "humidity": 81.2}

    sensor_id     integer  1, 2, 3...
    timestamp     text     ISO 8601 in UTC with milliseconds
    temperature   float    degrees Celsius
    humidity      float    relative humidity, %

The same --seed and --start give the same readings, however fast they are sent. With --bad RATE,
that share of the messages is spoiled, each in one of these ways: cut short, a field missing, text
where a number belongs, NaN, an id beyond 32 bits. --ledger FILE notes each message with the
partition and offset that Kafka has acknowledged, as CSV, for verify.py.

Environment (or .env in this folder or the project's; an option wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    IOT_TOPIC                 default iotdata

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable, or a reading not acknowledged, not
printed or not noted, 2 wrong usage or configuration.
"""

import argparse
import logging
import os
import random
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kafka.errors import KafkaError

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.common import (  # noqa: E402  # after the path, with the next ones
    configure_logging,
    load_env,
    number,
    stop_on_signals,
)
from pipelines.iot_cassandra.scripts.sender import Ledger, connect, publish  # noqa: E402
from pipelines.iot_cassandra.scripts.simulation import Simulation, paced  # noqa: E402
from pipelines.iot_cassandra.settings import (  # noqa: E402
    FIRST_MS,
    FOLDER,
    LAST_MS,
    ClientError,
    add_partitions,
    add_shared,
    add_wait,
    parser_of,
    patiently,
)
from stack.console import command  # noqa: E402

log = logging.getLogger("iot_simulator")

FIRST, LAST = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (FIRST_MS, LAST_MS - 999))
YEAR_S = 366 * 86_400
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


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


def parse_duration(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        ArgumentTypeError: it is not a number and a unit, or longer than 10 000 years.

    >>> parse_duration("1.5h")
    5400.0
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([smhd])", text)
    seconds = float(match[1]) * UNITS_S[match[2]] if match else 0
    if not 0 < seconds < 10_000 * YEAR_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 30m, 48h or 7d")
    return seconds


def load_config(
    argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime
) -> argparse.Namespace:
    """Return the options, and the simulation that they ask for: option > environment > default.

    A bad value exits with code 2.
    """
    parser = add_shared(parser_of(__doc__), environ, "--bootstrap-servers", "--topic")
    add = parser.add_argument
    add("--console", action="store_true", help="print the readings instead of sending them")
    add("--count", type=number(1, 1e15, int), metavar="N", help="stop after N messages")
    add("--backfill", type=parse_duration, metavar="DURATION", help="send at once the readings of "
        "that much simulated time, by default until now (90s, 30m, 48h, 7d)")  # fmt: skip
    add("--sensors", type=number(1, 1e6, int), default=10, metavar="N", help="(default: 10)")
    add("--rate", type=number(0.001, 1e6), default=10.0, metavar="PER_SECOND",
        help="messages per second, all sensors together (default: 10)")  # fmt: skip
    add("--bad", type=number(0, 1), default=0.0, metavar="RATE",
        help="share of spoiled messages, 0 to 1 (default: 0)")  # fmt: skip
    add("--seed", type=int, help="for the same readings again (default: a new one, shown)")
    add("--start", type=parse_time, metavar="TIME", help="time of the first reading (default: now)")
    add("--ledger", type=Path, metavar="FILE", help="note what was sent; it must not be there yet")
    add_partitions(parser)
    add_wait(parser)
    options = parser.parse_args(argv)
    if options.console and options.ledger:
        parser.error("--ledger notes what Kafka has acknowledged: --console sends it nothing")
    if options.rate > 1000 * options.sensors:
        parser.error(
            f"--rate {options.rate:g} needs more --sensors: times are in milliseconds, and "
            "no sensor gives two readings in the same one"
        )
    count = options.count
    if options.backfill:
        of_backfill = max(1, round(options.backfill * options.rate))
        count = min(count, of_backfill) if count else of_backfill
    try:
        # Without a count they come as time passes: a year is left for them.
        lasts = timedelta(seconds=count / options.rate if count else YEAR_S)
        start = options.start or now - timedelta(seconds=options.backfill or 0)
        if start < FIRST or start + lasts > LAST:
            raise OverflowError
    except OverflowError:
        parser.error("the readings' times would lie beyond the years 1900 to 9999")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    options.simulation = Simulation(
        options.sensors, options.rate, options.bad, seed, start, count, bool(options.backfill)
    )
    return options


def print_messages(messages: Iterable[tuple[int, bytes]]) -> int:
    """Write one message a line on stdout; return how many. A reader that leaves ends it.

    Raises:
        OSError: they cannot be written.
    """
    printed = 0
    try:
        for _, value in messages:
            sys.stdout.write(value.decode() + "\n")
            sys.stdout.flush()
            printed += 1
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return printed


def send_messages(config: argparse.Namespace, stop: threading.Event) -> int:
    """Send the messages, noted in the ledger; return the exit code.

    Raises:
        ClientError: Kafka does not answer, or we were told to stop.
        OSError: the ledger cannot be written.
    """
    ledger = Ledger(config.ledger)
    servers, topic = config.bootstrap_servers, config.topic
    producer = patiently(
        log,
        f"Kafka at {servers}",
        lambda: connect(servers, topic, config.partitions),
        (KafkaError,),
        config.wait,
        stop,
    )
    log.info("sending to topic=%s at %s", topic, servers)
    messages = paced(config.simulation, stop)
    counts = publish(producer, topic, messages, ledger, stop)
    log.info("stopped sent=%d acknowledged=%d", counts["sent"], counts["acknowledged"])
    if failed := counts["sent"] - counts["acknowledged"]:
        log.error("not acknowledged: %d messages", failed)
    return 1 if failed else 0


@command("iot_simulator")
def main(argv: Sequence[str] | None = None) -> int:
    """Simulate until done or stopped; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    config = load_config(argv, os.environ, datetime.now(UTC))
    configure_logging("iot_simulator")
    # A producer that is deleted while messages wait would print a trace: they are counted here.
    sys.unraisablehook = lambda _: None
    stop = threading.Event()
    stop_on_signals(stop)
    log.info("simulating sensors=%d seed=%d", config.simulation.sensors, config.simulation.seed)
    try:
        if not config.console:
            return send_messages(config, stop)
        log.info("stopped printed=%d", print_messages(paced(config.simulation, stop)))
    except ClientError as exc:
        log.log(logging.ERROR if exc.code else logging.INFO, "%s", exc)
        return exc.code
    except FileExistsError:
        log.error("%s is there already: name another (verify.py takes several)", config.ledger)
        return 1
    except OSError as exc:
        log.error("%s: %s", config.ledger or "stdout", exc.strerror)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
