"""What the exercise's document types, word by word, from a folder whose path is hard to read."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipelines.acid_waters.settings import HERE
from pipelines.acid_waters.spark import spark_consumer
from pipelines.acid_waters.tests.conftest import Scene
from pipelines.common import PROJECT, only_copy
from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack

CREATE_TOPIC = (
    "kafka-topics.sh --create --topic water-quality --bootstrap-server localhost:9092 "
    "--partitions 3 --replication-factor 1"
)


def copy_of_the_project(parent: Path) -> Path:
    """Return a clone of what this pipeline needs, in a folder with a space and an accent."""
    clone = parent / "mon é" / "projet"
    (clone / "pipelines").mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "tests")
    shutil.copytree(HERE, clone / "pipelines/acid_waters", ignore=ignored)
    shutil.copytree(PROJECT / "stack", clone / "stack", ignore=ignored)
    for module in ("common.py", "spark.py"):
        shutil.copy(PROJECT / "pipelines" / module, clone / "pipelines")
    (clone / ".venv").symlink_to(sys.prefix)
    return clone / "pipelines/acid_waters"


@contextmanager
def ended_at_last(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave nothing that a process has started behind, whatever the test finds."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def is_free(lock: Path) -> bool:
    """Return whether no process holds a lock."""
    with only_copy(lock) as held:
        return held is not None


@pytest.mark.timeout(900)  # on a busy machine
def test_the_commands_of_the_document(
    scene: Scene, stack: Stack, ports: dict[str, str], no_docker: Path, tmp_path: Path
) -> None:
    """In another time zone and locale, too: they change nothing."""
    folder = copy_of_the_project(tmp_path)
    path = [str(no_docker), str(folder / "kafka"), f"{sys.prefix}/bin", os.environ["PATH"]]
    environ = {
        **os.environ, **scene.environ, **ports, "STACK_STATE": str(stack.state),
        "PATH": os.pathsep.join(path), "TZ": "Europe/Paris", "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    before = time.time() - 1

    def types(command: str, where: str = ".") -> subprocess.CompletedProcess[str]:
        """Type a command in the folder or below it; topic and port are the test's own."""
        command = command.replace("localhost:9092", scene.environ["KAFKA_BOOTSTRAP_SERVERS"])
        command = command.replace("water-quality", scene.topic)
        return subprocess.run(
            ["sh", "-c", command], cwd=folder / where, env=environ,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    made = types(CREATE_TOPIC)
    assert made.returncode == 0, made.stderr
    assert made.stdout.endswith(f"Created topic {scene.topic}.\n")
    again = types(CREATE_TOPIC)
    assert again.returncode == 1
    assert f"Topic '{scene.topic}' already exists" in again.stdout

    sending = subprocess.Popen(
        ["python", "kafka_producer.py"], cwd=folder / "kafka", env=environ,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with sending:
        assert sending.stderr
        shown = iter(sending.stderr.readline, "")
        assert any("sent batch_id=LTM_Data_sample-000001 size=100 lots=1" in line for line in shown)
        sending.send_signal(signal.SIGINT)
        end = sending.stderr.read()
        assert sending.wait(timeout=60) == 0
    assert "stopped lots=1 rows=100 failed=0" in end
    assert "to go on where this ended: --first 2" in end

    prepared = types("LC_ALL=C python prepare.py")
    assert prepared.returncode == 0, prepared.stderr
    lines = [line.split()[:2] for line in prepared.stdout.splitlines()]
    assert lines[0] == ["topic", "is"]
    assert lines[2:] == [["methods", "rows=217"], ["sites", "rows=12"]]

    submit = subprocess.Popen(
        ["spark-submit", "spark_consumer.py"], cwd=folder / "spark", env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    with submit, ended_at_last(submit):
        assert submit.stdout
        said = []
        for line in submit.stdout:
            said.append(line)
            if "published integrated=1 rejected=0 rows=100 version=1" in line:
                break
        assert len(said) < 20, said
        submit.terminate()  # it alone: what it has started ends with it
        lock = spark_consumer.lock_file(spark_consumer.load_config([], scene.environ))
        wait_until(lambda: is_free(lock), "the end of the consumer")
    for (sent_at,) in scene.query("SELECT sent_at FROM lots"):
        assert before < sent_at.timestamp() < time.time() + 1
    verified = types("python verify.py")
    assert verified.returncode == 0, verified.stdout
    assert scene.current() == 1
