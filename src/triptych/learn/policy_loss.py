"""Policy-gradient objectives: recorded and fresh log-probabilities to element-wise losses, then a scalar.

Pure functions of tensors: this file must not know what an action is, nor models, segments or rewards.
An element-wise loss and its aggregation are separate, and the denominator is passed in: it counts the whole
optimizer step (all micro-batches, all processes), so that no split of the work changes the gradient.

Shape legend: B rows (one sequence of actions each), A actions a row.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.trajectory import Scores

Aggregation = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """Which objective, which ratio, which regularisers, and what a mean is taken over.

    ``objective``: "clip" is PPO's pessimistic bound over ``[1 - clip_low, 1 + clip_high]`` (unequal bounds:
    clip-higher of DAPO, arXiv 2503.14476); "no_clip" is ratio times advantage, for strictly on-policy runs;
    "dppo" drops an action instead of bounding it, where its divergence from the policy that acted is at least
    ``dppo_threshold`` (in the units of the log-probability) and the ratio goes on the way the advantage asks.
    ``ratio``: of each action, or one a sequence (GSPO, arXiv 2507.18071; use "sequence" aggregation with it),
    or "guard" (GRPO-Guard, arXiv 2510.22319): each step's log-ratio is freed of its negative mean and scaled
    by the step's noise, so that one clip range fits all steps, and the loss is divided by the step's length.
    "guard" and "dppo" need what denoising steps alone have.
    ``kl``: an estimator from log-probabilities, named for its value: k1 = lp - ref, k2 = (ref - lp)^2 / 2,
    k3 = exp(ref - lp) - (ref - lp) - 1 -- or "exact", when the model gives the divergence itself. As losses
    on the policy's own samples, k3 has the gradient of KL(ref || pi), k2 that of KL(pi || ref), and k1 an
    expected gradient of zero, so choosing k1 warns.
    ``aggregation``: mean over actions, mean over sequences of their means, or a sum divided by
    ``constant_length`` a sequence (Dr. GRPO, arXiv 2503.20783).
    ``log_ratio_clamp`` bounds log-ratios before they are exponentiated.
    """

    objective: Literal["clip", "no_clip", "dppo"] = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dppo_threshold: float = 1e-4
    ratio: Literal["token", "sequence", "guard"] = "token"
    kl_coef: float = 0.0
    kl: Literal["k1", "k2", "k3", "exact"] = "k3"
    entropy_coef: float = 0.0
    aggregation: Aggregation = "token"
    constant_length: int | None = None
    log_ratio_clamp: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            bounds = f"clip_low {self.clip_low}, clip_high {self.clip_high}"
            raise UserError(f"clip_low must be in [0, 1] and clip_high not negative, got {bounds}")
        if not self.dppo_threshold > 0:
            raise UserError(f"dppo_threshold must be positive, got {self.dppo_threshold}")
        if self.kl_coef < 0:
            raise UserError(f"kl_coef must not be negative, got {self.kl_coef}")
        if (self.aggregation == "constant") != (self.constant_length is not None):
            raise UserError("constant_length goes with aggregation 'constant': set both or neither")
        if self.constant_length is not None and self.constant_length < 1:
            raise UserError(f"constant_length must be positive, got {self.constant_length}")
        if self.kl_coef and self.kl == "k1":
            warnings.warn(
                "kl='k1' as a loss has an expected gradient of zero; use 'k3' or 'k2'", stacklevel=3
            )

    @property
    def needs(self) -> frozenset[str]:
        """What the model's ``score`` must give: "logp", and what else is used."""
        wanted = {
            "logp": True,
            "kl": self.needs_reference and self.kl == "exact",
            "reference_logp": self.needs_reference and self.kl != "exact",
            "entropy": self.entropy_coef,
            "old_kl": self.objective == "dppo" or self.ratio == "guard",
            "std": self.ratio == "guard",
            "step_size": self.ratio == "guard",
        }
        return frozenset(name for name, used in wanted.items() if used)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss holds the policy to a reference."""
        return self.kl_coef > 0


@dataclass(frozen=True, kw_only=True)
class PolicyMetrics:
    """Sums and counts, so that micro-batches and processes add up with ``+``; ``ratio_error`` is a maximum.

    ``actions`` are those of the policy term, ``kept`` all that were scored finite, ``non_finite`` those
    dropped; ``clipped`` counts where the bound cut the gradient; ``ratio_error`` is max |exp(lp - old) - 1|
    over single actions, whatever the configured ratio.
    """

    actions: float = 0.0
    kept: float = 0.0
    non_finite: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    ratio_error: float = 0.0

    @classmethod
    def of(cls, **sums: Tensor) -> "PolicyMetrics":
        """From scalar tensors, fetched in one go: a GPU waits once a micro-batch."""
        values = torch.stack([value.detach().double() for value in sums.values()]).tolist()
        return cls(**dict(zip(sums, values, strict=True)))

    def __add__(self, other: "PolicyMetrics") -> "PolicyMetrics":
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return PolicyMetrics(**total | {"ratio_error": max(self.ratio_error, other.ratio_error)})

    def means(self) -> dict[str, float]:
        """What to log: clip fraction, KL and entropy an action, the largest ratio error, dropped actions."""
        actions, kept = max(self.actions, 1.0), max(self.kept, 1.0)
        return {
            "clip_fraction": self.clipped / actions,
            "kl": self.kl / kept,
            "entropy": self.entropy / kept,
            "ratio_error": self.ratio_error,
            "non_finite": self.non_finite,
        }


@dataclass(frozen=True, kw_only=True)
class PolicyTerms:
    """Element-wise losses ``[B, A]`` with a graph: ``policy`` over ``policy_mask``, the others over ``mask``.

    ``mask`` is the one given without non-finite actions; ``policy_mask`` also lacks unscored rows. ``kl``
    and ``entropy`` are 0 where they are off; ``entropy`` is the entropy itself, not yet a loss.
    """

    policy: Tensor
    kl: Tensor
    entropy: Tensor
    policy_mask: Tensor
    mask: Tensor
    metrics: PolicyMetrics


@dataclass(frozen=True)
class Denominators:
    """What the sums are divided by: the policy term's count, and that of KL and entropy. They add up."""

    policy: Tensor
    regulariser: Tensor

    def __add__(self, other: "Denominators") -> "Denominators":
        return Denominators(self.policy + other.policy, self.regulariser + other.regulariser)

    @classmethod
    def count(cls, policy_mask: Tensor, mask: Tensor, config: PolicyLossConfig) -> "Denominators":
        """The counts of one micro-batch: add them over the optimizer step and over processes before use."""
        return cls(_count(policy_mask, config), _count(mask, config))


