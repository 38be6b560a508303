#!/usr/bin/env python3
"""Simulate the card transactions of a shop and send them to Kafka.

    python pipelines/transactions/capteur.py                     # live, about one a second
    python pipelines/transactions/capteur.py --backfill 48h --interval 10   # two days, at once
    python pipelines/transactions/capteur.py --console --count 3            # on stdout

A transaction, one JSON object; montant is a number with the decimals of its currency:

    {"transaction_id": 7, "montant": 47.9, "devise": "USD", "timestamp": "2026-10-24T10:00:00.000Z"}

The simulated clock begins at --start. By default that is 2026-10-24T00:00:00Z, inside the dated
table of exchange rates (rates.csv); the night after it, the clocks go back in Paris. The same
--seed and --start give the same transactions, byte for byte.

Wrong records, off by default: --bad RATE is the share of records that are spoilt, each in one of
these ways, which are also the reasons that the consumer gives:

    not_json, missing_field, wrong_type, amount_not_positive, amount_too_large,
    amount_too_precise, unknown_currency, bad_timestamp, no_rate

Frauds, off by default: --fraud RATE adds that share of valid transactions of another kind, at any
hour and of about ten times the amount; their label is fraud. They are for score.py.

--ledger FILE notes every record, as CSV: partition and offset as acknowledged (empty when not),
transaction_id, montant, devise, timestamp, label, and value, the bytes of a spoilt one. verify.py
compares it with what is stored. A file that is there already is left as it is, and nothing is sent.

Environment (or .env in the project's folder; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    TRANSACTIONS_TOPIC        default transactions

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable, a record not acknowledged, or the ledger
or stdout could not be written to the end, 2 wrong usage or configuration.
"""

import argparse
import csv
import heapq
import itertools
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
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.transactions.broker import addresses, topic_name  # noqa: E402
from pipelines.transactions.env_file import load_env  # noqa: E402

log = logging.getLogger("capteur")
PARIS = ZoneInfo("Europe/Paris")
DEFAULT_START = "2026-10-24T00:00:00Z"
PROGRESS_S = 5.0
GIVE_UP_S = 15.0  # at the end, without an acknowledgement
MAX_PENDING = 20_000  # records whose outcome is not known yet
MAX_DURATION_S = 100 * 366 * 86_400.0
DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# Amounts are drawn in euros and brought to the currency's size; that is no conversion.
MEDIAN_EUR, FRAUD_MEDIAN_EUR = 40.0, 400.0
SPREAD, FRAUD_SPREAD = 1.0, 0.8  # standard deviations of the amount's natural logarithm


class Currency(NamedTuple):
    """A currency of the simulation: its share of the transactions, its size, its decimals."""

    code: str
    share: float
    units_per_euro: float
    decimals: int  # of ISO 4217: the yen has none


CURRENCIES = (
    Currency("USD", 0.55, 1.12, 2),
    Currency("EUR", 0.20, 1.0, 2),
    Currency("GBP", 0.12, 0.83, 2),
    Currency("JPY", 0.08, 176.0, 0),
    Currency("CHF", 0.05, 0.92, 2),
)


