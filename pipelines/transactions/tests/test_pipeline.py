"""The pipeline on real servers, with real faults: kill -9, servers that are away, replays."""

import csv
import json
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.structs import TopicPartition

from pipelines.tests.other_producers import send_in_transactions, send_with_each_codec
from pipelines.transactions import capteur
from pipelines.transactions.store import OUTPUT, REJECTS, StoreError
from pipelines.transactions.tests.conftest import (
    SERVERS,
    Pipeline,
    is_real_minio,
    new_pipeline,
    new_stack,
    wait_until,
)
from pipelines.transactions.verify import read_folder
from stack.lifecycle import Stack
from stack.native.s3 import MINIO_VERSION

BAD = ("--bad", "0.03", "--fraud", "0.01")
ONCE = "--available-now"


def rows_by_place(pipeline: Pipeline) -> list[tuple[int, int]]:
    """Return the place in Kafka of each row that a reader without Spark sees, sorted."""
    found = []
    for folder in (OUTPUT, REJECTS):
        rows = read_folder(pipeline.store, folder, ["kafka_partition", "kafka_offset"])
        found += [(row["kafka_partition"], row["kafka_offset"]) for row in rows]
    return sorted(found)


def number_seen(pipeline: Pipeline) -> int:
    """Return how many rows a reader sees, -1 where a file went away while it was reading."""
    try:
        return len(rows_by_place(pipeline))
    except StoreError:
        return -1


def assert_none_twice(pipeline: Pipeline) -> int:
    """Make sure that a reader sees no row twice; return how many it sees."""
    places = rows_by_place(pipeline)
    assert len(places) == len(set(places))
    return len(places)


def admin_client(pipeline: Pipeline) -> closing[KafkaAdminClient]:
    """Return a client of the pipeline's Kafka, closed at the end of its block."""
    return closing(KafkaAdminClient(bootstrap_servers=pipeline.environ["KAFKA_BOOTSTRAP_SERVERS"]))


def numbers(line: str) -> dict[str, int]:
    """Return the counts of a line such as "stopped read=3 written=2 rejected=1"."""
    return {name: int(value) for name, value in re.findall(r"(read|written|rejected)=(\d+)", line)}


# kill -9


def test_killed_again_and_again_nothing_is_lost_or_doubled(pipeline: Pipeline) -> None:
    """Killed alone, killed with its Java, and killed while a batch's files get their names."""
    months = ("--start", "2026-03-01T00:00:00Z", "--interval", "5000")  # 26 days in a batch
    pipeline.send("--count", "4000", *months, "--seed", "1", *BAD)
    small = ("--max-records", "450")

    consumer = pipeline.start("consumer_spark.py", ONCE, *small)
    consumer.wait_for(r"batch id=1 ")
    consumer.kill(whole_group=False)  # Java notices, and ends by itself
    assert_none_twice(pipeline)

    consumer = pipeline.start("consumer_spark.py", ONCE, *small)
    consumer.wait_for(r"batch id=\d+ read")
    consumer.kill()
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
    assert assert_none_twice(pipeline) == 4000
    assert "written + rejected                4000\n" in pipeline.verify()


# Servers that are away


@pytest.fixture
def disturbed(stack: Stack) -> Iterator[Stack]:
    """The servers of the session, to be taken down; up again afterwards."""
    try:
        yield stack
    finally:
        stack.up(SERVERS)


