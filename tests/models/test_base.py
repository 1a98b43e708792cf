"""What every model shares: the reference policy, the supervised loss, and errors that say what to do."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from model_checks import KL, LOGP, gap, perturb, value, with_adapters, with_copy
from tiny_models import (
    keys,
    log_probabilities,
    mixed_prompts,
    picture,
    plain_logits,
    public_janus,
    starter_janus,
)
from triptych.errors import UserError
from triptych.kernels import tokens as kernel
from triptych.models.base import Example, from_pictures, to_pictures
from triptych.models.janus import JanusModel
from triptych.trajectory import Prompt, Sampling, Segment

BUILDERS = {"starter": starter_janus, "public": public_janus}
KINDS: dict[str, Callable[[JanusModel], None]] = {
    "copy": JanusModel.keep_reference,
    "offloaded": with_copy,
    "adapter": with_adapters,
}


def drawn_and_written(model: JanusModel) -> list[Segment]:
    prompts = mixed_prompts()
    return [
        model.generate_image(prompts, Sampling(guidance=3.0, temperature=0.8), keys(5)),
        model.generate_text(prompts, Sampling(max_tokens=8), keys(5, "text")),
    ]


# -- the reference -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_new_weights_change_the_drawings_and_leave_the_reference_alone(kind: str) -> None:
    model, untouched = starter_janus(), starter_janus()
    KINDS[kind](model)
    before = drawn_and_written(untouched)
    perturb(model)
    for old, new in zip(before, drawn_and_written(model), strict=True):
        width = min(old.tokens.shape[1], new.tokens.shape[1])
        assert not torch.equal(old.tokens[:, :width], new.tokens[:, :width])
        found = value(model.score(old, LOGP, reference=True).logp)
        torch.testing.assert_close(found[old.mask], old.logp[old.mask], atol=1e-5, rtol=0)
        assert gap(model, old) > 0.1, "and the policy is back afterwards"


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_zero_for_equal_weights_and_exact_elsewhere(kind: str) -> None:
    """Against the sum over the vocabulary, written out, of two models run through plain transformers."""
    model, old = starter_janus(), starter_janus()
    KINDS[kind](model)
    for segment in drawn_and_written(model):
        assert float(value(model.score(segment, KL).kl)[segment.mask].abs().max()) < 1e-5
    perturb(model)
    for segment in drawn_and_written(model):
        kl = value(model.score(segment, KL).kl)
        draw, sampling = segment.kind == "token_image", segment.sampling
        for row, prompt in enumerate(segment.context):
            new_policy, old_policy = (
                log_probabilities(
                    plain_logits(
                        m, prompt, segment.tokens[row : row + 1], draw=draw, guidance=sampling.guidance
                    )[0],
                    sampling.temperature,
                )
                for m in (model, old)
            )
            expected = (new_policy.exp() * (new_policy - old_policy)).sum(-1).float()
            taken = segment.mask[row]
            torch.testing.assert_close(kl[row][taken], expected[taken], atol=2e-5, rtol=1e-3)
        assert float(kl[segment.mask].mean()) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_kl_is_that_of_the_kl(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences; and the same where chunks and layers are computed again in the backward pass."""
    model = starter_janus()
    KINDS[kind](model)
    perturb(model)
    segment = drawn_and_written(model)[0]
    trainable = [p for p in model.network.parameters() if p.requires_grad]

    def total() -> Tensor:
        kl = model.score(segment, KL).kl
        assert kl is not None
        return kl.mean()

    def gradients() -> list[Tensor]:
        found = torch.autograd.grad(total(), trainable, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, trainable, strict=True)]

    whole = gradients()
    model.recompute = True
    monkeypatch.setattr(kernel, "score_hidden", partial(kernel.score_hidden, chunk_elements=1))
    for a, b in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert all(p.requires_grad for p in trainable)
    length = sum(float((g**2).sum()) for g in whole) ** 0.5
    assert length > 0.01

    def moved(distance: float) -> float:
        with torch.no_grad():
            for p, g in zip(trainable, whole, strict=True):
                p.add_(distance * g / length)
            found = float(total())
            for p, g in zip(trainable, whole, strict=True):
                p.sub_(distance * g / length)
        return found

    step = 0.02
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(length, rel=0.03)


def test_an_offloaded_reference_goes_back_after_use(monkeypatch: pytest.MonkeyPatch) -> None:
    model = starter_janus()
    model.keep_reference(offload=True)
    moves: list[torch.device] = []
    kept = model._frozen[0]
    kept.device = torch.device("cpu", 0)  # tells the two ends of the trip apart on one machine
    kept.idle = torch.device("cpu")
    right = nn.Module.to

    def noted(self: nn.Module, *args: object, **kwargs: object) -> nn.Module:
        if self is kept.network:
            moves.append(args[0])  # type: ignore[arg-type]
        return right(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.Module, "to", noted)
    segment = drawn_and_written(model)[0]
    with pytest.raises(ZeroDivisionError), model.reference():
        raise ZeroDivisionError
    assert moves == [kept.device, kept.idle], "also after an error"
    moves.clear()
    model.score(segment, KL)
    assert moves == [kept.device, kept.idle], "there and back once a score, in however many parts"


