"""The pure transforms: what is right, what is refused and why, to the cent and to the hour."""

import json
import random
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from pyspark.sql import SparkSession

from pipelines.transactions.capteur import load_config
from pipelines.transactions.rates import Rate, rates_in_force
from pipelines.transactions.rules import RATES_SCHEMA, judge, parse, rates_frame, with_values
from pipelines.transactions.simulation import all_records, as_json
from pipelines.transactions.writer import with_score

NOON = "2026-10-23T10:00:00Z"
FRIDAY, MONDAY = date(2026, 10, 23), date(2026, 10, 26)
RATES = [
    Rate(FRIDAY, "USD", Decimal("1.1193")),
    Rate(MONDAY, "USD", Decimal("1.1188")),
    Rate(FRIDAY, "JPY", Decimal("175.68")),
    Rate(FRIDAY, "TWO", Decimal("2")),  # makes half cents
]


def record(number: Any = 1, montant: str = "100", devise: str = "USD", when: str = NOON) -> str:
    return as_json(number, montant, devise, when)


def judged(spark: SparkSession, values: list[Any]) -> list[dict[str, Any]]:
    """Return each value (bytes, text or null) as the consumer judges it."""
    rows = [
        (bytearray(v.encode() if isinstance(v, str) else v) if v is not None else None, 0, offset)
        for offset, v in enumerate(values)
    ]
    schema = "value BINARY, kafka_partition INT, kafka_offset BIGINT"
    rates = spark.createDataFrame(list(rates_in_force(RATES)), RATES_SCHEMA)
    found = judge(
        with_values(parse(spark.createDataFrame(rows, schema)), rates), ["USD", "JPY", "TWO"]
    )
    return [row.asDict() for row in found.orderBy("kafka_offset").collect()]


# Amounts

RIGHT_AMOUNTS = [
    # montant, devise, euros
    ("100", "USD", "89.34"),  # 100 / 1.1193 = 89.3415...
    ("100.00", "USD", "89.34"),
    ("1e2", "USD", "89.34"),
    ("0.01", "USD", "0.01"),  # 0.0089...
    ("12345.67", "EUR", "12345.67"),
    ("5000", "JPY", "28.46"),  # 28.4608...
    ("0.01", "TWO", "0.01"),  # half a cent: up
    ("0.05", "TWO", "0.03"),  # 2.5 cents: up, where half-even would give 0.02
    ("0.03", "TWO", "0.02"),
    ("999999999.99", "USD", "893415527.55"),
    ("1000000000", "EUR", "1000000000.00"),  # the largest
]


def test_amounts_become_euros_to_the_cent(spark: SparkSession) -> None:
    rows = judged(
        spark, [record(montant=montant, devise=devise) for montant, devise, _ in RIGHT_AMOUNTS]
    )
    for row, (montant, devise, euros) in zip(rows, RIGHT_AMOUNTS, strict=True):
        assert (row["reason"], row["montant"]) == (None, Decimal(montant)), montant
        assert row["montant_eur"] == Decimal(euros), (montant, devise)


def test_rounding_is_that_of_the_exact_quotient(spark: SparkSession) -> None:
    """Against Python's decimals, also where the quotient is as near to half a cent as it gets."""
    rng = random.Random(7)
    pairs = [
        (Decimal(rng.randrange(1, 10**11)) / 100, Decimal(rng.randrange(1, 10**9)) / 10**6)
        for _ in range(3000)
    ]
    for _ in range(3000):  # half cents, and one cent of the currency beside them
        rate = Decimal(rng.randrange(1, 10**8)) / 10**6
        near = ((Decimal(rng.randrange(10**6)) + Decimal("0.5")) / 100 * rate).quantize(
            Decimal("0.01")
        )
        pairs += [(max(near, Decimal("0.01")), rate)]
    euros = [(montant / rate).quantize(Decimal("0.01"), ROUND_HALF_UP) for montant, rate in pairs]
    day = date(2026, 10, 23)
    rates = spark.createDataFrame(
        [(day, str(n), rate, day) for n, (_, rate) in enumerate(pairs)], RATES_SCHEMA
    )
    values = [
        (bytearray(record(n, str(montant), str(n)).encode()), 0, n)
        for n, (montant, _) in enumerate(pairs)
    ]
    frame = spark.createDataFrame(values, "value BINARY, kafka_partition INT, kafka_offset BIGINT")
    rows = with_values(parse(frame), rates).orderBy("kafka_offset").select("montant_eur").collect()
    assert [row[0] for row in rows] == euros


