"""Bad and borderline input: nothing crashes or blocks, the good is indexed, the bad is dead."""

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
from elasticsearch import TransportError
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

# The kinds that are refused although Elasticsearch would index their bytes as they are, and why.
UNREADABLE = "stored as it came: a search that finds it has an answer that is not JSON, or none"
ONLY_WE_REFUSE = {
    "array": "any field may have several values, or none",
    "byte order mark": UNREADABLE,
    "characters of sensor_id": "a keyword is any text; in an id and a log it is trouble",
    "comment": UNREADABLE,
    "decimal for a whole number": "it is cut: 431.7 is found as 431",
    "missing field": "a mapping makes no field mandatory",
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
    """Return the fixed messages with what is to become of them."""
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
    """Return a batch with this message alone."""
    batch = indexer.Batch()
    message = SimpleNamespace(topic="t", partition=0, offset=0, timestamp=0, key=None, value=value)
    batch.add(TopicPartition("t", 0), [message])
    return batch


def strict_json(text: bytes) -> Any:
    """Return what a reader that follows the standard finds in a text."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a name is given twice"
        return dict(pairs)

    def never(text: str) -> None:
        pytest.fail(f"{text} is not JSON")

    return json.loads(text.decode(), parse_constant=never, object_pairs_hook=once)


def assert_reason(expected: Expected, reason: str) -> None:
    assert expected.reason, f"{expected} has become a dead letter: {reason}"
    assert re.fullmatch(f"invalid: ({expected.reason})", reason), (expected, reason)
    assert reason.isprintable()
    assert len(reason) < 330


def assert_judged(value: bytes | None, expected: Expected) -> None:
    """Check that a batch takes a message as what it is, and a good one with its values."""
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
def test_the_corpus_is_judged_rightly(value: bytes | None, expected: Expected) -> None:
    assert_judged(value, expected)


@pytest.mark.parametrize("count", [5000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_generated_messages_are_judged_rightly(count: int) -> None:
    for value, expected in [*corpus(), *messages(SEED, count)]:
        assert_judged(value, expected)


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


def assert_read_as_others_read(value: bytes) -> None:
    """Check that a message is refused, or is a reading to any reader, within the limits."""
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
def test_anything_at_all_is_refused_or_read_as_others_read_it(kind: str, examples: int) -> None:
    """Any other exception than a refusal fails here, and the smallest message that raises it."""
    profile = settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    profile(given(ANYTHING[kind])(assert_read_as_others_read))()


# The whole way


def send(pipeline: Pipeline, cases: Iterable[Case]) -> dict[tuple[int, int], Case]:
    """Send messages to the three partitions in turn; return them by partition and offset."""
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
        bad.remove(where)  # fails at a second letter of a message, and at one of a good message
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
    return reading["sensor_id"], reading["timestamp"]


@pytest.mark.parametrize(
    "large",
    [
        pytest.param(
            Random(SEED).randbytes(1_048_400), id="as large as the broker takes by default"
        ),
        pytest.param(b"x" * 70_000_000, id="small only when compressed", marks=pytest.mark.slow),
    ],
)
def test_a_message_to_which_no_reason_could_be_added_blocks_nothing(
    pipeline: Pipeline, large: bytes
) -> None:
    """A dead letter is larger than its message, and must be taken all the same."""
    options = {
        "bootstrap_servers": pipeline.kafka,
        "compression_type": "gzip" if len(large) > 2**20 else None,
        "max_request_size": 80_000_000,
    }
    with closing(KafkaProducer(**options)) as producer:
        for message in (large, GOOD):
            producer.send(pipeline.topic, message, partition=0).get(timeout=60)
    assert "dead_lettered=1 in_flight=0" in pipeline.consume()
    (letter,) = pipeline.dead_letters()
    assert letter.value == large
    assert len(pipeline.documents()) == 1


# What Elasticsearch itself would take


def statuses(pipeline: Pipeline, sources: Iterable[bytes]) -> Iterator[int]:
    """Yield what Elasticsearch answers for each document, sent as it is; its id is its number."""
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
def test_elasticsearch_refuses_nothing_that_passes_and_what_else_it_would_take_is_known(
    pipeline: Pipeline, count: int
) -> None:
    """With --log-cli-level=INFO, the numbers that the README quotes."""
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
            unsendable[expected.kind] += 1  # a bulk has one document on one line
    for documents in batched(passed.documents, indexer.BULK_READINGS):
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
    assert both == {"not UTF-8"}  # it looks at each byte of a name, not of a keyword's text


def test_some_of_what_elasticsearch_would_take_makes_searches_fail(pipeline: Pipeline) -> None:
    indexer.ensure_indices(pipeline.client, indexer.parse_options([], pipeline.environ))
    unreadable = [
        raw().decode().encode("utf-16"),
        b"\xef\xbb\xbf" + raw(),
        raw() + b"//",
        raw(sensor_id='"\udcc0\udc80"'),
    ]
    assert [*statuses(pipeline, [*unreadable, raw()])] == [201] * 5
    for number in range(4):
        with pytest.raises(TransportError):
            pipeline.client.search(index=pipeline.index, query={"ids": {"values": [str(number)]}})
    assert pipeline.client.search(index=pipeline.index, query={"ids": {"values": ["4"]}})
