"""Adapters: what they cover, what is trained, and that their files open here and in peft."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration

from tiny_models import keys, mixed_prompts, public_janus, starter_janus
from triptych.errors import UserError
from triptych.models import load
from triptych.models.base import LoraSettings
from triptych.models.janus import JanusModel
from triptych.models.lora import adapters
from triptych.trajectory import Sampling, Segment

peft = pytest.importorskip("peft")
SETTINGS = LoraSettings(rank=4, alpha=8)
FULL = LoraSettings(rank=4, alpha=8, full=("generation_head", "generation_aligner"))


@torch.no_grad()
def trained(model: JanusModel, seed: int = 1) -> JanusModel:
    """As after some training: every trainable weight has moved."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.network.parameters():
        if weight.requires_grad:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def on_disk(folder: Path, build: type = starter_janus) -> JanusModel:  # type: ignore[assignment]
    """A base model that was opened from a folder, so that an adapter can name it."""
    build().save_pretrained(folder)
    opened = load(folder)
    assert isinstance(opened, JanusModel)
    return opened


def act(model: JanusModel) -> list[Segment]:
    prompts = mixed_prompts()
    return [
        model.generate_image(prompts, Sampling(guidance=3.0), keys(5)),
        model.generate_text(prompts, Sampling(max_tokens=8), keys(5, "text")),
    ]


def assert_same_policy(one: JanusModel, two: JanusModel) -> None:
    for a, b in zip(act(one), act(two), strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.logp, b.logp)


def test_targets_that_match_nothing_are_a_clear_error() -> None:
    with pytest.raises(UserError, match="LoRA found no layer to adapt"):
        starter_janus().add_lora(LoraSettings(targets=("query_key_value",)))


def test_adapters_cover_the_named_layers_and_nothing_else_is_trained() -> None:
    model = starter_janus()
    linear = [name for name, m in model.network.named_modules() if isinstance(m, nn.Linear)]
    named = [name for name in linear if name.rpartition(".")[2] in SETTINGS.targets]
    model.add_lora(SETTINGS)
    assert len(adapters(model.network)) == len(named) >= 2 * 7
    trainable = [name for name, p in model.network.named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0] for name in trainable} == set(named)
    assert len(trainable) == 2 * len(named)


def test_new_adapters_change_nothing_at_first() -> None:
    model = starter_janus()
    model.add_lora(FULL)
    assert_same_policy(model, starter_janus())


@pytest.mark.parametrize("settings", [SETTINGS, FULL], ids=["adapters", "and full modules"])
def test_saved_adapters_come_back_on_their_base(settings: LoraSettings, tmp_path: Path) -> None:
    model = on_disk(tmp_path / "base")
    model.add_lora(settings)
    trained(model)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    opened = load(tmp_path / "adapter")
    assert isinstance(opened, JanusModel)
    assert_same_policy(model, opened)
    base = act(starter_janus())
    assert not torch.equal(act(opened)[0].tokens, base[0].tokens)
    with opened.reference():
        assert torch.equal(act(opened)[0].logp, base[0].logp)
    expected = {n for n, p in model.network.named_parameters() if p.requires_grad}
    assert {n for n, p in opened.network.named_parameters() if p.requires_grad} == expected


def test_fully_trained_modules_learn_and_are_saved_whole(tmp_path: Path) -> None:
    model = on_disk(tmp_path / "base")
    model.add_lora(FULL)
    head = model.network.model.generation_head
    loss = -model.score(act(model)[0], frozenset({"logp"})).logp.sum()  # type: ignore[union-attr]
    loss.backward()
    for name, p in model.network.named_parameters():
        learns = p.grad is not None and float(p.grad.abs().sum()) > 0
        assert learns == (p.requires_grad and "lora_A" not in name), name  # A waits until B is not zero
    trained(model)
    changed = head.modules_to_save["default"].vision_head.weight.detach().clone()
    assert not torch.equal(changed, head.original_module.vision_head.weight)
    model.save_pretrained(tmp_path / "adapter")
    opened = load(tmp_path / "adapter")
    found = opened.network.model.generation_head.modules_to_save["default"].vision_head.weight
    assert torch.equal(found, changed)


@pytest.mark.parametrize("settings", [SETTINGS, FULL], ids=["adapters", "and full modules"])
def test_the_files_open_in_peft_with_the_same_logits(settings: LoraSettings, tmp_path: Path) -> None:
    model = on_disk(tmp_path / "base", public_janus)  # type: ignore[arg-type]
    model.add_lora(settings)
    trained(model)
    model.save_pretrained(tmp_path / "adapter")
    base = JanusForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    drawn, written = act(model)

    def logits(network: nn.Module) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            text = network(input_ids=written.tokens).logits
            embeds = network.prepare_embeddings_for_image_generation(drawn.tokens)
            hidden = network.model.language_model(inputs_embeds=embeds).last_hidden_state
            return text, network.model.generation_head(hidden)

    for mine, other, plain in zip(
        logits(model.network), logits(theirs.base_model.model), logits(public_janus().network), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
        assert float((mine - plain).abs().max()) > 0.1


def test_weights_are_taken_over_into_a_model_with_the_same_adapters(tmp_path: Path) -> None:
    """How a run resumes: the model is built anew, then loads what was saved."""
    model = on_disk(tmp_path / "base")
    model.add_lora(FULL)
    trained(model)
    model.save_pretrained(tmp_path / "adapter")
    again = on_disk(tmp_path / "base")
    again.add_lora(FULL)
    trained(again, seed=2)
    again.load_weights(tmp_path / "adapter")
    assert_same_policy(model, again)


def test_an_adapter_that_does_not_fit_is_a_clear_error(tmp_path: Path) -> None:
    model = on_disk(tmp_path / "base")
    model.add_lora(SETTINGS)
    model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != first}, file)
    with pytest.raises(UserError, match=r"adapter.*does not fit.*missing") as caught:
        load(tmp_path / "adapter")
    assert first.removeprefix("base_model.model.") in str(caught.value)
    save_file({**tensors, "base_model.model.else.lora_A.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"does not fit.*else\.lora_A"):
        load(tmp_path / "adapter")
    save_file({**tensors, first: torch.zeros(1, 1)}, file)
    with pytest.raises(UserError, match="does not fit"):
        load(tmp_path / "adapter")


@pytest.mark.parametrize("base", ["adapter", None])
def test_an_adapter_that_names_no_base_is_a_clear_error(tmp_path: Path, base: str | None) -> None:
    folder = tmp_path / "adapter"
    starter_janus().save_pretrained(folder)
    about = {} if base is None else {"base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="does not name the base model"):
        load(folder)


def test_an_adapter_without_its_base_says_which_base_is_gone(tmp_path: Path) -> None:
    model = on_disk(tmp_path / "base")
    model.add_lora(SETTINGS)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=str(tmp_path / "base")):
        load(tmp_path / "adapter")
