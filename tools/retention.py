"""Delete the readings that are old enough, or have Elasticsearch do so by itself.

    python -m tools.retention delete --dry-run            say what would be deleted, delete nothing
    python -m tools.retention delete --older-than 30d     delete it; once a day, by cron
    python -m tools.retention lifecycle                   once: Elasticsearch deletes daily indices

    sensors_dated                       0 of 0 readings deleted
    sensors_dated-2026.11.23        20185 of 20185 readings deleted, with the index
    sensors_dated-2026.11.24            0 of 21458 readings deleted
    sensors_dated-2026.11.25            0 of 11794 readings deleted
    deleted 20185 of 53437 readings, from before 2026-11-24T13:18:30Z

A reading's age counts from its own timestamp, whenever it arrived. From ELASTICSEARCH_INDEX, whose
name must begin with sensors_, old readings are deleted one by one; a daily index
(sensors_data-2026.11.25) or a monthly one (sensors_data-2026.11) is deleted as a whole, once all of
its day or month (UTC) and all of its readings are old enough. Nothing else is touched.

AGE is a number of hours or days, such as 12h or 30d. m is refused, as it could mean minutes or
months. An age below a day is asked for again: by --yes, or by a question on a terminal.

lifecycle puts the policy of mappings/lifecycle.json under the name of the index, for the daily
indices that are there and, by an index template, those to come. It needs Elasticsearch's index
lifecycle (ILM); where that is absent, delete does the same.

Environment (or .env): ELASTICSEARCH_URL and ELASTICSEARCH_INDEX, as the consumer; in the secure
variant, the user ADMIN_ELASTICSEARCH_USER.

Exit codes: 0 done, 1 Elasticsearch unreachable, or it refused; 2 wrong usage or configuration,
130 Ctrl-C (what is printed is done; run it again for the rest).
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from elasticsearch import BadRequestError, Elasticsearch
from elasticsearch.helpers import scan, streaming_bulk

from kafka_to_elasticsearch import MAPPING_FILE
from kibana.command_line import PROJECT, command, load_env
from stack.console import CommandError, command_parser, say
from tools.connection import asking_servers, dated_period, elasticsearch_client, elasticsearch_index

ROLE = "ADMIN"
LIFECYCLE_FILE = PROJECT / "mappings/lifecycle.json"
SAFE_AGE = timedelta(days=1)  # a shorter one is confirmed, for it deletes nearly everything


# The command delete


def delete(client: Elasticsearch, index: str, before: datetime, dry_run: bool) -> None:
    """Delete the readings from before a time, and print what is deleted of each index.

    A dated index with a reading that is not of its day or month stays until that is old enough too.

    Raises:
        ApiError, TransportError, ScanError, BulkIndexError: Elasticsearch does not answer, or
            refuses; what is printed is done.
        CommandError: there is no such index.
    """
    done = "to be deleted" if dry_run else "deleted"
    old = {"range": {"timestamp": {"lt": before.isoformat()}}}
    found = client.indices.get(index=f"{index}*", filter_path="*.aliases")
    # Behind an alias, an index has another name.
    names = sorted({index if index in state["aliases"] else n for n, state in found.items()})
    if not names:
        raise CommandError(f"there is no index {index}*: is ELASTICSEARCH_INDEX right?")
    total = gone = 0
    for name in names:
        dates = dated_period(name, index)
        if name != index and not dates:
            say(f"{name:<31} left alone: neither {index} nor a dated index of it")
            continue
        client.indices.refresh(index=name)
        readings = client.count(index=name)["count"]
        deleted = client.count(index=name, query=old)["count"]
        is_whole = bool(dates and dates[1] <= before and deleted == readings)
        if dates and not is_whole:
            deleted = 0
        elif is_whole and not dry_run:
            client.indices.delete(index=name)
        elif not dry_run:
            deleted = delete_readings(client, name, old)
        with_index = ", with the index" if is_whole else ""
        say(f"{name:<31} {deleted:>5} of {readings} readings {done}{with_index}")
        total, gone = total + readings, gone + deleted
    say(f"{done} {gone} of {total} readings, from before {before:%FT%TZ}")


def delete_readings(client: Elasticsearch, index: str, old: dict[str, Any]) -> int:
    """Delete the readings of one index that a query finds, one by one; return how many.

    _delete_by_query would do it in one request, but the native stack's distribution lacks it.

    Raises:
        ApiError, TransportError, ScanError: Elasticsearch does not answer, or not wholly.
        BulkIndexError: Elasticsearch refuses to delete some.
    """
    hits = scan(client, index=index, query={"query": old}, _source=False, size=5000)
    actions = ({"_op_type": "delete", "_index": h["_index"], "_id": h["_id"]} for h in hits)
    results = streaming_bulk(client, actions, chunk_size=5000, ignore_status=404)
    return sum(answer["delete"]["result"] == "deleted" for _, answer in results)


# The command lifecycle


def install_lifecycle(client: Elasticsearch, index: str) -> None:
    """Have Elasticsearch delete the daily indices of index by itself, and print which.

    The age counts from the day in an index's name, so that a late reading or a sensor whose clock
    is ahead does not change it.

    Raises:
        ApiError, TransportError: Elasticsearch does not answer, or refuses.
        CommandError: this Elasticsearch has no lifecycles.
    """
    policy = json.loads(LIFECYCLE_FILE.read_text(encoding="utf-8"))["policy"]
    try:
        client.ilm.put_lifecycle(name=index, policy=policy)
    except BadRequestError as exc:
        if "no handler found" not in str(exc):
            raise
        raise CommandError(
            "this Elasticsearch has no index lifecycle: run `python -m tools.retention delete` "
            "once a day instead"
        ) from exc
    client.indices.put_index_template(name=f"{index}-daily", **daily_template(index))
    age = policy["phases"]["delete"]["min_age"]
    say(
        f"policy {index}: an index is deleted {age} after its day began; "
        f"so are the {index}-YYYY.MM.DD to come"
    )
    for name in client.indices.get(index=f"{index}*", filter_path="*.aliases"):
        dates = dated_period(name, index)
        if dates and dates[1] - dates[0] == timedelta(days=1):
            began_ms = round(dates[0].timestamp() * 1000)
            settings = {"lifecycle.name": index, "lifecycle.origination_date": began_ms}
            client.indices.put_settings(index=name, settings={"index": settings})
            say(f"{name:<31} follows it")


def daily_template(index: str) -> dict[str, Any]:
    """Return the index template of daily indices: that of the readings, with the lifecycle.

    The pattern has two dots, so that it does not match a monthly index, from whose name
    Elasticsearch cannot read a day. Among the templates that match an index, Elasticsearch takes
    the one of the highest priority.
    """
    template = json.loads(MAPPING_FILE.read_text(encoding="utf-8"))
    lifecycle = {"name": index, "parse_origination_date": True}
    template["settings"] = {**template["settings"], "index.lifecycle": lifecycle}
    return {
        "index_patterns": [f"{index}-*.*.*"],
        "priority": 1_000_000,
        "allow_auto_create": True,  # extensions/spark writes into an index that is not there yet
        "template": template,
    }


# The command line


def sensors_index(text: str) -> str:
    """Return the name of an index that readings may be deleted from."""
    if not re.fullmatch(r"sensors_[a-z0-9_.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one name that begins with sensors_")
    return text


def age_of(text: str) -> timedelta:
    """Return an age that is written in hours or days."""
    if re.fullmatch(r"\d+ ?m\w*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: m could be minutes or months; give hours or days, such as 12h or 30d"
        )
    if not (match := re.fullmatch(r"([1-9]\d*)([hd])", text, re.ASCII)):
        raise argparse.ArgumentTypeError(f"{text!r} is not hours or days, such as 12h or 30d")
    try:
        age = timedelta(hours=int(match[1]) * (24 if match[2] == "d" else 1))
        datetime.now(UTC) - age
    except (OverflowError, ValueError):
        too_long = f"{text[:20]} ago is before the calendar begins"
        raise argparse.ArgumentTypeError(too_long) from None
    return age


def is_confirmed(age: timedelta, index: str) -> bool:
    """Return whether the user says yes to a question, which only a terminal can be asked."""
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    hours = age // timedelta(hours=1)
    sys.stderr.write(f"Delete every reading of {index} but those of the last {hours} h? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for; a wrong value ends with code 2.

    Raises:
        SetupError: the environment's index is not the name of one.
    """
    parser = command_parser("tools.retention", __doc__)
    default = elasticsearch_index()
    parser.add_argument("--index", type=sensors_index, default=default, help="another index")
    commands = parser.add_subparsers(dest="command", required=True)
    deleting = commands.add_parser("delete", help="delete old readings now")
    text = "in hours or days, such as 12h or 90d; not in m (default: 30d)"
    deleting.add_argument("--older-than", type=age_of, default="30d", metavar="AGE", help=text)
    text = "delete nothing, say what would be deleted"
    deleting.add_argument("--dry-run", action="store_true", help=text)
    text = "do not ask, although AGE is below a day"
    deleting.add_argument("--yes", action="store_true", help=text)
    commands.add_parser("lifecycle", help="have Elasticsearch delete daily indices by itself")
    given = parser.parse_args(argv)
    if given.command == "delete" and given.older_than < SAFE_AGE:
        is_wanted = given.dry_run or given.yes or is_confirmed(given.older_than, given.index)
        if not is_wanted:
            parser.error("--older-than: below a day, nearly all is deleted: confirm it by --yes")
    return given


@command("retention")
def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return the exit code (see the module docstring)."""
    load_env()
    given = parse_arguments(argv)
    with asking_servers(ROLE), elasticsearch_client(ROLE) as client:
        if given.command == "delete":
            before = datetime.now(UTC) - given.older_than
            delete(client, given.index, before, given.dry_run)
        else:
            install_lifecycle(client, given.index)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
