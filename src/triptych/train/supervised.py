"""Learning from examples: the cross-entropy of what should follow, by any split of the batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.evals.evaluation import Evaluation
from triptych.models.base import Example, UnifiedModel
from triptych.train import distributed
from triptych.train.loop import Gradient, JobConfig, Learner, autocast

KINDS = ("draw", "read")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(JobConfig):
    """Supervised training. ``weights`` scale the mean loss of each kind of target ("draw", "read")."""

    batch: int = 192
    weights: Mapping[str, float] = field(default_factory=lambda: {"draw": 1.0, "read": 1.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1:
            raise UserError(f"batch must be at least 1, got {self.batch}")
        if unknown := sorted(set(self.weights) - set(KINDS)):
            raise UserError(f"weights names {unknown[0]!r}; the kinds of target are {', '.join(KINDS)}")


class SupervisedLearner(Learner):
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
        size = self.config.micro_batch
        for kind in KINDS:
            rows = _of(kind, examples)
            total = float(distributed.all_sum(torch.tensor(float(self.model.target_count(rows)))))
            if total:  # also where this process has none of them: metrics are summed over all processes
                self.sums[kind] = torch.zeros(())
            for part in _alike(rows, size):
                with autocast(self.config, self.model.device):
                    loss = self.model.supervised_loss(part)[kind].total / total
                self.sums[kind] += loss.detach().cpu()
                yield loss * self.config.weights.get(kind, 1.0)

    def metrics(self) -> dict[str, float]:
        """Mean loss a token, by kind."""
        means = {
            f"loss/{kind}": float(distributed.all_sum(value)) for kind, value in sorted(self.sums.items())
        }
        return {"loss": sum(means.values()), **means}


def _of(kind: str, examples: Sequence[Example]) -> list[Example]:
    return [e for e in examples if isinstance(e.target, str) == (kind == "read")]


def _alike(rows: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """At most ``size`` at a time, those with pictures in their prompts apart: others would be padded."""
    groups = [[e for e in rows if bool(e.prompt.pictures) == seen] for seen in (False, True)]
    return (group[i : i + size] for group in groups for i in range(0, len(group), size))


@torch.no_grad()
def evaluate_loss(config: SupervisedConfig, model: UnifiedModel, examples: Sequence[Example]) -> Evaluation:
    """Held-out examples, always with the same noise; summary: score (minus the loss), n, heldout.

    ``heldout`` has the mean loss a token of each kind of target, "loss/draw" and "loss/read".
    """
    losses = {}
    for kind in KINDS:
        with autocast(config, model.device):
            parts = _alike(_of(kind, examples), config.micro_batch)
            found = [model.supervised_loss(part)[kind] for part in parts]
        if found:
            count = sum(float(part.count) for part in found)
            losses[f"loss/{kind}"] = sum(float(part.total) for part in found) / count
    return Evaluation(summary={"score": -sum(losses.values()), "n": len(examples), "heldout": losses})
