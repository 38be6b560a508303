"""What the scripts make of mistakes, signals and servers that go away, without servers."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from pipelines import common
from pipelines.acid_waters import demo, prepare, verify
from pipelines.acid_waters.kafka import kafka_producer
from pipelines.acid_waters.kafka.lots import checksum
from pipelines.acid_waters.postgresql import versions
from pipelines.acid_waters.settings import HERE, SAMPLE
from pipelines.acid_waters.spark import spark_consumer
from pipelines.acid_waters.tests.conftest import Scene
from pipelines.acid_waters.verification import lots
from pipelines.acid_waters.verification.verdict import VerifyError
from pipelines.acid_waters.verification.webhdfs import WebHdfs

MAINS: list[Callable[[list[str]], int]] = [
    kafka_producer.main, spark_consumer.main, prepare.main, versions.main, verify.main,
]  # fmt: skip


@pytest.mark.parametrize("main", MAINS, ids=lambda main: main.__module__.rpartition(".")[2])
def test_settings_that_cannot_be_read_are_one_line_and_exit_2(
    main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    monkeypatch.setattr(common, "PROJECT", tmp_path)
    (tmp_path / ".env").write_bytes("WATER_TOPIC=éé".encode("latin-1"))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path}/.env, line 1: not in UTF-8: save it so\n"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [(KeyboardInterrupt(), 130, "✗ Interrompu."), (common.StepError("x"), 1, "✗ Arrêt : x")],
)
def test_a_demonstration_that_does_not_end_says_how_to_stop_the_servers(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(demo, "start_servers", Mock(side_effect=error))
    assert demo.main([]) == code
    *_, ends, how = capsys.readouterr().out.splitlines()
    assert ends == says
    assert how.endswith(f"depuis la racine : {common.how_to_stop(HERE)}")
    with pytest.raises(SystemExit):
        demo.main(["--help"])  # does not begin
    assert "usage: " in capsys.readouterr().out


def test_who_reads_the_output_may_leave() -> None:
    command = f"{sys.executable} kafka/kafka_producer.py --console | head -c 1"
    done = subprocess.run(["sh", "-c", command], cwd=HERE, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"{", b"")


class Producer:
    """A producer that never gets closed; its lots are acknowledged, or not, while it tries to."""

    def __init__(self, acknowledges: bool) -> None:
        self.acknowledges = acknowledges
        self.lots: list[Any] = []

    def send(self, *_: object, **__: object) -> Any:
        place = SimpleNamespace(partition=0, offset=0)
        self.lots.append(
            SimpleNamespace(
                exception=None, value=place, is_done=False, succeeded=lambda: self.lots[0].is_done
            )
        )
        return self.lots[-1]

    def close(self) -> None:
        self.lots[0].is_done = self.acknowledges
        threading.Event().wait()


@pytest.mark.parametrize("acknowledges", [True, False])
def test_the_producer_waits_however_long_for_the_next_lot_and_not_at_its_end(
    acknowledges: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(kafka_producer, "GIVE_UP_S", 600 if acknowledges else 0.3)
    config = kafka_producer.load_config(["--data", str(SAMPLE), "--interval", "1e10"], {})
    lots = kafka_producer.lots_to_send(config)
    producer: Any = Producer(acknowledges)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    assert kafka_producer.send_all(producer, lots, config, stop) == (0 if acknowledges else 1)
    *_, end, why = [*caplog.messages, ""] if acknowledges else caplog.messages
    assert end == f"to go on where this ended: --first {2 if acknowledges else 1}"
    no_answer = "not acknowledged batch_id=LTM_Data_sample-000001: Kafka does not answer"
    assert why == ("" if acknowledges else no_answer)


def test_ctrl_c_ends_the_wait_for_kafka_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(kafka_producer, "connect", lambda _: signal.raise_signal(signal.SIGINT))
    try:
        assert kafka_producer.main(["--count", "1"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_ledger_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(kafka_producer, "connect", lambda _: Producer(acknowledges=True))
    monkeypatch.setattr(kafka_producer, "stop_on_signals", lambda _: None)
    assert kafka_producer.main(["--count", "1", "--ledger", "/dev/full"]) == 1
    assert caplog.messages[-1] == "/dev/full: No space left on device"
    assert "Traceback" not in capsys.readouterr().err


class Query:
    """A streaming query that stops as Spark's does: once a micro-batch that it began is done."""

    isActive = True

    def __init__(self, stream: spark_consumer.Stream) -> None:
        self.late = threading.Thread(target=stream.micro_batch, args=(None, 1), daemon=True)

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


