#!/usr/bin/env python3
"""Simulate the environmental sensors of a city and send their readings to Kafka.

    python sensor_generator.py                      # live: 5 sensors, each every 1 to 3 seconds
    python sensor_generator.py --backfill 24h       # the last 24 hours, as fast as possible
    python sensor_generator.py --console --count 3  # on stdout, without Kafka
    python sensor_generator.py --speed 60           # an hour of the city in a minute
    python sensor_generator.py --start 2026-06-01 --until 2026-07-01    # a period, at once

A reading, one JSON object:

    {"sensor_id": "sensor_001", "timestamp": "2026-06-01T12:00:00.000Z", "temperature": 21.37,
     "humidity": 48.2, "co2_level": 431, "light_intensity": 61234}

    sensor_id         text     "sensor_001", "sensor_002"...; also the message's key
    timestamp         text     ISO 8601 in UTC with milliseconds
    temperature       float    degrees Celsius
    humidity          float    relative humidity, %
    co2_level         integer  ppm
    light_intensity   integer  lux

The same --seed and --start give the same readings, byte for byte, however fast they are sent.

Faults, all off by default: --fault KIND=RATE, as often as you like; RATE is the chance that one
begins at a reading of a sensor, while none of its kind lasts. All but malformed stay valid.

    spike          one field of one reading far off
    drift          temperature and humidity wander off, for some minutes
    stuck          the same values again and again, for some minutes
    unit           humidity as a share (0.48) instead of % (48), for some minutes
    clock_skew     times up to an hour ahead, for some minutes
    dropout        nothing is sent, for some minutes
    duplicate      sent twice
    late           sent a minute to an hour after its time, if the period lasts so long
    out_of_order   sent after the sensor's next reading
    malformed      not a reading: cut, not JSON, a field missing, unknown, of another type...

--ledger FILE notes every message, as CSV: id (sensor_id@timestamp, empty when malformed), partition
and offset as acknowledged (empty when not), CRC-32 of its bytes, label (its faults, joined by +).
`python tools/verify.py --ledger FILE` compares it with what is in Elasticsearch.

With --metrics-port PORT, http://127.0.0.1:PORT/metrics says to Prometheus how many messages were
sent, acknowledged and failed, and how many had which fault.

Environment (or .env beside this file; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    KAFKA_TOPIC               default smart-city-sensors
    KAFKA_CA_FILE             certificate (PEM) of the authority that vouches for Kafka: use TLS
    GENERATOR_KAFKA_USER, GENERATOR_KAFKA_PASSWORD   who we are, for Kafka (SCRAM-SHA-512, TLS)

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable, a reading not acknowledged or the ledger
not complete, 2 wrong usage or configuration.
"""

import argparse
import csv
import heapq
import itertools
import json
import logging
import math
import os
import random
import re
import signal
import ssl
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Delivered
from dotenv import load_dotenv
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger("sensor_generator")

MS_PER_HOUR = 3_600_000
CITY_STEP_MS = 10_000
LATITUDE_DEG, LONGITUDE_DEG = 48.86, 2.35  # Paris
CITY_RADIUS_KM = 5.0
# Neighbourhoods: how wide one is, where their centres are, for how long each stays what it is.
PATCH_KM, PATCH_GRID_KM, PATCH_MEMORY_H = 2.0, (-4, 0, 4), 6
PROGRESS_S = 5.0
FLUSH_S = 10.0  # without an acknowledgement, at the end: then the rest is given up
MAX_PENDING = 20_000  # messages that are not acknowledged yet
DELIVERY_TIMEOUT_MS = 120_000  # of a message that is not acknowledged: then it has failed
# What a working sensor can read; a faulty one stays within, or it is malformed.
LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (-40, 60),
    "humidity": (0, 100),
    "co2_level": (350, 10_000),
    "light_intensity": (0, 200_000),
}
FRACTIONAL = {"temperature", "humidity"}
FAULTS = (
    "spike", "drift", "stuck", "unit", "clock_skew",
    "dropout", "duplicate", "late", "out_of_order", "malformed",
)  # fmt: skip
EPISODE_S = (60, 600)  # how long a fault lasts, when it does
LAST_MS = round(datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1000)  # Python knows no year 10000
DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# Why Kafka does not let us in, in librdkafka's words -> what to mend.
REMEDIES = {
    "SASL authentication error": "correct GENERATOR_KAFKA_USER and GENERATOR_KAFKA_PASSWORD",
    "certificate verify failed": "KAFKA_CA_FILE must name who signed its certificate",
    "authorization failed": "GENERATOR_KAFKA_USER has not the right to do this",
}


@dataclass(frozen=True)
class Place:
    """What makes a sensor's surroundings differ from the open air above the city.

    Attributes:
        warmer_c: degrees Celsius above the city's air.
        traffic_ppm: CO2 added by the traffic of a working day's peak.
        open_sky: share of the daylight that arrives, 0 to 1.
        lamps_lux: artificial light; it burns from dusk to dawn, or all day under a closed sky.
    """

    name: str
    warmer_c: float
    traffic_ppm: float
    open_sky: float
    lamps_lux: float


PLACES = (
    Place("park", -0.8, 15, 0.6, 5),
    Place("school", 0.3, 45, 0.8, 15),
    Place("crossroads", 0.8, 120, 0.7, 30),
    Place("tunnel", 2.5, 380, 0.0, 120),
    Place("roof", 0.0, 10, 1.0, 0),
)


class RefusedError(Exception):
    """Kafka does not let us in, in one line with what to mend."""


@dataclass(frozen=True)
class Config:
    """One run of the generator, as asked for; defaults are written in `load_config` only."""

    bootstrap_servers: str
    topic: str
    console: bool
    count: int | None
    duration_s: float
    sensors: int
    interval_s: tuple[float, float]
    rate_hz: float | None
    seed: int
    start: datetime
    starts_now: bool  # the start is when Kafka answers
    end: datetime | None
    speed: float  # of the simulated clock; infinite: everything is sent at once
    faults: Mapping[str, float]
    ledger: Path | None
    list_sensors: bool
    metrics_port: int | None
    wait_s: float
    # The client's options; a secret is in them.
    kafka_security: Mapping[str, str] = field(repr=False)


# The city: pure functions of time and seed.


