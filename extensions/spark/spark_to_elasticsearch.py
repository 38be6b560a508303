#!/usr/bin/env python3
r"""Index a Kafka topic of sensor readings into Elasticsearch on Spark, by the script's own code.

    spark-submit --properties-file extensions/spark/spark.conf \
        --py-files kafka_to_elasticsearch.py extensions/spark/spark_to_elasticsearch.py --once

kafka_to_elasticsearch.py goes along to the executors, where each task settles the messages of one
partition by it: same ids, duplicates, conflicts, dead letters. Spark notes a micro-batch's offsets
in the checkpoint before it begins, and its end; one that failed is done again. Its accounts:

    batch=3 consumed=100000 indexed=99990 duplicates=8 dead_lettered=2 seconds=4.1 rate_hz=24390

Environment (or .env of the project) and other options: as kafka_to_elasticsearch.py. Exit codes:
0 done or stopped (Ctrl-C), 1 a server unreachable, messages deleted unread, a micro-batch that
fails again and again, 2 wrong usage or configuration; after SIGTERM, that of Spark's Java, 143.
"""

import argparse
import fcntl
import logging
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import IO

import spark_indexing as indexing  # type: ignore[import-not-found]  # it is beside this file
from py4j.java_gateway import JVMView
from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.accumulators import AccumulatorServer
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming import DataStreamWriter

import kafka_to_elasticsearch as script
from kafka_to_elasticsearch import Options, SetupError

log = logging.getLogger("spark_to_elasticsearch")
PROJECT = Path(__file__).resolve().parents[2]
MAPPINGS = PROJECT / "mappings" if (PROJECT / "mappings").exists() else Path()  # see --files
MAX_FAILURES = 5  # of one micro-batch, while the servers answer
COLUMNS = ("topic", "partition", "offset", "unix_millis(timestamp) AS timestamp", "key", "value")
FATAL = {  # what Spark says of failures that another try does not mend, and what we say
    "data may have been lost": "Kafka has deleted messages that were not read; to go on with the "
    "others, delete the checkpoint",
    "Multiple streaming": "another copy works with this checkpoint",
    "long overflow": "a message's time is later than Spark can hold (year 294247): this topic is "
    "for kafka_to_elasticsearch.py",
}


def write_batch(job: indexing.Job, totals: Counter[str], messages: DataFrame, number: int) -> None:
    """Let the executors settle a micro-batch; log its accounts and add them to the totals.

    As JSON, in which bytes are base64, rows come to Python in a seventh of their usual time.
    """
    began, accounts = time.monotonic(), Counter[str]()
    lines = messages.selectExpr(*COLUMNS).toJSON(use_unicode=False)
    for settled in lines.mapPartitions(partial(indexing.settle_partition, job)).collect():
        accounts.update(settled)
    seconds = time.monotonic() - began
    rate_hz = accounts["consumed"] / seconds
    log.info("batch=%d %s seconds=%.1f rate_hz=%.0f", number, shown(accounts), seconds, rate_hz)
    totals.update(accounts, batches=1)


def shown(accounts: Counter[str]) -> str:
    """Return what became of the messages; consumed is the sum of the others."""
    names = ("consumed", "indexed", "duplicates", "dead_lettered")
    return " ".join(f"{name}={accounts[name]}" for name in names)


def run(
    stream: DataStreamWriter, totals: Counter[str], stop: Event, wait: Callable[..., None]
) -> int:
    """Run micro-batches until told to stop, again after failures; return the exit code.

    Args:
        stream: is started, and after a failure started again.
        totals: "batches" is the number of micro-batches that are done.
        stop: is set when we are told to stop.
        wait: returns when both servers answer.
    """
    failures = done = 0
    while True:
        try:
            query = stream.start()
            while not query.awaitTermination(1):
                if stop.is_set():
                    query.stop()
            return 0
        except PySparkException as exc:
            text, why = str(exc), cause_of(str(exc))
        if totals["batches"] > done or "GaveUpError: " in text:  # what is waited for is no failure
            failures = 0
        failures, done = failures + 1, totals["batches"]
        hint = next((FATAL[words] for words in FATAL if words in text), "")
        if hint or failures > MAX_FAILURES:
            log.error("%s (%s)", hint or f"given up after {failures} failures", why)
            return 1
        log.warning("a micro-batch failed; nothing is lost, it is done again (%s)", why)
        time.sleep(failures)
        wait(wait_s=math.inf)


def cause_of(text: str) -> str:
    """Return the last cause in Spark's account of a failure, which has hundreds of lines."""
    causes = re.findall(r"^(?:Caused by: )?[\w.$]+(?:Error|Exception): (.*)", text, re.MULTILINE)
    gave_up = re.findall(r"GaveUpError: (.*)", text)
    return str((gave_up or causes or text.splitlines() or ["no reason"])[-1])[:300]


