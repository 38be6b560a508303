#!/usr/bin/env python3
"""Show the transactions pipeline at work, from nothing: `make demo-transactions` calls this.

Starts the servers (by Docker if an engine answers, natively otherwise), sends two days of
transactions at once, some of them spoilt, kills the consumer in mid-run (kill -9) and starts it
again, trains the score and applies it to a third day, reads the bucket back and compares every
record with what was sent. The output is in French.

It works in a topic of its own, new each time, and in the bucket transactions-demo, which it empties
first. Environment: as the scripts; what neither the environment nor .env says is taken from
.env.example in this folder. Exit codes: 0 all agrees, 1 something does not, or a server does not
start, 2 .env cannot be read.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dotenv import dotenv_values
from pyarrow import fs

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(PROJECT))

from pipelines.transactions.env_file import env_values  # noqa: E402  # works from any folder
from pipelines.transactions.store import Store, StoreError  # noqa: E402

FILES = ("-f", "docker-compose.yml", "-f", "pipelines/transactions/compose.yml")
BUCKET = "transactions-demo"
BATCH = "3000"  # records: small, so that there are several batches to kill one of


def say(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def environment() -> dict[str, str]:
    """Return the environment of what is started here: shell, then .env, then .env.example.

    What is empty in one of them is taken from the next.

    Raises:
        SystemExit: .env cannot be read.
    """
    sources: tuple[Mapping[str, str | None], ...] = (
        dotenv_values(HERE / ".env.example"), env_values(), os.environ,
    )  # fmt: skip
    known = {name: value for source in sources for name, value in source.items() if value}
    topic = f"transactions-demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return known | {"TRANSACTIONS_TOPIC": topic, "S3_BUCKET": BUCKET}


def succeeds(*command: str) -> bool:
    """Run a command silently; return whether it is there and exits with 0."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def has_docker() -> bool:
    """Return whether a Docker engine and Compose 2 answer."""
    return succeeds("docker", "info") and succeeds("docker", "compose", "version")


def start_servers(environ: dict[str, str], docker: bool) -> tuple[bool, bool]:
    """Start Kafka, the store and the monitoring; return whether those two are there, and that."""

    def up(*names: str) -> bool:
        command = [sys.executable, "-m", "stack", *FILES, "up", *names]
        if docker:
            command = ["docker", "compose", *FILES, "up", "-d", "--wait", *names]
        return subprocess.run(command, cwd=PROJECT, env=environ, check=False).returncode == 0

    if not up("kafka", "minio"):
        return False, False
    return True, up("prometheus", *["grafana"] * docker)  # it goes on without


def empty_bucket(environ: dict[str, str]) -> None:
    """Delete what an earlier demonstration has left."""
    store = Store.from_env(environ)
    client = store.filesystem()
    if client.get_file_info(store.bucket).type == fs.FileType.Directory:
        client.delete_dir_contents(store.bucket)


