"""How each image of docker-compose.yml becomes a native process.

A container's configuration is its image's reading of the environment. The same reading is done
here, so that a setting changed in the compose file changes the native server too:

- cp-zookeeper: a fixed list of names, ZOOKEEPER_CLIENT_PORT -> clientPort
  (confluentinc/kafka-images, zookeeper.properties.template);
- cp-kafka: any name, KAFKA_LOG_RETENTION_HOURS -> log.retention.hours, where ___ is "-" and __ is
  "_" (the same repository, kafka.properties.template);
- elasticsearch: names with a dot are settings (elastic/elasticsearch, bin/elasticsearch-env).

Addresses move from the containers' network to loopback: 0.0.0.0:PORT and SERVICE:PORT become
127.0.0.1 with the port that the compose file publishes on the host, or a free one if it does not.
"""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from stack.compose import Service, StackError

HERE = Path(__file__).parent
ZOOKEEPER_VERSION = "3.8.6"
# Confluent Platform release -> the Kafka it ships, in the newest patch that Maven Central has
# (docs.confluent.io, "Supported Versions and Interoperability").
KAFKA_VERSIONS = {"7.9": "3.9.2"}
ZOOKEEPER_SETTINGS = {
    "ZOOKEEPER_CLIENT_PORT": "clientPort",
    "ZOOKEEPER_TICK_TIME": "tickTime",
    "ZOOKEEPER_MAX_CLIENT_CNXNS": "maxClientCnxns",
    "ZOOKEEPER_ADMIN_ENABLE_SERVER": "admin.enableServer",
}
# Variables that the image gives to the Java process, not to Kafka's configuration.
KAFKA_JVM_VARIABLES = {"KAFKA_HEAP_OPTS", "KAFKA_OPTS", "KAFKA_JMX_OPTS"}
KAFKA_TOOLS = {
    "kafka-console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-console-producer": "kafka.tools.ConsoleProducer",
    "kafka-consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "kafka-topics": "org.apache.kafka.tools.TopicCommand",
}


@dataclass
class Server:
    """A native process that stands for one service.

    Attributes:
        address: where clients reach it, "127.0.0.1:9092".
        marker: a string in the process's command line by which it is known again.
        command: the program and its arguments.
        environment: variables added to those of the stack's own process.
        is_ready: asks the server, in its own protocol, whether it serves.
        prepare: run once before the start.
        user: whose process it is, None for the user of the stack.
        restart: whether it is started again when it ends by itself while starting.
    """

    name: str
    depends_on: list[str]
    address: str
    marker: str
    command: list[str]
    is_ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    user: str | None = None
    restart: bool = False


