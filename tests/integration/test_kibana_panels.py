"""Each panel's own query on the real Elasticsearch, against a computation over what was sent."""

import copy
import csv
import html
import json
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from matplotlib import image
from numpy import unique

from kibana.client import FILES, read_objects
from pipelines.tests.browser import chromium
from tests.conftest import Pipeline
from tools import demo, preview, retention, sizing, verify

OBJECTS = {(o["type"], o["id"]): o for file in FILES for o in read_objects(file)}
Reading = dict[str, Any]
PREFIX = "smart-city-lens-"
CAUSES = (
    ("empty message", "message vide"), ("JSON is malformed", "JSON mal formé"),
    ("was truncated", "message coupé"), ("not UTF-8", "texte qui n'est pas de l'UTF-8"),
    ("missing required", "champ manquant"), ("unknown field", "champ inconnu"),
    ("given twice", "champ donné deux fois"), ("[<>]= ", "valeur hors de ses limites"),
    ("Expected .*, got", "valeur d'un mauvais type"), ("sensor_id is not", "sensor_id mal écrit"),
    ("invalid: timestamp", "date mal écrite ou impossible"), ("", "autre cause"),
)  # fmt: skip


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
    pipeline.generate_faulty(
        "--backfill",
        "4h",
        "--interval",
        "20",
        "40",
        "--fault",
        "malformed=0.05",
        "--seed",
        "11",
        "--ledger",
        str(ledger),
    )
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
        name.removeprefix(PREFIX): search.rows(panel)
        for name, panel in panels().items()
        if panel.shown["type"] == "lens"
    }
    assert all(found.values()), "no panel is empty"
    check_readings(found, readings, search)
    check_dead_letters(found, bad, search)
    reasons = [dict(m.headers)["reason"].decode() for m in pipeline.dead_letters()]
    check_causes(found["dead-causes"], reasons)
    check_others(readings, search)
    latest = search.documents(panels()["smart-city-search-readings"])
    by_time = sorted(readings, key=lambda r: r["timestamp"], reverse=True)
    times = [datetime.fromisoformat(r["timestamp"]) for r in by_time[: len(latest)]]
    assert [d["timestamp"] for d in latest] == [f"{time:%d/%m/%Y %H:%M:%S}" for time in times]
    rejected = search.documents(panels()["smart-city-search-dead-letters"])
    assert [d["offset"] for d in rejected]
    assert {(d["partition"], d["offset"]) for d in rejected} <= malformed


def epoch_ms(reading: Reading) -> float:
    return datetime.fromisoformat(reading["timestamp"]).timestamp() * 1000


def check_readings(found: dict[str, Any], readings: list[Reading], search: preview.Search) -> None:
    by_sensor: dict[str, list[Reading]] = defaultdict(list)
    for reading in sorted(readings, key=epoch_ms):
        by_sensor[reading["sensor_id"]].append(reading)
    last = {sensor: theirs[-1] for sensor, theirs in by_sensor.items()}
    (total,), (youngest,) = found["total"], found["age"]
    assert total["n"] == len(readings)
    assert youngest["age"] == pytest.approx(max(map(epoch_ms, readings)), abs=1)
    assert {row["sensor"]: row["last"] for row in found["humidity"]} == {
        sensor: reading["humidity"] for sensor, reading in last.items()
    }
    now = {r["sensor"]: (r["hum"], r["temp"], r["co2"], r["lux"]) for r in found["now"]}
    fields = ("humidity", "temperature", "co2_level", "light_intensity")
    assert now == {sensor: tuple(r[field] for field in fields) for sensor, r in last.items()}
    assert {row["sensor"]: row["n"] for row in found["by-sensor"]} == {
        sensor: len(theirs) for sensor, theirs in by_sensor.items()
    }
    for panel, field in (("temperature-by-sensor", "temperature"), ("light", "light_intensity")):
        got = {(r["sensor"], r["time"]): r["avg"] for r in found[panel] if r["avg"] is not None}
        slices = by_slice(readings, field, search, "sensor_id")
        assert got == {key: approx(statistics.mean(values)) for key, values in slices.items()}
    rows = [row for row in found["temperature"] if row["avg"] is not None]
    assert {(r["time"],): (r["min"], r["avg"], r["max"]) for r in rows} == {
        key: (approx(min(values)), approx(statistics.mean(values)), approx(max(values)))
        for key, values in by_slice(readings, "temperature", search).items()
    }
    bins = sorted(row["bin"] for row in found["co2"])
    step = bins[1] - bins[0]
    assert {row["bin"]: row["n"] for row in found["co2"] if row["n"]} == Counter(
        math.floor(reading["co2_level"] / step) * step for reading in readings
    )
    assert len(bins) <= 27


