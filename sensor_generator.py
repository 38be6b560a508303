#!/usr/bin/env python3
"""Simulate the environmental sensors of a city and send their readings to Kafka.

    python sensor_generator.py                      # live: 5 sensors, each every 1 to 3 seconds
    python sensor_generator.py --backfill 24h       # the last 24 hours, as fast as possible
    python sensor_generator.py --console --count 3  # on stdout, without Kafka
    python sensor_generator.py --speed 60           # an hour of the city in a minute
    python sensor_generator.py --start 2026-06-01 --backfill 30d    # a period, at once

A reading is one JSON object; its sensor_id is also the message's key:

    {"sensor_id": "sensor_001", "timestamp": "2026-06-01T12:00:00.000Z", "temperature": 21.37,
     "humidity": 48.2, "co2_level": 431, "light_intensity": 61234}

The time is in UTC, the temperature in degrees Celsius, the humidity in %, CO2 in ppm, light in lux.
The same --seed and --start give the same readings, byte for byte, however fast they are sent.

Environment (or .env beside this file; a flag wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    KAFKA_TOPIC               default smart-city-sensors
    KAFKA_CA_FILE             certificate (PEM) of the authority that vouches for Kafka: use TLS
    GENERATOR_KAFKA_USER, GENERATOR_KAFKA_PASSWORD   who we are, for Kafka (SCRAM-SHA-512, TLS)

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable or a reading not acknowledged or printed,
2 wrong usage or configuration, or Kafka refuses us.
"""

import heapq
import itertools
import json
import logging
import math
import os
import random
import re
import select
import signal
import ssl
import sys
import threading
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache, partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import prometheus_client
from dotenv import load_dotenv
from dotenv.parser import parse_stream
from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.future import Future
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger("sensor_generator")


class SetupError(Exception):
    """What the user must change before readings can be sent, in one line."""


# 1. The city: pure functions of the time and the seed.

LATITUDE_DEG, LONGITUDE_DEG = 48.86, 2.35  # Paris
MS_PER_HOUR = 3_600_000
CITY_STEP_MS = 10_000  # the city's state is taken as constant for so long
PATCH_KM = 2.0  # how wide a neighbourhood is
PATCH_GRID_KM = (-4, 0, 4)  # where the neighbourhoods' centres are, to the east and to the north
PATCH_MEMORY_H = 6  # for how long a neighbourhood stays warmer or cooler than the others


def sun_elevation_deg(when: datetime) -> float:
    """Return the sun's height above the city's horizon, degrees, good to about half a degree.

    Declination after Cooper (1969), equation of time after Spencer (1971).

    >>> [round(sun_elevation_deg(datetime(2026, 6, 21, hour, tzinfo=UTC))) for hour in (0, 6, 12)]
    [-18, 19, 65]
    """
    day = when.timetuple().tm_yday
    declination = math.radians(23.45) * math.sin(math.tau * (284 + day) / 365)
    b = math.tau * (day - 1) / 365  # the day as an angle; below, as Spencer writes it
    once_a_year = 0.000075 + 0.001868 * math.cos(b) - 0.032077 * math.sin(b)
    equation_min = 229.2 * (once_a_year - 0.014615 * math.cos(2 * b) - 0.04089 * math.sin(2 * b))
    clock_h = when.hour + when.minute / 60 + when.second / 3600
    hour_angle = math.radians(15 * (clock_h + LONGITUDE_DEG / 15 + equation_min / 60 - 12))
    latitude = math.radians(LATITUDE_DEG)
    height_at_six = math.sin(latitude) * math.sin(declination)
    swing = math.cos(latitude) * math.cos(declination)
    return math.degrees(math.asin(height_at_six + swing * math.cos(hour_angle)))


