"""What the Spark jobs of the pipelines share: their Java, the end of spark-submit, topics' ids."""

import locale
import os
import threading
from base64 import urlsafe_b64decode
from collections.abc import MutableMapping
from contextlib import closing
from typing import Any
from uuid import UUID

from py4j.java_gateway import JavaGateway
from pyspark import SparkConf
from pyspark.accumulators import AccumulatorServer
from pyspark.java_gateway import launch_gateway

# The variables by which spark-submit offers its own Java to the script that it starts.
OFFERED = ("PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET")
# So long Kafka's Java client waits for an answer.
ADMIN_TIMEOUTS_MS = {"default.api.timeout.ms": "10000", "request.timeout.ms": "5000"}


def use_utf8(environ: MutableMapping[str, str]) -> None:
    """Choose a locale in UTF-8 for the Java that is started next, where there is none.

    In another, or in one that is not installed, Java cannot open a file whose path has an accent.
    """
    try:
        locale.setlocale(locale.LC_CTYPE, "")
        is_utf8 = locale.nl_langinfo(locale.CODESET) == "UTF-8"
    except locale.Error:
        is_utf8 = False
    if not is_utf8:
        environ["LC_ALL"] = "C.UTF-8"


def start_java(conf: SparkConf, **process: Any) -> JavaGateway:
    """Start a Java of this process's own for Spark; return py4j's gateway to it.

    Started by spark-submit, this process is offered that one's Java, but it has no connectors: it
    is left alone. So are the options for another Java in the environment: conf has all.

    Args:
        conf: of Spark.
        process: arguments of subprocess.Popen.

    Raises:
        PySparkException, OSError: it does not start.
    """
    for variable in (*OFFERED, "PYSPARK_SUBMIT_ARGS"):
        os.environ.pop(variable, None)
    # When Java is killed, this server of pyspark would print a traceback; the script says it.
    AccumulatorServer.handle_error = lambda *_: None
    return launch_gateway(conf, process)


def stop_with_submit(stop: threading.Event) -> None:
    """Set a flag when the spark-submit that has started this process, if one has, ends.

    Killed, it would leave this process and its Java behind; it holds the other end of our stdin.
    To be called before anything that takes time.
    """

    def wait() -> None:
        while os.read(0, 4096):
            pass
        stop.set()

    if OFFERED[0] in os.environ:
        threading.Thread(target=wait, daemon=True).start()


def topic_id(jvm: Any, bootstrap_servers: str, topic: str) -> str:
    """Return the id that Kafka gave a topic when it was made: a new one of its name has another.

    Asked by Kafka's Java client, which Spark's Kafka source brings: kafka-python does not know it.

    Args:
        jvm: of py4j, by which Python calls Spark's Java.
        bootstrap_servers: HOST:PORT[,HOST:PORT...].
        topic: its name.

    Returns:
        A UUID, as Kafka's tools do not write it: they write it in base 64.

    Raises:
        Py4JError: Kafka does not answer, or has no such topic.
    """
    settings = {"bootstrap.servers": bootstrap_servers, **ADMIN_TIMEOUTS_MS}
    with closing(jvm.org.apache.kafka.clients.admin.Admin.create(settings)) as admin:
        described = admin.describeTopics([topic]).allTopicNames().get()
        text = described[topic].topicId().toString()  # in base 64
    return str(UUID(bytes=urlsafe_b64decode(f"{text}==")))
