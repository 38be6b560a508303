"""What tools/demo.py says when a step fails: its name, not that of another."""

import subprocess
import sys
from typing import Any

import pytest
from kafka.errors import KafkaError

from kibana.client import kibana_at
from tests.conftest import PROJECT
from tools import demo
from tools.connection import elasticsearch_client
from tools.verify import Verdict


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_scripts_that_fail_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {"un": python("raise SystemExit(3)"), "deux": python(""), "trois": python("1/0")}
    assert demo.run_together(commands) == ["un (code 3)", "trois (code 1)"]
    monkeypatch.setattr(demo, "WITHIN_S", 1)
    slow = {"lent": python("import time; time.sleep(99)")}
    assert demo.run_together(slow) == ["lent (pas fini après 1 s)"]


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        ("run_pipeline", "la lecture de l'index : Kafka at "),
        ("verify", "la vérification : Kafka at "),
        ("print_tables", "les tableaux : Kafka at "),
    ],
)
def test_the_step_that_fails_is_named(
    failing: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise KafkaError("away")

    monkeypatch.setattr(demo, "run_pipeline", lambda *_: [])
    monkeypatch.setattr(demo, "verify", lambda *_, **__: Verdict(messages=1, indexed=1))
    monkeypatch.setattr(demo, "print_tables", lambda *_: None)
    monkeypatch.setattr(demo, failing, fail)
    (step,) = demo.check(elasticsearch_client("VERIFIER"), "sensors_data")
    assert step.startswith(told)


def test_what_is_lost_is_said_only_when_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_pipeline", lambda *_: ["le consommateur (code 1)"])
    monkeypatch.setattr(demo, "print_tables", lambda *_: None)
    client = elasticsearch_client("VERIFIER")
    monkeypatch.setattr(demo, "verify", lambda *_, **__: Verdict(messages=1, indexed=1))
    assert demo.check(client, "sensors_data") == ["le consommateur (code 1)"]
    monkeypatch.setattr(demo, "verify", lambda *_, **__: Verdict(messages=1, missing=[(0, 0)]))
    failed = demo.check(client, "sensors_data")
    assert failed[0] == "le consommateur (code 1)"
    assert failed[1].startswith("la vérification : ce qui est produit n'est pas")


def test_an_empty_topic_is_not_called_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_pipeline", lambda *_: ["le rattrapage (code 1)"])
    monkeypatch.setattr(demo, "verify", lambda *_, **__: Verdict())
    failed = demo.check(elasticsearch_client("VERIFIER"), "sensors_data")
    assert failed[1].startswith("la vérification : le topic smart-city-sensors est vide")


def test_dashboards_that_fail_are_all_that_the_last_line_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "check", lambda *_: [])
    monkeypatch.setattr(demo, "show_dashboards", lambda *_: False)
    assert demo.main([]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "✗ A échoué : les tableaux de bord. Voir ci-dessus."


def test_the_last_screen_says_where_to_look_and_how_to_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kibana = kibana_at("http://127.0.0.1:9")
    for is_ready, place in (
        (False, str(PROJECT / "apercu/index.html")),
        (True, "http://127.0.0.1:9/app/dashboards"),
    ):
        monkeypatch.setattr(demo, "is_ready", lambda _, found=is_ready: found)
        demo.print_next_steps(kibana)
        out = capsys.readouterr().out
        assert f"  {place} " in out
        lines = [line for line in out.splitlines() if line.startswith("  ")]
        assert [line.split()[:2] for line in lines[-2:]] == [["make", "down"], ["make", "wipe"]]
        ends = {len(line) - len(line.split("   ")[-1].lstrip()) for line in lines}
        assert len(ends) == 1, "the second column is aligned"


def test_the_demonstration_on_spark_ends_in_one_line_when_nobody_can_read_it() -> None:
    line = f"{sys.executable} -m extensions.spark.demo >/dev/full"
    ended = subprocess.run(
        ["bash", "-c", line], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == "demo: standard output: No space left on device\n"
