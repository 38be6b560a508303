"""What the benches share: servers of their own, filled topics, watched processes, what is written.

Nothing is measured on the servers that `make up` starts: each bench starts ZooKeeper, Kafka and
Elasticsearch on free ports and deletes them afterwards.
"""

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from elasticsearch import Elasticsearch
from elasticsearch.helpers import scan
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.structs import TopicPartition

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # a bench is started from any folder, by its file

from benches import report  # noqa: E402
from stack.__main__ import Stack  # noqa: E402
from stack.compose import StackError  # noqa: E402
from stack.images.kafka import kafka_version  # noqa: E402
from stack.servers import free_port  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SERVERS = ("kafka", "elasticsearch")
CONSUMER = [sys.executable, str(PROJECT / "kafka_to_elasticsearch.py")]
GENERATOR = [sys.executable, str(PROJECT / "sensor_generator.py")]
# Seeded, and so many simulated days that a topic of any size fits: ids never repeat.
SEEDED = ["--seed", "1", "--start", "2026-01-01", "--backfill", "3650d", "--rate", "100"]
WARM_UP_RUNS = 3  # not counted: Elasticsearch is slow until its code is compiled
POLL_S = 0.02
STAND_STILL_S = 120.0  # nothing new for so long: it will not come
STOP_S = 30.0  # for a process to end after the last reading


class BenchError(Exception):
    """A run that gives no result, in one line."""


@dataclass
class Topic:
    """A filled topic.

    Attributes:
        ids: sensor_id@timestamp of each reading; in order when there is one partition.
        size_bytes: of all messages together, without their keys.
    """

    name: str
    ids: list[str] = field(default_factory=list)
    size_bytes: int = 0


