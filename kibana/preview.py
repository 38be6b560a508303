#!/usr/bin/env python3
"""Draw the dashboards without Kibana: each panel's own query, run on Elasticsearch, and a chart.

    python kibana/preview.py                # the last 24 hours, into the folder apercu/
    python kibana/preview.py --hours 1 --output /tmp/apercu

It writes one page, index.html, that needs nothing else, and a picture (PNG) for each dashboard.
The charts are this script's; layout, titles and questions are those of the files *.ndjson.

Environment (or .env): ELASTICSEARCH_URL, ELASTICSEARCH_INDEX, ELASTICSEARCH_DEAD_LETTER_INDEX, as
for the consumer; VERIFIER_ELASTICSEARCH_USER, VERIFIER_ELASTICSEARCH_PASSWORD and
ELASTICSEARCH_CA_FILE where it asks for them.

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
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # a file, no window
from elasticsearch import ApiError, Elasticsearch, TransportError
from matplotlib import dates, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kafka_to_elasticsearch import SetupError  # noqa: E402
from kibana.server import FILES, KibanaError, SavedObject, read_objects  # noqa: E402
from tools.connection import elasticsearch_client, load_env  # noqa: E402

WIDTH_IN, HEADER_IN, DPI = 19.2, 0.6, 100
COLUMN_IN, ROW_IN = WIDTH_IN / 48, 0.28  # of a dashboard's grid, as Kibana's at 1920 pixels
GAP_IN, TITLE_IN = 0.08, 0.45  # between panels; above what a panel shows
LINE_IN, CHARACTERS_PER_IN = 0.3, 12  # of a table, at most
PAPER, FRAME, GREY = "#F7F8FC", "#D3DAE6", "#555555"
# Okabe and Ito (2008), "Color Universal Design": told apart also by the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Width of a time slice in seconds, for a fiftieth of the period below a bound, as Kibana chooses it
# (src/plugins/data/common/search/aggs/buckets/lib/time_buckets/calc_auto_interval).
BARS = 50
STEPS_S = (
    (5, 1), (7.5, 5), (15, 10), (45, 30), (180, 60), (540, 300), (1200, 600), (2700, 1800),
    (7200, 3600), (21_600, 10_800), (86_400, 43_200), (604_800, 86_400), (math.inf, 604_800),
)  # fmt: skip
METRICS = {"average": "avg", "min": "min", "max": "max"}
DOCUMENTS = 12  # shown of a saved search
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
    def kind(self) -> str:
        """What it is: search, or a visualization of Lens's."""
        return str(self.shown["attributes"].get("visualizationType", self.shown["type"]))

    @property
    def state(self) -> Mapping[str, Any]:
        """How a visualization shows its columns."""
        return dict(self.shown["attributes"]["state"]["visualization"])

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
        self.step_s = next(step for bound, step in STEPS_S if wanted_s < bound)

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
        aggs = self.aggregations(panel, buckets)
        answer = self.ask(panel, size=0, aggs=aggs)
        if aggs and "aggregations" not in answer:  # there is no such index yet
            return []
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
            found = self.ask(panel, size=0, aggs=aggs).get("aggregations", {})
            low, high = (found.get(edge, {}).get("value") or 0 for edge in ("low", "high"))
            span = high - low
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
    names = panel.columns(is_bucketed=False)
    yield row | {name: metric(columns[name], node.get(name), node) for name in names}


def metric(column: Mapping[str, Any], found: Any, bucket: Mapping[str, Any]) -> Any:
    """Return a metric column's value from its aggregation's answer, None where it has none."""
    if column["operationType"] == "count":
        return bucket["doc_count"]
    if column["operationType"] == "last_value":
        hits = found["last"]["hits"]["hits"]
        return hits[0]["_source"][column["sourceField"]] if hits else None
    return found["value"]


