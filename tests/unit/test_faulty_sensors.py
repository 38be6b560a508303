"""Faults that are asked for: each is what its label says, and the ledger notes every message."""

import csv
import hashlib
import json
import math
import subprocess
import sys
import threading
import zlib
from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from kafka.errors import KafkaTimeoutError
from kafka.future import Future

import sensor_generator as generator
from kafka_to_elasticsearch import parse_reading
from tests.conftest import PROJECT
from tools import faulty_sensors as faulty
from tools.faulty_sensors import FAULTS, LIMITS, Message

PERIOD = ("--start", "2026-06-01", "--backfill", "2h")


def options(*argv: str) -> Namespace:
    return faulty.parse_options(["--seed", "7", *argv])


def begun(*argv: str) -> tuple[Namespace, threading.Event]:
    """Return the options of a run that begins now, and its flag."""
    run, stop = options(*argv), threading.Event()
    generator.start_clock(run, stop)
    return run, stop


def sent(*argv: str) -> list[Message]:
    """Return what is sent in a period of two hours."""
    return list(faulty.messages(*begun(*PERIOD, *argv)))


def with_faults(**rates: float) -> list[str]:
    return [f"--fault={kind}={rate}" for kind, rate in rates.items()]


def shown_s(message: Message) -> float:
    """Return the time that a reading shows, as epoch seconds."""
    return datetime.fromisoformat(json.loads(message.value)["timestamp"]).timestamp()


def test_same_seed_gives_the_same_faults_as_ever() -> None:
    """The checksum is that of the generator that had the faults in it."""
    rates = dict.fromkeys(FAULTS, 0.02) | {"dropout": 0.0005}
    lines = b"".join(message.value + b"\n" for message in sent(*with_faults(**rates)))
    shown = lines.decode(errors="backslashreplace").encode()  # as --console prints it
    assert hashlib.sha256(shown).hexdigest()[:16] == "8171105d294a05cc"


def test_without_faults_the_bytes_are_those_of_the_generator() -> None:
    assert [message[:2] for message in sent()] == list(generator.messages(*begun(*PERIOD)))


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_labelled_and_only_the_malformed_are_refused(kind: str) -> None:
    found = sent(*with_faults(**{kind: 0.05}))
    labels = {message.label.partition(":")[0] for message in found}
    assert labels == ({""} if kind == "dropout" else {"", kind})
    for message in found:
        if message.label.startswith("malformed"):
            assert message.reading_id == ""
            with pytest.raises(ValueError, match=r"\w"):
                parse_reading(message.value)
        else:
            reading = parse_reading(message.value)
            assert message.reading_id == f"{reading.sensor_id}@{reading.timestamp}"
            assert message.value == json.dumps(msgspec.structs.asdict(reading)).encode()


def test_all_faults_together_never_give_two_readings_one_id() -> None:
    rates = dict.fromkeys(FAULTS, 0.02) | {"dropout": 0.0005}  # else it is soon silent
    found = sent(*with_faults(**rates), "--rate", "20", "--sensors", "2", "--count", "20000")
    values: dict[str, bytes] = {}
    for message in found:
        if message.reading_id:
            assert values.setdefault(message.reading_id, message.value) == message.value
    kinds = {part.partition(":")[0] for message in found for part in message.label.split("+")}
    assert kinds == {"", *FAULTS} - {"dropout"}


def test_a_fault_changes_nothing_about_the_other_readings() -> None:
    plain = {message.reading_id: message for message in sent()}
    both = [m for m in sent(*with_faults(spike=0.1, late=0.1)) if not m.label]
    assert len(both) > 10_000
    assert all(plain[message.reading_id] == message for message in both)


def by_label(kind: str, rate: float, *argv: str) -> list[tuple[Any, Any]]:
    """Return the readings with the fault, each with the same one without it."""
    plain = {m.reading_id: json.loads(m.value) for m in sent(*argv)}
    found = [m for m in sent(*argv, *with_faults(**{kind: rate})) if m.label]
    assert found
    return [(json.loads(m.value), plain[m.reading_id]) for m in found]


