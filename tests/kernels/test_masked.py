"""The masked kernel: sampling against scoring, and both against an enumeration of every outcome.

The enumeration (4 positions, 3 codes, 3 steps) writes the sampler's probabilities down a second time, in
float64, and hands the kernel the noise that leads it into each of the 236,196 episodes.

Shape legend: B rows, E episodes, N positions, S steps, k trained steps, A actions, V vocabulary, D width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from tiny_models import chi_square, joint_index, log_probabilities
from triptych.errors import UserError
from triptych.kernels import masked as kernel
from triptych.kernels import tokens as token_kernel
from triptych.kernels.masked import Hidden, Noise, commits, noise, score, unmask
from triptych.trajectory import MaskedImageSegment, NoiseKey, Prompt, Sampling, Scores, Unmasking

D = 8
ESTIMATORS = ("trajectory", "exact", "random_mask")
ORDERS = ("random", "confidence")


class Policy(nn.Module):
    """A small network in which every position looks at all others; each row has a condition of its own."""

    def __init__(self, positions: int, codes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator).to(dtype))

        self.codes, self.calls = codes, 0
        self.token, self.place, self.condition = normal(codes + 1, D), normal(positions, D), normal(8, D)
        self.mix, self.out = normal(positions, positions), normal(codes, D)

    def hidden(self, rows: Tensor, guidance: float = 1.0) -> Hidden:
        """Under the conditions of ``rows``; with guidance, those of no condition after them."""

        def states(tokens: Tensor, masked: Tensor) -> Tensor:
            self.calls += 1
            seen = self.token[torch.where(masked, self.codes, tokens)] + self.place
            branches = [seen + self.condition[rows][:, None], seen][: 1 if guidance == 1 else 2]
            x = torch.tanh(torch.cat(branches))
            return torch.tanh(x + self.mix @ x / len(self.mix) ** 0.5)

        return states

    def head(self, hidden: Tensor) -> Tensor:
        return hidden @ self.out.T


def sampling(temperature: float = 1.0, guidance: float = 1.0, **unmasking: object) -> Sampling:
    return Sampling(temperature=temperature, guidance=guidance, unmask=Unmasking(**unmasking))  # type: ignore[arg-type]


def keys(rows: int, task: str = "count/7") -> list[NoiseKey]:
    return [NoiseKey(seed=0, step=3, task=task, sample=i, segment="picture") for i in range(rows)]


def drawn(policy: Policy, settings: Sampling, noise: Noise, rows: Tensor | None = None) -> MaskedImageSegment:
    """What the kernel draws, as the segment that records it; row b has condition ``rows[b]``."""
    rows = torch.arange(len(noise.draw)) if rows is None else rows
    found = unmask(policy.hidden(rows, settings.guidance), policy.head, noise, settings)
    context = (Prompt.of("a picture"),) * len(rows)
    return MaskedImageSegment(name="picture", context=context, sampling=settings, **vars(found))


def scored(
    policy: Policy,
    segment: MaskedImageSegment,
    rows: Tensor | None = None,
    entropy: bool = False,
    reference: Policy | None = None,
) -> Scores:
    rows = torch.arange(len(segment)) if rows is None else rows
    guidance = segment.sampling.guidance
    other = None if reference is None else (reference.hidden(rows, guidance), reference.head)
    return score(
        segment,
        policy.hidden(rows, guidance),
        policy.head,
        vocabulary=policy.codes,
        entropy=entropy,
        reference=other,
    )


# -- how many positions each step commits ------------------------------------------------------------
@pytest.mark.parametrize(
    ("positions", "steps", "expected"),
    [
        (5, 1, [5]),
        (5, 5, [1, 1, 1, 1, 1]),
        (4, 3, [1, 1, 2]),  # 4 cos(30 deg) = 3.46, 4 cos(60 deg) = 2
        (6, 3, [1, 2, 3]),  # 6 cos(30 deg) = 5.2, 6 cos(60 deg) = 3
        (10, 6, [1, 1, 1, 2, 3, 2]),  # 9.7, 8.7, 7.1, 5, 2.6: nine left, then eight, seven, five, two
        (256, 8, [5, 15, 24, 31, 39, 45, 48, 49]),
    ],
)
def test_commits_follow_the_cosine(positions: int, steps: int, expected: list[int]) -> None:
    assert commits(positions, steps) == expected


@pytest.mark.parametrize(
    ("positions", "steps"), [(64, 32), (64, 63), (64, 64), (256, 16), (1024, 1000), (7, 6)]
)
def test_each_step_commits_at_least_one_and_all_together_everything(positions: int, steps: int) -> None:
    found = commits(positions, steps)
    assert len(found) == steps and sum(found) == positions and min(found) >= 1


def test_a_plain_cosine_floor_would_commit_nothing_at_some_steps() -> None:
    left = [math.floor(64 * math.cos(math.pi / 2 * k / 32) + 1e-9) for k in range(33)]
    assert sum(before == after for before, after in pairwise(left)) == 3
    plain = [before - after for before, after in pairwise(left)]
    assert commits(64, 32) == [1] * 13 + plain[13:], "only the flat start of the cosine is changed"


def test_more_steps_than_positions_are_refused() -> None:
    with pytest.raises(UserError, match="5 unmasking steps for 4 positions: each step commits at least one"):
        commits(4, 5)
    with pytest.raises(UserError, match="17 unmasking steps for 16 positions"):
        noise(keys(1), 16, Unmasking(steps=17))


# -- the noise ---------------------------------------------------------------------------------------
def test_noise_of_a_row_does_not_depend_on_its_batch() -> None:
    settings = Unmasking(steps=4, trained=2)
    tensors = vars(noise(keys(5), 16, settings)).values()
    for part in (slice(0, 1), slice(1, 4)):
        for whole, alone in zip(tensors, vars(noise(keys(5)[part], 16, settings)).values(), strict=True):
            assert torch.equal(whole[part], alone)


def test_a_group_shares_trained_steps_and_mask_but_not_its_draws() -> None:
    found = noise(keys(6), 64, Unmasking(steps=16, trained=5))
    assert bool((found.trained == found.trained[0]).all()) and bool((found.shared == found.shared[0]).all())
    numbers = torch.cat([found.draw.flatten(), found.order.flatten()])
    assert len(numbers.unique()) == 2 * 6 * 16 * 64
    for other in ({"task": "count/8"}, {"seed": 1}, {"step": 4}, {"segment": "second"}):
        changed = noise([replace(keys(1)[0], **other)], 64, Unmasking(steps=16, trained=5))  # type: ignore[arg-type]
        assert not torch.equal(changed.trained[0], found.trained[0])
        assert not torch.equal(changed.shared[0], found.shared[0])


def test_in_common_order_a_group_shares_the_order_alone() -> None:
    own, common = (noise(keys(6), 64, Unmasking(steps=16, order=o)) for o in ("random", "common"))  # type: ignore[arg-type]
    assert torch.equal(common.draw, own.draw) and torch.equal(common.order[0], own.order[0])
    assert bool((common.order == common.order[0]).all())
    other = noise([replace(keys(1)[0], task="count/8")], 64, Unmasking(steps=16, order="common"))
    assert not torch.equal(other.order, common.order[:1])
    policy, settings = Policy(64, 7), sampling(order="common", steps=16)
    segment = drawn(policy, settings, common)
    assert bool((segment.commit == segment.commit[0]).all()) and len(segment.tokens.unique(dim=0)) == 6


def test_trained_steps_and_masks_are_distributed_as_documented() -> None:
    tasks = [replace(keys(1)[0], task=f"task/{i}") for i in range(6000)]
    found = noise(tasks, 4, Unmasking(steps=4, trained=2))
    assert bool((found.trained[:, 0] < found.trained[:, 1]).all())
    pairs = joint_index(found.trained, 4).bincount(minlength=16)
    subsets = [4 * first + second for first, second in combinations(range(4), 2)]
    assert chi_square(pairs[subsets], torch.full((6,), 1 / 6)) > 1e-3
    each = joint_index(found.shared.long(), 2).bincount(minlength=16)
    assert chi_square(each, mask_probabilities()) > 1e-3
    assert bool((noise(tasks[:9], 4, Unmasking(steps=4)).trained == torch.arange(4)).all())
    first = noise(tasks[:9], 4, Unmasking(steps=4, trained=2, which="first"))
    assert first.trained.tolist() == [[0, 1]] * 9
    assert torch.equal(first.draw, found.draw[:9]), "which steps count must not change the draws"
    early = noise(tasks, 4, Unmasking(steps=4, trained=2, which="first")).shared.sum(1)
    assert set(early.tolist()) == {3, 4}, "4 cos(pi t / 2) is above 2.8 before t = 2 / 4"


def all_masks() -> Tensor:
    """Every mask of four positions, ``[16, 4]``, in the order of :func:`joint_index`."""
    return torch.cartesian_prod(*[torch.tensor([False, True])] * 4)


def mask_probabilities() -> Tensor:
    """Of :func:`all_masks`: ``ceil(4 cos(pi t / 2))`` positions, t uniform, each set of them alike."""
    at_most = [1 - math.acos(count / 4) / (math.pi / 2) for count in range(5)]
    of_count = [0.0, *(high - low for low, high in pairwise(at_most))]
    return torch.tensor([of_count[n] / math.comb(4, n) for n in all_masks().sum(1).tolist()])


# -- sampling and scoring ----------------------------------------------------------------------------
@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 0.6), (3.0, 1.4), (1.0, 1.0)])
@pytest.mark.parametrize("steps", [1, 4, 16])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_score_returns_what_was_recorded(
    estimator: str, order: str, steps: int, guidance: float, temperature: float
) -> None:
    policy = Policy(16, 7)
    for trained in {0, steps // 3}:
        settings = sampling(
            temperature, guidance, estimator=estimator, order=order, steps=steps, trained=trained
        )
        segment = drawn(policy, settings, noise(keys(5), 16, settings.unmask))
        found = scored(policy, segment).logp
        assert bool((segment.logp[segment.mask] <= 0).all()) and not segment.logp[~segment.mask].any()
        torch.testing.assert_close(found, segment.logp, atol=1e-5, rtol=0)
        wrong = scored(policy, replace(segment, sampling=replace(settings, temperature=temperature + 0.1)))
        assert not torch.allclose(wrong.logp, segment.logp, atol=1e-2)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batch_splits_do_not_change_a_picture(estimator: str, order: str) -> None:
    policy = Policy(16, 7)
    settings = sampling(0.9, 3.0, estimator=estimator, order=order, steps=4, trained=2)
    whole = drawn(policy, settings, noise(keys(5), 16, settings.unmask))
    for width in (1, 3):
        for rows in torch.arange(5).split(width):
            given = noise([keys(5)[row] for row in rows.tolist()], 16, settings.unmask)
            part, expected = drawn(policy, settings, given, rows), whole.rows(rows.tolist())
            for name, value in part.tensors().items():
                torch.testing.assert_close(value, getattr(expected, name), atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("trained", "which"), [(0, "random"), (1, "random"), (3, "random"), (3, "first")])
def test_the_mask_marks_the_actions_and_nothing_else(trained: int, which: str, order: str) -> None:
    policy, counts = Policy(16, 7), commits(16, 4)
    left = [sum(counts[step:]) for step in range(4)]

    def picture(estimator: str, temperature: float = 1.0) -> MaskedImageSegment:
        settings = sampling(
            estimator=estimator,
            order=order,
            steps=4,
            trained=trained,
            which=which,
            order_temperature=temperature,
        )
        return drawn(policy, settings, noise(keys(5), 16, settings.unmask))

    committed, exact, shared = (picture(estimator) for estimator in ESTIMATORS)
    steps = committed.trained[0].tolist()
    assert committed.mask.sum(1).tolist() == [sum(counts[step] for step in steps)] * 5
    assert bool((committed.mask == torch.isin(committed.commit, committed.trained[0])).all())
    draws, picks = exact.mask[:, : 4 * 16].view(5, 4, 16), exact.mask[:, 4 * 16 :]
    assert draws.sum(2).tolist() == [[left[step] if step in steps else 0 for step in range(4)]] * 5
    ordered = sum(counts[step] for step in steps if step < 3) if order == "confidence" else 0
    assert picks.sum(1).tolist() == [ordered] * 5
    assert not picks[exact.commit == 3].any(), "in the last step there is nothing left to choose"
    assert not picture("exact", temperature=0.0).mask[:, 4 * 16 :].any()
    assert torch.equal(shared.mask, noise(keys(5), 16, Unmasking(steps=4, trained=trained)).shared)


@pytest.mark.parametrize("order", ORDERS)
def test_commit_and_rank_say_how_the_picture_came_about(order: str) -> None:
    settings = sampling(estimator="exact", order=order, steps=4)
    segment = drawn(Policy(16, 7), settings, noise(keys(5), 16, settings.unmask))
    assert torch.equal(segment.rank.sort(1).values, torch.arange(16).expand(5, -1))
    steps = torch.arange(4).repeat_interleave(torch.tensor(commits(16, 4)))
    assert torch.equal(segment.commit.gather(1, segment.rank.argsort(1)), steps.expand(5, -1))
    kept = segment.draws.gather(1, segment.commit[:, None]).squeeze(1)
    assert torch.equal(kept, segment.tokens)


def test_without_noise_the_most_confident_are_committed_first() -> None:
    settings = sampling(estimator="exact", order="confidence", steps=4, order_temperature=0.0)
    segment = drawn(Policy(16, 7), settings, noise(keys(5), 16, settings.unmask))
    confidence = segment.logp[:, : 4 * 16].view(5, 4, 16)
    for row in range(5):
        in_order = segment.rank[row].argsort()
        for step, done in enumerate([0, *torch.tensor(commits(16, 4)).cumsum(0)[:-1].tolist()]):
            values = confidence[row, step, in_order[done:]]
            count = commits(16, 4)[step]
            assert torch.equal(values[:count], values.sort(descending=True).values[:count])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_greedy_takes_the_most_likely_token_of_each_canvas(estimator: str, order: str) -> None:
    policy, rows = Policy(16, 7), torch.arange(5)
    settings = sampling(0.0, 3.0, estimator=estimator, order=order, steps=4, order_temperature=0.0)
    segment = drawn(policy, settings, noise(keys(5), 16, settings.unmask))
    for step in range(4):
        given, free = policy.head(policy.hidden(rows, 3.0)(segment.tokens, segment.commit >= step)).chunk(2)
        here = segment.commit == step
        assert torch.equal((free + 3 * (given - free)).argmax(-1)[here], segment.tokens[here])
    assert not segment.logp.any()


@pytest.mark.parametrize("order", ORDERS)
def test_trained_steps_are_scored_alone_and_together_make_the_whole(order: str) -> None:
    policy = Policy(16, 7)
    settings = sampling(estimator="exact", order=order, steps=4)
    given = noise(keys(5), 16, settings.unmask)
    whole = scored(policy, drawn(policy, settings, given)).logp
    parts = [replace(given, trained=torch.full((5, 1), step)) for step in range(4)]
    each = torch.stack([scored(policy, drawn(policy, settings, part)).logp for part in parts])
    assert bool(((each != 0).sum(0) <= 1).all()), "an action belongs to one step"
    torch.testing.assert_close(each.sum(0), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("estimator", "trained", "passes"),
    [("trajectory", 0, 4), ("trajectory", 3, 3), ("exact", 0, 4), ("exact", 1, 1), ("random_mask", 0, 1)],
)
def test_scoring_costs_one_pass_a_trained_step(estimator: str, trained: int, passes: int) -> None:
    policy, reference = Policy(16, 7), Policy(16, 7, seed=1)
    settings = sampling(estimator=estimator, order="confidence", steps=4, trained=trained)
    segment = drawn(policy, settings, noise(keys(5), 16, settings.unmask))
    assert policy.calls == 4 + (estimator == "random_mask")
    policy.calls = 0
    scored(policy, segment, entropy=True, reference=reference)
    assert (policy.calls, reference.calls) == (passes, passes)


# -- every outcome of 4 positions, 3 codes, 3 steps ---------------------------------------------------
N, V, S = 4, 3, 3
COUNTS = [1, 1, 2]
HIDDEN = V
"""The state of a masked position on a canvas of the enumeration."""
CERTAIN = torch.tensor(1 - 2.0**-50, dtype=torch.float64)
"""The number whose Gumbel noise (34.7, against -3.5 of its opposite) puts a position before all others."""
REWARD = torch.randn(V**N, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
"""Of every picture, in the order of :func:`joint_index`."""


@dataclass(frozen=True)
class Episodes:
    """All of them: ``tokens, commit [E, N]``, their log-probabilities ``logp [E]`` (float64, differentiable),
    and the noise that leads the kernel there."""

    tokens: Tensor
    commit: Tensor
    logp: Tensor
    noise: Noise


def canvas_log_probabilities(policy: Policy, settings: Sampling) -> Tensor:
    """What each position draws on each canvas, ``[V + 1, V + 1, V + 1, V + 1, N, V]`` float64."""
    state = torch.cartesian_prod(*[torch.arange(V + 1)] * N)
    rows = torch.zeros(len(state), dtype=torch.long)
    states = policy.hidden(rows, settings.guidance)(state.clamp(max=V - 1), state == HIDDEN)
    given, *free = policy.head(states).double().split(len(state))
    mixed = settings.guidance * given + (1 - settings.guidance) * free[0] if free else given
    scaled = mixed / settings.temperature
    return (scaled - scaled.exp().sum(-1, keepdim=True).log()).view(*[V + 1] * N, N, V)


def every_episode(policy: Policy, settings: Sampling) -> Episodes:
    """Grow the tree of episodes: at each step every draw of the masked positions, then every pick."""
    table = canvas_log_probabilities(policy, settings)
    canvas, commit = torch.full((1, N), HIDDEN), torch.full((1, N), S)
    draw_noise, order_noise = torch.full((2, 1, S, N), 0.5, dtype=torch.float64)
    logp = torch.zeros(1, dtype=torch.float64)
    for step, count in enumerate(COUNTS):
        left = sum(COUNTS[step:])
        outcome, parent = torch.arange(V**left).repeat(len(canvas)), torch.arange(len(canvas))
        parent = parent.repeat_interleave(V**left)
        canvas, commit, logp = canvas[parent], commit[parent], logp[parent]
        draw_noise, order_noise = draw_noise[parent], order_noise[parent]
        masked = canvas == HIDDEN
        place = masked.cumsum(1) - 1  # a masked position is the how-manieth
        drawn = torch.where(masked, outcome[:, None] // V ** place.clamp(min=0) % V, 0)
        here = table[tuple(canvas.unbind(1))]
        confidence = here.gather(2, drawn[..., None]).squeeze(2)
        logp = logp + torch.where(masked, confidence, 0).sum(1)
        end = here.exp().cumsum(2).gather(2, drawn[..., None]).squeeze(2)
        draw_noise[:, step] = (end - confidence.exp() / 2).detach()  # the middle of the token's interval
        if count == left:
            commit = torch.where(masked, step, commit)
            canvas = torch.where(masked, drawn, canvas)
            continue
        picked = (place[None] == torch.arange(left)[:, None, None]) & masked  # [left, episodes, N]
        choice = pick_log_probabilities(confidence, masked, step, settings.unmask)
        kept, parent = torch.where((choice.isfinite() & picked).any(2))
        picked = picked[kept, parent]
        logp = logp[parent] + choice[parent][picked]
        commit = torch.where(picked, step, commit[parent])
        canvas = torch.where(picked, drawn[parent], canvas[parent])
        draw_noise, order_noise = draw_noise[parent], order_noise[parent]
        order_noise[:, step] = torch.where(picked, CERTAIN, 1 - CERTAIN)
    steps = torch.arange(S).expand(len(canvas), -1)
    shared = torch.ones_like(canvas, dtype=torch.bool)
    return Episodes(canvas, commit, logp, Noise(draw_noise, order_noise, steps, shared))


def pick_log_probabilities(confidence: Tensor, masked: Tensor, step: int, settings: Unmasking) -> Tensor:
    """Of committing each position next, ``[E, N]``: minus infinity where that cannot happen."""
    if settings.order == "random":
        return torch.where(masked, 1.0, 0.0).double().log() - masked.sum(1, keepdim=True).log()
    tau = settings.order_temperature * (S - 1 - step) / S
    value = torch.where(masked, confidence, -math.inf)
    if tau == 0:
        best = value == value.max(1, keepdim=True).values
        return torch.where(best, 0.0, -math.inf).double()
    return value / tau - (value / tau).logsumexp(1, keepdim=True)


@dataclass(frozen=True)
class Case:
    """A policy, all its episodes, their probabilities and rewards ``[E]``, and the gradient of the mean."""

    policy: Policy
    episodes: Episodes
    probability: Tensor
    reward: Tensor
    expected_reward: float
    gradient: Tensor


@cache
def enumerated(settings: Sampling, seed: int = 0) -> Case:
    policy = Policy(N, V, seed, torch.float64)
    found = every_episode(policy, settings)
    reward = REWARD[joint_index(found.tokens, V)]
    expected = (found.logp.exp() * reward).sum()
    gradient = flat_gradient(expected, policy)
    found = replace(found, logp=found.logp.detach())
    return Case(policy, found, found.logp.exp(), reward, float(expected.detach()), gradient)


def case_of(settings: Sampling) -> Case:
    """Estimators differ in what they record, not in what they draw."""
    return enumerated(replace(settings, unmask=replace(settings.unmask, estimator="exact")))


def flat_gradient(value: Tensor, policy: Policy) -> Tensor:
    weights = list(policy.parameters())
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, weights, retain_graph=True)])


def looked_up(policy: Policy, guidance: float) -> Hidden:
    """The policy's hidden states, computed once for each of the 256 canvases."""
    state = torch.cartesian_prod(*[torch.arange(V + 1)] * N)
    rows = torch.zeros(len(state), dtype=torch.long)
    table = policy.hidden(rows, guidance)(state.clamp(max=V - 1), state == HIDDEN)
    branches = table.flatten(1).split(len(state))

    def states(tokens: Tensor, masked: Tensor) -> Tensor:
        canvas = joint_index(torch.where(masked, HIDDEN, tokens), V + 1)
        return torch.cat([nn.functional.embedding(canvas, branch).view(-1, N, D) for branch in branches])

    return states


