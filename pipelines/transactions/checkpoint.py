"""Whether a consumer may go on with a checkpoint: alone, with its output, and on its own topic."""

from base64 import urlsafe_b64decode
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

from pyarrow import fs

from pipelines.transactions.servers import Servers
from pipelines.transactions.spark_session import FOLDER
from pipelines.transactions.store import (
    CHECKPOINT,
    OUTPUT,
    REJECTS,
    TOPIC_ID,
    Store,
    StoreError,
)

CLIENT_TIMEOUTS_MS = {"default.api.timeout.ms": "20000", "request.timeout.ms": "10000"}


def lock_file(store: Store) -> Path:
    """Return the file that a consumer locks: one for each checkpoint, by its address."""
    address = f"{store.endpoint.lower()}/{store.bucket}".replace("//localhost", "//127.0.0.1")
    return FOLDER.with_name("locks") / quote(address, safe="")


def check_checkpoint(store: Store) -> None:
    """Make sure that what is stored has the checkpoint that it was written with.

    Without it the batches are numbered from 0 again, and each clears the folders of its number.

    Raises:
        StoreError: there are batches and no checkpoint.
    """
    client = store.filesystem()

    def names(folder: str) -> list[str]:
        path = fs.FileSelector(f"{store.bucket}/{folder}", allow_not_found=True)
        return [info.base_name for info in client.get_file_info(path)]

    has_batches = any("=" in name for folder in (OUTPUT, REJECTS) for name in names(folder))
    if has_batches and not any(name.isdecimal() for name in names(f"{CHECKPOINT}/offsets")):
        raise StoreError(
            f"the bucket {store.bucket} holds {OUTPUT}/ or {REJECTS}/ but not their {CHECKPOINT}/: "
            "a new start would overwrite them; choose another bucket by S3_BUCKET"
        )


def topic_id(jvm: Any, servers: Servers) -> str:
    """Return the id that Kafka gave the topic when it was made.

    Asked by Kafka's own client, which Spark's connector brings: kafka-python does not know the id.

    Args:
        jvm: of py4j, by which Python calls Spark's Java.
        servers: name the topic.

    Raises:
        Py4JError: Kafka does not answer, or has no such topic.
    """
    settings = {"bootstrap.servers": servers.kafka, **CLIENT_TIMEOUTS_MS}
    with closing(jvm.org.apache.kafka.clients.admin.AdminClient.create(settings)) as admin:
        topics = admin.describeTopics([servers.topic]).allTopicNames().get()
        text = topics[servers.topic].topicId().toString()  # in base 64
    return str(UUID(bytes=urlsafe_b64decode(f"{text}==")))


def check_topic(jvm: Any, servers: Servers) -> None:
    """Make sure that the topic is the one that the checkpoint is of; the first time, note it.

    Spark knows a topic by its name alone: in a new one of the same name it would go on at the old
    one's offsets, and pass over what is before them.

    Raises:
        StoreError: it is another one.
        Py4JError, OSError: a server does not answer.
    """
    found, store = topic_id(jvm, servers), servers.store
    client, path = store.filesystem(), f"{store.bucket}/{TOPIC_ID}"
    if client.get_file_info(path).type == fs.FileType.NotFound:
        with client.open_output_stream(path) as file:
            file.write(f"{servers.topic} {found}\n".encode())
        return
    with client.open_input_file(path) as file:
        topic, _, noted = file.read().decode().strip().partition(" ")
    if topic != servers.topic:
        raise StoreError(
            f"{CHECKPOINT}/ is that of topic {topic}, not of {servers.topic}: "
            "choose another bucket (S3_BUCKET)"
        )
    if noted != found:
        raise StoreError(
            f"topic {topic} was deleted and made anew: its offsets are not those of {CHECKPOINT}/; "
            "choose another bucket (S3_BUCKET)"
        )