def test_the_reference_is_neither_trained_nor_saved_nor_a_part_of_the_model() -> None:
    model = starter_janus()
    names, count = list(model.state_dict()), sum(1 for _ in model.parameters())
    model.keep_reference()
    assert list(model.state_dict()) == names and sum(1 for _ in model.parameters()) == count
    assert not any(p.requires_grad for p in model._frozen[0].network.parameters())


def test_without_a_reference_a_kl_is_a_clear_error() -> None:
    model = starter_janus()
    with pytest.raises(UserError, match="no reference was kept"):
        model.score(drawn_and_written(model)[0], KL)
    model.keep_reference()
    with pytest.raises(UserError, match="kl of the reference to itself"):
        model.score(drawn_and_written(model)[0], KL, reference=True)


# -- the supervised loss -------------------------------------------------------------------------------
def examples() -> list[Example]:
    prompts = mixed_prompts()
    return [
        Example(prompt=prompts[0], target=picture(7)),
        Example(prompt=prompts[1], target="yes"),
        Example(prompt=prompts[3], target=picture(8)),
        Example(prompt=prompts[4], target="two red circle"),
        Example(prompt=prompts[2], target=picture(9)),
    ]


def by_hand(model: JanusModel, example: Example) -> float:
    """Summed cross-entropy of one example, from plain logits."""
    if isinstance(example.target, Tensor):
        image = (example.target.permute(2, 0, 1).float() / 255)[None]
        ids = model.codec.encode(image)
    else:
        words = model.tokenizer(example.target, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*words, model.tokenizer.eos_token_id]])
    draw = isinstance(example.target, Tensor)
    # guidance 0 is the unconditional branch alone
    guidance = 0.0 if example.unconditional else 1.0
    logits = plain_logits(model, example.prompt, ids, draw=draw, guidance=guidance)
    return float(nn.functional.cross_entropy(logits[0].double(), ids[0], reduction="sum"))


@pytest.mark.parametrize("builder", BUILDERS)
def test_the_loss_is_the_cross_entropy_of_plain_transformers(builder: str) -> None:
    model = BUILDERS[builder]()
    found = model.supervised_loss(examples())
    for kind, rows, count in (("draw", (0, 2, 4), 3 * 4), ("read", (1, 3), 2 + 4)):
        expected = sum(by_hand(model, examples()[i]) for i in rows)
        assert float(found[kind].total.detach()) == pytest.approx(expected, rel=1e-5)
        assert int(found[kind].count) == count
    assert model.target_count(examples()) == 12 + 6


def test_the_unconditional_example_trains_the_row_that_guidance_uses() -> None:
    model = starter_janus()
    prompts = [mixed_prompts()[i] for i in (0, 3, 4)]
    several = [Example(prompt=p, target=picture(i), unconditional=i != 1) for i, p in enumerate(prompts)]
    found = model.supervised_loss(several)["draw"]
    assert float(found.total.detach()) == pytest.approx(sum(by_hand(model, e) for e in several), rel=1e-5)
    with_prompts = [Example(prompt=e.prompt, target=e.target) for e in several]
    other = model.supervised_loss(with_prompts)["draw"].total
    assert abs(float((found.total - other).detach())) > 0.1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_losses_of_any_split_add_up_in_value_and_gradient(size: int) -> None:
    model, several = starter_janus(), examples()

    def add_up(parts: list[list[Example]]) -> tuple[Tensor, Tensor]:
        sums = [s for part in parts for s in model.supervised_loss(part).values()]
        total = torch.stack([s.total for s in sums]).sum()
        weight = model.network.model.language_model.layers[0].mlp.up_proj.weight
        return total.detach(), torch.autograd.grad(total, weight)[0]

    whole = add_up([several])
    split = add_up([several[i : i + size] for i in range(0, 5, size)])
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


# -- pictures ------------------------------------------------------------------------------------------
def test_pictures_survive_the_trip_to_floats_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3)
    assert torch.equal(to_pictures(from_pictures(list(every))), every)
    beyond = torch.tensor([-0.3, 0.4999 / 255, 0.5001 / 255, 1.7])[None, None, None].expand(1, 3, 1, 4)
    assert to_pictures(beyond)[0, 0, :, 0].tolist() == [0, 0, 1, 255]
    channel = torch.zeros(1, 3, 2, 2)
    channel[0, 2, 0, 1] = 1
    assert to_pictures(channel)[0].nonzero().tolist() == [[0, 1, 2]]


def test_a_prompt_without_user_text_still_draws() -> None:
    model = starter_janus()
    drawn = model.generate_image([Prompt.of("")], Sampling(guidance=3.0), keys(1))
    assert gap(model, drawn) <= 1e-5
