"""The images that can run without Docker: name -> what makes a native server of a service."""

from collections.abc import Callable

from stack.compose import Service
from stack.images import elasticsearch, kafka, prometheus, s3
from stack.servers import Server, Site

BUILDERS: dict[str, Callable[[Service, Site], Server]] = {
    "cp-zookeeper": kafka.zookeeper,
    "cp-kafka": kafka.kafka,
    "elasticsearch": elasticsearch.elasticsearch,
    "minio": s3.minio,
    "prometheus": prometheus.prometheus,
}
