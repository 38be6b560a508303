#!/usr/bin/env python3
"""Draw what is in the bucket: the euros of each currency, and what the score is worth.

    python plot.py                        # transactions.png
    python plot.py --out picture.svg

The amounts are those of output/. The curves are those that score.py has measured on simulated
frauds: for each threshold, the share of the frauds that are found (recall) and the share of the
suspects that are frauds (precision), for the score and for the amount alone. The texts are French.

Environment (or .env in this folder, or in the project's): as store.py.

Exit codes: 0 drawn, 1 the store does not answer, or nothing is written or no score trained yet,
2 wrong usage or configuration.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from pipelines.common import load_env, say  # noqa: E402
from pipelines.transactions.read import Total, totals_by_pyarrow  # noqa: E402
from pipelines.transactions.settings import described_parser  # noqa: E402
from pipelines.transactions.store import CARD, SettingError, Store, StoreError  # noqa: E402
from stack.console import command  # noqa: E402

BLUE, GREY = "#1f5fa8", "#8a8f98"
NAMES = {"score": ("score", BLUE), "amount alone": ("montant seul", GREY)}


def french(number: float, decimals: int = 0) -> str:
    """Return a number as it is written in French.

    >>> french(12345.6, 1)
    '12 345,6'
    """
    return f"{number:,.{decimals}f}".replace(",", " ").replace(".", ",")


def draw_amounts(axes: Axes, totals: Sequence[Total]) -> None:
    """Draw the euros of each currency, the largest at the top."""
    euros: dict[str, float] = {}
    counts: dict[str, int] = {}
    for total in totals:
        euros[total.currency] = euros.get(total.currency, 0.0) + float(total.euros)
        counts[total.currency] = counts.get(total.currency, 0) + total.transactions
    names = sorted(euros, key=lambda name: euros[name])
    bars = axes.barh(names, [euros[name] / 1000 for name in names], color=BLUE)
    texts = [f" {french(euros[n] / 1000)} k€, {french(counts[n])} transactions" for n in names]
    axes.bar_label(bars, texts)
    axes.set_xlim(0, 1.7 * max(euros.values()) / 1000)
    first, last = min(totals).day, max(totals).day
    axes.set_title(f"Montants par devise, du {first:%d/%m/%Y} au {last:%d/%m/%Y}")
    axes.xaxis.set_major_formatter(lambda value, _: french(value))
    axes.set_xlabel("total converti, en milliers d'euros")


def draw_score(axes: Axes, card: Mapping[str, Any]) -> None:
    """Draw precision against recall, and the thresholds that were chosen."""
    for name, (label, colour) in NAMES.items():
        recalls, precisions = zip(*card["curves"][name], strict=True)
        axes.plot(recalls, precisions, color=colour, label=label)
        _, found, false, missed = card["results"][name].values()
        recall, precision = found / (found + missed), found / (found + false) if found else 0.0
        text = f"seuil choisi : précision {french(precision, 2)}, rappel {french(recall, 2)}"
        axes.plot(recall, precision, "o", color=colour, label=text)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="rappel : part des fraudes trouvées")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: french(value, 1))
    axes.set_ylabel("précision : part de fraudes parmi les suspects")
    axes.set_title("Le score et le montant seul, sur des fraudes simulées")
    axes.legend(frameon=False)


def read_card(store: Store) -> dict[str, Any]:
    """Return what score.py has stored of its score.

    Raises:
        StoreError: it has stored nothing.
        OSError: the store does not answer.
    """
    try:
        with store.filesystem().open_input_file(f"{store.bucket}/{CARD}") as file:
            return dict(json.loads(file.read()))
    except FileNotFoundError as exc:
        raise StoreError("no score is trained yet: run score.py") from exc


@command("plot", {SettingError: 2})
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; return the exit code (see the module docstring)."""
    load_env(HERE)
    parser = described_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("transactions.png"), metavar="FILE",
        help="the picture, .svg or .png (default: transactions.png)")  # fmt: skip
    out: Path = parser.parse_args(argv).out
    if out.suffix not in (".svg", ".png"):
        parser.error(f"--out {out}: it must end in .svg or .png")
    store = Store.from_env(os.environ)
    store.check()
    try:
        totals, _ = totals_by_pyarrow(store)
        card = read_card(store)
    except (OSError, pa.ArrowInvalid) as exc:
        raise StoreError(f"the bucket cannot be read: {' '.join(str(exc).split())[:200]}") from exc
    if not totals:
        raise StoreError("nothing is written yet: run consumer_spark.py")
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    draw_amounts(left, totals)
    draw_score(right, card)
    figure.savefig(out)
    say(f"drawn: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
