"""Who logs in as whom, what extensions/secure writes, and that no secret is shown."""

import json
import stat
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certifi
import pytest
from kafka.errors import InvalidTopicError

import kafka_to_elasticsearch as indexer
import sensor_generator as generator
from extensions.secure import __main__ as secure
from extensions.secure import file_realm, kafka_users
from tools import connection

CA = certifi.where()  # any authority
USER = {"USER": "me", "PASSWORD": "mine"}


def role(name: str, values: dict[str, str]) -> dict[str, str]:
    return {f"{name}_{variable}": value for variable, value in values.items()}


@pytest.mark.parametrize("security", [generator.kafka_security, indexer.kafka_security])
def test_kafka_s_user_and_authority(security: Callable[..., dict[str, Any]]) -> None:
    tls = {"KAFKA_CA_FILE": CA}
    assert security({}, "ROLE") == security(role("OTHER_KAFKA", USER), "ROLE") == {}
    assert security(tls, "ROLE")["security_protocol"] == "SSL"
    options = security({**role("ROLE_KAFKA", USER), **tls}, "ROLE")
    assert {name: value for name, value in options.items() if not name.startswith("ssl_")} == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "mine",
    }


def test_a_tool_comes_in_its_own_role(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in role("OTHER_KAFKA", USER).items():
        monkeypatch.setenv(name, value)
    assert connection.kafka_options("ROLE") == {}
    for name, value in role("ROLE_KAFKA", USER).items():
        monkeypatch.setenv(name, value)
    assert connection.kafka_options("ROLE")["sasl_plain_username"] == "me"


@pytest.mark.parametrize(
    "environ",
    [
        {"ROLE_KAFKA_USER": "me"},
        {"ROLE_KAFKA_PASSWORD": "mine"},
        {"KAFKA_CA_FILE": "/nowhere.pem"},
    ],
)
def test_half_a_login_and_no_certificate_are_said_at_once(environ: dict[str, str]) -> None:
    (name,) = environ
    with pytest.raises(generator.SetupError, match=name):
        generator.kafka_security(environ, "ROLE")
    with pytest.raises(indexer.SetupError, match=name):
        indexer.kafka_security(environ, "ROLE")


def test_elasticsearch_s_user_key_and_authority() -> None:
    user = role("ROLE_ELASTICSEARCH", USER)
    key = {"ROLE_ELASTICSEARCH_API_KEY": "abc"}
    tls = {"ELASTICSEARCH_CA_FILE": CA}

    def options(environ: dict[str, str], url: str = "https://localhost:9200") -> Any:
        return indexer.elasticsearch_security(environ, "ROLE", url)

    assert options({}) == {}
    assert options(user) == {"basic_auth": b64encode(b"me:mine").decode()}
    assert options(key) == options({**key, **user}) == {"api_key": "abc"}
    assert options(tls) == {"ca_certs": CA}
    assert options(tls, "http://localhost:9200") == {}
    with pytest.raises(indexer.SetupError, match="ROLE_ELASTICSEARCH_PASSWORD: set both, or neith"):
        options({"ROLE_ELASTICSEARCH_USER": "me"})
    with pytest.raises(indexer.SetupError, match="ELASTICSEARCH_CA_FILE"):
        options({"ELASTICSEARCH_CA_FILE": "/nowhere"})


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        (role("ROLE_ELASTICSEARCH", USER), "http://elsewhere:9200"),
        ({"ROLE_ELASTICSEARCH_API_KEY": "abc"}, "http://localhost:9200,http://elsewhere:9200"),
        ({}, "http://me:mine@elsewhere:9200"),
    ],
)
def test_no_secret_leaves_this_machine_in_the_clear(environ: dict[str, str], url: str) -> None:
    with pytest.raises(indexer.SetupError, match="https") as raised:
        indexer.elasticsearch_security(environ, "ROLE", url)
    assert "mine" not in str(raised.value)
    assert indexer.elasticsearch_security({}, "ROLE", "http://elsewhere:9200") == {}


@pytest.mark.parametrize("key", ["SEC\rRET", "SEC RET", "SECRÉT", "SEC\nRET"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(key: str) -> None:
    environ = {"ROLE_ELASTICSEARCH_API_KEY": key}
    with pytest.raises(indexer.SetupError, match="ROLE_ELASTICSEARCH_API_KEY") as raised:
        indexer.elasticsearch_security(environ, "ROLE", "https://host")
    assert "SEC" not in str(raised.value)


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str | None]]]:
    """A stand-in for Elasticsearch with API keys: its URL, and what it was shown."""
    shown: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers["authorization"])
            self.send_response(200)
            self.send_header("X-Elastic-Product", "Elasticsearch")
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"status": "green"}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", shown
        server.shutdown()