def test_no_float_touches_the_money(
    spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = spark.createDataFrame(
        [(bytearray(record().encode()), 0, 0)],
        "value BINARY, kafka_partition INT, kafka_offset BIGINT",
    )
    values = with_values(
        parse(frame), spark.createDataFrame(list(rates_in_force(RATES)), RATES_SCHEMA)
    )
    types = dict(values.dtypes)
    assert types["montant"] == types["montant_eur"] == "decimal(18,2)"
    assert types["taux"] == "decimal(12,6)"
    values.explain(extended=True)
    plan = capsys.readouterr().out
    assert "decimal(38,18)" in plan
    assert "double" not in plan
    assert "float" not in plan


# What is refused

LONG_AGO = "2026-11-03T10:00:00Z"  # eight days after the last rate
WRONG = [
    # value, reason, detail
    (None, "not_json", None),
    ("", "not_json", None),
    ("hello", "not_json", None),
    ("null", "not_json", None),
    ("[1]", "not_json", None),
    (f"[{record()}]", "not_json", None),
    (record()[:-5], "not_json", None),
    (record() + record(2), "not_json", None),
    (record() + "," + record(2), "not_json", None),
    (b"\xff\xfe\x00", "not_json", None),
    (record() + "],[" + record(2), "not_json", None),
    (record() + ",0],[" + record(2), "not_json", None),
    (record()[:-1] + ', "montant": 1}', "not_json", None),  # which of the two?
    ("{}", "missing_field", "transaction_id,montant,devise,timestamp"),
    ('{"transaction_id": 1, "montant": 5, "devise": "USD"}', "missing_field", "timestamp"),
    (record().replace("100", "null"), "missing_field", "montant"),
    (record("1"), "wrong_type", "transaction_id"),
    (record(1.5), "wrong_type", "transaction_id"),
    (record(2**63), "wrong_type", "transaction_id"),
    (record(montant='"100"'), "wrong_type", "montant"),
    (record(montant='"12,50"'), "wrong_type", "montant"),  # not 1250
    (record(montant="true"), "wrong_type", "montant"),
    (record(montant='{"a": 1}'), "wrong_type", "montant"),
    (record(montant="0"), "amount_not_positive", "0"),
    (record(montant="-5.00"), "amount_not_positive", None),
    (record(montant="1000000000.01"), "amount_too_large", None),
    (record(montant="9" * 40), "amount_too_large", None),
    (record(montant="1e300"), "amount_too_large", None),
    (record(montant="10.005"), "amount_too_precise", None),
    (record(montant="10.000000000000000001"), "amount_too_precise", None),
    (record(montant="10.0000000000000000001"), "amount_too_precise", None),  # 19 decimals
    (record(montant="0.0100000000000000000000000001"), "amount_too_precise", None),
    (record(montant="0.00999999999999999999999"), "amount_too_precise", None),
    (record(montant="100000000000000000000000001e-26"), "amount_too_precise", None),
    (record(montant="1e-19"), "amount_too_precise", None),
    (record(montant="0." + "0" * 200 + "1"), "amount_too_precise", None),
    (record(montant="-0.0"), "amount_not_positive", None),
    (record(montant="1" * 20_000), "not_json", None),  # longer than Spark's parser takes
    (record(devise="XBT"), "unknown_currency", "XBT"),
    (record(devise="usd"), "unknown_currency", "usd"),
    (record(devise=""), "unknown_currency", ""),
    (record(when="2026-10-23T10:00:00"), "bad_timestamp", "2026-10-23T10:00:00"),  # of which zone?
    (record(when="2026-02-29T10:00:00Z"), "bad_timestamp", None),  # no leap year
    (record(when="2026-10-23"), "bad_timestamp", None),
    (record(when="2026-10-23T25:00:00Z"), "bad_timestamp", None),
    (record(when="1766000000"), "bad_timestamp", None),
    (record(when="2026-10-23T10:00:00Z\n"), "bad_timestamp", None),
    (record(when=LONG_AGO), "no_rate", "USD 2026-11-03"),
    (record(when="2026-10-22T10:00:00Z"), "no_rate", "USD 2026-10-22"),
]  # fmt: skip


def test_what_is_wrong_is_refused_with_its_reason(spark: SparkSession) -> None:
    rows = judged(spark, [value for value, _, _ in WRONG])
    for row, (value, reason, detail) in zip(rows, WRONG, strict=True):
        assert row["reason"] == reason, value
        if detail is not None:
            assert row["detail"] == detail, value
        assert row["value"] == (value.encode() if isinstance(value, str) else value)


def test_what_is_not_needed_does_not_matter(spark: SparkSession) -> None:
    text = json.dumps({**json.loads(record()), "magasin": "Paris 11", "montant_ht": "80,00"})
    spaced = record().replace(":", " :\n").replace("{", " {\t")
    spaced = spaced.replace("10 :\n00 :\n00", "10:00:00")
    inside = {"montant": "12", "x": [{"montant": {"montant": 0.005}}]}
    nested = [json.dumps({**told, "detail": inside}) for told in (json.loads(record()),)]
    nested.append(json.dumps({"detail": inside, **json.loads(record(montant="1.10"))}))
    padded = record(montant="1.10" + "0" * 30)
    rows = judged(spark, [text, spaced, *nested, padded])
    assert [row["reason"] for row in rows] == [None] * 5
    assert [str(row["montant"]) for row in rows[2:]] == ["100.00", "1.10", "1.10"]


# Time

TIMES = [
    # given, UTC, Paris, day in Paris
    ("2026-10-23T10:00:00Z", (2026, 10, 23, 10), (2026, 10, 23, 12), "2026-10-23"),
    ("2026-10-23T12:00:00+02:00", (2026, 10, 23, 10), (2026, 10, 23, 12), "2026-10-23"),
    ("2026-10-23T01:00:00-05:30", (2026, 10, 23, 6, 30), (2026, 10, 23, 8, 30), "2026-10-23"),
    ("2026-10-23T10:00:00.25Z", (2026, 10, 23, 10, 0, 0, 250000), (2026, 10, 23, 12, 0, 0, 250000),
     "2026-10-23"),
    # summer time ends: 02:30 comes twice
    ("2026-10-25T00:30:00Z", (2026, 10, 25, 0, 30), (2026, 10, 25, 2, 30), "2026-10-25"),
    ("2026-10-25T01:30:00Z", (2026, 10, 25, 1, 30), (2026, 10, 25, 2, 30), "2026-10-25"),
    # and begins: there is no 02:30
    ("2026-03-29T00:59:59Z", (2026, 3, 29, 0, 59, 59), (2026, 3, 29, 1, 59, 59), "2026-03-29"),
    ("2026-03-29T01:00:00Z", (2026, 3, 29, 1), (2026, 3, 29, 3), "2026-03-29"),
    # the day is that of Paris
    ("2026-10-24T22:30:00Z", (2026, 10, 24, 22, 30), (2026, 10, 25, 0, 30), "2026-10-25"),
    ("2026-12-31T23:00:00Z", (2026, 12, 31, 23), (2027, 1, 1, 0), "2027-01-01"),
    # a leap day
    ("2028-02-29T12:00:00Z", (2028, 2, 29, 12), (2028, 2, 29, 13), "2028-02-29"),
    ("2028-02-29T23:30:00Z", (2028, 2, 29, 23, 30), (2028, 3, 1, 0, 30), "2028-03-01"),
]  # fmt: skip


def test_times_are_instants_and_hours_in_paris(spark: SparkSession) -> None:
    rows = judged(spark, [record(devise="EUR", when=given) for given, *_ in TIMES])
    for row, (given, utc, paris, day) in zip(rows, TIMES, strict=True):
        assert row["reason"] is None, given
        instant = row["timestamp_utc"].astimezone(UTC)  # Spark gives it in the machine's zone
        assert instant == datetime(*utc, tzinfo=UTC), given  # type: ignore[arg-type, misc]
        assert row["timestamp_paris"] == datetime(*paris), given  # type: ignore[arg-type]  # noqa: DTZ001
        assert str(row["date"]) == day, given


def test_the_rate_is_the_last_published_up_to_the_day_in_paris(spark: SparkSession) -> None:
    times = {
        "2026-10-23T21:59:59Z": (FRIDAY, "1.1193"),
        "2026-10-25T12:00:00Z": (FRIDAY, "1.1193"),  # Sunday
        "2026-10-25T22:59:59Z": (FRIDAY, "1.1193"),
        "2026-10-25T23:00:00Z": (MONDAY, "1.1188"),  # Monday in Paris
        "2026-11-02T22:59:59Z": (MONDAY, "1.1188"),  # seven days after
    }
    rows = judged(spark, [record(when=when) for when in times])
    assert [(row["taux_date"], str(row["taux"])) for row in rows] == [
        (day, f"{rate}00") for day, rate in times.values()
    ]


# Together


def test_the_generator_s_labels_are_the_consumer_s_reasons(spark: SparkSession) -> None:
    argv = ["--seed", "5", "--count", "4000", "--bad", "0.3", "--fraud", "0.02", "--interval", "40"]
    records = list(all_records(load_config(argv, {}).simulation))
    rows = [(bytearray(one.value), 0, n) for n, one in enumerate(records)]
    frame = spark.createDataFrame(rows, "value BINARY, kafka_partition INT, kafka_offset BIGINT")
    rates = rates_frame(spark)
    found = judge(with_values(parse(frame), rates), ["USD", "GBP", "CHF", "JPY"])
    reasons = [
        row["reason"] or "" for row in found.orderBy("kafka_offset").select("reason").collect()
    ]
    assert reasons == ["" if one.label == "fraud" else one.label for one in records]
    assert len(set(reasons)) == 10  # each way of being wrong, and right


def test_without_a_model_there_is_no_score(spark: SparkSession) -> None:
    row = with_score(spark.range(1), None).collect()[0]
    assert (row["score"], row["suspect"]) == (None, None)
