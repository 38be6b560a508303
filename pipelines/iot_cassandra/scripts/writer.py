"""The writer's loop: poll a batch, have all of it acknowledged, commit its offsets."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, count
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipelines.iot_cassandra.scripts.clients import (
    KAFKA_TIMEOUT_MS,
    SESSION_TIMEOUT_MS,
    Clients,
    Delivery,
)
from pipelines.iot_cassandra.settings import ClientError, one_line

log = logging.getLogger("kafka_to_cassandra")

RETRY_BASE_S, RETRY_CAP_S = 0.2, 5.0
PROGRESS_S = 5.0


class Writer(ConsumerRebalanceListener):  # type: ignore[misc]
    """The way of the messages through one process, and the accounts of what became of them.

    Partitions come and go only during a poll, when all that was read before is settled. What could
    not be committed by then is read again by the next owner, and that changes no row.

    Attributes:
        has_joined: whether the group has given us our share of the partitions (perhaps none).
        ends: partition -> its end when it came to us, as far as Kafka was asked.
        settled: partition -> offset before which all is acknowledged: what should be read next.
        committed: partition -> the same, as far as Kafka knows it.
        in_flight: number of messages read that are not acknowledged yet.
    """

    def __init__(
        self,
        consumer: KafkaConsumer,
        clients: Clients,
        topic: str,
        batch: int,
        stop: threading.Event,
    ) -> None:
        self.consumer = consumer
        self.clients = clients
        self.topic = topic
        self.batch = batch
        self.stop = stop
        self.has_joined = False
        self.ends: Mapping[TopicPartition, int] = {}
        self.settled: dict[TopicPartition, int] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.commit_refused = False
        self.totals: Counter[str] = Counter()
        self.in_flight = 0
        self.began = self.last_progress = time.monotonic()

    def run(self, is_once: bool) -> None:
        """Move messages until told to stop, or, once, until all that is there is read.

        Raises:
            ClientError: messages cannot be read.
        """
        self.consumer.subscribe([self.topic], listener=self)
        while not self.stop.is_set() and not (is_once and self.is_at_end()):
            self.report()
            polled = self.poll()
            if self.settle(chain.from_iterable(polled.values())):
                for partition, messages in polled.items():
                    self.settled[partition] = messages[-1].offset + 1
                self.commit()

    def poll(self) -> Mapping[TopicPartition, Sequence[Any]]:
        """Return the next messages, at most a batch.

        Raises:
            ClientError: they cannot be read.
        """
        polled: Mapping[TopicPartition, Sequence[Any]]
        try:
            polled = self.consumer.poll(100, max_records=self.batch)
        except Exception as exc:
            if getattr(exc, "retriable", False):  # Kafka is away
                log.warning("Kafka: nothing can be read now (%s)", one_line(exc))
                time.sleep(1)
                return {}
            # Not asked again: after a batch that it cannot decode, kafka-python never returns.
            at = {p.partition: self.consumer.position(p, 0) for p in self.consumer.assignment()}
            text = f"messages cannot be read: {one_line(exc)}; partition: next offset {at}"
            raise ClientError(text, code=1) from exc
        for partition, messages in polled.items():
            self.check_gap(partition, messages[0].offset)
        return polled

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Forget where we are: called during a poll, before the partitions are shared out anew."""
        self.has_joined = False
        self.ends = {}
        self.settled.clear()
        self.committed.clear()

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Say which partitions come to us."""
        self.has_joined = True
        numbers = ",".join(str(p.partition) for p in sorted(assigned)) or "none"
        log.info("assigned partitions=%s of topic=%s", numbers, self.topic)

    def check_gap(self, partition: TopicPartition, first: int) -> None:
        """Say so when messages are gone that we have not read."""
        expected = self.settled.get(partition)
        with suppress(KafkaError):  # then a gap before our first message is not noticed
            if expected is None:
                expected = self.consumer.committed(partition, timeout_ms=KAFKA_TIMEOUT_MS)
        if expected is not None and expected != first:
            log.warning(
                "partition %d: offset %d follows where %d was expected: messages were deleted "
                "before they were read, or the topic made anew (or the marks of transactions)",
                partition.partition,
                first,
                expected,
            )

    def settle(self, messages: Iterable[Any]) -> bool:
        """Have each message written or rejected; return whether all of them are.

        When told to stop it tries once more at most; what is open is then read again.
        """
        deliveries: list[Delivery] = []
        outcomes: Counter[str] = Counter()
        for message in messages:
            outcome, planned = self.clients.plan(message)
            outcomes[outcome] += 1
            deliveries += planned
        self.in_flight = outcomes.total()
        self.totals["consumed"] += self.in_flight
        for attempt in count(1):
            deliveries, failure = self.deliver(deliveries)
            if not deliveries:
                break
            if self.stop.is_set():
                return False
            self.back_off(attempt, failure)
        self.totals += outcomes
        self.in_flight = 0
        return True

    def deliver(self, deliveries: list[Delivery]) -> tuple[list[Delivery], Exception | None]:
        """Start deliveries, wait for every answer; return those to start again, and why.

        A valid row cannot be refused for what it says: whatever the error, it may pass.
        """
        started: list[tuple[Delivery, Callable[[], Any]]] = []
        failed: list[Delivery] = []
        failure: Exception | None = None
        for number, delivery in enumerate(deliveries):
            try:
                started.append((delivery, delivery()))
            except KafkaError as exc:  # the producer takes no more
                failed, failure = deliveries[number:], exc
                break
        for delivery, wait in started:
            try:
                wait()
            except Exception as exc:  # noqa: BLE001  # see above
                failed.append(delivery)
                failure = exc
        return failed, failure

    def back_off(self, attempt: int, failure: Exception | None) -> None:
        """Wait longer at each attempt, up to a cap, at random, or until told to stop."""
        delay_s = min(RETRY_CAP_S, RETRY_BASE_S * 2 ** min(attempt, 10)) * random.uniform(0.5, 1)
        server = "Kafka" if isinstance(failure, KafkaError) else "Cassandra"
        level = logging.WARNING if attempt <= 3 else logging.ERROR  # it lasts: louder
        log.log(level, "%s: %d messages wait (%s: %s); next try in %.1f s", server,
                self.in_flight, type(failure).__name__, one_line(failure), delay_s)  # fmt: skip
        self.report()
        self.stop.wait(delay_s)

    def commit(self) -> None:
        """Commit the offsets of what is acknowledged."""
        if self.settled == self.committed:
            return
        marks = {p: OffsetAndMetadata(offset, "", -1) for p, offset in self.settled.items()}
        try:
            self.consumer.commit(marks, timeout_ms=KAFKA_TIMEOUT_MS)
        except KafkaError as exc:  # a rebalance, or Kafka away: they go with the next commit
            if not self.commit_refused:  # said once: it is tried again and again
                log.warning("offsets not committed yet (%s)", type(exc).__name__)
            self.commit_refused = True
            return
        self.committed, self.commit_refused = dict(self.settled), False

    def is_at_end(self) -> bool:
        """Return whether our share is read and committed up to where it ended when we got it.

        Kafka has told that end. A poll does not: it brings nothing, without an error, also while
        Kafka is away; and while others send, it always brings something.
        """
        if not self.has_joined or self.settled != self.committed:
            return False
        mine = self.consumer.assignment()
        asked = mine or {TopicPartition(self.topic, 0)}  # which every topic has
        try:
            if not self.ends.keys() >= asked:
                self.ends = self.consumer.end_offsets(asked)
            return all(
                (self.consumer.position(partition, timeout_ms=KAFKA_TIMEOUT_MS) or 0)
                >= self.ends[partition]
                for partition in mine
            )
        except (KafkaError, KeyError) as exc:  # KeyError: kafka-python's, of one without a leader
            log.warning("Kafka: not known whether all is read (%s)", one_line(exc))
            time.sleep(1)
            return False

    def accounts(self) -> str:
        """Return consumed = written + rejected + in_flight, as key=value pairs."""
        counts = {name: self.totals[name] for name in ("consumed", "written", "rejected")}
        counts["in_flight"] = self.in_flight
        return " ".join(f"{name}={number}" for name, number in counts.items())

    def report(self) -> None:
        """Log the accounts every few seconds, or what we wait for."""
        now = time.monotonic()
        if (seconds := now - self.last_progress) < PROGRESS_S:
            return
        if self.has_joined:
            rate_hz = (self.totals["consumed"] - self.totals["reported"]) / seconds
            log.info("progress %s rate_hz=%.0f", self.accounts(), rate_hz)
        else:
            log.info(
                "waiting for partitions of topic=%s; those of a writer that was killed are "
                "free after %d s",
                self.topic,
                SESSION_TIMEOUT_MS // 1000,
            )
        self.last_progress, self.totals["reported"] = now, self.totals["consumed"]

    def finish(self) -> bool:
        """Say what became of all; return whether nothing is left open."""
        log.info("stopped %s seconds=%.1f", self.accounts(), time.monotonic() - self.began)
        uncommitted = len(self.settled.items() - self.committed.items())
        if self.in_flight or uncommitted:
            log.error(
                "not acknowledged: %d messages; not committed: %d partitions; all of that "
                "is read again",
                self.in_flight,
                uncommitted,
            )
        return not (self.in_flight or uncommitted)
