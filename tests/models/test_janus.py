"""Janus against itself (what is scored is what was drawn) and against plain transformers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, JanusImageProcessor

from model_checks import LOGP, gap
from tiny_models import (
    CODES,
    SIDE,
    as_text,
    chi_square,
    joint_index,
    keys,
    log_probabilities,
    mixed_prompts,
    plain_logits,
    public_janus,
    starter_janus,
)
from triptych.errors import UserError
from triptych.kernels import tokens as kernel
from triptych.kernels.noise import uniforms
from triptych.models import causal, writing
from triptych.models.janus import JanusModel, VQCodec
from triptych.trajectory import Prompt, Sampling, Segment, TextSegment, Unmasking

BUILDERS = {"starter": starter_janus, "public": public_janus}
PROMPT = Prompt.of("draw a red circle")
DRAWS = 20_000


def generate(
    model: JanusModel, kind: str, prompts: list[Prompt], sampling: Sampling, seed: int = 0
) -> Segment:
    act = model.generate_image if kind == "image" else model.generate_text
    return act(prompts, sampling, keys(len(prompts), kind, seed))


# -- what is scored is what was drawn ----------------------------------------------------------------
CASES = [
    ("image", 1.0, 1.0),
    ("image", 3.0, 1.0),
    ("image", 3.0, 0.7),
    ("text", 1.0, 1.0),
    ("text", 1.0, 0.7),
]


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(("kind", "guidance", "temperature"), CASES)
@torch.no_grad()
def test_scoring_returns_the_recorded_log_probabilities(
    builder: str, kind: str, guidance: float, temperature: float
) -> None:
    model = BUILDERS[builder]()
    sampling = Sampling(guidance=guidance, temperature=temperature, max_tokens=20)
    prompts = [p for p in mixed_prompts() for _ in range(4)]
    segment = generate(model, kind, prompts, sampling)
    if kind == "text":
        assert 0 < int((~segment.mask[:, -1]).sum()) < len(prompts), "some texts must end before others"
    for size in (1, 3, len(prompts)):
        for start in range(0, len(prompts), size):
            rows = range(start, min(start + size, len(prompts)))
            assert gap(model, segment.rows(rows)) <= 1e-5
    shuffled = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    assert gap(model, segment.rows(shuffled)) <= 1e-5


@torch.no_grad()
def test_segments_joined_to_another_width_score_the_same() -> None:
    model = starter_janus()
    parts = [generate(model, "text", [PROMPT], Sampling(max_tokens=20), seed) for seed in range(12)]
    assert len({part.tokens.shape[1] for part in parts}) > 1, "the case needs texts of several lengths"
    assert gap(model, TextSegment.cat(parts)) <= 1e-5


@torch.no_grad()
def test_a_hidden_state_at_the_token_instead_of_before_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = starter_janus()
    segment = generate(model, "image", mixed_prompts(), Sampling(guidance=3.0))
    before = model._written
    monkeypatch.setattr(model, "_written", lambda *args, **about: before(*args, **about).roll(-1, dims=1))
    assert gap(model, segment) > 0.1


@torch.no_grad()
def test_dropout_stays_off_even_where_training_is_asked_for() -> None:
    model = starter_janus()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    segment = generate(model, "image", mixed_prompts(), Sampling())
    model.train()
    assert not model.training and gap(model, segment) <= 1e-5


# -- and what is drawn follows exp(score): counted, against an independent implementation -------------
def sequences(base: int, length: int) -> Tensor:
    """All ``base ** length`` rows of tokens, in the order of :func:`joint_index`."""
    return torch.cartesian_prod(*[torch.arange(base)] * length)


def image_check(model: JanusModel, sampling: Sampling, draws: int = DRAWS, prompt: Prompt = PROMPT) -> float:
    """p-value of drawn pictures under the joint distribution that plain transformers gives."""
    every = sequences(CODES, model.draw_tokens)
    logits = plain_logits(model, prompt, every, draw=True, guidance=sampling.guidance)
    each = log_probabilities(logits, sampling.temperature).gather(-1, every[..., None]).squeeze(-1)
    drawn = draw_many(model, "image", sampling, draws, prompt)
    counts = joint_index(drawn.tokens, CODES).bincount(minlength=len(every))
    return chi_square(counts, each.sum(1).exp())


def text_check(model: JanusModel, sampling: Sampling, draws: int = DRAWS, prompt: Prompt = PROMPT) -> float:
    """p-value of written texts of two tokens; one that ends at once has the end token alone."""
    base, end = model.vocabulary, model.end
    every = sequences(base, 2)
    each = log_probabilities(plain_logits(model, prompt, every, draw=False), sampling.temperature)
    each = each.gather(-1, every[..., None]).squeeze(-1)
    joint = each.sum(1).exp().view(base, base)
    joint[end] = torch.eye(base, dtype=joint.dtype)[0] * each[end * base, 0].exp()
    drawn = draw_many(model, "text", replace(sampling, max_tokens=2), draws, prompt)
    assert torch.equal(drawn.mask[:, 1], drawn.tokens[:, 0] != end)
    counts = joint_index(drawn.tokens, base).bincount(minlength=base * base)
    return chi_square(counts, joint.flatten())


def draw_many(model: JanusModel, kind: str, sampling: Sampling, draws: int, prompt: Prompt) -> Segment:
    size = 2000
    parts = [generate(model, kind, [prompt] * size, sampling, seed) for seed in range(draws // size)]
    return type(parts[0]).cat(parts)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 1.0), (3.0, 1.3)])
def test_drawn_pictures_follow_the_scored_distribution(
    builder: str, guidance: float, temperature: float
) -> None:
    sampling = Sampling(guidance=guidance, temperature=temperature)
    assert image_check(BUILDERS[builder](), sampling) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_written_texts_follow_the_scored_distribution(temperature: float) -> None:
    assert text_check(public_janus(), Sampling(temperature=temperature)) > 1e-3


def test_a_picture_in_the_prompt_counts_for_the_distribution() -> None:
    prompt = mixed_prompts()[1]
    assert text_check(starter_janus(), Sampling(), prompt=prompt) > 1e-3


def warmer_than_recorded() -> Callable[..., Tensor]:
    right = kernel.log_policy
    return lambda logits, asked: right(logits, replace(asked, temperature=1.25 * asked.temperature))


def swapped_branches() -> Callable[..., Tensor]:
    right = kernel.guided

    def wrong(logits: Tensor, asked: Sampling) -> Tensor:
        return right(logits if asked.guidance == 1 else torch.cat(logits.chunk(2)[::-1]), asked)

    return wrong


def one_state_too_early() -> Callable[..., Tensor]:
    """Hidden states shifted by one place, in the cached and in the teacher-forced pass alike."""
    right = causal.run_layers
    last: dict[int, Tensor] = {}

    def wrong(lm: Any, embeds: Tensor, mask: Any, place: Tensor, cache: Any = None, **more: Any) -> Tensor:
        hidden = right(lm, embeds, mask, place, cache, **more)
        earlier = last.get(id(cache), hidden[:, :1]) if cache is not None else hidden[:, :1]
        last[id(cache)] = hidden[:, -1:]
        if cache is not None and embeds.shape[1] > 1:
            earlier = hidden[:, :1]
        return torch.cat([earlier, hidden[:, :-1]], dim=1)

    return wrong


MISTAKES = {
    "temperature": (kernel, "log_policy", warmer_than_recorded),
    "guidance": (kernel, "guided", swapped_branches),
    "off by one": (causal, "run_layers", one_state_too_early),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_a_mistake_in_drawing_and_scoring_alike_is_caught_by_counting_alone(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sampling = starter_janus(), Sampling(guidance=3.0, temperature=1.3)
    assert image_check(model, sampling, draws=4000) > 1e-3
    module, name, make = MISTAKES[mistake]
    monkeypatch.setattr(module, name, make())
    monkeypatch.setattr(
        writing, "distinct", lambda prompts: (list(prompts), None)
    )  # one pass: one place to shift
    segment = generate(model, "image", mixed_prompts(), sampling)
    assert gap(model, segment) <= 1e-5, "the mistake is on both sides: comparing them shows nothing"
    assert image_check(model, sampling, draws=4000) < 1e-9


# -- the same draws, whatever stands beside them ------------------------------------------------------
NEAR = 1e-5


def near_tie(probabilities: Tensor, number: float) -> bool:
    """Whether ``number`` lies so close to a step of the cumulative distribution that rounding decides."""
    return bool(((probabilities.double().cumsum(-1) - number).abs() < NEAR).any())


def test_the_near_tie_detector_sees_ties_and_nothing_else() -> None:
    probabilities = torch.tensor([0.25, 0.5, 0.25])
    assert near_tie(probabilities, 0.75 + 1e-6) and not near_tie(probabilities, 0.7501)


def same_draws(model: JanusModel, one: Segment, two: Segment, kind: str, seed: int = 0) -> int:
    """Rows that differ; each must have begun to differ at a near-tie."""
    width = max(one.tokens.shape[1], two.tokens.shape[1])
    noise = uniforms(keys(len(one), kind, seed), width)
    a, b = (torch.nn.functional.pad(s.tokens, (0, width - s.tokens.shape[1])) for s in (one, two))
    different = (a != b).any(1).nonzero().flatten().tolist()
    for row in different:
        at = int((a[row] != b[row]).nonzero()[0])
        draw = kind == "image"
        logits = plain_logits(
            model, one.context[row], a[row : row + 1], draw=draw, guidance=one.sampling.guidance
        )
        policy = log_probabilities(logits[0, at], one.sampling.temperature).exp()
        assert near_tie(policy, float(noise[row, at])), f"row {row} was drawn otherwise without a tie"
    return len(different)


@pytest.mark.parametrize(("kind", "guidance"), [("image", 3.0), ("text", 1.0)])
@torch.no_grad()
def test_draws_do_not_depend_on_batch_size_order_or_company(kind: str, guidance: float) -> None:
    model, sampling = public_janus(), Sampling(guidance=guidance, max_tokens=12)
    prompts, names = [p for p in mixed_prompts() for _ in range(8)], keys(40, kind)
    act = model.generate_image if kind == "image" else model.generate_text
    whole = act(prompts, sampling, names)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = act([prompts[i] for i in order], sampling, [names[i] for i in order])
    back = [order.index(i) for i in range(40)]
    assert same_draws(model, whole, shuffled.rows(back), kind) <= 1
    for size in (1, 7):
        parts = [act(prompts[i : i + size], sampling, names[i : i + size]) for i in range(0, 40, size)]
        assert same_draws(model, whole, type(whole).cat(parts), kind) <= 1
    assert len(whole.tokens.unique(dim=0)) > 20, "samples of a group must differ"
    other = act(prompts, sampling, [replace(k, seed=1) for k in names])
    with pytest.raises(AssertionError, match="without a tie"):
        same_draws(model, whole, other, kind)


# -- against transformers' own generate ---------------------------------------------------------------
def left_padded(model: JanusModel, prompts: list[Prompt], draw: bool) -> dict[str, Tensor]:
    """What transformers' ``generate`` takes, tokenised by transformers."""
    tokenizer = model.tokenizer
    tokenizer.padding_side = "left"
    texts = [as_text(prompt, draw, model.read_tokens) for prompt in prompts]
    found = tokenizer(texts, return_tensors="pt", padding=True)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def test_greedy_texts_equal_those_of_transformers() -> None:
    model, prompts = public_janus(), mixed_prompts()
    ours = generate(model, "text", prompts, Sampling(temperature=0.0, max_tokens=10))
    pictures = torch.stack([picture for prompt in prompts for picture in prompt.pictures])
    theirs = model.network.generate(
        **left_padded(model, prompts, draw=False),
        pixel_values=pictures.permute(0, 3, 1, 2).float() / 127.5 - 1,
        generation_mode="text",
        do_sample=False,
        max_new_tokens=10,
        pad_token_id=0,
        eos_token_id=model.end,
    )
    theirs = theirs[:, -ours.tokens.shape[1] :]
    assert torch.equal(ours.tokens * ours.mask, theirs * ours.mask)
    assert len(ours.tokens.unique(dim=0)) > 2


