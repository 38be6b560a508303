"""The documents whose commands a reader copies, and where each of these commands is tested.

They are README.md, docs/*.md and extensions/*/README.md. A command is a line of a block of bash; a
block of text shows lines that the commands before it print.
"""

import re
import sys
from pathlib import Path

from tests.conftest import PROJECT

# tests/acceptance/test_readme.py runs their commands in this order, on the same servers. The last
# one deletes readings, which the verifier would miss.
ON_SHARED_SERVERS = (
    "README.md",
    "docs/kibana.md",
    "docs/simulateur.md",
    "docs/garanties.md",
    "extensions/monitoring/README.md",
    "extensions/cluster/README.md",
    "extensions/kraft/README.md",
    "docs/exploitation.md",
)
# Document -> the test that runs all its commands, because they need servers of their own.
ON_OWN_SERVERS = {
    "extensions/connect/README.md": "tests/integration/test_connect.py",
    "extensions/secure/README.md": "tests/integration/test_secure.py",
    "extensions/spark/README.md": "tests/integration/test_spark.py",
}
DOCKER_UP = "docker compose -f docker-compose.yml -f {} up -d --wait"
NATIVE_UP = "python -m stack -f docker-compose.yml -f {} up"
CLUSTER, KRAFT = "extensions/cluster/compose.yml", "extensions/kraft/compose.yml"
# Command of a document on shared servers that is not run there -> the file that runs it or what it
# starts, and the words by which that file does so.
TESTED_ELSEWHERE = {
    "make demo": ("tests/acceptance/test_readme.py", 'run("make demo"'),
    "make down": ("tests/acceptance/test_readme.py", 'run("make down"'),
    "make test": (".ci/run", "make test"),
    "make lint": (".ci/run", "make lint"),
    "python -m kibana.load": ("tests/unit/test_kibana.py", 'run("load"'),
    "python -m kibana.export": ("tests/unit/test_kibana.py", 'run("export"'),
    DOCKER_UP.format(CLUSTER): ("tests/faults/test_cluster.py", CLUSTER),
    NATIVE_UP.format(CLUSTER): ("tests/faults/test_cluster.py", CLUSTER),
    DOCKER_UP.format(KRAFT): ("tests/acceptance/test_pipeline.py", KRAFT),
    NATIVE_UP.format(KRAFT): ("tests/acceptance/test_pipeline.py", KRAFT),
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCKER = """#!/bin/sh
[ "$1" = compose ] || exit 1
shift
files=
while [ "$1" = -f ]; do files="$files -f $2"; shift 2; done
command=$1; shift
case "$command $*" in
  "up -d --wait") exec {python} -m stack $files up ;;
  down*) exec {python} -m stack $files down "$@" ;;
  exec*) exec {python} -m stack $files exec "$@" ;;
esac
echo "unknown docker command: $command $*" >&2; exit 64
"""


def blocks(document: str) -> list[tuple[str, str]]:
    """Return a document's blocks of code, in order: (kind, text)."""
    return BLOCK.findall((PROJECT / document).read_text())


def commands(document: str) -> list[str]:
    """Return a document's commands, in order."""
    return [line for kind, text in blocks(document) if kind == "bash" for line in text.splitlines()]


def skeleton(line: str) -> str:
    """Return a line without what varies from run to run: numbers, and the width of columns."""
    return " ".join(re.sub(r"[-\d.,:]*\d", "#", line).split())


def write_docker(folder: Path) -> None:
    """Write a program docker that hands `docker compose` over to `python -m stack`.

    The tests have no Docker engine, and the stack reads the same compose files.
    """
    docker = folder / "docker"
    folder.mkdir(exist_ok=True)
    docker.write_text(DOCKER.format(python=sys.executable))
    docker.chmod(0o755)
