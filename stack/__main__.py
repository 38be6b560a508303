"""Start the servers of docker-compose.yml for real, without Docker.

    python -m stack up                    start and wait until each answers in its own protocol
    python -m stack ps | check | logs     see them
    python -m stack exec kafka kafka-topics --bootstrap-server kafka:29092 --list
    python -m stack down                  stop;  down -v deletes the data too

The compose file (and the overlays, by -f or COMPOSE_FILE) says which services, versions, ports and
settings; what cannot be started natively (Kibana) is named; a service with a profile starts when
the profile is asked for, or the service itself. What the servers need comes through Maven, once,
into a cache folder. Everything else lies under one state folder, `.stack/`.

Environment: the variables of .env.example, and
    STACK_STATE   state folder: data, logs, process ids (default: .stack beside docker-compose.yml)
    STACK_CACHE   cache folder (default: ~/.cache/smart-city, for root /var/cache/smart-city)
    JAVA_HOME     Java 17 or newer (default: the one on the PATH)

Exit codes: 0 done, 1 a server does not run, does not answer or cannot be started, 2 wrong usage.
"""

import argparse
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dotenv import dotenv_values

from stack.compose import StackError, load_services
from stack.images import BUILDERS, TOOLS
from stack.servers import Server, Site, say, unprivileged_folder

PROJECT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 300.0  # with its cores shared by ten others, Elasticsearch was seen to need 178 s
STOP_TIMEOUT_S = 30.0
RESTART_FOR_S = 40.0  # ZooKeeper knows a dead broker for 18 s, and refuses the new one meanwhile


