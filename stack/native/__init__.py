"""The images that run without Docker, and the function that makes a server of each."""

from collections.abc import Callable

from stack.compose import Service
from stack.native import (
    cassandra,
    connect,
    elasticsearch,
    hdfs,
    kafka,
    postgresql,
    prometheus,
    s3,
    spark,
)
from stack.servers import Server, Site

# Image -> the function that makes the native server of a service.
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
    "smart-city-spark": spark.spark,
}

# Image -> the function that makes the command line of a tool, for `python -m stack exec SERVICE`.
TOOLS: dict[str, Callable[[Site, Service, str, list[str]], list[str]]] = {
    "cassandra": cassandra.console_tool,
    "cp-kafka": kafka.console_tool,
    "smart-city-spark": spark.console_tool,
}
