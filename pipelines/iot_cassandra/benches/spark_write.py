"""One measured run of bench.py: what Spark's connector takes to write the readings of a topic.

Reading and judging them is done before the clock starts: the rows lie in Spark's cache. Prints the
seconds for both tables.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # spark-submit knows only this folder

from pipelines.iot_cassandra.scripts import spark_cassandra as job


def main() -> int:
    """Write once, print the seconds; return 0."""
    kafka, topic, hosts, keyspace = sys.argv[1:]
    spark = job.session(hosts)
    source = {
        "kafka.bootstrap.servers": kafka,
        "kafka.isolation.level": "read_committed",
        "subscribe": topic,
    }
    rows = job.judged(spark.read.format("kafka").options(**source).load()).cache()
    rows.count()
    began = time.monotonic()
    for table, columns in job.TABLES.items():
        chosen = rows.select(*columns, "write_time")
        job.write_rows(chosen, keyspace, table, writetime="write_time")
    sys.stdout.write(f"seconds={time.monotonic() - began:.3f}\n")
    spark.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
