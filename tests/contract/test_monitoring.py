"""The alert rules, checked by promtool; Grafana's boards and provisioning, by its documentation."""

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

from stack.compose import StackError
from stack.lifecycle import Stack
from stack.native.prometheus import find_program, unpack_package
from tests.conftest import PROJECT

MONITORING = PROJECT / "extensions/monitoring"
GRAFANA = MONITORING / "grafana"
OVERLAY = MONITORING / "compose.yml"
PIPELINE_COMPOSE = PROJECT / "pipelines/transactions/docker-compose.yml"
DASHBOARDS = [
    GRAFANA / "dashboards/smart-city.json",
    PROJECT / "pipelines/transactions/dashboards/transactions.json",
]
RULE_TESTS = PROJECT / "tests/contract/alerts.test.yml"
register_default_plugins()


def promtool(*arguments: Path | str) -> str:
    """Run the checker that comes with Prometheus; return what it prints."""
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
    """The tests of the rules must also fail with any change of the rules."""
    path = "../../extensions/monitoring/alerts.yml"
    (tmp_path / "test.yml").write_text(RULE_TESTS.read_text().replace(path, "alerts.yml"))

    def checked(rules: str) -> str:
        (tmp_path / "alerts.yml").write_text(rules)
        return promtool("test", "rules", tmp_path / "test.yml")

    rules = (MONITORING / "alerts.yml").read_text()
    assert "SUCCESS" in checked(rules)
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
        with pytest.raises(AssertionError, match="FAILED"):
            checked(rules.replace(before, after))


def test_every_alert_is_tested_and_has_a_summary_and_a_description() -> None:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    tests = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    fired = {
        case["alertname"]
        for one in tests
        for case in one["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert {rule["alert"] for rule in group["rules"]} == fired
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_promtool_checks_the_expression_of_the_first_panel() -> None:
    (board, *_) = DASHBOARDS
    tests = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    checked = {case["expr"] for one in tests for case in one.get("promql_expr_test", [])}
    (state,) = json.loads(board.read_text())["panels"][0]["targets"]
    assert checked == {state["expr"]}


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Return the paths where theirs lacks what ours has, or differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        missing = [f"{path}/{name}" for name in ours if name not in theirs]
        both = [name for name in ours if name in theirs]
        return missing + [p for n in both for p in lost(ours[n], theirs[n], f"{path}/{n}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [p for n, (a, b) in pairs for p in lost(a, b, f"{path}[{n}]")]
    return [] if ours == theirs else [path]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_grafana_s_model_keeps_the_whole_dashboard(file: Path) -> None:
    """Grafana's published model drops unknown keys, so nothing may be missing afterwards."""
    dashboard = json.loads(file.read_text())

    def through_the_model(ours: dict[str, Any]) -> Any:
        return json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(ours)))

    assert lost(dashboard, through_the_model(dashboard)) == []
    misspelt = {**dashboard, "refersh": "10s"}
    assert lost(misspelt, through_the_model(misspelt)) == ["/refersh"]


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
    assert len(cells) == 24 * (max(y for _, y in cells) + 1), "the board has a hole"
    source_file = GRAFANA / "provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(source_file.read_text())["datasources"]
    named = {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert named == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("overlay", [OVERLAY, PIPELINE_COMPOSE], ids=lambda file: file.parent.name)
def test_grafana_is_provisioned_with_what_compose_mounts(overlay: Path) -> None:
    """The allowed keys are those of Grafana's documentation, "Provision Grafana"."""
    grafana = yaml.safe_load(overlay.read_text())["services"]["grafana"]
    start = overlay.parent if overlay == PIPELINE_COMPOSE else PROJECT  # of relative paths
    volumes = [entry.split(":") for entry in grafana["volumes"]]
    mounted = {inside: (start / here).resolve() for here, inside, *_ in volumes}
    provisioning = mounted["/etc/grafana/provisioning"]
    assert provisioning == GRAFANA / "provisioning"
    content = yaml.safe_load((provisioning / "dashboards/files.yml").read_text())
    (provider,) = content["providers"]
    assert content["apiVersion"] == 1
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
    assert list(mounted[provider["options"]["path"]].glob("*.json"))
    content = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())
    (source,) = content["datasources"]
    assert content["apiVersion"] == 1
    assert source["url"].removeprefix("$") in grafana["environment"]
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


def test_the_start_script_gives_the_broker_the_jmx_agent_if_there_is_one(
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


def test_the_documented_commands_use_the_ports_that_prometheus_scrapes() -> None:
    text = OVERLAY.read_text()
    for script, variable in (
        ("sensor_generator.py", "GENERATOR_METRICS_PORT"),
        ("kafka_to_elasticsearch.py", "CONSUMER_METRICS_PORT"),
    ):
        (scraped,) = set(re.findall(rf"\$\{{{variable}:-(\d+)\}}", text))
        for file in (OVERLAY, PROJECT / "extensions/monitoring/README.md"):
            assert f"{script} --metrics-port {scraped}" in file.read_text()
