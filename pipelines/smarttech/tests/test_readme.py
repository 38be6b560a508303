"""README's commands, in order, typed in a clone; what it shows must be printed.

Kafka is that of the tests, and runs already; the commands that install or start are left out, and
so are the two that run until Ctrl-C, which other tests stop.
"""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from pipelines.smarttech import demo
from pipelines.smarttech.settings import FOLDER
from stack import prerequisites
from stack.lifecycle import Stack

from .helpers import Clone

README = (FOLDER / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|text|json)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"python3 \w+\.py\b")
ENDLESS = ("python3 kafka_producer.py", "python3 spark_kafka_consumer.py")


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
    clone = Clone(tmp_path, kafka, topic="readme")
    printed, ran = "", 0
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
            typed = [line for line in commands if line not in ENDLESS]
            printed = "".join(map(clone.type, typed))
            ran += len(typed)
    assert ran == 13
    litter = {file.name for file in tmp_path.iterdir()} - {"pipelines", "stack"}
    assert litter == set()


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
    monkeypatch.setattr(prerequisites, "docker_answers", lambda: False)
    monkeypatch.setattr(demo, "FIRST", timedelta(seconds=500))
    monkeypatch.setattr(demo, "LIVE_S", 10)
    assert demo.main() == 0
    out = capfd.readouterr().out
    assert "D'un coup, 8 minutes de mesures" in out
    assert "✓ Ce qui a été envoyé est exactement ce que contiennent les tables" in out
    assert out.endswith("pour l'arrêter : python -m stack down\n")
