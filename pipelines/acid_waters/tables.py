"""Read the three files of the Long-Term Monitoring release, Excel or CSV, into the same texts.

A release has the samples (`LTM_Data…`), the methods (`Methods…`) and the sites
(`Site_Information…`). Excel cells have types; the CSV has `;`, perhaps a byte-order mark, dates as
`11/06/2020 00:00:00`, thousands as `1 528` and decimal commas. Here both become one form: numbers
as `1528` or `41.9369`, dates as `2020-11-06`, empty as None, everything else as it is. A text is
never taken for a number or for a missing value: a site is `040576`, the parameter `NA` is sodium.

What cannot be read as the number or the date that its column promises stays as it is in the
samples: the consumer rejects its lot. Methods and sites go into every version, so it is refused.
"""

import csv
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from itertools import repeat
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import openpyxl
from openpyxl.utils import get_column_letter

Row = dict[str, str | None]
Cells = tuple[Any, ...]
NOT_CALCULATED = (
    "a formula whose value the file does not hold: open it in Excel or LibreOffice, and save it"
)
LONGEST_BYTES = 2000  # of a row's texts: PostgreSQL has most of them in an index, 2704 bytes a row
DECIMALS = 12  # kept of a number: more than any instrument gives, and Excel's 15 digits fit

ID = "[A-Za-z0-9][A-Za-z0-9 ._-]{0,199}"  # of lots and files, as a regular expression

MEASURES = (
    "ANC_UEQ_L", "CA_UEQ_L", "CHL_A_UG_L", "CL_UEQ_L", "COND_UM_CM", "DOC_MG_L", "F_UEQ_L",
    "K_UEQ_L", "MG_UEQ_L", "NA_UEQ_L", "NH4_UEQ_L", "NO3_UEQ_L", "N_TD_UEQ_L", "PH_EQ", "PH_FLD",
    "PH_LAB", "PH_STVL", "P_TL_UEQ_L", "SECCHI_M", "SIO2_MG_L", "SO4_UEQ_L", "WTEMP_DEG_C",
)  # fmt: skip
UNITS = ("UEQ_L", "UG_L", "UM_CM", "MG_L", "DEG_C", "M")  # the suffixes of measures


@dataclass(frozen=True)
class Table:
    """One file of the release.

    Attributes:
        name: what the file's name begins with.
        columns: all of them, in order.
        numbers: those whose values are numbers.
        dates: those whose values are dates, some with a time.
        is_reference: a value that its column or PostgreSQL does not take is refused at once.
        required: those that no row of a reference leaves empty.
    """

    name: str
    columns: tuple[str, ...]
    numbers: frozenset[str]
    dates: frozenset[str] = frozenset()
    is_reference: bool = False
    required: frozenset[str] = frozenset()


SAMPLES = Table(
    "LTM_Data",
    (
        "SITE_ID", "PROGRAM_ID", "DATE_SMP", "SAMPLE_LOCATION", "SAMPLE_TYPE", "WATERBODY_TYPE",
        "SAMPLE_DEPTH", "TIME_SMP", *MEASURES,
    ),
    numbers=frozenset({"SAMPLE_DEPTH", *MEASURES}),
    dates=frozenset({"DATE_SMP"}),
)  # fmt: skip
YEARS = ("START_YEAR", "END_YEAR")
FIRST_YEAR, LAST_YEAR = 1900, 2100
METHODS = Table(
    "Methods",
    ("PROGRAM_ID", "PARAMETER", "START_YEAR", "END_YEAR", "METHOD", "METHOD_DESCRIPTION"),
    numbers=frozenset(YEARS),
    is_reference=True,
    required=frozenset({"PROGRAM_ID", "PARAMETER", "START_YEAR", "METHOD"}),
)
SITE_NUMBERS = (
    "LATDD", "LONDD", "LATDD_CENTROID", "LONDD_CENTROID", "COMID", "FEATUREID", "LAKE_DEPTH_MAX",
    "LAKE_DEPTH_MEAN", "LAKE_RET", "LAKE_AREA_HA", "LAKE_AREA_NHD2", "WSHD_AREA_HA", "SITE_ELEV",
    "WSHD_ELEV_AVG", "WSHD_ELEV_MIN", "WSHD_ELEV_MAX", "WSHD_SLOPE_AVG",
)  # fmt: skip
WHOLE_NUMBERS = ("COMID", "FEATUREID")
SITES = Table(
    "Site_Information",
    (
        "SITE_ID", "PROGRAM_ID", *SITE_NUMBERS[:4], "SITE_NAME", "COMID", "FEATUREID", "COUNTY",
        "STATE", "ECOREGION_I", "ECOREGION_II", "ECOREGION_III", "ECOREGION_IV", "ECONAME_I",
        "ECONAME_II", "ECONAME_III", "ECONAME_IV", *SITE_NUMBERS[6:], "UPDATE_DATE",
    ),
    numbers=frozenset(SITE_NUMBERS),
    dates=frozenset({"UPDATE_DATE"}),
    is_reference=True,
    required=frozenset({"SITE_ID", "PROGRAM_ID"}),
)  # fmt: skip


