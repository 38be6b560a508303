"""The benches work, and give no figure for a wrong result. No test judges the figures."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from benches import generator, growth, latency, outage, report, spark, throughput, tuning
from benches.command import write_result
from benches.testbed import BenchError, Testbed, fingerprint, open_testbed
from stack.lifecycle import Stack


@pytest.fixture
def testbed(stack: Stack, tmp_path: Path) -> Iterator[Testbed]:
    """A testbed on the tests' own servers."""
    with open_testbed(stack, tmp_path) as opened:
        yield opened


def written(testbed: Testbed, name: str, options: dict[str, Any], found: Any, **more: Any) -> str:
    """Write a result and its chart, as a bench does; return a text with its table."""
    output = testbed.folder / "results"
    file = write_result(testbed, name, options | {"output": output}, found, **more)
    result = json.loads(file.read_text())
    assert result["parameters"] == options
    assert result["found"] == json.loads(json.dumps(found))
    assert file.with_suffix(".png").stat().st_size > 1000
    text = testbed.folder / "text.md"
    text.write_text(f"before\n<!-- bench {name} -->\nold\n<!-- /bench -->\nafter\n")
    report.renew(text, output)
    renewed = text.read_text()
    assert "old" not in renewed
    assert renewed.startswith("before\n")
    assert renewed.endswith(f"results/{file.stem}.png)\n<!-- /bench -->\nafter\n")
    return renewed


def drawn_rates(found: dict[str, list[float]], runs: int) -> tuple[list[str], str, list[Any]]:
    """Return the labels from the bottom up, the scale and the lines of a chart of rates."""
    rows = {name: {"per_s": values} for name, values in found.items()}
    report.rate_points(rows, "documents par seconde", runs)
    axes = pyplot.gca()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    drawn = labels, axes.get_xscale(), list(axes.lines)
    pyplot.close()
    return drawn


def test_rates_are_ordered_and_far_ones_have_a_logarithmic_axis() -> None:
    rates = {"ours": [90.0, 100, 120], "limit": [150.0, 160, 170], "rsyslog": [95.0, 105, 110]}
    labels = [report.LABELS[name] for name in ("ours", "rsyslog", "limit")]
    assert drawn_rates(rates, runs=3)[:2] == (labels, "linear")
    labels.insert(0, report.LABELS["naive"])
    assert drawn_rates(rates | {"naive": [1.0, 2, 3]}, runs=3)[:2] == (labels, "log")


def test_a_single_run_has_no_range() -> None:
    assert len(drawn_rates({"ours": [100.0, 100, 100]}, runs=1)[2]) == 1
    assert len(drawn_rates({"ours": [90.0, 100, 110]}, runs=3)[2]) == 2


def slow(*names: str) -> Any:
    return pytest.param(*names, marks=pytest.mark.slow)


# They differ little from contestants that are always tested, so only `make test-all` takes them.
SIMILAR = {"connect", "connect_safe", "bulk", "streaming_bulk"}


