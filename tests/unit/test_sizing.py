"""What tools/sizing.py computes, and what it says of absent servers."""

import re

import pytest

from stack.servers import free_port
from tests.conftest import PROJECT
from tools import sizing


def test_an_absent_server_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    assert sizing.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sizing: Kafka at 127.0.0.1:")


def test_the_larger_of_the_limits_counts() -> None:
    by_size = sizing.needs(sizing.Load(), message_bytes=50, document_bytes=500)
    assert by_size.primaries_a_day == 9  # 432 GB a day in shards of 50
    by_count = sizing.needs(sizing.Load(), message_bytes=50, document_bytes=50)
    assert by_count.primaries_a_day == 5  # 864 million in shards of 200
    assert by_count.shards == 5 * 365 * 2


def test_the_documented_example_follows_from_what_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = (PROJECT / "docs/exploitation.md").read_text()
    (shown,) = re.findall(r"```text\n(a message in .*?)```", document, re.DOTALL)
    message_bytes, document_bytes = map(float, re.findall(r"([\d.]+) bytes", shown))
    load = sizing.Load()
    sizing.print_needs(load, sizing.needs(load, message_bytes, document_bytes))
    computed = capsys.readouterr().out.splitlines()
    for wanted, line in zip(shown.splitlines()[2:], computed, strict=True):
        assert re.sub(r"\d", "", wanted).split() == re.sub(r"\d", "", line).split()
        numbers = [
            [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", x)] for x in (wanted, line)
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.001)  # as 85.0 is rounded
