#!/usr/bin/env python3
"""Train the score that says how unusual a transaction is, and report how well it finds frauds.

    python score.py                           # train, choose, report, store
    python consumer_spark.py --score --once   # then: apply it on the stream

A score is the surprise of a transaction, in nats: how much rarer it is in the history that the
pipeline has written (frauds and all, as nobody has labelled them there) than a usual one.

    size    z^2 / 2, where z, from 0 up, is how many standard deviations the logarithm of
            montant_eur is above its mean: how far a normal density's logarithm has fallen
    hour    -ln(24 x share of the history in that hour, in Paris), from 0 up: 3 at an hour with a
            twentieth of the transactions of an average one
    score   size + hour, as if the two were independent

`suspect` is a score above the threshold. That is chosen on labelled transactions simulated by
capteur.py, so that F1 (harmonic mean of precision and recall) is highest there, and judged on
others, simulated with another seed. Beside it, for comparison, what the amount alone would give,
its threshold chosen in the same way.

The report says what the score is worth on these simulated frauds, in the share that was asked for
(--fraud); of real ones it says nothing. Floats are used here, never for money.

Environment (or .env in this folder, or in the project's): as store.py.

Exit codes: 0 trained and stored, 1 no store or too little history, 2 wrong usage or configuration.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.ml import PipelineModel
from pyspark.ml.feature import SQLTransformer, StandardScaler, VectorAssembler
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # as Spark's own documentation does

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from pipelines.common import load_env, number  # noqa: E402
from pipelines.transactions.rules import judge, parse, rates_frame, with_values  # noqa: E402
from pipelines.transactions.settings import described_parser, share  # noqa: E402
from pipelines.transactions.simulation import CURRENCIES, Simulation, all_records  # noqa: E402
from pipelines.transactions.spark_session import (  # noqa: E402
    last_cause,
    read_parquet,
    spark_session,
)
from pipelines.transactions.store import (  # noqa: E402
    CARD,
    MODEL,
    OUTPUT,
    SettingError,
    Store,
    StoreError,
)
from stack.console import command  # noqa: E402

LEAST_HISTORY = 1000  # transactions; with fewer, mean and deviation are a matter of chance
CHOICE_SEED, JUDGE_SEED = 1001, 1002
SIZE = "ln(CAST(montant_eur AS DOUBLE))"  # null of 0.00 EUR, which 0.5 JPY is
HOUR = "hour(timestamp_paris)"


class History(NamedTuple):
    """What the history says: mean and standard deviation of the size, share of each hour."""

    mean: float
    deviation: float
    hours: list[float]


class Quality(NamedTuple):
    """How well a threshold finds frauds: the counts, and what follows from them."""

    threshold: float
    found: int  # frauds that are suspect
    false: int  # suspects that are none
    missed: int  # frauds that are not suspect

    @property
    def precision(self) -> float:
        """Share of frauds among the suspects; 0 without any."""
        return self.found / (self.found + self.false) if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of suspects among the frauds; 0 without any."""
        return self.found / (self.found + self.missed) if self.found else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]."""
        return 2 * self.found / (2 * self.found + self.false + self.missed) if self.found else 0.0


class Training(NamedTuple):
    """What training has made: the score, what it has learnt, and what it is worth."""

    model: PipelineModel
    history: History
    results: dict[str, Quality]  # of the score, and of the amount alone
    curves: dict[str, list[tuple[float, float]]]  # of the same, see `precision_recall`


def quality(scored: Sequence[tuple[float, bool]], threshold: float) -> Quality:
    """Judge a threshold on pairs (score, is a fraud).

    >>> quality([(9.0, True), (8.0, False), (2.0, True), (1.0, False)], 5.0)
    Quality(threshold=5.0, found=1, false=1, missed=1)
    """
    suspects = [is_fraud for score, is_fraud in scored if score > threshold]
    frauds = sum(is_fraud for _, is_fraud in scored)
    found = sum(suspects)
    return Quality(threshold, found, len(suspects) - found, frauds - found)


def best_threshold(scored: Sequence[tuple[float, bool]]) -> float:
    """Return the threshold of the highest F1: half way between two neighbouring scores.

    Raises:
        ValueError: there are fewer than two different scores.

    >>> best_threshold([(9.0, True), (8.0, True), (2.0, False), (1.0, False)])
    5.0
    """
    ordered = sorted(scored, reverse=True)
    frauds = sum(is_fraud for _, is_fraud in ordered)
    best, best_f1, found = None, -1.0, 0
    for suspects, (score, is_fraud) in enumerate(ordered[:-1], start=1):
        found += is_fraud
        below = ordered[suspects][0]
        f1 = 2 * found / (suspects + frauds)  # their sum is 2 found + false + missed
        if score != below and f1 > best_f1:
            best, best_f1 = (score + below) / 2, f1
    if best is None:
        raise ValueError("all scores are the same: there is nothing to choose between")
    return best


def precision_recall(scored: Sequence[tuple[float, bool]]) -> list[tuple[float, float]]:
    """Return (recall, precision) of thresholds from the highest score down, at most 200 of them.

    >>> precision_recall([(9.0, True), (8.0, False), (2.0, True), (1.0, False)])
    [(0.5, 1.0), (0.5, 0.5), (1.0, 0.6666666666666666), (1.0, 0.5)]
    """
    ordered = sorted(scored, reverse=True)
    frauds = sum(is_fraud for _, is_fraud in ordered)
    found, points = 0, []
    for suspects, (_, is_fraud) in enumerate(ordered, start=1):
        found += is_fraud
        points.append((found / frauds, found / suspects))
    # Close to each other at first, where the curve moves most.
    ranks = sorted({round(len(points) ** (step / 199)) for step in range(200)})
    return [points[rank - 1] for rank in ranks]


def learn(history: DataFrame) -> History:
    """Return what the history says; an hour without any counts as one transaction.

    What comes to 0.00 EUR is left out: there is no logarithm of it.

    Raises:
        ValueError: all amounts are the same.
    """
    history = history.where("montant_eur > 0")
    sizes = VectorAssembler(inputCols=["size"], outputCol="features").transform(
        history.selectExpr(f"{SIZE} AS size")
    )
    scaler = StandardScaler(inputCol="features", outputCol="standardised", withMean=True)
    model = scaler.fit(sizes)
    if not model.std.toArray()[0] > 0:
        raise ValueError("all amounts written are the same: there is nothing to learn from them")
    by_hour = history.groupBy(F.expr(HOUR).alias("hour")).count().collect()
    counted: dict[int, int] = {row["hour"]: row["count"] for row in by_hour}
    counts = [counted.get(hour, 1) for hour in range(24)]
    hours = [count / sum(counts) for count in counts]
    return History(float(model.mean.toArray()[0]), float(model.std.toArray()[0]), hours)


def score_model(history: History, threshold: float) -> PipelineModel:
    """Return the Spark ML model that adds `score` and `suspect` to transactions.

    The size of 0.00 EUR is 0, as of any amount below the mean.
    """
    # `greatest` passes over the null that SIZE is there.
    size = f"pow(greatest(({SIZE} - {history.mean!r}D) / {history.deviation!r}D, 0), 2) / 2"
    hours = ", ".join(f"{max(0.0, -math.log(24 * share))!r}D" for share in history.hours)
    score = f"{size} + array({hours})[{HOUR}]"
    columns = f"{score} AS score, {score} > {threshold!r}D AS suspect"
    statement = f"SELECT *, {columns} FROM __THIS__"  # noqa: S608  # numbers of our own
    return PipelineModel([SQLTransformer(statement=statement)])


def simulated(spark: SparkSession, count: int, fraud: float, seed: int) -> DataFrame:
    """Return labelled transactions: what capteur.py makes, through the consumer's rules."""
    asked = Simulation(
        start=datetime(2026, 10, 24, tzinfo=UTC), end=None, count=count, interval_s=10, daily=True,
        first_id=1, seed=seed, bad=0, fraud=fraud,
    )  # fmt: skip
    rows = [
        Row(value=bytearray(record.value), is_fraud=record.label == "fraud")
        for record in all_records(asked)
    ]
    records = spark.createDataFrame(rows, "value BINARY, is_fraud BOOLEAN")
    values = with_values(parse(records), rates_frame(spark))
    return judge(values, [currency.code for currency in CURRENCIES]).where("reason IS NULL")


