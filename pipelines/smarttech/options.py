"""What the command lines share: the values they take, as the generator does. No Spark in here."""

from sensor_generator import at_least, servers, topic_name

__all__ = ["KAFKA_START", "at_least", "servers", "topic_name"]

KAFKA_START = (
    "docker compose -f docker-compose.yml -f pipelines/smarttech/compose.yml up -d --wait kafka"
)
