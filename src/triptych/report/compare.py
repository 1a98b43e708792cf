"""Before against after: the scores of two evaluations, and pairs of the same prompt and seed.

Scores are shares of what is right, in [0, 1], with intervals at 95%; or they are mean rewards, or minus the
loss, which were not judged right or wrong and have no interval here.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from triptych.evals.collusion import colluding
from triptych.evals.intervals import Interval, combined, paired_change, wilson
from triptych.report.read import Row, number_or_none


class Pair(NamedTuple):
    """One prompt and seed, drawn before and after."""

    before: Row
    after: Row


def judged(evaluation: Row) -> bool:
    """Whether its score is a share of right ones: those are told by tag, too."""
    return "tags" in evaluation


def share_of(entry: Row) -> Interval | None:
    """The score of an evaluation, or of one tag in it; intervals as written, else Wilson's."""
    score, n, low, high = (number_or_none(entry.get(key)) for key in ("score", "n", "low", "high"))
    if score is None:
        return None
    if low is not None and high is not None:
        return Interval(score, low, high)
    if n is None or n < 1 or not 0 <= score <= 1 or ("step" in entry and not judged(entry)):
        return Interval(score, score, score)
    return wilson(score * n, n)


def quiz_of(evaluation: Row) -> dict[str, Interval]:
    """The shares of an evaluation's quiz by name, without those of nothing."""
    rows = evaluation.get("quiz")
    found = rows.items() if isinstance(rows, dict) else ()
    told = {str(name): share_of(row) for name, row in found if isinstance(row, dict) and row.get("n")}
    return {name: share for name, share in told.items() if share}


def pleases_itself(before: Row, after: Row) -> str | None:
    """Why its answers about its own drawings look like collusion; None if they do not, or were not asked."""
    first, last = quiz_of(before), quiz_of(after)
    both = first.keys() & last.keys()
    if not both >= {"self_reward", "shuffled_answers"}:
        return None
    return colluding({name: first[name] for name in both}, last)


def change_between(before: Row, after: Row, pairs: Sequence[Pair]) -> tuple[Interval | None, bool]:
    """Change of the held-out score, and whether it is paired: only if the pairs are all that was scored."""
    first, last = share_of(before), share_of(after)
    if first is None or last is None:
        return None, False
    if pairs and len(pairs) == number_or_none(after.get("n")):
        outcomes = [(p.after.get("task"), p.before["correct"], p.after["correct"]) for p in pairs]
        paired = paired_change(outcomes)
        if abs(paired.value - (last.value - first.value)) < 0.5 / len(pairs):
            return paired, True
    return combined((1, last), (-1, first)), False


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
