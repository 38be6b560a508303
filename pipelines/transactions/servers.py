"""Kafka and the store: make the topic and the bucket when they are missing, wait for both."""

import logging
import math
import threading
import time
from contextlib import closing
from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import BrokerResponseError, KafkaError, TopicAlreadyExistsError
from pyarrow import fs

from pipelines.common import words_of_kafka
from pipelines.transactions.store import Store, StoreError

log = logging.getLogger("consumer_spark")
PARTITIONS = 3
# One record that a producer dates in nanoseconds would stop Spark, whose times end before.
BROKER_TIMES = {"message.timestamp.type": "LogAppendTime"}
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
            with admin_of(self.kafka) as admin:
                if self.topic in admin.list_topics():
                    return ""
            return f"there is no topic {self.topic} in Kafka: run python prepare.py"
        except StoreError as exc:
            return str(exc)
        except KafkaError as exc:
            return explain(self.kafka, exc)

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
        """Make the topic; see the function `make_topic`."""
        return make_topic(self.kafka, self.topic)

    def make_missing(self) -> str:
        """Make the bucket and the topic unless they are there; return what is wrong, "" if all is.

        What is there may be used by one who may not make it.
        """
        refused = ""
        try:
            if self.make_bucket():
                log.info("bucket %s: made", self.store.bucket)
            if self.make_topic():
                log.info("topic %s: made, %d partitions", self.topic, PARTITIONS)
        except StoreError as exc:
            refused = str(exc)
        except KafkaError as exc:
            refused = explain(self.kafka, exc)
        wrong = self.check()
        return wrong and (refused or wrong)

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


def admin_of(kafka: str) -> closing[KafkaAdminClient]:
    """Return a client of Kafka that is closed at the end of its block."""
    servers = kafka.split(",")
    return closing(KafkaAdminClient(bootstrap_servers=servers, api_version_auto_timeout_ms=5000))


def make_topic(kafka: str, topic: str) -> bool:
    """Make a topic; return False if it was there.

    Raises:
        KafkaError: no broker answers, or it refuses.
    """
    with admin_of(kafka) as admin:
        if topic in admin.list_topics():
            return False
        try:
            admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs=BROKER_TIMES)])
        except TopicAlreadyExistsError:  # another process has made it meanwhile
            return False
    return True


def explain(kafka: str, exc: KafkaError) -> str:
    """Return an error of Kafka's client in one line: the broker is away, or it has refused."""
    if isinstance(exc, BrokerResponseError):
        return f"Kafka at {kafka} answers with an error ({words_of_kafka(exc)})"
    return f"Kafka does not answer at {kafka} ({exc}): is it started?"
