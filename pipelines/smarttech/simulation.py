"""The sensors of a few buildings, simulated: the messages that kafka_producer.py sends."""

import heapq
import json
import random
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

UNITS = {"temperature": "C", "humidity": "%", "energy": "kWh", "co2": "ppm"}
BUILDINGS, FLOORS = "ABC", 4
NOISE = {"temperature": 0.2, "humidity": 1.0, "energy": 0.03, "co2": 15.0}  # standard deviation
LATEST_S = 900.0  # of a late reading
DEFECTS = (
    "bad_json", "missing_field", "wrong_type", "bad_timestamp", "wrong_unit", "out_of_range",
)  # fmt: skip


class Message(NamedTuple):
    """What is sent, when (seconds after the start), and why it is as it is."""

    due_s: float
    device_id: str
    value: bytes
    label: str


def occupancy(when: datetime) -> float:
    """Return how full an office building is, from 0 to 1: working days, 8 to 18 h UTC.

    >>> [occupancy(datetime(2025, 12, 15, hour, tzinfo=UTC)) for hour in (3, 8, 13)]
    [0.0, 0.5, 1.0]
    >>> occupancy(datetime(2025, 12, 14, 13, tzinfo=UTC))
    0.0
    """
    if when.weekday() >= 5:
        return 0.0
    hour = when.hour + when.minute / 60 + when.second / 3600
    return min(1.0, max(0.0, min((hour - 7) / 2, (19 - hour) / 2)))


def expected_value(kind: str, when: datetime, floor: int) -> float:
    """Return what a sensor would read without noise, in the unit of its type.

    >>> noon = datetime(2025, 12, 15, 12, tzinfo=UTC)
    >>> [expected_value(kind, noon, 2) for kind in UNITS]
    [22.1, 41.0, 0.5, 900.0]
    """
    full = occupancy(when)
    if kind == "temperature":
        return 19.5 + 2.0 * full + 0.3 * floor
    if kind == "humidity":
        return 45.0 - 4.0 * full
    if kind == "energy":
        return 0.1 + 0.4 * full
    return 420.0 + 480.0 * full  # co2: outdoor air, and what people breathe out


def timestamp(when: datetime) -> str:
    """Return a time as ISO 8601 in UTC, with milliseconds where it has some.

    >>> timestamp(datetime(2025, 12, 15, 10, tzinfo=UTC))
    '2025-12-15T10:00:00Z'
    """
    text = when.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00").removesuffix(".000") + "Z"


class Simulation:
    """The devices, one message after another, without end.

    Args:
        options: of kafka_producer.py: devices, seed, start, rate (messages per second), and the
            shares bad, duplicate, late and spike, each from 0 to 1.
    """

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.random = random.Random(options.seed)
        self.last: dict[str, Message] = {}  # device -> its last reading

    def messages(self) -> Iterator[Message]:
        """Yield the messages in the order in which they are sent."""
        held: list[tuple[float, int, Message]] = []  # late ones: when to send, serial number
        turn = 0
        while True:
            due_s = turn / self.options.rate
            while held and held[0][0] <= due_s:
                release_s, _, message = heapq.heappop(held)
                yield message._replace(due_s=release_s)
            message = self.message(turn, due_s)
            if message.label == "late":
                heapq.heappush(held, (due_s + self.random.uniform(1, LATEST_S), turn, message))
            else:
                yield message
            turn += 1

    def message(self, turn: int, due_s: float) -> Message:
        """Return the message of a turn: a reading, most of the time."""
        device = turn % self.options.devices
        device_id = f"sensor_{device + 1:03}"
        label = self.draw_label()
        if label == "duplicate" and device_id in self.last:
            return self.last[device_id]._replace(due_s=due_s, label=label)
        kind = list(UNITS)[turn // self.options.devices % len(UNITS)]
        reading = self.reading(device, kind, due_s, label == "spike")
        if label == "bad":
            label, value = self.spoil(reading)
        else:
            label = "reading" if label == "duplicate" else label
            value = json.dumps(reading).encode()
        message = Message(due_s, device_id, value, label)
        if label in ("reading", "spike"):
            self.last[device_id] = message
        return message

    def draw_label(self) -> str:
        """Return what is to be wrong with the next message, most often nothing ("reading")."""
        draw = self.random.random()
        for label in ("bad", "duplicate", "late", "spike"):
            draw -= getattr(self.options, label)
            if draw < 0:
                return label
        return "reading"

    def reading(self, device: int, kind: str, due_s: float, is_spike: bool) -> dict[str, Any]:
        """Return a valid reading."""
        when = self.options.start + timedelta(seconds=due_s)
        floor = device // len(BUILDINGS) % FLOORS
        value = expected_value(kind, when, floor) + self.random.gauss(0, NOISE[kind])
        if is_spike:
            value += self.random.choice((20, 40)) * NOISE[kind]
        return {
            "timestamp": timestamp(when),
            "device_id": f"sensor_{device + 1:03}",
            "building": BUILDINGS[device % len(BUILDINGS)],
            "floor": floor,
            "type": kind,
            "value": round(max(value, 0.0), 3 if kind == "energy" else 1),
            "unit": UNITS[kind],
        }

    def spoil(self, reading: dict[str, Any]) -> tuple[str, bytes]:
        """Return a kind of defect, named as the consumer should, and a message that has it."""
        label = self.random.choice(DEFECTS)
        if label == "bad_json":
            return label, json.dumps(reading).encode()[: self.random.randrange(1, 60)]
        if label == "missing_field":
            del reading[self.random.choice(list(reading))]
        changed: dict[str, dict[str, Any]] = {
            "wrong_type": {"value": "n/a"},
            "bad_timestamp": {"timestamp": "15/12/2025 10:00"},
            "wrong_unit": {"unit": "F"},
            "out_of_range": {"value": self.random.choice((-1e6, 1e6))},
        }
        return label, json.dumps(reading | changed.get(label, {})).encode()
