"""What is wrong with a lot, or a message, rejects it whole and stops nothing: on real servers."""

import json
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

from pipelines.acid_waters.kafka import kafka_producer, lots
from pipelines.acid_waters.kafka.topic import make_topic
from pipelines.acid_waters.postgresql import history
from pipelines.acid_waters.settings import SAMPLE
from pipelines.acid_waters.spark import spark_consumer
from pipelines.acid_waters.spark.offsets import LossError
from pipelines.acid_waters.tests.conftest import DATA, Scene, batch
from pipelines.tests.other_producers import send_with_each_codec
from stack.lifecycle import Stack

SOURCE = "LTM_Data_sample.xlsx"
FAULTS = {  # lot -> kind and how its reason begins; "duplicate": the second one
    1: ("short", "short: 49 rows, 50 declared"),
    2: ("long", "long: 51 rows, 50 declared"),
    3: ("checksum", "checksum is not that of the content"),
    4: ("site", "row 1: unknown site: SITE_ID 'NOWHERE'"),
    5: ("number", "row 1: ANC_UEQ_L 'n/a' is not a number"),
    6: ("date", "row 1: DATE_SMP '2019-02-30' is not a possible date"),
    7: ("duplicate", "duplicate id: it is in the data set already"),
    8: ("range", "row 1: PH_LAB '41' is not within 0 to 14"),
    9: ("column", "row 1: not the 30 columns of a sample"),
    10: ("json", "row 1: not a JSON object"),
}
# A time of Kafka's is any number of milliseconds: the years 1, 10 000 and 294 247 here.
MAD_TIMES = (-62_135_596_800_000, 253_402_300_800_000, 9_223_372_036_854_775)
NEVER_MS = 2**63 - 1  # the year 292 278 994: more microseconds than Spark can count


def test_faulty_lots_are_rejected_whole_and_stop_nothing(scene: Scene) -> None:
    scene.load_reference()
    assert {kind for kind, _ in FAULTS.values()} == set(lots.FAULTS)
    halves = ("--lot-size", "50")  # 16 lots, of which the last one has 10 rows
    scene.send(*halves, *(f"--fault={kind}={lot}" for lot, (kind, _) in FAULTS.items()))
    assert scene.consume() == 0
    consumer = KafkaConsumer(bootstrap_servers=scene.environ["KAFKA_BOOTSTRAP_SERVERS"])
    with closing(consumer):
        assert consumer.partitions_for_topic(scene.topic) == {0, 1, 2}
    refused = {e.batch_id: e for e in scene.events() if e.state == "rejected"}
    assert set(refused) == {batch(lot) for lot in FAULTS}
    for lot, (_, reason) in FAULTS.items():
        assert refused[batch(lot)].reason.startswith(reason)
        assert refused[batch(lot)].version is None
    assert scene.current() == 7  # lots 7 and 11 to 16
    assert scene.verify().rows == 310

    scene.send(*halves, "--count", "10")  # what was refused may come again, and be right
    assert scene.consume() == 0
    verdict = scene.verify(*DATA)
    # Refused: the faults, and lot 7 that comes a third time.
    assert (verdict.integrated, verdict.rejected, verdict.rows) == (16, 11, 760)


def test_what_was_sent_twice_is_there_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.load_reference()
    scene.send()
    scene.send("--fault", "number=3")
    scene.consume("--once", "--batch", "5")
    scene.consume()
    verdict = scene.verify(*DATA)
    assert (verdict.messages, verdict.integrated, verdict.rejected) == (16, 8, 8)
    archived = scene.folders("raw")
    caplog.set_level("INFO")
    assert scene.consume() == 0  # there is nothing new
    assert scene.folders("raw") == archived
    assert "consuming topic" in caplog.text
    assert "published" not in caplog.text


