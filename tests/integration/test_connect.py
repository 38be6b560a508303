"""Kafka Connect with Camel's Elasticsearch sink (connect/camel.json): what it really does.

connect/README.md says in a table what is found out here.
"""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.__main__ import Stack
from stack.servers import free_port
from tests.conftest import PROJECT, Pipeline, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("connect")]

OVERLAYS = ("tests/faults/proxied.yml", "docker-compose.connect.yml")
CAMEL = json.loads((PROJECT / "connect/camel.json").read_text())
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
    """Return what creates a connector like CAMEL, and returns its name; all are deleted after."""
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
    """Return the worker's answer; it needs some seconds for what changes its topics."""
    request = urllib.request.Request(
        f"http://{worker.servers['connect'].address}/{path}",
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read() or b"null")


def states(worker: Stack, name: str) -> set[str]:
    """Return the states of a connector's tasks; none when it is only just created."""
    try:
        tasks = ask(worker, "GET", f"connectors/{name}/status")["tasks"]
    except urllib.error.HTTPError as exc:
        if exc.code != 404:
            raise
        return set()
    return {task["state"] for task in tasks}


def encoded(*readings: dict[str, Any]) -> list[bytes]:
    return [json.dumps(reading).encode() for reading in readings]


def document_id(message: Any) -> str:
    key = message.key.decode()
    return f"Struct{{sensor_id={key},partition={message.partition},offset={message.offset}}}"


def count(pipeline: Pipeline) -> int:
    pipeline.client.indices.refresh(index=pipeline.index)
    return int(pipeline.client.count(index=pipeline.index)["count"])


def test_the_commands_of_the_readme_work(worker: Stack, pipeline: Pipeline, tmp_path: Path) -> None:
    blocks = re.findall(
        r"^```bash\n(.*?)^```", (PROJECT / "connect/README.md").read_text(), re.M | re.S
    )
    ours = {
        "localhost:9200": worker.servers["elasticsearch"].address,
        "127.0.0.1:9200": worker.servers["elasticsearch"].address,
        "localhost:8083": worker.servers["connect"].address,
        "smart-city-sensors": pipeline.topic,
        "sensors_connect": pipeline.index,
    }

    def moved(text: str) -> str:
        return re.sub("|".join(map(re.escape, ours)), lambda found: ours[found[0]], text)

    for name in ("docker-compose.yml", "docker-compose.connect.yml", "mappings", "stack",
                 "sensor_generator.py"):  # fmt: skip
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "connect").mkdir()
    (tmp_path / "connect/camel.json").write_text(moved(json.dumps(CAMEL)))
    environ = {**worker.site.environ, **pipeline.environ}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    printed = ""
    for command in [line for block in blocks for line in block.splitlines()]:
        if command.startswith("curl -X DELETE"):  # the last: all has arrived before
            wait_until(lambda: count(pipeline) == 1000, "all are indexed", 90)
        ended = subprocess.run(
            ["bash", "-c", moved(command).replace("curl", "curl --fail-with-body --silent")],
            cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        printed += ended.stdout
        assert ended.returncode == 0, (command, ended)
        if "camel.json" in command:
            wait_until(lambda: states(worker, "sensors") == {"RUNNING"}, "it runs", 60)
    assert '"state":"RUNNING"' in printed
    assert ask(worker, "GET", "connectors") == []


def test_each_message_is_indexed_once_though_the_worker_is_killed(
    worker: Stack, pipeline: Pipeline, start: Start
) -> None:
    pipeline.generate("--count", "2000", "--backfill", "30d")
    name = start()
    pipeline.group = f"connect-{name}"
    wait_until(lambda: 100 < count(pipeline) < 2000, "it is in the middle", 90)
    worker.stop("connect", signal.SIGKILL)
    worker.up(["connect"])
    wait_until(lambda: pipeline.committed() == 2000, "all are committed", 120)
    wanted = {document_id(m): json.loads(m.value) for m in pipeline.messages()}
    assert pipeline.documents() == wanted
    assert len(wanted) == 2000
    assert states(worker, name) == {"RUNNING"}


def test_what_is_refused_is_dead_lettered_and_a_duplicate_is_doubled(
    pipeline: Pipeline, start: Start
) -> None:
    """Its id is that of the message: the same reading sent twice gives two documents."""
    pipeline.send(b"{not JSON", *encoded(HOT, WET, READING, READING))
    name = start()
    pipeline.group = f"connect-{name}"
    wait_until(lambda: pipeline.committed() == 5, "all are committed", 90)
    documents = sorted(pipeline.documents().items())
    assert [found for _, found in documents] == [WET, READING, READING]  # WET: nobody checks values
    letters = pipeline.messages(f"{name}.dead")
    assert [letter.value for letter in letters] == [b"{not JSON", *encoded(HOT)]
    headers = [dict(letter.headers) for letter in letters]
    assert [h["__connect.errors.offset"] for h in headers] == [b"0", b"1"]
    assert [h["__connect.errors.stage"] for h in headers] == [b"VALUE_CONVERTER", b"TASK_PUT"]
    assert b"JsonParseException" in headers[0]["__connect.errors.exception.stacktrace"]
    assert b"document_parsing_exception" in headers[1]["__connect.errors.exception.stacktrace"]


def test_an_outage_makes_dead_letters_of_valid_readings_or_ends_the_task(
    stack: Stack, worker: Stack, pipeline: Pipeline, start: Start
) -> None:
    """It tries each message once; without a dead-letter queue its tasks then wait for a restart."""
    tolerant = start()
    strict = start(**{"errors.tolerance": "none", "errors.deadletterqueue.topic.name": ""})
    pipeline.generate("--count", "30", "--backfill", "1h")
    for name in (tolerant, strict):
        pipeline.group = f"connect-{name}"
        wait_until(lambda: pipeline.committed() == 30, "both have indexed all", 90)
    stack.stop("elasticsearch", signal.SIGKILL)
    pipeline.generate("--count", "50", "--backfill", "2h", "--seed", "7")
    wait_until(lambda: len(pipeline.messages(f"{tolerant}.dead")) == 50, "they are dead", 90)
    wait_until(lambda: states(worker, strict) == {"FAILED"}, "its tasks have failed", 90)
    stack.up(["elasticsearch"])
    assert count(pipeline) == 30
    ask(worker, "POST", f"connectors/{strict}/restart?includeTasks=true&onlyFailed=true")
    wait_until(lambda: count(pipeline) == 80, "the restarted tasks have indexed the rest", 90)
