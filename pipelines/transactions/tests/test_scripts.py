"""The scripts without servers: the generator, the rates, the score's arithmetic, the verifier."""

import argparse
import csv
import errno
import json
import math
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipelines.tests.unanswered import LIMIT, Answer, Unanswered, check_bound
from pipelines.transactions import (
    broker,
    capteur,
    consumer_spark,
    demo,
    env_file,
    prepare,
    rates,
    read,
    score,
    verify,
)
from pipelines.transactions.store import Store, StoreError

HERE = Path(__file__).resolve().parents[1]


def records(*argv: str) -> list[capteur.Record]:
    return list(capteur.all_records(capteur.load_config(argv, {})))


# The generator


def test_same_seed_same_bytes() -> None:
    argv = ["--count", "500", "--bad", "0.1", "--fraud", "0.05"]
    assert records(*argv, "--seed", "1") == records(*argv, "--seed", "1")
    assert records(*argv, "--seed", "1") != records(*argv, "--seed", "2")


def test_amounts_are_log_normal_and_dollars_most_frequent() -> None:
    made = records("--count", "20000", "--seed", "1")
    currencies = Counter(record.devise for record in made)
    assert [name for name, _ in currencies.most_common(2)] == ["USD", "EUR"]
    logs = [math.log(float(record.montant)) for record in made if record.devise == "EUR"]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))
    # Four standard errors of 4000 draws.
    assert abs(mean - math.log(capteur.MEDIAN_EUR)) < 4 * capteur.SPREAD / math.sqrt(len(logs))
    assert abs(deviation - capteur.SPREAD) < 4 * capteur.SPREAD / math.sqrt(2 * len(logs))


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
    hours = Counter(record.when.astimezone(capteur.PARIS).hour for record in made)
    assert hours[18] > 10 * hours[3] > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bad", "2"], "2 is not between 0 and 1"),
        (["--backfill", "soon"], "invalid parse_duration value: 'soon'"),
        (["--start", "yesterday"], "invalid parse_time value: 'yesterday'"),
        (["--start", "9999-12-31"], "9999-12-31 is not in the years 2000 to 2099"),
        (["--backfill", "99999999999d"], "99999999999d is longer than a hundred years"),
        (["--bootstrap-servers", "localhost:abc"], "'localhost:abc' is not HOST:PORT"),
        (["--topic", "my topic"], "'my topic' is no topic's name"),
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
    made = records(*argv, "--fraud", "1e-9")
    assert 1 < len(made) < 2000
    assert all(record.when.year <= 9999 for record in made)


def test_a_ledger_of_another_run_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    ledger = capteur.Ledger(path)
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
        capteur.Ledger(path)


def test_a_full_disk_under_the_ledger_is_said_and_the_accounts_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Answering(Unanswered):
        def send(self, *_: object, **__: object) -> Answer:
            return super().send().success(SimpleNamespace(partition=0, offset=0))

    caplog.set_level("INFO")
    ledger = capteur.Ledger(tmp_path / "ledger.csv")
    monkeypatch.setattr(capteur, "Ledger", lambda _: ledger)
    monkeypatch.setattr(capteur, "connect", lambda *_: Answering())
    config = capteur.load_config(["--count", "50", "--ledger", "x"], {})
    with suppress(OSError), Path("/dev/full").open("w", 1) as full:  # closing tries once more
        ledger.rows = csv.writer(full)
        made = capteur.all_records(config)
        assert capteur.send_to_kafka(made, config, threading.Event()) == 1
    assert "stopped sent=50 acknowledged=50 failed=0" in caplog.text
    assert caplog.messages[-1] == "--ledger x: No space left on device: it is not complete"


def test_a_full_disk_under_the_console_is_one_line() -> None:
    command = [sys.executable, str(HERE / "capteur.py"), "--console", "--count", "3"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*command, "--speed", "1e9"], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("capteur: stdout: No space left on device")
    assert "Traceback" not in ended.stderr


def test_what_has_no_outcome_at_the_end_is_counted_as_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_back = threading.Event()

    class Away(Unanswered):
        def close(self, **_: object) -> None:
            is_back.wait()

    monkeypatch.setattr(capteur, "GIVE_UP_S", 0.5)
    producer = cast("Any", Away())
    sender = capteur.Sender(producer, "t", capteur.Ledger(None), threading.Event())
    sender.send_all(iter(records("--count", "5000")))
    is_back.set()
    assert (sender.sent, sender.acknowledged, sender.failed) == (5000, 0, 5000)