def pairs_of(transactions: DataFrame, column: str) -> list[tuple[float, bool]]:
    """Return (a column's value, is a fraud) of each labelled transaction."""
    rows = transactions.selectExpr(f"CAST({column} AS DOUBLE) AS value", "is_fraud").collect()
    return [(row["value"], row["is_fraud"]) for row in rows]


def train(spark: SparkSession, transactions: DataFrame, count: int, fraud: float) -> Training:
    """Learn from transactions, choose the threshold, and judge it and that of the amount alone."""
    history = learn(transactions)
    to_choose_on, to_judge_on = (
        score_model(history, 0.0).transform(simulated(spark, count, fraud, seed)).cache()
        for seed in (CHOICE_SEED, JUDGE_SEED)
    )
    results, curves = {}, {}
    for name, column in (("score", "score"), ("amount alone", "montant_eur")):
        threshold = best_threshold(pairs_of(to_choose_on, column))
        judged = pairs_of(to_judge_on, column)
        results[name], curves[name] = quality(judged, threshold), precision_recall(judged)
    return Training(score_model(history, results["score"].threshold), history, results, curves)


def print_report(history: History, size: int, results: dict[str, Quality]) -> None:
    """Print what was learnt and what it is worth."""
    write = sys.stdout.write
    rarest = min(range(24), key=lambda hour: history.hours[hour])
    write(
        f"history: {size} transactions, geometric mean {math.exp(history.mean):.2f} EUR, "
        f"standard deviation of the logarithm {history.deviation:.2f}; "
        f"rarest hour {rarest:02d}:00, {history.hours[rarest]:.2%}\n"
    )
    write(f"{'':<14}{'threshold':>10}{'precision':>11}{'recall':>8}{'F1':>7}")
    write(f"{'found':>8}{'false':>7}{'missed':>8}\n")
    for name, one in results.items():
        write(f"{name:<14}{one.threshold:>10.2f}{one.precision:>11.2f}{one.recall:>8.2f}")
        write(f"{one.f1:>7.2f}{one.found:>8}{one.false:>7}{one.missed:>8}\n")


