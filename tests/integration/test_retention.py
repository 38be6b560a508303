"""Old readings are deleted, and nothing else; readers of an index see the dated ones too."""

import io
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from elasticsearch.helpers import bulk

from tests.conftest import Pipeline
from tools import retention

PROJECT = Path(__file__).resolve().parents[2]
NOW = datetime.now(UTC)
TEMPLATE = json.loads((PROJECT / "mappings/sensors_data.json").read_text())


def day(days_ago: int) -> str:
    return (NOW - timedelta(days=days_ago)).strftime("%Y.%m.%d")


def put(pipeline: Pipeline, index: str, *days_ago: float) -> None:
    """Index a reading for each age."""
    if not pipeline.client.indices.exists(index=index):
        pipeline.client.indices.create(index=index, **TEMPLATE)
    readings = ((NOW - timedelta(days=age)).isoformat(timespec="milliseconds") for age in days_ago)
    sources = ({"sensor_id": "s", "timestamp": timestamp} for timestamp in readings)
    actions = ({"_index": index, "_id": f"s@{s['timestamp']}", "_source": s} for s in sources)
    assert bulk(pipeline.client, actions, refresh=True)[0] == len(days_ago)


def left(pipeline: Pipeline) -> dict[str, int]:
    """Return the number of documents of each index behind the pattern."""
    names = list(pipeline.client.indices.get(index=f"{pipeline.index}*"))
    return {name: len(pipeline.documents(name)) for name in names}


@pytest.fixture
def filled(pipeline: Pipeline) -> Iterator[Pipeline]:
    """A single index, daily ones, a monthly one, and others of a similar name."""
    index = pipeline.index
    put(pipeline, index, 0, 29.9, 30.1, 40)
    put(pipeline, f"{index}-{day(45)}", 45, 45.001)
    put(pipeline, f"{index}-{day(30)}", 30)  # its day ended less than 30 days ago
    put(pipeline, f"{index}-{day(1)}", 1)
    put(pipeline, f"{index}-{day(60)}", 60, 1)  # one is not of its day
    put(pipeline, f"{index}-2020.02", 2000)
    put(pipeline, f"{index}-2020.02.30", 2000)  # no such day
    put(pipeline, f"{index}_old", 2000)
    foreign = f"{index}-2020.03.01"  # of that day by its name, but not with readings in it
    pipeline.client.index(index=foreign, document={"note": "of others"}, refresh=True)
    yield pipeline
    pipeline.client.indices.delete(index=list(left(pipeline)))


def test_what_is_old_is_deleted_and_nothing_else(filled: Pipeline) -> None:
    index, before = filled.index, left(filled)
    shown, _ = filled.run("tools.retention", "delete", "--dry-run")
    assert left(filled) == before
    assert "to be deleted 5 of 12 readings" in shown
    printed, _ = filled.run("tools.retention", "delete", "--older-than", "30d")
    assert "deleted 5 of 12 readings" in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"{index} 2 of 4 readings deleted" in lines
    assert f"{index}-{day(45)} 2 of 2 readings deleted, with the index" in lines
    assert f"{index}-2020.02 1 of 1 readings deleted, with the index" in lines
    assert f"{index}-{day(30)} 0 of 1 readings deleted" in lines
    assert sum("left alone" in line for line in lines) == 2
    assert left(filled) == {
        index: 2,
        f"{index}-{day(60)}": 2,
        f"{index}-{day(30)}": 1,
        f"{index}-{day(1)}": 1,
        f"{index}-2020.02.30": 1,
        f"{index}_old": 1,
        f"{index}-2020.03.01": 1,
    }
    again, _ = filled.run("tools.retention", "delete", "--older-than", "30d")
    assert "deleted 0 of 7 readings" in again


def test_behind_an_alias_as_much_is_deleted_as_it_shows(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """The consumer writes to an alias of one index, too; a filter may hide others' documents."""
    index, behind = pipeline.index, f"{pipeline.index}_v1"
    put(pipeline, behind, 0, 40, 50, 60)
    recent = {"range": {"timestamp": {"gte": (NOW - timedelta(days=55)).isoformat()}}}
    pipeline.client.indices.put_alias(index=behind, name=index, filter=recent)
    try:
        retention.delete(pipeline.client, index, NOW - timedelta(days=30), dry_run=False)
        assert "deleted 2 of 3 readings" in capsys.readouterr().out
        assert left(pipeline) == {behind: 2}
    finally:
        pipeline.client.indices.delete(index=behind)


@pytest.mark.parametrize("index", ["*", "sensors_*", "sensors_a,kibana", ".kibana", "logs"])
def test_what_is_no_name_of_ours_is_refused(
    index: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://127.0.0.1:9")  # whatever comes: not ours
    with pytest.raises(SystemExit) as stopped:
        retention.main(["--index", index, "delete"])
    assert stopped.value.code == 2
    assert "is not one name that begins with sensors_" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("age", "told"),
    [
        *((age, "m could be minutes or months") for age in ("1m", "1mo", "12 months", "90min")),
        *((age, "is not hours or days") for age in ("0d", "-1d", "1", "d", "30 d", "1.5d", "9s")),
        ("9" * 12 + "d", "before the calendar begins"),
        ("9" * 5000 + "d", "before the calendar begins"),
        ("23h", "confirm it by --yes"),
    ],
)
def test_an_age_that_may_be_a_mistake_is_refused(
    age: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not on a terminal, where less than a day is a question."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(SystemExit) as stopped:
        retention.parse_arguments(["delete", f"--older-than={age}"])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("answer", "argv"),
    [("y\n", []), ("yes\n", []), ("", ["--yes"]), ("", ["--dry-run"])],
)
def test_less_than_a_day_is_confirmed(
    answer: str, argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", terminal := io.StringIO(answer))
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    given = retention.parse_arguments(["delete", "--older-than", "2h", *argv])
    assert given.older_than == timedelta(hours=2)


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "no\n", "2h\n"])
def test_less_than_a_day_is_not_deleted_without_a_yes(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", terminal := io.StringIO(answer))
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit) as stopped:
        retention.parse_arguments(["delete", "--older-than", "2h"])
    assert stopped.value.code == 2
    question = "Delete every reading of sensors_data but those of the last 2 h? [y/N] "
    assert question in capsys.readouterr().err


