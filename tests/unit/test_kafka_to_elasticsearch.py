"""The consumer's pure part: what is a reading, the order of commits, the accounts, options."""

import json
import math
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import CommitFailedError
from kafka.structs import TopicPartition

import kafka_to_elasticsearch as indexer

GOOD: dict[str, Any] = {
    "sensor_id": "sensor_001",
    "timestamp": "2026-06-01T12:00:00.000Z",
    "temperature": 21.5,
    "humidity": 48.2,
    "co2_level": 431,
    "light_intensity": 61234,
}
PARTITION = TopicPartition("t", 0)


def encoded(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def test_a_good_reading_is_taken_as_it_is() -> None:
    assert indexer.parse_reading(encoded()) == GOOD


def test_order_of_fields_and_white_space_do_not_matter() -> None:
    shuffled = json.dumps(dict(reversed(GOOD.items())), indent=2).encode()
    assert indexer.parse_reading(shuffled) == GOOD


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"temperature": 21}, {"temperature": 21}),
        ({"temperature": -40}, {"temperature": -40}),
        ({"humidity": 100}, {"humidity": 100}),
        ({"timestamp": "2026-06-01T14:00:00+02:00"}, {}),
        ({"timestamp": "2026-06-01T12:00:00Z"}, {}),
        ({"timestamp": "2026-06-01T12:00:00.000999999Z"}, {}),
        ({"timestamp": "2024-02-29T00:00:00Z"}, {"timestamp": "2024-02-29T00:00:00.000Z"}),
        ({"timestamp": "0001-01-01T00:00:00Z"}, {"timestamp": "0001-01-01T00:00:00.000Z"}),
        ({"timestamp": "9999-12-31T23:59:59.999Z"}, {"timestamp": "9999-12-31T23:59:59.999Z"}),
    ],
)
def test_borderline_readings_are_taken(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert indexer.parse_reading(encoded(**changes)) == {**GOOD, **expected}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty message"),
        (b"", "empty message"),
        (b"hello", "not JSON: Expecting value"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (json.dumps(GOOD).encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf" + encoded(), "not JSON: "),
        (encoded() + b"{}", "not JSON: Extra data"),
        (b"[1, 2]", "not a JSON object but a list"),
        (b"42", "not a JSON object but a int"),
        (b"null", "not a JSON object but a NoneType"),
        (b"NaN", "not JSON: NaN"),
        (b"9" * 5000, "not JSON: Exceeds the limit"),
        (b"[" * 100_000, "nested too deep"),
        (without("humidity"), "missing field humidity"),
        (b"{}", "missing field co2_level, missing field humidity"),
        (encoded(battery=3), "unknown field 'battery'"),
        (encoded(**{"evil\nname": 1}), r"unknown field 'evil\nname'"),
        (encoded().replace(b'"humidity"', b'"co2_level": 1, "humidity"'), "a field is given twice"),
        (encoded(sensor_id=""), "sensor_id: ''"),
        (encoded(sensor_id=7), "sensor_id: 7"),
        (encoded(sensor_id="a b"), "sensor_id: 'a b'"),
        (encoded(sensor_id="x" * 129), "sensor_id: "),
        (encoded(sensor_id="s\n1"), r"sensor_id: 's\n1'"),
        (encoded(sensor_id="sensor_001\n"), r"sensor_id: 'sensor_001\n'"),
        (encoded(temperature="21.5"), "temperature: '21.5' is not a number"),
        (encoded(temperature=None), "temperature: None is not a number"),
        (encoded(temperature=True), "temperature: True is not a number"),
        (encoded(temperature=60.1), "temperature: 60.1 is outside -40 to 60"),
        (encoded(temperature=math.nan), "not JSON: NaN"),
        (encoded(temperature=math.inf), "not JSON: Infinity"),
        (encoded(temperature=-math.inf), "not JSON: -Infinity"),
        (encoded().replace(b"21.5", b"1e400"), "temperature: inf is outside"),
        (encoded(humidity=140), "humidity: 140 is outside 0 to 100"),
        (encoded(humidity=[50]), "humidity: [50] is not a number"),
        (encoded(co2_level=431.0), "co2_level: 431.0 is not an integer"),
        (encoded(co2_level=12), "co2_level: 12 is outside 350 to 10000"),
        (encoded(light_intensity=-1), "light_intensity: -1 is outside 0 to 200000"),
        (encoded(light_intensity=10**30), "light_intensity: 1000"),
        (encoded(timestamp="yesterday"), "timestamp: 'yesterday' is not an ISO 8601 time"),
        (encoded(timestamp=1780315200), "timestamp: 1780315200"),
        (encoded(timestamp="2026-06-01T12:00:00"), "is not an ISO 8601 time with offset"),
        (encoded(timestamp="2026-06-01 12:00:00Z"), "is not an ISO 8601 time with offset"),
        (encoded(timestamp="2026-W23-1T12:00:00.000Z"), "is not an ISO 8601 time with offset"),
        (encoded(timestamp="2026-02-30T12:00:00Z"), "day is out of range"),
        (encoded(timestamp="2026-06-01T25:00:00Z"), "hour must be in"),
        (encoded(timestamp="2026-06-01T23:59:60Z"), "second must be in"),
        (encoded(timestamp="0000-01-01T00:00:00Z"), "year 0 is out of range"),
        (encoded(timestamp="0001-01-01T00:00:00+01:00"), "timestamp: "),
        (encoded(timestamp="٢٠٢٦-06-01T12:00:00Z"), "is not an ISO 8601 time with offset"),
        (encoded(timestamp="2026-06-01T12:00:00Z\n"), "is not an ISO 8601 time with offset"),
    ],
)
def test_a_bad_message_is_refused_with_its_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(indexer.InvalidReadingError) as refusal:
        indexer.parse_reading(value)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_reading_or_refused(value: bytes) -> None:
    with pytest.raises(indexer.InvalidReadingError):
        indexer.parse_reading(value)


@given(st.sampled_from(sorted(GOOD)), JSON_VALUES)
def test_one_strange_field_is_a_reading_or_refused(name: str, value: Any) -> None:
    try:
        reading = indexer.parse_reading(encoded(**{name: value}))
    except indexer.InvalidReadingError:
        return
    assert reading.keys() == GOOD.keys()
    json.dumps(reading, allow_nan=False).encode()


def message(offset: int, value: bytes = b"") -> Any:
    return SimpleNamespace(offset=offset, value=value or encoded(), topic="t", partition=0)


def test_batch_keeps_good_and_bad_and_the_next_offset() -> None:
    batch = indexer.Batch()
    batch.add(PARTITION, message(7))
    batch.add(PARTITION, message(8, b"bad"))
    assert [entry.document_id for entry in batch.entries] == ["sensor_001@2026-06-01T12:00:00.000Z"]
    assert [reason[:8] for _, reason in batch.dead_letters] == ["not JSON"]
    assert batch.offsets == {PARTITION: 9}
    assert len(batch) == 2


def test_batch_is_full_by_count_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "BULK_READINGS", 2)
    batch = indexer.Batch()
    batch.add(PARTITION, message(1))
    assert not batch.is_full
    batch.add(PARTITION, message(2, b"bad"))
    assert batch.is_full
    monkeypatch.setattr(indexer, "BULK_READINGS", 1000)
    assert not batch.is_full
    monkeypatch.setattr(indexer, "BULK_BYTES", 100)
    assert batch.is_full