@pytest.mark.parametrize(
    "name", [slow(name) if name in SIMILAR else name for name in throughput.CONTESTANTS]
)
def test_a_contestant_indexes_the_whole_topic(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if why := throughput.CONTESTANTS[name].why_absent(testbed):
        pytest.skip(f"{name}: {why}")
    monkeypatch.setattr(throughput, "SLOW_READINGS", 300)  # 5000 would take too long here
    contestant = throughput.CONTESTANTS[name]
    found, left_out, failed = throughput.measure(testbed, {name: contestant}, 6000, rounds=1)
    assert not left_out
    assert not failed
    row = found[name]
    assert row["readings"] == (300 if contestant.is_slow else 6000)
    assert row["per_s"][0] > 0
    assert row["client_cpu_s"][0] > 0
    assert row["elasticsearch_cpu_s"][0] > 0
    options = {"readings": 6000, "runs": 1}
    assert report.LABELS[name] in written(testbed, "throughput", options, found)


@pytest.mark.parametrize(
    "names", ["as it is,checksums,polls of 1000", slow(",".join(tuning.VARIANTS))]
)
def test_each_variant_of_the_consumer_indexes_the_whole_topic(testbed: Testbed, names: str) -> None:
    chosen = {name: tuning.variant(tuning.VARIANTS[name]) for name in names.split(",")}
    wrong = {"misspelt": tuning.variant("BULK_READNGS = 1"), "wrong": tuning.variant("gone.x = 1")}
    found, left_out, failed = throughput.measure(testbed, chosen | wrong, readings=6000, rounds=1)
    assert not left_out
    assert failed.keys() == wrong.keys()
    assert "the consumer has no BULK_READNGS" in failed["misspelt"]
    assert "name 'gone' is not defined" in failed["wrong"]
    text = written(testbed, "tuning", {"readings": 6000, "runs": 1}, found)
    assert all(report.LABELS[name] in text for name in chosen)


def test_the_wait_for_a_search_is_measured(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "RATE_TOLERANCE", 1.0)  # this machine may be busy
    found = latency.measure(testbed, rate=200, duration_s=2)
    own, short, _ = found
    assert (own, short) == ("1s", "50ms")
    for refresh in (own, short):
        assert found[refresh]["readings"] == pytest.approx(400, abs=100)
    assert found[own]["p50_s"] <= found[own]["p99_s"] <= found[own]["max_s"]
    assert found["consumer"]["memory_mb"] > 1
    options = {"rate": 200, "duration": 2}
    assert "`refresh_interval` 1s" in written(testbed, "latency", options, found)


def test_growth_is_measured_along_each_series(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "WARM_UP_RUNS", 1)
    # Two points of each series, as all of them take minutes.
    for points in ("PARTITIONS", "CONSUMERS", "TIMES_LONGER"):
        monkeypatch.setattr(growth, points, (1, 3))
    cases = growth.make_cases(testbed, [500], copies=2, readings=500, group_readings=1000)
    found = growth.measure(testbed, cases, rounds=1)
    assert {series: list(points) for series, points in found.items()} == {
        "backlog": ["500", "1000"],
        "partitions": ["1", "3"],
        "consumers": ["1", "3"],
        "size": ["x1", "x1 gzip", "x3", "x3 gzip", "long ids"],
    }
    size = {name: row["message_bytes"] for name, row in found["size"].items()}
    assert size["x3"] == size["x3 gzip"] == pytest.approx(3 * size["x1"], abs=2)
    assert size["long ids"] == size["x1"] + growth.LONGEST_ID - len("sensor_001")
    assert all(row["per_s"][0] > 0 for points in found.values() for row in points.values())
    assert all(row["limit_per_s"][0] > 0 for row in found["backlog"].values())
    assert found["size"]["x1"]["limit_per_s"] is None
    assert found["consumers"]["1"]["sharing"] == [1, 1, 1]
    assert "longueur : id long" in written(testbed, "growth", {"runs": 1}, found)


@pytest.mark.slow
def test_spark_is_measured_beside_the_script(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark, "WARM_UP_RUNS", 0)
    with spark.spark_cluster(testbed) as cluster:
        topics = {2: testbed.fill_topic(6000, partitions=2, sensors=spark.SENSORS)}
        found = spark.measure(testbed, cluster, topics, rounds=1)
    assert list(found) == ["script", "1 executor", "2 executors"]
    assert all(row["2"]["per_s"][0] > 0 for row in found.values())
    # Python and Java work for seconds on the executors, of which the driver's process has no part.
    assert (
        found["2 executors"]["2"]["client_cpu_s"][0] > 2 * found["script"]["2"]["client_cpu_s"][0]
    )
    text = written(testbed, "spark", {"readings": 6000, "runs": 1}, found)
    assert "Spark, 2 executors d'un cœur" in text


def test_the_generator_is_measured_beside_other_producers(testbed: Testbed) -> None:
    found = generator.measure(testbed, rates_hz=[500], duration_s=2, readings=6000, rounds=1)
    assert found["paced"]["500"]["rate_hz"][0] > 0
    for part, names in (("at_once", generator.AT_ONCE), ("batching", generator.BATCHING)):
        assert tuple(found[part]) == names
        assert all(row["per_s"][0] > 0 for row in found[part].values())
    batching = found["batching"]
    assert batching["kafka-python"]["stored_bytes"] < batching["no compression"]["stored_bytes"]
    assert batching["no compression"]["stored_bytes"] < batching["one by one"]["stored_bytes"]
    text = written(testbed, "generator", {"readings": 6000, "runs": 1}, found)
    assert "kafka-producer-perf-test" in text
    assert "un message par requête" in text


@pytest.mark.timeout(600)  # on a busy machine Elasticsearch needs minutes to start again
def test_the_lag_is_measured_while_a_server_is_away(testbed: Testbed) -> None:
    names = ["elasticsearch killed", "consumer joins"]
    found = outage.measure(testbed, rate=100, calm_s=1, names=names)
    assert found["events"]["elasticsearch killed"]["peak_lag"] > 0
    assert list(found["events"]) == names
    assert found["lag"][-1][1] == 0
    assert found["readings"] > 100
    options = {"rate": 100, "elasticsearch_away_s": 15, "partitions": 3}
    assert "Elasticsearch tué" in written(testbed, "outage", options, found)


INDEX_500_OTHERS = """
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
        (INDEX_500_OTHERS, "500 documents, but not the readings that were sent"),
    ],
    ids=["nothing", "something else"],
)
def test_a_wrong_result_is_no_result(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch, program: str, words: str, by_id: bool
) -> None:
    command = [sys.executable, "-c", program]
    wrong = throughput.Contestant(lambda _, __: command, by_id=by_id)
    monkeypatch.setitem(report.LABELS, "wrong", "wrong")
    found, _, failed = throughput.measure(testbed, {"wrong": wrong}, readings=500, rounds=1)
    assert not found
    assert re.search(words, failed["wrong"])
    text = written(testbed, "throughput", {"readings": 500, "runs": 1}, found, failed=failed)
    assert "wrong : résultat refusé" in text


def test_a_topic_with_too_few_readings_is_refused(testbed: Testbed) -> None:
    topic = testbed.fill_topic(10)
    with pytest.raises(BenchError, match="holds 10 readings, not 11"):
        testbed.read_topic(topic.name, 11)


def test_an_index_with_other_documents_is_refused(testbed: Testbed) -> None:
    index = testbed.new_index("check")
    for one in ("a", "b"):
        testbed.client.index(index=index, id=one, document={"sensor_id": one})
    testbed.check_index(index, fingerprint(["b", "a"]))
    with pytest.raises(BenchError, match="2 documents for 3 readings"):
        testbed.check_index(index, fingerprint(["a", "b", "c"]))
    with pytest.raises(BenchError, match="not the readings that were sent"):
        testbed.check_index(index, fingerprint(["a", "c"]))


def test_a_peer_that_is_not_installed_is_named(testbed: Testbed) -> None:
    absent = throughput.Contestant(lambda _, __: [], why_absent=lambda _: "no package")
    found, left_out, failed = throughput.measure(testbed, {"rsyslog": absent}, 10, rounds=1)
    assert (found, failed) == ({}, {})
    options = {"readings": 10, "runs": 1}
    text = written(testbed, "throughput", options, found, left_out=left_out)
    assert "rsyslog : pas mesuré (no package)" in text


def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for module, wrong in (
        (throughput, ["--only", "ours,theirs"]),
        (latency, ["--rate", "0"]),
        (growth, ["--runs", "none"]),
        (growth, ["--copies", "32"]),
        (outage, ["--only", "rain"]),
        (tuning, ["--readings", "0"]),
        (generator, ["--rates", "fast"]),
        (spark, ["--partitions", "0"]),
    ):
        with pytest.raises(SystemExit) as ended:
            module.main(wrong)
        assert ended.value.code == 2
        assert wrong[0] in capsys.readouterr().err
