"""The flow kernel: against formulas written a second time, torch.distributions, and a Gaussian toy.

The toy has data N(0.6, 0.25) in each dimension on its own, for which the velocity field is known. All steps
are linear there, so the variance at the end follows from the kernel's own steps without any draw.

Shape legend: B rows, S steps, A actions, ... the latent's own dimensions (here 3 x 2 x 2).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from triptych.errors import UserError
from triptych.kernels import flow as kernel
from triptych.kernels.flow import (
    Noise,
    Velocity,
    drawn_steps,
    noise,
    renoised,
    sample,
    schedule,
    score,
    transition,
    velocities,
)
from triptych.trajectory import Denoising, FlowImageSegment, NoiseKey, Prompt, Sampling, load_segment

SHAPE = (3, 2, 2)
D = math.prod(SHAPE)
NOISES = ("flow", "dance", "cps")
LEVELS = {"flow": 0.7, "dance": 0.3, "cps": 0.6, "ode": 0.7}


def settings(kind: str = "flow", **changed: object) -> Denoising:
    return Denoising(**{"steps": 6, "noise": kind, "level": LEVELS[kind], **changed})  # type: ignore[arg-type]


def keys(rows: int, step: int = 3, task: str = "count/7") -> list[NoiseKey]:
    return [NoiseKey(seed=0, step=step, task=task, sample=i, segment="picture") for i in range(rows)]


KEYS = keys(5)


class Field(nn.Module):
    """A small nonlinear velocity; rows have conditions of their own, and guidance mixes in that of none."""

    def __init__(self, seed: int = 0, guidance: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        for name, shape in {"into": (D, D), "out": (D, D), "condition": (8, D), "time": (D,)}.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=random).to(dtype)))
        self.push = nn.Parameter(torch.zeros(()))
        self.guidance, self.dtype = guidance, dtype
        self.calls: list[tuple[Tensor, Tensor]] = []

    def velocity(self, rows: Sequence[int] = range(10_000)) -> Velocity:
        """Under the conditions of ``rows``."""

        def found(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
            assert x.dtype == sigma.dtype == torch.float32 and x.shape[1:] == SHAPE
            self.calls.append((sigma, step))
            condition = self.condition[torch.tensor(rows[: len(x)]) % 8]
            with_text, without = (self._one(x, sigma, c) for c in (condition, 0 * condition))
            return (without + self.guidance * (with_text - without)).view_as(x) + self.push

        return found

    def _one(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        flat, time = x.flatten(1).to(self.dtype), sigma[:, None].to(self.dtype)
        return torch.tanh(flat @ self.into / D**0.5 + condition + time * self.time) @ self.out / D**0.5


def moved(field: Field, size: float = 0.05, seed: int = 9) -> Field:
    """The same field with other weights, not far away."""
    other, random = Field(guidance=field.guidance), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p, q in zip(other.parameters(), field.parameters(), strict=True):
            p.copy_(q + size * torch.randn(q.shape, generator=random))
    return other


def drawn(field: Field, denoise: Denoising, given: Sequence[NoiseKey] = KEYS) -> FlowImageSegment:
    found = sample(field.velocity(), noise(given, SHAPE, denoise), schedule(denoise), denoise)
    context = (Prompt.of("a picture"),) * len(given)
    return FlowImageSegment(
        name="picture", context=context, sampling=Sampling(denoise=denoise), **vars(found)
    )


def full(value: float, rows: int = 1) -> Tensor:
    return torch.full((rows,), value)


# -- the schedule ------------------------------------------------------------------------------------
def test_times_are_even_and_shifted_and_end_exactly() -> None:
    plain = schedule(settings(steps=4, shift=1.0))
    assert plain.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0] and plain.dtype == torch.float32
    # 3 t / (1 + 2 t) at 3/4, 1/2, 1/4
    assert schedule(settings(steps=4, shift=3.0)).tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    for steps in (2, 7, 10, 37):
        found = schedule(settings(steps=steps)).tolist()
        assert (found[0], found[-1]) == (1.0, 0.0) and all(a > b for a, b in pairwise(found))


# -- one step ----------------------------------------------------------------------------------------
def by_hand(x: Tensor, v: Tensor, sigmas: Sequence[float], denoise: Denoising) -> Normal:
    """One step in float64, from the data and noise that a velocity stands for, and the SDE's drift.

    ``sigmas`` are the level, the next one, and the schedule's second.
    """
    x, v = x.detach().double(), v.detach().double()
    sigma, after, second = sigmas
    data, eps, d = x - sigma * v, x + (1 - sigma) * v, after - sigma
    if denoise.noise == "cps":
        s = after * math.sin(denoise.level * math.pi / 2)
        return Normal((1 - after) * data + math.sqrt(after**2 - s**2) * eps, s)
    g = denoise.level
    if denoise.noise == "flow":
        g *= math.sqrt(sigma / (1 - (second if sigma == 1 else sigma)))
    # dx = (v - g^2 score / 2) dt + g dw, where the score is -eps / sigma, and time runs backwards.
    return Normal(x + (v + g**2 / 2 * eps / sigma) * d, g * math.sqrt(-d))


def pair(seed: int = 1, rows: int = 4) -> Tensor:
    return torch.randn(2, rows, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("sigmas", [(1.0, 0.9), (0.9, 0.75), (0.5, 0.3), (0.2, 0.05), (0.05, 0.01)])
def test_a_step_is_the_formula(kind: str, sigmas: tuple[float, float]) -> None:
    x, v = pair()
    found = transition(x, v, *(full(s, 4) for s in (*sigmas, 0.85)), settings(kind))
    expected = by_hand(x, v, (*sigmas, 0.85), settings(kind))
    torch.testing.assert_close(found.mean.double(), expected.mean, rtol=1e-5, atol=1e-6)
    assert found.std.tolist() == pytest.approx([float(expected.stddev[0, 0, 0, 0])] * 4, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.9, 0.4])
def test_dance_is_flow_with_a_constant_g(sigma: float) -> None:
    about = (*pair(), full(sigma, 4), full(sigma / 2, 4), full(0.95, 4))
    flow = transition(*about, settings("flow", level=0.7))
    dance = transition(*about, settings("dance", level=0.7 * math.sqrt(sigma / (1 - sigma))))
    torch.testing.assert_close(flow.mean, dance.mean)
    torch.testing.assert_close(flow.std, dance.std)


def coefficients(denoise: Denoising, sigma: float, after: float) -> tuple[float, float]:
    """Of the data, and of all noise, after a step with the velocity of a known pair of data and noise."""
    data, eps = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    x = (1 - sigma) * data + sigma * eps
    found = transition(x, eps - data, full(sigma), full(after), full(0.95), denoise)
    of_data, of_noise = found.mean[0].tolist()
    return of_data, math.hypot(of_noise, float(found.std))


@pytest.mark.parametrize("strength", [0.1, 0.7, 1.0])
@pytest.mark.parametrize(("sigma", "after"), [(1.0, 0.9), (0.6, 0.5), (0.2, 0.05)])
def test_cps_keeps_the_coefficients_of_data_and_noise(sigma: float, after: float, strength: float) -> None:
    found = coefficients(settings("cps", level=strength), sigma, after)
    assert found == pytest.approx((1 - after, after), abs=1e-6)


def test_eulers_flow_sde_leaves_more_noise_than_the_level_it_goes_to() -> None:
    found = coefficients(settings("flow", level=0.7), 0.2, 0.05)
    assert found[1] == pytest.approx(0.1356, abs=5e-5), "instead of 0.05"


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_arithmetic_is_fp32_whatever_the_dtype_of_the_velocity(kind: str, dtype: torch.dtype) -> None:
    x, v = pair()
    about = (full(0.7, 4), full(0.65, 4), full(0.95, 4), settings(kind))
    other, exact = (transition(x, y, *about) for y in (v.to(dtype), v.to(dtype).float()))
    assert other.mean.dtype == torch.float32
    assert torch.equal(other.mean, exact.mean) and torch.equal(other.std, exact.std)


# -- log-probabilities and divergences ---------------------------------------------------------------
def steps_by_hand(field: Field, segment: FlowImageSegment, action: int) -> Normal:
    step = int(segment.trained[0, action])
    sigmas = [float(s) for s in segment.sigmas[0, [step, step + 1, 1]]]
    x = segment.latents[:, step]
    v = field.velocity()(x, full(sigmas[0], len(x)), torch.full((len(x),), step))
    return by_hand(x, v, sigmas, segment.sampling.denoise)


@pytest.mark.parametrize("kind", NOISES)
def test_scores_equal_those_of_torch_distributions(kind: str) -> None:
    field = Field()
    policy, reference = moved(field), moved(field, 0.1, seed=3)
    segment = drawn(field, settings(kind))
    found = score(segment, policy.velocity(), reference=reference.velocity())
    assert segment.actions == 5
    for action in range(5):
        old, new, other = (steps_by_hand(f, segment, action) for f in (field, policy, reference))
        there = segment.latents[:, action + 1].double()
        expected = {
            "logp": new.log_prob(there),
            "entropy": new.entropy(),
            "kl": kl_divergence(new, other),
            "old_kl": kl_divergence(old, new),
            "std": new.stddev,
        }
        for name, value in expected.items():
            mean = value.expand_as(there).flatten(1).mean(1)  # over the dimensions, for each sample
            torch.testing.assert_close(
                getattr(found, name)[:, action].double(), mean, rtol=1e-4, atol=1e-5, msg=name
            )
        torch.testing.assert_close(
            found.step_size[:, action], segment.sigmas[:, action] - segment.sigmas[:, action + 1]
        )


def test_a_sum_instead_of_the_mean_would_be_as_many_times_larger_as_there_are_dimensions() -> None:
    field = Field()
    segment = drawn(field, settings())
    policy, there = moved(field, 0.1), segment.latents[:, 3].double()
    fresh = score(segment, policy.velocity()).logp[:, 2].detach().double()
    summed, before = (steps_by_hand(f, segment, 2).log_prob(there).flatten(1).sum(1) for f in (policy, field))
    torch.testing.assert_close(summed, D * fresh, rtol=1e-4, atol=1e-4)
    ratio = (fresh - segment.logp[:, 2].double()).exp()
    torch.testing.assert_close((summed - before).exp(), ratio**D, rtol=1e-3, atol=0)
    assert float((ratio - 1).abs().max()) < 0.02 < 0.1 < float((ratio**D - 1).abs().max())


def test_recorded_draws_are_distributed_as_scored() -> None:
    """12,000 draws a step: quantiles of the formula are uniform, and log-densities average as they should."""
    field = Field()
    for kind in NOISES:
        segment = drawn(field, settings(kind, steps=4), keys(1000, task=kind))
        for action in range(3):
            expected, there = steps_by_hand(field, segment, action), segment.latents[:, action + 1].double()
            assert stats.kstest(expected.cdf(there).flatten().numpy(), "uniform").pvalue > 1e-3
            entropy = float(expected.entropy()[0, 0, 0, 0])
            assert float(segment.logp[:, action].mean()) == pytest.approx(-entropy, abs=0.03)


# -- score is what sampling recorded -----------------------------------------------------------------
@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("window", [{}, {"window": 2}, {"window": 2, "moves": "random", "start": "shared"}])
def test_scoring_returns_the_recorded_log_probabilities(
    kind: str, guidance: float, window: dict[str, object]
) -> None:
    field = Field(guidance=guidance)
    given = [*keys(3), *keys(2, task="color/1"), *keys(1, task="two/9")]
    segment = drawn(field, settings(kind, **window), given)
    assert segment.logp.std() > 1e-3, "there is something to compare"
    for split in ([0, 1, 2, 3, 4, 5], [5, 2], [0], [3, 1, 4]):
        part = segment.rows(split)
        with torch.no_grad():
            found = score(part, field.velocity(split), reference=field.velocity(split))
        assert float((found.logp - part.logp).abs().max()) <= 1e-5
        assert found.kl is not None and float(torch.stack([found.kl, found.old_kl]).abs().max()) <= 1e-8
    other = score(segment, Field(guidance=1.1 * guidance).velocity()).logp
    assert float((other - segment.logp).detach().abs().max()) > 1e-4, "and a difference would be seen"


def test_a_bf16_velocity_is_recorded_and_scored_in_fp32() -> None:
    field = Field(dtype=torch.bfloat16)
    segment = drawn(field, settings())
    assert {x.dtype for x in segment.tensors().values()} == {torch.float32, torch.int64, torch.bool}
    found = score(segment, field.velocity()).logp
    assert found.dtype == torch.float32 and float((found - segment.logp).detach().abs().max()) <= 1e-5


def test_rollout_and_replay_have_the_same_noise_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, denoise = Field(), settings(window=3)
    levels = schedule(denoise) * 0.97  # such as no setting gives
    found = sample(field.velocity(), noise(KEYS, SHAPE, denoise), levels, denoise)
    about = {
        "name": "picture",
        "context": (Prompt.of("a picture"),) * 5,
        "sampling": Sampling(denoise=denoise),
    }
    segment = FlowImageSegment(**about, **vars(found))  # type: ignore[arg-type]
    assert segment.sigmas.data_ptr() == levels.data_ptr() and torch.equal(segment.sigmas[3], levels)
    segment.save(tmp_path / "kept")
    monkeypatch.setattr(kernel, "schedule", lambda _: pytest.fail("the schedule is made a second time"))
    used = {(sigma[0].item(), step[0].item()) for sigma, step in field.calls}
    for again in (
        segment,
        load_segment(tmp_path / "kept"),
        FlowImageSegment.cat([segment, segment]).rows([7]),
    ):
        assert isinstance(again, FlowImageSegment)
        field.calls.clear()
        logp = score(again, field.velocity([7 % 5] if len(again) == 1 else range(5))).logp
        assert {(sigma[0].item(), step[0].item()) for sigma, step in field.calls} < used
        assert float((logp - again.logp).detach().abs().max()) <= 1e-5


def test_without_noise_there_is_nothing_to_score() -> None:
    segment = drawn(Field(), settings("ode"))
    assert segment.logp.shape == segment.mask.shape == segment.trained.shape == (5, 0)
    with pytest.raises(UserError, match="'picture' was denoised without noise: it has no probabilities"):
        score(segment, Field().velocity())


def test_the_gradient_of_a_log_probability_is_that_of_the_formula() -> None:
    field, denoise = Field(), settings()
    segment = drawn(field, denoise)
    found = score(segment, field.velocity()).logp
    for action in range(segment.actions):
        (slope,) = torch.autograd.grad(found[:, action].sum(), field.push, retain_graph=True)
        sigma, after, second = segment.sigmas[0, [action, action + 1, 1]].double().tolist()
        # mu = ... + v k, and d logp / d mu = (x' - mu) / s^2
        ends = [
            by_hand(torch.zeros(1), torch.full((1,), v), (sigma, after, second), denoise) for v in (0.0, 1.0)
        ]
        k, s = float(ends[1].mean - ends[0].mean), float(ends[0].stddev)
        gap = (segment.latents[:, action + 1] - segment.means[:, action]).double().flatten(1).mean(1).sum()
        assert float(slope) == pytest.approx(float(gap) * k / s**2, rel=1e-3, abs=1e-4)


# -- which steps are drawn ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("moves", ["sliding", "random"])
def test_the_last_step_is_never_drawn(kind: str, moves: str) -> None:
    for window in range(6):
        for step in range(1, 12):
            denoise = settings(kind, window=window, moves=moves)
            trained = drawn_steps(keys(2, step), denoise)
            assert trained.shape == (2, window or 5) and set(trained.flatten().tolist()) <= {*range(5)}
    segment, field = drawn(Field(), settings(kind)), Field()
    x, sigma = segment.latents[:, 5], segment.sigmas[:, 5]
    clean = x - sigma[0] * field.velocity()(x, sigma, torch.full((5,), 5))
    torch.testing.assert_close(segment.latents[:, 6], clean)


def test_the_sliding_window_depends_on_the_training_step_alone() -> None:
    denoise = settings(steps=7, window=3, hold=2)
    found = [drawn_steps(keys(1, step), denoise)[0].tolist() for step in range(1, 11)]
    assert [row[0] for row in found] == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    assert all(row == [row[0], row[0] + 1, row[0] + 2] for row in found)
    again = drawn_steps([*keys(1, 8), *keys(1, 3, task="another")], denoise)
    assert again.tolist() == [found[7], found[2]], "whatever came before, and whichever task"


def test_a_window_begins_where_it_is_told_and_may_stay_there() -> None:
    told = settings(steps=7, window=3, first=2)
    found = [drawn_steps(keys(1, step), told)[0, 0].item() for step in range(1, 6)]
    assert found == [2, 3, 0, 1, 2]
    still = drawn_steps(
        [*keys(1, 1), *keys(1, 5), *keys(1, -1)], settings(steps=7, window=3, first=2, moves="still")
    )
    assert still.tolist() == [[2, 3, 4]] * 3, "in an evaluation, too"


@pytest.mark.parametrize("moves", ["sliding", "random"])
def test_a_group_shares_its_window_and_not_its_noise(moves: str) -> None:
    denoise = settings(window=2, moves=moves)
    tasks = [f"count/{i}" for i in range(40)]
    given = [key for task in tasks for key in keys(3, task=task)]
    found = noise(given, SHAPE, denoise)
    groups = found.trained.view(40, 3, 2)
    assert torch.equal(groups, groups[:, :1].expand(-1, 3, -1))
    windows = {int(row) for row in groups[:, 0, 0]}
    assert windows == ({2} if moves == "sliding" else {0, 1, 2, 3})
    rows = torch.arange(120)[:, None]
    assert len(found.eps[rows, found.trained].flatten(2).reshape(240, D).unique(dim=0)) == 240
    assert len(found.start.flatten(1).unique(dim=0)) == 120


def test_outside_the_window_it_is_the_ode() -> None:
    field, denoise = Field(), settings(window=2, moves="random")
    given = [*keys(2, task="count/2"), *keys(3, task="color/1")]
    segment = drawn(field, denoise, given)
    assert segment.trained[0, 0] != segment.trained[2, 0], "two windows in one batch"
    for step in range(6):
        x, sigma, after = segment.latents[:, step], segment.sigmas[:, step], segment.sigmas[:, step + 1]
        v = field.velocity()(x, sigma, torch.full((5,), step))
        off = (segment.latents[:, step + 1] - x - v * (after - sigma)[0]).flatten(1).abs().amax(1)
        inside = (segment.trained == step).any(1)
        assert bool((off[~inside] < 1e-6).all()) and bool((off[inside] > 0.05).all())
    plain = drawn(field, settings("ode"), given).latents
    assert torch.equal(plain[:2, 0], segment.latents[:2, 0]), "the start is the same draw"


def test_drawings_of_a_shared_start_branch_where_the_window_begins() -> None:
    field = Field()
    with torch.no_grad():
        field.condition.copy_(field.condition[:1].expand(8, -1).clone())  # one prompt
    segment = drawn(field, settings(window=1, start="shared"), keys(4, step=4))
    assert segment.trained.tolist() == [[3]] * 4
    spread = segment.latents.std(0).flatten(1).amax(1)
    assert bool((spread[:4] < 1e-6).all()) and bool((spread[4:] > 0.05).all())


# -- noise -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("changed", [{}, {"window": 1}, {"window": 2, "moves": "random", "start": "shared"}])
def test_noise_of_a_row_does_not_depend_on_its_batch(changed: dict[str, object]) -> None:
    denoise, given = settings(**changed), [*keys(3), *keys(4, task="color/1")]
    whole = noise(given, SHAPE, denoise)
    for part in (slice(0, 1), slice(1, 6), slice(6, 7)):
        found = noise(given[part], SHAPE, denoise)
        for name, value in vars(found).items():
            assert torch.equal(value, getattr(whole, name)[part]), name


# -- a Gaussian toy ----------------------------------------------------------------------------------
MEAN, VARIANCE, START = 0.6, 0.25, 0.9


def toy(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
    """E[eps - x0 | x] for data N(0.6, 0.25)."""
    s = sigma.view(-1, *[1] * (x.ndim - 1))
    variance = (1 - s) ** 2 * VARIANCE + s**2
    return (s - (1 - s) * VARIANCE) / variance * (x - (1 - s) * MEAN) - MEAN


def even(steps: int, start: float) -> Tensor:
    return torch.linspace(start, 0, steps + 1, dtype=torch.float64).float()


def at_end(denoise: Denoising, start: float) -> tuple[float, float]:
    """Errors of mean and variance: every step is linear, so two points and the spread say all."""
    mean, variance = (1 - start) * MEAN, (1 - start) ** 2 * VARIANCE + start**2
    levels, ends = even(denoise.steps, start), torch.tensor([[0.0], [1.0]])
    for k in range(denoise.steps):
        about = [full(float(s), 2) for s in (levels[k], levels[k + 1], levels[1])]
        v, spread = toy(ends, about[0], torch.tensor([k])), 0.0
        if denoise.noise == "ode" or k == denoise.steps - 1:
            after = ends + v * (about[1] - about[0])[:, None]
        else:
            step = transition(ends, v, about[0], about[1], about[2], denoise)
            after, spread = step.mean, float(step.std[0])
        slope = float(after[1] - after[0])
        mean, variance = float(after[0]) + slope * mean, slope**2 * variance + spread**2
    return mean - MEAN, variance - VARIANCE


TABLE = {
    ("ode", 0.7): (-0.0582, -0.0160, -0.0041, -0.0010),
    ("flow", 0.7): (-0.0217, -0.0072, -0.0019, -0.0005),
    ("dance", 0.3): (-0.0510, -0.0137, -0.0035, -0.0009),
    ("cps", 0.3): (-0.0682, -0.0297, -0.0186, -0.0153),
    ("cps", 0.7): (-0.1095, -0.0828, -0.0735, -0.0702),
}


@pytest.mark.parametrize(("kind", "strength"), TABLE)
def test_marginals_err_as_the_kernels_table_says(kind: str, strength: float) -> None:
    found = [at_end(settings(kind, level=strength, steps=steps), START) for steps in (10, 40, 160, 640)]
    assert [variance for _, variance in found] == pytest.approx(TABLE[kind, strength], abs=6e-5)
    assert max(abs(mean) for mean, _ in found) < 1e-4
    line = "    ".join(f"{value:.4f}".replace("0.", ".") for value in TABLE[kind, strength])
    assert line in str(kernel.__doc__)
    fourfold = [abs(a / b) for (_, a), (_, b) in pairwise(found)]
    if kind == "cps":
        assert fourfold[-1] < 1.3, "a bias stays"
    else:
        assert 3.5 < fourfold[-1] < 4.5, "four times the steps, a quarter of the error"


def test_from_pure_noise_the_stand_in_denominator_leaves_flow_an_error() -> None:
    assert at_end(settings("flow", steps=640), 1.0)[1] == pytest.approx(0.0010, abs=6e-5)
    assert at_end(settings("dance", steps=640), 1.0)[1] == pytest.approx(-0.0010, abs=6e-5)


@pytest.mark.parametrize("kind", [*NOISES, "ode"])
def test_marginals_of_many_drawings_are_those_of_the_table(kind: str) -> None:
    """400,000 drawings in ten steps; the variance of a sample has a standard error of 0.0005."""
    denoise = settings(kind, level=0.3 if kind == "dance" else 0.7, steps=10)
    given = noise(keys(4, task=kind), (100_000,), denoise)
    start = (1 - START) * MEAN + math.sqrt((1 - START) ** 2 * VARIANCE + START**2) * given.start
    found = sample(toy, Noise(start, given.trained, given.eps), even(10, START), denoise)
    end = found.latents[:, -1].double()
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.004)
    assert float(end.var()) - VARIANCE == pytest.approx(TABLE[kind, denoise.level][0], abs=0.0025)


# -- what the objectives build on --------------------------------------------------------------------
def test_the_log_of_the_guards_ratio_has_mean_zero_and_the_plain_one_has_not() -> None:
    field, policy, rows = Field(), Field(seed=1), 1500
    segment = drawn(field, settings(steps=4), keys(rows, task="guard"))
    with torch.no_grad():
        found = score(segment, policy.velocity())
    plain = found.logp - segment.logp
    guard = found.std * (plain + found.old_kl)
    for action in range(3):
        old, new = (steps_by_hand(f, segment, action) for f in (field, policy))
        z = (segment.latents[:, action + 1] - old.mean) / old.stddev
        torch.testing.assert_close(
            guard[:, action].double(), (z * (new.mean - old.mean)).flatten(1).mean(1), rtol=1e-4, atol=1e-5
        )
        centred, leaning = (
            abs(float(ratio.mean())) / float(ratio.std()) * rows**0.5
            for ratio in (guard[:, action], plain[:, action])
        )
        assert centred < 3.5 and leaning > 8, "in standard errors"


@pytest.mark.parametrize("which", ["kl", "old_kl"])
def test_a_divergence_is_positive_and_its_gradient_leads_back(which: str) -> None:
    field = Field()
    segment = drawn(field, settings())

    def divergence(push: float) -> tuple[Tensor, Field]:
        policy = Field()
        with torch.no_grad():
            policy.push.fill_(push)
        return getattr(score(segment, policy.velocity(), reference=field.velocity()), which), policy

    assert float(divergence(0.0)[0].abs().max()) <= 1e-8
    for push in (0.3, -0.2):
        value, policy = divergence(push)
        assert bool((value > 0).all())
        value.sum().backward()
        assert policy.push.grad is not None and field.push.grad is None
        # a quadratic in the push: central differences are exact
        up, down = (float(divergence(push + h)[0].sum()) for h in (0.1, -0.1))
        assert float(policy.push.grad) == pytest.approx((up - down) / 0.2, rel=1e-3)
        assert float(policy.push.grad) * push > 0, "descent undoes the push"
    # d stands in the spread: without it, every step would weigh as its length says
    sigma, after, second = segment.sigmas[0, [2, 3, 1]].double().tolist()
    ends = [
        by_hand(torch.zeros(1), torch.full((1,), v), (sigma, after, second), settings()) for v in (0.0, 0.3)
    ]
    assert float(divergence(0.3)[0][0, 2]) == pytest.approx(float(kl_divergence(*ends)), rel=1e-3)


# -- noised points -----------------------------------------------------------------------------------
def test_finished_latents_are_noised_afresh(tmp_path: Path) -> None:
    segment = drawn(Field(), settings("ode"))
    points = renoised(segment, KEYS, 4)
    assert points.mask.shape == (len(KEYS), 4) and points.mask.all()
    shift = segment.sampling.denoise.shift
    times = points.sigmas / (shift - (shift - 1) * points.sigmas)  # the inverse of the schedule's shift
    assert [(4 * t).floor().tolist() for t in times] == [[0, 1, 2, 3]] * len(KEYS), "one in each quarter"
    for b, i in ((0, 0), (len(KEYS) - 1, 3)):
        sigma = points.sigmas[b, i]
        expected = (1 - sigma) * segment.latents[b, -1] + sigma * points.noise[b, i]
        assert torch.equal(points.noised()[b, i], expected)
    alone = renoised(segment.rows([2]), KEYS[2:3], 4)
    assert torch.equal(alone.noise[0], points.noise[2]) and torch.equal(alone.sigmas[0], points.sigmas[2])
    points.save(tmp_path / "points")
    assert torch.equal(load_segment(tmp_path / "points").tensors()["noise"], points.noise)


def test_velocities_at_points_are_those_of_each_point_alone() -> None:
    field = Field().velocity()
    points = renoised(drawn(Field(), settings("ode")), KEYS, 3)
    found, step = velocities(points, field), torch.zeros(len(KEYS), dtype=torch.long)
    for i in range(3):
        assert torch.equal(found[:, i], field(points.noised()[:, i], points.sigmas[:, i], step))
