"""DiffusionNFT against a computation by hand, and its gradient where the policy has not moved yet."""

import pytest
import torch
from torch import Tensor

from triptych.errors import UserError
from triptych.learn.diffusion_nft import DiffusionNFTConfig, contrast, nft_loss, optimality

B, D = 5, 6
CONFIGS = [DiffusionNFTConfig(), DiffusionNFTConfig(mix=0.1), DiffusionNFTConfig(mix=0.37, clip=1.3)]


def batch(seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    clean, eps, velocity, old = torch.randn(4, B, 3, 2, generator=random)
    sigma = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.01])
    level = sigma[:, None, None]
    return {
        "velocity": velocity,
        "old": old,
        "noised": (1 - level) * clean + level * eps,
        "sigma": sigma,
        "clean": clean,
        "advantages": torch.tensor([0.7, -0.3, 9.0, -9.0, 0.0]),
    }


def expected(data: dict[str, Tensor], config: DiffusionNFTConfig) -> list[float]:
    """The same with loops over Python numbers, as the paper writes the velocities."""
    b, c, losses = config.mix, config.clip, []
    for row in range(B):
        v, old, x, clean = (data[k][row].flatten().tolist() for k in ("velocity", "old", "noised", "clean"))
        t, advantage = float(data["sigma"][row]), float(data["advantages"][row])
        q = min(max(0.5 + min(max(advantage, -c), c) / (2 * c), 0), 1)
        total = 0.0
        for share, near, far in ((q, b, 1 - b), (1 - q, -b, 1 + b)):
            off = [x[i] - t * (near * v[i] + far * old[i]) - clean[i] for i in range(D)]
            total += share * (sum(o * o for o in off) / D) / max(sum(map(abs, off)) / D, 1e-5)
        losses.append(total * c / b)
    return losses


@pytest.mark.parametrize("config", CONFIGS)
def test_loss_is_the_formula(config: DiffusionNFTConfig) -> None:
    assert nft_loss(**batch(), config=config).tolist() == pytest.approx(expected(batch(), config), rel=1e-4)


def test_a_policy_that_has_not_moved_and_no_advantage_give_a_gradient_of_exactly_zero() -> None:
    for config in CONFIGS:
        for seed in range(5):
            data = batch(seed)
            velocity = data["old"].clone().requires_grad_()
            given = data | {"velocity": velocity, "advantages": torch.zeros(B)}
            nft_loss(**given, config=config).sum().backward()
            assert velocity.grad is not None and not velocity.grad.any()
            assert float(nft_loss(**given, config=config).detach().min()) > 0, "the loss itself is not zero"


@pytest.mark.parametrize("config", CONFIGS)
def test_at_first_the_gradient_is_the_advantage_times_that_of_regression(config: DiffusionNFTConfig) -> None:
    """Whatever b and c: this is what the scale c / b is for. The advantage is bounded by c."""
    data = batch()
    velocity = data["old"].clone().requires_grad_()
    nft_loss(**data | {"velocity": velocity}, config=config).sum().backward()
    off = data["noised"] - data["sigma"][:, None, None] * data["old"] - data["clean"]
    regression = -2 / D * data["sigma"][:, None, None] * off / off.abs().mean((1, 2), keepdim=True)
    advantages = data["advantages"].clamp(-config.clip, config.clip)[:, None, None]
    torch.testing.assert_close(velocity.grad, advantages * regression, rtol=1e-4, atol=1e-6)


def test_the_normaliser_passes_no_gradient_and_has_a_floor() -> None:
    data = batch() | {"advantages": torch.full((B,), 9.0)}  # q = 1: v+ alone
    exact = (data["noised"] - data["clean"]) / data["sigma"][:, None, None]
    velocity = exact.clone().requires_grad_()
    loss = nft_loss(**data | {"velocity": velocity}, config=DiffusionNFTConfig())
    loss.sum().backward()
    assert velocity.grad is not None and velocity.grad.isfinite().all()
    assert float(loss.detach().max()) < 1e-5
    velocity = data["velocity"].clone().requires_grad_()
    nft_loss(**data | {"velocity": velocity}, config=DiffusionNFTConfig(clip=2.0)).sum().backward()
    off = data["noised"] - data["sigma"][:, None, None] * data["velocity"] - data["clean"]
    plain = -2 / D * data["sigma"][:, None, None] * off / off.abs().mean((1, 2), keepdim=True)
    torch.testing.assert_close(velocity.grad, 2.0 * plain, rtol=1e-4, atol=1e-6)


def test_q_is_a_probability_and_mixtures_are_those_of_the_paper() -> None:
    advantages = torch.tensor([-7.0, -5.0, -2.5, 0.0, 2.5, 5.0, 7.0])
    assert optimality(advantages, 5.0).tolist() == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    data = batch()
    v, old = data["velocity"], data["old"]
    towards, away = contrast(v, old, 0.3)
    torch.testing.assert_close(towards, 0.3 * v + 0.7 * old)
    torch.testing.assert_close(away, 1.3 * old - 0.3 * v)


def test_the_policy_that_drew_gets_no_gradient_and_arithmetic_is_fp32() -> None:
    data = batch()
    old = data["old"].clone().requires_grad_()
    rough = {"velocity": data["velocity"].bfloat16().requires_grad_(), "old": old}
    loss = nft_loss(**data | rough, config=DiffusionNFTConfig())
    loss.sum().backward()
    assert loss.dtype == torch.float32 and old.grad is None and rough["velocity"].grad is not None


@pytest.mark.parametrize("changed", [{"mix": 0.0}, {"clip": -1.0}, {"clip": float("nan")}])
def test_settings_that_cannot_be_meant(changed: dict[str, float]) -> None:
    name, value = next(iter(changed.items()))
    with pytest.raises(UserError, match=f"{name} must be positive, got {value}"):
        DiffusionNFTConfig(**changed)
