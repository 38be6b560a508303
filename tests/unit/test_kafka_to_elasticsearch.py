"""The consumer without servers: readings, responses, the order of commits, options, secrets."""

import base64
import json
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import certifi
import msgspec
import pytest
from elasticsearch import ApiError, Elasticsearch
from kafka import TopicPartition, errors

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
FIRST, SECOND = TopicPartition("t", 0), TopicPartition("t", 1)


# A message is a reading or a dead letter. tests/faults/test_bad_input.py has all that is refused.


def encoded(**changes: Any) -> bytes:
    """Return GOOD as a message, with these fields changed."""
    return json.dumps({**GOOD, **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"temperature": -40, "humidity": 100}, {"temperature": -40, "humidity": 100}),
        ({"sensor_id": "a:B-c.d_9" + "x" * 119}, {"sensor_id": "a:B-c.d_9" + "x" * 119}),
        ({"timestamp": "2026-06-01T14:00:00+02:00"}, {}),
        ({"timestamp": "2026-06-01T12:00:00Z"}, {}),
        ({"timestamp": "2026-06-01T12:00:00.000999999Z"}, {}),  # cut, not rounded
        ({"timestamp": "9999-12-31T23:59:59.999Z"}, {"timestamp": "9999-12-31T23:59:59.999Z"}),
    ],
)
def test_a_valid_message_is_a_reading_with_its_time_in_utc(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    reading = indexer.parse_reading(encoded(**changes))
    assert msgspec.structs.asdict(reading) == {**GOOD, **expected}


def message(offset: int, value: bytes | None = None, partition: int = 0) -> Any:
    """Return a message as kafka-python gives it."""
    where = {"topic": "t", "partition": partition, "offset": offset, "timestamp": 1_780_315_200_000}
    value = encoded() if value is None else value
    return SimpleNamespace(**where, key=b"sensor_001", value=value, headers=[])


def test_a_batch_keeps_good_and_bad_messages_and_the_next_offsets() -> None:
    batch = indexer.Batch()
    batch.add(FIRST, [message(7), message(9, b"bad")])
    batch.add(SECOND, [message(2, partition=1)])
    assert [d.id for d in batch.documents] == ["sensor_001@2026-06-01T12:00:00.000Z"] * 2
    (letter,) = batch.dead_letters
    assert letter[1] == "invalid: JSON is malformed: invalid character (byte 0)"
    assert batch.offsets == {FIRST: 10, SECOND: 3}
    assert batch.messages == 3


def test_a_batch_is_full_by_messages_or_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "BATCH_MESSAGES", 2)
    batch = indexer.Batch()
    batch.add(FIRST, [message(1)])
    assert not batch.is_full
    batch.add(FIRST, [message(2, b"bad")])
    assert batch.is_full
    much = b"x" * indexer.BATCH_BYTES  # malformed bytes count as well
    for part in ({"value": much}, {"key": much}, {"headers": [("a", b""), ("b", much)]}):
        large = indexer.Batch()
        large.add(FIRST, [SimpleNamespace(**{**vars(message(1)), **part})])
        assert large.is_full, part.keys()


def test_an_error_without_printable_text_is_shown_by_its_type() -> None:
    meta: Any = SimpleNamespace(status=503)
    error = ApiError("no", meta=meta, body={"error": {"root_cause": ["x"]}})
    assert indexer.one_line(error) == "ApiError"


# A batch goes to Elasticsearch; tests/integration/test_bulk_writer.py sends it to a real one.


def writer_with(**client: Any) -> indexer.BulkWriter:
    """Return a writer whose client answers as these attributes of a Mock say."""
    return indexer.BulkWriter(indexer.parse_options([], {}), Mock(**client), Mock())


