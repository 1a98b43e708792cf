"""Reflection as rewards: was the verdict on the first drawing right, and is the second one better.

Both trust a judge of pictures and know no world; our design from the paper's description (UniRL-Zero, arXiv
2510.17937, scenario 6; its code has none).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.evals.answers import answer_of
from triptych.evals.geneval import Verdict
from triptych.rewards.answers import written
from triptych.trajectory import Picture, Sample

Judge = Callable[[Picture, Mapping[str, Any]], Verdict]
"""Judges one picture, uint8 ``[H, W, 3]``, by a task's metadata."""


def said_right(text: str) -> bool | None:
    """Whether a verdict's first word is "right" (True) or "wrong" (False); None where it is neither."""
    first = re.match(r"\W*(\w+)", answer_of(text).lower())
    return {"right": True, "wrong": False}.get(first[1]) if first else None


@dataclass(frozen=True)
class VerdictReward:
    """1 where the text calls the drawing what the judge finds it, right or wrong; else 0.

    What is no verdict scores 0. None where the task has no ``include`` or the episode lacks text or drawing.
    """

    judge: Judge
    drawing: str = "first"
    segment: str = "verdict"
    name: str = "verdict"

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float | None:
        picture, text = sample.pictures.get(self.drawing), written(sample, self.segment)
        if picture is None or text is None or not sample.task.metadata.get("include"):
            return None
        return float(said_right(text) is self.judge(picture, sample.task.metadata).correct)


@dataclass(frozen=True)
class ImprovementReward:
    """The second drawing's score less the first's; at most 0 where the first was right already.

    None where the task has no ``include`` or the episode lacks one of the drawings.
    """

    judge: Judge
    drawings: tuple[str, str] = ("first", "second")
    name: str = "improvement"

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float | None:
        pictures = [sample.pictures.get(name) for name in self.drawings]
        if not sample.task.metadata.get("include"):
            return None
        verdicts = [self.judge(p, sample.task.metadata) for p in pictures if p is not None]
        if len(verdicts) < len(pictures):
            return None
        before, after = verdicts
        gain = after.score - before.score
        return min(gain, 0.0) if before.correct else gain
