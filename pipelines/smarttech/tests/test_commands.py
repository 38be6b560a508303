"""The commands: what a user's mistake, or an outage, makes of them."""

import os
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from unittest.mock import Mock

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import NoBrokersAvailable

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

from .helpers import Scripts


def test_a_full_disk_is_not_called_the_end_of_java() -> None:
    assert spark_session.what_ended(OSError(28, "No space left")) == "[Errno 28] No space left"
    assert spark_session.what_ended(ConnectionRefusedError("refused")) == "Java has ended: refused"


@pytest.mark.parametrize(
    "main",
    [
        kafka_producer.main, spark_kafka_consumer.main, pipeline_streaming_simple.main,
        verify.main, compact.main, read_delta.main, prepare.main, demo.main,
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
    _, err = full.call(kafka_producer.main, *options, code=1)
    assert "acknowledged=1000 failed=0" in err
    assert err.splitlines()[-1].endswith(
        "the ledger is not whole: /dev/full: No space left on device"
    )


def test_read_delta_says_that_there_is_no_table(tmp_path: Path) -> None:
    nothing = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    out, err = nothing.call(read_delta.main, code=1)
    assert out == ""
    assert err == f"read_delta: cannot read the tables in {nothing.lake}: there is no table\n"


def test_compact_works_on_when_nobody_reads_what_it_prints() -> None:
    """As with `compact.py | head -1`; a disk that is full is said."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, redirect_stdout(pipe):
        for line in ("silver", "gold"):
            compact.say(line)
    with (
        Path("/dev/full").open("w") as full,
        redirect_stdout(full),
        pytest.raises(lake.LakeError, match="standard output: No space left on device"),
    ):
        compact.say("silver")


def test_settings_of_a_topic_that_cost_readings_or_truth_are_said(
    scripts: Callable[[str], Scripts], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = scripts("theirs")
    with closing(KafkaAdminClient(bootstrap_servers=theirs.kafka.split(","))) as admin:
        configs = {"message.timestamp.type": "CreateTime", "cleanup.policy": "compact"}
        admin.create_topics([NewTopic("theirs", -1, -1, topic_configs=configs)])
    prepare.warn_of_settings(theirs.kafka, theirs.topic)
    assert "cleanup.policy of topic=theirs is compact: " in caplog.text
    assert "message.timestamp.type of topic=theirs is CreateTime" in caplog.text


def test_a_demo_whose_step_fails_says_how_to_stop_the_servers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "start_servers", Mock(side_effect=common.StepError("`x` failed")))
    monkeypatch.setattr(demo, "how_to_stop", lambda _: "docker compose down")
    assert demo.main([]) == 1
    said = capsys.readouterr()
    assert said.err == "demo: `x` failed\n"
    assert said.out.endswith("pour l'arrêter : docker compose down\n")
    with pytest.raises(SystemExit):
        demo.main(["--help"])  # does not begin
    assert "usage: " in capsys.readouterr().out


def test_kafka_away_at_the_start_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    for script in (spark_kafka_consumer, kafka_producer):
        _, err = scripts.call(script.main, "--wait", "0", code=1)
        assert "Kafka does not answer at 127.0.0.1:1 (NoBroker" in err.splitlines()[-1]
    none = Mock(side_effect=NoBrokersAvailable)  # as the real one, after 10 s
    monkeypatch.setattr(verify, "KafkaConsumer", none)
    _, err = scripts.call(verify.main, code=1)
    assert err == "verify: cannot compare: NoBrokersAvailable\n"
