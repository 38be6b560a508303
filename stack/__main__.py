"""Start the servers of docker-compose.yml for real, without Docker.

    python -m stack up                    start and wait until each answers in its own protocol
    python -m stack ps | check | logs     see them
    python -m stack exec kafka kafka-topics --bootstrap-server kafka:29092 --list
    python -m stack down                  stop;  down -v deletes the data too

The compose file, and the overlays given by -f or COMPOSE_FILE, set services, versions, ports and
settings. A service that cannot be started natively (Kibana) is named. A service with a profile
starts only when the profile or the service itself is asked for. Maven fetches the servers' programs
once, into a cache folder. Everything else lies under one state folder, `.stack/`.

Environment (or .env): the variables of .env.example, and
    STACK_STATE   state folder: data, logs, process ids (default: .stack beside docker-compose.yml)
    STACK_CACHE   cache folder (default: ~/.cache/smart-city, for root /var/cache/smart-city)
    JAVA_HOME     Java 17 or newer (default: the one on the PATH)

Exit codes: 0 done, 1 a server does not run, does not answer or cannot be started, 2 wrong usage,
130 interrupted.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stack.compose import StackError, compose_files
from stack.console import command, command_parser, say
from stack.env_file import ENV_FILE, read_environment
from stack.lifecycle import Stack
from stack.servers import LOCALE


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = command_parser("stack", __doc__)
    parser.add_argument(
        "-f",
        "--file",
        dest="files",
        action="append",
        type=Path,
        help="compose file; several are merged in order (environment: COMPOSE_FILE; default: "
        "docker-compose.yml)",
    )
    parser.add_argument(
        "--profile",
        dest="profiles",
        action="append",
        help="also the services of this profile (environment: COMPOSE_PROFILES)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {
        "up": "start the servers and wait until they answer",
        "down": "stop the servers",
        "ps": "show the servers",
        "check": "the same, and exit 1 unless all answer",
        "logs": "print the end of the logs",
        "exec": "run a console tool of a service, such as kafka-topics",
    }.items():
        subparser = commands.add_parser(name, help=text, description=text)
        if name == "exec":
            subparser.add_argument(
                "-T", action="store_true", help="as in Docker Compose; no effect"
            )
            subparser.add_argument("service")
            subparser.add_argument("tool")
            subparser.add_argument("arguments", nargs=argparse.REMAINDER)
        elif name != "check":
            subparser.add_argument("services", nargs="*", help="only these services")
        if name == "down":
            subparser.add_argument(
                "-v", "--volumes", action="store_true", help="delete the data too"
            )
    return parser.parse_args(argv)


@command("stack")
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code (see the module docstring)."""
    arguments = parse_arguments(argv)
    # While a broker starts, the client that asks whether it is ready would log its refusals.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        environ = read_environment(ENV_FILE)
        files = arguments.files or compose_files(environ)
        environ = read_environment(ENV_FILE, files[0].absolute().with_name(".env"))
        profiles = arguments.profiles or environ.get("COMPOSE_PROFILES", "").split(",")
        stack = Stack(files, environ, profiles)
        for name in getattr(arguments, "services", []):
            if name not in stack.servers:
                raise StackError(f"no service {name}: there is {', '.join(stack.servers)}")
        if arguments.command == "up":
            stack.up(arguments.services)
        elif arguments.command == "down":
            stack.down(arguments.services, arguments.volumes)
        elif arguments.command == "logs":
            for name in arguments.services or stack.servers:
                log = stack.log(stack.servers[name])
                lines = log.read_text(errors="replace").splitlines() if log.exists() else []
                say("\n".join([f"==> {log}", *lines[-20:]]))
        elif arguments.command == "exec":
            tool = stack.tool(arguments.service, arguments.tool, arguments.arguments)
            os.execvpe(tool[0], tool, {**os.environ, **LOCALE})
        else:
            return 0 if stack.check() or arguments.command == "ps" else 1
    except KeyboardInterrupt:
        sys.stderr.write("stack: interrupted; `python -m stack down` stops what has started\n")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
