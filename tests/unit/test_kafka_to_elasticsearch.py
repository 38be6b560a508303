"""The consumer without its servers: what is a reading, the order of commits, options, secrets."""

import json
import logging
import math
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
from elasticsearch import ApiError
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


# A message is a reading, or a dead letter. tests/faults/test_bad_input.py tries many more.


def encoded(**changes: Any) -> bytes:
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
def test_a_reading_is_taken_its_time_in_utc(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    reading = indexer.parse_reading(encoded(**changes))
    assert msgspec.structs.asdict(reading) == {**GOOD, **expected}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty message"),
        (encoded() + b"{}", "JSON is malformed: trailing characters"),
        (b"{}", "missing required field `sensor_id`"),
        (encoded(battery=3), "unknown field `battery`"),
        (encoded().replace(b'"humidity"', b'"co2_level": 431, "humidity"'), "given twice"),
        (encoded(sensor_id="x" * 129), "sensor_id is not 1 to 128 letters, digits"),
        (encoded(sensor_id="sensor_001\n"), "sensor_id is not 1 to 128 letters, digits"),
        (encoded(temperature=60.1), "Expected `float` <= 60.0 - at `$.temperature`"),
        (encoded(temperature=math.nan), "JSON is malformed"),
        (encoded(co2_level=431.0), "Expected `int`, got `float` - at `$.co2_level`"),
        (encoded(timestamp="2026-06-01T12:00:00"), "not an ISO 8601 time with its offset"),
        (encoded(timestamp="2026-02-30T12:00:00Z"), "day is out of range"),
        (encoded(timestamp="0001-01-01T00:00:00+01:00"), "timestamp: "),
        (encoded(timestamp="2026-06-01T12:00:00Z\n"), "not an ISO 8601 time with its offset"),
    ],
)
def test_anything_else_is_refused_with_its_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        indexer.parse_reading(value)


def message(offset: int, value: bytes | None = None, partition: int = 0) -> Any:
    """Return a message as kafka-python gives it."""
    where = {"topic": "t", "partition": partition, "offset": offset, "timestamp": 1_780_315_200_000}
    return SimpleNamespace(**where, key=b"sensor_001", value=encoded() if value is None else value)


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
    monkeypatch.setattr(indexer, "BULK_READINGS", 2)
    batch = indexer.Batch()
    batch.add(FIRST, [message(1)])
    assert not batch.is_full
    batch.add(FIRST, [message(2, b"bad")])
    assert batch.is_full
    large = indexer.Batch()
    large.add(FIRST, [message(1, b"x" * indexer.BULK_BYTES)])  # malformed ones fill memory too
    assert large.is_full


def test_a_reason_is_one_short_line_whatever_the_message_holds() -> None:
    batch = indexer.Batch()
    batch.add(FIRST, [message(1, encoded(**{"evil\n\x1b[2Jname": 1}))])
    batch.add(FIRST, [message(2, encoded(**{"x" * 100_000: 1}))])
    (_, first), (_, second) = batch.dead_letters
    assert first == "invalid: Object contains unknown field `evil [2Jname`"
    assert len(second) < 320


def test_an_error_that_cannot_be_printed_has_its_name_at_least() -> None:
    meta: Any = SimpleNamespace(status=503)
    error = ApiError("no", meta=meta, body={"error": {"root_cause": ["x"]}})
    assert indexer.one_line(error) == "ApiError"


# A batch goes to Elasticsearch. tests/integration/test_bulk_writer.py tries it on the real one.


def writer_with(**client: Any) -> indexer.BulkWriter:
    return indexer.BulkWriter(indexer.parse_options([], {}), Mock(**client), Mock())


CREATED, EXISTS = {"create": {"status": 201}}, {"create": {"status": 409}}
ODD = [
    {},
    "<html>",
    {"items": []},
    {"items": [{"index": {"status": 201}}]},
    {"items": [CREATED] * 2},
]
ODD_STORED = [{}, "<html>", {"docs": []}, {"docs": [{}]}, {"docs": [7]}]


