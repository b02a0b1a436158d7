"""Curves and intervals as small inline SVG, drawn by hand.

They take their colours and fonts from the page (light, dark, print), hold real text, and are a few
kB each: matplotlib's SVG of the same curve is ten times as large and can do none of it. A chart is
drawn for a width of 360 px, as on a phone, and pages lay several side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from dino_x.report.hover import curve_data

WIDTH, HEIGHT = 360, 212
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 18, 34
STYLES = 6  # colours and dashes of lines, see style.css: the dash tells lines apart without colour
MOST_POINTS = 240  # a line has at most so many; of more, means and extremes of equal parts
LOG_SPAN = 30  # a positive curve whose largest value is so many times its smallest is logarithmic


@dataclass(frozen=True)
class PlotLine:
    """One curve: its name and its points, equally long, x ascending."""

    label: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class MarkedSteps:
    """A stretch of steps that has a number in the text: from a step to another, or to the end."""

    number: int
    start: float
    end: float | None = None


@dataclass(frozen=True)
class Chart:
    """What is drawn in one frame.

    Attributes:
        title: a few words.
        lines: at most `STYLES`.
        reference: a value to compare with and its name, or None.
        marks: stretches that the text speaks of.
        logarithmic: the y axis; None for by rule (`LOG_SPAN`).
        bounds: of the y axis at least, such as (0, 1); wider if the lines are.
        described_by: id of the element that says in words what is seen.
        styles: of each line, 0 to `STYLES` - 1; None for 0, 1, 2, ...
        unit: of the y axis, such as GiB; empty for a number without one.
    """

    title: str
    lines: Sequence[PlotLine]
    reference: tuple[float, str] | None = None
    marks: Sequence[MarkedSteps] = ()
    logarithmic: bool | None = None
    bounds: tuple[float, float] | None = None
    x_label: str = "step"
    described_by: str = ""
    styles: Sequence[int] | None = None
    unit: str = ""


def number(value: float) -> str:
    """A number for people, to 3 digits.

    >>> [number(x) for x in (0, 0.00123456, 5.5452, 256.2, 1702, 1e-7, 2.5e6)]
    ['0', '0.00123', '5.55', '256', '1,702', '1e-07', '2.5e+06']
    """
    if 100 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def three_digits(value: float) -> str:
    """A number in a text or a table: 3 digits, zeros at the end too.

    >>> [three_digits(x) for x in (4.7, 0.25, 256.2, 1e-7, 0)]
    ['4.70', '0.250', '256', '1e-07', '0']
    """
    return f"{value:#.3g}" if 1e-4 <= abs(value) < 99.95 else number(value)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.13, 0.92), ticks(1, 82)
    ([0.2, 0.4, 0.6, 0.8], [20.0, 40.0, 60.0, 80.0])
    """
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, thinned to 5; of a short span 1, 2 and 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**exponent for exponent in range(first, last + 1)]
    inside = [power for power in powers if low <= power <= high]
    if len(inside) >= 2:
        return inside[:: math.ceil(len(inside) / 5)]
    fine = [m * power for power in powers for m in (1, 2, 5)]
    return [tick for tick in fine if low <= tick <= high]


def thin(line: PlotLine) -> tuple[PlotLine, np.ndarray | None]:
    """A line of at most `MOST_POINTS`: means of equal parts, and their [low, high], or None."""
    if len(line.x) <= MOST_POINTS:
        return line, None
    x_parts = np.array_split(line.x, MOST_POINTS)
    y_parts = np.array_split(line.y, MOST_POINTS)
    x = np.array([part.mean() for part in x_parts])
    y = np.array([part.mean() for part in y_parts])
    extremes = np.array([(part.min(), part.max()) for part in y_parts])
    return PlotLine(line.label, x, y), extremes


