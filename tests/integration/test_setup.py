"""The consumer's start: the indices, the connections, what it refuses and what it waits for."""

import base64
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from elasticsearch import ApiError

import kafka_to_elasticsearch as indexer
from stack.lifecycle import Stack
from stack.servers import free_port
from tests.conftest import PROJECT, Pipeline

SCRIPT = "kafka_to_elasticsearch.py"
MAPPINGS = json.loads(indexer.MAPPING_FILE.read_text())["mappings"]
OTHER_MAPPINGS = {"properties": {"sensor_id": {"type": "text"}}}
READING = {
    "sensor_id": "sensor_001",
    "timestamp": "2026-06-01T12:00:00.000Z",
    "temperature": 21.5,
    "humidity": 48.2,
    "co2_level": 431,
    "light_intensity": 61234,
}


def options_of(pipeline: Pipeline, *argv: str) -> Any:
    """Return the consumer's options for a pipeline."""
    return indexer.parse_options(argv, pipeline.environ)


def ensure(pipeline: Pipeline, *argv: str) -> None:
    """Create the indices as the consumer does at its start."""
    indexer.ensure_indices(pipeline.client, options_of(pipeline, *argv))


def mappings(pipeline: Pipeline, index: str | None = None) -> Any:
    """Return the mappings of an index, or of the one index behind an alias."""
    (found,) = pipeline.client.indices.get_mapping(index=index or pipeline.index).values()
    return found["mappings"]


# The index and its mapping


def test_elasticsearch_guesses_the_mapping_for_a_script_of_the_reader(pipeline: Pipeline) -> None:
    """Step 4 of the exercise, on servers that the consumer has not used yet."""
    pipeline.client.index(index=pipeline.index, document=READING)
    assert mappings(pipeline)["properties"]["sensor_id"]["type"] == "text"


def test_the_indices_have_the_mappings_of_the_files(pipeline: Pipeline) -> None:
    for _ in range(2):  # the second call changes nothing
        ensure(pipeline)
        assert mappings(pipeline) == MAPPINGS
        dead = json.loads(indexer.DEAD_LETTER_MAPPING_FILE.read_text())["mappings"]
        assert mappings(pipeline, pipeline.dead_letter_index) == dead


@pytest.mark.parametrize("priority", [500, 2_000_000], ids=["below ours", "above ours"])
def test_a_foreign_template_does_not_change_the_mapping(pipeline: Pipeline, priority: int) -> None:
    templates = pipeline.client.indices
    templates.put_index_template(
        name=f"other-{pipeline.index}",
        index_patterns=[f"{pipeline.index}*"],
        priority=priority,
        template={"mappings": OTHER_MAPPINGS},
    )
    try:
        pipeline.client.indices.create(index=pipeline.index)
        with pytest.raises(indexer.SetupError, match=r"sensor_id as text, .*delete"):
            ensure(pipeline)
        pipeline.client.indices.delete(index=pipeline.index)  # as the error advises
        ensure(pipeline)
        assert mappings(pipeline) == MAPPINGS
    finally:
        templates.delete_index_template(name=f"other-{pipeline.index}")


def test_an_index_that_another_consumer_creates_at_the_same_moment_is_checked(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.client.indices, "exists", lambda **_: False)
    pipeline.client.indices.create(index=pipeline.index, mappings=MAPPINGS)
    ensure(pipeline, "--dead-letter-index", "none")
    pipeline.client.indices.delete(index=pipeline.index)
    pipeline.client.indices.create(index=pipeline.index, mappings=OTHER_MAPPINGS)
    with pytest.raises(indexer.SetupError, match="sensor_id as text, not as keyword"):
        ensure(pipeline, "--dead-letter-index", "none")


def test_a_dead_letter_index_with_another_mapping_is_refused(pipeline: Pipeline) -> None:
    pipeline.client.indices.create(index=pipeline.dead_letter_index, mappings=OTHER_MAPPINGS)
    with pytest.raises(indexer.SetupError, match=f"index {pipeline.dead_letter_index} has"):
        ensure(pipeline)


