"""Make charts and tables of the benches' results, so that no figure is typed by hand.

    python -m benches.report        # all charts anew, and the tables in the project's texts

Each results/DATE-NAME.json gets a chart, DATE-NAME.png. In benches/README.md and RAPPORT.md,
the text between <!-- bench NAME --> and <!-- /bench --> is replaced by the table and
the chart of the newest result of that name. The benches call this module after each measurement.
The labels are in French, as the texts are.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # draws into files, without a window
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
TEXTS = ("benches/README.md", "RAPPORT.md")
BLOCK = re.compile(r"(<!-- bench ([a-z]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
# Colours of Okabe and Ito, which colour-blind readers can tell apart; markers are for black print.
ORANGE, BLUE, GREY, DARK, PALE = "#D55E00", "#0072B2", "#999999", "#333333", "#dddddd"
OURS = ("ours", "generator", "as it is")
FAR = 20  # a rate so many times another one needs a logarithmic axis
LABELS = {
    "limit": "la limite (bulks tout prêts, curl)",
    "ours": "kafka_to_elasticsearch.py",
    "confluent": "le même travail avec confluent-kafka",
    "rsyslog": "rsyslog",
    "connect": "Kafka Connect + Camel, sans identifiants",
    "connect_safe": "Kafka Connect + Camel, extensions/connect/camel.json",
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
    "3 in flight": "3 lots en vol",
    "bulks of 2500": "lots de 2 500",
    "bulks of 8000": "lots de 8 000",
    "polls of 1000": "au plus 1 000 messages par lecture",
    "fetches of 50 MB": "jusqu'à 50 Mo par réponse de Kafka",
    "checksums": "sommes de contrôle de Kafka recalculées",
    "client's metrics": "métriques internes de kafka-python",
    "garbage collection": "le ramasse-miettes de Python à son rythme",
    "elasticsearch stopped": "Elasticsearch arrêté",
    "elasticsearch killed": "Elasticsearch tué (kill -9)",
    "consumer joins": "un deuxième consommateur arrive",
    "consumer leaves": "le premier s'en va (SIGTERM)",
    "consumer killed": "consommateur tué, relancé aussitôt",
    "kafka killed": "Kafka tué (kill -9)",
    "script": "kafka_to_elasticsearch.py, un processus",
    "1 executor": "Spark, 1 executor d'un cœur",
    "2 executors": "Spark, 2 executors d'un cœur",
}
SERIES = {  # name -> label in the table, label in the chart
    "backlog": ("en attente", "mesures en attente"),
    "partitions": ("partitions", "partitions"),
    "consumers": ("consommateurs", "consommateurs (6 partitions)"),
    "size": ("longueur", "longueur des messages ; sensor_id de 128 caractères"),
}

Result = Mapping[str, Any]
Values = Sequence[float]  # minimum, median, maximum of the runs


def number(value: float | None, decimals: int = 0) -> str:
    r"""Return a number as French texts write it.

    >>> number(1234567.0), number(0.25, 2), number(None)
    ('1\u202f234\u202f567', '0,25', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace(".", ",")


def median(values: Values) -> float:
    """Return the median of a figure."""
    return values[1]


def ratio(values: Values | None, others: Values | None) -> float | None:
    """Return the ratio of two medians; None when one of the two was not measured."""
    return median(values) / median(others) if values and others else None


# The tables.


def median_and_range(values: Values, decimals: int = 0) -> list[str]:
    """Return the cells "median" and "min – max" of a figure."""
    low, middle, high = (number(value, decimals) for value in values)
    return [f"**{middle}**", f"{low} – {high}"]


def cpu_us(row: Mapping[str, Any], process: str) -> str:
    """Return the cell of a process's processor time for each reading, in µs."""
    return number(1e6 * median(row[f"{process}_cpu_s"]) / row["readings"], 1)


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    marks = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, marks, *lines))


def rate_lines(found: Mapping[str, Any], reference: str, *processes: str) -> list[list[str]]:
    """Return the lines of a table of rates.

    Args:
        found: the figures by contestant, or by variant.
        reference: the one of whose rate the others are a share.
        processes: those whose processor time gets a column.
    """
    rates = {name: row["per_s"] for name, row in found.items()}
    return [
        [
            f"**{LABELS[name]}**" if name in OURS else LABELS[name],
            *median_and_range(rates[name]),
            number(ratio(rates[name], rates.get(reference)), 2),
            *(cpu_us(row, process) for process in processes),
            number(median(row["memory_mb"])),
        ]
        for name, row in found.items()
    ]


