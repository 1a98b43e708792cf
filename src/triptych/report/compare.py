"""Before against after: intervals of shares, and pairs of the same prompt and seed.

Scores are shares of correct drawings in [0, 1]. Every interval is at 95%.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

from triptych.evals.geneval import wilson
from triptych.report.read import Row, number_or_none

Z95 = 1.959964


class Interval(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


class Pair(NamedTuple):
    """One prompt and seed, drawn before and after."""

    before: Row
    after: Row


def share_of(entry: Row) -> Interval | None:
    """The score of an evaluation, or of one tag in it; intervals as written, else Wilson's."""
    score, n, low, high = (number_or_none(entry.get(key)) for key in ("score", "n", "low", "high"))
    if score is None:
        return None
    if low is not None and high is not None:
        return Interval(score, low, high)
    if n is None or n < 1 or not 0 <= score <= 1:
        return Interval(score, score, score)
    return Interval(score, *wilson(score * n, n))


def unpaired_change(before: Interval, after: Interval) -> Interval:
    """Difference of two independent shares from their Wilson intervals (Newcombe 1998, method 10)."""
    change = after.value - before.value
    below = math.hypot(after.value - after.low, before.high - before.value)
    above = math.hypot(after.high - after.value, before.value - before.low)
    return Interval(change, change - below, change + above)


def paired_change(pairs: Sequence[Pair]) -> Interval:
    """Change of the share correct over the same prompts and seeds.

    One drawing a prompt: the adjusted Wald interval of Bonett and Price (2012), from the pairs that
    changed. Several drawings of a prompt are not independent: then a normal interval over prompts.
    """
    changes: dict[object, list[int]] = defaultdict(list)
    for pair in pairs:
        changes[pair.after.get("task")].append(int(pair.after["correct"]) - int(pair.before["correct"]))
    n = len(pairs)
    value = sum(chain.from_iterable(changes.values())) / n
    if len(changes) == n:
        gained, lost = ((sum(c == [sign] for c in changes.values()) + 1) / (n + 2) for sign in (1, -1))
        centre, half = gained - lost, Z95 * math.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    else:
        residuals = [sum(change) - value * len(change) for change in changes.values()]
        centre, half = value, Z95 * math.sqrt(sum(r * r for r in residuals)) / n
    return Interval(value, max(-1.0, centre - half), min(1.0, centre + half))


def change_between(before: Row, after: Row, pairs: Sequence[Pair]) -> tuple[Interval | None, bool]:
    """Change of the held-out score, and whether it is paired: only if the pairs are all that was scored."""
    first, last = share_of(before), share_of(after)
    if first is None or last is None:
        return None, False
    if pairs and len(pairs) == number_or_none(after.get("n")):
        paired = paired_change(pairs)
        if abs(paired.value - (last.value - first.value)) < 0.5 / len(pairs):
            return paired, True
    return unpaired_change(first, last), False


def pair_up(before: Iterable[Row], after: Iterable[Row]) -> list[Pair]:
    """Matches the k-th drawing of a task with the k-th; rows without a verdict have no pair."""
    waiting: dict[object, list[Row]] = defaultdict(list)
    for row in before:
        waiting[row.get("task")].append(row)
    pairs = [Pair(same.pop(0), row) for row in after if (same := waiting[row.get("task")])]
    return [pair for pair in pairs if all(isinstance(row.get("correct"), bool) for row in pair)]


def one_of_each_tag(pairs: Iterable[Pair]) -> list[Pair]:
    """The same pairs, in turn from each tag, each tag in the run's own order: a choice nobody made by eye."""
    by_tag: dict[object, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_tag[pair.after.get("tag")].append(pair)
    return [pair for turn in zip_longest(*by_tag.values()) for pair in turn if pair is not None]
