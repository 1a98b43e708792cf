"""UniRL-Zero on disk: one folder in and out, public parts, what is wrong with either, published sizes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SanaTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tiny_models import WORDS
from tiny_unirl import Made, columns_of, latents, patch_codec, tiny_sizes, with_sana, with_sd3
from triptych.errors import UserError
from triptych.models import causal
from triptych.models.diffusion import Sana
from triptych.models.latent_codec import PatchLatentCodec
from triptych.models.tiny import THOUGHT_MARKS, TinyUniRLZero, tiny_unirl_zero
from triptych.models.unirl_zero_network import UniRLZeroLayout, UniRLZeroNetwork
from triptych.recipes import shapes_world

EDIT = [False, True, True, True, False]
LM_FILE, DM_FILE = "lm/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"
REST_FILE = "connector.safetensors"
FP32 = torch.float32


def saved(made: Made, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    made[0].save(folder)
    made[1].save_pretrained(folder)
    return folder


@torch.no_grad()
def outcome(network: UniRLZeroNetwork, made: Made) -> list[torch.Tensor]:
    columns = columns_of((network, made[1]))
    condition = network.condition(columns, EDIT)
    sigma = torch.linspace(0.1, 0.9, 5)
    return [
        network.lm.lm_head(causal.teacher_forced(network.decoder(columns), columns.embeds, columns.valid)),
        condition,
        network.dm(latents(5), sigma, condition, latents(5, 1)),
    ]


@pytest.mark.parametrize("make", [with_sana, with_sd3])
def test_a_saved_model_comes_back_bit_for_bit(make: Callable[[], Made], tmp_path: Path) -> None:
    made = make()
    torch.nn.init.normal_(made[0].dm.source.weight)
    again = UniRLZeroNetwork.load(saved(made, tmp_path), FP32)
    before, after = made[0].state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    for one, two in zip(outcome(made[0], made), outcome(again, made), strict=True):
        assert torch.equal(one, two)
    assert again.layout == made[0].layout
    assert again.lm.lm_head.weight is again.get_input_embeddings().weight
    assert not [name for name, buffer in again.named_buffers() if buffer.is_meta]


def test_the_tokenizer_keeps_thoughts_as_words_that_are_read(tmp_path: Path) -> None:
    saved(with_sana(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    said = "<think> a red circle </think> <answer> two </answer>"
    ids = tokenizer(f"{said}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 9 and tokenizer.decode(ids, skip_special_tokens=True) == said
    assert not set(THOUGHT_MARKS) & set(tokenizer.all_special_tokens)


def test_each_library_opens_its_own_part(tmp_path: Path) -> None:
    made = with_sana()
    saved(made, tmp_path)
    lm, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.tensor([[5, 9, 7]])
    assert torch.allclose(lm(ids).logits, made[0].lm(ids).logits, atol=1e-5)
    dm = SanaTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer", low_cpu_mem_usage=False)
    ask = (latents(1), torch.ones(1, 3, 16), torch.tensor([300.0]))
    assert torch.allclose(dm(*ask).sample, made[0].dm.model(*ask).sample, atol=1e-5)


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


@pytest.mark.parametrize(
    ("file", "name", "full"),
    [
        (LM_FILE, "model.visual.merger.ln_q.weight", "lm.model.visual.merger.ln_q.weight"),
        (LM_FILE, "model.language_model.embed_tokens.weight", "lm.model.language_model.embed_tokens.weight"),
        (DM_FILE, "patch_embed.proj.weight", "dm.model.patch_embed.proj.weight"),
        (REST_FILE, "queries.edit", "queries.edit"),
        (REST_FILE, "dm.source.weight", "dm.source.weight"),
    ],
)
def test_a_missing_unknown_or_misshapen_tensor_is_named(
    tmp_path: Path, file: str, name: str, full: str
) -> None:
    saved(with_sana(), tmp_path)
    whole = load_file(tmp_path / file)
    changes: list[tuple[str, dict[str, torch.Tensor]]] = [
        (f"{full} is missing", {k: v for k, v in whole.items() if k != name}),
        (f"{full}x is unknown", {**whole, f"{name}x": whole[name].clone()}),
        (f"{full} is ", {**whole, name: whole[name][..., :-1].contiguous()}),
    ]
    for message, state in changes:
        save_file(state, tmp_path / file)
        with pytest.raises(UserError, match=re.escape(message)):
            UniRLZeroNetwork.load(tmp_path, FP32)


def test_a_folder_that_describes_no_model_says_so(tmp_path: Path) -> None:
    saved(with_sana(), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unirl_zero"}')
    with pytest.raises(UserError, match=r"config.json does not describe a UniRL-Zero model \('queries'\)"):
        UniRLZeroNetwork.load(tmp_path, FP32)
    (tmp_path / "lm" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="no picture processor at"):
        UniRLZeroNetwork.assemble(tmp_path / "lm", tmp_path)


# -- public parts --------------------------------------------------------------------------------------
def public_parts(made: Made, folder: Path) -> tuple[Path, Path]:
    """A Qwen2.5-VL folder under its public names, and a diffusers folder whose weights are in two files."""
    saved(made, folder)
    lm, dm = folder / "lm", folder / "transformer"

    def older(state: dict[str, torch.Tensor]) -> None:
        for key in list(state):
            new = key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
            state[new] = state.pop(key)

    rewrite(lm / "model.safetensors", older)
    state = load_file(folder / DM_FILE)
    halves = (sorted(state)[::2], sorted(state)[1::2])
    stem = "diffusion_pytorch_model"
    weight_map = {}
    for i, keys in enumerate(halves, 1):
        name = f"{stem}-0000{i}-of-00002.safetensors"
        save_file({key: state[key] for key in keys}, dm / name)
        weight_map |= dict.fromkeys(keys, name)
    (dm / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / DM_FILE).unlink()
    return lm, folder


@pytest.mark.parametrize("make", [with_sana, with_sd3])
def test_public_parts_make_a_model_that_draws_as_its_expert_did(
    make: Callable[[], Made], tmp_path: Path
) -> None:
    made = make()
    qwen, diffusion = public_parts(made, tmp_path)
    layout = UniRLZeroLayout(queries=5, connector=made[0].layout.connector)
    network = UniRLZeroNetwork.assemble(qwen, diffusion, layout, seed=3)
    for part in ("lm", "dm.model"):
        old, new = (n.get_submodule(part).state_dict() for n in (made[0], network))
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    assert not network.dm.source.weight.any() and network.queries.draw.shape == (5, 16)
    twin = UniRLZeroNetwork.assemble(qwen, diffusion, layout, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    outcome(network, made)  # every buffer that is in no file has been computed


def test_assembled_in_half_precision_all_weights_are(tmp_path: Path) -> None:
    qwen, diffusion = public_parts(with_sana(), tmp_path)
    layout = UniRLZeroLayout(queries=5, connector=with_sana()[0].layout.connector)
    network = UniRLZeroNetwork.assemble(qwen, diffusion, layout, dtype=torch.bfloat16)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


def test_an_expert_of_another_kind_is_named(tmp_path: Path) -> None:
    saved(with_sana(), tmp_path)
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    with pytest.raises(UserError, match="no diffusion expert but FluxTransformer2DModel"):
        UniRLZeroNetwork.assemble(tmp_path / "lm", tmp_path)


# -- sizes ---------------------------------------------------------------------------------------------
def test_the_published_sizes() -> None:
    """Qwen2.5-VL-3B-Instruct's ``config.json`` and, as diffusers' own defaults, SANA-1.6B (1024 pixels).

    36 layers of 2048 with 2 of 16 heads for keys and values, tied embeddings of 151,936 words, a tower of 32
    layers of 1280; 20 layers of 2240 for captions 2304 wide.
    """
    text = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    }
    vision = {"hidden_size": 1280, "out_hidden_size": 2048}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    processor = with_sana()[0].processor
    with torch.device("meta"):
        lm, dm = Qwen2_5_VLForConditionalGeneration(config), Sana(SanaTransformer2DModel())
        network = UniRLZeroNetwork(lm, dm, processor, UniRLZeroLayout())
    layer = 2 * 2048**2 + 2048 + 2 * (2048 * 256 + 256) + 3 * 2048 * 11008 + 2 * 2048
    words = 151936 * 2048
    tower = (
        32 * (4 * 1280**2 + 4 * 1280 + 3 * 1280 * 3420 + 2 * 3420 + 1280 + 2 * 1280) + 3 * 2 * 14**2 * 1280
    )
    merger = 1280 + 5120**2 + 5120 + 5120 * 2048 + 2048
    assert count(network.lm) == words + 36 * layer + 2048 + tower + merger == 3_754_622_976
    assert count(network.dm.model) == 1_604_462_752
    assert [q.shape for q in network.queries.parameters()] == [(256, 2048)] * 2
    assert network.dm.captions == 2304 and network.dm.source.weight.shape == (2240, 32, 1, 1)


def test_the_sizes_of_stable_diffusion_3_medium() -> None:
    """24 layers of 1536 over 16 channels, captions of 4096 and pooled vectors of 2048."""
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        )
    assert count(model) == 2_028_328_000


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_starter_has_at_most_five_million_parameters() -> None:
    codec = PatchLatentCodec(torch.rand(9, 48), torch.rand(9, 8))
    model, twin = (tiny_unirl_zero(shapes_world.words(), TinyUniRLZero(), codec) for _ in range(2))
    assert 3_000_000 < count(model.network) <= 5_000_000
    assert len(model.tokenizer) == model.network.config.text_config.vocab_size
    assert model.image_size == 32 and model.shape == (8, 8, 8)
    both = zip(model.network.parameters(), twin.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)


def test_tiny_models_of_one_seed_alone_are_alike() -> None:
    one, two = (tiny_unirl_zero(WORDS, tiny_sizes(), patch_codec(), seed).network for seed in (0, 1))
    assert not torch.equal(one.queries.draw, two.queries.draw)