def throughput_table(result: Result) -> list[str]:
    """Return the rates, the readings they were measured on, and what is asked of the consumer."""
    found, parameters = result["found"], result["parameters"]
    head = ["", "documents/s", "min – max", "part de la limite", "client µs/doc"]
    head += ["Elasticsearch µs/doc", "Kafka µs/doc", "mémoire Mo"]
    note = (
        f"{number(parameters['readings'])} mesures, 1 partition, passages en alternance : "
        f"{parameters['runs']} ; µs de processeur par document."
    )
    on_fewer = [
        f"{LABELS[name]} : sur {number(row['readings'])} mesures seulement."
        for name, row in found.items()
        if row["readings"] < parameters["readings"]
    ]
    lines = rate_lines(found, "limit", "client", "elasticsearch", "kafka")
    return [markdown_table(head, lines), note, *on_fewer, asked_table(found)]


def short_table(result: Result) -> str:
    """Return the rates of the consumer, of the limit and of the best of each kind of peer."""
    names = ("limit", "ours", "confluent", "rsyslog", "connect", "parallel_bulk", "naive")
    found = {name: row for name, row in result["found"].items() if name in names}
    return markdown_table(
        ["", "documents/s", "min – max", "part de la limite", "mémoire Mo"],
        rate_lines(found, "limit"),
    )


def asked_table(found: Mapping[str, Any]) -> str:
    """Return what is asked of the consumer beside the others of the same run, and what it does."""
    rates = {name: row["per_s"] for name, row in found.items()}
    helpers = [rates[name] for name in ("parallel_bulk", "bulk", "streaming_bulk") if name in rates]
    best = max(helpers, key=median, default=None)
    memory = median(found["ours"]["memory_mb"]) if "ours" in found else None
    others = {
        ("part de la limite", "≥ 0,60"): rates.get("limit"),
        ("× rsyslog", "≥ 1,15"): rates.get("rsyslog"),
        ("× le meilleur d'elasticsearch.helpers", "≥ 2,50"): best,
        (f"× {LABELS['confluent']} : le prix du client", ""): rates.get("confluent"),
    }
    lines = [[*asked, number(ratio(rates.get("ours"), rate), 2)] for asked, rate in others.items()]
    lines.insert(3, ["mémoire, Mo", "< 150", number(memory)])
    return markdown_table(["kafka_to_elasticsearch.py, médianes", "demandé", "mesuré"], lines)


def tuning_table(result: Result) -> list[str]:
    """Return the rates of the consumer's variants, each as a share of the consumer as it is."""
    head = ["", "documents/s", "min – max", "rapport", "client µs/doc", "mémoire Mo"]
    parameters = result["parameters"]
    note = (
        f"{number(parameters['readings'])} mesures, 1 partition, une seule chose changée à chaque "
        f"ligne ; passages en alternance : {parameters['runs']}."
    )
    return [markdown_table(head, rate_lines(result["found"], "as it is", "client")), note]


def latency_table(result: Result) -> list[str]:
    """Return the percentiles with each refresh interval, and the share of the refresh in them."""
    phases = dict(result["found"])
    consumer = phases.pop("consumer")
    lines = [
        [
            f"`refresh_interval` {name}",
            number(row["readings"]),
            number(row["rate_hz"], 1),
            *(number(row[f"{p}_s"], 3) for p in ("p50", "p99", "max")),
        ]
        for name, row in phases.items()
    ]
    head = ["", "mesures", "mesures/s", "p50 s", "p99 s", "max s"]
    (own, slow), (short, fast) = phases.items()
    shares = [
        f"{number(100 * (1 - fast[f'{p}_s'] / slow[f'{p}_s']))} % de {p}" for p in ("p50", "p99")
    ]
    note = (
        f"De l'envoi à la recherche. Part de l'attente du rafraîchissement (de {own} à {short}) : "
        f"{', '.join(shares)}. "
        f"Mémoire du consommateur : {number(consumer['memory_mb'])} Mo au plus."
    )
    return [markdown_table(head, lines), note]


