"""What a user sets and gets wrong: options, .env, the store's address; and exit codes."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.transactions import (
    capteur,
    consumer_spark,
    demo,
    plot,
    prepare,
    rates,
    read,
    score,
    verify,
)
from pipelines.transactions.store import SettingError, Store
from pipelines.transactions.tests.conftest import HERE

SCRIPTS = [capteur, consumer_spark, demo, plot, prepare, read, score, verify]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--metrics-port", "0"),
        ("--metrics-port", "70000"),
        ("--metrics-port", "x"),
        ("--every", "0.00001"),  # Spark counts in milliseconds
        ("--batch", "0"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        consumer_spark.load_config([flag, value], {})
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("script", [capteur, consumer_spark, prepare])
@pytest.mark.parametrize(
    ("name", "value"),
    [("KAFKA_BOOTSTRAP_SERVERS", "localhost:abc"), ("TRANSACTIONS_TOPIC", "été")],
)
def test_a_variable_that_means_nothing_is_one_line(
    script: ModuleType,
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        script.main([])
    assert ended.value.code == 2
    assert f"{value!r} is not " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_folder_s_own_env_is_read_and_refused_in_one_line(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / ".env").write_bytes("S3_BUCKET=été".encode("latin-1"))
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    with pytest.raises(SystemExit) as ended:
        script.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path / '.env'}, line 1: not in UTF-8: save it so\n"


@pytest.mark.parametrize("script", [*SCRIPTS, rates])
def test_every_script_explains_itself(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    assert "Exit codes:" in capsys.readouterr().out


def test_a_demo_that_is_interrupted_says_how_to_stop_the_servers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "start_servers", interrupted)
    monkeypatch.setattr(demo, "how_to_stop", lambda _: "docker compose -f x.yml down")
    for name in ("TRANSACTIONS_TOPIC", "S3_BUCKET"):
        monkeypatch.setenv(name, "")  # it sets them
    assert demo.main([]) == 130
    said = capsys.readouterr().out
    assert said.endswith("\n  docker compose -f x.yml --profile monitoring down\n")


def test_a_consumer_that_waits_ends_with_its_spark_submit() -> None:
    """Its stdin is at its end when spark-submit, which holds the other end, is killed."""
    nowhere = {"S3_ENDPOINT": "http://127.0.0.1:9", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    ended = subprocess.run(
        [sys.executable, str(HERE / "consumer_spark.py"), "--wait", "600"],
        env={**os.environ, **nowhere, "PYSPARK_GATEWAY_PORT": "1"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_store_that_goes_away_meanwhile_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise OSError("the connection was refused")

    monkeypatch.setattr(Store, "check", lambda _: None)
    monkeypatch.setattr(Store, "filesystem", away)
    assert read.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "read: the bucket cannot be read: the connection was refused"


# The store's settings


def test_on_this_machine_the_store_needs_no_settings_and_elsewhere_it_does() -> None:
    for endpoint in ("", "http://localhost:9000", "http://127.0.0.1:1", "http://[::1]:9000"):
        store = Store.from_env({"S3_ENDPOINT": endpoint})
        assert (store.user, store.password) == ("Minio", "Minio123")
    for environ in ({}, {"MINIO_ROOT_USER": "u"}, {"MINIO_ROOT_PASSWORD": "p"}):
        with pytest.raises(SettingError, match=r"^set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD "):
            Store.from_env({**environ, "S3_ENDPOINT": "https://s3.example.org"})
    with pytest.raises(SettingError):
        Store.from_env({"MINIO_ROOT_USER": "u"})  # not with half of the default


def test_a_password_is_never_shown() -> None:
    store = Store.from_env({"MINIO_ROOT_USER": "u", "MINIO_ROOT_PASSWORD": "secret"})
    assert "secret" not in repr(store)
    assert "secret" not in store.spark_options().values()  # they end up on a command line


def test_an_endpoint_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match="does not begin with http"):
        Store.from_env({"S3_ENDPOINT": "127.0.0.1:9000"})


@pytest.mark.parametrize("bucket", ["s3://x", "a/b", "/a", "a b"])
def test_a_bucket_that_is_none_is_one_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("S3_BUCKET", bucket)
    for script, options in ((prepare, []), (consumer_spark, []), (verify, ["--ledger", "x"])):
        assert script.main(options) == 2
        name = script.__name__.rpartition(".")[2]
        said = f"{name}: S3_BUCKET={bucket} is not the name of a bucket\n"
        assert capsys.readouterr() == ("", said)
