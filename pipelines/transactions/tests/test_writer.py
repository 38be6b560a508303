"""The consumer's writing and its refusals, on a folder instead of a bucket: no server is needed."""

import logging
import math
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from subprocess import TimeoutExpired
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pyarrow.dataset as ds
import pytest
from prometheus_client import CollectorRegistry
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from pipelines.transactions import consumer_spark, read, score, spark_session
from pipelines.transactions.checkpoint import check_checkpoint
from pipelines.transactions.consumer_spark import Config, load_config
from pipelines.transactions.metrics import Metrics
from pipelines.transactions.rules import RATES_SCHEMA
from pipelines.transactions.servers import Servers
from pipelines.transactions.simulation import as_json
from pipelines.transactions.store import Store, StoreError
from pipelines.transactions.tests.conftest import FolderStore
from pipelines.transactions.writer import Writer, load_model

EUROS = as_json(1, "5", "EUR", "2026-10-24T10:00:00Z")
RECORDS = "value BINARY, kafka_partition INT, kafka_offset BIGINT"
README = Path(consumer_spark.__file__).with_name("README.md").read_text()
CONFIG: Config = load_config([], {})


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore("http://x", "bucket", "u", "p", tmp_path)


@pytest.fixture
def writer(spark: SparkSession, store: FolderStore) -> Writer:
    return Writer(spark, store, Metrics(CollectorRegistry()), score=False)


def write(writer: Writer, batch_id: int, values: list[str]) -> None:
    rows = [(bytearray(value.encode()), 0, offset) for offset, value in enumerate(values)]
    writer(writer.spark.createDataFrame(rows, RECORDS), batch_id)


def stored(store: FolderStore, glob: str) -> list[dict[str, Any]]:
    """Return the rows of the files that a glob names."""
    files = sorted(map(str, (store.folder / store.bucket).glob(glob)))
    rows: list[dict[str, Any]] = ds.dataset(files).to_table().to_pylist() if files else []
    return rows


def test_years_that_parquet_or_its_readers_do_not_know_are_refused(
    writer: Writer, store: FolderStore
) -> None:
    """Each alone is a right transaction in euros, which need no rate; none may stop the stream."""
    wrong = (
        "0001-01-01T00:00:00Z", "1582-10-10T00:00:00Z", "1899-12-31T23:59:59Z",
        "1999-12-31T23:59:59.999999Z", "2100-01-01T00:00:00Z", "9999-12-31T23:30:00Z",
    )  # fmt: skip
    right = ("2000-01-01T00:00:00Z", "2099-12-31T23:59:59.999999Z")  # in Paris: 2100
    write(writer, 0, [as_json(1, "5", "EUR", when) for when in (*wrong, *right)])
    rejects = stored(store, "rejects/batch_id=*/*.parquet")
    assert [(row["reason"], row["detail"]) for row in rejects] == [
        ("bad_timestamp", when) for when in wrong
    ]
    rows = stored(store, "output/date=*/batch_id=*/*.parquet")
    assert [row["timestamp_utc"].year for row in rows] == [2000, 2099]
    days = sorted(folder.name for folder in (store.folder / "bucket/output").glob("date=*"))
    assert days == ["date=2000-01-01", "date=2100-01-01"]
    assert writer.metrics.counts == {"read": 8, "written": 2, "rejected": 6}


def test_a_batch_that_became_more_rows_is_not_written(writer: Writer, store: FolderStore) -> None:
    day = date(2026, 10, 24)
    twice = [(day, "USD", Decimal("1.1"), day), (day, "USD", Decimal("1.2"), day)]
    writer.rates = writer.spark.createDataFrame(twice, RATES_SCHEMA)
    with pytest.raises(ValueError, match="batch 0 has 1 records, but 2 rows of them"):
        write(writer, 0, [as_json(1, "5", "USD", "2026-10-24T10:00:00Z")])
    assert not stored(store, "*/**/*.parquet")
    assert not writer.metrics.counts["read"]


def test_the_glob_of_the_readme_leaves_out_what_is_not_finished(
    writer: Writer, store: FolderStore
) -> None:
    (glob,) = set(re.findall(r"`(output/date=\S+\.parquet)`", README))
    write(writer, 0, [as_json(1, "5", "EUR", "2026-10-24T10:00:00Z")])
    (finished,) = (store.folder / "bucket/output").rglob("*.parquet")
    folder = store.folder / "bucket/output/_temporary/0/task_1/date=2026-10-24/batch_id=1"
    folder.mkdir(parents=True)
    (folder / "part-1.parquet").write_bytes(finished.read_bytes())
    assert len(stored(store, "output/**/*.parquet")) == 2  # what it is there for
    assert len(stored(store, glob)) == 1


