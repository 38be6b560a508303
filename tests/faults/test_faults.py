"""A fault at a random moment under load, then: nothing missing, nothing double, nothing hidden.

tests/faults/README.md lists them. Each test prints its seed; FAULT_SEED=... repeats its choices.
"""

import itertools
import json
import os
import re
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions, NewTopic
from kafka.structs import TopicPartition

import kafka_to_elasticsearch as indexer
from stack.servers import free_port
from tests.conftest import wait_until
from tests.faults.proxy import (
    Answer,
    Forward,
    cut_answer,
    delay,
    forget_items,
    garble,
    hang_up,
    refuse,
    refuse_items,
    too_large,
)
from tests.faults.scene import Scene

pytestmark = pytest.mark.timeout(600)  # servers restart, on a machine that may be busy


class Fault(NamedTuple):
    """What is done to a running scene; what a consumer must say of it (None: perhaps nothing)."""

    act: Callable[[Scene], None]
    said: str | None = None


# Elasticsearch answers badly: a proxy in front of the real one.


def badly(make: Callable[[Scene], Callable[..., object]]) -> Callable[[Scene], None]:
    return lambda scene: scene.hold_bulks(make(scene))


REFUSALS = {
    "429 for a whole bulk": Fault(badly(lambda _: refuse(429)), r"messages wait \(.*429"),
    "429 for some documents": Fault(
        badly(lambda scene: refuse_items(429, 0.3, scene.rng)), r"wait \(429 es_rejected"
    ),
    "503 for some documents": Fault(
        badly(lambda scene: refuse_items(503, 0.9, scene.rng)), r"wait \(503"
    ),
    "502 from a gateway": Fault(badly(lambda _: refuse(502)), r"messages wait \(.*502"),
    "504 from a gateway": Fault(badly(lambda _: refuse(504)), r"messages wait \(.*504"),
    "401: credentials revoked": Fault(badly(lambda _: refuse(401)), r"messages wait \(.*401"),
    "403: rights revoked": Fault(badly(lambda _: refuse(403)), r"messages wait \(.*403"),
    "413: the bulk is too large": Fault(badly(lambda _: too_large(2000))),
}
ANSWERS = {
    "answer cut in the middle": Fault(badly(lambda scene: cut_answer(scene.rng)), "messages wait"),
    "answer for one document less": Fault(badly(lambda _: forget_items), "it answered for"),
    "answer of another kind": Fault(badly(lambda _: garble), r"messages wait \("),
    "connection reset after the work": Fault(badly(lambda _: hang_up), "messages wait"),
    "answer later than the time-out": Fault(badly(lambda _: delay(4.0)), "timed out"),
    "work later than the time-out": Fault(badly(lambda _: delay(4.0, before=True)), "timed out"),
    "latency of 100 ms": Fault(badly(lambda _: delay(0.1))),
}


# Servers that go away and come back.


def restarted(name: str, signum: signal.Signals) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        with scene.restarting:  # to bring one back brings all back
            scene.stack.stop(name, signum)
            scene.pause()
            scene.stack.up()

    return act


def frozen(name: str, seconds: float) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.signal_server(name, signal.SIGSTOP)
        time.sleep(seconds)
        scene.signal_server(name, signal.SIGCONT)

    return act


def read_only(scene: Scene) -> None:
    name = "index.blocks.read_only_allow_delete"
    settings = scene.pipeline.client.indices.put_settings
    settings(index=scene.pipeline.index, settings={name: True})
    scene.pause(2, 4)
    settings(index=scene.pipeline.index, settings={name: None})


def closed(scene: Scene) -> None:
    scene.pipeline.client.indices.close(index=scene.pipeline.index)
    scene.pause(2, 4)
    scene.pipeline.client.indices.open(index=scene.pipeline.index)


def pipeline_missing(scene: Scene) -> None:
    """Every document is refused with status 400, for a reason that is the index's own."""
    settings = scene.pipeline.client.indices.put_settings
    settings(index=scene.pipeline.index, settings={"index.default_pipeline": "nope"})
    scene.pause(2, 4)
    settings(index=scene.pipeline.index, settings={"index.default_pipeline": None})


