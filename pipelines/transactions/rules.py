"""The rules of a transaction: from a record's bytes to a row that is right, or that says why not.

Rules, and where they are from:
    amount      a decimal number, more than 0, at most 1 000 000 000, with at most two decimals
    euros       montant / rate, the rate being units of the currency for one euro; rounded to the
                cent, half a cent up (Regulation (EC) 1103/97, article 5)
    rate        the ECB's of the day in Paris, or the last before, a week old at most (rates.csv)
    timestamp   ISO 8601 with its offset from UTC: without one it could be any of 24 instants; of
                the years 2000 to 2099 (UTC): another is a mistake, and Spark does not write every
                year, nor does every reader know it
    date        the day in Paris

Each function takes a DataFrame and returns one, without a session and without a server.
"""

from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # as Spark's own documentation does

from pipelines.transactions.rates import RATES_FILE, rates_in_force, read_rates

FIELDS = ("transaction_id", "montant", "devise", "timestamp")
# 18 decimals, so that one too many is seen and not rounded away while parsing. MANY_DIGITS sees
# those beyond: 15 digits or more from the first to the last that is no zero, where the largest
# amount has 12. No group is repeated in it, as Java would go one call deeper for each digit.
MANY_DIGITS = r'"montant"\s*:\s*-?[0.]*[1-9][\d.]{14,}[1-9]'
SCHEMA = "transaction_id BIGINT, montant DECIMAL(38,18), devise STRING, timestamp STRING"
TEXT_SCHEMA = "transaction_id STRING, montant STRING, devise STRING, timestamp STRING"
RATES_SCHEMA = "rate_day DATE, rate_currency STRING, taux DECIMAL(12,6), taux_date DATE"
NUMBER = r"^-?\d+(\.\d+)?([eE][-+]?\d+)?\z"
FIRST_INSTANT, LAST_INSTANT = "2000-01-01T00:00:00Z", "2099-12-31T23:59:59.999999Z"
INSTANT = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)\z"
MAX_AMOUNT = 1_000_000_000
MONEY = "DECIMAL(18,2)"


def parse(records: DataFrame) -> DataFrame:
    """Return the records with what their JSON says, typed and as text, null where it does not.

    Args:
        records: columns value (binary), kafka_partition, kafka_offset.

    Returns:
        The same, with the structs `typed` and `text` of the four fields; `json`: the value as text
        when it is exactly one JSON object with no name twice, else null; and `montant_json`: the
        amount as JSON, so in quotes when it is a string.
    """
    text = F.col("value").cast("string")
    # Spark's parser reads the first object and forgets what follows, and takes the first of a list.
    # Hence two lists: `{..}],[{..}` makes the first object the only one of both.
    alone, followed = (F.concat(F.lit("["), text, F.lit(end)) for end in ("]", ",0]"))
    names = F.json_object_keys(text)
    is_one_object = (
        text.rlike(r"^\s*\{[\s\S]*\}\s*$")
        & (F.json_array_length(alone) == 1)
        & (F.json_array_length(followed) == 2)
        & (F.size(names) == F.size(F.array_distinct(names)))  # of two, which one is meant?
    )
    parsed = records.withColumn("json", F.when(is_one_object, text))
    as_list = F.concat(F.lit("["), "json", F.lit("]"))
    return parsed.withColumns(
        {
            "typed": F.from_json("json", SCHEMA),
            "text": F.from_json("json", TEXT_SCHEMA),
            # Spark leaves the quotes only where a path may find several.
            "montant_json": F.get_json_object(as_list, "$[*].montant"),
        }
    )


