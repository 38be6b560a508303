"""The settings of this pipeline: an option wins over the environment, which wins over .env."""

import re
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pipelines.common import number, server_list, text, topic_name

HERE = Path(__file__).resolve().parent
SAMPLE = HERE / "sample"


def postgresql_url(url: str) -> str:
    """Return a URL if PostgreSQL's client can read it; what cannot be read is not shown.

    Raises:
        ArgumentTypeError: a password in it is not percent-encoded, or it is none.
    """
    with suppress(psycopg.ProgrammingError):  # its text may show the password
        found = conninfo_to_dict(url)
        place = f"{found.get('host', '')}:{found.get('port', '')}"
        if found and re.fullmatch(r"[^@]*:[\d,]*", place):  # else a part of the password is there
            return url
    raise ArgumentTypeError(
        "POSTGRESQL_URL is not postgresql://USER:PASSWORD@HOST:PORT/DATABASE: percent-encode what "
        "is special in the password (%25 for %, %40 for @, %2F for /)"
    )


# Option -> its variable, its default, how it is read, what --help calls its value.
SETTINGS: dict[str, tuple[str, str, Any, str]] = {
    "--data": ("LTM_DATA", str(SAMPLE), Path, "FOLDER"),
    "--bootstrap-servers": (
        "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", server_list, "HOST:PORT[,...]",
    ),
    "--topic": ("WATER_TOPIC", "water-quality", topic_name, "TOPIC"),
    "--hdfs-url": (
        "HDFS_URL", "hdfs://localhost:8020/acid-waters",
        # In the others Spark would see a pattern, when it reads.
        text(r"hdfs://[^/\s]+(/[^\s*?#\[\]{}\\]*)?", "hdfs://HOST:PORT/FOLDER"), "URL",
    ),
    "--hdfs-web-url": ("HDFS_WEB_URL", "http://localhost:9870",
                       text(r"https?://[^/\s]+/?", "http://HOST:PORT"), "URL"),
    "--postgresql-url": (
        "POSTGRESQL_URL", "postgresql://water@localhost:5433/water", postgresql_url, "URL",
    ),
}  # fmt: skip
WAIT_S = 60.0


def command_line(doc: str | None, environ: Mapping[str, str], *settings: str) -> ArgumentParser:
    """Return a script's parser with some settings as options.

    Args:
        doc: the script's docstring; --help shows it.
        environ: of the process; an empty variable counts as none.
        settings: keys of SETTINGS.
    """
    description, _, epilog = (doc or "").partition("\n\n")
    parser = ArgumentParser(
        description=description, epilog=epilog, formatter_class=RawDescriptionHelpFormatter
    )
    for flag in settings:
        variable, default, kind, value = SETTINGS[flag]
        shown = "the sample" if flag == "--data" else default
        parser.add_argument(
            flag, type=kind, default=environ.get(variable) or default, metavar=value,
            help=f"environment: {variable} (default: {shown})",
        )  # fmt: skip
    return parser


def add_wait(parser: ArgumentParser) -> None:
    """Add --wait, how long a script waits at its start for servers that do not answer."""
    parser.add_argument(
        "--wait", type=number(0, 1e9), default=WAIT_S, metavar="SECONDS",
        help=f"for the servers at the start (default: {WAIT_S:.0f})",
    )  # fmt: skip
