"""Prometheus, on the real servers and both scripts: targets, panels, alerts."""

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stack.__main__ import Stack
from tests.conftest import Pipeline, interrupt, wait_until

PROJECT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((PROJECT / "monitoring/grafana/dashboards/smart-city.json").read_text())
EXPRESSIONS = {
    target["expr"]: f"{panel['title']}: {target['legendFormat']}"
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
CONSUMER_STATE = DASHBOARD["panels"][0]["targets"][0]["expr"]


def asker(stack: Stack) -> Callable[..., Any]:
    """Return what asks the API of Prometheus."""

    def get(path: str, **parameters: str) -> Any:
        address = stack.servers["prometheus"].address
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    return get


def test_prometheus_sees_servers_scripts_and_what_goes_wrong(
    stack: Stack, pipeline: Pipeline
) -> None:
    stack.up(["prometheus", "elasticsearch-exporter"])
    get, environ = asker(stack), stack.site.environ
    generator = pipeline.start(
        "sensor_generator.py", "--rate", "50", "--seed", "1",
        "--metrics-port", environ["GENERATOR_METRICS_PORT"],
    )  # fmt: skip
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
        return [title for expr, title in EXPRESSIONS.items()
                if not get("query", query=expr)["result"]]  # fmt: skip

    jobs = {"kafka", "elasticsearch", "generator", "consumer"}
    wait_until(lambda: up() == jobs, "every target up")
    wait_until(lambda: not empty(), "figures in every panel")
    # By now Prometheus has seen the counter at 0; else increase() would miss its first step.
    malformed = [b"no reading"] * 500
    pipeline.send(*malformed)
    wait_until(lambda: state("ConsumerDeadLettering") == "firing", "an alert: dead letters")
    # A scrape that takes over a second, on a busy machine, leaves an alert pending until the next.
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
    wait_until(lambda: value(in_topic) == sent, "Kafka's own count, scraped by then")
    interrupt(consumer)
    wait_until(lambda: state("ConsumerDown") == "pending", "an alert to come: no consumer")
    assert value(CONSUMER_STATE) == 0
    stack.down(["prometheus", "elasticsearch-exporter"])


def test_a_metrics_port_that_is_taken_is_one_line_and_code_2(pipeline: Pipeline) -> None:
    address = pipeline.kafka.rpartition(":")[2]
    _, err = pipeline.run("sensor_generator.py", "--count", "1", "--metrics-port", address, code=2)
    assert f"--metrics-port {address}: Address already in use: choose another" in err
