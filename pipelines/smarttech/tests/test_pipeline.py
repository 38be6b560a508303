"""The whole pipeline on a real Kafka, real Spark and real Delta tables, with real kills.

The tests of the first half share one topic and one lake, and follow each other. What is killed,
stopped or locked is a script of its own, as a user starts it; the rest is brought in by the same
streams on the Spark session of the tests, which is already warm.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import Mock

import pyarrow as pa
import pytest
from delta.exceptions import ConcurrentDeleteReadException
from deltalake import DeltaTable, write_deltalake
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import NewTopic
from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError
from pyspark.sql import SparkSession

from pipelines.smarttech import (
    compact,
    demo,
    kafka_producer,
    lake,
    options,
    pipeline_streaming_simple,
    read_delta,
    spark_kafka_consumer,
    transforms,
    verify,
)
from pipelines.tests.other_producers import send_in_transactions, send_with_each_codec
from stack.lifecycle import Stack

from .conftest import Scripts

TABLES = ("bronze", "silver", "gold", "anomalies", "quarantine", "duplicates")
WRONG = ("--bad", "0.05", "--duplicate", "0.05", "--late", "0.05", "--spike", "0.01")
SENT_1, SENT_2, SENT_3 = 3000, 2000, 500
LEDGER_HEADER = "partition,offset,crc32,label\n"


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 240) -> Any:
    """Return the condition's first true value; fail, saying what was waited for, after a while."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.002)
    return value


def still_running(process: subprocess.Popen[str]) -> bool:
    """Return True, or fail with what the process has said."""
    if process.poll() is not None:
        pytest.fail(f"it ended early: {process.communicate()[1]}")
    return True


def newest(log_folder: Path) -> int:
    """Return the newest version in a table's log, -1 without any."""
    return max((int(file.stem) for file in log_folder.glob("[0-9]*.json")), default=-1)


def produce(scripts: Scripts, count: int, seed: int, start: str) -> None:
    """Send readings that are half a second apart, from a time on, and note them."""
    noted = scripts.lake.parent / "noted.csv"
    options = ("--at-once", "--rate", "2", "--seed", str(seed), "--start", start)
    scripts.run(
        "kafka_producer.py", "--count", str(count), "--ledger", str(noted), *options, *WRONG
    )
    header, _, lines = noted.read_text().partition("\n")
    with scripts.ledger.open("a") as ledger:  # one for all
        ledger.write(lines if ledger.tell() else f"{header}\n{lines}")


def drain(spark: SparkSession, scripts: Scripts) -> Counter[str]:
    """Bring in what the topic holds, as --available-now does; return the rows of each stage."""
    config = spark_kafka_consumer.load_config(["--available-now"], scripts.environ)
    pipeline = spark_kafka_consumer.Pipeline(spark, config)
    supervisor = spark_kafka_consumer.Supervisor(pipeline, threading.Event())
    for stage in lake.STAGES:
        supervisor.run([stage])
    return supervisor.rows


def check(scripts: Scripts) -> str:
    """Run verify.py on all that was sent; return what it printed."""
    return scripts.run("verify.py", "--ledger", str(scripts.ledger))[0]


def shown(out: str, name: str) -> int:
    """Return a number that verify.py has printed."""
    found = re.search(rf"^\s*{re.escape(name)}\s+(-?\d+)", out, re.MULTILINE)
    assert found, name
    return int(found[1])


def rows_of(log: str, stage: str) -> int:
    """Return how many rows the consumer says a stage has taken in."""
    found = re.search(rf"{stage} total rows=(\d+)", log)
    assert found, log
    return int(found[1])


@pytest.fixture(scope="module")
def scene(scripts: Callable[[str], Scripts]) -> Scripts:
    return scripts("scene")


# One topic, one lake


