"""Show the dead letters that are pending, or send them through the pipeline again.

    python -m tools.dead_letters list [--last N]    a table of the last N (20), all of them counted
    python -m tools.dead_letters replay             each of them again, after its cause is mended

Pending are the letters that no replay has taken yet. A replay does one of these with each:

    replayed        valid now: its key and bytes go to the source topic, for the consumer to treat
                    like any other message (if it cannot be indexed, it becomes a new letter)
    still_invalid   filed again, at the end of the dead-letter topic, with today's reason
    foreign         not filed by the consumer for this topic: filed again unchanged

Each letter is sent exactly once: 500 letters, and how far the replay has come (the offsets of the
consumer group <topic>.dead-letter-replay), are one Kafka transaction. A replay that is killed and
run again sends each letter once; a second one at the same time stops the first. What a killed one
had begun to send is hidden from readers with isolation_level="read_committed"; others see it twice.
Kafka forgets a group that commits nothing for 7 days (offsets.retention.minutes of the broker):
all letters that the topic still holds are pending then.

Environment (or .env): KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPIC and KAFKA_CA_FILE, as the consumer;
REPLAYER_KAFKA_USER and REPLAYER_KAFKA_PASSWORD where Kafka asks for them.

Exit codes: 0 done, 1 Kafka unreachable, no such topic, or stopped midway; 2 wrong usage or
configuration, 130 Ctrl-C.
"""

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
from typing import Any, NamedTuple

from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata

from kafka_to_elasticsearch import DEAD_LETTER_BYTES, number, one_line, parse_reading
from kibana.command_line import command, load_env
from stack.console import CommandError, command_parser
from tools.connection import (
    ANSWER_TIMEOUT_MS,
    CONNECT_TIMEOUT_MS,
    Offsets,
    asking_servers,
    existing_topics,
    hidden_offsets,
    kafka_consumer,
    kafka_options,
    kafka_servers,
    kafka_topic,
    partitions_of,
    read_between,
)
from tools.verify import progress_bar

ROLE = "REPLAYER"
BATCH = 500  # letters in one transaction
SETTLE_S = 1.0  # until the offsets that a killed replay has committed can be read
COLUMNS = {"time (UTC)": 23, "partition/offset": 16, "key": 14, "reason": 34, "message": 25}
WIDTH = 120
# What differs between reasons of the same cause: quoted values; ids, positions, long numbers.
MASKS = (
    (re.compile(r"""(?<!\w)(['"]).*?\1(?!\w)"""), "'*'"),
    (re.compile(r"[\w.:-]+@[\w.:-]+|\d+:\d+|(?<=byte )\d+|\d{7,}"), "*"),
)
# The two errors that mean that another producer has taken over the transactional id.
FENCED = re.compile("ProducerFenced|InvalidProducerEpoch")

Outcome = Counter[str]


class Letter(NamedTuple):
    """A message of the dead-letter topic, and what its headers say about the original one."""

    message: Any
    partition: TopicPartition  # of the dead-letter topic
    is_ours: bool  # filed by the consumer for this topic
    where: str  # partition/offset in the source topic
    epoch_ms: int
    reason: str


def read_letter(message: Any, topic: str) -> Letter:
    """Return a letter, marked as foreign unless the consumer has filed it for this topic."""
    partition, headers = TopicPartition(message.topic, message.partition), dict(message.headers)
    try:
        where = f"{int(headers['source.partition'])}/{int(headers['source.offset'])}"
        epoch_ms = int(headers["source.timestamp"])
        reason = headers["reason"].decode(errors="backslashreplace")
        is_ours = headers["source.topic"].decode() == topic
    except (KeyError, ValueError, TypeError, AttributeError):  # a header lacks, or is not ours
        is_ours = False
    if not is_ours:
        where, epoch_ms, reason = "-", message.timestamp, "foreign: not filed by the consumer"
    return Letter(message, partition, is_ours, where, epoch_ms, reason)


