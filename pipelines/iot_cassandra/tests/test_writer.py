"""The writer on real servers: which messages become which rows, and what becomes of the others."""

import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource
from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from pipelines.iot_cassandra import verify
from pipelines.iot_cassandra.tests.conftest import HERE, PROJECT, Scene, wait_until
from stack.servers import free_port


def reading(**fields: Any) -> bytes:
    """Return a message with some fields changed; None leaves one out."""
    whole = {
        "sensor_id": 7,
        "timestamp": "2026-01-15T06:00:00.123Z",
        "temperature": -4.25,
        "humidity": 81.5,
    }
    return json.dumps({n: v for n, v in {**whole, **fields}.items() if v is not None}).encode()


# Message -> the row it becomes: sensor, epoch ms, temperature, humidity.
VALID: dict[bytes, tuple[int, int, float, float]] = {
    reading(): (7, 1_768_456_800_123, -4.25, 81.5),
    reading(sensor_id=-(2**31)): (-(2**31), 1_768_456_800_123, -4.25, 81.5),
    reading(sensor_id=2**31 - 1): (2**31 - 1, 1_768_456_800_123, -4.25, 81.5),
    reading(timestamp="2026-01-15T06:00:00.124Z"): (7, 1_768_456_800_124, -4.25, 81.5),
    reading(timestamp="2026-01-15T06:00:00.1259Z"): (7, 1_768_456_800_125, -4.25, 81.5),
    reading(timestamp="2026-01-15T07:00:00.126+01:00"): (7, 1_768_456_800_126, -4.25, 81.5),
    reading(timestamp="2026-01-14T23:59:59.999-00:00"): (7, 1_768_435_199_999, -4.25, 81.5),
    reading(timestamp="2026-01-15T00:00:00Z"): (7, 1_768_435_200_000, -4.25, 81.5),
    reading(timestamp="1969-12-31T23:59:59.999Z"): (7, -1, -4.25, 81.5),
    reading(timestamp="1900-01-01T18:00:00.000+18:00"): (7, -2_208_988_800_000, -4.25, 81.5),
    reading(timestamp="2026-01-15T06:00:00-18:00"): (7, 1_768_521_600_000, -4.25, 81.5),
    reading(timestamp="2026-01-15T06:00:01Z")
    .replace(b'"s', b'"\\u0073')
    .replace(b", ", b"\t,\n"): (
        7,
        1_768_456_801_000,
        -4.25,
        81.5,
    ),
    b"\r\n " + reading(timestamp="2026-01-15T06:00:02Z") + b"\n": (
        7,
        1_768_456_802_000,
        -4.25,
        81.5,
    ),
    reading(sensor_id=11, temperature=1e-300): (11, 1_768_456_800_123, 0.0, 81.5),
    reading(timestamp="9999-12-31T23:59:59.999Z"): (7, 253_402_300_799_999, -4.25, 81.5),
    reading(sensor_id=8, temperature=-40): (8, 1_768_456_800_123, -40.0, 81.5),
    reading(sensor_id=9, temperature=-0.01): (9, 1_768_456_800_123, -0.01, 81.5),
    reading(sensor_id=10, humidity=0): (10, 1_768_456_800_123, -4.25, 0.0),
}
# Message -> a part of the reason why it is refused.
INVALID: dict[bytes | None, str] = {
    reading(temperature=math.nan): "NaN is not a number",
    reading(humidity=math.inf): "Infinity is not a number",
    reading(temperature=-math.inf): "-Infinity is not a number",
    reading(sensor_id=2**31): "Expected `int` <= 2147483647 - at `$.sensor_id`",
    reading(sensor_id=-(2**31) - 1): "Expected `int` >= -2147483648 - at `$.sensor_id`",
    reading(sensor_id=2**70): "$.sensor_id",
    reading(sensor_id=1.5): "Expected `int`, got `float` - at `$.sensor_id`",
    reading(sensor_id=True): "Expected `int`, got `bool` - at `$.sensor_id`",
    reading(sensor_id="7"): "Expected `int`, got `str` - at `$.sensor_id`",
    reading(temperature="21.5"): "Expected `float`, got `str` - at `$.temperature`",
    reading(temperature=80.1): "Expected `float` <= 80.0 - at `$.temperature`",
    reading(humidity=-0.1): "Expected `float` >= 0.0 - at `$.humidity`",
    reading(humidity=None): "Object missing required field `humidity`",
    reading(colour="red"): "Object contains unknown field `colour`",
    reading(timestamp="2026-01-15T06:00:00"): "timestamp is not an ISO 8601 time with its offset",
    reading(timestamp="2026-02-30T06:00:00Z"): "timestamp: day is out of range for month",
    reading(timestamp="0001-01-01T00:00:00+01:00"): "timestamp: date value out of range",
    reading(timestamp="1899-12-31T23:59:59.999Z"): "timestamp is before 1900",
    reading(timestamp="1900-01-01T00:00:00+01:00"): "timestamp is before 1900",
    reading(timestamp="1500-01-15T06:00:00Z"): "timestamp is before 1900",
    reading(timestamp="9999-12-31T23:59:59-01:00"): "timestamp: date value out of range",
    reading(timestamp="2026-01-15T24:00:00Z"): "timestamp: hour must be in 0..23",
    reading(timestamp="2026-01-15T06:00:60Z"): "timestamp: second must be in 0..59",
    reading(timestamp="2026-01-15T06:00:00+18:01"): "timestamp is not an ISO 8601 time",
    reading(timestamp="2026-01-15T06:00:00-23:00"): "timestamp is not an ISO 8601 time",
    reading(timestamp="2026-01-15T06:00:00+01:60"): "timestamp is not an ISO 8601 time",
    reading(timestamp="2026-01-15T06:00:00Z\n"): "timestamp is not an ISO 8601 time",
    reading(timestamp=" 2026-01-15T06:00:00Z"): "timestamp is not an ISO 8601 time",
    reading().replace(b'"', b"'"): "JSON is malformed",
    reading() + b" and more": "JSON is malformed: trailing characters",
    reading() + reading(sensor_id=8): "JSON is malformed: trailing characters",
    b"\xef\xbb\xbf" + reading(): "JSON is malformed: invalid character",
    b"// " + reading(): "JSON is malformed",
    reading()[:-1] + b",}": "JSON is malformed",
    reading(sensor_id=7.0): "Expected `int`, got `float` - at `$.sensor_id`",
    reading(temperature=1).replace(b" 1,", b" +1,"): "JSON is malformed",
    reading(temperature=1).replace(b" 1,", b" 1e400,"): "Number out of range",
    reading(temperature=1).replace(b" 1,", b" null,"): "Expected `float`, got `null`",
    reading(temperature={}): "Expected `float`, got `object`",
    reading(timestamp=1_768_456_800_123): "Expected `str`, got `int` - at `$.timestamp`",
    reading()[:-1] + b', "humidity": 3}': "a field is given twice",
    reading()[:40]: "Input data was truncated",
    b"[1, 2]": "Expected `object`, got `array`",
    b"21.5;80": "Expected `object`, got `float`",
    b"[" * 100_000: "invalid: ",
    b"\xff\xfe": "invalid: ",
    b"": "empty message",
    None: "empty message",
}


