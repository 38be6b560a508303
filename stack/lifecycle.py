"""Start and stop the native servers of some compose files, and find those that run."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from stack.compose import PROJECT, StackError, load_services
from stack.console import say
from stack.native import BUILDERS, TOOLS
from stack.servers import LOCALE, Server, Site, unprivileged_folder

START_TIMEOUT_S = 300.0  # on a busy machine, Elasticsearch was seen to need 178 s
STOP_TIMEOUT_S = 30.0
RESTART_FOR_S = 40.0  # for 18 s after a broker's death, ZooKeeper refuses the new one


class Stack:
    """The native servers of some compose files, with their state in one folder."""

    def __init__(
        self, files: Sequence[Path], environ: dict[str, str], profiles: Collection[str] = ()
    ) -> None:
        is_root = os.geteuid() == 0
        default_cache = "/var/cache/smart-city" if is_root else "~/.cache/smart-city"
        self.state = Path(environ.get("STACK_STATE") or PROJECT / ".stack").absolute()
        self.cache = Path(environ.get("STACK_CACHE") or default_cache).expanduser().absolute()
        self._is_new = not (self.state / "logs").exists()  # no server was started yet
        self.services = load_services(files, environ)
        self.site = Site(self.services, self.state, self.cache, environ)
        self.servers = {
            name: BUILDERS[service.image](service, self.site)
            for name, service in self.services.items()
            if service.image in BUILDERS
        }
        self.width = max(14, *map(len, self.services))  # of the column of names, characters
        self._children: list[subprocess.Popen[bytes]] = []
        # The services that `up` starts when none is named: it leaves out the other profiles'.
        self.default = [
            name
            for name, service in self.services.items()
            if not service.profiles or set(service.profiles) & set(profiles)
        ]

    def up(self, names: Sequence[str] = ()) -> None:
        """Start the servers that do not run, with those that they need; wait until all answer.

        Args:
            names: the servers to start; none for all of the default ones.

        Raises:
            StackError: a port is taken, a server ended early or did not answer in time.
        """
        elsewhere = unprivileged_folder(self.state)
        if self._is_new and elsewhere != self.state:  # left by a clone that was here before
            shutil.rmtree(elsewhere, ignore_errors=True)
        self._is_new = False
        here = [name for name in self.default if name in self.servers]
        waiting = {name: self.servers[name] for name in self.with_needs(names or here)}
        started_at: dict[str, float] = {}
        while waiting:
            for server in list(waiting.values()):
                if server.name not in started_at:
                    if not waiting.keys() & set(server.service.depends_on):
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
        is_soon = time.monotonic() < started_at[server.name] + RESTART_FOR_S
        return server.service.restart and is_soon

    def with_needs(self, names: Iterable[str]) -> list[str]:
        """Return the names and, before each, those of the servers that it depends on."""
        found: list[str] = []
        for name in names:
            found += [
                n
                for n in [*self.with_needs(self.services[name].depends_on), name]
                if n not in found
            ]
        return found

    def _start(self, server: Server) -> None:
        for source in server.service.binds.values():
            if not source.exists():
                raise StackError(
                    f"{server.name} needs {source}, which does not exist "
                    "(`python -m extensions.secure files` makes the files of .secure)"
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
        if self.log(server).exists():  # it may say why the server ended the last time
            self.log(server).replace(self.log(server).with_suffix(".log.before"))
        with self.log(server).open("wb") as log:
            process = subprocess.Popen(
                server.command,
                cwd="/",
                env={**os.environ, **LOCALE, **server.environment},
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
        except BaseException:  # without that file, `down` could not stop it
            os.killpg(process.pid, signal.SIGKILL)
            raise

    def down(self, names: Sequence[str] = (), wipe: bool = False) -> None:
        """Stop the servers, the last started first, and leave no process.

        Args:
            names: the servers to stop; none for all.
            wipe: also delete the data of all of them.

        Raises:
            StackError: a process survives, or the data cannot be deleted.
        """
        if wipe and names:
            raise StackError("down -v deletes the data of all services: name none")
        if wipe and self.state in (Path.home(), PROJECT, *PROJECT.parents):
            raise StackError(f"{self.state} holds more than the servers' data: delete it by hand")
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
        """Stop one server's process group; return False when it did not run.

        Raises:
            StackError: a process survives SIGKILL.
        """
        pid = self.pid(name)
        if not pid:
            return False
        with suppress(ProcessLookupError):  # it may just have ended by itself
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
            StackError: the service is not known, or does not have the tool.
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
        # Another program may have been given the number of a server that has ended.
        return pid if marker in command_line(pid) else None

    def log(self, server: Server) -> Path:
        """Return the file that takes a server's output."""
        return self.state / "logs" / f"{server.name}.log"

    def _group_exists(self, pid: int) -> bool:
        for child in self._children:
            child.poll()  # until an ended child is reaped, its group exists
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
    if not Path("/proc/self").exists():  # not Linux
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
