#!/usr/bin/env python3
"""Compare what was sent to Kafka with what is stored in Cassandra.

    python pipelines/iot_cassandra/verify.py
    python pipelines/iot_cassandra/verify.py --expect 20000   # so many messages were sent

Every message of the topic is read again. One that is a reading must be a row in both tables, with
the same values (as 32-bit floats) and the same millisecond; of two for one sensor and one
millisecond, the one with the later write time (the time in Kafka, then the offset modulo 1000) must
be there. Any other must be in the dead-letter topic, with its key and bytes, under its own topic,
partition and offset, and nothing else may be; being there twice is allowed, as a crash between the
send and the commit leaves it. No other row may be stored, unless the topic has already forgotten
its first messages. A topic without a message proves nothing: then they do not agree. Messages are
judged here by code of its own, not by the writer's.

Environment (or .env in the project's folder; a flag wins over both): as the writer, see
scripts/kafka_to_cassandra.py.

Exit codes: 0 they agree, 1 they do not, or a server is unreachable; 2 wrong usage.
"""

import json
import logging
import math
import os
import re
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cassandra import DriverException
from cassandra.cluster import Cluster, NoHostAvailable, Session
from cassandra.protocol import ErrorMessage
from kafka import KafkaConsumer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import TopicPartition

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.iot_cassandra.scripts.options import (  # noqa: E402  # after the path
    add_shared,
    addresses,
    at_least,
    load_env,
    parser_of,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:[0-5]\d)", re.ASCII)
FIRST, LARGEST_OFFSET = datetime(1900, 1, 1, tzinfo=UTC), timedelta(hours=18)
SILENCE_S = 60.0  # of Kafka, within a topic: then nothing comes any more
KAFKA_TIMES = range(253_402_300_800_000)  # epoch ms up to the year 9999
Key = tuple[int, int]  # sensor_id, epoch ms
Values = tuple[bytes, bytes]  # temperature, humidity, as the four bytes of a FLOAT
Where = tuple[int, int]  # partition, offset


@dataclass
class Verdict:
    """What the comparison found; the lists name examples of what is wrong.

    Attributes:
        messages: number of messages in the topic.
        readings: different readings among them: the rows that there should be.
        repeated: messages whose reading had come before, with the same values.
        replaced: messages whose reading has the key of another one with other values.
        dead_lettered: different messages in the dead-letter topic.
        twice: dead letters that had been there before.
        rows: by table, the rows that are there.
        missing, differing, unexpected: rows that should be there, have other values, should not.
        hidden: messages that are no readings, and not in the dead-letter topic.
        misjudged: readings in the dead-letter topic.
        altered: messages whose dead letter has another key or other bytes.
        strays: dead letters that are none of the topic's messages.
        forgotten: messages that the topic has deleted, so that their rows cannot be checked.
    """

    messages: int = 0
    readings: int = 0
    repeated: int = 0
    replaced: int = 0
    dead_lettered: int = 0
    twice: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    missing: list[tuple[str, Key]] = field(default_factory=list)
    differing: list[tuple[str, Key]] = field(default_factory=list)
    unexpected: list[tuple[str, Key]] = field(default_factory=list)
    hidden: list[Where] = field(default_factory=list)
    misjudged: list[Where] = field(default_factory=list)
    altered: list[Where] = field(default_factory=list)
    strays: list[Where] = field(default_factory=list)
    forgotten: int = 0

    @property
    def holds(self) -> bool:
        """Whether something was compared, and nothing is lost, changed or made up."""
        rows = self.missing or self.differing or (self.unexpected and not self.forgotten)
        letters = self.hidden or self.misjudged or self.altered or self.strays
        return self.messages > 0 and not rows and not letters


