#!/usr/bin/env python3
"""Make rates.csv of the European Central Bank's file of reference rates.

    python rates.py eurofxref-hist.zip --since 2026-01-01

The bank's file is at https://www.ecb.europa.eu/stats/eurofxref/eurofxref-hist.zip: one line a day
on which the bank publishes (not on week-ends nor on its holidays), one column a currency, each
value the number of units of that currency for one euro. What is kept, in rates.csv:

    date,devise,taux
    2026-10-30,USD,1.1172

Exit codes: 0 written, 1 the file cannot be read or has no such day, 2 wrong usage.
"""

import argparse
import csv
import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stack.console import command

RATES_FILE = Path(__file__).with_name("rates.csv")
CURRENCIES = ("USD", "GBP", "CHF", "JPY")
# The bank's longest silence is Easter: from Thursday to Tuesday, five days. Beyond a week there is
# no rate in force but an old table.
MAX_AGE_DAYS = 7
HEADER = """\
# Euro foreign exchange reference rates of the European Central Bank: units of the currency for one
# euro. Source: its file eurofxref-hist.csv, days {first} to {last}; made by rates.py.
# https://www.ecb.europa.eu/stats/eurofxref/eurofxref-hist.zip
"""


class Rate(NamedTuple):
    """A published rate: units of a currency for one euro."""

    day: date
    currency: str
    units_per_euro: Decimal


def read_rates(path: Path) -> list[Rate]:
    """Return what a rates.csv holds, in its order.

    Raises:
        ValueError: a line is not a rate, or its day and currency have one already: a transaction
            would be written once for each; the message says which line.
        OSError: it cannot be read.
    """
    rates: dict[tuple[date, str], Rate] = {}
    with path.open(encoding="ascii", errors="replace", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        for number, row in enumerate(rows, start=1):
            try:
                rate = Rate(date.fromisoformat(row["date"]), row["devise"], Decimal(row["taux"]))
                rounded = round(rate.units_per_euro, 6)  # as Spark keeps it: DECIMAL(12,6)
                if not (rate.currency and 0 < rounded == rate.units_per_euro < 1_000_000):
                    raise ValueError(row)
            except (KeyError, TypeError, ValueError, InvalidOperation) as exc:
                raise ValueError(f"{path}: row {number} is not date,devise,taux") from exc
            if rates.setdefault((rate.day, rate.currency), rate) is not rate:
                raise ValueError(f"{path}: row {number}: {rate.currency} has a rate of {rate.day}")
    return list(rates.values())


def rates_in_force(rates: Sequence[Rate]) -> Iterator[tuple[date, str, Decimal, date]]:
    """Yield (day, currency, units per euro, day of publication) for each day that has a rate.

    On a day without a publication the last one before it is in force, for MAX_AGE_DAYS at most.
    The euro itself needs no rate and is not among them.

    >>> friday, monday = date(2026, 10, 23), date(2026, 10, 26)
    >>> table = [Rate(friday, "USD", Decimal("1.1")), Rate(monday, "USD", Decimal("1.2"))]
    >>> [(str(day), str(rate)) for day, _, rate, _ in rates_in_force(table)][:4]
    [('2026-10-23', '1.1'), ('2026-10-24', '1.1'), ('2026-10-25', '1.1'), ('2026-10-26', '1.2')]
    """
    published = {(rate.currency, rate.day): rate.units_per_euro for rate in rates}
    for rate in rates:
        for age in range(MAX_AGE_DAYS + 1):
            day = rate.day + timedelta(days=age)
            if age and (rate.currency, day) in published:
                break
            yield day, rate.currency, rate.units_per_euro, rate.day


def from_bank(path: Path, since: date) -> list[Rate]:
    """Return the rates of the bank's file, zipped or not, from a day on, oldest first.

    Raises:
        OSError, ValueError, KeyError, zipfile.BadZipFile: it is not the bank's file.
    """
    if path.suffix == ".zip":
        text = zipfile.ZipFile(path).read("eurofxref-hist.csv").decode("ascii")
    else:
        text = path.read_text(encoding="ascii")
    rates = [
        Rate(day, currency, Decimal(row[currency]))
        for row in csv.DictReader(io.StringIO(text))
        for currency in CURRENCIES
        if (day := date.fromisoformat(row["Date"])) >= since and row[currency] != "N/A"
    ]
    return sorted(rates)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never there in part: half a line may still be a rate, a wrong one.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    if path.exists() and not path.is_file():  # /dev/stdout is not to be replaced
        path.write_text(text, encoding="ascii")
        return
    partial = Path(f"{path}.partial")
    try:
        partial.write_text(text, encoding="ascii")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def day(text: str) -> date:
    """Return a date written 2026-01-31.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2026-01-31") from None


@command("rates")
def main(argv: Sequence[str] | None = None) -> int:
    """Write rates.csv; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the bank's eurofxref-hist.zip or .csv")
    parser.add_argument("--since", type=day, required=True, metavar="DAY")
    parser.add_argument("--to", type=Path, default=RATES_FILE, metavar="FILE",
        help="(default: rates.csv beside this script)")  # fmt: skip
    options = parser.parse_args(argv)
    try:
        rates = from_bank(options.file, options.since)
        if not rates:
            raise ValueError(f"it has no day from {options.since} on")
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, InvalidOperation) as exc:
        sys.stderr.write(f"rates: {options.file} cannot be used: {exc}\n")
        return 1
    lines = [f"{rate.day},{rate.currency},{rate.units_per_euro}\n" for rate in rates]
    header = HEADER.format(first=rates[0].day, last=rates[-1].day)
    try:
        write_whole(options.to, header + "date,devise,taux\n" + "".join(lines))
    except OSError as exc:
        sys.stderr.write(f"rates: --to {options.to}: {exc.strerror}\n")
        return 1
    sys.stdout.write(f"{len(rates)} rates from {rates[0].day} to {rates[-1].day}: {options.to}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
