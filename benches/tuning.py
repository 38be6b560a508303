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

from benches.scene import PROJECT, arguments, exit_code, own_servers, positive, write_result
from benches.throughput import Contestant, measure

VARIANTS = {
    "as it is": "",
    # Sizes: readings of a bulk, bulks in flight, messages of a poll.
    "4000 x 2": "BULK_READINGS, BULKS_IN_FLIGHT = 4000, 2",
    "5000 x 2": "BULKS_IN_FLIGHT = 2",
    "5000 x 4": "BULKS_IN_FLIGHT = 4",
    "8000 x 3": "BULK_READINGS = 8000",
    "polls of 2500": "POLL_MESSAGES = 2500",
    # Without what the script does to be faster.
    "waits at the end": (
        "Pipeline.must_submit = lambda self: "
        "self.batch.is_due and len(self.in_flight) < BULKS_IN_FLIGHT"
    ),
    "waits for more": "MORE_WAIT_S = POLL_WAIT_S",
    "garbage collection": "gc.set_threshold = lambda _: None",
    "times rewritten": "NORMAL_TIMESTAMP = re.compile('(?!)')",
    # With what it does not.
    "no garbage collection": "Entry = msgspec.defstruct('Entry', [], bases=(Entry,), gc=False)",
    "ids remembered": (
        "SENSOR_ID = __import__('types').SimpleNamespace("
        "fullmatch=__import__('functools').lru_cache(10_000)(SENSOR_ID.fullmatch))"
    ),
    "threads switch": "__import__('sys').setswitchinterval(0.001)",
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
    command = [sys.executable, "-c", started, "--exit-when-idle", "1"]
    return Contestant(lambda _, __: command)


def bench(argv: Sequence[str] | None) -> int:
    """Measure; return the exit code."""
    parser = arguments(__doc__, runs=4)
    parser.add_argument("--readings", type=positive, default=500_000, metavar="N",
                        help="in the topic (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(argv)
    variants = {name: variant(code) for name, code in VARIANTS.items()}
    with own_servers() as scene:
        found, _, failed = measure(scene, variants, options.readings, options.runs)
        parameters = {"readings": options.readings, "runs": options.runs, "variants": VARIANTS}
        write_result(scene, "tuning", parameters, found, options.output, failed=failed)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code (see the module docstring)."""
    return exit_code(lambda: bench(argv))


if __name__ == "__main__":
    raise SystemExit(main())
