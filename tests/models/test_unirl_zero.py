"""UniRL-Zero against itself (what is scored is what was drawn), plain loops, and transformers' own model."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn
from torch.distributions import Normal

from model_checks import KL, LOGP, REFERENCES, assert_losses_equal, gap, perturb, value, with_adapters
from tiny_models import WORDS, keys, picture
from tiny_unirl import (
    LOOK,
    Made,
    deep_autoencoder,
    inputs_of,
    oblong,
    patch_codec,
    plain_condition,
    public_unirl,
    starter_unirl,
    tiny_sizes,
    with_sana,
    with_sd3,
)
from triptych.errors import UserError
from triptych.kernels import flow
from triptych.kernels.noise import normals
from triptych.models import load, unirl_zero
from triptych.models.base import Example, LoraSettings, from_pictures
from triptych.models.latent_codec import AutoencoderCodec, PatchLatentCodec
from triptych.models.tiny import tiny_unirl_zero
from triptych.models.unirl_zero import UniRLZeroModel
from triptych.trajectory import (
    Denoising,
    FlowImageSegment,
    NoiseKey,
    Prompt,
    Sampling,
    TextSegment,
    Turn,
    Unmasking,
)

BUILDERS: dict[str, Callable[[], UniRLZeroModel]] = {"starter": starter_unirl, "public": public_unirl}
SCALES = {"off": (1.0, None), "two": (3.0, None), "three": (3.0, 1.5)}
GROUPS = {"lm", "connector", "queries", "dm"}
CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's, without videos and numbered pictures."""


def conversation() -> Prompt:
    """A drawing is shown again, with what is wrong with it."""
    turns = (
        ("system", ("a ?",)),
        ("user", ("draw a ", "red circle")),
        ("assistant", (picture(3),)),
        ("user", (oblong(4), "is this ", picture(5), " red ?")),
    )
    return Prompt(tuple(Turn(role=role, content=content) for role, content in turns))


def prompts() -> list[Prompt]:
    """Drawings and edits side by side, long and short, one without a word, one with three pictures."""
    return [
        Prompt.of("a red circle"),
        Prompt.of(picture(1), "draw two blue circle a green square no"),
        Prompt.of(oblong(2), "red"),
        Prompt.of(""),
        conversation(),
    ]


def sampling(scales: str = "off", **denoise: object) -> Sampling:
    guidance, source = SCALES[scales]
    settings = Denoising(**{"steps": 4, **denoise})  # type: ignore[arg-type]
    return Sampling(guidance=guidance, source_guidance=source, denoise=settings)


def drawn(model: UniRLZeroModel, scales: str = "off", **denoise: object) -> FlowImageSegment:
    return model.generate_image(prompts(), sampling(scales, **denoise), keys(5))


def written(model: UniRLZeroModel, rows: int = 5, **settings: object) -> TextSegment:
    about = Sampling(**{"max_tokens": 10, **settings})  # type: ignore[arg-type]
    return model.generate_text((prompts() * rows)[:rows], about, keys(rows, "text"))