@dataclass(frozen=True)
class Config:
    """One run, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    console: bool
    count: int | None
    start: datetime
    end: datetime | None
    interval_s: float
    speed: float  # of the simulated clock; infinite: everything is sent at once
    first_id: int
    seed: int
    bad: float
    fraud: float
    ledger: Path | None
    wait_s: float


class Record(NamedTuple):
    """What is sent: a transaction, or what a fault has made of it (label says which)."""

    when: datetime
    transaction_id: int
    montant: str
    devise: str
    timestamp: str
    value: bytes
    label: str


# The transactions: pure functions of the seed and the start.


@cache
def activity(hour: int) -> float:
    """Return how busy an hour of the day is in Paris, 1 on average: noon and evening, hardly night.

    >>> [round(activity(hour), 2) for hour in (3, 12, 15, 18)]
    [0.05, 1.9, 1.98, 2.29]
    """

    def shape(hour: int) -> float:
        noon = math.exp(-(((hour - 12.5) / 2.2) ** 2) / 2)
        evening = math.exp(-(((hour - 18.0) / 2.4) ** 2) / 2)
        return 0.03 + noon + 1.2 * evening

    return shape(hour) / (sum(map(shape, range(24))) / 24)


def arrivals(start: datetime, mean_s: float, rng: random.Random, daily: bool) -> Iterator[datetime]:
    """Yield times without end, `mean_s` apart on average: the busier the hour, the closer.

    A Poisson process of the busiest hour's rate, thinned to that of each hour (Lewis and Shedler,
    "Simulation of Nonhomogeneous Poisson Processes by Thinning", 1979); without `daily`, the same
    at every hour.
    """
    peak = max(map(activity, range(24))) if daily else 1.0
    when = start
    while True:
        try:
            when += timedelta(seconds=rng.expovariate(1) * mean_s / peak)
            pace = activity(when.astimezone(PARIS).hour) if daily else 1.0
        except OverflowError:  # after the year 9999: no such time comes
            return
        if rng.random() * peak < pace:
            yield when


def amount(currency: Currency, rng: random.Random, is_fraud: bool) -> str:
    """Return an amount as the text of a JSON number, at least the currency's smallest unit.

    Log-normal: a median and a spread of the logarithm. The draw is a float; from the count of
    smallest units on, everything is whole numbers.
    """
    median, spread = (FRAUD_MEDIAN_EUR, FRAUD_SPREAD) if is_fraud else (MEDIAN_EUR, SPREAD)
    euros = median * math.exp(rng.gauss(0, spread))
    units = max(1, round(euros * currency.units_per_euro * 10**currency.decimals))
    return f"{Decimal(units).scaleb(-currency.decimals).normalize():f}"


def iso(when: datetime) -> str:
    """Return a time as ISO 8601 in UTC with milliseconds.

    >>> iso(datetime(2026, 10, 25, 2, 30, tzinfo=UTC))
    '2026-10-25T02:30:00.000Z'
    """
    return when.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def as_json(transaction_id: Any, montant: str, devise: Any, timestamp: Any) -> str:
    """Return a transaction's JSON; montant is written as it is, so that no float touches it."""
    return (
        f'{{"transaction_id": {json.dumps(transaction_id)}, "montant": {montant}, '
        f'"devise": {json.dumps(devise)}, "timestamp": {json.dumps(timestamp)}}}'
    )


def spoilt(record: Record, rng: random.Random) -> Record:
    """Return the record in one of the ways that the consumer must refuse."""
    number, montant, devise, timestamp = record[1:5]
    text = record.value.decode()
    name = rng.choice(["transaction_id", "montant", "devise", "timestamp"])
    without = {key: value for key, value in json.loads(text).items() if key != name}
    ways = {
        "not_json": [text[: rng.randrange(len(text))], f"{number};{montant};{devise}", f"[{text}]"],
        "missing_field": [json.dumps(without), json.dumps({**without, name: None})],
        "wrong_type": [
            as_json(str(number), montant, devise, timestamp),
            as_json(number, f'"{montant}"', devise, timestamp),
            as_json(number, '"12,50"', devise, timestamp),
        ],
        "amount_not_positive": [
            as_json(number, wrong, devise, timestamp) for wrong in (f"-{montant}", "0")
        ],
        "amount_too_large": [
            as_json(number, wrong, devise, timestamp) for wrong in ("1000000000.01", "9" * 40)
        ],
        "amount_too_precise": [as_json(number, "10.005", devise, timestamp)],
        "unknown_currency": [
            as_json(number, montant, wrong, timestamp) for wrong in ("XBT", "usd", "", "FRF")
        ],
        "bad_timestamp": [
            as_json(number, montant, devise, wrong)
            for wrong in ("2026-02-30T12:00:00Z", "2026-10-24T12:00:00", "24/10/2026 12:00", 1)
        ],
        "no_rate": [as_json(number, montant, "USD", "2025-01-06T12:00:00Z")],
    }
    label = rng.choice(list(ways))
    return record._replace(value=rng.choice(ways[label]).encode(), label=label)


