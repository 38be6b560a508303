"""Each pipeline on a real engine: its own compose file typed in its folder, and its demonstration.

By hand: `make test-docker`. The engine's network has no way out: what a demonstration fetches from
Maven Central must be on this machine, as after `make test-pipelines`.
"""

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.conftest import PROJECT
from tests.docker.conftest import Clone
from tests.docker.stand_ins import ImageBuilder
from tests.documents import commands

FILES = sorted(PROJECT.glob("pipelines/*/docker-compose.yml"))
NAMES = [file.parent.name for file in FILES]
DONE = "✓ "  # a demonstration that has found everything ends so
# Pipeline -> the command that fetches what its containers need, typed in its folder with a way out.
FETCH = {"iot_cassandra": "python prepare.py --jars"}

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(900, func_only=True),
    pytest.mark.xdist_group("docker"),
]


@pytest.fixture(params=FILES, ids=NAMES)
def pipeline(request: pytest.FixtureRequest, clone: Clone, images: ImageBuilder) -> Iterator[str]:
    """A pipeline's name; its images are built."""
    images.build_for(request.param)
    yield request.param.parent.name
    clone.engine.remove_all()


def in_folder(name: str, command: str) -> str:
    """Return a command line that is typed in a pipeline's folder."""
    return f"cd pipelines/{name} && {command}"


def docker_commands(name: str) -> tuple[list[str], list[str]]:
    """Return the commands of a README that run in its containers: those that create, the others."""
    inside = re.compile(r"docker (exec|cp|compose exec) ")
    found = [
        re.sub(r" (-it|-ti|-i|-t)\b", "", command) + " </dev/null"
        for command in commands(f"pipelines/{name}/README.md")
        if inside.match(command)
    ]
    first = [command for command in found if "--create" in command]
    return first, [command for command in found if command not in first]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compose", ["docker compose", "docker-compose"])
def test_compose_accepts_the_file(clone: Clone, compose: str, name: str) -> None:
    if compose == "docker-compose" and not shutil.which(compose):
        pytest.skip("docker-compose 1 is not installed")
    clone.type(in_folder(name, f"{compose} config -q"))


def test_a_pipeline(clone: Clone, pipeline: str) -> None:
    """Up as its exercise says, its work done, README's commands, and `make` stops and wipes it."""
    if command := FETCH.get(pipeline):
        clone.type(in_folder(pipeline, command), 600, has_way_out=True)
    clone.type(in_folder(pipeline, "docker compose up -d --wait"))
    first, others = docker_commands(pipeline)
    for command in first:
        clone.type(in_folder(pipeline, command))
    assert DONE in clone.type(f"python pipelines/{pipeline}/demo.py", 600)
    for command in others:
        clone.type(in_folder(pipeline, command))
    clone.type("make down")
    assert clone.what_is_left("container", "network") == []
    assert clone.what_is_left("volume") != []
    clone.type("make wipe")
    assert clone.what_is_left("volume") == []