# -- what is scored is what was drawn ----------------------------------------------------------------
@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("scales", SCALES)
@torch.no_grad()
def test_scoring_returns_the_recorded_log_probabilities(
    builder: str, scales: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawings and edits in one batch, prompts of different sizes, whatever the split of rows or steps."""
    model = BUILDERS[builder]()
    for denoise in ({}, {"window": 2, "noise": "cps", "start": "shared"}):
        segment = drawn(model, scales, **denoise)
        for rows in ([0, 1, 2, 3, 4], [4, 0, 2], [1, 3], [0], [1], [2], [3], [4]):
            assert gap(model, segment.rows(rows)) <= 1e-5
        with monkeypatch.context() as patch:
            patch.setattr(unirl_zero, "SCORED_AT_ONCE", 1)
            assert gap(model, segment) <= 1e-5
        found = model.score(segment, frozenset({"old_kl", "std", "step_size", "entropy"}))
        assert float(value(found.old_kl).max()) <= 1e-8
        steps = segment.sigmas.diff(dim=1).neg().gather(1, segment.trained)
        assert torch.equal(value(found.step_size), steps)
        spread = Normal(0.0, value(found.std)).entropy()
        torch.testing.assert_close(value(found.entropy), spread, atol=1e-6, rtol=1e-6)
    other = replace(segment, sampling=replace(segment.sampling, guidance=5.0))
    assert gap(model, other) > 1e-3, "and a difference would be seen"


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_scoring_returns_the_recorded_log_probabilities_of_answers(builder: str) -> None:
    model = BUILDERS[builder]()
    segment = written(model, rows=15, temperature=0.8)
    assert 0 < int((~segment.mask[:, -1]).sum()) < 15, "some texts must end before others"
    for rows in (range(15), range(4), range(2, 9), [14], [1], [3]):
        assert gap(model, segment.rows(rows)) <= 1e-5
    other = [Prompt.of(picture(9), p.text) if p.pictures else p for p in segment.context]
    assert gap(model, replace(segment, context=tuple(other))) > 0.1, "the picture must matter in this case"


@torch.no_grad()
def test_drawings_do_not_depend_on_batch_size_order_or_company() -> None:
    model, about, names = starter_unirl(), sampling("three"), keys(5)
    whole, order = drawn(model, "three"), [3, 0, 4, 2, 1]
    mixed = model.generate_image([prompts()[i] for i in order], about, [names[i] for i in order])
    alone = [model.generate_image(prompts()[i : i + 1], about, names[i : i + 1]) for i in range(5)]
    for other in (mixed.rows([order.index(i) for i in range(5)]), FlowImageSegment.cat(alone)):
        torch.testing.assert_close(other.latents, whole.latents, atol=1e-5, rtol=1e-5)


# -- against a plain loop ------------------------------------------------------------------------------
def text_of(prompt: Prompt) -> str:
    """Qwen's layout, written out."""
    said = ""
    for turn in prompt.turns:
        said += f"<|im_start|>{turn.role}\n"
        for part in turn.content:
            said += part if isinstance(part, str) else LOOK
        said += "<|im_end|>\n"
    return said + "<|im_start|>assistant\n"


@torch.no_grad()
def plain_velocity(model: UniRLZeroModel, prompt: Prompt, x: Tensor, sigma: Tensor, scales: str) -> Tensor:
    """Of one row ``x [1, c, h, w]``: every branch by itself, captions through transformers' own model."""
    row = (text_of(prompt), prompt.pictures)
    captions = plain_condition((model.network, model.tokenizer), row, bool(prompt.pictures))[None]
    source = model._encode(prompt.pictures[-1:]) if prompt.pictures else None
    c = model.network.dm(x, sigma, captions, source)
    i = model.network.dm(x, sigma, 0 * captions, source)
    u = model.network.dm(x, sigma, 0 * captions)
    guidance, by_source = SCALES[scales]
    if by_source is not None:
        return u + by_source * (i - u) + guidance * (c - i)
    return u + guidance * (c - u)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("scales", SCALES)
@torch.no_grad()
def test_a_plain_loop_draws_the_same_pictures(builder: str, scales: str) -> None:
    model = BUILDERS[builder]()
    segment, level = drawn(model, scales), 0.7
    noise = flow.noise(keys(5), model.shape, sampling().denoise)
    times = torch.linspace(1, 0, 5)
    sigmas = 3 * times / (1 + 2 * times)
    for b, prompt in enumerate(prompts()):
        x, logp = noise.start[b : b + 1], []
        for k, (now, to) in enumerate(pairwise(sigmas)):
            v, d = plain_velocity(model, prompt, x, now, scales), to - now
            if k == 3:
                x = x + v * d
                continue
            g2 = level**2 * now / (1 - (now if now < 1 else sigmas[1]))
            mean = x * (1 + g2 * d / (2 * now)) + v * (1 + g2 * (1 - now) / (2 * now)) * d
            x = mean + (-g2 * d).sqrt() * noise.eps[b : b + 1, k]
            logp.append(Normal(mean, (-g2 * d).sqrt()).log_prob(x).mean())
        torch.testing.assert_close(segment.latents[b, -1], x[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(segment.logp[b], torch.stack(logp), atol=1e-5, rtol=0)
    assert torch.equal(model.decode(segment), model.codec.decode(segment.latents[:, -1]))


@torch.no_grad()
def test_an_edit_depends_on_words_looks_and_latent_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model = starter_unirl()
    one = model.generate_image(prompts()[1:2], sampling(), keys(1))
    text = one.context[0].text
    assert gap(model, replace(one, context=(Prompt.of(picture(1), "red"),))) > 1e-3
    assert gap(model, replace(one, context=(Prompt.of(text),))) > 1e-3
    look, encode = model.network.look, model._encode
    with monkeypatch.context() as patch:
        patch.setattr(model.network, "look", lambda pictures: look([picture(8)] * len(pictures)))
        assert gap(model, one) > 1e-3, "what the language model sees alone"
    with monkeypatch.context() as patch:
        patch.setattr(model, "_encode", lambda pictures: encode([picture(8)] * len(pictures)))
        assert gap(model, one) > 1e-3, "the latent alone"
    first = replace(one, context=(Prompt.of(picture(8), picture(1), text),))
    latents = model._sources(first.context)
    assert torch.equal(latents, model._sources(one.context)), "the last picture is the source"
    far = replace(one, sampling=replace(one.sampling, source_guidance=2.0))
    assert gap(model, far) > 1e-3 and gap(model, one) <= 1e-5


@torch.no_grad()
def test_pictures_of_a_group_are_looked_at_once_and_the_source_is_encoded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = starter_unirl(), []
    for owner, name in ((model.network, "look"), (model, "_encode")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda p, f=original: seen.append(len(p)) or f(p))
    other, source = picture(1), picture(2)
    group = [Prompt.of(other, source, text) for text in ("red", "red", "blue")]
    model.generate_image(group, sampling(), keys(3))
    assert seen == [2, 1]


# -- conversations -------------------------------------------------------------------------------------
def test_conversations_are_laid_out_as_qwen_lays_them_out() -> None:
    model = starter_unirl()
    for prompt in prompts():
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in turn.content
                ],
            }
            for turn in prompt.turns
        ]
        told = model.tokenizer.apply_chat_template(
            messages, chat_template=CHAT, tokenize=False, add_generation_prompt=True
        )
        unasked = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        assert model._said(prompt) == told.removeprefix(unasked) == text_of(prompt)
        assert told.startswith(unasked) == (prompt.turns[0].role != "system")


