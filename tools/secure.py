#!/usr/bin/env python3
"""Prepare the servers for a shared network: certificates, passwords, users, and what each may do.

    python tools/secure.py files    before the start: into .secure/ and .env, what is not there yet
    python tools/secure.py users    after it: Kafka's topics, users and their rights, printed

`make secure` does both, with the start between. .secure/ and .env are yours alone (git ignores
them): .secure/ holds certificates and Elasticsearch's users, roles and service token, as its file
realm reads them (passwords only as hashes); .env holds the secrets themselves. Both commands can be
run again: what is there stays, and a password changed in .env is the new one, in Elasticsearch from
its next start on. For new certificates, delete .secure/ before.

What each may do, all else is refused:

    generator   Kafka: write to the topic
    consumer    Kafka: read the topic, in its group; write to the dead-letter topic
                Elasticsearch: create its indices and their templates, create documents, read
    verifier    Kafka: read both topics; Elasticsearch: read the indices
    replayer    Kafka: replay dead letters (tools/dead_letters.py)
    dashboards  Kibana: everything in it, over the two indices, read only
    admin       Elasticsearch: everything. In Kafka: whoever holds .secure/admin.pem

Environment (or .env): KAFKA_TOPIC, KAFKA_GROUP_ID, ELASTICSEARCH_INDEX,
ELASTICSEARCH_DEAD_LETTER_INDEX as the scripts, ..._HOST_PORT as docker-compose.yml, and
    KAFKA_ADMIN_HOST_PORT   default 9093

Exit codes: 0 done, 1 Kafka does not answer or a file cannot be written, 2 wrong usage.
"""

import argparse
import base64
import hashlib
import ipaddress
import json
import os
import secrets
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dotenv import dotenv_values
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    NewTopic,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import KafkaError, TopicAlreadyExistsError

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kafka_to_elasticsearch import DEAD_LETTER_BYTES  # noqa: E402  # works from any folder
from tools import connection  # noqa: E402
from tools.connection import kafka_admin, keep_kafka_errors, load_env, run  # noqa: E402
from tools.scram import set_passwords  # noqa: E402

FOLDER = PROJECT / ".secure"

CERTIFICATE_DAYS = 825  # what clients accept at most of a server
# Elasticsearch's Hasher (x-pack core, authc/support): {PBKDF2_STRETCH}rounds$salt$key, in base64.
HASH_ROUNDS = 10_000
# What a service token starts with (x-pack security, authc/service/ServiceAccountToken).
TOKEN_VERSION = b"\x00\x01\x00\x01"
TOKEN_NAME = "elastic/kibana/smart-city"  # noqa: S105  # service account and name of the token
SECRET_LENGTH = 12  # at least: also what a placeholder seldom has

KAFKA_USERS = ("generator", "consumer", "verifier", "replayer")
# Elasticsearch's users -> their roles; Kibana asks it for its own.
ELASTICSEARCH_USERS = {
    "consumer": ["sensors_indexer"],
    "verifier": ["sensors_reader"],
    "dashboards": ["sensors_reader", "kibana_admin"],
    "admin": ["superuser"],
}

Environ = Mapping[str, str]


class SecureError(Exception):
    """What went wrong, in one line for the user."""


def write(file: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file in place: a container sees it through its mount only as long as it is the same.

    Nobody else reaches it: its folder .secure/ is closed. Within, all may read, since a container's
    user is another than ours.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=mode)
    file.chmod(mode)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


# Certificates.


