"""The tables of this pipeline in PostgreSQL: the connection, the dimensions, where to read on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import namedtuple_row

SCHEMA = Path(__file__).with_name("schema.sql")
SCHEMA_LOCK = 20_220_801  # any number, the same for everybody

Connection: TypeAlias = "psycopg.Connection[Any]"


def connect(url: str) -> Connection:
    """Return a connection; the tables are there.

    Raises:
        psycopg.OperationalError: PostgreSQL does not answer.
    """
    conn: Connection = psycopg.connect(
        url, autocommit=True, row_factory=namedtuple_row, connect_timeout=10,
        options="-c search_path=water -c timezone=UTC", application_name="acid_waters",
    )  # fmt: skip
    with conn.transaction():  # one at a time: two CREATE IF NOT EXISTS can collide
        conn.execute("SELECT pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
        # What schema.sql has had since last, so that older tables get it too.
        newest = "SELECT to_regclass('water.losses') IS NULL"
        if conn.execute(newest).fetchone()[0]:
            conn.execute(SCHEMA.read_text(encoding="utf-8"))
    return conn


def next_offsets(conn: Connection, topic: str) -> dict[int, int]:
    """Return the offset after what was read, by partition; what was never read is absent."""
    query = "SELECT partition, next_offset FROM next_offsets WHERE topic = %s"
    return dict(conn.execute(query, [topic]).fetchall())


def note_positions(conn: Connection, ends: Mapping[str, Mapping[str, int]]) -> None:
    """Note how far topics are read: {topic: {partition: next offset}}, as Spark has it."""
    with conn.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO positions VALUES (%s, %s, %s)
            ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset""",
            [(topic, *place) for topic, places in ends.items() for place in places.items()],
        )


def note_loss(conn: Connection, topic: str, partition: int, since: int, until: int) -> None:
    """Note that a topic had deleted the offsets since <= offset < until before they were read."""
    conn.execute(
        """INSERT INTO losses VALUES (%s, %s, %s, %s)
        ON CONFLICT (topic, partition, since) DO UPDATE SET until = excluded.until""",
        [topic, partition, since, until],
    )


def note_topic(conn: Connection, topic: str, topic_id: str) -> bool:
    """Note the id of a topic the first time; return whether it is the one that was noted."""
    conn.execute("INSERT INTO topics VALUES (%s, %s) ON CONFLICT DO NOTHING", [topic, topic_id])
    noted = conn.execute("SELECT topic_id FROM topics WHERE topic = %s", [topic]).fetchone()
    return bool(noted.topic_id == topic_id)


def dimension_keys(
    conn: Connection,
    sites: Sequence[Any],
    parameters: Sequence[tuple[str, str]],
    methods: Sequence[Sequence[Any]],
) -> tuple[list[int], list[int], list[int]]:
    """Return the keys of sites, parameters and methods, in their order; new ones are added.

    Args:
        conn: see connect.
        sites: rows of Site_Information, columns by name.
        parameters: (parameter, unit).
        methods: rows of Methods, in its columns' order.
    """
    site_columns = {
        "site_id": "SITE_ID", "program_id": "PROGRAM_ID", "site_name": "SITE_NAME",
        "county": "COUNTY", "state": "STATE", "latitude": "LATDD", "longitude": "LONDD",
        "elevation_m": "SITE_ELEV", "ecoregion_i": "ECONAME_I", "ecoregion_ii": "ECONAME_II",
        "ecoregion_iii": "ECONAME_III", "ecoregion_iv": "ECONAME_IV",
    }  # fmt: skip
    site_rows = [tuple(row[name] for name in site_columns.values()) for row in sites]
    method_columns = (
        "program_id", "parameter", "start_year", "end_year", "method", "description",
    )  # fmt: skip
    with conn.transaction():
        return (
            keys_of(conn, "site", tuple(site_columns), site_rows),
            keys_of(conn, "parameter", ("parameter", "unit"), parameters),
            keys_of(conn, "method", method_columns, methods),
        )


def keys_of(
    conn: Connection, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> list[int]:
    """Return the keys of a dimension's rows; new ones are added."""
    listed, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
    insert = f"INSERT INTO dim_{name} ({listed}) VALUES ({places}) ON CONFLICT DO NOTHING"  # noqa: S608
    with conn.cursor() as cursor:
        cursor.executemany(insert, rows)
    found = conn.execute(f"SELECT {name}_key, {listed} FROM dim_{name}").fetchall()  # noqa: S608
    keys = {tuple(row[1:]): row[0] for row in found}
    return [keys[tuple(row)] for row in rows]
