"""Prometheus collects from all three, and every panel has figures; and Java is killed."""

import json
import os
import re
import signal
import subprocess
import urllib.parse
import urllib.request
from typing import Any

import pytest

from pipelines.tests.waiting import wait_until
from pipelines.transactions.tests.conftest import (
    CREDENTIALS,
    HERE,
    Pipeline,
)
from stack.native.s3 import MINIO_VERSION

DASHBOARD: dict[str, Any] = json.loads((HERE / "dashboards/transactions.json").read_text())
EXPRESSIONS = {
    target["expr"]: panel["title"] for panel in DASHBOARD["panels"] for target in panel["targets"]
}


def test_prometheus_has_a_figure_for_every_panel(pipeline: Pipeline) -> None:
    stack = pipeline.stack
    stack.up(["prometheus"])
    address = stack.servers["prometheus"].address

    def get(path: str, **parameters: str) -> Any:
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def targets() -> dict[str, str]:
        found = get("targets")["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in found}

    # It is ready some seconds before it has looked at its own list of targets.
    wait_until(lambda: set(targets()) == {"kafka", "minio", "transactions"}, "its targets")
    asked = stack.services["prometheus"].file("/etc/prometheus/prometheus.yml")
    port = re.findall(r":(\d+)", asked)[-1]
    pipeline.send("--count", "900", "--seed", "1", "--bad", "0.1")
    small = ("--every", "2", "--batch", "300")
    consumer = pipeline.start("consumer_spark.py", "--metrics-port", port, *small)
    consumer.wait_for(r"batch id=2 ")
    processes = ["ps", "-eww", "-o", "pid=,ppid=,args="]
    listed = subprocess.run(processes, capture_output=True, text=True, check=True).stdout
    assert "consumer_spark.py" in listed
    assert CREDENTIALS["MINIO_ROOT_PASSWORD"] not in listed
    has_minio = (stack.cache / f"minio-{MINIO_VERSION}" / "minio").exists()  # else S3Proxy
    expected = {"kafka", "transactions"} | ({"minio"} if has_minio else set())

    def all_up() -> bool:
        return expected <= {job for job, health in targets().items() if health == "up"}

    wait_until(all_up, "every target up")

    def empty() -> list[str]:
        return [
            title
            for expr, title in EXPRESSIONS.items()
            if has_minio or "minio" not in expr
            if not get("query", query=expr)["result"]
        ]

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

    # Java ends under it, as when the system lacks memory.
    ((java, _),) = re.findall(rf"^ *(\d+) +({consumer.process.pid}) ", listed, re.MULTILINE)
    os.kill(int(java), signal.SIGKILL)
    why, sums = consumer.end(1).splitlines()[-2:]
    assert "ERROR consumer_spark: Spark's Java has ended: killed, or out of memory?" in why
    assert "stopped read=900" in sums
    stack.stop("prometheus")  # it would ask every second until the last test's end
    if not has_minio:
        pytest.skip("all held but MinIO's own target and panels: it is not built here")
