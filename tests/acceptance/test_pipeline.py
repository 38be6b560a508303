"""Both scripts as a user runs them, on the real servers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.structs import TopicPartition

import sensor_generator
from stack.__main__ import Stack
from tests.conftest import PROJECT, Pipeline, interrupt, new_stack, wait_until
from tools.verify import verify


def ids(messages: list[Any]) -> set[str]:
    """Return the ids that the readings of these messages should have, as README states them."""
    found = [json.loads(message.value) for message in messages]
    return {f"{reading['sensor_id']}@{reading['timestamp']}" for reading in found}


def accounts(err: str) -> dict[str, int]:
    """Return the numbers of the consumer's closing line."""
    (line,) = re.findall(r"stopped (.*)", err)
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)(?= )", line)}


def assert_all_indexed(pipeline: Pipeline) -> None:
    """Check, by the independent verifier, that topic and index agree, and by the set of ids."""
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert verdict.holds, verdict
    assert pipeline.documents().keys() == ids(pipeline.messages())


def test_n_sent_are_exactly_these_n_indexed(pipeline: Pipeline) -> None:
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


def test_messages_are_keyed_by_sensor_and_in_order(pipeline: Pipeline) -> None:
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


@pytest.mark.slow
def test_a_long_backfill_waits_for_kafka(pipeline: Pipeline) -> None:
    """Else what is on its way expires, when there are some millions of it."""
    err = pipeline.generate("--count", "400000", "--backfill", "24h", "--rate", "100")
    assert "sent=400000 acknowledged=400000 failed=0" in err
    found = re.findall(r"progress sent=(\d+) acknowledged=(\d+) failed=0", err)
    assert found
    assert all(int(sent) - int(known) <= sensor_generator.MAX_PENDING for sent, known in found)


def test_a_second_consumer_run_finds_nothing_new(pipeline: Pipeline) -> None:
    pipeline.generate("--count", "100", "--backfill", "1h")
    pipeline.consume()
    assert accounts(pipeline.consume())["consumed"] == 0


@pytest.mark.slow
def test_another_group_reads_all_again_and_changes_nothing(pipeline: Pipeline) -> None:
    pipeline.generate("--count", "100", "--backfill", "1h")
    pipeline.consume()
    again = accounts(pipeline.consume("--group-id", f"{pipeline.group}-again"))
    assert (again["consumed"], again["duplicates"], again["indexed"]) == (100, 100, 0)
    assert len(pipeline.documents()) == 100


def test_the_consumer_may_start_first(pipeline: Pipeline) -> None:
    consumer = pipeline.start("kafka_to_elasticsearch.py")
    pipeline.generate("--duration", "3", "--rate", "20")
    wait_until(lambda: ids(pipeline.messages()) <= pipeline.documents().keys(), "all are indexed")
    err = interrupt(consumer)
    assert "in_flight=0" in err
    assert_all_indexed(pipeline)


def test_a_lone_reading_becomes_searchable_by_itself(pipeline: Pipeline) -> None:
    """Neither a full batch nor a refresh by hand is needed."""
    consumer = pipeline.start("kafka_to_elasticsearch.py")
    wait_until(lambda: pipeline.client.indices.exists(index=pipeline.index), "the index is there")
    pipeline.generate("--count", "1", "--interval", "0.001", "0.002")
    wait_until(
        lambda: pipeline.client.count(index=pipeline.index)["count"] == 1, "it is searchable"
    )
    interrupt(consumer)


@pytest.mark.slow
def test_terminated_in_the_middle_and_started_again_it_is_still_exactly_n(
    pipeline: Pipeline,
) -> None:
    generator = pipeline.start("sensor_generator.py", "--rate", "400", "--count", "10000")
    total: dict[str, int] = {}
    for _ in range(3):
        consumer = pipeline.start("kafka_to_elasticsearch.py")
        before = indexed(pipeline)
        wait_until(partial(has_more_than, pipeline, before), "it indexes")
        closing = accounts(interrupt(consumer))
        assert closing["consumed"] == closing["indexed"] + closing["duplicates"]
        total = {name: total.get(name, 0) + closing[name] for name in closing}
    generator.communicate(timeout=60)
    assert generator.returncode == 0
    last = accounts(pipeline.consume())
    # Stopped cleanly, it has committed all that it indexed: nothing is read twice.
    assert total["consumed"] + last["consumed"] == 10_000
    assert total["duplicates"] + last["duplicates"] == 0
    assert pipeline.client.count(index=pipeline.index)["count"] == 10_000
    assert verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index).holds


