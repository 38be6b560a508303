"""Both scripts as a user runs them, and the verifier, on real servers."""

import json
import re
import shutil
import signal
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from kafka import KafkaAdminClient, KafkaProducer
from kafka.structs import TopicPartition

from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack
from tests.conftest import PROJECT, Pipeline, interrupt, new_stack
from tools.faulty_sensors import FAULTS
from tools.verify import verify


def ids(messages: list[Any]) -> set[str]:
    """Return the document ids of the readings in these messages, as README defines them."""
    found = [json.loads(message.value) for message in messages]
    return {f"{reading['sensor_id']}@{reading['timestamp']}" for reading in found}


def accounts(err: str) -> dict[str, int]:
    """Return the numbers of the consumer's closing line."""
    (line,) = re.findall(r"stopped (.*)", err)
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)(?= )", line)}


def assert_all_indexed(pipeline: Pipeline) -> None:
    """Check by the verifier and by the set of ids that topic and index agree."""
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert verdict.holds, verdict
    assert pipeline.documents().keys() == ids(pipeline.messages())


def test_every_reading_is_indexed_once_however_often_it_is_read(pipeline: Pipeline) -> None:
    err = pipeline.generate("--count", "3000", "--backfill", "24h", "--seed", "1")
    assert "sent=3000 acknowledged=3000 failed=0" in err
    closing = accounts(pipeline.consume())
    assert closing == {
        "consumed": 3000,
        "indexed": 3000,
        "duplicates": 0,
        "dead_lettered": 0,
        "in_flight": 0,
    }
    assert len(pipeline.documents()) == 3000
    assert_all_indexed(pipeline)
    assert pipeline.committed() == 3000
    assert accounts(pipeline.consume())["consumed"] == 0
    again = accounts(pipeline.consume("--group-id", f"{pipeline.group}-again"))
    assert (again["consumed"], again["duplicates"], again["indexed"]) == (3000, 3000, 0)
    assert len(pipeline.documents()) == 3000


def test_the_messages_of_a_sensor_have_its_key_and_are_in_order(pipeline: Pipeline) -> None:
    pipeline.generate("--count", "300", "--backfill", "1h", "--sensors", "4")
    messages = pipeline.messages()
    by_sensor: dict[bytes, list[Any]] = {}
    for message in sorted(messages, key=lambda m: (m.partition, m.offset)):
        assert message.key.decode() == json.loads(message.value)["sensor_id"]
        by_sensor.setdefault(message.key, []).append(message)
    assert sorted(by_sensor) == [b"sensor_001", b"sensor_002", b"sensor_003", b"sensor_004"]
    for found in by_sensor.values():
        assert len({message.partition for message in found}) == 1
        times = [json.loads(message.value)["timestamp"] for message in found]
        assert times == sorted(times)


def test_both_scripts_run_side_by_side_until_ctrl_c(pipeline: Pipeline) -> None:
    """The consumer starts first, when there is no topic yet."""
    consumer = pipeline.start("kafka_to_elasticsearch.py")
    wait_until(lambda: pipeline.client.indices.exists(index=pipeline.index), "the index is there")
    generator = pipeline.start("sensor_generator.py", "--rate", "50")
    wait_until(lambda: pipeline.count() > 50, "readings are indexed")
    (found,) = re.findall(r"stopped sent=(\d+)", interrupt(generator, signal.SIGINT))
    sent = int(found)
    assert len(pipeline.messages()) == sent
    wait_until(lambda: pipeline.count() == sent, "all are indexed")
    closing = accounts(interrupt(consumer, signal.SIGINT))
    assert (closing["consumed"], closing["in_flight"]) == (sent, 0)
    assert_all_indexed(pipeline)


def test_a_single_reading_becomes_searchable(pipeline: Pipeline) -> None:
    """This needs neither a full batch nor a manual refresh."""
    consumer = pipeline.start("kafka_to_elasticsearch.py")
    wait_until(lambda: pipeline.client.indices.exists(index=pipeline.index), "the index is there")
    pipeline.generate("--count", "1", "--interval", "0.001", "0.002")
    wait_until(
        lambda: pipeline.client.count(index=pipeline.index)["count"] == 1, "it is searchable"
    )
    interrupt(consumer)


def test_messages_deleted_before_they_were_read_are_counted_in_the_log(pipeline: Pipeline) -> None:
    pipeline.send(*[b"bad"] * 10)
    pipeline.consume()
    pipeline.send(*[b"bad"] * 10)
    with closing(KafkaAdminClient(bootstrap_servers=pipeline.kafka)) as admin:
        admin.delete_records({TopicPartition(pipeline.topic, 0): 15})
    err = pipeline.consume()
    assert "partition 0: reading on from offset 15: 5 messages were deleted unread" in err
    assert accounts(err)["consumed"] == 5


