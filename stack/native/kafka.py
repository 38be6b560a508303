"""ZooKeeper, Kafka and Kafka's console tools, from the same jars of Maven Central.

The images make settings of their environment:
- cp-zookeeper: a fixed list of names, ZOOKEEPER_CLIENT_PORT -> clientPort
  (confluentinc/kafka-images, zookeeper.properties.template);
- cp-kafka: any name, KAFKA_LOG_RETENTION_HOURS -> log.retention.hours, where ___ is "-" and __ is
  "_" (the same repository, kafka.properties.template).
JMX_EXPORTER_PORT is not a variable of the image. The monitoring's compose file starts the broker
with an agent that shows its metrics to Prometheus on that port; the native broker has it too.
"""

import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from stack.compose import Service, StackError
from stack.servers import Server, Site, refuse_unknown, run, write, write_properties

ZOOKEEPER_VERSION = "3.8.6"  # 3.8.7 lacks its parent on Maven Central
# Confluent Platform release -> the Kafka it ships, in the newest patch that Maven Central has
# (docs.confluent.io, "Supported Versions and Interoperability").
KAFKA_VERSIONS = {"7.9": "3.9.2"}
JMX_EXPORTER_CONFIG = "/etc/jmx-exporter.yml"
JMX_EXPORTER_VERSION = "0.18.0"  # the image's
ZOOKEEPER_SETTINGS = {
    "ZOOKEEPER_CLIENT_PORT": "clientPort",
    "ZOOKEEPER_TICK_TIME": "tickTime",
    "ZOOKEEPER_MAX_CLIENT_CNXNS": "maxClientCnxns",
    "ZOOKEEPER_ADMIN_ENABLE_SERVER": "admin.enableServer",
}
# Variables that the image gives to the Java process, not to Kafka's configuration.
KAFKA_JVM_VARIABLES = {"KAFKA_HEAP_OPTS", "KAFKA_OPTS", "KAFKA_JMX_OPTS"}
KAFKA_TOOLS = {
    "kafka-acls": "kafka.admin.AclCommand",
    "kafka-console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-console-producer": "kafka.tools.ConsoleProducer",
    "kafka-consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "kafka-producer-perf-test": "org.apache.kafka.tools.ProducerPerformance",
    "kafka-topics": "org.apache.kafka.tools.TopicCommand",
}


def zookeeper(service: Service, site: Site) -> Server:
    """Return the server of a cp-zookeeper service."""
    unknown = set(service.environment) - set(ZOOKEEPER_SETTINGS) - KAFKA_JVM_VARIABLES
    refuse_unknown(service, unknown)
    port = site.host_port(service.name, int(service.environment["ZOOKEEPER_CLIENT_PORT"]))
    settings = {
        ZOOKEEPER_SETTINGS[name]: value
        for name, value in service.environment.items()
        if name in ZOOKEEPER_SETTINGS
    }
    settings |= {
        "clientPort": str(port),
        "clientPortAddress": "127.0.0.1",
        "dataDir": str(site.volume(service, "/var/lib/zookeeper/data")),
        "dataLogDir": str(site.volume(service, "/var/lib/zookeeper/log")),
    }
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    return program(service, site, port, main, settings, lambda: zookeeper_is_ready(port))


def kafka(service: Service, site: Site) -> Server:
    """Return the server of a cp-kafka service."""
    settings = {
        kafka_property(name): site.mounts_on_host(service, site.listeners_on_host(service, value))
        for name, value in service.environment.items()
        if name.startswith("KAFKA_") and name not in KAFKA_JVM_VARIABLES
    }
    settings["log.dirs"] = str(site.volume(service, "/var/lib/kafka/data"))
    file = site.config_file(service, "properties")
    jars = site.cached("kafka", kafka_version(service))

    def prepare() -> None:
        prepare_metrics(service, site)
        if "process.roles" not in settings:
            return
        # KRaft needs formatted storage, as the image makes it.
        command = [*site.java(jars, ["-Dstack.log.level=WARN"]), "kafka.tools.StorageTool"]
        arguments = ["format", "--ignore-formatted", "-t", service.environment["CLUSTER_ID"]]
        run([*command, *arguments, "-c", str(file)], f"{service.name}: formatting its storage")

    port = next(iter(service.ports.values()))
    return program(
        service,
        site,
        port,
        "kafka.Kafka",
        settings,
        is_ready=lambda: kafka_is_ready(settings),
        options=metrics_agent(service, site),
        prepare=prepare,
    )


def program(
    service: Service,
    site: Site,
    port: int,
    main: str,
    settings: Mapping[str, str],
    is_ready: Callable[[], bool],
    options: Sequence[str] = (),
    prepare: Callable[[], None] = lambda: None,
) -> Server:
    """Return the server of a program among Kafka's jars, configured by one file of properties.

    Args:
        service: the service of the compose file.
        site: where it runs.
        port: where clients reach it, on loopback.
        main: its Java class.
        settings: the properties of the file.
        is_ready: see Server.
        options: Java options, besides the service's own.
        prepare: called before each start, when the jars and the file exist.
    """
    file = site.config_file(service, "properties")
    version = kafka_version(service)

    def prepare_all() -> None:
        fetch_jars(version, site)
        write_properties(file, settings)
        prepare()

    java = [*jvm_options(service), *options, "-Dstack.log.level=INFO"]
    return Server(
        service=service,
        address=f"127.0.0.1:{port}",
        marker=str(file),
        command=[*site.java(site.cached("kafka", version), java), main, str(file)],
        is_ready=is_ready,
        prepare=prepare_all,
    )


