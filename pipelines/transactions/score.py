#!/usr/bin/env python3
"""Train the score that says how unusual a transaction is, and report how well it finds frauds.

    python pipelines/transactions/score.py                 # train, choose the threshold, report, store
    python pipelines/transactions/consumer_spark.py --score     # then: apply it on the stream

The score has two features, each standardised (mean 0, standard deviation 1) on the history that the
pipeline has written, frauds and all, as nobody has labelled them there:

    size      natural logarithm of montant_eur
    daytime   cosine of the hour in Paris, 1 at 15:00 and -1 at 03:00

    score = (how far size is above its mean)^2 + (how far daytime is below its mean)^2

in standard deviations; the other two directions, small amounts and the afternoon, count 0. `suspect`
is a score above the threshold. That is chosen on labelled transactions simulated by capteur.py, so
that F1 (harmonic mean of precision and recall) is highest there, and judged on others, simulated
with another seed. Beside it, for comparison, what the amount alone would give, its threshold chosen
in the same way.

The report says what the score is worth on these simulated frauds, in the share that was asked for
(--fraud); of real ones it says nothing. Floats are used here, never for money.

Environment (or .env in the project's folder): as store.py.

Exit codes: 0 trained and stored, 1 no store or too little history, 2 wrong usage or configuration.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dotenv import load_dotenv
from pyspark.errors import AnalysisException
from pyspark.ml import PipelineModel
from pyspark.ml.feature import SQLTransformer, StandardScaler, VectorAssembler
from pyspark.sql import DataFrame, Row, SparkSession

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.transactions import capteur, consumer_spark  # noqa: E402
from pipelines.transactions.spark_session import SparkError, spark_session  # noqa: E402
from pipelines.transactions.store import MODEL, OUTPUT, Store, StoreError  # noqa: E402

LEAST_HISTORY = 1000  # transactions; with fewer, mean and deviation are a matter of chance
CHOICE_SEED, JUDGE_SEED = 1001, 1002
HOUR = "(hour(timestamp_paris) + minute(timestamp_paris) / 60D)"
FEATURES = {
    "size": "ln(CAST(montant_eur AS DOUBLE))",
    "daytime": f"cos(2 * pi() * ({HOUR} - 15) / 24)",
}


class Scale(NamedTuple):
    """What a feature is measured by: its mean and standard deviation in the history."""

    mean: float
    deviation: float


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
    for number, (score, is_fraud) in enumerate(ordered[:-1], start=1):
        found += is_fraud
        below = ordered[number][0]
        f1 = 2 * found / (number + frauds)  # suspects plus frauds are 2 found + false + missed
        if score != below and f1 > best_f1:
            best, best_f1 = (score + below) / 2, f1
    if best is None:
        raise ValueError("all scores are the same: there is nothing to choose between")
    return best


def learn_scales(history: DataFrame) -> dict[str, Scale]:
    """Return the mean and standard deviation of each feature in the history."""
    features = history.selectExpr(*[f"{sql} AS {name}" for name, sql in FEATURES.items()])
    assembled = VectorAssembler(inputCols=list(FEATURES), outputCol="features").transform(features)
    scaler = StandardScaler(inputCol="features", outputCol="standardised", withMean=True)
    model = scaler.fit(assembled)
    pairs = zip(model.mean.toArray(), model.std.toArray(), strict=True)
    return {name: Scale(*map(float, pair)) for name, pair in zip(FEATURES, pairs, strict=True)}


def score_stage(scales: dict[str, Scale], threshold: float) -> PipelineModel:
    """Return the Spark ML model that adds `score` and `suspect` to transactions."""
    size, daytime = (
        f"({FEATURES[name]} - {scales[name].mean!r}D) / {scales[name].deviation!r}D"
        for name in FEATURES
    )
    score = f"pow(greatest({size}, 0), 2) + pow(least({daytime}, 0), 2)"
    statement = f"SELECT *, {score} AS score, ({score}) > {threshold!r}D AS suspect FROM __THIS__"
    return PipelineModel([SQLTransformer(statement=statement)])


def simulated(spark: SparkSession, count: int, fraud: float, seed: int) -> DataFrame:
    """Return labelled transactions: what capteur.py makes, through the consumer's own transforms."""
    options = ["--count", str(count), "--fraud", str(fraud), "--seed", str(seed)]
    config = capteur.load_config([*options, "--interval", "10"], {})
    rows = [
        Row(value=bytearray(record.value), is_fraud=record.label == "fraud")
        for record in capteur.all_records(config)
    ]
    records = spark.createDataFrame(rows, "value BINARY, is_fraud BOOLEAN")
    rates = consumer_spark.rates_frame(spark)
    values = consumer_spark.with_values(consumer_spark.parse(records), rates)
    return consumer_spark.judge(values, capteur_currencies()).where("reason IS NULL")


