"""README's commands, in order; what it shows must be printed. And the demonstration.

No Docker engine is at hand: what is done with it is left out, and what is done without it is run.
"""

import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.transactions.tests.conftest import HERE, PROJECT, Pipeline, Script
from stack.lifecycle import Stack

BLOCKS = re.findall(
    r"^```(bash|text)\n(.*?)^```", (HERE / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
ELSEWHERE = ("make ", ". .venv/bin/activate", "pip install ", "docker ")
UNTIL_STOPPED = re.compile(r"--score$|--metrics-port \d+$")


def skeleton(line: str) -> str:
    """Return a line without what varies from run to run: numbers, and the width of columns."""
    return " ".join(re.sub(r"[-\d.,:]*\d", "#", line).split())


@pytest.fixture
def environ(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """Topic and bucket of the default names, and the session's servers as those of the stack."""
    ports = {name: port for name, port in stack.site.environ.items() if name.endswith("_PORT")}
    pipeline = Pipeline(stack, "", tmp_path)
    return {**pipeline.environ, **ports, "STACK_STATE": str(stack.state)}


def run(command: str, folder: Path, environ: Mapping[str, str]) -> str:
    """Run one line of README; return all it printed. What runs until Ctrl-C gets one."""
    script = Script(["bash", "-c", f"cd {folder} && exec {command}"], environ)
    if UNTIL_STOPPED.search(command):
        script.wait_for("reading topic=")
        os.killpg(script.process.pid, signal.SIGINT)
        script.process.wait(120)
        script.reader.join(60)
        if not command.startswith("spark-submit"):  # whose Java hands on no line after Ctrl-C
            assert "stopped read=" in script.text
        assert "Traceback" not in script.text
        return script.text
    return script.end(timeout_s=280)


@pytest.mark.timeout(900)
def test_every_command_works_and_prints_what_readme_shows(
    environ: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for entry in PROJECT.iterdir():  # what the commands write here is not written there
        if entry.name not in (".env", "livre.csv"):
            (folder / entry.name).symlink_to(entry)
    printed, ran = "", 0
    for kind, text in BLOCKS:
        if kind == "bash":
            commands = [line for line in text.splitlines() if not line.startswith(ELSEWHERE)]
            commands = [c.replace("9109", environ["TRANSACTIONS_METRICS_PORT"]) for c in commands]
            printed = "".join(run(command, folder, environ) for command in commands)
            ran += len(commands)
        elif printed:
            shown = text.replace("localhost:9092", environ["KAFKA_BOOTSTRAP_SERVERS"])
            lines = set(map(skeleton, printed.splitlines()))
            missing = [line for line in map(skeleton, shown.splitlines()) if line not in lines]
            assert missing == [], printed
    assert ran == 11


@pytest.mark.timeout(900)
def test_the_demonstration_kills_a_batch_and_nothing_is_missing(environ: dict[str, str]) -> None:
    printed = Script([sys.executable, str(HERE / "demo.py")], environ).end(timeout_s=800)
    assert "batch id=2 was begun before: deleting" in printed
    assert re.search(r"^missing +0$", printed, re.MULTILINE)
    assert "✓ Ce qui a été envoyé est exactement ce qui est écrit" in printed
