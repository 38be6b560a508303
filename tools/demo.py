"""Show the pipeline at work, on running servers: `make demo` starts them and calls this.

It back-fills the last 24 hours (or what is missing of them), runs both scripts live for half a
minute, checks that what is in the topic is exactly what is indexed, and prints what the dashboard
shows. The output is in French, like the dashboards.

Environment (or .env): as the two scripts, with VERIFIER_ in the place of CONSUMER_ for the check;
for Kibana, as kibana/load.py.

Exit codes: 0 all agrees, 1 a step has failed (its name stands last), 2 wrong usage or
configuration, 130 Ctrl-C, 143 SIGTERM; whatever it is, the scripts end too.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from elasticsearch import Elasticsearch
from kafka.errors import KafkaError

from kibana.client import Kibana, KibanaError, default_url, kibana_at
from kibana.command_line import PROJECT, command, load_env
from stack.console import command_parser, say
from tools.connection import (
    ELASTICSEARCH_ERRORS,
    elasticsearch_client,
    elasticsearch_index,
    failure,
    kafka_options,
    kafka_servers,
    kafka_topic,
    with_dated,
)
from tools.verify import print_verdict, verify

ROLE = "VERIFIER"
LIVE_S = 30
WITHIN_S = 300  # the scripts must have ended
BACKFILL_INTERVAL_S = ("10", "30")  # of one sensor: about 22 000 readings in 24 hours
SEED = ("--seed", "42")  # the same for both generators, so that they have the same weather
MALFORMED_RATE = "0.005"  # so that there are dead letters to see
CO2_BINS = ((None, 430), (430, 450), (450, 500), (500, 600), (600, 800), (800, None))  # ppm


def french(number: float | None) -> str:
    """Return a number with one decimal after a comma, or a dash where there is none."""
    return "—" if number is None else f"{number:.1f}".replace(".", ",")


def python(program: str, *arguments: str) -> list[str]:
    """Return the command line of a script, or of a module of the project."""
    start = [program] if program.endswith(".py") else ["-m", program]
    return [sys.executable, *start, *arguments]


def last_reading(client: Elasticsearch, index: str) -> datetime | None:
    """Return the time of the newest reading in the index, None when there is none."""
    if not client.indices.exists(index=index):
        return None
    index = with_dated(client, index)
    client.indices.refresh(index=index)
    newest = client.search(index=index, size=0, aggs={"newest": {"max": {"field": "timestamp"}}})
    value = newest["aggregations"]["newest"]["value"]
    return datetime.fromtimestamp(value / 1000, UTC) if value else None


def run_pipeline(client: Elasticsearch, index: str) -> list[str]:
    """Run the generator (live and back-fill) beside the consumer; return which of them failed.

    A second demonstration goes on where the first ended, so that a sensor never gets two different
    readings of one time.
    """
    now = datetime.now(UTC)
    begin = now - timedelta(hours=24)
    last = last_reading(client, index)
    if last and begin <= last < now:
        begin = last + timedelta(seconds=1)
    period_s = max(1.0, (now - begin).total_seconds())
    say(
        f"\n── D'un coup, les mesures des {french(period_s / 3600)} dernières heures ; et pendant "
        f"{LIVE_S} s, en direct, 5 capteurs.\n   Un message sur 200 est abîmé exprès : il doit "
        "finir parmi les messages rejetés.\n"
    )
    live = ("--duration", str(LIVE_S), "--start", now.isoformat())
    period = ("--start", begin.isoformat(), "--backfill", f"{period_s:f}s")
    malformed = ("--interval", *BACKFILL_INTERVAL_S, "--fault", f"malformed={MALFORMED_RATE}")
    commands = {
        "le générateur en direct": python("sensor_generator.py", *SEED, *live),
        "le rattrapage": python("tools.faulty_sensors", *SEED, *period, *malformed),
        "le consommateur": python("kafka_to_elasticsearch.py", "--exit-when-idle", "4"),
    }
    return run_together(commands)


def run_together(commands: dict[str, list[str]]) -> list[str]:
    """Run commands side by side until all have ended; return the names of those that failed.

    None of them goes on after this function has ended, however it ends.
    """
    failed = []
    running: dict[str, subprocess.Popen[bytes]] = {}
    deadline = time.monotonic() + WITHIN_S
    try:
        for name, line in commands.items():
            running[name] = subprocess.Popen(line, cwd=PROJECT)
        for name, process in running.items():
            try:
                if code := process.wait(timeout=max(0, deadline - time.monotonic())):
                    failed.append(f"{name} (code {code})")
            except subprocess.TimeoutExpired:
                failed.append(f"{name} (pas fini après {WITHIN_S} s)")
    finally:
        for process in running.values():
            process.terminate()  # without effect on one that has ended
        for process in running.values():
            process.wait()
    return failed


def print_tables(client: Elasticsearch, index: str) -> None:
    """Print what the dashboard shows first: temperature, current humidity, CO2 levels."""
    bins = [{"from": low, "to": high} for low, high in CO2_BINS]
    ranges = [{name: edge for name, edge in one.items() if edge is not None} for one in bins]
    by_time = [{"timestamp": {"order": "desc", "unmapped_type": "date"}}]
    newest = {"size": 1, "sort": by_time, "_source": ["humidity"]}
    answer = client.search(
        index=with_dated(client, index),
        size=0,
        track_total_hits=True,
        aggs={
            "sensors": {
                "terms": {"field": "sensor_id", "size": 20, "order": {"_key": "asc"}},
                "aggs": {
                    "temperature": {"avg": {"field": "temperature"}},
                    "newest": {"top_hits": newest},
                },
            },
            "temperature": {"avg": {"field": "temperature"}},
            "co2": {"range": {"field": "co2_level", "ranges": ranges}},
        },
    )
    found = answer["aggregations"]
    say("Capteur       Mesures   Température moyenne   Humidité actuelle")
    for sensor in found["sensors"]["buckets"]:
        current = french(sensor["newest"]["hits"]["hits"][0]["_source"].get("humidity"))
        average = french(sensor["temperature"]["value"])
        say(f"{sensor['key']:<12} {sensor['doc_count']:>8}   {average:>16} °C   {current:>15} %")
    if others := found["sensors"]["sum_other_doc_count"]:
        say(f"{'les autres':<12} {others:>8}")
    total = answer["hits"]["total"]["value"]
    say(f"{'ensemble':<12} {total:>8}   {french(found['temperature']['value']):>16} °C")
    say("\nNiveau de CO2         Mesures")
    most = max(bucket["doc_count"] for bucket in found["co2"]["buckets"]) or 1
    for (low, high), bucket in zip(CO2_BINS, found["co2"]["buckets"], strict=True):
        label = f"{low} à {high}"
        if low is None:
            label = f"moins de {high}"
        elif high is None:
            label = f"{low} et plus"
        bar = "█" * round(30 * bucket["doc_count"] / most)
        say(f"{label:<14} ppm {bucket['doc_count']:>10}  {bar}")


def is_ready(kibana: Kibana) -> bool:
    """Return whether a Kibana answers, and is ready."""
    try:
        return bool(kibana.version())
    except KibanaError:
        return False


def show_dashboards(kibana: Kibana) -> bool:
    """Import the dashboards into Kibana, or draw them where it does not run; return success."""
    if is_ready(kibana):
        say("\n── Les tableaux de bord, dans Kibana\n")
        module = "kibana.load"
    else:
        say("\n── Les tableaux de bord, sans Kibana (il demande Docker) : une page à ouvrir\n")
        module = "tools.preview"
    return subprocess.run(python(module), cwd=PROJECT, check=False).returncode == 0


def print_next_steps(kibana: Kibana) -> None:
    """Say what was shown, where to look, how to go on and how to stop, in aligned columns."""
    dashboards = str(PROJECT / "apercu" / "index.html")
    if is_ready(kibana):
        dashboards = f"{kibana.root}/app/dashboards"
    say("\nVous avez vu les mesures aller de Kafka à Elasticsearch, puis être relues une à une.")
    steps = {
        "À regarder": {
            dashboards: "les deux tableaux de bord, à ouvrir dans un navigateur",
            ".venv/bin/python -m tools.dead_letters list": "les messages rejetés",
        },
        "Pour continuer": {
            ".venv/bin/python sensor_generator.py": "d'autres mesures (Ctrl-C pour arrêter)",
            ".venv/bin/python kafka_to_elasticsearch.py": "les indexer, dans un second terminal",
        },
        "Pour arrêter les serveurs": {
            "make down": "les données restent",
            "make wipe": "les données sont effacées aussi",
        },
    }
    width = max(len(command) for some in steps.values() for command in some)
    for title, some in steps.items():
        say(f"\n{title} :")
        for command_line, what in some.items():
            say(f"  {command_line:<{width}}   {what}")


def check(client: Elasticsearch, index: str) -> list[str]:
    """Run the pipeline, compare, show the tables; return which steps failed."""
    step = "la lecture de l'index"
    failed: list[str] = []
    try:
        failed = run_pipeline(client, index)
        say("\n── Vérification : chaque message du topic est relu et cherché dans l'index")
        step = "la vérification"
        verdict = verify(
            kafka_servers(), kafka_topic(), client, index, security=kafka_options(ROLE)
        )
        print_verdict(verdict, kafka_topic(), index)
        if not verdict.messages:
            failed.append(f"{step} : le topic {kafka_topic()} est vide, rien n'a été comparé")
        elif not verdict.holds:
            failed.append(f"{step} : ce qui est produit n'est pas exactement ce qui est indexé")
        if verdict.indexed:
            step = "les tableaux"
            say("\n── Ce que montre le tableau de bord\n")
            print_tables(client, index)
    except (KafkaError, *ELASTICSEARCH_ERRORS) as exc:
        failed.append(f"{step} : {failure(exc, ROLE)}")
    return failed


@command("demo")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    command_parser("tools.demo", __doc__).parse_args(argv)
    load_env()
    began = time.monotonic()
    kafka_servers(), kafka_topic(), kafka_options(ROLE)  # so that a wrong one is said now
    client, index = elasticsearch_client(ROLE), elasticsearch_index()
    kibana = kibana_at(default_url())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # run_together ends the scripts then
    failed = check(client, index)
    if not show_dashboards(kibana):
        failed.append("les tableaux de bord")
    if failed:
        say(f"\n✗ A échoué : {' ; '.join(failed)}. Voir ci-dessus.")
        return 1
    seconds = time.monotonic() - began
    say(f"\n✓ Ce qui a été produit est exactement ce qui est indexé ({seconds:.0f} s).")
    print_next_steps(kibana)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
