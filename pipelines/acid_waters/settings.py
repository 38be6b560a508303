"""The settings of this pipeline: an option wins over the environment, which wins over .env."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.common import number, server_list, text, topic_name

HERE = Path(__file__).resolve().parent
SAMPLE = HERE / "sample"

# Option -> its variable, its default, how it is read, what --help calls its value.
SETTINGS: dict[str, tuple[str, str, Any, str]] = {
    "--data": ("LTM_DATA", str(SAMPLE), Path, "FOLDER"),
    "--bootstrap-servers": (
        "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", server_list, "HOST:PORT[,...]",
    ),
    "--topic": ("WATER_TOPIC", "water-quality", topic_name, "TOPIC"),
    "--hdfs-url": (
        "HDFS_URL", "hdfs://localhost:8020/acid-waters",
        text(r"hdfs://[^/\s]+(/\S*)?", "hdfs://HOST:PORT/FOLDER"), "URL",
    ),
    "--hdfs-web-url": ("HDFS_WEB_URL", "http://localhost:9870",
                       text(r"https?://[^/\s]+/?", "http://HOST:PORT"), "URL"),
    "--postgresql-url": (
        "POSTGRESQL_URL", "postgresql://water@localhost:5433/water", str, "URL",
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
