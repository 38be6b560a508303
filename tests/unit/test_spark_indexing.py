"""What the executors of extensions/spark do, without Spark: batches, indices, options, patience."""

import base64
import json
from typing import Any

import pytest

import kafka_to_elasticsearch as script
from extensions.spark import spark_indexing as indexing
from kafka_to_elasticsearch import GaveUpError

READING = {
    "sensor_id": "sensor_001",
    "timestamp": "2026-06-01T01:30:00+02:00",  # 31 May in UTC
    "temperature": 21.5,
    "humidity": 48.0,
    "co2_level": 420,
    "light_intensity": 300,
}


def line(offset: int, value: bytes | None, **more: Any) -> bytes:
    """Return a message as Spark writes it: bytes in base64, nothing for null."""
    fields = {"topic": "t", "partition": 2, "offset": offset, "timestamp": 1_000, **more}
    if value is not None:
        fields["value"] = base64.b64encode(value).decode()
    return json.dumps(fields).encode()


def reading(offset: int, **changes: Any) -> bytes:
    return line(offset, json.dumps(READING | changes).encode())


def test_a_message_has_all_that_the_script_asks_of_it() -> None:
    lines = [line(7, b"{not JSON", key="a2V5"), line(8, None)]
    (batch,) = indexing.batches_of(lines)
    (first, why), (second, why_too) = batch.dead_letters
    assert (first.key, first.value, first.offset, first.timestamp) == (
        b"key",
        b"{not JSON",
        7,
        1000,
    )
    assert (second.key, second.value) == (None, None)
    assert why.startswith("invalid: JSON")
    assert why_too == "invalid: empty message"
    assert json.loads(script.dead_letter_document((first, why)).source)["partition"] == 2


def test_batches_are_as_large_as_the_script_s() -> None:
    count = 2 * script.BATCH_MESSAGES + 1
    batches = list(indexing.batches_of(reading(n) for n in range(count)))
    assert [batch.messages for batch in batches] == [script.BATCH_MESSAGES] * 2 + [1]
    large = [line(n, b"x" * 100_000) for n in range(indexing.CHUNK + 1)]
    assert [batch.messages for batch in indexing.batches_of(large)] == [indexing.CHUNK, 1]
    assert list(indexing.batches_of([])) == []


@pytest.mark.parametrize(("by", "name"), [("day", "s-2026.05.31"), ("month", "s-2026.05")])
def test_a_reading_s_index_is_that_of_its_time_in_utc(by: str, name: str) -> None:
    lines = [reading(1), reading(2, sensor_id="b-2020-01-01"), line(3, b"")]
    (batch,) = indexing.batches_of(lines)
    parts = indexing.by_index(batch, "s", by)
    assert {index: len(part.documents) for index, part in parts.items()} == {"s": 0, name: 2}
    assert [len(part.dead_letters) for part in parts.values()] == [1, 0]
    assert indexing.by_index(batch, "s", None) == {"s": batch}


def test_a_task_gives_up_when_a_server_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "GIVE_UP_S", 0.01)
    job = indexing.Job(("--elasticsearch-url", "http://127.0.0.1:9"), (), None)
    with pytest.raises(GaveUpError, match="Elasticsearch: 1 messages wait"):
        list(indexing.settle_partition(job, [reading(1)]))


def test_dead_letters_wait_for_kafka_as_in_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "GIVE_UP_S", 0.01)
    job = indexing.Job(("--bootstrap-servers", "127.0.0.1:9"), (), None)
    with pytest.raises(GaveUpError, match="dead-letter topic: 1 messages wait"):
        list(indexing.settle_partition(job, [line(1, b"")]))


def source(environ: dict[str, str]) -> dict[str, str]:
    options = script.parse_options([], {})
    return indexing.source_options(options, environ, most=7)


def test_the_kafka_source_reads_as_the_script() -> None:
    assert source({}) == {
        "kafka.bootstrap.servers": "localhost:9092",
        "subscribe": "smart-city-sensors",
        "startingOffsets": "earliest",
        "maxOffsetsPerTrigger": "7",
        "kafka.isolation.level": "read_committed",
        "kafka.group.id": "smart-city-indexer",
    }


def test_a_password_goes_to_kafka_s_java_client_whatever_is_in_it() -> None:
    password = 'p"a\\s;s'  # noqa: S105  # nobody's
    found = source({"CONSUMER_KAFKA_USER": "consumer", "CONSUMER_KAFKA_PASSWORD": password})
    assert found["kafka.security.protocol"] == "SASL_SSL"
    assert found["kafka.sasl.mechanism"] == "SCRAM-SHA-512"
    wanted = r'ScramLoginModule required username="consumer" password="p\"a\\s;s";'
    assert found["kafka.sasl.jaas.config"].endswith(wanted)
    assert not any(name.startswith("kafka.ssl") for name in found)
