"""verify.py finds each thing that it reports, and says why it cannot compare: on real servers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kafka import KafkaConsumer
from kafka.errors import OffsetOutOfRangeError

from pipelines.acid_waters import verify
from pipelines.acid_waters.hdfs.reference import file_system
from pipelines.acid_waters.postgresql import history
from pipelines.acid_waters.settings import SAMPLE
from pipelines.acid_waters.spark.offsets import LossError
from pipelines.acid_waters.tests.conftest import DATA, Scene, batch
from pipelines.acid_waters.verification.verdict import Verdict

Step = Callable[[Scene], object]


def moved(column: str, aside: bool) -> Step:
    """Return what takes the folder of the lots' archive or rows away, or brings it back."""

    def move(scene: Scene) -> None:
        ((name,),) = scene.query(f"SELECT {column} FROM lots WHERE sequence = 1")  # noqa: S608
        files, folder = file_system(f"{scene.environ['HDFS_URL']}/{name}")
        places = (folder, folder.suffix(".aside"))
        assert files.rename(*(places if aside else places[::-1]))

    return move


def double_rows(scene: Scene) -> None:
    ((name,),) = scene.query("SELECT data_path FROM lots WHERE sequence = 1")
    folder = f"{scene.environ['HDFS_URL']}/{name}"
    rows = scene.spark.read.parquet(folder)
    rows.limit(1).coalesce(1).write.mode("append").parquet(folder)


def change(sql: str) -> Step:
    def spoil(scene: Scene) -> None:
        with scene.connect() as conn:
            assert conn.execute(sql).rowcount > 0

    return spoil


def isolate_second(scene: Scene) -> None:
    with scene.connect() as conn:
        history.isolate(conn, batch(2), "a test")


def restore_all(scene: Scene) -> None:
    with scene.connect() as conn:
        history.restore(conn, 8)


def resend_changed(scene: Scene) -> None:
    """Another message, settled as if it were good."""
    scene.send("--fault", "checksum=3", "--first", "3", "--count", "1")
    scene.consume()
    change("UPDATE versions SET state = 'integrated' WHERE state = 'rejected'")(scene)


def delete_unread(scene: Scene) -> None:
    """Let the consumer go on where a lot was deleted before it was read."""
    scene.send("--first", "8")
    scene.delete_messages(0, 1, 2)
    scene.send("--first", "8")
    with pytest.raises(LossError, match="Kafka has deleted unread lots: partition"):
        scene.consume()
    assert scene.consume("--once", "--accept-loss") == 0


FACTS = "UPDATE fact_sample SET count = count {} 1 WHERE year = 2012 AND site_key = 1"
# What verify.py reports -> what brings it about, and what takes it back.
# In this order none brings about what the next one does.
SPOILT: dict[str, tuple[Step, Step]] = {
    "wrongly_archived": (moved("raw_path", aside=True), moved("raw_path", aside=False)),
    "missing_rows": (moved("data_path", aside=True), moved("data_path", aside=False)),
    "unsettled": (lambda scene: scene.send("--first", "8"), lambda scene: scene.consume()),
    "differing_metrics": (change(FACTS.format("+")), change(FACTS.format("-"))),
    "unexpected_lots": (
        change('UPDATE lots SET "offset" = "offset" + 100 WHERE sequence = 7'),
        change('UPDATE lots SET "offset" = "offset" - 100 WHERE sequence = 7'),
    ),
    "wrong_versions": (
        change("UPDATE membership SET since = 2 WHERE since = 1"),
        change("UPDATE membership SET since = 1 WHERE lot_id IN (SELECT min(lot_id) FROM lots)"),
    ),
    "not_in_data_set": (isolate_second, restore_all),
    "unexpected_rows": (double_rows, lambda _: None),
    "wrongly_integrated": (resend_changed, lambda _: None),
    "deleted_unread": (delete_unread, lambda _: None),
}


def test_verify_finds_each_thing_that_it_reports(scene: Scene, tmp_path: Path) -> None:
    lists = {name for name, found in vars(Verdict()).items() if isinstance(found, list)}
    assert lists == {*SPOILT, "not_in_file", "not_received"}
    scene.load_reference()
    ledger = tmp_path / "ledger.jsonl"
    scene.run("kafka/kafka_producer.py", "--interval", "0", "--ledger", str(ledger))
    scene.consume()
    before = scene.verify(*DATA, "--ledger", str(ledger))
    less = tmp_path / "LTM_Data_sample.csv"
    lines = (SAMPLE / less.name).read_bytes().splitlines(keepends=True)
    less.write_bytes(b"".join(lines[:-1]))
    assert len(scene.compare("--data", str(tmp_path)).not_in_file) == 1
    ledger.write_text(ledger.read_text().replace('"offset": 0', '"offset": 9000'))
    assert len(scene.compare("--ledger", str(ledger)).not_received) > 0
    for what, (spoil, undo) in SPOILT.items():
        spoil(scene)
        verdict = scene.compare(*DATA)
        assert vars(verdict)[what], what
        assert not vars(before)[what], what
        assert not verdict.holds
        undo(scene)
        before = verdict


def test_verify_knows_what_the_topic_has_deleted_since(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.load_reference()
    scene.send()
    scene.consume()
    ((kept,),) = scene.query("SELECT partition FROM lots WHERE sequence = 7")
    scene.delete_messages(*({0, 1, 2} - {kept}))
    verdict = scene.verify(*DATA)
    assert (verdict.integrated, verdict.messages + verdict.forgotten) == (8, 8)
    assert verdict.forgotten > 0
    SPOILT["unexpected_lots"][0](scene)  # of the partition that has deleted nothing
    verdict = scene.compare()
    assert len(verdict.unexpected_lots) == 1
    assert not verdict.holds
    end_offsets = KafkaConsumer.end_offsets

    def deleting(consumer: Any, partitions: Any) -> Any:
        ends = end_offsets(consumer, partitions)
        scene.delete_messages(kept)
        return ends

    monkeypatch.setattr(KafkaConsumer, "end_offsets", deleting)
    with pytest.raises(OffsetOutOfRangeError):  # deleted while it reads
        scene.compare()


def test_verify_says_in_one_line_why_it_cannot_compare(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    capsys.readouterr()
    for environ, arguments, code, says in cases:
        with monkeypatch.context() as changed:
            for variable, value in {**scene.environ, **environ}.items():
                changed.setenv(variable, value)
            assert verify.main(arguments) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    with pytest.raises(psycopg.Error, match="there is no version 99: 1 to 1"):
        scene.query("SELECT * FROM site_metrics(99)")
    ((name,),) = scene.query("SELECT DISTINCT raw_path FROM lots")
    files, path = file_system(f"{scene.environ['HDFS_URL']}/{name}")
    files.create(path.suffix("/broken.parquet")).close()
    done = scene.run("verify.py")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
