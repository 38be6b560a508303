"""Lots become versions; versions are isolated, restored, reprocessed: on real servers."""

import csv
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition
from pyspark.sql import SparkSession

from pipelines.acid_waters import verify
from pipelines.acid_waters.hdfs import load_reference
from pipelines.acid_waters.kafka import kafka_producer
from pipelines.acid_waters.postgresql import versions
from pipelines.acid_waters.spark import spark_consumer
from pipelines.acid_waters.tests.conftest import GIVEN_DATA, HERE, SAMPLE, Scene

QUERIES = sorted((HERE / "postgresql/queries").glob("*.sql"))
SOURCE = "LTM_Data_sample.xlsx"
FAULTS = {  # lot -> kind and how its reason begins; "duplicate": the second one
    1: ("short", "short: 49 rows, 50 declared"),
    2: ("long", "long: 51 rows, 50 declared"),
    3: ("checksum", "checksum is not that of the content"),
    4: ("site", "row 1: unknown site: SITE_ID 'NOWHERE'"),
    5: ("number", "row 1: ANC_UEQ_L 'n/a' is not a number"),
    6: ("date", "row 1: DATE_SMP '2019-02-30' is not a possible date"),
    7: ("duplicate", "duplicate id: it is in the data set already"),
    8: ("range", "row 1: PH_LAB '41' is not within 0 to 14"),
    9: ("column", "row 1: not the 30 columns of a sample"),
    10: ("json", "row 1: not a JSON object"),
}
# A time of Kafka's is any number of milliseconds: the years 1, 10 000 and 294 247 here.
MAD_TIMES = (-62_135_596_800_000, 253_402_300_800_000, 9_223_372_036_854_775)
NEVER_MS = 2**63 - 1  # the year 292 278 994: more microseconds than Spark can count


def batch(number: int) -> str:
    return f"LTM_Data_sample-{number:06d}"


def test_faulty_lots_are_isolated_whole_and_stop_nothing(scene: Scene) -> None:
    scene.load_reference()
    assert {kind for kind, _ in FAULTS.values()} == set(kafka_producer.FAULTS)
    halves = ("--lot-size", "50")  # 16 lots, of which the last one has 10 rows
    scene.send(*halves, *(f"--fault={kind}={lot}" for lot, (kind, _) in FAULTS.items()))
    assert scene.consume() == 0
    consumer = KafkaConsumer(bootstrap_servers=scene.environ["KAFKA_BOOTSTRAP_SERVERS"])
    with closing(consumer):
        assert consumer.partitions_for_topic(scene.topic) == {0, 1, 2}
    refused = {e.batch_id: e for e in scene.events() if e.state == "quarantined"}
    assert set(refused) == {batch(lot) for lot in FAULTS}
    for lot, (_, reason) in FAULTS.items():
        assert refused[batch(lot)].reason.startswith(reason)
        assert refused[batch(lot)].version is None
    assert scene.current() == 7  # lots 7 and 11 to 16
    assert scene.verify().rows == 310

    scene.send(*halves, "--count", "10")  # what was refused may come again, and be right
    assert scene.consume() == 0
    verdict = scene.verify(data=SAMPLE)
    # Refused: the faults, and lot 7 that comes a third time.
    assert (verdict.integrated, verdict.quarantined, verdict.rows) == (16, 11, 760)


def test_what_was_sent_twice_is_there_once(scene: Scene) -> None:
    scene.load_reference()
    scene.send()
    scene.send("--fault", "number=3")
    scene.consume("--once", "--lots-per-batch", "5")
    scene.consume()
    verdict = scene.verify(data=SAMPLE)
    assert (verdict.messages, verdict.integrated, verdict.quarantined) == (16, 8, 8)