@pytest.mark.parametrize(
    ("answer", "stored"),
    [*((odd, None) for odd in ODD), *(({"items": [EXISTS]}, odd) for odd in ODD_STORED)],
)
def test_an_odd_answer_settles_nothing(answer: Any, stored: Any) -> None:
    writer = writer_with(**{"bulk.return_value": answer, "mget.return_value": stored})
    batch = indexer.Batch()
    batch.add(FIRST, [message(0)])
    ((document, _),) = writer.index_readings(batch, batch.documents)
    assert document is batch.documents[0]
    assert not +batch.outcome
    assert not batch.dead_letters


def test_waits_grow_up_to_a_limit_and_are_said(caplog: pytest.LogCaptureFixture) -> None:
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


# The loop: read, hand over, commit.


class FakeWriter:
    """Settles batches at once, except those that a test holds back, by their first offset."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.settled: set[tuple[int, int]] = set()  # partition and offset
        self.held: dict[int, threading.Event] = {}
        self.pause_s: Callable[[], float] = lambda: 0.0

    def hold(self, offset: int) -> threading.Event:
        """Return what is to be set so that the batch that begins here is settled."""
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
    """A consumer and the Kafka behind it: two partitions, what was committed, what goes wrong.

    It accepts no commit over a message that the writer has not settled. Time passes in polls only.
    """

    def __init__(self, writer: FakeWriter) -> None:
        self.writer = writer
        self.now = 0.0
        self.logs: dict[TopicPartition, list[Any]] = {FIRST: [], SECOND: []}
        self.commits: list[dict[int, int]] = []
        self.committed: dict[TopicPartition, int] = {}
        self.asked: list[int] = []  # how many messages each poll could bring
        self.faults: list[Exception] = []  # of the next polls
        self.refuses_commits = False
        self.numbers = {0, 1}  # of the topic's partitions
        self.joined = 0
        self.before_poll: Callable[[], object] = lambda: None
        self.listener: Any = Mock()
        self.positions: dict[TopicPartition, int] = {}
        self.rebalance(FIRST, SECOND)

    def add(self, *offsets: int, partition: TopicPartition = FIRST, value: Any = None) -> None:
        """Put messages into the topic."""
        self.logs[partition] += [message(n, value, partition.partition) for n in offsets]

    def rebalance(self, *owned: TopicPartition) -> None:
        """Deal out the partitions anew: they are read on from what was committed, not paused."""
        self.listener.on_partitions_revoked(set(self.positions))
        self.positions = {p: self.committed.get(p, 0) for p in owned}
        self.paused: set[TopicPartition] = set()
        self.listener.on_partitions_assigned(list(owned))

    # What kafka-python's consumer does.

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
        assert partition in self.positions  # so does kafka-python
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
            raise errors.RebalanceInProgressError
        for partition, (offset, *_) in offsets.items():
            before = {(partition.partition, m.offset) for m in self.logs[partition]}
            unsettled = {where for where in before - self.writer.settled if where[1] < offset}
            assert not unsettled, "committed before they are settled"
            self.committed[partition] = offset
        self.commits.append({p.partition: offset for p, (offset, *_) in offsets.items()})


class Loop:
    """A pipeline, the fakes around it, and the two halves of a turn."""

    def __init__(self, consumer: FakeConsumer, *argv: str) -> None:
        self.consumer, self.writer = consumer, consumer.writer
        kafka: Any = consumer
        writer: Any = consumer.writer
        self.pipeline = indexer.Pipeline(indexer.parse_options(argv, {}), kafka, writer)
        consumer.listener = self.pipeline
        self.pipeline.on_partitions_assigned(list(consumer.positions))

    def submit(self) -> Future[None]:
        """Read what has come and hand it to a worker; return what is done when it is settled."""
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
    loop.writer.stopping.set()  # what a failed test still holds
    loop.pipeline.workers.shutdown()


def test_a_later_batch_that_is_settled_first_waits(loop: Loop) -> None:
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


def test_a_refused_commit_goes_with_the_next(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
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


def test_what_a_rebalance_has_taken_is_not_committed_late(loop: Loop) -> None:
    """It would take the group back behind what another consumer has committed meanwhile."""
    loop.consumer.add(4, 5)
    settled = loop.submit()
    loop.consumer.rebalance(SECOND)
    loop.consumer.committed[FIRST] = 6  # by the other one
    loop.consumer.rebalance(FIRST, SECOND)
    settled.result()
    assert loop.commit()
    assert loop.consumer.commits == []


def test_while_too_much_is_in_flight_only_what_a_rebalance_brings_is_read(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll that ends a rebalance may bring a message: it must not be lost."""
    monkeypatch.setattr(indexer, "BULK_READINGS", 1)
    loop.consumer.rebalance(FIRST)
    loop.consumer.add(*range(10))
    loop.consumer.add(0, 1, partition=SECOND)
    release = loop.writer.hold(0)
    last = [loop.submit() for _ in range(indexer.BULKS_IN_FLIGHT)][-1]
    assert loop.pipeline.poll()  # one batch is read ahead
    before, polls = loop.pipeline.unsettled(), len(loop.consumer.asked)
    loop.pipeline.poll()
    assert loop.pipeline.unsettled() == before
    assert len(loop.consumer.asked) > polls  # else Kafka would take us for dead
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


