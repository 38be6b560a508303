"""The pipeline on real servers: outages, every codec, reading back, the score, other stores."""

import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaProducer

from pipelines.tests.other_producers import send_in_transactions, send_with_each_codec
from pipelines.tests.waiting import wait_until
from pipelines.transactions import plot, prepare, read
from pipelines.transactions.capteur import load_config, send_to_kafka
from pipelines.transactions.servers import make_topic
from pipelines.transactions.simulation import all_records
from pipelines.transactions.store import OUTPUT
from pipelines.transactions.tests.conftest import (
    BAD,
    ONCE,
    SERVERS,
    Job,
    Pipeline,
    wait_for_rows,
)
from pipelines.transactions.verify import read_folder
from stack.lifecycle import Stack

# Servers that are away


@pytest.fixture
def disturbed(stack: Stack) -> Iterator[Stack]:
    """The servers of the session, to be taken down; up again afterwards."""
    try:
        yield stack
    finally:
        stack.up(SERVERS)


@pytest.mark.timeout(600)
def test_servers_away_at_the_start_and_in_mid_run(
    disturbed: Stack, pipeline: Pipeline, job: Job
) -> None:
    stack = disturbed
    pipeline.send("--count", "400", "--seed", "3", *BAD)

    stack.stop("minio", signal.SIGKILL)
    last = job.run("--wait", "1", code=1)[-1]
    assert re.match(r"ERROR the store at http://\S+ does not answer", last)
    assert pipeline.store.password not in last

    consumer = pipeline.start("consumer_spark.py", "--every", "0.5")
    consumer.wait_for(r"WARNING consumer_spark: waiting: the store at http://\S+ does not answer")
    stack.up(["minio"])
    consumer.wait_for(r"batch id=\d+ read")

    stack.stop("minio", signal.SIGKILL)
    pipeline.send("--count", "300", "--first-id", "1000", "--seed", "4", *BAD)
    consumer.wait_for(r"batch failed, nothing is lost, trying again", timeout_s=180)
    stack.up(["minio"])
    consumer.wait_for(r"batch id=\d+ read", times=2)
    wait_for_rows(pipeline, 700)

    # Kafka, under a generator that is sending: what it has not acknowledged, it sends again.
    pipeline.ledgers.append(pipeline.folder / "live.csv")
    often = ("--interval", "0.1")
    live = ("--first-id", "2000", "--seed", "5", *often, *BAD)
    generator = pipeline.start("capteur.py", *live, "--ledger", str(pipeline.ledgers[-1]))
    wait_for_rows(pipeline, 701)
    stack.stop("kafka", signal.SIGKILL)
    stack.up(["kafka"])
    generator.process.send_signal(signal.SIGINT)
    (sent,) = re.findall(r"stopped sent=(\d+) acknowledged=\1 failed=0", generator.end())
    wait_for_rows(pipeline, 700 + int(sent))

    other_topic = ("--topic", f"{pipeline.name}-other", *often)
    generator = pipeline.start("capteur.py", *other_topic)
    generator.wait_for("progress sent=[1-9]")
    stack.stop("kafka", signal.SIGKILL)
    generator.wait_for("progress sent=", times=2)  # it has sent some that nobody takes
    generator.process.send_signal(signal.SIGINT)
    assert re.search(r"ERROR capteur: not acknowledged: [1-9]", generator.end(1))
    away = r"Kafka does not answer at \S+ "
    other = Pipeline(stack, f"{pipeline.name}-other", pipeline.folder)  # of a job of its own
    for script in ("consumer_spark.py", "capteur.py"):
        assert re.search(f"ERROR .*{away}", other.start(script, "--wait", "1").end(1))
    consumer.wait_for(f"WARNING consumer_spark: waiting: {away}", timeout_s=180)
    stack.up(["kafka"])
    pipeline.send("--count", "100", "--first-id", "9000", "--seed", "7", *BAD)
    wait_for_rows(pipeline, 800 + int(sent))

    consumer.process.terminate()
    ended = consumer.end()
    assert f"stopped read={800 + int(sent)} " in ended
    pipeline.verify()


