"""kill -9 and restarts of the real servers, while lots come in."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipelines.acid_waters.hdfs import reference
from pipelines.acid_waters.postgresql.history import VersionError
from pipelines.acid_waters.settings import SAMPLE
from pipelines.acid_waters.spark.integration import Integration
from pipelines.acid_waters.spark.offsets import LossError
from pipelines.acid_waters.spark.spark_session import SparkError
from pipelines.acid_waters.tests.conftest import DATA, Scene
from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack, command_line

pytestmark = pytest.mark.timeout(900)  # on a busy machine
SLOW = ("--batch", "2")  # four micro-batches instead of one


def kill_9(process: subprocess.Popen[bytes]) -> None:
    """Kill the consumer and its Java, neither of which can do anything more."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


def java_of(process: subprocess.Popen[bytes]) -> int:
    """Return the process id of the consumer's Java."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if "java" in command_line(int(pid)))


PUBLISH = "LOCK TABLE versions IN ROW EXCLUSIVE MODE"  # nobody can begin to
COPY = "LOCK TABLE fact_sample IN SHARE MODE"  # nor end: versions and fact_measure are written
CHANGE = "LOCK TABLE membership IN SHARE MODE"  # nor change what a version holds: it is written


@contextmanager
def held_up(scene: Scene, before: str = PUBLISH) -> Iterator[Callable[[], int]]:
    """Let nobody go on meanwhile at a point of publishing. Yields a count of those who wait."""
    with scene.connect() as conn, conn.transaction():
        conn.execute(before)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        yield lambda: int(conn.execute(waiting).fetchone()[0])


class Watch:
    """Reads the current version again and again: whatever is seen must be whole."""

    QUERY = """SELECT current_version(),
        (SELECT coalesce(sum(size), 0) FROM lots_at()) AS rows,
        (SELECT coalesce(sum(samples), 0) FROM samples_by_category
         WHERE category = 'waterbody_type') AS samples,
        (SELECT count(*) FROM lots_at() l WHERE NOT EXISTS
         (SELECT FROM fact_measure f WHERE f.lot_id = l.lot_id)) AS without"""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: set[int] = set()
        self.wrong: list[Any] = []
        self.failure: Exception | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def _look(self) -> None:
        ((version, rows, samples, without),) = self.scene.query(self.QUERY)
        self.seen.add(version)
        if rows != samples or without:
            self.wrong.append((version, rows, samples, without))

    def _look_on(self) -> None:
        try:
            while not self._end.wait(0.05):
                self._look()
        except Exception as exc:  # noqa: BLE001  # said where the test ends
            self.failure = exc

    def __enter__(self) -> "Watch":
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    def check(self, last: int) -> None:
        """Check that what was seen was whole: the beginning, the end and something in between."""
        assert self.failure is None
        assert self.wrong == []
        assert {0, last} < self.seen


def test_killed_at_any_moment_nothing_is_half_there(scene: Scene) -> None:
    scene.load_reference()
    scene.send()
    with scene.connect():
        pass  # the tables are there
    received = "SELECT count(*) FROM versions WHERE state = 'received'"
    with Watch(scene) as watch:
        # As soon as lots are received: their rows are being written.
        process = scene.start_consumer(*SLOW)
        wait_until(lambda: scene.query(received)[0][0], "lots received")
        kill_9(process)
        after_first_kill = scene.current()
        # Between the files and the commit.
        before = scene.folders("dataset")
        with held_up(scene) as waiting:
            process = scene.start_consumer(*SLOW)
            wait_until(waiting, "the consumer waits to publish")
            kill_9(process)
        assert len(scene.folders("dataset") - before) == 1
        assert scene.current() == after_first_kill
        # Just after a version, and Java alone.
        process = scene.start_consumer(*SLOW)
        wait_until(lambda: scene.current() > after_first_kill, "a version")
        os.kill(java_of(process), signal.SIGKILL)
        assert process.wait(timeout=120) == 1
        assert "Spark's Java process has ended, start again" in scene.log(process)
        assert "Traceback" not in scene.log(process)
        scene.consume()
    watch.check(8)
    verdict = scene.verify(*DATA)
    assert (verdict.versions, verdict.rows, verdict.integrated) == (8, 760, 8)
    assert scene.query(received) == [(8,)]


def test_killed_within_a_transaction_nothing_of_it_is_there(scene: Scene) -> None:
    scene.load_reference()
    scene.send()
    with scene.connect():
        pass  # the tables are there
    # The consumer, while it copies the facts.
    with held_up(scene, before=COPY) as waiting:
        process = scene.start_consumer()
        wait_until(waiting, "the consumer waits to copy")
        kill_9(process)
        assert scene.current() == 0
    wait_until(lambda: not scene.others(), "PostgreSQL has seen that it is gone")
    assert scene.current() == 0
    assert scene.events() == []
    assert scene.consume() == 0
    verdict = scene.verify(*DATA)
    assert (verdict.versions, verdict.rows, verdict.integrated) == (8, 760, 8)
    # The consumer, while it processes a lot again.
    before = scene.snapshot(8)
    with held_up(scene, before=COPY) as waiting:
        process = scene.start_consumer("--reprocess", "last")
        wait_until(waiting, "the consumer waits to copy")
        kill_9(process)
    wait_until(lambda: not scene.others(), "PostgreSQL has seen that it is gone")
    assert scene.current() == 8
    assert scene.snapshot(8) == before
    scene.verify(*DATA)
    assert scene.consume("--reprocess", "last") == 0
    assert scene.current() == 9
    assert scene.snapshot(9) == before
    # The commands that make versions.
    for command in (["restore", "3"], ["isolate", "LTM_Data_sample-000002", "--reason", "bottle"]):
        with held_up(scene, before=CHANGE) as waiting:
            process = scene.start("postgresql/versions.py", *command)
            wait_until(waiting, "the command waits to change the lots")
            kill_9(process)
        wait_until(lambda: not scene.others(), "PostgreSQL has seen that it is gone")
        assert scene.current() == 9
        assert scene.verify(*DATA).rows == 760


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_again_and_again_at_random(scene: Scene) -> None:
    """As above, at moments that nobody has chosen: while each lot is under way."""
    scene.load_reference()
    scene.send("--lot-size", "40")
    with Watch(scene) as watch:
        while (version := scene.current()) < 19:
            process = scene.start_consumer("--batch", "1")
            wait_until(lambda: scene.current() > version, "a version")
            time.sleep(random.uniform(0, 5))
            kill_9(process)
    watch.check(19)
    verdict = scene.verify(*DATA)
    assert (verdict.versions, verdict.rows, verdict.integrated) == (19, 760, 19)


def test_restarts_of_postgresql_and_hdfs_lose_nothing(scene: Scene, stack: Stack) -> None:
    """PostgreSQL within a transaction, then each while the consumer has nothing to do."""
    scene.load_reference()
    scene.send("--count", "1")
    with scene.connect():
        pass  # the tables are there
    process = scene.start_consumer()
    with suppress(psycopg.OperationalError), held_up(scene, before=COPY) as waiting:
        wait_until(waiting, "the consumer waits to copy")
        stack.stop("postgresql", signal.SIGKILL)
    stack.up(["postgresql"])
    wait_until(lambda: scene.current() == 1, "version 1")

    def tries() -> int:
        return scene.log(process).count("trying again in")

    whose = (["postgresql"], ["namenode", "datanode"], ["datanode"])
    for version, servers in enumerate(whose, 2):
        before = tries()
        for name in servers:
            stack.stop(name, signal.SIGKILL)
        scene.send("--first", str(version), "--count", "1")
        wait_until(lambda before=before: tries() > before, f"it misses {servers[0]}")  # type: ignore[misc]
        stack.up(servers)
        wait_until(lambda expected=version: scene.current() == expected, f"version {version}")  # type: ignore[misc]
    scene.send("--first", "5")
    wait_until(lambda: scene.current() == 8, "version 8")
    scene.stop_consumer(process, signal.SIGTERM)
    verdict = scene.verify(*DATA)
    assert (verdict.versions, verdict.rows) == (8, 760)


def test_ctrl_c_while_spark_starts_is_a_clean_end(scene: Scene) -> None:
    process = scene.start_consumer()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (java,) = wait_until(lambda: children.read_text().split(), "Java is started")
    scene.stop_consumer(process, signal.SIGINT)
    wait_until(lambda: not Path(f"/proc/{java}").exists(), "Java has ended too")


def test_a_second_consumer_is_refused_elsewhere_too(scene: Scene) -> None:
    """On another machine no lock tells them apart: the first lots that both have settled do."""
    scene.load_reference()
    scene.send()
    with ThreadPoolExecutor() as pool:
        with held_up(scene) as waiting:
            first = pool.submit(scene.consume)
            wait_until(lambda: waiting() == 1, "one waits to publish")
            second = scene.start_consumer()
            wait_until(lambda: waiting() == 2, "behind it, one waits to receive the same lots")
            third = scene.run("spark/spark_consumer.py")  # on the second's machine
        assert first.result(timeout=300) == 0
    assert third.returncode == 1
    assert "another consumer integrates" in third.stderr
    assert len(third.stderr.splitlines()) == 1
    assert second.wait(timeout=120) == 1
    log = scene.log(second)
    assert "another consumer has settled these lots: only one may run" in log
    assert "trying again" not in log
    verdict = scene.verify(*DATA)
    assert (verdict.versions, verdict.integrated, verdict.rejected) == (8, 8, 0)


def test_a_reference_that_is_not_whole_is_said(scene: Scene) -> None:
    """As the loader leaves it when it is killed while it writes, and as nobody should."""
    scene.load_reference()
    url = scene.environ["HDFS_URL"]
    files, folder = reference.file_system(f"{url}/reference/sites")
    with pytest.raises(SparkError, match="methods is not there: run prepare"):
        reference.read_reference(scene.spark, f"{url}/elsewhere", "methods")
    files.delete(folder.suffix("/_SUCCESS"), False)
    with pytest.raises(SparkError, match="sites is not whole: run prepare"):
        scene.consume("--reprocess", "last")
    files.delete(folder, True)
    files.create(folder.suffix("/_SUCCESS")).close()
    with pytest.raises(SparkError, match="sites is empty: run prepare"):
        scene.consume("--reprocess", "last")


def test_the_reference_in_use_stays_until_the_new_one_is_whole(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.load_reference()
    url = scene.environ["HDFS_URL"]
    before = reference.read_reference(scene.spark, url, "sites")
    rows = reference.read_files(SAMPLE)["sites"][1:]
    with monkeypatch.context() as changed:  # killed, or not the same, before the new one is used
        changed.setattr(reference, "cell_text", lambda *_: "another")
        assert reference.load(scene.spark, url, "sites", rows)
    assert reference.read_reference(scene.spark, url, "sites") == before
    assert not reference.load(scene.spark, url, "sites", rows)
    assert len(reference.read_reference(scene.spark, url, "sites")) == len(rows)
    with scene.connect() as conn:  # and methods in use are known after New Year
        methods = Integration(scene.spark, conn, url).methods
    now = datetime.now(UTC).year
    found = Counter(row.year for row in methods.select("year").collect())
    assert found[now + 1] == found[now] > 0


def test_what_the_consumer_cannot_go_on_from_is_said(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "1")
    scene.consume()
    with scene.connect() as conn:  # as if the topic had been made anew, with less in it
        conn.execute("UPDATE positions SET next_offset = next_offset + 100")
    with pytest.raises(LossError, match="was made anew: partition"):
        scene.consume()
    with scene.admin() as admin:  # made anew, with more in it
        admin.delete_topics([scene.topic])
        wait_until(lambda: scene.topic not in admin.list_topics(), "it is deleted")
    scene.send()
    with pytest.raises(LossError, match="was deleted and made anew"):
        scene.consume()
    assert scene.current() == 1
    with scene.connect() as conn:  # as if the consumer had been killed before
        conn.execute("DELETE FROM membership")
        conn.execute("DELETE FROM versions WHERE state <> 'received'")
    with pytest.raises(VersionError, match="LTM_Data_sample-000001 is received and not settled"):
        scene.consume("--reprocess", "LTM_Data_sample-000001")
