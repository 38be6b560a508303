#!/usr/bin/env python3
"""Measure the time from a reading's send until a search finds it, at a steady rate.

    make bench-latency                                  # 1000 readings/s for 60 s, twice
    python benches/latency.py --rate 100 --duration 10

The generator sends live, paced, to a topic of three partitions; the consumer runs with its default
settings. A search asks every few milliseconds for what it has not found yet. A reading's latency is
the moment when a search that holds it has answered, minus Kafka's timestamp of its message, which
the producer sets when the reading is handed to it: batching there and the acknowledgement are in.

Measured twice: with the index's own refresh_interval, and with one of 50 ms. What lies between is
the share of the refresh: until it, a document is stored and no search can see it.

Exit codes: 0 measured, 1 a reading was lost or the rate was not held, 2 wrong usage.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.command import arguments, command, positive, say, write_result
from benches.processes import end, kill, peak_memory_mb
from benches.scene import (
    CONSUMER,
    GENERATOR,
    PAGE,
    BenchError,
    Scene,
    own_servers,
    reading_id,
)

PARTITIONS = 3  # as Kafka creates topics in docker-compose.yml
SEARCH_PAUSE_S = 0.01
SETTLE_S = 30.0  # for the last readings to be found
FAST_REFRESH = "50ms"
WARM_UP_S = 10
RATE_TOLERANCE = 0.02
SHOWN = ("p50", "p99", "max")


@dataclass
class Finder:
    """Searches an index again and again, and notes when each document was found first.

    Attributes:
        found_at: id -> epoch seconds of the answer that held it.
        low: all documents up to this sequence number are found.
        searches: how many.
    """

    scene: Scene
    index: str
    found_at: dict[str, float] = field(default_factory=dict)
    low: int = -1
    beyond: set[int] = field(default_factory=set)  # found already, above low
    searches: int = 0

    def search(self) -> None:
        """Ask once for what is not found yet: with one shard, what is above a sequence number."""
        answer = self.scene.client.search(
            index=self.index,
            size=PAGE,
            source=False,
            seq_no_primary_term=True,
            query={"range": {"_seq_no": {"gt": self.low}}},
            sort=[{"_seq_no": "asc"}],
            track_total_hits=False,
            filter_path="hits.hits._id,hits.hits._seq_no",
        )
        now = time.time()
        self.searches += 1
        for hit in answer.get("hits", {}).get("hits", []):
            self.found_at.setdefault(hit["_id"], now)
            self.beyond.add(hit["_seq_no"])
        while self.low + 1 in self.beyond:
            self.low += 1
            self.beyond.remove(self.low)


def phase(scene: Scene, topic: str, finder: Finder, rate: int, duration_s: int) -> dict[str, Any]:
    """Let the generator send for a while, and find everything; return the latencies.

    Raises:
        BenchError: the generator failed or did not hold the rate, or a reading was not found.
    """
    began_ms, searches = time.time() * 1000, finder.searches
    command = [*GENERATOR, "--rate", str(rate), "--duration", str(duration_s)]
    command += ["--sensors", str(max(5, rate // 200))]
    generator = subprocess.Popen(command, env=scene.environ(topic), stderr=subprocess.DEVNULL)
    try:
        while generator.poll() is None:
            finder.search()
            time.sleep(SEARCH_PAUSE_S)
    finally:
        kill(generator)
    if generator.returncode:
        raise BenchError(f"the generator ended with exit code {generator.returncode}")
    sent_at = {
        reading_id(message.value): message.timestamp / 1000
        for message in scene.messages(topic)
        if message.timestamp >= began_ms
    }
    deadline = time.monotonic() + SETTLE_S
    while missing := sent_at.keys() - finder.found_at.keys():
        if time.monotonic() > deadline:
            raise BenchError(f"{len(missing)} of {len(sent_at)} readings were never found")
        finder.search()
    times = sorted(sent_at.values())
    achieved = (len(times) - 1) / (times[-1] - times[0])
    if abs(achieved / rate - 1) > RATE_TOLERANCE:
        raise BenchError(f"sent {achieved:.0f} readings/s, not {rate}: the machine is too busy")
    latencies = sorted(finder.found_at[i] - at for i, at in sent_at.items())
    return figures(latencies, achieved, finder.searches - searches)


def figures(latencies_s: Sequence[float], rate_hz: float, searches: int) -> dict[str, Any]:
    """Return what is written down of sorted latencies: the percentiles 1 to 99 for the chart."""
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


def measure(scene: Scene, rate: int, duration_s: int) -> dict[str, Any]:
    """Return the latencies with the index's own refresh interval, and with a short one.

    Raises:
        BenchError: see phase.
    """
    topic, index = scene.new_topic(PARTITIONS), scene.new_index("latency")
    own = scene.client.indices.get_settings(index=index)[index]["settings"]["index"]
    finder = Finder(scene, index)
    environ = scene.environ(topic, index)
    found: dict[str, Any] = {}
    with (scene.folder / "latency.log").open("wb") as log:
        consumer = subprocess.Popen(CONSUMER, env=environ, stderr=log)
        try:
            wait_for_consumer(scene, topic, finder, consumer)
            # Not counted: Elasticsearch is slow until its code is compiled.
            phase(scene, topic, finder, rate, min(duration_s, WARM_UP_S))
            for refresh in (own["refresh_interval"], FAST_REFRESH):
                scene.client.indices.put_settings(
                    index=index, settings={"refresh_interval": refresh}
                )
                found[refresh] = phase(scene, topic, finder, rate, duration_s)
                shown = ", ".join(f"{p} {found[refresh][f'{p}_s']:.3f} s" for p in SHOWN)
                say(f"refresh {refresh:<6}{shown}")
            found["consumer"] = {
                "memory_mb": round(peak_memory_mb(consumer.pid), 1),
                "cpu_s": round(end(consumer, stays=True), 1),
            }
        finally:
            kill(consumer)
    return found


def wait_for_consumer(
    scene: Scene, topic: str, finder: Finder, consumer: subprocess.Popen[bytes]
) -> None:
    """Send some readings and wait for them: then the consumer has its partitions.

    Raises:
        BenchError: the consumer has ended, or they are not found.
    """
    scene.generate(topic, "--count", "20", "--rate", "100")
    deadline = time.monotonic() + SETTLE_S
    while len(finder.found_at) < 20:
        if consumer.poll() is not None or time.monotonic() > deadline:
            raise BenchError("the consumer does not index: see its log")
        finder.search()
        time.sleep(SEARCH_PAUSE_S)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = arguments(__doc__)
    text = "(default: %(default)s)"
    parser.add_argument("--rate", type=positive, default=1000, metavar="PER_SECOND", help=text)
    text = "of each of the two (default: %(default)s)"
    parser.add_argument("--duration", type=positive, default=60, metavar="SECONDS", help=text)
    options = parser.parse_args(argv)
    with own_servers() as scene:
        found = measure(scene, options.rate, options.duration)
        write_result(scene, "latency", vars(options), found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
