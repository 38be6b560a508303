#!/usr/bin/env python3
"""Measure the lag while servers and consumers fail, come or go, and how long to catch up.

    make bench-outage                                  # 1000 readings/s, six events
    python benches/outage.py --rate 200 --calm 5

The generator sends live, paced, to a topic of three partitions; the consumer runs with its default
settings. Twice a second the lag is asked for: the messages of the topic that the group has not
committed. One event after another, each when the one before is caught up: the lag is below what
arrives in a second, for three seconds. Two of them are rebalances: a second consumer joins the
group, the first one leaves it. While Kafka is away nobody knows the lag; what is sent
meanwhile waits in the generator. In the end the index must hold exactly what the topic holds.

Exit codes: 0 measured, 1 a reading is missing or double, or the lag did not end, 2 wrong usage.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.command import arguments, command, positive, say, write_result
from benches.processes import end, kill
from benches.scene import (
    CONSUMER,
    GENERATOR,
    SERVERS,
    BenchError,
    Scene,
    fingerprint,
    own_servers,
    reading_id,
)

PARTITIONS = 3  # as Kafka creates topics in docker-compose.yml
LOOK_S = 0.5
ANSWER_MS = 600  # a broker that needs longer is taken for absent
AWAY_S = 15.0  # how long Elasticsearch stays stopped
CAUGHT_UP_S = 3.0
PATIENCE_S = 180.0  # to get partitions; to catch up, once the event is over


@dataclass
class Run:
    """A generator and a consumer at work, and what was seen.

    Attributes:
        seen: [seconds since the start, lag in messages or None while it is not known].
    """

    scene: Scene
    topic: str
    index: str
    rate: int
    began: float = field(default_factory=time.monotonic)
    seen: list[tuple[float, int | None]] = field(default_factory=list)
    consumers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def start_consumer(self) -> None:
        """Start a consumer; what it says goes into a file of its own."""
        self.logs.append(self.scene.folder / f"outage-{len(self.logs)}.log")
        with self.logs[-1].open("wb") as log:
            environ = self.scene.environ(self.topic, self.index)
            self.consumers.append(subprocess.Popen(CONSUMER, env=environ, stderr=log))

    def wait_for_partitions(self, count: int) -> None:
        """Wait until the consumer that was started last says that it has at least so many.

        Raises:
            BenchError: it does not.
        """
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            said = re.findall(r"assigned partitions=([\d,]+)", self.logs[-1].read_text())
            if said and len(said[-1].split(",")) >= count:
                return
            time.sleep(0.1)
        raise BenchError(f"a consumer got no {count} partitions in {PATIENCE_S:.0f} s")

    def look(self, asker: KafkaConsumer) -> None:
        """Ask for the lag once, and wait for the next time.

        Raises:
            BenchError: a consumer has ended by itself.
        """
        if any(consumer.poll() is not None for consumer in self.consumers):
            said = [log.read_text().strip().rpartition("\n")[2] for log in self.logs]
            raise BenchError(f"a consumer ended; their last words: {' / '.join(said)}")
        partitions = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
        lag: int | None = None
        at_s = time.monotonic() - self.began
        try:
            ends = asker.end_offsets(partitions)
            done = [asker.committed(p, timeout_ms=ANSWER_MS) or 0 for p in partitions]
            lag = sum(ends.values()) - sum(done)
        except KafkaError:
            pass
        self.seen.append((round(at_s, 1), lag))
        time.sleep(max(0.0, LOOK_S - (time.monotonic() - self.began - at_s)))

    def is_caught_up(self) -> bool:
        """Return whether the lag was small for long enough."""
        last = [lag for at_s, lag in self.seen if at_s >= self.seen[-1][0] - CAUGHT_UP_S]
        return len(last) > CAUGHT_UP_S and all(lag is not None and lag < self.rate for lag in last)


# The events. A fault brings back what it has taken away.


def stop_elasticsearch(run: Run) -> None:
    """Stop it for a while."""
    run.scene.stack.down(["elasticsearch"])
    time.sleep(AWAY_S)
    run.scene.stack.up(SERVERS)


def kill_server(name: str) -> Callable[[Run], None]:
    """Return what kills a server and starts it again at once."""

    def act(run: Run) -> None:
        os.killpg(run.scene.stack.pid(name) or 0, signal.SIGKILL)
        time.sleep(1)
        run.scene.stack.up(SERVERS)

    return act


def kill_consumer(run: Run) -> None:
    """Kill it and start another: it waits until Kafka takes the first one for dead."""
    kill(run.consumers.pop())
    run.start_consumer()


def join(run: Run) -> None:
    """Start a second consumer in the group."""
    run.start_consumer()
    run.wait_for_partitions(1)


def leave(run: Run) -> None:
    """Stop the first consumer as one should: the other one takes all."""
    end(run.consumers.pop(0), stays=True)
    run.wait_for_partitions(PARTITIONS)


EVENTS: dict[str, Callable[[Run], None]] = {
    "elasticsearch stopped": stop_elasticsearch,
    "elasticsearch killed": kill_server("elasticsearch"),
    "consumer joins": join,
    "consumer leaves": leave,
    "consumer killed": kill_consumer,
    "kafka killed": kill_server("kafka"),
}


def suffer(run: Run, asker: KafkaConsumer, act: Callable[[Run], None]) -> dict[str, float]:
    """Let one event happen; return when, the largest lag, and after how long it was caught up.

    Raises:
        BenchError: it was not.
        StackError: a server did not come back.
    """
    at_s = time.monotonic() - run.began
    first = len(run.seen)
    with ThreadPoolExecutor(max_workers=1) as pool:
        acting = pool.submit(act, run)
        while not acting.done():
            run.look(asker)
    acting.result()  # raises what stopped the act: a server that does not come back
    over_s = time.monotonic() - run.began
    while len(run.seen) < first + 4 or not run.is_caught_up():
        run.look(asker)
        if run.seen[-1][0] > over_s + PATIENCE_S:
            raise BenchError(f"not caught up {PATIENCE_S:.0f} s after the event was over")
    peak = max(lag for _, lag in run.seen[first:] if lag is not None)
    behind = [seen_s for seen_s, lag in run.seen[first:] if lag is None or lag >= run.rate]
    caught_up_s = behind[-1] - at_s if behind else 0.0
    return {"at_s": round(at_s, 1), "peak_lag": peak, "caught_up_s": round(caught_up_s, 1)}


def measure(scene: Scene, rate: int, calm_s: int, names: Sequence[str]) -> dict[str, Any]:
    """Return what was seen of the lag, and of each event.

    Raises:
        BenchError: the generator failed, a lag did not end, or the index is wrong.
    """
    run = Run(scene, scene.new_topic(PARTITIONS), scene.new_index("outage"), rate)
    command = [*GENERATOR, "--rate", str(rate), "--sensors", str(max(5, rate // 200))]
    log = (scene.folder / "generator.log").open("wb")
    generator = subprocess.Popen(command, env=scene.environ(run.topic), stderr=log)
    asker = KafkaConsumer(
        bootstrap_servers=scene.kafka,
        group_id=run.index,
        request_timeout_ms=ANSWER_MS,
        session_timeout_ms=ANSWER_MS - 1,  # it never joins the group, but must be the shorter
        heartbeat_interval_ms=100,
        reconnect_backoff_max_ms=1000,
    )
    events = {}
    try:
        run.start_consumer()
        run.wait_for_partitions(PARTITIONS)  # else what goes now is absent at its start
        while run.seen == [] or not run.is_caught_up() or run.seen[-1][0] < calm_s:
            run.look(asker)
        for name in names:
            events[name] = suffer(run, asker, EVENTS[name])
            peak, after_s = events[name]["peak_lag"], events[name]["caught_up_s"]
            say(f"{name:<24}largest lag {peak:>7.0f}, caught up after {after_s:.1f} s")
            calm_until_s = run.seen[-1][0] + calm_s
            while run.seen[-1][0] < calm_until_s:
                run.look(asker)
        end(generator, stays=True)
        if generator.returncode:
            raise BenchError("the generator failed: see its log")
        while run.seen[-1][1] != 0:
            run.look(asker)
        end(run.consumers[-1], stays=True)
        sent = fingerprint(reading_id(message.value) for message in scene.messages(run.topic))
        scene.check(run.index, sent)
    finally:
        for process in (generator, *run.consumers):
            kill(process)
        asker.close()
        log.close()
    return {"events": events, "lag": run.seen, "readings": sent[0]}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = arguments(__doc__)
    text = "(default: %(default)s)"
    parser.add_argument("--rate", type=positive, default=1000, metavar="PER_SECOND", help=text)
    text = "before and after each event (default: %(default)s)"
    parser.add_argument("--calm", type=positive, default=10, metavar="SECONDS", help=text)
    text = f"which, in their order (default: {','.join(EVENTS)})"
    parser.add_argument("--only", default=",".join(EVENTS), metavar="EVENTS", help=text)
    options = parser.parse_args(argv)
    names = options.only.split(",")
    if unknown := set(names) - set(EVENTS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    with own_servers() as scene:
        found = measure(scene, options.rate, options.calm, names)
        constants = {"partitions": PARTITIONS, "elasticsearch_away_s": AWAY_S}
        write_result(scene, "outage", vars(options) | constants, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
