"""Kafka's topics, users and their rights, set by the administrator once the broker runs."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    NewTopic,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import KafkaError, NoBrokersAvailable, TopicAlreadyExistsError

from extensions.secure.scram import set_passwords
from stack.compose import StackError
from stack.console import say
from stack.native.kafka import tls_options

KAFKA_USERS = ("generator", "consumer", "verifier", "replayer")
CONNECT_TIMEOUT_MS = 10_000
# As the consumer makes its dead-letter topic: whatever could be read from Kafka fits into it.
DEAD_LETTER_BYTES = 100_000_000


def rights(
    environ: Mapping[str, str],
) -> Iterator[tuple[str, ResourceType, str, ACLOperation]]:
    """Yield each right as its user, the kind of resource, the resource's name, the operation.

    In Kafka, READ and WRITE include DESCRIBE.
    """
    topic, group = topic_and_group(environ)
    dead_letters, replay = f"{topic}.dead-letter", f"{topic}.dead-letter-replay"
    read, write = ACLOperation.READ, ACLOperation.WRITE
    yield "generator", ResourceType.TOPIC, topic, write
    yield "consumer", ResourceType.TOPIC, topic, read
    yield "consumer", ResourceType.GROUP, group, read
    yield "consumer", ResourceType.TOPIC, dead_letters, write
    yield "verifier", ResourceType.TOPIC, topic, read
    yield "verifier", ResourceType.TOPIC, dead_letters, read
    # tools/sizing.py asks for the size of the topic on the brokers' disks.
    yield "verifier", ResourceType.CLUSTER, "kafka-cluster", ACLOperation.DESCRIBE
    yield "replayer", ResourceType.TOPIC, topic, write
    yield "replayer", ResourceType.TOPIC, dead_letters, read
    yield "replayer", ResourceType.TOPIC, dead_letters, write
    yield "replayer", ResourceType.GROUP, replay, read
    yield "replayer", ResourceType.TRANSACTIONAL_ID, replay, write


def topic_and_group(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the topic of the readings and the consumer group that reads it."""
    topic = environ.get("KAFKA_TOPIC") or "smart-city-sensors"
    return topic, environ.get("KAFKA_GROUP_ID") or "smart-city-indexer"


def acls(environ: Mapping[str, str]) -> list[ACL]:
    """Return the rights as Kafka's access control list."""
    return [
        ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))
        for user, kind, name, operation in rights(environ)
    ]


class LastError(logging.Handler):
    """Keeps the last error of kafka-python's log: its exceptions do not say the cause."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of a record, without the connection's description before it."""
        self.text = record.getMessage().rpartition(">: ")[2].removeprefix("Closing connection. ")


def admin_client(address: str, certificate: Path, authority: Path) -> KafkaAdminClient:
    """Return a client that may do everything in Kafka, by the administrator's certificate.

    Args:
        address: the broker's listener for the administrator, HOST:PORT.
        certificate: file with key and certificate (PEM).
        authority: file with the certificate (PEM) of the authority that issued the broker's.

    Raises:
        StackError: there is no certificate.
        KafkaError: Kafka does not answer, or refuses the certificate.
    """
    if not certificate.exists():
        raise StackError(
            f"there is no {certificate}: run `python -m extensions.secure files` first"
        )
    last_error = LastError(logging.ERROR)
    logger = logging.getLogger("kafka")
    logger.addHandler(last_error)
    logger.propagate = False  # the one line for the user is the exception's
    try:
        return KafkaAdminClient(
            bootstrap_servers=address,
            api_version_auto_timeout_ms=CONNECT_TIMEOUT_MS,
            **tls_options(authority, certificate),
        )
    except (KafkaError, OSError, ValueError) as exc:
        cause = last_error.text if isinstance(exc, KafkaError) else ""
        raise NoBrokersAvailable(" ".join((cause or str(exc)).split())[:300]) from exc


def make_topics(admin: KafkaAdminClient, environ: Mapping[str, str]) -> None:
    """Make the topics of the readings and of the dead letters: no user has the right to do it."""
    topic, _ = topic_and_group(environ)
    large = {"max.message.bytes": str(DEAD_LETTER_BYTES)}
    for name, configs in ((topic, {}), (f"{topic}.dead-letter", large)):
        with suppress(TopicAlreadyExistsError):
            admin.create_topics([NewTopic(name, topic_configs=configs)])


def make_users(admin: KafkaAdminClient, environ: Mapping[str, str]) -> None:
    """Set the users' passwords, give them their rights, and print these.

    Raises:
        StackError: a password is not set, or Kafka refuses a right.
        KafkaError: Kafka does not answer, or refuses a password.
    """
    passwords = {}
    for user in KAFKA_USERS:
        variable = f"{user.upper()}_KAFKA_PASSWORD"
        if not (password := environ.get(variable)):
            raise StackError(f"{variable} is not set: run `python -m extensions.secure files`")
        passwords[user] = password
    set_passwords(admin, passwords)
    for acl, error in admin.create_acls(acls(environ))["failed"]:
        raise StackError(f"Kafka refuses to give a right: {error.__name__}: {acl}")
    say(f"{'user':<12}{'may':<10}{'on':<18}name")
    for user, kind, name, operation in rights(environ):
        say(f"{user:<12}{operation.name.lower():<10}{kind.name.lower():<18}{name}")
