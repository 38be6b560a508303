"""What happens to the readings between Kafka and the tables: DataFrames in, DataFrames out.

No session, no file, no server in here, and no Python function that runs per row: the consumer
calls these on a micro-batch, the tests on a handful of rows.

    bronze --parse, mark_late--> valid, or a reject with its reason
    valid --judge--> silver | duplicate | conflict (a reject)
    silver --aggregate--> gold                     silver --score--> anomalies

What becomes of a message depends on the content of the topic alone, not on how Spark cuts it into
batches or on how often it is killed: "first" and "before" mean the order of the offsets. That
is, as long as a device stays in its partition, as its key makes it, and in its building, which is
its file in bronze: between two of these it is the order of arrival, which batches may cut.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

BRONZE = (
    "topic string, partition int, offset bigint, kafka_timestamp timestamp, "
    "key binary, value binary, ingested_at timestamp, building string, type string"
)
WHERE = "topic string, partition int, offset bigint, kafka_timestamp timestamp"
READING = (
    "timestamp string, device_id string, building string, floor int, "
    "type string, value double, unit string"
)
TYPED_READING = READING.replace("timestamp string", "timestamp timestamp")
SILVER = f"{TYPED_READING}, {WHERE}, ingested_at timestamp"
REJECTS = f"reason string, {BRONZE}"
DUPLICATES = f"timestamp timestamp, device_id string, building string, type string, {WHERE}"
GOLD = (
    "building string, floor int, type string, window_start timestamp, window_end timestamp, "
    "mean double, min double, max double, count bigint"
)
ANOMALIES = f"{TYPED_READING}, median double, mad double, score double, history int"

FIELDS = ["timestamp", "device_id", "building", "floor", "type", "value", "unit"]
SERIES = ["device_id", "type"]  # one sensor's readings of one type
IDENTITY = [*SERIES, "timestamp"]  # what makes a reading the same reading
GROUP = ["building", "floor", "type"]


class Kind(NamedTuple):
    """What a working sensor of a type can say.

    Attributes:
        low, high: physical range of a reading, in its unit, both included.
        resolution: smallest difference worth the name, in the same unit.
    """

    unit: str
    low: float
    high: float
    resolution: float


KINDS = {
    "temperature": Kind("C", -40, 85, 0.1),  # the span in which such sensors work at all
    "humidity": Kind("%", 0, 100, 0.5),
    "energy": Kind("kWh", 0, 1000, 0.05),  # of one interval
    "co2": Kind("ppm", 300, 10_000, 5),  # no outdoor air on Earth has had less for a century
}
FLOORS = (-5, 200)
DEVICE_ID = r"^[a-z]+_[0-9]{1,9}\z"
BUILDING = r"^[A-Z][A-Z0-9]?\z"  # at most 962 of them: each is a folder of every table
TIMESTAMP = (
    r"^\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-](0\d|1[0-4]):[0-5]\d)\z"
)
OBJECT = r"(?s)^[ \t\r\n]*\{[^{}]*\}[ \t\r\n]*\z"  # Spark's parser would not mind what follows
STRICT_JSON = {"allowSingleQuotes": "false", "allowNonNumericNumbers": "false"}
FIRST_TIME = "2000-01-01T00:00:00Z"  # no such sensor is older; a clock that was never set is
FUTURE = "5 minutes"  # a clock may be ahead of the broker's by so much

HISTORY = 60  # readings of the same series, at most, that make its recent history ...
HISTORY_SPAN = "1 hour"  # ... none older than that ...
HISTORY_LEAST = 20  # ... and no verdict with fewer
CUT_OFF = 3.5  # of |score|: Iglewicz and Hoaglin's recommendation
NORMAL_MAD = 0.6745  # of a normal distribution, in standard deviations: its third quartile


def with_partition_columns(messages: DataFrame) -> DataFrame:
    """Add `building` and `type` as the value names them; null where it names none that can be.

    They only say into which folder of bronze a message goes.
    """
    named = F.from_json(F.col("value").cast("string"), "building string, type string")
    return messages.withColumns(folder_of(named["building"], named["type"]))


def folder_of(building: Column, kind: Column) -> dict[str, Column]:
    """Return the partition columns: null for what must not become a folder's name."""
    return {
        "building": F.when(building.rlike(BUILDING), building),
        "type": F.when(kind.isin(*KINDS), kind),
    }


