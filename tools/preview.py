"""Draw the dashboards without Kibana: run each panel's own query on Elasticsearch, draw a chart.

    python -m tools.preview                # the last 24 hours, into the folder apercu/
    python -m tools.preview --hours 1 --output /tmp/apercu

It writes one page, index.html, that needs no other file, and a picture (PNG) of each dashboard.
Layout, titles, colours and queries come from the files kibana/*.ndjson; only the charts are drawn
here. A dashboard's control, which chooses a sensor, is not: the page shows all of them.

Environment (or .env): ELASTICSEARCH_URL, ELASTICSEARCH_INDEX, ELASTICSEARCH_DEAD_LETTER_INDEX, as
for the consumer; VERIFIER_ELASTICSEARCH_USER, VERIFIER_ELASTICSEARCH_PASSWORD and
ELASTICSEARCH_CA_FILE where it asks for them.

Exit codes: 0 drawn, 1 Elasticsearch does not answer, a panel cannot be drawn or a file cannot be
written; 2 wrong usage or configuration, 130 Ctrl-C.
"""

import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from elasticsearch import Elasticsearch
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from kafka_to_elasticsearch import number
from kibana.client import FILES, SavedObject, read_objects
from kibana.command_line import PROJECT, command, load_env
from stack.console import CommandError, command_parser, say
from tools.connection import (
    asking_servers,
    dead_letter_index,
    elasticsearch_client,
    elasticsearch_index,
    with_dated,
)

mpl.rcParams["text.parse_math"] = False  # the $ in a rejected message begins no formula
mpl.rcParams["svg.fonttype"] = "none"  # the page's texts can be searched, selected and read aloud

ROLE = "VERIFIER"
WIDTH_IN, HEADER_IN, DPI = 19.2, 0.6, 100
COLUMN_IN, ROW_IN = WIDTH_IN / 48, 0.28  # a cell of a dashboard's grid, as in Kibana at 1920 px
GAP_IN, TITLE_IN = 0.08, 0.45  # between panels; above what a panel shows
LINE_IN, CHARACTERS_PER_IN = 0.3, 12  # of a table, at most
PAPER, FRAME, GREY = "#F7F8FC", "#D3DAE6", "#555555"
# (bound, width of a time slice), in seconds: the first bound above a fiftieth of the period counts,
# as in Kibana (src/plugins/data/common/search/aggs/buckets/lib/time_buckets/calc_auto_interval).
BARS = 50
STEPS_S = (
    (5, 1), (7.5, 5), (15, 10), (45, 30), (180, 60), (540, 300), (1200, 600), (2700, 1800),
    (7200, 3600), (21_600, 10_800), (86_400, 43_200), (604_800, 86_400), (math.inf, 604_800),
)  # fmt: skip
METRICS = {"average": "avg", "min": "min", "max": "max"}
DOCUMENTS = 12  # shown of a saved search
NARROW_SPACE = "\u202f"  # between thousands
OTHER = "Autre"  # the buckets beyond the size of a terms aggregation, together
TIME = "%d/%m/%Y %H:%M:%S"  # UTC

Row = dict[str, Any]  # column id -> value


@dataclass(frozen=True)
class Panel:
    """One panel of a dashboard: its place on the grid of 48 columns, and the object it shows."""

    x: int
    y: int
    width: int
    height: int
    shown: SavedObject
    view: Mapping[str, Any]  # the attributes of its data view
    has_title: bool

    @property
    def title(self) -> str:
        """The title above the panel, "" where the dashboard hides it."""
        return str(self.shown["attributes"]["title"]) if self.has_title else ""

    @property
    def kind(self) -> str:
        """What it shows: "search", or the type of a Lens visualization."""
        return str(self.shown["attributes"].get("visualizationType", self.shown["type"]))

    @property
    def state(self) -> Mapping[str, Any]:
        """How a Lens visualization shows its columns."""
        return dict(self.shown["attributes"]["state"]["visualization"])

    @property
    def layer(self) -> Mapping[str, Any]:
        """The one layer of a Lens visualization: its columns by id, and their order."""
        layers = self.shown["attributes"]["state"]["datasourceStates"]["formBased"]["layers"]
        (found,) = layers.values()
        return dict(found)

    def columns(self, is_bucketed: bool) -> list[str]:
        """Return the ids of its buckets, or of its metrics, in order."""
        columns = self.layer["columns"]
        return [c for c in self.layer["columnOrder"] if columns[c]["isBucketed"] == is_bucketed]