class Stack:
    """The native servers of some compose files, with their state in one folder."""

    def __init__(
        self, files: Sequence[Path], environ: dict[str, str], profiles: Collection[str] = ()
    ) -> None:
        root = os.geteuid() == 0
        default_cache = "/var/cache/smart-city" if root else "~/.cache/smart-city"
        self.state = Path(environ.get("STACK_STATE") or PROJECT / ".stack").absolute()
        self.cache = Path(environ.get("STACK_CACHE") or default_cache).expanduser().absolute()
        self._is_new = not (self.state / "logs").exists()  # nothing was ever started
        self.services = load_services(files, environ)
        self.site = Site(self.services, self.state, self.cache, environ)
        self.servers = {
            name: replace(BUILDERS[service.image](service, self.site), restart=service.restart)
            for name, service in self.services.items()
            if service.image in BUILDERS
        }
        self.width = max(14, *map(len, self.services))  # of the column of names
        self._children: list[subprocess.Popen[bytes]] = []
        # What `up` starts when no service is named: all but those of a profile not asked for.
        self.default = [
            name
            for name, service in self.services.items()
            if not service.profiles or set(service.profiles) & set(profiles)
        ]

    def up(self, names: Sequence[str] = ()) -> None:
        """Start the servers that do not run, all or some and their needs; wait until they answer.

        Raises:
            StackError: a port is taken, a server ended early or did not answer in time.
        """
        elsewhere = unprivileged_folder(self.state)
        if self._is_new and elsewhere != self.state:  # data of a clone that was here, now deleted
            shutil.rmtree(elsewhere, ignore_errors=True)
        self._is_new = False
        here = [name for name in self.default if name in self.servers]
        waiting = {name: self.servers[name] for name in self.with_needs(names or here)}
        started_at: dict[str, float] = {}
        while waiting:
            for server in list(waiting.values()):
                if server.name not in started_at:
                    if not waiting.keys() & set(server.depends_on):
                        if not self.pid(server.name):
                            self._start(server)  # fetches it, the first time
                        started_at[server.name] = time.monotonic()
                elif server.is_ready():
                    took = time.monotonic() - started_at[server.name]
                    say(f"{server.name:<{self.width}} ready   {server.address:<16} ({took:.1f} s)")
                    del waiting[server.name]
                elif not self.pid(server.name) and self._may_restart(server, started_at):
                    self._start(server)
                elif not self.pid(server.name):
                    raise StackError(
                        f"{server.name} ended while starting: {self._last_words(server)}"
                    )
                elif time.monotonic() > started_at[server.name] + START_TIMEOUT_S:
                    raise StackError(
                        f"{server.name} does not answer after {START_TIMEOUT_S:.0f} s: "
                        f"see {self.log(server)}"
                    )
            time.sleep(0.2)
        for name in [] if names else self.default:
            if name not in self.servers:
                say(f"{name:<{self.width}} not started: it exists only as a Docker image")

    def _may_restart(self, server: Server, started_at: dict[str, float]) -> bool:
        """Return whether a server that ended by itself is started again, as Compose would."""
        return server.restart and time.monotonic() < started_at[server.name] + RESTART_FOR_S

    def with_needs(self, names: Iterable[str]) -> list[str]:
        """Return the names and those of the servers that they depend on, these first."""
        found: list[str] = []
        for name in names:
            found += [
                n for n in [*self.with_needs(self.servers[name].depends_on), name] if n not in found
            ]
        return found

    def _start(self, server: Server) -> None:
        for source in self.services[server.name].binds.values():
            if not source.exists():
                raise StackError(
                    f"{server.name} needs {source}, which is not there "
                    "(what is in .secure, python tools/secure.py files makes)"
                )
        host, _, port = server.address.partition(":")
        try:
            socket.create_server((host, int(port))).close()
        except OSError as exc:
            raise StackError(
                f"port {port} ({server.name}) is already in use: stop the program that holds it, "
                f"or set {server.name.upper().replace('-', '_')}_HOST_PORT in .env"
            ) from exc
        server.prepare()
        self.log(server).parent.mkdir(parents=True, exist_ok=True)
        if self.log(server).exists():  # what it said before it ended, perhaps badly
            self.log(server).replace(self.log(server).with_suffix(".log.before"))
        with self.log(server).open("wb") as log:
            process = subprocess.Popen(
                server.command,
                cwd="/",
                env={**os.environ, **server.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its own process group: Ctrl-C here does not reach it
                user=server.user,
                group=pwd.getpwnam(server.user).pw_gid if server.user else None,
                extra_groups=[] if server.user else None,
            )
        self._children.append(process)
        try:
            self._pid_file(server.name).write_text(f"{process.pid}\n{server.marker}")
        except BaseException:  # then nobody could stop it
            os.killpg(process.pid, signal.SIGKILL)
            raise

    def down(self, names: Sequence[str] = (), wipe: bool = False) -> None:
        """Stop the servers, last started first, and leave no process; with wipe, delete the data.

        Raises:
            StackError: a process survives, or the data cannot be deleted.
        """
        if wipe and names:
            raise StackError("down -v deletes the data of all services: name none")
        if wipe and self.state in (Path.home(), PROJECT, *PROJECT.parents):
            raise StackError(f"{self.state} is not the servers' alone: delete their data by hand")
        files = sorted(self.state.glob("*.pid"), key=lambda file: file.stat().st_mtime)
        for name in reversed([file.stem for file in files if not names or file.stem in names]):
            if self.stop(name):
                say(f"{name:<{self.width}} stopped")
        if wipe:
            for folder in {self.state, unprivileged_folder(self.state)}:
                shutil.rmtree(folder, ignore_errors=True)
                if folder.exists():
                    raise StackError(f"{folder} cannot be deleted")
            say("data deleted")

    def stop(self, name: str, signum: signal.Signals = signal.SIGTERM) -> bool:
        """Stop one server's process group; return False when it did not run."""
        pid = self.pid(name)
        if not pid:
            return False
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(pid, signum)
        if not wait_until(lambda: not self._group_exists(pid), STOP_TIMEOUT_S):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            if not wait_until(lambda: not self._group_exists(pid), STOP_TIMEOUT_S):
                raise StackError(f"{name} (process {pid}) survives SIGKILL")
        self._pid_file(name).unlink(missing_ok=True)
        return True

    def tool(self, name: str, tool: str, arguments: list[str]) -> list[str]:
        """Return the command line of a console tool of a service.

        Raises:
            StackError: the service is not known or has none, or not this one.
        """
        service = self.services.get(name)
        if not service or service.image not in TOOLS:
            known = [n for n, service in self.services.items() if service.image in TOOLS]
            raise StackError(f"no tools of a service {name}: there is {', '.join(known)}")
        return TOOLS[service.image](self.site, service, tool, arguments)

    def check(self) -> bool:
        """Print each server's state; return whether all run and answer."""
        all_ready = True
        for server in self.servers.values():
            pid = self.pid(server.name)
            if not pid and server.name not in self.default:
                continue
            state = "not running" if not pid else "ready" if server.is_ready() else "not answering"
            all_ready &= state == "ready"
            say(f"{server.name:<{self.width}} {state:<14} {server.address:<16} pid {pid or '-'}")
        return all_ready

    def pid(self, name: str) -> int | None:
        """Return the process id of a server that runs, None otherwise."""
        try:
            number, marker = self._pid_file(name).read_text().splitlines()
            pid = int(number)
        except (OSError, ValueError):
            return None
        return pid if marker in command_line(pid) else None  # else a reused number

    def log(self, server: Server) -> Path:
        """Return the file with what a server printed."""
        return self.state / "logs" / f"{server.name}.log"

    def _group_exists(self, pid: int) -> bool:
        for child in self._children:
            child.poll()  # one that has ended must be reaped, or its group lives on
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _pid_file(self, name: str) -> Path:
        return self.state / f"{name}.pid"

    def _last_words(self, server: Server) -> str:
        lines = self.log(server).read_text(errors="replace").strip().splitlines()
        errors = (line for line in lines if "ERROR" in line or "FATAL" in line)
        telling = next(errors, lines[-1] if lines else "it printed nothing")
        return f"{telling.strip()[:300]} (see {self.log(server)})"


def command_line(pid: int) -> str:
    """Return a process's command line, "" when there is no such process or it has ended."""
    proc = Path(f"/proc/{pid}")
    if not proc.parent.joinpath("self").exists():  # not Linux
        ps = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
        return subprocess.run(ps, capture_output=True, text=True, check=False).stdout
    try:
        return (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Return True as soon as the condition holds, False after the time-out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(
        prog="python -m stack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        command = commands.add_parser(name, help=text, description=text)
        if name == "exec":
            command.add_argument("-T", action="store_true", help="as in Docker Compose; no effect")
            command.add_argument("service")
            command.add_argument("tool")
            command.add_argument("arguments", nargs=argparse.REMAINDER)
        elif name != "check":
            command.add_argument("services", nargs="*", help="only these services")
        if name == "down":
            command.add_argument("-v", "--volumes", action="store_true", help="delete the data too")
    return parser.parse_args(argv)


def compose_files(environ: Mapping[str, str]) -> list[Path]:
    """Return the files that COMPOSE_FILE names, as for Docker Compose, or the usual one."""
    named = environ.get("COMPOSE_FILE") or "docker-compose.yml"
    return [PROJECT / name for name in named.split(environ.get("COMPOSE_PATH_SEPARATOR") or ":")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code (see the module docstring)."""
    arguments = parse_arguments(argv)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # readiness is asked before it is there
    is_disabled = "PYTHON_DOTENV_DISABLED" in os.environ
    try:
        environ = {**({} if is_disabled else dotenv_values(PROJECT / ".env")), **os.environ}
        profiles = arguments.profiles or (environ.get("COMPOSE_PROFILES") or "").split(",")
        known = {name: value for name, value in environ.items() if value is not None}
        stack = Stack(arguments.files or compose_files(known), known, profiles)
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
                say(f"==> {log}")
                say(
                    "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                    if log.exists()
                    else ""
                )
        elif arguments.command == "exec":
            command = stack.tool(arguments.service, arguments.tool, arguments.arguments)
            os.execvp(command[0], command)
        else:
            return 0 if stack.check() or arguments.command == "ps" else 1
    except UnicodeDecodeError:
        sys.stderr.write("stack: .env is not in UTF-8: save it so\n")
        return 1
    except (StackError, OSError) as exc:
        sys.stderr.write(f"stack: {exc}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stack: interrupted; `python -m stack down` stops what has started\n")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
