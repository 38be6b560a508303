"""The four pipelines: same role, same file name; same thing, same word; nothing written twice."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT

FOLDERS = sorted(file.parent for file in PROJECT.glob("pipelines/*/requirements.txt"))
PRODUCERS = {
    "acid_waters": "kafka/kafka_producer.py",
    "iot_cassandra": "scripts/iot_simulator.py",
    "smarttech": "kafka_producer.py",
    "transactions": "capteur.py",
}
JOBS = {
    "acid_waters": "spark/spark_consumer.py",
    "iot_cassandra": "scripts/spark_cassandra.py",
    "smarttech": "spark_kafka_consumer.py",
    "transactions": "consumer_spark.py",
}
MOST_LINES = 400
FILES = {
    ".env.example",
    "README.md",
    "demo.py",
    "docker-compose.yml",
    "prepare.py",
    "requirements.txt",
    "settings.py",
    "verify.py",
}
# Options of all producers, and of all Spark jobs.
PRODUCER_OPTIONS = {
    "--bad", "--bootstrap-servers", "--console", "--count", "--ledger", "--seed", "--topic",
    "--wait",
}  # fmt: skip
JOB_OPTIONS = {"--batch", "--bootstrap-servers", "--once", "--topic", "--wait"}
# What an earlier version called otherwise -> the word for it now.
OTHER_WORDS = {
    r"--at-once\b": "--backfill",
    r"--available-now\b": "--once",
    r"--max-records\b|--lots-per-batch\b": "--batch",
    r"dead.letter": "reject",
    r"quarantin": "reject",
}
# What a pipeline changes in the root's ZooKeeper and Kafka; a comment in its file says why.
CHANGED_KEYS: dict[str, set[str]] = {
    "acid_waters": set(),
    "iot_cassandra": {"container_name", "volumes"},
    "smarttech": {"environment"},
    "transactions": {"environment", "command", "ports", "volumes", "configs"},
}


def python_files(folder: Path) -> list[Path]:
    """Return the Python files of a folder, those in folders below it too."""
    return sorted(folder.glob("**/*.py"))


def code_of(folder: Path) -> str:
    """Return the code of a pipeline, without its tests."""
    files = [file for file in python_files(folder) if "tests" not in file.parts]
    return "\n".join(file.read_text() for file in files)


def name_of(folder: Path) -> str:
    """Return a folder's name, which names a test."""
    return folder.name


def test_there_are_four() -> None:
    assert [folder.name for folder in FOLDERS] == sorted(PRODUCERS) == sorted(JOBS)


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_the_same_role_has_the_same_file_name(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} >= FILES
    assert list(folder.glob("**/spark_session.py"))


@pytest.mark.parametrize("folder", [*FOLDERS, PROJECT / "pipelines/tests"], ids=name_of)
def test_no_file_is_too_long_to_be_read(folder: Path) -> None:
    lines = {file: len(file.read_text().splitlines()) for file in python_files(folder)}
    assert {file.name: count for file, count in lines.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_the_same_thing_has_the_same_option(folder: Path) -> None:
    """Options that several scripts of a folder share stand in its settings.py."""
    settings = (folder / "settings.py").read_text()
    for script, options in (
        (PRODUCERS[folder.name], PRODUCER_OPTIONS),
        (JOBS[folder.name], JOB_OPTIONS),
    ):
        places = [folder / script, *(folder / script).parent.glob("*options.py")]
        text = settings + "".join(file.read_text() for file in places)
        assert {option for option in options if f'"{option}"' not in text} == set(), script


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
@pytest.mark.parametrize("word", OTHER_WORDS)
def test_the_same_thing_has_the_same_word(folder: Path, word: str) -> None:
    texts = [*python_files(folder), folder / "README.md", folder / "docker-compose.yml"]
    found = {
        file.name: line
        for file in texts
        for line in file.read_text().splitlines()
        if re.search(word, line, re.IGNORECASE)
    }
    assert found == {}, f"the word is {OTHER_WORDS[word]}"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_the_way_to_the_project_s_modules_is_made_once_a_script(folder: Path) -> None:
    for file in python_files(folder):
        text = file.read_text()
        assert text.count("sys.path." + "insert") <= 1, file


def functions(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the code, without comments, of each function and class of a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, ast.unparse(node)


def test_nothing_is_written_in_two_pipelines() -> None:
    """What two of them need stands in pipelines/common.py (in pipelines/tests for the tests)."""
    folders = defaultdict(set)
    for folder in [*FOLDERS, PROJECT / "pipelines"]:
        files = python_files(folder) if folder in FOLDERS else folder.glob("*.py")
        for file in files:
            for name, code in functions(file):
                if len(code.splitlines()) > 4:
                    folders[name, code].add(folder.name)
    assert {name: sorted(of) for (name, _), of in folders.items() if len(of) > 1} == {}


def services(file: Path) -> dict[str, Any]:
    """Return the services of a compose file, as they are written."""
    return dict(yaml.safe_load(file.read_text())["services"])


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
@pytest.mark.parametrize("name", ["zookeeper", "kafka"])
def test_kafka_is_the_one_of_the_main_pipeline(folder: Path, name: str) -> None:
    ours = services(folder / "docker-compose.yml")[name]
    theirs = services(PROJECT / "docker-compose.yml")[name]
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert differing <= CHANGED_KEYS[folder.name]
    assert theirs["environment"].items() <= ours["environment"].items()


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_compose_file_starts_without_env_and_for_this_machine_only(folder: Path) -> None:
    text = (folder / "docker-compose.yml").read_text()
    assert not re.search(r"\$\{\w+:\?", text)
    for name, service in services(folder / "docker-compose.yml").items():
        assert service.get("network_mode") != "host" or name in ("prometheus", "grafana")
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), name


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_job_reads_only_what_is_committed(folder: Path) -> None:
    assert "read_committed" in code_of(folder)
