#!/usr/bin/env python3
"""Spark on Cassandra: aggregate the readings (batch), or bring them there from Kafka (stream).

    P=pipelines/iot_cassandra
    spark-submit --properties-file $P/spark.conf $P/scripts/spark_cassandra.py batch
    spark-submit --properties-file $P/spark.conf $P/scripts/spark_cassandra.py stream --checkpoint D

batch    loads sensor_data, aggregates each sensor's hours and writes them to sensor_data_hourly:

    readings=20000 loaded from iot_keyspace.sensor_data
    hours=340 written to iot_keyspace.sensor_data_hourly

stream   reads the topic from its beginning, or from where the checkpoint left it, and writes what
         kafka_to_cassandra.py would: the same rows, with the same write times, into both tables;
         what is no reading goes to the same dead-letter topic. With --once it ends at the topic's
         end, else it runs until Ctrl-C, which gives up the batch under way (Spark then reports an
         error). That batch comes again at the next start, as after a crash: the rows stay the
         same, a dead letter may be there twice. It does not wait for a server: when one goes away
         it ends, and goes on when it is started again.

The connectors come with their dependencies by spark.conf; --master says where it runs (default:
local[*], in this process).

Environment (or .env in the project's folder; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    IOT_TOPIC                 default iotdata
    CASSANDRA_HOSTS           default localhost:9042
    CASSANDRA_KEYSPACE        default iot_keyspace

Exit codes: 0 done, 1 a server unreachable or a table missing, 2 wrong usage; when stopped by a
signal, those of spark-submit's Java (130 for Ctrl-C, 143 for SIGTERM) if it ends before Python,
else 0.
"""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from operator import or_
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark import SparkConf
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # as everywhere in Spark

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))  # spark-submit knows only this folder

from pipelines.iot_cassandra.scripts.options import add_shared, load_env, parser_of  # noqa: E402

# What a call into Spark's Java raises when Java ends first: py4j lets through what its socket says.
JAVA_ERRORS = (Py4JError, OSError)
CASSANDRA = "org.apache.spark.sql.cassandra"
FIELDS = "sensor_id BIGINT, timestamp STRING, temperature DOUBLE, humidity DOUBLE"
ISO_TIME = r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]((0\d|1[0-7]):[0-5]\d|18:00))\z"
# Spark's own functions read the first object of a text and leave the rest of it unread.
ONE_OBJECT = r"\A[ \t\r\n]*\{[^{}]*\}[ \t\r\n]*\z"
LAST_MS = 253_402_300_799_999  # the end of the year 9999
DEAD_LETTER_BYTES = "100000000"  # with its headers it is larger than what could be read
LARGE = {"kafka.max.request.size": DEAD_LETTER_BYTES, "kafka.buffer.memory": DEAD_LETTER_BYTES}
BATCH_MESSAGES = 200_000  # of one micro-batch, which is held in memory
# Columns of the two tables of readings.
TABLES = {
    "sensor_data": ("sensor_id", "timestamp", "temperature", "humidity"),
    "sensor_data_by_day": ("sensor_id", "day", "timestamp", "temperature", "humidity"),
}


# Transformations: DataFrame to DataFrame.


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
        date, temperature: float, humidity: float; write_time: long, microseconds; reason: string.
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


def dead_letters(messages: DataFrame) -> DataFrame:
    """Return the judged messages that are no readings as Kafka's sink takes them."""
    origin = {
        "reason": F.col("reason"),
        "source.topic": F.col("topic"),
        "source.partition": F.col("partition"),
        "source.offset": F.col("offset"),
        "source.timestamp": F.unix_millis("sent"),  # epoch ms
    }
    headers = F.array(*(
        F.struct(F.lit(name).alias("key"), column.cast("string").cast("binary").alias("value"))
        for name, column in origin.items()
    ))  # fmt: skip
    value = F.coalesce("value", F.lit(b""))
    return messages.where("reason IS NOT NULL").select(
        "key", value.alias("value"), headers.alias("headers")
    )


# Reading and writing.


def dead_letter_topic(config: argparse.Namespace) -> str:
    """Return the topic for the messages that are no readings."""
    return f"{config.topic}.dead-letter"


def write_rows(rows: DataFrame, keyspace: str, table: str, **options: str) -> None:
    """Write rows into a table of Cassandra; a row with a known key replaces that one."""
    target = {"keyspace": keyspace, "table": table, **options}
    rows.write.format(CASSANDRA).options(**target).mode("append").save()


def run_batch(spark: SparkSession, config: argparse.Namespace) -> None:
    """Aggregate sensor_data into sensor_data_hourly."""
    keyspace = config.keyspace
    readings = spark.read.format(CASSANDRA).options(keyspace=keyspace, table="sensor_data").load()
    hours = hourly(readings).cache()  # computed once, written and counted
    write_rows(hours, keyspace, "sensor_data_hourly")
    [(loaded, written)] = hours.agg(F.sum("readings"), F.count("*")).collect()
    sys.stdout.write(f"readings={loaded or 0} loaded from {keyspace}.sensor_data\n")
    sys.stdout.write(f"hours={written} written to {keyspace}.sensor_data_hourly\n")


