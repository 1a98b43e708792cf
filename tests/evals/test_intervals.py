"""Intervals against scipy, published values, and the truth they should cover."""

import math

import numpy as np
import pytest
from scipy import stats

from triptych.evals.intervals import Interval, combined, paired_change, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 3), (37, 100), (250, 1000)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((successes / n, expected.low, expected.high), abs=1e-12)


def test_wilson_against_published_values() -> None:
    # 15 of 148, Newcombe 1998, table I method 3: 0.0624 to 0.1605; 0 of 20: 0 to 0.1611
    assert wilson(15, 148) == pytest.approx((15 / 148, 0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == (0.0, 0.0, pytest.approx(0.1611, abs=5e-5))
    assert wilson(0, 0) == (0.0, 0.0, 1.0)


def test_difference_of_shares_against_published_values() -> None:
    # 56 of 70 less 48 of 80, Newcombe 1998 (two samples), method 10: 0.0524 to 0.3339
    change = combined((1, wilson(56, 70)), (-1, wilson(48, 80)))
    assert change == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_a_mean_has_the_root_of_the_summed_squares() -> None:
    mean = combined((0.5, Interval(0.4, 0.1, 0.5)), (0.5, Interval(0.6, 0.2, 0.8)))
    assert mean == pytest.approx((0.5, 0.5 - math.hypot(0.3, 0.4) / 2, 0.5 + math.hypot(0.1, 0.2) / 2))


def test_paired_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        kinds = rng.choice(3, size=120, p=[0.2, 0.05, 0.75])  # gained, lost, unchanged: truth +0.15
        change = paired_change([(f"t{i}", k == 1, k == 0) for i, k in enumerate(kinds)])
        covered += change.low <= 0.15 <= change.high
    assert 0.92 <= covered / 400 <= 0.98


def test_several_drawings_of_a_prompt_do_not_pass_for_more_prompts() -> None:
    once = [(f"t{i}", False, i % 4 == 0) for i in range(80)]
    single, tripled = paired_change(once), paired_change(once * 3)
    assert tripled.value == pytest.approx(single.value) == pytest.approx(0.25)
    assert tripled.high - tripled.low == pytest.approx(single.high - single.low, rel=0.1)