@dataclass
class Scene:
    """Running servers, and a folder for what a run needs."""

    stack: Stack
    folder: Path
    client: Elasticsearch

    @property
    def kafka(self) -> str:
        """Where Kafka is, HOST:PORT."""
        return self.stack.servers["kafka"].address

    @property
    def url(self) -> str:
        """Where Elasticsearch is."""
        return f"http://{self.stack.servers['elasticsearch'].address}"

    def environ(self, topic: str, index: str = "none", readings: int = 0) -> dict[str, str]:
        """Return the environment of what is measured."""
        return {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "KAFKA_TOPIC": topic,
            "KAFKA_GROUP_ID": index,
            "ELASTICSEARCH_URL": self.url,
            "ELASTICSEARCH_INDEX": index,
            "ELASTICSEARCH_DEAD_LETTER_INDEX": f"dead-{index}",
            "READINGS": str(readings),
            "PYTHON_DOTENV_DISABLED": "1",
        }

    def cpu_s(self, server: str) -> float:
        """Return the processor time that a server has used, in seconds.

        Raises:
            BenchError: it does not run.
        """
        if not (pid := self.stack.pid(server)):
            raise BenchError(f"{server} does not run")
        return group_cpu_s(pid)

    def new_topic(self, partitions: int = 1) -> str:
        """Create a topic; return its name."""
        name = f"bench-{uuid4().hex[:6]}"
        with KafkaAdminClient(bootstrap_servers=self.kafka) as admin:
            admin.create_topics({name: {"num_partitions": partitions}})
        return name

    def filled_topic(self, readings: int, partitions: int = 1, sensors: int = 5) -> Topic:
        """Create a topic and let the generator fill it, from a seed.

        Raises:
            BenchError: the generator failed, or the topic holds something else.
        """
        name = self.new_topic(partitions)
        arguments = [*SEEDED, "--sensors", str(sensors), "--count", str(readings)]
        ended = subprocess.run(
            [*GENERATOR, *arguments], env=self.environ(name), check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        if ended.returncode:
            raise BenchError(f"the generator failed: {ended.stderr.strip().splitlines()[-1]}")
        return self.read_topic(name, readings)

    def copied_topic(
        self, source: Topic, change: Callable[[bytes], bytes], codec: str = "lz4"
    ) -> Topic:
        """Create a topic of one partition with another's messages, each changed."""
        name = self.new_topic()
        with KafkaProducer(
            bootstrap_servers=self.kafka, linger_ms=20, batch_size=128 * 1024,
            compression_type=codec,
        ) as producer:  # fmt: skip
            for message in self.messages(source.name):
                producer.send(name, key=message.key, value=change(message.value))
        return self.read_topic(name, len(source.ids))

    def read_topic(self, name: str, readings: int) -> Topic:
        """Return what a topic holds.

        Raises:
            BenchError: it is not so many different readings.
        """
        topic = Topic(name)
        for message in self.messages(name):
            topic.ids.append(reading_id(message.value))
            topic.size_bytes += len(message.value)
        if (number := len(topic.ids)) != readings:
            raise BenchError(f"the topic holds {number} readings, not {readings}")
        if (different := len(set(topic.ids))) != readings:
            raise BenchError(f"the topic holds {number} readings, {different} different ones")
        return topic

    def messages(self, topic: str) -> Iterator[Any]:
        """Yield a topic's messages, in order within each partition."""
        with KafkaConsumer(bootstrap_servers=self.kafka) as consumer:
            partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
            consumer.assign(partitions)
            consumer.seek_to_beginning()
            ends = consumer.end_offsets(partitions)
            while any(consumer.position(p) < end for p, end in ends.items()):
                for polled in consumer.poll(1000, max_records=10_000).values():
                    yield from polled

    def new_index(self, name: str) -> str:
        """Create an index with the project's mapping; return its name."""
        index = f"bench-{re.sub('[^a-z0-9]+', '-', name)}-{uuid4().hex[:6]}"
        template = json.loads((PROJECT / "mappings/sensors_data.json").read_text())
        self.client.indices.create(index=index, **template)
        return index

    def delete_index(self, index: str) -> None:
        """Delete an index, and what the consumer made beside it."""
        for left in (index, f"dead-{index}"):
            self.client.indices.delete(index=left, ignore_unavailable=True)
            self.client.options(ignore_status=404).indices.delete_index_template(name=left)

    def indexed(self, index: str) -> int:
        """Return how many documents an index took; they need not be searchable yet."""
        stats = self.client.indices.stats(index=index, metric="indexing")
        count: int = stats["_all"]["primaries"]["indexing"]["index_total"]
        return count


@contextmanager
def own_servers() -> Iterator[Scene]:
    """Start servers on free ports; stop and delete them at the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: through what follows
    with tempfile.TemporaryDirectory() as folder:
        names = ("ZOOKEEPER", "KAFKA", "ELASTICSEARCH")
        ports = {f"{name}_HOST_PORT": str(free_port()) for name in names}
        environ = {**os.environ, "ELASTICSEARCH_HEAP": "1g", **ports, "STACK_STATE": folder}
        stack = Stack([PROJECT / "docker-compose.yml"], environ)
        try:
            stack.up(SERVERS)
            with scene_on(stack, Path(folder)) as scene:
                yield scene
        finally:
            stack.down(wipe=True)


@contextmanager
def scene_on(stack: Stack, folder: Path) -> Iterator[Scene]:
    """Return the scene on servers that run."""
    url = f"http://{stack.servers['elasticsearch'].address}"
    with Elasticsearch(url, request_timeout=120) as client:
        yield Scene(stack, folder, client)


def reading_id(value: bytes) -> str:
    """Return the id of the reading in a message, as our consumer makes it."""
    reading = json.loads(value)
    return f"{reading['sensor_id']}@{reading['timestamp']}"


# One run: processes that are watched from outside until all is where it should be.


@dataclass
class Usage:
    """What a run cost.

    Attributes:
        client_cpu_s: processor time of what is measured, from its start to its end.
        elasticsearch_cpu_s: the same of Elasticsearch, until the last reading.
        kafka_cpu_s: the same of Kafka.
        memory_mb: the largest of the processes, at its peak; None when it had ended before.
    """

    client_cpu_s: float
    elasticsearch_cpu_s: float
    kafka_cpu_s: float
    memory_mb: float | None


Seen = tuple[float, int]  # when (time.monotonic), how many


def watched(
    scene: Scene, commands: Sequence[Sequence[str]], environ: Mapping[str, str],
    count: Callable[[], int], wanted: int, stays: bool = False,
) -> tuple[list[Seen], float, Usage]:  # fmt: skip
    """Start processes and count what they have done, again and again, until all is done.

    Args:
        scene: the servers that work meanwhile.
        commands: one process each; what it prints goes into GROUP_ID-NUMBER.log in the folder.
        environ: of each process.
        count: asks a server how many readings have arrived.
        wanted: how many make all.
        stays: whether the processes run until they are told to stop.

    Returns:
        What was seen, from just before the first reading to the last; when they were started;
        what it cost.

    Raises:
        BenchError: they ended before all was done, or stood still.
    """
    before = {server: scene.cpu_s(server) for server in SERVERS}
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        began = time.monotonic()
        for number, command in enumerate(commands):
            name = f"{environ['KAFKA_GROUP_ID']}-{number}.log"
            log = stack.enter_context((scene.folder / name).open("wb"))
            process = subprocess.Popen(command, env=dict(environ), stdout=log, stderr=log)
            processes.append(process)
            stack.callback(kill, process)
        try:
            seen = watch(count, wanted, processes)
        except BenchError as exc:
            text = (scene.folder / f"{environ['KAFKA_GROUP_ID']}-0.log").read_text(errors="replace")
            lines = text.strip().splitlines() or ["nothing"]
            raise BenchError(f"{exc}; it said: {lines[-1][:300]}") from exc
        servers_cpu_s = {server: scene.cpu_s(server) - before[server] for server in SERVERS}
        peaks = [peak for process in processes if (peak := peak_memory_mb(process.pid))]
        client_cpu_s = sum(end(process, stays) for process in processes)
    usage = Usage(
        client_cpu_s=client_cpu_s,
        elasticsearch_cpu_s=servers_cpu_s["elasticsearch"],
        kafka_cpu_s=servers_cpu_s["kafka"],
        memory_mb=max(peaks, default=None),
    )
    return seen, began, usage


def watch(
    count: Callable[[], int], wanted: int, processes: Sequence[subprocess.Popen[bytes]]
) -> list[Seen]:
    """Count until all is there; return what was seen, from the last look that found nothing on.

    Raises:
        BenchError: the processes ended before that, or nothing new came for a long time.
    """
    seen: list[Seen] = [(time.monotonic(), 0)]
    last_news, ended_early = time.monotonic(), 0
    while ended_early <= 5 and time.monotonic() < last_news + STAND_STILL_S:
        look = time.monotonic(), count()
        if look[1] != seen[-1][1]:
            seen.append(look)
            last_news = time.monotonic()
        elif len(seen) == 1:
            seen[0] = look
        if look[1] >= wanted:
            return seen
        ended_early += all(map(has_ended, processes))
        time.sleep(POLL_S)
    raise BenchError(f"{seen[-1][1]} of {wanted} readings arrived, then nothing more")


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process has ended, and leave it to `end`, which asks what it has used."""
    return bool(os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))


