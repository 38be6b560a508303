"""Kafka Connect in distributed mode, from Kafka's own jars.

The image makes a setting of every variable CONNECT_... (confluentinc/kafka-images,
kafka-connect.properties.template), and finds its plug-ins in folders. The only plug-in here is
Camel's Elasticsearch sink: Maven Central has neither Confluent's nor another one for Kafka 3.9.
"""

from pathlib import Path

from stack.compose import Service
from stack.native.kafka import kafka_property, program
from stack.servers import Server, Site, answers, refuse_unknown

CAMEL_VERSION = "3.21.5"  # the last one whose connector runs on Connect 3.9
PREFIX = "CONNECT_"


def connect(service: Service, site: Site) -> Server:
    """Return the server of a cp-kafka-connect service."""
    others = {name for name in service.environment if not name.startswith(PREFIX)}
    refuse_unknown(service, others - {"KAFKA_HEAP_OPTS"})
    port = site.host_port(service.name, 8083)
    plugins = site.config_file(service, "plugins")
    settings = {
        kafka_property(name, PREFIX): site.listeners_on_host(service, value)
        for name, value in service.environment.items()
        if name.startswith(PREFIX)
    }
    settings |= {"plugin.path": str(plugins), "rest.advertised.host.name": "127.0.0.1"}
    return program(
        service,
        site,
        port,
        "org.apache.kafka.connect.cli.ConnectDistributed",
        settings,
        is_ready=lambda: answers(f"http://127.0.0.1:{port}/connectors"),  # it has read its topics
        prepare=lambda: link_plugin(site, plugins),
    )


def link_plugin(site: Site, plugins: Path) -> None:
    """Make a folder of plug-ins with Camel's sink in it, which is fetched the first time."""
    camel = site.from_maven("camel", CAMEL_VERSION, "-DincludeScope=runtime")
    plugins.mkdir(parents=True, exist_ok=True)
    if not (plugins / "camel").exists():
        (plugins / "camel").symlink_to(camel)
