"""Measure what each choice in the consumer is worth: the script as it is, and with one change.

    make bench-tuning                                       # 500 000 readings, 4 runs each

The topic, the rate and the check of each result are those of throughput.py. A variant is Python
code that runs in the consumer's module before its main, so the measured script is the one that
users run, and nothing in it exists for this bench.

Exit codes: 0 measured, 1 a variant failed or its result is wrong, 2 wrong usage.
"""

import sys
from collections.abc import Sequence

from benches.command import option_parser, positive, write_result
from benches.testbed import own_servers
from benches.throughput import Contestant, measure
from stack.console import command

# These classes replace the consumer's Kafka client: by one with changed options, or shorter polls.
CHANGED_OPTIONS = """
class KafkaConsumer(KafkaConsumer):
    def __init__(self, **options):
        super().__init__(**(options | {changed}))
"""
SHORTER_POLLS = """
class KafkaConsumer(KafkaConsumer):
    def poll(self, timeout_ms, max_records):
        return super().poll(timeout_ms, max_records=min(max_records, 1000))
"""
VARIANTS = {
    "as it is": "",
    "1 in flight": "BATCHES_IN_FLIGHT = 1",
    "2 in flight": "BATCHES_IN_FLIGHT = 2",
    "3 in flight": "BATCHES_IN_FLIGHT = 3",
    "bulks of 2500": "BATCH_MESSAGES = 2500",
    "bulks of 8000": "BATCH_MESSAGES = 8000",
    "polls of 1000": SHORTER_POLLS,
    "fetches of 50 MB": CHANGED_OPTIONS.format(changed={"fetch_max_bytes": 52_428_800}),
    "checksums": CHANGED_OPTIONS.format(changed={"check_crcs": True}),
    "client's metrics": CHANGED_OPTIONS.format(changed={"metrics_enabled": True}),
    "garbage collection": "gc.freeze = lambda: None; gc.set_threshold = lambda _: None",
}
# A misspelt name in a variant would change nothing, so a name that is new there is an error.
PROGRAM = """
import sys
import kafka_to_elasticsearch as consumer
names = set(vars(consumer))
exec({code!r}, vars(consumer))
if more := set(vars(consumer)) - names:
    sys.exit(f"the consumer has no {{', '.join(more)}}")
sys.exit(consumer.main())
"""


def variant(code: str) -> Contestant:
    """Return the consumer with a change, which is Python code."""
    program = PROGRAM.format(code=code)
    return Contestant(lambda _, __: [sys.executable, "-c", program, "--exit-when-idle", "1"])


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = option_parser("tuning", __doc__, runs=4)
    text = "readings in the topic"
    parser.add_argument("--readings", type=positive, default=500_000, metavar="N", help=text)
    options = parser.parse_args(argv)
    variants = {name: variant(code) for name, code in VARIANTS.items()}
    with own_servers() as testbed:
        found, _, failed = measure(testbed, variants, options.readings, options.runs)
        parameters = vars(options) | {"variants": VARIANTS}
        write_result(testbed, "tuning", parameters, found, failed=failed)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
