"""Differences between arms with intervals, and what they say of a margin that was fixed beforehand.

Pure arithmetic on scores ``[S, N, K]``: seeds, tasks, drawings of each, NaN where there is nothing to score.
Every arm has the same N tasks in the same order, drawn with the same noise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from triptych.evals.intervals import Interval

Scores = np.ndarray[Any, np.dtype[np.float64]]
Verdict = Literal["holds", "fails", "mixed", "unresolved"]
RESAMPLES, CHUNK = 10_000, 1_000


@dataclass(frozen=True)
class Comparison:
    """``left`` less ``right`` in a measure. Several measures: their mean; several on the right: the best.

    Holds where the 95% interval lies above ``margin``, fails where it lies below. With ``within`` it holds
    where the interval lies inside -margin to margin, fails where it lies outside. ``beyond`` names two
    more arms, whose difference is taken off: does one gain exceed another.
    """

    left: str
    right: str | tuple[str, ...]
    measure: str | tuple[str, ...]
    right_measure: str = ""
    margin: float = 0.0
    within: bool = False
    beyond: tuple[str, str] | None = None


@dataclass(frozen=True)
class Finding:
    """A comparison's outcome: seeds pooled, each by itself, and their standard deviation (None of one)."""

    text: str
    effect: Interval
    seeds: tuple[Interval, ...]
    spread: float | None
    verdict: Verdict


def difference(terms: Sequence[tuple[float, Sequence[Scores]]]) -> Interval:
    """The sum of weight times mean (several columns: the mean of their means), and its 95% interval.

    The percentile bootstrap over clusters: tasks are resampled, the same in every term, with all their seeds
    and drawings. NaN where a term has nothing to score; resamples that leave it nothing are left out.
    """
    parts = [(w / len(columns), *_sums(column)) for w, columns in terms for column in columns]
    n, rng = len(parts[0][1]), np.random.default_rng(0)

    def values(counts: Scores) -> Scores:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sum([w * (counts @ total) / (counts @ scored) for w, total, scored in parts], axis=0)

    found = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.integers(0, n, (CHUNK, n)) + n * np.arange(CHUNK)[:, None]
        found.append(values(np.bincount(drawn.ravel(), minlength=CHUNK * n).reshape(CHUNK, n).astype(float)))
    finite = np.concatenate(found)[np.isfinite(np.concatenate(found))]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    return Interval(float(values(np.ones((1, n)))[0]), float(low), float(high))


def _sums(scores: Scores) -> tuple[Scores, Scores]:
    """Of each task: the sum of its scores, and how many there are."""
    return np.nansum(scores, axis=(0, 2)), np.isfinite(scores).sum(axis=(0, 2)).astype(float)


def mean(scores: Scores) -> float:
    """The mean of all that was scored; NaN where nothing was."""
    return float(scores[np.isfinite(scores)].mean()) if np.isfinite(scores).any() else float("nan")


def judge(asked: Comparison, found: Mapping[str, Mapping[str, Scores]]) -> Finding:
    """A comparison's outcome, on the scores of every arm by measure."""
    measures, others = _tuple(asked.measure), _tuple(asked.right_measure or asked.measure)
    rivals = _tuple(asked.right)
    right = max(rivals, key=lambda arm: sum(mean(found[arm][name]) for name in others))
    sides = [(1.0, asked.left, measures), (-1.0, right, others)]
    text = f"{asked.left} - {right}" + f" (best of {len(rivals)})" * (len(rivals) > 1)
    if asked.beyond:
        more, less = asked.beyond
        sides += [(-1.0, more, measures), (1.0, less, measures)]
        text = f"({text}) - ({more} - {less})"
    text += f": {' + '.join(measures)}" + f" against {asked.right_measure}" * bool(asked.right_measure)
    text += f", within {asked.margin:g}" if asked.within else f", above {asked.margin:g}" * bool(asked.margin)
    terms = [(weight, [found[arm][name] for name in names]) for weight, arm, names in sides]
    seeds = max(len(column) for _, columns in terms for column in columns)
    each = [
        difference([(w, [c[[s % len(c)]] for c in columns]) for w, columns in terms]) for s in range(seeds)
    ]
    effect = difference(terms)
    spread = float(np.std([one.value for one in each], ddof=1)) if seeds > 1 else None
    return Finding(text, effect, tuple(each), spread, verdict(effect, asked.margin, asked.within))


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def verdict(effect: Interval, margin: float, within: bool = False) -> Verdict:
    """What an interval says, see :class:`Comparison`; "unresolved" where it holds the margin, or is NaN."""
    _, low, high = effect
    holds, fails = low > margin, high < margin
    if within:
        holds, fails = -margin < low and high < margin, low > margin or high < -margin
    return "holds" if holds else "fails" if fails else "unresolved"


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """A claim's verdict: that of all its comparisons, or "mixed" where some hold and some fail."""
    told = set(verdicts)
    return told.pop() if len(told) == 1 else "mixed" if {"holds", "fails"} <= told else "unresolved"
