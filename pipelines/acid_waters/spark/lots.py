"""What is done with lots, as DataFrames: read, check, join, aggregate. No session, no storage.

The columns (lot) that name a lot are `partition` and `offset`, its place in the Kafka topic.
"""

from datetime import UTC, date, datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType
from pyspark.sql.window import Window

from pipelines.acid_waters.tables import DECIMALS, ID, MEASURES, SAMPLES, parameter_of

LOT = ["partition", "offset"]
NUMBER = DecimalType(24, DECIMALS)  # its sums are exact, whatever their order
NUMBER_TEXT = r"^-?[0-9]+(\.[0-9]+)?\z"  # Spark takes other forms and other digits, too
# Java's: unlike $, \\z does not let a last line feed pass.
MOMENT = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2}:[0-9]{2})?\z"
FIRST_DATE = date(1970, 1, 1)  # long before the first method in the release, 1979
TIME_OF_DAY = r"^([01][0-9]|2[0-3]):?[0-5][0-9]\z"  # the release has 1130 and 11:49
# Between these a message's time is kept, else the nearer: Kafka takes any number, Python no year
# after 9999 in whatever zone.
SENT_AT_MS = (0, round(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1000)
# WATERBODY_TYPE goes into PostgreSQL: it takes no NUL in a text and no long text in an index.
LABEL = r"^[^\p{Cntrl}]{0,200}\z"
# Spark's own function reads the first object of a line, and leaves the rest of it unread.
ONE_OBJECT = r"\A\s*\{[^{}]*\}\s*\z"
# Half a character, which Spark would store as a question mark.
HALF = r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
AS_TEXTS = ("map<string,string>", {"allowSingleQuotes": "false"})  # JSON has none
REASON_CHARACTERS = 500
REASON_ROWS = 3  # so many are quoted

# What a measure can be: wide, to catch a slip of the decimal point and not a rare water. Balances
# and concentrations near zero come out slightly negative; pH is 0 to 14, water freezes near 0.
RANGES: dict[str, tuple[int, int]] = {
    "SAMPLE_DEPTH": (0, 500),  # m
    "ANC_UEQ_L": (-5_000, 20_000),  # an acid balance: truly negative in acidified water
    "COND_UM_CM": (0, 10_000),
    "SECCHI_M": (0, 80),
    "WTEMP_DEG_C": (-5, 45),
    **dict.fromkeys(("PH_EQ", "PH_FLD", "PH_LAB", "PH_STVL"), (0, 14)),
}
OTHER_RANGE = (-10, 50_000)  # concentrations


def read_lots(messages: DataFrame) -> DataFrame:
    """Return Kafka messages as lots, whatever is in them.

    Args:
        messages: partition, offset, timestamp, value, headers, as Spark's Kafka source has them.

    Returns:
        DataFrame: (lot), sent_at_ms, batch_id, declared_size, sequence, first_row,
        declared_checksum, source_file (each null when the header is missing or unusable),
        checksum, lines, value, headers.
    """

    def header(name: str) -> Column:
        found = F.filter("headers", lambda one: one["key"] == name)
        return found[0]["value"].cast("string")

    def identifier(name: str) -> Column:
        return F.when(header(name).rlike(rf"^{ID}\z"), header(name))

    lines = F.split(F.col("value").cast("string"), "\n")
    return messages.select(
        *LOT,
        # Not as a time: Spark would give it to Python in the machine's zone.
        F.greatest(
            F.lit(SENT_AT_MS[0]), F.least(F.unix_millis("timestamp"), F.lit(SENT_AT_MS[1]))
        ).alias("sent_at_ms"),
        identifier("batch_id").alias("batch_id"),
        header("size").cast("int").alias("declared_size"),
        header("sequence").cast("int").alias("sequence"),
        header("first_row").cast("int").alias("first_row"),
        header("checksum").alias("declared_checksum"),
        identifier("source_file").alias("source_file"),
        F.sha2(F.coalesce("value", F.lit(b"")), 256).alias("checksum"),
        F.coalesce(F.filter(lines, lambda line: line != ""), F.array()).alias("lines"),
        "value",
        "headers",
    )


def read_samples(lots: DataFrame) -> DataFrame:
    """Return the rows of lots: (lot), row (1, 2, …), fields (name -> text; null: not a row)."""
    rows = lots.select(*LOT, F.posexplode("lines").alias("position", "line"))
    is_object = F.col("line").rlike(ONE_OBJECT) & ~F.col("line").rlike(HALF)
    return rows.select(
        *LOT,
        (F.col("position") + 1).alias("row"),
        F.when(is_object, F.from_json("line", *AS_TEXTS)).alias("fields"),
    )


def row_problems(known_site: Column, today: date) -> Column:
    """Return what is wrong with a row (fields, known_site): an array of texts, empty when good."""

    def text(name: str) -> Column:
        return F.col("fields")[name]

    def quoted(name: str) -> Column:
        shown = F.substring(F.coalesce(text(name), F.lit("")), 1, 40)  # null would hide the problem
        return F.concat(F.lit(f"{name} '"), shown, F.lit("' "))

    names = F.array_sort(F.map_keys("fields"))
    has_columns = names == F.array(*[F.lit(name) for name in sorted(SAMPLES.columns)])
    moment = F.when(text("DATE_SMP").rlike(MOMENT), text("DATE_SMP"))
    possible = moment.cast("timestamp_ntz").cast("date").between(F.lit(FIRST_DATE), F.lit(today))
    problems: list[Column] = []
    for name in ("SAMPLE_LOCATION", "SAMPLE_TYPE", "WATERBODY_TYPE"):
        problems += [
            F.when(F.coalesce(text(name), F.lit("")) == "", F.lit(f"{name} is empty")),
            F.when(~text(name).rlike(LABEL), F.lit(f"{name} is too long or not printable")),
        ]
    problems += [
        F.when(
            ~known_site,
            F.concat(F.lit("unknown site: "), quoted("SITE_ID"), quoted("PROGRAM_ID")),
        ),
        F.when(~F.coalesce(possible, F.lit(False)),
               F.concat(quoted("DATE_SMP"), F.lit("is not a possible date"))),
        F.when(~text("TIME_SMP").rlike(TIME_OF_DAY),
               F.concat(quoted("TIME_SMP"), F.lit("is not a time"))),
    ]  # fmt: skip
    for name in sorted(SAMPLES.numbers):
        number = F.when(text(name).rlike(NUMBER_TEXT), text(name).cast(NUMBER))
        low, high = RANGES.get(name, OTHER_RANGE)
        problems += [
            F.when(text(name).isNotNull() & number.isNull(),
                   F.concat(quoted(name), F.lit("is not a number"))),
            F.when(~number.between(low, high),
                   F.concat(quoted(name), F.lit(f"is not within {low} to {high}"))),
        ]  # fmt: skip
    return (
        F.when(F.col("fields").isNull(), F.array(F.lit("not a JSON object")))
        .when(~has_columns, F.array(F.lit(f"not the {len(SAMPLES.columns)} columns of a sample")))
        .otherwise(F.filter(F.array(*problems), lambda problem: problem.isNotNull()))
    )


def check(lots: DataFrame, samples: DataFrame, sites: DataFrame, today: date) -> DataFrame:
    """Return each lot with the reason why it is refused, null when it is good.

    Args:
        lots: see read_lots.
        samples: see read_samples.
        sites: SITE_ID, PROGRAM_ID, …; each pair once.
        today: no sample is later.

    Returns:
        DataFrame: (lot), sent_at_ms, batch_id, sequence, first_row, source_file, declared_size,
        size, checksum, reason.
    """
    keys = sites.select("SITE_ID", "PROGRAM_ID", F.lit(True).alias("known"))
    joined = samples.withColumn("SITE_ID", F.col("fields")["SITE_ID"])
    joined = joined.withColumn("PROGRAM_ID", F.col("fields")["PROGRAM_ID"])
    joined = joined.join(F.broadcast(keys), ["SITE_ID", "PROGRAM_ID"], "left")
    known_site = F.coalesce("known", F.lit(False))
    found = joined.select(*LOT, "row", F.explode(row_problems(known_site, today)).alias("problem"))
    told = F.concat(F.lit("row "), F.col("row").cast("string"), F.lit(": "), F.col("problem"))
    first = F.slice(
        F.array_sort(F.collect_list(F.struct("row", told.alias("told")))), 1, REASON_ROWS
    )
    by_lot = found.groupBy(*LOT).agg(first["told"].alias("told"), F.count("*").alias("problems"))
    size = F.size("lines")
    sizes = F.format_string("%d rows, %d declared", size, "declared_size")
    reasons = [
        F.when(F.col("batch_id").isNull(), F.lit("header batch_id is missing or unusable")),
        F.when(F.col("sequence").isNull(), F.lit("header sequence is missing or no number")),
        F.when(F.coalesce("first_row", F.lit(0)) < 1,
               F.lit("header first_row is missing or no number from 1 on")),
        F.when(F.col("source_file").isNull(), F.lit("header source_file is missing or unusable")),
        F.when(F.col("declared_size").isNull(), F.lit("header size is missing or no number")),
        F.when(size < F.col("declared_size"), F.concat(F.lit("short: "), sizes)),
        F.when(size > F.col("declared_size"), F.concat(F.lit("long: "), sizes)),
        F.when(size == 0, F.lit("empty")),
        F.when(~F.col("declared_checksum").eqNullSafe(F.col("checksum")),
               F.lit("checksum is not that of the content")),
        F.array_join("told", "; "),
        F.when(F.col("problems") > REASON_ROWS, F.format_string("%d problems in all", "problems")),
    ]  # fmt: skip
    text = F.concat_ws("; ", *reasons)
    printable = F.regexp_replace(F.substring(text, 1, REASON_CHARACTERS), r"\p{Cntrl}", "?")
    return lots.join(by_lot, LOT, "left").select(
        *LOT, "sent_at_ms", "batch_id", "sequence", "first_row", "source_file", "declared_size",
        size.alias("size"), "checksum", F.when(text != "", printable).alias("reason"),
    )  # fmt: skip


def typed(samples: DataFrame) -> DataFrame:
    """Return rows that have passed check with a typed column each, in place of fields."""
    types = {**dict.fromkeys(SAMPLES.numbers, NUMBER), "DATE_SMP": "timestamp_ntz"}
    fields = F.col("fields")
    columns = [fields[name].cast(types.get(name, "string")).alias(name) for name in SAMPLES.columns]
    return samples.select(*[name for name in samples.columns if name != "fields"], *columns)


def choose_methods(methods: DataFrame, last_year: int) -> DataFrame:
    """Return the one method of each program, parameter and year.

    Periods overlap (LTM_ALTM has both 2010-2014 and 2010-2017). The rule: the latest start,
    then the latest end. That is the later entry, and it holds all that the other one does; where
    they differ (DOC), it names a method that the other calls unknown. Were there still two, the
    first in alphabetical order of METHOD and description.

    Args:
        methods: method_key, PROGRAM_ID, PARAMETER, START_YEAR, END_YEAR (null: still in use),
            METHOD, METHOD_DESCRIPTION.
        last_year: up to which methods still in use are needed.

    Returns:
        DataFrame: PROGRAM_ID, PARAMETER, year, method_key.
    """
    end = F.coalesce("END_YEAR", F.greatest(F.lit(last_year), "START_YEAR"))
    yearly = methods.withColumn("year", F.explode(F.sequence(F.col("START_YEAR"), end)))
    order = [
        F.desc("START_YEAR"), F.desc_nulls_first("END_YEAR"), "METHOD", "METHOD_DESCRIPTION",
    ]  # fmt: skip
    rank = F.row_number().over(
        Window.partitionBy("PROGRAM_ID", "PARAMETER", "year").orderBy(*order)
    )
    chosen = yearly.withColumn("rank", rank).where("rank = 1")
    return chosen.select("PROGRAM_ID", "PARAMETER", "year", "method_key")


def measures(
    samples: DataFrame, sites: DataFrame, parameters: DataFrame, chosen: DataFrame
) -> DataFrame:
    """Return a row per value.

    Args:
        samples: lot_id and the typed columns.
        sites: site_key, SITE_ID, PROGRAM_ID. SITE_ID alone would double samples: some sites belong
            to two programs.
        parameters: parameter_key, measure (column of samples), PARAMETER.
        chosen: see choose_methods; a value without a method has the method_key 0.

    Returns:
        DataFrame: lot_id, site_key, parameter_key, method_key, year, waterbody_type, value.
    """
    values = F.array(
        *[F.struct(F.lit(name).alias("measure"), F.col(name).alias("value")) for name in MEASURES]
    )
    long = samples.select(
        "lot_id", "SITE_ID", "PROGRAM_ID", F.year("DATE_SMP").alias("year"),
        F.col("WATERBODY_TYPE").alias("waterbody_type"), F.explode(values).alias("one"),
    )  # fmt: skip
    long = long.select("*", "one.*").where("value IS NOT NULL")
    long = long.join(F.broadcast(sites), ["SITE_ID", "PROGRAM_ID"], "inner")
    long = long.join(F.broadcast(parameters), "measure", "inner")
    long = long.join(F.broadcast(chosen), ["PROGRAM_ID", "PARAMETER", "year"], "left")
    method_key = F.coalesce("method_key", F.lit(0)).alias("method_key")
    return long.select(
        "lot_id", "site_key", "parameter_key", method_key, "year", "waterbody_type", "value"
    )


def measure_facts(values: DataFrame) -> DataFrame:
    """Return count, sum, min and max per lot, site, parameter, method, year and water-body type."""
    grain = [name for name in values.columns if name != "value"]
    return values.groupBy(*grain).agg(
        F.count("value"), F.sum("value"), F.min("value"), F.max("value")
    )


def sample_facts(samples: DataFrame, sites: DataFrame) -> DataFrame:
    """Return the number of samples per lot, site, year and water-body type."""
    joined = samples.join(F.broadcast(sites), ["SITE_ID", "PROGRAM_ID"], "inner")
    year, waterbody_type = F.year("DATE_SMP"), F.col("WATERBODY_TYPE")
    return joined.groupBy("lot_id", "site_key", year, waterbody_type).count()


def parameter_rows() -> list[tuple[str, str, str]]:
    """Return (measure, parameter, unit) of every measure."""
    return [(name, *parameter_of(name)) for name in MEASURES]