@pytest.mark.timeout(600)
def test_servers_away_at_the_start_and_in_mid_run(disturbed: Stack, pipeline: Pipeline) -> None:
    stack = disturbed
    pipeline.send("--count", "400", "--seed", "3", *BAD)

    stack.stop("minio", signal.SIGKILL)
    printed = pipeline.run("consumer_spark.py", "--wait", "1", code=1)
    assert re.search(r"ERROR consumer_spark: the store at http://\S+ does not answer", printed)
    assert pipeline.environ["MINIO_ROOT_PASSWORD"] not in printed

    consumer = pipeline.start("consumer_spark.py", "--every", "0.5")
    consumer.wait_for(r"WARNING consumer_spark: waiting: the store at http://\S+ does not answer")
    stack.up(["minio"])
    consumer.wait_for(r"batch id=\d+ read")

    stack.stop("minio", signal.SIGKILL)
    pipeline.send("--count", "300", "--first-id", "1000", "--seed", "4", *BAD)
    consumer.wait_for(r"batch failed, nothing is lost, trying again", timeout_s=180)
    stack.up(["minio"])
    consumer.wait_for(r"batch id=\d+ read", times=2)
    wait_until(lambda: number_seen(pipeline) == 700, "700 rows", 180)

    # Kafka, under a generator that is sending: what it has not acknowledged, it sends again.
    pipeline.ledgers.append(pipeline.folder / "live.csv")
    evening = ("--start", "2026-10-24T16:00:00Z", "--interval", "0.3")  # 0.13 s at that hour
    live = ("--count", "300", "--first-id", "2000", "--seed", "5", *evening, *BAD)
    generator = pipeline.start("capteur.py", *live, "--ledger", str(pipeline.ledgers[-1]))
    wait_until(lambda: number_seen(pipeline) > 700, "some of the live ones", 180)
    stack.stop("kafka", signal.SIGKILL)
    assert generator.process.poll() is None, "it had nothing left to send"
    stack.up(["kafka"])
    assert "sent=300 acknowledged=300 failed=0" in generator.end()
    wait_until(lambda: number_seen(pipeline) == 1000, "1000 rows", 180)

    other_topic = ("--topic", f"{pipeline.name}-other", *evening)
    generator = pipeline.start("capteur.py", *other_topic)
    generator.wait_for("progress sent=[1-9]")
    stack.stop("kafka", signal.SIGKILL)
    generator.wait_for("progress sent=", times=2)  # it has sent some that nobody takes
    generator.process.send_signal(signal.SIGINT)
    assert re.search(r"ERROR capteur: not acknowledged: [1-9]", generator.end(1))
    away = r"Kafka does not answer at \S+ "
    for script in ("consumer_spark.py", "capteur.py"):
        assert re.search(f"ERROR .*{away}", pipeline.run(script, "--wait", "1", code=1))
    consumer.wait_for(f"WARNING consumer_spark: waiting: {away}", timeout_s=180)
    stack.up(["kafka"])
    pipeline.send("--count", "100", "--first-id", "3000", "--seed", "7", *BAD)
    wait_until(lambda: number_seen(pipeline) == 1100, "1100 rows", 180)

    consumer.process.terminate()
    ended = consumer.end()
    totals = numbers(ended.splitlines()[-1])
    assert totals["read"] == totals["written"] + totals["rejected"] == 1100
    pipeline.verify()


def test_the_store_is_killed_while_a_batch_s_files_get_their_names(
    disturbed: Stack, pipeline: Pipeline
) -> None:
    months = ("--start", "2026-03-01T00:00:00Z", "--interval", "5000")  # 26 days in a batch
    pipeline.send("--count", "900", *months, "--seed", "6", *BAD)
    consumer = pipeline.start("consumer_spark.py", ONCE, "--max-records", "450")
    wait_until(lambda: pipeline.batch_files(0), "files of batch 0", 180)
    disturbed.stop("minio", signal.SIGKILL)
    consumer.wait_for("batch failed, nothing is lost, trying again", timeout_s=180)
    assert "batch id=0 read" not in consumer.text  # so it was in the middle
    disturbed.up(["minio"])
    ended = consumer.end()
    assert "batch id=0 was begun before: deleting" in ended
    assert "stopped read=900 " in ended
    assert assert_none_twice(pipeline) == 900
    pipeline.verify()


