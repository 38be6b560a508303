"""Versions are isolated, restored, reprocessed and asked: on real servers."""

import csv
import os
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from pipelines.acid_waters import recovery
from pipelines.acid_waters.postgresql import history
from pipelines.acid_waters.settings import HERE, SAMPLE
from pipelines.acid_waters.tests.conftest import DATA, GIVEN_DATA, Scene, batch, load
from pipelines.acid_waters.verification.data import compare_metrics
from pipelines.acid_waters.verification.verdict import Verdict

QUERIES = sorted((HERE / "postgresql/queries").glob("*.sql"))


def test_tables_of_an_earlier_schema_get_what_is_new(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "2", "--fault", "short=2")
    scene.consume()
    with scene.connect() as conn:
        history.isolate(conn, batch(1), "a test")
        history.restore(conn, 1)
        conn.execute(Path(__file__).with_name("earlier_schema.sql").read_text())
    scene.send("--first", "2")
    scene.consume()
    assert scene.verify(*DATA).rows == 760
    states = scene.query("SELECT state, count(*) FROM versions GROUP BY 1 ORDER BY 1")
    assert states == [
        ("integrated", 8), ("isolated", 1), ("received", 9), ("rejected", 1), ("restored", 1),
    ]  # fmt: skip
    firsts = scene.query("SELECT first_row FROM lots ORDER BY lot_id")
    assert firsts == [(None,), (None,), *((row,) for row in range(101, 800, 100))]


def check_queries(url: str) -> None:
    """Check that the example queries give what is shipped; WRITE_EXPECTED writes it anew."""
    assert QUERIES
    for query in QUERIES:
        with psycopg.connect(url) as conn:
            cursor = conn.execute(query.read_text())
            names = [column.name for column in cursor.description or ()]
            found = [["" if v is None else str(v) for v in row] for row in cursor.fetchall()]
        expected = query.parent / "expected" / f"{query.stem}.csv"
        if os.environ.get("WRITE_EXPECTED"):
            with expected.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([names, *found])
        with expected.open(newline="") as file:
            assert [names, *found] == list(csv.reader(file)), query.name


def check_picture(url: str, drawn: Path) -> None:
    """Check that the picture is the one that is shipped, and shows what the query gives."""
    assert recovery.main(["--postgresql-url", url, "--output", str(drawn)]) == 0
    if os.environ.get("WRITE_EXPECTED"):
        shutil.copy(drawn, HERE / drawn.name)
    assert drawn.read_text() == (HERE / drawn.name).read_text()
    texts = re.findall(r">([^<]+)</text>", drawn.read_text())
    with (HERE / "postgresql/queries/expected/ph_by_region.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert {row["region"], row["decade"], f"n = {row['measured']}"} <= {*texts}


def test_queries_restore_and_reprocess_are_exact(scene: Scene, tmp_path: Path) -> None:
    scene.load_reference()
    scene.send()
    scene.consume()
    assert scene.current() == 8
    check_queries(scene.environ["POSTGRESQL_URL"])
    check_picture(scene.environ["POSTGRESQL_URL"], tmp_path / "recovery.svg")
    before = {version: scene.snapshot(version) for version in (3, 8)}
    assert len(before[3]["rows"]) == 300

    with scene.connect() as conn:
        taken = conn.execute("SELECT batch_id FROM lots_at(8) ORDER BY lot_id").fetchall()[1][0]
        assert history.isolate(conn, taken, "wrong bottle").version == 9
        assert scene.verify("--version", "9").rows == 660
        assert {row[0] for row in scene.query("SELECT batch_id FROM lots_at()")} == {
            row[0] for row in scene.query("SELECT batch_id FROM lots_at(8)")
        } - {taken}
        assert history.restore(conn, 3).version == 10
        assert scene.snapshot(10) == before[3]
        scene.verify()
        assert history.restore(conn, 8).version == 11
        assert scene.snapshot(11) == before[8]
        with pytest.raises(history.VersionError, match="there is no version 12: 1 to 11"):
            history.restore(conn, 12)
        with pytest.raises(history.VersionError, match="nothing is not in the data set"):
            history.isolate(conn, "nothing", "why")
        history.isolate(conn, taken, "wrong bottle")

    scene.send()  # does not bring the isolated lot back
    scene.consume()
    assert scene.verify().rows == 660
    assert any("taken out" in (event.reason or "") for event in scene.events())
    assert scene.consume("--reprocess", taken) == 0  # this does
    assert scene.snapshot(scene.current()) == before[8]
    assert scene.consume("--reprocess", "last") == 0
    assert scene.current() == 14
    assert scene.snapshot(14) == before[8]
    assert scene.snapshot(3) == before[3]  # every version can still be asked for
    assert scene.verify(*DATA).wrong_versions == []
    with pytest.raises(history.VersionError, match="no lot nothing"):
        scene.consume("--reprocess", "nothing")


def test_a_lot_of_an_unknown_site_is_good_once_the_site_is_known(
    scene: Scene, tmp_path: Path
) -> None:
    for file in SAMPLE.glob("*.csv"):
        lines = file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not (b"Site" in file.name.encode() and b"LN01" in line)]
        (tmp_path / file.name).write_bytes(b"".join(kept))
    load(scene.spark, scene.environ["HDFS_URL"], tmp_path)
    scene.send("--count", "1")
    scene.consume()
    assert scene.current() == 0
    assert scene.consume("--reprocess", batch(1)) == 1  # still refused
    scene.load_reference()
    assert scene.consume("--reprocess", batch(1)) == 0
    assert [event.state for event in scene.events()] == ["rejected", "rejected", "integrated"]
    verdict = scene.verify()
    assert (verdict.version, verdict.rows) == (1, 100)
    scene.send("--first", "2", "--count", "1")
    scene.consume()
    assert scene.verify().rows == 200


