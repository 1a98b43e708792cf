"""Tokens drawn one after another: text, and autoregressive image tokens.

The policy is ``softmax(logits / temperature)`` with guidance mixed in before; sampling and scoring
both go through :func:`log_policy`, so they cannot disagree. Everything here is fp32 or better,
whatever dtype the network computes in.

Shape legend: B rows, A actions, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from triptych.trajectory import Sampling, Scores

CHUNK_ELEMENTS = 2**24
"""How many logits one chunk of :func:`score_hidden` may hold at once (64 MiB in fp32)."""


def branches(sampling: Sampling) -> int:
    """How many rows of logits :func:`guided` takes for each row that acts."""
    return 3 if sampling.source_guidance is not None else 1 if sampling.guidance == 1 else 2


def guided(logits: Tensor, sampling: Sampling) -> Tensor:
    """Mix ``[2B, ..., V]`` (conditional rows first, then unconditional) to ``u + s (c - u)`` ``[B, ..., V]``.

    Velocities of latents are mixed as logits are. With ``guidance == 1`` the input has no unconditional rows
    and is returned as it is. With a ``source_guidance`` s_I there are ``[3B, ..., V]``: between them come
    rows i that see a source picture and no text, and the mix is ``u + s_I (i - u) + s (c - i)`` (UniGen-1.5,
    arXiv 2511.14760; after InstructPix2Pix, arXiv 2211.09800).
    """
    if sampling.source_guidance is not None:
        cond, source, uncond = logits.chunk(3)
        return uncond + sampling.source_guidance * (source - uncond) + sampling.guidance * (cond - source)
    if sampling.guidance == 1:
        return logits
    cond, uncond = logits.chunk(2)
    return uncond + sampling.guidance * (cond - uncond)


def log_policy(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities of the policy that acts, ``[B, ..., V]`` fp32, of float64 logits float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(guided(logits, sampling) / sampling.temperature, dim=-1)


def chosen(logp: Tensor, tokens: Tensor) -> Tensor:
    """Of log-probabilities ``[..., V]`` those of ``tokens [...]``."""
    return logp.gather(-1, tokens[..., None]).squeeze(-1)


@dataclass(frozen=True)
class Draw:
    """Tokens ``[B]`` int64 and their log-probabilities ``[B]`` fp32, from the logits that the draw used."""

    tokens: Tensor
    logp: Tensor


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Draw:
    """Draw one token a row by inverting the cumulative distribution at ``uniform`` ``[B]`` (float64).

    Temperature 0 takes the most likely token, with log-probability 0: a certain action.
    """
    if sampling.temperature == 0:
        tokens = guided(logits.float(), sampling).argmax(-1)
        return Draw(tokens, torch.zeros_like(tokens, dtype=torch.float32))
    logp = log_policy(logits, sampling)
    cdf = logp.double().exp().cumsum(-1)
    tokens = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).squeeze(-1)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return Draw(tokens, chosen(logp, tokens).float())


def score(
    logits: Tensor,
    tokens: Tensor,
    sampling: Sampling,
    *,
    entropy: bool = False,
    reference_logits: Tensor | None = None,
) -> Scores:
    """Score ``tokens [B, A]`` under ``logits [B, A, V]`` (``[2B, A, V]`` with guidance, see :func:`guided`).

    KL is the exact sum over the vocabulary, KL(policy || reference), non-negative.
    """
    logp = log_policy(logits, sampling)
    spread = -(logp.exp() * logp).sum(-1) if entropy else None
    if reference_logits is None:
        return Scores(chosen(logp, tokens), spread)
    other = log_policy(reference_logits, sampling)
    return Scores(chosen(logp, tokens), spread, (logp.exp() * (logp - other)).sum(-1))


def score_hidden(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    tokens: Tensor,
    sampling: Sampling,
    *,
    entropy: bool = False,
    reference: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    vocabulary: int,
) -> Scores:
    """As :func:`score`, from hidden states ``[B or 2B, A, D]`` and the head that makes logits of them.

    Works through chunks of positions and recomputes each one's logits in the backward pass, so memory
    does not grow with A x V. ``reference`` is (hidden states, head) of the reference model.
    """

    def part(h: Tensor, t: Tensor, r: Tensor | None) -> tuple[Tensor, ...]:
        reference_logits = reference[1](r) if reference is not None and r is not None else None
        scores = score(head(h), t, sampling, entropy=entropy, reference_logits=reference_logits)
        return tuple(x for x in (scores.logp, scores.entropy, scores.kl) if x is not None)

    width = max(1, chunk_elements // (hidden.shape[0] * vocabulary))
    parts: list[tuple[Tensor, ...]] = []
    for i in range(0, tokens.shape[1], width):
        piece = slice(i, i + width)
        inputs = (hidden[:, piece], tokens[:, piece], reference[0][:, piece] if reference else None)
        whole = width >= tokens.shape[1] or not torch.is_grad_enabled()
        parts.append(part(*inputs) if whole else checkpoint(part, *inputs, use_reentrant=False))
    joined = [torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True)]
    logp = joined.pop(0)
    return Scores(logp, joined.pop(0) if entropy else None, joined.pop(0) if reference else None)
