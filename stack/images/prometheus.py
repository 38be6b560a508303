"""Prometheus: the program of Debian's package, without installing that.

Installed, the package would also start a Prometheus of its own on port 9090 of every interface. So
a `prometheus` on the PATH is used when there is one; else the package is only unpacked, into the
cache, which needs no root.
"""

import shutil
import urllib.request
from pathlib import Path

from stack.compose import Service, StackError
from stack.servers import Server, Site, refuse_unknown, run, say, write

CONFIG, DATA = "/etc/prometheus/prometheus.yml", "/prometheus"
LISTEN = "--web.listen-address="


def prometheus(service: Service, site: Site) -> Server:
    """Return the server of a prom/prometheus service; its address must be in its command."""
    refuse_unknown(service, set(service.environment))
    file = site.config_file(service, "yml")
    data = site.volume(service, DATA)
    moved = {f"--config.file={CONFIG}": f"--config.file={file}"}
    moved |= {f"--storage.tsdb.path={DATA}": f"--storage.tsdb.path={data}"}
    address = next(
        (part.removeprefix(LISTEN) for part in service.command if part.startswith(LISTEN)), ""
    )
    if not address.startswith("127.0.0.1:"):
        raise StackError(f"{service.name}: its command needs {LISTEN}127.0.0.1:PORT")
    program = find_program(site.cache)

    def prepare() -> None:
        if not program.exists():
            unpack_package(program)
        data.mkdir(parents=True, exist_ok=True)
        write(file, service.configs[CONFIG])

    return Server(
        name=service.name,
        depends_on=service.depends_on,
        address=address,
        marker=str(file),
        command=[str(program), *(moved.get(part, part) for part in service.command)],
        is_ready=lambda: prometheus_is_ready(address),
        prepare=prepare,
    )


def find_program(cache: Path) -> Path:
    """Return where the program is, or will be when the package has been unpacked."""
    installed = shutil.which("prometheus")
    return Path(installed) if installed else cache / "prometheus-debian/usr/bin/prometheus"


def unpack_package(program: Path) -> None:
    """Fetch Debian's package and unpack it around the place where the program shall be.

    Raises:
        StackError: this is no Debian or Ubuntu, or the package cannot be fetched.
    """
    if not shutil.which("apt-get"):
        raise StackError("prometheus is not installed: install it with your system's tools")
    folder = program.parents[2]
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    say(f"prometheus: fetching Debian's package once into {folder} ...")
    download = f'cd "{partial}" && apt-get download -qq prometheus && dpkg-deb -x *.deb .'
    run(["sh", "-c", download], "fetching prometheus (sudo apt-get update may help)")
    partial.rename(folder)  # all or nothing


def prometheus_is_ready(address: str) -> bool:
    """Ask Prometheus whether it serves queries."""
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