def nice_step(span: float, max_bars: int) -> int:
    """Return the width of an integer's histogram bars: 1, 2 or 5 times a power of ten.

    The narrowest that gives at most max_bars, as Kibana chooses it
    (src/plugins/data/common/search/aggs/buckets/lib/histogram_calculate_interval).

    >>> nice_step(560, 20), nice_step(560, 25), nice_step(10, 25)
    (50, 50, 1)
    """
    if span < max_bars:
        return 1
    power: int = 10 ** math.floor(math.log10(span / max_bars))
    return next(power * f for f in (1, 2, 5, 10) if span / (power * f) <= max_bars)


# Drawing.


def shown(value: Any, column: Mapping[str, Any] | None = None) -> str:
    """Return a value as text: decimals and unit as its column asks, in French."""
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    form = ((column or {}).get("params") or {}).get("format", {})
    if form.get("id") == "relative_date":
        return age(datetime.now(UTC) - datetime.fromtimestamp(value / 1000, UTC))
    params = form.get("params", {})
    decimals = params.get("decimals", 0 if value == int(value) else 1)
    return french(value, decimals) + str(params.get("suffix", ""))


def in_pattern(value: Any, pattern: str) -> str:
    """Return a field's value as its pattern in the data view asks ("0,0.0": one decimal)."""
    if isinstance(value, str):
        return value
    text = french(value, len(pattern.partition(".")[2]))
    return text if "," in pattern else text.replace(NARROW_SPACE, "")


def french(number: float, decimals: int) -> str:
    """Return a number with a comma and spaces between thousands.

    >>> french(21659.26, 1)
    '21\u202f659,3'
    """
    return f"{number:,.{decimals}f}".replace(",", NARROW_SPACE).replace(".", ",")


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


def draw_dashboard(dashboard: SavedObject, panels: Sequence[Panel], search: Search) -> Figure:
    """Return a figure with a dashboard's panels on its grid."""
    height_in = HEADER_IN + ROW_IN * max(panel.y + panel.height for panel in panels)
    figure = pyplot.figure(figsize=(WIDTH_IN, height_in), facecolor=PAPER)
    middle = height_in - HEADER_IN / 2
    period = f"{search.start:%d/%m/%Y %H:%M} – {search.end:%d/%m/%Y %H:%M} (UTC)"
    inches: dict[str, Any] = {"transform": figure.dpi_scale_trans, "va": "center"}
    figure.text(
        GAP_IN, middle, dashboard["attributes"]["title"], fontsize=18, fontweight="bold", **inches
    )
    figure.text(
        WIDTH_IN - GAP_IN, middle, f"aperçu sans Kibana · {period}", ha="right", fontsize=12,
        color=GREY, **inches,
    )  # fmt: skip
    for panel in panels:
        top = height_in - HEADER_IN - panel.y * ROW_IN
        draw(panel, search, figure, panel.x * COLUMN_IN, top)
    return figure


def draw(panel: Panel, search: Search, figure: Figure, left: float, top: float) -> None:
    """Draw one panel, whose upper left corner is given in inches.

    Raises:
        KibanaError: a kind of panel that is not drawn here.
    """
    width, height = panel.width * COLUMN_IN, panel.height * ROW_IN
    inches = figure.dpi_scale_trans
    frame = Rectangle(
        (left + GAP_IN / 2, top - height + GAP_IN / 2), width - GAP_IN, height - GAP_IN,
        facecolor="white", edgecolor=FRAME, transform=inches, zorder=-1,
    )  # fmt: skip
    figure.add_artist(frame)
    figure.text(
        left + 0.15, top - 0.12, panel.title, va="top", fontsize=11, fontweight="bold",
        transform=inches,
    )  # fmt: skip
    before, after, below = margins(panel)
    inside = Bbox.from_extents(
        left + before, top - height + below, left + width - after, top - TITLE_IN
    )
    axes = figure.add_axes(inside.transformed(inches - figure.transFigure).bounds)
    axes.axis("off")
    if panel.kind == "search":
        draw_documents(panel, search.documents(panel), axes)
    elif not (rows := search.rows(panel)):
        axes.text(0.5, 0.5, "aucune donnée dans la période", ha="center", transform=axes.transAxes)
    elif panel.kind == "lnsMetric":
        draw_tiles(panel, rows, axes)
    elif panel.kind == "lnsDatatable":
        draw_table(panel, rows, axes)
    elif panel.kind == "lnsXY":
        draw_xy(panel, rows, search, axes)
    else:
        raise KibanaError(f"panel {panel.title!r}: {panel.kind} is not drawn here")