def has_more_than(pipeline: Pipeline, count: int) -> bool:
    return indexed(pipeline) > count


def indexed(pipeline: Pipeline) -> int:
    if not pipeline.client.indices.exists(index=pipeline.index):
        return 0
    pipeline.client.indices.refresh(index=pipeline.index)
    return int(pipeline.client.count(index=pipeline.index)["count"])


def test_killed_in_the_middle_and_started_again_it_is_still_exactly_n(pipeline: Pipeline) -> None:
    pipeline.generate("--count", "9000", "--backfill", "24h")
    consumer = pipeline.start("kafka_to_elasticsearch.py")
    wait_until(lambda: indexed(pipeline) > 0, "it indexes")
    consumer.kill()
    consumer.communicate()
    closing = accounts(pipeline.consume())  # waits for the dead member's session to time out
    assert closing["consumed"] == closing["indexed"] + closing["duplicates"]
    assert indexed(pipeline) == 9000
    assert verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index).holds


def test_malformed_messages_stop_nothing(pipeline: Pipeline) -> None:
    pipeline.generate("--count", "50", "--backfill", "1h")
    bad = [b"not json", None, b"\xff", b"{}", b'{"sensor_id": "s"}', b"[" * 50_000, b"\n"]
    pipeline.send(*bad)
    pipeline.generate("--count", "50", "--backfill", "1m")
    closing = accounts(pipeline.consume())
    assert closing == {
        "consumed": 107,
        "indexed": 100,
        "duplicates": 0,
        "dead_lettered": 7,
        "in_flight": 0,
    }
    letters = pipeline.dead_letters()
    assert Counter(letter.value for letter in letters) == Counter(bad)
    offsets = {int(dict(letter.headers)["source.offset"]) for letter in letters}
    assert {m.offset for m in pipeline.messages() if m.partition == 0 and m.value in bad} == offsets
    assert verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index).holds


def test_the_verifier_sees_what_is_lost_changed_or_made_up(pipeline: Pipeline) -> None:
    pipeline.generate("--count", "20", "--backfill", "1h")
    pipeline.consume()
    lost, changed, twice, *_ = pipeline.documents()
    made_up = {**pipeline.documents()[changed], "timestamp": "2001-01-01T00:00:00.000Z"}
    pipeline.client.delete(index=pipeline.index, id=lost)
    pipeline.client.update(index=pipeline.index, id=changed, doc={"humidity": 1.5})
    pipeline.client.index(index=pipeline.index, id="made-up", document=made_up)
    pipeline.client.index(index=pipeline.index, document=pipeline.documents()[twice])
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert not verdict.holds
    assert (len(verdict.missing), len(verdict.differing), len(verdict.unexpected)) == (1, 1, 1)
    assert len(verdict.doubled) == 1
    out, _ = pipeline.run("tools/verify.py", code=1)
    assert re.search(r"^missing +1   for example \(\d, \d+\)$", out, re.MULTILINE)


def test_of_two_readings_in_conflict_either_may_stay(pipeline: Pipeline) -> None:
    """Bulks go side by side, and another group, into another index, has dead letters here too."""
    for count, seed in (("3", "1"), ("3", "2")):
        period = ("--start", "2026-06-01", "--rate", "1000", "--sensors", "1", "--speed", "1000")
        pipeline.generate("--count", count, "--seed", seed, *period)
    pipeline.consume()
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert verdict.holds, verdict
    assert verdict.conflicting == 3
    (letter, *_) = pipeline.dead_letters()
    first = int(dict(letter.headers)["source.offset"]) - 3
    headers = [
        (name, str(first).encode() if name == "source.offset" else value)
        for name, value in letter.headers
    ]
    (value,) = (m.value for m in pipeline.messages() if (m.partition, m.offset) == (0, first))
    with KafkaProducer(bootstrap_servers=pipeline.kafka) as producer:
        topic = f"{pipeline.topic}.dead-letter"
        producer.send(topic, value=value, headers=headers).get(timeout=30)
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert verdict.holds, verdict
    assert verdict.conflicting == 4


