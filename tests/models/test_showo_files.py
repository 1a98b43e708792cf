"""Show-o on disk: the public layout in and out, what is wrong with a folder, the published sizes."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.activations import ACT2FN

from tiny_models import draw_prompts, keys, public_showo, read_prompts, starter_showo
from triptych.errors import UserError
from triptych.models import load
from triptych.models.base import LoraSettings
from triptych.models.magvit2 import MagViT2Codec
from triptych.models.masked_network import MARKS
from triptych.models.showo import ShowoModel
from triptych.models.showo_network import ShowoLayout, ShowoNetwork, phi_config
from triptych.models.word_tokenizer import word_tokenizer
from triptych.trajectory import Sampling, Segment, Unmasking

LOGP = frozenset({"logp"})
WEIGHTS = "pytorch_model.safetensors"


def outcomes(model: ShowoModel) -> list[Segment]:
    sampling = Sampling(guidance=3.0, unmask=Unmasking(steps=4))
    return [
        model.generate_image(draw_prompts(), sampling, keys(5)),
        model.generate_text(read_prompts(), Sampling(max_tokens=6), keys(5, "text")),
    ]


def assert_same_policy(one: ShowoModel, two: ShowoModel) -> None:
    """The same draws with the same log-probabilities to the bit, and the same pictures."""
    for a, b in zip(outcomes(one), outcomes(two), strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.logp, b.logp)
    drawing = outcomes(one)[0]
    assert torch.equal(one.decode(drawing), two.decode(drawing))


@pytest.fixture
def public(tmp_path: Path) -> tuple[ShowoModel, Path]:
    """A model in the public layout, and its folder."""
    model = public_showo()
    model.save_pretrained(tmp_path / "hub")
    return model, tmp_path / "hub"


# -- in and out ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("build", [starter_showo, public_showo])
def test_saved_models_come_back_bit_for_bit(build: type, tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    opened = load(tmp_path)
    assert isinstance(opened, ShowoModel) and type(opened.codec) is type(model.codec)
    assert_same_policy(model, opened)
    assert opened.layout == model.layout and not opened.training
    stored = load_file(tmp_path / WEIGHTS)
    assert stored.keys() == model.network.state_dict().keys()
    opened.load_weights(tmp_path)
    assert_same_policy(model, opened)


def test_half_precision_opens_as_asked_with_positions_in_full(public: tuple[ShowoModel, Path]) -> None:
    model, folder = public
    half = ShowoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    rotary = [m.network.showo.model.rotary_emb.inv_freq for m in (half, model)]
    assert rotary[0].dtype == torch.float32 and torch.equal(*rotary)
    drawing = outcomes(half)[0]
    again = half.score(drawing, LOGP).logp
    assert again is not None and again.dtype == drawing.logp.dtype == torch.float32
    assert float((again - drawing.logp).detach().abs().max()) < 0.15


def test_the_config_speaks_the_public_names(public: tuple[ShowoModel, Path]) -> None:
    model, folder = public
    about = json.loads((folder / "config.json").read_text())
    assert about["_class_name"] == "Showo" and "model_type" not in about
    assert about["mask_token_id"] == about["vocab_size"] - 1
    assert about["llm_vocab_size"] + 10 == model.layout.first_code == len(model.tokenizer)
    assert about["num_vq_tokens"] == 16 and about["w_clip_vit"] is False


def as_published(folder: Path) -> None:
    """What a public folder has: no tokenizer, and a language model that is named and not described."""
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    entries = json.loads(words.backend_tokenizer.to_str())["model"]["vocab"]
    for file in folder.glob("*token*"):
        file.unlink()
    plain = sorted((word for word in entries if word not in MARKS), key=entries.__getitem__)
    # a language model's tokenizer: one mark for begin and end, no padding, and the marks are still to come
    vocabulary = {word: i for i, word in enumerate(["<|endoftext|>", *plain[1:-1]])}
    described = json.loads(words.backend_tokenizer.to_str())
    described["model"]["vocab"] = vocabulary
    described["added_tokens"], described["post_processor"] = [], None
    from tokenizers import Tokenizer

    end = "<|endoftext|>"
    named = Tokenizer.from_str(json.dumps(described))
    PreTrainedTokenizerFast(
        tokenizer_object=named, bos_token=end, eos_token=end, unk_token="<unk>"
    ).save_pretrained(folder.parent / "llm")
    config = json.loads((folder / "config.json").read_text())
    config.update({"llm_model_path": str(folder.parent / "llm"), "_diffusers_version": "0.30.1"})
    (folder / "config.json").write_text(json.dumps(config))


def test_a_public_folder_takes_its_language_models_tokenizer_and_adds_the_marks_in_order(
    public: tuple[ShowoModel, Path],
) -> None:
    model, folder = public
    as_published(folder)
    words = len(PreTrainedTokenizerFast.from_pretrained(folder.parent / "llm"))
    config = json.loads((folder / "config.json").read_text())
    config["llm_vocab_size"], grown = words, words + 10 + 8 + 1
    network = model.network.showo
    tensors = load_file(folder / WEIGHTS)
    for name in ("showo.model.embed_tokens.weight", "showo.lm_head.weight", "showo.lm_head.bias"):
        tensors[name] = torch.randn(grown, *tensors[name].shape[1:])
    save_file(tensors, folder / WEIGHTS)
    config.update({"vocab_size": grown, "mask_token_id": grown - 1})
    (folder / "config.json").write_text(json.dumps(config))
    opened = load(folder)
    assert isinstance(opened, ShowoModel) and isinstance(opened.codec, MagViT2Codec)
    ids = opened.tokenizer.convert_tokens_to_ids(["[PAD]", *MARKS])
    assert ids == list(range(words, words + 10))
    assert opened.begin == opened.end == 0 and opened.layout.first_code == words + 10
    assert opened.network.config.num_hidden_layers == network.config.num_hidden_layers
    drawing = outcomes(opened)[0]
    found = opened.score(drawing, LOGP).logp
    assert found is not None and float((found - drawing.logp).detach().abs().max()) <= 1e-5
    opened.save_pretrained(folder / "again")
    again = load(folder / "again")
    assert isinstance(again, ShowoModel)
    assert_same_policy(opened, again)


def test_weights_open_from_a_plain_pickle_and_a_hostile_one_is_refused(
    public: tuple[ShowoModel, Path],
) -> None:
    model, folder = public
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    opened = load(folder)
    assert isinstance(opened, ShowoModel)
    assert_same_policy(model, opened)
    marker = folder / "ran"
    torch.save({"showo.lm_head.bias": Hostile(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is refused"):
        load(folder)
    assert not marker.exists()


class Hostile:
    """Unpickles by making a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_adapters_come_back_on_their_base(public: tuple[ShowoModel, Path]) -> None:
    pytest.importorskip("peft")
    _, folder = public
    model = load(folder)
    assert isinstance(model, ShowoModel)
    model.add_lora(LoraSettings(rank=2, alpha=4, full=("lm_head",)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.network.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder.parent / "adapter")
    assert not (folder.parent / "adapter" / WEIGHTS).exists()
    opened = load(folder.parent / "adapter")
    assert isinstance(opened, ShowoModel)
    assert_same_policy(model, opened)
    assert not torch.equal(outcomes(opened)[0].tokens, outcomes(public_showo())[0].tokens)


# -- what is wrong with a folder -------------------------------------------------------------------------
WRONG: dict[str, tuple[str, Tensor | None]] = {
    "missing": ("showo.model.layers.1.self_attn.dense.weight", None),
    "missing norm": ("showo.model.layers.1.self_attn.q_layernorm.bias", None),
    "missing head": ("showo.lm_head.bias", None),
    "extra": ("showo.model.layers.7.mlp.fc1.weight", torch.zeros(2, 2)),
    "projector": ("mm_projector.0.weight", torch.zeros(16, 1024)),
    "local": ("local.0.weight", torch.zeros(16, 1, 3, 3)),
    "misshapen": ("showo.model.embed_tokens.weight", torch.zeros(3, 16)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_tensor_is_an_error_of_one_line_that_names_it(
    kind: str, public: tuple[ShowoModel, Path]
) -> None:
    _, folder = public
    name, tensor = WRONG[kind]
    tensors = {key: value for key, value in load_file(folder / WEIGHTS).items() if key != name}
    save_file(tensors if tensor is None else {**tensors, name: tensor}, folder / WEIGHTS)
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "class": (
        {"_class_name": "Transformer2DModel"},
        "is a transformer2dmodel model; this version opens janus, showo",
    ),
    "sum": ({"codebook_size": 9}, r"vocab_size \d+ is not \d+ words \+ 10 marks \+ 9 codes \+ 1 mask"),
    "square": ({"num_vq_tokens": 15}, "num_vq_tokens 15 is no square"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_wrong_config_is_a_clear_error(kind: str, public: tuple[ShowoModel, Path]) -> None:
    _, folder = public
    change, message = CONFIGS[kind]
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_tokenizer_of_another_model_or_none_is_a_clear_error(public: tuple[ShowoModel, Path]) -> None:
    model, folder = public
    others = [f"w{i}" for i in range(len(model.tokenizer) - 4)]
    word_tokenizer(others, []).save_pretrained(folder)
    with pytest.raises(UserError, match="this is not a Show-o tokenizer"):
        load(folder)
    for file in folder.glob("*token*"):
        file.unlink()
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "llm_model_path": str(folder / "nowhere")}))
    with pytest.raises(UserError, match=r"no tokenizer at .*nowhere"):
        load(folder)


def test_a_model_with_clip_draws_and_says_why_it_does_not_read(public: tuple[ShowoModel, Path]) -> None:
    model, folder = public
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "w_clip_vit": True}))
    projector = {
        "mm_projector.0.weight": torch.randn(16, 1024),
        "mm_projector.0.bias": torch.randn(16),
        "mm_projector.2.weight": torch.randn(16, 16),
        "mm_projector.2.bias": torch.randn(16),
    }
    save_file({**load_file(folder / WEIGHTS), **projector}, folder / WEIGHTS)
    opened = load(folder)
    assert isinstance(opened, ShowoModel)
    sampling = Sampling(unmask=Unmasking(steps=4))
    pair = [m.generate_image(draw_prompts(), sampling, keys(5)).logp for m in (model, opened)]
    assert torch.equal(*pair)
    with pytest.raises(UserError, match="CLIP tower"):
        opened.generate_text(read_prompts(), Sampling(), keys(5))
    with pytest.raises(UserError, match=r"showo cannot read; it can draw$"):
        opened.require("read")
    assert model.can == {"read", "draw", "relax"}, "the others still do"
    opened.save_pretrained(folder / "again")
    assert load_file(folder / "again" / WEIGHTS).keys() == load_file(folder / WEIGHTS).keys()