class Authority:
    """A certificate authority whose key is never written: it signs once, then nobody can."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = named("smart-city authority")
        self.pem = self.sign(self.name, self.key.public_key(), [], is_authority=True)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Return a key and a certificate (PEM), for server and client use.

        The name is also a host's, as the containers know it; this machine's are added.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = [x509.DNSName(host) for host in (name, "localhost")]
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        extensions = [
            x509.SubjectAlternativeName([*hosts, address]),
            x509.ExtendedKeyUsage(uses),
        ]
        certificate = self.sign(named(name), key.public_key(), extensions)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem, certificate

    def sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        extensions: list[Any],
        is_authority: bool = False,
    ) -> bytes:
        """Return a certificate (PEM); a little backdated, as clocks differ."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(self.name, subject, key, x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(key_usage(is_authority), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def named(name: str) -> x509.Name:
    """Return a certificate's subject."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(signs_certificates: bool) -> x509.KeyUsage:
    """Return what a key is for: signing certificates, or proving who one is."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def make_certificates() -> None:
    """Write certificates and keys: for each server what its container sees, and the admin's."""
    authority = Authority()
    kafka, admin = b"".join(authority.issue("kafka")), b"".join(authority.issue("admin"))
    write(FOLDER / "kafka/kafka.pem", kafka)  # Kafka's PEM key store: key and certificate
    write(FOLDER / "kafka/client.properties", client_properties(kafka, authority.pem))
    write(FOLDER / "admin.pem", admin, 0o600)  # not for a container
    for name, folder in (("elasticsearch", "elasticsearch/certs"), ("kibana", "kibana")):
        key, certificate = authority.issue(name)
        write(FOLDER / folder / f"{name}.key", key)
        write(FOLDER / folder / f"{name}.pem", certificate)
    for folder in ("kafka", "elasticsearch/certs", "kibana", "."):
        write(FOLDER / folder / "ca.pem", authority.pem)


def client_properties(key_and_certificate: bytes, authority: bytes) -> str:
    """Return the configuration of Kafka's console tools for the holder of a certificate.

    All is in it, so that it works wherever it is mounted.
    """
    key, begin, certificate = key_and_certificate.decode().partition("-----BEGIN CERTIFICATE-----")
    values = {
        "security.protocol": "SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.key": key,
        "ssl.keystore.certificate.chain": begin + certificate,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": authority.decode(),
    }
    one_line = {name: value.strip().replace("\n", "\\n") for name, value in values.items()}
    return "".join(f"{name}={value}\n" for name, value in one_line.items())


# Elasticsearch's file realm.


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
    """Return the bearer token that Kibana's service account shows."""
    return base64_of(TOKEN_VERSION + f"{TOKEN_NAME}:{secret}".encode())


def token_secret(token: str) -> str:
    """Return the secret in a service token of ours.

    Raises:
        SecureError: it is none.
    """
    with suppress(ValueError):
        secret = base64.b64decode(token).rpartition(b":")[2].decode()
        if token == service_token(secret):
            return secret
    raise SecureError("KIBANA_SERVICE_TOKEN in .env was not made here: delete that line")


def roles(environ: Environ) -> dict[str, Any]:
    """Return the roles: what the consumer needs, and what reading the same needs."""
    indices = [
        f"{environ.get('ELASTICSEARCH_INDEX') or 'sensors_data'}*",
        f"{environ.get('ELASTICSEARCH_DEAD_LETTER_INDEX') or 'sensors_dead_letters'}*",
    ]
    read = ["read", "view_index_metadata"]
    return {
        # create_doc: a new document, no change to one; and no right to delete an index. Version
        # 8 still lets who may write add fields to a mapping; templates have no rights by name.
        "sensors_indexer": {
            "cluster": ["monitor", "manage_index_templates"],
            "indices": [{"names": indices, "privileges": ["create_doc", "create_index", *read]}],
        },
        # maintenance: to make searchable what is indexed (refresh) before counting; monitor: to
        # ask how large it is (tools/sizing.py).
        "sensors_reader": {
            "cluster": ["monitor"],
            "indices": [{"names": indices, "privileges": ["maintenance", "monitor", *read]}],
        },
    }


def write_realm(folder: Path, environ: Environ) -> None:
    """Write Elasticsearch's users, roles and service token."""

    def lines(entries: Mapping[str, str], between: str = ":") -> str:
        return "".join(f"{name}{between}{value}\n" for name, value in entries.items())

    holders: dict[str, list[str]] = {}
    for user, names in ELASTICSEARCH_USERS.items():
        for name in names:
            holders.setdefault(name, []).append(user)
    passwords = {user: environ[elasticsearch_password(user)] for user in ELASTICSEARCH_USERS}
    token = hashed(token_secret(environ["KIBANA_SERVICE_TOKEN"]))
    write(folder / "users", lines({user: hashed(word) for user, word in passwords.items()}))
    write(folder / "users_roles", lines({name: ",".join(who) for name, who in holders.items()}))
    write(folder / "roles.yml", lines({n: json.dumps(r) for n, r in roles(environ).items()}, ": "))
    write(folder / "service_tokens", lines({TOKEN_NAME: token}))


