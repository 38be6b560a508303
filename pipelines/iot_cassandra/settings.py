"""What the programs of this folder share: names, options, and the wait for a server.

Nothing but Python's own library is imported here: Spark's image has no other.
"""

import argparse
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pipelines.common import number, server_list, text, topic_name

T = TypeVar("T")
FOLDER = Path(__file__).resolve().parent
# The document's table, which must be there, and the one that is written too when it is there.
SENSOR_DATA, BY_DAY = "sensor_data", "sensor_data_by_day"
# Table -> its columns. A row's values are the same in both.
TABLES = {
    SENSOR_DATA: ("sensor_id", "timestamp", "temperature", "humidity"),
    BY_DAY: ("sensor_id", "day", "timestamp", "temperature", "humidity"),
}
# What a message may say: the years 1900 to 9999 (before, clocks and calendars differ from program
# to program), and what a working sensor can measure.
FIRST_MS, LAST_MS = -2_208_988_800_000, 253_402_300_799_999
REJECT_BYTES = 100_000_000  # with its headers, a reject is larger than what could be read

keyspace_name = text(r"[a-z][a-z0-9_]{0,47}", "1 to 48 of a-z, 0-9 and _, a letter first")
# Option -> variable, default, type.
SHARED: Mapping[str, tuple[str, str, Callable[[str], str]]] = {
    "--bootstrap-servers": ("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", server_list),
    "--topic": ("IOT_TOPIC", "iotdata", topic_name),
    "--group-id": ("IOT_GROUP_ID", "iot-cassandra-writer", topic_name),
    "--hosts": ("CASSANDRA_HOSTS", "localhost:9042", server_list),
    "--keyspace": ("CASSANDRA_KEYSPACE", "iot_keyspace", keyspace_name),
}


class ClientError(Exception):
    """What keeps a program from starting or going on, in one line, and the exit code for it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def rejects_topic(topic: str) -> str:
    """Return the topic that takes the messages of a topic that are no readings."""
    return f"{topic}.rejects"


def addresses(servers: str) -> list[tuple[str, int]]:
    """Return the hosts and ports of a list of servers.

    >>> addresses("localhost:9042,[::1]:9043")
    [('localhost', 9042), ('::1', 9043)]
    """
    split = (server.rpartition(":") for server in servers.split(","))
    return [(host.strip("[]"), int(port)) for host, _, port in split]


def one_line(exc: Exception | None) -> str:
    """Return an exception's message in one line, not too long."""
    message = " ".join(str(exc).split()) or type(exc).__name__
    return f"{message[:297]}..." if len(message) > 300 else message


def patiently(
    log: logging.Logger,
    where: str,
    connect: Callable[[], T],
    errors: tuple[type[Exception], ...],
    wait_s: float,
    stop: threading.Event,
) -> T:
    """Return what connect returns, tried again until wait_s seconds are over.

    Args:
        log: says what is waited for.
        where: the server and its address.
        connect: asks the server.
        errors: what connect raises while the server does not answer.
        wait_s: seconds.
        stop: ends the wait.

    Raises:
        ClientError: the server did not answer in time, or we were told to stop.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return connect()
        except errors as exc:
            why, left_s = one_line(exc), deadline - time.monotonic()
            if left_s <= 0:
                text = f"{where} does not answer ({why}): is it started? (see README)"
                raise ClientError(text, code=1) from exc
        log.warning("waiting for %s (%s), %.0f s left", where, why, left_s)
        if stop.wait(min(2.0, left_s)):
            raise ClientError("stopped while waiting", code=0)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's docstring."""
    description, _, epilog = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_shared(
    parser: argparse.ArgumentParser, environ: Mapping[str, str], *options: str
) -> argparse.ArgumentParser:
    """Add some of the shared options to a parser; return it."""
    for option in options:
        variable, default, kind = SHARED[option]
        # A text from the environment is checked too: argparse does that with a default.
        parser.add_argument(
            option,
            default=environ.get(variable) or default,
            type=kind,
            metavar="NAME",
            help=f"environment: {variable} (default: {default})",
        )
    return parser


def add_partitions(parser: argparse.ArgumentParser) -> None:
    """Add the option --partitions."""
    parser.add_argument(
        "--partitions",
        type=number(1, 10_000, int),
        default=1,
        metavar="N",
        help="of the topic, when it is not there yet (default: 1)",
    )


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Add the option --wait."""
    parser.add_argument(
        "--wait",
        type=number(0, 86_400),
        default=60.0,
        metavar="SECONDS",
        help="for the servers, at the start (default: 60)",
    )