CREATED, EXISTS = {"create": {"status": 201}}, {"create": {"status": 409}}
MALFORMED = [
    {},
    "<html>",
    {"items": []},
    {"items": [{"index": {"status": 201}}]},
    {"items": [CREATED] * 2},
]
THIS = {"_id": "sensor_001@2026-06-01T12:00:00.000Z"}
MALFORMED_STORED = [
    {}, "<html>", {"docs": []}, {"docs": [{}]}, {"docs": [7]},
    {"docs": [{**THIS, "error": "text"}]}, {"docs": [{**THIS, "error": None}]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        *((answer, None) for answer in MALFORMED),
        *(({"items": [EXISTS]}, stored) for stored in MALFORMED_STORED),
    ],
)
def test_a_malformed_response_settles_nothing(answer: Any, stored: Any) -> None:
    writer = writer_with(**{"bulk.return_value": answer, "mget.return_value": stored})
    batch = indexer.Batch()
    batch.add(FIRST, [message(0)])
    ((document, _),) = writer.index_readings(batch, batch.documents)
    assert document is batch.documents[0]
    assert not +batch.outcome
    assert not batch.dead_letters


def refused_whole(status: int) -> ApiError:
    """Return the error of a bulk request that is refused whole."""
    meta: Any = SimpleNamespace(status=status)
    return ApiError("no", meta=meta, body={})


def test_a_bulk_that_is_refused_whole_is_not_halved_any_more_when_told_to_stop() -> None:
    bulk = Mock(side_effect=refused_whole(413))
    writer = writer_with(bulk=bulk)
    batch = indexer.Batch()
    batch.add(FIRST, [message(0), message(1)])
    verdicts = [verdict for verdict, _ in writer.bulk("i", batch.documents)]
    assert (verdicts, bulk.call_count) == (["refused"] * 2, 3)
    writer.stopping.set()
    verdicts = [verdict for verdict, _ in writer.bulk("i", batch.documents)]
    assert (verdicts, bulk.call_count) == (["again"] * 2, 4)


def test_a_batch_whose_turn_comes_after_the_time_to_stop_is_not_sent() -> None:
    bulk = Mock()
    writer = writer_with(bulk=bulk)
    writer.stopping.set()
    batch = indexer.Batch()
    batch.add(FIRST, [message(0)])
    with pytest.raises(indexer.GaveUpError):
        writer.settle(batch)
    assert not bulk.called


def test_a_document_that_an_ingest_pipeline_dropped_is_not_waited_for() -> None:
    assert indexer.classify({"status": 200})[0] == "refused"


def test_retries_wait_longer_up_to_a_limit_and_log_it(caplog: pytest.LogCaptureFixture) -> None:
    writer, waits = writer_with(), list[float]()

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return len(waits) == 30

    writer.stopping = Impatient()
    with pytest.raises(indexer.GaveUpError, match=r"1 messages wait \(503 none\)"):
        writer.retry_until_done("Elasticsearch", [1], lambda pending: [(1, "503 none")])
    for attempt, wait_s in enumerate(waits, 1):
        longest = min(indexer.RETRY_CAP_S, indexer.RETRY_BASE_S * 2**attempt)
        assert longest / 2 <= wait_s <= longest
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING] * 3 + [logging.ERROR] * 27


# The loop: read, submit, commit.


