"""The benches work, and give no figure for a wrong result. Nothing is said of the figures."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches import generator, growth, latency, outage, report, scene, throughput, tuning
from benches.scene import BenchError, Scene
from stack.__main__ import Stack


@pytest.fixture
def bench(stack: Stack, tmp_path: Path) -> Iterator[Scene]:
    """The tests' own servers, as a bench sees them."""
    with scene.scene_on(stack, tmp_path) as opened:
        yield opened


def written(bench: Scene, name: str, parameters: dict[str, Any], found: Any, **more: Any) -> str:
    """Write a result as a bench does; return its table, renewed in a text, and see its chart."""
    output = bench.folder / "results"
    file = scene.write_result(bench, name, parameters, found, output, **more)
    result = json.loads(file.read_text())
    assert result["found"] == json.loads(json.dumps(found))
    assert file.with_suffix(".png").stat().st_size > 1000
    text = bench.folder / "text.md"
    text.write_text(f"before\n<!-- bench {name} -->\nold\n<!-- /bench -->\nafter\n")
    report.renew(text, output)
    renewed = text.read_text()
    assert "old" not in renewed
    assert renewed.startswith("before\n")
    assert renewed.endswith(f"results/{file.stem}.png)\n<!-- /bench -->\nafter\n")
    return renewed


def slow(*names: str) -> Any:
    return pytest.param(*names, marks=pytest.mark.slow)


LIKE_OTHERS = {"connect_safe", "bulk", "streaming_bulk"}


