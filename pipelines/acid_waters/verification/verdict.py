"""What the comparison finds, and why nothing can be compared."""

from dataclasses import dataclass, field
from typing import Any

Place = tuple[int, int]  # partition, offset


class VerifyError(Exception):
    """Why nothing can be compared, in one line for the user."""


class NoVersionError(Exception):
    """There is no such version; in one line for the user."""


@dataclass
class Verdict:
    """What the comparison found: numbers, and lists of what is wrong.

    Attributes:
        messages: lots in the topic.
        integrated: those of them that have made a version.
        rejected: those that the checks have refused.
        forgotten: lots that are settled and that the topic has deleted since.
        versions: number of versions.
        version: the one that is compared.
        rows: of its data set.
        metrics: rows of metrics compared.
        unsettled: messages that are not settled.
        deleted_unread: by the topic, before the consumer read them, also when it was told to go on
            without. Some may be no lots: markers of transactions.
        unexpected_lots: settled, but the topic does not hold them, nor has it deleted them.
        wrongly_archived: the archive does not hold a message's bytes, or a lot of the version.
        wrongly_integrated: size or checksum is not what the message declares, or not of samples.
        wrong_versions: their members, or their number, do not follow from the events.
        missing_rows: sent and not in HDFS, as often as they are missing.
        unexpected_rows: in HDFS and not sent.
        differing_metrics: rows of metrics that only one of the two has.
        not_in_file, not_in_data_set: rows, with --data.
        not_received: lots of a ledger that are neither in the topic nor settled, with --ledger.
    """

    messages: int = 0
    integrated: int = 0
    rejected: int = 0
    forgotten: int = 0
    versions: int = 0
    version: int = 0
    rows: int = 0
    metrics: int = 0
    unsettled: list[Place] = field(default_factory=list)
    deleted_unread: list[Place] = field(default_factory=list)
    unexpected_lots: list[Place] = field(default_factory=list)
    wrongly_archived: list[Place] = field(default_factory=list)
    wrongly_integrated: list[Place] = field(default_factory=list)
    wrong_versions: list[int] = field(default_factory=list)
    missing_rows: list[Any] = field(default_factory=list)
    unexpected_rows: list[Any] = field(default_factory=list)
    differing_metrics: list[Any] = field(default_factory=list)
    not_in_file: list[Any] = field(default_factory=list)
    not_in_data_set: list[Any] = field(default_factory=list)
    not_received: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, changed or made up."""
        return not any(isinstance(found, list) and found for found in vars(self).values())
