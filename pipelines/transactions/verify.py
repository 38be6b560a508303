#!/usr/bin/env python3
"""Compare what capteur.py has sent with what is stored: each record, and the sums, to the cent.

    python verify.py --ledger FILE [--ledger FILE ...]

Each FILE is one that `capteur.py --ledger` has written; together they must cover the whole topic.
Each record is known by its place in Kafka (partition, offset). It must be in exactly one file of
the bucket, once: among the transactions, with the amount, currency and time that were sent and with
the local time, folder, rate and euros that are due, or, when it was spoilt, among the rejects, with
that reason and its bytes. Nothing else may be there, but what Kafka has stored and could not
acknowledge. The store is read by pyarrow, without Spark and without its checkpoint; the euros are
worked out here anew, from rates.csv, in Python's decimals.

Environment (or .env in this folder, or in the project's): as store.py.

Exit codes: 0 they agree, 1 they do not, or the store or a ledger cannot be read; 2 wrong usage or
configuration.
"""

import bisect
import csv
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from pipelines.common import load_env  # noqa: E402
from pipelines.transactions.ledger import COLUMNS  # noqa: E402
from pipelines.transactions.settings import described_parser, progress_bar  # noqa: E402
from pipelines.transactions.store import (  # noqa: E402
    OUTPUT,
    REJECTS,
    SettingError,
    Store,
    StoreError,
)
from stack.console import command  # noqa: E402

PARIS = ZoneInfo("Europe/Paris")
CENT = Decimal("0.01")
MAX_RATE_AGE = timedelta(days=7)
VALUES = [
    "transaction_id", "montant", "devise", "timestamp_utc", "timestamp_paris", "date", "taux",
    "taux_date", "montant_eur",
]  # fmt: skip
PLACE = ["kafka_partition", "kafka_offset"]
Place = tuple[int, int]  # partition, offset
Published = dict[str, tuple[list[date], list[Decimal]]]  # currency -> days and their rates


class Sent(NamedTuple):
    """A record as the ledger notes it; label is "", "fraud", or how it was spoilt."""

    transaction_id: int
    montant: Decimal
    devise: str
    when: datetime
    label: str
    value: bytes  # what was sent, of a spoilt one

    @property
    def is_right(self) -> bool:
        """Whether it must be among the transactions."""
        return self.label in ("", "fraud")


@dataclass
class Totals:
    """What one currency comes to: number of transactions, cents, cents of euro."""

    number: int = 0
    cents: int = 0
    euro_cents: int = 0

    def add(self, montant: Decimal, euros: Decimal) -> None:
        """Add a transaction."""
        self.number += 1
        self.cents += int(montant * 100)
        self.euro_cents += int(euros * 100)