ELASTICSEARCH = {
    "Elasticsearch restarted": Fault(restarted("elasticsearch", signal.SIGTERM), "messages wait"),
    "Elasticsearch killed": Fault(restarted("elasticsearch", signal.SIGKILL), "messages wait"),
    "Elasticsearch frozen beyond the time-out": Fault(frozen("elasticsearch", 6), "timed out"),
}
INDEX = {
    "index read-only (disk full)": Fault(read_only, r"wait \(429 cluster_block_exception"),
    "index closed": Fault(closed, r"wait \(400 index_closed_exception"),
    "index with a pipeline that is missing": Fault(pipeline_missing, r"wait \(400 .*\[nope\]"),
}
AWAY = "not committed yet|lag is not known|nothing can be read"  # the words on Kafka's absence
KAFKA = {
    "broker restarted": Fault(restarted("kafka", signal.SIGTERM)),  # it may take a second
    "broker killed": Fault(restarted("kafka", signal.SIGKILL), AWAY),
    "broker frozen": Fault(frozen("kafka", 8)),
    "ZooKeeper restarted": Fault(restarted("zookeeper", signal.SIGKILL)),
}


# Connections to the broker, and consumers that end, freeze or come.


def slow_connection(scene: Scene) -> None:
    scene.kafka.latency_s = 0.1
    scene.pause(3, 5)
    scene.kafka.latency_s = 0.0


def resets(scene: Scene) -> None:
    for _ in range(5):
        scene.kafka.reset()
        scene.pause(0.1, 1.0)


def broker_out_of_reach(scene: Scene) -> None:
    scene.kafka.open = False
    scene.kafka.reset()
    time.sleep(8)  # longer than the session
    scene.kafka.open = True


def consumer_killed(scene: Scene) -> None:
    scene.kill(scene.rng.choice(scene.consumers))
    scene.start_consumer()


def consumer_terminated(scene: Scene) -> None:
    scene.terminate(scene.rng.choice(scene.consumers))
    scene.start_consumer()


def consumer_joins(scene: Scene) -> None:
    scene.start_consumer()
    scene.pause(6, 8)  # the others hear of it with their next heartbeat


def consumer_frozen(scene: Scene) -> None:
    """Beyond its session: another takes over; then it comes back as a member that is none."""
    zombie = scene.consumers[0]
    scene.start_consumer()
    scene.pause(2, 3)
    zombie.send_signal(signal.SIGSTOP)
    time.sleep(8)
    zombie.send_signal(signal.SIGCONT)


CONNECTIONS = {
    "broker connection slow (100 ms)": Fault(slow_connection),
    "broker connection reset": Fault(resets),
    "broker out of reach": Fault(broker_out_of_reach, AWAY),
}
CONSUMERS = {
    "consumer killed": Fault(consumer_killed, "assigned partitions"),
    "consumer terminated": Fault(consumer_terminated, "stopped consumed="),
    "consumer joins": Fault(consumer_joins, r"assigned partitions=\d of"),
    "consumer frozen beyond its session and its poll interval": Fault(
        consumer_frozen, f"{AWAY}|assigned partitions="
    ),
}
GROUPS = {
    "Elasticsearch refuses": REFUSALS,
    "Elasticsearch answers badly": ANSWERS,
    "Elasticsearch goes away": ELASTICSEARCH,
    "the index refuses": INDEX,
    "Kafka goes away": KAFKA,
    "the connections to Kafka are bad": CONNECTIONS,
    "consumers come and go": CONSUMERS,
}
FAULTS = {name: fault for group in GROUPS.values() for name, fault in group.items()}
QUICK = {"Elasticsearch refuses", "the index refuses"}


def act_and_wait_for_word(scene: Scene, fault: Fault) -> None:
    before = scene.times_said(fault.said or "")
    fault.act(scene)
    if fault.said:
        said = fault.said
        wait_until(lambda: scene.times_said(said) > before, f"it says: {said}")


@pytest.mark.parametrize(
    "group",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in GROUPS],
)
def test_faults_under_load(scene: Scene, group: str) -> None:
    """One after the other; each hits while all goes well."""
    scene.changes = "indexer.MAX_POLL_INTERVAL_MS = 7000"
    scene.start_consumer()
    scene.start_load(rate_hz=300)
    for name, fault in GROUPS[group].items():
        scene.wait_for_progress()
        scene.pause(0, 2)
        scene.say(name)
        act_and_wait_for_word(scene, fault)
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.messages == verdict.indexed > 300
    assert verdict.dead_lettered == 0
    scene.assert_nothing_is_hidden()