def by_slice(
    readings: list[Reading], field: str, search: preview.Search, *groups: str
) -> dict[tuple[Any, ...], list[float]]:
    """Return a field's values by the groups and by the time slice, whose start ends the key."""
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for reading in readings:
        key = (*(reading[name] for name in groups), slice_of(epoch_ms(reading), search))
        found[key].append(reading[field])
    return found


def slice_of(when_ms: float, search: preview.Search) -> float:
    """Return the start of a time slice; Elasticsearch counts them from 1970."""
    return when_ms - when_ms % (search.step_s * 1000)


def approx(value: float) -> Any:
    """A value as the index keeps it: a float of 32 bits."""
    return pytest.approx(value, rel=1e-6, abs=1e-6)


def check_dead_letters(found: dict[str, Any], bad: list[Any], search: preview.Search) -> None:
    (total,), (youngest,) = found["dead-total"], found["dead-age"]
    assert total["n"] == len(bad)
    assert youngest["age"] == max(message.timestamp for message in bad)
    assert {row["kind"]: row["n"] for row in found["dead-kinds"]} == {
        "invalide": len(bad),
        "en conflit": 0,
        "refusé": 0,
    }
    assert {row["time"]: row["invalid"] for row in found["dead-rate"] if row["invalid"]} == Counter(
        slice_of(message.timestamp, search) for message in bad
    )
    assert not any(row["conflict"] or row["refused"] for row in found["dead-rate"])
    assert {row["key"]: row["n"] for row in found["dead-by-key"]} == Counter(
        message.key.decode() for message in bad
    )


def check_causes(rows: list[dict[str, Any]], reasons: list[str]) -> None:
    causes = Counter(
        next(cause for pattern, cause in CAUSES if re.search(pattern, reason)) for reason in reasons
    )
    assert {row["cause"]: row["n"] for row in rows if row["n"]} == causes
    assert len(causes) > 5


def check_others(readings: list[Reading], search: preview.Search) -> None:
    """A sixth sensor does not vanish: what is beyond the size of a panel stands together."""
    panel = copy.deepcopy(panels()[f"{PREFIX}by-sensor"])
    (column,) = (panel.layer["columns"][name] for name in panel.columns(is_bucketed=True))
    column["params"]["size"] = 2
    count = Counter(reading["sensor_id"] for reading in readings)
    *_, other = rows = search.rows(panel)
    assert [row["sensor"] for row in rows] == ["sensor_001", "sensor_002", preview.OTHER]
    assert other["n"] == len(readings) - count["sensor_001"] - count["sensor_002"]


@pytest.mark.parametrize(
    ("span", "step_s"),
    [
        (timedelta(minutes=15), 30), (timedelta(minutes=30), 30), (timedelta(hours=1), 60),
        (timedelta(hours=4), 300), (timedelta(hours=12), 600), (timedelta(hours=24), 1800),
        (timedelta(days=2), 3600), (timedelta(days=7), 10_800), (timedelta(days=30), 43_200),
        (timedelta(days=90), 86_400),
    ],
)  # fmt: skip
def test_time_slices_are_as_wide_as_kibanas(span: timedelta, step_s: int) -> None:
    end = datetime.now(UTC)
    with Elasticsearch("http://127.0.0.1:9") as client:
        assert preview.Search(client, {}, end - span, end).step_s == step_s


