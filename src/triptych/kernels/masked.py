"""Masked tokens: each position draws at each step, some are committed, the rest is masked again.

The canvas starts all masked. At step k each masked position draws a token from the policy of
:mod:`triptych.kernels.tokens`; then :func:`commits` says how many are kept, and the order which: at random,
or by confidence, the drawn token's log-probability plus Gumbel noise of scale tau_k. Taking the largest of
``confidence + tau Gumbel`` one by one draws from Plackett-Luce: each pick has the probability
``softmax(confidence / tau)`` over the positions not yet picked (Kool et al., arXiv 1903.06059).

Which of this counts as actions is the estimator's choice:

- ``exact``: every draw of every step, also those thrown away, and every pick. Nothing random is left out, so
  the sum of the entries is the log-probability of the whole episode, and its score-function gradient is
  unbiased. At tau 0, and in the last step, where all is committed, the order has no randomness and the draws
  alone are the actions; with random order it does not depend on the weights and is none either.
- ``trajectory``: the committed tokens, each on the canvas of its commit step. Exact for random order (what is
  thrown away then influences nothing). In confidence order it leaves out that a token was *chosen* to be
  committed because it was likely.
- ``random_mask``: one random mask over the finished drawing, the same for a group and for every policy; the
  tokens under it. One forward pass, and another distribution than the one that drew: the estimator of
  UniGen's DPO, UniGRPO and dLLM-RL.

What they leave out, measured on all outcomes of 4 positions, 3 codes, 3 steps and one small random network
at temperature 0.8 (tests/kernels/test_masked.py asserts this table): relative L2 error of the expected policy
gradient, and its cosine with the true one. ``exact`` is right to 1e-5. Other networks give other figures; in
each of four that we tried ``trajectory`` erred less than ``random_mask``.

    order                  trajectory     random_mask
    random                 0.00  1.00     0.46  0.90
    confidence, tau 4.0    0.14  1.00     0.52  0.88
    confidence, tau 1.0    0.35  0.97     0.69  0.79
    confidence, tau 0.5    0.53  0.92     0.79  0.71
    confidence, tau 0.0    0.29  0.97     0.61  0.84

Shape legend: B rows, N positions, S steps, k trained steps, A actions, V vocabulary, D width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.kernels import tokens as token_kernel
from triptych.kernels.noise import uniforms
from triptych.trajectory import MaskedImageSegment, NoiseKey, Sampling, Scores, Unmasking

Hidden = Callable[[Tensor, Tensor], Tensor]
"""Hidden states ``[B, 2B or 3B, N, D]`` of a canvas: ``tokens [B, N]``, hidden where ``masked [B, N]``."""
Head = Callable[[Tensor], Tensor]


def commits(positions: int, steps: int) -> list[int]:
    """How many positions each step commits: cosine schedule, at least one a step, all in the end.

    After step k, ``floor(N cos(pi/2 (k+1)/S))`` stay masked (MaskGIT, arXiv 2202.04200), fewer where a step
    would otherwise commit none.
    """
    if steps > positions:
        raise UserError(f"{steps} unmasking steps for {positions} positions: each step commits at least one")
    left = [positions]
    for k in range(steps):
        cosine = math.floor(positions * math.cos(math.pi / 2 * (k + 1) / steps) + 1e-9)
        # cos(pi x / 2) >= 1 - x, so what stays is enough for the steps to come.
        left.append(min(cosine, left[-1] - 1))
    return [before - after for before, after in pairwise(left)]


def order_scale(unmask: Unmasking, step: Tensor) -> Tensor:
    """tau_k ``[B]``, the Gumbel scale at ``step [B]``: it falls linearly, to 0 at the last step."""
    return unmask.order_temperature * (1 - (step.double() + 1) / unmask.steps)


@dataclass(frozen=True)
class Noise:
    """All randomness of B drawings: uniforms ``draw`` and ``order [B, S, N]``, and what a group shares.

    ``trained [B, k]``: the steps that are scored, ascending. ``shared [B, N]``: the mask of "random_mask".
    """

    draw: Tensor
    order: Tensor
    trained: Tensor
    shared: Tensor

    def to(self, device: torch.device) -> "Noise":
        """The same on ``device``."""
        return Noise(*(x.to(device) for x in (self.draw, self.order, self.trained, self.shared)))


def noise(keys: Sequence[NoiseKey], positions: int, unmask: Unmasking) -> Noise:
    """The noise of rows ``keys``; the trained steps and the mask depend on all of the key but the sample."""
    steps, rows = unmask.steps, len(keys)
    commits(positions, steps)  # refuses what cannot be drawn
    draw, order = uniforms(keys, 2 * steps * positions).view(rows, 2, steps, positions).unbind(1)
    if unmask.order == "common":
        first = [replace(k, sample=0) for k in keys]
        order = uniforms(first, 2 * steps * positions).view(rows, 2, steps, positions)[:, 1]
    common = uniforms(
        [replace(k, sample=0, segment=f"{k.segment}/shared") for k in keys], steps + 1 + positions
    )
    count, time = unmask.trained or steps, common[:, steps]
    trained = common[:, :steps].argsort(-1)[:, :count].sort(-1).values
    if unmask.which == "first":
        trained, time = torch.arange(count).expand(rows, -1), time * count / steps
    shared = random_mask(time, common[:, steps + 1 :])
    return Noise(draw, order, trained, shared)


def hidden_count(time: Tensor, positions: int) -> Tensor:
    """How many of N ``positions`` training hides at ``time [B]``: the share cos(pi t / 2), at least one."""
    share = (math.pi / 2 * time.double()).cos()
    return (share * positions - 1e-9).ceil().clamp(1, positions).long()


def random_mask(time: Tensor, uniform: Tensor) -> Tensor:
    """The mask ``[B, N]`` of training at ``time [B]``: it hides the places of least ``uniform [B, N]``."""
    return uniform.argsort(-1).argsort(-1) < hidden_count(time, uniform.shape[1])[:, None]


@dataclass(frozen=True)
class Unmasked:
    """A finished drawing: the tensors of a :class:`~triptych.trajectory.MaskedImageSegment`."""

    tokens: Tensor
    logp: Tensor
    mask: Tensor
    commit: Tensor
    rank: Tensor
    trained: Tensor
    draws: Tensor


@torch.no_grad()
def unmask(hidden: Hidden, head: Head, noise: Noise, sampling: Sampling) -> Unmasked:
    """Draw B pictures; log-probabilities are recorded from the logits that each step's draws used."""
    settings = sampling.unmask
    rows, steps, positions = noise.draw.shape
    device, exact = noise.draw.device, settings.estimator == "exact"
    tokens = torch.zeros(rows, positions, dtype=torch.long, device=device)
    commit, rank = torch.full_like(tokens, steps), torch.full_like(tokens, positions)
    logp = torch.zeros(rows, steps if exact else 1, positions, device=device)
    order_logp = torch.zeros(rows, positions, device=device)
    draws = torch.zeros(rows, steps if exact else 0, positions, dtype=torch.long, device=device)
    done = 0
    for step, count in enumerate(commits(positions, steps)):
        masked = commit == steps
        logits = head(hidden(tokens, masked))
        drawn, drawn_logp = _draw(logits, noise.draw[:, step], sampling)
        confidence = drawn_logp
        if sampling.temperature == 0:  # a greedy draw is certain; its confidence is that of temperature 1
            likely = token_kernel.log_policy(logits, replace(sampling, temperature=1.0))
            confidence = token_kernel.chosen(likely, drawn)
        scale = order_scale(settings, torch.full((rows,), step, device=device))
        picked = _pick(confidence, noise.order[:, step], masked, count, scale, settings)
        tokens.scatter_(1, picked, drawn.gather(1, picked))
        commit.scatter_(1, picked, step)
        rank.scatter_(1, picked, torch.arange(done, done + count, device=device).expand(rows, -1))
        done += count
        if exact:
            draws[:, step], logp[:, step] = drawn, drawn_logp
            # Later picks are not known yet; their order does not matter to those of this step.
            order_logp = torch.where(commit == step, _picks(confidence, scale, rank, masked), order_logp)
        else:
            logp[:, 0] = torch.where(commit == step, drawn_logp, logp[:, 0])
    mask = _action_mask(commit, noise, settings)
    if settings.estimator == "random_mask" and sampling.temperature:
        likely = token_kernel.log_policy(head(hidden(tokens, noise.shared)), sampling)
        logp[:, 0] = token_kernel.chosen(likely, tokens)
    recorded = torch.cat([logp.flatten(1), order_logp], 1) if exact else logp[:, 0]
    return Unmasked(tokens, recorded * mask, mask, commit, rank, noise.trained, draws)


