"""An engine for the whole session, the stand-in images, and a copy of the project beside them."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stack.lifecycle import Stack
from tests.conftest import PROJECT
from tests.docker.engine import (
    Engine,
    EngineError,
    compose_plugin,
    require_programs,
    running_engine,
)
from tests.docker.stand_ins import ImageBuilder

log = logging.getLogger(__name__)

LABEL = "label=com.docker.compose.project"  # of all that Docker Compose has made


@dataclass
class Clone:
    """A copy of the project, as a fresh clone has it, and the engine for its commands."""

    engine: Engine
    folder: Path

    def type(self, command: str, timeout_s: float = 280, has_way_out: bool = False) -> str:
        """Run a command line in the copy; return what it printed; fail where it failed.

        Args:
            command: a line of bash.
            timeout_s: within which it must end.
            has_way_out: in the network of this machine, not in the engine's.
        """
        line = ["bash", "-c", command]
        environ = {
            **self.engine.environ,
            "PATH": f"{self.folder}/.venv/bin:{os.environ['PATH']}",
            "MAKEFLAGS": "",  # those of a `make test` around us
        }
        del environ["PYTHON_DOTENV_DISABLED"]  # a .env of the copy is read
        began = time.monotonic()
        ended = subprocess.run(
            line if has_way_out else self.engine.inside(*line),
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        log.info("%5.1f s: %s", time.monotonic() - began, command)
        printed = ended.stdout + ended.stderr
        assert ended.returncode == 0, f"{command}\n{printed}\n{self.last_words()}"
        assert "Traceback" not in printed
        return printed

    def container(self, service: str) -> str:
        """Return the container of a service."""
        return self.engine.docker(
            "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.service={service}"
        ).strip()

    def last_words(self) -> str:
        """Return the state of all containers, and the end of what each has printed."""
        words = self.engine.docker("ps", "--all")
        for name in self.engine.docker("ps", "--all", "--format", "{{.Names}}").split():
            command = self.engine.inside("docker", "logs", "--tail", "15", name)
            log = subprocess.run(
                command, env=self.engine.environ, capture_output=True, text=True, check=False
            )
            words += f"--- {name}\n{log.stdout}{log.stderr}"
        return words

    def what_is_left(self, *kinds: str) -> list[str]:
        """Return what Compose has made and not removed, of some kinds: container, network, volume.

        An anonymous volume has no label: every volume counts.
        """
        labelled = {"container": ["--all", "--filter", LABEL], "network": ["--filter", LABEL]}
        found = []
        for kind in kinds:
            found += self.engine.docker(kind, "ls", "--quiet", *labelled.get(kind, [])).split()
        return found

    def listening_addresses(self) -> set[str]:
        """Return the addresses on which a port is open in the engine's network."""
        rows = [
            line.split()
            for line in self.type("tail -qn+2 /proc/net/tcp /proc/net/tcp6").splitlines()
        ]
        return {row[1].partition(":")[0] for row in rows if row[3] == "0A"}

    def count(self) -> int:
        """Return how many readings are indexed."""
        answer: dict[str, Any] = json.loads(
            self.type(
                "curl -fsS -X POST localhost:9200/sensors_data/_refresh >/dev/null; "
                "curl -fsS localhost:9200/sensors_data/_count"
            )
        )
        return int(answer["count"])


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker engine of our own; where none can be had, the tests are skipped and say why."""
    cache = Stack([PROJECT / "docker-compose.yml"], {**os.environ}).cache
    with ExitStack() as open_engine:
        try:
            require_programs()
            compose_plugin(cache)
            engine = open_engine.enter_context(running_engine(cache))
        except EngineError as exc:
            pytest.skip(str(exc))
        yield engine


@pytest.fixture(scope="session")
def images(engine: Engine) -> ImageBuilder:
    """What builds the images of compose files."""
    return ImageBuilder(engine)


@pytest.fixture(scope="module")
def clone(
    engine: Engine, images: ImageBuilder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clone]:
    """A copy of the project in which README's commands can be typed."""
    folder = tmp_path_factory.mktemp("docker") / "smart-city"
    ignored = (PROJECT / ".gitignore").read_text().split()
    names = {".git", *(Path(line).name for line in ignored)}
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*names))
    # What `make setup` makes is not made twice; the engine's network has no way out.
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        (folder / ".venv" / entry.name).symlink_to(entry)
    (folder / ".venv/done").unlink(missing_ok=True)
    (folder / ".venv/done").touch()
    images.build_for(PROJECT / "docker-compose.yml")
    yield Clone(engine, folder)
    engine.remove_all()  # what a failed test has left
