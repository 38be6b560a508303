"""The lake: one job at a time, with the checkpoints, options and topic that belong to it."""

import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from kafka import KafkaAdminClient
from pyspark.sql import SparkSession

from pipelines.smarttech import (
    compact,
    lake,
    plain_rules,
    prepare,
    spark_kafka_consumer,
    transforms,
    verdict,
)
from pipelines.smarttech.streams import Pipeline
from pipelines.smarttech.supervisor import Supervisor
from pipelines.tests.waiting import wait_until

from .helpers import Scripts


def test_a_late_reading_renews_an_anomaly_whose_score_it_leaves(
    spark: SparkSession, tmp_path: Path
) -> None:
    options = spark_kafka_consumer.load_options(["--lake", str(tmp_path)], {})
    lake.create_tables(spark, tmp_path)
    pipeline = Pipeline(spark, None, options)
    noon = datetime(2025, 12, 15, 12, tzinfo=UTC)
    readings = [
        plain_rules.Reading(
            noon + timedelta(minutes=i), "sensor_1", "A", 1, "temperature",
            30.0 if i == 30 else 20.0, "C",
        )
        for i in range(31)
    ]  # fmt: skip
    late = readings[0]._replace(timestamp=noon + timedelta(minutes=5.5))
    for number, new in enumerate((readings, [late])):
        rows = [(*reading, "t", 0, i, noon, noon) for i, reading in enumerate(new)]
        batch = spark.createDataFrame(rows, transforms.SILVER)
        batch.write.format("delta").mode("append").save(pipeline.path("silver"))
        pipeline.refresh(batch, number)
    stored, _ = verdict.stored_anomalies(verdict.Verdict(), tmp_path)
    [(_, _, _, history)] = stored.values()
    assert history == 31
    assert verdict.unlike(plain_rules.outliers([*readings, late]), stored) == []


def test_a_checkpoint_by_which_another_job_writes_ends_this_one(
    tmp_path: Path, spark: SparkSession
) -> None:
    """Where no lock holds it off, as on a shared disk: to go on would double rows."""
    argv = ["--lake", str(tmp_path), "--every", "0.00001"]  # for Spark 0 ms
    pipeline = Pipeline(spark, None, spark_kafka_consumer.load_options(argv, {}))
    lake.create_tables(spark, tmp_path)
    noon = datetime(2025, 12, 15, 12, tzinfo=UTC)

    def bring(minutes: int) -> None:
        when = noon + timedelta(minutes=minutes)
        reading = (when, "sensor_1", "A", 1, "temperature", 20.0, "C", "t", 0, 0, noon, noon)
        row = spark.createDataFrame([reading], transforms.SILVER)
        row.write.format("delta").mode("append").save(pipeline.path("silver"))

    bring(0)
    query = pipeline.start("gold")
    try:
        checkpoint = tmp_path / "checkpoints/gold"
        wait_until((checkpoint / "commits/0").exists, "the first batch")
        shutil.copy(checkpoint / "offsets/0", checkpoint / "offsets/1")  # the other job's next one
        bring(1)
        failure = wait_until(query.exception, "the end of the stream")
    finally:
        query.stop()
    # What Spark says instead when both note the batch at the same moment.
    at_once = RuntimeError("Multiple streaming queries are concurrently using gold/offsets/1")
    for said in (failure, at_once):
        with pytest.raises(lake.LakeError, match=r"another job works by .*checkpoints, stop one"):
            Supervisor(pipeline, threading.Event()).note_failure("gold", said)


def test_a_topic_that_is_made_anew_is_refused(
    session: tuple[SparkSession, Any], scripts: Callable[[str], Scripts]
) -> None:
    """Also when it is made while the consumer runs, and so is not there for a while."""
    remade = scripts("remade")
    argv = ["--lake", str(remade.lake), "--bootstrap-servers", remade.kafka]
    options = spark_kafka_consumer.load_options([*argv, "--topic", remade.topic], {})
    spark, java = session
    pipeline = Pipeline(spark, java.jvm, options)
    supervisor = Supervisor(pipeline, threading.Event())
    with closing(KafkaAdminClient(bootstrap_servers=remade.kafka.split(","))) as admin:

        def is_made() -> bool:
            prepare.make_topic(remade.kafka, remade.topic)
            return remade.topic in admin.list_topics()

        wait_until(is_made, "the topic")
        for _ in ("noted", "known"):
            pipeline.kafka_to_bronze()
        admin.delete_topics([remade.topic])
        wait_until(lambda: remade.topic not in admin.list_topics(), "the end of the topic")
        assert not supervisor.advance("bronze")
        assert supervisor.failures == {"bronze": 1}  # it is tried again
        supervisor.retry_at.clear()
        wait_until(is_made, "the new topic")
    with pytest.raises(lake.LakeError, match="topic=remade was deleted and made anew"):
        supervisor.advance("bronze")


