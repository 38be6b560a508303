"""Faults at random moments under load; afterwards nothing may be missing, doubled or hidden.

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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions, NewTopic

import kafka_to_elasticsearch as indexer
from pipelines.tests.waiting import wait_until
from stack.servers import free_port
from tests.faults.proxy import (
    Answer,
    Forward,
    answer_with_html,
    break_connection,
    cut_answer,
    delay,
    forget_items,
    refuse,
    refuse_items,
    too_large,
)
from tests.faults.scene import Scene

pytestmark = pytest.mark.timeout(600)  # servers restart, perhaps on a busy machine
BEYOND_SESSION_S = 8  # longer than a consumer's session and its poll interval, see scene.QUICKER
PARTITIONS = r"assigned partitions=\d(,\d)* of"  # a consumer logs it when it has some


class Fault(NamedTuple):
    """What is done to a running scene, and what a consumer must log then.

    Attributes:
        act: does it, and returns when it is over.
        logged: a pattern; None if the consumer need not notice.
    """

    act: Callable[[Scene], None]
    logged: str | None = None


# Wrong answers of Elasticsearch; a proxy in front of it gives them.


def badly(make: Callable[[Scene], Callable[..., object]]) -> Callable[[Scene], None]:
    """Return a fault: the proxy treats some bulk requests as the function that `make` returns."""
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
    "answer in HTML": Fault(badly(lambda _: answer_with_html), r"messages wait \("),
    "connection reset after the work": Fault(badly(lambda _: break_connection), "messages wait"),
    "answer later than the time-out": Fault(badly(lambda _: delay(4.0)), "timed out"),
    "work later than the time-out": Fault(badly(lambda _: delay(4.0, before=True)), "timed out"),
    "latency of 100 ms": Fault(badly(lambda _: delay(0.1))),
}


# Servers that go away and come back.


def restarted(name: str, signum: signal.Signals) -> Callable[[Scene], None]:
    """Return a fault: a server is ended by a signal and started again."""

    def act(scene: Scene) -> None:
        with scene.restarting:  # up() starts every server that is down
            scene.stack.stop(name, signum)
            scene.pause()
            scene.stack.up()

    return act


def frozen(name: str, seconds: float) -> Callable[[Scene], None]:
    """Return a fault: the processes of a server are stopped for a while and then go on."""

    def act(scene: Scene) -> None:
        scene.signal_server(name, signal.SIGSTOP)
        time.sleep(seconds)
        scene.signal_server(name, signal.SIGCONT)

    return act


def read_only(scene: Scene) -> None:
    """Set the block that Elasticsearch sets when a disk is full, then remove it."""
    name = "index.blocks.read_only_allow_delete"
    settings = scene.pipeline.client.indices.put_settings
    settings(index=scene.pipeline.index, settings={name: True})
    scene.pause(2, 4)
    settings(index=scene.pipeline.index, settings={name: None})


def closed(scene: Scene) -> None:
    """Close the index, then open it."""
    scene.pipeline.client.indices.close(index=scene.pipeline.index)
    scene.pause(2, 4)
    scene.pipeline.client.indices.open(index=scene.pipeline.index)


def pipeline_missing(scene: Scene) -> None:
    """Let the index refuse every document with status 400, though the documents are right."""
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
# What a consumer logs while Kafka is away.
AWAY = "not committed yet|lag is not known|nothing can be read"
KAFKA = {
    "broker restarted": Fault(restarted("kafka", signal.SIGTERM)),  # it may take a second
    "broker killed": Fault(restarted("kafka", signal.SIGKILL), AWAY),
    "broker frozen": Fault(frozen("kafka", 8)),
    "ZooKeeper restarted": Fault(restarted("zookeeper", signal.SIGKILL)),
}


# Connections to the broker, and consumers that end, freeze or come.


def slow_connection(scene: Scene) -> None:
    """Delay each piece of data by 100 ms for some seconds."""
    scene.kafka.latency_s = 0.1
    scene.pause(3, 5)
    scene.kafka.latency_s = 0.0


def resets(scene: Scene) -> None:
    """Reset all connections to Kafka, five times."""
    for _ in range(5):
        scene.kafka.reset()
        scene.pause(0.1, 1.0)


def broker_out_of_reach(scene: Scene) -> None:
    """Carry no data to or from Kafka for longer than a consumer's session."""
    scene.kafka.shut()
    time.sleep(BEYOND_SESSION_S)
    scene.kafka.open = True


