"""Check the programs that the project needs on this machine, and install what is missing.

    python3 -m stack.prerequisites venv java maven curl compose postgresql

Installing is possible on Debian or Ubuntu, as root or with sudo; otherwise the command to type is
printed. This runs before anything else is installed, so it uses only the standard library.

Exit codes: 0 all programs are there, 1 one is missing, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations  # an older Python reads this too, and is told which it needs

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def has_java() -> bool:
    """Return whether Java 17 or newer can be started."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(f"{home}/bin/java" if home else "java")
    if not java:
        return False
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', shown)
    return version is not None and int(version[1]) >= 17


def has_compose() -> bool:
    """Return whether Docker Compose can be started; without an engine it checks compose files."""
    if shutil.which("docker-compose"):
        return True
    return bool(shutil.which("docker")) and succeeds(["docker", "compose", "version"])


def has_venv() -> bool:
    """Return whether this Python can make virtual environments."""
    return importlib.util.find_spec("ensurepip") is not None


def has_rsyslog(plugin: str) -> bool:
    """Return whether rsyslog is installed with a plug-in; each plug-in has its own package."""
    return any(Path("/usr/lib").glob(f"**/rsyslog/{plugin}.so"))


def has_postgresql() -> bool:
    """Return whether a PostgreSQL server is installed; on Debian it is not on the PATH."""
    return bool(
        shutil.which("postgres") or list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    )


# Need -> the check for it, and the Debian packages that have it, the preferred one first.
NEEDS: dict[str, tuple[Callable[[], bool], tuple[str, ...]]] = {
    "venv": (has_venv, ("python3-venv",)),
    "java": (has_java, ("openjdk-17-jre-headless", "openjdk-21-jre-headless")),
    "maven": (lambda: shutil.which("mvn") is not None, ("maven",)),
    "curl": (lambda: shutil.which("curl") is not None, ("curl",)),
    "postgresql": (has_postgresql, ("postgresql",)),
    "compose": (has_compose, ("docker-compose",)),
    "chromium": (lambda: shutil.which("chromium") is not None, ("chromium",)),
    # The benches compare with rsyslog. Each of its two plug-ins depends on rsyslog itself.
    "rsyslog-kafka": (lambda: has_rsyslog("imkafka"), ("rsyslog-kafka",)),
    "rsyslog-elasticsearch": (lambda: has_rsyslog("omelasticsearch"), ("rsyslog-elasticsearch",)),
}


def succeeds(command: list[str]) -> bool:
    """Run a command silently; return whether it exits with 0."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def docker_answers() -> bool:
    """Return whether a Docker engine with Compose 2 answers."""
    return bool(shutil.which("docker")) and all(
        succeeds(["docker", *ask]) for ask in (["info"], ["compose", "version"])
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Check the needs that are named, install what is missing; return the exit code."""
    names = list(sys.argv[1:] if argv is None else argv)
    if unknown := set(names) - set(NEEDS):
        sys.stderr.write(f"unknown: {', '.join(unknown)} (known: {', '.join(NEEDS)})\n")
        return 2
    if sys.version_info < (3, 11):  # noqa: UP036  # the first thing a user meets
        sys.stderr.write(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}\n")
        return 1
    missing = [name for name in names if not NEEDS[name][0]()]
    if not missing:
        return 0
    if not shutil.which("apt-get"):
        sys.stderr.write(f"missing: {', '.join(missing)}; install them with your system's tools\n")
        return 1
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    if as_root and not (
        shutil.which("sudo") and (sys.stdin.isatty() or succeeds(["sudo", "-n", "true"]))
    ):
        packages = " ".join(NEEDS[name][1][0] for name in missing)
        sys.stderr.write(f"missing: {', '.join(missing)}; type: sudo apt-get install {packages}\n")
        return 1
    subprocess.run([*as_root, "apt-get", "update", "-qq"], capture_output=True, check=False)
    packages_found = [
        next((p for p in NEEDS[name][1] if succeeds(["apt-cache", "show", p])), NEEDS[name][1][0])
        for name in missing
    ]
    sys.stdout.write(f"installing {' '.join(packages_found)} ...\n")
    sys.stdout.flush()
    install = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq"]
    install += ["--no-install-recommends", *packages_found]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    still = [name for name in missing if not NEEDS[name][0]()]
    if still:
        sys.stderr.write("\n".join((done.stdout + done.stderr).splitlines()[-10:]) + "\n")
        sys.stderr.write(f"still missing after the installation: {', '.join(still)}\n")
    return 1 if still else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
