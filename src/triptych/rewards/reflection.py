"""Reflection as rewards: were the verdicts on drawings right, is the last drawing better than the first.

Both trust a judge of pictures and know no world; our design from the paper's description (UniRL-Zero, arXiv
2510.17937, scenario 6; its code has none).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from triptych.evals.answers import answer_of
from triptych.rewards.base import SampleReward
from triptych.rewards.geneval import Judge
from triptych.trajectory import Sample


def said_right(text: str) -> bool | None:
    """Whether a verdict's first word is "right" (True) or "wrong" (False); None where it is neither."""
    first = re.match(r"\W*(\w+)", answer_of(text).lower())
    return {"right": True, "wrong": False}.get(first[1]) if first else None


@dataclass(frozen=True)
class VerdictReward:
    """1 where a text calls its drawing what the judge finds it, right or wrong; else 0.

    The mean over those of ``pairs``, drawing and text, that the episode has. What is no verdict scores 0.
    None where the task has no ``include`` or the episode has no pair. ``balanced``: among all samples of a
    call, right drawings count as much as wrong ones; else who calls all of them what most are does well. An
    advantage that is divided by its own group's spread undoes that where a group's drawings are alike.
    """

    judge: Judge
    balanced: bool = False
    pairs: tuple[tuple[str, str], ...] = (
        ("first", "verdict"),
        ("second", "second_verdict"),
        ("third", "third_verdict"),
    )

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        told = [list(self._told(sample)) for sample in samples]
        drawn = [right for each in told for right, _ in each]
        worth = {True: 1.0, False: 1.0}
        if self.balanced:
            worth = {kind: len(drawn) / (2 * max(1, drawn.count(kind))) for kind in worth}
        return [
            sum(worth[r] * (r is said) for r, said in each) / len(each) if each else None for each in told
        ]

    def _told(self, sample: Sample) -> Iterator[tuple[bool, bool | None]]:
        """Of every pair: is the drawing right, and what is it called."""
        if sample.task.metadata.get("include"):
            for drawing, text in self.pairs:
                if drawing in sample.pictures and text in sample.texts:
                    right = self.judge(sample.pictures[drawing], sample.task.metadata).correct
                    yield right, said_right(sample.texts[text])


@dataclass(frozen=True)
class ImprovementReward(SampleReward):
    """The completion's score less that of an earlier ``drawing``; at most 0 where that was right already.

    So 0 where that drawing was left as it is. None where the task has no ``include`` or the episode lacks one
    of the two.
    """

    judge: Judge
    drawing: str = "first"

    def score(self, sample: Sample) -> float | None:
        first, last = sample.pictures.get(self.drawing), sample.completion
        if first is None or not isinstance(last, Tensor) or not sample.task.metadata.get("include"):
            return None
        before, after = (self.judge(picture, sample.task.metadata) for picture in (first, last))
        gain = after.score - before.score
        return min(gain, 0.0) if before.correct else gain