class Demo:
    """The scripts, run one after the other in one environment."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.folder = HERE / ".spark"
        self.folder.mkdir(exist_ok=True)

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a script; its output goes where ours does."""
        return subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments], env=self.environ, text=True
        )

    def run(self, script: str, *arguments: str) -> None:
        """Run a script to its end.

        Raises:
            subprocess.CalledProcessError: it failed; it has said why.
        """
        code = self.start(script, *arguments).wait()
        if code:
            raise subprocess.CalledProcessError(code, script)

    def send(self, ledger: str, *arguments: str) -> Path:
        """Send transactions; return the ledger of what was sent."""
        path = self.folder / ledger
        path.unlink(missing_ok=True)  # of an earlier demonstration; its bucket is emptied as well
        spoilt = ("--bad", "0.02", "--fraud", "0.01")
        self.run("capteur.py", *arguments, "--interval", "10", *spoilt, "--ledger", str(path))
        return path

    def has_files(self, batch_id: int) -> bool:
        """Return whether a batch has files in the bucket."""
        selector = fs.FileSelector(f"{BUCKET}/output", recursive=True, allow_not_found=True)
        found = Store.from_env(self.environ).filesystem().get_file_info(selector)
        pattern = re.compile(rf"/output/date=[^/]+/batch_id={batch_id}/")
        return any(pattern.search(info.path) for info in found)

    def consume(self) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """Run the consumer in small batches; yield each line that it logs, shown as well.

        Raises:
            subprocess.CalledProcessError: it failed; it has said why.
        """
        command = [sys.executable, str(HERE / "consumer_spark.py"), "--available-now"]
        with subprocess.Popen(
            [*command, "--max-records", BATCH], env=self.environ, text=True,
            stderr=subprocess.PIPE, start_new_session=True,
        ) as consumer:  # fmt: skip
            for line in consumer.stderr or ():
                sys.stderr.write(line)
                yield consumer, line
        if consumer.returncode:
            raise subprocess.CalledProcessError(consumer.returncode, "consumer_spark.py")

    def kill_in_mid_run(self) -> None:
        """Start the consumer and kill it, with its Java, while it writes a batch."""
        with suppress(subprocess.CalledProcessError):  # killed, or it has said why
            for consumer, line in self.consume():
                if "batch id=1 " in line:
                    while not self.has_files(batch_id=2) and consumer.poll() is None:
                        time.sleep(0.02)
                    with suppress(ProcessLookupError):
                        os.killpg(consumer.pid, signal.SIGKILL)

    def resume(self) -> bool:
        """Run the consumer to its end; return whether the kill did leave a batch half written."""
        lines = [line for _, line in self.consume()]
        return any("was begun before: deleting" in line for line in lines)


def main() -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    began = time.monotonic()
    environ = environment()
    port = environ["TRANSACTIONS_METRICS_PORT"]
    docker = has_docker()
    say("── Les serveurs\n")
    started, monitored = start_servers(environ, docker)
    if not started:
        return 1
    demo = Demo(environ)
    try:
        empty_bucket(environ)
    except (StoreError, OSError) as exc:
        say(f"\n✗ Le seau {BUCKET} ne se laisse pas vider : {exc}")
        return 1
    try:
        demo.run("prepare.py")
        say("\n── Deux jours de transactions d'un coup, 2 % abîmées exprès, 1 % de fraudes\n")
        first = demo.send("ledger-1.csv", "--backfill", "48h", "--seed", "42")
        say("\n── Le consommateur, tué (kill -9) en plein travail, puis relancé\n")
        demo.kill_in_mid_run()
        say("\n   … tué. Il reprend au lot commencé, dont il efface d'abord ce qui en reste :\n")
        if not demo.resume():
            say("\n✗ Il n'a pas été tué pendant l'écriture d'un lot : rien n'est montré. Relancer.")
            return 1
        say(
            "\n── Le score : appris sur ce qui est écrit, jugé sur d'autres transactions simulées\n"
        )
        demo.run("score.py")
        say("\n── Un troisième jour, noté au passage\n")
        third = ("--start", "2026-10-26T00:00:00Z", "--backfill", "24h", "--seed", "43")
        second = demo.send("ledger-2.csv", *third, "--first-id", "1000000")
        demo.run("consumer_spark.py", "--available-now", "--score", "--metrics-port", port)
        say("\n── Ce qu'il y a dans le seau, relu sans Spark\n")
        demo.run("read.py")
        say("\n── Vérification : chaque enregistrement envoyé, au centime\n")
        demo.run("verify.py", str(first), str(second))
    except subprocess.CalledProcessError as exc:
        say(f"\n✗ {exc.cmd} s'est arrêté avec le code {exc.returncode} : voir ci-dessus.")
        return 1
    seconds = time.monotonic() - began
    say(f"\n✓ Ce qui a été envoyé est exactement ce qui est écrit ({seconds:.0f} s).")
    say("\nÀ voir, et pour finir :")
    if monitored:
        say(f"  http://127.0.0.1:{environ['PROMETHEUS_HOST_PORT']}    Prometheus")
    say(f"  http://127.0.0.1:{environ['MINIO_CONSOLE_HOST_PORT']}    MinIO (pas avec S3Proxy)")
    if monitored and docker:
        say(f"  http://127.0.0.1:{environ['GRAFANA_HOST_PORT']}    Grafana")
    files = " ".join(FILES)
    down = f"docker compose {files} --profile monitoring down" if docker else "make down"
    say(f"  {down}    arrêter les serveurs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
