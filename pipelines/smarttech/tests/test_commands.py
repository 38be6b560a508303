"""The commands: what a user's mistake, a reader that leaves, an outage make of them."""

import itertools
import os
import signal
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from pyspark.sql import SparkSession

from pipelines import common
from pipelines.smarttech import (
    compact,
    demo,
    kafka_producer,
    lake,
    pipeline_streaming_simple,
    prepare,
    read_delta,
    spark_kafka_consumer,
    spark_session,
    verify,
)
from pipelines.smarttech.simulation import Simulation
from pipelines.tests.other_producers import send_in_transactions, send_with_each_codec

from .helpers import Scripts, drain, shown, still_running, wait_until


@pytest.mark.timeout(600)
def test_every_codec_is_read_and_nothing_of_an_aborted_transaction(
    scripts: Callable[[str], Scripts], spark: SparkSession
) -> None:
    others = scripts("others")
    argv = ["--seed", "1", "--start", "2025-12-15T10:00:00Z"]
    options = kafka_producer.load_options(argv, {}, datetime.now(UTC))
    made = Simulation(options).messages()
    values = [message.value for message in itertools.islice(made, 140)]
    send_with_each_codec(others.kafka, others.topic, values[:100])
    aborted, committed = values[100:120], values[120:]
    send_in_transactions(others.kafka, others.topic, aborted=aborted, committed=committed)
    lake.create_tables(spark, others.lake)
    assert drain(spark, others)["bronze"] == 120
    out, _ = others.run("verify.py")
    assert shown(out, "messages in others") == shown(out, "rows in silver") == 120
    with others.started("verify.py") as process:  # whose reader leaves, as `head` does
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 1)


@pytest.mark.timeout(600)
def test_a_java_that_is_killed_is_said_in_one_line(scripts: Callable[[str], Scripts]) -> None:
    """Here of a consumer that came before any producer: it has made the topic, and waits."""
    killed = scripts("killed")
    with killed.started("spark_kafka_consumer.py", "--every", "1") as consumer:
        begun = killed.lake / "checkpoints/gold/metadata"
        wait_until(lambda: still_running(consumer) and begun.exists(), "the last stream")
        os.kill(java_of(consumer.pid), signal.SIGKILL)
        _, err = consumer.communicate(timeout=120)
    assert consumer.returncode == 1, err
    *lines, last = err.splitlines()
    assert " ERROR smarttech: Java has ended: " in last
    assert [line for line in lines if " INFO smarttech: " not in line] == []


def java_of(group: int) -> int:
    """Return the Java process of a process group."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            name, _, rest = stat.read_text().partition(") ")
            if name.endswith("(java") and int(rest.split()[2]) == group:
                return int(stat.parent.name)
    raise AssertionError("there is no Java")


def test_a_full_disk_is_not_called_the_end_of_java() -> None:
    assert spark_session.what_ended(OSError(28, "No space left")) == "[Errno 28] No space left"
    assert spark_session.what_ended(ConnectionRefusedError("refused")) == "Java has ended: refused"


@pytest.mark.parametrize(
    "main",
    [
        kafka_producer.main, spark_kafka_consumer.main, pipeline_streaming_simple.main,
        verify.main, compact.main, read_delta.main, prepare.main, lambda _: demo.main(),
    ],
)  # fmt: skip
def test_an_env_file_that_is_no_text_is_said_in_one_line(
    main: Callable[[list[str]], int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(common, "PROJECT", tmp_path)
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    (tmp_path / ".env").write_bytes("SMARTTECH_TOPIC=\xe9tage\n".encode("latin-1"))
    with pytest.raises(SystemExit) as exit_info:
        main([])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path}/.env, line 1: not in UTF-8: save it so\n"


def test_the_pipeline_s_own_env_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / ".env").write_text("SMARTTECH_TOPIC=root\nKAFKA_BOOTSTRAP_SERVERS=root:1\n")
    (own / ".env").write_text("SMARTTECH_TOPIC=own\n")
    monkeypatch.setattr(common, "PROJECT", tmp_path)
    monkeypatch.setattr(os, "environ", {"PATH": ""})
    common.load_env(own)
    options = spark_kafka_consumer.load_options([], os.environ)
    assert (options.topic, options.bootstrap_servers) == ("own", "root:1")


def test_a_ledger_that_is_not_whole_is_said_after_the_last_message(
    scripts: Callable[[str], Scripts],
) -> None:
    full = scripts("full")
    options = ("--backfill", "1h", "--count", "1000", "--ledger", "/dev/full")
    _, err = full.run("kafka_producer.py", *options, code=1)
    assert "acknowledged=1000 failed=0" in err
    assert err.splitlines()[-1].endswith(
        "the ledger is not whole: /dev/full: No space left on device"
    )


def test_a_reader_of_read_delta_that_has_had_enough_is_shown_no_fault(tmp_path: Path) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    write_deltalake(str(scripts.lake / "sensor_data_gold"), pa.table({"timestamp": [1]}))
    with scripts.started("read_delta.py") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 1)


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
    prepare.warn_of_sender_times(theirs.kafka, theirs.topic)
    assert "message.timestamp.type of topic=theirs is CreateTime" in caplog.text


def test_kafka_away_at_the_start_is_said_in_one_line(tmp_path: Path) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    for script in ("spark_kafka_consumer.py", "kafka_producer.py", "prepare.py"):
        _, err = scripts.run(script, "--wait", "0", code=1)
        assert "Kafka does not answer at 127.0.0.1:1" in err.splitlines()[-1]
    _, err = scripts.run("verify.py", code=1)
    assert len(err.splitlines()) == 1
