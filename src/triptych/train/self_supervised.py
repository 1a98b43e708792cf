"""Self-supervision: the model draws, is asked about its drawing, and its prompts alone say what is right.

Rollouts, grades and log of a policy gradient, another loss (UniRL, arXiv 2505.23380): no picture comes from
outside. It asks a model for likelihoods and relaxed drawings, and never what kind of actions they hold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.kernels.relaxed import Relaxation
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import Example, LossSum
from triptych.train import distributed
from triptych.train.loop import Gradient
from triptych.train.policy import Batch, PolicyConfig, PolicyLearner
from triptych.trajectory import Prompt

DRAWING, ANSWER = "image", "answer"
"""The segments of :class:`SelfQuiz`."""
POLICY_ONLY = ("clip", "kl", "entropy", "ratio_error", "non_finite")
"""Metrics of policy gradients, which say nothing here."""


@dataclass(frozen=True, kw_only=True)
class SelfSupervisedConfig(PolicyConfig):
    """As :class:`PolicyConfig`, learning from what is right in place of ``loss``.

    The loss of "answer" is the cross-entropy of the task's answer after drawing and question, that of "image"
    the negative log-likelihood of the drawing's own actions; ``segment_weights`` scale them (0: not learned).
    ``least`` is the total reward from which an episode's drawing, or its answer, is learned from: by default
    drawings whose answers were wholly right, and the right answer to whatever was drawn. With the ``regime``
    "end_to_end" the answer's gradient reaches the drawing too, by ``relaxation``; with "separate" it does
    not.
    """

    regime: Literal["end_to_end", "separate"] = "end_to_end"
    least: Mapping[str, float] = field(default_factory=lambda: {DRAWING: 1.0, ANSWER: 0.0})
    relaxation: Relaxation = Relaxation()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.losses != (PolicyLossConfig(),):
            raise UserError("loss is for policy gradients: here likelihoods are learned, see segment_weights")
        if set(self.least) != {DRAWING, ANSWER}:
            raise UserError(f"least must name {DRAWING} and {ANSWER}, got {', '.join(self.least) or 'none'}")


class SelfSupervisedLearner(PolicyLearner):
    """Makes gradients from the model's own drawings and the answers that their prompts imply.

    Raises UserError for a task without an answer, and for a model that lacks what the regime needs.
    """

    config: SelfSupervisedConfig

    def __init__(self, config: SelfSupervisedConfig, *parts: Any, **more: Any) -> None:
        super().__init__(config, *parts, **more)
        if config.regime == "end_to_end":
            self.model.require("relax")
        kinds = self.stream.kinds.values()
        if missing := [task.id for kind in kinds for task in kind.tasks if task.answer is None]:
            raise UserError(
                f"task {missing[0]} has no answer to learn; `triptych quiz` makes prompts that do"
            )
        self.checked = True  # no recorded log-probability enters the losses
        self.found = _nothing()

    def gradients(self, step: int) -> Iterator[Gradient]:
        """Draw, ask, grade, and give the optimizer steps."""
        self.found = _nothing()
        yield from super().gradients(step)

    def losses(self, batch: Batch, rows: Sequence[int], *, first: bool = True) -> Iterator[Tensor]:
        """Both losses in micro-batches, each over all its elements; where there are none it is left out."""
        of: dict[str, Callable[[Batch, Sequence[int]], LossSum]]
        of = {DRAWING: self._drawing, ANSWER: self._answer}
        size = self.config.micro_batch
        for name, loss in of.items():
            weight = self.config.segment_weights.get(name, 1.0)
            kept = [b for b in rows if weight and batch.judged.total[b] >= self.config.least[name]]
            total = float(distributed.all_sum(torch.tensor(float(self._count(batch, name, kept)))))
            self.found[name][2] += len(kept)
            for i in range(0, len(kept), size):
                part = loss(batch, kept[i : i + size])
                self.found[name][:2] += torch.stack([part.total.detach(), part.count]).double().cpu()
                yield part.total * (weight / total)

    def _count(self, batch: Batch, name: str, rows: Sequence[int]) -> int:
        """Elements of a loss: actions of drawings, or tokens of answers."""
        if name == DRAWING:
            return int(batch.rollout.segments[name].mask[list(rows)].sum())
        return self.model.target_count(self._examples(batch, rows))

    def _drawing(self, batch: Batch, rows: Sequence[int]) -> LossSum:
        segment = batch.rollout.segments[DRAWING].rows(rows).to(self.model.device)
        logp = self.model.score(segment, frozenset({"logp"})).logp
        assert logp is not None
        return LossSum(-(logp * segment.mask).sum(), segment.mask.sum())

    def _answer(self, batch: Batch, rows: Sequence[int]) -> LossSum:
        examples = self._examples(batch, rows)
        if self.config.regime == "end_to_end":
            drawn, keys = batch.rollout.segments[DRAWING], self._fresh(batch, rows, f"{DRAWING}/relaxed")
            soft = self.model.relax(drawn.rows(rows), self.config.relaxation, keys)
            examples = [
                Example(prompt=Prompt.of(p, e.prompt.text), target=e.target)
                for p, e in zip(soft, examples, strict=True)
            ]
        return self.model.supervised_loss(examples)["read"]

    def _examples(self, batch: Batch, rows: Sequence[int]) -> list[Example]:
        """The drawings as they were recorded, the questions that were asked, and the right answers."""
        asked, samples = batch.rollout.segments[ANSWER].context, batch.rollout.samples
        return [Example(prompt=asked[b], target=samples[b].task.answer or "") for b in rows]

    def metrics(self) -> dict[str, float]:
        """Grades, the share whose answers were right, losses an element, how many were learned from."""
        told = {k: v for k, v in super().metrics().items() if k not in POLICY_ONLY}
        assert self.batch is not None
        right = (self.batch.judged.total >= self.config.least[DRAWING]).sum()
        told["right"] = float(distributed.all_sum(right.double())) / told["episodes"]
        for name, found in self.found.items():
            total, count, rows = distributed.all_sum(found).tolist()
            told[f"learned/{name}"] = rows
            if count:
                told[f"loss/{name}"] = total / count
        return told


def _nothing() -> dict[str, Tensor]:
    """Of each loss: its sum, its elements, its episodes."""
    return {name: torch.zeros(3, dtype=torch.float64) for name in (DRAWING, ANSWER)}
