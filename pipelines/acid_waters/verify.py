#!/usr/bin/env python3
"""Compare what was sent with what is stored, for the current version or another one.

    python pipelines/acid_waters/verify.py
    python pipelines/acid_waters/verify.py --version 3
    python pipelines/acid_waters/verify.py --data FOLDER    # and the data set with LTM_Data…

Every message of the topic is read again and must be settled exactly once, integrated or
quarantined, and be in the archive in HDFS, byte for byte. What the topic has deleted must have been
settled before: lots that went unread are lost, also when the consumer was told to accept it. The
members of every version are derived anew from the versions table, event by event. The rows that the
members' messages hold must be those of the Parquet files in HDFS, each one, and the metrics that
DuckDB computes from them (verify.sql) those of PostgreSQL, row for row, to the last digit. Only
tables.py, which names the columns and reads the files, and settings.py, which reads .env, are
shared with the consumer.

Environment (or .env at the project's root): as the consumer, and
    HDFS_WEB_URL   default http://localhost:9870

Exit codes: 0 they agree, 1 they do not, or there is nothing to compare, or a server is unreachable;
2 wrong usage, for instance a version that does not exist.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal, localcontext
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import duckdb
import psycopg
from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition
from psycopg.rows import namedtuple_row

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.settings import load_env  # noqa: E402  # works from any folder
from pipelines.acid_waters.tables import (  # noqa: E402
    SAMPLES,
    TableError,
    find_file,
    read_table,
)

METRICS = Path(__file__).with_name("verify.sql")
METRIC_NAMES = (
    "site_metrics", "method_metrics", "year_metrics", "category_metrics", "sample_distribution",
)  # fmt: skip
STALL_S = 60.0  # Kafka is given up when nothing has come for so long
Place = tuple[int, int]  # partition, offset
NOBODY = frozenset({0})  # no lot has this id
DEFAULTS = {
    "KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
    "WATER_TOPIC": "water-quality",
    "HDFS_URL": "hdfs://localhost:8020/acid-waters",
    "HDFS_WEB_URL": "http://localhost:9870",
    "POSTGRESQL_URL": "postgresql://water@localhost:5433/water",
}


class VerifyError(Exception):
    """Why nothing can be compared, in one line for the user."""


class NoVersionError(Exception):
    """There is no such version; in one line for the user."""


# What keeps from comparing: a server that does not answer, or what cannot be read.
UNREADABLE = (
    KafkaError, psycopg.Error, duckdb.Error, OSError, HTTPException, ValueError, KeyError,
    VerifyError,
)  # fmt: skip


@dataclass
class Verdict:
    """What the comparison found: numbers, and lists of what is wrong.

    Attributes:
        messages: lots in the topic.
        integrated: those of them that have made a version.
        quarantined: those that were refused.
        forgotten: lots that are settled and that the topic has deleted since.
        versions: number of versions.
        version: the one that is compared.
        rows: of its data set.
        metrics: rows of metrics compared.
        unsettled: messages that are not settled.
        lost: deleted by the topic, and not settled before.
        unexpected_lots: settled, but the topic does not hold them, nor has it deleted them.
        wrongly_archived: the archive does not hold a message's bytes, or a lot of the version.
        wrongly_integrated: size or checksum is not what the message declares, or not of samples.
        wrong_versions: their members, or their number, do not follow from the events.
        missing_rows: sent and not in HDFS, as often as they are missing.
        unexpected_rows: in HDFS and not sent.
        differing_metrics: rows of metrics that only one of the two has.
        not_in_file, not_in_data_set: rows, with --data.
    """

    messages: int = 0
    integrated: int = 0
    quarantined: int = 0
    forgotten: int = 0
    versions: int = 0
    version: int = 0
    rows: int = 0
    metrics: int = 0
    unsettled: list[Place] = field(default_factory=list)
    lost: list[Place] = field(default_factory=list)
    unexpected_lots: list[Place] = field(default_factory=list)
    wrongly_archived: list[Place] = field(default_factory=list)
    wrongly_integrated: list[Place] = field(default_factory=list)
    wrong_versions: list[int] = field(default_factory=list)
    missing_rows: list[Any] = field(default_factory=list)
    unexpected_rows: list[Any] = field(default_factory=list)
    differing_metrics: list[Any] = field(default_factory=list)
    not_in_file: list[Any] = field(default_factory=list)
    not_in_data_set: list[Any] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, changed or made up."""
        return not any(isinstance(found, list) and found for found in vars(self).values())