# One at Elasticsearch, one at Kafka or a consumer: their ends meet in every order. Not "consumer
# terminated", which rightly ends with exit code 1 while Elasticsearch is away.
KAFKA_SIDE = sorted((KAFKA | CONNECTIONS | CONSUMERS).keys() - {"consumer terminated"})
ELASTICSEARCH_SIDE = sorted(REFUSALS | ANSWERS | ELASTICSEARCH | INDEX)


def two_at_once(scene: Scene) -> None:
    pair = scene.rng.choice(ELASTICSEARCH_SIDE), scene.rng.choice(KAFKA_SIDE)
    scene.say(" + ".join(pair))
    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(FAULTS[name].act, scene) for name in pair]:
            ended.result()


@pytest.mark.slow
def test_two_faults_at_once(scene: Scene) -> None:
    scene.start_consumer()
    scene.start_load(rate_hz=300)
    scene.wait_for_progress()
    for _ in range(4):
        two_at_once(scene)
        scene.pause()
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.messages == verdict.indexed
    scene.assert_nothing_is_hidden()


@pytest.mark.slow
def test_elasticsearch_and_kafka_away_at_once(scene: Scene) -> None:
    """The partitions are paused, then lost; when all is well again they must be read again."""
    scene.changes = "indexer.BULK_READINGS = 100"
    scene.backlog(20_000)
    scene.bulks.fault = refuse(503)
    scene.start_consumer()
    wait_until(scene.is_full, "it can read no more")
    scene.kafka.open = False
    scene.kafka.reset()
    time.sleep(8)  # longer than the session
    scene.bulks.fault = None
    time.sleep(4)  # longer than any back-off: what is in flight is settled
    scene.kafka.open = True
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.indexed == 20_000
    scene.assert_nothing_is_hidden()


def test_partitions_come_to_a_consumer_that_can_read_no_more(scene: Scene) -> None:
    """What a poll brings with the new partitions, which are not paused, must not get lost."""
    scene.changes = "indexer.BULK_READINGS = 100"
    scene.backlog(10_000)
    scene.bulks.fault = refuse(503)
    for _ in range(3):
        scene.start_consumer()
    wait_until(lambda: scene.times_said(r"partitions=\d of") >= 3, "each has one")
    wait_until(scene.is_full, "they can read no more")
    for _ in range(2):
        scene.kill(scene.consumers[0])
    wait_until(lambda: "partitions=0,1,2 of" in scene.logs(), "the last one has all")
    scene.bulks.fault = None
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.indexed == 10_000
    scene.assert_nothing_is_hidden()


# The consumer's end, at the worst moments.


@pytest.mark.slow
def test_killed_in_mid_bulk_again_and_again(scene: Scene) -> None:
    times = 10
    scene.bulks.fault = delay(0.3)  # most of its life it waits for a bulk
    scene.changes = "indexer.BULK_READINGS = 100"
    scene.backlog(2000 * times)
    for _ in range(times):
        consumer = scene.start_consumer()
        scene.wait_for_progress()
        scene.pause(0, 1)
        scene.kill(consumer)
        assert scene.assert_committed_is_settled() > 0
    scene.bulks.fault = None
    scene.start_consumer()
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.indexed == 2000 * times


def test_killed_between_the_bulk_and_its_commit(scene: Scene) -> None:
    scene.changes = "indexer.BULK_READINGS = 500"
    scene.backlog(500)
    consumer = scene.start_consumer()
    wait_until(lambda: scene.pipeline.committed() == 500, "the first ones are committed")

    first, answered = threading.Semaphore(1), threading.Event()

    def only_one_and_no_commit(body: bytes, forward: Forward) -> Answer:
        if not first.acquire(blocking=False):
            return refuse(503)(body, forward)
        scene.kafka.flowing.clear()
        answer = forward(body)
        answered.set()
        return answer

    scene.bulks.fault = only_one_and_no_commit
    scene.pipeline.generate("--count", "2500", "--backfill", "1d")  # of other times
    wait_until(answered.is_set, "a bulk is indexed and not committed")
    scene.kill(consumer)
    scene.kafka.reset()
    scene.kafka.flowing.set()
    scene.bulks.fault = None
    indexed, committed = scene.count(), scene.pipeline.committed()
    assert indexed > committed == 500
    assert scene.start_consumer("--exit-when-idle", "2").wait(timeout=60) == 0
    closing = scene.accounts()[-1][-1]
    assert [closing[name] for name in ("consumed", "indexed", "duplicates")] == [
        3000 - committed, 3000 - indexed, indexed - committed
    ]  # fmt: skip
    assert scene.drain().holds