def allow_large_dead_letters(config: argparse.Namespace) -> None:
    """Let the dead-letter topic, made if it is missing, take whatever could be read.

    By the Java client that the Kafka source brings: Spark's image has no Python client.
    """
    jvm = launch_gateway().jvm  # of the Java that spark-submit has started
    java, clients = jvm.java, jvm.org.apache.kafka
    topic = dead_letter_topic(config)
    admin = clients.clients.admin.Admin.create({"bootstrap.servers": config.bootstrap_servers})
    try:
        if topic not in admin.listTopics().names().get():
            by_default = java.util.Optional.empty()
            new = clients.clients.admin.NewTopic(topic, by_default, by_default)
            admin.createTopics([new]).all().get()
        kind = clients.common.config.ConfigResource.Type.TOPIC
        resource = clients.common.config.ConfigResource(kind, topic)
        entry = clients.clients.admin.ConfigEntry("max.message.bytes", DEAD_LETTER_BYTES)
        change = clients.clients.admin.AlterConfigOp(
            entry, clients.clients.admin.AlterConfigOp.OpType.SET
        )
        admin.incrementalAlterConfigs({resource: [change]}).all().get()
    finally:
        admin.close()


def run_stream(spark: SparkSession, config: argparse.Namespace) -> None:
    """Write the topic's readings into the tables of readings, one micro-batch after the other."""
    kafka = {"kafka.bootstrap.servers": config.bootstrap_servers}
    letters_to = dead_letter_topic(config)
    allow_large_dead_letters(config)

    def write_batch(messages: DataFrame, number: int) -> None:
        found = judged(messages).cache()
        rows = found.where("reason IS NULL")
        for table, columns in TABLES.items():
            chosen = rows.select(*columns, "write_time")
            write_rows(chosen, config.keyspace, table, writetime="write_time")
        letters = dead_letters(found)
        letters.write.format("kafka").options(**kafka, **LARGE, topic=letters_to).save()
        total, bad = found.count(), found.where("reason IS NOT NULL").count()
        found.unpersist()
        sys.stdout.write(f"batch={number} written={total - bad} dead_lettered={bad}\n")
        sys.stdout.flush()

    source = {
        **kafka,
        "kafka.isolation.level": "read_committed",  # not what a transaction has taken back
        "subscribe": config.topic,
        "startingOffsets": "earliest",
        "maxOffsetsPerTrigger": str(BATCH_MESSAGES),
    }
    messages = spark.readStream.format("kafka").options(**source).load()
    writer = messages.writeStream.foreachBatch(write_batch)
    writer = writer.option("checkpointLocation", config.checkpoint)
    trigger = {"availableNow": True} if config.once else {"processingTime": "1 second"}
    query = writer.trigger(**trigger).start()
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    try:
        while not stop.is_set() and not query.awaitTermination(1):
            pass
        query.stop()
    except JAVA_ERRORS:
        if not stop.is_set():  # else Ctrl-C has ended Spark's own process before
            raise


# The command.


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    wanted = ("--bootstrap-servers", "--topic", "--hosts", "--keyspace")
    parser = add_shared(parser_of(__doc__), environ, *wanted)
    parser.add_argument("mode", choices=("batch", "stream"))
    parser.add_argument("--once", action="store_true", help="stream: end at the topic's end")
    parser.add_argument("--checkpoint", metavar="DIR", help="stream: where it notes how far it is")
    config = parser.parse_args(argv)
    if config.mode == "stream" and not config.checkpoint:
        parser.error("stream needs --checkpoint")
    return config


def session(hosts: str) -> SparkSession:
    """Return a Spark session that knows where Cassandra is.

    Raises:
        PySparkException, Py4JError: Spark cannot be started as asked.
    """
    conf = SparkConf().set("spark.cassandra.connection.host", hosts)
    if conf.get("spark.master", "local[*]").startswith("local"):  # nobody else is to reach it
        conf.set("spark.driver.host", "127.0.0.1").set("spark.driver.bindAddress", "127.0.0.1")
    return SparkSession.builder.appName("iot_cassandra").config(conf=conf).getOrCreate()


def in_one_line(exc: Exception) -> str:
    r"""Return what went wrong, and what was at the bottom of it: Spark wraps that many times.

    >>> in_one_line(ValueError("It broke.\n: a.AException: a\n  at x\nCaused by: b.BError: b"))
    'a.AException: a; caused by b.BError: b'
    """
    text = str(exc).strip()
    causes = re.findall(r"^(?:Caused by)?: ([\w.$]+(?:Exception|Error).*)", text, re.MULTILINE)
    if not causes:
        return " ".join(text.splitlines()[:2])[:500] or type(exc).__name__
    return "; caused by ".join(cause[:300] for cause in dict.fromkeys([causes[0], causes[-1]]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; return the exit code (see the module docstring)."""
    with suppress(ImportError):  # not in Spark's image; there compose.yml gives the variables
        load_env(PROJECT / ".env")
    config = load_config(argv, os.environ)
    where = f"Kafka at {config.bootstrap_servers}, Cassandra at {config.hosts}"
    try:
        spark = session(config.hosts)
        {"batch": run_batch, "stream": run_stream}[config.mode](spark, config)
    except (PySparkException, *JAVA_ERRORS) as exc:
        sys.stderr.write(f"spark_cassandra: {in_one_line(exc)} ({where})\n")
        return 1
    with suppress(*JAVA_ERRORS):  # the work is done
        spark.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
