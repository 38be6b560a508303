#!/usr/bin/env python3
"""Draw a sensor's last week, as Cassandra has it.

    python3 chart.py                                  # sensor 1, into semaine.png
    python3 chart.py --sensor 7 --output sept.svg

    chart: 2016 readings of sensor 1, 2026-01-08 to 2026-01-15, drawn into semaine.png

README's exemple.png is its picture of the readings of scripts/iot_simulator.py --seed 1 --sensors 1
--rate 0.00333333 --start 2026-01-06T00:00:00Z --backfill 9d.

Environment (or .env in this folder or the project's; an option wins over both):
    CASSANDRA_HOSTS      default localhost:9042
    CASSANDRA_KEYSPACE   default iot_keyspace

Exit codes: 0 drawn, 1 Cassandra unreachable, no reading, or the file cannot be written, 2 wrong
usage, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median

from cassandra import DriverException
from cassandra.cluster import Cluster, NoHostAvailable
from cassandra.protocol import ErrorMessage
from matplotlib.dates import DateFormatter, DayLocator
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import load_env, number  # noqa: E402  # after the path
from pipelines.iot_cassandra.settings import (  # noqa: E402
    FOLDER,
    SENSOR_DATA,
    add_shared,
    addresses,
    one_line,
    parser_of,
)
from stack.console import command  # noqa: E402

WEEK = timedelta(days=7)
GAP = 5  # times the usual interval: the line is interrupted there
Reading = tuple[datetime, float, float]  # UTC, degrees Celsius, %


def read_week(hosts: str, keyspace: str, sensor_id: int) -> list[Reading]:
    """Return a sensor's readings of the week before its last one, in order of time.

    Raises:
        NoHostAvailable, DriverException, ErrorMessage: Cassandra does not answer, or refuses.
    """
    table = f"FROM {SENSOR_DATA} WHERE sensor_id = %s"
    with Cluster(addresses(hosts)) as cluster:
        session = cluster.connect(keyspace)
        newest = f"SELECT timestamp {table} ORDER BY timestamp DESC LIMIT 1"
        last = session.execute(newest, (sensor_id,)).one()
        if not last:
            return []
        week = f"SELECT timestamp, temperature, humidity {table} AND timestamp > %s"
        rows = session.execute(week, (sensor_id, last.timestamp - WEEK), timeout=60)
        return [(r.timestamp.replace(tzinfo=UTC), r.temperature, r.humidity) for r in rows]


def with_gaps(readings: Sequence[Reading]) -> list[Reading]:
    """Return readings with one of no number (NaN) in each gap, where a line must not go on."""
    intervals = [(after[0] - before[0]).total_seconds() for before, after in pairwise(readings)]
    limit = timedelta(seconds=GAP * median(intervals)) if intervals else WEEK
    drawn: list[Reading] = []
    for reading in readings:
        if drawn and reading[0] - drawn[-1][0] > limit:
            drawn.append((drawn[-1][0] + limit, float("nan"), float("nan")))
        drawn.append(reading)
    return drawn


class FrenchFormatter(ScalarFormatter):
    """Write the numbers of an axis with a decimal comma."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return a number's label."""
        return super().__call__(x, pos).replace(".", ",")


def draw(readings: Sequence[Reading], sensor_id: int, output: Path) -> None:
    """Draw temperature and humidity over time, in French.

    Raises:
        OSError: the file cannot be written.
        ValueError: its name does not end in a kind of picture, such as .png.
    """
    times, temperatures, humidities = zip(*with_gaps(readings), strict=True)
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    days = f"du {times[0]:%d/%m/%Y} au {times[-1]:%d/%m/%Y}"
    count = f"{len(readings):,} mesures relues dans Cassandra".replace(",", "\N{NO-BREAK SPACE}")
    figure.suptitle(f"Capteur {sensor_id}, {days} : {count} (heures UTC)")
    upper, lower = figure.subplots(2, sharex=True)
    for axes, values, title, colour in (
        (upper, temperatures, "Température (°C)", "#c0392b"),
        (lower, humidities, "Humidité relative (%)", "#1f618d"),
    ):
        axes.plot(times, values, color=colour, linewidth=0.9)
        axes.set_title(title, loc="left", fontsize=10)
        axes.yaxis.set_major_formatter(FrenchFormatter())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    lower.xaxis.set_major_locator(DayLocator(tz=UTC))
    lower.xaxis.set_major_formatter(DateFormatter("%d/%m", tz=UTC))
    # By default, a file without a suffix would get another name.
    figure.savefig(output, format=output.suffix.removeprefix(".") or "png")


@command("chart")
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    parser = add_shared(parser_of(__doc__), os.environ, "--hosts", "--keyspace")
    parser.add_argument(
        "--sensor",
        type=number(-(2**31), 2**31 - 1, int),
        default=1,
        metavar="ID",
        help="(default: 1)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("semaine.png"), metavar="FILE", help="(semaine.png)"
    )
    options = parser.parse_args(argv)
    try:
        readings = read_week(options.hosts, options.keyspace, options.sensor)
        if not readings:
            sys.stderr.write(f"chart: no reading of sensor {options.sensor}\n")
            return 1
        options.output.parent.mkdir(parents=True, exist_ok=True)
        draw(readings, options.sensor, options.output)
    except (NoHostAvailable, DriverException, ErrorMessage) as exc:
        sys.stderr.write(f"chart: Cassandra at {options.hosts}: {one_line(exc)}\n")
        return 1
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"chart: {options.output}: {one_line(exc)}\n")
        return 1
    days = f"{readings[0][0]:%Y-%m-%d} to {readings[-1][0]:%Y-%m-%d}"
    sys.stdout.write(
        f"chart: {len(readings)} readings of sensor {options.sensor}, {days}, "
        f"drawn into {options.output}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
