"""The generator without a server: its transactions, its pace, its ledger, its accounts."""

import csv
import io
import itertools
import json
import math
import sys
import threading
from collections import Counter
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipelines.tests.unanswered import LIMIT, Answer, Unanswered, check_bound
from pipelines.transactions import capteur
from pipelines.transactions import sender as sender_module
from pipelines.transactions.ledger import Ledger
from pipelines.transactions.sender import Sender
from pipelines.transactions.simulation import MEDIAN_EUR, PARIS, SPREAD, Record, all_records


def records(*argv: str) -> list[Record]:
    """Return what is made of the options, at the hours of a shop."""
    options = ["--backfill", "30000d", *argv]
    return list(all_records(capteur.load_config(options, {}).simulation))


def test_same_seed_same_bytes() -> None:
    argv = ["--count", "500", "--bad", "0.1", "--fraud", "0.05"]
    assert records(*argv, "--seed", "1") == records(*argv, "--seed", "1")
    assert records(*argv, "--seed", "1") != records(*argv, "--seed", "2")


def test_live_there_is_one_a_second_at_any_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the exercise asks, with a clock that runs as fast as it is waited for."""
    config = capteur.load_config(["--count", "200", "--seed", "1"], {})
    now, stop = 0.0, threading.Event()

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(stop, "wait", wait)
    monkeypatch.setattr(capteur, "time", SimpleNamespace(monotonic=lambda: now))
    made = all_records(config.simulation)
    sent = [now for _ in capteur.paced(made, config.simulation.start, stop)]
    assert sent == list(range(200))


def test_amounts_are_log_normal_and_dollars_most_frequent() -> None:
    made = records("--count", "20000", "--seed", "1")
    currencies = Counter(record.devise for record in made)
    assert [name for name, _ in currencies.most_common(2)] == ["USD", "EUR"]
    logs = [math.log(float(record.montant)) for record in made if record.devise == "EUR"]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))
    # Four standard errors of 4000 draws.
    assert abs(mean - math.log(MEDIAN_EUR)) < 4 * SPREAD / math.sqrt(len(logs))
    assert abs(deviation - SPREAD) < 4 * SPREAD / math.sqrt(2 * len(logs))


def test_a_record_is_the_json_of_the_report() -> None:
    for record in records("--count", "1000", "--seed", "3"):
        told = json.loads(record.value, parse_float=Decimal, parse_int=Decimal)
        assert list(told) == ["transaction_id", "montant", "devise", "timestamp"]
        assert told["montant"] == Decimal(record.montant) > 0
        assert told["montant"] == round(told["montant"], 0 if told["devise"] == "JPY" else 2)
        assert datetime.fromisoformat(told["timestamp"]).tzinfo is not None


def test_rates_of_faults_and_times_are_as_asked_for() -> None:
    made = records(
        "--count", "20000", "--seed", "4", "--bad", "0.05", "--fraud", "0.02", "--interval", "30"
    )
    labels = Counter(record.label for record in made)
    frauds, bad = labels.pop("fraud"), sum(labels.values()) - labels[""]
    assert abs(frauds - 400) < 5 * math.sqrt(400)
    assert abs(bad - 1000) < 5 * math.sqrt(1000)
    span = (made[-1].when - made[0].when).total_seconds()
    assert span == pytest.approx(20_000 * 30 / 1.02, rel=0.1)
    hours = Counter(record.when.astimezone(PARIS).hour for record in made)
    assert hours[18] > 10 * hours[3] > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bad", "2"], "'2' is not a number from 0 to 1"),
        (["--backfill", "soon"], "'soon' is not a duration such as 90s, 48h or 7d"),
        (["--start", "yesterday"], "'yesterday' is not an ISO 8601 time or now"),
        (["--start", "9999-12-31"], "9999-12-31 is not in the years 2000 to 2099"),
        (["--backfill", "99999999999d"], "99999999999d is longer than a hundred years"),
        (["--console", "--ledger", "x"], "--console sends it nothing"),
    ],
)
def test_wrong_usage_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        capteur.load_config(argv, {})
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_calendar_has_an_end() -> None:
    argv = ["--start", "2099-12-31T23:00:00Z", "--interval", "1e9", "--seed", "1"]
    live = list(all_records(capteur.load_config(argv, {}).simulation))
    for made in (records(*argv, "--fraud", "1e-9"), live):
        assert 1 < len(made) < 2000
        assert all(record.when.year <= 9999 for record in made)


def test_a_ledger_of_another_run_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    ledger = Ledger(path)
    spoilt, right = records("--count", "1", "--bad", "1")[0], records("--count", "1")[0]
    ledger.note(right, 0, 7)
    noted = path.read_text()  # before it is closed: a killed run leaves what it has noted
    assert noted.splitlines()[1].startswith("0,7,1,")
    assert noted.splitlines()[1].endswith(",,")
    ledger.note(spoilt, "", "")
    ledger.close()
    with path.open(newline="") as file:
        assert list(csv.DictReader(file))[1]["value"] == spoilt.value.decode()
    with pytest.raises(FileExistsError):
        Ledger(path)


def test_a_full_disk_under_the_ledger_is_said_and_the_accounts_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Answering(Unanswered):
        def send(self, *_: object, **__: object) -> Answer:
            return super().send().success(SimpleNamespace(partition=0, offset=0))

    caplog.set_level("INFO")
    ledger = Ledger(tmp_path / "ledger.csv")
    monkeypatch.setattr(capteur, "Ledger", lambda _: ledger)
    monkeypatch.setattr(capteur, "connect", lambda *_: Answering())
    config = capteur.load_config(["--count", "50", "--ledger", "x"], {})
    with suppress(OSError), Path("/dev/full").open("w", 1) as full:  # closing tries once more
        ledger.rows = csv.writer(full)
        made = all_records(config.simulation)
        assert capteur.send_to_kafka(made, config, threading.Event()) == 1
    assert "stopped sent=50 acknowledged=50 failed=0" in caplog.text
    assert caplog.messages[-1] == "--ledger x: No space left on device: it is not complete"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_a_bar_while_a_backfill_is_sent(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(capteur, "connect", lambda *_: Unanswered())
    config = capteur.load_config(["--backfill", "48h", "--count", "50"], {})
    made = all_records(config.simulation)
    assert capteur.send_to_kafka(made, config, threading.Event()) == 1
    assert ("sending:   0%|          | 0/50 " in stderr.getvalue()) == is_terminal


def test_what_has_no_outcome_at_the_end_is_counted_as_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_back = threading.Event()

    class Away(Unanswered):
        def close(self, **_: object) -> None:
            is_back.wait()

    monkeypatch.setattr(sender_module, "GIVE_UP_S", 0.5)
    producer = cast("Any", Away())
    sender = Sender(producer, "t", Ledger(None), threading.Event())
    sender.send_all(iter(records("--count", "5000")))
    is_back.set()
    assert (sender.sent, sender.acknowledged, sender.failed) == (5000, 0, 5000)


def test_what_is_on_its_way_is_bounded_whatever_kafka_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "MAX_PENDING", LIMIT)
    producer, stop = Unanswered(), threading.Event()
    sender = Sender(cast("Any", producer), "topic", Ledger(None), stop)
    made = iter(records("--count", "1000"))

    def send() -> None:
        sender.send_all(itertools.takewhile(lambda _: not stop.is_set(), made))

    check_bound(producer, stop, send)
    assert (sender.acknowledged, len(sender.pending)) == (50, 0)
    assert sender.sent == sender.acknowledged + sender.failed < 200  # it was told to stop