def end(process: subprocess.Popen[bytes], stays: bool) -> float:
    """Wait for the end of a process, or tell it to stop; return its processor time, in seconds."""
    if stays:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.05)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs."""
    process.kill()
    process.wait()


def rate(seen: Sequence[Seen]) -> float:
    """Return the readings per second from the last look that found none to the last reading.

    >>> rate([(10.0, 0), (11.0, 150), (12.0, 500)])
    250.0
    """
    (first_s, first), (last_s, last) = seen[0], seen[-1]
    return (last - first) / (last_s - first_s)


def check(scene: Scene, index: str, wanted: Collection[str], by_id: bool = True) -> None:
    """Compare what is in the index with what was sent.

    Args:
        scene: the servers.
        index: which.
        wanted: the ids of the readings, sensor_id@timestamp.
        by_id: False for who gives no such ids to its documents: then their fields are read.

    Raises:
        BenchError: a reading is missing, twice, or was never sent.
    """
    scene.client.indices.refresh(index=index)
    count = scene.client.count(index=index)["count"]
    fields = ["_scroll_id", "_shards", "hits.hits._id", "hits.hits._source"]
    source = False if by_id else ["sensor_id", "timestamp"]
    hits = scan(scene.client, index=index, size=10_000, _source=source, filter_path=fields)
    if by_id:
        found = {hit["_id"] for hit in hits}
    else:
        found = {f"{h['_source']['sensor_id']}@{h['_source']['timestamp']}" for h in hits}
    missing = set(wanted) - found
    unknown = len(found) - (len(wanted) - len(missing))
    if count != len(wanted) or missing or unknown:
        raise BenchError(
            f"{index}: {count} documents for {len(wanted)} readings, {len(missing)} ids missing, "
            f"{unknown} that nobody sent"
        )


def peak_memory_mb(pid: int) -> float | None:
    """Return the largest memory that a process had until now, in MB; None when it has ended.

    Not what wait4 says in the end: that counts also our own memory, from before the exec.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak[1]) / 1024 if peak else None


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


