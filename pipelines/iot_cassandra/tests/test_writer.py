"""The writer on real servers: codecs, transactions, the document's own table, signals."""

import os
import re
import signal
from contextlib import closing

from kafka import KafkaProducer

from pipelines.iot_cassandra.tests.conftest import Scene
from pipelines.iot_cassandra.tests.examples import reading
from pipelines.tests.other_producers import CODECS, send_in_transactions, send_with_each_codec
from pipelines.tests.waiting import wait_until


def test_every_codec_is_read_and_nothing_that_a_transaction_took_back(scene: Scene) -> None:
    scene.create_topic()
    padded = [reading(sensor_id=number) + b" " * 1000 for number in range(2 * len(CODECS))]
    send_with_each_codec(scene.kafka, scene.name, padded)
    taken_back = [reading(sensor_id=404), b"nonsense"]
    send_in_transactions(scene.kafka, scene.name, taken_back, [reading(sensor_id=20)])
    assert "consumed=11 written=11 rejected=0" in scene.write()
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert verdict.readings == 11
    assert scene.rows("SELECT * FROM KS.sensor_data WHERE sensor_id = 404") == []


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
    with closing(KafkaProducer(bootstrap_servers=scene.kafka, compression_type="zstd")) as producer:
        # What does not become smaller would be sent as it is.
        producer.send(scene.name, reading(sensor_id=2) + b" " * 1000)
    said = scene.run("-c", WITHOUT_ZSTD.format("writer"), code=1)
    assert "ERROR kafka_to_cassandra: messages cannot be read: UnsupportedCodecError: " in said
    assert "; partition: next offset {0: 2}" in said
    assert "stopped consumed=2 written=1 rejected=1 in_flight=0" in said
    assert scene.committed() == 2
    said = scene.run("-c", WITHOUT_ZSTD.format("verify"), code=1)
    assert said.startswith("verify: cannot compare: UnsupportedCodecError: ")
    assert "consumed=1 written=1" in scene.write()  # where the library is installed it goes on
    assert scene.verify().holds


def test_a_batch_that_the_disk_has_changed_is_said_and_ends_the_writer(scene: Scene) -> None:
    scene.create_topic()
    scene.send(reading(sensor_id=1))
    scene.send(reading(sensor_id=2, temperature=12.5))
    service = scene.stack.services["kafka"]
    folder = scene.stack.site.volume(service, "/var/lib/kafka/data") / f"{scene.name}-0"
    (segment,) = folder.glob("*.log")
    with segment.open("r+b") as file:
        at = file.read().index(b"12.5")
        os.pwrite(file.fileno(), b"99.5", at)  # its checksum is now wrong
    said = scene.run("scripts/kafka_to_cassandra.py", code=1)  # without --once: it ends by itself
    assert re.search(
        "ERROR kafka_to_cassandra: messages cannot be read: .* failed crc check;", said
    )
    assert "stopped consumed=1 written=1 rejected=0 in_flight=0" in said
    assert scene.committed() == 1
    assert re.search(
        "^verify: cannot compare: .* failed crc check$", scene.run("verify.py", code=1)
    )


NEVER_RETURNS = """
from pipelines.iot_cassandra.scripts import kafka_to_cassandra, writer
def spin(self):
    writer.log.info("spinning")
    while True:
        pass
writer.Writer.poll, kafka_to_cassandra.STOP_S = spin, 1.0
raise SystemExit(kafka_to_cassandra.main())
"""


def test_a_signal_is_obeyed_also_when_a_library_never_returns(scene: Scene) -> None:
    scene.create_topic()
    for signum in (signal.SIGTERM, signal.SIGINT):
        process = scene.start("-c", NEVER_RETURNS)
        wait_until(lambda p=process: "spinning" in scene.log(p), "it spins")  # type: ignore[misc]
        process.send_signal(signum)
        assert process.wait(timeout=60) == 1
        assert "ended by force: what is not committed is read again" in scene.log(process)


BY_HAND = """
CREATE KEYSPACE {0} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}};
CREATE TABLE {0}.sensor_data (sensor_id INT, timestamp TIMESTAMP, temperature FLOAT,
  humidity FLOAT, PRIMARY KEY (sensor_id, timestamp));
"""


def test_the_document_s_own_table_is_enough(scene: Scene) -> None:
    """Made by hand as the document prints it; prepare.py adds the others later."""
    assert f"topic={scene.name} created at" in scene.run("prepare.py", "--partitions", "3")
    scene.session.execute(f"DROP KEYSPACE {scene.name}", timeout=60)
    for statement in BY_HAND.format(scene.name).split(";")[:-1]:
        scene.session.execute(statement, timeout=60)
    scene.simulate("--count", "20", "--rate", "100")
    said = scene.write()
    assert f"group={scene.name} into sensor_data of keyspace={scene.name} at" in said
    assert "sensor_data_by_day is not there: prepare.py creates it" in said
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert verdict.rows == {"sensor_data": 20}
    said = scene.run("prepare.py")
    assert f"topic={scene.name} is there at {scene.kafka}" in said
    assert "4 statements of schema.cql applied" in said
    assert scene.verify().rows == {"sensor_data": 20, "sensor_data_by_day": 0}
    assert not scene.verify().holds
    scene.write("--group-id", f"{scene.name}_again")
    assert scene.verify().holds


def test_the_tables_are_compacted_and_forget_as_the_readme_says(scene: Scene) -> None:
    query = (
        "SELECT compaction, default_time_to_live FROM system_schema.tables "
        "WHERE keyspace_name = 'KS' AND table_name = '{}'"
    )
    ((compaction, ttl_s),) = scene.rows(query.format("sensor_data"))
    assert compaction["class"].endswith(".SizeTieredCompactionStrategy")
    assert ttl_s == 0
    ((compaction, ttl_s),) = scene.rows(query.format("sensor_data_by_day"))
    assert compaction["class"].endswith(".TimeWindowCompactionStrategy")
    assert compaction["compaction_window_unit"] == "DAYS"
    assert ttl_s == 30 * int(compaction["compaction_window_size"]) * 86_400  # 30 windows


def test_sigterm_and_ctrl_c_stop_cleanly(scene: Scene) -> None:
    scene.simulate("--count", "3", "--backfill", "1d")
    for signum in (signal.SIGTERM, signal.SIGINT):
        writer = scene.start_writer()
        wait_until(lambda w=writer: "assigned" in scene.log(w), "its partitions")  # type: ignore[misc]
        writer.send_signal(signum)
        assert writer.wait(timeout=60) == 0
        assert "stopped consumed=" in scene.log(writer)
        assert "Traceback" not in scene.log(writer)
