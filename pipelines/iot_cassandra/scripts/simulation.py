"""The simulated readings: pure functions of a seed and a time, without Kafka."""

import itertools
import json
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any


@dataclass(frozen=True)
class Simulation:
    """What is simulated.

    Attributes:
        sensors: number of sensors, which take turns.
        rate_hz: messages per second, of all sensors together.
        bad: share of spoiled messages, 0 to 1.
        seed: of the random numbers.
        start: time of the first reading, UTC.
        count: number of messages; None for no end.
        is_at_once: whether they are sent as fast as possible, instead of when they are due.
    """

    sensors: int
    rate_hz: float
    bad: float
    seed: int
    start: datetime
    count: int | None
    is_at_once: bool


def air_temperature_c(when: datetime) -> float:
    """Return the air's usual temperature at a time, degrees Celsius.

    Two cosines: the year's, coldest in mid-January, and the day's, warmest at 15:00.

    >>> [round(air_temperature_c(datetime(2026, month, 15, 15))) for month in (1, 7)]
    [3, 27]
    """
    year = (when.timetuple().tm_yday - 15) / 365.25
    day = (when.hour + when.minute / 60 - 15) / 24
    return 10 - 12 * math.cos(math.tau * year) + 5 * math.cos(math.tau * day)


def make_reading(sensor_id: int, when: datetime, rng: random.Random) -> dict[str, Any]:
    """Return what a sensor reads: each stands in its own place; it is drier when it is warmer."""
    place_c = random.Random(sensor_id).uniform(-3, 3)
    temperature_c = air_temperature_c(when) + place_c + rng.gauss(0, 0.5)
    humidity_pct = 75 - 1.5 * (temperature_c - 5) + rng.gauss(0, 2)
    return {
        "sensor_id": sensor_id,
        "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "temperature": round(temperature_c, 2),
        "humidity": round(min(100.0, max(0.0, humidity_pct)), 1),
    }


def spoil(reading: Mapping[str, Any], rng: random.Random) -> bytes:
    """Return a message that is no valid reading any more."""
    text = json.dumps(reading)
    without = {name: value for name, value in reading.items() if name != "humidity"}
    return rng.choice(
        [
            text[: rng.randrange(1, len(text))],
            json.dumps(without),
            json.dumps({**reading, "temperature": str(reading["temperature"])}),
            json.dumps({**reading, "temperature": math.nan}),
            json.dumps({**reading, "sensor_id": 2**31 + reading["sensor_id"]}),
        ]
    ).encode()


def messages(simulation: Simulation) -> Iterator[tuple[float, int, bytes]]:
    """Yield (seconds after the start, sensor's id, message)."""
    rng = random.Random(simulation.seed)
    for number in itertools.islice(itertools.count(), simulation.count):
        due_s = number / simulation.rate_hz
        sensor_id = number % simulation.sensors + 1
        reading = make_reading(sensor_id, simulation.start + timedelta(seconds=due_s), rng)
        is_bad = rng.random() < simulation.bad
        yield due_s, sensor_id, spoil(reading, rng) if is_bad else json.dumps(reading).encode()


def paced(simulation: Simulation, stop: threading.Event) -> Iterator[tuple[int, bytes]]:
    """Yield (sensor's id, message) when each is due, or at once, until told to stop.

    Each is due at an absolute time, so that a late one does not delay the next.
    """
    began = time.monotonic()
    for due_s, sensor_id, value in messages(simulation):
        early_s = began + due_s - time.monotonic()
        if not simulation.is_at_once and early_s > 0.001:
            stop.wait(early_s)
        if stop.is_set():
            return
        yield sensor_id, value
