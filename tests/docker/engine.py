"""A Docker engine of the tests' own, with a private socket and a network of its own.

The engine, its containers and the commands that the tests run share one network namespace. So
README's commands use the ports that README names, whatever else listens on this machine, and no
rule of the machine's firewall is changed. All data lies in one temporary folder.

It needs Linux and root, and Go (1.23 or newer) to build Docker Compose. Debian's packages are
installed where they are missing; Compose and the base of the images are kept in the stack's cache.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMPOSE_VERSION = "v2.39.4"
DEBIAN = "bookworm"
# Program -> the Debian package that brings it.
PACKAGES = {
    "debootstrap": "debootstrap",
    "dockerd": "docker.io",
    "ip": "iproute2",
    "iptables": "iptables",
}
# What the stand-in images share: Java for the servers, Python for their entry point, curl, wget and
# nc for health checks, procps to look around.
BASE_PACKAGES = (
    "openjdk-17-jre-headless", "python3-kafka", "python3-yaml", "python3-dotenv",
    "curl", "wget", "netcat-openbsd", "procps",
)  # fmt: skip
# In memory (0.6 GB), because dpkg waits for a disk after each file. Packages' documentation and
# lists, a third of all, are left out. What a package starts ends with the namespace of processes.
MAKE_BASE = f"""
mount -t tmpfs tmpfs "$ROOT"
debootstrap --variant=minbase --include="$PACKAGES" {DEBIAN} "$ROOT"
tar -C "$ROOT" --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \\
  --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' -cf "$PARTIAL" .
"""
# It says to Debian's packages that no service may be started, such as an engine of the system's.
POLICY = Path("/usr/sbin/policy-rc.d")
START_TIMEOUT_S = 60.0
LOCKED_FOR_S = 300.0


class EngineError(Exception):
    """Why there is no engine, in one line."""


@dataclass
class Engine:
    """A running engine.

    Attributes:
        process: holds the engine's namespaces.
        environ: of the commands that use the engine.
    """

    process: subprocess.Popen[bytes]
    environ: dict[str, str]

    def inside(self, *command: str) -> list[str]:
        """Return a command line that runs in the engine's network."""
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", *command]

    def docker(self, *arguments: str) -> str:
        """Run a Docker command; return what it printed.

        Raises:
            EngineError: it failed.
        """
        return run([*self.inside("docker"), *arguments], self.environ)

    def remove_all(self) -> None:
        """Remove all containers, the networks and the volumes."""
        if containers := self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", "--volumes", *containers)
        self.docker("network", "prune", "--force")
        if volumes := self.docker("volume", "ls", "--quiet").split():
            self.docker("volume", "rm", *volumes)

    def kill_process(self, container: str) -> None:
        """Kill the main process of a container, as the kernel does when memory is short."""
        pid = self.docker("inspect", "--format", "{{.State.Pid}}", container).strip()
        processes = f"--pid=/proc/{self.process.pid}/ns/pid_for_children"
        run(["nsenter", processes, "kill", "-KILL", pid])


