"""Prometheus collects from all three, every panel has figures, Grafana knows the dashboard."""

import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from pipelines.transactions.tests.conftest import HERE, Pipeline, is_real_minio, wait_until

MONITORING = HERE / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboards/transactions.json").read_text())
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

    assert set(targets()) == {"kafka", "minio", "transactions"}
    port = pipeline.stack.site.environ["TRANSACTIONS_METRICS_PORT"]
    pipeline.send("--count", "900", "--seed", "1", "--bad", "0.1")
    small = ("--every", "2", "--max-records", "300")
    consumer = pipeline.start("consumer_spark.py", "--metrics-port", port, *small)
    consumer.wait_for(r"batch id=2 ")
    expected = {"kafka", "transactions"} | ({"minio"} if is_real_minio(pipeline.stack) else set())

    def all_up() -> bool:
        return expected <= {job for job, health in targets().items() if health == "up"}

    wait_until(all_up, "every target up")

    def empty() -> list[str]:
        panels = EXPRESSIONS if "minio" in expected else {
            expr: title for expr, title in EXPRESSIONS.items() if "minio" not in expr
        }  # fmt: skip
        return [title for expr, title in panels.items() if not get("query", query=expr)["result"]]

    wait_until(lambda: not empty(), f"figures in {empty()}")
    ledger = pipeline.ledgers[0].read_text().splitlines()[1:]
    bad = sum(not line.endswith(",") for line in ledger)

    def value(query: str) -> float:
        return float(get("query", query=query)["result"][0]["value"][1])

    assert value("sum(transactions_read_total)") == 900
    assert value("sum(transactions_written_total)") == 900 - bad
    assert value("sum(transactions_rejected_total)") == bad > 0
    assert value("sum(transactions_batch_seconds_count)") >= 3
    assert value(f'sum(kafka_topic_messagesin_total{{topic="{pipeline.name}"}})') == 900
    consumer.process.terminate()
    consumer.end()


def test_grafana_s_model_knows_the_whole_dashboard() -> None:
    """Grafana's published model drops what it does not know: nothing may be missing afterwards."""
    register_default_plugins()
    encoded = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD)))
    assert lost(DASHBOARD, encoded) == []
    misspelt = {**DASHBOARD, "refersh": "10s"}
    encoded = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(misspelt)))
    assert lost(misspelt, encoded) == ["/refersh"]  # it does find what is not in the model


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Return the paths of what we wrote and they do not have, or have otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        missing = [f"{path}/{name}" for name in ours if name not in theirs]
        both = [name for name in ours if name in theirs]
        return missing + [p for n in both for p in lost(ours[n], theirs[n], f"{path}/{n}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [p for n, (a, b) in pairs for p in lost(a, b, f"{path}[{n}]")]
    return [] if ours == theirs else [path]


def test_panels_do_not_overlap_and_name_the_provisioned_source() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in taken) < 24
        cells |= taken
    (source,) = yaml.safe_load(
        (MONITORING / "provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    named = {
        target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]
    }
    assert named == {source["uid"]}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_provisioning_says_what_compose_mounts() -> None:
    """The keys are those of Grafana's documentation, "Provision Grafana"."""
    services = yaml.safe_load((HERE / "compose.yml").read_text())["services"]
    mounted = {entry.split(":")[1]: entry.split(":")[0] for entry in services["grafana"]["volumes"]}
    assert Path(mounted["/etc/grafana/provisioning"]) == Path(
        "pipelines/transactions/monitoring/provisioning"
    )
    (provider,) = yaml.safe_load(
        (MONITORING / "provisioning/dashboards/transactions.yml").read_text()
    )["providers"]
    assert provider["options"]["path"] in mounted
    assert set(provider) <= {
        "name",
        "orgId",
        "folder",
        "folderUid",
        "type",
        "disableDeletion",
        "updateIntervalSeconds",
        "allowUiUpdates",
        "options",
    }
    content = yaml.safe_load((MONITORING / "provisioning/datasources/prometheus.yml").read_text())
    assert content["apiVersion"] == 1
    (source,) = content["datasources"]
    assert source["url"].removeprefix("$") in services["grafana"]["environment"]
    assert set(source) <= {
        "name",
        "type",
        "access",
        "orgId",
        "uid",
        "url",
        "user",
        "database",
        "basicAuth",
        "isDefault",
        "jsonData",
        "secureJsonData",
        "version",
        "editable",
    }
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
