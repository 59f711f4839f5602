"""Charts as SVG text for a page: lines with bands, on linear or logarithmic axes.

Colours are the page's CSS variables, so a chart follows its light or dark style. Knows no runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44
COLOURS = 8  # --c0 ... of the page


@dataclass(frozen=True)
class Series:
    """A line through (x, y), with its band; points where `marks`, `note` left of the first."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    marks: bool = False
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """From values to places, linear or logarithmic."""

    low: float
    high: float
    start: float  # place of `low`
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(max(value, self.low / 10)) if self.log else value
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Few round values inside."""
        if self.log and self.high / self.low >= 10:
            steps = (1, 2, 5) if self.high / self.low < 1000 else (1,)
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            inside = [k * 10.0**d for d in decades for k in steps]
            return [tick for tick in inside if self.low <= tick <= self.high]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(k * scale for k in (1, 2, 5, 10) if k * scale >= rough * 0.999)


def axis(values: Sequence[float], start: float, end: float, *, log: bool) -> Axis:
    """An axis that holds the values, with a little room."""
    low, high = min(values), max(values)
    log = log and low > 0
    if low == high:
        low, high = (low * 0.8, high * 1.25) if log else (low - 0.5, high + 0.5)
    if log:
        room = (high / low) ** 0.04
        return Axis(low / room, high * room, start, end, log)
    room = 0.04 * (high - low)
    return Axis(low - room if low < 0 or low > room else 0.0, high + room, start, end, log)


def short(value: float) -> str:
    """A number in few characters: 12, 0.031, 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def chart(
    series: Sequence[Series], *, title: str, xlabel: str, log_x: bool = False, log_y: bool = False
) -> str:
    """An SVG of these lines; empty where there is nothing to show."""
    series = [line for line in series if line.x]
    if not series:
        return ""
    xs = [x for line in series for x in line.x]
    ys = [y for line in series for y in (*line.low, *line.high)]
    if log_y and min(ys) > 0 and max(ys) / min(ys) < 8:
        log_y = False
    across = axis(xs, LEFT, WIDTH - RIGHT, log=log_x)
    up = axis(ys, HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_frame(across, up, xlabel),
    ]
    for line in series:
        parts += _line(line, across, up)
    return "\n".join([*parts, "</svg>"])


def _frame(across: Axis, up: Axis, xlabel: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{short(tick)}</text>')
    last = -math.inf
    for tick in across.ticks():
        x = across(tick)
        if x - last < 42:
            continue
        last = x
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" class="middle">{short(tick)}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" class="middle">{escape(xlabel)}</text>')
    return parts


def dashes(colour: int) -> str:
    """The attribute that tells a second line of one colour from the first."""
    return ' stroke-dasharray="6 4"' if colour >= COLOURS else ""


def _line(line: Series, across: Axis, up: Axis) -> list[str]:
    colour = f"var(--c{line.colour % COLOURS})"
    x = [across(value) for value in line.x]
    upper = [f"{a:.1f} {up(b):.1f}" for a, b in zip(x, line.high, strict=True)]
    lower = [f"{a:.1f} {up(b):.1f}" for a, b in zip(x, line.low, strict=True)]
    middle = [f"{a:.1f} {up(b):.1f}" for a, b in zip(x, line.y, strict=True)]
    parts = [
        f'<path class="band" fill="{colour}" d="M{"L".join([*upper, *reversed(lower)])}Z"/>',
        f'<path class="line" stroke="{colour}"{dashes(line.colour)} d="M{"L".join(middle)}">'
        f"<title>{escape(line.label)}</title></path>",
    ]
    if line.marks or len(x) == 1:
        parts += [
            f'<circle cx="{p.split()[0]}" cy="{p.split()[1]}" r="4" fill="{colour}">'
            f"<title>{escape(line.label)}: {short(value)}</title></circle>"
            for p, value in zip(middle, line.y, strict=True)
        ]
    if line.note:
        place = f'x="{x[0] - 8:.1f}" y="{up(line.y[0]) + 4:.1f}" class="end"'
        parts.append(f"<text {place}>{escape(line.note)}</text>")
    return parts
