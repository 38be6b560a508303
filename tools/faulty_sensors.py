"""Simulate sensors that go wrong, as sensor_generator.py with labelled faults; note what was sent.

    python -m tools.faulty_sensors --backfill 1h --fault spike=0.01 --ledger ledger.csv
    python -m tools.faulty_sensors --console --fault drift=0.001 --fault malformed=0.02

It takes all options of sensor_generator.py, and reads the same environment; without faults it sends
the same bytes. The same --seed gives the same faults.

--fault KIND=RATE may be given for several kinds; RATE is the chance that a fault of the kind begins
at a reading of a sensor, while none of that kind lasts. All but malformed readings stay valid.

    spike          one field of one reading far off
    drift          temperature and humidity move away, for some minutes
    stuck          the same values repeat, for some minutes
    unit           humidity as a share (0.48) instead of % (48), for some minutes
    clock_skew     times up to an hour ahead, for some minutes
    dropout        nothing is sent, for some minutes
    duplicate      sent twice
    late           sent a minute to an hour after its time, if the period lasts so long
    out_of_order   sent after the sensor's next reading
    malformed      not a reading: cut, not JSON, a field missing, unknown, of another type...

--ledger FILE notes every message, as CSV: id (sensor_id@timestamp, empty when malformed), partition
and offset as acknowledged (empty when not), CRC-32 of its bytes, label (its faults, joined by +).
`python -m tools.verify --ledger FILE` compares it with what is in Elasticsearch.

Exit codes: 0 done or stopped cleanly, 1 Kafka unreachable, a message not acknowledged or printed,
or the ledger cannot be written; 2 wrong usage or configuration.
"""

import csv
import heapq
import itertools
import json
import math
import random
import threading
import zlib
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from kafka import KafkaProducer
from kafka.future import Future

import sensor_generator as generator
from kibana.command_line import ENV_FILE

FAULTS = (
    "spike",
    "drift",
    "stuck",
    "unit",
    "clock_skew",
    "dropout",
    "duplicate",
    "late",
    "out_of_order",
    "malformed",
)
EPISODE_S = (60, 600)  # how long a fault lasts, unless it is of one reading only
# What a working sensor can read; a reading beyond these limits is malformed.
LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (-40, 60),
    "humidity": (0, 100),
    "co2_level": (350, 10_000),
    "light_intensity": (0, 200_000),
}
FRACTIONAL = {"temperature", "humidity"}


# What goes wrong with one reading.


