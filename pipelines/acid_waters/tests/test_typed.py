"""What the exercise's document types, word by word, from a folder whose path is hard to read."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.acid_waters.settings import HERE
from pipelines.acid_waters.tests.conftest import Scene
from pipelines.common import PROJECT
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
    shutil.copy(PROJECT / "pipelines/common.py", clone / "pipelines")
    (clone / ".venv").symlink_to(sys.prefix)
    return clone / "pipelines/acid_waters"


@pytest.mark.timeout(900)  # on a busy machine
def test_the_commands_of_the_document(
    scene: Scene, stack: Stack, ports: dict[str, str], no_docker: Path, tmp_path: Path
) -> None:
    """In another time zone, too: it changes nothing."""
    folder = copy_of_the_project(tmp_path)
    path = [str(no_docker), str(folder / "kafka"), f"{sys.prefix}/bin", os.environ["PATH"]]
    environ = {
        **os.environ, **scene.environ, **ports, "STACK_STATE": str(stack.state),
        "PATH": os.pathsep.join(path), "TZ": "Europe/Paris",
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

    prepared = types("python prepare.py")
    assert prepared.returncode == 0, prepared.stderr
    lines = [line.split()[:2] for line in prepared.stdout.splitlines()]
    assert lines[0] == ["topic", "is"]
    assert lines[2:] == [["methods", "rows=217"], ["sites", "rows=12"]]

    consumed = types("spark-submit spark_consumer.py --once", "spark")
    said = consumed.stdout + consumed.stderr
    assert consumed.returncode == 0, said
    assert "published integrated=1 rejected=0 rows=100 version=1" in said
    assert len(said.splitlines()) < 20
    for (sent_at,) in scene.query("SELECT sent_at FROM lots"):
        assert before < sent_at.timestamp() < time.time() + 1
    verified = types("python verify.py")
    assert verified.returncode == 0, verified.stdout
    assert scene.current() == 1