def test_a_letter_of_other_bytes_excuses_no_message(pipeline: Pipeline) -> None:
    """The topic was made anew, say, and its dead letters are those of the old one."""
    pipeline.send(b"bad")
    pipeline.consume()
    (letter,) = pipeline.dead_letters()
    with KafkaAdminClient(bootstrap_servers=pipeline.kafka) as admin:
        admin.delete_records({TopicPartition(pipeline.topic, 0): 1})
    pipeline.generate("--count", "3", "--sensors", "1", "--backfill", "1h")
    pipeline.consume()
    where, _ = lost = next((m.offset, m.value) for m in pipeline.messages())
    headers = [
        (name, str(where).encode() if name == "source.offset" else value)
        for name, value in letter.headers
    ]
    with KafkaProducer(bootstrap_servers=pipeline.kafka) as producer:
        topic = f"{pipeline.topic}.dead-letter"
        producer.send(topic, value=letter.value, headers=headers).get(timeout=30)
    reading = json.loads(lost[1])
    document_id = f"{reading['sensor_id']}@{reading['timestamp']}"
    pipeline.client.delete(index=pipeline.index, id=document_id)
    verdict = verify(pipeline.kafka, pipeline.topic, pipeline.client, pipeline.index)
    assert not verdict.holds
    assert verdict.missing == [(0, where)]


def test_a_document_that_is_no_reading_is_counted(pipeline: Pipeline) -> None:
    pipeline.generate("--count", "5", "--backfill", "1h")
    pipeline.consume()
    pipeline.client.index(index=pipeline.index, id="odd", document={"sensor_id": "x"})
    out, _ = pipeline.run("tools/verify.py", code=1)
    assert re.search(r"^strange +1   for example odd$", out, re.MULTILINE)


def test_the_ledger_says_what_was_sent_and_what_became_of_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.csv"
    faults = [f"--fault={kind}=0.02" for kind in sensor_generator.FAULTS]
    pipeline.generate("--backfill", "1h", "--ledger", str(ledger), "--seed", "5", *faults)
    lines = ledger.read_text().splitlines()
    malformed = sum(",malformed" in line for line in lines)
    assert malformed > 10
    assert accounts(pipeline.consume())["dead_lettered"] == malformed
    out, _ = pipeline.run("tools/verify.py", "--ledger", str(ledger))
    assert re.search(rf"^messages in the ledger +{len(lines) - 1}$", out, re.MULTILINE)
    for name in ("not acknowledged", "missing", "differing", "doubled", "altered", "misjudged"):
        assert re.search(rf"^{name} +0$", out, re.MULTILINE), out
    # A ledger that says something else is found out.
    good = next(line for line in lines[1:] if line.endswith(","))
    reading_id, partition, offset, checksum, _ = good.split(",")
    lies = [f"{reading_id},{partition},{offset},{checksum},malformed:cut", "a,0,999999,00000000,"]
    ledger.write_text("\n".join([*(line for line in lines if line != good), *lies]))
    out, _ = pipeline.run("tools/verify.py", "--ledger", str(ledger), code=1)
    assert re.search(r"^altered +1   for example \(0, 999999\)$", out, re.MULTILINE)
    assert re.search(r"^misjudged +1   for example", out, re.MULTILINE)
    (tmp_path / "empty").touch()
    for none in (__file__, str(tmp_path / "empty")):
        _, err = pipeline.run("tools/verify.py", "--ledger", none, code=1)
        assert "is not a ledger" in err or "cannot compare" in err


def test_messages_deleted_before_they_were_read_are_counted_in_the_log(pipeline: Pipeline) -> None:
    pipeline.send(*[b"bad"] * 10)
    pipeline.consume()
    pipeline.send(*[b"bad"] * 10)
    with KafkaAdminClient(bootstrap_servers=pipeline.kafka) as admin:
        admin.delete_records({TopicPartition(pipeline.topic, 0): 15})
    err = pipeline.consume()
    assert "partition 0: 5 messages from offset 10 on were deleted" in err
    assert accounts(err)["consumed"] == 5


