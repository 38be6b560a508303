"""Show the indexing on a Spark cluster, from nothing to the verifier: `make demo-spark`.

It starts the servers and the cluster (by Docker if an engine answers), sends a day of readings, of
which one in 200 is malformed, submits the job, which reads all of the topic and ends, and compares
the topic with the index. The output is in French, like the dashboards.

Environment (or .env): as the scripts.

Exit codes: 0 all agrees, 1 a step has failed (its command stands last), 130 Ctrl-C.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from stack.prerequisites import docker_answers

PROJECT = Path(__file__).resolve().parents[2]
FILES = ("-f", "docker-compose.yml", "-f", "extensions/spark/compose.yml")
SUBMIT = """spark-submit --properties-file extensions/spark/spark.conf
    --master spark://spark-master:7077 --py-files kafka_to_elasticsearch.py
    extensions/spark/spark_to_elasticsearch.py --once"""
PYTHON = sys.executable


def steps() -> dict[str, list[str]]:
    """Return the commands by what they do."""
    compose = [PYTHON, "-m", "stack", *FILES]
    up = [*compose, "up"]
    if docker_answers():
        compose = ["docker", "compose", *FILES]
        up = [*compose, "up", "-d", "--wait", "--build"]
    send = [PYTHON, "-m", "tools.faulty_sensors", "--backfill", "24h", "--interval", "10", "30"]
    return {
        "Les serveurs, et un cluster Spark : un master, deux workers": up,
        "Les mesures d'une journée ; un message sur 200 est abîmé exprès": [
            *send,
            "--fault",
            "malformed=0.005",
        ],
        "Le job : tout le topic, sur les deux workers": [
            *compose,
            "exec",
            "spark-master",
            *SUBMIT.split(),
        ],
        "Vérification : chaque message du topic est cherché dans l'index": [
            PYTHON,
            "-m",
            "tools.verify",
        ],
    }


def main() -> int:
    """Run the steps; return the exit code (see the module docstring)."""
    began = time.monotonic()
    for what, command in steps().items():
        sys.stdout.write(f"\n── {what}\n\n")
        sys.stdout.flush()
        if code := subprocess.run(command, cwd=PROJECT, check=False).returncode:
            sys.stdout.write(f"\n✗ A échoué (code {code}) : {shlex.join(command)}\n")
            return 1
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"\n✓ Ce qui a été produit est exactement ce qui est indexé ({seconds:.0f} s).\n"
    )
    sys.stdout.write("\nLe master : http://127.0.0.1:8080. Tout arrêter : make down\n")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
