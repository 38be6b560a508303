#!/usr/bin/env python3
"""Draw the dashboards without Kibana: each panel's own query, run on Elasticsearch, and a chart.

    python kibana/preview.py                # the last 24 hours, into the folder apercu/
    python kibana/preview.py --hours 1 --output /tmp/apercu

It writes one page, index.html, that needs nothing else, and a picture (PNG) for each dashboard.
The charts are this script's; layout, titles and questions are those of the files *.ndjson.

Environment (or .env): ELASTICSEARCH_URL, ELASTICSEARCH_INDEX, ELASTICSEARCH_DEAD_LETTER_INDEX, as
for the consumer, and the variables of its security, with VERIFIER_ in a .env that is for all.

Exit codes: 0 drawn, 1 Elasticsearch does not answer or a panel cannot be drawn, 2 wrong usage.
"""

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # a file, no window
from dotenv import load_dotenv
from elasticsearch import ApiError, Elasticsearch, TransportError
from matplotlib import dates, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kibana.server import FILES, KibanaError, SavedObject, read_objects  # noqa: E402
from tools.connection import elasticsearch_client  # noqa: E402  # works from any folder

GRID_COLUMNS = 48  # of a dashboard; a row is half a column high at 1920 pixels
WIDTH_IN, ROW_IN, DPI = 19.2, 0.26, 100
HEADER_IN = 0.6
# Okabe and Ito (2008), "Color Universal Design": told apart also by the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BARS = 50  # in a date histogram of Kibana's, about: it chooses the next of these steps, in seconds
STEPS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 10_800, 43_200, 86_400)
METRICS = {"average": "avg", "min": "min", "max": "max"}
DOCUMENTS = 12  # shown of a saved search
TABLE_LINES = DOCUMENTS + 1  # that fill a panel

NARROW_SPACE = "\u202f"  # between thousands

Row = dict[str, Any]  # column id -> value


@dataclass(frozen=True)
class Panel:
    """One panel of a dashboard: where it stands on the grid, and the object that it shows."""

    x: int
    y: int
    width: int
    height: int
    shown: SavedObject
    view: Mapping[str, Any]  # the attributes of its data view

    @property
    def title(self) -> str:
        """Its title."""
        return str(self.shown["attributes"]["title"])

    @property
    def layer(self) -> Mapping[str, Any]:
        """Its one layer: columns by id, and their order."""
        layers = self.shown["attributes"]["state"]["datasourceStates"]["formBased"]["layers"]
        if len(layers) != 1:
            raise KibanaError(f"panel {self.title!r}: one layer is drawn here, not {len(layers)}")
        (found,) = layers.values()
        return dict(found)

    def columns(self, is_bucketed: bool) -> list[str]:
        """Return its buckets, or its metrics, in order."""
        columns = self.layer["columns"]
        return [c for c in self.layer["columnOrder"] if columns[c]["isBucketed"] == is_bucketed]


def panels_of(
    dashboard: SavedObject, objects: Mapping[tuple[str, str], SavedObject]
) -> list[Panel]:
    """Return a dashboard's panels."""
    targets = {reference["name"]: reference for reference in dashboard["references"]}
    found = []
    for panel in json.loads(dashboard["attributes"]["panelsJSON"]):
        reference = targets[f"{panel['panelIndex']}:{panel['panelRefName']}"]
        shown = objects[reference["type"], reference["id"]]
        view = objects["index-pattern", shown["references"][0]["id"]]["attributes"]
        grid = panel["gridData"]
        found.append(Panel(grid["x"], grid["y"], grid["w"], grid["h"], shown, view))
    return found


# What Kibana asks Elasticsearch for a panel.


