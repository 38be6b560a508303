"""What every compose file has for every machine, and the table of versions that tells of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stack.native.kafka import KAFKA_VERSIONS, ZOOKEEPER_VERSION
from stack.native.s3 import S3PROXY_VERSION
from tests.conftest import PROJECT
from tools.check_images import Loader, images

NAMES = ("docker-compose.yml", "extensions/*/compose.yml", "pipelines/*/docker-compose.yml")
FILES = sorted(file for name in NAMES for file in PROJECT.glob(name))
ROW = re.compile(r"^\| [^|]+ \| ([^|]+) \| `([^`|]+)` \| [^|]+ \|$", re.MULTILINE)


def in_project(file: Path) -> str:
    return str(file.relative_to(PROJECT))


def services(file: Path) -> dict[str, dict[str, Any]]:
    """Return the services of a compose file, but not those that it takes away."""
    found: dict[str, Any] = yaml.load(file.read_text(), Loader)["services"]  # noqa: S506
    return {name: service for name, service in found.items() if service}


def of_kafka(tag: str) -> str:
    return KAFKA_VERSIONS[".".join(tag.split(".")[:2])]


def of_spark(_: str) -> str:
    """Return the one version that is installed everywhere."""
    pinned = [file.read_text() for file in PROJECT.glob("*/*/requirements.txt")]
    versions = {match[1] for match in re.finditer(r"^pyspark==(\S+)", "\n".join(pinned), re.M)}
    assert len(versions) == 1
    return versions.pop()


# Image -> what the stack starts in its place, made of the image's tag.
NATIVE: dict[str, Callable[[str], str]] = {
    "cassandra": str,
    "cp-kafka": of_kafka,
    "cp-kafka-connect": of_kafka,
    "cp-zookeeper": lambda _: ZOOKEEPER_VERSION,
    "elasticsearch": str,
    "elasticsearch-exporter": lambda _: "Debian",
    "hadoop": str,
    "minio": lambda _: f"S3Proxy {S3PROXY_VERSION}",
    "postgres": lambda _: "Debian",
    "prometheus": lambda _: "Debian",
    "python": of_spark,  # extensions/spark installs it there
    "spark": of_spark,
}


def test_the_table_of_versions_says_what_the_files_say() -> None:
    text = (PROJECT / "docs/exploitation.md").read_text()
    table = {image: native for native, image in ROW.findall(text)}
    assert set(table) == set(images({}))
    for image, native in table.items():
        name, _, tag = image.rpartition("/")[2].partition(":")
        assert native == (NATIVE[name](tag) if name in NATIVE else "—"), image


@pytest.mark.parametrize("file", FILES, ids=in_project)
def test_selinux_lets_a_container_read_what_is_mounted(file: Path) -> None:
    """Compose labels a mount with z. It does not label a config that has a file."""
    for name, service in services(file).items():
        for mount in service.get("volumes", []):
            assert mount[0] not in "./" or mount.endswith(":ro,z"), (name, mount)
    configs = yaml.load(file.read_text(), Loader).get("configs", {})  # noqa: S506
    assert not [name for name, config in configs.items() if "file" in config]


@pytest.mark.parametrize("file", FILES, ids=in_project)
def test_a_server_has_two_minutes_to_start_and_three_more_to_be_ready(file: Path) -> None:
    for name, service in services(file).items():
        if check := service.get("healthcheck", {}):
            in_seconds = {n: int(str(v).rstrip("s")) for n, v in check.items() if n != "test"}
            if "image" in service or in_seconds:
                assert in_seconds["start_period"] >= 120, name
                assert in_seconds["interval"] * in_seconds["retries"] >= 180, name


@pytest.mark.parametrize("file", FILES, ids=in_project)
def test_a_health_check_asks_without_a_proxy(file: Path) -> None:
    """Docker gives the proxy of its user's config.json to every container."""
    for line in file.read_text().splitlines():
        if re.match(r" +(test: \[|curl )", line):
            assert line.count("curl") == line.count("curl --noproxy '*' "), line
            assert line.count("wget") == line.count("http_proxy= wget "), line


@pytest.mark.parametrize("file", FILES, ids=in_project)
def test_an_image_for_one_processor_says_so(file: Path) -> None:
    """Without it, Docker on another processor finds no image, or warns at each start."""
    for name, service in services(file).items():
        if "/hadoop:" in service.get("image", ""):
            assert service["platform"] == "linux/amd64", name
