#!/usr/bin/env python3
"""Make a small invented release with the columns and the traps of the real one.

    python make_sample.py                          # into sample/, as it is shipped
    python make_sample.py FOLDER --seed 7 --rows 2000

Writes the three tables, each as Excel and as CSV: the same seed gives the same tables. The sites,
programs and values are made up. The traps are those of the real files: a site is a text such as
`040576`, one site belongs to two programs, `NA` is sodium, method periods overlap, one program has
no methods, LAKE_RET is empty, some dates have a time of day; and in the CSV `;`, CRLF, a byte-order
mark, dates as `11/06/2020 00:00:00`, thousands as `1 528`, decimal commas, descriptions of several
lines.

Exit codes: 0 done, 2 wrong usage.
"""

import argparse
import csv
import math
import random
import sys
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import openpyxl

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.settings import SAMPLE  # noqa: E402  # works from any folder
from pipelines.acid_waters.tables import (  # noqa: E402
    MEASURES,
    METHODS,
    SAMPLES,
    SITES,
    Table,
    parameter_of,
)

Cells = list[Any]
# Site, program, name, state, ecoregion, lake or stream, typical ANC in ueq/l.
PLACES = (
    ("040576", "DEMO_LAKES", "Heron Pond", "New York", "N", "Lake", 12),
    ("040577", "DEMO_LAKES", "Upper Slate Lake", "New York", "N", "Lake", -8),
    ("040578", "DEMO_LAKES", "Otter Lake", "New York", "N", "Lake", 55),
    ("040576", "DEMO_EXTRA", "Heron Pond", "New York", "N", "Lake", 12),
    ("040577", "DEMO_EXTRA", "Upper Slate Lake", "New York", "N", "Lake", -8),
    ("ME-0012", "DEMO_EXTRA", "Bog Brook Pond", "Maine", "A", "Lake", 90),
    ("1C1-004", "DEMO_EXTRA", "Quarry Pond", "Vermont", "N", "Lake", 160),
    ("01360007", "DEMO_STREAMS", "Birch Creek at Mill", "New York", "N", "Stream", 25),
    ("01360009", "DEMO_STREAMS", "East Branch, Headwater", "New York", "N", "Stream", -15),
    ("VX07", "DEMO_STREAMS", "Laurel Run", "Virginia", "B", "Stream", 75),
    ("VX08", "DEMO_STREAMS", "Pine Hollow", "Virginia", "B", "Stream", 190),
    ("LN01", "DEMO_NOMETHOD", "Linn Run", "Pennsylvania", "B", "Stream", 40),
)  # fmt: skip
ECOREGIONS = {
    "N": ("5", "5.3", "5.3.1", "58ad", "Northern Forests", "Atlantic Highlands",
          "Northern Appalachian Highlands", "Central Uplands"),
    "A": ("8", "8.1", "8.1.8", "82c", "Eastern Temperate Forests", "Mixed Wood Plains",
          "Acadian Plains And Hills", "Eastern Coast"),
    "B": ("8", "8", "8.4", "66a", "Eastern Temperate Forests", "Appalachian Forests",
          "Blue Ridge", "Northern Ridges"),
}  # fmt: skip
LAST_DAY = date(2020, 11, 6)
DAYS = 14_900  # back from the last one, to January 1980


def methods(rng: random.Random) -> Iterator[Cells]:
    """Return the methods: two per parameter and program, overlapping in DEMO_LAKES 2010-2014."""
    for program in ("DEMO_LAKES", "DEMO_EXTRA", "DEMO_STREAMS"):
        for measure in MEASURES:
            parameter, _ = parameter_of(measure)
            if parameter == "SECCHI" and program == "DEMO_STREAMS":
                continue
            old, new = (f"DEMO {rng.randrange(100, 400)}.{rng.randrange(1, 9)}" for _ in range(2))
            described = 'Described for the sample.\nSecond line, with "quotes"; and more. '
            yield [program, parameter, 1979, 2009, old, described]
            if program == "DEMO_LAKES":
                short = "Unknown" if parameter == "DOC" else new
                yield [program, parameter, 2010, 2014, short, short]
            yield [program, parameter, 2010, 2017, new, f"{new}, since 2010."]
            yield [program, parameter, 2018, None, f"{new} rev 2", "Unknown"]


def sites(rng: random.Random) -> Iterator[Cells]:
    """Return the sites of PLACES."""
    drawn: dict[str, Cells] = {}  # a site of two programs is at one place
    for number, (site, program, name, state, region, kind, _) in enumerate(PLACES):
        if site not in drawn:
            drawn[site] = [round(rng.uniform(37, 45), 4), round(rng.uniform(-78, -68), 4)]
            drawn[site] += [rng.randrange(1_000_000, 19_999_999), round(rng.uniform(60, 900), 2)]
        latitude, longitude, comid, elevation = drawn[site]
        lake = [11.5, 4.2, None, 24.3, 25.15, 1528.25] if kind == "Lake" else [None] * 6
        centroid = [latitude, longitude] if kind == "Lake" else [None, None]
        watershed = [round(elevation + step, 2) for step in (60, 0, 420.5)]
        updated = datetime(2020, 2, 6, 9, 36, 22) if number % 2 else None  # noqa: DTZ001
        yield [
            site, program, latitude, longitude, *centroid, name, comid, comid, "Invented", state,
            *ECOREGIONS[region], *lake, elevation, *watershed, 13.87, updated,
        ]  # fmt: skip