def elasticsearch_password(user: str) -> str:
    """Return the variable with the password of one of Elasticsearch's users."""
    return "KIBANA_PASSWORD" if user == "dashboards" else f"{user.upper()}_ELASTICSEARCH_PASSWORD"


# .env


def settings(environ: Environ) -> dict[str, str]:
    """Return what .env must say in this variant, besides the secrets."""
    authority = str(FOLDER / "ca.pem")
    users = {f"{user.upper()}_KAFKA_USER": user for user in KAFKA_USERS}
    for user in ELASTICSEARCH_USERS:
        users[elasticsearch_password(user).replace("_PASSWORD", "_USER")] = user
    return {
        "COMPOSE_FILE": "docker-compose.yml:docker-compose.kraft.yml:docker-compose.secure.yml",
        "ELASTICSEARCH_URL": f"https://localhost:{environ.get('ELASTICSEARCH_HOST_PORT') or 9200}",
        "KIBANA_URL": f"https://localhost:{environ.get('KIBANA_HOST_PORT') or 5601}",
        "KAFKA_CA_FILE": authority,
        "ELASTICSEARCH_CA_FILE": authority,
        "KIBANA_CA_FILE": authority,
        **users,
    }


def new_secrets() -> dict[str, str]:
    """Return a new value for each secret."""
    names = [f"{user.upper()}_KAFKA_PASSWORD" for user in KAFKA_USERS]
    names += [elasticsearch_password(user) for user in ELASTICSEARCH_USERS]
    new = {name: secrets.token_urlsafe(24) for name in [*names, "KIBANA_ENCRYPTION_KEY"]}
    return {**new, "KIBANA_SERVICE_TOKEN": service_token(secrets.token_urlsafe(24))}


def complete_env() -> None:
    """Set in .env, at its end, the settings and the secrets that it has not; keep all else.

    Raises:
        SecureError: a secret that it has is too short to be one.
    """
    file = connection.ENV_FILE
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    there = read_env()
    made = new_secrets()
    if short := [name for name in made if len(there.get(name, made[name])) < SECRET_LENGTH]:
        raise SecureError(
            f".env: {', '.join(short)}: fewer than {SECRET_LENGTH} characters; leave it empty, and "
            "one is made"
        )
    missing = {name: value for name, value in made.items() if name not in there}
    wanted = settings({**there, **os.environ}) | missing
    added = {name: value for name, value in wanted.items() if there.get(name) != value}
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in added]
    lines += [f"{name}={value}" for name, value in added.items()]
    # Beside it first: a full disk must not take the secrets that are there.
    write(new := file.resolve().with_name(".env.new"), "\n".join([*lines, ""]), 0o600)
    new.replace(file.resolve())


def read_env() -> dict[str, str]:
    """Return what .env says, without what is empty there."""
    values = dotenv_values(connection.ENV_FILE, interpolate=False)
    return {name: value for name, value in values.items() if value}


def make_files() -> None:
    """Make what is not there yet: certificates, secrets; write Elasticsearch's users and roles."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    FOLDER.chmod(0o700)
    is_there = (FOLDER / "ca.pem").exists()
    if not is_there:
        make_certificates()
    complete_env()
    given = {name: value for name, value in os.environ.items() if value}
    write_realm(FOLDER / "elasticsearch", {**read_env(), **given})
    say(f".secure   certificates {'there already' if is_there else 'made'}")
    say(".env      passwords and addresses set")


# Kafka's users and rights.


def rights(environ: Environ) -> Iterator[tuple[str, ResourceType, str, ACLOperation]]:
    """Yield what each user may do: user, kind of resource, its name, operation.

    READ and WRITE include DESCRIBE.
    """
    topic, group = topic_and_group(environ)
    letters, replay = f"{topic}.dead-letter", f"{topic}.dead-letter-replay"
    read, write = ACLOperation.READ, ACLOperation.WRITE
    yield "generator", ResourceType.TOPIC, topic, write
    yield "consumer", ResourceType.TOPIC, topic, read
    yield "consumer", ResourceType.GROUP, group, read
    yield "consumer", ResourceType.TOPIC, letters, write
    yield "verifier", ResourceType.TOPIC, topic, read
    yield "verifier", ResourceType.TOPIC, letters, read
    yield "verifier", ResourceType.CLUSTER, "kafka-cluster", ACLOperation.DESCRIBE  # sizing.py
    yield "replayer", ResourceType.TOPIC, topic, write
    yield "replayer", ResourceType.TOPIC, letters, read
    yield "replayer", ResourceType.TOPIC, letters, write
    yield "replayer", ResourceType.GROUP, replay, read
    yield "replayer", ResourceType.TRANSACTIONAL_ID, replay, write


def topic_and_group(environ: Environ) -> tuple[str, str]:
    """Return the topic and the consumer's group."""
    topic = environ.get("KAFKA_TOPIC") or "smart-city-sensors"
    return topic, environ.get("KAFKA_GROUP_ID") or "smart-city-indexer"