def test_terminated_with_a_half_full_buffer(scene: Scene) -> None:
    scene.changes = "indexer.BULK_WAIT_S = indexer.REQUEST_TIMEOUT_S = 1000.0"
    held = threading.Event()

    def hold(body: bytes, forward: Forward) -> Answer:
        held.wait()
        return forward(body)

    scene.bulks.fault = hold
    scene.backlog(100)
    consumer = scene.start_consumer()
    wait_until(lambda: "in_flight=100" in scene.logs(), "a bulk is under way")
    scene.pipeline.generate("--count", "600", "--backfill", "1d")  # of other times
    wait_until(lambda: "in_flight=700" in scene.logs(), "the others are in the buffer")
    assert scene.pipeline.committed() == 0
    consumer.send_signal(signal.SIGTERM)
    held.set()
    assert consumer.wait(timeout=20) == 0
    assert "stopped consumed=700 indexed=700 duplicates=0" in scene.logs()
    assert scene.pipeline.committed() == 700
    assert scene.verify().holds


def assert_left_to_be_read_again(scene: Scene) -> None:
    """Check that the consumer has said how many messages it gave up; a poll may bring a part."""
    (said,) = re.findall(r"not settled, to be read again: (\d+) messages", scene.logs())
    assert 0 < int(said) <= 700
    assert re.search(rf"stopped consumed=.* in_flight={said} ", scene.logs())


def test_terminated_while_elasticsearch_is_away_it_leaves_in_time(scene: Scene) -> None:
    scene.changes = "indexer.STOP_GRACE_S = 1.0"
    scene.backlog(700)
    consumer = scene.start_consumer()
    scene.bulks.fault = refuse(503)
    wait_until(lambda: "messages wait" in scene.logs(), "it waits")
    consumer.send_signal(signal.SIGTERM)
    assert consumer.wait(timeout=20) == 1
    assert_left_to_be_read_again(scene)
    assert scene.pipeline.committed() == 0
    scene.bulks.fault = None
    scene.start_consumer()
    assert scene.drain().indexed == 700


@pytest.mark.slow
def test_terminated_while_kafka_is_away_the_consumer_leaves_in_time(scene: Scene) -> None:
    scene.pipeline.send(b"bad")
    consumer = scene.start_consumer()
    wait_until(lambda: scene.pipeline.dead_letters(), "its producer is at work")
    scene.bulks.fault = refuse(503)
    scene.backlog(700)
    wait_until(lambda: "messages wait" in scene.logs(), "it waits")
    scene.kafka.open = False
    scene.kafka.reset()
    scene.bulks.fault = refuse_items(400, 0.5, scene.rng)  # half of them are dead letters
    consumer.send_signal(signal.SIGTERM)
    assert consumer.wait(timeout=90) == 1
    assert_left_to_be_read_again(scene)
    scene.assert_nothing_is_hidden()
    scene.kafka.open, scene.bulks.fault = True, None
    scene.start_consumer()
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert (verdict.indexed, verdict.dead_lettered) == (700, 1)


@pytest.mark.slow
def test_terminated_while_kafka_is_away_the_generator_says_what_is_open(scene: Scene) -> None:
    ledger = scene.folder / "ledger.csv"
    scene.start_consumer()
    generator = scene.start_generator(scene.proxied, "--rate", "300", ledger=ledger)
    scene.wait_for_progress()
    scene.kafka.open = False
    scene.kafka.reset()
    scene.pause()
    generator.send_signal(signal.SIGTERM)
    assert generator.wait(timeout=60) == 1
    scene.generators.remove(generator)
    said = scene.logs("generator")
    assert "Traceback" not in said, said
    (counts,) = re.findall(r"stopped sent=(\d+) acknowledged=(\d+) failed=(\d+)", said)
    sent, acknowledged, failed = map(int, counts)
    assert re.search(rf"not acknowledged: {sent - acknowledged} of {sent} messages", said)
    assert sent == acknowledged + failed
    scene.kafka.open = True
    scene.drain()
    verdict = scene.verify(ledger)
    assert verdict.holds, verdict
    assert (verdict.ledger, verdict.unacknowledged) == (sent, sent - acknowledged)
    assert acknowledged <= verdict.indexed <= sent  # stored, perhaps, though the answer was lost


