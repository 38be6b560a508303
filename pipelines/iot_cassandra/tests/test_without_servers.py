"""What needs no server: a rebalance at a bad moment, Ctrl-C, settings, Java that ends first."""

import ast
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from kafka.errors import KafkaTimeoutError
from kafka.structs import TopicPartition

from pipelines.common import how_to_stop, say, stop_on_signals
from pipelines.iot_cassandra import chart, demo, prepare, spark_session, verify
from pipelines.iot_cassandra.kafka_topic import shown
from pipelines.iot_cassandra.scripts import (
    iot_simulator,
    kafka_to_cassandra,
    spark_cassandra,
    writer,
)
from pipelines.iot_cassandra.tests.conftest import COMPOSE, HERE
from stack.compose import load_services

PARTITION = TopicPartition("iotdata", 0)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_that_ends_a_process_is_heard(
    signum: signal.Signals, restored_signals: None
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever has started the tests
    stop_on_signals(stop := threading.Event())
    os.kill(os.getpid(), signum)
    assert stop.wait(60)


def writer_of(consumer: Any) -> writer.Writer:
    return writer.Writer(consumer, MagicMock(), "iotdata", 500, threading.Event())


def test_a_partition_that_has_gone_and_come_back_is_no_gap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another owner has read on meanwhile: what follows is what is committed, not what we know."""
    consumer = MagicMock()
    ours = writer_of(consumer)
    ours.settled[PARTITION] = 5

    def poll(*_: object, **__: object) -> dict[TopicPartition, list[Any]]:
        ours.on_partitions_revoked([PARTITION])
        return {PARTITION: [SimpleNamespace(offset=9)]}

    consumer.poll, consumer.committed.return_value = poll, 9
    assert ours.poll()
    assert caplog.messages == []


def test_what_was_revoked_while_it_waited_is_not_committed() -> None:
    consumer = MagicMock()
    ours = writer_of(consumer)
    ours.settled[PARTITION] = 5
    ours.on_partitions_revoked([PARTITION])
    ours.commit()
    consumer.commit.assert_not_called()


def test_without_an_answer_from_kafka_the_end_is_not_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    consumer = MagicMock()
    ours = writer_of(consumer)
    assert not ours.is_at_end()  # the group has not given us our share yet
    consumer.assignment.return_value, consumer.position.return_value = {PARTITION}, 5
    consumer.end_offsets.side_effect = KafkaTimeoutError("paused")
    ours.on_partitions_assigned([PARTITION])
    assert not ours.is_at_end()
    assert "not known whether all is read" in caplog.text
    consumer.end_offsets.side_effect = [{PARTITION: 5}, {PARTITION: 6}]
    assert ours.is_at_end()
    ours.on_partitions_revoked([PARTITION])
    ours.on_partitions_assigned([PARTITION])
    assert not ours.is_at_end()  # another owner has left more


def test_once_ends_also_while_others_send() -> None:
    consumer = MagicMock()
    ours = writer_of(consumer)
    ours.clients.plan.return_value = ("written", [])  # type: ignore[attr-defined]
    offsets = itertools.count()

    def poll(*_: object, **__: object) -> dict[TopicPartition, list[Any]]:
        ours.on_partitions_assigned([PARTITION])
        return {PARTITION: [SimpleNamespace(offset=next(offsets))]}

    consumer.poll = poll
    consumer.assignment.return_value = {PARTITION}
    consumer.committed.return_value = 0
    consumer.position.side_effect = lambda *_, **__: ours.settled.get(PARTITION, 0)
    # The topic grows with each message that is read.
    consumer.end_offsets.side_effect = lambda _: {PARTITION: ours.settled[PARTITION] + 2}
    overdue = threading.Timer(20, ours.stop.set)
    overdue.start()
    ours.run(is_once=True)
    overdue.cancel()
    assert ours.totals["consumed"] == 3


def test_a_wait_for_partitions_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(writer, "PROGRESS_S", 0)
    ours = writer_of(MagicMock())
    ours.report()
    ours.on_partitions_assigned([PARTITION])
    ours.report()
    ours.on_partitions_revoked([PARTITION])
    ours.report()
    ours.on_partitions_assigned([])
    waits = "waiting for partitions of topic=iotdata; those of a writer that was killed are free "
    waits += "after 20 s"
    given, none, progress, *rest = sorted(set(caplog.messages) - {waits})
    assert given == "assigned partitions=0 of topic=iotdata"
    assert none == "assigned partitions=none of topic=iotdata"
    assert progress.startswith("progress consumed=0 ")
    assert rest == []
    assert [message == waits for message in caplog.messages] == [True, False, False, True, False]


def interrupted(*_: object, **__: object) -> None:
    signal.raise_signal(signal.SIGINT)


AGAIN = "interrupted: run it again for what is missing"
SERVERS = f"demo: interrupted; the servers go on: {how_to_stop(HERE)}"


@pytest.mark.parametrize(
    ("module", "called", "argv", "code", "said"),
    [
        (verify, "Cluster", [[]], 130, []),
        (chart, "read_week", [[]], 130, []),
        (prepare, "prepare_jars", [["--jars"]], 1, [AGAIN]),
        (prepare, "KafkaAdminClient", [[]], 1, [AGAIN]),
        (demo, "start_servers", [[]], 1, [SERVERS]),
    ],
)
@pytest.mark.usefixtures("restored_signals")
def test_ctrl_c_is_one_line(
    module: ModuleType,
    called: str,
    argv: list[Any],
    code: int,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, called, interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a program starts with it
    assert module.main(*argv) == code
    assert [*caplog.messages, *capsys.readouterr().err.splitlines()] == said


def test_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the shell's `>&-` leaves it."""
    monkeypatch.setattr(verify, "Cluster", MagicMock())
    monkeypatch.setattr(verify, "verify", lambda *_: verify.Verdict(messages=1))
    monkeypatch.setattr(demo, "demonstrate", lambda _: say("done"))
    monkeypatch.setattr(sys, "stdout", None)
    assert verify.main([]) == 0
    assert not demo.main([])


def test_a_picture_has_the_name_that_it_was_given(tmp_path: Path) -> None:
    chart.draw([(datetime(2026, 1, 15, tzinfo=UTC), 1.0, 50.0)], 1, tmp_path / "semaine")
    assert [file.name for file in tmp_path.iterdir()] == ["semaine"]


def test_the_demo_leaves_no_writer_behind_and_says_which_step_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    def script(name: str, *_: str) -> tuple[str, ...]:
        return ("false",) if name.endswith("iot_simulator.py") else ("sleep", "60")

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(demo, "script", script)
    monkeypatch.setattr(demo, "demonstrate", lambda _: demo.send_and_write(Path("nowhere")))
    assert demo.main([]) == 1
    with pytest.raises(SystemExit):
        demo.main(["--help"])  # does not begin
    assert [process.poll() for process in started] == [-signal.SIGKILL, 1]
    assert capsys.readouterr().err == "demo: `false` ended with code 1\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_how_far_a_reading_is(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert list(shown(range(3), "reading iotdata", 3)) == [0, 1, 2]
    assert ("reading iotdata" in capsys.readouterr().err) == is_terminal


def test_java_is_started_in_a_locale_that_can_name_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_: object, **__: object) -> None:
        raise OSError(os.environ["LC_ALL"])

    monkeypatch.setenv("LC_ALL", "no_SUCH")
    monkeypatch.setattr(spark_session, "state_folder", lambda: tmp_path)
    monkeypatch.setattr(spark_session, "connectors", list)
    monkeypatch.setattr(spark_session, "SparkConf", MagicMock())  # its own may ask a Java
    monkeypatch.setattr(spark_session, "start_java", launch)
    with pytest.raises(spark_session.SparkError, match=r"does not start \(C\.UTF-8\)"):
        spark_session.spark_session()