def growth_table(result: Result) -> list[str]:
    """Return the rate at every point of every series."""
    lines = [
        [
            f"{SERIES[series][0]} : {point_label(series, name)}",
            *median_and_range(row["per_s"]),
            number(ratio(row["per_s"], row["limit_per_s"]), 2),
            number(median(row["per_s"]) * row["message_bytes"] / 1e6, 1),
            number(row["message_bytes"]),
            number(row["readings"]),
            str(row["runs"]),
            number(median(row["memory_mb"])),
        ]
        for series, points in result["found"].items()
        for name, row in points.items()
    ]
    head = ["", "documents/s", "min – max", "part de la limite", "Mo/s", "octets/message"]
    return [markdown_table([*head, "mesures", "passages", "mémoire Mo"], lines)]


def generator_table(result: Result) -> list[str]:
    """Return the rates held, the rates of the producers, and those of the ways of batching."""
    paced = []
    for asked, row in result["found"]["paced"].items():
        slowest, fastest = (number(median(row[f"{name}_hz"])) for name in ("slowest", "fastest"))
        low, _, high = (
            f"{100 * (rate_hz / float(asked) - 1):+.3f} %".replace(".", ",").replace("-", "−")
            for rate_hz in row["rate_hz"]
        )
        cells = [*median_and_range(row["rate_hz"], 2), low, high, f"{slowest} – {fastest}"]
        paced.append([f"{number(float(asked))} /s", *cells])
    at_once = []
    for name, row in result["found"]["at_once"].items():
        cells = [*median_and_range(row["per_s"]), *median_and_range(row["seconds"], 1)]
        cells += [number(median(row[f"{process}_cpu_s"]), 1) for process in ("client", "kafka")]
        at_once.append([LABELS[name], *cells])
    fewer = result["found"]["batching"]["kafka-python"]["readings"]
    note = (
        f"{number(result['parameters']['readings'])} mesures d'un coup ; seul sensor_generator.py "
        "les simule, les autres envoient des lignes toutes prêtes. Secondes de processeur. "
        f"Regroupement : {number(fewer)} messages."
    )
    paced_head = ["demandé", "obtenu /s", "min – max", "écart min", "écart max"]
    at_once_head = ["d'un coup", "messages/s", "min – max", "s en tout", "min – max"]
    return [
        markdown_table([*paced_head, "secondes extrêmes /s"], paced),
        markdown_table([*at_once_head, "client s", "Kafka s"], at_once),
        batching_table(result),
        note,
    ]


def batching_table(result: Result) -> str:
    """Return the rates of the ways in which a producer may group its messages."""
    lines = []
    for name, row in result["found"]["batching"].items():
        cells = [*median_and_range(row["per_s"]), cpu_us(row, "client"), cpu_us(row, "kafka")]
        lines.append([LABELS[name], *cells, number(median(row["stored_bytes"]))])
    head = ["regroupement (batching)", "messages/s", "min – max", "client µs/message"]
    return markdown_table([*head, "Kafka µs/message", "octets/message sur disque"], lines)


