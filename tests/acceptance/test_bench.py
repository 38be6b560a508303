"""The bench works, and gives no figure for a wrong result. Nothing is said of the figures."""

import json
import sys
from pathlib import Path

import pytest

from benches import bench
from stack.__main__ import Stack


def test_each_contestant_indexes_the_whole_topic(
    stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = bench.measure(stack, tmp_path, list(bench.CONTESTANTS), readings=4000, turns=1)
    assert set(runs) == set(bench.CONTESTANTS)
    for (one,) in runs.values():
        assert one.docs_per_s > 0
        assert one.seconds > 0
        assert one.client_cpu_s > 0
        assert one.server_cpu_s > 0
    assert runs["ours"][0].memory_mb > 1
    found = bench.summary(runs)
    bench.print_table(found)
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in bench.CONTESTANTS)
    result = {
        "found": found,
        "machine": bench.machine(),
        "parameters": {"readings": 4000},
    }
    json.dumps(result)
    bench.draw(result, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("import sys", "0 of 500 readings indexed, then nothing more"),
        (
            "import os, elasticsearch as e; c = e.Elasticsearch(os.environ['ELASTICSEARCH_URL'])\n"
            "for n in range(500): c.index(index=os.environ['ELASTICSEARCH_INDEX'],"
            " id=str(n), document={'sensor_id': 'x'})",
            "500 documents, 500 ids missing, 500 that nobody sent",
        ),
    ],
    ids=["nothing", "something else"],
)
def test_a_wrong_result_is_no_result(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, words: str
) -> None:
    command = [sys.executable, "-c", way]
    monkeypatch.setitem(bench.CONTESTANTS, "wrong", lambda _, __: command)
    with pytest.raises(bench.BenchError, match=words):
        bench.measure(stack, tmp_path, ["wrong"], readings=500, turns=1)


def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(["--only", "ours,theirs"])
    assert ended.value.code == 2
    assert "--only: there is no theirs" in capsys.readouterr().err
