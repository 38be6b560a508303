#!/usr/bin/env python3
"""Draw the table gold, and a day of one building with its anomalies, as a page of HTML.

    python pipelines/smarttech/dashboard.py                     # LAKE/dashboard.html
    python pipelines/smarttech/dashboard.py --building A --day 2025-12-15 --output page.html

One file, without a script or anything from the network: open it in a browser. Without --building
and --day it shows the building and the day with the most anomalies. The page is in French, its
times are in UTC.

Environment (or .env in this folder, then at the project's root; an option wins over both):
    SMARTTECH_LAKE   folder of the tables (default: lake/ beside this file)

Exit codes: 0 written, 1 there is no such table or nothing in it, 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import load_env  # noqa: E402
from pipelines.smarttech.settings import (  # noqa: E402
    FOLDER,
    add_lake_option,
    command_parser,
    leave,
    parse_time,
)
from pipelines.smarttech.svg import ALARM, COLOURS, Chart, french  # noqa: E402
from stack.console import command  # noqa: E402

Row = dict[str, Any]

# Type of a reading -> its title.
TITLES = {
    "temperature": "Température, °C",
    "humidity": "Humidité, %",
    "energy": "Énergie, kWh par mesure",
    "co2": "CO₂, ppm",
}
LAST_ROWS = 24
PAGE = """<!DOCTYPE html>
<html lang="fr"><head><meta charset="utf-8"><title>SmartTech : la table gold</title><style>
body {{ font: 16px/1.45 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1200px; margin: 24px auto; padding: 0 20px; }}
.facts {{ display: flex; gap: 16px; flex-wrap: wrap; padding: 0; }}
.facts li {{ list-style: none; border: 1px solid #ccc; border-radius: 6px; padding: 8px 16px; }}
.facts b {{ display: block; font-size: 26px; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(520px, 1fr)); gap: 12px; }}
svg {{ width: 100%; height: auto; }}
.key i {{ display: inline-block; width: 22px; height: 0; border-top: 4px solid;
  margin: 0 6px 4px 18px; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 3px 12px; border-bottom: 1px solid #ddd; text-align: right; }}
th:nth-child(-n+4), td:nth-child(-n+4) {{ text-align: left; }}
</style></head><body>
<h1>SmartTech : la table gold</h1>
<p>{period} (heures en UTC). Page écrite le {written}.</p>
<ul class="facts">{facts}</ul>
<h2>Moyenne par bâtiment et par fenêtre</h2>
<p class="key">{key}</p>
<div class="charts">{gold}</div>
<h2>Bâtiment {building}, le {day}</h2>
<p class="key"><i style="color:{colour}"></i>moyenne, et du minimum au maximum de chaque fenêtre
<svg width="16" height="16" style="width:16px;margin-left:18px"><circle cx="8" cy="8" r="5"
fill="none" stroke="{alarm}" stroke-width="2"/></svg> anomalie ({anomalies} ce jour-là ;
la souris dessus : le capteur, la valeur, le score)</p>
<div class="charts">{detail}</div>
<h2>Les {last} dernières lignes de gold</h2>
<table><tr><th>fenêtre<th>bâtiment<th>étage<th>type<th>moyenne<th>min<th>max<th>nombre</tr>
{rows}</table>
</body></html>
"""


@dataclass
class Window:
    """What the floors of a building measured in one window of time."""

    total: float = 0.0
    count: int = 0
    low: float = field(default=float("inf"))
    high: float = field(default=float("-inf"))

    def add(self, row: Row) -> None:
        """Add a row of gold."""
        self.total += row["mean"] * row["count"]
        self.count += row["count"]
        self.low, self.high = min(self.low, row["min"]), max(self.high, row["max"])

    @property
    def mean(self) -> float:
        """Mean of all readings."""
        return self.total / self.count


Windows = dict[datetime, Window]


def read(lake: Path, table: str, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a table, some of their columns."""
    stored = DeltaTable(str(lake / f"sensor_data_{table}"))
    rows: list[Row] = stored.to_pyarrow_table(columns=list(columns)).to_pylist()
    return rows


def by_building(gold: Sequence[Row]) -> dict[tuple[str, str], Windows]:
    """Return the windows of each type and building, floors taken together, in order of time."""
    found: dict[tuple[str, str], Windows] = defaultdict(lambda: defaultdict(Window))
    for row in sorted(gold, key=lambda row: row["window_start"]):
        found[row["type"], row["building"]][row["window_start"]].add(row)
    return found


def busiest(gold: Sequence[Row], anomalies: Sequence[Row]) -> tuple[str, date]:
    """Return the building and the day with the most anomalies; without any, the last of gold."""
    counted = Counter((row["building"], row["timestamp"].date()) for row in anomalies)
    if counted:
        return max(counted, key=lambda key: (counted[key], key[1]))
    last = max(gold, key=lambda row: row["window_start"])
    return last["building"], last["window_start"].date()


def gold_charts(windows: Mapping[tuple[str, str], Windows], step: timedelta) -> str:
    """Return a chart per type, with a line per building."""
    charts = []
    for kind, title in TITLES.items():
        of_kind = {building: w for (k, building), w in windows.items() if k == kind}
        if of_kind:
            chart = Chart(title, [at for w in of_kind.values() for at in w], step)
            for building, found in sorted(of_kind.items()):
                means = [(at, window.mean) for at, window in found.items()]
                chart.line(means, COLOURS[building_number(windows, building)], building)
            charts.append(chart.svg())
    return "\n".join(charts)


def building_number(windows: Mapping[tuple[str, str], Windows], building: str) -> int:
    """Return which of the colours is a building's; with more buildings they come again."""
    return sorted({name for _, name in windows}).index(building) % len(COLOURS)


def day_charts(
    windows: Mapping[tuple[str, str], Windows], anomalies: Sequence[Row],
    building: str, day: date, step: timedelta,
) -> str:  # fmt: skip
    """Return a chart per type of one building's day: mean, band, anomalies."""
    charts = []
    for kind, title in TITLES.items():
        found = {
            at: window
            for at, window in windows.get((kind, building), {}).items()
            if at.date() == day
        }
        if found:
            colour = COLOURS[building_number(windows, building)]
            chart = Chart(title, list(found), step)
            chart.band([(at, window.low, window.high) for at, window in found.items()], colour)
            chart.line([(at, window.mean) for at, window in found.items()], colour, building)
            for row in anomalies:
                if row["type"] == kind:
                    said = (
                        f"{row['device_id']}, {row['timestamp']:%H:%M:%S} : {french(row['value'])} "
                        f"{row['unit']}, score {french(row['score'])}"
                    )
                    chart.point(row["timestamp"], row["value"], said)
            charts.append(chart.svg())
    return "\n".join(charts)


def page(lake: Path, building: str | None, day: date | None) -> str:
    """Return the page.

    Raises:
        ValueError: gold has no row, or none of that building and day.
    """
    gold = read(
        lake, "gold",
        ["building", "floor", "type", "window_start", "window_end", "mean", "min", "max", "count"],
    )  # fmt: skip
    anomalies = read(
        lake, "anomalies", ["building", "timestamp", "device_id", "type", "value", "unit", "score"]
    )
    if not gold:
        raise ValueError("the table gold is empty: run spark_kafka_consumer.py first")
    step = gold[0]["window_end"] - gold[0]["window_start"]
    found_building, found_day = busiest(gold, anomalies)
    building, day = building or found_building, day or found_day
    windows = by_building(gold)
    of_day = [
        row for row in anomalies if (row["building"], row["timestamp"].date()) == (building, day)
    ]
    detail = day_charts(windows, of_day, building, day, step)
    if not detail:
        raise ValueError(f"gold has no row of building {building} on {day}")
    times = [row["window_start"] for row in gold]
    key = "".join(
        f'<i style="color:{COLOURS[building_number(windows, name)]}"></i>bâtiment {escape(name)}'
        for name in sorted({row["building"] for row in gold})
    )
    facts = {
        "mesures": sum(row["count"] for row in gold),
        "lignes de gold": len(gold),
        "anomalies": len(anomalies),
    }
    return PAGE.format(
        period=f"Du {min(times):%d/%m/%Y %H:%M} au {max(times) + step:%d/%m/%Y %H:%M}",
        written=f"{datetime.now(UTC):%d/%m/%Y à %H:%M}",
        facts="".join(f"<li><b>{french(value)}</b>{name}</li>" for name, value in facts.items()),
        key=key,
        gold=gold_charts(windows, step),
        building=escape(building),
        day=f"{day:%d/%m/%Y}",
        colour=COLOURS[building_number(windows, building)],
        alarm=ALARM,
        anomalies=len(of_day),
        detail=detail,
        last=min(LAST_ROWS, len(gold)),
        rows="\n".join(map(table_row, last_rows(gold))),
    )


def last_rows(gold: Sequence[Row]) -> list[Row]:
    """Return the newest rows of gold, the newest first."""
    keys = ("window_start", "building", "floor", "type")
    return sorted(gold, key=lambda row: [row[key] for key in keys], reverse=True)[:LAST_ROWS]


def table_row(row: Row) -> str:
    """Return a row of gold as HTML."""
    numbers = "".join(f"<td>{french(row[name])}" for name in ("mean", "min", "max", "count"))
    return (
        f"<tr><td>{row['window_start']:%d/%m/%Y %H:%M}<td>{escape(row['building'])}"
        f"<td>{row['floor']}<td>{escape(row['type'])}{numbers}</tr>"
    )


@command("dashboard")
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    options = load_options(argv, os.environ)
    output = options.output or options.lake / "dashboard.html"
    try:
        text = page(options.lake, options.building, options.day and options.day.date())
        output.write_text(text, encoding="utf-8")
    except (DeltaError, OSError, ValueError) as exc:
        sys.stderr.write(f"dashboard: {options.lake}: {' '.join(str(exc).split())[:300]}\n")
        return 1
    sys.stdout.write(f"{output}\n")
    return 0


def load_options(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--building", metavar="NAME", help="(default: the one with the most anomalies in a day)")
    add("--day", type=parse_time, metavar="DATE", help="2025-12-15 (default: that day)")
    add("--output", type=Path, metavar="FILE", help="(default: dashboard.html in the lake)")
    add_lake_option(parser, environ)
    return parser.parse_args(argv)


if __name__ == "__main__":
    leave(main())
