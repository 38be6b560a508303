#!/usr/bin/env python3
"""Prepare the servers for a shared network: certificates, passwords, users, and what each may do.

    python tools/secure.py files    before the start: into .secure/ and .env, where not there yet
    python tools/secure.py users    after it: Kafka's topics, users and their rights

`make secure` does both, with the start between. The two folders and files are yours alone (git
ignores them): .secure/ holds the certificate authority, the certificates and Elasticsearch's users,
roles and service tokens, as its file realm reads them (passwords only as hashes); .env holds the
secrets themselves. Both commands can be run again at any time: what is there stays, and a password
changed in .env is the new one, in Elasticsearch from its next start on.

What each may do, all else is refused (`users` prints it):

    generator   Kafka: write to the topic
    consumer    Kafka: read the topic, in its group; write to the dead-letter topic
                Elasticsearch: create its indices and their templates, create documents, read
    verifier    Kafka: read both topics; Elasticsearch: read the indices
    replayer    Kafka: replay dead letters (tools/dead_letters.py)
    dashboards  Kibana: everything in it, over the two indices, read only
    admin       Elasticsearch: everything. In Kafka: the holder of .secure/admin.pem

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
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dotenv import dotenv_values
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    UserScramCredentialUpsertion,
)
from kafka.errors import KafkaError, TopicAlreadyExistsError

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / ".secure"
ENV_FILE = PROJECT / ".env"

CA_DAYS, CERTIFICATE_DAYS, RENEWAL_DAYS = 3650, 825, 30
DEAD_LETTER_BYTES = 100_000_000  # as kafka_to_elasticsearch.py: what could be read can be filed
# Elasticsearch's Hasher (x-pack core, authc/support): {PBKDF2_STRETCH}rounds$salt$key, in base64.
HASH_ROUNDS = 10_000
# What a service token starts with (x-pack security, authc/service/ServiceAccountToken).
TOKEN_VERSION = b"\x00\x01\x00\x01"
TOKEN_NAME = "elastic/kibana/smart-city"  # noqa: S105  # service account and name of the token

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


# Files.


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
    """A certificate authority of our own, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        """Read the authority, or make it."""
        key_file, self.file = folder / "ca.key", folder / "ca.pem"
        if not (key_file.exists() and self.file.exists()):
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "smart-city authority")])
            builder = new_certificate(name, name, key.public_key(), CA_DAYS)
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            builder = builder.add_extension(key_usage(signs_certificates=True), True)
            write(key_file, private_pem(key), 0o600)
            write(self.file, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        self.key = load_pem_private_key(key_file.read_bytes(), None)
        self.certificate = x509.load_pem_x509_certificate(self.file.read_bytes())

    def issue(self, name: str, key_file: Path, certificate_file: Path) -> bool:
        """Make a key and a certificate for server and client use; return False when still good.

        The name is also a host's, as the containers know it; this machine's are added. With one
        file for both it has the form of Kafka's PEM key store.
        """
        if certificate_file.exists() and self.is_good(certificate_file):
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        addresses = [ipaddress.ip_address(text) for text in ("127.0.0.1", "::1")]
        hosts = [x509.DNSName(host) for host in (name, "localhost")]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer, days = self.certificate.subject, CERTIFICATE_DAYS
        certificate = (
            new_certificate(subject, issuer, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(key_usage(signs_certificates=False), True)
            .add_extension(x509.ExtendedKeyUsage(uses), False)
            .add_extension(
                x509.SubjectAlternativeName([*hosts, *map(x509.IPAddress, addresses)]), False
            )
            .sign(self.key, hashes.SHA256())  # type: ignore[arg-type]  # the key is ours: EC
            .public_bytes(Encoding.PEM)
        )
        files = {key_file: private_pem(key)}
        files[certificate_file] = files.get(certificate_file, b"") + certificate
        for file, content in files.items():
            write(file, content)
        return True

    def is_good(self, file: Path) -> bool:
        """Return whether a certificate is ours and does not end soon."""
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        soon = datetime.now(UTC) + timedelta(days=RENEWAL_DAYS)
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except Exception:  # noqa: BLE001  # another name, or another signature: several types
            return False
        return certificate.not_valid_after_utc > soon


def new_certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """Return what all certificates have in common; a little backdated, as clocks differ."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def key_usage(signs_certificates: bool) -> x509.KeyUsage:
    """Return what a key is for: signing certificates, or proving who one is."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted: who may read the file may use it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def client_properties(pem: str, authority: str) -> str:
    """Return the configuration of Kafka's console tools for the holder of a certificate.

    The certificates are in it, so that it works wherever it is mounted.
    """
    key, _, certificate = pem.partition("-----BEGIN CERTIFICATE-----")
    values = {
        "security.protocol": "SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.key": key,
        "ssl.keystore.certificate.chain": f"-----BEGIN CERTIFICATE-----{certificate}",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": authority,
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
    """Return the bearer token that a service account shows."""
    return base64_of(TOKEN_VERSION + f"{TOKEN_NAME}:{secret}".encode())


def token_secret(token: str) -> str:
    """Return the secret in a service token of ours.

    Raises:
        SecureError: it is none.
    """
    try:
        content = base64.b64decode(token, validate=True).removeprefix(TOKEN_VERSION).decode()
    except ValueError:
        content = ""
    name, _, secret = content.partition(":")
    if name != TOKEN_NAME or len(secret) < 10:  # shorter ones are refused by Elasticsearch
        raise SecureError(
            "KIBANA_SERVICE_TOKEN in .env is not one made by this command: delete that line"
        )
    return secret


def roles(environ: Environ) -> dict[str, Any]:
    """Return the roles: what the consumer needs, and what reading the same needs."""
    indices = [
        f"{environ.get('ELASTICSEARCH_INDEX') or 'sensors_data'}*",
        f"{environ.get('ELASTICSEARCH_DEAD_LETTER_INDEX') or 'sensors_dead_letters'}*",
    ]
    read = ["read", "view_index_metadata"]
    return {
        # create_doc: a new document, never a change to one; and no right to delete an index.
        "sensors_indexer": {
            "cluster": ["monitor", "manage_index_templates"],
            "indices": [{"names": indices, "privileges": ["create_doc", "create_index", *read]}],
        },
        # maintenance: to make searchable what is indexed (refresh) before counting.
        "sensors_reader": {
            "cluster": ["monitor"],
            "indices": [{"names": indices, "privileges": ["maintenance", *read]}],
        },
    }


def write_realm(folder: Path, environ: Environ) -> None:
    """Write Elasticsearch's users, roles and service token."""
    passwords = {user: environ[elasticsearch_password(user)] for user in ELASTICSEARCH_USERS}
    users = (f"{user}:{hashed(password)}\n" for user, password in passwords.items())
    write(folder / "users", "".join(users))
    holders: dict[str, list[str]] = {}
    for user, names in ELASTICSEARCH_USERS.items():
        for name in names:
            holders.setdefault(name, []).append(user)
    lines = (f"{name}:{','.join(users)}\n" for name, users in holders.items())
    write(folder / "users_roles", "".join(lines))
    definitions = (f"{name}: {json.dumps(role)}\n" for name, role in roles(environ).items())
    write(folder / "roles.yml", "".join(definitions))
    secret = token_secret(environ["KIBANA_SERVICE_TOKEN"])
    write(folder / "service_tokens", f"{TOKEN_NAME}:{hashed(secret)}\n")


def elasticsearch_password(user: str) -> str:
    """Return the variable with the password of one of Elasticsearch's users."""
    return "KIBANA_PASSWORD" if user == "dashboards" else f"{user.upper()}_ELASTICSEARCH_PASSWORD"


# .env


def wanted(environ: Environ) -> dict[str, str]:
    """Return what .env must say in this variant: variable -> value, a new secret for each."""
    ports = {
        name: environ.get(f"{name}_HOST_PORT") or default
        for name, default in (("ELASTICSEARCH", "9200"), ("KIBANA", "5601"))
    }
    settings = {
        "COMPOSE_FILE": "docker-compose.yml:docker-compose.kraft.yml:docker-compose.secure.yml",
        "ELASTICSEARCH_URL": f"https://localhost:{ports['ELASTICSEARCH']}",
        "KIBANA_URL": f"https://localhost:{ports['KIBANA']}",
    }
    settings |= {f"{name}_CA_FILE": str(FOLDER / "ca.pem") for name in ("KAFKA", *ports)}
    for user in KAFKA_USERS:
        settings[f"{user.upper()}_KAFKA_USER"] = user
        settings[f"{user.upper()}_KAFKA_PASSWORD"] = secrets.token_urlsafe(24)
    for user in ELASTICSEARCH_USERS:
        variable = elasticsearch_password(user)
        settings[variable.replace("_PASSWORD", "_USER")] = user
        settings[variable] = secrets.token_urlsafe(24)
    settings["KIBANA_SERVICE_TOKEN"] = service_token(secrets.token_urlsafe(24))
    settings["KIBANA_ENCRYPTION_KEY"] = secrets.token_urlsafe(24)
    return settings


def complete_env(file: Path, defaults: Environ, settings: Environ) -> list[str]:
    """Set in .env, at its end, what is empty there or as in .env.example; return these names."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    known = dotenv_values(file, interpolate=False) if text else {}
    added = []
    for name, value in settings.items():
        replaced = ("", defaults.get(name), value.replace("https:", "http:"))
        if (known.get(name) or "") in replaced and known.get(name) != value:
            added.append(name)
    for name in added:
        lines = [line for line in text.splitlines() if not line.startswith(f"{name}=")]
        text = "\n".join([*lines, f"{name}={settings[name]}", ""])
    write(file, text, 0o600)
    return added


def make_files(environ: Environ) -> None:
    """Make what is not there yet: certificates, secrets; write Elasticsearch's users and roles."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    FOLDER.chmod(0o700)
    authority = Authority(FOLDER)
    certificates = {
        "kafka": ("kafka/kafka.pem", "kafka/kafka.pem"),
        "admin": ("admin.pem", "admin.pem"),
        "elasticsearch": (
            "elasticsearch/certs/elasticsearch.key",
            "elasticsearch/certs/elasticsearch.pem",
        ),
        "kibana": ("kibana/kibana.key", "kibana/kibana.pem"),
    }
    for name, files in certificates.items():
        made = authority.issue(name, *(FOLDER / file for file in files))
        say(f"certificate {name:<14} {'made' if made else 'there already'}")
    trusted = authority.file.read_text()
    for folder in ("kafka", "elasticsearch/certs", "kibana"):
        write(FOLDER / folder / "ca.pem", trusted)
    (FOLDER / "admin.pem").chmod(0o600)  # not for a container
    admin = (FOLDER / "admin.pem").read_text()
    write(FOLDER / "kafka/admin.properties", client_properties(admin, trusted))
    defaults = dotenv_values(PROJECT / ".env.example")
    added = complete_env(ENV_FILE, known(defaults), wanted(environ))
    say(f"variables in .env         {len(added)} added")
    write_realm(FOLDER / "elasticsearch", known(dotenv_values(ENV_FILE)))
    say(f"users of Elasticsearch    {', '.join(ELASTICSEARCH_USERS)}")


# Kafka's users and rights.


def rights(environ: Environ) -> Iterator[tuple[str, ResourceType, str, list[ACLOperation]]]:
    """Yield what each user may do: user, kind of resource, its name, operations.

    READ and WRITE include DESCRIBE.
    """
    topic = environ.get("KAFKA_TOPIC") or "smart-city-sensors"
    group = environ.get("KAFKA_GROUP_ID") or "smart-city-indexer"
    letters, replay = f"{topic}.dead-letter", f"{topic}.dead-letter-replay"
    read, write = [ACLOperation.READ], [ACLOperation.WRITE]
    yield "generator", ResourceType.TOPIC, topic, write
    yield "consumer", ResourceType.TOPIC, topic, read
    yield "consumer", ResourceType.GROUP, group, read
    yield "consumer", ResourceType.TOPIC, letters, [ACLOperation.CREATE, ACLOperation.WRITE]
    yield "verifier", ResourceType.TOPIC, topic, read
    yield "verifier", ResourceType.TOPIC, letters, read
    yield "replayer", ResourceType.TOPIC, topic, write
    yield "replayer", ResourceType.TOPIC, letters, [ACLOperation.READ, ACLOperation.WRITE]
    yield "replayer", ResourceType.GROUP, replay, read
    yield "replayer", ResourceType.TRANSACTIONAL_ID, replay, write


def acls(environ: Environ) -> list[ACL]:
    """Return the rights as Kafka's access control list."""
    return [
        ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))
        for user, kind, name, operations in rights(environ)
        for operation in operations
    ]


def admin_client(environ: Environ) -> KafkaAdminClient:
    """Return a client that may do everything, by the administrator's certificate.

    Raises:
        KafkaError: Kafka does not answer.
    """
    return KafkaAdminClient(
        bootstrap_servers=admin_address(environ),
        bootstrap_timeout_ms=10_000,
        security_protocol="SSL",
        ssl_cafile=str(FOLDER / "ca.pem"),
        ssl_certfile=str(FOLDER / "admin.pem"),
    )


def admin_address(environ: Environ) -> str:
    """Return where the administrator's listener is."""
    return f"127.0.0.1:{environ.get('KAFKA_ADMIN_HOST_PORT') or 9093}"


def make_topics(admin: KafkaAdminClient, environ: Environ) -> None:
    """Make the two topics, so that nobody else needs the right to."""
    topic = environ.get("KAFKA_TOPIC") or "smart-city-sensors"
    letters = {"configs": {"max.message.bytes": str(DEAD_LETTER_BYTES)}}
    for name, details in ((topic, {}), (f"{topic}.dead-letter", letters)):
        try:
            admin.create_topics({name: details})
        except TopicAlreadyExistsError:
            continue


def make_users(admin: KafkaAdminClient, environ: Environ) -> None:
    """Set the users' passwords; only their salted hashes are sent.

    Raises:
        SecureError: a password is not in .env, or Kafka refuses one.
    """
    changes = []
    for user in KAFKA_USERS:
        password = environ.get(f"{user.upper()}_KAFKA_PASSWORD")
        if not password:
            raise SecureError(f"{user.upper()}_KAFKA_PASSWORD is not set: run this with `files`")
        changes.append(UserScramCredentialUpsertion(user, "SCRAM-SHA-512", password))
    for user, refusal in admin.alter_user_scram_credentials(changes).items():
        if refusal:
            raise SecureError(f"Kafka refuses the password of {user}: {refusal}")


def set_rights(admin: KafkaAdminClient, environ: Environ) -> None:
    """Give each user its rights, and take all others from it.

    Raises:
        SecureError: Kafka refuses.
    """
    given = acls(environ)
    if failed := admin.create_acls(given)["failed"]:
        raise SecureError(f"Kafka refuses to give rights: {failed[0].__name__}")
    anything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
    for user in KAFKA_USERS:
        everything = ACLFilter(
            f"User:{user}", None, ACLOperation.ANY, ACLPermissionType.ANY, anything
        )
        there, _ = admin.describe_acls(everything)
        if more := [acl for acl in there if acl not in given]:
            admin.delete_acls(more)


def print_rights(environ: Environ) -> None:
    """Print what each user may do in Kafka."""
    say(f"{'user':<12}{'may':<16}{'on':<18}name")
    for user, kind, name, operations in rights(environ):
        may = ", ".join(operation.name.lower() for operation in operations)
        say(f"{user:<12}{may:<16}{kind.name.lower():<18}{name}")


# The command.


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def known(values: Mapping[str, str | None]) -> dict[str, str]:
    """Return the variables that have a value."""
    return {name: value for name, value in values.items() if value}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["files", "users"])
    command = parser.parse_args(argv).command
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    environ = {**known(dotenv_values(ENV_FILE)), **os.environ}
    try:
        if command == "files":
            make_files(environ)
            return 0
        with admin_client(environ) as admin:
            make_topics(admin, environ)
            make_users(admin, environ)
            set_rights(admin, environ)
        print_rights(environ)
    except SecureError as exc:
        why = str(exc)
    except KafkaError as exc:
        why = f"Kafka does not answer the administrator at {admin_address(environ)} ({exc}): "
        why += "is the secure variant started? (make secure)"
    except OSError as exc:
        why = f"{exc.filename or 'a file'}: {exc.strerror or exc}: run this with `files` first"
    else:
        return 0
    sys.stderr.write(f"secure: {why}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
