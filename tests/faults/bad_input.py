"""Bad and borderline messages, each made so that its right treatment is known.

CORPUS holds well-known cases by name; `messages` makes any number of others from a seed. Each
message has a kind, in CORPUS the part of its name before the colon, and all messages of a kind are
to be treated alike.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import count as count_from
from random import Random
from typing import Any, NamedTuple

Change = Callable[[Random, str, str], str]  # field, JSON text of its value -> another text
Spoil = Callable[[Random, str], str | bytes | None]  # JSON text of a good reading -> message


class Expected(NamedTuple):
    """How a message is to be treated.

    Attributes:
        kind: of the message.
        reason: a pattern for the whole reason of its dead letter; None: it is good.
        reading: what is to be indexed if it is good.
    """

    kind: str
    reason: str | None
    reading: dict[str, Any]


LIMITS = {
    "temperature": (-40, 60),
    "humidity": (0, 100),
    "co2_level": (350, 10_000),
    "light_intensity": (0, 200_000),
}
FLOATS, INTS = ("temperature", "humidity"), ("co2_level", "light_intensity")
ID, TIME = ("sensor_id",), ("timestamp",)
NUMBERS, FIELDS = FLOATS + INTS, ID + TIME + FLOATS + INTS
TYPES = {**dict.fromkeys(ID + TIME, "str"), **dict.fromkeys(FLOATS, "float")}  # the others: int
NAMES = ["__proto__", "constructor", "prototype", "toString", "hasOwnProperty", "_id", "..", "-"]
EPOCH = datetime(2025, 1, 1)  # noqa: DTZ001  # in UTC, as every time here
MILLIONS = 5_000_000

# Patterns of reasons. FIELD and TYPE stand for the changed field and its type.
AT = r" - at `\$\.FIELD`"
NO_SENSOR_ID = "sensor_id is not 1 to 128 letters, digits or . _ : -"
EMPTY, MALFORMED, TWICE = "empty message", "JSON is malformed: .+", "a field is given twice"
NOT_UTF8, NO_OBJECT = f"not UTF-8|{MALFORMED}", "Expected `object`, got `.+`|Number out of range"
UNKNOWN, MISSING = "Object contains unknown field `.*", "Object missing required field `FIELD`"
LIMIT = r"Expected `(int|float)` [<>]= [-.\d]+"
BEYOND = f"({LIMIT}|(Number|Integer value) out of range|Expected `int`, got `float`){AT}"
CUT = f"Input data was truncated|{MALFORMED}|{LIMIT} - at .+"  # a shorter number may be left
NO_TIME = "timestamp is not an ISO 8601 time with its offset"


def got(kind: str) -> str:
    """Return the pattern of the reason for a value of another type."""
    return f"Expected `TYPE`, got `{kind}`{AT}"


def in_field(reason: str, field: str) -> str:
    """Return the pattern for a field."""
    return reason.replace("TYPE", TYPES.get(field, "int")).replace("FIELD", field)


def encoded(text: str) -> bytes:
    """Return the text in UTF-8, where each of U+DC80 to U+DCFF becomes one byte, 0x80 to 0xFF."""
    return text.encode("utf-8", "surrogateescape")


# Good values and numbers out of range


def quoted(rng: Random, text: str) -> str:
    r"""Return the JSON text of a string, sometimes with one character as \uXXXX."""
    place = rng.randrange(3 * len(text))
    escaped = "".join(f"\\u{ord(char):04x}" for char in text[place : place + 1])
    return f'"{text[:place]}{escaped}{text[place + 1 :]}"'


def clock(ms: int) -> str:
    """Return a time, milliseconds since EPOCH, in the form that is indexed."""
    return (EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds") + "Z"


def elsewhere(rng: Random, ms: int, finer: str) -> str:
    """Return a time, milliseconds since EPOCH, with another offset and with more digits."""
    minutes = rng.randrange(-1439, 1440)
    local = EPOCH + timedelta(milliseconds=ms - ms % 1000, minutes=minutes)
    fraction = f".{ms % 1000:03d}{finer}" if ms % 1000 or finer else ""
    hour, minute = divmod(abs(minutes), 60)
    return f"{local.isoformat()}{fraction}{'-' if minutes < 0 else '+'}{hour:02d}:{minute:02d}"


def number(rng: Random, field: str) -> str:
    """Return the JSON text of a good number."""
    low, high = LIMITS[field]
    if field in INTS:
        return str(rng.randint(low, high))
    return repr(round(rng.uniform(low, high), rng.randrange(1, 16)))


def odd_number(rng: Random, field: str, good: str) -> str:
    """Return the JSON text of a good number in an unusual form."""
    if field in INTS:
        return rng.choice([good, "-0"]) if field == "light_intensity" else good
    value = float(good)
    return rng.choice(
        [
            f"{value:e}",
            f"{value:.3E}",
            f"{value:.0f}",
            f"{value:.40f}",
            f"{value * 100:f}e-2",
            f"{value / 100:.17f}E+02",
            f"{value:.1f}{'0' * 2000}",
            "1e-400",
            "5e-324",
            "-0.0",
            "-0",
        ]
    )


def outside(rng: Random, field: str, _: str) -> str:
    """Return a number just outside its limits or far outside, but within its type."""
    low, high = LIMITS[field]
    far = rng.randrange(1, 10**9)
    if field in INTS:
        return str(rng.choice([low - 1, high + 1, low - far, high + far]))
    near = [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    return repr(rng.choice([*near, low - 0.1, high + 0.1, low - far, high + far, high * 1.4]))


# Damage to the text of a message


def spot(rng: Random, text: str, inside: bool) -> int:
    """Return a random position inside the strings, or that of a brace, colon or comma outside."""
    places, start = [], 0
    for index, part in enumerate(text.split('"')):
        if bool(index % 2) == inside:
            places += [start + i for i, char in enumerate(part) if inside or char in "{}:,"]
        start += len(part) + 1
    return rng.choice(places)


def flip(rng: Random, text: str) -> bytes:
    """Return the message with the high bit of one character of a string set."""
    data, place = bytearray(text.encode()), spot(rng, text, inside=True)
    data[place] |= 0x80  # one such byte among ASCII is never UTF-8
    return bytes(data)


def break_structure(rng: Random, text: str) -> str:
    """Return the message with a brace, colon or comma replaced."""
    place = spot(rng, text, inside=False)
    return text[:place] + rng.choice(";=()|~'\x00\x0c") + text[place + 1 :]


# Kinds in which one field has another value: the fields; the JSON texts of the value, or a function
# that makes one; the pattern of the reason.
VALUES: dict[str, tuple[Sequence[str], Sequence[str] | Change, str]] = {
    "number as text": (NUMBERS, ['"40"', '"400.5"', '" 1e1"', '""'], got("str")),
    "words for a number": (NUMBERS, ['"x"', '"21,5"', '"0x10"', '" "', '"−1"'], got("str")),
    "boolean for a number": (NUMBERS, ["true", "false"], got("bool")),
    "boolean for a time": (TIME, ["true", "false"], got("bool")),
    "null": (FIELDS, ["null"], got("null")),
    "array": (FIELDS, lambda rng, field, good: rng.choice([f"[{good}]", f"[{good}, {good}]", "[]",
        "[null]", f"{'[' * 900}{good}{']' * 900}"]), got("array")),
    "object": (FIELDS, ["{}", '{"a": 1}', '[{"a": 1}]', '{"": {}}'], got("(object|array)")),
    "nested too deep": (FIELDS, ["[" * 1000 + "]" * 1000, '{"a":' * 1000 + "1" + "}" * 1000],
        got("(object|array)")),
    "NaN or Infinity": (NUMBERS, ["NaN", "Infinity", "-Infinity", "nan", "inf"], MALFORMED),
    "malformed number": (NUMBERS, ["+21", "021", ".5", "5.", "1_0", "0x10", "--1", "1e", "٢", ""],
        f"{MALFORMED}|{LIMIT}{AT}"),
    "decimal for a whole number": (INTS, ["431.0", "431.7", "431e0", "4.31E2"], got("float")),
    "out of range": (NUMBERS, outside, LIMIT + AT),
    "beyond its type": (NUMBERS, ["1e39", "-9e300", "-1e400", "5" * 40, "9" * 5000], BEYOND),
    "sensor_id that is no text": (ID, ["7", "-7.5", "true", "false"], got("(int|float|bool)")),
    "characters of sensor_id": (ID, ['""', '"a b"', '"é"', '"😀"', '"a/b"', '"a\x7f"', '"\u202ea"',
        r'"a\u0000"', r'"a\n"', r'"\"a"', r'"a\\"', f'"{"a" * 129}"', f'"{"é" * 10_000}"'],
        NO_SENSOR_ID),
    "long sensor_id": (ID, [f'"{"a" * 32_767}"'], NO_SENSOR_ID),
    "invalid string": (ID + TIME, ['"\x00"', '"a\nb"', '"\x1b[2J"', '"\t"', r'"\x41"', r'"\u00zz"'],
        MALFORMED),
    # Near the end of a message msgspec reports a missing second half as truncated data.
    "surrogate": (ID, [r'"\ud800"', r'"\udc00a"', '"\udced\udca0\udc80"'],
        "not UTF-8|JSON is malformed: .*surrogate.*|Input data was truncated"),
    "time in another ISO form": (TIME, ['"2025-06-01T12:00:00"', '"2025-06-01"', '"2025"',
        '"2025-06-01T12:00Z"', '"2025-06-01T12:00:00,5Z"', '"2025-06-01T12:00:00+0200"'], NO_TIME),
    "time in no form": (TIME, ['""', '"yesterday"', '"2025-06-01 12:00:00Z"', '"1780315200"',
        '"2025-W23-1T12:00:00Z"', '"2025-6-1T12:00:00Z"', '"20250601T120000Z"', '"01/06/2025"',
        '"10000-01-01T00:00:00Z"', '"٢٠٢٥-06-01T12:00:00Z"', r'"2025-06-01T12:00:00Z\n"', '"12:00"',
        '"2025-06-01T12:00:00.1234567890Z"', '"2025-06-01t12:00Z"', '"2025-06-01T25:00:00Z"',
        f'"{"2" * 10_000}"'], NO_TIME),
    "time that does not exist": (TIME, ['"2025-02-29T12:00:00Z"', '"2025-04-31T12:00:00Z"',
        '"2025-13-01T12:00:00Z"', '"2025-00-01T12:00:00Z"', '"2025-06-00T12:00:00Z"',
        '"2025-06-01T12:60:00Z"', '"2025-06-01T23:59:60Z"', '"2025-06-01T12:00:00+24:00"',
        '"2025-06-01T12:00:00-99:00"'], "timestamp: .+"),
    "year outside 1 to 9999": (TIME, ['"0000-01-01T00:00:00Z"', '"-0001-01-01T00:00:00Z"',
        '"0001-01-01T00:00:00+00:01"', '"9999-12-31T23:59:59-00:01"'], f"timestamp: .+|{NO_TIME}"),
    "year as a number": (TIME, ["2025", "1999"], got("int")),
    "number for a time": (TIME, ["1780315200", "0", "-1", "2.5"], got("(int|float)")),
}  # fmt: skip
# Kinds in which the whole text changes: the function that makes it from a good one; the reason.
WHOLES: dict[str, tuple[Spoil, str]] = {
    "nothing": (lambda r, text: r.choice(["", None]), EMPTY),
    "not JSON": (lambda r, text: r.choice([b"hi", b"<a/>", b"\x80" + r.randbytes(40)]), MALFORMED),
    "not an object": (lambda r, text: r.choice([f"[{text}]", "42", "null", '"a"']), NO_OBJECT),
    "truncated": (lambda r, text: text[: r.randrange(1, len(text))], CUT),
    "trailing data": (lambda r, text: text + r.choice(["{}", ",", "\x00", " 0", text]), MALFORMED),
    "broken structure": (break_structure, MALFORMED),
    "not UTF-8": (flip, NOT_UTF8),
    "comment": (lambda r, text: r.choice([f"{text}//", f"/**/{text}"]), MALFORMED),
    "byte order mark": (lambda r, text: f"\ufeff{text}", MALFORMED),
    "UTF-16 or UTF-32": (
        lambda r, text: text.encode(r.choice(["utf-16", "utf-16-be", "utf-32"])), MALFORMED),
}  # fmt: skip
# Kinds in which the fields change: the reason. Then the good kinds.
SHAPES = {"missing field": MISSING, "unknown field": UNKNOWN, "field given twice": TWICE}
STRANGE = [*(f'"{name}"' for name in NAMES), '""', '"Humidity"', '"humidity "', r'"a\nb"', '"é"']
GOOD = (
    "good: plain",
    "good: white space",
    "good: odd number",
    "good: at its limit",
    "good: odd sensor_id",
    "good: ends of time",
    "good: time zone",
    "good: finer time",
)
KINDS = (*VALUES, *WHOLES, *SHAPES, *GOOD)


def vary(rng: Random, kind: str, values: dict[str, str], serial: int) -> str:
    """Change the values to those of a good kind; return the time that is to be indexed."""
    time = clock(serial)
    if kind == "good: odd number":
        values.update({name: odd_number(rng, name, values[name]) for name in NUMBERS})
    elif kind == "good: at its limit":
        values.update({name: str(rng.choice(limits)) for name, limits in LIMITS.items()})
    elif kind == "good: odd sensor_id":
        values["sensor_id"] = f'"{rng.choice([*NAMES, "A", "a.b_c:d-e", "9" * 128])}"'
    elif kind == "good: ends of time":
        time = rng.choice(["0001-01-01", "9999-12-31", "2024-02-29", "1969-12-31"]) + time[10:]
        values["timestamp"] = f'"{time}"'
    elif kind in ("good: time zone", "good: finer time"):
        finer = str(rng.randrange(1, 10**6)) if kind == "good: finer time" else ""
        values["timestamp"] = f'"{elsewhere(rng, serial, finer)}"'
    return time


def make(rng: Random, kind: str, serial: int) -> tuple[bytes | None, Expected]:
    """Return a message of a kind. No two good ones have the same sensor and time."""
    values = {name: number(rng, name) for name in NUMBERS}
    values |= {"sensor_id": quoted(rng, f"g{serial}"), "timestamp": quoted(rng, clock(serial))}
    time, reason, reading, field = vary(rng, kind, values, serial), None, {}, rng.choice(FIELDS)
    if kind in GOOD:
        reading = {name: json.loads(text) for name, text in values.items()} | {"timestamp": time}
    elif kind in VALUES:
        fields, texts, reason = VALUES[kind]
        field = rng.choice(fields)
        good = values[field]
        values[field] = texts(rng, field, good) if callable(texts) else rng.choice(texts)
    pairs = [(quoted(rng, name), text) for name, text in values.items()]
    if kind in SHAPES:
        reason, pair = SHAPES[kind], pairs[[*values].index(field)]
        if kind == "missing field":
            pairs.remove(pair)
        else:
            again = (quoted(rng, field), pair[1])
            pairs.append(again if kind == "field given twice" else (rng.choice(STRANGE), "1"))
    rng.shuffle(pairs)
    space = rng.choice([" \t", "\r\n", " " * 1000] if kind == "good: white space" else ["", " "])
    text = f",{space}".join(f"{name}{space}:{space}{value}" for name, value in pairs)
    text = f"{{{space}{text}{space}}}"
    message: str | bytes | None = f"{space}{text}{space}" if kind == "good: white space" else text
    if kind in WHOLES:
        spoil, reason = WHOLES[kind]
        message = spoil(rng, text)
    return (
        encoded(message) if isinstance(message, str) else message,
        Expected(kind, reason and in_field(reason, field), reading),
    )


def messages(seed: int, count: int) -> Iterator[tuple[bytes | None, Expected]]:
    """Yield this many messages and how to treat them; all kinds are equally frequent."""
    rng, kinds = Random(seed), list(KINDS)
    for serial in range(count):
        if serial % len(kinds) == 0:
            rng.shuffle(kinds)
        yield make(rng, kinds[serial % len(kinds)], serial)


# The fixed corpus: each text of VALUES in each of its fields, and other well-known cases.
SERIAL = count_from()


def raw(**changes: str | None) -> bytes:
    """Return a good reading with these JSON texts instead; a field with None is left out."""
    values = {
        "sensor_id": f'"corpus-{next(SERIAL)}"',
        "timestamp": '"2025-06-01T12:00:00.000Z"',
        "temperature": "21.5",
        "humidity": "48.2",
        "co2_level": "431",
        "light_intensity": "61234",
        **changes,
    }
    pairs = [f'"{name}": {value}' for name, value in values.items() if value is not None]
    return encoded("{" + ", ".join(pairs) + "}")


def more(text: str) -> bytes:
    """Return a good reading with more fields at its end."""
    return raw()[:-1] + encoded(f", {text}}}")


CORPUS: list[tuple[str, bytes | None, str | None]] = [
    ("nothing: tombstone", None, EMPTY),
    ("nothing: empty", b"", EMPTY),
    ("truncated: white space", b" \n", CUT),
    ("truncated: brace", b"{", CUT),
    ("truncated: half a literal", b"nul", CUT),
    ("not JSON: NaN", b"NaN", MALFORMED),
    ("not JSON: bytes", b"\xde\xad\xbe\xef", MALFORMED),
    ("not JSON: single quotes", raw().replace(b'"', b"'"), MALFORMED),
    ("not JSON: trailing comma", raw()[:-1] + b",}", MALFORMED),
    ("not JSON: other white space", b"\x0c" + raw(), MALFORMED),
    ("not UTF-8: in a value", raw(sensor_id='"caf\udce9"'), NOT_UTF8),
    ("not UTF-8: in a name", more('"caf\udce9": 1'), NOT_UTF8),
    ("not UTF-8: overlong", raw(sensor_id='"\udcc0\udc80"'), NOT_UTF8),
    ("byte order mark: UTF-8", b"\xef\xbb\xbf" + raw(), MALFORMED),
    ("not an object: array", b"[1, 2]", NO_OBJECT),
    ("not an object: reading in a string", json.dumps(raw().decode()).encode(), NO_OBJECT),
    ("not an object: 1e400", b"1e400", NO_OBJECT),
    ("not an object: 1 000 levels", b"[" * 1000 + b"]" * 1000, NO_OBJECT),
    ("unknown field: 1 000 levels", b'{"a":' * 1000 + b"1" + b"}" * 1000, UNKNOWN),
    ("unknown field: 10 000", more(", ".join(f'"f{i}": 1' for i in range(10_000))), UNKNOWN),
    ("unknown field: 5 MB", more(f'"{"f" * MILLIONS}": 1'), UNKNOWN),
    ("unknown field: control characters", more(r'"\u001b[2J\r\n": 1'), UNKNOWN),
    *((f"unknown field: {name}", more(f"{name}: {{}}"), UNKNOWN) for name in STRANGE),
    ("field given twice: same", more('"humidity": 48.2'), TWICE),
    ("field given twice: other", more('"humidity": 50'), TWICE),
    ("field given twice: escaped", more(r'"h\u0075midity": 50'), TWICE),
    ("field given twice: sensor_id", more('"sensor_id": "b"'), TWICE),
    ("field given twice: 10 000 times", more(", ".join(['"humidity": 50'] * 9999)), TWICE),
    *((f"missing field: {name}", raw(**{name: None}), in_field(MISSING, name)) for name in FIELDS),
    ("long sensor_id: 5 MB", raw(sensor_id=f'"{"x" * MILLIONS}"'), "sensor_id is not 1 to 128 .+"),
    ("time in no form: 5 MB", raw(timestamp=f'"{"2" * MILLIONS}"'), NO_TIME),
    ("time in no form: with a quote", raw(timestamp=r'"12\"30"'), NO_TIME),
    ("time that does not exist: offset", raw(timestamp='"2025-06-01T12:00:00+12:99"'), "timesta.+"),
    ("out of range: humidity", raw(humidity="140"), in_field(LIMIT + AT, "humidity")),
    ("out of range: lux", raw(light_intensity="-1"), in_field(LIMIT + AT, "light_intensity")),
    ("beyond its type: int32", raw(co2_level="2147483648"), in_field(BEYOND, "co2_level")),
    *(
        (f"{kind}: {field} {text[:40]}", raw(**{field: text}), in_field(reason, field))
        for kind, (fields, texts, reason) in VALUES.items()
        if not callable(texts)
        for field in fields
        for text in texts
    ),
    ("good: plain", raw(), None),
    ("good: 5 MB of white space", b" " * MILLIONS + raw(), None),
    ("good: 5 MB of digits", raw(temperature="21." + "5" * MILLIONS), None),
    ("good: rounds to the limit", raw(temperature="60.0000000000000001"), None),
    ("good: less than the least", raw(humidity="-1e-400"), None),
    ("good: year 1", raw(timestamp='"0001-01-01T00:00:00.000Z"'), None),
    ("good: year 9999", raw(timestamp='"9999-12-31T23:59:59.999Z"'), None),
    ("good: leap day", raw(timestamp='"2024-02-29T00:00:00.000Z"'), None),
    ("good: 128 characters", raw(sensor_id=f'"{"x" * 128}"'), None),
    ("good: escaped", raw(sensor_id=r'"\u0073ensor"'), None),
    *((f"good: sensor {name}", raw(sensor_id=f'"{name}"'), None) for name in NAMES),
]
