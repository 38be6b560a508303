"""Bad and borderline input: good readings are indexed, all else is dead-lettered, nothing stops."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import Mock

import pytest
from elasticsearch import ApiError, TransportError
from elasticsearch.helpers import scan
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaProducer, TopicPartition

import kafka_to_elasticsearch as indexer
from tests.conftest import Pipeline
from tests.faults.bad_input import (
    CORPUS,
    FIELDS,
    LIMITS,
    Expected,
    make,
    messages,
    raw,
)
from tools.verify import verify

log = logging.getLogger(__name__)
T = TypeVar("T")
Case = tuple[bytes | None, Expected]
SEED = 20250601

# The kinds that are refused although Elasticsearch would index their bytes, and how it reads them.
UNREADABLE = "stored as it came: a search that finds it answers with invalid JSON, or not at all"
ONLY_WE_REFUSE = {
    "array": "any field may have several values, or none",
    "byte order mark": UNREADABLE,
    "characters of sensor_id": "a keyword may be any text, but an id and a log may not",
    "comment": UNREADABLE,
    "decimal for a whole number": "it is cut: 431.7 is found as 431",
    "missing field": "a mapping requires no field",
    "not UTF-8": UNREADABLE,
    "null": "it is a missing field",
    "number as text": "text is coerced to a number, empty text to none",
    "out of range": "a mapping knows types, not what a sensor can measure",
    "sensor_id that is no text": "numbers and booleans are coerced to text",
    "surrogate": "half a character is stored, which no UTF-8 can express",
    "time in another ISO form": "what is missing is taken for its first value, and for UTC",
    "UTF-16 or UTF-32": UNREADABLE,
    "year as a number": "2025 is read as the text of a year",
    "year outside 1 to 9999": "its calendar has a year 0 and years before it",
}


def corpus() -> list[Case]:
    """Return the messages of CORPUS and how to treat them."""
    cases: list[Case] = []
    for name, value, reason in CORPUS:
        reading = json.loads(value) if value and not reason else {}
        cases.append((value, Expected(name.partition(":")[0], reason, reading)))
    return cases


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of at most this size."""
    rest = iter(items)
    while batch := [*islice(rest, size)]:
        yield batch


def added(value: bytes | None) -> indexer.Batch:
    """Return a batch with one message."""
    batch = indexer.Batch()
    where = {"topic": "t", "partition": 0, "offset": 0, "timestamp": 0}
    message = SimpleNamespace(**where, key=None, value=value, headers=[])
    batch.add(TopicPartition("t", 0), [message])
    return batch


