#!/usr/bin/env python3
"""Show the dead letters that are pending, or send them through the pipeline again.

    python tools/dead_letters.py list [--last N]    a table of the last N (20), all of them counted
    python tools/dead_letters.py replay             each of them once more, its cause being mended

Pending are the letters that no replay has taken yet. What a replay makes of one:

    replayed        valid now: its key and bytes go to the source topic, for the consumer to treat
                    like any other message (if it cannot index it, that is a new letter)
    still_invalid   filed again, at the end of the dead-letter topic, with the reason of today
    foreign         not filed by the consumer for this topic: filed again as it is

Exactly once: what is sent, and how far the replay has come (the offsets of the consumer group
<topic>.dead-letter-replay), are one Kafka transaction per 500 letters. A replay that is killed and
run again sends each letter once; a second one at the same time stops the first. What a killed one
had begun to send is hidden from readers with isolation_level="read_committed"; others see it twice.
A group that commits nothing for 7 days (offsets.retention.minutes of the broker) is forgotten by
Kafka: all letters that the topic still holds are pending then.

Environment (or .env): KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPIC and KAFKA_CA_FILE, as the consumer;
REPLAYER_KAFKA_USER and REPLAYER_KAFKA_PASSWORD where Kafka asks for them.

Exit codes: 0 done, 1 Kafka unreachable, no such topic, or stopped midway; 2 wrong usage.
"""

import argparse
import heapq
import itertools
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kafka_to_elasticsearch import (  # noqa: E402  # works from any folder
    DEAD_LETTER_BYTES,
    SetupError,
    one_line,
    parse_reading,
)
from tools.connection import (  # noqa: E402
    ANSWER_TIMEOUT_MS,
    CONNECT_TIMEOUT_MS,
    Offsets,
    existing_topics,
    failure,
    kafka_consumer,
    kafka_options,
    kafka_servers,
    kafka_topic,
    load_env,
    partitions_of,
    read_between,
    run,
)

ROLE = "REPLAYER"
BATCH = 500  # letters in one transaction
SETTLE_S = 1.0  # until offsets that a killed replay has committed are there to be read
COLUMNS = {"time (UTC)": 23, "partition/offset": 16, "key": 14, "reason": 34, "message": 25}
WIDTH = 120
# What differs between two reasons of one cause: quoted values; ids, positions, long numbers.
MASKS = (
    (re.compile(r"""(?<!\w)(['"]).*?\1(?!\w)"""), "'*'"),
    (re.compile(r"[\w.:-]+@[\w.:-]+|\d+:\d+|(?<=byte )\d+|\d{7,}"), "*"),
)
# The two errors by which Kafka says that the transactional id is no longer this producer's.
FENCED = re.compile("ProducerFenced|InvalidProducerEpoch")

Outcome = Counter[str]


class Letter(NamedTuple):
    """A dead letter: the message that it is, and what its headers say about the one it was."""

    message: Any
    partition: TopicPartition
    is_ours: bool
    where: str  # partition/offset
    epoch_ms: int
    reason: str


def read_letter(message: Any, topic: str) -> Letter:
    """Return a letter, marked foreign when the consumer of this topic has not filed it."""
    partition, headers = TopicPartition(message.topic, message.partition), dict(message.headers)
    try:
        where = f"{int(headers['source.partition'])}/{int(headers['source.offset'])}"
        epoch_ms = int(headers["source.timestamp"])
        reason = headers["reason"].decode(errors="backslashreplace")
        is_ours = headers["source.topic"].decode() == topic
    except (KeyError, ValueError, TypeError, AttributeError):  # not there, not that, null
        is_ours = False
    if not is_ours:
        where, epoch_ms, reason = "-", message.timestamp, "foreign: not filed by the consumer"
    return Letter(message, partition, is_ours, where, epoch_ms, reason)


