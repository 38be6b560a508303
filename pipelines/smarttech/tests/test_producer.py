"""The producer: the same seed gives the same bytes, and each label says the truth."""

import errno
import json
import subprocess
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from kafka.errors import TopicAuthorizationFailedError

from pipelines.smarttech import kafka_producer, plain_rules, prepare, sender, transforms, verdict
from pipelines.smarttech.ledger import Ledger
from pipelines.smarttech.simulation import Simulation
from pipelines.tests.unanswered import LIMIT, Unanswered, check_bound

from .helpers import NOW, Scripts, messages

ALL = ("--bad", "0.2", "--duplicate", "0.1", "--late", "0.1", "--spike", "0.1")


def test_the_same_seed_and_start_give_the_same_bytes() -> None:
    assert messages(*ALL) == messages(*ALL)
    assert messages(*ALL) != messages(*ALL, "--start", "2025-12-16")


def test_a_message_is_that_of_the_assignment() -> None:
    reading = json.loads(messages()[0].value)
    assert list(reading) == list(transforms.FIELDS) == list(plain_rules.FIELDS)
    assert (reading["timestamp"], reading["device_id"]) == ("2025-12-15T10:00:00Z", "sensor_001")
    assert (reading["type"], reading["unit"]) == ("temperature", "C")


def test_without_faults_all_are_new_readings_in_order() -> None:
    rows = [
        {"partition": 0, "offset": i, "value": m.value, "kafka_timestamp": NOW + timedelta(days=1)}
        for i, m in enumerate(messages())
    ]
    judged = list(plain_rules.judge(rows, timedelta(minutes=10)))
    assert Counter(fate for _, fate, _ in judged) == {"silver": 5000}
    assert {reading.type for _, _, reading in judged if reading} == set(plain_rules.RANGES)


def test_each_message_is_what_its_label_says() -> None:
    sent = messages(*ALL)
    rows = [
        {"partition": 0, "offset": i, "value": m.value, "kafka_timestamp": NOW + timedelta(days=1)}
        for i, m in enumerate(sent)
    ]
    fates = Counter(
        (message.label, fate)
        for message, (_, fate, _) in zip(
            sent, plain_rules.judge(rows, timedelta(minutes=10)), strict=True
        )
    )
    for (label, fate), number in fates.items():
        allowed = {"late": ("silver", "too_late"), "duplicate": ("duplicate",)}
        usual = ("silver",) if label in verdict.VALID_LABELS else (label,)
        assert fate in allowed.get(label, usual), (label, fate, number)
    assert {label for label, _ in fates} == {
        "reading", "spike", "duplicate", "late",
        "bad_json", "missing_field", "wrong_type", "bad_timestamp", "wrong_unit", "out_of_range",
    }  # fmt: skip
    assert fates["late", "too_late"] > 0
    assert fates["late", "silver"] > 0


def test_a_backfill_ends_now() -> None:
    config = kafka_producer.load_options(["--backfill", "1h", "--rate", "2"], {}, NOW)
    assert (config.start, config.count) == (NOW - timedelta(hours=1), 7200)


@pytest.mark.parametrize(
    "argv",
    [
        ["--backfill", "soon"], ["--bad", "1.5"], ["--bad", "0.6", "--late", "0.6"],
        ["--rate", "0"], ["--rate", "20000"], ["--count", "0"], ["--topic", "no spaces"],
        ["--count", "1000000000000"],
        ["--start", "9999-12-31T23:59:59+00:00", "--backfill", "5s"],
        ["--start", "1999-12-31"], ["--start", "soon"], ["--late", "0.2", "--rate", "1000"],
    ],
)  # fmt: skip
def test_a_wrong_option_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        kafka_producer.load_options(argv, {}, NOW)
    assert exit_info.value.code == 2
    said = capsys.readouterr().err
    assert argv[0] in said
    assert "invalid" not in said  # what is allowed, not the name of a function


def test_a_reader_that_has_had_enough_is_no_fault() -> None:
    script = [sys.executable, kafka_producer.__file__, "--console", "--backfill", "6h"]
    with subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0
    assert "ERROR" not in err
    assert "Exception" not in err
    assert len(err.splitlines()) == 1  # what it simulates


def test_a_closed_stdout_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as after the shell's >&-
    monkeypatch.setattr(kafka_producer, "stop_on_signals", lambda _: None)
    assert kafka_producer.main(["--console", "--backfill", "1s"]) == 0


def test_a_disk_that_is_full_is_said_of_what_is_printed() -> None:
    script = [sys.executable, kafka_producer.__file__, "--console", "--backfill", "3s"]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(script, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    _, line = ended.stderr.splitlines()  # what it simulates, and:
    assert line.endswith("stdout: No space left on device")


def test_a_ledger_that_cannot_be_written_says_why() -> None:
    ledger = Ledger(Path("/dev/full"))
    ledger.note(messages(count=1)[0], None)
    assert ledger.error
    assert ledger.error.errno == errno.ENOSPC
    ledger.close()


def test_a_ledger_that_cannot_be_opened_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    scripts = Scripts("127.0.0.1:1", "none", tmp_path / "lake")
    _, err = scripts.call(kafka_producer.main, "--ledger", str(tmp_path / "file/x"), code=2)
    assert err.endswith("Not a directory\n")


def test_a_topic_that_the_broker_does_not_make_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Mock(side_effect=TopicAuthorizationFailedError)
    monkeypatch.setattr(prepare, "make_topic", refused)
    assert prepare.main(["--wait", "0"]) == 1
    [line] = caplog.messages
    assert line.startswith("localhost:9092 does not make topic=sensor_data ([Error 29]")
    assert line.endswith("create sensor_data by hand")


def test_what_has_no_outcome_at_the_end_is_counted_as_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    is_back = threading.Event()

    class Away(Unanswered):
        def close(self, **_: object) -> None:
            is_back.wait()

    monkeypatch.setattr(sender, "GIVE_UP_S", 0.5)
    producer, ledger = cast("Any", Away()), Ledger(tmp_path / "ledger.csv")
    sending = sender.Sender(producer, "topic", ledger, threading.Event())
    sending.send_all(messages(count=100))
    producer.acknowledge(100)  # too late: it is noted already
    is_back.set()
    assert (sending.sent, sending.acknowledged, sending.failed) == (100, 0, 100)
    # Before it is closed: a killed producer leaves what it has noted.
    assert (tmp_path / "ledger.csv").read_text().count("\n,,") == 100
    ledger.close()


def test_what_is_on_its_way_is_bounded_whatever_kafka_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "MAX_PENDING", LIMIT)
    producer, stop = Unanswered(), threading.Event()
    ledger = Ledger(None)
    sending = sender.Sender(cast("Any", producer), "topic", ledger, stop)
    config = kafka_producer.load_options(["--backfill", "1000s"], {}, NOW)
    made = Simulation(config).messages()

    def send() -> None:
        sending.send_all(kafka_producer.paced(made, config, stop))

    check_bound(producer, stop, send)
    assert (sending.acknowledged, sending.pending) == (50, {})
    assert sending.sent == sending.acknowledged + sending.failed < 200  # it was told to stop