def strict_json(text: bytes) -> Any:
    """Return what a strict JSON reader finds in a text; fail where it would refuse."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a name is given twice"
        return dict(pairs)

    def never(text: str) -> None:
        pytest.fail(f"{text} is not JSON")

    return json.loads(text.decode(), parse_constant=never, object_pairs_hook=once)


def assert_reason(expected: Expected, reason: str) -> None:
    """Check the reason of a dead letter: it must be the expected one, in one short line."""
    assert expected.reason, f"{expected} has become a dead letter: {reason}"
    assert re.fullmatch(f"invalid: ({expected.reason})", reason), (expected, reason)
    assert reason.isprintable()
    assert len(reason) < 330


def assert_treated(value: bytes | None, expected: Expected) -> None:
    """Check that a batch treats a message as expected, and that a good one keeps its values."""
    batch = added(value)
    for document in batch.documents:
        assert not expected.reason, (expected, value)
        assert strict_json(document.source) == expected.reading
        assert document.id == "{sensor_id}@{timestamp}".format(**expected.reading)
    for _, reason in batch.dead_letters:
        assert_reason(expected, reason)
    assert len(batch.documents) + len(batch.dead_letters) == 1


# The validator alone


@pytest.mark.parametrize(
    ("value", "expected"), corpus(), ids=[ascii(name) for name, _, _ in CORPUS]
)
def test_each_message_of_the_corpus_is_treated_as_expected(
    value: bytes | None, expected: Expected
) -> None:
    assert_treated(value, expected)


def test_generated_messages_are_treated_as_expected() -> None:
    for value, expected in messages(SEED, 5000):
        assert_treated(value, expected)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
GOOD = raw()
PLACES = st.integers(0, len(GOOD))
ANYTHING = {
    "bytes": st.binary(),
    "JSON": JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    "a field of any value": st.builds(
        lambda name, value: raw(**{name: json.dumps(value, ensure_ascii=False)}),
        st.sampled_from([*FIELDS, "more"]),
        JSON_VALUES,
    ),
    "a reading with other bytes in it": st.builds(
        lambda one, other, junk: GOOD[:one] + junk + GOOD[other:],
        PLACES,
        PLACES,
        st.binary(max_size=9) | st.sampled_from([b"-", b"0", b"1e", b'"', b"\\", b",", b"}"]),
    ),
}


def assert_refused_or_valid(value: bytes) -> None:
    """Check that a message is refused, or that a strict reader finds the same valid reading."""
    try:
        reading = indexer.parse_reading(value)
    except ValueError:
        return
    found = strict_json(value)
    assert found.keys() == set(FIELDS)
    assert found["sensor_id"] == reading.sensor_id
    for name, (low, high) in LIMITS.items():
        assert low <= getattr(reading, name) == found[name] <= high


@pytest.mark.parametrize("examples", [150, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ANYTHING)
def test_arbitrary_messages_are_refused_or_valid(kind: str, examples: int) -> None:
    """Hypothesis reports the smallest message for which this fails or raises an exception."""
    profile = settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    profile(given(ANYTHING[kind])(assert_refused_or_valid))()


# The whole consumer on real servers


def send(pipeline: Pipeline, cases: Iterable[Case]) -> dict[tuple[int, int], Case]:
    """Send messages to the three partitions in turn; return them by (partition, offset)."""
    sent = {}
    options = {
        "bootstrap_servers": pipeline.kafka,
        "compression_type": "gzip",  # the broker's limit of 1 MB is for what is compressed
        "max_request_size": 10_000_000,
        "linger_ms": 20,
    }
    with closing(KafkaProducer(**options)) as producer:
        futures = [
            (producer.send(pipeline.topic, case[0], key=b"%d" % i, partition=i % 3), case)
            for i, case in enumerate(cases)
        ]
        for future, case in futures:
            metadata = future.get(timeout=60)
            sent[metadata.partition, metadata.offset] = case
    return sent


def among_good_ones(cases: Iterable[Case], first: int) -> Iterator[Case]:
    """Yield each message and after it a plain good reading."""
    rng = Random(SEED)
    for serial, case in enumerate(cases, first):
        yield case
        yield make(rng, "good: plain", serial)


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_bad_messages_are_dead_letters_and_their_neighbours_are_indexed(
    pipeline: Pipeline, count: int
) -> None:
    sent = send(pipeline, among_good_ones([*corpus(), *messages(SEED, count)], first=count))
    bad = {where for where, (_, expected) in sent.items() if expected.reason}
    good = [expected.reading for _, expected in sent.values() if not expected.reason]
    assert min(len(bad), len(good)) > count / 2

    closing = f"indexed={len(good)} duplicates=0 dead_lettered={len(bad)} in_flight=0"
    assert f"stopped consumed={len(sent)} {closing} " in pipeline.consume()

    for letter in pipeline.dead_letters():
        headers = {name: value.decode() for name, value in letter.headers}
        where = int(headers["source.partition"]), int(headers["source.offset"])
        bad.remove(where)  # fails for a second letter of a message and for one of a good message
        value, expected = sent[where]
        assert letter.value == value
        assert headers["source.topic"] == pipeline.topic
        assert_reason(expected, headers["reason"])
    assert not bad, "these have not become dead letters"

    pipeline.client.indices.refresh(index=pipeline.index)
    hits = list(scan(pipeline.client, index=pipeline.index, size=5000))
    documents = {by_identity(hit["_source"]): hit["_source"] for hit in hits}
    assert len(hits) == len(good)
    assert documents == {by_identity(reading): reading for reading in good}
    assert verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index).holds


def by_identity(reading: dict[str, Any]) -> tuple[str, str]:
    """Return what identifies a reading."""
    return reading["sensor_id"], reading["timestamp"]


@pytest.mark.slow
def test_a_message_of_110_mb_that_was_sent_compressed_is_dead_lettered(pipeline: Pipeline) -> None:
    """The broker limits the compressed size, the producer of dead letters the original one."""
    large = b"x" * 110_000_000
    options = {
        "bootstrap_servers": pipeline.kafka,
        "compression_type": "gzip",
        "max_request_size": 120_000_000,
    }
    with closing(KafkaProducer(**options)) as producer:
        for message in (large, GOOD):
            producer.send(pipeline.topic, message, partition=0).get(timeout=60)
    assert "dead_lettered=1 in_flight=0" in pipeline.consume()
    (letter,) = pipeline.dead_letters()
    assert letter.value == large
    assert len(pipeline.documents()) == 1


# What Elasticsearch itself would index


def statuses(pipeline: Pipeline, sources: Iterable[bytes]) -> Iterator[int]:
    """Index documents as they are, with their numbers as ids; yield the status of each."""
    for numbered in batched(enumerate(sources), 1000):
        lines = [b'{"create":{"_id":"%d"}}\n%b\n' % line for line in numbered]
        answer = pipeline.client.bulk(
            index=pipeline.index,
            operations=[b"".join(lines)],  # type: ignore[list-item]  # bytes go as they are
            filter_path="items.*.status",
            refresh=True,
        )
        yield from (item["create"]["status"] for item in answer["items"])


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_elasticsearch_indexes_all_that_the_consumer_accepts_and_known_kinds_more(
    pipeline: Pipeline, count: int
) -> None:
    """With --log-cli-level=INFO it prints the numbers of README."""
    options = indexer.parse_options([], pipeline.environ)
    indexer.ensure_indices(pipeline.client, options)
    writer = indexer.BulkWriter(options, pipeline.client, Mock())
    passed, refused, unsendable = indexer.Batch(), [], Counter[str]()
    for value, expected in [*corpus(), *messages(SEED, count)]:
        batch = added(value)
        passed.documents += batch.documents
        if batch.dead_letters and value is not None and b"\n" not in value:
            refused.append((value, expected.kind))
        elif batch.dead_letters:
            unsendable[expected.kind] += 1  # a bulk request has one document on one line
    for documents in batched(passed.documents, indexer.BATCH_MESSAGES):
        assert not writer.index_readings(passed, documents)
    assert not passed.dead_letters
    assert passed.outcome["indexed"] == len(passed.documents) > count / 10

    answers = statuses(pipeline, (value for value, _ in refused))
    verdicts = Counter((kind, status) for (_, kind), status in zip(refused, answers, strict=True))
    log.info("passed and indexed: %d", len(passed.documents))
    for (kind, status), times in sorted(verdicts.items()):
        log.info("%s: Elasticsearch answers %d to %d", kind, status, times)
    log.info("cannot be sent at all: %s", dict(unsendable))
    assert {status for _, status in verdicts} == {201, 400}
    taken = {kind for kind, status in verdicts if status == 201}
    assert taken == ONLY_WE_REFUSE.keys()
    both = taken.intersection(kind for kind, status in verdicts if status == 400)
    assert both == {"not UTF-8"}  # it checks each byte of a name, but not of a keyword's text


def test_searches_fail_for_some_documents_that_elasticsearch_would_index(
    pipeline: Pipeline,
) -> None:
    indexer.ensure_indices(pipeline.client, indexer.parse_options([], pipeline.environ))
    unreadable = [
        raw().decode().encode("utf-16"),
        b"\xef\xbb\xbf" + raw(),
        raw() + b"//",
        raw(sensor_id='"\udcc0\udc80"'),
    ]
    assert [*statuses(pipeline, [*unreadable, raw()])] == [201] * 5
    for number in range(4):
        with pytest.raises((ApiError, TransportError)):  # status 500, or no answer to be read
            pipeline.client.search(index=pipeline.index, query={"ids": {"values": [str(number)]}})
    assert pipeline.client.search(index=pipeline.index, query={"ids": {"values": ["4"]}})
