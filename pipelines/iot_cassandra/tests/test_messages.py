"""Which messages become which rows, and what becomes of the others, on real servers."""

import struct

from kafka.admin import ConfigResource

from pipelines.iot_cassandra.settings import rejects_topic
from pipelines.iot_cassandra.tests.conftest import Scene
from pipelines.iot_cassandra.tests.examples import (
    IMPOSSIBLE_TIMES,
    INVALID,
    VALID,
    as_large_as_kafka_takes,
    reading,
)


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


def test_every_message_is_a_row_or_a_reject_with_its_reason(scene: Scene) -> None:
    scene.create_topic()
    sent = [*VALID, *INVALID]
    scene.send(*sent)
    said = scene.write()
    assert f"consumed={len(sent)} written={len(VALID)} rejected={len(INVALID)} in_fl" in said
    expected = {(*row[:2], as_float(row[2]), as_float(row[3])) for row in VALID.values()}
    assert len(expected) == len(VALID)
    assert stored(scene, "sensor_data") == stored(scene, "sensor_data_by_day") == expected
    rejects = scene.rejects()
    for offset, reject in enumerate(rejects, start=len(VALID)):
        headers = {name: value.decode() for name, value in reject.headers}
        assert reject.value == (sent[offset] or b"")
        assert INVALID[sent[offset]] in headers["reason"]
        assert headers["source.offset"] == str(offset)
        assert (headers["source.topic"], headers["source.partition"]) == (scene.name, "0")
    assert len(rejects) == len(INVALID)
    assert scene.committed() == len(sent)
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.readings, verdict.rejected) == (len(VALID), len(INVALID))


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


def test_an_impossible_kafka_time_is_a_reject(scene: Scene) -> None:
    scene.create_topic()
    nanoseconds = 1_768_456_800_123_000_000
    for number, time in enumerate((*IMPOSSIBLE_TIMES, nanoseconds)):
        scene.send(reading(sensor_id=number), at=time)
    scene.send(reading(sensor_id=8), at=253_402_300_799_999)
    scene.send(reading(sensor_id=9), at=0)
    assert "written=2 rejected=3" in scene.write()
    rejects = [dict(reject.headers) for reject in scene.rejects()]
    assert [reject["source.timestamp"] for reject in rejects][-1] == b"%d" % nanoseconds
    assert {b"is not in milliseconds since 1970" in reject["reason"] for reject in rejects} == {
        True
    }
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert (verdict.readings, verdict.rejected) == (2, 3)


def test_a_reject_larger_than_kafka_s_default_is_taken(scene: Scene) -> None:
    scene.create_topic()
    rejects_to = rejects_topic(scene.name)  # as Kafka makes one by itself: up to 1 MB
    scene.create_topic(rejects_to, {"retention.ms": "86400000"})
    large = as_large_as_kafka_takes()
    scene.send(large)
    assert "written=0 rejected=1" in scene.write()
    assert [reject.value for reject in scene.rejects()] == [large]
    assert scene.verify().holds
    with scene.admin() as admin:
        [answer] = admin.describe_configs([ConfigResource("topic", rejects_to)])
    settings = {entry[0]: entry[1] for entry in answer.resources[0][-1]}
    assert settings["retention.ms"] == "86400000"  # what else was set has stayed