class DeadLetters:
    """The dead-letter topic, and how far replays have come in it."""

    def __init__(self, servers: str, topic: str, security: dict[str, Any]) -> None:
        """Connect to Kafka.

        Raises:
            KafkaError: it does not answer, or has neither the topic nor its dead-letter topic.
        """
        self.servers, self.topic, self.security = servers, topic, security
        self.name = f"{topic}.dead-letter"
        self.group = f"{topic}.dead-letter-replay"
        self.topics = existing_topics(servers, security)
        if self.name not in self.topics:
            self.require_topic()
        # This consumer never joins the group, which only keeps the offsets.
        self.consumer = kafka_consumer(servers, security, group_id=self.group)

    def require_topic(self) -> None:
        """Check that the source topic exists, because sending to it would create it.

        Raises:
            UnknownTopicOrPartitionError: it does not.
        """
        if self.topic not in self.topics:
            raise UnknownTopicOrPartitionError(f"topic {self.topic} does not exist")

    def bounds(self) -> tuple[Offsets, Offsets, Offsets]:
        """Return for each partition its first offset, its first pending one, and its end for now.

        There is no partition when no letter has been filed yet.

        Raises:
            KafkaError: Kafka does not answer.
        """
        partitions = partitions_of(self.consumer, self.name) if self.name in self.topics else []
        try:
            committed = {
                p: self.consumer.committed(p, timeout_ms=ANSWER_TIMEOUT_MS) for p in partitions
            }
        except KafkaTimeoutError as exc:  # kafka-python's text does not say for what
            raise KafkaTimeoutError("it does not tell how far replays have come") from exc
        # The end is asked for after the committed offsets, so that it is not before them when
        # another replay commits meanwhile. Only in a topic that was made anew can it be.
        end: Offsets = self.consumer.end_offsets(partitions)
        first: Offsets = self.consumer.beginning_offsets(partitions)
        pending = dict(first)
        for partition, offset in committed.items():
            if offset is not None and first[partition] <= offset <= end[partition]:
                pending[partition] = offset
        return first, pending, end

    def read(self, begin: Offsets, end: Offsets) -> Iterator[list[Letter]]:
        """Yield the letters of each partition in order, in lists of BATCH at most.

        Raises:
            KafkaTimeoutError: Kafka has stopped delivering.
        """
        for messages in read_between(self.consumer, begin, end, at_once=BATCH):
            yield [read_letter(message, self.topic) for message in messages]


# The command list


def cause(reason: str) -> str:
    """Return what a reason has in common with others of the same cause."""
    for pattern, mask in MASKS:
        reason = pattern.sub(mask, reason)
    return reason


def printable(content: bytes | str | None) -> str:
    """Return text or bytes in ASCII without control characters, so that a terminal obeys none."""
    if content is None:
        return "(none)"
    return ascii(content[:1000]).removeprefix("b")[1:-1] or "(empty)"


def utc(epoch_ms: int) -> str:
    """Return a time in Unix milliseconds as text, or the number when it is out of range."""
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(" ", "milliseconds")[:23]
    except (ValueError, OverflowError, OSError):
        return str(epoch_ms)


def cut(text: str, width: int) -> str:
    """Return a text of exactly that width: cut, or with spaces behind it."""
    return f"{text if len(text) <= width else text[: width - 3] + '...':<{width}}"


def row(*cells: str) -> str:
    """Return one line of the table."""
    widths = COLUMNS.values()
    return "  ".join(cut(cell, w) for cell, w in zip(cells, widths, strict=True)).rstrip() + "\n"


def print_letters(letters: DeadLetters, last: int) -> None:
    """Print the pending letters that are the last in time, and count all of them by cause."""
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
    summary = f"in {letters.name}; taken by replays before: {taken}"
    if deleted := sum(first.values()):
        summary += f"; deleted by the topic: {deleted}"
    if end and (hidden := hidden_offsets(letters.servers, letters.security, end)):
        summary += f"; hidden by an open transaction: {hidden}"
    if not newest:
        write(f"no letter is pending {summary}\n")
        return
    write(row(*COLUMNS))
    for message, _, _, where, epoch_ms, reason in reversed(newest):
        contents = map(printable, (message.key, reason, message.value))
        write(row(utc(epoch_ms), where, *contents))
    write("\n")
    for text, count in causes.most_common():
        write(f"{count:>9}  {cut(printable(text), WIDTH - 11).rstrip()}\n")
    write(f"{causes.total():>9}  pending {summary}\n")


