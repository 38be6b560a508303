"""What the four pipelines share: their settings, the end of a command, and the demonstrations.

Nothing but Python's own library is imported at the top: Spark's image has no other.
"""

import argparse
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

PROJECT = Path(__file__).resolve().parents[1]


class StepError(Exception):
    """A step of a demonstration has failed; the text is its command and its exit code."""


# 1. Settings: an option wins over the environment, which wins over .env


def load_env(folder: Path) -> None:
    """Put what .env files say into the environment, where it is not set yet.

    The pipeline's own .env wins over the one of the project.

    Args:
        folder: of the pipeline.

    Raises:
        SystemExit: a file cannot be read or a line is wrong; stderr names it, and the code is 2.
    """
    from stack.env_file import EnvFileError, read_environment  # not in Spark's image

    try:
        os.environ.update(read_environment(PROJECT / ".env", folder / ".env"))
    except EnvFileError as exc:
        sys.stderr.write(f"{exc}\n")
        raise SystemExit(2) from None


def number(lowest: float, highest: float, kind: type[int] | type[float] = float) -> Any:
    """Return an argparse type: a number within these limits."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if lowest <= (value := kind(text)) <= highest:
                return value
        limits = f"{'whole ' if kind is int else ''}number from {lowest:g} to {highest:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {limits}")

    return parse


def text(pattern: str, form: str) -> Callable[[str], str]:
    """Return an argparse type: a text of this form."""

    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value) or re.search("[\ud800-\udfff]", value):  # not UTF-8
            raise argparse.ArgumentTypeError(f"{value!r} is not {form}")
        return value

    return parse


topic_name = text(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,237}", "1 to 237 letters, digits or . _ -")


def server_list(text: str) -> str:
    """Return a list of servers if each is HOST:PORT, such as localhost:9092 or [::1]:9092."""
    for server in text.split(","):
        match = re.fullmatch(r"(?:\[[^\s\[\]]+\]|[^\s:\[\]]+):(\d{1,5})", server)
        if not match or not 0 < int(match[1]) <= 65_535:
            raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT[,HOST:PORT...]")
    return text


# 2. A process: its log, its signals, its only copy


def configure_logging(name: str) -> None:
    """Show the log of one logger on stderr, times in UTC, and none of the libraries' lines."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # What happens in an outage is said by the script itself, once and in one line.
    logging.root.handlers[0].addFilter(logging.Filter(name))


def stop_on_signals(stop: threading.Event) -> None:
    """Set a flag when the process is told to end (SIGINT, SIGTERM, or its terminal is closed)."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signals.append(signal.SIGHUP)  # nohup has not asked to go on
    for signum in signals:
        # Not set in the handler itself: what it interrupts may hold the event's lock.
        signal.signal(signum, lambda *_: threading.Thread(target=stop.set).start())


def end_by_force(stop: threading.Event, after_s: float, log: logging.Logger, undone: str) -> None:
    """End the process this long after the flag is set, if something still holds it up.

    A library that never returns does, and a server that is paused and ends no connection.

    Args:
        stop: tells the process to end.
        after_s: from then on.
        log: where it is said.
        undone: what was not, of what will be read again: "committed", ...
    """

    def end() -> None:
        stop.wait()
        time.sleep(after_s)
        text = "not ended after %.0f s, ended by force: what is not %s is read again"
        log.error(text, after_s, undone)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def only_copy(file: Path) -> Iterator[TextIO | None]:
    """Hold the lock of a job's state on this machine; give None when another process holds it.

    The lock goes with the process, also when it is killed: a file that is left behind locks
    nothing.

    Args:
        file: of the lock, one for each state (checkpoint, output). Its folder is made.
    """
    import fcntl  # not on Windows, where the pipelines run in WSL

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock


@contextmanager
def next_copy(
    file: Path, deadline: float, stop: threading.Event, say: Callable[[], object]
) -> Iterator[TextIO | None]:
    """Hold a lock as `only_copy` does, when its holder has ended; give None when it has not.

    Args:
        file: of the lock.
        deadline: of the wait, on the monotonic clock.
        stop: ends the wait with None when it is set.
        say: is called once, when it has to wait.
    """
    is_said = False
    while True:
        with only_copy(file) as held:
            if held or time.monotonic() > deadline:
                yield held
                return
        if not is_said:
            say()
            is_said = True
        if stop.wait(0.5):
            yield None
            return


def words_of_kafka(exc: Exception) -> str:
    """Return why a broker refuses: an error of kafka-python's has the request before its words."""
    said = re.search(r"error_message=(['\"])(.+?)\1[,)]", str(exc))
    return said[2] if said else str(exc)


def poll(consumer: Any, **options: Any) -> Mapping[Any, Any]:
    """Return a KafkaConsumer's next messages, which may be none, by their partition.

    Raises:
        KafkaError: they cannot be read or decoded.
    """
    from kafka.errors import KafkaError  # not in Spark's image

    try:
        polled: Mapping[Any, Any] = consumer.poll(**options)
        return polled
    except KafkaError:
        raise
    except Exception as exc:  # each codec's library has errors of its own
        raise KafkaError(f"messages cannot be decoded: {exc!r}") from exc


def close_producer(
    producer: Any, unknown: Callable[[], int], give_up_s: float, log: logging.Logger
) -> None:
    """Close a KafkaProducer; wait for the outcomes of its messages as long as some come.

    kafka-python's close() waits without limit, so it gets a thread that we need not wait for.

    Args:
        producer: to close.
        unknown: returns how many messages have no outcome yet.
        give_up_s: without a new outcome, in seconds.
        log: of the script.
    """

    def close() -> None:
        try:
            producer.close()
        except Exception as exc:  # noqa: BLE001  # the outcomes come all the same
            log.warning("kafka-python could not be closed (%s)", " ".join(repr(exc).split()))

    threading.Thread(target=close, daemon=True).start()
    left, last_outcome = unknown(), time.monotonic()
    while left and time.monotonic() < last_outcome + give_up_s:
        time.sleep(0.02)
        if (now_left := unknown()) < left:
            left, last_outcome = now_left, time.monotonic()


# 3. A demonstration: its servers and its steps


def say(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def start_servers(folder: Path, *natively: str) -> None:
    """Start the servers of a pipeline's docker-compose.yml: by Docker if an engine answers.

    Args:
        folder: of the pipeline.
        natively: the servers that are started without Docker; none for all of them.

    Raises:
        StepError: one does not start; it has said why.
    """
    from stack.prerequisites import docker_answers  # not in Spark's image

    compose = ["-f", str(folder / "docker-compose.yml")]
    if docker_answers():
        run_step("docker", "compose", *compose, "up", "-d", "--wait")
    else:
        run_step(sys.executable, "-m", "stack", *compose, "up", *natively)


def run_step(*command: str, environ: dict[str, str] | None = None) -> None:
    """Run a command in the project's folder, to its end.

    Args:
        command: program and arguments.
        environ: variables besides those of this process.

    Raises:
        StepError: it failed.
    """
    code = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **(environ or {})}, check=False
    ).returncode
    if code:
        raise StepError(f"`{shlex.join(command)}` ended with code {code}")


def how_to_stop(folder: Path) -> str:
    """Return the command that stops the servers of a demonstration."""
    from stack.prerequisites import docker_answers

    compose = f"-f {folder.relative_to(PROJECT)}/docker-compose.yml"
    return f"docker compose {compose} down" if docker_answers() else "python -m stack down"
