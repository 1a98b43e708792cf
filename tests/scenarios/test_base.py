"""Rows that sit out: they take no action, cost no gradient, and change nothing for those that act."""

from collections.abc import Callable, Sequence

import pytest
import torch

from tiny_models import starter_janus, starter_showo
from tiny_runs import distance, gradient, learner, tasks
from tiny_unirl import starter_unirl
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import UnifiedModel
from triptych.rewards.base import RewardSet
from triptych.scenarios.base import Actor, RolloutSettings, Scenario, play
from triptych.train.nft import NFTConfig, NFTLearner
from triptych.train.policy import PolicyLearner
from triptych.trajectory import Denoising, Prompt, Rollout, Sample, Sampling, Task, Unmasking

SETTINGS = RolloutSettings(draw=Sampling(unmask=Unmasking(steps=3)), write=Sampling(max_tokens=5), batch=3)
MODELS = {
    "janus": (starter_janus, RolloutSettings(write=SETTINGS.write, batch=3)),
    "showo": (starter_showo, SETTINGS),
    "unirl": (
        starter_unirl,
        RolloutSettings(draw=Sampling(denoise=Denoising(steps=4)), write=SETTINGS.write, batch=3),
    ),
}


class Twice(Scenario):
    """Draw, say something, draw again; in the later segments the rows of ``out`` sit out."""

    needs = ("draw", "read")
    result = ("first", "second")

    def __init__(self, out: Sequence[int] = ()) -> None:
        self.out = out

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        prompts = [Prompt.of(task.prompt) for task in tasks]
        active = [b not in self.out for b in range(len(tasks))]
        self.first = actor.draw("first", prompts)
        actor.write("said", prompts, active=None)
        self.said = actor.write("more", prompts, active)
        self.second = actor.draw("second", prompts, active)


def played(scenario: Scenario, name: str) -> tuple[Rollout, UnifiedModel]:
    build, settings = MODELS[name]
    model = build()
    return play(scenario, model, tasks(3), settings, group=2, seed=1, step=1), model


@pytest.mark.parametrize("name", MODELS)
def test_those_that_act_act_as_if_all_did(name: str) -> None:
    out = [0, 3, 4]
    some = Twice(out)
    found, model = played(some, name)
    whole, _ = played(Twice(), name)
    acting = [b for b in range(6) if b not in out]
    for segment in ("more", "second"):
        here, there = found.segments[segment], whole.segments[segment]
        assert here.context == there.context and not here.mask[out].any() and not here.logp[out].any()
        width = here.mask.shape[1]
        assert torch.equal(here.mask[acting], there.mask[acting, :width])
        assert torch.allclose(here.logp[acting], there.logp[acting, :width], atol=1e-5)
        scores = model.score(here, frozenset({"logp", "entropy"}))
        assert scores.logp is not None and scores.entropy is not None
        assert scores.logp.isfinite().all() and scores.entropy[here.mask].isfinite().all()
        assert ((scores.logp - here.logp).abs() * here.mask).max() <= 1e-5
    for b, sample in enumerate(found.samples):
        names = {"said", "more"} if b in acting else {"said"}
        assert set(sample.texts) == names and set(sample.pictures) == (
            {"first", "second"} if b in acting else {"first"}
        )
        last = "second" if b in acting else "first"
        assert sample.completion is sample.pictures[last] is some.second[b]
        assert some.said[b] == sample.texts["more" if b in acting else "said"]
        assert sample.acted("second") == sample.acted("more") == (b in acting)


@pytest.mark.parametrize("name", MODELS)
def test_a_segment_that_nobody_acts_in_has_its_kind_and_can_be_scored(name: str) -> None:
    found, model = played(Twice(range(6)), name)
    whole, _ = played(Twice(), name)
    for segment in ("more", "second"):
        here = found.segments[segment]
        assert type(here) is type(whole.segments[segment]) and len(here) == 6
        assert not here.mask.any() and not here.logp.any()
        scores = model.score(here, frozenset({"logp"}))
        assert scores.logp is not None and scores.logp.isfinite().all()
    joined = Rollout.cat([found, whole]).segments["second"]
    assert joined.mask[6:].any() and not joined.mask[:6].any()


def reward(samples: Sequence[Sample]) -> list[float | None]:
    """Redness of the first drawing."""
    return [float(s.pictures["first"][..., 0].float().mean()) / 255 for s in samples]


def policy(build: Callable[[], UnifiedModel], settings: RolloutSettings, out: Sequence[int]) -> PolicyLearner:
    model, loss = build(), PolicyLossConfig(kl_coef=0.5, kl="exact")
    model.keep_reference()
    found = learner(model, scenario=Twice(out), functions={"red": reward}, rollout=settings, loss=loss)
    return found


@pytest.mark.parametrize("name", ["janus", "unirl"])
def test_rows_that_sit_out_are_in_no_loss_and_no_denominator(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = list(range(1, 12))
    made = policy(*MODELS[name], out)
    batch = made.collect(1)
    scored: list[tuple[str, int]] = []
    score = made.model.score
    monkeypatch.setattr(
        made.model, "score", lambda s, *a, **k: scored.append((s.name, len(s))) or score(s, *a, **k)
    )
    found = gradient(made, batch)
    assert {n: rows for n, rows in scored if n in ("more", "second")} == {"more": 1, "second": 1}
    counts = made._denominators(batch, range(12))
    assert counts["second"].policy == batch.rollout.segments["second"].mask[0].sum()
    monkeypatch.setattr(Sample, "acted", lambda *_: True)  # now they are scored, masked as they are
    assert distance(gradient(made, batch), found) < 1e-5
    counts = made._denominators(batch, range(12))
    assert counts["second"].policy == batch.rollout.segments["second"].mask[0].sum()


def test_diffusion_nft_does_not_learn_from_rows_that_sat_out() -> None:
    build, _ = MODELS["unirl"]

    class Again(Twice):
        needs = ("draw",)

        def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
            prompts = [Prompt.of(task.prompt) for task in tasks]
            actor.draw("first", prompts)
            actor.draw("second", prompts, [b not in self.out for b in range(len(tasks))])

    ode = RolloutSettings(draw=Sampling(denoise=Denoising(steps=3, noise="ode")))
    config = NFTConfig(prompts=2, group=2, rewards={"red": 1.0}, rollout=ode)
    made = NFTLearner(config, build(), Again([0, 1, 2]), tasks(4), RewardSet(rewards={"red": reward}))
    [given] = list(made.gradients(1))
    losses = list(given.losses)
    assert len(losses) == 2 and all(loss.isfinite() for loss in losses)
    counts = made._denominators(made.batch, range(4))  # type: ignore[arg-type]
    assert float(counts["first"].policy) == 4 * config.nft.times
    assert float(counts["second"].policy) == config.nft.times


def test_who_sits_out_must_have_something_before() -> None:
    class Never(Scenario):
        result = "image"

        def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
            actor.draw("image", [Prompt.of("draw")] * len(tasks), [False] * len(tasks))

    with pytest.raises(AssertionError, match="a row sits out of 'image' that has nothing before it"):
        play(Never(), starter_janus(), tasks(2), RolloutSettings(), seed=0, step=0)