def test_the_same_rows_in_lots_of_another_size_are_there_once(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "2")
    scene.consume()
    scene.send("--lot-size", "50")  # 1 to 4 have the rows of the two lots; 3 to 4 ids of their own
    assert scene.consume() == 0
    reasons = {e.batch_id: e.reason for e in scene.events() if e.state == "quarantined"}
    there = f"of {SOURCE} are in the data set already"
    assert reasons == {
        batch(1): "duplicate id: it is in the data set already",
        batch(2): f"duplicate rows: 51 to 100 {there}, in {batch(1)}",
        batch(3): f"duplicate rows: 101 to 150 {there}, in {batch(2)}",
        batch(4): f"duplicate rows: 151 to 200 {there}, in {batch(2)}",
    }
    assert scene.verify(data=SAMPLE).rows == 760
    with scene.connect() as conn:
        versions.isolate(conn, batch(2), "cut anew")
        # The last row that a header can name: what follows it cannot be named.
        conn.execute("UPDATE lots SET first_row = 2147483647 WHERE batch_id = %s", [batch(1)])
    scene.send("--lot-size", "50", "--first", "3", "--count", "2")
    scene.consume()
    assert scene.verify(data=SAMPLE).rows == 760
    assert scene.consume("--reprocess", batch(2)) == 1
    assert scene.events()[-1].reason == f"duplicate rows: 101 to 150 {there}, in {batch(3)}"


def test_tables_of_an_earlier_schema_get_what_is_new(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "1")
    scene.consume()
    with scene.connect() as conn:
        conn.execute("DROP TABLE topics")
        conn.execute("ALTER TABLE lots DROP COLUMN first_row")
    scene.send("--first", "2")
    scene.consume()
    assert scene.verify(data=SAMPLE).rows == 760
    firsts = scene.query("SELECT first_row FROM lots ORDER BY sequence")
    assert firsts == [(None,), *((row,) for row in range(101, 800, 100))]


