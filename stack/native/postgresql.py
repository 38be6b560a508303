"""PostgreSQL: the system's own package, run by a user that is not root.

The image runs initdb with the user POSTGRES_USER and the options POSTGRES_INITDB_ARGS, then creates
the database POSTGRES_DB (docker-library/postgres, docker-entrypoint.sh).
"""

import pwd
import shutil
import subprocess
from pathlib import Path

from stack.compose import Service, StackError
from stack.servers import (
    Server,
    Site,
    all_or_nothing,
    give_away,
    refuse_unknown,
    run,
    unprivileged_folder,
    unprivileged_user,
)

VARIABLES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_HOST_AUTH_METHOD", "POSTGRES_INITDB_ARGS"}


def postgresql(service: Service, site: Site) -> Server:
    """Return the server of a postgres service."""
    refuse_unknown(service, set(service.environment) - VARIABLES)
    major = service.tag.partition(".")[0]
    programs = find_programs(major)
    data = unprivileged_folder(site.state) / service.name / "data"
    port = site.host_port(service.name, 5432)

    def prepare() -> None:
        if programs is None:
            raise StackError(
                f"PostgreSQL {major} is not installed "
                "(Debian or Ubuntu: sudo apt-get install postgresql)"
            )
        if not (data / "PG_VERSION").exists():
            create_cluster(service, programs, data)

    home = programs or Path("/")
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    ready = [str(home / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return Server(
        service=service,
        address=f"127.0.0.1:{port}",
        marker=str(data),
        command=[str(home / "postgres"), "-D", str(data), *options],
        is_ready=lambda: subprocess.run(ready, check=False).returncode == 0,
        prepare=prepare,
        user=unprivileged_user(),
    )


def find_programs(major: str) -> Path | None:
    """Return the folder with PostgreSQL's programs of a major version, None without it."""
    found = shutil.which("postgres")
    candidates = [Path(f"/usr/lib/postgresql/{major}/bin")]  # Debian keeps each version in its own
    if found:
        shown = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        if f" {major}." in shown.stdout:
            candidates.append(Path(found).resolve().parent)
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


def create_cluster(service: Service, programs: Path, data: Path) -> None:
    """Make the data folder and the database, all or nothing.

    Raises:
        StackError: initdb fails, or the database cannot be created.
    """
    user = service.environment["POSTGRES_USER"]
    auth = service.environment["POSTGRES_HOST_AUTH_METHOD"]
    arguments = service.environment.get("POSTGRES_INITDB_ARGS", "").split()
    create = f"CREATE DATABASE {service.environment['POSTGRES_DB']}"
    shell = ["sh", "-c", 'echo "$0" | "$@"', create]  # a single-user server reads standard input
    with all_or_nothing(data) as partial:
        give_away(data.parent)
        initdb = [str(programs / "initdb"), "-D", str(partial), "-U", user, f"--auth={auth}"]
        run([*as_owner(), *initdb, *arguments], f"{service.name}: initdb")
        single = [str(programs / "postgres"), "--single", "-D", str(partial), "postgres"]
        run([*as_owner(), *shell, *single], f"{service.name}: {create}")


def as_owner() -> list[str]:
    """Return the start of a command line that is run by the user of the server."""
    if not (user := unprivileged_user()):
        return []
    entry = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
