"""The generator without Kafka: values, times, pacing, options, accounts, exit codes."""

import hashlib
import io
import json
import logging
import math
import os
import random
import re
import shlex
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import combinations, islice, pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from kafka.future import Future

import sensor_generator as generator
from stack.servers import free_port
from tests.conftest import PROJECT

START = datetime(2026, 3, 2, 12, tzinfo=UTC)


def options(*argv: str) -> Namespace:
    """Return the options of a run with seed 7, unless the arguments name another."""
    return generator.parse_options(generator.option_parser(""), ["--seed", "7", *argv])


def started(*argv: str) -> tuple[Namespace, threading.Event]:
    """Return the options of a run whose clock has just been started, and its stop flag."""
    run, stop = options(*argv), threading.Event()
    generator.start_clock(run, stop)
    return run, stop


def sent(*argv: str) -> list[bytes]:
    """Return the values of all messages of a run."""
    return [value for _, value in generator.messages(*started(*argv))]


def readings(*argv: str) -> list[dict[str, Any]]:
    """Return the readings of a run whose simulated clock starts at START."""
    return [json.loads(value) for value in sent("--start", START.isoformat(), *argv)]


def times(found: list[dict[str, Any]]) -> list[datetime]:
    """Return the time of each reading."""
    return [datetime.fromisoformat(reading["timestamp"]) for reading in found]


# Values


@pytest.mark.parametrize(
    ("argv", "checksum"),
    [
        ("--start 2026-06-01 --backfill 24h --count 2000", "73cb6380638eb6f3"),
        (
            "--start 2026-10-24T20:00 --backfill 12h --interval 60 600 --sensors 40 --count 2000",
            "3fe0c8229ec8deda",
        ),
        ("--start 2026-02-28T23:59 --backfill 1h --rate 4999 --count 2000", "5ef9f0590f9d54f4"),
        ("--start 1969-12-31T23:59 --backfill 5m --interval 0.001 0.5", "1947c9b91a18e353"),
    ],
)
def test_the_same_seed_and_start_give_the_same_bytes(argv: str, checksum: str) -> None:
    """The checksums were noted from the first version of the script."""
    lines = b"".join(value + b"\n" for value in sent(*argv.split()))
    assert hashlib.sha256(lines).hexdigest()[:16] == checksum


def test_live_accelerated_and_backfill_give_the_same_readings() -> None:
    argv = ("--rate", "200", "--count", "60")
    live = readings(*argv)
    assert live == readings(*argv, "--speed", "50") == readings(*argv, "--backfill", "1m")
    assert len(live) == 60
    assert live != readings(*argv, "--backfill", "1m", "--seed", "8")


def test_a_sensor_does_not_depend_on_the_number_of_sensors() -> None:
    few, many = (readings("--backfill", "5m", "--sensors", n) for n in ("3", "9"))
    ours, theirs = ([r for r in found if r["sensor_id"] == "sensor_002"] for found in (few, many))
    assert ours == theirs
    assert len(ours) > 100


def test_weather_does_not_depend_on_the_start() -> None:
    step = int(START.timestamp() * 1000) // generator.CITY_STEP_MS
    late = generator.city_at(5, step + 500)
    for remembered in (generator.city_at, generator.hourly_drift, generator.innovation):
        remembered.cache_clear()
    generator.city_at(5, step)
    assert generator.city_at(5, step + 500) == late


