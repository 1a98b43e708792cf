"""One update for a language expert and a diffusion expert: what each learns from, and how fast."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import starter_janus
from tiny_runs import gradient, learner, loop, redness, weights
from tiny_unirl import starter_unirl
from triptych.errors import UserError
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import LoraSettings
from triptych.recipes.base import prepare_model
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.chain_of_thought import ChainOfThought
from triptych.train.optimizer import OptimizerConfig
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.trajectory import Denoising, Sampling

GROUPS = ("lm", "connector", "queries", "dm")
ROLLOUT = RolloutSettings(draw=Sampling(denoise=Denoising(steps=3)), write=Sampling(max_tokens=4))
RATES = {"lm": 1e-5, "connector": 1e-4, "queries": 1e-3, "dm": 1e-2}
CPU = torch.device("cpu")


def joint(**settings: Any) -> PolicyLearner:
    """Think, then draw; the drawing is judged, and credits both."""
    defaults = {
        "rollout": ROLLOUT,
        "prompts": 2,
        "draw_loss": PolicyLossConfig(clip_high=1e-3, clip_low=1e-3),
    }
    return learner(
        starter_unirl(), scenario=ChainOfThought(), functions={"red": redness}, **defaults | settings
    )


def moved(made: PolicyLearner, before: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest change of a weight, by group."""
    found = dict.fromkeys(GROUPS, 0.0)
    for name, after in weights(made.model).items():
        group = name.split(".")[0]
        found[group] = max(found[group], float((after - before[name]).abs().max()))
    return found


def test_each_expert_has_its_rate_and_its_norm_in_the_log(tmp_path: Path) -> None:
    made = joint(steps=1, optimizer=OptimizerConfig(lr=1.0, group_lr=RATES))
    before = weights(made.model)
    loop(made, tmp_path).run()
    assert moved(made, before) == pytest.approx(RATES, rel=0.01), "the first step of AdamW is the rate"
    [row] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    norms = [row[f"grad_norm/{group}"] for group in GROUPS]
    assert all(norms) and row["grad_norm"] == pytest.approx(sum(n**2 for n in norms) ** 0.5)


@pytest.mark.parametrize("train", [("lm",), ("connector", "queries", "dm"), ("dm",)])
def test_only_the_named_groups_learn(train: tuple[str, ...], tmp_path: Path) -> None:
    made = joint(steps=1, train=train, optimizer=OptimizerConfig(lr=1e-3))
    prepare_model(made.model, made.config, CPU)
    before = weights(made.model)
    loop(made, tmp_path).run()
    assert {group for group, change in moved(made, before).items() if change} == set(train)
    [row] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ("grad_norm/dm" in row) == (len(train) > 1)


def test_adapters_are_frozen_with_their_group() -> None:
    pytest.importorskip("peft")
    lora = LoraSettings(rank=2, targets=("q_proj", "to_q"), full=("queries",))
    model = prepare_model(starter_unirl(), PolicyConfig(lora=lora, train=("queries", "dm")), CPU)
    named = {n for n, p in model.network.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in named} == {"queries", "dm"}
    assert all("lora_" in n for n in named if n.startswith("dm."))
    with model.reference():
        pass
    assert named == {n for n, p in model.network.named_parameters() if p.requires_grad}, "and stay so"


def test_groups_that_a_model_lacks_are_named() -> None:
    with pytest.raises(UserError, match="janus has no parameter group 'lm' to train; it has model"):
        prepare_model(starter_janus(), PolicyConfig(train=("lm",)), CPU)
    model = prepare_model(starter_janus(), PolicyConfig(train=("model",)), CPU)
    assert all(p.requires_grad for p in model.parameter_groups()["model"])


def test_drawings_have_an_objective_of_their_own() -> None:
    """The joint gradient is the sum of what either objective gives its own segment."""
    write, draw = PolicyLossConfig(entropy_coef=0.3), PolicyLossConfig(kl_coef=2.0, kl="exact")
    made = joint(loss=write, draw_loss=draw)
    assert made.config.needs_reference and not joint(loss=write).config.needs_reference
    made.model.keep_reference()
    batch = made.collect(1)
    with torch.no_grad():
        for p in made.model.network.parameters():
            p.mul_(1.01)
    whole, parts = gradient(made, batch), []
    for name, loss in (("thought", write), ("image", draw)):
        only = {other: float(other == name) for other in ("thought", "image")}
        made.config = replace(made.config, loss=loss, draw_loss=None, segment_weights=only)
        if name == "thought":  # scored alone: its objective has no place for what denoising steps lack
            rollout = replace(batch.rollout, segments={name: batch.rollout.segments[name]})
            parts.append(gradient(made, replace(batch, rollout=rollout)))
        else:
            parts.append(gradient(made, batch))
    torch.testing.assert_close(whole, parts[0] + parts[1], atol=1e-6, rtol=1e-4)