# The verifier


def test_the_verifier_finds_each_kind_of_wrong_document(pipeline: Pipeline) -> None:
    pipeline.generate("--count", "20", "--backfill", "1h")
    pipeline.consume()
    lost, changed, twice, *_ = pipeline.documents()
    made_up = {**pipeline.documents()[changed], "timestamp": "2001-01-01T00:00:00.000Z"}
    pipeline.client.delete(index=pipeline.index, id=lost)
    pipeline.client.update(index=pipeline.index, id=changed, doc={"humidity": 1.5})
    pipeline.client.index(index=pipeline.index, id="made-up", document=made_up)
    pipeline.client.index(index=pipeline.index, document=pipeline.documents()[twice])
    pipeline.client.index(index=pipeline.index, id="odd", document={"sensor_id": "x"})
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert not verdict.holds
    assert (len(verdict.missing), len(verdict.differing), len(verdict.unexpected)) == (1, 1, 1)
    assert (len(verdict.doubled), verdict.strange) == (1, ["odd"])
    out, _ = pipeline.run("tools.verify", code=1)
    assert re.search(r"^missing +1   for example \(\d, \d+\)$", out, re.MULTILINE)
    assert re.search(r"^strange +1   for example odd$", out, re.MULTILINE)


def add_dead_letter(pipeline: Pipeline, letter: Any, offset: int, value: bytes) -> None:
    """Send a copy of a dead letter with this source offset and these bytes."""
    headers = [*dict(letter.headers, **{"source.offset": str(offset).encode()}).items()]
    with closing(KafkaProducer(bootstrap_servers=pipeline.kafka)) as producer:
        topic = f"{pipeline.topic}.dead-letter"
        producer.send(topic, value=value, headers=headers).get(timeout=30)


def test_the_verifier_accepts_either_of_two_conflicting_readings(pipeline: Pipeline) -> None:
    """Batches are indexed in parallel, and another group may have indexed the other reading."""
    for seed in ("1", "2"):
        period = ("--start", "2026-06-01", "--rate", "1000", "--sensors", "1", "--speed", "1000")
        pipeline.generate("--count", "3", "--seed", seed, *period)
    pipeline.consume()
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert verdict.holds, verdict
    assert verdict.conflicting == 3
    (letter, *_) = pipeline.dead_letters()
    first = int(dict(letter.headers)["source.offset"]) - 3
    (value,) = (m.value for m in pipeline.messages() if (m.partition, m.offset) == (0, first))
    add_dead_letter(pipeline, letter, first, value)
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert verdict.holds, verdict
    assert verdict.conflicting == 4


def test_the_verifier_ignores_a_dead_letter_with_other_bytes(pipeline: Pipeline) -> None:
    """Such letters remain, for example, when a topic has been deleted and created again."""
    pipeline.send(b"bad")
    pipeline.consume()
    (letter,) = pipeline.dead_letters()
    with closing(KafkaAdminClient(bootstrap_servers=pipeline.kafka)) as admin:
        admin.delete_records({TopicPartition(pipeline.topic, 0): 1})
    pipeline.generate("--count", "3", "--sensors", "1", "--backfill", "1h")
    pipeline.consume()
    lost = pipeline.messages()[0]
    add_dead_letter(pipeline, letter, lost.offset, letter.value)
    (document_id,) = ids([lost])
    pipeline.client.delete(index=pipeline.index, id=document_id)
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert not verdict.holds
    assert verdict.missing == [(0, lost.offset)]


