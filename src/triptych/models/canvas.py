"""Drawing on a canvas after a prefix: shared by the models that unmask many tokens at once.

The prefix (a prompt) never sees the canvas, so its keys and values are computed once, and every pass over
the canvas attends to them, with gradients where they are wanted. The canvas sees the whole prefix and all of
itself. Knows decoder layers of transformers (Phi's and Qwen2's alike), and not what tokens mean.

Locality is an option that public models do not have: before each layer, a depthwise 3 x 3 convolution over
the square of image tokens is added to their residual stream. A small model learns to draw with it in a
fraction of the time, for it need not find out first which columns are neighbours.

Shape legend: R rows (B times the branches of guidance), P prefix length, C canvas columns, N image tokens,
D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from triptych.kernels import masked as kernel
from triptych.kernels.noise import uniforms
from triptych.models import causal
from triptych.models.base import Example
from triptych.models.causal import Decoder
from triptych.models.rows import as_recorded, times
from triptych.trajectory import MaskedImageSegment, Sampling, Unmasking


def open_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask ``[R, 1, 1, T]``: every row of the canvas sees all valid columns, in both directions."""
    hidden = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return hidden.masked_fill(~valid, torch.finfo(dtype).min)[:, None, None]


def prepare(
    before: causal.Prefix, over: Decoder, columns: int, *, recompute: bool = False
) -> Callable[[Tensor], Tensor]:
    """Run a prefix. Returns a pass of a canvas through ``over`` (its layers, or local ones).

    A pass leads from embeddings of C ``columns`` after the prefix to hidden states, ``[R, C, D]`` both.
    """
    _, past = before.remembered(recompute)
    _, valid = before.of_rows()
    whole = torch.cat([valid, valid.new_ones(valid.shape[0], columns)], dim=1)
    mask, place = open_mask(whole, before.embeds.dtype), causal.positions(whole)[:, -columns:]
    rotary = over.rotary_emb(before.embeds, position_ids=place)  # the same for every pass
    over = replace(over, rotary_emb=lambda *_, **__: rotary)
    return lambda canvas: causal.run_layers(over, canvas, mask, place, past, recompute=recompute)


# -- locality ------------------------------------------------------------------------------------------
def convolutions(width: int, layers: int) -> nn.ModuleList:
    """One depthwise convolution a layer, zero at first: then a local layer is the layer alone."""
    made = [nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False) for _ in range(layers)]
    for each in made:
        nn.init.zeros_(each.weight)
    return nn.ModuleList(made)


def local_decoder(decoder: Decoder, mixers: nn.ModuleList, first: int) -> Decoder:
    """``decoder`` with locality for N image tokens that lie after ``first`` columns and before a last one."""

    def local(layer: Callable[..., Tensor], mixer: nn.Module) -> Callable[..., Tensor]:
        def run(hidden: Tensor, **arguments: Any) -> Tensor:
            return layer(_mix(mixer, hidden, first), **arguments)

        return run

    return replace(decoder, layers=[local(*pair) for pair in zip(decoder.layers, mixers, strict=True)])


def _mix(mixer: nn.Module, hidden: Tensor, first: int) -> Tensor:
    before, image, after = hidden.tensor_split([first, hidden.shape[1] - 1], dim=1)
    side = isqrt(image.shape[1])
    mixed: Tensor = mixer(image.transpose(1, 2).unflatten(2, (side, side)))
    return torch.cat([before, image + mixed.flatten(2).transpose(1, 2), after], dim=1)


# -- learning to unmask ----------------------------------------------------------------------------------
def target(examples: Sequence[Example], ids: Tensor) -> MaskedImageSegment:
    """Drawings ``ids [B, N]`` to learn from, each hidden in places that the example's key draws.

    Only hidden tokens count, each at its own position, as the estimator "random_mask" scores them.
    """
    places = uniforms([e.key for e in examples], 1 + ids.shape[1])[:, 1:]
    hidden = kernel.random_mask(times(examples), places).to(ids.device)
    recorded = as_recorded(examples, ids, hidden)
    recorded["sampling"] = Sampling(unmask=Unmasking(steps=1, estimator="random_mask"))
    once = torch.zeros_like(ids)
    return MaskedImageSegment(
        **recorded,
        commit=once,
        rank=once,
        trained=once[:, :1],
        draws=ids.new_zeros(len(ids), 0, ids.shape[1]),
    )
