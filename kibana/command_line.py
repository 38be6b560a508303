"""How the commands of kibana/, tools/ and screenshots/ begin: .env, variables, exit codes."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kafka_to_elasticsearch
from kafka_to_elasticsearch import SetupError
from stack import console

PROJECT = Path(__file__).resolve().parent.parent
ENV_FILE = PROJECT / ".env"

command = partial(console.command, codes={SetupError: 2})


def load_env() -> None:
    """Read .env into the environment, where a variable is not set yet.

    Raises:
        SetupError: the file cannot be read, or a line of it is wrong.
    """
    kafka_to_elasticsearch.load_env(ENV_FILE)


def variable(name: str, kind: Callable[[str], str], default: str) -> str:
    """Return an environment variable's value; an empty one counts as not set.

    Args:
        name: of the variable.
        kind: an argparse type, which refuses a wrong value by ArgumentTypeError.
        default: the value when the variable is not set.

    Raises:
        SetupError: the value is wrong; the text names the variable.
    """
    try:
        return kind(os.environ.get(name) or default)
    except argparse.ArgumentTypeError as exc:
        raise SetupError(f"{name}: {exc}") from None
