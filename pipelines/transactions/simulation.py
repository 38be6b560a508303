"""Simulated card transactions of a shop: pure functions of a seed and a start."""

import heapq
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

PARIS = ZoneInfo("Europe/Paris")
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
class Simulation:
    """Which transactions are made.

    Attributes:
        start: simulated time of the first ones.
        end: none is made from then on; None for no such limit.
        count: how many at most; None for no limit.
        interval_s: time between two sales, on average when `daily`, otherwise exactly.
        daily: sales follow the hours of a day in Paris; otherwise they are evenly spaced.
        first_id: transaction_id of the first one.
        seed: the same seed gives the same transactions.
        bad: share of wrong records, 0 to 1.
        fraud: number of frauds for one sale, 0 to 1.
    """

    start: datetime
    end: datetime | None
    count: int | None
    interval_s: float
    daily: bool
    first_id: int
    seed: int
    bad: float
    fraud: float

    @property
    def expected(self) -> int | None:
        """About how many transactions there are until the end; None without one."""
        if not self.end:
            return None
        in_time = round(
            (self.end - self.start).total_seconds() / self.interval_s * (1 + self.fraud)
        )
        return min(in_time, self.count or in_time)


class Record(NamedTuple):
    """What is sent: a transaction, or what a fault has made of it (label says which)."""

    when: datetime
    transaction_id: int
    montant: str
    devise: str
    timestamp: str
    value: bytes
    label: str


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


def evenly(start: datetime, interval_s: float) -> Iterator[datetime]:
    """Yield times without end from the start on, `interval_s` apart."""
    for number in itertools.count():
        try:
            yield start + timedelta(seconds=number * interval_s)
        except OverflowError:  # after the year 9999: no such time comes
            return


def arrivals(start: datetime, mean_s: float, rng: random.Random, daily: bool) -> Iterator[datetime]:
    """Yield random times without end, `mean_s` apart on average: the busier the hour, the closer.

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


def all_records(asked: Simulation) -> Iterator[Record]:
    """Yield the records in the order of their times, up to the count or the end."""
    rng = {name: random.Random(f"{asked.seed}/{name}") for name in ("sale", "fraud", "bad")}
    sales = evenly(asked.start, asked.interval_s)
    if asked.daily:
        sales = arrivals(asked.start, asked.interval_s, rng["sale"], daily=True)
    times: Iterator[tuple[datetime, str]] = ((when, "sale") for when in sales)
    if asked.fraud:
        frauds = arrivals(asked.start, asked.interval_s / asked.fraud, rng["fraud"], daily=False)
        times = heapq.merge(times, ((when, "fraud") for when in frauds))
    if asked.end:
        end = asked.end
        times = itertools.takewhile(lambda entry: entry[0] < end, times)
    shares = [currency.share for currency in CURRENCIES]
    for number, (when, kind) in enumerate(itertools.islice(times, asked.count), asked.first_id):
        (currency,) = rng[kind].choices(CURRENCIES, shares)
        montant = amount(currency, rng[kind], kind == "fraud")
        value = as_json(number, montant, currency.code, iso(when)).encode()
        label = "fraud" if kind == "fraud" else ""
        record = Record(when, number, montant, currency.code, iso(when), value, label)
        if asked.bad and rng["bad"].random() < asked.bad:
            record = spoilt(record, rng["bad"])
        yield record
