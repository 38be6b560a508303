"""What needs no server: a rebalance at a bad moment, Ctrl-C, settings, Java that ends first."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from kafka.structs import TopicPartition

from pipelines.iot_cassandra import demo, verify
from pipelines.iot_cassandra.scripts import apply_schema, iot_simulator, spark_cassandra
from pipelines.iot_cassandra.scripts import kafka_to_cassandra as writer
from pipelines.iot_cassandra.tests.conftest import COMPOSE
from stack.compose import load_services

PARTITION = TopicPartition("iotdata", 0)


def pipeline(consumer: Any) -> writer.Pipeline:
    config = writer.load_config([], {})
    return writer.Pipeline(config, MagicMock(), consumer, threading.Event())


def test_a_partition_that_has_gone_and_come_back_is_no_gap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another owner has read on meanwhile: what follows is what is committed, not what we know."""
    consumer = MagicMock()
    ours = pipeline(consumer)
    ours.settled[PARTITION] = 5

    def poll(*_: object, **__: object) -> dict[TopicPartition, list[Any]]:
        ours.on_partitions_revoked([PARTITION])
        return {PARTITION: [SimpleNamespace(offset=9)]}

    consumer.poll, consumer.committed.return_value = poll, 9
    assert ours.poll()
    assert caplog.messages == []


def test_what_was_revoked_while_it_waited_is_not_committed() -> None:
    consumer = MagicMock()
    ours = pipeline(consumer)
    ours.settled[PARTITION] = 5
    ours.on_partitions_revoked([PARTITION])
    ours.commit()
    consumer.commit.assert_not_called()


def test_a_wait_for_partitions_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(writer, "PROGRESS_S", 0)
    ours = pipeline(MagicMock())
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
    raise KeyboardInterrupt


def test_ctrl_c_of_the_verifier_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "Cluster", interrupted)
    assert verify.main([]) == 1
    assert capsys.readouterr().err == "verify: interrupted, nothing is said\n"


def test_ctrl_c_of_the_schema_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(apply_schema, "Cluster", interrupted)
    assert apply_schema.main([]) == 1
    assert caplog.messages == ["interrupted: run it again for what is missing"]


def test_ctrl_c_of_the_demo_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "start_servers", interrupted)
    monkeypatch.setattr(demo, "succeeds", lambda *_: False)
    assert demo.main() == 1
    assert capsys.readouterr().err == "demo: interrupted\n"


def test_a_simulator_that_does_not_end_is_ended_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    def script(name: str, *_: str) -> list[str]:
        seconds = 60 if name.endswith("iot_simulator.py") else 0
        return [sys.executable, "-c", f"import time; time.sleep({seconds})"]

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(demo, "script", script)
    monkeypatch.setattr(demo, "SIMULATORS_S", 0.1)
    monkeypatch.setattr(demo, "succeeds", lambda *_: False)
    monkeypatch.setattr(demo, "demonstrate", lambda *_: demo.run_pipeline())
    assert demo.main() == 1
    assert [process.wait(timeout=30) for process in started] == [-signal.SIGTERM] * 2 + [0]
    said = capsys.readouterr().err
    assert said.startswith("demo: python")
    assert said.endswith(" ... has not ended after 0 s\n")


@pytest.fixture
def java_has_ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Spark session whose Java answers nothing any more; the signals are restored."""
    spark = MagicMock()
    spark.stop.side_effect = ConnectionRefusedError(111, "Connection refused")
    monkeypatch.setattr(spark_cassandra, "session", lambda _: spark)
    monkeypatch.setattr(spark_cassandra, "allow_large_dead_letters", lambda *_: None)
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield spark
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_a_batch_that_is_written_is_done_also_when_java_ends_first(
    java_has_ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark_cassandra, "run_batch", lambda *_: None)
    assert spark_cassandra.main(["batch"]) == 0


@pytest.mark.parametrize(("is_stopped", "code"), [(True, 0), (False, 1)])
def test_a_stream_whose_java_ends_first_was_stopped_or_says_so(
    java_has_ended: Any, is_stopped: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def await_termination(_: float) -> bool:
        if is_stopped:
            os.kill(os.getpid(), signal.SIGINT)
        raise ConnectionRefusedError(111, "Connection refused")

    source = java_has_ended.readStream.format().options().load().writeStream.foreachBatch()
    source.option().trigger().start().awaitTermination = await_termination
    assert spark_cassandra.main(["stream", "--checkpoint", "anywhere"]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == code
    assert all(line.startswith("spark_cassandra: [Errno 111] ") for line in said)


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        (writer, [[]]),
        (iot_simulator, [[]]),
        (apply_schema, [[]]),
        (spark_cassandra, [["batch"]]),
        (verify, [[]]),
        (demo, []),
    ],
)
def test_settings_that_are_not_utf_8_are_one_line_and_exit_2(
    module: ModuleType, argv: list[Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    (tmp_path / ".env").write_bytes("IOT_TOPIC=été".encode("latin-1"))
    with pytest.raises(SystemExit) as ended:
        module.main(*argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path / '.env'} is not in UTF-8: save it so\n"


def test_spark_s_container_is_given_the_topic_and_the_keyspace() -> None:
    chosen = {"IOT_TOPIC": "mine", "CASSANDRA_KEYSPACE": "ours"}
    for environ, expected in ((chosen, chosen), ({}, {"IOT_TOPIC": "iotdata"})):
        given = load_services(list(COMPOSE), environ)["spark-master"].environment
        assert given.items() >= expected.items()