# Rebalances.


@pytest.mark.slow
def test_three_consumers_come_and_go_and_partitions_are_added(scene: Scene) -> None:
    scene.start_load(rate_hz=300)
    for _ in range(3):
        scene.start_consumer()
    scene.wait_for_progress()
    for turn in range(6):
        scene.pause(2, 4)
        if scene.rng.random() < 0.5:
            consumer_killed(scene)
        else:
            consumer_terminated(scene)
        if turn == 2:
            with scene.admin() as admin:
                admin.create_partitions({scene.pipeline.topic: NewPartitions(5)})
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.messages == verdict.indexed > 3000
    scene.assert_nothing_is_hidden()
    assert re.search(r"partitions=(\d,)*[34](,\d)* of", scene.logs())


@pytest.mark.slow
def test_rebalance_on_a_slow_connection(scene: Scene) -> None:
    """Some clients forget a join that takes longer than a poll, and commit no more."""
    scene.backlog(300)
    scene.kafka.latency_s = 0.15
    scene.start_consumer()
    wait_until(lambda: scene.pipeline.committed() == 300, "all are committed")
    with scene.admin() as admin:
        admin.create_partitions({scene.pipeline.topic: NewPartitions(5)})
    wait_until(lambda: "partitions=0,1,2,3,4 of" in scene.logs(), "the new ones are assigned")
    scene.start_load(rate_hz=100)
    scene.wait_for_progress()
    assert scene.drain().holds


# Servers that are not there yet.


@pytest.mark.slow
def test_elasticsearch_absent_at_the_start(scene: Scene) -> None:
    scene.backlog(300)
    scene.stack.down(["elasticsearch"])
    scene.start_consumer("--wait", "180")  # on a busy machine Elasticsearch starts slowly
    wait_until(lambda: "waiting for Elasticsearch" in scene.logs(), "it waits")
    scene.stack.up()
    assert scene.drain().indexed == 300


def test_kafka_absent_at_the_start(scene: Scene) -> None:
    scene.backlog(300)
    scene.kafka.open = False
    scene.start_consumer()
    wait_until(lambda: "waiting for Kafka" in scene.logs(), "it waits")
    scene.kafka.open = True
    assert scene.drain().indexed == 300


# The index, in mid-run.


def mapping_is_ours(scene: Scene, index: str) -> bool:
    found = scene.pipeline.client.indices.get_mapping(index=index)[index]["mappings"]
    types = {name: definition["type"] for name, definition in found["properties"].items()}
    return bool(found["dynamic"] == "strict" and types["sensor_id"] == "keyword")


def test_index_deleted_under_load(scene: Scene) -> None:
    """It is made again with our mapping, though a template of somebody else's fits its name too."""
    client, index = scene.pipeline.client, scene.pipeline.index
    scene.start_consumer()
    scene.start_load(rate_hz=300)
    scene.wait_for_progress()
    committed_before = scene.pipeline.committed()
    other = {"mappings": {"dynamic": True, "properties": {"sensor_id": {"type": "text"}}}}
    name, patterns = f"other-{index}", [f"{index}*"]
    client.indices.put_index_template(
        name=name, index_patterns=patterns, priority=500, template=other
    )
    client.indices.delete(index=index)
    scene.wait_for_progress()
    verdict = scene.drain()
    client.indices.delete_index_template(name=name)
    assert scene.times_said(f"index {index} was not there: made") == 2  # at the start, and now
    assert mapping_is_ours(scene, index)
    # What was in the index is gone with it; all that was not committed by then is there.
    assert not verdict.differing
    assert not verdict.doubled
    assert verdict.indexed == verdict.messages - len(verdict.missing)
    assert committed_before > 0
    assert 0 < len(verdict.missing) < verdict.messages
    scene.assert_nothing_is_hidden()