def test_what_holds_a_consumer_up_does_not_keep_it_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, ended = threading.Event(), threading.Event()

    def hang(_: str) -> Mock:
        stop.set()
        assert ended.wait(timeout=20)
        return Mock()

    monkeypatch.setattr(spark_consumer, "STOP_S", 0)
    monkeypatch.setattr(spark_consumer, "new_session", hang)
    monkeypatch.setattr(spark_consumer, "stop_on_signals", lambda _: None)
    monkeypatch.setattr(os, "_exit", lambda _: ended.set())
    assert spark_consumer.consume(spark_consumer.load_config([], {}), stop) == 0


def topic(first: int, end: int, given: int) -> Mock:
    """Return a consumer of one partition, which gives messages two by two, and then none."""
    partition = TopicPartition("t", 0)
    messages = [SimpleNamespace(partition=0, offset=first + number) for number in range(given)]
    consumer = Mock()
    consumer.return_value = consumer
    consumer.partitions_for_topic.return_value = {0}
    consumer.beginning_offsets.return_value = {partition: first}
    consumer.end_offsets.return_value = {partition: end}
    consumer.position.side_effect = lambda *_, **__: first + given - len(messages)
    consumer.poll.side_effect = lambda _: (
        {partition: [messages.pop(0) for _ in range(min(2, len(messages)))]} if messages else {}
    )
    return consumer


def test_verify_reads_up_to_the_end_that_it_has_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots, "KafkaConsumer", topic(first=3, end=6, given=4))
    messages, first = lots.read_topic("localhost:9092", "t")
    assert sorted(messages) == [(0, 3), (0, 4), (0, 5)]
    assert first == {0: 3}