class FakeConsumer:
    """Stands for the library's consumer where only commits matter."""

    def __init__(self) -> None:
        self.commits: list[dict[TopicPartition, int]] = []
        self.owned = {PARTITION, TopicPartition("t", 1)}
        self.refuses = False

    def assignment(self) -> set[TopicPartition]:
        return self.owned

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        if self.refuses:
            raise CommitFailedError
        self.commits.append({p: o.offset for p, o in offsets.items()})


@pytest.fixture
def consumer() -> FakeConsumer:
    return FakeConsumer()


@pytest.fixture
def pipeline(consumer: FakeConsumer) -> indexer.Pipeline:
    return indexer.Pipeline(indexer.load_config([], {}), consumer, Mock())


def in_flight(
    pipeline: indexer.Pipeline, offset: int, partition: int = 0
) -> "Future[Counter[str]]":
    future: Future[Counter[str]] = Future()
    batch = indexer.Batch()
    batch.add(TopicPartition("t", partition), message(offset))
    pipeline.in_flight.append((batch, future))
    pipeline.totals["consumed"] += 1
    return future


def test_a_later_batch_that_is_settled_first_waits(
    pipeline: indexer.Pipeline, consumer: FakeConsumer
) -> None:
    first, second = in_flight(pipeline, 4), in_flight(pipeline, 5)
    second.set_result(Counter(indexed=1))
    pipeline.collect()
    pipeline.commit()
    assert consumer.commits == []
    first.set_result(Counter(duplicates=1))
    pipeline.collect()
    pipeline.commit()
    assert consumer.commits == [{PARTITION: 6}]
    assert pipeline.accounts() == "consumed=2 indexed=1 duplicates=1 dead_lettered=0 in_flight=0"


