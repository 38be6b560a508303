"""Whether what a sender has on its way is bounded: a producer that acknowledges nothing itself."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from kafka.errors import KafkaTimeoutError

LIMIT = 100  # of the messages on their way: the sender's MAX_PENDING, for the test


class Answer:
    """What send returns: of kafka-python's future, what the senders use."""

    def __init__(self) -> None:
        self.is_done = False
        self.value: Any = None
        self.exception: Exception | None = None
        self.callbacks: list[Callable[[Any], object]] = []
        self.errbacks: list[Callable[[Exception], object]] = []

    def add_callback(self, callback: Callable[[Any], object]) -> "Answer":
        if not self.is_done:
            self.callbacks.append(callback)
        elif not self.exception:
            callback(self.value)
        return self

    def add_errback(self, errback: Callable[[Exception], object]) -> "Answer":
        if not self.is_done:
            self.errbacks.append(errback)
        elif self.exception:
            errback(self.exception)
        return self

    def success(self, value: Any) -> "Answer":
        self.is_done, self.value = True, value
        for callback in self.callbacks:
            callback(value)
        return self

    def failure(self, exception: Exception) -> "Answer":
        self.is_done, self.exception = True, exception
        for errback in self.errbacks:
            errback(exception)
        return self

    def get(self) -> Any:
        if self.exception:
            raise self.exception
        return self.value


class Unanswered:
    """A producer whose messages are acknowledged when the test says so."""

    def __init__(self) -> None:
        self.futures: list[Answer] = []

    def send(self, *_: object, **__: object) -> Answer:
        self.futures.append(Answer())
        return self.futures[-1]

    def close(self, **_: object) -> None:
        for future in self.futures:
            if not future.is_done:
                future.failure(KafkaTimeoutError("closed"))

    def acknowledge(self, count: int) -> None:
        unanswered = [future for future in self.futures if not future.is_done]
        for offset, future in enumerate(unanswered[:count]):
            future.success(SimpleNamespace(partition=0, offset=offset))

    def has(self, count: int) -> bool:
        """Whether so many are sent, and then no more."""
        deadline = time.monotonic() + 30
        while len(self.futures) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        return len(self.futures) == count


def check_bound(producer: Unanswered, stop: threading.Event, send: Callable[[], object]) -> None:
    """Check, then stop it, that a sender which runs in a thread never has more than LIMIT pending.

    50 are acknowledged in the end.
    """
    sending = threading.Thread(target=send)
    sending.start()
    try:
        assert producer.has(LIMIT)
        producer.acknowledge(30)
        assert producer.has(LIMIT)  # it waits until half are, so as not to be woken for each
        producer.acknowledge(20)
        assert producer.has(LIMIT + 50)
    finally:
        stop.set()
        sending.join()