def led(settings: Sampling, which: Tensor | slice = slice(None)) -> MaskedImageSegment:
    """What the kernel records when the noise leads it into the episodes ``which``."""
    case = case_of(settings)
    hidden = looked_up(case.policy, settings.guidance)
    noise = Noise(*(x[which] for x in vars(case.episodes.noise).values()))
    found = unmask(hidden, case.policy.head, noise, settings)
    assert torch.equal(found.tokens, case.episodes.tokens[which])
    assert torch.equal(found.commit, case.episodes.commit[which])
    context = (Prompt.of("a picture"),) * len(found.tokens)
    return MaskedImageSegment(name="picture", context=context, sampling=settings, **vars(found))


def expected_gradient(case: Case, segment: MaskedImageSegment, weight: Tensor) -> Tensor:
    """The sum of ``weight [B] * grad log p``, with the log-probability that the kernel scores."""
    hidden = looked_up(case.policy, segment.sampling.guidance)
    found = score(segment, hidden, case.policy.head, vocabulary=V).logp
    return flat_gradient((weight * found.double().sum(1)).sum(), case.policy)


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


def check_probabilities(segment: MaskedImageSegment) -> None:
    case, logp = case_of(segment.sampling), segment.logp.double().sum(1)
    if segment.sampling.unmask.order == "random":
        logp = logp - math.log(4 * 3)  # the first two picks
    assert abs(float(logp.exp().sum()) - 1) < 1e-5
    torch.testing.assert_close(logp, case.episodes.logp, atol=1e-4, rtol=0)


