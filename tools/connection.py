"""How the tools reach the servers: by the addresses of the two scripts, each in a role of its own.

Environment: as the scripts; the names of users and passwords have the role before them.
"""

import logging
import os
from typing import Any

from elasticsearch import Elasticsearch

from sensor_generator import kafka_security


def kafka_options(role: str) -> dict[str, str]:
    """Return kafka-python's options for TLS and a password; let it log nothing: we say it.

    Raises:
        ValueError: a variable is missing or wrong.
    """
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return kafka_security(os.environ, role)


def elasticsearch_client(role: str) -> Elasticsearch:
    """Return a client of Elasticsearch, which has not been asked anything yet.

    Raises:
        ValueError: a variable is wrong.
    """
    url = os.environ.get("ELASTICSEARCH_URL") or "http://localhost:9200"
    user, password = (os.environ.get(f"{role}_ELASTICSEARCH_{n}") for n in ("USER", "PASSWORD"))
    options: dict[str, Any] = {"basic_auth": (user, password)} if user and password else {}
    if url.startswith("https:"):
        options["ca_certs"] = os.environ.get("ELASTICSEARCH_CA_FILE") or None
    return Elasticsearch(url, request_timeout=60, **options)
