"""Spark's standalone cluster, a master and its workers, from the Python package pyspark.

The image is made by extensions/spark/Dockerfile, from the same package: it has all of Spark. A
service's command is that of one process: `spark-class`, a Java class, its options. Without Docker,
the package of the Python that runs this stack is taken, and this Python runs the jobs' tasks too.
"""

import importlib.util
import json
import sys
from pathlib import Path

from stack.compose import Service, StackError
from stack.servers import Server, Site, java_home, open_on_loopback, refuse_unknown

MASTER = "org.apache.spark.deploy.master.Master"
REQUIREMENTS = "extensions/spark/requirements.txt"
MASTER_PORT = 7077
# Variables that the image gives to the jobs that are submitted in it. Without Docker, these have
# the environment of whoever submits them.
JOB_VARIABLES = {"KAFKA_BOOTSTRAP_SERVERS", "ELASTICSEARCH_URL"}
LOOPBACK = {"SPARK_LOCAL_IP": "127.0.0.1"}


def spark(service: Service, site: Site) -> Server:
    """Return the server of a service that is a master or a worker."""
    refuse_unknown(service, set(service.environment) - JOB_VARIABLES - {"SPARK_DAEMON_MEMORY"})
    options = [site.on_host(part) for part in service.command[1:]]
    web = site.host_port(service.name, int(options[options.index("--webui-port") + 1]))
    options += ["--host", "127.0.0.1", "--webui-port", str(web)]  # the last of two options counts
    is_master = options[0] == MASTER
    port = site.host_port(service.name, MASTER_PORT) if is_master else web
    more = ["--port", str(port)] if is_master else ["--work-dir", str(work_folder(service, site))]
    return Server(
        service=service,
        address=f"127.0.0.1:{port}",
        marker=f"--webui-port {web} ",
        command=[str(home() / "bin/spark-class"), *options, *more],
        is_ready=lambda: is_ready(web),
        environment={
            "SPARK_HOME": str(home()),
            "JAVA_HOME": str(java_home(site.environ)),
            **LOOPBACK,
            **{n: v for n, v in service.environment.items() if n not in JOB_VARIABLES},
        },
        prepare=lambda: check_version(service),
    )


def work_folder(service: Service, site: Site) -> Path:
    """Return the folder in which a worker's executors run, and keep their logs."""
    return site.config_file(service, "work")


def home() -> Path:
    """Return the folder of the package pyspark; one that does not exist if it is not installed."""
    found = importlib.util.find_spec("pyspark")
    return Path(found.origin).parent if found and found.origin else Path("/pyspark is missing")


def check_version(service: Service) -> None:
    """Check that the package is there, in the version of the service's image.

    Raises:
        StackError: it is not.
    """
    found = list(home().glob("jars/spark-core_2.12-*.jar"))
    if [jar.stem.rpartition("-")[2] for jar in found] != [service.tag]:
        raise StackError(f"{service.name} needs Spark {service.tag}: pip install -r {REQUIREMENTS}")


def is_ready(web_port: int) -> bool:
    """Return whether a master works, or a worker has found its master."""
    try:
        with open_on_loopback(f"http://127.0.0.1:{web_port}/json/") as response:
            state = json.load(response)
    except (OSError, ValueError):
        return False
    return state.get("status") == "ALIVE" or bool(state.get("masterwebuiurl"))


def console_tool(site: Site, service: Service, tool: str, arguments: list[str]) -> list[str]:
    """Return the command line of spark-submit.

    Raises:
        StackError: another tool is asked for.
    """
    if tool != "spark-submit":
        raise StackError(f"unknown tool {tool}: there is spark-submit")
    check_version(service)
    moved = [site.on_host(argument) for argument in arguments]
    variables = {**LOOPBACK, "PYSPARK_PYTHON": sys.executable}
    return ["env", *(f"{n}={v}" for n, v in variables.items()), str(home() / "bin" / tool), *moved]
