"""Elasticsearch: the distribution that Maven Central has, run as a user that is not root.

The image takes names with a dot for settings (elastic/elasticsearch, bin/elasticsearch-env).
"""

import json
import shutil
import urllib.request

from stack.compose import Service
from stack.servers import (
    Server,
    Site,
    give_away,
    java_home,
    refuse_unknown,
    unprivileged_folder,
    unprivileged_user,
)


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
        "transport.port": str(site.host_port(service.name, 9300)),  # where other nodes look for it
        "path.logs": str(folder / "logs"),
    }
    data = f"-Epath.data={folder / 'data'}"  # on the command line, to know the process again

    def prepare() -> None:
        version = f"-Delasticsearch.version={service.tag}"
        site.from_maven("elasticsearch", service.tag, "unpack-dependencies", version)
        for name in ("data", "logs", "config", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copytree(home / "config", folder / "config", dirs_exist_ok=True)
        lines = [f"{name}: {json.dumps(value)}\n" for name, value in sorted(settings.items())]
        (folder / "config/elasticsearch.yml").write_text("".join(lines))
        give_away(folder)

    return Server(
        name=service.name,
        depends_on=service.depends_on,
        address=f"127.0.0.1:{port}",
        marker=data,
        command=[str(home / "bin/elasticsearch"), data],
        is_ready=lambda: elasticsearch_is_ready(port),
        environment={
            "ES_JAVA_HOME": str(java_home(site.environ)),
            "ES_JAVA_OPTS": service.environment.get("ES_JAVA_OPTS", ""),
            "ES_PATH_CONF": str(folder / "config"),
            "ES_TMPDIR": str(folder / "tmp"),
        },
        prepare=prepare,
        user=unprivileged_user(),
    )


def elasticsearch_is_ready(port: int) -> bool:
    """Ask Elasticsearch whether its indices are at least yellow."""
    url = f"http://127.0.0.1:{port}/_cluster/health?wait_for_status=yellow&timeout=1s"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