def panels_of(
    dashboard: SavedObject, objects: Mapping[tuple[str, str], SavedObject]
) -> list[Panel]:
    """Return a dashboard's panels; the saved objects are given by type and id."""
    targets = {reference["name"]: reference for reference in dashboard["references"]}
    found = []
    for panel in json.loads(dashboard["attributes"]["panelsJSON"]):
        reference = targets[f"{panel['panelIndex']}:{panel['panelRefName']}"]
        shown = objects[reference["type"], reference["id"]]
        view = objects["index-pattern", shown["references"][0]["id"]]["attributes"]
        grid, has_title = panel["gridData"], not panel["embeddableConfig"].get("hidePanelTitles")
        found.append(Panel(grid["x"], grid["y"], grid["w"], grid["h"], shown, view, has_title))
    return found


# The searches: what Kibana asks Elasticsearch for a panel.


class Search:
    """The searches of panels in a period.

    Attributes:
        step_s: width of a time slice, in seconds.
    """

    def __init__(
        self, client: Elasticsearch, indices: Mapping[str, str], start: datetime, end: datetime
    ) -> None:
        """Keep the period, from start to before end, and the indices by the data views' titles."""
        self.client = client
        self.indices = indices
        self.start, self.end = start, end
        wanted_s = (end - start).total_seconds() / BARS
        self.step_s = next(step for bound, step in STEPS_S if wanted_s < bound)

    def ask(self, panel: Panel, without: Any = (), **body: Any) -> dict[str, Any]:
        """Run a search in the panel's index and period; an index that is missing is empty.

        Args:
            panel: whose index is searched.
            without: the queries of the documents that are left out.
            body: of the search.

        Raises:
            ApiError, TransportError: Elasticsearch does not answer, or refuses.
        """
        title = panel.view["title"]
        period = {"gte": self.start.isoformat(), "lt": self.end.isoformat()}
        within = {"range": {panel.view["timeFieldName"]: period}}
        answer = self.client.search(
            index=self.indices.get(title, title),
            ignore_unavailable=True,
            query={"bool": {"filter": [within], "must_not": [*without]}},
            track_total_hits=True,
            **body,
        )
        return dict(answer)

    def documents(self, panel: Panel) -> list[Row]:
        """Return the first documents of a saved search, as it sorts them; times are formatted."""
        sort = [
            {field: {"order": order, "unmapped_type": "boolean"}}  # as Kibana asks
            for field, order in panel.shown["attributes"]["sort"]
        ]
        time = panel.view["timeFieldName"]
        shown_time = {"field": time, "format": "dd/MM/uuuu HH:mm:ss"}
        hits = self.ask(panel, size=DOCUMENTS, sort=sort, fields=[shown_time])["hits"]["hits"]
        return [{**hit["_source"], time: hit["fields"][time][0]} for hit in hits]

    def rows(self, panel: Panel) -> list[Row]:
        """Return a Lens panel's data: each column's value for each combination of buckets."""
        buckets = panel.columns(is_bucketed=True)
        aggs = self.aggregations(panel, buckets)
        answer = self.ask(panel, size=0, aggs=aggs)
        if aggs and "aggregations" not in answer:  # the index does not exist yet
            return []
        found = list(unfold(panel, whole(answer), buckets, {}))
        return found + self.other_rows(panel, buckets, answer)

    def other_rows(
        self, panel: Panel, buckets: Sequence[str], answer: Mapping[str, Any]
    ) -> list[Row]:
        """Return the rows of what a terms aggregation has left out, where the panel shows them."""
        if not buckets or panel.layer["columns"][buckets[0]]["operationType"] != "terms":
            return []
        name, *inner = buckets
        column, terms = panel.layer["columns"][name], answer["aggregations"][name]
        if not column["params"]["otherBucket"] or not terms["sum_other_doc_count"]:
            return []
        shown = {"terms": {column["sourceField"]: [bucket["key"] for bucket in terms["buckets"]]}}
        others = self.ask(panel, [shown], size=0, aggs=self.aggregations(panel, inner))
        return list(unfold(panel, whole(others), inner, {name: OTHER}))

    def aggregations(self, panel: Panel, buckets: Sequence[str]) -> dict[str, Any]:
        """Return the aggregations of a panel: its metrics inside these buckets, nested."""
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
        """Return the aggregation of one bucket column."""
        params, operation = column["params"], column["operationType"]
        if operation == "filters":
            queries = {one["label"]: query_of(one["input"]) for one in params["filters"]}
            return {"filters": {"filters": queries}}
        field = column["sourceField"]
        if operation == "terms":
            by_count = params["orderBy"]["type"] == "column"  # which is the count in all our panels
            order = {"_count" if by_count else "_key": params["orderDirection"]}
            return {"terms": {"field": field, "size": params["size"], "order": order}}
        if operation == "date_histogram":
            return {"date_histogram": {"field": field, "fixed_interval": f"{self.step_s}s"}}
        if (operation, params["type"]) == ("range", "histogram"):
            aggs = {"low": {"min": {"field": field}}, "high": {"max": {"field": field}}}
            found = self.ask(panel, size=0, aggs=aggs).get("aggregations", {})
            low, high = (found.get(edge, {}).get("value") or 0 for edge in ("low", "high"))
            span = high - low
            return {"histogram": {"field": field, "interval": nice_step(span, params["maxBars"])}}
        raise LookupError(operation)


