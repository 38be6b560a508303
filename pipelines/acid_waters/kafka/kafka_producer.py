#!/usr/bin/env python3
"""Send the samples of acidified waters to Kafka, in lots of 100 rows, one Kafka message per lot.

    python kafka_producer.py                          # a lot every 10 seconds
    python kafka_producer.py --interval 0             # as fast as possible
    python kafka_producer.py --first 3 --count 1      # lot 3 again
    python kafka_producer.py --fault short=2 --fault checksum=5
    python kafka_producer.py --console --count 1      # on the screen instead of into Kafka

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

--fault KIND=LOT spoils one lot on its way, to see it rejected; as often as you like. --bad spoils
a share of them, each with a fault that --seed draws:

    short, long       a row less, a row more than declared
    checksum          a byte changed after the checksum was made
    duplicate         sent twice
    site              a site that is not in Site_Information
    number            a measure that is not a number
    range             a measure that no instrument gives
    date              the 30th of February
    column            a column is missing
    json              not JSON

Environment (or .env in the pipeline's folder, then in the project's; an option wins over all):
    LTM_DATA                  folder with the three files (default: the sample of this pipeline)
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    WATER_TOPIC               default water-quality; it is made if it is not there

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable or a lot not acknowledged,
2 wrong usage or unreadable file.
"""

import itertools
import json
import logging
import os
import re
import sys
import threading
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.kafka.lots import (  # noqa: E402
    FAULTS,
    Lot,
    checksum,
    drawn_fault,
    make_lots,
    spoil,
)
from pipelines.acid_waters.kafka.topic import is_it_started, kafka_client, make_topic  # noqa: E402
from pipelines.acid_waters.settings import HERE, add_wait, command_line  # noqa: E402
from pipelines.acid_waters.tables import ID, SAMPLES, TableError, find_file, read_table  # noqa: E402
from pipelines.common import (  # noqa: E402
    close_producer,
    configure_logging,
    load_env,
    number,
    stop_on_signals,
)
from stack.console import command  # noqa: E402

log = logging.getLogger("kafka_producer")

PROGRESS_S = 5.0
GIVE_UP_S = 15.0  # at the end, without an acknowledgement


def lots_to_send(config: Namespace) -> Iterator[Lot]:
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
        kinds = [kind for kind, sequence in config.fault if sequence == lot.sequence]
        kinds += drawn_fault(config.seed, lot.sequence, config.bad)
        sent = [lot]
        for kind in sorted(kinds, key=FAULTS.index):
            sent = [spoilt for one in sent for spoilt in spoil(one, kind)]
        yield from sent


def connect(config: Namespace) -> KafkaProducer:
    """Return a producer on a topic that exists.

    Raises:
        KafkaError: Kafka does not answer in time.
    """
    make_topic(config.bootstrap_servers, config.topic, config.wait)
    # Idempotent: a lot that is sent again after an answer was lost is stored once.
    # 30 days: after a message has expired, kafka-python 2.3 may send no more.
    options = {"acks": "all", "enable_idempotence": True, "linger_ms": 20,
               "delivery_timeout_ms": 30 * 86_400_000}  # fmt: skip
    return KafkaProducer(**kafka_client(config.bootstrap_servers, config.wait), **options)


def send_all(
    producer: KafkaProducer,
    lots: Iterator[Lot],
    config: Namespace,
    stop: threading.Event,
    ledger: TextIO | None = None,
) -> int:
    """Send the lots, one per interval, until stopped; return how many were not acknowledged.

    The producer is closed afterwards.

    Args:
        producer: see connect.
        lots: to send.
        config: the topic, the interval.
        stop: ends it.
        ledger: gets a line per acknowledged lot, in order.

    Raises:
        KafkaError: a lot cannot be sent at all, for instance because it is too large.
        TableError: the file cannot be read to its end.
    """
    sent: list[tuple[Lot, Any]] = []
    noted = 0  # of those, how many the ledger has been told
    due = shown = time.monotonic()
    try:
        for lot in lots:
            if stop.wait(min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)):
                break
            due = max(due + config.interval, time.monotonic())
            key = lot.batch_id.encode()
            future = producer.send(config.topic, lot.value, key=key, headers=lot.headers())
            if isinstance(future.exception, MessageSizeTooLargeError):
                raise future.exception
            sent.append((lot, future))
            noted = note_acknowledged(sent, noted, ledger)
            if config.interval >= 1 or time.monotonic() > shown + PROGRESS_S:
                shown = time.monotonic()
                log.info("sent batch_id=%s size=%d lots=%d", lot.batch_id, lot.size, len(sent))
    finally:
        close_producer(
            producer, lambda: sum(not future.is_done for _, future in sent), GIVE_UP_S, log
        )
    failed = [(lot, future.exception) for lot, future in sent if not future.succeeded()]
    note_acknowledged([one for one in sent if one[1].succeeded()], noted, ledger)
    rows = sum(lot.size for lot, _ in sent)
    log.info("stopped lots=%d rows=%d failed=%d", len(sent), rows, len(failed))
    if sent and stop.is_set():
        following = failed[0][0].sequence if failed else sent[-1][0].sequence + 1
        log.info("to go on where this ended: --first %d", following)
    for lot, why in failed[:5]:
        log.error("not acknowledged batch_id=%s: %s", lot.batch_id, why or "Kafka does not answer")
    return len(failed)


