"""What a model wrote, as rewards: is it right, is it in form, is it too long.

Each looks at one text of an episode. It must not know which world a task is from, nor which model wrote.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triptych.errors import UserError
from triptych.evals.answers import Rule, answer_of, parts_of, same_answer
from triptych.trajectory import Sample


def written(sample: Sample, segment: str = "") -> str | None:
    """The text of a segment; without a name the completion, or if that is a picture the one text there is.

    None where there is no such text, or several to choose from.
    """
    if segment:
        return sample.texts.get(segment)
    if isinstance(sample.completion, str):
        return sample.completion
    return next(iter(sample.texts.values())) if len(sample.texts) == 1 else None


@dataclass(frozen=True)
class AnswerReward:
    """1 where the text answers as the task's ``answer`` does, else 0 (UniRL-Zero, scenarios 1 and 2).

    Judged is what stands in ``<answer>``, or the whole text where there is no such block. ``rule`` compares
    it with the reference: short texts, or :func:`triptych.evals.answers.mathematics`. None for a task without
    an answer and for an episode without the text.
    """

    rule: Rule = same_answer
    segment: str = ""

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float | None:
        text, reference = written(sample, self.segment), sample.task.answer
        if text is None or reference is None:
            return None
        return float(self.rule(answer_of(text), reference))


@dataclass(frozen=True)
class FormatReward:
    """1 for one think block, then one answer block, and nothing else; 0 for any other text."""

    segment: str = ""

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        texts = [written(sample, self.segment) for sample in samples]
        return [None if text is None else float(parts_of(text) is not None) for text in texts]


def count_words(text: str) -> int:
    """Words, punctuation marks and block marks: the tokens of a word-level tokenizer."""
    return len(re.findall(r"</?\w+>|\w+|[^\w\s]", text))


@dataclass(frozen=True)
class LengthReward:
    """The penalty for long texts, in [-1, 0] (DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13).

    0 up to ``longest - cache``, then linear down to -1 at ``longest``, and -1 beyond. Lengths are in the unit
    of ``count``, which for the model's own tokens is its tokenizer's. UserError unless 0 < cache <= longest.
    """

    longest: int
    cache: int
    count: Callable[[str], int] = count_words
    segment: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.longest:
            raise UserError(f"a length reward needs 0 < cache <= longest, got {self.cache}, {self.longest}")

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        texts = [written(sample, self.segment) for sample in samples]
        return [None if text is None else self._penalty(self.count(text)) for text in texts]

    def _penalty(self, length: int) -> float:
        return min(0.0, max(-1.0, (self.longest - self.cache - length) / self.cache))
