"""Sending to Kafka: the producer, the counts of what became of each message, and the ledger."""

import csv
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError

from pipelines.common import close_producer
from pipelines.iot_cassandra.kafka_topic import create_topic
from pipelines.iot_cassandra.settings import one_line

log = logging.getLogger("iot_simulator")

PROGRESS_S = 5.0
FLUSH_S = 10.0  # without an acknowledgement, at the end
MAX_PENDING = 20_000  # messages whose outcome is not known yet
LEDGER_COLUMNS = ["partition", "offset", "message"]


class Ledger:
    """The CSV file of what was sent and where Kafka has stored it; without a path, no file.

    Raises:
        OSError: it cannot be made, or is there already: another run's must not be overwritten.
    """

    def __init__(self, path: Path | None) -> None:
        # Each line is written at once, so that a run that is killed loses none.
        self.file = path.open("x", buffering=1, encoding="utf-8", newline="") if path else None
        self.note(*LEDGER_COLUMNS)

    def note(self, partition: int | str, offset: int | str, message: str) -> None:
        """Note a message and its place, which is empty when Kafka has not acknowledged it."""
        if self.file:
            csv.writer(self.file).writerow([partition, offset, message])


def connect(servers: str, topic: str, partitions: int) -> KafkaProducer:
    """Return a producer; make the topic if it is missing.

    Raises:
        KafkaError: no broker answers.
    """
    brokers = servers.split(",")
    with closing(KafkaAdminClient(bootstrap_servers=brokers)) as admin:
        create_topic(admin, topic, partitions)
    return KafkaProducer(
        bootstrap_servers=brokers,
        acks="all",
        enable_idempotence=True,  # a send that is retried is stored once
        # 30 days: after a message has expired, kafka-python 2.3 may send no more.
        delivery_timeout_ms=30 * 86_400_000,
        linger_ms=20,  # a batch waits this long to fill
        max_block_ms=5000,
        reconnect_backoff_max_ms=5000,
    )


def publish(
    producer: KafkaProducer,
    topic: str,
    messages: Iterable[tuple[int, bytes]],
    ledger: Ledger,
    stop: threading.Event,
) -> Counter[str]:
    """Send messages and wait for the outcome of each.

    Args:
        producer: closed at the end.
        topic: where they go.
        messages: (sensor's id, which is the key, message).
        ledger: takes each with its place.
        stop: ends a wait for acknowledgements.

    Returns:
        Counts: sent, acknowledged, failed.

    Raises:
        OSError: the ledger cannot be written.
    """
    counts: Counter[str] = Counter()
    troubles: list[OSError] = []
    next_progress = time.monotonic() + PROGRESS_S

    # The next three are called by the producer's own thread, in which an error would be lost.
    def note(outcome: str, value: bytes, place: tuple[int | str, int | str]) -> None:
        counts[outcome] += 1
        try:
            ledger.note(*place, value.decode())
        except OSError as exc:
            troubles.append(exc)

    def note_failed(value: bytes, exc: Exception) -> None:
        if not counts["failed"]:
            log.error("Kafka has not stored a message: %s", one_line(exc))
        note("failed", value, ("", ""))

    def note_stored(value: bytes, stored: Any) -> None:
        note("acknowledged", value, (stored.partition, stored.offset))

    def pending() -> int:
        return counts["sent"] - counts["acknowledged"] - counts["failed"]

    for sensor_id, value in messages:
        if pending() >= MAX_PENDING:
            # kafka-python takes any number, but its thread, which sends them, gets little of
            # Python's time while this one makes more: they would fill the memory, and expire.
            while pending() > MAX_PENDING // 2 and not stop.wait(0.01):
                pass
        if troubles:
            break
        counts["sent"] += 1
        try:
            future = producer.send(topic, key=str(sensor_id).encode(), value=value)
            future.add_callback(partial(note_stored, value))
            future.add_errback(partial(note_failed, value))
        except KafkaError as exc:
            log.error("Kafka does not take messages: %s", exc)
            break
        if time.monotonic() >= next_progress:
            log.info("progress sent=%d acknowledged=%d", counts["sent"], counts["acknowledged"])
            next_progress = time.monotonic() + PROGRESS_S
    close_producer(producer, pending, FLUSH_S, log)
    if troubles:
        raise troubles[0]
    return counts
