#!/usr/bin/env python3
"""Measure the generator: whether it holds the rate asked for, and how fast it can send at all.

    make bench-generator                                  # 3 paced rates, then 1 million readings
    python benches/generator.py --duration 5 --readings 20000 --runs 1

Paced: `--rate R --duration S`, live. The rate achieved is that of Kafka's timestamps from the first
message to the last; the slowest and the fastest whole second say how even it is.

At once: a back-fill of --readings readings, beside two producers that simulate nothing and only
send ready lines: Kafka's kafka-producer-perf-test, and confluent-kafka (peers/confluent.py).
All with the same settings: acks=all, idempotent, lz4, batches of 128 KB and 20 ms, 1 partition.
The rate is counted from the first to the last message that the broker has, as it says itself.

What the topic holds is compared with what was to be sent; a difference is an error.

Exit codes: 0 measured, 1 a producer failed or the topic is wrong, 2 wrong usage.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer
from kafka.structs import TopicPartition

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.scene import (
    GENERATOR,
    SEEDED,
    BenchError,
    Scene,
    Usage,
    arguments,
    exit_code,
    own_servers,
    positive,
    rate,
    reading_id,
    say,
    spread,
    watched,
    write_result,
)

RATES_HZ = (100, 1000, 10_000)
LINES = 10_000  # different readings that the other producers send in turn
PEER = Path(__file__).parent / "peers/confluent.py"
PERF_TEST_SETTINGS = (
    "acks=all", "enable.idempotence=true", "linger.ms=20", "batch.size=131072",
    "compression.type=lz4",
)  # fmt: skip


@dataclass
class Paced(Usage):
    """A paced run.

    Attributes:
        rate_hz: achieved, from the first message to the last.
        slowest_hz: in the whole second with the fewest messages.
        fastest_hz: in the one with the most.
    """

    rate_hz: float
    slowest_hz: float
    fastest_hz: float


@dataclass
class AtOnce(Usage):
    """A run as fast as possible.

    Attributes:
        messages_per_s: from the first message in the topic to the last.
        seconds: from the start of the process to the last message.
    """

    messages_per_s: float
    seconds: float


def sent(
    scene: Scene, command: Sequence[str], topic: str, count: int
) -> tuple[float, float, Usage]:
    """Run a producer; return the rate seen at the broker, the seconds it took, and what it cost.

    Raises:
        BenchError: it failed, or not so many messages arrived.
    """
    partition = TopicPartition(topic, 0)
    environ = scene.environ(topic, index=topic, readings=count)
    with KafkaConsumer(bootstrap_servers=scene.kafka) as consumer:

        def arrived() -> int:
            number: int = consumer.end_offsets([partition])[partition]
            return number

        seen, began, usage = watched(scene, [command], environ, arrived, count)
        if arrived() != count:
            raise BenchError(f"{topic}: {arrived()} messages, not {count}")
    return rate(seen), seen[-1][0] - began, usage


def paced(scene: Scene, rate_hz: int, duration_s: int) -> Paced:
    """Let the generator send at a rate for a while.

    Raises:
        BenchError: it failed, or the topic does not hold as many readings as that makes.
    """
    topic, count = scene.new_topic(), rate_hz * duration_s
    command = [*GENERATOR, "--rate", str(rate_hz), "--count", str(count)]
    command += ["--sensors", str(max(5, rate_hz // 100))]
    *_, usage = sent(scene, command, topic, count)
    messages = list(scene.messages(topic))
    if len({reading_id(message.value) for message in messages}) != count:
        raise BenchError(f"{topic}: readings are missing, or twice")
    times_ms = sorted(message.timestamp for message in messages)
    seconds = Counter((time_ms - times_ms[0]) // 1000 for time_ms in times_ms)
    whole = [seconds[second] for second in range(max(seconds))] or [count]
    return Paced(
        rate_hz=(count - 1) * 1000 / (times_ms[-1] - times_ms[0]),
        slowest_hz=min(whole),
        fastest_hz=max(whole),
        **vars(usage),
    )


def at_once(scene: Scene, name: str, lines: Path, count: int) -> AtOnce:
    """Let a producer send as fast as it can; those that make no readings take lines of a file.

    Raises:
        BenchError: it failed, or the topic holds something else than what it was to send.
    """
    topic = scene.new_topic()
    perf_test = ["--topic", topic, "--num-records", str(count), "--throughput", "-1"]
    perf_test += ["--payload-file", str(lines), "--producer-props"]
    perf_test += [f"bootstrap.servers={scene.kafka}", *PERF_TEST_SETTINGS]
    commands = {
        "generator": [*GENERATOR, *SEEDED, "--count", str(count)],
        "confluent-kafka": [sys.executable, str(PEER), str(lines)],
        "kafka-producer-perf-test": scene.stack.tool(
            "kafka", "kafka-producer-perf-test", perf_test
        ),
    }
    messages_per_s, seconds, usage = sent(scene, commands[name], topic, count)
    values = (message.value for message in scene.messages(topic))
    if name == "generator":
        right = len({reading_id(value) for value in values}) == count
    else:
        right = set(values) <= set(lines.read_bytes().splitlines())
    if not right:
        raise BenchError(f"{name}: the topic holds something else than what was to be sent")
    return AtOnce(messages_per_s=messages_per_s, seconds=seconds, **vars(usage))


def write_lines(scene: Scene) -> Path:
    """Write the first readings of the generator into a file; return it."""
    topic = scene.filled_topic(LINES)
    values = [message.value for message in scene.messages(topic.name)]
    file = scene.folder / "readings.jsonl"
    file.write_bytes(b"\n".join(values) + b"\n")
    return file


def measure(
    scene: Scene, rates_hz: Sequence[int], duration_s: int, readings: int, turns: int
) -> dict[str, Any]:
    """Measure all; return what was found.

    Raises:
        BenchError: a producer failed, or a topic is wrong.
    """
    names = ["generator", "kafka-producer-perf-test", "confluent-kafka"]
    lines = write_lines(scene)
    held: dict[str, list[Paced]] = {str(rate_hz): [] for rate_hz in rates_hz}
    runs: dict[str, list[AtOnce]] = {name: [] for name in names}
    for turn, rate_hz in itertools.product(range(turns), rates_hz):
        one = paced(scene, rate_hz, duration_s)
        held[str(rate_hz)].append(one)
        say(f"run {turn + 1}: asked {rate_hz:>6}/s, sent {one.rate_hz:>10.2f}/s")
    for turn, name in itertools.product(range(turns), names):
        fast = at_once(scene, name, lines, readings)
        runs[name].append(fast)
        say(f"run {turn + 1}: {name:<26}{fast.messages_per_s:>9.0f} messages/s, "
            f"{fast.seconds:.1f} s in all")  # fmt: skip
    return {
        "paced": {name: spread(theirs) for name, theirs in held.items()},
        "at_once": {name: spread(theirs) for name, theirs in runs.items()},
    }


def bench(argv: Sequence[str] | None) -> int:
    """Measure; return the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--duration", type=positive, default=30, metavar="SECONDS",
                        help="of a paced run (default: %(default)s)")  # fmt: skip
    parser.add_argument("--rates", type=positive, nargs="+", default=list(RATES_HZ), metavar="N",
                        help="readings per second (default: 100 1000 10000)")  # fmt: skip
    parser.add_argument("--readings", type=positive, default=1_000_000, metavar="N",
                        help="sent at once (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(argv)
    parameters = {
        "runs": options.runs, "duration_s": options.duration, "rates_hz": options.rates,
        "readings": options.readings,
    }  # fmt: skip
    with own_servers() as scene:
        found = measure(scene, options.rates, options.duration, options.readings, options.runs)
        write_result(scene, "generator", parameters, found, options.output)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    return exit_code(lambda: bench(argv))


if __name__ == "__main__":
    raise SystemExit(main())