@pytest.mark.parametrize("rows", [[0], [0, 2, 4]], ids=["one prompt", "left padded"])
def test_greedy_pictures_equal_those_of_transformers(rows: list[int]) -> None:
    model = public_janus()
    prompts = [mixed_prompts()[i] for i in rows]
    ours = generate(model, "image", prompts, Sampling(temperature=0.0, guidance=5.0))
    settings = GenerationConfig(
        do_sample=False,
        guidance_scale=5.0,
        bos_token_id=model.tokenizer.bos_token_id,
        pad_token_id=model.tokenizer.pad_token_id,
        generation_kwargs={"boi_token_id": model.begin_image},
    )
    theirs = model.network.generate(
        **left_padded(model, prompts, draw=True), generation_mode="image", generation_config=settings
    )
    assert torch.equal(ours.tokens, theirs)
    plain = generate(model, "image", prompts, Sampling(temperature=0.0, guidance=1.0))
    assert not torch.equal(plain.tokens, theirs), "guidance must matter in this case"


# -- pictures in and out ------------------------------------------------------------------------------
def test_the_unconditional_row_keeps_bos_and_begin_of_image_and_pads_the_rest() -> None:
    model = starter_janus()
    ids, valid = model._ids([mixed_prompts()[1], PROMPT], draw=True)
    marks = {model.tokenizer.bos_token_id: 1, model.begin_image: 2}
    blank = model._without_condition(ids)
    assert blank[0].tolist() == [i if i in marks else 0 for i in ids[0].tolist()]
    assert int((blank[0] == model.begin_image).sum()) == 2, "that of the prompt's picture stays as well"
    assert blank[1][valid[1]].tolist() == [1, *[0] * (int(valid[1].sum()) - 2), model.begin_image]


