"""The objectives against formulas derived a second time, in plain Python or by enumeration."""

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.learn.policy_loss import (
    Denominators,
    PolicyLossConfig,
    PolicyMetrics,
    PolicyTerms,
    aggregate,
    policy_terms,
    total_loss,
)
from triptych.trajectory import Scores

B, A = 6, 5
SCORES = {field.name for field in fields(Scores)}
NO_CLIP = PolicyLossConfig(objective="no_clip")


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Rows of lengths 5, 4, 1, 0, 3, 5 in float64, the fifth unscored, ratios well outside the bounds."""
    random = torch.Generator().manual_seed(seed)
    normal = torch.randn(4, B, A, generator=random, dtype=torch.float64)
    old = -1 - normal[0].abs()
    return {
        "logp": old + 0.3 * normal[1],
        "old_logp": old,
        "reference_logp": old + 0.3 * normal[2],
        "entropy": normal[3].abs(),
        "old_kl": 0.1 * normal[1].square(),
        "std": 0.5 + 0.1 * normal[2].abs(),
        "step_size": 0.1 + 0.2 * normal[3].abs(),
        "advantages": torch.tensor([1.0, -2.0, 0.5, 3.0, 9.0, -0.7], dtype=torch.float64),
        "mask": torch.arange(A) < torch.tensor([5, 4, 1, 0, 3, 5])[:, None],
        "scored": torch.tensor([True, True, True, True, False, True]),
    }


def terms_of(data: dict[str, Tensor], config: PolicyLossConfig) -> PolicyTerms:
    scores = Scores(**{name: value for name, value in data.items() if name in SCORES})
    rest = {name: value for name, value in data.items() if name not in SCORES}
    return policy_terms(scores, **rest, config=config)  # type: ignore[arg-type]


def loss_of(data: dict[str, Tensor], config: PolicyLossConfig) -> Tensor:
    terms = terms_of(data, config)
    return total_loss(terms, config, Denominators.count(terms.policy_mask, terms.mask, config))


def expected_loss(data: dict[str, Tensor], c: PolicyLossConfig) -> float:
    """The same objective with loops over Python numbers."""
    policy, regulariser = [], []
    for b in range(B):
        steps = [a for a in range(A) if data["mask"][b, a]]
        value = {k: v[b].tolist() for k, v in data.items()}
        diffs = [value["logp"][a] - value["old_logp"][a] for a in steps]
        if c.ratio == "sequence" and steps:
            diffs = [sum(diffs) / len(steps)] * len(steps)
        adv = float(data["advantages"][b])
        row = []
        for a, diff in zip(steps, diffs, strict=True):
            weight = 1.0
            if c.ratio == "guard":
                diff, weight = value["std"][a] * (diff + value["old_kl"][a]), 1 / value["step_size"][a]
            r = math.exp(diff)
            inside = min(max(r, 1 - c.clip_low), 1 + c.clip_high)
            losses = {"clip": -min(r * adv, inside * adv), "no_clip": -r * adv, "dppo": -r * adv}
            going = (adv > 0 and r > 1) or (adv < 0 and r < 1)
            if value["old_kl"][a] >= c.dppo_threshold and going:
                losses["dppo"] = 0.0
            row.append(weight * losses[c.objective])
        if data["scored"][b]:
            policy.append(row)
        rs = [value["reference_logp"][a] - value["logp"][a] for a in steps]
        divergence = {"k2": [r * r / 2 for r in rs], "k3": [math.exp(r) - r - 1 for r in rs]}[c.kl]
        regulariser.append(
            [
                c.kl_coef * k - c.entropy_coef * value["entropy"][a]
                for k, a in zip(divergence, steps, strict=True)
            ]
        )
    return mean(policy, c) + mean(regulariser, c)


def mean(rows: list[list[float]], c: PolicyLossConfig) -> float:
    rows = [row for row in rows if row]
    if c.aggregation == "sequence":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    count = sum(map(len, rows)) if c.aggregation == "token" else len(rows) * (c.constant_length or 0)
    return sum(map(sum, rows)) / count


CONFIGS = [
    PolicyLossConfig(kl_coef=0.1, entropy_coef=0.05),
    PolicyLossConfig(objective="no_clip", kl_coef=0.3, kl="k2"),
    PolicyLossConfig(clip_low=0.1, clip_high=0.35),
    PolicyLossConfig(clip_low=0.3, clip_high=0.01, aggregation="sequence", kl_coef=0.2),
    PolicyLossConfig(ratio="sequence", aggregation="sequence", clip_low=0.02, clip_high=0.05),
    PolicyLossConfig(ratio="sequence", objective="no_clip", entropy_coef=0.2),
    PolicyLossConfig(aggregation="constant", constant_length=32, kl_coef=0.1),
    PolicyLossConfig(ratio="guard", clip_low=0.05, clip_high=0.1, kl_coef=0.1),
    PolicyLossConfig(objective="dppo", dppo_threshold=0.02),
    PolicyLossConfig(objective="dppo", ratio="guard", dppo_threshold=0.05, aggregation="sequence"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_loss_is_the_formula(config: PolicyLossConfig) -> None:
    assert float(loss_of(batch(), config)) == pytest.approx(expected_loss(batch(), config), rel=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_gradient_is_that_of_the_formula(config: PolicyLossConfig) -> None:
    data = batch(3)
    logp = data["logp"].clone().requires_grad_()
    loss_of(data | {"logp": logp}, config).backward()
    numeric, h = torch.zeros(B, A, dtype=torch.float64), 1e-6
    for b in range(B):
        for a in range(A):
            moved = [data["logp"].clone() for _ in range(2)]
            moved[0][b, a] += h
            moved[1][b, a] -= h
            up, down = (expected_loss(data | {"logp": m}, config) for m in moved)
            numeric[b, a] = (up - down) / (2 * h)
    torch.testing.assert_close(logp.grad, numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("padding", [0, 3])
def test_gradient_does_not_change_with_the_split_or_the_padding(
    config: PolicyLossConfig, padding: int
) -> None:
    def gradient(split: list[list[int]], wider: int) -> tuple[Tensor, PolicyMetrics]:
        weights = torch.linspace(-1, 1, B * A, dtype=torch.float64).view(B, A).requires_grad_()
        data = {k: pad(v, wider) for k, v in batch(1).items()}
        parts = []
        for rows in split:
            part = {k: v[rows] for k, v in data.items()}
            part["logp"] = part["logp"] + pad(weights.sin(), wider)[rows]
            parts.append(terms_of(part, config))
        counts = [Denominators.count(t.policy_mask, t.mask, config) for t in parts]
        whole = sum(counts[1:], counts[0])
        for t in parts:
            total_loss(t, config, whole).backward()
        assert weights.grad is not None
        return weights.grad, sum((t.metrics for t in parts), PolicyMetrics())

    def pad(x: Tensor, wider: int) -> Tensor:
        return torch.nn.functional.pad(x, (0, wider)) if x.ndim == 2 else x

    one, metrics = gradient([list(range(B))], 0)
    for split in ([[0, 1], [2, 3, 4], [5]], [[3], [5, 0], [1], [4], [2]]):
        other, other_metrics = gradient(split, padding)
        assert float((one - other).norm() / one.norm()) <= 1e-10
        assert other_metrics.means() == pytest.approx(metrics.means())


# -- KL as a loss: enumeration over a categorical with six outcomes ----------------------------------


def categorical(kl: str) -> tuple[Tensor, Tensor, Tensor]:
    """Expected gradient of the KL loss under the policy, and the gradients of both divergences."""
    random = torch.Generator().manual_seed(4)
    logits = torch.randn(6, generator=random, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, generator=random, dtype=torch.float64).log_softmax(0)
    lp = logits.log_softmax(0)
    scores = Scores(lp[:, None], reference_logp=reference[:, None])
    ones = torch.ones(6, 1, dtype=torch.bool)
    config = PolicyLossConfig(kl_coef=1.0, kl=kl)  # type: ignore[arg-type]
    terms = policy_terms(scores, lp.detach()[:, None], torch.zeros(6), ones, config)
    estimate = (lp.detach().exp() * terms.kl[:, 0]).sum()
    to_reference = (lp.exp() * (lp - reference)).sum()
    from_reference = (reference.exp() * (reference - lp)).sum()
    wanted = (estimate, to_reference, from_reference)
    return tuple(torch.autograd.grad(w, logits, retain_graph=True)[0] for w in wanted)  # type: ignore[return-value]


def test_k3_has_the_gradient_of_kl_from_the_reference() -> None:
    found, to_reference, from_reference = categorical("k3")
    torch.testing.assert_close(found, from_reference)
    assert not torch.allclose(found, to_reference, rtol=0.1)


def test_k2_has_the_gradient_of_kl_to_the_reference() -> None:
    found, to_reference, from_reference = categorical("k2")
    torch.testing.assert_close(found, to_reference)
    assert not torch.allclose(found, from_reference, rtol=0.1)


def test_k1_has_no_expected_gradient_and_warns() -> None:
    with pytest.warns(UserWarning, match="expected gradient of zero"):
        found, _, _ = categorical("k1")
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_exact_kl_and_what_an_objective_needs() -> None:
    data, config = batch(), PolicyLossConfig(kl_coef=0.5, kl="exact", entropy_coef=0.1)
    assert config.needs == {"logp", "kl", "entropy"} and config.needs_reference
    estimated = PolicyLossConfig(kl_coef=0.5)
    assert estimated.needs == {"logp", "reference_logp"} and estimated.needs_reference
    assert NO_CLIP.needs == {"logp"} and not NO_CLIP.needs_reference
    given = torch.full((B, A), 0.25, dtype=torch.float64)
    difference = loss_of(data | {"kl": given}, config) - loss_of(data, replace(config, kl_coef=0.0))
    assert float(difference) == pytest.approx(0.5 * 0.25)
    guard = PolicyLossConfig(ratio="guard")
    assert guard.needs == {"logp", "old_kl", "std", "step_size"}
    assert PolicyLossConfig(objective="dppo").needs == {"logp", "old_kl"}
    for missing in ("old_kl", "std", "step_size"):
        with pytest.raises(ValueError, match=missing):
            terms_of({k: v for k, v in data.items() if k != missing}, guard)
    for missing in ("kl", "entropy"):
        with pytest.raises(ValueError, match=missing):
            terms_of({k: v for k, v in (data | {"kl": given}).items() if k != missing}, config)
    with pytest.raises(ValueError, match="reference_logp"):
        terms_of({k: v for k, v in data.items() if k != "reference_logp"}, PolicyLossConfig(kl_coef=1.0))


# -- ratios ------------------------------------------------------------------------------------------


def test_ratio_is_one_before_and_leaves_one_after_an_update() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    mask = torch.ones(4, 1, dtype=torch.bool)

    def logp() -> Tensor:
        return logits.log_softmax(-1)[:, :1]

    old = logp().detach()
    config = PolicyLossConfig()
    terms = policy_terms(Scores(logp()), old, torch.ones(4), mask, config)
    assert terms.metrics.ratio_error == 0 and terms.metrics.clipped == 0
    total_loss(terms, config, Denominators.count(mask, mask, config)).backward()
    with torch.no_grad():
        logits -= 4.0 * logits.grad  # type: ignore[operator]
    after = policy_terms(Scores(logp()), old, torch.ones(4), mask, config)
    ratio = float(logp()[0, 0].detach().exp() * 3)
    assert ratio > 1.2
    assert after.metrics.ratio_error == pytest.approx(ratio - 1, rel=1e-5)
    assert after.metrics.means()["clip_fraction"] == 1.0
    assert after.policy[0, 0].item() == pytest.approx(-1.2)


def test_clipped_counts_only_what_lost_its_gradient() -> None:
    logp = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]]).log().T
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    mask = torch.ones(5, 1, dtype=torch.bool)
    leaf = logp.clone().requires_grad_()
    terms = policy_terms(Scores(leaf), torch.zeros(5, 1), advantages, mask, PolicyLossConfig())
    terms.policy.sum().backward()
    assert terms.metrics.clipped == 2
    assert leaf.grad is not None and (leaf.grad == 0).flatten().tolist() == [True, False, False, True, False]


def test_dppo_drops_what_has_gone_far_and_goes_on_and_nothing_else() -> None:
    """Ratios of 1.1 and 0.9, near and far from the policy that acted; credit up, down, and none."""
    config = PolicyLossConfig(objective="dppo", dppo_threshold=0.01)
    log_ratio = torch.tensor([[1.1, 0.9, 1.1, 0.9]]).log().repeat(3, 1).requires_grad_()
    far = torch.tensor([[0.0099, 0.0099, 0.01, 0.01]]).repeat(3, 1)
    mask = torch.ones(3, 4, dtype=torch.bool)
    advantages = torch.tensor([1.0, -1.0, 0.0])
    terms = policy_terms(Scores(log_ratio, old_kl=far), torch.zeros(3, 4), advantages, mask, config)
    terms.policy.sum().backward()
    assert log_ratio.grad is not None
    assert (log_ratio.grad[:2] == 0).tolist() == [[False, False, True, False], [False, False, False, True]]
    assert terms.metrics.clipped == 2 and terms.policy_mask.all(), "they count in the denominator"


def test_the_guards_gradient_has_the_divergences_part() -> None:
    """The log-ratio's curvature and the divergence's cancel: what stays is linear in the mean."""
    mean = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    std, there = torch.tensor([[0.5]], dtype=torch.float64), 0.7
    logp = -((there - mean) ** 2) / (2 * std**2)
    scores = Scores(logp, old_kl=mean**2 / (2 * std**2), std=std, step_size=torch.tensor([[0.1]]))
    old = torch.full((1, 1), -(there**2) / (2 * 0.25), dtype=torch.float64)
    config = PolicyLossConfig(objective="no_clip", ratio="guard")
    mask = torch.ones(1, 1, dtype=torch.bool)
    terms = policy_terms(scores, old, torch.ones(1), mask, config)
    terms.policy.sum().backward()
    ratio = math.exp(there * 0.3 / 0.5)  # s (x' - mu_old) (mu - mu_old) / s^2
    assert terms.policy.item() == pytest.approx(-ratio / 0.1)
    assert mean.grad is not None and mean.grad.item() == pytest.approx(-ratio / 0.1 * there / 0.5)


def test_huge_log_ratios_stay_finite() -> None:
    logp = torch.tensor([[-500.0, 500.0]], requires_grad=True)
    config = PolicyLossConfig(objective="no_clip", kl_coef=1.0)
    scores = Scores(logp, reference_logp=-logp.detach())
    mask = torch.ones(1, 2, dtype=torch.bool)
    terms = policy_terms(scores, torch.zeros(1, 2), torch.ones(1), mask, config)
    total_loss(terms, config, Denominators.count(mask, mask, config)).backward()
    assert terms.policy.tolist() == [pytest.approx([-math.exp(-20), -math.exp(20)])]
    assert logp.grad is not None and logp.grad.isfinite().all()


# -- masks -------------------------------------------------------------------------------------------


def test_a_masked_out_micro_batch_gives_zero_and_runs_backward() -> None:
    for config in CONFIGS:
        data = batch()
        logp = data["logp"].clone().requires_grad_()
        empty = data | {"logp": logp, "mask": torch.zeros(B, A, dtype=torch.bool)}
        loss = loss_of(empty, config)
        loss.backward()
        assert loss.item() == 0
        assert logp.grad is not None and (logp.grad == 0).all()
        assert all(math.isfinite(value) for value in terms_of(empty, config).metrics.means().values())


def test_non_finite_actions_are_dropped_from_both_sides_and_counted() -> None:
    config = PolicyLossConfig(kl_coef=0.1, entropy_coef=0.1)
    clean, broken = batch(), batch()
    places = {"logp": (0, 1), "old_logp": (1, 0), "reference_logp": (5, 2), "entropy": (5, 4), "std": (4, 0)}
    for name, place in places.items():
        broken[name][place] = math.nan if name != "old_logp" else -math.inf
        clean["mask"][place] = False
    broken["logp"][2, 4] = math.nan  # padding: not an action, so not counted
    leaf = broken["logp"].clone().requires_grad_()
    loss = loss_of(broken | {"logp": leaf}, config)
    loss.backward()
    assert terms_of(broken, config).metrics.non_finite == 5
    assert loss.item() == pytest.approx(loss_of(clean, config).item(), rel=1e-12)
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert all(leaf.grad[place] == 0 for place in places.values())


def test_unscored_rows_keep_kl_but_lose_the_policy_term() -> None:
    config = PolicyLossConfig(kl_coef=0.1)
    data = batch()
    data["advantages"][4] = math.nan  # what an unscored row holds must not matter
    logp = data["logp"].clone().requires_grad_()
    terms = terms_of(data | {"logp": logp}, config)
    assert terms.metrics.actions == 15 and terms.metrics.kept == 18
    counts = Denominators.count(terms.policy_mask, terms.mask, config)
    assert (float(counts.policy), float(counts.regulariser)) == (15, 18)
    total_loss(terms, config, counts).backward()
    r = (data["reference_logp"] - data["logp"])[4, :3]
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad[4, :3], 0.1 * (1 - r.exp()) / 18)


def test_aggregate_by_a_global_denominator() -> None:
    values, mask = torch.tensor([[2.0, 4.0], [6.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    assert aggregate(values, mask, "token", 24.0).item() == 0.5
    assert aggregate(values, mask, "sequence", torch.tensor(4.0)).item() == (3 + 6) / 4
    assert aggregate(values, mask, "constant", 100).item() == pytest.approx(0.12)


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(UserError, match="set both or neither"):
        PolicyLossConfig(aggregation="constant")
    with pytest.raises(UserError, match="set both or neither"):
        PolicyLossConfig(constant_length=10)
    with pytest.raises(UserError, match=r"dppo_threshold must be positive, got 0\.0"):
        PolicyLossConfig(objective="dppo", dppo_threshold=0.0)
    with pytest.raises(UserError, match="clip_low"):
        PolicyLossConfig(clip_low=1.5)
