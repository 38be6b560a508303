"""Whether a consumer may go on with a checkpoint: alone, with its output, and on its own topic."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from pyarrow import fs

from pipelines.common import next_copy
from pipelines.spark import topic_id
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

log = logging.getLogger("consumer_spark")
LOCK_WAIT_S = 30.0


def lock_file(store: Store) -> Path:
    """Return the file that a consumer locks: one for each checkpoint, by its address."""
    address = f"{store.endpoint.lower()}/{store.bucket}".replace("//localhost", "//127.0.0.1")
    return FOLDER.with_name("locks") / quote(address, safe="")


@contextmanager
def lock(store: Store, stop: threading.Event) -> Iterator[TextIO | None]:
    """Keep a checkpoint for this process, and for the Java that is given the file.

    Java must hold the file too: when Python alone is killed, its Java works on for a moment, for
    which this waits.

    Args:
        store: what is written.
        stop: is set when the process is told to end.

    Yields:
        The open file; None when told to stop.

    Raises:
        StoreError: another consumer keeps the checkpoint.
    """
    wrong = f"another consumer works on {store.url(CHECKPOINT)} on this machine"
    say = partial(log.warning, "waiting at most %g s: %s", LOCK_WAIT_S, wrong)
    with next_copy(lock_file(store), time.monotonic() + LOCK_WAIT_S, stop, say) as held:
        if not held and not stop.is_set():
            raise StoreError(wrong)
        yield held


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


def check_topic(jvm: Any, servers: Servers) -> None:
    """Make sure that the topic is the one that the checkpoint is of; the first time, note it.

    Spark knows a topic by its name alone: in a new one of the same name it would go on at the old
    one's offsets, and pass over what is before them.

    Raises:
        StoreError: it is another one.
        Py4JError, OSError: a server does not answer.
    """
    store = servers.store
    found = topic_id(jvm, servers.kafka, servers.topic)
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