def month() -> list[tuple[datetime, generator.City]]:
    """Return the city's state at each hour of March."""
    hours = [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(24 * 31)]
    steps = [int(hour.timestamp() * 1000) // generator.CITY_STEP_MS for hour in hours]
    return [(h, generator.city_at(3, step)) for h, step in zip(hours, steps, strict=True)]


def measured(place: int, field: str, city: list[generator.City]) -> list[float]:
    """Return what a sensor at a place reads in these states of the city."""
    noise = random.Random(1)
    return [generator.measure(generator.PLACES[place], c, noise, 0)[field] for c in city]


def test_nights_are_dark_and_days_are_bright() -> None:
    lux = {hour: [c.daylight_lux for h, c in month() if h.hour == hour] for hour in (0, 12)}
    assert max(lux[0]) < 1
    assert 5000 < min(lux[12]) < max(lux[12]) < 120_000


def test_humidity_falls_as_the_air_warms_within_a_day() -> None:
    correlations = []
    for day in range(31):
        city = [c for _, c in month()[24 * day : 24 * day + 24]]
        fields = (measured(0, field, city) for field in ("temperature", "humidity"))
        correlations.append(statistics.correlation(*fields))
    assert statistics.mean(correlations) < -0.5


def test_working_days_have_more_co2_than_days_off() -> None:
    working, off = ([c for h, c in month() if (h.weekday() < 5) is day] for day in (True, False))
    crossroads = 2
    more_ppm, less_ppm = (measured(crossroads, "co2_level", days) for days in (working, off))
    assert statistics.mean(more_ppm) > statistics.mean(less_ppm) + 5


def test_all_places_share_the_weather() -> None:
    park, roof = (measured(place, "temperature", [c for _, c in month()]) for place in (0, 4))
    assert statistics.correlation(park, roof) > 0.95


def test_sensors_agree_more_the_nearer_they_are() -> None:
    sensors = [generator.Sensor(1, number) for number in range(1, 41)]
    hours = range(500_000, 500_000 + 24 * 60)
    by_hour = [[sensor.hourly_patch(hour) for sensor in sensors] for hour in hours]
    patches = list(zip(*by_hour, strict=True))
    for patch in patches:
        assert abs(statistics.mean(patch)) < 0.6
        assert 0.6 < statistics.stdev(patch) < 1.4
    near, far = [], []
    for (one, ours), (other, theirs) in combinations(zip(sensors, patches, strict=True), 2):
        distance_km = math.dist((one.east_km, one.north_km), (other.east_km, other.north_km))
        if distance_km < 1:
            near.append(statistics.correlation(ours, theirs))
        elif distance_km > 6:
            far.append(statistics.correlation(ours, theirs))
    assert min(len(near), len(far)) > 10
    assert statistics.mean(near) > 0.8
    assert abs(statistics.mean(far)) < 0.2


@pytest.mark.parametrize(("month", "height"), [(6, 64.6), (12, 17.7)])
def test_the_noon_sun_at_the_solstices_has_its_known_height(month: int, height: float) -> None:
    """It is 90 - latitude +/- 23.44 degrees."""
    day = datetime(2026, month, 21, tzinfo=UTC)
    noon = max(generator.sun_elevation_deg(day + timedelta(minutes=m)) for m in range(1440))
    assert noon == pytest.approx(height, abs=0.3)


def test_the_plot_tool_prints_where_the_sensors_stand() -> None:
    command = [sys.executable, "-m", "tools.plot_month", "--sensors", "7"]
    shown = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    header, *rows = shown.splitlines()
    assert header == "sensor      place         km E  km N     °C   ppm   sky  lamps lx"
    assert len(rows) == 7
    assert rows[6].split() == ["sensor_007", "school", "+0.7", "-1.0", "+0.3", "+45", "80%", "15"]


# Times


def test_five_sensors_by_default_every_one_to_three_seconds() -> None:
    found = readings("--backfill", "15m")
    assert {r["sensor_id"] for r in found} == {f"sensor_00{n}" for n in range(1, 6)}
    assert times(found) == sorted(times(found))
    first = times([r for r in found if r["sensor_id"] == "sensor_001"])
    gaps = [(b - a).total_seconds() for a, b in pairwise(first)]
    assert 0.999 <= min(gaps) < 1.2
    assert 2.8 < max(gaps) <= 3.001


@pytest.mark.parametrize("rate", [1, 3, 7.5, 1000, 4999])
def test_rate_spaces_the_readings_evenly(rate: float) -> None:
    found = readings("--rate", str(rate), "--count", "500", "--backfill", "1h")
    exact = [START + timedelta(seconds=k / rate) for k in range(500)]
    late = [e - f for e, f in zip(exact, times(found), strict=True)]
    assert timedelta(0) <= min(late) <= max(late) < timedelta(milliseconds=1)
    assert len({(r["sensor_id"], r["timestamp"]) for r in found}) == 500


def test_a_backfill_ends_now_or_begins_at_the_start_that_is_given() -> None:
    before = datetime.now(UTC)
    found = times([json.loads(value) for value in sent("--backfill", "10m")])
    seconds = timedelta(seconds=3.1)
    assert abs(found[0] - (before - timedelta(minutes=10))) < seconds + (datetime.now(UTC) - before)
    assert before - seconds < found[-1] < datetime.now(UTC)
    found = times(readings("--backfill", "2m"))
    assert START < found[0] < START + seconds
    assert START + timedelta(minutes=2) - seconds < found[-1] < START + timedelta(minutes=2)


def test_readings_end_with_the_year_9998() -> None:
    argv = ("--start", "9998-12-31T23:59", "--interval", "10", "10", "--speed", "1e6")
    found = times([json.loads(value) for value in sent(*argv)])
    assert len(found) == 25
    assert max(found) < datetime(9999, 1, 1, tzinfo=UTC)


def test_a_sensor_is_made_at_its_first_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Noted(generator.Sensor):
        def __init__(self, seed: int, number: int) -> None:
            super().__init__(seed, number)
            made.append(number)

    monkeypatch.setattr(generator, "Sensor", Noted)
    run, stop = started("--sensors", "1000", "--rate", "1000", "--backfill", "1h")
    assert len(list(islice(generator.readings(run, stop), 3))) == 3
    assert made == [1, 2, 3]


# The end of a run


def test_a_stop_while_thousands_of_sensors_start_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, stop = started("--sensors", "100000")
    named: list[int] = []

    def name(number: int) -> str:
        named.append(number)
        if len(named) == 50:
            stop.set()
        return "a sensor"

    monkeypatch.setattr(generator, "sensor_name", name)
    assert list(generator.messages(run, stop)) == []
    assert len(named) == 50


@pytest.mark.parametrize(
    ("argv", "count"),
    [
        ("--interval 999 999 --duration 0.1", 0),
        ("--interval 999 999 --duration 0.1 --backfill 100d --speed 0.001", 0),
        ("--interval 9 9 --backfill 8s --speed 0.001", 0),
        ("--rate 0.001 --count 1", 1),  # the next is due in 1000 s
    ],
)
def test_a_run_without_due_readings_ends_in_time(argv: str, count: int) -> None:
    """It ends at --duration, at the end of the period, or when --count is reached."""
    assert len(sent(*argv.split())) == count


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_waiting_run_with_exit_code_0(signum: signal.Signals) -> None:
    command = [sys.executable, "sensor_generator.py", "--console", "--interval", "999", "999"]
    kept: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=PROJECT, **kept)
    assert process.stderr
    assert "simulating" in process.stderr.readline()  # the handlers are installed before this line
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert re.fullmatch(r".* INFO sensor_generator: stopped printed=0\n", err)