def with_values(parsed: DataFrame, rates: DataFrame) -> DataFrame:
    """Return parsed records with the columns of a transaction; null where there is no such value.

    Args:
        parsed: what `parse` returns.
        rates: columns of RATES_SCHEMA, one row for each day and currency that has a rate.
    """
    is_instant = F.col("text.timestamp").rlike(INSTANT)
    instant = F.when(is_instant, F.try_to_timestamp("text.timestamp"))
    first, last = (F.lit(text).cast("timestamp") for text in (FIRST_INSTANT, LAST_INSTANT))
    values = parsed.select(
        "*",
        F.col("typed.transaction_id").alias("transaction_id"),
        F.col("typed.montant").cast(MONEY).alias("montant"),
        F.col("text.devise").alias("devise"),
        F.when(instant.between(first, last), instant).alias("timestamp_utc"),
    )
    values = values.withColumn(
        "timestamp_paris",
        F.convert_timezone(
            F.lit("UTC"), F.lit("Europe/Paris"), F.col("timestamp_utc").cast("timestamp_ntz")
        ),
    ).withColumn("date", F.col("timestamp_paris").cast("date"))
    same = (F.col("date") == F.col("rate_day")) & (F.col("devise") == F.col("rate_currency"))
    joined = values.join(F.broadcast(rates), on=same, how="left")
    # The quotient has 15 decimals or more, rounded; rounding that again to two gives what rounding
    # the exact quotient would: a quotient that is no half cent is further than that from one.
    euros = F.when(F.col("devise") == "EUR", F.col("montant")).otherwise(
        F.round(F.col("montant") / F.col("taux"), 2)  # half up
    )
    return joined.withColumn("montant_eur", euros.cast(MONEY))


def judge(values: DataFrame, currencies: Iterable[str]) -> DataFrame:
    """Return the rows with `reason`, why a row is wrong, null when it is right, and `detail`.

    Args:
        values: what `with_values` returns.
        currencies: the known ones.
    """
    amount = F.col("typed.montant")
    missing = F.concat_ws(",", *[F.when(F.col(f"text.{n}").isNull(), F.lit(n)) for n in FIELDS])
    is_number = F.coalesce(F.col("montant_json").rlike(NUMBER), F.lit(False))
    is_rounded_to_0 = (amount == 0) & F.col("text.montant").rlike("^[0.]*[1-9]")
    is_too_precise = (
        (amount != F.round(amount, 2)) | F.col("json").rlike(MANY_DIGITS) | is_rounded_to_0
    )
    wrong = F.concat_ws(
        ",",
        F.when(F.col("typed.transaction_id").isNull(), F.lit("transaction_id")),
        F.when(~is_number, F.lit("montant")),
    )
    rules: list[tuple[str, Column, Column]] = [
        ("not_json", F.col("json").isNull(), F.lit(None)),
        ("missing_field", missing != "", missing),
        ("wrong_type", wrong != "", wrong),
        ("amount_too_large", amount.isNull() | (amount > MAX_AMOUNT), F.col("text.montant")),
        ("amount_too_precise", is_too_precise, F.col("text.montant")),
        ("amount_not_positive", amount <= 0, F.col("text.montant")),
        ("unknown_currency", ~F.col("devise").isin("EUR", *currencies), F.col("devise")),
        ("bad_timestamp", F.col("timestamp_utc").isNull(), F.col("text.timestamp")),
        ("no_rate", F.col("montant_eur").isNull(), F.concat_ws(" ", "devise", "date")),
    ]
    reason, detail = F.lit(None).cast("string"), F.lit(None).cast("string")
    for name, applies, found in reversed(rules):  # the first that applies is given
        reason = F.when(applies, F.lit(name)).otherwise(reason)
        detail = F.when(applies, found).otherwise(detail)
    return values.withColumns({"reason": reason, "detail": detail})


def rates_frame(spark: SparkSession, path: Path = RATES_FILE) -> DataFrame:
    """Return the rate of each currency in force on each day, with the columns of RATES_SCHEMA."""
    rows: list[tuple[date, str, Decimal, date]] = list(rates_in_force(read_rates(path)))
    return spark.createDataFrame(rows, RATES_SCHEMA)
