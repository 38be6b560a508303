"""The alert rules, tried by promtool; dashboards and provisioning, by what Grafana documents."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from stack.__main__ import Stack
from stack.compose import StackError
from stack.images.prometheus import find_program, unpack_package

PROJECT = Path(__file__).resolve().parents[2]
MONITORING = PROJECT / "monitoring"
GRAFANA = MONITORING / "grafana"
OVERLAY = PROJECT / "docker-compose.monitoring.yml"
PIPELINE_OVERLAY = PROJECT / "pipelines/transactions/compose.yml"
DASHBOARDS = [
    GRAFANA / "dashboards/smart-city.json",
    PROJECT / "pipelines/transactions/dashboards/transactions.json",
]
register_default_plugins()


def promtool(*arguments: Path | str) -> str:
    """Run Prometheus' own checker; return what it printed."""
    program = find_program("prometheus", Stack([PROJECT / "docker-compose.yml"], {}).cache)
    try:
        unpack_package(program)
    except StackError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))
    command = [program.with_name("promtool"), *arguments]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return checked.stdout + checked.stderr


def test_the_alerts_fire_when_they_must_and_only_then(tmp_path: Path) -> None:
    """A test of rules that fits any rules would be none: with other thresholds it must fail."""
    tests = PROJECT / "tests/contract/alerts.test.yml"
    assert "SUCCESS" in promtool("test", "rules", tests)
    rules = (MONITORING / "alerts.yml").read_text()
    changes = [
        ('{job="consumer"} == 0', '{job="consumer"} == 2'),
        ("since_settled > 30", "since_settled > 20"),
        ("since_settled > 30", "since_settled > 60"),
        ("and (smart_city_lag > 0 or smart_city_waiting > 0)", ""),
        ("smart_city_lag > 0 or ", ""),
        (" or smart_city_waiting > 0", ""),
        ("> 1000", "> 2000"),
        ("for: 5m", "for: 10m"),
        ("0.01 *", "0.001 *"),
        ('outcome="failed"', 'outcome="sent"'),
        ("kafka|", "zookeeper|"),
        ("unless on()", "and on()"),
    ]
    for before, after in changes:
        assert rules.count(before) == 1, before
        (tmp_path / "alerts.yml").write_text(rules.replace(before, after))
        copy = tmp_path / "test.yml"
        copy.write_text(tests.read_text().replace("../../monitoring/alerts.yml", "alerts.yml"))
        with pytest.raises(AssertionError, match="FAILED"):
            promtool("test", "rules", copy)


def test_every_alert_is_tested_and_says_in_french_what_to_do() -> None:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    tests = yaml.safe_load((PROJECT / "tests/contract/alerts.test.yml").read_text())["tests"]
    fired = {case["alertname"] for one in tests for case in one["alert_rule_test"]
             if case.get("exp_alerts")}  # fmt: skip
    assert {rule["alert"] for rule in group["rules"]} == fired
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_panel_of_the_consumer_s_state_is_the_one_that_promtool_tries() -> None:
    (board, *_) = DASHBOARDS
    tests = yaml.safe_load((PROJECT / "tests/contract/alerts.test.yml").read_text())["tests"]
    tried = {case["expr"] for one in tests for case in one.get("promql_expr_test", [])}
    (state,) = json.loads(board.read_text())["panels"][0]["targets"]
    assert tried == {state["expr"]}


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


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_grafana_s_model_knows_the_whole_dashboard(file: Path) -> None:
    """Grafana's published model drops what it does not know: nothing may be missing afterwards."""
    dashboard = json.loads(file.read_text())

    def through_the_model(ours: dict[str, Any]) -> Any:
        return json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(ours)))

    assert lost(dashboard, through_the_model(dashboard)) == []
    misspelt = {**dashboard, "refersh": "10s"}
    assert lost(misspelt, through_the_model(misspelt)) == ["/refersh"]  # it does find it


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_panels_fill_the_board_and_name_the_provisioned_source(file: Path) -> None:
    panels = json.loads(file.read_text())["panels"]
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in taken) < 24
        cells |= taken
    assert len(cells) == 24 * (max(y for _, y in cells) + 1), "a hole"
    source_file = GRAFANA / "provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(source_file.read_text())["datasources"]
    named = {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert named == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("overlay", [OVERLAY, PIPELINE_OVERLAY], ids=lambda file: file.parent.name)
def test_provisioning_says_what_compose_mounts(overlay: Path) -> None:
    """The keys are those of Grafana's documentation, "Provision Grafana"."""
    grafana = yaml.safe_load(overlay.read_text())["services"]["grafana"]
    mounted = {entry.split(":")[1]: PROJECT / entry.split(":")[0] for entry in grafana["volumes"]}
    provisioning = mounted["/etc/grafana/provisioning"]
    assert provisioning == GRAFANA / "provisioning"
    content = yaml.safe_load((provisioning / "dashboards/files.yml").read_text())
    (provider,) = content["providers"]
    assert content["apiVersion"] == 1
    assert set(provider) <= {
        "name", "orgId", "folder", "folderUid", "type", "disableDeletion",
        "updateIntervalSeconds", "allowUiUpdates", "options",
    }  # fmt: skip
    assert list(mounted[provider["options"]["path"]].glob("*.json"))
    content = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())
    (source,) = content["datasources"]
    assert content["apiVersion"] == 1
    assert source["url"].removeprefix("$") in grafana["environment"]
    assert set(source) <= {
        "name", "type", "access", "orgId", "uid", "url", "user", "database", "basicAuth",
        "isDefault", "jsonData", "secureJsonData", "version", "editable",
    }  # fmt: skip


def test_the_start_script_gives_the_agent_to_the_broker_only_where_there_is_one(
    tmp_path: Path,
) -> None:
    script = (MONITORING / "kafka-metrics.sh").read_text()
    script = script.replace("/usr/share/java/cp-base-new", str(tmp_path))
    script = script.replace("exec /etc/confluent/docker/run", 'echo "started $KAFKA_OPTS"')

    def started() -> str:
        environ = {"JMX_EXPORTER_PORT": "9404"}
        command = ["bash", "-c", script]
        return subprocess.run(
            command, env=environ, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert started() == "started"
    agent = tmp_path / "jmx_prometheus_javaagent-0.18.0.jar"
    agent.touch()
    assert started() == f"started -javaagent:{agent}=9404:/etc/jmx-exporter.yml"


def test_the_commands_of_the_overlay_use_the_ports_that_prometheus_asks() -> None:
    text = OVERLAY.read_text()
    for script, variable in (
        ("sensor_generator.py", "GENERATOR_METRICS_PORT"),
        ("kafka_to_elasticsearch.py", "CONSUMER_METRICS_PORT"),
    ):
        (asked,) = set(re.findall(rf"\$\{{{variable}:-(\d+)\}}", text))
        for file in (OVERLAY, PROJECT / "README.md"):
            assert f"{script} --metrics-port {asked}" in file.read_text()
