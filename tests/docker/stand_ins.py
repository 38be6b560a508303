"""The stand-in images: small ones, under exactly the names and tags that the compose files use.

`images/NAME/Dockerfile` has the user, folders, volumes, commands and tools of the genuine image, as
far as the compose files and README use them. Inside runs the same server as without Docker: its
distribution comes from the stack's cache, and `images/base/entry.py` reads the variables by
`stack/native/`. Kibana and Grafana are no more than a page that answers their health checks, MinIO
is S3Proxy, and Spark the one of PyPI.
"""

import os
import subprocess
import sysconfig
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stack.lifecycle import Stack
from stack.native.kafka import JMX_EXPORTER_VERSION
from stack.native.s3 import S3PROXY_VERSION
from tests.conftest import PROJECT
from tests.docker.engine import Engine, EngineError, base_archive

IMAGES = Path(__file__).parent / "images"
PYTHON = Path(sysconfig.get_path("purelib"))
# Image -> the one that it is made from.
PARENTS = {
    "base": "debian",
    "cassandra": "base",
    "confluent": "base",
    "cp-kafka": "confluent",
    "cp-kafka-connect": "confluent",
    "cp-zookeeper": "confluent",
    "elasticsearch": "base",
    "elasticsearch-exporter": "base",
    "grafana": "base",
    "hadoop": "base",
    "kibana": "base",
    "minio": "base",
    "postgres": "debian-postgresql",
    "prometheus": "base",
    "smart-city-spark": "base",
    "spark": "base",
}
# Image -> the folders of the stack's cache that it holds.
DISTRIBUTIONS = {
    "cassandra": ("cassandra-{tag}",),
    "confluent": ("kafka-[0-9]*", "jmx_exporter-*"),
    "cp-kafka-connect": ("camel-*",),
    "elasticsearch": ("elasticsearch-{tag}",),
    "elasticsearch-exporter": ("prometheus-elasticsearch-exporter-debian",),
    "hadoop": ("hdfs-{tag}",),
    "minio": (f"s3-{S3PROXY_VERSION}",),
    "prometheus": ("prometheus-debian",),
}
# Image -> what it holds of this Python's packages.
PACKAGES = {
    "cassandra": (
        "cassandra", "cassandra_driver*", "cqlshlib", "deprecated", "geomet", "puresasl", "wcwidth",
        "wrapt",
    ),
    "smart-city-spark": (
        "certifi", "cramjam", "crc32c", "dateutil", "dotenv", "elastic_transport", "elasticsearch",
        "kafka", "lz4", "msgspec", "prometheus_client", "py4j", "pyspark", "snappy",
        "typing_extensions.py", "urllib3*", "zstandard",
    ),
    "spark": ("py4j", "pyspark"),
}  # fmt: skip


class ImageBuilder:
    """Builds the stand-in images on one engine, each once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.built: set[str] = set()

    def build_for(self, *files: Path) -> None:
        """Build the images that some compose files name, and fetch what these hold.

        Raises:
            EngineError: an image cannot be built.
        """
        with tempfile.TemporaryDirectory() as state:
            stack = Stack(files, {**os.environ, "STACK_STATE": state})
            for server in stack.servers.values():
                server.prepare()  # fills the cache
            stack.site.from_maven("jmx_exporter", JMX_EXPORTER_VERSION)
            stack.down(wipe=True)
        chosen = [part for file in files for part in ("--file", str(file))]
        chosen += ["--profile", "*"]
        for name in self.engine.docker("compose", *chosen, "config", "--images").split():
            self.build(name, stack.cache)

    def build(self, name: str, cache: Path) -> None:
        """Build an image and those that it is made from."""
        if name in self.built:
            return
        image, _, tag = name.rpartition("/")[2].partition(":")
        if image.startswith("debian"):
            package = image.removeprefix("debian").removeprefix("-")
            self.engine.docker("import", str(base_archive(cache, *package.split())), name)
        else:
            self.build(f"stand-in/{PARENTS[image]}", cache)
            patterns = [p.format(tag=tag) for p in DISTRIBUTIONS.get(image, ())]
            distributions = [folder for pattern in patterns for folder in cache.glob(pattern)]
            self.build_from(image, name, distributions)
        self.built.add(name)

    def build_from(self, image: str, name: str, distributions: Sequence[Path]) -> None:
        """Build an image of its folder, of distributions and, for the base, of `stack/`."""
        command = ["docker", "build", "--build-arg", f"IMAGE={name}", "--tag", name, "-"]
        environ = {**self.engine.environ, "DOCKER_BUILDKIT": "0"}
        with tempfile.TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as context:
                context.add(IMAGES / image, ".")
                for folder in distributions:
                    context.add(folder, f"cache/{folder.name}")
                for pattern in PACKAGES.get(image, ()):
                    for package in PYTHON.glob(pattern):
                        context.add(package, f"packages/{package.name}")
                if image == "base":
                    context.add(PROJECT / "stack", "stack")
            file.seek(0)
            built = subprocess.run(
                command, stdin=file, env=environ, capture_output=True, text=True, check=False
            )
        if built.returncode:
            raise EngineError(f"{name} cannot be built: {(built.stdout + built.stderr)[-2000:]}")