def whole(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer as one bucket of all its documents."""
    return {**answer.get("aggregations", {}), "doc_count": answer["hits"]["total"]["value"]}


def query_of(text: Mapping[str, str]) -> dict[str, Any]:
    """Return a query in Kibana's language as one of Elasticsearch's.

    Parts with "and" between them are known, each FIELD: "VALUE" or FIELD: PATTERN*, or not so.

    Raises:
        LookupError: it has another form.
    """
    found: dict[str, list[Any]] = {"": [], "not ": []}
    for part in text["query"].split(" and "):
        if not (parts := re.fullmatch(r'(not |)(\w+): (?:"([^"*\\]+)"|([^\s"\\]+))', part)):
            raise LookupError(part)
        negation, field, value, pattern = parts.groups()
        one = {"term": {field: value}} if value else {"wildcard": {field: pattern}}
        found[negation].append(one)
    return {"bool": {"filter": found[""], "must_not": found["not "]}}


def metric_aggregation(column: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the aggregation of one metric column; None for a count, which every answer has."""
    operation, field = column["operationType"], column["sourceField"]
    if operation == "count":
        return {"filter": query_of(column["filter"])} if "filter" in column else None
    if operation == "last_value":
        # Kibana asks for top_metrics, which the native stack's Elasticsearch lacks; this is equal.
        last = {"size": 1, "_source": [field], "sort": [{column["params"]["sortField"]: "desc"}]}
        return {"filter": {"exists": {"field": field}}, "aggs": {"last": {"top_hits": last}}}
    return {METRICS[operation]: {"field": field}}


def unfold(
    panel: Panel, node: Mapping[str, Any], buckets: Sequence[str], row: Row
) -> Iterator[Row]:
    """Yield the rows under a node of Elasticsearch's answer, each added to the row above it."""
    if buckets:
        name, *inner = buckets
        found, params = node[name]["buckets"], panel.layer["columns"][name]["params"]
        if isinstance(found, dict):  # of filters; Elasticsearch has put them in another order
            found = [{"key": one["label"], **found[one["label"]]} for one in params["filters"]]
        for bucket in found:
            yield from unfold(panel, bucket, inner, {**row, name: bucket["key"]})
        return
    columns = panel.layer["columns"]
    names = panel.columns(is_bucketed=False)
    yield row | {name: metric(columns[name], node.get(name), node) for name in names}


def metric(column: Mapping[str, Any], found: Any, bucket: Mapping[str, Any]) -> Any:
    """Return a metric column's value from its aggregation's answer, None where it has none."""
    if column["operationType"] == "count":
        return (found or bucket)["doc_count"]
    if column["operationType"] == "last_value":
        hits = found["last"]["hits"]["hits"]
        return hits[0]["_source"][column["sourceField"]] if hits else None
    return found["value"]


def nice_step(span: float, max_bars: int) -> int:
    """Return the width of the bars of an integer's histogram: 1, 2 or 5 times a power of ten.

    It is the narrowest one that gives at most max_bars over the span, as in Kibana
    (src/plugins/data/common/search/aggs/buckets/lib/histogram_calculate_interval).

    >>> nice_step(560, 20), nice_step(560, 25), nice_step(10, 25)
    (50, 50, 1)
    """
    if span < max_bars:
        return 1
    power: int = 10 ** math.floor(math.log10(span / max_bars))
    return next(power * f for f in (1, 2, 5, 10) if span / (power * f) <= max_bars)


# Values as text


def shown(value: Any, column: Mapping[str, Any] | None = None) -> str:
    """Return a value as text, in French, with the decimals of its column."""
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    column = column or {}
    if column.get("dataType") == "date":
        return f"{datetime.fromtimestamp(value / 1000, UTC):{TIME}}"
    form = column.get("params", {}).get("format", {}).get("params", {})
    decimals = form.get("decimals", 0 if value == int(value) else 1)
    return french(value, decimals)


def formatted(value: Any, form: Mapping[str, Any]) -> str:
    """Return a field's value as its data view shows it: a number's pattern, a text's translation.

    >>> formatted(1234.5, {"pattern": "0,0.0"}), formatted(None, {}), formatted("a", {})
    ('1\u202f234,5', '—', 'a')
    """
    if value is None:
        return "—"
    if not isinstance(value, int | float):
        entries = form.get("lookupEntries", ())
        return str({one["key"]: one["value"] for one in entries}.get(value, value))
    pattern = form.get("pattern", "")
    text = french(value, len(pattern.partition(".")[2]))
    return text if "," in pattern else text.replace(NARROW_SPACE, "")


def french(number: float, decimals: int) -> str:
    """Return a number with a decimal comma and narrow spaces between thousands.

    >>> french(21659.26, 1)
    '21\u202f659,3'
    """
    return f"{number:,.{decimals}f}".replace(",", NARROW_SPACE).replace(".", ",")


# Drawing


def draw_dashboard(dashboard: SavedObject, panels: Sequence[Panel], search: Search) -> Figure:
    """Return a figure with a dashboard's panels on its grid.

    Raises:
        ApiError, TransportError: Elasticsearch does not answer, or refuses.
        LookupError, ValueError: a panel has a form that is not known here.
    """
    height_in = HEADER_IN + ROW_IN * max(panel.y + panel.height for panel in panels)
    figure = Figure(figsize=(WIDTH_IN, height_in), facecolor=PAPER)
    middle = height_in - HEADER_IN / 2
    title = dashboard["attributes"]["title"]
    period = f"{search.start:%d/%m/%Y %H:%M} – {search.end:%d/%m/%Y %H:%M} (UTC)"
    look: dict[str, Any] = {"transform": figure.dpi_scale_trans, "va": "center"}
    figure.text(GAP_IN, middle, title, fontsize=18, fontweight="bold", **look)
    look |= {"ha": "right", "color": GREY, "fontsize": 12}
    figure.text(WIDTH_IN - GAP_IN, middle, f"aperçu sans Kibana · {period}", **look)
    for panel in panels:
        top = height_in - HEADER_IN - panel.y * ROW_IN
        draw(panel, search, figure, panel.x * COLUMN_IN, top)
    return figure


def draw(panel: Panel, search: Search, figure: Figure, left: float, top: float) -> None:
    """Draw one panel, whose upper left corner is given in inches."""
    width, height = panel.width * COLUMN_IN, panel.height * ROW_IN
    inches = figure.dpi_scale_trans
    corner = (left + GAP_IN / 2, top - height + GAP_IN / 2)
    size = (width - GAP_IN, height - GAP_IN)
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": FRAME, "zorder": -1}
    figure.add_artist(Rectangle(corner, *size, transform=inches, **look))
    look = {"va": "top", "fontsize": 11, "fontweight": "bold"}
    figure.text(left + 0.15, top - 0.12, panel.title, transform=inches, **look)
    before, after, below = margins(panel)
    above = TITLE_IN if panel.title else 0.15
    inside = Bbox.from_extents(
        left + before, top - height + below, left + width - after, top - above
    )
    axes = figure.add_axes(inside.transformed(inches - figure.transFigure).bounds)
    axes.axis("off")
    if panel.kind == "search":
        draw_documents(panel, search.documents(panel), axes)
    elif not (rows := search.rows(panel)):
        axes.text(0.5, 0.5, "aucune donnée dans la période", ha="center", transform=axes.transAxes)
    elif panel.kind == "lnsLegacyMetric":
        draw_number(panel, rows, axes)
    elif panel.kind == "lnsDatatable":
        draw_table(panel, rows, axes)
    elif panel.kind == "lnsXY":
        draw_xy(panel, rows, search, axes)
    else:
        raise LookupError(panel.kind)


def margins(panel: Panel) -> tuple[float, float, float]:
    """Return the margins of a panel's axes: left, right and below, in inches."""
    if panel.kind != "lnsXY":
        return 0.15, 0.15, 0.15
    left = 1.9 if panel.state["preferredSeriesType"] == "bar_horizontal" else 0.95
    return left, 1.75 if panel.state["legend"]["isVisible"] else 0.6, 0.6


def draw_number(panel: Panel, rows: Sequence[Row], axes: Axes) -> None:
    """Draw one big number under its label."""
    (row,), metric = rows, panel.state["accessor"]
    column = panel.layer["columns"][metric]
    axes.text(0.02, 0.78, column["label"], fontsize=11, color=GREY, va="center")
    axes.text(0.02, 0.3, shown(row[metric], column), fontsize=19, fontweight="bold", va="center")


def draw_table(panel: Panel, rows: Sequence[Row], axes: Axes) -> None:
    """Draw a table, one line for each bucket."""
    columns = panel.layer["columns"]
    names = [column["columnId"] for column in panel.state["columns"]]
    labels = [columns[name]["label"] for name in names]
    numeric = [columns[name]["dataType"] == "number" for name in names]
    if sorting := panel.state.get("sorting"):
        is_descending = sorting["direction"] == "desc"
        rows = sorted(rows, key=lambda row: row[sorting["columnId"]], reverse=is_descending)
    texts = [[shown(row[name], columns[name]) for name in names] for row in rows]
    draw_lines(texts, labels, numeric, axes)


def draw_documents(panel: Panel, documents: Sequence[Row], axes: Axes) -> None:
    """Draw the documents of a saved search as a table."""
    labels = json.loads(panel.view["fieldAttrs"])
    forms = {
        field: form["params"] for field, form in json.loads(panel.view["fieldFormatMap"]).items()
    }
    names = [panel.view["timeFieldName"], *panel.shown["attributes"]["columns"]]
    texts = [
        [formatted(document.get(name), forms.get(name, {})) for name in names]
        for document in documents
    ]
    numeric = ["pattern" in forms.get(name, {}) and name != names[0] for name in names]
    draw_lines(texts, [labels[name]["customLabel"] for name in names], numeric, axes)


def draw_lines(
    texts: Sequence[Sequence[str]], labels: Sequence[str], numeric: Sequence[bool], axes: Axes
) -> None:
    """Draw a table as wide as its axes; the widest columns are cut when there is no room."""
    box = axes.get_window_extent()
    width_in, height_in = box.width / axes.figure.dpi, box.height / axes.figure.dpi
    lines = [labels, *texts]
    widths = [max(len(line[column]) for line in lines) + 3 for column in range(len(labels))]
    while sum(widths) > width_in * CHARACTERS_PER_IN:
        widths[widths.index(max(widths))] -= 1
    step = min(LINE_IN, height_in / len(lines)) / height_in
    for place, line in enumerate(lines):
        y, left = 1 - (place + 0.5) * step, 0.0
        weight = "normal" if place else "bold"
        for text, width, is_number in zip(line, widths, numeric, strict=True):
            right = left + width / sum(widths)
            x, side = (right - 0.01, "right") if is_number else (left, "left")
            axes.text(x, y, cut(text, width - 2), va="center", ha=side, fontweight=weight)
            left = right
        axes.axhline(1 - (place + 1) * step, color=FRAME, linewidth=0.8)


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
    colours = colours_of(layer, list(series))
    is_time = columns[x]["operationType"] == "date_histogram"
    is_horizontal = layer["seriesType"] == "bar_horizontal"
    has_names = columns[x]["operationType"] in ("terms", "filters")
    if has_names:
        ((names, values),) = series.values()
        draw_bars = axes.barh if is_horizontal else axes.bar
        bars = draw_bars(list(map(str, names)), values, color=colours[0])
        column = columns[layer["accessors"][0]]
        axes.bar_label(bars, [shown(value, column) for value in values], padding=3)
        if is_horizontal:
            axes.invert_yaxis()
    elif layer["seriesType"] == "line":
        for (name, points), colour in zip(series.items(), colours, strict=True):
            axes.plot(*points, color=colour, label=name, linewidth=1.6)
    else:
        draw_histogram(series, colours, timedelta(seconds=search.step_s) if is_time else None, axes)
    if panel.state.get("yLeftScale") == "log":
        axes.set_yscale("log", nonpositive="mask")
    extent = panel.state.get("yLeftExtent", {})
    if extent.get("mode") == "custom":
        axes.set_ylim(extent["lowerBound"], 1.12 * extent["upperBound"])  # room for the labels
    if is_time:
        axes.set_xlim(search.start, search.end)  # type: ignore[arg-type]  # it takes dates too
        is_long = search.end - search.start > timedelta(days=2)
        axes.xaxis.set_major_formatter(dates.DateFormatter("%d/%m" if is_long else "%H:%M"))
    else:
        axes.set_xlabel(panel.state["yTitle"] if is_horizontal else columns[x]["label"])
    axes.set_ylabel("" if is_horizontal else panel.state["yTitle"])
    if not (is_time or has_names):
        axes.xaxis.set_major_formatter(lambda value, _: shown(value))
    numbers = axes.xaxis if is_horizontal else axes.yaxis
    numbers.set_major_formatter(lambda value, _: shown(value))
    axes.grid(axis="x" if is_horizontal else "y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.state["legend"]["isVisible"]:
        axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def colours_of(layer: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the colours of the series: each by its name, or in the order of the metrics."""
    if "colorMapping" not in layer:
        return [config["color"] for config in layer["yConfig"]]
    mapping = layer["colorMapping"]
    others = mapping["specialAssignments"][0]["color"]["colorCode"]
    found = {
        value: assignment["color"]["colorCode"]
        for assignment in mapping["assignments"]
        for value in assignment["rule"]["values"]
    }
    return [found.get(name, others) for name in names]


def series_of(
    columns: Mapping[str, Any], layer: Mapping[str, Any], rows: Sequence[Row]
) -> dict[str, tuple[list[Any], list[float]]]:
    """Return the places and values of each line, or of the bars of each colour, by its name."""
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


def draw_histogram(
    series: Mapping[str, tuple[list[Any], list[float]]],
    colours: Sequence[str],
    step: timedelta | None,
    axes: Axes,
) -> None:
    """Draw stacked bars; each begins at its place and is as wide as the step to the next place."""
    floor: dict[Any, float] = {}
    for (name, (places, values)), colour in zip(series.items(), colours, strict=True):
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
        parts.append(
            f"<section aria-label='{escape(title)}'>{drawing[drawing.index('<svg') :]}</section>"
        )
    return (
        "<!doctype html><html lang='fr'><meta charset='utf-8'><title>Aperçu sans Kibana</title>"
        "<style>body{font-family:sans-serif;margin:1rem;background:#fff}"
        "svg{width:100%;height:auto}</style><h1>Aperçu sans Kibana</h1>"
        "<p>Les panneaux des tableaux de bord, dessinés par <code>tools/preview.py</code> avec "
        "leurs propres requêtes. Ce n'est pas une capture de Kibana.</p>"
        + "".join(parts)
        + "</html>\n"
    )


@command("preview")
def main(argv: Sequence[str] | None = None) -> int:
    """Draw all dashboards; return the exit code (see the module docstring)."""
    parser = command_parser("tools.preview", __doc__)
    text = "length of the period, which ends now (default: 24)"
    parser.add_argument("--hours", type=number(0.01, 1e6), default=24.0, metavar="N", help=text)
    text = "where the files are written (default: apercu)"
    folder = PROJECT / "apercu"
    parser.add_argument("--output", type=Path, default=folder, metavar="FOLDER", help=text)
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", "Glyph .* missing")  # a rejected message may hold any
    load_env()
    client, index, letters = elasticsearch_client(ROLE), elasticsearch_index(), dead_letter_index()
    end = datetime.now(UTC)
    objects = {(o["type"], o["id"]): o for file in FILES for o in read_objects(file)}
    options.output.mkdir(parents=True, exist_ok=True)
    figures = {}
    with asking_servers(ROLE):
        # The data views name the usual indices; the environment may name others.
        indices = {
            "sensors_data*": with_dated(client, index),
            "sensors_dead_letters*": with_dated(client, letters),
        }
        search = Search(client, indices, end - timedelta(hours=options.hours), end)
        for (kind, name), dashboard in objects.items():
            if kind == "dashboard":
                title = dashboard["attributes"]["title"]
                try:
                    panels = panels_of(dashboard, objects)
                    figure = draw_dashboard(dashboard, panels, search)
                except (LookupError, ValueError) as exc:  # it was edited in Kibana
                    raise CommandError(f"{title}: a panel is not drawn here ({exc})") from exc
                figure.savefig(options.output / f"{name}.png", dpi=DPI)
                figures[title] = figure
    (options.output / "index.html").write_text(page(figures), encoding="utf-8")
    say(str(options.output / "index.html"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
