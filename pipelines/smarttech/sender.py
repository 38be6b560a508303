"""The sender: hands the messages to Kafka, and knows what became of each."""

import logging
import threading
import time
from collections.abc import Iterable

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.producer.future import RecordMetadata

from pipelines.common import close_producer
from pipelines.smarttech.ledger import Ledger
from pipelines.smarttech.simulation import Message

log = logging.getLogger("smarttech")

GIVE_UP_S = 15.0  # at the end, without an acknowledgement
MAX_PENDING = 20_000  # messages that are not acknowledged yet
PROGRESS_S = 5.0


class Sender:
    """Sends messages, keyed by device, and counts what becomes of them."""

    def __init__(
        self, producer: KafkaProducer, topic: str, ledger: Ledger, stop: threading.Event
    ) -> None:
        self.producer = producer
        self.topic = topic
        self.ledger = ledger
        self.stop = stop
        self.lock = threading.Lock()  # outcomes come in the producer's own thread
        self.pending: dict[int, Message] = {}
        self.sent = self.acknowledged = self.failed = 0
        self.last_error = ""
        self.next_report = time.monotonic() + PROGRESS_S

    def send_all(self, messages: Iterable[Message]) -> None:
        """Send messages and wait for their outcomes; a message without one has failed."""
        for message in messages:
            self.send(message)
            self.report()
        close_producer(self.producer, lambda: len(self.pending), GIVE_UP_S, log)
        for serial in list(self.pending):
            self.settle(serial, None, KafkaTimeoutError("Kafka does not answer"))

    def report(self) -> None:
        """Log the counts every few seconds."""
        if time.monotonic() >= self.next_report:
            log.info("progress sent=%d acknowledged=%d", self.sent, self.acknowledged)
            self.next_report = time.monotonic() + PROGRESS_S

    def send(self, message: Message) -> None:
        """Hand a message to the producer."""
        if len(self.pending) >= MAX_PENDING:
            self.wait_for_room()
        self.sent += 1
        serial = self.sent
        self.pending[serial] = message
        key = message.device_id.encode()
        try:
            future = self.producer.send(self.topic, key=key, value=message.value)
        except KafkaError as exc:
            self.settle(serial, None, exc)
            return
        future.add_callback(lambda stored: self.settle(serial, stored))
        future.add_errback(lambda error: self.settle(serial, None, error))

    def wait_for_room(self) -> None:
        """Wait until half of what is on its way has an outcome: kafka-python takes any number.

        Its thread, which sends them, gets little of Python's time while this one makes more: they
        would fill the memory.
        """
        while len(self.pending) > MAX_PENDING // 2 and not self.stop.wait(0.01):
            self.report()

    def settle(
        self, serial: int, stored: RecordMetadata | None, error: BaseException | None = None
    ) -> None:
        """Count and note what became of a message; only its first outcome counts."""
        with self.lock:
            if (message := self.pending.pop(serial, None)) is None:
                return
            if stored:
                self.acknowledged += 1
            else:
                self.failed += 1
                self.last_error = str(error)
            self.ledger.note(message, stored)
