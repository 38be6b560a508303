"""The demonstration, and what README shows of it: its commands, and what they print."""

import os
import re
from pathlib import Path

import pytest

from pipelines.acid_waters.settings import HERE, SETTINGS
from pipelines.acid_waters.tests.conftest import Scene
from stack.lifecycle import Stack

README = (HERE / "README.md").read_text()
SHOWN = README.partition("## Reprendre après une faute")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```(bash|text)\n(.*?)^```", SHOWN, flags=re.MULTILINE | re.DOTALL)
ENDS = "✓ Ce qui a été envoyé est exactement ce qui est stocké (80 s)."


def skeleton(line: str) -> str:
    """Return a line without what varies from run to run: numbers, and the width of columns."""
    line = re.sub(r"\b[0-9a-f]{12}\b", "#", line)  # checksums, names of folders
    return " ".join(re.sub(r"[-\d.:]*\d", "#", line).split())


@pytest.mark.timeout(900)  # on a busy machine
def test_the_demonstration_ends_well_and_prints_what_readme_shows(
    scene: Scene, stack: Stack, ports: dict[str, str], no_docker: Path
) -> None:
    path = f"{no_docker}{os.pathsep}{os.environ['PATH']}"
    scene.environ |= {**ports, "STACK_STATE": str(stack.state), "PATH": path}
    scene.environ["LTM_DATA"] = "/nowhere"  # the demonstration takes the sample
    done = scene.run("demo.py")
    printed = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 0, "\n".join(printed)
    assert not any("Traceback" in line for line in printed)
    commands = [line.removeprefix("   $ ") for line in printed if line.startswith("   $ ")]
    skeletons = set(map(skeleton, printed))
    shown = 0
    for kind, text in BLOCKS:
        for line in text.splitlines():
            if kind == "text":
                assert skeleton(line) in skeletons
            else:
                assert line in commands
                del commands[: commands.index(line) + 1]  # in this order
            shown += 1
    assert shown > 30
    assert skeleton(ENDS) in skeletons


def test_readme_names_only_files_and_variables_that_are_there() -> None:
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|yml|sql|conf|svg))`", README))
    assert len(named) > 3
    assert [name for name in named if not list(HERE.rglob(name))] == []
    compose = (HERE / "docker-compose.yml").read_text()
    example = (HERE / ".env.example").read_text()
    set_there = set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+):-", compose)) | {name for name, *_ in SETTINGS.values()}
    assert set_there == used
