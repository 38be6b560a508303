"""Kafka's addresses and the topic's name, as every script here takes them."""

import argparse
import re


def addresses(text: str) -> str:
    """Return a list of HOST:PORT, separated by commas, as it is; an argparse type.

    Raises:
        argparse.ArgumentTypeError: it is none.

    >>> addresses("localhost:9092,[::1]:9093")
    'localhost:9092,[::1]:9093'
    """
    for address in text.split(","):
        match = re.fullmatch(r"(?:\[[\da-fA-F:.]+\]|[\w.-]+):(\d{1,5})", address)
        if not match or not 0 < int(match[1]) < 65_536:
            raise argparse.ArgumentTypeError(f"{address!r} is not HOST:PORT")
    return text


def topic_name(text: str) -> str:
    """Return the name of a topic as it is; an argparse type.

    Raises:
        argparse.ArgumentTypeError: Kafka allows no such name.

    >>> topic_name("transactions")
    'transactions'
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", text) or text in (".", ".."):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no topic's name: 1 to 249 letters without accents, digits, . _ -"
        )
    return text
