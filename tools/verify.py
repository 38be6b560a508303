#!/usr/bin/env python3
"""Compare what is in the topic with what is in the index and in the dead letters.

    python tools/verify.py
    python tools/verify.py --ledger FILE    # what tools/faulty_sensors.py --ledger has written

Every message of the topic is read again and must be in exactly one place: in the index, once and
with the same values, or in the dead-letter topic, under its own partition and offset. Nothing else
may be in the index, unless the topic has already forgotten its first messages. This is independent
of the consumer: no code that reads a message, and no document id, is shared with it. With a ledger,
each message that it notes must also be in the topic where Kafka acknowledged it, byte for byte; the
malformed ones must be in the dead letters, and no other. What an open transaction hides is neither
read by the consumer nor compared; it is counted.

Environment (or .env): as the consumer, see kafka_to_elasticsearch.py, with VERIFIER_ in the place
of CONSUMER_.

Exit codes: 0 they agree, 1 they do not, there is nothing to compare, or a server is unreachable;
2 wrong usage.
"""

import argparse
import csv
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from elasticsearch import Elasticsearch
from elasticsearch.helpers import scan
from kafka.errors import KafkaError, UnknownTopicOrPartitionError

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kafka_to_elasticsearch import SetupError  # noqa: E402  # works from any folder
from tools.connection import (  # noqa: E402
    ELASTICSEARCH_ERRORS,
    elasticsearch_client,
    elasticsearch_index,
    existing_topics,
    failure,
    kafka_consumer,
    kafka_options,
    kafka_servers,
    kafka_topic,
    load_env,
    partitions_of,
    read_between,
    run,
    with_dated,
)

