#!/usr/bin/env python3
"""Compare what was sent with what the tables hold, message by message.

    python pipelines/smarttech/verify.py
    python pipelines/smarttech/verify.py --ledger FILE   # of kafka_producer.py --ledger FILE

1. The topic is read again: bronze must hold each message once, byte for byte.
2. Each message of bronze is judged anew and must be where it belongs, and nowhere else: in silver,
   with the same values, in duplicates, or in rejects for the same kind of reason. Hence
   bronze = silver + rejects + duplicates.
3. Gold and anomalies are computed anew from silver and must be the same.

All of it without Spark, and without any code of the consumer: the tables are read by `deltalake`
(delta-rs), the rules are written a second time in plain_rules.py.

Environment (or .env): as the consumer, see spark_kafka_consumer.py.

Exit codes: 0 they agree, 1 they do not or one cannot be read, 2 wrong usage, 130 interrupted.
"""

import argparse
import csv
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from deltalake.exceptions import DeltaError
from kafka import KafkaConsumer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import TopicPartition

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import load_env, poll  # noqa: E402
from pipelines.smarttech.plain_rules import Where  # noqa: E402
from pipelines.smarttech.settings import DEFAULT_LAKE, FOLDER, command_parser, leave  # noqa: E402
from pipelines.smarttech.verdict import Message, Verdict, compare  # noqa: E402
from stack.console import command  # noqa: E402

SILENCE_S = 60.0  # then Kafka has gone away: kafka-python waits for ever, and says nothing


def read_topic(servers: str, topic: str) -> tuple[dict[Where, Message], dict[int, int]]:
    """Return the messages that the topic holds, and each partition's first offset.

    Raises:
        ValueError: there is no such topic.
        KafkaError: it cannot be read to its end, cannot be decoded, or has lost what was not read
            yet.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        api_version_auto_timeout_ms=10_000,
        request_timeout_ms=30_000,
        isolation_level="read_committed",  # as the stream reads
        auto_offset_reset="none",  # what retention deletes meanwhile is said, not passed over
    )
    with closing(consumer):
        known = consumer.partitions_for_topic(topic)
        if not known:
            raise ValueError(f"there is no topic {topic} at {servers}")
        partitions = [TopicPartition(topic, p) for p in known]
        first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        left = {p for p in partitions if first[p] < end[p]}
        messages: dict[Where, Message] = {}
        consumer.assign(sorted(left))
        for partition in left:
            consumer.seek(partition, first[partition])
        reached, moved_at = dict(first), time.monotonic()
        while left:
            for partition, polled in poll(consumer, timeout_ms=1000, max_records=5000).items():
                for message in polled:
                    if message.offset < end[partition]:
                        messages[message.partition, message.offset] = Message(
                            message.key, message.value, message.timestamp
                        )
            now_at = {p: consumer.position(p, timeout_ms=1000) for p in left}
            if any(now_at[p] != reached[p] for p in left):
                reached, moved_at = now_at, time.monotonic()
            elif time.monotonic() > moved_at + SILENCE_S:
                raise KafkaTimeoutError("nothing comes any more")
            left = {p for p in left if now_at[p] < end[p]}
        return messages, {p.partition: first[p] for p in partitions}


def print_verdict(verdict: Verdict, topic: str) -> None:
    """Print one line per count, with the first few of what is wrong."""
    write = sys.stdout.write
    write(f"messages in {topic:<28} {verdict.topic:>9}\n")
    for name, rows in verdict.rows.items():
        write(f"rows in {name:<32} {rows:>9}\n")
        for reason, number in verdict.reasons.most_common() if name == "rejects" else ():
            write(f"  of which {reason:<29} {number:>9}\n")
    if verdict.ledger:
        write(f"{'messages in the ledger':<40} {verdict.ledger:>9}\n")
        write(f"{'  made anomalous on purpose':<40} {verdict.spikes:>9}\n")
        write(f"{'  of which found':<40} {verdict.spikes_found:>9}\n")
    write(f"{'bronze - silver - rejects - duplicates':<40}{verdict.balance:>9}\n")
    for name, found in verdict.faults().items():
        write(f"{name:<40} {len(found):>9}")
        write(f"   for example {', '.join(map(str, found[:3]))}\n" if found else "\n")


def duration(text: str) -> timedelta:
    """Return a duration written as "10 minutes"."""
    match = re.fullmatch(r"([1-9]\d{0,4}) (second|minute|hour|day)s?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not such as '10 minutes'")
    return timedelta(**{f"{match[2]}s": int(match[1])})


@command("verify")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; return the exit code (see the module docstring)."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ledger", type=Path, action="append", default=[], metavar="FILE",
        help="what the producer noted, as often as it has run")  # fmt: skip
    add("--lateness", type=duration, default=timedelta(minutes=10), metavar="DURATION",
        help="as the consumer was told (default: 10 minutes)")  # fmt: skip
    add("--window", type=duration, default=timedelta(minutes=5), metavar="DURATION",
        help="as the consumer was told (default: 5 minutes)")  # fmt: skip
    options = parser.parse_args(argv)
    load_env(FOLDER)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092"
    topic = os.environ.get("SMARTTECH_TOPIC") or "sensor_data"
    lake = Path(os.environ.get("SMARTTECH_LAKE") or DEFAULT_LAKE)
    try:
        messages, first = read_topic(servers, topic)
        verdict = compare(
            messages, first, lake, topic, options.lateness, options.window, options.ledger
        )
    except (KafkaError, DeltaError, OSError, ValueError, csv.Error, TypeError, KeyError) as exc:
        # The last two: of a table whose columns are of other types.
        sys.stderr.write(f"verify: cannot compare: {' '.join(str(exc).split())[:300]}\n")
        return 1
    if not (messages or verdict.rows["bronze"]):
        sys.stderr.write(f"verify: nothing to compare: {topic} and the tables are empty\n")
        return 1
    print_verdict(verdict, topic)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    leave(main())
