#!/usr/bin/env python3
"""Draw how the pH of the waters has changed, region by region, from what PostgreSQL holds.

    python recovery.py                    # recovery.svg, in this folder
    python recovery.py --output ph.svg

The numbers are those of postgresql/queries/ph_by_region.sql on the current version of the data set.

Environment (or .env in the pipeline's folder, then in the project's; an option wins over all):
    POSTGRESQL_URL   default postgresql://water@localhost:5433/water

Exit codes: 0 drawn, 1 PostgreSQL unreachable or nothing to draw, 2 wrong usage.
"""

import math
import os
import sys
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.postgresql.database import connect  # noqa: E402
from pipelines.acid_waters.settings import HERE, command_line  # noqa: E402
from pipelines.common import load_env  # noqa: E402
from stack.console import CommandError, command  # noqa: E402

QUERY = HERE / "postgresql/queries/ph_by_region.sql"
SOURCES = "SELECT string_agg(DISTINCT source_file, ', '), current_version() FROM lots_at()"
COLUMNS = 2  # panels side by side
PANEL_W, PANEL_H = 450, 210  # of a panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 44, 30  # around its axes
HEAD = 74  # above the panels
TEXT, GREY, LINE = "#17212b", "#5b6770", "#0b6e99"


def svg(rows: Sequence[tuple[str, int, int, float]], source: str) -> str:
    """Return the picture: a panel for each region, all with the same axes.

    Args:
        rows: region, decade, number of values, mean pH; in order.
        source: shown below the title.
    """
    decades = range(min(row[1] for row in rows), max(row[1] for row in rows) + 1, 10)
    low = math.floor((min(row[3] for row in rows) - 0.2) * 2) / 2  # room for the labels
    high = math.ceil(max(row[3] for row in rows) * 2) / 2
    limits = (low, max(high, low + 0.5))
    regions = [(region, list(of)) for region, of in groupby(rows, lambda row: row[0])]
    width = COLUMNS * PANEL_W
    height = HEAD + math.ceil(len(regions) / COLUMNS) * PANEL_H
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="13" fill="{TEXT}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        label(LEFT, 30, "Le pH des eaux sensibles à l'acidité, par région et décennie", size=19),
        label(LEFT, 52, f"Moyenne du pH de laboratoire et nombre de mesures ; {source}", GREY),
    ]
    for number, (region, of) in enumerate(regions):
        row, column = divmod(number, COLUMNS)
        parts += panel(region, of, decades, limits, column * PANEL_W, HEAD + row * PANEL_H)
    return "\n".join([*parts, "</svg>", ""])


def panel(
    region: str,
    rows: Sequence[tuple[str, int, int, float]],
    decades: range,
    limits: tuple[float, float],
    x0: float,
    y0: float,
) -> list[str]:
    """Return the parts of one region's panel, whose upper left corner is (x0, y0)."""
    low, high = limits
    step = (PANEL_W - LEFT - RIGHT) / len(decades)

    def x(decade: int) -> float:
        return x0 + LEFT + (decades.index(decade) + 0.5) * step

    def y(ph: float) -> float:
        return y0 + PANEL_H - BOTTOM - (ph - low) / (high - low) * (PANEL_H - TOP - BOTTOM)

    parts = [label(x0 + LEFT, y0 + 18, region, bold=True)]
    for half in range(round((high - low) * 2) + 1):
        ph = low + half / 2
        parts.append(
            f'<path d="M{x0 + LEFT} {y(ph):.1f}H{x0 + PANEL_W - RIGHT}" stroke="#dde3e7"/>'
        )
        parts.append(label(x0 + LEFT - 6, y(ph) + 4, french(ph, 1), GREY, anchor="end"))
    parts += [
        label(x(decade), y0 + PANEL_H - 10, str(decade), GREY, anchor="middle")
        for decade in decades
    ]
    points = " ".join(f"{x(decade):.1f},{y(ph):.1f}" for _, decade, _, ph in rows)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    for _, decade, measured, ph in rows:
        parts.append(f'<circle cx="{x(decade):.1f}" cy="{y(ph):.1f}" r="4" fill="{LINE}"/>')
        parts.append(label(x(decade), y(ph) - 10, french(ph, 2), anchor="middle"))
        count = f"n = {measured:,}".replace(",", "\u202f")
        parts.append(label(x(decade), y(ph) + 18, count, GREY, 11, anchor="middle"))
    return parts


def label(
    x: float, y: float, text: str, fill: str = TEXT, size: int = 13, anchor: str = "start",
    bold: bool = False,
) -> str:  # fmt: skip
    """Return a text of the picture."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" '
        f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
    )


def french(number: float, digits: int) -> str:
    """Return a number with a decimal comma.

    >>> french(5.5, 2)
    '5,50'
    """
    return f"{number:.{digits}f}".replace(".", ",")


@command("recovery")
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; return the exit code (see the module docstring)."""
    load_env(HERE)
    parser = command_line(__doc__, os.environ, "--postgresql-url")
    parser.add_argument(
        "--output", type=Path, default=HERE / "recovery.svg", metavar="FILE",
        help="(default: recovery.svg in this folder)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    try:
        with connect(options.postgresql_url) as conn:
            found: list[Any] = conn.execute(QUERY.read_text(encoding="utf-8")).fetchall()
            (files, version) = conn.execute(SOURCES).fetchone()
    except psycopg.Error as exc:
        raise CommandError(f"PostgreSQL: {str(exc).strip().splitlines()[0]}") from exc
    if not found:
        raise CommandError("no lot in the data set yet: spark/spark_consumer.py integrates them")
    rows = [(region, decade, count, float(ph)) for region, decade, count, ph in found]
    options.output.write_text(svg(rows, f"{files}, version {version}"), encoding="utf-8")
    sys.stdout.write(f"{options.output}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
