#!/usr/bin/env python3
"""Do the work of kafka_to_elasticsearch.py with another Kafka client: what does the client cost?

A message is validated by that script's own parse_reading and becomes the same document under the
same id. Bulk requests create 5000 documents; three are in flight while the next is read; the answer
for each document is looked at; offsets are committed in order, once all before them are settled.

What no message of the benches needs is left out: retries, dead letters, accounts. So a document
that is not indexed ends the run. It stops when READINGS messages are settled.

Environment: as for kafka_to_elasticsearch.py, and READINGS.
"""

import gc
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition
from elasticsearch import Elasticsearch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from kafka_to_elasticsearch import BULK_READINGS, BULKS_IN_FLIGHT, parse_reading

ALREADY_THERE, CREATED = 409, 201


def document(message: Message) -> tuple[str, bytes]:
    """Return the id and the source of what is indexed of a message."""
    reading = parse_reading(message.value())
    return f"{reading.sensor_id}@{reading.timestamp}", msgspec.json.encode(reading)


def settle(client: Elasticsearch, documents: Sequence[tuple[str, bytes]]) -> None:
    """Index documents, and see that each is there."""
    lines = [b'{"create":{"_id":"%b"}}\n%b\n' % (i.encode(), source) for i, source in documents]
    answer = client.bulk(
        index=os.environ["ELASTICSEARCH_INDEX"],
        operations=[b"".join(lines)],  # type: ignore[list-item]  # bytes go as they are
        filter_path="items.*.status,items.*.error.type,items.*.error.reason",
    )
    for item in answer["items"]:
        if item["create"]["status"] not in (CREATED, ALREADY_THERE):
            sys.exit(f"not indexed: {item}")


def batches(consumer: Consumer, readings: int) -> Iterator[list[Message]]:
    """Yield messages as they come, until there were so many."""
    while readings:
        if messages := consumer.consume(min(readings, BULK_READINGS), timeout=0.1):
            readings -= len(messages)
            yield messages


def commit(consumer: Consumer, messages: Sequence[Message], settled: Future[None]) -> None:
    """Commit the offsets of messages once they are settled."""
    settled.result()
    offsets = {message.partition(): message.offset() + 1 for message in messages}
    topic = messages[0].topic()
    where = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
    consumer.commit(offsets=where, asynchronous=False)


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
            "queued.max.messages.kbytes": 4000,  # as much as the script reads ahead ...
            "fetch.queue.backoff.ms": 20,  # ... and more as soon as there is room
        }
    )
    consumer.subscribe([os.environ["KAFKA_TOPIC"]])
    gc.freeze()
    gc.set_threshold(50_000)  # as the script has it
    in_flight: deque[tuple[list[Message], Future[None]]] = deque()  # the oldest first
    with ThreadPoolExecutor(BULKS_IN_FLIGHT) as workers:
        for messages in batches(consumer, int(os.environ["READINGS"])):
            documents = [document(message) for message in messages]
            while in_flight and (len(in_flight) == BULKS_IN_FLIGHT or in_flight[0][1].done()):
                commit(consumer, *in_flight.popleft())
            in_flight.append((messages, workers.submit(settle, client, documents)))
        for messages, settled in in_flight:
            commit(consumer, messages, settled)
    consumer.close()


if __name__ == "__main__":
    main()
