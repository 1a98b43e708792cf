"""DiffusionNFT's learner on a toy that denoises 2 x 2 pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_flow import FlowToy
from tiny_models import starter_janus
from tiny_runs import distance, equal, gradient, loop, redness, tasks, weights
from tiny_unirl import starter_unirl
from triptych.errors import UserError
from triptych.kernels import flow
from triptych.learn.diffusion_nft import DiffusionNFTConfig
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import UnifiedModel
from triptych.rewards.base import RewardSet
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.text_to_image import TextToImage
from triptych.train.nft import NFTConfig, NFTLearner
from triptych.train.optimizer import OptimizerConfig
from triptych.trajectory import Denoising, NoiseKey, Sampling

ODE = RolloutSettings(draw=Sampling(denoise=Denoising(steps=5, noise="ode")))


def made(model: UnifiedModel | None = None, reward: Any = redness, **settings: Any) -> NFTLearner:
    defaults = {"prompts": 3, "group": 4, "rewards": {"redness": 1.0}, "rollout": ODE}
    config = NFTConfig(**defaults | settings)
    rewards = RewardSet(rewards={"redness": reward}, weights=config.rewards)
    return NFTLearner(config, model or FlowToy(), TextToImage(), tasks(8), rewards)


@torch.no_grad()
def moved(model: UnifiedModel) -> None:
    for p in model.network.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def constant(samples: Any) -> list[float]:
    return [0.5] * len(samples)


def test_equal_rewards_teach_nothing_where_both_policies_are_the_same() -> None:
    learner = made(reward=constant)
    assert gradient(learner, learner.collect(1)).abs().max() == 0
    moved(learner.model)
    assert gradient(learner, learner.collect(1)).norm() > 1e-3, "they hold the policy to the one that drew"


def test_the_gradient_does_not_depend_on_the_split() -> None:
    learner = made(micro_batch=100)
    batch = learner.collect(1)
    moved(learner.model)
    whole = gradient(learner, batch)
    split = made(learner.model, micro_batch=5)
    split.acting = learner.acting
    assert whole.norm() > 1e-3 and distance(gradient(split, batch), whole) <= 1e-5


def test_a_plain_loop_gives_the_same_loss() -> None:
    learner = made(nft=DiffusionNFTConfig(times=2, mix=0.5))
    batch = learner.collect(1)
    old = FlowToy()
    moved(learner.model)
    learner.step = 3
    total = sum(float(loss.detach()) for loss in learner.losses(batch, range(12)))
    by_hand = 0.0
    for b in range(12):
        segment = batch.rollout.segments["image"].rows([b])
        key = NoiseKey(0, 3, batch.rollout.groups[b], b % 4, "image/renoised")
        points = flow.renoised(segment, [key], 2)
        q = float((0.5 + batch.advantages["image"].values[b].clamp(-5, 5) / 10).clamp(0, 1))
        for i in range(2):
            sigma, clean = points.sigmas[:, i], points.clean
            x = (1 - sigma) * clean + sigma * points.noise[:, i]
            new = learner.model._velocity(segment.context)(x, sigma, sigma)  # type: ignore[operator]
            before = old._velocity(segment.context)(x, sigma, sigma)
            good = error(x - sigma * (0.5 * new + 0.5 * before), clean)
            bad = error(x - sigma * (1.5 * before - 0.5 * new), clean)
            by_hand += float((q * good + (1 - q) * bad).detach()) * 5 / 0.5 / 24
    assert total == pytest.approx(by_hand, rel=1e-5)


def error(found: Tensor, clean: Tensor) -> Tensor:
    off = found - clean
    return off.square().mean() / off.abs().mean()


def test_the_policy_that_draws_is_a_moving_average() -> None:
    learner = made(nft=DiffusionNFTConfig(decay=0.5, ramp=0.25))
    first = [p.detach().clone() for p in learner.acting.parameters]
    moved(learner.model)
    kept = weights(learner.model)
    next(learner.gradients(2))  # decay 0.5
    mean = [(a + b) / 2 for a, b in zip(first, learner.acting.parameters, strict=True)]
    for value, expected in zip(learner.acting.values, mean, strict=True):
        assert torch.allclose(value, expected)
    assert equal(weights(learner.model), kept), "the trained weights are back"
    again = made(learner.model)
    again.restore(learner.state(), learner.tensors())
    assert all(map(torch.equal, again.acting.values, learner.acting.values))


def test_2n_steps_are_n_and_n_more(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"checkpoint_every": 2, "optimizer": OptimizerConfig(lr=1e-2)}
    whole = made(steps=4, **settings)
    loop(whole, tmp_path / "whole").run()
    half = made(steps=4, **settings)
    first = loop(half, tmp_path / "half")
    for _ in range(2):
        first._step()
    first.save()
    again = made(steps=4, **settings)
    again.model.network.load_state_dict(half.model.network.state_dict())
    second = loop(again, tmp_path / "half")
    second.restore(tmp_path / "half" / "checkpoints" / "step_00000002")
    second.run()
    assert equal(weights(whole.model), weights(again.model))


def test_rewards_are_followed(tmp_path: Path) -> None:
    learner = made(steps=60, prompts=8, group=8, optimizer=OptimizerConfig(lr=5e-3))
    before = float(learner.collect(1).judged.total.mean())
    loop(learner, tmp_path).run()
    assert float(learner.collect(1).judged.total.mean()) > before + 0.1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="settings are nft"):
        NFTConfig(loss=PolicyLossConfig(kl_coef=0.1))
    with pytest.raises(UserError, match="decay must lie"):
        DiffusionNFTConfig(decay=1.0)
    with pytest.raises(UserError, match="times must be"):
        DiffusionNFTConfig(times=0)
    learner = made(starter_janus(), rollout=RolloutSettings())
    with pytest.raises(UserError, match="holds no latents but token_image actions"):
        gradient(learner, learner.collect(1))


def test_a_diffusion_expert_is_taught(tmp_path: Path) -> None:
    learner = made(starter_unirl(), steps=2, nft=DiffusionNFTConfig(times=3))
    batch = learner.collect(1)
    whole = gradient(learner, batch)
    assert learner.ratio_error == 0 and whole.norm() > 0
    by_kind = {
        name: any(p.grad is not None and p.grad.any() for p in ps)
        for name, ps in learner.model.parameter_groups().items()
    }
    assert by_kind == {"lm": True, "connector": True, "queries": True, "dm": True}
    loop(learner, tmp_path).run()
