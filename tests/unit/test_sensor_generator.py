"""The generator's pure part: values, times, seeds, options."""

import csv
import io
import json
import logging
import math
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import combinations, islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

import kafka_to_elasticsearch as indexer
import sensor_generator as generator
from tests.conftest import PROJECT, wait_until

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def config(*argv: str) -> generator.Config:
    return generator.load_config(argv, {}, NOW)


def readings(*argv: str, count: int = 10_000) -> list[dict[str, Any]]:
    return [json.loads(message.value) for message in messages(*argv, count=count)]


def messages(*argv: str, count: int = 10_000) -> list[generator.Message]:
    return list(islice(generator.all_messages(config("--seed", "1", *argv)), count))


def of_sensor(found: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [r for r in found if r["sensor_id"] == f"sensor_{number:03d}"]


def times(found: list[dict[str, Any]]) -> list[datetime]:
    return [datetime.fromisoformat(r["timestamp"]) for r in found]


def test_reading_has_the_six_fields_and_their_types() -> None:
    for reading in readings(count=200):
        assert {name: type(value) for name, value in reading.items()} == {
            "sensor_id": str,
            "timestamp": str,
            "temperature": float,
            "humidity": float,
            "co2_level": int,
            "light_intensity": int,
        }


def test_five_sensors_by_default_every_one_to_three_seconds() -> None:
    found = readings(count=2000)
    assert {r["sensor_id"] for r in found} == {f"sensor_{n:03d}" for n in range(1, 6)}
    gaps = [(b - a).total_seconds() for a, b in pairwise(times(of_sensor(found, 1)))]
    assert 0.999 <= min(gaps) < 1.2
    assert 2.8 < max(gaps) <= 3.001


def test_readings_come_in_order_of_time() -> None:
    found = times(readings(count=500))
    assert found == sorted(found)


def test_same_seed_and_start_give_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--console",
        "--count",
        "50",
        "--seed",
        "7",
        "--start",
        "2026-06-01",
        "--backfill",
        "1h",
    ]
    assert generator.main(argv) == 0
    first = capsys.readouterr().out
    assert generator.main(argv) == 0
    assert capsys.readouterr().out == first
    assert len(first.splitlines()) == 50


