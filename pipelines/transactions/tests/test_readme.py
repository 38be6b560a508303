"""README's commands as they are typed, in order: what it shows must be printed. And the demo.

They are typed in a copy of the folder whose path has a space and an accent. No Docker engine is at
hand: of what README does with it, its native twin is run.
"""

import csv
import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.tests.waiting import wait_until
from pipelines.transactions.store import CARD, Store
from pipelines.transactions.tests.conftest import HERE, PROJECT, Pipeline, Script
from pipelines.transactions.verify import read_folder
from stack.lifecycle import Stack

README = (HERE / "README.md").read_text()
PARTS = re.findall(r"^(?:```(bash|text)\n(.*?)^```|(##+) .*?\n)", README, re.MULTILINE | re.DOTALL)
ELSEWHERE = ("make ", ". .venv/bin/activate", "pip install ", "cd ", "docker")
STOPS_THE_SERVERS = "(cd ../.. && python -m stack down)"
ENDLESS = re.compile(r"(spark-submit consumer_spark|python capteur)\.py$|--metrics-port \d+$")
READY = "reading topic=|sending to topic="


# What varies from run to run: times, ports, sizes, seeds, what is on its way; Java's version.
VARYING = re.compile(
    r"^\S+Z|seconds=\S+|\([\d.]+ s\)|127\.0\.0\.1:\d+|\d+ (files|KB)|seed=\d+"
    r"|(sent|acknowledged)=\d\b|\b17\.[\d.]+|\d+-\d+-\d+$"
)


def skeleton(line: str) -> str:
    """Return a line without what varies, and without the width of its columns."""
    return " ".join(VARYING.sub("#", line).split())