def metrics_agent(service: Service, site: Site) -> list[str]:
    """Return the Java option of the agent that shows the broker's metrics, [] without a port."""
    if "JMX_EXPORTER_PORT" not in service.environment:
        return []
    port = site.host_port(service.name, int(service.environment["JMX_EXPORTER_PORT"]))
    jar = f"jmx_prometheus_javaagent-{JMX_EXPORTER_VERSION}.jar"
    path = site.cached("jmx_exporter", JMX_EXPORTER_VERSION) / jar
    return [f"-javaagent:{path}=127.0.0.1:{port}:{site.config_file(service, 'metrics.yml')}"]


def prepare_metrics(service: Service, site: Site) -> None:
    """Fetch the agent of metrics_agent and write its configuration, if the broker has one."""
    if "JMX_EXPORTER_PORT" in service.environment:
        site.from_maven("jmx_exporter", JMX_EXPORTER_VERSION)
        write(site.config_file(service, "metrics.yml"), service.file(JMX_EXPORTER_CONFIG))


def console_tool(site: Site, service: Service, tool: str, arguments: list[str]) -> list[str]:
    """Return the command line of one of Kafka's console tools.

    Raises:
        StackError: the tool is not one of KAFKA_TOOLS.
    """
    if tool not in KAFKA_TOOLS:
        raise StackError(f"unknown tool {tool}: there is {', '.join(sorted(KAFKA_TOOLS))}")
    moved = [site.mounts_on_host(service, site.on_host(argument)) for argument in arguments]
    options = ["-Xmx256m", "-Dstack.log.level=WARN"]
    jars = fetch_jars(kafka_version(service), site)
    return [*site.java(jars, options), KAFKA_TOOLS[tool], *moved]


def kafka_version(service: Service) -> str:
    """Return the version of Kafka that is in a service's image.

    Raises:
        StackError: the image's version is not one of KAFKA_VERSIONS.
    """
    release = ".".join(service.tag.split(".")[:2])
    if release not in KAFKA_VERSIONS:
        raise StackError(
            f"{service.name}: image version {service.tag} is not known to the native stack "
            f"(known: {', '.join(KAFKA_VERSIONS)}.x): change CONFLUENT_VERSION in .env"
        )
    return KAFKA_VERSIONS[release]


def fetch_jars(version: str, site: Site) -> Path:
    """Return the folder with the jars, filled the first time."""
    return site.from_maven("kafka", version, f"-Dzookeeper.version={ZOOKEEPER_VERSION}")


def jvm_options(service: Service) -> list[str]:
    """Return the Java options that the image takes from its environment."""
    return [
        option
        for name in sorted(KAFKA_JVM_VARIABLES)
        for option in service.environment.get(name, "").split()
    ]


def kafka_property(variable: str, prefix: str = "KAFKA_") -> str:
    """Return the property that the image makes of a variable.

    >>> kafka_property("KAFKA_LOG_RETENTION_HOURS")
    'log.retention.hours'
    >>> kafka_property("KAFKA_A__B___C")
    'a_b-c'
    """
    name = variable.removeprefix(prefix).lower()
    return name.replace("___", "-").replace("__", "\0").replace("_", ".").replace("\0", "_")


def listener_entry(listing: str, start: str) -> str:
    """Return the first entry of a comma-separated list that has this start, without the start.

    >>> listener_entry("INTERNAL:PLAINTEXT,HOST:SSL", "HOST:")
    'SSL'
    """
    return next(
        entry.removeprefix(start) for entry in listing.split(",") if entry.startswith(start)
    )


def zookeeper_is_ready(port: int) -> bool:
    """Return whether ZooKeeper answers the four-letter command srvr with its mode."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"srvr")
            return b"Mode: " in connection.makefile("rb").read()
    except OSError:
        return False


def tls_options(authority: str | Path, certificate: str | Path) -> dict[str, Any]:
    """Return the options of kafka-python for a client that logs in by its certificate.

    Args:
        authority: file with the certificate (PEM) of the authority that issued the broker's.
        certificate: file with the client's key and certificate (PEM).
    """
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate)
    # With TLS 1.3 the server sends session tickets unasked, and kafka-python then disconnects.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return {"security_protocol": "SSL", "ssl_context": context}


def kafka_is_ready(settings: Mapping[str, str]) -> bool:
    """Return whether the broker describes its cluster to a client of its inter-broker listener."""
    listener = settings["inter.broker.listener.name"]
    address = listener_entry(settings["advertised.listeners"], f"{listener}://")
    is_tls = listener_entry(settings["listener.security.protocol.map"], f"{listener}:") == "SSL"
    try:
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=2):
            pass  # else the client below would log every refused connection
        stores = ("ssl.truststore.location", "ssl.keystore.location")
        options = tls_options(*(settings[name] for name in stores)) if is_tls else {}
        admin = KafkaAdminClient(
            bootstrap_servers=address, api_version_auto_timeout_ms=5000, **options
        )
        with closing(admin):
            return bool(admin.describe_cluster()["brokers"])
    except (OSError, KafkaError):
        return False
