"""Whether an edit left the rest of the picture as it was: the term that published edit rewards lack.

It trusts a mask of what must stay, and knows neither worlds nor models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.errors import UserError
from triptych.rewards.base import SampleReward
from triptych.trajectory import Picture, Sample

Similarity = Callable[[Picture, Picture], Tensor | float]
"""How alike two pictures of one size are, about 0 to 1: one number, or a map ``[H, W]``."""
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def ssim(first: Picture, second: Picture) -> Tensor:
    """Structural similarity at each pixel, fp32 ``[H, W]``, mean of the channels (Wang et al. 2004, eq. 13).

    In a gaussian window of 11 x 11 pixels, sigma 1.5, weights of sum 1; edges are repeated outwards.
    """
    x, y = (p.permute(2, 0, 1)[:, None].double() / 255 for p in (first, second))
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    line = torch.exp(-(offset**2) / (2 * SIGMA**2))
    window = (torch.outer(line, line) / line.sum() ** 2).to(x)[None, None]

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(F.pad(values, [WINDOW // 2] * 4, mode="replicate"), window)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    alike = (2 * mx * my + K1**2) * (2 * cov + K2**2)
    return (alike / ((mx**2 + my**2 + K1**2) * (vx + vy + K2**2))).mean(dim=(0, 1)).float()


def kept_pixels(sample: Sample) -> Tensor | None:
    """Which pixels of the source must stay, bool ``[H, W]``; None where the task does not say.

    The task's metadata or columns have boxes ``[x0, y0, x1, y1]`` in pixels, x1 and y1 not included:
    ``edit_region``, outside of which all must stay, or ``kept_region``, inside of which.
    """
    said = {**sample.task.metadata, **sample.task.columns}
    name = "edit_region" if said.get("edit_region") is not None else "kept_region"
    if sample.task.source is None or said.get(name) is None:
        return None
    inside = torch.zeros(sample.task.source.shape[:2], dtype=torch.bool)
    for box in said[name]:
        x0, y0, x1, y1 = (max(int(edge), 0) for edge in box)
        inside[y0:y1, x0:x1] = True
    return ~inside if name == "edit_region" else inside


@dataclass(frozen=True)
class PreservationReward(SampleReward):
    """How much of what must stay did, in [0, 1]: a mean of pixels and ``similar`` features.

    Of the pixels that :func:`kept_pixels` marks: ``1 - weight`` times the share that changed by no more than
    ``tolerance`` (of 255, in each channel), plus ``weight`` times their mean similarity to the source, where
    the edited pixels are first put back to the source's, so that no window looks at the edit. None where the
    task has no source or no mask, nothing must stay, or the drawing has another size.
    """

    similar: Similarity = ssim
    weight: float = 0.5
    tolerance: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UserError(f"the weight of features must lie between 0 and 1, got {self.weight}")

    def score(self, sample: Sample) -> float | None:
        source, drawing, kept = sample.task.source, sample.completion, kept_pixels(sample)
        if source is None or kept is None or not kept.any() or not isinstance(drawing, Tensor):
            return None
        if drawing.shape != source.shape:
            return None
        drawing = drawing.cpu()
        change = (drawing.int() - source.int()).abs().amax(dim=-1)
        same = float((change <= self.tolerance)[kept].float().mean())
        alike = self.similar(source, torch.where(kept[..., None], drawing, source))
        found = float(alike[kept].mean() if isinstance(alike, Tensor) and alike.ndim else alike)
        return (1 - self.weight) * same + self.weight * min(max(found, 0.0), 1.0)
