#!/usr/bin/env python3
"""Send the samples of acidified waters to Kafka, in lots of 100 rows, one Kafka message per lot.

    python pipelines/acid_waters/kafka/kafka_producer.py                # a lot every 10 seconds
    python pipelines/acid_waters/kafka/kafka_producer.py --interval 0   # as fast as possible
    python pipelines/acid_waters/kafka/kafka_producer.py --first 3 --count 1    # lot 3 again
    python pipelines/acid_waters/kafka/kafka_producer.py --fault short=2 --fault checksum=5

The rows come from LTM_Data… (Excel, else CSV) of the data folder, in the file's order. A message:

    key       LTM_Data_sample-000002
    headers   batch_id     LTM_Data_sample-000002    the file's name and the lot's number
              size         100                       rows that it should have
              sequence     2                         1, 2, 3… in the file
              first_row    101                       of the file, counted from 1
              checksum     9c0e…                     SHA-256 of the value, in hexadecimal
              source_file  LTM_Data_sample.xlsx
    value     a row per line, as JSON: {"SITE_ID": "040576", …, "PH_LAB": "6.42", "PH_STVL": null}

A lot is one message, so nobody can ever read half of one. The same file gives the same lots, byte
for byte, with the same ids: what was sent twice is recognised. So are, by first_row and size, rows
that come again in lots of another size.

--fault KIND=LOT spoils one lot on its way, to see it isolated; as often as you like:

    short, long       a row less, a row more than declared
    checksum          a byte changed after the checksum was made
    duplicate         sent twice
    site              a site that is not in Site_Information
    number            a measure that is not a number
    range             a measure that no instrument gives
    date              the 30th of February
    column            a column is missing
    json              not JSON

Environment (or .env at the project's root; a flag wins over both):
    LTM_DATA                  folder with the three files (default: the sample of this pipeline)
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    WATER_TOPIC               default water-quality

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable or a lot not acknowledged,
2 wrong usage or unreadable file.
"""

import argparse
import hashlib
import itertools
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, MessageSizeTooLargeError, TopicAlreadyExistsError

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.settings import addresses, load_env  # noqa: E402  # works from
from pipelines.acid_waters.tables import (  # noqa: E402  # any folder
    ID,
    SAMPLES,
    Row,
    TableError,
    find_file,
    read_table,
)

log = logging.getLogger("kafka_producer")

SAMPLE_FOLDER = Path(__file__).resolve().parent.parent / "sample"
PARTITIONS = 3
PROGRESS_S = 5.0
# Kafka refuses messages with other times, whoever sends them: Spark cannot even read some.
DAY_MS = 86_400_000
TIME_LIMITS_MS = {
    "message.timestamp.before.max.ms": 36_525 * DAY_MS,
    "message.timestamp.after.max.ms": DAY_MS,
}
# For what is not acknowledged at the end; after that it counts as not delivered.
FLUSH_S = 150.0


@dataclass(frozen=True)
class Config:
    """What the command line and the environment say; see load_config."""

    data: Path
    bootstrap_servers: str
    topic: str
    lot_size: int
    interval_s: float
    first: int
    count: int | None
    faults: dict[int, list[str]]  # lot -> kinds
    wait_s: float


@dataclass(frozen=True)
class Lot:
    """One message: its value, and what the headers say of it."""

    batch_id: str
    size: int
    sequence: int
    first_row: int
    checksum: str
    source_file: str
    value: bytes

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the Kafka headers."""
        names = ("batch_id", "size", "sequence", "first_row", "checksum", "source_file")
        return [(name, str(getattr(self, name)).encode()) for name in names]


def encode(rows: Iterable[Mapping[str, str | None]]) -> bytes:
    """Return rows as JSON, one per line."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def checksum(value: bytes) -> str:
    """Return the SHA-256 of a value in hexadecimal."""
    return hashlib.sha256(value).hexdigest()


def make_lots(rows: Iterator[Row], size: int, source: Path) -> Iterator[Lot]:
    """Return a file's lots of `size` rows, the last one of what is left."""
    for sequence in itertools.count(1):
        chosen = list(itertools.islice(rows, size))
        if not chosen:
            return
        value = encode(chosen)
        batch_id = f"{source.stem}-{sequence:06d}"
        first = (sequence - 1) * size + 1
        yield Lot(batch_id, len(chosen), sequence, first, checksum(value), source.name, value)


