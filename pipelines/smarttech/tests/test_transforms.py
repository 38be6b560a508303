"""The pure transforms on tiny DataFrames, beside what verify.py makes of the same rows."""

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.smarttech import plain_rules, transforms, verdict

from .helpers import message

NOON = datetime(2025, 12, 15, 12, tzinfo=UTC)


def without(name: str) -> dict[str, Any]:
    return {field: value for field, value in message().items() if field != name}


EXAMPLE = json.dumps(message())
LATENESS = timedelta(minutes=10)

# What is wrong with a value -> the value.
WRONG: dict[str, list[bytes | None]] = {
    "bad_json": [
        None, b"", b"{", b"[1, 2]", b"null", b"12", EXAMPLE.encode() + b"x", EXAMPLE.encode() * 2,
        EXAMPLE.replace('"', "'").encode(), EXAMPLE.replace("22.5", "NaN").encode(),
        EXAMPLE.replace("22.5", "022.5").encode(), EXAMPLE.encode("utf-16"), b"\xff\xfe",
        b"\xef\xbb\xbf" + EXAMPLE.encode(), json.dumps(message(value={})).encode(),
        f"[{EXAMPLE}]".encode(),
    ],
    "missing_field": [
        b"{}", json.dumps({"device_id": "sensor_001"}).encode(),
        *(json.dumps(message(**{name: None})).encode() for name in message()),
        *(json.dumps(without(name)).encode() for name in message()),
        # Given twice, the first counts.
        EXAMPLE.replace('"floor"', '"floor": null, "floor"').encode(),
    ],
    "unexpected_field": [
        json.dumps(message(colour="red")).encode(), EXAMPLE[:-1].encode() + b', "unit": "C"}',
    ],
    "wrong_type": [
        json.dumps(message(**change)).encode()
        for change in (
            {"value": "22.5"}, {"value": True}, {"value": [1]}, {"floor": 2.5}, {"floor": 2.0},
            {"floor": "2"}, {"floor": 2**40}, {"value": "NaN"},
        )
    ],
    "bad_timestamp": [
        json.dumps(message(timestamp=text)).encode()
        for text in (
            "2025-12-15", "2025-12-15T10:00:00", "2025-02-30T10:00:00Z", "2025-12-15T24:00:00Z",
            "15/12/2025 10:00", "1999-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "", 1765792800,
            "2025-12-15T10:00:00.1234567Z", "2025-12-15T10:00:00Z\n",
        )
    ],
    "in_the_future": [json.dumps(message(timestamp="2025-12-15T12:05:01Z")).encode()],
    "bad_device_id": [
        json.dumps(message(device_id=text)).encode()
        for text in ("", "sensor", "SENSOR_1", "sensor_1\n", True, 12, "sensor_" + "1" * 10)
    ],
    "bad_building": [json.dumps(message(building=b)).encode() for b in ("", "a", "ABC", "../A", 1)],
    "bad_floor": [json.dumps(message(floor=floor)).encode() for floor in (-6, 201)],
    "unknown_type": [
        json.dumps(message(type=text)).encode() for text in ("noise", "", True, ["co2"])
    ],
    "wrong_unit": [json.dumps(message(unit=text)).encode() for text in ("F", "", "c", 1)],
    "out_of_range": [
        json.dumps(message(value=-40.1)).encode(), json.dumps(message(value=1e9)).encode(),
        EXAMPLE.replace("22.5", "1e400").encode(),
        json.dumps(message(type="co2", unit="ppm", value=0)).encode(),
    ],
}  # fmt: skip
RIGHT = [
    EXAMPLE.encode(),
    f" {EXAMPLE}\n".encode(),
    json.dumps(message(value=22)).encode(),
    json.dumps(message(value=-40)).encode(),
    json.dumps(message(timestamp="2025-12-15T11:00:00.5+01:00")).encode(),
    json.dumps(message(timestamp="2025-12-15T12:05:00Z")).encode(),
    json.dumps(message(type="humidity", unit="%", value=100)).encode(),
    EXAMPLE.replace("type", "\\u0074ype").encode(),
]


