#!/usr/bin/env python3
"""Compare what was sent to Kafka with what is stored in Cassandra.

    python3 verify.py
    python3 verify.py --ledger sent.csv      # what iot_simulator.py --ledger has noted

Every message of the topic is read again. One that is a reading must be a row in both tables (in
sensor_data alone if there is no sensor_data_by_day), with the same values (as 32-bit floats) and
the same millisecond; of two for one sensor and one millisecond, the one with the later write time
(the time in Kafka, then the offset modulo 1000) must be there. Any other must be in the topic of
rejects, with its key and bytes, under its own topic, partition and offset, and nothing else may be;
being there twice is allowed, as a crash between the send and the commit leaves it. No other row may
be stored, unless the topic has already forgotten its first messages. What a ledger says was
acknowledged must be in the topic, at that place, with these bytes. A topic without a message proves
nothing: then they do not agree. Messages are judged here by code of its own, not by the writer's.

Environment (or .env in this folder or the project's; an option wins over both): as the writer, see
scripts/kafka_to_cassandra.py.

Exit codes: 0 they agree, 1 they do not, or a server or a ledger cannot be read; 2 wrong usage, 130
interrupted.
"""

import csv
import json
import logging
import math
import os
import re
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cassandra import DriverException
from cassandra.cluster import Cluster, NoHostAvailable, Session
from cassandra.protocol import ErrorMessage
from kafka.errors import KafkaError

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import load_env  # noqa: E402  # after the path, with the next ones
from pipelines.iot_cassandra.kafka_topic import read_topic, shown  # noqa: E402
from pipelines.iot_cassandra.settings import (  # noqa: E402
    BY_DAY,
    FOLDER,
    SENSOR_DATA,
    add_shared,
    addresses,
    one_line,
    parser_of,
    rejects_topic,
)
from stack.console import command  # noqa: E402

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:[0-5]\d)", re.ASCII)
FIRST, LARGEST_OFFSET = datetime(1900, 1, 1, tzinfo=UTC), timedelta(hours=18)
KAFKA_TIMES = range(253_402_300_800_000)  # epoch ms up to the year 9999
# What must be empty in a verdict.
WRONG = (
    *("missing", "differing", "unexpected"),  # rows
    *("hidden", "misjudged", "altered", "strays", "lost"),  # messages
)
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
        rejected: different messages in the topic of rejects.
        twice: rejects that had been there before.
        rows: by table, the rows that are there.
        missing, differing, unexpected: rows that should be there, have other values, should not.
        hidden: messages that are no readings, and not in the topic of rejects.
        misjudged: readings in the topic of rejects.
        altered: messages whose reject has another key or other bytes.
        strays: rejects that are none of the topic's messages.
        lost: messages that a ledger has, and the topic has not at that place.
        forgotten: messages that the topic has deleted, so that their rows cannot be checked.
    """

    messages: int = 0
    readings: int = 0
    repeated: int = 0
    replaced: int = 0
    rejected: int = 0
    twice: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    missing: list[tuple[str, Key]] = field(default_factory=list)
    differing: list[tuple[str, Key]] = field(default_factory=list)
    unexpected: list[tuple[str, Key]] = field(default_factory=list)
    hidden: list[Where] = field(default_factory=list)
    misjudged: list[Where] = field(default_factory=list)
    altered: list[Where] = field(default_factory=list)
    strays: list[Where] = field(default_factory=list)
    lost: list[Where] = field(default_factory=list)
    forgotten: int = 0

    @property
    def holds(self) -> bool:
        """Whether something was compared, and nothing is lost, changed or made up."""
        found = {kind for kind in WRONG if getattr(self, kind)}
        if self.forgotten:
            found.discard("unexpected")
        return self.messages > 0 and not found


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
    day = ", day" if table == BY_DAY else ""
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


def read_rejects(servers: str, topic: str) -> tuple[dict[Where, list[Any]], list[Where]]:
    """Return the rejects by the message that each says it is, and where the others lie."""
    found: dict[Where, list[Any]] = defaultdict(list)
    strays: list[Where] = []
    for reject in read_topic(servers, rejects_topic(topic))[0]:
        headers = dict(reject.headers)
        try:
            if headers["source.topic"] != topic.encode() or not headers["reason"]:
                raise ValueError(headers)
            origin = (int(headers["source.partition"]), int(headers["source.offset"]))
        except (KeyError, ValueError, TypeError):  # not the writer's
            strays.append((reject.partition, reject.offset))
        else:
            found[origin].append(reject)
    return found, strays


def read_ledgers(paths: Sequence[Path]) -> dict[Where, bytes]:
    """Return the messages that Kafka has acknowledged, by their places.

    Raises:
        OSError, ValueError: a ledger cannot be read, or is none.
    """
    sent: dict[Where, bytes] = {}
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != ["partition", "offset", "message"]:
                raise ValueError(f"{path} is not a ledger of iot_simulator.py")
            for row in rows:
                try:
                    partition, offset, message = row
                    if offset:  # else it was not acknowledged
                        sent[int(partition), int(offset)] = message.encode()
                except ValueError:
                    raise ValueError(f"{path}, line {rows.line_num}: not a ledger's") from None
    return sent


def verify(
    servers: str, topic: str, session: Session, keyspace: str, sent: dict[Where, bytes]
) -> Verdict:
    """Compare ledgers, topic, tables and rejects.

    Args:
        servers: of Kafka.
        topic: of the readings.
        session: of Cassandra.
        keyspace: of the tables.
        sent: what the ledgers say, by place; used up. Empty for none.

    Raises:
        KafkaError, NoHostAvailable, DriverException, ErrorMessage: a server does not answer, or
            not what it is asked for.
    """
    verdict = Verdict()
    known, verdict.strays = read_rejects(servers, topic)
    verdict.rejected = len(known)
    verdict.twice = sum(map(len, known.values())) - len(known)
    expected: dict[Key, tuple[float, Values]] = {}
    messages, first = read_topic(servers, topic)
    verdict.forgotten = sum(first.values())
    for message in messages:
        verdict.messages += 1
        where = (message.partition, message.offset)
        rejects = known.pop(where, [])
        value = message.value or b""
        if sent.pop(where, value) != value:
            verdict.lost.append(where)
        if any((reject.key, reject.value) != (message.key, value) for reject in rejects):
            verdict.altered.append(where)
        found = read(message.value) if message.timestamp in KAFKA_TIMES else None
        if found is None:
            if not rejects:
                verdict.hidden.append(where)
            continue
        if rejects:
            verdict.misjudged.append(where)
        key, values = found
        write_time = message.timestamp * 1000 + message.offset % 1000
        before, other = expected.get(key, (-math.inf, values))
        verdict.repeated += key in expected and values == other
        verdict.replaced += values != other
        if write_time >= before:
            expected[key] = write_time, values
    verdict.lost += [where for where in sent if where[1] >= first.get(where[0], 0)]
    # What is left in `known` is no message of the topic, or one that it has deleted.
    verdict.strays += [
        (reject.partition, reject.offset)
        for (partition, offset), rejects in known.items()
        for reject in rejects
        if not 0 <= offset < first.get(partition, 0)
    ]
    verdict.readings = len(expected)
    known_tables = session.cluster.metadata.keyspaces.get(keyspace)
    for table in (SENSOR_DATA, BY_DAY):
        if table == BY_DAY and not (known_tables and BY_DAY in known_tables.tables):
            continue
        rows = read_rows(session, keyspace, table)
        stored = dict(shown(rows, f"reading {table}", len(expected)))
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
        "rejected": verdict.rejected,
        "rejected once more": verdict.twice,
    } | {f"rows in {table}": count for table, count in verdict.rows.items()}
    for label, count in lines.items():
        sys.stdout.write(f"{label:<40} {count:>9}\n")
    for name in WRONG:
        found = getattr(verdict, name)
        examples = f"   for example {', '.join(map(str, found[:3]))}" if found else ""
        sys.stdout.write(f"{name:<40} {len(found):>9}{examples}\n")
    if verdict.forgotten:
        sys.stdout.write(f"{'deleted by the topic, not checked':<40} {verdict.forgotten:>9}\n")
    if not verdict.messages:
        sys.stdout.write(f"nothing was compared: the topic {topic} is absent or empty\n")


@command("verify")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    wanted = ("--bootstrap-servers", "--topic", "--hosts", "--keyspace")
    parser = add_shared(parser_of(__doc__), os.environ, *wanted)
    parser.add_argument(
        "--ledger",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="of iot_simulator.py; may be given several times",
    )
    options = parser.parse_args(argv)
    for client in ("cassandra", "kafka"):
        logging.getLogger(client).setLevel(logging.CRITICAL)
    servers, topic = options.bootstrap_servers, options.topic
    try:
        sent = read_ledgers(options.ledger)
        with Cluster(addresses(options.hosts)) as cluster:
            verdict = verify(servers, topic, cluster.connect(), options.keyspace, sent)
    except (KafkaError, NoHostAvailable, DriverException, ErrorMessage) as exc:
        sys.stderr.write(f"verify: cannot compare: {one_line(exc)}\n")
        return 1
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"verify: {one_line(exc)}\n")
        return 1
    print_verdict(verdict, topic)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
