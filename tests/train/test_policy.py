"""The policy learner: one gradient whatever the split, ratio 1, dead groups, credit, seeds, the reference."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import pad

from tiny_models import picture, starter_janus
from tiny_runs import (
    CreditedApart,
    WriteThenDraw,
    contrast,
    distance,
    equal,
    gradient,
    learner,
    length,
    loop,
    nothing,
    redness,
    some_redness,
    weights,
)
from triptych.errors import UserError
from triptych.kernels import tokens as kernel
from triptych.learn.advantages import AdvantageConfig
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import LoraSettings
from triptych.models.janus import JanusModel
from triptych.scenarios.base import RolloutSettings
from triptych.train import policy
from triptych.train.optimizer import Optimizer, OptimizerConfig
from triptych.train.policy import Batch, PolicyLearner
from triptych.trajectory import Sample, Sampling, Segment, Task

GUIDED = RolloutSettings(draw=Sampling(guidance=2.0, temperature=0.8), write=Sampling(max_tokens=5))
LOSSES = {
    "token": PolicyLossConfig(),
    "sequence": PolicyLossConfig(aggregation="sequence", ratio="sequence"),
    "constant": PolicyLossConfig(aggregation="constant", constant_length=4),
    "token, k3": PolicyLossConfig(kl_coef=0.5, entropy_coef=0.1),
    "sequence, exact": PolicyLossConfig(kl_coef=0.5, kl="exact", aggregation="sequence"),
}


def perturb(model: JanusModel, seed: int = 5, size: float = 0.05) -> None:
    """Move away from the weights that drew, so that ratios, clipping and the divergence are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))


def prepared(loss: PolicyLossConfig, **settings: Any) -> tuple[PolicyLearner, Batch]:
    """A learner in float64 whose weights have left those that drew, and the batch that they drew."""
    made = learner(functions={"red": some_redness}, loss=loss, rollout=GUIDED, **settings)
    batch = made.collect(1)
    assert 0 < batch.metrics["unscored"] < len(batch.rollout), "the test wants scored and unscored samples"
    made.model.network.double()
    if loss.needs_reference:
        made.model.keep_reference()
    perturb(made.model)
    return made, batch


def with_micro_batch(made: PolicyLearner, size: int) -> PolicyLearner:
    made.config = replace(made.config, micro_batch=size)
    return made


def padded(segment: Segment, more: int) -> Segment:
    """The same actions with ``more`` columns that no row used."""
    wider = {name: pad(value, (0, more)) for name, value in segment.tensors().items()}
    return replace(segment, **wider)


def test_only_the_episodes_that_differ_most_are_learned_from() -> None:
    made = learner(functions={"red": redness}, prompts=2, group=4, learn_from=2)
    batch = made.collect(1)
    totals = batch.judged.total.view(2, 4)
    extremes = sorted(4 * g + int(b) for g in range(2) for b in (totals[g].argmin(), totals[g].argmax()))
    assert made._minibatch(batch, 0) == extremes
    (step,) = made.gradients(1)
    list(step.losses)
    assert made.sums.kept == 2 * 2 * batch.rollout.segments["image"].actions
    few = learner(functions={"red": redness}, prompts=2, group=4, learn_from=9)
    assert few._minibatch(few.collect(1), 0) == list(range(8)), "a smaller group is learned from whole"
    for wrong in (1, -1):
        with pytest.raises(UserError, match="learn_from must be 0"):
            learner(group=4, learn_from=wrong)


# -- one gradient, however the work is cut -----------------------------------------------------------
FP32 = 1e-6
"""Norms of transformers are fp32 whatever the weights are, and rows of one prompt are run as one only where
they are in one micro-batch: rounding differs."""


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("scenario", [None, WriteThenDraw()], ids=["draw", "write and draw"])
def test_gradient_does_not_depend_on_split_or_padding(kind: str, scenario: WriteThenDraw | None) -> None:
    made, batch = prepared(LOSSES[kind], scenario=scenario)
    whole = gradient(with_micro_batch(made, 100), batch)
    assert whole.dtype == torch.float64 and whole.norm() > 1e-3
    for size in (1, 3):
        assert distance(gradient(with_micro_batch(made, size), batch), whole) <= FP32
    wide = {name: padded(segment, 3) for name, segment in batch.rollout.segments.items()}
    widened = replace(batch, rollout=replace(batch.rollout, segments=wide))
    assert distance(gradient(with_micro_batch(made, 100), widened), whole) <= 1e-10


