#!/usr/bin/env python3
"""Delete the readings that are old enough, or have Elasticsearch do so by itself.

    python tools/retention.py delete --dry-run            say what would be deleted, delete nothing
    python tools/retention.py delete --older-than 30d     delete it; once a day, by cron
    python tools/retention.py lifecycle                   once: Elasticsearch deletes daily indices

    sensors_dated                       0 of 0 readings deleted
    sensors_dated-2026.11.23        20185 of 20185 readings deleted, with the index
    sensors_dated-2026.11.24            0 of 21458 readings deleted
    sensors_dated-2026.11.25            0 of 11794 readings deleted
    deleted 20185 of 53437 readings, from before 2026-11-24T13:18:30Z

A reading is as old as its own timestamp says, whenever it arrived. ELASTICSEARCH_INDEX, which must
begin with sensors_, loses its old readings one by one; a daily index (sensors_data-2026.11.25) or a
monthly one (sensors_data-2026.11) goes as a whole, when all of its day or month (UTC) is old
enough. Nothing else is touched.

lifecycle puts the policy of mappings/lifecycle.json under the name of the index, for the daily
indices that are there and, by an index template, those to come. It needs Elasticsearch's index
lifecycle (ILM); where that is absent, delete does the same.

Environment (or .env): ELASTICSEARCH_URL and ELASTICSEARCH_INDEX, as the consumer; in the secure
variant, the user ADMIN_ELASTICSEARCH_USER.

Exit codes: 0 done, 1 Elasticsearch unreachable, or it refused; 2 wrong usage.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from elasticsearch import BadRequestError, Elasticsearch
from elasticsearch.helpers import BulkIndexError, scan, streaming_bulk

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kafka_to_elasticsearch import (  # noqa: E402  # works from any folder
    MAPPING_FILE,
    SetupError,
)
from tools.connection import (  # noqa: E402
    ELASTICSEARCH_ERRORS,
    elasticsearch_client,
    elasticsearch_index,
    failure,
    load_env,
    run,
)

ROLE = "ADMIN"
LIFECYCLE_FILE = PROJECT / "mappings/lifecycle.json"


class RetentionError(Exception):
    """What stops us, in one line for the user."""


def period(name: str, index: str) -> tuple[datetime, datetime] | None:
    """Return the day or month (UTC) that a dated index is for, None when it is not one of index.

    >>> [f"{edge:%F}" for edge in period("sensors_data-2026.12", "sensors_data") or ()]
    ['2026-12-01', '2027-01-01']
    >>> period("sensors_data-2026.02.30", "sensors_data"), period("sensors_data_x", "sensors_data")
    (None, None)
    """
    match = re.fullmatch(rf"{re.escape(index)}-(\d{{4}})\.(\d\d)(?:\.(\d\d))?", name)
    if not match:
        return None
    try:
        start = datetime(int(match[1]), int(match[2]), int(match[3] or 1), tzinfo=UTC)
        if match[3]:
            return start, start + timedelta(days=1)
        return start, (start + timedelta(days=31)).replace(day=1)
    except (ValueError, OverflowError):  # there is no such day
        return None


def existing_indices(client: Elasticsearch, index: str) -> list[str]:
    """Return the names behind the pattern INDEX*, sorted.

    Raises:
        RetentionError: there is none.
    """
    names = sorted(client.indices.get(index=f"{index}*", filter_path="*.aliases"))
    if not names:
        raise RetentionError(f"there is no index {index}*: is ELASTICSEARCH_INDEX right?")
    return names


# delete


def delete(client: Elasticsearch, index: str, before: datetime, dry_run: bool) -> None:
    """Delete the readings from before a time, and print what is deleted of each index."""
    write = sys.stdout.write
    done = "to be deleted" if dry_run else "deleted"
    total = gone = 0
    for name in existing_indices(client, index):
        dates = period(name, index)
        if name != index and not dates:
            write(f"{name:<31} left alone: neither {index} nor a dated index of it\n")
            continue
        client.indices.refresh(index=name)
        readings = client.count(index=name)["count"]
        young = client.count(index=name, query=readings_from(before, "gte"))["count"]
        whole = bool(dates and dates[1] <= before and not young)  # young: it is not what it says
        if whole:
            deleted = readings
            if not dry_run:
                client.indices.delete(index=name)
        else:
            deleted = 0 if dates else delete_readings(client, name, before, dry_run)
        with_index = ", with the index" if whole else ""
        write(f"{name:<31} {deleted:>5} of {readings} readings {done}{with_index}\n")
        total, gone = total + readings, gone + deleted
    write(f"{done} {gone} of {total} readings, from before {before:%FT%TZ}\n")


def readings_from(time: datetime, comparison: str) -> dict[str, Any]:
    """Return the query for the readings from then on ("gte") or from before ("lt")."""
    return {"range": {"timestamp": {comparison: time.isoformat()}}}


def delete_readings(client: Elasticsearch, index: str, before: datetime, dry_run: bool) -> int:
    """Delete the old readings of one index one by one; return how many.

    Not by _delete_by_query, which the distribution of the native stack lacks.

    Raises:
        BulkIndexError: Elasticsearch refuses to delete some.
    """
    query = readings_from(before, "lt")
    if dry_run:
        return int(client.count(index=index, query=query)["count"])
    old = scan(client, index=index, query={"query": query}, _source=False, size=5000)
    actions = ({"_op_type": "delete", "_index": index, "_id": hit["_id"]} for hit in old)
    results = streaming_bulk(client, actions, chunk_size=5000, ignore_status=404)
    return sum(answer["delete"]["result"] == "deleted" for _, answer in results)


# lifecycle


def install_lifecycle(client: Elasticsearch, index: str) -> None:
    """Have Elasticsearch delete the daily indices of index by itself, and print which.

    The age counts from the day in an index's name: what is read late, or from a sensor whose clock
    is ahead, changes nothing about it.

    Raises:
        RetentionError: this Elasticsearch has no lifecycles.
    """
    policy = json.loads(LIFECYCLE_FILE.read_text(encoding="utf-8"))["policy"]
    try:
        client.ilm.put_lifecycle(name=index, policy=policy)
    except BadRequestError as exc:
        if "no handler found" not in str(exc):
            raise
        raise RetentionError(
            "this Elasticsearch has no index lifecycle: run `python tools/retention.py delete` "
            "once a day instead"
        ) from exc
    client.indices.put_index_template(name=f"{index}-daily", **daily_template(index))
    sys.stdout.write(f"policy {index}: an index is deleted {policy['phases']['delete']['min_age']} "
                     f"after its day began; so are the {index}-YYYY.MM.DD to come\n")  # fmt: skip
    for name in client.indices.get(index=f"{index}*", filter_path="*.aliases"):
        dates = period(name, index)
        if dates and dates[1] - dates[0] == timedelta(days=1):
            began_ms = round(dates[0].timestamp() * 1000)
            settings = {"lifecycle.name": index, "lifecycle.origination_date": began_ms}
            client.indices.put_settings(index=name, settings={"index": settings})
            sys.stdout.write(f"{name:<31} follows it\n")


def daily_template(index: str) -> dict[str, Any]:
    """Return the index template of daily indices: that of the readings, with the lifecycle.

    Two dots: a monthly index is not meant, whose name Elasticsearch cannot read a day from. Of the
    templates that match a daily index, the one of the highest priority counts.
    """
    template = json.loads(MAPPING_FILE.read_text(encoding="utf-8"))
    lifecycle = {"name": index, "parse_origination_date": True}
    template["settings"] = {**template["settings"], "index.lifecycle": lifecycle}
    return {
        "index_patterns": [f"{index}-*.*.*"],
        "priority": 1_000_000,
        "allow_auto_create": False,
        "template": template,
    }


# The command.


def index_name(text: str) -> str:
    """Return the name of an index that readings may be deleted from."""
    if not re.fullmatch(r"sensors_[a-z0-9_.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one name that begins with sensors_")
    return text


def time_before(age: str) -> datetime:
    """Return when a reading of that age was measured. No unit that could be minutes or months."""
    if not (match := re.fullmatch(r"([1-9]\d*)([hd])", age)):
        raise argparse.ArgumentTypeError(f"{age!r} is not hours or days, such as 12h or 90d")
    try:
        hours = int(match[1]) * (24 if match[2] == "d" else 1)
        return datetime.now(UTC) - timedelta(hours=hours)
    except (OverflowError, ValueError):  # of timedelta, of int
        raise argparse.ArgumentTypeError(f"{age[:20]} is longer than the calendar") from None


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for; a wrong value ends with code 2.

    Raises:
        SetupError: the environment's index is none.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = elasticsearch_index()
    parser.add_argument("--index", type=index_name, default=default, help="another index")
    commands = parser.add_subparsers(dest="command", required=True)
    deleting = commands.add_parser("delete", help="delete old readings now")
    deleting.add_argument("--older-than", type=time_before, default="30d", metavar="AGE",
        dest="before", help="in hours or days, such as 12h or 90d (default: 30d)")  # fmt: skip
    deleting.add_argument(
        "--dry-run", action="store_true", help="delete nothing, say what would be"
    )
    commands.add_parser("lifecycle", help="have Elasticsearch delete daily indices by itself")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return the exit code (see the module docstring)."""
    load_env()
    try:
        arguments = parse_arguments(argv)
        with elasticsearch_client(ROLE) as client:
            if arguments.command == "delete":
                delete(client, arguments.index, arguments.before, arguments.dry_run)
            else:
                install_lifecycle(client, arguments.index)
    except SetupError as exc:
        sys.stderr.write(f"retention: {exc}\n")
        return 2
    except (RetentionError, *ELASTICSEARCH_ERRORS, BulkIndexError) as exc:
        why = failure(exc, ROLE)
    except KeyboardInterrupt:
        why = "interrupted: what is printed is done, run it again for the rest"
    else:
        return 0
    sys.stderr.write(f"retention: {why}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(run(main))