def stored(scene: Scene, table: str) -> set[tuple[int, int, float, float]]:
    return {
        tuple(row)
        for row in scene.rows(
            f"SELECT sensor_id, to_unix_timestamp(timestamp), temperature, humidity FROM KS.{table}"  # noqa: S608
        )
    }


def as_float(number: float) -> float:
    """Return the 32-bit float that is nearest."""
    return float(struct.unpack(">f", struct.pack(">f", number))[0])


def test_every_message_is_a_row_or_a_dead_letter_with_its_reason(scene: Scene) -> None:
    scene.create_topic()
    sent = [*VALID, *INVALID]
    scene.send(*sent)
    said = scene.write()
    assert f"consumed={len(sent)} written={len(VALID)} dead_lettered={len(INVALID)} in_fl" in said
    expected = {(*row[:2], as_float(row[2]), as_float(row[3])) for row in VALID.values()}
    assert len(expected) == len(VALID)
    assert stored(scene, "sensor_data") == stored(scene, "sensor_data_by_day") == expected
    letters = scene.dead_letters()
    for offset, letter in enumerate(letters, start=len(VALID)):
        headers = {name: value.decode() for name, value in letter.headers}
        assert letter.value == (sent[offset] or b"")
        assert INVALID[sent[offset]] in headers["reason"]
        assert headers["source.offset"] == str(offset)
        assert (headers["source.topic"], headers["source.partition"]) == (scene.name, "0")
    assert len(letters) == len(INVALID)
    assert scene.committed() == len(sent)
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.readings, verdict.dead_lettered) == (len(VALID), len(INVALID))


