"""Do the work of kafka_to_elasticsearch.py with another Kafka client, to know the client's cost.

    python -m benches.peers.confluent_consumer

A message is validated by that script's own parse_reading and becomes the same document under the
same id. Bulk requests create 5000 documents; three are in flight while the next is read; the answer
for each document is checked; offsets are committed in order, once all before them are settled.

Retries, dead letters and counters are left out, because no message of the benches needs them. So a
document that is not indexed ends the run. It stops when READINGS messages are settled.

Environment: as for kafka_to_elasticsearch.py, and READINGS.
"""

import gc
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition
from elasticsearch import Elasticsearch

from kafka_to_elasticsearch import BATCH_MESSAGES, BATCHES_IN_FLIGHT, parse_reading

CREATED, CONFLICT = 201, 409  # a conflict: the document is there already


def document(message: Message) -> tuple[str, bytes]:
    """Return the id and the source of a message's document.

    Raises:
        ValueError: the message is not a reading.
    """
    reading = parse_reading(message.value())
    return f"{reading.sensor_id}@{reading.timestamp}", msgspec.json.encode(reading)


def settle(client: Elasticsearch, documents: Sequence[tuple[str, bytes]]) -> None:
    """Index documents, each given as its id and source; exit when one is not indexed."""
    lines = [b'{"create":{"_id":"%b"}}\n%b\n' % (i.encode(), source) for i, source in documents]
    answer = client.bulk(
        index=os.environ["ELASTICSEARCH_INDEX"],
        operations=[b"".join(lines)],  # type: ignore[list-item]  # bytes are sent unchanged
        filter_path="items.*.status,items.*.error.type,items.*.error.reason",
    )
    for item in answer["items"]:
        if item["create"]["status"] not in (CREATED, CONFLICT):
            sys.exit(f"not indexed: {item}")


def batches(consumer: Consumer, readings: int) -> Iterator[list[Message]]:
    """Yield messages as they come, until that many readings have come."""
    while readings:
        if messages := consumer.consume(min(readings, BATCH_MESSAGES), timeout=0.1):
            readings -= len(messages)
            yield messages


def commit(consumer: Consumer, messages: Sequence[Message], settled: Future[None]) -> None:
    """Wait until messages are settled, then commit their offsets."""
    settled.result()
    offsets = {message.partition(): message.offset() + 1 for message in messages}
    topic = messages[0].topic()
    positions = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
    consumer.commit(offsets=positions, asynchronous=False)


def main() -> None:
    """Index the topic."""
    client = Elasticsearch(os.environ["ELASTICSEARCH_URL"], request_timeout=60)
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
            "group.id": os.environ["KAFKA_GROUP_ID"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": 4000,  # it reads as much ahead as the script does ...
            "fetch.queue.backoff.ms": 20,  # ... and more as soon as there is room
        }
    )
    consumer.subscribe([os.environ["KAFKA_TOPIC"]])
    gc.freeze()
    gc.set_threshold(50_000)  # the script's value
    in_flight: deque[tuple[list[Message], Future[None]]] = deque()  # the oldest first
    with ThreadPoolExecutor(BATCHES_IN_FLIGHT) as workers:
        for messages in batches(consumer, int(os.environ["READINGS"])):
            documents = [document(message) for message in messages]
            while in_flight and (len(in_flight) == BATCHES_IN_FLIGHT or in_flight[0][1].done()):
                commit(consumer, *in_flight.popleft())
            in_flight.append((messages, workers.submit(settle, client, documents)))
        for messages, settled in in_flight:
            commit(consumer, messages, settled)
    consumer.close()


if __name__ == "__main__":
    main()