def check_gradient(segment: MaskedImageSegment) -> None:
    case = case_of(segment.sampling)
    found = expected_gradient(case, segment, case.probability * case.reward)
    assert relative_error(found, case.gradient) < 1e-5


WITH_NOISE = sampling(0.8, estimator="exact", order="confidence", steps=S)
AT_RANDOM = sampling(0.8, estimator="exact", order="random", steps=S)
EXACT = {
    "confidence": WITH_NOISE,
    "confidence, without noise": sampling(
        0.8, estimator="exact", order="confidence", steps=S, order_temperature=0.0
    ),
    "confidence, guided": sampling(
        1.3, 2.0, estimator="exact", order="confidence", steps=S, order_temperature=0.5
    ),
    "random": AT_RANDOM,
}


@pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT.keys())
def test_probabilities_of_all_episodes_are_right_and_sum_to_one(settings: Sampling) -> None:
    without_noise = settings.unmask.order == "confidence" and settings.unmask.order_temperature == 0
    assert len(case_of(settings).episodes.tokens) == (3**9 if without_noise else 3**9 * 4 * 3)
    check_probabilities(led(settings))


@pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT.keys())
def test_exact_gives_the_true_gradient_of_the_expected_reward(settings: Sampling) -> None:
    check_gradient(led(settings))


