"""Write the commands that start Kafka's tools, once, when the image is built."""

from pathlib import Path

from stack.native.kafka import KAFKA_TOOLS

TOOLS = {**KAFKA_TOOLS, "kafka-broker-api-versions": "kafka.admin.BrokerApiVersionsCommand"}
SCRIPT = """#!/bin/sh
exec java ${{KAFKA_HEAP_OPTS:--Xmx256m}} -XX:TieredStopAtLevel=1 -Dstack.log.level=WARN \\
  -Dlog4j.configuration=file:/stand-in/stack/native/log4j.properties \\
  -cp '{jars}/*' {main} "$@"
"""


def main() -> None:
    """Write one command for each tool."""
    (jars,) = Path("/stand-in/cache").glob("kafka-*")
    for name, main_class in TOOLS.items():
        tool = Path("/usr/bin", name)
        tool.write_text(SCRIPT.format(jars=jars, main=main_class))
        tool.chmod(0o755)


if __name__ == "__main__":
    main()
