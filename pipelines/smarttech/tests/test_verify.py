"""verify.py: what it says when it cannot compare."""

import itertools
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError

from pipelines.smarttech import lake, transforms, verdict, verify
from pipelines.smarttech.settings import FOLDER

from .helpers import Scripts

LEDGER_HEADER = "partition,offset,crc32,label\n"


def in_each(offset: int) -> Mock:
    """Return a method of a consumer that says the same offset of each partition."""
    return Mock(side_effect=lambda partitions: dict.fromkeys(partitions, offset))


def test_verify_says_what_it_cannot_compare(
    scripts: Callable[[str], Scripts], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = scripts("nothing")
    _, err = nothing.call(verify.main, code=1)
    assert err.startswith("verify: cannot compare: there is no topic nothing")
    with closing(KafkaAdminClient(bootstrap_servers=nothing.kafka.split(","))) as admin:
        admin.create_topics([NewTopic("nothing", -1, -1)])
    for name, schema in lake.SCHEMAS.items():
        columns = {column: pa.array([], pa.string()) for column in transforms.names(schema)}
        write_deltalake(str(nothing.lake / f"sensor_data_{name}"), pa.table(columns))
    _, err = nothing.call(verify.main, code=1)
    assert err == "verify: nothing to compare: nothing and the tables are empty\n"
    # Retention was faster: what was the first message when it began is there no more.
    monkeypatch.setattr(KafkaConsumer, "beginning_offsets", in_each(5))
    monkeypatch.setattr(KafkaConsumer, "end_offsets", in_each(10))
    with pytest.raises(OffsetOutOfRangeError):
        verify.read_topic(nothing.kafka, "nothing")


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """One of a topic that says to hold 10 messages, and of which nothing comes."""
    consumer = Mock()
    consumer.partitions_for_topic.return_value = {0}
    consumer.beginning_offsets, consumer.end_offsets = in_each(0), in_each(10)
    consumer.poll.return_value = {}
    monkeypatch.setattr(verify, "KafkaConsumer", lambda **_: consumer)
    return consumer


def test_verify_does_not_wait_for_ever_for_a_kafka_that_has_gone(
    consumer: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer.position.side_effect = [0, 3, 3, 3, 3]
    clock = itertools.count(0.0, 25.0)  # seconds, a look at a time
    monkeypatch.setattr(verify, "time", Mock(monotonic=lambda: next(clock)))
    with pytest.raises(KafkaTimeoutError, match="nothing comes any more"):
        verify.read_topic("127.0.0.1:1", "topic")
    assert consumer.position.call_count == 5


@pytest.mark.parametrize("error", [zlib.error("wrong data"), RuntimeError("wrong data")])
def test_verify_says_in_one_line_what_a_codec_cannot_decode(
    consumer: Mock, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    consumer.poll.side_effect = error
    assert verify.main([]) == 1
    said = f"verify: cannot compare: KafkaError: messages cannot be decoded: {error!r}\n"
    assert capsys.readouterr().err == said


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
        verdict.compare_ledger(verdict.Verdict(), ledger, {}, {}, {}, set())


def test_what_is_no_ledger_and_no_duration_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "page.html"
    ledger.write_text("x" * 200_000)
    monkeypatch.setattr(verify, "read_topic", lambda *_: ({}, {}))
    read = verdict.compare_ledger
    monkeypatch.setattr(
        verify, "compare", lambda *_: read(verdict.Verdict(), ledger, {}, {}, {}, set())
    )
    assert verify.main([]) == 1
    said = "verify: cannot compare: field larger than field limit (131072)\n"
    assert capsys.readouterr().err == said
    with pytest.raises(SystemExit):
        verify.main(["--lateness", "99999999999999 days"])
    assert "is not such as '10 minutes'" in capsys.readouterr().err


WITHOUT_ZSTD = """
import sys
sys.modules["zstandard"] = None  # as if it was not installed
from pipelines.smarttech import verify
raise SystemExit(verify.main([]))
"""


def test_what_cannot_be_decoded_is_said(scripts: Callable[[str], Scripts]) -> None:
    zstd = scripts("zstd")
    producer = KafkaProducer(bootstrap_servers=zstd.kafka, compression_type="zstd")
    with closing(producer):  # what does not become smaller would be sent as it is
        producer.send(zstd.topic, b" " * 1000).get(timeout=30)
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_ZSTD], env=zstd.environ, cwd=FOLDER.parents[1],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("verify: cannot compare: UnsupportedCodecError: ")
    assert len(ended.stderr.splitlines()) == 1
