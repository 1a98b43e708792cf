"""Rewards to advantages, by explicit group id.

A pure function of numbers: it must not know prompts, segments, models or where a reward came from.
Unscored samples (NaN) take no part in any mean, spread or count.

Shape legend: B samples, G groups in the order in which their ids first appear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """What a centred reward is divided by, and how far an advantage may reach.

    ``std``: of the sample's group (GRPO, arXiv 2402.03300), of the whole batch (REINFORCE++, arXiv
    2501.03262), or none (Dr. GRPO, arXiv 2503.20783). Spreads are the unbiased sample kind (n - 1), as the
    published trainers compute them. ``eps`` is added to the spread; ``clip`` bounds the absolute advantage.
    ``kind`` "softmax" gives Self-GRPO's weights in place of advantages: see :func:`group_weights`.
    """

    kind: Literal["centred", "softmax"] = "centred"
    alpha: float = 1.0
    std: Literal["group", "batch", "none"] = "group"
    eps: float = 1e-6
    clip: float | None = 5.0

    def __post_init__(self) -> None:
        if self.eps < 0:
            raise UserError(f"advantage eps must not be negative, got {self.eps}")
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"advantage clip must be positive, or None for no bound, got {self.clip}")
        if self.alpha <= 0:
            raise UserError(f"advantage alpha must be positive, got {self.alpha}")


@dataclass(frozen=True)
class Advantages:
    """``values [B]`` fp32, 0 where unscored; ``scored [B]`` bool; ``group_std [G]`` fp32 of the raw rewards.

    ``dead [G]``: groups that teach nothing, for fewer than two samples are scored or all rewards are equal.
    """

    values: Tensor
    scored: Tensor
    group_std: Tensor
    dead: Tensor


def group_advantages(rewards: Tensor, groups: Sequence[str], config: AdvantageConfig) -> Advantages:
    """Centre ``rewards [B]`` (not finite = unscored) within each group, then divide by the configured spread.

    The group's first scored reward is subtracted before mean and spread, so equal rewards give exactly 0.
    Groups may come in any order and interleaved. A group with fewer than two scored samples gets 0.
    """
    if rewards.shape != (len(groups),):
        raise ValueError(f"rewards {tuple(rewards.shape)} and {len(groups)} group ids do not match")
    members = _members(groups, rewards.device)
    scored = rewards.isfinite()
    exact = rewards.double()
    centred, spread = torch.zeros_like(exact), torch.ones_like(exact)
    group_std, dead = exact.new_zeros(len(members)), scored.new_ones(len(members))
    for g, rows in enumerate(members):
        rows = rows[scored[rows]]
        if len(rows) < 2:
            continue
        from_first = exact[rows] - exact[rows[0]]
        centred[rows] = from_first - from_first.mean()
        group_std[g] = from_first.std()
        dead[g] = bool((from_first == 0).all())
        spread[rows] = group_std[g]
    if config.std == "batch" and scored.sum() > 1:
        spread.fill_(centred[scored].std())
    values = centred if config.std == "none" else centred / (spread + config.eps)
    # 0 / 0 happens where eps is 0 and nothing varies: centred is exactly 0 there, and so is the advantage.
    values = torch.where(centred == 0, centred, values)
    if config.kind == "softmax":
        weights = group_weights(rewards, groups, config.alpha)
        return Advantages(weights, scored, group_std.float(), dead)
    return Advantages(_clip(values, config).float(), scored, group_std.float(), dead)


def group_weights(rewards: Tensor, groups: Sequence[str], alpha: float) -> Tensor:
    """Self-GRPO's weights of ``rewards [B]``: n softmax(alpha (r - mean r)) in a group of n scored samples.

    With the objective "no_clip" and aggregation "sequence" the loss is then the mean over groups of -sum w l
    (Lumina-DiMOO), l a row's mean log-probability. 0 where unscored; also where all of a group's rewards are
    equal, for there the expected gradient is 0 and only its noise would be left.
    """
    weights = torch.zeros_like(rewards, dtype=torch.float64)
    for rows in _members(groups, rewards.device):
        rows = rows[rewards[rows].isfinite()]
        found = rewards[rows].double()
        if len(rows) and bool((found != found[0]).any()):
            weights[rows] = len(rows) * torch.softmax(alpha * (found - found.mean()), dim=0)
    return weights.float()


def normalised_sum(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Sequence[str],
    config: AdvantageConfig,
) -> Advantages:
    """GDPO (arXiv 2601.05242): normalise each reward ``[B]`` within its group, then add them with weights.

    A sample with any reward missing is unscored and left out of every reward's statistics. A group is dead
    when it is so for each reward; ``group_std`` is that of the weighted sum. The bound applies to the sum.
    The paper's last step, whitening the sums over the batch, is not taken.
    """
    if not rewards or set(rewards) != set(weights):
        raise ValueError(
            f"rewards {sorted(rewards)} and weights {sorted(weights)} must name the same, at least one"
        )
    missing = ~torch.stack([r.isfinite() for r in rewards.values()]).all(dim=0)
    complete = {name: r.masked_fill(missing, torch.nan) for name, r in rewards.items()}
    unbounded = AdvantageConfig(std=config.std, eps=config.eps, clip=None)
    parts = {name: group_advantages(r, groups, unbounded) for name, r in complete.items()}
    total = sum((weights[name] * r.double() for name, r in complete.items()), torch.zeros(()))
    values = sum((weights[name] * part.values for name, part in parts.items()), torch.zeros(()))
    dead = torch.stack([part.dead for part in parts.values()]).all(dim=0)
    return Advantages(
        _clip(values, config), ~missing, group_advantages(total, groups, config).group_std, dead
    )


def widest(rewards: Tensor, groups: Sequence[str], keep: int) -> Tensor:
    """Which ``keep`` samples of each group have the largest variance of ``rewards [B]``: ``[B]`` bool.

    Max-variance down-sampling (PODS, arXiv 2504.13818): of the sorted rewards they are some of the lowest and
    some of the highest. Unscored samples are never among them; ties go to the sample that comes first.
    """
    chosen = torch.zeros(len(groups), dtype=torch.bool, device=rewards.device)
    for rows in _members(groups, rewards.device):
        rows = rows[rewards[rows].isfinite()]
        rows = rows[rewards[rows].sort(stable=True).indices]
        n = min(keep, len(rows))
        subsets = [torch.cat([rows[: n - high], rows[len(rows) - high :]]) for high in range(n + 1)]
        spreads = [rewards[subset].double().var(correction=0) for subset in subsets] if n else []
        if spreads:
            chosen[subsets[int(torch.stack(spreads).argmax())]] = True
    return chosen


def _members(groups: Sequence[str], device: torch.device) -> list[Tensor]:
    rows: dict[str, list[int]] = {}
    for b, group in enumerate(groups):
        rows.setdefault(group, []).append(b)
    return [torch.tensor(r, device=device) for r in rows.values()]


def _clip(values: Tensor, config: AdvantageConfig) -> Tensor:
    return values if config.clip is None else values.clamp(-config.clip, config.clip)