class FakeWriter:
    """Settles batches at once, except those that a test holds back.

    Attributes:
        settled: (partition, offset) of each message that is settled.
        held: what releases a batch that is held back, by the batch's first offset.
        pause_s: how long each batch takes, seconds.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.settled: set[tuple[int, int]] = set()
        self.held: dict[int, threading.Event] = {}
        self.pause_s: Callable[[], float] = lambda: 0.0

    def hold(self, offset: int) -> threading.Event:
        """Hold the batch back that begins at this offset; return the event that releases it."""
        return self.held.setdefault(offset, threading.Event())

    def settle(self, batch: indexer.Batch) -> None:
        messages = [document.message for document in batch.documents]
        messages += [letter[0] for letter in batch.dead_letters]
        released = self.held.get(messages[0].offset)
        while released and not released.wait(0.01):
            if self.stopping.is_set():
                raise indexer.GaveUpError("Elasticsearch: 1 messages wait (503)")
        self.stopping.wait(self.pause_s())
        batch.outcome.update(indexed=len(messages))
        self.settled |= {(m.partition, m.offset) for m in messages}


class FakeConsumer:
    """A consumer and the Kafka behind it, with two partitions.

    It fails at a commit that includes a message which the writer has not settled. Time passes only
    in polls and in sleeps.

    Attributes:
        now: the time, seconds.
        logs: the messages of each partition.
        commits: what each commit said, offsets by partition number.
        committed: the offset that is committed for each partition.
        asked: how many messages each poll could bring.
        faults: what the next polls raise.
        numbers: the numbers of the topic's partitions.
        joined: how often the consumer has subscribed.
        before_poll: is called at the start of each poll.
    """

    def __init__(self, writer: FakeWriter) -> None:
        self.writer = writer
        self.now = 0.0
        self.logs: dict[TopicPartition, list[Any]] = {FIRST: [], SECOND: []}
        self.commits: list[dict[int, int]] = []
        self.committed: dict[TopicPartition, int] = {}
        self.asked: list[int] = []
        self.faults: list[Exception] = []
        self.refuses_commits = False
        self.refusal: type[errors.KafkaError] = errors.RebalanceInProgressError
        self.numbers = {0, 1}
        self.joined = 0
        self.before_poll: Callable[[], object] = lambda: None
        self.listener: Any = Mock()
        self.positions: dict[TopicPartition, int] = {}
        self.rebalance(FIRST, SECOND)

    def add(self, *offsets: int, partition: TopicPartition = FIRST, value: Any = None) -> None:
        """Put messages into the topic."""
        self.logs[partition] += [message(n, value, partition.partition) for n in offsets]

    def rebalance(self, *owned: TopicPartition) -> None:
        """Assign these partitions, each from its committed offset on and not paused."""
        self.listener.on_partitions_revoked(set(self.positions))
        self.positions = {p: self.committed.get(p, 0) for p in owned}
        self.paused: set[TopicPartition] = set()
        self.listener.on_partitions_assigned(list(owned))

    # The interface of kafka-python's consumer.

    def subscribe(self, topics: list[str], listener: Any) -> None:
        assert topics == ["smart-city-sensors"]
        self.listener = listener
        self.joined += 1

    def unsubscribe(self) -> None:
        self.rebalance()

    def partitions_for_topic(self, topic: str) -> set[int]:
        return self.numbers

    def assignment(self) -> set[TopicPartition]:
        return set(self.positions)

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused -= set(partitions)

    def poll(self, timeout_ms: float, max_records: int) -> dict[TopicPartition, list[Any]]:
        self.before_poll()
        self.now += timeout_ms / 1000
        self.asked.append(max_records)
        if self.faults:
            raise self.faults.pop(0)
        found: dict[TopicPartition, list[Any]] = {}
        for partition in sorted(self.positions.keys() - self.paused):
            there = [m for m in self.logs[partition] if m.offset >= self.positions[partition]]
            if some := there[: max_records - sum(map(len, found.values()))]:
                found[partition] = some
                self.positions[partition] = some[-1].offset + 1
        return found

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        assert partition in self.positions  # kafka-python asserts it too
        return self.positions[partition]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset

    def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        self.positions |= self.beginning_offsets(list(partitions))

    def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {p: self.logs[p][0].offset for p in partitions}

    def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {p: self.logs[p][-1].offset + 1 if self.logs[p] else 0 for p in partitions}

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        assert offsets.keys() <= self.positions.keys()
        if self.refuses_commits:
            raise self.refusal
        for partition, (offset, *_) in offsets.items():
            before = {(partition.partition, m.offset) for m in self.logs[partition]}
            unsettled = {where for where in before - self.writer.settled if where[1] < offset}
            assert not unsettled, "committed before they are settled"
            self.committed[partition] = offset
        self.commits.append({p.partition: offset for p, (offset, *_) in offsets.items()})


class Loop:
    """A pipeline on a fake consumer and a fake writer, driven step by step."""

    def __init__(self, consumer: FakeConsumer, *argv: str) -> None:
        self.consumer, self.writer = consumer, consumer.writer
        kafka: Any = consumer
        writer: Any = consumer.writer
        self.pipeline = indexer.Pipeline(indexer.parse_options(argv, {}), kafka, writer)
        consumer.listener = self.pipeline
        self.pipeline.on_partitions_assigned(list(consumer.positions))

    def submit(self) -> Future[None]:
        """Poll and submit the batch; return the future that is done when it is settled."""
        assert self.pipeline.poll()
        self.pipeline.submit()
        return self.pipeline.in_flight[-1][1]

    def commit(self) -> bool:
        """Collect what is settled and commit it; return whether nothing is left to commit."""
        self.pipeline.collect()
        return self.pipeline.commit()


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> FakeConsumer:
    consumer = FakeConsumer(FakeWriter())

    def sleep(seconds: float) -> None:
        consumer.now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: consumer.now)
    monkeypatch.setattr(time, "sleep", sleep)
    return consumer


@pytest.fixture
def loop(consumer: FakeConsumer) -> Iterator[Loop]:
    yield (loop := Loop(consumer))
    loop.writer.stopping.set()  # a failed test may still hold a batch back
    loop.pipeline.workers.shutdown()


def test_a_batch_that_is_settled_first_is_not_committed_before_older_ones(loop: Loop) -> None:
    release = loop.writer.hold(4)
    loop.consumer.add(4)
    first = loop.submit()
    loop.consumer.add(5)
    loop.submit().result()
    assert loop.commit()
    assert loop.consumer.commits == []
    release.set()
    first.result()
    assert loop.commit()
    assert loop.consumer.commits == [{0: 6}]
    closed = "consumed=2 indexed=2 duplicates=0 dead_lettered=0 in_flight=0"
    assert loop.pipeline.accounts() == closed


def test_a_refused_commit_is_part_of_the_next(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.consumer.add(4)
    loop.submit().result()
    loop.consumer.refuses_commits = True
    assert not loop.commit()
    assert "offsets not committed yet" in caplog.text
    loop.consumer.refuses_commits = False
    loop.consumer.add(9, partition=SECOND)
    loop.submit().result()
    loop.consumer.now += 60
    assert loop.commit()
    assert loop.commit()
    assert loop.consumer.commits == [{0: 5, 1: 10}]  # once


def test_a_partition_that_a_rebalance_has_revoked_is_not_committed(loop: Loop) -> None:
    """A late commit could move the group back, behind what another consumer has committed."""
    loop.consumer.add(4, 5)
    settled = loop.submit()
    loop.consumer.rebalance(SECOND)
    loop.consumer.committed[FIRST] = 6  # another consumer has done it
    loop.consumer.rebalance(FIRST, SECOND)
    settled.result()
    assert loop.commit()
    assert loop.consumer.commits == []


def test_back_pressure_pauses_reading_but_keeps_what_a_rebalance_brings(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll that ends a rebalance may return messages of new partitions, which must be kept."""
    monkeypatch.setattr(indexer, "BATCH_MESSAGES", 1)
    loop.consumer.rebalance(FIRST)
    loop.consumer.add(*range(10))
    loop.consumer.add(0, 1, partition=SECOND)
    release = loop.writer.hold(0)
    last = [loop.submit() for _ in range(indexer.BATCHES_IN_FLIGHT)][-1]
    assert loop.pipeline.poll()  # one batch is read while the others are in flight
    before, polls = loop.pipeline.unsettled(), len(loop.consumer.asked)
    loop.pipeline.poll()
    assert loop.pipeline.unsettled() == before
    assert len(loop.consumer.asked) > polls  # without polls Kafka would take the consumer for dead
    assert not loop.consumer.paused
    loop.consumer.before_poll = lambda: loop.consumer.rebalance(SECOND)
    loop.pipeline.poll()
    loop.consumer.before_poll = lambda: None
    release.set()
    last.result()
    loop.pipeline.submit()
    loop.pipeline.poll()
    assert loop.pipeline.finish()
    assert loop.consumer.commits[-1] == {1: 2}


