"""The verifier, on a folder instead of a bucket: it must see each kind of error."""

import csv
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.transactions import rates, verify
from pipelines.transactions.ledger import COLUMNS
from pipelines.transactions.tests.conftest import FolderStore

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
        csv.writer(file).writerows([COLUMNS, *rows])
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
    store = FolderStore("http://x", "bucket", "u", "p", tmp_path)
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
        (["x" * 200_000], "field larger than field limit"),
        (["HEADERROW", "HEADERROW"], "1.csv: partition, offset (0, 0) were named before"),
        ([], "No such file"),
    ],
)  # fmt: skip
def test_a_ledger_that_says_nothing_is_one_line(
    texts: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = {
        "HEADER": ",".join(COLUMNS) + "\n",
        "ROW": "0,0,1,5,USD,2026-10-24T10:00:00Z,,\n",
    }
    paths = [tmp_path / f"{number}.csv" for number in range(max(1, len(texts)))]
    for path, text in zip(paths, texts, strict=False):
        for name, part in parts.items():
            text = text.replace(name, part)
        path.write_text(text)
    assert verify.main([f"--ledger={path}" for path in paths]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_is_not_finished_is_no_file(tmp_path: Path) -> None:
    """Killed in the first batch, the consumer leaves a folder and nothing finished in it."""
    (tmp_path / "bucket/output/_temporary/0").mkdir(parents=True)
    (tmp_path / "bucket/output/_temporary/0/part.parquet").write_bytes(b"PAR1")
    store = FolderStore("http://x", "bucket", "u", "p", tmp_path)
    ledger = write_ledger(tmp_path / "ledger.csv", SENT)
    assert len(verify.verify(store, [ledger], rates.RATES_FILE).missing) == 3


def test_a_table_of_rates_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rates.csv").write_text("date,devise,taux\n2026-01-02,CHF,zero\n")
    monkeypatch.setattr(verify, "HERE", tmp_path)
    assert verify.main(["--ledger", "x"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
