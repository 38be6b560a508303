#!/usr/bin/env python3
"""Compare what was sent with what the tables hold, message by message.

    python pipelines/smarttech/verify.py
    python pipelines/smarttech/verify.py --ledger FILE   # of kafka_producer.py --ledger FILE

1. The topic is read again: bronze must hold each message once, byte for byte.
2. Each message of bronze is judged anew and must be where it belongs, and nowhere else: in silver,
   with the same values, in duplicates, or in quarantine for the same kind of reason. Hence
   bronze = silver + quarantine + duplicates.
3. Gold and anomalies are computed anew from silver and must be the same.

All of it without Spark, and without any code of the consumer: the tables are read by `deltalake`
(delta-rs), the rules are written a second time here, in plain Python.

Environment (or .env): as the consumer, see spark_kafka_consumer.py.

Exit codes: 0 they agree, 1 they do not, or something cannot be read; 2 wrong usage.
"""

import argparse
import csv
import json
import logging
import math
import os
import re
import statistics
import sys
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from kafka import KafkaConsumer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import TopicPartition

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.smarttech.options import leave, load_env  # noqa: E402  # works from any folder

Where = tuple[int, int]  # partition, offset
Row = dict[str, Any]

FIELDS = ("timestamp", "device_id", "building", "floor", "type", "value", "unit")
REPEATED = ("timestamp", "device_id", "building", "type")
COORDINATES = ("topic", "partition", "offset", "kafka_timestamp", "key", "value")
# What a message need not have; in every other column that is read here a row has a value.
NULLABLE = {(name, column) for name in ("bronze", "quarantine") for column in ("key", "value")}
RANGES = {  # type -> unit, lowest, highest, least MAD
    "temperature": ("C", -40, 85, 0.1),
    "humidity": ("%", 0, 100, 0.5),
    "energy": ("kWh", 0, 1000, 0.05),
    "co2": ("ppm", 300, 10_000, 5),
}
TIME = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-](0\d|1[0-4]):[0-5]\d)", re.ASCII
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What may become of a valid reading; that of a bad message is its label in the ledger.
VALID_LABELS = {"reading", "spike", "duplicate", "late"}
VALID_FATES = {"silver", "duplicate", "conflict", "too_late"}
SILENCE_S = 60.0  # then Kafka has gone away: kafka-python waits for ever, and says nothing


class Message(NamedTuple):
    """A message as the topic, bronze or quarantine holds it."""

    key: bytes | None
    value: bytes | None
    time_ms: int


class Reading(NamedTuple):
    """A valid reading."""

    timestamp: datetime
    device_id: str
    building: str
    floor: int
    type: str
    value: float
    unit: str

    @property
    def series(self) -> tuple[str, str]:
        """What is ordered by time."""
        return self.device_id, self.type

    @property
    def repeated(self) -> tuple[Any, ...]:
        """What duplicates keeps of it."""
        return self.timestamp, self.device_id, self.building, self.type


@dataclass
class Verdict:
    """What the comparison found; the lists name messages as (partition, offset), or keys.

    Attributes:
        topic: number of messages in the topic.
        rows: table -> number of rows.
        reasons: kind of reason -> rows in quarantine.
        lost: in the topic, not in bronze.
        altered: in bronze or in quarantine with another value, key or time.
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
        """Return bronze less silver, quarantine and duplicates: 0."""
        parts = ("silver", "quarantine", "duplicates")
        return self.rows["bronze"] - sum(self.rows[name] for name in parts)

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, changed, doubled or made up."""
        return self.balance == 0 and not any(self.faults().values())


# The rules, once more.


class NotAReadingError(ValueError):
    """The kind of what is wrong with a message."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object, with the fields that are given twice."""


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(name)