@pytest.mark.timeout(1200)
def test_each_row_once_though_killed_between_any_two_writes(scene: Scripts) -> None:
    """kill -9 right after each kind of commit: what comes after it in the batch is not done."""
    produce(scene, SENT_1, 1, "2025-12-15T10:00:00Z")
    open_at_kill: dict[str, set[str]] = {}
    for table in ("bronze", "quarantine", "duplicates", "silver", "gold", "anomalies"):
        log_folder = scene.lake / f"sensor_data_{table}" / "_delta_log"
        before = max(newest(log_folder), 0)  # version 0 is the empty table
        options = ("--interval", "0", "--batch", "1000")
        with scene.started("spark_kafka_consumer.py", *options) as consumer:
            wait_until(
                lambda: still_running(consumer) and newest(log_folder) > before,  # noqa: B023
                f"a commit of {table}",
            )
            if table == "gold":
                consumer.kill()  # Python alone: Java lives on for a moment
            else:
                os.killpg(consumer.pid, signal.SIGKILL)
            _, err = consumer.communicate()
        assert consumer.returncode == -signal.SIGKILL, err
        assert newest(log_folder) > before
        open_at_kill[table] = lake.open_batches(scene.lake / "checkpoints")
        if table == "duplicates":
            produce(scene, SENT_2, 2, "2025-12-15T10:25:00Z")
    # The kills came in mid-batch, of each of the three streams.
    assert {"bronze", "silver", "gold"} <= set().union(*open_at_kill.values()), open_at_kill
    assert "silver" in open_at_kill["quarantine"] & open_at_kill["duplicates"]

    _, err = scene.run("spark_kafka_consumer.py", "--available-now")
    assert rows_of(err, "bronze") < SENT_1 + SENT_2  # it did not begin anew
    _, refused = scene.run("spark_kafka_consumer.py", "--window", "1 hour", code=2)
    assert "was begun with --window '5 minutes'" in refused.splitlines()[-1]
    out = check(scene)
    assert shown(out, "messages in the ledger") == SENT_1 + SENT_2
    assert shown(out, "messages in scene") == shown(out, "rows in bronze") == SENT_1 + SENT_2
    parts = [shown(out, f"rows in {name}") for name in ("silver", "quarantine", "duplicates")]
    assert sum(parts) == SENT_1 + SENT_2
    assert min(parts) > 50
    for reason in (
        "bad_json",
        "missing_field",
        "wrong_type",
        "wrong_unit",
        "out_of_range",
        "too_late",
    ):
        assert shown(out, f"of which {reason}") > 0
    assert shown(out, "of which found") > 0


@pytest.mark.timeout(900)
def test_goes_on_where_it_stopped_and_waits_for_a_kafka_that_is_away(
    scene: Scripts, stack: Stack, spark: SparkSession
) -> None:
    def bronze() -> int:
        count: int = DeltaTable(str(scene.lake / "sensor_data_bronze")).count()
        return count

    before = bronze()
    with scene.started("spark_kafka_consumer.py", "--interval", "1") as consumer:
        produce(scene, SENT_3, 3, "2025-12-15T10:42:00Z")
        wait_until(
            lambda: still_running(consumer) and bronze() == before + SENT_3,
            "the new messages in bronze",
        )
        out, _ = scene.run("compact.py", "gold", "anomalies")  # beside it, as README says
        assert [line.split()[0] for line in out.splitlines()] == ["table", "gold", "anomalies"]
        stack.stop("kafka", signal.SIGKILL)
        time.sleep(3)
        stack.up(["kafka"])
        produce(scene, SENT_3, 4, "2025-12-15T10:47:00Z")
        wait_until(
            lambda: still_running(consumer) and bronze() == before + 2 * SENT_3,
            "those sent after Kafka's return",
        )
        os.killpg(consumer.pid, signal.SIGINT)  # as a terminal does: Java gets it, too
        _, err = consumer.communicate(timeout=120)
    assert consumer.returncode == 0, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("INFO smarttech: stopped")
    assert rows_of(err, "bronze") <= 2 * SENT_3  # it did not begin anew

    drain(spark, scene)
    assert drain(spark, scene).total() == 0
    out = check(scene)
    assert shown(out, "rows in bronze") == before + 2 * SENT_3


