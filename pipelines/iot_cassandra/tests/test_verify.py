"""The verifier finds what is wrong: one that cannot fail proves nothing."""

import re
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from pipelines.iot_cassandra import kafka_topic
from pipelines.iot_cassandra.settings import rejects_topic
from pipelines.iot_cassandra.tests.conftest import Scene
from pipelines.iot_cassandra.tests.examples import reading
from pipelines.iot_cassandra.verify import WRONG


def test_the_verifier_finds_what_is_wrong_with_rows(scene: Scene) -> None:
    ledger = scene.folder / "sent.csv"
    scene.simulate("--count", "20", "--backfill", "1d", "--ledger", str(ledger))
    scene.send(b"nonsense")
    scene.write()
    assert scene.verify().holds
    said = scene.run("verify.py", "--ledger", str(ledger))
    assert re.search(rf"^messages in {scene.name} +21$", said, re.MULTILINE)
    with ledger.open("a") as file:
        file.write("0,20,other\n0,21,not there\n,,not acknowledged\n")
    said = scene.run("verify.py", "--ledger", str(ledger), code=1)
    assert re.search(r"^lost +2 +for example \(0, 20\), \(0, 21\)$", said, re.MULTILINE)

    keys = scene.rows("SELECT sensor_id, timestamp FROM KS.sensor_data LIMIT 4")
    where = f"{scene.name}.sensor_data WHERE sensor_id = %s AND timestamp = %s"
    update = f"UPDATE {where.replace(' WHERE', ' SET humidity = %s WHERE')}"  # noqa: S608
    columns = "(sensor_id, day, timestamp, temperature, humidity)"
    insert = f"INSERT INTO {scene.name}.sensor_data_by_day {columns} VALUES (%s, %s, %s, 1, 1)"  # noqa: S608
    for statement, values, wrong in (
        (f"DELETE FROM {where}", keys[0], {"missing": 1}),  # noqa: S608
        (update, (1, *keys[1]), {"missing": 1, "differing": 1}),
        (update, (None, *keys[2]), {"missing": 1, "differing": 2}),
        (insert, (keys[3][0], "2001-01-01", keys[3][1]),
         {"missing": 1, "differing": 2, "unexpected": 1}),
    ):  # fmt: skip
        scene.session.execute(statement, values)
        assert found_wrong(scene) == wrong
    assert re.search("^differing +2 ", scene.run("verify.py", code=1), re.MULTILINE)


def found_wrong(scene: Scene) -> dict[str, int]:
    """Return how many of each kind the verifier finds; it must not hold then."""
    verdict = scene.verify()
    found = {kind: len(getattr(verdict, kind)) for kind in WRONG if getattr(verdict, kind)}
    assert verdict.holds == (not found)
    return found


def test_the_verifier_finds_what_is_wrong_with_rejects(scene: Scene) -> None:
    scene.create_topic()
    scene.send(reading(), b"nonsense")
    scene.write()
    (reject,) = scene.rejects()
    to: dict[str, Any] = {"topic": rejects_topic(scene.name)}

    scene.send(reject.value, headers=reject.headers, **to)  # as a crash leaves it
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.rejected, verdict.twice) == (1, 1)

    wrong = {"strays": 1}
    scene.send(b"of somebody else", **to)
    assert found_wrong(scene) == wrong
    for name, value in (
        ("source.offset", b"9"),  # not there
        ("source.partition", b"1"),
        ("source.topic", b"another"),
        ("reason", b""),
    ):
        headers = {**dict(reject.headers), name: value}
        scene.send(reject.value, headers=list(headers.items()), **to)
        wrong["strays"] += 1
        assert found_wrong(scene) == wrong
    scene.send(b"Nonsense", headers=reject.headers, **to)
    assert found_wrong(scene) == wrong | {"altered": 1}
    headers = {**dict(reject.headers), "source.offset": b"0"}
    scene.send(reading(), headers=list(headers.items()), **to)
    assert found_wrong(scene) == wrong | {"altered": 1, "misjudged": 1}
    scene.send(b"nonsense that nobody has read")
    assert found_wrong(scene) == wrong | {"altered": 1, "misjudged": 1, "hidden": 1}
    said = scene.run("verify.py", code=1)
    assert re.search("^misjudged +1 +for example \\(0, 0\\)", said, re.MULTILINE)


def test_an_absent_or_empty_topic_proves_nothing(scene: Scene) -> None:
    said = scene.run("verify.py", code=1)
    assert f"nothing was compared: the topic {scene.name} is absent or empty" in said
    with scene.admin() as admin:
        assert scene.name not in admin.list_topics()  # looking for it has not made it
    scene.create_topic()
    scene.run("verify.py", code=1)


def test_what_kafka_has_deleted_unread_is_said(scene: Scene) -> None:
    scene.create_topic()
    scene.send(reading())
    scene.write()
    scene.send(*(reading(sensor_id=number) for number in (1, 2, 3)))
    with scene.admin() as admin:
        admin.delete_records({TopicPartition(scene.name, 0): 3})
    assert "offset 3 follows where 1 was expected: messages were deleted" in scene.write()
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.messages, verdict.forgotten, verdict.readings) == (1, 3, 1)


def test_the_verifier_does_not_go_on_after_what_is_deleted_while_it_reads(scene: Scene) -> None:
    scene.create_topic()
    scene.send(*(reading(sensor_id=number) for number in (1, 2, 3)))
    messages, _ = kafka_topic.read_topic(scene.kafka, scene.name)
    with scene.admin() as admin:
        admin.delete_records({TopicPartition(scene.name, 0): 2})
    with pytest.raises(OffsetOutOfRangeError):
        list(messages)


def test_the_verifier_does_not_wait_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_topic, "SILENCE_S", 1)
    scene.create_topic()
    scene.send(reading())
    messages, _ = kafka_topic.read_topic(scene.kafka, scene.name)
    with scene.paused("kafka"), pytest.raises(KafkaTimeoutError, match="nothing comes any more"):
        list(messages)
    assert scene.end() == 1  # Kafka is back
