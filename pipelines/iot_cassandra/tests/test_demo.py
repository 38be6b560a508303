"""The demo and the bench, as a user starts them, with real servers."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.testing.compare import compare_images

from pipelines.iot_cassandra.benches import bench
from pipelines.iot_cassandra.tests.conftest import HERE, Scene, stack_environ


def test_the_demo_holds_also_when_it_is_run_again(scene: Scene, tmp_path: Path) -> None:
    no_docker = tmp_path / "docker"
    no_docker.write_text("#!/bin/sh\nexit 1\n")
    no_docker.chmod(0o755)
    scene.send(b"of an earlier run")
    path = f"{tmp_path}{os.pathsep}{scene.environ['PATH']}"
    ended = subprocess.run(
        [sys.executable, str(HERE / "demo.py")],
        env={**scene.environ, **stack_environ(scene.stack), "PATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert re.search(rf"^messages in {scene.name} +20291$", ended.stdout, re.MULTILINE)
    assert re.search(
        r"^20\d\d-\d\d-\d\d \d\d:00 +\d+ +-?[\d,]+ °C +[\d,]+ %$", ended.stdout, re.MULTILINE
    )
    assert "✓ Ce qui a été envoyé est exactement ce qui est stocké" in ended.stdout
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("Tout arrêter     python -m stack down ")


def test_the_picture_is_of_what_cassandra_has_in_the_last_week(scene: Scene) -> None:
    picture = scene.folder / "semaine.png"
    assert "no reading of sensor 1" in scene.run("chart.py", code=1)
    every_5_minutes = ("--sensors", "1", "--rate", "0.00333333")
    scene.simulate("--backfill", "9d", "--start", "2026-01-06T00:00:00Z", *every_5_minutes)
    scene.write()
    said = scene.run("chart.py", "--output", str(picture))
    assert said.startswith("chart: 2016 readings of sensor 1, 2026-01-08 to 2026-01-14, drawn into")
    # Looked at by a person, it has its titles, units and days.
    assert compare_images(str(HERE / "exemple.png"), str(picture), tol=0.2) is None
    assert "Format 'odt' is not supported" in scene.run("chart.py", "--output", "a.odt", code=1)


def test_the_bench_measures_each_way(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this session's servers instead of its own."""
    servers = SimpleNamespace(servers=scene.stack.servers, up=lambda _: None, down=lambda **_: None)
    monkeypatch.setattr(bench, "Stack", lambda *_: servers)
    results = tmp_path / "results.jsonl"
    assert bench.main(["--results", str(results), "--readings", "300", "--runs", "1"]) == 0
    (line,) = results.read_text().splitlines()
    found = json.loads(line)
    assert found["readings"] == 300
    assert set(found["readings_per_s"]) == {"writer", "helper", "helper_1000", "spark"}
    assert all(len(rates) == 1 and rates[0] > 0 for rates in found["readings_per_s"].values())


def test_readme_shows_the_last_result_of_the_bench() -> None:
    kept = json.loads((HERE / "benches/results.jsonl").read_text().splitlines()[-1])
    row = r"\| ([\d ]+) \| ([\d ]+) – ([\d ]+) \| ([\d,]+) \|"
    table = re.findall(row, (HERE / "benches/README.md").read_text())
    shown = [tuple(float(n.replace(" ", "").replace(",", ".")) for n in line) for line in table]
    base = statistics.median(kept["readings_per_s"]["writer"])
    assert shown == [
        (middle := statistics.median(rates), min(rates), max(rates), round(middle / base, 2))
        for rates in kept["readings_per_s"].values()
    ]
