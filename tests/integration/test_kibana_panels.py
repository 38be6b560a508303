"""Each panel's own query on the real Elasticsearch, against a computation over what was sent."""

import csv
import json
import math
import re
import statistics
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from kibana import preview
from kibana.server import FILES, read_objects
from tests.conftest import Pipeline

OBJECTS = {(o["type"], o["id"]): o for file in FILES for o in read_objects(file)}
SUFFIX = "smart-city-lens-"


def panels() -> dict[str, preview.Panel]:
    """Return the panels of both dashboards by the id of what they show."""
    return {
        panel.shown["id"]: panel
        for (type_, _), dashboard in OBJECTS.items()
        if type_ == "dashboard"
        for panel in preview.panels_of(dashboard, OBJECTS)
    }


def test_every_panel_shows_what_was_sent(pipeline: Pipeline, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.csv"
    pipeline.generate(
        "--backfill", "4h", "--interval", "20", "40", "--fault", "malformed=0.05",
        "--seed", "11", "--ledger", str(ledger),
    )  # fmt: skip
    pipeline.consume()
    search = preview.Search(
        Elasticsearch(pipeline.elasticsearch),
        {"sensors_data*": pipeline.index, "sensors_dead_letters*": pipeline.dead_letter_index},
        datetime.now(UTC) - timedelta(hours=5),
        datetime.now(UTC) + timedelta(minutes=1),
    )
    pipeline.client.indices.refresh(index=f"{pipeline.index},{pipeline.dead_letter_index}")
    with ledger.open() as file:
        malformed = {
            (int(row["partition"]), int(row["offset"]))
            for row in csv.DictReader(file)
            if row["label"].startswith("malformed")
        }
    messages = pipeline.messages()
    bad = [m for m in messages if (m.partition, m.offset) in malformed]
    readings = [json.loads(m.value) for m in messages if (m.partition, m.offset) not in malformed]
    assert len(bad) > 50
    found = {
        name: search.rows(panel)
        for name, panel in panels().items()
        if panel.shown["type"] == "lens"
    }
    assert all(found.values()), "no panel is empty"
    check_readings({n.removeprefix(SUFFIX): rows for n, rows in found.items()}, readings)
    check_dead_letters({n.removeprefix(SUFFIX): rows for n, rows in found.items()}, bad)
    latest = search.documents(panels()["smart-city-search-readings"])
    by_time = sorted(readings, key=lambda r: r["timestamp"], reverse=True)
    assert [d["timestamp"] for d in latest] == [r["timestamp"] for r in by_time[: len(latest)]]
    rejected = search.documents(panels()["smart-city-search-dead-letters"])
    assert [d["offset"] for d in rejected]
    assert {(d["partition"], d["offset"]) for d in rejected} <= malformed


def epoch_ms(reading: dict[str, Any]) -> float:
    return datetime.fromisoformat(reading["timestamp"]).timestamp() * 1000


def check_readings(found: dict[str, Any], readings: list[dict[str, Any]]) -> None:
    by_sensor: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for reading in sorted(readings, key=epoch_ms):
        by_sensor[reading["sensor_id"]].append(reading)
    last = {sensor: theirs[-1] for sensor, theirs in by_sensor.items()}
    (total,), (youngest,) = found["total"], found["age"]
    assert total["n"] == len(readings)
    assert youngest["age"] == pytest.approx(max(map(epoch_ms, readings)), abs=1)
    assert {row["sensor"]: row["last"] for row in found["humidity-tiles"]} == {
        sensor: reading["humidity"] for sensor, reading in last.items()
    }
    now = {r["sensor"]: (r["hum"], r["temp"], r["co2"], r["lux"]) for r in found["now"]}
    fields = ("humidity", "temperature", "co2_level", "light_intensity")
    assert now == {sensor: tuple(r[field] for field in fields) for sensor, r in last.items()}
    assert {row["sensor"]: row["n"] for row in found["by-sensor"]} == {
        sensor: len(theirs) for sensor, theirs in by_sensor.items()
    }
    for panel, field in (("temperature-by-sensor", "temperature"), ("light", "light_intensity")):
        expected = means(
            readings, field, by=("sensor_id",), starts={r["time"] for r in found[panel]}
        )
        got = {
            (row["sensor"], row["time"]): row["avg"]
            for row in found[panel]
            if row["avg"] is not None
        }
        assert got == {key: pytest.approx(value, abs=1e-3) for key, value in expected.items()}
    starts = {row["time"] for row in found["temperature"]}
    expected = means(readings, "temperature", by=(), starts=starts)
    rows = {row["time"]: row for row in found["temperature"] if row["avg"] is not None}
    assert {(time,): row["avg"] for time, row in rows.items()} == {
        key: pytest.approx(value, abs=1e-3) for key, value in expected.items()
    }
    assert max(row["max"] for row in rows.values()) == pytest.approx(
        max(reading["temperature"] for reading in readings), abs=1e-3
    )
    assert min(row["min"] for row in rows.values()) == pytest.approx(
        min(reading["temperature"] for reading in readings), abs=1e-3
    )
    bins = sorted(row["bin"] for row in found["co2"])
    step = bins[1] - bins[0]
    assert {row["bin"]: row["n"] for row in found["co2"] if row["n"]} == Counter(
        math.floor(reading["co2_level"] / step) * step for reading in readings
    )
    assert len(bins) <= 27


def means(
    readings: list[dict[str, Any]], field: str, by: tuple[str, ...], starts: set[float]
) -> dict[tuple[Any, ...], float]:
    """Return the mean of a field for each time slice, whose starts are given, and each group."""
    ordered = sorted(starts)
    values: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for reading in readings:
        start = max(begin for begin in ordered if begin <= epoch_ms(reading))
        values[*(reading[name] for name in by), start].append(reading[field])
    return {key: statistics.mean(theirs) for key, theirs in values.items()}


def check_dead_letters(found: dict[str, Any], bad: list[Any]) -> None:
    (total,), (youngest,) = found["dead-total"], found["dead-age"]
    assert total["n"] == len(bad)
    assert youngest["age"] == max(message.timestamp for message in bad)
    assert found["dead-kinds"] == [{"kind": "invalid", "n": len(bad)}]
    assert sum(row["n"] for row in found["dead-rate"]) == len(bad)
    counts = [row["n"] for row in found["dead-causes"]]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) <= len(bad)
    assert {row["key"]: row["n"] for row in found["dead-by-key"]} == Counter(
        message.key.decode() for message in bad
    )


def test_the_preview_is_a_page_and_a_picture_for_each_dashboard(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.generate("--backfill", "1h", "--interval", "20", "40", "--seed", "11")
    pipeline.consume()
    for name, value in pipeline.environ.items():
        monkeypatch.setenv(name, value)
    assert preview.main(["--hours", "2", "--output", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert "aperçu sans Kibana" in page
    assert "Smart City — suivi des capteurs" in page
    assert not re.search(r"(src|href)=.?https?:|url\(.?https?:|<script|@import", page)
    pictures = sorted(file.name for file in tmp_path.glob("*.png"))
    assert pictures == ["smart-city-dashboard-quality.png", "smart-city-dashboard.png"]


def test_the_preview_without_elasticsearch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://127.0.0.1:9")
    assert preview.main(["--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("preview: Connection error")
