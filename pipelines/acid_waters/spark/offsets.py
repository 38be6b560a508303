"""Where in the topic to begin: after what PostgreSQL has settled, if Kafka still holds it."""

import json
from contextlib import closing

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from pipelines.acid_waters.kafka.topic import kafka_client
from pipelines.acid_waters.postgresql.database import (
    Connection,
    next_offsets,
    note_loss,
    note_topic,
)
from pipelines.acid_waters.spark.spark_session import java
from pipelines.spark import topic_id


class LossError(Exception):
    """Kafka no longer has what should be read next."""


def starting_offsets(
    conn: Connection, bootstrap_servers: str, topic: str, accept_loss: bool
) -> str:
    """Return where to begin, as Spark wants it: {topic: {partition: offset}} in JSON.

    Args:
        conn: to PostgreSQL.
        bootstrap_servers: of Kafka.
        topic: its name.
        accept_loss: begin later where Kafka has deleted lots that were never read, and note that.

    Raises:
        LossError: the topic does not hold it, or no longer.
        KafkaError: Kafka does not answer, or does not have the topic yet.
    """
    read = next_offsets(conn, topic)
    consumer = KafkaConsumer(
        **kafka_client(bootstrap_servers, wait_s=5),
        isolation_level="read_committed",
        allow_auto_create_topics=False,
    )
    with closing(consumer):
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise KafkaError(f"no topic {topic} yet: prepare.py makes it")
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    # With more messages than the old one had, only its id gives it away. It is all zeros where
    # Kafka gives none, and for a topic that was just made.
    current_id = topic_id(java().jvm, bootstrap_servers, topic)
    if current_id.strip("0-") and not note_topic(conn, topic, current_id):
        raise LossError(f"{topic} was deleted and made anew. Give it another name (WATER_TOPIC)")
    begin = {}
    for partition in partitions:
        number = partition.partition
        wanted = read.get(number, 0)
        if wanted > end[partition]:
            raise LossError(
                f"{topic} was made anew: partition {number} ends at {end[partition]}, "
                f"{wanted} were read. Give it another name (WATER_TOPIC)"
            )
        if wanted < first[partition]:
            if not accept_loss:
                raise LossError(
                    f"Kafka has deleted unread lots: partition {number}, offsets {wanted} to "
                    f"{first[partition] - 1}. Go on without: --accept-loss, and send them again"
                )
            note_loss(conn, topic, number, wanted, first[partition])
        begin[str(number)] = max(wanted, first[partition])
    return json.dumps({topic: begin})