def test_trajectory_gives_the_true_gradient_in_random_order() -> None:
    check_gradient(led(replace(AT_RANDOM, unmask=replace(AT_RANDOM.unmask, estimator="trajectory"))))


def test_the_true_gradient_is_that_of_finite_differences() -> None:
    case, step = case_of(WITH_NOISE), 1e-4
    values = []
    for sign in (1, -1):
        moved = Policy(N, V, 0, torch.float64)
        with torch.no_grad():
            moved.out[1, 2] += sign * step
        values.append(float((every_episode(moved, WITH_NOISE).logp.exp() * case.reward).sum().detach()))
    place = sum(w.numel() for name, w in case.policy.named_parameters() if name != "out") + D + 2
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(case.gradient[place]), rel=1e-5)


# -- what breaks it ----------------------------------------------------------------------------------
def ranks_reversed(confidence: Tensor, scale: Tensor, rank: Tensor, candidate: Tensor) -> Tensor:
    return PICKS(confidence, scale, torch.where(candidate, 2 * N - rank, rank), candidate)


def scale_one_step_late(unmask: Unmasking, step: Tensor) -> Tensor:
    return unmask.order_temperature * (1 - step.double() / unmask.steps)


def without_order(commit: Tensor, noise: Noise, settings: Unmasking) -> Tensor:
    mask = ACTION_MASK(commit, noise, settings)
    mask[:, S * N :] = False
    return mask