def test_dynamic_mapping_lets_elasticsearch_guess_on_a_new_index(pipeline: Pipeline) -> None:
    ensure(pipeline)  # its template is left behind
    pipeline.client.indices.delete(index=pipeline.index)
    for _ in range(2):
        ensure(pipeline, "--dynamic-mapping")
        pipeline.client.index(index=pipeline.index, document=READING)
        guessed = {name: field["type"] for name, field in mappings(pipeline)["properties"].items()}
        assert guessed == {
            "sensor_id": "text",
            "timestamp": "date",
            "temperature": "float",
            "humidity": "float",
            "co2_level": "long",
            "light_intensity": "long",
        }
        pipeline.client.indices.delete(index=pipeline.index)  # the mapping is guessed again


@pytest.mark.parametrize("argv", [[], ["--dynamic-mapping"]], ids=["ours", "guessed"])
def test_an_alias_of_two_indices_is_refused(pipeline: Pipeline, argv: list[str]) -> None:
    """A document could not be looked up there by its id."""
    indices = pipeline.client.indices
    names = [f"{pipeline.index}-a", f"{pipeline.index}-b"]
    for name in names:
        alias = {pipeline.index: {"is_write_index": name == names[1]}}
        indices.create(index=name, mappings=MAPPINGS, aliases=alias)
    try:
        with pytest.raises(indexer.SetupError, match=f"{names[0]}.*{names[1]}"):
            ensure(pipeline, *argv)
    finally:
        indices.delete(index=names)


@pytest.mark.parametrize("source", [{"enabled": False}, {"excludes": ["humidity"]}], ids=str)
def test_an_index_that_does_not_store_the_whole_source_is_refused(
    pipeline: Pipeline, source: dict[str, Any]
) -> None:
    """A duplicate could not be told from a conflict there."""
    incomplete = {**MAPPINGS, "_source": source}
    pipeline.client.indices.create(index=pipeline.index, mappings=incomplete)
    with pytest.raises(indexer.SetupError, match="_source"):
        ensure(pipeline)


def test_an_index_whose_pipeline_may_change_readings_is_refused(pipeline: Pipeline) -> None:
    settings = {"index.default_pipeline": "enrich"}
    pipeline.client.indices.create(index=pipeline.index, mappings=MAPPINGS, settings=settings)
    with pytest.raises(indexer.SetupError, match="default_pipeline enrich may change or drop"):
        ensure(pipeline)


def test_an_alias_is_no_reason_to_delete_the_index_behind_it(pipeline: Pipeline) -> None:
    ensure(pipeline)
    alias = f"{pipeline.index}-alias"
    pipeline.client.indices.put_alias(index=pipeline.index, name=alias)
    with pytest.raises(indexer.SetupError, match=r"mapping; choose another name"):
        ensure(pipeline, "--dead-letter-index", alias)


def test_foreign_indices_and_templates_are_not_changed(pipeline: Pipeline) -> None:
    """One index has a name that begins like ours; one template has the name of our index."""
    other, indices = f"{pipeline.index}_bikes", pipeline.client.indices
    indices.put_index_template(name=pipeline.index, index_patterns=["nobody-*"])
    try:
        ensure(pipeline)
        pipeline.client.index(index=other, document={"bikes": 7})
        assert mappings(pipeline, other) == {"properties": {"bikes": {"type": "long"}}}
        indices.delete(index=pipeline.index)
        ensure(pipeline, "--dynamic-mapping")
        (found,) = indices.get_index_template(name=pipeline.index)["index_templates"]
        assert found["index_template"]["index_patterns"] == ["nobody-*"]
    finally:
        indices.delete(index=other, ignore_unavailable=True)
        indices.delete_index_template(name=pipeline.index)


