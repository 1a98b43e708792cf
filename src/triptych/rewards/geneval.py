"""A detector and GenEval's rule as a reward.

It knows pictures, a function that finds objects in one, and the rule. It must not know which detector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from triptych.evals.geneval import Detection, Verdict, judge
from triptych.trajectory import Sample

Detector = Callable[[np.ndarray[Any, Any]], list[Detection]]
"""Finds objects in one picture, uint8 ``[H, W, 3]``."""


@dataclass(frozen=True)
class GenEvalReward:
    """Scores each sample's ``completion`` picture by its task's GenEval metadata (arXiv 2310.11513).

    ``dense`` gives the share of the prompt that is met, in [0, 1]; otherwise GenEval's own 0 or 1. A
    ``drawing`` names a segment whose picture is judged instead. A sample whose task has no ``include``, or
    that has no such picture, cannot be scored and gets None.
    """

    detect: Detector
    dense: bool = True
    drawing: str = ""

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        verdicts = [self._verdict(sample) for sample in samples]
        return [None if v is None else v.score if self.dense else float(v.correct) for v in verdicts]

    def reasons(self, samples: Sequence[Sample]) -> list[str]:
        """One line a sample on why it got its score, for people. Runs the detector again."""
        verdicts = [self._verdict(sample) for sample in samples]
        return ["not scored: no include metadata or no picture" if v is None else v.reason for v in verdicts]

    def _verdict(self, sample: Sample) -> Verdict | None:
        picture = sample.pictures.get(self.drawing) if self.drawing else sample.completion
        if not sample.task.metadata.get("include") or not isinstance(picture, Tensor):
            return None
        return judge(self.detect(picture.cpu().numpy()), dict(sample.task.metadata))
