#!/usr/bin/env python3
"""Measure what each of the consumer's choices is worth: the script with one thing changed.

    make bench-tuning                                       # 500 000 readings, 4 runs each

The scene, the rate and the check of each result are throughput.py's. A variant is Python code that
is run in the consumer's own names before it starts, so the script that is measured is the one that
users run, and nothing in it exists for this bench.

Exit codes: 0 measured, 1 a variant failed or its result is wrong, 2 wrong usage.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benches.command import arguments, command, positive, write_result
from benches.scene import PROJECT, own_servers
from benches.throughput import Contestant, measure

# The consumer's Kafka client with other options than the script gives it, and with shorter polls.
OTHER_OPTIONS = """
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
    "1 in flight": "BULKS_IN_FLIGHT = 1",
    "2 in flight": "BULKS_IN_FLIGHT = 2",
    "4 in flight": "BULKS_IN_FLIGHT = 4",
    "bulks of 2500": "BULK_READINGS = 2500",
    "bulks of 8000": "BULK_READINGS = 8000",
    "polls of 1000": SHORTER_POLLS,
    "fetches of 50 MB": OTHER_OPTIONS.format(changed={"fetch_max_bytes": 52_428_800}),
    "checksums": OTHER_OPTIONS.format(changed={"check_crcs": True}),
    "client's metrics": OTHER_OPTIONS.format(changed={"metrics_enabled": True}),
    "garbage collection": "gc.freeze = lambda: None; gc.set_threshold = lambda _: None",
}
# A misspelt name would change nothing, and be measured as if it did.
STARTED = """
import sys
sys.path.insert(0, {project!r})
import kafka_to_elasticsearch as consumer
names = set(vars(consumer))
exec({code!r}, vars(consumer))
if more := set(vars(consumer)) - names:
    sys.exit(f"the consumer has no {{', '.join(more)}}")
sys.exit(consumer.main())
"""


def variant(code: str) -> Contestant:
    """Return the consumer with something changed."""
    started = STARTED.format(project=str(PROJECT), code=code)
    return Contestant(lambda _, __: [sys.executable, "-c", started, "--exit-when-idle", "1"])


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    parser = arguments(__doc__, runs=4)
    text = "in the topic (default: %(default)s)"
    parser.add_argument("--readings", type=positive, default=500_000, metavar="N", help=text)
    options = parser.parse_args(argv)
    variants = {name: variant(code) for name, code in VARIANTS.items()}
    with own_servers() as scene:
        found, _, failed = measure(scene, variants, options.readings, options.runs)
        parameters = vars(options) | {"variants": VARIANTS}
        write_result(scene, "tuning", parameters, found, failed=failed)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
