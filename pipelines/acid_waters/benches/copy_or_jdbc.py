#!/usr/bin/env python3
"""Measure three ways of bringing facts from Spark into PostgreSQL, the one that runs.

    python benches/copy_or_jdbc.py            # a few minutes, on a quiet machine

    way            rows/s: min  median     max
    copy                  ....    ....    ....   12000 rows
    ...

copy          as the consumer does: Spark's rows are collected, psycopg sends them by COPY.
jdbc          Spark's own writer with PostgreSQL's driver, as it comes: INSERT, 1000 rows a batch.
jdbc_rewrite  the same with the driver's reWriteBatchedInserts: several rows in one INSERT.

12 000 rows are the facts of eight lots of 100 samples; 500 000 about those of the whole release.
The rows are in Spark's cache when the clock starts; they go into a table of its own, which is
dropped at the end. The ways take turns, and a wrong number of rows ends the bench.

Environment (or .env in the pipeline's folder, then in the project's; an option wins over all):
    POSTGRESQL_URL   default postgresql://water@localhost:5433/water

Exit codes: 0 measured, 1 PostgreSQL or Spark unreachable, or rows are missing; 2 wrong usage.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import psycopg
from pyspark.sql import DataFrame

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.postgresql.database import Connection, connect  # noqa: E402
from pipelines.acid_waters.settings import HERE, command_line  # noqa: E402
from pipelines.acid_waters.spark.spark_session import (  # noqa: E402
    CACHE,
    SparkError,
    new_session,
    spark_conf,
)
from pipelines.common import load_env, number, say  # noqa: E402
from stack.console import CommandError, command  # noqa: E402

DRIVER = "42.7.8"  # of org.postgresql:postgresql
SIZES = (12_000, 500_000)
# fact_measure without its references to other tables, whose rows would have to be there.
TABLE = """CREATE TABLE bench_facts (LIKE fact_measure INCLUDING ALL)"""
FACTS = [
    "id DIV 1500 AS lot_id", "CAST(id % 12 AS int) AS site_key",
    "CAST(id DIV 12 % 22 AS int) AS parameter_key", "0 AS method_key",
    "CAST(1980 + id DIV 264 % 40 AS int) AS year", "'Lake' AS waterbody_type", "1 AS count",
    *(f"CAST(id % 997 / 7 AS decimal(24, 12)) AS {name}" for name in ("total", "min", "max")),
]  # fmt: skip


def driver_jar() -> Path:
    """Return PostgreSQL's JDBC driver, fetched by Maven the first time.

    Raises:
        SparkError: Maven fails.
    """
    jar = CACHE / f"jdbc/postgresql-{DRIVER}.jar"
    if not jar.exists():
        goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
        artifact = f"-Dartifact=org.postgresql:postgresql:{DRIVER}"
        fetch = ["mvn", "-B", "-q", "-Dstyle.color=never", goal, artifact]
        if subprocess.run([*fetch, f"-DoutputDirectory={jar.parent}"], check=False).returncode:
            raise SparkError("Maven cannot fetch PostgreSQL's JDBC driver")
    return jar


def by_copy(conn: Connection, facts: DataFrame) -> None:
    """Write facts as history.publish does."""
    rows = facts.collect()
    with conn.transaction(), conn.cursor().copy("COPY bench_facts FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def by_jdbc(conn: Connection, facts: DataFrame, options: str) -> None:
    """Write facts as Spark does, to the same server."""
    info = conn.info
    url = f"jdbc:postgresql://{info.host}:{info.port}/{info.dbname}{options}"
    properties = {"driver": "org.postgresql.Driver", "user": info.user, "password": info.password}
    facts.write.jdbc(url, "water.bench_facts", mode="append", properties=properties)


WAYS: dict[str, Callable[[Connection, DataFrame], None]] = {
    "copy": by_copy,
    "jdbc": partial(by_jdbc, options=""),
    "jdbc_rewrite": partial(by_jdbc, options="?reWriteBatchedInserts=true"),
}


def measure(conn: Connection, facts: DataFrame, rows: int, way: str) -> float:
    """Return the rows a second of one way.

    Raises:
        CommandError: rows are missing afterwards.
    """
    conn.execute("TRUNCATE bench_facts")
    began = time.monotonic()
    WAYS[way](conn, facts)
    took = time.monotonic() - began
    found = conn.execute("SELECT count(*) FROM bench_facts").fetchone()[0]
    if found != rows:
        raise CommandError(f"{found} rows are there, {rows} were written")
    return rows / took


@command("copy_or_jdbc", {SparkError: 1, psycopg.Error: 1})
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code (see the module docstring)."""
    load_env(HERE)
    parser = command_line(__doc__, os.environ, "--postgresql-url")
    parser.add_argument(
        "--runs", type=number(1, 100, int), default=5, metavar="N", help="(default: 5)"
    )
    options = parser.parse_args(argv)
    with connect(options.postgresql_url) as conn:
        conf = spark_conf()
        conf.set("spark.jars", f"{conf.get('spark.jars')},{driver_jar().as_uri()}")
        spark = new_session("copy_or_jdbc")
        conn.execute("DROP TABLE IF EXISTS bench_facts")
        conn.execute(TABLE)
        say(f"{'way':<14} rows/s:{'min':>8}{'median':>8}{'max':>8}")
        for rows in SIZES:
            facts = spark.range(0, rows, 1, 2).selectExpr(*FACTS).cache()
            for way in WAYS:
                measure(conn, facts, rows, way)  # fills the cache, and warms Java up
            turns = [{way: measure(conn, facts, rows, way) for way in WAYS}
                     for _ in range(options.runs)]  # fmt: skip
            for way in WAYS:
                rates = [turn[way] for turn in turns]
                shown = f"{min(rates):>8.0f}{median(rates):>8.0f}{max(rates):>8.0f}"
                say(f"{way:<21}{shown}   {rows} rows")
        conn.execute("DROP TABLE bench_facts")
        spark.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