def test_a_refused_commit_goes_with_the_next(
    pipeline: indexer.Pipeline, consumer: FakeConsumer
) -> None:
    in_flight(pipeline, 4).set_result(Counter(indexed=1))
    consumer.refuses = True
    pipeline.collect()
    pipeline.commit()
    consumer.refuses = False
    in_flight(pipeline, 9, partition=1).set_result(Counter(indexed=1))
    pipeline.collect()
    pipeline.commit()
    assert consumer.commits == [{PARTITION: 5, TopicPartition("t", 1): 10}]


def test_only_assigned_partitions_are_committed(
    pipeline: indexer.Pipeline, consumer: FakeConsumer
) -> None:
    consumer.owned = {TopicPartition("t", 1)}
    in_flight(pipeline, 4).set_result(Counter(indexed=1))
    pipeline.collect()
    pipeline.commit()
    assert consumer.commits == []


def test_finish_reports_what_is_left(
    pipeline: indexer.Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexer, "STOP_GRACE_S", 0)
    in_flight(pipeline, 4).set_exception(indexer.GaveUpError("Elasticsearch: 1 readings wait"))
    assert pipeline.finish() is False
    assert "not settled, to be read again: 1 messages" in caplog.text


def test_finish_commits_what_is_sure_before_what_was_given_up(
    pipeline: indexer.Pipeline, consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "STOP_GRACE_S", 0)
    in_flight(pipeline, 4).set_result(Counter(indexed=1))
    in_flight(pipeline, 5).set_exception(indexer.GaveUpError("Elasticsearch: 1 readings wait"))
    assert pipeline.finish() is False
    assert consumer.commits == [{PARTITION: 5}]


def test_finish_refuses_accounts_that_do_not_close(
    pipeline: indexer.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.totals.update(consumed=10, indexed=9)
    assert pipeline.finish() is False
    assert "the accounts do not close: 1 messages unaccounted for" in caplog.text


def test_back_off_grows_up_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    settler = indexer.Settler(indexer.load_config([], {}), Mock(), Mock())
    waits: list[float] = []
    monkeypatch.setattr(settler.abandon, "wait", lambda delay: waits.append(delay))
    for attempt in range(1, 40):
        settler.back_off(attempt, "test")
    for attempt, delay in enumerate(waits, 1):
        ceiling = min(10.0, 0.2 * 2**attempt)
        assert ceiling / 2 <= delay <= ceiling


def test_flag_wins_over_environment_over_default() -> None:
    environ = {"ELASTICSEARCH_INDEX": "from-environment"}
    assert indexer.load_config([], {}).index == "sensors_data"
    assert indexer.load_config([], environ).index == "from-environment"
    assert indexer.load_config(["--index", "from-flag"], environ).index == "from-flag"


@pytest.mark.parametrize(
    "argv",
    [
        ["--exit-when-idle", "-1"],
        ["--exit-when-idle", "soon"],
        ["--wait", "nan"],
        ["--topic", "a/b"],
        ["--bootstrap-servers", "localhost"],
        ["--unknown"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        indexer.load_config(argv, {})
    assert exit_.value.code == 2
    assert argv[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_password_in_the_url_is_not_shown() -> None:
    config = indexer.load_config(["--elasticsearch-url", "https://me:secret@host:9200"], {})
    assert indexer.shown_url(config) == "https://host:9200"


def test_help_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        indexer.load_config(["--help"], {"ELASTICSEARCH_URL": "https://me:secret@host:9200"})
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert "http://localhost:9200" in shown
