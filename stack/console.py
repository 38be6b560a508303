"""How every command of the project prints, and how it ends: an exit code, never a traceback."""

import io
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps

Main = Callable[[Sequence[str] | None], int]
ExitCodes = Mapping[type[Exception], int]


class CommandError(Exception):
    """What stops a command, in one line for the user; its exit code is 1."""


def command_parser(module: str, description: str | None) -> ArgumentParser:
    """Return a parser whose usage shows how the module is started, as in `python -m tools.demo`."""
    return ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
    )


def say(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def command(name: str, codes: ExitCodes | None = None) -> Callable[[Main], Callable[..., int]]:
    """Return a decorator for a command's main, which then ends in an exit code.

    The code is what main returns, 1 for a CommandError or a file or output that cannot be written,
    130 for Ctrl-C. An error is said in one line on stderr, after the name.

    Args:
        name: of the command.
        codes: the exit codes of other exceptions.
    """

    def decorate(main: Main) -> Callable[..., int]:
        @wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            for stream in ("stdout", "stderr"):
                if getattr(sys, stream) is None:  # the shell's >&- has closed it
                    setattr(sys, stream, io.StringIO())
            try:
                try:
                    return main(argv)
                finally:
                    sys.stdout.flush()
            except BaseException as exc:
                if not (end := ending(exc, {**(codes or {}), CommandError: 1})):
                    raise
                code, why = end
            if why:
                sys.stderr.write(f"{name}: {why}\n")
            return code

        return guarded

    return decorate


def ending(exc: BaseException, codes: ExitCodes) -> tuple[int, str] | None:
    """Return the exit code and the line that an exception ends a command with.

    None means that it is an exit already, or a fault of the program.
    """
    if was_interrupted(exc):
        return 130, ""
    for kind, code in codes.items():
        if isinstance(exc, kind):
            return code, str(exc)
    if not isinstance(exc, OSError):
        return None
    if exc.filename is not None:
        return 1, f"{exc.filename}: {exc.strerror}"
    discard_output()
    if isinstance(exc, BrokenPipeError):  # the reader of the output has left, as `head` does
        return 1, ""
    return 1, f"standard output: {exc.strerror or exc}"


def was_interrupted(exc: BaseException | None) -> bool:
    """Return whether an exception is Ctrl-C, or came up while something was closed after it."""
    while exc and not isinstance(exc, KeyboardInterrupt):
        exc = exc.__context__
    return exc is not None


def discard_output() -> None:
    """Drop what stdout still holds: the interpreter would try to write it again at its end."""
    with suppress(OSError):  # stdout is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