@torch.no_grad()
def test_greedy_answers_are_those_of_transformers() -> None:
    model = starter_unirl()
    found = written(model, temperature=0.0)
    assert len(found.tokens.unique(dim=0)) > 1
    for prompt, tokens, mask in zip(found.context, found.tokens, found.mask, strict=True):
        inputs = inputs_of((model.network, model.tokenizer), (text_of(prompt), prompt.pictures))
        model.network.lm.model.rope_deltas = None
        whole = model.network.lm.generate(
            **inputs, max_new_tokens=10, do_sample=False, eos_token_id=model.end
        )
        assert whole[0, inputs["input_ids"].shape[1] :].tolist() == tokens[mask].tolist()
    ids = model.tokenizer.convert_tokens_to_ids(["<think>", "two", "</think>", "<|im_end|>"])
    mask = torch.ones(1, 4, dtype=torch.bool)
    said = replace(found.rows([0]), tokens=torch.tensor([ids]), logp=torch.zeros(1, 4), mask=mask)
    assert model.texts(said) == ["<think> two </think>"]


# -- gradients -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("trained", [GROUPS, GROUPS - {"lm"}, {"dm"}, {"lm"}])
def test_a_drawing_s_gradient_reaches_what_is_trained_and_nothing_else(
    trained: set[str], recompute: bool
) -> None:
    model = starter_unirl()
    segment = drawn(model, "three", window=2)
    model.train_only(sorted(trained))
    model.recompute = recompute
    assert set(model.parameter_groups()) == trained
    logp = model.score(segment, LOGP).logp
    assert logp is not None
    logp.sum().backward()
    moved = {
        name for name, p in model.network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
    }
    assert {name.split(".")[0] for name in moved} == trained
    if "queries" in trained:
        assert {"queries.draw", "queries.edit"} <= moved
    upstream = bool(trained - {"dm"})
    assert model._captions(segment.context).requires_grad == upstream, "no graph that nobody needs"


def test_an_answer_s_gradient_is_the_language_model_s() -> None:
    model = starter_unirl()
    logp = model.score(written(model), LOGP).logp
    assert logp is not None
    logp.sum().backward()
    moved = {n.split(".")[0] for n, p in model.network.named_parameters() if p.grad is not None}
    assert moved == {"lm"}