def without_one_commit(commit: Tensor, noise: Noise, settings: Unmasking) -> Tensor:
    """The second step's commit is nobody's action."""
    mask = ACTION_MASK(commit, noise, settings)
    forgotten = commit == 1
    if settings.estimator == "exact":
        mask[:, N : 2 * N] &= ~forgotten
    else:
        mask &= ~forgotten
    return mask


def without_thrown_away_draws(commit: Tensor, noise: Noise, settings: Unmasking) -> Tensor:
    mask = ACTION_MASK(commit, noise, settings)
    mask[:, : S * N] &= (commit[:, None] == torch.arange(S)[:, None]).flatten(1)
    return mask


PICKS, ACTION_MASK = kernel._picks, kernel._action_mask
BROKEN: list[tuple[str, Callable[..., Tensor]]] = [
    ("_picks", ranks_reversed),
    ("order_scale", scale_one_step_late),
    ("_action_mask", without_order),
    ("_action_mask", without_one_commit),
    ("_action_mask", without_thrown_away_draws),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=[broken.__name__ for _, broken in BROKEN])
def test_enumeration_sees_a_broken_kernel(
    name: str, broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, name, broken)
    segment = led(WITH_NOISE)
    for check in (check_probabilities, check_gradient):
        with pytest.raises(AssertionError):
            check(segment)


