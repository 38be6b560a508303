"""What becomes of a batch, on the real servers; failures are put in front of them."""

import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, SerializationError
from elasticsearch import ApiError, Elasticsearch
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError

import kafka_to_elasticsearch as indexer
from tests.conftest import Pipeline, wait_until

MAPPINGS = json.loads(indexer.MAPPING_FILE.read_text())["mappings"]
Send = Callable[[], Any]
Fault = Callable[[Send], Any]


def reading(second: int, **changes: Any) -> dict[str, Any]:
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
    batch = indexer.Batch()
    for offset, value in enumerate(values):
        message = SimpleNamespace(
            topic="source",
            partition=3,
            offset=offset,
            key=b"k",
            value=value if isinstance(value, bytes) else json.dumps(value).encode(),
            timestamp=1234567890123,
        )
        batch.add(TopicPartition("source", 3), [message])
    return batch


@pytest.fixture
def writer(pipeline: Pipeline) -> Iterator[indexer.BulkWriter]:
    options = indexer.parse_options([], pipeline.environ)
    indexer.ensure_indices(pipeline.client, options)
    with closing(KafkaProducer(bootstrap_servers=pipeline.kafka)) as producer:
        yield indexer.BulkWriter(options, pipeline.client, producer)


def settle(writer: indexer.BulkWriter, batch: indexer.Batch) -> Counter[str]:
    """Settle a batch; return how many messages had which outcome, without the zeros."""
    writer.settle(batch)
    return +batch.outcome