def note_acknowledged(sent: Sequence[tuple[Lot, Any]], noted: int, ledger: TextIO | None) -> int:
    """Write the lots that Kafka has acknowledged since into the ledger; return how many it has."""
    for lot, future in sent[noted:]:
        if not ledger or not future.succeeded():
            break
        noted_of_it = {
            "batch_id": lot.batch_id,
            "partition": future.value.partition,
            "offset": future.value.offset,
            "checksum": checksum(lot.value),  # as sent: a spoilt lot declares another one
        }
        ledger.write(json.dumps(noted_of_it) + "\n")
        ledger.flush()
        noted += 1
    return noted


def show_all(lots: Iterator[Lot]) -> None:
    """Write lots on stdout, each as a line of JSON."""
    for lot in lots:
        shown = {**lot.described(), "value": lot.value.decode()}
        sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")


def fault(text: str) -> tuple[str, int]:
    """Return KIND=LOT as (kind, lot)."""
    kind, _, lot = text.partition("=")
    if kind not in FAULTS or not lot.isdecimal() or int(lot) < 1:
        raise ArgumentTypeError(f"{text!r} is not KIND=LOT, KIND of {', '.join(FAULTS)}")
    return kind, int(lot)


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Namespace:
    """Return the options, with the environment's values and the defaults; a bad one exits with 2.

    Returns:
        Namespace: data (folder), bootstrap_servers, topic, lot_size (rows), interval (seconds),
        first, count (lots, None for all), fault ((kind, lot) each), bad (share), seed, console,
        ledger (file or None), wait (seconds).
    """
    parser = command_line(__doc__, environ, "--data", "--bootstrap-servers", "--topic")
    add = parser.add_argument
    positive = number(1, 1e9, int)
    add("--lot-size", type=positive, default=100, metavar="ROWS", help="(default: 100)")
    add("--interval", type=number(0, 1e12), default=10.0, metavar="SECONDS",
        help="from lot to lot (default: 10)")  # fmt: skip
    add("--first", type=positive, default=1, metavar="LOT", help="begin with this lot")
    add("--count", type=positive, metavar="LOTS", help="send that many (default: all)")
    add("--fault", type=fault, action="append", default=[], metavar="KIND=LOT",
        help="spoil a lot (see below)")  # fmt: skip
    add("--bad", type=number(0, 1), default=0.0, metavar="RATE",
        help="share of the lots to spoil, 0 to 1 (default: 0)")  # fmt: skip
    add("--seed", type=number(0, 1e9, int), default=42, metavar="N",
        help="draws what --bad spoils (default: 42)")  # fmt: skip
    add("--console", action="store_true", help="write the lots on stdout, a line of JSON each")
    add("--ledger", type=Path, metavar="FILE",
        help="add a line for each acknowledged lot, for verify.py")  # fmt: skip
    add_wait(parser)
    return parser.parse_args(argv)


@command("kafka_producer", {TableError: 2})
def main(argv: Sequence[str] | None = None) -> int:
    """Send lots until done or stopped; return the exit code (see the module docstring)."""
    load_env(HERE)
    config = load_config(argv, os.environ)
    lots = lots_to_send(config)
    first = next(lots, None)  # an unreadable file is said before Kafka is asked
    if first is None:
        raise TableError(f"no lot {config.first} in {find_file(config.data, SAMPLES)}")
    lots = itertools.chain([first], lots)
    if config.console:
        show_all(lots)
        return 0
    configure_logging(log.name)
    sys.unraisablehook = lambda _: None  # what kafka-python leaves behind in an outage
    try:
        producer = connect(config)  # until here, Ctrl-C ends it at once
        stop = threading.Event()
        stop_on_signals(stop)
        log.info("sending %s to topic=%s at %s", first.source_file, config.topic,
                 config.bootstrap_servers)  # fmt: skip
        opened = config.ledger.open("a", encoding="utf-8") if config.ledger else nullcontext()
        with opened as ledger:
            return 1 if send_all(producer, lots, config, stop, ledger) else 0
    except MessageSizeTooLargeError as exc:
        log.error("a lot is too large, choose a smaller --lot-size: %s", exc)
        return 2
    except KafkaError as exc:
        log.error("Kafka at %s: %s%s", config.bootstrap_servers, exc, is_it_started(exc))
    except OSError as exc:
        log.error("%s: %s", config.ledger, exc.strerror)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