class TableError(Exception):
    """What is wrong with a file, in one line for the user."""


class CellError(Exception):
    """A cell of an Excel file without a value: (row, position in it, what it is)."""


def parameter_of(measure: str) -> tuple[str, str]:
    """Return a measure's parameter and unit: its column's name without and from the suffix.

    >>> parameter_of("NA_UEQ_L"), parameter_of("CHL_A_UG_L"), parameter_of("PH_LAB")
    (('NA', 'UEQ_L'), ('CHL_A', 'UG_L'), ('PH_LAB', ''))
    """
    for unit in UNITS:
        if measure.endswith(f"_{unit}"):
            return measure.removesuffix(f"_{unit}"), unit
    return measure, ""


def number_text(text: str) -> str:
    """Return a number in its one form, anything else unchanged.

    >>> [number_text(text) for text in ("1 528", "41,936900", "-0,50", "1e3", "n/a", "NaN")]
    ['1528', '41.9369', '-0.5', '1000', 'n/a', 'NaN']
    """
    try:
        number = Decimal("".join(text.split()).replace(",", "."))
    except InvalidOperation:
        return text
    if not number.is_finite() or abs(number) >= 10**DECIMALS:
        return text
    plain = f"{number:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if plain == "-0" else plain


def date_text(text: str) -> str:
    """Return a date, with its time unless that is midnight, in ISO 8601; anything else unchanged.

    >>> [date_text(text) for text in ("11/06/2020 00:00:00", "02/06/2020 09:36:22", "02/30/2020")]
    ['2020-11-06', '2020-02-06 09:36:22', '02/30/2020']
    """
    moment = date_in(text)
    return moment_text(moment) if moment else text