def all_records(config: Config) -> Iterator[Record]:
    """Yield the records in the order of their times, up to --count or the period's end."""
    rng = {name: random.Random(f"{config.seed}/{name}") for name in ("sale", "fraud", "bad")}
    sales = arrivals(config.start, config.interval_s, rng["sale"], daily=True)
    times: Iterator[tuple[datetime, str]] = ((when, "sale") for when in sales)
    if config.fraud:
        frauds = arrivals(config.start, config.interval_s / config.fraud, rng["fraud"], daily=False)
        times = heapq.merge(times, ((when, "fraud") for when in frauds))
    if config.end:
        end = config.end
        times = itertools.takewhile(lambda entry: entry[0] < end, times)
    shares = [currency.share for currency in CURRENCIES]
    for number, (when, kind) in enumerate(itertools.islice(times, config.count), config.first_id):
        (currency,) = rng[kind].choices(CURRENCIES, shares)
        montant = amount(currency, rng[kind], kind == "fraud")
        value = as_json(number, montant, currency.code, iso(when)).encode()
        label = "fraud" if kind == "fraud" else ""
        record = Record(when, number, montant, currency.code, iso(when), value, label)
        if config.bad and rng["bad"].random() < config.bad:
            record = spoilt(record, rng["bad"])
        yield record


def paced(records: Iterator[Record], config: Config, stop: threading.Event) -> Iterator[Record]:
    """Yield records when they are due on a clock that runs --speed times as fast as ours."""
    began = time.monotonic()
    for record in records:
        due = began + (record.when - config.start).total_seconds() / config.speed
        stop.wait(min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX))
        if stop.is_set():
            return
        yield record


# Where they go.


def print_records(records: Iterator[Record]) -> None:
    """Write one record a line on stdout; a reader that leaves ends it.

    Raises:
        OSError: they cannot be written.
    """
    try:
        for record in records:
            sys.stdout.write(record.value.decode() + "\n")
            sys.stdout.flush()
    except OSError as exc:
        # Python tries the line once more when it ends, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(exc, BrokenPipeError):  # `... | head`: nobody reads on
            raise


def connect(config: Config, stop: threading.Event) -> KafkaProducer | None:
    """Return a producer whose topic is known, or None when told to stop.

    Raises:
        KafkaError: no broker answered within --wait seconds, or the topic does not exist there.
    """
    deadline = time.monotonic() + config.wait_s
    while not stop.is_set():
        try:
            producer = KafkaProducer(
                bootstrap_servers=config.bootstrap_servers.split(","),
                acks="all",  # acknowledged by every replica in sync
                enable_idempotence=True,  # a send that is retried is stored once
                # A record waits for Kafka as long as it takes. With a shorter time-out this
                # producer may never send again after a record that expired.
                delivery_timeout_ms=30 * 86_400_000,
                reconnect_backoff_max_ms=2000,
                linger_ms=20,  # a batch waits this long to fill ...
                batch_size=128 * 1024,  # ... up to this many bytes: fewer, fuller requests
                max_block_ms=60_000,  # how long a send waits for a broker that is away
            )
            producer.partitions_for(config.topic)  # creates it, where the broker allows that
            return producer
        except KafkaError as exc:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            log.warning(
                "waiting for Kafka at %s (%s), %.0f s left", config.bootstrap_servers, exc, left_s
            )
            stop.wait(min(2.0, left_s))
    return None


class Ledger:
    """The file that notes what was sent, as CSV (see the module docstring); None: no file.

    Attributes:
        trouble: why it could not be written; there it ends. "": it is complete.

    Raises:
        OSError: it cannot be made, or is there already.
    """

    def __init__(self, path: Path | None) -> None:
        # Another run's is not overwritten: what it sent would be unknown for ever. Each line is
        # written at once: being killed loses none.
        self.file = path.open("x", buffering=1, encoding="utf-8", newline="") if path else None
        self.rows = csv.writer(self.file) if self.file else None
        self.trouble = ""
        columns = ["partition", "offset", "transaction_id", "montant", "devise", "timestamp"]
        if self.rows:
            self.rows.writerow([*columns, "label", "value"])

    def note(self, record: Record, partition: int | str, offset: int | str) -> None:
        """Note a record and where Kafka has stored it; empty when it has not."""
        if self.rows:
            value = "" if record.label in ("", "fraud") else record.value.decode()
            try:
                self.rows.writerow([partition, offset, *record[1:5], record.label, value])
            except OSError as exc:  # what is sent goes on, and is counted
                self.trouble, self.rows = exc.strerror or str(exc), None

    def close(self) -> None:
        """Close the file."""
        if self.file:
            try:
                self.file.close()
            except OSError as exc:
                self.trouble = self.trouble or exc.strerror or str(exc)


