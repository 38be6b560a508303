#!/usr/bin/env python3
"""Measure how fast readings go from Kafka into Elasticsearch: ours, the limit, and other ways.

    make bench                                              # 500 000 readings, 3 runs each: 15 min
    python benches/bench.py --readings 20000 --runs 1 --only ours,limit

Real servers of its own, one topic of one partition, filled once from a seed. In each round every
contestant runs once, alone, into a fresh index with the project's mapping. The rate is counted
from the first to the last document, as Elasticsearch's own counter of index operations shows them;
a run whose index does not hold exactly the ids of the topic is an error, not a result.

The limit: the same documents as ready bulk bodies of 5000, posted by curl on two connections.

What it finds goes into benches/results/DATE.json, and as a chart into DATE.png beside it.
Quiet the machine before: the servers, the contestant and everything else share it.

Exit codes: 0 measured, 1 a contestant failed or its result is wrong, 2 wrong usage.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import matplotlib as mpl

mpl.use("agg")  # a file, no window
from elasticsearch import Elasticsearch
from elasticsearch.helpers import scan
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.structs import TopicPartition
from matplotlib import pyplot

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from stack.__main__ import Stack  # noqa: E402  # works from any folder
from stack.servers import free_port  # noqa: E402

RESULTS = Path(__file__).parent / "results"
LIMIT_DOCUMENTS = 5000  # a bulk body
LIMIT_CONNECTIONS = 2
POLL_S = 0.02
GIVE_UP_S = 900.0
COLOURS = {"limit": "#999999", "ours": "#D55E00"}
OTHER_COLOUR = "#0072B2"  # Okabe and Ito: told apart also by the colour-blind


class BenchError(Exception):
    """A run that gives no result, in one line."""


@dataclass
class Run:
    """What one run gave.

    Attributes:
        docs_per_s: from the first to the last document.
        seconds: from the start of the process to the last document.
        client_cpu_s: processor time of the contestant.
        server_cpu_s: the same of Elasticsearch, meanwhile.
        memory_mb: the contestant's peak; 0 when it had ended with the last document.
    """

    docs_per_s: float
    seconds: float
    client_cpu_s: float
    server_cpu_s: float
    memory_mb: float


@dataclass
class Scene:
    """The servers, the filled topic, and what must be in an index at the end."""

    kafka: str
    url: str
    server_pid: int
    topic: str
    folder: Path
    client: Elasticsearch
    ids: set[str] = field(default_factory=set)

    def environ(self, index: str) -> dict[str, str]:
        """Return the environment of a contestant."""
        return {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "KAFKA_TOPIC": self.topic,
            "KAFKA_GROUP_ID": index,
            "ELASTICSEARCH_URL": self.url,
            "ELASTICSEARCH_INDEX": index,
            "ELASTICSEARCH_DEAD_LETTER_INDEX": f"dead-{index}",
            "READINGS": str(len(self.ids)),
            "PYTHON_DOTENV_DISABLED": "1",
        }


# Contestants: the command of each, given the scene and its index.


def ours(_: Scene, __: str) -> list[str]:
    """Return the command of the project's consumer, with everything on."""
    return [sys.executable, str(PROJECT / "kafka_to_elasticsearch.py"), "--exit-when-idle", "1"]


def peer(way: str) -> Callable[[Scene, str], list[str]]:
    """Return a contestant of peers.py."""
    return lambda _, __: [sys.executable, str(Path(__file__).with_name("peers.py")), way]


def limit(scene: Scene, index: str) -> list[str]:
    """Return the command of curl, which posts bodies that lie ready."""
    lines = []
    for body in sorted(scene.folder.glob("*.bulk")):
        lines += [
            f'url = "{scene.url}/{index}/_bulk?filter_path=errors"',
            f'data-binary = "@{body}"',
            'header = "Content-Type: application/x-ndjson"',
            f'output = "{scene.folder / "answers"}"',
            "next",
        ]
    config = scene.folder / "curl.conf"
    config.write_text("\n".join(lines[:-1]) + "\n")
    options = ["--silent", "--fail", "--parallel", "--parallel-max", str(LIMIT_CONNECTIONS)]
    return ["curl", *options, "--config", str(config)]


CONTESTANTS: dict[str, Callable[[Scene, str], list[str]]] = {
    "limit": limit,
    "ours": ours,
    "parallel_bulk": peer("parallel_bulk"),
    "bulk": peer("bulk"),
    "streaming_bulk": peer("streaming_bulk"),
    "naive": peer("naive"),
}


# The scene.


