"""README's commands, in order, in a fresh copy of the project; what it shows must be printed.

No Docker engine is at hand: `docker compose` is a stand-in here that hands its command over to
`python -m stack`, which reads the same compose file. Commands that run until Ctrl-C get one.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stack.__main__ import Stack, command_line
from stack.servers import free_port
from tests.conftest import PROJECT, Pipeline

pytestmark = pytest.mark.xdist_group("readme")  # one worker: they share servers, in order

README = (PROJECT / "README.md").read_text()
# That section's commands are for other servers: tests/integration/test_secure.py.
PLAIN = re.sub(
    r"^## Sur un réseau partagé\n.*?(?=^## )", "", README, flags=re.MULTILINE | re.DOTALL
)
BLOCKS = re.findall(r"^```(bash|text)\n(.*?)^```", PLAIN, flags=re.MULTILINE | re.DOTALL)
RUNS_UNTIL_STOPPED = re.compile(
    r"^python (sensor_generator|kafka_to_elasticsearch)\.py"
    r"(?!.*(--count|--backfill|--until|--duration|--list-sensors|--exit-when-idle))"
)
# Run by other tests, or by the one that calls this: `make test` cannot run itself.
ELSEWHERE = ("make demo", "make test", "make lint")
OTHER_SERVERS = re.compile(
    r"\.(kraft|cluster)\.yml"
)  # tests/faults/test_cluster.py starts the latter
NEEDS_KIBANA = "python kibana/import.py"  # tests/unit/test_kibana.py runs it against a stand-in
DOCKER = """#!/bin/sh
shift  # compose
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


def skeleton(line: str) -> str:
    """Return a line without what varies from run to run: numbers, and the width of columns."""
    return " ".join(re.sub(r"[-\d.,:]*\d", "#", line).split())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a fresh clone has it, and a docker that is none."""
    folder = tmp_path_factory.mktemp("clone")
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
    return folder


def run(command: str, folder: Path, environ: dict[str, str]) -> str:
    """Run one line of README in the copy; return all it printed."""
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


def test_every_command_works_and_prints_what_readme_shows(
    stack: Stack, pipeline: Pipeline, copy: Path, tmp_path: Path
) -> None:
    given = stack.site.environ.items()
    ports = {name: value for name, value in given if name.endswith(("_PORT", "_INTERVAL"))}
    environ = {
        **os.environ,
        **ports,
        "PATH": f"{copy}/.venv/bin:{copy}/bin:{os.environ['PATH']}",
        "KAFKA_BOOTSTRAP_SERVERS": pipeline.kafka,
        "ELASTICSEARCH_URL": pipeline.elasticsearch,
        "STACK_STATE": str(stack.state),
    }
    elsewhere = {**environ, "STACK_STATE": str(tmp_path)}  # servers of other tests are not stopped
    printed = ""
    for kind, text in BLOCKS:
        text = text.replace("http://localhost:9200", pipeline.elasticsearch)
        text = text.replace("localhost:9092", pipeline.kafka)
        if kind == "text":
            shown = [skeleton(line) for line in text.splitlines() if "✓" not in line]
            missing = [line for line in shown if line not in map(skeleton, printed.splitlines())]
            assert missing == [], printed
            continue
        printed = ""
        for command in text.splitlines():
            if command in (*ELSEWHERE, NEEDS_KIBANA) or OTHER_SERVERS.search(command):
                continue
            stops = shlex.split(command)[-1] == "down"
            printed += run(command, copy, elsewhere if stops else environ)


def test_commands_tested_elsewhere_are_make_targets() -> None:
    for command in ELSEWHERE:
        assert f"\n{command}\n" in README
        planned = subprocess.run(
            [*command.split(), "--dry-run"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert planned.returncode == 0, planned.stderr


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
    finally:
        run("make wipe", copy, environ)
    processes = [command_line(int(proc.name)) for proc in Path("/proc").glob("[0-9]*")]
    assert not [process for process in processes if str(tmp_path) in process]
