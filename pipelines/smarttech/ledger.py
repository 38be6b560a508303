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
        self.file = path.open("w", encoding="ascii", newline="") if path else None
        self.writer = csv.writer(self.file) if self.file else None
        if self.writer:
            self.writer.writerow(["partition", "offset", "crc32", "label"])

    def note(self, message: Message, stored: RecordMetadata | None) -> None:
        """Note a message, and where it is stored if it was acknowledged."""
        if not self.writer or self.error:
            return
        where = [stored.partition, stored.offset] if stored else ["", ""]
        try:
            self.writer.writerow([*where, f"{zlib.crc32(message.value):08x}", message.label])
        except OSError as exc:  # kept: most often this is Kafka's thread, which would swallow it
            self.error = exc

    def close(self) -> None:
        """Close the file, which writes the rest of it."""
        if not self.file:
            return
        try:
            self.file.close()
        except OSError as exc:
            self.error = self.error or exc
