"""A judge by GenEval's rule as a reward. It must not know what the judge sees objects with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from triptych.evals.geneval import Verdict
from triptych.rewards.base import SampleReward
from triptych.trajectory import Picture, Sample

Judge = Callable[[Picture, Mapping[str, Any]], Verdict]
"""Judges one picture, uint8 ``[H, W, 3]``, by a task's metadata."""


@dataclass(frozen=True)
class GenEvalReward(SampleReward):
    """Scores each sample's ``completion`` picture by its task's GenEval metadata (arXiv 2310.11513).

    With a detector the ``judge`` is ``lambda picture, metadata: judge(detect(picture), metadata)``, by
    :func:`triptych.evals.geneval.judge`. ``dense`` gives the share of the prompt that is met, in [0, 1];
    otherwise GenEval's own 0 or 1. A ``drawing`` names a segment whose picture is judged instead. A sample
    whose task has no ``include``, or that has no such picture, cannot be scored and gets None.
    """

    judge: Judge
    dense: bool = True
    drawing: str = ""

    def score(self, sample: Sample) -> float | None:
        found = self.verdict(sample)
        return None if found is None else found.score if self.dense else float(found.correct)

    def verdict(self, sample: Sample) -> Verdict | None:
        """What the score comes from, and the reason for it."""
        picture = sample.pictures.get(self.drawing) if self.drawing else sample.completion
        if not sample.task.metadata.get("include") or not isinstance(picture, Tensor):
            return None
        return self.judge(picture, sample.task.metadata)