def lock(checkpoint: str) -> IO[str] | None:
    """Return the lock of a checkpoint on this machine, which ends with this process.

    Raises SetupError: another copy has it. On a distributed file system, Spark sees the other copy.
    """
    if "://" in checkpoint:
        return None
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    file = (Path(checkpoint) / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise SetupError(f"another copy works with the checkpoint {checkpoint}") from exc
    return file


def parse_options(argv: Sequence[str] | None) -> tuple[Options, Options, indexing.Job]:
    """Return our options, the script's, and the executors' job. A bad value exits with code 2."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("--once", action="store_true", help="read what is there, and end")
    text, count = "readings of a micro-batch, at most (default: 100000)", script.number(1, 1e9, int)
    parser.add_argument("--max-readings", type=count, default=100_000, metavar="N", help=text)
    text = "an index for each day or month (UTC) of the readings"
    parser.add_argument("--index-by", choices=tuple(indexing.PERIODS), help=text)
    text = "a folder, or a URL such as hdfs://... (default: .spark/TOPIC-to-INDEX in the project)"
    parser.add_argument("--checkpoint", type=script.not_blank, metavar="DIR", help=text)
    ours, others = parser.parse_known_args(argv)
    options = script.parse_options(others, os.environ)
    if options.exit_when_idle < math.inf or options.metrics_port or options.dynamic_mapping:
        parser.error("--exit-when-idle, --metrics-port, --dynamic-mapping: that script's only")
    name = f"{options.topic}-to-{options.index}-by-{ours.index_by}".removesuffix("-by-None")
    ours.checkpoint = ours.checkpoint or str(PROJECT / ".spark" / name)
    names = ("KAFKA_", "ELASTICSEARCH_", "CONSUMER_")
    environ = ((name, value) for name, value in os.environ.items() if name.startswith(names))
    return ours, options, indexing.Job(tuple(others), tuple(environ), ours.index_by)


def open_session() -> tuple[SparkSession, JVMView]:
    """Return Spark's session, whose executors run this Python, and its Java."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    AccumulatorServer.handle_error = lambda *_: None  # it prints a traceback when Java is killed
    gateway = launch_gateway()
    conf = SparkConf().setAppName("smart-city-indexer")
    submitted = gateway.jvm.org.apache.spark.SparkConf()
    if submitted.get("spark.master", "local").startswith("local"):  # nobody else is to reach it
        conf.set("spark.driver.host", "127.0.0.1").set("spark.driver.bindAddress", "127.0.0.1")
    context = SparkContext(conf=conf, gateway=gateway)
    context.addPyFile(indexing.__file__)
    return SparkSession(context), gateway.jvm


def main(argv: Sequence[str] | None = None) -> int:
    """Index until done or stopped; return the exit code (see above)."""
    script.configure_logging()
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    try:
        script.load_env(PROJECT / ".env")
        for name in ("MAPPING_FILE", "DEAD_LETTER_MAPPING_FILE"):  # the script is a copy elsewhere
            setattr(script, name, MAPPINGS / getattr(script, name).name)
        ours, options, job = parse_options(argv)
        _lock = lock(ours.checkpoint)
        spark, java = open_session()
        stop = script.stop_on_signals()  # in the place of Spark's
        urls = script.shown_urls(options.elasticsearch_url)
        servers = f"Elasticsearch at {urls} or Kafka at {options.bootstrap_servers}"
        ready = partial(indexing.prepare, options, ours.index_by)
        wait = partial(script.wait_for, servers, ready, stop=stop)
        wait(wait_s=options.wait)
        source = indexing.source_options(options, os.environ, ours.max_readings)
        messages = spark.readStream.format("kafka").options(**source).load()
        totals: Counter[str] = Counter()
        stream = messages.writeStream.foreachBatch(partial(write_batch, job, totals))
        checkpoint = f"{ours.checkpoint}/{indexing.topic_id(java, source)}"
        stream = stream.option("checkpointLocation", checkpoint)
        trigger = {"availableNow": True} if ours.once else {"processingTime": "1 second"}
        log.info("indexing topic=%s into %s, see %s", options.topic, options.index, checkpoint)
        code = run(stream.trigger(**trigger), totals, stop, wait)
        log.info("stopped %s", shown(totals))
        return code
    except SetupError as exc:
        log.error("%s", exc)
        return 2
    except (PySparkException, Py4JError, OSError) as exc:
        log.error("Spark: %s", cause_of(str(exc)))
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
