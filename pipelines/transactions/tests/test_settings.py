"""What a user sets and gets wrong: options, .env, the store's address; and exit codes."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib.figure import Figure
from py4j.protocol import Py4JNetworkError

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
from pipelines.transactions.tests.conftest import CREDENTIALS, HERE

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


def test_a_demo_that_is_interrupted_leaves_no_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = "import sys, time; sys.stderr.write('at work\\n'); time.sleep(60)"
    monkeypatch.setattr(demo, "CONSUMER", (sys.executable, "-c", waits))
    lines: Any = demo.consume()
    consumer, _ = next(lines)
    with pytest.raises(KeyboardInterrupt):
        lines.throw(KeyboardInterrupt)  # as Ctrl-C does, which a session of its own does not get
    assert consumer.wait(10) == -signal.SIGKILL


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


def test_a_java_that_ends_while_the_consumer_begins_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def dies(*_: Any) -> None:
        raise Py4JNetworkError("Error while sending or receiving")

    monkeypatch.setattr(consumer_spark, "lock", lambda *_: nullcontext(True))
    monkeypatch.setattr(consumer_spark, "consume", dies)
    for name in ("stop_on_signals", "configure_logging"):
        monkeypatch.setattr(consumer_spark, name, lambda _: None)
    assert consumer_spark.main([]) == 1
    assert caplog.messages == ["Spark has failed: Error while sending or receiving"]
    # Not when it was told to stop, and Java with it.
    monkeypatch.setattr(consumer_spark, "stop_on_signals", lambda stop: stop.set())
    assert consumer_spark.main([]) == 0
    assert len(caplog.messages) == 1


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


def test_a_store_that_answers_is_not_called_away() -> None:
    store = Store.from_env({})
    during = "When creating bucket 'x': AWS Error {} during CreateBucket operation: {}"
    for code, end, said in (
        ("UNKNOWN (HTTP status 405)", "No response body.", "answers with an error (UNKNOWN (HTTP"),
        ("NETWORK_CONNECTION", "curlCode: 7, Could not connect", "does not answer (7, Could not"),
        ("ACCESS_DENIED", "", "refuses MINIO_ROOT_USER or"),
    ):
        assert said in store.explain(OSError(during.format(code, end)))


def test_a_threshold_above_all_scores_is_drawn() -> None:
    none = {"threshold": 9.0, "found": 0, "false": 0, "missed": 3}
    curve = [(0.5, 1.0), (1.0, 0.5)]
    card = {"results": dict.fromkeys(plot.NAMES, none), "curves": dict.fromkeys(plot.NAMES, curve)}
    plot.draw_score(Figure().subplots(), card)


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


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:9000", "http://", "http://localhost:abc", "http://localhost:70000",
        "http://u:secret@localhost:9000", "http://u:secret[@localhost:9000",
        "http://localhost:9000/folder",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    """And is not shown: there may be a password in it."""
    with pytest.raises(SettingError) as raised:
        Store.from_env({"S3_ENDPOINT": endpoint, **CREDENTIALS})
    assert str(raised.value) == "S3_ENDPOINT is not http://HOST:PORT or https://HOST:PORT"


@pytest.mark.parametrize("bucket", ["s3://x", "a/b", "/a", "a b", "ab", "Deux", "deux_jours"])
def test_a_bucket_that_is_none_is_one_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("S3_BUCKET", bucket)
    for script, options in ((prepare, []), (consumer_spark, []), (verify, ["--ledger", "x"])):
        assert script.main(options) == 2
        name = script.__name__.rpartition(".")[2]
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"{name}: S3_BUCKET={bucket} is not the name of a bucket: ")