def daylight_lux(elevation_deg: float, cloud: float) -> float:
    """Return the daylight on open ground, lux, for a cloud cover from 0 (clear) to 1 (overcast).

    By day as the Journal of the IES 13(4) recommends (1984). In twilight the light of the horizon
    fades by a factor of 120 per 6 degrees.

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
    """Return the relative humidity, %, by the Magnus formula (Alduchov and Eskridge, 1996).

    >>> round(relative_humidity_pct(20.0, 10.0), 1), relative_humidity_pct(5.0, 9.0)
    (52.5, 100.0)
    """

    def magnus(celsius: float) -> float:
        return 17.625 * celsius / (243.04 + celsius)

    return min(100.0, 100 * math.exp(magnus(dew_point_c) - magnus(air_c)))


def local_hour(when: datetime) -> tuple[float, bool]:
    """Return the hour on the city's clocks, in [0, 24), and whether it is a working day there.

    Summer time lasts from the last Sunday of March to that of October, 01:00 UTC (Directive
    2000/84/EC). It is written out because not every system has time zone data.

    >>> local_hour(datetime(2026, 7, 3, 6, 30, tzinfo=UTC))
    (8.5, True)
    >>> local_hour(datetime(2026, 1, 2, 23, 0, tzinfo=UTC))
    (0.0, False)
    """
    month_ends = (datetime(when.year, month, 31, 1, tzinfo=UTC) for month in (3, 10))
    # From the last day of each month back to its Sunday.
    begins, ends = (day - timedelta(days=(day.weekday() + 1) % 7) for day in month_ends)
    local = when + timedelta(hours=2 if begins <= when < ends else 1)
    return local.hour + local.minute / 60 + local.second / 3600, local.weekday() < 5


def traffic(hour: float, is_working_day: bool) -> float:
    """Return the traffic as a share of a working day's morning peak.

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
    """Return a curve that wanders about 0 and forgets in memory_h hours, at a whole hour.

    It is a first-order autoregressive series of mean 0 and standard deviation 1:
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


class City(NamedTuple):
    """The state of the whole city at a time; what a sensor reads starts from it."""

    air_c: float  # temperature of the open air
    dew_point_c: float
    daylight_lux: float  # on open ground
    is_dark: bool  # whether the street lamps burn
    traffic: float  # share of a working day's morning peak
    calm: float  # how much the CO2 gathers for want of wind; 1 in the median


@lru_cache(maxsize=1024)
def city_at(seed: int, step: int) -> City:
    """Return the city's state in a step of CITY_STEP_MS.

    Season and day cycle, plus a drifting weather: warm and cold spells, clouds, humid air, wind.
    The air is warmest at about 15:00 solar time, less so under clouds. The dew point follows the
    day's lowest temperature (FAO Irrigation and Drainage Paper 56, 1998).
    """
    time_ms = step * CITY_STEP_MS
    when = datetime.fromtimestamp(time_ms / 1000, UTC)

    def drift(name: str, memory_h: int) -> float:
        return between_hours(partial(hourly_drift, seed, name, memory_h), time_ms)

    cloud = min(1.0, max(0.0, 0.5 + 0.4 * drift("sky", 10)))
    year = (when.timetuple().tm_yday - 20) / 365.25  # coldest about 20 January
    daily_mean_c = 12.5 - 8.0 * math.cos(math.tau * year) + 3.0 * drift("spell", 72)
    swing_c = 5.0 - 3.0 * cloud
    solar_h = when.hour + when.minute / 60 + LONGITUDE_DEG / 15
    elevation_deg = sun_elevation_deg(when)
    return City(
        air_c=daily_mean_c + swing_c * math.cos(math.tau * (solar_h - 15) / 24),
        dew_point_c=daily_mean_c - swing_c - 1.0 + 1.5 * drift("water", 36),
        daylight_lux=daylight_lux(elevation_deg, cloud),
        is_dark=elevation_deg < -1,
        traffic=traffic(*local_hour(when)),
        calm=math.exp(-0.4 * drift("wind", 8)),
    )


def hourly_patch(seed: int, east_km: float, north_km: float, hour: int) -> float:
    """Return what is particular to a neighbourhood in an hour, mean 0 and deviation 1.

    It mixes independent series, one for each point of a grid, by their distance: the nearer two
    sensors are, the more they agree (process convolution, Higdon, 2002).
    """
    total = squares = 0.0
    for x, y in itertools.product(PATCH_GRID_KM, PATCH_GRID_KM):
        weight = math.exp(-((east_km - x) ** 2 + (north_km - y) ** 2) / (2 * PATCH_KM**2))
        total += weight * hourly_drift(seed, f"patch {x} {y}", PATCH_MEMORY_H, hour)
        squares += weight**2
    return total / math.sqrt(squares)


# 2. A sensor's readings.

CITY_RADIUS_KM = 5.0


class Place(NamedTuple):
    """What makes a sensor's surroundings differ from the open air above the city."""

    name: str
    warmer_c: float  # degrees above the city's air
    traffic_ppm: float  # CO2 that the traffic of a working day's peak adds
    open_sky: float  # share of the daylight that arrives, 0 to 1
    lamps_lux: float  # artificial light: at night, or always where there is no sky


