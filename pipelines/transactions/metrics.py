"""What the job counts, for its log and for Prometheus."""

import logging
from collections import Counter
from collections.abc import Mapping
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram, start_http_server
from prometheus_client import Counter as Total

log = logging.getLogger("consumer_spark")


class Metrics:
    """Counts of this run, for the log and for Prometheus; one for a process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.counts: Counter[str] = Counter()
        counter = partial(Total, registry=registry)
        self.read = counter("transactions_read", "Records read from Kafka")
        self.written = counter("transactions_written", "Transactions written to output/")
        self.rejected = counter("transactions_rejected", "Records written to rejects/", ["reason"])
        self.failures = counter("transactions_failures", "Batches tried again after an error")
        buckets = (0.5, 1, 2, 5, 10, 30, 60)
        self.batch_seconds = Histogram(
            "transactions_batch_seconds", "Duration of a batch", buckets=buckets, registry=registry
        )
        gauge = partial(Gauge, registry=registry)
        self.last_batch = gauge(
            "transactions_last_batch_timestamp_seconds", "When the last batch was written"
        )
        self.lag = gauge("transactions_lag_records", "Records that the last batch did not reach")
        self.last_id = -1

    def note(
        self, batch_id: int, read: int, reasons: Mapping[str | None, int], seconds: float
    ) -> None:
        """Count a batch that is written.

        Args:
            batch_id: its number.
            read: records that Kafka gave.
            reasons: rows written, by the reason for their refusal, None for the valid ones.
            seconds: how long it took.
        """
        if batch_id <= self.last_id:
            return  # done again, as its commit had failed: counted already
        self.last_id = batch_id
        by_reason = {reason: n for reason, n in reasons.items() if reason}
        written, rejected = reasons.get(None, 0), sum(by_reason.values())
        self.counts.update(read=read, written=written, rejected=rejected)
        self.read.inc(read)
        self.written.inc(written)
        for reason, number in by_reason.items():
            self.rejected.labels(reason).inc(number)
        self.batch_seconds.observe(seconds)
        self.last_batch.set_to_current_time()
        why = ",".join(f"{reason}:{n}" for reason, n in sorted(by_reason.items()))
        log.info(
            "batch id=%d read=%d written=%d rejected=%d seconds=%.1f%s",
            batch_id, read, written, rejected, seconds, f" reasons={why}" if why else "",
        )  # fmt: skip


def serve_metrics(port: int) -> None:
    """Answer /metrics on a loopback port, in a thread that ends with the process.

    Raises:
        ValueError: the port is taken.
    """
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as exc:
        raise ValueError(f"--metrics-port {port}: {exc.strerror}: choose another") from exc
