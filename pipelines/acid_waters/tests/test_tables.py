"""Files, lots and faults, without servers."""

import hashlib
import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from pipelines.acid_waters import make_sample, tables, verify
from pipelines.acid_waters.kafka import kafka_producer as producer

SAMPLE = Path(__file__).resolve().parents[1] / "sample"


def rows_of(folder: Path, table: tables.Table, suffix: str) -> list[tables.Row]:
    (file,) = folder.glob(f"{table.name}*{suffix}")
    return list(tables.read_table(file, table))


@pytest.mark.parametrize(
    ("table", "rows"), [(tables.SAMPLES, 760), (tables.METHODS, 217), (tables.SITES, 12)]
)
def test_excel_and_csv_are_read_as_the_same_texts(table: tables.Table, rows: int) -> None:
    excel = rows_of(SAMPLE, table, ".xlsx")
    assert len(excel) == rows
    assert excel == rows_of(SAMPLE, table, ".csv")


def test_the_shipped_sample_is_what_the_command_makes(tmp_path: Path) -> None:
    assert make_sample.main([str(tmp_path)]) == 0
    for shipped in sorted(SAMPLE.glob("*.csv")):
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes()
    for table in (tables.SAMPLES, tables.METHODS, tables.SITES):
        assert rows_of(tmp_path, table, ".xlsx") == rows_of(SAMPLE, table, ".xlsx")
    assert make_sample.main([str(tmp_path), "--seed", "7"]) == 0
    name = "LTM_Data_sample.csv"
    assert (tmp_path / name).read_bytes() != (SAMPLE / name).read_bytes()


