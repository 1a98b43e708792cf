"""The policy learner on denoising steps: nothing above the models knows that they are no tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tiny_flow import FlowToy
from tiny_models import starter_janus
from tiny_runs import distance, gradient, learner, weights
from tiny_unirl import starter_unirl
from triptych.errors import UserError
from triptych.learn.policy_loss import PolicyLossConfig, PolicyMetrics
from triptych.models.base import UnifiedModel
from triptych.scenarios.base import RolloutSettings
from triptych.train.optimizer import Optimizer, OptimizerConfig
from triptych.train.policy import PolicyLearner
from triptych.trajectory import Denoising, Sampling

DRAW = RolloutSettings(draw=Sampling(denoise=Denoising(steps=5, window=3)), batch=5)
NARROW = {"clip_low": 1e-3, "clip_high": 1e-3}
LOSSES = {
    "clip": PolicyLossConfig(**NARROW),
    "guard": PolicyLossConfig(**NARROW, ratio="guard"),
    "dppo": PolicyLossConfig(objective="dppo", dppo_threshold=1e-7),
    "exact KL": PolicyLossConfig(**NARROW, kl_coef=10.0, kl="exact", entropy_coef=0.1),
}


def flow_learner(
    loss: PolicyLossConfig, build: Callable[[], UnifiedModel] = FlowToy, **settings: Any
) -> PolicyLearner:
    model = build()
    if loss.needs_reference:
        model.keep_reference()
    return learner(model, loss=loss, rollout=DRAW, **settings)


@pytest.mark.parametrize("kind", LOSSES)
def test_policies_that_denoise_are_trained_by_the_same_learner(kind: str) -> None:
    made = flow_learner(LOSSES[kind], epochs=2, optimizer=OptimizerConfig(lr=1e-2))
    optimizer = Optimizer(made.model.parameter_groups(), made.config.optimizer)
    before, seen = weights(made.model), []
    for given in made.gradients(1):
        made.sums = PolicyMetrics()
        optimizer.zero_grad()
        for part in given.losses:
            part.backward()
        given.check()
        seen.append(made.sums)
        optimizer.step(1.0)
    first, second = seen
    assert first.actions == first.kept == 12 * 3, "three drawn steps of each of twelve drawings"
    assert first.ratio_error <= 1e-5 and first.clipped == 0
    assert second.ratio_error > 1e-3 and second.clipped > 0
    assert abs(first.kl) < 1e-6 and (second.kl > 1e-6) == (kind == "exact KL")
    assert any(not torch.equal(before[name], after) for name, after in weights(made.model).items())


@pytest.mark.parametrize(
    ("kind", "build"), [*((kind, FlowToy) for kind in LOSSES), ("exact KL", starter_unirl)]
)
def test_the_gradient_does_not_depend_on_the_split(kind: str, build: Callable[[], UnifiedModel]) -> None:
    made = flow_learner(LOSSES[kind], build, micro_batch=100)
    batch = made.collect(1)
    with torch.no_grad():
        for p in made.model.network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    whole = gradient(made, batch)
    split = flow_learner(LOSSES[kind], build, micro_batch=5)
    split.model = made.model
    assert whole.norm() > 1e-3 and distance(gradient(split, batch), whole) <= 1e-4


@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_estimates_of_a_divergence_are_refused_where_log_probabilities_are_means(kl: Any) -> None:
    made = flow_learner(PolicyLossConfig(kl_coef=0.1, kl=kl))
    with pytest.raises(
        UserError, match=r"cannot score reference_logp of segment 'image': .*set loss.kl to 'exact'"
    ):
        gradient(made, made.collect(1))


@pytest.mark.parametrize("loss", [LOSSES["guard"], LOSSES["dppo"]])
def test_objectives_for_denoising_steps_are_refused_on_tokens(loss: PolicyLossConfig) -> None:
    made = learner(starter_janus(), loss=loss)
    with pytest.raises(UserError, match=r"cannot score old_kl of segment 'image': .* and these are tokens"):
        gradient(made, made.collect(1))
