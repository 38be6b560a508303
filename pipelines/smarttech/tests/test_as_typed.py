"""What the exercise's document has its reader type, beside what test_readme.py types."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

from pipelines.common import only_copy
from pipelines.smarttech.settings import FOLDER
from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack

from .helpers import Clone, newest, still_running

PROJECT = FOLDER.parents[1]
READINGS = 4


@pytest.mark.timeout(600)
def test_the_three_scripts_as_they_are_typed(stack: Stack, tmp_path: Path) -> None:
    """By spark-submit, whose own Java has no connectors; with a checkpoint as the document's."""
    root = tmp_path / "mon é/smart city"
    clone = Clone(root, stack.servers["kafka"].address, topic="typed")
    printed = clone.type(f"python3 kafka_producer.py --count {READINGS}")  # one a second
    assert f"stopped sent={READINGS} acknowledged={READINGS} failed=0" in printed
    checkpoint = tmp_path / "kafka_checkpoint"
    lake = clone.folder / "lake"
    line = f"env LC_ALL=C.UTF-8 spark-submit spark_kafka_consumer.py --checkpoint {checkpoint}"
    with clone.start(line) as submit:
        gold = lake / "sensor_data_gold/_delta_log"
        wait_until(lambda: still_running(submit) and newest(gold) > 0, "a batch in gold")
        submit.terminate()  # it alone: what it has started ends with it
        printed, _ = submit.communicate(timeout=120)
    assert f"silver batch=0 rows={READINGS} silver={READINGS} " in printed
    assert {"bronze", "silver", "gold"} <= {folder.name for folder in checkpoint.iterdir()}
    wait_until(lambda: is_free(lake), "the end of the consumer")
    printed = clone.type("python3 read_delta.py")
    assert re.search(rf"^silver +1 +{READINGS} ", printed, re.MULTILINE)
    [_, rows] = re.split(r"^silver, last 5 rows$", printed, flags=re.MULTILINE)
    assert rows.split("\n\n")[0].count("sensor_00") == READINGS
    assert set(tmp_path.iterdir()) == {checkpoint, root.parent}  # no litter


def is_free(folder: Path) -> bool:
    """Return whether no process holds the lock of a folder."""
    with only_copy(folder / "lock") as lock:
        return lock is not None


def test_what_the_scripts_import_is_in_requirements() -> None:
    """And what these distributions need themselves: nothing else has to be installed."""
    named = re.findall(r"^[\w-]+", (FOLDER / "requirements.txt").read_text(), re.MULTILINE)
    allowed = {name.lower() for name in named}
    for name in named:
        for needed in requires(name) or []:
            if "extra ==" not in needed:
                allowed.add(re.split(r"[^\w.-]", needed)[0].lower())
    files = [*FOLDER.glob("*.py"), *FOLDER.parent.glob("*.py"), *PROJECT.glob("stack/**/*.py")]
    imported = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    others = imported - sys.stdlib_module_names - {"pipelines", "stack"}
    assert {name for name in others if not allowed & {d.lower() for d in distributions[name]}} == (
        set()
    )
