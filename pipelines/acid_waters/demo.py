#!/usr/bin/env python3
"""Show the pipeline at work: servers, reference, faulty lots, versions, restore, verification.

    make demo-acid_waters

Starts the servers (Docker if an engine answers, natively otherwise), sends the samples at full
speed with three faulty lots among them, integrates, repairs, restores, isolates and reprocesses,
and ends with verify.py. The output is in French, like the README. It can be run again: lots that
are there already are isolated as duplicates.

Environment (or .env at the project's root): as the scripts; but it always takes the sample, whose
lots it knows.
Exit codes: 0 all agrees, 1 it does not.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
FILES = ("-f", "docker-compose.yml", "-f", "pipelines/acid_waters/compose.yml")
SERVERS = ("kafka", "datanode", "postgresql")
FAULTS = ("short=2", "date=5", "checksum=7")
SAMPLE = "pipelines/acid_waters/sample"


class FailedError(Exception):
    """A step has failed; it has said why."""


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def step(title: str, *command: str) -> None:
    """Say what is done, show the command, run it.

    Raises:
        FailedError: it has failed.
    """
    say(f"\n── {title}\n   $ python pipelines/acid_waters/{shlex.join(command)}\n")
    run([sys.executable, str(HERE / command[0]), *command[1:]], LTM_DATA=SAMPLE)


def run(command: list[str], **environ: str) -> None:
    """Run a command in the project's folder.

    Raises:
        FailedError: it has failed.
    """
    done = subprocess.run(command, cwd=PROJECT, env={**os.environ, **environ}, check=False)
    if done.returncode != 0:
        raise FailedError(" ".join(command))


def docker_answers() -> bool:
    """Return whether a Docker engine with Compose 2 answers."""
    return bool(shutil.which("docker")) and all(
        subprocess.run(["docker", *ask], capture_output=True, check=False).returncode == 0
        for ask in (["info"], ["compose", "version"])
    )


def start_servers() -> None:
    """Start the servers and wait until they answer.

    Raises:
        FailedError: one does not.
    """
    say("── Les serveurs : Kafka, HDFS, PostgreSQL\n")
    if docker_answers():
        run(["docker", "compose", *FILES, "up", "-d", "--wait", *SERVERS])
    else:
        run([sys.executable, "-m", "stack", *FILES, "up", *SERVERS])


def show() -> None:
    """Carry out the demonstration.

    Raises:
        FailedError: a step has failed.
    """
    producer, consumer = "kafka/kafka_producer.py", "spark/spark_consumer.py"
    versions = "postgresql/versions.py"
    faults = [part for fault in FAULTS for part in ("--fault", fault)]
    step("Les méthodes et les sites, dans HDFS, relus par Spark", "hdfs/load_reference.py")
    step(
        "Les prélèvements, par lots ; trois lots abîmés exprès",
        producer,
        "--interval",
        "0",
        *faults,
    )
    step("Spark intègre les bons lots et isole les autres", consumer, "--once")
    step("Ce qui s'est passé", versions, "list")
    for fault in FAULTS:
        lot = fault.partition("=")[2]
        step(
            f"Le lot {lot}, de nouveau", producer, "--interval", "0", "--first", lot, "--count", "1"
        )
    step("Spark les intègre", consumer, "--once")
    step("Revenir à la version 3", versions, "restore", "3")
    step("Ce que cette version a changé", versions, "show", "9")
    step("Retraiter le dernier bon lot, depuis l'archive", consumer, "--reprocess", "last")
    step("Revenir à la version complète", versions, "restore", "8")
    lot = "LTM_Data_sample-000004"
    step("Isoler un lot que l'on croit fautif", versions, "isolate", lot, "--reason", "à vérifier")
    step("Il ne l'était pas : le retraiter", consumer, "--reprocess", lot)
    title = "Vérification : fichier, sujet, versions, lignes et mesures sont comparés"
    step(title, "verify.py", "--data", SAMPLE)


def main() -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    began = time.monotonic()
    try:
        start_servers()
        show()
    except FailedError as exc:
        say(f"\n✗ Arrêt : {exc}")
        return 1
    seconds = time.monotonic() - began
    say(f"\n✓ Ce qui a été envoyé est exactement ce qui est stocké ({seconds:.0f} s).")
    say("\nEt maintenant :")
    say("  .venv/bin/python pipelines/acid_waters/postgresql/versions.py list")
    say(f"  .venv/bin/python -m stack {' '.join(FILES)} down    arrêter les serveurs (sans Docker)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
