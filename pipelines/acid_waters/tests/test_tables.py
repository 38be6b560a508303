"""The three files are read, Excel and CSV alike, or refused by the name of a cell; no servers."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from pipelines.acid_waters import make_sample, tables
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
    # One that is not closed takes the other rows into its cell.
    (tmp_path / "Methods.csv").write_text(";".join(tables.METHODS.columns) + '\nA;B;2000;;C;"D\n')
    with pytest.raises(tables.TableError, match=r"Methods\.csv: unexpected end of data"):
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


def test_values_that_are_elsewhere_in_an_excel_file_are_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "Methods.xlsx"
    write_excel(file, [HEADER, METHOD, METHOD])
    book = openpyxl.load_workbook(file)
    book.create_sheet("About").append(["Merged and empty ones do no harm here"])
    book["About"].merge_cells("A1:C2")
    book.create_sheet("Empty")
    book.save(file)
    assert len(rows_of(tmp_path, tables.METHODS, ".xlsx")) == 2
    book.worksheets[0].merge_cells("F2:F3")
    book.save(file)
    with pytest.raises(tables.TableError, match="cells F2:F3 are merged: give each its own value"):
        rows_of(tmp_path, tables.METHODS, ".xlsx")
    book["Empty"].append(HEADER)
    book.save(file)
    with pytest.raises(tables.TableError, match="several sheets with the same columns"):
        rows_of(tmp_path, tables.METHODS, ".xlsx")


@pytest.mark.parametrize("damage", [(b"</row>", b""), (b"<v>2000</v>", b"<v>20x0</v>")])
def test_a_damaged_excel_file_is_one_line(damage: tuple[bytes, bytes], tmp_path: Path) -> None:
    file = tmp_path / "Methods.xlsx"
    write_excel(file, [HEADER, METHOD])
    rewrite_sheet(file, lambda sheet: sheet.replace(*damage))
    with pytest.raises(tables.TableError, match="not an Excel file, or a damaged one: "):
        rows_of(tmp_path, tables.METHODS, ".xlsx")


@pytest.mark.parametrize("formula", ["=2000+1", '=IF(A1="x",1,2)'])
def test_a_formula_without_its_value_is_named_by_its_cell(formula: str, tmp_path: Path) -> None:
    """As programs write it that do not calculate: a reader would take it for an empty cell."""
    row = [*METHOD[:2], formula, *METHOD[3:]]
    write_excel(tmp_path / "Methods.xlsx", [HEADER, METHOD, row])
    with pytest.raises(tables.TableError, match=r"cell C3 is a formula whose value .* save it"):
        rows_of(tmp_path, tables.METHODS, ".xlsx")


def rewrite_sheet(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the XML of the first sheet of an Excel file."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    before, parts[sheet] = parts[sheet], change(parts[sheet])
    assert parts[sheet] != before
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def calculate(file: Path, kind: bytes, value: bytes) -> None:
    """Give the formulas of an Excel file a value, as Excel does."""
    formula = rb'<c r="(\w+)"[^>]*><f>(.*?)</f><v\s*(/>|></v>)'
    with_value = rb'<c r="\1" t="%b"><f>\2</f><v>%b</v>' % (kind, value)
    rewrite_sheet(file, lambda sheet: re.sub(formula, with_value, sheet))


@pytest.mark.parametrize(
    ("column", "kind", "value", "read"),
    [("START_YEAR", b"n", b"2001", "2001"), ("METHOD_DESCRIPTION", b"str", b"", None)],
)
def test_a_formula_with_its_value_is_read(
    column: str, kind: bytes, value: bytes, read: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "Methods.xlsx"
    row = dict(zip(HEADER, METHOD, strict=True)) | {column: "=A2"}
    write_excel(file, [HEADER, list(row.values())])
    calculate(file, kind, value)
    assert [row[column] for row in rows_of(tmp_path, tables.METHODS, ".xlsx")] == [read]


@pytest.mark.parametrize("error", ["#N/A", "#REF!", "=A2"])
def test_an_error_of_excel_is_named_by_its_cell(error: str, tmp_path: Path) -> None:
    file = tmp_path / "Methods.xlsx"
    write_excel(file, [HEADER, [*METHOD[:5], error]])
    if error == "=A2":
        calculate(file, b"e", b"#N/A")
    with pytest.raises(tables.TableError, match=r"cell F2 is the error #\w+.+: mend or empty it"):
        rows_of(tmp_path, tables.METHODS, ".xlsx")


@pytest.mark.parametrize(
    ("table", "column", "value", "says"),
    [
        (tables.METHODS, "METHOD", "EPA\0 200", "has a NUL character, which PostgreSQL does not"),
        (tables.METHODS, "METHOD_DESCRIPTION", "é" * 997, "is too long: its row has 2002 bytes, "),
        *((tables.METHODS, column, "", "is empty") for column in sorted(tables.METHODS.required)),
        *((tables.SITES, column, "", "is empty") for column in sorted(tables.SITES.required)),
        *(
            (tables.METHODS, column, value, f"'{value}' is not a year from 1900 to 2100")
            for column in tables.YEARS
            for value in ("about 1980", "2010.5", "1899", "2101", "2147483647")
        ),
        (tables.METHODS, "END_YEAR", "1999", "1999 is before START_YEAR 2000"),
        (tables.SITES, "LATDD", "north", "'north' is not a number below 10^12"),
        (tables.SITES, "LATDD", "1" + "0" * 12, f"'1{'0' * 12}' is not a number below 10^12"),
        (tables.SITES, "COMID", "0.5", "'0.5' is not a whole number below 10^12"),
        (tables.SITES, "UPDATE_DATE", "2020-02-30", "'2020-02-30' is not a date"),
    ],
)
def test_what_cannot_be_used_of_the_reference_is_refused_at_once(
    table: tables.Table, column: str, value: str, says: str, tmp_path: Path
) -> None:
    usable = {"PROGRAM_ID": "P", "PARAMETER": "NA", "START_YEAR": "2000", "METHOD": "A",
              "SITE_ID": "S", column: value}  # fmt: skip
    row = [usable.get(name, "") for name in table.columns]
    file = tmp_path / f"{table.name}.csv"
    file.write_text(";".join(table.columns) + "\n" + ";".join(row) + "\n")
    named = f"{file}: row 2, column {column} {says}"
    with pytest.raises(tables.TableError, match=f"^{re.escape(named)}"):
        list(tables.read_table(file, table))
