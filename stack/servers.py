"""What every native server needs: its process, its ports, its folders, its distribution.

How one image becomes a process is written in `stack/images/`, one file per family of images. A
container's configuration is its image's reading of the environment; the same reading is done there,
so that a setting changed in the compose file changes the native server too.

Addresses move from the containers' network to loopback: 0.0.0.0:PORT and SERVICE:PORT become
127.0.0.1 with the port that the compose file publishes on the host, or a free one if it does not.
"""

import fcntl
import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stack.compose import Service, StackError

IMAGES = Path(__file__).parent / "images"


@dataclass
class Server:
    """A native process that stands for one service.

    Attributes:
        address: where clients reach it, "127.0.0.1:9092".
        marker: a string in the process's command line by which it is known again.
        command: the program and its arguments.
        environment: variables added to those of the stack's own process.
        is_ready: asks the server, in its own protocol, whether it serves.
        prepare: run once before the start.
        user: whose process it is, None for the user of the stack.
        restart: whether it is started again when it ends by itself while starting.
    """

    name: str
    depends_on: list[str]
    address: str
    marker: str
    command: list[str]
    is_ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    user: str | None = None
    restart: bool = False


class Site:
    """Where the native servers of some services live: ports, folders, cache, Java."""

    def __init__(
        self, services: Mapping[str, Service], state: Path, cache: Path, environ: Mapping[str, str]
    ) -> None:
        self.services = services
        self.state = state
        self.cache = cache
        self.environ = environ

    def on_host(self, text: str) -> str:
        """Return text with the addresses of the containers' network moved to loopback."""
        names = "|".join(map(re.escape, self.services))
        return re.sub(
            rf"(?<![\w.-])({names}):(\d+)",
            lambda match: f"127.0.0.1:{self.host_port(match[1], int(match[2]))}",
            text,
        )

    def host_port(self, service: str, port: int) -> int:
        """Return the host's port for a container's: the published one, else one chosen once."""
        if port in self.services[service].ports:
            return self.services[service].ports[port]
        file = self.state / "ports.json"
        chosen: dict[str, int] = {}
        with suppress(FileNotFoundError, ValueError):  # the first time; cut by a full disk
            chosen = json.loads(file.read_text())
        key = f"{service}:{port}"
        if key not in chosen:
            chosen[key] = free_port()
            write(file, json.dumps(chosen))
        return chosen[key]

    def java(self, jars: Path, options: list[str]) -> list[str]:
        """Return the start of a command line: Java, its options, the jars of a folder."""
        log4j = f"-Dlog4j.configuration=file:{IMAGES / 'log4j.properties'}"
        return [str(java_home(self.environ) / "bin/java"), *options, log4j, "-cp", f"{jars}/*"]

    def bound(self, service: Service, text: str) -> str:
        """Return text with the paths that a service sees through its mounts as they are here."""
        inside = "|".join(map(re.escape, service.binds)) or "$^"
        return re.sub(
            rf"(?<![\w/.-])({inside})(?![\w.-])", lambda match: str(service.binds[match[1]]), text
        )

    def volume(self, service: Service, inside: str) -> Path:
        """Return the native folder of a named volume."""
        return self.state / "volumes" / service.volumes[inside]

    def config_file(self, service: Service, suffix: str) -> Path:
        """Return the file for a server's settings."""
        return self.state / "config" / f"{service.name}.{suffix}"

    def cached(self, what: str, version: str) -> Path:
        """Return the cache folder of one distribution."""
        return self.cache / f"{what}-{version}"

    def from_maven(self, what: str, version: str, goal: str, *options: str) -> Path:
        """Return the cache folder of one distribution, filled by Maven the first time.

        Args:
            what: its pom is images/WHAT.pom.xml.
            version: only names the folder; the options tell it to Maven.
            goal: of Maven's dependency plugin: copy-dependencies or unpack-dependencies.
            options: for Maven, such as the versions that the pom leaves open.

        Raises:
            StackError: Maven is not installed, or failed, or the cache cannot be written.
        """
        folder = self.cached(what, version)
        if folder.exists():
            return folder
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            lock = (self.cache / ".lock").open("w")
        except OSError as exc:
            why = f"cannot write into {self.cache} ({exc.strerror})"
            raise StackError(f"{why}: choose another folder by STACK_CACHE") from exc
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another stack may be fetching it just now
            if not folder.exists():
                self.fetch(what, version, folder, goal, *options)
        return folder

    def fetch(self, what: str, version: str, folder: Path, goal: str, *options: str) -> None:
        """Fill a cache folder by Maven: see from_maven."""
        if not shutil.which("mvn"):
            raise StackError(
                "Maven (mvn) is not installed: it fetches the servers "
                "(Debian or Ubuntu: sudo apt-get install maven)"
            )
        say(f"{what} {version}: fetching it once into {self.cache} ...")
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        plugin = f"org.apache.maven.plugins:maven-dependency-plugin:3.8.1:{goal}"
        command = ["mvn", "-B", "-q", "-f", str(IMAGES / f"{what}.pom.xml"), plugin]
        # Its notes of what it has unpacked go with the result, not into the project's folder.
        folders = [f"-DoutputDirectory={partial}", f"-DmarkersDirectory={partial}/.markers"]
        run([*command, *options, *folders], f"fetching {what} with Maven")
        if os.geteuid() == 0:  # the distribution's configuration is not readable by others
            for path in partial.rglob("*"):
                path.chmod(path.stat().st_mode | 0o444)
        partial.rename(folder)  # all or nothing