def test_a_far_future_is_waited_for() -> None:
    config = capteur.load_config(["--interval", "1e9", "--speed", "0.001", "--seed", "1"], {})
    waits: list[float] = []
    stop: Any = SimpleNamespace(wait=waits.append, is_set=lambda: True)
    assert list(capteur.paced(capteur.all_records(config), config, stop)) == []
    assert waits == [threading.TIMEOUT_MAX]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--metrics-port", "0"),
        ("--metrics-port", "70000"),
        ("--metrics-port", "x"),
        ("--every", "0.00001"),  # Spark counts in milliseconds
        ("--max-records", "0"),
        ("--topic", "my topic"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        consumer_spark.load_config([flag, value], {})
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]


def test_addresses_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("localhost:abc", "localhost", "localhost:70000", "a:1,,b:2", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            broker.addresses(wrong)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "localhost:abc")
    for name in ("prepare.py", "consumer_spark.py", "capteur.py"):
        command = [sys.executable, str(HERE / name)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        assert shown.returncode == 2, name
        assert "'localhost:abc' is not HOST:PORT" in shown.stderr.splitlines()[-1]
        assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("name", ["my topic", "été", "..", "x" * 250])
def test_a_topic_s_name_that_is_none_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for script in (capteur, consumer_spark):
        with pytest.raises(SystemExit) as ended:
            script.load_config([], {"TRANSACTIONS_TOPIC": name})
        assert ended.value.code == 2
    capsys.readouterr()
    monkeypatch.setenv("TRANSACTIONS_TOPIC", name)
    monkeypatch.setattr(sys, "argv", ["prepare.py"])
    assert prepare.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prepare: TRANSACTIONS_TOPIC: {name!r} is no topic's name")


@pytest.mark.parametrize("script", [capteur, consumer_spark, demo, prepare, read, score, verify])
def test_settings_that_are_not_in_utf_8_are_one_line(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / ".env").write_bytes("S3_BUCKET=été".encode("latin-1"))
    monkeypatch.setattr(env_file, "PROJECT", tmp_path)
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    monkeypatch.setattr(sys, "argv", ["script", *["x"] * (script is verify)])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == ".env is not in UTF-8: save it so\n"


def test_what_is_empty_in_env_is_that_of_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env.example").write_text("TRANSACTIONS_METRICS_PORT=9109\nS3_ENDPOINT=http://x\n")
    (tmp_path / ".env").write_text("TRANSACTIONS_METRICS_PORT=\nS3_ENDPOINT=http://y\n")
    for module in (demo, env_file):
        monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(demo, "HERE", tmp_path)
    monkeypatch.setenv("S3_ENDPOINT", "")
    known = demo.environment()
    assert known["TRANSACTIONS_METRICS_PORT"] == "9109"
    assert known["S3_ENDPOINT"] == "http://y"


@pytest.mark.parametrize(
    "script",
    [
        "capteur.py",
        "consumer_spark.py",
        "score.py",
        "read.py",
        "verify.py",
        "prepare.py",
        "rates.py",
    ],
)
def test_every_script_explains_itself_from_any_folder(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / script), "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "Exit codes:" in shown.stdout


@pytest.mark.parametrize(
    "script", ["consumer_spark.py", "prepare.py", "read.py", "score.py", "verify.py"]
)
def test_no_credentials_is_one_line(script: str) -> None:
    shown = subprocess.run(
        [sys.executable, str(HERE / script), *["x"] * (script == "verify.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 2
    (line,) = shown.stderr.splitlines()
    assert line.endswith("are not set: copy them from pipelines/transactions/.env.example to .env")


def test_a_store_that_goes_away_meanwhile_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise OSError("the connection was refused")

    for name, value in (("MINIO_ROOT_USER", "u"), ("MINIO_ROOT_PASSWORD", "p")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Store, "check", lambda _: None)
    monkeypatch.setattr(Store, "filesystem", away)
    assert read.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "read: the bucket cannot be read: the connection was refused"
    monkeypatch.setattr(demo, "start_servers", lambda *_: (True, False))
    assert demo.main() == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(": the connection was refused")


# The store's settings


def test_a_password_is_never_shown() -> None:
    store = Store.from_env({"MINIO_ROOT_USER": "u", "MINIO_ROOT_PASSWORD": "secret"})
    assert "secret" not in repr(store)
    assert "secret" not in store.spark_options().values()  # they end up on a command line


def test_an_endpoint_that_is_none_is_refused() -> None:
    with pytest.raises(StoreError, match="does not begin with http"):
        Store.from_env(
            {"MINIO_ROOT_USER": "u", "MINIO_ROOT_PASSWORD": "p", "S3_ENDPOINT": "127.0.0.1:9000"}
        )


@pytest.mark.parametrize("bucket", ["s3://x", "a/b", "/a", "a b"])
def test_a_bucket_that_is_none_is_one_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"MINIO_ROOT_USER": "u", "MINIO_ROOT_PASSWORD": "p", "S3_BUCKET": bucket}
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["prepare.py"])
    monkeypatch.setattr(prepare, "make_topic", lambda *_: "was there")
    assert prepare.main() == 2
    said = f"prepare: S3_BUCKET={bucket} is not the name of a bucket\n"
    assert capsys.readouterr() == ("", said)


# The rates


def test_the_table_is_what_it_says() -> None:
    table = rates.read_rates(rates.RATES_FILE)
    assert table == sorted(table)
    assert {rate.currency for rate in table} == set(rates.CURRENCIES)
    assert len({(rate.day, rate.currency) for rate in table}) == len(table)
    head = rates.RATES_FILE.read_text().split("date,devise,taux")[0]
    assert "European Central Bank" in head
    assert f"days {table[0].day} to {table[-1].day}" in head
    start = datetime.fromisoformat(capteur.DEFAULT_START).date()
    assert table[0].day < start < table[-1].day


def test_the_bank_s_file_becomes_the_table(tmp_path: Path) -> None:
    bank = tmp_path / "eurofxref-hist.csv"
    bank.write_text(
        "Date,USD,JPY,CHF,GBP,EEK,\n2026-01-05,1.1,180,N/A,0.87,N/A,\n2025-12-31,1.2,181,0.9,0.88,N/A,\n"
    )
    target = tmp_path / "rates.csv"
    assert rates.main([str(bank), "--since", "2026-01-01", "--to", str(target)]) == 0
    day = date(2026, 1, 5)
    assert rates.read_rates(target) == [
        (day, "GBP", Decimal("0.87")), (day, "JPY", Decimal("180")), (day, "USD", Decimal("1.1")),
    ]  # fmt: skip
    assert rates.main([str(bank), "--since", "2027-01-01", "--to", str(target)]) == 1
    assert rates.main([str(bank), "--since", "2026-01-01", "--to", "/nonexistent/x.csv"]) == 1


def test_a_table_cut_by_a_full_disk_does_not_take_the_old_one_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A half of 180 is 18, a rate as good as any."""

    def write_half(path: Path, text: str, **_: Any) -> None:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    bank, target = tmp_path / "eurofxref-hist.csv", tmp_path / "rates.csv"
    bank.write_text("Date,USD,JPY,CHF,GBP,\n2026-01-05,1.1,180,0.9,0.87,\n")
    target.write_text("the old one\n")
    monkeypatch.setattr(Path, "write_text", write_half)
    assert rates.main([str(bank), "--since", "2026-01-01", "--to", str(target)]) == 1
    assert capsys.readouterr().err == f"rates: --to {target}: No space left on device\n"
    assert target.read_text() == "the old one\n"
    assert sorted(tmp_path.iterdir()) == [bank, target]


@pytest.mark.parametrize(
    "line", ["2026-13-01,USD,1.1", "2026-01-01,USD,zero", "2026-01-01,USD,-1", "2026-01-01,USD"]
)
def test_a_row_that_is_no_rate_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "rates.csv"
    file.write_text(f"# source\ndate,devise,taux\n2026-01-01,USD,1.1\n{line}\n")
    with pytest.raises(ValueError, match="row 2 is not date,devise,taux"):
        rates.read_rates(file)


def test_a_day_and_currency_have_one_rate(tmp_path: Path) -> None:
    file = tmp_path / "rates.csv"
    file.write_text(
        "date,devise,taux\n2026-01-01,USD,1.1\n2026-01-01,JPY,180\n2026-01-01,USD,1.1\n"
    )
    with pytest.raises(ValueError, match="row 3: USD has a rate of 2026-01-01"):
        rates.read_rates(file)


def test_a_rate_is_in_force_for_a_week_at_most() -> None:
    days = [
        day for day, *_ in rates.rates_in_force([rates.Rate(date(2026, 1, 1), "USD", Decimal(1))])
    ]
    assert (days[0], days[-1], len(days)) == (date(2026, 1, 1), date(2026, 1, 8), 8)


# The verifier: it must see each kind of error.


@dataclass(frozen=True)
class LocalStore(Store):
    """A store whose bucket is a folder."""

    folder: Path = Path()

    def filesystem(self) -> Any:
        return fs.SubTreeFileSystem(str(self.folder), fs.LocalFileSystem())


Rows = list[dict[str, Any]]
SENT = [
    # partition, offset, id, montant, devise, timestamp, label, value of a spoilt one
    (0, 0, 1, "100", "USD", "2026-10-24T10:00:00.000Z", "", ""),
    (0, 1, 2, "50.5", "EUR", "2026-10-24T10:00:01.000Z", "fraud", ""),
    (1, 0, 3, "7", "USD", "2026-10-24T10:00:02.000Z", "not_json", "{"),
    ("", "", 4, "8", "USD", "2026-10-24T10:00:03.000Z", "", ""),  # not acknowledged
    ("", "", 5, "9", "USD", "2026-10-24T10:00:04.000Z", "not_json", "["),
]


def row(offset: int, number: int, montant: str, devise: str, euros: str) -> dict[str, Any]:
    return {
        "transaction_id": number,
        "montant": Decimal(montant),
        "devise": devise,
        "montant_eur": Decimal(euros),
        "timestamp_utc": datetime(2026, 10, 24, 10, 0, offset, tzinfo=UTC),
        "timestamp_paris": datetime(2026, 10, 24, 12, 0, offset),  # noqa: DTZ001  # a local time
        "taux": None if devise == "EUR" else Decimal("1.1193"),
        "taux_date": None if devise == "EUR" else date(2026, 10, 23),
        "kafka_partition": 0,
        "kafka_offset": offset,
    }


def good_rows() -> tuple[Rows, Rows]:
    written = [row(0, 1, "100.00", "USD", "89.34"), row(1, 2, "50.50", "EUR", "50.50")]
    return written, [reject(1, 0, b"{")]


def reject(partition: int, offset: int, value: bytes, reason: str = "not_json") -> dict[str, Any]:
    place = {"kafka_partition": partition, "kafka_offset": offset}
    return {"reason": reason, "value": value, **place}


def write_ledger(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([verify.LEDGER, *rows])
    return path


OCTOBER_24 = "output/date=2026-10-24/batch_id=0"


def verdict_of(
    tmp_path: Path, written: Rows, rejected: Rows, folder: str = OCTOBER_24
) -> verify.Verdict:
    ledger = write_ledger(tmp_path / "ledger.csv", SENT)
    for name, rows in ((folder, written), ("rejects/batch_id=0", rejected)):
        target = tmp_path / "bucket" / name
        target.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), target / "part.parquet")
    unfinished = tmp_path / "bucket/output/_temporary/0/part.parquet"
    unfinished.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(written), unfinished)  # must not be counted
    store = LocalStore("http://x", "bucket", "u", "p", tmp_path)
    return verify.verify(store, [ledger], rates.RATES_FILE)


def test_the_verifier_agrees_when_all_is_right(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, *good_rows())
    assert verdict.holds
    counts = (verdict.produced, verdict.unacknowledged, verdict.written, verdict.rejected)
    assert counts == (5, 2, 2, 1)
    assert verdict.stored["USD"] == verify.Totals(1, 10_000, 8_934)


def test_a_record_without_acknowledgement_may_be_there_once(tmp_path: Path) -> None:
    written, rejected = good_rows()
    late = [{**row(3, 4, "8", "USD", "7.15"), "kafka_offset": 2}, reject(1, 1, b"[")]
    for number, (more, refused, unexpected) in enumerate(
        [
            ([late[0]], [late[1]], []),
            ([late[0], {**late[0], "kafka_offset": 3}], [], [(0, 3)]),
            ([], [late[1], reject(1, 2, b"[")], [(1, 2)]),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        verdict = verdict_of(folder, [*written, *more], [*rejected, *refused])
        assert verdict.stored_unacknowledged == len(more) + len(refused) - len(unexpected)
        assert verdict.unexpected == unexpected
        assert verdict.holds == (not unexpected)


def test_a_record_without_acknowledgement_must_be_right_too(tmp_path: Path) -> None:
    written, rejected = good_rows()
    late = {**row(3, 4, "8", "USD", "7.16"), "kafka_offset": 2}
    verdict = verdict_of(tmp_path, [*written, late], rejected)
    assert verdict.differing == [(0, 2)]
    assert not verdict.holds


def test_a_row_in_another_day_s_folder_is_seen(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, *good_rows(), folder=OCTOBER_24.replace("24", "25"))
    assert len(verdict.differing) == 2
    assert not verdict.holds


def change(name: str, value: Any) -> Callable[[Rows, Rows], tuple[Rows, Rows]]:
    return lambda written, rejected: ([{**written[0], name: value}, written[1]], rejected)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda w, r: (w[1:], r), "missing"),
        (lambda w, r: (w, [{**r[0], "kafka_offset": 9}]), "missing"),
        (lambda w, r: ([*w, w[0]], r), "doubled"),
        (lambda w, r: (w, [*r, {**r[0], "kafka_partition": 0}]), "doubled"),
        (lambda w, r: ([*w, {**w[0], "kafka_offset": 99}], r), "unexpected"),
        (lambda w, r: (w, [*r, {**r[0], "kafka_offset": 99}]), "unexpected"),
        (lambda w, r: (w, [{**r[0], "reason": "no_rate"}]), "misjudged"),
        (lambda w, r: (w[1:], [*r, {**r[0], "kafka_partition": 0}]), "misjudged"),
        (change("montant", Decimal("100.01")), "differing"),
        (change("montant_eur", Decimal("89.35")), "differing"),
        (change("devise", "GBP"), "differing"),
        (change("transaction_id", 7), "differing"),
        (change("timestamp_utc", datetime(2026, 10, 24, 11, tzinfo=UTC)), "differing"),
        (change("timestamp_paris", datetime(2026, 10, 24, 10)), "differing"),  # noqa: DTZ001
        (change("taux", Decimal("1.1194")), "differing"),
        (change("taux_date", date(2026, 10, 24)), "differing"),
        (lambda w, r: (w, [{**r[0], "value": b"{}"}]), "differing"),
    ],
)
def test_the_verifier_sees_each_error(tmp_path: Path, spoil: Any, what: str) -> None:
    verdict = verdict_of(tmp_path, *spoil(*good_rows()))
    assert getattr(verdict, what)
    assert not verdict.holds


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a,b\n"], "0.csv is not a ledger of capteur.py"),
        (["a,b\n1,2\n"], "0.csv is not a ledger of capteur.py"),
        (["HEADER0,0,one,5,USD,2026-10-24T10:00:00Z,,\n"], "of capteur.py: line 2"),
        (["HEADER0,0,1\n"], "of capteur.py: line 2"),
        (["HEADER"], "no record in "),
        (["HEADERROW", "HEADERROW"], "1.csv: partition, offset (0, 0) were named before"),
        ([], "No such file"),
    ],
)  # fmt: skip
def test_a_ledger_that_says_nothing_is_one_line(
    texts: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("MINIO_ROOT_USER", "u"), ("MINIO_ROOT_PASSWORD", "p")):
        monkeypatch.setenv(name, value)
    parts = {
        "HEADER": ",".join(verify.LEDGER) + "\n",
        "ROW": "0,0,1,5,USD,2026-10-24T10:00:00Z,,\n",
    }
    paths = [tmp_path / f"{number}.csv" for number in range(max(1, len(texts)))]
    for path, text in zip(paths, texts, strict=False):
        for name, part in parts.items():
            text = text.replace(name, part)
        path.write_text(text)
    assert verify.main([str(path) for path in paths]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_is_on_its_way_is_bounded_whatever_kafka_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capteur, "MAX_PENDING", LIMIT)
    producer, stop = Unanswered(), threading.Event()
    sender = capteur.Sender(cast("Any", producer), "topic", capteur.Ledger(None), stop)
    config = capteur.load_config(["--backfill", "24h", "--count", "1000"], {})

    def send() -> None:
        sender.send_all(capteur.paced(capteur.all_records(config), config, stop))

    check_bound(producer, stop, send)
    assert (sender.acknowledged, len(sender.pending)) == (50, 0)
    assert sender.sent == sender.acknowledged + sender.failed < 200  # it was told to stop
