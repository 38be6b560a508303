"""What the command lines of this pipeline share: folders, options, and the end of a process."""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

from pipelines.common import number, server_list, text, topic_name

FOLDER = Path(__file__).resolve().parent
DEFAULT_LAKE = FOLDER / "lake"
KAFKA_START = "docker compose -f pipelines/smarttech/docker-compose.yml up -d --wait"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose --help shows a script's whole description, its first line on top."""
    summary, _, epilog = (description or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_kafka_options(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add --bootstrap-servers, --topic and --wait (seconds, at least 0)."""
    for flag, name, default, kind in (
        ("--bootstrap-servers", "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", server_list),
        ("--topic", "SMARTTECH_TOPIC", "sensor_data", topic_name),
    ):
        parser.add_argument(
            flag,
            type=kind,
            metavar=name.split("_")[-1],
            default=environ.get(name) or default,
            help=f"environment: {name} (default: {default})",
        )
    parser.add_argument(
        "--wait",
        type=number(0, 86_400),
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for Kafka at the start (default: 60)",
    )


def add_lake_option(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add --lake: the folder of the tables."""
    parser.add_argument(
        "--lake",
        type=folder,
        metavar="FOLDER",
        default=environ.get("SMARTTECH_LAKE") or str(DEFAULT_LAKE),
        help="environment: SMARTTECH_LAKE (default: lake/ beside this file)",
    )


def add_checkpoint_option(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add --checkpoint, which is None for the folder checkpoints/ of the lake."""
    parser.add_argument(
        "--checkpoint",
        type=folder,
        metavar="FOLDER",
        default=environ.get("SMARTTECH_CHECKPOINT") or None,
        help="environment: SMARTTECH_CHECKPOINT (default: checkpoints/ in the lake)",
    )


def folder(name: str) -> Path:
    """Return a folder's absolute path: Java does not know where this process works.

    Raises:
        argparse.ArgumentTypeError: the name is blank, or Java could not be told it.
    """
    return Path(text(r"(?s).*\S.*", "a folder, named in UTF-8")(name)).absolute()


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time; one without an offset is UTC.

    Raises:
        argparse.ArgumentTypeError: it is none, or not in the years 2000 to 2099.

    >>> parse_time("2025-12-15T11:00:00+01:00").isoformat()
    '2025-12-15T11:00:00+01:00'
    """
    with suppress(ValueError):
        when = datetime.fromisoformat(text)
        if 2000 <= when.year <= 2099:
            return when if when.tzinfo else when.replace(tzinfo=UTC)
    allowed = "an ISO 8601 time of the years 2000 to 2099"
    raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")


def period(text: str) -> timedelta:
    """Return a duration written as 90s, 15m, 24h or 30d.

    >>> period("1.5h")
    datetime.timedelta(seconds=5400)
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([smhd])", text)
    seconds = float(match[1]) * UNITS_S[match[2]] if match else 0
    if not 0.001 <= seconds <= 36_500 * UNITS_S["d"]:
        allowed = "a duration such as 90s, 15m, 24h or 30d, at most 36500d"
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
    return timedelta(seconds=seconds)


def leave(code: int) -> NoReturn:
    """End the process with an exit code, all being written, and at once.

    At Python's own end the threads of deltalake and pyarrow run on for a moment: 2 to 3 of 100
    processes that had read a table were aborted in it (SIGABRT), after all was said.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # who reads it has left, as `head` does: this is no fault
            stream.flush()
    os._exit(code)
