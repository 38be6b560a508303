"""Prepare the servers for a shared network: certificates, passwords, users, and their rights.

    python -m extensions.secure files    before the start: complete .secure/ and .env
    python -m extensions.secure users    after it: set Kafka's topics, users and rights, print them

`make secure` does both, with the start between. Only you can read .secure/ and .env; git ignores
both. .secure/ holds the certificates and the files of Elasticsearch's users, with passwords only as
hashes; .env holds the passwords themselves. Both commands can be run again: what exists stays. A
password changed in .env is used by Elasticsearch after `files` and a start, by Kafka after `users`.
For new certificates, delete .secure/ before `files`.

The rights of each user; all else is refused:

    generator   Kafka: write to the topic
    consumer    Kafka: read the topic, in its group; write to the dead-letter topic
                Elasticsearch: create its indices and their templates, create documents, read
    verifier    Kafka: read both topics; Elasticsearch: read the indices
    replayer    Kafka: replay dead letters (tools/dead_letters.py)
    dashboards  Kibana: everything in it, over the two indices, read only
    admin       Elasticsearch: everything. In Kafka: the holder of .secure/admin.pem

Environment (or .env): KAFKA_TOPIC, KAFKA_GROUP_ID, ELASTICSEARCH_INDEX,
ELASTICSEARCH_DEAD_LETTER_INDEX as the scripts, ..._HOST_PORT as docker-compose.yml, and
    KAFKA_ADMIN_HOST_PORT   port of Kafka's listener for the administrator (default: 9093)

Exit codes: 0 done, 1 Kafka does not answer or a file cannot be written, 2 wrong usage or .env.
"""

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from kafka.errors import KafkaError, NoBrokersAvailable

from extensions.secure.certificates import certificate_files
from extensions.secure.file_realm import (
    ELASTICSEARCH_USERS,
    password_variable,
    realm_files,
    service_token,
)
from extensions.secure.kafka_users import KAFKA_USERS, admin_client, make_topics, make_users
from stack.compose import PROJECT, StackError
from stack.console import command, command_parser, say
from stack.env_file import ENV_FILE, EnvFileError, read_env_file, read_environment

FOLDER = PROJECT / ".secure"
ADMIN_CERTIFICATE = "admin.pem"
COMPOSE_FILES = (
    "docker-compose.yml",
    "extensions/kraft/compose.yml",
    "extensions/secure/compose.yml",
)
SECRET_MIN_LENGTH = 12  # characters; placeholders such as "change-me" are shorter


def make_files() -> None:
    """Write the certificates and secrets that are missing, and Elasticsearch's users and roles.

    Raises:
        StackError: a secret in .env cannot be used.
        OSError: a file cannot be written.
    """
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    FOLDER.chmod(0o700)
    has_certificates = (FOLDER / "ca.pem").exists()
    if not has_certificates:
        for name, content in certificate_files().items():
            write(FOLDER / name, content, 0o600 if name == ADMIN_CERTIFICATE else 0o644)
    complete_env()
    given = {name: value for name, value in os.environ.items() if value}
    for name, text in realm_files({**env_settings(), **given}).items():
        write(FOLDER / "elasticsearch" / name, text.encode())
    say(f".secure   certificates {'there already' if has_certificates else 'made'}")
    say(".env      passwords and addresses set")


def write(file: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file in place, since a container's mount would not show a new file of the same name.

    Others cannot reach it, because the folder .secure/ is closed to them. The file itself is
    readable by all by default, because the user in a container is another one than ours.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=mode)
    file.chmod(mode)
    file.write_bytes(content)


def complete_env() -> None:
    """Add to .env, at its end, the settings and the secrets that it lacks; keep all else.

    Raises:
        StackError: a secret in .env is too short.
    """
    text = ENV_FILE.read_text(encoding="utf-8") if ENV_FILE.exists() else ""
    present = env_settings()
    made = new_secrets()
    short = [name for name in made if len(present.get(name, made[name])) < SECRET_MIN_LENGTH]
    if short:
        raise StackError(
            f".env: {', '.join(short)}: fewer than {SECRET_MIN_LENGTH} characters; leave it empty, "
            "and one is made"
        )
    missing = {name: value for name, value in made.items() if name not in present}
    wanted = settings({**present, **os.environ}) | missing
    added = {name: value for name, value in wanted.items() if present.get(name) != value}
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in added]
    lines += [f"{name}={value}" for name, value in added.items()]
    # Into another file first: a full disk must not take the secrets that .env holds.
    new = ENV_FILE.resolve().with_name(".env.new")
    write(new, "\n".join([*lines, ""]).encode(), 0o600)
    new.replace(ENV_FILE.resolve())


def env_settings() -> dict[str, str]:
    """Return the variables of .env that have a value there."""
    return {name: value for name, value in read_env_file(ENV_FILE).items() if value}


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that .env needs for the secure variant, besides the secrets."""
    authority = str(FOLDER / "ca.pem")
    users = {f"{user.upper()}_KAFKA_USER": user for user in KAFKA_USERS}
    for user in ELASTICSEARCH_USERS:
        users[password_variable(user).replace("_PASSWORD", "_USER")] = user
    return {
        "COMPOSE_FILE": ":".join(COMPOSE_FILES),
        "ELASTICSEARCH_URL": f"https://localhost:{environ.get('ELASTICSEARCH_HOST_PORT') or 9200}",
        "KIBANA_URL": f"https://localhost:{environ.get('KIBANA_HOST_PORT') or 5601}",
        "KAFKA_CA_FILE": authority,
        "ELASTICSEARCH_CA_FILE": authority,
        "KIBANA_CA_FILE": authority,
        **users,
    }


def new_secrets() -> dict[str, str]:
    """Return a new random value for each secret: variable -> value."""
    names = [f"{user.upper()}_KAFKA_PASSWORD" for user in KAFKA_USERS]
    names += [password_variable(user) for user in ELASTICSEARCH_USERS]
    new = {name: secrets.token_urlsafe(24) for name in [*names, "KIBANA_ENCRYPTION_KEY"]}
    return {**new, "KIBANA_SERVICE_TOKEN": service_token(secrets.token_urlsafe(24))}


@command("secure", {EnvFileError: 2})
def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return the exit code (see the module docstring).

    Raises:
        SystemExit: the command line is wrong; the code is 2.
    """
    parser = command_parser("extensions.secure", __doc__)
    parser.add_argument("part", choices=["files", "users"])
    part = parser.parse_args(argv).part
    environ = read_environment(ENV_FILE)
    kafka = f"127.0.0.1:{environ.get('KAFKA_ADMIN_HOST_PORT') or 9093}"
    if part == "files":
        make_files()
        return 0
    try:
        client = admin_client(kafka, FOLDER / ADMIN_CERTIFICATE, FOLDER / "ca.pem")
        with closing(client) as admin:
            make_topics(admin, environ)
            make_users(admin, environ)
    except NoBrokersAvailable as exc:
        raise StackError(
            f"Kafka does not answer the administrator at {kafka} ({exc}): "
            "is the secure variant started? (make secure)"
        ) from exc
    except KafkaError as exc:
        said = re.search(r"error_message=(['\"])(.*?)\1", str(exc))  # in the server's own words
        raise StackError(f"Kafka at {kafka} refuses: {said[2] if said else exc}") from exc
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
