#!/usr/bin/env python3
"""Show this pipeline at work, from nothing: `make demo-iot_cassandra` calls this.

Starts the servers (by Docker if an engine answers, natively otherwise), creates the topic and the
tables, sends a week's readings at once and some live while the writer runs, lets Spark aggregate
them, draws a sensor's week, and compares all that was sent with all that is stored. The output is
in French, like the README.

Environment (or .env in this folder or the project's): as the scripts. Exit codes: those of
verify.py, 1 also when a step has failed, 2 for a wrong setting.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cassandra import DriverException
from cassandra.cluster import Cluster, NoHostAvailable
from cassandra.protocol import ErrorMessage

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import (  # noqa: E402  # after the path, with the next ones
    StepError,
    how_to_stop,
    load_env,
    run_step,
    say,
    start_servers,
)
from pipelines.iot_cassandra.settings import (  # noqa: E402
    FOLDER,
    add_shared,
    addresses,
    one_line,
    parser_of,
)
from stack.console import command  # noqa: E402
from stack.prerequisites import docker_answers  # noqa: E402

# A week of ten sensors, one reading of each every five minutes; and 5 s as they come.
WEEK = ("--backfill", "7d", "--rate", "0.0333", "--bad", "0.005")
LIVE = ("--count", "150", "--rate", "30")
STOP_S = 60  # a writer that is told to stop has ended by then
PICTURE = FOLDER / ".spark/semaine.png"


def script(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line of one of this folder's scripts."""
    return (sys.executable, str(FOLDER / name), *arguments)


@contextmanager
def running_writer() -> Iterator[None]:
    """Run the writer meanwhile, and tell it to stop.

    Raises:
        StepError: it failed, or does not end.
    """
    writer = subprocess.Popen(script("scripts/kafka_to_cassandra.py"), cwd=PROJECT)
    try:
        yield
        writer.terminate()
        code = writer.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        raise StepError(f"kafka_to_cassandra.py has not ended after {STOP_S} s") from None
    finally:
        writer.kill()  # as good as nothing to one that has ended
        writer.wait()
    if code:
        raise StepError(f"kafka_to_cassandra.py ended with code {code}")


def send_and_write(folder: Path) -> list[str]:
    """Send a week at once and some readings live while the writer runs; return verify's options.

    Raises:
        StepError: a program failed.
    """
    ledgers = [str(folder / "semaine.csv"), str(folder / "direct.csv")]
    with running_writer():
        for what, ledger in zip((WEEK, LIVE), ledgers, strict=True):
            run_step(*script("scripts/iot_simulator.py", *what, "--ledger", ledger))
    run_step(*script("scripts/kafka_to_cassandra.py", "--once"))  # what it had not read yet
    return [option for ledger in ledgers for option in ("--ledger", ledger)]


def print_hours(hosts: str, keyspace: str) -> None:
    """Print what Spark has written about the first sensor's last hours.

    Raises:
        NoHostAvailable, DriverException, ErrorMessage: Cassandra does not answer, or refuses.
    """
    with Cluster(addresses(hosts)) as cluster:
        rows = cluster.connect(keyspace).execute(
            "SELECT hour, readings, temperature_avg, humidity_avg FROM sensor_data_hourly "
            "WHERE sensor_id = 1 LIMIT 3"
        )
        say("\nCapteur 1, par heure (UTC)   Mesures   Température   Humidité")
        for row in rows:
            means = f"{row.temperature_avg:>8.2f} °C   {row.humidity_avg:>6.1f} %".replace(".", ",")
            say(f"{row.hour:%Y-%m-%d %H:%M}             {row.readings:>7}   {means}")


def aggregate() -> None:
    """Run the Spark batch: on the master and its worker by Docker, else in a process.

    Raises:
        StepError: it failed.
    """
    if docker_answers():
        submit = ("spark-submit", "--master", "spark://spark:7077")
        run_step("docker", "exec", "spark", *submit, "scripts/spark_cassandra.py", "batch")
    else:
        run_step(*script("scripts/spark_cassandra.py", "batch"))


def demonstrate(options: argparse.Namespace) -> int:
    """Do it all, from the servers to the verification; return the exit code.

    Raises:
        NoHostAvailable, DriverException, ErrorMessage: a server does not answer.
        StepError: a program failed.
    """
    began = time.monotonic()
    say(f"── Les serveurs, {'par Docker' if docker_answers() else 'sans Docker'}\n")
    start_servers(FOLDER)
    say("\n── Le topic et les tables\n")
    run_step(*script("prepare.py"))
    say("\n── Une semaine de dix capteurs d'un coup, 1 message sur 200 abîmé, et 5 s en direct\n")
    with TemporaryDirectory() as folder:
        ledgers = send_and_write(Path(folder))
        say("\n── Spark lit Cassandra, agrège par capteur et par heure, et l'y récrit\n")
        aggregate()
        print_hours(options.hosts, options.keyspace)
        say("\n── La semaine d'un capteur, relue dans Cassandra\n")
        run_step(*script("chart.py", "--output", str(PICTURE)))
        say("\n── Vérification : chaque message est relu et cherché dans les tables\n")
        run_step(*script("verify.py", *ledgers))
    seconds = time.monotonic() - began
    say(f"\n✓ Ce qui a été envoyé est exactement ce qui est stocké ({seconds:.0f} s).\n")
    say(f"Le dessin        {PICTURE}")
    say("Les tables       cqlsh : SELECT * FROM iot_keyspace.sensor_data_hourly LIMIT 10;")
    if docker_answers():
        say("Le maître Spark  http://127.0.0.1:8080")
    say(f"Tout arrêter     {how_to_stop(FOLDER)}     (-v efface aussi les données)")
    return 0


@command("demo")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    parser_of(__doc__).parse_args(argv)
    load_env(FOLDER)
    options = add_shared(parser_of(__doc__), os.environ, "--hosts", "--keyspace").parse_args([])
    try:
        return demonstrate(options)
    except StepError as exc:
        why = str(exc)
        if "verify.py" in why:
            say("\n✗ Ce qui a été envoyé n'est PAS exactement ce qui est stocké : voir ci-dessus.")
    except (NoHostAvailable, DriverException, ErrorMessage) as exc:
        why = f"Cassandra does not answer: {one_line(exc)}"
    except KeyboardInterrupt:
        why = f"interrupted; the servers go on: {how_to_stop(FOLDER)}"
    sys.stderr.write(f"demo: {why}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
