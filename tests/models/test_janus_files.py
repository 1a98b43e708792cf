"""Janus on disk: the public layout in and out, what is wrong with a folder, the published sizes."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from tiny_models import keys, mixed_prompts, public_janus, starter_janus
from triptych.errors import UserError
from triptych.models import load
from triptych.models.janus import JanusModel, VQCodec
from triptych.models.patch_codec import PatchCodec
from triptych.models.word_tokenizer import word_tokenizer
from triptych.trajectory import Sampling, Segment

LOGP = frozenset({"logp"})


def outcomes(model: JanusModel) -> list[Segment]:
    prompts = mixed_prompts()
    return [
        model.generate_image(prompts, Sampling(guidance=3.0), keys(5)),
        model.generate_text(prompts, Sampling(max_tokens=8), keys(5, "text")),
    ]


def assert_same_policy(one: JanusModel, two: JanusModel) -> None:
    """The same draws with the same log-probabilities to the bit, and the same pictures."""
    for a, b in zip(outcomes(one), outcomes(two), strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.logp, b.logp)
    drawn = outcomes(one)[0]
    assert torch.equal(one.decode(drawn), two.decode(drawn))


@pytest.fixture
def public(tmp_path: Path) -> tuple[JanusModel, Path]:
    """A model, and a folder in which transformers alone has saved it."""
    model = public_janus()
    model.network.save_pretrained(tmp_path / "hub")
    model.tokenizer.save_pretrained(tmp_path / "hub")
    return model, tmp_path / "hub"


# -- in and out --------------------------------------------------------------------------------------
def test_a_folder_saved_by_transformers_opens_with_the_same_outputs(public: tuple[JanusModel, Path]) -> None:
    model, folder = public
    opened = load(folder)
    assert isinstance(opened, JanusModel) and isinstance(opened.codec, VQCodec)
    assert_same_policy(model, opened)
    assert opened.network.dtype == torch.float32 and not opened.training


@pytest.mark.parametrize("stated", [True, None], ids=["a config that says tied", "a config that is silent"])
def test_a_head_of_its_own_stays_its_own(stated: bool | None, public: tuple[JanusModel, Path]) -> None:
    """The published files hold both tensors, though their config says nothing and the default is tied."""
    model, folder = public
    about = json.loads((folder / "config.json").read_text())
    del about["tie_word_embeddings"]
    (folder / "config.json").write_text(
        json.dumps({**about, **({"tie_word_embeddings": True} if stated else {})})
    )
    opened = JanusModel.from_pretrained(folder)
    assert_same_policy(model, opened)
    assert not torch.equal(opened.network.lm_head.weight, opened.network.get_input_embeddings().weight)
    opened.save_pretrained(folder / "again")
    assert not json.loads((folder / "again" / "config.json").read_text())["tie_word_embeddings"]
    assert_same_policy(model, JanusModel.from_pretrained(folder / "again"))


def test_half_precision_opens_as_asked_and_scores_in_full(public: tuple[JanusModel, Path]) -> None:
    model, folder = public
    half = JanusModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    for exact, rough in zip(outcomes(model), outcomes(half), strict=True):
        assert rough.logp.dtype == torch.float32
        again = half.score(rough, LOGP).logp
        assert again is not None and again.dtype == torch.float32
        assert float((again - rough.logp).detach()[rough.mask].abs().max()) < 0.15
        full = model.score(rough, LOGP).logp
        assert full is not None and float((full - again).detach()[rough.mask].abs().mean()) < 0.1
        assert exact.logp.shape[0] == rough.logp.shape[0]


def test_what_we_trained_and_saved_opens_in_plain_transformers(tmp_path: Path) -> None:
    model = public_janus()
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(tmp_path)
    plain, info = JanusForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    drawn, written = outcomes(model)
    ids = written.tokens
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, model.network(input_ids=ids).logits)
        assert torch.equal(
            plain.decode_image_tokens(drawn.tokens), model.network.decode_image_tokens(drawn.tokens)
        )
    for mine, theirs in zip(model.network.state_dict().items(), plain.state_dict().items(), strict=True):
        assert mine[0] == theirs[0] and torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize("build", [starter_janus, public_janus])
def test_saved_models_come_back_with_codec_tokenizer_and_normalisation(build: type, tmp_path: Path) -> None:
    model = build()
    model = JanusModel(
        model.network,
        model.tokenizer,
        model.codec if isinstance(model.codec, PatchCodec) else None,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.5),
    )
    model.save_pretrained(tmp_path)
    opened = load(tmp_path)
    assert isinstance(opened, JanusModel) and type(opened.codec) is type(model.codec)
    assert_same_policy(model, opened)
    assert (opened.mean, opened.std) == (model.mean, model.std)
    drawn = outcomes(model)[0]
    assert torch.equal(model.codec.encode(model.decode(drawn)), opened.codec.encode(model.decode(drawn)))


def test_weights_are_taken_over_from_a_folder(public: tuple[JanusModel, Path]) -> None:
    model, folder = public
    other = public_janus(seed=1)
    other.load_weights(folder)
    assert_same_policy(model, other)


# -- what is wrong with a folder ----------------------------------------------------------------------
def rewrite(folder: Path, change: dict[str, Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, value in change.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


WRONG: dict[str, tuple[str, Tensor | None]] = {
    "missing": ("model.language_model.layers.1.mlp.up_proj.weight", None),
    "missing codebook": ("model.vqmodel.quantize.embedding.weight", None),
    "missing head": ("lm_head.weight", None),
    "extra": ("model.language_model.layers.7.mlp.up_proj.weight", torch.zeros(2, 2)),
    "misshapen": ("model.generation_head.vision_head.weight", torch.zeros(3, 16)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_tensor_is_an_error_of_one_line_that_names_it(
    kind: str, public: tuple[JanusModel, Path]
) -> None:
    _, folder = public
    name, value = WRONG[kind]
    rewrite(folder, {name: value})
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_head_that_a_silent_config_would_tie_is_missed(public: tuple[JanusModel, Path]) -> None:
    _, folder = public
    about = json.loads((folder / "config.json").read_text())
    del about["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(about))
    rewrite(folder, {"lm_head.weight": None})
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        load(folder)


def test_a_torn_file_is_a_clear_error(public: tuple[JanusModel, Path]) -> None:
    _, folder = public
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot open .* as a Janus model") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_a_clear_error(public: tuple[JanusModel, Path]) -> None:
    _, folder = public
    word_tokenizer(["a", "b"], ["<|User|>"]).save_pretrained(folder)
    with pytest.raises(UserError, match="no '<begin_of_image>': this is not a Janus tokenizer"):
        load(folder)


def test_a_folder_without_tokenizer_or_without_anything_is_a_clear_error(
    public: tuple[JanusModel, Path], tmp_path: Path
) -> None:
    _, folder = public
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no model at .*empty: expected a model folder"):
        load(tmp_path / "empty")
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="is a llama model; this version opens janus"):
        load(tmp_path / "llama")


# -- the published sizes ------------------------------------------------------------------------------
class Published:
    """Janus-Pro as published (deepseek-community/Janus-Pro-1B and -7B), and its numbers in closed form."""

    VOCABULARY, CODES, CODE = 102_400, 16_384, 8
    TOWER, TOWER_LAYERS, PATCH, TOKENS = 1024, 24, 16, 576

    def __init__(self, width: int, layers: int, heads: int, inner: int) -> None:
        self.width, self.layers, self.heads, self.inner = width, layers, heads, inner

    def config(self) -> JanusConfig:
        text = LlamaConfig(
            vocab_size=self.VOCABULARY,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.inner,
            max_position_embeddings=16_384,
        )
        vision = JanusVisionConfig(
            hidden_size=self.TOWER,
            num_hidden_layers=self.TOWER_LAYERS,
            num_attention_heads=16,
            image_size=384,
            patch_size=self.PATCH,
            projection_dim=self.width,
            depth=2,
            num_image_tokens=self.TOKENS,
        )
        vq = JanusVQVAEConfig(
            embed_dim=self.CODE,
            num_embeddings=self.CODES,
            base_channels=128,
            channel_multiplier=[1, 1, 2, 2, 4],
            projection_dim=self.width,
            image_token_embed_dim=self.width,
        )
        return JanusConfig(
            text_config=text,
            vision_config=vision,
            vq_config=vq,
            image_token_id=100_581,
            tie_word_embeddings=False,
        )

    def parameters(self) -> dict[str, int]:
        """How many numbers each part holds, summed by hand."""
        d, t = self.width, self.TOWER
        layer = 4 * d * d + 3 * d * self.inner + 2 * d
        block = 4 * (t * t + t) + (t * 4 * t + 4 * t) + (4 * t * t + t) + 2 * 2 * t
        patches = 3 * self.PATCH**2 * t + t + self.TOKENS * t
        mlp = d * d + d
        return {
            "lm_head": d * self.VOCABULARY,
            "model.language_model": d * self.VOCABULARY + self.layers * layer + d,
            "model.vision_model": patches + self.TOWER_LAYERS * block + 2 * t,
            "model.aligner": (t * d + d) + mlp,
            "model.generation_embeddings": self.CODES * self.CODE,
            "model.generation_aligner": (self.CODE * d + d) + mlp,
            "model.generation_head": mlp + d * self.CODES + self.CODES,
            "model.vqmodel": self.vq_parameters(),
        }

    def vq_parameters(self) -> int:
        """The VQ tokenizer, layer by layer: residual blocks, attention at the coarsest level, resampling."""

        def conv(a: int, b: int, size: int = 3) -> int:
            return a * b * size * size + b

        def residual(a: int, b: int) -> int:
            return 2 * a + conv(a, b) + 2 * b + conv(b, b) + (conv(a, b, 1) if a != b else 0)

        def attention(a: int) -> int:
            return 2 * a + 4 * conv(a, a, 1)

        levels, latent = [128 * m for m in (1, 1, 2, 2, 4)], 256
        top = levels[-1]
        middle = 2 * residual(top, top) + attention(top)
        down = conv(3, 128) + middle + 2 * top + conv(top, latent)
        for before, width in zip([128, *levels], levels, strict=False):
            down += residual(before, width) + residual(width, width)
        down += 2 * attention(top) + sum(conv(w, w) for w in levels[:-1])
        up = conv(latent, top) + middle + 2 * levels[0] + conv(levels[0], 3)
        for before, width in zip([top, *levels[::-1]], levels[::-1], strict=False):
            up += residual(before, width) + 2 * residual(width, width)
        up += 3 * attention(top) + sum(conv(w, w) for w in levels[1:])
        ends = self.CODES * self.CODE + conv(latent, self.CODE, 1) + conv(self.CODE, latent, 1)
        return down + up + ends


PUBLISHED = {"1B": Published(2048, 24, 16, 5632), "7B": Published(4096, 30, 32, 11008)}


def pair(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]


def resnet(name: str) -> list[str]:
    return [key for part in ("norm1", "conv1", "norm2", "conv2") for key in pair(f"{name}.{part}")]


def attention(name: str) -> list[str]:
    return [key for part in ("norm", "q", "k", "v", "proj_out") for key in pair(f"{name}.{part}")]


def expected_keys(size: Published) -> set[str]:
    """Every tensor name of the published files (as transformers' converter writes them)."""
    keys: list[str] = ["lm_head.weight"]
    lm = "model.language_model"
    keys += [f"{lm}.embed_tokens.weight", f"{lm}.norm.weight"]
    for i in range(size.layers):
        keys += [f"{lm}.layers.{i}.self_attn.{p}_proj.weight" for p in "qkvo"]
        keys += [f"{lm}.layers.{i}.mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
        keys += [f"{lm}.layers.{i}.{p}_layernorm.weight" for p in ("input", "post_attention")]
    tower = "model.vision_model"
    keys += pair(f"{tower}.embeddings.patch_embedding") + pair(f"{tower}.post_layernorm")
    keys.append(f"{tower}.embeddings.position_embedding.weight")
    for i in range(size.TOWER_LAYERS):
        for part in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
            keys += pair(f"{tower}.encoder.layers.{i}.{part}")
        for part in ("q_proj", "k_proj", "v_proj", "projection_layer"):
            keys += pair(f"{tower}.encoder.layers.{i}.self_attn.{part}")
    for part in ("aligner.fc1", "aligner.hidden_layers.0"):
        keys += pair(f"model.{part}") + pair(f"model.generation_{part}")
    keys += pair("model.generation_head.proj_out") + pair("model.generation_head.vision_head")
    keys.append("model.generation_embeddings.weight")
    return {*keys, *expected_vq_keys()}


def expected_vq_keys() -> list[str]:
    vq = "model.vqmodel"
    keys = [f"{vq}.quantize.embedding.weight", *pair(f"{vq}.quant_conv"), *pair(f"{vq}.post_quant_conv")]
    halves = (("encoder", "down", 2, "downsample", (2, 4)), ("decoder", "up", 3, "upsample", (1, 3)))
    for half, stage, blocks, resample, wider in halves:
        for end in ("conv_in", "norm_out", "conv_out"):
            keys += pair(f"{vq}.{half}.{end}")
        keys += resnet(f"{vq}.{half}.mid.block_1") + resnet(f"{vq}.{half}.mid.block_2")
        keys += attention(f"{vq}.{half}.mid.attn_1")
        coarsest = 4 if half == "encoder" else 0
        for level in range(5):
            keys += [k for b in range(blocks) for k in resnet(f"{vq}.{half}.{stage}.{level}.block.{b}")]
            if level == coarsest:
                keys += [k for b in range(blocks) for k in attention(f"{vq}.{half}.{stage}.{level}.attn.{b}")]
            if level != 4:
                keys += pair(f"{vq}.{half}.{stage}.{level}.{resample}.conv")
        for level in wider:  # where the width changes
            keys += pair(f"{vq}.{half}.{stage}.{level}.block.0.nin_shortcut")
    return keys


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_layout_is_what_the_class_expects(name: str) -> None:
    size = PUBLISHED[name]
    with torch.device("meta"):
        network = JanusForConditionalGeneration(size.config())
    tensors = network.state_dict()
    expected = expected_keys(size)
    assert tensors.keys() == expected
    assert len(expected) == {"1B": 964, "7B": 1018}[name]
    d = size.width
    shapes = {
        "lm_head.weight": (102_400, d),
        "model.language_model.embed_tokens.weight": (102_400, d),
        "model.language_model.layers.0.self_attn.k_proj.weight": (d, d),
        f"model.language_model.layers.{size.layers - 1}.mlp.down_proj.weight": (d, size.inner),
        "model.vision_model.embeddings.patch_embedding.weight": (1024, 3, 16, 16),
        "model.vision_model.embeddings.position_embedding.weight": (576, 1024),
        "model.aligner.fc1.weight": (d, 1024),
        "model.generation_aligner.fc1.weight": (d, 8),
        "model.generation_embeddings.weight": (16_384, 8),
        "model.generation_head.proj_out.weight": (d, d),
        "model.generation_head.vision_head.weight": (16_384, d),
        "model.vqmodel.quantize.embedding.weight": (16_384, 8),
        "model.vqmodel.quant_conv.weight": (8, 256, 1, 1),
        "model.vqmodel.encoder.conv_out.weight": (256, 512, 3, 3),
    }
    assert {key: tuple(tensors[key].shape) for key in shapes} == shapes
    assert network.lm_head.weight is not network.get_input_embeddings().weight


@pytest.mark.parametrize(("name", "total"), [("1B", 2_076_636_811), ("7B", 7_407_773_323)])
def test_the_published_number_of_parameters(name: str, total: int) -> None:
    """2.08 and 7.41 billion: the published files hold 4.2 and 14.8 GB in bf16."""
    size = PUBLISHED[name]
    with torch.device("meta"):
        network = JanusForConditionalGeneration(size.config())
    found: Counter[str] = Counter()
    for key, parameter in network.named_parameters():
        found[".".join(key.split(".")[: 2 if key.startswith("model.") else 1])] += parameter.numel()
    assert dict(found) == size.parameters()
    assert sum(found.values()) == total


def test_a_model_of_published_size_knows_its_numbers(public: tuple[JanusModel, Path]) -> None:
    """576 drawn tokens of 16,384 codes, read through 576 tokens: from the config, with nothing computed."""
    with torch.device("meta"):
        network = JanusForConditionalGeneration(PUBLISHED["1B"].config())
    model = JanusModel(network, public[0].tokenizer)
    assert (model.draw_tokens, model.read_tokens, model.codes) == (576, 576, 16_384)
    assert (model.image_size, model.vocabulary) == (384, 102_400)