def capteur_currencies() -> list[str]:
    """Return the currencies that are simulated."""
    return [currency.code for currency in capteur.CURRENCIES]


def pairs_of(transactions: DataFrame, column: str) -> list[tuple[float, bool]]:
    """Return (a column's value, is a fraud) of each labelled transaction."""
    rows = transactions.selectExpr(f"CAST({column} AS DOUBLE) AS value", "is_fraud").collect()
    return [(row["value"], row["is_fraud"]) for row in rows]


def train(
    spark: SparkSession, history: DataFrame, count: int, fraud: float, say: Callable[[str], object]
) -> tuple[PipelineModel, dict[str, object]]:
    """Return the score and a card of what it is worth; say the same on the way.

    Raises:
        StoreError: there is too little history.
    """
    size = history.count()
    if size < LEAST_HISTORY:
        raise StoreError(
            f"only {size} transactions are written, {LEAST_HISTORY} are needed: send more "
            "(capteur.py --backfill 48h --interval 10), then run consumer_spark.py"
        )
    scales = learn_scales(history)
    say(f"history: {size} transactions")
    for name, scale in scales.items():
        say(f"  {name:<8} mean {scale.mean:6.3f}   standard deviation {scale.deviation:.3f}")
    unlimited = score_stage(scales, 0.0)
    choice = simulated(spark, count, fraud, CHOICE_SEED).cache()
    judge = simulated(spark, count, fraud, JUDGE_SEED).cache()
    results = {}
    for name, column, model in (
        ("score", "score", unlimited),
        ("amount alone", "montant_eur", None),
    ):
        with_column = [model.transform(rows) if model else rows for rows in (choice, judge)]
        threshold = best_threshold(pairs_of(with_column[0], column))
        results[name] = quality(pairs_of(with_column[1], column), threshold)
    frauds = results["score"].found + results["score"].missed
    say(f"judged on {judge.count()} simulated transactions, {frauds} of them frauds:")
    say(
        f"  {'':<14}{'threshold':>10}{'precision':>11}{'recall':>8}{'F1':>7}{'found':>8}{'false':>7}{'missed':>8}"
    )
    for name, one in results.items():
        say(
            f"  {name:<14}{one.threshold:>10.2f}{one.precision:>11.2f}{one.recall:>8.2f}"
            f"{one.f1:>7.2f}{one.found:>8}{one.false:>7}{one.missed:>8}"
        )
    card = {
        "history": size,
        "scales": {name: scale._asdict() for name, scale in scales.items()},
        "judged_on": {"transactions": judge.count(), "fraud_rate": fraud, "seed": JUDGE_SEED},
        "results": {
            name: {**one._asdict(), "precision": one.precision, "recall": one.recall, "f1": one.f1}
            for name, one in results.items()
        },
    }
    return score_stage(scales, results["score"].threshold), card


def main(argv: Sequence[str] | None = None) -> int:
    """Train, report and store the score; return the exit code (see the module docstring)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000, metavar="N",
        help="simulated transactions to choose on, and as many to judge on (default: 20000)")  # fmt: skip
    parser.add_argument("--fraud", type=float, default=0.01, metavar="RATE",
        help="share of frauds among them, 0 to 1 (default: 0.01)")  # fmt: skip
    options = parser.parse_args(argv)
    if not (options.count >= 100 and 1 <= options.fraud * options.count < options.count):
        parser.error("--count must be 100 or more, and --fraud leave at least one fraud in it")
    load_dotenv(PROJECT / ".env")
    say: Callable[[str], object] = lambda line: print(line, flush=True)  # noqa: E731, T201
    try:
        store = Store.from_env(os.environ)
        store.check()
        spark = spark_session("score", store)
        history = spark.read.parquet(store.url(OUTPUT))
        model, card = train(spark, history, options.count, options.fraud, say)
        model.write().overwrite().save(store.url(MODEL))
        with store.filesystem().open_output_stream(f"{store.bucket}/{MODEL}/card.json") as file:
            file.write(json.dumps(card, indent=2).encode())
    except AnalysisException as exc:
        if "PATH_NOT_FOUND" not in str(exc):
            raise
        sys.stderr.write("score: nothing is written yet: run consumer_spark.py first\n")
        return 1
    except (StoreError, SparkError) as exc:
        sys.stderr.write(f"score: {exc}\n")
        return 1
    say(f"stored in {store.url(MODEL)}; apply it with: consumer_spark.py --score")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
