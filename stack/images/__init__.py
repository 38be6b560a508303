"""The images that can run without Docker: name -> what makes a native server of a service."""

from collections.abc import Callable

from stack.compose import Service
from stack.images import cassandra, connect, elasticsearch, hdfs, kafka, postgresql, prometheus, s3
from stack.servers import Server, Site

BUILDERS: dict[str, Callable[[Service, Site], Server]] = {
    "cassandra": cassandra.cassandra,
    "cp-zookeeper": kafka.zookeeper,
    "cp-kafka": kafka.kafka,
    "cp-kafka-connect": connect.connect,
    "elasticsearch": elasticsearch.elasticsearch,
    "elasticsearch-exporter": prometheus.elasticsearch_exporter,
    "hadoop": hdfs.hadoop,
    "minio": s3.minio,
    "postgres": postgresql.postgresql,
    "prometheus": prometheus.prometheus,
}

# What `python -m stack exec SERVICE` runs: image -> what makes the command line of a tool.
TOOLS: dict[str, Callable[[Site, Service, str, list[str]], list[str]]] = {
    "cassandra": cassandra.console_tool,
    "cp-kafka": kafka.console_tool,
}
