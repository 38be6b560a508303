"""The house: what stands at the root, which room may import which, and what no room may do."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

ROOT = {
    ".ci",
    ".env.example",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "RAPPORT.md",
    "README.md",
    "benches",
    "docker-compose.yml",
    "docs",
    "extensions",
    "kafka_to_elasticsearch.py",
    "kibana",
    "mappings",
    "pipelines",
    "pyproject.toml",
    "requirements-dev.txt",
    "requirements.txt",
    "screenshots",
    "sensor_generator.py",
    "stack",
    "tests",
    "tools",
}
SCRIPTS = {"kafka_to_elasticsearch", "sensor_generator"}
# Room -> the other rooms that it may import. The two scripts import none, not even each other.
DOORS: dict[str, set[str]] = {
    "kafka_to_elasticsearch": set(),
    "sensor_generator": set(),
    "stack": set(),
    "docs": set(),
    "kibana": {*SCRIPTS, "stack"},
    "screenshots": {*SCRIPTS, "kibana", "stack"},
    "extensions": {"kafka_to_elasticsearch", "stack"},
    "pipelines": {"stack"},
    "tools": {*SCRIPTS, "kibana", "stack"},
    "benches": {*SCRIPTS, "stack", "tools"},
}
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=PROJECT,
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()
FILES = [Path(name) for name in LISTED if (PROJECT / name).exists()]
PYTHON = [file for file in FILES if file.suffix == ".py"]


def imported_rooms(file: Path) -> Iterator[str]:
    """Yield the first name of every import, inside functions too."""
    for node in ast.walk(ast.parse((PROJECT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_the_root_holds_only_what_the_drawing_lists() -> None:
    assert {file.parts[0] for file in FILES} == ROOT


def test_each_extension_has_its_compose_file_and_its_readme() -> None:
    names = {file.parts[1] for file in FILES if file.parts[0] == "extensions"}
    assert {"cluster", "connect", "kraft", "monitoring", "secure", "spark"} <= names
    for name in names:
        assert {"compose.yml", "README.md"} <= {
            file.name for file in FILES if file.parts[:2] == ("extensions", name)
        }


@pytest.mark.parametrize("room", DOORS)
def test_imports_run_one_way(room: str) -> None:
    files = [file for file in PYTHON if Path(file.parts[0]).stem == room]
    assert files
    for file in files:
        others = {name for name in imported_rooms(file) if name in {*DOORS, "tests"}} - {room}
        assert others <= DOORS[room], file


@pytest.mark.parametrize("forbidden", ["sys.path." + "insert", "noqa: " + "E402"])
def test_no_module_makes_its_own_way_to_the_others(forbidden: str) -> None:
    outside = [file for file in PYTHON if file.parts[0] != "pipelines"]  # run from their folders
    assert [file for file in outside if forbidden in (PROJECT / file).read_text()] == []
