"""A dictionary of small patches: the simplest codec that keeps flat pictures intact.

A picture is cut into p x p patches, and each becomes the index of its nearest dictionary entry; decoding
looks them up. Built by k-means (:func:`fit`). Starters use it in place of their public model's codec.
"""

from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import fold, unfold

from triptych.models.weights import read_state_dict


class PatchCodec:
    """``codebook [K, 3 p p]`` in [0, 1]; ids in raster order of patches."""

    FILE: ClassVar[str] = "codec.safetensors"

    def __init__(self, codebook: Tensor) -> None:
        self.codebook = codebook
        self.patch = round((codebook.shape[1] / 3) ** 0.5)

    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] -> ids ``[B, (H / p) (W / p)]``."""
        patches = patches_of(images, self.patch)
        return nearest(patches.flatten(0, 1), self.codebook.to(patches)).view(patches.shape[:2])

    def decode(self, ids: Tensor) -> Tensor:
        """ids ``[B, N]`` of a square picture -> ``[B, 3, H, W]`` in [0, 1]."""
        return self.decode_soft(self.codebook.to(ids.device)[ids])

    def decode_soft(self, vectors: Tensor) -> Tensor:
        """Patches ``[B, N, 3 p p]`` of a square picture -> ``[B, 3, H, W]``, with gradients."""
        side = round(vectors.shape[1] ** 0.5) * self.patch
        return fold(vectors.transpose(1, 2), (side, side), kernel_size=self.patch, stride=self.patch)

    def save(self, folder: Path) -> None:
        """Write ``codec.safetensors``."""
        save_file({"codebook": self.codebook.contiguous()}, folder / self.FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote."""
        return cls(read_state_dict(folder, [cls.FILE])["codebook"])


def patches_of(images: Tensor, size: int) -> Tensor:
    """``[B, 3, H, W]`` -> ``[B, N, 3 p p]``, raster order."""
    return unfold(images, kernel_size=size, stride=size).transpose(1, 2)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index ``[M]`` of the nearest of ``centres [K, d]`` for each of ``points [M, d]``."""
    squares = (centres**2).sum(1)
    return torch.cat([(squares - 2 * part @ centres.T).argmin(1) for part in points.split(65536)])


def fit(images: Tensor, codes: int, *, size: int = 4, rounds: int = 10) -> PatchCodec:
    """Weighted k-means over the distinct patches of ``images [B, 3, H, W]``.

    Starts from the ``codes`` most frequent patches, which already hold most of a flat picture.
    """
    points, counts = torch.unique(patches_of(images, size).flatten(0, 1), dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    points, weights = points[order], counts[order].to(points.dtype)
    centres = points[:codes].clone()
    if len(points) < codes:
        centres = torch.cat([centres, centres[:1].expand(codes - len(points), -1)])
    for _ in range(rounds if len(points) > codes else 0):
        which = nearest(points, centres)
        mass = torch.zeros(codes).index_add_(0, which, weights)
        total = torch.zeros_like(centres).index_add_(0, which, points * weights[:, None])
        centres = torch.where(mass[:, None] > 0, total / mass.clamp(min=1e-9)[:, None], centres)
    return PatchCodec(centres)


def standardised(codebook: Tensor) -> Tensor:
    """A codebook ``[K, d]``, each coordinate with mean 0 and spread 1."""
    return (codebook - codebook.mean(0)) / (codebook.std(0) + 1e-3)


def projected(codes: Tensor, width: int) -> Tensor:
    """``[K, d]`` -> ``[K, width]`` at the same scale, at random: alike codes stay alike."""
    return codes @ (torch.randn(codes.shape[1], width) / codes.shape[1] ** 0.5)
