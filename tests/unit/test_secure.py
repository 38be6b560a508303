"""Who logs in as whom, what tools/secure.py writes, and that no secret is shown."""

import json
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import certifi
import pytest

import kafka_to_elasticsearch as indexer
import sensor_generator as generator
from tools import connection, secure

CA = certifi.where()  # any authority
USER = {"USER": "me", "PASSWORD": "mine"}


def role(name: str, values: dict[str, str]) -> dict[str, str]:
    return {f"{name}_{variable}": value for variable, value in values.items()}


def test_kafka_s_user_and_authority() -> None:
    tls = {"KAFKA_CA_FILE": CA}
    for name, security in (
        ("GENERATOR", generator.kafka_security), ("CONSUMER", indexer.kafka_security),
    ):  # fmt: skip
        assert security({}) == security(role("OTHER_KAFKA", USER)) == {}
        assert security(tls) == {"security.protocol": "SSL", "ssl.ca.location": CA}
        assert security({**role(f"{name}_KAFKA", USER), **tls}) == {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": "me",
            "sasl.password": "mine",
            "ssl.ca.location": CA,
        }


def test_kafka_s_user_and_authority_for_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in role("OTHER_KAFKA", USER).items():
        monkeypatch.setenv(name, value)
    assert connection.kafka_options("ROLE") == {}
    monkeypatch.setenv("KAFKA_CA_FILE", CA)
    assert connection.kafka_options("ROLE") == {"security_protocol": "SSL", "ssl_cafile": CA}
    for name, value in role("ROLE_KAFKA", USER).items():
        monkeypatch.setenv(name, value)
    assert connection.kafka_options("ROLE") == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "mine",
        "ssl_cafile": CA,
    }


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"GENERATOR_KAFKA_USER": "me", "CONSUMER_KAFKA_PASSWORD": "x"}, "set both, or neither"),
        ({"KAFKA_CA_FILE": "/nowhere.pem"}, "KAFKA_CA_FILE: /nowhere.pem has no certificates"),
        ({"KAFKA_CA_FILE": __file__}, f"KAFKA_CA_FILE: {__file__} has no certificates"),
    ],
)
def test_half_a_login_is_wrong_usage(
    environ: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        generator.load_config([], environ, datetime.now(UTC))
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        indexer.load_config([], environ)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count(told) == 2


def test_elasticsearch_s_user_key_and_authority() -> None:
    user = role("ROLE_ELASTICSEARCH", USER)
    key = {"ROLE_ELASTICSEARCH_API_KEY": "abc"}
    tls = {"ELASTICSEARCH_CA_FILE": CA}

    def options(environ: dict[str, str], url: str = "https://localhost:9200") -> Any:
        return indexer.elasticsearch_security(environ, "ROLE", url)

    assert options({}) == {}
    assert options(user) == {"basic_auth": ("me", "mine")}
    assert options(key) == options({**key, **user}) == {"api_key": "abc"}
    assert options(tls) == {"ca_certs": CA}
    assert options(tls, "http://localhost:9200") == {}
    with pytest.raises(ValueError, match="ROLE_ELASTICSEARCH_PASSWORD: set both, or neither"):
        options({"ROLE_ELASTICSEARCH_USER": "me"})
    with pytest.raises(ValueError, match="/nowhere has no certificates"):
        options({"ELASTICSEARCH_CA_FILE": "/nowhere"})


@pytest.mark.parametrize("key", ["SECRET\r", "SEC RET", "SECRÉT", "SECRET\n"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(key: str) -> None:
    told, environ = "ROLE_ELASTICSEARCH_API_KEY: a key has", {"ROLE_ELASTICSEARCH_API_KEY": key}
    with pytest.raises(ValueError, match=told) as raised:
        indexer.elasticsearch_security(environ, "ROLE", "https://host")
    assert "SEC" not in str(raised.value)


def test_a_configuration_shows_no_secret() -> None:
    environ = {**role("CONSUMER_KAFKA", USER), **role("CONSUMER_ELASTICSEARCH", USER)}
    assert "mine" not in repr(indexer.load_config([], environ))
    environ = role("GENERATOR_KAFKA", USER)
    assert "mine" not in repr(generator.load_config([], environ, datetime.now(UTC)))


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


def test_the_api_key_is_shown_to_elasticsearch(asked: tuple[str, list[str | None]]) -> None:
    url, shown = asked
    config = indexer.load_config(
        [], {"ELASTICSEARCH_URL": url, "CONSUMER_ELASTICSEARCH_API_KEY": "abc"}
    )
    indexer.connect_to_elasticsearch(config).close()
    assert shown == ["ApiKey abc"]


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """A server that speaks TLS and hangs up: its port, and what each connection sent first."""
    file = tmp_path / "server.pem"
    file.write_bytes(b"".join(secure.Authority().issue("localhost")))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    first: list[bytes] = []

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            first.append(self.request.recv(1000, socket.MSG_PEEK))
            with suppress(OSError), context.wrap_socket(self.request, server_side=True):
                pass

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], first
        server.shutdown()


@pytest.mark.parametrize(
    "environ",
    [
        {"CONSUMER_ELASTICSEARCH_API_KEY": "c2VjcmV0"},
        role("CONSUMER_ELASTICSEARCH", USER),
        {"ELASTICSEARCH_URL": "http://me:mine@127.0.0.1:PORT"},
    ],
)
def test_no_secret_goes_in_clear_where_tls_is_spoken(
    tls_server: tuple[int, list[bytes]], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, first = tls_server
    url = environ.get("ELASTICSEARCH_URL", "http://127.0.0.1:PORT").replace("PORT", str(port))
    environ = {**environ, "ELASTICSEARCH_URL": url}
    told = f"^Elasticsearch at http://127.0.0.1:{port} speaks TLS: let ELASTICSEARCH_URL begin with"
    with pytest.raises(indexer.SetupError, match=told):
        indexer.connect_to_elasticsearch(indexer.load_config([], environ))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told):
        connection.elasticsearch_client("CONSUMER")
    assert len(first) == 2
    assert all(sent.startswith(b"\x16\x03") for sent in first)  # handshakes, no request


# tools/secure.py


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project for `files`."""
    monkeypatch.setattr(secure, "PROJECT", tmp_path)
    monkeypatch.setattr(secure, "FOLDER", tmp_path / ".secure")
    monkeypatch.setattr(secure, "ENV_FILE", tmp_path / ".env")
    (tmp_path / ".env.example").write_text("COMPOSE_FILE=docker-compose.yml\nKAFKA_CA_FILE=\n")
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_what_it_makes(project: Path) -> None:
    assert secure.main(["files"]) == 0
    assert mode(project / ".secure") == 0o700
    assert mode(project / ".env") == 0o600
    # What is mounted into a container, its user must be able to read.
    mounted = [*project.glob(".secure/kafka/*"), *project.glob(".secure/elasticsearch/**/*")]
    assert len(mounted) == 11
    for path in mounted:
        assert mode(path) & 0o044 == 0o044, path
    assert mode(project / ".secure/admin.pem") == 0o600
    # With the key of the authority, anyone could be anyone.
    assert not list(project.glob("**/ca.key"))


def test_no_password_is_in_its_files(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secure.main(["files"])
    values = secure.read_env()
    secrets = [v for n, v in values.items() if "PASSWORD" in n or "TOKEN" in n or "_KEY" in n]
    assert len(set(secrets)) == 10
    assert min(map(len, secrets)) >= 32
    texts = [file.read_text() for file in project.glob(".secure/**/*") if file.is_file()]
    printed = capsys.readouterr()
    for secret in secrets:
        assert not any(secret in text for text in [*texts, printed.out, printed.err])


def test_what_is_set_in_env_stays(project: Path) -> None:
    (project / ".env").write_text(
        "# mine\nCOMPOSE_FILE=docker-compose.yml\nMINE=1\nELASTICSEARCH_HOST_PORT=9201\n"
        "CONSUMER_KAFKA_PASSWORD=chosen-by-me\nGENERATOR_KAFKA_PASSWORD="
    )
    secure.main(["files"])
    text, values = (project / ".env").read_text(), secure.read_env()
    assert text.startswith("# mine\nMINE=1\n")
    assert values["CONSUMER_KAFKA_PASSWORD"] == "chosen-by-me"  # noqa: S105
    assert len(values["GENERATOR_KAFKA_PASSWORD"]) == 32
    assert values["ELASTICSEARCH_URL"] == "https://localhost:9201"
    assert values["COMPOSE_FILE"].endswith(":docker-compose.secure.yml")
    certificates = {file: file.read_bytes() for file in project.glob(".secure/**/*.pem")}
    secure.main(["files"])
    assert secure.read_env() == values
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
    found = secure.roles({"ELASTICSEARCH_INDEX": "mesures"})
    for role_ in found.values():
        (indices,) = role_["indices"]
        assert indices["names"] == ["mesures*", "sensors_dead_letters*"]
    assert "delete" not in json.dumps(found)
