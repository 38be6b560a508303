"""Cassandra and cqlsh: the server's jars from Maven Central, the shell from PyPI.

The image writes CASSANDRA_... variables into cassandra.yaml (docker-library/cassandra,
docker-entrypoint.sh), and gives MAX_HEAP_SIZE, HEAP_NEWSIZE and JVM_EXTRA_OPTS to Cassandra's start
script for the JVM (cassandra-env.sh). The jars bring no configuration, so this file holds what one
node needs of the distribution's cassandra.yaml and jvm17-server.options.
"""

import json
import shutil
import socket
import struct
import sys
from pathlib import Path

from stack.compose import Service, StackError
from stack.servers import NATIVE_FOLDER, Server, Site, refuse_unknown, write

# Variable of the image -> setting of cassandra.yaml.
SETTINGS = {
    "CASSANDRA_CLUSTER_NAME": "cluster_name",
    "CASSANDRA_ENDPOINT_SNITCH": "endpoint_snitch",
    "CASSANDRA_NUM_TOKENS": "num_tokens",
}
# HEAP_NEWSIZE has no effect with the G1 collector, neither in the image nor here.
JVM_VARIABLES = {"MAX_HEAP_SIZE", "HEAP_NEWSIZE", "JVM_EXTRA_OPTS"}
# Module -> packages that Java 17 hides and Cassandra uses (from its jvm17-server.options).
OPENED_PACKAGES = {
    "java.base": "java.io java.lang java.lang.module java.lang.reflect java.nio java.util "
    "java.util.concurrent java.util.concurrent.atomic jdk.internal.loader jdk.internal.math "
    "jdk.internal.module jdk.internal.ref jdk.internal.reflect jdk.internal.util.jar sun.nio.ch",
    "jdk.management": "com.sun.management.internal",
}
EXPORTED_PACKAGES = {
    "java.base": "java.lang.ref jdk.internal.misc jdk.internal.ref sun.nio.ch",
    "java.management.rmi": "com.sun.jmx.remote.internal.rmi",
    "java.rmi": "sun.rmi.registry sun.rmi.server",
    "java.sql": "java.sql",
    "jdk.unsupported": "sun.misc",
}


def cassandra(service: Service, site: Site) -> Server:
    """Return the server of a cassandra service."""
    refuse_unknown(service, set(service.environment) - set(SETTINGS) - JVM_VARIABLES)
    port = site.host_port(service.name, 9042)
    data = site.volume(service, "/var/lib/cassandra")
    file = site.config_file(service, "yaml")
    jars = site.cached("cassandra", service.tag)

    def prepare() -> None:
        site.from_maven("cassandra", service.tag)
        storage_port = site.host_port(service.name, 7000)
        settings = settings_of(service, data, port, storage_port)
        write(file, json.dumps(settings, indent=1))  # JSON is YAML

    return Server(
        service=service,
        address=f"127.0.0.1:{port}",
        marker=f"file://{file}",
        command=[
            *site.java(jars, [*jvm_options(service), *java_options(file, data, jars)]),
            "org.apache.cassandra.service.CassandraDaemon",
        ],
        is_ready=lambda: cassandra_is_ready(port),
        prepare=prepare,
    )