def change_first_row(**changes: str) -> Callable[[list[Row]], list[Row]]:
    """Return what gives a lot's first row, if there is one, other values."""
    return lambda rows: [{**row, **changes} for row in rows[:1]] + rows[1:]


# Fault -> what it makes of a lot's rows; the checksum is that of the result.
ROW_FAULTS: dict[str, Callable[[list[Row]], list[Row]]] = {
    "short": lambda rows: rows[:-1],
    "long": lambda rows: [*rows, *rows[-1:]],
    "site": change_first_row(SITE_ID="NOWHERE"),
    "number": change_first_row(ANC_UEQ_L="n/a"),
    "range": change_first_row(PH_LAB="41"),
    "date": change_first_row(DATE_SMP="2019-02-30"),
    "column": lambda rows: [
        {name: value for name, value in row.items() if name != "PH_LAB"} for row in rows
    ],
}
# In the order in which they spoil the same lot: once it is no longer JSON, it has no rows.
FAULTS = (*ROW_FAULTS, "json", "checksum", "duplicate")


def spoil(lot: Lot, kind: str) -> list[Lot]:
    """Return what is sent in place of a lot with a fault of this kind (see FAULTS)."""
    if kind == "duplicate":
        return [lot, lot]
    if kind == "checksum":
        return [replace(lot, value=lot.value.replace(b'"', b"'", 1))]
    if kind == "json":
        value = lot.value.replace(b"{", b"[", 1)
    else:
        rows = [json.loads(line) for line in lot.value.splitlines()]
        value = encode(ROW_FAULTS[kind](rows))
    return [replace(lot, value=value, checksum=checksum(value))]


def lots_to_send(config: Config) -> Iterator[Lot]:
    """Return the lots that are asked for, spoilt where a fault is asked for.

    Raises:
        TableError: the file cannot be read, or has a name that no lot may have.
    """
    source = find_file(config.data, SAMPLES)
    if not all(re.fullmatch(ID, name) for name in (source.name, f"{source.stem}-000001")):
        raise TableError(
            f"{source}: lots are named after it: give it a name of letters, digits, spaces, . _ -"
        )
    last = config.first + config.count - 1 if config.count else None
    lots = make_lots(read_table(source, SAMPLES), config.lot_size, source)
    for lot in itertools.islice(lots, config.first - 1, last):
        sent = [lot]
        for kind in sorted(config.faults.get(lot.sequence, []), key=FAULTS.index):
            sent = [spoilt for one in sent for spoilt in spoil(one, kind)]
        yield from sent


def connect(config: Config) -> KafkaProducer:
    """Return a producer on a topic that exists.

    Raises:
        KafkaError: Kafka does not answer in time.
    """
    address = {
        "bootstrap_servers": config.bootstrap_servers.split(","),
        "api_version_auto_timeout_ms": max(1000, round(config.wait_s * 1000)),  # with 0 never
        "reconnect_backoff_max_ms": 1000,
    }
    limits = {name: str(limit) for name, limit in TIME_LIMITS_MS.items()}
    with closing(KafkaAdminClient(**address)) as admin, suppress(TopicAlreadyExistsError):
        admin.create_topics([NewTopic(config.topic, PARTITIONS, 1, topic_configs=limits)])
    # Idempotent: a lot that is sent again after an answer was lost is stored once.
    # 30 days: after a message has expired, kafka-python 2.3 may send no more.
    patience = {"delivery_timeout_ms": 30 * 86_400_000}
    return KafkaProducer(**address, **patience, acks="all", enable_idempotence=True, linger_ms=20)


