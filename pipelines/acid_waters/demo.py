#!/usr/bin/env python3
"""Show the pipeline at work: servers, reference, faulty lots, versions, restore, verification.

    make demo-acid_waters

Starts the servers (Docker if an engine answers, natively otherwise), sends the samples at full
speed with three faulty lots among them, integrates, repairs, restores, isolates and reprocesses,
and ends with verify.py. The output is in French, like the README. It can be run again: lots that
are there already are rejected as duplicates, and versions are counted on from the last.

Environment (or .env in the pipeline's folder, then in the project's): as the scripts; but it always
takes the sample, whose lots it knows.
Exit codes: 0 all agrees, 1 it does not, 130 interrupted.
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(PROJECT))

from pipelines.acid_waters.settings import SAMPLE, SETTINGS, command_line  # noqa: E402
from pipelines.common import (  # noqa: E402
    StepError,
    how_to_stop,
    load_env,
    run_step,
    say,
    start_servers,
)
from stack.console import command  # noqa: E402

FAULTS = ("short=2", "date=5", "checksum=7")


def step(title: str, script: str, *arguments: str) -> None:
    """Say what is done, show the command as it is typed in this folder, run it.

    Raises:
        StepError: it has failed.
    """
    say(f"\n── {title}\n   $ python {shlex.join([script, *arguments])}\n")
    # It is run in the project's folder.
    moved = [str(SAMPLE) if argument == SAMPLE.name else argument for argument in arguments]
    run_step(sys.executable, str(HERE / script), *moved, environ={"LTM_DATA": str(SAMPLE)})


def show() -> None:
    """Carry out the demonstration.

    Raises:
        StepError: a step has failed.
    """
    producer, consumer = "kafka/kafka_producer.py", "spark/spark_consumer.py"
    versions = "postgresql/versions.py"
    at_once = ("--interval", "0")
    faults = [part for fault in FAULTS for part in ("--fault", fault)]
    step("Le topic, les tables, et la référence dans HDFS, relue par Spark", "prepare.py")
    step("Les prélèvements, par lots ; trois lots abîmés exprès", producer, *at_once, *faults)
    step("Spark intègre les bons lots et rejette les autres", consumer, "--once")
    step("Ce qui s'est passé", versions, "list")
    for fault in FAULTS:
        lot = fault.partition("=")[2]
        step(f"Le lot {lot}, de nouveau", producer, *at_once, "--first", lot, "--count", "1")
    step("Spark les intègre", consumer, "--once")
    step("Revenir à la version 3", versions, "restore", "3")
    step("Ce que cette version a changé", versions, "show", "9")
    step("Retraiter le dernier bon lot, depuis l'archive", consumer, "--reprocess", "last")
    step("Revenir à la version complète", versions, "restore", "8")
    lot = "LTM_Data_sample-000004"
    step("Isoler un lot que l'on croit fautif", versions, "isolate", lot, "--reason", "à vérifier")
    step("Il ne l'était pas : le retraiter", consumer, "--reprocess", lot)
    title = "Vérification : fichier, topic, versions, lignes et mesures sont comparés"
    step(title, "verify.py", "--data", SAMPLE.name)


def say_how_to_stop() -> None:
    """Say that the servers go on, and the command that stops them."""
    say(f"Les serveurs tournent encore ; depuis la racine : {how_to_stop(HERE)}")


@command("demo")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    command_line(__doc__, {}).parse_args(argv)
    load_env(HERE)
    began = time.monotonic()
    try:
        say("── Les serveurs : Kafka, HDFS, PostgreSQL\n")
        start_servers(HERE)
        show()
    except StepError as exc:
        say(f"\n✗ Arrêt : {exc}")
        say_how_to_stop()
        return 1
    except KeyboardInterrupt:
        say("\n✗ Interrompu.")
        say_how_to_stop()
        return 130
    seconds = time.monotonic() - began
    say(f"\n✓ Ce qui a été envoyé est exactement ce qui est stocké ({seconds:.0f} s).")
    say("\nOn a vu des lots rejetés et réparés, un retour en arrière, un lot isolé puis retraité.")
    say("À regarder, dans pipelines/acid_waters :")
    say("  python postgresql/versions.py list     les versions")
    say("  python recovery.py                     le pH par région : recovery.svg")
    _, web_url, *_ = SETTINGS["--hdfs-web-url"]
    say(f"  {os.environ.get('HDFS_WEB_URL') or web_url:<37}  les fichiers dans HDFS")
    say_how_to_stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
