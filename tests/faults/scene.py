"""A pipeline under load whose servers, connections and processes can be made to fail."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elasticsearch.helpers import scan
from kafka import KafkaAdminClient, KafkaProducer

from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack
from tests.conftest import PROJECT, Pipeline
from tests.faults.proxy import BulkProxy, TcpProxy
from tools.verify import Verdict, verify

# The consumer itself with shorter delays, so that the tests take less time. Elasticsearch's client
# would import pyarrow, which only the other pipelines need and which takes memory.
QUICKER = """
import sys
sys.modules["pyarrow"] = None
import kafka_to_elasticsearch as indexer
indexer.SESSION_TIMEOUT_MS = 6000
indexer.REQUEST_TIMEOUT_S = 3.0
indexer.RETRY_CAP_S = 1.0
indexer.PROGRESS_S = 1.0
{changes}
raise SystemExit(indexer.main())
"""

BROKER_FAILED = re.compile(r"not acknowledged: \d+ of \d+ messages \(\d+ x UnknownError\)$", re.M)


@dataclass
class Scene:
    """A pipeline on the real servers, with a proxy on each connection of its consumers.

    Attributes:
        stack: the real servers.
        pipeline: the names that this test uses.
        kafka: the proxy in front of Kafka.
        bulks: the proxy in front of Elasticsearch.
        folder: where the processes write their logs.
        seed: of the random choices.
        changes: lines of Python that change the consumer's constants.
        restarting: is held while a server restarts.
    """

    stack: Stack
    pipeline: Pipeline
    kafka: TcpProxy
    bulks: BulkProxy
    folder: Path
    seed: int
    changes: str = ""
    consumers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    generators: list[subprocess.Popen[bytes]] = field(default_factory=list)
    log_files: dict[int, Path] = field(default_factory=dict)  # by process id
    started: int = 0
    restarting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.note(f"seed={self.seed}")

    def note(self, line: str) -> None:
        """Print a line with the time; pytest shows it if the test fails, or with -s."""
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        sys.stdout.flush()

    # Processes

    @property
    def proxied(self) -> dict[str, str]:
        """The environment of a process whose connections go through the proxies."""
        return {
            **self.pipeline.environ,
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.kafka.port}",
            "ELASTICSEARCH_URL": self.bulks.url,
        }

    def _start(
        self, name: str, command: list[str], environ: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start Python with a log of its own."""
        self.started += 1
        file = self.folder / f"{self.started:03d}-{name}.log"
        with file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=PROJECT, env=environ, stdout=log, stderr=log
            )
        self.log_files[process.pid] = file
        return process

    def start_consumer(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a consumer whose connections go through the proxies."""
        command = ["-c", QUICKER.format(changes=self.changes), *arguments]
        consumer = self._start("consumer", command, self.proxied)
        self.consumers.append(consumer)
        return consumer

    def start_load(self, rate_hz: int) -> None:
        """Start a generator that runs until `end_load`, on a connection without a proxy."""
        self.start_generator(self.pipeline.environ, "--rate", str(rate_hz))

    def start_generator(
        self, environ: dict[str, str], *arguments: str, ledger: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a generator with a random seed; with a ledger, the one that writes a ledger."""
        seed = str(self.rng.randrange(1_000_000))
        command = ["sensor_generator.py", "--seed", seed, *arguments]
        if ledger:
            command = ["-m", "tools.faulty_sensors", "--ledger", str(ledger), *command[1:]]
        generator = self._start("generator", command, environ)
        self.generators.append(generator)
        return generator

    def backlog(self, count: int) -> None:
        """Send readings of the last 30 days."""
        self.pipeline.generate("--count", str(count), "--backfill", "30d")

    def kill(self, consumer: subprocess.Popen[bytes]) -> None:
        """End a consumer by SIGKILL."""
        consumer.kill()
        consumer.wait()
        self.consumers.remove(consumer)

    def terminate(self, consumer: subprocess.Popen[bytes]) -> None:
        """End a consumer by SIGTERM; it must end within 30 s with exit code 0."""
        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(timeout=30) == 0, self.logs()
        self.consumers.remove(consumer)

    def close(self) -> None:
        """End everything that still runs."""
        for process in (*self.consumers, *self.generators):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.kafka.close()
        self.bulks.close()

    def each_log(self, script: str = "consumer") -> list[str]:
        """Return the log of each consumer, or of each generator."""
        files = sorted(self.folder.glob(f"*-{script}.log"))
        return [file.read_text(errors="replace") for file in files]

    def logs(self, script: str = "consumer") -> str:
        """Return the logs of all consumers, or of all generators."""
        return "".join(self.each_log(script))

    def times_logged(self, pattern: str) -> int:
        """Return how often a pattern is in the consumers' logs."""
        return len(re.findall(pattern, self.logs()))

    # Servers

    def signal_server(self, name: str, signum: signal.Signals) -> None:
        """Send a signal to all processes of a server."""
        pid = self.stack.pid(name)
        assert pid, name
        os.killpg(pid, signum)

    # Time

    def pause(self, low_s: float = 0.5, high_s: float = 2.0) -> None:
        """Wait for a random time."""
        time.sleep(self.rng.uniform(low_s, high_s))

    def wait_for_progress(self) -> None:
        """Wait until more is committed, so that the next fault happens in mid-run."""
        before = self.pipeline.committed()
        wait_until(lambda: self.pipeline.committed() > before, "something is committed", 90)

    def wait_for_report(self) -> None:
        """Wait until accounts are logged twice more, so that a turn of the loop is over."""
        before = self.times_logged("progress ")
        wait_until(lambda: self.times_logged("progress ") >= before + 2, "accounts are logged")

    def hold_bulks(self, fault: Callable[..., Any], hits: int = 2) -> None:
        """Let a fault deal with at least this many bulks, and for a random time."""
        before, self.bulks.fault = self.bulks.hits, fault
        wait_until(lambda: self.bulks.hits >= before + hits, "the fault has met bulks")
        self.pause(0.2, 1.0)
        self.bulks.fault = None

    # Clients and state

    def admin(self) -> AbstractContextManager[KafkaAdminClient]:
        """Return a client for administration, for a with statement."""
        return closing(KafkaAdminClient(bootstrap_servers=self.pipeline.kafka))

    def producer(self, **options: Any) -> AbstractContextManager[KafkaProducer]:
        """Return a producer for a with statement."""
        return closing(KafkaProducer(bootstrap_servers=self.pipeline.kafka, **options))

    def is_full(self) -> bool:
        """Return whether every consumer has read something and nothing more for three seconds.

        Then back-pressure has stopped it. It logs its accounts every second.
        """
        recent = [[each["consumed"] for each in logged[-4:]] for logged in self.accounts()]
        stopped = [len(each) == 4 and 0 < each[0] == each[3] for each in recent]
        return len(stopped) == len(self.consumers) and all(stopped)

    # What must hold

    def end_load(self) -> None:
        """End the generators, whose readings must all be acknowledged.

        A broker that is stopped while it starts may answer with an unexpected error of its own,
        which no client takes for a passing one. Then the generator must have said so.
        """
        for generator in self.generators:
            generator.send_signal(signal.SIGTERM)
            code = generator.wait(timeout=60)
            log = self.log_files[generator.pid].read_text()
            assert code == (1 if BROKER_FAILED.search(log) else 0), log
        self.generators.clear()

    def drain(self) -> Verdict:
        """End the load and wait until all is committed; return the verifier's verdict."""
        self.end_load()
        end = self.pipeline.ends()
        assert end > 0
        wait_until(lambda: self.pipeline.committed() == end, f"{end} committed", 240)
        return self.verify()

    def verify(self, ledger: Path | None = None) -> Verdict:
        """Return the verdict of tools/verify.py."""
        pipeline = self.pipeline
        return verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index, ledger)

    def assert_committed_is_settled(self) -> int:
        """Check that every committed message is indexed or a dead letter; return their number."""
        committed = self.pipeline.committed_offsets()
        index = self.pipeline.index
        self.pipeline.client.indices.refresh(index=index)
        documents = {hit["_id"] for hit in scan(self.pipeline.client, index=index, size=5000)}
        dead = {
            (int(dict(m.headers)["source.partition"]), int(dict(m.headers)["source.offset"]))
            for m in self.pipeline.dead_letters()
        }
        below = [m for m in self.pipeline.messages() if m.offset < committed[m.partition]]
        for message in below:
            if (message.partition, message.offset) not in dead:
                reading = json.loads(message.value)
                assert f"{reading['sensor_id']}@{reading['timestamp']}" in documents
        return len(below)

    def accounts(self) -> list[list[dict[str, int]]]:
        """Return the accounts that each consumer has logged, in order."""
        numbers = re.compile(r"(\w+)=(\d+)\b")
        return [
            [
                {name: int(number) for name, number in numbers.findall(line)}
                for line in re.findall(r"(?:progress|stopped) (consumed=.*)", log)
            ]
            for log in self.each_log()
        ]

    def assert_accounts_close(self) -> None:
        """Check that no consumer crashed and that its accounts close in each line of its log."""
        logs = self.logs()
        assert "Traceback" not in logs, logs
        outcomes = ("indexed", "duplicates", "dead_lettered", "in_flight")
        logged = list(itertools.chain(*self.accounts()))
        assert logged, "no consumer has logged accounts"
        for accounts in logged:
            assert accounts["consumed"] == sum(accounts[name] for name in outcomes), logs
