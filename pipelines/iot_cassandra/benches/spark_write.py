"""One measured run of bench.py: what Spark's connector takes to write the readings of a topic.

Reading and judging them is done before the clock starts: the rows lie in Spark's cache. Prints the
seconds for both tables.
"""

import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.iot_cassandra.scripts.spark_cassandra import write_rows  # noqa: E402
from pipelines.iot_cassandra.scripts.transforms import judged  # noqa: E402
from pipelines.iot_cassandra.settings import TABLES  # noqa: E402
from pipelines.iot_cassandra.spark_session import spark_session  # noqa: E402


def main() -> int:
    """Write once, print the seconds; return 0."""
    kafka, topic, hosts, keyspace = sys.argv[1:]
    options = {"spark.cassandra.connection.host": hosts, "spark.master": "local[2]"}
    spark, _ = spark_session(options)
    source = {
        "kafka.bootstrap.servers": kafka,
        "kafka.isolation.level": "read_committed",
        "subscribe": topic,
    }
    rows = judged(spark.read.format("kafka").options(**source).load()).cache()
    rows.count()
    began = time.monotonic()
    for table, columns in TABLES.items():
        write_rows(rows.select(*columns, "write_time"), keyspace, table, writetime="write_time")
    sys.stdout.write(f"seconds={time.monotonic() - began:.3f}\n")
    spark.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
