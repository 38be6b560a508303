#!/usr/bin/env python3
"""Show this pipeline at work, from nothing: `make demo-iot_cassandra` calls this.

Starts Kafka and Cassandra (by Docker if an engine answers, natively otherwise), applies the schema,
sends readings at once and live while the writer runs, lets Spark aggregate them, and compares all
that was sent with all that is stored. The output is in French, like the README.

Environment (or .env in the project's folder): as the scripts. Exit codes: those of verify.py.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from cassandra import DriverException
from cassandra.cluster import Cluster, NoHostAvailable
from cassandra.protocol import ErrorMessage
from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.iot_cassandra.scripts.options import (  # noqa: E402  # after the path
    add_shared,
    addresses,
    load_env,
    parser_of,
)

HERE = "pipelines/iot_cassandra"
FILES = ["-f", "docker-compose.yml", "-f", f"{HERE}/compose.yml"]
BEFORE, LIVE = 20_000, 300  # messages: those of the last hours, and those sent while it runs
SIMULATORS_S = 120  # until they have ended too, once the writer has
SPARK_JOB = ["--properties-file", f"{HERE}/spark.conf", f"{HERE}/scripts/spark_cassandra.py"]


def say(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def succeeds(*command: str) -> bool:
    """Run a command silently; return whether it exits with 0, False when it is not there."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def script(name: str, *arguments: str) -> list[str]:
    """Return the command line of one of this folder's scripts."""
    return [sys.executable, f"{HERE}/{name}", *arguments]


def run(command: list[str]) -> None:
    """Run a command to its end.

    Raises:
        CalledProcessError: it failed.
    """
    subprocess.run(command, cwd=PROJECT, check=True)


def start_servers(by_docker: bool) -> None:
    """Start Kafka and Cassandra, and by Docker Spark's master and worker too."""
    if by_docker:
        services = ("kafka", "cassandra", "spark-worker")
        run(["docker", "compose", *FILES, "up", "-d", "--wait", *services])
    else:
        run([sys.executable, "-m", "stack", *FILES, "up", "kafka", "cassandra"])


def run_pipeline() -> None:
    """Run the writer while one simulator sends readings of the last hours and one live.

    Raises:
        CalledProcessError: one of them failed.
        TimeoutExpired: a simulator does not end.
    """
    before = ("--count", str(BEFORE), "--at-once", "--rate", "1", "--bad", "0.005")
    live = ("--count", str(LIVE), "--rate", "30")
    simulators = [
        subprocess.Popen(script("scripts/iot_simulator.py", *arguments), cwd=PROJECT)
        for arguments in (before, live)
    ]
    writer = script("scripts/kafka_to_cassandra.py", "--exit-when-idle", "4")
    try:
        codes = [subprocess.run(writer, cwd=PROJECT, check=False).returncode]
        codes += [simulator.wait(timeout=SIMULATORS_S) for simulator in simulators]
    finally:
        for simulator in simulators:
            simulator.terminate()  # as good as nothing to one that has ended
    if any(codes):
        raise subprocess.CalledProcessError(max(codes), writer)


def aggregate(by_docker: bool) -> None:
    """Run the Spark batch; what Spark says besides is shown only if it fails."""
    if by_docker:
        command = ["docker", "compose", *FILES, "exec", "-T", "spark-master"]
        command += ["/opt/spark/bin/spark-submit", "--master", "spark://spark-master:7077"]
        command += ["--conf", "spark.jars.ivy=/tmp/ivy"]
    else:
        command = ["spark-submit"]
    # spark-submit takes the Python and the Spark that it finds first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ: Mapping[str, str] = {**os.environ, "PATH": path}
    done = subprocess.run(
        [*command, *SPARK_JOB, "batch"],
        cwd=PROJECT, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if not line.startswith(":: "):  # Ivy's
            say(line)
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()


def messages_in(servers: str, topic: str) -> int:
    """Return how many messages were sent to a topic so far; to one that is not there, none.

    Raises:
        KafkaError: Kafka does not answer.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","), api_version_auto_timeout_ms=10_000,
        isolation_level="read_committed", allow_auto_create_topics=False,
    )  # fmt: skip
    with closing(consumer):
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        return sum(consumer.end_offsets(partitions).values())


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
            say(
                f"{row.hour:%Y-%m-%d %H:%M}             {row.readings:>7}   "
                f"{row.temperature_avg:>8.2f} °C   {row.humidity_avg:>6.1f} %"
            )


def demonstrate(options: argparse.Namespace, by_docker: bool) -> int:
    """Do it all, from the servers to the verification; return the exit code of verify.py.

    Raises:
        KafkaError, NoHostAvailable, DriverException, ErrorMessage: a server does not answer.
        CalledProcessError, TimeoutExpired: a program failed, or does not end.
    """
    began = time.monotonic()
    say(f"── Les serveurs, {'par Docker' if by_docker else 'sans Docker'}\n")
    start_servers(by_docker)
    say("\n── Le schéma\n")
    run(script("scripts/apply_schema.py"))
    sent = messages_in(options.bootstrap_servers, options.topic) + BEFORE + LIVE
    say("\n── 20 000 mesures d'un coup, dont 1 sur 200 abîmée exprès, et 10 s en direct\n")
    run_pipeline()
    say("\n── Spark lit Cassandra, agrège par capteur et par heure, et l'y récrit\n")
    aggregate(by_docker)
    print_hours(options.hosts, options.keyspace)
    say("\n── Vérification : chaque message du sujet est relu et cherché dans les deux tables\n")
    verify = script("verify.py", "--expect", str(sent))
    code = subprocess.run(verify, cwd=PROJECT, check=False).returncode
    if code:
        say("\n✗ Ce qui a été envoyé n'est PAS exactement ce qui est stocké : voir ci-dessus.")
    else:
        seconds = time.monotonic() - began
        say(f"\n✓ Ce qui a été envoyé est exactement ce qui est stocké ({seconds:.0f} s).")
    return code


def named(command: Sequence[str]) -> str:
    """Return the beginning of a command line, as far as it tells which program it is.

    >>> named(["/usr/bin/python3", "verify.py", "--expect", "20300"])
    'python3 verify.py --expect ...'
    """
    return " ".join([Path(command[0]).name, *command[1:3], "..."])


def main() -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    load_env(PROJECT / ".env")
    wanted = ("--bootstrap-servers", "--topic", "--hosts", "--keyspace")
    options = add_shared(parser_of(__doc__), os.environ, *wanted).parse_args([])
    try:
        by_docker = succeeds("docker", "info") and succeeds("docker", "compose", "version")
        return demonstrate(options, by_docker)
    except (KafkaError, NoHostAvailable, DriverException, ErrorMessage) as exc:
        why = f"a server does not answer: {' '.join(str(exc).split())[:300]}"
    except subprocess.CalledProcessError as exc:
        why = f"{named(exc.cmd)} ended with code {exc.returncode}"
    except subprocess.TimeoutExpired as exc:
        why = f"{named(exc.cmd)} has not ended after {exc.timeout:.0f} s"
    except KeyboardInterrupt:
        why = "interrupted"
    sys.stderr.write(f"demo: {why}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