def run(command: list[str], environ: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command to its end; return what it wrote to stdout.

    Raises:
        EngineError: it failed; the text ends with what it wrote to stderr.
    """
    ended = subprocess.run(
        command, env=environ, cwd=cwd, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        printed = (ended.stdout + ended.stderr).strip()[-2000:]
        raise EngineError(f"{' '.join(command)} failed (exit code {ended.returncode}): {printed}")
    return ended.stdout


def require_programs() -> None:
    """Install the programs that are missing.

    Raises:
        EngineError: this is not Linux, we are not root, or a program cannot be installed.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise EngineError("a Docker engine of the tests' own needs Linux and root")
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise EngineError(f"missing, to be installed by hand: {', '.join(missing)}")
    is_our_policy = not POLICY.exists()
    if is_our_policy:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        apt_get("update", "-qq")
        apt_get("install", "-y", "-qq", "--no-install-recommends", *missing)
    finally:
        if is_our_policy:
            POLICY.unlink()


def apt_get(*arguments: str) -> None:
    """Run apt-get, again and again while another test has its lock.

    Raises:
        EngineError: it failed.
    """
    deadline = time.monotonic() + LOCKED_FOR_S
    while True:
        try:
            run(["apt-get", *arguments], {**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        except EngineError as exc:
            if "Could not get lock" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


def compose_plugin(cache: Path) -> Path:
    """Return the program of Docker Compose, which is built the first time (2 minutes).

    Raises:
        EngineError: it cannot be built.
    """
    program = cache / f"docker-compose-{COMPOSE_VERSION}"
    if program.exists():
        return program
    if not shutil.which("go"):
        raise EngineError("Go is not installed: it builds Docker Compose")
    cache.mkdir(parents=True, exist_ok=True)
    module = "github.com/docker/compose/v2"
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        run(["go", "mod", "init", "plugin"], cwd=folder)
        run(["go", "get", f"{module}@{COMPOSE_VERSION}"], cwd=folder)
        # Without optimisation it takes a third less time to build.
        options = ["-gcflags=all=-N -l", "-ldflags"]
        options += [f"-s -w -X {module}/internal.Version={COMPOSE_VERSION}"]
        build = ["go", "build", *options, "-o", "docker-compose", f"{module}/cmd"]
        run(build, {**os.environ, "GOFLAGS": "-mod=mod"}, folder)
        (folder / "docker-compose").rename(program)
    return program


def base_archive(cache: Path, *more: str) -> Path:
    """Return an archive of the files of a small Debian, which is made the first time (1 minute).

    Args:
        cache: where it is kept.
        more: Debian packages besides BASE_PACKAGES.

    Raises:
        EngineError: it cannot be made.
    """
    packages = [*BASE_PACKAGES, *more]
    listing = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    archive = cache / f"docker-base-{DEBIAN}-{listing}.tar"
    if archive.exists():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        root, partial = Path(name) / "root", Path(name) / "base.tar"
        root.mkdir()
        environ = {**os.environ, "ROOT": str(root), "PARTIAL": str(partial)}
        environ["PACKAGES"] = ",".join(packages)
        namespaces = ["--mount", "--pid", "--fork", "--kill-child"]
        run(["unshare", *namespaces, "sh", "-ec", MAKE_BASE], environ)
        partial.rename(archive)
    return archive


@contextmanager
def running_engine(cache: Path) -> Iterator[Engine]:
    """Start an engine; at the end, stop it and delete all that it had.

    Args:
        cache: the stack's cache folder.

    Raises:
        EngineError: it cannot be started, because programs are missing or for another reason.
    """
    plugin = compose_plugin(cache)
    # A short name: the path of a Unix socket has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="docker-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        plugins = folder / "config/cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").symlink_to(plugin)
        socket = f"unix://{folder}/docker.sock"
        environ = {**os.environ, "DOCKER_HOST": socket, "DOCKER_CONFIG": str(folder / "config")}
        options = [f"--host={socket}", f"--pidfile={folder}/pid"]
        options += [f"--data-root={folder}/data", f"--exec-root={folder}/run"]
        # With the namespace of its processes ends every process that it has started.
        namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["unshare", *namespaces, "dockerd", *options], stdout=log, stderr=log
            )
        engine = Engine(process, environ)
        try:
            wait_until_it_answers(engine, folder / "log")
            run(engine.inside("ip", "link", "set", "lo", "up"))
            yield engine
            engine.remove_all()
        finally:
            process.kill()  # all in its namespace of processes end with it
            process.wait()


def wait_until_it_answers(engine: Engine, log: Path) -> None:
    """Wait until the engine answers.

    Raises:
        EngineError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            engine.docker("version")
        except EngineError as exc:
            if engine.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            lines = log.read_text(errors="replace").splitlines()[-5:]
            raise EngineError("\n".join(["the engine does not answer:", *lines])) from exc
        return