ROLE = "VERIFIER"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Key = tuple[str, int]  # sensor_id, epoch ms: what makes a reading
Values = tuple[Any, ...]  # everything else in a reading
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
        hidden: offsets that an open transaction hides for now.
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
    hidden: int = 0
    ledger: int = 0
    unacknowledged: int = 0
    altered: list[Where] = field(default_factory=list)
    misjudged: list[Where] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether something was compared, and nothing is lost, changed or made up."""
        wrong = self.missing or self.differing or self.doubled or self.altered or self.misjudged
        made_up = self.unexpected and not (self.forgotten or self.hidden)
        return bool(self.messages) and not (wrong or self.strange or made_up)


class Topic(NamedTuple):
    """What a topic holds when it is first asked.

    Attributes:
        messages: those that are committed, each partition in order.
        forgotten: how many messages it has deleted before them.
        hidden: how many offsets an open transaction hides behind them for now.
    """

    messages: Iterator[Any]
    forgotten: int
    hidden: int


def read_topic(servers: str, topic: str, security: Mapping[str, Any]) -> Topic:
    """Return what a topic holds; it exists.

    Raises:
        KafkaError: Kafka does not answer, or delivers nothing any more.
    """
    consumer = kafka_consumer(servers, security)
    partitions = partitions_of(consumer, topic)
    begin, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    with closing(kafka_consumer(servers, security, isolation_level="read_uncommitted")) as other:
        written = other.end_offsets(partitions)

    def messages() -> Iterator[Any]:
        with closing(consumer):
            for some in read_between(consumer, begin, end, at_once=5000):
                yield from some

    hidden = sum(written[partition] - end[partition] for partition in partitions)
    return Topic(messages(), sum(begin.values()), max(0, hidden))


def reading_key(reading: dict[str, Any]) -> Key:
    """Return what makes a reading: its sensor and its time."""
    sensor_id = reading["sensor_id"]
    if not isinstance(sensor_id, str):
        raise TypeError(sensor_id)
    since_epoch = datetime.fromisoformat(reading["timestamp"]) - EPOCH
    return sensor_id, since_epoch // timedelta(milliseconds=1)  # what is finer is cut


def reading_values(reading: dict[str, Any]) -> Values:
    """Return everything else, in a fixed order."""
    return tuple(value for name, value in sorted(reading.items()) if name != "timestamp")


def read(value: bytes | None) -> tuple[Key, Values] | None:
    """Return what a message says, None when it is not a reading."""
    try:
        reading = json.loads(value or b"")
        return reading_key(reading), reading_values(reading)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def read_dead_letters(letters: Iterator[Any]) -> set[tuple[int, int, int]]:
    """Return where the dead letters were in the topic, each with the CRC-32 of its bytes."""
    dead = set()
    for letter in letters:
        headers = dict(letter.headers)
        with suppress(KeyError, ValueError, TypeError):  # not the consumer's
            where = (int(headers["source.partition"]), int(headers["source.offset"]))
            dead.add((*where, zlib.crc32(letter.value or b"")))
    return dead


def read_index(client: Elasticsearch, index: str, verdict: Verdict) -> dict[Key, Values]:
    """Return the readings of the index; count its documents, and those that are none or twice.

    Raises:
        ApiError, TransportError, ScanError: it does not answer, or not wholly.
    """
    indices = with_dated(index)
    client.indices.refresh(index=indices)
    documents: dict[Key, Values] = {}
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
    return documents


def verify(
    servers: str, topic: str, client: Elasticsearch, index: str, ledger: Path | None = None,
    security: Mapping[str, Any] | None = None,
) -> Verdict:  # fmt: skip
    """Compare topic, index, dead letters and, when it is given, the generator's ledger.

    Security holds kafka-python's options for TLS and a password, if any.

    Raises:
        KafkaError: Kafka does not answer, or has no such topic.
        ApiError, TransportError: Elasticsearch does not answer.
        ScanError: a part of the index is away.
        OSError, ValueError: the ledger cannot be read, or is none.
    """
    verdict = Verdict()
    noted = read_ledger(ledger, verdict) if ledger else {}
    security, letters = security or {}, f"{topic}.dead-letter"
    topics = existing_topics(servers, security)
    if topic not in topics:
        raise UnknownTopicOrPartitionError(f"there is no topic {topic}, or none that we may see")
    dead = set()
    if letters in topics:  # else nothing was ever filed
        dead = read_dead_letters(read_topic(servers, letters, security).messages)
    documents = read_index(client, index, verdict)
    messages, verdict.forgotten, verdict.hidden = read_topic(servers, topic, security)
    compare(messages, documents, dead, noted, verdict)
    return verdict


def compare(
    messages: Iterator[Any], documents: dict[Key, Values], dead: set[tuple[int, int, int]],
    noted: dict[Where, tuple[int, bool]], verdict: Verdict,
) -> None:  # fmt: skip
    """Look for each message in the index or the dead letters, then for what is there besides."""
    accounted: set[Key] = set()
    filed: dict[Key, list[tuple[Where, Values]]] = {}  # readings among the dead letters
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
                filed.setdefault(found[0], []).append((where, found[1]))
        elif found is None:  # malformed, and nobody has said so
            verdict.missing.append(where)
        else:
            key, values = found
            if key not in documents:
                verdict.missing.append(where)
            elif documents[key] != values:
                verdict.differing.append(where)
            elif key in accounted:
                verdict.repeated += 1
            accounted.add(key)
    judge_filed(filed, documents, accounted, verdict)
    verdict.unexpected = sorted(set(documents) - accounted)
    verdict.altered += sorted(noted)  # what is left of it is not in the topic


def judge_filed(
    filed: dict[Key, list[tuple[Where, Values]]], documents: dict[Key, Values],
    accounted: set[Key], verdict: Verdict,
) -> None:  # fmt: skip
    """Account for the dead letters that are readings: in conflict, or indexed later.

    Of two readings of one sensor and time either may be the one that stays. One that was refused
    may be indexed when the topic is read again, its cause being mended.
    """
    conflicts: set[Where] = set()
    for key, claims in filed.items():
        stored = documents.get(key)
        if stored and any(values == stored for _, values in claims):
            accounted.add(key)
        if stored and any(values != stored for _, values in claims):
            conflicts |= {where for where, _ in claims}
    verdict.conflicting = len(conflicts)
    verdict.misjudged = [where for where in verdict.misjudged if where not in conflicts]


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
            raise ValueError(f"{path} is not a ledger of tools/faulty_sensors.py") from exc
    return noted


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="what the generator sent")
    ledger = parser.parse_args(argv).ledger
    load_env()
    try:
        servers, topic, index = kafka_servers(), kafka_topic(), elasticsearch_index()
        security, client = kafka_options(ROLE), elasticsearch_client(ROLE)
    except SetupError as exc:
        sys.stderr.write(f"verify: {exc}\n")
        return 2
    try:
        verdict = verify(servers, topic, client, index, ledger, security)
    except (KafkaError, *ELASTICSEARCH_ERRORS, OSError, ValueError) as exc:
        sys.stderr.write(f"verify: cannot compare: {failure(exc, ROLE)}\n")
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
    if verdict.hidden:
        write(f"{'hidden by an open transaction, not read':<40} {verdict.hidden:>9}\n")
    if not verdict.messages:
        write(f"nothing to compare: topic {topic} holds no message\n")


if __name__ == "__main__":
    raise SystemExit(run(main))
