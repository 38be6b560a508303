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
    assert by_size.primaries == 9  # 432 GB a day in shards of 50
    by_count = sizing.needs(sizing.Load(), message_bytes=50, document_bytes=50)
    assert by_count.primaries == 5  # 864 million in shards of 200
    assert by_count.shards == 5 * 365 * 2


def test_an_index_of_a_month_has_the_shards_for_its_longest_month() -> None:
    month = sizing.needs(sizing.Load(index_by="month"), message_bytes=50, document_bytes=50)
    assert month.primaries == 134  # 31 days of 864 million in shards of 200
    assert month.shards == 134 * 12 * 2
    small = sizing.Load(sensors=200, every_s=60, days=31, index_by="month")
    assert sizing.needs(small, 50, 50).shards == 1 * 2 * 2  # 31 days may begin in the month before


def test_the_network_and_the_partitions_follow_the_rate() -> None:
    ten_times = sizing.Load(sensors=100_000, core_rate=30_000)
    found = sizing.needs(ten_times, message_bytes=50, document_bytes=100)
    assert (found.kafka_rate, found.elasticsearch_rate) == (15e6, 40e6)
    assert found.cores == 4


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
