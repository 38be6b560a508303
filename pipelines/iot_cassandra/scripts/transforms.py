"""What Spark's jobs make of the data: DataFrame to DataFrame, without a session or a server."""

from functools import reduce
from operator import or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # as everywhere in Spark

from pipelines.iot_cassandra.settings import LAST_MS

FIELDS = "sensor_id BIGINT, timestamp STRING, temperature DOUBLE, humidity DOUBLE"
ISO_TIME = r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]((0\d|1[0-7]):[0-5]\d|18:00))\z"
# Spark's own functions read the first object of a text and leave the rest of it unread.
ONE_OBJECT = r"\A[ \t\r\n]*\{[^{}]*\}[ \t\r\n]*\z"


def hourly(readings: DataFrame) -> DataFrame:
    """Return each sensor's hours.

    Args:
        readings: (sensor_id: int, timestamp: timestamp, temperature: float, humidity: float).

    Returns:
        The columns of sensor_data_hourly; an hour is named by its beginning, UTC.
    """
    measures = [
        function(name).alias(f"{name}_{suffix}")
        for name in ("temperature", "humidity")
        for suffix, function in (("min", F.min), ("avg", F.avg), ("max", F.max))
    ]
    hour = F.date_trunc("hour", "timestamp").alias("hour")
    return readings.groupBy("sensor_id", hour).agg(F.count("*").alias("readings"), *measures)


def judged(messages: DataFrame) -> DataFrame:
    """Return messages with the row they stand for, and the reason why they are none, or null.

    Args:
        messages: as Spark's Kafka source gives them, value as binary.

    Returns:
        The messages' columns; sensor_id: int, timestamp: timestamp (whole milliseconds), day:
        date, temperature: float, humidity: float; write_time: long, microseconds; sent: timestamp,
        that of the message in Kafka; reason: string.
    """
    text = F.col("value").cast("string")
    found = F.from_json(text, FIELDS, {"allowSingleQuotes": "false"})  # JSON has none
    time = F.date_trunc("millisecond", F.to_timestamp(found["timestamp"]))
    columns = {
        "reason": reason(text, found, time),
        "sensor_id": found["sensor_id"].cast("int"),
        "day": F.to_date(time),
        "write_time": F.unix_millis(F.col("timestamp")) * 1000 + F.col("offset") % 1000,
        "sent": F.col("timestamp"),
        "timestamp": time,
        "temperature": found["temperature"].cast("float"),
        "humidity": found["humidity"].cast("float"),
    }
    return messages.withColumns(columns)


def reason(text: Column, found: Column, time: Column) -> Column:
    """Return why a message is no reading, the first reason that holds; null when it is one."""
    fields = [found[name] for name in ("sensor_id", "timestamp", "temperature", "humidity")]
    sensor_id, timestamp, temperature, humidity = fields
    names = F.array_sort(F.json_object_keys(text))
    kafka_ms = F.unix_millis("timestamp")
    wanted = F.array(*map(F.lit, ("humidity", "sensor_id", "temperature", "timestamp")))
    rules = [
        ("NaN is not a number", F.isnan(temperature) | F.isnan(humidity)),
        (
            "not a JSON object with exactly the four fields",
            ~names.eqNullSafe(wanted) | ~text.rlike(ONE_OBJECT),
        ),
        ("a field has a wrong type", reduce(or_, (field.isNull() for field in fields))),
        ("sensor_id is beyond 32 bits", ~sensor_id.between(-(2**31), 2**31 - 1)),
        ("timestamp is no ISO 8601 time with its offset", ~timestamp.rlike(ISO_TIME)),
        (
            "timestamp is no date of the years 1900 to 9999",
            time.isNull() | ~F.year(time).between(1900, 9999),
        ),
        ("temperature is not between -40 and 80", ~temperature.between(-40, 80)),
        ("humidity is not between 0 and 100", ~humidity.between(0, 100)),
        (
            "Kafka's time of the message is not in milliseconds since 1970",
            ~kafka_ms.between(0, LAST_MS),
        ),
    ]
    return F.coalesce(*(F.when(is_broken, F.lit(f"invalid: {why}")) for why, is_broken in rules))


def rejects(messages: DataFrame) -> DataFrame:
    """Return the judged messages that are no readings as Kafka's sink takes them."""
    origin = {
        "reason": F.col("reason"),
        "source.topic": F.col("topic"),
        "source.partition": F.col("partition"),
        "source.offset": F.col("offset"),
        "source.timestamp": F.unix_millis("sent"),  # epoch ms
    }
    headers = F.array(
        *(
            F.struct(F.lit(name).alias("key"), column.cast("string").cast("binary").alias("value"))
            for name, column in origin.items()
        )
    )
    value = F.coalesce("value", F.lit(b""))
    return messages.where("reason IS NOT NULL").select(
        "key", value.alias("value"), headers.alias("headers")
    )


def without_known(messages: DataFrame, known: DataFrame) -> DataFrame:
    """Return the judged messages that are not among the rejects already.

    Args:
        messages: judged.
        known: the topic of rejects, as Spark's Kafka source gives it, headers included.
    """
    names = ("source.partition", "source.offset", "source.timestamp")
    places = known.select(
        *(
            F.expr(f"filter(headers, header -> header.key = '{name}')[0].value")
            .cast("string")
            .alias(f"known_{number}")
            for number, name in enumerate(names)
        )
    )
    same = [
        places["known_0"] == messages["partition"].cast("string"),
        places["known_1"] == messages["offset"].cast("string"),
        places["known_2"] == F.unix_millis(messages["sent"]).cast("string"),
    ]
    return messages.join(places, same, "left_anti")