@pytest.mark.usefixtures("spark")
def test_java_holds_the_lock_of_a_python_that_has_ended(
    locks: list[TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lake, "LOCK_WAIT_S", 0.0)
    [file] = locks
    file.close()
    with (
        pytest.raises(lake.LakeError, match="another consumer is at work"),
        lake.lock(Path(file.name).parent),
    ):
        pytest.fail("Java does not hold the lock")


def test_a_lake_has_one_consumer_whatever_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    monkeypatch.setattr(lake, "LOCK_WAIT_S", 0.0)
    write_deltalake(str(tmp_path / "sensor_data_bronze"), pa.table({"a": [1]}))
    argv = ["--lake", str(tmp_path), "--checkpoint", str(tmp_path / "other")]
    with lake.lock(tmp_path, tmp_path / "checkpoints"):  # as a consumer with the usual ones does
        with pytest.raises(lake.LakeError, match="another consumer is at work"):
            spark_kafka_consumer.run(spark_kafka_consumer.load_options(argv, {}), stop)
        with pytest.raises(lake.LakeError, match="another consumer is at work"):
            compact.run(compact.load_options([*argv, "--retain-hours", "0"], {}))
        monkeypatch.setattr(lake, "LOCK_WAIT_S", 30.0)
        stop.set()  # Ctrl-C ends the waiting for the other one
        with pytest.raises(lake.StoppedError):
            spark_kafka_consumer.run(spark_kafka_consumer.load_options(argv, {}), stop)
    with lake.lock(tmp_path, tmp_path):  # free again; the checkpoints may be in the lake's folder
        pass


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage in lake.STAGES for name in lake.STAGES[stage]]
)
def test_a_table_without_its_checkpoint_is_refused(tmp_path: Path, stage: str, name: str) -> None:
    checkpoint = tmp_path / "checkpoints"
    lake.check_checkpoints(tmp_path, checkpoint)  # none is there
    for table in lake.SCHEMAS:
        nothing = pa.table({"a": pa.array([], pa.int64())})
        write_deltalake(str(tmp_path / f"sensor_data_{table}"), nothing)
    lake.check_checkpoints(tmp_path, checkpoint)  # just created, nothing in it from a stream
    write_deltalake(str(tmp_path / f"sensor_data_{name}"), pa.table({"a": [1]}), mode="append")
    with pytest.raises(lake.LakeError, match=f"checkpoints/{stage} is not"):
        lake.check_checkpoints(tmp_path, checkpoint)
    # Killed in the first batch: begun, perhaps written, not noted as done.
    for folder in ("offsets", "commits"):
        (checkpoint / stage / folder).mkdir(parents=True)
        (checkpoint / stage / folder / "0").write_text("v1")
        lake.check_checkpoints(tmp_path, checkpoint)
    shutil.rmtree(tmp_path / f"sensor_data_{name}")
    with pytest.raises(lake.LakeError, match=f"sensor_data_{name} is not"):
        lake.check_checkpoints(tmp_path, checkpoint)


def test_a_lake_keeps_the_options_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    argv = ["--lake", str(tmp_path)]
    monkeypatch.setattr(spark_kafka_consumer, "stop_on_signals", lambda _: None)
    spark_kafka_consumer.keep_options(spark_kafka_consumer.load_options(argv, {}))
    same = spark_kafka_consumer.load_options([*argv, "--lateness", "600 seconds"], {})
    spark_kafka_consumer.check_options(same)
    for option, value, begun in (
        ("--lateness", "1 minute", "10 minutes"),
        ("--window", "1 hour", "5 minutes"),
        ("--topic", "other", "sensor_data"),
    ):
        caplog.clear()
        assert spark_kafka_consumer.main([*argv, option, value]) == 2
        assert f"was begun with {option} '{begun}'" in caplog.records[-1].getMessage()
    (tmp_path / "options.json").write_text("{}")
    assert spark_kafka_consumer.main(argv) == 1
    assert "options.json cannot be read" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    "argv",
    [
        ["--window", "5 parsecs"], ["--lateness", "0 minutes"], ["--batch", "0"], ["--conf", "x=1"],
        ["--bootstrap-servers", "nowhere"], ["--every", "-1"], ["--every", "nan"],
        ["--topic", "no spaces"], ["--lateness", "100000 days"],
        ["--lake", " "], ["--checkpoint", ""], ["--lake", "/x/\udcff"],
        ["--retain-hours", "nan"], ["--retain-hours", "-1"], ["--retain-hours", "inf"],
    ],
)  # fmt: skip
def test_a_wrong_option_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    script = compact if argv[0] == "--retain-hours" else spark_kafka_consumer
    with pytest.raises(SystemExit) as exit_info:
        script.load_options(argv, {})
    assert exit_info.value.code == 2
    assert argv[0] in capsys.readouterr().err
