"""Running a causal language model of transformers: cached decoding, teacher forcing, left padding.

Shared by every model whose tokens come one after another. It calls each decoder layer through its own
``forward`` (hooks, adapters and sharding keep working) with one explicit attention mask, and keeps keys
and values in buffers of the final length, so a step costs what the layers cost and little more.

Rows of a group have one prompt, which is run once: its U different prefixes, of which ``rows [R]`` says whose
each row has.

Shape legend: R rows (twice B under guidance), U prefixes, P prefix length, A actions, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from triptych.errors import UserError
from triptych.kernels import tokens as kernel
from triptych.trajectory import Denoising, Sampling, Unmasking


@dataclass(frozen=True)
class Decoder:
    """The parts of a language model that :func:`run_layers` runs.

    ``turn`` makes ``rotary_emb`` of some ``rows`` where it is not the same for all.
    """

    layers: Sequence[Callable[..., Tensor]]
    rotary_emb: Callable[..., tuple[Tensor, Tensor]]
    norm: Callable[[Tensor], Tensor]
    turn: Callable[[Tensor], Callable[..., tuple[Tensor, Tensor]]] | None = None

    def of(self, rows: Tensor) -> "Decoder":
        """For rows that follow these prefixes."""
        return self if self.turn is None else replace(self, rotary_emb=self.turn(rows))


Pair = tuple[Tensor, Tensor]
"""A layer's keys and values, ``[R, heads, columns, d]`` each."""


class Past:
    """Keys and values of columns that were run before; those that attend to them are not added."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = tuple(pairs)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> Pair:
        """The held columns followed by the new ones, ``[R, heads, P + new, d]``."""
        keys, values = self.pairs[layer]
        return torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)


class _Recorder:
    """Keeps what each layer computes. A layer that is computed again for its gradient adds nothing."""

    def __init__(self) -> None:
        self.pairs: dict[int, Pair] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> Pair:
        self.pairs.setdefault(layer, (key, value))
        return key, value


LEAVING = 0.25
"""From which share of rows on those that have ended leave the batch: it costs a copy of what is cached."""


class BufferCache:
    """Keys and values of all layers, written in place; has the one method that attention layers call."""

    def __init__(self, layers: int, length: int) -> None:
        self.length = length
        self.filled = [0] * layers
        self.buffers: list[Pair | None] = [None] * layers

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> Pair:
        """Append ``[R, heads, new, d]`` and return everything so far."""
        pair = self.buffers[layer]
        if pair is None:
            shape = (key.shape[0], key.shape[1], self.length, key.shape[3])
            pair = self.buffers[layer] = (key.new_empty(shape), value.new_empty(shape))
        start, end = self.filled[layer], self.filled[layer] + key.shape[2]
        pair[0][:, :, start:end] = key
        pair[1][:, :, start:end] = value
        self.filled[layer] = end
        return pair[0][:, :, :end], pair[1][:, :, :end]

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of what is held."""
        self.buffers = [pair and (pair[0][rows], pair[1][rows]) for pair in self.buffers]


