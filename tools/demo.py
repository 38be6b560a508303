#!/usr/bin/env python3
"""Show the pipeline at work, on running servers: `make demo` starts them and calls this.

Back-fills the last 24 hours (or what is missing of them), runs both scripts live for half a minute,
checks that what is in the topic is exactly what is indexed, and prints what the dashboard shows.
The output is in French, like the dashboards.

Environment (or .env): as the two scripts. Exit codes: 0 all agrees, 1 something does not.
"""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from elasticsearch import ApiError, Elasticsearch, TransportError
from kafka.errors import KafkaError

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kibana.server import KibanaError, kibana_at  # noqa: E402  # works from any folder
from tools.connection import (  # noqa: E402  # works from any folder
    RefusedError,
    elasticsearch_client,
    explained,
    kafka_options,
    load_env,
    with_dated,
)
from tools.verify import Verdict, print_verdict, verify  # noqa: E402  # works from any folder

LIVE_S = 30
BACKFILL_INTERVAL_S = ("10", "30")  # of one sensor: about 22 000 readings in 24 hours
SEED = ("--seed", "42")  # of both generators: one weather
MALFORMED = "0.005"  # of them, so that there are dead letters to see
CO2_BINS = ((None, 430), (430, 450), (450, 500), (500, 600), (600, 800), (800, None))


def say(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def french(number: float) -> str:
    """Return a number with one decimal, behind a comma."""
    return f"{number:.1f}".replace(".", ",")


def script(name: str, *arguments: str) -> list[str]:
    """Return the command line of one of the two scripts."""
    return [sys.executable, str(PROJECT / name), *arguments]


def last_reading(client: Elasticsearch, index: str) -> datetime | None:
    """Return the time of the newest reading in the index, None when there is none."""
    if not client.indices.exists(index=index):
        return None
    index = with_dated(index)
    client.indices.refresh(index=index)
    newest = client.search(index=index, size=0, aggs={"newest": {"max": {"field": "timestamp"}}})
    value = newest["aggregations"]["newest"]["value"]
    return datetime.fromtimestamp(value / 1000, UTC) if value else None


def run_pipeline(client: Elasticsearch, index: str) -> bool:
    """Run the generator (live and back-fill) beside the consumer; return whether all ended well.

    A second demonstration goes on where the first ended: two runs must not give two values for
    one sensor at one time.
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
    start = ("--start", now.isoformat())
    live = script("sensor_generator.py", *SEED, "--duration", str(LIVE_S), *start)
    period = ("--start", begin.isoformat(), "--backfill", f"{period_s:f}s")
    backfill = script(
        "sensor_generator.py", *SEED, *period, "--interval", *BACKFILL_INTERVAL_S,
        "--fault", f"malformed={MALFORMED}",
    )  # fmt: skip
    consumer = script("kafka_to_elasticsearch.py", "--exit-when-idle", "4")
    running = [subprocess.Popen(command) for command in (live, backfill, consumer)]
    try:
        return not any([process.wait(timeout=300) for process in running])
    except subprocess.TimeoutExpired:
        return False
    finally:
        for process in running:
            process.terminate()  # as good as nothing to one that has ended


def print_tables(client: Elasticsearch, index: str) -> None:
    """Print what the dashboard shows first: temperature, current humidity, CO2 levels."""
    bins = [{"from": low, "to": high} for low, high in CO2_BINS]
    ranges = [{name: edge for name, edge in one.items() if edge is not None} for one in bins]
    newest = {"size": 1, "sort": [{"timestamp": "desc"}], "_source": ["humidity", "timestamp"]}
    answer = client.search(
        index=with_dated(index),
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
        current = french(sensor["newest"]["hits"]["hits"][0]["_source"]["humidity"])
        average = french(sensor["temperature"]["value"])
        say(f"{sensor['key']:<12} {sensor['doc_count']:>8}   {average:>16} °C   {current:>15} %")
    total = answer["hits"]["total"]["value"]
    say(f"{'ensemble':<12} {total:>8}   {french(found['temperature']['value']):>16} °C")
    say("\nNiveau de CO2          Mesures")
    most = max(bucket["doc_count"] for bucket in found["co2"]["buckets"]) or 1
    for (low, high), bucket in zip(CO2_BINS, found["co2"]["buckets"], strict=True):
        label = (
            f"{low} à {high}" if low and high else f"moins de {high}" if high else f"{low} et plus"
        )
        bar = "█" * round(30 * bucket["doc_count"] / most)
        say(f"{label:<14} ppm {bucket['doc_count']:>10}  {bar}")


def kibana_answers(url: str) -> bool:
    """Return whether a Kibana answers there."""
    try:
        return bool(kibana_at(url).version())
    except KibanaError:
        return False


def show_dashboards(kibana: str) -> bool:
    """Import the dashboards where Kibana runs, draw them where it does not; say where they are."""
    if kibana_answers(kibana):
        say("\n── Les tableaux de bord, dans Kibana\n")
        command = script("kibana/import.py", "--url", kibana)
    else:
        say("\n── Les tableaux de bord, sans Kibana (il demande Docker) : une page à ouvrir\n")
        command = script("kibana/preview.py")
    return subprocess.run(command, check=False).returncode == 0


def print_next_steps() -> None:
    """Say what to do next."""
    say("\nEt maintenant :")
    say("  .venv/bin/python sensor_generator.py          d'autres mesures (Ctrl-C pour arrêter)")
    say("  .venv/bin/python kafka_to_elasticsearch.py    les indexer, dans un second terminal")
    say("  make down                                     arrêter les serveurs")


def main() -> int:
    """Run the demonstration; return the exit code (see the module docstring)."""
    load_env()
    environ: Any = os.environ
    servers = environ.get("KAFKA_BOOTSTRAP_SERVERS") or "localhost:9092"
    topic = environ.get("KAFKA_TOPIC") or "smart-city-sensors"
    index = environ.get("ELASTICSEARCH_INDEX") or "sensors_data"
    began = time.monotonic()
    try:
        security, client = kafka_options("VERIFIER"), elasticsearch_client("VERIFIER")
        ended_well = run_pipeline(client, index)
        say("\n── Vérification : chaque message du sujet est relu et cherché dans l'index")
        with explained(servers, "VERIFIER", security):
            verdict: Verdict = verify(servers, topic, client, index, security=security)
        print_verdict(verdict, topic, index)
        say("\n── Ce que montre le tableau de bord\n")
        print_tables(client, index)
    except (RefusedError, KafkaError, ApiError, TransportError, ValueError) as exc:
        sys.stderr.write(f"demo: {' '.join(str(exc).split())}\n")
        return 1
    kibana = environ.get("KIBANA_URL")
    kibana = kibana or f"http://127.0.0.1:{environ.get('KIBANA_HOST_PORT') or 5601}"
    ended_well &= show_dashboards(kibana)
    if not (ended_well and verdict.holds):
        say("\n✗ Ce qui a été produit n'est PAS exactement ce qui est indexé : voir ci-dessus.")
        return 1
    seconds = time.monotonic() - began
    say(f"\n✓ Ce qui a été produit est exactement ce qui est indexé ({seconds:.0f} s).")
    print_next_steps()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
