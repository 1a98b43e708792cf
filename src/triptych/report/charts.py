"""Line charts as coordinates: what `chart.svg.j2` draws, without a library or a script.

A chart is told everything by value; it knows nothing of runs or metrics.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from triptych.report.read import Values
from triptych.report.wording import MINUS, number, percent

WIDTH, HEIGHT = 340, 180
LEFT, RIGHT, TOP, FOOT = 46, WIDTH - 12, 10, HEIGHT - 24
MOST_POINTS = 240


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: x ``[N]`` and y ``[1, N]``, or ``[3, N]`` with a band: value, low, high; NaN is a gap."""

    name: str
    x: Values
    y: Values


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What to draw. Of too many points, "peaks" keeps the largest in each place, all else the mean."""

    title: str
    note: str = ""
    series: tuple[Series, ...] = ()
    write: Callable[[float], str] = number
    log: bool = False
    from_zero: bool = False
    y_range: tuple[float, float] | None = None
    style: Literal["smooth", "dots", "peaks"] = "smooth"

    @property
    def latest(self) -> str:
        """The last measured value of the first series."""
        known = self.series[0].y[0][np.isfinite(self.series[0].y[0])]
        return self.write(known[-1]) if known.size else ""


def layout(chart: Chart) -> dict[str, Any]:
    """Where everything of a chart goes, in pixels; only ``nothing`` (why) where there is nothing to draw."""
    series = [thin(one, chart.style == "peaks") for one in chart.series]
    values = np.concatenate([one.y[np.isfinite(one.y)] for one in series])
    if not values.size:
        return {"nothing": "nothing was measured"}
    if chart.log and values.max() <= 0:
        return {"nothing": "exactly 0 at every step"}
    low, high = _y_limits(chart, values)
    x = np.concatenate([one.x for one in series])
    x_ends = (x.min(), x.max()) if x.min() < x.max() else (x[0] - 1, x[0] + 1)
    inset = 8 if chart.style == "dots" else 0

    def at_x(x: Values | list[float]) -> Values:
        return np.interp(x, x_ends, (LEFT + inset, RIGHT - inset)).round(1)

    def at_y(y: Values | list[float]) -> Values:
        return np.interp(y, (low, high), (FOOT, TOP)).round(1)

    def line(one: Series) -> dict[str, Any]:
        y = np.log10(np.maximum(one.y, 10.0**low)) if chart.log else one.y  # zeros lie at the foot
        return _line(chart, one, at_x(one.x), at_y(y))

    x_ticks, y_ticks = ticks(*x_ends, most=6, whole=True), ticks(low, high, most=5, whole=chart.log)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": RIGHT,
        "foot": FOOT,
        "x_ticks": list(zip(at_x(x_ticks), map(number, x_ticks), strict=True)),
        "y_ticks": list(zip(at_y(y_ticks), _words(chart, y_ticks), strict=True)),
        "lines": [line(one) for one in series],
        "told": "; ".join(filter(None, (_told(chart, one) for one in series))),
    }


def thin(one: Series, peaks: bool) -> Series:
    """At most MOST_POINTS points: neighbours become their mean, or their largest value."""
    if len(one.x) <= MOST_POINTS:
        return one
    ends = np.linspace(0, len(one.x), MOST_POINTS + 1).round().astype(int)
    parts = [slice(a, b) for a, b in pairwise(ends)]
    how = np.max if peaks else np.mean
    y = np.array([[_merged(row[part], how) for part in parts] for row in one.y])
    return replace(one, x=one.x[ends[1:] - 1], y=y)


def moving_mean(values: Values, window: int) -> Values:
    """Mean of the known values in a centred window, shorter at both ends; a gap stays a gap."""
    half = window // 2
    means = [_merged(values[max(0, i - half) : i + half + 1], np.mean) for i in range(len(values))]
    return np.where(np.isfinite(values), means, np.nan)


def _merged(values: Values, how: Callable[[Values], float]) -> float:
    known = values[np.isfinite(values)]
    return how(known) if known.size else math.nan


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], `most` of them at most.

    ``whole``: no fractions.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = max(factor * power, 1.0) if whole else factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [k * step for k in range(first, last + 1)]


def _y_limits(chart: Chart, values: Values) -> tuple[float, float]:
    """What the axis spans; powers of ten where it is logarithmic."""
    if chart.y_range:
        return chart.y_range
    if chart.log:
        positive = np.log10(values[values > 0])
        low = math.floor(positive.min())
        return low, max(math.ceil(positive.max()), low + 1)
    low, high = float(values.min()), float(values.max())
    if chart.from_zero and low >= 0:
        return 0.0, high * 1.06 or 1.0
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    return (max(low, 0.0), min(high, 1.0)) if chart.write is percent else (low, high)


def _words(chart: Chart, y_ticks: list[float]) -> list[str]:
    if chart.log:
        return [f"1e{exponent:.0f}".replace("-", MINUS) for exponent in y_ticks]
    return [chart.write(tick).replace(".0%", "%") for tick in y_ticks]


def _line(chart: Chart, one: Series, x: Values, y: Values) -> dict[str, Any]:
    """Its paths, (class, d) each, and its dots: some are seen, the others are there to be pointed at."""
    middle, *band = y
    paths = []
    if band and chart.style == "dots":
        marks = (f"M{x[i]:g},{band[0][i]:g} V{band[1][i]:g}" for run in _runs(*band) for i in run)
        paths.append(("whisker", " ".join(marks)))
    elif band:
        low, high = band
        areas = ((_moves(x[i], high[i]), _moves(x[i[::-1]], low[i[::-1]])) for i in _runs(low, high))
        paths.append(("band", " ".join(f"M{top} L{foot} Z" for top, foot in areas)))
    known = np.flatnonzero(np.isfinite(middle)).tolist()
    smoothed = chart.style == "smooth" and len(known) >= 30
    if smoothed:
        paths.append(("line faint", _path(x, middle)))
        middle = moving_mean(middle, window=max(3, len(known) // 20) | 1).round(1)
    paths.append(("line thin" if chart.style == "peaks" else "line", _path(x, middle)))
    alone = {run[0] for run in _runs(middle) if len(run) == 1}
    dots = [
        (x[i], middle[i], chart.style == "dots" or (i in alone and not smoothed), _hover(chart, one, i))
        for i in known
    ]
    return {"paths": paths, "dots": dots}


def _path(x: Values, y: Values) -> str:
    return " ".join(f"M{_moves(x[run], y[run])}" for run in _runs(y) if len(run) > 1)


def _moves(x: Values, y: Values) -> str:
    return " L".join(f"{a:g},{b:g}" for a, b in zip(x, y, strict=True))


def _runs(*rows: Values) -> list[NDArray[np.intp]]:
    """Indices of neighbours that are known in every row: a gap in the data is a gap in the line."""
    known = np.flatnonzero(np.isfinite(rows).all(axis=0))
    return [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if run.size]


def _hover(chart: Chart, one: Series, i: int) -> str:
    value, *band = one.y[:, i]
    text = f"step {one.x[i]:g}: {chart.write(value)}"
    if band and np.isfinite(band).all():
        text += f" ({chart.write(band[0])} to {chart.write(band[1])})"
    return text if len(chart.series) == 1 else f"{one.name}, {text}"


def _told(chart: Chart, one: Series) -> str:
    """What a reader who cannot see the curve is told."""
    known = np.flatnonzero(np.isfinite(one.y[0])).tolist()
    ends = [f"{chart.write(one.y[0, i])} at step {one.x[i]:g}" for i in (*known[:1], *known[-1:])]
    return f"{one.name} from {' to '.join(ends)}" if ends else ""
