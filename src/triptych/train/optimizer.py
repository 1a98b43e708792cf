"""Optimizers over named parameter groups, schedules, clipping, averages of weights.

Master weights and states are fp32. Knows parameters by group name and nothing of models or losses.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from triptych.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for hidden matrices with AdamW for the rest.

    ``lr`` is the base rate; ``group_lr`` overrides it for named parameter groups. ``muon_lr`` is Muon's own
    rate, scaled by the same schedule. ``decay`` is the share of steps, at the end, in which the rate falls to
    zero, on a line or half a cosine as ``schedule`` says. Gradients are clipped to ``max_norm``, the L2 norm
    of all of them together ("global") or of each group by itself ("group"), as if it had an optimizer of its
    own.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    muon_lr: float = 0.01
    group_lr: Mapping[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    decay: float = 0.0
    schedule: Literal["linear", "cosine"] = "linear"
    max_norm: float = 1.0
    clip: Literal["global", "group"] = "global"

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "max_norm"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")

    def rate(self, step: int, steps: int) -> float:
        """Factor on the learning rates at ``step`` (1-based) of ``steps``."""
        warm = min(1.0, step / self.warmup) if self.warmup else 1.0
        tail = math.ceil(steps * self.decay)
        left = min(1.0, (steps - step + 1) / tail) if tail else 1.0
        return warm * (left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


class Optimizer:
    """One or two torch optimizers stepped together."""

    def __init__(self, groups: Mapping[str, Sequence[nn.Parameter]], config: OptimizerConfig) -> None:
        _check(groups, config)
        self.config = config
        self.groups = {name: list(parameters) for name, parameters in groups.items()}
        self.parameters = [p for group in groups.values() for p in group]
        matrices: list[dict[str, object]] = []
        others: list[dict[str, object]] = []
        for name, parameters in groups.items():
            factor = config.group_lr.get(name, config.lr) / config.lr
            hidden = [p for p in parameters if config.kind == "muon" and is_hidden_matrix(p)]
            rest = [p for p in parameters if not any(p is q for q in hidden)]
            matrices.append({"params": hidden, "base": config.muon_lr * factor})
            others.append({"params": rest, "base": config.lr * factor})
        self.parts: list[torch.optim.Optimizer] = []
        if others := [g for g in others if g["params"]]:
            self.parts.append(
                torch.optim.AdamW(
                    others, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
                )
            )
        if matrices := [g for g in matrices if g["params"]]:
            self.parts.append(
                torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, momentum=0.95)
            )

    def zero_grad(self) -> None:
        """Forget gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def norms(self) -> dict[str, float]:
        """The gradient's L2 norm in each group."""
        return {name: float(_norm(parameters)) for name, parameters in self.groups.items()}

    def clip(self) -> Tensor:
        """Clip to ``max_norm``; returns the norm before, of all gradients together."""
        whole = _norm(self.parameters)
        for parameters in self.groups.values() if self.config.clip == "group" else [self.parameters]:
            norm = whole if self.config.clip == "global" else _norm(parameters)
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_norm, norm)
        return whole

    def step(self, factor: float) -> None:
        """One update at ``factor`` times the base rates."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["base"] * factor
            part.step()


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def is_hidden_matrix(parameter: nn.Parameter) -> bool:
    """Muon's realm: weight matrices between hidden layers; embeddings and heads (very tall) are left out."""
    return parameter.ndim == 2 and max(parameter.shape) <= 4 * min(parameter.shape)


def _check(groups: Mapping[str, Sequence[nn.Parameter]], config: OptimizerConfig) -> None:
    seen: set[int] = set()
    for name, parameters in groups.items():
        if not parameters:
            raise UserError(f"parameter group {name!r} is empty: nothing in it would train")
        twice = [p for p in parameters if id(p) in seen]
        if twice:
            raise UserError(f"parameter group {name!r} holds a parameter of another group too")
        seen |= {id(p) for p in parameters}
    unknown = set(config.group_lr) - set(groups)
    if unknown:
        raise UserError(f"no parameter group {sorted(unknown)[0]!r}; this model has {', '.join(groups)}")


class Average:
    """Exponential moving average of weights, fp32, with a swap for evaluation."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move a step of ``1 - decay`` towards the present weights."""
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; calling it twice restores both bit for bit."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model computes with the averages."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def tensors(self) -> dict[str, Tensor]:
        """The averages, to be saved."""
        return {f"{i:05d}": value for i, value in enumerate(self.values)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back :meth:`tensors`."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