def test_a_foreign_red_index_does_not_stop_the_start(pipeline: Pipeline, stack: Stack) -> None:
    red = f"red-{pipeline.index}"
    nowhere = {"index.routing.allocation.require.nothing": "nowhere"}
    pipeline.client.indices.create(index=red, settings=nowhere, wait_for_active_shards=0)
    try:
        assert pipeline.client.cluster.health(index=red)["status"] == "red"
        assert stack.servers["elasticsearch"].is_ready()
        with indexer.connect_to_elasticsearch(options_of(pipeline)):
            assert mappings(pipeline) == MAPPINGS
    finally:
        pipeline.client.indices.delete(index=red)


# Servers that refuse (exit code 2) or are absent (exit code 1)


class Answer(NamedTuple):
    """What a server answers to everything."""

    status: int
    body: bytes = b"{}"
    content_type: str = "application/json"
    product: str | None = "Elasticsearch"


class Server:
    """An HTTP server that always gives the same answer.

    Attributes:
        authorizations: the header Authorization of each request.
        address: HOST:PORT.
    """

    def __init__(self, answer: Answer) -> None:
        self.authorizations: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                server.authorizations.append(self.headers["Authorization"])
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                self.send_response(answer.status)
                if answer.product:
                    self.send_header("X-Elastic-Product", answer.product)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server_of() -> Iterator[Callable[[Answer], Server]]:
    """Return a function that starts a server; all servers are stopped at the end."""
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def run(*argv: str, code: int, script: Path = PROJECT / SCRIPT) -> str:
    """Run the consumer to its end, check its exit code; return the last line of its log."""
    command = [sys.executable, str(script), *argv]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


UNAUTHORIZED = json.dumps(
    {"error": {"root_cause": [{"type": "security_exception", "reason": "who are you"}]}}
).encode()
PAGE = {"body": b"<html>hello</html>", "content_type": "text/html"}
REFUSALS = {
    "a proxy drops X-Elastic-Product": (Answer(200, product=None), "not Elasticsearch"),
    "another server": (Answer(200, product=None, **PAGE), "not Elasticsearch"),  # type: ignore[arg-type]
    "another server's 404": (Answer(404, product=None, **PAGE), "404"),  # type: ignore[arg-type]
    "a redirection": (Answer(301), "301"),
    "no password": (Answer(401, UNAUTHORIZED), "401.*who are you"),
}


@pytest.mark.parametrize(("answer", "words"), REFUSALS.values(), ids=REFUSALS)
def test_a_permanent_error_of_elasticsearch_is_a_setup_error_in_its_words(
    answer: Answer, words: str, server_of: Callable[[Answer], Server]
) -> None:
    url = f"http://{server_of(answer).address}"
    options = indexer.parse_options(["--elasticsearch-url", url], {})
    with pytest.raises(indexer.SetupError, match=f"{url}.*{words}"):
        indexer.connect_to_elasticsearch(options)


@pytest.mark.parametrize("status", [429, 503])
def test_a_temporary_error_of_elasticsearch_is_not_a_setup_error(
    status: int, server_of: Callable[[Answer], Server]
) -> None:
    url = f"http://{server_of(Answer(status)).address}"
    options = indexer.parse_options(["--elasticsearch-url", url], {})
    with pytest.raises(ApiError, match=str(status)):
        indexer.connect_to_elasticsearch(options)


def test_an_absent_elasticsearch_is_waited_for_and_then_exits_with_1() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    line = run("--elasticsearch-url", url, "--wait", "0.5", code=1)
    assert f"Elasticsearch at {url} is not ready" in line
    assert "is it started?" in line


def test_an_absent_kafka_is_waited_for_and_then_exits_with_1(pipeline: Pipeline) -> None:
    broker = f"127.0.0.1:{free_port()}"
    argv = ("--bootstrap-servers", broker, "--wait", "0.5")
    assert f"Kafka at {broker} is not ready" in pipeline.run(SCRIPT, *argv, code=1)[1]


@pytest.mark.parametrize("suffix", ["", ".dead-letter"], ids=["topic", "dead-letter topic"])
def test_a_topic_name_that_kafka_refuses_exits_with_2_in_kafka_s_words(
    pipeline: Pipeline, suffix: str
) -> None:
    """Names that differ only by a dot and an underscore have the same metrics in Kafka."""
    existing, wanted = f"{pipeline.topic}-a_b", f"{pipeline.topic}-a.b"
    pipeline.topic = existing + suffix.replace(".", "_")
    pipeline.send(b"foreign")
    pipeline.topic = wanted
    _, err = pipeline.run(SCRIPT, "--wait", "0", code=2)
    assert f"Topic '{wanted}{suffix}' collides with existing topics" in err


