"""Kafka Connect with Camel's Elasticsearch sink, which extensions/connect/README.md describes."""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack
from stack.servers import free_port
from tests.conftest import PROJECT, Pipeline
from tests.documents import commands, write_docker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("connect")]

OVERLAYS = ("tests/faults/proxied.yml", "extensions/connect/compose.yml")
CAMEL = json.loads((PROJECT / "extensions/connect/camel.json").read_text())
READING = {
    "sensor_id": "sensor_001",
    "timestamp": "2026-06-01T12:00:00.000Z",
    "temperature": 21.5,
    "humidity": 48.0,
    "co2_level": 420,
    "light_intensity": 300,
}
HOT = {**READING, "temperature": "hot"}
WET = {**READING, "humidity": 140.0}


@pytest.fixture(scope="module")
def worker(stack: Stack) -> Iterator[Stack]:
    """A Connect worker beside the session's servers."""
    environ = {**stack.site.environ, "CONNECT_HOST_PORT": str(free_port())}
    files = [PROJECT / file for file in ("docker-compose.yml", *OVERLAYS)]
    worker = Stack(files, environ)
    try:
        worker.up(["connect"])
        yield worker
    finally:
        worker.down(["connect"])


Start = Callable[..., str]


@pytest.fixture
def start(worker: Stack, pipeline: Pipeline) -> Iterator[Start]:
    """Return a function that creates a connector like CAMEL and returns its name."""
    started: list[str] = []

    def start(**changes: str) -> str:
        name = f"{pipeline.topic}-{len(started)}"
        started.append(name)
        url = CAMEL["camel.sink.url"].replace("sensors_connect", pipeline.index)
        names = {
            "topics": pipeline.topic,
            "camel.sink.url": url.replace(
                "127.0.0.1:9200", worker.servers["elasticsearch"].address
            ),
            "errors.deadletterqueue.topic.name": f"{name}.dead",
        }
        ask(worker, "PUT", f"connectors/{name}/config", {**CAMEL, **names, **changes})
        return name

    mapping = json.loads((PROJECT / "mappings/sensors_data.json").read_text())
    pipeline.client.indices.create(index=pipeline.index, **mapping)
    yield start
    for name in started:
        ask(worker, "DELETE", f"connectors/{name}")


