"""Verdicts on constructed scores: every rule, and the bootstrap against a closed form and a direct one."""

import math
from typing import Any

import numpy as np
import pytest

from triptych.claims.verdicts import (
    Comparison,
    Scores,
    Verdict,
    difference,
    judge,
    mean,
    overall,
    verdict,
)
from triptych.evals.intervals import Z95, Interval

RNG = np.random.default_rng(5)
N = 400


def scores(p: float, seeds: int = 1, drawings: int = 4, spread: float = 0.0) -> Scores:
    """Right or wrong drawings; ``spread`` makes some tasks harder than others."""
    hard = np.clip(p + spread * RNG.standard_normal((1, N, 1)), 0, 1)
    return (RNG.random((seeds, N, drawings)) < hard).astype(float)


def test_the_interval_of_a_mean_is_the_closed_form_over_clusters() -> None:
    one = scores(0.5, seeds=3, spread=0.3)
    found = difference([(1.0, [one])])
    by_task = one.mean(axis=(0, 2))
    half = Z95 * by_task.std() / math.sqrt(N)
    assert found.value == pytest.approx(one.mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)
    as_if_independent = Z95 * one.std() / math.sqrt(one.size)
    assert half > 1.5 * as_if_independent, "drawings of a task are not independent here"


def test_the_same_tasks_are_resampled_in_every_term_and_column() -> None:
    left, right, other = (scores(p, spread=0.3) for p in (0.6, 0.5, 0.3))
    other[0, ::3] = np.nan  # tasks without a score, and some drawings
    other[0, 1::3, 2:] = np.nan
    rng, values = np.random.default_rng(9), []
    for _ in range(4000):
        tasks = rng.integers(0, N, N)
        a, b, c = (x[:, tasks] for x in (left, right, other))
        values.append((a.mean() + np.nanmean(c)) / 2 - b.mean())
    found = difference([(1.0, [left, other]), (-1.0, [right])])
    low, high = np.quantile(values, [0.025, 0.975])
    width = high - low
    assert found.value == pytest.approx((left.mean() + np.nanmean(other)) / 2 - right.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * width)


def test_pairs_of_one_difficulty_give_a_narrow_interval() -> None:
    right = scores(0.5, spread=0.5)
    left = np.where((np.arange(N) % 10 == 0)[None, :, None], 1.0, right)
    paired = difference([(1.0, [left]), (-1.0, [right])])
    apart = difference([(1.0, [left]), (-1.0, [right[:, ::-1]])])
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("low", "high", "margin", "within", "expected"),
    [
        (0.01, 0.2, 0.0, False, "holds"),
        (-0.2, -0.01, 0.0, False, "fails"),
        (-0.01, 0.2, 0.0, False, "unresolved"),
        (0.01, 0.2, 0.05, False, "unresolved"),
        (0.01, 0.04, 0.05, False, "fails"),
        (-0.008, 0.01, -0.01, False, "holds"),
        (-0.012, 0.01, -0.01, False, "unresolved"),
        (-0.05, -0.02, -0.01, False, "fails"),
        (-0.015, 0.019, 0.02, True, "holds"),
        (-0.015, 0.021, 0.02, True, "unresolved"),
        (-0.03, 0.03, 0.02, True, "unresolved"),
        (0.021, 0.03, 0.02, True, "fails"),
        (-0.04, -0.021, 0.02, True, "fails"),
        (0.0, 0.0, 0.0, False, "unresolved"),
        (math.nan, math.nan, 0.0, False, "unresolved"),
        (math.nan, math.nan, 0.1, True, "unresolved"),
    ],
)
def test_what_an_interval_says_of_a_margin(
    low: float, high: float, margin: float, within: bool, expected: Verdict
) -> None:
    assert verdict(Interval((low + high) / 2, low, high), margin, within) == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (["holds", "holds"], "holds"),
        (["fails", "fails"], "fails"),
        (["holds", "fails"], "mixed"),
        (["holds", "fails", "unresolved"], "mixed"),
        (["holds", "unresolved"], "unresolved"),
        (["fails", "unresolved"], "unresolved"),
    ],
)
def test_a_claim_holds_where_all_of_it_does(told: list[Verdict], expected: Verdict) -> None:
    assert overall(told) == expected


FOUND: dict[str, dict[str, Scores]] = {
    "starter": {"right": scores(0.4), "wrong": scores(0.2)},
    "RL": {"right": scores(0.6, seeds=3), "wrong": scores(0.1, seeds=3)},
    "one": {"right": scores(0.45), "wrong": scores(0.2)},
    "two": {"right": scores(0.5), "wrong": scores(0.2)},
    "same": {"right": scores(0.6, seeds=3), "wrong": scores(0.2, seeds=3)},
    "empty": {"right": np.full((1, N, 4), np.nan), "wrong": scores(0.2)},
}


@pytest.mark.parametrize(
    ("asked", "effect", "told"),
    [
        (("RL", "starter", "right"), 0.2, "holds"),
        (("starter", "RL", "right"), -0.2, "fails"),
        (("RL", "same", "right"), 0.0, "unresolved"),
        (("RL", "starter", ("right", "wrong")), 0.05, "holds"),
        (("RL", "starter", "right", "wrong"), 0.4, "holds"),
        (("RL", ("one", "two", "starter"), "right"), 0.1, "holds"),
        (("RL", "same", "right", "", 0.05, True), 0.0, "holds"),
        (("RL", "starter", "right", "", 0.05, True), 0.2, "fails"),
        (("two", "one", "right", "", 0.0, False, ("one", "starter")), 0.0, "unresolved"),
        (("RL", "one", "right", "", 0.0, False, ("one", "starter")), 0.1, "holds"),
        (("RL", "empty", "right"), math.nan, "unresolved"),
    ],
)
def test_comparisons(asked: Any, effect: float, told: Verdict) -> None:
    found = judge(Comparison(*asked), FOUND)
    assert found.verdict == told
    assert found.effect.value == pytest.approx(effect, abs=0.05, nan_ok=True)
    assert len(found.seeds) == (3 if "RL" in asked[:2] else 1)


def test_seeds_stand_beside_what_is_pooled() -> None:
    left, right = FOUND["RL"]["right"], FOUND["starter"]["right"]
    found = judge(Comparison("RL", "starter", "right"), FOUND)
    gains = [float(left[s].mean() - right.mean()) for s in range(3)]
    assert [one.value for one in found.seeds] == pytest.approx(gains)
    assert found.effect.value == pytest.approx(np.mean(gains))
    assert found.spread == pytest.approx(np.std(gains, ddof=1))
    paired = judge(Comparison("RL", "same", "right"), FOUND).seeds
    assert paired[2].value == pytest.approx(left[2].mean() - FOUND["same"]["right"][2].mean())
    assert judge(Comparison("one", "two", "right"), FOUND).spread is None


def test_the_text_says_what_was_compared() -> None:
    found = judge(Comparison("RL", ("one", "two", "starter"), "right", margin=0.02, within=True), FOUND)
    assert found.text == "RL - two (best of 3): right, within 0.02"
    found = judge(Comparison("RL", "one", "right", "wrong", beyond=("two", "starter")), FOUND)
    assert found.text == "(RL - one) - (two - starter): right against wrong"
    assert math.isnan(mean(FOUND["empty"]["right"])) and mean(right := scores(0.3)) == right.mean()
