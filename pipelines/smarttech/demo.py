#!/usr/bin/env python3
"""Show the pipeline at work: `make demo-smarttech` installs what it needs and calls this.

Starts Kafka, sends three hours of readings at once, some of them wrong on purpose, brings them into
the tables, then runs producer and consumer live for half a minute, shows the tables and compares
everything with what was sent. The output is in French, like README.

Environment (or .env): as the scripts. Exit code: that of verify.py, 1 when a step fails, 2 for
wrong usage or a wrong .env, 130 interrupted.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deltalake import DeltaTable

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import (  # noqa: E402
    StepError,
    how_to_stop,
    load_env,
    run_step,
    say,
    start_servers,
)
from pipelines.smarttech.settings import (  # noqa: E402
    DEFAULT_LAKE,
    FOLDER,
    command_parser,
    leave,
)
from stack.console import command  # noqa: E402

FIRST, RATE_HZ = timedelta(hours=3), 2.0
LIVE_S, LIVE_RATE_HZ = 30, 20
WRONG = ("--bad", "0.02", "--duplicate", "0.01", "--late", "0.01", "--spike", "0.002")


def script(name: str, *arguments: str) -> list[str]:
    """Return the command line of one of the scripts."""
    return [sys.executable, str(FOLDER / name), *arguments]


def first_period(lake: Path) -> timedelta:
    """Return how much to send at once: three hours, or what is missing since the last time.

    A second demonstration goes on where the first ended: what is older would come too late.
    """
    silver = str(lake / "sensor_data_silver")
    if not DeltaTable.is_deltatable(silver):
        return FIRST
    times = DeltaTable(silver).to_pyarrow_table(columns=["timestamp"])["timestamp"]
    newest = max(times.to_pylist(), default=datetime.min.replace(tzinfo=UTC))
    missing = datetime.now(UTC) - newest - timedelta(seconds=1)
    return max(timedelta(seconds=1), min(FIRST, missing))


def run_live(ledger: str) -> None:
    """Run the producer and the consumer side by side for a while, then stop both with Ctrl-C.

    Raises:
        StepError: one did not end well.
    """
    live = script("kafka_producer.py", "--rate", str(LIVE_RATE_HZ), "--ledger", ledger, *WRONG)
    with subprocess.Popen(script("spark_kafka_consumer.py")) as consumer:
        with subprocess.Popen(live) as producer:
            time.sleep(LIVE_S)
            producer.send_signal(signal.SIGINT)
        consumer.send_signal(signal.SIGINT)
    for process, name in ((producer, "kafka_producer.py"), (consumer, "spark_kafka_consumer.py")):
        if process.returncode:
            raise StepError(f"{name} ended with code {process.returncode}")


def demonstrate() -> int:
    """Run everything; return the exit code of verify.py.

    Raises:
        StepError: a step failed.
    """
    say("── Kafka\n")
    start_servers(FOLDER)
    lake = Path(os.environ.get("SMARTTECH_LAKE") or DEFAULT_LAKE)
    backfill_s = int(first_period(lake).total_seconds())
    say(
        f"\n── D'un coup, {backfill_s / 60:.0f} minutes de mesures ; une sur vingt-cinq est "
        "fausse, doublée ou tardive, exprès\n"
    )
    first = ("--backfill", f"{backfill_s}s", "--rate", str(RATE_HZ), *WRONG)
    with tempfile.TemporaryDirectory() as folder:
        ledgers = [str(Path(folder) / name) for name in ("first.csv", "live.csv")]
        run_step(*script("kafka_producer.py", *first, "--ledger", ledgers[0]))
        say("\n── Kafka → bronze → silver → gold\n")
        run_step(*script("spark_kafka_consumer.py", "--once"))
        say(
            f"\n── En direct pendant {LIVE_S} s, puis Ctrl-C ; ce qui reste est pris à la reprise\n"
        )
        run_live(ledgers[1])
        run_step(*script("spark_kafka_consumer.py", "--once"))
        say("\n── Les tables\n")
        run_step(*script("read_delta.py", "--rows", "0"))
        say()
        run_step(*script("read_delta.py", "anomalies", "--history", "3"))
        say("\n── Vérification : le topic est relu, jugé à nouveau, cherché dans les tables\n")
        noted = [argument for ledger in ledgers for argument in ("--ledger", ledger)]
        return subprocess.run(script("verify.py", *noted), check=False).returncode


@command("demo", {StepError: 1})
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    command_parser(__doc__).parse_args(argv)
    load_env(FOLDER)
    began = time.monotonic()
    try:
        code = demonstrate()
        if code:
            say("\n✗ Ce qui a été envoyé n'est PAS exactement ce que contiennent les tables.")
            return code
        say(
            "\n✓ Ce qui a été envoyé est exactement ce que contiennent les tables "
            f"({time.monotonic() - began:.0f} s)."
        )
        say("\nEt maintenant :")
        say("  .venv/bin/python pipelines/smarttech/read_delta.py gold   # voir une table")
        say("  .venv/bin/python pipelines/smarttech/dashboard.py         # la voir en image")
        say("  .venv/bin/python pipelines/smarttech/compact.py           # compacter les fichiers")
        return 0
    finally:  # however it ends, Ctrl-C included
        say(f"Kafka tourne encore ; pour l'arrêter : {how_to_stop(FOLDER)}")


if __name__ == "__main__":
    leave(main())
