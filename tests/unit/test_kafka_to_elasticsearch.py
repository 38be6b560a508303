"""The consumer's pure part: what is a reading, the order of commits, the accounts, options."""

import json
import math
import socket
import struct
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from confluent_kafka import KafkaError, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec
from elasticsearch import ApiError, Elasticsearch, TransportError
from hypothesis import given
from hypothesis import strategies as st

import kafka_to_elasticsearch as indexer
from stack.servers import free_port

GOOD: dict[str, Any] = {
    "sensor_id": "sensor_001",
    "timestamp": "2026-06-01T12:00:00.000Z",
    "temperature": 21.5,
    "humidity": 48.2,
    "co2_level": 431,
    "light_intensity": 61234,
}
PARTITION, OTHER = 0, 1


def encoded(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def parsed(value: bytes) -> dict[str, Any]:
    return msgspec.structs.asdict(indexer.parse_reading(value))


def test_a_good_reading_is_taken_as_it_is() -> None:
    assert parsed(encoded()) == GOOD


def test_order_of_fields_and_white_space_do_not_matter() -> None:
    shuffled = json.dumps(dict(reversed(GOOD.items())), indent=2).encode()
    assert parsed(shuffled) == GOOD


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
    assert parsed(encoded(**changes)) == {**GOOD, **expected}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty message"),
        (b"", "empty message"),
        (b"hello", "JSON is malformed: invalid character (byte 0)"),
        (b"{", "Input data was truncated"),
        (b"\xff\xfe{}", "JSON is malformed"),
        (encoded().replace(b"sensor_001", b"\xff"), "not UTF-8"),
        (json.dumps(GOOD).encode("utf-16"), "JSON is malformed"),
        (b"\xef\xbb\xbf" + encoded(), "JSON is malformed: invalid character (byte 0)"),
        (encoded() + b"{}", "JSON is malformed: trailing characters"),
        (b"[1, 2]", "Expected `object`, got `array`"),
        (b"42", "Expected `object`, got `int`"),
        (b"null", "Expected `object`, got `null`"),
        (b"NaN", "JSON is malformed"),
        (b"9" * 5000, "Number out of range"),
        (b"[" * 100_000, "Expected `object`, got `array`"),
        (b'{"a":' * 1000, "unknown field `a`"),
        (encoded().replace(b"48.2", b"[" * 100_000), "Expected `float`, got `array`"),
        (without("humidity"), "missing required field `humidity`"),
        (b"{}", "missing required field `sensor_id`"),
        (encoded(battery=3), "unknown field `battery`"),
        (encoded().replace(b'"humidity"', b'"co2_level": 431, "humidity"'), "given twice"),
        (encoded().replace(b'"humidity"', b'"co2\\u005flevel": 431, "humidity"'), "given twice"),
        (encoded(sensor_id=""), "sensor_id is not 1 to 128 letters, digits"),
        (encoded(sensor_id=7), "Expected `str`, got `int` - at `$.sensor_id`"),
        (encoded(sensor_id="a b"), "sensor_id is not 1 to 128 letters, digits"),
        (encoded(sensor_id="x" * 129), "sensor_id is not 1 to 128 letters, digits"),
        (encoded(sensor_id="s\n1"), "sensor_id is not 1 to 128 letters, digits"),
        (encoded(sensor_id="sensor_001\n"), "sensor_id is not 1 to 128 letters, digits"),
        (encoded(temperature="21.5"), "Expected `float`, got `str` - at `$.temperature`"),
        (encoded(temperature=None), "Expected `float`, got `null` - at `$.temperature`"),
        (encoded(temperature=True), "Expected `float`, got `bool` - at `$.temperature`"),
        (encoded(temperature=60.1), "Expected `float` <= 60.0 - at `$.temperature`"),
        (encoded(temperature=math.nan), "JSON is malformed"),
        (encoded(temperature=math.inf), "JSON is malformed"),
        (encoded(temperature=-math.inf), "JSON is malformed"),
        (encoded().replace(b"21.5", b"1e400"), "Number out of range - at `$.temperature`"),
        (encoded(humidity=140), "Expected `float` <= 100.0 - at `$.humidity`"),
        (encoded(humidity=[50]), "Expected `float`, got `array` - at `$.humidity`"),
        (encoded(co2_level=431.0), "Expected `int`, got `float` - at `$.co2_level`"),
        (encoded(co2_level=12), "Expected `int` >= 350 - at `$.co2_level`"),
        (encoded(light_intensity=-1), "Expected `int` >= 0 - at `$.light_intensity`"),
        (encoded(light_intensity=10**30), "Expected `int` <= 200000 - at `$.light_intensity`"),
        (encoded(timestamp="yesterday"), "timestamp is not an ISO 8601 time with its offset"),
        (encoded(timestamp=1780315200), "Expected `str`, got `int` - at `$.timestamp`"),
        (encoded(timestamp="2026-06-01T12:00:00"), "not an ISO 8601 time with its offset"),
        (encoded(timestamp="2026-06-01 12:00:00Z"), "not an ISO 8601 time with its offset"),
        (encoded(timestamp="2026-W23-1T12:00:00.000Z"), "not an ISO 8601 time with its offset"),
        (encoded(timestamp="2026-02-30T12:00:00Z"), "day is out of range"),
        (encoded(timestamp="2026-06-01T25:00:00Z"), "hour must be in"),
        (encoded(timestamp="2026-06-01T23:59:60Z"), "second must be in"),
        (encoded(timestamp="0000-01-01T00:00:00Z"), "year 0 is out of range"),
        (encoded(timestamp="0001-01-01T00:00:00+01:00"), "timestamp: "),
        (encoded(timestamp="٢٠٢٦-06-01T12:00:00Z"), "not an ISO 8601 time with its offset"),
        (encoded(timestamp="2026-06-01T12:00:00Z\n"), "not an ISO 8601 time with its offset"),
    ],
)
def test_a_bad_message_is_refused_with_its_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(indexer.InvalidReadingError) as refusal:
        indexer.parse_reading(value)
    assert reason in str(refusal.value)