@pytest.mark.slow
def test_a_topic_made_anew_is_read_from_its_beginning(pipeline: Pipeline) -> None:
    pipeline.send(*[b"bad"] * 10)
    pipeline.consume()
    with KafkaAdminClient(bootstrap_servers=pipeline.kafka) as admin:
        admin.delete_topics([pipeline.topic])
        wait_until(lambda: pipeline.topic not in admin.list_topics(), "the topic is gone")
    pipeline.send(*[b"bad"] * 3)
    err = pipeline.consume()
    assert accounts(err)["consumed"] == 3


# Signals and exit codes


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_generator_stops_cleanly(pipeline: Pipeline, signum: signal.Signals) -> None:
    generator = pipeline.start("sensor_generator.py", "--rate", "50")
    wait_until(lambda: len(pipeline.messages()) > 5, "it sends")
    err = interrupt(generator, signum)
    sent = int(re.findall(r"stopped sent=(\d+)", err)[0])
    assert len(pipeline.messages()) == sent


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_consumer_stops_cleanly(pipeline: Pipeline, signum: signal.Signals) -> None:
    consumer = pipeline.start("kafka_to_elasticsearch.py")
    assert consumer.stderr
    while "assigned partitions" not in consumer.stderr.readline():
        assert consumer.poll() is None
    assert accounts(interrupt(consumer, signum))["in_flight"] == 0


@pytest.mark.parametrize("script", ["sensor_generator.py", "kafka_to_elasticsearch.py"])
def test_kafka_away_at_the_start_is_one_line_and_exit_1(pipeline: Pipeline, script: str) -> None:
    nobody = ("--bootstrap-servers", "127.0.0.1:9", "--wait", "3")
    _, err = pipeline.run(script, *nobody, code=1)
    assert "WARNING" in err
    assert "waiting for Kafka at 127.0.0.1:9" in err
    assert re.search(
        r"ERROR \w+: Kafka does not answer at 127.0.0.1:9 .*is it started", err.splitlines()[-1]
    )


def test_elasticsearch_away_at_the_start_is_one_line_and_exit_1(pipeline: Pipeline) -> None:
    nobody = ("--elasticsearch-url", "http://me:secret@127.0.0.1:9", "--wait", "1")
    _, err = pipeline.run("kafka_to_elasticsearch.py", *nobody, code=1)
    assert "waiting for Elasticsearch" in err
    assert (
        "ERROR kafka_to_elasticsearch: Elasticsearch does not answer at http://127.0.0.1:9" in err
    )
    assert "secret" not in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("script", ["sensor_generator.py", "kafka_to_elasticsearch.py"])
def test_stopped_while_waiting_it_ends_cleanly(
    pipeline: Pipeline, script: str, signum: signal.Signals
) -> None:
    process = pipeline.start(script, "--bootstrap-servers", "127.0.0.1:9")
    assert process.stderr
    while "waiting for Kafka" not in process.stderr.readline():
        assert process.poll() is None
    interrupt(process, signum)


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("sensor_generator.py", ["--count", "none"]),
        ("kafka_to_elasticsearch.py", ["--exit-when-idle", "never"]),
        ("kafka_to_elasticsearch.py", ["--elasticsearch-url", "localhost"]),
        ("kafka_to_elasticsearch.py", ["--index", "Sensors"]),
    ],
)
def test_wrong_usage_is_exit_2(pipeline: Pipeline, script: str, argv: list[str]) -> None:
    _, err = pipeline.run(script, *argv, code=2)
    assert argv[0] in err.splitlines()[-1] or argv[1] in err.splitlines()[-1] or "URL" in err


def test_an_unreachable_broker_does_not_matter_in_console_mode(pipeline: Pipeline) -> None:
    argv = ("--console", "--count", "2", "--backfill", "1m", "--bootstrap-servers", "127.0.0.1:9")
    out, _ = pipeline.run("sensor_generator.py", *argv)
    assert len(out.splitlines()) == 2


