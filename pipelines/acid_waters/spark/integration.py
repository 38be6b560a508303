"""Archived lots become versions: checked, stored in HDFS, aggregated, published in PostgreSQL."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any
from uuid import uuid4

from pyspark.sql import DataFrame, SparkSession

from pipelines.acid_waters.hdfs.reference import read_reference
from pipelines.acid_waters.postgresql import history
from pipelines.acid_waters.postgresql.database import Connection, dimension_keys
from pipelines.acid_waters.spark import lots as transform

YEARS_AHEAD = 10  # so long a consumer may run: methods still in use are known until then
# What is archived of a message.
RAW = (
    "topic string, partition int, offset long, timestamp timestamp, key binary, value binary, "
    "headers array<struct<key: string, value: binary>>"
)


class Integration:
    """What turns archived lots into versions: the session, a connection, the reference tables."""

    def __init__(self, spark: SparkSession, conn: Connection, hdfs_url: str) -> None:
        self.spark = spark
        self.conn = conn
        self.hdfs_url = hdfs_url
        today = datetime.now(UTC).date()
        sites = read_reference(spark, hdfs_url, "sites")
        methods = read_reference(spark, hdfs_url, "methods")
        names = transform.parameter_rows()
        site_keys, parameter_keys, method_keys = dimension_keys(
            conn, sites, [(parameter, unit) for _, parameter, unit in names], methods
        )
        self.sites = spark.createDataFrame(
            [(key, row.SITE_ID, row.PROGRAM_ID) for key, row in zip(site_keys, sites, strict=True)],
            "site_key int, SITE_ID string, PROGRAM_ID string",
        )
        self.parameters = spark.createDataFrame(
            [(key, *row[:2]) for key, row in zip(parameter_keys, names, strict=True)],
            "parameter_key int, measure string, PARAMETER string",
        )
        keyed = spark.createDataFrame(
            [(key, *row) for key, row in zip(method_keys, methods, strict=True)],
            "method_key int, PROGRAM_ID string, PARAMETER string, START_YEAR int, END_YEAR int, "
            "METHOD string, METHOD_DESCRIPTION string",
        )
        self.methods = transform.choose_methods(keyed, today.year + YEARS_AHEAD).cache()

    def archive(self, messages: DataFrame) -> str:
        """Write Kafka messages into HDFS, byte for byte; return the new folder."""
        folder = f"raw/{new_name()}"
        raw = messages.drop("timestampType").coalesce(1)
        raw.write.parquet(f"{self.hdfs_url}/{folder}")
        return folder

    def integrate(
        self, raw_path: str, topic: str, condition: str = "true", attempt: int = 0
    ) -> list[Any]:
        """Check, store and publish archived lots; return what became of each, in order.

        Args:
            raw_path: folder of the archive.
            topic: whose messages are there.
            condition: which of its messages, in SQL.
            attempt: 0 from Kafka, more when they are processed again.
        """
        archive = self.spark.read.schema(RAW).parquet(f"{self.hdfs_url}/{raw_path}")
        messages = archive.where(condition)
        lots = transform.read_lots(messages)
        samples = transform.read_samples(lots)
        today = datetime.now(UTC).date()
        checked = transform.check(lots, samples, self.sites, today)
        found = sorted(checked.collect(), key=itemgetter("sent_at_ms", *transform.LOT))
        common = {"topic": topic, "attempt": attempt, "raw_path": raw_path}
        received = [{**row.asDict(), **common, "sent_at": moment(row.sent_at_ms)} for row in found]
        ids = history.receive(self.conn, received)
        good = {
            lot_id: (row["partition"], row["offset"])
            for lot_id, row in zip(ids, found, strict=True)
            if row.reason is None
        }
        folder = f"dataset/{new_name()}"
        facts = self.store(samples, good, folder) if good else {}
        verdicts = [
            history.Verdict(lot_id, row.reason, folder)
            for lot_id, row in zip(ids, found, strict=True)
        ]
        return history.publish(self.conn, verdicts, facts)

    def store(
        self, samples: DataFrame, good: Mapping[int, tuple[int, int]], folder: str
    ) -> dict[str, list[Any]]:
        """Write the rows of good lots into a file in HDFS; return the facts of what is in it."""
        ids = [(lot_id, *place) for lot_id, place in good.items()]
        named = self.spark.createDataFrame(ids, "lot_id long, partition int, offset long")
        rows = transform.typed(samples.join(named, transform.LOT)).drop(*transform.LOT)
        rows = rows.coalesce(1).sortWithinPartitions("lot_id", "row")
        path = f"{self.hdfs_url}/{folder}"
        rows.write.parquet(path)
        stored = self.spark.read.schema(rows.schema).parquet(path).cache()
        values = transform.measures(stored, self.sites, self.parameters, self.methods)
        try:
            return {
                "fact_measure": transform.measure_facts(values).collect(),
                "fact_sample": transform.sample_facts(stored, self.sites).collect(),
            }
        finally:
            stored.unpersist()

    def reprocess(self, target: str) -> list[Any]:
        """Process an archived lot again: "last" for the last good one, else a batch id.

        Raises:
            VersionError: there is none.
        """
        lot = history.archived_lot(self.conn, None if target == "last" else target)
        place = f"partition = {lot.partition} AND offset = {lot.offset}"
        return self.integrate(lot.raw_path, lot.topic, place, lot.next_attempt)


def moment(milliseconds: int) -> datetime:
    """Return a time that Kafka has given.

    >>> moment(1_500).isoformat()
    '1970-01-01T00:00:01.500000+00:00'
    """
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


def new_name() -> str:
    """Return a folder's name that nobody has used: names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:12]}"