def read_topic(servers: str, topic: str) -> tuple[dict[Place, Any], dict[int, int]]:
    """Return the messages that the topic holds now, and each partition's first offset.

    Raises:
        VerifyError: there is no such topic, it has never held anything, or Kafka delivers nothing
            any more.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        isolation_level="read_committed",  # not what a transaction has taken back
        api_version_auto_timeout_ms=10_000,
        receive_message_max_bytes=2**31 - 1,  # its default, 1 MB, is less than a fetch may bring
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
            polled = consumer.poll(1000)
            if polled:
                last = time.monotonic()
            elif time.monotonic() - last > STALL_S:
                raise VerifyError(f"Kafka at {servers} does not answer any more")
            for partition, found in polled.items():
                for message in found:
                    if message.offset < end[partition]:
                        messages[message.partition, message.offset] = message
    return messages, {partition.partition: offset for partition, offset in first.items()}


def is_as_declared(message: Any) -> bool:
    """Return whether a message's size and checksum are those in its headers."""
    headers = dict(reversed(message.headers))  # of two of a name, the first
    value = message.value or b""
    return (headers.get("size"), headers.get("checksum")) == (
        str(len(value.splitlines())).encode(), hashlib.sha256(value).hexdigest().encode(),
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
    # Each offset was a lot: nobody sends in transactions, whose markers would have some too.
    deleted = {(partition, offset) for partition in first for offset in range(first[partition])}
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
    verdict.forgotten = len(deleted & settled.keys())
    verdict.unsettled = sorted(messages.keys() - settled.keys())
    verdict.lost = sorted(deleted - settled.keys())
    for place, state in settled.items():
        verdict.integrated += state == "integrated"
        verdict.quarantined += state == "quarantined"
        if place in messages:
            if state == "integrated" and not is_as_declared(messages[place]):
                verdict.wrongly_integrated.append(place)
        elif place not in deleted:
            verdict.unexpected_lots.append(place)


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
        elif event.state == "quarantined":
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


class WebHdfs:
    """HDFS by HTTP, never through the proxy that http_proxy names: it is a server of our own."""

    def __init__(self, web_url: str, hdfs_url: str) -> None:
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.base = f"{web_url.rstrip('/')}/webhdfs/v1"
        self.root = urlsplit(hdfs_url).path.rstrip("/")

    def ask(self, path: str, operation: str) -> bytes:
        """Return the answer to an operation on a path below the root."""
        url = f"{self.base}{self.root}/{path}?op={operation}"
        with self.opener.open(url, timeout=60) as answer:
            content: bytes = answer.read()
            return content

    def files(self, folder: str) -> list[str]:
        """Return the data files of a folder, none when it is not there."""
        try:
            statuses = json.loads(self.ask(folder, "LISTSTATUS"))["FileStatuses"]["FileStatus"]
        except HTTPError as exc:
            if exc.code != HTTPStatus.NOT_FOUND:
                raise
            return []
        names = [status["pathSuffix"] for status in statuses if status["type"] == "FILE"]
        return [f"{folder}/{name}" for name in names if not name.startswith(("_", "."))]

    def download(self, folders: Sequence[str], to: Path) -> list[str]:
        """Copy the data files of folders; return their local names."""
        copies = []
        for name in [name for folder in folders for name in self.files(folder)]:
            copies.append(to / f"{len(list(to.iterdir()))}-{Path(name).name}")
            copies[-1].write_bytes(self.ask(name, "OPEN"))
        return [str(copy) for copy in copies]


def texts_table(db: Any, name: str, columns: Sequence[str], rows: Sequence[Any], to: Path) -> None:
    """Make a table of texts in DuckDB."""
    file = to / f"{name}.json"
    lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
    file.write_text("\n".join(lines), encoding="utf-8")
    types = ", ".join(f"'{column}': 'VARCHAR'" for column in columns)
    db.execute(
        f"CREATE TABLE {name} AS SELECT * FROM read_json(?, format='newline_delimited', "  # noqa: S608
        f"columns={{{types}}})",
        [str(file)],
    )


def stored_rows(db: Any, files: Sequence[str], lots: Sequence[int]) -> Counter[Any]:
    """Return the rows of some lots in Parquet files, typed."""
    if not files:
        return Counter()
    query = (
        f"SELECT {', '.join(SAMPLES.columns)} FROM read_parquet(?) WHERE list_contains(?, lot_id)"  # noqa: S608
    )
    return Counter(db.execute(query, [list(files), list(lots)]).fetchall())


def sent_rows(db: Any) -> Counter[Any]:
    """Return the rows of the table samples, typed."""
    columns = ", ".join(
        f"{name}::decimal(24, 12)" if name in SAMPLES.numbers
        else f"{name}::timestamp" if name in SAMPLES.dates else name
        for name in SAMPLES.columns
    )  # fmt: skip
    return Counter(db.execute(f"SELECT {columns} FROM samples").fetchall())  # noqa: S608


def divided(total: Any, count: int) -> Decimal:
    """Return a mean to 6 decimals, exactly; a half is rounded away from zero.

    >>> divided(Decimal("-0.0000025"), 1), divided(1, 3)
    (Decimal('-0.000003'), Decimal('0.333333'))
    """
    with localcontext() as context:
        context.prec = 60
        return (Decimal(total) / count).quantize(Decimal("1e-6"), ROUND_HALF_UP)


def compare_metrics(verdict: Verdict, db: Any, conn: Any) -> None:
    """Compute the metrics from the tables samples, methods and sites; compare with PostgreSQL's."""
    db.execute(METRICS.read_text(encoding="utf-8"))
    for name in METRIC_NAMES:
        ours: Counter[Any] = Counter()
        for row in db.execute(f"SELECT * FROM {name}").fetchall():  # noqa: S608
            if name == "sample_distribution":
                *keys, samples, of_all = row
                ours[(*keys, samples, divided(samples, of_all))] += 1
            else:
                *keys, count, total, low, high = row
                ours[(*keys, count, divided(total, count), low, high)] += 1
        query = f"SELECT * FROM {name}(%s)"  # noqa: S608
        theirs = Counter(tuple(row) for row in conn.execute(query, [verdict.version]))
        verdict.metrics += ours.total()
        differing = (ours - theirs) + (theirs - ours)
        verdict.differing_metrics += [(name, *row) for row in differing]


def read_archive(conn: Any, db: Any, hdfs: WebHdfs, to: Path) -> dict[tuple[Any, ...], bytes]:
    """Return the archived messages of all lots: (topic, partition, offset) -> value."""
    folders = [path for (path,) in conn.execute("SELECT DISTINCT raw_path FROM lots")]
    files = hdfs.download(folders, to)
    if not files:
        return {}
    query = 'SELECT topic, partition, "offset", value FROM read_parquet(?)'
    rows = db.execute(query, [files]).fetchall()
    return {tuple(place): value for *place, value in rows}


def read_rows(value: bytes) -> list[tuple[Any, ...]]:
    """Return the rows of a lot, as tuples in the order of the columns.

    Raises:
        ValueError, KeyError, TypeError: these are no samples.
    """
    lines = [json.loads(line) for line in value.splitlines()]
    return [tuple(line[name] for name in SAMPLES.columns) for line in lines]


def compare_data(
    verdict: Verdict, conn: Any, hdfs: WebHdfs, messages: Mapping[Place, Any], data: Path | None
) -> None:
    """Compare the archive with the messages, and a version's rows and metrics with the archive."""
    lots = conn.execute("SELECT * FROM lots_at(%s)", [verdict.version]).fetchall()
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as db:
        to = Path(folder)
        archive = read_archive(conn, db, hdfs, to)
        verdict.wrongly_archived = [
            place for place, message in messages.items()
            if archive.get((message.topic, *place), b"?") != message.value
        ]  # fmt: skip
        rows: list[tuple[Any, ...]] = []
        for lot in lots:
            place = (lot.partition, lot.offset)
            value = archive.get((lot.topic, *place))
            if value is None:
                if place not in verdict.wrongly_archived:
                    verdict.wrongly_archived.append(place)
                continue
            try:
                rows += read_rows(value)
            except (ValueError, KeyError, TypeError):
                verdict.wrongly_integrated.append(place)
        texts_table(db, "samples", SAMPLES.columns, rows, to)
        sent = sent_rows(db)
        files = hdfs.download(sorted({lot.data_path for lot in lots if lot.data_path}), to)
        stored = stored_rows(db, files, [lot.lot_id for lot in lots])
        verdict.rows = stored.total()
        verdict.missing_rows = list((sent - stored).elements())
        verdict.unexpected_rows = list((stored - sent).elements())
        for name in ("methods", "sites"):
            files = hdfs.download([f"reference/{name}"], to)
            if not files:
                raise VerifyError(f"{hdfs.root}/reference/{name} is not there")
            db.execute(
                f"CREATE TABLE {name} AS SELECT * FROM read_csv(?, header=true, all_varchar=true, "  # noqa: S608
                "delim=',', quote='\"', escape='\"', nullstr='')",
                [files],
            )
        compare_metrics(verdict, db, conn)
    if data:
        file = Counter(tuple(r.values()) for r in read_table(find_file(data, SAMPLES), SAMPLES))
        texts = Counter(rows)
        verdict.not_in_data_set = list((file - texts).elements())
        verdict.not_in_file = list((texts - file).elements())


def verify(
    settings: Mapping[str, str], version: int | None = None, data: Path | None = None
) -> Verdict:
    """Compare topic, versions table, HDFS and metrics.

    Raises:
        KafkaError, psycopg.Error, OSError, HTTPException: a server does not answer.
        VerifyError, duckdb.Error, ValueError: what should be compared cannot be read.
        NoVersionError: there is no such version.
        TableError: the file of --data cannot be read.
    """
    verdict = Verdict()
    topic = settings["WATER_TOPIC"]
    messages, first = read_topic(settings["KAFKA_BOOTSTRAP_SERVERS"], topic)
    with psycopg.connect(
        settings["POSTGRESQL_URL"], row_factory=namedtuple_row, connect_timeout=10,
        options="-c search_path=water -c default_transaction_isolation=repeatable\\ read",
    ) as conn:  # fmt: skip
        (current,) = conn.execute("SELECT current_version()").fetchone() or (0,)
        if version is not None and not 1 <= version <= current:
            raise NoVersionError(f"there is no version {version}: 1 to {current}")
        verdict.version = version or current
        compare_lots(verdict, conn, topic, messages, first)
        compare_versions(verdict, conn)
        hdfs = WebHdfs(settings["HDFS_WEB_URL"], settings["HDFS_URL"])
        compare_data(verdict, conn, hdfs, messages, data)
    return verdict


def print_verdict(verdict: Verdict) -> None:
    """Print numbers and, of what is wrong, the number and the first three."""
    for name, found in vars(verdict).items():
        shown = len(found) if isinstance(found, list) else found
        sys.stdout.write(f"{name.replace('_', ' '):<24} {shown:>8}\n")
        if isinstance(found, list):
            for one in found[:3]:
                sys.stdout.write(f"    {one}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Verify and print; return the exit code (see the module docstring)."""
    load_env()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", type=int, metavar="N", help="(default: the current one)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="compare with LTM_Data… there")
    options = parser.parse_args(argv)
    settings = {name: os.environ.get(name) or default for name, default in DEFAULTS.items()}
    try:
        verdict = verify(settings, options.version, options.data)
    except (TableError, NoVersionError) as exc:
        sys.stderr.write(f"verify: {exc}\n")
        return 2
    except UNREADABLE as exc:
        lines = str(exc).strip().splitlines() or [type(exc).__name__]
        sys.stderr.write(f"verify: {lines[0]}\n")
        return 1
    print_verdict(verdict)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
