"""Measure the time from a reading's send until a search finds it, at a steady rate.

    make bench-latency                                  # 1000 readings/s for 60 s, twice
    python -m benches.latency --rate 100 --duration 10

The generator sends live, paced, to a topic of three partitions; the consumer runs with its default
settings. Every few milliseconds a search asks for the documents that were not found yet. A
reading's latency ends when a search that holds it has answered. It begins at Kafka's timestamp of
the message, which the producer sets when it is given the reading: the time in the producer's batch
and the acknowledgement are included.

The latency is measured with the index's own refresh_interval, then with one of 50 ms. The
difference is the wait for the refresh: before it, a document is stored and no search finds it.

Exit codes: 0 measured, 1 a reading was lost or the rate was not held, 2 wrong usage.
"""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import quantiles
from typing import Any

from benches.command import option_parser, positive, write_result
from benches.processes import end, kill, peak_memory_mb
from benches.testbed import (
    CONSUMER,
    GENERATOR,
    PAGE_SIZE,
    BenchError,
    Testbed,
    own_servers,
    reading_id,
)
from stack.console import command, say

PARTITIONS = 3  # the default of a new topic in docker-compose.yml
SEARCH_INTERVAL_S = 0.01
SEARCH_TIMEOUT_S = 30.0  # for the last readings to be found
FIRST_READINGS = 20
SHORT_REFRESH = "50ms"
WARM_UP_S = 10
RATE_TOLERANCE = 0.02


@dataclass
class Searcher:
    """Searches an index again and again, and notes when it found each document first.

    Attributes:
        found_at: id -> epoch seconds of the first answer that held it.
        found_up_to: all documents up to this sequence number are found.
        found_above: sequence numbers above it that are found too.
        searches: number of searches.
    """

    testbed: Testbed
    index: str
    found_at: dict[str, float] = field(default_factory=dict)
    found_up_to: int = -1
    found_above: set[int] = field(default_factory=set)
    searches: int = 0

    def search(self) -> None:
        """Search once above `found_up_to`; the index has one shard, so one series of numbers."""
        answer = self.testbed.client.search(
            index=self.index,
            size=PAGE_SIZE,
            source=False,
            seq_no_primary_term=True,
            query={"range": {"_seq_no": {"gt": self.found_up_to}}},
            sort=[{"_seq_no": "asc"}],
            track_total_hits=False,
            filter_path="hits.hits._id,hits.hits._seq_no",
        )
        now = time.time()
        self.searches += 1
        for hit in answer.get("hits", {}).get("hits", []):
            self.found_at.setdefault(hit["_id"], now)
            self.found_above.add(hit["_seq_no"])
        while self.found_up_to + 1 in self.found_above:
            self.found_up_to += 1
            self.found_above.remove(self.found_up_to)