def test_the_verifier_compares_a_ledger_with_topic_and_dead_letters(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.csv"
    faults = [f"--fault={kind}=0.02" for kind in FAULTS]
    pipeline.generate_faulty("--backfill", "1h", "--ledger", str(ledger), "--seed", "5", *faults)
    lines = ledger.read_text().splitlines()
    malformed = sum(",malformed" in line for line in lines)
    assert malformed > 10
    assert accounts(pipeline.consume())["dead_lettered"] == malformed
    out, _ = pipeline.run("tools.verify", "--ledger", str(ledger))
    assert re.search(rf"^messages in the ledger +{len(lines) - 1}$", out, re.MULTILINE)
    for name in ("not acknowledged", "missing", "differing", "doubled", "altered", "misjudged"):
        assert re.search(rf"^{name} +0$", out, re.MULTILINE), out
    # The verifier finds a ledger that contradicts the topic.
    good = next(line for line in lines[1:] if line.endswith(","))
    reading_id, partition, offset, checksum, _ = good.split(",")
    lies = [f"{reading_id},{partition},{offset},{checksum},malformed:cut", "a,0,999999,00000000,"]
    ledger.write_text("\n".join([*(line for line in lines if line != good), *lies]))
    out, _ = pipeline.run("tools.verify", "--ledger", str(ledger), code=1)
    assert re.search(r"^altered +1   for example \(0, 999999\)$", out, re.MULTILINE)
    assert re.search(r"^misjudged +1   for example", out, re.MULTILINE)
    (tmp_path / "empty").touch()
    for none in (__file__, str(tmp_path / "empty")):
        _, err = pipeline.run("tools.verify", "--ledger", none, code=1)
        assert "is not a ledger" in err or "cannot compare" in err


# The scripts in other surroundings


def test_the_generator_runs_alone_with_an_env_file_beside_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """The environment wins over .env, and .env over the default."""
    shutil.copy(PROJECT / "sensor_generator.py", tmp_path)
    lines = f"KAFKA_TOPIC={pipeline.topic}\nKAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9\n"
    (tmp_path / ".env").write_text(lines)
    hidden = ("PYTHON_DOTENV_DISABLED", "KAFKA_TOPIC")
    environ = {name: value for name, value in pipeline.environ.items() if name not in hidden}
    command = [sys.executable, "sensor_generator.py", "--count", "5", "--backfill", "1m"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert len(pipeline.messages()) == 5


NEWER_CLIENT = "3.0.12"  # what `pip install kafka-python` installs; the project pins an older one


@pytest.fixture
def newer_python(stack: Stack) -> Path:
    """A Python with the scripts' requirements but a newer kafka-python; it is installed once."""
    pins = re.sub(r"(?m)#.*$", "", (PROJECT / "requirements.txt").read_text())
    pins = re.sub(r"(?m)^(kafka-python\[.*\])==\S+", rf"\1=={NEWER_CLIENT}", pins)
    assert f"]=={NEWER_CLIENT}" in pins
    folder = stack.cache / f"kafka-python-{NEWER_CLIENT}-{zlib.crc32(pins.encode()):08x}"
    python, installed = folder / "bin/python", folder / "installed"
    if not installed.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins.split()], check=True)
        installed.touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)  # pip may have to download everything
def test_both_scripts_run_alone_under_a_newer_kafka_python(
    pipeline: Pipeline, newer_python: Path, tmp_path: Path
) -> None:
    for script in ("sensor_generator.py", "kafka_to_elasticsearch.py"):
        shutil.copy(PROJECT / script, tmp_path)
    shutil.copytree(PROJECT / "mappings", tmp_path / "mappings")

    def start(script: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [newer_python, script, *arguments],
            cwd=tmp_path,
            env=pipeline.environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        pipeline.started.append(process)
        return process

    consumer = start("kafka_to_elasticsearch.py")
    generator = start("sensor_generator.py", "--rate", "50")
    wait_until(lambda: pipeline.count() > 200, "it indexes")
    pipeline.send(b"bad")
    wait_until(lambda: pipeline.dead_letters(), "the bad one is a dead letter")
    assert "failed=0" in interrupt(generator, signal.SIGINT)
    wait_until(lambda: pipeline.committed() == pipeline.ends(), "all are committed")
    closing = accounts(interrupt(consumer, signal.SIGINT))
    assert closing["dead_lettered"] == 1
    assert closing["consumed"] == closing["indexed"] + 1 == pipeline.ends()
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert verdict.holds, verdict


@pytest.mark.slow
def test_the_native_kraft_broker_runs_without_zookeeper(tmp_path: Path) -> None:
    """It keeps its data when it is stopped and started again."""
    servers = new_stack(tmp_path / "kraft", "extensions/kraft/compose.yml")
    try:
        servers.up(["kafka"])
        assert set(servers.servers) == {"kafka", "elasticsearch"}
        kafka = servers.servers["kafka"].address
        with Elasticsearch("http://127.0.0.1:9") as client:  # not used
            pipeline = Pipeline(kafka, "", "smart-city-sensors", "", "", client)
        pipeline.generate("--count", "20", "--backfill", "1m")
        servers.down()
        servers.up(["kafka"])
        pipeline.generate("--count", "20", "--backfill", "1m")
        assert pipeline.ends() == 40
    finally:
        servers.down(wipe=True)
