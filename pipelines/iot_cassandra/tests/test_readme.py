"""README's commands, in order, in a fresh copy of the project; what it shows must be printed.

Among them are the exercise document's own. The copy lies in a folder whose name has a space and an
accent. No Docker engine is at hand: `docker` is a stand-in that hands its command over to
`python -m stack`. What only an engine can do (Spark's containers) is left out here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from pipelines.iot_cassandra.tests.conftest import COMPOSE, HERE, PROJECT, Scene, stack_environ

README = (HERE / "README.md").read_text()
BLOCKS = re.findall(r"^```(bash|sql|text)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PREPARED = ("make setup", ". .venv/bin/activate", "pip install ", "cd ")
ELSEWHERE = ("make demo-", "make test-")
NEEDS_ENGINE = ("docker-compose ", "docker network ", "docker cp ", "docker exec -it spark ")
# The tools by the paths that the exercise types: kafka-tool.sh stands there in the container.
DOCKER = """#!/bin/sh
[ "$1 $2" = "exec -it" ] || {{ echo "unknown docker command: $*" >&2; exit 64; }}
service=$3; tool=$(basename "$4" .sh); shift 4
exec {python} -m stack -f {compose} exec "$service" "$tool" "$@"
"""
BY_HAND = (
    '{"sensor_id": 42, "timestamp": "2026-01-15T06:00:00.123Z", "temperature": 1, "humidity": 2}'
)


def skeleton(line: str) -> str:
    """Return a line without what varies from run to run: numbers, and the width of columns."""
    return " ".join(re.sub(r"[-\d.,:]*\d", "#", line).split())


def copy_project(folder: Path) -> None:
    """Make the project as a fresh clone has it, and a docker that is none."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (PROJECT / name).exists() and name.startswith(("pipelines/", "stack/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((PROJECT / name).read_bytes())
    docker = folder / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.format(python=sys.executable, compose=COMPOSE))
    docker.chmod(0o755)


def as_typed(command: str) -> str:
    """Return a command of README with an end, where it has none."""
    if command.endswith("iot_simulator.py"):  # runs until Ctrl-C
        # In the foreground: else the signal comes twice, and may find Python at its end.
        return f"timeout --foreground --preserve-status --signal=INT 5 {command}"
    return f"{command} --once" if command.endswith("kafka_to_cassandra.py") else command


def run(command: str, stdin: str, folder: Path, environ: dict[str, str]) -> str:
    """Run one line of README in the copy; return all it printed."""
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=folder / "pipelines/iot_cassandra",
        env={**environ, "PYTHONPATH": str(folder)},  # for the stand-in's `python -m stack`
        input=stdin,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    printed = ended.stdout + ended.stderr
    assert ended.returncode == 0, f"{command}\n{printed}"
    assert "Traceback" not in printed
    return printed


def test_every_command_works_and_prints_what_readme_shows(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "mon é"
    copy_project(folder)
    addresses = {"localhost:9092": scene.kafka, "localhost:9042": scene.cassandra}
    environ = {name: value for name, value in scene.environ.items() if not name.startswith("IOT_")}
    del environ["CASSANDRA_KEYSPACE"]  # the document's own topic and keyspace
    environ |= stack_environ(scene.stack)
    environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{environ['PATH']}"
    printed = definition = ""
    ran = 0
    for kind, text in BLOCKS:
        for documented, address in addresses.items():
            text = text.replace(documented, address)
        if kind == "text":
            shown = [skeleton(line) for line in text.splitlines() if "✓" not in line]
            missing = [line for line in shown if line not in map(skeleton, printed.splitlines())]
            assert missing == [], printed
            continue
        printed = ""
        for command in text.splitlines() if kind == "bash" else ["docker exec -it cassandra cqlsh"]:
            if command.startswith("stack() "):
                definition = command
            if command.startswith((*PREPARED, *ELSEWHERE, *NEEDS_ENGINE, "stack() ")):
                continue
            if "console-producer" in command:
                stdin = f"{BY_HAND}\n"
            else:
                stdin = text if kind == "sql" else ""
            printed += run(f"{definition}\n{as_typed(command)}", stdin, folder, environ)
            ran += 1
    assert ran > 18
    assert (folder / "pipelines/iot_cassandra/semaine.png").read_bytes().startswith(b"\x89PNG")


def test_readme_names_only_files_and_variables_that_are_there() -> None:
    named = set(re.findall(r"`([\w/-]+\.(?:py|yml|xml|cql|txt|jsonl))`", README))
    missing = [n for n in named if not any((HERE / f / n).exists() for f in ("", "scripts"))]
    assert missing == []
    variables = re.findall(r"`((?:CASSANDRA|SPARK|IOT)_\w+)`", README)
    assert set(variables) <= set(re.findall(r"^(\w+)=", (HERE / ".env.example").read_text(), re.M))
