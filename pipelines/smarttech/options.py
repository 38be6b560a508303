"""What the command lines share: the values that they take, and where these come from.

Nothing but Python's own library and dotenv in here: these scripts work without the main pipeline
beside them.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from dotenv import load_dotenv

PROJECT = Path(__file__).resolve().parents[2]
KAFKA_START = (
    "docker compose -f docker-compose.yml -f pipelines/smarttech/compose.yml up -d --wait kafka"
)


def load_env() -> None:
    """Read .env; the real environment wins over it. Exit with code 2 when it is not in UTF-8."""
    file = PROJECT / ".env"
    try:
        load_dotenv(file)
    except UnicodeDecodeError:
        sys.stderr.write(f"{file} is not in UTF-8: save it so\n")
        raise SystemExit(2) from None


def leave(code: int) -> NoReturn:
    """End the process with an exit code, all being written, and at once.

    At Python's own end the threads of deltalake and pyarrow run on for a moment: 2 to 3 of 100
    processes that had read a table were aborted in it (SIGABRT), after all was said.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # who read it has left
            stream.flush()
    os._exit(code)


def at_least(minimum: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    """Return an argparse type for a finite number that is not below a minimum."""

    def parse(text: str) -> float:
        number = kind(text)
        if not minimum <= number < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not at least {minimum:g}")
        return number

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def servers(text: str) -> str:
    """Return a list of brokers if each is HOST:PORT."""
    if not re.fullmatch(r"([^:,\s]+:\d{1,5})(,[^:,\s]+:\d{1,5})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT[,HOST:PORT...]")
    return text


def topic_name(text: str) -> str:
    """Return a topic's name if Kafka allows it."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 249 letters, digits or . _ -")
    return text
