"""Prometheus, and the exporter of Elasticsearch's metrics: the programs of Debian's packages.

A package that is installed also starts a server of its own, Prometheus on port 9090 of every
interface. So a program on the PATH is used where there is one; otherwise the package is only
unpacked into the cache, which needs no root.
"""

import shutil
from pathlib import Path

from stack.compose import Service, StackError
from stack.console import say
from stack.servers import Server, Site, all_or_nothing, answers, refuse_unknown, run, write

CONFIG, DATA = "/etc/prometheus/prometheus.yml", "/prometheus"
LISTEN = "--web.listen-address="
EXPORTER_PORT = 9114


def prometheus(service: Service, site: Site) -> Server:
    """Return the server of a prom/prometheus service.

    Raises:
        StackError: its command does not set an address on loopback.
    """
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
    program = find_program("prometheus", site.cache)

    def prepare() -> None:
        unpack_package(program)
        data.mkdir(parents=True, exist_ok=True)
        for inside in (*service.configs, *service.binds):  # a path to rules starts from the file
            target = file if inside == CONFIG else file.parent / Path(inside).name
            write(target, service.file(inside))

    return Server(
        service=service,
        address=address,
        marker=str(file),
        command=[str(program), *(moved.get(part, part) for part in service.command)],
        is_ready=lambda: answers(f"http://{address}/-/ready"),
        prepare=prepare,
    )


def elasticsearch_exporter(service: Service, site: Site) -> Server:
    """Return the server of an elasticsearch-exporter service.

    It first asks Elasticsearch for the cluster's name, and waits 10 s, because the native
    Elasticsearch has no page that tells it.
    """
    refuse_unknown(service, set(service.environment))
    address = f"127.0.0.1:{site.host_port(service.name, EXPORTER_PORT)}"
    program = find_program("prometheus-elasticsearch-exporter", site.cache)
    arguments = [site.on_host(part) for part in service.command]
    return Server(
        service=service,
        address=address,
        marker=f"{LISTEN}{address}",
        command=[str(program), f"{LISTEN}{address}", *arguments],
        is_ready=lambda: answers(f"http://{address}/healthz"),
        prepare=lambda: unpack_package(program),
    )


def find_program(package: str, cache: Path) -> Path:
    """Return the path of a package's program, which unpack_package makes if it is not installed."""
    installed = shutil.which(package)
    return Path(installed) if installed else cache / f"{package}-debian/usr/bin/{package}"


def unpack_package(program: Path) -> None:
    """Fetch Debian's package of a program and unpack it into the cache, unless it is there.

    Args:
        program: CACHE/PACKAGE-debian/usr/bin/PACKAGE, see find_program.

    Raises:
        StackError: the system is not Debian or Ubuntu, or the package cannot be fetched.
    """
    if program.exists():
        return
    package, folder = program.name, program.parents[2]
    if not shutil.which("apt-get"):
        raise StackError(f"{package} is not installed: install it with your system's tools")
    say(f"{package}: fetching Debian's package once into {folder} ...")
    # A fresh machine has no lists of packages yet; only root may fetch them.
    fetch = f"apt-get download -qq {package}"
    fetch = f"{{ {fetch} 2>/dev/null || {{ apt-get update -qq && {fetch}; }}; }}"
    with all_or_nothing(folder) as partial:
        command = f'cd "{partial}" && {fetch} && dpkg-deb -x *.deb .'
        run(["sh", "-c", command], f"fetching {package} (sudo apt-get update may help)")
