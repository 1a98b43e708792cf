"""UniGen on disk: one folder in and out, its public parts, what is wrong with either, the published sizes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from tiny_models import (
    WORDS,
    edit_prompts,
    keys,
    look_prompts,
    picture,
    public_unigen,
    starter_unigen,
    tiny_magvit,
)
from triptych.errors import UserError
from triptych.models import load
from triptych.models.base import LoraSettings
from triptych.models.unigen import UniGenModel
from triptych.models.unigen_network import UniGenLayout, UniGenNetwork, cut
from triptych.models.word_tokenizer import word_tokenizer
from triptych.trajectory import Sampling, Segment, Unmasking

LOGP = frozenset({"logp"})
FILE = "model.safetensors"


def outcomes(model: UniGenModel) -> list[Segment]:
    sampling = Sampling(guidance=3.0, source_guidance=1.5, unmask=Unmasking(steps=4))
    return [
        model.generate_image(edit_prompts(), sampling, keys(5)),
        model.generate_text(look_prompts(), Sampling(max_tokens=6), keys(5, "text")),
    ]


def assert_same_policy(one: UniGenModel, two: UniGenModel) -> None:
    """The same draws with the same log-probabilities to the bit, and the same pictures."""
    first, second = outcomes(one), outcomes(two)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.logp, b.logp)
    assert torch.equal(one.decode(first[0]), two.decode(second[0]))


def opened(folder: Path) -> UniGenModel:
    model = load(folder)
    assert isinstance(model, UniGenModel)
    return model


# -- in and out ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("build", [starter_unigen, public_unigen])
def test_saved_models_come_back_bit_for_bit(build: type, tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    again = opened(tmp_path)
    assert type(again.codec) is type(model.codec) and again.layout == model.layout and not again.training
    assert_same_policy(model, again)
    frozen = {n for n, p in again.network.named_parameters() if not p.requires_grad}
    assert (
        frozen == {n for n, _ in again.network.named_parameters() if n.startswith("vision_tower.")} != set()
    )
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["model_type"] == "unigen15" and about["mask_token_id"] == about["vocab_size"] - 1
    assert load_file(tmp_path / FILE).keys() == model.network.state_dict().keys()
    again.load_weights(tmp_path)
    assert_same_policy(model, again)


def test_half_precision_opens_as_asked(tmp_path: Path) -> None:
    public_unigen().save_pretrained(tmp_path)
    half = UniGenModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    assert half.network.llm.model.rotary_emb.inv_freq.dtype == torch.float32
    drawing = outcomes(half)[0]
    again = half.score(drawing, LOGP).logp
    assert again is not None and again.dtype == drawing.logp.dtype == torch.float32
    assert float((again - drawing.logp).detach().abs().max()) < 0.3


def test_adapters_come_back_on_their_base(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    starter_unigen().save_pretrained(tmp_path / "base")
    model = opened(tmp_path / "base")
    model.add_lora(LoraSettings(rank=2, alpha=4, full=("mm_projector",)))
    with torch.no_grad():
        for p in model.parameter_groups()["model"]:
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / FILE).exists()
    assert_same_policy(model, opened(tmp_path / "adapter"))


# -- from public parts -----------------------------------------------------------------------------------
@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    """Folders of a small Qwen2 (head tied, rows to spare), a whole SigLIP2, and a MAGViT-v2."""
    folders = {name: tmp_path / name for name in ("qwen", "siglip", "magvit")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = word_tokenizer([*WORDS, "user", "assistant", "system"], ["<|im_start|>", "<|im_end|>"])
        tokenizer.save_pretrained(folders["qwen"])
        Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer) + 5,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                initializer_range=0.3,
            )
        ).save_pretrained(folders["qwen"])
        tower = {
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
        }
        text = tower | {"vocab_size": 9}
        config = Siglip2Config(text_config=text, vision_config=tower | {"patch_size": 2, "num_patches": 16})
        Siglip2Model(config).save_pretrained(folders["siglip"])
    tiny_magvit().save(folders["magvit"])
    return folders


def test_a_model_is_made_of_public_parts(parts: dict[str, Path], tmp_path: Path) -> None:
    model = UniGenModel.from_parts(**parts, pixels=8, max_num_patches=16)  # type: ignore[arg-type]
    words = len(word_tokenizer([*WORDS, "user", "assistant", "system"], ["<|im_start|>", "<|im_end|>"]))
    layout = model.layout
    assert (layout.first_code, layout.mask_id, layout.vocab_size) == (words + 9, words + 17, words + 18)
    assert layout.num_vq_tokens == 16 and not layout.local
    own, llm = model.network.state_dict(), Qwen2ForCausalLM.from_pretrained(parts["qwen"]).state_dict()
    for key, old in llm.items():
        new = own[f"llm.{key}"]
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(new[:words], old[:words]) and len(new) == layout.vocab_size
            assert float(new[words:].std() / old[:words].std()) == pytest.approx(1, abs=0.3)
        else:
            assert torch.equal(new, old)
    assert model.network.llm.lm_head.weight is not model.network.get_input_embeddings().weight
    whole = Siglip2VisionModel.from_pretrained(parts["siglip"]).eval()
    found = model.network.processor([picture(1).numpy()], input_data_format="channels_last")
    inputs = {name: torch.tensor(np.array(found[name])) for name in found}
    with torch.no_grad():
        hidden = whole(**inputs, output_hidden_states=True).hidden_states
        features = model.network.mm_projector(hidden[-2])[0]
        torch.testing.assert_close(model.network.look([picture(1)])[0], features, atol=1e-5, rtol=1e-5)
        drawing, answer = outcomes(model)
    for segment in (drawing, answer):
        logp = model.score(segment, LOGP).logp
        assert logp is not None and float((logp - segment.logp)[segment.mask].detach().abs().max()) <= 1e-5
    model.save_pretrained(tmp_path / "one")
    assert_same_policy(model, opened(tmp_path / "one"))
    other = UniGenModel.from_parts(**parts, pixels=8, max_num_patches=16, seed=1)  # type: ignore[arg-type]
    assert not torch.equal(own["mm_projector.0.weight"], other.network.state_dict()["mm_projector.0.weight"])


def test_parts_that_are_not_what_they_should_be_are_clear_errors(parts: dict[str, Path]) -> None:
    for name, message in (
        ("qwen", "no tokenizer"),
        ("siglip", "Siglip2VisionModel"),
        ("magvit", "has no file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            UniGenModel.from_parts(**{**parts, name: parts["qwen"].parent / "nowhere"})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value) and "nowhere" in str(caught.value)
    weights = load_file(parts["siglip"] / FILE)
    lacking = next(
        key for key in weights if key.endswith("encoder.layers.0.mlp.fc1.weight") and "vision" in key
    )
    save_file({k: v for k, v in weights.items() if k != lacking}, parts["siglip"] / FILE, {"format": "pt"})
    with pytest.raises(UserError, match=re.escape("encoder.layers.0.mlp.fc1.weight")):
        UniGenModel.from_parts(**parts, pixels=8)  # type: ignore[arg-type]


# -- what is wrong with a folder -------------------------------------------------------------------------
WRONG: dict[str, tuple[str, Tensor | None]] = {
    "missing": ("llm.model.layers.1.self_attn.o_proj.weight", None),
    "missing tower": ("vision_tower.embeddings.position_embedding.weight", None),
    "extra": ("vision_tower.head.probe", torch.zeros(1, 1, 8)),
    "local": ("local.0.weight", torch.zeros(16, 1, 3, 3)),
    "misshapen": ("mm_projector.0.weight", torch.zeros(3, 16)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_tensor_is_an_error_of_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    public_unigen().save_pretrained(tmp_path)
    name, tensor = WRONG[kind]
    tensors = {key: value for key, value in load_file(tmp_path / FILE).items() if key != name}
    save_file(tensors if tensor is None else {**tensors, name: tensor}, tmp_path / FILE)
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_wrong_config_codec_or_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    model = public_unigen()
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"num_vq_tokens": 15}, "no square"),
        ({"vision_config": None}, "nothing of vision"),
    ):
        changed = {k: v for k, v in {**about, **change}.items() if v is not None}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(about))
    word_tokenizer([f"w{i}" for i in range(len(model.tokenizer) - 4)], []).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="this is not a UniGen tokenizer"):
        load(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vq" / "config.json").unlink()
    with pytest.raises(UserError, match=r"vq has no file named config\.json"):
        load(tmp_path)


# -- the published sizes ---------------------------------------------------------------------------------
def test_the_real_sizes_of_7b_with_so400m() -> None:
    """Qwen2.5-7B has 7,615,616,512 parameters with 152,064 rows of 3584; so400m 27 layers of 1152."""
    layout = UniGenLayout()
    config = Qwen2Config(
        vocab_size=layout.vocab_size,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    vision = Siglip2VisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16
    )
    with torch.device("meta"):
        tower = Siglip2VisionModel(vision)
        cut(tower)
        network = UniGenNetwork(layout, Qwen2ForCausalLM(config), tower)
    assert (layout.first_code, layout.mask_id, layout.num_vq_tokens) == (151_674, 159_866, 24 * 24)
    sizes = {"llm": 0, "vision_tower": 0, "mm_projector": 0}
    for name, p in network.named_parameters():
        sizes[name.split(".")[0]] += p.numel()
    fresh_rows = (159_867 - 152_064) * 3584 * 2
    layer = 4 * (1152 * 1152 + 1152) + (2 * 1152 * 4304 + 4304 + 1152) + 4 * 1152
    assert sizes["llm"] == 7_615_616_512 + fresh_rows
    assert sizes["vision_tower"] == 26 * layer + (16 * 16 * 3 + 1) * 1152 + 256 * 1152
    assert sizes["mm_projector"] == (1152 + 1) * 3584 + (3584 + 1) * 3584
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert len(shapes) == 28 * 12 + 3 + 26 * 16 + 3 + 4
    assert shapes["llm.model.layers.27.self_attn.k_proj.weight"] == (512, 3584)
    assert shapes["llm.lm_head.weight"] == shapes["llm.model.embed_tokens.weight"] == (159_867, 3584)
    assert shapes["vision_tower.encoder.layers.25.mlp.fc1.weight"] == (4304, 1152)
    assert "vision_tower.encoder.layers.26.mlp.fc1.weight" not in shapes
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == sizes["llm"] + sizes["mm_projector"]