def test_the_store_is_killed_while_a_batch_s_files_get_their_names(
    disturbed: Stack, pipeline: Pipeline, job: Job
) -> None:
    weeks = ("--start", "2026-03-01T00:00:00Z", "--interval", "2500")  # 13 days in a batch
    pipeline.send("--count", "900", *weeks, "--seed", "6", *BAD)
    end = job.start(ONCE, "--batch", "450")
    wait_until(lambda: pipeline.batch_files(0), "files of batch 0", 180)
    disturbed.stop("minio", signal.SIGKILL)
    wait_until(lambda: "batch failed, nothing is lost, trying again" in job.text, "its failure")
    assert "batch id=0 read" not in job.text  # so it was in the middle
    disturbed.up(["minio"])
    assert end.result(180) == 0
    assert "batch id=0 was begun before: deleting" in job.text
    assert "stopped read=900 " in job.text
    pipeline.verify()


def test_a_record_that_cannot_be_read_is_said_and_ends(
    disturbed: Stack, pipeline: Pipeline, job: Job
) -> None:
    pipeline.send("--count", "100", "--seed", "14")
    disturbed.stop("kafka")  # in order: it does not look through its files at the next start
    (segment,) = disturbed.site.volume(disturbed.services["kafka"], "/var/lib/kafka/data").glob(
        f"{pipeline.name}-0/*.log"
    )
    damaged = bytearray(segment.read_bytes())
    damaged[-1] ^= 1
    segment.write_bytes(damaged)
    disturbed.up(["kafka"])
    logged = job.run(ONCE, code=1)
    assert "ERROR Kafka holds a record that cannot be read: " in logged[-2]
    assert "trying again" not in job.text


def test_a_metrics_port_that_is_taken_is_one_line(job: Job) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        (line,) = job.run(ONCE, "--metrics-port", port, code=1)
    assert line == f"ERROR --metrics-port {port}: Address already in use: choose another"


def test_every_codec_is_read_and_nothing_of_an_aborted_transaction(
    pipeline: Pipeline, job: Job
) -> None:
    made = all_records(load_config(["--count", "140", "--seed", "13"], {}).simulation)
    values = [record.value for record in made]
    kafka = pipeline.environ["KAFKA_BOOTSTRAP_SERVERS"]
    send_with_each_codec(kafka, pipeline.name, values[:100])
    aborted, committed = values[100:120], values[120:]
    send_in_transactions(kafka, pipeline.name, aborted=aborted, committed=committed)
    with closing(KafkaProducer(bootstrap_servers=kafka)) as producer:
        producer.send(pipeline.name, values[100], timestamp_ms=2**62)  # as if in nanoseconds
    assert job.run(ONCE)[-1] == "INFO stopped read=121 written=121 rejected=0"
    rows = read_folder(pipeline.store, OUTPUT, ["transaction_id"])
    ids = sorted(row["transaction_id"] for row in rows)
    assert ids == [*range(1, 102), *range(121, 141)]


# Reading back, other stores


def error_of(script: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a script ends with."""
    assert script.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)


def test_an_empty_bucket_and_a_missing_score_are_one_line(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing is written yet" in error_of(read, capsys)
    assert "no score is trained yet" in error_of(plot, capsys)
    (line,) = job.run("--score", ONCE, code=1)
    assert "no trained score" in line


def test_a_topic_that_kafka_does_not_make_is_said_in_its_words(
    pipeline: Pipeline, job: Job, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """For Kafka's metrics a dot and an underscore are the same: it does not want both."""
    make_topic(pipeline.servers.kafka, f"{pipeline.name}.x")
    name = f"{pipeline.name}_x"
    monkeypatch.setenv("TRANSACTIONS_TOPIC", name)
    said = [error_of(prepare, capsys), *job.run("--wait", "0", code=1)]
    config = load_config(["--wait", "0"], {**pipeline.environ, "TRANSACTIONS_TOPIC": name})
    assert send_to_kafka(iter(()), config, threading.Event()) == 1
    said.append(caplog.messages[-1])
    for line in said:
        assert f" answers with an error (Topic '{name}' collides with" in line


def test_wrong_credentials_are_one_line(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", "not this one")
    (line,) = job.run("--wait", "0", code=1)
    for said in (line, error_of(prepare, capsys), error_of(read, capsys)):
        assert "refuses MINIO_ROOT_USER or MINIO_ROOT_PASSWORD" in said
        assert "not this one" not in said