def test_a_sensor_id_may_be_so_long_and_no_longer() -> None:
    for length in (0, 129, 1_000_000):
        with pytest.raises(indexer.InvalidReadingError, match="sensor_id is not"):
            indexer.parse_reading(encoded(sensor_id="x" * length))
    parsed(encoded(sensor_id="x" * 128))


def test_a_reason_is_one_short_line_whatever_the_message_holds() -> None:
    batch = indexer.Batch()
    batch.add(PARTITION, [message(1, encoded(**{"evil\n\x1b[2Jname": 1}))])
    batch.add(PARTITION, [message(2, encoded(**{"x" * 100_000: 1}))])
    (_, first), (_, second) = batch.dead_letters
    assert first == "invalid: Object contains unknown field `evil [2Jname`"
    assert len(second) < 320


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
    assert msgspec.structs.asdict(reading).keys() == GOOD.keys()
    json.dumps(msgspec.structs.asdict(reading), allow_nan=False).encode()


def message(offset: int, value: bytes = b"", partition: int = PARTITION) -> Message:
    return Message(topic="t", partition=partition, offset=offset, value=value or encoded())


def test_batch_keeps_good_and_bad_and_the_next_offset() -> None:
    batch = indexer.Batch()
    batch.add(PARTITION, [message(7)])
    batch.add(PARTITION, [message(8, b"bad")])
    assert [entry.document_id for entry in batch.entries] == ["sensor_001@2026-06-01T12:00:00.000Z"]
    assert [reason[:13] for _, reason in batch.dead_letters] == ["invalid: JSON"]
    assert batch.offsets == {PARTITION: 9}
    assert len(batch) == 2


def test_batch_is_full_by_count_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "BULK_READINGS", 2)
    batch = indexer.Batch()
    batch.add(PARTITION, [message(1)])
    assert not batch.is_full
    batch.add(PARTITION, [message(2, b"bad")])
    assert batch.is_full
    monkeypatch.setattr(indexer, "BULK_READINGS", 1000)
    assert not batch.is_full
    monkeypatch.setattr(indexer, "BULK_BYTES", 100)
    assert batch.is_full


def test_messages_of_any_kind_count_for_the_size_of_a_batch() -> None:
    """Else a topic full of large malformed messages would fill the memory."""
    batch = indexer.Batch()
    batch.add(PARTITION, [message(1, b"x" * indexer.BULK_BYTES)])
    assert batch.is_full


