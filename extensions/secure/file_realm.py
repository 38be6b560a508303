"""Elasticsearch's users, roles and service token, as the files that its file realm reads.

Passwords are in them only as hashes.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from stack.compose import StackError

# Elasticsearch's Hasher (x-pack core, authc/support): {PBKDF2_STRETCH}rounds$salt$key, in base64.
HASH_ROUNDS = 10_000
# The first bytes of every service token (x-pack security, authc/service/ServiceAccountToken).
TOKEN_VERSION = b"\x00\x01\x00\x01"
TOKEN_NAME = "elastic/kibana/smart-city"  # noqa: S105  # service account and name of the token

# User -> roles. Kibana asks Elasticsearch for the users too, and has no list of its own.
ELASTICSEARCH_USERS = {
    "consumer": ["sensors_indexer"],
    "verifier": ["sensors_reader"],
    "dashboards": ["sensors_reader", "kibana_admin"],
    "admin": ["superuser"],
}


def realm_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the files of the realm: name -> content.

    Raises:
        StackError: KIBANA_SERVICE_TOKEN is not a token of service_token.
    """

    def lines(entries: Mapping[str, str], separator: str = ":") -> str:
        return "".join(f"{name}{separator}{value}\n" for name, value in entries.items())

    holders: dict[str, list[str]] = {}
    for user, names in ELASTICSEARCH_USERS.items():
        for name in names:
            holders.setdefault(name, []).append(user)
    users = {user: hashed(environ[password_variable(user)]) for user in ELASTICSEARCH_USERS}
    return {
        "users": lines(users),
        "users_roles": lines({name: ",".join(who) for name, who in holders.items()}),
        "roles.yml": lines({n: json.dumps(role) for n, role in roles(environ).items()}, ": "),
        "service_tokens": lines(
            {TOKEN_NAME: hashed(token_secret(environ["KIBANA_SERVICE_TOKEN"]))}
        ),
    }


def password_variable(user: str) -> str:
    """Return the name of the variable with the password of one of Elasticsearch's users."""
    return "KIBANA_PASSWORD" if user == "dashboards" else f"{user.upper()}_ELASTICSEARCH_PASSWORD"


def roles(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return Elasticsearch's definitions of the roles of the consumer and of the readers."""
    indices = [
        f"{environ.get('ELASTICSEARCH_INDEX') or 'sensors_data'}*",
        f"{environ.get('ELASTICSEARCH_DEAD_LETTER_INDEX') or 'sensors_dead_letters'}*",
    ]
    read = ["read", "view_index_metadata"]
    return {
        # create_doc allows new documents but no changes, and no privilege here deletes an index.
        # In Elasticsearch 8, a user who may write may also add fields to the mapping. The privilege
        # for index templates cannot be limited to some names.
        "sensors_indexer": {
            "cluster": ["monitor", "manage_index_templates"],
            "indices": [{"names": indices, "privileges": ["create_doc", "create_index", *read]}],
        },
        # maintenance is for the refresh before documents are counted, monitor for the size of an
        # index (tools/sizing.py).
        "sensors_reader": {
            "cluster": ["monitor"],
            "indices": [{"names": indices, "privileges": ["maintenance", "monitor", *read]}],
        },
    }


def hashed(password: str) -> str:
    """Return a password's hash as Elasticsearch verifies it (PBKDF2 over the SHA-512 in hex)."""
    salt = secrets.token_bytes(32)
    stretched = hashlib.sha512(password.encode()).hexdigest().encode()
    key = hashlib.pbkdf2_hmac("sha512", stretched, salt, HASH_ROUNDS, 32)
    return f"{{PBKDF2_STRETCH}}{HASH_ROUNDS}${base64_of(salt)}${base64_of(key)}"


def base64_of(content: bytes) -> str:
    """Return bytes in base64, as text."""
    return base64.b64encode(content).decode()


def service_token(secret: str) -> str:
    """Return the bearer token by which Kibana's service account logs in."""
    return base64_of(TOKEN_VERSION + f"{TOKEN_NAME}:{secret}".encode())


def token_secret(token: str) -> str:
    """Return the secret in a service token.

    Raises:
        StackError: the token was not made by service_token.
    """
    with suppress(ValueError):
        secret = base64.b64decode(token).rpartition(b":")[2].decode()
        if token == service_token(secret):
            return secret
    raise StackError("KIBANA_SERVICE_TOKEN in .env was not made here: delete that line")
