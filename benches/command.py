"""What every bench's command takes, says and writes."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benches import report
from benches.report import RESULTS
from benches.scene import PROJECT, BenchError, Scene
from stack.__main__ import Stack
from stack.compose import StackError
from stack.images.kafka import kafka_version


def arguments(description: str | None, runs: int | None = None) -> argparse.ArgumentParser:
    """Return a parser with what all benches take; runs: the default of --runs, None: no such."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if runs:
        text = "of each, alternating (default: %(default)s)"
        parser.add_argument("--runs", type=positive, default=runs, metavar="N", help=text)
    text = "for the result (default: benches/results)"
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help=text)
    return parser


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def command(bench: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Return a bench that says in one line why it gives no result, and returns 1 then."""

    @wraps(bench)
    def main(argv: Sequence[str] | None = None) -> int:
        try:
            return bench(argv)
        except (BenchError, StackError) as exc:
            sys.stderr.write(f"bench: {exc}\n")
            return 1
        except KeyboardInterrupt:
            sys.stderr.write("bench: interrupted, nothing is written\n")
            return 130

    return main


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def write_result(
    scene: Scene, name: str, options: Mapping[str, Any], found: Mapping[str, Any], **more: Any
) -> Path:
    """Write a result as DATE-NAME.json, its chart beside it, and its table on stdout.

    In the project's own folder of results, the tables in the project's texts are renewed too.

    Args:
        scene: the servers, for their versions.
        name: of the bench.
        options: of the command, and the constants that matter as much.
        found: what was measured.
        more: other parts of the result; `versions` are added to those of the scene.
    """
    parameters = dict(options)
    output: Path = parameters.pop("output")
    now = datetime.now(UTC)
    result = {
        "bench": name,
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(scene.stack) | more.pop("versions", {}),
        "parameters": parameters,
        "found": dict(found),
        **more,
    }
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{now.date().isoformat()}-{name}.json"
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report.draw(file)
    say(f"\n{report.table(result)}\n\n{file}")
    if output.resolve() == RESULTS:
        report.renew_texts()
    return file


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in info if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[1]
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "system": platform.platform(),
        "load_5_min": round(load, 2),  # of the bench too, as it ends now
    }


def versions(stack: Stack) -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {
        "python": platform.python_version(),
        "elasticsearch server": stack.services["elasticsearch"].tag,
        "kafka server": kafka_version(stack.services["kafka"]),
    }
    names = ("kafka-python", "confluent-kafka", "elasticsearch", "msgspec")
    return found | {name: version(name) for name in names}


def commit() -> str:
    """Return the commit that is measured, with "+" when files differ from it; "" without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # The results of earlier benches, and the table made of them, do not change what is measured.
    changed = git("status", "--porcelain", "--", ":!benches/results", ":!*.md")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