class FakeKafka:
    """Stands for Kafka and the library's consumer, where only commits and assignments matter."""

    def __init__(self) -> None:
        self.commits: list[dict[int, int]] = []
        self.owned = {PARTITION, OTHER}
        self.stored: dict[int, int] = {}
        self.first = self.end = 0
        self.refuses = False
        self.numbers = [PARTITION, OTHER]

    def consumer(self, _: str, on_commit: Any) -> "FakeKafka":
        self.on_commit = on_commit
        return self

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("t", number) for number in self.owned]

    def committed(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition("t", p.partition, self.stored.get(p.partition, -1)) for p in asked]

    def offsets(self, numbers: Iterable[int], spec: OffsetSpec) -> dict[int, int]:
        offset = self.first if isinstance(spec, type(OffsetSpec.earliest())) else self.end
        return dict.fromkeys(numbers, offset)

    def describe(self) -> tuple[str, list[int]]:
        return "id", self.numbers

    def consume(self, *_: Any, **__: Any) -> list[Message]:
        return []

    def commit(self, offsets: list[TopicPartition]) -> None:
        """Answer at once; the real one answers in a later poll."""
        if self.refuses:
            self.on_commit(KafkaError(KafkaError.REBALANCE_IN_PROGRESS), offsets)
        else:
            self.commits.append({p.partition: p.offset for p in offsets})
            self.on_commit(None, offsets)


@pytest.fixture
def consumer() -> FakeKafka:
    return FakeKafka()


@pytest.fixture
def pipeline(consumer: FakeKafka) -> indexer.Pipeline:
    kafka: Any = consumer
    pipeline = indexer.Pipeline(indexer.load_config([], {}), kafka, Mock(waits={}))
    pipeline.note_assignment()
    return pipeline


def take(pipeline: indexer.Pipeline, *offsets: int, partition: int = PARTITION) -> None:
    pipeline.take([message(offset, partition=partition) for offset in offsets])


def submit(pipeline: indexer.Pipeline) -> "Future[None]":
    """Put the open batch in flight; settled when its future is."""
    future: Future[None] = Future()
    pipeline.in_flight.append((pipeline.batch, future))
    pipeline.batch = indexer.Batch()
    return future


def settle(pipeline: indexer.Pipeline, *futures: "Future[None]", outcome: str = "indexed") -> None:
    for batch, future in pipeline.in_flight:
        if future in futures:
            batch.outcome[outcome] = len(batch)
            future.set_result(None)
    pipeline.collect()
    pipeline.commit()


def test_a_later_batch_that_is_settled_first_waits(
    pipeline: indexer.Pipeline, consumer: FakeKafka
) -> None:
    take(pipeline, 4)
    first = submit(pipeline)
    take(pipeline, 5)
    second = submit(pipeline)
    settle(pipeline, second)
    assert consumer.commits == []
    settle(pipeline, first, outcome="duplicates")
    assert consumer.commits == [{PARTITION: 6}]
    closed = "consumed=2 indexed=1 duplicates=1 dead_lettered=0 in_flight=0"
    assert pipeline.close_accounts() == closed


def test_a_refused_commit_goes_with_the_next(
    pipeline: indexer.Pipeline, consumer: FakeKafka
) -> None:
    take(pipeline, 4)
    consumer.refuses = True
    settle(pipeline, submit(pipeline))
    consumer.refuses = False
    take(pipeline, 9, partition=OTHER)
    settle(pipeline, submit(pipeline))
    assert consumer.commits == [{PARTITION: 5, OTHER: 10}]
    settle(pipeline)
    assert len(consumer.commits) == 1  # nothing new, no commit


def test_a_partition_taken_away_is_not_committed_even_when_it_comes_back(
    pipeline: indexer.Pipeline, consumer: FakeKafka
) -> None:
    """Meanwhile its other owner may have gone further: our commit would go back."""
    take(pipeline, 4, 5)
    take(pipeline, 6, partition=OTHER)
    old = submit(pipeline)
    take(pipeline, 6)
    pipeline.note_lost(Mock(), [TopicPartition("t", PARTITION)])
    consumer.stored = {PARTITION: 900}
    pipeline.note_assignment()
    settle(pipeline, old)
    assert consumer.commits == [{OTHER: 7}]
    assert pipeline.batch.offsets == {}
    take(pipeline, 900)
    settle(pipeline, submit(pipeline))
    assert consumer.commits[1:] == [{PARTITION: 901}]


