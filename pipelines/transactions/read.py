#!/usr/bin/env python3
"""List the bucket, read the Parquet files back, and print totals by day and currency.

    python read.py            # with pyarrow, without Spark
    python read.py --spark    # the same totals, with Spark

    output/        5 files      412 KB
    rejects/       3 files       31 KB
    checkpoint/   14 files        9 KB

    date        devise  transactions             montant         montant_eur
    2026-10-24  CHF              134            9 051.98            9 817.76

    transactions: 5552   rejects: 278 (not_json 32, wrong_type 36, ...)
    transactions + rejects: 5830

Environment (or .env in this folder, or in the project's): as store.py.

Exit codes: 0 done, 1 the store does not answer or holds nothing, 2 wrong usage or configuration.
"""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from pipelines.common import load_env  # noqa: E402
from pipelines.transactions.settings import described_parser  # noqa: E402
from pipelines.transactions.store import (  # noqa: E402
    CHECKPOINT,
    MODEL,
    OUTPUT,
    REJECTS,
    SettingError,
    Store,
    StoreError,
)
from stack.console import command  # noqa: E402


class Total(NamedTuple):
    """What one day and currency come to."""

    day: date
    currency: str
    transactions: int
    amount: Decimal
    euros: Decimal


def sizes(store: Store) -> dict[str, tuple[int, int]]:
    """Return the number of files and of bytes of each folder of the bucket."""
    client = store.filesystem()
    found = {}
    for folder in (OUTPUT, REJECTS, CHECKPOINT, MODEL):
        selector = fs.FileSelector(f"{store.bucket}/{folder}", recursive=True, allow_not_found=True)
        files = [info for info in client.get_file_info(selector) if info.is_file]
        found[folder] = (len(files), sum(info.size for info in files))
    return found


def totals_by_pyarrow(store: Store) -> tuple[list[Total], Counter[str]]:
    """Return the totals and the number of rejects by reason; what is not there is none."""
    client = store.filesystem()
    partitions = ds.partitioning(flavor="hive")

    def dataset(folder: str) -> ds.Dataset:
        path = f"{store.bucket}/{folder}"
        if client.get_file_info(path).type == fs.FileType.NotFound:
            return ds.dataset([])
        return ds.dataset(path, filesystem=client, format="parquet", partitioning=partitions)

    totals: list[Total] = []
    if "devise" in (rows := dataset(OUTPUT)).schema.names:
        table = rows.to_table(["date", "devise", "montant", "montant_eur"])
        sums = table.group_by(["date", "devise"]).aggregate(
            [([], "count_all"), ("montant", "sum"), ("montant_eur", "sum")]
        )
        columns = ("date", "devise", "count_all", "montant_sum", "montant_eur_sum")
        totals = [
            Total(date.fromisoformat(row[columns[0]]), *(row[name] for name in columns[1:]))
            for row in sums.to_pylist()
        ]
    reasons: Counter[str] = Counter()
    if "reason" in (rejects := dataset(REJECTS)).schema.names:
        reasons.update(rejects.to_table(["reason"])["reason"].to_pylist())
    return sorted(totals), reasons


def totals_by_spark(store: Store) -> tuple[list[Total], Counter[str]]:
    """Return the same by Spark.

    Raises:
        StoreError: Spark does not start, or cannot read.
    """
    # Only here: the rest needs no Spark.
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    from pipelines.transactions.spark_session import (
        SparkError,
        last_cause,
        read_parquet,
        spark_session,
    )

    try:
        spark, _ = spark_session("read", store)
        try:
            totals: list[Total] = []
            if rows := read_parquet(spark, store.url(OUTPUT)):
                sums = rows.groupBy("date", "devise").agg(
                    {"*": "count", "montant": "sum", "montant_eur": "sum"}
                )
                columns = ("date", "devise", "count(1)", "sum(montant)", "sum(montant_eur)")
                totals = sorted(Total(*(row[name] for name in columns)) for row in sums.collect())
            reasons: Counter[str] = Counter()
            if rejects := read_parquet(spark, store.url(REJECTS)):
                counted = rejects.groupBy("reason").count().collect()
                reasons.update({row["reason"]: row["count"] for row in counted})
        finally:
            spark.stop()
    except (PySparkException, Py4JError, SparkError) as exc:
        raise StoreError(f"Spark cannot read the bucket: {last_cause(exc)}") from exc
    return totals, reasons


def amount(value: Decimal) -> str:
    """Return an amount with spaces between thousands."""
    return f"{value:,.2f}".replace(",", " ")


@command("read", {SettingError: 2})
def main(argv: Sequence[str] | None = None) -> int:
    """Print what is in the bucket; return the exit code (see the module docstring)."""
    load_env(HERE)
    parser = described_parser(__doc__)
    parser.add_argument("--spark", action="store_true", help="read with Spark")
    options = parser.parse_args(argv)
    store = Store.from_env(os.environ)
    store.check()
    try:
        folders = sizes(store)
        totals, reasons = totals_by_spark(store) if options.spark else totals_by_pyarrow(store)
    except (OSError, pa.ArrowInvalid) as exc:  # it went away meanwhile, or a file is not whole
        text = " ".join(str(exc).split())[:200]
        raise StoreError(f"the bucket cannot be read: {text}") from exc
    if not (totals or reasons):
        raise StoreError("nothing is written yet: run consumer_spark.py")
    print_totals(folders, totals, reasons)
    return 0


def print_totals(
    folders: Mapping[str, tuple[int, int]], totals: Sequence[Total], reasons: Counter[str]
) -> None:
    """Print what was found, as in the module docstring."""
    write = sys.stdout.write
    for folder, (files, size) in folders.items():
        write(f"{folder + '/':<12}{files:>5} files {size / 1000:>8.0f} KB\n")
    write(f"\n{'date':<12}{'devise':<8}{'transactions':>12}{'montant':>20}{'montant_eur':>20}\n")
    for total in totals:
        write(
            f"{total.day!s:<12}{total.currency:<8}{total.transactions:>12}"
            f"{amount(total.amount):>20}{amount(total.euros):>20}\n"
        )
    by_reason = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
    written = sum(total.transactions for total in totals)
    write(f"\ntransactions: {written}   ")
    write(f"rejects: {reasons.total()}{f' ({by_reason})' if by_reason else ''}\n")
    write(f"transactions + rejects: {written + reasons.total()}\n")


if __name__ == "__main__":
    raise SystemExit(main())