def test_rows_lie_in_their_day_newest_first(scene: Scene) -> None:
    scene.create_topic()
    times = ("2026-01-14T23:59:59.999Z", "2026-01-15T00:00:00.000Z", "2026-01-15T12:00:00.000Z")
    scene.send(*(reading(timestamp=time) for time in times))
    scene.write()
    found = scene.rows(
        "SELECT to_unix_timestamp(timestamp) FROM KS.sensor_data_by_day "
        "WHERE sensor_id = 7 AND day = '2026-01-15'"
    )
    assert found == [(1_768_478_400_000,), (1_768_435_200_000,)]
    partitions = scene.rows("SELECT DISTINCT sensor_id, day FROM KS.sensor_data_by_day")
    assert len(partitions) == 2
    ttl = scene.rows("SELECT TTL(temperature) FROM KS.sensor_data_by_day LIMIT 1")[0][0]
    assert 0 < ttl <= 90 * 86_400


def test_a_later_value_stays_also_when_all_is_read_again(scene: Scene) -> None:
    scene.create_topic()
    scene.send(reading(temperature=1), reading(temperature=3))
    scene.write()
    scene.send(reading(temperature=2), reading(temperature=2))
    scene.write()
    again = ("--group-id", scene.name + "_again")
    scene.write(*again)
    assert [row[2] for row in stored(scene, "sensor_data")] == [2.0]
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.readings, verdict.replaced, verdict.repeated) == (1, 2, 1)


def test_within_a_millisecond_of_kafka_the_offset_modulo_1000_decides(scene: Scene) -> None:
    """999 wins over 1000; and a later offset with an earlier time loses."""
    scene.create_topic()
    scene.send(*(reading(sensor_id=number) for number in range(1000, 1999)))
    at = 1_768_456_800_123
    scene.send(reading(temperature=1), reading(temperature=2), at=at)  # offsets 999 and 1000
    scene.send(reading(temperature=3), at=at - 1)
    scene.write()
    assert scene.rows("SELECT temperature FROM KS.sensor_data WHERE sensor_id = 7") == [(1.0,)]
    assert scene.end() == 1002
    verdict = scene.verify()
    assert verdict.holds, verdict
    scene.send(reading(temperature=4), at=at + 1)
    scene.write()
    assert scene.rows("SELECT temperature FROM KS.sensor_data WHERE sensor_id = 7") == [(4.0,)]
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.readings, verdict.replaced) == (1000, 3)


IMPOSSIBLE_TIMES = (253_402_300_800_000, 1_768_456_800_123_000)  # the year 10000; microseconds


def test_an_impossible_kafka_time_is_a_dead_letter(scene: Scene) -> None:
    scene.create_topic()
    nanoseconds = 1_768_456_800_123_000_000
    for number, time in enumerate((*IMPOSSIBLE_TIMES, nanoseconds)):
        scene.send(reading(sensor_id=number), at=time)
    scene.send(reading(sensor_id=8), at=253_402_300_799_999)
    scene.send(reading(sensor_id=9), at=0)
    assert "written=2 dead_lettered=3" in scene.write()
    letters = [dict(letter.headers) for letter in scene.dead_letters()]
    assert [letter["source.timestamp"] for letter in letters][-1] == b"%d" % nanoseconds
    assert {b"is not in milliseconds since 1970" in letter["reason"] for letter in letters} == {
        True
    }
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.readings, verdict.dead_lettered) == (2, 3)


def as_large_as_kafka_takes() -> bytes:
    """Return a message that is too large for Kafka's default limit with a dead letter's headers."""
    return os.urandom(1_048_450)


def test_a_dead_letter_larger_than_kafka_s_default_is_taken(scene: Scene) -> None:
    scene.create_topic()
    letters_to = f"{scene.name}.dead-letter"  # as Kafka makes one by itself: up to 1 MB
    scene.create_topic(letters_to, {"retention.ms": "86400000"})
    large = as_large_as_kafka_takes()
    scene.send(large)
    assert "written=0 dead_lettered=1" in scene.write()
    assert [letter.value for letter in scene.dead_letters()] == [large]
    assert scene.verify().holds
    with scene.admin() as admin:
        [answer] = admin.describe_configs([ConfigResource("topic", letters_to)])
    settings = {entry[0]: entry[1] for entry in answer.resources[0][-1]}
    assert settings["retention.ms"] == "86400000"  # what else was set has stayed


def send_compressed(scene: Scene, codec: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=scene.kafka, compression_type=codec)
    with closing(producer):  # what does not become smaller would be sent as it is
        producer.send(scene.name, value + b" " * 1000).get(timeout=30)


def test_every_codec_of_kafka_s_is_read(scene: Scene) -> None:
    scene.create_topic()
    for number, codec in enumerate(("gzip", "snappy", "lz4", "zstd")):
        send_compressed(scene, codec, reading(sensor_id=number))
    assert "consumed=4 written=4" in scene.write()
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert verdict.readings == 4