def margins(panel: Panel) -> tuple[float, float, float]:
    """Return what a panel's axes leave free at its left, its right and below, in inches."""
    if panel.kind != "lnsXY":
        return 0.15, 0.15, 0.15
    left = 1.05 if panel.state["preferredSeriesType"] == "bar_horizontal" else 0.95
    return left, 1.35 if panel.state["legend"]["isVisible"] else 0.3, 0.6


def draw_tiles(panel: Panel, rows: Sequence[Row], axes: Axes) -> None:
    """Draw one big number, or one for each bucket."""
    metric, split = panel.state["metricAccessor"], panel.state.get("breakdownByAccessor")
    column = panel.layer["columns"][metric]
    width = 1 / len(rows)
    for place, row in enumerate(rows):
        axes.add_patch(Rectangle((place * width, 0), 0.98 * width, 1, color=panel.state["color"]))
        middle: dict[str, Any] = {"x": (place + 0.49) * width, "ha": "center", "va": "center"}
        label = row[split] if split else column["label"]
        axes.text(y=0.8, s=label, fontsize=10, color=GREY, **middle)
        axes.text(y=0.4, s=shown(row[metric], column), fontsize=19, fontweight="bold", **middle)


def draw_table(panel: Panel, rows: Sequence[Row], axes: Axes) -> None:
    """Draw a table, one line for each bucket."""
    columns = panel.layer["columns"]
    names = [column["columnId"] for column in panel.state["columns"]]
    labels = [columns[name]["label"] for name in names]
    numeric = [columns[name]["dataType"] == "number" for name in names]
    draw_lines([[shown(row[name], columns[name]) for name in names] for row in rows],
        labels, numeric, axes)  # fmt: skip


def draw_documents(panel: Panel, documents: Sequence[Row], axes: Axes) -> None:
    """Draw the documents of a saved search as a table."""
    labels = json.loads(panel.view["fieldAttrs"])
    patterns = {
        field: form["params"]["pattern"]
        for field, form in json.loads(panel.view["fieldFormatMap"]).items()
    }
    names = [panel.view["timeFieldName"], *panel.shown["attributes"]["columns"]]
    texts = []
    for document in documents:
        when = document[names[0]]
        if isinstance(when, str):
            when = datetime.fromisoformat(when).timestamp() * 1000
        date = f"{datetime.fromtimestamp(when / 1000, UTC):%d/%m/%Y %H:%M:%S}"
        texts.append([date, *(in_pattern(document[n], patterns.get(n, "")) for n in names[1:])])
    numeric = [name in patterns and name != names[0] for name in names]
    draw_lines(texts, [labels[name]["customLabel"] for name in names], numeric, axes)


def draw_lines(
    texts: Sequence[Sequence[str]], labels: Sequence[str], numeric: Sequence[bool], axes: Axes
) -> None:
    """Draw a table as wide as its axes; a column is as wide as its longest text asks, if it can."""
    box = axes.get_window_extent()
    width_in, height_in = box.width / axes.figure.dpi, box.height / axes.figure.dpi
    lines = [labels, *texts]
    widths = [max(len(line[column]) for line in lines) + 3 for column in range(len(labels))]
    while sum(widths) > width_in * CHARACTERS_PER_IN:
        widths[widths.index(max(widths))] -= 1
    step = min(LINE_IN, height_in / len(lines)) / height_in
    for number, line in enumerate(lines):
        y, left = 1 - (number + 0.5) * step, 0.0
        for text, width, is_number in zip(line, widths, numeric, strict=True):
            right = left + width / sum(widths)
            axes.text(
                right - 0.01 if is_number else left, y, cut(text, width - 2), va="center",
                ha="right" if is_number else "left", fontweight="normal" if number else "bold",
            )  # fmt: skip
            left = right
        axes.axhline(1 - (number + 1) * step, color=FRAME, linewidth=0.8)


