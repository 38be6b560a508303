"""Compare what is in the topic with what is in the index and in the dead letters.

    python -m tools.verify
    python -m tools.verify --ledger FILE    # what tools/faulty_sensors.py --ledger has written

Every message of the topic is read again and must be in exactly one place: in the index, once and
with the same values, or in the dead-letter topic, under its own partition and offset. Nothing else
may be in the index, unless the topic has already deleted its first messages. The comparison shares
no code that reads a message, and no document id, with the consumer. With a ledger, each message
that it notes must also be in the topic where Kafka acknowledged it, byte for byte; the malformed
ones must be in the dead letters, and no others. What an open transaction hides is only counted,
since the consumer does not read it either.

Environment (or .env): as the consumer, see kafka_to_elasticsearch.py, with VERIFIER_ in the place
of CONSUMER_.

Exit codes: 0 they agree, 1 they do not, there is nothing to compare, or a server is unreachable;
2 wrong usage or configuration, 130 Ctrl-C.
"""

import csv
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from elasticsearch import Elasticsearch
from elasticsearch.helpers import scan
from kafka.errors import UnknownTopicOrPartitionError
from tqdm import tqdm

from kibana.command_line import command, load_env
from stack.console import CommandError, command_parser
from tools.connection import (
    asking_servers,
    elasticsearch_client,
    elasticsearch_index,
    existing_topics,
    hidden_offsets,
    kafka_consumer,
    kafka_options,
    kafka_servers,
    kafka_topic,
    partitions_of,
    read_between,
    with_dated,
)

ROLE = "VERIFIER"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Key = tuple[str, int]  # sensor_id and epoch ms, which identify a reading
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
        strange: ids of documents that are not readings.
        forgotten: messages that the topic has deleted, so that their documents cannot be checked.
        hidden: offsets that an open transaction hides for now.
        letters_unread: of dead letters, those that their topic has deleted or hides for now.
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
    letters_unread: int = 0
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
    """What a topic holds at the time when it is asked.

    Attributes:
        messages: those that are committed, each partition in order; a terminal shows how many of
            them are read.
        forgotten: how many messages it has deleted before them.
        hidden: how many offsets an open transaction hides behind them for now.
    """

    messages: Iterator[Any]
    forgotten: int
    hidden: int


def read_topic(servers: str, topic: str, security: Mapping[str, Any]) -> Topic:
    """Return what a topic that exists holds.

    Raises:
        KafkaError: Kafka does not answer, or stops delivering.
    """
    consumer = kafka_consumer(servers, security)
    partitions = partitions_of(consumer, topic)
    begin, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    hidden = hidden_offsets(servers, security, end)

    def messages() -> Iterator[Any]:
        expected = sum(end[partition] - begin[partition] for partition in partitions)
        with closing(consumer), progress_bar(f"reading {topic}", expected) as bar:
            for some in read_between(consumer, begin, end, at_once=5000):
                bar.update(len(some))
                yield from some

    return Topic(messages(), sum(begin.values()), hidden)


