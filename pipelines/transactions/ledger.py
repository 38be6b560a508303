"""The ledger of what capteur.py has sent: one line a record, with what became of it."""

import csv
from pathlib import Path

from pipelines.transactions.simulation import Record

COLUMNS = [
    "partition", "offset", "transaction_id", "montant", "devise", "timestamp", "label", "value",
]  # fmt: skip


class Ledger:
    """The file that notes what was sent, as CSV (see capteur.py); None: no file.

    Attributes:
        trouble: why it could not be written; there it ends. "": it is complete.

    Raises:
        OSError: it cannot be made, or is there already.
    """

    def __init__(self, path: Path | None) -> None:
        # Another run's is not overwritten: what it sent would be unknown for ever. Each line is
        # written at once: being killed loses none.
        self.file = path.open("x", buffering=1, encoding="utf-8", newline="") if path else None
        self.rows = csv.writer(self.file) if self.file else None
        self.trouble = ""
        if self.rows:
            self.rows.writerow(COLUMNS)

    def note(self, record: Record, partition: int | str, offset: int | str) -> None:
        """Note a record and where Kafka has stored it; empty when it has not."""
        if self.rows:
            value = "" if record.label in ("", "fraud") else record.value.decode()
            try:
                self.rows.writerow([partition, offset, *record[1:5], record.label, value])
            except OSError as exc:  # what is sent goes on, and is counted
                self.trouble, self.rows = exc.strerror or str(exc), None

    def close(self) -> None:
        """Close the file."""
        if self.file:
            try:
                self.file.close()
            except OSError as exc:
                self.trouble = self.trouble or exc.strerror or str(exc)