def send_all(
    producer: KafkaProducer, lots: Iterator[Lot], config: Config, stop: threading.Event
) -> int:
    """Send the lots, one per interval, until stopped; return how many were not acknowledged.

    The producer is closed afterwards.

    Raises:
        KafkaError: a lot cannot be sent at all, for instance because it is too large.
        TableError: the file cannot be read to its end.
    """
    sent: list[tuple[Lot, Any]] = []
    due = shown = time.monotonic()
    try:
        for lot in lots:
            if stop.wait(min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)):
                break
            due = max(due + config.interval_s, time.monotonic())
            key = lot.batch_id.encode()
            future = producer.send(config.topic, lot.value, key=key, headers=lot.headers())
            if isinstance(future.exception, MessageSizeTooLargeError):
                raise future.exception
            sent.append((lot, future))
            if config.interval_s >= 1 or time.monotonic() > shown + PROGRESS_S:
                shown = time.monotonic()
                log.info("sent batch_id=%s size=%d lots=%d", lot.batch_id, lot.size, len(sent))
    finally:
        with suppress(KafkaError):  # what is not acknowledged by then is counted below
            producer.close(timeout=FLUSH_S)
    failed = [lot for lot, future in sent if not future.succeeded()]
    rows = sum(lot.size for lot, _ in sent)
    log.info("stopped lots=%d rows=%d failed=%d", len(sent), rows, len(failed))
    if sent and stop.is_set():
        log.info("to go on where this ended: --first %d", sent[-1][0].sequence + 1)
    for lot in failed[:5]:
        log.error("not acknowledged batch_id=%s", lot.batch_id)
    return len(failed)


def fault(text: str) -> tuple[str, int]:
    """Return KIND=LOT as (kind, lot)."""
    kind, _, lot = text.partition("=")
    if kind not in FAULTS or not lot.isdecimal() or int(lot) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND=LOT, KIND of {', '.join(FAULTS)}")
    return kind, int(lot)


def at_least(minimum: float, kind: type[int] | type[float]) -> Any:
    """Return a parser of numbers that are not below a minimum."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not minimum <= number < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {minimum:g} on")
        return number

    return parse


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    positive = at_least(1, int)
    for flag, name, default, kind in (
        ("--data", "LTM_DATA", SAMPLE_FOLDER, Path),
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", addresses),
        ("--topic", "WATER_TOPIC", "water-quality", str),
    ):
        add(flag, default=environ.get(name) or default, type=kind, metavar=name.split("_")[-1],
            help=f"environment: {name}")  # fmt: skip
    add("--lot-size", type=positive, default=100, metavar="ROWS", help="(default: 100)")
    add("--interval", type=at_least(0, float), default=10.0, metavar="SECONDS",
        help="from lot to lot (default: 10)")  # fmt: skip
    add("--first", type=positive, default=1, metavar="LOT", help="begin with this lot")
    add("--count", type=positive, metavar="LOTS", help="send that many (default: all)")
    add("--fault", type=fault, action="append", default=[], metavar="KIND=LOT",
        help="spoil a lot (see below)")  # fmt: skip
    add("--wait", type=at_least(0, float), default=60.0, metavar="SECONDS",
        help="how long to wait for Kafka at the start (default: 60)")  # fmt: skip
    options = parser.parse_args(argv)
    faults: dict[int, list[str]] = {}
    for kind, lot in options.fault:
        faults.setdefault(lot, []).append(kind)
    return Config(
        data=options.data,
        bootstrap_servers=options.bootstrap_servers,
        topic=options.topic,
        lot_size=options.lot_size,
        interval_s=options.interval,
        first=options.first,
        count=options.count,
        faults=faults,
        wait_s=options.wait,
    )


def configure_logging() -> None:
    """Log to stderr, in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # What the libraries log, traces included, is not for the user: what matters is said here.
    logging.root.handlers[0].addFilter(logging.Filter(log.name))
    sys.unraisablehook = lambda _: None


def main(argv: Sequence[str] | None = None) -> int:
    """Send lots until done or stopped; return the exit code (see the module docstring)."""
    load_env()
    config = load_config(argv, os.environ)
    configure_logging()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    lots = lots_to_send(config)
    try:
        first = next(lots, None)  # an unreadable file is said before Kafka is asked
        if first is None:
            log.error("no lot %d in %s", config.first, find_file(config.data, SAMPLES))
            return 2
        producer = connect(config)
        log.info("sending %s to topic=%s at %s", first.source_file, config.topic,
                 config.bootstrap_servers)  # fmt: skip
        return 1 if send_all(producer, itertools.chain([first], lots), config, stop) else 0
    except TableError as exc:
        log.error("%s", exc)
        return 2
    except MessageSizeTooLargeError as exc:
        log.error("a lot is too large, choose a smaller --lot-size: %s", exc)
        return 2
    except KafkaError as exc:
        log.error("Kafka at %s: %s: is it started?", config.bootstrap_servers, exc)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