def test_enumeration_sees_a_missing_commit_of_the_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_action_mask", without_one_commit)
    segment = led(replace(AT_RANDOM, unmask=replace(AT_RANDOM.unmask, estimator="trajectory")))
    with pytest.raises(AssertionError):
        check_gradient(segment)


# -- what the cheap estimators leave out --------------------------------------------------------------
def bias(settings: Sampling) -> tuple[float, float]:
    """Relative error and cosine of the expected gradient, advantages being reward minus expected reward."""
    case, masks = case_of(settings), settings.unmask.estimator == "random_mask"
    # Few episodes differ in what is scored: add up the weights of those that do not.
    tokens, commit = case.episodes.tokens, case.episodes.commit
    number, inverse = joint_index(tokens if masks else torch.cat([tokens, commit], 1), 3).unique(
        return_inverse=True
    )
    example = torch.zeros_like(number).scatter(0, inverse, torch.arange(len(inverse)))
    advantage = case.probability * (case.reward - case.expected_reward)
    weight = torch.zeros(len(number), dtype=torch.float64).index_add(0, inverse, advantage)
    if masks:
        segment = led(settings, example.repeat_interleave(15))
        segment = replace(segment, mask=all_masks()[1:].repeat(len(example), 1))
        weight = (weight[:, None] * mask_probabilities()[1:].double()).flatten()
    else:
        segment = led(settings, example)
    found = expected_gradient(case, segment, weight)
    cosine = torch.cosine_similarity(found, case.gradient, dim=0)
    return relative_error(found, case.gradient), float(cosine)