def sun_elevation_deg(when: datetime) -> float:
    """Return the sun's height above the city's horizon, degrees, in [-90, 90].

    Declination after Cooper (1969), equation of time after Spencer (1971), both as given by Duffie
    and Beckman, "Solar Engineering of Thermal Processes"; good to about half a degree.

    >>> [round(sun_elevation_deg(datetime(2026, 6, 21, hour, tzinfo=UTC))) for hour in (0, 6, 12)]
    [-18, 19, 65]
    """
    day = when.timetuple().tm_yday
    declination = math.radians(23.45) * math.sin(math.tau * (284 + day) / 365)
    b = math.tau * (day - 1) / 365
    equation_min = 229.2 * (
        0.000075 + 0.001868 * math.cos(b) - 0.032077 * math.sin(b)
        - 0.014615 * math.cos(2 * b) - 0.04089 * math.sin(2 * b)
    )  # fmt: skip
    clock_h = when.hour + when.minute / 60 + when.second / 3600
    hour_angle = math.radians(15 * (clock_h + LONGITUDE_DEG / 15 + equation_min / 60 - 12))
    latitude = math.radians(LATITUDE_DEG)
    sine = math.sin(latitude) * math.sin(declination) + (
        math.cos(latitude) * math.cos(declination) * math.cos(hour_angle)
    )
    return math.degrees(math.asin(sine))


def daylight_lux(elevation_deg: float, cloud: float) -> float:
    """Return the daylight on open ground, lux, for a cloud cover from 0 (clear) to 1 (overcast).

    By day: sun and sky after "Recommended Practice for the Calculation of Daylight Availability",
    Journal of the IES 13(4), 1984, clear and cloudy skies mixed by cloud cover. In twilight: the
    horizon's value (some hundred lux) fades by a factor of 120 per 6 degrees, down to the few lux
    that end civil twilight.

    >>> [round(daylight_lux(elevation, 0.0), 1) for elevation in (60, 10, 0, -6, -18)]
    [101866.7, 13865.5, 800.0, 6.7, 0.0]
    >>> round(daylight_lux(60, 1.0))
    18487
    """
    sine = math.sin(math.radians(max(elevation_deg, 0.0)))
    sun = 127_500 * math.exp(-0.21 / sine) * sine if sine > 0.01 else 0.0
    clear = sun + 800 + 15_500 * math.sqrt(sine)
    overcast = 300 + 21_000 * sine
    twilight: float = 120 ** (min(elevation_deg, 0.0) / 6)
    return ((1 - cloud) * clear + cloud * overcast) * twilight


def relative_humidity_pct(air_c: float, dew_point_c: float) -> float:
    """Return the relative humidity, %, in (0, 100].

    Magnus formula with the coefficients of Alduchov and Eskridge (1996), for -40 to 50 degrees.

    >>> round(relative_humidity_pct(20.0, 10.0), 1), relative_humidity_pct(5.0, 9.0)
    (52.5, 100.0)
    """

    def magnus(celsius: float) -> float:
        return 17.625 * celsius / (243.04 + celsius)

    return min(100.0, 100 * math.exp(magnus(dew_point_c) - magnus(air_c)))


def local_hour(when: datetime) -> tuple[float, bool]:
    """Return the hour on the city's clocks, in [0, 24), and whether it is a working day there.

    Central European time; summer time from the last Sunday of March to the last Sunday of October,
    at 01:00 UTC (Directive 2000/84/EC). Written out because not every system has time zone data.

    >>> local_hour(datetime(2026, 7, 3, 6, 30, tzinfo=UTC))
    (8.5, True)
    >>> local_hour(datetime(2026, 1, 2, 23, 0, tzinfo=UTC))
    (0.0, False)
    """
    sundays = (datetime(when.year, month, 31, 1, tzinfo=UTC) for month in (3, 10))
    begins, ends = (day - timedelta(days=(day.weekday() + 1) % 7) for day in sundays)
    local = when + timedelta(hours=2 if begins <= when < ends else 1)
    return local.hour + local.minute / 60 + local.second / 3600, local.weekday() < 5


def traffic(hour: float, is_working_day: bool) -> float:
    """Return the traffic as a share of a working day's morning peak.

    Two bell curves, at 8:15 and 18:00; on days off one broad and low one in the afternoon.

    >>> [round(traffic(hour, True), 2) for hour in (3, 8.25, 13, 18)]
    [0.02, 1.08, 0.37, 0.97]
    >>> round(traffic(8.25, False), 2)
    0.1
    """

    def bell(peak_h: float, width_h: float) -> float:
        return math.exp(-(((hour - peak_h) / width_h) ** 2) / 2)

    if not is_working_day:
        return 0.02 + 0.4 * bell(15.5, 4)
    return 0.02 + bell(8.25, 1.2) + 0.9 * bell(18, 1.5) + 0.35 * bell(13, 2.5)


@lru_cache(maxsize=4096)
def innovation(seed: int, name: str, hour: int) -> float:
    """Return one hour's standard normal draw, the same whatever was drawn before it."""
    return random.Random(f"{seed}/{name}/{hour}").gauss(0, 1)


@lru_cache(maxsize=1024)
def hourly_drift(seed: int, name: str, memory_h: int, hour: int) -> float:
    """Return a first-order autoregressive series, mean 0 and deviation 1, at a whole hour.

    x(h) = sqrt(1 - r^2) * sum of r^j * innovation(h - j), with r = exp(-1 / memory_h), cut where
    r^j falls below 1 %: a function of the hour alone, so that any start gives the same weather.
    """
    r = math.exp(-1 / memory_h)
    terms = (r**j * innovation(seed, name, hour - j) for j in range(5 * memory_h))
    return math.sqrt(1 - r * r) * sum(terms)


def between_hours(hourly: Callable[[int], float], time_ms: int) -> float:
    """Return an hourly series at a time between two hours, by straight line."""
    hour, rest = divmod(time_ms, MS_PER_HOUR)
    before, after = hourly(hour), hourly(hour + 1)
    return before + (after - before) * rest / MS_PER_HOUR


def drift(seed: int, name: str, memory_h: int, time_ms: int) -> float:
    """Return the weather's autoregressive series at any time."""
    return between_hours(partial(hourly_drift, seed, name, memory_h), time_ms)


@dataclass(frozen=True)
class City:
    """The state of the whole city at a time; what a sensor reads starts from it.

    Attributes:
        air_c: temperature of the open air, degrees Celsius.
        dew_point_c: dew point, degrees Celsius.
        daylight_lux: daylight on open ground, lux.
        is_dark: whether the street lamps burn.
        traffic: share of a working day's morning peak.
        calm: how much the CO2 gathers for want of wind; 1 in the median.
    """

    air_c: float
    dew_point_c: float
    daylight_lux: float
    is_dark: bool
    traffic: float
    calm: float