def parse(bronze: DataFrame) -> DataFrame:
    """Read each value by the explicit schema and check it, field by field.

    Args:
        bronze: DataFrame(BRONZE).

    Returns:
        The same rows with their value as `raw`, the columns of READING, `timestamp` as a time in
        UTC, and `reason`: null for a valid reading, else "kind: details" of the first thing that is
        wrong with it.
    """
    text = F.decode("value", "UTF-8")
    is_utf8 = F.encode(text, "UTF-8") == F.col("value")
    parsed = bronze.withColumns(
        {
            "text": F.when(is_utf8 & text.rlike(OBJECT), text),
            "given": F.from_json("text", "map<string, string>", STRICT_JSON),
            "reading": F.from_json("text", READING, STRICT_JSON),
        }
    )
    parsed = parsed.withColumn("at", F.to_timestamp(F.col("reading.timestamp")))
    parsed = parsed.withColumn("reason", reason())
    read = [F.col(f"reading.{name}").alias(name) for name in FIELDS if name != "timestamp"]
    kept = [name for name in bronze.columns if name not in FIELDS]
    raw, at = F.col("value").alias("raw"), F.col("at").alias("timestamp")
    return parsed.select(*kept, raw, at, *read, "reason")


def reason() -> Column:
    """Return what is wrong with a parsed message, null when nothing is."""
    given, reading = F.col("given"), F.col("reading")
    fields = F.map_keys(given)
    known = F.array(*map(F.lit, FIELDS))
    missing = F.filter(known, lambda name: given[name].isNull())
    unit, low, high = (
        F.element_at(by_type(position), reading["type"]) for position in ("unit", "low", "high")
    )
    is_number_missing = reading["floor"].isNull() | reading["value"].isNull()
    is_time = reading["timestamp"].rlike(TIMESTAMP) & F.coalesce(
        F.col("at") >= F.lit(FIRST_TIME).cast("timestamp"), F.lit(False)
    )
    is_future = F.col("at") > F.col("kafka_timestamp") + F.expr(f"interval {FUTURE}")
    checks = (
        (given.isNull(), "bad_json", F.lit("not one flat JSON object in UTF-8")),
        (F.size(missing) > 0, "missing_field", F.concat_ws(", ", missing)),
        (F.size(fields) > len(FIELDS), "unexpected_field", F.concat_ws(", ", fields)),
        (is_number_missing, "wrong_type", F.lit("floor is a whole number, value a number")),
        (~is_time, "bad_timestamp", reading["timestamp"]),
        (is_future, "in_the_future", reading["timestamp"]),
        (~reading["device_id"].rlike(DEVICE_ID), "bad_device_id", reading["device_id"]),
        (~reading["building"].rlike(BUILDING), "bad_building", reading["building"]),
        (~reading["floor"].between(*FLOORS), "bad_floor", reading["floor"]),
        (~reading["type"].isin(*KINDS), "unknown_type", reading["type"]),
        (reading["unit"] != unit, "wrong_unit", F.concat(reading["unit"], F.lit(" for "), unit)),
        (~reading["value"].between(low, high), "out_of_range", reading["value"]),
    )
    return F.coalesce(*(said_if(*check) for check in checks))


def said_if(is_wrong: Column, kind: str, details: Column) -> Column:
    """Return "kind: details" where a check fails, or cannot be made; null elsewhere."""
    shown = F.coalesce(F.substring(details.cast("string"), 1, 80), F.lit(""))
    return F.when(F.coalesce(is_wrong, F.lit(True)), F.concat(F.lit(f"{kind}: "), shown))


def by_type(attribute: str) -> Column:
    """Return a map from type to one attribute of its Kind."""
    pairs = ((F.lit(name), F.lit(getattr(kind, attribute))) for name, kind in KINDS.items())
    return F.create_map(*(column for pair in pairs for column in pair))