def bronze(spark: SparkSession, values: Sequence[bytes | None]) -> DataFrame:
    """Return values as rows of bronze, received at noon, in the order of their offsets."""
    rows = [
        ("t", 0, offset, NOON, b"key", value, NOON, None, None)
        for offset, value in enumerate(values)
    ]
    return spark.createDataFrame(rows, transforms.BRONZE)


def kinds(spark: SparkSession, values: Sequence[bytes | None]) -> list[str | None]:
    """Return the kind of reason that each value gets."""
    rows = transforms.parse(bronze(spark, values)).select("offset", "reason").collect()
    return [row.reason and row.reason.partition(":")[0] for row in sorted(rows)]


def kind(value: bytes | None) -> str | None:
    """Return the kind of reason by the independent rule."""
    try:
        plain_rules.read(value, NOON)
    except plain_rules.NotAReadingError as exc:
        return str(exc)
    return None


# Parsing


def test_each_defect_has_its_reason_and_the_valid_have_none(spark: SparkSession) -> None:
    expected: list[tuple[str | None, bytes | None]]
    expected = [(name, value) for name, values in WRONG.items() for value in values]
    expected += [(None, value) for value in RIGHT]
    found = kinds(spark, [value for _, value in expected])
    assert list(zip(found, (value for _, value in expected), strict=True)) == expected
    assert [kind(value) for _, value in expected] == [name for name, _ in expected]


def test_messages_changed_at_random_are_judged_as_plain_python_judges_them(
    spark: SparkSession,
) -> None:
    draw = random.Random(1)
    values = []
    for _ in range(3000):
        value = bytearray(draw.choice(RIGHT))
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(value))
            value[place : place + draw.randint(0, 2)] = draw.choice(
                (b"", b"0", b'"', b",", b"}", b"{", b"-", b".", b" ", b"\\", b"\xc3", b"e", b"null")
            )
        values.append(bytes(value))
    found = kinds(spark, values)
    assert [(k, v) for k, v in zip(found, values, strict=True) if k != kind(v)] == []
    assert None in found
    assert len(set(found)) >= 8  # the changes are of many kinds


def test_times_are_normalised_to_utc(spark: SparkSession) -> None:
    rows = transforms.parse(bronze(spark, [RIGHT[4]])).select(F.unix_micros("timestamp")).collect()
    at = datetime(2025, 12, 15, 10, 0, 0, 500_000, tzinfo=UTC)
    assert rows[0][0] == (at - plain_rules.EPOCH) // timedelta(microseconds=1)


def test_only_known_names_become_folders(spark: SparkSession) -> None:
    values = [RIGHT[0], *WRONG["bad_building"], *WRONG["unknown_type"], b"\xff", None]
    rows = transforms.with_partition_columns(bronze(spark, values)).collect()
    assert (rows[0].building, rows[0].type) == ("A", "temperature")
    assert {row.building for row in rows} == {"A", None}
    assert {row.type for row in rows} == {"temperature", None}


def test_a_reject_keeps_its_bytes(spark: SparkSession) -> None:
    values = [b"\xff\x00", *WRONG["bad_building"]]
    rows = transforms.rejects(transforms.parse(bronze(spark, values)))
    assert sorted(bytes(row.value) for row in rows.collect()) == sorted(
        value or b"" for value in values
    )
    assert {(row.building, row.type) for row in rows.collect()} == {
        (None, None),
        (None, "temperature"),
    }


# Late, repeated


def at(minutes: float, **changes: Any) -> bytes:
    """Return a reading so many minutes after ten."""
    when = datetime(2025, 12, 15, 10, tzinfo=UTC) + timedelta(minutes=minutes)
    return json.dumps(message(timestamp=when.isoformat(), **changes)).encode()


