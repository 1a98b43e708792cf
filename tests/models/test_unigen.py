"""UniGen against itself (what is scored is what was drawn) and against plain Qwen2 over whole sequences."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
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
    edit_prompts,
    keys,
    log_probabilities,
    look_prompts,
    oblong,
    picture,
    plain_edit,
    plain_features,
    plain_reply,
    public_unigen,
    starter_unigen,
)
from triptych.errors import UserError
from triptych.models import canvas
from triptych.models.base import Example, LoraSettings
from triptych.models.patch_codec import PatchCodec
from triptych.models.tiny import TinyUniGen, tiny_unigen
from triptych.models.unigen import UniGenModel
from triptych.trajectory import (
    MaskedImageSegment,
    NoiseKey,
    Prompt,
    Sampling,
    TextSegment,
    Turn,
    Unmasking,
)

BUILDERS = {"starter": starter_unigen, "public": public_unigen}
SCALES = {"off": (1.0, None), "two": (3.0, None), "three": (3.0, 1.5)}


def sampling(scales: str = "off", **unmask: object) -> Sampling:
    guidance, source = SCALES[scales]
    settings = Unmasking(**{"steps": 4, **unmask})  # type: ignore[arg-type]
    return Sampling(guidance=guidance, source_guidance=source, unmask=settings)


def drawn(model: UniGenModel, scales: str = "off", rows: int = 5, **unmask: object) -> MaskedImageSegment:
    return model.generate_image(edit_prompts()[:rows], sampling(scales, **unmask), keys(rows))


def written(model: UniGenModel, rows: int = 5, **settings: object) -> TextSegment:
    about = Sampling(**{"max_tokens": 8, **settings})  # type: ignore[arg-type]
    return model.generate_text((look_prompts() * rows)[:rows], about, keys(rows, "text"))


# -- what is scored is what was drawn ----------------------------------------------------------------
@pytest.mark.parametrize("estimator", ["trajectory", "exact", "random_mask"])
@torch.no_grad()
def test_scoring_returns_the_recorded_log_probabilities(estimator: str) -> None:
    """Drawings and edits in one batch, prompts and pictures of different sizes, whatever the split."""
    model = starter_unigen()
    for scales, steps, order in product(SCALES, (1, 4, 16), ("random", "confidence")):
        trained = 2 if steps == 4 and order == "random" else 0
        segment = drawn(model, scales, steps=steps, order=order, estimator=estimator, trained=trained)
        assert segment.mask.any()
        assert gap(model, segment) <= 1e-5
        if steps == 4:
            for size in (1, 3):
                for start in range(0, 5, size):
                    assert gap(model, segment.rows(range(start, min(start + size, 5)))) <= 1e-5


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_scoring_returns_the_recorded_log_probabilities_of_answers(builder: str) -> None:
    model = BUILDERS[builder]()
    segment = written(model, rows=15, max_tokens=12, temperature=0.8)
    assert 0 < int((~segment.mask[:, -1]).sum()) < 15, "some texts must end before others"
    for size in (1, 4, 15):
        for start in range(0, 15, size):
            assert gap(model, segment.rows(range(start, min(start + size, 15)))) <= 1e-5


@torch.no_grad()
def test_drawings_do_not_depend_on_batch_size_order_or_company() -> None:
    model, about = public_unigen(), sampling("three", estimator="exact")
    prompts, names = edit_prompts() * 2, keys(10)
    whole = model.generate_image(prompts, about, names)
    order = [7, 2, 9, 4, 1, 8, 3, 0, 6, 5]
    shuffled = model.generate_image([prompts[i] for i in order], about, [names[i] for i in order])
    parts = [model.generate_image(prompts[i : i + 3], about, names[i : i + 3]) for i in range(0, 10, 3)]
    for other in (shuffled.rows([order.index(i) for i in range(10)]), MaskedImageSegment.cat(parts)):
        # a draw within rounding of a step of the distribution may fall to either side; these do not
        assert torch.equal(other.tokens, whole.tokens) and torch.equal(other.rank, whole.rank)
    assert len(whole.tokens.unique(dim=0)) == 10, "samples of a group must differ"


# -- against whole sequences in plain Qwen2 ------------------------------------------------------------
def at_every_step(model: UniGenModel, segment: MaskedImageSegment) -> Tensor:
    scales = (segment.sampling.guidance, segment.sampling.source_guidance)
    return recomputed(model, segment, lambda *canvas: plain_edit(model, *canvas, *scales))


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("scales", SCALES)
@torch.no_grad()
def test_a_prefix_run_once_equals_the_whole_sequence_at_every_step(builder: str, scales: str) -> None:
    model = BUILDERS[builder]()
    segment = drawn(model, scales)
    torch.testing.assert_close(segment.logp, at_every_step(model, segment), atol=1e-5, rtol=0)
    assert len(segment.tokens.unique()) > 3


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_answers_equal_those_of_the_whole_sequence(builder: str) -> None:
    model = BUILDERS[builder]()
    segment = written(model)
    expected = answers(segment, partial(plain_reply, model))
    torch.testing.assert_close(segment.logp[segment.mask], torch.cat(expected), atol=1e-5, rtol=0)
    other = [Prompt.of(picture(9), p.text) if p.pictures else p for p in segment.context]
    assert gap(model, replace(segment, context=tuple(other))) > 0.1, "the picture must matter in this case"


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_those_of_whole_sequences(recompute: bool) -> None:
    """And the tower gets none."""
    model = starter_unigen()
    model.recompute = recompute
    trained = [p for p in model.network.parameters() if p.requires_grad]
    image, text = drawn(model, "three", rows=3, steps=2), written(model, rows=3)

    told = torch.cat(answers(text, partial(plain_reply, model))).sum()
    for segment, plain in ((image, at_every_step(model, image).sum()), (text, told)):
        found = assert_same_gradient(model, segment, plain, trained)
    projector = found[[p is model.network.mm_projector[0].weight for p in trained].index(True)]
    assert float(projector.abs().max()) > 1e-3
    assert all(p.grad is None and not p.requires_grad for p in model.network.vision_tower.parameters())


# -- editing -------------------------------------------------------------------------------------------
@torch.no_grad()
def test_an_edit_depends_on_features_codes_and_instruction_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model = starter_unigen()
    one = model.generate_image([edit_prompts()[1]], sampling(), keys(1))
    source, text = one.context[0].pictures[0], one.context[0].text
    assert gap(model, replace(one, context=(Prompt.of(source, "a red square"),))) > 0.05
    assert gap(model, replace(one, context=(Prompt.of(text),))) > 0.05
    assert gap(model, replace(one, context=(Prompt.of(picture(8), text),))) > 0.05
    look, encode = model.network.look, model._encode
    with monkeypatch.context() as patch:
        patch.setattr(model.network, "look", lambda pictures: look([picture(8)] * len(pictures)))
        assert gap(model, one) > 0.05, "features alone"
    with monkeypatch.context() as patch:
        patch.setattr(model, "_encode", lambda pictures: encode([picture(8)] * len(pictures)))
        assert gap(model, one) > 0.05, "codes alone"
    assert gap(model, one) <= 1e-5


@torch.no_grad()
def test_two_scales_fall_back_to_one_and_to_none() -> None:
    model = starter_unigen()
    segments = {scales: drawn(model, scales) for scales in ("off", "two")}
    for scales, (guidance, source) in {"off": (1.0, 1.0), "two": (3.0, 3.0)}.items():
        about = replace(segments[scales].sampling, guidance=guidance, source_guidance=source)
        assert gap(model, replace(segments[scales], sampling=about)) <= 2e-5
    two = segments["two"]
    far = replace(two, sampling=replace(two.sampling, source_guidance=0.5))
    found = (value(model.score(far, LOGP).logp) - two.logp).abs().amax(1)
    edits = torch.tensor([bool(p.pictures) for p in two.context])
    assert float(found[edits].min()) > 0.05 and float(found[~edits].max()) <= 2e-5


@torch.no_grad()
def test_greedy_edits_take_the_likeliest_token_under_both_scales() -> None:
    model, prompts = public_unigen(), edit_prompts()
    about = replace(sampling("three", steps=2, order="confidence", order_temperature=0.0), temperature=0.0)
    found = model.generate_image(prompts, about, keys(5))
    for i, prompt in enumerate(prompts):
        for step in range(2):
            hidden = found.commit[i : i + 1] >= step
            best = plain_edit(model, prompt, found.tokens[i : i + 1], hidden, 3.0, 1.5)[0]
            here = found.commit[i] == step
            assert torch.equal(best.argmax(-1)[here], found.tokens[i][here])
            if step == 0:  # the most confident come first
                sure = best.log_softmax(-1).amax(-1)
                assert float(sure[here].min()) >= float(sure[~here].max()) - 1e-5


@torch.no_grad()
def test_pictures_of_a_group_and_of_all_branches_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = starter_unigen(), []
    look = model.network.look
    monkeypatch.setattr(model.network, "look", lambda pictures: seen.append(len(pictures)) or look(pictures))
    prompt = edit_prompts()[1]
    group = model.generate_image([prompt] * 4, sampling("three"), keys(4))
    assert seen == [1] and gap(model, group) <= 1e-5


# -- pictures ------------------------------------------------------------------------------------------
@torch.no_grad()
def test_pictures_are_seen_at_their_own_shape_whatever_stands_beside_them() -> None:
    model = starter_unigen()
    pictures = [
        oblong(i, *shape) for i, shape in enumerate([(8, 8), (4, 16), (16, 4), (7, 3), (1, 9), (30, 31)])
    ]
    found = model.network.look(pictures)
    assert [len(f) for f in found][:3] == [16, 16, 16]
    for each, features in zip(pictures, found, strict=True):
        assert len(features) <= 16
        torch.testing.assert_close(features, plain_features(model, each), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[1], model.network.look([pictures[1].reshape(8, 8, 3)])[0])


# -- guidance in training: what is hidden ----------------------------------------------------------------
def examples() -> list[Example]:
    keyed = [NoiseKey(0, 7, "task", i) for i in range(4)]
    draws, reads = edit_prompts(), look_prompts()
    return [
        Example(prompt=draws[0], target=picture(7), key=keyed[0]),
        Example(prompt=reads[0], target="yes"),
        Example(prompt=draws[1], target=picture(8), key=keyed[1], time=0.2),
        Example(prompt=reads[4], target="two red circle"),
        Example(prompt=draws[2], target=oblong(9, 8, 12), key=keyed[2], time=0.9, unconditional=True),
        Example(prompt=draws[0], target=picture(9), key=keyed[3], time=0.5, unconditional=True),
    ]


def by_hand(model: UniGenModel, example: Example) -> tuple[float, int]:
    """Summed cross-entropy of one example from plain logits, and of how many tokens."""
    if isinstance(example.target, str):
        words = model.tokenizer(example.target, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([*words, model.tokenizer.convert_tokens_to_ids("<|im_end|>")])
        logits = plain_reply(model, example.prompt, ids)
    else:
        codes = model._encode([example.target])
        masked = canvas.target([example], codes).mask
        bare = Prompt.of(*example.prompt.pictures, "")
        logits = plain_edit(model, bare if example.unconditional else example.prompt, codes, masked)[masked]
        ids = codes[masked]
    return float(nn.functional.cross_entropy(logits.double(), ids, reduction="sum")), len(ids)


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_hidden_tokens_and_of_answers(builder: str) -> None:
    model = BUILDERS[builder]()
    assert_losses_equal(model, examples(), partial(by_hand, model))


def test_one_batch_is_learned_by_heart_and_both_encoders_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model, several = starter_unigen(), examples()
    groups = model.parameter_groups()
    assert list(groups) == ["model", "attention", "tokens"] and len(groups["tokens"]) == 2
    trained = [p for group in groups.values() for p in group]
    tower = [p.clone() for p in model.network.vision_tower.parameters()]
    assert len(trained) == len(list(model.network.parameters())) - len(tower)
    assert_learned_by_heart(model, several, trained, steps=25)
    after = list(model.network.vision_tower.parameters())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(tower, after, strict=True))
    assert all(p.grad is not None for p in trained)


# -- new weights, the reference, adapters --------------------------------------------------------------
@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_new_weights_leave_the_reference_alone_and_the_kl_is_exact(kind: str) -> None:
    model, old = starter_unigen(), starter_unigen()
    REFERENCES[kind](model)
    before = (drawn(old, "three", rows=3), written(old))
    for segment in before:
        assert float(value(model.score(segment, KL).kl)[segment.mask].abs().max()) < 1e-5
    perturb(model)
    for segment in before:
        found = value(model.score(segment, LOGP, reference=True).logp)
        torch.testing.assert_close(found[segment.mask], segment.logp[segment.mask], atol=1e-5, rtol=0)
        assert gap(model, segment) > 0.1
    for new in (drawn(model, "three"), written(model)):
        assert gap(model, new) <= 1e-5, "and the policy is back afterwards"
    segment = before[0]
    kl = value(model.score(segment, KL).kl)
    for i, prompt in enumerate(segment.context):
        for step in range(4):
            about = (prompt, segment.tokens[i : i + 1], segment.commit[i : i + 1] >= step, 3.0, 1.5)
            new, was = (log_probabilities(plain_edit(m, *about), 1.0)[0] for m in (model, old))
            here = segment.commit[i] == step
            expected = (new.exp() * (new - was)).sum(-1).float()
            torch.testing.assert_close(kl[i][here], expected[here], atol=2e-5, rtol=1e-3)
    assert float(kl.mean()) > 0.01


def test_adapters_cover_the_language_model_and_leave_the_tower_alone() -> None:
    pytest.importorskip("peft")
    model = starter_unigen()
    model.add_lora(LoraSettings(rank=2, alpha=2, full=("mm_projector",)))
    names = {n for n, p in model.network.named_parameters() if p.requires_grad}
    layers = {n.split(".lora_")[0] for n in names if ".lora_" in n}
    assert len(layers) == 2 * 7 and all(n.startswith("llm.model.layers.") for n in layers)
    assert {n for n in names if ".lora_" not in n} == {
        f"mm_projector.modules_to_save.default.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }
    other = starter_unigen()
    with pytest.raises(UserError, match="none is named fc1"):
        other.add_lora(LoraSettings(targets=("fc1",)))


# -- sizes, rows, errors -------------------------------------------------------------------------------
def test_the_starters_sizes_and_where_its_codes_begin() -> None:
    codec = PatchCodec(torch.rand(2048, 48, generator=torch.Generator().manual_seed(0)))
    model = tiny_unigen(["red"], TinyUniGen(), codec)
    sizes = {"tower": 0, "rest": 0}
    for name, p in model.network.named_parameters():
        sizes["tower" if name.startswith("vision_tower.") else "rest"] += p.numel()
    assert 2.5e6 < sizes["rest"] < 3.5e6 and 4e5 < sizes["tower"] < 7e5
    assert (model.draw_tokens, model.codes, model.image_size) == (64, 2048, 32)
    assert [len(f) for f in model.network.look([picture(1, 32), oblong(2, 16, 64)])] == [64, 64]
    lm, codes = model.network.llm, slice(model.layout.first_code, model.layout.mask_id)
    near = (codec.codebook - codec.codebook[0]).norm(dim=1)
    for weight in (lm.model.embed_tokens.weight, lm.lm_head.weight):
        rows = weight[codes].detach()
        distance = torch.stack([near, (rows - rows[0]).norm(dim=1)])[:, 1:]
        assert float(torch.corrcoef(distance)[0, 1]) > 0.5, "codes that look alike start alike"


def row_text(model: UniGenModel, prompt: Prompt, draw: bool) -> str:
    """A prompt's columns as text: features are ``#``, codes are ``%``."""
    looks = model._looks([prompt], codes=draw)
    pieces = (model._to_draw if draw else model._to_read)(prompt, looks)
    marks = {i: "%" for i in range(model.layout.first_code, model.layout.mask_id)} | {
        model.layout.mask_id: "#"
    }
    tokens = [marks.get(i) or model.tokenizer.convert_ids_to_tokens(i) for piece in pieces for i in piece]
    return "".join(tokens)