def test_the_api_key_is_shown_to_elasticsearch(
    asked: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, shown = asked
    monkeypatch.setenv("ELASTICSEARCH_URL", url)
    monkeypatch.setenv("ROLE_ELASTICSEARCH_API_KEY", "abc")
    with connection.elasticsearch_client("ROLE") as client:
        client.cluster.health()
    assert shown == ["ApiKey abc"]


# extensions/secure


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project for `files`."""
    monkeypatch.setattr(secure, "FOLDER", tmp_path / ".secure")
    monkeypatch.setattr(secure, "ENV_FILE", tmp_path / ".env")
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_its_files(project: Path) -> None:
    assert secure.main(["files"]) == 0
    assert mode(project / ".secure") == 0o700
    assert mode(project / ".env") == 0o600
    # The user in a container must be able to read the mounted files.
    mounted = [*project.glob(".secure/kafka/*"), *project.glob(".secure/elasticsearch/**/*")]
    assert len(mounted) == 11
    for path in mounted:
        assert mode(path) & 0o044 == 0o044, path
    assert mode(project / ".secure/admin.pem") == 0o600
    # With the key of the authority, anyone could make a certificate of any name.
    assert not list(project.glob("**/ca.key"))


def test_no_password_is_in_its_files(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secure.main(["files"])
    values = secure.env_settings()
    secrets = [v for n, v in values.items() if "PASSWORD" in n or "TOKEN" in n or "_KEY" in n]
    assert len(set(secrets)) == 10
    assert min(map(len, secrets)) >= 32
    texts = [file.read_text() for file in project.glob(".secure/**/*") if file.is_file()]
    printed = capsys.readouterr()
    for secret in secrets:
        assert not any(secret in text for text in [*texts, printed.out, printed.err])


def test_the_values_in_env_stay(project: Path) -> None:
    (project / ".env").write_text(
        "# mine\nCOMPOSE_FILE=docker-compose.yml\nMINE=1\nELASTICSEARCH_HOST_PORT=9201\n"
        "CONSUMER_KAFKA_PASSWORD=chosen-by-me\nGENERATOR_KAFKA_PASSWORD="
    )
    secure.main(["files"])
    text, values = (project / ".env").read_text(), secure.env_settings()
    assert text.startswith("# mine\nMINE=1\n")
    assert values["CONSUMER_KAFKA_PASSWORD"] == "chosen-by-me"  # noqa: S105
    assert len(values["GENERATOR_KAFKA_PASSWORD"]) == 32
    assert values["ELASTICSEARCH_URL"] == "https://localhost:9201"
    assert values["COMPOSE_FILE"].endswith(":extensions/secure/compose.yml")
    certificates = {file: file.read_bytes() for file in project.glob(".secure/**/*.pem")}
    secure.main(["files"])
    assert secure.env_settings() == values
    assert {file: file.read_bytes() for file in project.glob(".secure/**/*.pem")} == certificates


def test_a_token_of_another_kind_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / ".env").write_text("KIBANA_SERVICE_TOKEN=change-me-please\n")
    assert secure.main(["files"]) == 1
    assert capsys.readouterr().err == (
        "secure: KIBANA_SERVICE_TOKEN in .env was not made here: delete that line\n"
    )


def test_a_placeholder_is_not_taken_for_a_password(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / ".env").write_text("CONSUMER_KAFKA_PASSWORD=change-me\n")
    assert secure.main(["files"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("secure: .env: CONSUMER_KAFKA_PASSWORD: fewer than 12 characters")
    assert "change-me" not in line


def test_roles_follow_the_names_of_the_indices() -> None:
    found = file_realm.roles({"ELASTICSEARCH_INDEX": "mesures"})
    for role_ in found.values():
        (indices,) = role_["indices"]
        assert indices["names"] == ["mesures*", "sensors_dead_letters*"]
    assert "delete" not in json.dumps(found)


@pytest.mark.parametrize("command", ["files", "users"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"A=1\nKAFKA_TOPIC: s3cr3t\n", 2),
        (b"A=1\nB='s3cr3t\n", 2),
        ("A=1\n\nB=s3cr3té\n".encode("latin-1"), 3),
        (b"A=s3cr3t\0\n", 1),
    ],
)
def test_a_wrong_env_file_is_one_line(
    command: str,
    content: bytes,
    line: int,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (project / ".env").write_bytes(content)
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    assert secure.main([command]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"secure: {project}/.env, line {line}: not ")
    assert "s3cr3t" not in told
    assert (project / ".env").read_bytes() == content


def test_users_need_the_files_first(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert secure.main(["users"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "run `python -m extensions.secure files` first" in told
    secure.main(["files"])
    capsys.readouterr()
    monkeypatch.setenv("KAFKA_ADMIN_HOST_PORT", "1")
    monkeypatch.setattr(kafka_users, "CONNECT_TIMEOUT_MS", 500)
    assert secure.main(["users"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("secure: Kafka does not answer the administrator at 127.0.0.1:1 (")
    assert told.endswith("is the secure variant started? (make secure)")

    def refuse(*_: object) -> None:
        raise InvalidTopicError("failed: error_message=\"Topic 'a_b' collides with: a.b\")])'.")

    monkeypatch.setattr(secure, "admin_client", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(secure, "make_topics", refuse)
    assert secure.main(["users"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told == "secure: Kafka at 127.0.0.1:1 refuses: Topic 'a_b' collides with: a.b"


def test_its_usage_shows_the_command_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        secure.main([])
    assert capsys.readouterr().err.startswith("usage: python -m extensions.secure ")
