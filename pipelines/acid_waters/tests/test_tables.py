"""The three files are read, Excel and CSV alike, or refused by the name of a cell; no servers."""

import re
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from pipelines.acid_waters import make_sample, tables
from pipelines.acid_waters.hdfs.reference import read_files
from pipelines.acid_waters.settings import SAMPLE


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


METHOD: list[Any] = ["P", "NA", 2000, None, "A", "B"]
HEADER: list[Any] = list(tables.METHODS.columns)


def test_empty_cells_at_the_right_are_no_columns(tmp_path: Path) -> None:
    """As a spreadsheet has them that are coloured, or were filled once."""
    write_excel(tmp_path / "Methods.xlsx", [[*HEADER, None, ""], [*METHOD, "", None], ["", None]])
    (tmp_path / "M.csv").write_text(";".join([*HEADER, "", ""]) + "\nP;NA;2000;;A;B;;\n;;;;;;;\n")
    expected = dict(zip(HEADER, ["P", "NA", "2000", None, "A", "B"], strict=True))
    for name in ("Methods.xlsx", "M.csv"):
        assert list(tables.read_table(tmp_path / name, tables.METHODS)) == [expected]


def test_a_value_that_has_no_column_is_named_by_its_cell(tmp_path: Path) -> None:
    write_excel(tmp_path / "Methods.xlsx", [HEADER, METHOD, [*METHOD, None, "lost"]])
    with pytest.raises(tables.TableError, match="cell H3 has no column's name above it"):
        rows_of(tmp_path, tables.METHODS, ".xlsx")


@pytest.mark.parametrize("formula", ["=2000+1", '=IF(A1="x",1,2)'])
def test_a_formula_without_its_value_is_named_by_its_cell(formula: str, tmp_path: Path) -> None:
    """As programs write it that do not calculate: a reader would take it for an empty cell."""
    row = [*METHOD[:2], formula, *METHOD[3:]]
    write_excel(tmp_path / "Methods.xlsx", [HEADER, METHOD, row])
    with pytest.raises(tables.TableError, match=r"cell C3 is a formula whose value .* save it"):
        rows_of(tmp_path, tables.METHODS, ".xlsx")


def test_a_formula_with_its_value_is_read(tmp_path: Path) -> None:
    file = tmp_path / "Methods.xlsx"
    write_excel(file, [HEADER, [*METHOD[:2], "=2000+1", *METHOD[3:]]])
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    parts[sheet] = re.sub(rb"</f><v\s*/>|</f><v></v>", b"</f><v>2001</v>", parts[sheet])
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert [row["START_YEAR"] for row in rows_of(tmp_path, tables.METHODS, ".xlsx")] == ["2001"]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("METHOD", "EPA\0 200", "row 2, column METHOD has a NUL character"),
        ("METHOD_DESCRIPTION", "é" * 501, "column METHOD_DESCRIPTION is too long: 1002 bytes"),
        ("START_YEAR", "about 1980", "column START_YEAR 'about 1980' is not a number"),
    ],
)
def test_what_cannot_be_used_of_the_reference_is_refused_at_once(
    column: str, value: str, says: str, tmp_path: Path
) -> None:
    row = {**dict(zip(HEADER, ["P", "NA", "2000", "", "A", "B"], strict=True)), column: value}
    (tmp_path / "Methods.csv").write_text(";".join(HEADER) + "\n" + ";".join(row.values()) + "\n")
    with pytest.raises(tables.TableError, match=says):
        read_files(tmp_path)
