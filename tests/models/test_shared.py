"""Rows with one prompt: it is run once, and every draw, score and gradient is what each alone would get."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tiny_models import keys, picture, public_janus, starter_janus, starter_showo, starter_unigen
from tiny_unirl import starter_unirl
from triptych.models import unirl_zero, writing
from triptych.models.base import UnifiedModel
from triptych.models.rows import distinct
from triptych.trajectory import Prompt, Sampling, Segment, Turn, Unmasking

MODELS: dict[str, Callable[[], UnifiedModel]] = {
    "janus": starter_janus,
    "public janus": public_janus,
    "showo": starter_showo,
    "unigen": starter_unigen,
    "unirl_zero": starter_unirl,
}


def test_prompts_are_alike_by_text_role_and_the_same_pictures() -> None:
    one, other = picture(0), picture(0)
    prompts = [Prompt.of("a"), Prompt.of("b"), Prompt.of("a"), Prompt.of(one, "a"), Prompt.of(other, "a")]
    prompts += [Prompt.of(one, "a"), Prompt((Turn(role="system", content=("a",)),)), Prompt.of("a", one)]
    found, rows = distinct(prompts)
    assert rows == [0, 1, 0, 2, 3, 2, 4, 5] and all(
        found[row] is prompts[i] for i, row in enumerate(rows) if i not in (2, 5)
    )
    assert distinct(prompts[:2]) == (prompts[:2], None) and distinct([]) == ([], None)


def outcome(model: UnifiedModel, kind: str, prompts: Sequence[Prompt], sampling: Sampling) -> list[Tensor]:
    """Actions, recorded and scored log-probabilities, and the gradient of all weights."""
    act = model.generate_text if kind == "text" else model.generate_image
    segment: Segment = act(prompts, sampling, keys(len(prompts), kind))
    model.zero_grad()
    logp = model.score(segment, frozenset({"logp"})).logp
    assert logp is not None
    (logp * segment.mask).sum().backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    drawn = getattr(segment, "tokens", None)
    drawn = segment.latents if drawn is None else drawn  # type: ignore[attr-defined]
    return [drawn, segment.logp, logp.detach() * segment.mask, torch.cat(grads)]


@pytest.mark.parametrize(("kind", "guidance"), [("text", 1.0), ("image", 1.0), ("image", 2.0)])
@pytest.mark.parametrize("name", MODELS)
def test_a_shared_prompt_changes_nothing(
    name: str, kind: str, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = MODELS[name](), picture(1)
    bare = kind == "image" and name in ("janus", "public janus", "showo")
    texts = [Prompt.of("draw two red square"), Prompt.of("a circle"), Prompt.of("draw two red square")]
    shown = [Prompt.of(seen, "what is this ?"), Prompt.of(seen, "what is this ?")]
    prompts = [*texts, *([] if bare else shown), Prompt.of("a circle"), Prompt.of("blue")]
    unmask = Unmasking(steps=2) if name in ("showo", "unigen") and kind == "image" else Unmasking()
    sampling = Sampling(guidance=guidance, unmask=unmask, max_tokens=5)
    shared = outcome(model, kind, prompts, sampling)
    calls = []

    def apart(prompts: Sequence[Prompt]) -> tuple[list[Prompt], None]:
        calls.append(len(prompts))
        return list(prompts), None

    for module in (writing, unirl_zero):
        monkeypatch.setattr(module, "distinct", apart)
    alone = outcome(model, kind, prompts, sampling)
    assert calls, "the same without sharing"
    for one, other in zip(shared[:-1], alone[:-1], strict=True):
        assert (one - other).abs().max() <= 1e-5
    assert torch.allclose(shared[-1], alone[-1], rtol=1e-3, atol=1e-5)