def test_the_page_renders_in_a_browser_with_the_numbers_of_the_index(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.generate("--backfill", "1h", "--interval", "20", "40", "--seed", "11")
    for message in (b"", b"{", b"{}"):
        pipeline.send(message)
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
    window = f"--screenshot={tmp_path / 'page.png'}", "--window-size=1920,3400"
    dom = chromium(tmp_path / "index.html", *window, "--dump-dom")
    written = re.findall(r"<text[^>]*>(?:<!--.*?-->)?([^<]*)", dom)
    texts = [html.unescape(text) for text in written]
    for label, number in (("Mesures", pipeline.count()), ("Messages rejetés", 3)):
        place = texts.index(f"{label} dans la période")
        assert texts[place + 1] == on_page(number, 0)
    for sensor, last in last_readings(pipeline).items():
        cells = [on_page(last[field], decimals) for field, decimals in FIELDS.items()]
        assert any(texts[n : n + 5] == [sensor, *cells] for n in range(len(texts))), sensor
    for cause in ("message vide", "message coupé", "champ manquant"):
        assert texts[texts.index(cause) + 1] == "1"
    assert_sensors_are_seen(tmp_path / "page.png")


def on_page(number: float, decimals: int) -> str:
    """Return a number as an SVG picture has it, whose spaces all are simple ones."""
    return preview.french(number, decimals).replace(preview.NARROW_SPACE, " ")


FIELDS = {"humidity": 1, "temperature": 1, "co2_level": 0, "light_intensity": 0}  # decimals


def last_readings(pipeline: Pipeline) -> dict[str, Reading]:
    """Return the newest reading of each sensor in the index."""
    collapse = {"field": "sensor_id"}
    found = pipeline.client.search(index=pipeline.index, collapse=collapse, sort="timestamp:desc")
    return {hit["_source"]["sensor_id"]: hit["_source"] for hit in found["hits"]["hits"]}


def assert_sensors_are_seen(picture: Path) -> None:
    """Assert that the page, as the browser paints it, has the colour of each sensor's lines."""
    pixels = (image.imread(picture)[:, :, :3] * 255).round().astype(int)
    seen = {tuple(map(int, colour)) for colour in unique(pixels.reshape(-1, 3), axis=0)}
    layer = panels()[f"{PREFIX}light"].state["layers"][0]
    names = [f"sensor_{number:03d}" for number in range(1, 6)]
    for name, colour in zip(names, preview.colours_of(layer, names), strict=True):
        assert tuple(bytes.fromhex(colour[1:])) in seen, name


def test_an_index_of_others_beside_ours_disturbs_no_tool(
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Dead letters, readings of another index, and notes, in indices whose names begin as ours."""
    letters = f"{pipeline.index}-dead.letters"
    note = {"timestamp": datetime.now(UTC).isoformat(), "note": "$a_{$ \x1b[31m"}
    others = (f"{pipeline.index}_notes", f"{pipeline.index}-a.b", f"{pipeline.index}-2026.13")
    pipeline.generate("--count", "50", "--backfill", "1h", "--sensors", "25", "--rate", "1")
    pipeline.send(b"$a_{$ \x07")
    pipeline.consume("--dead-letter-index", letters)
    for index in others:
        pipeline.client.index(index=index, document=note, refresh=True)
    for name, value in pipeline.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ELASTICSEARCH_DEAD_LETTER_INDEX", letters)
    try:
        assert preview.main(["--hours", "2", "--output", str(tmp_path)]) == 0
        assert verify.main([]) == 0
        assert sizing.main([]) == 0
        assert retention.main(["delete", "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "measured on 50\n" in out
        assert out.count(" left alone: ") == 4
        assert "to be deleted 0 of 50 readings" in out
        left = demo.last_reading(pipeline.client, pipeline.index)
        assert left
        assert left < datetime.now(UTC)
        demo.print_tables(pipeline.client, pipeline.index)
        out = capsys.readouterr().out
        assert f"les autres   {10:>8}\nensemble {50:>12}" in out
    finally:
        pipeline.client.indices.delete(index=[letters, *others])
        pipeline.client.indices.delete_index_template(name=f"smart-city-{letters}")


@pytest.mark.parametrize(
    "edit",
    [
        lambda objects: objects["lens", f"{PREFIX}total"]["attributes"].pop("state"),
        lambda objects: objects.pop(("lens", f"{PREFIX}total")),
        lambda objects: layer_of(objects)["columns"]["n"].update(operationType="median"),
        lambda objects: layer_of(objects)["columns"]["n"].pop("sourceField"),
    ],
)
def test_a_dashboard_that_was_edited_into_another_form_is_one_line(
    edit: Callable[[Any], Any],
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    objects = copy.deepcopy(OBJECTS)
    edit(objects)
    file = tmp_path / "edited.ndjson"
    file.write_text("".join(json.dumps(o) + "\n" for o in objects.values()))
    monkeypatch.setattr(preview, "FILES", [file])
    monkeypatch.setenv("ELASTICSEARCH_URL", pipeline.elasticsearch)
    assert preview.main(["--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("preview: Smart City — suivi des capteurs: a panel is not drawn here")


def layer_of(objects: Any) -> Any:
    """Return the layer of the panel that counts the readings."""
    state = objects["lens", f"{PREFIX}total"]["attributes"]["state"]
    (layer,) = state["datasourceStates"]["formBased"]["layers"].values()
    return layer


def test_the_preview_without_elasticsearch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://127.0.0.1:9")
    assert preview.main(["--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("preview: Elasticsearch at http://127.0.0.1:9, as VERIFIER: ")