def read_topic(servers: str, topic: str) -> tuple[Iterator[Any], Mapping[int, int]]:
    """Return the messages that the topic holds now, and each partition's first offset.

    Raises:
        KafkaError: Kafka does not answer; while they are read also: nothing comes for SILENCE_S, or
            some were deleted before they were read.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        isolation_level="read_committed",
        api_version_auto_timeout_ms=10_000,
        receive_message_max_bytes=2**31 - 1,  # its default, 1 MB, is less than a fetch may bring
        auto_offset_reset="none",  # else it goes on after what is deleted, and says nothing
        allow_auto_create_topics=False,  # one that is absent stays so
    )
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)

    def messages() -> Iterator[Any]:
        left = {p: first[p] for p in partitions if first[p] < end[p]}  # what is read next
        with closing(consumer):
            consumer.assign(sorted(left))
            for partition, offset in left.items():
                consumer.seek(partition, offset)
            silent_since = time.monotonic()
            while left:
                for partition, polled in consumer.poll(1000, max_records=5000).items():
                    yield from (message for message in polled if message.offset < end[partition])
                # Also what is no message counts: the marks of transactions.
                reached = {p: consumer.position(p, timeout_ms=1000) for p in left}
                if reached != left:
                    silent_since = time.monotonic()
                elif time.monotonic() - silent_since > SILENCE_S:
                    raise KafkaTimeoutError("nothing comes any more")
                left = {p: offset for p, offset in reached.items() if offset < end[p]}

    return messages(), {partition.partition: offset for partition, offset in first.items()}


def as_float(number: Any, low: float, high: float) -> bytes:
    """Return a number as the four bytes of a FLOAT.

    Raises:
        ValueError: it is not a number from low to high.
    """
    if type(number) not in (int, float) or not low <= number <= high:  # NaN is in no range
        raise ValueError(number)
    return struct.pack(">f", number)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object.

    Raises:
        ValueError: one is given twice.
    """
    if len(fields := dict(pairs)) != len(pairs):
        raise ValueError(pairs)
    return fields


