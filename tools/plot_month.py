#!/usr/bin/env python3
"""Draw a month of the simulated city, and one of its days: what the generator's physics gives.

    python tools/plot_month.py docs/month.png [--seed 42] [--start 2026-06-01]
    python tools/plot_month.py --sensors 7    # a table of the first 7 sensors and their places

One curve a place, one row a field; the labels are in French, like the report that shows it.

Exit codes: 0 done, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")  # a file, no window
from matplotlib import dates, pyplot

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import sensor_generator as generator  # noqa: E402  # works from any folder

FIELDS = {
    "temperature": "température (°C)",
    "humidity": "humidité relative (%)",
    "co2_level": "CO₂ (ppm)",
    "light_intensity": "lumière (lux)",
}
PLACES = {"park": "parc", "school": "école", "crossroads": "carrefour", "tunnel": "tunnel"}
PLACES |= {"roof": "toit"}
# Okabe and Ito (2008), "Color Universal Design": told apart also by the colour-blind.
COLOURS = ("#009E73", "#0072B2", "#D55E00", "#000000", "#E69F00")
DAYS, STEP_S = 30, 600

Series = tuple[list[datetime], dict[str, list[float]]]


def series(number: int, seed: int, start: datetime) -> Series:
    """Return one sensor's times and, by field, its values, every STEP_S seconds of the month."""
    sensor = generator.Sensor(seed, number)
    start_ms = round(start.timestamp() * 1000)
    times: list[datetime] = []
    values: dict[str, list[float]] = {field: [] for field in FIELDS}
    for step in range(1, DAYS * 86_400 // STEP_S + 1):
        reading = sensor.read(start_ms + 1000 * STEP_S * step)
        times.append(datetime.fromisoformat(reading["timestamp"]))
        for field in FIELDS:
            values[field].append(reading[field])
    return times, values


def table_of_sensors(count: int) -> Iterator[str]:
    """Yield a table of the first sensors and their places, line by line."""
    yield (
        f"{'sensor':<12}{'place':<12}{'km E':>6}{'km N':>6}"
        f"{'°C':>7}{'ppm':>6}{'sky':>6}{'lamps lx':>10}"
    )
    for number in range(1, count + 1):
        sensor = generator.Sensor(0, number)  # it stands there whatever the seed
        place = sensor.place
        yield (
            f"{sensor.name:<12}{place.name:<12}{sensor.east_km:>+6.1f}{sensor.north_km:>+6.1f}"
            f"{place.warmer_c:>+7.1f}{place.traffic_ppm:>+6.0f}"
            f"{place.open_sky:>6.0%}{place.lamps_lux:>10.0f}"
        )


def draw(found: dict[str, Series], start: datetime, title: str, file: Path) -> None:
    """Draw the month on the left, its first Wednesday on the right."""
    day = start + timedelta(days=(2 - start.weekday()) % 7)
    figure, axes = pyplot.subplots(
        4, 2, figsize=(16, 11), layout="constrained", width_ratios=(3, 1), sharey="row"
    )
    for row, (field, label) in zip(axes, FIELDS.items(), strict=True):
        for (place, (times, values)), colour in zip(found.items(), COLOURS, strict=True):
            for axis in row:
                axis.plot(times, values[field], color=colour, linewidth=0.8, label=PLACES[place])
        row[0].set_ylabel(label)
        row[0].set_xlim(start, start + timedelta(days=DAYS))
        row[0].xaxis.set_major_formatter(dates.DateFormatter("%d/%m"))
        row[1].set_xlim(day, day + timedelta(days=1))
        row[1].xaxis.set_major_locator(dates.HourLocator(range(0, 24, 6)))
        row[1].xaxis.set_major_formatter(dates.DateFormatter("%Hh"))
        for axis in row:
            axis.grid(alpha=0.3)
    axes[0, 0].set_title(title)
    axes[0, 1].set_title(f"mercredi {day:%d/%m} (UTC)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PLACES), frameon=False)
    figure.savefig(file, dpi=80)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one file; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE.png")
    parser.add_argument(
        "--sensors",
        type=generator.number(1, 100_000, int),
        metavar="N",
        help="print a table of the first N sensors",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--start", type=generator.parse_time, default="2026-06-01")
    options = parser.parse_args(argv)
    if bool(options.file) == bool(options.sensors):
        parser.error("give FILE.png or --sensors N")
    if options.sensors:
        return generator.print_lines(table_of_sensors(options.sensors))
    found = {
        place.name: series(number, options.seed, options.start)
        for number, place in enumerate(generator.PLACES, 1)
    }
    title = f"Un mois simulé à partir du {options.start:%d/%m/%Y} (graine {options.seed})"
    draw(found, options.start, title, options.file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