@pytest.mark.slow
def test_alias_moved_left_without_write_index_and_removed_under_load(scene: Scene) -> None:
    client, alias = scene.pipeline.client, scene.pipeline.index
    first, second = f"{alias}-1", f"{alias}-2"
    template = json.loads(indexer.MAPPING_FILE.read_text())
    for name in (first, second):
        client.indices.create(index=name, **template)
    client.indices.put_alias(index=first, name=alias)
    scene.start_consumer()
    scene.start_load(rate_hz=300)
    scene.wait_for_progress()
    move = [
        {"remove": {"index": first, "alias": alias}},
        {"add": {"index": second, "alias": alias}},
    ]
    client.indices.update_aliases(actions=move)
    scene.wait_for_progress()
    client.indices.put_alias(index=second, name=alias, is_write_index=False)
    wait_until(lambda: "no write index is defined" in scene.logs(), "it says so")
    client.indices.put_alias(index=second, name=alias, is_write_index=True)
    scene.wait_for_progress()
    client.indices.delete_alias(index=second, name=alias)  # the next bulk finds no such index
    scene.wait_for_progress()
    scene.end_load()
    wait_until(lambda: scene.pipeline.committed() == scene.pipeline.ends(), "all are committed")
    assert scene.times_said(f"index {alias} was not there: made") == 1
    assert mapping_is_ours(scene, alias)
    client.indices.refresh(index=f"{alias}*")
    counts = [client.count(index=name)["count"] for name in (first, second, alias)]
    assert all(counts)
    assert sum(counts) == scene.pipeline.ends()
    assert not scene.pipeline.dead_letters()
    client.indices.delete(index=f"{first},{second}")


# The topic.


@pytest.mark.slow
def test_retention_deletes_what_was_not_read(scene: Scene) -> None:
    scene.backlog(60_000)
    scene.bulks.fault = refuse(503)
    scene.changes = """
import functools
indexer.BULK_READINGS = 50
indexer.KafkaConsumer = functools.partial(indexer.KafkaConsumer, max_partition_fetch_bytes=4096)
"""  # it reads little ahead
    scene.start_consumer()
    wait_until(scene.is_full, "it can read no more")
    with scene.admin() as admin:
        ends = Counter(message.partition for message in scene.pipeline.messages())
        admin.delete_records(
            {TopicPartition(scene.pipeline.topic, n): end * 9 // 10 for n, end in ends.items()}
        )
    scene.bulks.fault = None
    wait_until(lambda: scene.pipeline.committed() == 60_000, "the end is committed")
    said = re.findall(r"reading on from .*: (\d+) messages were deleted", scene.logs())
    lost = sum(int(number) for number in said)
    assert lost > 5000
    assert scene.count() == 60_000 - lost


def test_a_message_larger_than_a_fetch(scene: Scene) -> None:
    topic = scene.pipeline.topic
    with scene.admin() as admin:
        large = {"max.message.bytes": "20000000"}
        admin.create_topics([NewTopic(topic, 1, 1, topic_configs=large)])
    giant = os.urandom(5_000_000).hex().encode()
    with scene.producer(max_request_size=20_000_000) as producer:
        producer.send(topic, giant, key=b"k").get(timeout=30)
    scene.backlog(300)
    scene.start_consumer()
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert (verdict.indexed, verdict.dead_lettered) == (300, 1)
    (letter,) = scene.pipeline.dead_letters()
    assert letter.value == giant


def test_dead_letter_topic_that_refuses(scene: Scene) -> None:
    """What cannot be put aside is not committed, whatever comes after it."""
    name = f"{scene.pipeline.topic}.dead-letter"
    with scene.admin() as admin:
        admin.create_topics([NewTopic(name, 1, 1, topic_configs={"max.message.bytes": "10"})])
        scene.pipeline.send(b"bad")
        scene.start_consumer()
        wait_until(lambda: "dead-letter topic: 1 messages wait (" in scene.logs(), "it waits")
        scene.pipeline.send(b"bad too")
        scene.backlog(30)
        time.sleep(3)
        assert scene.pipeline.committed() == 0
        larger = {"max.message.bytes": "1000000"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, larger)])
    verdict = scene.drain()
    assert (verdict.indexed, verdict.dead_lettered) == (30, 2)
    assert verdict.holds


# What is shown while it lasts.


