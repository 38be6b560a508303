"""The tool for dead letters: what it shows, and that a replay takes each letter exactly once."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.structs import TopicPartition

from pipelines.tests.waiting import wait_until
from tests.conftest import PROJECT, Pipeline
from tools import dead_letters

TOOL = "tools.dead_letters"
# Runs the tool and kills it, without a last word, at one call of its second transaction.
KILLED_AT = """
import os, signal, sys
from kafka import KafkaProducer
from tools import dead_letters

name, when = sys.argv[1:]
call, calls = getattr(KafkaProducer, name), []

def deadly(producer, *arguments):
    calls.append(arguments)
    if len(calls) == 2 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    call(producer, *arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(KafkaProducer, name, deadly)
sys.exit(dead_letters.main(["replay"]))
"""


def reading(number: int, **fields: Any) -> bytes:
    """Return a valid message, another one for each number."""
    valid = {
        "sensor_id": f"sensor_{number % 5}",
        "timestamp": f"2026-06-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000Z",
        "temperature": 20.5,
        "humidity": 50.0,
        "co2_level": 500,
        "light_intensity": 100,
    }
    return json.dumps({**valid, **fields}).encode()


def headers_of(topic: str, offset: int, reason: str = "invalid: of old") -> dict[str, bytes]:
    """Return the headers that the consumer gives a letter."""
    return {
        "reason": reason.encode(),
        "source.topic": topic.encode(),
        "source.partition": b"0",
        "source.offset": b"%d" % offset,
        "source.timestamp": b"%d" % (1_780_000_000_000 + offset),
    }


def file_letters(pipeline: Pipeline, *letters: dict[str, Any]) -> None:
    """File letters as the consumer does; a letter may bring its own key and headers."""
    with closing(KafkaProducer(bootstrap_servers=pipeline.kafka)) as producer:
        producer.partitions_for(pipeline.topic)  # creates it
        sent = []
        for offset, letter in enumerate(letters):
            headers = headers_of(pipeline.topic, offset)
            arguments = {"key": b"k%d" % (offset % 7), "headers": [*headers.items()], **letter}
            sent.append(producer.send(f"{pipeline.topic}.dead-letter", **arguments))
        for future in sent:
            future.get(timeout=30)


def replay(pipeline: Pipeline) -> dict[str, int]:
    """Run a replay to its end; return the numbers that it prints."""
    return summary(pipeline.run(TOOL, "replay")[0])


def summary(out: str) -> dict[str, int]:
    assert re.fullmatch(r"replayed=\d+ still_invalid=\d+ foreign=\d+\n", out), out
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", out)}


def totals(out: str) -> tuple[int, int]:
    """Return how many letters the list says are pending, and how many replays have taken."""
    (line,) = re.findall(r"^ *(\d+|no letter is)  ?pending in .* before: (\d+)", out, re.MULTILINE)
    return int(line[0]) if line[0].isdigit() else 0, int(line[1])


def accounts(err: str) -> dict[str, int]:
    """Return the numbers of the consumer's closing line."""
    (line,) = re.findall(r"stopped (.*)", err)
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)(?= )", line)}


# What Kibana is told of them


def test_the_index_tells_why_and_where_and_how_it_begins(pipeline: Pipeline) -> None:
    giant = b'{"sensor_id": "' + b"x" * 5000
    pipeline.send(b"\xff not json", reading(1), giant, reading(1, temperature=99), None)
    pipeline.consume()
    found = sorted(
        pipeline.documents(pipeline.dead_letter_index).values(), key=lambda d: d["offset"]
    )
    times = {message.offset: message.timestamp for message in pipeline.messages()}
    headers = [dict(letter.headers) for letter in pipeline.dead_letters()]
    reasons = {int(h["source.offset"]): h["reason"].decode() for h in headers}
    assert [document["offset"] for document in found] == [0, 2, 3, 4] == sorted(reasons)
    for document in found:
        assert document["timestamp"] == times[document["offset"]]
        assert document["reason"] == reasons[document["offset"]]
        assert (document["kind"], document["sensor_id"]) == ("invalid", "k")
        assert (document["topic"], document["partition"]) == (pipeline.topic, 0)
    assert [document["size_bytes"] for document in found][:2] == [10, len(giant)]
    assert found[0]["message"] == "\\xff not json"
    assert found[1]["message"] == giant[:500].decode()
    assert found[3]["message"] == ""
    pipeline.consume("--group-id", f"{pipeline.group}-again")
    again = pipeline.documents(pipeline.dead_letter_index)
    assert len(again) == 4, "read again, they are the same documents"


