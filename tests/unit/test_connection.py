"""How all tools begin and end: .env, variables, usage, files, Ctrl-C; which servers they ask."""

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elasticsearch import TransportError
from kafka.errors import KafkaError

from kafka_to_elasticsearch import SetupError
from kibana import command_line, export, load
from screenshots import capture
from stack.console import CommandError
from tests.conftest import PROJECT
from tools import (
    connection,
    dead_letters,
    demo,
    faulty_sensors,
    plot_month,
    preview,
    retention,
    sizing,
    verify,
)

MAINS: dict[str, Callable[[], int]] = {
    "verify": lambda: verify.main([]),
    "list": lambda: dead_letters.main(["list"]),
    "replay": lambda: dead_letters.main(["replay"]),
    "sizing": lambda: sizing.main([]),
    "delete": lambda: retention.main(["delete"]),
    "lifecycle": lambda: retention.main(["lifecycle"]),
    "demo": lambda: demo.main([]),
    "preview": lambda: preview.main([]),
    "load": lambda: load.main([]),
    "export": lambda: export.main([]),
    "capture": lambda: capture.main([]),
}
OF_KAFKA = ("verify", "list", "replay", "sizing", "demo")
OF_ELASTICSEARCH = ("verify", "sizing", "delete", "lifecycle", "demo", "preview")
OF_KIBANA = ("load", "export", "capture", "demo")


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
    tool: str,
    content: bytes,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.setattr(command_line, "ENV_FILE", tmp_path / ".env")
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    assert MAINS[tool]() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("tools", "name", "value"),
    [
        (OF_KAFKA, "KAFKA_BOOTSTRAP_SERVERS", "nowhere"),
        (OF_KAFKA, "KAFKA_TOPIC", " "),
        (OF_ELASTICSEARCH, "ELASTICSEARCH_INDEX", " "),
        (("preview",), "ELASTICSEARCH_DEAD_LETTER_INDEX", "a*"),
        (OF_ELASTICSEARCH, "ELASTICSEARCH_URL", "http://elastic:xq[z@localhost:9200"),
        (OF_ELASTICSEARCH, "ELASTICSEARCH_URL", "http://elastic:xq/z@localhost:9200"),
        (("verify", "demo", "sizing"), "VERIFIER_KAFKA_PASSWORD", "xq"),
        (("list", "replay"), "REPLAYER_KAFKA_PASSWORD", "xq"),
        (("verify", "demo", "sizing", "preview"), "VERIFIER_ELASTICSEARCH_PASSWORD", "xq"),
        (("delete", "lifecycle"), "ADMIN_ELASTICSEARCH_PASSWORD", "xq"),
        (OF_KIBANA, "KIBANA_URL", "http://elastic:xqz@localhost:5601"),
        (OF_KIBANA, "KIBANA_URL", "http://elastic:xq[z@localhost:5601"),
        (OF_KIBANA, "KIBANA_URL", "http://elastic:xq/z@localhost:5601"),
        (OF_KIBANA, "KIBANA_URL", "http://[::1"),
        (OF_KIBANA, "KIBANA_URL", "http://localhost:65536"),
        (("load", "export", "capture"), "KIBANA_SPACE", "Ma ville"),
        (OF_KIBANA, "KIBANA_PASSWORD", "xq"),
        (OF_KIBANA, "KIBANA_API_KEY", "xq é"),
        (OF_KIBANA, "KIBANA_CA_FILE", "/nowhere.pem"),
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it(
    tools: Sequence[str],
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    for tool in tools:
        assert MAINS[tool]() == 2, tool
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line
        assert "xq" not in line, "no password is shown"


WRONG_NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e-300", "1e300", "x", "")
WRONG_USAGE: list[tuple[Callable[..., int], list[str]]] = [
    (demo.main, ["now"]),
    (verify.main, ["--nothing"]),
    (plot_month.main, []),
    (plot_month.main, ["x.png", "--sensors", "1"]),
    *((plot_month.main, [name]) for name in ("x.xyz", "x", "x.png.gz", ".png", "/nowhere/x.PGF")),
    *((plot_month.main, ["x.png", f"--seed={text}"]) for text in ("nan", "1.5", "9" * 5000)),
    *((plot_month.main, ["x.png", f"--start={text}"]) for text in ("x", "0001-01-01", "june")),
    *((plot_month.main, [f"--sensors={text}"]) for text in (*WRONG_NUMBERS, "100001")),
    *(
        (sizing.main, [f"{option}={text}"])
        for option in ("--sensors", "--every", "--days", "--kafka-days", "--copies")
        for text in WRONG_NUMBERS
    ),
    *((sizing.main, [f"--disk-gb={text}"]) for text in WRONG_NUMBERS),
    *((preview.main, [f"--hours={text}"]) for text in WRONG_NUMBERS),
    *((dead_letters.main, ["list", f"--last={text}"]) for text in (*WRONG_NUMBERS, "1.5")),
    *((retention.main, ["delete", f"--older-than={text}"]) for text in WRONG_NUMBERS),
    *((faulty_sensors.main, [f"--rate={text}"]) for text in WRONG_NUMBERS),
    *((load.main, [f"--wait={text}"]) for text in ("nan", "inf", "-1", "x")),
    *((export.main, [f"--wait={text}"]) for text in ("nan", "inf", "-1", "x")),
    *((capture.main, [f"--hours={text}"]) for text in WRONG_NUMBERS),
    *((capture.main, [f"--width={text}"]) for text in (*WRONG_NUMBERS, "1e9")),
    *((capture.main, [f"--until={text}"]) for text in ("x", "1969-12-31", "0001-01-01")),
]


@pytest.mark.parametrize(
    ("main", "argv"), WRONG_USAGE, ids=lambda value: getattr(value, "__module__", str(value)[:40])
)
def test_wrong_usage_is_exit_2_and_a_line_that_names_the_module(
    main: Callable[..., int], argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"python -m {main.__module__}")
    assert ": error: " in line
    assert "invalid" not in line, "what is allowed is said, not the name of a type"


@pytest.mark.parametrize(
    ("main", "argv", "line"),
    [
        (plot_month.main, ["/nowhere/x.png"], "/nowhere/x.png: No such file or directory"),
        (plot_month.main, ["/dev/null/x.png"], "/dev/null/x.png: Not a directory"),
        (preview.main, ["--output", "/dev/null/x"], "/dev/null/x: Not a directory"),
        (preview.main, ["--output", "README.md"], "README.md: File exists"),
        (verify.main, ["--ledger", "/nowhere"], "cannot compare with /nowhere: No such file"),
        (verify.main, ["--ledger", "README.md"], "README.md is not a ledger"),
    ],
)
def test_a_file_that_cannot_be_used_is_exit_1_and_a_line(
    main: Callable[..., int],
    argv: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(plot_month, "DAYS", 1)
    assert main(argv) == 1
    (found,) = capsys.readouterr().err.splitlines()
    assert line in found


def test_a_picture_that_is_a_directory_is_exit_1_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot_month, "DAYS", 1)
    (folder := tmp_path / "x.png").mkdir()
    assert plot_month.main([str(folder)]) == 1
    assert capsys.readouterr().err == f"plot_month: {folder}: Is a directory\n"


# The end of a command


@pytest.mark.parametrize(
    ("exc", "code", "told"),
    [
        (SetupError("X: wrong"), 2, "x: X: wrong\n"),
        (CommandError("no"), 1, "x: no\n"),
        (PermissionError(13, "Permission denied", "file"), 1, "x: file: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_exception_is_an_exit_code_and_a_line(
    exc: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command_line.command("x")
    def main(argv: Sequence[str] | None = None) -> int:
        raise exc

    assert main() == code
    assert capsys.readouterr().err == told


def test_what_fails_because_of_ctrl_c_is_ctrl_c() -> None:
    @command_line.command("x")
    def main(argv: Sequence[str] | None = None) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise CommandError("it cannot be closed")

    assert main() == 130


def test_a_fault_of_the_program_is_shown() -> None:
    @command_line.command("x")
    def main(argv: Sequence[str] | None = None) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def started(module: str, *argv: str, **environ: str) -> subprocess.Popen[str]:
    """Start a module that Ctrl-C can reach, even if this test runs in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *argv],
        cwd=PROJECT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    "command",
    [
        ["tools.verify"],
        ["tools.dead_letters", "list"],
        ["tools.dead_letters", "replay"],
        ["tools.sizing"],
        ["tools.retention", "delete"],
        ["tools.retention", "lifecycle"],
        ["tools.preview"],
        ["tools.demo"],
        ["kibana.load"],
        ["kibana.export"],
    ],
    ids=" ".join,
)
def test_ctrl_c_is_quiet(command: list[str], tmp_path: Path) -> None:
    """While a server that has taken the connection does not answer."""
    if command == ["tools.preview"]:
        command = [*command, "--output", str(tmp_path)]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        environ = {
            "KAFKA_BOOTSTRAP_SERVERS": address,
            "ELASTICSEARCH_URL": f"http://{address}",
            "KIBANA_URL": f"http://{address}",
        }
        process = started(*command, **environ)
        silent.settimeout(60)
        accepted, _ = silent.accept()
        with accepted:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_the_demonstration_has_started_ends_with_it(signum: int, code: int) -> None:
    demonstration = """
import sys
from tools import demo

sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(99)"
demo.check = lambda *_: demo.run_together({"un": [sys.executable, "-c", sleeper]})
sys.exit(demo.main([]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", demonstration],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    sleeper = int(process.stdout.readline())
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    with pytest.raises(ProcessLookupError):
        os.kill(sleeper, 0)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_leave_no_trace(redirection: str) -> None:
    line = f"{sys.executable} -m tools.plot_month --sensors 3 {redirection}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# The servers


def test_an_address_may_be_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "[::1]:9092,localhost:9093")
    assert connection.kafka_servers() == "[::1]:9092,localhost:9093"


def test_a_variable_that_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(text: str) -> str:
        raise argparse.ArgumentTypeError(text)

    monkeypatch.setenv("X", "")
    with pytest.raises(SetupError, match=r"^X: default$"):
        command_line.variable("X", refused, "default")


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


def test_an_index_and_its_dated_ones_are_read_and_no_other() -> None:
    names = ["a-2026.11", "a-2026.11.25", "a-2026.11.31", "a-b.c", "a-b-2026.11", "a-2026.1"]
    client: Any = SimpleNamespace(
        indices=SimpleNamespace(get=lambda **_: {name: {} for name in names})
    )
    expected = "a,a-*.*,-a-2026.11.31,-a-b.c,-a-b-2026.11,-a-2026.1"
    assert connection.with_dated(client, "a") == expected