def read(value: bytes | None) -> tuple[Key, Values] | None:
    """Return what a message says, None when it is not a reading."""
    try:
        reading = json.loads((value or b"").decode(), object_pairs_hook=unique)
        if set(reading) != {"sensor_id", "timestamp", "temperature", "humidity"}:
            return None
        sensor_id = reading["sensor_id"]
        if type(sensor_id) is not int or not -(2**31) <= sensor_id < 2**31:
            return None
        if not ISO_TIME.fullmatch(reading["timestamp"]):
            return None
        when = datetime.fromisoformat(reading["timestamp"])
        if when.astimezone(UTC) < FIRST or abs(when.utcoffset() or timedelta()) > LARGEST_OFFSET:
            return None
        since_epoch = when.astimezone(UTC) - EPOCH
        values = as_float(reading["temperature"], -40, 80), as_float(reading["humidity"], 0, 100)
        return (sensor_id, since_epoch // timedelta(milliseconds=1)), values
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def read_rows(session: Session, keyspace: str, table: str) -> Iterator[tuple[Key, Values]]:
    """Yield the rows of a table; one in the wrong day gets a key that no reading has."""
    day = ", day" if table == "sensor_data_by_day" else ""
    query = (  # names of our own, not a user's text
        f"SELECT sensor_id, to_unix_timestamp(timestamp), temperature, humidity{day} "  # noqa: S608
        f"FROM {keyspace}.{table}"
    )
    for sensor_id, time_ms, temperature, humidity, *bucket in session.execute(query, timeout=60):
        is_in_place = not bucket or bucket[0].days_from_epoch == time_ms // 86_400_000
        key = (sensor_id, time_ms if is_in_place else time_ms - 2**62)
        cells = [
            b"" if cell is None else struct.pack(">f", cell) for cell in (temperature, humidity)
        ]
        yield key, (cells[0], cells[1])


def dead_letters(servers: str, topic: str) -> tuple[dict[Where, list[Any]], list[Where]]:
    """Return the dead letters by the message that each says it is, and where the others lie."""
    found: dict[Where, list[Any]] = defaultdict(list)
    strays: list[Where] = []
    for letter in read_topic(servers, f"{topic}.dead-letter")[0]:
        headers = dict(letter.headers)
        try:
            if headers["source.topic"] != topic.encode() or not headers["reason"]:
                raise ValueError(headers)
            origin = (int(headers["source.partition"]), int(headers["source.offset"]))
        except (KeyError, ValueError, TypeError):  # not the writer's
            strays.append((letter.partition, letter.offset))
        else:
            found[origin].append(letter)
    return found, strays


def verify(servers: str, topic: str, session: Session, keyspace: str) -> Verdict:
    """Compare topic, tables and dead letters.

    Raises:
        KafkaError, NoHostAvailable, DriverException, ErrorMessage: a server does not answer, or
            not what it is asked for.
    """
    verdict = Verdict()
    dead, verdict.strays = dead_letters(servers, topic)
    verdict.dead_lettered = len(dead)
    verdict.twice = sum(map(len, dead.values())) - len(dead)
    expected: dict[Key, tuple[float, Values]] = {}
    messages, first = read_topic(servers, topic)
    verdict.forgotten = sum(first.values())
    for message in messages:
        verdict.messages += 1
        where = (message.partition, message.offset)
        letters = dead.pop(where, [])
        sent = (message.key, message.value or b"")
        if any((letter.key, letter.value) != sent for letter in letters):
            verdict.altered.append(where)
        found = read(message.value) if message.timestamp in KAFKA_TIMES else None
        if found is None:
            if not letters:
                verdict.hidden.append(where)
            continue
        if letters:
            verdict.misjudged.append(where)
        key, values = found
        write_time = message.timestamp * 1000 + message.offset % 1000
        before, other = expected.get(key, (-math.inf, values))
        verdict.repeated += key in expected and values == other
        verdict.replaced += values != other
        if write_time >= before:
            expected[key] = write_time, values
    # What is left in `dead` is no message of the topic, or one that it has deleted.
    verdict.strays += [
        (letter.partition, letter.offset)
        for (partition, offset), letters in dead.items()
        for letter in letters
        if not 0 <= offset < first.get(partition, 0)
    ]
    verdict.readings = len(expected)
    for table in ("sensor_data", "sensor_data_by_day"):
        stored = dict(read_rows(session, keyspace, table))
        verdict.rows[table] = len(stored)
        for key, (_, values) in expected.items():
            if (is_stored := stored.pop(key, None)) is None:
                verdict.missing.append((table, key))
            elif is_stored != values:
                verdict.differing.append((table, key))
        verdict.unexpected += [(table, key) for key in stored]
    return verdict


def print_verdict(verdict: Verdict, topic: str) -> None:
    """Print one line per count, with the first few of what is wrong."""
    lines = {
        f"messages in {topic}": verdict.messages,
        "different readings among them": verdict.readings,
        "repeated (same reading, same values)": verdict.repeated,
        "replaced (same key, other values)": verdict.replaced,
        "dead-lettered": verdict.dead_lettered,
        "dead-lettered once more": verdict.twice,
    } | {f"rows in {table}": count for table, count in verdict.rows.items()}
    for label, count in lines.items():
        sys.stdout.write(f"{label:<40} {count:>9}\n")
    wrong = ("missing", "differing", "unexpected", "hidden", "misjudged", "altered", "strays")
    for name in wrong:
        found = getattr(verdict, name)
        examples = f"   for example {', '.join(map(str, found[:3]))}" if found else ""
        sys.stdout.write(f"{name:<40} {len(found):>9}{examples}\n")
    if verdict.forgotten:
        sys.stdout.write(f"{'deleted by the topic, not checked':<40} {verdict.forgotten:>9}\n")
    if not verdict.messages:
        sys.stdout.write(f"nothing was compared: the topic {topic} is absent or empty\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; return the exit code (see the module docstring)."""
    load_env(PROJECT / ".env")
    wanted = ("--bootstrap-servers", "--topic", "--hosts", "--keyspace")
    parser = add_shared(parser_of(__doc__), os.environ, *wanted)
    parser.add_argument("--expect", type=at_least(0, int), metavar="N",
        help="number of messages that were sent")  # fmt: skip
    options = parser.parse_args(argv)
    for client in ("cassandra", "kafka"):
        logging.getLogger(client).setLevel(logging.CRITICAL)
    servers, topic, expect = options.bootstrap_servers, options.topic, options.expect
    try:
        with Cluster(addresses(options.hosts)) as cluster:
            verdict = verify(servers, topic, cluster.connect(), options.keyspace)
    except (KafkaError, NoHostAvailable, DriverException, ErrorMessage) as exc:
        sys.stderr.write(f"verify: cannot compare: {' '.join(str(exc).split())[:300]}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("verify: interrupted, nothing is said\n")
        return 1
    print_verdict(verdict, topic)
    if expect is not None and verdict.messages + verdict.forgotten != expect:
        sys.stdout.write(f"{'sent':<40} {expect:>9}   not as many as in the topic\n")
        return 1
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