PLACES = (
    Place("park", -0.8, 15, 0.6, 5),
    Place("school", 0.3, 45, 0.8, 15),
    Place("crossroads", 0.8, 120, 0.7, 30),
    Place("tunnel", 2.5, 380, 0.0, 120),
    Place("roof", 0.0, 10, 1.0, 0),
)


def measure(place: Place, city: City, noise: random.Random, patch: float) -> dict[str, float]:
    """Return what a sensor at a place reads: the four measured fields.

    A patch of 1 makes the neighbourhood half a degree warmer and its traffic's CO2 15 % higher.
    """
    air_c = city.air_c + place.warmer_c + 0.5 * patch + noise.gauss(0, 0.15)
    humidity_pct = relative_humidity_pct(air_c, city.dew_point_c) + noise.gauss(0, 0.6)
    gathered = city.calm * (1 + 0.15 * patch)
    co2_ppm = 420 + gathered * (8 + place.traffic_ppm * city.traffic) + noise.gauss(0, 4)
    light_lux = place.open_sky * city.daylight_lux
    if city.is_dark or not place.open_sky:
        light_lux += place.lamps_lux
    return {
        "temperature": round(air_c, 2),
        "humidity": round(min(100.0, max(0.0, humidity_pct)), 1),
        "co2_level": round(co2_ppm),
        "light_intensity": round(light_lux * math.exp(noise.gauss(0, 0.03))),
    }


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


