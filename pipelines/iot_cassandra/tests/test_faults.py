"""Real faults under load; afterwards N messages are N rows, counted by the verifier."""

import re
import signal

from pipelines.iot_cassandra.tests.conftest import Scene
from pipelines.tests.waiting import wait_until

READINGS = 8_000


def drained(scene: Scene, count: int) -> None:
    """Check that all that was sent is stored, once."""
    assert scene.end() == count
    wait_until(lambda: scene.committed() == count, f"{count} committed")
    verdict = scene.verify()
    assert verdict.holds, verdict
    assert verdict.messages == count == verdict.readings + verdict.rejected
    assert set(verdict.rows.values()) == {verdict.readings}
    for process in scene.started:
        assert "Traceback" not in scene.log(process)


def test_kill_9_of_the_writer(scene: Scene) -> None:
    scene.simulate("--count", str(READINGS), "--backfill", "1d", "--bad", "0.01")
    writer = scene.start_writer("--batch", "200")
    wait_until(lambda: scene.committed() > 0.2 * READINGS, "some committed")
    writer.kill()
    writer.wait()
    assert scene.committed() < READINGS
    writer = scene.start_writer()
    wait_until(lambda: "waiting for partitions" in scene.log(writer), "it says why it waits")
    drained(scene, READINGS)


def test_kill_9_of_cassandra_and_its_restart(scene: Scene) -> None:
    writer = scene.start_writer()
    simulator = scene.start("scripts/iot_simulator.py", "--count", "4000", "--rate", "400")
    wait_until(lambda: scene.committed() > 500, "some committed")
    scene.stack.stop("cassandra", signal.SIGKILL)
    wait_until(lambda: "Cassandra: " in scene.log(writer), "the writer notices")
    before = scene.committed()
    scene.stack.up(["cassandra"])
    assert simulator.wait(timeout=120) == 0
    assert before < 4000
    drained(scene, 4000)
    assert writer.poll() is None


def test_pause_of_cassandra_beyond_the_client_s_time_out(scene: Scene) -> None:
    scene.simulate("--count", str(READINGS), "--backfill", "1d", "--bad", "0.01")
    writer = scene.start_writer()
    wait_until(lambda: scene.committed() > 1000, "some committed")
    with scene.paused("cassandra"):
        wait_until(lambda: "OperationTimedOut" in scene.log(writer), "requests time out")
        paused_at = scene.committed()
        assert paused_at < READINGS
        second = scene.start_writer()
        wait_until(lambda: "waiting for Cassandra" in scene.log(second), "the second waits")
        # Told to stop meanwhile, the writer ends in bounded time and says what is open.
        writer.terminate()
        assert writer.wait(timeout=60) == 1
        assert "not acknowledged: " in scene.log(writer)
        assert scene.committed() == paused_at
    drained(scene, READINGS)
    assert second.poll() is None


def test_a_pause_of_kafka_is_no_end(scene: Scene) -> None:
    scene.simulate("--count", str(READINGS), "--backfill", "1d")
    writer = scene.start_writer("--once", "--batch", "100")
    wait_until(lambda: scene.committed() > 500, "some committed")
    with scene.paused("kafka"):
        said = ("offsets not committed yet", "rate_hz=0")
        wait_until(lambda: any(words in scene.log(writer) for words in said), "it misses Kafka")
        assert writer.poll() is None, scene.log(writer)
    assert writer.wait(timeout=120) == 0, scene.log(writer)
    drained(scene, READINGS)


# The simulator itself, only quicker to say how far it is, and to give up on Kafka.
QUICKER = """
from pipelines.iot_cassandra.scripts import iot_simulator, sender
sender.PROGRESS_S, sender.FLUSH_S = 1, 2
raise SystemExit(iot_simulator.main())
"""


def test_a_simulator_that_kafka_does_not_answer_says_what_is_not_acknowledged(scene: Scene) -> None:
    scene.create_topic()
    simulator = scene.start("-c", QUICKER, "--rate", "200")
    wait_until(lambda: scene.end() > 100, "some sent")
    with scene.paused("kafka"):
        wait_until(lambda: ahead(scene.log(simulator)), "some are not acknowledged")
        simulator.terminate()
        assert simulator.wait(timeout=60) == 1
    said = scene.log(simulator)
    assert re.search(r"ERROR iot_simulator: not acknowledged: [1-9]\d* messages$", said.strip())
    assert "Traceback" not in said


def ahead(log: str) -> bool:
    """Return whether the last progress line of a simulator has sent more than is acknowledged."""
    counts = re.findall(r"progress sent=(\d+) acknowledged=(\d+)", log)[-1:]
    return any(int(sent) > int(acknowledged) + 100 for sent, acknowledged in counts)


def test_too_few_copies_for_a_quorum(scene: Scene) -> None:
    """Three copies are asked for where there is one node: Cassandra answers "unavailable"."""
    # By the data centre's name: an ALTER with replication_factor leaves those it knows unchanged.
    ((centre,),) = scene.rows("SELECT data_center FROM system.local")
    alter = f"ALTER KEYSPACE {scene.name} WITH replication = "
    alter += f"{{'class': 'NetworkTopologyStrategy', '{centre}': %d}}"
    scene.session.execute(alter % 3)
    scene.simulate("--count", "1000", "--backfill", "1d", "--bad", "0.01")
    writer = scene.start_writer()
    wait_until(lambda: "Unavailable" in scene.log(writer), "the writer is told")
    assert scene.committed() == 0
    scene.session.execute(alter % 1)
    drained(scene, 1000)


def test_a_writer_without_a_partition_ends_when_idle(scene: Scene) -> None:
    scene.simulate("--count", "3", "--backfill", "1d")
    first = scene.start_writer()
    wait_until(lambda: "assigned" in scene.log(first), "the only partition")
    wait_until(lambda: scene.committed() == 3, "all committed")
    second = scene.start_writer("--once")
    assert second.wait(timeout=60) == 0, scene.log(second)
    assert "stopped consumed=0 " in scene.log(second)
    drained(scene, 3)
    assert first.poll() is None


def test_writers_share_the_partitions_and_hand_them_over(scene: Scene) -> None:
    scene.simulate("--count", str(READINGS), "--backfill", "1d", "--partitions", "3")
    first = scene.start_writer("--batch", "100")
    wait_until(lambda: scene.committed() > 500, "some committed")
    second = scene.start_writer("--batch", "100")
    wait_until(lambda: "assigned" in scene.log(second), "the second has a share")
    assert scene.committed() < READINGS  # else nothing is handed over under load
    first.terminate()
    assert first.wait(timeout=60) == 0, scene.log(first)
    drained(scene, READINGS)
