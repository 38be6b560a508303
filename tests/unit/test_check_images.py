"""tools/check_images.py, with a docker program that answers as a registry has it."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tools import check_images

DOCKER = """#!/bin/sh
case "$*" in
  "manifest inspect --verbose {missing}") echo "no such manifest: {missing}" >&2; exit 1 ;;
  "manifest inspect --verbose {single}") echo '{{"Descriptor": {amd64}}}' ;;
  "manifest inspect"*) echo '[{{"Descriptor": {amd64}}}, {{"Descriptor": {arm64}}}]' ;;
  *" up -d --wait") echo "bind: address already in use" >&2; exit 1 ;;
  *" down -v") echo removed >> "{log}" ;;
esac
"""


def descriptor(architecture: str) -> str:
    return json.dumps({"platform": {"os": "linux", "architecture": architecture}})


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry that has every image but one, and one for a single platform; no server starts."""
    program, log = tmp_path / "docker", tmp_path / "log"
    program.write_text(
        DOCKER.format(
            missing="kibana:9.99",
            single="grafana/grafana:1.0",
            amd64=descriptor("amd64"),
            arm64=descriptor("arm64"),
            log=log,
        )
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return log


def test_every_image_of_the_compose_files_has_its_line(
    docker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_images.main(["--names"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = [PROJECT / "docker-compose.yml", *PROJECT.glob("[ep]*s/*/*compose.yml")]
    image = re.compile(r"^ +image: (?:&\w+ )?([^*\s]\S*)", re.MULTILINE)
    written = {name for file in files for name in image.findall(file.read_text())}
    named = {re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", name) for name in written}
    named = {name for name in named if not name.startswith("smart-city-")}  # built here
    assert named <= {line.split()[1] for line in lines}
    assert all(line.startswith("✓ ") for line in lines)


def test_an_image_that_is_missing_is_said(
    docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_images, "images", lambda _: {"kibana:9.99": check_images.PLATFORMS})
    assert check_images.main([]) == 1
    assert re.fullmatch(r"✗ kibana:9.99 +no such manifest: kibana:9.99\n", capsys.readouterr().out)


def test_an_image_for_one_platform_is_said_where_the_file_does_not_say_so(
    docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "grafana/grafana:1.0"
    monkeypatch.setattr(check_images, "images", lambda _: {name: check_images.PLATFORMS})
    assert check_images.main(["--names"]) == 1
    assert "not for linux/arm64" in capsys.readouterr().out
    monkeypatch.setattr(check_images, "images", lambda _: {name: ("linux/amd64",)})
    assert check_images.main(["--names"]) == 0


def test_servers_that_do_not_start_are_said_and_removed(
    docker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_images.main([]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("✗ the servers start")
    assert last.endswith("docker compose ended with code 1")
    assert docker.read_text() == "removed\n"


def test_each_proof_that_fails_is_named(
    docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("GRAFANA_HOST_PORT", "CONNECT_HOST_PORT"):
        monkeypatch.setenv(variable, "9")  # nobody listens there
    first, second, *others = check_images.PROOFS
    monkeypatch.setitem(check_images.PROOFS, first, lambda: "")
    monkeypatch.setitem(check_images.PROOFS, second, lambda: "see above")
    assert check_images.main([]) == 1
    proofs = capsys.readouterr().out.splitlines()[-len(check_images.PROOFS) :]
    assert proofs[0] == f"✓ {first}"
    assert proofs[1].startswith(f"✗ {second}")
    assert all(line.startswith(f"✗ {what}") for what, line in zip(others, proofs[2:], strict=True))
