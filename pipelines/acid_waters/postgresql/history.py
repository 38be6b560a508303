"""How lots become versions of the data set, in SQL: each function is one transaction, or in one.

A version is a set of lots. Integrating a lot makes a version, isolating one too, and to restore one
is to make a new version of the same lots: history is only ever added to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from pipelines.acid_waters.postgresql.database import Connection


class VersionError(Exception):
    """Why a command cannot be done, in one line for the user."""


class SettledError(Exception):
    """Another consumer has settled these lots meanwhile."""


@dataclass(frozen=True)
class Verdict:
    """A lot that Spark has checked.

    Attributes:
        lot_id: its row in the table lots.
        reason: why it is refused; None when it is good.
        data_path: folder in HDFS with its rows, when it is good.
    """

    lot_id: int
    reason: str | None
    data_path: str | None = None


# 1. What the consumer does


def receive(conn: Connection, lots: Sequence[Mapping[str, Any]]) -> list[int]:
    """Note lots that are archived, before anything else is done with them; return their lot_id.

    A lot that was received before, by a consumer that was killed, keeps its row and its lot_id.
    """
    with conn.transaction(), conn.cursor() as cursor:
        # First versions, then lots, as publish has it: else the two could wait for each other.
        cursor.execute("LOCK TABLE versions IN ROW EXCLUSIVE MODE")
        return [receive_one(cursor, lot) for lot in lots]


def receive_one(cursor: psycopg.Cursor[Any], lot: Mapping[str, Any]) -> int:
    """Note one lot; see receive."""
    cursor.execute(
        """INSERT INTO lots (topic, partition, "offset", attempt, batch_id, sequence, first_row,
            source_file, declared_size, size, checksum, sent_at, raw_path)
        VALUES (%(topic)s, %(partition)s, %(offset)s, %(attempt)s, %(batch_id)s, %(sequence)s,
            %(first_row)s, %(source_file)s, %(declared_size)s, %(size)s, %(checksum)s, %(sent_at)s,
            %(raw_path)s)
        ON CONFLICT (topic, partition, "offset", attempt)
            DO UPDATE SET raw_path = lots.raw_path  -- unchanged, so that its lot_id is returned
        RETURNING lot_id""",
        lot,
    )
    lot_id: int = cursor.fetchone()[0]
    cursor.execute(
        """INSERT INTO versions (lot_id, batch_id, size, checksum, state)
        VALUES (%s, %s, %s, %s, 'received') ON CONFLICT DO NOTHING""",
        [lot_id, lot["batch_id"], lot["size"], lot["checksum"]],
    )
    return lot_id


def publish(
    conn: Connection, verdicts: Sequence[Verdict], facts: Mapping[str, Sequence[Sequence[Any]]]
) -> list[Any]:
    """Settle received lots, in order, in one transaction: each good one makes a version.

    Args:
        conn: see connect.
        verdicts: in the order of their versions.
        facts: table -> rows in the table's order, the lot_id first; of refused lots too.

    Returns:
        One event per verdict: rows of the table versions.

    Raises:
        SettledError: one of them is settled already; nothing is changed.
    """
    with conn.transaction():
        lock(conn)
        ids = [verdict.lot_id for verdict in verdicts]
        settled = "SELECT 1 FROM versions WHERE lot_id = ANY(%s) AND state <> 'received'"
        if conn.execute(settled, [ids]).fetchone():
            raise SettledError(
                "another consumer has settled these lots: only one may run, stop the other"
            )
        events = [settle(conn, verdict) for verdict in verdicts]
        good = {event.lot_id for event in events if event.state == "integrated"}
        for table, rows in facts.items():
            with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                for row in rows:
                    if row[0] in good:
                        copy.write_row(row)
    return events


def lock(conn: Connection) -> None:
    """Let nobody else make versions until the transaction ends; reading goes on."""
    conn.execute("LOCK TABLE versions IN SHARE ROW EXCLUSIVE MODE")


def settle(conn: Connection, verdict: Verdict) -> Any:
    """Integrate or refuse one lot; return the event."""
    lot = conn.execute("SELECT * FROM lots WHERE lot_id = %s", [verdict.lot_id]).fetchone()
    reason = verdict.reason or duplicate(conn, lot)
    if reason:
        return add_event(conn, lot, "rejected", reason)
    conn.execute(
        "UPDATE lots SET data_path = %s WHERE lot_id = %s", [verdict.data_path, lot.lot_id]
    )
    again = f"reprocessed, attempt {lot.attempt}" if lot.attempt else None
    event = add_event(conn, lot, "integrated", again, new_version=True)
    if lot.attempt:  # it takes the place of what was made of it before
        leave(conn, event.version, "batch_id = %s", lot.batch_id)
    enter(conn, event.version, "lot_id = %s", lot.lot_id)
    return event


def duplicate(conn: Connection, lot: Any) -> str | None:
    """Return why a lot from Kafka may not be integrated although it is good, None when it may.

    Its id may be in the data set once, and so may each row of a file, however it is cut into lots;
    and what was integrated once and then taken out, by isolating it or by restoring an earlier
    version, does not come back because it is sent again. One that is processed again takes the
    place of its own id only.
    """
    overlap = conn.execute(
        r"""SELECT batch_id, greatest(first_row, %(first)s) AS first,
            least(first_row::bigint + size, %(end)s) - 1 AS last
        FROM lots_at() WHERE batch_id <> %(id)s
        AND first_row < %(end)s AND %(first)s < first_row::bigint + size
        AND regexp_replace(source_file, '\.[^.]*$', '') = regexp_replace(%(file)s, '\.[^.]*$', '')
        ORDER BY first_row LIMIT 1""",
        {"id": lot.batch_id, "file": lot.source_file, "first": lot.first_row,
         "end": lot.first_row + lot.size},
    ).fetchone()  # fmt: skip
    if overlap:
        return (
            f"duplicate rows: {overlap.first} to {overlap.last} of {lot.source_file} are in the "
            f"data set already, in {overlap.batch_id}"
        )
    if lot.attempt:
        return None
    current = conn.execute("SELECT 1 FROM lots_at() WHERE batch_id = %s", [lot.batch_id]).fetchone()
    if current:
        return "duplicate id: it is in the data set already"
    before = conn.execute(
        "SELECT 1 FROM lots WHERE batch_id = %s AND checksum = %s AND data_path IS NOT NULL",
        [lot.batch_id, lot.checksum],
    ).fetchone()
    return "duplicate id: this content was integrated before, and taken out" if before else None


def add_event(
    conn: Connection, lot: Any, state: str, reason: str | None, new_version: bool = False
) -> Any:
    """Add an event of a lot, with the next version's number if it makes one; return its row."""
    return conn.execute(
        """INSERT INTO versions (version, lot_id, batch_id, size, checksum, state, reason)
        VALUES (CASE WHEN %s THEN current_version() + 1 END, %s, %s, %s, %s, %s, %s)
        RETURNING *""",
        [new_version, lot.lot_id, lot.batch_id, lot.size, lot.checksum, state, reason],
    ).fetchone()


