#!/usr/bin/env python3
"""Measure the generator: the rates it holds, how fast it can send, and what batching is worth.

    make bench-generator                    # 3 paced rates, 1 million readings, 4 ways of batching
    python benches/generator.py --duration 5 --readings 20000 --runs 1

Paced: `--rate R --count N`, live. The rate achieved is that of Kafka's timestamps from the first
message to the last; the slowest and the fastest whole second say how even it is.

At once: a back-fill of --readings readings, beside two producers that simulate nothing and only
send ready lines: Kafka's kafka-producer-perf-test, and confluent-kafka (peers/producers.py). All
with the generator's settings: acks=all, idempotent, lz4, batches of 256 KB and 50 ms; 1 partition.
The rate is counted from the first to the last message that the broker has, as it says itself.

Batching: kafka-python sends ready lines with the generator's settings, then without compression,
without waiting for a batch to fill, and with one message in each request, uncompressed. What the
messages take in the broker's files is noted too.

What the topic holds is compared with what was to be sent; a difference is an error.

Exit codes: 0 measured, 1 a producer failed or the topic is wrong, 2 wrong usage.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer
from kafka.structs import TopicPartition

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.command import arguments, command, positive, say, write_result
from benches.processes import Run, spread, watched
from benches.scene import (
    GENERATOR,
    SEEDED,
    BenchError,
    Scene,
    own_servers,
    reading_id,
)
from sensor_generator import PRODUCER

RATES_HZ = (100, 1000, 10_000)
LINES = 10_000  # different readings that the other producers send in turn
BATCHING_READINGS = 100_000  # of each way of batching, as the slowest sends some thousands a second
PEER = Path(__file__).parent / "peers/producers.py"
PERF_TEST_SETTINGS = (
    "acks=all",
    "enable.idempotence=true",
    f"linger.ms={PRODUCER['linger_ms']}",
    f"batch.size={PRODUCER['batch_size']}",
    f"compression.type={PRODUCER['compression_type']}",
)
AT_ONCE = ("generator", "kafka-producer-perf-test", "confluent-kafka")
BATCHING = ("kafka-python", "no compression", "no waiting", "one by one")


@dataclass
class Paced(Run):
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
class AtOnce(Run):
    """A run as fast as possible.

    Attributes:
        stored_bytes: what a message takes in the broker's files.
    """

    stored_bytes: float


def sent(scene: Scene, command: Sequence[str], topic: str, count: int) -> Run:
    """Run a producer until the broker has all of its messages.

    Raises:
        BenchError: it failed, or not so many messages arrived.
    """
    partition = TopicPartition(topic, 0)
    environ = scene.environ(topic, index=topic, readings=count)
    with closing(KafkaConsumer(bootstrap_servers=scene.kafka)) as consumer:

        def arrived() -> int:
            number: int = consumer.end_offsets([partition])[partition]
            return number

        one = watched(scene, [command], environ, arrived, count)
        if arrived() != count:
            raise BenchError(f"{topic}: {arrived()} messages, not {count}")
    return one


def paced(scene: Scene, rate_hz: int, duration_s: int) -> Paced:
    """Let the generator send at a rate for a while.

    Raises:
        BenchError: it failed, or the topic does not hold as many readings as that makes.
    """
    topic, count = scene.new_topic(), rate_hz * duration_s
    command = [*GENERATOR, "--rate", str(rate_hz), "--count", str(count)]
    command += ["--sensors", str(max(5, rate_hz // 100))]
    one = sent(scene, command, topic, count)
    messages = list(scene.messages(topic))
    if len({reading_id(message.value) for message in messages}) != count:
        raise BenchError(f"{topic}: readings are missing, or twice")
    times_ms = sorted(message.timestamp for message in messages)
    seconds = Counter((time_ms - times_ms[0]) // 1000 for time_ms in times_ms)
    whole = [seconds[second] for second in range(max(seconds))] or [count]
    return Paced(
        **vars(one),
        rate_hz=(count - 1) * 1000 / (times_ms[-1] - times_ms[0]),
        slowest_hz=min(whole),
        fastest_hz=max(whole),
    )


def at_once(scene: Scene, name: str, lines: Path, count: int) -> AtOnce:
    """Let a producer send as fast as it can; those that make no readings take lines of a file.

    Raises:
        BenchError: it failed, or the topic holds something else than what it was to send.
    """
    topic = scene.new_topic()
    if name == "generator":
        command = [*GENERATOR, *SEEDED, "--count", str(count)]
    elif name == "kafka-producer-perf-test":
        options = ["--topic", topic, "--num-records", str(count), "--throughput", "-1"]
        options += ["--payload-file", str(lines), "--producer-props"]
        options += [f"bootstrap.servers={scene.kafka}", *PERF_TEST_SETTINGS]
        command = scene.stack.tool("kafka", name, options)
    else:
        command = [sys.executable, str(PEER), name, str(lines)]
    one = sent(scene, command, topic, count)
    values = (message.value for message in scene.messages(topic))
    if name == "generator":
        is_right = len(set(map(reading_id, values))) == count
    else:
        is_right = set(values) <= set(lines.read_bytes().splitlines())
    if not is_right:
        raise BenchError(f"{name}: the topic holds something else than what was to be sent")
    return AtOnce(**vars(one), stored_bytes=scene.stored_bytes(topic) / count)


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
    lines = write_lines(scene)
    held: dict[str, list[Paced]] = {str(rate_hz): [] for rate_hz in rates_hz}
    fast: dict[str, list[AtOnce]] = {name: [] for name in (*AT_ONCE, *BATCHING)}
    for turn, rate_hz in itertools.product(range(turns), rates_hz):
        one = paced(scene, rate_hz, duration_s)
        held[str(rate_hz)].append(one)
        say(f"run {turn + 1}: asked {rate_hz:>6}/s, sent {one.rate_hz:>10.2f}/s")
    fewer = min(readings, BATCHING_READINGS)
    for turn, name in itertools.product(range(turns), fast):
        run = at_once(scene, name, lines, fewer if name in BATCHING else readings)
        fast[name].append(run)
        say(f"run {turn + 1}: {name:<26}{run.per_s:>9.0f} messages/s, {run.seconds:.1f} s in all")
    return {
        "paced": {name: spread(theirs) for name, theirs in held.items()},
        "at_once": {n: {"readings": readings, **spread(fast[n])} for n in AT_ONCE},
        "batching": {n: {"readings": fewer, **spread(fast[n])} for n in BATCHING},
    }


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = arguments(__doc__, runs=3)
    text = "of a paced run (default: %(default)s)"
    parser.add_argument("--duration", type=positive, default=30, metavar="SECONDS", help=text)
    text = "readings per second (default: 100 1000 10000)"
    parser.add_argument(
        "--rates", type=positive, nargs="+", default=list(RATES_HZ), metavar="N", help=text
    )
    text = "sent at once (default: %(default)s)"
    parser.add_argument("--readings", type=positive, default=1_000_000, metavar="N", help=text)
    options = parser.parse_args(argv)
    with own_servers() as scene:
        found = measure(scene, options.rates, options.duration, options.readings, options.runs)
        write_result(scene, "generator", vars(options), found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