# -- examples ------------------------------------------------------------------------------------------
def examples() -> list[Example]:
    keyed, asked = [NoiseKey(0, 7, "task", i) for i in range(5)], prompts()
    return [
        Example(prompt=asked[0], target=picture(7), key=keyed[0]),
        Example(prompt=asked[1], target="yes"),
        Example(prompt=asked[1], target=picture(8), key=keyed[1], time=0.2),
        Example(prompt=Prompt.of("what ?"), target="two red circle"),
        Example(prompt=asked[2], target=oblong(9), key=keyed[2], time=0.9, unconditional=True),
        Example(prompt=asked[0], target=picture(9), key=keyed[3], time=0.5, unconditional=True),
    ]


@torch.no_grad()
def by_hand(model: UniRLZeroModel, example: Example) -> tuple[float, int]:
    """One example's loss, and of how many elements."""
    made = (model.network, model.tokenizer)
    row = (text_of(example.prompt), example.prompt.pictures)
    if isinstance(example.target, str):
        inputs = inputs_of(made, row)
        ids = [*model.tokenizer(example.target, add_special_tokens=False)["input_ids"], model.end]
        words = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
        kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, len(ids)).int()], 1)
        model.network.lm.model.rope_deltas = None
        logits = model.network.lm(**inputs | {"input_ids": words, "mm_token_type_ids": kinds}).logits[0]
        loss = nn.functional.cross_entropy(logits[-len(ids) - 1 : -1], torch.tensor(ids), reduction="sum")
        return float(loss), len(ids)
    clean = model._encode([example.target])
    numbers = normals([example.key], 1 + clean.numel())[0]
    time = float(stats.norm.cdf(numbers[0])) if example.time is None else example.time
    plain = special.expit(-stats.norm.ppf(time))
    sigma = 3 * plain / (1 + 2 * plain)
    noise = numbers[1:].view_as(clean)
    captions = plain_condition(made, row, bool(row[1]))[None] * (not example.unconditional)
    source = model._encode(row[1][-1:]) if row[1] else None
    noised = (1 - sigma) * clean + sigma * noise
    velocity = model.network.dm(noised, torch.tensor([sigma]).float(), captions, source)
    return float((velocity - (noise - clean)).square().mean()), 1


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_the_loss_is_that_of_flow_matching_and_of_the_next_word(builder: str) -> None:
    model = BUILDERS[builder]()
    assert_losses_equal(model, examples(), partial(by_hand, model), rel=1e-4)


@pytest.mark.parametrize(("make", "allowed"), [(with_sd3, 1e-10), (with_sana, 1e-6)])
def test_the_losses_of_any_split_add_up_in_value_and_gradient(
    make: Callable[[], Made], allowed: float
) -> None:
    """In float64; SANA's attention computes in fp32 even so, and so do log-probabilities."""
    network, tokenizer = make()
    model, several = UniRLZeroModel(network.double(), tokenizer, patch_codec().double()), examples()

    def add_up(size: int) -> list[Tensor]:
        parts = [several[i : i + size] for i in range(0, 6, size)]
        total = torch.stack([s.total for p in parts for s in model.supervised_loss(p).values()]).sum()
        found = torch.autograd.grad(total, list(model.network.parameters()), allow_unused=True)
        torch.testing.assert_close(total.detach(), expected, atol=0, rtol=1e-6)
        return [g for g in found if g is not None]

    expected = torch.stack([s.total.detach() for s in model.supervised_loss(several).values()]).sum()
    whole = add_up(6)
    assert len(whole) > 50 and {x.dtype for x in whole} == {torch.float64}
    for size in (1, 3):
        for a, b in zip(whole, add_up(size), strict=True):
            torch.testing.assert_close(a, b, atol=allowed, rtol=allowed)


def test_the_first_queries_learn_to_say_the_captions_of_an_example() -> None:
    model, (drawing, *others) = starter_unirl(), examples()
    width, plain = model.network.dm.captions, model.supervised_loss([drawing, *others])["draw"].total.item()
    taught = replace(drawing, captions=torch.randn(2, width))
    total = model.supervised_loss([taught, *others])["draw"].total
    said = plain_condition((model.network, model.tokenizer), (text_of(drawing.prompt), ()), False)
    assert taught.captions is not None
    missed = float((said[:2] - taught.captions).square().mean())
    assert missed > 0.5 and total.item() == pytest.approx(plain + missed, rel=1e-5)
    (total - model.supervised_loss([drawing, *others])["draw"].total).backward()
    sizes = {
        name: sum(float(p.grad.abs().sum()) for p in group if p.grad is not None)
        for name, group in model.parameter_groups().items()
    }
    assert min(sizes[name] for name in ("lm", "connector", "queries")) > 1e-3 > 1e-4 > sizes["dm"], (
        "its own loss"
    )


