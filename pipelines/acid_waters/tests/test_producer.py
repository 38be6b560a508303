"""Lots, their faults and the options of the producer, without servers."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.acid_waters import tables
from pipelines.acid_waters.kafka import kafka_producer as producer
from pipelines.acid_waters.kafka.lots import FAULTS, Lot
from pipelines.acid_waters.settings import SAMPLE


@pytest.fixture(scope="module", autouse=True)
def csv_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The sample without Excel, which takes a hundred times as long to read."""
    folder = tmp_path_factory.mktemp("csv")
    shutil.copy(SAMPLE / "LTM_Data_sample.csv", folder)
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("LTM_DATA", str(folder))
        yield


def lots(*arguments: str) -> list[Lot]:
    return list(producer.lots_to_send(producer.load_config(arguments, os.environ)))


def test_lots_hold_the_file_in_order_and_say_what_is_in_them() -> None:
    found = lots()
    assert [lot.size for lot in found] == [100] * 7 + [60]
    assert [lot.sequence for lot in found] == list(range(1, 9))
    assert [lot.first_row for lot in found] == list(range(1, 800, 100))
    assert found[0].batch_id == "LTM_Data_sample-000001"
    rows = [json.loads(line) for lot in found for line in lot.value.splitlines()]
    assert rows == list(tables.read_table(SAMPLE / "LTM_Data_sample.csv", tables.SAMPLES))
    for lot in found:
        assert lot.checksum == hashlib.sha256(lot.value).hexdigest()
        assert dict(lot.headers())["size"] == str(len(lot.value.splitlines())).encode()
    assert lots() == found
    assert lots("--first", "3", "--count", "2") == found[2:4]


@pytest.mark.parametrize("name", ["LTM_Data (1).csv", "LTM_Data_é.csv", f"LTM_Data{'a' * 191}.csv"])
def test_a_file_must_have_a_name_that_lots_may_have(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes((SAMPLE / "LTM_Data_sample.csv").read_bytes())
    with pytest.raises(
        tables.TableError, match="lots are named after it: give it a name of letters"
    ):
        lots("--data", str(tmp_path))


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_spoils_its_lot_only(kind: str) -> None:
    good, sent = lots(), lots("--fault", f"{kind}=2")
    spoilt = [lot for lot in sent if lot.sequence == 2]
    assert [lot for lot in sent if lot.sequence != 2] == [good[0], *good[2:]]
    assert spoilt == [good[1]] * 2 if kind == "duplicate" else spoilt != [good[1]]
    if kind not in ("checksum", "duplicate"):
        assert spoilt[0].checksum == hashlib.sha256(spoilt[0].value).hexdigest()


@pytest.mark.parametrize("size", ["1", "2"])
def test_faults_may_fall_on_one_lot(size: str) -> None:
    repeated = ("long", "long", "short", "short", "json", "json")
    for faults in (*itertools.permutations(FAULTS, 2), FAULTS, repeated):
        several = [f"--fault={kind}=2" for kind in faults]
        sent = lots("--lot-size", size, "--count", "3", *several)
        assert {lot.sequence for lot in sent} == {1, 2, 3}
        assert sent == lots(
            "--lot-size", size, "--count", "3", *several[::-1]
        )  # in their own order


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (["--lot-size", "0"], {}, "'0' is not a whole number from 1"),
        (["--interval", "nan"], {}, "'nan' is not a number from 0"),
        (["--bad", "1.5"], {}, "'1.5' is not a number from 0 to 1"),
        (["--topic", "a b"], {}, "'a b' is not 1 to 237 letters"),
        ([], {"KAFKA_BOOTSTRAP_SERVERS": "localhost"}, "'localhost' is not HOST:PORT"),
        (["--fault", "short"], {}, "'short' is not KIND=LOT, KIND of short, long"),
        (["--fault", "rust=1"], {}, "'rust=1' is not KIND=LOT"),
    ],
)
def test_a_bad_setting_is_said(
    arguments: list[str], environ: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        producer.load_config(arguments, environ)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_flag_wins_over_environment_over_default() -> None:
    assert producer.load_config([], {}).topic == "water-quality"
    assert producer.load_config([], {"WATER_TOPIC": "a"}).topic == "a"
    assert producer.load_config(["--topic", "b"], {"WATER_TOPIC": "a"}).topic == "b"


def test_a_share_of_the_lots_is_spoilt_the_same_way_for_a_seed() -> None:
    good, sent = lots("--lot-size", "10"), lots("--lot-size", "10", "--bad", "0.3")
    spoilt = {lot.batch_id for lot in sent if lot not in good}
    twice = len(sent) - len({lot.batch_id for lot in sent})
    assert 10 < len(spoilt) + twice < 40  # of 76
    assert sent == lots("--lot-size", "10", "--bad", "0.3")
    assert sent != lots("--lot-size", "10", "--bad", "0.3", "--seed", "7")
    some = lots("--lot-size", "10", "--bad", "0.3", "--first", "5", "--count", "3")
    assert some == [lot for lot in sent if lot.sequence in (5, 6, 7)]


def test_the_console_shows_the_lots_without_kafka(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--console", "--count", "2", "--bootstrap-servers", "localhost:1"]
    assert producer.main(arguments) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [lot["value"].encode() for lot in shown] == [lot.value for lot in lots("--count", "2")]
    assert [lot["sequence"] for lot in shown] == ["1", "2"]
