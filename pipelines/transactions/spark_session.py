"""Spark on this machine, with the connectors to Kafka and S3.

The connectors come from Maven Central, once: Spark's own resolver (Ivy) fetches them into a folder
of the user's, and its pages of output are kept out of sight. Later sessions take them from there.

Environment (or .env in this folder, or in the project's):
    SPARK_MASTER          default local[2]
    SPARK_DRIVER_MEMORY   default 1g
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from pyspark import SparkConf, SparkContext
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from pipelines.spark import start_java, use_utf8
from pipelines.transactions.store import LOOPBACK, Store
from stack.console import CommandError

# The S3 client in three parts instead of its bundle of 268 MB.
PACKAGES = (
    "org.apache.spark:spark-sql-kafka-0-10_2.12:3.5.7",
    "org.apache.hadoop:hadoop-aws:3.3.4",
    "com.amazonaws:aws-java-sdk-s3:1.12.262",
    "com.amazonaws:aws-java-sdk-sts:1.12.262",
    "com.amazonaws:aws-java-sdk-dynamodb:1.12.262",
)
EXCLUDED = "com.amazonaws:aws-java-sdk-bundle"
IVY_SETTINGS = Path(__file__).resolve().parents[1] / "ivysettings.xml"
FOLDER = Path.home() / ".cache/smart-city-spark/transactions-3.5.7"
LOGGING = Path(__file__).with_name("log4j2.properties")
SPARK_LOG = Path(__file__).with_name(".spark") / "spark.log"


class SparkError(CommandError):
    """What keeps Spark from starting, in one line for the user."""


def spark_session(
    name: str, store: Store, locks: Sequence[TextIO] = ()
) -> tuple[SparkSession, Any]:
    """Return a session of this process's own, in UTC, with what Spark says in SPARK_LOG.

    Args:
        name: of the application.
        store: what Spark reads and writes.
        locks: open files that Java holds, too, as long as it lives.

    Returns:
        The session, and py4j's gateway to its Java: `jvm`, by which Python calls it, and `proc`,
        its process.

    Raises:
        SparkError: the connectors cannot be fetched, or Java does not start.
    """
    use_utf8(os.environ)
    # In the environment, as any user can read a command line; Spark takes them from there.
    os.environ.update(AWS_ACCESS_KEY_ID=store.user, AWS_SECRET_ACCESS_KEY=store.password)
    os.environ.pop("AWS_SESSION_TOKEN", None)
    if urlsplit(store.endpoint).hostname in LOOPBACK:  # no proxy leads there; Spark would ask it
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
            os.environ.pop(name, None)
    settings = (("SPARK_MASTER", "local[2]"), ("SPARK_DRIVER_MEMORY", "1g"))
    master, memory = (os.environ.get(name) or default for name, default in settings)
    jars = connectors()
    SPARK_LOG.parent.mkdir(exist_ok=True)
    conf = SparkConf().setAppName(name).setMaster(master).set("spark.driver.memory", memory)
    conf.setAll([*spark_options(jars).items(), *store.spark_options().items()])
    try:
        java = start_java(conf, pass_fds=[lock.fileno() for lock in locks])
        return SparkSession(SparkContext(conf=conf, gateway=java)), java
    except Exception as exc:  # of many kinds, from two languages
        raise SparkError(
            f"Spark does not start ({last_cause(exc)}): is Java 17 there? See {SPARK_LOG}"
        ) from exc


def last_cause(exc: BaseException) -> str:
    """Return the innermost cause of a Java error as one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")]
    text = (causes or [line for line in lines if "Exception" in line] or lines or [repr(exc)])[-1]
    return text.removeprefix("Caused by:").strip(": ")[:300]


def read_parquet(spark: SparkSession, url: str) -> DataFrame | None:
    """Return what a folder of Parquet files holds; None without a finished file in it."""
    try:
        return spark.read.parquet(url)
    except AnalysisException as exc:
        if exc.getErrorClass() in ("PATH_NOT_FOUND", "UNABLE_TO_INFER_SCHEMA"):
            return None
        raise


def spark_options(jars: list[Path]) -> dict[str, str]:
    """Return Spark's settings for one machine."""
    return {
        "spark.jars": ",".join(map(str, jars)),
        "spark.driver.extraJavaOptions": (
            # The folder's name may have spaces and accents: a URI, and a text in quotes.
            f'-Dlog4j2.configurationFile={LOGGING.as_uri()} "-Dspark.log.file={SPARK_LOG}"'
        ),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": str(os.isatty(2)).lower(),  # on a terminal's stderr
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        # What other readers expect: an instant in UTC. Spark's own default is INT96, of no zone.
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        # As they are, before 1900 too: the default, for the sake of Spark 2, is to fail there.
        "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
        # No empty _SUCCESS beside the data: here a batch is complete when its checkpoint says so.
        "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
    }


def connectors() -> list[Path]:
    """Return the connectors' jars, fetched the first time.

    Raises:
        SparkError: Maven Central does not answer, or has not got them.
    """
    complete = FOLDER / "complete"
    if not complete.exists():
        sys.stderr.write(f"fetching Spark's connectors once into {FOLDER} ...\n")
        use_utf8(os.environ)
        settings = {
            "spark.jars.packages": ",".join(PACKAGES),
            "spark.jars.excludes": EXCLUDED,
            "spark.jars.ivy": str(FOLDER),
            "spark.jars.ivySettings": IVY_SETTINGS.as_uri(),
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
        }
        code = "from pyspark.sql import SparkSession\n"
        code += (
            f"SparkSession.builder.master('local').config(map={settings!r}).getOrCreate().stop()"
        )
        fetched = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if fetched.returncode != 0:
            lines = [
                line for line in fetched.stderr.splitlines() if "rror" in line or "UNRES" in line
            ]
            telling = (lines or fetched.stderr.splitlines() or ["it printed nothing"])[0].strip()
            raise SparkError(
                f"the connectors cannot be fetched from Maven Central: {telling[:200]}"
            )
        complete.touch()
    return sorted((FOLDER / "jars").glob("*.jar"))