def test_what_is_in_flight_is_settled_and_committed_before_a_partition_goes(
    pipeline: indexer.Pipeline, consumer: FakeKafka
) -> None:
    settled: Any = pipeline.settler
    settled.abandon.is_set.return_value = False
    settled.settle.side_effect = lambda batch: batch.outcome.update(indexed=len(batch))
    take(pipeline, 4)
    submit(pipeline).set_result(None)
    take(pipeline, 5)  # still in the open batch
    pipeline.is_committing = True  # what was settled earlier: its answer is not there yet
    pipeline.hand_over(Mock(), [TopicPartition("t", PARTITION)])
    assert consumer.commits == [{PARTITION: 6}]
    consumer.owned = {OTHER}
    pipeline.note_assignment()
    assert list(pipeline.partitions) == [OTHER]
    assert pipeline.unsettled == 0


def test_what_is_ahead_in_the_queue_is_waited_for_before_a_partition_goes(
    pipeline: indexer.Pipeline, consumer: FakeKafka
) -> None:
    """Else the offsets of that partition could not be committed, and it would be read again."""
    pipeline.settler.abandon.is_set.return_value = False  # type: ignore[attr-defined]
    take(pipeline, 6, partition=OTHER)
    ahead = submit(pipeline)
    take(pipeline, 4)
    submit(pipeline).set_result(None)
    threading.Timer(0.2, ahead.set_result, [None]).start()
    pipeline.hand_over(Mock(), [TopicPartition("t", PARTITION)])
    assert consumer.commits == [{PARTITION: 5, OTHER: 7}]


def test_a_partition_that_goes_is_not_paused_when_it_comes_back(
    pipeline: indexer.Pipeline,
) -> None:
    """The library keeps a pause; we would resume only what is ours at that time."""
    lost = [TopicPartition("t", PARTITION)]
    for let_go in (pipeline.hand_over, pipeline.note_lost):
        library = Mock()
        let_go(library, lost)
        library.resume.assert_called_once_with(lost)


def test_no_more_than_so_many_batches_are_in_flight_however_often_partitions_go(
    pipeline: indexer.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "REVOKE_GRACE_S", 0)
    pipeline.settler.abandon.is_set.return_value = False  # type: ignore[attr-defined]
    for offset in range(10):
        take(pipeline, offset)
        pipeline.hand_over(Mock(), [TopicPartition("t", PARTITION)])
        assert len(pipeline.in_flight) <= indexer.BULKS_IN_FLIGHT


def test_what_is_settled_is_committed_when_a_partition_goes_at_the_very_end(
    pipeline: indexer.Pipeline, consumer: FakeKafka
) -> None:
    pipeline.settler.abandon.is_set.return_value = True  # type: ignore[attr-defined]
    take(pipeline, 4)
    submit(pipeline).set_result(None)
    pipeline.collect()
    pipeline.hand_over(Mock(), [TopicPartition("t", PARTITION)])
    assert consumer.commits == [{PARTITION: 5}]


def test_where_the_start_is_unknown_nothing_is_committed(
    pipeline: indexer.Pipeline, consumer: FakeKafka
) -> None:
    pipeline.partitions[PARTITION] = indexer.Progress()
    earlier = TopicPartition("t", PARTITION, 100)  # the answer to a commit of before
    pipeline.note_commit(None, [earlier])
    pipeline.commit()
    assert consumer.commits == []
    assert not pipeline.uncommitted


