"""The consumer as a process on real servers: killed, twice at once, launched by spark-submit."""

import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.structs import TopicPartition

from pipelines.transactions.spark_session import FOLDER
from pipelines.transactions.tests.conftest import (
    BAD,
    HERE,
    ONCE,
    Pipeline,
    Script,
    assert_none_twice,
    new_pipeline,
    numbers,
    wait_until,
)
from stack.lifecycle import Stack


def admin_client(pipeline: Pipeline) -> closing[KafkaAdminClient]:
    """Return a client of the pipeline's Kafka, closed at the end of its block."""
    return closing(KafkaAdminClient(bootstrap_servers=pipeline.environ["KAFKA_BOOTSTRAP_SERVERS"]))


# kill -9


def test_killed_again_and_again_nothing_is_lost_or_doubled(pipeline: Pipeline) -> None:
    """Killed alone, and killed with its Java while a batch's files get their names."""
    months = ("--start", "2026-03-01T00:00:00Z", "--interval", "5000")  # 26 days in a batch
    pipeline.send("--count", "2700", *months, "--seed", "1", *BAD)
    small = ("--batch", "450")

    consumer = pipeline.start("consumer_spark.py", ONCE, *small)
    consumer.wait_for(r"batch id=1 ")
    consumer.kill(whole_group=False)  # Java notices, and ends by itself
    assert_none_twice(pipeline)

    # Of the next batch some files are in place, the others wait in _temporary, and Spark has not
    # noted it as done: the one moment that could double rows.
    consumer = pipeline.start("consumer_spark.py", ONCE, *small)
    consumer.wait_for(r"batch id=\d+ read")
    last = int(re.findall(r"batch id=(\d+) read", consumer.text)[-1])
    wait_until(lambda: pipeline.batch_files(last + 1), f"files of batch {last + 1}")
    consumer.kill()
    assert_none_twice(pipeline)
    begun = pipeline.batch_files(last + 1)

    printed = pipeline.run("consumer_spark.py", ONCE, *small)
    assert f"batch id={last + 1} was begun before: deleting" in printed
    done = pipeline.batch_files(last + 1)
    assert 0 < len(begun) < len(done)  # so the kill did come in between
    assert not set(begun) & set(done)
    assert assert_none_twice(pipeline) == 2700
    assert "written + rejected                2700\n" in pipeline.verify()


# Two on one checkpoint


def test_two_consumers_on_one_checkpoint_do_not_go_on(pipeline: Pipeline) -> None:
    pipeline.send("--count", "500", "--seed", "1")
    first = pipeline.start("consumer_spark.py", "--every", "1")
    first.wait_for("batch id=0 ")
    refused = pipeline.run("consumer_spark.py", "--every", "1", code=1)
    (line,) = refused.splitlines()
    assert f"another consumer works on s3a://{pipeline.name}/checkpoint" in line

    # With a home of its own it does not see the lock, like one on another machine.
    home = pipeline.folder / "home"
    connectors = home / FOLDER.relative_to(Path.home())
    connectors.parent.mkdir(parents=True)
    connectors.symlink_to(FOLDER)
    command = [sys.executable, str(HERE / "consumer_spark.py"), "--every", "1"]
    second = Script(command, {**pipeline.environ, "HOME": str(home)})
    second.wait_for("reading topic=")
    both = (first, second)
    for number in range(60):
        pipeline.send("--count", "500", "--seed", str(number))
        if any(script.process.poll() is not None for script in both):
            break
    ended, other = sorted(both, key=lambda script: script.process.poll() is None)
    last, sums = ended.end(1).splitlines()[-2:]
    assert "ERROR consumer_spark: another consumer works on the same checkpoint/" in last
    assert "stopped read=" in sums

    # Java ends under the other one, as when the system lacks memory.
    java = subprocess.run(["pgrep", "-P", str(other.process.pid)], capture_output=True, text=True)
    os.kill(int(java.stdout), signal.SIGKILL)
    last, sums = other.end(1).splitlines()[-2:]
    assert "ERROR consumer_spark: Spark's Java has ended: killed, or out of memory?" in last


# Launching and stopping


@pytest.fixture(scope="module")
def submitted(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The topic and bucket of the next two tests, which follow each other."""
    return new_pipeline(stack, "submitted", tmp_path_factory.mktemp("submitted"))


def test_spark_submit_and_a_clean_stop(submitted: Pipeline) -> None:
    """By `kill`, which reaches spark-submit's Java alone; Ctrl-C is typed in test_readme.py."""
    spark_submit = str(Path(sys.executable).with_name("spark-submit"))
    submitted.send("--count", "200", "--seed", "1", *BAD)
    consumer = submitted.start("consumer_spark.py", "--every", "1", launcher=spark_submit)
    consumer.wait_for("batch id=0 read=200")
    consumer.process.terminate()
    consumer.process.wait(60)
    wait_until(consumer.is_gone, "the end of all that spark-submit has started")
    assert "Traceback" not in consumer.text


def test_done_again_without_its_commit_and_stopped_by_deleted_records(submitted: Pipeline) -> None:
    """A batch that is written to its end and done again; then records that Kafka has lost."""
    submitted.store.filesystem().delete_dir_contents(f"{submitted.name}/checkpoint/commits")
    printed = submitted.run("consumer_spark.py", ONCE)
    assert re.search(r"batch id=\d+ was begun before: deleting \S+/output/", printed)
    assert re.search(r"batch id=\d+ was begun before: deleting \S+/rejects/", printed)
    assert numbers(printed.splitlines()[-1])["read"] == 200
    assert assert_none_twice(submitted) == 200
    submitted.verify()

    submitted.send("--count", "50", "--seed", "11")
    with admin_client(submitted) as admin:
        admin.delete_records({TopicPartition(submitted.name, n): -1 for n in range(3)})  # all
    submitted.send("--count", "50", "--seed", "12")
    printed = submitted.run("consumer_spark.py", ONCE, code=1)
    assert "Kafka has deleted records before they were read" in printed
    assert numbers(printed.splitlines()[-1]) == {"read": 0, "written": 0, "rejected": 0}

    # A new topic of the same name, whatever it holds, is not the one that was read.
    with admin_client(submitted) as admin:
        admin.delete_topics([submitted.name])
    wait_until(lambda: "made, 3" in submitted.run("prepare.py"), "the topic made anew")
    printed = submitted.run("consumer_spark.py", ONCE, code=1)
    assert f"topic {submitted.name} was deleted and made anew" in printed.splitlines()[-1]

    # The way out is another bucket; without its checkpoint this one would be overwritten.
    submitted.store.filesystem().delete_dir(f"{submitted.name}/checkpoint")
    printed = submitted.run("consumer_spark.py", ONCE, code=1)
    assert "choose another bucket by S3_BUCKET" in printed.splitlines()[-1]
    assert assert_none_twice(submitted) == 200
