"""The producer: the same seed gives the same bytes, and each label says the truth."""

import json
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, cast

import pytest

from pipelines.smarttech import kafka_producer, transforms, verify
from pipelines.tests.unanswered import LIMIT, Unanswered, check_bound

NOW = datetime(2025, 12, 15, 10, tzinfo=UTC)
ALL = ("--bad", "0.2", "--duplicate", "0.1", "--late", "0.1", "--spike", "0.1")


def messages(*argv: str, count: int = 5000) -> list[kafka_producer.Message]:
    config = kafka_producer.load_config(["--seed", "1", *argv], {}, NOW)
    return list(islice(kafka_producer.Simulation(config).messages(), count))


def test_the_same_seed_and_start_give_the_same_bytes() -> None:
    assert messages(*ALL) == messages(*ALL)
    assert messages(*ALL) != messages(*ALL, "--start", "2025-12-16")


def test_a_message_is_that_of_the_assignment() -> None:
    reading = json.loads(messages()[0].value)
    assert list(reading) == list(transforms.FIELDS) == list(verify.FIELDS)
    assert (reading["timestamp"], reading["device_id"]) == ("2025-12-15T10:00:00Z", "sensor_001")
    assert (reading["type"], reading["unit"]) == ("temperature", "C")


def test_without_faults_all_are_new_readings_in_order() -> None:
    rows = [
        {"partition": 0, "offset": i, "value": m.value, "kafka_timestamp": NOW + timedelta(days=1)}
        for i, m in enumerate(messages())
    ]
    judged = list(verify.judge(rows, timedelta(minutes=10)))
    assert Counter(fate for _, fate, _ in judged) == {"silver": 5000}
    assert {reading.type for _, _, reading in judged if reading} == set(verify.RANGES)


def test_each_message_is_what_its_label_says() -> None:
    sent = messages(*ALL)
    rows = [
        {"partition": 0, "offset": i, "value": m.value, "kafka_timestamp": NOW + timedelta(days=1)}
        for i, m in enumerate(sent)
    ]
    fates = Counter(
        (message.label, fate)
        for message, (_, fate, _) in zip(
            sent, verify.judge(rows, timedelta(minutes=10)), strict=True
        )
    )
    for (label, fate), number in fates.items():
        allowed = {"late": ("silver", "too_late"), "duplicate": ("duplicate",)}
        usual = ("silver",) if label in verify.VALID_LABELS else (label,)
        assert fate in allowed.get(label, usual), (label, fate, number)
    assert {label for label, _ in fates} == {
        "reading", "spike", "duplicate", "late",
        "bad_json", "missing_field", "wrong_type", "bad_timestamp", "wrong_unit", "out_of_range",
    }  # fmt: skip
    assert fates["late", "too_late"] > 0
    assert fates["late", "silver"] > 0


def test_at_once_ends_now() -> None:
    config = kafka_producer.load_config(["--at-once", "--count", "7200", "--rate", "2"], {}, NOW)
    assert config.start == NOW - timedelta(hours=1)


@pytest.mark.parametrize(
    "argv",
    [
        ["--at-once"], ["--bad", "1.5"], ["--bad", "0.6", "--late", "0.6"], ["--rate", "0"],
        ["--rate", "20000"], ["--count", "0"], ["--topic", "no spaces"],
        ["--console", "--folder", "x"],
        ["--count", "1000000000000", "--at-once"],
        ["--start", "9999-12-31T23:59:59+00:00", "--at-once", "--count", "5"],
        ["--start", "0001-01-01T00:00:00+05:00"],
    ],
)  # fmt: skip
def test_a_wrong_option_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        kafka_producer.load_config(argv, {}, NOW)
    assert exit_info.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_a_reader_that_has_had_enough_is_no_fault() -> None:
    script = [sys.executable, kafka_producer.__file__, "--console", "--at-once", "--count", "20000"]
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


def test_what_is_on_its_way_is_bounded_whatever_kafka_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_producer, "MAX_PENDING", LIMIT)
    producer, stop = Unanswered(), threading.Event()
    ledger = kafka_producer.Ledger(None)
    sender = kafka_producer.Sender(cast("Any", producer), "topic", ledger, stop)
    config = kafka_producer.load_config(["--at-once", "--count", "1000"], {}, NOW)
    made = kafka_producer.Simulation(config).messages()

    def send() -> None:
        sender.send_all(kafka_producer.paced(made, config, stop))

    check_bound(producer, stop, send)
    assert (sender.acknowledged, sender.pending) == (50, {})
    assert sender.sent == sender.acknowledged + sender.failed < 200  # it was told to stop