class Sender:
    """Sends records, and counts and notes what becomes of each."""

    def __init__(
        self, producer: KafkaProducer, topic: str, ledger: Ledger, stop: threading.Event
    ) -> None:
        self.producer = producer
        self.topic = topic
        self.ledger = ledger
        self.stop = stop
        self.pending: deque[tuple[Record, Any]] = deque()  # with the future of its outcome
        self.sent = self.acknowledged = self.failed = 0
        self.last_error = ""
        self.next_report = time.monotonic() + PROGRESS_S

    def __str__(self) -> str:
        return f"sent={self.sent} acknowledged={self.acknowledged} failed={self.failed}"

    def send_all(self, records: Iterator[Record]) -> None:
        """Send records and wait for their outcomes; a record without one has failed."""
        for record in records:
            self.send(record)
            self.settle_known()
            if len(self.pending) >= MAX_PENDING:
                self.wait_for_room()
            self.report()
        self.wait_for_outcomes()
        while self.pending:
            self.settle()

    def report(self) -> None:
        """Log the counts every few seconds."""
        if time.monotonic() >= self.next_report:
            log.info("progress %s", self)
            self.next_report = time.monotonic() + PROGRESS_S

    def send(self, record: Record) -> None:
        """Hand a record to the producer; the id is the key, so that partitions are even."""
        self.sent += 1
        key = str(record.transaction_id).encode()
        try:
            future = self.producer.send(self.topic, key=key, value=record.value)
        except KafkaError as exc:  # Kafka has been away for longer than max_block_ms
            self.count(record, exc)
        else:
            self.pending.append((record, future))

    def wait_for_room(self) -> None:
        """Wait until half of what is on its way has an outcome: kafka-python takes any number.

        Its thread, which sends them, gets little of Python's time while this one makes more: they
        would fill the memory.
        """
        while len(self.pending) > MAX_PENDING // 2 and not self.stop.wait(0.01):
            self.settle_known()
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
            self.settle_known()
            if len(self.pending) < left:
                left, last_outcome = len(self.pending), time.monotonic()

    def settle_known(self) -> None:
        """Count and note the outcomes that are known, in order."""
        while self.pending and self.pending[0][1].is_done:
            self.settle()

    def settle(self) -> None:
        """Count and note the outcome of the oldest record: not acknowledged if it has none yet."""
        record, future = self.pending.popleft()
        if not future.is_done:
            self.count(record, KafkaTimeoutError("Kafka does not answer"))
            return
        try:
            self.count(record, future.get())
        except KafkaError as exc:
            self.count(record, exc)

    def count(self, record: Record, outcome: Any) -> None:
        """Count and note one outcome: where the record is stored, or why it is not."""
        if isinstance(outcome, KafkaError):
            self.failed += 1
            self.last_error = str(outcome)
            self.ledger.note(record, "", "")
        else:
            self.acknowledged += 1
            self.ledger.note(record, outcome.partition, outcome.offset)


# The command.


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time, or the present for "now"; one without an offset is UTC."""
    when = datetime.now(UTC) if text == "now" else datetime.fromisoformat(text)
    if not 2000 <= when.year <= 2099:
        raise argparse.ArgumentTypeError(f"{text} is not in the years 2000 to 2099")
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def parse_duration(text: str) -> timedelta:
    """Return a duration written as 90s, 15m, 24h or 30d.

    >>> parse_duration("48h")
    datetime.timedelta(days=2)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match or not float(match[1]):
        raise ValueError(text)
    seconds = float(match[1]) * DURATION_UNITS_S[match[2]]
    if seconds > MAX_DURATION_S:
        raise argparse.ArgumentTypeError(f"{text} is longer than a hundred years")
    return timedelta(seconds=seconds)