def draw(chart: Chart) -> str:
    """The chart as an ``<svg>`` element.

    Raises: ValueError for a chart without points, or with more lines than styles.
    """
    fewest = min((len(line.x) for line in chart.lines), default=0)
    if fewest == 0 or len(chart.lines) > STYLES:
        raise ValueError(f"{chart.title}: {len(chart.lines)} lines, of 1 to {STYLES} with points")
    frame = Frame.around(chart)
    described = f' aria-describedby="{chart.described_by}"' if chart.described_by else ""
    styles = range(len(chart.lines)) if chart.styles is None else chart.styles
    thinned = [thin(line)[0] for line in chart.lines]
    named = [(n.label, style, n.x, n.y) for style, n in zip(styles, thinned, strict=True)]
    data = curve_data(named, frame.numbers, chart.x_label, chart.unit)
    title = f"Chart: {chart.title}" + (f", {chart.unit}" if chart.unit else "")
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0"'
        f' aria-label="{escape(title)}"{described}{data}>',
        *_axes(frame, chart),
        *_marks(frame, chart.marks),
        *_reference(frame, chart.reference),
    ]
    for style, line in zip(styles, chart.lines, strict=True):
        parts += _line(frame, line, style)
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class Frame:
    """From values to places in the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    logarithmic: bool

    @property
    def numbers(self) -> list[float]:
        """Where the frame is in pixels, and its values, for `hover.curve_data`."""
        pixels = [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM]
        return [
            *pixels, self.x_low, self.x_high, self.y_low, self.y_high, float(self.logarithmic),
        ]  # fmt: skip

    @classmethod
    def around(cls, chart: Chart) -> "Frame":
        """The frame that holds all lines, the reference and the bounds."""
        x = np.concatenate([line.x for line in chart.lines]).astype(float)
        y = np.concatenate([line.y for line in chart.lines]).astype(float)
        x_low, x_high = float(x.min()), float(x.max())
        if x_low == x_high:
            x_low, x_high = x_low - 0.5, x_high + 0.5
        logarithmic = _is_logarithmic(chart, y)
        shown = [float(y.min()), float(y.max()), *(chart.bounds or ())]
        if chart.reference is not None:
            shown.append(chart.reference[0])
        if logarithmic:
            positive = [value for value in shown if value > 0]
            return cls(x_low, x_high, min(positive) / 1.3, max(positive) * 1.3, True)
        low, high = min(shown), max(shown)
        if (low, high) != chart.bounds:
            low, high = _with_room(low, high)
        return cls(x_low, x_high, low, high, False)

    def x(self, values: np.ndarray | float) -> np.ndarray:
        """Pixels from the left."""
        share = (np.asarray(values, dtype=float) - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, values: np.ndarray | float) -> np.ndarray:
        """Pixels from the top."""
        array, low, high = np.asarray(values, dtype=float), self.y_low, self.y_high
        if self.logarithmic:
            array, low, high = np.log(array), math.log(low), math.log(high)
        return np.asarray(HEIGHT - BOTTOM - (array - low) / (high - low) * (HEIGHT - TOP - BOTTOM))


def _axes(frame: Frame, chart: Chart) -> list[str]:
    vertical = log_ticks if frame.logarithmic else ticks
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in vertical(frame.y_low, frame.y_high):
        y = float(frame.y(value))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value in ticks(frame.x_low, frame.x_high, most=6):
        x = float(frame.x(value))
        anchor = "end" if x > right - 14 else "middle"
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(
            f'<text x="{min(x, right):.1f}" y="{bottom + 16}" text-anchor="{anchor}">'
            f"{number(value)}</text>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    note = f"{chart.x_label} (y axis logarithmic)" if frame.logarithmic else chart.x_label
    parts.append(
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(note)}</text>"
    )
    return parts


def _marks(frame: Frame, marks: Sequence[MarkedSteps]) -> list[str]:
    parts = []
    for mark in marks:
        start = float(np.clip(frame.x(mark.start), LEFT, WIDTH - RIGHT))
        end = WIDTH - RIGHT if mark.end is None else float(frame.x(mark.end))
        width = max(min(end, WIDTH - RIGHT) - start, 1.5)
        parts.append(
            f'<rect class="stretch" x="{start:.1f}" y="{TOP}" width="{width:.1f}"'
            f' height="{HEIGHT - TOP - BOTTOM}"/>'
            f'<path class="mark" d="M{start:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
            f'<circle class="mark-dot" cx="{start:.1f}" cy="{TOP - 8}" r="8"/>'
            f'<text class="mark-number" x="{start:.1f}" y="{TOP - 4}" text-anchor="middle">'
            f"{mark.number}</text>"
        )
    return parts


def _reference(frame: Frame, reference: tuple[float, str] | None) -> list[str]:
    if reference is None or (frame.logarithmic and reference[0] <= 0):
        return []
    y = float(frame.y(reference[0]))
    above = y - 4 if y - 4 > TOP + 8 else y + 13
    return [
        f'<path class="reference" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="reference-label" x="{WIDTH - RIGHT - 2}" y="{above:.1f}" text-anchor="end">'
        f"{escape(reference[1])}</text>"
    ]


def _with_room(low: float, high: float) -> tuple[float, float]:
    """A range with some room at its ends, but none below 0."""
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low - room if low != 0 else low), high + room


def _is_logarithmic(chart: Chart, y: np.ndarray) -> bool:
    """What the chart asks for; else whether its values span orders of magnitude."""
    if chart.logarithmic is not None:
        return chart.logarithmic
    low, high = float(y.min()), float(y.max())
    return chart.bounds is None and low > 0 and high > LOG_SPAN * low


def _line(frame: Frame, line: PlotLine, style: int) -> list[str]:
    if len(line.x) == 1:
        x, y = float(frame.x(line.x[0])), float(frame.y(line.y[0]))
        return [f'<circle class="dot s{style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>']
    thinned, extremes = thin(line)
    parts = []
    if extremes is not None:
        there_and_back = np.concatenate([thinned.x, thinned.x[::-1]])
        outline = np.concatenate([extremes[:, 1], extremes[::-1, 0]])
        band = _path(frame, there_and_back, outline)
        parts.append(f'<path class="band s{style}" d="{band}Z"/>')
    path = _path(frame, thinned.x, thinned.y)
    return [*parts, f'<path class="line s{style}" d="{path}"/>']


def _path(frame: Frame, x: np.ndarray, y: np.ndarray) -> str:
    points = zip(frame.x(x), frame.y(y), strict=True)
    return "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in points)


@dataclass(frozen=True)
class Scale:
    """The common axis of a table's intervals, in the units of the figures."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> "Scale":
        """From the smallest to the largest, with some room, in tenths of their span."""
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05
        return cls(low - room, high + room)

    def place(self, value: float) -> float:
        """Pixels from the left of 160."""
        return 8 + 144 * (value - self.low) / (self.high - self.low)


