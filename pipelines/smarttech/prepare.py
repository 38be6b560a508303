#!/usr/bin/env python3
"""Create the topic of the readings, as the producer and the consumer do at their start.

    python pipelines/smarttech/prepare.py

It has as many partitions and copies as the broker gives a new topic (3 and 1 in docker-compose.yml)
and keeps the broker's time of arrival: readings are told from the future by it, which the clock of
a wrong sensor, or of its gateway, must not decide. The tables are created by the consumer.

Environment (or .env in this folder, then at the project's root; an option wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    SMARTTECH_TOPIC           default sensor_data

Exit codes: 0 it is there, 1 it is not, 2 wrong usage or configuration.
"""

import logging
import os
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import BrokerResponseError, KafkaError, TopicAlreadyExistsError

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from pipelines.common import (  # noqa: E402
    configure_logging,
    load_env,
    stop_on_signals,
    words_of_kafka,
)
from pipelines.smarttech.settings import (  # noqa: E402
    FOLDER,
    KAFKA_START,
    add_kafka_options,
    command_parser,
)

log = logging.getLogger("smarttech")

TIMESTAMP_TYPE, CLEANUP_POLICY = "message.timestamp.type", "cleanup.policy"


class NoTopicError(Exception):
    """There is no Kafka or no topic; the text is one line that says what to do."""


def make_topic(bootstrap_servers: str, topic: str) -> None:
    """Make a topic if it is not there.

    Raises:
        KafkaError: no broker answers, or it does not make the topic.
    """
    new = NewTopic(topic, -1, -1, topic_configs={TIMESTAMP_TYPE: "LogAppendTime"})
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap_servers.split(","))) as admin:
        if topic not in admin.list_topics():
            with suppress(TopicAlreadyExistsError):  # another process has made it meanwhile
                admin.create_topics([new])


def wait_for_topic(options: Namespace, stop: threading.Event) -> None:
    """Wait until a broker answers and has the topic, or until told to stop.

    Args:
        options: bootstrap_servers, topic, and wait: how long, in seconds.
        stop: tells to stop.

    Raises:
        NoTopicError: not within the time.
    """
    deadline = time.monotonic() + options.wait
    while not stop.is_set():
        try:
            make_topic(options.bootstrap_servers, options.topic)
            return
        except BrokerResponseError as exc:
            advice = f"create {options.topic} by hand"
            why = words_of_kafka(exc)
            trouble = f"{options.bootstrap_servers} does not make topic={options.topic} ({why})"
        except KafkaError as exc:
            advice = f"is it started? ({KAFKA_START})"
            trouble = f"Kafka does not answer at {options.bootstrap_servers} ({exc})"
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise NoTopicError(f"{trouble}: {advice}")
        log.warning("%s, %.0f s left", trouble, left_s)
        stop.wait(min(2.0, left_s))


def warn_of_settings(bootstrap_servers: str, topic: str) -> None:
    """Say so when a topic's settings take messages away, or trust the clocks of their senders."""
    names = (TIMESTAMP_TYPE, CLEANUP_POLICY)
    asked = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names))
    try:
        with closing(KafkaAdminClient(bootstrap_servers=bootstrap_servers.split(","))) as admin:
            [answer] = admin.describe_configs([asked])
        [resource] = answer.to_object()["resources"]
        found = {one["config_names"]: one["config_value"] for one in resource["config_entries"]}
        kind, policy = (found[name] for name in names)
    except (KafkaError, ValueError, KeyError) as exc:  # some brokers do not let everybody ask
        log.debug("the settings of topic=%s are not known: %s", topic, exc)
        return
    if "compact" in policy:
        log.warning(
            "%s of topic=%s is %s: Kafka keeps a device's last message only, and those that are "
            "gone before they are read are not counted", CLEANUP_POLICY, topic, policy,
        )  # fmt: skip
    if kind != "LogAppendTime":
        log.warning(
            "%s of topic=%s is %s: what is in the future is told by the sender's clock, not by the "
            "broker's (prepare.py makes a new topic that keeps the broker's)",
            TIMESTAMP_TYPE, topic, kind,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Create the topic; return the exit code (see the module docstring)."""
    load_env(FOLDER)
    parser = command_parser(__doc__)
    add_kafka_options(parser, os.environ)
    options = parser.parse_args(argv)
    configure_logging("smarttech")
    stop = threading.Event()
    stop_on_signals(stop)
    try:
        wait_for_topic(options, stop)
    except NoTopicError as exc:
        log.error("%s", exc)
        return 1
    if stop.is_set():
        return 1
    warn_of_settings(options.bootstrap_servers, options.topic)
    log.info("topic=%s is there at %s", options.topic, options.bootstrap_servers)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
