"""The options that the scripts here have in common, the types of their values; the bar."""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tqdm import tqdm

from pipelines.common import number, server_list, topic_name

MAX_DURATION_S = 100 * 366 * 86_400.0
DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
share = number(0, 1)
port = number(1, 65_535, int)


def add_kafka_options(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add --bootstrap-servers and --topic, whose defaults the environment may set."""
    for flag, name, default, kind in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", server_list),
        ("--topic", "TRANSACTIONS_TOPIC", "transactions", topic_name),
    ):
        parser.add_argument(
            flag,
            default=environ.get(name) or default,
            metavar=name.split("_")[-1],
            type=kind,
            help=f"environment: {name} (default: {default})",
        )


def add_wait_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --wait SECONDS, how long a script waits at its start for what it needs."""
    parser.add_argument(
        "--wait",
        type=number(0, 86_400),
        default=60.0,
        metavar="SECONDS",
        help=f"how long to wait for {what} at the start (default: 60)",
    )


def described_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's docstring: its first line, the options, the rest."""
    description, _, epilog = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def progress_bar(items: Iterable[Any], what: str, expected: int | None) -> "tqdm[Any]":
    """Return the items, with a bar on stderr until their end if that is a terminal."""
    return tqdm(items, what, expected, leave=False, disable=not sys.stderr.isatty())


def moment(text: str) -> datetime:
    """Return an ISO 8601 time, or the present for "now"; one without an offset is UTC.

    Raises:
        argparse.ArgumentTypeError: it is neither, or not in the years 2000 to 2099.
    """
    try:
        when = datetime.now(UTC) if text == "now" else datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO 8601 time or now") from None
    if not 2000 <= when.year <= 2099:
        raise argparse.ArgumentTypeError(f"{text} is not in the years 2000 to 2099")
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def duration(text: str) -> timedelta:
    """Return a duration written as 90s, 15m, 24h or 30d.

    Raises:
        argparse.ArgumentTypeError: it is none, zero, or longer than a hundred years.

    >>> duration("48h")
    datetime.timedelta(days=2)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 48h or 7d")
    seconds = float(match[1]) * DURATION_UNITS_S[match[2]]
    if seconds > MAX_DURATION_S:
        raise argparse.ArgumentTypeError(f"{text} is longer than a hundred years")
    return timedelta(seconds=seconds)
