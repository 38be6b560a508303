#!/usr/bin/env python3
"""Show the transactions pipeline at work, from nothing: `make demo-transactions` calls this.

Starts the servers (by Docker if an engine answers, natively otherwise), sends two days of
transactions at once, some of them spoilt, kills the consumer in mid-run (kill -9) and starts it
again, trains the score and applies it to a third day, reads the bucket back and compares every
record with what was sent. The output is in French.

It works in a topic of its own, new each time, and in the bucket transactions-demo, which it empties
first. Environment (or .env in this folder, or in the project's): as the scripts.

Exit codes: 0 all agrees, 1 something does not, or a server does not start, 2 .env cannot be read.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pyarrow import fs

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from pipelines.common import (  # noqa: E402
    StepError,
    how_to_stop,
    load_env,
    run_step,
    say,
    start_servers,
)
from pipelines.transactions.settings import described_parser  # noqa: E402
from pipelines.transactions.store import SettingError, Store, StoreError  # noqa: E402
from stack.console import command  # noqa: E402

BUCKET = "transactions-demo"
LEDGERS = HERE / ".spark"
SPOILT = ("--interval", "10", "--bad", "0.02", "--fraud", "0.01")
CONSUMER = (sys.executable, str(HERE / "consumer_spark.py"), "--once", "--batch", "3000")
METRICS_PORT = 9109  # that of prometheus.yml
CONSOLE = (9001, "MINIO_CONSOLE_HOST_PORT", "la console de MinIO (Minio / Minio123)")
PAGES = (
    (9090, "PROMETHEUS_HOST_PORT", "Prometheus"),
    (3000, "GRAFANA_HOST_PORT", "Grafana, « Transactions — de Kafka à S3 »"),
)


def run_script(script: str, *arguments: str) -> None:
    """Run one of the scripts to its end.

    Raises:
        StepError: it failed; it has said why.
    """
    run_step(sys.executable, str(HERE / script), *arguments)


def send(ledger: str, *arguments: str) -> str:
    """Send transactions at once; return the path of the ledger of what was sent."""
    path = LEDGERS / ledger
    path.unlink(missing_ok=True)  # of an earlier demonstration, whose bucket is emptied as well
    run_script("capteur.py", *arguments, *SPOILT, "--ledger", str(path))
    return str(path)


def empty_bucket(store: Store) -> None:
    """Delete what an earlier demonstration has left.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    client = store.filesystem()
    try:
        if client.get_file_info(store.bucket).type == fs.FileType.Directory:
            client.delete_dir_contents(store.bucket)
    except OSError as exc:
        raise StoreError(store.explain(exc)) from exc


def has_files(store: Store, batch_id: int) -> bool:
    """Return whether a batch has files in the bucket."""
    selector = fs.FileSelector(f"{BUCKET}/output", recursive=True, allow_not_found=True)
    pattern = re.compile(rf"/output/date=[^/]+/batch_id={batch_id}/")
    return any(pattern.search(info.path) for info in store.filesystem().get_file_info(selector))


