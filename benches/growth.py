#!/usr/bin/env python3
"""Measure how the consumer's rate moves with the size of its task.

    make bench-growth                       # 10 000 to 10 million readings, and the rest
    python benches/growth.py --backlogs 1000 --copies 2 --readings 1000 --group-readings 1000

Four series, one thing changed in each:

    backlog       10 000 to 10 million readings that wait in the topic
    partitions    1, 3, 6
    consumers     1, 2, 3 in one group, on 6 partitions
    size          messages 1, 2, 5, 10 times as long, and sensor ids of 128 characters; the
                  shortest and the longest compressed by gzip too, not lz4 as by the generator

The generator makes the readings of every backlog but the longest: that one holds --copies times the
readings of the one before, each time dated a day later, since the generator would need minutes. It
is measured once, the others --runs times.

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.command import arguments, command, positive, say, write_result
from benches.processes import Run, log_file, spread, watched
from benches.scene import CONSUMER, Scene, Topic, own_servers
from benches.throughput import WARM_UP_RUNS, limit

BACKLOGS = (10_000, 100_000, 1_000_000)
COPIES = 10  # of the last of these: days that its readings are dated to
MOST_COPIES = 31
PARTITIONS = (1, 3, 6)
CONSUMERS = (1, 2, 3)
TIMES_LONGER = (1, 2, 5, 10)
LONGEST_ID = 128  # characters
SENSORS = 60  # the key decides the partition: enough for each to get its share
CONSUMED = re.compile(r" stopped consumed=(\d+) ")


@dataclass
class SharedRun(Run):
    """A run of one consumer or several.

    Attributes:
        sharing: how many of them consumed anything; 0: the limit, which is none.
    """

    sharing: int


@dataclass(frozen=True, eq=False)
class Case:
    """A point of a series."""

    series: str
    name: str
    topic: Topic
    consumers: int = 1
    is_long: bool = False  # measured once
    with_limit: bool = False  # whether the limit is measured beside it; its bodies lie ready


def dated(value: bytes, day: int) -> bytes:
    """Return a reading of the seed's first day, dated to a day of that month.

    >>> dated(b'{"timestamp": "2026-01-01T02:46:39.990Z"}', 10)
    b'{"timestamp": "2026-01-10T02:46:39.990Z"}'
    """
    return value.replace(b"2026-01-01T", b"2026-01-%02dT" % day)


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
    long_id = reading["sensor_id"].ljust(LONGEST_ID, "-")
    return json.dumps(reading | {"sensor_id": long_id}).encode()


def make_cases(
    scene: Scene, backlogs: Sequence[int], copies: int, readings: int, group_readings: int
) -> list[Case]:
    """Fill the topics; return all points to measure."""
    say("filling the topics ...")
    cases = []
    for n in backlogs:
        topic = scene.filled_topic(n, sensors=SENSORS, with_bodies=True)
        cases.append(Case("backlog", str(n), topic, with_limit=True))
    if copies > 1:
        days = [partial(dated, day=day) for day in range(1, copies + 1)]
        topic = scene.copied_topic(cases[-1].topic, days, with_bodies=True)
        cases.append(Case("backlog", str(topic.readings), topic, is_long=True, with_limit=True))
    for n in PARTITIONS:
        cases.append(Case("partitions", str(n), scene.filled_topic(readings, n, SENSORS)))
    shared = scene.filled_topic(group_readings, max(PARTITIONS), SENSORS)
    cases += [Case("consumers", str(n), shared, consumers=n) for n in CONSUMERS]
    short = next(case.topic for case in cases if case.series == "partitions")
    for times in TIMES_LONGER:
        change = partial(longer, times=times)
        topic = scene.copied_topic(short, [change]) if times > 1 else short
        cases.append(Case("size", f"x{times}", topic))
        if times in (min(TIMES_LONGER), max(TIMES_LONGER)):
            topic = scene.copied_topic(short, [change], "gzip")
            cases.append(Case("size", f"x{times} gzip", topic))
    cases.append(Case("size", "long ids", scene.copied_topic(short, [with_long_id])))
    return cases


def run(scene: Scene, case: Case, by_limit: bool = False) -> SharedRun:
    """Let the consumers, or the limit, index a topic into a fresh index.

    Raises:
        BenchError: they failed, stood still, or indexed something else than the topic.
    """
    index = scene.new_index(f"growth-{case.series}")
    environ = scene.environ(case.topic.name, index)
    commands = [limit(scene, environ)] if by_limit else [CONSUMER] * case.consumers
    try:
        one = watched(
            scene,
            commands,
            environ,
            lambda: scene.indexed(index),
            case.topic.readings,
            stays=not by_limit,
        )
        scene.check(index, case.topic.ids)
    finally:
        scene.delete_index(index)
    logs = [log_file(scene, environ, number).read_text() for number in range(len(commands))]
    consumed = [int(found[1]) for log in logs if (found := CONSUMED.search(log))]
    return SharedRun(**vars(one), sharing=sum(number > 0 for number in consumed))


def measure(scene: Scene, cases: Sequence[Case], turns: int) -> dict[str, dict[str, Any]]:
    """Run each case once a turn; return what was found, by series and point.

    Raises:
        BenchError: see run.
    """
    runs: dict[Case, list[SharedRun]] = {case: [] for case in cases}
    limits: dict[Case, list[SharedRun]] = {case: [] for case in cases if case.with_limit}
    for _ in range(WARM_UP_RUNS):
        run(scene, cases[-1])
    for turn in range(turns):
        for case in [case for case in cases if turn == 0 or not case.is_long]:
            one = run(scene, case)
            runs[case].append(one)
            more = f"  {one.sharing} share" if case.consumers > 1 else ""
            if case.with_limit:
                limits[case].append(run(scene, case, by_limit=True))
                more = f"  limit {limits[case][-1].per_s:.0f}"
            what = f"run {turn + 1}: {case.series:<12}{case.name:<10}"
            say(f"{what}{one.per_s:>9.0f} docs/s{one.memory_mb:>6.0f} MB{more}")
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        found.setdefault(case.series, {})[case.name] = {
            "readings": case.topic.readings,
            "message_bytes": round(case.topic.size_bytes / case.topic.readings),
            **spread(runs[case]),
            "limit_per_s": spread(limits[case])["per_s"] if case.with_limit else None,
        }
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = arguments(__doc__, runs=3)
    add = partial(parser.add_argument, type=positive, metavar="N")
    add("--backlogs", nargs="+", default=list(BACKLOGS), help="(default: 10000 100000 1000000)")
    text = "times the last of these for one more, 1: none (default: %(default)s)"
    add("--copies", default=COPIES, help=text)
    text = "of partitions and sizes (default: %(default)s)"
    add("--readings", default=200_000, help=text)
    add("--group-readings", default=1_000_000, help="of consumers (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.copies > MOST_COPIES:
        parser.error(f"--copies: a month has no more than {MOST_COPIES} days")
    with own_servers() as scene:
        cases = make_cases(
            scene, options.backlogs, options.copies, options.readings, options.group_readings
        )
        found = measure(scene, cases, options.runs)
        write_result(scene, "growth", vars(options) | {"sensors": SENSORS}, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
