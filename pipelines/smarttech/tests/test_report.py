"""The tables of README: what report.py makes of a result, and nothing typed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.smarttech.benches import report


def a_run(rows: int, *seconds: float) -> dict[str, dict[str, float]]:
    return {
        stage: {"rows": rows, "seconds": s, "rows_per_s": round(rows / s)}
        for stage, s in zip(report.STAGES, seconds, strict=True)
    }


RESULT: dict[str, Any] = {
    "date": "2025-12-15T10:00:00+00:00", "commit": "abc1234", "processors": 2,
    "pyspark": "3.5.7", "delta-spark": "3.3.3",
    "sizes": {
        "10000": [a_run(10000, 4, 8, 8), a_run(10000, 5, 10, 10), a_run(10000, 2, 8, 8)],
        "1000000": [a_run(1000000, 40, 80, 80)],
    },
    "settings_rows": 10000,
    "settings": {
        "ours": [a_run(10000, 4, 8, 10)],
        "spark.sql.shuffle.partitions=200": [a_run(10000, 4, 12, 30)],
    },
    "compaction": {
        "rows": 10000, "batch": 250,
        "tables": {
            "bronze": {"files": [480, 12], "read_s": [1.2, 0.4], "bytes_on_disk": [2000000, 900000]}
        },
    },
}  # fmt: skip


def test_the_tables_say_what_was_measured() -> None:
    assert "| 10\u202f000 | **2\u202f500** (2\u202f000 – 5\u202f000) | " in report.sizes(RESULT)
    assert "100 fois plus de messages : 10,0 fois plus de temps." in report.sizes(RESULT)
    lines = report.settings(RESULT).splitlines()
    assert "| nos réglages | 4,0 s | 8,0 s | 10,0 s |" in lines
    assert "| `spark.sql.shuffle.partitions=200` | × 1,0 | × 1,5 | × 3,0 |" in lines
    row = "| bronze | 480 → 12 | 1,20 → 0,40 | ÷ 3,0 | 2\u202f000 → 900 |"
    assert row in report.compaction(RESULT).splitlines()


def test_readme_holds_the_newest_result_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = report.README.read_text(encoding="utf-8")
    assert [match[2] for match in report.BLOCK.finditer(text)] == [
        "settings",
        "sizes",
        "compaction",
    ]
    assert report.renewed(text, report.newest()) == text
    for day, commit in (("2025-12-15", "older12"), ("2025-12-16", "newer12")):
        result = json.dumps({**RESULT, "commit": commit})
        (tmp_path / f"{day}.json").write_text(result, encoding="utf-8")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    filled = report.renewed(text, report.newest())
    assert filled.count("`newer12`") == 3
    assert "older12" not in filled
    assert report.renewed(filled, None) == report.renewed(text, None)