def interval(
    scale: Scale, value: float, low: float | None, high: float | None, *, main: bool
) -> str:
    """A dot with its interval, for a table's cell; the numbers stand in the cell beside it."""
    kind = "main" if main else "other"
    x = scale.place(value)
    parts = ['<svg class="interval" viewBox="0 0 160 22" aria-hidden="true" focusable="false">']
    parts += [
        f'<path class="grid" d="M{scale.place(t):.1f} 0V22"/>' for t in ticks(scale.low, scale.high)
    ]
    if low is not None and high is not None:
        a, b = scale.place(low), scale.place(high)
        parts.append(
            f'<path class="whisker {kind}" d="M{a:.1f} 7v8M{a:.1f} 11H{b:.1f}M{b:.1f} 7v8"/>'
        )
    if main:
        parts.append(f'<circle class="point main" cx="{x:.1f}" cy="11" r="5"/>')
    else:
        parts.append(f'<path class="point other" d="M{x:.1f} 6l5 5l-5 5l-5-5Z"/>')
    return "".join([*parts, "</svg>"])


def interval_axis(scale: Scale) -> list[tuple[float, str]]:
    """The axis below a table's intervals: (place in percent of their width, number).

    Not part of a picture, as its text would shrink with it on a phone.
    """
    values = ticks(scale.low, scale.high)
    values = values[::2] if len(values) > 3 else values
    return [(scale.place(value) / 1.6, number(value)) for value in values]


def sample(style: int) -> str:
    """A short piece of a line, for a legend."""
    return (
        '<svg class="sample" viewBox="0 0 30 10" aria-hidden="true" focusable="false">'
        f'<path class="line s{style}" d="M1 5H29"/></svg>'
    )
