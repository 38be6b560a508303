"""The file .env in the project's folder, as every script here reads it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dotenv import dotenv_values, load_dotenv

PROJECT = Path(__file__).resolve().parents[2]


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what keeps .env from being read into one line for the user.

    Raises:
        SystemExit: it cannot be read; the code is 2.
    """
    try:
        yield
    except UnicodeDecodeError:
        sys.stderr.write(".env is not in UTF-8: save it so\n")
        raise SystemExit(2) from None
    except OSError as exc:
        sys.stderr.write(f".env: {exc.strerror}\n")
        raise SystemExit(2) from None


def load_env() -> None:
    """Put what .env sets into the environment, which wins over it.

    Raises:
        SystemExit: it cannot be read.
    """
    with one_line():
        load_dotenv(PROJECT / ".env")


def env_values() -> dict[str, str | None]:
    """Return what .env sets, nothing without that file.

    Raises:
        SystemExit: it cannot be read.
    """
    with one_line():
        return dotenv_values(PROJECT / ".env")