@lru_cache(maxsize=1024)
def city_at(seed: int, step: int) -> City:
    """Return the city's state in a step of CITY_STEP_MS; nothing in it moves faster than that.

    Season and day cycle, plus a drifting weather: warm and cold spells, clouds, the air's mass of
    water, wind. The air is warmest at about 15:00 solar time, less so under clouds. The dew point
    follows the day's lowest temperature (Allen et al., FAO Irrigation and Drainage Paper 56, 1998),
    so that humidity falls as the air warms.
    """
    time_ms = step * CITY_STEP_MS
    when = datetime.fromtimestamp(time_ms / 1000, UTC)
    spell = drift(seed, "spell", 72, time_ms)
    cloud = min(1.0, max(0.0, 0.5 + 0.4 * drift(seed, "sky", 10, time_ms)))
    year = (when.timetuple().tm_yday - 20) / 365.25  # coldest about 20 January
    daily_mean_c = 12.5 - 8.0 * math.cos(math.tau * year) + 3.0 * spell
    swing_c = 5.0 - 3.0 * cloud
    solar_h = when.hour + when.minute / 60 + LONGITUDE_DEG / 15
    elevation_deg = sun_elevation_deg(when)
    return City(
        air_c=daily_mean_c + swing_c * math.cos(math.tau * (solar_h - 15) / 24),
        dew_point_c=daily_mean_c - swing_c - 1.0 + 1.5 * drift(seed, "water", 36, time_ms),
        daylight_lux=daylight_lux(elevation_deg, cloud),
        is_dark=elevation_deg < -1,
        traffic=traffic(*local_hour(when)),
        calm=math.exp(-0.4 * drift(seed, "wind", 8, time_ms)),
    )


@cache
def position_km(number: int) -> tuple[float, float]:
    """Return where a sensor stands: km east and north of the city's centre, the same every run."""
    draw = random.Random(f"{sensor_name(number)}/position")
    distance, direction = CITY_RADIUS_KM * math.sqrt(draw.random()), draw.uniform(0, math.tau)
    return distance * math.cos(direction), distance * math.sin(direction)


def hourly_patch(seed: int, number: int, hour: int) -> float:
    """Return what is particular to a sensor's neighbourhood, mean 0 and deviation 1.

    A mean of independent series that belong to the points of a grid, weighted by a Gaussian of
    their distance: the nearer two sensors are, the more they agree (process convolution, Higdon,
    "Space and Space-Time Modeling using Process Convolutions", 2002).
    """
    east, north = position_km(number)
    weights = {
        (x, y): math.exp(-((east - x) ** 2 + (north - y) ** 2) / (2 * PATCH_KM**2))
        for x in PATCH_GRID_KM
        for y in PATCH_GRID_KM
    }
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    terms = (
        weight * hourly_drift(seed, f"patch {x} {y}", PATCH_MEMORY_H, hour)
        for (x, y), weight in weights.items()
    )
    return sum(terms) / norm


def measure(
    place: Place, city: City, noise: random.Random, patch: float = 0.0
) -> dict[str, float | int]:
    """Return what a sensor at a place reads: the four measured fields.

    In a neighbourhood whose patch is above 0 the air is warmer and, for want of wind, its CO2 is
    higher: half a degree and 15 % of what the traffic adds, for a patch of 1.
    """
    air_c = city.air_c + place.warmer_c + 0.5 * patch + noise.gauss(0, 0.15)
    humidity_pct = relative_humidity_pct(air_c, city.dew_point_c) + noise.gauss(0, 0.6)
    gathered = city.calm * (1 + 0.15 * patch)
    co2_ppm = 420 + gathered * (8 + place.traffic_ppm * city.traffic) + noise.gauss(0, 4)
    lamps_are_lit = city.is_dark or not place.open_sky
    light_lux = place.open_sky * city.daylight_lux + place.lamps_lux * lamps_are_lit
    return {
        "temperature": round(air_c, 2),
        "humidity": round(min(100.0, max(0.0, humidity_pct)), 1),
        "co2_level": round(co2_ppm),
        "light_intensity": round(light_lux * math.exp(noise.gauss(0, 0.03))),
    }


# The stream of readings.


def timestamp(time_ms: int) -> str:
    """Return an epoch time in milliseconds as ISO 8601 in UTC.

    >>> timestamp(1_780_315_200_007)
    '2026-06-01T12:00:00.007Z'
    """
    when = datetime.fromtimestamp(time_ms / 1000, UTC)
    return when.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def sensor_name(number: int) -> str:
    """Return the id of the sensor with this number, from 1."""
    return f"sensor_{number:03d}"


def place_of(number: int) -> Place:
    """Return where the sensor with this number stands."""
    return PLACES[(number - 1) % len(PLACES)]


def sensor_readings(number: int, config: Config) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield one sensor's readings until LAST_MS: (time as epoch ms, reading), later and later.

    Everything random comes from the seed and the sensor's own name: neither the other sensors nor
    the speed of sending change a value.
    """
    sensor_id, place = sensor_name(number), place_of(number)
    times = random.Random(f"{config.seed}/{sensor_id}/times")
    noise = random.Random(f"{config.seed}/{sensor_id}/noise")
    hourly = lru_cache(maxsize=2)(partial(hourly_patch, config.seed, number))
    start_ms = round(config.start.timestamp() * 1000)
    elapsed_ms = 0.0
    for turn in itertools.count():
        if config.rate_hz:  # the sensors take turns, evenly
            elapsed_ms = (turn * config.sensors + number - 1) * 1000 / config.rate_hz
        else:
            elapsed_ms += 1000 * times.uniform(*config.interval_s)
        if (time_ms := start_ms + int(elapsed_ms)) >= LAST_MS:
            return
        city = city_at(config.seed, time_ms // CITY_STEP_MS)
        patch = between_hours(hourly, time_ms)
        values = measure(place, city, noise, patch)
        yield time_ms, {"sensor_id": sensor_id, "timestamp": timestamp(time_ms), **values}


# Faults: what goes wrong with real sensors, when it is asked for, and labelled.


class Message(NamedTuple):
    """What is sent.

    Attributes:
        due_ms: when, epoch ms of the simulated clock.
        sensor_id: whose; the key.
        reading_id: sensor_id@timestamp, or empty when it is not a reading.
        label: its faults, joined by "+"; empty when there is none.
    """

    due_ms: float
    sensor_id: str
    reading_id: str
    value: bytes
    label: str


def message_of(time_ms: int, reading: Mapping[str, Any]) -> Message:
    """Return the message of a reading without a fault, due at once."""
    reading_id = f"{reading['sensor_id']}@{reading['timestamp']}"
    return Message(time_ms, reading["sensor_id"], reading_id, json.dumps(reading).encode(), "")


def within_limits(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reading with each measured field moved to its nearest limit, if it is beyond."""
    limited = {n: min(max(reading[n], low), high) for n, (low, high) in LIMITS.items()}
    return {**reading, **limited}


