"""Spark for this folder's jobs: a Java of its own, with the connectors and all they depend on.

The connectors' jars lie in jars/, where `prepare.py --jars` or the first job puts them. What Java
says is kept in .spark/spark.log. Where this folder cannot be written (Spark's container), both are
in the system's folder for temporary files.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import pyspark
from py4j.java_gateway import JavaGateway
from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from pipelines.iot_cassandra.settings import FOLDER
from pipelines.spark import OFFERED, start_java, use_utf8

# The versions belong to Spark 3.5 and Scala 2.12.
PACKAGES = (
    "com.datastax.spark:spark-cassandra-connector_2.12:3.5.1",
    "org.apache.spark:spark-sql-kafka-0-10_2.12:3.5.7",
)
# Spark brings these itself; a second copy of Scala among the classes would not do.
EXCLUDED = (
    "org.scala-lang:scala-library",
    "org.scala-lang:scala-reflect",
    "org.apache.commons:commons-lang3",
    "org.slf4j:slf4j-api",
    "org.xerial.snappy:snappy-java",
    "org.lz4:lz4-java",
    "org.apache.hadoop:hadoop-client-api",
    "org.apache.hadoop:hadoop-client-runtime",
)
JARS = FOLDER / "jars"
IVY_SETTINGS = FOLDER.parent / "ivysettings.xml"
COMPLETE = ".complete"  # the file in the folder of jars that names the packages they are of


class SparkError(Exception):
    """What keeps Spark from working, in one line for the user."""


def state_folder() -> Path:
    """Return where Spark's files go: this folder, or another where it cannot be written."""
    if os.access(FOLDER, os.W_OK):
        return FOLDER
    return Path(tempfile.gettempdir()) / FOLDER.name


def connectors() -> list[Path]:
    """Return the connectors' jars; the first time they are fetched.

    Raises:
        SparkError: they cannot be fetched.
    """
    for folder in (JARS, state_folder() / "jars"):
        marker = folder / COMPLETE
        if marker.exists() and marker.read_text().split() == list(PACKAGES):
            return sorted(folder.glob("*.jar"))
    return fetch_jars(state_folder() / "jars")


def fetch_jars(folder: Path) -> list[Path]:
    """Put the connectors' jars into a folder, under their own names; return them.

    Spark's own resolver (Ivy) fetches them. Of its pages of output, a terminal shows the jars that
    have come; what went wrong is in the error.

    Raises:
        SparkError: it failed.
    """
    sys.stderr.write(f"fetching Spark's connectors once into {folder} ...\n")
    use_utf8(os.environ)
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "nothing.py")
        program.touch()
        settings = {
            "spark.jars.packages": ",".join(PACKAGES),
            "spark.jars.excludes": ",".join(EXCLUDED),
            "spark.jars.ivy": scratch,
            "spark.jars.ivySettings": IVY_SETTINGS.as_uri(),
        }
        options = [f"--conf={name}={value}" for name, value in settings.items()]
        home = os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent
        submit = Path(home, "bin/spark-submit")
        lines = []
        with subprocess.Popen(
            [submit, "--master=local", *options, program],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as ivy:
            for line in ivy.stdout or ():
                lines.append(line)
                if "[SUCCESSFUL" in line and sys.stderr.isatty():
                    sys.stderr.write(f"  {line.rpartition('!')[2]}")  # a jar, and its milliseconds
        found = list(Path(scratch, "jars").glob("*.jar"))
        if ivy.returncode or not found:
            telling = [line for line in lines if "rror" in line or "UNRESOLVED" in line] or lines
            why = telling[0].strip()[:200] if telling else "it printed nothing"
            raise SparkError(f"the connectors cannot be fetched from Maven Central: {why}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for jar in folder.glob("*.jar"):
                jar.unlink()  # of another version: two of them among the classes would not do
            for jar in found:  # Ivy has put its group and _ before a jar's name
                shutil.copyfile(jar, folder / jar.name.partition("_")[2])
            (folder / COMPLETE).write_text("\n".join(PACKAGES))
        except OSError as exc:
            raise SparkError(f"{exc.filename}: {exc.strerror}") from exc
    return sorted(folder.glob("*.jar"))


def submitted() -> dict[str, str]:
    """Return the settings that spark-submit was given, if it has started this process.

    They are those of the Java that it has started.
    """
    if OFFERED[0] not in os.environ:
        return {}
    pairs = launch_gateway().jvm.org.apache.spark.SparkConf().getAll()  # Scala's
    given = {pair.productElement(0): pair.productElement(1) for pair in pairs}
    own = ("spark.app.", "spark.submit.", "spark.repl.")
    return {name: value for name, value in given.items() if not name.startswith(own)}


def settings_of(given: dict[str, str], jars: list[Path]) -> dict[str, str]:
    """Return Spark's settings: those that spark-submit was given win, and its jars are added."""
    names = {jar.name for jar in jars}
    others = [jar for jar in given.get("spark.jars", "").split(",") if jar]
    others = [jar for jar in others if jar.rpartition("/")[2] not in names]
    settings = {
        "spark.master": "local[*]",
        "spark.app.name": "iot_cassandra",
        "spark.driver.memory": "1g",
        "spark.sql.session.timeZone": "UTC",  # as in Kafka and in Cassandra
        # One for each core of a small machine; the default of 200 is for a cluster.
        "spark.sql.shuffle.partitions": "2",
        **given,
        "spark.jars": ",".join([*(jar.as_uri() for jar in jars), *others]),
    }
    if settings["spark.master"].startswith("local"):  # elsewhere the workers must reach the driver
        settings |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return settings


def spark_session(
    options: dict[str, str] | None = None, locks: Sequence[TextIO] = ()
) -> tuple[SparkSession, JavaGateway]:
    """Return a session, with these settings besides, and the way to its Java.

    Args:
        options: settings of Spark.
        locks: open files that Java holds, too, as long as it lives.

    Raises:
        SparkError: the connectors cannot be fetched, or Spark does not start.
    """
    use_utf8(os.environ)
    log = state_folder() / ".spark/spark.log"
    settings = settings_of(submitted() | (options or {}), connectors())
    conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            held = [lock.fileno() for lock in locks]
            java = start_java(conf, stdout=output, stderr=output, pass_fds=held)
        return SparkSession(SparkContext(conf=conf, gateway=java)), java
    except Exception as exc:  # of many kinds, from two languages
        why = " ".join(str(exc).split())[:200]
        raise SparkError(f"Spark does not start ({why}): is Java 17 there? See {log}") from exc