def samples(rng: random.Random, rows: int) -> Iterator[Cells]:
    """Return samples, the newest first, as in the release; chemistry in rough proportion to ANC."""
    days = sorted(rng.randrange(DAYS) for _ in range(rows))
    for number, back in enumerate(days):
        site, program, _, _, _, kind, typical = PLACES[number % len(PLACES)]
        day = LAST_DAY - timedelta(days=back)
        depth = rng.choice([0, 0.5, 1]) if kind == "Lake" else None
        hour = rng.choice([None, "1130", "09:05", "1415", "07:52"])
        clock = (
            time(rng.randrange(7, 18), rng.choice([0, 15, 30])) if rng.random() < 0.2 else time()
        )
        where = "Stream" if kind == "Stream" else rng.choice(["EPI", "EPI", "OUT"])
        recovery = (20_000 - back) / 20_000  # the waters get less acid with the years
        yield [
            site, program, datetime.combine(day, clock), where,
            "Annual" if number % 97 == 0 else "Regular", kind, depth, hour,
            *chemistry(rng, typical, recovery, kind == "Lake"),
        ]  # fmt: skip


def chemistry(rng: random.Random, typical: float, recovery: float, lake: bool) -> Cells:
    """Return the 22 measures of one sample, some missing, in the order of MEASURES."""
    anc = round(typical * recovery + rng.gauss(0, 12), 1)
    ph = round(5.3 + math.asinh(anc / 20) / 1.6 + rng.gauss(0, 0.1), 2)
    sulfate = round(60 + 70 * (1 - recovery) + rng.gauss(0, 8), 1)
    calcium = round(40 + max(anc, 0) * 0.7 + rng.gauss(0, 6), 1)
    sodium = 1528.0 if rng.random() < 0.01 else round(18 + rng.gauss(0, 4), 1)
    values = {
        "ANC_UEQ_L": anc, "CA_UEQ_L": calcium, "CL_UEQ_L": round(9 + rng.random() * 8, 1),
        "COND_UM_CM": round(12 + calcium / 6, 1), "DOC_MG_L": round(rng.uniform(1, 9), 2),
        "K_UEQ_L": round(rng.uniform(3, 14), 1), "MG_UEQ_L": round(calcium / 3, 1),
        "NA_UEQ_L": sodium, "NH4_UEQ_L": round(rng.uniform(-1, 4), 1),
        "NO3_UEQ_L": round(rng.uniform(0, 25), 1), "PH_LAB": ph,
        "SIO2_MG_L": round(rng.uniform(-0.2, 7), 2), "SO4_UEQ_L": sulfate,
        "WTEMP_DEG_C": round(rng.uniform(-1, 24), 1),
    }  # fmt: skip
    if rng.random() < 0.4:
        values |= {
            "F_UEQ_L": round(rng.uniform(0, 4), 2),
            "PH_EQ": ph,
            "PH_FLD": round(ph + 0.1, 2),
        }
    if lake and rng.random() < 0.3:
        values |= {
            "CHL_A_UG_L": round(rng.uniform(0, 6), 2),
            "SECCHI_M": round(rng.uniform(1, 9), 1),
        }
        values |= {
            "P_TL_UEQ_L": round(rng.uniform(0, 1), 3),
            "N_TD_UEQ_L": float(rng.randrange(300)),
        }
    if rng.random() < 0.05:
        values["PH_STVL"] = ph
    return [values[name] if rng.random() > 0.03 and name in values else None for name in MEASURES]


def as_csv(value: Any) -> str:
    """Return a cell as the release's CSV has it."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%m/%d/%Y %H:%M:%S}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (int, float)) and abs(value) >= 1000:
        return f"{value:,}".replace(",", " ").replace(".", ",")
    return str(value).replace(".", ",") if isinstance(value, float) else str(value)


def write(folder: Path, table: Table, rows: Sequence[Cells]) -> None:
    """Write a table as Excel and as CSV."""
    stem = folder / f"{table.name}_sample"
    years = {"START_YEAR", "END_YEAR"}
    with stem.with_suffix(".csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\r\n")
        writer.writerow(table.columns)
        for row in rows:
            named = zip(table.columns, row, strict=True)
            writer.writerow([str(v or "") if name in years else as_csv(v) for name, v in named])
    book = openpyxl.Workbook()
    book.properties.created = book.properties.modified = datetime(2026, 1, 1)  # noqa: DTZ001
    sheet: Any = book.active
    sheet.title = "Sheet 1"
    for row in [list(table.columns), *rows]:
        sheet.append(row)
    book.save(stem.with_suffix(".xlsx"))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the six files; return the exit code."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--rows", type=int, default=760, help="samples (default: 760)")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(options.seed)
    write(options.folder, METHODS, list(methods(rng)))
    write(options.folder, SITES, list(sites(rng)))
    write(options.folder, SAMPLES, list(samples(rng, options.rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