def read(value: bytes | None, kafka_time: datetime) -> Reading:
    """Return the reading in a message.

    Raises:
        NotAReadingError: it holds none.
    """
    try:
        text = (value or b"").decode()
        pairs = json.loads(text, object_pairs_hook=Pairs, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise NotAReadingError("bad_json") from exc
    inside = text.strip(" \t\r\n")[1:-1]
    if not isinstance(pairs, Pairs) or "{" in inside or "}" in inside:
        raise NotAReadingError("bad_json")
    given = dict(reversed(pairs))  # of a field that is given twice Spark takes the first
    if any(given.get(name) is None for name in FIELDS):
        raise NotAReadingError("missing_field")
    if len(pairs) > len(FIELDS):
        raise NotAReadingError("unexpected_field")
    return checked(given, kafka_time)


def checked(given: Row, kafka_time: datetime) -> Reading:
    """Return the reading of an object with the right seven fields, none of them null.

    Raises:
        NotAReadingError: one has a wrong type or value.
    """
    floor, value = given["floor"], given["value"]
    if type(floor) is not int or type(value) not in (int, float) or not -(2**31) <= floor < 2**31:
        raise NotAReadingError("wrong_type")
    when = read_time(given["timestamp"])
    if when > kafka_time + timedelta(minutes=5):
        raise NotAReadingError("in_the_future")
    unit, low, high, _ = RANGES.get(str(given["type"]), ("", 0, 0, 0))
    for is_right, kind in (
        (re.fullmatch(r"[a-z]+_[0-9]{1,9}", str(given["device_id"])), "bad_device_id"),
        (re.fullmatch(r"[A-Z][A-Z0-9]?", str(given["building"])), "bad_building"),
        (-5 <= floor <= 200, "bad_floor"),
        (str(given["type"]) in RANGES, "unknown_type"),
        (given["unit"] == unit, "wrong_unit"),
        (low <= value <= high, "out_of_range"),
    ):
        if not is_right:
            raise NotAReadingError(kind)
    return Reading(
        when, given["device_id"], given["building"], floor, given["type"], float(value), unit
    )


def read_time(text: Any) -> datetime:
    """Return an ISO 8601 time with its offset.

    Raises:
        NotAReadingError: it is none, or from before the year 2000.
    """
    try:
        if TIME.fullmatch(str(text)):
            when = datetime.fromisoformat(text)
            if when >= datetime(2000, 1, 1, tzinfo=UTC):
                return when.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise NotAReadingError("bad_timestamp")


def judge(
    bronze: Sequence[Row], lateness: timedelta
) -> Iterator[tuple[Where, str, Reading | None]]:
    """Yield where each message is, what must become of it, and its reading.

    Args:
        bronze: rows in the order of their offsets.
        lateness: how long after the newest of its series a reading may come.
    """
    newest: dict[tuple[str, str], datetime] = {}
    seen: dict[tuple[str, str, datetime], Reading] = {}
    for row in bronze:
        where = (row["partition"], row["offset"])
        try:
            reading = read(row["value"], row["kafka_timestamp"])
        except NotAReadingError as exc:
            yield where, str(exc), None
            continue
        newest[reading.series] = max(reading.timestamp, newest.get(reading.series, EPOCH))
        first = seen.get((*reading.series, reading.timestamp))
        if reading.timestamp < newest[reading.series] - lateness:
            yield where, "too_late", reading
        elif first is None:
            seen[(*reading.series, reading.timestamp)] = reading
            yield where, "silver", reading
        else:
            yield where, "duplicate" if first == reading else "conflict", reading


def summarise(readings: Sequence[Reading], window: timedelta) -> dict[Any, tuple[float, ...]]:
    """Return gold: (building, floor, type, window's start) -> mean, min, max, count."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for r in readings:
        start = r.timestamp - (r.timestamp - EPOCH) % window
        groups[r.building, r.floor, r.type, start].append(r.value)
    return {
        key: (math.fsum(values) / len(values), min(values), max(values), len(values))
        for key, values in groups.items()
    }


def outliers(readings: Sequence[Reading]) -> dict[Any, tuple[float, ...]]:
    """Return anomalies: (device, type, time) -> median, MAD, score, length of the history."""
    found: dict[Any, tuple[float, ...]] = {}
    history: dict[tuple[str, str], deque[Reading]] = defaultdict(lambda: deque(maxlen=60))
    for r in sorted(readings):
        begin = r.timestamp - timedelta(hours=1)
        values = [past.value for past in history[r.series] if past.timestamp >= begin]
        history[r.series].append(r)
        if len(values) < 20:
            continue
        middle = statistics.median(values)
        spread = statistics.median(abs(value - middle) for value in values)
        spread = max(spread, RANGES[r.type][3])
        score = 0.6745 * (r.value - middle) / spread
        if abs(score) > 3.5:
            found[r.device_id, r.type, r.timestamp] = (middle, spread, score, len(values))
    return found


# What is stored.


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


def read_topic(servers: str, topic: str) -> tuple[dict[Where, Message], dict[int, int]]:
    """Return the messages that the topic holds, and each partition's first offset.

    Raises:
        ValueError: there is no such topic.
        KafkaError: it cannot be read to its end, or has lost what was not read yet.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        api_version_auto_timeout_ms=10_000,
        request_timeout_ms=30_000,
        isolation_level="read_committed",  # as the stream reads
        auto_offset_reset="none",  # what retention deletes meanwhile is said, not passed over
    )
    with closing(consumer):
        known = consumer.partitions_for_topic(topic)
        if not known:
            raise ValueError(f"there is no topic {topic} at {servers}")
        partitions = [TopicPartition(topic, p) for p in known]
        first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        left = {p for p in partitions if first[p] < end[p]}
        messages: dict[Where, Message] = {}
        consumer.assign(sorted(left))
        for partition in left:
            consumer.seek(partition, first[partition])
        reached, moved_at = dict(first), time.monotonic()
        while left:
            for partition, polled in consumer.poll(1000, max_records=5000).items():
                for message in polled:
                    if message.offset < end[partition]:
                        messages[message.partition, message.offset] = Message(
                            message.key, message.value, message.timestamp
                        )
            now_at = {p: consumer.position(p, timeout_ms=1000) for p in left}
            if any(now_at[p] != reached[p] for p in left):
                reached, moved_at = now_at, time.monotonic()
            elif time.monotonic() > moved_at + SILENCE_S:
                raise KafkaTimeoutError("nothing comes any more")
            left = {p for p in left if now_at[p] < end[p]}
        return messages, {p.partition: first[p] for p in partitions}