def _draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a position, ``[B, N]`` each: tokens and log-probabilities."""
    mixed = token_kernel.guided(logits.float(), sampling).flatten(0, 1)
    unguided = Sampling(temperature=sampling.temperature)
    width = max(1, token_kernel.CHUNK_ELEMENTS // mixed.shape[1])
    pieces = zip(mixed.split(width), uniform.flatten().split(width), strict=True)
    drawn = [token_kernel.sample(piece, u, unguided) for piece, u in pieces]
    joined = (torch.cat([d.tokens for d in drawn]), torch.cat([d.logp for d in drawn]))
    return joined[0].view(uniform.shape), joined[1].view(uniform.shape)


def _pick(
    confidence: Tensor, uniform: Tensor, masked: Tensor, count: int, scale: Tensor, settings: Unmasking
) -> Tensor:
    """The ``count`` positions to commit, in order, ``[B, count]``."""
    gumbel = -(-uniform.log()).log()
    value = gumbel if settings.order != "confidence" else confidence.double() + scale[:, None] * gumbel
    value = torch.where(masked, value, -math.inf)
    return value.sort(stable=True, dim=-1, descending=True).indices[:, :count]


def _picks(confidence: Tensor, scale: Tensor, rank: Tensor, candidate: Tensor) -> Tensor:
    """Log-probability ``[B, N]`` of each pick: Plackett-Luce over the candidates of no lower rank."""
    value = confidence.float() / _divisor(scale)
    order = rank.argsort(dim=-1, stable=True)
    value = torch.where(candidate, value, -math.inf).gather(1, order)
    rest = value.flip(-1).logcumsumexp(-1).flip(-1)
    found = torch.where(candidate.gather(1, order), value - rest, 0.0)
    return torch.zeros_like(found).scatter(1, order, found)


def _divisor(scale: Tensor) -> Tensor:
    """``[B, 1]``; 1 where there is no noise, and so no choice to score."""
    return torch.where(scale > 0, scale, 1.0).float()[:, None]


def _pick_spread(
    confidence: Tensor, other: Tensor | None, scale: Tensor, rank: Tensor, candidate: Tensor
) -> dict[str, Tensor]:
    """Of each pick the "entropy", and the "kl" to that of a reference's confidences ``other``, ``[B, N]``."""
    order = rank.argsort(dim=-1, stable=True)
    place = torch.arange(rank.shape[1], device=rank.device)
    open_ = (place[None, :] >= place[:, None]) & candidate.gather(1, order)[:, None, :]  # [B, pick, position]

    def choice(values: Tensor) -> Tensor:
        value = (values.float() / _divisor(scale)).gather(1, order)
        return torch.log_softmax(value[:, None, :].masked_fill(~open_, -1e30), dim=-1)

    def back(values: Tensor) -> Tensor:
        return torch.zeros_like(values).scatter(1, order, values)

    policy = choice(confidence)
    probability = policy.exp() * open_
    spread = {"entropy": back(-(probability * policy).sum(-1))}
    if other is not None:
        spread["kl"] = back((probability * (policy - choice(other))).sum(-1))
    return spread