def java_home(environ: Mapping[str, str]) -> Path:
    """Return the home of the Java to use: JAVA_HOME, else that of `java` on the PATH.

    Raises:
        StackError: there is none.
    """
    if home := environ.get("JAVA_HOME"):
        if not (Path(home) / "bin/java").exists():
            raise StackError(f"JAVA_HOME={home} has no bin/java: correct it or unset it")
        return Path(home)
    if java := shutil.which("java"):
        return Path(java).resolve().parent.parent
    raise StackError(
        "Java is not installed: version 17 or newer is needed "
        "(Debian or Ubuntu: sudo apt-get install openjdk-17-jre-headless)"
    )


def free_port() -> int:
    """Return a port that nobody listens on.

    Below the range that the system gives to outgoing connections (32768 and up on Linux): one of
    those could take a port of that range before the server does.
    """
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def unprivileged_user() -> str | None:
    """Return the user for servers that refuse root; None when we are not root."""
    return "nobody" if os.geteuid() == 0 else None


def unprivileged_folder(state: Path) -> Path:
    """Return a folder that the unprivileged user can reach: the state folder, unless we are root.

    Root's own folders are closed to others, and a clone often lies in one of them.
    """
    if not unprivileged_user():
        return state
    return Path("/var/tmp") / f"smart-city-stack{str(state).replace('/', '-')}"  # noqa: S108


def give_away(folder: Path) -> None:
    """Give a folder and all in it to the unprivileged user."""
    if user := unprivileged_user():
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, user)


def refuse_unknown(service: Service, unknown: set[str]) -> None:
    """Refuse variables that have a meaning for the image and none here.

    Raises:
        StackError: there are some.
    """
    if unknown:
        raise StackError(f"{service.name}: not understood natively: {', '.join(sorted(unknown))}")


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def answers(url: str, refusal: int | None = None, authority: Path | None = None) -> bool:
    """Return whether a page is there, or a server refuses it with this status: it works too.

    Args:
        url: of loopback.
        refusal: the HTTP status by which it asks back who we are.
        authority: file of certificates (PEM) of who vouches for it, with https.
    """
    try:
        context = ssl.create_default_context(cafile=authority) if authority else None
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as exc:
        return exc.code == refusal
    except OSError:
        return False


def run(command: list[str], what: str) -> None:
    """Run a command to its end, silently.

    Raises:
        StackError: it failed; the message ends with its first error, else what it printed last.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["it printed nothing"]
        telling = next((line for line in lines if "ERROR" in line), lines[-1])
        raise StackError(f"{what} failed (exit code {result.returncode}): {telling[:500]}")


def write_properties(file: Path, settings: Mapping[str, str]) -> None:
    """Write settings as a Java properties file."""
    write(file, "".join(f"{name}={value}\n" for name, value in sorted(settings.items())))


def write(file: Path, text: str) -> None:
    """Write a text file, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