def mark_late(parsed: DataFrame, last_seen: DataFrame, lateness: str) -> DataFrame:
    """Give the valid readings that come after their watermark a reason.

    The watermark is each series' own: the newest time that it has shown so far, less `lateness`.
    So a sensor that was away for a day, or whose clock is ahead, makes no other one late.

    Args:
        parsed: rows of `parse`.
        last_seen: DataFrame(device_id string, type string, last timestamp), before these rows.
        lateness: how long after the newest of its series a reading may come, "10 minutes".

    Returns:
        The same rows, `reason` filled in where it was null.
    """
    in_order = Window.partitionBy(*SERIES).orderBy("partition", "offset")
    valid_time = F.when(F.col("reason").isNull(), F.col("timestamp"))
    newest = F.max(valid_time).over(in_order.rowsBetween(Window.unboundedPreceding, -1))
    watermark = F.greatest("last", newest) - F.expr(f"interval {lateness}")
    timed = parsed.join(F.broadcast(last_seen), on=SERIES, how="left")
    timed = timed.withColumn("watermark", watermark)
    too_late = F.concat(F.lit("too_late: watermark "), F.col("watermark").cast("string"))
    late = F.when(F.col("timestamp") < F.col("watermark"), too_late)
    return timed.withColumn("reason", F.coalesce("reason", late)).select(*parsed.columns)


def judge(valid: DataFrame, silver: DataFrame) -> DataFrame:
    """Tell the readings that are new from those that have come before.

    Of several readings with one identity (device, type, time) the first counts; the same again is a
    duplicate, the same identity with anything else in it is a conflict.

    Args:
        valid: rows of `mark_late` without a reason.
        silver: DataFrame(SILVER), with at least the readings from the earliest of `valid` on.

    Returns:
        The rows of `valid` with `outcome`, "silver", "duplicate" or "conflict", and the reason of
        the latter.
    """
    content = F.struct("building", "floor", "value", "unit").alias("content")
    known = silver.select(*IDENTITY, content, F.lit(True).alias("is_known"))
    new = valid.select("*", content, F.lit(False).alias("is_known"))
    both = new.unionByName(known, allowMissingColumns=True)
    in_order = Window.partitionBy(*IDENTITY).orderBy(F.desc("is_known"), "partition", "offset")
    first = F.first("content").over(in_order.rowsBetween(Window.unboundedPreceding, -1))
    judged = both.withColumn("first", first).where(~F.col("is_known"))
    outcome = (
        F.when(F.col("first").isNull(), "silver")
        .when(F.col("first") == F.col("content"), "duplicate")
        .otherwise("conflict")
    )
    judged = judged.withColumn("outcome", outcome)
    said = F.when(
        F.col("outcome") == "conflict", "conflict: silver has another reading of this time"
    )
    return judged.withColumn("reason", said).select(*valid.columns, "outcome")


def rejects(rows: DataFrame) -> DataFrame:
    """Return rows that have a reason with their bytes as they came, and folders that can be."""
    rows = rows.withColumns(folder_of(F.col("building"), F.col("type")))
    return rows.withColumn("value", F.col("raw"))


def said_rejects(rejected: Mapping[str, int]) -> str:
    """Return the number of rejects and their reasons, as the log says them.

    >>> said_rejects({"wrong_unit": 1, "bad_json": 2}), said_rejects({})
    ('rejected=3 (bad_json=2 wrong_unit=1)', 'rejected=0')
    """
    reasons = " ".join(f"{kind}={count}" for kind, count in sorted(rejected.items()))
    return f"rejected={sum(rejected.values())}" + (f" ({reasons})" if reasons else "")


def seconds(duration: str) -> int:
    """Return a duration in seconds.

    >>> seconds("5 minutes"), seconds("1 hour")
    (300, 3600)
    """
    number, unit = duration.split()
    return int(number) * {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}[unit.rstrip("s")]


def names(schema: str) -> list[str]:
    """Return the names of a schema's columns.

    >>> names("floor int, value double")
    ['floor', 'value']
    """
    return [column.split()[0] for column in schema.split(", ")]


def aggregate(silver: DataFrame, window: str) -> DataFrame:
    """Summarise readings per building, floor, type and window of time.

    Args:
        silver: DataFrame(SILVER).
        window: length of the windows, "5 minutes"; they start at whole multiples of it since 1970,
            UTC. A reading at a window's end is in the next.

    Returns:
        DataFrame(GOLD), a row per window that has readings.
    """
    grouped = silver.groupBy(*GROUP, F.window("timestamp", window).alias("window"))
    summed = grouped.agg(
        F.mean("value").alias("mean"),
        F.min("value").alias("min"),
        F.max("value").alias("max"),
        F.count("value").alias("count"),
    )
    start, end = F.col("window.start"), F.col("window.end")
    return summed.select(
        *GROUP, start.alias("window_start"), end.alias("window_end"), "mean", "min", "max", "count"
    )


