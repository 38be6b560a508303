"""What the scripts make of mistakes, signals and servers that go away, without servers."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.structs import TopicPartition

from pipelines.acid_waters import settings, verify
from pipelines.acid_waters.hdfs import load_reference
from pipelines.acid_waters.kafka import kafka_producer
from pipelines.acid_waters.postgresql import versions
from pipelines.acid_waters.spark import spark_consumer
from pipelines.acid_waters.tests.conftest import PROJECT, SAMPLE

MAINS: list[Callable[[list[str]], int]] = [
    kafka_producer.main, spark_consumer.main, load_reference.main, versions.main, verify.main,
]  # fmt: skip


@pytest.mark.parametrize("main", MAINS, ids=lambda main: main.__module__.rpartition(".")[2])
def test_settings_that_are_not_utf_8_are_one_line_and_exit_2(
    main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    monkeypatch.setattr(settings, "ENV_FILE", tmp_path / ".env")
    (tmp_path / ".env").write_bytes("WATER_TOPIC=éé".encode("latin-1"))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == ".env is not in UTF-8: save it so\n"


@pytest.mark.parametrize("script", [kafka_producer, spark_consumer], ids=["producer", "consumer"])
@pytest.mark.parametrize("address", ["localhost:abc", "localhost", "localhost:9092,:1", "h:65536"])
def test_an_address_that_is_none_is_said(
    script: Any, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, environ in (
        (["--bootstrap-servers", address], {}),
        ([], {"KAFKA_BOOTSTRAP_SERVERS": address}),
    ):
        with pytest.raises(SystemExit) as ended:
            script.load_config(argv, environ)
        assert ended.value.code == 2
        assert "is not HOST:PORT" in capsys.readouterr().err


LISTING = """
from collections import namedtuple
from contextlib import nullcontext
from pipelines.acid_waters.postgresql import versions
versions.connect = nullcontext
versions.run = lambda *_: [namedtuple("Row", "reason")("why")] * 100_000
raise SystemExit(versions.main(["list", "--all"]))
"""


def test_who_reads_the_list_may_leave() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as left:
        done = subprocess.run(
            [sys.executable, "-c", LISTING],
            cwd=PROJECT, stdout=left, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


class Producer:
    """A producer that acknowledges at once, and notes how long it is given at the end."""

    def __init__(self) -> None:
        self.close_s = 0.0

    def send(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(exception=None, succeeded=lambda: True)

    def close(self, timeout: float) -> None:
        self.close_s = timeout


def test_the_producer_waits_however_long_and_two_minutes_at_its_end() -> None:
    config = kafka_producer.load_config(["--data", str(SAMPLE), "--interval", "1e10"], {})
    lots = kafka_producer.lots_to_send(config)
    producer, stop = Producer(), threading.Event()
    threading.Timer(0.5, stop.set).start()
    assert kafka_producer.send_all(producer, lots, config, stop) == 0
    assert producer.close_s > 120


class Query:
    """A streaming query that stops as Spark's does: once a micro-batch that it began is done."""

    isActive = True

    def __init__(self, stream: spark_consumer.Stream) -> None:
        self.late = threading.Thread(target=stream._micro_batch, args=(None, 1), daemon=True)

    def exception(self) -> None:
        pass

    def stop(self) -> None:
        self.late.start()
        self.late.join(timeout=30)


def test_a_micro_batch_that_begins_at_the_end_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archived: list[Any] = []
    integration: Any = SimpleNamespace(conn=None, archive=archived.append)
    stream = spark_consumer.Stream(spark_consumer.load_config([], {}), integration)
    query = Query(stream)
    monkeypatch.setattr(spark_consumer, "starting_offsets", lambda *_: "{}")
    monkeypatch.setattr(stream, "_start", lambda _: query)
    stop = threading.Event()
    stop.set()
    stream.run(stop, lambda _: None)
    assert not query.late.is_alive()
    assert archived == []
    assert stream.failure is None


class Topic:
    """A consumer of a topic of one partition: asked for its end, it has one message more to give.

    `breaks` at an offset, from which on nothing comes.
    """

    def __init__(self, first: int, end: int, breaks: int | None = None) -> None:
        self.first, self.end = first, end
        self.messages: Iterator[Any] = (
            SimpleNamespace(partition=0, offset=offset)
            for offset in range(first, end + 1 if breaks is None else breaks)
        )
        self.at = first

    def close(self) -> None:
        pass

    def __call__(self, **_: object) -> "Topic":
        return self

    def partitions_for_topic(self, _: str) -> set[int]:
        return {0}

    def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.first)

    def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.end)

    def assign(self, _: list[TopicPartition]) -> None:
        pass

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.at = offset

    def position(self, _: TopicPartition, **__: object) -> int:
        return self.at

    def poll(self, _: int) -> dict[TopicPartition, list[Any]]:
        time.sleep(0.01)
        found = list(itertools.islice(self.messages, 2))
        self.at += len(found)
        return {TopicPartition("t", 0): found} if found else {}


def test_verify_reads_up_to_the_end_that_it_has_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "KafkaConsumer", Topic(first=3, end=6))
    messages, first = verify.read_topic("localhost:9092", "t")
    assert sorted(messages) == [(0, 3), (0, 4), (0, 5)]
    assert first == {0: 3}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("topic", "says"),
    [
        (Topic(first=0, end=0), "topic t at localhost:9092 is empty: nothing to compare"),
        (Topic(first=0, end=6, breaks=3), "Kafka at localhost:9092 does not answer any more"),
    ],
    ids=["empty", "gone"],
)
def test_verify_says_why_it_cannot_read_on(
    topic: Topic, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "KafkaConsumer", topic)
    monkeypatch.setattr(verify, "STALL_S", 0.3)
    with pytest.raises(verify.VerifyError, match=says):
        verify.read_topic("localhost:9092", "t")
