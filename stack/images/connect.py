"""Kafka Connect in distributed mode: it is among Kafka's own jars.

The image makes a setting of every variable CONNECT_... (confluentinc/kafka-images,
kafka-connect.properties.template). Its plug-ins are what lies in its folders; here that is Camel's
Elasticsearch sink, as Maven Central has neither Confluent's nor another that runs on Kafka 3.9.
"""

from pathlib import Path

from stack.compose import Service
from stack.images.kafka import kafka_property, program
from stack.servers import Server, Site, answers, refuse_unknown

CAMEL_VERSION = "3.21.5"  # the last whose connector Connect 3.9 runs
PREFIX = "CONNECT_"


def connect(service: Service, site: Site) -> Server:
    """Return the server of a cp-kafka-connect service."""
    others = {name for name in service.environment if not name.startswith(PREFIX)}
    refuse_unknown(service, others - {"KAFKA_HEAP_OPTS"})
    port = site.host_port(service.name, 8083)
    plugins = site.config_file(service, "plugins")
    settings = {
        kafka_property(name, PREFIX): site.on_host(
            value.replace("//0.0.0.0:", f"//{service.name}:")
        )
        for name, value in service.environment.items()
        if name.startswith(PREFIX)
    }
    settings |= {"plugin.path": str(plugins), "rest.advertised.host.name": "127.0.0.1"}
    # It answers once it has read its topics.
    return program(
        service, site, port, "org.apache.kafka.connect.cli.ConnectDistributed", settings,
        lambda: answers(f"http://127.0.0.1:{port}/connectors"),
        prepare=lambda: link_plugin(site, plugins),
    )  # fmt: skip


def link_plugin(site: Site, plugins: Path) -> None:
    """Make a folder of plug-ins with Camel's sink in it, which is fetched the first time."""
    options = (f"-Dcamel.version={CAMEL_VERSION}", "-DincludeScope=runtime")
    camel = site.from_maven("camel", CAMEL_VERSION, "copy-dependencies", *options)
    plugins.mkdir(parents=True, exist_ok=True)
    if not (plugins / "camel").exists():
        (plugins / "camel").symlink_to(camel)
