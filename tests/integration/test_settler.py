"""What becomes of a batch, on the real servers; failures are put in front of them."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, Message, Producer
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, SerializationError
from elasticsearch import ApiError

import kafka_to_elasticsearch as indexer
from tests.conftest import Pipeline


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
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        message = Message(
            topic="source",
            partition=3,
            offset=offset,
            key=b"k",
            value=raw,
            timestamp=(1, 1234567890123),
        )
        batch.add(3, [message])
    return batch


@pytest.fixture
def config(pipeline: Pipeline) -> indexer.Config:
    return indexer.load_config([], pipeline.environ)


@pytest.fixture
def settler(pipeline: Pipeline, config: indexer.Config) -> indexer.Settler:
    indexer.ensure_indices(pipeline.client, config)
    producer = Producer({"bootstrap.servers": pipeline.kafka, "log_level": 0})
    producer.list_topics(config.dead_letter_topic, timeout=30)
    return indexer.Settler(config, pipeline.client, producer)


class Wrapped:
    """The real client; its n-th bulk goes wrong as the test says."""

    def __init__(self, real: Any, *faults: Callable[[Callable[[], Any]], Any]) -> None:
        self.real = real
        self.faults = list(faults)
        self.sizes: list[int] = []

    def bulk(self, **arguments: Any) -> Any:
        self.sizes.append(arguments["operations"][0].count(b"\n") // 2)
        if self.faults:
            return self.faults.pop(0)(lambda: self.real.bulk(**arguments))
        return self.real.bulk(**arguments)

    def mget(self, **arguments: Any) -> Any:
        return self.real.mget(**arguments)


def settle(settler: indexer.Settler, batch: indexer.Batch) -> Counter[str]:
    settler.settle(batch)
    return batch.outcome


def raising(error: Exception, after_sending: bool = False) -> Callable[[Callable[[], Any]], Any]:
    def fault(send: Callable[[], Any]) -> Any:
        if after_sending:
            send()
        raise error

    return fault


def http_error(status: int, reason: str) -> ApiError:
    return ApiError(reason, meta=SimpleNamespace(status=status), body={})  # type: ignore[arg-type]


def test_new_readings_are_indexed(pipeline: Pipeline, settler: indexer.Settler) -> None:
    assert settle(settler, batch_of(reading(1), reading(2))) == Counter(indexed=2, dead_lettered=0)
    assert list(pipeline.documents().values()) == [reading(1), reading(2)]
    assert pipeline.documents().keys() == {
        "sensor_001@2026-06-01T12:00:01.000Z",
        "sensor_001@2026-06-01T12:00:02.000Z",
    }


def test_a_replay_changes_nothing(pipeline: Pipeline, settler: indexer.Settler) -> None:
    settle(settler, batch_of(reading(1), reading(2)))
    again = batch_of(reading(1), reading(2, temperature=21.50), reading(3), reading(3))
    assert settle(settler, again) == Counter(duplicates=3, indexed=1, dead_lettered=0)
    assert len(pipeline.documents()) == 3


def test_other_values_under_the_same_id_are_a_conflict(
    pipeline: Pipeline, settler: indexer.Settler
) -> None:
    settle(settler, batch_of(reading(1)))
    assert settle(settler, batch_of(reading(1, temperature=3.0))) == Counter(dead_lettered=1)
    assert list(pipeline.documents().values()) == [reading(1)]
    (letter,) = pipeline.dead_letters()
    assert b"conflict" in dict(letter.headers)["reason"]


def test_malformed_messages_are_dead_letters_with_their_origin(
    pipeline: Pipeline, settler: indexer.Settler
) -> None:
    outcome = settle(settler, batch_of(b"\xffnot json", reading(1), b""))
    assert outcome == Counter(indexed=1, dead_lettered=2)
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


def test_what_elasticsearch_refuses_is_a_dead_letter_and_the_rest_is_indexed(
    pipeline: Pipeline, settler: indexer.Settler
) -> None:
    batch = batch_of(reading(1), reading(2), reading(3))
    hot = json.dumps(reading(2, temperature="hot")).encode()  # past the validator
    batch.entries[1].source = hot
    assert settle(settler, batch) == Counter(indexed=2, dead_lettered=1)
    (letter,) = pipeline.dead_letters()
    assert b"400 document_parsing_exception" in dict(letter.headers)["reason"]


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
    settler: indexer.Settler,
    error: Exception,
    after_sending: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Wrapped(settler.client, raising(error, after_sending))
    settler.client = client  # type: ignore[assignment]
    outcome = settle(settler, batch_of(reading(1), reading(2)))
    assert outcome["duplicates" if after_sending else "indexed"] == 2
    assert client.sizes == [2, 2]
    assert "Elasticsearch: 2 messages wait" in caplog.text


def test_only_the_rejected_readings_are_sent_again(settler: indexer.Settler) -> None:
    def one_rejected(send: Callable[[], Any]) -> Any:
        answer = send()
        rejected = {
            "status": 429,
            "error": {"type": "es_rejected_execution_exception", "reason": "full"},
        }
        answer["items"][1]["create"] = rejected
        return answer

    client = Wrapped(settler.client, one_rejected)
    settler.client = client  # type: ignore[assignment]
    outcome = settle(settler, batch_of(reading(1), reading(2), reading(3)))
    assert client.sizes == [3, 1]
    assert outcome == Counter(indexed=2, duplicates=1, dead_lettered=0)


def test_an_answer_for_fewer_readings_is_no_answer(settler: indexer.Settler) -> None:
    def cut(send: Callable[[], Any]) -> Any:
        answer = send()
        return {"items": answer["items"][:1]}

    client = Wrapped(settler.client, cut)
    settler.client = client  # type: ignore[assignment]
    assert settle(settler, batch_of(reading(1), reading(2)))["duplicates"] == 2
    assert client.sizes == [2, 2]


def test_a_bulk_that_is_too_large_is_split(pipeline: Pipeline, settler: indexer.Settler) -> None:
    too_large = raising(http_error(413, "too large"))
    client = Wrapped(settler.client, too_large, too_large, too_large)
    settler.client = client  # type: ignore[assignment]
    outcome = settle(settler, batch_of(*(reading(n) for n in range(4))))
    assert client.sizes == [4, 2, 1, 1, 2, 1]  # the last one indexes the dead letter
    assert outcome == Counter(indexed=3, dead_lettered=1)
    assert b"413" in dict(pipeline.dead_letters()[0].headers)["reason"]


def test_a_closed_index_makes_the_readings_wait(
    pipeline: Pipeline, settler: indexer.Settler
) -> None:
    pipeline.client.indices.close(index=pipeline.index)
    outcome: Counter[str] = Counter()
    worker = threading.Thread(target=lambda: outcome.update(settle(settler, batch_of(reading(1)))))
    worker.start()
    worker.join(timeout=1.0)
    assert worker.is_alive()
    pipeline.client.indices.open(index=pipeline.index)
    worker.join(timeout=60)
    assert outcome["indexed"] == 1


def test_a_read_only_index_makes_the_readings_wait(
    pipeline: Pipeline, settler: indexer.Settler
) -> None:
    block = {"index.blocks.read_only_allow_delete": True}
    pipeline.client.indices.put_settings(index=pipeline.index, settings=block)
    outcome: Counter[str] = Counter()
    worker = threading.Thread(target=lambda: outcome.update(settle(settler, batch_of(reading(1)))))
    worker.start()
    worker.join(timeout=1.0)
    assert worker.is_alive()
    lifted = {"index.blocks.read_only_allow_delete": None}
    pipeline.client.indices.put_settings(index=pipeline.index, settings=lifted)
    worker.join(timeout=60)
    assert outcome["indexed"] == 1


def test_only_dead_letters_that_are_not_acknowledged_are_sent_again(
    pipeline: Pipeline, settler: indexer.Settler
) -> None:
    """A producer that takes no more, then one that takes and fails."""
    real, faults = settler.producer, [None, "take no more", None, "fail"]

    class Faulty:
        flush = real.flush

        def produce(self, *arguments: Any, **named: Any) -> None:
            fault = faults.pop(0) if faults else None
            if fault == "take no more":
                raise BufferError("away")
            if fault == "fail":
                named["on_delivery"](KafkaError(KafkaError._MSG_TIMED_OUT), Mock())
                return
            real.produce(*arguments, **named)

    settler.producer = Faulty()
    values = [b"bad 1", b"bad 2", b"bad 3"]
    assert settle(settler, batch_of(*values))["dead_lettered"] == 3
    assert sorted(letter.value for letter in pipeline.dead_letters()) == values


def test_told_to_abandon_it_gives_up(settler: indexer.Settler) -> None:
    client = Wrapped(settler.client, *[raising(NoConnection("refused"))] * 1000)
    settler.client = client  # type: ignore[assignment]
    settler.abandon.set()
    with pytest.raises(indexer.GaveUpError, match="1 messages wait"):
        settle(settler, batch_of(reading(1)))


# The index and its template


def test_the_index_has_the_mapping_of_the_file(pipeline: Pipeline, config: indexer.Config) -> None:
    indexer.ensure_indices(pipeline.client, config)
    indexer.ensure_indices(pipeline.client, config)  # again: nothing changes
    mapping = pipeline.client.indices.get_mapping(index=pipeline.index)[pipeline.index]["mappings"]
    wanted = json.loads(indexer.MAPPING_FILE.read_text())["mappings"]
    assert mapping == wanted


def test_an_index_deleted_in_mid_run_is_made_anew_with_its_mapping(
    pipeline: Pipeline, settler: indexer.Settler, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.client.indices.delete(index=pipeline.index)
    assert settle(settler, batch_of(reading(1)))["indexed"] == 1
    assert "was not there: made with its mapping" in caplog.text
    mapping = pipeline.client.indices.get_mapping(index=pipeline.index)[pipeline.index]["mappings"]
    assert mapping["dynamic"] == "strict"


def test_an_index_with_another_mapping_is_refused(
    pipeline: Pipeline, config: indexer.Config
) -> None:
    pipeline.client.indices.create(index=pipeline.index)
    pipeline.client.index(index=pipeline.index, document={"temperature": "21"})
    with pytest.raises(
        indexer.SetupError, match=r"sensor_id as None, not as keyword.*curl -X DELETE"
    ):
        indexer.ensure_indices(pipeline.client, config)


def test_two_indices_of_one_prefix_have_their_own_template(
    pipeline: Pipeline, config: indexer.Config
) -> None:
    indexer.ensure_indices(pipeline.client, config)
    longer = indexer.load_config(["--index", f"{pipeline.index}-dev"], pipeline.environ)
    indexer.ensure_indices(pipeline.client, longer)
    pipeline.client.indices.delete_index_template(name=longer.index)


def test_dynamic_mapping_leaves_it_to_elasticsearch(
    pipeline: Pipeline, settler: indexer.Settler
) -> None:
    argv = ["--dynamic-mapping", "--index", f"guessed-{pipeline.index}"]
    dynamic = indexer.load_config(argv, pipeline.environ)
    indexer.ensure_indices(pipeline.client, dynamic)
    settler.config = dynamic
    settle(settler, batch_of(reading(1)))
    found = pipeline.client.indices.get_mapping(index=dynamic.index)[dynamic.index]["mappings"]
    pipeline.client.indices.delete(index=dynamic.index)
    assert found["properties"]["sensor_id"]["type"] == "text"
    assert found["properties"]["timestamp"]["type"] == "date"
    templated = indexer.load_config(["--dynamic-mapping"], pipeline.environ)
    with pytest.raises(indexer.SetupError, match="an index template still gives"):
        indexer.ensure_indices(pipeline.client, templated)


def test_an_index_name_that_elasticsearch_refuses_is_one_line(
    pipeline: Pipeline, config: indexer.Config
) -> None:
    upper = indexer.load_config(["--index", "Sensors"], pipeline.environ)
    with pytest.raises(indexer.SetupError, match=r"index Sensors: .*lower"):
        indexer.ensure_indices(pipeline.client, upper)