def _action_mask(commit: Tensor, noise: Noise, settings: Unmasking) -> Tensor:
    """Which entries are actions, ``[B, A]``."""
    if settings.estimator == "random_mask":
        return noise.shared
    steps = settings.steps
    trained = torch.zeros(len(commit), steps, dtype=torch.bool, device=commit.device)
    trained = trained.scatter(1, noise.trained, True)
    committed = trained.gather(1, commit)
    if settings.estimator == "trajectory":
        return committed
    step = torch.arange(steps, device=commit.device)
    drawn = (commit[:, None, :] >= step[:, None]) & trained[:, :, None]
    ordered = committed & (commit < steps - 1) & _order_is_drawn(settings)
    return torch.cat([drawn.flatten(1), ordered], dim=1)


def _order_is_drawn(settings: Unmasking) -> bool:
    """Whether the order is drawn in a way that depends on the weights."""
    return settings.order == "confidence" and settings.order_temperature > 0


def score(
    segment: MaskedImageSegment,
    hidden: Hidden,
    head: Head,
    *,
    vocabulary: int,
    entropy: bool = False,
    reference: tuple[Hidden, Head] | None = None,
) -> Scores:
    """Score recorded actions, ``[B, A]`` each: k forward passes over the canvas ("random_mask": one).

    Entropy and KL to ``reference`` are exact: over the vocabulary, and over the choices of a pick. The
    reference's functions must compute with the reference's weights by themselves.
    """
    sampling, settings = segment.sampling, segment.sampling.unmask
    with_order = settings.estimator == "exact" and _order_is_drawn(settings)
    names = ["logp", *(["entropy"] if entropy else []), *(["kl"] if reference else [])]

    def canvas(chosen: Tensor, masked: Tensor) -> tuple[Tensor, Tensor | None]:
        """What was asked for of ``chosen`` on one canvas a row, ``[F, B, N]`` in the order of ``names``;
        where picks need it, the reference's logp."""
        other, other_logp = None, None
        if reference is not None:
            with torch.no_grad():
                other = (reference[0](segment.tokens, masked), reference[1])
                if with_order:
                    found = token_kernel.score_hidden(*other, chosen, sampling, vocabulary=vocabulary)
                    other_logp = found.logp
        own = hidden(segment.tokens, masked)
        scores = token_kernel.score_hidden(
            own, head, chosen, sampling, entropy=entropy, reference=other, vocabulary=vocabulary
        )
        return torch.stack([getattr(scores, name) for name in names]), other_logp

    if settings.estimator == "random_mask":
        values, _ = canvas(segment.tokens, segment.mask)
    elif settings.estimator == "trajectory":
        values = _committed(segment, canvas)
    else:
        values = _drawn_and_picked(segment, canvas, names if with_order else [])
    return Scores(**dict(zip(names, torch.where(segment.mask, values, 0.0), strict=True)))


