"""One of three brokers and one of three nodes (extensions/cluster) are killed under load."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack
from tests.conftest import PROJECT, Pipeline, new_stack, program

BROKERS = {1: "kafka", 2: "kafka-2", 3: "kafka-3"}  # node id -> service
NODES = ("elasticsearch", "elasticsearch-2", "elasticsearch-3")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Stack]:
    """The servers of the cluster, which only this test uses."""
    servers = new_stack(tmp_path / "stack", "extensions/cluster/compose.yml")
    try:
        servers.up()
        yield servers
    finally:
        for name in servers.servers:  # the last broker could not end cleanly without a quorum
            servers.stop(name, signal.SIGKILL)
        servers.down(wipe=True)


def url(cluster: Stack, node: str) -> str:
    """Return the URL of a node of Elasticsearch."""
    return f"http://{cluster.servers[node].address}"


def new_index(client: Elasticsearch, index: str) -> str:
    """Create an index as the consumer does; return the node with its primary shard."""
    template = json.loads((PROJECT / "mappings/sensors_data.json").read_text())
    client.indices.create(index=index, **template)
    client.cluster.health(index=index, wait_for_status="green")
    shown = client.cat.shards(index=index, h=["prirep", "node"])
    nodes = dict(line.split() for line in str(shown).splitlines())
    assert set(nodes) == {"p", "r"}  # Elasticsearch adds a replica where there are other nodes
    return nodes["p"]


def coordinator(cluster: Stack, group: str) -> str:
    """Return the broker that coordinates a consumer group."""
    arguments = ["--bootstrap-server", "kafka:29092", "--timeout", "60000"]
    arguments += ["--describe", "--state", "--group", group]
    command = cluster.tool("kafka", "kafka-consumer-groups", arguments)
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\((\d)\)", shown)
    assert found, shown
    return BROKERS[int(found[1])]


def asked(question: Callable[[], Any]) -> Any:
    """Return Kafka's answer; ask again if the client tries the dead broker first."""

    def attempt() -> tuple[Any] | None:
        with suppress(KafkaError):
            return (question(),)
        return None

    return wait_until(attempt, "Kafka answers")[0]


def in_sync(pipeline: Pipeline) -> set[int]:
    """Return how many replicas in sync the topic's partitions have, each number once."""
    with closing(KafkaAdminClient(bootstrap_servers=pipeline.kafka)) as admin:
        (topic,) = admin.describe_topics([pipeline.topic])
    assert len(topic["partitions"]) == 3
    return {len(partition["isr"]) for partition in topic["partitions"]}


@pytest.mark.slow
@pytest.mark.timeout(900)  # six servers start, perhaps on a busy machine
def test_a_broker_and_a_node_are_killed_under_load_and_come_back(
    cluster: Stack, tmp_path: Path
) -> None:
    """They are the group's coordinator and the node with the primary shard."""
    name = "sensors-cluster"
    with Elasticsearch(url(cluster, NODES[0])) as client:
        primary = new_index(client, f"sensors_{name}")
    other = next(node for node in NODES if node != primary)  # it is not killed
    with Elasticsearch(url(cluster, other), request_timeout=60) as client:
        kafka = ",".join(cluster.servers[broker].address for broker in BROKERS.values())
        nodes = ",".join(url(cluster, node) for node in NODES)
        pipeline = Pipeline(kafka, nodes, name, f"sensors_{name}", name, client)
        ledger = tmp_path / "ledger.csv"
        logs = tmp_path / "scripts.log"

        def start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, *program(script), *arguments]
            with logs.open("ab") as log:
                return subprocess.Popen(
                    command, cwd=PROJECT, env=pipeline.environ, stdout=log, stderr=log
                )

        generator = start("tools.faulty_sensors", "--rate", "300", "--ledger", str(ledger))
        consumers = [start("kafka_to_elasticsearch.py") for _ in range(2)]
        try:
            wait_until(lambda: pipeline.committed() > 1000, "something is committed", 90)
            wait_until(lambda: in_sync(pipeline) == {3}, "all three brokers are in sync", 90)
            for server in (coordinator(cluster, name), primary):
                assert cluster.stop(server, signal.SIGKILL)
            before = asked(pipeline.ends)
            wait_until(
                lambda: asked(pipeline.committed) > before + 1000, "two of three continue", 120
            )
            assert asked(lambda: in_sync(pipeline)) == {2}
            cluster.up()
            wait_until(
                lambda: asked(lambda: in_sync(pipeline)) == {3}, "the broker has caught up", 90
            )
            client.cluster.health(index=pipeline.index, wait_for_nodes="3", timeout="60s")
            client.cluster.health(index=pipeline.index, wait_for_status="green", timeout="60s")
            generator.send_signal(signal.SIGTERM)
            assert generator.wait(timeout=60) == 0, logs.read_text()
            ends = pipeline.ends()
            wait_until(lambda: pipeline.committed() == ends, f"{ends} are committed", 90)
            for consumer in consumers:
                consumer.send_signal(signal.SIGTERM)
                assert consumer.wait(timeout=60) == 0, logs.read_text()
        finally:
            for process in (generator, *consumers):
                process.kill()
                process.wait()
        assert "Traceback" not in logs.read_text()
        printed, _ = pipeline.run("tools.verify", "--ledger", str(ledger))
        counts = dict(re.findall(r"^(\w[\w ]+\w) +(\d+)$", printed, re.MULTILINE))
        wrong = ("missing", "differing", "doubled", "unexpected", "altered", "not acknowledged")
        assert {counts[name] for name in wrong} == {"0"}
        assert int(counts["messages in the ledger"]) == ends == pipeline.count()