@pytest.fixture
def environ(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """Topic and bucket of the default names, and the session's servers as those of the stack."""
    ports = {name: port for name, port in stack.site.environ.items() if name.endswith("_PORT")}
    pipeline = Pipeline(stack, "", tmp_path)
    return {**pipeline.environ, **ports, "STACK_STATE": str(stack.state)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the pipeline, in a copy of the project as far as it is needed."""
    project = tmp_path / "mon é"
    own = shutil.ignore_patterns(".env", ".spark", "*.png", "__pycache__")  # of this clone
    shutil.copytree(HERE, project / "pipelines/transactions", ignore=own)
    for name in ("common.py", "spark.py"):
        shutil.copy(HERE.parent / name, project / "pipelines")
    for name in ("stack", "extensions", "docker-compose.yml"):
        (project / name).symlink_to(PROJECT / name)
    return project / "pipelines/transactions"


class Reader:
    """Who types README's commands, each in a terminal of its own, and looks for what it shows."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = dict(environ)
        self.typed: list[Script] = []  # since the last output that README shows
        self.running: list[Script] = []
        self.printed: dict[str, str] = {}  # by each command that has ended
        self.number = 0

    def type(self, command: str) -> None:
        """Type a command; wait for its end, or until it is at work if it has none."""
        self.number += 1
        if command.startswith("export "):
            self.environ.update(re.findall(r"(\S+)=(\S+)", command))
            return
        run = command if command.startswith("(") else f"exec {command}"
        script = Script(["bash", "-c", f'cd "{self.folder}" && {run}'], self.environ)
        self.typed.append(script)
        if ENDLESS.search(command):
            script.wait_for(READY)
            self.running.append(script)
        else:
            self.printed[command] = script.end(timeout_s=280)

    def see(self, text: str) -> None:
        """Wait until all lines are printed by what was typed since the last time."""
        shown = text.replace("localhost:9092", self.environ["KAFKA_BOOTSTRAP_SERVERS"])
        expected = list(map(skeleton, shown.splitlines()))

        def missing() -> list[str]:
            printed = set(map(skeleton, "".join(one.text for one in self.typed).splitlines()))
            return [line for line in expected if line not in printed]

        wait_until(
            lambda: not missing(),
            lambda: "\n".join([*missing(), "is not in", *(script.text for script in self.typed)]),
        )

    def stop_all(self) -> None:
        """Press Ctrl-C in each terminal."""
        for script in self.running:
            os.killpg(script.process.pid, signal.SIGINT)
            script.process.wait(120)
            wait_until(script.is_gone, "the end of all that it has started")
            script.reader.join(60)
            assert "Traceback" not in script.text
            if "spark-submit" not in str(script.process.args):  # Java hands on no line after Ctrl-C
                assert re.search(r"stopped (sent|read)=", script.text)
        self.running.clear()


def check_scores(store: Store, ledger: Path) -> None:
    """Compare the stored scores with the formula, worked out here from the stored card."""
    with store.filesystem().open_input_file(f"{store.bucket}/{CARD}") as file:
        card = json.loads(file.read())
    history, threshold = card["history"], card["results"]["score"]["threshold"]
    columns = ["transaction_id", "montant_eur", "timestamp_paris", "score", "suspect"]
    rows = [r for r in read_folder(store, "output", columns) if r["transaction_id"] >= 1_000_000]
    assert len(rows) > 8000
    for row in rows:
        size = max(0, (math.log(row["montant_eur"]) - history["mean"]) / history["deviation"])
        rarity = max(0, -math.log(24 * history["hours"][row["timestamp_paris"].hour]))
        assert row["score"] == pytest.approx(size**2 / 2 + rarity, abs=1e-9)
        assert row["suspect"] == (row["score"] > threshold) or abs(row["score"] - threshold) < 0.01
    noted = csv.DictReader(ledger.read_text().splitlines())
    labels = {int(entry["transaction_id"]): entry["label"] for entry in noted}
    suspects = [labels[row["transaction_id"]] == "fraud" for row in rows if row["suspect"]]
    share = sum(label == "fraud" for label in labels.values()) / len(labels)
    assert sum(suspects) / len(suspects) > 5 * share  # far better than a guess


@pytest.mark.timeout(900)
def test_every_command_works_and_prints_what_readme_shows(
    environ: dict[str, str], folder: Path
) -> None:
    reader = Reader(folder, environ)
    port = re.findall(r":(\d+)", (Path(environ["STACK_STATE"]) / "prometheus.yml").read_text())[-1]
    for kind, text, heading in PARTS:
        if heading:
            if reader.running and "capteur" in str(reader.running[-1].process.args):
                reader.running[0].wait_for(r"batch id=\d+ read=[1-9]")
            reader.stop_all()
            reader.typed.clear()
        elif kind == "bash":
            commands = [line for line in text.splitlines() if not line.startswith(ELSEWHERE)]
            for command in commands:
                if command != STOPS_THE_SERVERS:
                    reader.type(command.replace("9109", port))
        elif reader.typed:
            reader.see(text)
    assert reader.number == 18
    printed = reader.printed
    tables = [
        printed[f"python read.py{option}"].partition("date  ")[2] for option in ("", " --spark")
    ]
    assert tables[0] == tables[1] != ""
    check_scores(Store.from_env(reader.environ), folder / "livre-2.csv")
    drawn, shown = ((one / "transactions.png").read_bytes() for one in (folder, HERE))
    assert drawn[:33] == shown[:33]  # signature, size, depth: the shown one is the command's


@pytest.mark.timeout(900)
def test_the_demonstration_kills_a_batch_and_nothing_is_missing(environ: dict[str, str]) -> None:
    printed = Script([sys.executable, str(HERE / "demo.py")], environ).end(timeout_s=800)
    assert "batch id=2 was begun before: deleting" in printed
    assert re.search(r"^missing +0$", printed, re.MULTILINE)
    assert "✓ Ce qui a été envoyé est exactement ce qui est écrit" in printed
    assert ("(pas de console" in printed) != ("la console de MinIO" in printed)
