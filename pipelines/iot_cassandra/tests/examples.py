"""Messages for the tests: readings with their rows, and others with the reason why not."""

import json
import math
import os
from typing import Any


def reading(**fields: Any) -> bytes:
    """Return a message with some fields changed; None leaves one out."""
    whole = {
        "sensor_id": 7,
        "timestamp": "2026-01-15T06:00:00.123Z",
        "temperature": -4.25,
        "humidity": 81.5,
    }
    return json.dumps({n: v for n, v in {**whole, **fields}.items() if v is not None}).encode()


# Message -> the row it becomes: sensor, epoch ms, temperature, humidity.
VALID: dict[bytes, tuple[int, int, float, float]] = {
    reading(): (7, 1_768_456_800_123, -4.25, 81.5),
    reading(sensor_id=-(2**31)): (-(2**31), 1_768_456_800_123, -4.25, 81.5),
    reading(sensor_id=2**31 - 1): (2**31 - 1, 1_768_456_800_123, -4.25, 81.5),
    reading(timestamp="2026-01-15T06:00:00.124Z"): (7, 1_768_456_800_124, -4.25, 81.5),
    reading(timestamp="2026-01-15T06:00:00.1259Z"): (7, 1_768_456_800_125, -4.25, 81.5),
    reading(timestamp="2026-01-15T07:00:00.126+01:00"): (7, 1_768_456_800_126, -4.25, 81.5),
    reading(timestamp="2026-01-14T23:59:59.999-00:00"): (7, 1_768_435_199_999, -4.25, 81.5),
    reading(timestamp="2026-01-15T00:00:00Z"): (7, 1_768_435_200_000, -4.25, 81.5),
    reading(timestamp="1969-12-31T23:59:59.999Z"): (7, -1, -4.25, 81.5),
    reading(timestamp="1900-01-01T18:00:00.000+18:00"): (7, -2_208_988_800_000, -4.25, 81.5),
    reading(timestamp="2026-01-15T06:00:00-18:00"): (7, 1_768_521_600_000, -4.25, 81.5),
    reading(timestamp="2026-01-15T06:00:01Z")
    .replace(b'"s', b'"\\u0073')
    .replace(b", ", b"\t,\n"): (7, 1_768_456_801_000, -4.25, 81.5),
    b"\r\n" + reading(timestamp="2026-01-15T06:00:02Z") + b" ": (7, 1_768_456_802_000, -4.25, 81.5),
    reading(sensor_id=11, temperature=1e-300): (11, 1_768_456_800_123, 0.0, 81.5),
    reading(timestamp="9999-12-31T23:59:59.999Z"): (7, 253_402_300_799_999, -4.25, 81.5),
    reading(sensor_id=8, temperature=-40): (8, 1_768_456_800_123, -40.0, 81.5),
    reading(sensor_id=9, temperature=-0.01): (9, 1_768_456_800_123, -0.01, 81.5),
    reading(sensor_id=10, humidity=0): (10, 1_768_456_800_123, -4.25, 0.0),
}
# Message -> a part of the reason why it is refused.
INVALID: dict[bytes | None, str] = {
    reading(temperature=math.nan): "NaN is not a number",
    reading(humidity=math.inf): "Infinity is not a number",
    reading(temperature=-math.inf): "-Infinity is not a number",
    reading(sensor_id=2**31): "Expected `int` <= 2147483647 - at `$.sensor_id`",
    reading(sensor_id=-(2**31) - 1): "Expected `int` >= -2147483648 - at `$.sensor_id`",
    reading(sensor_id=2**70): "$.sensor_id",
    reading(sensor_id=1.5): "Expected `int`, got `float` - at `$.sensor_id`",
    reading(sensor_id=True): "Expected `int`, got `bool` - at `$.sensor_id`",
    reading(sensor_id="7"): "Expected `int`, got `str` - at `$.sensor_id`",
    reading(temperature="21.5"): "Expected `float`, got `str` - at `$.temperature`",
    reading(temperature=80.1): "Expected `float` <= 80.0 - at `$.temperature`",
    reading(humidity=-0.1): "Expected `float` >= 0.0 - at `$.humidity`",
    reading(humidity=None): "Object missing required field `humidity`",
    reading(colour="red"): "Object contains unknown field `colour`",
    reading(timestamp="2026-01-15T06:00:00"): "timestamp is not an ISO 8601 time with its offset",
    reading(timestamp="2026-02-30T06:00:00Z"): "timestamp: day is out of range for month",
    reading(timestamp="0001-01-01T00:00:00+01:00"): "timestamp: date value out of range",
    reading(timestamp="1899-12-31T23:59:59.999Z"): "timestamp is before 1900",
    reading(timestamp="1900-01-01T00:00:00+01:00"): "timestamp is before 1900",
    reading(timestamp="1500-01-15T06:00:00Z"): "timestamp is before 1900",
    reading(timestamp="9999-12-31T23:59:59-01:00"): "timestamp: date value out of range",
    reading(timestamp="2026-01-15T24:00:00Z"): "timestamp: hour must be in 0..23",
    reading(timestamp="2026-01-15T06:00:60Z"): "timestamp: second must be in 0..59",
    reading(timestamp="2026-01-15T06:00:00+18:01"): "timestamp is not an ISO 8601 time",
    reading(timestamp="2026-01-15T06:00:00-23:00"): "timestamp is not an ISO 8601 time",
    reading(timestamp="2026-01-15T06:00:00+01:60"): "timestamp is not an ISO 8601 time",
    reading(timestamp="2026-01-15T06:00:00Z\n"): "timestamp is not an ISO 8601 time",
    reading(timestamp=" 2026-01-15T06:00:00Z"): "timestamp is not an ISO 8601 time",
    reading().replace(b'"', b"'"): "JSON is malformed",
    reading() + b" and more": "JSON is malformed: trailing characters",
    reading() + reading(sensor_id=8): "JSON is malformed: trailing characters",
    b"\xef\xbb\xbf" + reading(): "JSON is malformed: invalid character",
    b"// " + reading(): "JSON is malformed",
    reading()[:-1] + b",}": "JSON is malformed",
    reading(sensor_id=7.0): "Expected `int`, got `float` - at `$.sensor_id`",
    reading(temperature=1).replace(b" 1,", b" +1,"): "JSON is malformed",
    reading(temperature=1).replace(b" 1,", b" 1e400,"): "Number out of range",
    reading(temperature=1).replace(b" 1,", b" null,"): "Expected `float`, got `null`",
    reading(temperature={}): "Expected `float`, got `object`",
    reading(timestamp=1_768_456_800_123): "Expected `str`, got `int` - at `$.timestamp`",
    reading()[:-1] + b', "humidity": 3}': "a field is given twice",
    reading()[:40]: "Input data was truncated",
    b"[1, 2]": "Expected `object`, got `array`",
    b"21.5;80": "Expected `object`, got `float`",
    b"[" * 100_000: "invalid: ",
    b"\xff\xfe": "invalid: ",
    b"": "empty message",
    None: "empty message",
}


IMPOSSIBLE_TIMES = (253_402_300_800_000, 1_768_456_800_123_000)  # the year 10000; microseconds


def as_large_as_kafka_takes() -> bytes:
    """Return a message that is too large for Kafka's default limit with a reject's headers."""
    return os.urandom(1_048_450)