def test_what_is_missing_is_said_in_one_line(stack: Stack, tmp_path: Path) -> None:
    pipeline = Pipeline(stack, "nobody-made-this", tmp_path)
    printed = pipeline.run("consumer_spark.py", "--wait", "0", code=1)
    assert printed.splitlines()[-1].endswith(
        f"there is no bucket {pipeline.name} at {pipeline.store.endpoint}: "
        "run python pipelines/transactions/prepare.py"
    )
    assert "there is no bucket" in pipeline.run("read.py", code=1)


def test_a_metrics_port_that_is_taken_is_one_line(pipeline: Pipeline) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        printed = pipeline.run("consumer_spark.py", ONCE, "--metrics-port", port, code=1)
    assert f"--metrics-port {port}: Address already in use: choose another" in printed


# Launching and stopping


@pytest.fixture(scope="module")
def submitted(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The topic and bucket of the next two tests, which follow each other."""
    return new_pipeline(stack, "submitted", tmp_path_factory.mktemp("submitted"))


def test_spark_submit_and_a_clean_stop(submitted: Pipeline) -> None:
    spark_submit = str(Path(sys.executable).with_name("spark-submit"))
    for number, signum in enumerate((signal.SIGINT, signal.SIGTERM)):
        submitted.send("--count", "200", "--seed", str(number), *BAD)
        consumer = submitted.start("consumer_spark.py", "--every", "1", launcher=spark_submit)
        # Of that number: the second may begin with the first again, which was not committed yet.
        consumer.wait_for(f"batch id={number} read=200")
        if signum == signal.SIGINT:  # Ctrl-C reaches all: spark-submit's Java, Python, its Java
            os.killpg(consumer.process.pid, signum)
        else:  # `kill` reaches spark-submit's Java alone
            consumer.process.send_signal(signum)
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
    assert assert_none_twice(submitted) == 400
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
    assert assert_none_twice(submitted) == 400


def test_every_codec_is_read_and_nothing_of_an_aborted_transaction(pipeline: Pipeline) -> None:
    made = capteur.all_records(capteur.load_config(["--count", "140", "--seed", "13"], {}))
    values = [record.value for record in made]
    kafka = pipeline.environ["KAFKA_BOOTSTRAP_SERVERS"]
    send_with_each_codec(kafka, pipeline.name, values[:100])
    aborted, committed = values[100:120], values[120:]
    send_in_transactions(kafka, pipeline.name, aborted=aborted, committed=committed)
    printed = pipeline.run("consumer_spark.py", ONCE)
    assert numbers(printed.splitlines()[-1]) == {"read": 120, "written": 120, "rejected": 0}
    rows = read_folder(pipeline.store, OUTPUT, ["transaction_id"])
    ids = sorted(row["transaction_id"] for row in rows)
    assert ids == [*range(1, 101), *range(121, 141)]


# Reading back, scoring, other stores


def test_read_back_and_score(pipeline: Pipeline) -> None:
    assert "nothing is written yet" in pipeline.run("read.py", code=1)
    assert "no trained score" in pipeline.run("consumer_spark.py", "--score", ONCE, code=1)
    pipeline.send("--count", "3000", "--interval", "30", "--seed", "7", *BAD)
    pipeline.run("consumer_spark.py", ONCE)

    by_pyarrow, by_spark = pipeline.run("read.py"), pipeline.run("read.py", "--spark")
    tables = [text[text.index("date ") :] for text in (by_pyarrow, by_spark)]
    assert tables[0] == tables[1]
    assert re.search(
        r"^2026-10-24  USD +\d+ +[\d ]+\.\d\d +[\d ]+\.\d\d$", by_pyarrow, re.MULTILINE
    )

    printed = pipeline.run("score.py", "--count", "3000", "--fraud", "0.02")
    report = {
        name: [float(value) for value in rest.split()]
        for name, rest in re.findall(r"^(score|amount alone) +([\d. ]+)$", printed, re.MULTILINE)
    }
    for _, precision, recall, f1, found, false, missed in report.values():
        assert found + missed > 30  # frauds
        assert precision == pytest.approx(found / (found + false), abs=0.006)
        assert recall == pytest.approx(found / (found + missed), abs=0.006)
        assert f1 == pytest.approx(2 * found / (2 * found + false + missed), abs=0.006)

    second = ("--start", "2026-10-27T00:00:00Z", "--first-id", "100000", "--count", "1000")
    ledger = pipeline.send(*second, "--interval", "60", "--seed", "8", *BAD)
    pipeline.run("consumer_spark.py", ONCE, "--score")
    pipeline.verify()
    check_scores(pipeline, ledger, report["score"][0])


def check_scores(pipeline: Pipeline, ledger: Path, threshold: float) -> None:
    """Compare the stored scores with the formula, worked out here from the stored card."""
    with pipeline.store.filesystem().open_input_file(f"{pipeline.name}/model/card.json") as file:
        history = json.loads(file.read())["history"]
    columns = ["transaction_id", "montant_eur", "timestamp_paris", "score", "suspect"]
    rows = [
        r for r in read_folder(pipeline.store, "output", columns) if r["transaction_id"] >= 100_000
    ]
    assert len(rows) > 900
    for row in rows:
        size = max(0, (math.log(row["montant_eur"]) - history["mean"]) / history["deviation"])
        rarity = max(0, -math.log(24 * history["hours"][row["timestamp_paris"].hour]))
        assert row["score"] == pytest.approx(size**2 / 2 + rarity, abs=1e-9)
        assert row["suspect"] == (row["score"] > threshold) or abs(row["score"] - threshold) < 0.01
    noted = csv.DictReader(ledger.read_text().splitlines())
    labels = {int(entry["transaction_id"]): entry["label"] for entry in noted}
    suspects = [labels[row["transaction_id"]] == "fraud" for row in rows if row["suspect"]]
    share = sum(label == "fraud" for label in labels.values()) / len(labels)
    assert sum(suspects) / len(suspects) > 5 * share  # far better than a guess


def test_the_job_does_not_know_s3proxy_from_minio(stack: Stack, tmp_path: Path) -> None:
    """The other store: with a cache in which MinIO is not."""
    if not is_real_minio(stack):
        pytest.skip("the other tests run on S3Proxy already: MinIO is not built here")
    cache = tmp_path / "cache"
    cache.mkdir()
    for folder in stack.cache.iterdir():
        if folder.name != f"minio-{MINIO_VERSION}":
            (cache / folder.name).symlink_to(folder)
    other = new_stack(tmp_path / "other", {**os.environ, "STACK_CACHE": str(cache)})
    try:
        other.up(["minio"])
        endpoint = f"http://{other.servers['minio'].address}"
        pipeline = new_pipeline(stack, "s3proxy", tmp_path, endpoint)
        pipeline.send("--count", "1000", "--seed", "9", *BAD)
        consumer = pipeline.start("consumer_spark.py", ONCE, "--max-records", "300")
        consumer.wait_for(r"batch id=1 ")
        consumer.kill()
        pipeline.run("consumer_spark.py", ONCE)
        pipeline.verify()
        assert "transactions: 9" in pipeline.run("read.py")
    finally:
        other.down(wipe=True)


def test_wrong_credentials_are_one_line(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**pipeline.environ, "MINIO_ROOT_PASSWORD": "not this one"}
    monkeypatch.setattr(Pipeline, "environ", property(lambda self: wrong))
    for script, *options in (("prepare.py",), ("read.py",), ("consumer_spark.py", "--wait", "0")):
        printed = pipeline.run(script, *options, code=1)
        assert "refuses MINIO_ROOT_USER or MINIO_ROOT_PASSWORD" in printed.splitlines()[-1]
        assert "not this one" not in printed