def test_rows_in_another_order_give_the_same_gradient() -> None:
    made, batch = prepared(LOSSES["token"])
    order = torch.randperm(len(batch.rollout), generator=torch.Generator().manual_seed(1)).tolist()
    assert distance(gradient(with_micro_batch(made, 5), batch, order), gradient(made, batch)) <= FP32


def test_samples_tell_all_that_happened_and_what_it_was_credited_with() -> None:
    made = learner(scenario=CreditedApart(), functions={"redness": redness, "length": length})
    assert made.samples() == ()
    batch = made.batch = made.collect(1)
    rows = made.samples()
    for b, (row, sample) in enumerate(zip(rows, batch.rollout.samples, strict=True)):
        said, drawn = row["episode"]
        assert said == {
            "name": "caption",
            "text": sample.texts["caption"],
            "advantage": float(batch.advantages["caption"].values[b]),
            "credit": {"length": float(batch.judged.values["length"][b])},
        }
        assert drawn["file"] is row["file"] is sample.completion
        assert drawn["credit"] == {"redness": float(batch.judged.values["redness"][b])}
        assert drawn["advantage"] == row["advantage"] == float(batch.advantages["image"].values[b])
    shown = [replace(s, task=replace(s.task, source=picture(1))) for s in batch.rollout.samples]
    made.batch = replace(batch, rollout=replace(batch.rollout, samples=tuple(shown)))
    assert [part["name"] for part in made.samples()[0]["episode"]] == ["source", "caption", "image"]


def test_minibatches_hold_every_group_once() -> None:
    made = learner(prompts=5, group=2, minibatches=3)
    batch = made.collect(1)
    parts = [made._minibatch(batch, i) for i in range(3)]
    assert sorted(b for part in parts for b in part) == list(range(10))
    assert all(parts), "each minibatch holds something"
    for part in parts:
        groups = [batch.rollout.groups[b] for b in part]
        assert all(groups.count(g) == 2 for g in groups), "a group is never cut"


def test_two_segments_add_up_with_their_weights() -> None:
    share = {
        "caption": 0.25,
        "image": 4.0,
    }  # powers of two: scores are fp32, and these scale without rounding
    made, batch = prepared(LOSSES["token, k3"], scenario=WriteThenDraw(), segment_weights=share)
    joint = gradient(made, batch)
    made.config = replace(made.config, segment_weights={})
    single = {
        name: gradient(made, replace(batch, rollout=replace(batch.rollout, segments={name: segment})))
        for name, segment in batch.rollout.segments.items()
    }
    assert all(part.norm() > 1e-3 for part in single.values())
    assert distance(joint, share["caption"] * single["caption"] + share["image"] * single["image"]) <= 1e-10


@pytest.mark.parametrize("kind", ["token", "token, k3"])
def test_recomputing_activations_gives_the_same_gradient(kind: str) -> None:
    made, batch = prepared(LOSSES[kind], scenario=WriteThenDraw())
    plain = gradient(made, batch)
    made.model.recompute = True
    assert distance(gradient(made, batch), plain) <= 1e-10


# -- ratio 1 -----------------------------------------------------------------------------------------
def wrong_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernel.score_hidden

    def wrong(hidden: Any, head: Any, tokens: Any, asked: Sampling, **named: Any) -> Any:
        return right(hidden, head, tokens, replace(asked, temperature=1.01 * asked.temperature), **named)

    monkeypatch.setattr(kernel, "score_hidden", wrong)


def hidden_states_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = JanusModel._written
    monkeypatch.setattr(
        JanusModel, "_written", lambda self, *rest, **about: right(self, *rest, **about).roll(1, dims=1)
    )


def guidance_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "guided", lambda logits, *_: logits.chunk(2)[0])


