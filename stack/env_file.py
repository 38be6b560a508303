"""Read the project's .env: the settings that the shell has not set."""

import os
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from stack.compose import PROJECT, StackError

ENV_FILE = PROJECT / ".env"


class EnvFileError(StackError):
    """A .env file that cannot be read."""


def read_environment(*files: Path) -> dict[str, str]:
    """Return the variables of this process, and those of .env files that it does not have.

    A later file wins over an earlier one. As for python-dotenv itself, PYTHON_DOTENV_DISABLED
    leaves the files out.

    Raises:
        EnvFileError: a file cannot be read.
    """
    environ: dict[str, str] = {}
    for file in () if "PYTHON_DOTENV_DISABLED" in os.environ else files:
        environ |= read_env_file(file)
    return environ | os.environ


def read_env_file(file: Path) -> dict[str, str]:
    """Return the variables that a .env file sets; none when there is no such file.

    python-dotenv skips a wrong line, and its default would then be used without a word. Here such a
    line is refused, by the same rule as in the two scripts.

    Raises:
        EnvFileError: the file cannot be read, or a line is wrong. The text names the line by its
            number and does not show it, since it may hold a password.
    """
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise EnvFileError(f"{file}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise EnvFileError(f"{file}, line {line}: not in UTF-8: save it so") from exc
    for binding in parse_stream(StringIO(content)):
        statement, name = binding.original.string, binding.key
        is_setting = name is None or (name.isidentifier() and binding.value is not None)
        if binding.error or "\0" in statement or not is_setting:
            blank_lines = statement[: -len(statement.lstrip())].count("\n")
            line = binding.original.line + blank_lines
            raise EnvFileError(f"{file}, line {line}: not NAME=VALUE, or a quote is not closed")
    values = dotenv_values(stream=StringIO(content), interpolate=False)
    return {name: value for name, value in values.items() if value is not None}