def consumer_killed(scene: Scene) -> None:
    """Kill a consumer and start another."""
    scene.kill(scene.rng.choice(scene.consumers))
    scene.start_consumer()


def consumer_terminated(scene: Scene) -> None:
    """Terminate a consumer and start another."""
    scene.terminate(scene.rng.choice(scene.consumers))
    scene.start_consumer()


def consumer_joins(scene: Scene) -> None:
    """Start one more consumer and wait until it has partitions."""
    assigned = scene.times_logged(PARTITIONS)
    scene.start_consumer()
    wait_until(lambda: scene.times_logged(PARTITIONS) > assigned, "partitions are assigned")


def consumer_frozen(scene: Scene) -> None:
    """Freeze a consumer beyond its session, so that others take over, then let it go on."""
    frozen_one = scene.consumers[0]
    scene.start_consumer()
    scene.pause(2, 3)
    frozen_one.send_signal(signal.SIGSTOP)
    time.sleep(BEYOND_SESSION_S)
    frozen_one.send_signal(signal.SIGCONT)


CONNECTIONS = {
    "broker connection slow (100 ms)": Fault(slow_connection),
    "broker connection reset": Fault(resets),
    "broker out of reach": Fault(broker_out_of_reach, AWAY),
}
CONSUMERS = {
    "consumer killed": Fault(consumer_killed, "assigned partitions"),
    "consumer terminated": Fault(consumer_terminated, "stopped consumed="),
    "consumer joins": Fault(consumer_joins, PARTITIONS),
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


def inject(scene: Scene, fault: Fault) -> None:
    """Let a fault happen and wait until a consumer has logged it, if it must."""
    pattern = fault.logged or ""
    before = scene.times_logged(pattern)
    fault.act(scene)
    if pattern:
        wait_until(lambda: scene.times_logged(pattern) > before, f"the log has: {pattern}")


@pytest.mark.parametrize(
    "group",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in GROUPS],
)
def test_faults_under_load(scene: Scene, group: str) -> None:
    """Let the faults of a group happen one after the other, each while readings are indexed."""
    scene.changes = "indexer.MAX_POLL_INTERVAL_MS = 7000"
    scene.start_consumer()
    scene.start_load(rate_hz=300)
    for name, fault in GROUPS[group].items():
        scene.wait_for_progress()
        scene.pause(0, 2)
        scene.note(name)
        inject(scene, fault)
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.messages == verdict.indexed > 300
    assert verdict.dead_lettered == 0
    scene.assert_accounts_close()


# One fault of Elasticsearch and one of Kafka or a consumer happen at the same time. "consumer
# terminated" is not among them: it must end with exit code 1 while Elasticsearch is away.
KAFKA_SIDE = sorted((KAFKA | CONNECTIONS | CONSUMERS).keys() - {"consumer terminated"})
ELASTICSEARCH_SIDE = sorted(REFUSALS | ANSWERS | ELASTICSEARCH | INDEX)


def two_at_once(scene: Scene) -> None:
    """Let two faults happen at the same time, chosen at random."""
    pair = scene.rng.choice(ELASTICSEARCH_SIDE), scene.rng.choice(KAFKA_SIDE)
    scene.note(" + ".join(pair))
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
    scene.assert_accounts_close()


@pytest.mark.slow
def test_elasticsearch_and_kafka_away_at_once(scene: Scene) -> None:
    """Partitions that were paused and then lost must be read again when they come back."""
    scene.changes = "indexer.BATCH_MESSAGES = 100"
    scene.backlog(20_000)
    scene.bulks.fault = refuse(503)
    scene.start_consumer()
    wait_until(scene.is_full, "the consumer has stopped reading")
    scene.kafka.shut()
    time.sleep(BEYOND_SESSION_S)
    scene.bulks.fault = None
    time.sleep(4)  # longer than any retry delay, so that what is in flight is settled
    scene.kafka.open = True
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.indexed == 20_000
    scene.assert_accounts_close()