def command(*argv: str, folder: Path = PROJECT, stdout: str = "") -> tuple[int, str]:
    """Return the exit code and the standard error of a run in a shell."""
    line = shlex.join([sys.executable, str(folder / "sensor_generator.py"), *argv])
    environ = {n: v for n, v in os.environ.items() if n != "PYTHON_DOTENV_DISABLED"}
    shell = ["bash", "-c", f"set -o pipefail; {line} {stdout}"]
    ended = subprocess.run(shell, capture_output=True, text=True, check=False, env=environ)
    assert not re.search("Traceback|Exception", ended.stderr)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("stdout", "code", "last"),
    [
        ("| head -n 1", 0, "INFO sensor_generator: stopped printed="),
        ("> /dev/full", 1, "ERROR sensor_generator: stdout: No space left on device\n"),
        (">&-", 1, "ERROR sensor_generator: stdout: Bad file descriptor\n"),
        ("> /dev/null 2>&-", 0, ""),
        ("> /dev/null 2> /dev/full", 0, ""),
    ],
)
def test_an_output_that_fails_ends_the_run_with_one_line(stdout: str, code: int, last: str) -> None:
    found, err = command("--console", "--backfill", "1h", stdout=stdout)
    assert found == code
    assert last in err.splitlines(keepends=True)[-1] if last else err == ""