def test_the_same_rows_in_lots_of_another_size_are_there_once(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "2")
    scene.consume()
    scene.send("--lot-size", "50")  # 1 to 4 have the rows of the two lots; 3 to 4 ids of their own
    assert scene.consume() == 0
    reasons = {e.batch_id: e.reason for e in scene.events() if e.state == "rejected"}
    there = f"of {SOURCE} are in the data set already"
    assert reasons == {
        batch(1): "duplicate id: it is in the data set already",
        batch(2): f"duplicate rows: 51 to 100 {there}, in {batch(1)}",
        batch(3): f"duplicate rows: 101 to 150 {there}, in {batch(2)}",
        batch(4): f"duplicate rows: 151 to 200 {there}, in {batch(2)}",
    }
    assert scene.verify(*DATA).rows == 760
    with scene.connect() as conn:
        history.isolate(conn, batch(2), "cut anew")
        # The last row that a header can name: what follows it cannot be named.
        conn.execute("UPDATE lots SET first_row = 2147483647 WHERE batch_id = %s", [batch(1)])
    scene.send("--lot-size", "50", "--first", "3", "--count", "2")
    scene.consume()
    assert scene.verify(*DATA).rows == 760
    assert scene.consume("--reprocess", batch(2)) == 1
    assert scene.events()[-1].reason == f"duplicate rows: 101 to 150 {there}, in {batch(3)}"


