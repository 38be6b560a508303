#!/usr/bin/env python3
"""Write the newest result of bench.py into README, so that no figure is typed by hand.

    python pipelines/smarttech/benches/report.py      # bench.py does it, too, at its end

In README.md of the pipeline, what stands between <!-- bench NAME --> and <!-- /bench --> becomes
the table NAME (sizes, settings, compaction) of the newest results/DATE.json. The tables are in
French, like the text around them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent / "README.md"
RESULTS = FOLDER / "results"
BLOCK = re.compile(r"(<!-- bench (\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
STAGES = ("bronze", "silver", "gold")
NOT_YET = "Pas encore mesuré."

Run = Mapping[str, Mapping[str, float]]  # stage -> rows, seconds, rows_per_s
Result = Mapping[str, Any]


def number(value: float, decimals: int = 0) -> str:
    r"""Return a number as French texts write it.

    >>> number(1234567.0), number(0.25, 2)
    ('1\u202f234\u202f567', '0,25')
    """
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace(".", ",")


def rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first to the right."""
    marks = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, marks, *lines))


def total_s(run: Run) -> float:
    """Return how long a run took, seconds."""
    return sum(run[stage]["seconds"] for stage in STAGES)


def rate(runs: Sequence[Run], stage: str) -> str:
    """Return the median rate of a stage, with its extremes when there are several runs."""
    rates = [run[stage]["rows_per_s"] for run in runs]
    spread = f" ({number(min(rates))} – {number(max(rates))})" if len(rates) > 1 else ""
    return f"**{number(median(rates))}**{spread}"


def sizes(result: Result) -> str:
    """Return the rows per second of each stage by number of messages, and how time grows."""
    found: Mapping[str, Sequence[Run]] = result["sizes"]
    took_s = {size: median(map(total_s, runs)) for size, runs in found.items()}
    lines = [
        [number(int(size)), *(rate(runs, stage) for stage in STAGES), number(took_s[size], 1),
         str(len(runs))]
        for size, runs in found.items()
    ]  # fmt: skip
    head = ["messages", *(f"{stage} : lignes/s" for stage in STAGES), "les trois, s", "passages"]
    least, most = min(took_s, key=int), max(took_s, key=int)
    return (
        f"{rows(head, lines)}\n\n"
        f"{number(int(most) / int(least))} fois plus de messages : "
        f"{number(took_s[most] / took_s[least], 1)} fois plus de temps."
    )


def settings(result: Result) -> str:
    """Return what each setting is worth: times with Spark's default, as multiples of ours."""
    found: Mapping[str, Sequence[Run]] = result["settings"]
    ours, *others = found

    def took_s(name: str, stage: str) -> float:
        return median(run[stage]["seconds"] for run in found[name])

    lines = [
        ["nos réglages", *(f"{number(took_s(ours, stage), 1)} s" for stage in STAGES)],
        *(
            [f"`{name}`", *(f"× {number(took_s(name, s) / took_s(ours, s), 1)}" for s in STAGES)]
            for name in others
        ),
    ]
    size, runs = result["settings_rows"], len(found[ours])
    note = f"{number(size)} messages, médiane de {runs} passages en alternance."
    return f"{rows(['', *STAGES], lines)}\n\n{note}"


def compaction(result: Result) -> str:
    """Return what OPTIMIZE and VACUUM do to the files and to the time that a reading takes."""
    found = result["compaction"]
    lines = []
    for table, effect in found["tables"].items():
        files, (slow, fast), disk = effect["files"], effect["read_s"], effect["bytes_on_disk"]
        kilobytes = " → ".join(number(size / 1e3) for size in disk)
        lines.append(
            [table, " → ".join(map(number, files)), f"{number(slow, 2)} → {number(fast, 2)}",
             f"÷ {number(slow / fast, 1)}", kilobytes]
        )  # fmt: skip
    head = ["table", "fichiers", "lecture, s", "", "ko sur le disque"]
    return (
        f"{rows(head, lines)}\n\n{number(found['rows'])} messages arrivés en direct, "
        f"par batches de {number(found['batch'])} au plus."
    )


TABLES = {"sizes": sizes, "settings": settings, "compaction": compaction}


def origin(result: Result) -> str:
    """Return the line that says when, what and where."""
    return (
        f"{result['date'][:10]}, révision `{result['commit'] or '?'}`, {result['processors']} "
        f"cœurs partagés avec Kafka, Spark {result['pyspark']}, Delta {result['delta-spark']}."
    )


def renewed(text: str, result: Result | None) -> str:
    """Return a text with the tables of a result in its blocks."""

    def block(match: re.Match[str]) -> str:
        table = f"{TABLES[match[2]](result)}\n\n{origin(result)}" if result else NOT_YET
        return f"{match[1]}{table}\n{match[3]}"

    return BLOCK.sub(block, text)


def newest() -> Result | None:
    """Return the newest result, if any."""
    files = sorted(RESULTS.glob("*.json"))
    result: Result | None = json.loads(files[-1].read_text(encoding="utf-8")) if files else None
    return result


def main() -> int:
    """Bring README up to date."""
    README.write_text(renewed(README.read_text(encoding="utf-8"), newest()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
