"""MAGViT-v2 without look-up: a picture as one sign pattern of 13 bits for every 16 x 16 pixels.

The public codec of Show-o (``showlab/magvitv2``, arXiv 2408.12528), after arXiv 2310.05737. Names, shapes
and arithmetic are those of Show-o's public code (models/modeling_magvitv2.py, models/common_modules.py). Its
versions and copies agree, its loader refuses a file that lacks a name, and the published file is as large as
these tensors in fp32 are (382 MB); the published config holds no sizes. What decides a value:

- a VQGAN of plain 2-D convolutions, 3 x 3 and zero padded unless said otherwise; no adaptive norm and no
  depth-to-space, which the paper has; group norm of 32 groups with eps 1e-6, then SiLU;
- downsampling pads one row below and one column to the right, then strides by 2; upsampling repeats the
  nearest pixel, then convolves; single-head attention only in the middle of each half;
- bit k is ``z_k > 0`` (so zero counts as -1), and the first channel is the most significant bit.

It knows pixels and ids, and nothing of the model that predicts them.
Shape legend: B rows, N = (H / 16) (W / 16) tokens, K = 2^bits codes, C channels.
"""

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from triptych.errors import UserError
from triptych.models.weights import fill, known, read_config, read_state_dict


@dataclass(frozen=True, kw_only=True)
class MagViT2Sizes:
    """How large the codec is; the defaults are the published ones.

    Multipliers (of ``channels``) and residual blocks go by level, from the finest to the coarsest.
    """

    bits: int = 13
    channels: int = 128
    groups: int = 32
    encoder_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)

    def __post_init__(self) -> None:
        parts = (self.encoder_multipliers, self.encoder_blocks, self.decoder_multipliers, self.decoder_blocks)
        levels = [len(part) for part in parts]
        if len(set(levels)) > 1:
            raise UserError(f"multipliers and blocks must have one entry a level; they have {levels}")

    @property
    def downsampling(self) -> int:
        """Pixels a token, along each side: 16 as published."""
        return 2 ** (len(self.encoder_multipliers) - 1)