def test_what_kafka_refuses_is_said(scene: Scene, tmp_path: Path) -> None:
    header, *rows = (SAMPLE / "LTM_Data_sample.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "LTM_Data_long.csv").write_bytes(b"".join([header, *rows * 5]))
    sent = scene.run("kafka/kafka_producer.py", "--data", str(tmp_path), "--lot-size", "3800")
    assert sent.returncode == 2
    assert "a lot is too large, choose a smaller --lot-size: " in sent.stderr
    assert "Traceback" not in sent.stderr
    with pytest.raises(KafkaError, match=r"^KafkaError: Topic .* collides with existing topics: "):
        make_topic(scene.environ["KAFKA_BOOTSTRAP_SERVERS"], scene.topic.replace("_", "."), 5)


def lot_with(**changes: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return the first lot as a message, its first row changed, under an id of its own."""
    config = kafka_producer.load_config(["--data", str(SAMPLE), "--count", "1"], {})
    (lot,) = kafka_producer.lots_to_send(config)
    rows = [json.loads(line) for line in lot.value.splitlines()]
    value = lots.encode(lots.change_first_row(**changes)(rows))
    checksum = lots.checksum(value)
    changed = replace(lot, batch_id="x", source_file="f.csv", value=value, checksum=checksum)
    return value, changed.headers()


def test_whatever_is_in_a_message_stops_nothing(scene: Scene) -> None:
    scene.load_reference()
    scene.make_plain_topic()
    scene.send("--count", "1")
    good = [("batch_id", b"x"), ("size", b"1"), ("sequence", b"1"), ("first_row", b"1"),
            ("checksum", b"0"), ("source_file", b"f.csv")]  # fmt: skip
    scene.send_raw(
        (None, []),
        (b"", good),
        (b"\x00\xff\xfe", [("batch_id", b"\x00'; DROP TABLE lots"), ("size", b"many")]),
        (b'{"SITE_ID": "\\u0000 \\ud800"}\n', good),
        (b'{"SITE_ID": {"a": [1, 2]}}\n[]\nnull\n1\n', [*good, ("size", b"4"), ("size", b"5")]),
        (b"[" * 100_000, good),
        (b"a\n" * 20_000, [("batch_id", b"../../x"), ("size", b"99999999999999999999")]),
        # What PostgreSQL takes in no text, and what it takes in no index.
        lot_with(WATERBODY_TYPE="Lake\0"),
        lot_with(WATERBODY_TYPE="".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))),
    )
    for milliseconds in MAD_TIMES:
        scene.send_raw((b"", good), timestamp_ms=milliseconds)
    packed = [b"%d" % number * 1000 for number in range(10)]
    send_with_each_codec(scene.environ["KAFKA_BOOTSTRAP_SERVERS"], scene.topic, packed)
    scene.send("--first", "2")
    assert scene.consume() == 0
    verdict = scene.verify(*DATA)
    assert (verdict.integrated, verdict.rejected) == (8, 9 + len(MAD_TIMES) + len(packed))
    assert scene.query("SELECT count(*) FROM rejects") == [(verdict.rejected,)]
    reasons = [e.reason for e in scene.events() if e.state == "rejected"]
    assert all(0 < len(reason) <= 500 and reason.isprintable() for reason in reasons)


def test_kafka_refuses_a_time_that_spark_cannot_read(scene: Scene) -> None:
    scene.send("--count", "1")
    for milliseconds in (NEVER_MS, -NEVER_MS, *MAD_TIMES):
        with pytest.raises(KafkaError, match=r"(?i)timestamp"):
            scene.send_raw((b"", []), timestamp_ms=milliseconds)


def test_what_a_transaction_has_taken_back_is_no_lot(scene: Scene) -> None:
    scene.load_reference()
    scene.send("--count", "2")
    producer = KafkaProducer(
        bootstrap_servers=scene.environ["KAFKA_BOOTSTRAP_SERVERS"], transactional_id=scene.topic
    )
    with closing(producer):
        producer.init_transactions()
        producer.begin_transaction()
        for _ in range(2):
            value, headers = lot_with()
            producer.send(scene.topic, value, headers=headers)
        producer.flush()
        producer.abort_transaction()
    assert scene.consume() == 0
    verdict = scene.verify()
    assert (verdict.messages, verdict.integrated, verdict.rejected) == (2, 2, 0)
    scene.delete_messages(0, 1, 2)  # these, what was taken back, and the transaction's marker
    verdict = scene.verify()
    assert (verdict.messages, verdict.integrated, verdict.forgotten) == (0, 2, 2)
    scene.send("--first", "3")
    assert scene.consume() == 0  # it goes on after them
    assert scene.verify(*DATA).integrated == 8
    scene.send("--first", "8")
    scene.delete_messages(0, 1, 2)  # among them one that was not read
    ((partition, offset),) = scene.compare().deleted_unread
    next_offset = "SELECT next_offset FROM next_offsets WHERE partition = %s"
    assert scene.query(next_offset, partition) == [(offset,)]


def test_lots_that_spark_cannot_read_are_named_and_end_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene.load_reference()
    scene.make_plain_topic()
    scene.send_raw((b"", []))
    scene.consume()
    scene.send_raw((b"", []), timestamp_ms=NEVER_MS)
    monkeypatch.setattr(spark_consumer, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(spark_consumer, "SAME_FAILURES", 3)
    config = spark_consumer.load_config(["--wait", "30"], scene.environ)
    stop = threading.Event()
    work = partial(spark_consumer.work_once, config, scene.spark, stop)
    assert spark_consumer.patiently(config.wait, stop, work) == 1
    where = json.dumps({scene.topic: {"0": 1, "1": 0, "2": 0}})
    assert f"given up: all servers answer, and the lots from {where} on" in caplog.text
    assert "failed 3 times: java.lang.ArithmeticException: long overflow" in caplog.text


def test_what_cannot_be_decoded_is_said_and_ends_it(scene: Scene, stack: Stack) -> None:
    """A byte of a message changes on the broker's disk: its checksum is wrong, whoever reads it."""
    scene.load_reference()
    scene.send("--count", "1")
    ((log_file, content),) = [
        (file, file.read_bytes())
        for file in stack.state.glob(f"volumes/kafka_data/{scene.topic}-*/*.log")
        if file.stat().st_size
    ]
    with log_file.open("r+b") as log:
        log.seek(len(content) - 100)
        log.write(bytes([content[-100] ^ 1]))
    with pytest.raises(LossError, match="cannot be decoded: "):
        scene.consume()
    assert scene.current() == 0
    verified = scene.run("verify.py")
    assert (verified.returncode, len(verified.stderr.splitlines())) == (1, 1), verified.stderr