def policy_terms(
    scores: Scores,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    config: PolicyLossConfig,
    *,
    scored: Tensor | None = None,
) -> PolicyTerms:
    """The element-wise losses of B rows.

    ``scores``, fresh and with a graph, hold what ``config`` needs, else ValueError; ``old_logp [B, A]`` as
    recorded; ``advantages [B]``; ``mask [B, A]`` bool, true where an action was taken; ``scored [B]`` bool:
    unscored rows lose the policy term, not KL and entropy.

    Actions for which anything given is not finite are dropped from numerator and denominator, and counted.
    """
    given = {name: value for name, value in vars(scores).items() if value is not None}
    if missing := sorted(config.needs - set(given)):
        raise ValueError(f"the objective needs {', '.join(missing)}: give it")
    finite = torch.stack([x.detach().isfinite() for x in (old_logp, *given.values())]).all(dim=0)
    keep = mask & finite
    policy_mask = keep if scored is None else keep & scored[:, None]
    # Dropped, padded and unscored places are replaced before arithmetic: 0 * NaN would reach the gradient.
    kept = {name: _only(keep, value) for name, value in given.items()}
    log_ratio = kept["logp"] - _only(keep, old_logp)
    credit = _only(policy_mask, advantages[:, None].to(log_ratio))
    policy, clipped = _policy(log_ratio, credit, keep, config, kept)
    terms = {
        "policy": policy,
        "kl": _kl(config, kept),
        "entropy": kept.get("entropy", torch.zeros_like(log_ratio)),
    }
    error = (_bounded_exp(log_ratio, config) - 1).abs().flatten()
    metrics = PolicyMetrics.of(
        actions=policy_mask.sum(),
        kept=keep.sum(),
        non_finite=(mask & ~keep).sum(),
        clipped=(clipped & policy_mask).sum(),
        kl=terms["kl"].sum(),
        entropy=terms["entropy"].sum(),
        ratio_error=error.max() if len(error) else error.sum(),
    )
    return PolicyTerms(**terms, policy_mask=policy_mask, mask=keep, metrics=metrics)


