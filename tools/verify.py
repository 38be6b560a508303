#!/usr/bin/env python3
"""Compare what is in the topic with what is in the index and in the dead letters.

    python tools/verify.py
    python tools/verify.py --ledger FILE    # FILE as sensor_generator.py --ledger has written it

Every message of the topic is read again and must be in exactly one place: in the index, once and
with the same values, or in the dead-letter topic, under its own partition and offset. Nothing else
may be in the index, unless the topic has already forgotten its first messages. This is independent
of the consumer: no code that reads a message, and no document id, is shared with it. With a ledger,
each message that it notes must also be in the topic where Kafka acknowledged it, byte for byte; the
malformed ones must be in the dead letters, and no other.

Environment (or .env): as the consumer, see kafka_to_elasticsearch.py, with VERIFIER_ in the place
of CONSUMER_.

Exit codes: 0 they agree, 1 they do not, or a server is unreachable; 2 wrong usage.
"""

import argparse
import csv
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from elasticsearch import ApiError, Elasticsearch, TransportError
from elasticsearch.helpers import ScanError, scan
from kafka import KafkaConsumer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import TopicPartition

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tools.connection import (  # noqa: E402  # works from any folder
    RefusedError,
    elasticsearch_client,
    explained,
    kafka_options,
    load_env,
    with_dated,
)

STALL_S = 30
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Key = tuple[str, int]  # sensor_id, epoch ms: what makes a reading
Where = tuple[int, int]  # partition, offset


@dataclass
class Verdict:
    """What the comparison found; the lists name messages as (partition, offset).

    Attributes:
        messages: number of messages in the topic.
        indexed: documents in the index.
        dead_lettered: messages that are in the dead-letter topic.
        conflicting: those of them whose sensor has another reading of the same time in the index.
        repeated: messages whose reading had come before with the same values.
        missing: in neither place.
        differing: in the index with other values, and not in the dead letters.
        doubled: readings of which the index holds more than one document.
        unexpected: documents that no message accounts for.
        strange: ids of documents that are no readings.
        forgotten: messages that the topic has deleted, so that their documents cannot be checked.
        ledger: messages that the ledger notes.
        unacknowledged: those of them that Kafka has not acknowledged.
        altered: acknowledged, but the topic does not hold these bytes there.
        misjudged: malformed and not in the dead letters, or the reverse without a conflict.
    """

    messages: int = 0
    indexed: int = 0
    dead_lettered: int = 0
    conflicting: int = 0
    repeated: int = 0
    missing: list[Where] = field(default_factory=list)
    differing: list[Where] = field(default_factory=list)
    doubled: list[Key] = field(default_factory=list)
    unexpected: list[Key] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    forgotten: int = 0
    ledger: int = 0
    unacknowledged: int = 0
    altered: list[Where] = field(default_factory=list)
    misjudged: list[Where] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, changed or made up."""
        wrong = self.missing or self.differing or self.doubled or self.altered or self.misjudged
        return not (wrong or self.strange or (self.unexpected and not self.forgotten))


def read_topic(servers: str, topic: str, security: Mapping[str, str]) -> tuple[Iterator[Any], int]:
    """Return the messages that the topic holds now, and the number that it has already deleted.

    Raises:
        KafkaError: Kafka does not answer, or delivers nothing any more.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        auto_offset_reset="earliest",  # when retention overtakes us, go on behind it
        isolation_level="read_committed",
        bootstrap_timeout_ms=10_000,
        **security,
    )
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)

    def messages() -> Iterator[Any]:
        left = {p for p in partitions if first[p] < end[p]}
        with consumer:
            consumer.assign(sorted(left))
            for partition in left:
                consumer.seek(partition, first[partition])
            last = time.monotonic()
            while left:
                polled = consumer.poll(1000, max_records=5000)
                for partition, found in polled.items():
                    yield from (message for message in found if message.offset < end[partition])
                at = {p: consumer.position(p, timeout_ms=1000 * STALL_S) or 0 for p in left}
                reached = {p for p in left if at[p] >= end[p]}
                left -= reached
                if polled or reached:
                    last = time.monotonic()
                elif time.monotonic() - last > STALL_S:
                    raise KafkaTimeoutError(f"topic {topic}: Kafka delivers nothing any more")

    return messages(), sum(first.values())


