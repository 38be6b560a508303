"""The simulator alone: what it makes, and what it refuses."""

import json
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from pipelines.iot_cassandra.scripts import iot_simulator as simulator
from pipelines.iot_cassandra.scripts import sender
from pipelines.iot_cassandra.scripts.rules import InvalidReadingError, parse_reading
from pipelines.iot_cassandra.scripts.simulation import messages, paced
from pipelines.iot_cassandra.tests.conftest import HERE
from pipelines.iot_cassandra.verify import read
from pipelines.tests.unanswered import LIMIT, Unanswered, check_bound

WINTER = ("--start", "2026-01-15T00:00:00Z", "--rate", "0.01", "--seed", "1", "--console")


def values(*arguments: str) -> list[bytes]:
    """Return the messages of one run."""
    config = simulator.load_config([*WINTER, *arguments], {}, datetime.now(UTC))
    return [value for _, _, value in messages(config.simulation)]


def test_same_seed_and_start_give_the_same_bytes() -> None:
    assert values("--count", "50") == values("--count", "50")
    assert values("--count", "50") != values("--count", "50", "--seed", "2")
    assert values("--count", "50")[:10] == values("--count", "10")


def test_readings_are_valid_unique_and_below_zero_in_winter() -> None:
    made = values("--count", "2000")
    readings = [parse_reading(value) for value in made]
    assert len({(reading.sensor_id, reading.timestamp) for reading in readings}) == 2000
    assert {reading.sensor_id for reading in readings} == set(range(1, 11))
    assert min(reading.temperature for reading in readings) < -5
    assert all(read(value) for value in made)  # the verifier agrees


def test_spoiled_messages_are_no_readings_for_the_writer_and_the_verifier() -> None:
    bad = 0
    for value in values("--count", "2000", "--bad", "0.5"):
        try:
            parse_reading(value)
        except InvalidReadingError:
            bad += 1
            assert read(value) is None
        else:
            assert read(value)
    assert 900 < bad < 1100


def test_a_backfill_ends_now() -> None:
    now = datetime(2026, 6, 1, 12, tzinfo=UTC)
    config = simulator.load_config(["--backfill", "6m", "--rate", "10"], {}, now)
    made = [json.loads(value) for _, _, value in messages(config.simulation)]
    assert len(made) == 3600
    assert made[0]["timestamp"] == "2026-06-01T11:54:00.000Z"
    assert made[-1]["timestamp"] == "2026-06-01T11:59:59.900Z"


def test_a_start_with_an_offset_is_simulated_in_utc() -> None:
    local = values("--count", "9", "--start", "2026-01-15T08:00:00+02:00")
    assert local == values("--count", "9", "--start", "2026-01-15T06:00:00Z")
    assert json.loads(local[0])["timestamp"] == "2026-01-15T06:00:00.000Z"


def test_the_last_time_there_is_can_be_simulated() -> None:
    last = values("--start", "9999-12-31T23:59:00Z", "--rate", "1", "--count", "59")[-1]
    assert json.loads(last)["timestamp"] == "9999-12-31T23:59:58.000Z"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backfill", "soon"], "'soon' is no duration such as 90s, 30m, 48h or 7d"),
        (["--backfill", "0s"], "'0s' is no duration"),
        (["--console", "--ledger", "sent.csv"], "--console sends it nothing"),
        (["--rate", "2000", "--sensors", "1"], "needs more --sensors"),
        (["--rate", "0"], "'0' is not a number from 0.001"),
        (["--bad", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--bootstrap-servers", "kafka"], "'kafka' is not HOST:PORT"),
        (["--topic", "a b"], "'a b' is not 1 to 237 letters"),
        (["--start", "yesterday"], "'yesterday' is no ISO 8601 time"),
        (["--start", "0001-01-01T00:00:00+01:00"], "is no ISO 8601 time"),
        (["--start", "1899-12-31T23:59:59Z"], "beyond the years 1900 to 9999"),
        (["--start", "9999-12-31T23:59:00Z", "--rate", "0.001"], "beyond the years 1900 to 9999"),
        (["--start", "9999-12-31T23:59:00Z", "--count", "700"], "beyond the years 1900 to 9999"),
        (["--backfill", "200000d"], "beyond the years 1900 to 9999"),
        (["--count", "1" + "0" * 15, "--rate", "1"], "beyond the years 1900 to 9999"),
        (["--count", "9" * 400], "is not a whole number"),
        (["--bootstrap-servers", "kafka:99999"], "'kafka:99999' is not HOST:PORT"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        simulator.load_config(arguments, {}, datetime.now(UTC))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("stdout", "code", "said"),
    [
        ("| head -n 1", 0, " INFO iot_simulator: stopped printed="),
        ("> /dev/full", 1, " ERROR iot_simulator: stdout: No space left on device"),
        (">&-", 0, " INFO iot_simulator: stopped printed=20000"),
    ],
)
def test_who_reads_stdout_may_leave_and_the_disk_be_full(stdout: str, code: int, said: str) -> None:
    command = (
        f"{sys.executable} {HERE}/scripts/iot_simulator.py --console --backfill 1d --count 20000"
    )
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {stdout}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == code
    assert said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_flag_wins_over_the_environment() -> None:
    environ = {"IOT_TOPIC": "theirs", "KAFKA_BOOTSTRAP_SERVERS": ""}
    config = simulator.load_config(["--topic", "mine"], environ, datetime.now(UTC))
    assert (config.topic, config.bootstrap_servers) == ("mine", "localhost:9092")
    assert simulator.load_config([], environ, datetime.now(UTC)).topic == "theirs"


def test_what_is_on_its_way_is_bounded_whatever_kafka_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "MAX_PENDING", LIMIT)
    producer, stop = Unanswered(), threading.Event()
    config = simulator.load_config(["--backfill", "1d", "--count", "1000"], {}, datetime.now(UTC))
    counts: Counter[str] = Counter()

    def send() -> None:
        sent = paced(config.simulation, stop)
        ledger = sender.Ledger(None)
        counts.update(sender.publish(cast("Any", producer), "iotdata", sent, ledger, stop))

    check_bound(producer, stop, send)
    assert counts["acknowledged"] == 50
    assert counts["sent"] == counts["acknowledged"] + counts["failed"] < 200  # it was told to stop
    assert caplog.messages == ["Kafka has not stored a message: KafkaTimeoutError: closed"]


def test_a_ledger_is_not_overwritten_and_one_that_cannot_be_made_is_one_line(
    tmp_path: Path,
) -> None:
    there = tmp_path / "sent.csv"
    there.write_text("another run's")
    for ledger, said in ((there, f"{there} is there already: name another"), (tmp_path, "is there"),
                         (tmp_path / "not/there.csv", "not/there.csv: No such file")):  # fmt: skip
        command = [sys.executable, str(HERE / "scripts/iot_simulator.py"), "--ledger", str(ledger)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        assert said in ended.stderr.splitlines()[-1]
    assert there.read_text() == "another run's"
