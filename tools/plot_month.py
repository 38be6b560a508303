"""Draw a month of the simulated city, and one of its days, from the generator's physics.

    python -m tools.plot_month docs/month.png [--seed 42] [--start 2026-06-01]
    python -m tools.plot_month --sensors 7    # a table of the first 7 sensors and their places

Each place has a column, each field a row; the labels are in French, as the report shows them.

Exit codes: 0 done, 1 the file cannot be written, 2 wrong usage, 130 Ctrl-C.
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

from matplotlib import dates
from matplotlib.figure import Figure

import sensor_generator as generator
from kibana.command_line import command
from stack.console import command_parser, say

FIELDS = {
    "temperature": "température (°C)",
    "humidity": "humidité relative (%)",
    "co2_level": "CO₂ (ppm)",
    "light_intensity": "lumière (lux)",
}
PLACES = {"park": "parc", "school": "école", "crossroads": "carrefour", "tunnel": "tunnel"}
PLACES |= {"roof": "toit"}
# Okabe and Ito (2008), "Color Universal Design": colour-blind people can tell them apart too.
COLOURS = ("#009E73", "#0072B2", "#D55E00", "#000000", "#E69F00")
DAYS, STEP_S = 30, 600
LINEAR_LUX = 10  # the light's scale is linear up to here, since it has no logarithm of zero

Series = tuple[list[datetime], dict[str, list[float]]]


def series(number: int, seed: int, start: datetime) -> Series:
    """Return a sensor's times and, for each field, its values, every STEP_S seconds of a month."""
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
        sensor = generator.Sensor(0, number)  # its place does not depend on the seed
        place = sensor.place
        yield (
            f"{sensor.name:<12}{place.name:<12}{sensor.east_km:>+6.1f}{sensor.north_km:>+6.1f}"
            f"{place.warmer_c:>+7.1f}{place.traffic_ppm:>+6.0f}"
            f"{place.open_sky:>6.0%}{place.lamps_lux:>10.0f}"
        )


def draw(found: dict[str, Series], start: datetime, title: str, file: Path) -> None:
    """Draw the month, a column for each place, and in the last column its first Wednesday.

    Five lines of a month would hide each other: each place has its own column, with the lowest and
    the highest value of each day as a band around the mean. A row has one scale; the light's is
    logarithmic above LINEAR_LUX, as the sun gives a thousand times the light of the tunnel's lamps.

    Raises:
        OSError: the file cannot be written.
    """
    day = start + timedelta(days=(2 - start.weekday()) % 7)
    figure = Figure(figsize=(18, 11), layout="constrained")
    axes = figure.subplots(
        len(FIELDS), len(found) + 1, width_ratios=[1] * len(found) + [1.6], sharey="row"
    )
    for row, (field, label) in zip(axes, FIELDS.items(), strict=True):
        row[0].set_ylabel(label)
        if field == "light_intensity":
            row[0].set_yscale("symlog", linthresh=LINEAR_LUX)
        row[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f"))
        for axis, (place, (times, values)), colour in zip(
            row, found.items(), COLOURS, strict=False
        ):
            lows, means, highs = zip(*by_day(values[field]), strict=True)
            days = [start + timedelta(days=number + 0.5) for number in range(DAYS)]
            axis.fill_between(days, lows, highs, color=colour, alpha=0.3, linewidth=0)
            axis.plot(days, means, color=colour, linewidth=1.8)
            axis.xaxis.set_major_locator(dates.DayLocator((1, 10, 20)))
            axis.xaxis.set_major_formatter(dates.DateFormatter("%d/%m"))
            row[-1].plot(times, values[field], color=colour, label=PLACES[place])
        row[-1].set_xlim(day, day + timedelta(days=1))
        row[-1].xaxis.set_major_locator(dates.HourLocator(range(0, 24, 6)))
        row[-1].xaxis.set_major_formatter(dates.DateFormatter("%Hh"))
        for axis in row:
            axis.grid(alpha=0.3)
    for axis, (number, place), colour in zip(axes[0], enumerate(found, 1), COLOURS, strict=False):
        axis.set_title(f"{PLACES[place]} (sensor_{number:03d})", color=colour, fontweight="bold")
    axes[0, -1].set_title(f"mercredi {day:%d/%m} (UTC), les cinq ensemble")
    axes[0, -1].legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=14)
    figure.savefig(file, dpi=80)


def by_day(values: Sequence[float]) -> Iterator[tuple[float, float, float]]:
    """Yield the lowest value, the mean and the highest value of each day."""
    steps = 86_400 // STEP_S
    for begin in range(0, len(values), steps):
        day = values[begin : begin + steps]
        yield min(day), fmean(day), max(day)


def png_file(text: str) -> Path:
    """Return the path of a picture to write."""
    if (file := Path(text)).suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a .png file")
    return file


@command("plot_month")
def main(argv: Sequence[str] | None = None) -> int:
    """Draw one file, or print the table; return the exit code (see the module docstring)."""
    parser = command_parser("tools.plot_month", __doc__)
    parser.add_argument("file", type=png_file, nargs="?", metavar="FILE.png")
    text = "print a table of the first N sensors"
    count = generator.number(1, 100_000, int)
    parser.add_argument("--sensors", type=count, metavar="N", help=text)
    seed = generator.number(-1e18, 1e18, int)
    parser.add_argument("--seed", type=seed, default=42, metavar="N", help="default: 42")
    text = "of the month, default: 2026-06-01"
    time = generator.parse_time
    parser.add_argument("--start", type=time, default="2026-06-01", metavar="TIME", help=text)
    options = parser.parse_args(argv)
    if bool(options.file) == bool(options.sensors):
        parser.error("give FILE.png or --sensors N")
    if options.sensors:
        for line in table_of_sensors(options.sensors):
            say(line)
        return 0
    found = {
        place.name: series(number, options.seed, options.start)
        for number, place in enumerate(generator.PLACES, 1)
    }
    title = (
        f"Un mois simulé à partir du {options.start:%d/%m/%Y}, heures UTC (graine {options.seed})"
        " : moyenne, minimum et maximum de chaque jour"
    )
    draw(found, options.start, title, options.file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