def test_a_batch_takes_no_more_than_its_bytes_and_the_rest_is_read_again(loop: Loop) -> None:
    loop.pipeline.message_bytes = 1  # after many small messages
    half = indexer.BATCH_BYTES // 2 - len("sensor_001")  # the key counts as well
    loop.consumer.add(*range(5), value=b"x" * half)
    taken = []
    for _ in range(3):
        assert loop.pipeline.poll()
        taken.append(loop.pipeline.batch.messages)
        loop.pipeline.submit()
        loop.pipeline.in_flight[-1][1].result()
        assert loop.commit()
    assert taken == [2, 2, 1]
    assert loop.consumer.commits[-1] == {0: 5}


def test_a_poll_asks_for_no_more_large_messages_than_fit_into_a_batch(loop: Loop) -> None:
    fifth = indexer.BATCH_BYTES // 5 - len("sensor_001")
    loop.consumer.add(*range(100), value=b"x" * fifth)
    for _ in range(3):
        loop.submit().result()
    assert loop.consumer.asked[0] <= 10  # the size of a message is not known yet
    assert loop.consumer.asked[1:] == [5, 5]


def test_messages_that_retention_deleted_are_counted_and_the_rest_is_read(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.consumer.add(50, 51)
    loop.consumer.positions[FIRST] = 99  # kafka-python reads nothing after this error
    loop.consumer.faults.append(errors.OffsetOutOfRangeError({FIRST: 3}))
    assert not loop.pipeline.poll()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert re.search("partition 0: .* 47 messages were deleted", line)
    loop.submit().result()
    assert loop.commit()
    assert loop.consumer.commits == [{0: 52}]


def test_a_partition_without_commit_is_read_from_its_earliest_message(loop: Loop) -> None:
    loop.consumer.add(7, 8)
    loop.consumer.positions[FIRST] = 9
    loop.consumer.faults.append(errors.NoOffsetForPartitionError({FIRST}))
    loop.pipeline.poll()
    assert loop.pipeline.poll()
    assert loop.pipeline.batch.messages == 2


def test_an_unreachable_kafka_is_waited_for_and_logged_once_per_interval(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.consumer.add(0)
    loop.consumer.faults += [errors.KafkaConnectionError("away")] * 3
    assert [loop.pipeline.poll() for _ in range(4)] == [False, False, False, True]
    assert caplog.text.count("away") == 1


@pytest.mark.parametrize("error", indexer.FATAL_KAFKA_ERRORS)
def test_a_fatal_kafka_error_ends_the_run(loop: Loop, error: type[errors.KafkaError]) -> None:
    loop.consumer.faults.append(error())
    with pytest.raises(error):
        loop.pipeline.run(threading.Event())


def test_exit_when_idle_waits_until_everything_is_read(consumer: FakeConsumer) -> None:
    consumer.add(*range(3))
    consumer.faults += [errors.KafkaConnectionError("away")] * 10
    loop = Loop(consumer, "--exit-when-idle", "5")
    loop.pipeline.run(threading.Event())
    assert loop.pipeline.finish()
    assert consumer.commits[-1] == {0: 3}


def test_a_consumer_without_partition_is_not_idle_and_logs_it(
    consumer: FakeConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(consumer, "--exit-when-idle", "5")
    consumer.rebalance()
    consumer.now += 60
    loop.pipeline.poll()
    assert not loop.pipeline.is_idle()
    loop.pipeline.report()
    assert "no partition is ours" in caplog.text
    consumer.rebalance(FIRST)
    loop.pipeline.poll()
    consumer.now += 60
    assert loop.pipeline.is_idle()


def test_the_consumer_joins_again_when_partitions_are_added(loop: Loop) -> None:
    """It does not join again when Kafka returns no partitions for a moment."""
    joined = []
    for count in (2, 0, 2, 3, 3):
        loop.consumer.numbers = set(range(count))
        loop.consumer.now += 60
        loop.pipeline.report()
        joined.append(loop.consumer.joined)
    assert joined == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("refusal", "joined"),
    [(errors.CommitFailedError, [0, 1]), (errors.RebalanceInProgressError, [0, 0])],
)
def test_the_consumer_joins_again_when_the_group_refuses_its_commits_for_long(
    loop: Loop, refusal: type[errors.KafkaError], joined: list[int]
) -> None:
    """A rebalance that is not over yet is waited for; it may take minutes."""
    loop.consumer.add(4)
    loop.submit().result()
    loop.consumer.refuses_commits, loop.consumer.refusal = True, refusal
    found = []
    for _ in joined:
        assert not loop.commit()
        loop.consumer.now += 6
        loop.pipeline.report()
        found.append(loop.consumer.joined)
    assert found == joined


def test_the_consumer_joins_again_when_the_group_forgets_it_while_it_joins(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then kafka-python's poll fails in an assertion, seen in an hour of random faults."""
    failed = AssertionError("Coordinator selected invalid assignment protocol: None")
    monkeypatch.setattr(loop.consumer, "poll", Mock(side_effect=failed))
    assert not loop.pipeline.poll()
    assert loop.consumer.joined == 1


def test_the_report_has_the_accounts_and_the_lag_if_kafka_tells_it(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    loop.consumer.add(*range(3))
    loop.consumer.add(0, partition=SECOND)
    loop.submit().result()
    loop.consumer.add(3, 4)
    loop.consumer.now += 60
    loop.pipeline.report()
    accounts = "consumed=4 indexed=0 duplicates=0 dead_lettered=0 in_flight=4"
    assert re.search(rf"progress {accounts} rate_hz=\d+ lag=6", caplog.text)
    # Kafka is away; or one partition has no leader, of which kafka-python says no more.
    for error in (errors.KafkaTimeoutError("away"), KeyError(FIRST)):
        caplog.clear()
        monkeypatch.setattr(loop.consumer, "end_offsets", Mock(side_effect=error))
        loop.consumer.now += 60
        loop.pipeline.report()
        assert "lag=unknown" in caplog.text
        assert f"the lag is not known ({indexer.one_line(error)})" in caplog.text


def test_finish_commits_what_is_settled_and_logs_what_is_not(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexer, "STOP_GRACE_S", 0)
    loop.consumer.add(4)
    loop.submit().result()
    loop.writer.hold(5)
    loop.consumer.add(5, 6)
    loop.submit()
    assert not loop.pipeline.finish()
    assert loop.consumer.commits == [{0: 5}]
    assert "not settled, to be read again: 2 messages (Elasticsearch: 1 messages" in caplog.text


def test_finish_logs_what_is_settled_but_not_committed(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.consumer.add(4)
    loop.submit()
    loop.consumer.refuses_commits = True
    assert not loop.pipeline.finish()
    assert "settled but not committed" in caplog.text


@pytest.mark.parametrize("seed", range(10))
def test_every_message_is_settled_before_it_is_committed_under_random_faults(
    seed: int, consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebalances, refused commits, errors and slow batches come at random; then all is well."""
    rng, stop = random.Random(seed), threading.Event()
    monkeypatch.setattr(indexer, "BATCH_MESSAGES", 5)
    consumer.writer.pause_s = lambda: rng.random() / 200

    def disturb() -> None:
        if len(consumer.asked) >= 300:
            stop.set()
            consumer.refuses_commits = False
            return
        partition = rng.choice([FIRST, SECOND])
        end = consumer.end_offsets([partition])[partition]
        consumer.add(*range(end, end + rng.randrange(6)), partition=partition)
        if rng.random() < 0.05:
            consumer.rebalance(*rng.sample([FIRST, SECOND], rng.randrange(3)))
        consumer.refuses_commits = rng.random() < 0.3
        consumer.faults = [errors.KafkaConnectionError()] * (rng.random() < 0.05)

    consumer.before_poll = disturb
    first = Loop(consumer).pipeline
    first.run(stop)
    assert first.finish()
    assert first.totals["consumed"] == first.totals["indexed"]
    consumer.before_poll = lambda: None
    consumer.rebalance(FIRST, SECOND)
    second = Loop(consumer, "--exit-when-idle", "0").pipeline
    second.run(threading.Event())
    assert second.finish()
    sent = {(p.partition, m.offset) for p, log in consumer.logs.items() for m in log}
    assert consumer.writer.settled == sent
    assert consumer.committed == consumer.end_offsets([FIRST, SECOND])


# Options, and secrets that are not shown.


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"ELASTICSEARCH_INDEX": "from-environment", "KAFKA_TOPIC": ""}
    options = indexer.parse_options([], environ)
    assert (options.index, options.topic) == ("from-environment", "smart-city-sensors")
    assert indexer.parse_options(["--index", "from-flag"], environ).index == "from-flag"


# tests/contract/test_contract.py has more servers and topics, for both scripts.
WRONG = {
    "--bootstrap-servers": ["localhost"],
    "--topic": ["a/b"],
    "--group-id": ["", " ", "\t\n", "\u00a0", "\udcff"],
    "--elasticsearch-url": ["localhost:9200", "http://localhost", "ftp://localhost:9200", ""],
    "--index": ["*", "a,b", "Sensors", "_all", ".kibana", "a b", 'a"', "sensors_dead_letters", ""],
    "--dead-letter-index": ["*", "sensors_data"],
    "--exit-when-idle": ["-1", "soon", "nan", ""],
    "--wait": ["-1"],
    "--metrics-port": ["0", "70000", "http"],
    "--unknown": ["x"],
    "--index-by": ["day"],
}


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str], **environ: str) -> str:
    """Parse wrong options, which must exit with code 2; return the line after the usage."""
    with pytest.raises(SystemExit) as ended:
        indexer.parse_options(argv, environ)
    assert ended.value.code == 2
    usage, _, line = capsys.readouterr().err.rpartition(": error: ")
    assert usage.startswith("usage: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_or_blank_value_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in WRONG[flag]:
        assert flag in refusal(capsys, [flag, value])


@pytest.mark.parametrize(
    ("flag", "variable"),
    [
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS"),
        ("--topic", "KAFKA_TOPIC"),
        ("--group-id", "KAFKA_GROUP_ID"),
        ("--elasticsearch-url", "ELASTICSEARCH_URL"),
        ("--index", "ELASTICSEARCH_INDEX"),
        ("--dead-letter-index", "ELASTICSEARCH_DEAD_LETTER_INDEX"),
    ],
)
def test_a_blank_variable_is_refused(
    flag: str, variable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty one counts as not set."""
    assert flag in refusal(capsys, [], **{variable: " "})


def test_dead_letters_have_their_own_index_or_none() -> None:
    assert indexer.parse_options([], {}).dead_letter_index == "sensors_dead_letters"
    assert indexer.parse_options(["--dead-letter-index", "none"], {}).dead_letter_index is None
    assert indexer.parse_options(["--dynamic-mapping"], {}).dead_letter_index is None


@pytest.mark.parametrize("character", "[]/#?@ ,\\℀\u00a0")
def test_a_password_that_was_not_percent_encoded_is_refused_and_not_shown(
    character: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://elastic:s3{character}cr3t@localhost:9200"
    for argv, environ in (["--elasticsearch-url", url], {}), ([], {"ELASTICSEARCH_URL": url}):
        line = refusal(capsys, argv, **environ)
        assert "ELASTICSEARCH_URL" in line
        assert "percent-encoded" in line
        assert "s3" not in line
        assert "cr3t" not in line


@pytest.mark.parametrize("address", ["localhost:99999", "[1:2]:9200", "lo cal:9200", "[::1:9200"])
def test_a_password_before_an_impossible_address_is_not_shown(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://elastic:s3cr3t@{address}"
    assert "s3cr3t" not in refusal(capsys, ["--elasticsearch-url", url])


@pytest.mark.parametrize(
    ("urls", "shown"),
    [
        ("http://localhost:9200", "http://localhost:9200"),
        ("http://elastic:p%40ss@[::1]:9200/es", "http://[::1]:9200/es"),
        ("https://a:b@one:9200,https://a:c@two:9200", "https://one:9200,https://two:9200"),
    ],
)
def test_urls_are_shown_without_their_passwords(urls: str, shown: str) -> None:
    options = indexer.parse_options(["--elasticsearch-url", urls], {})
    assert indexer.shown_urls(options.elasticsearch_url) == shown


def test_help_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        indexer.parse_options(["--help"], {"ELASTICSEARCH_URL": "https://me:s3cr3t@host:9200"})
    shown = capsys.readouterr().out
    assert "s3cr3t" not in shown
    assert "http://localhost:9200" in shown


USER = {"CONSUMER_ELASTICSEARCH_USER": "indexer", "CONSUMER_ELASTICSEARCH_PASSWORD": "s3cr3t"}
KEY = {"CONSUMER_ELASTICSEARCH_API_KEY": "k3y"}


@pytest.mark.parametrize(
    ("url", "environ"),
    [
        ("http://elastic:s3cr3t@server:9200", {}),
        ("https://server:9200,http://elastic:s3cr3t@server:9200", {}),
        ("http://server:9200", USER),
        ("http://server:9200", KEY),
        ("http://127.0.0.1.example:9200", USER),
        ("http://localhost@server:9200", USER),
    ],
)
def test_a_password_is_sent_to_another_machine_only_by_https(
    url: str, environ: dict[str, str]
) -> None:
    with pytest.raises(indexer.SetupError, match=r"ELASTICSEARCH_URL: .*https") as refusal:
        indexer.parse_options(["--elasticsearch-url", url], environ)
    assert "s3cr3t" not in str(refusal.value)
    assert "k3y" not in str(refusal.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_password_may_be_sent_to_this_machine_without_tls(host: str) -> None:
    options = indexer.parse_options(["--elasticsearch-url", f"http://a:b@{host}:9200"], {})
    assert options.elasticsearch_url == f"http://a:b@{host}:9200"
    security = indexer.elasticsearch_security(USER, "CONSUMER", f"http://{host}:9200")
    assert base64.b64decode(security["basic_auth"]) == b"indexer:s3cr3t"


def test_a_password_may_have_any_letter() -> None:
    environ = {"CONSUMER_ELASTICSEARCH_USER": "ü", "CONSUMER_ELASTICSEARCH_PASSWORD": "é€:@\udcff"}
    security = indexer.elasticsearch_security(environ, "CONSUMER", "https://server:1")
    Elasticsearch("https://server:1", **security)  # takes it
    assert base64.b64decode(security["basic_auth"]) == "ü:é€:@".encode() + b"\xff"


def test_each_client_has_the_tls_and_the_login_of_its_server(tmp_path: Path) -> None:
    file = certifi.where()
    files = {"KAFKA_CA_FILE": file, "ELASTICSEARCH_CA_FILE": file}
    verifier = {"VERIFIER_KAFKA_USER": "v", "VERIFIER_KAFKA_PASSWORD": "s3cr3t"}
    kafka, elasticsearch = indexer.kafka_security, indexer.elasticsearch_security
    assert kafka({}, "CONSUMER") == elasticsearch({}, "CONSUMER", "http://server:9200") == {}
    tls = kafka({**files, **verifier}, "CONSUMER")
    assert tls.pop("ssl_context").verify_mode == ssl.CERT_REQUIRED
    assert tls == {"security_protocol": "SSL"}
    login = kafka({**files, **verifier}, "VERIFIER")
    assert login.pop("ssl_context").verify_mode == ssl.CERT_REQUIRED
    assert login == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "v",
        "sasl_plain_password": "s3cr3t",
    }
    by_https = elasticsearch({**files, **USER, **KEY}, "CONSUMER", "https://server:1")
    assert by_https == {"api_key": "k3y", "ca_certs": file}
    (empty := tmp_path / "ca.pem").touch()
    with pytest.raises(indexer.SetupError, match=r"KAFKA_CA_FILE.*no certificates"):
        kafka({"KAFKA_CA_FILE": str(empty)}, "CONSUMER")
    with pytest.raises(indexer.SetupError, match=r"ELASTICSEARCH_CA_FILE.*No such file"):
        elasticsearch({"ELASTICSEARCH_CA_FILE": "absent.pem"}, "CONSUMER", "https://server:1")


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"CONSUMER_KAFKA_USER": "u"}, "CONSUMER_KAFKA_PASSWORD: set both"),
        ({"CONSUMER_KAFKA_PASSWORD": "s3cr3t"}, "CONSUMER_KAFKA_USER"),
        ({"CONSUMER_ELASTICSEARCH_PASSWORD": "s3cr3t"}, "CONSUMER_ELASTICSEARCH_USER"),
        ({"CONSUMER_ELASTICSEARCH_API_KEY": "s3cr3t é"}, "CONSUMER_ELASTICSEARCH_API_KEY"),
    ],
)
def test_an_incomplete_or_impossible_login_is_refused(environ: dict[str, str], named: str) -> None:
    with pytest.raises(indexer.SetupError, match=named) as refusal:
        indexer.parse_options([], environ)
    assert "s3cr3t" not in str(refusal.value)


def test_a_metrics_port_in_use_is_refused_by_its_number() -> None:
    indexer.serve_metrics(port := free_port())
    with pytest.raises(indexer.SetupError, match=f"--metrics-port {port}: .*choose another"):
        indexer.serve_metrics(port)
