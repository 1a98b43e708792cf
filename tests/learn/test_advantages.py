import math
import statistics
from itertools import combinations

import pytest
import torch

from triptych.errors import UserError
from triptych.learn.advantages import AdvantageConfig, group_advantages, normalised_sum, widest
from triptych.learn.policy_loss import Denominators, PolicyLossConfig, policy_terms, total_loss
from triptych.trajectory import Scores

NAN = math.nan
PLAIN = AdvantageConfig(eps=0.0, clip=None)


def test_values_against_the_formula_for_interleaved_groups() -> None:
    rewards = torch.tensor([0.1, 5.0, 0.9, NAN, 7.0, 0.4, 7.5])
    found = group_advantages(rewards, ["a", "b", "a", "a", "b", "a", "b"], PLAIN)
    by_group = {"a": ([0, 2, 5], [0.1, 0.9, 0.4]), "b": ([1, 4, 6], [5.0, 7.0, 7.5])}
    for g, (rows, values) in enumerate(by_group.values()):
        mean, spread = statistics.mean(values), statistics.stdev(values)
        expected = [(value - mean) / spread for value in values]
        assert found.values[rows].tolist() == pytest.approx(expected, rel=1e-5)
        assert float(found.group_std[g]) == pytest.approx(spread, rel=1e-5)
    assert found.values[3] == 0 and found.scored.tolist() == [True, True, True, False, True, True, True]
    assert found.dead.tolist() == [False, False]