# The command replay


def onward(letter: Letter, topic: str) -> tuple[str, dict[str, Any]]:
    """Return what becomes of a letter, and the producer's arguments to send it onward."""
    message = letter.message
    # kafka-python sends neither a message without key and value nor a header without value.
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
    """Send some letters onward and commit their offsets, in one transaction.

    Raises:
        KafkaError: nothing is done, or everything if only the answer to the commit was lost.
    """
    outcome: Outcome = Counter()
    producer.begin_transaction()
    try:
        sent = []
        for letter in batch:
            became, arguments = onward(letter, letters.topic)
            outcome[became] += 1
            sent.append(producer.send(**arguments))
        for future in sent:  # because a commit succeeds even if a message could not be sent
            future.get(timeout=ANSWER_TIMEOUT_MS / 1000)
        done = {one.partition: OffsetAndMetadata(one.message.offset + 1, "", -1) for one in batch}
        within(ANSWER_TIMEOUT_MS, producer.send_offsets_to_transaction, done, letters.group)
        within(ANSWER_TIMEOUT_MS, producer.commit_transaction)
    except BaseException:
        # If Kafka cannot be told, it aborts by itself after a while. The library raises an OSError
        # when another replay has already made it close its connections.
        with suppress(KafkaError, OSError):
            within(5000, producer.abort_transaction)
        raise
    return outcome


def within(timeout_ms: int, call: Callable[..., None], *arguments: Any) -> None:
    """Make a call of the producer that would wait for an absent Kafka without end.

    Raises:
        KafkaTimeoutError: it has not returned in time.
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            call(*arguments)
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
    """Send each pending letter onward, and print how many had which outcome.

    Raises:
        CommandError: another replay has taken over.
        KafkaError: the replay was stopped midway; what it has printed is done for good.
    """
    letters.require_topic()
    outcome: Outcome = Counter(replayed=0, still_invalid=0, foreign=0)
    producer = KafkaProducer(
        bootstrap_servers=letters.servers.split(","),
        transactional_id=letters.group,
        transaction_timeout_ms=ANSWER_TIMEOUT_MS,  # then Kafka aborts a killed replay's
        compression_type="lz4",
        max_request_size=DEAD_LETTER_BYTES + 1_000_000,  # and what Kafka adds to it
        max_block_ms=ANSWER_TIMEOUT_MS,
        api_version_auto_timeout_ms=CONNECT_TIMEOUT_MS,
        **letters.security,
    )
    try:
        producer.init_transactions()  # stops other replays, and undoes what they had begun
        time.sleep(SETTLE_S)  # Kafka notes the offsets of a transaction just after its end
        _, begin, end = letters.bounds()  # from now on, no other replay can take a letter
        expected = sum(end[partition] - begin[partition] for partition in end)
        with progress_bar("replaying", expected) as bar:
            for batch in letters.read(begin, end):
                outcome.update(send_batch(producer, batch, letters))
                bar.update(len(batch))
    except KafkaError as exc:
        if not FENCED.search(repr(exc)):
            raise
        text = "another replay of this topic has begun, or this one took too long"
        raise CommandError(text) from exc
    finally:
        sys.stdout.write(" ".join(f"{name}={count}" for name, count in outcome.items()) + "\n")
        with suppress(KafkaError, OSError):
            producer.close(timeout=5)


@command("dead_letters")
def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return the exit code (see the module docstring)."""
    parser = command_parser("tools.dead_letters", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="show the pending letters; changes nothing")
    listing.add_argument(
        "--last", type=number(1, 1e9, int), default=20, metavar="N", help="rows (default: 20)"
    )
    commands.add_parser("replay", help="send the pending letters through the pipeline again")
    arguments = parser.parse_args(argv)
    load_env()
    servers, topic, security = kafka_servers(), kafka_topic(), kafka_options(ROLE)
    with asking_servers(ROLE):
        letters = DeadLetters(servers, topic, security)
        with closing(letters.consumer):
            if arguments.command == "list":
                print_letters(letters, arguments.last)
            else:
                replay(letters)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