Canvas = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def _committed(segment: MaskedImageSegment, canvas: Canvas) -> Tensor:
    """What every trained step committed, ``[F, B, N]``; step k of row b is ``trained[b, k]``."""
    parts = []
    for step in segment.trained[..., None].unbind(1):
        found, _ = canvas(segment.tokens, segment.commit >= step)
        parts.append(torch.where(segment.commit == step, found, 0.0))
    return torch.stack(parts).sum(0)


def _drawn_and_picked(segment: MaskedImageSegment, canvas: Canvas, of_picks: Sequence[str]) -> Tensor:
    """What every trained step drew and picked, ``[F, B, S N + N]``; without ``of_picks`` no pick counts."""
    rows = torch.arange(len(segment), device=segment.commit.device)
    draws, picks = [], []
    for step in segment.trained.unbind(1):
        masked, here = segment.commit >= step[:, None], segment.commit == step[:, None]
        found, other = canvas(segment.draws[rows, step], masked)
        draws.append(found)
        picked = torch.zeros_like(found)
        if of_picks:
            about = (order_scale(segment.sampling.unmask, step), segment.rank, masked)
            spread = {"logp": _picks(found[0], *about)}
            if len(of_picks) > 1:
                spread |= _pick_spread(found[0], other, *about)
            picked = torch.where(here, torch.stack([spread[name] for name in of_picks]), 0.0)
        picks.append(picked)
    by_step = torch.stack(draws, 2)
    index = segment.trained[..., None].expand_as(by_step)
    every = by_step.new_zeros(len(by_step), *segment.draws.shape).scatter(2, index, by_step)
    return torch.cat([every.flatten(2), torch.stack(picks).sum(0)], dim=2)
