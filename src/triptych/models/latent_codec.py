"""Pictures to latents and back: the seam between what a diffusion expert denoises and its pixels.

Public models bring an autoencoder of diffusers. Starters use a dictionary of patches: a latent holds the
first principal components of a patch, and is decoded to the dictionary's nearest entry. On flat pictures a
linear decoder needs many components; this one keeps them whole with four to a 4 x 4 patch, and forgives an
inexact latent the more, the more components there are (``benchmarks/latent_codec.py`` measures it). In return
it draws nothing that its dictionary lacks.

Shape legend: B rows, c latent channels, f pixels a latent column stands for, K entries, p x p patches.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.models.patch_codec import PatchCodec, nearest, patches_of
from triptych.models.weights import INDEX, fill, read_config, read_state_dict

VAE = "vae"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


class PatchLatentCodec(nn.Module):
    """A dictionary ``codebook [K, 3 p p]`` and directions: ``basis [3 p p, c]``, ``mean``, ``scale [c]``."""

    FILE: ClassVar[str] = "latent_codec.safetensors"
    NAMES: ClassVar[tuple[str, ...]] = ("codebook", "basis", "mean", "scale")

    codebook: Tensor
    basis: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, codebook: Tensor, basis: Tensor, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        for name, value in zip(self.NAMES, (codebook, basis, mean, scale), strict=True):
            self.register_buffer(name, value)
        self.channels, self.factor = basis.shape[1], PatchCodec(codebook).patch

    @classmethod
    def fit(cls, codec: PatchCodec, images: Tensor, channels: int) -> Self:
        """Directions of most variance among patches of ``images [B, 3, H, W]``, scaled to unit spread."""
        patches = patches_of(images, codec.patch).flatten(0, 1)
        mean = patches.mean(0)
        basis = torch.linalg.eigh(torch.cov((patches - mean).T)).eigenvectors.flip(1)[:, :channels]
        return cls(codec.codebook, basis.contiguous(), mean, ((patches - mean) @ basis).std(0))

    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] -> latents ``[B, c, H / f, W / f]`` fp32 of about unit scale."""
        latents = self._project(patches_of(images.float(), self.factor)).transpose(1, 2)
        return latents.unflatten(2, (images.shape[2] // self.factor, -1))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, c, h, w]`` of a square picture -> ``[B, 3, f h, f w]`` fp32 in [0, 1]."""
        points = latents.float().flatten(2).transpose(1, 2)
        ids = nearest(points.flatten(0, 1), self._project(self.codebook)).view(points.shape[:2])
        return PatchCodec(self.codebook).decode(ids)

    def _project(self, patches: Tensor) -> Tensor:
        return (patches - self.mean) @ self.basis / self.scale

    def save(self, folder: Path) -> None:
        """Write ``latent_codec.safetensors``."""
        save_file({name: getattr(self, name).contiguous() for name in self.NAMES}, folder / self.FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote."""
        return cls(**load_file(folder / cls.FILE))


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