def open_scene(stack: Stack, folder: Path, readings: int) -> Scene:
    """Fill a topic with seeded readings, and make the limit's bodies of it."""
    topic = f"bench-{uuid4().hex[:6]}"
    kafka, elasticsearch = stack.servers["kafka"].address, stack.servers["elasticsearch"].address
    with KafkaAdminClient(bootstrap_servers=kafka) as admin:
        admin.create_topics({topic: {"num_partitions": 1}})
    url, pid = f"http://{elasticsearch}", stack.pid("elasticsearch")
    if pid is None:
        raise BenchError("Elasticsearch does not run")
    scene = Scene(kafka, url, pid, topic, folder, Elasticsearch(url, request_timeout=120))
    arguments = ["--seed", "1", "--start", "2026-01-01", "--backfill", "3650d", "--rate", "100"]
    command = [sys.executable, str(PROJECT / "sensor_generator.py"), *arguments]
    ended = subprocess.run(
        [*command, "--count", str(readings)], env=scene.environ("none"), check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    if ended.returncode:
        raise BenchError(f"the generator failed: {ended.stderr.strip().splitlines()[-1]}")
    lines: list[bytes] = []
    for value in messages(kafka, topic):
        reading = json.loads(value)
        document_id = f"{reading['sensor_id']}@{reading['timestamp']}"
        scene.ids.add(document_id)
        lines.append(b'{"create":{"_id":"%b"}}\n%b\n' % (document_id.encode(), value))
        if len(lines) == LIMIT_DOCUMENTS or len(scene.ids) == readings:
            (folder / f"{len(scene.ids):09d}.bulk").write_bytes(b"".join(lines))
            lines.clear()
    if len(scene.ids) != readings:
        raise BenchError(f"the topic holds {len(scene.ids)} readings, not {readings}")
    return scene


def messages(kafka: str, topic: str) -> Iterator[bytes]:
    """Yield the values of the topic's one partition."""
    partition = TopicPartition(topic, 0)
    with KafkaConsumer(bootstrap_servers=kafka) as consumer:
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        (end,) = consumer.end_offsets([partition]).values()
        while consumer.position(partition) < end:
            for polled in consumer.poll(1000, max_records=10_000).values():
                yield from (message.value for message in polled)


# One run.


def run(scene: Scene, name: str) -> Run:
    """Run one contestant into a fresh index.

    Raises:
        BenchError: it failed, stood still, or indexed something else than the topic.
    """
    index = f"bench-{name.replace('_', '-')}-{uuid4().hex[:6]}"
    template = json.loads((PROJECT / "mappings/sensors_data.json").read_text())
    scene.client.indices.create(index=index, **template)
    command = CONTESTANTS[name](scene, index)
    with (scene.folder / f"{index}.log").open("wb") as log:
        cpu_before = group_cpu_s(scene.server_pid)
        began = time.monotonic()
        process = subprocess.Popen(command, env=scene.environ(index), stdout=log, stderr=log)
        try:
            first, last = watch(scene, index, process)
            memory_mb = peak_memory_mb(process.pid)  # the kernel's own sum counts also our memory
            server_cpu_s = group_cpu_s(scene.server_pid) - cpu_before
            usage = end(process)
        finally:
            process.kill()
    check(scene, index)
    for left in (index, f"dead-{index}"):
        scene.client.indices.delete(index=left, ignore_unavailable=True)
        scene.client.options(ignore_status=404).indices.delete_index_template(name=left)
    (count, first_s), (total, last_s) = first, last
    return Run(
        docs_per_s=(total - count) / (last_s - first_s),
        seconds=last_s - began,
        client_cpu_s=usage.ru_utime + usage.ru_stime,
        server_cpu_s=server_cpu_s,
        memory_mb=memory_mb,
    )


Seen = tuple[int, float]  # number of documents, when


def watch(scene: Scene, index: str, process: subprocess.Popen[bytes]) -> tuple[Seen, Seen]:
    """Return when the first documents were there, and when all were.

    Raises:
        BenchError: the contestant ended before that, or it took too long.
    """
    first: Seen | None = None
    deadline = time.monotonic() + GIVE_UP_S
    ended_early = 0
    while time.monotonic() < deadline:
        stats = scene.client.indices.stats(index=index, metric="indexing")
        now = time.monotonic()
        count = stats["_all"]["primaries"]["indexing"]["index_total"]
        if count and not first:
            first = (count, now)
        if count >= len(scene.ids) and first:
            return first, (count, now)
        ended_early += process.poll() is not None
        if ended_early > 5:
            break
        time.sleep(POLL_S)
    raise BenchError(f"{index}: {count} of {len(scene.ids)} readings indexed, then nothing more")


def end(process: subprocess.Popen[bytes]) -> Any:
    """Wait for the end of a contestant, or end it; return what it used."""
    deadline = time.monotonic() + 20
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage
        if time.monotonic() > deadline:
            process.terminate()
        time.sleep(0.05)


def check(scene: Scene, index: str) -> None:
    """Compare the ids in the index with those of the topic.

    Raises:
        BenchError: they are not the same.
    """
    scene.client.indices.refresh(index=index)
    count = scene.client.count(index=index)["count"]
    hits = scan(scene.client, index=index, size=10_000, _source=False)
    found = {hit["_id"] for hit in hits}
    if count != len(scene.ids) or found != scene.ids:
        raise BenchError(
            f"{index}: {count} documents, {len(scene.ids - found)} ids missing, "
            f"{len(found - scene.ids)} that nobody sent"
        )


def peak_memory_mb(pid: int) -> float:
    """Return the largest memory that a process had until now, in MB; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE) or ["0"]
    return int(peak) / 1024


def group_cpu_s(pid: int) -> float:
    """Return the processor time of a process group, in seconds."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == pid:  # its group
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    stack: Stack, folder: Path, chosen: Sequence[str], readings: int, turns: int
) -> dict[str, list[Run]]:
    """Let each contestant run once a turn, on running servers; return its runs.

    Raises:
        BenchError: one has failed, or has indexed something else than the topic.
    """
    runs: dict[str, list[Run]] = {name: [] for name in chosen}
    scene = open_scene(stack, folder, readings)
    with closing(scene.client):
        for turn in range(turns):
            for name in chosen:
                runs[name].append(run(scene, name))
                rate = runs[name][-1].docs_per_s
                sys.stdout.write(f"run {turn + 1}: {name:<16}{rate:>9.0f} docs/s\n")
                sys.stdout.flush()
    return runs


