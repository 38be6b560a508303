"""What every native server needs: its process, its ports, its folders, its distribution.

`stack/native/` has one file per family of images, which makes a native server of a service. An
image reads its settings from the container's environment; that file reads the environment in the
same way, so that a setting changed in the compose file changes the native server too.

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
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path

from stack.compose import Service, StackError
from stack.console import say

NATIVE_FOLDER = Path(__file__).parent / "native"  # the poms, the settings of Java's loggers
LOOPBACK_TIMEOUT_S = 5.0
# Java finds a folder with an accent in its name only where the locale is in UTF-8.
LOCALE = {"LC_ALL": "C.UTF-8"}


@dataclass
class Server:
    """A native process that stands for one service.

    Attributes:
        service: the service of the compose file.
        address: where clients reach it, "127.0.0.1:9092".
        marker: a string in the process's command line that no other process has.
        command: the program and its arguments.
        is_ready: asks the server, in its own protocol, whether it serves.
        environment: variables added to those of the stack's own process.
        prepare: called before each start.
        user: the user who runs the process, None for the user of the stack.
    """

    service: Service
    address: str
    marker: str
    command: list[str]
    is_ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    user: str | None = None

    @property
    def name(self) -> str:
        """The name of its service."""
        return self.service.name


class Site:
    """Where the native servers of some services run: ports, folders, cache, Java."""

    def __init__(
        self, services: Mapping[str, Service], state: Path, cache: Path, environ: Mapping[str, str]
    ) -> None:
        self.services = services
        self.state = state
        self.cache = cache
        self.environ = environ

    def on_host(self, text: str) -> str:
        """Return text with the addresses SERVICE:PORT moved to loopback."""
        names = "|".join(map(re.escape, self.services))
        return re.sub(
            rf"(?<![\w.-])({names}):(\d+)",
            lambda match: f"127.0.0.1:{self.host_port(match[1], int(match[2]))}",
            text,
        )

    def listeners_on_host(self, service: Service, text: str) -> str:
        """Return text with a service's own addresses 0.0.0.0:PORT moved to loopback as well."""
        return self.on_host(re.sub(r"(?<![\d.])0\.0\.0\.0:", f"{service.name}:", text))

    def host_port(self, service: str, port: int) -> int:
        """Return the host's port for a container's: the published one, else a free one.

        A free one is chosen once and kept in the state folder, so that the next start has it too.
        """
        if port in self.services[service].ports:
            return self.services[service].ports[port]
        file = self.state / "ports.json"
        chosen: dict[str, int] = {}
        with suppress(FileNotFoundError, ValueError):  # not there yet, or cut by a full disk
            chosen = json.loads(file.read_text())
        key = f"{service}:{port}"
        if key not in chosen:
            chosen[key] = free_port()
            write(file, json.dumps(chosen))
        return chosen[key]

    def java(self, jars: Path, options: list[str]) -> list[str]:
        """Return the start of a command line: Java, its options, the jars of a folder.

        Raises:
            StackError: there is no Java.
        """
        log4j = f"-Dlog4j.configuration=file:{NATIVE_FOLDER / 'log4j.properties'}"
        return [str(java_home(self.environ) / "bin/java"), *options, log4j, "-cp", f"{jars}/*"]

    def mounts_on_host(self, service: Service, text: str) -> str:
        """Return text with the paths of a service's mounts replaced by those on this machine."""
        inside = "|".join(map(re.escape, service.binds)) or "$^"
        return re.sub(
            rf"(?<![\w/.-])({inside})(?![\w.-])", lambda match: str(service.binds[match[1]]), text
        )

    def volume(self, service: Service, inside: str) -> Path:
        """Return the native folder of a named volume."""
        return self.state / "volumes" / service.volumes[inside]

    def config_file(self, service: Service, suffix: str) -> Path:
        """Return the path of a server's settings, a file or a folder."""
        return self.state / "config" / f"{service.name}.{suffix}"

    def cached(self, what: str, version: str) -> Path:
        """Return the cache folder of one distribution."""
        return self.cache / f"{what}-{version}"

    def from_maven(
        self, what: str, version: str, *options: str, goal: str = "copy-dependencies"
    ) -> Path:
        """Return the cache folder of one distribution, filled by Maven the first time.

        Args:
            what: its pom is native/WHAT.pom.xml.
            version: names the folder, and is the property WHAT.version of the pom.
            options: for Maven, such as other properties of the pom.
            goal: of Maven's dependency plugin: copy-dependencies or unpack-dependencies.

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
                with all_or_nothing(folder) as partial:
                    run_maven(what, version, partial, goal, *options)
        return folder


def run_maven(what: str, version: str, folder: Path, goal: str, *options: str) -> None:
    """Fill a folder with one distribution: see Site.from_maven.

    Raises:
        StackError: Maven is not installed, or failed.
    """
    if not shutil.which("mvn"):
        raise StackError(
            "Maven (mvn) is not installed: it fetches the servers "
            "(Debian or Ubuntu: sudo apt-get install maven)"
        )
    say(f"{what} {version}: fetching it once into {folder.parent} ...")
    plugin = f"org.apache.maven.plugins:maven-dependency-plugin:3.8.1:{goal}"
    command = ["mvn", "-B", "-q", "-f", str(NATIVE_FOLDER / f"{what}.pom.xml"), plugin]
    # The plugin's record of what it has unpacked belongs to the result, not into the project.
    folders = [f"-DoutputDirectory={folder}", f"-DmarkersDirectory={folder}/.markers"]
    properties = [f"-D{what}.version={version}", *folders]
    run([*command, *options, *properties], f"fetching {what} with Maven")
    if os.geteuid() == 0:  # the distribution's configuration is not readable by others
        for path in folder.rglob("*"):
            path.chmod(path.stat().st_mode | 0o444)


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `folder` if the block ends without an error."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


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

    It is below the range that the system gives to outgoing connections (32768 and up on Linux),
    because one of those could take the port before the server does.
    """
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def unprivileged_user() -> str | None:
    """Return the user who runs the servers that refuse root; None when we are not root."""
    return "nobody" if os.geteuid() == 0 else None