def number_between(low: float, high: float, kind: type[int] | type[float]) -> Any:
    """Return an argparse type for a number within bounds."""

    def parse(text: str) -> float:
        number = kind(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return number

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    positive, share = number_between(0.001, 1e9, float), number_between(0, 1, float)
    add("--console", action="store_true", help="print the records instead of sending them")
    add("--count", type=number_between(1, 1e12, int), metavar="N", help="stop after N records")
    add("--start", type=parse_time, default=DEFAULT_START, metavar="TIME",
        help=f'simulated start, ISO 8601 or "now" (default: {DEFAULT_START})')  # fmt: skip
    add("--backfill", type=parse_duration, metavar="DURATION",
        help="send at once the period of that length from --start on: 90s, 48h, 7d")  # fmt: skip
    add("--interval", type=positive, default=1.0, metavar="SECONDS",
        help="mean time between two transactions (default: 1)")  # fmt: skip
    add("--speed", type=positive, metavar="N",
        help="let the simulated clock run N times as fast (default: 1)")  # fmt: skip
    add("--first-id", type=number_between(0, 2**62, int), default=1, metavar="N",
        help="transaction_id of the first one (default: 1)")  # fmt: skip
    add("--seed", type=int, help="for the same transactions again (default: a new one, shown)")
    add("--bad", type=share, default=0.0, metavar="RATE", help="share of wrong records, 0 to 1")
    add("--fraud", type=share, default=0.0, metavar="RATE", help="share of frauds to add, 0 to 1")
    add("--ledger", type=Path, metavar="FILE", help="note what was sent (see below)")
    add("--wait", type=number_between(0, 86_400, float), default=60.0, metavar="SECONDS",
        help="how long to wait for Kafka at the start (default: 60)")  # fmt: skip
    for flag, name, default in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        ("--topic", "TRANSACTIONS_TOPIC", "transactions"),
    ):
        add(flag, default=environ.get(name) or default, metavar=name.split("_")[-1],
            type=addresses if name.endswith("SERVERS") else topic_name,
            help=f"environment: {name} (default: {default})")  # fmt: skip
    options = parser.parse_args(argv)
    if options.console and options.ledger:
        parser.error("--ledger notes what Kafka has acknowledged: --console sends it nothing")
    return Config(
        bootstrap_servers=options.bootstrap_servers,
        topic=options.topic,
        console=options.console,
        count=options.count,
        start=options.start,
        end=options.start + options.backfill if options.backfill else None,
        interval_s=options.interval,
        speed=options.speed or (math.inf if options.backfill else 1.0),
        first_id=options.first_id,
        seed=random.SystemRandom().randrange(2**32) if options.seed is None else options.seed,
        bad=options.bad,
        fraud=options.fraud,
        ledger=options.ledger,
        wait_s=options.wait,
    )


def configure_logging() -> None:
    """Log to stderr, in UTC; of the Kafka client only what is fatal: the outcomes say the rest."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


def send_to_kafka(records: Iterator[Record], config: Config, stop: threading.Event) -> int:
    """Send the records; return the exit code."""
    try:
        producer = connect(config, stop)
    except KafkaError as exc:
        log.error("Kafka does not answer at %s (%s): is it started?", config.bootstrap_servers, exc)
        return 1
    if producer is None:
        return 0
    try:
        ledger = Ledger(config.ledger)
    except FileExistsError:
        log.error("--ledger %s is there already: name another (verify.py takes several)",
                  config.ledger)  # fmt: skip
        return 2
    except OSError as exc:
        log.error("--ledger %s: %s", config.ledger, exc.strerror)
        return 2
    log.info("sending to topic=%s at %s", config.topic, config.bootstrap_servers)
    sender = Sender(producer, config.topic, ledger, stop)
    sender.send_all(records)
    ledger.close()
    log.info("stopped %s", sender)
    if sender.failed:
        log.error("not acknowledged: %d (%s)", sender.failed, sender.last_error)
    if ledger.trouble:
        log.error("--ledger %s: %s: it is not complete", config.ledger, ledger.trouble)
    return 1 if sender.failed or ledger.trouble else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Generate transactions until done or stopped; return the exit code."""
    load_env()
    config = load_config(argv, os.environ)
    configure_logging()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    log.info("simulating seed=%d start=%s", config.seed, iso(config.start))
    records = paced(all_records(config), config, stop)
    if not config.console:
        return send_to_kafka(records, config, stop)
    try:
        print_records(records)
    except OSError as exc:
        log.error("stdout: %s", exc.strerror)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
