"""What a model wrote, as rewards: is it right, is it in form, is it too long.

Each looks at one text of an episode. It must not know which world a task is from, nor which model wrote.
"""

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from triptych.errors import UserError
from triptych.evals.answers import Rule, answer_of, parts_of, same_answer
from triptych.rewards.base import SampleReward
from triptych.trajectory import Sample, Task


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
class TextReward(SampleReward):
    """Looks at the text of ``segment`` (see :func:`written`); None for an episode without that text."""

    segment: str = field(default="", kw_only=True)

    @abstractmethod
    def score_text(self, text: str, task: Task) -> float | None:
        """What the text is worth for its task."""

    def score(self, sample: Sample) -> float | None:
        text = written(sample, self.segment)
        return None if text is None else self.score_text(text, sample.task)


@dataclass(frozen=True)
class AnswerReward(TextReward):
    """1 where the text answers as the task's ``answer`` does, else 0 (UniRL-Zero, scenarios 1 and 2).

    Judged is what stands in ``<answer>``, or the whole text where there is no such block. ``rule`` compares
    it with the reference: short texts, or :func:`triptych.evals.answers.mathematics`. None for a task without
    an answer.
    """

    rule: Rule = same_answer

    def score_text(self, text: str, task: Task) -> float | None:
        return None if task.answer is None else float(self.rule(answer_of(text), task.answer))


@dataclass(frozen=True)
class FormatReward(TextReward):
    """1 for one think block, then one answer block, and nothing else; 0 for any other text."""

    def score_text(self, text: str, task: Task) -> float:
        return float(parts_of(text) is not None)


def count_words(text: str) -> int:
    """Words, punctuation marks and block marks: the tokens of a word-level tokenizer."""
    return len(re.findall(r"</?\w+>|\w+|[^\w\s]", text))


@dataclass(frozen=True)
class LengthReward(TextReward):
    """The penalty for long texts, in [-1, 0] (DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13).

    0 up to ``longest - cache``, then linear down to -1 at ``longest``, and -1 beyond. Lengths are in the unit
    of ``count``, which for the model's own tokens is its tokenizer's. UserError unless 0 < cache <= longest.
    """

    longest: int
    cache: int
    count: Callable[[str], int] = count_words

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.longest:
            raise UserError(f"a length reward needs 0 < cache <= longest, got {self.cache}, {self.longest}")

    def score_text(self, text: str, task: Task) -> float:
        return min(0.0, max(-1.0, (self.longest - self.cache - self.count(text)) / self.cache))