def ask(worker: Stack, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Return the worker's answer, which may take seconds when its own topics change."""
    request = urllib.request.Request(
        f"http://{worker.servers['connect'].address}/{path}",
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read() or b"null")


def states(worker: Stack, name: str) -> set[str]:
    """Return the states of a connector's tasks; none while it is being created."""
    try:
        tasks = ask(worker, "GET", f"connectors/{name}/status")["tasks"]
    except urllib.error.HTTPError as exc:
        if exc.code != 404:
            raise
        return set()
    return {task["state"] for task in tasks}


def encoded(*readings: dict[str, Any]) -> list[bytes]:
    """Return readings as messages."""
    return [json.dumps(reading).encode() for reading in readings]


def document_id(message: Any) -> str:
    """Return the id that the connector gives to the document of a message."""
    key = message.key.decode()
    return f"Struct{{sensor_id={key},partition={message.partition},offset={message.offset}}}"


def test_the_commands_of_the_readme_work(worker: Stack, pipeline: Pipeline, tmp_path: Path) -> None:
    ours = {
        "localhost:9200": worker.servers["elasticsearch"].address,
        "127.0.0.1:9200": worker.servers["elasticsearch"].address,
        "localhost:8083": worker.servers["connect"].address,
        "smart-city-sensors": pipeline.topic,
        "sensors_connect": pipeline.index,
    }

    def moved(text: str) -> str:
        return re.sub("|".join(map(re.escape, ours)), lambda found: ours[found[0]], text)

    (tmp_path / "extensions/connect").mkdir(parents=True)
    for name in (
        "docker-compose.yml",
        "extensions/connect/compose.yml",
        "mappings",
        "stack",
        "sensor_generator.py",
    ):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "extensions/connect/camel.json").write_text(moved(json.dumps(CAMEL)))
    environ = {**worker.site.environ, **pipeline.environ}
    write_docker(tmp_path / "bin")
    environ["PATH"] = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{environ['PATH']}"
    printed = ""
    for command in commands("extensions/connect/README.md"):
        if command.startswith("curl -X DELETE"):  # it deletes the connector
            wait_until(lambda: pipeline.count() == 1000, "all are indexed", 90)
        ended = subprocess.run(
            ["bash", "-c", moved(command).replace("curl", "curl --fail-with-body --silent")],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        printed += ended.stdout
        assert ended.returncode == 0, (command, ended)
        if "camel.json" in command:
            wait_until(lambda: states(worker, "sensors") == {"RUNNING"}, "it runs", 60)
    assert '"state":"RUNNING"' in printed
    assert ask(worker, "GET", "connectors") == []


def test_each_message_is_indexed_once_even_if_the_worker_is_killed(
    worker: Stack, pipeline: Pipeline, start: Start
) -> None:
    pipeline.generate("--count", "2000", "--backfill", "30d")
    name = start()
    pipeline.group = f"connect-{name}"
    wait_until(lambda: 100 < pipeline.count() < 2000, "a part is indexed", 90)
    worker.stop("connect", signal.SIGKILL)
    worker.up(["connect"])
    wait_until(lambda: pipeline.committed() == 2000, "all are committed", 120)
    wanted = {document_id(m): json.loads(m.value) for m in pipeline.messages()}
    assert pipeline.documents() == wanted
    assert len(wanted) == 2000
    assert states(worker, name) == {"RUNNING"}


def test_refused_messages_are_dead_letters_and_duplicates_are_indexed_twice(
    pipeline: Pipeline, start: Start
) -> None:
    """A document's id is its message's place, so a reading that is sent twice is indexed twice."""
    options = {"bootstrap_servers": pipeline.kafka, "transactional_id": pipeline.topic}
    pipeline.send(b"{not JSON", *encoded(HOT, WET, READING, READING))
    with closing(KafkaProducer(**options)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        for value in encoded(READING):
            producer.send(pipeline.topic, value, key=b"k", partition=0).get(timeout=30)
        producer.abort_transaction()
    name = start()
    pipeline.group = f"connect-{name}"
    wait_until(lambda: pipeline.committed() >= 5, "all are committed", 90)
    documents = sorted(pipeline.documents().items())
    assert [found for _, found in documents] == [WET, READING, READING]  # no limits are checked
    letters = pipeline.messages(f"{name}.dead")
    assert [letter.value for letter in letters] == [b"{not JSON", *encoded(HOT)]
    headers = [dict(letter.headers) for letter in letters]
    assert [h["__connect.errors.offset"] for h in headers] == [b"0", b"1"]
    assert [h["__connect.errors.stage"] for h in headers] == [b"VALUE_CONVERTER", b"TASK_PUT"]
    assert b"JsonParseException" in headers[0]["__connect.errors.exception.stacktrace"]
    assert b"document_parsing_exception" in headers[1]["__connect.errors.exception.stacktrace"]


def test_an_outage_turns_valid_readings_into_dead_letters_or_ends_the_task(
    stack: Stack, worker: Stack, pipeline: Pipeline, start: Start
) -> None:
    """Each message is tried once; without a dead-letter queue the tasks fail until a restart."""
    tolerant = start()
    strict = start(**{"errors.tolerance": "none", "errors.deadletterqueue.topic.name": ""})
    pipeline.generate("--count", "30", "--backfill", "1h")
    for name in (tolerant, strict):
        pipeline.group = f"connect-{name}"
        wait_until(lambda: pipeline.committed() == 30, "both have indexed all", 90)
    stack.stop("elasticsearch", signal.SIGKILL)
    pipeline.generate("--count", "50", "--backfill", "2h", "--seed", "7")
    wait_until(lambda: len(pipeline.messages(f"{tolerant}.dead")) == 50, "50 dead letters", 90)
    wait_until(lambda: states(worker, strict) == {"FAILED"}, "the strict tasks have failed", 90)
    stack.up(["elasticsearch"])
    assert pipeline.count() == 30
    ask(worker, "POST", f"connectors/{strict}/restart?includeTasks=true&onlyFailed=true")
    wait_until(lambda: pipeline.count() == 80, "the restarted tasks have indexed the rest", 90)
