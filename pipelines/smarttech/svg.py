"""A chart over time as SVG: lines, a band, marked points; no library."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from html import escape

# Told apart by people who do not see all colours: Okabe and Ito, "Color Universal Design" (2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
ALARM = "#D00000"
WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 34, 30
TICKS_S = (300, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000)


def french(value: float) -> str:
    r"""Return a number as French texts write it, with one decimal to three for a small one.

    >>> french(1234567), french(20.04), french(0.1234)
    ('1\u202f234\u202f567', '20,0', '0,123')
    """
    decimals = 0 if isinstance(value, int) else 1 if abs(value) >= 2 else 3
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace(".", ",")


def nice_step(span: float, number: int = 5) -> float:
    """Return 1, 2 or 5 times a power of ten, so that a span has about so many steps.

    >>> nice_step(37.0), nice_step(0.4)
    (10.0, 0.1)
    """
    raw = span / number
    power = 10.0 ** math.floor(math.log10(raw))
    factor = next(f for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    return round(factor * power, 10)


class Chart:
    """One chart; what is added to it is drawn in `svg`, when the range of its values is known.

    Args:
        title: with the unit.
        times: of all points, at least one.
        step: between two points that belong together; a line is broken by a longer gap.
    """

    def __init__(self, title: str, times: Sequence[datetime], step: timedelta) -> None:
        self.title, self.step = title, step
        self.begin, self.end = min(times), max(times) + step
        self.lines: list[tuple[Sequence[tuple[datetime, float]], str, str]] = []
        self.bands: list[tuple[Sequence[tuple[datetime, float, float]], str]] = []
        self.points: list[tuple[datetime, float, str]] = []

    def line(self, points: Sequence[tuple[datetime, float]], colour: str, name: str) -> None:
        """Add a line."""
        self.lines.append((points, colour, name))

    def band(self, points: Sequence[tuple[datetime, float, float]], colour: str) -> None:
        """Add the area between a low and a high value."""
        self.bands.append((points, colour))

    def point(self, when: datetime, value: float, said: str) -> None:
        """Add a marked point, and what is said where the mouse is over it."""
        self.points.append((when, value, said))

    def x(self, when: datetime) -> float:
        """Return where a time is, in pixels."""
        return LEFT + (WIDTH - LEFT - RIGHT) * ((when - self.begin) / (self.end - self.begin))

    def y(self, value: float) -> float:
        """Return where a value is, in pixels."""
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def svg(self) -> str:
        """Return the chart."""
        values = [value for points, _, _ in self.lines for _, value in points]
        values += [value for points, _ in self.bands for _, *both in points for value in both]
        values += [value for _, value, _ in self.points]
        grain = nice_step(max(max(values) - min(values), abs(max(values)) * 0.01, 1e-6))
        self.low = math.floor(min(values) / grain) * grain
        self.high = max(math.ceil(max(values) / grain), math.floor(min(values) / grain) + 1) * grain
        parts = [*self.axes(grain), *self.areas(), *self.paths(), *self.marks()]
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}" '
            f'font-size="13" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
        )

    def axes(self, grain: float) -> list[str]:
        """Return the title, the horizontal lines and the labels of both axes."""
        parts = [f'<text x="{LEFT}" y="18" font-size="15" font-weight="600">{self.title}</text>']
        decimals = max(0, -math.floor(math.log10(grain) + 1e-9))
        for i in range(round((self.high - self.low) / grain) + 1):
            value = self.low + i * grain
            y, text = self.y(value), f"{value:.{decimals}f}".replace(".", ",")
            parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        span_s = (self.end - self.begin).total_seconds()
        tick_s = next((t for t in TICKS_S if span_s / t <= 7), TICKS_S[-1])
        first = math.ceil(self.begin.timestamp() / tick_s) * tick_s
        form = "%d/%m" if tick_s >= 86_400 else "%H:%M"
        while first <= self.end.timestamp():
            when = datetime.fromtimestamp(first, self.begin.tzinfo)
            x = self.x(when)
            parts.append(f'<path d="M{x:.1f} {HEIGHT - BOTTOM}v5" stroke="#888"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{when:{form}}</text>'
            )
            first += tick_s
        return parts

    def areas(self) -> list[str]:
        """Return the bands: a rectangle a window, so that a gap stays empty."""
        return [
            f'<rect x="{self.x(at):.1f}" y="{self.y(high):.1f}" fill="{colour}" opacity="0.2" '
            f'width="{self.x(at + self.step) - self.x(at):.1f}" '
            f'height="{self.y(low) - self.y(high):.1f}"/>'
            for points, colour in self.bands
            for at, low, high in points
        ]

    def paths(self) -> list[str]:
        """Return the lines, each point in the middle of its window."""
        parts = []
        for points, colour, name in self.lines:
            path, last = "", None
            for at, value in points:
                command = "L" if last and at - last <= self.step else "M"
                path += f"{command}{self.x(at + self.step / 2):.1f} {self.y(value):.1f}"
                last = at
            parts.append(
                f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" '
                f'stroke-linecap="round"><title>{escape(name)}</title></path>'
            )
        return parts

    def marks(self) -> list[str]:
        """Return the marked points."""
        return [
            f'<circle class="mark" cx="{self.x(at):.1f}" cy="{self.y(value):.1f}" r="5" '
            f'fill="#fff" fill-opacity="0.4" stroke="{ALARM}" stroke-width="2">'
            f"<title>{escape(said)}</title></circle>"
            for at, value, said in self.points
        ]
