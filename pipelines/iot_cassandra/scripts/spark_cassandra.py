#!/usr/bin/env python3
"""Spark on Cassandra: aggregate the readings (batch), or bring them there from Kafka (stream).

    python3 scripts/spark_cassandra.py batch
    python3 scripts/spark_cassandra.py stream --once
    spark-submit --master spark://spark:7077 scripts/spark_cassandra.py batch    # on a cluster

batch    loads sensor_data, aggregates each sensor's hours and writes them to sensor_data_hourly:

    readings=20000 loaded from iot_keyspace.sensor_data
    hours=340 written to iot_keyspace.sensor_data_hourly

stream   reads the topic from its beginning, or from where the checkpoint left it, and writes what
         kafka_to_cassandra.py would: the same rows, with the same write times, into the same
         tables; what is no reading goes to the same topic of rejects, unless it is there already.
         With --once it ends at the topic's end, else it runs until Ctrl-C. A batch that is under
         way then comes again at the next start, as after a crash: nothing is there twice. When a
         server goes away it ends, and goes on when it is started again. A topic that was deleted
         and made anew is read from its beginning: the checkpoint has a folder for each.

The connectors lie in jars/ (prepare.py --jars, else the first job fetches them). What spark-submit
is given (--master, --conf) holds; without it Spark runs in this process (local[*]). What Spark
itself says is in .spark/spark.log.

Environment (or .env in this folder or the project's; an option wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    IOT_TOPIC                 default iotdata
    CASSANDRA_HOSTS           default localhost:9042
    CASSANDRA_KEYSPACE        default iot_keyspace

Exit codes: 0 done or stopped cleanly, 1 a server unreachable, a table missing, or another stream
works on the checkpoint, 2 wrong usage. spark-submit itself says 130 for Ctrl-C, 143 for SIGTERM.
"""

import argparse
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TextIO

from py4j.java_gateway import JavaGateway
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # as everywhere in Spark

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.common import load_env, next_copy, number, stop_on_signals  # noqa: E402
from pipelines.iot_cassandra.scripts.transforms import (  # noqa: E402
    hourly,
    judged,
    rejects,
    without_known,
)
from pipelines.iot_cassandra.settings import (  # noqa: E402
    BY_DAY,
    FOLDER,
    REJECT_BYTES,
    SENSOR_DATA,
    TABLES,
    add_shared,
    add_wait,
    addresses,
    parser_of,
    rejects_topic,
)
from pipelines.iot_cassandra.spark_session import (  # noqa: E402
    SparkError,
    spark_session,
    state_folder,
)
from pipelines.spark import stop_with_submit, topic_id  # noqa: E402

# What a call into Spark's Java raises when Java ends first: py4j lets through what its socket says.
JAVA_ERRORS = (Py4JError, OSError)
LOCK_WAIT_S = 10.0
CASSANDRA = "org.apache.spark.sql.cassandra"
LARGE = {
    "kafka.max.request.size": str(REJECT_BYTES),
    "kafka.buffer.memory": str(REJECT_BYTES),
}


def read_table(spark: SparkSession, keyspace: str, table: str) -> DataFrame:
    """Return a table of Cassandra."""
    return spark.read.format(CASSANDRA).options(keyspace=keyspace, table=table).load()


def write_rows(rows: DataFrame, keyspace: str, table: str, **options: str) -> None:
    """Write rows into a table of Cassandra; a row with a known key replaces that one."""
    target = {"keyspace": keyspace, "table": table, **options}
    rows.write.format(CASSANDRA).options(**target).mode("append").save()


def tables_of_readings(spark: SparkSession, keyspace: str) -> list[str]:
    """Return the tables that readings go to: sensor_data, and that by day if it is there.

    Raises:
        PySparkException, Py4JError: sensor_data is not there, or Cassandra does not answer.
    """
    read_table(spark, keyspace, SENSOR_DATA)
    try:
        read_table(spark, keyspace, BY_DAY)
    except (PySparkException, Py4JError) as exc:
        if "Couldn't find table" not in str(exc):
            raise
        return [SENSOR_DATA]
    return [SENSOR_DATA, BY_DAY]