def test_no_more_large_messages_are_asked_for_than_a_batch_may_hold(loop: Loop) -> None:
    loop.consumer.add(*range(100), value=b"x" * (indexer.BULK_BYTES // 5))
    for _ in range(3):
        loop.submit().result()
    assert loop.consumer.asked[0] <= 10  # nothing is known of them yet
    assert loop.consumer.asked[1:] == [5, 5]


def test_what_retention_deleted_is_counted_and_the_rest_is_read(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.consumer.add(50, 51)
    loop.consumer.positions[FIRST] = 99  # of which the library reads nothing
    loop.consumer.faults.append(errors.OffsetOutOfRangeError({FIRST: 3}))
    assert not loop.pipeline.poll()
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert re.search("partition 0: .* 47 messages were deleted", said)
    loop.submit().result()
    assert loop.commit()
    assert loop.consumer.commits == [{0: 52}]


def test_what_was_never_committed_is_read_from_the_earliest_message_on(loop: Loop) -> None:
    loop.consumer.add(7, 8)
    loop.consumer.positions[FIRST] = 9
    loop.consumer.faults.append(errors.NoOffsetForPartitionError({FIRST}))
    loop.pipeline.poll()
    assert loop.pipeline.poll()
    assert loop.pipeline.batch.messages == 2


def test_kafka_s_absence_is_said_once_in_a_while_and_ends_nothing(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.consumer.add(0)
    loop.consumer.faults += [errors.KafkaConnectionError("away")] * 3
    assert [loop.pipeline.poll() for _ in range(4)] == [False, False, False, True]
    assert caplog.text.count("away") == 1


@pytest.mark.parametrize("error", indexer.FATAL_KAFKA_ERRORS)
def test_what_no_waiting_mends_ends_it(loop: Loop, error: type[errors.KafkaError]) -> None:
    loop.consumer.faults.append(error())
    with pytest.raises(error):
        loop.pipeline.run(threading.Event())


def test_it_ends_when_idle_and_only_when_all_is_read(consumer: FakeConsumer) -> None:
    consumer.add(*range(3))
    consumer.faults += [errors.KafkaConnectionError("away")] * 10
    loop = Loop(consumer, "--exit-when-idle", "5")
    loop.pipeline.run(threading.Event())
    assert loop.pipeline.finish()
    assert consumer.commits[-1] == {0: 3}


def test_to_have_no_partition_is_no_idleness_and_is_said(
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


def test_it_joins_anew_when_partitions_were_added(loop: Loop) -> None:
    """And not when Kafka does not say which there are."""
    joined = []
    for count in (2, 0, 2, 3, 3):
        loop.consumer.numbers = set(range(count))
        loop.consumer.now += 60
        loop.pipeline.report()
        joined.append(loop.consumer.joined)
    assert joined == [0, 0, 0, 1, 1]


def test_the_accounts_and_the_lag_are_said_or_that_kafka_does_not_say_it(
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
    away = Mock(side_effect=errors.KafkaTimeoutError("away"))
    monkeypatch.setattr(loop.consumer, "end_offsets", away)
    loop.consumer.now += 60
    loop.pipeline.report()
    assert "lag=unknown" in caplog.text
    assert "the lag is not known (KafkaTimeoutError: away)" in caplog.text


def test_finish_commits_what_is_settled_and_says_what_is_not(
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


def test_finish_says_what_is_settled_and_not_committed(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.consumer.add(4)
    loop.submit()
    loop.consumer.refuses_commits = True
    assert not loop.pipeline.finish()
    assert "settled but not committed" in caplog.text


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_every_message_is_settled_and_none_is_committed_before(
    seed: int, consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebalances, refused commits, errors and late answers at random; then it is started again."""
    rng, stop = random.Random(seed), threading.Event()
    monkeypatch.setattr(indexer, "BULK_READINGS", 5)
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


# Options, and what they must not show.


def test_a_flag_wins_over_the_environment_over_the_default() -> None:
    environ = {"ELASTICSEARCH_INDEX": "from-environment", "KAFKA_TOPIC": ""}
    options = indexer.parse_options([], environ)
    assert (options.index, options.topic) == ("from-environment", "smart-city-sensors")
    assert indexer.parse_options(["--index", "from-flag"], environ).index == "from-flag"


WRONG = {
    "--bootstrap-servers": ["localhost", "localhost:", "localhost:kafka", "a:1,b", "a:65536"],
    "--topic": ["a/b", ".", "..", "é", "a" * 250],
    "--group-id": [],
    "--elasticsearch-url": ["localhost:9200", "http://localhost", "ftp://localhost:9200"],
    "--index": ["*", "a,b", "Sensors", "_all", ".kibana", "a b", 'a"', "sensors_dead_letters"],
    "--dead-letter-index": ["*", "Dead", "sensors_data"],
    "--exit-when-idle": ["-1", "soon", "nan"],
    "--wait": ["-1", "nan", "soon"],
    "--metrics-port": ["0", "70000", "http"],
}
BLANK = ["", " ", "\t\n", "\u00a0"]
WRONG_OPTIONS = [(flag, value) for flag in WRONG for value in [*WRONG[flag], *BLANK]]


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str], **environ: str) -> str:
    """Return the one line, after the usage, by which options are refused with exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        indexer.parse_options(argv, environ)
    assert exit_.value.code == 2
    usage, _, line = capsys.readouterr().err.rpartition(": error: ")
    assert usage.startswith("usage: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("flag", "value"), [*WRONG_OPTIONS, ("--unknown", "x"), ("--index-by", "day")]
)
def test_a_wrong_or_blank_value_is_refused(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flag in refusal(capsys, [flag, value])


@pytest.mark.parametrize("value", BLANK[1:])  # an empty variable is one that is not set
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
    flag: str, variable: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flag in refusal(capsys, [], **{variable: value})


def test_dead_letters_have_an_index_of_their_own_or_none() -> None:
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
def test_a_password_leaves_this_machine_by_https_only(url: str, environ: dict[str, str]) -> None:
    with pytest.raises(indexer.SetupError, match=r"ELASTICSEARCH_URL: .*https") as refusal:
        indexer.parse_options(["--elasticsearch-url", url], environ)
    assert "s3cr3t" not in str(refusal.value)
    assert "k3y" not in str(refusal.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_password_may_go_to_this_machine_as_it_is(host: str) -> None:
    options = indexer.parse_options(["--elasticsearch-url", f"http://a:b@{host}:9200"], {})
    assert options.elasticsearch_url == f"http://a:b@{host}:9200"
    security = indexer.elasticsearch_security(USER, "CONSUMER", f"http://{host}:9200")
    assert security == {"basic_auth": ("indexer", "s3cr3t")}


def test_the_options_of_each_server_s_client(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"CONSUMER_KAFKA_USER": "u"}, "CONSUMER_KAFKA_PASSWORD: set both"),
        ({"CONSUMER_KAFKA_PASSWORD": "s3cr3t"}, "CONSUMER_KAFKA_USER"),
        ({"CONSUMER_ELASTICSEARCH_PASSWORD": "s3cr3t"}, "CONSUMER_ELASTICSEARCH_USER"),
        ({"CONSUMER_ELASTICSEARCH_API_KEY": "s3cr3t é"}, "CONSUMER_ELASTICSEARCH_API_KEY"),
    ],
)
def test_half_a_login_or_an_impossible_one_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(indexer.SetupError, match=said) as refusal:
        indexer.parse_options([], environ)
    assert "s3cr3t" not in str(refusal.value)


def test_a_port_that_is_taken_is_said() -> None:
    indexer.serve_metrics(port := free_port())
    with pytest.raises(indexer.SetupError, match=f"--metrics-port {port}: .*choose another"):
        indexer.serve_metrics(port)
