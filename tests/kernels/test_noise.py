from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from triptych.kernels import noise
from triptych.kernels.noise import normals, uniforms
from triptych.trajectory import NoiseKey

KEY = NoiseKey(seed=3, step=5, task="count/0007", sample=2, segment="image")
KEYS = [replace(KEY, sample=i) for i in range(64)]


def test_a_row_depends_on_its_key_alone_not_on_its_neighbours_or_the_order() -> None:
    together = uniforms(KEYS, 40)
    for start in range(0, 64, 7):
        assert torch.equal(uniforms(KEYS[start : start + 7], 40), together[start : start + 7])
    assert torch.equal(uniforms(KEYS[::-1], 40), together.flip(0))
    assert torch.equal(uniforms([KEY, KEY], 40), together[[2, 2]])


def test_a_number_depends_on_its_position_alone_not_on_how_many_are_drawn() -> None:
    whole = uniforms(KEYS[:3], 1000)
    for n in (1, 3, 4, 5, 999):
        assert torch.equal(uniforms(KEYS[:3], n), whole[:, :n])


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"step": 6}, {"task": "count/0008"}, {"sample": 3}, {"segment": "second"}],
    ids=lambda change: next(iter(change)),
)
def test_each_field_of_the_key_gives_another_stream(other: dict[str, int | str]) -> None:
    one, two = uniforms([KEY, replace(KEY, **other)], 4000)  # type: ignore[arg-type]
    assert not bool((one == two).any())
    assert abs(float(stats.pearsonr(one, two).statistic)) < 0.06


def test_fields_do_not_run_into_each_other() -> None:
    """Seed 1, step 12 is not seed 11, step 2; nor may a task's name take over the sample's number."""
    pairs = [
        (replace(KEY, seed=1, step=12), replace(KEY, seed=11, step=2)),
        (replace(KEY, task="a1", sample=2), replace(KEY, task="a", sample=12)),
        (replace(KEY, sample=1, segment="2x"), replace(KEY, sample=12, segment="x")),
    ]
    for one, two in pairs:
        assert not torch.equal(uniforms([one], 4), uniforms([two], 4))


def test_the_stream_is_the_same_in_every_version() -> None:
    """Recorded runs and starters rest on these numbers; changing them is a break to be announced."""
    expected = [0.8293949452803626, 0.8339463672362943, 0.5941471719052425]
    assert uniforms([KEY], 3)[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_numbers_are_uniform_along_a_row_and_across_keys() -> None:
    along = uniforms([KEY], 20_000)[0]
    across = uniforms([replace(KEY, sample=i) for i in range(20_000)], 1)[:, 0]
    tasks = uniforms([replace(KEY, task=f"task/{i}") for i in range(20_000)], 1)[:, 0]
    for numbers in (along, across, tasks):
        assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3


def test_neighbouring_keys_and_positions_are_independent() -> None:
    """Counts of pairs on a 10 x 10 grid: next to each other in a row, and in a column."""
    grid = uniforms([replace(KEY, sample=i) for i in range(400)], 101).numpy()
    for first, second in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        counts, _, _ = np.histogram2d(first.ravel(), second.ravel(), bins=10, range=[[0, 1], [0, 1]])
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_the_interval_is_open_at_both_ends(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Extreme:
        def random_raw(self, n: int) -> np.ndarray:
            return np.full(n, word, dtype=np.uint64)

    monkeypatch.setattr(noise, "stream", lambda key: Extreme())
    number = float(uniforms([KEY], 1))
    assert 0 < number < 1


# -- normal numbers ----------------------------------------------------------------------------------
def test_a_normal_number_depends_on_its_key_and_position_alone() -> None:
    whole = normals(KEYS, 1001)
    for start, stop, n in ((0, 64, 7), (5, 6, 1001), (10, 31, 1000), (63, 64, 1)):
        assert torch.equal(normals(KEYS[start:stop], n), whole[start:stop, :n])
    assert torch.equal(normals(KEYS[::-1], 16), whole[:, :16].flip(0)) and whole.dtype == torch.float32


def test_normal_numbers_are_the_quantiles_of_the_uniform_ones() -> None:
    """Against scipy's quantiles of the same numbers, and as a distribution; ten thousand of them or more."""
    expected = stats.norm.ppf(uniforms(KEYS, 400).numpy())
    np.testing.assert_allclose(normals(KEYS, 400).numpy(), expected, rtol=1e-6, atol=1e-7)
    for numbers in (
        normals([KEY], 20_000)[0],
        normals([replace(KEY, sample=i) for i in range(10_000)], 1)[:, 0],
    ):
        assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(("word", "sign"), [(0, -1), (2**64 - 1, 1)])
def test_the_extreme_normal_numbers_are_finite(word: int, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Extreme:
        def random_raw(self, n: int) -> np.ndarray:
            return np.full(n, word, dtype=np.uint64)

    monkeypatch.setattr(noise, "stream", lambda key: Extreme())
    assert sign * float(normals([KEY], 1)) == pytest.approx(8.2, abs=0.1)
