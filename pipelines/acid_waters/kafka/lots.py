"""The lots of a file: how they are cut, what a message says of itself, how one is spoilt."""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.acid_waters.tables import Row


@dataclass(frozen=True)
class Lot:
    """One message: its value, and what the headers say of it.

    Attributes:
        batch_id: the file's name and the lot's number.
        size: rows that it should have.
        sequence: 1, 2, 3… in the file.
        first_row: of the file, counted from 1.
        checksum: SHA-256 of the value, in hexadecimal.
        source_file: the file's name.
        value: a row per line, as JSON.
    """

    batch_id: str
    size: int
    sequence: int
    first_row: int
    checksum: str
    source_file: str
    value: bytes

    def described(self) -> dict[str, str]:
        """Return what the headers say, by name."""
        names = ("batch_id", "size", "sequence", "first_row", "checksum", "source_file")
        return {name: str(getattr(self, name)) for name in names}

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the Kafka headers."""
        return [(name, value.encode()) for name, value in self.described().items()]


def encode(rows: Iterable[Mapping[str, str | None]]) -> bytes:
    """Return rows as JSON, one per line."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def checksum(value: bytes) -> str:
    """Return the SHA-256 of a value in hexadecimal."""
    return hashlib.sha256(value).hexdigest()


def make_lots(rows: Iterator[Row], size: int, source: Path) -> Iterator[Lot]:
    """Return a file's lots of `size` rows, the last one of what is left."""
    for sequence in itertools.count(1):
        chosen = list(itertools.islice(rows, size))
        if not chosen:
            return
        value = encode(chosen)
        batch_id = f"{source.stem}-{sequence:06d}"
        first = (sequence - 1) * size + 1
        yield Lot(batch_id, len(chosen), sequence, first, checksum(value), source.name, value)


def change_first_row(**changes: str) -> Callable[[list[Row]], list[Row]]:
    """Return what gives a lot's first row, if there is one, other values."""
    return lambda rows: [{**row, **changes} for row in rows[:1]] + rows[1:]


# Fault -> what it makes of a lot's rows; the checksum is that of the result.
ROW_FAULTS: dict[str, Callable[[list[Row]], list[Row]]] = {
    "short": lambda rows: rows[:-1],
    "long": lambda rows: [*rows, *rows[-1:]],
    "site": change_first_row(SITE_ID="NOWHERE"),
    "number": change_first_row(ANC_UEQ_L="n/a"),
    "range": change_first_row(PH_LAB="41"),
    "date": change_first_row(DATE_SMP="2019-02-30"),
    "column": lambda rows: [
        {name: value for name, value in row.items() if name != "PH_LAB"} for row in rows
    ],
}
# In the order in which they spoil the same lot: once it is no longer JSON, it has no rows.
FAULTS = (*ROW_FAULTS, "json", "checksum", "duplicate")


def spoil(lot: Lot, kind: str) -> list[Lot]:
    """Return what is sent in place of a lot with a fault of this kind (see FAULTS)."""
    if kind == "duplicate":
        return [lot, lot]
    if kind == "checksum":
        return [replace(lot, value=lot.value.replace(b'"', b"'", 1))]
    if kind == "json":
        value = lot.value.replace(b"{", b"[", 1)
    else:
        rows = [json.loads(line) for line in lot.value.splitlines()]
        value = encode(ROW_FAULTS[kind](rows))
    return [replace(lot, value=value, checksum=checksum(value))]


def drawn_fault(seed: int, sequence: int, rate: float) -> list[str]:
    """Return the fault of a lot when a share of them is spoilt: the same for the same seed.

    Args:
        seed: any number.
        sequence: of the lot.
        rate: share of the lots that are spoilt, 0 to 1.
    """
    rng = random.Random(f"{seed} {sequence}")
    return [rng.choice(FAULTS)] if rng.random() < rate else []
