"""The whole pipeline on a real Kafka, real Spark and real Delta tables, with real kills.

The tests share one topic and one lake, and follow each other. What is killed, stopped or locked is
a script of its own, as a user starts it; the others run in this process, on the Spark session of
the tests, which is already warm.
"""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pytest
from delta.exceptions import ConcurrentDeleteReadException
from deltalake import DeltaTable, write_deltalake

from pipelines.smarttech import (
    compact,
    kafka_producer,
    lake,
    read_delta,
    spark_kafka_consumer,
    verify,
)
from pipelines.smarttech.simulation import DEFECTS
from pipelines.smarttech.verdict import compare
from pipelines.tests.other_producers import send_in_transactions, send_with_each_codec
from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack

from .helpers import Scripts, messages, newest, rows_of, shown, still_running

TABLES = ("bronze", "silver", "gold", "anomalies", "rejects", "duplicates")
WRONG = ("--bad", "0.05", "--duplicate", "0.05", "--late", "0.05", "--spike", "0.01")
SENT_1, SENT_2, SENT_3 = 1500, 1000, 250
SENT_BY_OTHERS = 120


def produce(scripts: Scripts, count: int, seed: int, start: str) -> None:
    """Send readings that are a second apart, from a time on, and note them."""
    ledger = str(scripts.lake.with_name(f"ledger-{seed}.csv"))
    options = ("--seed", str(seed), "--start", start, "--ledger", ledger)
    scripts.call(kafka_producer.main, "--backfill", f"{count}s", *options, *WRONG)
    scripts.ledgers += ["--ledger", ledger]


def produce_as_others(scripts: Scripts) -> None:
    """Send readings of other devices with each codec and in transactions, one of them aborted."""
    made = messages(count=SENT_BY_OTHERS + 20)
    values = [message.value.replace(b'"sensor_', b'"sensor_9') for message in made]
    send_with_each_codec(scripts.kafka, scripts.topic, values[:100])
    aborted, committed = values[100:120], values[120:]
    send_in_transactions(scripts.kafka, scripts.topic, aborted=aborted, committed=committed)


def consume(scripts: Scripts) -> str:
    """Bring in what the topic holds; return the log."""
    return scripts.call(spark_kafka_consumer.main, "--once")[1]


def check(scripts: Scripts) -> str:
    """Verify all that was sent; return what is printed."""
    return scripts.call(verify.main, *scripts.ledgers)[0]


@pytest.fixture(scope="module")
def scene(scripts: Callable[[str], Scripts]) -> Scripts:
    return scripts("scene")