def test_live_and_backfill_give_the_same_readings(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--console", "--count", "20", "--seed", "7", "--start", "2026-06-01", "--rate", "200"]
    assert generator.main(argv) == 0
    live = capsys.readouterr().out
    assert generator.main([*argv, "--backfill", "1m"]) == 0
    assert capsys.readouterr().out == live


def test_another_seed_gives_other_readings() -> None:
    theirs = generator.all_messages(config("--seed", "2"))
    assert messages(count=20) != list(islice(theirs, 20))


def test_a_sensor_does_not_depend_on_the_number_of_sensors() -> None:
    few, many = readings("--sensors", "3", count=300), readings("--sensors", "9", count=900)
    ours, theirs = of_sensor(few, 2), of_sensor(many, 2)
    assert ours[:80] == theirs[:80]


def test_weather_does_not_depend_on_the_start() -> None:
    step = int(NOW.timestamp() * 1000) // generator.CITY_STEP_MS
    late = generator.city_at(5, step + 500)
    generator.city_at.cache_clear()
    generator.hourly_drift.cache_clear()
    generator.innovation.cache_clear()
    assert generator.city_at(5, step + 500) == late


@pytest.mark.parametrize("rate", [1, 3, 7.5, 1000, 4999])
def test_rate_spaces_the_readings_evenly(rate: float) -> None:
    found = times(readings("--rate", str(rate), count=500))
    exact = [NOW + timedelta(seconds=k / rate) for k in range(500)]
    assert all(
        timedelta(0) <= e - f < timedelta(milliseconds=1) for e, f in zip(exact, found, strict=True)
    )


def test_rate_gives_each_sensor_distinct_times() -> None:
    found = readings("--rate", "5000", count=5000)
    assert len({(r["sensor_id"], r["timestamp"]) for r in found}) == 5000


def test_backfill_covers_the_period_that_ends_now() -> None:
    found = times(readings("--backfill", "10m"))
    assert NOW - timedelta(minutes=10) <= min(found) <= NOW - timedelta(minutes=9, seconds=57)
    assert NOW - timedelta(seconds=3) <= max(found) < NOW


def test_backfill_from_start_covers_the_period_that_begins_there() -> None:
    found = times(readings("--start", "2020-02-28T23:59:00Z", "--backfill", "2m"))
    assert found[0].year == 2020
    assert max(found) < datetime(2020, 2, 29, 0, 1, tzinfo=UTC)


class Clock(threading.Event):
    """A clock that moves when it is waited for, and is told to stop by nobody."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout
        self.now_s += timeout
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the generator looks at."""
    found = Clock()
    monkeypatch.setattr(generator, "time", found)
    return found


@pytest.mark.parametrize("start", ["2026-03-02", "2026-03-02T00:00:00.000600"])
def test_paced_stops_after_the_duration(clock: Clock, start: str) -> None:
    chosen = config("--rate", "100", "--duration", "0.5", "--seed", "1", "--start", start)
    yielded = list(generator.paced(generator.all_messages(chosen), chosen, clock))
    assert len(yielded) == 50
    assert clock.now_s == 0.5


@pytest.mark.parametrize(
    ("delays_s", "sent"),
    [({10: 0.4}, 100), (dict.fromkeys(range(1, 101), 0.25), 4)],
    ids=["once: late readings follow without waiting", "always: it ends at the duration"],
)
def test_paced_with_a_slow_receiver(clock: Clock, delays_s: dict[int, float], sent: int) -> None:
    chosen = config("--rate", "100", "--duration", "1", "--seed", "1")
    count = 0
    for count, _ in enumerate(generator.paced(generator.all_messages(chosen), chosen, clock), 1):
        clock.now_s += delays_s.get(count, 0)
    assert count == sent
    assert clock.now_s == 1


def month() -> list[tuple[datetime, generator.City]]:
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    hours = [begin + timedelta(hours=h) for h in range(24 * 31)]
    steps = [int(h.timestamp() * 1000) // generator.CITY_STEP_MS for h in hours]
    return [(h, generator.city_at(3, s)) for h, s in zip(hours, steps, strict=True)]


def test_nights_are_dark_and_days_are_bright() -> None:
    lux = {hour: [c.daylight_lux for h, c in month() if h.hour == hour] for hour in (0, 12)}
    assert max(lux[0]) < 1
    assert min(lux[12]) > 5000
    assert max(lux[12]) < 120_000


def test_humidity_falls_as_the_air_warms_within_a_day() -> None:
    noise, place = random.Random(1), generator.PLACES[0]
    correlations = []
    for day in range(31):
        measured = [
            generator.measure(place, c, noise) for _, c in month()[24 * day : 24 * day + 24]
        ]
        correlations.append(
            statistics.correlation(
                [m["temperature"] for m in measured], [m["humidity"] for m in measured]
            )
        )
    assert statistics.mean(correlations) < -0.5


def test_working_days_have_more_co2_than_days_off() -> None:
    noise, crossroads = random.Random(1), generator.PLACES[2]
    by_day: dict[bool, list[float]] = {True: [], False: []}
    for when, city in month():
        measured = generator.measure(crossroads, city, noise)
        by_day[when.weekday() < 5].append(measured["co2_level"])
    assert statistics.mean(by_day[True]) > statistics.mean(by_day[False]) + 5


def test_all_places_share_the_weather() -> None:
    found = {place.name: [] for place in generator.PLACES}  # type: dict[str, list[float]]
    noise = random.Random(1)
    for _, city in month():
        for place in generator.PLACES:
            found[place.name].append(generator.measure(place, city, noise)["temperature"])
    assert statistics.correlation(found["park"], found["roof"]) > 0.95


def test_the_nearer_two_sensors_are_the_more_they_agree() -> None:
    """What is left of the temperature when city and place are taken away."""
    hours = range(500_000, 500_000 + 24 * 60)
    by_hour = [[generator.hourly_patch(1, n, hour) for n in range(1, 41)] for hour in hours]
    patches = dict(enumerate(zip(*by_hour, strict=True), 1))
    for values in patches.values():
        assert abs(statistics.mean(values)) < 0.6
        assert 0.6 < statistics.stdev(values) < 1.4
    near, far = [], []
    for (one, ours), (other, theirs) in combinations(patches.items(), 2):
        distance_km = math.dist(generator.position_km(one), generator.position_km(other))
        correlation = statistics.correlation(ours, theirs)
        if distance_km < 1:
            near.append(correlation)
        elif distance_km > 6:
            far.append(correlation)
    assert len(near) > 10
    assert len(far) > 10
    assert statistics.mean(near) > 0.8
    assert abs(statistics.mean(far)) < 0.2


def test_the_sun_is_where_the_almanac_says() -> None:
    """Noon at the solstices: 90 - latitude +/- 23.44 degrees; sunrise near -0.83 degrees."""
    for day, height in (
        (datetime(2026, 6, 21, tzinfo=UTC), 64.6),
        (datetime(2026, 12, 21, tzinfo=UTC), 17.7),
    ):
        noon = max(generator.sun_elevation_deg(day + timedelta(minutes=m)) for m in range(1440))
        assert noon == pytest.approx(height, abs=0.3)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--count", "0"], "--count"),
        (["--count", "many"], "--count"),
        (["--sensors", "-1"], "--sensors"),
        (["--interval", "3", "1"], "MIN 3 is above MAX 1"),
        (["--interval", "0", "1"], "--interval"),
        (["--rate", "nan"], "--rate"),
        (["--rate", "0"], "--rate"),
        (["--rate", "10000"], "--sensors 10 or more"),
        (["--rate", "5", "--interval", "1", "2"], "exclude each other"),
        (["--start", "yesterday"], "--start"),
        (["--backfill", "24"], "--backfill"),
        (["--backfill", "0h"], "--backfill"),
        (["--backfill", "0.0000001s"], "--backfill"),
        (["--backfill", "9999999999999d"], "--backfill"),
        (["--backfill", "999999d"], "--backfill: longer than the calendar"),
        (["--start", "0001-01-01T00:00:00+05:00"], "the year is not between 2 and 9998"),
        (["--count", "99999999999999999999"], "at most 1e12"),
        (["--topic", ".."], "--topic"),
        (["--console", "--ledger", "ledger.csv"], "not with --console"),
        (["--topic", "smart city"], "--topic"),
        (["--bootstrap-servers", "localhost"], "HOST:PORT"),
        (["--duration", "-1"], "--duration"),
        (["--until", "2026-01-01"], "--until needs a --start before it"),
        (["--start", "2026-01-01", "--until", "2025-01-01"], "--until needs a --start before it"),
        (["--backfill", "1h", "--start", "2026-01-01", "--until", "2026-01-02"], "exclude each"),
        (["--speed", "0"], "--speed"),
        (["--fault", "gremlins=0.1"], "'gremlins' is none of spike, drift"),
        (["--fault", "spike=2"], "2 is not between 0 and 1"),
        (["--fault", "spike"], "--fault"),
        (["surplus"], "surplus"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        config(*argv)
    assert exit_.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in message


def test_flag_wins_over_environment_over_default() -> None:
    environ = {"KAFKA_TOPIC": "from-environment"}
    assert generator.load_config([], {}, NOW).topic == "smart-city-sensors"
    assert generator.load_config([], environ, NOW).topic == "from-environment"
    assert generator.load_config(["--topic", "from-flag"], environ, NOW).topic == "from-flag"
    assert generator.load_config([], {"KAFKA_TOPIC": ""}, NOW).topic == "smart-city-sensors"


# Time


def test_a_period_from_to_is_sent_at_once() -> None:
    chosen = config("--start", "2026-06-01", "--until", "2026-06-01T00:10:00")
    assert chosen.speed == math.inf
    found = times(readings("--start", "2026-06-01", "--until", "2026-06-01T00:10:00"))
    assert datetime(2026, 6, 1, tzinfo=UTC) <= min(found)
    assert datetime(2026, 6, 1, 0, 9, 55, tzinfo=UTC) < max(found)
    assert max(found) < datetime(2026, 6, 1, 0, 10, tzinfo=UTC)


def test_an_accelerated_clock_gives_the_same_readings_sooner() -> None:
    chosen = config("--rate", "10", "--speed", "100", "--count", "500", "--seed", "1")
    yielded = list(generator.paced(generator.all_messages(chosen), chosen, threading.Event()))
    assert yielded == messages("--rate", "10", count=500)


# Faults


@pytest.mark.parametrize("kind", generator.FAULTS)
def test_a_fault_is_labelled_and_only_the_malformed_are_refused(kind: str) -> None:
    found = messages("--fault", f"{kind}=0.05", "--backfill", "2h", count=20_000)
    labels = {message.label.partition(":")[0] for message in found}
    assert labels == ({""} if kind == "dropout" else {"", kind})
    for message in found:
        if message.label.startswith("malformed"):
            assert message.reading_id == ""
            with pytest.raises(indexer.InvalidReadingError):
                indexer.parse_reading(message.value)
        else:
            reading = indexer.parse_reading(message.value)
            assert message.reading_id == f"{reading.sensor_id}@{reading.timestamp}"
            assert message.value == json.dumps(msgspec.structs.asdict(reading)).encode()


def test_all_faults_together_never_give_two_readings_one_id() -> None:
    rates = dict.fromkeys(generator.FAULTS, 0.02) | {"dropout": 0.0005}  # it is soon silent else
    argv = [part for kind, rate in rates.items() for part in ("--fault", f"{kind}={rate}")]
    found = messages(*argv, "--rate", "20", "--sensors", "2", count=20_000)
    values: dict[str, bytes] = {}
    for message in found:
        if message.reading_id:
            assert values.setdefault(message.reading_id, message.value) == message.value
    dues = [message.due_ms for message in found]
    assert dues == sorted(dues)
    kinds = {part.partition(":")[0] for m in found for part in m.label.split("+")}
    assert kinds == {"", *generator.FAULTS} - {"dropout"}


def test_a_fault_changes_nothing_about_the_other_readings() -> None:
    plain = {message.reading_id: message for message in messages(count=5000)}
    spiked = messages("--fault", "spike=0.1", "--fault", "late=0.1", count=5000)
    both = [m for m in spiked if not m.label and m.reading_id in plain]
    assert len(both) > 3000
    assert all(plain[message.reading_id] == message for message in both)


def by_label(kind: str, rate: float, *argv: str) -> tuple[list[Any], list[Any]]:
    """Return the readings with the fault and the same ones without it, in pairs."""
    plain = {m.reading_id: json.loads(m.value) for m in messages(*argv)}
    found = [m for m in messages(*argv, "--fault", f"{kind}={rate}") if kind in m.label]
    pairs = [(json.loads(m.value), plain[m.reading_id]) for m in found if m.reading_id in plain]
    return [faulty for faulty, _ in pairs], [good for _, good in pairs]


def test_a_spike_is_one_field_far_off() -> None:
    for faulty, good in zip(*by_label("spike", 0.1), strict=True):
        changed = [name for name in generator.LIMITS if faulty[name] != good[name]]
        assert len(changed) == 1
        low, high = generator.LIMITS[changed[0]]
        assert abs(faulty[changed[0]] - good[changed[0]]) > 0.25 * (high - low)


def test_the_share_of_spikes_is_as_asked() -> None:
    found = messages("--fault", "spike=0.1")
    assert sum("spike" in m.label for m in found) / len(found) == pytest.approx(0.1, abs=0.01)


def test_a_drift_grows_and_ends() -> None:
    faulty, good = by_label("drift", 0.001, "--sensors", "1")
    off = [f["temperature"] - g["temperature"] for f, g in zip(faulty, good, strict=True)]
    assert max(off) > 0.5
    assert min(off) < 0.1
    assert len(off) < 9000


def test_a_stuck_sensor_repeats_itself() -> None:
    faulty, _ = by_label("stuck", 0.001, "--sensors", "1")
    same = sum(a["temperature"] == b["temperature"] for a, b in pairwise(faulty))
    assert same > 0.9 * len(faulty) > 20


def test_a_clock_that_is_ahead_shows_later_times() -> None:
    found = messages("--fault", "clock_skew=0.001", "--sensors", "1")
    ahead = [m for m in found if "clock_skew" in m.label]
    for message in ahead:
        shown = datetime.fromisoformat(json.loads(message.value)["timestamp"])
        assert 60 <= shown.timestamp() - message.due_ms / 1000 <= 3601
    assert ahead


def test_silence_lasts_and_nothing_else_is_missing() -> None:
    found = messages("--fault", "dropout=0.001", "--sensors", "1", "--backfill", "10h", count=10**6)
    gaps = [b.due_ms - a.due_ms for a, b in pairwise(found)]
    assert max(gaps) > 60_000
    assert sorted(gaps)[len(gaps) // 2] < 3001
    plain = {m.value for m in messages("--sensors", "1", "--backfill", "10h", count=10**6)}
    assert {m.value for m in found} < plain


def test_late_duplicate_and_out_of_order_are_the_same_bytes_at_another_time() -> None:
    for kind, earliest_s, latest_s in (("late", 60, 3600), ("duplicate", 0, 10)):
        for m in messages("--fault", f"{kind}=0.05"):
            shown = datetime.fromisoformat(json.loads(m.value)["timestamp"])
            late_s = m.due_ms / 1000 - shown.timestamp()
            assert (earliest_s if m.label else 0) <= late_s + 0.001
            assert late_s <= (latest_s if m.label else 0) + 0.001
    found = of_sensor(readings("--fault", "out_of_order=0.05"), 1)
    backwards = sum(b < a for a, b in pairwise(times(found)))
    assert backwards / len(found) == pytest.approx(0.05, abs=0.02)


def test_out_of_order_is_said_of_what_comes_after_a_newer_one_only() -> None:
    for faults in (["out_of_order=1"], ["out_of_order=0.5"], ["out_of_order=0.2", "late=0.3"]):
        argv = [word for fault in faults for word in ("--fault", fault)]
        newest: dict[str, str] = {}
        labelled = 0
        for m in messages(*argv):
            if "late" in m.label:
                continue
            shown = json.loads(m.value)["timestamp"]
            assert ("out_of_order" in m.label) == (shown < newest.get(m.sensor_id, ""))
            newest[m.sensor_id] = max(shown, newest.get(m.sensor_id, ""))
            labelled += "out_of_order" in m.label
        assert labelled > 500


def test_a_stuck_sensor_shows_no_other_fault_of_its_values() -> None:
    argv = ("--fault", "stuck=0.05", "--fault", "spike=0.2", "--fault", "drift=0.01")
    last: dict[str, tuple[Any, ...]] = {}
    frozen = 0
    for m in messages(*argv):
        values = tuple(json.loads(m.value)[name] for name in generator.LIMITS)
        if values == last.get(m.sensor_id):
            assert m.label == "stuck"
            frozen += 1
        last[m.sensor_id] = values
    assert frozen > 1000


def test_the_readings_end_with_the_calendar() -> None:
    found = times(readings("--start", "9998-12-31T23:59", "--interval", "10", "10"))
    assert len(found) == 25
    assert max(found) < datetime(9999, 1, 1, tzinfo=UTC)


def test_the_list_of_sensors_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main(["--list-sensors", "--sensors", "7"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == ("sensor      place         km E  km N     °C   ppm   sky  lamps lx")
    assert [row.split()[:2] for row in rows][5:] == [
        ["sensor_006", "park"],
        ["sensor_007", "school"],
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_backfill_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bar = generator.ProgressBar(config("--start", "2026-06-01", "--backfill", "100s"))
    begin_ms = datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000
    bar.show(begin_ms + 25_000, 40)
    assert terminal.getvalue() == "\r[" + "#" * 10 + " " * 30 + "]  25%  40 sent "
    bar.show(begin_ms + 26_000, 41)  # too soon to draw it again
    assert terminal.getvalue().count("\r") == 1
    bar.clear()
    assert terminal.getvalue().endswith("\r" + " " * 70 + "\r")


@pytest.mark.parametrize(
    ("argv", "stream"),
    [
        (["--backfill", "100s"], io.StringIO),  # no terminal
        (["--count", "9"], Terminal),  # live
        (["--start", "2026-06-01", "--until", "2026-06-02", "--speed", "60"], Terminal),
    ],
)
def test_elsewhere_there_is_no_bar(
    argv: list[str], stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", found := stream())
    bar = generator.ProgressBar(config(*argv))
    bar.show(NOW.timestamp() * 1000, 1)
    bar.clear()
    assert found.getvalue() == ""


def test_console_prints_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main(["--console", "--count", "3", "--backfill", "1m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["sensor_id"][:7] for line in lines] == ["sensor_"] * 3


def producer_to_nowhere(options: dict[str, int]) -> Producer:
    return Producer(
        {"bootstrap.servers": "127.0.0.1:1", **options}, logger=logging.getLogger("kafka")
    )


def test_what_is_on_its_way_is_bounded_when_kafka_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "FLUSH_S", 0.1)
    producer, stop = producer_to_nowhere({"queue.buffering.max.messages": 100}), threading.Event()
    run = config("--backfill", "24h", "--count", "1000", "--ledger", str(tmp_path / "ledger"))
    ledger = generator.Ledger(run.ledger)
    sender = generator.Sender(producer, run, ledger, stop)
    sending = threading.Thread(target=sender.send_all, args=(generator.announced(run, stop),))
    sending.start()
    wait_until(lambda: sender.sent >= 100, "the producer is full")
    time.sleep(0.3)
    assert (sender.sent, len(producer)) == (100, 100)
    stop.set()
    sending.join()
    ledger.close()
    assert (sender.sent, sender.failed, sender.acknowledged, len(producer)) == (100, 100, 0, 0)
    rows = (tmp_path / "ledger").read_text().splitlines()[1:]
    assert [row.split(",")[1:3] for row in rows] == [["", ""]] * 100


def test_a_message_that_is_too_large_has_failed_and_the_next_is_sent() -> None:
    producer = producer_to_nowhere({"message.max.bytes": 1000})
    sender = generator.Sender(producer, config(), generator.Ledger(None), threading.Event())
    message = messages(count=1)[0]
    sender.send(message._replace(value=bytes(2000)))
    sender.send(message)
    assert (sender.sent, sender.failed, len(producer)) == (2, 1, 1)
    assert sender.failures().startswith("not acknowledged: 1 of 2 messages (1 x ")
    assert sender.failures().endswith("Message size too large)")
    producer.purge()


class SlowProducer:
    """Acknowledges one message a poll, and no more than so many of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pending: list[Any] = []

    def __len__(self) -> int:
        return len(self.pending)

    def produce(self, *_: object, on_delivery: Any) -> None:
        self.pending.append(on_delivery)

    def poll(self, _: float = 0) -> int:
        time.sleep(0.01)
        if self.pending and self.count:
            self.count -= 1
            self.pending.pop(0)(None, Stored())
        return 1

    def purge(self) -> None:
        purged = KafkaError(KafkaError._PURGE_QUEUE)
        while self.pending:
            self.pending.pop()(purged, None)


class Stored:
    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7


def sent_by(producer: Any, tmp_path: Path, *argv: str) -> tuple[generator.Sender, list[str]]:
    """What a sender has made of a run, and the rows of its ledger."""
    run, stop = config("--ledger", str(tmp_path / "ledger"), *argv), threading.Event()
    with closing(generator.Ledger(run.ledger)) as ledger:
        sender = generator.Sender(producer, run, ledger, stop)
        sender.send_all(generator.announced(run, stop))
    assert sender.sent == sender.acknowledged + sender.failed
    return sender, (tmp_path / "ledger").read_text().splitlines()[1:]


def test_a_slow_kafka_is_waited_for_as_long_as_it_acknowledges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "FLUSH_S", 0.2)
    sender, _ = sent_by(SlowProducer(100), tmp_path, "--backfill", "24h", "--count", "100")
    assert (sender.acknowledged, sender.failed) == (100, 0)
    sender, rows = sent_by(SlowProducer(60), tmp_path, "--backfill", "24h", "--count", "100")
    assert sender.failures() == (
        "not acknowledged: 40 of 100 messages (40 x Kafka does not answer)"
    )
    assert [row.split(",")[1:3] for row in rows] == [["0", "7"]] * 60 + [["", ""]] * 40


def test_an_error_that_the_library_cannot_go_on_from_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "FLUSH_S", 0.1)

    class Fatal(SlowProducer):
        def poll(self, wait_s: float = 0) -> int:
            if len(self) > 20:
                raise KafkaException(KafkaError(KafkaError._FATAL, "fenced"))
            return super().poll(wait_s)

    producer = Fatal(10**6)
    producer.pending = [lambda *_: None] * 20  # of another's
    sender, rows = sent_by(producer, tmp_path, "--backfill", "24h", "--count", "100")
    assert sender.failures() == "not acknowledged: 1 of 1 messages (1 x fenced)"
    assert len(rows) == 1


def test_a_ledger_that_cannot_be_written_ends_the_run_and_the_accounts_close(
    tmp_path: Path,
) -> None:
    run, stop = config("--backfill", "24h", "--ledger", str(tmp_path / "ledger")), threading.Event()
    producer: Any = SlowProducer(10**6)
    with (
        closing(generator.Ledger(run.ledger)) as ledger,
        suppress(OSError),  # of what closing tries once more
        Path("/dev/full").open("w", 1) as full,
    ):
        ledger.rows = csv.writer(full)
        sender = generator.Sender(producer, run, ledger, stop)
        sender.send_all(generator.announced(run, stop))
    assert ledger.trouble == "No space left on device"
    assert 0 < sender.sent == sender.acknowledged < 100


def test_a_run_ends_at_its_duration_though_kafka_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(generator, "FLUSH_S", 0.1)
    producer = producer_to_nowhere({"queue.buffering.max.messages": 100})
    sender, _ = sent_by(producer, tmp_path, "--backfill", "24h", "--duration", "0.5")
    assert (sender.sent, sender.failed) == (100, 100)


def test_progress_says_why_messages_have_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    producer = producer_to_nowhere({"message.max.bytes": 1000})
    sender = generator.Sender(producer, config(), generator.Ledger(None), threading.Event())
    message = messages(count=1)[0]._replace(value=bytes(2000))
    for _ in range(2):
        sender.send(message)
        sender.last_progress = -math.inf
        sender.report()
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert [text[:33] for text in said] == [
        "not acknowledged: 1 of 1 messages",
        "not acknowledged: 2 of 2 messages",
    ]
    sender.last_progress = -math.inf
    sender.report()  # no more of them: said once
    assert caplog.records[-1].message.startswith("progress ")


def command(*argv: str, folder: Path = PROJECT, stdout: str = "") -> tuple[int, str]:
    """The exit code and the standard error of a run in a shell."""
    line = shlex.join([sys.executable, str(folder / "sensor_generator.py"), *argv])
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} {stdout}"],
        capture_output=True, text=True, check=False, timeout=60,
        env={k: v for k, v in os.environ.items() if k != "PYTHON_DOTENV_DISABLED"},
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("argv", [["--list-sensors", "--sensors", "20000"], ["--console"]])
def test_who_reads_stdout_may_leave_and_the_disk_be_full(argv: list[str]) -> None:
    argv = [*argv, "--backfill", "1h"]
    code, err = command(*argv, stdout="| head -n 1")
    assert (code, "Traceback" in err) == (0, False)
    code, err = command(*argv, stdout="> /dev/full")
    assert code == 1
    assert err.splitlines()[-1].endswith("ERROR sensor_generator: stdout: No space left on device")


@pytest.mark.parametrize("script", ["sensor_generator.py", "kafka_to_elasticsearch.py"])
def test_settings_that_are_not_utf_8_are_one_line_and_exit_2(script: str, tmp_path: Path) -> None:
    shutil.copy(PROJECT / script, tmp_path / "sensor_generator.py")
    (tmp_path / ".env").write_bytes("KAFKA_TOPIC=éé".encode("latin-1"))
    code, err = command("--wait", "0", folder=tmp_path)
    assert code == 2
    assert err.strip().endswith(".env is not in UTF-8: save it so")
    assert len(err.splitlines()) == 1


def test_a_ledger_is_not_emptied_before_kafka_answers(tmp_path: Path) -> None:
    (ledger := tmp_path / "ledger.csv").write_text("an earlier run's\n")
    argv = ("--wait", "0", "--bootstrap-servers", "a..b:9092", "--ledger", str(ledger))
    code, err = command(*argv)  # nor is what can be no name a trace-back
    assert code == 1
    assert "Traceback" not in err
    assert ledger.read_text() == "an earlier run's\n"
