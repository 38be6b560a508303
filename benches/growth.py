"""Measure how the consumer's rate changes with the size of its task.

    make bench-growth                       # 10 000 to 10 million readings, and the rest
    python -m benches.growth --backlogs 1000 --copies 2 --readings 1000 --group-readings 1000

Four series, one thing changed in each:

    backlog       10 000 to 10 million readings that wait in the topic
    partitions    1, 3, 6
    consumers     1, 2, 3 in one group, on 6 partitions
    size          messages 1, 2, 5, 10 times as long, and sensor ids of 128 characters; the shortest
                  and the longest messages also compressed by gzip, not by lz4 as the generator does

The generator makes the readings of every backlog but the longest, for which it would need minutes.
The longest holds --copies times the readings of the one before, each time dated a day later; it is
measured once, the others --runs times.

A reading has six fixed fields, so blanks make a message longer: the consumer reads and checks them
and does not store them. A long sensor id makes the document and its id longer too.

The rate is counted from the first to the last document, as in throughput.py. Elasticsearch itself
is slower at the beginning of an index, so for each backlog the limit (see there) is measured too,
and the rate must be read as a share of it. `sharing` is how many consumers of a group had a share
of the work, since one that joins late may find nothing left. A run is an error if its index does
not hold exactly the readings of the topic. The runs of all points alternate.

Exit codes: 0 measured, 1 a run failed or its result is wrong, 2 wrong usage.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benches.command import option_parser, positive, write_result
from benches.processes import Run, log_file, summarize
from benches.testbed import CONSUMER, Testbed, Topic, own_servers
from benches.throughput import CONTESTANTS, WARM_UP_RUNS, Contestant
from benches.throughput import run as run_contestant
from stack.console import command, say

BACKLOGS = (10_000, 100_000, 1_000_000)
COPIES = 10  # copies of the last backlog, each dated to another day ...
MAX_COPIES = 31  # ... of one month
PARTITIONS = (1, 3, 6)
CONSUMERS = (1, 2, 3)
TIMES_LONGER = (1, 2, 5, 10)
LONGEST_ID = 128  # characters
SENSORS = 60  # the sensor decides the partition: with so many, each partition gets its share
CONSUMED = re.compile(r" stopped consumed=(\d+) ")


@dataclass
class SharedRun(Run):
    """The figures of a run of one consumer or several.

    Attributes:
        sharing: number of consumers that consumed anything; 0 for the limit.
    """

    sharing: int


@dataclass(frozen=True, eq=False)
class Case:
    """A point of a series.

    Attributes:
        consumers: number of consumers in the group.
        only_once: whether it is measured once only, as it takes long.
        with_limit: whether the limit is measured beside it; its topic then has bulk bodies.
    """

    series: str
    name: str
    topic: Topic
    consumers: int = 1
    only_once: bool = False
    with_limit: bool = False


def dated(value: bytes, day: int) -> bytes:
    """Return the message of a reading of 1 January 2026, dated to a day (1 to 31) of that month.

    >>> dated(b'{"timestamp": "2026-01-01T02:46:39.990Z"}', 10)
    b'{"timestamp": "2026-01-10T02:46:39.990Z"}'
    """
    return value.replace(b"2026-01-01T", b"2026-01-%02dT" % day)


def longer(value: bytes, times: int) -> bytes:
    """Return a message made so many times as long, by blanks before its last character.

    >>> longer(b'{"a": 1}', 2)
    b'{"a": 1        }'
    """
    return value[:-1] + b" " * ((times - 1) * len(value)) + value[-1:]


def with_long_id(value: bytes) -> bytes:
    """Return a reading's message with a sensor id of LONGEST_ID characters.

    >>> len(json.loads(with_long_id(b'{"sensor_id": "sensor_001"}'))["sensor_id"])
    128
    """
    reading = json.loads(value)
    long_id = reading["sensor_id"].ljust(LONGEST_ID, "-")
    return json.dumps(reading | {"sensor_id": long_id}).encode()


def make_cases(
    testbed: Testbed, backlogs: Sequence[int], copies: int, readings: int, group_readings: int
) -> list[Case]:
    """Fill the topics, with as many readings as the options say; return all points to measure.

    Raises:
        BenchError: a topic does not hold what it should.
    """
    say("filling the topics ...")
    cases = []
    for n in backlogs:
        topic = testbed.fill_topic(n, sensors=SENSORS, with_bodies=True)
        cases.append(Case("backlog", str(n), topic, with_limit=True))
    if copies > 1:
        days = [partial(dated, day=day) for day in range(1, copies + 1)]
        topic = testbed.copy_topic(topic, days, with_bodies=True)
        cases.append(Case("backlog", str(topic.readings), topic, only_once=True, with_limit=True))
    by_partitions = {n: testbed.fill_topic(readings, n, SENSORS) for n in PARTITIONS}
    cases += [Case("partitions", str(n), topic) for n, topic in by_partitions.items()]
    topic = testbed.fill_topic(group_readings, max(PARTITIONS), SENSORS)
    cases += [Case("consumers", str(n), topic, consumers=n) for n in CONSUMERS]
    short = by_partitions[PARTITIONS[0]]
    for times in TIMES_LONGER:
        change = partial(longer, times=times)
        topic = testbed.copy_topic(short, [change]) if times > 1 else short
        cases.append(Case("size", f"x{times}", topic))
        if times in (min(TIMES_LONGER), max(TIMES_LONGER)):
            topic = testbed.copy_topic(short, [change], "gzip")
            cases.append(Case("size", f"x{times} gzip", topic))
    cases.append(Case("size", "long ids", testbed.copy_topic(short, [with_long_id])))
    return cases


def run(testbed: Testbed, case: Case, by_limit: bool = False) -> SharedRun:
    """Let the consumers, or the limit, index a topic into a fresh index.

    Raises:
        BenchError: see throughput.run.
    """
    consumers = Contestant(lambda _, __: CONSUMER, runs_on=True, processes=case.consumers)
    contestant = CONTESTANTS["limit"] if by_limit else consumers
    index = testbed.new_index(f"growth-{case.series}")
    figures = run_contestant(testbed, index, contestant, case.topic)
    logs = [log_file(testbed, index, number).read_text() for number in range(contestant.processes)]
    consumed = [int(found[1]) for log in logs if (found := CONSUMED.search(log))]
    return SharedRun(**vars(figures), sharing=sum(count > 0 for count in consumed))


def measure(testbed: Testbed, cases: Sequence[Case], rounds: int) -> dict[str, dict[str, Any]]:
    """Run each case once in each round; return the summaries by series and point.

    Raises:
        BenchError: see run.
    """
    runs: dict[Case, list[SharedRun]] = {case: [] for case in cases}
    limits: dict[Case, list[SharedRun]] = {case: [] for case in cases if case.with_limit}
    for _ in range(WARM_UP_RUNS):
        run(testbed, cases[-1])
    for number in range(1, rounds + 1):
        for case in [case for case in cases if number == 1 or not case.only_once]:
            figures = run(testbed, case)
            runs[case].append(figures)
            more = f"  {figures.sharing} share" if case.consumers > 1 else ""
            if case.with_limit:
                limits[case].append(run(testbed, case, by_limit=True))
                more = f"  limit {limits[case][-1].per_s:.0f}"
            point = f"run {number}: {case.series:<12}{case.name:<10}"
            say(f"{point}{figures.per_s:>9.0f} docs/s{figures.memory_mb:>6.0f} MB{more}")
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        found.setdefault(case.series, {})[case.name] = {
            "readings": case.topic.readings,
            "message_bytes": round(case.topic.size_bytes / case.topic.readings),
            **summarize(runs[case]),
            "limit_per_s": summarize(limits[case])["per_s"] if case.with_limit else None,
        }
    return found


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = option_parser("growth", __doc__, runs=3)
    add = partial(parser.add_argument, type=positive, metavar="N")
    add("--backlogs", nargs="+", default=list(BACKLOGS), help="readings of each backlog")
    add("--copies", default=COPIES, help="copies of the last backlog in one more, 1: none")
    add("--readings", default=200_000, help="readings of the series partitions and size")
    add("--group-readings", default=1_000_000, help="readings of the series consumers")
    options = parser.parse_args(argv)
    if options.copies > MAX_COPIES:
        parser.error(f"--copies: a month has no more than {MAX_COPIES} days")
    with own_servers() as testbed:
        cases = make_cases(
            testbed, options.backlogs, options.copies, options.readings, options.group_readings
        )
        found = measure(testbed, cases, options.runs)
        write_result(testbed, "growth", vars(options) | {"sensors": SENSORS}, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