WITHOUT_ZSTD = """
import sys
sys.modules["zstandard"] = None  # as if it was not installed
from pipelines.iot_cassandra import verify
from pipelines.iot_cassandra.scripts import kafka_to_cassandra as writer
raise SystemExit({}.main())
"""


def test_what_cannot_be_decoded_is_said_and_ends_the_writer(scene: Scene) -> None:
    scene.create_topic()
    scene.send(reading(sensor_id=1), b"nonsense")
    send_compressed(scene, "zstd", reading(sensor_id=2))
    said = scene.run("-c", WITHOUT_ZSTD.format("writer"), code=1)
    assert "ERROR kafka_to_cassandra: messages cannot be read: UnsupportedCodecError: " in said
    assert "; partition: next offset {0: 2}" in said
    assert "stopped consumed=2 written=1 dead_lettered=1 in_flight=0" in said
    assert scene.committed() == 2
    said = scene.run("-c", WITHOUT_ZSTD.format("verify"), code=1)
    assert said.startswith("verify: cannot compare: UnsupportedCodecError: ")
    assert "consumed=1 written=1" in scene.write()  # where the library is installed it goes on
    assert scene.verify().holds


def test_many_readings_are_exactly_as_many_rows(scene: Scene) -> None:
    scene.simulate("--count", "5000", "--at-once", "--bad", "0.02", "--partitions", "3")
    scene.write("--batch", "128")
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert verdict.messages == 5000 == verdict.readings + verdict.dead_lettered
    assert verdict.rows == {"sensor_data": verdict.readings, "sensor_data_by_day": verdict.readings}
    assert 50 < verdict.dead_lettered < 200


def test_the_schema_is_applied_twice_without_a_change(scene: Scene) -> None:
    scene.create_topic()
    scene.send(reading())
    scene.write()
    said = scene.run("scripts/apply_schema.py")
    assert "4 statements of schema.cql applied" in said
    assert len(stored(scene, "sensor_data")) == 1


def test_the_tables_are_compacted_and_forget_as_the_readme_says(scene: Scene) -> None:
    tables = {
        name: (compaction, ttl_s)
        for name, compaction, ttl_s in scene.rows(
            "SELECT table_name, compaction, default_time_to_live FROM system_schema.tables "
            "WHERE keyspace_name = 'KS'"
        )
    }
    compaction, ttl_s = tables["sensor_data"]
    assert compaction["class"].endswith(".SizeTieredCompactionStrategy")
    assert ttl_s == 0
    compaction, ttl_s = tables["sensor_data_by_day"]
    assert compaction["class"].endswith(".TimeWindowCompactionStrategy")
    assert compaction["compaction_window_unit"] == "DAYS"
    assert ttl_s == 30 * int(compaction["compaction_window_size"]) * 86_400  # 30 windows


def test_told_to_stop_at_once_it_has_read_all(scene: Scene) -> None:
    scene.create_topic()
    scene.send(reading(sensor_id=1), reading(sensor_id=2), b"nonsense")
    said = scene.run("scripts/kafka_to_cassandra.py", "--exit-when-idle", "0")
    assert "consumed=3 written=2 dead_lettered=1 in_flight=0" in said
    assert scene.committed() == 3


def test_sigterm_and_ctrl_c_stop_cleanly(scene: Scene) -> None:
    scene.simulate("--count", "3", "--at-once")
    for signum in (signal.SIGTERM, signal.SIGINT):
        writer = scene.start_writer()
        wait_until(lambda w=writer: "assigned" in scene.log(w), "its partitions")  # type: ignore[misc]
        writer.send_signal(signum)
        assert writer.wait(timeout=60) == 0
        assert "stopped consumed=" in scene.log(writer)
        assert "Traceback" not in scene.log(writer)


def test_the_verifier_finds_what_is_wrong_with_rows(scene: Scene) -> None:
    """A verifier that cannot fail proves nothing."""
    scene.simulate("--count", "20", "--at-once")
    scene.send(b"nonsense")
    scene.write()
    assert scene.verify().holds
    said = scene.run("verify.py", "--expect", "21")
    assert re.search(rf"^messages in {scene.name} +21$", said, re.MULTILINE)
    assert "not as many" in scene.run("verify.py", "--expect", "22", code=1)

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
    kinds = ("missing", "differing", "unexpected", "hidden", "misjudged", "altered", "strays")
    found = {kind: len(getattr(verdict, kind)) for kind in kinds if getattr(verdict, kind)}
    assert verdict.holds == (not found)
    return found


