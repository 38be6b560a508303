"""How Spark uses the script: the driver prepares the servers, the executors settle partitions.

spark_to_elasticsearch.py sends this module to the executors, beside kafka_to_elasticsearch.py.
"""

import argparse
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from elasticsearch import Elasticsearch
from kafka.errors import KafkaError

import kafka_to_elasticsearch as script
from kafka_to_elasticsearch import Batch, BulkWriter, DeadLetter, Options, SetupError, WithReason

CHUNK = 100  # messages that a batch takes in before it is asked whether it is full
GIVE_UP_S = 10.0  # a task waits so long for a server; then it fails, and the driver waits
# --index-by: how much of a time names an index, the pattern of such names, their priority.
# A daily name matches both: the higher priority counts, and that of tools.retention is above both.
PERIODS = {"day": (len("2026-06-01"), "*.*.*", 900_000), "month": (len("2026-06"), "*.*", 800_000)}


# 1. The driver: the servers, before the first message.


def prepare(options: Options, index_by: str | None) -> None:
    """Make the topics, the indices and the template of those to come, where they are missing.

    Raises:
        SetupError: a server refuses us, or Elasticsearch would hold readings twice.
        ApiError, TransportError, KafkaError: a server is away.
    """
    with script.connect_to_elasticsearch(options) as client:
        for name in held_otherwise(client, options.index, index_by):
            why = f"the readings of index {name} would be indexed once more"
            raise SetupError(f"{why}: choose another --index, or the same --index-by as before")
        if index_by:
            _, pattern, priority = PERIODS[index_by]
            template = script.load_template(script.MAPPING_FILE)
            client.indices.put_index_template(
                name=f"smart-city-{options.index}-by-{index_by}",
                index_patterns=[f"{options.index}-{pattern}"],
                priority=priority,
                allow_auto_create=True,  # Elasticsearch makes an index for its first document
                template=template,
            )
            check_dated(client, options.index, index_by, template)
    for kafka_client in script.connect_to_kafka(options):
        kafka_client.close()


def check_dated(client: Elasticsearch, index: str, index_by: str, template: dict[str, Any]) -> None:
    """Check the dated indices that are there, and the mapping that the next would have.

    Raises SetupError: one was made by others, or a template of others counts more than ours.
    """
    length, pattern, _ = PERIODS[index_by]
    to_come = f"{index}-{'2026.06.01'[:length]}"
    guess = client.indices.simulate_index_template(name=to_come)
    if guess["template"].get("mappings") != template["mappings"]:
        raise SetupError(
            f"a template of others gives {to_come} its mapping: choose another --index"
        )
    for name, state in client.indices.get(index=f"{index}-{pattern}").items():
        if re.fullmatch(r"-[\d.]+", name.removeprefix(index)):
            script.check_index(name, {name: state}, template)
            script.check_documents_are_kept(name, state)


def held_otherwise(client: Elasticsearch, index: str, index_by: str | None) -> list[str]:
    """Return the names, of an index and of its dated ones, that hold readings and are not ours."""
    by_name = {"names": {"terms": {"field": "_index", "size": 10_000}}}
    answer = client.search(index=f"{index},{index}-*", size=0, aggregations=by_name)
    names = [bucket["key"] for bucket in answer["aggregations"]["names"]["buckets"]]
    shapes = {"": None, "-d.d.d": "day", "-d.d": "month"}
    found = {name: re.sub(r"\d+", "d", name.removeprefix(index)) for name in names}
    return [n for n, shape in found.items() if shapes.get(shape, index_by) != index_by]


def source_options(options: Options, environ: Mapping[str, str], most: int) -> dict[str, str]:
    """Return the options of Spark's Kafka source; a micro-batch has `most` readings at most."""
    user, password, file = script.login(environ, "CONSUMER", "KAFKA")
    user, password = (re.sub(r'(["\\])', r"\\\1", text) for text in (user, password))
    source = {
        "kafka.bootstrap.servers": options.bootstrap_servers,
        "subscribe": options.topic,
        "startingOffsets": "earliest",
        "maxOffsetsPerTrigger": str(most),
        "kafka.isolation.level": "read_committed",  # not what a transaction has taken back
        "kafka.group.id": options.group_id,  # that we have a right to; no offset is committed to it
    }
    if user or file:
        source["kafka.security.protocol"] = "SASL_SSL" if user else "SSL"
    if file:
        source |= {"kafka.ssl.truststore.type": "PEM", "kafka.ssl.truststore.location": file}
    if user:
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        login = f'{module} required username="{user}" password="{password}";'
        source |= {"kafka.sasl.mechanism": "SCRAM-SHA-512", "kafka.sasl.jaas.config": login}
    return source