@pytest.fixture
def java_has_ended(monkeypatch: pytest.MonkeyPatch, restored_signals: None) -> Any:
    """A Spark session whose Java answers nothing any more."""
    spark = MagicMock()
    spark.stop.side_effect = ConnectionRefusedError(111, "Connection refused")
    monkeypatch.setattr(spark_cassandra, "spark_session", lambda *_: (spark, MagicMock()))
    monkeypatch.setattr(spark_cassandra, "wait_for", lambda *_: None)
    monkeypatch.setattr(spark_cassandra, "tables_of_readings", lambda *_: [])
    monkeypatch.setattr(spark_cassandra, "allow_large_rejects", lambda *_: None)
    monkeypatch.setattr(spark_cassandra, "topic_id", lambda *_: "id")
    return spark


def test_a_batch_that_is_written_is_done_also_when_java_ends_first(
    java_has_ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark_cassandra, "run_batch", lambda *_: None)
    assert spark_cassandra.main(["batch"]) == 0


@pytest.mark.parametrize(("is_stopped", "code"), [(True, 0), (False, 1)])
def test_a_stream_whose_java_ends_first_was_stopped_or_says_so(
    java_has_ended: Any,
    is_stopped: bool,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def await_termination(_: float) -> bool:
        if is_stopped:
            os.kill(os.getpid(), signal.SIGINT)
        raise ConnectionRefusedError(111, "Connection refused")

    source = java_has_ended.readStream.format().options().load().writeStream.foreachBatch()
    source.option().trigger().start().awaitTermination = await_termination
    assert spark_cassandra.main(["stream", "--checkpoint", str(tmp_path)]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == code
    assert all(line.startswith("spark_cassandra: [Errno 111] ") for line in said)


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        (kafka_to_cassandra, [[]]),
        (iot_simulator, [[]]),
        (prepare, [[]]),
        (spark_cassandra, [["batch"]]),
        (verify, [[]]),
        (chart, [[]]),
        (demo, [[]]),
    ],
)
def test_settings_that_are_not_utf_8_are_one_line_and_exit_2(
    module: ModuleType,
    argv: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    (tmp_path / ".env").write_bytes("IOT_TOPIC=été".encode("latin-1"))
    with pytest.raises(SystemExit) as ended:
        module.main(*argv)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == f"{tmp_path / '.env'}, line 1: not in UTF-8: save it so\n"


def test_spark_s_container_is_given_the_topic_and_the_keyspace() -> None:
    chosen = {"IOT_TOPIC": "mine", "CASSANDRA_KEYSPACE": "ours"}
    for environ, expected in ((chosen, chosen), ({}, {"IOT_TOPIC": "iotdata"})):
        given = load_services([COMPOSE], environ)["spark"].environment
        assert given.items() >= expected.items()


def test_the_driver_has_a_loopback_address_only_where_nobody_else_must_reach_it() -> None:
    jars = [Path("/mon é/jars/a.jar")]
    own = spark_session.settings_of({}, jars)
    assert own["spark.master"] == "local[*]"
    assert own["spark.jars"] == "file:///mon%20%C3%A9/jars/a.jar"
    assert own["spark.driver.host"] == own["spark.driver.bindAddress"] == "127.0.0.1"
    given = {"spark.master": "spark://spark:7077", "spark.jars": "file:/b.jar,file:/other/a.jar"}
    on_a_cluster = spark_session.settings_of(given, jars)
    assert {"spark.driver.host", "spark.driver.bindAddress"} & on_a_cluster.keys() == set()
    assert on_a_cluster["spark.jars"] == "file:///mon%20%C3%A9/jars/a.jar,file:/b.jar"


def test_what_runs_in_spark_s_image_imports_nothing_that_is_not_there() -> None:
    scripts = ("kafka_to_cassandra", "spark_cassandra", "transforms")
    ours = ["settings", "spark_session", *(f"scripts.{name}" for name in scripts)]
    there = {*sys.stdlib_module_names, "py4j", "pyspark"}
    mounted = re.findall(r"- \.\./(\w+)\.py:", COMPOSE.read_text())
    known = {f"pipelines.{name}" for name in mounted}
    known |= {f"pipelines.iot_cassandra.{name}" for name in ours}
    for name in ours:
        file = HERE / f"{name.replace('.', '/')}.py"
        for node in ast.parse(file.read_text()).body:  # what is imported in functions comes later
            if isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
            else:
                modules = {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            assert all(m in known or m.partition(".")[0] in there for m in modules), (name, modules)
