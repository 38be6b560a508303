"""The comparison: what the topic, the tables and the ledger say of each message."""

import csv
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from deltalake import DeltaTable

from pipelines.smarttech.plain_rules import (
    EPOCH,
    FIELDS,
    Reading,
    Row,
    Where,
    judge,
    outliers,
    summarise,
)

REPEATED = ("timestamp", "device_id", "building", "type")
COORDINATES = ("topic", "partition", "offset", "kafka_timestamp", "key", "value")
# What a message need not have; in every other column that is read here a row has a value.
NULLABLE = {(name, column) for name in ("bronze", "rejects") for column in ("key", "value")}
# What may become of a valid reading; that of a bad message is its label in the ledger.
VALID_LABELS = {"reading", "spike", "duplicate", "late"}
VALID_FATES = {"silver", "duplicate", "conflict", "too_late"}


class Message(NamedTuple):
    """A message as the topic, bronze or rejects holds it."""

    key: bytes | None
    value: bytes | None
    time_ms: int


@dataclass
class Verdict:
    """What the comparison found; the lists name messages as (partition, offset), or keys.

    Attributes:
        topic: number of messages in the topic.
        rows: table -> number of rows.
        reasons: kind of reason -> rows in rejects.
        lost: in the topic, not in bronze.
        altered: in bronze or in rejects with another value, key or time.
        doubled: more than once in bronze, or in more than one place after it.
        made_up: in bronze and not in the topic, which still holds older ones; or in no bronze.
        unsettled: in bronze and nowhere after it.
        misjudged: not where they belong.
        differing: in silver or in duplicates with other values.
        gold, anomalies: keys of the rows that are missing, too many, or differ.
        ledger: messages that the ledger notes as acknowledged.
        unlike_ledger: those that the topic does not hold as noted, or that ended elsewhere.
        spikes, spikes_found: readings made anomalous on purpose, and those found.
    """

    topic: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    lost: list[Where] = field(default_factory=list)
    altered: list[Where] = field(default_factory=list)
    doubled: list[Where] = field(default_factory=list)
    made_up: list[Where] = field(default_factory=list)
    unsettled: list[Where] = field(default_factory=list)
    misjudged: list[Where] = field(default_factory=list)
    differing: list[Where] = field(default_factory=list)
    gold: list[Any] = field(default_factory=list)
    anomalies: list[Any] = field(default_factory=list)
    ledger: int = 0
    unlike_ledger: list[Where] = field(default_factory=list)
    spikes: int = 0
    spikes_found: int = 0

    def faults(self) -> dict[str, list[Any]]:
        """Return what must be empty."""
        return {
            "lost": self.lost,
            "altered": self.altered,
            "doubled": self.doubled,
            "made up": self.made_up,
            "unsettled": self.unsettled,
            "misjudged": self.misjudged,
            "differing values": self.differing,
            "gold rows unlike silver": self.gold,
            "anomalies unlike silver": self.anomalies,
            "unlike the ledger": self.unlike_ledger,
        }

    @property
    def balance(self) -> int:
        """Return bronze less silver, rejects and duplicates: 0."""
        parts = ("silver", "rejects", "duplicates")
        return self.rows["bronze"] - sum(self.rows[name] for name in parts)

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, changed, doubled or made up."""
        return self.balance == 0 and not any(self.faults().values())


def table(lake: Path, name: str, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a table, some of their columns.

    Raises:
        ValueError: a row lacks what each must have.
    """
    stored = DeltaTable(str(lake / f"sensor_data_{name}"))
    content = stored.to_pyarrow_table(columns=list(columns))
    for column in columns:
        if content[column].null_count and (name, column) not in NULLABLE:
            raise ValueError(f"{name} holds a row without {column}")
    rows: list[Row] = content.to_pylist()
    return rows