def enter(conn: Connection, version: int, condition: str, *values: Any) -> None:
    """Put lots into the data set from a version on."""
    conn.execute(
        f"INSERT INTO membership SELECT lot_id, %s FROM lots WHERE {condition}",  # noqa: S608  # ours
        [version, *values],
    )


def leave(conn: Connection, version: int, condition: str, *values: Any) -> None:
    """Take lots out of the data set from a version on."""
    conn.execute(
        f"""UPDATE membership SET until = %s WHERE until IS NULL
        AND lot_id IN (SELECT lot_id FROM lots WHERE {condition})""",  # noqa: S608  # ours
        [version, *values],
    )


def archived_lot(conn: Connection, batch_id: str | None) -> Any:
    """Return the lot to process again, with its next_attempt.

    Args:
        conn: see connect.
        batch_id: of this id, the one in the data set, else the last that ever was, else the last
            received; None: of all, the one that was integrated last and is in the data set.

    Raises:
        VersionError: there is none.
    """
    lot = conn.execute(
        """SELECT l.*, (SELECT max(attempt) + 1 FROM lots a JOIN versions v USING (lot_id)
                WHERE (a.topic, a.partition, a."offset") = (l.topic, l.partition, l."offset")
                AND v.state <> 'received') AS next_attempt
        FROM lots l LEFT JOIN membership m ON m.lot_id = l.lot_id AND m.until IS NULL
        WHERE l.batch_id = %s OR (%s AND m.lot_id IS NOT NULL)
        ORDER BY m.lot_id IS NOT NULL DESC, l.data_path IS NOT NULL DESC, l.lot_id DESC LIMIT 1""",
        [batch_id, batch_id is None],
    ).fetchone()
    if lot is not None and lot.next_attempt is None:
        raise VersionError(f"{lot.batch_id} is received and not settled: let the consumer finish")
    if lot is None:
        raise VersionError(f"no lot {batch_id}" if batch_id else "no lot in the data set yet")
    return lot


