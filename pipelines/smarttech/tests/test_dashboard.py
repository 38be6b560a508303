"""dashboard.py: its page says what the tables hold, and needs nothing else."""

import html
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from matplotlib import image
from numpy import unique

from pipelines.smarttech import dashboard
from pipelines.smarttech.svg import ALARM, COLOURS
from pipelines.tests.browser import chromium

NOON = datetime(2025, 12, 15, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
GOLD_COLUMNS = ["building", "type", "window_start", "mean", "min", "max", "count"]


def write_lake(lake: Path) -> None:
    """Write 12 windows of two buildings, one missing, and three anomalies, two on one day."""
    gold = [
        {
            "building": building, "floor": floor, "type": "co2", "window_start": NOON + i * STEP,
            "window_end": NOON + (i + 1) * STEP, "mean": 420.0 + 60 * floor + i,
            "min": 400.0, "max": 900.5, "count": 1 + 2 * floor,
        }
        for building in "AB" for floor in (0, 1) for i in range(12) if i != 5
    ]  # fmt: skip
    anomalies = [
        {
            "building": building, "timestamp": when, "device_id": "sensor_<1>", "type": "co2",
            "value": 1500.5, "unit": "ppm", "score": 40.25,
        }
        for building, when in (("A", NOON), ("A", NOON + STEP), ("B", NOON - timedelta(days=1)))
    ]  # fmt: skip
    for name, rows in (("gold", gold), ("anomalies", anomalies)):
        write_deltalake(str(lake / f"sensor_data_{name}"), pa.Table.from_pylist(rows))


def test_the_page_shows_what_the_tables_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lake(tmp_path)
    assert dashboard.main(["--lake", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/dashboard.html\n"
    text = (tmp_path / "dashboard.html").read_text(encoding="utf-8")
    facts = re.findall(r"<li><b>(.+?)</b>(.+?)</li>", text)
    assert facts == [("88", "mesures"), ("44", "lignes de gold"), ("3", "anomalies")]
    assert "Bâtiment A, le 15/12/2025" in text  # the one with the most anomalies
    assert "anomalie (2 ce jour-là" in text
    assert text.count('class="mark"') == 2
    assert "sensor_&lt;1&gt;, 12:05:00 : 1\u202f500,5 ppm, score 40,2" in text
    # The floors of a building together: (420 + 3 * 480) / 4; the line is broken at the gap.
    means = dashboard.by_building(dashboard.read(tmp_path, "gold", GOLD_COLUMNS))["co2", "A"]
    assert means[NOON].mean == 465.0
    lines = re.findall(r'<path d="(M\S[^"]*)" fill="none"', text)
    assert [line.count("M") for line in lines] == [2, 2, 2]
    assert re.search(r"<script|https?://", text) is None


def test_a_browser_shows_the_numbers_of_gold(tmp_path: Path) -> None:
    """After its HTML is read and drawn: the texts of the page, and the colours of its pixels."""
    write_lake(tmp_path)
    page, log, picture = (tmp_path / name for name in ("page.html", "console.log", "page.png"))
    assert dashboard.main(["--lake", str(tmp_path), "--output", str(page)]) == 0
    logged = ("--enable-logging", f"--log-file={log}")
    drawn = (f"--screenshot={picture}", "--window-size=1280,2000")
    dom = html.unescape(chromium(page, *logged, *drawn, "--dump-dom"))
    assert log.exists()
    assert "CONSOLE" not in log.read_text()
    gold = DeltaTable(str(tmp_path / "sensor_data_gold")).to_pyarrow_table().to_pylist()
    facts = re.findall(r"<li><b>(.+?)</b>(.+?)</li>", dom)
    assert [(number(shown), name) for shown, name in facts] == [
        (sum(row["count"] for row in gold), "mesures"), (len(gold), "lignes de gold"),
        (3, "anomalies"),
    ]  # fmt: skip
    shown = [re.findall(r"<td>([^<]*)", row) for row in re.findall(r"<tr><td>.*?</tr>", dom, re.S)]
    gold.sort(key=lambda row: [row[key] for key in ("window_start", "building", "floor")])
    assert [[*cells[:4], *map(number, cells[4:])] for cells in shown] == [
        [
            f"{row['window_start']:%d/%m/%Y %H:%M}", row["building"], str(row["floor"]),
            row["type"], row["mean"], row["min"], row["max"], row["count"],
        ]
        for row in gold[:-25:-1]
    ]  # fmt: skip
    pixels = (image.imread(picture)[:, :, :3] * 255).round().astype(int)
    seen = {f"#{colour:06X}" for colour in unique(pixels @ [65536, 256, 1])}
    assert {*COLOURS[:2], ALARM} <= seen


def number(text: str) -> float:
    """Return a number that is written as French texts do."""
    return float(text.replace("\u202f", "").replace(",", "."))


def test_a_day_of_which_nothing_is_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lake(tmp_path)
    for building, day in (("A", "2025-12-16"), ("Z", "2025-12-15")):
        argv = ["--lake", str(tmp_path), "--building", building, "--day", day]
        assert dashboard.main(argv) == 1
        said = f"gold has no row of building {building} on {day}\n"
        assert capsys.readouterr().err.endswith(said)
    assert dashboard.main(["--lake", str(tmp_path / "none")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
