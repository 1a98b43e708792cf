"""Line charts and intervals as inline SVG, drawn by hand: no library, no script, colours from the page.

A chart is told everything by value; it knows nothing of runs or metrics. Classes `s0` to `s3` are colours.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

from triptych.report.compare import Interval
from triptych.report.wording import MINUS, number, percent

WIDTH, HEIGHT = 340, 180
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 24
MOST_POINTS = 240
COLOURS = 4

Values = Sequence[float | None]
Formatter = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: x and y of the same length, None where nothing was measured; `low`, `high` give a band."""

    name: str
    x: Sequence[float]
    y: Values
    low: Values = ()
    high: Values = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What to draw. `peaks`: of too many points keep the largest in each place, not the mean."""

    title: str
    note: str
    series: tuple[Series, ...]
    scale: Literal["linear", "log"] = "linear"
    unit: Literal["number", "percent"] = "number"
    from_zero: bool = False
    y_range: tuple[float, float] | None = None
    dots: bool = False
    smooth: bool = False
    peaks: bool = False

    @property
    def write(self) -> Formatter:
        return percent if self.unit == "percent" else number

    @property
    def latest(self) -> str:
        """The last measured value of the first series."""
        known = [y for y in self.series[0].y if y is not None]
        return self.write(known[-1]) if known else ""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps values in [low, high] to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], `most` of them at most."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Whole powers of ten inside [low, high], every second or third one where they are too many."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / most))
    return [10.0**k for k in range(first, last + 1, stride)]


def draw(chart: Chart) -> Markup:
    """The chart as an `<svg>` element, or a sentence where there is nothing to draw."""
    series = [thin(one, chart.peaks) for one in chart.series]
    values = [v for one in series for v in (*one.y, *one.low, *one.high) if v is not None]
    xs = [x for one in series for x in one.x]
    if not values:
        return Markup('<p class="nothing">nothing was measured</p>')
    if chart.scale == "log" and max(values) <= 0:
        return Markup('<p class="nothing">exactly 0 at every step</p>')
    x_axis, y_axis = _x_axis(xs, inset=8 if chart.dots else 0), _y_axis(chart, values)
    parts = [*_grid(x_axis, y_axis, chart.write)]
    for index, one in enumerate(series):
        parts += _series(one, x_axis, y_axis, chart, index % COLOURS)
    label = f"{chart.title}: {_in_words(chart)}"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )


def thin(series: Series, peaks: bool) -> Series:
    """At most MOST_POINTS points: neighbours become their mean, or their largest value."""
    n = len(series.x)
    if n <= MOST_POINTS:
        return series
    bounds = [round(i * n / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    parts = [slice(a, b) for a, b in pairwise(bounds)]

    def merged(values: Values) -> Values:
        return [_merge(values[part], peaks) for part in parts] if values else ()

    x = [series.x[part][-1] for part in parts]
    return Series(name=series.name, x=x, y=merged(series.y), low=merged(series.low), high=merged(series.high))


def moving_mean(values: Values, window: int) -> list[float | None]:
    """Mean of the known values in a centred window, shorter at both ends; None stays None."""
    half = window // 2
    return [
        None if v is None else _merge(values[max(0, i - half) : i + half + 1], peaks=False)
        for i, v in enumerate(values)
    ]


def dumbbell(before: Interval | None, after: Interval | None, width: int = 200) -> Markup:
    """Two values with their intervals on a line from 0 to 100%, `width` x 26 with 6 free at each end."""
    axis = Axis(low=0, high=1, start=6, end=width - 6)
    parts = [Markup('<line class="rail" x1="6" x2="{}" y1="13" y2="13"/>').format(width - 6)]
    for name, y, interval in (("before", 8, before), ("after", 18, after)):
        if interval is not None:
            low, high, middle = (round(axis(v), 1) for v in (interval.low, interval.high, interval.value))
            parts.append(
                Markup(
                    '<g class="{0}"><line x1="{1}" x2="{2}" y1="{4}" y2="{4}"/>'
                    '<circle cx="{3}" cy="{4}" r="4"/></g>'
                ).format(name, low, high, middle, y)
            )
    return Markup('<svg class="dumbbell" viewBox="0 0 {} 26" aria-hidden="true">{}</svg>').format(
        width, Markup("").join(parts)
    )


def _merge(values: Values, peaks: bool) -> float | None:
    known = [v for v in values if v is not None]
    if not known:
        return None
    return max(known) if peaks else sum(known) / len(known)


def _x_axis(xs: Sequence[float], inset: int) -> Axis:
    low, high = min(xs), max(xs)
    if low == high:
        low, high = low - 1, high + 1
    ticks = [t for t in linear_ticks(low, high, 6) if t == round(t)]
    return Axis(low=low, high=high, start=LEFT + inset, end=WIDTH - RIGHT - inset, ticks=ticks)


def _y_axis(chart: Chart, values: Sequence[float]) -> Axis:
    start, end = HEIGHT - BOTTOM, TOP
    if chart.scale == "log":
        positive = [v for v in values if v > 0]
        low = 10.0 ** math.floor(math.log10(min(positive)))
        high = max(10.0 ** math.ceil(math.log10(max(positive))), low * 10)
        return Axis(low=low, high=high, start=start, end=end, log=True, ticks=log_ticks(low, high, 5))
    low, high = chart.y_range or _padded(values, chart)
    return Axis(low=low, high=high, start=start, end=end, ticks=linear_ticks(low, high, 5))


def _padded(values: Sequence[float], chart: Chart) -> tuple[float, float]:
    low, high = min(values), max(values)
    if chart.from_zero and low >= 0:
        return 0.0, high * 1.06 or 1.0
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    if chart.unit == "percent":
        low, high = max(low, 0.0), min(high, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(x_axis: Axis, y_axis: Axis, write: Formatter) -> Iterable[Markup]:
    left, right, bottom = LEFT, WIDTH - RIGHT, y_axis.start
    for tick in y_axis.ticks:
        y = round(y_axis(tick), 1)
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, y, y)
        text = _tick_text(tick, y_axis, write)
        yield Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
            left - 6, round(y + 3.5, 1), text
        )
    for tick in x_axis.ticks:
        yield Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            round(x_axis(tick), 1), bottom + 16, number(tick)
        )
    yield Markup('<line class="base" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, bottom, bottom)


def _tick_text(tick: float, axis: Axis, write: Formatter) -> str:
    if axis.log:
        return f"1e{round(math.log10(tick))}".replace("-", MINUS)
    return write(tick).replace(".0%", "%")


def _series(one: Series, x_axis: Axis, y_axis: Axis, chart: Chart, colour: int) -> Iterable[Markup]:
    x = [round(x_axis(v), 1) for v in one.x]
    y, low, high = (
        [None if v is None else round(y_axis(v), 1) for v in row] for row in (one.y, one.low, one.high)
    )
    known = sum(v is not None for v in y)
    smoothed = chart.smooth and known >= 30
    if low and chart.dots:
        yield _whiskers(x, low, high, colour)
    elif low:
        yield _band(x, low, high, colour)
    if smoothed:
        yield _path(x, y, f"line faint s{colour}")
        means = moving_mean(y, window=max(3, known // 20) | 1)
        y = [None if v is None else round(v, 1) for v in means]
    yield _path(x, y, f"line thin s{colour}" if chart.peaks else f"line s{colour}")
    yield _points(one, x, y, chart, colour, smoothed)


def _runs(x: Sequence[float], *rows: Values) -> Iterable[list[int]]:
    """Indices of neighbours that are known in every row: a gap in the data is a gap in the line."""
    run: list[int] = []
    for i in range(len(x)):
        if all(row[i] is not None for row in rows):
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _path(x: Sequence[float], y: Values, classes: str) -> Markup:
    moves = [" L".join(f"{x[i]:g},{y[i]:g}" for i in run) for run in _runs(x, y) if len(run) > 1]
    return Markup('<path class="{}" d="{}"/>').format(classes, " ".join(f"M{move}" for move in moves))


def _band(x: Sequence[float], low: Values, high: Values, colour: int) -> Markup:
    moves = []
    for run in _runs(x, low, high):
        corners = [f"{x[i]:g},{high[i]:g}" for i in run] + [f"{x[i]:g},{low[i]:g}" for i in reversed(run)]
        moves.append(f"M{' L'.join(corners)} Z")
    return Markup('<path class="band s{}" d="{}"/>').format(colour, " ".join(moves))


def _whiskers(x: Sequence[float], low: Values, high: Values, colour: int) -> Markup:
    lines = " ".join(f"M{x[i]:g},{low[i]:g} V{high[i]:g}" for run in _runs(x, low, high) for i in run)
    return Markup('<path class="whisker s{}" d="{}"/>').format(colour, lines)


def _points(one: Series, x: Sequence[float], y: Values, chart: Chart, colour: int, hidden: bool) -> Markup:
    """Dots: seen where asked for or where a value stands alone, else only there to show it on hovering."""
    alone = {run[0] for run in _runs(x, y) if len(run) == 1}
    dots = []
    for i, (px, py, value) in enumerate(zip(x, y, one.y, strict=True)):
        if py is None or value is None:
            continue
        seen = (chart.dots or i in alone) and not hidden
        dots.append(
            Markup('<circle class="{} s{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                "dot" if seen else "spot", colour, px, py, 3.5 if seen else 5, _hover(one, i, value, chart)
            )
        )
    return Markup("").join(dots)


def _hover(one: Series, i: int, value: float, chart: Chart) -> str:
    text = f"step {one.x[i]:g}: {chart.write(value)}"
    low, high = (row[i] if row else None for row in (one.low, one.high))
    if low is not None and high is not None:
        text += f" ({chart.write(low)} to {chart.write(high)})"
    return text if len(chart.series) == 1 else f"{one.name}, {text}"


def _in_words(chart: Chart) -> str:
    """What a reader who cannot see the curve is told."""
    sentences = []
    for one in chart.series:
        known = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None]
        if known:
            (x0, y0), (x1, y1) = known[0], known[-1]
            first, last = chart.write(y0), chart.write(y1)
            sentences.append(f"{one.name} from {first} at step {x0:g} to {last} at step {x1:g}")
    return "; ".join(sentences)