def test_a_spike_is_one_field_far_off() -> None:
    pairs = by_label("spike", 0.1)
    assert len(pairs) / len(sent()) == pytest.approx(0.1, abs=0.01)
    for reading, good in pairs:
        (changed,) = (name for name in LIMITS if reading[name] != good[name])
        low, high = LIMITS[changed]
        assert abs(reading[changed] - good[changed]) > 0.25 * (high - low)


def test_a_drift_grows_and_ends() -> None:
    pairs = by_label("drift", 0.001, "--sensors", "1")
    off = [reading["temperature"] - good["temperature"] for reading, good in pairs]
    assert max(off) > 0.5
    assert min(off) < 0.1
    assert len(off) < len(sent("--sensors", "1"))


def test_a_wrong_unit_is_the_share_instead_of_the_percentage() -> None:
    for reading, good in by_label("unit", 0.001):
        assert reading == {**good, "humidity": round(good["humidity"] / 100, 3)}


def test_a_stuck_sensor_repeats_itself_and_shows_no_other_fault_of_its_values() -> None:
    last: dict[str, list[Any]] = {}
    frozen = 0
    for message in sent(*with_faults(stuck=0.05, spike=0.2, drift=0.01)):
        reading = json.loads(message.value)
        values = [reading[name] for name in LIMITS]
        if values == last.get(message.sensor_id):
            assert message.label == "stuck"
            frozen += 1
        last[message.sensor_id] = values
    assert frozen > 1000


def test_a_clock_that_is_ahead_shows_later_times() -> None:
    run, stop = begun(*PERIOD, "--sensors", "1", *with_faults(clock_skew=0.001))
    faults = faulty.Faults(run, "sensor_001")
    ahead = [
        shown_s(message) - due_ms / 1000
        for time_ms, reading in generator.readings(run, stop)
        for due_ms, message in faults.messages(time_ms, reading)
        if message.label
    ]
    assert 60 <= min(ahead) <= max(ahead) <= 3601


def test_silence_lasts_and_nothing_else_is_missing() -> None:
    plain = sent("--sensors", "1")
    found = sent("--sensors", "1", *with_faults(dropout=0.003))
    gaps = [shown_s(b) - shown_s(a) for a, b in pairwise(found)]
    assert max(gaps) > 60
    assert sorted(gaps)[len(gaps) // 2] < 3.001
    assert set(found) < set(plain)


@pytest.mark.parametrize(
    "argv", [["--duration", "0.1"], ["--start", "2026-06-01", "--backfill", "1h"]]
)
def test_silence_ends_with_the_duration_or_the_period(argv: list[str]) -> None:
    assert list(faulty.messages(*begun(*with_faults(dropout=1), *argv))) == []


def test_what_is_late_comes_a_minute_to_an_hour_after_its_time() -> None:
    newest_s: dict[str, float] = {}
    for message in sent(*with_faults(late=0.05)):
        late_s = newest_s.get(message.sensor_id, 0.0) - shown_s(message)
        assert 57 < late_s < 3601 if message.label else late_s < 0
        newest_s[message.sensor_id] = max(newest_s.get(message.sensor_id, 0.0), shown_s(message))


def test_a_duplicate_is_the_same_bytes_again() -> None:
    found = sent(*with_faults(duplicate=0.05))
    again = [message for message in found if message.label]
    first = {message.value for message in found if not message.label}
    assert len(again) > 500
    assert {message.value for message in again} < first
    assert len(first) == len(sent())


@pytest.mark.parametrize("rates", [{"out_of_order": 1}, {"out_of_order": 0.2, "late": 0.3}])
def test_out_of_order_is_said_of_what_comes_after_a_newer_one_only(rates: dict[str, float]) -> None:
    newest_s: dict[str, float] = {}
    labelled = 0
    for message in sent(*with_faults(**rates)):
        if "late" in message.label:
            continue
        is_older = shown_s(message) < newest_s.get(message.sensor_id, -math.inf)
        assert ("out_of_order" in message.label) == is_older
        newest_s[message.sensor_id] = max(newest_s.get(message.sensor_id, 0.0), shown_s(message))
        labelled += is_older
    assert labelled > 500


# The ledger


class Stored(NamedTuple):
    """As kafka-python's RecordMetadata."""

    partition: int
    offset: int


class FakeProducer:
    """Stores the first messages, refuses the next one, and does not answer for the others."""

    def __init__(self, stores: int) -> None:
        self.stores = stores
        self.outcomes: list[Future] = []
        self.closed = threading.Event()

    def send(self, *_: object) -> Future:
        self.outcomes.append(outcome := Future())
        if len(self.outcomes) <= self.stores:
            return outcome.success(Stored(2, len(self.outcomes)))
        if len(self.outcomes) == self.stores + 1:
            return outcome.failure(KafkaTimeoutError("too late"))
        return outcome

    def close(self) -> None:
        self.closed.wait()


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProducer]:
    monkeypatch.setattr(generator, "GIVE_UP_S", 0.1)
    made = FakeProducer(stores=60)
    yield made
    made.closed.set()