def acls(environ: Environ) -> list[ACL]:
    """Return the rights as Kafka's access control list."""
    return [
        ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))
        for user, kind, name, operation in rights(environ)
    ]


def admin_client(environ: Environ) -> KafkaAdminClient:
    """Return a client that may do everything, by the administrator's certificate.

    Raises:
        SecureError: there is no certificate.
        KafkaError: Kafka does not answer.
    """
    certificate, authority = FOLDER / "admin.pem", FOLDER / "ca.pem"
    if not certificate.exists():
        raise SecureError(f"there is no {certificate}: run `python tools/secure.py files` first")
    keep_kafka_errors()
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate)
    # TLS 1.3 sends session tickets when nothing is asked, and kafka-python hangs up then.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    security = {"security_protocol": "SSL", "ssl_context": context}
    return kafka_admin(admin_address(environ), security)


def admin_address(environ: Environ) -> str:
    """Return where the administrator's listener is."""
    return f"127.0.0.1:{environ.get('KAFKA_ADMIN_HOST_PORT') or 9093}"


def make_topics(admin: KafkaAdminClient, environ: Environ) -> None:
    """Make the two topics, so that nobody else needs the right to."""
    topic, _ = topic_and_group(environ)
    letters = {"max.message.bytes": str(DEAD_LETTER_BYTES)}
    for name, configs in ((topic, {}), (f"{topic}.dead-letter", letters)):
        with suppress(TopicAlreadyExistsError):
            admin.create_topics([NewTopic(name, topic_configs=configs)])


def make_users(admin: KafkaAdminClient, environ: Environ) -> None:
    """Set the users' passwords and give them their rights.

    Raises:
        SecureError: a password is not in .env, or Kafka refuses a right.
        KafkaError: Kafka does not answer, or refuses a password.
    """
    passwords = {}
    for user in KAFKA_USERS:
        variable = f"{user.upper()}_KAFKA_PASSWORD"
        if not (password := environ.get(variable)):
            raise SecureError(f"{variable} is not set: run this with `files`")
        passwords[user] = password
    set_passwords(admin, passwords)
    for acl, error in admin.create_acls(acls(environ))["failed"]:
        raise SecureError(f"Kafka refuses to give a right: {error.__name__}: {acl}")
    say(f"{'user':<12}{'may':<10}{'on':<18}name")
    for user, kind, name, operation in rights(environ):
        say(f"{user:<12}{operation.name.lower():<10}{kind.name.lower():<18}{name}")


# The command.


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["files", "users"])
    command = parser.parse_args(argv).command
    load_env()
    environ = {**read_env(), **os.environ}
    try:
        if command == "files":
            make_files()
        else:
            with closing(admin_client(environ)) as admin:
                make_topics(admin, environ)
                make_users(admin, environ)
    except SecureError as exc:
        why = str(exc)
    except KafkaError as exc:
        why = f"Kafka does not answer the administrator at {admin_address(environ)} ({exc}): "
        why += "is the secure variant started? (make secure)"
    except OSError as exc:
        why = f"{exc.filename or 'standard output'}: {exc.strerror or exc}"
    else:
        return 0
    sys.stderr.write(f"secure: {why}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(run(main))