@contextmanager
def shown_tasks(spark: SparkSession) -> Iterator[None]:
    """Show on a terminal, meanwhile, how many tasks of Spark's current stages are done."""
    tracker, done = spark.sparkContext.statusTracker(), threading.Event()

    def show() -> None:
        with suppress(*JAVA_ERRORS):
            while sys.stderr.isatty() and not done.wait(0.1):
                for stage in map(tracker.getStageInfo, tracker.getActiveStageIds()):
                    if stage:  # else it has just ended
                        count = f"{stage.numCompletedTasks} of {stage.numTasks} tasks"
                        sys.stderr.write(f"\rSpark, stage {stage.stageId}: {count} \r")

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def report(line: str, stop: threading.Event) -> None:
    """Print a line at once; when nobody reads on, as after `... | head`, set the flag instead."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        stop.set()


def run_batch(spark: SparkSession, config: argparse.Namespace, stop: threading.Event) -> None:
    """Aggregate sensor_data into sensor_data_hourly."""
    keyspace = config.keyspace
    hours = hourly(read_table(spark, keyspace, SENSOR_DATA)).cache()  # written and counted
    with shown_tasks(spark):
        write_rows(hours, keyspace, "sensor_data_hourly")
    [(loaded, written)] = hours.agg(F.sum("readings"), F.count("*")).collect()
    report(f"readings={loaded or 0} loaded from {keyspace}.{SENSOR_DATA}", stop)
    report(f"hours={written} written to {keyspace}.sensor_data_hourly", stop)


def allow_large_rejects(java: JavaGateway, config: argparse.Namespace) -> None:
    """Let the topic of rejects, made if it is missing, take whatever could be read.

    By the Java client that the Kafka source brings: Spark's image has no Python client.
    """
    clients = java.jvm.org.apache.kafka
    topic = rejects_topic(config.topic)
    admin = clients.clients.admin.Admin.create({"bootstrap.servers": config.bootstrap_servers})
    try:
        if topic not in admin.listTopics().names().get():
            by_default = java.jvm.java.util.Optional.empty()
            new = clients.clients.admin.NewTopic(topic, by_default, by_default)
            admin.createTopics([new]).all().get()
        kind = clients.common.config.ConfigResource.Type.TOPIC
        resource = clients.common.config.ConfigResource(kind, topic)
        entry = clients.clients.admin.ConfigEntry("max.message.bytes", str(REJECT_BYTES))
        change = clients.clients.admin.AlterConfigOp(
            entry, clients.clients.admin.AlterConfigOp.OpType.SET
        )
        admin.incrementalAlterConfigs({resource: [change]}).all().get()
    finally:
        admin.close()


def run_stream(
    spark: SparkSession, java: JavaGateway, config: argparse.Namespace, stop: threading.Event
) -> None:
    """Write the topic's readings into the tables of readings, one micro-batch after the other."""
    tables = tables_of_readings(spark, config.keyspace)
    rejects_to = rejects_topic(config.topic)
    kafka = {
        "kafka.bootstrap.servers": config.bootstrap_servers,
        "kafka.isolation.level": "read_committed",  # not what a transaction has taken back
    }

    def write_batch(messages: DataFrame, batch: int) -> None:
        found = judged(messages).cache()
        for table in tables:
            chosen = found.where("reason IS NULL").select(*TABLES[table], "write_time")
            write_rows(chosen, config.keyspace, table, writetime="write_time")
        total, bad = found.count(), found.where("reason IS NOT NULL").count()
        if bad:
            source = {**kafka, "subscribe": rejects_to, "includeHeaders": "true"}
            known = spark.read.format("kafka").options(**source).load()
            letters = rejects(without_known(found, known))
            letters.write.format("kafka").options(**kafka, **LARGE, topic=rejects_to).save()
        found.unpersist()
        report(f"batch={batch} written={total - bad} rejected={bad}", stop)

    source = {
        **kafka,
        "subscribe": config.topic,
        "startingOffsets": "earliest",
        "maxOffsetsPerTrigger": str(config.batch),
    }
    messages = spark.readStream.format("kafka").options(**source).load()
    writer = messages.writeStream.foreachBatch(write_batch)
    # Spark knows a topic by its name: in a new one of that name it would go on at the old offsets.
    checkpoint = config.checkpoint / topic_id(java.jvm, config.bootstrap_servers, config.topic)
    # Not as_uri(): Hadoop would take %20 for the folder's name.
    writer = writer.option("checkpointLocation", f"file://{checkpoint}")
    every = {"processingTime": f"{config.every:g} seconds"}
    query = writer.trigger(**({"availableNow": True} if config.once else every)).start()
    stop_on_signals(stop)
    try:
        while not stop.is_set() and not query.awaitTermination(1):
            pass
        query.stop()
    except JAVA_ERRORS:
        if not stop.is_set():  # else the signal has ended Spark's own process before
            raise


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the configuration: option > environment > default. A bad value exits with code 2."""
    wanted = ("--bootstrap-servers", "--topic", "--hosts", "--keyspace")
    parser = add_shared(parser_of(__doc__), environ, *wanted)
    parser.add_argument("mode", choices=("batch", "stream"))
    parser.add_argument("--once", action="store_true", help="stream: end at the topic's end")
    parser.add_argument(
        "--batch",
        type=number(1, 10_000_000, int),
        default=200_000,
        metavar="N",
        help="stream: messages of one micro-batch, which is held in memory (default: 200000)",
    )
    parser.add_argument(
        "--every",
        type=number(0.1, 86_400),
        default=1.0,
        metavar="SECONDS",
        help="stream: from one micro-batch to the next (default: 1)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="stream: where it notes how far it is (default: .spark/TOPIC-KEYSPACE)",
    )
    add_wait(parser)
    config = parser.parse_args(argv)
    name = f"{config.topic}-{config.keyspace}"
    config.checkpoint = (config.checkpoint or state_folder() / ".spark" / name).resolve()
    return config


def wait_for(what: str, servers: str, wait_s: float, stop: threading.Event) -> None:
    """Wait until one of some servers takes connections.

    Raises:
        SparkError: none does within wait_s seconds, or before the flag is set.
    """
    deadline = time.monotonic() + wait_s
    while True:
        for address in addresses(servers):
            with suppress(OSError), socket.create_connection(address, timeout=5):
                return
        if time.monotonic() > deadline or stop.wait(1):
            raise SparkError(f"{what} at {servers} does not answer: is it started? (see README)")


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


def run(config: argparse.Namespace, stop: threading.Event, locks: Sequence[TextIO] = ()) -> int:
    """Run one job in a session of its own, until it is done or the flag is set; return the code.

    Its Java holds the locks, too: when Python alone is killed, Java works on for a moment.
    """
    where = f"Kafka at {config.bootstrap_servers}, Cassandra at {config.hosts}"
    try:
        wait_for("Cassandra", config.hosts, config.wait, stop)
        if config.mode == "stream":
            wait_for("Kafka", config.bootstrap_servers, config.wait, stop)
        spark, java = spark_session({"spark.cassandra.connection.host": config.hosts}, locks)
        if config.mode == "batch":
            run_batch(spark, config, stop)
        else:
            allow_large_rejects(java, config)
            run_stream(spark, java, config, stop)
    except SparkError as exc:
        sys.stderr.write(f"spark_cassandra: {exc}\n")
        return 1
    except (PySparkException, *JAVA_ERRORS) as exc:
        sys.stderr.write(f"spark_cassandra: {in_one_line(exc)} ({where})\n")
        return 1
    with suppress(*JAVA_ERRORS):  # the work is done
        spark.stop()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; return the exit code (see the module docstring)."""
    stop = threading.Event()
    stop_with_submit(stop)
    with suppress(ImportError):  # Spark's image cannot read .env; Compose gives the variables
        load_env(FOLDER)
    config = load_config(argv, os.environ)
    try:
        if config.mode == "batch":
            return run(config, stop)
        file = config.checkpoint.with_name(f"{config.checkpoint.name}.lock")
        wrong = f"another stream works on {config.checkpoint}\n"
        say = partial(sys.stderr.write, f"spark_cassandra: waiting {LOCK_WAIT_S:g} s: {wrong}")
        with next_copy(file, time.monotonic() + LOCK_WAIT_S, stop, say) as lock:
            if lock:
                return run(config, stop, [lock])
        sys.stderr.write(f"spark_cassandra: {wrong}")
    except KeyboardInterrupt:
        sys.stderr.write("spark_cassandra: interrupted\n")
    except OSError as exc:
        sys.stderr.write(f"spark_cassandra: {exc.filename}: {exc.strerror}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