class Sensor:
    """One sensor: where it stands and what it reads there.

    Everything random comes from the seed and the sensor's own name: the other sensors change
    nothing about its readings.
    """

    def __init__(self, seed: int, number: int) -> None:
        self.seed, self.name = seed, sensor_name(number)
        self.place = PLACES[(number - 1) % len(PLACES)]
        draw = random.Random(f"{self.name}/position")
        distance, direction = CITY_RADIUS_KM * math.sqrt(draw.random()), draw.uniform(0, math.tau)
        self.east_km, self.north_km = distance * math.cos(direction), distance * math.sin(direction)
        self.noise = random.Random(f"{seed}/{self.name}/noise")
        patch = partial(hourly_patch, seed, self.east_km, self.north_km)
        self.hourly_patch = lru_cache(maxsize=2)(patch)  # the two ends of the current hour

    def read(self, time_ms: int) -> dict[str, Any]:
        """Return the reading at a time that is later than the last one."""
        city = city_at(self.seed, time_ms // CITY_STEP_MS)
        values = measure(self.place, city, self.noise, between_hours(self.hourly_patch, time_ms))
        return {"sensor_id": self.name, "timestamp": timestamp(time_ms), **values}


def reading_times(
    number: int, options: Namespace, stop: threading.Event
) -> Iterator[tuple[int, int]]:
    """Yield when a sensor reads, from the simulated start on: (epoch ms, the sensor's number)."""
    if stop.is_set():  # told to end while thousands of sensors start
        return
    if options.rate:  # the sensors take turns, evenly and without end
        for turn in itertools.count(number - 1, options.sensors):
            yield options.start_ms + int(turn * 1000 / options.rate), number
    draw = random.Random(f"{options.seed}/{sensor_name(number)}/times")
    elapsed_ms = 0.0
    while True:
        elapsed_ms += 1000 * draw.uniform(*options.interval)
        yield options.start_ms + int(elapsed_ms), number


# 3. Pacing: each reading comes out when it is due.

CALENDAR_END_MS = round(datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1000)


def start_clock(options: Namespace, stop: threading.Event) -> None:
    """Start the simulated clock: set start_ms and end_ms, and a timer that ends --duration."""
    period_ms = 1000 * options.backfill if options.backfill else math.inf
    options.start_ms = round((options.start or datetime.now(UTC)).timestamp() * 1000)
    if options.backfill and not options.start:  # the period that ends now
        options.start_ms -= round(period_ms)
    options.end_ms = min(options.start_ms + period_ms, CALENDAR_END_MS)
    if options.duration < math.inf:
        timer = threading.Timer(options.duration, stop.set)
        timer.daemon = True  # the process does not wait for it
        timer.start()
    start = timestamp(options.start_ms)
    log.info("simulating sensors=%d seed=%d start=%s", options.sensors, options.seed, start)


def readings(options: Namespace, stop: threading.Event) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the readings of all sensors, each when it is due: (epoch ms, reading).

    They are due on a clock that runs --speed times as fast as ours, counted from the start, so that
    a late reading does not delay the next and the asked rate is kept.
    """
    sensor = cache(partial(Sensor, options.seed))  # each is made at its first reading, and kept
    times = (reading_times(number, options, stop) for number in range(1, options.sensors + 1))
    began = time.monotonic()
    end = began + options.duration
    for time_ms, number in heapq.merge(*times):
        if time_ms >= options.end_ms:
            return
        due = began + (time_ms - options.start_ms) / 1000 / options.speed
        wait_s = min(due, end) - time.monotonic()
        if wait_s > 0.001:  # the clock of a wait is no finer
            stop.wait(min(wait_s, threading.TIMEOUT_MAX))
        if stop.is_set() or due >= end:
            return
        yield time_ms, sensor(number).read(time_ms)


def messages(options: Namespace, stop: threading.Event) -> Iterator[tuple[str, bytes]]:
    """Yield what is to be sent, at most --count: (the sensor's name, its reading as JSON)."""
    for _, reading in itertools.islice(readings(options, stop), options.count):
        yield reading["sensor_id"], json.dumps(reading).encode()


# 4. To stdout or to Kafka.

METRIC = "smart_city_generator_messages"
OUTCOMES = ("sent", "acknowledged", "failed")
MAX_PENDING = 20_000  # messages on their way; kafka-python 2.3 has no such limit of its own
PROGRESS_S = 5.0
GIVE_UP_S = 10.0  # after so long without an answer, what is open at the end has failed
PRODUCER = {
    "acks": "all",  # acknowledged by every replica in sync
    "enable_idempotence": True,  # a message that is sent again is stored once, and in order
    # A message waits for Kafka as long as it takes. A time-out would be dangerous: when a message
    # expires after a lost answer, kafka-python's idempotent producer may never send again.
    "delivery_timeout_ms": 30 * 86_400_000,  # 30 days
    "linger_ms": 50,  # a batch waits so long to fill ...
    "batch_size": 256 * 1024,  # ... up to so many bytes: fewer, fuller requests
    "compression_type": "lz4",
    "max_block_ms": 3000,  # for an answer about the topic
    "reconnect_backoff_max_ms": 2000,
    "metrics_enabled": False,  # the library's own cost time; ours are below
}
# What waiting cannot mend, in the words of kafka-python's log: for a wrong password, it raises
# no exception that says so.
REFUSALS = re.compile(
    "AuthenticationFailed|UnsupportedSasl|CERTIFICATE_VERIFY|not authorized|not a valid topic"
)


def wait_for_reader(stop: threading.Event) -> bool:
    """Return whether stdout takes a line; False: told to stop, which a write would not hear."""
    while os.name == "posix" and not select.select([], [1], [], 0.1)[1]:
        if stop.is_set():
            return False
    return True


def print_lines(lines: Iterator[str], stop: threading.Event) -> int:
    """Print lines on stdout as they come; return the exit code. A reader that leaves ends it."""
    printed = 0
    try:
        for line in lines:
            if not wait_for_reader(stop):
                break
            os.write(1, f"{line}\n".encode())  # without a buffer: a failure is told at its line
            printed += 1
    except BrokenPipeError:
        pass  # `... | head`: nobody reads on
    except OSError as exc:
        log.error("stdout: %s", exc.strerror)
        return 1
    log.info("stopped printed=%d", printed)
    return 0


def connect(options: Namespace, stop: threading.Event) -> KafkaProducer | None:
    """Return a producer as soon as Kafka answers, or None when told to stop before.

    Raises SetupError: Kafka refuses us, or ConnectionError: it does not answer; in its own words.
    """
    security = kafka_security(os.environ, "GENERATOR")
    servers = options.bootstrap_servers
    deadline = time.monotonic() + options.wait
    while not stop.is_set():
        library_error.text = ""  # the last error in kafka-python's log, see below
        try:
            producer = KafkaProducer(bootstrap_servers=servers.split(","), **PRODUCER, **security)
            producer.partitions_for(options.topic)  # a broker that may make the topic does it now
            return producer
        except (KafkaError, OSError, ValueError) as exc:
            reason = library_error.text or one_line(exc)
        left_s = deadline - time.monotonic()
        is_unknown_topic = "not found in cluster metadata" in reason  # perhaps it is being made
        if REFUSALS.search(reason) or (is_unknown_topic and left_s <= 0):
            raise SetupError(f"Kafka at {servers} refuses: {reason}")
        if left_s <= 0:
            hint = "is it started? (docker compose up -d --wait)"
            raise ConnectionError(f"Kafka does not answer at {servers} ({reason}): {hint}")
        log.warning("waiting for Kafka at %s (%s), %.0f s left", servers, reason, left_s)
        stop.wait(min(2.0, left_s))
    return None


class Sender:
    """Sends messages and counts what becomes of them: sent, then acknowledged or failed."""

    def __init__(self, producer: KafkaProducer, options: Namespace, stop: threading.Event) -> None:
        self.producer, self.options, self.stop = producer, options, stop
        self.registry = prometheus_client.CollectorRegistry()  # the accounts are its counters
        counter = prometheus_client.Counter(METRIC, "", ["outcome"], registry=self.registry)
        self.sent, self.acknowledged, self.failed = map(counter.labels, OUTCOMES)
        if options.metrics_port:
            serve_metrics(self.registry, options.metrics_port)
        self.reasons: Counter[str] = Counter()  # why messages have failed
        self.room = threading.Semaphore(MAX_PENDING)  # for messages on their way: back-pressure
        self.began = self.last_report = self.last_outcome = time.monotonic()

    def run(self, to_send: Iterator[tuple[Any, ...]]) -> int:
        """Send messages until they end, and wait for their outcomes; return the exit code."""
        log.info("sending to topic=%s at %s", self.options.topic, self.options.bootstrap_servers)
        with logging_redirect_tqdm():  # the log stands above the bar
            for message in tqdm(to_send, **bar_options(self.options)):
                if not self.wait_for_room():
                    break
                self.send(*message)
        return self.finish()

    def wait_for_room(self) -> bool:
        """Take a place among the MAX_PENDING messages on their way; False: told to stop."""
        self.report()
        while not self.room.acquire(timeout=0.1):
            if self.stop.is_set():
                return False
            self.report()
        return True

    def send(self, sensor_id: str, value: bytes) -> Future:
        """Hand a message to kafka-python; return what will hold its outcome."""
        self.sent.inc()
        outcome: Future | None = None
        while outcome is None:
            try:
                outcome = self.producer.send(self.options.topic, value, sensor_id.encode())
            except KafkaError as exc:  # a broker that has just started may not know its topics yet
                self.report()
                if self.stop.wait(1):
                    outcome = Future().failure(exc)  # one that has failed already
        return outcome.add_both(self.settle)

    def settle(self, outcome: object) -> None:
        """Count a message by its outcome: where Kafka has stored it, or why it has not."""
        if isinstance(outcome, Exception):
            self.failed.inc()
            self.reasons[type(outcome).__name__] += 1
        else:
            self.acknowledged.inc()
        self.last_outcome = time.monotonic()
        self.room.release()

    def accounts(self) -> list[int]:
        """Return how many messages were sent, acknowledged and failed until now."""
        value = self.registry.get_sample_value
        return [int(value(f"{METRIC}_total", {"outcome": name}) or 0) for name in OUTCOMES]

    def unknown(self) -> int:
        """Return how many messages have no outcome yet."""
        sent, acknowledged, failed = self.accounts()
        return sent - acknowledged - failed

    def log_accounts(self, event: str, sent: int, acknowledged: int, failed: int) -> None:
        """Log the accounts, and why messages have failed."""
        seconds = time.monotonic() - self.began
        accounts = f"sent={sent} acknowledged={acknowledged} failed={failed}"
        log.info("%s %s seconds=%.1f rate_hz=%.1f", event, accounts, seconds, sent / seconds)
        if failed:
            reasons = list(self.reasons.items())  # meanwhile there may be more
            why = "; ".join(f"{count} x {reason}" for reason, count in reasons)
            log.error("not acknowledged: %d of %d messages (%s)", failed, sent, why)

    def report(self) -> None:
        """Log the accounts every few seconds, and that Kafka is waited for."""
        now = time.monotonic()
        if now - self.last_report < PROGRESS_S:
            return
        self.last_report = now
        self.log_accounts("progress", *self.accounts())
        reason, library_error.text = library_error.text or "it does not answer", ""
        if self.unknown() and now - self.last_outcome >= PROGRESS_S:
            log.warning("waiting for Kafka (%s)", reason)

    def finish(self) -> int:
        """Wait for the missing outcomes while Kafka still tells some; return the exit code.

        kafka-python's close() waits without limit, so it gets a thread that we need not wait for.
        """
        threading.Thread(target=self.close, daemon=True).start()
        self.last_outcome = time.monotonic()
        while self.unknown() and time.monotonic() - self.last_outcome < GIVE_UP_S:
            time.sleep(0.02)
        sent, acknowledged, failed = self.accounts()
        if unknown := self.unknown():
            self.reasons["Kafka does not answer"] = unknown
        self.log_accounts("stopped", sent, acknowledged, failed + unknown)
        return 1 if failed + unknown else 0

    def close(self) -> None:
        """Close the producer. If that fails, the outcomes of its messages come all the same."""
        try:
            self.producer.close()
        except Exception as exc:  # noqa: BLE001  # seen once, of a kind that is not known
            log.warning("kafka-python could not be closed (%s)", one_line(exc))


def bar_options(options: Namespace) -> dict[str, Any]:
    """Return tqdm's options: a bar for a back-fill on a terminal, else none."""
    if not options.backfill or not sys.stderr or not sys.stderr.isatty():
        return {"disable": True}
    rate_hz = options.rate or 2 * options.sensors / sum(options.interval)
    expected = round(rate_hz * options.backfill)
    return {"total": min(expected, options.count or expected), "unit": " readings"}


# 5. Options and main.


def option_parser(description: str) -> ArgumentParser:
    """Return a parser of the options; where a flag is missing, the environment counts."""
    summary, _, details = description.partition("\n\n")
    as_written = RawDescriptionHelpFormatter
    parser = ArgumentParser(description=summary, epilog=details, formatter_class=as_written)
    add = parser.add_argument
    seconds, positive = number(0, 1e9), number(0.001, 1e9)
    add("--console", action="store_true", help="print the readings instead of sending them")
    add("--count", type=number(1, 1e12, int), metavar="N", help="stop after N readings")
    add("--duration", type=seconds, default=math.inf, metavar="S", help="stop after S seconds")
    add("--sensors", type=number(1, 100_000, int), default=5, metavar="N", help="default: 5")
    pace = parser.add_mutually_exclusive_group()
    text = "seconds between two readings of a sensor, default: 1 3"
    pace.add_argument(
        "--interval", type=positive, nargs=2, default=[1.0, 3.0], metavar=("MIN", "MAX"), help=text
    )
    text = "readings a second, of all sensors together"
    pace.add_argument("--rate", type=positive, metavar="HZ", help=text)
    add("--seed", type=number(-1e18, 1e18, int), metavar="N", help="default: a new one, shown")
    add("--start", type=parse_time, metavar="TIME", help="of the simulated clock, default: now")
    text = "send a period at once, such as 15m, 24h or 30d: up to now, or from --start on"
    add("--backfill", type=parse_duration, metavar="PERIOD", help=text)
    add("--speed", type=positive, metavar="N", help="let the simulated clock run N times as fast")
    add("--wait", type=seconds, default=60, metavar="S", help="for Kafka at the start, default: 60")
    text = "let Prometheus read /metrics on this port of 127.0.0.1"
    add("--metrics-port", type=number(1, 65_535, int), metavar="PORT", help=text)
    for flag, name, default, kind in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", server_list),
        ("--topic", "KAFKA_TOPIC", "smart-city-sensors", topic_name),
    ):
        value = os.environ.get(name) or default
        add(flag, type=kind, default=value, help=f"environment: {name}, default: {default}")
    return parser


def parse_options(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """Return the options, checked. Wrong usage ends the process with exit code 2."""
    options = parser.parse_args(argv)
    if options.interval[0] > options.interval[1]:
        parser.error("--interval: MIN {:g} is above MAX {:g}".format(*options.interval))
    needed = math.ceil((options.rate or 0) / 1000)
    if options.sensors < needed:
        why = "times are in milliseconds, and no sensor gives two readings in the same one"
        parser.error(f"--rate {options.rate:g} needs --sensors {needed} or more: {why}")
    if options.console and options.metrics_port:
        parser.error("--metrics-port tells of what is sent: not with --console")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**32)
    if options.speed is None:
        options.speed = math.inf if options.backfill else 1.0
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate until done or stopped; return the exit code (see the module docstring)."""
    configure_logging()
    try:
        load_env(Path(__file__).with_name(".env"))
        options = parse_options(option_parser(__doc__ or ""), argv)
        stop = stop_on_signals()
        if options.console:
            start_clock(options, stop)
            return print_lines((value.decode() for _, value in messages(options, stop)), stop)
        producer = connect(options, stop)
        if producer is None:
            return 0
        sender = Sender(producer, options, stop)
        start_clock(options, stop)
        return sender.run(messages(options, stop))
    except SetupError as exc:
        log.error("%s", exc)
        return 2
    except ConnectionError as exc:
        log.error("%s", exc)
        return 1


# 6. What a first reader may skip: logs, signals, metrics, the form of values, .env, security.


class LibraryError(logging.Handler):
    """Keeps the last error that kafka-python has logged; a refusal is not replaced."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text, without its trace-back or the connection's description."""
        if not REFUSALS.search(self.text):
            self.text = one_line(record.getMessage().rpartition(">: ")[2])


library_error = LibraryError(logging.ERROR)


def one_line(what: object) -> str:
    """Return the text of an exception, or of anything else, in one line."""
    return " ".join(str(what).split()) or type(what).__name__


def configure_logging() -> None:
    """Log to stderr, in UTC; what kafka-python logs is kept for our own lines."""
    logging.Formatter.converter = time.gmtime
    line = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, datefmt="%Y-%m-%dT%H:%M:%S")
    library = logging.getLogger("kafka")
    library.propagate = False
    library.addHandler(library_error)