class MagViT2Codec(nn.Module):
    """A frozen :class:`~triptych.models.base.Codec`; its ``state_dict`` is the published one.

    A fresh one has random weights: :meth:`load` gets trained ones.
    """

    FILES: ClassVar[tuple[str, ...]] = (
        "pytorch_model.safetensors",
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "pytorch_model.bin",
        "diffusion_pytorch_model.bin",
    )

    def __init__(self, sizes: MagViT2Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = _encoder(sizes)
        self.decoder = _decoder(sizes)
        self.quantize = _Quantizer(sizes.bits)
        self.requires_grad_(False)

    @property
    def codebook(self) -> Tensor:
        """``[K, bits]`` of +-1: row i is the binary form of i, the most significant bit first."""
        return self.quantize.embedding

    # -- pixels to ids -----------------------------------------------------------------------------
    def latents(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] -> ``[B, N, bits]``, the numbers whose signs are the code."""
        height, width = images.shape[-2:]
        step = self.sizes.downsampling
        if height % step or width % step:
            raise UserError(f"a picture of {height} x {width} is no multiple of {step}: resize it first")
        latents: Tensor = self.encoder((images * 2 - 1).to(self.codebook))
        return latents.flatten(2).transpose(1, 2)

    def quantise(self, latents: Tensor) -> Tensor:
        """``[B, N, bits]`` -> ids ``[B, N]``."""
        return ((latents > 0) * self.quantize.power_vals).sum(-1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] -> ids ``[B, N]`` int64, raster order."""
        return self.quantise(self.latents(images))

    # -- ids to pixels -----------------------------------------------------------------------------
    def decode_soft(self, vectors: Tensor) -> Tensor:
        """``[B, N, bits]``, near +-1, of a square -> ``[B, 3, H, W]`` in [0, 1], with gradients to them."""
        side = isqrt(vectors.shape[1])
        images: Tensor = self.decoder(vectors.to(self.codebook).transpose(1, 2).unflatten(2, (side, side)))
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids ``[B, N]`` of a square picture -> ``[B, 3, H, W]`` in [0, 1]."""
        return self.decode_soft(self.codebook[ids])

    # -- files -------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``pytorch_model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"_class_name": "MAGViTv2", **asdict(self.sizes)}
        (folder / "config.json").write_text(json.dumps(about, indent=1))
        save_file({key: t.contiguous() for key, t in self.state_dict().items()}, folder / self.FILES[0])

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Open a folder or a hub name; sizes that its config leaves out (published: all) are the defaults."""
        about = known(MagViT2Sizes, read_config(folder))
        about = {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
        sizes = MagViT2Sizes(**about)
        with torch.device("meta"):
            codec = cls(sizes)
        fill(codec, read_state_dict(folder, cls.FILES), folder)
        expected = _Quantizer(sizes.bits)
        for name, buffer in expected.named_buffers():
            if not torch.equal(codec.quantize.get_buffer(name).to(buffer), buffer):
                raise UserError(f"{folder}: quantize.{name} numbers the codes differently from MAGViT-v2")
        codec.quantize = expected
        return codec.to(dtype)


# -- the network: attribute names are those of the published tensors -----------------------------------
class _Quantizer(nn.Module):
    """The code table ``[K, bits]`` and what each bit is worth ``[bits]``: both stored, both computable."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        places = torch.arange(bits - 1, -1, -1)
        digits = (torch.arange(2**bits)[:, None] >> places) & 1
        self.register_buffer("embedding", digits.float() * 2 - 1)
        self.register_buffer("power_vals", 2**places)


class _ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input (by a 1 x 1 convolution where C changes)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, groups)
        self.conv1 = _conv(inputs, outputs)
        self.norm2 = _norm(outputs, groups)
        self.conv2 = _conv(outputs, outputs)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(silu(self.norm1(x)))
        shortcut: Tensor = self.nin_shortcut(x)
        return shortcut + self.conv2(silu(self.norm2(hidden)))


class _Attention(nn.Module):
    """One head of width C over all positions of the normed input, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(seen)


def _chain(**parts: nn.Module) -> nn.Sequential:
    """One after the other, by name; parts without tensors have names of our own."""
    return nn.Sequential(OrderedDict(parts))


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _blocks(inputs: int, outputs: int, count: int, groups: int) -> nn.Sequential:
    widths = [inputs, *[outputs] * count]
    return nn.Sequential(*(_ResidualBlock(*pair, groups) for pair in pairwise(widths)))


def _middle(channels: int, groups: int) -> nn.Sequential:
    return _chain(
        block_1=_ResidualBlock(channels, channels, groups),
        attn_1=_Attention(channels, groups),
        block_2=_ResidualBlock(channels, channels, groups),
    )


def _encoder(sizes: MagViT2Sizes) -> nn.Sequential:
    """``[B, 3, H, W]`` in [-1, 1] -> ``[B, bits, H / 16, W / 16]``."""
    width, levels = sizes.channels, nn.Sequential()
    for multiplier, count in zip(sizes.encoder_multipliers, sizes.encoder_blocks, strict=True):
        if levels:
            halve = _chain(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(width, width, 3, stride=2))
            levels[-1].add_module("downsample", halve)
        level = _chain(block=_blocks(width, sizes.channels * multiplier, count, sizes.groups))
        levels.append(level)
        width = sizes.channels * multiplier
    return _chain(
        conv_in=_conv(3, sizes.channels),
        down=levels,
        mid=_middle(width, sizes.groups),
        norm_out=_norm(width, sizes.groups),
        silu=nn.SiLU(),
        conv_out=_conv(width, sizes.bits),
        quant_conv=nn.Conv2d(sizes.bits, sizes.bits, 1),
    )


def _decoder(sizes: MagViT2Sizes) -> nn.Sequential:
    """``[B, bits, H / 16, W / 16]`` of +-1 -> ``[B, 3, H, W]`` in about [-1, 1]."""
    widths = [sizes.channels * multiplier for multiplier in sizes.decoder_multipliers]
    width, levels = widths[-1], nn.Sequential()
    for i in reversed(range(len(widths))):  # level 0 is the finest: it has the first name and runs last
        level = _chain(block=_blocks(width, widths[i], sizes.decoder_blocks[i], sizes.groups))
        width = widths[i]
        if i > 0:
            double = _chain(nearest=nn.Upsample(scale_factor=2, mode="nearest"), conv=_conv(width, width))
            level.add_module("upsample", double)
        levels.add_module(str(i), level)
    return _chain(
        post_quant_conv=nn.Conv2d(sizes.bits, sizes.bits, 1),
        conv_in=_conv(sizes.bits, widths[-1]),
        mid=_middle(widths[-1], sizes.groups),
        up=levels,
        norm_out=_norm(width, sizes.groups),
        silu=nn.SiLU(),
        conv_out=_conv(width, 3),
    )
