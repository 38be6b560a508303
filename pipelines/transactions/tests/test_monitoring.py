"""Prometheus collects from all three, and every panel has figures."""

import json
import re
import signal
import subprocess
import urllib.parse
import urllib.request
from typing import Any

import pytest

from pipelines.transactions.tests.conftest import (
    CREDENTIALS,
    HERE,
    Pipeline,
    is_real_minio,
    wait_until,
)

DASHBOARD: dict[str, Any] = json.loads((HERE / "dashboards/transactions.json").read_text())
EXPRESSIONS = {
    target["expr"]: panel["title"] for panel in DASHBOARD["panels"] for target in panel["targets"]
}


def test_prometheus_has_a_figure_for_every_panel(pipeline: Pipeline) -> None:
    address = pipeline.stack.servers["prometheus"].address

    def get(path: str, **parameters: str) -> Any:
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def targets() -> dict[str, str]:
        found = get("targets")["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in found}

    # It is ready some seconds before it has looked at its own list of targets.
    wait_until(lambda: set(targets()) == {"kafka", "minio", "transactions"}, "its targets")
    asked = pipeline.stack.services["prometheus"].file("/etc/prometheus/prometheus.yml")
    port = re.findall(r":(\d+)", asked)[-1]
    pipeline.send("--count", "900", "--seed", "1", "--bad", "0.1")
    small = ("--every", "2", "--batch", "300")
    consumer = pipeline.start("consumer_spark.py", "--metrics-port", port, *small)
    consumer.wait_for(r"batch id=2 ")
    command_lines = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True)
    assert "consumer_spark.py" in command_lines.stdout
    assert CREDENTIALS["MINIO_ROOT_PASSWORD"] not in command_lines.stdout
    expected = {"kafka", "transactions"} | ({"minio"} if is_real_minio(pipeline.stack) else set())

    def all_up() -> bool:
        return expected <= {job for job, health in targets().items() if health == "up"}

    wait_until(all_up, "every target up")

    def empty() -> list[str]:
        panels = EXPRESSIONS if "minio" in expected else {
            expr: title for expr, title in EXPRESSIONS.items() if "minio" not in expr
        }  # fmt: skip
        return [title for expr, title in panels.items() if not get("query", query=expr)["result"]]

    wait_until(lambda: not empty(), lambda: f"figures in {empty()}")
    ledger = pipeline.ledgers[0].read_text().splitlines()[1:]
    bad = sum(not line.endswith(",") for line in ledger)

    def value(query: str) -> float:
        return float(get("query", query=query)["result"][0]["value"][1])

    wait_until(lambda: value("sum(transactions_read_total)") == 900, "all 900 read")
    assert value("sum(transactions_written_total)") == 900 - bad
    assert value("sum(transactions_rejected_total)") == bad > 0
    assert value("sum(transactions_batch_seconds_count)") >= 3
    assert value(f'sum(kafka_topic_messagesin_total{{topic="{pipeline.name}"}})') == 900
    consumer.process.send_signal(signal.SIGINT)
    assert "stopped read=900" in consumer.end()
    if "minio" not in expected:
        pytest.skip("all held but MinIO's own target and panels: it is not built here")
