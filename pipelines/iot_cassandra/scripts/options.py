"""Options that the programs of this folder share: flag > environment > default, checked at once.

Nothing but Python's own library in here: Spark's image has this folder and no Kafka client.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def load_env(file: Path) -> None:
    """Read an .env file; the real environment wins. Exit with code 2 when it cannot be read.

    Raises:
        ImportError: python-dotenv is not installed.
    """
    from dotenv import load_dotenv  # only now: Spark's image has this module and not that one

    try:
        load_dotenv(file)
    except UnicodeDecodeError:
        sys.stderr.write(f"{file} is not in UTF-8: save it so\n")
        raise SystemExit(2) from None
    except OSError as exc:
        sys.stderr.write(f"{file}: {exc.strerror}\n")
        raise SystemExit(2) from None


def matching(pattern: str, shape: str) -> Callable[[str], str]:
    """Return an argparse type for a text that matches a pattern, described by its shape."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {shape}")
        return text

    return parse


def at_least(minimum: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    """Return an argparse type for a finite number that is not below a minimum."""

    def parse(text: str) -> float:
        if not minimum <= (number := kind(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not at least {minimum:g}")
        return number

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def addresses(servers: str) -> list[tuple[str, int]]:
    """Return the hosts and ports of a list of servers.

    >>> addresses("localhost:9042,10.0.0.1:9043")
    [('localhost', 9042), ('10.0.0.1', 9043)]
    """
    split = (server.rpartition(":") for server in servers.split(","))
    return [(host, int(port)) for host, _, port in split]


def servers(text: str) -> str:
    """Return a list of servers, as it is (an argparse type).

    Raises:
        ArgumentTypeError: it is no such list.
    """
    shape = "HOST:PORT[,HOST:PORT...]"
    text = matching(r"[^:,\s]+:[0-9]{1,5}(,[^:,\s]+:[0-9]{1,5})*", shape)(text)
    if not all(0 < port < 2**16 for _, port in addresses(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not {shape} with ports from 1 to 65535")
    return text


NAME = matching(r"[A-Za-z0-9._-]{1,200}", "1 to 200 letters, digits or . _ -")
KEYSPACE = matching(r"[a-z][a-z0-9_]{0,47}", "1 to 48 of a-z, 0-9 and _, a letter first")
# Flag -> variable, default, type.
SHARED: Mapping[str, tuple[str, str, Callable[[str], str]]] = {
    "--bootstrap-servers": ("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", servers),
    "--topic": ("IOT_TOPIC", "iotdata", NAME),
    "--group-id": ("IOT_GROUP_ID", "iot-cassandra-writer", NAME),
    "--hosts": ("CASSANDRA_HOSTS", "localhost:9042", servers),
    "--keyspace": ("CASSANDRA_KEYSPACE", "iot_keyspace", KEYSPACE),
}


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's docstring."""
    description, _, epilog = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_shared(
    parser: argparse.ArgumentParser, environ: Mapping[str, str], *flags: str
) -> argparse.ArgumentParser:
    """Add some of the shared options to a parser; return it."""
    for flag in flags:
        variable, default, kind = SHARED[flag]
        text = f"environment: {variable} (default: {default})"
        # Also a text from the environment is checked: argparse does that with a default.
        value = environ.get(variable) or default
        parser.add_argument(flag, default=value, type=kind, metavar="NAME", help=text)
    return parser