def test_verify_finds_what_is_wrong(scene: Scripts, tmp_path: Path) -> None:
    """What verify.py must see when it is there: each on a copy of the lake."""
    messages, first = verify.read_topic(scene.kafka, scene.topic)

    def first_row(folder: Path) -> str:
        """Return the predicate of one row."""
        keys = {
            "sensor_data_gold": ("building", "floor", "type", "mean"),
            "sensor_data_anomalies": ("device_id", "type", "value", "score"),
        }.get(folder.name, ("partition", "offset"))
        row = DeltaTable(str(folder)).to_pyarrow_table().slice(0, 1).to_pylist()[0]
        quoted = {k: f"'{row[k]}'" if isinstance(row[k], str) else row[k] for k in keys}
        return " and ".join(f'"{k}" = {value}' for k, value in quoted.items())

    def lose(folder: Path) -> None:
        table = DeltaTable(str(folder))
        assert table.delete(first_row(folder))["num_deleted_rows"] == 1

    def double(folder: Path) -> None:
        write_deltalake(
            str(folder), DeltaTable(str(folder)).to_pyarrow_table().slice(0, 1), mode="append"
        )

    def change(column: str, value: str) -> Callable[[Path], None]:
        def update(folder: Path) -> None:
            table, row = DeltaTable(str(folder)), first_row(folder)
            changed = table.update(updates={column: value}, predicate=row)
            assert changed["num_updated_rows"] == 1

        return update

    def make_up(folder: Path) -> None:
        row = DeltaTable(str(folder)).to_pyarrow_table().slice(0, 1)
        nowhere = pa.array([10**9], pa.int64())
        column = row.schema.get_field_index("offset")
        write_deltalake(str(folder), row.set_column(column, "offset", nowhere), mode="append")

    faults = [
        ("bronze", lose, "lost"),
        ("bronze", double, "doubled"),
        ("bronze", change("value", "arrow_cast('{}', 'Binary')"), "altered"),
        ("bronze", change("key", "arrow_cast('x', 'Binary')"), "altered"),
        ("bronze", change("kafka_timestamp", "kafka_timestamp + interval '1 second'"), "altered"),
        ("bronze", make_up, "made up"),
        ("silver", lose, "unsettled"),
        ("silver", double, "doubled"),
        ("silver", make_up, "made up"),
        ("silver", change("value", "value + 1"), "differing values"),
        ("quarantine", lose, "unsettled"),
        ("quarantine", change("reason", "'bad_floor: 900'"), "misjudged"),
        ("quarantine", change("value", "arrow_cast('x', 'Binary')"), "altered"),
        ("duplicates", lose, "unsettled"),
        ("duplicates", change("device_id", "'sensor_999'"), "differing values"),
        ("gold", lose, "gold rows unlike silver"),
        ("gold", double, "gold rows unlike silver"),
        ("gold", change("mean", "mean + 0.1"), "gold rows unlike silver"),
        ("anomalies", lose, "anomalies unlike silver"),
        ("anomalies", double, "anomalies unlike silver"),
        ("anomalies", change("history", "history - 1"), "anomalies unlike silver"),
        ("anomalies", change("floor", "floor + 1"), "anomalies unlike silver"),
    ]
    window, lateness = timedelta(minutes=5), timedelta(minutes=10)
    seen = []
    for number, (name, spoil, fault) in enumerate(faults):
        spoilt = tmp_path / str(number)
        tables = shutil.ignore_patterns("checkpoints", "spark.log")
        shutil.copytree(scene.lake, spoilt, ignore=tables)
        spoil(spoilt / f"sensor_data_{name}")
        verdict = verify.verify(messages, first, spoilt, scene.topic, lateness, window, None)
        assert not verdict.holds
        seen.append((name, fault, len(verdict.faults()[fault])))
        if number:  # the first is looked at once more below
            shutil.rmtree(spoilt)
    # One row each; a reading that is lost or altered is missed by gold too, which counts elsewhere.
    assert seen == [(name, fault, 1) for name, _, fault in faults]
    # The ledger notes other bytes than those that came.
    header, line, *others = scene.ledger.read_text().splitlines()
    partition, offset, _, label = line.split(",")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("\n".join([header, f"{partition},{offset},00000000,{label}", *others]))
    verdict = verify.verify(messages, first, scene.lake, scene.topic, lateness, window, wrong)
    assert verdict.unlike_ledger == [(int(partition), int(offset))]
    named = {fault for _, _, fault in faults} | {"unlike the ledger"}
    assert named == set(verdict.faults())  # each kind was planted
    copy = Scripts(scene.kafka, scene.topic, tmp_path / "0")
    out, _ = copy.run("verify.py", code=1)
    assert shown(out, "lost") == 1