@pytest.mark.slow
def test_partitions_are_assigned_to_a_consumer_that_has_stopped_reading(scene: Scene) -> None:
    """New partitions are not paused, so a poll may return messages of them; none may get lost."""
    scene.changes = "indexer.BATCH_MESSAGES = 100"
    scene.backlog(10_000)
    scene.bulks.fault = refuse(503)
    for _ in range(3):
        scene.start_consumer()
    wait_until(lambda: scene.times_logged(r"partitions=\d of") >= 3, "each has one partition")
    wait_until(scene.is_full, "the consumers have stopped reading")
    for _ in range(2):
        scene.kill(scene.consumers[0])
    wait_until(lambda: "partitions=0,1,2 of" in scene.logs(), "the last consumer has all")
    scene.bulks.fault = None
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert verdict.indexed == 10_000
    scene.assert_accounts_close()


# The consumer is killed or terminated.


@pytest.mark.slow
def test_killed_during_a_bulk_five_times(scene: Scene) -> None:
    times = 5
    scene.bulks.fault = delay(0.3)  # most of the time a bulk is under way
    scene.changes = "indexer.BATCH_MESSAGES = 100"
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
    scene.changes = "indexer.BATCH_MESSAGES = 500"
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
    scene.pipeline.generate("--count", "2500", "--backfill", "1d")  # their times are different
    wait_until(answered.is_set, "a bulk is indexed and not committed")
    scene.kill(consumer)
    scene.kafka.reset()
    scene.kafka.flowing.set()
    scene.bulks.fault = None
    indexed, committed = scene.pipeline.count(), scene.pipeline.committed()
    assert indexed > committed == 500
    assert scene.start_consumer("--exit-when-idle", "2").wait(timeout=60) == 0
    closing = scene.accounts()[-1][-1]
    assert [closing[name] for name in ("consumed", "indexed", "duplicates")] == [
        3000 - committed,
        3000 - indexed,
        indexed - committed,
    ]
    assert scene.drain().holds


def test_terminated_with_a_half_full_batch(scene: Scene) -> None:
    scene.changes = "indexer.BATCH_WAIT_S = indexer.REQUEST_TIMEOUT_S = 1000.0"
    held = threading.Event()

    def hold(body: bytes, forward: Forward) -> Answer:
        held.wait()
        return forward(body)

    scene.bulks.fault = hold
    scene.backlog(100)
    consumer = scene.start_consumer()
    wait_until(lambda: "in_flight=100" in scene.logs(), "a bulk is under way")
    scene.pipeline.generate("--count", "600", "--backfill", "1d")  # their times are different
    wait_until(lambda: "in_flight=700" in scene.logs(), "the others are in the next batch")
    assert scene.pipeline.committed() == 0
    consumer.send_signal(signal.SIGTERM)
    held.set()
    assert consumer.wait(timeout=20) == 0
    assert "stopped consumed=700 indexed=700 duplicates=0" in scene.logs()
    assert scene.pipeline.committed() == 700
    assert scene.verify().holds


def assert_left_to_be_read_again(scene: Scene) -> None:
    """Check that the consumer has logged how many messages it gave up, of the 700 at most."""
    (count,) = re.findall(r"not settled, to be read again: (\d+) messages", scene.logs())
    assert 0 < int(count) <= 700
    assert re.search(rf"stopped consumed=.* in_flight={count} ", scene.logs())


def test_consumer_terminated_while_elasticsearch_is_away(scene: Scene) -> None:
    scene.changes = "indexer.STOP_GRACE_S = 1.0"
    scene.backlog(700)
    consumer = scene.start_consumer()
    scene.bulks.fault = refuse(503)
    wait_until(lambda: "messages wait" in scene.logs(), "the consumer waits")
    consumer.send_signal(signal.SIGTERM)
    assert consumer.wait(timeout=20) == 1
    assert_left_to_be_read_again(scene)
    assert scene.pipeline.committed() == 0
    scene.bulks.fault = None
    scene.start_consumer()
    assert scene.drain().indexed == 700


@pytest.mark.slow
def test_consumer_terminated_while_kafka_is_away(scene: Scene) -> None:
    scene.pipeline.send(b"bad")
    consumer = scene.start_consumer()
    wait_until(lambda: scene.pipeline.dead_letters(), "the producer has sent a dead letter")
    scene.bulks.fault = refuse(503)
    scene.backlog(700)
    wait_until(lambda: "messages wait" in scene.logs(), "the consumer waits")
    scene.kafka.shut()
    scene.bulks.fault = refuse_items(400, 0.5, scene.rng)  # half of them become dead letters
    consumer.send_signal(signal.SIGTERM)
    assert consumer.wait(timeout=90) == 1
    assert_left_to_be_read_again(scene)
    scene.assert_accounts_close()
    scene.kafka.open, scene.bulks.fault = True, None
    scene.start_consumer()
    verdict = scene.drain()
    assert verdict.holds, verdict
    assert (verdict.indexed, verdict.dead_lettered) == (700, 1)