def unprivileged_folder(state: Path) -> Path:
    """Return a folder that the unprivileged user can reach: the state folder, unless we are root.

    Root's own folders are closed to others, and a clone often lies in one of them.
    """
    if not unprivileged_user():
        return state
    return Path("/var/tmp") / f"smart-city-stack{str(state).replace('/', '-')}"  # noqa: S108


def give_away(folder: Path) -> None:
    """Make the unprivileged user the owner of a folder and of all in it."""
    if user := unprivileged_user():
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, user)


def refuse_unknown(service: Service, unknown: set[str]) -> None:
    """Refuse variables that the image reads and the native server does not.

    Raises:
        StackError: there are such variables.
    """
    if unknown:
        raise StackError(f"{service.name}: not understood natively: {', '.join(sorted(unknown))}")


def open_on_loopback(url: str, authority: Path | None = None) -> HTTPResponse:
    """Open a page of a server on loopback: never through the proxy that http_proxy names.

    Args:
        url: http or https, of loopback.
        authority: file with the certificate (PEM) of the authority to trust, for https.

    Raises:
        OSError: the server does not answer; or it answers with a status of 400 or more, and this is
            an urllib.error.HTTPError.
    """
    context = ssl.create_default_context(cafile=authority) if authority else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    response: HTTPResponse = opener.open(url, timeout=LOOPBACK_TIMEOUT_S)
    return response


def answers(url: str, refusal: int | None = None, authority: Path | None = None) -> bool:
    """Return whether a server on loopback serves a page, or refuses it as it should.

    Args:
        url: see open_on_loopback.
        refusal: the HTTP status of a server that works and wants us to log in.
        authority: see open_on_loopback.
    """
    try:
        with open_on_loopback(url, authority) as response:
            return response.status == 200
    except urllib.error.HTTPError as exc:
        return exc.code == refusal
    except OSError:
        return False


def run(command: list[str], what: str) -> None:
    """Run a command to its end, silently.

    Raises:
        StackError: it failed; the message ends with its first error, else with its last line.
    """
    result = subprocess.run(
        command, env={**os.environ, **LOCALE}, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["it printed nothing"]
        telling = next((line for line in lines if "ERROR" in line), lines[-1])
        raise StackError(f"{what} failed (exit code {result.returncode}): {telling[:500]}")


def write_properties(file: Path, settings: Mapping[str, str]) -> None:
    """Write settings as a Java properties file.

    Java reads it as Latin-1: another character, as in a folder's name, is written as its code.
    """
    text = "".join(f"{name}={value}\n" for name, value in sorted(settings.items()))
    write(file, re.sub(r"[^\x00-\x7f]+", lambda match: json.dumps(match[0])[1:-1], text))


def write(file: Path, text: str) -> None:
    """Write a text file, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
