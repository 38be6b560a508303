"""A user's mistake is one line, with the right exit code."""

import os
import re
import subprocess
import sys

import pytest

from pipelines.iot_cassandra.tests.conftest import HERE, PROJECT, Scene
from stack.servers import free_port


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("scripts/kafka_to_cassandra.py --hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        ("scripts/kafka_to_cassandra.py --hosts a:9042,b:99999", 2, "is not HOST:PORT"),
        ("scripts/kafka_to_cassandra.py --keyspace No;", 2, "'No;' is not 1 to 48 of a-z"),
        (
            "scripts/kafka_to_cassandra.py --batch 0",
            2,
            "'0' is not a whole number from 1 to 100000",
        ),
        (
            "scripts/kafka_to_cassandra.py --wait 0 --hosts {free}",
            1,
            "Cassandra at {free} does not",
        ),
        ("prepare.py --wait nan", 2, "'nan' is not a number from 0 to 86400"),
        ("prepare.py --hosts localhost:0", 2, "is not HOST:PORT"),
        ("prepare.py --wait 0 --bootstrap-servers {free}", 1, "Kafka at {free} does not"),
        ("scripts/spark_cassandra.py batch --hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        ("scripts/spark_cassandra.py stream --every 0", 2, "'0' is not a number from 0.1"),
        ("verify.py --hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        ("verify.py --ledger not_there.csv", 1, "verify: [Errno 2] No such file"),
        (
            "verify.py --ledger README.md",
            1,
            "verify: README.md is not a ledger of iot_simulator.py",
        ),
        ("chart.py --sensor x", 2, "'x' is not a whole number"),
        ("chart.py --hosts {free}", 1, "chart: Cassandra at {free}: "),
        ("scripts/spark_cassandra.py batch --wait 0 --hosts {free}", 1, "Cassandra at {free} does"),
        ("verify.py --hosts {free}", 1, "verify: cannot compare: "),
    ],
)
def test_a_mistake_is_one_line(command: str, code: int, said: str) -> None:
    free = f"127.0.0.1:{free_port()}"
    script, *arguments = command.format(free=free).split()
    ended = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True, text=True, cwd=PROJECT, check=False,
    )  # fmt: skip
    assert ended.returncode == code
    assert said.format(free=free) in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_mistake_in_the_environment_is_one_line() -> None:
    for script in ("verify.py", "prepare.py"):
        ended = subprocess.run(
            [sys.executable, str(HERE / script)], env={**os.environ, "CASSANDRA_HOSTS": "nowhere"},
            capture_output=True, text=True, cwd=PROJECT, check=False,
        )  # fmt: skip
        assert ended.returncode == 2
        assert "'nowhere' is not HOST:PORT" in ended.stderr.splitlines()[-1]


def test_a_keyspace_that_is_a_reserved_word_is_one_line(scene: Scene) -> None:
    for script, code, said in (
        ("prepare.py", 1, "ERROR prepare: <Error from server: "),
        ("scripts/kafka_to_cassandra.py", 2, ">: is table a reserved word of CQL?"),
        ("verify.py", 1, "verify: cannot compare: <Error from server: "),
    ):
        assert said in scene.run(script, "--keyspace", "table", code=code).splitlines()[-1]


def test_missing_tables_and_an_absent_kafka_are_one_line(scene: Scene) -> None:
    writer = "scripts/kafka_to_cassandra.py"
    said = scene.run(writer, "--keyspace", "not_there", code=2)
    assert "prepare.py creates what is missing" in said
    said = scene.run(
        writer, "--wait", "0", "--bootstrap-servers", f"127.0.0.1:{free_port()}", code=1
    )
    assert re.search("Kafka at 127.0.0.1:[0-9]+ does not answer", said.splitlines()[-1])
