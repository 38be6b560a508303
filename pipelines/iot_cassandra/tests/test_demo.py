"""The demo and the bench, as a user starts them, with real servers."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

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
    assert re.search(rf"^messages in {scene.name} +20441$", ended.stdout, re.MULTILINE)
    assert re.search(
        r"^20\d\d-\d\d-\d\d \d\d:00 +\d+ +-?[\d.]+ °C +[\d.]+ %$", ended.stdout, re.MULTILINE
    )
    assert "✓ Ce qui a été envoyé est exactement ce qui est stocké" in ended.stdout
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("Tout arrêter     python -m stack down ")


def in_picture(page: Path) -> list[str]:
    """Return the texts of an SVG picture, as their comments have them."""
    return re.findall(r"<!-- (.*?) -->", page.read_text())


def test_the_picture_is_of_what_cassandra_has_in_the_last_week(scene: Scene) -> None:
    picture = scene.folder / "semaine.svg"
    assert "no reading of sensor 1" in scene.run("chart.py", code=1)
    week = ("--sensors", "1", "--rate", "0.01", "--start", "2026-01-01T00:00:00Z")
    scene.simulate("--backfill", "9d", *week)
    scene.write()
    said = scene.run("chart.py", "--output", str(picture))
    assert said.startswith("chart: 6048 readings of sensor 1, 2026-01-03 to 2026-01-09, drawn into")
    texts = in_picture(picture)
    assert texts[-1] == (
        "Capteur 1, du 03/01/2026 au 09/01/2026 : 6048 mesures relues dans Cassandra (heures UTC)"
    )
    assert {"Température (°C)", "Humidité relative (%)", "03/01", "09/01"} <= set(texts)
    assert "Format 'odt' is not supported" in scene.run("chart.py", "--output", "a.odt", code=1)


def test_the_bench_measures_each_way(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    bench = [sys.executable, str(HERE / "benches/bench.py"), "--results", str(results)]
    ended = subprocess.run(
        [*bench, "--readings", "300", "--runs", "1"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
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