def test_the_console_prints_the_bytes_that_are_sent(capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["--start", "2026-06-01", "--backfill", "1m"]
    assert generator.main(["--console", "--seed", "7", *argv]) == 0
    assert capfd.readouterr().out.encode() == b"".join(value + b"\n" for value in sent(*argv))


def test_a_reader_that_stands_still_holds_no_generator_up() -> None:
    """A pipe that is full blocks a write, which would hear neither --duration nor a signal."""
    argv = [sys.executable, "sensor_generator.py", "--console", "--backfill", "30d"]
    stopped = []
    for more, signum in ((["--duration", "1"], None), ([], signal.SIGTERM)):
        with subprocess.Popen(
            [*argv, *more], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.read(1)  # it has begun; nobody reads on
            if signum:
                process.send_signal(signum)
            stopped.append(process.wait(timeout=60))
    assert stopped == [0, 0]


# Options and settings


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--count", "0"], "--count: '0' is not a whole number from 1 to 1e+12"),
        (["--sensors", "1000000000000"], "--sensors: '1000000000000' is not a whole number from"),
        (["--interval", "3", "1"], "MIN 3 is above MAX 1"),
        (["--interval", "0", "1"], "--interval: '0' is not a number from 0.001"),
        (["--rate", "nan"], "--rate: 'nan' is not a number"),
        (["--rate", "10000"], "--sensors 10 or more"),
        (["--rate", "5", "--interval", "1", "2"], "--interval: not allowed with argument --rate"),
        (["--seed", "x"], "--seed: 'x' is not a whole number"),
        (["--start", "yesterday"], "--start: 'yesterday' is not an ISO 8601 time such as"),
        (["--start", "0001-01-01T00:00:00+05:00"], "the year is not between 2 and 9998"),
        (["--backfill", "10y"], "--backfill: '10y' is not a duration such as 90s, 15m, 24h or"),
        (["--backfill", "0h"], "'0h' is not a duration"),
        (["--backfill", "36501d"], "at most 36500d"),
        (["--duration", "-1"], "--duration: '-1' is not a number from 0"),
        (["--wait", "inf"], "--wait"),
        (["--metrics-port", "65536"], "--metrics-port: '65536' is not a whole number from 1 to"),
        (["--metrics-port", "9000", "--console"], "not with --console"),
        (["--topic", " "], "--topic: ' ' is not"),
        (["--bootstrap-servers", " "], "--bootstrap-servers: ' ' is not"),
        (["--start", " "], "--start: ' ' is not"),
        (["--backfill", ""], "--backfill: '' is not"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_line_that_says_what_is_allowed(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options(*argv)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert words in line
    assert not re.search(r"parse_|server_list|topic_name|invalid \w+ value", line)


def test_a_flag_wins_over_the_environment_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert options().topic == "smart-city-sensors"
    monkeypatch.setenv("KAFKA_TOPIC", "from-environment")
    assert options().topic == "from-environment"
    assert options("--topic", "from-flag").topic == "from-flag"
    monkeypatch.setenv("KAFKA_TOPIC", "")
    assert options().topic == "smart-city-sensors"
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", " ")
    with pytest.raises(SystemExit):
        options()
    assert "' ' is not HOST:PORT" in capsys.readouterr().err


def test_a_wrong_line_of_env_exits_with_2_and_is_not_shown(tmp_path: Path) -> None:
    """tests/contract/test_contract.py has the other wrong lines."""
    shutil.copy(PROJECT / "sensor_generator.py", tmp_path)
    (tmp_path / ".env").write_text("A=1\n\nKAFKA_TOPIC: s3cret\n")
    code, err = command("--console", "--count", "1", folder=tmp_path)
    assert code == 2
    assert re.fullmatch(r".* ERROR .*/\.env, line 3: not NAME=VALUE, or a quote .*\n", err)
    assert "s3cret" not in err


# Kafka is away, refuses or is replaced by a fake


@pytest.mark.parametrize("server", ["127.0.0.1", "[::1]", "a..b"])
def test_an_unreachable_kafka_is_waited_for_and_then_exits_with_1(server: str) -> None:
    where = f"{server}:{free_port()}"
    code, err = command("--bootstrap-servers", where, "--wait", "1")
    assert code == 1
    reason = "label" if server == "a..b" else "ECONNREFUSED"
    said = (
        rf"ERROR sensor_generator: Kafka does not answer at {re.escape(where)} \(.*{reason}.*\): "
    )
    assert re.search(said + "is it started", err.splitlines()[-1])
    assert all("WARNING sensor_generator: waiting for" in line for line in err.splitlines()[:-1])


TOO_LATE = KafkaTimeoutError("Failed to update metadata")


@pytest.mark.parametrize(
    ("logged", "raised", "shown"),
    [
        (
            "<BrokerConnection <authenticating> [IPv4]>: Closing connection. [Error 58] "
            "SaslAuthenticationFailedError: invalid credentials",
            TOO_LATE,
            "Closing connection. [Error 58] SaslAuthenticationFailedError: invalid credentials",
        ),
        ("Topic t is not authorized for this client", TOO_LATE, "Topic t is not authorized for"),
        ("'a_b' is not a valid topic name", TOO_LATE, "'a_b' is not a valid topic name"),
        ("", ssl.SSLError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]\nself"), "[SSL: CERTIFICATE_VERIFY"),
        ("Topic t not found in cluster metadata", TOO_LATE, "Topic t not found in cluster metada"),
    ],
)
def test_a_refusal_by_kafka_is_a_setup_error_in_kafka_s_words(
    logged: str, raised: Exception, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic that is not found may be created soon; it is a refusal only after --wait."""

    def producer(**_: object) -> None:
        if logged:
            logging.getLogger("kafka.conn").error(logged)
        raise raised

    monkeypatch.setattr(generator, "KafkaProducer", producer)
    generator.configure_logging()
    wait = "0" if "not found" in logged else "60"
    with pytest.raises(generator.SetupError) as refusal:
        generator.connect(options("--wait", wait), threading.Event())
    assert str(refusal.value).startswith(f"Kafka at localhost:9092 refuses: {shown}"[:70])
    assert "\n" not in str(refusal.value)


class FakeProducer:
    """Takes messages; close() acknowledges `acknowledges` of them, one by one."""

    def __init__(self, acknowledges: int = 0) -> None:
        self.left = acknowledges
        self.pending: list[Future] = []
        self.closed = threading.Event()

    def send(self, topic: str, value: bytes, key: bytes) -> Future:
        self.pending.append(Future())
        return self.pending[-1]

    def close(self) -> None:
        while self.pending and self.left:
            time.sleep(0.001)
            self.left -= 1
            self.pending.pop(0).success("where it is stored")
        if self.pending:  # kafka-python waits without limit as well
            self.closed.wait()


@pytest.fixture
def producer() -> Iterator[FakeProducer]:
    made = FakeProducer()
    yield made
    made.closed.set()


def sender(producer: Any, *argv: str) -> tuple[generator.Sender, Iterator[tuple[str, bytes]]]:
    """Return a sender, and the messages of its run."""
    run, stop = started("--backfill", "24h", *argv)
    return generator.Sender(producer, run, stop), generator.messages(run, stop)


def test_pending_messages_are_bounded_and_given_up_at_the_end(
    producer: FakeProducer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(generator, "MAX_PENDING", 100)
    monkeypatch.setattr(generator, "GIVE_UP_S", 0.1)
    ours, to_send = sender(producer, "--duration", "0.3")
    assert ours.run(to_send) == 1
    assert len(producer.pending) == 100
    assert caplog.messages[-2].startswith("stopped sent=100 acknowledged=0 failed=100 ")
    assert caplog.messages[-1].endswith("100 of 100 messages (100 x Kafka does not answer)")


def test_the_end_waits_as_long_as_kafka_acknowledges(
    producer: FakeProducer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(generator, "GIVE_UP_S", 0.5)
    producer.left = 1000
    ours, to_send = sender(producer, "--count", "1000")
    assert ours.run(to_send) == 0
    assert caplog.messages[-1].startswith("stopped sent=1000 acknowledged=1000 failed=0 ")
    producer.left = 60
    ours, to_send = sender(producer, "--count", "100")
    assert ours.run(to_send) == 1
    assert caplog.messages[-2].startswith("stopped sent=100 acknowledged=60 failed=40 ")
    assert caplog.messages[-1].endswith("40 of 100 messages (40 x Kafka does not answer)")


def test_an_error_of_closing_is_a_log_line_and_the_outcomes_are_waited_for(
    producer: FakeProducer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acknowledge() -> None:
        for outcome in producer.pending:
            outcome.success("where it is stored")

    def close() -> None:
        threading.Timer(0.2, acknowledge).start()
        raise RuntimeError("in the middle")

    monkeypatch.setattr(producer, "close", close)
    ours, to_send = sender(producer, "--count", "10")
    assert ours.run(to_send) == 0
    assert "kafka-python could not be closed (in the middle)" in caplog.text


def test_a_refused_message_counts_as_failed_and_the_next_is_sent(
    producer: FakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    ours, to_send = sender(producer)
    ours.send(*next(to_send))
    producer.pending.pop().failure(MessageSizeTooLargeError("of 2000 bytes"))
    ours.send(*next(to_send))
    ours.last_report = -math.inf
    ours.report()
    assert ours.accounts() == [2, 0, 1]
    assert caplog.messages == ["not acknowledged: 1 of 2 messages (1 x MessageSizeTooLargeError)"]


def test_a_topic_that_a_new_broker_does_not_know_yet_is_waited_for(
    producer: FakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, to_send = sender(producer)
    first, second = next(to_send), next(to_send)
    monkeypatch.setattr(ours.stop, "wait", lambda _: ours.stop.is_set())  # without the seconds
    answers: Iterator[Any] = iter([no_topic, no_topic, producer.send])
    monkeypatch.setattr(producer, "send", lambda *message: next(answers)(*message))
    ours.send(*first)
    assert len(producer.pending) == 1
    assert ours.accounts() == [1, 0, 0]
    monkeypatch.setattr(producer, "send", no_topic)
    ours.stop.set()
    ours.send(*second)
    assert ours.accounts() == [2, 0, 1]


def no_topic(*_: object) -> Future:
    raise TOO_LATE


def test_the_report_says_why_kafka_is_waited_for(
    producer: FakeProducer, caplog: pytest.LogCaptureFixture
) -> None:
    generator.configure_logging()
    ours, to_send = sender(producer)
    ours.last_report = ours.last_outcome = -math.inf
    ours.report()
    assert caplog.messages == []  # no message is pending
    ours.send(*next(to_send))
    for logged in ("socket\ndisconnected", ""):
        generator.library_error.text = ""
        if logged:
            logging.getLogger("kafka.conn").error("<Connection>: %s", logged)
        ours.last_report = -math.inf
        ours.report()
    assert [r.getMessage() for r in caplog.records if r.name == generator.log.name] == [
        "waiting for Kafka (socket disconnected)",
        "waiting for Kafka (it does not answer)",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("argv", "terminal", "is_shown"),
    [
        (["--backfill", "24h", "--count", "300"], Terminal, True),
        (["--backfill", "24h", "--count", "300"], io.StringIO, False),
        (["--rate", "1000", "--count", "300"], Terminal, False),
    ],
)
def test_a_backfill_shows_a_bar_on_a_terminal(
    argv: list[str], terminal: type[io.StringIO], is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", found := terminal())
    run, stop = started(*argv)
    assert generator.Sender(FakeProducer(300), run, stop).run(generator.messages(run, stop)) == 0
    assert ("300/300" in found.getvalue()) == is_shown


def test_prometheus_reads_the_accounts_on_the_metrics_port(producer: FakeProducer) -> None:
    port = free_port()
    producer.left = 2
    ours, to_send = sender(producer, "--metrics-port", str(port), "--count", "3")

    def shown() -> dict[str, str]:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        return dict(re.findall(rf'^{generator.METRIC}_total{{outcome="(\w+)"}} (\d+)', text, re.M))

    assert shown() == {"sent": "0", "acknowledged": "0", "failed": "0"}
    for message in to_send:
        ours.send(*message)
    for future in producer.pending[:2]:
        future.success("where it is stored")
    assert shown() == {"sent": "3", "acknowledged": "2", "failed": "0"}
    with pytest.raises(generator.SetupError, match=f"--metrics-port {port}: Address already in us"):
        sender(producer, "--metrics-port", str(port))
