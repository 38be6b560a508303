"""The Spark session of this pipeline, and its jars.

The jars come from Maven Central, once, into a folder of the user's. The Java that spark-submit
starts does not have them, so whatever starts a script, its session has a Java of its own: with the
settings below, and over them those that spark-submit was given.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pyspark
from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from pipelines.spark import OFFERED, start_java, use_utf8
from stack.compose import StackError
from stack.servers import java_home

HERE = Path(__file__).resolve().parent
CACHE = Path.home() / ".cache/smart-city-spark"
# As a URI, in which a space or an accent of the folder's name is safe on Java's command line.
LOGGING = (HERE / "log4j2.properties").as_uri()
SETTINGS = {
    "spark.master": "local[2]",
    "spark.driver.memory": "1g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": str(os.isatty(2)).lower(),  # on a terminal's stderr
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "false",  # a text that is no number gives null, which is looked for
    # Times before 1900 are written as they are: a message can have any.
    "spark.sql.parquet.int96RebaseModeInWrite": "CORRECTED",
    "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={LOGGING}",
    # The DataNode is reached by the name it announces: its address is a container's own.
    "spark.hadoop.dfs.client.use.datanode.hostname": "true",
    "spark.hadoop.dfs.replication": "1",
    # Seconds, instead of ten: the consumer itself tries again, and says so.
    "spark.hadoop.ipc.client.connect.max.retries": "2",
}


class SparkError(Exception):
    """Why Spark cannot work, in one line for the user."""


def new_session(name: str) -> SparkSession:
    """Return a session.

    Raises:
        SparkError: the jars cannot be fetched, or Java does not start.
    """
    use_utf8(os.environ)  # for Maven's Java, too
    try:
        java_home(os.environ)
        SparkContext(conf=spark_conf().setAppName(name), gateway=java())
        return SparkSession.builder.getOrCreate()
    except StackError as exc:
        raise SparkError(str(exc)) from exc
    except (PySparkException, Py4JError, OSError) as exc:
        raise SparkError(
            f"Spark does not start: {one_line(exc)} (Java 17 is needed; what Java says is above)"
        ) from exc


@cache
def java() -> Any:
    """Return the way to Spark's Java process (a gateway of py4j), which is started the first time.

    Raises:
        SparkError: the jars cannot be fetched.
        PySparkException, OSError: Java does not start.
    """
    return start_java(spark_conf())


@cache
def spark_conf() -> SparkConf:
    """Return what Spark is started with.

    Raises:
        SparkError: the jars cannot be fetched.
    """
    given = submitted()
    jars = [jar.as_uri() for jar in sorted(kafka_jars().glob("*.jar"))]
    jars += filter(None, [given.pop("spark.jars", "")])
    return SparkConf().setAll([*SETTINGS.items(), *given.items(), ("spark.jars", ",".join(jars))])


def submitted() -> dict[str, str]:
    """Return the settings that spark-submit was given, {} when it has not started this process."""
    if OFFERED[0] not in os.environ:
        return {}
    gateway = launch_gateway()  # to the Java of spark-submit, which has them as its properties
    properties = dict(gateway.jvm.java.lang.System.getProperties())
    gateway.close()
    return {
        name: value
        for name, value in properties.items()
        if name.startswith("spark.") and not name.startswith(("spark.submit.", "spark.app."))
    }


def kafka_jars() -> Path:
    """Return the folder with the jars of pom.xml, filled by Maven the first time.

    Raises:
        SparkError: Maven is not installed, or failed.
    """
    folder = CACHE / f"acid_waters-{pyspark.__version__}"
    if folder.exists():
        return folder
    if not shutil.which("mvn"):
        raise SparkError("Maven (mvn) is not installed: it fetches Spark's Kafka source")
    sys.stderr.write(f"fetching Spark's Kafka source once into {folder} ...\n")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    options = [f"-DoutputDirectory={partial}", f"-Dspark.version={pyspark.__version__}"]
    command = ["mvn", "-B", "-q", "-Dstyle.color=never", "-f", str(HERE / "pom.xml"), goal]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["it printed nothing"]
        raise SparkError(f"Maven cannot fetch Spark's Kafka source: {lines[0]}")
    partial.rename(folder)  # all or nothing
    return folder


def one_line(exc: BaseException) -> str:
    """Return what an error says, without the trace of Java's or Python's calls."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    telling = (causes or lines or [type(exc).__name__])[-1 if causes else 0]
    return telling[:300]