def test_a_gap_at_the_end_of_one_partition_is_no_lag_though_the_other_is_at_work(
    pipeline: indexer.Pipeline, consumer: FakeKafka, caplog: pytest.LogCaptureFixture
) -> None:
    take(pipeline, 0)
    settle(pipeline, submit(pipeline))
    take(pipeline, 0, partition=OTHER)
    under_way = submit(pipeline)
    consumer.first = consumer.end = 50  # the topic's retention has deleted all
    end = KafkaError(KafkaError._PARTITION_EOF)
    pipeline.note_event(message(50), end)
    pipeline.note_event(message(50, partition=OTHER), end)
    pipeline.note_lag()
    assert "partition 0: 49 messages from offset 1 on were deleted" in caplog.text
    assert pipeline.lags == {PARTITION: 0, OTHER: 50}
    settle(pipeline, under_way)
    pipeline.note_lag()
    assert "partition 1: 49 messages from offset 1 on were deleted" in caplog.text
    assert pipeline.lags == {PARTITION: 0, OTHER: 0}
    assert caplog.text.count("were deleted") == 2


def test_what_takes_too_long_is_left_to_the_next_owner(
    pipeline: indexer.Pipeline, consumer: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "REVOKE_GRACE_S", 0)
    pipeline.settler.abandon.is_set.return_value = False  # type: ignore[attr-defined]
    take(pipeline, 4)
    late = submit(pipeline)
    take(pipeline, 6, partition=OTHER)
    pipeline.hand_over(Mock(), [TopicPartition("t", PARTITION)])
    consumer.owned = {OTHER}
    pipeline.note_assignment()
    settle(pipeline, late)
    settle(pipeline, submit(pipeline))
    assert consumer.commits == [{OTHER: 7}]


def test_messages_of_a_partition_that_is_no_longer_ours_are_left_to_its_owner(
    pipeline: indexer.Pipeline, consumer: FakeKafka
) -> None:
    consumer.owned = {OTHER}
    pipeline.note_assignment()
    take(pipeline, 4)
    assert len(pipeline.batch) == 0
    assert pipeline.totals["consumed"] == 0