def _only(mask: Tensor, values: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values))


def _bounded_exp(log_ratio: Tensor, config: PolicyLossConfig) -> Tensor:
    return log_ratio.clamp(-config.log_ratio_clamp, config.log_ratio_clamp).exp()


def _policy(
    log_ratio: Tensor,
    advantages: Tensor,
    keep: Tensor,
    config: PolicyLossConfig,
    scores: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """The policy loss, and where its gradient is cut. What is given is 0 outside ``keep``."""
    if config.ratio == "sequence":
        lengths = keep.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio = (log_ratio.sum(dim=1, keepdim=True) / lengths).expand_as(log_ratio)
    if config.ratio == "guard":
        # Under the policy that acted, a log-ratio of Gaussians has the mean -old_kl and the spread ~ 1 / std.
        log_ratio = scores["std"] * (log_ratio + scores["old_kl"])
        advantages = advantages / torch.where(keep, scores["step_size"], 1.0)
    ratio = _bounded_exp(log_ratio, config)
    free = -advantages * ratio
    if config.objective == "no_clip":
        return free, torch.zeros_like(keep)
    if config.objective == "dppo":
        dropped = (scores["old_kl"] >= config.dppo_threshold) & (advantages * (ratio - 1) > 0)
        return _only(~dropped, free), dropped
    bounded = -advantages * ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    return torch.maximum(free, bounded), bounded > free


def _kl(config: PolicyLossConfig, scores: Mapping[str, Tensor]) -> Tensor:
    if not config.needs_reference:
        return torch.zeros_like(scores["logp"])
    if config.kl == "exact":
        return scores["kl"]
    r = scores["reference_logp"] - scores["logp"]
    if config.kl == "k1":
        return -r
    if config.kl == "k2":
        return r.square() / 2
    r = r.clamp(max=config.log_ratio_clamp)
    return r.exp() - r - 1


def _count(mask: Tensor, config: PolicyLossConfig) -> Tensor:
    """The local count that belongs to :func:`aggregate`, a float64 scalar; a global one is the sum of these.

    "token": actions; "sequence": rows with at least one; "constant": those rows times ``constant_length``.
    """
    if config.aggregation == "token":
        return mask.sum().double()
    return mask.any(dim=1).sum().double() * (config.constant_length or 1)


def aggregate(values: Tensor, mask: Tensor, kind: Aggregation, denominator: float | Tensor) -> Tensor:
    """``values [B, A]`` where ``mask [B, A]``, summed (for "sequence": means of rows) over the denominator.

    Nothing under the mask gives 0 with a graph, so every process can run backward. A denominator of 0 means
    that the whole optimizer step is empty; it divides like 1.
    """
    kept = _only(mask, values)
    if kind == "sequence":
        kept = kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    count = torch.as_tensor(denominator, device=values.device)
    return kept.sum() / torch.where(count == 0, torch.ones_like(count), count)


def total_loss(terms: PolicyTerms, config: PolicyLossConfig, denominators: Denominators) -> Tensor:
    """Policy loss + kl_coef KL - entropy_coef entropy: one micro-batch's part of the step's loss."""
    loss = aggregate(terms.policy, terms.policy_mask, config.aggregation, denominators.policy)
    for weight, values in ((config.kl_coef, terms.kl), (-config.entropy_coef, terms.entropy)):
        if weight:
            loss = loss + weight * aggregate(values, terms.mask, config.aggregation, denominators.regulariser)
    return loss