def reading_key(reading: dict[str, Any]) -> Key:
    """Return what makes a reading: its sensor and its time."""
    sensor_id = reading["sensor_id"]
    if not isinstance(sensor_id, str):
        raise TypeError(sensor_id)
    since_epoch = datetime.fromisoformat(reading["timestamp"]) - EPOCH
    return sensor_id, since_epoch // timedelta(milliseconds=1)  # what is finer is cut


def reading_values(reading: dict[str, Any]) -> tuple[Any, ...]:
    """Return everything else, in a fixed order."""
    return tuple(value for name, value in sorted(reading.items()) if name != "timestamp")


def read(value: bytes | None) -> tuple[Key, tuple[Any, ...]] | None:
    """Return what a message says, None when it is not a reading."""
    try:
        reading = json.loads(value or b"")
        return reading_key(reading), reading_values(reading)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def verify(
    servers: str, topic: str, client: Elasticsearch, index: str, ledger: Path | None = None,
    security: Mapping[str, str] | None = None,
) -> Verdict:  # fmt: skip
    """Compare topic, index, dead letters and, when it is given, the generator's ledger.

    Security holds kafka-python's options for TLS and a password, if any.

    Raises:
        KafkaError, ApiError, TransportError: a server does not answer.
        ScanError: a part of the index is away.
        OSError, ValueError: the ledger cannot be read, or is none.
    """
    verdict = Verdict()
    noted = read_ledger(ledger, verdict) if ledger else {}
    letters, _ = read_topic(servers, f"{topic}.dead-letter", security or {})
    dead: set[tuple[int, int, int]] = set()  # with the CRC-32 of the bytes
    for letter in letters:
        headers = dict(letter.headers)
        with suppress(KeyError, ValueError, TypeError):  # not the consumer's
            where = (int(headers["source.partition"]), int(headers["source.offset"]))
            dead.add((*where, zlib.crc32(letter.value or b"")))
    indices = with_dated(index)
    client.indices.refresh(index=indices)
    documents: dict[Key, tuple[Any, ...]] = {}
    for hit in scan(client, index=indices, size=5000):
        try:
            key = reading_key(hit["_source"])
        except (KeyError, TypeError, ValueError, OverflowError):
            verdict.strange.append(hit["_id"])
            continue
        if key in documents:
            verdict.doubled.append(key)
        documents[key] = reading_values(hit["_source"])
    verdict.indexed = client.count(index=indices)["count"]
    accounted: set[Key] = set()
    rejected: dict[Key, list[tuple[Where, tuple[Any, ...]]]] = {}
    messages, verdict.forgotten = read_topic(servers, topic, security or {})
    for message in messages:
        verdict.messages += 1
        where = (message.partition, message.offset)
        crc32 = zlib.crc32(message.value or b"")
        is_dead = (*where, crc32) in dead
        if where in noted:
            checksum, is_malformed = noted.pop(where)
            if checksum != crc32:
                verdict.altered.append(where)
            if is_malformed != is_dead:
                verdict.misjudged.append(where)
        found = read(message.value)
        if is_dead:
            verdict.dead_lettered += 1
            if found:
                rejected.setdefault(found[0], []).append((where, found[1]))
            continue
        if found is None:  # malformed, and nobody has said so
            verdict.missing.append(where)
            continue
        key, values = found
        if key not in documents:
            verdict.missing.append(where)
        elif documents[key] != values:
            verdict.differing.append(where)
        elif key in accounted:
            verdict.repeated += 1
        accounted.add(key)
    # Of two readings of one sensor and time either may be the one that stays.
    conflicts: set[Where] = set()
    for key, claims in rejected.items():
        stored = documents.get(key)
        if stored and any(values != stored for _, values in claims):
            conflicts |= {where for where, _ in claims}
            if any(values == stored for _, values in claims):
                accounted.add(key)
    verdict.conflicting = len(conflicts)
    verdict.misjudged = [where for where in verdict.misjudged if where not in conflicts]
    verdict.unexpected = sorted(set(documents) - accounted)
    verdict.altered += sorted(noted)  # what is left of it is not in the topic
    return verdict


