"""From a drawing's logits to an answer's loss: Show-o by its embeddings, Janus through codec and tower."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tiny_models import (
    keys,
    public_janus,
    public_showo,
    starter_janus,
    starter_showo,
    starter_unigen,
)
from triptych.errors import UserError
from triptych.kernels import relaxed as kernel
from triptych.kernels.relaxed import Relaxation
from triptych.models import janus, masked_model
from triptych.models.base import Example, UnifiedModel, to_pictures
from triptych.models.patch_codec import PatchCodec
from triptych.trajectory import Prompt, Sampling, Segment, Unmasking

PROMPTS = [Prompt.of("a red circle"), Prompt.of("draw"), Prompt.of("two blue square no")]
QUESTIONS = ("what is this ?", "is this a red circle ? yes no", "what ?")
ANSWERS = ("a circle", "no", "two blue square")
SOFT = Relaxation(straight_through=False)
Starter = Callable[[], Any]


def exact(make: Starter) -> Starter:
    """A dictionary of whole bytes: drawn, stored and encoded again, a picture's codes are the same."""

    def made() -> UnifiedModel:
        model = make()
        model.codec = PatchCodec((model.codec.codebook * 255).round() / 255)
        return model

    return made


STARTERS = [pytest.param(exact(make), id=make.__name__) for make in (starter_janus, starter_showo)]


def drawing(model: UnifiedModel, **settings: Any) -> Segment:
    sampling = Sampling(unmask=Unmasking(steps=4) if model.name != "janus" else Unmasking(), **settings)
    return model.generate_image(PROMPTS, sampling, keys(3))


def examples(pictures: Sequence[Tensor]) -> list[Example]:
    return [
        Example(prompt=Prompt.of(p, q), target=a)
        for p, q, a in zip(pictures, QUESTIONS, ANSWERS, strict=True)
    ]


def loss(model: UnifiedModel, drawn: Segment, how: Relaxation) -> Tensor:
    found = model.supervised_loss(examples(model.relax(drawn, how, keys(3, "soft"))))["read"]
    return found.total / found.count


class Tap:
    """Adds ``shift``, zero at first, to the logits that are relaxed; holds their noise at its first value."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift, self.noise = torch.zeros(0), torch.zeros(0)
        monkeypatch.setattr(kernel, "gumbels", self._gumbels)
        for module in (janus, masked_model):
            monkeypatch.setattr(module, "relaxed", self._relaxed)

    def _gumbels(self, *given: Tensor, draw: Callable[..., Tensor] = kernel.gumbels) -> Tensor:
        self.noise = self.noise if len(self.noise) else draw(*given)
        return self.noise

    def _relaxed(self, logits: Tensor, *rest: Any) -> Tensor:
        if not len(self.shift):
            self.shift = torch.zeros_like(logits, requires_grad=True)
        return kernel.relaxed(logits + self.shift, *rest)


def _norm(layer: Any, x: Tensor) -> Tensor:
    """The norm of Llama's layers in the type of its input; theirs is always fp32."""
    scaled: Tensor = layer.weight * x * (x.pow(2).mean(-1, keepdim=True) + layer.variance_epsilon).rsqrt()
    return scaled