def compare(
    messages: Mapping[Where, Message], first: Mapping[int, int], lake: Path,
    topic: str, lateness: timedelta, window: timedelta, ledgers: Sequence[Path] = (),
) -> Verdict:  # fmt: skip
    """Compare the topic, the tables and, when they are given, the producer's ledgers.

    Args:
        messages: of the topic, as `read_topic` returns them.
        first: offsets, as `read_topic` returns them.
        lake: folder of the tables.
        topic: its name; rows of others are wrong.
        lateness: as the consumer was told.
        window: as the consumer was told.
        ledgers: what each run of the producer has noted.

    Raises:
        ValueError: a table or the ledger cannot be compared.
    """
    verdict = Verdict(topic=len(messages))
    bronze = table(lake, "bronze", COORDINATES)
    bronze.sort(key=lambda row: (row["partition"], row["offset"]))
    stored = compare_bronze(verdict, bronze, messages, first, topic)
    fates, readings, repeated = stored_fates(verdict, lake, stored)
    fated = {}
    for where, fate, reading in judge(bronze, lateness):
        fated[where] = fate
        if where not in fates:
            verdict.unsettled.append(where)
        elif fates[where] != fate:
            verdict.misjudged.append(where)
        elif (fate == "silver" and readings[where] != reading) or (
            fate == "duplicate" and reading and repeated[where] != reading.repeated
        ):
            verdict.differing.append(where)
    verdict.made_up += sorted(set(fates) - set(fated))
    silver = list(readings.values())
    verdict.gold += unlike(summarise(silver, window), stored_gold(verdict, lake, window))
    anomalies, anomalous = stored_anomalies(verdict, lake)
    verdict.anomalies += unlike(outliers(silver), anomalies)
    by_key = {(*reading.series, reading.timestamp): reading for reading in silver}
    differing = {key for key, reading in anomalous.items() if by_key.get(key) != reading}
    verdict.anomalies += sorted(differing.difference(verdict.anomalies))
    for ledger in ledgers:
        compare_ledger(verdict, ledger, messages, fates, readings, set(anomalies))
    return verdict


def compare_bronze(
    verdict: Verdict, bronze: Sequence[Row], messages: Mapping[Where, Message],
    first: Mapping[int, int], topic: str,
) -> dict[Where, Message]:  # fmt: skip
    """Note how bronze differs from the topic; return what it holds."""
    verdict.rows["bronze"] = len(bronze)
    stored: dict[Where, Message] = {}
    for row in bronze:
        where = (row["partition"], row["offset"])
        if where in stored:
            verdict.doubled.append(where)
        stored[where] = as_message(row)
        if where in messages:
            if row["topic"] != topic or messages[where] != stored[where]:
                verdict.altered.append(where)
        elif row["offset"] >= first.get(where[0], 0):  # else the topic has forgotten it
            verdict.made_up.append(where)
    verdict.lost += sorted(set(messages) - set(stored))
    return stored