def date_in(text: str) -> datetime | None:
    """Return the date that a text is, with its time; None when it is none."""
    for form in ("%m/%d/%Y %H:%M:%S", "%m/%d/%Y", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S"):
        try:
            return datetime.strptime(text, form)  # noqa: DTZ007  # no zone is given
        except ValueError:
            continue
    return None


def moment_text(moment: datetime) -> str:
    """Return a moment to the second, without a midnight."""
    if moment.time() == time():
        return moment.date().isoformat()
    return moment.isoformat(sep=" ", timespec="seconds")


def cell_text(value: Any, column: str, table: Table) -> str | None:
    """Return the one form of a cell, whatever the file's format."""
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return moment_text(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, time):
        return f"{value:%H:%M}"
    if isinstance(value, float):  # Excel shows and keeps 15 significant digits
        value = f"{value:.15g}"
    text = str(value)
    if column in table.numbers:
        return number_text(text)
    return date_text(text) if column in table.dates else text


def find_file(folder: Path, table: Table) -> Path:
    """Return the folder's file of a table, Excel rather than CSV.

    Raises:
        TableError: there is none, or there are several of a kind.
    """
    for suffix in (".xlsx", ".csv"):
        found = sorted(folder.glob(f"{table.name}*{suffix}"))
        if len(found) > 1:
            raise TableError(f"several files {table.name}*{suffix} in {folder}: keep one")
        if found:
            return found[0]
    raise TableError(f"no {table.name}*.xlsx or .csv in {folder}")


def read_table(file: Path, table: Table) -> Iterator[Row]:
    """Return the rows of a file, Excel or CSV by its name, as {column: text or None}.

    Empty cells at the right of the last column are passed over, as are empty rows.

    Raises:
        TableError: it cannot be read, does not have the table's columns, or has a cell that would
            be lost or taken for another; the text names it.
    """
    try:
        with closing(excel_rows(file) if is_excel(file) else csv_rows(file)) as rows:
            check_header(file, table, without_empty_end(next(rows, ())))
            for number, cells in enumerate(rows, 2):
                if any(value not in (None, "") for value in cells):
                    yield read_row(file, table, number, cells)
    except CellError as exc:
        *place, what = exc.args
        raise TableError(f"{cell_name(file, table, *place)} is {what}") from exc
    except OSError as exc:
        raise TableError(f"{file}: {exc.strerror}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise TableError(f"{file}: {exc}") from exc


def read_row(file: Path, table: Table, number: int, cells: Cells) -> Row:
    """Return one row: {column: text or None}.

    Raises:
        TableError: see read_table.
    """
    row = without_empty_end(cells)
    missing = len(table.columns) - len(row)
    if missing < 0:
        name = cell_name(file, table, number, len(row) - 1)
        raise TableError(f"{name} has no column's name above it")
    if len(cells) < len(table.columns) and not is_excel(file):  # Excel's rows end where they like
        wanted = len(table.columns)
        raise TableError(f"{file}: row {number} has {len(cells)} cells, not {wanted}")
    values = zip(table.columns, (*row, *[None] * missing), strict=True)
    read = {column: cell_text(value, column, table) for column, value in values}
    if table.is_reference and (found := unusable(read, table)):
        column, why = found
        name = cell_name(file, table, number, table.columns.index(column))
        raise TableError(f"{name} {why}")
    return read


def is_excel(file: Path) -> bool:
    """Return whether a file's name is that of an Excel file."""
    return file.suffix.lower() == ".xlsx"


def cell_name(file: Path, table: Table, number: int, position: int) -> str:
    """Return how a user finds a cell: as Excel names it, or by its row and column.

    Args:
        file: where it is.
        table: the file's.
        number: of the row, 1 for the header.
        position: in the row, from 0.
    """
    if is_excel(file):
        return f"{file}: cell {get_column_letter(position + 1)}{number}"
    known = position < len(table.columns)
    return f"{file}: row {number}, column {table.columns[position] if known else position + 1}"


def check_header(file: Path, table: Table, header: Cells) -> None:
    """Check the names of the columns.

    Raises:
        TableError: they are not those of the table, in its order.
    """
    if header == table.columns:
        return
    missing = [name for name in table.columns if name not in header]
    raise TableError(
        f"{file}: not the columns of {table.name}: " + ", ".join(missing)
        + (" missing" if missing else "there are others, or in another order")
    )  # fmt: skip


def without_empty_end(cells: Cells) -> Cells:
    """Return cells up to the last that is not empty.

    >>> without_empty_end(("a", None, "b", "", None)), without_empty_end((None,))
    (('a', None, 'b'), ())
    """
    length = len(cells)
    while length and cells[length - 1] in (None, ""):
        length -= 1
    return cells[:length]


def unusable(row: Row, table: Table) -> tuple[str, str] | None:
    r"""Return (column, why) of what cannot be used in a row of the methods or the sites, else None.

    >>> unusable({"SITE_NAME": "Otter\0Lake"}, SITES)
    ('SITE_NAME', 'has a NUL character, which PostgreSQL does not take')
    >>> unusable({"START_YEAR": "2011", "END_YEAR": "2010"}, METHODS)
    ('END_YEAR', '2010 is before START_YEAR 2011')
    """
    for column, text in row.items():
        if why := unusable_text(text, column, table):
            return column, why
    start, end = (row.get(name) for name in YEARS)
    if start and end and int(end) < int(start):
        return "END_YEAR", f"{end} is before START_YEAR {start}"
    sizes = {column: len(text.encode()) for column, text in row.items() if text}
    if (size := sum(sizes.values())) > LONGEST_BYTES:
        longest = max(sizes, key=lambda column: sizes[column])
        return longest, f"is too long: its row has {size} bytes, {LONGEST_BYTES} at most"
    return None


def unusable_text(text: str | None, column: str, table: Table) -> str | None:
    """Return why a value of the methods or the sites cannot be used, None when it can."""
    if text is None:
        return "is empty" if column in table.required else None
    if "\0" in text:
        return "has a NUL character, which PostgreSQL does not take"
    if column in YEARS:
        is_year = re.fullmatch(r"\d{4}", text) and FIRST_YEAR <= int(text) <= LAST_YEAR
        return None if is_year else f"{text!r} is not a year from {FIRST_YEAR} to {LAST_YEAR}"
    if column in WHOLE_NUMBERS and not re.fullmatch(r"-?\d{1,12}", text):
        return f"{text!r} is not a whole number below 10^{DECIMALS}"
    if column in table.numbers and not re.fullmatch(r"-?\d{1,12}(\.\d+)?", text):
        return f"{text!r} is not a number below 10^{DECIMALS}"
    if column in table.dates and not date_in(text):
        return f"{text!r} is not a date"
    return None


def csv_rows(file: Path) -> Generator[Cells, None, None]:
    """Return the cells of a CSV; its first line says which separator it has."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        separator = ";" if ";" in lines.readline() else ","
        lines.seek(0)
        # Strict: else a quote that is not closed takes all that follows into its cell.
        yield from map(tuple, csv.reader(lines, delimiter=separator, strict=True))


def excel_rows(file: Path) -> Generator[Cells, None, None]:
    """Return the values of an Excel file's first sheet.

    Raises:
        TableError: it is none, or has values that would be lost.
        CellError: a formula's value is not there, or is an error.
    """
    try:
        check_sheets(file)
        has_formulas = has_element(file, b"f")
        written = sheet_rows(file, data_only=False) if has_formulas else repeat(())
        rows = zip(sheet_rows(file, data_only=True), written, strict=False)
        for number, (cells, formulas) in enumerate(rows, 1):
            for position, cell in enumerate(cells):
                if cell.data_type == "e":
                    raise CellError(number, position, f"the error {cell.value}: mend or empty it")
            for position, (cell, formula) in enumerate(zip(cells, formulas, strict=False)):
                # An empty text is None, too: only the type of a formula's text tells it apart.
                if cell.value is None and formula.value is not None and cell.data_type != "str":
                    raise CellError(number, position, NOT_CALCULATED)
            yield tuple(cell.value for cell in cells)
    except (TableError, CellError, OSError):
        raise
    except Exception as exc:  # of many kinds: what reads zip, XML and cells has errors of its own
        raise TableError(f"{file}: not an Excel file, or a damaged one: {exc}") from exc


def check_sheets(file: Path) -> None:
    """Check that all values of an Excel file are where they are read.

    Raises:
        TableError: another sheet has the same columns, or merged cells share one value.
    """
    headers = []
    with closing(openpyxl.load_workbook(file, read_only=True)) as book:
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # the size that a file declares is not always its own
            headers.append(without_empty_end(next(sheet.iter_rows(values_only=True), ())))
    if headers[0] and headers[0] in headers[1:]:
        raise TableError(f"{file}: several sheets with the same columns: put all rows into one")
    if has_element(file, b"mergeCell"):
        for merged in openpyxl.load_workbook(file).worksheets[0].merged_cells.ranges:
            raise TableError(f"{file}: cells {merged} are merged: give each its own value")


def has_element(file: Path, name: bytes) -> bool:
    """Return whether the XML of any sheet of an Excel file has an element of this name."""
    with ZipFile(file) as archive:
        sheets = [one for one in archive.namelist() if one.startswith("xl/worksheets/")]
        return any(re.search(rb"<(\w+:)?%b[\s>/]" % name, archive.read(one)) for one in sheets)


def sheet_rows(file: Path, data_only: bool) -> Iterator[Cells]:
    """Return the cells of the first sheet, with their values, or (not data_only) their formulas."""
    with closing(openpyxl.load_workbook(file, read_only=True, data_only=data_only)) as book:
        sheet: Any = book.worksheets[0]
        sheet.reset_dimensions()  # as above
        yield from sheet.iter_rows()
