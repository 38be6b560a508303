"""What the commands of all benches share: their options, their errors, their result files."""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benches import report
from benches.report import RESULTS
from benches.testbed import PROJECT, Testbed
from stack.console import say
from stack.lifecycle import Stack
from stack.native.kafka import kafka_version


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Adds each option's default to its help, and leaves the description's lines as they are."""


def option_parser(
    name: str, description: str | None, runs: int | None = None
) -> argparse.ArgumentParser:
    """Return a bench's parser with the options that all take; `runs`: the default of --runs."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benches.{name}", description=description, formatter_class=HelpFormatter
    )
    if runs:
        text = "runs of each, alternating"
        parser.add_argument("--runs", type=positive, default=runs, metavar="N", help=text)
    text = "folder of the result"
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help=text)
    return parser


def positive(text: str) -> int:
    """Return the whole number that an option's text is.

    Raises:
        ValueError: it is not one, or not above 0.
    """
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def add_only(parser: argparse.ArgumentParser, names: Collection[str], text: str) -> None:
    """Add the option --only, which takes some of the names, with commas between them."""

    def known(value: str) -> str:
        if unknown := set(value.split(",")) - set(names):
            raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}")
        return value

    parser.add_argument("--only", type=known, default=",".join(names), metavar="NAMES", help=text)


def write_result(
    testbed: Testbed, name: str, options: Mapping[str, Any], found: Mapping[str, Any], **more: Any
) -> Path:
    """Write a result as DATE-NAME.json, its chart beside it, and its table on stdout.

    If the folder is the project's own, the tables in the project's texts are renewed too.

    Args:
        testbed: the servers, which have versions.
        name: name of the bench.
        options: the command's options, and constants that matter as much.
        found: what was measured.
        more: other parts of the result; `versions` are added to the testbed's.

    Returns:
        The JSON file.
    """
    parameters = dict(options)
    output: Path = parameters.pop("output")
    now = datetime.now(UTC)
    result = {
        "bench": name,
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(testbed.stack) | more.pop("versions", {}),
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
    """Return the properties of this machine on which the figures depend."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in info if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[1]
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "system": platform.platform(),
        "load_5_min": round(load, 2),  # the bench's own load is in it, as the bench has just ended
    }


def versions(stack: Stack) -> dict[str, str]:
    """Return the versions of Python, of the servers and of the libraries."""
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

    # Earlier results, and the tables made of them, do not change what is measured.
    changed = git("status", "--porcelain", "--", ":!benches/results", ":!*.md")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