@torch.no_grad()
def test_guidance_one_equals_the_limit_of_guidance() -> None:
    model = starter_janus()
    without = generate(model, "image", mixed_prompts(), Sampling(guidance=1.0))
    nearly = replace(without, sampling=Sampling(guidance=1.0 + 1e-6))
    assert gap(model, nearly) <= 1e-4
    assert gap(model, replace(without, sampling=Sampling(guidance=2.0))) > 0.1


@torch.no_grad()
def test_image_logits_come_from_the_generation_head_and_text_logits_from_the_language_head() -> None:
    model = public_janus()
    drawn = generate(model, "image", mixed_prompts(), Sampling())
    written = generate(model, "text", mixed_prompts(), Sampling())
    model.network.lm_head.weight.mul_(2)
    assert gap(model, drawn) <= 1e-5 and gap(model, written) > 0.1
    model.network.lm_head.weight.div_(2)
    model.network.model.generation_head.vision_head.weight.mul_(2)
    assert gap(model, drawn) > 0.1 and gap(model, written) <= 1e-5


def codec_with(vectors: Tensor, latent: Tensor) -> VQCodec:
    """A VQ codec whose network finds ``latent`` at every place, and whose codebook is ``vectors``."""
    vq = public_janus().network.model.vqmodel
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(vectors)
        vq.quant_conv.weight.zero_()
        vq.quant_conv.bias.copy_(latent)
    return VQCodec(vq)