class Translator:
    """Turns services into servers whose files all lie under one state folder."""

    def __init__(
        self, services: Mapping[str, Service], state: Path, cache: Path, environ: Mapping[str, str]
    ) -> None:
        self.services = services
        self.state = state
        self.cache = cache
        self.environ = environ

    def servers(self) -> dict[str, Server]:
        """Return the servers of the services that can run without Docker, in start order."""
        builders = {
            "cp-zookeeper": self._zookeeper,
            "cp-kafka": self._kafka,
            "elasticsearch": self._elasticsearch,
        }
        return {
            name: replace(builders[service.image](service), restart=service.restart)
            for name, service in self.services.items()
            if service.image in builders
        }

    def on_host(self, text: str) -> str:
        """Return text with the addresses of the containers' network moved to loopback."""
        names = "|".join(map(re.escape, self.services))
        return re.sub(
            rf"(?<![\w.-])({names}):(\d+)",
            lambda match: f"127.0.0.1:{self.host_port(match[1], int(match[2]))}",
            text,
        )

    def host_port(self, service: str, port: int) -> int:
        """Return the host's port for a container's: the published one, else one chosen once."""
        if port in self.services[service].ports:
            return self.services[service].ports[port]
        file = self.state / "ports.json"
        chosen: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        key = f"{service}:{port}"
        if key not in chosen:
            chosen[key] = free_port()
            write(file, json.dumps(chosen))
        return chosen[key]

    def kafka_tool(self, tool: str, arguments: list[str]) -> list[str]:
        """Return the command line of one of Kafka's console tools.

        Raises:
            StackError: the tool is not one of KAFKA_TOOLS.
        """
        if tool not in KAFKA_TOOLS:
            raise StackError(f"unknown tool {tool}: there is {', '.join(sorted(KAFKA_TOOLS))}")
        kafka = next(s for s in self.services.values() if s.image == "cp-kafka")
        moved = [self.on_host(argument) for argument in arguments]
        options = ["-Xmx256m", "-Dstack.log.level=WARN"]
        return [*self._java(self._kafka_jars(kafka), options), KAFKA_TOOLS[tool], *moved]

    # ZooKeeper and Kafka: the same jars.

    def _kafka_jars(self, service: Service) -> Path:
        release = ".".join(service.tag.split(".")[:2])
        if release not in KAFKA_VERSIONS:
            raise StackError(
                f"{service.name}: image version {service.tag} is not known to the native stack "
                f"(known: {', '.join(KAFKA_VERSIONS)}.x): change CONFLUENT_VERSION in .env"
            )
        version = KAFKA_VERSIONS[release]
        return self._from_maven(
            "kafka",
            version,
            ["copy-dependencies", f"-Dkafka.version={version}"],
            f"-Dzookeeper.version={ZOOKEEPER_VERSION}",
        )

    def _java(self, jars: Path, options: list[str]) -> list[str]:
        log4j = f"-Dlog4j.configuration=file:{HERE / 'log4j.properties'}"
        return [str(java_home(self.environ) / "bin/java"), *options, log4j, "-cp", f"{jars}/*"]

    def _zookeeper(self, service: Service) -> Server:
        unknown = set(service.environment) - set(ZOOKEEPER_SETTINGS) - KAFKA_JVM_VARIABLES
        if unknown:
            raise StackError(
                f"{service.name}: not understood natively: {', '.join(sorted(unknown))}"
            )
        port = self.host_port(service.name, int(service.environment["ZOOKEEPER_CLIENT_PORT"]))
        settings = {
            ZOOKEEPER_SETTINGS[name]: value
            for name, value in service.environment.items()
            if name in ZOOKEEPER_SETTINGS
        }
        settings |= {
            "clientPort": str(port),
            "clientPortAddress": "127.0.0.1",
            "dataDir": str(self._volume(service, "/var/lib/zookeeper/data")),
            "dataLogDir": str(self._volume(service, "/var/lib/zookeeper/log")),
        }
        file = self._properties_file(service)
        options = [*jvm_options(service), "-Dstack.log.level=INFO"]
        return Server(
            name=service.name,
            depends_on=service.depends_on,
            address=f"127.0.0.1:{port}",
            marker=str(file),
            command=[
                *self._java(self._kafka_jars(service), options),
                "org.apache.zookeeper.server.quorum.QuorumPeerMain",
                str(file),
            ],
            is_ready=lambda: zookeeper_is_ready(port),
            prepare=lambda: write_properties(file, settings),
        )

    def _kafka(self, service: Service) -> Server:
        settings = {
            kafka_property(name): self.on_host(value.replace("//0.0.0.0:", f"//{service.name}:"))
            for name, value in service.environment.items()
            if name.startswith("KAFKA_") and name not in KAFKA_JVM_VARIABLES
        }
        settings["log.dirs"] = str(self._volume(service, "/var/lib/kafka/data"))
        file = self._properties_file(service)
        jars = self._kafka_jars(service)

        def prepare() -> None:
            write_properties(file, settings)
            if "process.roles" not in settings:
                return
            # KRaft needs its storage formatted; the image does it too.
            command = [*self._java(jars, ["-Dstack.log.level=WARN"]), "kafka.tools.StorageTool"]
            arguments = ["format", "--ignore-formatted", "-t", service.environment["CLUSTER_ID"]]
            run([*command, *arguments, "-c", str(file)], f"{service.name}: formatting its storage")

        port = next(iter(service.ports.values()))
        options = [*jvm_options(service), "-Dstack.log.level=INFO"]
        return Server(
            name=service.name,
            depends_on=service.depends_on,
            address=f"127.0.0.1:{port}",
            marker=str(file),
            command=[*self._java(jars, options), "kafka.Kafka", str(file)],
            is_ready=lambda: kafka_is_ready(port),
            prepare=prepare,
        )

    # Elasticsearch.

    def _elasticsearch(self, service: Service) -> Server:
        unknown = {n for n in service.environment if "." not in n and n != "ES_JAVA_OPTS"}
        if unknown:
            raise StackError(
                f"{service.name}: not understood natively: {', '.join(sorted(unknown))}"
            )
        home = (
            self._from_maven(
                "elasticsearch",
                service.tag,
                ["unpack-dependencies", f"-Delasticsearch.version={service.tag}"],
            )
            / f"elasticsearch-{service.tag}"
        )
        folder = unprivileged_folder(self.state) / service.name
        port = self.host_port(service.name, 9200)
        settings = {name: value for name, value in service.environment.items() if "." in name}
        settings |= {
            "cluster.name": "docker-cluster",  # as in the image
            "http.host": "127.0.0.1",
            "http.port": str(port),
            "transport.host": "127.0.0.1",
            "path.logs": str(folder / "logs"),
        }
        data = f"-Epath.data={folder / 'data'}"  # on the command line, to know the process again

        def prepare() -> None:
            for name in ("data", "logs", "config", "tmp"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copytree(home / "config", folder / "config", dirs_exist_ok=True)
            lines = [f"{name}: {json.dumps(value)}\n" for name, value in sorted(settings.items())]
            (folder / "config/elasticsearch.yml").write_text("".join(lines))
            if user := unprivileged_user():
                for path in (folder, *folder.rglob("*")):
                    shutil.chown(path, user)

        return Server(
            name=service.name,
            depends_on=service.depends_on,
            address=f"127.0.0.1:{port}",
            marker=data,
            command=[str(home / "bin/elasticsearch"), data],
            is_ready=lambda: elasticsearch_is_ready(port),
            environment={
                "ES_JAVA_HOME": str(java_home(self.environ)),
                "ES_JAVA_OPTS": service.environment.get("ES_JAVA_OPTS", ""),
                "ES_PATH_CONF": str(folder / "config"),
                "ES_TMPDIR": str(folder / "tmp"),
            },
            prepare=prepare,
            user=unprivileged_user(),
        )

    # Files.

    def _volume(self, service: Service, inside: str) -> Path:
        """Return the native folder of a named volume."""
        return self.state / "volumes" / service.volumes[inside]

    def _properties_file(self, service: Service) -> Path:
        return self.state / "config" / f"{service.name}.properties"

    def _from_maven(self, what: str, version: str, goal: list[str], *options: str) -> Path:
        """Return the cache folder with one distribution, filled through Maven the first time."""
        folder = self.cache / f"{what}-{version}"
        if folder.exists():
            return folder
        if not shutil.which("mvn"):
            raise StackError(
                "Maven (mvn) is not installed: it fetches Kafka and Elasticsearch "
                "(Debian or Ubuntu: sudo apt-get install maven)"
            )
        say(f"{what} {version}: fetching it once into {self.cache} ...")
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        plugin = f"org.apache.maven.plugins:maven-dependency-plugin:3.8.1:{goal[0]}"
        command = ["mvn", "-B", "-q", "-f", str(HERE / f"{what}.pom.xml"), plugin, *goal[1:]]
        # Its notes of what it has unpacked go with the result, not into the project's folder.
        folders = [f"-DoutputDirectory={partial}", f"-DmarkersDirectory={partial}/.markers"]
        run([*command, *options, *folders], f"fetching {what} with Maven")
        if os.geteuid() == 0:  # the distribution's configuration is not readable by others
            for path in partial.rglob("*"):
                path.chmod(path.stat().st_mode | 0o444)
        partial.rename(folder)  # all or nothing
        return folder


def kafka_property(variable: str) -> str:
    """Return the property that the image makes of a variable.

    >>> kafka_property("KAFKA_LOG_RETENTION_HOURS")
    'log.retention.hours'
    >>> kafka_property("KAFKA_A__B___C")
    'a_b-c'
    """
    name = variable.removeprefix("KAFKA_").lower()
    return name.replace("___", "-").replace("__", "\0").replace("_", ".").replace("\0", "_")


def jvm_options(service: Service) -> list[str]:
    """Return the Java options that the image takes from its environment."""
    return [
        option
        for name in sorted(KAFKA_JVM_VARIABLES)
        for option in service.environment.get(name, "").split()
    ]


def java_home(environ: Mapping[str, str]) -> Path:
    """Return the home of the Java to use: JAVA_HOME, else that of `java` on the PATH.

    Raises:
        StackError: there is none.
    """
    if home := environ.get("JAVA_HOME"):
        if not (Path(home) / "bin/java").exists():
            raise StackError(f"JAVA_HOME={home} has no bin/java: correct it or unset it")
        return Path(home)
    if java := shutil.which("java"):
        return Path(java).resolve().parent.parent
    raise StackError(
        "Java is not installed: version 17 or newer is needed "
        "(Debian or Ubuntu: sudo apt-get install openjdk-17-jre-headless)"
    )


def free_port() -> int:
    """Return a port that nobody listens on.

    Below the range that the system gives to outgoing connections (32768 and up on Linux): one of
    those could take a port of that range before the server does.
    """
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def unprivileged_user() -> str | None:
    """Return the user for Elasticsearch, which refuses root; None when we are not root."""
    return "nobody" if os.geteuid() == 0 else None


def unprivileged_folder(state: Path) -> Path:
    """Return a folder that the unprivileged user can reach: the state folder, unless we are root.

    Root's own folders are closed to others, and a clone often lies in one of them.
    """
    if not unprivileged_user():
        return state
    return Path("/var/tmp") / f"smart-city-stack{str(state).replace('/', '-')}"  # noqa: S108


def zookeeper_is_ready(port: int) -> bool:
    """Ask ZooKeeper for its state with the four-letter command srvr."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"srvr")
            return b"Mode: " in connection.makefile("rb").read()
    except OSError:
        return False


def kafka_is_ready(port: int) -> bool:
    """Ask the broker for the cluster's metadata."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            pass  # the client below logs every refused connection
        with KafkaAdminClient(
            bootstrap_servers=f"127.0.0.1:{port}", bootstrap_timeout_ms=5000
        ) as admin:
            return bool(admin.describe_cluster()["brokers"])
    except (OSError, KafkaError):
        return False


def elasticsearch_is_ready(port: int) -> bool:
    """Ask Elasticsearch whether its indices are at least yellow."""
    url = f"http://127.0.0.1:{port}/_cluster/health?wait_for_status=yellow&timeout=1s"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(command: list[str], what: str) -> None:
    """Run a command to its end, silently.

    Raises:
        StackError: it failed; the message ends with its first error, else what it printed last.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["it printed nothing"]
        telling = next((line for line in lines if "ERROR" in line), lines[-1])
        raise StackError(f"{what} failed (exit code {result.returncode}): {telling[:500]}")


def write_properties(file: Path, settings: Mapping[str, str]) -> None:
    """Write settings as a Java properties file."""
    write(file, "".join(f"{name}={value}\n" for name, value in sorted(settings.items())))


def write(file: Path, text: str) -> None:
    """Write a text file, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
