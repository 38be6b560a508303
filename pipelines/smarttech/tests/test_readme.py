"""README's commands, in order, typed in a clone whose path has a space and an é, in the C locale.

What it shows must be printed. Kafka is that of the tests, and runs already; the commands that
install or start are left out, and so are two that run until Ctrl-C and the compaction of all
tables, for which test_pipeline.py is there.
"""

import importlib
import os
import re
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pipelines.smarttech import demo
from pipelines.smarttech.settings import FOLDER
from pipelines.tests.waiting import wait_until
from stack import prerequisites
from stack.lifecycle import Stack

from .helpers import Clone, Scripts, still_running

README = (FOLDER / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|text|json)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"python3 \w+\.py\b")
ELSEWHERE = {f"python3 {name}.py" for name in ("kafka_producer", "spark_kafka_consumer", "compact")}
WATCHING = "python3 pipeline_streaming_simple.py"


def skeleton(line: str) -> str:
    """Return a line without what varies from run to run: numbers, and the width of columns.

    The counts of the log are those of the same messages in every run: they stay.
    """
    if " INFO smarttech: " in line:
        return re.sub(r"(seconds=)[\d.]+", r"\1…", line)
    return " ".join(re.sub(r"[-\d.,:]*\d", "#", line).split())


def is_printed(line: str, printed: str) -> bool:
    """Return whether a line of README is among those printed; "…" stands for anything."""
    pattern = re.escape(skeleton(line)).replace("…", ".*")
    return any(re.fullmatch(pattern, skeleton(found)) for found in printed.splitlines())


@pytest.mark.timeout(1200)
def test_every_command_works_and_prints_what_readme_shows(stack: Stack, tmp_path: Path) -> None:
    kafka = stack.servers["kafka"].address
    root = tmp_path / "mon é/smart city"
    clone = Clone(root, kafka, topic="readme")
    printed, ran = "", 0

    def type_or_watch(line: str) -> str:
        return watch(clone) if line == WATCHING else clone.type(line)

    for kind, text in BLOCKS:
        if kind == "json":
            (clone.folder / "sensor_data").mkdir()
            (clone.folder / "sensor_data/test.json").write_text(text, encoding="utf-8")
        elif kind == "text" and printed:  # else it is the drawing
            shown = text.replace("localhost:9092", kafka).replace("sensor_data at", "readme at")
            missing = [line for line in shown.splitlines() if not is_printed(line, printed)]
            assert missing == [], printed
        elif kind == "bash":
            commands = [line for line in text.splitlines() if SCRIPT.match(line)]
            typed = [line for line in commands if line not in ELSEWHERE]
            printed = "".join(map(type_or_watch, typed))
            ran += len(typed)
    assert ran == 12
    assert {file.name for file in root.iterdir()} == {"pipelines", "stack"}  # no litter
    assert list(tmp_path.iterdir()) == [root.parent]


def watch(clone: Clone) -> str:
    """Type the command that waits for files, then Ctrl-C; return what it printed."""
    done = clone.folder / "sensor_data_checkpoint/commits/0"
    with clone.start(WATCHING) as stream:
        wait_until(lambda: still_running(stream) and done.exists(), "the reading in bronze")
        os.killpg(stream.pid, signal.SIGINT)
        printed, _ = stream.communicate(timeout=120)
    assert stream.returncode == 0, printed
    return printed


def test_readme_names_only_files_that_are_there() -> None:
    named = set(re.findall(r"`([\w/-]+\.(?:py|yml|txt))`", README))
    assert [name for name in named if not (FOLDER / name).exists()] == []


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("lent_spark")
def test_the_demonstration_ends_with_a_lake_that_agrees(
    stack: Stack, scripts: Callable[[str], Scripts],
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Its steps in this process; those that run side by side, and the last, as processes."""
    shown = scripts("demo")

    def run_step(_: str, script: str, *argv: str) -> None:
        module = importlib.import_module(f"pipelines.smarttech.{Path(script).stem}")
        shown.call(module.main, *argv)

    for name, server in stack.servers.items():
        port = server.address.rpartition(":")[2]
        monkeypatch.setenv(f"{name.upper()}_HOST_PORT", port)
    monkeypatch.setenv("STACK_STATE", str(stack.state))
    for name, value in shown.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(prerequisites, "docker_answers", lambda: False)
    monkeypatch.setattr(demo, "run_step", run_step)
    monkeypatch.setattr(demo, "FIRST", timedelta(seconds=500))
    monkeypatch.setattr(demo, "LIVE_S", 10)
    assert demo.main([]) == 0
    out = capfd.readouterr().out
    assert "D'un coup, 8 minutes de mesures" in out
    assert "✓ Ce qui a été envoyé est exactement ce que contiennent les tables" in out
    assert out.endswith("pour l'arrêter : python -m stack down\n")