class Search:
    """The searches of panels in a period.

    Attributes:
        step_s: width of a time slice, in seconds.
    """

    def __init__(
        self, client: Elasticsearch, indices: Mapping[str, str], start: datetime, end: datetime
    ) -> None:
        self.client = client
        self.indices = indices
        self.start, self.end = start, end
        wanted_s = (end - start).total_seconds() / BARS
        self.step_s = next((step for step in STEPS_S if step >= wanted_s), STEPS_S[-1])

    def ask(self, panel: Panel, **body: Any) -> dict[str, Any]:
        """Run a search in the panel's index and period."""
        period = {"gte": self.start.isoformat(), "lt": self.end.isoformat()}
        answer = self.client.search(
            index=self.indices[panel.view["title"]],
            query={"range": {panel.view["timeFieldName"]: period}},
            track_total_hits=True,
            **body,
        )
        return dict(answer)

    def documents(self, panel: Panel) -> list[Row]:
        """Return the first documents of a saved search, as it sorts them."""
        sort = [{field: order} for field, order in panel.shown["attributes"]["sort"]]
        hits = self.ask(panel, size=DOCUMENTS, sort=sort)["hits"]["hits"]
        return [hit["_source"] for hit in hits]

    def rows(self, panel: Panel) -> list[Row]:
        """Return a Lens panel's data: for each combination of buckets, each column's value."""
        buckets = panel.columns(is_bucketed=True)
        answer = self.ask(panel, size=0, aggs=self.aggregations(panel, buckets))
        whole = answer.get("aggregations", {}) | {"doc_count": answer["hits"]["total"]["value"]}
        return list(unfold(panel, whole, buckets, {}))

    def aggregations(self, panel: Panel, buckets: Sequence[str]) -> dict[str, Any]:
        """Return the aggregations of a panel from these buckets inwards."""
        columns = panel.layer["columns"]
        if not buckets:
            return {
                name: aggregation
                for name in panel.columns(is_bucketed=False)
                if (aggregation := metric_aggregation(columns[name]))
            }
        name, *inner = buckets
        aggregation = self.bucket_aggregation(panel, columns[name])
        return {name: {**aggregation, "aggs": self.aggregations(panel, inner)}}

    def bucket_aggregation(self, panel: Panel, column: Mapping[str, Any]) -> dict[str, Any]:
        """Return the aggregation of one bucket column.

        Raises:
            KibanaError: its operation is not drawn here.
        """
        field, params = column["sourceField"], column["params"]
        if column["operationType"] == "terms":
            by_count = params["orderBy"]["type"] == "column"  # here, always the count
            order = {"_count" if by_count else "_key": params["orderDirection"]}
            return {"terms": {"field": field, "size": params["size"], "order": order}}
        if column["operationType"] == "date_histogram":
            return {"date_histogram": {"field": field, "fixed_interval": f"{self.step_s}s"}}
        if column["operationType"] == "range" and params["type"] == "histogram":
            aggs = {"low": {"min": {"field": field}}, "high": {"max": {"field": field}}}
            found = self.ask(panel, size=0, aggs=aggs)["aggregations"]
            span = (found["high"]["value"] or 0) - (found["low"]["value"] or 0)
            return {"histogram": {"field": field, "interval": nice_step(span, params["maxBars"])}}
        raise KibanaError(f"panel {panel.title!r}: {column['operationType']} is not drawn here")