def java_of(group: int) -> int:
    """Return the Java process of a process group."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            name, _, rest = stat.read_text().partition(") ")
            if name.endswith("(java") and int(rest.split()[2]) == group:
                return int(stat.parent.name)
    raise AssertionError("there is no Java")


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("lent_spark")
def test_each_row_once_though_killed_between_any_two_writes(scene: Scripts) -> None:
    """kill -9 right after each kind of commit: what comes after it in the batch is not done."""
    open_at_kill: dict[str, set[str]] = {}
    for table in ("bronze", "rejects", "duplicates", "silver", "gold", "anomalies"):
        log_folder = scene.lake / f"sensor_data_{table}" / "_delta_log"
        before = max(newest(log_folder), 0)  # version 0 is the empty table
        options = ("--every", "0", "--batch", "500")
        with scene.started("spark_kafka_consumer.py", *options) as consumer:
            if table == "bronze":  # it comes before any producer: it makes the topic, and waits
                waits = scene.lake / "checkpoints/gold/metadata"
                wait_until(lambda: still_running(consumer) and waits.exists(), "the last stream")  # noqa: B023
                produce_as_others(scene)
                produce(scene, SENT_1, 1, "2025-12-15T10:00:00Z")
            wait_until(
                lambda: still_running(consumer) and newest(log_folder) > before,  # noqa: B023
                f"a commit of {table}",
            )
            if table == "gold":
                consumer.kill()  # Python alone: Java lives on for a moment
            elif table == "duplicates":
                os.kill(java_of(consumer.pid), signal.SIGKILL)
            else:
                os.killpg(consumer.pid, signal.SIGKILL)
            _, err = consumer.communicate(timeout=120)
        if table == "duplicates":  # Java alone: Python says so, in one line
            assert consumer.returncode == 1, err
            *lines, last = err.splitlines()
            assert " ERROR smarttech: Java has ended: " in last
            assert [line for line in lines if " INFO smarttech: " not in line] == []
            produce(scene, SENT_2, 2, "2025-12-15T10:25:00Z")
        else:
            assert consumer.returncode == -signal.SIGKILL, err
        assert newest(log_folder) > before
        open_at_kill[table] = lake.open_batches(scene.lake / "checkpoints")
    # The kills came in mid-batch, of each of the three streams.
    assert {"bronze", "silver", "gold"} <= set().union(*open_at_kill.values()), open_at_kill
    assert "silver" in open_at_kill["rejects"] & open_at_kill["duplicates"]

    sent = SENT_1 + SENT_2 + SENT_BY_OTHERS
    assert rows_of(consume(scene), "bronze") < sent  # it did not begin anew
    out = check(scene)
    assert shown(out, "messages in the ledger") == SENT_1 + SENT_2
    assert shown(out, "messages in scene") == shown(out, "rows in bronze") == sent
    parts = [shown(out, f"rows in {name}") for name in ("silver", "rejects", "duplicates")]
    assert sum(parts) == sent
    assert min(parts) > 50
    for reason in (*DEFECTS, "too_late"):
        assert shown(out, f"of which {reason}") > 0
    assert shown(out, "of which found") > 0
    silver = DeltaTable(str(scene.lake / "sensor_data_silver")).to_pyarrow_table()
    devices = silver["device_id"].to_pylist()
    assert sum(device.startswith("sensor_9") for device in devices) == SENT_BY_OTHERS


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("lent_spark")
def test_goes_on_where_it_stopped_and_waits_for_a_kafka_that_is_away(
    scene: Scripts, stack: Stack
) -> None:
    def bronze() -> int:
        count: int = DeltaTable(str(scene.lake / "sensor_data_bronze")).count()
        return count

    def wait_for(rows: int) -> None:
        is_there = f"{rows} rows in bronze"
        wait_until(lambda: still_running(consumer) and bronze() == rows, is_there, pause_s=0.2)

    before = bronze()
    with scene.started("spark_kafka_consumer.py", "--every", "1") as consumer:
        produce(scene, SENT_3, 3, "2025-12-15T10:42:00Z")
        wait_for(before + SENT_3)
        out, _ = scene.call(compact.main, "gold", "anomalies")  # beside it, as README says
        assert [line.split()[0] for line in out.splitlines()] == ["table", "gold", "anomalies"]
        stack.stop("kafka", signal.SIGKILL)
        time.sleep(3)
        stack.up(["kafka"])
        produce(scene, SENT_3, 4, "2025-12-15T10:47:00Z")
        wait_for(before + 2 * SENT_3)
        os.killpg(consumer.pid, signal.SIGINT)  # as a terminal does: Java gets it, too
        _, err = consumer.communicate(timeout=120)
    assert consumer.returncode == 0, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("INFO smarttech: stopped")
    assert rows_of(err, "bronze") <= 2 * SENT_3  # it did not begin anew

    consume(scene)
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
        ("rejects", lose, "unsettled"),
        ("rejects", change("reason", "'bad_floor: 900'"), "misjudged"),
        ("rejects", change("value", "arrow_cast('x', 'Binary')"), "altered"),
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
        found = compare(messages, first, spoilt, scene.topic, lateness, window)
        assert not found.holds
        seen.append((name, fault, len(found.faults()[fault])))
        if number:  # the first is looked at once more below
            shutil.rmtree(spoilt)
    # One row each; a reading that is lost or altered is missed by gold too, which counts elsewhere.
    assert seen == [(name, fault, 1) for name, _, fault in faults]
    # The ledger notes other bytes than those that came.
    header, line, *others = Path(scene.ledgers[1]).read_text().splitlines()
    partition, offset, _, label = line.split(",")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("\n".join([header, f"{partition},{offset},00000000,{label}", *others]))
    found = compare(messages, first, scene.lake, scene.topic, lateness, window, [wrong])
    assert found.unlike_ledger == [(int(partition), int(offset))]
    named = {fault for _, _, fault in faults} | {"unlike the ledger"}
    assert named == set(found.faults())  # each kind was planted
    copy = Scripts(scene.kafka, scene.topic, tmp_path / "0")
    out, _ = copy.call(verify.main, code=1)
    assert shown(out, "lost") == 1
    with scene.started("verify.py") as process:  # whose reader leaves, as `head` does
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 1)


def test_read_delta_shows_the_tables_and_older_versions(scene: Scripts) -> None:
    out, _ = scene.call(read_delta.main, "--rows", "0")
    assert [line.split()[0] for line in out.splitlines()] == ["table", *TABLES]
    for table in TABLES:
        stored = DeltaTable(str(scene.lake / f"sensor_data_{table}"))
        out, _ = scene.call(read_delta.main, table, "--rows", "3")
        assert f"version {stored.version()}, {stored.count()} rows" in out
        assert out.count("\n") > 20
    out, _ = scene.call(read_delta.main, "bronze", "--version", "0", "--history", "1000")
    assert "version 0, 0 rows" in out
    versions = re.findall(r"^ *(-?\d+)  \d{4}-", out[out.index("history") :], re.MULTILINE)
    last = DeltaTable(str(scene.lake / "sensor_data_bronze")).version()
    assert [int(version) for version in versions] == list(range(last, -1, -1))
    assert out.splitlines()[-1].split()[2:] == ["CREATE", "TABLE"]
    _, err = scene.call(read_delta.main, "bronze", "--version", "999", code=1)
    assert "there is no version 999, the newest is" in err
    assert len(err.splitlines()) == 1


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("lent_spark")
def test_compaction_makes_few_files_of_many_and_changes_nothing(scene: Scripts) -> None:
    def files(table: str) -> int:
        return len(DeltaTable(str(scene.lake / f"sensor_data_{table}")).file_uris())

    before = {table: files(table) for table in TABLES}
    out, _ = scene.call(compact.main, "--retain-hours", "0")
    assert [line.split()[0] for line in out.splitlines()] == ["table", *TABLES]
    for table in TABLES:
        folder = scene.lake / f"sensor_data_{table}"
        assert files(table) < before[table] or table in ("gold", "anomalies")  # MERGE leaves few
        # Each folder has one file left, on the disk too.
        on_disk = [
            file.parent for file in folder.rglob("*.parquet") if "_delta_log" not in file.parts
        ]
        assert len(on_disk) == len(set(on_disk)) == files(table)
    check(scene)
    _, err = scene.call(read_delta.main, "silver", "--version", "1", code=1)
    assert re.fullmatch(r".*: of version 1, \d+ files have been deleted \(VACUUM: .*\n", err)

    # And the streams go on from there, with nothing but what is new.
    produce(scene, SENT_3, 5, "2025-12-15T10:52:00Z")
    log = consume(scene)
    assert rows_of(log, "bronze") == rows_of(log, "silver") == SENT_3
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