def run(
    testbed: Testbed, topic: str, searcher: Searcher, rate: int, duration_s: int
) -> dict[str, Any]:
    """Let the generator send for some seconds, and search until all readings are found.

    Returns:
        The figures of their latencies.

    Raises:
        BenchError: the generator failed or did not hold the rate, or a reading was not found.
    """
    began_ms, searches = time.time() * 1000, searcher.searches
    command = [*GENERATOR, "--rate", str(rate), "--duration", str(duration_s)]
    command += ["--sensors", str(max(5, rate // 200))]
    environment = testbed.environment(topic)
    generator = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while generator.poll() is None:
            searcher.search()
            time.sleep(SEARCH_INTERVAL_S)
    finally:
        kill(generator)
    if generator.returncode:
        raise BenchError(f"the generator ended with exit code {generator.returncode}")
    sent_at = {
        reading_id(message.value): message.timestamp / 1000
        for message in testbed.messages(topic)
        if message.timestamp >= began_ms
    }
    deadline = time.monotonic() + SEARCH_TIMEOUT_S
    while missing := sent_at.keys() - searcher.found_at.keys():
        if time.monotonic() > deadline:
            raise BenchError(f"{len(missing)} of {len(sent_at)} readings were never found")
        searcher.search()
    times = sorted(sent_at.values())
    achieved_hz = (len(times) - 1) / (times[-1] - times[0])
    if abs(achieved_hz / rate - 1) > RATE_TOLERANCE:
        raise BenchError(f"sent {achieved_hz:.0f} readings/s, not {rate}: the machine is too busy")
    latencies_s = sorted(searcher.found_at[i] - at for i, at in sent_at.items())
    return figures(latencies_s, achieved_hz, searcher.searches - searches)


def figures(latencies_s: Sequence[float], rate_hz: float, searches: int) -> dict[str, Any]:
    """Return the result's figures of sorted latencies, with percentiles 1 to 99 for the chart."""
    percentiles = quantiles(latencies_s, n=100, method="inclusive")
    return {
        "readings": len(latencies_s),
        "rate_hz": round(rate_hz, 1),
        "searches": searches,
        "min_s": round(latencies_s[0], 3),
        "p50_s": round(percentiles[49], 3),
        "p99_s": round(percentiles[98], 3),
        "max_s": round(latencies_s[-1], 3),
        "percentiles_s": [round(value, 3) for value in percentiles],
    }


def measure(testbed: Testbed, rate: int, duration_s: int) -> dict[str, Any]:
    """Return the latencies with the index's own refresh interval, and with a short one.

    Raises:
        BenchError: see run.
    """
    topic, index = testbed.new_topic(PARTITIONS), testbed.new_index("latency")
    settings = testbed.client.indices.get_settings(index=index)[index]["settings"]["index"]
    searcher = Searcher(testbed, index)
    environment = testbed.environment(topic, index)
    found: dict[str, Any] = {}
    with (testbed.folder / "latency.log").open("wb") as log:
        consumer = subprocess.Popen(CONSUMER, env=environment, stderr=log)
        try:
            wait_for_consumer(testbed, topic, searcher, consumer)
            # Not counted: Elasticsearch is slow until its code is compiled.
            run(testbed, topic, searcher, rate, min(duration_s, WARM_UP_S))
            for refresh in (settings["refresh_interval"], SHORT_REFRESH):
                testbed.client.indices.put_settings(
                    index=index, settings={"refresh_interval": refresh}
                )
                found[refresh] = run(testbed, topic, searcher, rate, duration_s)
                shown = (f"{p} {found[refresh][f'{p}_s']:.3f} s" for p in ("p50", "p99", "max"))
                say(f"refresh {refresh:<6}{', '.join(shown)}")
            found["consumer"] = {
                "memory_mb": round(peak_memory_mb(consumer.pid), 1),
                "cpu_s": round(end(consumer, terminate=True), 1),
            }
        finally:
            kill(consumer)
    return found


def wait_for_consumer(
    testbed: Testbed, topic: str, searcher: Searcher, consumer: subprocess.Popen[bytes]
) -> None:
    """Send some readings and wait until they are found: then the consumer has its partitions.

    Raises:
        BenchError: the consumer has ended, or the readings are not found.
    """
    testbed.generate(topic, "--count", str(FIRST_READINGS), "--rate", "100")
    deadline = time.monotonic() + SEARCH_TIMEOUT_S
    while len(searcher.found_at) < FIRST_READINGS:
        if consumer.poll() is not None or time.monotonic() > deadline:
            raise BenchError("the consumer does not index: see its log")
        searcher.search()
        time.sleep(SEARCH_INTERVAL_S)


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = option_parser("latency", __doc__)
    add = partial(parser.add_argument, type=positive)
    add("--rate", default=1000, metavar="N", help="readings per second")
    add("--duration", default=60, metavar="SECONDS", help="length of each of the two measurements")
    options = parser.parse_args(argv)
    with own_servers() as testbed:
        found = measure(testbed, options.rate, options.duration)
        write_result(testbed, "latency", vars(options), found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
