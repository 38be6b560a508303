"""The ledger: what became of each message that the producer sent, for verify.py to compare."""

import csv
import zlib
from pathlib import Path

from kafka.producer.future import RecordMetadata

from pipelines.smarttech.simulation import Message


class Ledger:
    """Notes what became of each message as CSV; without a file, nothing.

    Attributes:
        error: why it is not whole; after the first it notes no more.
    """

    def __init__(self, path: Path | None) -> None:
        self.error: OSError | None = None
        # Each line is written at once: being killed loses none.
        self.file = path.open("w", buffering=1, encoding="ascii", newline="") if path else None
        self.writer = csv.writer(self.file) if self.file else None
        self.write(["partition", "offset", "crc32", "label"])

    def note(self, message: Message, stored: RecordMetadata | None) -> None:
        """Note a message, and where it is stored if it was acknowledged."""
        where = [stored.partition, stored.offset] if stored else ["", ""]
        self.write([*where, f"{zlib.crc32(message.value):08x}", message.label])

    def write(self, row: list[object]) -> None:
        """Write a line, if there is a file and it is whole so far."""
        if not self.writer or self.error:
            return
        try:
            self.writer.writerow(row)
        except OSError as exc:  # kept: most often this is Kafka's thread, which would swallow it
            self.error = exc

    def close(self) -> None:
        """Close the file."""
        if not self.file:
            return
        try:
            self.file.close()
        except OSError as exc:
            self.error = self.error or exc