@pytest.mark.parametrize(
    ("end", "says"), [(0, "topic t at .* is empty: nothing to compare"), (6, "does not answer any")]
)
def test_verify_says_why_it_cannot_read_on(
    end: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lots, "KafkaConsumer", topic(first=0, end=end, given=end // 2))
    monkeypatch.setattr(lots, "STALL_S", 0.3)
    with pytest.raises(VerifyError, match=says):
        lots.read_topic("localhost:9092", "t")


def test_verify_says_which_topic_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = topic(first=0, end=6, given=6)
    consumer.poll.side_effect = RuntimeError("LZ4F_decompress failed")  # no error of Kafka's
    monkeypatch.setattr(lots, "KafkaConsumer", consumer)
    with pytest.raises(VerifyError, match=r"t cannot be decoded: RuntimeError\('LZ4F_decompress"):
        lots.read_topic("localhost:9092", "t")


def test_verify_knows_the_rows_of_a_lot_as_spark_does() -> None:
    value = b'\n{"a":\r"1"}\r\n\n{"a": "2"}\n'
    headers = [("size", b"2"), ("checksum", checksum(value).encode())]
    assert lots.is_as_declared(SimpleNamespace(value=value, headers=headers))
    assert [json.loads(line) for line in lots.lines_of(value)] == [{"a": "1"}, {"a": "2"}]


class AskedPath(BaseHTTPRequestHandler):
    """Answers with the path that it was asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_hdfs_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), AskedPath) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        hdfs = WebHdfs(f"http://127.0.0.1:{server.server_port}", "hdfs://x:8020/été")
        assert hdfs.ask("a%", "LISTSTATUS") == b"/webhdfs/v1/%C3%A9t%C3%A9/a%25?op=LISTSTATUS"


@pytest.mark.parametrize("ends", ["other", "away", "progress"])
def test_patience_does_not_end_while_something_changes(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same failure; in between another one, no server, or another place."""
    monkeypatch.setattr(spark_consumer, "LONGEST_PAUSE_S", 0)
    monkeypatch.setattr(spark_consumer, "SAME_FAILURES", 3)
    tries = itertools.count(1)
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda _: stop.is_set())

    def work(answered: Callable[[str], None]) -> int:
        number = next(tries)
        if number == 20:
            return 0
        changes = number % 3 == 0
        if not (changes and ends == "away"):
            answered(f"offset {number // 2 if ends == 'progress' else 0}")
        raise KafkaError("another" if changes and ends == "other" else "the same")

    assert spark_consumer.patiently(60, stop, work) == 0


@pytest.mark.parametrize(
    ("main", "arguments", "code", "says"),
    [
        (kafka_producer.main, "--data /nowhere", 2, "no LTM_Data*.xlsx or .csv in /nowhere"),
        (kafka_producer.main, "--first 99", 2, "no lot 99 in"),
        (versions.main, "--postgresql-url postgresql://x@localhost:1/x list", 1,
         "versions: PostgreSQL: "),
        (versions.main, "restore x", 2, "invalid int value: 'x'"),
        (versions.main, "isolate  --reason x", 2, "'' is not a batch id"),
        (versions.main, "isolate x --reason ", 2, "'' is not a reason"),
        (versions.main, "isolate \udcff --reason x", 2, "'\\udcff' is not a batch id"),
        *(
            (versions.main, f"--postgresql-url postgresql://w:{password}@localhost:1/w list", 2,
             "POSTGRESQL_URL is not postgresql://USER:PASSWORD@HOST:PORT/DATABASE: percent-encode")
            for password in ("SECR%ET", "SECR@ET", "SECR/ET")
        ),
        (verify.main, "--hdfs-url hdfs://localhost:1/a*", 2, "is not hdfs://HOST:PORT/FOLDER"),
        (spark_consumer.main, "--reprocess ", 2, "'' is not a batch id, or \"last\""),
        (prepare.main, "--data /nowhere", 2, "no Methods*.xlsx or .csv in /nowhere"),
        (verify.main, "--version x", 2, "invalid int value: 'x'"),
        (spark_consumer.main, "--once --reprocess last", 2, "not allowed with argument"),
    ],
)  # fmt: skip
def test_a_mistake_is_said(
    main: Callable[[list[str]], int], arguments: str, code: int, says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    try:
        ended: Any = main(arguments.split(" "))
    except SystemExit as exc:  # argparse's
        ended = exc.code
    assert ended == code
    said = capsys.readouterr().err
    assert says in said.splitlines()[-1]
    assert "SECR" not in said


def test_a_producer_without_kafka_is_one_line(tmp_path: Path) -> None:
    arguments = ["--wait", "1", "--bootstrap-servers", "localhost:1"]
    done = Scene({}, None, tmp_path).run("kafka/kafka_producer.py", *arguments)
    assert done.returncode == 1
    assert "is it started?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_consumer_is_refused_before_spark_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(spark_consumer, "CACHE", tmp_path)
    monkeypatch.setattr(spark_consumer, "consume", lambda *_: 0)
    here, other = ["--topic", "here"], ["--topic", "other"]
    with common.only_copy(spark_consumer.lock_file(spark_consumer.load_config(here, {}))) as lock:
        assert lock
        assert spark_consumer.main(here) == 1
        assert spark_consumer.main([*here, "--once"]) == 1
        assert spark_consumer.main([*here, "--reprocess", "last"]) == 0
        assert spark_consumer.main(other) == 0
    assert spark_consumer.main(here) == 0