def outage_table(result: Result) -> list[str]:
    """Return the largest lag of each event, and after how long the group had caught up."""
    lines = [
        [LABELS[name], number(row["peak_lag"]), number(row["caught_up_s"], 1)]
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
    return [markdown_table(head, lines), note]


def spark_table(result: Result) -> list[str]:
    """Return the rates of the script and of Spark, each as a share of the script's."""
    found = result["found"]
    lines = [
        [
            LABELS[name],
            partitions,
            *median_and_range(row["per_s"]),
            number(ratio(row["per_s"], found["script"][partitions]["per_s"]), 2),
            cpu_us(row, "client"),
            cpu_us(row, "elasticsearch"),
            number(median(row["seconds"]), 1),
        ]
        for name, points in found.items()
        for partitions, row in points.items()
    ]
    head = ["", "partitions", "documents/s", "min – max", "× le script", "client µs/doc"]
    note = (
        f"{number(result['parameters']['readings'])} mesures par topic ; passages en alternance : "
        f"{result['parameters']['runs']}. Client : pour Spark, le driver, démarrage compris, et "
        "les executors. Secondes : du lancement de la commande au dernier document."
    )
    return [markdown_table([*head, "Elasticsearch µs/doc", "secondes"], lines), note]


def table(result: Result) -> str:
    """Return a result as Markdown: its tables and notes, what is absent and why, its origin."""
    make_table, _ = REPORTS[result["bench"]]
    absent = [
        f"{LABELS.get(name, name)} : {text} ({reason})"
        for kind, text in (("left_out", "pas mesuré"), ("failed", "résultat refusé"))
        for name, reason in result.get(kind, {}).items()
    ]
    machine = result["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    origin = (
        f"{result['date'][:10]}, révision `{result['commit'] or '?'}`, {machine['cores']} cœurs "
        f"({machine['processor']}) partagés avec les serveurs. {versions}."
    )
    return "\n\n".join([*make_table(result), *absent, origin])


# The charts.


def tick(value: float, _: float) -> str:
    """Return the label of a tick at a whole number, as matplotlib asks for it."""
    return number(value)


def rate_points(found: Mapping[str, Any], unit: str, runs: int) -> None:
    """Draw the rates as points with their ranges, the highest on top.

    Bars would have to begin at zero, which hides differences of a few per cent. Where one rate is
    more than FAR times another one, the axis is logarithmic, so that the small ones can be read.
    """
    rows = sorted(found.items(), key=lambda item: median(item[1]["per_s"]))
    figure, axes = pyplot.subplots(figsize=(11, 1.6 + 0.45 * len(rows)))
    for place, (name, row) in enumerate(rows):
        low, middle, high = row["per_s"]
        colour, marker = (ORANGE, "o") if name in OURS else (BLUE, "s")
        if name == "limit":
            colour, marker = GREY, "D"
        if high > low:  # a single run has no range
            axes.plot([low, high], [place, place], color=colour, lw=2, marker="|", ms=11)
        axes.plot(middle, place, color=colour, marker=marker, ms=7)
        look: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
        axes.annotate(number(middle), (high, place), xytext=(12, 0), **look)
    axes.set_yticks(range(len(rows)), [LABELS[name] for name, _ in rows])
    for label, (name, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if name in OURS else "normal")
    rates = [rate for _, row in rows for rate in row["per_s"]]
    scale = "l'axe ne part pas de zéro"
    if rows and max(rates) > FAR * min(rates):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_locator(NullLocator())
        scale = "échelle logarithmique"
    what = f"médiane, minimum et maximum de {runs} passages" if runs > 1 else "un seul passage"
    figure.supxlabel(f"{unit} : {what} ({scale})", fontsize=11)
    axes.xaxis.set_major_formatter(tick)
    axes.grid(axis="x", color=PALE)
    axes.margins(x=0.16)
    axes.set_ylim(-0.6, len(rows) - 0.4)


def rates_chart(result: Result, title: str) -> None:
    """Draw the rates of the contestants, or of the variants."""
    parameters = result["parameters"]
    rate_points(result["found"], "documents par seconde", parameters["runs"])
    readings, cores = number(parameters["readings"]), result["machine"]["cores"]
    pyplot.suptitle(f"{title} : {readings} mesures, {cores} cœurs partagés avec les serveurs")


def latency_chart(result: Result) -> None:
    """Draw the share of the readings that is found, over the time."""
    _, axes = pyplot.subplots(figsize=(10, 4.5))
    phases = {name: row for name, row in result["found"].items() if name != "consumer"}
    styles = ((ORANGE, "-"), (BLUE, "--"))
    for (name, row), (colour, style) in zip(phases.items(), styles, strict=True):
        label = f"refresh_interval {name} (au plus {number(row['max_s'], 2)} s)"
        axes.plot(row["percentiles_s"], range(1, 100), style, color=colour, lw=2, label=label)
        for percent in (50, 99):
            seconds = row[f"p{percent}_s"]
            axes.plot(seconds, percent, "o", color=colour)
            look: dict[str, Any] = {"textcoords": "offset points", "color": colour}
            text = f"p{percent} : {number(seconds, 2)} s"
            axes.annotate(text, (seconds, percent), xytext=(8, -4), **look)
    axes.set(xlabel="secondes de l'envoi à la recherche", ylabel="% des mesures déjà trouvées")
    axes.set(xlim=(0, 1.15 * max(row["p99_s"] for row in phases.values())), ylim=(0, 104))
    axes.xaxis.set_major_formatter(lambda value, _: number(value, 1))
    rate = number(result["parameters"]["rate"])
    axes.set_title(f"Délai avant qu'une mesure soit trouvée, à {rate} mesures par seconde")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(visible=True, color=PALE)


def point_label(series: str, name: str) -> str:
    """Return the label of a point of a series."""
    if series == "size":
        return "id long" if name == "long ids" else name.replace("x", "× ")
    return number(float(name))


def growth_chart(result: Result) -> None:
    """Draw the rate along each series, all on the same scale, which does not begin at zero."""
    figure, panels = pyplot.subplots(2, 2, figsize=(12, 8), sharey=True)
    for axes, (series, points) in zip(panels.flat, result["found"].items(), strict=True):
        labels = [point_label(series, name).replace(" gzip", "\ngzip") for name in points]
        for place, row in enumerate(points.values()):
            low, middle, high = row["per_s"]
            if row["runs"] > 1:
                axes.plot([place, place], [low, high], color=ORANGE, lw=2, marker="_", ms=10)
            axes.plot(place, middle, "o", color=ORANGE, ms=8)
            text = number(middle) + ("" if row["runs"] > 1 else "\n(un seul\npassage)")
            look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
            axes.annotate(text, (place, middle), xytext=(7, 0), **look)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.4, len(labels) - 0.15)
        axes.set_title(SERIES[series][1])
        axes.yaxis.set_major_formatter(tick)
        axes.grid(axis="y", color=PALE)
    for axes in panels[:, 0]:
        axes.set_ylabel("documents par seconde")
    figure.suptitle(
        "Le débit quand une seule chose grandit : médiane, minimum et maximum des passages\n"
        "(l'échelle, commune, ne part pas de zéro)"
    )


