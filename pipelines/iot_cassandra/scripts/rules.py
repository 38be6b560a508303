"""What a message must say to be a reading, and the row that it becomes."""

import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from cassandra.util import Date
from msgspec import Meta

from pipelines.iot_cassandra.settings import FIRST_MS, LAST_MS

EPOCH, MS_PER_DAY = datetime(1970, 1, 1, tzinfo=UTC), 86_400_000
QUOTES = 10  # around four names and one text; a field given twice adds to them
TIMESTAMP = re.compile(  # as Spark reads it: offsets up to 18 hours
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]((0\d|1[0-7]):[0-5]\d|18:00))", re.ASCII
)


class InvalidReadingError(ValueError):
    """A message that is not a reading; the text says why."""


class Reading(msgspec.Struct, forbid_unknown_fields=True):
    """The four fields: what fits the columns, and what a working sensor can measure."""

    sensor_id: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]  # INT has 32 bits
    timestamp: str  # see epoch_ms
    temperature: Annotated[float, Meta(ge=-40, le=80)]  # degrees Celsius
    humidity: Annotated[float, Meta(ge=0, le=100)]  # %


DECODER = msgspec.json.Decoder(Reading)


def parse_reading(value: bytes | None) -> Reading:
    """Return the reading in a message.

    Raises:
        InvalidReadingError: it is not a JSON object in UTF-8 with exactly the four fields, each
            once, or a field has a wrong type or lies outside its range.
    """
    if not value:
        raise InvalidReadingError("empty message")
    try:
        reading = DECODER.decode(value)
    except UnicodeDecodeError as exc:
        raise InvalidReadingError("not UTF-8") from exc
    except msgspec.DecodeError as exc:
        raise InvalidReadingError(no_number(value) or str(exc)) from exc
    if value.count(b'"') != QUOTES:
        raise InvalidReadingError("a field is given twice")
    return reading


def no_number(value: bytes) -> str:
    """Return what many programs write and JSON does not have: NaN, Infinity; empty: not there.

    >>> no_number(b'{"temperature": NaN}'), no_number(b'{"temperature": 1')
    ('NaN is not a number', '')
    """
    found: list[str] = []
    with suppress(ValueError, RecursionError):
        json.loads(value, parse_constant=found.append)
    return f"{found[0]} is not a number" if found else ""


def epoch_ms(text: str) -> int:
    """Return an ISO 8601 time with its offset as milliseconds since 1970, cut, not rounded.

    Raises:
        InvalidReadingError: it is not such a time, or lies outside the years 1900 to 9999.

    >>> epoch_ms("1970-01-01T01:00:00.0079+01:00"), epoch_ms("1969-12-31T23:59:59.999Z")
    (7, -1)
    """
    if not TIMESTAMP.fullmatch(text):
        raise InvalidReadingError("timestamp is not an ISO 8601 time with its offset")
    try:
        time_ms = (datetime.fromisoformat(text).astimezone(UTC) - EPOCH) // timedelta(
            milliseconds=1
        )
    except (ValueError, OverflowError) as exc:
        raise InvalidReadingError(f"timestamp: {exc}") from exc
    if time_ms < FIRST_MS:
        raise InvalidReadingError("timestamp is before 1900")
    return time_ms


def row_of(message: Any) -> dict[str, Any]:
    """Return the values of a message's row, for both tables.

    Raises:
        InvalidReadingError: the message is not a reading, or has no write time.
    """
    reading = parse_reading(message.value)
    time_ms = epoch_ms(reading.timestamp)
    # Not clamped: one that claims the year 58000 would win over every later reading, for ever.
    if not 0 <= message.timestamp <= LAST_MS:
        raise InvalidReadingError(
            f"Kafka's time of the message, {message.timestamp}, is not in milliseconds since 1970"
        )
    return {
        "sensor_id": reading.sensor_id,
        "day": Date(time_ms // MS_PER_DAY),
        "timestamp": time_ms,
        "temperature": reading.temperature,
        "humidity": reading.humidity,
        "write_time": message.timestamp * 1000 + message.offset % 1000,  # microseconds
    }
