"""The BulkWriter on real servers; the tests make its requests fail.

tests/faults/test_faults.py has more faults, with the whole consumer under load.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from elastic_transport import ConnectionTimeout
from elasticsearch import ApiError, Elasticsearch
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError

import kafka_to_elasticsearch as indexer
from pipelines.tests.waiting import wait_until
from tests.conftest import Pipeline

MAPPINGS = json.loads(indexer.MAPPING_FILE.read_text())["mappings"]
Send = Callable[[], Any]
Fault = Callable[[Send], Any]


def reading(second: int, **changes: Any) -> dict[str, Any]:
    """Return the reading of one second of a minute, with these fields changed."""
    return {
        "sensor_id": "sensor_001",
        "timestamp": f"2026-06-01T12:00:{second:02d}.000Z",
        "temperature": 21.5,
        "humidity": 48.2,
        "co2_level": 431,
        "light_intensity": 61234,
        **changes,
    }


def batch_of(*values: dict[str, Any] | bytes) -> indexer.Batch:
    """Return a batch with a message for each reading or bytes."""
    batch = indexer.Batch()
    for offset, value in enumerate(values):
        message = SimpleNamespace(
            topic="source",
            partition=3,
            offset=offset,
            key=b"k",
            value=value if isinstance(value, bytes) else json.dumps(value).encode(),
            timestamp=1234567890123,
            headers=[],
        )
        batch.add(TopicPartition("source", 3), [message])
    return batch


@pytest.fixture
def writer(pipeline: Pipeline) -> Iterator[indexer.BulkWriter]:
    """A writer on the real servers; its indices exist."""
    options = indexer.parse_options([], pipeline.environ)
    indexer.ensure_indices(pipeline.client, options)
    with closing(KafkaProducer(bootstrap_servers=pipeline.kafka)) as producer:
        yield indexer.BulkWriter(options, pipeline.client, producer)


def settle(writer: indexer.BulkWriter, batch: indexer.Batch) -> Counter[str]:
    """Settle a batch; return how many messages had which outcome, zeros left out."""
    writer.settle(batch)
    return +batch.outcome


class Faulty:
    """The writer's real client, whose first bulk requests meet the test's faults.

    Attributes:
        sizes: how many documents each bulk request had.
    """

    def __init__(self, writer: indexer.BulkWriter, *faults: Fault) -> None:
        self.real, self.faults = writer.client, list(faults)
        self.sizes: list[int] = []
        writer.client = self  # type: ignore[assignment]

    def bulk(self, **arguments: Any) -> Any:
        self.sizes.append(arguments["operations"][0].count(b"\n") // 2)
        fault = self.faults.pop(0) if self.faults else lambda send: send()
        return fault(lambda: self.real.bulk(**arguments))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def raising(error: Exception, after_sending: bool = False) -> Fault:
    """Return a fault that raises an error, before or after the request is sent."""

    def fault(send: Send) -> Any:
        if after_sending:
            send()
        raise error

    return fault


def http_error(status: int, reason: str) -> ApiError:
    """Return what the client raises when the whole request has this status."""
    return ApiError(reason, meta=SimpleNamespace(status=status), body={})  # type: ignore[arg-type]


def reasons(pipeline: Pipeline) -> list[str]:
    """Return the reasons in the dead-letter topic, in the order of the source offsets."""
    letters = [dict(letter.headers) for letter in pipeline.dead_letters()]
    return [h["reason"].decode() for h in sorted(letters, key=lambda h: h["source.offset"])]


def test_readings_are_indexed_once_and_counted_as_duplicates_when_read_again(
    pipeline: Pipeline, writer: indexer.BulkWriter
) -> None:
    assert settle(writer, batch_of(reading(1), reading(2))) == {"indexed": 2}
    again = batch_of(reading(1), reading(2, temperature=21.50), reading(3), reading(3))
    assert settle(writer, again) == {"duplicates": 3, "indexed": 1}
    assert pipeline.documents() == {
        f"sensor_001@2026-06-01T12:00:0{second}.000Z": reading(second) for second in (1, 2, 3)
    }


def test_other_values_with_the_same_id_are_a_conflict(
    pipeline: Pipeline, writer: indexer.BulkWriter
) -> None:
    settle(writer, batch_of(reading(1)))
    assert settle(writer, batch_of(reading(1, temperature=3.0))) == {"dead_lettered": 1}
    assert list(pipeline.documents().values()) == [reading(1)]
    (reason,) = reasons(pipeline)
    assert reason.startswith("conflict: ")


def test_malformed_messages_are_dead_letters_with_their_origin(
    pipeline: Pipeline, writer: indexer.BulkWriter
) -> None:
    outcome = settle(writer, batch_of(b"\xffnot json", reading(1), b""))
    assert outcome == {"indexed": 1, "dead_lettered": 2}
    first, second = sorted(pipeline.dead_letters(), key=lambda m: dict(m.headers)["source.offset"])
    assert (first.key, first.value) == (b"k", b"\xffnot json")
    assert dict(first.headers) == {
        "reason": b"invalid: JSON is malformed: invalid character (byte 0)",
        "source.topic": b"source",
        "source.partition": b"3",
        "source.offset": b"0",
        "source.timestamp": b"1234567890123",
    }
    assert dict(second.headers)["reason"] == b"invalid: empty message"


def test_a_document_that_is_refused_alone_is_a_dead_letter_and_a_warning(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    batch = batch_of(reading(1), reading(2), reading(3))
    hot = json.dumps(reading(2, temperature="hot")).encode()  # the validator would refuse it
    batch.documents[1].source = hot
    assert settle(writer, batch) == {"indexed": 2, "dead_lettered": 1}
    (reason,) = reasons(pipeline)
    assert reason.startswith("refused: 400 document_parsing_exception")
    (warning,) = [record for record in caplog.records if record.name == indexer.log.name]
    assert (warning.levelname, reason in warning.getMessage()) == ("WARNING", True)


@pytest.mark.parametrize(
    "error",
    [ConnectionTimeout("too slow"), http_error(503, "no master")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("after_sending", [False, True], ids=["before", "after"])
def test_a_request_that_fails_is_sent_again(
    writer: indexer.BulkWriter,
    error: Exception,
    after_sending: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Faulty(writer, raising(error, after_sending))
    outcome = settle(writer, batch_of(reading(1), reading(2)))
    assert outcome == {"duplicates" if after_sending else "indexed": 2}
    assert client.sizes == [2, 2]
    assert "Elasticsearch: 2 messages wait" in caplog.text


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, "es_rejected_execution_exception"), (400, "index_closed_exception")],
)
def test_only_the_documents_that_were_not_stored_are_sent_again(
    writer: indexer.BulkWriter, status: int, kind: str
) -> None:
    def one_not_stored(send: Send) -> Any:
        answer = send()
        answer["items"][1]["create"] = {"status": status, "error": {"type": kind}}
        return answer

    client = Faulty(writer, one_not_stored)
    outcome = settle(writer, batch_of(reading(1), reading(2), reading(3)))
    assert client.sizes == [3, 1]
    assert outcome == {"indexed": 2, "duplicates": 1}


def test_a_bulk_that_is_too_large_is_split(pipeline: Pipeline, writer: indexer.BulkWriter) -> None:
    def passed(send: Send) -> Any:
        return send()

    refused = raising(http_error(413, "too large"))
    client = Faulty(writer, *[refused] * 3, passed, passed, refused, passed, refused)
    outcome = settle(writer, batch_of(*(reading(n) for n in range(4))))
    # What is refused alone is sent again beside a control; the last request is for the other index.
    assert client.sizes == [4, 2, 1, 1, 2, 2, 1, 1, 1]
    assert outcome == {"indexed": 3, "dead_lettered": 1}
    (reason,) = reasons(pipeline)
    assert "413" in reason


def test_what_is_refused_while_a_setting_changes_is_no_dead_letter(
    pipeline: Pipeline, writer: indexer.BulkWriter
) -> None:
    """Elasticsearch then takes some documents of a bulk, and refuses the others."""
    index, settings = writer.options.index, pipeline.client.indices.put_settings

    def half_of_it(send: Send) -> Any:
        answer = send()
        settings(index=index, settings={"index.default_pipeline": "nope"})
        refused = pipeline.client.bulk(index=index, operations=[{"create": {}}, {"humidity": 1}])
        answer["items"][1]["create"] = refused["items"][0]["create"]
        return answer

    def repaired(send: Send) -> Any:
        answer = send()
        settings(index=index, settings={"index.default_pipeline": None})
        return answer

    client = Faulty(writer, half_of_it, repaired)
    outcome = settle(writer, batch_of(reading(1), reading(2), reading(3)))
    assert client.sizes == [3, 2, 1]  # the second one with one that was taken, as a control
    assert outcome == {"indexed": 2, "duplicates": 1}
    assert not pipeline.dead_letters()


# When every document is refused, the index is wrong: the readings wait until it is repaired.


class WrongIndex(NamedTuple):
    """What makes the index refuse every document, and what is then logged (a pattern)."""

    act: Callable[[Elasticsearch, str], object]
    logged: str


def alias_instead(**is_write_index: bool | None) -> Callable[[Elasticsearch, str], object]:
    """Return a function that replaces an index by an alias of indices with these suffixes."""

    def act(client: Elasticsearch, index: str) -> None:
        client.indices.delete(index=index)
        for suffix, is_write in is_write_index.items():
            alias = {} if is_write is None else {"is_write_index": is_write}
            client.indices.create(
                index=f"{index}-{suffix}", mappings=MAPPINGS, aliases={index: alias}
            )

    return act


def other_mapping(client: Elasticsearch, index: str) -> None:
    """Replace an index by one whose mapping fits no reading."""
    client.indices.delete(index=index)
    client.indices.create(index=index, mappings={"properties": {"humidity": {"type": "boolean"}}})


def delete_all(client: Elasticsearch, index: str) -> None:
    """Delete an index and those behind its alias, in one request.

    One by one, an alias of two indices would stand for the other one alone for a moment.
    """
    client.indices.delete(index=list(client.indices.get(index=f"{index}*")))


WRONG_INDICES = {
    "an alias of two indices without a write index": WrongIndex(
        alias_instead(a=None, b=None), "no write index is defined for alias"
    ),
    "another mapping": WrongIndex(other_mapping, "document_parsing_exception"),
    "a pipeline that may change readings": WrongIndex(
        lambda client, index: client.indices.put_settings(
            index=index, settings={"index.final_pipeline": "enrich"}
        ),
        "final_pipeline enrich may change or drop readings",
    ),
}


def settle_after_repair(
    writer: indexer.BulkWriter,
    batch: indexer.Batch,
    logged: str,
    repair: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
) -> Counter[str]:
    """Settle a batch; repair the index once the log shows why it waits; return the outcome."""
    worker = threading.Thread(target=settle, args=(writer, batch))
    worker.start()
    try:
        waits = rf"Elasticsearch: \d messages wait \(.*({logged})"
        wait_until(lambda: re.search(waits, caplog.text), logged, timeout_s=30)
        assert worker.is_alive()
        repair()
        worker.join(timeout=60)
        assert not worker.is_alive(), caplog.text
    finally:
        writer.stopping.set()
        worker.join()
    return +batch.outcome


@pytest.mark.parametrize("wrong", WRONG_INDICES.values(), ids=WRONG_INDICES)
def test_a_batch_waits_and_logs_why_while_the_index_refuses_every_document(
    pipeline: Pipeline,
    writer: indexer.BulkWriter,
    wrong: WrongIndex,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong.act(pipeline.client, pipeline.index)

    def repair() -> None:
        delete_all(pipeline.client, pipeline.index)

    batch = batch_of(reading(1), reading(2))
    assert settle_after_repair(writer, batch, wrong.logged, repair, caplog) == {"indexed": 2}
    assert len(pipeline.documents()) == 2


def test_a_batch_waits_and_logs_why_while_existing_documents_cannot_be_read(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """An alias of two indices stores new documents, but it cannot look up an id."""
    alias_instead(a=False, b=True)(pipeline.client, pipeline.index)
    assert settle(writer, batch_of(reading(1))) == {"indexed": 1}

    def repair() -> None:
        pipeline.client.indices.delete_alias(index=f"{pipeline.index}-a", name=pipeline.index)

    logged = "more than one index associated|stands for several indices"
    batch = batch_of(reading(1), reading(2))
    outcome = settle_after_repair(writer, batch, logged, repair, caplog)
    assert outcome == {"duplicates": 1, "indexed": 1}
    delete_all(pipeline.client, pipeline.index)


def test_an_alias_of_one_index_works_like_the_index(
    pipeline: Pipeline, writer: indexer.BulkWriter
) -> None:
    alias_instead(a=None)(pipeline.client, pipeline.index)
    assert settle(writer, batch_of(reading(1))) == {"indexed": 1}
    assert settle(writer, batch_of(reading(1), reading(2))) == {"duplicates": 1, "indexed": 1}
    delete_all(pipeline.client, pipeline.index)


def test_a_batch_is_settled_though_the_dead_letter_index_refuses_it(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """The dead letter is safe in its topic; the index is only for Kibana."""
    missing = {"index.default_pipeline": "nope"}
    pipeline.client.indices.put_settings(index=pipeline.dead_letter_index, settings=missing)
    assert settle(writer, batch_of(b"bad", reading(1))) == {"indexed": 1, "dead_lettered": 1}
    assert "dead-letter index: 1 refused (400 illegal_argument_exception" in caplog.text
    assert len(pipeline.dead_letters()) == 1


# Dead letters


class Unacknowledged:
    """A future whose message is never acknowledged."""

    def get(self, timeout: float) -> None:
        raise KafkaTimeoutError("not in time")


def test_only_dead_letters_without_acknowledgement_are_sent_again(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """The producer first takes no more messages; then it takes one and fails."""
    real, faults = writer.producer, ["", "full", "", "fails"]

    def send(*arguments: Any, **named: Any) -> Any:
        fault = faults.pop(0) if faults else ""
        if fault == "full":
            raise KafkaTimeoutError("full")
        return Unacknowledged() if fault == "fails" else real.send(*arguments, **named)

    writer.producer = SimpleNamespace(send=send)
    values = [b"bad 1", b"bad 2", b"bad 3"]
    assert settle(writer, batch_of(*values)) == {"dead_lettered": 3}
    assert [letter.value for letter in pipeline.dead_letters()] == values
    assert "dead-letter topic: 2 messages wait (KafkaTimeoutError: full)" in caplog.text
    assert "dead-letter topic: 1 messages wait (KafkaTimeoutError: not in time)" in caplog.text
