#!/usr/bin/env python3
"""Measure the pipeline: rows per second by stage and size, what the settings and OPTIMIZE bring.

    python pipelines/smarttech/benches/bench.py      # on a quiet machine; then README is up to date
    python pipelines/smarttech/benches/bench.py --sizes 2000 10000 --runs 1 --output try.json

A Kafka of its own, a topic per size, filled once from a seed (1 % bad, 1 % duplicates). Each run
takes the whole topic through bronze, silver and gold into a fresh lake, one stage after the other
(spark_kafka_consumer.py --once); a stage's time is from the start of its stream to its
end, without the start of Spark. A run whose tables do not add up is an error, not a result. The
smallest size takes turns with the same work at each setting left to its default, --runs times; the
other sizes have one run. Then compact.py on a lake that was fed live, in small batches, from the
smallest topic.

What it finds goes into results/DATE.json beside this file, and from there into README (report.py);
with --output elsewhere, README stays as it is.

Exit codes: 0 measured, 1 a run failed or its result is wrong, 2 wrong usage.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

FOLDER = Path(__file__).resolve().parents[1]
PROJECT = FOLDER.parents[1]
sys.path.insert(0, str(PROJECT))

from pipelines.common import say  # noqa: E402
from pipelines.smarttech.benches import report  # noqa: E402
from stack.compose import StackError  # noqa: E402
from stack.lifecycle import Stack  # noqa: E402
from stack.servers import free_port  # noqa: E402

SIZES = (10_000, 100_000, 1_000_000)
STAGES = report.STAGES
RATE_HZ = 10  # of the simulated clock: a million readings are 28 hours of 48 series
# What Spark and Delta do without the setting.
DEFAULTS = ("spark.sql.shuffle.partitions=200", "spark.databricks.delta.snapshotPartitions=50")
SMALL_BATCH = 250
LIVE_TIMEOUT_S = 900.0


class BenchError(Exception):
    """A run that gives no result, in one line."""


class Bench:
    """A Kafka with a topic per size, and runs of the consumer on them."""

    def __init__(self, kafka: str, folder: Path) -> None:
        self.kafka = kafka
        self.folder = folder
        self.printed = folder / "printed"
        self.runs = 0

    def start(self, name: str, topic: str, lake: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a script on a topic and a lake; what it prints goes into `printed`."""
        environ = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "SMARTTECH_TOPIC": topic,
            "SMARTTECH_LAKE": str(lake),
            "SMARTTECH_CHECKPOINT": "",
        }
        command = [sys.executable, str(FOLDER / name), *arguments]
        with self.printed.open("wb") as printed:
            return subprocess.Popen(command, env=environ, stdout=printed, stderr=printed)

    def finish(self, process: subprocess.Popen[bytes], name: str) -> str:
        """Wait for the end of a script; return what it has printed.

        Raises:
            BenchError: it failed.
        """
        code = process.wait()
        text = self.printed.read_text(encoding="utf-8")
        if code:
            last = (text.strip().splitlines() or ["it said nothing"])[-1]
            raise BenchError(f"{name} exits with {code}: {last}")
        return text

    def script(self, name: str, topic: str, lake: Path, *arguments: str) -> str:
        """Run a script to its end; return what it printed.

        Raises:
            BenchError: it failed.
        """
        return self.finish(self.start(name, topic, lake, *arguments), name)

    def fill(self, size: int) -> None:
        """Fill the topic of a size."""
        options = ("--backfill", f"{size / RATE_HZ}s", "--seed", "1", "--rate", str(RATE_HZ))
        wrong = ("--bad", "0.01", "--duplicate", "0.01")
        self.script("kafka_producer.py", f"bench-{size}", self.folder, *options, *wrong)

    def run(self, size: int, *arguments: str) -> dict[str, Any]:
        """Take a topic through the stages into a fresh lake; return the times.

        Raises:
            BenchError: the tables do not add up.
        """
        self.runs += 1
        lake = self.folder / f"lake-{self.runs}"
        said = self.script("spark_kafka_consumer.py", f"bench-{size}", lake, "--once", *arguments)
        result: dict[str, Any] = {}
        for stage in STAGES:
            found = re.search(rf"{stage} total rows=(\d+) seconds=([\d.]+)", said)
            if not found:
                raise BenchError(f"the consumer does not say what {stage} took")
            rows, seconds = int(found[1]), float(found[2])
            result[stage] = {"rows": rows, "seconds": seconds, "rows_per_s": round(rows / seconds)}
        if not is_settled(count := counts(lake), size):
            raise BenchError(f"of {size} messages there are {count}")
        shutil.rmtree(lake)
        return result

    def live(self, size: int) -> Path:
        """Have a consumer take a topic in as small batches, the stages side by side.

        Raises:
            BenchError: it ends early, or does not come to the end.
        """
        lake = self.folder / "lake-live"
        small = ("--every", "0", "--batch", str(SMALL_BATCH))
        consumer = self.start("spark_kafka_consumer.py", f"bench-{size}", lake, *small)
        deadline = time.monotonic() + LIVE_TIMEOUT_S
        try:
            while not is_settled(counts(lake), size):
                if consumer.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"of {size} messages there are {counts(lake)}")
                time.sleep(1)
        finally:
            consumer.send_signal(signal.SIGINT)
            self.finish(consumer, "spark_kafka_consumer.py")
        return lake

    def compaction(self, size: int) -> dict[str, Any]:
        """Return what compact.py says of tables that many small batches have made."""
        lake = self.live(size)
        printed = self.script("compact.py", f"bench-{size}", lake, "--retain-hours", "0")
        line = re.compile(
            r"^(\w+) +(\d+) -> +(\d+) +([\d.]+) -> +([\d.]+) +(\d+) -> +(\d+)$", re.MULTILINE
        )
        return {
            table: {
                "files": [int(f1), int(f2)],
                "read_s": [float(s1), float(s2)],
                "bytes_on_disk": [int(b1), int(b2)],
            }
            for table, f1, f2, s1, s2, b1, b2 in line.findall(printed)
        }


