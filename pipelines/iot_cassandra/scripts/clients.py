"""The writer's connections: Cassandra with the prepared inserts, Kafka's consumer and producer."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from cassandra import ConsistencyLevel, DriverException, InvalidRequest
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.metadata import TableMetadata
from cassandra.policies import ConstantReconnectionPolicy, FallthroughRetryPolicy
from cassandra.protocol import ErrorMessage, SyntaxException
from cassandra.query import PreparedStatement
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource

from pipelines.iot_cassandra.kafka_topic import create_topic
from pipelines.iot_cassandra.scripts.rules import InvalidReadingError, row_of
from pipelines.iot_cassandra.settings import (
    BY_DAY,
    REJECT_BYTES,
    SENSOR_DATA,
    TABLES,
    ClientError,
    addresses,
    one_line,
    rejects_topic,
)

log = logging.getLogger("kafka_to_cassandra")

REQUEST_TIMEOUT_S = 5.0  # Cassandra itself gives a write up after 2 s
SESSION_TIMEOUT_MS = 20_000  # a killed member's partitions are free after that
LARGEST_ANSWER = 2**31 - 1  # bytes: Kafka's own limit (kafka-python's is 1 MB, for its first fetch)
SET_BY_USER = 1  # for this topic: where a setting comes from, in Kafka's protocol
KAFKA_TIMEOUT_MS = 5000
# Starts a row's or a reject's way, and returns what waits for the answer, or raises an error.
Delivery = Callable[[], Callable[[], Any]]
ANY_ROW = row_of(
    SimpleNamespace(
        value=b'{"sensor_id":1,"timestamp":"2026-01-15T06:00:00Z","temperature":0.5,"humidity":50}',
        timestamp=0,
        offset=0,
    )
)
# What cassandra-driver raises while Cassandra does not answer, or refuses.
CASSANDRA_ERRORS = (NoHostAvailable, DriverException, ErrorMessage)


@dataclass
class Clients:
    """Cassandra's session with its prepared inserts, and the producer of rejects."""

    session: Session
    inserts: Mapping[str, PreparedStatement]
    producer: KafkaProducer
    rejects_topic: str

    def plan(self, message: Any) -> tuple[str, list[Delivery]]:
        """Return what a message will be counted as, and what must be acknowledged before."""
        try:
            row = row_of(message)
        except InvalidReadingError as exc:
            return "rejected", [partial(self.reject, message, f"invalid: {one_line(exc)}")]
        statements = [
            insert.bind({column.name: row[column.name] for column in insert.column_metadata})
            for insert in self.inserts.values()
        ]
        return "written", [partial(self.write, statement) for statement in statements]

    def write(self, statement: Any) -> Callable[[], Any]:
        """Send a row to Cassandra."""
        wait: Callable[[], Any] = self.session.execute_async(statement).result
        return wait

    def reject(self, message: Any, reason: str) -> Callable[[], Any]:
        """Send a message to the topic of rejects: its key and bytes, why, where it came from."""
        headers = {
            "reason": reason,
            "source.topic": message.topic,
            "source.partition": message.partition,
            "source.offset": message.offset,
            "source.timestamp": message.timestamp,  # epoch ms
        }
        future = self.producer.send(
            self.rejects_topic,
            key=message.key,
            value=message.value or b"",
            headers=[(name, str(value).encode()) for name, value in headers.items()],
        )
        return partial(future.get, timeout=4 * KAFKA_TIMEOUT_MS / 1000)  # it is given up before


def insert_into(keyspace: str, table: str) -> str:
    """Return the statement that writes a row into a table, with its write time."""
    columns = TABLES[table]
    return (
        f"INSERT INTO {keyspace}.{table} ({', '.join(columns)}) "  # noqa: S608  # our own names
        f"VALUES ({', '.join(f':{column}' for column in columns)}) USING TIMESTAMP :write_time"
    )


