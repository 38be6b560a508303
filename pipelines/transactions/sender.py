"""Send records to Kafka: count and note what becomes of each, through outages."""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from tqdm import tqdm

from pipelines.common import close_producer
from pipelines.transactions.ledger import Ledger
from pipelines.transactions.servers import explain, make_topic
from pipelines.transactions.simulation import Record

log = logging.getLogger("capteur")
PROGRESS_S = 5.0
GIVE_UP_S = 15.0  # at the end, without an acknowledgement
MAX_PENDING = 20_000  # records whose outcome is not known yet


def connect(servers: str, topic: str, wait_s: float, stop: threading.Event) -> KafkaProducer | None:
    """Return a producer whose topic is known, or None when told to stop.

    Raises:
        KafkaError: no broker answered within `wait_s`, or it does not make the topic.
    """
    deadline = time.monotonic() + wait_s
    while not stop.is_set():
        try:
            make_topic(servers, topic)
            producer = KafkaProducer(
                bootstrap_servers=servers.split(","),
                acks="all",  # acknowledged by every replica in sync
                enable_idempotence=True,  # a send that is retried is stored once
                # A record waits for Kafka as long as it takes. With a shorter time-out this
                # producer may never send again after a record that expired.
                delivery_timeout_ms=30 * 86_400_000,
                reconnect_backoff_max_ms=2000,
                linger_ms=20,  # a batch waits this long to fill ...
                batch_size=128 * 1024,  # ... up to this many bytes: fewer, fuller requests
                max_block_ms=60_000,  # how long a send waits for a broker that is away
            )
            producer.partitions_for(topic)
            return producer
        except KafkaError as exc:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            log.warning("waiting %.0f s: %s", left_s, explain(servers, exc))
            stop.wait(min(2.0, left_s))
    return None


class Sender:
    """Sends records, and counts and notes what becomes of each."""

    def __init__(
        self, producer: KafkaProducer, topic: str, ledger: Ledger, stop: threading.Event
    ) -> None:
        self.producer = producer
        self.topic = topic
        self.ledger = ledger
        self.stop = stop
        self.pending: deque[tuple[Record, Any]] = deque()  # with the future of its outcome
        self.sent = self.acknowledged = self.failed = 0
        self.last_error = ""
        self.next_report = time.monotonic() + PROGRESS_S

    def __str__(self) -> str:
        return f"sent={self.sent} acknowledged={self.acknowledged} failed={self.failed}"

    def send_all(self, records: Iterator[Record]) -> None:
        """Send records and wait for their outcomes; a record without one has failed."""
        for record in records:
            self.send(record)
            self.settle_known()
            if len(self.pending) >= MAX_PENDING:
                self.wait_for_room()
            self.report()
        close_producer(self.producer, self.unknown, GIVE_UP_S, log)
        while self.pending:
            self.settle()

    def report(self) -> None:
        """Log the counts every few seconds."""
        if time.monotonic() >= self.next_report:
            with tqdm.external_write_mode(sys.stderr):  # above the bar, if there is one
                log.info("progress %s", self)
            self.next_report = time.monotonic() + PROGRESS_S

    def send(self, record: Record) -> None:
        """Hand a record to the producer; the id is the key, so that partitions are even."""
        self.sent += 1
        key = str(record.transaction_id).encode()
        try:
            future = self.producer.send(self.topic, key=key, value=record.value)
        except KafkaError as exc:  # Kafka has been away for longer than max_block_ms
            self.count(record, exc)
        else:
            self.pending.append((record, future))

    def wait_for_room(self) -> None:
        """Wait until half of what is on its way has an outcome: kafka-python takes any number.

        Its thread, which sends them, gets little of Python's time while this one makes more: they
        would fill the memory.
        """
        while len(self.pending) > MAX_PENDING // 2 and not self.stop.wait(0.01):
            self.settle_known()
            self.report()

    def unknown(self) -> int:
        """Return how many records have no outcome yet; count those that have one now."""
        self.settle_known()
        return len(self.pending)

    def settle_known(self) -> None:
        """Count and note the outcomes that are known, in order."""
        while self.pending and self.pending[0][1].is_done:
            self.settle()

    def settle(self) -> None:
        """Count and note the outcome of the oldest record: not acknowledged if it has none yet."""
        record, future = self.pending.popleft()
        if not future.is_done:
            self.count(record, KafkaTimeoutError("Kafka does not answer"))
            return
        try:
            self.count(record, future.get())
        except KafkaError as exc:
            self.count(record, exc)

    def count(self, record: Record, outcome: Any) -> None:
        """Count and note one outcome: where the record is stored, or why it is not."""
        if isinstance(outcome, KafkaError):
            self.failed += 1
            self.last_error = str(outcome)
            self.ledger.note(record, "", "")
        else:
            self.acknowledged += 1
            self.ledger.note(record, outcome.partition, outcome.offset)
