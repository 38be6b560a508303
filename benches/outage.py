"""Measure the lag while servers and consumers fail, come or go, and the time to catch up.

    make bench-outage                                  # 1000 readings/s, six events
    python -m benches.outage --rate 200 --calm 5

The generator sends live, paced, to a topic of three partitions; the consumer runs with its default
settings. Twice a second the bench asks Kafka for the lag: the messages of the topic that the group
has not committed. The events come one after another, each when the group has caught up after the
one before: the lag has been smaller than what arrives in a second, for three seconds. Two of the
events are rebalances: a second consumer joins the group, the first one leaves it. While Kafka is
away the lag is not known; what is sent meanwhile waits in the generator. In the end the index must
hold exactly the readings of the topic.

Exit codes: 0 measured, 1 a reading is missing or double, or the lag did not end, 2 wrong usage.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from benches.command import add_only, option_parser, positive, write_result
from benches.processes import end, kill
from benches.testbed import (
    CONSUMER,
    GENERATOR,
    SERVERS,
    BenchError,
    Testbed,
    fingerprint,
    own_servers,
    reading_id,
)
from stack.console import command, say

PARTITIONS = 3  # the default of a new topic in docker-compose.yml
LAG_INTERVAL_S = 0.5
LAG_TIMEOUT_MS = 600  # a broker that does not answer in that time is absent
ELASTICSEARCH_AWAY_S = 15.0
CAUGHT_UP_FOR_S = 3.0
TIMEOUT_S = 180.0  # to get partitions; to catch up, once the event is over


@dataclass
class ObservedGroup:
    """A consumer group at work, and its lag.

    Attributes:
        rate: readings per second that the generator sends.
        lags: (seconds since the start, lag in messages or None if it is not known).
    """

    testbed: Testbed
    topic: str
    index: str
    rate: int
    began: float = field(default_factory=time.monotonic)
    lags: list[tuple[float, int | None]] = field(default_factory=list)
    consumers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def start_consumer(self) -> None:
        """Start a consumer, with a log file of its own."""
        self.logs.append(self.testbed.folder / f"outage-{len(self.logs)}.log")
        with self.logs[-1].open("wb") as log:
            environment = self.testbed.environment(self.topic, self.index)
            self.consumers.append(subprocess.Popen(CONSUMER, env=environment, stderr=log))

    def wait_for_partitions(self, count: int) -> None:
        """Wait until the log of the newest consumer says that it has so many partitions, or more.

        Raises:
            BenchError: the consumer does not get them in time.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            assigned = re.findall(r"assigned partitions=([\d,]+)", self.logs[-1].read_text())
            if assigned and len(assigned[-1].split(",")) >= count:
                return
            time.sleep(0.1)
        raise BenchError(f"a consumer got no {count} partitions in {TIMEOUT_S:.0f} s")

    def observe_lag(self, client: KafkaConsumer) -> None:
        """Ask for the lag once, and wait for the next time.

        Raises:
            BenchError: a consumer has ended by itself.
        """
        if any(consumer.poll() is not None for consumer in self.consumers):
            last_lines = [log.read_text().strip().rpartition("\n")[2] for log in self.logs]
            raise BenchError(f"a consumer ended; their last words: {' / '.join(last_lines)}")
        partitions = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
        lag: int | None = None
        at_s = time.monotonic() - self.began
        with suppress(KafkaError):
            ends = client.end_offsets(partitions)
            committed = [client.committed(p, timeout_ms=LAG_TIMEOUT_MS) or 0 for p in partitions]
            lag = sum(ends.values()) - sum(committed)
        self.lags.append((round(at_s, 1), lag))
        time.sleep(max(0.0, LAG_INTERVAL_S - (time.monotonic() - self.began - at_s)))

    def is_caught_up(self) -> bool:
        """Return whether the lag has been small for long enough."""
        since_s = self.lags[-1][0] - CAUGHT_UP_FOR_S
        recent = [lag for at_s, lag in self.lags if at_s >= since_s]
        small = [lag is not None and lag < self.rate for lag in recent]
        return len(small) > CAUGHT_UP_FOR_S and all(small)


# The events. One that takes a server or a consumer away also brings it back.


def stop_elasticsearch(group: ObservedGroup) -> None:
    """Stop Elasticsearch for a while."""
    group.testbed.stack.down(["elasticsearch"])
    time.sleep(ELASTICSEARCH_AWAY_S)
    group.testbed.stack.up(SERVERS)


def kill_server(name: str) -> Callable[[ObservedGroup], None]:
    """Return an event that kills a server and starts it again at once."""

    def event(group: ObservedGroup) -> None:
        os.killpg(group.testbed.stack.pid(name) or 0, signal.SIGKILL)
        time.sleep(1)
        group.testbed.stack.up(SERVERS)

    return event


def kill_consumer(group: ObservedGroup) -> None:
    """Kill a consumer and start another, which waits until Kafka takes the first one for dead."""
    kill(group.consumers.pop())
    group.start_consumer()