def test_a_picture_learned_by_heart_is_drawn() -> None:
    """What is learned is what the sampler follows: from any noise, to the picture."""
    model, prompt, target = starter_unirl(), Prompt.of("a red circle"), picture(7)
    several = [
        Example(prompt=prompt, target=target, key=NoiseKey(0, i, "a", 0), time=(i + 0.5) / 16)
        for i in range(16)
    ]
    model.train_only(["dm"])
    optimizer = torch.optim.Adam(model.parameter_groups()["dm"], lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model.supervised_loss(several)["draw"].total.backward()
        optimizer.step()
    path = model.generate_image([prompt] * 3, sampling(steps=8, noise="ode"), keys(3)).latents
    apart = (path - model._encode([target])[:, None]).square().flatten(2).mean(2)
    assert float((apart[:, -1] / apart[:, 0]).max()) < 0.4


# -- the reference, adapters, files --------------------------------------------------------------------
@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_new_weights_leave_the_reference_alone_and_the_kl_is_exact(kind: str) -> None:
    model, old = starter_unirl(), starter_unirl()
    REFERENCES[kind](model)
    before = (drawn(old, "three"), written(old))
    for segment in before:
        assert float(value(model.score(segment, KL).kl)[segment.mask].abs().max()) < 1e-6
    perturb(model, 0.2)
    assert set(model.parameter_groups()) == GROUPS
    for segment in before:
        found = value(model.score(segment, LOGP, reference=True).logp)
        torch.testing.assert_close(found[segment.mask], segment.logp[segment.mask], atol=1e-5, rtol=0)
        assert gap(model, segment) > 1e-3
    for new in (drawn(model, "three"), written(model)):
        assert gap(model, new) <= 1e-5, "and the policy is back afterwards"
    segment, found = before[0], model.score(before[0], KL)
    for action in range(3):
        x, there = segment.latents[:, action], segment.latents[:, action + 1]
        sigma, after = segment.sigmas[:, action], segment.sigmas[:, action + 1]
        means = []
        for m in (model, old):
            v = m._velocity(segment.context, segment.sampling)(x, sigma, segment.trained[:, action])
            about = (sigma, after, segment.sigmas[:, 1], segment.sampling.denoise)
            means.append(flow.transition(x, v, *about))
        expected = (means[0].mean - means[1].mean).square().flatten(1).mean(1) / (2 * means[0].std ** 2)
        torch.testing.assert_close(value(found.kl)[:, action], expected, atol=1e-6, rtol=1e-3)
        assert float(expected.min()) > 1e-5 and there.shape == x.shape


def test_adapters_cover_the_language_model_and_leave_the_tower_alone() -> None:
    pytest.importorskip("peft")
    model = starter_unirl()
    model.add_lora(LoraSettings(rank=2, alpha=2, full=("queries",)))
    names = {n for n, p in model.network.named_parameters() if p.requires_grad}
    layers = {n.split(".lora_")[0] for n in names if ".lora_" in n}
    assert len(layers) == 2 * 7 and all(n.startswith("lm.model.language_model.layers.") for n in layers)
    rest = {n for n in names if ".lora_" not in n}
    assert rest == {f"queries.modules_to_save.default.{name}" for name in ("draw", "edit")}
    assert set(model.parameter_groups()) == {"lm", "queries"}
    with pytest.raises(UserError, match="none is named qkv"):  # the tower's alone
        starter_unirl().add_lora(LoraSettings(targets=("qkv",)))


def assert_same_policy(one: UniRLZeroModel, two: UniRLZeroModel) -> None:
    """The same draws with the same log-probabilities to the bit, the same pictures and the same scores."""
    first, second = ([drawn(m, "three"), written(m)] for m in (one, two))
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())
        assert torch.equal(value(one.score(a, LOGP).logp), value(two.score(a, LOGP).logp))
    assert torch.equal(one.decode(first[0]), two.decode(second[0]))


