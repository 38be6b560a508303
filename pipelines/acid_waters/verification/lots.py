"""The messages of the topic beside what PostgreSQL says of them: lots, and members of versions."""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from pipelines.acid_waters.verification.verdict import Place, Verdict, VerifyError

STALL_S = 60.0  # Kafka is given up when nothing has come for so long
NOBODY = frozenset({0})  # no lot has this id


def read_topic(servers: str, topic: str) -> tuple[dict[Place, Any], dict[int, int]]:
    """Return the messages that the topic holds now, and each partition's first offset.

    Raises:
        VerifyError: there is no such topic, it has never held anything, or Kafka delivers nothing
            any more, or what cannot be decoded.
        KafkaError: Kafka does not answer, or has deleted messages before they were read.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        isolation_level="read_committed",  # not what a transaction has taken back
        api_version_auto_timeout_ms=10_000,
        receive_message_max_bytes=2**31 - 1,  # its default, 1 MB, is less than a fetch may bring
        auto_offset_reset="none",  # else it goes on after what is deleted, and says nothing
    )
    with closing(consumer):
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise VerifyError(f"no topic {topic} at {servers}: nothing to compare")
        partitions = [TopicPartition(topic, number) for number in numbers]
        first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        if not any(end.values()):
            raise VerifyError(f"topic {topic} at {servers} is empty: nothing to compare")
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, first[partition])
        messages: dict[Place, Any] = {}
        last = time.monotonic()
        while any((consumer.position(p, timeout_ms=1000) or 0) < end[p] for p in partitions):
            try:
                polled = consumer.poll(1000)
            except KafkaError:
                raise
            except Exception as exc:  # of a codec's library
                raise VerifyError(f"messages of {topic} cannot be decoded: {exc!r}") from exc
            if polled:
                last = time.monotonic()
            elif time.monotonic() - last > STALL_S:
                raise VerifyError(f"Kafka at {servers} does not answer any more")
            for partition, found in polled.items():
                for message in found:
                    if message.offset < end[partition]:
                        messages[message.partition, message.offset] = message
    return messages, {partition.partition: offset for partition, offset in first.items()}


def lines_of(value: bytes) -> list[bytes]:
    """Return the rows of a lot, as Spark splits them."""
    return [line for line in value.split(b"\n") if line]


def is_as_declared(message: Any) -> bool:
    """Return whether a message's size and checksum are those in its headers."""
    headers = dict(reversed(message.headers))  # of two of a name, the first
    value = message.value or b""
    return (headers.get("size"), headers.get("checksum")) == (
        str(len(lines_of(value))).encode(), hashlib.sha256(value).hexdigest().encode(),
    )  # fmt: skip


def compare_lots(
    verdict: Verdict,
    conn: Any,
    topic: str,
    messages: Mapping[Place, Any],
    first: Mapping[int, int],
) -> None:
    """Compare the messages with the lots that came from them.

    Args:
        verdict: gets what is found.
        conn: to PostgreSQL.
        topic: its name.
        messages: of the topic, as `read_topic` returns them.
        first: offsets, as `read_topic` returns them: what was before them is deleted.
    """
    settled: dict[Place, str] = {}
    for row in conn.execute(
        """SELECT DISTINCT ON (l.lot_id) l.partition, l."offset", v.state
        FROM lots l JOIN versions v USING (lot_id)
        WHERE l.topic = %s AND l.attempt = 0 AND v.state <> 'received'
        ORDER BY l.lot_id, v.event_id""",
        [topic],
    ):
        settled[row[0], row[1]] = row[2]
    verdict.messages = len(messages)
    verdict.unsettled = sorted(messages.keys() - settled.keys())
    verdict.deleted_unread = deleted_unread(conn, topic, first)
    for place, state in settled.items():
        verdict.integrated += state == "integrated"
        verdict.rejected += state == "rejected"
        if place in messages:
            if state == "integrated" and not is_as_declared(messages[place]):
                verdict.wrongly_integrated.append(place)
        elif place[1] < first.get(place[0], 0):
            verdict.forgotten += 1
        else:
            verdict.unexpected_lots.append(place)


def deleted_unread(conn: Any, topic: str, first: Mapping[int, int]) -> list[Place]:
    """Return what the topic has deleted before the consumer read it.

    What it deleted after that and was no lot, the consumer has rightly passed over: the markers of
    transactions, and what they have taken back. Of what is deleted nobody else can tell.

    Args:
        conn: to PostgreSQL.
        topic: its name.
        first: offsets, as `read_topic` returns them.
    """
    gaps = conn.execute(
        "SELECT partition, since, until FROM losses WHERE topic = %s", [topic]
    ).fetchall()
    query = "SELECT partition, next_offset FROM next_offsets WHERE topic = %s"
    read = dict(conn.execute(query, [topic]).fetchall())
    gaps += [(partition, read.get(partition, 0), until) for partition, until in first.items()]
    return sorted({(gap[0], offset) for gap in gaps for offset in range(*gap[1:])})


def members_by_events(conn: Any) -> dict[int, frozenset[int]]:
    """Return each version's lots as they follow from the events, in order."""
    batch_of = dict(conn.execute("SELECT lot_id, batch_id FROM lots").fetchall())
    members: dict[int, frozenset[int]] = {0: frozenset()}
    for event in conn.execute(
        "SELECT version, lot_id, state, reason FROM versions WHERE version IS NOT NULL "
        "ORDER BY event_id"
    ):
        before = members[max(members)]
        if event.state == "restored":
            of = re.fullmatch(r"version (\d+)", event.reason)
            members[event.version] = members.get(int(of[1]), NOBODY) if of else NOBODY
        elif event.state == "isolated":
            members[event.version] = before - {event.lot_id}
        else:
            others = {lot for lot in before if batch_of.get(lot) != batch_of[event.lot_id]}
            members[event.version] = frozenset(others | {event.lot_id})
    return members


def compare_versions(verdict: Verdict, conn: Any) -> None:
    """Compare each version's members, as stored, with those that follow from the events."""
    derived = members_by_events(conn)
    verdict.versions = len(derived) - 1
    for version, members in derived.items():
        lots = conn.execute(
            "SELECT lot_id FROM membership WHERE since <= %s AND (until IS NULL OR %s < until)",
            [version, version],
        ).fetchall()
        if sorted(members) != sorted(lot for (lot,) in lots):
            verdict.wrong_versions.append(version)
    verdict.wrong_versions += sorted(set(range(len(derived))) - set(derived))


def compare_ledgers(
    verdict: Verdict, conn: Any, topic: str, messages: Mapping[Place, Any], ledgers: Sequence[Path]
) -> None:
    """Look for what a producer says that Kafka has acknowledged: in the topic, else among the lots.

    Raises:
        VerifyError: a ledger is not one of the producer's.
        OSError: it cannot be read.
    """
    query = 'SELECT partition, "offset", checksum FROM lots WHERE topic = %s AND attempt = 0'
    known = {(row[0], row[1]): row[2] for row in conn.execute(query, [topic])}
    known |= {
        place: hashlib.sha256(message.value or b"").hexdigest()
        for place, message in messages.items()
    }
    for ledger in ledgers:
        for number, line in enumerate(ledger.read_text(encoding="utf-8").splitlines(), 1):
            try:
                lot = json.loads(line)
                found = known.get((lot["partition"], lot["offset"]))
                if found != lot["checksum"]:
                    verdict.not_received.append(lot["batch_id"])
            except (ValueError, KeyError, TypeError) as exc:
                raise VerifyError(f"{ledger}, line {number}: not a line of a ledger") from exc