def test_a_lot_that_is_too_large_is_said(scene: Scene, tmp_path: Path) -> None:
    header, *rows = (SAMPLE / "LTM_Data_sample.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "LTM_Data_long.csv").write_bytes(b"".join([header, *rows * 5]))
    sent = scene.run("kafka/kafka_producer.py", "--data", str(tmp_path), "--lot-size", "3800")
    assert sent.returncode == 2
    assert "a lot is too large, choose a smaller --lot-size: " in sent.stderr
    assert "Traceback" not in sent.stderr


def lot_with(**changes: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return the first lot as a message, its first row changed, under an id of its own."""
    config = kafka_producer.load_config(["--data", str(SAMPLE), "--count", "1"], {})
    (lot,) = kafka_producer.lots_to_send(config)
    rows = [json.loads(line) for line in lot.value.splitlines()]
    value = kafka_producer.encode(kafka_producer.change_first_row(**changes)(rows))
    checksum = kafka_producer.checksum(value)
    changed = replace(lot, batch_id="x", source_file="f.csv", value=value, checksum=checksum)
    return value, changed.headers()


def test_whatever_is_in_a_message_stops_nothing(scene: Scene) -> None:
    scene.load_reference()
    scene.make_plain_topic()
    scene.send("--count", "1")
    good = [("batch_id", b"x"), ("size", b"1"), ("sequence", b"1"), ("first_row", b"1"),
            ("checksum", b"0"), ("source_file", b"f.csv")]  # fmt: skip
    scene.send_raw(
        (None, []),
        (b"", good),
        (b"\x00\xff\xfe", [("batch_id", b"\x00'; DROP TABLE lots"), ("size", b"many")]),
        (b'{"SITE_ID": "\\u0000 \\ud800"}\n', good),
        (b'{"SITE_ID": {"a": [1, 2]}}\n[]\nnull\n1\n', [*good, ("size", b"4"), ("size", b"5")]),
        (b"[" * 100_000, good),
        (b"a\n" * 20_000, [("batch_id", b"../../x"), ("size", b"99999999999999999999")]),
        # What PostgreSQL takes in no text, and what it takes in no index.
        lot_with(WATERBODY_TYPE="Lake\0"),
        lot_with(WATERBODY_TYPE="".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))),
    )
    for milliseconds in MAD_TIMES:
        scene.send_raw((b"", good), timestamp_ms=milliseconds)
    scene.send("--first", "2")
    assert scene.consume() == 0
    verdict = scene.verify(data=SAMPLE)
    assert (verdict.integrated, verdict.quarantined) == (8, 9 + len(MAD_TIMES))
    reasons = [e.reason for e in scene.events() if e.state == "quarantined"]
    assert all(0 < len(reason) <= 500 and reason.isprintable() for reason in reasons)


def test_kafka_refuses_a_time_that_spark_cannot_read(scene: Scene) -> None:
    scene.send("--count", "1")
    for milliseconds in (NEVER_MS, -NEVER_MS, *MAD_TIMES):
        with pytest.raises(KafkaError, match=r"(?i)timestamp"):
            scene.send_raw((b"", []), timestamp_ms=milliseconds)


def test_what_a_transaction_has_taken_back_is_no_lot(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "2")
    producer = KafkaProducer(
        bootstrap_servers=scene.environ["KAFKA_BOOTSTRAP_SERVERS"], transactional_id=scene.topic
    )
    with closing(producer):
        producer.init_transactions()
        producer.begin_transaction()
        for _ in range(2):
            value, headers = lot_with()
            producer.send(scene.topic, value, headers=headers)
        producer.flush()
        producer.abort_transaction()
    assert scene.consume() == 0
    verdict = scene.verify()
    assert (verdict.messages, verdict.integrated, verdict.quarantined) == (2, 2, 0)
    scene.send("--first", "3")
    assert scene.consume() == 0  # it goes on after them
    assert scene.verify(data=SAMPLE).integrated == 8


def test_lots_that_spark_cannot_read_are_named_and_end_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene.load_reference()
    scene.make_plain_topic()
    scene.send_raw((b"", []))
    scene.consume()
    scene.send_raw((b"", []), timestamp_ms=NEVER_MS)
    monkeypatch.setattr(spark_consumer, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(spark_consumer, "SAME_FAILURES", 3)
    config = spark_consumer.load_config(["--wait", "30"], scene.environ)
    stop = threading.Event()
    work = partial(spark_consumer.work_once, config, scene.spark, stop)
    assert spark_consumer.patiently(config, stop, work) == 1
    where = json.dumps({scene.topic: {"0": 1, "1": 0, "2": 0}})
    assert f"given up: all servers answer, and the lots from {where} on" in caplog.text
    assert "failed 3 times: java.lang.ArithmeticException: long overflow" in caplog.text


@pytest.mark.parametrize("ends", ["other", "away", "progress"])
def test_patience_does_not_end_while_something_changes(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same failure; in between another one, no server, or another place."""
    monkeypatch.setattr(spark_consumer, "LONGEST_PAUSE_S", 0)
    monkeypatch.setattr(spark_consumer, "SAME_FAILURES", 3)
    tries = itertools.count(1)
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda _: stop.is_set())

    def work(answered: Callable[[str], None]) -> int:
        number = next(tries)
        if number == 20:
            return 0
        changes = number % 3 == 0
        if not (changes and ends == "away"):
            answered(f"offset {number // 2 if ends == 'progress' else 0}")
        raise KafkaError("another" if changes and ends == "other" else "the same")

    assert spark_consumer.patiently(spark_consumer.load_config([], {}), stop, work) == 0


def test_restore_and_reprocess_are_exact(scene: Scene) -> None:
    scene.load_reference()
    scene.send()
    scene.consume()
    assert scene.current() == 8
    before = {version: scene.snapshot(version) for version in (3, 8)}
    assert len(before[3]["rows"]) == 300

    with scene.connect() as conn:
        taken = conn.execute("SELECT batch_id FROM lots_at(8) ORDER BY lot_id").fetchall()[1][0]
        assert versions.isolate(conn, taken, "wrong bottle").version == 9
        assert scene.verify(version=9).rows == 660
        assert {row[0] for row in scene.query("SELECT batch_id FROM lots_at()")} == {
            row[0] for row in scene.query("SELECT batch_id FROM lots_at(8)")
        } - {taken}
        assert versions.restore(conn, 3).version == 10
        assert scene.snapshot(10) == before[3]
        scene.verify()
        assert versions.restore(conn, 8).version == 11
        assert scene.snapshot(11) == before[8]
        with pytest.raises(versions.VersionError, match="there is no version 12: 1 to 11"):
            versions.restore(conn, 12)
        with pytest.raises(versions.VersionError, match="nothing is not in the data set"):
            versions.isolate(conn, "nothing", "why")
        versions.isolate(conn, taken, "wrong bottle")

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
    assert scene.verify(data=SAMPLE).wrong_versions == []
    with pytest.raises(versions.VersionError, match="no lot nothing"):
        scene.consume("--reprocess", "nothing")


def test_a_lot_of_an_unknown_site_is_good_once_the_site_is_known(
    scene: Scene, tmp_path: Path
) -> None:
    for file in SAMPLE.glob("*.csv"):
        lines = file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not (b"Site" in file.name.encode() and b"LN01" in line)]
        (tmp_path / file.name).write_bytes(b"".join(kept))
    scene.load_reference(tmp_path)
    scene.send("--count", "1")
    scene.consume()
    assert scene.current() == 0
    assert scene.consume("--reprocess", batch(1)) == 1  # still refused
    scene.load_reference()
    assert scene.consume("--reprocess", batch(1)) == 0
    assert [event.state for event in scene.events()] == ["quarantined", "quarantined", "integrated"]
    verdict = scene.verify()
    assert (verdict.version, verdict.rows) == (1, 100)
    scene.send("--first", "2", "--count", "1")
    scene.consume()
    assert scene.verify().rows == 200


