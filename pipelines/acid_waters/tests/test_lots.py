"""The DataFrame transforms, on a Spark session and no server."""

from datetime import date
from typing import Any

from pyspark.sql import SparkSession

from pipelines.acid_waters.spark import lots as transform
from pipelines.acid_waters.tables import SAMPLES

TODAY = date(2022, 8, 1)


def reasons(spark: SparkSession, *changes: dict[str, Any]) -> list[str | None]:
    """Return the verdicts on lots of one row each: a good one with changes."""
    good = {**dict.fromkeys(SAMPLES.columns), "SITE_ID": "S", "PROGRAM_ID": "P",
            "DATE_SMP": "2020-02-29", "SAMPLE_LOCATION": "EPI", "SAMPLE_TYPE": "Regular",
            "WATERBODY_TYPE": "Lake"}  # fmt: skip
    rows = [(0, number, {**good, **change}) for number, change in enumerate(changes)]
    schema = "partition int, offset long, fields map<string,string>"
    samples = spark.createDataFrame(rows, schema).selectExpr(
        "partition", "offset", "1 AS row", "fields"
    )
    lots = spark.createDataFrame(
        [(0, number, None, "b", 1, 1, 1, "c", "f", "c", ["x"]) for number in range(len(rows))],
        "partition int, offset long, sent_at_ms long, batch_id string, declared_size int, "
        "sequence int, first_row int, declared_checksum string, source_file string, "
        "checksum string, lines array<string>",
    )
    sites = spark.createDataFrame([("S", "P")], "SITE_ID string, PROGRAM_ID string")
    checked = transform.check(lots, samples, sites, TODAY).orderBy("offset").collect()
    return [row.reason for row in checked]


def test_what_a_row_must_be(spark: SparkSession) -> None:
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({}, None),
        ({"ANC_UEQ_L": "-123.5", "PH_LAB": "14", "TIME_SMP": "11:49"}, None),
        ({"DATE_SMP": "2014-09-30 11:35:00", "TIME_SMP": "1130"}, None),
        ({"SIO2_MG_L": "-1", "NH4_UEQ_L": "0", "SAMPLE_DEPTH": "0.5"}, None),
        ({"ANC_UEQ_L": "n/a"}, "row 1: ANC_UEQ_L 'n/a' is not a number"),
        ({"ANC_UEQ_L": "+1"}, "row 1: ANC_UEQ_L '+1' is not a number"),
        ({"ANC_UEQ_L": "\uff11"}, "row 1: ANC_UEQ_L '\uff11' is not a number"),
        ({"ANC_UEQ_L": "NaN"}, "row 1: ANC_UEQ_L 'NaN' is not a number"),
        ({"ANC_UEQ_L": "1" * 30}, f"row 1: ANC_UEQ_L '{'1' * 30}' is not a number"),
        ({"PH_LAB": "14.01"}, "row 1: PH_LAB '14.01' is not within 0 to 14"),
        ({"DATE_SMP": "2019-02-29"}, "row 1: DATE_SMP '2019-02-29' is not a possible date"),
        ({"DATE_SMP": "2022-08-02"}, "row 1: DATE_SMP '2022-08-02' is not a possible date"),
        ({"DATE_SMP": "1969-12-31"}, "row 1: DATE_SMP '1969-12-31' is not a possible date"),
        ({"DATE_SMP": "2020-2-9"}, "row 1: DATE_SMP '2020-2-9' is not a possible date"),
        ({"DATE_SMP": None}, "row 1: DATE_SMP '' is not a possible date"),
        ({"TIME_SMP": "2460"}, "row 1: TIME_SMP '2460' is not a time"),
        ({"TIME_SMP": "1130\n"}, "row 1: TIME_SMP '1130?' is not a time"),
        ({"DATE_SMP": "2020-02-29\n"}, "row 1: DATE_SMP '2020-02-29?' is not a possible date"),
        ({"PROGRAM_ID": "Q"}, "row 1: unknown site: SITE_ID 'S' PROGRAM_ID 'Q' "),
        ({"SITE_ID": None}, "row 1: unknown site"),
        ({"WATERBODY_TYPE": None}, "row 1: WATERBODY_TYPE is empty"),
        ({"WATERBODY_TYPE": "🜄" * 200, "SAMPLE_TYPE": "x" * 200}, None),
        ({"WATERBODY_TYPE": "x" * 201}, "row 1: WATERBODY_TYPE is too long or not printable"),
        ({"WATERBODY_TYPE": "Lake\0"}, "row 1: WATERBODY_TYPE is too long or not printable"),
        ({"SAMPLE_LOCATION": "EPI\n"}, "row 1: SAMPLE_LOCATION is too long or not printable"),
        ({"NEW": "1"}, "row 1: not the 30 columns of a sample"),
    ]
    found = reasons(spark, *[change for change, _ in cases])
    for (change, expected), reason in zip(cases, found, strict=True):
        assert reason == expected or (expected and (reason or "").startswith(expected)), change