class DeadLetters:
    """The dead-letter topic, and how far replays have come in it."""

    def __init__(self, servers: str, topic: str, security: dict[str, Any]) -> None:
        """Connect to Kafka, which has the topic or that of its dead letters.

        Raises:
            KafkaError: it does not answer, or has neither.
        """
        self.servers, self.topic, self.security = servers, topic, security
        self.name = f"{topic}.dead-letter"
        self.group = f"{topic}.dead-letter-replay"
        self.topics = existing_topics(servers, security)
        if self.name not in self.topics:
            self.require_topic()
        # It never joins the group, which only keeps the offsets.
        self.consumer = kafka_consumer(servers, security, group_id=self.group)

    def require_topic(self) -> None:
        """Check that the topic is there: sending to it would create it.

        Raises:
            UnknownTopicOrPartitionError: it is not.
        """
        if self.topic not in self.topics:
            raise UnknownTopicOrPartitionError(f"topic {self.topic} does not exist")

    def bounds(self) -> tuple[Offsets, Offsets, Offsets]:
        """Return for each partition its first offset, its first pending one, and its end for now.

        There is no partition when nobody has filed a letter yet.
        """
        partitions = partitions_of(self.consumer, self.name) if self.name in self.topics else []
        try:
            committed = {
                p: self.consumer.committed(p, timeout_ms=ANSWER_TIMEOUT_MS) for p in partitions
            }
        except KafkaTimeoutError as exc:  # the library's own says nothing
            raise KafkaTimeoutError("it does not tell how far replays have come") from exc
        # Asked for after the committed offsets, it is not before them (except in a topic that was
        # made anew): letters that another replay has just taken are not taken for pending.
        end: Offsets = self.consumer.end_offsets(partitions)
        first: Offsets = self.consumer.beginning_offsets(partitions)
        pending = dict(first)
        for partition, offset in committed.items():
            if offset is not None and first[partition] <= offset <= end[partition]:
                pending[partition] = offset
        return first, pending, end

    def read(self, begin: Offsets, end: Offsets) -> Iterator[list[Letter]]:
        """Yield the letters between, up to BATCH at once, each partition in order.

        Raises:
            KafkaTimeoutError: Kafka has ceased to deliver.
        """
        for messages in read_between(self.consumer, begin, end, at_once=BATCH):
            yield [read_letter(message, self.topic) for message in messages]


# list


def cause(reason: str) -> str:
    """Return what a reason has in common with others like it."""
    for pattern, mask in MASKS:
        reason = pattern.sub(mask, reason)
    return reason


def printable(content: bytes | str | None) -> str:
    """Return text or bytes, whatever they are, in ASCII that does nothing to a terminal."""
    if content is None:
        return "(none)"
    return ascii(content[:1000]).removeprefix("b")[1:-1] or "(empty)"


def utc(epoch_ms: int) -> str:
    """Return a time as text, or the number itself where there is no such time."""
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(" ", "milliseconds")[:23]
    except (ValueError, OverflowError, OSError):
        return str(epoch_ms)


def cut(text: str, width: int) -> str:
    """Return a text in that many columns."""
    return f"{text if len(text) <= width else text[: width - 3] + '...':<{width}}"


def row(*cells: str) -> str:
    """Return one line of the table."""
    widths = COLUMNS.values()
    return "  ".join(cut(cell, w) for cell, w in zip(cells, widths, strict=True)).rstrip() + "\n"


def print_letters(letters: DeadLetters, last: int) -> None:
    """Print the last of the pending letters by time, and count all of them by cause."""
    write = sys.stdout.write
    first, begin, end = letters.bounds()
    causes: Counter[str] = Counter()
    taken = 0

    def pending() -> Iterator[Letter]:
        nonlocal taken
        for letter in itertools.chain.from_iterable(letters.read(first, end)):
            if letter.message.offset < begin[letter.partition]:
                taken += 1
            else:
                causes[cause(letter.reason)] += 1
                yield letter

    newest = heapq.nlargest(last, pending(), key=lambda one: (one.epoch_ms, one.message.offset))
    summary = f"in {letters.name}; taken by replays before: {taken}\n"
    if not newest:
        write(f"no letter is pending {summary}")
        return
    write(row(*COLUMNS))
    for message, _, _, where, epoch_ms, reason in reversed(newest):
        contents = map(printable, (message.key, reason, message.value))
        write(row(utc(epoch_ms), where, *contents))
    write("\n")
    for text, count in causes.most_common():
        write(f"{count:>9}  {cut(printable(text), WIDTH - 11).rstrip()}\n")
    write(f"{causes.total():>9}  pending {summary}")


# replay


def onward(letter: Letter, topic: str) -> tuple[str, dict[str, Any]]:
    """Return what becomes of a letter, and the message that is sent for it."""
    message = letter.message
    # kafka-python sends no message without key and value, and no header without value.
    value = b"" if message.key is None and message.value is None else message.value
    headers = [(name, content or b"") for name, content in message.headers]
    sent = {"key": message.key, "value": value}
    again = {**sent, "topic": message.topic, "partition": message.partition}
    if not letter.is_ours:
        return "foreign", {**again, "headers": headers}
    try:
        parse_reading(message.value)
    except ValueError as exc:
        reason = f"invalid: {one_line(exc)}".encode()
        headers = [(name, reason if name == "reason" else content) for name, content in headers]
        return "still_invalid", {**again, "headers": headers}
    where = f"{message.partition}:{message.offset}".encode()
    return "replayed", {**sent, "topic": topic, "headers": [("replayed.from", where)]}