@dataclass
class Verdict:
    """What the comparison found; the lists name records as (partition, offset).

    Attributes:
        produced: records in the ledgers.
        unacknowledged: those of them that Kafka has not acknowledged: it may hold them or not.
        stored_unacknowledged: those of these that it did hold: they are stored.
        written, rejected: rows under output/ and rejects/.
        missing: in neither.
        doubled: there more than once.
        unexpected: stored, but in no ledger.
        differing: stored with another value of VALUES than is due, or other bytes of a reject.
        misjudged: right and rejected, or wrong and written, or rejected for another reason.
        due, stored: totals by currency, by the ledgers and by the store.
    """

    produced: int = 0
    unacknowledged: int = 0
    stored_unacknowledged: int = 0
    written: int = 0
    rejected: int = 0
    missing: list[Place] = field(default_factory=list)
    doubled: list[Place] = field(default_factory=list)
    unexpected: list[Place] = field(default_factory=list)
    differing: list[Place] = field(default_factory=list)
    misjudged: list[Place] = field(default_factory=list)
    due: defaultdict[str, Totals] = field(default_factory=lambda: defaultdict(Totals))
    stored: defaultdict[str, Totals] = field(default_factory=lambda: defaultdict(Totals))

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, doubled, changed or made up, and every sum agrees."""
        wrong = [self.missing, self.doubled, self.unexpected, self.differing, self.misjudged]
        produced = self.produced - self.unacknowledged + self.stored_unacknowledged
        balanced = produced == self.written + self.rejected
        return balanced and not any(wrong) and dict(self.due) == dict(self.stored)

    def add_due(self, record: Sent, published: Published) -> None:
        """Add a right record to what must be stored."""
        self.due[record.devise].add(record.montant, row_due(record, published)["montant_eur"])


def read_published(path: Path) -> Published:
    """Return the days on which rates were published, and the rates, by currency."""
    published: Published = {}
    for line in sorted(path.read_text(encoding="ascii").splitlines()):
        if line[:1].isdigit():
            day, currency, rate = line.split(",")
            days, rates = published.setdefault(currency, ([], []))
            days.append(date.fromisoformat(day))
            rates.append(Decimal(rate))
    return published


def rate_due(devise: str, day: date, published: Published) -> tuple[Decimal, date]:
    """Return the last rate published up to a day, and its day.

    Raises:
        ValueError: there is none of that currency, or it is too old.
    """
    days, rates = published.get(devise, ([], []))
    last = bisect.bisect_right(days, day) - 1
    if last < 0 or day - days[last] > MAX_RATE_AGE:
        raise ValueError(f"rates.csv has no rate of {devise} for {day}")
    return rates[last], days[last]


def row_due(record: Sent, published: Published) -> dict[str, Any]:
    """Return what must be stored of a right record; euros to the cent, half up.

    Raises:
        ValueError: there is no rate for its currency and day.
    """
    paris = record.when.astimezone(PARIS)
    rate, published_on, euros = None, None, record.montant
    if record.devise != "EUR":
        rate, published_on = rate_due(record.devise, paris.date(), published)
        euros = (record.montant / rate).quantize(CENT, ROUND_HALF_UP)
    return {
        "transaction_id": record.transaction_id,
        "montant": record.montant,
        "devise": record.devise,
        "timestamp_utc": record.when,
        "timestamp_paris": paris.replace(tzinfo=None),
        "date": f"{paris:%Y-%m-%d}",  # the folder
        "taux": rate,
        "taux_date": published_on,
        "montant_eur": euros,
    }


def read_ledgers(paths: Sequence[Path]) -> tuple[dict[Place, Sent], list[Sent]]:
    """Return what was acknowledged, by place, and what was not.

    Raises:
        OSError, ValueError: a ledger cannot be read, is none, names a place that was named before,
            or there is no record in any.
    """
    sent: dict[Place, Sent] = {}
    unacknowledged: list[Sent] = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames != COLUMNS:
                raise ValueError(f"{path} is not a ledger of capteur.py")
            for row in progress_bar(rows, f"reading {path}", None):
                try:
                    record = Sent(
                        int(row["transaction_id"]), Decimal(row["montant"]), row["devise"],
                        datetime.fromisoformat(row["timestamp"]), row["label"],
                        row["value"].encode(),
                    )  # fmt: skip
                    where = (int(row["partition"]), int(row["offset"])) if row["offset"] else None
                except (TypeError, AttributeError, ValueError, ArithmeticError) as exc:
                    raise ValueError(
                        f"{path} is not a ledger of capteur.py: line {rows.line_num}"
                    ) from exc
                if where is None:
                    unacknowledged.append(record)
                elif sent.setdefault(where, record) is not record:
                    raise ValueError(f"{path}: partition, offset {where} were named before")
    if not sent and not unacknowledged:
        raise ValueError(f"no record in {', '.join(map(str, paths))}")
    return sent, unacknowledged


def read_folder(store: Store, folder: str, columns: list[str]) -> list[dict[str, Any]]:
    """Return the rows of all Parquet files under a folder of the bucket, none without the folder.

    Raises:
        StoreError: the store does not answer, or a file is not whole.
    """
    client = store.filesystem()
    try:
        path = f"{store.bucket}/{folder}"
        if client.get_file_info(path).type == fs.FileType.NotFound:
            return []
        # What lies under a name that begins with _ or . is not written to its end: left out.
        found = ds.dataset(path, filesystem=client, format="parquet", partitioning="hive")
        if not found.files:
            return []
        table = found.to_table(columns)
    except OSError as exc:
        raise StoreError(store.explain(exc)) from exc
    except pa.ArrowInvalid as exc:
        raise StoreError(f"{folder}/ holds a file that is not whole: {exc}") from exc
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def take_first(fits: list[Sent], unacknowledged: list[Sent], verdict: Verdict) -> Sent | None:
    """Return the first unacknowledged record that a stored row fits, and count it as stored.

    It leaves the list: another row may not be explained by it again.
    """
    if not fits:
        return None
    unacknowledged.remove(fits[0])
    verdict.stored_unacknowledged += 1
    return fits[0]


def compare_written(
    rows: list[dict[str, Any]],
    sent: Mapping[Place, Sent],
    unacknowledged: list[Sent],
    published: Published,
    verdict: Verdict,
) -> None:
    """Add to the verdict what the rows under output/ say; what is found leaves unacknowledged."""
    for row in progress_bar(rows, "comparing", len(rows)):
        verdict.stored[row["devise"]].add(row["montant"], row["montant_eur"])
        where = (row["kafka_partition"], row["kafka_offset"])
        record = sent.get(where)
        if record is None:
            number = row["transaction_id"]
            fits = [r for r in unacknowledged if r.is_right and r.transaction_id == number]
            record = take_first(fits, unacknowledged, verdict)
            if record is None:
                verdict.unexpected.append(where)
                continue
            verdict.add_due(record, published)
        if not record.is_right:
            verdict.misjudged.append(where)
        elif {name: row[name] for name in VALUES} != row_due(record, published):
            verdict.differing.append(where)


def compare_rejected(
    rows: list[dict[str, Any]],
    sent: Mapping[Place, Sent],
    unacknowledged: list[Sent],
    verdict: Verdict,
) -> None:
    """Add to the verdict what the rows under rejects/ say, as `compare_written` does."""
    for row in rows:
        where = (row["kafka_partition"], row["kafka_offset"])
        record = sent.get(where)
        if record is None:
            fits = [r for r in unacknowledged if not r.is_right and r.value == row["value"]]
            record = take_first(fits, unacknowledged, verdict)
            if record is None:
                verdict.unexpected.append(where)
                continue
        if row["reason"] != record.label:
            verdict.misjudged.append(where)
        elif row["value"] != record.value:
            verdict.differing.append(where)


def verify(store: Store, ledgers: Sequence[Path], rates: Path) -> Verdict:
    """Compare the ledgers with the bucket.

    Raises:
        StoreError: the store cannot be read.
        OSError, ValueError: a ledger cannot be read, is none, or has a day without a rate.
    """
    published = read_published(rates)
    sent, unacknowledged = read_ledgers(ledgers)
    verdict = Verdict(len(sent) + len(unacknowledged), len(unacknowledged))
    written = read_folder(store, OUTPUT, [*VALUES, *PLACE])
    rejected = read_folder(store, REJECTS, ["reason", "value", *PLACE])
    verdict.written, verdict.rejected = len(written), len(rejected)
    for record in sent.values():
        if record.is_right:
            verdict.add_due(record, published)
    compare_written(written, sent, unacknowledged, published, verdict)
    compare_rejected(rejected, sent, unacknowledged, verdict)
    seen = Counter((row[PLACE[0]], row[PLACE[1]]) for row in written + rejected)
    verdict.doubled = sorted(where for where, times in seen.items() if times > 1)
    verdict.missing = sorted(sent.keys() - seen.keys())
    return verdict


def grouped(cents: int) -> str:
    """Return an amount in units of its currency, with spaces between thousands.

    >>> grouped(1234567)
    '12 345.67'
    """
    return f"{cents // 100:,}.{cents % 100:02d}".replace(",", " ")


def print_verdict(verdict: Verdict) -> None:
    """Print one line per count, with the first few of what is wrong, and the sums by currency."""
    write = sys.stdout.write
    counts = {
        "produced (in the ledgers)": verdict.produced,
        "  not acknowledged by Kafka": verdict.unacknowledged,
        "  of these stored": verdict.stored_unacknowledged,
        "written (output/)": verdict.written,
        "rejected (rejects/)": verdict.rejected,
        "written + rejected": verdict.written + verdict.rejected,
    }
    for name, number in counts.items():
        write(f"{name:<28}{number:>10}\n")
    for name in ("missing", "doubled", "unexpected", "differing", "misjudged"):
        found = getattr(verdict, name)
        example = f"   for example {', '.join(map(str, found[:3]))}" if found else ""
        write(f"{name:<28}{len(found):>10}{example}\n")
    write(f"\n{'':<8}{'transactions':>12}{'sum':>20}{'in EUR':>18}\n")
    for currency in sorted(verdict.due.keys() | verdict.stored.keys()):
        due, stored = verdict.due[currency], verdict.stored[currency]
        for name, totals in (("sent", due), ("stored", stored)):
            write(
                f"{currency:<4}{name:<7}{totals.number:>9}{grouped(totals.cents):>20}"
                f"{grouped(totals.euro_cents):>18}{'' if due == stored else '   DIFFERENT'}\n"
            )


@command("verify", {SettingError: 2})
def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; return the exit code (see the module docstring)."""
    load_env(HERE)
    parser = described_parser(__doc__)
    parser.add_argument("--ledger", type=Path, action="append", required=True, metavar="FILE",
        help="what was sent; may be given several times")  # fmt: skip
    ledgers = parser.parse_args(argv).ledger
    store = Store.from_env(os.environ)
    try:
        verdict = verify(store, ledgers, HERE / "rates.csv")
    except (StoreError, OSError, ValueError, ArithmeticError, csv.Error) as exc:
        raise StoreError(f"cannot compare: {exc}") from exc
    print_verdict(verdict)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