def generator_chart(result: Result) -> None:
    """Draw the rates of the generator and of the other producers."""
    parameters = result["parameters"]
    rate_points(result["found"]["at_once"], "messages par seconde", parameters["runs"])
    pyplot.suptitle(f"Vers Kafka : {number(parameters['readings'])} mesures d'un coup")


def unknown_periods(lags: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Return from when to when the lag is not known: Kafka does not answer.

    >>> unknown_periods([(1, 5), (2, None), (3, None), (4, 7)])
    [(1, 4)]
    """
    known = [at_s for at_s, lag in lags if lag is not None]
    gaps = [at_s for at_s, lag in lags if lag is None]
    periods = [(before, after) for before, after in pairwise(known)]
    return [(begin, end) for begin, end in periods if any(begin < at_s < end for at_s in gaps)]


def outage_chart(result: Result) -> None:
    """Draw the lag over time: its gaps with their reason, each event by name, its largest lag."""
    found = result["found"]
    _, axes = pyplot.subplots(figsize=(12, 5.5))
    times = [at_s for at_s, _ in found["lag"]]
    lags = [float("nan") if lag is None else lag for _, lag in found["lag"]]
    axes.plot(times, lags, color=ORANGE, lw=2)
    top = max(1, *(lag for _, lag in found["lag"] if lag is not None))
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    for begin, end in unknown_periods(found["lag"]):
        axes.axvspan(begin, end, facecolor="#eeeeee", edgecolor=GREY, hatch="//", lw=0)
        text = "retard inconnu :\nKafka ne répond pas"
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "bbox": box}
        axes.text((begin + end) / 2, 0.5 * top, text, **look)
    for place, (name, row) in enumerate(found["events"].items()):
        height = 1.02 + 0.055 * (place % 3)  # neighbours on three lines, so that none overlap
        axes.axvline(row["at_s"], color=GREY, ls="--", lw=1)
        look = {"transform": axes.get_xaxis_transform(), "color": DARK}
        axes.plot([row["at_s"]] * 2, [1, height], lw=1, clip_on=False, **look)
        axes.text(row["at_s"], height, LABELS[name], fontsize=10, bbox=box, **look)
        if row["peak_lag"] > 0.1 * top:
            since = [at_s for at_s, lag in found["lag"] if lag == row["peak_lag"]]
            peak = next((at_s for at_s in since if at_s >= row["at_s"]), row["at_s"])
            look = {"xytext": (6, -2), "textcoords": "offset points", "va": "top", "fontsize": 9}
            text = f"{number(row['peak_lag'])}\nrattrapé après\n{number(row['caught_up_s'], 1)} s"
            axes.annotate(text, (peak, row["peak_lag"]), bbox=box, **look)
    axes.set(xlabel="secondes depuis le début", ylabel="messages en retard")
    axes.set(xlim=(0, 1.04 * max(times)), ylim=(0, 1.08 * top))
    axes.yaxis.set_major_formatter(tick)
    rate = number(result["parameters"]["rate"])
    pyplot.suptitle(f"Le retard (lag) du consommateur pendant des pannes, à {rate} mesures/s")


def spark_chart(result: Result) -> None:
    """Draw the rate by the number of partitions, a line for the script and each size of Spark."""
    _, axes = pyplot.subplots(figsize=(10, 4.5))
    looks = zip((ORANGE, GREY, BLUE), "osD", strict=True)
    for (name, points), (colour, marker) in zip(result["found"].items(), looks, strict=True):
        places = [int(partitions) for partitions in points]
        low, middle, high = zip(*(row["per_s"] for row in points.values()), strict=True)
        axes.vlines(places, low, high, color=colour, lw=2)
        axes.plot(places, middle, color=colour, marker=marker, lw=1, label=LABELS[name])
    axes.set(xlabel="partitions du topic", ylabel="documents par seconde", ylim=(0, None))
    axes.set_xticks(places)
    axes.yaxis.set_major_formatter(tick)
    axes.grid(axis="y", color=PALE)
    axes.legend(frameon=False)
    readings, cores = number(result["parameters"]["readings"]), result["machine"]["cores"]
    axes.set_title(f"Le script et Spark : {readings} mesures, {cores} cœurs pour tous")


# Bench -> its tables and notes, its chart.
REPORTS: dict[str, tuple[Callable[[Result], list[str]], Callable[[Result], None]]] = {
    "throughput": (throughput_table, partial(rates_chart, title="De Kafka à Elasticsearch")),
    "tuning": (tuning_table, partial(rates_chart, title="Une chose changée à la fois")),
    "latency": (latency_table, latency_chart),
    "growth": (growth_table, growth_chart),
    "generator": (generator_table, generator_chart),
    "outage": (outage_table, outage_chart),
    "spark": (spark_table, spark_chart),
}


# Block of RAPPORT.md -> the bench that it is about, what makes its one table.
SHORT_REPORTS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "rates": ("throughput", short_table),
    "batching": ("generator", batching_table),
}


def draw(file: Path) -> None:
    """Draw the chart of a result beside its file."""
    result = json.loads(file.read_text(encoding="utf-8"))
    _, draw_chart = REPORTS[result["bench"]]
    with pyplot.rc_context(
        {
            "font.size": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
        }
    ):
        draw_chart(result)
        pyplot.savefig(file.with_suffix(".png"), dpi=120)
        pyplot.close()


# The blocks in the project's texts.


def renew(text: Path, results: Path = RESULTS) -> None:
    """Replace each bench's block of a text by its newest result; leave those without a result."""

    def block(match: re.Match[str]) -> str:
        bench, make_table = SHORT_REPORTS.get(match[2], (match[2], None))
        file = max(results.glob(f"*-{bench}.json"), default=None)
        if not file:
            return match[0]
        result = json.loads(file.read_text(encoding="utf-8"))
        name = os.path.relpath(file, text.parent)
        if make_table:
            return f"{match[1]}{make_table(result)}\n\n({name})\n{match[3]}"
        picture = f"![{bench}]({Path(name).with_suffix('.png')})"
        return f"{match[1]}{table(result)}\n\n{picture}\n{match[3]}"

    before = text.read_text(encoding="utf-8")
    after = BLOCK.sub(block, before)
    if after != before:
        text.write_text(after, encoding="utf-8")


def renew_texts() -> None:
    """Renew the blocks of all the project's texts."""
    for name in TEXTS:
        renew(PROJECT / name)


def main() -> int:
    """Draw all charts, renew all texts; return the exit code."""
    for file in sorted(RESULTS.glob("*.json")):
        draw(file)
    renew_texts()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
