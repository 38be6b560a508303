#!/usr/bin/env python3
"""Make charts and tables of the benches' results, so that no figure is typed by hand.

    python benches/report.py        # all charts anew, and the tables in the project's texts

Each results/DATE-NAME.json gets a chart, DATE-NAME.png. In benches/README.md, README.md and
RAPPORT.md, what stands between <!-- bench NAME --> and <!-- /bench --> is replaced by the table and
the chart of the newest result of that name. The benches call this; labels are in French, like the
texts.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # a file, no window
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
TEXTS = ("benches/README.md", "README.md", "RAPPORT.md")
BLOCK = re.compile(r"(<!-- bench ([a-z]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
# Okabe and Ito: told apart also by the colour-blind; hatched too, for a print without colours.
ORANGE, BLUE, GREY = "#D55E00", "#0072B2", "#999999"
OURS = dict.fromkeys(("ours", "generator", "as it is"), (ORANGE, ""))
LOOKS = {"limit": (GREY, "//"), **OURS}
OTHER_LOOK = (BLUE, "..")
LABELS = {
    "limit": "la limite (bulks tout prêts, curl)",
    "ours": "kafka_to_elasticsearch.py",
    "confluent": "le même travail avec confluent-kafka",
    "rsyslog": "rsyslog",
    "connect": "Kafka Connect + Camel, sans identifiants",
    "connect_safe": "Kafka Connect + Camel, connect/camel.json",
    "parallel_bulk": "helpers.parallel_bulk",
    "bulk": "helpers.bulk",
    "streaming_bulk": "helpers.streaming_bulk",
    "naive": "un index() par message",
    "generator": "sensor_generator.py",
    "kafka-producer-perf-test": "kafka-producer-perf-test",
    "confluent-kafka": "confluent-kafka",
    "kafka-python": "kafka-python, réglages du générateur",
    "no compression": "sans compression",
    "no waiting": "sans attendre qu'un lot se remplisse",
    "one by one": "un message par requête, sans compression",
    "as it is": "tel quel",
    "1 in flight": "1 lot en vol",
    "2 in flight": "2 lots en vol",
    "4 in flight": "4 lots en vol",
    "bulks of 2500": "lots de 2 500",
    "bulks of 8000": "lots de 8 000",
    "polls of 1000": "au plus 1 000 messages par lecture",
    "fetches of 50 MB": "jusqu'à 50 Mo par réponse de Kafka",
    "checksums": "sommes de contrôle de Kafka recalculées",
    "client's metrics": "métriques internes de kafka-python",
    "garbage collection": "le ramasse-miettes de Python à son rythme",
}
# Of the table, and of the chart.
SERIES = {
    "backlog": ("en attente", "mesures en attente"),
    "partitions": ("partitions", "partitions"),
    "consumers": ("consommateurs", "consommateurs (6 partitions)"),
    "size": ("longueur", "longueur des messages ; sensor_id de 128 caractères"),
}
POINTS = {"long ids": "id long"}

Result = Mapping[str, Any]


def number(value: float | None, decimals: int = 0) -> str:
    r"""Return a number as French texts write it.

    >>> number(1234567.0), number(0.25, 2), number(None)
    ('1\u202f234\u202f567', '0,25', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace(".", ",")


def spread(values: Sequence[float], decimals: int = 0) -> list[str]:
    """Return the cells "median" and "min – max" of a figure."""
    low, middle, high = (number(value, decimals) for value in values)
    return [f"**{middle}**", f"{low} – {high}"]


def median(values: Sequence[float]) -> float:
    """Return the median of what is written down as minimum, median and maximum."""
    return values[1]


def times(row: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> float | None:
    """Return how many times as fast one is as another; None when one of them was not measured."""
    return median(row["per_s"]) / median(other["per_s"]) if row and other else None


def cpu_us(row: Mapping[str, Any], who: str) -> str:
    """Return the cell of the processor time that somebody used for each reading, in µs."""
    return number(1e6 * row[f"{who}_cpu_s"][1] / row["readings"], 1)


def rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first to the right."""
    marks = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, marks, *lines))


def origin(result: Result) -> str:
    """Return the line that says when, what and where."""
    machine, versions = result["machine"], result["versions"]
    names = ", ".join(f"{name} {value}" for name, value in versions.items())
    return (
        f"{result['date'][:10]}, révision `{result['commit'] or '?'}`, {machine['cores']} cœurs "
        f"({machine['processor']}) partagés avec les serveurs. {names}."
    )


def table(result: Result) -> str:
    """Return a result as Markdown."""
    return f"{TABLES[result['bench']](result)}\n\n{origin(result)}"


def without_figure(result: Result) -> list[str]:
    """Return a line for each that was not measured, and why."""
    lines = []
    for kind, text in (("left_out", "pas mesuré"), ("failed", "résultat refusé")):
        for name, why in result.get(kind, {}).items():
            lines.append(f"{LABELS.get(name, name)} : {text} ({why})")
    return lines


def with_notes(table: str, result: Result, *notes: str) -> str:
    """Return a table with sentences under it."""
    return "\n\n".join([table, *(note for note in (*notes, *without_figure(result)) if note)])


def throughput_table(result: Result) -> str:
    """Return the rates, each also as a share of the limit, and what a document costs."""
    found = result["found"]
    lines = []
    for name, row in found.items():
        share = number(times(row, found.get("limit")), 2)
        costs = [cpu_us(row, who) for who in ("client", "elasticsearch", "kafka")]
        label = f"**{LABELS[name]}**" if name == "ours" else LABELS[name]
        memory = number(median(row["memory_mb"]))
        lines.append([label, *spread(row["per_s"]), share, *costs, memory])
    head = ["", "documents/s", "min – max", "part de la limite", "client µs/doc"]
    head += ["Elasticsearch µs/doc", "Kafka µs/doc", "mémoire Mo"]
    parameters = result["parameters"]
    notes = [
        f"{number(parameters['readings'])} mesures, 1 partition, passages en alternance : "
        f"{parameters['runs']} ; µs de processeur par document."
    ]
    fewer = {
        LABELS[n]: r["readings"] for n, r in found.items() if r["readings"] < parameters["readings"]
    }
    notes += [f"{name} : sur {number(count)} mesures seulement." for name, count in fewer.items()]
    return with_notes(rows(head, lines), result, *notes, asked_table(found))


def asked_table(found: Mapping[str, Any]) -> str:
    """Return what the consumer must reach beside the others of the same run, and what it does."""
    ours = found.get("ours")
    helpers = [found[name] for name in ("parallel_bulk", "bulk", "streaming_bulk") if name in found]
    best = max(helpers, key=lambda row: median(row["per_s"]), default=None)
    memory = median(ours["memory_mb"]) if ours else None
    lines = [
        ["part de la limite", "≥ 0,60", number(times(ours, found.get("limit")), 2)],
        ["× rsyslog", "≥ 1,15", number(times(ours, found.get("rsyslog")), 2)],
        ["× le meilleur d'elasticsearch.helpers", "≥ 2,50", number(times(ours, best), 2)],
        ["mémoire, Mo", "< 150", number(memory)],
        [
            f"× {LABELS['confluent']} : le prix du client",
            "",
            number(times(ours, found.get("confluent")), 2),
        ],
    ]
    return rows(["kafka_to_elasticsearch.py, médianes", "demandé", "mesuré"], lines)


def tuning_table(result: Result) -> str:
    """Return the rates of the consumer's variants, each beside what it is."""
    found = result["found"]
    lines = []
    for name, row in found.items():
        label = f"**{LABELS[name]}**" if name == "as it is" else LABELS[name]
        share = number(times(row, found.get("as it is")), 2)
        memory = number(median(row["memory_mb"]))
        lines.append([label, *spread(row["per_s"]), share, cpu_us(row, "client"), memory])
    head = ["", "documents/s", "min – max", "rapport", "client µs/doc", "mémoire Mo"]
    parameters = result["parameters"]
    note = (
        f"{number(parameters['readings'])} mesures, 1 partition, une seule chose changée à chaque "
        f"ligne ; passages en alternance : {parameters['runs']}."
    )
    return with_notes(rows(head, lines), result, note)


def latency_table(result: Result) -> str:
    """Return the percentiles with each refresh interval, and what lies between."""
    phases = {name: row for name, row in result["found"].items() if name != "consumer"}
    lines = []
    for name, row in phases.items():
        times = [number(row[f"{p}_s"], 3) for p in ("p50", "p99", "max")]
        rate = number(row["rate_hz"], 1)
        lines.append([f"`refresh_interval` {name}", number(row["readings"]), rate, *times])
    head = ["", "mesures", "mesures/s", "p50 s", "p99 s", "max s"]
    (own, slow), (short, fast) = phases.items()
    consumer = result["found"]["consumer"]
    note = (
        f"De l'envoi à la recherche. Part de l'attente du rafraîchissement (de {own} à {short}) : "
        + ", ".join(
            f"{number(100 * (1 - fast[f'{p}_s'] / slow[f'{p}_s']))} % de {p}"
            for p in ("p50", "p99")
        )
        + f". Mémoire du consommateur : {number(consumer['memory_mb'])} Mo au plus."
    )
    return with_notes(rows(head, lines), result, note)


def growth_table(result: Result) -> str:
    """Return the rate at every point of every series."""
    lines = []
    for series, points in result["found"].items():
        changed, _ = SERIES[series]
        for name, row in points.items():
            lines.append(
                [
                    f"{changed} : {point_label(series, name)}",
                    *spread(row["per_s"]),
                    number(share_of_limit(row), 2),
                    number(row["per_s"][1] * row["message_bytes"] / 1e6, 1),
                    number(row["message_bytes"]),
                    number(row["readings"]),
                    str(row["runs"]),
                    number(median(row["memory_mb"])),
                ]
            )
    head = ["", "documents/s", "min – max", "part de la limite", "Mo/s", "octets/message"]
    return with_notes(rows([*head, "mesures", "passages", "mémoire Mo"], lines), result)


def share_of_limit(row: Mapping[str, Any]) -> float | None:
    """Return a point's rate as a share of the limit, None where that was not measured."""
    limit = row["limit_per_s"]
    return median(row["per_s"]) / median(limit) if limit else None


def generator_table(result: Result) -> str:
    """Return the rates held, and the fastest."""
    held = []
    for asked, row in result["found"]["paced"].items():
        extremes = f"{number(median(row['slowest_hz']))} – {number(median(row['fastest_hz']))}"
        off = [f"{100 * (row['rate_hz'][i] / float(asked) - 1):+.3f} %" for i in (0, 2)]
        off = [text.replace(".", ",").replace("-", "−") for text in off]
        held.append([f"{number(float(asked))} /s", *spread(row["rate_hz"], 2), *off, extremes])
    at_once = []
    for name, row in result["found"]["at_once"].items():
        costs = [number(median(row[f"{who}_cpu_s"]), 1) for who in ("client", "kafka")]
        at_once.append([LABELS[name], *spread(row["per_s"]), *spread(row["seconds"], 1), *costs])
    batching = []
    for name, row in result["found"]["batching"].items():
        stored = number(median(row["stored_bytes"]))
        costs = [cpu_us(row, who) for who in ("client", "kafka")]
        batching.append([LABELS[name], *spread(row["per_s"]), *costs, stored])
    first = rows(
        ["demandé", "obtenu /s", "min – max", "écart min", "écart max", "secondes extrêmes /s"],
        held,
    )
    second = rows(
        ["d'un coup", "messages/s", "min – max", "s en tout", "min – max", "client s", "Kafka s"],
        at_once,
    )
    head = ["regroupement (batching)", "messages/s", "min – max", "client µs/message"]
    third = rows([*head, "Kafka µs/message", "octets/message sur disque"], batching)
    fewer = result["found"]["batching"]["kafka-python"]["readings"]
    note = (
        f"{number(result['parameters']['readings'])} mesures d'un coup ; seul sensor_generator.py "
        "les simule, les autres envoient des lignes toutes prêtes. Secondes de processeur. "
        f"Regroupement : {number(fewer)} messages."
    )
    return with_notes(f"{first}\n\n{second}\n\n{third}", result, note)


EVENTS = {
    "elasticsearch stopped": "Elasticsearch arrêté",
    "elasticsearch killed": "Elasticsearch tué (kill -9)",
    "consumer joins": "un deuxième consommateur arrive",
    "consumer leaves": "le premier s'en va (SIGTERM)",
    "consumer killed": "consommateur tué, relancé aussitôt",
    "kafka killed": "Kafka tué (kill -9)",
}


def outage_table(result: Result) -> str:
    """Return the largest lag of each event, and after how long it was caught up."""
    lines = [
        [EVENTS[name], number(row["peak_lag"]), number(row["caught_up_s"], 1)]
        for name, row in result["found"]["events"].items()
    ]
    parameters = result["parameters"]
    note = (
        f"{number(parameters['rate'])} mesures par seconde, {parameters['partitions']} "
        f"partitions ; Elasticsearch reste arrêté {number(parameters['elasticsearch_away_s'])} s, "
        "plus son démarrage. À la fin, l'index contient exactement les "
        f"{number(result['found']['readings'])} mesures du topic."
    )
    head = ["événement", "plus grand retard, messages", "rattrapé après, s"]
    return with_notes(rows(head, lines), result, note)


TABLES: dict[str, Callable[[Result], str]] = {
    "throughput": throughput_table,
    "tuning": tuning_table,
    "latency": latency_table,
    "growth": growth_table,
    "generator": generator_table,
    "outage": outage_table,
}


# Charts.


def bars(axes: Axes, found: Mapping[str, Any], figure: str, unit: str) -> None:
    """Draw medians as bars with their ranges, the first on top."""
    for name, row in reversed(list(found.items())):
        low, middle, high = row[figure]
        colour, hatch = LOOKS.get(name, OTHER_LOOK)
        axes.barh(
            LABELS[name],
            middle,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            xerr=[[middle - low], [high - middle]],
            ecolor="#333333",
            capsize=3,
        )
        axes.annotate(f"  {number(middle)}", (high, LABELS[name]), va="center")
    axes.set_xlabel(f"{unit} (médiane, minimum, maximum)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.margins(x=0.14)


def side_by_side(result: Result, title: str) -> None:
    """Draw the rates of contestants, or of variants, side by side."""
    found = result["found"]
    _, axes = pyplot.subplots(figsize=(10, 1.4 + 0.5 * len(found)), layout="constrained")
    bars(axes, found, "per_s", "documents par seconde")
    readings, cores = number(result["parameters"]["readings"]), result["machine"]["cores"]
    pyplot.suptitle(f"{title} : {readings} mesures, {cores} cœurs partagés avec les serveurs")


def latency_chart(result: Result) -> None:
    """Draw which share of the readings is found after how long."""
    _, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    phases = {name: row for name, row in result["found"].items() if name != "consumer"}
    styles = ((ORANGE, "-"), (BLUE, "--"))
    for (name, row), (colour, style) in zip(phases.items(), styles, strict=True):
        label = f"refresh_interval {name} : p99 {number(row['p99_s'], 2)} s"
        axes.plot(row["percentiles_s"], range(1, 100), style, color=colour, lw=2, label=label)
    axes.set(xlabel="secondes de l'envoi à la recherche", ylabel="% des mesures", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))
    axes.set_title(f"Délai à {number(result['parameters']['rate'])} mesures par seconde")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(visible=True, color="#dddddd")


def point_label(series: str, name: str) -> str:
    """Return how a point of a series is written."""
    if series == "size":
        return POINTS.get(name, name.replace("x", "× "))
    return number(float(name))


def growth_chart(result: Result) -> None:
    """Draw the rate along each series, all on the same scale."""
    found = result["found"]
    _, panels = pyplot.subplots(2, 2, figsize=(10, 7), sharey=True, layout="constrained")
    for axes, (series, points) in zip(panels.flat, found.items(), strict=True):
        labels = [point_label(series, name).replace(" gzip", "\ngzip") for name in points]
        turned = 90 if len(points) > 4 else 0  # narrow bars
        low, middle, high = zip(*(row["per_s"] for row in points.values()), strict=True)
        below = [m - value for m, value in zip(middle, low, strict=True)]
        above = [value - m for m, value in zip(middle, high, strict=True)]
        axes.bar(labels, middle, yerr=[below, above], color=ORANGE, ecolor="#333333", capsize=4)
        for place, value in enumerate(middle):
            axes.text(
                place,
                value / 2,
                number(value),
                ha="center",
                va="center",
                color="white",
                weight="bold",
                rotation=turned,
            )
        axes.set_xlabel(SERIES[series][1])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    for axes in panels[:, 0]:
        axes.set_ylabel("documents par seconde")


def generator_chart(result: Result) -> None:
    """Draw the fastest sending beside other producers."""
    found = result["found"]["at_once"]
    _, axes = pyplot.subplots(figsize=(10, 1.4 + 0.6 * len(found)), layout="constrained")
    bars(axes, found, "per_s", "messages par seconde")
    pyplot.suptitle(f"Vers Kafka : {number(result['parameters']['readings'])} mesures d'un coup")


def outage_chart(result: Result) -> None:
    """Draw the lag over time, with a line where each event begins; a gap where nobody knows it."""
    found = result["found"]
    _, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    times = [at_s for at_s, _ in found["lag"]]
    lags = [float("nan") if lag is None else lag for _, lag in found["lag"]]
    axes.plot(times, lags, color=ORANGE, lw=2)
    top = max(lag for _, lag in found["lag"] if lag is not None)
    for name, row in found["events"].items():
        axes.axvline(row["at_s"], color=GREY, ls="--")
        axes.annotate(
            EVENTS[name],
            (row["at_s"], top),
            xytext=(4, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=9,
            color="#333333",
        )
    axes.set(xlabel="secondes", ylabel="messages en retard", ylim=(0, 1.05 * top))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.set_title(f"Le retard, à {number(result['parameters']['rate'])} mesures par seconde")


CHARTS: dict[str, Callable[[Result], None]] = {
    "throughput": partial(side_by_side, title="De Kafka à Elasticsearch"),
    "tuning": partial(side_by_side, title="Une chose changée à la fois"),
    "latency": latency_chart,
    "growth": growth_chart,
    "generator": generator_chart,
    "outage": outage_chart,
}


def draw(file: Path) -> None:
    """Draw the chart of a result beside it."""
    result = json.loads(file.read_text(encoding="utf-8"))
    with pyplot.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        CHARTS[result["bench"]](result)
        pyplot.savefig(file.with_suffix(".png"), dpi=120)
        pyplot.close()


# The tables in the project's texts.


def newest(name: str, results: Path = RESULTS) -> Path | None:
    """Return the newest result of a bench."""
    return max(results.glob(f"*-{name}.json"), default=None)


def renew(text: Path, results: Path = RESULTS) -> None:
    """Replace each bench's block of a text by its newest result; leave those without one."""

    def block(match: re.Match[str]) -> str:
        file = newest(match[2], results)
        if not file:
            return match[0]
        picture = os.path.relpath(file.with_suffix(".png"), text.parent)
        result = json.loads(file.read_text(encoding="utf-8"))
        return f"{match[1]}{table(result)}\n\n![{match[2]}]({picture})\n{match[3]}"

    before = text.read_text(encoding="utf-8")
    after = BLOCK.sub(block, before)
    if after != before:
        text.write_text(after, encoding="utf-8")


def renew_texts() -> None:
    """Renew all the texts that there are."""
    for name in TEXTS:
        if (PROJECT / name).exists():
            renew(PROJECT / name)


def main() -> int:
    """Draw all charts, renew all texts; return the exit code."""
    for file in sorted(RESULTS.glob("*.json")):
        draw(file)
    renew_texts()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