def within_limits(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reading, each field that is beyond a limit set to that limit."""
    limited = {n: min(max(reading[n], low), high) for n, (low, high) in LIMITS.items()}
    return {**reading, **limited}


def spiked(reading: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return the reading with one field far off."""
    name = rng.choice(list(LIMITS))
    low, high = LIMITS[name]
    away = 1 if reading[name] < (low + high) / 2 else -1
    off = away * rng.uniform(0.3, 0.5) * (high - low)
    return {**reading, name: round(reading[name] + off, 1 if name in FRACTIONAL else None)}


def drifted(reading: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Return the reading of a sensor that has drifted for so many minutes."""
    warmer_c, drier_pct = 0.8 * minutes, 1.5 * minutes
    return {
        **reading,
        "temperature": round(reading["temperature"] + warmer_c, 2),
        "humidity": round(reading["humidity"] - drier_pct, 1),
    }


def malformed(reading: dict[str, Any], rng: random.Random) -> tuple[str, bytes]:
    """Return the label malformed:KIND, and bytes that are not a reading for that reason."""
    text = json.dumps(reading)
    name = rng.choice(list(LIMITS))
    without = {field: value for field, value in reading.items() if field != name}
    kinds: dict[str, str | bytes] = {
        "empty": "",
        "cut": text[: rng.randrange(1, len(text))],
        "not_json": ";".join(f"{field}={value}" for field, value in reading.items()),
        "not_utf8": text.encode().replace(b"sensor_", b"sensor\xff"),
        "not_a_number": json.dumps({**reading, name: math.nan}),
        "missing_field": json.dumps(without),
        "unknown_field": json.dumps({**reading, "battery_v": 3.7}),
        "wrong_type": json.dumps({**reading, name: f"{reading[name]} ?"}),
        "out_of_range": json.dumps({**reading, name: LIMITS[name][1] + rng.randint(1, 1000)}),
        "bad_time": json.dumps({**reading, "timestamp": "2026-02-30T12:00:00.000Z"}),
    }
    kind, value = rng.choice(list(kinds.items()))
    return f"malformed:{kind}", value.encode() if isinstance(value, str) else value


# What one sensor sends, with its faults.


class Message(NamedTuple):
    """What is sent, as Sender.send takes it."""

    sensor_id: str  # the key
    value: bytes
    reading_id: str  # sensor_id@timestamp, or empty when it is not a reading
    label: str  # its faults, joined by "+"; empty when there is none


class Faults:
    """The faults of one sensor.

    Each kind has random numbers of its own, so that adding one kind does not change the others,
    except that a dropout takes their readings away.
    """

    def __init__(self, options: Namespace, sensor_id: str) -> None:
        self.rates = dict(options.fault)
        self.rng = {k: random.Random(f"{options.seed}/{sensor_id}/{k}") for k in self.rates}
        self.began_ms: dict[str, int] = {}
        self.ends_ms: dict[str, float] = {}
        self.stuck: dict[str, Any] = {}
        self.ahead_ms = 0
        self.taken_ms: set[int] = set()  # times of readings whose clock was ahead ...
        self.oldest_ms: list[int] = []  # ... and the same times as a heap
        self.held: list[Message] = []  # waits for the next one, to be sent out of order

    def strikes(self, kind: str, time_ms: int, lasts: bool = False) -> bool:
        """Return whether a fault begins at this reading, or still lasts."""
        if time_ms < self.ends_ms.get(kind, -math.inf):
            return True
        if not self.rates.get(kind) or self.rng[kind].random() >= self.rates[kind]:
            return False
        self.began_ms[kind] = time_ms
        if lasts:
            self.ends_ms[kind] = time_ms + 1000 * self.rng[kind].uniform(*EPISODE_S)
        return True

    def messages(self, time_ms: int, reading: dict[str, Any]) -> Iterator[tuple[float, Message]]:
        """Yield what is sent for a reading, nothing or more, and when: (epoch ms, message)."""
        if self.strikes("dropout", time_ms, lasts=True):
            return
        message = self.message(time_ms, reading)
        due_ms: float = time_ms
        if self.strikes("late", time_ms):
            message = labelled(message, "late")
            due_ms += 1000 * self.rng["late"].uniform(60, 3600)
        before: list[Message] = []  # sent after this one, unless this one is late
        if due_ms == time_ms:
            before, self.held = self.held, []
        sent = [(due_ms, message)]
        if self.strikes("duplicate", time_ms):
            again_ms = due_ms + 1000 * self.rng["duplicate"].uniform(0, 10)
            sent.append((again_ms, labelled(message, "duplicate")))
        can_wait = len(sent) == 1 and not before and due_ms == time_ms
        if self.strikes("out_of_order", time_ms) and can_wait:
            sent.clear()
            self.held = [labelled(message, "out_of_order")]
        yield from sent
        yield from ((time_ms, held) for held in before)

    def message(self, time_ms: int, reading: dict[str, Any]) -> Message:
        """Return the message of a reading, with wrong values, time or bytes, and its label."""
        reading, labels = self.with_wrong_values(time_ms, reading)
        reading["timestamp"] = generator.timestamp(self.clock_ms(time_ms, labels))
        sensor_id, value = reading["sensor_id"], json.dumps(reading).encode()
        if self.strikes("malformed", time_ms):
            label, value = malformed(reading, self.rng["malformed"])
            return Message(sensor_id, value, "", label)
        return Message(sensor_id, value, f"{sensor_id}@{reading['timestamp']}", "+".join(labels))

    def with_wrong_values(
        self, time_ms: int, reading: dict[str, Any]
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the reading with the values that a faulty sensor gives, and its labels."""
        labels = []
        if self.strikes("drift", time_ms, lasts=True):
            labels.append("drift")
            reading = drifted(reading, (time_ms - self.began_ms["drift"]) / 60_000)
        if self.strikes("spike", time_ms):
            labels.append("spike")
            reading = spiked(reading, self.rng["spike"])
        if self.strikes("stuck", time_ms, lasts=True):
            if self.began_ms["stuck"] == time_ms:
                self.stuck = reading
            else:
                labels.clear()  # the faults of this reading are not seen
            labels.append("stuck")
            reading = self.stuck
        reading = within_limits(reading)
        if self.strikes("unit", time_ms, lasts=True):
            labels.append("unit")
            reading["humidity"] = round(reading["humidity"] / 100, 3)
        return reading, labels

    def clock_ms(self, time_ms: int, labels: list[str]) -> int:
        """Return the time that the sensor's clock shows, never the same time twice."""
        shown_ms = time_ms
        if self.strikes("clock_skew", time_ms, lasts=True):
            labels.append("clock_skew")
            if self.began_ms["clock_skew"] == time_ms:
                self.ahead_ms = round(1000 * self.rng["clock_skew"].uniform(60, 3600))
            shown_ms += self.ahead_ms
        while self.oldest_ms and self.oldest_ms[0] < time_ms:  # no later reading can have them
            self.taken_ms.discard(heapq.heappop(self.oldest_ms))
        while shown_ms in self.taken_ms:
            shown_ms += 1
        if shown_ms != time_ms:
            self.taken_ms.add(shown_ms)
            heapq.heappush(self.oldest_ms, shown_ms)
        return shown_ms


def labelled(message: Message, fault: str) -> Message:
    """Return a message with one more fault in its label."""
    return message._replace(label=f"{message.label}+{fault}".removeprefix("+"))


def messages(options: Namespace, stop: threading.Event) -> Iterator[Message]:
    """Yield what all sensors send, in the order in which it is due, --count messages at most."""
    return itertools.islice(messages_when_due(options, stop), options.count)


def messages_when_due(options: Namespace, stop: threading.Event) -> Iterator[Message]:
    """Yield what all sensors send, each message at the first reading after it is due.

    The readings are paced, not the messages, so that sensors that send nothing end in time too.
    """
    faults = cache(partial(Faults, options))
    waiting: list[tuple[float, int, int, Message]] = []  # heap: due, sensor, serial
    serial = itertools.count()
    for time_ms, reading in generator.readings(options, stop):
        number = int(reading["sensor_id"].rpartition("_")[2])
        while waiting and waiting[0][:2] <= (time_ms, number):
            yield heapq.heappop(waiting)[3]
        for due_ms, message in faults(reading["sensor_id"]).messages(time_ms, reading):
            heapq.heappush(waiting, (due_ms, number, next(serial), message))
    while options.backfill and waiting and not stop.is_set():  # the rest of the period
        due_ms, _, _, message = heapq.heappop(waiting)
        if due_ms >= options.end_ms:
            return
        yield message


# The ledger, and the sender that fills it.


class Ledger:
    """The file that notes the outcome of each message (see the module docstring).

    Several threads call its methods.

    Attributes:
        trouble: why writing stopped, or "" as long as it works.
    """

    def __init__(self, path: Path, stop: threading.Event) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be opened; the text names the option.
        """
        try:
            # Each line is written at once, so that a crash loses none.
            self.file = path.open("w", 1, encoding="ascii", newline="")
        except OSError as exc:
            raise OSError(f"--ledger {path}: {exc.strerror}") from exc
        self.rows = csv.writer(self.file)
        self.stop = stop
        self.trouble = ""
        self.lock = threading.Lock()
        self.unsettled: dict[int, Message] = {}
        self.write("id", "partition", "offset", "crc32", "label")

    def expect(self, serial: int, message: Message) -> None:
        """Keep a message that is about to be sent, until its outcome is known."""
        with self.lock:
            self.unsettled[serial] = message

    def settle(self, serial: int, outcome: Any) -> None:
        """Note a message; the outcome is kafka-python's RecordMetadata, or an exception."""
        with self.lock:
            if message := self.unsettled.pop(serial, None):
                is_stored = not isinstance(outcome, Exception)
                self.note(message, (outcome.partition, outcome.offset) if is_stored else ("", ""))

    def note(self, message: Message, where: tuple[Any, Any]) -> None:
        """Write the line of a message; `where` is its partition and offset."""
        self.write(message.reading_id, *where, f"{zlib.crc32(message.value):08x}", message.label)

    def write(self, *cells: Any) -> None:
        """Write one line; end the run when that fails."""
        if not self.trouble:
            try:
                self.rows.writerow(cells)
            except OSError as exc:
                self.trouble = exc.strerror or str(exc)
                self.stop.set()

    def close(self) -> None:
        """Note what has no outcome yet as not acknowledged, and close the file."""
        with self.lock, suppress(OSError):  # a failure is already kept as the trouble
            while self.unsettled:
                _, message = self.unsettled.popitem()
                self.note(message, ("", ""))
            self.file.close()


class FaultySender(generator.Sender):
    """A sender that notes every message in a ledger, if there is one."""

    def __init__(self, producer: KafkaProducer, options: Namespace, stop: threading.Event) -> None:
        super().__init__(producer, options, stop)
        self.ledger = Ledger(options.ledger, stop) if options.ledger else None
        self.serial = itertools.count()

    def send(self, sensor_id: str, value: bytes, reading_id: str = "", label: str = "") -> Future:
        """Send a message, and note it once its outcome is known."""
        if not self.ledger:
            return super().send(sensor_id, value)
        serial = next(self.serial)
        self.ledger.expect(serial, Message(sensor_id, value, reading_id, label))
        return super().send(sensor_id, value).add_both(partial(self.ledger.settle, serial))

    def finish(self) -> int:
        """Wait for the open outcomes; return the exit code."""
        code = super().finish()
        if self.ledger:
            self.ledger.close()
            if self.ledger.trouble:
                where = f"--ledger {self.options.ledger}"
                generator.log.error("%s: %s: stopped there", where, self.ledger.trouble)
                return 1
        return code


# The command line


def fault_rate(text: str) -> tuple[str, float]:
    """Return a kind of fault and its rate, written KIND=RATE."""
    kind, _, rate = text.partition("=")
    if kind not in FAULTS:
        raise ArgumentTypeError(f"{kind!r} is none of {', '.join(FAULTS)}")
    return kind, generator.number(0, 1)(rate)


def parse_options(argv: Sequence[str] | None) -> Namespace:
    """Return the options: those of sensor_generator.py and two more."""
    parser = generator.option_parser(__doc__ or "")
    parser.prog = "python -m tools.faulty_sensors"
    text = "begin a fault with this chance at a reading, 0 to 1 (see below)"
    parser.add_argument(
        "--fault", type=fault_rate, action="append", default=[], metavar="KIND=RATE", help=text
    )
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="note what was sent")
    options = generator.parse_options(parser, argv)
    if options.console and options.ledger:
        parser.error("--ledger tells of what is sent: not with --console")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate until done or stopped; return the exit code (see the module docstring)."""
    generator.configure_logging()
    try:
        generator.load_env(ENV_FILE)
        options = parse_options(argv)
        stop = generator.stop_on_signals()
        if options.console:
            generator.start_clock(options, stop)
            values = (message.value for message in messages(options, stop))
            lines = (value.decode(errors="backslashreplace") for value in values)
            return generator.print_lines(lines, stop)
        producer = generator.connect(options, stop)
        if producer is None:
            return 0
        sender = FaultySender(producer, options, stop)
        generator.start_clock(options, stop)
        return sender.run(messages(options, stop))
    except generator.SetupError as exc:
        generator.log.error("%s", exc)
        return 2
    except OSError as exc:  # Kafka does not answer, or the ledger cannot be opened
        generator.log.error("%s", exc)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