def test_a_batch_done_again_replaces_its_own_files_only(writer: Writer, store: FolderStore) -> None:
    values = [as_json(1, "5", "EUR", "2026-10-24T10:00:00Z"), "{"]
    for batch_id in (0, 1):
        write(writer, batch_id, values)
    writer.may_be_replay = True
    write(writer, 1, values)
    assert len(stored(store, "output/date=*/batch_id=*/*.parquet")) == 2
    assert len(stored(store, "rejects/batch_id=*/*.parquet")) == 2
    assert writer.metrics.counts == {"read": 4, "written": 2, "rejected": 2}


def test_batches_without_their_checkpoint_are_not_overwritten(
    writer: Writer, store: FolderStore
) -> None:
    check_checkpoint(store)  # a new bucket
    (store.folder / "bucket/output/_temporary/0").mkdir(parents=True)
    check_checkpoint(store)  # nothing is written yet
    write(writer, 0, ["{"])
    with pytest.raises(StoreError, match=r"but not their checkpoint/.* by S3_BUCKET"):
        check_checkpoint(store)
    offsets = store.folder / "bucket/checkpoint/offsets"
    offsets.mkdir(parents=True)
    (offsets / ".0.5e0c.tmp").touch()
    with pytest.raises(StoreError):
        check_checkpoint(store)
    (offsets / "0").touch()
    check_checkpoint(store)


# What reads what is written