@pytest.mark.parametrize("make", [*STARTERS, public_janus, public_showo])
def test_gradients_are_finite_differences(make: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tap = make(), Tap(monkeypatch)
    monkeypatch.setattr(LlamaRMSNorm, "forward", _norm)
    drawn = drawing(model, guidance=1.5)
    model.network.double()
    loss(model, drawn, SOFT).backward()
    named = {n: p for n, p in model.network.named_parameters() if p.grad is not None and p.grad.norm() > 1e-4}
    probed = {n: named[n] for n in [*named][:: max(1, len(named) // 8)]} | {"logits": tap.shift}
    assert tap.shift.grad is not None and tap.shift.grad.norm() > 1e-4
    for name, weight in probed.items():
        way = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sides = []
        with torch.no_grad():
            for sign in (1, -2):
                weight.add_(sign * 1e-5 * way)
                sides.append(float(loss(model, drawn, SOFT)))
            weight.add_(1e-5 * way)
        assert weight.grad is not None
        expected = float((weight.grad * way).sum())
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(expected, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("make", STARTERS)
def test_straight_through_is_the_drawing_s_own_loss_with_a_gradient(
    make: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tap = make(), Tap(monkeypatch)
    drawn = drawing(model)
    hard = model.supervised_loss(examples(list(to_pictures(model.decode(drawn)))))["read"]
    found = loss(model, drawn, Relaxation())
    assert float(found.detach()) == pytest.approx(float((hard.total / hard.count).detach()), rel=1e-5)
    assert float(loss(model, drawn, SOFT).detach()) != pytest.approx(float(found.detach()), rel=1e-3)
    found.backward()
    assert tap.shift.grad is not None
    assert (tap.shift.grad.norm(dim=(1, 2)) > 1e-5).all(), "every drawing"


def test_the_public_codec_decodes_a_straight_drawing_as_ever() -> None:
    model = public_janus()
    drawn = drawing(model)
    soft = torch.stack(list(model.relax(drawn, Relaxation(), keys(3))))
    torch.testing.assert_close(
        soft.detach(), 255 * model.decode(drawn).permute(0, 2, 3, 1), atol=1e-3, rtol=0
    )
    read = model.supervised_loss(examples(soft.unbind()))["read"]
    read.total.backward()
    trained = {n for n, p in model.network.named_parameters() if p.grad is not None}
    assert not any("vqmodel" in n for n in trained), "the codec stays what it is"
    assert any("generation_head" in n for n in trained) and any("vision_model" in n for n in trained)


def test_of_a_masked_drawing_what_was_committed_from_a_step_on_is_relaxed() -> None:
    model = exact(starter_showo)()
    drawn = drawing(model)
    seen = set()
    for seed in range(12):
        weights = torch.stack(list(model.relax(drawn, SOFT, keys(3, seed=seed))))
        assert torch.equal(weights.argmax(-1), drawn.tokens)  # type: ignore[attr-defined]
        for row, commit in zip(weights, drawn.commit, strict=True):  # type: ignore[attr-defined]
            soft = row.max(-1).values < 1 - 1e-6
            first = int(commit[soft].min())
            assert torch.equal(soft, commit >= first)
            seen.add(first)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("make", STARTERS)
def test_a_row_is_relaxed_alike_whatever_the_batch(make: Starter) -> None:
    model = make()
    drawn = drawing(model)
    whole = torch.stack(list(model.relax(drawn, SOFT, keys(3))))
    [alone] = model.relax(drawn.rows([2]), SOFT, keys(3)[2:])
    torch.testing.assert_close(alone, whole[2], atol=1e-3, rtol=1e-4)
    assert not torch.allclose(whole, torch.stack(list(model.relax(drawn, SOFT, keys(3, seed=1)))), atol=1e-2)


@pytest.mark.parametrize("make", [public_janus, public_showo])
def test_half_precision_is_relaxed_too(make: Starter) -> None:
    model = make()
    model.network.bfloat16()
    drawn = model.generate_image([Prompt.of("a red circle")], Sampling(), keys(1))
    found = model.relax(drawn, Relaxation(), keys(1, "soft"))
    assert len(found) == 1 and bool(found[0].isfinite().all())
    reads = [Example(prompt=Prompt.of(found[0], "what is this ?"), target="two")]
    assert bool(model.supervised_loss(reads)["read"].total.isfinite())


def test_models_that_cannot_say_so() -> None:
    model = starter_unigen()
    with pytest.raises(UserError, match="unigen cannot relax; it can draw, edit, read"):
        model.relax(drawing(model), SOFT, keys(3))
