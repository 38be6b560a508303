"""Kafka and the store: make the topic and the bucket when they are missing, wait for both."""

import logging
import math
import threading
import time
from contextlib import closing
from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError
from pyarrow import fs

from pipelines.transactions.store import Store, StoreError

log = logging.getLogger("consumer_spark")
PARTITIONS = 3
MAX_WAIT_S = 10.0


@dataclass(frozen=True)
class Servers:
    """What the job reads and writes: a topic of Kafka, a bucket of the store."""

    kafka: str  # HOST:PORT[,HOST:PORT...]
    topic: str
    store: Store

    def check(self) -> str:
        """Return what is wrong with the store or with Kafka, "" when all is there."""
        try:
            self.store.check()
            with self._admin() as admin:
                if self.topic in admin.list_topics():
                    return ""
            return f"there is no topic {self.topic} in Kafka: run python prepare.py"
        except StoreError as exc:
            return str(exc)
        except KafkaError as exc:
            return f"Kafka does not answer at {self.kafka} ({exc})"

    def make_bucket(self) -> bool:
        """Make the bucket; return False if it was there.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        client = self.store.filesystem()
        try:
            if client.get_file_info(self.store.bucket).type == fs.FileType.Directory:
                return False
            client.create_dir(self.store.bucket)
        except OSError as exc:
            raise StoreError(self.store.explain(exc)) from exc
        return True

    def make_topic(self) -> bool:
        """Make the topic; return False if it was there.

        Raises:
            KafkaError: no broker answers, or it refuses.
        """
        with self._admin() as admin:
            try:
                admin.create_topics([NewTopic(self.topic, PARTITIONS, replication_factor=1)])
            except TopicAlreadyExistsError:
                return False
        return True

    def make_missing(self) -> str:
        """Make the bucket and the topic unless they are there; return what `check` does."""
        try:
            if self.make_bucket():
                log.info("bucket %s: made", self.store.bucket)
            if self.make_topic():
                log.info("topic %s: made, %d partitions", self.topic, PARTITIONS)
        except (StoreError, KafkaError):
            pass  # the check says it in words for the user
        return self.check()

    def wait(self, stop: threading.Event, deadline: float = math.inf, make: bool = False) -> bool:
        """Wait until all is there.

        Args:
            stop: is set when the process is told to end.
            deadline: when to give up, on the monotonic clock, in seconds.
            make: make what is missing. Only at the start: a bucket or a topic that goes away
                later has been deleted by somebody, and new ones would hide it.

        Returns:
            False when told to stop, or when it is too late, which is logged.
        """
        wait_s = 1.0
        while wrong := self.make_missing() if make else self.check():
            if stop.is_set():
                return False
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                log.error("%s", wrong)
                return False
            log.warning("waiting: %s", wrong)
            stop.wait(min(wait_s, left_s))
            wait_s = min(2 * wait_s, MAX_WAIT_S)
        return not stop.is_set()

    def _admin(self) -> closing[KafkaAdminClient]:
        """Return a client of Kafka that is closed at the end of its block."""
        servers = self.kafka.split(",")
        return closing(
            KafkaAdminClient(bootstrap_servers=servers, api_version_auto_timeout_ms=5000)
        )
