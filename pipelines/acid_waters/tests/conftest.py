"""Real servers, started once; for each test a topic, a database and a folder of HDFS of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from uuid import uuid4

import psycopg
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.structs import TopicPartition
from pyspark.sql import SparkSession

from pipelines.acid_waters import verify
from pipelines.acid_waters.hdfs import reference
from pipelines.acid_waters.kafka import kafka_producer
from pipelines.acid_waters.postgresql import database
from pipelines.acid_waters.settings import HERE, SAMPLE
from pipelines.acid_waters.spark import spark_consumer
from pipelines.acid_waters.spark.spark_session import java, new_session
from pipelines.acid_waters.verification.data import METRIC_NAMES
from pipelines.acid_waters.verification.verdict import Verdict
from pipelines.acid_waters.verification.webhdfs import WebHdfs
from pipelines.tests.quick_spark import quick_spark  # noqa: F401  # a fixture of every test
from stack.lifecycle import Stack
from stack.servers import free_port

DATA = ("--data", str(SAMPLE))
PORTS = (
    "ZOOKEEPER", "KAFKA", "NAMENODE", "NAMENODE_WEB", "DATANODE", "DATANODE_WEB", "POSTGRESQL",
)  # fmt: skip

GIVEN_DATA = os.environ.pop("LTM_DATA", "")  # the folder with the real files

# A developer's shell or .env must not change a result.
for name in list(os.environ):
    if re.match(r"(KAFKA|WATER|HDFS|POSTGRESQL|STACK)_", name) and name != "STACK_CACHE":
        del os.environ[name]
os.environ["PYTHON_DOTENV_DISABLED"] = "1"
# Every Java here lives a minute: what its second compiler would gain later, it costs now.
os.environ["JAVA_TOOL_OPTIONS"] = "-XX:TieredStopAtLevel=1"


def batch(number: int) -> str:
    """Return the id of a lot of the sample."""
    return f"LTM_Data_sample-{number:06d}"


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    session = new_session("tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def ports() -> dict[str, str]:
    return {f"{name}_HOST_PORT": str(free_port()) for name in PORTS}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, str]) -> Iterator[Stack]:
    state = str(tmp_path_factory.mktemp("stack"))
    servers = Stack([HERE / "docker-compose.yml"], {**os.environ, **ports, "STACK_STATE": state})
    try:
        servers.up()
        yield servers
    finally:
        servers.down(wipe=True)


def load(spark: SparkSession, hdfs_url: str, data: Path) -> None:
    """Load the methods and the sites of a folder into HDFS."""
    for name, rows in reference.read_files(data).items():
        assert reference.load(spark, hdfs_url, name, rows).total() == 0


@pytest.fixture(scope="session")
def loaded(stack: Stack, spark: SparkSession) -> str:
    """A folder of HDFS with the sample's methods and sites."""
    url = f"hdfs://{stack.servers['namenode'].address}/sample"
    load(spark, url, SAMPLE)
    return url