def test_the_ledger_notes_every_message_and_where_it_is_stored(
    producer: FakeProducer, tmp_path: Path
) -> None:
    file = tmp_path / "ledger.csv"
    argv = (*PERIOD, "--count", "100", *with_faults(malformed=0.1, drift=0.1))
    run, stop = begun(*argv, "--ledger", str(file))
    sender = faulty.FaultySender(producer, run, stop)
    assert sender.run(faulty.messages(run, stop)) == 1
    for outcome in producer.outcomes[61:]:
        outcome.success(Stored(0, 0))  # after the end: it changes nothing
    rows = list(csv.DictReader(file.read_text().splitlines()))
    expected = sent("--count", "100", *with_faults(malformed=0.1, drift=0.1))
    noted = {(row["id"], row["label"], row["crc32"]) for row in rows}
    assert noted == {(m.reading_id, m.label, f"{zlib.crc32(m.value):08x}") for m in expected}
    where = [(row["partition"], row["offset"]) for row in rows]
    assert where == [("2", str(offset)) for offset in range(1, 61)] + [("", "")] * 40
    assert any(row["label"].startswith("malformed:") and not row["id"] for row in rows)


def test_a_ledger_that_cannot_be_written_ends_the_run(
    producer: FakeProducer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    producer.stores = 10**9
    producer.closed.set()
    run, stop = begun(*PERIOD, "--ledger", "/dev/full")
    sender = faulty.FaultySender(producer, run, stop)
    assert sender.run(faulty.messages(run, stop)) == 1
    assert caplog.messages[-1] == "--ledger /dev/full: No space left on device: stopped there"
    run = options("--ledger", str(tmp_path))
    with pytest.raises(OSError, match=f"^--ledger {tmp_path}: Is a directory$"):
        faulty.FaultySender(producer, run, stop)


# The command


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--fault", "gremlins=0.1"], "'gremlins' is none of spike, drift"),
        (["--fault", "spike=2"], "--fault: '2' is not a number from 0 to 1"),
        (["--fault", "spike=much"], "--fault: 'much' is not a number from 0 to 1"),
        (["--fault", "spike"], "--fault: '' is not a number from 0 to 1"),
        (["--console", "--ledger", "ledger.csv"], "not with --console"),
    ],
)
def test_wrong_usage_is_exit_2_and_a_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options(*argv)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_it_runs_as_a_module() -> None:
    argv = ["--console", "--seed", "7", *PERIOD, "--count", "5", "--fault", "spike=1"]
    command = [sys.executable, "-m", "tools.faulty_sensors", *argv]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = [message.value for message in sent("--count", "5", *with_faults(spike=1))]
    assert ended.stdout.splitlines() == expected


def test_an_earlier_ledger_is_kept_while_kafka_does_not_answer(tmp_path: Path) -> None:
    (ledger := tmp_path / "ledger.csv").write_text("an earlier run's\n")
    argv = ["--wait", "0", "--bootstrap-servers", "a..b:9092", "--ledger", str(ledger)]
    assert faulty.main(argv) == 1
    assert ledger.read_text() == "an earlier run's\n"
