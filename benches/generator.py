"""Measure the generator: the rates it holds, how fast it can send, and what batching is worth.

    make bench-generator                    # 3 paced rates, 1 million readings, 4 ways of batching
    python -m benches.generator --duration 5 --readings 20000 --runs 1

Paced: `--rate R --count N`, live. The rate achieved is that of Kafka's timestamps from the first
message to the last; the slowest and the fastest whole second say how even it is.

At once: a back-fill of --readings readings, beside two producers that simulate nothing and only
send ready lines: Kafka's kafka-producer-perf-test, and confluent-kafka (peers/producers.py). All
have the generator's settings: acks=all, idempotent, lz4, batches of 256 KB and 50 ms; 1 partition.
The rate is counted from the first to the last message in the topic, by the broker's end offset.

Batching: kafka-python sends ready lines with the generator's settings, then without compression,
without waiting for a batch to fill, and with one uncompressed message in each request. The size of
the messages in the broker's files is noted too.

The topic is compared with what was to be sent; a difference is an error.

Exit codes: 0 measured, 1 a producer failed or the topic is wrong, 2 wrong usage.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer
from kafka.structs import TopicPartition

from benches.command import option_parser, positive, write_result
from benches.processes import Run, run_processes, summarize
from benches.testbed import GENERATOR, SEEDED, BenchError, Testbed, own_servers, reading_id
from sensor_generator import PRODUCER
from stack.console import command, say

RATES_HZ = (100, 1000, 10_000)
LINES = 10_000  # ready lines, which the other producers send again and again
BATCHING_READINGS = 100_000  # for each way of batching: the slowest sends some thousands a second
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
class PacedRun(Run):
    """The figures of a paced run.

    Attributes:
        rate_hz: messages per second, from the first to the last.
        slowest_hz: messages in the whole second that has the fewest.
        fastest_hz: messages in the whole second that has the most.
    """

    rate_hz: float
    slowest_hz: float
    fastest_hz: float


@dataclass
class FastRun(Run):
    """The figures of a run as fast as possible.

    Attributes:
        stored_bytes: size of a message in the broker's files.
    """

    stored_bytes: float


def run_producer(testbed: Testbed, command: Sequence[str], topic: str, messages: int) -> Run:
    """Run a producer until the broker has all of its messages.

    Raises:
        BenchError: the producer failed, or sent another number of messages.
    """
    partition = TopicPartition(topic, 0)
    environment = testbed.environment(topic, index=topic, readings=messages)
    with closing(KafkaConsumer(bootstrap_servers=testbed.address("kafka"))) as consumer:

        def end_offset() -> int:
            offset: int = consumer.end_offsets([partition])[partition]
            return offset

        run = run_processes(testbed, [command], environment, end_offset, messages)
        if end_offset() != messages:
            raise BenchError(f"{topic}: {end_offset()} messages, not {messages}")
    return run


def run_paced(testbed: Testbed, rate_hz: int, duration_s: int) -> PacedRun:
    """Let the generator send at a rate for some seconds.

    Raises:
        BenchError: the generator failed, or the topic does not hold that many different readings.
    """
    topic, count = testbed.new_topic(), rate_hz * duration_s
    command = [*GENERATOR, "--rate", str(rate_hz), "--count", str(count)]
    command += ["--sensors", str(max(5, rate_hz // 100))]
    run = run_producer(testbed, command, topic, count)
    messages = list(testbed.messages(topic))
    if len({reading_id(message.value) for message in messages}) != count:
        raise BenchError(f"{topic}: readings are missing, or twice")
    times_ms = sorted(message.timestamp for message in messages)
    seconds = Counter((time_ms - times_ms[0]) // 1000 for time_ms in times_ms)
    whole_seconds = [seconds[second] for second in range(max(seconds))] or [count]
    return PacedRun(
        **vars(run),
        rate_hz=(count - 1) * 1000 / (times_ms[-1] - times_ms[0]),
        slowest_hz=min(whole_seconds),
        fastest_hz=max(whole_seconds),
    )


def run_at_once(testbed: Testbed, name: str, lines: Path, count: int) -> FastRun:
    """Let one of AT_ONCE or BATCHING send as fast as it can; all but the generator send lines.

    Raises:
        BenchError: the producer failed, or the topic holds something else than it was to send.
    """
    topic = testbed.new_topic()
    if name == "generator":
        command = [*GENERATOR, *SEEDED, "--count", str(count)]
    elif name == "kafka-producer-perf-test":
        options = ["--topic", topic, "--num-records", str(count), "--throughput", "-1"]
        options += ["--payload-file", str(lines), "--producer-props"]
        options += [f"bootstrap.servers={testbed.address('kafka')}", *PERF_TEST_SETTINGS]
        command = testbed.stack.tool("kafka", name, options)
    else:
        command = [sys.executable, "-m", "benches.peers.producers", name, str(lines)]
    run = run_producer(testbed, command, topic, count)
    values = (message.value for message in testbed.messages(topic))
    if name == "generator":
        is_right = len(set(map(reading_id, values))) == count
    else:
        is_right = set(values) <= set(lines.read_bytes().splitlines())
    if not is_right:
        raise BenchError(f"{name}: the topic holds something else than what was to be sent")
    return FastRun(**vars(run), stored_bytes=testbed.stored_bytes(topic) / count)


def write_lines(testbed: Testbed) -> Path:
    """Write the first readings of the generator into a file; return it."""
    topic = testbed.fill_topic(LINES)
    file = testbed.folder / "readings.jsonl"
    file.write_bytes(b"".join(message.value + b"\n" for message in testbed.messages(topic.name)))
    return file


def measure(
    testbed: Testbed, rates_hz: Sequence[int], duration_s: int, readings: int, rounds: int
) -> dict[str, Any]:
    """Return the summaries of all paced runs, all producers and all ways of batching.

    Raises:
        BenchError: a producer failed, or a topic is wrong.
    """
    lines = write_lines(testbed)
    paced: dict[int, list[PacedRun]] = {rate_hz: [] for rate_hz in rates_hz}
    fast: dict[str, list[FastRun]] = {name: [] for name in (*AT_ONCE, *BATCHING)}
    for number, rate_hz in itertools.product(range(1, rounds + 1), rates_hz):
        paced_run = run_paced(testbed, rate_hz, duration_s)
        paced[rate_hz].append(paced_run)
        say(f"run {number}: asked {rate_hz:>6}/s, sent {paced_run.rate_hz:>10.2f}/s")
    fewer = min(readings, BATCHING_READINGS)
    counts = dict.fromkeys(AT_ONCE, readings) | dict.fromkeys(BATCHING, fewer)
    for number, name in itertools.product(range(1, rounds + 1), fast):
        run = run_at_once(testbed, name, lines, counts[name])
        fast[name].append(run)
        say(f"run {number}: {name:<26}{run.per_s:>9.0f} messages/s, {run.seconds:.1f} s in all")
    summaries = {name: {"readings": counts[name], **summarize(fast[name])} for name in fast}
    return {
        "paced": {str(rate_hz): summarize(runs) for rate_hz, runs in paced.items()},
        "at_once": {name: summaries[name] for name in AT_ONCE},
        "batching": {name: summaries[name] for name in BATCHING},
    }


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = option_parser("generator", __doc__, runs=3)
    add = partial(parser.add_argument, type=positive)
    add("--duration", default=30, metavar="SECONDS", help="length of each paced run")
    text = "readings per second of the paced runs"
    add("--rates", nargs="+", default=list(RATES_HZ), metavar="N", help=text)
    add("--readings", default=1_000_000, metavar="N", help="readings sent at once")
    options = parser.parse_args(argv)
    with own_servers() as testbed:
        found = measure(testbed, options.rates, options.duration, options.readings, options.runs)
        write_result(testbed, "generator", vars(options), found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
