#!/usr/bin/env python3
"""Send ready readings to Kafka as fast as it takes them, in one of several ways.

    python benches/peers/producers.py WAY FILE

FILE holds a reading a line; they are sent in turn until READINGS messages are sent. The ways:

    confluent-kafka     another client, batching as sensor_generator.py's producer does
    kafka-python        the generator's client and settings
    no compression, no waiting, one by one    the same with batching switched off, part by part

Environment: KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPIC, READINGS. Exit code 1: not all acknowledged.
"""

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, Message, Producer
from kafka import KafkaProducer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from sensor_generator import MAX_PENDING, PRODUCER

TIMEOUT_S = 60
# What each way has instead of the generator's settings.
WAYS: dict[str, dict[str, Any]] = {
    "kafka-python": {},
    "no compression": {"compression_type": None},
    "no waiting": {"linger_ms": 0},
    "one by one": {"linger_ms": 0, "batch_size": 0, "compression_type": None},
}


def with_confluent(servers: str, topic: str, values: Iterator[bytes]) -> bool:
    """Send values; return whether all were acknowledged."""
    failed: list[KafkaError] = []

    def note(error: KafkaError | None, _: Message) -> None:
        if error:
            failed.append(error)

    producer = Producer(
        {
            "bootstrap.servers": servers,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": PRODUCER["linger_ms"],
            "batch.size": PRODUCER["batch_size"],
            "compression.type": PRODUCER["compression_type"],
        }
    )
    for value in values:
        while True:
            try:
                producer.produce(topic, value, on_delivery=note)
                break
            except BufferError:  # its queue is full
                producer.poll(0.1)
        producer.poll(0)
    return not (producer.flush(TIMEOUT_S) or failed)


def with_kafka_python(way: str, servers: str, topic: str, values: Iterator[bytes]) -> bool:
    """Send values; return True, as what is not acknowledged raises a KafkaError."""
    options = PRODUCER | {"max_block_ms": 1000 * TIMEOUT_S} | WAYS[way]
    producer = KafkaProducer(bootstrap_servers=servers, **options)
    pending: deque[Any] = deque()
    for value in values:
        pending.append(producer.send(topic, value))
        if len(pending) == MAX_PENDING:  # the client itself would take them without limit
            pending.popleft().get(TIMEOUT_S)
    for sent in pending:
        sent.get(TIMEOUT_S)
    producer.close()
    return True


def main(argv: Sequence[str]) -> int:
    """Send the readings; return the exit code."""
    way, file = argv
    lines = Path(file).read_bytes().splitlines()
    values = islice(cycle(lines), int(os.environ["READINGS"]))
    where = os.environ["KAFKA_BOOTSTRAP_SERVERS"], os.environ["KAFKA_TOPIC"]
    if way == "confluent-kafka":
        return 0 if with_confluent(*where, values) else 1
    return 0 if with_kafka_python(way, *where, values) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
