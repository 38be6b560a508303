#!/usr/bin/env python3
"""Show the pipeline at work: `make demo-smarttech` installs what it needs and calls this.

Starts Kafka, sends three hours of readings at once, some of them wrong on purpose, brings them into
the tables, then runs producer and consumer live for half a minute, shows the tables and compares
everything with what was sent. The output is in French, like README.

Environment (or .env): as the scripts. Exit code: that of verify.py, or 1; 2 for a wrong .env.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from deltalake import DeltaTable

FOLDER = Path(__file__).resolve().parent
PROJECT = FOLDER.parents[1]
sys.path.insert(0, str(PROJECT))

from pipelines.smarttech.options import leave, load_env  # noqa: E402  # works from any folder

COMPOSE = ("-f", str(PROJECT / "docker-compose.yml"), "-f", str(FOLDER / "compose.yml"))

FIRST_COUNT, FIRST_RATE_HZ = 20_000, 2.0  # not quite three hours
LIVE_S, LIVE_RATE_HZ = 30, 20
WRONG = ("--bad", "0.02", "--duplicate", "0.01", "--late", "0.01", "--spike", "0.002")


def say(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def command(name: str, *arguments: str) -> list[str]:
    """Return the command line of one of the scripts."""
    return [sys.executable, str(FOLDER / name), *arguments]


def run(*line: str) -> None:
    """Run a command to its end.

    Raises:
        CalledProcessError: it failed.
    """
    subprocess.run(line, check=True, cwd=PROJECT)


def docker_answers() -> bool:
    """Return whether there is a Docker engine with Compose."""
    try:
        return not any(
            subprocess.run(line, capture_output=True, check=False).returncode
            for line in (["docker", "info"], ["docker", "compose", "version"])
        )
    except FileNotFoundError:
        return False


def start_servers() -> None:
    """Start Kafka: by Docker if an engine answers, natively otherwise."""
    if docker_answers():
        run("docker", "compose", *COMPOSE, "up", "-d", "--wait", "kafka")
    else:
        run(sys.executable, "-m", "stack", *COMPOSE, "up", "kafka")


def first_count(lake: Path) -> int:
    """Return how many messages to send at once: three hours of them, or what is missing of that.

    A second demonstration goes on where the first ended: what is older would come too late.
    """
    silver = str(lake / "sensor_data_silver")
    if not DeltaTable.is_deltatable(silver):
        return FIRST_COUNT
    times = DeltaTable(silver).to_pyarrow_table(columns=["timestamp"])["timestamp"]
    newest = max(times.to_pylist(), default=datetime.min.replace(tzinfo=UTC))
    missing_s = (datetime.now(UTC) - newest).total_seconds()
    return max(1, min(FIRST_COUNT, int(missing_s * FIRST_RATE_HZ) - 1))


def run_live() -> None:
    """Run the producer and the consumer side by side for a while, then stop both with Ctrl-C.

    Raises:
        CalledProcessError: one did not end well.
    """
    live = command("kafka_producer.py", "--rate", str(LIVE_RATE_HZ), *WRONG)
    with subprocess.Popen(command("spark_kafka_consumer.py")) as consumer:
        with subprocess.Popen(live) as producer:
            time.sleep(LIVE_S)
            producer.send_signal(signal.SIGINT)
        consumer.send_signal(signal.SIGINT)
    for process in (producer, consumer):
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)


def demonstrate() -> int:
    """Run everything; return the exit code of verify.py.

    Raises:
        CalledProcessError: a step failed.
    """
    say("── Kafka\n")
    start_servers()
    count = first_count(Path(os.environ.get("SMARTTECH_LAKE") or FOLDER / "lake"))
    say(
        f"\n── D'un coup, {count} messages ; un sur vingt-cinq est faux, doublé ou tardif, exprès\n"
    )
    first = ("--count", str(count), "--rate", str(FIRST_RATE_HZ), "--at-once", *WRONG)
    with tempfile.TemporaryDirectory() as folder:
        ledger = str(Path(folder) / "ledger.csv")
        run(*command("kafka_producer.py", *first, "--ledger", ledger))
        say("\n── Kafka → bronze → silver → gold\n")
        run(*command("spark_kafka_consumer.py", "--available-now"))
        say(
            f"\n── En direct pendant {LIVE_S} s, puis Ctrl-C ; ce qui reste est pris à la reprise\n"
        )
        run_live()
        run(*command("spark_kafka_consumer.py", "--available-now"))
        say("\n── Les tables\n")
        run(*command("read_delta.py"))
        say()
        run(*command("read_delta.py", "anomalies", "--history", "3"))
        say("\n── Vérification : le sujet est relu, jugé à nouveau, cherché dans les tables\n")
        return subprocess.run(command("verify.py", "--ledger", ledger), check=False).returncode


def main() -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    load_env()
    began = time.monotonic()
    try:
        code = demonstrate()
    except subprocess.CalledProcessError as exc:
        sys.stderr.write(f"demo: {' '.join(map(str, exc.cmd))} failed (code {exc.returncode})\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; `make down` stops the servers\n")
        return 1
    if code:
        say("\n✗ Ce qui a été envoyé n'est PAS exactement ce que contiennent les tables.")
        return code
    say(
        "\n✓ Ce qui a été envoyé est exactement ce que contiennent les tables "
        f"({time.monotonic() - began:.0f} s)."
    )
    say("\nEt maintenant :")
    say("  .venv/bin/python pipelines/smarttech/read_delta.py gold      voir une table")
    say("  .venv/bin/python pipelines/smarttech/compact.py              compacter les fichiers")
    say("  make down                                                    arrêter les serveurs")
    return 0


if __name__ == "__main__":
    leave(main())