@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_equal_rewards_give_exactly_zero(std: str, eps: float) -> None:
    config = AdvantageConfig(std=std, eps=eps)  # type: ignore[arg-type]
    values = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 10
    rewards = values.repeat_interleave(7)
    found = group_advantages(rewards, [str(i // 7) for i in range(1400)], config)
    assert (found.values == 0).all()
    assert found.dead.all()


def test_fewer_than_two_scored_gives_zero_and_counts_as_dead() -> None:
    rewards = torch.tensor([3.0, NAN, NAN, NAN, 1.0, 2.0, torch.inf])
    found = group_advantages(rewards, ["one", "one", "none", "none", "two", "two", "two"], PLAIN)
    assert found.values[:4].tolist() == [0, 0, 0, 0] and found.values[6] == 0
    assert found.dead.tolist() == [True, True, False] and found.group_std[:2].tolist() == [0, 0]
    assert found.scored.tolist() == [True, False, False, False, True, True, False]


def test_batch_and_no_std() -> None:
    rewards, groups = torch.tensor([0.0, 1.0, 10.0, 14.0]), ["a", "a", "b", "b"]
    centred = [-0.5, 0.5, -2.0, 2.0]
    none = group_advantages(rewards, groups, AdvantageConfig(std="none", clip=None))
    assert none.values.tolist() == centred
    batch = group_advantages(rewards, groups, AdvantageConfig(std="batch", eps=0.25, clip=None))
    spread = statistics.stdev(centred) + 0.25
    assert batch.values.tolist() == pytest.approx([c / spread for c in centred])


def test_order_does_not_matter_and_the_bound_holds() -> None:
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(1))
    groups = [f"g{i % 3}" for i in range(12)]
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    straight = group_advantages(rewards, groups, PLAIN).values
    mixed = group_advantages(rewards[shuffled], [groups[i] for i in shuffled.tolist()], PLAIN).values
    torch.testing.assert_close(mixed, straight[shuffled])
    outlier = torch.tensor([100.0] + [0.0] * 99)
    clipped = group_advantages(outlier, ["g"] * 100, AdvantageConfig(clip=5.0)).values
    assert clipped.max() == 5.0


def test_normalised_sum_weighs_each_reward_equally_and_unscores_the_incomplete() -> None:
    rewards = {"big": torch.tensor([0.0, 100.0, 50.0, 900.0]), "small": torch.tensor([0.2, 0.1, 0.0, NAN])}
    found = normalised_sum(rewards, {"big": 1.0, "small": 0.5}, ["g"] * 4, PLAIN)
    # Without the last row: big is (-1, 1, 0) and small is (1, 0, -1), in units of their own spread.
    assert found.values.tolist() == pytest.approx([-0.5, 1.0, -0.5, 0.0])
    assert found.scored.tolist() == [True, True, True, False]
    assert float(found.group_std[0]) == pytest.approx(statistics.stdev([0.1, 100.05, 50.0]), rel=1e-4)


def test_normalised_sum_is_dead_only_where_every_reward_is() -> None:
    rewards = {"flat": torch.ones(4), "varied": torch.tensor([0.0, 1.0, 2.0, 2.0])}
    found = normalised_sum(rewards, {"flat": 1.0, "varied": 1.0}, ["a", "a", "b", "b"], PLAIN)
    assert found.dead.tolist() == [False, True]
    with pytest.raises(ValueError, match="must name the same"):
        normalised_sum(rewards, {"flat": 1.0}, ["a"] * 4, PLAIN)


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(UserError, match="clip must be positive"):
        AdvantageConfig(clip=0.0)
    with pytest.raises(ValueError, match="do not match"):
        group_advantages(torch.zeros(3), ["a"], PLAIN)


@pytest.mark.parametrize("keep", [2, 3, 5, 9])
def test_the_kept_samples_spread_most_of_all_subsets(keep: int) -> None:
    rewards = torch.rand(16, generator=torch.Generator().manual_seed(keep))
    rewards[[1, 6]] = NAN
    groups = [f"{b % 2}" for b in range(16)]
    chosen = widest(rewards, groups, keep)
    for group in ("0", "1"):
        scored = [b for b in range(16) if groups[b] == group and rewards[b].isfinite()]
        size = min(keep, len(scored))
        kept = [b for b in scored if chosen[b]]
        assert len(kept) == size
        best = max(float(rewards[list(subset)].var(correction=0)) for subset in combinations(scored, size))
        assert float(rewards[kept].var(correction=0)) == pytest.approx(best, rel=1e-5)
    assert not chosen[[1, 6]].any()
    assert widest(torch.full((3,), NAN), ["a"] * 3, 2).sum() == 0


def test_self_grpo_s_weights_by_hand() -> None:
    rewards = torch.tensor([0.0, 1.0, 0.5, NAN, 3.0, 3.0, NAN, 2.0])
    groups = ["a", "b", "a", "a", "b", "b", "c", "d"]
    found = group_advantages(rewards, groups, AdvantageConfig(kind="softmax", alpha=2.0))
    one = math.exp(2.0 * 0.25) + math.exp(-2.0 * 0.25)  # group a: 0 and 0.5, mean 0.25
    three = math.exp(2.0 * (1 - 7 / 3)) + 2 * math.exp(2.0 * (3 - 7 / 3))  # group b: 1, 3 and 3
    expected = [
        2 * math.exp(-0.5) / one,
        3 * math.exp(2.0 * (1 - 7 / 3)) / three,
        2 * math.exp(0.5) / one,
        0,
        *[3 * math.exp(2.0 * (3 - 7 / 3)) / three] * 2,
        0,
        0,
    ]
    assert found.values.tolist() == pytest.approx(expected, rel=1e-6)
    equal = group_advantages(torch.full((4,), 0.3), ["a"] * 4, AdvantageConfig(kind="softmax"))
    assert equal.values.tolist() == [0, 0, 0, 0] and equal.dead.all()
    with pytest.raises(UserError, match="alpha must be positive"):
        AdvantageConfig(alpha=0.0)


def test_self_grpo_s_loss_is_its_formula() -> None:
    logp = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    rewards, groups = torch.tensor([0.1, 0.9, 0.4, 0.0, 1.0, 1.0]), ["a", "a", "a", "b", "b", "b"]
    found = group_advantages(rewards, groups, AdvantageConfig(kind="softmax", alpha=3.0))
    config = PolicyLossConfig(objective="no_clip", aggregation="sequence")
    terms = policy_terms(Scores(logp), logp.detach(), found.values, mask, config, scored=found.scored)
    counts = Denominators.count(terms.policy_mask, terms.mask, config)
    [gradient] = torch.autograd.grad(total_loss(terms, config, counts), logp)
    means = (logp * mask).sum(1) / mask.sum(1)
    losses = [
        -(torch.softmax(3.0 * r, 0) * m).sum() for r, m in zip(rewards.split(3), means.split(3), strict=True)
    ]
    [expected] = torch.autograd.grad(torch.stack(losses).mean(), logp)
    torch.testing.assert_close(gradient, expected)
