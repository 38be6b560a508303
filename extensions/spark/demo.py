"""Show the indexing on a Spark cluster, from nothing to the verifier: `make demo-spark`.

It starts the servers and the cluster (by Docker if an engine answers), sends a day of readings, of
which one in 200 is malformed, submits the job, which reads all of the topic and ends, and compares
the topic with the index. The output is in French, like the dashboards.

Environment (or .env): as the scripts.

Exit codes: 0 all agrees, 1 a step has failed (its command stands last), 2 wrong usage, 130 Ctrl-C.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from stack.compose import PROJECT
from stack.console import command, command_parser, say
from stack.prerequisites import docker_answers

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


@command("demo")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps; return the exit code (see the module docstring)."""
    command_parser("extensions.spark.demo", __doc__).parse_args(argv)
    began = time.monotonic()
    for what, line in steps().items():
        say(f"\n── {what}\n")
        if code := subprocess.run(line, cwd=PROJECT, check=False).returncode:
            say(f"\n✗ A échoué (code {code}) : {shlex.join(line)}")
            return 1
    seconds = time.monotonic() - began
    say(f"\n✓ Ce qui a été produit est exactement ce qui est indexé ({seconds:.0f} s).")
    say("\nLe master : http://127.0.0.1:8080. Tout arrêter : make down")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
