#!/usr/bin/env python3
"""Simulate the card transactions of a shop and send them to Kafka.

    python capteur.py                                # live, one a second, until Ctrl-C
    python capteur.py --backfill 48h --interval 10   # two days at once
    python capteur.py --console --count 3            # on stdout

A transaction, one JSON object; montant is a number with the decimals of its currency:

    {"transaction_id": 7, "montant": 47.9, "devise": "USD", "timestamp": "2026-10-24T10:00:00.000Z"}

Live, the transactions are evenly spaced. With --backfill they come as in a shop, many at noon and
in the evening, hardly any at night (in Paris), and --interval is the mean of a day.

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

Environment (or .env in this folder, or in the project's; a flag wins over all):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    TRANSACTIONS_TOPIC        default transactions

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable, a record not acknowledged, or the ledger
or stdout could not be written to the end, 2 wrong usage or configuration.
"""

import itertools
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from kafka.errors import KafkaError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from pipelines.common import configure_logging, load_env, number, stop_on_signals  # noqa: E402
from pipelines.transactions.ledger import Ledger  # noqa: E402
from pipelines.transactions.sender import Sender, connect  # noqa: E402
from pipelines.transactions.servers import explain  # noqa: E402
from pipelines.transactions.settings import (  # noqa: E402
    add_kafka_options,
    add_wait_option,
    described_parser,
    duration,
    moment,
    progress_bar,
    share,
)
from pipelines.transactions.simulation import Record, Simulation, all_records, iso  # noqa: E402
from stack.console import command  # noqa: E402

log = logging.getLogger("capteur")
DEFAULT_START = "2026-10-24T00:00:00Z"


@dataclass(frozen=True)
class Config:
    """One run, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    console: bool
    ledger: Path | None
    wait_s: float
    simulation: Simulation


def paced(records: Iterator[Record], start: datetime, stop: threading.Event) -> Iterator[Record]:
    """Yield records when they are due, on a clock that was at `start` when this one was asked."""
    began = time.monotonic()
    for record in records:
        due = began + (record.when - start).total_seconds()
        stop.wait(max(0.0, due - time.monotonic()))
        if stop.is_set():
            return
        yield record


def print_records(records: Iterator[Record]) -> None:
    """Write one record a line on stdout, at once.

    Raises:
        OSError: they cannot be written.
    """
    for record in records:
        sys.stdout.write(record.value.decode() + "\n")
        sys.stdout.flush()


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    parser = described_parser(__doc__)
    add = parser.add_argument
    whole = partial(number, kind=int)
    add("--console", action="store_true", help="print the records instead of sending them")
    add("--count", type=whole(1, 1e12), metavar="N", help="stop after N records")
    add("--start", type=moment, default=DEFAULT_START, metavar="TIME",
        help=f'simulated start, ISO 8601 or "now" (default: {DEFAULT_START})')  # fmt: skip
    add("--backfill", type=duration, metavar="DURATION",
        help="send the period of that length from --start on at once: 90s, 48h, 7d")  # fmt: skip
    add("--interval", type=number(0.001, 1e9), default=1.0, metavar="SECONDS",
        help="time between two transactions (default: 1)")  # fmt: skip
    add("--first-id", type=whole(0, 2**62), default=1, metavar="N",
        help="transaction_id of the first one (default: 1)")  # fmt: skip
    add("--seed", type=int, help="for the same transactions again (default: a new one, shown)")
    add("--bad", type=share, default=0.0, metavar="RATE", help="share of wrong records, 0 to 1")
    add("--fraud", type=share, default=0.0, metavar="RATE", help="share of frauds to add, 0 to 1")
    add("--ledger", type=Path, metavar="FILE", help="note what was sent (see below)")
    add_wait_option(parser, "Kafka")
    add_kafka_options(parser, environ)
    options = parser.parse_args(argv)
    if options.console and options.ledger:
        parser.error("--ledger notes what Kafka has acknowledged: --console sends it nothing")
    return Config(
        bootstrap_servers=options.bootstrap_servers,
        topic=options.topic,
        console=options.console,
        ledger=options.ledger,
        wait_s=options.wait,
        simulation=Simulation(
            start=options.start,
            end=options.start + options.backfill if options.backfill else None,
            count=options.count,
            interval_s=options.interval,
            daily=options.backfill is not None,
            first_id=options.first_id,
            seed=random.SystemRandom().randrange(2**32) if options.seed is None else options.seed,
            bad=options.bad,
            fraud=options.fraud,
        ),
    )


def send_to_kafka(records: Iterator[Record], config: Config, stop: threading.Event) -> int:
    """Send the records; return the exit code."""
    try:
        producer = connect(config.bootstrap_servers, config.topic, config.wait_s, stop)
    except KafkaError as exc:
        log.error("%s", explain(config.bootstrap_servers, exc))
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
    if expected := config.simulation.expected:
        records = iter(progress_bar(records, "sending", expected))
    sender.send_all(records)
    ledger.close()
    log.info("stopped %s", sender)
    if sender.failed:
        log.error("not acknowledged: %d (%s)", sender.failed, sender.last_error)
    if ledger.trouble:
        log.error("--ledger %s: %s: it is not complete", config.ledger, ledger.trouble)
    return 1 if sender.failed or ledger.trouble else 0


@command("capteur")
def main(argv: Sequence[str] | None = None) -> int:
    """Generate transactions until done or stopped; return the exit code."""
    load_env(HERE)
    config = load_config(argv, os.environ)
    configure_logging("capteur")
    stop = threading.Event()
    stop_on_signals(stop)
    asked = config.simulation
    log.info("simulating seed=%d start=%s", asked.seed, iso(asked.start))
    records = all_records(asked)
    if not asked.end:
        records = paced(records, asked.start, stop)
    records = itertools.takewhile(lambda _: not stop.is_set(), records)
    if config.console:
        print_records(records)
        return 0
    return send_to_kafka(records, config, stop)


if __name__ == "__main__":
    raise SystemExit(main())