def test_what_retention_deleted_is_counted_and_the_gaps_of_transactions_are_not(
    consumer: FakeKafka, pipeline: indexer.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    consumer.owned = {OTHER}
    pipeline.note_assignment()
    consumer.owned, consumer.stored = {OTHER, PARTITION}, {PARTITION: 3}
    pipeline.note_assignment()
    consumer.first = 7
    take(pipeline, 8)  # after a marker
    assert "partition 0: 4 messages from offset 3 on were deleted" in caplog.text
    caplog.clear()
    take(pipeline, 11, 13)
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    take(pipeline, 2)
    assert "offsets go back from 14 to 2: the topic was made anew" in caplog.text


def test_what_was_deleted_before_the_first_read_is_counted_too(
    consumer: FakeKafka, pipeline: indexer.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    consumer.first = 10
    take(pipeline, 12)
    assert "partition 0: 10 messages from offset 0 on were deleted" in caplog.text
    settle(pipeline, submit(pipeline))
    assert consumer.commits == [{PARTITION: 13}]


def test_finish_reports_what_is_left(
    pipeline: indexer.Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexer, "STOP_GRACE_S", 0)
    take(pipeline, 4)
    submit(pipeline).set_exception(indexer.GaveUpError("Elasticsearch: 1 messages wait"))
    assert pipeline.finish() is False
    assert "not settled, to be read again: 1 messages" in caplog.text


def test_finish_commits_what_is_sure_before_what_was_given_up(
    pipeline: indexer.Pipeline, consumer: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "STOP_GRACE_S", 0)
    take(pipeline, 4)
    submit(pipeline).set_result(None)
    take(pipeline, 5)
    submit(pipeline).set_exception(indexer.GaveUpError("Elasticsearch: 1 messages wait"))
    assert pipeline.finish() is False
    assert consumer.commits == [{PARTITION: 5}]


def test_finish_says_what_is_settled_and_not_committed(
    pipeline: indexer.Pipeline,
    consumer: FakeKafka,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(indexer, "STOP_GRACE_S", 0)
    take(pipeline, 4)
    submit(pipeline).set_result(None)
    consumer.refuses = True
    assert pipeline.finish() is False
    assert "not committed, to be read again as duplicates: partitions 0" in caplog.text


def test_finish_refuses_accounts_that_do_not_close(
    pipeline: indexer.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.totals.update(consumed=10, indexed=9)
    assert pipeline.finish() is False
    assert "the accounts do not close: 1 messages unaccounted for" in caplog.text


# What is said when nothing moves


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, pipeline: indexer.Pipeline) -> list[float]:
    """The time, moved by hand; the pipeline has just begun."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_lag_there_is_no_trouble(pipeline: indexer.Pipeline, clock: list[float]) -> None:
    clock[0] += 1000
    pipeline.commit()
    pipeline.note_assignment()
    pipeline.report()
    assert pipeline.trouble() == ""


def test_a_lag_that_nothing_reduces_is_trouble(
    pipeline: indexer.Pipeline, clock: list[float]
) -> None:
    pipeline.lags = {0: 12}
    clock[0] += 1000
    pipeline.last_turn = pipeline.last_assigned = pipeline.last_answer = clock[0]
    pipeline.commit()
    assert pipeline.trouble() == "nothing settled for 1000 s, lag 12: Kafka delivers nothing"
    pipeline.settler.waits = {1: "Elasticsearch: 9 messages wait (503)"}
    assert pipeline.trouble().endswith("lag 12: Elasticsearch: 9 messages wait (503)")
    pipeline.last_settled = clock[0]
    assert pipeline.trouble() == ""


def test_what_is_settled_and_cannot_be_committed_is_trouble(
    pipeline: indexer.Pipeline, consumer: FakeKafka, clock: list[float]
) -> None:
    consumer.refuses = True
    take(pipeline, 4)
    settle(pipeline, submit(pipeline))
    clock[0] += 1000
    pipeline.commit()
    pipeline.last_turn = pipeline.last_assigned = pipeline.last_answer = clock[0]
    assert pipeline.trouble() == "no commit for 1000 s"
    assert not pipeline.is_idle()
    consumer.refuses = False
    pipeline.commit()
    assert pipeline.trouble() == ""


def test_it_is_idle_only_when_every_partition_was_read_to_its_end(
    consumer: FakeKafka, clock: list[float]
) -> None:
    kafka: Any = consumer
    config = indexer.load_config(["--exit-when-idle", "5"], {})
    pipeline = indexer.Pipeline(config, kafka, Mock(waits={}))
    pipeline.note_assignment()
    end = KafkaError(KafkaError._PARTITION_EOF)
    pipeline.note_event(message(0), end)
    clock[0] += 1000
    assert not pipeline.is_idle()  # nothing is known of the other one yet
    pipeline.note_event(message(0, partition=OTHER), end)
    assert not pipeline.is_idle()
    clock[0] += 5
    assert pipeline.is_idle()
    take(pipeline, 0)  # more has come, and perhaps not all of it is read
    settle(pipeline, submit(pipeline))
    assert not pipeline.is_idle()
    clock[0] += 5
    assert not pipeline.is_idle()
    pipeline.note_event(message(1), end)
    clock[0] += 5
    assert pipeline.is_idle()


def test_no_partition_and_no_turn_of_the_loop_are_trouble(
    pipeline: indexer.Pipeline, consumer: FakeKafka, clock: list[float]
) -> None:
    consumer.owned = set()
    pipeline.note_assignment()
    clock[0] += 1000
    pipeline.last_turn = clock[0]
    pipeline.note_assignment()
    assert pipeline.trouble() == "Kafka has not answered for 1000 s"
    pipeline.last_answer = clock[0]
    assert pipeline.trouble().startswith("no partition assigned for 1000 s")
    clock[0] += 1000
    assert pipeline.trouble() == "the loop has stood still for 1000 s"


def test_back_off_grows_up_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    settler = indexer.Settler(indexer.load_config([], {}), Mock(), Mock())
    waits: list[float] = []
    monkeypatch.setattr(settler.abandon, "wait", lambda delay: waits.append(delay))
    for attempt in range(1, 40):
        settler.back_off(attempt, "test")
    for attempt, delay in enumerate(waits, 1):
        ceiling = min(10.0, 0.2 * 2**attempt)
        assert ceiling / 2 <= delay <= ceiling


@pytest.mark.parametrize("answer", [[], {"i": []}, {"i": {}}, {"i": {"mappings": []}}, "<html>"])
def test_an_index_that_cannot_be_made_for_an_odd_answer_is_tried_again(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Mock()
    client.indices.get_mapping.return_value = answer
    settler = indexer.Settler(indexer.load_config([], {}), client, Mock())
    settler.make_index("sensors_data-2026.06.01")
    assert "index sensors_data-2026.06.01 cannot be made" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [{}, {"items": [{"create": {"status": None}}]}, {"items": [{"index": {"status": 201}}]}, "<>"],
)
def test_an_odd_answer_to_a_bulk_is_none(answer: Any) -> None:
    settler = indexer.Settler(indexer.load_config([], {}), Mock(), Mock())
    settler.client.bulk.return_value = answer  # type: ignore[attr-defined]
    entry = indexer.Entry(message(0), "id", b"{}")
    batch = indexer.Batch()
    assert settler.index(batch, "sensors_data", [entry]) == ([entry], "it answered for 0 of 1")
    assert (batch.outcome, batch.dead_letters) == ({}, [])


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"error": {"root_cause": ["x"]}}, "ApiError"),
        ({"error": "no"}, "ApiError(503, 'no', 'no')"),
    ],
)
def test_an_error_is_one_line_whatever_its_form(body: Any, shown: str) -> None:
    meta: Any = Mock(status=503)
    assert indexer.one_line(ApiError("no", meta=meta, body=body)) == shown


def test_why_there_is_no_connection_is_said() -> None:
    with pytest.raises(TransportError) as raised:
        Elasticsearch("http://127.0.0.1:1", max_retries=0).info()
    assert "Connection refused" in indexer.one_line(raised.value)


def test_dead_letters_are_not_sent_when_told_to_stop_meanwhile() -> None:
    settler = indexer.Settler(indexer.load_config([], {}), Mock(), producer := Mock())
    settler.abandon.set()
    letters = [indexer.DeadLetter(message(0), "invalid: x")]
    assert settler.send_dead_letters(letters) == (letters, "told to stop")
    producer.produce.assert_not_called()


def test_who_asks_for_metrics_may_leave(
    pipeline: indexer.Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    indexer.serve_state(pipeline, port := free_port())
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            asked.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
    with pytest.raises(indexer.SetupError, match=f"--metrics-port {port}: .*choose another"):
        indexer.serve_state(pipeline, port)


def test_flag_wins_over_environment_over_default() -> None:
    environ = {"ELASTICSEARCH_INDEX": "from-environment"}
    assert indexer.load_config([], {}).index == "sensors_data"
    assert indexer.load_config([], environ).index == "from-environment"
    assert indexer.load_config(["--index", "from-flag"], environ).index == "from-flag"


def test_the_period_of_an_index_from_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"ELASTICSEARCH_INDEX_BY": "day"}
    assert indexer.load_config([], {}).index_by is None
    assert indexer.load_config([], {"ELASTICSEARCH_INDEX_BY": ""}).index_by is None
    assert indexer.load_config([], environ).index_by == "day"
    assert indexer.load_config(["--index-by", "month"], environ).index_by == "month"
    with pytest.raises(SystemExit):
        indexer.load_config([], {"ELASTICSEARCH_INDEX_BY": "year"})
    assert "'year' is not day or month" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["--exit-when-idle", "-1"],
        ["--exit-when-idle", "soon"],
        ["--wait", "nan"],
        ["--topic", "a/b"],
        ["--metrics-port", "0"],
        ["--index-by", "year"],
        ["--index", ""],
        ["--group-id", ""],
        ["--dead-letter-index", "sensors_data"],
        ["--topic", "."],
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
    urls = "https://me:secret@host:9200,https://me:secret@other:9200"
    config = indexer.load_config(["--elasticsearch-url", urls], {})
    assert indexer.shown_url(config) == "https://host:9200,https://other:9200"
    assert "secret" not in repr(config)


@pytest.mark.parametrize("password", ["sec/ret", "sec#ret", "sec@ret", "sec,ret", "sec?r:et"])
def test_nor_is_one_that_should_have_been_quoted(password: str) -> None:
    url = f"https://me:{password}@host:9200"
    config = indexer.load_config(["--elasticsearch-url", url], {})
    assert indexer.shown_url(config) == "https://host:9200"
    with pytest.raises((indexer.SetupError, TransportError)) as raised:
        indexer.connect_to_elasticsearch(config)
    assert "sec" not in str(raised.value).replace("seconds", "")


def test_help_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        indexer.load_config(["--help"], {"ELASTICSEARCH_URL": "https://me:secret@host:9200"})
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert "http://localhost:9200" in shown
