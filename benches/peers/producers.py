"""Send ready lines to Kafka as fast as it takes them, in one of several ways.

    python -m benches.peers.producers WAY FILE

Each line of FILE is a reading; the lines are sent again and again until READINGS messages are sent.
The ways:

    confluent-kafka     another client, which batches as sensor_generator.py's producer does
    kafka-python        the generator's client and settings
    no compression, no waiting, one by one    the same without parts of the batching, or all of it

Environment: KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPIC, READINGS.

Exit codes: 0 sent, 1 not all messages were acknowledged.
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

from sensor_generator import MAX_PENDING, PRODUCER

TIMEOUT_S = 60
# Way -> the settings that differ from the generator's.
KAFKA_PYTHON_WAYS: dict[str, dict[str, Any]] = {
    "kafka-python": {},
    "no compression": {"compression_type": None},
    "no waiting": {"linger_ms": 0},
    "one by one": {"linger_ms": 0, "batch_size": 0, "compression_type": None},
}


def send_with_confluent(servers: str, topic: str, values: Iterator[bytes]) -> bool:
    """Send values by confluent-kafka; return whether all were acknowledged."""
    errors: list[KafkaError] = []

    def note(error: KafkaError | None, _: Message) -> None:
        if error:
            errors.append(error)

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
            except BufferError:  # the producer's queue is full
                producer.poll(0.1)
        producer.poll(0)
    return not (producer.flush(TIMEOUT_S) or errors)


def send_with_kafka_python(way: str, servers: str, topic: str, values: Iterator[bytes]) -> None:
    """Send values by kafka-python, and wait until all are acknowledged.

    Raises:
        KafkaError: a message was not acknowledged in time.
    """
    options = PRODUCER | {"max_block_ms": 1000 * TIMEOUT_S} | KAFKA_PYTHON_WAYS[way]
    producer = KafkaProducer(bootstrap_servers=servers, **options)
    pending: deque[Any] = deque()
    for value in values:
        pending.append(producer.send(topic, value))
        if len(pending) == MAX_PENDING:  # the client itself sets no limit to its memory
            pending.popleft().get(TIMEOUT_S)
    for sent in pending:
        sent.get(TIMEOUT_S)
    producer.close()


def main(argv: Sequence[str]) -> int:
    """Send the readings; return the exit code."""
    way, file = argv
    lines = Path(file).read_bytes().splitlines()
    values = islice(cycle(lines), int(os.environ["READINGS"]))
    servers, topic = os.environ["KAFKA_BOOTSTRAP_SERVERS"], os.environ["KAFKA_TOPIC"]
    if way == "confluent-kafka":
        return 0 if send_with_confluent(servers, topic, values) else 1
    send_with_kafka_python(way, servers, topic, values)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