@pytest.mark.parametrize("mistake", [wrong_temperature, hidden_states_off_by_one, guidance_forgotten])
def test_a_run_refuses_to_train_on_scores_that_are_not_those_sampled(
    mistake: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learner(rollout=GUIDED, steps=1)
    batch = made.collect(1)
    before = weights(made.model)
    monkeypatch.setattr(made, "collect", lambda step: batch)  # what was drawn is right, scoring is not
    mistake(monkeypatch)
    with pytest.raises(UserError, match=r"scores differ .* by \d\.\de[-+]\d\d \(allowed: 1e-05\)"):
        loop(made, tmp_path).run()
    assert equal(weights(made.model), before)


@pytest.mark.parametrize("what", ["nothing drawn", "all NaN"])
def test_a_check_of_nothing_is_a_failed_check(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learner(steps=1)
    batch = made.collect(1)
    image = batch.rollout.segments["image"]
    empty = {"nothing drawn": {"mask": image.mask & False}, "all NaN": {"logp": image.logp * torch.nan}}[what]
    emptied = replace(batch.rollout, segments={"image": replace(image, **empty)})
    monkeypatch.setattr(made, "collect", lambda step: replace(batch, rollout=emptied))
    before = weights(made.model)
    with pytest.raises(UserError, match="no action of the first rollout could be checked"):
        loop(made, tmp_path).run()
    assert equal(weights(made.model), before)


def test_a_clip_range_below_the_noise_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_temperature(monkeypatch)  # the noise, here as large as a percent
    settings: dict[str, Any] = {"steps": 1, "ratio_tolerance": 1.0}
    with pytest.warns(UserWarning, match=r"\d+% of actions are clipped before the first update"):
        loop(learner(**settings, loss=PolicyLossConfig(clip_low=1e-4, clip_high=1e-4)), tmp_path / "a").run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(learner(**settings), tmp_path / "b").run()


@pytest.mark.parametrize("scenario", [None, WriteThenDraw()], ids=["draw", "write and draw"])
def test_the_first_pass_of_every_step_has_ratio_one(tmp_path: Path, scenario: WriteThenDraw | None) -> None:
    loss = PolicyLossConfig(objective="no_clip")
    optimizer = OptimizerConfig(lr=1e-2)
    made = learner(scenario=scenario, rollout=GUIDED, loss=loss, steps=4, optimizer=optimizer)
    before = weights(made.model)
    loop(made, tmp_path).run()
    assert not equal(weights(made.model), before), "the weights moved, and new ones drew"
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["ratio_error"] <= 1e-5 and row["clip"] == 0 for row in rows)


def test_a_second_pass_leaves_ratio_one_and_is_clipped(tmp_path: Path) -> None:
    bounds = PolicyLossConfig(clip_low=0.01, clip_high=0.01)
    made = learner(loss=bounds, epochs=2, optimizer=OptimizerConfig(lr=1e-2))
    optimizer = Optimizer(made.model.parameter_groups(), made.config.optimizer)
    errors, clipped = [], []
    for given in made.gradients(1):
        made.sums = policy.PolicyMetrics()
        optimizer.zero_grad()
        for part in given.losses:
            part.backward()
        errors.append(made.sums.ratio_error)
        clipped.append(made.sums.clipped)
        optimizer.step(1.0)
    assert errors[0] <= 1e-5 and errors[1] > 1e-2
    assert clipped[0] == 0 and clipped[1] > 0
    assert made.metrics()["ratio_error"] == errors[0], "what is told is the first pass"


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# -- groups that teach nothing -----------------------------------------------------------------------
def all_alike(samples: Sequence[Sample]) -> list[float | None]:
    return [0.1 + 0.2] * len(samples)


def test_equal_rewards_give_a_gradient_of_exactly_zero() -> None:
    made = learner(functions={"same": all_alike})
    batch = made.collect(1)
    assert not gradient(made, batch).any()
    assert batch.metrics["group/dead"] == 1 and batch.metrics["group/std"] == 0


def test_nothing_scored_takes_a_step_of_zero(tmp_path: Path) -> None:
    made = learner(functions={"broken": nothing}, steps=2)
    before = weights(made.model)
    loop(made, tmp_path).run()
    assert equal(weights(made.model), before)
    for row in metrics(tmp_path):
        assert all(math.isfinite(value) for value in row.values())
        assert (row["unscored"], row["group/dead"], row["grad_norm"]) == (12, 1, 0)
        assert "reward/mean" not in row, "a mean of nothing is not 0"


def dead_for(*dead: str) -> Callable[[Sequence[Sample]], list[float | None]]:
    def reward(samples: Sequence[Sample]) -> list[float | None]:
        values = redness(samples)
        return [0.5 if s.task.id in dead else v for s, v in zip(samples, values, strict=True)]

    return reward


def test_a_dead_edit_is_replaced_by_an_edit() -> None:
    edit = picture(1)
    made = {
        name: Task(id=name, prompt="p", source=edit if name.startswith("e") else None)
        for name in ("d1", "d2", "e1", "e2", "d3", "d4", "e3")
    }
    tasks, fresh = [made[n] for n in ("d1", "d2", "e1", "e2")], [made[n] for n in ("d3", "d4", "e3")]
    found = policy._replaced(tasks, {"d2", "e1", "e2"}, fresh)
    assert [task.id for task in found] == ["d1", "d3", "e3", "e2"], "and there is but one fresh edit"


def test_dead_groups_are_counted() -> None:
    first = [task.id for task in learner().stream.batch(0, 3)]
    batch = learner(functions={"red": dead_for(first[1])}).collect(1)
    assert batch.metrics["group/dead"] == pytest.approx(1 / 3)


def test_redraw_replaces_dead_groups_and_keeps_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = learner()
    usual = plain.collect(2)
    order = list(dict.fromkeys(usual.rollout.groups))
    spare = [t.id for t in plain.spare.batch((2 - 1) * 3, 3) if t.id not in order]
    reward = {"red": dead_for(order[1], spare[0])}  # the first replacement is dead as well

    played: list[str] = []
    play = policy.play
    monkeypatch.setattr(policy, "play", lambda *a, **k: played.extend(t.id for t in a[2]) or play(*a, **k))
    made = learner(functions=reward, redraw=3)
    batch = made.collect(2)
    groups = list(dict.fromkeys(batch.rollout.groups))
    assert batch.metrics["group/dead"] == 0
    assert groups[0::2] == order[0::2], "live groups keep their places"
    assert groups[1] not in {*order, spare[0]}
    assert len(played) == len(set(played)), "no group is drawn twice"
    live = [b for b, group in enumerate(usual.rollout.groups) if group != order[1]]
    kept = [b for b, group in enumerate(batch.rollout.groups) if group in order]
    assert torch.equal(
        batch.rollout.segments["image"].tokens[kept], usual.rollout.segments["image"].tokens[live]
    )
    again = learner(functions=reward, redraw=3).collect(2)
    assert again.rollout.groups == batch.rollout.groups
    assert torch.equal(again.rollout.segments["image"].tokens, batch.rollout.segments["image"].tokens)


def test_redraw_gives_up_where_all_is_dead() -> None:
    batch = learner(functions={"same": all_alike}, redraw=4).collect(1)
    assert len(set(batch.rollout.groups)) == 3 and batch.metrics["group/dead"] == 1


@pytest.mark.parametrize("step", range(1, 7))
def test_redraw_never_has_a_task_twice(step: int) -> None:
    # Of five tasks three are on, and one teaches nothing: fresh ones come from a stream that holds all five.
    batch = learner(functions={"red": dead_for("t0")}, redraw=3, among=5).collect(step)
    groups = batch.rollout.groups
    assert all(groups.count(group) == 4 for group in groups)
    assert "t0" not in groups and batch.metrics["group/dead"] == 0


def test_rewards_that_cancel_are_no_dead_group_where_they_count_apart() -> None:
    def red(samples: Sequence[Sample]) -> list[float | None]:
        return [float(s.pictures["image"][..., 0].int().sum()) for s in samples]

    def rest(samples: Sequence[Sample]) -> list[float | None]:
        return [2.0**16 - (r or 0) for r in red(samples)]

    functions = {"red": red, "rest": rest}
    usual = learner().collect(1).rollout.groups
    assert learner(functions=functions, redraw=1, combine="each").collect(1).rollout.groups == usual
    assert learner(functions=functions, redraw=1, combine="sum").collect(1).rollout.groups != usual


# -- credit ------------------------------------------------------------------------------------------
def normalised(values: torch.Tensor, group: int, eps: float = 1e-6) -> torch.Tensor:
    rows = values.double().view(-1, group)
    return ((rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + eps)).flatten()


def test_each_segment_is_credited_with_its_own_rewards() -> None:
    functions = {"redness": redness, "length": length}
    apart = learner(scenario=CreditedApart(), functions=functions).collect(1)
    values = apart.judged.values
    for segment, reward in (("caption", "length"), ("image", "redness")):
        found = apart.advantages[segment].values
        torch.testing.assert_close(found.double(), normalised(values[reward], 4), atol=1e-5, rtol=1e-5)
    weighted = {"redness": 2.0, "length": 0.5}
    both = learner(scenario=WriteThenDraw(), functions=functions, rewards=weighted).collect(1)
    total = 2 * both.judged.values["redness"] + 0.5 * both.judged.values["length"]
    for found in both.advantages.values():
        torch.testing.assert_close(found.values.double(), normalised(total, 4), atol=1e-4, rtol=1e-4)


def test_rewards_are_normalised_one_by_one() -> None:
    functions = {"redness": redness, "contrast": contrast}
    shares = {"redness": 2.0, "contrast": -0.5}
    batch = learner(
        functions=functions, rewards=shares, combine="each", advantage=AdvantageConfig(clip=None)
    ).collect(1)
    parts = {name: normalised(value, 4) for name, value in batch.judged.values.items()}
    expected = 2.0 * parts["redness"] - 0.5 * parts["contrast"]
    found = batch.advantages["image"].values.double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_names_that_fit_nothing_are_errors() -> None:
    with pytest.raises(UserError, match=r"credits a segment with reward 'length'; add it"):
        learner(scenario=CreditedApart())
    with pytest.raises(UserError, match=r"segment_weights names 'picture'; the segments are image"):
        learner(segment_weights={"picture": 2.0}).collect(1)


# -- seeds -------------------------------------------------------------------------------------------
def test_samples_of_a_group_differ_and_groups_go_by_id() -> None:
    batch = learner(prompts=8, group=4).collect(1)
    drawn = batch.rollout.segments["image"].tokens.view(8, 4, -1)
    assert all(len({tuple(row) for row in group.tolist()}) > 1 for group in drawn)
    texts = [sample.task.prompt for sample in batch.rollout.samples]
    assert len(set(texts)) == 4 and len(set(batch.rollout.groups)) == 8, "one text may be two groups"
    flat = {tuple(group.flatten().tolist()) for group in drawn}
    assert len(flat) == 8, "two groups of one text have noise of their own"


@pytest.mark.parametrize("scenario", [None, WriteThenDraw()], ids=["draw", "write and draw"])
def test_the_seed_decides_the_rollout_whatever_its_batches(scenario: WriteThenDraw | None) -> None:
    def rollout(batch: int, seed: int = 0, step: int = 1) -> dict[str, Segment]:
        settings = replace(GUIDED, batch=batch)
        return dict(learner(scenario=scenario, rollout=settings, seed=seed).collect(step).rollout.segments)

    whole = rollout(100)
    for size in (1, 3):
        for name, segment in rollout(size).items():
            assert torch.equal(segment.tokens, whole[name].tokens)
            assert torch.equal(segment.mask, whole[name].mask)
            torch.testing.assert_close(segment.logp, whole[name].logp, atol=1e-5, rtol=0)
    assert not torch.equal(rollout(100, seed=1)["image"].tokens, whole["image"].tokens)
    assert not torch.equal(rollout(100, step=2)["image"].tokens, whole["image"].tokens)


# -- the reference -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kl", ["k3", "exact"])
def test_lora_trains_adapters_alone_and_its_reference_is_the_base(tmp_path: Path, kl: Any) -> None:
    model = starter_janus()
    base = weights(model)
    model.add_lora(LoraSettings(rank=2, alpha=4, targets=("q_proj", "v_proj")))
    loss = PolicyLossConfig(kl_coef=0.1, kl=kl)
    made = learner(model, loss=loss, steps=3, optimizer=OptimizerConfig(lr=1e-2))
    loop(made, tmp_path).run()
    after = {n.replace(".base_layer", ""): w for n, w in weights(model).items()}
    assert equal({n: w for n, w in after.items() if "lora_" not in n}, base)
    grown = [w for n, w in after.items() if "lora_B" in n and "language_model" in n]
    assert len(grown) == 4 and all(w.abs().max() > 0 for w in grown), "two layers, q and v each"
    assert made.batch is not None
    image = made.batch.rollout.segments["image"]
    need = frozenset({"logp"})
    now, then = model.score(image, need).logp, model.score(image, need, reference=True).logp
    untouched = starter_janus().score(image, need).logp
    assert now is not None and then is not None and untouched is not None
    torch.testing.assert_close(then, untouched, atol=1e-6, rtol=0)
    assert (now - then).abs().max() > 1e-3
    found = [row["kl"] for row in metrics(tmp_path)]
    assert abs(found[0]) < 1e-7 and found[2] > 1e-6, "0 before the first update, then it grows"


def test_the_reference_may_wait_elsewhere() -> None:
    found = []
    for offload in (False, True):
        model = starter_janus()
        model.keep_reference(offload=offload)
        assert model._frozen[0].idle.type == "cpu"
        perturb(model)
        made = learner(model, loss=PolicyLossConfig(kl_coef=1.0))
        gradient(made, made.collect(1))
        found.append(made.sums.kl)
    assert found[0] == found[1] > 0
