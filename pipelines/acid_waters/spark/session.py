"""The Spark session of this pipeline, and its jars."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.accumulators import AccumulatorServer
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

HERE = Path(__file__).resolve().parent
JARS = HERE / "jars"  # git ignores it
SETTINGS = {
    "spark.master": "local[2]",
    "spark.driver.memory": "1g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "false",  # a text that is no number gives null, which is looked for
    # Times before 1900 are written as they are: a message can have any.
    "spark.sql.parquet.int96RebaseModeInWrite": "CORRECTED",
    "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{HERE}/log4j2.properties",
    # The DataNode is reached by the name it announces: its address is a container's own.
    "spark.hadoop.dfs.client.use.datanode.hostname": "true",
    "spark.hadoop.dfs.replication": "1",
}


class SparkError(Exception):
    """Why Spark cannot work, in one line for the user."""


def new_session(name: str) -> SparkSession:
    """Return a session.

    Raises:
        SparkError: the jars cannot be fetched, or Java does not start.
    """
    # When Java dies, this server within Python would print a trace. What is left to do then fails
    # too, and that is said.
    AccumulatorServer.handle_error = lambda *_: None
    try:
        SparkContext(conf=spark_conf().setAppName(name), gateway=java())
        return SparkSession.builder.getOrCreate()
    except (PySparkException, Py4JError, OSError) as exc:
        raise SparkError(f"Spark does not start: {exc} (Java 17 is needed)") from exc


@cache
def java() -> Any:
    """Return the way to Spark's Java process (a gateway of py4j), which is started the first time.

    Raises:
        SparkError: the jars cannot be fetched.
        PySparkException, OSError: Java does not start.
    """
    return launch_gateway(spark_conf())


def spark_conf() -> SparkConf:
    """Return what Spark is started with.

    Raises:
        SparkError: the jars cannot be fetched.
    """
    jars = ",".join(str(jar) for jar in sorted(kafka_jars().glob("*.jar")))
    return SparkConf().setAll([("spark.jars", jars), *SETTINGS.items()])


def kafka_jars() -> Path:
    """Return the folder with the jars of pom.xml, filled by Maven the first time.

    Raises:
        SparkError: Maven is not installed, or failed.
    """
    if JARS.exists():
        return JARS
    if not shutil.which("mvn"):
        raise SparkError("Maven (mvn) is not installed: it fetches Spark's Kafka source")
    partial = JARS.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    command = ["mvn", "-B", "-q", "-f", str(HERE / "pom.xml"), goal, f"-DoutputDirectory={partial}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["it printed nothing"]
        raise SparkError(f"Maven cannot fetch Spark's Kafka source: {lines[0]}")
    partial.rename(JARS)  # all or nothing
    return JARS


def one_line(exc: BaseException) -> str:
    """Return what an error says, without the trace of Java's or Python's calls."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    telling = (causes or lines or [type(exc).__name__])[-1 if causes else 0]
    return telling[:300]