def stop_on_signals() -> threading.Event:
    """Return a flag that is set when the process is told to end."""
    stop = threading.Event()
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signals.append(signal.SIGHUP)  # the terminal is closed, and nohup has not asked to go on
    for signum in signals:
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())
    return stop


def serve_metrics(registry: prometheus_client.CollectorRegistry, port: int) -> None:
    """Answer /metrics on a loopback port, in a thread. Raises SetupError: the port is taken."""
    try:
        prometheus_client.start_http_server(port, "127.0.0.1", registry)
    except OSError as exc:
        raise SetupError(f"--metrics-port {port}: {exc.strerror}: choose another") from exc


def number(lowest: float, highest: float, kind: type[int] | type[float] = float) -> Any:
    """Return an argparse type: a number within these limits."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if lowest <= (value := kind(text)) <= highest:
                return value
        limits = f"{'whole ' if kind is int else ''}number from {lowest:g} to {highest:g}"
        raise ArgumentTypeError(f"{text!r} is not a {limits}")

    return parse


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time; one without an offset is UTC.

    >>> parse_time("2026-06-01T12:00:00+02:00").isoformat(), parse_time("2026-06-01").isoformat()
    ('2026-06-01T12:00:00+02:00', '2026-06-01T00:00:00+00:00')
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError as exc:
        example = "such as 2026-06-01 or 2026-06-01T12:00:00Z"
        raise ArgumentTypeError(f"{text!r} is not an ISO 8601 time {example}") from exc
    if not 1 < when.year < 9999:
        raise ArgumentTypeError(f"{text}: the year is not between 2 and 9998")
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def parse_duration(text: str) -> float:
    """Return a duration written as 90s, 15m, 24h or 30d, in seconds.

    >>> parse_duration("24h"), parse_duration("90s")
    (86400.0, 90.0)
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([smhd])", text)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]] if match else 0
    if not 0.001 <= seconds <= 36_500 * 86_400:
        allowed = "a duration such as 90s, 15m, 24h or 30d, at most 36500d"
        raise ArgumentTypeError(f"{text!r} is not {allowed}")
    return seconds


