"""Set the passwords of Kafka's users (SCRAM), for which kafka-python 2.3.3 has no call.

This is Kafka's request AlterUserScramCredentials (KIP-554), written in kafka-python's own types. A
password does not leave this process: Kafka gets a salt and the salted hash.
"""

import hashlib
import secrets
from collections.abc import Mapping

from kafka import KafkaAdminClient
from kafka.errors import for_code
from kafka.protocol.api import Request, Response
from kafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

SCRAM_SHA_512 = 2  # the mechanism's number in the protocol
ITERATIONS = 8192  # of the hash; Kafka refuses fewer than 4096


class AlterCredentialsResponse(Response):  # type: ignore[misc]  # kafka-python has no types
    """Kafka's response: an error code for each user, 0 for a password that is set."""

    API_KEY = 51
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString()),
                ("error_code", Int16),
                ("error_message", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class AlterCredentialsRequest(Request):  # type: ignore[misc]
    """The request: the users whose passwords are deleted, and the passwords that are set."""

    API_KEY = 51
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = AlterCredentialsResponse
    SCHEMA = Schema(
        (
            "deletions",
            CompactArray(
                ("user", CompactString()),
                ("mechanism", Int8),
                ("tags", TaggedFields),
            ),
        ),
        (
            "upsertions",
            CompactArray(
                ("user", CompactString()),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


def set_passwords(admin: KafkaAdminClient, passwords: Mapping[str, str]) -> None:
    """Give each user its password; a user that does not exist yet is created.

    Raises:
        KafkaError: Kafka refuses, or does not answer.
    """
    upsertions: list[tuple[str, int, int, bytes, bytes, dict[int, bytes]]] = []
    for user, password in passwords.items():
        salt = secrets.token_bytes(32)
        hashed = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
        upsertions.append((user, SCRAM_SHA_512, ITERATIONS, salt, hashed, {}))
    for user, error_code, message, _ in admin.send_request(
        AlterCredentialsRequest([], upsertions, {})
    ).results:
        if error_code:
            raise for_code(error_code)(f"password of {user}: {message}")