def spiked(reading: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return the reading with one field far off."""
    name = rng.choice(list(LIMITS))
    low, high = LIMITS[name]
    away = 1 if reading[name] < (low + high) / 2 else -1
    off = away * rng.uniform(0.3, 0.5) * (high - low)
    return {**reading, name: round(reading[name] + off, 1 if name in FRACTIONAL else None)}


def drifted(reading: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Return the reading of a sensor that has been wandering off for so long."""
    warmer_c, drier_pct = 0.8 * minutes, 1.5 * minutes
    return {
        **reading,
        "temperature": round(reading["temperature"] + warmer_c, 2),
        "humidity": round(reading["humidity"] - drier_pct, 1),
    }


def malformed(reading: dict[str, Any], rng: random.Random) -> tuple[str, bytes]:
    """Return bytes that are not a reading, and in which way."""
    text = json.dumps(reading)
    name = rng.choice(list(LIMITS))
    without = {field: value for field, value in reading.items() if field != name}
    kinds: dict[str, str | bytes] = {
        "empty": "",
        "cut": text[: rng.randrange(1, len(text))],
        "not_json": ";".join(f"{field}={value}" for field, value in reading.items()),
        "not_utf8": text.encode().replace(b"sensor_", b"sensor\xff"),
        "not_a_number": json.dumps({**reading, name: math.nan}),
        "missing_field": json.dumps(without),
        "unknown_field": json.dumps({**reading, "battery_v": 3.7}),
        "wrong_type": json.dumps({**reading, name: f"{reading[name]} ?"}),
        "out_of_range": json.dumps({**reading, name: LIMITS[name][1] + rng.randint(1, 1000)}),
        "bad_time": json.dumps({**reading, "timestamp": "2026-02-30T12:00:00.000Z"}),
    }
    kind, value = rng.choice(list(kinds.items()))
    return f"malformed:{kind}", value.encode() if isinstance(value, str) else value


class Faults:
    """What goes wrong with one sensor.

    Each kind has random numbers of its own: asking for one more changes nothing about the others,
    but that a dropout takes their readings.
    """

    def __init__(self, sensor_id: str, config: Config) -> None:
        self.rates = config.faults
        self.rng = {k: random.Random(f"{config.seed}/{sensor_id}/{k}") for k in FAULTS}
        self.began_ms: dict[str, int] = {}
        self.ends_ms: dict[str, float] = {}
        self.stuck: dict[str, Any] = {}
        self.ahead_ms = 0
        self.taken_ms: set[int] = set()  # by readings whose clock was ahead ...
        self.oldest_ms: list[int] = []  # ... and the same as a heap
        self.held: list[Message] = []  # sent out of order: after the next

    def strikes(self, kind: str, time_ms: int, lasts: bool = False) -> bool:
        """Return whether a fault begins at this reading, or lasts still."""
        if time_ms < self.ends_ms.get(kind, -math.inf):
            return True
        if not self.rates.get(kind) or self.rng[kind].random() >= self.rates[kind]:
            return False
        self.began_ms[kind] = time_ms
        if lasts:
            self.ends_ms[kind] = time_ms + 1000 * self.rng[kind].uniform(*EPISODE_S)
        return True

    def messages(self, time_ms: int, reading: dict[str, Any]) -> Iterator[Message]:
        """Yield what is sent for a reading: nothing, one message, or several."""
        if self.strikes("dropout", time_ms, lasts=True):
            return
        reading, labels = self.with_wrong_values(time_ms, reading)
        reading["timestamp"] = timestamp(self.clock_ms(time_ms, labels))
        message = message_of(time_ms, reading)
        if self.strikes("malformed", time_ms):
            label, value = malformed(reading, self.rng["malformed"])
            labels = [label]
            message = message._replace(reading_id="", value=value)
        if self.strikes("late", time_ms):
            labels.append("late")
            late_ms = 1000 * self.rng["late"].uniform(60, 3600)
            message = message._replace(due_ms=time_ms + late_ms)
        before: list[Message] = []  # sent after this one, unless it is itself for later
        if "late" not in labels:
            before, self.held = self.held, []
        sent = [message._replace(label="+".join(labels))]
        if self.strikes("duplicate", time_ms):
            again_ms = message.due_ms + 1000 * self.rng["duplicate"].uniform(0, 10)
            label = "+".join([*labels, "duplicate"])
            sent.append(message._replace(due_ms=again_ms, label=label))
        can_wait = len(sent) == 1 and not before and "late" not in labels
        if self.strikes("out_of_order", time_ms) and can_wait:
            label = "+".join([*labels, "out_of_order"])
            self.held = [sent.pop()._replace(label=label)]
        yield from sent
        yield from (held._replace(due_ms=time_ms) for held in before)

    def with_wrong_values(
        self, time_ms: int, reading: dict[str, Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the reading as a sensor with faults gives it, and its labels."""
        labels = []
        if self.strikes("drift", time_ms, lasts=True):
            labels.append("drift")
            reading = drifted(reading, (time_ms - self.began_ms["drift"]) / 60_000)
        if self.strikes("spike", time_ms):
            labels.append("spike")
            reading = spiked(reading, self.rng["spike"])
        if self.strikes("stuck", time_ms, lasts=True):
            if self.began_ms["stuck"] == time_ms:
                self.stuck = reading
            else:
                labels.clear()  # what goes wrong now is not seen
            labels.append("stuck")
            reading = self.stuck
        reading = within_limits(reading)
        if self.strikes("unit", time_ms, lasts=True):
            labels.append("unit")
            reading["humidity"] = round(reading["humidity"] / 100, 3)
        return reading, labels

    def clock_ms(self, time_ms: int, labels: list[str]) -> int:
        """Return the time that the sensor's clock shows, never the same one twice."""
        shown_ms = time_ms
        if self.strikes("clock_skew", time_ms, lasts=True):
            labels.append("clock_skew")
            if self.began_ms["clock_skew"] == time_ms:
                self.ahead_ms = round(1000 * self.rng["clock_skew"].uniform(60, 3600))
            shown_ms += self.ahead_ms
        while self.oldest_ms and self.oldest_ms[0] < time_ms:  # these can be met no more
            self.taken_ms.discard(heapq.heappop(self.oldest_ms))
        while shown_ms in self.taken_ms:
            shown_ms += 1
        if shown_ms != time_ms:
            self.taken_ms.add(shown_ms)
            heapq.heappush(self.oldest_ms, shown_ms)
        return shown_ms


def sensor_messages(number: int, config: Config) -> Iterator[Message]:
    """Return one sensor's messages, without end, in the order in which they are due."""
    readings = sensor_readings(number, config)
    if config.faults:
        return messages_with_faults(Faults(sensor_name(number), config), readings)
    return itertools.starmap(message_of, readings)  # the same, at half the cost


def messages_with_faults(
    faults: Faults, readings: Iterator[tuple[int, dict[str, Any]]]
) -> Iterator[Message]:
    """Yield what a sensor with faults makes of its readings, in the order of its due times."""
    waiting: list[tuple[float, int, Message]] = []  # heap: due, serial
    serial = itertools.count()
    for time_ms, reading in readings:
        while waiting and waiting[0][0] <= time_ms:
            yield heapq.heappop(waiting)[2]
        for message in faults.messages(time_ms, reading):
            heapq.heappush(waiting, (message.due_ms, next(serial), message))


def all_messages(config: Config) -> Iterator[Message]:
    """Yield the messages of all sensors as they are due, up to --count or the period's end."""
    streams = [sensor_messages(number, config) for number in range(1, config.sensors + 1)]
    merged: Iterator[Message] = heapq.merge(*streams, key=lambda message: message.due_ms)
    if config.end:
        end_ms = config.end.timestamp() * 1000
        merged = itertools.takewhile(lambda message: message.due_ms < end_ms, merged)
    return itertools.islice(merged, config.count)


def paced(messages: Iterator[Message], config: Config, stop: threading.Event) -> Iterator[Message]:
    """Yield messages when they are due on a clock that runs --speed times as fast as ours.

    A message is due at an absolute deadline, so a late one does not delay the next and the asked
    rate is kept. Ends when told to stop or after --duration.
    """
    began = time.monotonic()
    start_ms = round(config.start.timestamp() * 1000)
    end = began + config.duration_s
    for message in messages:
        due = began + (message.due_ms - start_ms) / 1000 / config.speed
        late_s = time.monotonic() - due
        if late_s < -0.001:  # the clock of a wait is no finer
            stop.wait(min(-late_s, end - time.monotonic(), threading.TIMEOUT_MAX))
        if stop.is_set() or max(due, time.monotonic()) >= end:
            return
        yield message


# Where the readings go.


def print_lines(lines: Iterable[str]) -> int:
    """Write lines on stdout; return how many. A reader that leaves ends it.

    Raises:
        OSError: they cannot be written.
    """
    printed = 0
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            printed += 1
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return printed


class Ledger:
    """The file that notes what was sent, as CSV (see the module docstring); None: no file.

    Attributes:
        trouble: why it could not be written; there it ends. "": it is complete.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        # Line by line: what was sent before a crash is in it.
        self.file = path.open("w", 1, encoding="ascii", newline="") if path else None
        self.rows = csv.writer(self.file) if self.file else None
        self.trouble = ""
        if self.rows:
            self.rows.writerow(["id", "partition", "offset", "crc32", "label"])

    def note(self, message: Message, delivered: Delivered | None) -> None:
        """Note a message, and where Kafka has stored it, or that it has not."""
        if self.rows:
            where = ("", "")
            if delivered is not None:  # an empty one is false by itself
                where = (delivered.partition(), delivered.offset())
            checksum = f"{zlib.crc32(message.value):08x}"
            try:
                self.rows.writerow([message.reading_id, *where, checksum, message.label])
            except OSError as exc:
                self.trouble, self.rows = exc.strerror or str(exc), None

    def close(self) -> None:
        """Close the file."""
        if self.file:
            with suppress(OSError):  # what it could not write is noted
                self.file.close()


class ProgressBar:
    """How much of a period is sent, on a terminal; elsewhere, and for no period, nothing."""

    def __init__(self, config: Config) -> None:
        self.start_ms = config.start.timestamp() * 1000
        end_ms = config.end.timestamp() * 1000 if config.end else math.inf
        self.is_shown = bool(config.end) and config.speed == math.inf and sys.stderr.isatty()
        self.length_ms = end_ms - self.start_ms
        self.last = -math.inf

    def show(self, due_ms: float, sent: int) -> None:
        """Draw the bar anew, a few times a second."""
        if self.is_shown and time.monotonic() - self.last > 0.2:
            self.last = time.monotonic()
            share = min(1.0, (due_ms - self.start_ms) / self.length_ms)
            bar = "#" * round(40 * share)
            with suppress(OSError):  # the terminal was closed
                sys.stderr.write(f"\r[{bar:<40}] {share:4.0%}  {sent} sent ")
                sys.stderr.flush()

    def clear(self) -> None:
        """Leave the line to others."""
        if self.is_shown:
            with suppress(OSError):
                sys.stderr.write("\r" + " " * 70 + "\r")


def connect(config: Config, stop: threading.Event) -> Producer | None:
    """Return a producer whose topic is known, or None when told to stop.

    Raises:
        RefusedError: Kafka does not let us in.
        KafkaException: no broker answered within --wait seconds, or the topic does not exist there.
    """
    deadline = time.monotonic() + config.wait_s
    library = logging.getLogger("kafka")
    library.setLevel(logging.CRITICAL + 1)  # here the waiting is said below
    errors: deque[KafkaError] = deque(maxlen=10)  # why it cannot be reached
    producer = Producer(
        {
            "bootstrap.servers": config.bootstrap_servers,
            "acks": "all",  # acknowledged by every replica in sync
            "enable.idempotence": True,  # a send that is retried is stored once
            "linger.ms": 20,  # a batch waits this long to fill ...
            "batch.size": 128 * 1024,  # ... up to this many bytes: fewer, fuller requests
            "compression.type": "lz4",  # gzip would cost who reads it more: benches/growth.py
            "partitioner": "murmur2_random",  # a sensor's partition is the one of Kafka's own tools
            "queue.buffering.max.messages": MAX_PENDING,
            "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
            "reconnect.backoff.max.ms": 5000,
            "error_cb": errors.append,
            **config.kafka_security,
        },
        logger=library,
    )
    while not stop.is_set():
        errors.clear()
        try:
            find_topic(producer, config.topic)
            producer.poll(0)  # what the library had to say until now is no news
            library.setLevel(logging.ERROR)
            return producer
        except KafkaException as exc:
            with suppress(KafkaException):
                producer.poll(0)  # brings the errors
            reasons = [*errors, exc.args[0]]
            refuse(reasons, config)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise KafkaException(reasons[0]) from exc
            log.warning(
                "waiting for Kafka at %s (%s), %.0f s left",
                config.bootstrap_servers, reasons[0].str(), left_s,
            )  # fmt: skip
            stop.wait(min(2.0, left_s))
    return None


def find_topic(client: Producer, topic: str) -> None:
    """Ask for a topic, which makes it where the broker allows that.

    Raises:
        KafkaException: no answer, no such topic, or no right to it.
    """
    deadline = time.monotonic() + 1
    while error := client.list_topics(topic, timeout=2).topics[topic].error:
        if error.code() == KafkaError.LEADER_NOT_AVAILABLE:  # so it is just made
            return
        if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART or time.monotonic() > deadline:
            raise KafkaException(error)
        time.sleep(0.1)  # perhaps it is being made


def refuse(reasons: Sequence[KafkaError], config: Config) -> None:
    """Look whether waiting can help, given why Kafka cannot be reached.

    Raises:
        RefusedError: it cannot; what to mend, in one line.
    """
    where, told = f"Kafka at {config.bootstrap_servers}", " ".join(e.str() for e in reasons)
    for sign, remedy in REMEDIES.items():
        if sign in told:
            raise RefusedError(f"{where}: {sign}: {remedy}")
    if not config.kafka_security and speaks_tls(config.bootstrap_servers):
        remedy = "set KAFKA_CA_FILE, GENERATOR_KAFKA_USER and GENERATOR_KAFKA_PASSWORD"
        raise RefusedError(f"{where} speaks TLS: {remedy}")


def speaks_tls(brokers: str) -> bool:
    """Return whether the first of some servers, HOST:PORT, shows a certificate."""
    host, _, port = brokers.split(",")[0].rpartition(":")
    with suppress(OSError, ValueError):  # no such server, or it cannot even be a name
        return bool(ssl.get_server_certificate((host, int(port)), timeout=5))
    return False


class Sender:
    """Sends messages to the topic, keyed by sensor, and counts what becomes of them.

    Attributes:
        failed: refused, or not acknowledged in time.
        reasons: why so many of them have failed.
        faults: kind of fault -> messages sent that had it.
    """

    def __init__(
        self, producer: Producer, config: Config, ledger: Ledger, stop: threading.Event
    ) -> None:
        self.producer = producer
        self.topic = config.topic
        self.ledger = ledger
        self.stop = stop
        self.bar = ProgressBar(config)
        self.sent = self.acknowledged = self.failed = self.failed_before = 0
        self.reasons: Counter[str] = Counter()
        self.faults = Counter(dict.fromkeys(FAULTS, 0))
        self.given_up = ""  # why what is pending now will not be acknowledged
        self.began = self.last_progress = time.monotonic()
        self.end = self.began + config.duration_s

    def __str__(self) -> str:
        seconds = time.monotonic() - self.began
        return (
            f"sent={self.sent} acknowledged={self.acknowledged} failed={self.failed} "
            f"seconds={seconds:.1f} rate_hz={self.sent / seconds:.1f}"
        )

    def send_all(self, messages: Iterator[Message]) -> None:
        """Send messages, and wait until the outcome of each is known."""
        for message in messages:
            self.send(message)
            self.bar.show(message.due_ms, self.sent)
            self.report()
        self.bar.clear()
        self.await_outcomes()
        if len(self.producer):
            self.given_up = self.given_up or "Kafka does not answer"
            self.producer.purge()  # now each has failed
            self.await_outcomes()

    def await_outcomes(self) -> None:
        """Wait until nothing is pending, or nothing was settled for FLUSH_S seconds."""
        pending, until = len(self.producer), time.monotonic() + FLUSH_S
        while pending and time.monotonic() < until:
            self.poll(0.1)
            if (left := len(self.producer)) < pending:
                pending, until = left, time.monotonic() + FLUSH_S

    def poll(self, wait_s: float) -> None:
        """Let the library call settle; after an error that it cannot go on from, end the run."""
        try:
            self.producer.poll(wait_s)
        except KafkaException as exc:
            self.given_up = exc.args[0].str()
            self.stop.set()

    def send(self, message: Message) -> None:
        """Hand a message to the producer as soon as it takes one, unless the run ends before."""
        settle = partial(self.settle, message)
        while True:
            try:
                self.producer.produce(
                    self.topic, message.value, message.sensor_id, on_delivery=settle
                )
                break
            except BufferError:  # MAX_PENDING are on their way: back-pressure
                if self.stop.is_set() or time.monotonic() >= self.end:
                    return  # it is not sent, like those that would have followed
                self.poll(0.1)
                self.report()
            except KafkaException as exc:  # too large, for example
                settle(exc.args[0], None)
                break
        self.sent += 1
        if message.label:
            self.faults.update(label.partition(":")[0] for label in message.label.split("+"))
        self.poll(0)

    def settle(
        self, message: Message, error: KafkaError | None, delivered: Delivered | None
    ) -> None:
        """Count and note what became of a message."""
        if error:
            self.failed += 1
            self.reasons[self.given_up or error.str()] += 1
        else:
            self.acknowledged += 1
        self.ledger.note(message, None if error else delivered)
        if self.ledger.trouble:
            self.stop.set()

    def report(self) -> None:
        """Log the counts every few seconds, and why messages have failed meanwhile."""
        if self.bar.is_shown or time.monotonic() - self.last_progress < PROGRESS_S:
            return
        self.last_progress = time.monotonic()
        log.info("progress %s", self)
        if self.failed > self.failed_before:
            log.warning("%s", self.failures())
            self.failed_before = self.failed

    def failures(self) -> str:
        """Return how many messages have failed, and why, in one line."""
        reasons = "; ".join(f"{count} x {reason}" for reason, count in self.reasons.items())
        return f"not acknowledged: {self.failed} of {self.sent} messages ({reasons})"


class Metrics(Collector):
    """A sender's counts in Prometheus's terms, read when they are asked for."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its present value."""
        name = "smart_city_generator"
        messages = CounterMetricFamily(f"{name}_messages", "by outcome", labels=["outcome"])
        for outcome in ("sent", "acknowledged", "failed"):
            messages.add_metric([outcome], getattr(self.sender, outcome))
        faults = CounterMetricFamily(f"{name}_faults", "messages sent, by fault", labels=["kind"])
        for kind, count in self.sender.faults.items():
            faults.add_metric([kind], count)
        yield from (messages, faults)


def serve_metrics(sender: Sender, port: int) -> None:
    """Answer /metrics on a loopback port, in a thread that ends with the process.

    Raises:
        OSError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(Metrics(sender))
    start_http_server(port, addr="127.0.0.1", registry=registry)


# The command.


def table_of_sensors(config: Config) -> Iterator[str]:
    """Yield a table of the sensors, line by line."""
    yield (
        f"{'sensor':<12}{'place':<12}{'km E':>6}{'km N':>6}"
        f"{'°C':>7}{'ppm':>6}{'sky':>6}{'lamps lx':>10}"
    )
    for number in range(1, config.sensors + 1):
        place = place_of(number)
        east, north = position_km(number)
        yield (
            f"{sensor_name(number):<12}{place.name:<12}{east:>+6.1f}{north:>+6.1f}"
            f"{place.warmer_c:>+7.1f}{place.traffic_ppm:>+6.0f}{place.open_sky:>6.0%}{place.lamps_lux:>10.0f}"
        )


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time; one without an offset is UTC.

    >>> parse_time("2026-06-01T12:00:00+02:00").isoformat(), parse_time("2026-06-01").isoformat()
    ('2026-06-01T12:00:00+02:00', '2026-06-01T00:00:00+00:00')
    """
    when = datetime.fromisoformat(text)
    if not 1 < when.year < 9999:
        raise argparse.ArgumentTypeError(f"{text}: the year is not between 2 and 9998")
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def parse_duration(text: str) -> timedelta:
    """Return a duration written as 90s, 15m, 24h or 30d.

    >>> parse_duration("24h"), parse_duration("90s")
    (datetime.timedelta(days=1), datetime.timedelta(seconds=90))
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = float(match[1]) * DURATION_UNITS_S[match[2]] if match else 0
    if not 0.001 <= seconds <= LAST_MS / 1000:
        raise ValueError(text)
    return timedelta(seconds=seconds)


def topic_name(text: str) -> str:
    """Return a topic's name if Kafka allows it."""
    if not re.fullmatch(r"(?!\.\.?$)[A-Za-z0-9._-]{1,249}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 249 letters, digits or . _ -")
    return text


def servers(text: str) -> str:
    """Return a list of brokers if each is HOST:PORT."""
    if not re.fullmatch(r"([^:,\s]+:\d{1,5})(,[^:,\s]+:\d{1,5})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT[,HOST:PORT...]")
    return text


def at_least(minimum: float, kind: type[int] | type[float]) -> Any:
    """Return an argparse type for a number from a minimum to a million million."""

    def parse(text: str) -> float:
        number = kind(text)
        if not minimum <= number <= 1e12:
            raise argparse.ArgumentTypeError(f"{text} is not at least {minimum:g}, at most 1e12")
        return number

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def fault_rate(text: str) -> tuple[str, float]:
    """Return a kind of fault and its rate, written KIND=RATE."""
    kind, _, rate = text.partition("=")
    if kind not in FAULTS:
        raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(FAULTS)}")
    if not 0 <= (number := float(rate)) <= 1:
        raise argparse.ArgumentTypeError(f"{rate} is not between 0 and 1")
    return kind, number


def port_number(text: str) -> int:
    """Return a TCP port."""
    if not 1 <= (number := int(text)) <= 65_535:
        raise ValueError(text)
    return number


def login(environ: Mapping[str, str], role: str, server: str) -> tuple[str, str, str]:
    """Return user, password and file of certificates for a server, "" where there is none.

    Raises:
        ValueError: only one of the first two is set, or there is no certificate in the file.
    """
    start, file = f"{role}_{server}_", environ.get(f"{server}_CA_FILE") or ""
    user, password = (environ.get(start + name) or "" for name in ("USER", "PASSWORD"))
    if bool(user) != bool(password):
        raise ValueError(f"{start}USER and {start}PASSWORD: set both, or neither")
    try:
        ssl.create_default_context(cafile=file or None)
    except OSError as exc:
        raise ValueError(f"{server}_CA_FILE: {file} has no certificates ({exc})") from exc
    return user, password, file


def kafka_security(environ: Mapping[str, str]) -> dict[str, str]:
    """Return librdkafka's options for TLS and a password, as far as they are wanted."""
    user, password, file = login(environ, "GENERATOR", "KAFKA")
    options = {"security.protocol": "SSL", "ssl.ca.location": file} if file else {}
    if user:
        options |= {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512"}
        options |= {"sasl.username": user, "sasl.password": password}
    return options


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime) -> Config:
    """Return the configuration: flag > environment > default. A bad value exits with code 2."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    positive = at_least(1, int)
    seconds = at_least(0, float)
    add("--console", action="store_true", help="print the readings instead of sending them")
    add("--count", type=positive, metavar="N", help="stop after N readings")
    add("--duration", type=seconds, default=math.inf, metavar="SECONDS",
        help="stop after that long")  # fmt: skip
    add("--sensors", type=positive, default=5, metavar="N", help="(default: 5)")
    add("--interval", type=at_least(0.001, float), nargs=2, metavar=("MIN", "MAX"),
        help="seconds between two readings of a sensor (default: 1 3)")  # fmt: skip
    add("--rate", type=at_least(0.001, float), metavar="PER_SECOND",
        help="readings per second, all sensors together, instead of --interval")  # fmt: skip
    add("--seed", type=int, help="for the same readings again (default: a new one, shown)")
    add("--start", type=parse_time, metavar="TIME",
        help="time of the simulated clock at the start, ISO 8601 (default: now)")  # fmt: skip
    add("--backfill", type=parse_duration, metavar="DURATION",
        help="send at once a whole period, such as 90s, 15m, 24h or 30d: the one that ends now, or "
        "the one that begins at --start")  # fmt: skip
    add("--until", type=parse_time, metavar="TIME",
        help="send the period from --start to then, at once unless --speed is given")  # fmt: skip
    add("--speed", type=at_least(0.001, float), metavar="N",
        help="let the simulated clock run N times as fast (default: 1)")  # fmt: skip
    add("--fault", type=fault_rate, action="append", default=[], metavar="KIND=RATE",
        help="begin a fault with this chance at a reading, 0 to 1 (see below)")  # fmt: skip
    add("--ledger", type=Path, metavar="FILE", help="note what was sent (see below)")
    add("--list-sensors", action="store_true", help="show the sensors and their places, and end")
    add("--metrics-port", type=port_number, metavar="PORT",
        help="serve /metrics on this port of 127.0.0.1 (default: none)")  # fmt: skip
    add("--wait", type=seconds, default=60.0, metavar="SECONDS",
        help="how long to wait for Kafka at the start (default: 60)")  # fmt: skip
    for flag, name, default, kind in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", servers),
        ("--topic", "KAFKA_TOPIC", "smart-city-sensors", topic_name),
    ):
        add(flag, default=environ.get(name) or default, type=kind, metavar=name.split("_")[-1],
            help=f"environment: {name} (default: {default})")  # fmt: skip
    options = parser.parse_args(argv)

    interval_s = tuple(options.interval or (1.0, 3.0))
    if interval_s[0] > interval_s[1]:
        parser.error(f"--interval: MIN {interval_s[0]:g} is above MAX {interval_s[1]:g}")
    if options.interval and options.rate:
        parser.error("--interval and --rate exclude each other")
    needed = math.ceil((options.rate or 0) / 1000)
    if options.sensors < needed:
        parser.error(
            f"--rate {options.rate:g} needs --sensors {needed} or more: times are in milliseconds, "
            "and no sensor gives two readings in the same one"
        )
    if options.backfill and options.until:
        parser.error("--backfill and --until exclude each other")
    if options.until and not (options.start and options.start < options.until):
        parser.error("--until needs a --start before it")
    if options.console and (options.ledger or options.metrics_port):
        parser.error("--ledger and --metrics-port tell of what is sent: not with --console")
    try:
        security = kafka_security(environ)
        start = options.start or (now - options.backfill if options.backfill else now)
        end = start + options.backfill if options.backfill else options.until
    except ValueError as exc:
        parser.error(str(exc))
    except OverflowError:
        parser.error("--backfill: longer than the calendar")
    return Config(
        bootstrap_servers=options.bootstrap_servers,
        topic=options.topic,
        console=options.console,
        count=options.count,
        duration_s=options.duration,
        sensors=options.sensors,
        interval_s=interval_s,
        rate_hz=options.rate,
        seed=random.SystemRandom().randrange(2**32) if options.seed is None else options.seed,
        start=start,
        starts_now=not (options.start or options.backfill),
        end=end,
        speed=options.speed or (math.inf if end else 1.0),
        faults=dict(options.fault),
        ledger=options.ledger,
        list_sensors=options.list_sensors,
        metrics_port=options.metrics_port,
        wait_s=options.wait,
        kafka_security=security,
    )


class Throttle(logging.Filter):
    """Lets a library's errors through, one every few seconds: in an outage they repeat."""

    last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is ours, or an error and the first for a while."""
        if record.name == log.name:
            return True
        if record.levelno < logging.ERROR or time.monotonic() - self.last < PROGRESS_S:
            return False
        self.last = time.monotonic()
        record.exc_info = None  # one line each, without the trace
        return True


def configure_logging() -> None:
    """Log to stderr, in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.root.handlers[0].addFilter(Throttle())


def main(argv: Sequence[str] | None = None) -> int:
    """Generate readings until done or stopped; return the exit code (see the module docstring)."""
    configure_logging()
    try:
        load_dotenv(Path(__file__).with_name(".env"))  # the real environment wins over it
    except UnicodeDecodeError:
        log.error(".env is not in UTF-8: save it so")
        return 2
    config = load_config(argv, os.environ, datetime.now(UTC))
    stop = threading.Event()
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signals.append(signal.SIGHUP)  # the terminal is closed, and nohup has not asked to go on
    for signum in signals:
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    try:
        if config.list_sensors:
            print_lines(table_of_sensors(config))
        elif config.console:
            messages = announced(config, stop)
            printed = print_lines(m.value.decode(errors="backslashreplace") for m in messages)
            log.info("stopped printed=%d", printed)
        else:
            return send_to_kafka(config, stop)
    except OSError as exc:
        log.error("stdout: %s", exc.strerror)
        return 1
    return 0


def announced(config: Config, stop: threading.Event) -> Iterator[Message]:
    """Say what is simulated; return its messages, each when it is due."""
    log.info(
        "simulating sensors=%d seed=%d start=%s",
        config.sensors, config.seed, timestamp(round(config.start.timestamp() * 1000)),
    )  # fmt: skip
    return paced(all_messages(config), config, stop)


def send_to_kafka(config: Config, stop: threading.Event) -> int:
    """Send the messages, once Kafka answers; return the exit code."""
    try:
        producer = connect(config, stop)
    except RefusedError as exc:
        log.error("%s", exc)
        return 2
    except KafkaException as exc:
        log.error(
            "Kafka does not answer at %s (%s): is it started? (docker compose up -d --wait)",
            config.bootstrap_servers, exc.args[0].str(),
        )  # fmt: skip
        return 1
    if producer is None:
        return 0
    try:
        ledger = Ledger(config.ledger)  # only now: an earlier one is worth more than an empty one
    except OSError as exc:
        log.error("--ledger %s: %s", config.ledger, exc.strerror)
        return 2
    if config.starts_now:
        config = replace(config, start=datetime.now(UTC))
    sender = Sender(producer, config, ledger, stop)
    if config.metrics_port:
        try:
            serve_metrics(sender, config.metrics_port)
        except OSError as exc:
            log.error("--metrics-port %d: %s: choose another", config.metrics_port, exc.strerror)
            return 2
    log.info("sending to topic=%s at %s", config.topic, config.bootstrap_servers)
    sender.send_all(announced(config, stop))
    ledger.close()
    log.info("stopped %s", sender)
    if sender.failed:
        log.error("%s", sender.failures())
    if ledger.trouble:
        log.error("--ledger %s: %s: stopped there", config.ledger, ledger.trouble)
    return 1 if sender.failed or ledger.trouble else 0


if __name__ == "__main__":
    raise SystemExit(main())