def test_the_verifier_finds_what_is_wrong_with_dead_letters(scene: Scene) -> None:
    scene.create_topic()
    scene.send(reading(), b"nonsense")
    scene.write()
    (letter,) = scene.dead_letters()
    to: dict[str, Any] = {"topic": f"{scene.name}.dead-letter"}

    scene.send(letter.value, headers=letter.headers, **to)  # as a crash leaves it
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.dead_lettered, verdict.twice) == (1, 1)

    wrong = {"strays": 1}
    scene.send(b"of somebody else", **to)
    assert found_wrong(scene) == wrong
    for name, value in (
        ("source.offset", b"9"),  # not there
        ("source.partition", b"1"),
        ("source.topic", b"another"),
        ("reason", b""),
    ):
        headers = {**dict(letter.headers), name: value}
        scene.send(letter.value, headers=list(headers.items()), **to)
        wrong["strays"] += 1
        assert found_wrong(scene) == wrong
    scene.send(b"Nonsense", headers=letter.headers, **to)
    assert found_wrong(scene) == wrong | {"altered": 1}
    headers = {**dict(letter.headers), "source.offset": b"0"}
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
    scene.run("verify.py", "--expect", "0", code=1)


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
    messages, _ = verify.read_topic(scene.kafka, scene.name)
    with scene.admin() as admin:
        admin.delete_records({TopicPartition(scene.name, 0): 2})
    with pytest.raises(OffsetOutOfRangeError):
        list(messages)


def test_the_verifier_does_not_wait_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SILENCE_S", 1)
    scene.create_topic()
    scene.send(reading())
    messages, _ = verify.read_topic(scene.kafka, scene.name)
    with scene.paused("kafka"), pytest.raises(KafkaTimeoutError, match="nothing comes any more"):
        list(messages)
    assert scene.end() == 1  # Kafka is back


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("scripts/kafka_to_cassandra.py --hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        ("scripts/kafka_to_cassandra.py --hosts a:9042,b:99999", 2, "ports from 1 to 65535"),
        ("scripts/kafka_to_cassandra.py --keyspace No;", 2, "'No;' is not 1 to 48 of a-z"),
        ("scripts/kafka_to_cassandra.py --batch 0", 2, "0 is not at least 1"),
        ("scripts/kafka_to_cassandra.py --exit-when-idle soon", 2, "invalid number value: 'soon'"),
        (
            "scripts/kafka_to_cassandra.py --wait 0 --hosts {free}",
            1,
            "Cassandra at {free} does not",
        ),
        ("scripts/apply_schema.py --wait nan", 2, "nan is not at least 0"),
        ("scripts/apply_schema.py --hosts localhost:0", 2, "ports from 1 to 65535"),
        ("scripts/apply_schema.py --wait 0 --hosts {free}", 1, "Cassandra at {free} does not"),
        ("scripts/spark_cassandra.py batch --hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        ("scripts/spark_cassandra.py stream", 2, "stream needs --checkpoint"),
        ("verify.py --hosts nowhere", 2, "'nowhere' is not HOST:PORT"),
        ("verify.py --expect -1", 2, "-1 is not at least 0"),
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
    for script in ("verify.py", "scripts/apply_schema.py"):
        ended = subprocess.run(
            [sys.executable, str(HERE / script)], env={**os.environ, "CASSANDRA_HOSTS": "nowhere"},
            capture_output=True, text=True, cwd=PROJECT, check=False,
        )  # fmt: skip
        assert ended.returncode == 2
        assert "'nowhere' is not HOST:PORT" in ended.stderr.splitlines()[-1]


def test_a_keyspace_that_is_a_reserved_word_is_one_line(scene: Scene) -> None:
    for script, code, said in (
        ("scripts/apply_schema.py", 1, "ERROR apply_schema: <Error from server: "),
        ("scripts/kafka_to_cassandra.py", 2, ">: is table a reserved word of CQL?"),
        ("verify.py", 1, "verify: cannot compare: <Error from server: "),
    ):
        assert said in scene.run(script, "--keyspace", "table", code=code).splitlines()[-1]


def test_missing_tables_and_an_absent_kafka_are_one_line(scene: Scene) -> None:
    writer = "scripts/kafka_to_cassandra.py"
    said = scene.run(writer, "--keyspace", "not_there", code=2)
    assert "apply the schema (python pipelines/iot_cassandra/scripts/apply_schema.py)" in said
    said = scene.run(
        writer, "--wait", "0", "--bootstrap-servers", f"127.0.0.1:{free_port()}", code=1
    )
    assert re.search("Kafka at 127.0.0.1:[0-9]+ does not answer", said.splitlines()[-1])