def consume() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the consumer in small batches; yield each line that it logs, shown as well.

    Raises:
        StepError: it failed; it has said why.
    """
    with subprocess.Popen(
        CONSUMER, text=True, stderr=subprocess.PIPE, start_new_session=True
    ) as consumer:
        try:
            for line in consumer.stderr or ():
                sys.stderr.write(line)
                yield consumer, line
        except BaseException:  # Ctrl-C does not reach it, in a session of its own
            kill(consumer)
            raise
    if consumer.returncode:
        raise StepError(f"`consumer_spark.py` ended with code {consumer.returncode}")


def kill(consumer: subprocess.Popen[str]) -> None:
    """Kill -9 the consumer with its Java."""
    with suppress(ProcessLookupError):
        os.killpg(consumer.pid, signal.SIGKILL)


def kill_in_mid_run(store: Store) -> None:
    """Start the consumer and kill it, with its Java, while it writes a batch."""
    with suppress(StepError):  # killed, or it has said why
        for consumer, line in consume():
            if "batch id=1 " in line:
                while not has_files(store, batch_id=2) and consumer.poll() is None:
                    time.sleep(0.02)
                kill(consumer)


def resume() -> bool:
    """Run the consumer to its end; return whether the kill did leave a batch half written."""
    lines = [line for _, line in consume()]
    return any("was begun before: deleting" in line for line in lines)


def answers(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def show_page(default: int, variable: str, what: str) -> bool:
    """Print the address of a page; return False if nothing answers there."""
    port = int(os.environ.get(variable) or default)
    if not answers(port):
        return False
    say(f"  http://localhost:{port}    {what}")
    return True


def show_pages() -> None:
    """Say where to look."""
    say("\nÀ voir :")
    say(f"  S3_BUCKET={BUCKET} python pipelines/transactions/read.py    le contenu du bucket")
    if not show_page(*CONSOLE):
        say("  (pas de console : S3Proxy remplace ici MinIO)")
    for page in PAGES:
        show_page(*page)


def demonstrate(store: Store) -> int:
    """Do it all, from the servers to the verification; return the exit code.

    Raises:
        StepError, StoreError: a step failed.
    """
    began = time.monotonic()
    say("── Les serveurs\n")
    start_servers(HERE, "kafka", "minio")
    os.environ["COMPOSE_PROFILES"] = "monitoring"
    with suppress(StepError):  # it goes on without
        start_servers(HERE, "prometheus")
    empty_bucket(store)
    run_script("prepare.py")
    say("\n── Deux jours de transactions d'un coup, 2 % abîmées exprès, 1 % de fraudes\n")
    first = send("ledger-1.csv", "--backfill", "48h", "--seed", "42")
    say("\n── Le consommateur, tué (kill -9) en plein travail, puis relancé\n")
    kill_in_mid_run(store)
    say("\n   … tué. Il reprend au batch commencé, dont il efface d'abord ce qui en reste :\n")
    if not resume():
        say("\n✗ Il n'a pas été tué pendant l'écriture d'un batch : rien n'est montré. Relancer.")
        return 1
    say("\n── Le score : appris sur ce qui est écrit, jugé sur d'autres transactions simulées\n")
    run_script("score.py")
    say("\n── Un troisième jour, noté au passage\n")
    third = ("--start", "2026-10-26T00:00:00Z", "--backfill", "24h", "--seed", "43")
    second = send("ledger-2.csv", *third, "--first-id", "1000000")
    metrics = () if answers(METRICS_PORT) else ("--metrics-port", str(METRICS_PORT))
    run_script("consumer_spark.py", "--once", "--score", *metrics)
    say("\n── Ce qu'il y a dans le bucket, relu sans Spark\n")
    run_script("read.py")
    say("\n── Vérification : chaque enregistrement envoyé, au centime\n")
    run_script("verify.py", "--ledger", first, "--ledger", second)
    seconds = time.monotonic() - began
    say(f"\n✓ Ce qui a été envoyé est exactement ce qui est écrit ({seconds:.0f} s).")
    show_pages()
    return 0


@command("demo", {SettingError: 2, StepError: 1})
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    described_parser(__doc__).parse_args(argv)
    load_env(HERE)
    topic = f"transactions-demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    os.environ.update(TRANSACTIONS_TOPIC=topic, S3_BUCKET=BUCKET)
    store = Store.from_env(os.environ)
    LEDGERS.mkdir(exist_ok=True)
    try:
        return demonstrate(store)
    finally:  # however it ends, Ctrl-C included
        say("\nCe qui est démarré le reste. Pour arrêter les serveurs, à la racine du projet :")
        say(f"  {how_to_stop(HERE).replace('yml down', 'yml --profile monitoring down')}")


if __name__ == "__main__":
    raise SystemExit(main())
