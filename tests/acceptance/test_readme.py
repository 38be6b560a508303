"""The documents' commands, run in order in a fresh copy; what the documents show must be printed.

`docker compose` is a stand-in here, see tests/documents.py. Commands that run until Ctrl-C get one.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from elasticsearch import Elasticsearch

from stack.lifecycle import Stack, command_line
from stack.servers import free_port
from tests.conftest import PROJECT
from tests.documents import ON_SHARED_SERVERS, TESTED_ELSEWHERE, blocks, skeleton, write_docker

pytestmark = pytest.mark.xdist_group("readme")  # one worker: they share servers, in order

RUNS_UNTIL_STOPPED = re.compile(
    r"^python (sensor_generator|kafka_to_elasticsearch)\.py"
    r"(?!.*(--count|--backfill|--until|--duration|--list-sensors|--exit-when-idle))"
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a fresh clone has it, with the stand-in of docker in bin/."""
    folder = tmp_path_factory.mktemp("clone")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (PROJECT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((PROJECT / name).read_bytes())
    write_docker(folder / "bin")
    return folder


@pytest.fixture(scope="module")
def environ(stack: Stack, copy: Path) -> dict[str, str]:
    """The environment in which the commands find the session's servers as those of the stack."""
    given = stack.site.environ.items()
    path = [str(copy / ".venv/bin"), str(copy / "bin"), str(Path(sys.executable).parent)]
    return {
        **os.environ,
        **{name: value for name, value in given if name.endswith(("_PORT", "_INTERVAL"))},
        "PATH": os.pathsep.join([*path, os.environ["PATH"]]),
        "KAFKA_BOOTSTRAP_SERVERS": stack.servers["kafka"].address,
        "ELASTICSEARCH_URL": f"http://{stack.servers['elasticsearch'].address}",
        "STACK_STATE": str(stack.state),
    }


def run(command: str, folder: Path, environ: Mapping[str, str]) -> str:
    """Run one line of a document in the copy; return all it printed."""
    if RUNS_UNTIL_STOPPED.match(command):
        # In the foreground: else the signal comes twice, and may find Python at its end.
        command = f"timeout --foreground --preserve-status --signal=INT 12 {command}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    printed = ended.stdout + ended.stderr
    assert ended.returncode == 0, f"{command}\n{printed}"
    assert "Traceback" not in printed
    return printed


def fill(folder: Path, environ: Mapping[str, str]) -> None:
    """Index some readings if no command has yet, so that each document can be tested alone."""
    with Elasticsearch(environ["ELASTICSEARCH_URL"]) as client:
        if not client.indices.exists(index="sensors_data"):
            generator = "python -m tools.faulty_sensors --backfill 1h --fault malformed=0.02"
            run(generator, folder, environ)
            run("python kafka_to_elasticsearch.py --exit-when-idle 3", folder, environ)


@pytest.mark.parametrize("document", ON_SHARED_SERVERS)
def test_every_command_works_and_prints_what_the_document_shows(
    document: str, copy: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    if document != "README.md":  # which has Python's libraries installed first
        fill(copy, environ)
    elsewhere = {**environ, "STACK_STATE": str(tmp_path)}  # servers of other tests are not stopped
    printed = ""
    for kind, text in blocks(document):
        text = text.replace("http://localhost:9200", environ["ELASTICSEARCH_URL"])
        text = text.replace("localhost:9092", environ["KAFKA_BOOTSTRAP_SERVERS"])
        if kind == "text":
            shown = [skeleton(line) for line in text.splitlines() if "✓" not in line]
            missing = [line for line in shown if line not in map(skeleton, printed.splitlines())]
            assert missing == [], printed
        elif kind == "bash":
            printed = ""
            for command in text.splitlines():
                if command not in TESTED_ELSEWHERE:
                    stops = shlex.split(command)[-1] == "down"
                    printed += run(command, copy, elsewhere if stops else environ)


@pytest.mark.slow
def test_make_demo_in_a_fresh_copy(copy: Path, tmp_path: Path) -> None:
    """From nothing but the cached distributions to the verdict, and down without a process left."""
    names = ("ZOOKEEPER_HOST_PORT", "KAFKA_HOST_PORT", "ELASTICSEARCH_HOST_PORT")
    ports = {name: str(free_port()) for name in names}
    environ = {
        **os.environ,
        **ports,
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{ports['KAFKA_HOST_PORT']}",
        "ELASTICSEARCH_URL": f"http://127.0.0.1:{ports['ELASTICSEARCH_HOST_PORT']}",
        "KIBANA_URL": "http://127.0.0.1:9",
        "STACK_STATE": str(tmp_path / "state"),
    }
    try:
        printed = run("make demo", copy, environ)
        assert "✓ Ce qui a été produit est exactement ce qui est indexé" in printed
        assert (copy / "apercu/index.html").exists()
        again = run("make demo", copy, environ)
        assert "✓ Ce qui a été produit est exactement ce qui est indexé" in again
        assert "kafka          stopped" in run("make down", copy, environ)
    finally:
        run("make wipe", copy, environ)
    processes = [command_line(int(proc.name)) for proc in Path("/proc").glob("[0-9]*")]
    assert not [process for process in processes if str(tmp_path) in process]
