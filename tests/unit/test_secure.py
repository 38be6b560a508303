"""Who logs in as whom, what tools/secure.py writes, and that no secret is shown."""

import json
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import certifi
import pytest
from dotenv import dotenv_values

import kafka_to_elasticsearch as indexer
import sensor_generator as generator
from tools import secure

CA = certifi.where()  # any authority
USER = {"KAFKA_USER": "me", "KAFKA_PASSWORD": "mine"}


def role(name: str, values: dict[str, str]) -> dict[str, str]:
    return {f"{name}_{variable}": value for variable, value in values.items()}


@pytest.mark.parametrize("script", [generator, indexer])
def test_kafka_s_user_and_authority(script: Any) -> None:
    options = script.kafka_security
    assert options({}, "ROLE") == {}
    assert options({"KAFKA_CA_FILE": CA}, "ROLE") == {
        "security_protocol": "SSL",
        "ssl_cafile": CA,
    }
    expected = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "mine",
    }
    assert options(USER, "ROLE") == options(role("ROLE", USER), "ROLE") == expected
    assert options(role("OTHER", USER), "ROLE") == {}
    both = {**USER, "ROLE_KAFKA_USER": "another", "ROLE_KAFKA_PASSWORD": "another's"}
    assert options(both, "ROLE") == expected  # what the shell says wins over a .env for all


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"KAFKA_USER": "me"}, "KAFKA_PASSWORD is not set"),
        ({"GENERATOR_KAFKA_USER": "me", "CONSUMER_KAFKA_USER": "me"}, "_KAFKA_PASSWORD is not set"),
        ({"KAFKA_CA_FILE": "/nowhere.pem"}, "KAFKA_CA_FILE: cannot read /nowhere.pem"),
        ({"KAFKA_CA_FILE": __file__}, f"KAFKA_CA_FILE: cannot read {__file__}"),
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
    login = {"ELASTICSEARCH_USER": "me", "ELASTICSEARCH_PASSWORD": "mine"}
    key = {"ELASTICSEARCH_API_KEY": "abc"}
    url = "https://localhost:9200"

    def options(environ: dict[str, str], url: str = url) -> dict[str, Any]:
        return indexer.elasticsearch_security(environ, "ROLE", url)

    assert options({}) == {}
    assert options(login) == options(role("ROLE", login)) == {"basic_auth": ("me", "mine")}
    assert options(key) == options({**key, **role("ROLE", login)}) == {"api_key": "abc"}
    assert options({"ELASTICSEARCH_CA_FILE": CA}) == {"ca_certs": CA}
    assert options({"ELASTICSEARCH_CA_FILE": CA}, "http://localhost:9200") == {}
    for wrong in ({**login, **key}, {"ELASTICSEARCH_USER": "me"}, {"ELASTICSEARCH_PASSWORD": "x"}):
        with pytest.raises(ValueError, match="set ELASTICSEARCH_API_KEY, or"):
            options(wrong)
    with pytest.raises(ValueError, match="cannot read /nowhere"):
        options({"ELASTICSEARCH_CA_FILE": "/nowhere"})


def test_a_configuration_shows_no_secret() -> None:
    environ = {**USER, "ELASTICSEARCH_USER": "me", "ELASTICSEARCH_PASSWORD": "mine too"}
    assert "mine" not in repr(indexer.load_config([], environ))
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
    config = indexer.load_config([], {"ELASTICSEARCH_URL": url, "ELASTICSEARCH_API_KEY": "abc"})
    indexer.connect_to_elasticsearch(config).close()
    assert shown == ["ApiKey abc"]


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
    assert mode(project / ".secure/ca.key") == mode(project / ".secure/admin.pem") == 0o600


def test_no_password_is_in_its_files(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secure.main(["files"])
    values = secure.known(dotenv_values(project / ".env"))
    secrets = [v for n, v in values.items() if "PASSWORD" in n or "TOKEN" in n or "_KEY" in n]
    assert len(set(secrets)) == 10
    assert min(map(len, secrets)) >= 32
    texts = [file.read_text() for file in project.glob(".secure/**/*") if file.is_file()]
    printed = capsys.readouterr()
    for secret in secrets:
        assert not any(secret in text for text in [*texts, printed.out, printed.err])


def test_what_is_set_in_env_stays(project: Path) -> None:
    (project / ".env").write_text(
        "# mine\nCOMPOSE_FILE=docker-compose.yml\nKAFKA_CA_FILE=/my/ca.pem\nMINE=1\n"
        "ELASTICSEARCH_HOST_PORT=9201\nELASTICSEARCH_URL=http://localhost:9201\n"
        "CONSUMER_KAFKA_PASSWORD=chosen\nGENERATOR_KAFKA_PASSWORD="
    )
    secure.main(["files"])
    text = (project / ".env").read_text()
    values = secure.known(dotenv_values(project / ".env"))
    assert text.startswith("# mine\n")
    assert (values["MINE"], values["KAFKA_CA_FILE"]) == ("1", "/my/ca.pem")
    assert values["CONSUMER_KAFKA_PASSWORD"] == "chosen"  # noqa: S105
    assert len(values["GENERATOR_KAFKA_PASSWORD"]) == 32
    assert values["ELASTICSEARCH_URL"] == "https://localhost:9201"
    assert values["COMPOSE_FILE"].endswith(":docker-compose.secure.yml")
    secure.main(["files"])
    assert (project / ".env").read_text() == text


def test_a_certificate_is_renewed_before_it_ends_or_when_it_is_another_authority_s(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure.main(["files"])
    kafka, other = project / ".secure/kafka/kafka.pem", project / ".secure/admin.pem"
    first = kafka.read_bytes()
    monkeypatch.setattr(secure, "RENEWAL_DAYS", secure.CERTIFICATE_DAYS + 1)
    secure.main(["files"])
    second = kafka.read_bytes()
    assert second != first
    monkeypatch.undo()
    authority = secure.Authority(project / "other")
    assert not authority.is_good(kafka)
    assert not authority.is_good(other)


def test_a_token_of_another_kind_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / ".env").write_text("KIBANA_SERVICE_TOKEN=change-me\n")
    assert secure.main(["files"]) == 1
    assert capsys.readouterr().err == (
        "secure: KIBANA_SERVICE_TOKEN in .env is not one made by this command: delete that line\n"
    )


def test_roles_follow_the_names_of_the_indices() -> None:
    found = secure.roles({"ELASTICSEARCH_INDEX": "mesures"})
    for role_ in found.values():
        (indices,) = role_["indices"]
        assert indices["names"] == ["mesures*", "sensors_dead_letters*"]
    assert "delete" not in json.dumps(found)
