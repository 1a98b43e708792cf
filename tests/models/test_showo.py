"""Show-o against itself (what is scored is what was drawn) and against plain Phi over whole sequences."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from model_checks import (
    KL,
    LOGP,
    REFERENCES,
    answers,
    assert_learned_by_heart,
    assert_losses_equal,
    assert_same_gradient,
    gap,
    perturb,
    recomputed,
    value,
)
from tiny_models import (
    SIDE,
    WORDS,
    draw_prompts,
    keys,
    lively_showo,
    log_probabilities,
    picture,
    plain_answer,
    plain_canvas,
    public_showo,
    read_prompts,
    showo_sizes,
    starter_showo,
)
from triptych.errors import UserError
from triptych.models import canvas
from triptych.models.base import Example, LoraSettings
from triptych.models.patch_codec import PatchCodec
from triptych.models.showo import ShowoModel
from triptych.models.tiny import TinyShowo, tiny_showo
from triptych.trajectory import (
    MaskedImageSegment,
    NoiseKey,
    Prompt,
    Sampling,
    TextSegment,
    Turn,
    Unmasking,
)

BUILDERS = {"starter": starter_showo, "public": public_showo}


def drawn(model: ShowoModel, guidance: float = 1.0, rows: int = 5, **unmask: object) -> MaskedImageSegment:
    sampling = Sampling(guidance=guidance, unmask=Unmasking(**{"steps": 4, **unmask}))  # type: ignore[arg-type]
    prompts = (draw_prompts() * rows)[:rows]
    return model.generate_image(prompts, sampling, keys(rows))


def written(model: ShowoModel, rows: int = 5, **settings: object) -> TextSegment:
    sampling = Sampling(**{"max_tokens": 8, **settings})  # type: ignore[arg-type]
    return model.generate_text((read_prompts() * rows)[:rows], sampling, keys(rows, "text"))


# -- what is scored is what was drawn ----------------------------------------------------------------
@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("estimator", ["trajectory", "exact", "random_mask"])
@torch.no_grad()
def test_scoring_returns_the_recorded_log_probabilities(builder: str, estimator: str) -> None:
    model = BUILDERS[builder]()
    for guidance, steps, order in product((1.0, 3.0), (1, 4, 16), ("random", "confidence")):
        trained = 2 if steps == 4 and order == "random" else 0
        segment = drawn(model, guidance, steps=steps, order=order, estimator=estimator, trained=trained)
        assert segment.mask.any()
        assert gap(model, segment) <= 1e-5
        for start in range(0, 5, 3):
            assert gap(model, segment.rows(range(start, min(start + 3, 5)))) <= 1e-5
        assert gap(model, segment.rows([4])) <= 1e-5 and gap(model, segment.rows([2])) <= 1e-5


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_scoring_returns_the_recorded_log_probabilities_of_answers(builder: str) -> None:
    model = BUILDERS[builder]()
    segment = written(model, rows=15, max_tokens=12, temperature=0.8)
    assert 0 < int((~segment.mask[:, -1]).sum()) < 15, "some texts must end before others"
    for size in (1, 3, 15):
        for start in range(0, 15, size):
            assert gap(model, segment.rows(range(start, start + size))) <= 1e-5


# -- against whole sequences in plain Phi ------------------------------------------------------------
def at_every_step(model: ShowoModel, segment: MaskedImageSegment) -> Tensor:
    scale = segment.sampling.guidance
    return recomputed(model, segment, lambda p, *canvas: plain_canvas(model, p.text, *canvas, scale))


def steps_of(segment: MaskedImageSegment, row: int) -> list[Tensor]:
    """What each step of a row saw as hidden, ``[S]`` of ``[1, N]``."""
    return [segment.commit[row : row + 1] >= step for step in range(segment.sampling.unmask.steps)]


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_a_prefix_run_once_equals_the_whole_sequence_at_every_step(builder: str, guidance: float) -> None:
    model = BUILDERS[builder]()
    segment = drawn(model, guidance)
    torch.testing.assert_close(segment.logp, at_every_step(model, segment), atol=1e-5, rtol=0)
    assert len(segment.tokens.unique()) > 3


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_every_draw_of_every_step_is_that_of_the_whole_sequence(builder: str) -> None:
    model = BUILDERS[builder]()
    segment = drawn(model, 2.0, rows=2, estimator="exact", order="confidence")
    logp = segment.logp[:, : 4 * model.draw_tokens].view(2, 4, -1)
    for i, prompt in enumerate(segment.context):
        for step, masked in enumerate(steps_of(segment, i)):
            logits = plain_canvas(model, prompt.text, segment.tokens[i : i + 1], masked, 2.0)
            chosen = log_probabilities(logits, 1.0)[0].gather(-1, segment.draws[i, step][:, None])[:, 0]
            torch.testing.assert_close(logp[i, step][masked[0]], chosen.float()[masked[0]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_answers_equal_those_of_the_whole_sequence(builder: str) -> None:
    model = BUILDERS[builder]()
    segment = written(model, rows=10)
    expected = answers(segment, partial(plain_answer, model))
    torch.testing.assert_close(segment.logp[segment.mask], torch.cat(expected), atol=1e-5, rtol=0)
    asked = [Prompt.of(picture(9), p.text) if p.pictures else p for p in segment.context]
    assert gap(model, replace(segment, context=tuple(asked))) > 0.1, "the picture must matter in this case"


@torch.no_grad()
def test_the_greedy_answer_is_the_likeliest_of_the_whole_vocabulary() -> None:
    model = public_showo()
    for prompt in read_prompts()[:2]:
        tokens = model.generate_text([prompt], Sampling(temperature=0, max_tokens=5), keys(1)).tokens[0]
        assert plain_answer(model, prompt, tokens).argmax(-1).tolist() == tokens.tolist()


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_those_without_a_cache(builder: str, recompute: bool) -> None:
    model = BUILDERS[builder]()
    model.recompute = recompute
    parameters = list(model.network.parameters())
    picture_of, text_of = drawn(model, 2.0, rows=2), written(model, rows=3)

    told = torch.cat(answers(text_of, partial(plain_answer, model))).sum()
    for segment, plain in ((picture_of, at_every_step(model, picture_of).sum()), (text_of, told)):
        assert_same_gradient(model, segment, plain, parameters)


# -- guidance ------------------------------------------------------------------------------------------
@torch.no_grad()
def test_the_public_scale_is_one_less_than_ours() -> None:
    """Their (1 + w) c - w u, with the empty prompt as u, is guidance 1 + w."""
    model, w = public_showo(), 5.0
    segment = drawn(model, guidance=1 + w, rows=1, steps=1)
    hidden = torch.ones(1, model.draw_tokens, dtype=torch.bool)
    c, u = (plain_canvas(model, t, segment.tokens, hidden) for t in (draw_prompts()[0].text, ""))
    theirs = log_probabilities((1 + w) * c - w * u, 1.0).gather(-1, segment.tokens[..., None])[..., 0]
    torch.testing.assert_close(segment.logp, theirs.float(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_guidance_one_equals_the_limit_of_guidance() -> None:
    model = starter_showo()
    without = drawn(model)
    nearly = replace(without, sampling=replace(without.sampling, guidance=1 + 1e-6))
    assert gap(model, nearly) <= 1e-4
    assert gap(model, replace(without, sampling=replace(without.sampling, guidance=2.0))) > 0.1


# -- the same draws, whatever stands beside them -------------------------------------------------------
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_drawings_do_not_depend_on_batch_size_order_or_company(guidance: float) -> None:
    model, sampling = (
        public_showo(),
        Sampling(guidance=guidance, unmask=Unmasking(steps=4, estimator="exact")),
    )
    prompts, names = draw_prompts() * 4, keys(20)
    whole = model.generate_image(prompts, sampling, names)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = model.generate_image([prompts[i] for i in order], sampling, [names[i] for i in order])
    parts = [model.generate_image(prompts[i : i + 3], sampling, names[i : i + 3]) for i in range(0, 20, 3)]
    for other in (shuffled.rows([order.index(i) for i in range(20)]), MaskedImageSegment.cat(parts)):
        # a draw within rounding of a step of the distribution may fall to either side; these do not
        assert torch.equal(other.tokens, whole.tokens) and torch.equal(other.rank, whole.rank)
    assert len(whole.tokens.unique(dim=0)) == 20, "samples of a group must differ"


# -- new weights, the reference, adapters --------------------------------------------------------------
@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_new_weights_change_what_is_drawn_and_leave_the_reference_alone(kind: str) -> None:
    model, untouched = starter_showo(), starter_showo()
    REFERENCES[kind](model)
    perturb(model)
    for act in (drawn, written):
        old, new = act(untouched), act(model)
        width = min(old.tokens.shape[1], new.tokens.shape[1])
        assert not torch.equal(old.tokens[:, :width], new.tokens[:, :width])
        found = value(model.score(old, LOGP, reference=True).logp)
        torch.testing.assert_close(found[old.mask], old.logp[old.mask], atol=1e-5, rtol=0)
        assert gap(model, old) > 0.1 and gap(model, new) <= 1e-5, "and the policy is back afterwards"


@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_kl_and_entropy_are_exact(kind: str) -> None:
    model, old = starter_showo(), starter_showo()
    REFERENCES[kind](model)
    for segment in (drawn(model, 3.0), written(model)):
        assert float(value(model.score(segment, KL).kl)[segment.mask].abs().max()) < 1e-5
    perturb(model)
    segment = drawn(model, 3.0, rows=2)
    scores = model.score(segment, frozenset({"kl", "entropy"}))
    for i, prompt in enumerate(segment.context):
        for step, masked in enumerate(steps_of(segment, i)):
            new, before = (
                log_probabilities(plain_canvas(m, prompt.text, segment.tokens[i : i + 1], masked, 3.0), 1.0)[
                    0
                ]
                for m in (model, old)
            )
            here = segment.commit[i] == step
            kl, entropy = (new.exp() * (new - before)).sum(-1), -(new.exp() * new).sum(-1)
            torch.testing.assert_close(value(scores.kl)[i][here], kl.float()[here], atol=2e-5, rtol=1e-3)
            torch.testing.assert_close(
                value(scores.entropy)[i][here], entropy.float()[here], atol=2e-5, rtol=0
            )
    answer = written(model, rows=1)
    tokens = answer.tokens[0][answer.mask[0]]
    new, before = (log_probabilities(plain_answer(m, answer.context[0], tokens), 1.0) for m in (model, old))
    found = value(model.score(answer, KL).kl)[0][answer.mask[0]]
    torch.testing.assert_close(found, (new.exp() * (new - before)).sum(-1).float(), atol=2e-5, rtol=1e-3)
    assert float(found.mean()) > 0.01


@pytest.mark.parametrize("kind", REFERENCES)
def test_recomputing_changes_no_gradient_of_a_kl(kind: str) -> None:
    model = starter_showo()
    REFERENCES[kind](model)
    perturb(model)
    trainable = [p for p in model.network.parameters() if p.requires_grad]
    segment = drawn(model, 2.0, rows=3)

    def gradients() -> tuple[Tensor | None, ...]:
        kl = model.score(segment, KL).kl
        assert kl is not None
        return torch.autograd.grad(kl.sum(), trainable, allow_unused=True)

    once = gradients()
    model.recompute = True
    for a, b in zip(once, gradients(), strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert any(g is not None and float(g.abs().max()) > 0.01 for g in once)


def test_the_default_adapters_cover_all_of_phis_linear_layers() -> None:
    pytest.importorskip("peft")
    model = starter_showo()
    model.add_lora(LoraSettings(rank=2, alpha=2))
    adapted = {n.split(".lora_")[0] for n, p in model.network.named_parameters() if p.requires_grad}
    linear = [n for n, m in model.network.named_modules() if isinstance(m, nn.Linear) and "lora" not in n]
    expected = {n.removesuffix(".base_layer") for n in linear} - {"showo.lm_head"}
    assert adapted == expected and len(adapted) == 2 * 6
    other = starter_showo()
    other.add_lora(LoraSettings(rank=2, alpha=2, targets=("fc1",)))
    trained = [n for n, p in other.network.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 and all(".fc1." in n for n in trained)


@torch.no_grad()
def test_an_adapter_over_the_head_counts_for_drawings() -> None:
    pytest.importorskip("peft")
    model, plain = starter_showo(), starter_showo()
    model.add_lora(LoraSettings(rank=4, alpha=8, targets=("lm_head",)))
    perturb(model)
    segment = drawn(model)
    assert gap(model, segment) <= 1e-5 and gap(plain, segment) > 0.1


# -- learning ------------------------------------------------------------------------------------------
def examples() -> list[Example]:
    draws, reads = draw_prompts(), read_prompts()
    keyed = [NoiseKey(0, 7, "task", i) for i in range(6)]
    return [
        Example(prompt=draws[0], target=picture(7), key=keyed[0]),
        Example(prompt=reads[0], target="yes"),
        Example(prompt=draws[2], target=picture(8), key=keyed[1], time=0.2),
        Example(prompt=reads[4], target="two red circle"),
        Example(prompt=draws[1], target=picture(9), key=keyed[2], time=0.9, unconditional=True),
    ]


def by_hand(model: ShowoModel, example: Example) -> tuple[float, int]:
    """Summed cross-entropy of one example from plain logits, and of how many tokens."""
    if isinstance(example.target, str):
        words = model.tokenizer(example.target, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([*words, model.tokenizer.eos_token_id])
        logits = plain_answer(model, example.prompt, ids)
    else:
        codes = model.codec.encode(example.target.permute(2, 0, 1)[None].float() / 255)
        masked = canvas.target([example], codes).mask
        text = "" if example.unconditional else example.prompt.text
        logits = plain_canvas(model, text, codes, masked)[masked]
        ids = codes[masked]
    return float(nn.functional.cross_entropy(logits.double(), ids, reduction="sum")), len(ids)


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_hidden_tokens_and_of_answers(builder: str) -> None:
    model = BUILDERS[builder]()
    assert_losses_equal(model, examples(), partial(by_hand, model))


def test_the_losses_of_any_split_add_up_in_value_and_gradient() -> None:
    model, several = starter_showo(), examples()

    def add_up(parts: list[list[Example]]) -> tuple[Tensor, Tensor]:
        sums = [s for part in parts for s in model.supervised_loss(part).values()]
        total = torch.stack([s.total for s in sums]).sum()
        return total.detach(), torch.autograd.grad(total, model.network.showo.model.layers[0].mlp.fc1.weight)[
            0
        ]

    whole = add_up([several])
    for size in (1, 2):
        parts = add_up([several[i : i + size] for i in range(0, 5, size)])
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-5)


def test_the_loss_depends_on_key_and_time_and_on_nothing_else() -> None:
    model = starter_showo()
    one = Example(prompt=draw_prompts()[0], target=picture(1), key=NoiseKey(0, 0, "a", 0), time=0.5)

    def loss(example: Example) -> float:
        return float(model.supervised_loss([example])["draw"].total.detach())

    assert loss(one) == loss(replace(one))
    assert loss(one) != loss(replace(one, key=NoiseKey(0, 0, "a", 1)))
    assert loss(one) != loss(replace(one, time=0.6))
    counts = [model.target_count([replace(one, time=t)]) for t in (0.0, 0.5, 1.0)]
    assert counts == [16, 12, 1]


def test_one_batch_is_learned_by_heart() -> None:
    torch.manual_seed(0)
    model, several = tiny_showo(WORDS, showo_sizes(6, local=True), PatchCodec(torch.rand(6, 12))), examples()
    assert_learned_by_heart(model, several, list(model.network.parameters()), steps=30)
    local = model.network.local
    assert local is not None and all(float(m.weight.detach().abs().max()) > 0 for m in local)


def test_the_starters_sizes_and_where_its_codes_begin() -> None:
    codec = PatchCodec(torch.rand(1024, 48, generator=torch.Generator().manual_seed(0)))
    model = tiny_showo(WORDS, TinyShowo(), codec)
    assert 2.0e6 < sum(p.numel() for p in model.network.parameters()) < 3.0e6
    assert (model.draw_tokens, model.codes, model.image_size) == (64, 1024, 32)
    lm, codes = model.network.showo, slice(model.layout.first_code, model.layout.mask_id)
    near = (codec.codebook - codec.codebook[0]).norm(dim=1)
    for weight, scale in ((lm.model.embed_tokens.weight, 1.0), (lm.lm_head.weight, 192**-0.5)):
        rows = weight[codes].detach()
        assert float(rows.std()) == pytest.approx(scale, rel=0.1)
        distance = torch.stack([near, (rows - rows[0]).norm(dim=1)])[:, 1:]
        assert float(torch.corrcoef(distance)[0, 1]) > 0.5, "codes that look alike start alike"


# -- locality ------------------------------------------------------------------------------------------
@torch.no_grad()
def test_locality_counts_for_drawing_and_reading_and_public_layouts_have_none() -> None:
    model = starter_showo()
    pictures, answers = drawn(model), written(model)
    assert model.network.local is not None
    for mixer in model.network.local:
        mixer.weight.mul_(2)
    assert gap(model, pictures) > 0.01
    changed = ((value(model.score(answers, LOGP).logp) - answers.logp) * answers.mask).abs()
    seen = torch.tensor([bool(p.pictures) for p in answers.context])
    assert float(changed[seen].max()) > 0.01 and float(changed[~seen].max()) <= 1e-5
    assert public_showo().network.local is None
    assert not any("local" in key for key in public_showo().network.state_dict())


# -- prompts and pictures ------------------------------------------------------------------------------
def test_a_long_prompt_is_cut_as_the_public_code_cuts_it() -> None:
    model = starter_showo()
    ids = model._asked(Prompt.of("red " * 126))
    assert len(ids) == 129 and ids[-1] == model.end and ids[-2] != model.end
    cut = model._asked(Prompt.of("red " * 300))
    assert cut == ids


def test_a_conversation_is_written_out_turn_by_turn() -> None:
    model = starter_showo()
    turns = (("system", "is"), ("user", "what is this ?"), ("assistant", "a circle"), ("user", "red ?"))
    prompt = Prompt(tuple(Turn(role=role, content=(text,)) for role, text in turns))
    text = model.tokenizer.decode(model._said(prompt))
    expected = "<s> is user : what is this ? assistant : a circle</s> user : red ? assistant :"
    assert text.replace(" ", "") == expected.replace(" ", "")


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (20, 10), (9, 13)])
def test_pictures_are_cut_to_their_middle_as_in_the_public_code(height: int, width: int) -> None:
    """Resize the short side by bilinear filter, then cut the middle: PIL written out once more."""
    model = starter_showo()
    seen = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(1)).to(
        torch.uint8
    )
    tall, wide = (int(SIDE * side / min(height, width)) for side in (height, width))
    resized = Image.fromarray(seen.numpy()).resize((wide, tall), Image.Resampling.BILINEAR)
    top, left = round((tall - SIDE) / 2), round((wide - SIDE) / 2)
    middle = torch.tensor(list(resized.tobytes())).view(tall, wide, 3)[top : top + SIDE, left : left + SIDE]
    expected = model.codec.encode(middle.permute(2, 0, 1)[None].float() / 255)
    assert torch.equal(model._encode([seen]), expected)
    example = Example(prompt=draw_prompts()[0], target=seen)
    assert int(model.supervised_loss([example])["draw"].count) == model.target_count([example])


@torch.no_grad()
def test_codes_decode_to_pictures_and_back() -> None:
    model = starter_showo()
    segment = drawn(model)
    images = model.decode(segment)
    assert images.shape == (5, 3, SIDE, SIDE)
    assert torch.equal(model.codec.encode(images), segment.tokens)


@torch.no_grad()
def test_image_codes_in_a_text_say_nothing() -> None:
    model = starter_showo()
    segment = written(model, rows=1)
    two, code = model.tokenizer.convert_tokens_to_ids("two"), model.layout.first_code
    tokens = torch.tensor([[two, code, model.layout.mask_id, two, model.end]])
    said = replace(segment, tokens=tokens, logp=torch.zeros(1, 5), mask=torch.ones(1, 5, dtype=torch.bool))
    assert model.texts(said) == ["two two"]


def test_what_does_not_apply_is_a_clear_error() -> None:
    model = starter_showo()
    ask, one = read_prompts()[0], keys(1)
    with pytest.raises(UserError, match="draws from text alone"):
        model.generate_image([ask], Sampling(), one)
    with pytest.raises(UserError, match="17 unmasking steps for 16 positions"):
        drawn(model, steps=17)
    with pytest.raises(UserError, match="one picture a prompt, and this one holds 2"):
        model.generate_text([Prompt.of(picture(1), picture(2), "a")], Sampling(), one)
    with pytest.raises(UserError, match=r"without guidance; got guidance 2\.0"):
        model.generate_text([ask], Sampling(guidance=2.0), one)
    with pytest.raises(UserError, match="source_guidance is for edits, and showo cannot edit"):
        model.generate_image(draw_prompts(), Sampling(source_guidance=1.5), keys(5))
    with pytest.raises(UserError, match="unmask is for masked tokens"):
        model.generate_text([ask], Sampling(unmask=Unmasking(steps=4)), one)
    with pytest.raises(UserError, match="picture of a text segment"):
        model.decode(written(model))
    with pytest.raises(UserError, match="greedily"):
        model.score(model.generate_image(draw_prompts(), Sampling(temperature=0), keys(5)), LOGP)
    with pytest.raises(UserError, match="showo cannot edit"):
        model.require("edit")


def test_parts_that_do_not_belong_together_are_a_clear_error() -> None:
    one, other = starter_showo(), public_showo()
    with pytest.raises(UserError, match="the codec has 8 codes, the model 6"):
        ShowoModel(one.network, one.tokenizer, other.codec)
    fewer = tiny_showo(WORDS[:-1], showo_sizes(6, local=True), one.codec)
    with pytest.raises(UserError, match=r"the tokenizer has \d+ ids, the model"):
        ShowoModel(one.network, fewer.tokenizer, one.codec)
    assert lively_showo(fewer) is fewer


def test_embeddings_and_attention_can_learn_apart_from_the_rest() -> None:
    model = starter_showo()
    names = {id(p): n for n, p in model.network.named_parameters()}
    groups = {g: {names[id(p)] for p in found} for g, found in model.parameter_groups().items()}
    assert set.union(*groups.values()) == set(names.values()) and sum(map(len, groups.values())) == len(names)
    assert groups["tokens"] == {
        f"showo.{n}" for n in ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")
    }
    assert all(".q_proj." in n or ".k_proj." in n for n in groups["attention"])
    assert len(groups["attention"]) == 4 * len(model.network.lm.model.layers)
    model.train_only(["model", "attention"])
    assert list(model.parameter_groups()) == ["model", "attention"]