def opened(folder: Path) -> UniRLZeroModel:
    model = load(folder)
    assert isinstance(model, UniRLZeroModel)
    return model


@pytest.mark.parametrize("builder", BUILDERS)
def test_saved_models_come_back_bit_for_bit(builder: str, tmp_path: Path) -> None:
    model = BUILDERS[builder]()
    model.save_pretrained(tmp_path)
    again = opened(tmp_path)
    assert type(again.codec) is type(model.codec) and not again.training
    assert_same_policy(model, again)
    perturb(again, 0.2)
    again.load_weights(tmp_path)
    assert_same_policy(model, again)


def test_adapters_come_back_on_their_base_with_what_trains_beside_them(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    starter_unirl().save_pretrained(tmp_path / "base")
    model = opened(tmp_path / "base")
    with_adapters(model)
    perturb(model, 0.2)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "lm").exists()
    assert_same_policy(model, opened(tmp_path / "adapter"))


def test_a_model_of_public_parts_keeps_the_buffers_of_its_autoencoder(tmp_path: Path) -> None:
    """BatchNorm's statistics are no parameters, and washed-out pictures where they are forgotten."""
    vae = deep_autoencoder()
    for name, buffer in vae.named_buffers():
        if "running" in name:
            buffer.copy_(1 + torch.rand(buffer.shape, generator=torch.Generator().manual_seed(0)))
    model = UniRLZeroModel(*with_sana(), AutoencoderCodec(vae))
    model.save_pretrained(tmp_path / "parts")
    model.tokenizer.save_pretrained(tmp_path / "parts" / "lm")
    made = UniRLZeroModel.from_parts(tmp_path / "parts" / "lm", tmp_path / "parts", model.network.layout)
    made.save_pretrained(tmp_path / "whole")
    again = opened(tmp_path / "whole")
    assert_same_policy(made, again)
    images = from_pictures([picture(1), picture(2)])
    for other in (made, again):
        assert torch.equal(other.codec.encode(images), model.codec.encode(images))
        latents = model.codec.encode(images)
        assert torch.equal(other.codec.decode(latents), model.codec.decode(latents))


# -- errors --------------------------------------------------------------------------------------------
def test_what_does_not_apply_is_a_clear_error() -> None:
    model, one, asked = starter_unirl(), keys(1), prompts()[:1]
    for about in (Sampling(unmask=Unmasking(steps=3)), Sampling(temperature=0.0), Sampling(temperature=0.5)):
        with pytest.raises(
            UserError, match="unmask and temperature are for tokens, and unirl_zero draws lat"
        ):
            model.generate_image(asked, about, one)
    for about, message in (
        (Sampling(guidance=2.0), r"unirl_zero writes text without guidance; got guidance 2\.0"),
        (Sampling(source_guidance=2.0), "source_guidance is for edits"),
        (Sampling(denoise=Denoising(steps=3)), "denoise is for latents, and these are tokens"),
    ):
        with pytest.raises(UserError, match=message):
            model.generate_text(asked, about, one)
    with pytest.raises(UserError, match="unirl_zero cannot make a picture of a text segment"):
        model.decode(written(model))
    with pytest.raises(UserError, match="'image' was denoised without noise: it has no probabilities"):
        model.score(drawn(model, noise="ode"), LOGP)
    with pytest.raises(UserError, match="cannot score reference_logp of segment 'image'"):
        model.score(drawn(model), frozenset({"reference_logp"}))
    with pytest.raises(UserError, match="another number of image tokens than of pictures"):
        model.generate_image([Prompt.of("a <|image_pad|>")], sampling(), one)
    model.require("read", "draw", "edit")


def test_parts_that_do_not_fit_are_a_clear_error() -> None:
    model, codec = starter_unirl(), patch_codec()
    narrow = PatchLatentCodec(codec.codebook, codec.points[:, :3])
    with pytest.raises(UserError, match="the codec has 3 channels, the diffusion expert 4"):
        UniRLZeroModel(model.network, model.tokenizer, narrow)
    more = tiny_unirl_zero([*WORDS, "more"], tiny_sizes(), codec)
    assert more.image_size == 8 and more.shape == (4, 4, 4)
    model.network.config.image_token_id += 1
    with pytest.raises(UserError, match=r"the tokenizer and the model's config have different ids for"):
        UniRLZeroModel(model.network, model.tokenizer, codec)