def connect_to_cassandra(hosts: str, keyspace: str) -> tuple[Session, dict[str, PreparedStatement]]:
    """Return a session, and the prepared insert of each table of readings that is there.

    Raises:
        ClientError: sensor_data is missing, a table has other columns or another key, or the
            keyspace can have no such name.
        NoHostAvailable, DriverException, ErrorMessage: Cassandra does not answer yet.
    """
    profile = ExecutionProfile(
        retry_policy=FallthroughRetryPolicy(),  # the retries are ours: with back-off, without end
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,  # most copies have it: one of one here
        request_timeout=REQUEST_TIMEOUT_S,
    )
    cluster = Cluster(
        addresses(hosts),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ConstantReconnectionPolicy(1.0, max_attempts=None),
    )
    try:
        session = cluster.connect()
        known = cluster.metadata.keyspaces.get(keyspace)
        there = known.tables if known else {}
        tables = [SENSOR_DATA, *({BY_DAY} & there.keys())]
        inserts = {t: session.prepare(insert_into(keyspace, t)) for t in tables}
        for table in there.keys() & inserts.keys():
            check_table(there[table], inserts[table])
        return session, inserts
    except Exception as exc:
        cluster.shutdown()  # or its threads would go on trying
        if isinstance(exc, SyntaxException):  # the rest of the statements is written here
            text = f"{one_line(exc)}: is {keyspace} a reserved word of CQL?"
            raise ClientError(text, code=2) from exc
        if not isinstance(exc, InvalidRequest):
            raise
        text = f"{one_line(exc)}: prepare.py creates what is missing"
        raise ClientError(text, code=2) from exc


def check_table(table: TableMetadata, insert: PreparedStatement) -> None:
    """Check that a table, perhaps made by hand, can hold readings, each in a row of its own.

    Raises:
        ClientError: it cannot.
    """
    key = {column.name for column in table.primary_key}
    if missing := [name for name in TABLES[table.name][:-2] if name not in key]:
        raise ClientError(
            f"the primary key of {table.name} is without {', '.join(missing)}: readings would "
            "replace one another (see cql/schema.cql)",
            code=2,
        )
    try:
        insert.bind([ANY_ROW[column.name] for column in insert.column_metadata])
    except Exception as exc:  # of a kind for each type
        text = f"{table.name} has a column of another type (see cql/schema.cql): {one_line(exc)}"
        raise ClientError(text, code=2) from exc


def connect_to_kafka(
    servers: str, topic: str, partitions: int, group_id: str
) -> tuple[KafkaConsumer, KafkaProducer]:
    """Return a consumer in the group and a producer of rejects; make the missing topics.

    Args:
        servers: HOST:PORT[,HOST:PORT...].
        topic: of the readings.
        partitions: of the topic, when it is not there yet.
        group_id: of the consumer group.

    Raises:
        KafkaError: no broker answers yet.
    """
    common = {"bootstrap_servers": servers.split(","), "reconnect_backoff_max_ms": 5000}
    with closing(KafkaAdminClient(**common)) as admin:
        create_topic(admin, topic, partitions)
        create_topic(admin, rejects_topic(topic))
        allow_large_messages(admin, rejects_topic(topic))
    consumer = KafkaConsumer(
        group_id=group_id,
        auto_offset_reset="earliest",  # started after the simulator, it misses nothing
        enable_auto_commit=False,  # only what is acknowledged is committed
        isolation_level="read_committed",  # not what a transaction has taken back
        session_timeout_ms=SESSION_TIMEOUT_MS,
        request_timeout_ms=SESSION_TIMEOUT_MS + KAFKA_TIMEOUT_MS,  # it must be longer
        heartbeat_interval_ms=1000,  # so soon it is told that partitions are shared out anew
        metadata_max_age_ms=10_000,  # a partition that is added is read within that time
        receive_message_max_bytes=LARGEST_ANSWER,
        **common,
    )
    producer = KafkaProducer(
        # An idempotent producer never recovers from a message that the broker has refused. The
        # price: a reject may be there twice after an answer was lost, with the same origin.
        enable_idempotence=False,
        acks="all",
        compression_type="gzip",
        max_request_size=REJECT_BYTES,
        max_block_ms=KAFKA_TIMEOUT_MS,
        request_timeout_ms=KAFKA_TIMEOUT_MS,
        delivery_timeout_ms=2 * KAFKA_TIMEOUT_MS,
        **common,
    )
    return consumer, producer


def allow_large_messages(admin: KafkaAdminClient, topic: str) -> None:
    """Let a topic take messages of REJECT_BYTES: Kafka may have made it for up to 1 MB."""
    [answer] = admin.describe_configs([ConfigResource("topic", topic)])
    [(*_, entries)] = answer.resources
    # A change replaces all that is set for the topic: what was set before goes along.
    settings = {name: value for name, value, _, source, *_ in entries if source == SET_BY_USER}
    settings["max.message.bytes"] = str(REJECT_BYTES)
    answer = admin.alter_configs([ConfigResource("topic", topic, settings)])
    [(error_code, error_text, *_)] = answer.resources
    if error_code:
        log.warning("large rejects may be refused: %s", error_text)
