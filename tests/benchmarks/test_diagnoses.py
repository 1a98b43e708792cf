"""What the benchmarks that look into masked models compute, on cases whose answer is known."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tiny_models import starter_showo
from tiny_unirl import starter_unirl
from triptych.models import load
from triptych.trajectory import Denoising, NoiseKey, Prompt, Sampling

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import latent_signal
from collusion import PAIRS, confused
from gradient_signal import orthogonal, share
from prompt_heard import TIMES, colours_exchanged, heard, turned_round


def test_share_of_signal_is_what_independent_gradients_have_in_common() -> None:
    torch.manual_seed(0)
    signal, noise = torch.randn(4000), torch.randn(40, 4000)
    assert share([signal] * 3) == pytest.approx(1)
    assert share(list(torch.eye(5))) == pytest.approx(0)
    assert share(list(signal + 2 * noise)) == pytest.approx(1 / 5, abs=0.02)  # 1 part of 1 + 2^2


def test_an_orthogonal_direction_turns_all_alike() -> None:
    torch.manual_seed(0)
    tall = torch.randn(12, 5) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    for gradient in (tall, tall.T):
        made = orthogonal(gradient)
        assert torch.allclose(torch.linalg.svdvals(made), torch.tensor(12.0**0.5), atol=1e-4)
        assert (made * gradient).sum() > 0 and made.square().mean() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "other"),
    [
        ("a photo of a red circle and an orange ring", "a photo of an orange circle and a red ring"),
        ("a photo of a red circle and a red ring", None),
        ("a photo of a red ring and a blue ring", None),
        ("a photo of a circle and a ring", None),
    ],
)
def test_colours_are_exchanged_where_that_makes_another_prompt(prompt: str, other: str | None) -> None:
    assert colours_exchanged(prompt) == other


def test_relations_are_turned_round() -> None:
    assert turned_round("a photo of a ring left of two crosses") == "a photo of a ring right of two crosses"
    assert turned_round("a photo of a ring below a cross") == "a photo of a ring above a cross"
    assert turned_round("a photo of a ring and a cross") is None


def test_colours_are_exchanged_where_the_model_listens_and_nowhere_else(tmp_path: Path) -> None:
    starter_showo().save_pretrained(tmp_path / "whole")
    whole, found = load(tmp_path / "whole"), load(confused(str(tmp_path / "whole"), tmp_path / "confused"))
    colours = [whole.tokenizer.convert_tokens_to_ids(word) for pair in PAIRS for word in pair]
    red, blue = colours[:2]
    before, after = whole.network.state_dict(), found.network.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 1 and "embed" in changed[0]
    rows = (before[changed[0]] != after[changed[0]]).any(1).nonzero().flatten().tolist()
    assert {red, blue} <= set(rows) <= set(colours)
    assert torch.equal(after[changed[0]][red], before[changed[0]][blue])


def test_a_model_that_never_learned_hears_nothing() -> None:
    for nats, right in heard(starter_showo(), "position", 8):
        assert abs(nats) < 2 and 0 <= right <= 1
    assert len(TIMES) == 3


def test_the_gradient_of_a_rollout_is_that_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, and those whose advantage is 0 add nothing."""
    model, sampling = starter_unirl(), Sampling(denoise=Denoising(steps=4, window=2))
    prompts = [Prompt.of(text) for text in ("a red circle", "a blue square", "a red circle")]
    drawn = model.generate_image(prompts, sampling, [NoiseKey(0, 1, "t", i, "image") for i in range(3)])
    named = [(n, p) for n, p in model.network.named_parameters() if n.startswith(("dm.", "connector."))]
    assert {latent_signal.part(*pair) for pair in named} == set(latent_signal.PARTS) - {"all"}

    def found(*advantages: float) -> torch.Tensor:
        rollout = SimpleNamespace(segments={"image": drawn})
        batch = SimpleNamespace(
            rollout=rollout, advantages={"image": SimpleNamespace(values=torch.tensor(advantages))}
        )
        made = SimpleNamespace(model=model)
        gradients = latent_signal.gradient(made, batch, [p for _, p in named])  # type: ignore[arg-type]
        return torch.cat([g.flatten() for g in gradients])

    whole = found(1.0, -2.0, 0.0)
    monkeypatch.setattr(latent_signal, "ROWS", 1)
    torch.testing.assert_close(found(1.0, -2.0, 0.0), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found(1.0, 0.0, 0.0) - 2 * found(0.0, 1.0, 0.0), whole, atol=1e-5, rtol=1e-4)
    assert whole.abs().max() > 1e-3 and not found(0.0, 0.0, 0.0).any()
