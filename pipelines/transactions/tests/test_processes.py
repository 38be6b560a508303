"""The consumer as a process on real servers: killed, twice at once, launched by spark-submit."""

import os
import re
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.structs import TopicPartition

from pipelines.tests.waiting import wait_until
from pipelines.transactions import checkpoint
from pipelines.transactions.tests.conftest import (
    BAD,
    ONCE,
    Job,
    Pipeline,
    rows_seen,
)

# kill -9


def test_killed_again_and_again_nothing_is_lost_or_doubled(pipeline: Pipeline, job: Job) -> None:
    """Killed alone, and killed with its Java while a batch's files get their names."""
    weeks = ("--start", "2026-03-01T00:00:00Z", "--interval", "2500")  # 13 days in a batch
    pipeline.send("--count", "1800", *weeks, "--seed", "1", *BAD)
    small = ("--batch", "450")

    killed = pipeline.start("consumer_spark.py", ONCE, *small)
    killed.wait_for(r"batch id=1 ")
    children = Path(f"/proc/{killed.process.pid}/task/{killed.process.pid}/children")
    (java,) = map(int, children.read_text().split())
    os.kill(java, signal.SIGSTOP)  # it would notice, and end by itself
    killed.process.kill()

    # Of the next batch some files are in place, the others wait in _temporary, and Spark has not
    # noted it as done: the one moment that could double rows.
    consumer = pipeline.start("consumer_spark.py", ONCE, *small)
    consumer.wait_for("waiting at most 30 s: another consumer works on ")
    os.kill(java, signal.SIGCONT)
    consumer.wait_for(r"batch id=\d+ read")
    last = int(re.findall(r"batch id=(\d+) read", consumer.text)[-1])
    wait_until(lambda: pipeline.batch_files(last + 1), f"files of batch {last + 1}")
    consumer.kill()
    rows_seen(pipeline)  # none twice
    begun = pipeline.batch_files(last + 1)

    job.run(ONCE, *small)
    assert f"batch id={last + 1} was begun before: deleting" in job.text
    done = pipeline.batch_files(last + 1)
    assert 0 < len(begun) < len(done)  # so the kill did come in between
    assert not set(begun) & set(done)
    pipeline.verify()


# Two on one checkpoint


def test_two_consumers_on_one_checkpoint_do_not_go_on(
    pipeline: Pipeline, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.send("--count", "500", "--seed", "1")
    often = ("--every", "1")
    first = pipeline.start("consumer_spark.py", *often)
    first.wait_for("batch id=0 ")
    monkeypatch.setattr(checkpoint, "LOCK_WAIT_S", 0)
    (line,) = job.run(*often, code=1)
    assert f"another consumer works on s3a://{pipeline.name}/checkpoint" in line

    # One on another machine does not see the lock.
    monkeypatch.setattr(checkpoint, "lock_file", lambda _: pipeline.folder / "lock")
    second = job.start(*often)
    wait_until(lambda: "reading topic=" in job.text, "the second at work")

    def one_has_ended() -> bool:
        pipeline.send("--count", "100", "--seed", "2")
        return second.done() or first.process.poll() is not None

    wait_until(one_has_ended, "one that ends")
    if second.done():
        assert second.result() == 1
        logged = job.log
    else:
        logged = first.end(1).splitlines()
    assert "another consumer works on the same checkpoint/" in logged[-2]
    assert "stopped read=" in logged[-1]


# Launching and stopping


def test_spark_submit_and_a_clean_stop(pipeline: Pipeline) -> None:
    """By `kill`, which reaches spark-submit's Java alone; Ctrl-C is typed in test_readme.py."""
    spark_submit = str(Path(sys.executable).with_name("spark-submit"))
    pipeline.send("--count", "200", "--seed", "1", *BAD)
    consumer = pipeline.start("consumer_spark.py", "--every", "1", launcher=spark_submit)
    consumer.wait_for("batch id=0 read=200")
    consumer.process.terminate()
    consumer.process.wait(60)
    wait_until(consumer.is_gone, "the end of all that spark-submit has started")
    assert "Traceback" not in consumer.text


def test_done_again_without_its_commit_and_stopped_by_deleted_records(
    pipeline: Pipeline, job: Job
) -> None:
    """A batch that is written to its end and done again; then records that Kafka has lost."""
    pipeline.send("--count", "200", "--seed", "1", *BAD)
    job.run(ONCE)
    files = pipeline.store.filesystem()
    files.delete_dir_contents(f"{pipeline.name}/checkpoint/commits")
    logged = job.run(ONCE)
    assert re.search(r"batch id=0 was begun before: deleting \S+/output/", job.text)
    assert re.search(r"batch id=0 was begun before: deleting \S+/rejects/", job.text)
    assert "stopped read=200 " in logged[-1]
    pipeline.verify()

    admin = KafkaAdminClient(bootstrap_servers=pipeline.servers.kafka)
    with closing(admin):
        pipeline.send("--count", "50", "--seed", "11")
        admin.delete_records({TopicPartition(pipeline.name, n): -1 for n in range(3)})  # all
        pipeline.send("--count", "50", "--seed", "12")
        logged = job.run(ONCE, code=1)
        assert "Kafka has deleted records before they were read" in logged[-2]
        assert "stopped read=0 written=0 rejected=0" in logged[-1]

        # A new topic of the same name, whatever it holds, is not the one that was read.
        admin.delete_topics([pipeline.name])
        wait_until(pipeline.servers.make_topic, "the topic made anew")
    assert f"topic {pipeline.name} was deleted and made anew" in job.run(ONCE, code=1)[-1]
    other = f"{pipeline.name}-other"
    assert (
        f"that of topic {pipeline.name}, not of {other}: choose"
        in (job.run(ONCE, "--topic", other, code=1)[-1])
    )

    # The way out is another bucket; without its checkpoint this one would be overwritten.
    files.delete_dir(f"{pipeline.name}/checkpoint")
    assert "choose another bucket by S3_BUCKET" in job.run(ONCE, code=1)[-1]
    assert rows_seen(pipeline) == 200
