"""Prometheus with the real servers and both scripts: its targets, the panels, the alerts."""

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack
from tests.conftest import PROJECT, Pipeline, interrupt

DASHBOARD = json.loads(
    (PROJECT / "extensions/monitoring/grafana/dashboards/smart-city.json").read_text()
)
EXPRESSIONS = {
    target["expr"]: f"{panel['title']}: {target['legendFormat']}"
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
CONSUMER_STATE = DASHBOARD["panels"][0]["targets"][0]["expr"]


def asker(stack: Stack) -> Callable[..., Any]:
    """Return a function that asks the API of Prometheus and returns its data."""

    def get(path: str, **parameters: str) -> Any:
        address = stack.servers["prometheus"].address
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    return get


def test_prometheus_scrapes_every_target_and_fires_the_alerts(
    stack: Stack, pipeline: Pipeline
) -> None:
    stack.up(["prometheus", "elasticsearch-exporter"])
    get, environ = asker(stack), stack.site.environ
    port = environ["GENERATOR_METRICS_PORT"]
    generator = pipeline.start("sensor_generator.py", "--rate", "50", "--metrics-port", port)
    consumer = pipeline.start(
        "kafka_to_elasticsearch.py", "--metrics-port", environ["CONSUMER_METRICS_PORT"]
    )

    def up() -> set[str]:
        targets = get("targets")["activeTargets"]
        return {target["labels"]["job"] for target in targets if target["health"] == "up"}

    def value(query: str) -> float:
        result = get("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else float("nan")

    def state(alert: str) -> str:
        found = get("query", query=f'ALERTS{{alertname="{alert}"}}')["result"]
        return str(found[0]["metric"]["alertstate"]) if found else ""

    def empty() -> list[str]:
        return [
            title for expr, title in EXPRESSIONS.items() if not get("query", query=expr)["result"]
        ]

    jobs = {"kafka", "elasticsearch", "generator", "consumer"}
    wait_until(lambda: up() == jobs, "every target up")
    wait_until(lambda: not empty(), "figures in every panel")
    # Prometheus has scraped the counter at 0 by now, so that increase() sees its first step.
    malformed = [b"no reading"] * 500
    pipeline.send(*malformed)
    wait_until(lambda: state("ConsumerDeadLettering") == "firing", "an alert: dead letters")
    # On a busy machine a scrape may take over a second; then an alert is pending until the next.
    others = ("ConsumerDown", "ConsumerStuck", "ServerDown")
    wait_until(
        lambda: value(CONSUMER_STATE) == 1 and not any(map(state, others)), "all is well otherwise"
    )
    found = re.search(r"stopped sent=(\d+) acknowledged=(\d+) failed=0", interrupt(generator))
    assert found
    assert found[1] == found[2]
    sent = int(found[1]) + len(malformed)
    messages = "sum(smart_city_messages_total{outcome%s})"
    wait_until(lambda: value(messages % '="consumed"') == sent, "all consumed")
    wait_until(
        lambda: value(messages % '=~"indexed|duplicates|dead_lettered"') == sent, "all settled"
    )
    in_topic = f'sum(kafka_topic_messagesin_total{{topic="{pipeline.topic}"}})'
    wait_until(lambda: value(in_topic) == sent, "Kafka's own count is scraped")
    interrupt(consumer)
    wait_until(lambda: state("ConsumerDown") == "pending", "an alert is pending: no consumer")
    assert value(CONSUMER_STATE) == 0
    stack.down(["prometheus", "elasticsearch-exporter"])