def test_the_sample_has_the_traps_of_the_release() -> None:
    raw = (SAMPLE / "LTM_Data_sample.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    assert raw.count(b"\r\n") == 761
    assert b";1 528;" in raw
    assert b"/2020 00:00:00;" in raw
    assert any(len(row["DATE_SMP"] or "") > 10 for row in rows_of(SAMPLE, tables.SAMPLES, ".csv"))
    sites = rows_of(SAMPLE, tables.SITES, ".csv")
    assert "040576" in {row["SITE_ID"] for row in sites}
    assert len({row["SITE_ID"] for row in sites}) < len(sites)
    assert {row["LAKE_RET"] for row in sites} == {None}
    methods = rows_of(SAMPLE, tables.METHODS, ".csv")
    assert "NA" in {row["PARAMETER"] for row in methods}
    assert any("\n" in (row["METHOD_DESCRIPTION"] or "") for row in methods)


def test_excel_numbers_have_the_digits_that_excel_shows() -> None:
    shown = {5.7 - 4e-16: "5.7", 0.1 + 0.2: "0.3", 12: "12", 1e-9: "0.000000001"}
    for value, text in shown.items():
        assert tables.cell_text(value, "PH_LAB", tables.SAMPLES) == text


def write_excel(file: Path, rows: list[list[Any]]) -> None:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in rows:
        sheet.append(row)
    book.save(file)


def test_a_bad_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(tables.TableError, match=r"^no LTM_Data\*\.xlsx or \.csv in "):
        tables.find_file(tmp_path, tables.SAMPLES)
    (tmp_path / "Methods.xlsx").write_bytes(b"no zip")
    with pytest.raises(tables.TableError, match="not an Excel file"):
        rows_of(tmp_path, tables.METHODS, ".xlsx")
    write_excel(tmp_path / "Methods.xlsx", [["PROGRAM_ID", "PARAMETER"]])
    with pytest.raises(tables.TableError, match="not the columns of Methods: START_YEAR, END_YEAR"):
        rows_of(tmp_path, tables.METHODS, ".xlsx")
    (tmp_path / "Methods.csv").write_text(";".join(tables.METHODS.columns) + "\nA;B\n")
    with pytest.raises(tables.TableError, match="row 2 has 2 cells, not 6"):
        rows_of(tmp_path, tables.METHODS, ".csv")
    (tmp_path / "Methods_2.csv").touch()
    (tmp_path / "Methods.xlsx").unlink()
    with pytest.raises(tables.TableError, match="several files"):
        tables.find_file(tmp_path, tables.METHODS)


def lots(*arguments: str) -> list[producer.Lot]:
    config = producer.load_config(["--data", str(SAMPLE), *arguments], {})
    return list(producer.lots_to_send(config))


def test_lots_hold_the_file_in_order_and_say_what_is_in_them() -> None:
    found = lots()
    assert [lot.size for lot in found] == [100] * 7 + [60]
    assert [lot.sequence for lot in found] == list(range(1, 9))
    assert [lot.first_row for lot in found] == list(range(1, 800, 100))
    assert found[0].batch_id == "LTM_Data_sample-000001"
    rows = [json.loads(line) for lot in found for line in lot.value.splitlines()]
    assert rows == rows_of(SAMPLE, tables.SAMPLES, ".csv")
    for lot in found:
        assert lot.checksum == hashlib.sha256(lot.value).hexdigest()
        assert dict(lot.headers())["size"] == str(len(lot.value.splitlines())).encode()
    assert lots() == found
    assert lots("--first", "3", "--count", "2") == found[2:4]


@pytest.mark.parametrize("name", ["LTM_Data (1).csv", "LTM_Data_é.csv", f"LTM_Data{'a' * 191}.csv"])
def test_a_file_must_have_a_name_that_lots_may_have(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes((SAMPLE / "LTM_Data_sample.csv").read_bytes())
    with pytest.raises(
        tables.TableError, match="lots are named after it: give it a name of letters"
    ):
        lots("--data", str(tmp_path))


@pytest.mark.parametrize("kind", producer.FAULTS)
def test_a_fault_spoils_its_lot_only(kind: str) -> None:
    good, sent = lots(), lots("--fault", f"{kind}=2")
    spoilt = [lot for lot in sent if lot.sequence == 2]
    assert [lot for lot in sent if lot.sequence != 2] == [good[0], *good[2:]]
    assert spoilt == [good[1]] * 2 if kind == "duplicate" else spoilt != [good[1]]
    if kind not in ("checksum", "duplicate"):
        assert spoilt[0].checksum == hashlib.sha256(spoilt[0].value).hexdigest()


@pytest.mark.parametrize(
    "faults",
    [
        *itertools.permutations(producer.FAULTS, 2),
        producer.FAULTS,
        ("long", "long", "short", "short", "json", "json"),
    ],
)
@pytest.mark.parametrize("size", ["1", "2"])
def test_faults_may_fall_on_one_lot(faults: tuple[str, ...], size: str) -> None:
    several = [f"--fault={kind}=2" for kind in faults]
    sent = lots("--lot-size", size, "--count", "3", *several)
    assert {lot.sequence for lot in sent} == {1, 2, 3}
    assert sent == lots("--lot-size", size, "--count", "3", *several[::-1])  # in their own order


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lot-size", "0"], "'0' is not a number from 1 on"),
        (["--interval", "nan"], "'nan' is not a number from 0 on"),
        (["--fault", "short"], "'short' is not KIND=LOT, KIND of short, long"),
        (["--fault", "rust=1"], "'rust=1' is not KIND=LOT"),
    ],
)
def test_a_bad_argument_is_said(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        producer.load_config(arguments, {})
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_flag_wins_over_environment_over_default() -> None:
    assert producer.load_config([], {}).topic == "water-quality"
    assert producer.load_config([], {"WATER_TOPIC": "a"}).topic == "a"
    assert producer.load_config(["--topic", "b"], {"WATER_TOPIC": "a"}).topic == "b"


class AskedPath(BaseHTTPRequestHandler):
    """Answers with the path that it was asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_hdfs_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), AskedPath) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        hdfs = verify.WebHdfs(f"http://127.0.0.1:{server.server_port}", "hdfs://x:8020/root")
        assert hdfs.ask("folder", "LISTSTATUS") == b"/webhdfs/v1/root/folder?op=LISTSTATUS"
