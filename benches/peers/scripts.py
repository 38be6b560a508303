"""The usual first scripts, to be measured beside ours: they validate and count nothing.

    python -m benches.peers.scripts naive|streaming_bulk|bulk|parallel_bulk

Each reads the topic from its beginning and indexes all readings, under the same ids as our
consumer, until READINGS messages are read.

Environment: as for kafka_to_elasticsearch.py, and READINGS.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from elasticsearch import Elasticsearch, helpers
from kafka import KafkaConsumer


def readings() -> Iterator[dict[str, Any]]:
    """Yield the readings of the topic."""
    consumer = KafkaConsumer(
        os.environ["KAFKA_TOPIC"],
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        group_id=os.environ["KAFKA_GROUP_ID"],
        auto_offset_reset="earliest",
    )
    for message in islice(consumer, int(os.environ["READINGS"])):
        yield json.loads(message.value)
    consumer.close()


def document_id(reading: dict[str, Any]) -> str:
    """Return the id that our consumer gives to a reading."""
    return f"{reading['sensor_id']}@{reading['timestamp']}"


def actions() -> Iterator[dict[str, Any]]:
    """Yield an action of elasticsearch.helpers for each reading."""
    for reading in readings():
        yield {
            "_op_type": "create",
            "_index": os.environ["ELASTICSEARCH_INDEX"],
            "_id": document_id(reading),
            "_source": reading,
        }


def main(way: str) -> None:
    """Index the topic in one of the ways."""
    client = Elasticsearch(os.environ["ELASTICSEARCH_URL"], request_timeout=60)
    if way == "naive":
        index = os.environ["ELASTICSEARCH_INDEX"]
        for reading in readings():
            client.index(index=index, id=document_id(reading), document=reading)
    elif way == "bulk":
        helpers.bulk(client, actions(), chunk_size=2000)
    elif way == "streaming_bulk":
        for _ in helpers.streaming_bulk(client, actions(), chunk_size=500):
            pass
    else:
        for _ in helpers.parallel_bulk(client, actions(), thread_count=2, chunk_size=2000):
            pass


if __name__ == "__main__":
    main(sys.argv[1])
