"""Learning from one's own drawings: what is learned from, by which loss, and where its gradient goes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_models import starter_janus, starter_showo, starter_unigen
from tiny_runs import distance, equal, gradient, loop, weights
from triptych.errors import UserError
from triptych.evals.evaluation import Evaluation
from triptych.kernels.relaxed import Relaxation
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import Example, UnifiedModel
from triptych.models.patch_codec import PatchCodec
from triptych.recipes.base import Parts, Recipe, train, with_settings
from triptych.rewards.base import RewardSet
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.self_quiz import SelfQuiz
from triptych.train.optimizer import OptimizerConfig
from triptych.train.progress import Progress
from triptych.train.self_supervised import SelfSupervisedConfig, SelfSupervisedLearner
from triptych.trajectory import Prompt, Sample, Sampling, Task, Unmasking

ASK = {"question": "what is this ?"}
TASKS = [
    Task(id="a", prompt="a red circle", columns=ASK, answer="a circle"),
    Task(id="b", prompt="two blue square", columns=ASK, answer="two blue square"),
    Task(id="c", prompt="draw", columns=ASK, answer="no"),
]
HEADS = {"janus": "model.generation_head.vision_head.weight", "showo": "showo.lm_head.weight"}
Make = Callable[[], Any]


def half(samples: Sequence[Sample]) -> list[float | None]:
    """Right, wrong or not to be scored, as the pixels have it."""
    return [(1.0, 0.25, 1.0, None)[int(s.pictures["image"].sum()) % 4] for s in samples]


def never(samples: Sequence[Sample]) -> list[float | None]:
    return [0.5] * len(samples)


def silent(samples: Sequence[Sample]) -> list[float | None]:
    return [None] * len(samples)


def config_of(like: UnifiedModel, **settings: Any) -> SelfSupervisedConfig:
    unmask = Unmasking() if like.name == "janus" else Unmasking(steps=4)
    rollout = RolloutSettings(draw=Sampling(unmask=unmask), write=Sampling(temperature=0, max_tokens=4))
    defaults: dict[str, Any] = {"prompts": 3, "group": 4, "rewards": {"quiz": 1.0}, "rollout": rollout}
    return SelfSupervisedConfig(**defaults | settings)


def made(make: Make = starter_janus, reward: Any = half, **settings: Any) -> SelfSupervisedLearner:
    model = make()
    config = config_of(model, **settings)
    rewards = RewardSet(rewards={"quiz": reward}, weights=config.rewards)
    return SelfSupervisedLearner(config, model, SelfQuiz(), TASKS, rewards)


@pytest.mark.parametrize("make", [starter_janus, starter_showo])
def test_what_is_learned_from_what(make: Make, tmp_path: Path) -> None:
    learner = made(make, regime="separate")
    batch = learner.collect(1)
    image, answer = batch.rollout.segments["image"], batch.rollout.segments["answer"]
    grade, tasks = batch.judged.total, [s.task for s in batch.rollout.samples]
    right = [b for b in range(12) if grade[b] == 1]
    scored = [b for b in range(12) if grade[b].isfinite()]
    assert 0 < len(right) < len(scored) < 12
    read = [Example(prompt=answer.context[b], target=tasks[b].answer or "") for b in scored]
    expected = learner.model.supervised_loss(read)["read"]
    loop(learner, tmp_path)._step()
    [told] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert told["loss/image"] == pytest.approx(
        -float(image.logp[right].sum() / image.mask[right].sum()), rel=1e-4
    )
    assert told["loss/answer"] == pytest.approx(float((expected.total / expected.count).detach()), rel=1e-4)
    assert (told["learned/image"], told["learned/answer"]) == (len(right), len(scored))
    assert told["right"] == pytest.approx(len(right) / 12)
    assert told["unscored"] == 12 - len(scored) and "ratio_error" not in told


@pytest.mark.parametrize("make", [starter_janus, starter_showo])
@pytest.mark.parametrize("regime", ["separate", "end_to_end"])
def test_the_gradient_does_not_depend_on_the_split(make: Make, regime: str) -> None:
    found = []
    for size in (100, 3, 1):
        learner = made(make, regime=regime, micro_batch=size)
        batch = learner.collect(1)
        learner.model.network.double()
        found.append(gradient(learner, batch))
    assert found[0].norm() > 1e-3
    assert all(distance(other, found[0]) <= 1e-4 for other in found[1:])


def slope(learner: SelfSupervisedLearner, name: str) -> Tensor:
    gradient(learner, learner.collect(1))
    weight = dict(learner.model.network.named_parameters())[name]
    assert weight.grad is not None
    return weight.grad.clone()


def test_only_end_to_end_does_the_answer_reach_the_drawing() -> None:
    apart, through = (
        made(regime=regime, segment_weights={"image": 0.0}) for regime in ("separate", "end_to_end")
    )
    gradient(apart, apart.collect(1))
    drawing = dict(apart.model.network.named_parameters())[HEADS["janus"]]
    assert drawing.grad is None
    assert slope(through, HEADS["janus"]).norm() > 1e-5
    codes = [slice(starter_showo().layout.first_code, -1)] * 2
    rows = [
        slope(made(starter_showo, regime=regime, segment_weights={"image": 0.0}), HEADS["showo"])[code]
        for regime, code in zip(("separate", "end_to_end"), codes, strict=True)
    ]
    # Reading's policy is over the whole vocabulary: codes get a gradient there too, the same in both regimes.
    assert distance(rows[1], rows[0]) > 1e-2


def test_straight_through_goes_forward_with_the_drawing() -> None:
    def exact() -> UnifiedModel:
        model = starter_janus()
        assert isinstance(model.codec, PatchCodec)
        model.codec = PatchCodec((model.codec.codebook * 255).round() / 255)
        return model

    losses = []
    for settings in ({"regime": "separate"}, {}, {"relaxation": Relaxation(straight_through=False)}):
        learner = made(exact, **settings)
        gradient(learner, learner.collect(1))
        total, count, _ = learner.found["answer"].tolist()
        losses.append(total / count)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[2] != pytest.approx(losses[1], rel=1e-3)


def test_noise_is_a_function_of_seed_and_step() -> None:
    def at(step: int, seed: int = 0) -> Tensor:
        learner = made(seed=seed, relaxation=Relaxation(straight_through=False))
        learner.step = step
        batch = made().collect(1)  # the same drawings: what differs is the noise of the relaxation
        return gradient(learner, batch)

    assert torch.equal(at(2), at(2))
    assert distance(at(3), at(2)) > 1e-3 and distance(at(2, seed=1), at(2)) > 1e-3


@pytest.mark.parametrize(("reward", "learned"), [(never, 12), (silent, 0)])
@pytest.mark.parametrize("regime", ["separate", "end_to_end"])
def test_a_step_without_a_right_drawing(regime: str, reward: Any, learned: int, tmp_path: Path) -> None:
    learner = made(reward=reward, regime=regime, optimizer=OptimizerConfig(lr=1e-3))
    before = weights(learner.model)
    loop(learner, tmp_path)._step()
    [told] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (told["right"], told["learned/image"], told["learned/answer"]) == (0, 0, learned)
    assert "loss/image" not in told and ("loss/answer" in told) == bool(learned)
    assert told["skipped"] == 0 and (told["grad_norm"] > 0) == bool(learned)
    assert all(p.isfinite().all() for p in weights(learner.model).values())
    assert equal(before, weights(learner.model)) == (not learned)


def test_resumed_equals_undisturbed(tmp_path: Path) -> None:
    start = tmp_path / "start"
    starter_showo().save_pretrained(start)
    config = config_of(starter_showo(), model=str(start), steps=4, checkpoint_every=1)

    def build(config: SelfSupervisedConfig) -> Parts:
        rewards = RewardSet(rewards={"quiz": half}, weights=config.rewards)
        return Parts(
            learner=lambda m: SelfSupervisedLearner(config, m, SelfQuiz(), TASKS, rewards),
            evaluate=lambda model, step: Evaluation(summary={"score": 0.0, "n": 1}),
        )

    recipe = Recipe(name="self", config=config, build=build)

    def go(steps: int, folder: str, resume: bool = False) -> list[dict[str, Any]]:
        made = with_settings(recipe, steps=steps)
        train(made, tmp_path / folder, resume=resume, progress=Progress(steps, out=None))
        rows = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        kept = ("loss/image", "loss/answer", "right", "grad_norm")
        return [{k: v for k, v in json.loads(row).items() if k in kept} for row in rows]

    whole = go(4, "whole")
    go(2, "cut")
    assert go(4, "cut", resume=True) == whole
    models = [tmp_path / f / "checkpoints" / "step_00000004" / "model" for f in ("whole", "cut")]
    files = [(m / "pytorch_model.safetensors").read_bytes() for m in models]
    assert files[0] == files[1]


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="loss is for policy gradients"):
        made(loss=PolicyLossConfig(kl_coef=0.1))
    with pytest.raises(UserError, match="least must name image and answer, got image"):
        made(least={"image": 1.0})
    with pytest.raises(UserError, match="unigen cannot relax; it can draw, edit, read"):
        made(starter_unigen)
    learner = made(starter_unigen, regime="separate")
    assert gradient(learner, learner.collect(1)).norm() > 1e-3, "separately it learns"
    tasks = [TASKS[0], replace(TASKS[1], answer=None)]
    config = config_of(starter_janus(), prompts=2)
    rewards = RewardSet(rewards={"quiz": half}, weights=config.rewards)
    with pytest.raises(UserError, match="task b has no answer to learn; `triptych quiz` makes"):
        SelfSupervisedLearner(config, starter_janus(), SelfQuiz(), tasks, rewards)


def test_a_question_is_asked_again_as_it_was() -> None:
    learner = made()
    batch = learner.collect(1)
    for example, sample in zip(learner._examples(batch, range(12)), batch.rollout.samples, strict=True):
        assert example.prompt == Prompt.of(sample.pictures["image"], "what is this ?")
        assert example.target == sample.task.answer
