"""DiffusionNFT (arXiv 2509.16117): rewards teach the velocity itself, on drawings that are noised afresh.

Pure functions of tensors. A good drawing pulls the policy to it, a bad one pushes it away, both through
mixtures with the policy that drew: no log-probability, no noise while drawing, any sampler. The policy that
draws is a slowly moving average of the trained one.

Shape legend: B rows; ... the latent's own dimensions.
"""

from dataclasses import dataclass

from torch import Tensor

from triptych.errors import UserError

LEAST_ERROR = 1e-5
"""The self-normalised loss divides by no less than this."""


@dataclass(frozen=True, kw_only=True)
class DiffusionNFTConfig:
    """``mix`` b: how far the compared velocities lie from the old one; ``clip`` c bounds advantages.

    Each drawing is learned from at ``times`` noise levels a step. The policy that draws keeps
    min(``ramp`` x step, ``decay``) of itself and takes the rest from the trained one.
    """

    mix: float = 1.0
    clip: float = 5.0
    times: int = 4
    decay: float = 0.5
    ramp: float = 0.001

    def __post_init__(self) -> None:
        if not self.mix > 0:
            raise UserError(f"mix must be positive, got {self.mix}")
        if not self.clip > 0:
            raise UserError(f"clip must be positive, got {self.clip}")
        if self.times < 1:
            raise UserError(f"times must be at least 1, got {self.times}")
        if not 0 <= self.decay < 1 or self.ramp < 0:
            raise UserError(
                f"decay must lie in [0, 1) and ramp not be negative, got decay {self.decay}, ramp {self.ramp}"
            )

    def decay_at(self, step: int) -> float:
        """How much of itself the policy that draws keeps before ``step`` (from 1)."""
        return min(self.ramp * step, self.decay)


def optimality(advantages: Tensor, clip: float) -> Tensor:
    """How good drawings are, q ``[B]`` in [0, 1]: ``1/2 + clip(A, -c, c) / (2 c)``."""
    return (0.5 + advantages.clamp(-clip, clip) / (2 * clip)).clamp(0, 1)


def contrast(velocity: Tensor, old: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    """v+ = b v + (1 - b) v_old and v- = (1 + b) v_old - b v, bit for bit the same where v = v_old."""
    move = mix * (velocity - old)
    return old + move, old - move


def nft_loss(
    velocity: Tensor,
    old: Tensor,
    noised: Tensor,
    sigma: Tensor,
    clean: Tensor,
    advantages: Tensor,
    config: DiffusionNFTConfig,
) -> Tensor:
    """The loss of each row, ``[B]`` fp32: ``(q l+ + (1 - q) l-) c / b``, as published.

    ``velocity`` (with a graph) and ``old``, of the policy that drew, ``[B, ...]`` at ``noised [B, ...]``
    = (1 - sigma) clean + sigma eps, with ``sigma [B]`` in (0, 1]; ``advantages [B]``. l is the mean squared
    error of the data that a velocity stands for, over its mean absolute error, which passes no gradient.
    """
    towards, away = contrast(velocity.float(), old.detach().float(), config.mix)
    q = optimality(advantages, config.clip)
    good, bad = (_error(noised, v, sigma, clean) for v in (towards, away))
    return (q * good + (1 - q) * bad) * (config.clip / config.mix)


def _error(noised: Tensor, velocity: Tensor, sigma: Tensor, clean: Tensor) -> Tensor:
    """Self-normalised, ``[B]``."""
    level = sigma.view(-1, *[1] * (noised.ndim - 1))
    off = (noised - level * velocity - clean).flatten(1)
    return off.square().mean(1) / off.detach().abs().mean(1).clamp(min=LEAST_ERROR)