# 2. What the commands of versions.py do


def isolate(conn: Connection, batch_id: str, reason: str) -> Any:
    """Make a version without a lot; return the event.

    Raises:
        VersionError: it is not in the data set.
    """
    with conn.transaction():
        lock(conn)
        lot = conn.execute("SELECT * FROM lots_at() WHERE batch_id = %s", [batch_id]).fetchone()
        if lot is None:
            raise VersionError(f"{batch_id} is not in the data set (see: versions.py list)")
        event = add_event(conn, lot, "isolated", reason, new_version=True)
        leave(conn, event.version, "lot_id = %s", lot.lot_id)
    return event


def restore(conn: Connection, version: int) -> Any:
    """Make a version with exactly the lots of an earlier one; return the event.

    Raises:
        VersionError: there is no such version.
    """
    with conn.transaction():
        lock(conn)
        last = conn.execute("SELECT current_version()").fetchone()[0]
        if not 1 <= version <= last:
            raise VersionError(f"there is no version {version}: 1 to {last}")
        event = conn.execute(
            """INSERT INTO versions (version, size, state, reason)
            SELECT %s, coalesce(sum(size), 0), 'restored', %s FROM lots_at(%s) RETURNING *""",
            [last + 1, f"version {version}", version],
        ).fetchone()
        lots = "(SELECT lot_id FROM lots_at(%s))"
        leave(conn, last + 1, f"lot_id NOT IN {lots}", version)
        enter(conn, last + 1, f"lot_id IN {lots} AND lot_id NOT IN {lots}", version, last + 1)
    return event


def list_events(conn: Connection, everything: bool) -> list[Any]:
    """Return the versions table, oldest first, with the rows of the data set after each version.

    Args:
        conn: see connect.
        everything: also when the lots that are settled by now were received.
    """
    events: list[Any] = conn.execute(
        """SELECT version, date_trunc('second', at) AS at, state, batch_id, size,
            left(checksum, 12) AS checksum,
            CASE WHEN version IS NOT NULL
                THEN (SELECT coalesce(sum(l.size), 0) FROM lots_at(version) l) END AS data_set,
            reason
        FROM versions v WHERE %s OR state <> 'received' OR NOT EXISTS
            (SELECT FROM versions w WHERE w.lot_id = v.lot_id AND w.state <> 'received')
        ORDER BY event_id""",
        [everything],
    ).fetchall()
    return events


def changes(conn: Connection, version: int) -> list[Any]:
    """Return what a version added to the data set before it and took out of it, a row per lot.

    Raises:
        VersionError: there is no such version.
    """
    if not conn.execute("SELECT 1 FROM versions WHERE version = %s", [version]).fetchone():
        raise VersionError(f"there is no version {version} (see: versions.py list)")
    lots: list[Any] = conn.execute(
        """SELECT CASE WHEN since = %(v)s THEN 'added' ELSE 'taken out' END AS change, batch_id,
            size, left(checksum, 12) AS checksum,
            (SELECT sum(count) FROM fact_measure f WHERE f.lot_id = l.lot_id) AS measures,
            (SELECT count(DISTINCT site_key) FROM fact_sample f WHERE f.lot_id = l.lot_id) AS sites,
            (SELECT min(year) || '-' || max(year) FROM fact_sample f WHERE f.lot_id = l.lot_id)
                AS years, data_path
        FROM membership JOIN lots l USING (lot_id)
        WHERE since = %(v)s OR until = %(v)s ORDER BY change, l.lot_id""",
        {"v": version},
    ).fetchall()
    return lots