@pytest.fixture
def no_docker(tmp_path: Path) -> Path:
    """A folder for the PATH whose `docker` finds no engine: the servers are those of the tests."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text("#!/bin/sh\nexit 1\n")
    (folder / "docker").chmod(0o755)
    return folder


@dataclass
class Scene:
    """One pipeline on the real servers, and the scripts run against it as a user would."""

    environ: dict[str, str]
    spark: SparkSession
    folder: Path
    loaded: str = ""  # folder of HDFS with the sample's methods and sites
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return self.environ["WATER_TOPIC"]

    def send(self, *arguments: str, data: Path = SAMPLE) -> None:
        config = kafka_producer.load_config(
            ["--data", str(data), "--interval", "0", *arguments], self.environ
        )
        producer = kafka_producer.connect(config)
        lots = kafka_producer.lots_to_send(config)
        assert kafka_producer.send_all(producer, lots, config, threading.Event()) == 0

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        address = self.environ["KAFKA_BOOTSTRAP_SERVERS"]
        with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
            yield admin

    def make_plain_topic(self) -> None:
        """Make the topic as Kafka does by itself: a message's time is what its sender says."""
        with self.admin() as admin:
            admin.create_topics([NewTopic(self.topic, 3, 1)])

    def send_raw(
        self,
        *messages: tuple[bytes | None, list[tuple[str, bytes]]],
        timestamp_ms: int | None = None,
    ) -> None:
        address = self.environ["KAFKA_BOOTSTRAP_SERVERS"]
        with closing(KafkaProducer(bootstrap_servers=address)) as producer:
            for value, headers in messages:
                producer.send(self.topic, value, b"any", headers, 0, timestamp_ms).get(timeout=30)

    def delete_messages(self, *partitions: int) -> None:
        """Delete all that partitions hold, as retention does."""
        with self.admin() as admin:
            admin.delete_records({TopicPartition(self.topic, number): -1 for number in partitions})

    def load_reference(self) -> None:
        """Put the sample's methods and sites into HDFS: a copy of what was loaded once."""
        files, new = reference.file_system(f"{self.environ['HDFS_URL']}/reference")
        _, loaded = reference.file_system(f"{self.loaded}/reference")
        files.delete(new, True)
        copy = java().jvm.org.apache.hadoop.fs.FileUtil.copy
        assert copy(files, loaded, files, new, False, files.getConf())

    def consume(self, *arguments: str) -> int:
        """Integrate what is in the topic, in this process, or reprocess; return the exit code."""
        choice = arguments or ("--once",)
        config = spark_consumer.load_config(choice, self.environ)
        return spark_consumer.work_once(config, self.spark, threading.Event(), lambda _: None)

    def start_consumer(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the consumer as a user would, with its Java."""
        return self.start("spark/spark_consumer.py", *arguments)

    def start(self, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a script in a process group of its own."""
        with self.log_file(len(self.started)).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / script), *arguments],
                env={**os.environ, **self.environ}, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def log_file(self, number: int) -> Path:
        return self.folder / f"{number}.log"

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a script has said."""
        return self.log_file(self.started.index(process)).read_text()

    def stop_consumer(self, process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
        """Stop a consumer; it must end cleanly."""
        process.send_signal(signum)
        assert process.wait(timeout=120) == 0, self.log(process)
        assert "Traceback" not in self.log(process)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(HERE / script), *arguments],
            env={**os.environ, **self.environ}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def connect(self) -> Any:
        return database.connect(self.environ["POSTGRESQL_URL"])

    def query(self, sql: str, *values: Any) -> list[Any]:
        with self.connect() as conn:
            return [tuple(row) for row in conn.execute(sql, values).fetchall()]

    def others(self) -> int:
        """Return how many besides us are connected to the database."""
        query = """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        return int(self.query(query)[0][0])

    def events(self) -> list[Any]:
        """Return the versions table, without when lots were received."""
        with self.connect() as conn:
            rows = conn.execute(
                "SELECT * FROM versions WHERE state <> 'received' ORDER BY event_id"
            )
            return list(rows.fetchall())

    def current(self) -> int:
        return int(self.query("SELECT current_version()")[0][0])

    def folders(self, parent: str) -> set[str]:
        """Return the folders below one in HDFS, whether a version knows them or not."""
        hdfs = WebHdfs(self.environ["HDFS_WEB_URL"], self.environ["HDFS_URL"])
        try:
            listed = json.loads(hdfs.ask(parent, "LISTSTATUS"))
        except HTTPError:  # nothing was ever written
            return set()
        return {status["pathSuffix"] for status in listed["FileStatuses"]["FileStatus"]}

    def compare(self, *arguments: str) -> Verdict:
        """Return what verify.py finds, in this process."""
        return verify.verify(verify.parse_arguments(arguments, self.environ))

    def verify(self, *arguments: str) -> Verdict:
        verdict = self.compare(*arguments)
        assert verdict.holds, verdict
        return verdict

    def snapshot(self, version: int) -> dict[str, list[Any]]:
        """Return a version's rows, as Spark reads them from HDFS, and all its metrics."""
        lots = self.query("SELECT lot_id, data_path FROM lots_at(%s)", version)
        paths = sorted({f"{self.environ['HDFS_URL']}/{path}" for _, path in lots})
        chosen = [lot_id for lot_id, _ in lots]
        rows = self.spark.read.parquet(*paths) if paths else None
        found = rows.where(rows.lot_id.isin(chosen)).drop("lot_id").collect() if rows else []
        return {"rows": sorted(map(repr, found))} | {
            name: self.query(f"SELECT * FROM {name}(%s)", version)  # noqa: S608
            for name in METRIC_NAMES
        }


@pytest.fixture
def scene(
    stack: Stack, spark: SparkSession, loaded: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Scene]:
    stem = re.sub(r"[^a-z0-9]+", "_", request.node.name.lower()).strip("_")[:40]
    name = f"{stem}_{uuid4().hex[:8]}"
    address = {service: server.address for service, server in stack.servers.items()}
    namenode = stack.services["namenode"].ports
    server = f"postgresql://water@{address['postgresql']}"
    with psycopg.connect(f"{server}/water", autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
    scene = Scene(
        {
            "KAFKA_BOOTSTRAP_SERVERS": address["kafka"],
            "WATER_TOPIC": name,
            "HDFS_URL": f"hdfs://{address['namenode']}/{name}",
            "HDFS_WEB_URL": f"http://127.0.0.1:{namenode[9870]}",
            "POSTGRESQL_URL": f"{server}/{name}",
        },
        spark,
        tmp_path,
        loaded,
    )
    yield scene
    for process in scene.started:  # what a failed test has left running
        with process:
            process.kill()