def read_ledger(path: Path, verdict: Verdict) -> dict[Where, tuple[int, bool]]:
    """Return what a ledger notes: where -> CRC-32 of the bytes, and whether they are malformed.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    noted: dict[Where, tuple[int, bool]] = {}
    with path.open(encoding="ascii", newline="") as file:
        try:
            rows = csv.DictReader(file)
            if not {"partition", "offset", "crc32", "label"} <= set(rows.fieldnames or ()):
                raise KeyError(path)
            for row in rows:
                is_malformed = row["label"].startswith("malformed")
                if row["offset"]:
                    where = (int(row["partition"]), int(row["offset"]))
                    if where in noted:  # of a topic that was made anew: the first one is gone
                        verdict.altered.append(where)
                    noted[where] = (int(row["crc32"], 16), is_malformed)
                verdict.ledger += 1
                verdict.unacknowledged += not row["offset"]
        except (KeyError, TypeError, AttributeError, csv.Error) as exc:
            raise ValueError(f"{path} is not a ledger of sensor_generator.py") from exc
    return noted


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="what the generator sent")
    ledger = parser.parse_args(argv).ledger
    load_env()
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092"
    topic = os.environ.get("KAFKA_TOPIC") or "smart-city-sensors"
    index = os.environ.get("ELASTICSEARCH_INDEX") or "sensors_data"
    try:
        security, client = kafka_options("VERIFIER"), elasticsearch_client("VERIFIER")
    except ValueError as exc:
        parser.error(str(exc))
    try:
        with explained(servers, "VERIFIER", security):
            verdict = verify(servers, topic, client, index, ledger, security)
    except (
        RefusedError, KafkaError, ApiError, TransportError, ScanError, OSError, ValueError,
    ) as exc:  # fmt: skip
        sys.stderr.write(f"verify: cannot compare: {' '.join(str(exc).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("verify: interrupted\n")
        return 1
    print_verdict(verdict, topic, index)
    return 0 if verdict.holds else 1


def print_verdict(verdict: Verdict, topic: str, index: str) -> None:
    """Print one line per count, with the first few of what is wrong."""
    write = sys.stdout.write
    write(f"messages in {topic:<28} {verdict.messages:>9}\n")
    write(f"documents in {index:<27} {verdict.indexed:>9}\n")
    write(f"{'repeated (same reading, same values)':<40} {verdict.repeated:>9}\n")
    write(f"{'dead-lettered':<40} {verdict.dead_lettered:>9}\n")
    write(f"{'  of which in conflict':<40} {verdict.conflicting:>9}\n")
    names = ["missing", "differing", "doubled", "unexpected"]
    if verdict.strange:
        names.append("strange")
    if verdict.ledger:
        write(f"{'messages in the ledger':<40} {verdict.ledger:>9}\n")
        write(f"{'not acknowledged':<40} {verdict.unacknowledged:>9}\n")
        names += ["altered", "misjudged"]
    for name in names:
        found = getattr(verdict, name)
        write(f"{name:<40} {len(found):>9}")
        write(f"   for example {', '.join(map(str, found[:3]))}\n" if found else "\n")
    if verdict.forgotten:
        write(f"{'deleted by the topic, not checked':<40} {verdict.forgotten:>9}\n")


if __name__ == "__main__":
    raise SystemExit(main())
