#!/usr/bin/env python3
"""Send ready readings to Kafka with confluent-kafka, as fast as it takes them.

    python benches/peers/confluent.py FILE

FILE holds a reading a line; they are sent in turn until READINGS messages are sent, with the
settings of sensor_generator.py's producer.

Environment: KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPIC, READINGS. Exit code 1: not all acknowledged.
"""

import os
import sys
from itertools import cycle, islice
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer

SETTINGS = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 20,
    "batch.size": 128 * 1024,
    "compression.type": "lz4",
}


def main(file: str) -> int:
    """Send the readings; return the exit code."""
    topic, count = os.environ["KAFKA_TOPIC"], int(os.environ["READINGS"])
    values = Path(file).read_bytes().splitlines()
    failed: list[KafkaError] = []

    def note(error: KafkaError | None, _: Message) -> None:
        if error:
            failed.append(error)

    servers = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
    producer = Producer({"bootstrap.servers": servers, **SETTINGS})
    for value in islice(cycle(values), count):
        while True:
            try:
                producer.produce(topic, value, on_delivery=note)
                break
            except BufferError:  # its queue is full
                producer.poll(0.1)
        producer.poll(0)
    return 1 if producer.flush(60) or failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