def test_ids_are_found_by_direction_where_transformers_compares_lengths() -> None:
    vectors = 0.01 * torch.eye(8)[:CODES]  # short ones, in six directions
    vectors[4] = 0.05 * torch.eye(8)[4]  # the right direction, but short
    vectors[2] = 0.2 * (torch.eye(8)[4] + 0.5 * torch.eye(8)[2])  # nearer in space, and longer, but askew
    codec = codec_with(vectors, latent=0.3 * torch.eye(8)[4])
    images = torch.rand(2, 3, SIDE, SIDE)
    assert codec.encode(images).tolist() == [[4] * 4] * 2
    theirs = codec.vq.encode(images * 2 - 1).image_tokens
    assert set(theirs.tolist()) == {2}, "the case must be one where the choices differ"


def test_ids_come_back_in_raster_order_through_decode_and_encode() -> None:
    """With an encoder and a decoder that undo each other, ids survive the trip."""
    codec = public_janus().codec
    assert isinstance(codec, VQCodec)
    ids = torch.tensor([[0, 1, 2, 3], [5, 4, 5, 0]])
    seen: list[Tensor] = []
    codec.vq.post_quant_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    codec.decode(ids)
    unit = codec.codebook[ids].view(2, 2, 2, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[0], unit)
    codec.vq.encoder = torch.nn.Identity()
    codec.vq.quant_conv = torch.nn.Conv2d(8, 8, 1, bias=False)
    with torch.no_grad():
        codec.vq.quant_conv.weight.copy_(torch.eye(8)[..., None, None])
    assert torch.equal(codec.encode(seen[0] / 2 + 0.5), ids)


