#!/usr/bin/env python3
"""Measure how the consumer's rate moves with the size of its task.

    make bench-growth                       # 10 000, 100 000 and 1 million readings, and the rest
    python benches/growth.py --full         # 10 million too: 15 minutes and 4 GB more

Four series, one thing changed in each:

    backlog       10 000 to 10 million readings that wait in the topic
    partitions    1, 3, 6
    consumers     1, 2, 3 in one group, on 6 partitions
    size          messages 1, 2, 5, 10 times as long, and sensor ids of 128 characters; the
                  shortest and the longest compressed by gzip too, not lz4 as by the generator

The reading has six fixed fields, so blanks make a message longer: the consumer reads and checks
them all and does not store them. A long sensor id makes the document longer too, and its id.

The rate is counted from the first to the last document, as in throughput.py. Elasticsearch itself
is slower at the beginning of an index, so the limit (see there) is measured too for each backlog:
what a rate says is its share of that. How many of a group's consumers had a share of the work is
noted (`sharing`), since one that comes late may find nothing left. A run whose index does not hold
exactly the readings of the topic is an error. Each series' runs alternate.

Exit codes: 0 measured, 1 a run failed or its result is wrong, 2 wrong usage.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.scene import (
    CONSUMER,
    WARM_UP_RUNS,
    Scene,
    Topic,
    Usage,
    arguments,
    check,
    exit_code,
    own_servers,
    positive,
    rate,
    say,
    spread,
    watched,
    write_result,
)
from benches.throughput import limit, write_bodies

BACKLOGS = (10_000, 100_000, 1_000_000)
FULL_BACKLOG = 10_000_000
PARTITIONS = (1, 3, 6)
CONSUMERS = (1, 2, 3)
TIMES_LONGER = (1, 2, 5, 10)
LONGEST_ID = 128  # characters
SENSORS = 60  # the key decides the partition: enough for each to get its share
ASSIGNED = re.compile(r"^(\S+Z) INFO \S+ assigned partitions=\d", re.MULTILINE)


@dataclass
class Run(Usage):
    """What one run gave.

    Attributes:
        docs_per_s: from the first to the last document.
        mb_per_s: the same in millions of bytes of messages.
        seconds: from the start of the processes to the last document.
        sharing: how many of the consumers had partitions before the last document; 0: the limit.
    """

    docs_per_s: float
    mb_per_s: float
    seconds: float
    sharing: int


@dataclass(frozen=True, eq=False)
class Case:
    """A point of a series."""

    series: str
    name: str
    topic: Topic
    consumers: int = 1
    runs: int | None = None  # when fewer than asked for
    with_limit: bool = False  # whether the limit is measured beside it; its bodies lie ready


def longer(value: bytes, times: int) -> bytes:
    """Return a reading's message that is so many times as long, by blanks before its end.

    >>> longer(b'{"a": 1}', 2)
    b'{"a": 1        }'
    """
    return value[:-1] + b" " * ((times - 1) * len(value)) + value[-1:]


def with_long_id(value: bytes) -> bytes:
    """Return a reading whose sensor id is as long as it may be.

    >>> len(json.loads(with_long_id(b'{"sensor_id": "sensor_001"}'))["sensor_id"])
    128
    """
    reading = json.loads(value)
    return json.dumps(
        {**reading, "sensor_id": reading["sensor_id"].ljust(LONGEST_ID, "-")}
    ).encode()


def make_cases(
    scene: Scene, backlogs: Sequence[int], readings: int, group_readings: int
) -> list[Case]:
    """Fill the topics; return all points to measure."""
    say(f"filling topics: {sum(backlogs) + 9 * readings + group_readings} readings ...")
    cases = [
        Case("backlog", str(n), scene.filled_topic(n, sensors=SENSORS),
             runs=1 if n == FULL_BACKLOG else None, with_limit=True)
        for n in backlogs
    ]  # fmt: skip
    for case in cases:
        write_bodies(scene, case.topic)
    cases += [
        Case("partitions", str(n), scene.filled_topic(readings, n, SENSORS)) for n in PARTITIONS
    ]
    shared = scene.filled_topic(group_readings, max(PARTITIONS), SENSORS)
    cases += [Case("consumers", str(n), shared, consumers=n) for n in CONSUMERS]
    short = next(case.topic for case in cases if case.series == "partitions")
    for times in TIMES_LONGER:
        change = partial(longer, times=times)
        topic = scene.copied_topic(short, change) if times > 1 else short
        cases.append(Case("size", f"x{times}", topic))
        if times in (min(TIMES_LONGER), max(TIMES_LONGER)):
            topic = scene.copied_topic(short, change, "gzip")
            cases.append(Case("size", f"x{times} gzip", topic))
    cases.append(Case("size", "long ids", scene.copied_topic(short, with_long_id)))
    return cases


def run(scene: Scene, case: Case, by_limit: bool = False) -> Run:
    """Let the consumers, or the limit, index a topic into a fresh index.

    Raises:
        BenchError: they failed, stood still, or indexed something else than the topic.
    """
    wanted = len(case.topic.ids)
    index = scene.new_index(f"growth-{case.series}")
    environ = scene.environ(case.topic.name, index)
    commands = [limit(scene, environ)] if by_limit else [CONSUMER] * case.consumers
    try:
        seen, began, usage = watched(
            scene, commands, environ, lambda: scene.indexed(index), wanted, stays=not by_limit
        )
        check(scene, index, case.topic.ids)
    finally:
        scene.delete_index(index)
    last_s = seen[-1][0]
    docs_per_s = rate(seen)
    return Run(
        docs_per_s=docs_per_s,
        mb_per_s=docs_per_s * case.topic.size_bytes / wanted / 1e6,
        seconds=last_s - began,
        sharing=sum(at_s < last_s for at_s in assignments(scene, index)),
        **vars(usage),
    )


def assignments(scene: Scene, index: str) -> list[float]:
    """Return when each consumer first got partitions, as time.monotonic; by the logs."""
    logs = [log.read_text(errors="replace") for log in scene.folder.glob(f"{index}-*.log")]
    firsts = [found[1] for log in logs if (found := ASSIGNED.search(log))]
    ago_s = [time.time() - datetime.fromisoformat(text).timestamp() for text in firsts]
    return [time.monotonic() - one_s for one_s in ago_s]


def measure(scene: Scene, cases: Sequence[Case], turns: int) -> dict[str, dict[str, Any]]:
    """Run each case once a turn; return what was found, by series and point.

    Raises:
        BenchError: see run.
    """
    runs: dict[Case, list[Run]] = {case: [] for case in cases}
    limits: dict[Case, list[Run]] = {case: [] for case in cases if case.with_limit}
    for _ in range(WARM_UP_RUNS):
        run(scene, cases[-1])
    for turn in range(turns):
        for case in cases:
            if turn >= (case.runs or turns):
                continue
            one, more = run(scene, case), ""
            runs[case].append(one)
            if case.consumers > 1:
                more = f"  {one.sharing} share"
            if case.with_limit:
                limits[case].append(run(scene, case, by_limit=True))
                more = f"  limit {limits[case][-1].docs_per_s:.0f}"
            say(f"run {turn + 1}: {case.series:<12}{case.name:<10}{one.docs_per_s:>9.0f} docs/s"
                f"{one.memory_mb or 0:>6.0f} MB{more}")  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        size = case.topic.size_bytes / len(case.topic.ids)
        theirs = spread(limits[case])["docs_per_s"] if case.with_limit else None
        found.setdefault(case.series, {})[case.name] = {
            "readings": len(case.topic.ids),
            "message_bytes": round(size),
            **spread(runs[case]),
            "limit_docs_per_s": theirs,
        }
    return found


def bench(argv: Sequence[str] | None) -> int:
    """Measure; return the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--readings", type=positive, default=200_000, metavar="N",
                        help="of partitions and sizes (default: %(default)s)")  # fmt: skip
    parser.add_argument("--group-readings", type=positive, default=1_000_000, metavar="N",
                        help="of consumers (default: %(default)s)")  # fmt: skip
    parser.add_argument("--backlogs", type=positive, nargs="+", default=list(BACKLOGS), metavar="N",
                        help="(default: 10000 100000 1000000)")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="10 million readings too, once")
    options = parser.parse_args(argv)
    backlogs = [*options.backlogs, *([FULL_BACKLOG] if options.full else [])]
    parameters = {
        "runs": options.runs, "backlogs": backlogs, "readings": options.readings,
        "group_readings": options.group_readings, "sensors": SENSORS,
    }  # fmt: skip
    with own_servers() as scene:
        cases = make_cases(scene, backlogs, options.readings, options.group_readings)
        found = measure(scene, cases, options.runs)
        write_result(scene, "growth", parameters, found, options.output)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    return exit_code(lambda: bench(argv))


if __name__ == "__main__":
    raise SystemExit(main())