def test_example_queries_give_the_expected_answers(scene: Scene) -> None:
    scene.load_reference()
    scene.send()
    scene.consume()
    assert QUERIES
    for query in QUERIES:
        with psycopg.connect(scene.environ["POSTGRESQL_URL"]) as conn:
            cursor = conn.execute(query.read_text())
            names = [column.name for column in cursor.description or ()]
            found = [["" if v is None else str(v) for v in row] for row in cursor.fetchall()]
        expected = query.parent / "expected" / f"{query.stem}.csv"
        if os.environ.get("WRITE_EXPECTED"):
            with expected.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([names, *found])
        with expected.open(newline="") as file:
            assert [names, *found] == list(csv.reader(file)), query.name


def test_another_time_zone_changes_nothing(scene: Scene) -> None:
    scene.environ["TZ"] = "Europe/Paris"
    before = time.time() - 1
    loaded = scene.run("hdfs/load_reference.py")
    assert loaded.returncode == 0, loaded.stderr
    scene.send()
    consumed = scene.run("spark/spark_consumer.py", "--once")
    assert consumed.returncode == 0, consumed.stderr
    for (sent_at,) in scene.query("SELECT sent_at FROM lots"):
        assert before < sent_at.timestamp() < time.time() + 1
    verified = scene.run("verify.py", "--data", str(SAMPLE))
    assert verified.returncode == 0, verified.stdout


def test_the_commands_as_a_user_types_them(scene: Scene) -> None:
    loaded = scene.run("hdfs/load_reference.py")
    assert loaded.returncode == 0, loaded.stderr
    assert "methods    rows=217" in loaded.stdout
    sent = scene.run("kafka/kafka_producer.py", "--interval", "0", "--fault", "short=2")
    assert sent.returncode == 0, sent.stderr
    assert "stopped lots=8 rows=760 failed=0" in sent.stderr
    consumed = scene.run("spark/spark_consumer.py", "--once")
    assert consumed.returncode == 0, consumed.stderr
    assert "published integrated=7 quarantined=1 rows=660 version=7" in consumed.stderr
    assert f"quarantined batch_id={batch(2)} reason=short: 99 rows" in consumed.stderr
    for arguments, says in (
        (["list"], "short: 99 rows, 100 declared"),
        (["show", "7"], "added"),
        (["isolate", batch(4), "--reason", "a test"], "quarantined"),
        (["restore", "7"], "version 7"),
    ):
        done = scene.run("postgresql/versions.py", *arguments)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
    verified = scene.run("verify.py")
    assert verified.returncode == 0, verified.stdout
    with scene.connect() as conn:  # and it can fail
        conn.execute("UPDATE fact_measure SET total = total + 1 WHERE ctid = '(0,1)'")
    wrong = scene.run("verify.py")
    assert wrong.returncode == 1
    assert "site_metrics" in wrong.stdout


