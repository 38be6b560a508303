"""What the command lines share: the values that they take.

Nothing but Python's own library in here: these scripts work without the main pipeline beside them.
"""

import argparse
import math
import re
from collections.abc import Callable

KAFKA_START = (
    "docker compose -f docker-compose.yml -f pipelines/smarttech/compose.yml up -d --wait kafka"
)


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
