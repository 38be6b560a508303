"""kill -9 and restarts of the real servers, while lots come in."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipelines.acid_waters.spark.spark_consumer import LossError
from pipelines.acid_waters.tests.conftest import SAMPLE, Scene, wait_until
from stack.__main__ import Stack, command_line

pytestmark = pytest.mark.timeout(900)  # on a busy machine
SLOW = ("--lots-per-batch", "2")  # four micro-batches instead of one


def kill_9(process: subprocess.Popen[str]) -> None:
    """Kill the consumer and its Java, neither of which can do anything more."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def java_of(process: subprocess.Popen[str]) -> int:
    """Return the process id of the consumer's Java."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if "java" in command_line(int(pid)))


class Watch:
    """Reads the current version again and again: whatever is seen must be whole."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: set[int] = set()
        self.wrong: list[Any] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        query = """SELECT current_version(),
            (SELECT coalesce(sum(size), 0) FROM lots_at()) AS rows,
            (SELECT coalesce(sum(samples), 0) FROM samples_by_category
             WHERE category = 'waterbody_type') AS samples,
            (SELECT count(*) FROM lots_at() l WHERE NOT EXISTS
             (SELECT FROM fact_measure f WHERE f.lot_id = l.lot_id)) AS without"""
        while not self._end.wait(0.05):
            try:
                ((version, rows, samples, without),) = self.scene.query(query)
            except psycopg.OperationalError:
                continue  # PostgreSQL is away
            self.seen.add(version)
            if rows != samples or without:
                self.wrong.append((version, rows, samples, without))

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


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
        # Between the files and the commit: publishing is held up, by a lock.
        with scene.connect() as conn, conn.transaction():
            conn.execute("LOCK TABLE versions IN SHARE MODE")
            process = scene.start_consumer(*SLOW)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            wait_until(lambda: conn.execute(waiting).fetchone()[0], "the consumer waits")
            kill_9(process)
        assert scene.current() == after_first_kill
        # Just after a version, and Java alone.
        process = scene.start_consumer(*SLOW)
        wait_until(lambda: scene.current() > after_first_kill, "a version")
        os.kill(java_of(process), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1, err
        assert "Spark's Java process has ended, start again" in err
        assert "Traceback" not in err
        scene.consume(*SLOW, "--once")
    assert watch.wrong == []
    assert {0, 8} <= watch.seen
    verdict = scene.verify(data=SAMPLE)
    assert (verdict.versions, verdict.rows, verdict.integrated) == (8, 760, 8)
    assert scene.query(received) == [(8,)]


def test_restarts_of_postgresql_and_hdfs_lose_nothing(scene: Scene, stack: Stack) -> None:
    scene.load_reference()
    scene.send("--count", "1")
    process = scene.start_consumer(*SLOW)
    wait_until(lambda: scene.current() == 1, "version 1")
    for servers, lots in ((["postgresql"], 2), (["namenode", "datanode"], 3)):
        for name in servers:
            stack.stop(name, signal.SIGKILL)
        scene.send("--first", str(lots), "--count", "1")
        time.sleep(3)  # the consumer meets a server that is away
        stack.up(servers)
        wait_until(lambda expected=lots: scene.current() == expected, f"version {lots}")  # type: ignore[misc]
    scene.send("--first", "4")
    wait_until(lambda: scene.current() == 8, "version 8")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "trying again in" in err
    assert "Traceback" not in err
    verdict = scene.verify(data=SAMPLE)
    assert (verdict.versions, verdict.rows) == (8, 760)


def test_two_consumers_at_once_integrate_each_lot_once(scene: Scene) -> None:
    scene.load_reference()
    scene.send()
    both = [scene.start_consumer(*SLOW) for _ in range(2)]
    wait_until(lambda: scene.current() == 8, "version 8")
    for process in both:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert scene.verify(data=SAMPLE).versions == 8


def test_what_kafka_no_longer_has_is_said(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "1")
    scene.consume()
    with scene.connect() as conn:
        conn.execute('UPDATE lots SET "offset" = "offset" + 100')
    with pytest.raises(LossError, match="was made anew: partition"):
        scene.consume()
