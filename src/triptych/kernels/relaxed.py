"""Drawn tokens as weights over codes, through which a gradient passes: straight-through Gumbel-softmax.

Tokens here are drawn by inverting a distribution function, not by Gumbel noise. So the noise g is drawn
afterwards, given the token that it must have led to (the posterior of Paulus et al., arXiv 2010.04838). Both
together are distributed as if the noise had come first, and ``softmax((log p + g) / tau)`` is Gumbel-softmax
(arXiv 1611.01144, 1611.00712); its largest weight is the drawn token's.

Shape legend: B rows, N positions, K codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from triptych.errors import UserError
from triptych.kernels.tokens import log_policy
from triptych.trajectory import Sampling


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """``tau`` is the softmax's temperature. ``straight_through`` goes forward with the drawn token alone, and
    backward as if with the weights; without it the weights go forward, which no drawing ever shows."""

    tau: float = 1.0
    straight_through: bool = True

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise UserError(f"relaxation.tau must be positive, got {self.tau}")


def gumbels(logp: Tensor, tokens: Tensor, uniform: Tensor) -> Tensor:
    """Gumbel noise ``[B, N, K]`` given that ``logp + noise`` is largest at ``tokens [B, N]``.

    ``logp [B, N, K]`` is normalised, so the largest sum is itself Gumbel, and every other one a Gumbel below
    it; ``uniform [B, N, K]`` float64 decides. No gradient passes.
    """
    logp = logp.detach().double()
    arrivals = (-uniform.log()).log()
    top = arrivals.gather(-1, tokens[..., None])
    perturbed = -torch.logaddexp(arrivals - logp, top)
    return perturbed.scatter(-1, tokens[..., None], -top) - logp


def relaxed(
    logits: Tensor, tokens: Tensor, uniform: Tensor, sampling: Sampling, relaxation: Relaxation
) -> Tensor:
    """Weights over codes ``[B, N, K]`` of ``tokens [B, N]``, drawn by the policy of ``logits [B, N, K]``.

    With guidance there are more rows of logits, see :func:`triptych.kernels.tokens.guided`. ``uniform`` is
    that of :func:`gumbels`. Raises UserError for greedy draws: there is no distribution to relax.
    """
    if sampling.temperature == 0:
        raise UserError("a drawing was drawn greedily: it has no probabilities to relax")
    logp = log_policy(logits, sampling)
    noise = gumbels(logp, tokens, uniform).to(logp.dtype)
    weights = torch.softmax((logp + noise) / relaxation.tau, dim=-1)
    if not relaxation.straight_through:
        return weights
    return one_hot(tokens, weights.shape[-1]) + weights - weights.detach()
