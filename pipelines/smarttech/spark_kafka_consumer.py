#!/usr/bin/env python3
"""Bring the readings of a Kafka topic into Delta tables: bronze, silver, gold, anomalies.

    python pipelines/smarttech/spark_kafka_consumer.py          # until Ctrl-C
    python pipelines/smarttech/spark_kafka_consumer.py --once   # what is there, then end

Three streams, each with its own checkpoint; the rules are in transforms.py:

    Kafka -> bronze                                   every message, as it came; nothing is dropped
    bronze -> silver | rejects | duplicates           each message in exactly one of the three
    silver -> gold, anomalies                         both always what silver makes them

Exactly once, also when it is killed at any moment:
  - bronze is written by Delta's own sink, which notes the batch in the same commit as its rows;
  - so do the three writes of the second stream (txnAppId, txnVersion): when a batch is done again,
    what is already written is skipped. Silver, on which the verdicts depend, is written last;
  - gold and anomalies are computed anew from silver wherever a batch touches them, and merged.

A line of the log:

    silver batch=0 rows=9 silver=7 duplicates=1 rejected=1 (bad_json=1) seconds=15.0

Environment (or .env in this folder, then at the project's root; an option wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    SMARTTECH_TOPIC           default sensor_data
    SMARTTECH_LAKE            folder of the tables (default: lake/ beside this file)
    SMARTTECH_CHECKPOINT      folder of the checkpoints (default: checkpoints/ in the lake)

Exit codes: 0 done or stopped cleanly, 1 a server unreachable or a stream that cannot go on,
2 wrong usage or configuration.
"""

import argparse
import json
import logging
import os
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltalake.exceptions import DeltaError
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import (  # noqa: E402
    configure_logging,
    load_env,
    number,
    stop_on_signals,
    text,
)
from pipelines.smarttech.lake import (  # noqa: E402
    STAGES,
    LakeError,
    StoppedError,
    UsageError,
    check_checkpoints,
    create_tables,
    lock,
    write_whole,
)
from pipelines.smarttech.prepare import (  # noqa: E402
    NoTopicError,
    wait_for_topic,
    warn_of_settings,
)
from pipelines.smarttech.settings import (  # noqa: E402
    FOLDER,
    add_checkpoint_option,
    add_kafka_options,
    add_lake_option,
    command_parser,
)
from pipelines.smarttech.spark_session import (  # noqa: E402
    one_line,
    spark_session,
    what_ended,
)
from pipelines.smarttech.streams import Pipeline  # noqa: E402
from pipelines.smarttech.supervisor import Supervisor  # noqa: E402
from pipelines.smarttech.transforms import seconds  # noqa: E402
from pipelines.spark import stop_with_submit  # noqa: E402

log = logging.getLogger("smarttech")

OPTIONS_FILE = "options.json"
KEPT_OPTIONS = ("topic", "lateness", "window")  # what the rows of a lake depend on


