"""Before against after: intervals, pairs of the same prompt and seed, and the tables made of them.

Scores are shares of correct drawings in [0, 1]. Every interval is at 95%.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from triptych.report.read import Row, number_or_none

Z95 = 1.959964

# (heading, what it means, correct before, correct after, how many to show at most)
OUTCOMES = (
    ("Mended", "wrong before, right after", False, True, 12),
    ("Spoiled", "right before, wrong after", True, False, 8),
    ("Still wrong", "wrong both times", False, False, 8),
    ("Right both times", "nothing to mend", True, True, 4),
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt and seed, drawn before and after."""

    before: Row
    after: Row


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All pairs that went the same way, and the few that are shown."""

    heading: str
    meaning: str
    count: int
    shown: list[Pair]


def wilson(share: float, n: int) -> Interval:
    """Score interval of a share out of n (Wilson 1927): stays inside [0, 1] and is honest at 0 and 1."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return Interval(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def unpaired_change(before: Interval, after: Interval) -> Interval:
    """Difference of two independent shares from their Wilson intervals (Newcombe 1998, method 10)."""
    change = after.value - before.value
    below = math.hypot(after.value - after.low, before.high - before.value)
    above = math.hypot(after.high - after.value, before.value - before.low)
    return Interval(value=change, low=change - below, high=change + above)


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
        gained = (sum(change == [1] for change in changes.values()) + 1) / (n + 2)
        lost = (sum(change == [-1] for change in changes.values()) + 1) / (n + 2)
        centre, half = gained - lost, Z95 * math.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    else:
        residuals = [sum(change) - value * len(change) for change in changes.values()]
        centre, half = value, Z95 * math.sqrt(sum(r * r for r in residuals)) / n
    return Interval(value=value, low=max(-1.0, centre - half), high=min(1.0, centre + half))


def share_of(entry: Row) -> Interval | None:
    """The score of an evaluation, or of one tag in it; intervals as written, else Wilson's."""
    score, n = number_or_none(entry.get("score")), number_or_none(entry.get("n"))
    if score is None:
        return None
    low, high = number_or_none(entry.get("low")), number_or_none(entry.get("high"))
    if low is not None and high is not None:
        return Interval(value=score, low=low, high=high)
    if n is None or n < 1 or not 0 <= score <= 1:
        return Interval(value=score, low=score, high=score)
    return wilson(score, int(n))


def pair_up(before: Iterable[Row], after: Iterable[Row]) -> list[Pair]:
    """Matches the k-th drawing of a task with the k-th; rows without a verdict have no pair."""
    waiting: dict[object, list[Row]] = defaultdict(list)
    for row in before:
        waiting[row.get("task")].append(row)
    pairs = []
    for row in after:
        if waiting[row.get("task")]:
            pairs.append(Pair(before=waiting[row.get("task")].pop(0), after=row))
    return [p for p in pairs if isinstance(p.before.get("correct"), bool) and _has_verdict(p.after)]


def _has_verdict(row: Row) -> bool:
    return isinstance(row.get("correct"), bool)


def outcomes(pairs: Sequence[Pair]) -> list[Outcome]:
    """The four ways a pair can go, those that changed first."""
    found = []
    for heading, meaning, was, now, limit in OUTCOMES:
        alike = [p for p in pairs if p.before["correct"] is was and p.after["correct"] is now]
        shown = one_of_each_tag(alike)[:limit]
        found.append(Outcome(heading=heading, meaning=meaning, count=len(alike), shown=shown))
    return found


def one_of_each_tag(pairs: Iterable[Pair]) -> list[Pair]:
    """The same pairs, in turn from each tag, each tag in the run's own order: a choice nobody made by eye."""
    by_tag: dict[object, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_tag[pair.after.get("tag")].append(pair)
    turns = zip_longest(*by_tag.values())
    return [pair for turn in turns for pair in turn if pair is not None]


def change_between(before: Row, after: Row, pairs: Sequence[Pair]) -> tuple[Interval, bool] | None:
    """Change of the held-out score, and whether it is paired: only if the pairs are all that was scored."""
    first, last = share_of(before), share_of(after)
    if first is None or last is None:
        return None
    if pairs and len(pairs) == number_or_none(after.get("n")):
        paired = paired_change(pairs)
        if abs(paired.value - (last.value - first.value)) < 0.5 / len(pairs):
            return paired, True
    return unpaired_change(first, last), False