def settings_of(service: Service, data: Path, port: int, storage_port: int) -> dict[str, object]:
    """Return the settings of cassandra.yaml: one node on loopback, with caches for a laptop.

    Args:
        service: its variables replace the image's defaults.
        data: the folder of the data.
        port: where clients reach the node.
        storage_port: where other nodes would reach it.
    """
    seeds = {"seeds": f"127.0.0.1:{storage_port}"}
    return {
        "cluster_name": "Test Cluster",  # these three as in the image
        "endpoint_snitch": "SimpleSnitch",
        "num_tokens": 16,
        "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "data_file_directories": [str(data / "data")],
        "commitlog_directory": str(data / "commitlog"),
        "saved_caches_directory": str(data / "saved_caches"),
        "hints_directory": str(data / "hints"),
        "cdc_raw_directory": str(data / "cdc_raw"),
        # As in the image, a write is acknowledged before the commit log is synced to the disk. A
        # killed process may lose the last 0.1 s (CASSANDRA-13987), a power cut the last 10 s.
        "commitlog_sync": "periodic",
        "commitlog_sync_period": "10000ms",
        "commitlog_segment_size": "8MiB",
        "seed_provider": [
            {
                "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                "parameters": [seeds],
            }
        ],
        "listen_address": "127.0.0.1",
        "storage_port": storage_port,
        "rpc_address": "127.0.0.1",
        "native_transport_port": port,
        "memtable_heap_space": "64MiB",
        "memtable_offheap_space": "64MiB",
        "file_cache_size": "32MiB",
        "networking_cache_size": "16MiB",
        "key_cache_size": "8MiB",
        "auto_snapshot": False,  # no copy of a table that is dropped or emptied
    } | {
        setting: service.environment[name]
        for name, setting in SETTINGS.items()
        if name in service.environment
    }


def jvm_options(service: Service) -> list[str]:
    """Return the Java options that the image takes from its environment."""
    given = service.environment
    heap = given.get("MAX_HEAP_SIZE", "512M")
    return [f"-Xms{heap}", f"-Xmx{heap}", *given.get("JVM_EXTRA_OPTS", "").split()]


def java_options(file: Path, data: Path, jars: Path) -> list[str]:
    """Return the Java options that Cassandra needs on Java 17, and those of a single node."""
    return [
        "-XX:+UseG1GC",
        "-XX:+ExitOnOutOfMemoryError",  # rather than go on in an unknown state
        "-Djdk.attach.allowAttachSelf=true",
        *(
            f"--add-opens={m}/{p}=ALL-UNNAMED"
            for m, ps in OPENED_PACKAGES.items()
            for p in ps.split()
        ),
        *(
            f"--add-exports={m}/{p}=ALL-UNNAMED"
            for m, ps in EXPORTED_PACKAGES.items()
            for p in ps.split()
        ),
        f"-javaagent:{jars / 'jamm-0.4.0.jar'}",
        f"-Dcassandra.config=file://{file}",
        f"-Dcassandra.storagedir={data}",
        f"-Dlogback.configurationFile={NATIVE_FOLDER / 'logback.xml'}",
        "-Dcassandra-foreground=yes",
        "-Djava.awt.headless=true",
        # A single node waits for no others.
        "-Dcassandra.ring_delay_ms=100",
        "-Dcassandra.skip_wait_for_gossip_to_settle=0",
        "-Dcassandra.superuser_setup_delay_ms=0",
    ]


def console_tool(site: Site, service: Service, tool: str, arguments: list[str]) -> list[str]:
    """Return the command line of cqlsh, which connects to the service by default.

    Raises:
        StackError: the tool is not cqlsh, or cqlsh is not installed.
    """
    if tool != "cqlsh":
        raise StackError(f"unknown tool {tool}: there is cqlsh")
    program = Path(sys.executable).with_name("cqlsh")
    if not program.exists():
        found = shutil.which("cqlsh")
        if not found:
            raise StackError("cqlsh is not installed: pip install cqlsh")
        program = Path(found)
    port = site.host_port(service.name, 9042)
    moved = [site.on_host(argument) for argument in arguments]
    return ["env", "CQLSH_HOST=127.0.0.1", f"CQLSH_PORT={port}", str(program), *moved]


def cassandra_is_ready(port: int) -> bool:
    """Ask Cassandra which protocol options it knows: the OPTIONS frame of native protocol 4.

    Cassandra answers SUPPORTED (opcode 6) to it before a client has logged in (the protocol's
    specification, native_protocol_v4.spec, 4.1.3 and 4.2.4).
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">BBhBi", 4, 0, 0, 5, 0))
            return connection.makefile("rb").read(5)[4:] == b"\x06"
    except OSError:
        return False