def fates(spark: SparkSession, *batches: Sequence[bytes]) -> list[str]:
    """Return what becomes of the messages of successive batches, as the consumer does it."""
    found: list[str] = []
    kept: list[Any] = []
    for values in batches:
        rows = bronze(spark, values).withColumn("offset", F.col("offset") + len(found))
        silver = spark.createDataFrame(kept, transforms.SILVER)
        last_seen = silver.groupBy("device_id", "type").agg(F.max("timestamp").alias("last"))
        checked = transforms.mark_late(transforms.parse(rows), last_seen, "10 minutes")
        judged = transforms.judge(checked.where("reason is null"), silver)
        late = checked.where("reason is not null").withColumn("outcome", F.lit("reject"))
        for row in judged.unionByName(late).orderBy("offset").collect():
            found.append(row.reason.partition(":")[0] if row.reason else row.outcome)
            if row.outcome == "silver":
                kept.append([row[name] for name in transforms.names(transforms.SILVER)])
    return found


SEQUENCE = [
    (at(0), "silver"),
    (at(20), "silver"),
    (at(10), "silver"),  # ten minutes late, just within
    (at(9.9), "too_late"),
    (at(5, device_id="sensor_002"), "silver"),  # another series has its own watermark
    (at(5, type="humidity", unit="%"), "silver"),
    (at(10), "duplicate"),
    (at(10, value=23.0), "conflict"),
    (at(10, floor=3), "conflict"),
    (at(0), "too_late"),  # again, but too late to be told
    (at(20, value=1e9), "out_of_range"),
    (at(20), "duplicate"),
    (at(21), "silver"),
]


@pytest.mark.parametrize("cuts", [(), (1, 4, 7, 8, 10), (6,)])
def test_what_becomes_of_a_reading_does_not_depend_on_the_batches(
    spark: SparkSession, cuts: tuple[int, ...]
) -> None:
    values, expected = [value for value, _ in SEQUENCE], [fate for _, fate in SEQUENCE]
    edges = [0, *cuts, len(values)]
    batches = [values[a:b] for a, b in pairwise(edges)]
    assert fates(spark, *batches) == expected
    rows = [
        {"partition": 0, "offset": i, "value": v, "kafka_timestamp": NOON}
        for i, v in enumerate(values)
    ]
    assert [fate for _, fate, _ in plain_rules.judge(rows, LATENESS)] == expected


# Gold, anomalies


def silver(spark: SparkSession, readings: Sequence[plain_rules.Reading]) -> DataFrame:
    """Return readings as silver."""
    rows = [(*reading, "t", 0, offset, NOON, NOON) for offset, reading in enumerate(readings)]
    return spark.createDataFrame(rows, transforms.SILVER)


def some_readings(number: int, seed: int) -> list[plain_rules.Reading]:
    """Return readings of six series, a minute apart, one in fifty far off, in any order."""
    draw = random.Random(seed)
    readings = []
    for i in range(number):
        when = NOON + timedelta(seconds=10 * i + draw.randrange(5))
        value = round(draw.gauss(22, 0.3) + (8 if draw.random() < 0.02 else 0), 1)
        device = f"sensor_{i % 3}"
        readings.append(
            plain_rules.Reading(when, device, "AB"[i % 2], i % 3, "temperature", value, "C")
        )
    draw.shuffle(readings)
    return readings


def gold_of(rows: DataFrame) -> dict[Any, tuple[float, ...]]:
    micros = rows.withColumn("window_start", F.unix_micros("window_start")).collect()
    return {
        (r.building, r.floor, r.type, plain_rules.EPOCH + timedelta(microseconds=r.window_start)):
        (r["mean"], r["min"], r["max"], r["count"])
        for r in micros
    }  # fmt: skip


