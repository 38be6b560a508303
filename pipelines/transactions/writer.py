"""Write a batch into the bucket: what is right under output/, what is not under rejects/."""

import logging
import time

from py4j.protocol import Py4JError
from pyarrow import fs
from pyspark.errors import PySparkException
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # as Spark's own documentation does

from pipelines.transactions.metrics import Metrics
from pipelines.transactions.rules import judge, parse, rates_frame, with_values
from pipelines.transactions.spark_session import last_cause
from pipelines.transactions.store import MODEL, OUTPUT, REJECTS, Store, StoreError

log = logging.getLogger("consumer_spark")
WRITTEN = (
    "transaction_id", "montant", "devise", "montant_eur", "taux", "taux_date", "timestamp_utc",
    "timestamp_paris", "score", "suspect", "kafka_partition", "kafka_offset", "date", "batch_id",
)  # fmt: skip
REJECTED = ("reason", "detail", "value", "kafka_partition", "kafka_offset", "batch_id")


class Writer:
    """Writes batches into the bucket.

    Attributes:
        may_be_replay: whether the next batch may have been begun before: the first of a query.
    """

    def __init__(self, spark: SparkSession, store: Store, metrics: Metrics, score: bool) -> None:
        self.spark = spark
        self.store = store
        self.metrics = metrics
        self.may_be_replay = True
        self.rates = rates_frame(spark).cache()
        self.currencies = {row["rate_currency"] for row in self.rates.collect()}
        self.model = load_model(store) if score else None

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        """Write a batch: what is right under output/, what is not under rejects/."""
        began = time.monotonic()
        if self.may_be_replay:
            self.delete(batch_id)
        values = with_values(parse(batch), self.rates)
        rows = judge(values, self.currencies).withColumn("batch_id", F.lit(batch_id)).persist()
        try:
            counted = rows.groupBy("reason").count().collect()
            reasons = {row["reason"]: row["count"] for row in counted}
            # Asked of Kafka anew: of the rows it would agree with itself, whatever became of them.
            if (read := batch.count()) != (found := sum(reasons.values())):
                raise ValueError(f"batch {batch_id} has {read} records, but {found} rows of them")
            if reasons.get(None):
                valid = with_score(rows.where("reason IS NULL"), self.model)
                # One file for each day of the batch.
                files = valid.select(*WRITTEN).repartition("date").write
                files.mode("append").partitionBy("date", "batch_id").parquet(self.store.url(OUTPUT))
            if reasons.keys() - {None}:
                files = rows.where("reason IS NOT NULL").select(*REJECTED).coalesce(1).write
                files.mode("append").partitionBy("batch_id").parquet(self.store.url(REJECTS))
        finally:
            rows.unpersist()
        self.may_be_replay = False
        if reasons:
            self.metrics.note(batch_id, read, reasons, time.monotonic() - began)
        if 2 * reasons.get("no_rate", 0) > sum(reasons.values()):
            log.warning("no_rate: %d; rates.csv is too old (rates.py)", reasons["no_rate"])

    def delete(self, batch_id: int) -> None:
        """Delete what an earlier attempt has left of a batch."""
        client, bucket = self.store.filesystem(), self.store.bucket
        days = client.get_file_info(fs.FileSelector(f"{bucket}/{OUTPUT}", allow_not_found=True))
        # _temporary: what a job that was killed while it committed has left there, Hadoop takes for
        # a part of the next job, and commits with it.
        left = [
            *(f"{day.path}/batch_id={batch_id}" for day in days if "=" in day.base_name),
            f"{bucket}/{REJECTS}/batch_id={batch_id}",
            f"{bucket}/{OUTPUT}/_temporary",
            f"{bucket}/{REJECTS}/_temporary",
        ]
        for found in client.get_file_info(left):
            if found.type == fs.FileType.Directory:
                log.info("batch id=%d was begun before: deleting %s", batch_id, found.path)
                client.delete_dir(found.path)


def with_score(rows: DataFrame, model: PipelineModel | None) -> DataFrame:
    """Return the rows with `score` and `suspect` (see score.py); null without a model."""
    if model is None:
        return rows.selectExpr("*", "CAST(null AS DOUBLE) score", "CAST(null AS BOOLEAN) suspect")
    return model.transform(rows)


def check_model(store: Store) -> None:
    """Make sure that score.py has stored a score.

    Raises:
        StoreError: it has not.
    """
    found = store.filesystem().get_file_info(f"{store.bucket}/{MODEL}/metadata")
    if found.type == fs.FileType.NotFound:
        raise StoreError(
            "--score: there is no trained score in the bucket: run python score.py first"
        )


def load_model(store: Store) -> PipelineModel:
    """Return the trained score.

    Raises:
        StoreError: it is not whole.
    """
    try:
        return PipelineModel.load(store.url(MODEL))
    except (PySparkException, Py4JError, ValueError) as exc:
        raise StoreError(
            f"--score: the trained score in the bucket is not whole ({last_cause(exc)}): "
            "run python score.py again"
        ) from exc