def cut(text: str, width: int) -> str:
    """Return at most so many characters, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def draw_xy(panel: Panel, rows: Sequence[Row], search: Search, axes: Axes) -> None:
    """Draw lines or bars."""
    axes.axis("on")
    (layer,) = panel.state["layers"]
    columns, x = panel.layer["columns"], layer["xAccessor"]
    series = series_of(columns, layer, rows)
    colours = [config["color"] for config in layer.get("yConfig", ())] or COLOURS
    is_time = columns[x]["operationType"] == "date_histogram"
    lie = layer["seriesType"] == "bar_horizontal"
    if lie:
        ((names, values),) = series.values()
        axes.barh(list(map(str, names)), values, color=colours[0])
        axes.invert_yaxis()
    elif layer["seriesType"] == "line":
        for (name, points), colour in zip(series.items(), cycle(colours), strict=False):
            axes.plot(*points, color=colour, label=name, linewidth=1.6)
    else:
        draw_bars(series, colours, timedelta(seconds=search.step_s) if is_time else None, axes)
    if is_time:
        axes.set_xlim(search.start, search.end)  # type: ignore[arg-type]  # dates are understood
        is_long = search.end - search.start > timedelta(days=2)
        axes.xaxis.set_major_formatter(dates.DateFormatter("%d/%m" if is_long else "%H:%M"))
    else:
        axes.set_xlabel(panel.state["yTitle"] if lie else columns[x]["label"])
    axes.set_ylabel("" if lie else panel.state["yTitle"])
    numbers = axes.xaxis if lie else axes.yaxis
    numbers.set_major_formatter(lambda value, _: shown(value))
    axes.grid(axis="x" if lie else "y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.state["legend"]["isVisible"]:
        axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def series_of(
    columns: Mapping[str, Any], layer: Mapping[str, Any], rows: Sequence[Row]
) -> dict[str, tuple[list[Any], list[float]]]:
    """Return the places and values of each line, or colour of bars, by its name."""
    x, split = layer["xAccessor"], layer.get("splitAccessor")
    found: dict[str, tuple[list[Any], list[float]]] = {}
    for row in rows:
        for metric in layer["accessors"]:
            name = str(row[split]) if split else columns[metric]["label"]
            places, values = found.setdefault(name, ([], []))
            if row[metric] is not None:
                is_time = columns[x]["operationType"] == "date_histogram"
                places.append(datetime.fromtimestamp(row[x] / 1000, UTC) if is_time else row[x])
                values.append(row[metric])
    return found


def draw_bars(
    series: Mapping[str, tuple[list[Any], list[float]]],
    colours: Sequence[str],
    step: timedelta | None,
    axes: Axes,
) -> None:
    """Draw bars, stacked; each begins at its place and is as wide as a step between places."""
    floor: dict[Any, float] = {}
    for (name, (places, values)), colour in zip(series.items(), cycle(colours), strict=False):
        width: Any = step or min((b - a for a, b in pairwise(places)), default=1)
        below = [floor.get(place, 0.0) for place in places]
        axes.bar(places, values, 0.9 * width, below, color=colour, label=name, align="edge")
        floor |= {p: b + v for p, b, v in zip(places, below, values, strict=True)}


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
    if not 0 < options.hours <= 1e6:
        options_of.error("--hours: not between 0 and 1000000")
    load_env()
    try:
        client = elasticsearch_client("VERIFIER")
    except SetupError as exc:
        options_of.error(str(exc))
    # The files name the usual indices; these may be others.
    indices = {
        f"{usual}*": f"{os.environ.get(variable) or usual}*"
        for usual, variable in (
            ("sensors_data", "ELASTICSEARCH_INDEX"),
            ("sensors_dead_letters", "ELASTICSEARCH_DEAD_LETTER_INDEX"),
        )
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