def store_score(store: Store, trained: Training) -> None:
    """Write the model into the bucket, and its card beside it, for people and for plot.py."""
    trained.model.write().overwrite().save(store.url(MODEL))
    card = {
        "history": trained.history._asdict(),
        "results": {name: one._asdict() for name, one in trained.results.items()},
        "curves": trained.curves,
    }
    with store.filesystem().open_output_stream(f"{store.bucket}/{CARD}") as file:
        file.write(json.dumps(card, indent=2).encode())


@command("score", {SettingError: 2})
def main(argv: Sequence[str] | None = None) -> int:
    """Train, report and store the score; return the exit code (see the module docstring)."""
    load_env(HERE)
    parser = described_parser(__doc__)
    parser.add_argument("--count", type=number(100, 1e6, int), default=20_000, metavar="N",
        help="simulated ones to choose on, and as many to judge on (default: 20000)")  # fmt: skip
    parser.add_argument("--fraud", type=share, default=0.01, metavar="RATE",
        help="share of frauds among them, 0 to 1 (default: 0.01)")  # fmt: skip
    options = parser.parse_args(argv)
    if not 1 <= options.fraud * options.count < options.count:
        parser.error("--fraud must leave at least one fraud and one other in --count")
    store = Store.from_env(os.environ)
    store.check()
    spark, _ = spark_session("score", store)
    try:
        transactions = read_parquet(spark, store.url(OUTPUT))
        if transactions is None:
            raise StoreError("nothing is written yet: run consumer_spark.py first")
        if (size := transactions.count()) < LEAST_HISTORY:
            raise StoreError(
                f"only {size} transactions are written, {LEAST_HISTORY} are needed: send more "
                "(capteur.py --backfill 48h --interval 10), then run consumer_spark.py"
            )
        trained = train(spark, transactions, options.count, options.fraud)
        print_report(trained.history, size, trained.results)
        store_score(store, trained)
    except (PySparkException, Py4JError) as exc:  # some of them are ValueErrors, too
        raise StoreError(f"Spark has failed: {last_cause(exc)}") from exc
    except (OSError, ValueError) as exc:
        raise StoreError(str(exc)) from exc
    sys.stdout.write(
        f"stored in {store.url(MODEL)}; apply it with: consumer_spark.py --score --once\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
