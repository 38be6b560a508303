"""What the scripts here share: how .env is read, and how Kafka's addresses are given."""

import argparse
import re
import sys
from pathlib import Path

from dotenv import load_dotenv

ENV_FILE = Path(__file__).resolve().parents[2] / ".env"


def load_env() -> None:
    """Read .env at the project's root; the real environment wins over it.

    Raises:
        SystemExit: with code 2, when it cannot be read; why is said on stderr.
    """
    try:
        load_dotenv(ENV_FILE)
    except UnicodeDecodeError:
        sys.stderr.write(".env is not in UTF-8: save it so\n")
        raise SystemExit(2) from None


def addresses(text: str) -> str:
    """Return Kafka's HOST:PORT, several separated by commas, as they are; an argparse type.

    Raises:
        argparse.ArgumentTypeError: one is none.

    >>> addresses("localhost:9092,[::1]:9093")
    'localhost:9092,[::1]:9093'
    """
    for address in text.split(","):
        match = re.fullmatch(r"(?:\[[\da-fA-F:.]+\]|[\w.-]+):(\d{1,5})", address)
        if not match or not 0 < int(match[1]) < 65_536:
            raise argparse.ArgumentTypeError(f"{address!r} is not HOST:PORT")
    return text
