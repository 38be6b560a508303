"""What producers other than ours may put into a topic: each codec, and aborted transactions."""

from collections.abc import Sequence
from contextlib import closing

from kafka import KafkaProducer

CODECS = (None, "gzip", "snappy", "lz4", "zstd")


def send_with_each_codec(servers: str, topic: str, messages: Sequence[bytes]) -> None:
    """Send the messages in as many batches as there are codecs, each with another codec.

    A batch must be large enough to become smaller: else kafka-python sends it as it is.
    """
    for number, codec in enumerate(CODECS):
        producer = KafkaProducer(
            bootstrap_servers=servers, compression_type=codec, linger_ms=5000, batch_size=2**20
        )
        with closing(producer):
            for message in messages[number :: len(CODECS)]:
                producer.send(topic, message, partition=0)


def send_in_transactions(
    servers: str, topic: str, aborted: Sequence[bytes], committed: Sequence[bytes]
) -> None:
    """Send messages in a transaction that is aborted, then others in one that is committed."""
    producer = KafkaProducer(bootstrap_servers=servers, transactional_id=topic)
    with closing(producer):
        producer.init_transactions()
        producer.begin_transaction()
        for message in aborted:
            producer.send(topic, message)
        producer.flush()  # else kafka-python would drop them without sending them
        producer.abort_transaction()
        producer.begin_transaction()
        for message in committed:
            producer.send(topic, message)
        producer.commit_transaction()
