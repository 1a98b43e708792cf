"""What the tests of every model ask: scores beside what was recorded, new weights, references, gradients."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from tiny_models import log_probabilities
from triptych.models.base import Example, LoraSettings, UnifiedModel
from triptych.models.masked_model import MaskedModel
from triptych.trajectory import MaskedImageSegment, Prompt, Segment, TextSegment

LOGP, KL = frozenset({"logp"}), frozenset({"kl"})
TRAINED_IN_FULL = {
    "janus": ("generation_head",),
    "showo": ("lm_head",),
    "unigen": ("lm_head",),
    "unirl_zero": ("queries", "connector", "dm"),
}


def value(scores: Tensor | None) -> Tensor:
    assert scores is not None
    return scores.detach()


def gap(model: UnifiedModel, segment: Segment) -> float:
    """Greatest |score - recorded| of any real action."""
    return float((value(model.score(segment, LOGP).logp) - segment.logp)[segment.mask].abs().max())


# -- new weights, the reference, adapters --------------------------------------------------------------
@torch.no_grad()
def perturb(model: UnifiedModel, scale: float = 0.3) -> None:
    """Add noise to all trainable weights."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.network.parameters():
        if weight.requires_grad:
            spread = float(weight.std()) or 0.3  # new adapters are zero
            weight.add_(scale * spread * torch.randn(weight.shape, generator=generator))


def with_copy(model: UnifiedModel) -> None:
    model.keep_reference(offload=True)


def with_adapters(model: UnifiedModel) -> None:
    pytest.importorskip("peft")
    model.add_lora(LoraSettings(rank=4, alpha=8, full=TRAINED_IN_FULL[model.name]))
    model.keep_reference()


REFERENCES: dict[str, Callable[[UnifiedModel], None]] = {"copy": with_copy, "adapter": with_adapters}


# -- masked models against whole sequences -------------------------------------------------------------
def recomputed(
    model: MaskedModel, segment: MaskedImageSegment, plain: Callable[[Prompt, Tensor, Tensor], Tensor]
) -> Tensor:
    """Log-probabilities ``[B, N]`` of committed tokens: the whole unpadded sequence at every step.

    ``plain`` makes logits ``[1, N, K]`` of a prompt, tokens ``[1, N]``, and which of them are hidden.
    """
    rows = []
    for i, prompt in enumerate(segment.context):
        tokens, total = segment.tokens[i : i + 1], torch.zeros(model.draw_tokens)
        for step in range(segment.sampling.unmask.steps):
            logits = plain(prompt, tokens, segment.commit[i : i + 1] >= step)
            logp = log_probabilities(logits, segment.sampling.temperature)[0]
            chosen = logp.gather(-1, tokens[0][:, None])[:, 0].float()
            total = total + torch.where(segment.commit[i] == step, chosen, 0.0)
        rows.append(total)
    return torch.stack(rows)


def answers(segment: TextSegment, plain: Callable[[Prompt, Tensor], Tensor]) -> list[Tensor]:
    """Log-probabilities of each row's own tokens; ``plain`` makes logits ``[A, V]`` of prompt and tokens."""
    rows = []
    for prompt, tokens, mask in zip(segment.context, segment.tokens, segment.mask, strict=True):
        logp = log_probabilities(plain(prompt, tokens[mask]), 1.0)
        rows.append(logp.gather(-1, tokens[mask][:, None])[:, 0].float())
    return rows


def assert_same_gradient(
    model: UnifiedModel, segment: Segment, plain: Tensor, parameters: Sequence[nn.Parameter]
) -> list[Tensor]:
    """The gradient of a segment's score is that of ``plain``; returns it."""
    logp = model.score(segment, LOGP).logp
    assert logp is not None
    both = [
        [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
        for total in ((logp * segment.mask).sum(), plain)
        for grads in [torch.autograd.grad(total, parameters, allow_unused=True)]
    ]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    return both[0]


def assert_learned_by_heart(
    model: UnifiedModel, examples: Sequence[Example], parameters: Sequence[nn.Parameter], steps: int
) -> None:
    """Both losses fall to less than half."""
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    losses: list[dict[str, float]] = []
    for _ in range(steps):
        found = model.supervised_loss(examples)
        losses.append({kind: float((s.total / s.count).detach()) for kind, s in found.items()})
        optimizer.zero_grad()
        torch.stack([s.total / s.count for s in found.values()]).sum().backward()
        optimizer.step()
    assert losses[-1]["draw"] < 0.5 * losses[0]["draw"] and losses[-1]["read"] < 0.5 * losses[0]["read"]


def assert_losses_equal(
    model: UnifiedModel,
    examples: Sequence[Example],
    by_hand: Callable[[Example], tuple[float, int]],
    rel: float = 1e-5,
) -> None:
    """Sums and counts of "draw" and "read" are those that ``by_hand`` gives of each example."""
    found = model.supervised_loss(examples)
    for kind, target in (("draw", Tensor), ("read", str)):
        rows = [example for example in examples if isinstance(example.target, target)]
        sums, counts = zip(*(by_hand(example) for example in rows), strict=True)
        assert float(found[kind].total.detach()) == pytest.approx(sum(sums), rel=rel)
        assert int(found[kind].count) == sum(counts) == model.target_count(rows)
    assert model.target_count(examples) == int(found["draw"].count) + int(found["read"].count)