def metrics(port: int) -> dict[str, float]:
    """Return the metrics by name and label, as Prometheus reads them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w\S+) (\S+)$", text, re.M)}


WAITING, QUIET = "smart_city_waiting", "smart_city_seconds_since_settled"


@pytest.mark.slow
def test_the_gauges_show_an_outage_and_its_end(scene: Scene) -> None:
    port = free_port()
    scene.start_consumer("--metrics-port", str(port))
    scene.start_load(rate_hz=200)
    scene.wait_for_progress()

    scene.bulks.fault = refuse(503)
    wait_until(
        lambda: metrics(port)[WAITING] >= 1 and metrics(port)[QUIET] > 4, "an outage is shown"
    )
    assert metrics(port)["smart_city_lag"] > 0
    scene.bulks.fault = None
    wait_until(lambda: metrics(port)[WAITING] == 0 and metrics(port)[QUIET] < 2, "and its end")

    scene.kafka.open = False
    scene.kafka.reset()
    wait_until(lambda: metrics(port)[WAITING] == 1 and metrics(port)[QUIET] > 4, "Kafka is away")
    scene.kafka.open = True

    verdict = scene.drain()
    assert verdict.holds, verdict
    wait_until(lambda: metrics(port)[WAITING] == 0 and metrics(port)[QUIET] < 2, "all is well")
    wait_until(lambda: metrics(port)["smart_city_lag"] == 0, "there is no lag")
    found = metrics(port)
    assert found["smart_city_in_flight"] == 0
    outcomes = ("consumed", "indexed", "duplicates", "dead_lettered")
    consumed, *settled = (found[f'smart_city_messages_total{{outcome="{o}"}}'] for o in outcomes)
    assert consumed == sum(settled) >= verdict.messages
    assert settled[0] == verdict.indexed
    assert found["smart_city_retries_total"] >= 1
    waited = found["smart_city_delay_seconds_count"]
    assert waited > found['smart_city_delay_seconds_bucket{le="1.0"}']  # during the outage


def test_a_consumer_without_partition_says_so(scene: Scene) -> None:
    with scene.admin() as admin:
        admin.create_topics([NewTopic(scene.pipeline.topic, 1, 1)])
    for _ in range(2):
        scene.start_consumer()
    wait_until(lambda: "no partition is ours: waiting for one" in scene.logs(), "one has none", 40)
    wait_until(lambda: "assigned partitions=0 of" in scene.logs(), "the other has it")


def peak_memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB", status, re.M)
    return int(peak) / 1024


@pytest.mark.parametrize(
    ("size_bytes", "count", "readings", "bound_mb"),
    [(0, 0, 200_000, 150), (100_000, 600, 30_000, 250), (5_000_000, 300, 30_000, 2000)],
)
@pytest.mark.slow
def test_memory_is_bounded_whatever_the_backlog_and_the_outage(
    scene: Scene, size_bytes: int, count: int, readings: int, bound_mb: int
) -> None:
    """README states the bounds; as compressed, a fetch may hold all of the large messages."""
    with scene.admin() as admin:
        admin.create_topics([NewTopic(scene.pipeline.topic, 6, 1)])
    with scene.producer(compression_type="gzip", max_request_size=10_000_000) as producer:
        for partition in itertools.islice(itertools.cycle(range(6)), count):
            producer.send(scene.pipeline.topic, b"x" * size_bytes, partition=partition)
        producer.flush()
    scene.backlog(readings)
    scene.bulks.fault = refuse(503)
    consumer = scene.start_consumer()
    wait_until(scene.is_full, "it can read no more")
    peaks = [peak_memory_mb(consumer.pid)]
    scene.bulks.fault = None
    verdict = scene.drain()
    assert (verdict.indexed, verdict.dead_lettered) == (readings, count)
    assert verdict.holds
    peaks.append(peak_memory_mb(consumer.pid))
    scene.say(f"peaks in MB, in the outage and after it: {peaks}")
    assert max(peaks) < bound_mb


# Hours of it.


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak(scene: Scene) -> None:
    """Random faults, half of them in pairs, for SOAK_HOURS; verified after each ten."""
    deadline = time.monotonic() + float(os.environ.get("SOAK_HOURS") or 1) * 3600
    scene.start_consumer()
    while time.monotonic() < deadline:
        scene.start_load(rate_hz=200)
        scene.wait_for_progress()
        for name in scene.rng.choices(sorted(FAULTS), k=10):
            if scene.rng.random() < 0.5:
                two_at_once(scene)
            else:
                scene.say(name)
                FAULTS[name].act(scene)
            while len(scene.consumers) > 3:
                scene.terminate(scene.consumers[0])
            scene.pause()
        verdict = scene.drain()
        scene.say(str(verdict))
        assert verdict.holds
        assert verdict.messages == verdict.indexed
        scene.assert_nothing_is_hidden()
