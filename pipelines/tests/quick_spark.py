"""Spark's classes, read and checked once: every later Java of the tests starts in half the time."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyspark
import pytest

# Each Java of Spark lives for seconds: its slow, thorough compiler would be in the way. For the
# one that runs the code of all tests, the 48 MB that the quick compiler may fill are too few.
QUICK = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=128m"
# Beside the jars that it is made of: of others, Java takes no notice of it and says nothing.
ARCHIVE = Path(sys.prefix) / f"spark-{pyspark.__version__}.jsa"
# What is used of Spark: tables, files, streams.
WARM_UP = """
import sys
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[2]").getOrCreate()
table = spark.range(100).selectExpr("id % 7 AS k", "CAST(id AS STRING) AS text")
table.groupBy("k").count().orderBy("k").write.parquet(f"{sys.argv[1]}/table")
stream = spark.readStream.schema("k LONG, count LONG").parquet(f"{sys.argv[1]}/table")
query = stream.writeStream.trigger(availableNow=True).foreachBatch(lambda batch, _: batch.collect())
query.option("checkpointLocation", f"{sys.argv[1]}/checkpoint").start().awaitTermination()
spark.stop()
"""


def java_options() -> str:
    """Return the options of Spark's Java, for SPARK_SUBMIT_OPTS; the first time in half a minute.

    Raises:
        subprocess.CalledProcessError: Spark does not work.
    """
    if not ARCHIVE.exists():
        with TemporaryDirectory(dir=sys.prefix) as folder:
            made = Path(folder) / "classes.jsa"
            options = f"{QUICK} -XX:ArchiveClassesAtExit={made} -Xlog:disable"
            environ = {**os.environ, "SPARK_SUBMIT_OPTS": options}
            command = [sys.executable, "-c", WARM_UP, folder]
            subprocess.run(command, env=environ, check=True, capture_output=True)
            made.rename(ARCHIVE)  # at once: two sessions may make it at the same time
    return f"{QUICK} -XX:SharedArchiveFile={ARCHIVE} -Xlog:disable"


@pytest.fixture(scope="session", autouse=True)
def quick_spark() -> None:
    """Let every Spark that a test starts start so."""
    os.environ["SPARK_SUBMIT_OPTS"] = java_options()