def test_without_their_index_they_are_in_the_topic_only(pipeline: Pipeline) -> None:
    pipeline.send(b"bad")
    pipeline.consume("--dead-letter-index", "none")
    assert len(pipeline.dead_letters()) == 1
    assert not pipeline.client.indices.exists(index=pipeline.dead_letter_index)


# list


def test_the_list_shows_each_letter_and_counts_them_by_cause(pipeline: Pipeline) -> None:
    pipeline.send(b"not json", b"no json either", None, b"\xff\x00", b"\x1b[2J\r\n\t\x07" * 20)
    pipeline.send(reading(1, temperature="hot \u202e"), key=b"")
    pipeline.send(reading(2, temperature="cold"), key=b"\xfe\x1b[31m" * 9)
    pipeline.consume()
    out, _ = pipeline.run(TOOL, "list")
    assert out.isascii()
    assert all(line.isprintable() and len(line) <= 120 for line in out.splitlines())
    table, counts = out.split("\n\n")
    header, *rows = table.splitlines()
    assert header.split() == ["time", "(UTC)", "partition/offset", "key", "reason", "message"]
    shown = [re.split(r"  +", row) for row in rows]
    assert [row[1] for row in shown] == [f"0/{offset}" for offset in range(7)]
    times = {message.offset: message.timestamp for message in pipeline.messages()}
    assert [row[0] for row in shown] == [dead_letters.utc(times[offset]) for offset in range(7)]
    assert shown[0][2:] == ["k", "invalid: JSON is malformed: inv...", "not json"]
    assert shown[2][2:] == ["k", "invalid: empty message", "(none)"]
    assert shown[3][4] == r"\xff\x00"
    assert shown[4][4].startswith(r"\x1b[2J\r\n\t\x07")
    assert shown[5][2] == "(empty)"
    assert shown[6][2] == r"\xfe\x1b[31..."
    *causes, _ = counts.splitlines()
    numbers = [int(line.split()[0]) for line in causes]
    assert numbers == sorted(numbers, reverse=True)
    assert sum(numbers) == 7
    assert "        2  invalid: Expected `float`, got `str` - at `$.temperature`" in causes
    assert totals(out) == (7, 0)
    last, _ = pipeline.run(TOOL, "list", "--last", "2")
    assert last == "\n".join([header, *rows[-2:]]) + "\n\n" + counts, "the first changed nothing"


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (
            "refused: 400 document_parsing_exception: [1:45] failed to parse field [t] of type "
            "[date] in document with id 's@2026-01-01T00:00:00Z'. Preview of field's value: 'x'",
            "refused: 400 document_parsing_exception: [*] failed to parse field [t] of type "
            "[date] in document with id '*'. Preview of field's value: '*'",
        ),
        (
            'refused: 400 x: s-1@2026-01-01T00:00:00.000Z is "no" good',
            "refused: 400 x: * is '*' good",
        ),
        (
            "invalid: JSON is malformed: invalid character (byte 17)",
            "invalid: JSON is malformed: invalid character (byte *)",
        ),
        ("refused: 413 too large: 5000123", "refused: 413 too large: *"),
        (
            "invalid: Expected `int` <= 200000 - at `$.light_intensity`",
            "invalid: Expected `int` <= 200000 - at `$.light_intensity`",
        ),
    ],
)
def test_reasons_of_one_cause_are_counted_together(reason: str, cause: str) -> None:
    assert dead_letters.cause(reason) == cause


