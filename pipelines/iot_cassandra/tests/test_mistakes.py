"""A user's mistake is one line, with the right exit code."""

import re
from types import ModuleType

import pytest

from pipelines.iot_cassandra import chart, prepare, verify
from pipelines.iot_cassandra.scripts import kafka_to_cassandra, spark_cassandra
from pipelines.iot_cassandra.tests.conftest import Scene
from stack.servers import free_port


@pytest.mark.parametrize(
    ("program", "arguments", "code", "said"),
    [
        (kafka_to_cassandra, "--hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        (kafka_to_cassandra, "--hosts a:9042,b:99999", 2, "is not HOST:PORT"),
        (kafka_to_cassandra, "--keyspace No;", 2, "'No;' is not 1 to 48 of a-z"),
        (kafka_to_cassandra, "--batch 0", 2, "'0' is not a whole number from 1 to 100000"),
        (kafka_to_cassandra, "--wait 0 --hosts {free}", 1, "Cassandra at {free} does not"),
        (prepare, "--wait nan", 2, "'nan' is not a number from 0 to 86400"),
        (prepare, "--hosts localhost:0", 2, "is not HOST:PORT"),
        (prepare, "--wait 0 --bootstrap-servers {free}", 1, "Kafka at {free} does not"),
        (spark_cassandra, "batch --hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        (spark_cassandra, "stream --every 0", 2, "'0' is not a number from 0.1"),
        (spark_cassandra, "batch --wait 0 --hosts {free}", 1, "Cassandra at {free} does"),
        (verify, "--hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        (verify, "--ledger not_there.csv", 1, "verify: [Errno 2] No such file"),
        (verify, f"--ledger {__file__}", 1, f"verify: {__file__} is not a ledger of iot_sim"),
        (verify, "--hosts {free}", 1, "verify: cannot compare: "),
        (chart, "--sensor x", 2, "'x' is not a whole number"),
        (chart, "--hosts {free}", 1, "chart: Cassandra at {free}: "),
    ],
)
@pytest.mark.usefixtures("restored_signals")
def test_a_mistake_is_one_line(
    program: ModuleType,
    arguments: str,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    free = f"127.0.0.1:{free_port()}"
    try:
        ended = program.main(arguments.format(free=free).split())
    except SystemExit as exc:
        ended = exc.code
    assert ended == code
    assert said.format(free=free) in (capsys.readouterr().err + caplog.text).splitlines()[-1]


@pytest.mark.parametrize("program", [verify, prepare])
def test_a_mistake_in_the_environment_is_one_line(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CASSANDRA_HOSTS", "nowhere")
    with pytest.raises(SystemExit) as ended:
        program.main([])
    assert ended.value.code == 2
    assert "'nowhere' is not HOST:PORT" in capsys.readouterr().err.splitlines()[-1]


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
    scene.create_topic(scene.name.replace("_", "."))
    said = scene.run("prepare.py", code=1)
    why = f"ERROR prepare: Kafka refuses the topic {scene.name}: Topic '{scene.name}' collides with"
    assert why in said.splitlines()[-1]
    said = scene.run(
        writer, "--wait", "0", "--bootstrap-servers", f"127.0.0.1:{free_port()}", code=1
    )
    assert re.search("Kafka at 127.0.0.1:[0-9]+ does not answer", said.splitlines()[-1])
    columns = "(sensor_id INT, timestamp {}, temperature FLOAT, humidity FLOAT, PRIMARY KEY ({}))"
    for kind, key, why in (
        ("TIMESTAMP", "sensor_id", "the primary key of sensor_data is without timestamp: readings"),
        ("TEXT", "sensor_id, timestamp", "sensor_data has a column of another type (see cql/"),
    ):
        scene.session.execute(f"DROP TABLE {scene.name}.sensor_data", timeout=60)
        table = f"CREATE TABLE {scene.name}.sensor_data {columns.format(kind, key)}"
        scene.session.execute(table, timeout=60)
        assert f"ERROR kafka_to_cassandra: {why}" in scene.run(writer, code=2).splitlines()[-1]