def check_options(options: Namespace) -> None:
    """Refuse options that would treat the next messages otherwise than those in the lake.

    Raises:
        UsageError: the lake was begun with others.
        LakeError: what it was begun with cannot be read.
    """
    file = options.lake / OPTIONS_FILE
    if not file.exists():
        return
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        begun = {name: kept[name] for name in KEPT_OPTIONS}
        is_same = {
            "topic": begun["topic"] == options.topic,
            "lateness": seconds(begun["lateness"]) == seconds(options.lateness),
            "window": seconds(begun["window"]) == seconds(options.window),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise LakeError(f"{file} cannot be read: {one_line(exc)}") from exc
    if wrong := [name for name, same in is_same.items() if not same]:
        said = ", ".join(f"--{name} '{begun[name]}'" for name in wrong)
        raise UsageError(
            f"{options.lake} was begun with {said}: say the same, or take another lake"
        )


def keep_options(options: Namespace) -> None:
    """Note with the lake, once, what its rows depend on. The lake must be locked.

    Raises:
        UsageError: it was begun with other options.
    """
    check_options(options)
    file = options.lake / OPTIONS_FILE
    if not file.exists():
        kept = {name: getattr(options, name) for name in KEPT_OPTIONS}
        write_whole(file, json.dumps(kept) + "\n")


def setting(text: str) -> tuple[str, str]:
    """Return a setting of Spark, written KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key.startswith("spark."):
        raise argparse.ArgumentTypeError(f"{text!r} is not spark.KEY=VALUE")
    return key, value


def load_options(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Namespace:
    """Return the options: command line > environment > default. A bad value exits with code 2."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    duration = text(r"[1-9]\d{0,4} (second|minute|hour|day)s?", "such as '10 minutes'")
    add("--once", action="store_true",
        help="bring in what the topic holds now, one stage after the other, and end")  # fmt: skip
    add("--every", type=number(0, 86_400), default=5.0, metavar="SECONDS",
        help="the trigger: between the starts of two batches of a stream (default: 5)")  # fmt: skip
    add("--batch", type=number(1, 10**9, int), default=100_000, metavar="N",
        help="messages at most of one batch from Kafka (default: 100000)")  # fmt: skip
    add("--lateness", type=duration, default="10 minutes", metavar="DURATION",
        help="how long after a newer one of its series a reading may come "
        "(default: 10 minutes)")  # fmt: skip
    add("--window", type=duration, default="5 minutes", metavar="DURATION",
        help="length of gold's windows (default: 5 minutes)")  # fmt: skip
    add("--conf", type=setting, action="append", default=[], metavar="KEY=VALUE",
        help="a setting of Spark, as often as you like")  # fmt: skip
    add_kafka_options(parser, environ)
    add_lake_option(parser, environ)
    add_checkpoint_option(parser, environ)
    options = parser.parse_args(argv)
    options.checkpoint = options.checkpoint or options.lake / "checkpoints"
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the streams until done or stopped; return the exit code (see the module docstring)."""
    stop = threading.Event()
    stop_with_submit(stop)
    load_env(FOLDER)
    options = load_options(argv, os.environ)
    configure_logging("smarttech")
    stop_on_signals(stop)
    try:
        check_options(options)
        wait_for_topic(options, stop)
        if not stop.is_set():
            warn_of_settings(options.bootstrap_servers, options.topic)
            run(options, stop)
    except (LakeError, NoTopicError) as exc:
        log.error("%s", exc)
        return 2 if isinstance(exc, UsageError) else 1
    except StoppedError:
        log.debug("told to stop before it began")
    except (PySparkException, DeltaError, Py4JError, OSError) as exc:
        if not stop.wait(1.0):  # else Java was told to stop as well
            log.error("%s (see %s)", what_ended(exc), options.lake / "spark.log")
            return 1
    log.info("stopped")
    return 0


def run(options: Namespace, stop: threading.Event) -> None:
    """Run the streams on a session of their own.

    Raises:
        LakeError: they cannot start, or one cannot go on.
        StoppedError: told to stop before they started.
    """
    with (
        lock(options.lake, options.checkpoint, stop=stop) as locks,
        spark_session(options.lake, dict(options.conf), locks) as (spark, java),
    ):
        stop_on_signals(stop)  # once more: Spark has put its own handler there
        keep_options(options)
        check_checkpoints(options.lake, options.checkpoint)
        create_tables(spark, options.lake)
        supervisor = Supervisor(Pipeline(spark, java.jvm, options), stop)
        log.info(
            "reading topic=%s at %s into %s", options.topic, options.bootstrap_servers, options.lake
        )
        for group in [[stage] for stage in STAGES] if options.once else [list(STAGES)]:
            began = time.monotonic()
            supervisor.run(group)
            took_s = time.monotonic() - began
            for stage in group:
                rows = supervisor.rows[stage]
                log.info(
                    "%s total rows=%d seconds=%.1f rate_hz=%.0f", stage, rows, took_s, rows / took_s
                )


if __name__ == "__main__":
    raise SystemExit(main())
