"""The mode without Kafka: each file once, whole or line by line, and nothing dropped."""

import json
import os
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from pipelines.smarttech import lake, pipeline_streaming_simple

from .helpers import Scripts, message, messages

EXAMPLE = message()
LINE = json.dumps(EXAMPLE)
OBJECT = json.dumps(EXAMPLE, indent=2)  # over several lines


@pytest.mark.usefixtures("lent_spark")
def test_each_file_is_taken_once_and_no_line_is_dropped(tmp_path: Path) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    simple = tmp_path / "simple"
    (simple / "sensor_data").mkdir(parents=True)
    made = [message.value for message in messages("--bad", "0.1", count=400)]

    def drop(begin: int, end: int) -> Path:
        file = simple / f"sensor_data/{begin:03} [{begin % 100}].json"  # for Spark, a pattern
        file.write_bytes(b"\n".join(made[begin:end]))
        return file

    drop(0, 100)
    drop(100, 250)
    _, err = scripts.call(pipeline_streaming_simple.main, "--once")
    assert " rows=250 readings=" in err
    tables = [DeltaTable(str(simple / f"sensor_data_{name}")) for name in ("bronze", "rejects")]
    assert f"rejected={tables[1].count()} (bad_json=" in err
    assert sum(table.count() for table in tables) == 250
    assert tables[0].metadata().partition_columns == ["building", "type"]
    # Started again where it stopped, it takes what has come since.
    drop(250, 300)
    long_ago = time.time() - 30 * 86_400
    os.utime(drop(300, 400), (long_ago, long_ago))  # as one moved in: it keeps its time
    scripts.call(pipeline_streaming_simple.main, "--once")
    for table in tables:
        table.update_incremental()
    readings, rejects = (table.to_pyarrow_table().to_pylist() for table in tables)
    # Each line is there: in the columns, or as it came.
    sent = Counter(made)
    found = Counter(row["value"] for row in rejects)
    assert sent.total() == len(readings) + len(rejects) == 400
    assert sent >= found
    stored = sorted((row["device_id"], row["type"], row["value"]) for row in readings)
    lines = [json.loads(line) for line in (sent - found).elements()]
    assert stored == sorted((line["device_id"], line["type"], line["value"]) for line in lines)


@pytest.mark.parametrize(
    ("content", "reasons"),
    [
        (OBJECT, [None]),
        ("\ufeff" + OBJECT.replace("\n", "\r\n") + "\r\n\r\n", [None]),
        (f"{LINE}\n\n{LINE}\r\nno JSON\n", [None, None, "bad_json"]),
        (json.dumps({**EXAMPLE, "floor": None}, indent=2), ["missing_field"]),
        (json.dumps(EXAMPLE | {"building": "north wing"}), ["bad_building"]),
        (f"{LINE} and more", ["bad_json"]),
        (f"{OBJECT}\n{OBJECT}\n", ["bad_json"]),
        (json.dumps([EXAMPLE, EXAMPLE], indent=2), ["bad_json"]),
        (json.dumps(EXAMPLE | {"place": {"room": 1}}, indent=2), ["bad_json"]),
        (json.dumps(EXAMPLE | {"place": {"room": 1}}) + f"\n{LINE}", ["bad_json", None]),
        ("\n \n", []),
    ],
)
def test_a_file_is_one_object_or_one_object_a_line(
    spark: SparkSession, content: str, reasons: list[str | None]
) -> None:
    now = datetime.now(UTC)
    files = spark.createDataFrame([(content, now)], "value string, ingested_at timestamp")
    rows = pipeline_streaming_simple.checked(files).collect()
    assert [row.reason and row.reason.partition(":")[0] for row in rows] == reasons
    kept = b"\n".join(row.raw for row in rows).decode()
    assert kept.split() == content.removeprefix("\ufeff").split()
    for row in rows:
        if not row.reason:
            assert row.asDict() | EXAMPLE | {"timestamp": row.timestamp} == row.asDict()


def test_a_folder_that_spark_takes_for_a_pattern_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        pipeline_streaming_simple.load_options(["--folder", "/TP [2]"], {})
    assert exit_info.value.code == 2
    assert "Spark cannot watch /TP [2]: " in capsys.readouterr().err


@pytest.mark.usefixtures("lent_spark")
def test_rows_without_their_checkpoint_are_refused(tmp_path: Path) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    write_deltalake(str(tmp_path / "simple/sensor_data_bronze"), pa.table({"a": [1]}))
    _, err = scripts.call(pipeline_streaming_simple.main, code=1)
    assert "sensor_data_checkpoint is not" in err


def test_ctrl_c_ends_the_waiting_for_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    monkeypatch.setattr(pipeline_streaming_simple, "stop_on_signals", threading.Event.set)
    with lake.lock(tmp_path / "simple/sensor_data_checkpoint"):
        _, err = scripts.call(pipeline_streaming_simple.main)
    assert err.count("another consumer is at work on") == 1
    assert err.splitlines()[-1] == "stopped"