def test_console_output_may_be_cut_by_its_reader(pipeline: Pipeline) -> None:
    command = ["bash", "-c", '"$0" sensor_generator.py --console --backfill 24h | head -n 2']
    found = subprocess.run(
        [*command, sys.executable], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert len(found.stdout.splitlines()) == 2
    assert "Traceback" not in found.stderr
    assert "BrokenPipe" not in found.stderr


# Alone, elsewhere


def alone(
    script: str, folder: Path, pipeline: Pipeline, *argv: str
) -> subprocess.CompletedProcess[str]:
    """Run a copy of a script in an otherwise empty folder."""
    shutil.copy(PROJECT / script, folder)
    command = [sys.executable, script, *argv]
    return subprocess.run(
        command,
        cwd=folder,
        env=pipeline.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_generator_runs_alone(pipeline: Pipeline, tmp_path: Path) -> None:
    ended = alone("sensor_generator.py", tmp_path, pipeline, "--count", "5", "--backfill", "1m")
    assert ended.returncode == 0, ended.stderr
    assert len(pipeline.messages()) == 5


def test_the_consumer_alone_asks_for_the_mapping_or_does_without(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.generate("--count", "5", "--backfill", "1m")
    ended = alone("kafka_to_elasticsearch.py", tmp_path, pipeline, "--exit-when-idle", "1")
    assert ended.returncode == 2
    assert re.search(r"cannot read .*sensors_data.json .*--dynamic-mapping$", ended.stderr.strip())
    argv = ("--exit-when-idle", "1", "--dynamic-mapping")
    ended = alone("kafka_to_elasticsearch.py", tmp_path, pipeline, *argv)
    assert ended.returncode == 0, ended.stderr
    assert len(pipeline.documents()) == 5


def test_env_file_beside_the_script_is_read(pipeline: Pipeline, tmp_path: Path) -> None:
    """Flag > environment > .env > default."""
    (tmp_path / ".env").write_text("KAFKA_TOPIC=from-file\nKAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9\n")
    shutil.copy(PROJECT / "sensor_generator.py", tmp_path)
    environ = {k: v for k, v in os.environ.items() if k != "PYTHON_DOTENV_DISABLED"}
    command = [sys.executable, "sensor_generator.py", "--wait", "0"]
    kept = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    ended = subprocess.run(command, env=environ, **kept)  # type: ignore[call-overload]
    assert "Kafka does not answer at 127.0.0.1:9" in ended.stderr
    environ["KAFKA_BOOTSTRAP_SERVERS"] = "127.0.0.1:10"
    ended = subprocess.run(command, env=environ, **kept)  # type: ignore[call-overload]
    assert "Kafka does not answer at 127.0.0.1:10" in ended.stderr


# Servers that go away in mid-run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elasticsearch", "kafka"])
def test_a_server_that_restarts_in_mid_run_costs_nothing(
    stack: Stack, pipeline: Pipeline, name: str
) -> None:
    consumer = pipeline.start("kafka_to_elasticsearch.py")
    generator = pipeline.start("sensor_generator.py", "--rate", "50", "--count", "3000")
    wait_until(lambda: indexed(pipeline) > 50, "it indexes")
    stack.down([name])
    try:
        stack.up([name])
    finally:
        stack.up()
    _, err = generator.communicate(timeout=120)
    assert generator.returncode == 0, err
    wait_until(lambda: indexed(pipeline) == 3000, "all are indexed", timeout_s=90)
    err = interrupt(consumer)
    said = "messages wait" if name == "elasticsearch" else "ERROR kafka"
    assert said in err
    assert_all_indexed(pipeline)


@pytest.mark.slow
def test_without_zookeeper(tmp_path: Path) -> None:
    """The KRaft overlay, natively: the broker is its own controller."""
    servers = new_stack(tmp_path / "kraft", "docker-compose.kraft.yml")
    try:
        servers.up(["kafka"])
        assert set(servers.servers) == {"kafka", "elasticsearch"}
        command = [
            sys.executable,
            str(PROJECT / "sensor_generator.py"),
            "--count",
            "20",
            "--backfill",
            "1m",
        ]
        environ = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": servers.servers["kafka"].address}
        ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert "acknowledged=20" in ended.stderr
        servers.down()
        servers.up(["kafka"])  # formatted once, its data found again
    finally:
        servers.down(wipe=True)
