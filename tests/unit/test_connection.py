"""What all tools say to a wrong environment, each in one line, and where they look for servers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import TransportError
from kafka.errors import KafkaError

from tools import connection, dead_letters, demo, retention, secure, sizing, verify

MAINS: dict[str, Callable[[], int]] = {
    "verify": lambda: verify.main([]),
    "list": lambda: dead_letters.main(["list"]),
    "replay": lambda: dead_letters.main(["replay"]),
    "sizing": lambda: sizing.main([]),
    "delete": lambda: retention.main(["delete"]),
    "lifecycle": lambda: retention.main(["lifecycle"]),
    "files": lambda: secure.main(["files"]),
    "users": lambda: secure.main(["users"]),
    "demo": demo.main,
}
OF_KAFKA = ("verify", "list", "replay", "sizing", "demo")
OF_ELASTICSEARCH = ("verify", "sizing", "delete", "lifecycle", "demo")


@pytest.mark.parametrize("tool", MAINS)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"A=1\nKAFKA_TOPIC: x\n", ".env, line 2: "),
        (b"A=1\nB='open\n", ".env, line 2: "),
        ("A=été\n".encode("latin-1"), "UTF-8"),
    ],
)
def test_a_wrong_env_file_is_one_line(
    tool: str, content: bytes, told: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.setattr(connection, "ENV_FILE", tmp_path / ".env")
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    with pytest.raises(SystemExit) as ended:
        MAINS[tool]()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("tools", "name", "value"),
    [
        (OF_KAFKA, "KAFKA_BOOTSTRAP_SERVERS", "nowhere"),
        (OF_KAFKA, "KAFKA_TOPIC", " "),
        (OF_ELASTICSEARCH, "ELASTICSEARCH_INDEX", " "),
        (OF_ELASTICSEARCH, "ELASTICSEARCH_URL", "http://elastic:xq[z@localhost:9200"),
        (OF_ELASTICSEARCH, "ELASTICSEARCH_URL", "http://elastic:xq/z@localhost:9200"),
        (("verify", "demo", "sizing"), "VERIFIER_KAFKA_PASSWORD", "xq"),
        (("list", "replay"), "REPLAYER_KAFKA_PASSWORD", "xq"),
        (("verify", "demo", "sizing"), "VERIFIER_ELASTICSEARCH_PASSWORD", "xq"),
        (("delete", "lifecycle"), "ADMIN_ELASTICSEARCH_PASSWORD", "xq"),
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it(
    tools: Sequence[str], name: str, value: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    for tool in tools:
        assert MAINS[tool]() == 2, tool
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line
        assert "xq" not in line, "no password is shown"


def test_an_address_may_be_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "[::1]:9092,localhost:9093")
    assert connection.kafka_servers() == "[::1]:9092,localhost:9093"


@pytest.mark.parametrize(
    ("exc", "told"),
    [
        (KafkaError("why"), "Kafka at localhost:9092, as VERIFIER: KafkaError: why"),
        (
            TransportError("why"),
            "Elasticsearch at http://localhost:9200, as VERIFIER: why",
        ),
        (ValueError("no\nledger"), "no ledger"),
    ],
)
def test_what_went_wrong_says_where_and_as_whom(
    exc: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://me:mine@localhost:9200")
    assert connection.failure(exc, "VERIFIER") == told


def test_ctrl_c_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    assert connection.run(interrupted) == 130
    assert capsys.readouterr().err == ""