class Faulty:
    """The real client; its first bulks go wrong as the test says."""

    def __init__(self, writer: indexer.BulkWriter, *faults: Fault) -> None:
        self.real, self.faults = writer.client, list(faults)
        self.sizes: list[int] = []  # how many documents each bulk had
        writer.client = self  # type: ignore[assignment]

    def bulk(self, **arguments: Any) -> Any:
        self.sizes.append(arguments["operations"][0].count(b"\n") // 2)
        fault = self.faults.pop(0) if self.faults else lambda send: send()
        return fault(lambda: self.real.bulk(**arguments))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def raising(error: Exception, after_sending: bool = False) -> Fault:
    def fault(send: Send) -> Any:
        if after_sending:
            send()
        raise error

    return fault


def http_error(status: int, reason: str) -> ApiError:
    return ApiError(reason, meta=SimpleNamespace(status=status), body={})  # type: ignore[arg-type]


def reasons(pipeline: Pipeline) -> list[str]:
    """Return why messages are in the dead-letter topic, by their offsets."""
    letters = [dict(letter.headers) for letter in pipeline.dead_letters()]
    return [h["reason"].decode() for h in sorted(letters, key=lambda h: h["source.offset"])]


def test_new_readings_are_indexed(pipeline: Pipeline, writer: indexer.BulkWriter) -> None:
    assert settle(writer, batch_of(reading(1), reading(2))) == {"indexed": 2}
    assert pipeline.documents() == {
        "sensor_001@2026-06-01T12:00:01.000Z": reading(1),
        "sensor_001@2026-06-01T12:00:02.000Z": reading(2),
    }


def test_what_is_read_again_changes_nothing(pipeline: Pipeline, writer: indexer.BulkWriter) -> None:
    settle(writer, batch_of(reading(1), reading(2)))
    again = batch_of(reading(1), reading(2, temperature=21.50), reading(3), reading(3))
    assert settle(writer, again) == {"duplicates": 3, "indexed": 1}
    assert len(pipeline.documents()) == 3


def test_other_values_under_the_same_id_are_a_conflict(
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
    shown = pipeline.documents(pipeline.dead_letter_index)
    assert len(shown) == 2
    assert shown["source/3/0@1234567890123"]["message"] == "\\xffnot json"


def test_what_is_refused_while_others_are_taken_is_a_dead_letter_and_a_warning(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    batch = batch_of(reading(1), reading(2), reading(3))
    hot = json.dumps(reading(2, temperature="hot")).encode()  # past the validator
    batch.documents[1].source = hot
    assert settle(writer, batch) == {"indexed": 2, "dead_lettered": 1}
    (reason,) = reasons(pipeline)
    assert reason.startswith("refused: 400 document_parsing_exception")
    (warning,) = [record for record in caplog.records if record.name == indexer.log.name]
    assert (warning.levelname, reason in warning.getMessage()) == ("WARNING", True)


@pytest.mark.parametrize(
    "error",
    [
        NoConnection("refused"),
        ConnectionTimeout("too slow"),
        SerializationError("cut in the middle"),
        http_error(429, "too many requests"),
        http_error(503, "no master"),
        http_error(401, "who are you"),
    ],
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
    [(429, "es_rejected_execution_exception"), (400, "index_closed_exception"), (503, "none")],
)
def test_only_the_readings_that_were_not_taken_are_sent_again(
    writer: indexer.BulkWriter, status: int, kind: str
) -> None:
    def one_not_taken(send: Send) -> Any:
        answer = send()
        answer["items"][1]["create"] = {"status": status, "error": {"type": kind}}
        return answer

    client = Faulty(writer, one_not_taken)
    outcome = settle(writer, batch_of(reading(1), reading(2), reading(3)))
    assert client.sizes == [3, 1]
    assert outcome == {"indexed": 2, "duplicates": 1}


def test_an_answer_for_fewer_readings_is_no_answer(writer: indexer.BulkWriter) -> None:
    client = Faulty(writer, lambda send: {"items": send()["items"][:1]})
    assert settle(writer, batch_of(reading(1), reading(2))) == {"duplicates": 2}
    assert client.sizes == [2, 2]


def test_a_bulk_that_is_too_large_is_split(pipeline: Pipeline, writer: indexer.BulkWriter) -> None:
    client = Faulty(writer, *[raising(http_error(413, "too large"))] * 3)
    outcome = settle(writer, batch_of(*(reading(n) for n in range(4))))
    assert client.sizes == [4, 2, 1, 1, 2, 1]  # the last one indexes the dead letter
    assert outcome == {"indexed": 3, "dead_lettered": 1}
    (reason,) = reasons(pipeline)
    assert "413" in reason


# When a whole bulk is refused, the index is at fault: the readings wait until it is mended.


class Wrong(NamedTuple):
    """What makes the index refuse all, what is then said, and what mends it."""

    act: Callable[[Elasticsearch, str], object]
    said: str
    mend: Callable[[Elasticsearch, str], object]


def settings(name: str, value: Any) -> Callable[[Elasticsearch, str], object]:
    return lambda client, index: client.indices.put_settings(index=index, settings={name: value})


def alias_instead(**is_write_index: bool | None) -> Callable[[Elasticsearch, str], object]:
    """Put an alias in an index's place; it stands for these indices."""

    def act(client: Elasticsearch, index: str) -> None:
        client.indices.delete(index=index)
        for suffix, is_write in is_write_index.items():
            alias = {} if is_write is None else {"is_write_index": is_write}
            client.indices.create(
                index=f"{index}-{suffix}", mappings=MAPPINGS, aliases={index: alias}
            )

    return act


def other_mapping(client: Elasticsearch, index: str) -> None:
    client.indices.delete(index=index)
    client.indices.create(index=index, mappings={"properties": {"humidity": {"type": "boolean"}}})


def delete_all(client: Elasticsearch, index: str) -> None:
    names = list(client.indices.get(index=f"{index}*"))
    client.indices.delete(index=names)  # at once: of an alias of two, none may be left alone


WRONG = {
    "closed": Wrong(
        lambda client, index: client.indices.close(index=index),
        "index_closed_exception",
        lambda client, index: client.indices.open(index=index),
    ),
    "read-only": Wrong(
        settings("index.blocks.read_only_allow_delete", True),
        "cluster_block_exception",
        settings("index.blocks.read_only_allow_delete", None),
    ),
    "a pipeline that does not exist": Wrong(
        settings("index.default_pipeline", "nope"),
        r"pipeline with id \[nope\] does not exist",
        settings("index.default_pipeline", None),
    ),
    "an alias of one index, which is not for writing": Wrong(
        alias_instead(a=False), "no write index is defined for alias", delete_all
    ),
    "an alias of two indices, none for writing": Wrong(
        alias_instead(a=None, b=None), "no write index is defined for alias", delete_all
    ),
    "another mapping": Wrong(other_mapping, "document_parsing_exception", delete_all),
}


def settle_mended(
    writer: indexer.BulkWriter,
    batch: indexer.Batch,
    said: str,
    mend: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
) -> Counter[str]:
    """Settle a batch that waits, saying why, until the index is mended; return its outcome."""
    worker = threading.Thread(target=settle, args=(writer, batch))
    worker.start()
    try:
        waits = rf"Elasticsearch: \d messages wait \(.*({said})"
        wait_until(lambda: re.search(waits, caplog.text), said, timeout_s=30)
        assert worker.is_alive()
        mend()
        worker.join(timeout=60)
        assert not worker.is_alive(), caplog.text
    finally:
        writer.stopping.set()
        worker.join()
    return +batch.outcome


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_refused_as_a_whole_waits_and_is_said(
    pipeline: Pipeline,
    writer: indexer.BulkWriter,
    wrong: Wrong,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong.act(pipeline.client, pipeline.index)

    def mend() -> None:
        wrong.mend(pipeline.client, pipeline.index)

    batch = batch_of(reading(1), reading(2))
    assert settle_mended(writer, batch, wrong.said, mend, caplog) == {"indexed": 2}
    assert len(pipeline.documents()) == 2


def test_documents_that_cannot_be_looked_up_wait_and_the_reason_is_said(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """An alias of two indices takes new documents; which of the two has an id it cannot say."""
    alias_instead(a=False, b=True)(pipeline.client, pipeline.index)
    assert settle(writer, batch_of(reading(1))) == {"indexed": 1}

    def mend() -> None:
        pipeline.client.indices.delete_alias(index=f"{pipeline.index}-a", name=pipeline.index)

    said = "more than one index associated|stands for several indices"
    batch = batch_of(reading(1), reading(2))
    outcome = settle_mended(writer, batch, said, mend, caplog)
    assert outcome == {"duplicates": 1, "indexed": 1}
    delete_all(pipeline.client, pipeline.index)


def test_an_alias_of_one_index_is_as_good_as_the_index(
    pipeline: Pipeline, writer: indexer.BulkWriter
) -> None:
    alias_instead(a=None)(pipeline.client, pipeline.index)
    assert settle(writer, batch_of(reading(1))) == {"indexed": 1}
    assert settle(writer, batch_of(reading(1), reading(2))) == {"duplicates": 1, "indexed": 1}
    delete_all(pipeline.client, pipeline.index)


def test_an_index_deleted_in_mid_run_is_made_anew_with_its_mapping(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever another's template says."""
    caplog.set_level(logging.INFO)
    templates = pipeline.client.indices
    templates.put_index_template(
        name=f"other-{pipeline.index}",
        index_patterns=[f"{pipeline.index}*"],
        priority=500,
        template={"mappings": {"properties": {"humidity": {"type": "keyword"}}}},
    )
    pipeline.client.indices.delete(index=pipeline.index)
    try:
        assert settle(writer, batch_of(reading(1))) == {"indexed": 1}
    finally:
        templates.delete_index_template(name=f"other-{pipeline.index}")
    assert f"index {pipeline.index} was not there: made" in caplog.text
    found = pipeline.client.indices.get_mapping(index=pipeline.index)
    assert found[pipeline.index]["mappings"] == MAPPINGS


def test_what_the_dead_letter_index_refuses_is_said_and_holds_nothing_up(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """The topic has it: that is what counts."""
    settings("index.default_pipeline", "nope")(pipeline.client, pipeline.dead_letter_index)
    assert settle(writer, batch_of(b"bad", reading(1))) == {"indexed": 1, "dead_lettered": 1}
    assert "dead-letter index: 1 refused (400 illegal_argument_exception" in caplog.text
    assert len(pipeline.dead_letters()) == 1


# Dead letters


class Unacknowledged:
    def get(self, timeout: float) -> None:
        raise KafkaTimeoutError("not in time")


def test_only_dead_letters_that_are_not_acknowledged_are_sent_again(
    pipeline: Pipeline, writer: indexer.BulkWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """A producer that takes no more, then one that takes and fails."""
    real, faults = writer.producer, ["", "takes no more", "", "fails"]

    def send(*arguments: Any, **named: Any) -> Any:
        fault = faults.pop(0) if faults else ""
        if fault == "takes no more":
            raise KafkaTimeoutError("full")
        return Unacknowledged() if fault == "fails" else real.send(*arguments, **named)

    writer.producer = SimpleNamespace(send=send)
    values = [b"bad 1", b"bad 2", b"bad 3"]
    assert settle(writer, batch_of(*values)) == {"dead_lettered": 3}
    assert [letter.value for letter in pipeline.dead_letters()] == values
    assert "dead-letter topic: 2 messages wait (KafkaTimeoutError: full)" in caplog.text
    assert "dead-letter topic: 1 messages wait (KafkaTimeoutError: not in time)" in caplog.text


@pytest.mark.parametrize("value", [reading(1), b"bad"], ids=["Elasticsearch", "Kafka"])
def test_told_to_stop_it_gives_up_what_waits(
    writer: indexer.BulkWriter, value: dict[str, Any] | bytes
) -> None:
    Faulty(writer, *[raising(NoConnection("refused"))] * 1000)
    writer.producer = SimpleNamespace(send=lambda *_, **__: Unacknowledged())
    writer.stopping.set()
    batch = batch_of(value)
    with pytest.raises(indexer.GaveUpError, match="1 messages wait"):
        writer.settle(batch)
    assert +batch.outcome == {}