# order, order_temperature -> relative error and cosine of "trajectory", then of "random_mask"
BIAS = {
    ("random", 1.0): (0.0, 1.0, 0.46, 0.9),
    ("confidence", 4.0): (0.14, 1.0, 0.52, 0.88),
    ("confidence", 1.0): (0.35, 0.97, 0.69, 0.79),
    ("confidence", 0.5): (0.53, 0.92, 0.79, 0.71),
    ("confidence", 0.0): (0.29, 0.97, 0.61, 0.84),
}


@pytest.mark.parametrize(("order", "temperature"), BIAS)
def test_bias_is_what_the_docstring_says(order: str, temperature: float) -> None:
    found: list[float] = []
    for estimator in ("trajectory", "random_mask"):
        found += bias(sampling(0.8, estimator=estimator, order=order, order_temperature=temperature, steps=S))
    assert found == pytest.approx(BIAS[order, temperature], abs=0.02)
    row = "{}  {:.2f} {:.2f}  {:.2f} {:.2f}".format(order, *BIAS[order, temperature])
    if order == "confidence":
        row = row.replace("confidence", f"confidence, tau {temperature}")
    table = [" ".join(line.split()) for line in (kernel.__doc__ or "").splitlines()]
    assert " ".join(row.split()) in table


# -- real noise --------------------------------------------------------------------------------------
def frequencies(settings: Sampling) -> tuple[float, float]:
    """p-values of 20,000 pictures, and of (picture, steps of commits), under the enumerated probabilities."""
    case, count = case_of(settings), 20_000
    hidden = looked_up(case.policy, settings.guidance)
    found = unmask(hidden, case.policy.head, noise(keys(count), N, settings.unmask), settings)
    values = []
    for drawn, every in (
        (found.tokens, case.episodes.tokens),
        (
            torch.cat([found.tokens, found.commit], 1),
            torch.cat([case.episodes.tokens, case.episodes.commit], 1),
        ),
    ):
        cells = 3 ** drawn.shape[1]
        chance = torch.zeros(cells, dtype=torch.float64)
        chance.index_add_(0, joint_index(every, 3), case.probability)
        values.append(chi_square(joint_index(drawn, 3).bincount(minlength=cells), chance))
    return values[0], values[1]


@pytest.mark.parametrize("settings", [WITH_NOISE, AT_RANDOM], ids=ORDERS[::-1])
def test_20000_pictures_and_their_orders_are_distributed_as_enumerated(settings: Sampling) -> None:
    assert min(frequencies(settings)) > 1e-3