def send_batch(producer: KafkaProducer, batch: Sequence[Letter], letters: DeadLetters) -> Outcome:
    """Send some letters onward and commit their offsets, all or nothing.

    Raises:
        KafkaError: nothing was done, or, if just the answer to the commit is lost, all.
    """
    outcome: Outcome = Counter()
    producer.begin_transaction()
    try:
        sent = []
        for letter in batch:
            became, arguments = onward(letter, letters.topic)
            outcome[became] += 1
            sent.append(producer.send(**arguments))
        for future in sent:  # a commit succeeds although a message could not be sent: ask for each
            future.get(timeout=ANSWER_TIMEOUT_MS / 1000)
        offsets = {
            one.partition: OffsetAndMetadata(one.message.offset + 1, "", -1) for one in batch
        }
        within(
            ANSWER_TIMEOUT_MS, lambda: producer.send_offsets_to_transaction(offsets, letters.group)
        )
        within(ANSWER_TIMEOUT_MS, producer.commit_transaction)
    except BaseException:
        with suppress(KafkaError):  # if it cannot be told, Kafka does so by itself after a while
            within(5000, producer.abort_transaction)
        raise
    return outcome


def within(timeout_ms: int, call: Callable[[], None]) -> None:
    """Make one of the calls of a transaction, which wait for an absent Kafka for ever.

    Raises:
        KafkaTimeoutError: it has not returned in time.
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            call()
        except BaseException as exc:  # noqa: BLE001  # raised where it is waited for
            future.set_exception(exc)
        else:
            future.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        future.result(timeout_ms / 1000)
    except TimeoutError as exc:
        raise KafkaTimeoutError("it does not answer") from exc


def replay(letters: DeadLetters) -> None:
    """Send each pending letter onward, and print what became of them.

    Raises:
        KafkaError: it was stopped midway; what is printed then is done for good.
    """
    letters.require_topic()
    outcome: Outcome = Counter(replayed=0, still_invalid=0, foreign=0)
    producer = KafkaProducer(
        bootstrap_servers=letters.servers.split(","),
        transactional_id=letters.group,
        transaction_timeout_ms=ANSWER_TIMEOUT_MS,  # then Kafka gives up a killed replay's
        compression_type="lz4",
        max_request_size=DEAD_LETTER_BYTES + 1_000_000,  # with what Kafka adds
        max_block_ms=ANSWER_TIMEOUT_MS,
        api_version_auto_timeout_ms=CONNECT_TIMEOUT_MS,
        **letters.security,
    )
    try:
        producer.init_transactions()  # stops other replays, and undoes what they had begun
        time.sleep(SETTLE_S)  # Kafka notes the offsets of a transaction just after its end
        _, begin, end = letters.bounds()  # not sooner: now nobody else can take a letter
        for batch in letters.read(begin, end):
            outcome.update(send_batch(producer, batch, letters))
    finally:
        sys.stdout.write(" ".join(f"{name}={count}" for name, count in outcome.items()) + "\n")
        with suppress(KafkaError):
            producer.close(timeout=5)


# The command.


def positive(text: str) -> int:
    """Return a whole number of 1 or more."""
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="show the pending letters; changes nothing")
    listing.add_argument("--last", type=positive, default=20, metavar="N", help="rows (20)")
    commands.add_parser("replay", help="send the pending letters through the pipeline again")
    arguments = parser.parse_args(argv)
    load_env()
    try:
        servers, topic, security = kafka_servers(), kafka_topic(), kafka_options(ROLE)
    except SetupError as exc:
        sys.stderr.write(f"dead_letters: {exc}\n")
        return 2
    try:
        letters = DeadLetters(servers, topic, security)
        with closing(letters.consumer):
            if arguments.command == "list":
                print_letters(letters, arguments.last)
            else:
                replay(letters)
    except KafkaError as exc:
        fenced = "another replay of this topic has begun, or this one took too long"
        why = fenced if FENCED.search(repr(exc)) else failure(exc, ROLE)
    except KeyboardInterrupt:
        why = "interrupted"
    else:
        return 0
    sys.stderr.write(f"dead_letters: {why}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(run(main))