def test_prompts_are_written_out_piece_by_piece() -> None:
    model, seen, picture_of = starter_unigen(), "<|soi|>" + "#" * 16 + "<|eoi|>", picture(1)
    codes = "<|soi|>" + "%" * 16 + "<|eoi|>"
    start, end = "<|im_start|><|t2i|>user", "<|im_end|><|im_start|>assistant"
    assert row_text(model, Prompt.of("red"), draw=True) == f"{start}red{end}"
    assert row_text(model, Prompt.of(picture_of, "red"), draw=True) == f"{start}{seen}red{codes}{end}"
    assert row_text(model, Prompt.of("two"), draw=False) == f"<|im_start|>usertwo{end}"
    look = Prompt.of("two", picture_of)
    assert row_text(model, look, draw=False) == f"<|im_start|><|mmu|>{seen}usertwo{end}"
    turns = (("system", "is"), ("user", "what ?"), ("assistant", "a circle"), ("user", "red ?"))
    talk = Prompt(tuple(Turn(role=role, content=(text,)) for role, text in turns))
    said = [f"<|im_start|>{role}{text.replace(' ', '')}<|im_end|>" for role, text in turns]
    assert row_text(model, talk, draw=False) == "".join(said) + "<|im_start|>assistant"


@torch.no_grad()
def test_locality_counts_for_drawing_alone_and_public_parts_have_none() -> None:
    model = starter_unigen()
    pictures, texts = drawn(model), written(model)
    assert model.network.local is not None
    for mixer in model.network.local:
        mixer.weight.mul_(2)
    assert gap(model, pictures) > 0.01 and gap(model, texts) <= 1e-5
    assert public_unigen().network.local is None