def folder_of_rows(scene: Scene, column: str = "data_path") -> tuple[Any, Any]:
    """Return the file system, and the folder of the lots: the one that there is, or its archive."""
    ((name,),) = scene.query(f"SELECT DISTINCT {column} FROM lots")  # noqa: S608
    return load_reference.file_system(f"{scene.environ['HDFS_URL']}/{name}")


def spoil_archive(scene: Scene) -> None:
    files, folder = folder_of_rows(scene, "raw_path")
    assert files.delete(folder, True)


def spoil_rows(scene: Scene) -> None:
    files, folder = folder_of_rows(scene)
    assert files.delete(folder, True)


def double_rows(scene: Scene) -> None:
    _, folder = folder_of_rows(scene)
    rows = scene.spark.read.parquet(str(folder))
    rows.limit(1).coalesce(1).write.mode("append").parquet(str(folder))


def change(sql: str) -> Callable[[Scene], None]:
    def spoil(scene: Scene) -> None:
        with scene.connect() as conn:
            assert conn.execute(sql).rowcount > 0

    return spoil


def resend_changed(scene: Scene) -> None:
    """Another message, settled as if it were good."""
    scene.send("--fault", "checksum=3", "--first", "3", "--count", "1")
    scene.consume()
    change("UPDATE versions SET state = 'integrated' WHERE state = 'quarantined'")(scene)


def isolate_second(scene: Scene) -> None:
    with scene.connect() as conn:
        versions.isolate(conn, batch(2), "a test")


def delete_messages(scene: Scene, *partitions: int) -> None:
    """Delete all that partitions hold, as retention does."""
    everything = {TopicPartition(scene.topic, number): -1 for number in partitions}
    with scene.admin() as admin:
        admin.delete_records(everything)


def delete_unread(scene: Scene) -> None:
    """Let the consumer go on where a lot was deleted before it was read."""
    scene.send("--first", "8")
    delete_messages(scene, 0, 1, 2)
    scene.send("--first", "8")
    with pytest.raises(spark_consumer.LossError, match="Kafka has deleted unread lots: partition"):
        scene.consume()
    assert scene.consume("--once", "--accept-loss") == 0


SPOILT: dict[str, Callable[[Scene], None]] = {
    "unsettled": lambda scene: scene.send("--first", "8"),
    "lost": delete_unread,
    "unexpected_lots": change('UPDATE lots SET "offset" = "offset" + 100 WHERE sequence = 8'),
    "wrongly_archived": spoil_archive,
    "wrongly_integrated": resend_changed,
    "wrong_versions": change("UPDATE membership SET since = 2 WHERE since = 1"),
    "missing_rows": spoil_rows,
    "unexpected_rows": double_rows,
    "differing_metrics": change("UPDATE fact_sample SET count = count + 1 WHERE ctid = '(0,1)'"),
    "not_in_data_set": isolate_second,
}


def test_verify_finds_each_thing_that_it_reports(scene: Scene, tmp_path: Path) -> None:
    lists = {name for name, found in vars(verify.Verdict()).items() if isinstance(found, list)}
    assert lists == {*SPOILT, "not_in_file"}
    scene.load_reference()
    scene.send()
    scene.consume()
    scene.verify(data=SAMPLE)
    less = tmp_path / "LTM_Data_sample.csv"
    lines = (SAMPLE / less.name).read_bytes().splitlines(keepends=True)
    less.write_bytes(b"".join(lines[:-1]))
    verdict = verify.verify(scene.environ, data=tmp_path)
    assert len(verdict.not_in_file) == 1
    assert not verdict.holds


@pytest.mark.parametrize("what", SPOILT)
def test_verify_finds(what: str, scene: Scene) -> None:
    scene.load_reference()
    scene.send()
    scene.consume()
    SPOILT[what](scene)
    verdict = verify.verify(scene.environ, data=SAMPLE)
    assert vars(verdict)[what]
    assert not verdict.holds