def test_a_list_of_nothing_is_one_friendly_line(pipeline: Pipeline) -> None:
    """The dead-letter topic does not exist yet, and asking does not create it."""
    pipeline.send(reading(1))
    nothing = f"no letter is pending in {pipeline.topic}.dead-letter; taken by replays before: 0\n"
    assert pipeline.run(TOOL, "list")[0] == nothing
    assert replay(pipeline) == {"replayed": 0, "still_invalid": 0, "foreign": 0}
    assert topics_of(pipeline) == [pipeline.topic]


@pytest.mark.parametrize("command", ["list", "replay"])
def test_a_topic_that_does_not_exist_is_no_peace(pipeline: Pipeline, command: str) -> None:
    out, err = pipeline.run(TOOL, command, code=1)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"topic {pipeline.topic} does not exist" in err
    assert topics_of(pipeline) == []


def topics_of(pipeline: Pipeline) -> list[str]:
    """Return the topics of this test, those that asking may have created among them."""
    with closing(KafkaAdminClient(bootstrap_servers=pipeline.kafka)) as admin:
        return [name for name in admin.list_topics() if name.startswith(pipeline.topic)]


def test_letters_deleted_by_retention_are_not_waited_for(pipeline: Pipeline) -> None:
    name = f"{pipeline.topic}.dead-letter"
    file_letters(pipeline, *[{"value": b"bad", "partition": 0}] * 10)
    replay(pipeline)  # ten of old, ten filed again, a marker behind them
    with closing(KafkaAdminClient(bootstrap_servers=pipeline.kafka)) as admin:
        admin.delete_records({TopicPartition(name, 0): 14})
        assert replay(pipeline)["still_invalid"] == 6
        out, _ = pipeline.run(TOOL, "list")
        assert totals(out) == (6, 6)
        assert out.endswith("; deleted by the topic: 14\n")
        admin.delete_topics([name])
        wait_until(lambda: name not in admin.list_topics(), "the topic is gone")
    file_letters(pipeline, *[{"value": b"bad", "partition": 0}] * 3)  # made anew
    assert totals(pipeline.run(TOOL, "list")[0]) == (3, 0)


# replay


def test_a_letter_that_is_valid_now_goes_through_the_pipeline_again(pipeline: Pipeline) -> None:
    """Of two conflicts, one is solved by hand; the other stands and makes a letter again."""
    pipeline.send(*[reading(number, humidity=1.0) for number in (1, 2)])
    pipeline.send(*[reading(number, humidity=2.0) for number in (1, 2)])
    assert accounts(pipeline.consume())["dead_lettered"] == 2
    solved, standing = sorted(pipeline.documents())
    pipeline.client.delete(index=pipeline.index, id=solved)
    letters = pipeline.dead_letters()
    assert replay(pipeline) == {"replayed": 2, "still_invalid": 0, "foreign": 0}
    assert totals(pipeline.run(TOOL, "list")[0]) == (0, 2)

    err = pipeline.consume()
    assert accounts(err) == {
        "consumed": 2,
        "indexed": 1,
        "duplicates": 0,
        "dead_lettered": 1,
        "in_flight": 0,
    }
    assert "retention" not in err, "a transaction's marker is no lost message"
    documents = pipeline.documents()
    assert (documents[solved]["humidity"], documents[standing]["humidity"]) == (2.0, 1.0)
    out, _ = pipeline.run(TOOL, "list")
    assert totals(out) == (1, 2)
    assert "        1  conflict: this sensor has another reading of the same time" in out

    again = pipeline.messages()[4:]
    assert [(m.key, m.value) for m in again] == [(m.key, m.value) for m in letters]
    origins = [dict(message.headers) for message in again]
    assert origins == [{"replayed.from": f"{m.partition}:{m.offset}".encode()} for m in letters]


@pytest.mark.slow
def test_the_marker_of_a_transaction_is_no_lag_for_the_consumer(pipeline: Pipeline) -> None:
    file_letters(pipeline, {"value": reading(1)})
    assert replay(pipeline)["replayed"] == 1
    err = pipeline.consume(
        "--exit-when-idle", "7"
    )  # longer than from one progress line to the next
    assert accounts(err)["indexed"] == 1
    assert re.findall(r"progress .* lag=(\d+)", err)[-1] == "0"