def scores_of(rows: DataFrame) -> dict[Any, tuple[float, ...] | None]:
    """Return the scores of the anomalies, and None for each other reading."""
    return {
        (r.device_id, r.type, plain_rules.EPOCH + timedelta(microseconds=r.timestamp)):
        (r.median, r.mad, r.score, r.history) if r.is_anomaly else None
        for r in rows.withColumn("timestamp", F.unix_micros("timestamp")).collect()
    }  # fmt: skip


def anomalies(scores: dict[Any, tuple[float, ...] | None]) -> dict[Any, tuple[float, ...]]:
    return {key: score for key, score in scores.items() if score}


def test_a_reading_is_in_the_window_of_its_time(spark: SparkSession) -> None:
    times = (0, 299.999, 300, 150)  # seconds after noon; the last one comes out of order
    readings = [
        plain_rules.Reading(
            NOON + timedelta(seconds=s), "sensor_1", "A", 1, "temperature", 20.0 + i, "C"
        )
        for i, s in enumerate(times)
    ]
    found = gold_of(transforms.aggregate(silver(spark, readings), "5 minutes"))
    key = ("A", 1, "temperature")
    assert found == {
        (*key, NOON): (pytest.approx((20 + 21 + 23) / 3), 20, 23, 3),
        (*key, NOON + timedelta(minutes=5)): (22, 22, 22, 1),
    }


def test_gold_is_what_plain_python_makes_of_silver(spark: SparkSession) -> None:
    readings = some_readings(500, 2)
    found = gold_of(transforms.aggregate(silver(spark, readings), "5 minutes"))
    assert verdict.unlike(plain_rules.summarise(readings, timedelta(minutes=5)), found) == []


def test_the_score_of_a_case_done_by_hand(spark: SparkSession) -> None:
    # 20 values 1..20: median 10.5; deviations 0.5, 0.5, 1.5, 1.5 ... 9.5, 9.5: median 5, the MAD.
    history = [float(value) for value in range(1, 21)]
    readings = [
        plain_rules.Reading(NOON + timedelta(minutes=i), "sensor_1", "A", 1, "energy", value, "kWh")
        for i, value in enumerate([*history, 36.5])
    ]
    [row] = transforms.score(silver(spark, readings)).where("is_anomaly").collect()
    assert (row["median"], row["mad"], row["history"]) == (10.5, 5.0, 20)
    assert row["score"] == pytest.approx(0.6745 * 26 / 5)  # 3.507, just above 3.5


def test_anomalies_are_what_plain_python_makes_of_silver(spark: SparkSession) -> None:
    readings = some_readings(600, 3)
    found = anomalies(scores_of(transforms.score(silver(spark, readings))))
    expected = plain_rules.outliers(readings)
    assert verdict.unlike(expected, found) == []
    assert len(expected) > 10


def test_a_constant_series_makes_no_outlier_of_a_last_digit(spark: SparkSession) -> None:
    readings = [
        plain_rules.Reading(
            NOON + timedelta(minutes=i), "sensor_1", "A", 1, "temperature", value, "C"
        )
        for i, value in enumerate([20.0] * 30 + [20.1])
    ]
    assert transforms.score(silver(spark, readings)).where("is_anomaly").count() == 0


def test_what_new_readings_touch_is_all_that_they_change(spark: SparkSession) -> None:
    """Batch by batch, in any order, gold and scores end as if all had been there from the start."""
    readings = some_readings(450, 4)
    gold: dict[Any, tuple[float, ...]] = {}
    scores: dict[Any, tuple[float, ...] | None] = {}
    for end in (150, 300, 450):
        so_far = silver(spark, readings[:end])
        new = silver(spark, readings[end - 150 : end])
        gold |= gold_of(transforms.touched_gold(new, so_far, "5 minutes"))
        scores |= scores_of(transforms.touched_scores(new, so_far))
    assert verdict.unlike(plain_rules.summarise(readings, timedelta(minutes=5)), gold) == []
    assert verdict.unlike(plain_rules.outliers(readings), anomalies(scores)) == []