# What was found.


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in info if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": model, "cores": os.cpu_count(), "memory_gb": round(memory, 1)}


def summary(runs: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Return minimum, median and maximum of what was found, by contestant."""
    found: dict[str, dict[str, Any]] = {}
    for name, theirs in runs.items():
        found[name] = {"runs": len(theirs)}
        for measure in asdict(theirs[0]):
            values = sorted(getattr(one, measure) for one in theirs)
            middle = statistics.median(values)
            found[name][measure] = [round(v, 1) for v in (values[0], middle, values[-1])]
    return found


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """Print the medians, and each rate as a share of the limit."""
    write = sys.stdout.write
    write(f"{'':<16}{'docs/s':>10}{'min':>9}{'max':>9}{'of limit':>10}")
    write(f"{'CPU s':>8}{'ES CPU s':>10}{'MB':>6}\n")
    best = found.get("limit", {}).get("docs_per_s", [0, 0, 0])[1]
    for name, row in found.items():
        low, middle, high = row["docs_per_s"]
        share = f"{middle / best:.2f}" if best else "-"
        write(f"{name:<16}{middle:>10.0f}{low:>9.0f}{high:>9.0f}{share:>10}")
        write(f"{row['client_cpu_s'][1]:>8.1f}{row['server_cpu_s'][1]:>10.1f}")
        write(f"{row['memory_mb'][1]:>6.0f}\n")


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw the medians as bars, with their ranges; labels in French, like the report."""
    found = dict(reversed(result["found"].items()))
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.5 * len(found)), layout="constrained")
    for name, row in found.items():
        low, middle, high = row["docs_per_s"]
        colour = COLOURS.get(name, OTHER_COLOUR)
        axes.barh(name, middle, color=colour, xerr=[[middle - low], [high - middle]], ecolor="#333")
        axes.text(high, name, f"  {middle:,.0f}".replace(",", "\u202f"), va="center")
    axes.set_xlabel("documents par seconde (médiane, minimum, maximum)")
    axes.set_title(
        f"{result['parameters']['readings']:,} mesures, 1 partition, "
        f"{result['machine']['cores']} cœurs partagés avec les serveurs".replace(",", "\u202f")
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(file, dpi=100)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readings", type=int, default=500_000, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    names = ",".join(name for name in CONTESTANTS if name != "naive")
    parser.add_argument("--only", default=names, metavar="NAMES", help=f"(default: {names})")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args(argv)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(CONTESTANTS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    if not shutil.which("curl"):
        parser.error("curl is not installed (sudo apt-get install curl)")
    with tempfile.TemporaryDirectory() as folder:
        servers = ("ZOOKEEPER", "KAFKA", "ELASTICSEARCH")
        ports = {f"{name}_HOST_PORT": str(free_port()) for name in servers}
        environ = {**os.environ, "ELASTICSEARCH_HEAP": "1g", **ports, "STACK_STATE": folder}
        stack = Stack([PROJECT / "docker-compose.yml"], environ)
        try:
            stack.up()
            runs = measure(stack, Path(folder), chosen, options.readings, options.runs)
        except BenchError as exc:
            sys.stderr.write(f"bench: {exc}\n")
            return 1
        finally:
            stack.down(wipe=True)
    found = summary(runs)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("kafka-python", "elasticsearch", "msgspec")},
            **{name: stack.services[name].tag for name in ("kafka", "elasticsearch")},
        },
        "parameters": {"readings": options.readings, "runs": options.runs, "partitions": 1},
        "found": found,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"{result['date']}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, file.with_suffix(".png"))
    print_table(found)
    sys.stdout.write(f"{file}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
