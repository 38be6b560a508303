"""Entry point of the stand-in images: reads the container's variables as the native stack does.

The native servers share one machine, so the stack moves all their addresses to loopback. A
container has its own network: here every address, port and folder stays as the compose file or the
image has it.

Environment: STAND_IN, the image's name and tag; the variables of the genuine image.
"""

import os
import re
import socket
from pathlib import Path

from stack.compose import Service
from stack.native import BUILDERS
from stack.servers import Site

CACHE = Path("/stand-in/cache")
# Image -> which of the container's variables its settings are; the others are the shell's.
VARIABLES = {
    "cassandra": r"CASSANDRA_|MAX_HEAP_SIZE$|HEAP_NEWSIZE$|JVM_EXTRA_OPTS$",
    "cp-kafka": r"KAFKA_|CLUSTER_ID$",
    "cp-kafka-connect": r"CONNECT_|KAFKA_HEAP_OPTS$",
    "cp-zookeeper": r"ZOOKEEPER_|KAFKA_HEAP_OPTS$",
    "elasticsearch": r"\w+\.|ES_JAVA_OPTS$",
    "hadoop": r"[A-Z]+-SITE\.XML_|HADOOP_OPTS$|ENSURE_NAMENODE_DIR$",
    "minio": r"MINIO_",
}
# Image -> its volume, where the stack looks for the folder of the data in the compose file.
VOLUMES = {"hadoop": "/hadoop/dfs"}
# Image -> the folder where the stack keeps the server's files: the one that holds the folder of the
# genuine image.
STATE = {"elasticsearch": Path("/usr/share")}
# Image -> its settings, an address in them that the stack sets to loopback by itself, and what it
# is in a container, whose own address is {ip}.
LOOPBACK = {
    "cassandra": (
        "server.yaml",
        '"rpc_address": "127.0.0.1"',
        '"rpc_address": "0.0.0.0", "broadcast_rpc_address": "{ip}"',
    ),
    "cp-zookeeper": (
        "server.properties",
        "clientPortAddress=127.0.0.1",
        "clientPortAddress=0.0.0.0",
    ),
    "elasticsearch": (
        "elasticsearch/config/elasticsearch.yml",
        'host: "127.0.0.1"',
        'host: "0.0.0.0"',
    ),
    "hadoop": ("server.hadoop/hdfs-site.xml", ">127.0.0.1<", ">0.0.0.0<"),
    "minio": ("server.properties", "http://127.0.0.1:", "http://0.0.0.0:"),
}
# The stack takes the first port for the server's own, and the second for its page. A container's
# ports are those of its settings, and these two are read by nobody.
PORTS = {9092: 9092, 9870: 9870}


class ContainerSite(Site):
    """The place of a container's only server."""

    def on_host(self, text: str) -> str:
        """Return text as it is: the services are known by their names."""
        return text

    def listeners_on_host(self, service: Service, text: str) -> str:
        """Return text as it is: 0.0.0.0 is the container's."""
        return text

    def host_port(self, service: str, port: int) -> int:
        """Return the port itself."""
        return port

    def volume(self, service: Service, inside: str) -> Path:
        """Return the folder itself."""
        return Path(inside)

    def config_file(self, service: Service, suffix: str) -> Path:
        """Return the path of the server's settings."""
        return self.state / f"server.{suffix}"


def main() -> None:
    """Write the server's settings, then become the server."""
    image, _, tag = os.environ["STAND_IN"].rpartition("/")[2].partition(":")
    given = {n: v for n, v in os.environ.items() if re.match(VARIABLES[image], n)}
    service = Service(
        name=image, image=image, tag=tag, environment=given, ports=PORTS,
        volumes={VOLUMES[image]: ""} if image in VOLUMES else {},
        binds={}, configs={}, command=[], depends_on=[], profiles=[], restart=False,
    )  # fmt: skip
    state = STATE.get(image, Path("/run/stand-in"))
    server = BUILDERS[image](service, ContainerSite({image: service}, state, CACHE, os.environ))
    server.prepare()
    if image in LOOPBACK:
        name, loopback, everywhere = LOOPBACK[image]
        everywhere = everywhere.format(ip=socket.gethostbyname(socket.gethostname()))
        (state / name).write_text((state / name).read_text().replace(loopback, everywhere))
    os.execvpe(server.command[0], server.command, {**os.environ, **server.environment})


if __name__ == "__main__":
    main()