def as_message(row: Row) -> Message:
    """Return the message in a row of bronze or rejects."""
    since = row["kafka_timestamp"] - EPOCH
    return Message(row["key"], row["value"], since // timedelta(milliseconds=1))


def stored_fates(
    verdict: Verdict, lake: Path, bronze: Mapping[Where, Message]
) -> tuple[dict[Where, str], dict[Where, Reading], dict[Where, tuple[Any, ...]]]:
    """Return what has become of each message, the readings in silver, what duplicates keeps."""
    fates: dict[Where, str] = {}
    readings: dict[Where, Reading] = {}
    repeated: dict[Where, tuple[Any, ...]] = {}
    for name, columns in (
        ("silver", ["partition", "offset", *FIELDS]),
        ("rejects", [*COORDINATES, "reason"]),
        ("duplicates", ["partition", "offset", *REPEATED]),
    ):
        rows = table(lake, name, columns)
        verdict.rows[name] = len(rows)
        for row in rows:
            where = (row["partition"], row["offset"])
            if where in fates:
                verdict.doubled.append(where)
            if name == "silver":
                fates[where] = "silver"
                readings[where] = Reading(*(row[field] for field in FIELDS))
            elif name == "rejects":
                fates[where] = row["reason"].partition(":")[0]
                verdict.reasons[fates[where]] += 1
                is_same = where not in bronze or bronze[where] == as_message(row)
                if not is_same and where not in verdict.altered:
                    verdict.altered.append(where)
            else:
                fates[where] = "duplicate"
                repeated[where] = tuple(row[field] for field in REPEATED)
    return fates, readings, repeated


def stored_gold(verdict: Verdict, lake: Path, window: timedelta) -> dict[Any, tuple[float, ...]]:
    """Return gold, as `summarise` does."""
    columns = [
        "building",
        "floor",
        "type",
        "window_start",
        "window_end",
        "mean",
        "min",
        "max",
        "count",
    ]
    rows = table(lake, "gold", columns)
    verdict.rows["gold"] = len(rows)
    found: dict[Any, tuple[float, ...]] = {}
    for row in rows:
        key = (row["building"], row["floor"], row["type"], row["window_start"])
        if key in found or row["window_end"] - row["window_start"] != window:
            verdict.gold.append(key)
        found[key] = (row["mean"], row["min"], row["max"], row["count"])
    return found


def stored_anomalies(
    verdict: Verdict, lake: Path
) -> tuple[dict[Any, tuple[float, ...]], dict[Any, Reading]]:
    """Return anomalies, as `outliers` does, and under the same keys their readings."""
    rows = table(lake, "anomalies", [*FIELDS, "median", "mad", "score", "history"])
    verdict.rows["anomalies"] = len(rows)
    found: dict[Any, tuple[float, ...]] = {}
    readings: dict[Any, Reading] = {}
    for row in rows:
        key = (row["device_id"], row["type"], row["timestamp"])
        if key in found:
            verdict.anomalies.append(key)
        found[key] = (row["median"], row["mad"], row["score"], row["history"])
        readings[key] = Reading(*(row[field] for field in FIELDS))
    return found, readings


def unlike(
    expected: Mapping[Any, tuple[float, ...]], stored: Mapping[Any, tuple[float, ...]]
) -> list[Any]:
    """Return the keys under which the two do not hold the same numbers, up to rounding."""

    def is_same(key: Any) -> bool:
        if key not in expected or key not in stored:
            return False
        pairs = zip(expected[key], stored[key], strict=True)
        return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in pairs)

    return sorted(key for key in {*expected, *stored} if not is_same(key))


def compare_ledger(
    verdict: Verdict, ledger: Path, messages: Mapping[Where, Message],
    fates: Mapping[Where, str], readings: Mapping[Where, Reading], anomalies: set[Any],
) -> None:  # fmt: skip
    """Note how the topic and the tables differ from what the producer noted.

    Raises:
        ValueError: it is no ledger, or one of nothing.
    """
    before = verdict.ledger
    with ledger.open(encoding="ascii", newline="") as file:
        for row in csv.DictReader(file):
            try:
                if not row["offset"]:  # not acknowledged: it may be there or not
                    continue
                where, checksum = (int(row["partition"]), int(row["offset"])), int(row["crc32"], 16)
                label = row["label"]
            except (KeyError, TypeError) as exc:
                raise ValueError(f"{ledger} is not a ledger of kafka_producer.py") from exc
            verdict.ledger += 1
            is_there = where in messages and zlib.crc32(messages[where].value or b"") == checksum
            allowed = VALID_FATES if label in VALID_LABELS else {label}
            if not is_there or fates.get(where) not in allowed:
                verdict.unlike_ledger.append(where)
            if label == "spike" and where in readings:
                verdict.spikes += 1
                reading = readings[where]
                verdict.spikes_found += (*reading.series, reading.timestamp) in anomalies
    if verdict.ledger == before:
        raise ValueError(f"{ledger} notes no acknowledged message")
