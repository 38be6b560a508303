"""The mode without Kafka: each file once, whole or line by line, and nothing dropped."""

import json
import os
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from pipelines.smarttech import lake, pipeline_streaming_simple

from .helpers import Scripts

EXAMPLE = {
    "timestamp": "2025-12-15T10:00:00Z",
    "device_id": "sensor_001",
    "building": "A",
    "floor": 2,
    "type": "temperature",
    "value": 22.5,
    "unit": "C",
}
LINE = json.dumps(EXAMPLE)


@pytest.mark.timeout(600)
def test_each_file_is_taken_once_and_no_line_is_dropped(
    tmp_path: Path, spark: SparkSession
) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    simple = tmp_path / "simple"
    options = ("--rate", "2", "--bad", "0.1", "--folder", str(simple / "sensor_data"))
    scripts.run("kafka_producer.py", "--backfill", "125s", *options)
    _, err = scripts.run("pipeline_streaming_simple.py", "--once")
    assert " rows=250 readings=" in err
    tables = [DeltaTable(str(simple / f"sensor_data_{name}")) for name in ("bronze", "rejects")]
    assert f"rejected={tables[1].count()} (bad_json=" in err
    assert sum(table.count() for table in tables) == 250
    assert tables[0].metadata().partition_columns == ["building", "type"]
    # Started again where it stopped, it takes what has come since.
    scripts.run("kafka_producer.py", "--backfill", "75s", *options)
    last = max((simple / "sensor_data").glob("*.json"))  # as one moved in: it keeps its time
    long_ago = time.time() - 30 * 86_400
    os.utime(last, (long_ago, long_ago))
    again = pipeline_streaming_simple.load_options(["--once", "--folder", str(simple)], {})
    assert pipeline_streaming_simple.start(spark, again).awaitTermination(240)
    for table in tables:
        table.update_incremental()
    readings, rejects = (table.to_pyarrow_table().to_pylist() for table in tables)
    # Each line is there: in the columns, or as it came.
    files = (simple / "sensor_data").glob("*.json")
    sent = Counter(b"".join(file.read_bytes() for file in files).splitlines())
    found = Counter(row["value"] for row in rejects)
    assert sent.total() == len(readings) + len(rejects) == 400
    assert sent >= found
    stored = sorted((row["device_id"], row["type"], row["value"]) for row in readings)
    lines = [json.loads(line) for line in (sent - found).elements()]
    assert stored == sorted((line["device_id"], line["type"], line["value"]) for line in lines)


@pytest.mark.parametrize(
    ("content", "reasons"),
    [
        (json.dumps(EXAMPLE, indent=2), [None]),  # one object over several lines
        ("\ufeff" + json.dumps(EXAMPLE, indent=2).replace("\n", "\r\n") + "\r\n\r\n", [None]),
        (f"{LINE}\n\n{LINE}\r\nno JSON\n", [None, None, "bad_json"]),
        (json.dumps({**EXAMPLE, "floor": None}, indent=2), ["missing_field"]),
        (json.dumps(EXAMPLE | {"building": "north wing"}), ["bad_building"]),
        (f"{LINE} and more", ["bad_json"]),
        ("\n \n", []),
    ],
)
def test_a_file_is_one_object_or_one_object_a_line(
    spark: SparkSession, content: str, reasons: list[str | None]
) -> None:
    files = spark.createDataFrame([(content,)], "value string")
    rows = pipeline_streaming_simple.checked(files).collect()
    assert [row.reason and row.reason.partition(":")[0] for row in rows] == reasons
    for row in rows:
        if not row.reason:
            assert row.asDict() | EXAMPLE | {"timestamp": row.timestamp} == row.asDict()


def test_rows_without_their_checkpoint_are_refused(
    tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = pipeline_streaming_simple.load_options(["--folder", str(tmp_path)], {})
    write_deltalake(str(tmp_path / "sensor_data_bronze"), pa.table({"a": [1]}))
    monkeypatch.setattr(pipeline_streaming_simple, "spark_session", lambda *_: nullcontext(spark))
    monkeypatch.setattr(pipeline_streaming_simple, "stop_on_signals", lambda _: None)
    with pytest.raises(lake.LakeError, match="sensor_data_checkpoint is not"):
        pipeline_streaming_simple.run(options, threading.Event())