def independent_tables(db: Any, folder: Path) -> None:
    """Read the three CSV files by DuckDB alone: the texts are cleaned in SQL."""
    files = {"samples": "LTM_Data", "methods": "Methods", "sites": "Site_Information"}
    for name, stem in files.items():
        (file,) = folder.glob(f"{stem}*.csv")
        db.execute(
            f"CREATE TABLE {name} AS SELECT * FROM read_csv(?, delim=';', header=true, "  # noqa: S608
            "all_varchar=true, quote='\"', escape='\"', nullstr='', strict_mode=false)",
            [str(file)],
        )
    db.execute("UPDATE samples SET DATE_SMP = strptime(DATE_SMP, '%m/%d/%Y %H:%M:%S')::varchar")
    for (column,) in db.execute("SELECT column_name FROM (DESCRIBE samples)").fetchall():
        if column.endswith(("_L", "_CM", "_M", "_C")):  # thousands are written 1 528
            db.execute(f"UPDATE samples SET {column} = replace({column}, ' ', '')")  # noqa: S608


@pytest.mark.skipif(not GIVEN_DATA, reason="no real files: set LTM_DATA to their folder")
@pytest.mark.timeout(900)
def test_the_real_release_is_integrated_exactly(scene: Scene) -> None:
    folder = Path(GIVEN_DATA)
    load(scene.spark, scene.environ["HDFS_URL"], folder)
    scene.send(data=folder)
    scene.consume()
    verdict = scene.verify("--data", str(folder))
    assert (verdict.versions, verdict.rows, verdict.rejected) == (382, 38_200, 0)
    assert verdict.metrics == 3939
    assert scene.query("SELECT sum(count)::int FROM fact_sample") == [(38_200,)]
    without = "SELECT sum(count)::int FROM fact_measure WHERE method_key = 0"
    assert scene.query(without) == [(27_593,)]
    assert scene.query("SELECT sum(count)::int FROM fact_measure") == [(540_655,)]
    with duckdb.connect() as db, scene.connect() as conn:
        independent_tables(db, folder)
        again = Verdict(version=382)
        compare_metrics(again, db, conn)
        assert (again.metrics, again.differing_metrics) == (3939, [])
