"""Keep the streams going: start again what an outage has stopped, end what cannot go on."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql.streaming.query import StreamingQuery

from pipelines.smarttech.lake import LakeError
from pipelines.smarttech.spark_session import one_line
from pipelines.smarttech.streams import Pipeline

log = logging.getLogger("smarttech")

POLL_S = 0.2
RESTART_BASE_S, RESTART_CAP_S = 0.5, 30.0
RESTARTS = 3  # of one stream, in a row without a batch, while Kafka answers
# What Spark and Delta say when another job writes by the same checkpoint. To start again would
# write that job's rows a second time.
NOT_ALONE = ("Multiple streaming", "ConcurrentTransaction")


class Supervisor:
    """Runs streams until they are done or told to stop; starts again those that fail.

    Attributes:
        rows: what each stream has taken in.
    """

    def __init__(self, pipeline: Pipeline, stop: threading.Event) -> None:
        self.pipeline = pipeline
        self.stop = stop
        self.queries: dict[str, StreamingQuery] = {}
        self.rows: Counter[str] = Counter()
        self.last_batch: dict[str, int] = {}
        self.failures: Counter[str] = Counter()  # in a row, without a batch in between
        self.retry_at: dict[str, float] = {}

    def run(self, stages: Sequence[str]) -> None:
        """Run streams side by side until they end by themselves, or told to stop.

        Raises:
            LakeError: one fails again and again although Kafka answers, or must not go on.
        """
        pending = list(stages)
        try:
            while pending and not self.stop.is_set():
                for stage in list(pending):
                    if self.advance(stage):
                        pending.remove(stage)
                self.stop.wait(POLL_S)
        finally:
            for stage, query in self.queries.items():
                self.note_progress(stage)
                if query.isActive:
                    query.stop()

    def advance(self, stage: str) -> bool:
        """Start a stream, or see after it; return whether it has ended well."""
        if time.monotonic() < self.retry_at.get(stage, 0):
            return False
        query = self.queries.get(stage)
        try:
            if query is None:
                self.queries[stage] = self.pipeline.start(stage)
                return False
            self.note_progress(stage)
            if query.isActive:
                return False
            failure: Exception | None = query.exception()
            if not failure:
                return True
            del self.queries[stage]
        except (PySparkException, Py4JJavaError) as exc:  # it did not start
            failure = exc
        self.note_failure(stage, failure)
        return False

    def note_progress(self, stage: str) -> None:
        """Count and log the batches that a stream has done since the last time."""
        query = self.queries[stage]
        seen = self.last_batch.get(stage, -1)
        for progress in query.recentProgress:
            rows, batch_id = progress["numInputRows"], progress["batchId"]
            if batch_id <= seen or not rows:
                continue
            self.last_batch[stage] = batch_id
            self.failures[stage] = 0
            self.rows[stage] += rows
            if stage == "bronze":  # the others have more to say, and say it themselves
                took_s = progress["durationMs"]["triggerExecution"] / 1000
                log.info("bronze batch=%d rows=%d seconds=%.1f", batch_id, rows, took_s)

    def note_failure(self, stage: str, failure: BaseException) -> None:
        """Say why a stream has failed, and when it is started again.

        Raises:
            LakeError: that is of no use, or would double rows.
        """
        options = self.pipeline.options
        reason = one_line(failure)
        if any(said in str(failure) for said in NOT_ALONE):
            raise LakeError(f"another job works by {options.checkpoint}, stop one: {reason}")
        self.failures[stage] += 1
        if self.failures[stage] > RESTARTS and kafka_answers(options.bootstrap_servers):
            raise LakeError(f"{stage} cannot go on: {reason} (see {options.lake / 'spark.log'})")
        delay_s = min(RESTART_CAP_S, RESTART_BASE_S * 2 ** min(self.failures[stage], 10))
        self.retry_at[stage] = time.monotonic() + delay_s
        log.warning("%s failed, again in %.0f s: %s", stage, delay_s, reason)


def kafka_answers(bootstrap_servers: str) -> bool:
    """Return whether a broker answers."""
    try:
        KafkaConsumer(bootstrap_servers=bootstrap_servers.split(",")).close()
    except KafkaError:
        return False
    return True
