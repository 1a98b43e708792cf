"""Learning from examples: the cross-entropy of what should follow, by any split of the batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from triptych.models.base import Example, UnifiedModel
from triptych.train import distributed
from triptych.train.loop import Gradient, JobConfig, autocast
from triptych.trajectory import Picture


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(JobConfig):
    """Supervised training. ``weights`` scale the mean loss of each kind of target ("draw", "read")."""

    batch: int = 192
    weights: Mapping[str, float] = field(default_factory=lambda: {"draw": 1.0, "read": 1.0})


class SupervisedLearner:
    """Makes gradients from ``examples(step)``, which must be a pure function of the step."""

    def __init__(
        self, config: SupervisedConfig, model: UnifiedModel, examples: Callable[[int], Sequence[Example]]
    ) -> None:
        self.config, self.model, self.examples = config, model, examples
        self.sums: dict[str, Tensor] = {}

    def gradients(self, step: int) -> Iterator[Gradient]:
        """One optimizer step on one batch."""
        rank, size = distributed.rank_and_size()
        mine = list(self.examples(step))[rank::size]
        yield Gradient(losses=self._losses(mine))

    def _losses(self, examples: Sequence[Example]) -> Iterator[Tensor]:
        """Micro-batches of like targets; each kind's denominator counts the elements of the whole batch."""
        self.sums = {}
        by_kind = {"draw": [], "read": []}  # type: dict[str, list[Example]]
        for example in examples:
            by_kind["read" if isinstance(example.target, str) else "draw"].append(example)
        size = self.config.micro_batch
        for kind, rows in by_kind.items():
            counts = [self.model.target_count(rows[i : i + size]) for i in range(0, len(rows), size)]
            total = distributed.all_sum(torch.tensor(float(sum(counts)))).clamp(min=1)
            for i in range(0, len(rows), size):
                with autocast(self.config, self.model.device):
                    loss = self.model.supervised_loss(rows[i : i + size])[kind].total / total
                self.sums[kind] = self.sums.get(kind, torch.zeros(())) + loss.detach().cpu()
                yield loss * self.config.weights.get(kind, 1.0)

    def metrics(self) -> dict[str, float]:
        """Mean loss a token, by kind."""
        means = {
            f"loss/{kind}": float(distributed.all_sum(value)) for kind, value in sorted(self.sums.items())
        }
        return {"loss": sum(means.values()), **means}

    def samples(self) -> tuple[Sequence[Picture], Sequence[Mapping[str, Any]]]:
        """None: evaluations show what was learned."""
        return (), ()

    def state(self) -> dict[str, Any]:
        """Nothing: a batch depends on the step alone."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""
