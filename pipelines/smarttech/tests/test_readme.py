"""README's commands, in order, in a copy of the project; what it shows must be printed.

Kafka is that of the tests, and runs already; the commands that install or start are left out, and
so is the one that runs until Ctrl-C, which other tests stop.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.smarttech import demo
from stack.lifecycle import Stack

from .conftest import FOLDER

README = (FOLDER / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|text)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"python pipelines/smarttech/\w+\.py\b")
ENDLESS = "python pipelines/smarttech/kafka_producer.py"


def skeleton(line: str) -> str:
    """Return a line without what varies from run to run: numbers, and the width of columns."""
    return " ".join(re.sub(r"[-\d.,:]*\d", "#", line).split())


def is_printed(line: str, printed: str) -> bool:
    """Return whether a line of README is among those printed; "…" stands for anything."""
    pattern = re.escape(skeleton(line)).replace("…", ".*")
    return any(re.fullmatch(pattern, skeleton(found)) for found in printed.splitlines())


@pytest.mark.timeout(1200)
def test_every_command_works_and_prints_what_readme_shows(stack: Stack, tmp_path: Path) -> None:
    unwanted = shutil.ignore_patterns("lake", "results", "__pycache__")
    shutil.copytree(FOLDER, tmp_path / "pipelines/smarttech", ignore=unwanted)
    kafka = stack.servers["kafka"].address
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "PATH": path, "KAFKA_BOOTSTRAP_SERVERS": kafka}
    printed, ran = "", 0
    for kind, text in BLOCKS:
        if kind == "text":
            if printed:  # else it is the drawing, or what the demonstration prints
                shown = text.replace("localhost:9092", kafka).splitlines()
                assert [line for line in shown if not is_printed(line, printed)] == [], printed
            continue
        printed = ""
        for command in text.splitlines():
            if not SCRIPT.match(command) or command == ENDLESS:
                continue
            ended = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environ,
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            printed += ended.stdout + ended.stderr
            assert ended.returncode == 0, f"{command}\n{printed}"
            assert "Traceback" not in printed
            ran += 1
    assert ran > 10
    assert sorted(found.name for found in tmp_path.iterdir()) == ["pipelines"]  # no litter


def test_readme_names_only_files_that_are_there() -> None:
    named = set(re.findall(r"`([\w/-]+\.(?:py|yml|txt))`", README))
    assert [name for name in named if not (FOLDER / name).exists()] == []


@pytest.mark.timeout(900)
def test_the_demonstration_ends_with_a_lake_that_agrees(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, server in stack.servers.items():
        port = server.address.rpartition(":")[2]
        monkeypatch.setenv(f"{name.upper()}_HOST_PORT", port)
    monkeypatch.setenv("STACK_STATE", str(stack.state))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", stack.servers["kafka"].address)
    monkeypatch.setenv("SMARTTECH_TOPIC", "demo")
    monkeypatch.setenv("SMARTTECH_LAKE", str(tmp_path / "lake"))
    monkeypatch.setattr(demo, "docker_answers", lambda: False)
    monkeypatch.setattr(demo, "FIRST_COUNT", 1000)
    monkeypatch.setattr(demo, "LIVE_S", 10)
    assert demo.main() == 0
    out = capfd.readouterr().out
    assert "D'un coup, 1000 messages" in out
    assert "✓ Ce qui a été envoyé est exactement ce que contiennent les tables" in out
