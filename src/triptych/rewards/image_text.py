"""How well a picture fits a text, by models that embed both: CLIP, PickScore, HPSv2.

One reward for drawing and editing alike (UniGen-1.5, arXiv 2511.14760): the text of a drawing is its prompt,
that of an edit describes the picture after it. Knows embeddings; which model they are from, it must not know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from triptych.trajectory import Picture, Sample, Task


class Embedder(Protocol):
    """Pictures and texts as vectors of length 1, fp32 ``[B, D]``; ``scale`` is what multiplies cosines."""

    @property
    def scale(self) -> float: ...

    def see(self, pictures: Sequence[Picture]) -> Tensor: ...

    def read(self, texts: Sequence[str]) -> Tensor: ...


def text_of(task: Task) -> str:
    """What the picture should show: the task's ``target_text``, else its prompt."""
    return task.target_text or task.prompt


@dataclass(frozen=True)
class ClipScore:
    """The cosine of picture and text, in [-1, 1] (arXiv 2104.08718, without its factor and its cut at 0).

    ``batch`` pictures at once. None where the completion is no picture.
    """

    embed: Embedder
    batch: int = 32
    scaled: ClassVar[bool] = False

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        scores: list[float | None] = [None] * len(samples)
        drawn = [(i, s.completion) for i, s in enumerate(samples) if isinstance(s.completion, Tensor)]
        for start in range(0, len(drawn), self.batch):
            rows, pictures = zip(*drawn[start : start + self.batch], strict=True)
            texts = [text_of(samples[i].task) for i in rows]
            fits = (self.embed.see(pictures) * self.embed.read(texts)).sum(dim=-1)
            for i, fit in zip(rows, fits.tolist(), strict=True):
                scores[i] = fit * (self.embed.scale if self.scaled else 1.0)
        return scores


@dataclass(frozen=True)
class PickScore(ClipScore):
    """The cosine times the model's scale, about 17 to 24 with the public weights (arXiv 2305.01569)."""

    scaled: ClassVar[bool] = True


@dataclass(frozen=True)
class HPSv2(ClipScore):
    """The cosine in the space of HPSv2.1, about 0.2 to 0.35 with the public weights (arXiv 2306.09341)."""