def score(silver: DataFrame) -> DataFrame:
    """Score each reading against the recent history of its own series.

    The modified z-score of Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (ASQC Basic
    References in Quality Control 16, 1993):

        score = 0.6745 * (value - median) / MAD

    where MAD is the median of the absolute deviations from the median; |score| > 3.5 is an outlier,
    by their recommendation. Median and MAD, unlike mean and deviation, are not moved by the
    outliers themselves. Ours are: history is the (at most) 60 readings before it, none older than
    1 hour, at least 20, or there is no score; a MAD below the sensor's resolution is taken as
    that, or a constant series would make an outlier of every last digit.

    Args:
        silver: DataFrame(SILVER).

    Returns:
        DataFrame(ANOMALIES) and `is_anomaly`, one row per reading; without enough history, median,
        mad and score are null and is_anomaly false.
    """
    before = Window.partitionBy(*SERIES).orderBy("timestamp").rowsBetween(-HISTORY, -1)
    recent = F.collect_list(F.struct("timestamp", "value")).over(before)
    oldest = F.col("timestamp") - F.expr(f"interval {HISTORY_SPAN}")
    values = F.transform(
        F.filter(recent, lambda past: past["timestamp"] >= oldest), lambda past: past["value"]
    )
    deviations = F.transform("values", lambda value: F.abs(value - F.col("median")))
    resolution = F.element_at(by_type("resolution"), F.col("type"))
    scored = silver.select(*FIELDS, values.alias("values"))
    scored = scored.withColumn("history", F.size("values"))
    scored = scored.withColumn("median", median("values"))
    scored = scored.withColumn("deviations", deviations)
    scored = scored.withColumn("mad", F.greatest(median("deviations"), resolution))
    scored = scored.withColumn(
        "score", F.lit(NORMAL_MAD) * (F.col("value") - F.col("median")) / F.col("mad")
    )
    judged = [
        F.when(F.col("history") >= HISTORY_LEAST, F.col(n)).alias(n)
        for n in ("median", "mad", "score")
    ]
    is_anomaly = F.coalesce(F.abs("score") > CUT_OFF, F.lit(False)).alias("is_anomaly")
    return scored.select(*FIELDS, *judged, "history").select("*", is_anomaly)


def touched_gold(new: DataFrame, silver: DataFrame, window: str) -> DataFrame:
    """Return the rows of gold that new readings touch, computed from all of silver.

    Args:
        new: DataFrame with the columns of a reading, all of which are in silver too.
        silver: DataFrame(SILVER).
        window: as for `aggregate`.
    """
    windows = new.select(*GROUP, F.window("timestamp", window)["start"].alias("window_start"))
    rows = aggregate(silver, window)
    return rows.join(F.broadcast(windows.distinct()), on=[*GROUP, "window_start"], how="left_semi")


def touched_scores(new: DataFrame, silver: DataFrame) -> DataFrame:
    """Return the scores that new readings touch: their own, and those whose history they are in.

    Args:
        new: as for `touched_gold`.
        silver: as for `touched_gold`.

    Returns:
        As `score`.
    """
    span = F.expr(f"interval {HISTORY_SPAN}")
    touched = new.groupBy(*SERIES).agg(
        F.min("timestamp").alias("first"), (F.max("timestamp") + span).alias("last")
    )
    near = silver.join(F.broadcast(touched), on=SERIES, how="inner")
    near = near.where(F.col("timestamp").between(F.col("first") - span, F.col("last")))
    scored = score(near).join(F.broadcast(touched), on=SERIES, how="inner")
    return scored.where(F.col("timestamp") >= F.col("first")).drop("first", "last")


def median(array: str) -> Column:
    """Return the median of an array column, null when it is empty."""
    ordered = F.sort_array(array)  # array_sort calls a comparator for each pair: far slower
    size = F.size(array)
    lower = F.get(ordered, F.floor((size - 1) / 2).cast("int"))
    upper = F.get(ordered, F.floor(size / 2).cast("int"))
    return (lower + upper) / 2
