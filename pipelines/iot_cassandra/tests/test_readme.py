"""README's commands, in order, in a fresh copy of the project; what it shows must be printed.

No Docker engine is at hand: `docker compose` is a stand-in here that hands its command over to
`python -m stack`. What only an engine can do (Spark's master and worker) is left out.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from pipelines.iot_cassandra.tests.conftest import COMPOSE, HERE, PROJECT, stack_environ
from stack.lifecycle import Stack

README = (HERE / "README.md").read_text()
BLOCKS = re.findall(r"^```(bash|text)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PREPARED = ("make setup", ". .venv/bin/activate", "pip install ")
ELSEWHERE = ("make demo-", "make test-", "python pipelines/iot_cassandra/benches/bench.py")
NEEDS_ENGINE = "stack exec spark-master"
DOCKER = """#!/bin/sh
shift  # compose
files=
while [ "$1" = -f ]; do files="$files -f $2"; shift 2; done
case "$*" in
  "up -d --wait kafka cassandra spark-worker") exec {python} -m stack $files up kafka cassandra ;;
esac
echo "unknown docker command: $*" >&2; exit 64
"""


def skeleton(line: str) -> str:
    """Return a line without what varies from run to run: numbers, and the width of columns."""
    return " ".join(re.sub(r"[-\d.,:]*\d", "#", line).split())


def copy_project(folder: Path) -> None:
    """Make the project as a fresh clone has it, and a docker that is none."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (PROJECT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((PROJECT / name).read_bytes())
    docker = folder / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.format(python=sys.executable))
    docker.chmod(0o755)


def run(command: str, folder: Path, environ: dict[str, str]) -> str:
    """Run one line of README in the copy; return all it printed."""
    ended = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environ,
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    printed = ended.stdout + ended.stderr
    assert ended.returncode == 0, f"{command}\n{printed}"
    assert "Traceback" not in printed
    return printed


def test_every_command_works_and_prints_what_readme_shows(stack: Stack, tmp_path: Path) -> None:
    copy_project(tmp_path)
    addresses = {name: server.address for name, server in stack.servers.items()}
    environ = {
        **os.environ,
        **stack_environ(stack),
        "PATH": os.pathsep.join(
            [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "KAFKA_BOOTSTRAP_SERVERS": addresses["kafka"],
        "CASSANDRA_HOSTS": addresses["cassandra"],
    }
    elsewhere = {**environ, "STACK_STATE": str(tmp_path / "state")}  # others' are not stopped
    printed = definition = ""
    ran = 0
    for kind, text in BLOCKS:
        if kind == "text":
            text = text.replace("localhost:9092", addresses["kafka"])
            text = text.replace("localhost:9042", addresses["cassandra"])
            shown = [skeleton(line) for line in text.splitlines() if "✓" not in line]
            missing = [line for line in shown if line not in map(skeleton, printed.splitlines())]
            assert missing == [], printed
            continue
        printed = ""
        for command in text.splitlines():
            if command.startswith("stack() "):
                definition = command
                continue
            if command.startswith((*PREPARED, *ELSEWHERE, NEEDS_ENGINE)):
                continue
            stops = command == "stack down"
            if command.endswith("iot_simulator.py"):  # runs until Ctrl-C
                # In the foreground: else the signal comes twice, and may find Python at its end.
                command = f"timeout --foreground --preserve-status --signal=INT 5 {command}"
            printed += run(f"{definition}\n{command}", tmp_path, elsewhere if stops else environ)
            ran += 1
    assert ran > 15


def test_readme_names_only_files_and_variables_that_are_there() -> None:
    named = set(re.findall(r"`([\w/-]+\.(?:py|yml|xml|conf|cql|txt))`", README))
    missing = [n for n in named if not any((HERE / f / n).exists() for f in ("", "scripts"))]
    assert missing == []
    compose = "".join(file.read_text() for file in COMPOSE[1:])
    of_programs = {"CASSANDRA_HOSTS", "IOT_GROUP_ID"}  # in Docker it has its own, or none
    table = set(re.findall(r"`((?:CASSANDRA|SPARK|IOT)_\w+)`", README)) - of_programs
    assert table == set(re.findall(r"\$\{(\w+):-", compose))