def test_a_broker_is_reached_by_an_ipv6_address(pipeline: Pipeline) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        listener.settimeout(60)
        broker = f"[::1]:{listener.getsockname()[1]}"
        consumer = pipeline.start(SCRIPT, "--bootstrap-servers", broker, "--wait", "0")
        listener.accept()[0].close()
        listener.close()
        _, err = consumer.communicate(timeout=60)
    assert consumer.returncode == 1
    assert f"Kafka at {broker} is not ready" in err


def test_a_refused_password_in_the_url_is_sent_decoded_and_not_shown(
    server_of: Callable[[Answer], Server],
) -> None:
    server = server_of(Answer(401, UNAUTHORIZED))
    url = f"http://elastic:p%40ss%2F%5B@{server.address}"
    line = run("--elasticsearch-url", url, code=2)
    assert f"Elasticsearch at http://{server.address} refuses" in line
    sent = base64.b64encode(b"elastic:p@ss/[").decode()
    assert server.authorizations == [f"Basic {sent}"]


# The script without the rest of the project


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the script in an empty folder, where it reads a .env."""
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    return Path(shutil.copy(PROJECT / SCRIPT, tmp_path))


def test_a_wrong_line_of_env_exits_with_2_and_is_not_shown(alone: Path) -> None:
    """tests/contract/test_contract.py has the other wrong lines."""
    alone.with_name(".env").write_text("# ours\n\nKAFKA_TOPIC: s3cr3t\n")
    ended = subprocess.run([sys.executable, alone], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ".env, line 3: " in ended.stderr
    assert "s3cr3t" not in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_script_alone_needs_the_mapping_file_or_dynamic_mapping(
    alone: Path, pipeline: Pipeline
) -> None:
    variables = (
        "KAFKA_BOOTSTRAP_SERVERS",
        "KAFKA_TOPIC",
        "KAFKA_GROUP_ID",
        "ELASTICSEARCH_URL",
        "ELASTICSEARCH_INDEX",
    )
    lines = [f"{name}={pipeline.environ[name]}\n" for name in variables]
    alone.with_name(".env").write_text("".join(lines))
    assert "sensors_data.json" in run(code=2, script=alone)
    pipeline.send(json.dumps(READING).encode())
    last = run("--dynamic-mapping", "--exit-when-idle", "1", code=0, script=alone)
    assert "consumed=1 indexed=1 duplicates=0 dead_lettered=0 in_flight=0" in last


# Signals


def waiting_consumer(signum: signal.Signals, action: signal.Handlers) -> subprocess.Popen[str]:
    """Return a consumer that waits for servers; it inherits this action for a signal."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--elasticsearch-url", f"http://127.0.0.1:{free_port()}"],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signum, action),
    )
    assert process.stderr
    assert "waiting for Elasticsearch" in process.stderr.readline()
    return process


def ended(process: subprocess.Popen[str], signum: signal.Signals) -> int:
    """Send a signal to a process; return its exit code."""
    with process:
        process.send_signal(signum)
        return process.wait(timeout=60)


def test_a_signal_ends_a_consumer_that_waits_for_servers() -> None:
    """tests/unit/test_sensor_generator.py has the other signals; the function is the same."""
    assert ended(waiting_consumer(signal.SIGHUP, signal.SIG_DFL), signal.SIGHUP) == 0


def test_under_nohup_a_closed_terminal_does_not_end_the_consumer() -> None:
    process = waiting_consumer(signal.SIGHUP, signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    assert process.stderr
    for _ in range(2):  # the first line may have been written before the signal
        assert "waiting for Elasticsearch" in process.stderr.readline()
    assert ended(process, signal.SIGTERM) == 0
