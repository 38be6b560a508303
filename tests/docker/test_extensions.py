"""Each extension on a real engine: its README's Docker commands, one piece of work, and no remains.

By hand: `make test-docker`.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipelines.tests.waiting import wait_until
from tests.conftest import PROJECT
from tests.docker.conftest import Clone
from tests.docker.stand_ins import ImageBuilder
from tests.documents import commands

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(600, func_only=True),
    pytest.mark.xdist_group("docker"),
]

MAIN = PROJECT / "docker-compose.yml"
COUNT = 200
BROKERS = "localhost:9092,localhost:9093,localhost:9094"


def readme(extension: str, start: str) -> str:
    """Return the first command of an extension's README that begins so."""
    return next(c for c in commands(f"extensions/{extension}/README.md") if c.startswith(start))


@contextmanager
def started(clone: Clone, name: str) -> Iterator[None]:
    """Start an extension as its README says; `make down` and `make wipe` must leave nothing."""
    try:
        clone.type(readme(name, "docker compose"))
        yield
        clone.type("make down")
        assert clone.what_is_left("container", "network") == []
        clone.type("make wipe")
        assert clone.what_is_left("container", "network", "volume") == []
    finally:
        clone.engine.remove_all()


def send_and_verify(clone: Clone, variables: str = "") -> None:
    """Send readings, index them, compare the topic with the index."""
    clone.type(f"{variables} python sensor_generator.py --count {COUNT} --rate 100")
    clone.type(f"{variables} python kafka_to_elasticsearch.py --exit-when-idle 3")
    clone.type(f"{variables} python -m tools.verify")


def documented_files() -> list[str]:
    """Return the compose files that documents name together, as options."""
    found: set[str] = set()
    for folder in ("", "docs/", "extensions/*/", "pipelines/*/"):
        for file in PROJECT.glob(f"{folder}*.md"):
            found |= set(re.findall(r"docker compose((?: -f [^ ]+)+)", file.read_text()))
    return sorted(found)


@pytest.mark.parametrize("files", documented_files())
def test_compose_accepts_the_files_of(clone: Clone, files: str) -> None:
    clone.type(f"docker compose{files} config -q")


def test_kraft(clone: Clone) -> None:
    with started(clone, "kraft"):
        send_and_verify(clone)
        assert clone.count() == COUNT


def test_cluster(clone: Clone) -> None:
    with started(clone, "cluster"):
        send_and_verify(clone, f"KAFKA_BOOTSTRAP_SERVERS={BROKERS}")
        assert clone.count() == COUNT
        nodes = clone.type(readme("cluster", "curl 'http://localhost:9200/_cat/nodes"))
        assert all(f"elasticsearch{number}" in nodes for number in ("", "-2", "-3"))
        described = [c for c in commands("extensions/cluster/README.md") if " exec kafka " in c]
        assert "Isr: " in clone.type(described[0])
        clone.engine.kill_process(clone.container("kafka-2"))
        clone.engine.docker("kill", clone.container("elasticsearch-3"))
        send_and_verify(clone, f"KAFKA_BOOTSTRAP_SERVERS={BROKERS}")


def test_monitoring(clone: Clone, images: ImageBuilder) -> None:
    images.build_for(MAIN, PROJECT / "extensions/monitoring/compose.yml")
    with started(clone, "monitoring"):
        scripts = [c for c in commands("extensions/monitoring/README.md") if "--metrics-port" in c]
        pids = [clone.type(f"{script} >/dev/null 2>&1 & echo $!").strip() for script in scripts]

        def up() -> set[str]:
            answer = json.loads(clone.type("curl -fsS 127.0.0.1:9090/api/v1/targets"))
            targets = answer["data"]["activeTargets"]
            return {target["labels"]["job"] for target in targets if target["health"] == "up"}

        jobs = {"kafka", "elasticsearch", "generator", "consumer"}
        try:
            wait_until(lambda: up() == jobs, "all targets are up", 60)
        finally:
            clone.type(f"kill {' '.join(pids)}")


def test_connect(clone: Clone, images: ImageBuilder) -> None:
    images.build_for(MAIN, PROJECT / "extensions/connect/compose.yml")
    # Camel's configuration is for a worker on the host. A container knows the server by its name.
    configuration = clone.folder / "extensions/connect/camel.json"
    text = configuration.read_text()
    configuration.write_text(text.replace("127.0.0.1:9200", "elasticsearch:9200"))
    with started(clone, "connect"):
        for start in (
            "curl -X PUT http://localhost:9200/sensors_connect",
            "python sensor_generator.py",
            "curl -X PUT http://localhost:8083/connectors/sensors/config",
        ):
            clone.type(readme("connect", start))

        def indexed() -> int:
            clone.type("curl -fsS -X POST http://localhost:9200/sensors_connect/_refresh")
            counted = clone.type("curl -fsS http://localhost:9200/sensors_connect/_count")
            return int(json.loads(counted.splitlines()[-1])["count"])

        wait_until(lambda: indexed() == 1000, "all readings are indexed", 120)
        assert '"RUNNING"' in clone.type(readme("connect", "curl http://localhost:8083"))


def test_secure(clone: Clone) -> None:
    clone.type(readme("secure", "python -m extensions.secure files"))
    try:
        with started(clone, "secure"):
            clone.type(readme("secure", "python -m extensions.secure users"))
            send_and_verify(clone)
            listed = readme("secure", "python -m stack exec kafka kafka-acls")
            acls = clone.type(listed.replace("python -m stack", "docker compose"))
            assert "User:generator" in acls
    finally:
        (clone.folder / ".env").unlink()


def test_spark(clone: Clone, images: ImageBuilder) -> None:
    """The driver is in one container, the executors are in two others."""
    images.build_for(MAIN, PROJECT / "extensions/spark/compose.yml")
    (clone.folder / "nothing.py").touch()
    fetch = "spark-submit --properties-file extensions/spark/spark.conf --conf spark.jars.ivy=.ivy2"
    clone.type(f"{fetch} nothing.py", has_way_out=True)  # Spark's Kafka source
    with started(clone, "spark"):
        printed = clone.type(readme("spark", "curl http://localhost:8080"))  # with curl's progress
        master = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
        assert [worker["state"] for worker in master["workers"]] == ["ALIVE", "ALIVE"]
        container = clone.container("spark-master")
        clone.type(f"docker cp .ivy2 {container}:/home/spark/.ivy2")
        clone.type(f"docker exec --user root {container} chown -R spark /home/spark/.ivy2")
        for start in (
            "python sensor_generator.py --backfill 1h",
            "docker compose -f docker-compose.yml -f extensions/spark/compose.yml exec",
            "python -m tools.verify",
        ):
            clone.type(readme("spark", start))
        assert clone.count() > 0


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose 1 is not installed")
def test_the_older_compose_starts_the_main_file(clone: Clone) -> None:
    try:
        clone.type("docker-compose config -q")
        clone.type("docker-compose up -d")
        wait_until(
            lambda: clone.type("docker-compose ps").count("(healthy)") == 4, "all are healthy", 300
        )
        send_and_verify(clone)
        clone.type("docker-compose down -v")
        assert clone.what_is_left("container", "network", "volume") == []
    finally:
        clone.engine.remove_all()