@pytest.mark.parametrize("values", [["{", "{}"], [], ["{", EUROS, EUROS]])
def test_both_readers_find_the_same(
    values: list[str], writer: Writer, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when all was refused, and when there is only what is not finished."""
    if values:
        write(writer, 0, values)
    for folder in ("output", "rejects"):
        unfinished = store.folder / "bucket" / folder / "_temporary/0"
        unfinished.mkdir(parents=True)
        (unfinished / "part-0.parquet").write_bytes(b"PAR1")
    lasting = SimpleNamespace(read=writer.spark.read, stop=lambda: None)  # other tests need it
    monkeypatch.setattr(spark_session, "spark_session", lambda *_: (lasting, None))
    by_pyarrow, by_spark = read.totals_by_pyarrow(store), read.totals_by_spark(store)
    assert by_pyarrow == by_spark
    totals, reasons = by_spark
    assert sum(total.transactions for total in totals) == values.count(EUROS)
    assert reasons.total() == len(values) - values.count(EUROS)


# The score


def test_a_score_that_is_not_whole_is_one_line(spark: SparkSession, store: FolderStore) -> None:
    for folder in ("metadata", "stages"):
        (store.folder / "bucket/model" / folder).mkdir(parents=True)
    with pytest.raises(StoreError, match=r"is not whole \(.+\): run python .*score.py again"):
        load_model(store)


def test_from_amounts_that_are_all_the_same_nothing_is_learnt(spark: SparkSession) -> None:
    rows = spark.sql("SELECT 5.00BD montant_eur, timestamp_ntz'2026-10-24 10:00' timestamp_paris")
    with pytest.raises(ValueError, match="all amounts written are the same"):
        score.learn(rows.union(rows))


def test_what_comes_to_no_cent_has_no_size(spark: SparkSession) -> None:
    rows = spark.sql(
        "SELECT montant_eur, timestamp_ntz'2026-10-24 10:00' timestamp_paris "
        "FROM VALUES (5.00BD), (7.00BD), (0.00BD) AS t(montant_eur)"
    )
    history = score.learn(rows)
    assert history.mean == pytest.approx((math.log(5) + math.log(7)) / 2)
    assert history.hours[10] == 2 / 25
    scored = score.score_model(history, 1.0).transform(rows.where("montant_eur = 0"))
    assert [(row["score"], row["suspect"]) for row in scored.collect()] == [(0.0, False)]


@pytest.mark.parametrize("kind", [PySparkException, Py4JError])
def test_what_spark_fails_of_is_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise kind("An error occurred\n: java.io.IOException: away\n\tat org.x.Y(Y.scala:1)")

    for name in ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(Store, "check", lambda _: None)
    monkeypatch.setattr(score, "spark_session", lambda *_: (None, None))
    monkeypatch.setattr(score, "read_parquet", fail)
    assert score.main([]) == 1
    assert capsys.readouterr().err == "score: Spark has failed: java.io.IOException: away\n"


def test_a_spark_that_does_not_start_is_one_line(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError(
            "An error occurred while calling None.x.\n: org.x.SparkException: Could not parse "
            "Master URL: 'bogus'\n\tat org.x.SparkContext$.createTaskScheduler(x.scala:1)\n"
        )

    started: list[Any] = []

    def launch(_: object, pass_fds: list[int]) -> None:
        started.extend([os.environ["LC_ALL"], os.environ.get("HTTP_PROXY"), *pass_fds])

    monkeypatch.setenv("LC_ALL", "no_SUCH")
    monkeypatch.setattr(spark_session, "start_java", launch)
    monkeypatch.setattr(spark_session, "SparkContext", fail)
    monkeypatch.setattr(spark_session, "connectors", list)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    on_this_machine = replace(store, endpoint="http://localhost:9000")
    with (tmp_path / "lock").open("w") as lock:
        with pytest.raises(spark_session.SparkError) as raised:
            spark_session.spark_session("x", on_this_machine, [lock])
        # Java opens any path, asks no proxy for what is here, and holds the lock.
        assert started == ["C.UTF-8", None, lock.fileno()]
    said = "Spark does not start (org.x.SparkException: Could not parse Master URL: 'bogus'): is "
    assert str(raised.value).startswith(said)


# What `run` does with a stream that fails: the queries are pretended, the rest is the consumer's.


@pytest.fixture
def run(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[int, str]]:
    """Return a function: what each query does, what the servers lack -> exit code and log."""
    monkeypatch.setattr(consumer_spark, "check_topic", lambda *_: None)

    def run_all(ends: list[Exception | int], wrong: tuple[str, ...] = ()) -> tuple[int, str]:
        metrics, stop = Metrics(CollectorRegistry()), threading.Event()
        spark, java = MagicMock(), MagicMock()
        java.proc.wait.side_effect = TimeoutExpired("java", 1)
        left, lacks = iter(ends), iter(wrong)

        def watch(*_: Any) -> None:
            end = next(left)
            if isinstance(end, Exception):
                raise end
            metrics.counts.update(read=end, written=end)

        monkeypatch.setattr(consumer_spark, "Writer", lambda *_: None)
        monkeypatch.setattr(consumer_spark, "start_query", lambda *_: None)
        monkeypatch.setattr(consumer_spark, "watch", watch)
        monkeypatch.setattr(Servers, "check", lambda _: next(lacks, ""))
        monkeypatch.setattr(stop, "wait", lambda _: False)
        caplog.set_level(logging.INFO)
        servers = Servers("localhost:9092", "transactions", store)
        code = consumer_spark.run(spark, java, servers, CONFIG, metrics, stop)
        return code, caplog.text

    return run_all


def test_the_sum_is_shown_however_the_stream_ends(run: Callable[..., tuple[int, str]]) -> None:
    two = (  # as HDFSMetadataLog and as MicroBatchExecution say it
        PySparkException("[_LEGACY_ERROR_TEMP_2207] Multiple streaming queries are concurrently"),
        PySparkException("[CONCURRENT_STREAM_LOG_UPDATE] ... Multiple streaming jobs detected"),
    )
    for code, said, ends in (
        (0, "reading topic", [3]),
        (1, "another consumer works on the same checkpoint/", [two[0]]),
        (1, "another consumer works on the same checkpoint/", [two[1]]),
        (1, "holds a record whose time is too large", [PySparkException("x: long overflow")]),
        (1, "gave up after 5 failures in a row", [PySparkException("x")] * 5),
    ):
        ended, logged = run(ends)
        assert ended == code
        assert said in logged
        assert re.search(r"stopped read=\d written=\d rejected=0$", logged.splitlines()[-1])


def test_an_outage_is_no_failure_of_the_batch(run: Callable[..., tuple[int, str]]) -> None:
    failures = [PySparkException("x")] * 12
    code, logged = run([*failures, 3], ("the store does not answer", "") * 12)
    assert code == 0
    assert "gave up" not in logged
    assert "stopped read=3 written=3 rejected=0" in logged


def test_a_server_that_goes_away_before_the_query_is_waited_for(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([Py4JError("away"), OSError("away")])

    def check(*_: object) -> None:
        for exc in errors:
            raise exc

    monkeypatch.setattr(consumer_spark, "check_topic", check)
    code, logged = run([3], ("Kafka does not answer", "", "the store does not answer", ""))
    assert code == 0
    assert logged.count("nothing is lost, trying again") == 2
    assert "stopped read=3 written=3 rejected=0" in logged
