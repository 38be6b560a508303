"""The table of exchange rates: made of the bank's file, read, in force on a day."""

import errno
import sys
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipelines.transactions import capteur, rates


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


def test_the_bank_s_file_becomes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    cut = tmp_path / "cut.csv"
    cut.write_text("Date,USD,JPY,CHF,GBP,\n2026-01-05,1.1,180\n")
    assert rates.main([str(cut), "--since", "2026-01-01", "--to", str(target)]) == 1
    with pytest.raises(SystemExit):
        rates.main([str(bank), "--since", "soon"])
    assert "'soon' is not a day such as 2026-01-31" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", None)  # as after the shell's >&-
    assert rates.main([str(bank), "--since", "2026-01-01", "--to", str(target)]) == 0
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
    "line",
    [
        "2026-13-01,USD,1.1", "2026-01-01,USD,zero", "2026-01-01,USD,-1", "2026-01-01,USD",
        "2026-01-02,USD,1.1234567", "2026-01-02,USD,Infinity", "2026-01-02,USD,1\xa01",
    ],
)  # fmt: skip
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