def join(group: ObservedGroup) -> None:
    """Start a second consumer."""
    group.start_consumer()
    group.wait_for_partitions(1)


def leave(group: ObservedGroup) -> None:
    """Stop the first consumer by SIGTERM: the other one takes all partitions."""
    end(group.consumers.pop(0), terminate=True)
    group.wait_for_partitions(PARTITIONS)


EVENTS: dict[str, Callable[[ObservedGroup], None]] = {
    "elasticsearch stopped": stop_elasticsearch,
    "elasticsearch killed": kill_server("elasticsearch"),
    "consumer joins": join,
    "consumer leaves": leave,
    "consumer killed": kill_consumer,
    "kafka killed": kill_server("kafka"),
}


def run_event(
    group: ObservedGroup, client: KafkaConsumer, event: Callable[[ObservedGroup], None]
) -> dict[str, float]:
    """Let one event happen, and wait until the group has caught up.

    Returns:
        When it began, the largest lag, and after how many seconds the group had caught up.

    Raises:
        BenchError: the group did not catch up.
        StackError: a server did not come back.
    """
    at_s = time.monotonic() - group.began
    first = len(group.lags)
    with ThreadPoolExecutor(max_workers=1) as pool:
        happening = pool.submit(event, group)
        while not happening.done():
            group.observe_lag(client)
    happening.result()  # raises the event's exception
    over_s = time.monotonic() - group.began
    while len(group.lags) < first + 4 or not group.is_caught_up():
        group.observe_lag(client)
        if group.lags[-1][0] > over_s + TIMEOUT_S:
            raise BenchError(f"not caught up {TIMEOUT_S:.0f} s after the event was over")
    peak = max(lag for _, lag in group.lags[first:] if lag is not None)
    behind = [seen_s for seen_s, lag in group.lags[first:] if lag is None or lag >= group.rate]
    caught_up_s = behind[-1] - at_s if behind else 0.0
    return {"at_s": round(at_s, 1), "peak_lag": peak, "caught_up_s": round(caught_up_s, 1)}


def measure(testbed: Testbed, rate: int, calm_s: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the lag over time, and the figures of each event.

    Raises:
        BenchError: the generator failed, a lag did not end, or the index is wrong.
    """
    topic, index = testbed.new_topic(PARTITIONS), testbed.new_index("outage")
    group = ObservedGroup(testbed, topic, index, rate)
    command = [*GENERATOR, "--rate", str(rate), "--sensors", str(max(5, rate // 200))]
    log = (testbed.folder / "generator.log").open("wb")
    generator = subprocess.Popen(command, env=testbed.environment(topic), stderr=log)
    client = KafkaConsumer(
        bootstrap_servers=testbed.address("kafka"),
        group_id=index,
        request_timeout_ms=LAG_TIMEOUT_MS,
        session_timeout_ms=LAG_TIMEOUT_MS - 1,  # it never joins the group, but must be the shorter
        heartbeat_interval_ms=100,
        reconnect_backoff_max_ms=1000,
    )
    events = {}
    try:
        group.start_consumer()
        group.wait_for_partitions(PARTITIONS)  # an event must not come while the consumer starts
        while group.lags == [] or not group.is_caught_up() or group.lags[-1][0] < calm_s:
            group.observe_lag(client)
        for name in names:
            events[name] = run_event(group, client, EVENTS[name])
            peak, after_s = events[name]["peak_lag"], events[name]["caught_up_s"]
            say(f"{name:<24}largest lag {peak:>7.0f}, caught up after {after_s:.1f} s")
            calm_until_s = group.lags[-1][0] + calm_s
            while group.lags[-1][0] < calm_until_s:
                group.observe_lag(client)
        end(generator, terminate=True)
        if generator.returncode:
            raise BenchError("the generator failed: see its log")
        while group.lags[-1][1] != 0:
            group.observe_lag(client)
        end(group.consumers[-1], terminate=True)
        sent = fingerprint(reading_id(message.value) for message in testbed.messages(topic))
        testbed.check_index(index, sent)
    finally:
        for process in (generator, *group.consumers):
            kill(process)
        client.close()
        log.close()
    return {"events": events, "lag": group.lags, "readings": sent[0]}


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = option_parser("outage", __doc__)
    add = partial(parser.add_argument, type=positive)
    add("--rate", default=1000, metavar="N", help="readings per second")
    add("--calm", default=10, metavar="SECONDS", help="time before and after each event")
    add_only(parser, EVENTS, "events, in their order")
    options = parser.parse_args(argv)
    with own_servers() as testbed:
        found = measure(testbed, options.rate, options.calm, options.only.split(","))
        constants = {"partitions": PARTITIONS, "elasticsearch_away_s": ELASTICSEARCH_AWAY_S}
        write_result(testbed, "outage", vars(options) | constants, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
