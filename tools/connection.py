"""How the tools reach the servers: by the addresses of the two scripts, each in a role of its own.

Environment: as the scripts; the names of users and passwords have the role before them.
"""

import logging
import os
from urllib.parse import urlsplit

from elasticsearch import Elasticsearch

from kafka_to_elasticsearch import SetupError, elasticsearch_security, refuse_plain
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
