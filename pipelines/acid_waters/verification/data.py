"""The rows and the metrics of a version, computed again by DuckDB from the archived messages."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext
from pathlib import Path
from typing import Any

import duckdb

from pipelines.acid_waters.tables import SAMPLES, find_file, read_table
from pipelines.acid_waters.verification.lots import lines_of
from pipelines.acid_waters.verification.verdict import Place, Verdict, VerifyError
from pipelines.acid_waters.verification.webhdfs import WebHdfs

METRICS = Path(__file__).with_name("metrics.sql")
METRIC_NAMES = (
    "site_metrics", "method_metrics", "year_metrics", "category_metrics", "sample_distribution",
)  # fmt: skip


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
    lines = [json.loads(line) for line in lines_of(value)]
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
