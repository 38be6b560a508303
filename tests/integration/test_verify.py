"""The verifier itself: what it must not overlook, what is no fault, what it says to the user."""

import json
import os
import re
import subprocess
import sys
import termios
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from tests.conftest import PROJECT, Pipeline

TOOL = "tools.verify"
GOOD = {"temperature": 20.5, "humidity": 50.0, "co2_level": 400, "light_intensity": 7}


def reading(number: int, **fields: Any) -> dict[str, Any]:
    """Return the reading of one second."""
    timestamp = f"2026-06-01T00:{number // 60:02}:{number % 60:02}.000Z"
    return {"sensor_id": "s", "timestamp": timestamp, **GOOD, **fields}


def send(pipeline: Pipeline, *readings: dict[str, Any]) -> None:
    pipeline.send(*[json.dumps(one).encode() for one in readings])


def counts(out: str) -> dict[str, int]:
    """Return the numbers that were printed, by their names."""
    return {name.strip(): int(n) for name, n in re.findall(r"^(.{40}) *(\d+)", out, re.MULTILINE)}


def make_topics(pipeline: Pipeline, **configs: str) -> None:
    names = (pipeline.topic, f"{pipeline.topic}.dead-letter")
    with closing(KafkaAdminClient(bootstrap_servers=pipeline.kafka)) as admin:
        admin.create_topics([NewTopic(name, topic_configs=configs) for name in names])


# What is compared


def test_a_filed_message_that_is_indexed_later_is_no_fault(pipeline: Pipeline) -> None:
    """As when the topic is read again with a wider rule; a document of no message is one."""
    send(pipeline, reading(1), reading(2, temperature=99.0))
    pipeline.consume()
    pipeline.client.index(index=pipeline.index, document=reading(2, temperature=99.0), refresh=True)
    out, _ = pipeline.run(TOOL)
    assert counts(out)["dead-lettered"] == 1
    assert counts(out)["unexpected"] == 0
    pipeline.client.index(index=pipeline.index, document=reading(3), refresh=True)
    out, _ = pipeline.run(TOOL, code=1)
    assert counts(out)["unexpected"] == 1


def test_a_topic_that_does_not_exist_is_no_peace(pipeline: Pipeline) -> None:
    out, err = pipeline.run(TOOL, code=1)
    assert out == ""
    (line,) = err.splitlines()
    assert f"there is no topic {pipeline.topic}" in line


def test_an_empty_topic_is_no_peace(pipeline: Pipeline) -> None:
    make_topics(pipeline)
    pipeline.client.indices.create(index=pipeline.index)
    out, _ = pipeline.run(TOOL, code=1)
    assert out.splitlines()[-1] == (f"nothing to compare: topic {pipeline.topic} holds no message")


@pytest.mark.parametrize("codec", ["zstd", "snappy"])
def test_what_the_consumer_reads_every_tool_reads(pipeline: Pipeline, codec: str) -> None:
    make_topics(pipeline, **{"compression.type": codec})
    pipeline.generate("--count", "200", "--backfill", "1h")
    pipeline.send(b"not a reading")
    pipeline.consume()
    out, _ = pipeline.run(TOOL)
    assert (counts(out)["dead-lettered"], counts(out)["missing"]) == (1, 0)
    out, _ = pipeline.run("tools.dead_letters", "list")
    assert "        1  pending in " in out
    out, _ = pipeline.run("tools.dead_letters", "replay")
    assert out == "replayed=0 still_invalid=1 foreign=0\n"
    out, _ = pipeline.run("tools.sizing")
    assert "measured on 201\n" in out


def test_what_an_open_transaction_hides_is_said_and_not_waited_for(pipeline: Pipeline) -> None:
    send(pipeline, reading(1))
    options = {"bootstrap_servers": pipeline.kafka, "transactional_id": pipeline.topic}
    with closing(KafkaProducer(**options)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        hidden = json.dumps(reading(2)).encode()
        producer.send(pipeline.topic, hidden, partition=0).get(timeout=30)
        send(pipeline, reading(3))
        producer.send(f"{pipeline.topic}.dead-letter", b"hidden").get(timeout=30)
        pipeline.consume()
        out, _ = pipeline.run(TOOL)
        assert counts(out)["hidden by an open transaction, not read"] == 2
        assert counts(out)["dead letters deleted or hidden, not read"] == 1
        assert counts(out)["missing"] == counts(out)["unexpected"] == 0
        out, _ = pipeline.run("tools.dead_letters", "list")
        assert out.endswith("taken by replays before: 0; hidden by an open transaction: 1\n")
        producer.commit_transaction()
    pipeline.consume()
    out, _ = pipeline.run(TOOL)
    assert f"messages in {pipeline.topic}" in out
    assert "hidden" not in out
    assert len(pipeline.documents()) == 3


# What the user sees


def test_a_terminal_shows_how_far_the_work_is(pipeline: Pipeline) -> None:
    send(pipeline, reading(1))
    pipeline.send(b"not a reading")
    pipeline.consume()
    for command, shown in (
        ([TOOL], f"reading {pipeline.topic}: "),
        (["tools.dead_letters", "replay"], "replaying: "),
    ):
        terminal, errors = os.openpty()
        termios.tcsetwinsize(errors, (24, 80))
        ended = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=PROJECT,
            env=pipeline.environ,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            check=False,
        )
        assert shown in os.read(terminal, 100_000).decode()
        assert ended.returncode == 0
        os.close(terminal)
        os.close(errors)
        assert pipeline.run(*command)[1] == "", "no bar where nobody watches"


def test_an_output_that_cannot_be_written_is_a_line_or_silence(pipeline: Pipeline) -> None:
    send(pipeline, reading(1))
    pipeline.consume()
    full = "verify: standard output: No space left on device\n"
    for unbuffered in ("", "1"):
        for redirection, told in {">&-": "", ">/dev/full": full, "| head -1": ""}.items():
            done = subprocess.run(
                ["bash", "-c", f"{sys.executable} -m {TOOL} {redirection}"],
                cwd=PROJECT,
                env={**pipeline.environ, "PYTHONUNBUFFERED": unbuffered},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stderr == told, (redirection, unbuffered)
            assert done.returncode == (1 if told else 0)