def topic_name(text: str) -> str:
    """Return a topic's name if Kafka allows it, and that of its dead letters."""
    if not re.fullmatch(r"(?!\.\.?$)[A-Za-z0-9._-]{1,237}", text):
        raise ArgumentTypeError(f"{text!r} is not 1 to 237 letters, digits or . _ -")
    return text


def server_list(text: str) -> str:
    """Return a list of servers if each is HOST:PORT, such as localhost:9092 or [::1]:9092."""
    for server in text.split(","):
        match = re.fullmatch(r"(?:\[[^\s\[\]]+\]|[^\s:\[\]]+):(\d{1,5})", server)
        if not match or not 0 < int(match[1]) <= 65_535:
            raise ArgumentTypeError(f"{text!r} is not HOST:PORT[,HOST:PORT...]")
    return text


def load_env(file: Path) -> None:
    """Put what a .env file says into the environment, where it is not set yet.

    Raises SetupError: the file cannot be read; the text names the line, and shows nothing of it.
    """
    try:
        content = file.read_text("utf-8-sig") if file.exists() else ""
        for binding in parse_stream(StringIO(content)):
            statement = binding.original.string
            is_incomplete = binding.key is not None and binding.value is None
            if binding.error or is_incomplete or "\0" in statement:
                line = binding.original.line + statement.count("\n", 0, -len(statement.lstrip()))
                raise SetupError(f"{file}, line {line}: not NAME=VALUE, or a quote is not closed")
        load_dotenv(stream=StringIO(content), interpolate=False)  # $ is a letter of a password
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise SetupError(f"{file}, line {line}: not in UTF-8: save it so") from exc
    except (OSError, ValueError) as exc:
        raise SetupError(f"{file}: {exc}") from exc


def kafka_security(environ: Mapping[str, str], role: str) -> dict[str, Any]:
    """Return kafka-python's options for TLS and a password, as far as they are asked for.

    Raises SetupError: only one of user and password is set, or the file has no certificates.
    """
    names = (f"{role}_KAFKA_USER", f"{role}_KAFKA_PASSWORD", "KAFKA_CA_FILE")
    user, password, file = (environ.get(name, "").strip() for name in names)
    if bool(user) != bool(password):
        raise SetupError(f"{names[0]} and {names[1]}: set both, or neither")
    if not user and not file:
        return {}
    try:
        context = ssl.create_default_context(cafile=file or None)
    except OSError as exc:
        raise SetupError(f"KAFKA_CA_FILE: {file} has no certificates ({exc})") from exc
    tls = {"security_protocol": "SASL_SSL" if user else "SSL", "ssl_context": context}
    sasl = {"sasl_plain_username": user, "sasl_plain_password": password}
    return tls | {"sasl_mechanism": "SCRAM-SHA-512", **sasl} if user else tls


if __name__ == "__main__":
    raise SystemExit(main())