@pytest.mark.slow
def test_generator_terminated_while_kafka_is_away(scene: Scene) -> None:
    ledger = scene.folder / "ledger.csv"
    scene.start_consumer()
    generator = scene.start_generator(scene.proxied, "--rate", "300", ledger=ledger)
    scene.wait_for_progress()
    scene.kafka.shut()
    scene.pause()
    generator.send_signal(signal.SIGTERM)
    assert generator.wait(timeout=60) == 1
    scene.generators.remove(generator)
    log = scene.logs("generator")
    assert "Traceback" not in log, log
    (counts,) = re.findall(r"stopped sent=(\d+) acknowledged=(\d+) failed=(\d+)", log)
    sent, acknowledged, failed = map(int, counts)
    assert re.search(rf"not acknowledged: {sent - acknowledged} of {sent} messages", log)
    assert sent == acknowledged + failed
    scene.kafka.open = True
    scene.drain()
    verdict = scene.verify(ledger)
    assert verdict.holds, verdict
    assert (verdict.ledger, verdict.unacknowledged) == (sent, sent - acknowledged)
    assert acknowledged <= verdict.indexed <= sent  # Kafka's answer to some may be lost


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
    scene.assert_accounts_close()
    assert re.search(r"partitions=(\d,)*[34](,\d)* of", scene.logs())


@pytest.mark.slow
def test_rebalance_on_a_slow_connection(scene: Scene) -> None:
    """Some clients forget a join that takes longer than a poll, and then commit nothing."""
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


# Servers that are absent at the start.


@pytest.mark.slow
def test_elasticsearch_absent_at_the_start(scene: Scene) -> None:
    scene.backlog(300)
    scene.stack.down(["elasticsearch"])
    scene.start_consumer("--wait", "180")  # on a busy machine Elasticsearch starts slowly
    wait_until(lambda: "waiting for Elasticsearch" in scene.logs(), "the consumer waits")
    scene.stack.up()
    assert scene.drain().indexed == 300


def test_kafka_absent_at_the_start(scene: Scene) -> None:
    scene.backlog(300)
    scene.kafka.open = False
    scene.start_consumer()
    wait_until(lambda: "waiting for Kafka" in scene.logs(), "the consumer waits")
    scene.kafka.open = True
    assert scene.drain().indexed == 300


# The index changes under load.


TEMPLATE = json.loads(indexer.MAPPING_FILE.read_text())


def mappings(scene: Scene, index: str) -> object:
    """Return the mappings of an index."""
    return scene.pipeline.client.indices.get_mapping(index=index)[index]["mappings"]


def test_index_deleted_under_load(scene: Scene) -> None:
    """It is created again with its mapping, though a foreign template fits its name as well."""
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
    assert scene.times_logged(f"index {index} was not there: made") == 2  # once at the start
    assert mappings(scene, index) == TEMPLATE["mappings"]
    # The documents that the index held are lost; all that was not committed by then is there.
    assert not verdict.differing
    assert not verdict.doubled
    assert verdict.indexed == verdict.messages - len(verdict.missing)
    assert committed_before > 0
    assert 0 < len(verdict.missing) < verdict.messages
    scene.assert_accounts_close()


@pytest.mark.slow
def test_alias_moved_left_without_write_index_and_removed_under_load(scene: Scene) -> None:
    client, alias = scene.pipeline.client, scene.pipeline.index
    first, second = f"{alias}-1", f"{alias}-2"
    for name in (first, second):
        client.indices.create(index=name, **TEMPLATE)
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
    wait_until(lambda: "no write index is defined" in scene.logs(), "the log has the reason")
    client.indices.put_alias(index=second, name=alias, is_write_index=True)
    scene.wait_for_progress()
    client.indices.delete_alias(index=second, name=alias)  # the next bulk finds no index
    scene.wait_for_progress()
    scene.end_load()
    wait_until(lambda: scene.pipeline.committed() == scene.pipeline.ends(), "all are committed")
    assert scene.times_logged(f"index {alias} was not there: made") == 1
    assert mappings(scene, alias) == TEMPLATE["mappings"]
    client.indices.refresh(index=f"{alias}*")
    counts = [client.count(index=name)["count"] for name in (first, second, alias)]
    assert all(counts)
    assert sum(counts) == scene.pipeline.ends()
    assert not scene.pipeline.dead_letters()
    client.indices.delete(index=f"{first},{second}")


