"""Shares with 95% intervals: one share, sums of independent ones, the change of paired ones.

Pure arithmetic on counts, for evaluations and reports alike; it must not know what was counted.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, float], name: str = "score") -> Self:
        """From a row of a report, in which the value has a name."""
        return cls(row[name], row["low"], row["high"])

    def row(self, name: str = "score") -> dict[str, float]:
        """As a row of a report, the value under a name."""
        return {name: self.value, "low": self.low, "high": self.high}


def wilson(successes: float, n: float) -> Interval:
    """Wilson's score interval of a share (1927): inside [0, 1], honest at both ends; 0 to 1 where n is 0."""
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    p, z = successes / n, Z95
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(centre - half, 0.0), min(centre + half, 1.0))


def share(successes: float, n: float) -> dict[str, float]:
    """A share as a row for reports: n, score, and Wilson's low and high."""
    return {"n": n, **wilson(successes, n).row()}


def combined(*terms: tuple[float, Interval]) -> Interval:
    """The sum of weight times value over independent shares, by MOVER (Zou and Donner, 2008).

    With weights 1 and -1 and Wilson's intervals it is Newcombe's method 10 for a difference (1998).
    """
    value = math.fsum(weight * share.value for weight, share in terms)
    ends = [(weight, share.value, *sorted(share[1:], reverse=weight < 0)) for weight, share in terms]
    below = math.hypot(*(weight * (middle - low) for weight, middle, low, _ in ends))
    above = math.hypot(*(weight * (high - middle) for weight, middle, _, high in ends))
    return Interval(value, value - below, value + above)


def mean_row(rows: Sequence[Mapping[str, float]], name: str = "score") -> dict[str, float]:
    """The mean of groups' rows, with n of all of them, and of ``name`` the interval by :func:`combined`."""
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    interval = combined(*((1 / len(rows), Interval.of(row, name)) for row in rows))
    return {**means, "n": sum(row["n"] for row in rows), **interval.row(name)}


def paired_change(outcomes: Sequence[tuple[object, bool, bool]]) -> Interval:
    """Change of a share between two times, from (task, right before, right after) of each drawing.

    One drawing a task: the adjusted Wald interval of Bonett and Price (2012), from the pairs that
    changed. Several drawings of a task are not independent: then a normal interval over tasks.
    """
    changes: dict[object, list[int]] = defaultdict(list)
    for task, before, after in outcomes:
        changes[task].append(int(after) - int(before))
    n = len(outcomes)
    value = sum(map(sum, changes.values())) / n
    if len(changes) == n:
        gained, lost = ((sum(c == [sign] for c in changes.values()) + 1) / (n + 2) for sign in (1, -1))
        centre, half = gained - lost, Z95 * math.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    else:
        residuals = [sum(change) - value * len(change) for change in changes.values()]
        centre, half = value, Z95 * math.sqrt(sum(r * r for r in residuals)) / n
    return Interval(value, max(-1.0, centre - half), min(1.0, centre + half))