# The comparison.


def verify(
    messages: Mapping[Where, Message], first: Mapping[int, int], lake: Path,
    topic: str, lateness: timedelta, window: timedelta, ledger: Path | None,
) -> Verdict:  # fmt: skip
    """Compare the topic, the tables and, when it is given, the producer's ledger.

    Args:
        messages: of the topic, as `read_topic` returns them.
        first: offsets, as `read_topic` returns them.
        lake: folder of the tables.
        topic: its name; rows of others are wrong.
        lateness: as the consumer was told.
        window: as the consumer was told.
        ledger: what the producer has noted.

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
    if ledger:
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
    """Return the message in a row of bronze or quarantine."""
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
        ("quarantine", [*COORDINATES, "reason"]),
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
            elif name == "quarantine":
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
    if not verdict.ledger:
        raise ValueError(f"{ledger} notes no acknowledged message")


def print_verdict(verdict: Verdict, topic: str) -> None:
    """Print one line per count, with the first few of what is wrong."""
    write = sys.stdout.write
    write(f"messages in {topic:<28} {verdict.topic:>9}\n")
    for name, rows in verdict.rows.items():
        write(f"rows in {name:<32} {rows:>9}\n")
        for reason, number in verdict.reasons.most_common() if name == "quarantine" else ():
            write(f"  of which {reason:<29} {number:>9}\n")
    if verdict.ledger:
        write(f"{'messages in the ledger':<40} {verdict.ledger:>9}\n")
        write(f"{'  made anomalous on purpose':<40} {verdict.spikes:>9}\n")
        write(f"{'  of which found':<40} {verdict.spikes_found:>9}\n")
    write(f"{'bronze - silver - quarantine - duplicates':<40}{verdict.balance:>9}\n")
    for name, found in verdict.faults().items():
        write(f"{name:<40} {len(found):>9}")
        write(f"   for example {', '.join(map(str, found[:3]))}\n" if found else "\n")


def duration(text: str) -> timedelta:
    """Return a duration written as "10 minutes"."""
    match = re.fullmatch(r"([1-9]\d*) (second|minute|hour|day)s?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not such as '10 minutes'")
    return timedelta(**{f"{match[2]}s": int(match[1])})


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ledger", type=Path, metavar="FILE", help="what the producer noted")
    add("--lateness", type=duration, default=timedelta(minutes=10), metavar="DURATION",
        help="as the consumer was told (default: 10 minutes)")  # fmt: skip
    add("--window", type=duration, default=timedelta(minutes=5), metavar="DURATION",
        help="as the consumer was told (default: 5 minutes)")  # fmt: skip
    options = parser.parse_args(argv)
    load_env()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092"
    topic = os.environ.get("SMARTTECH_TOPIC") or "sensor_data"
    lake = Path(os.environ.get("SMARTTECH_LAKE") or Path(__file__).with_name("lake"))
    try:
        messages, first = read_topic(servers, topic)
        verdict = verify(
            messages, first, lake, topic, options.lateness, options.window, options.ledger
        )
    except (KafkaError, DeltaError, OSError, ValueError, TypeError, KeyError) as exc:
        # The last two: of a table whose columns are of other types.
        sys.stderr.write(f"verify: cannot compare: {' '.join(str(exc).split())[:300]}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("verify: interrupted, nothing is said\n")
        return 1
    if not (messages or verdict.rows["bronze"]):
        sys.stderr.write(f"verify: nothing to compare: {topic} and the tables are empty\n")
        return 1
    print_verdict(verdict, topic)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    leave(main())