def metric_aggregation(column: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the aggregation of one metric column; None for a count, which comes by itself.

    Raises:
        KibanaError: its operation is not drawn here.
    """
    operation, field = column["operationType"], column["sourceField"]
    if operation == "count":
        return None
    if operation in METRICS:
        return {METRICS[operation]: {"field": field}}
    if operation == "last_value":
        # Kibana asks for top_metrics; this gives the same, also in a distribution without it.
        last = {"size": 1, "_source": [field], "sort": [{column["params"]["sortField"]: "desc"}]}
        return {"filter": {"exists": {"field": field}}, "aggs": {"last": {"top_hits": last}}}
    raise KibanaError(f"column {column['label']!r}: {operation} is not drawn here")


def unfold(
    panel: Panel, node: Mapping[str, Any], buckets: Sequence[str], row: Row
) -> Iterator[Row]:
    """Yield the rows under a node of Elasticsearch's answer."""
    if buckets:
        name, *inner = buckets
        for bucket in node[name]["buckets"]:
            yield from unfold(panel, bucket, inner, {**row, name: bucket["key"]})
        return
    columns = panel.layer["columns"]
    for name in panel.columns(is_bucketed=False):
        column = columns[name]
        if column["operationType"] == "count":
            row[name] = node["doc_count"]
        elif column["operationType"] == "last_value":
            hits = node[name]["last"]["hits"]["hits"]
            row[name] = hits[0]["_source"][column["sourceField"]] if hits else None
        else:
            row[name] = node[name]["value"]
    yield row


def nice_step(span: float, max_bars: int) -> float:
    """Return the width of a histogram's bars: 1, 2 or 5 times a power of ten, at most max_bars.

    >>> nice_step(560, 20), nice_step(560, 25), nice_step(0, 25)
    (50, 50, 1)
    """
    power = 10.0 ** math.floor(math.log10(span / max_bars)) if span else 1.0
    found = next(power * f for f in (1, 2, 5, 10) if span / (power * f) <= max_bars)
    return int(found) if found >= 1 else found


# Drawing.


def shown(value: Any, column: Mapping[str, Any] | None = None, is_age: bool = False) -> str:
    """Return a value as text: decimals and unit as its column asks, French thousands."""
    if value is None:
        return "—"
    if is_age:
        return age(datetime.now(UTC) - datetime.fromtimestamp(value / 1000, UTC))
    if isinstance(value, str):
        return value
    number = ((column or {}).get("params") or {}).get("format", {}).get("params", {})
    text = f"{value:,.{number.get('decimals', 0 if value == int(value) else 1)}f}"
    return f"{text.replace(',', NARROW_SPACE).replace('.', ',')}{number.get('suffix', '')}"


def age(ago: timedelta) -> str:
    """Return how long ago something was.

    >>> age(timedelta(seconds=42)), age(timedelta(minutes=61)), age(timedelta(days=3))
    ('il y a 42 s', 'il y a 1 h', 'il y a 3 j')
    """
    seconds = ago.total_seconds()
    for size, unit in ((86_400, "j"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"il y a {seconds // size:.0f} {unit}"
    return f"il y a {max(0.0, seconds):.0f} s"


def draw(panel: Panel, search: Search, axes: Axes) -> None:
    """Draw one panel.

    Raises:
        KibanaError: a kind of panel that is not drawn here.
    """
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
    if panel.shown["type"] == "search":
        draw_documents(panel, search.documents(panel), axes)
        return
    kind = panel.shown["attributes"]["visualizationType"]
    rows = search.rows(panel)
    if not rows:
        axes.text(0.5, 0.5, "aucune donnée dans la période", ha="center", transform=axes.transAxes)
        axes.axis("off")
    elif kind == "lnsMetric":
        draw_tiles(panel, rows, axes)
    elif kind == "lnsDatatable":
        draw_table(panel, rows, axes)
    elif kind == "lnsXY":
        draw_xy(panel, rows, search, axes)
    else:
        raise KibanaError(f"panel {panel.title!r}: {kind} is not drawn here")


def draw_tiles(panel: Panel, rows: Sequence[Row], axes: Axes) -> None:
    """Draw one big number, or one for each bucket."""
    axes.axis("off")
    state = panel.shown["attributes"]["state"]["visualization"]
    metric, split = state["metricAccessor"], state.get("breakdownByAccessor")
    column = panel.layer["columns"][metric]
    formats = json.loads(panel.view["fieldFormatMap"])
    is_age = formats.get(column["sourceField"], {}).get("id") == "relative_date"
    for place, row in enumerate(rows):
        box = (place / len(rows), 0.0, 0.98 / len(rows), 0.96)
        axes.add_patch(Rectangle(box[:2], *box[2:], color=state["color"], transform=axes.transAxes))
        middle = box[0] + box[2] / 2
        axes.text(
            middle, 0.14, row[split] if split else column["label"],
            ha="center", transform=axes.transAxes, fontsize=10, color="#444444",
        )  # fmt: skip
        axes.text(
            middle, 0.56, shown(row[metric], column, is_age),
            ha="center", va="center", transform=axes.transAxes, fontsize=19, fontweight="bold",
        )  # fmt: skip


def draw_cells(texts: Sequence[Sequence[str]], labels: Sequence[str], axes: Axes) -> None:
    """Draw a table as wide as its panel; a column is as wide as its longest text asks."""
    axes.axis("off")
    lines = [labels, *([cut(text, 60) for text in line] for line in texts)]
    longest = [max(len(line[place]) for line in lines) + 3 for place in range(len(labels))]
    height = min(1.0, len(lines) / TABLE_LINES)
    table = axes.table(
        lines, colWidths=[width / sum(longest) for width in longest], cellLoc="left", edges="B",
        bbox=Bbox.from_bounds(0.0, 1 - height, 1.0, height),
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    for (line, _), cell in table.get_celld().items():
        cell.set_edgecolor("#DDDDDD")
        cell.set_text_props(fontweight="bold" if line == 0 else "normal")


def cut(text: str, width: int) -> str:
    """Return at most so many characters, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def draw_table(panel: Panel, rows: Sequence[Row], axes: Axes) -> None:
    """Draw a table, one row for each bucket."""
    columns = panel.layer["columns"]
    names = [
        column["columnId"]
        for column in panel.shown["attributes"]["state"]["visualization"]["columns"]
    ]
    texts = [[shown(row[name], columns[name]) for name in names] for row in rows]
    draw_cells(texts, [columns[name]["label"] for name in names], axes)


def draw_documents(panel: Panel, documents: Sequence[Row], axes: Axes) -> None:
    """Draw the documents of a saved search as a table."""
    labels = json.loads(panel.view["fieldAttrs"])
    names = [panel.view["timeFieldName"], *panel.shown["attributes"]["columns"]]
    texts = []
    for document in documents:
        when = document[names[0]]
        if isinstance(when, int):
            when = datetime.fromtimestamp(when / 1000, UTC).isoformat(timespec="milliseconds")
        texts.append([when[:19].replace("T", " "), *(shown(document[name]) for name in names[1:])])
    draw_cells(texts, [labels[name]["customLabel"] for name in names], axes)


def draw_xy(panel: Panel, rows: Sequence[Row], search: Search, axes: Axes) -> None:
    """Draw lines or bars."""
    state = panel.shown["attributes"]["state"]["visualization"]
    (layer,) = state["layers"]
    columns = panel.layer["columns"]
    colours = {config["forAccessor"]: config["color"] for config in layer.get("yConfig", ())}
    x, split = layer["xAccessor"], layer.get("splitAccessor")
    is_time = columns[x]["operationType"] == "date_histogram"
    series: dict[str, list[tuple[Any, float]]] = {}
    for row in rows:
        for metric in layer["accessors"]:
            name = str(row[split]) if split else columns[metric]["label"]
            place = datetime.fromtimestamp(row[x] / 1000, UTC) if is_time else row[x]
            if row[metric] is not None:
                series.setdefault(name, []).append((place, row[metric]))
    fixed = [colours[metric] for metric in layer["accessors"] if metric in colours]
    floor: dict[Any, float] = {}
    for (name, points), colour in zip(
        series.items(), [*fixed, *COLOURS] * len(series), strict=False
    ):
        places, values = zip(*points, strict=True)
        if layer["seriesType"] == "line":
            axes.plot(places, values, color=colour, label=name, linewidth=1.6)
        elif layer["seriesType"] == "bar_horizontal":
            axes.barh(list(map(str, places)), values, color=colour, label=name)
            axes.invert_yaxis()
        else:
            step: Any = timedelta(seconds=search.step_s)
            if not is_time:
                step = min((b - a for a, b in pairwise(sorted(set(places)))), default=1)
            width = 0.9 * step
            below = [floor.get(place, 0.0) for place in places]
            axes.bar(places, values, width, below, color=colour, label=name, align="edge")
            floor |= {p: b + v for p, b, v in zip(places, below, values, strict=True)}
    lies = layer["seriesType"] == "bar_horizontal"
    numbers = axes.xaxis if lies else axes.yaxis
    numbers.set_major_formatter(lambda value, _: shown(value))
    if is_time:
        axes.set_xlim(search.start, search.end)  # type: ignore[arg-type]  # dates are understood
        is_long = search.end - search.start > timedelta(days=2)
        axes.xaxis.set_major_formatter(dates.DateFormatter("%d/%m" if is_long else "%H:%M"))
    elif not lies:
        axes.set_xlabel(columns[x]["label"])
    axes.set_ylabel("" if lies else state["yTitle"])
    axes.grid(axis="x" if lies else "y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if state["legend"]["isVisible"]:
        axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_dashboard(dashboard: SavedObject, panels: Sequence[Panel], search: Search) -> Figure:
    """Return a figure with a dashboard's panels on its grid."""
    rows = max(panel.y + panel.height for panel in panels)
    height_in = HEADER_IN + rows * ROW_IN
    figure = pyplot.figure(figsize=(WIDTH_IN, height_in))
    title = dashboard["attributes"]["title"]
    period = f"{search.start:%d/%m/%Y %H:%M} – {search.end:%d/%m/%Y %H:%M} (UTC)"
    top = 1 - 0.35 / height_in
    figure.text(0.01, top, title, fontsize=18, fontweight="bold", va="center")
    figure.text(
        0.99, top, f"aperçu sans Kibana · {period}", ha="right", va="center", fontsize=12,
        color="#666666",
    )  # fmt: skip
    for panel in panels:
        is_chart = panel.shown["attributes"].get("visualizationType") == "lnsXY"
        state = panel.shown["attributes"].get("state", {}).get("visualization", {})
        has_legend = is_chart and state["legend"]["isVisible"]
        bars_lie = is_chart and state["preferredSeriesType"] == "bar_horizontal"
        left = 0.045 if is_chart else 0.008
        left += 0.02 if bars_lie else 0
        right = 0.065 if has_legend else 0.01
        bottom_in, top_in = (0.5 if is_chart else 0.12), 0.42
        x, width = panel.x / GRID_COLUMNS, panel.width / GRID_COLUMNS
        y = (rows - panel.y - panel.height) * ROW_IN
        box = (
            x + left,
            (y + bottom_in) / height_in,
            width - left - right,
            (panel.height * ROW_IN - bottom_in - top_in) / height_in,
        )
        draw(panel, search, figure.add_axes(box))
    return figure


def page(figures: Mapping[str, Figure]) -> str:
    """Return one HTML page with the figures in it."""
    parts = []
    for title, figure in figures.items():
        svg = io.StringIO()
        figure.savefig(svg, format="svg")
        drawing = svg.getvalue()
        parts.append(f"<section aria-label='{title}'>{drawing[drawing.index('<svg') :]}</section>")
    return (
        "<!doctype html><html lang='fr'><meta charset='utf-8'><title>Aperçu sans Kibana</title>"
        "<style>body{font-family:sans-serif;margin:1rem;background:#fff}"
        "svg{width:100%;height:auto}</style><h1>Aperçu sans Kibana</h1>"
        "<p>Les panneaux des tableaux de bord, dessinés par <code>kibana/preview.py</code> avec "
        "leurs propres requêtes. Ce n'est pas une capture de Kibana.</p>"
        + "".join(parts)
        + "</html>\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all dashboards; return the exit code (see the module docstring)."""
    options_of = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options_of.add_argument("--hours", type=float, default=24.0, help="period (default: 24)")
    options_of.add_argument("--output", type=Path, default=PROJECT / "apercu", metavar="FOLDER")
    options = options_of.parse_args(argv)
    load_dotenv(PROJECT / ".env")
    try:
        client = elasticsearch_client("VERIFIER")
    except ValueError as exc:
        options_of.error(str(exc))
    # The files name the usual indices; these may be others.
    indices = {
        "sensors_data*": os.environ.get("ELASTICSEARCH_INDEX") or "sensors_data*",
        "sensors_dead_letters*": os.environ.get("ELASTICSEARCH_DEAD_LETTER_INDEX")
        or "sensors_dead_letters*",
    }
    end = datetime.now(UTC)
    search = Search(client, indices, end - timedelta(hours=options.hours), end)
    try:
        objects = {(o["type"], o["id"]): o for file in FILES for o in read_objects(file)}
        options.output.mkdir(parents=True, exist_ok=True)
        figures = {}
        for (kind, name), dashboard in objects.items():
            if kind == "dashboard":
                figure = draw_dashboard(dashboard, panels_of(dashboard, objects), search)
                figure.savefig(options.output / f"{name}.png", dpi=DPI)
                figures[dashboard["attributes"]["title"]] = figure
        (options.output / "index.html").write_text(page(figures), encoding="utf-8")
    except (KibanaError, ApiError, TransportError, OSError) as exc:
        sys.stderr.write(f"preview: {' '.join(str(exc).split())[:300]}\n")
        return 1
    sys.stdout.write(f"{options.output / 'index.html'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