# The topic.


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


def test_a_dead_letter_topic_that_refuses(scene: Scene) -> None:
    """Nothing is committed from the first message on that cannot be dead-lettered."""
    name = f"{scene.pipeline.topic}.dead-letter"
    with scene.admin() as admin:
        admin.create_topics([NewTopic(name, 1, 1, topic_configs={"max.message.bytes": "10"})])
        scene.pipeline.send(b"bad")
        scene.start_consumer()
        wait_until(lambda: "dead-letter topic: 1 messages wait (" in scene.logs(), "a retry")
        scene.pipeline.send(b"bad too")
        scene.backlog(30)
        wait_until(lambda: scene.pipeline.count() == 30, "the readings are indexed")
        scene.wait_for_report()
        assert scene.pipeline.committed() == 0
        larger = {"max.message.bytes": "1000000"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, larger)])
    verdict = scene.drain()
    assert (verdict.indexed, verdict.dead_lettered) == (30, 2)
    assert verdict.holds


# What is shown during an outage.


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

    scene.kafka.shut()
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


@pytest.mark.slow
def test_a_consumer_without_partition_logs_it(scene: Scene) -> None:
    with scene.admin() as admin:
        admin.create_topics([NewTopic(scene.pipeline.topic, 1, 1)])
    for _ in range(2):
        scene.start_consumer()
    wait_until(lambda: "no partition is ours: waiting for one" in scene.logs(), "one has none", 40)
    wait_until(lambda: "assigned partitions=0 of" in scene.logs(), "the other has it")


def peak_memory_mb(pid: int) -> float:
    """Return the most memory that a process has ever had, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB", status, re.M)
    return int(peak) / 1024


@pytest.mark.parametrize(
    ("size_bytes", "count", "readings", "bound_mb"),
    [(0, 0, 200_000, 150), (100_000, 600, 30_000, 250), (5_000_000, 300, 30_000, 2000)],
)
@pytest.mark.slow
def test_memory_is_bounded(
    scene: Scene, size_bytes: int, count: int, readings: int, bound_mb: int
) -> None:
    """README states the bounds. A fetch may hold all large messages, as they are compressed."""
    with scene.admin() as admin:
        admin.create_topics([NewTopic(scene.pipeline.topic, 6, 1)])
    with scene.producer(compression_type="gzip", max_request_size=10_000_000) as producer:
        for partition in itertools.islice(itertools.cycle(range(6)), count):
            producer.send(scene.pipeline.topic, b"x" * size_bytes, partition=partition)
        producer.flush()
    scene.backlog(readings)
    scene.bulks.fault = refuse(503)
    consumer = scene.start_consumer()
    wait_until(scene.is_full, "the consumer has stopped reading")
    peaks = [peak_memory_mb(consumer.pid)]
    scene.bulks.fault = None
    verdict = scene.drain()
    assert (verdict.indexed, verdict.dead_lettered) == (readings, count)
    assert verdict.holds
    peaks.append(peak_memory_mb(consumer.pid))
    scene.note(f"peaks in MB, in the outage and after it: {peaks}")
    assert max(peaks) < bound_mb


# Hours of random faults.


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak(scene: Scene) -> None:
    """Let random faults happen for SOAK_HOURS, half of them in pairs; verify after each ten."""
    deadline = time.monotonic() + float(os.environ.get("SOAK_HOURS") or 1) * 3600
    scene.start_consumer()
    while time.monotonic() < deadline:
        scene.start_load(rate_hz=200)
        scene.wait_for_progress()
        for name in scene.rng.choices(sorted(FAULTS), k=10):
            if scene.rng.random() < 0.5:
                two_at_once(scene)
            else:
                scene.note(name)
                FAULTS[name].act(scene)
            while len(scene.consumers) > 3:
                scene.terminate(scene.consumers[0])
            scene.pause()
        verdict = scene.drain()
        scene.note(str(verdict))
        assert verdict.holds
        assert verdict.messages == verdict.indexed
        scene.assert_accounts_close()
