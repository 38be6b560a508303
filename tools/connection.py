"""How the tools reach the servers: by the addresses of the two scripts, each in a role of its own.

Environment: as the scripts; the names of users and passwords have the role before them.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import load_dotenv
from elasticsearch import Elasticsearch
from kafka.errors import KafkaError
from kafka.net.transport import KafkaSSLTransport

from kafka_to_elasticsearch import (
    SetupError,
    elasticsearch_security,
    login,
    refuse_plain,
    speaks_tls,
)

# Why Kafka does not let us in, in kafka-python's words -> what to mend.
REMEDIES = {
    "SaslAuthenticationFailed": "correct {role}_KAFKA_USER and {role}_KAFKA_PASSWORD",
    "CERTIFICATE_VERIFY_FAILED": "KAFKA_CA_FILE must name who signed its certificate",
    "AuthorizationFailed": "{role}_KAFKA_USER has not the right to do this",
}


def load_env() -> None:
    """Read .env; the real environment wins. Exit with code 2 when it cannot be read."""
    try:
        load_dotenv(Path(__file__).resolve().parent.parent / ".env")
    except UnicodeDecodeError:
        sys.stderr.write(".env is not in UTF-8: save it so\n")
        raise SystemExit(2) from None
    except OSError as exc:
        sys.stderr.write(f".env: {exc.strerror}\n")
        raise SystemExit(2) from None


def with_dated(index: str) -> str:
    """Return an index and those of the days or months beside it (ELASTICSEARCH_INDEX_BY)."""
    return f"{index},{index}-*.*"


class RefusedError(Exception):
    """Kafka does not let us in, in one line with what to mend."""


def kafka_options(role: str) -> dict[str, str]:
    """Return kafka-python's options for TLS and a password; let it log nothing: we say it.

    Raises:
        ValueError: a variable is missing or wrong.
    """
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    user, password, file = login(os.environ, role, "KAFKA")
    options = {"security_protocol": "SSL", "ssl_cafile": file} if file else {}
    if user:
        options |= {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512"}
        options |= {"sasl_plain_username": user, "sasl_plain_password": password}
    return options


def received(transport: KafkaSSLTransport, receive: Any = KafkaSSLTransport._sock_recv) -> Any:
    """Return what has come before the end of a connection too, which kafka-python 3.0.12 drops.

    By these words Kafka refuses a password.
    """
    content, end = receive(transport)
    return content, None if content else end  # which is met again at the next reading


@contextmanager
def explained(brokers: str, role: str, security: Mapping[str, str]) -> Iterator[None]:
    """Raise why kafka-python cannot connect: it logs that, and raises "unable to bootstrap".

    Raises:
        RefusedError: waiting would not help; what to mend, in one line.
        KafkaError: any other reason.
    """
    reasons: list[str] = []

    def hear(record: logging.LogRecord) -> bool:
        reasons.extend(re.findall(r" failed: (?:\w+: )?(.*?)(?: \(backoff|$)", record.getMessage()))
        return False  # it is not logged

    library = logging.getLogger("kafka.net.manager")
    library.setLevel(logging.WARNING)
    library.addFilter(hear)
    KafkaSSLTransport._sock_recv = received
    try:
        yield
    except KafkaError as exc:
        for sign, remedy in REMEDIES.items():
            if any(sign in reason for reason in [*reasons, str(exc)]):
                why = f"Kafka at {brokers}: {sign}: {remedy.format(role=role)}"
                raise RefusedError(why) from exc
        if not security and speaks_tls(brokers):
            why = f"Kafka at {brokers} speaks TLS: set KAFKA_CA_FILE, {role}_KAFKA_USER and "
            raise RefusedError(f"{why}{role}_KAFKA_PASSWORD") from exc
        if reasons:
            raise KafkaError(f"no connection to {brokers}: {reasons[0]}") from exc
        raise
    finally:
        library.removeFilter(hear)
        library.setLevel(logging.NOTSET)


def elasticsearch_client(role: str) -> Elasticsearch:
    """Return a client of Elasticsearch, which has not been asked anything yet.

    Raises:
        ValueError: a variable is missing or wrong, or a password would go there in clear.
    """
    url = os.environ.get("ELASTICSEARCH_URL") or "http://localhost:9200"
    security = elasticsearch_security(os.environ, role, url)
    try:
        client = Elasticsearch(url.split(","), request_timeout=60, **security)
    except ValueError:  # whose text shows the URL, and a password in it
        raise ValueError("ELASTICSEARCH_URL is no URL (try http://localhost:9200)") from None
    if security or urlsplit(url).password:
        try:
            refuse_plain(url)
        except SetupError as exc:
            raise ValueError(str(exc)) from exc
    return client