@pytest.mark.parametrize(
    "name", [slow(name) if name in LIKE_OTHERS else name for name in throughput.CONTESTANTS]
)
def test_a_contestant_indexes_the_whole_topic(
    bench: Scene, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if why := throughput.CONTESTANTS[name].missing(bench):
        pytest.skip(f"{name}: {why}")
    fewer = {"naive": 300, "connect_safe": 300}.get(name)  # at some hundred a second
    monkeypatch.setattr(throughput, "CONNECT_SAFE_READINGS", 300)
    contestant = replace(throughput.CONTESTANTS[name], readings=fewer)
    found, left_out, failed = throughput.measure(bench, {name: contestant}, 6000, turns=1)
    assert not left_out
    assert not failed
    row = found[name]
    assert row["readings"] == (fewer or 6000)
    assert row["docs_per_s"][0] > 0
    assert row["client_cpu_s"][0] > 0
    assert row["elasticsearch_cpu_s"][0] > 0
    parameters = {"readings": 6000, "runs": 1, "partitions": 1}
    assert report.LABELS[name] in written(bench, "throughput", parameters, found)


@pytest.mark.parametrize("names", ["as it is,threads switch", slow(",".join(tuning.VARIANTS))])
def test_each_variant_of_the_consumer_indexes_the_whole_topic(bench: Scene, names: str) -> None:
    chosen = {name: tuning.variant(tuning.VARIANTS[name]) for name in names.split(",")}
    wrong = {"misspelt": tuning.variant("BULK_READNGS = 1"), "wrong": tuning.variant("gone.x = 1")}
    found, left_out, failed = throughput.measure(bench, chosen | wrong, readings=6000, turns=1)
    assert not left_out
    assert failed.keys() == wrong.keys()
    assert "the consumer has no BULK_READNGS" in failed["misspelt"]
    assert "name 'gone' is not defined" in failed["wrong"]
    parameters = {"readings": 6000, "runs": 1, "variants": tuning.VARIANTS}
    text = written(bench, "tuning", parameters, found)
    assert all(report.LABELS[name] in text for name in chosen)


def test_the_wait_for_a_search_is_measured(bench: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "RATE_TOLERANCE", 1.0)  # this machine may be busy
    found = latency.measure(bench, rate=200, duration_s=2)
    own, short, _ = found
    assert (own, short) == ("1s", "50ms")
    for refresh in (own, short):
        assert found[refresh]["readings"] == pytest.approx(400, abs=100)  # it may be busy
    assert found[own]["p50_s"] <= found[own]["p99_s"] <= found[own]["max_s"]
    assert found["consumer"]["memory_mb"] > 1
    parameters = {"rate_hz": 200, "duration_s": 2, "partitions": 3}
    assert "`refresh_interval` 1s" in written(bench, "latency", parameters, found)


def test_growth_is_measured_along_each_series(
    bench: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A point beside the first in each; all of them take minutes.
    for points in ("PARTITIONS", "CONSUMERS", "TIMES_LONGER"):
        monkeypatch.setattr(growth, points, (1, 3))
    cases = growth.make_cases(bench, backlogs=[500, 1000], readings=500, group_readings=1000)
    found = growth.measure(bench, cases, turns=1)
    assert {series: list(points) for series, points in found.items()} == {
        "backlog": ["500", "1000"],
        "partitions": ["1", "3"],
        "consumers": ["1", "3"],
        "size": ["x1", "x1 gzip", "x3", "x3 gzip", "long ids"],
    }
    size = {name: row["message_bytes"] for name, row in found["size"].items()}
    assert size["x3"] == size["x3 gzip"] == pytest.approx(3 * size["x1"], abs=2)
    assert size["long ids"] == size["x1"] + growth.LONGEST_ID - len("sensor_001")
    assert all(row["docs_per_s"][0] > 0 for points in found.values() for row in points.values())
    assert all(row["limit_docs_per_s"][0] > 0 for row in found["backlog"].values())
    assert found["size"]["x1"]["limit_docs_per_s"] is None
    parameters = {"readings": 500, "runs": 1}
    assert "longueur : id long" in written(bench, "growth", parameters, found)


def test_the_generator_is_measured_beside_other_producers(bench: Scene) -> None:
    found = generator.measure(bench, rates_hz=[500], duration_s=2, readings=30_000, turns=1)
    assert found["paced"]["500"]["rate_hz"][0] > 0
    measured = {"generator", "kafka-producer-perf-test", "confluent-kafka"}
    assert set(found["at_once"]) == measured
    assert all(row["messages_per_s"][0] > 0 for row in found["at_once"].values())
    parameters = {"readings": 30_000, "runs": 1, "duration_s": 2}
    text = written(bench, "generator", parameters, found)
    assert "kafka-producer-perf-test" in text


@pytest.mark.timeout(600)  # Elasticsearch starts again, and a busy machine takes minutes for that
def test_the_lag_is_measured_while_a_server_is_away(bench: Scene) -> None:
    names = ["elasticsearch killed", "consumer joins"]
    found = outage.measure(bench, rate=100, calm_s=1, names=names)
    assert found["events"]["elasticsearch killed"]["peak_lag"] > 0
    assert list(found["events"]) == names
    assert found["lag"][-1][1] == 0
    assert found["readings"] > 100
    parameters = {"rate_hz": 100, "elasticsearch_away_s": 15, "partitions": 3}
    assert "Elasticsearch tué" in written(bench, "outage", parameters, found)


INDEX_500 = """
import os, sys, elasticsearch
client = elasticsearch.Elasticsearch(os.environ["ELASTICSEARCH_URL"])
for n in range(500):
    reading = {"sensor_id": "x", "timestamp": "2026-01-01T00:00:00.000Z"}
    client.index(index=os.environ["ELASTICSEARCH_INDEX"], id=str(n), document=reading)
"""


@pytest.mark.parametrize("by_id", [True, False], ids=["ids", "fields"])
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('no such thing')", r"0 of 500 .* it said: no such thing"),
        (INDEX_500, "500 documents for 500 readings, 500 ids missing, {unknown} that nobody sent"),
    ],
    ids=["nothing", "something else"],
)
def test_a_wrong_result_is_no_result(
    bench: Scene, monkeypatch: pytest.MonkeyPatch, program: str, words: str, by_id: bool
) -> None:
    command = [sys.executable, "-c", program]
    wrong = throughput.Contestant(lambda _, __: command, by_id=by_id)
    monkeypatch.setitem(report.LABELS, "wrong", "wrong")
    found, _, failed = throughput.measure(bench, {"wrong": wrong}, readings=500, turns=1)
    assert not found
    with pytest.raises(AssertionError, match=words.format(unknown=500 if by_id else 1)):
        raise AssertionError(failed["wrong"])
    parameters = {"readings": 500, "runs": 1, "partitions": 1}
    assert "wrong : résultat refusé" in written(
        bench, "throughput", parameters, found, failed=failed
    )


def test_a_reading_that_is_twice_in_the_topic_is_refused(bench: Scene) -> None:
    topic = bench.filled_topic(10)
    with pytest.raises(BenchError, match="holds 10 readings, not 11"):
        bench.read_topic(topic.name, 11)
    twice = b'{"sensor_id": "a", "timestamp": "b"}'
    with pytest.raises(BenchError, match="holds 10 readings, 1 different"):
        bench.copied_topic(topic, lambda _: twice)


def test_who_is_not_installed_is_named(bench: Scene) -> None:
    absent = throughput.Contestant(lambda _, __: [], missing=lambda _: "no package")
    found, left_out, failed = throughput.measure(bench, {"rsyslog": absent}, 10, turns=1)
    assert (found, failed) == ({}, {})
    parameters = {"readings": 10, "runs": 1, "partitions": 1}
    text = written(bench, "throughput", parameters, found, left_out=left_out)
    assert "rsyslog : pas mesuré (no package)" in text


def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for module, wrong in (
        (throughput, ["--only", "ours,theirs"]),
        (latency, ["--rate", "0"]),
        (growth, ["--runs", "none"]),
        (tuning, ["--readings", "0"]),
        (generator, ["--rates", "fast"]),
    ):
        with pytest.raises(SystemExit) as ended:
            module.main(wrong)
        assert ended.value.code == 2
        assert wrong[0] in capsys.readouterr().err
