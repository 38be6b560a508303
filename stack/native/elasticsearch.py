"""Elasticsearch: the distribution that Maven Central has, run by a user that is not root.

The image takes variables with a dot for settings (elastic/elasticsearch, bin/elasticsearch-env).
Files mounted into its configuration are copied there, since Elasticsearch reads no others.
"""

import json
import shutil
import urllib.error
from collections.abc import Mapping
from pathlib import Path

from stack.compose import Service
from stack.servers import (
    Server,
    Site,
    give_away,
    java_home,
    open_on_loopback,
    refuse_unknown,
    unprivileged_folder,
    unprivileged_user,
)

CONFIG = "/usr/share/elasticsearch/config"


def elasticsearch(service: Service, site: Site) -> Server:
    """Return the server of an elasticsearch service."""
    unknown = {n for n in service.environment if "." not in n and n != "ES_JAVA_OPTS"}
    refuse_unknown(service, unknown)
    home = site.cached("elasticsearch", service.tag) / f"elasticsearch-{service.tag}"
    folder = unprivileged_folder(site.state) / service.name
    port = site.host_port(service.name, 9200)
    given = service.environment.items()
    settings = {name: site.on_host(value) for name, value in given if "." in name}
    settings |= {
        "cluster.name": "docker-cluster",  # as in the image
        "http.host": "127.0.0.1",
        "http.port": str(port),
        "transport.host": "127.0.0.1",
        "transport.port": str(site.host_port(service.name, 9300)),  # where other nodes reach it
        "path.logs": str(folder / "logs"),
    }
    data = f"-Epath.data={folder / 'data'}"  # on the command line, as the process's marker

    def prepare() -> None:
        site.from_maven("elasticsearch", service.tag, goal="unpack-dependencies")
        for name in ("data", "logs", "config", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # private keys and password hashes are copied there
        shutil.copytree(home / "config", folder / "config", dirs_exist_ok=True)
        copy_mounts(service, folder / "config")
        lines = [f"{name}: {json.dumps(value)}\n" for name, value in sorted(settings.items())]
        (folder / "config/elasticsearch.yml").write_text("".join(lines))
        give_away(folder)

    return Server(
        service=service,
        address=f"127.0.0.1:{port}",
        marker=data,
        command=[str(home / "bin/elasticsearch"), data],
        is_ready=lambda: elasticsearch_is_ready(port, settings, folder / "config"),
        environment={
            "ES_JAVA_HOME": str(java_home(site.environ)),
            "ES_JAVA_OPTS": service.environment.get("ES_JAVA_OPTS", ""),
            "ES_PATH_CONF": str(folder / "config"),
            "ES_TMPDIR": str(folder / "tmp"),
        },
        prepare=prepare,
        user=unprivileged_user(),
    )


def copy_mounts(service: Service, config: Path) -> None:
    """Copy a service's mounted files and folders into its configuration."""
    for inside, source in service.binds.items():
        target = config / Path(inside).relative_to(CONFIG)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)


def elasticsearch_is_ready(port: int, settings: Mapping[str, str], config: Path) -> bool:
    """Return whether Elasticsearch has recovered its indices, or wants us to log in.

    An index may stay red, which need not be ours: then nothing more is to be expected.

    Args:
        port: of loopback.
        settings: those of the server.
        config: the folder that paths in the settings start from.
    """
    is_tls = settings.get("xpack.security.http.ssl.enabled") == "true"
    scheme = "https" if is_tls else "http"
    url = f"{scheme}://127.0.0.1:{port}/_cluster/health?wait_for_events=languid&timeout=1s"
    name = settings["xpack.security.http.ssl.certificate_authorities"] if is_tls else None
    try:
        with open_on_loopback(url, config / name if name else None) as response:
            health = json.load(response)
    except urllib.error.HTTPError as exc:
        return exc.code == 401
    except (OSError, ValueError):
        return False
    if health["status"] == "red" and health["unassigned_shards"]:
        to_do = ("initializing_shards", "number_of_pending_tasks", "number_of_in_flight_fetch")
        return not any(health[name] for name in to_do)
    return bool(health["status"] != "red")  # which it is too before it knows its indices