def test_verify_knows_what_the_topic_has_deleted_since(scene: Scene) -> None:
    scene.load_reference()
    scene.send()
    scene.consume()
    ((kept,),) = scene.query("SELECT partition FROM lots WHERE sequence = 8")
    delete_messages(scene, *({0, 1, 2} - {kept}))
    verdict = scene.verify(data=SAMPLE)
    assert (verdict.integrated, verdict.messages + verdict.forgotten) == (8, 8)
    assert verdict.forgotten > 0
    SPOILT["unexpected_lots"](scene)  # of the partition that has deleted nothing
    verdict = verify.verify(scene.environ)
    assert len(verdict.unexpected_lots) == 1
    assert not verdict.holds


def test_verify_says_in_one_line_why_it_cannot_compare(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "1")
    scene.consume()
    cases: list[tuple[dict[str, str], list[str], int, str]] = [
        ({}, ["--version", "0"], 2, "there is no version 0: 1 to 1"),
        ({}, ["--version", "-1"], 2, "there is no version -1: 1 to 1"),
        ({}, ["--version", "99"], 2, "there is no version 99: 1 to 1"),
        ({"WATER_TOPIC": "mistyped"}, [], 1, "no topic mistyped at "),
        ({"HDFS_URL": "hdfs://localhost:8020"}, [], 1, "/reference/methods is not there"),
        ({"HDFS_WEB_URL": "http://localhost:1"}, [], 1, "Connection refused"),
    ]
    for environ, arguments, code, says in cases:
        scene.environ, before = {**scene.environ, **environ}, scene.environ
        done = scene.run("verify.py", *arguments)
        scene.environ = before
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert says in done.stderr
    with pytest.raises(psycopg.Error, match="there is no version 99: 1 to 1"):
        scene.query("SELECT * FROM site_metrics(99)")
    files, path = folder_of_rows(scene, "raw_path")
    files.create(path.suffix("/broken.parquet")).close()
    done = scene.run("verify.py")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "code", "says"),
    [
        ("kafka/kafka_producer.py", "--wait 1 --bootstrap-servers localhost:1", 1,
         "is it started?"),
        ("kafka/kafka_producer.py", "--data /nowhere", 2, "no LTM_Data*.xlsx or .csv in /nowhere"),
        ("kafka/kafka_producer.py", "--first 99", 2, "no lot 99 in"),
        ("postgresql/versions.py", "--postgresql-url postgresql://x@localhost:1/x list", 1,
         "versions: PostgreSQL: "),
        ("postgresql/versions.py", "restore x", 2, "invalid int value: 'x'"),
        ("hdfs/load_reference.py", "--data /nowhere", 2, "no Methods*.xlsx or .csv in /nowhere"),
        ("verify.py", "--version x", 2, "invalid int value: 'x'"),
        ("spark/spark_consumer.py", "--once --reprocess last", 2, "not allowed with argument"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    script: str, arguments: str, code: int, says: str, spark: SparkSession, tmp_path: Path
) -> None:
    done = Scene({}, spark, tmp_path).run(script, *arguments.split())
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


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
    scene.load_reference(folder)
    scene.send(data=folder)
    scene.consume()
    verdict = scene.verify(data=folder)
    assert (verdict.versions, verdict.rows, verdict.quarantined) == (382, 38_200, 0)
    assert verdict.metrics == 3939
    assert scene.query("SELECT sum(count)::int FROM fact_sample") == [(38_200,)]
    without = "SELECT sum(count)::int FROM fact_measure WHERE method_key = 0"
    assert scene.query(without) == [(27_593,)]
    assert scene.query("SELECT sum(count)::int FROM fact_measure") == [(540_655,)]
    with duckdb.connect() as db, scene.connect() as conn:
        independent_tables(db, folder)
        again = verify.Verdict(version=382)
        verify.compare_metrics(again, db, conn)
        assert (again.metrics, again.differing_metrics) == (3939, [])