def test_read_delta_shows_the_tables_and_older_versions(
    scene: Scripts, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = scene.run("read_delta.py")
    assert [line.split()[0] for line in out.splitlines()] == ["table", *TABLES]
    for table in TABLES:
        stored = DeltaTable(str(scene.lake / f"sensor_data_{table}"))
        assert read_delta.main([table, "--rows", "3", "--lake", str(scene.lake)]) == 0
        out = capsys.readouterr().out
        assert f"version {stored.version()}, {stored.count()} rows" in out
        assert out.count("\n") > 20
    out, _ = scene.run("read_delta.py", "bronze", "--version", "0", "--history", "1000")
    assert "version 0, 0 rows" in out
    versions = re.findall(r"^ *(-?\d+)  \d{4}-", out[out.index("history") :], re.MULTILINE)
    last = DeltaTable(str(scene.lake / "sensor_data_bronze")).version()
    assert [int(version) for version in versions] == list(range(last, -1, -1))
    assert out.splitlines()[-1].split()[2:] == ["CREATE", "TABLE"]
    _, err = scene.run("read_delta.py", "bronze", "--version", "999", code=1)
    assert "there is no version 999, the newest is" in err
    assert len(err.splitlines()) == 1


@pytest.mark.timeout(900)
def test_compaction_makes_few_files_of_many_and_changes_nothing(
    scene: Scripts, spark: SparkSession
) -> None:
    def files(table: str) -> int:
        return len(DeltaTable(str(scene.lake / f"sensor_data_{table}")).file_uris())

    tables = ("bronze", "silver")  # those that a stream goes on reading
    before = {table: files(table) for table in tables}
    out, _ = scene.run("compact.py", *tables, "--retain-hours", "0")
    assert [line.split()[0] for line in out.splitlines()] == ["table", *tables]
    for table in tables:
        folder = scene.lake / f"sensor_data_{table}"
        assert files(table) < before[table]
        # Each folder has one file left, on the disk too.
        on_disk = [
            file.parent for file in folder.rglob("*.parquet") if "_delta_log" not in file.parts
        ]
        assert len(on_disk) == len(set(on_disk)) == files(table)
    check(scene)

    # And the streams go on from there.
    produce(scene, SENT_3, 5, "2025-12-15T10:52:00Z")
    rows = drain(spark, scene)
    assert rows["bronze"] == rows["silver"] == SENT_3
    check(scene)


@pytest.mark.usefixtures("spark")  # its exceptions cannot be made without
def test_compaction_tries_again_when_the_consumer_was_faster() -> None:
    conflict = ConcurrentDeleteReadException("a file was deleted", stackTrace="")
    stored = Mock()
    stored.optimize().executeCompaction.side_effect = [conflict, conflict, None]
    compact.optimize(stored, "gold")
    assert stored.optimize().executeCompaction.call_count == 3
    stored.optimize().executeCompaction.side_effect = conflict
    with pytest.raises(ConcurrentDeleteReadException):
        compact.optimize(stored, "gold")


def test_cleaning_at_once_is_refused_while_something_is_unread(scene: Scripts) -> None:
    checkpoints = scene.lake / "checkpoints"
    compact.check_read(scene.lake, checkpoints)
    with pytest.raises(lake.LakeError, match="elsewhere/bronze is not"):
        compact.check_read(scene.lake, scene.lake / "elsewhere")
    # Killed after gold's MERGE, before the note in the checkpoint: the batch is read again.
    note = checkpoints / "gold/commits" / str(lake.newest_file(checkpoints / "gold/commits"))
    note.rename(note.with_name("away"))
    with pytest.raises(lake.LakeError, match="not all of bronze"):
        compact.check_read(scene.lake, checkpoints)
    note.with_name("away").rename(note)
    rows = DeltaTable(str(scene.lake / "sensor_data_bronze")).to_pyarrow_table().slice(0, 1)
    write_deltalake(str(scene.lake / "sensor_data_bronze"), rows, mode="append")
    with pytest.raises(lake.LakeError, match="not all of bronze"):
        compact.check_read(scene.lake, scene.lake / "checkpoints")


@pytest.mark.timeout(600)
def test_a_consumer_that_comes_before_any_producer_waits_for_messages(
    scripts: Callable[[str], Scripts],
) -> None:
    first = scripts("first")
    _, err = first.run("spark_kafka_consumer.py", "--available-now", "--wait", "20")
    assert rows_of(err, "bronze") == 0
    assert "sender's clock" not in err


@pytest.mark.timeout(600)
def test_every_codec_is_read_and_nothing_of_an_aborted_transaction(
    scripts: Callable[[str], Scripts], spark: SparkSession
) -> None:
    others = scripts("others")
    argv = ["--seed", "1", "--start", "2025-12-15T10:00:00Z"]
    config = kafka_producer.load_config(argv, {}, datetime.now(UTC))
    made = kafka_producer.Simulation(config).messages()
    values = [message.value for message in itertools.islice(made, 140)]
    send_with_each_codec(others.kafka, others.topic, values[:100])
    aborted, committed = values[100:120], values[120:]
    send_in_transactions(others.kafka, others.topic, aborted=aborted, committed=committed)
    lake.create_tables(spark, others.lake)
    assert drain(spark, others)["bronze"] == 120
    out, _ = others.run("verify.py")
    assert shown(out, "messages in others") == shown(out, "rows in silver") == 120


def in_each(offset: int) -> Mock:
    """Return a method of a consumer that says the same offset of each partition."""
    return Mock(side_effect=lambda partitions: dict.fromkeys(partitions, offset))


def test_verify_says_what_it_cannot_compare(
    scripts: Callable[[str], Scripts], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = scripts("nothing")
    _, err = nothing.run("verify.py", code=1)
    assert err.startswith("verify: cannot compare: there is no topic nothing")
    with closing(KafkaAdminClient(bootstrap_servers=nothing.kafka.split(","))) as admin:
        admin.create_topics([NewTopic("nothing", -1, -1)])
    for name, schema in lake.SCHEMAS.items():
        columns = {column: pa.array([], pa.string()) for column in transforms.names(schema)}
        write_deltalake(str(nothing.lake / f"sensor_data_{name}"), pa.table(columns))
    _, err = nothing.run("verify.py", code=1)
    assert err == "verify: nothing to compare: nothing and the tables are empty\n"
    # Retention was faster: what was the first message when it began is there no more.
    monkeypatch.setattr(KafkaConsumer, "beginning_offsets", in_each(5))
    monkeypatch.setattr(KafkaConsumer, "end_offsets", in_each(10))
    with pytest.raises(OffsetOutOfRangeError):
        verify.read_topic(nothing.kafka, "nothing")


def test_verify_does_not_wait_for_ever_for_a_kafka_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consumer = Mock()
    consumer.partitions_for_topic.return_value = {0}
    consumer.beginning_offsets, consumer.end_offsets = in_each(0), in_each(10)
    consumer.poll.return_value = {}
    consumer.position.side_effect = [0, 3, 3, 3, 3]
    monkeypatch.setattr(verify, "KafkaConsumer", lambda **_: consumer)
    clock = itertools.count(0.0, 25.0)  # seconds, a look at a time
    monkeypatch.setattr(verify, "time", Mock(monotonic=lambda: next(clock)))
    with pytest.raises(KafkaTimeoutError, match="nothing comes any more"):
        verify.read_topic("127.0.0.1:1", "topic")
    assert consumer.position.call_count == 5


def test_verify_says_in_one_line_that_a_stored_row_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "read_topic", lambda *_: ({}, {}))
    monkeypatch.setenv("SMARTTECH_LAKE", str(tmp_path))
    bronze = {
        "topic": ["t"], "partition": [0], "offset": [0],
        "kafka_timestamp": pa.array([None], pa.timestamp("us", "UTC")),
        "key": pa.array([None], pa.binary()), "value": pa.array([None], pa.binary()),
    }  # fmt: skip
    write_deltalake(str(tmp_path / "sensor_data_bronze"), pa.table(bronze))
    assert verify.main([]) == 1
    said = "verify: cannot compare: bronze holds a row without kafka_timestamp\n"
    assert capsys.readouterr().err == said
    written_as_text = bronze | {"kafka_timestamp": ["2025-12-15T10:00:00Z"]}
    write_deltalake(
        str(tmp_path / "sensor_data_bronze"), pa.table(written_as_text),
        mode="overwrite", schema_mode="overwrite",
    )  # fmt: skip
    assert verify.main([]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("verify: cannot compare: ")


@pytest.mark.parametrize("text", ["", LEDGER_HEADER, f"{LEDGER_HEADER},,00000000,reading\n"])
def test_a_ledger_of_nothing_is_not_agreed_with(tmp_path: Path, text: str) -> None:
    ledger = tmp_path / "ledger.csv"
    ledger.write_text(text)
    with pytest.raises(ValueError, match=r"ledger\.csv notes no acknowledged message"):
        verify.compare_ledger(verify.Verdict(), ledger, {}, {}, {}, set())


def test_verify_is_interrupted_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "read_topic", Mock(side_effect=KeyboardInterrupt))
    assert verify.main([]) == 1
    assert capsys.readouterr().err == "verify: interrupted, nothing is said\n"


def test_a_full_disk_is_not_called_the_end_of_java() -> None:
    assert lake.what_ended(OSError(28, "No space left")) == "[Errno 28] No space left"
    assert lake.what_ended(ConnectionRefusedError("refused")) == "Java has ended: refused"


@pytest.mark.parametrize(
    "main",
    [
        kafka_producer.main, spark_kafka_consumer.main, pipeline_streaming_simple.main,
        verify.main, compact.main, read_delta.main, lambda _: demo.main(),
    ],
)  # fmt: skip
def test_an_env_file_that_is_no_text_is_said_in_one_line(
    main: Callable[[list[str]], int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(options, "PROJECT", tmp_path)
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    (tmp_path / ".env").write_bytes("SMARTTECH_TOPIC=\xe9tage\n".encode("latin-1"))
    with pytest.raises(SystemExit) as exit_info:
        main([])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path}/.env is not in UTF-8: save it so\n"


def test_a_ledger_that_is_not_whole_is_said_after_the_last_message(
    scripts: Callable[[str], Scripts],
) -> None:
    full = scripts("full")
    options = ("--at-once", "--count", "1000", "--ledger", "/dev/full")
    _, err = full.run("kafka_producer.py", *options, code=1)
    assert "acknowledged=1000 failed=0" in err
    assert err.splitlines()[-1].endswith(
        "the ledger is not whole: /dev/full: No space left on device"
    )


def test_a_reader_of_read_delta_that_has_had_enough_is_no_fault(tmp_path: Path) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    write_deltalake(str(scripts.lake / "sensor_data_gold"), pa.table({"a": [1]}))
    with scripts.started("read_delta.py") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        err = process.stderr.read()
        assert (process.wait(60), err) == (0, "")


def test_read_delta_says_that_there_is_no_table(tmp_path: Path) -> None:
    nothing = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    out, err = nothing.run("read_delta.py", code=1)
    assert out == ""
    assert err == f"read_delta: cannot read the tables in {nothing.lake}: there is no table\n"


def test_times_that_are_the_senders_are_said(
    scripts: Callable[[str], Scripts], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = scripts("theirs")
    with closing(KafkaAdminClient(bootstrap_servers=theirs.kafka.split(","))) as admin:
        configs = {"message.timestamp.type": "CreateTime"}
        admin.create_topics([NewTopic("theirs", -1, -1, topic_configs=configs)])
    config = spark_kafka_consumer.load_config([], theirs.environ)
    spark_kafka_consumer.warn_of_sender_times(config)
    assert "message.timestamp.type of topic=theirs is CreateTime" in caplog.text


# Without Kafka


@pytest.mark.timeout(600)
def test_the_simple_mode_takes_each_file_once_and_drops_no_line(
    tmp_path: Path, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    folder = scripts.lake / "simple/sensor_data"
    options = ("--at-once", "--bad", "0.1", "--folder", str(folder))
    scripts.run("kafka_producer.py", "--count", "250", *options)
    _, err = scripts.run("pipeline_streaming_simple.py", "--available-now")
    assert "rows=250 " in err
    table = DeltaTable(str(scripts.lake / "simple/sensor_data_bronze"))
    assert table.count() == 250
    assert table.metadata().partition_columns == ["building", "type"]
    # Started again where it stopped, it takes what has come since.
    scripts.run("kafka_producer.py", "--count", "150", *options)
    last = max(folder.glob("*.json"))  # as one that is moved in: it keeps its time
    long_ago = time.time() - 30 * 86_400
    os.utime(last, (long_ago, long_ago))
    config = pipeline_streaming_simple.load_config(["--available-now"], scripts.environ)
    again = pipeline_streaming_simple.start(spark, config)
    assert again.awaitTermination(240)
    table.update_incremental()
    rows = table.to_pyarrow_table().to_pylist()
    assert len(rows) == 400
    # Each line is there: as it came, or in the columns.
    sent = b"".join(file.read_bytes() for file in folder.glob("*.json")).decode().splitlines()
    whole = [row for row in rows if row["malformed"] is None]
    assert 0 < len(whole) < 400
    found = Counter(row["malformed"] for row in rows if row["malformed"] is not None)
    unread = Counter(sent) - found
    assert unread.total() == len(whole)
    read = [tuple(json.loads(line)[name] for name in verify.FIELDS) for line in unread.elements()]
    assert sorted(read) == sorted(tuple(row[name] for name in verify.FIELDS) for row in whole)
    assert read_delta.main(["simple", "--lake", str(scripts.lake)]) == 0
    assert "400 rows" in capsys.readouterr().out


def test_the_simple_mode_keeps_what_its_columns_cannot_hold(spark: SparkSession) -> None:
    good = (
        '{"timestamp": "2025-12-15T10:00:00Z", "device_id": "sensor_001", "building": "A", '
        '"floor": 2, "type": "temperature", "value": 22.5, "unit": "C"}'
    )
    lost = [
        good.replace('"A"', '"north wing"'),  # no folder's name: its column is null
        good.replace("temperature", "noise"),
        good.replace('"C"', '"C", "colour": "red"'),
        good.replace('"floor": 2, ', ""),
        good.replace("22.5", '"n/a"'),
        good + " and more",
        "no JSON",
    ]
    lines = spark.createDataFrame([(line,) for line in [good, *lost]], "value string")
    rows = pipeline_streaming_simple.parsed(lines).collect()
    assert [row.malformed for row in rows] == [None, *lost]
    assert rows[0].asDict() | json.loads(good) == rows[0].asDict()


def test_the_simple_mode_refuses_rows_without_their_checkpoint(
    tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pipeline_streaming_simple.load_config(["--lake", str(tmp_path)], {})
    write_deltalake(str(tmp_path / "simple/sensor_data_bronze"), pa.table({"a": [1]}))
    monkeypatch.setattr(pipeline_streaming_simple, "spark_session", lambda *_: nullcontext(spark))
    monkeypatch.setattr(pipeline_streaming_simple, "stop_on_signals", lambda _: None)
    with pytest.raises(lake.LakeError, match="checkpoints is not"):
        pipeline_streaming_simple.run(config, threading.Event())


def test_kafka_away_at_the_start_is_said_in_one_line(tmp_path: Path) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    for script in ("spark_kafka_consumer.py", "kafka_producer.py"):
        _, err = scripts.run(script, "--wait", "0", code=1)
        assert "Kafka does not answer at 127.0.0.1:1" in err.splitlines()[-1]
    _, err = scripts.run("verify.py", code=1)
    assert len(err.splitlines()) == 1


def test_a_late_reading_renews_an_anomaly_whose_score_it_leaves(
    spark: SparkSession, tmp_path: Path
) -> None:
    config = spark_kafka_consumer.load_config(["--lake", str(tmp_path)], {})
    lake.create_tables(spark, tmp_path)
    pipeline = spark_kafka_consumer.Pipeline(spark, config)
    noon = datetime(2025, 12, 15, 12, tzinfo=UTC)
    readings = [
        verify.Reading(
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
    stored, _ = verify.stored_anomalies(verify.Verdict(), tmp_path)
    [(_, _, _, history)] = stored.values()
    assert history == 31
    assert verify.unlike(verify.outliers([*readings, late]), stored) == []


def test_only_one_consumer_works_on_a_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake, "LOCK_WAIT_S", 0.0)
    with (
        lake.lock(tmp_path, tmp_path),  # the checkpoints may be in the lake's own folder
        pytest.raises(lake.LakeError, match="another consumer is at work"),
        lake.lock(tmp_path),
    ):
        pytest.fail("two hold the lock")
    with lake.lock(tmp_path):
        pass


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
    argv = ["--lake", str(tmp_path), "--checkpoints", str(tmp_path / "other")]
    with lake.lock(tmp_path, tmp_path / "checkpoints"):  # as a consumer with the usual ones does
        with pytest.raises(lake.LakeError, match="another consumer is at work"):
            spark_kafka_consumer.run(spark_kafka_consumer.load_config(argv, {}), stop)
        with pytest.raises(lake.LakeError, match="another consumer is at work"):
            compact.run(compact.load_options([*argv, "--retain-hours", "0"], {}))


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage in lake.STAGES for name in lake.STAGES[stage]]
)
def test_a_table_without_its_checkpoint_is_refused(tmp_path: Path, stage: str, name: str) -> None:
    config = spark_kafka_consumer.load_config(["--lake", str(tmp_path)], {})
    spark_kafka_consumer.check_checkpoints(config)  # none is there
    for table in lake.SCHEMAS:
        nothing = pa.table({"a": pa.array([], pa.int64())})
        write_deltalake(str(tmp_path / f"sensor_data_{table}"), nothing)
    spark_kafka_consumer.check_checkpoints(config)  # just created, nothing in it from a stream
    write_deltalake(str(tmp_path / f"sensor_data_{name}"), pa.table({"a": [1]}), mode="append")
    with pytest.raises(lake.LakeError, match=f"checkpoints/{stage} is not"):
        spark_kafka_consumer.check_checkpoints(config)
    # Killed in the first batch: begun, perhaps written, not noted as done.
    for folder in ("offsets", "commits"):
        (tmp_path / "checkpoints" / stage / folder).mkdir(parents=True)
        (tmp_path / "checkpoints" / stage / folder / "0").write_text("v1")
        spark_kafka_consumer.check_checkpoints(config)
    shutil.rmtree(tmp_path / f"sensor_data_{name}")
    with pytest.raises(lake.LakeError, match=f"sensor_data_{name} is not"):
        spark_kafka_consumer.check_checkpoints(config)


def test_a_lake_keeps_the_options_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    argv = ["--lake", str(tmp_path), "--wait", "0", "--bootstrap-servers", "127.0.0.1:1"]
    monkeypatch.setattr(spark_kafka_consumer, "stop_on_signals", lambda _: None)
    spark_kafka_consumer.keep_options(spark_kafka_consumer.load_config(argv, {}))
    assert spark_kafka_consumer.main([*argv, "--lateness", "600 seconds"]) == 1  # Kafka is away
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
        ["--bootstrap-servers", "nowhere"], ["--interval", "-1"], ["--interval", "nan"],
        ["--topic", "no spaces"],
    ],
)  # fmt: skip
def test_a_wrong_option_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        spark_kafka_consumer.load_config(argv, {})
    assert exit_info.value.code == 2
    assert argv[0] in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["nan", "-1", "inf"])
def test_hours_that_are_none_exit_with_2(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        compact.load_options(["--retain-hours", hours], {})
    assert exit_info.value.code == 2
    assert "--retain-hours" in capsys.readouterr().err
