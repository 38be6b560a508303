"""What tools/sizing.py says to wrong usage and absent servers; its doctest computes."""

import re

import pytest

from stack.servers import free_port
from tests.conftest import PROJECT
from tools import sizing


@pytest.mark.parametrize("option", ["--sensors", "--every", "--days", "--copies", "--disk-gb"])
def test_a_number_that_is_not_above_zero_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        sizing.main([option, "0"])
    assert ended.value.code == 2
    assert "every number must be above 0" in capsys.readouterr().err


def test_an_absent_server_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    assert sizing.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sizing: cannot measure: ")


def test_the_larger_of_the_limits_counts() -> None:
    by_size = sizing.needs(sizing.Load(), message_bytes=50, document_bytes=500)
    assert by_size.primaries_a_day == 9  # 432 GB a day in shards of 50
    by_count = sizing.needs(sizing.Load(), message_bytes=50, document_bytes=50)
    assert by_count.primaries_a_day == 5  # 864 million in shards of 200
    assert by_count.shards == 5 * 365 * 2


def test_readme_s_example_follows_from_what_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = (PROJECT / "README.md").read_text()
    (shown,) = re.findall(r"```text\n(a message in .*?)```", readme, re.DOTALL)
    message_bytes, document_bytes = map(float, re.findall(r"([\d.]+) bytes", shown))
    load = sizing.Load()
    sizing.say_needs(load, sizing.needs(load, message_bytes, document_bytes))
    computed = capsys.readouterr().out.splitlines()
    for wanted, line in zip(shown.splitlines()[2:], computed, strict=True):
        assert re.sub(r"\d", "", wanted).split() == re.sub(r"\d", "", line).split()
        numbers = [
            [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", x)] for x in (wanted, line)
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.001)  # as 85.0 is rounded
