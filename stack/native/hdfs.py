"""HDFS: NameNode and DataNode, both from the same jars of Maven Central.

The image writes every variable FILE.XML_name of its environment into Hadoop's configuration file
(apache/hadoop, envtoconf). It formats the folder ENSURE_NAMENODE_DIR when this does not exist; a
service with that variable is the NameNode.
"""

import json
from pathlib import Path
from xml.sax.saxutils import escape

from stack.compose import Service
from stack.servers import Server, Site, open_on_loopback, refuse_unknown, run, write

FILES = {"CORE-SITE.XML": "core-site.xml", "HDFS-SITE.XML": "hdfs-site.xml"}
OTHER_VARIABLES = {"HADOOP_OPTS", "ENSURE_NAMENODE_DIR"}
JAVA_OPTIONS = ["--add-opens=java.base/java.lang=ALL-UNNAMED", "-Dstack.log.level=INFO"]


def hadoop(service: Service, site: Site) -> Server:
    """Return the server of an apache/hadoop service: a NameNode or a DataNode."""
    variables = {name for name in service.environment if name.partition("_")[0] not in FILES}
    refuse_unknown(service, variables - OTHER_VARIABLES)
    is_namenode = "ENSURE_NAMENODE_DIR" in service.environment
    jars = site.cached("hdfs", service.tag)
    config = site.config_file(service, "hadoop")
    options = [*service.environment.get("HADOOP_OPTS", "").split(), *JAVA_OPTIONS]
    java = site.java(jars, [*options, f"-Dstack.config={config}"])
    java[-1] = f"{config}:{java[-1]}"  # Hadoop looks for its configuration on the class path
    package = "org.apache.hadoop.hdfs.server"
    main = f"{package}.namenode.NameNode" if is_namenode else f"{package}.datanode.DataNode"

    def prepare() -> None:
        site.from_maven("hdfs", service.tag)
        for name, file in FILES.items():
            write(config / file, as_xml(settings(service, site, f"{name}_")))
        if is_namenode and not (folder(service, site) / "name/current").exists():
            format_it = [*java, main, "-format", "-force", "-nonInteractive"]
            run(format_it, f"{service.name}: formatting its storage")

    port = next(iter(service.ports.values()))
    web = list(service.ports.values())[1]
    return Server(
        service=service,
        address=f"127.0.0.1:{port}",
        marker=f"-Dstack.config={config} ",
        command=[*java, main],
        is_ready=lambda: namenode_is_ready(web) if is_namenode else datanode_is_ready(web),
        prepare=prepare,
    )


def folder(service: Service, site: Site) -> Path:
    """Return the native folder of the service's only volume."""
    return site.volume(service, next(iter(service.volumes)))


def settings(service: Service, site: Site, prefix: str) -> dict[str, str]:
    """Return the settings of one configuration file, with addresses and folders of this machine."""
    inside = next(iter(service.volumes))
    found = {}
    for variable, value in service.environment.items():
        if variable.startswith(prefix):
            moved = site.listeners_on_host(service, value)
            moved = "127.0.0.1" if moved == "0.0.0.0" else moved  # noqa: S104  # compared only
            # A path, because Hadoop refuses an address that has a space or an accent.
            here = moved.replace(f"file://{inside}", str(folder(service, site)))
            found[variable.removeprefix(prefix)] = here
    return found


def as_xml(properties: dict[str, str]) -> str:
    r"""Return properties as a Hadoop configuration file.

    >>> as_xml({"a.b": "<1>"})
    '<configuration>\n<property><name>a.b</name><value>&lt;1&gt;</value></property>\n</configuration>\n'
    """
    lines = [
        f"<property><name>{escape(name)}</name><value>{escape(value)}</value></property>"
        for name, value in properties.items()
    ]
    return "\n".join(["<configuration>", *lines, "</configuration>", ""])


def beans(web_port: int, query: str) -> list[dict[str, object]]:
    """Return a Hadoop server's own metrics (JMX beans); [] when it does not answer."""
    try:
        url = f"http://127.0.0.1:{web_port}/jmx?qry=Hadoop:service={query}"
        with open_on_loopback(url) as response:
            found: list[dict[str, object]] = json.load(response)["beans"]
            return found
    except (OSError, ValueError):
        return []


def namenode_is_ready(web_port: int) -> bool:
    """Return whether the NameNode is active."""
    return any(
        bean.get("State") == "active" for bean in beans(web_port, "NameNode,name=NameNodeStatus")
    )


def datanode_is_ready(web_port: int) -> bool:
    """Return whether the DataNode serves its block pool to a NameNode."""
    for bean in beans(web_port, "DataNode,name=DataNodeInfo"):
        actors = json.loads(str(bean.get("BPServiceActorInfo") or "[]"))
        return any(actor.get("ActorState") == "RUNNING" for actor in actors)
    return False
