"""The master and the workers of Spark without Docker: their command lines."""

from pathlib import Path

import pytest

from stack.compose import StackError
from stack.native import spark
from tests.conftest import new_stack

COMPOSE = "extensions/spark/compose.yml"
WORKERS = ("spark-worker-1", "spark-worker-2")


def test_they_are_processes_of_their_own_on_loopback(tmp_path: Path) -> None:
    stack = new_stack(tmp_path, COMPOSE)
    lines = {name: " ".join(stack.servers[name].command) for name in ("spark-master", *WORKERS)}
    port = stack.servers["spark-master"].address.partition(":")[2]
    assert f"{spark.MASTER} --host spark-master" in lines["spark-master"]
    assert lines["spark-master"].endswith(f" --port {port}")
    for name in WORKERS:
        assert f" spark://127.0.0.1:{port} " in lines[name]
    for name, line in lines.items():
        last_host = line.rpartition("--host ")[2]
        assert last_host.startswith("127.0.0.1 "), name
        assert stack.servers[name].environment["SPARK_LOCAL_IP"] == "127.0.0.1"
        assert "KAFKA_BOOTSTRAP_SERVERS" not in stack.servers[name].environment
    assert len({stack.servers[name].marker for name in lines}) == 3


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark, "home", lambda: tmp_path)
    stack = new_stack(tmp_path / "state", COMPOSE)
    with pytest.raises(StackError, match=r"needs Spark 3\.5\.7: pip install -r extensions/spark/"):
        stack.servers["spark-master"].prepare()
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars/spark-core_2.12-3.5.7.jar").touch()
    stack.servers["spark-master"].prepare()
    with pytest.raises(StackError, match="unknown tool spark-shell: there is spark-submit"):
        stack.tool("spark-master", "spark-shell", [])
    tool = stack.tool("spark-master", "spark-submit", ["--master", "spark://spark-master:7077"])
    assert tool[-1] == f"spark://{stack.servers['spark-master'].address}"
