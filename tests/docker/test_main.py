"""README's Docker commands on a real engine, in README's words: start, use, crash, stop, erase.

The tests are one story, in order: each begins where the one before has ended.
"""

import json

import pytest

from pipelines.tests.waiting import wait_until
from tests.docker.conftest import Clone
from tests.documents import commands

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480, func_only=True),  # the engine and the images may have to be built
    pytest.mark.xdist_group("docker"),  # one worker, in order
]

SERVERS = ("zookeeper", "kafka", "elasticsearch", "kibana")
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # as in /proc/net/tcp and tcp6
# Servers that crash together. Pairs, to be quicker: in each pair neither needs the other.
CRASHES = (("zookeeper", "elasticsearch"), ("kafka", "kibana"), SERVERS)
COUNT = 50  # readings sent before a crash


def readme(start: str) -> str:
    """Return README's shortest command that begins so."""
    return min((c for c in commands("README.md") if c.startswith(start)), key=len)


def until_interrupted(command: str, seconds: int) -> str:
    """Return a command line that presses Ctrl-C after some seconds."""
    return f"timeout --foreground --preserve-status --signal=INT {seconds} {command}"


def consume_and_verify(clone: Clone) -> None:
    """Index all that waits; compare the topic with the index."""
    clone.type("python kafka_to_elasticsearch.py --exit-when-idle 2")
    clone.type(readme("python -m tools.verify"))


def test_the_steps_of_readme(clone: Clone) -> None:
    clone.type(readme("docker compose up"))
    assert clone.listening_addresses() <= LOOPBACK
    clone.type(
        "python sensor_generator.py --count 3 --rate 100"
    )  # on a busy machine, 8 s are short
    clone.type(until_interrupted(readme("python sensor_generator.py"), 8))
    printed = clone.type(readme("docker compose exec kafka kafka-console-consumer"))
    shown = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert len(shown) == 3
    assert all("sensor_id" in reading for reading in shown)
    clone.type(until_interrupted(readme("python kafka_to_elasticsearch.py"), 8))
    consume_and_verify(clone)  # what is left, for the same reason
    for command in ("_count", "_search", "_mapping"):
        assert '"error"' not in clone.type(
            readme(f"curl 'http://localhost:9200/sensors_data/{command}")
        )
    assert clone.count() >= 3
    for document in ("docs/exploitation.md", "docs/garanties.md"):
        (command,) = [c for c in commands(document) if c.startswith("docker compose exec")]
        clone.type(command)


def test_the_data_is_there_after_down_and_up(clone: Clone) -> None:
    before, volumes = clone.count(), clone.what_is_left("volume")
    clone.type(readme("docker compose down"))
    assert clone.what_is_left("container", "network") == []
    assert clone.what_is_left("volume") == volumes
    clone.type("make up")
    assert clone.what_is_left("volume") == volumes  # no anonymous one, which nothing would remove
    assert clone.count() == before
    consume_and_verify(clone)


def state_of(clone: Clone, service: str) -> tuple[str, str]:
    """Return when a service's container was started, and its health."""
    shown = "{{.State.StartedAt}} {{.State.Health.Status}}"
    started_at, health = clone.engine.docker(
        "inspect", "--format", shown, clone.container(service)
    ).split()
    return started_at, health


@pytest.mark.parametrize("services", CRASHES, ids="+".join)
def test_a_server_whose_process_is_killed_comes_back_by_itself(
    clone: Clone, services: tuple[str, ...]
) -> None:
    count = clone.count()
    clone.type(f"python sensor_generator.py --count {COUNT} --rate 100")
    before = {service: state_of(clone, service)[0] for service in services}
    for service in services:
        clone.engine.kill_process(clone.container(service))

    def all_are_back() -> bool:
        now = {service: state_of(clone, service) for service in services}
        return all(now[s][0] != before[s] and now[s][1] == "healthy" for s in services)

    wait_until(all_are_back, "all are healthy again")
    consume_and_verify(clone)
    assert clone.count() == count + COUNT


@pytest.mark.parametrize("services", CRASHES, ids="+".join)
def test_after_a_crash_make_up_brings_all_back_and_nothing_is_lost(
    clone: Clone, services: tuple[str, ...]
) -> None:
    count = clone.count()
    clone.type(f"python sensor_generator.py --count {COUNT} --rate 100")
    clone.engine.docker("kill", *map(clone.container, services))  # no restart policy holds then
    clone.type("make up")
    consume_and_verify(clone)
    assert clone.count() == count + COUNT


def test_make_demo_then_down_then_all_is_gone(clone: Clone) -> None:
    printed = clone.type("make demo")
    assert "✓ Ce qui a été produit est exactement ce qui est indexé" in printed
    clone.type("make down")
    assert clone.what_is_left("container", "network") == []
    assert clone.what_is_left("volume") != []
    clone.type(f"{readme('docker compose down')} -v")
    assert clone.what_is_left("container", "network", "volume") == []
    clone.type("docker compose up --no-start")
    assert clone.what_is_left("volume") != []
    clone.type("make wipe")
    assert clone.what_is_left("container", "network", "volume") == []