@torch.no_grad()
def test_decoded_pictures_are_those_of_transformers_in_unit_range() -> None:
    model = public_janus()
    drawn = generate(model, "image", mixed_prompts(), Sampling())
    theirs = model.network.decode_image_tokens(drawn.tokens)  # [B, H, W, 3] in about [-1, 1]
    expected = ((theirs.permute(0, 3, 1, 2) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(model.decode(drawn), expected)
    assert float(expected.std()) > 0.01


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.48, 0.46, 0.41)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (8, 16), (24, 12), (5, 8), (10, 7)])
def test_pixels_are_what_the_public_image_processor_makes_of_them(
    mean: tuple[float, ...], height: int, width: int
) -> None:
    spread = (0.5, 0.4, 0.3)
    public = public_janus()
    model = JanusModel(public.network, public.tokenizer, mean=mean, std=spread)
    size = {"height": SIDE, "width": SIDE}
    processor = JanusImageProcessor(size=size, min_size=2, image_mean=mean, image_std=spread)
    generator = torch.Generator().manual_seed(height)
    seen = torch.randint(0, 256, (height, width, 3), generator=generator).to(torch.uint8)
    theirs = processor(Image.fromarray(seen.numpy()), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(model.pixels([seen])[0], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("need", ["variance", "mean"])
def test_asking_for_what_it_cannot_give_is_a_clear_error(need: str) -> None:
    model = starter_janus()
    drawn = generate(model, "image", [PROMPT], Sampling())
    with pytest.raises(UserError, match=f"cannot score.*{need}.*logp"):
        model.score(drawn, frozenset({need}))
    greedy = generate(model, "image", [PROMPT], Sampling(temperature=0.0))
    with pytest.raises(UserError, match="greedily"):
        model.score(greedy, LOGP)
    with pytest.raises(UserError, match="without guidance"):
        generate(model, "text", [PROMPT], Sampling(guidance=2.0))
    for kind in ("image", "text"):
        with pytest.raises(UserError, match="unmask is for masked tokens"):
            generate(model, kind, [PROMPT], Sampling(unmask=Unmasking(steps=4)))
        with pytest.raises(UserError, match="source_guidance is for edits"):
            generate(model, kind, [PROMPT], Sampling(source_guidance=1.5))
    with pytest.raises(UserError, match="picture of a text segment"):
        model.decode(generate(model, "text", [PROMPT], Sampling()))
    with pytest.raises(UserError, match="janus cannot edit; it can draw, read"):
        model.require("draw", "edit")