# -- the published sizes ---------------------------------------------------------------------------------
VOCABULARY, WIDTH, INNER, LAYERS, HEAD = 58_498, 2048, 8192, 24, 64


def expected_shapes(clip: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published files, by name."""
    shapes: dict[str, tuple[int, ...]] = {"showo.model.embed_tokens.weight": (VOCABULARY, WIDTH)}

    def pair(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    pair("showo.lm_head", VOCABULARY, WIDTH)
    pair("showo.model.final_layernorm", WIDTH)
    for i in range(LAYERS):
        layer = f"showo.model.layers.{i}"
        pair(f"{layer}.input_layernorm", WIDTH)
        for part in ("q_proj", "k_proj", "v_proj", "dense"):
            pair(f"{layer}.self_attn.{part}", WIDTH, WIDTH)
        for part in ("q_layernorm", "k_layernorm"):
            pair(f"{layer}.self_attn.{part}", HEAD)
        pair(f"{layer}.mlp.fc1", INNER, WIDTH)
        pair(f"{layer}.mlp.fc2", WIDTH, INNER)
    if clip:
        pair("mm_projector.0", WIDTH, 1024)
        pair("mm_projector.2", WIDTH, WIDTH)
    return shapes


@pytest.mark.parametrize(
    ("layout", "tensors", "total"),
    [
        (ShowoLayout(), 437, 1_448_176_770),
        (ShowoLayout(num_vq_tokens=1024), 437, 1_448_176_770),
        (ShowoLayout(w_clip_vit=True), 441, 1_454_472_322),
    ],
    ids=["show-o", "show-o-512x512", "show-o-w-clip-vit"],
)
def test_the_published_layout_is_what_the_class_expects(
    layout: ShowoLayout, tensors: int, total: int
) -> None:
    """1.45 billion parameters: the published files hold 5.4 GiB in fp32."""
    with torch.device("meta"):
        network = ShowoNetwork(layout, phi_config(layout, {}))
    expected = expected_shapes(layout.w_clip_vit)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected
    assert len(expected) == tensors
    assert sum(p.numel() for p in network.parameters()) == total
    assert (layout.first_code, layout.mask_id) == (50_305, 58_497)
    config = network.config
    assert (config.num_attention_heads, config.layer_norm_eps) == (32, 1e-5)
    x = torch.linspace(-8, 8, 1001)
    torch.testing.assert_close(ACT2FN[config.hidden_act](x), ACT2FN["gelu_new"](x), atol=1e-6, rtol=1e-6)
    rotary = config.rope_parameters
    assert (rotary["partial_rotary_factor"], rotary["rope_theta"]) == (0.5, 10_000.0)
    assert network.showo.lm_head.weight is not network.get_input_embeddings().weight