def test_a_letter_that_is_still_invalid_comes_back_once(pipeline: Pipeline) -> None:
    bad = [b"not json", b"", b"\xff\x00", reading(1, co2_level=1)]
    file_letters(pipeline, *[{"value": value} for value in bad])
    before = pipeline.dead_letters()
    for _ in range(2):
        assert replay(pipeline) == {"replayed": 0, "still_invalid": 4, "foreign": 0}
    assert totals(pipeline.run(TOOL, "list")[0]) == (4, 8)
    assert pipeline.messages() == []
    after = pipeline.dead_letters()
    assert len(after) == 12
    for letter in before:
        old, new, newest = [one for one in after if one.value == letter.value]
        assert old == letter
        assert {new.key, newest.key} == {letter.key}
        assert new.headers == newest.headers
        (name, reason), *others = new.headers
        assert (name, others) == ("reason", letter.headers[1:])
        assert re.match(rb"invalid: (?!of old).", reason)


def test_messages_of_somebody_else_are_kept_as_they_are(pipeline: Pipeline) -> None:
    ours = [*headers_of(pipeline.topic, 0).items()]
    file_letters(
        pipeline,
        {"value": reading(1), "headers": []},
        {"value": reading(2), "headers": [*headers_of("another", 0).items()]},
        {"value": reading(3), "headers": [*ours, ("source.offset", b"seven")]},
        {"value": reading(4), "headers": [*ours, ("source.topic", b"\xff")]},
        {"value": b"x", "key": None, "headers": [("reason", b"\xff"), ("a", b""), ("a", b"2")]},
        {"value": None, "key": b"tombstone", "headers": []},
    )
    before = pipeline.dead_letters()
    out, _ = pipeline.run(TOOL, "list")
    assert totals(out) == (6, 0)
    assert "        6  foreign: not filed by the consumer\n" in out
    assert re.search(r"  -  +tombstone  +foreign: .*  \(none\)$", out, re.MULTILINE)
    assert re.search(r"  -  +\(none\)  +foreign: .*  x$", out, re.MULTILINE)
    assert replay(pipeline) == {"replayed": 0, "still_invalid": 0, "foreign": 6}
    assert pipeline.messages() == []
    after = pipeline.dead_letters()
    kept = Counter((m.partition, m.key, m.value, tuple(m.headers)) for m in after)
    assert kept == Counter((m.partition, m.key, m.value, tuple(m.headers)) for m in before * 2)


def test_what_kafka_python_cannot_send_becomes_empty() -> None:
    """A null key with a null value, and a null in a header: other clients can send these."""
    fields: dict[str, Any] = {"topic": "t.dead-letter", "partition": 1, "offset": 7, "timestamp": 9}
    message = SimpleNamespace(**fields, key=None, value=None, headers=[("source.topic", None)])
    letter = dead_letters.read_letter(message, "t")
    became, sent = dead_letters.onward(letter, "t")
    assert became == "foreign"
    assert (sent["key"], sent["value"], sent["headers"]) == (None, b"", [("source.topic", b"")])


def assert_each_once(pipeline: Pipeline, valid: list[bytes], invalid: list[bytes]) -> None:
    """Check that what was replayed was so once, and that the others are pending, once each."""
    assert Counter(m.value for m in pipeline.messages()) == Counter(valid)
    out, _ = pipeline.run(TOOL, "list", "--last", "100000")
    pending, _ = totals(out)
    assert pending == len(invalid)
    rows = out.split("\n\n")[0].splitlines()[1:]
    assert Counter(row.split()[-1].encode() for row in rows) == Counter(invalid)


@pytest.mark.parametrize(
    ("call", "when"),
    [
        ("commit_transaction", "before"),
        pytest.param("commit_transaction", "after", marks=pytest.mark.slow),
        pytest.param("send_offsets_to_transaction", "before", marks=pytest.mark.slow),
    ],
)
def test_a_replay_killed_at_its_weakest_moments_takes_each_letter_once(
    pipeline: Pipeline, call: str, when: str
) -> None:
    valid = [reading(number) for number in range(1000)]
    invalid = [b"bad-%d" % number for number in range(300)]
    file_letters(pipeline, *[{"value": value} for value in valid + invalid])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT, call, when],
        cwd=PROJECT,
        env=pipeline.environ,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    replayed = len(pipeline.messages()) if when == "after" else None
    result = replay(pipeline)
    assert 0 < result["replayed"] < len(valid), "the first batch was committed"
    assert replayed in (None, len(valid) - result["replayed"])
    assert_each_once(pipeline, valid, invalid)