@pytest.mark.parametrize("settings", [WITH_NOISE, AT_RANDOM], ids=ORDERS[::-1])
def test_a_temperature_lost_in_sampling_and_scoring_alike_is_seen(
    settings: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    case_of(settings)
    right = token_kernel.log_policy
    monkeypatch.setattr(
        token_kernel, "log_policy", lambda logits, sampling: right(logits, replace(sampling, temperature=1.0))
    )
    policy = Policy(16, 7)
    segment = drawn(policy, settings, noise(keys(5), 16, settings.unmask))
    torch.testing.assert_close(scored(policy, segment).logp, segment.logp, atol=1e-5, rtol=0)
    assert max(frequencies(settings)) < 1e-9


def test_an_order_that_ignores_confidence_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pick = kernel._pick
    monkeypatch.setattr(kernel, "_pick", lambda confidence, *rest: pick(torch.zeros_like(confidence), *rest))
    assert max(frequencies(WITH_NOISE)) < 1e-9


# -- entropy, KL and gradients -----------------------------------------------------------------------
def by_hand(
    policy: Policy, other: Policy, segment: MaskedImageSegment
) -> Iterator[tuple[float, float, float]]:
    """Log-probability, entropy and KL of each action under the mask: loops over all alternatives."""
    temperature, guidance = segment.sampling.temperature, segment.sampling.guidance
    settings, positions = segment.sampling.unmask, range(segment.tokens.shape[1])

    def table(model: Policy, row: int, masked: Tensor) -> list[list[float]]:
        states = model.hidden(torch.tensor([row]), guidance)(segment.tokens[row : row + 1], masked[None])
        given, free = model.head(states).double().chunk(2)
        return log_probabilities(free + guidance * (given - free), temperature)[0].tolist()

    def of(chosen: int, p: list[float], q: list[float]) -> tuple[float, float, float]:
        entropy = -sum(math.exp(a) * a for a in p)
        return p[chosen], entropy, sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))

    def normalised(values: list[float]) -> list[float]:
        total = math.log(sum(math.exp(value) for value in values))
        return [value - total for value in values]

    for row in range(len(segment)):
        commit, rank = segment.commit[row].tolist(), segment.rank[row].tolist()
        if settings.estimator != "exact":
            for n in positions:
                if not segment.mask[row, n]:
                    continue
                masked = (
                    segment.mask[row]
                    if settings.estimator == "random_mask"
                    else segment.commit[row] >= commit[n]
                )
                p, q = (table(model, row, masked)[n] for model in (policy, other))
                yield of(int(segment.tokens[row, n]), p, q)
            continue
        draws = segment.draws[row].tolist()
        tables = [
            [table(model, row, segment.commit[row] >= step) for model in (policy, other)]
            for step in range(settings.steps)
        ]
        for step in segment.trained[row].tolist():
            for n in positions:
                if commit[n] >= step:
                    yield of(draws[step][n], tables[step][0][n], tables[step][1][n])
        for n in positions:
            step = commit[n]
            tau = settings.order_temperature * (1 - (step + 1) / settings.steps)
            if settings.order == "random" or tau == 0 or step not in segment.trained[row].tolist():
                continue
            rest = [m for m in positions if rank[m] >= rank[n]]
            p, q = (normalised([one[m][draws[step][m]] / tau for m in rest]) for one in tables[step])
            yield of(rest.index(n), p, q)


@pytest.mark.parametrize("trained", [0, 2])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_entropy_and_kl_are_sums_over_all_alternatives(estimator: str, order: str, trained: int) -> None:
    policy, other = Policy(7, 4), Policy(7, 4, seed=1)
    settings = sampling(0.8, 3.0, estimator=estimator, order=order, steps=3, trained=trained)
    segment = drawn(policy, settings, noise(keys(3), 7, settings.unmask))
    found = scored(policy, segment, entropy=True, reference=other)
    expected = torch.tensor(list(by_hand(policy, other, segment))).unbind(1)
    for value, truth in zip((found.logp, found.entropy, found.kl), expected, strict=True):
        assert value is not None and not value[~segment.mask].any()
        torch.testing.assert_close(value[segment.mask], truth, atol=2e-5, rtol=1e-5)
    assert float(expected[2].min()) >= 0 and float(expected[2].mean()) > 0.1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_to_itself_is_zero(estimator: str, order: str) -> None:
    policy = Policy(16, 7)
    settings = sampling(0.8, 3.0, estimator=estimator, order=order, steps=4)
    segment = drawn(policy, settings, noise(keys(5), 16, settings.unmask))
    found = scored(policy, segment, reference=policy)
    assert found.entropy is None and found.kl is not None
    assert bool((found.kl.abs() < 1e-6).all())


@pytest.mark.parametrize("order_temperature", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_gradients_are_finite_at_every_setting(steps: int, order_temperature: float) -> None:
    for estimator in ESTIMATORS:
        for order in ORDERS:
            policy, other = Policy(16, 7), Policy(16, 7, seed=1)
            settings = sampling(
                0.1, estimator=estimator, order=order, order_temperature=order_temperature, steps=steps
            )
            segment = drawn(policy, settings, noise(keys(5), 16, settings.unmask))
            found = scored(policy, segment, entropy=True, reference=other)
            for value in (found.logp, found.entropy, found.kl):
                assert value is not None and bool(value.isfinite().all())
                gradient = flat_gradient(value.sum(), policy)
                assert bool(gradient.isfinite().all()) and bool(gradient.any())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_are_those_of_finite_differences(estimator: str, order: str) -> None:
    policy, other = (Policy(7, 4, seed, torch.float64) for seed in (0, 1))
    settings = sampling(0.8, 3.0, estimator=estimator, order=order, steps=3)
    segment = drawn(policy, settings, noise(keys(3), 7, settings.unmask))
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(w.shape, generator=generator).double() for w in policy.parameters()]
    weight = torch.randn(3, *segment.mask.shape, generator=generator).double()

    def value() -> Tensor:
        found = scored(policy, segment, entropy=True, reference=other)
        assert found.entropy is not None and found.kl is not None
        return (torch.stack([found.logp, found.entropy, found.kl]).double() * weight).sum()

    slope = flat_gradient(value(), policy) @ torch.cat([part.flatten() for part in direction])
    ends = []
    with torch.no_grad():
        for move in (1e-3, -2e-3):
            for weights, part in zip(policy.parameters(), direction, strict=True):
                weights += move * part
            ends.append(float(value()))
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float(slope), rel=2e-3, abs=5e-3)