def counts(lake: Path) -> dict[str, int]:
    """Return the rows of each table, and `summarised`: the readings that gold has counted."""
    found = dict.fromkeys(("bronze", "silver", "rejects", "duplicates", "summarised"), 0)
    for name in found:
        folder = str(lake / f"sensor_data_{'gold' if name == 'summarised' else name}")
        if not DeltaTable.is_deltatable(folder):
            continue
        table = DeltaTable(folder)
        if name == "summarised":
            found[name] = sum(table.to_pyarrow_table(columns=["count"])["count"].to_pylist())
        else:
            found[name] = table.count()
    return found


def is_settled(count: Mapping[str, int], size: int) -> bool:
    """Return whether all messages have come to their end, and silver's are in gold."""
    parts = count["silver"] + count["rejects"] + count["duplicates"]
    return count["bronze"] == size == parts and count["silver"] == count["summarised"]


def show(what: str, result: dict[str, Any]) -> None:
    """Print the rates of a run."""
    rates = "  ".join(
        f"{stage} {result[stage]['seconds']:>7.1f} s {result[stage]['rows_per_s']:>7} rows/s"
        for stage in STAGES
    )
    say(f"{what:<54}{rates}")


def measure(bench: Bench, sizes: Sequence[int], runs: int) -> dict[str, Any]:
    """Return everything that is measured, and print it on the way."""
    least, *others = sizes
    bench.fill(least)
    variants = {"ours": (), **{setting: ("--conf", setting) for setting in DEFAULTS}}
    settings: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for _ in range(runs):  # taking turns
        for name, conf in variants.items():
            settings[name].append(bench.run(least, *conf))
            show(f"{least} rows, {name}", settings[name][-1])
    found: dict[str, Any] = {"sizes": {str(least): settings["ours"]}}
    for size in others:
        bench.fill(size)
        found["sizes"][str(size)] = [bench.run(size)]
        show(f"{size} rows", found["sizes"][str(size)][0])
    found |= {"settings_rows": least, "settings": settings}
    tables = bench.compaction(least)
    found["compaction"] = {"rows": least, "batch": SMALL_BATCH, "tables": tables}
    for table, effect in tables.items():
        say(f"compact {table:<12} {effect}")
    return found


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "pyspark": version("pyspark"),
        "delta-spark": version("delta-spark"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the results; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=list(SIZES), metavar="ROWS")
    add("--runs", type=int, default=2, metavar="N", help="of the smallest size (default: 2)")
    add("--output", type=Path, metavar="FILE", help="(default: results/DATE.json)")
    options = parser.parse_args(argv)
    if min(options.sizes) < 1 or options.runs < 1:
        parser.error("--sizes and --runs are at least 1")
    output = options.output or report.RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"
    with tempfile.TemporaryDirectory() as folder:
        ports = {f"{name}_HOST_PORT": str(free_port()) for name in ("ZOOKEEPER", "KAFKA")}
        environ = {**os.environ, **ports, "STACK_STATE": f"{folder}/stack"}
        stack = Stack([FOLDER / "docker-compose.yml"], environ)
        try:
            stack.up([])
            bench = Bench(stack.servers["kafka"].address, Path(folder))
            found = measure(bench, sorted(options.sizes), options.runs)
        except (BenchError, StackError) as exc:
            sys.stderr.write(f"bench: {exc}\n")
            return 1
        except KeyboardInterrupt:
            sys.stderr.write("bench: interrupted, nothing is written\n")
            return 1
        finally:
            stack.down(wipe=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**machine(), **found}, indent=1) + "\n", encoding="utf-8")
    say(f"written: {output}")
    if not options.output:
        report.main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