@pytest.mark.slow
def test_a_replay_killed_again_and_again_takes_each_letter_once(pipeline: Pipeline) -> None:
    seed = random.randrange(10**6)
    sys.stdout.write(f"seed {seed}\n")
    moments = random.Random(seed)
    valid = [reading(number) for number in range(4000)]
    invalid = [b"bad-%d" % number for number in range(2000)]
    letters = [{"value": value} for value in valid + invalid]
    moments.shuffle(letters)
    file_letters(pipeline, *letters)
    killed = 0
    for signum in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGKILL):
        process = pipeline.start(TOOL, "replay")
        wait_until(partial(has_ended_or_sent, process, pipeline, pipeline.ends()), "it sends")
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        assert err == ""
        killed += process.returncode == -signal.SIGKILL
    assert killed
    replay(pipeline)
    assert_each_once(pipeline, valid, invalid)
    # The consumer reads also what is not committed: that changes nothing in the index.
    closing = accounts(pipeline.consume())
    assert (closing["indexed"], closing["dead_lettered"]) == (4000, 0)


def has_ended_or_sent(process: subprocess.Popen[str], pipeline: Pipeline, before: int) -> bool:
    return process.poll() is not None or pipeline.ends() > before


def test_of_replays_at_the_same_time_one_goes_on_and_none_sends_twice(pipeline: Pipeline) -> None:
    valid = [reading(number) for number in range(2000)]
    invalid = [b"bad-%d" % number for number in range(200)]
    file_letters(pipeline, *[{"value": value} for value in valid + invalid])
    processes = [pipeline.start(TOOL, "replay") for _ in range(3)]
    ended = [process.communicate(timeout=120) for process in processes]
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, 1}
    assert 0 in codes
    for code, (_, err) in zip(codes, ended, strict=True):
        stopped = (
            "dead_letters: another replay of this topic has begun, or this one took too long\n"
        )
        assert err == (stopped if code else "")
    assert sum(summary(out)["replayed"] for out, _ in ended) == len(valid)
    assert_each_once(pipeline, valid, invalid)


def test_without_its_source_topic_a_letter_stays_pending(pipeline: Pipeline) -> None:
    with closing(KafkaProducer(bootstrap_servers=pipeline.kafka)) as producer:
        headers = [*headers_of(pipeline.topic, 0).items()]
        producer.send(f"{pipeline.topic}.dead-letter", reading(1), headers=headers).get(timeout=30)
    out, err = pipeline.run(TOOL, "replay", code=1)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"topic {pipeline.topic} does not exist" in err
    assert totals(pipeline.run(TOOL, "list")[0]) == (1, 0)
    assert pipeline.topic not in topics_of(pipeline)


# Wrong usage, and Kafka away


@pytest.mark.parametrize(
    "arguments", [[], ["show"], ["list", "--last", "0"], ["list", "--last", "x"], ["replay", "1"]]
)
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dead_letters.main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("KAFKA_TOPIC", "no topic"), ("KAFKA_BOOTSTRAP_SERVERS", "nowhere")]
)
def test_a_wrong_environment_is_exit_2(
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    assert dead_letters.main(["list"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dead_letters: {name}: {value!r} is not ")


@pytest.mark.slow  # it waits for ten seconds
def test_kafka_away_is_one_line_and_exit_1(pipeline: Pipeline) -> None:
    pipeline.kafka = "127.0.0.1:9"
    processes = [pipeline.start(TOOL, command) for command in ("list", "replay")]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, "")
        assert re.fullmatch(
            r"dead_letters: Kafka at 127\.0\.0\.1:9, as REPLAYER: .+ECONNREFUSED\n", err
        )