def progress_bar(what: str, expected: int, items: Iterable[Any] | None = None) -> "tqdm[Any]":
    """Return a bar that a terminal shows until its end; elsewhere it shows nothing."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(items, what, expected, leave=False, disable=not is_terminal)


def reading_key(reading: dict[str, Any]) -> Key:
    """Return what identifies a reading: its sensor and its time.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is not a reading.
    """
    sensor_id = reading["sensor_id"]
    if not isinstance(sensor_id, str):
        raise TypeError(sensor_id)
    since_epoch = datetime.fromisoformat(reading["timestamp"]) - EPOCH
    return sensor_id, since_epoch // timedelta(milliseconds=1)  # rounded down


def reading_values(reading: dict[str, Any]) -> Values:
    """Return everything but the time, in a fixed order."""
    return tuple(value for name, value in sorted(reading.items()) if name != "timestamp")


def read(value: bytes | None) -> tuple[Key, Values] | None:
    """Return the reading in a message, None when it holds none."""
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
        with suppress(KeyError, ValueError, TypeError):  # the consumer has not filed it
            where = (int(headers["source.partition"]), int(headers["source.offset"]))
            dead.add((*where, zlib.crc32(letter.value or b"")))
    return dead


def read_index(client: Elasticsearch, index: str, verdict: Verdict) -> dict[Key, Values]:
    """Return the readings of the index; note its documents that are no reading, or one twice.

    Raises:
        ApiError, TransportError: Elasticsearch does not answer.
        ScanError: a part of the index is away.
    """
    indices = with_dated(client, index)
    client.indices.refresh(index=indices)
    documents: dict[Key, Values] = {}
    verdict.indexed = client.count(index=indices)["count"]
    hits = scan(client, index=indices, size=5000)
    for hit in progress_bar(f"reading {index}", verdict.indexed, hits):
        try:
            key = reading_key(hit["_source"])
        except (KeyError, TypeError, ValueError, OverflowError):
            verdict.strange.append(hit["_id"])
            continue
        if key in documents:
            verdict.doubled.append(key)
        documents[key] = reading_values(hit["_source"])
    return documents


def verify(
    servers: str,
    topic: str,
    client: Elasticsearch,
    index: str,
    ledger: Path | None = None,
    security: Mapping[str, Any] | None = None,
) -> Verdict:
    """Compare topic, index, dead letters and, when it is given, the generator's ledger.

    Args:
        servers: the brokers' addresses, HOST:PORT with commas between.
        topic: of the readings; its dead letters are in <topic>.dead-letter.
        client: of Elasticsearch.
        index: of the readings; those of days or months beside it are read too.
        ledger: a file that tools/faulty_sensors.py --ledger has written.
        security: kafka-python's options for TLS and a password, if any.

    Raises:
        KafkaError: Kafka does not answer, or has no such topic.
        ApiError, TransportError: Elasticsearch does not answer.
        ScanError: a part of the index is away.
        CommandError: the ledger cannot be read, or is not one.
    """
    verdict = Verdict()
    noted = read_ledger(ledger, verdict) if ledger else {}
    security, letters = security or {}, f"{topic}.dead-letter"
    topics = existing_topics(servers, security)
    if topic not in topics:
        raise UnknownTopicOrPartitionError(f"there is no topic {topic}, or none that we may see")
    dead = set()
    if letters in topics:  # otherwise no dead letter was ever filed
        filed, forgotten, hidden = read_topic(servers, letters, security)
        dead, verdict.letters_unread = read_dead_letters(filed), forgotten + hidden
    documents = read_index(client, index, verdict)
    messages, verdict.forgotten, verdict.hidden = read_topic(servers, topic, security)
    compare(messages, documents, dead, noted, verdict)
    return verdict


def compare(
    messages: Iterator[Any],
    documents: dict[Key, Values],
    dead: set[tuple[int, int, int]],
    noted: dict[Where, tuple[int, bool]],
    verdict: Verdict,
) -> None:
    """Look for each message in the index or the dead letters, then for what is there besides.

    Args:
        messages: of the topic.
        documents: the readings of the index.
        dead: where the dead letters were in the topic, each with the CRC-32 of its bytes.
        noted: what the ledger notes; what the topic holds is taken out of it.
        verdict: the comparison's result, which is filled in.
    """
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
        elif found is None:  # not a reading, and not filed as a dead letter
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
    verdict.altered += sorted(noted)  # what is left is not in the topic


def judge_filed(
    filed: dict[Key, list[tuple[Where, Values]]],
    documents: dict[Key, Values],
    accounted: set[Key],
    verdict: Verdict,
) -> None:
    """Account for the dead letters that are readings: in conflict, or indexed later.

    When a sensor has two readings of one time, either may be the one that is indexed. A reading
    that was refused may be indexed when the topic is read again after its cause was mended.
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
        CommandError: it cannot be read, or is not a ledger.
    """
    noted: dict[Where, tuple[int, bool]] = {}
    try:
        with path.open(encoding="ascii", newline="") as file:
            rows = csv.DictReader(file)
            if not {"partition", "offset", "crc32", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(rows.fieldnames)
            for row in rows:
                is_malformed = row["label"].startswith("malformed")
                if row["offset"]:
                    where = (int(row["partition"]), int(row["offset"]))
                    if where in noted:  # the topic was made anew, and the first one is gone
                        verdict.altered.append(where)
                    noted[where] = (int(row["crc32"], 16), is_malformed)
                verdict.ledger += 1
                verdict.unacknowledged += not row["offset"]
    except OSError as exc:
        raise CommandError(f"cannot compare with {path}: {exc.strerror}") from exc
    except (TypeError, AttributeError, ValueError, csv.Error) as exc:
        raise CommandError(f"{path} is not a ledger of tools/faulty_sensors.py") from exc
    return noted


def print_verdict(verdict: Verdict, topic: str, index: str) -> None:
    """Print one line for each count, with examples of what is wrong."""
    lines: list[tuple[str, int, str]] = [
        (f"messages in {topic}", verdict.messages, ""),
        (f"documents in {index}", verdict.indexed, ""),
        ("repeated (same reading, same values)", verdict.repeated, ""),
        ("dead-lettered", verdict.dead_lettered, ""),
        ("  of which in conflict", verdict.conflicting, ""),
    ]
    names = ["missing", "differing", "doubled", "unexpected"]
    if verdict.strange:
        names.append("strange")
    if verdict.ledger:
        lines.append(("messages in the ledger", verdict.ledger, ""))
        lines.append(("not acknowledged", verdict.unacknowledged, ""))
        names += ["altered", "misjudged"]
    for name in names:
        found = getattr(verdict, name)
        examples = f"   for example {', '.join(map(str, found[:3]))}" if found else ""
        lines.append((name, len(found), examples))
    if verdict.forgotten:
        lines.append(("deleted by the topic, not checked", verdict.forgotten, ""))
    if verdict.hidden:
        lines.append(("hidden by an open transaction, not read", verdict.hidden, ""))
    if verdict.letters_unread:
        lines.append(("dead letters deleted or hidden, not read", verdict.letters_unread, ""))
    width = max(40, *(len(label) for label, _, _ in lines))
    for label, count, examples in lines:
        sys.stdout.write(f"{label:<{width}} {count:>9}{examples}\n")
    if not verdict.messages:
        sys.stdout.write(f"nothing to compare: topic {topic} holds no message\n")


@command("verify")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; return the exit code (see the module docstring)."""
    parser = command_parser("tools.verify", __doc__)
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="what was sent, as noted")
    ledger = parser.parse_args(argv).ledger
    load_env()
    servers, topic, index = kafka_servers(), kafka_topic(), elasticsearch_index()
    security, client = kafka_options(ROLE), elasticsearch_client(ROLE)
    with asking_servers(ROLE):
        verdict = verify(servers, topic, client, index, ledger, security)
    print_verdict(verdict, topic, index)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