@torch.no_grad()
def test_drawings_decode_and_texts_read() -> None:
    model = starter_unigen()
    segment = drawn(model)
    images = model.decode(segment)
    assert images.shape == (5, 3, SIDE, SIDE)
    assert torch.equal(model.codec.encode(images), segment.tokens)
    ids = model.tokenizer.convert_tokens_to_ids(["two", "<|im_end|>"])
    mask = torch.ones(1, 2, dtype=torch.bool)
    said = replace(written(model, rows=1), tokens=torch.tensor([ids]), logp=torch.zeros(1, 2), mask=mask)
    assert model.texts(said) == ["two"]


def test_what_does_not_apply_is_a_clear_error() -> None:
    model, one = starter_unigen(), keys(1)
    with pytest.raises(UserError, match="17 unmasking steps for 16 positions"):
        drawn(model, steps=17)
    with pytest.raises(UserError, match=r"unigen writes text without guidance; got guidance 2\.0"):
        model.generate_text(look_prompts()[:1], Sampling(guidance=2.0), one)
    with pytest.raises(UserError, match="source_guidance is for edits"):
        model.generate_text(look_prompts()[:1], Sampling(source_guidance=2.0), one)
    with pytest.raises(UserError, match="unigen cannot make a picture of a text segment"):
        model.decode(written(model))
    with pytest.raises(UserError, match="the codec has 8 codes, the model 6"):
        UniGenModel(model.network, model.tokenizer, public_unigen().codec)
    model.require("read", "draw", "edit")