# What is written down.


def spread(runs: Sequence[Any]) -> dict[str, Any]:
    """Return the number of runs, and of each of their figures [minimum, median, maximum].

    A figure that some run does not have is None: half a spread would deceive.
    """
    found: dict[str, Any] = {"runs": len(runs)}
    rows = [asdict(one) for one in runs]
    for name in rows[0]:
        values = sorted(row[name] for row in rows if row[name] is not None)
        if len(values) < len(rows):
            found[name] = None
        else:
            middle = statistics.median(values)
            found[name] = [round(value, 3) for value in (values[0], middle, values[-1])]
    return found


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
        "load_5_min": round(load, 2),  # of the bench too: it ends now
    }


def versions(stack: Stack) -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {
        "python": platform.python_version(),
        "elasticsearch server": stack.services["elasticsearch"].tag,
        "kafka server": kafka_version(stack.services["kafka"]),
    }
    names = ("confluent-kafka", "kafka-python", "elasticsearch", "msgspec")
    return found | {name: version(name) for name in names}


def commit() -> str:
    """Return the commit that is measured, with "+" when files differ from it; "" without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # The results of earlier benches, and the table made of them, do not change what is measured.
    changed = git("status", "--porcelain", "--", ":!benches/results", ":!*.md")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def write_result(
    scene: Scene, name: str, parameters: Mapping[str, Any], found: Mapping[str, Any],
    output: Path, **more: Any,
) -> Path:  # fmt: skip
    """Write a result as DATE-NAME.json, its chart beside it, and its table on stdout.

    In the project's own folder of results, the tables in the project's texts are renewed too.
    """
    now = datetime.now(UTC)
    result = {
        "bench": name,
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": {**versions(scene.stack), **more.pop("versions", {})},
        "parameters": dict(parameters),
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


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# The command line of each bench.


def arguments(description: str | None, runs: int | None = 3) -> argparse.ArgumentParser:
    """Return a parser with what all benches take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if runs:
        parser.add_argument("--runs", type=positive, default=runs, metavar="N",
                            help="of each, alternating (default: %(default)s)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER",
                        help="for the result (default: benches/results)")  # fmt: skip
    return parser


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def exit_code(bench: Callable[[], int]) -> int:
    """Run a bench; return its exit code, 1 with one line when it gives no result."""
    try:
        return bench()
    except (BenchError, StackError) as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted, nothing is written\n")
        return 130