def test_an_id_ends_where_its_line_ends(spark: SparkSession) -> None:
    ids = ["LTM-1", "LTM-1\n", "a (1)", ""]
    rows = [(0, number, [("batch_id", one.encode())]) for number, one in enumerate(ids)]
    messages = spark.createDataFrame(
        rows, "partition int, offset long, headers array<struct<key: string, value: binary>>"
    ).selectExpr("*", "current_timestamp() AS timestamp", "X'' AS value")
    found = transform.read_lots(messages).orderBy("offset").select("batch_id").collect()
    assert [row.batch_id for row in found] == ["LTM-1", None, None, None]


def test_a_row_is_one_json_object(spark: SparkSession) -> None:
    """What Spark reads of anything else is a part of it, and nobody would miss the rest."""
    rows = ['{"A": "1"}', ' {"A":"1"} \r', "{'A': '1'}", '{"A": "1"} {"A": "2"}', '{"A": "1"}]']
    rows += [f'{{"A": "{half}"}}' for half in ("\\ud83d\\udf00", "\\ud83d", "\\udf00")]
    lots = spark.createDataFrame([(0, 0, rows)], "partition int, offset long, lines array<string>")
    found = transform.read_samples(lots).orderBy("row").select("fields").collect()
    one = {"A": "1"}
    expected = [one, one, None, None, None, {"A": "\U0001f700"}, None, None]
    assert [row.fields for row in found] == expected


def test_the_rule_for_overlapping_methods(spark: SparkSession) -> None:
    methods = [
        (1, "P", "DOC", 1979, 2009, "old", ""),
        (2, "P", "DOC", 2010, 2014, "Unknown", ""),
        (3, "P", "DOC", 2010, 2017, "persulfate", ""),
        (4, "P", "DOC", 2018, None, "new", ""),
        (5, "P", "NA", 2010, 2017, "b", ""),
        (6, "P", "NA", 2010, 2017, "a", ""),
        (7, "P", "K", 2000, None, "open", ""),
        (8, "P", "K", 2000, 2030, "closed", ""),
    ]
    columns = ("method_key int, PROGRAM_ID string, PARAMETER string, START_YEAR int, END_YEAR int, "
               "METHOD string, METHOD_DESCRIPTION string")  # fmt: skip
    chosen = transform.choose_methods(spark.createDataFrame(methods, columns), 2022).collect()
    key = {(row.PARAMETER, row.year): row.method_key for row in chosen}
    assert len(key) == len(chosen)
    assert [key["DOC", year] for year in (1979, 2009, 2010, 2014, 2017, 2018, 2022)] == [
        1, 1, 3, 3, 3, 4, 4,
    ]  # fmt: skip
    assert key["NA", 2012] == 6
    assert key["K", 2012] == 7
    assert ("DOC", 1978) not in key