def test_without_lifecycles_it_says_what_to_do_instead(pipeline: Pipeline) -> None:
    put(pipeline, pipeline.index, 0)
    _, err = pipeline.run("tools.retention", "lifecycle", code=1)
    assert err.startswith("retention: this Elasticsearch has no index lifecycle: run `python ")
    assert len(err.splitlines()) == 1
    assert left(pipeline) == {pipeline.index: 1}


def test_the_verifier_reads_the_dated_indices_by_the_pattern(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings moved into an index of their day are neither missing nor, if copied, overlooked."""
    index, topic = pipeline.index, pipeline.topic
    pipeline.generate("--count", "50", "--backfill", "1h")
    pipeline.consume()
    documents = pipeline.documents()
    dated = f"{index}-{day(0)}"
    pipeline.client.indices.create(index=dated, **TEMPLATE)
    moved = list(documents)[:20]
    copies = ({"_index": dated, "_id": i, "_source": documents[i]} for i in moved)
    bulk(pipeline.client, copies, refresh=True)
    removals = [{"_op_type": "delete", "_index": index, "_id": i} for i in moved[1:]]
    bulk(pipeline.client, removals, refresh=True)
    out, _ = pipeline.run("tools.verify", code=1)
    found = {line[:40].strip(): line[40:].split() for line in out.splitlines()}
    assert found["doubled"][0] == "1"
    assert found["missing"] == found["differing"] == found["unexpected"] == ["0"]
    pipeline.client.delete(index=index, id=moved[0], refresh=True)
    out, _ = pipeline.run("tools.verify")
    assert f"messages in {topic}" in out
    sizes, _ = pipeline.run("tools.sizing")
    assert sizes.count("measured on 50\n") == 2
    pipeline.client.indices.delete(index=dated)


class Recorder(BaseHTTPRequestHandler):
    """Stands in for an Elasticsearch with lifecycles, which exists only as a Docker image here."""

    requests: list[tuple[str, str, Any]]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append((self.command, self.path, json.loads(body) if body else None))
        names = ("sensors_data", "sensors_data-2026.11.25", "sensors_data-2026.11")
        answer: Any = {name: {"aliases": {}} for name in names} if self.command == "GET" else {}
        self.send_response(200)
        self.send_header("X-Elastic-Product", "Elasticsearch")
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_GET = do_PUT = answer

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def test_the_lifecycle_is_for_daily_indices_those_there_and_those_to_come() -> None:
    """As far as a stand-in can show: what is asked of Elasticsearch, not that it does it."""
    Recorder.requests = []
    server = HTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with server, Elasticsearch(f"http://127.0.0.1:{server.server_port}") as client:
        retention.install_lifecycle(client, "sensors_data")
        server.shutdown()
    policy, template, listed, settings = Recorder.requests
    file = json.loads((PROJECT / "mappings/lifecycle.json").read_text())
    assert policy == ("PUT", "/_ilm/policy/sensors_data", file)
    assert template[:2] == ("PUT", "/_index_template/sensors_data-daily")
    lifecycle = {"name": "sensors_data", "parse_origination_date": True}
    assert template[2]["template"]["settings"]["index.lifecycle"] == lifecycle
    assert template[2]["template"]["mappings"] == TEMPLATE["mappings"]
    assert listed[0] == "GET"
    assert settings[:2] == ("PUT", "/sensors_data-2026.11.25/_settings")
    began_ms = round(datetime(2026, 11, 25, tzinfo=UTC).timestamp() * 1000)
    wanted = {"lifecycle.name": "sensors_data", "lifecycle.origination_date": began_ms}
    assert settings[2] == {"index": wanted}


def test_the_daily_template_is_the_one_that_counts_for_daily_indices(pipeline: Pipeline) -> None:
    """Its pattern, priority and mapping, on the real server, which knows no lifecycle.

    Whatever another template of a wider pattern says.
    """
    client, index = pipeline.client, pipeline.index
    ours = retention.daily_template(index)
    del ours["template"]["settings"]["index.lifecycle"]
    ours["template"]["settings"]["refresh_interval"] = "7s"  # to tell it from the other
    client.indices.put_index_template(
        name=index, index_patterns=[f"{index}*"], priority=500, template=TEMPLATE
    )
    client.indices.put_index_template(name=f"{index}-daily", **ours)
    try:
        for name, interval in {"": "1s", "-2026.11.25": "7s", "-2026.11": "1s"}.items():
            found = client.indices.simulate_index_template(name=f"{index}{name}")["template"]
            assert found["settings"]["index"]["refresh_interval"] == interval, name
            assert found["mappings"] == TEMPLATE["mappings"]
    finally:
        client.indices.delete_index_template(name=f"{index}-daily")
