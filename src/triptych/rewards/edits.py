"""Edits as rewards: does the way back lead back, did the change go the asked way.

That an edit shows what was asked is for GenEval's rule to say, as of any drawing, and whether the rest was
kept for :mod:`triptych.rewards.preservation`. They must not know which model embeds pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import cosine_similarity

from triptych.rewards.base import SampleReward
from triptych.trajectory import Picture, Sample

Similarity = Callable[[Picture, Picture], float]
"""How alike two pictures of one size are, in [0, 1], 1 for the same."""
Embed = Callable[[Sequence[Picture]], Tensor]
"""Pictures, uint8 ``[H, W, 3]`` each, to features ``[B, D]``: CLIP's image tower, for one."""
EmbedText = Callable[[Sequence[str]], Tensor]
"""Texts to features ``[B, D]`` in the same space."""


def pixel_similarity(a: Picture, b: Picture) -> float:
    """1 less the mean absolute difference of the pixels."""
    return 1 - float((a.float() - b.float()).abs().mean()) / 255


def feature_similarity(embed: Embed) -> Similarity:
    """The cosine of two pictures' features, at least 0; with CLIP's it is what UniRL-Zero takes."""
    return lambda a, b: max(0.0, float(cosine_similarity(*embed([a, b]).float()[:, None])))


@dataclass(frozen=True)
class CycleReward(SampleReward):
    """How like the source the picture is that came back (UniRL-Zero, Cycle Edit RL).

    The source is compared as models see it, its middle cut and resized to the drawing's shape. None for a
    task without a source and for an episode without a way back.
    """

    similarity: Similarity = pixel_similarity
    drawing: str = "back"

    def score(self, sample: Sample) -> float | None:
        source, back = sample.task.source, sample.pictures.get(self.drawing)
        return None if source is None or back is None else self.similarity(fitted(source, back), back)


def fitted(source: Picture, like: Picture) -> Picture:
    """The middle of ``source`` in the shape of ``like``; itself if it has that shape."""
    if source.shape == like.shape:
        return source
    height, width, _ = like.shape
    image = ImageOps.fit(Image.fromarray(source.numpy()), (width, height), Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(like.shape)


@dataclass(frozen=True)
class DirectionReward(SampleReward):
    """``cos(I(y) - I(x), T(target) - T(source))``, in [-1, 1]: the picture changed as the words did.

    x is the task's source, y the completion; the words are ``target_text`` and the column "source_text". With
    CLIP's towers it is UniRL-Zero's. None where one of the four is lacking.
    """

    image: Embed
    text: EmbedText

    def score(self, sample: Sample) -> float | None:
        x, y, target = sample.task.source, sample.completion, sample.task.target_text
        said = sample.task.columns.get("source_text")
        if x is None or not isinstance(y, Tensor) or target is None or not isinstance(said, str):
            return None
        seen, told = self.image([fitted(x, y), y]).float(), self.text([said, target]).float()
        return float(cosine_similarity(seen[1] - seen[0], told[1] - told[0], dim=0))
