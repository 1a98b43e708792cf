"""Pictures to latents and back: the seam between what a diffusion expert denoises and its pixels.

Public models bring an autoencoder of diffusers. Starters use a dictionary of patches: each entry has a point
among latents, and a latent is decoded to the entry whose point is nearest. What a point holds decides how
soon a small model learns to draw: apart, and on the largest scale, where something is; then its outline and
its colour. Noise hides the small before the large, so while a drawing forms its layout comes first, and a
shape's colour is asked of the prompt when its place is known (docs/unirl_zero.md). The price: nothing is
drawn that the dictionary lacks.

Shape legend: B rows, c latent channels, f pixels a latent column stands for, K entries, p x p patches.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.models.patch_codec import PatchCodec, nearest, patches_of
from triptych.models.weights import INDEX, fill, read_config, read_state_dict

VAE = "vae"
ALIKE = 0.03
"""How far a channel of a pixel may be from a background that it is part of, of 1."""
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


class PatchLatentCodec(nn.Module):
    """A dictionary ``codebook [K, 3 p p]``, and where its entries lie among latents: ``points [K, c]``."""

    FILE: ClassVar[str] = "latent_codec.safetensors"
    NAMES: ClassVar[tuple[str, ...]] = ("codebook", "points")

    codebook: Tensor
    points: Tensor

    def __init__(self, codebook: Tensor, points: Tensor) -> None:
        super().__init__()
        for name, value in zip(self.NAMES, (codebook, points), strict=True):
            self.register_buffer(name, value)
        self.channels, self.factor = points.shape[1], PatchCodec(codebook).patch

    @classmethod
    def fit(cls, codec: PatchCodec, images: Tensor, grounds: Tensor, channels: int) -> Self:
        """Points that tell apart what is there, its outline, its colour, and what is behind it.

        An entry's background is that of ``grounds [G, 3]`` which most of its pixels have; the rest is its
        figure. Channels: the figure's share of the patch; ``channels - 5`` principal components of its
        outline; three of its mean colour; the number of the background. How often an entry occurs in
        ``images [B, 3, H, W]``, at least once, is its weight. Shares spread by 3, outlines and colours by 2
        among figures. Raises UserError for fewer than 6 channels.
        """
        if channels < 6:
            raise UserError(f"a patch's point takes 6 channels or more, got {channels}")
        which = nearest(patches_of(images, codec.patch).flatten(0, 1), codec.codebook)
        often = torch.bincount(which, minlength=len(codec.codebook)).float().clamp(min=1)
        pixels = codec.codebook.unflatten(1, (3, -1)).transpose(1, 2)
        same = (pixels[:, None] - grounds[:, None]).abs().amax(3) < ALIKE
        ground = same.sum(2).argmax(1)
        figure = (~same[torch.arange(len(ground)), ground]).float()
        share = figure.mean(1, keepdim=True)
        seen = often * (share[:, 0] > 0)
        colour = (figure[:, :, None] * pixels).sum(1) / figure.sum(1, keepdim=True).clamp(min=1)
        points = [
            3 * _components(share, often, 1),
            2 * _components(figure - share, seen, channels - 5),
            2 * _components(colour, seen, 3),
            ground[:, None].float(),
        ]
        return cls(codec.codebook, torch.cat(points, 1))

    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] -> latents ``[B, c, H / f, W / f]`` fp32, of nearest entries."""
        patches = patches_of(images.float(), self.factor)
        ids = nearest(patches.flatten(0, 1), self.codebook.float()).view(patches.shape[:2])
        points = self.points.float()[ids].transpose(1, 2)
        return points.unflatten(2, (images.shape[2] // self.factor, -1)).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, c, h, w]`` of a square picture -> ``[B, 3, f h, f w]`` fp32 in [0, 1]."""
        places = latents.float().flatten(2).transpose(1, 2)
        ids = nearest(places.flatten(0, 1), self.points.float()).view(places.shape[:2])
        return PatchCodec(self.codebook).decode(ids)

    def save(self, folder: Path) -> None:
        """Write ``latent_codec.safetensors``."""
        save_file({name: getattr(self, name).contiguous() for name in self.NAMES}, folder / self.FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote."""
        return cls(**read_state_dict(folder, [cls.FILE]))


def _components(values: Tensor, weights: Tensor, count: int) -> Tensor:
    """``values [K, d]`` along the ``count`` directions in which they vary most, each of unit spread.

    Both by ``weights [K]``; what weighs nothing stays at 0.
    """
    share = (weights / weights.sum())[:, None]
    centred = (values - (share * values).sum(0)) * (weights > 0)[:, None]
    directions = torch.linalg.eigh(centred.T @ (share * centred)).eigenvectors.flip(1)[:, :count]
    found = centred @ directions
    return found / (share * found.square()).sum(0).sqrt().clamp(min=1e-6)


class AutoencoderCodec(nn.Module):
    """SANA's deep-compression autoencoder or SD3's variational one (its mean), frozen."""

    def __init__(self, model: AutoencoderDC | AutoencoderKL) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        config = model.config
        deep = isinstance(model, AutoencoderDC)
        levels = config.encoder_block_out_channels if deep else config.block_out_channels
        self.channels, self.factor = config.latent_channels, 2 ** (len(levels) - 1)
        self.scale = config.scaling_factor
        self.shift = 0.0 if deep else config.shift_factor or 0.0

    def encode(self, images: Tensor) -> Tensor:
        """As :meth:`PatchLatentCodec.encode`."""
        found = self.model.encode((2 * images - 1).to(self.model.dtype))
        latents = found.latent if isinstance(self.model, AutoencoderDC) else found.latent_dist.mode()
        return (latents.float() - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """As :meth:`PatchLatentCodec.decode`, of any shape."""
        inside = latents.float() / self.scale + self.shift
        images: Tensor = self.model.decode(inside.to(self.model.dtype)).sample
        return ((images.float() + 1) / 2).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Write ``vae/`` in the layout of diffusers."""
        self.model.save_pretrained(folder / VAE)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Open the ``vae/`` of a folder or hub repository; a tensor too many or too few is named."""
        kinds: dict[Any, Any] = {kind.__name__: kind for kind in (AutoencoderDC, AutoencoderKL)}
        config = read_config(folder, f"{VAE}/config.json")
        name = config.get("_class_name")
        if name not in kinds:
            raise UserError(f"{folder}/{VAE} is no autoencoder but {name}; known are {', '.join(kinds)}")
        with torch.device("meta"):
            model = kinds[name].from_config(config)
        file = f"{VAE}/{DIFFUSERS_FILE}"
        state = read_state_dict(folder, (file, file + INDEX))
        fill(model, {key: value.to(dtype) for key, value in state.items()}, f"{folder}/{VAE}")
        return cls(model)


LatentCodec = PatchLatentCodec | AutoencoderCodec


def open_latent_codec(folder: str | Path) -> LatentCodec:
    """A starter's dictionary where the folder has one, else its autoencoder."""
    if (Path(folder) / PatchLatentCodec.FILE).exists():
        return PatchLatentCodec.load(Path(folder))
    return AutoencoderCodec.load(folder)
