#!/usr/bin/env python3
"""Write the readings of a Kafka topic into Cassandra: none lost, none twice, none hidden.

    python3 scripts/kafka_to_cassandra.py                       # until Ctrl-C
    python3 scripts/kafka_to_cassandra.py --once                # until all that is there is read
    spark-submit --master local[*] --jars "jars/*.jar" scripts/kafka_to_cassandra.py

Started by spark-submit, it is Spark that writes: `spark_cassandra.py stream`, with its options.
Otherwise, what happens to a message:

    poll -> validate -> INSERT into each table -> all acknowledged -> commit its offset
                |
                +-- not a reading -> topic <topic>.rejects, with the original bytes, the reason,
                                     and the topic, partition and offset it came from

The tables are sensor_data, and sensor_data_by_day if it is there when the writer starts.

A row's key is its sensor and its time, so a message that is read again changes nothing. Of two
readings of one sensor and one millisecond, the one with the later time in Kafka stays, in whatever
order they are read; in the same millisecond of Kafka, the one whose offset modulo 1000 is higher
(999 wins over 1000). That is a row's write time, in microseconds: Kafka's milliseconds, then the
offset's last three digits. Offsets are committed only when all before them is acknowledged by
Cassandra or by the topic of rejects. While one of them is away the writer waits, and holds no more
than --batch messages.

A progress line, every 5 seconds (consumed is always the sum of the three that follow), or what it
waits for:

    progress consumed=5000 written=4996 rejected=2 in_flight=2 rate_hz=1000
    waiting for partitions of topic=iotdata; those of a writer that was killed are free after 20 s

Environment (or .env in this folder or the project's; an option wins over both):
    KAFKA_BOOTSTRAP_SERVERS   default localhost:9092
    IOT_TOPIC                 default iotdata
    IOT_GROUP_ID              default iot-cassandra-writer
    CASSANDRA_HOSTS           default localhost:9042
    CASSANDRA_KEYSPACE        default iot_keyspace

Exit codes: 0 done or stopped cleanly, 1 a server unreachable, a reading unaccounted for or messages
that cannot be decoded, 2 wrong usage or configuration.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT))

from pipelines.common import (  # noqa: E402  # after the path, with the next ones
    configure_logging,
    end_by_force,
    load_env,
    number,
    stop_on_signals,
)
from pipelines.iot_cassandra.settings import (  # noqa: E402
    BY_DAY,
    FOLDER,
    SHARED,
    ClientError,
    add_partitions,
    add_shared,
    add_wait,
    parser_of,
    patiently,
    rejects_topic,
)

log = logging.getLogger("kafka_to_cassandra")

STOP_S = 60.0  # after a signal; the writer needs 20 at most, while a server is away


def load_config(argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Return the configuration: option > environment > default. A bad value exits with code 2."""
    parser = add_shared(parser_of(__doc__), environ, *SHARED)
    add_partitions(parser)
    parser.add_argument(
        "--batch",
        type=number(1, 100_000, int),
        default=500,
        metavar="N",
        help="messages that are read and written together (default: 500)",
    )
    parser.add_argument("--once", action="store_true", help="stop when all that is there is read")
    add_wait(parser)
    return parser.parse_args(argv)


def run(config: argparse.Namespace, stop: threading.Event) -> int:
    """Connect, and move readings until told to stop; return the exit code."""
    # Only here: Spark's image has none of these clients, and spark-submit does not come here.
    from kafka.errors import KafkaError

    from pipelines.iot_cassandra.scripts import clients
    from pipelines.iot_cassandra.scripts.writer import Writer

    servers, topic = config.bootstrap_servers, config.topic
    try:
        session, inserts = patiently(
            log,
            f"Cassandra at {config.hosts}",
            lambda: clients.connect_to_cassandra(config.hosts, config.keyspace),
            clients.CASSANDRA_ERRORS,
            config.wait,
            stop,
        )
        consumer, producer = patiently(
            log,
            f"Kafka at {servers}",
            lambda: clients.connect_to_kafka(servers, topic, config.partitions, config.group_id),
            (KafkaError,),
            config.wait,
            stop,
        )
    except ClientError as exc:
        log.log(logging.ERROR if exc.code else logging.INFO, "%s", exc)
        return exc.code
    log.info(
        "writing topic=%s group=%s into %s of keyspace=%s at %s",
        topic,
        config.group_id,
        ", ".join(inserts),
        config.keyspace,
        config.hosts,
    )
    if BY_DAY not in inserts:
        log.info(
            "%s is not there: prepare.py creates it; start the writer again after that", BY_DAY
        )
    accepted = clients.Clients(session, inserts, producer, rejects_topic(topic))
    writer = Writer(consumer, accepted, topic, config.batch, stop)
    code = 0
    try:
        writer.run(config.once)
    except ClientError as exc:
        log.error("%s", exc)
        code = exc.code
    finally:
        all_settled = writer.finish()
        with suppress(KafkaError):  # Kafka is away: what is left open is said by now
            consumer.close(timeout_ms=clients.KAFKA_TIMEOUT_MS)
        with suppress(KafkaError):
            producer.close(timeout=1)
        session.cluster.shutdown()
    return code if all_settled else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Move readings until stopped; return the exit code (see the module docstring)."""
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit sets it
        from pipelines.iot_cassandra.scripts import spark_cassandra

        return spark_cassandra.main(["stream", *(sys.argv[1:] if argv is None else argv)])
    load_env(FOLDER)
    config = load_config(argv, os.environ)
    configure_logging("kafka_to_cassandra")
    stop = threading.Event()
    stop_on_signals(stop)
    end_by_force(stop, STOP_S, log, "committed")
    return run(config, stop)


if __name__ == "__main__":
    raise SystemExit(main())