def causal_mask(valid: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    """Additive mask ``[R, 1, new, T]``: the last ``new`` of T columns attend to earlier valid columns.

    Padding columns attend to themselves, so that no row of the softmax is empty.
    """
    total = valid.shape[1]
    rows = torch.arange(total - new, total, device=valid.device)[:, None]
    columns = torch.arange(total, device=valid.device)
    allowed = (columns <= rows) & (valid[:, None, :] | (columns == rows))
    return torch.zeros(allowed.shape, dtype=dtype, device=valid.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )[:, None]


def opened(mask: Tensor, seen: Tensor | None) -> Tensor:
    """``mask [R, 1, new, T]`` with those of the first S columns open to all that are ``seen [R, S]``."""
    if seen is not None:
        mask = mask.clone()
        mask[..., : seen.shape[1]].masked_fill_(seen[:, None, None], 0)
    return mask


def positions(valid: Tensor) -> Tensor:
    """Position ids ``[R, T]`` that count valid columns only: they do not depend on padding."""
    return (valid.long().cumsum(-1) - 1).clamp(min=0)


def run_layers(
    lm: Any,
    embeds: Tensor,
    mask: Tensor | None,
    position_ids: Tensor,
    cache: Any = None,
    *,
    recompute: bool = False,
) -> Tensor:
    """Hidden states ``[R, new, D]`` after the final norm, for a decoder with Llama's names for its parts.

    ``cache``: what has the method ``update`` of :class:`BufferCache`.
    """
    rotary = lm.rotary_emb(embeds, position_ids=position_ids)
    hidden = embeds
    for layer in lm.layers:
        arguments = {
            "attention_mask": mask,
            "position_embeddings": rotary,
            "position_ids": position_ids,
            "past_key_values": cache,
        }
        if recompute and torch.is_grad_enabled():
            hidden = checkpoint(layer, hidden, use_reentrant=False, **arguments)
        else:
            hidden = layer(hidden, **arguments)
    return lm.norm(hidden)


def teacher_forced(
    lm: Any,
    embeds: Tensor,
    valid: Tensor,
    past: Any = None,
    *,
    seen: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Hidden states ``[R, T, D]`` of sequences, or after H columns of ``past`` (``valid [R, H + T]``)."""
    new = embeds.shape[1]
    mask, place = opened(causal_mask(valid, new, embeds.dtype), seen), positions(valid)[:, -new:]
    return run_layers(lm, embeds, mask, place, past, recompute=recompute)


def remember(
    decoder: Decoder,
    embeds: Tensor,
    mask: Tensor,
    place: Tensor,
    rows: Tensor | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, Past]:
    """Run ``embeds [U, P, D]``: hidden states, and keys and values, of ``rows`` if these are given."""
    recorder = _Recorder()
    hidden = run_layers(decoder, embeds, mask, place, recorder, recompute=recompute)
    pairs = [recorder.pairs[i] for i in range(len(decoder.layers))]
    if rows is not None:
        hidden, pairs = hidden[rows], [(keys[rows], values[rows]) for keys, values in pairs]
    return hidden, Past(pairs)


@dataclass(frozen=True)
class Prefix:
    """Left-padded prompts as embeddings ``[U, P, D]``, with the columns that count ``[U, H + P]``.

    ``decoder``: the layers that run them. ``seen [U, P]``: pictures' columns, which all of the prefix sees.
    ``past``: H columns run before. ``rows [R]``: whose prompt each row has, where some have the same.
    """

    decoder: Decoder
    embeds: Tensor
    valid: Tensor
    seen: Tensor | None = None
    past: BufferCache | None = None
    rows: Tensor | None = None

    def mask(self) -> Tensor:
        """Additive, ``[U, 1, P, H + P]``: causal, but for what all of it sees."""
        return opened(causal_mask(self.valid, self.embeds.shape[1], self.embeds.dtype), self.seen)

    def remembered(self, recompute: bool) -> tuple[Tensor, Past]:
        """Hidden states ``[R, P, D]``, and keys and values."""
        place = positions(self.valid)
        return remember(self.decoder, self.embeds, self.mask(), place, self.rows, recompute=recompute)

    def of_rows(self) -> tuple[Decoder, Tensor]:
        """The layers for what follows, and the prefix's columns that count ``[R, H + P]``."""
        if self.rows is None:
            return self.decoder, self.valid
        return self.decoder.of(self.rows), self.valid[self.rows]


def continued(before: Prefix, further: Tensor, taken: Tensor, *, recompute: bool = False) -> Tensor:
    """Hidden states ``[R, 1 + n, D]`` of a prefix's last column, and of ``further [R, n, D]`` after it.

    Of ``further`` those columns count that are ``taken [R, n]``.
    """
    decoder, valid = before.of_rows()
    whole = torch.cat([valid, taken], dim=1)
    if before.rows is None:
        joined = torch.cat([before.embeds, further], dim=1)
        hidden = teacher_forced(decoder, joined, whole, seen=before.seen, recompute=recompute)
        return hidden[:, before.embeds.shape[1] - 1 :]
    hidden, past = before.remembered(recompute)
    if not further.shape[1]:
        return hidden[:, -1:]
    after = teacher_forced(decoder, further, whole, past, recompute=recompute)
    return torch.cat([hidden[:, -1:], after], dim=1)


@dataclass(frozen=True)
class Written:
    """What :func:`autoregress` did: ``tokens``, ``logp``, ``mask``, each ``[B, A]``."""

    tokens: Tensor
    logp: Tensor
    mask: Tensor


@torch.no_grad()
def autoregress(
    before: Prefix,
    uniforms: Tensor,
    sampling: Sampling,
    *,
    head: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    end: int | None = None,
) -> Written:
    """Draw up to A tokens a row after a prefix, whose ``past`` has room for them.

    With guidance, R = 2B: conditional rows, then unconditional ones; both are fed the drawn token.
    ``uniforms [B, A]`` decides the draws. A row that drew ``end`` stops; its later entries are masked, and
    without guidance it leaves the batch with others.
    """
    if sampling.unmask != Unmasking():
        raise UserError(
            "unmask is for masked tokens, and these come one after another: leave it at its default"
        )
    if sampling.denoise != Denoising():
        raise UserError("denoise is for latents, and these are tokens: leave it at its default")
    if sampling.source_guidance is not None:
        raise UserError("source_guidance is for edits, and this is none: leave it unset")
    actions, start, prefix = uniforms.shape[1], before.valid.shape[1], before.embeds
    cache = before.past or BufferCache(len(before.decoder.layers), start + actions)
    place = positions(before.valid)[:, start - prefix.shape[1] :]
    hidden = run_layers(before.decoder, prefix, before.mask(), place, cache)[:, -1]
    decoder, valid = before.of_rows()
    if before.rows is not None:
        hidden = hidden[before.rows]
        cache.take(before.rows)
    valid = torch.cat([valid, valid.new_ones(valid.shape[0], actions)], dim=1)
    place, padded = positions(valid), not bool(valid.all())
    full_mask = causal_mask(valid, 1, prefix.dtype) if padded else None
    here = torch.arange(len(uniforms), device=prefix.device)  # the rows that are still written
    tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=prefix.device)
    logp, taken = torch.zeros_like(tokens, dtype=torch.float32), torch.zeros_like(tokens, dtype=torch.bool)
    ended = torch.zeros_like(here, dtype=torch.bool)
    for a in range(actions):
        draw = kernel.sample(head(hidden), uniforms[here, a], sampling)
        tokens[here, a], logp[here, a], taken[here, a] = draw.tokens * ~ended, draw.logp * ~ended, ~ended
        if end is not None:
            ended |= draw.tokens == end
        if a + 1 == actions or bool(ended.all()):
            break
        drawn = draw.tokens
        if len(hidden) == len(drawn) and float(ended.float().mean()) > LEAVING:
            keep = (~ended).nonzero().flatten()
            here, ended, drawn, place = here[keep], ended[keep], drawn[keep], place[keep]
            full_mask = None if full_mask is None else full_mask[keep]
            decoder = before.decoder.of(here if before.rows is None else before.rows[here])
            cache.take(keep)
        again, column = drawn.repeat(len(hidden) // len(draw.tokens)), start + a
        mask = full_mask[..., : column + 1] if full_mask is not None else None
        at = place[:, column : column + 1]
        hidden = run_layers(decoder, embed(again)[:, None], mask, at, cache)[:, -1]
    written = slice(0, a + 1)
    return Written(tokens[:, written], logp[:, written], taken[:, written])
