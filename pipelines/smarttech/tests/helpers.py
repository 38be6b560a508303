"""The scripts as a user runs them, and what the tests ask of them."""

import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pipelines.smarttech import kafka_producer
from pipelines.smarttech.settings import FOLDER
from pipelines.smarttech.simulation import Message, Simulation

PROJECT = FOLDER.parents[1]
NOW = datetime(2025, 12, 15, 10, tzinfo=UTC)


def messages(*argv: str, count: int = 5000) -> list[Message]:
    """Return the first messages of the producer, the same at each call."""
    options = kafka_producer.load_options(["--seed", "1", *argv], {}, NOW)
    return list(islice(Simulation(options).messages(), count))


def message(**changes: Any) -> dict[str, Any]:
    """Return the example of the assignment, with some fields changed."""
    return {
        "timestamp": "2025-12-15T10:00:00Z",
        "device_id": "sensor_001",
        "building": "A",
        "floor": 2,
        "type": "temperature",
        "value": 22.5,
        "unit": "C",
        **changes,
    }


class Scripts:
    """Runs the scripts as a user would, on one topic and one lake."""

    def __init__(self, kafka: str, topic: str, lake: Path) -> None:
        self.kafka = kafka
        self.topic = topic
        self.lake = lake
        self.ledgers: list[str] = []
        self.environ = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "SMARTTECH_TOPIC": topic,
            "SMARTTECH_LAKE": str(lake),
            "SMARTTECH_SIMPLE": str(lake.with_name("simple")),
        }

    @contextmanager
    def started(self, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start a script in a process group of its own: Java, which it starts, is in it too."""
        process = subprocess.Popen(
            [sys.executable, FOLDER / script, *arguments],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:  # a failed test leaves none behind
                    os.killpg(process.pid, signal.SIGKILL)

    def call(
        self, main: Callable[[Sequence[str]], int], *arguments: str, code: int = 0
    ) -> tuple[str, str]:
        """Run a script in this process, check its exit code; return its stdout, stderr and log."""
        out, err = io.StringIO(), io.StringIO()
        log, handler = logging.getLogger("smarttech"), logging.StreamHandler(err)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        with (
            patch.dict(os.environ, self.environ),
            patch("pipelines.common.signal"),  # Ctrl-C remains that of pytest
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            ended = main(arguments)
        log.removeHandler(handler)
        assert ended == code, out.getvalue() + err.getvalue()
        return out.getvalue(), err.getvalue()


class Clone:
    """What this pipeline needs of the project, copied; commands are typed in its folder."""

    def __init__(self, root: Path, kafka: str, topic: str) -> None:
        self.folder = root / "pipelines/smarttech"
        unwanted = shutil.ignore_patterns("lake", "sensor_data*", "results", "__pycache__")
        shutil.copytree(FOLDER, self.folder, ignore=unwanted)
        shutil.copytree(PROJECT / "stack", root / "stack", ignore=unwanted)
        for file in (PROJECT / "pipelines").glob("*.py"):
            shutil.copy(file, root / "pipelines")
        (self.folder / ".env").write_text(
            f"KAFKA_BOOTSTRAP_SERVERS={kafka}\nSMARTTECH_TOPIC={topic}\n"
        )
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environ = {**os.environ, "PATH": path, "LC_ALL": "C"}
        del self.environ["PYTHON_DOTENV_DISABLED"]

    def start(self, line: str) -> subprocess.Popen[str]:
        """Start a command, in a process group of its own."""
        return subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self.environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def type(self, line: str) -> str:
        """Run a command to its end; return what it printed."""
        with self.start(line) as process:
            printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        assert "Traceback" not in printed
        return printed


def still_running(process: subprocess.Popen[str]) -> bool:
    """Return True, or fail with what the process has said."""
    if process.poll() is not None:
        pytest.fail(f"it ended early: {process.communicate()}")
    return True


def newest(log_folder: Path) -> int:
    """Return the newest version in a table's log, -1 without any."""
    return max((int(file.stem) for file in log_folder.glob("[0-9]*.json")), default=-1)


def shown(out: str, name: str) -> int:
    """Return a number that verify.py has printed."""
    found = re.search(rf"^\s*{re.escape(name)}\s+(-?\d+)", out, re.MULTILINE)
    assert found, name
    return int(found[1])


def rows_of(log: str, stage: str) -> int:
    """Return how many rows the consumer says a stage has taken in."""
    found = re.search(rf"{stage} total rows=(\d+)", log)
    assert found, log
    return int(found[1])