def topic_id(java: Any, source: Mapping[str, str]) -> str:
    """Return the id that Kafka gives to a topic, of the options of the Kafka source.

    A topic that is made anew, with offsets from 0 on, has another id, and so another checkpoint.
    Kafka's client for Python does not tell it; that of Spark's Java does.
    """
    options = {n.removeprefix("kafka."): v for n, v in source.items() if n.startswith("kafka.")}
    admin = java.org.apache.kafka.clients.admin.Admin.create(options)
    try:
        described = admin.describeTopics([source["subscribe"]]).topicNameValues()
        return str(described.get(source["subscribe"]).get().topicId().toString())
    finally:
        admin.close()


# 2. The executors: the messages of one partition.


class Job(NamedTuple):
    """What the driver tells the executors.

    Attributes:
        argv: the script's arguments.
        environ: the script's environment, (name, value) each.
        index_by: a key of PERIODS, or None: one index for all readings.
    """

    argv: tuple[str, ...]
    environ: tuple[tuple[str, str], ...]
    index_by: str | None


class Message(msgspec.Struct):
    """A message of Kafka as the script reads it; Spark's JSON leaves out what is null."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # Unix time, ms
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[()] = ()


decode_message = msgspec.json.Decoder(Message).decode


class TaskWriter(BulkWriter):
    """The script's writer without what the driver does: make the indices, and wait for long."""

    def why_not_ready(self) -> str:
        """Return "": the driver has seen to the indices."""
        return ""

    def send_dead_letters(self, letters: list[DeadLetter]) -> WithReason:
        """Do as the script, with a producer that connects when the first dead letter comes."""
        options = self.options
        try:
            self.producer = producer_at(options.bootstrap_servers, **options.kafka_security)
        except (KafkaError, OSError, ValueError) as exc:  # as in the script's connect_to_kafka
            return [(letter, script.one_line(exc)) for letter in letters]
        return super().send_dead_letters(letters)


# A Python worker settles one task after the other: what it has connected to stays connected.


@cache
def connected(job: Job) -> tuple[Options, Elasticsearch]:
    """Return the script's options and a client of Elasticsearch."""
    options = script.parse_options(job.argv, dict(job.environ))
    client = Elasticsearch(
        options.elasticsearch_url.split(","),
        max_retries=0,
        request_timeout=script.REQUEST_TIMEOUT_S,
        **options.elasticsearch_security,
    )
    return options, client


@cache
def producer_at(servers: str, **security: Any) -> Any:
    """Return a producer of dead letters. Raises KafkaError, OSError, ValueError: Kafka is away."""
    return script.make_producer({"bootstrap_servers": servers.split(","), **security})


def settle_partition(job: Job, lines: Iterable[bytes]) -> Iterator[Counter[str]]:
    """Settle the messages of a partition; yield the accounts of each batch.

    Args:
        job: what the driver tells.
        lines: the messages, each a Message as JSON, its bytes in base64.

    Raises:
        GaveUpError: a server was away for GIVE_UP_S. Spark tries the task again, on another
            executor if there is one.
    """
    options, client = connected(job)
    for batch in batches_of(lines):
        accounts = Counter(consumed=batch.messages)
        for index, part in by_index(batch, options.index, job.index_by).items():
            its_options = argparse.Namespace(**{**vars(options), "index": index})
            settle(TaskWriter(its_options, client, None), part)
            accounts.update(part.outcome)
        yield accounts


def settle(writer: BulkWriter, batch: Batch) -> None:
    """Settle a batch. Raises GaveUpError: a server was away for GIVE_UP_S."""
    patience = threading.Timer(GIVE_UP_S, writer.stopping.set)
    patience.start()
    try:
        writer.settle(batch)
    finally:
        patience.cancel()


def batches_of(lines: Iterable[bytes]) -> Iterator[Batch]:
    """Yield the messages in batches as large as the script's, validated as there."""
    batch, messages = Batch(), map(decode_message, lines)
    while some := list(islice(messages, CHUNK)):
        batch.add(None, some)  # of one partition only, whose offsets Spark keeps
        if batch.is_full:
            yield batch
            batch = Batch()
    if batch.messages:
        yield batch


def by_index(batch: Batch, index: str, index_by: str | None) -> dict[str, Batch]:
    """Return a batch by the index of its documents; the dead letters are with the first.

    The day or month is that of the reading, in UTC, as its id says: a reading that comes again
    finds itself in the same index.
    """
    if not index_by:
        return {index: batch}
    parts: dict[str, Batch] = defaultdict(Batch, {index: Batch(dead_letters=batch.dead_letters)})
    for document in batch.documents:
        time_utc = document.id.rpartition("@")[2]
        period = time_utc[: PERIODS[index_by][0]].replace("-", ".")
        parts[f"{index}-{period}"].documents.append(document)
    return parts
