"""The rules once more, in plain Python: what must become of a message, without Spark.

Nothing of the consumer's code is used here, for what is wrong there would be wrong here too.
"""

import json
import math
import re
import statistics
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn

Where = tuple[int, int]  # partition, offset
Row = dict[str, Any]

FIELDS = ("timestamp", "device_id", "building", "floor", "type", "value", "unit")
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
