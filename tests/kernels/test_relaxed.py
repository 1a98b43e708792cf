"""Gumbel noise after the fact, and the weights that it makes."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from tiny_models import chi_square, keys
from triptych.errors import UserError
from triptych.kernels.noise import uniforms
from triptych.kernels.relaxed import Relaxation, gumbels, relaxed
from triptych.kernels.tokens import sample
from triptych.trajectory import Sampling

DRAWS, CODES = 20_000, 4
LOGITS = torch.tensor([0.5, -1.0, 1.5, 0.0], dtype=torch.float64)
SOFT = Relaxation(tau=0.7, straight_through=False)


def noise(n: int, seed: int) -> Tensor:
    return uniforms(keys(1, seed=seed), n)[0]


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    """Tokens as they are drawn ``[M, 1]``, and the noise that must have led to them ``[M, 1, K]``."""
    logits = LOGITS.expand(DRAWS, CODES)
    tokens = sample(logits, noise(DRAWS, 1), Sampling()).tokens[:, None]
    logp = torch.log_softmax(logits, -1)[:, None]
    return tokens, gumbels(logp, tokens, noise(DRAWS * CODES, 2).view(DRAWS, 1, CODES))


def test_the_noise_leads_to_the_token(drawn: tuple[Tensor, Tensor]) -> None:
    tokens, gumbel = drawn
    assert torch.equal((LOGITS + gumbel).argmax(-1), tokens)


def test_over_all_tokens_the_noise_is_free_gumbel_noise(drawn: tuple[Tensor, Tensor]) -> None:
    gumbel = drawn[1][:, 0]
    for column in gumbel.T:
        assert stats.kstest(column.numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    assert torch.corrcoef(gumbel.T).triu(1).abs().max() < 0.03


def test_fresh_tokens_of_that_noise_follow_any_other_policy(drawn: tuple[Tensor, Tensor]) -> None:
    other = torch.tensor([0.0, 1.0, 0.3, -0.5], dtype=torch.float64)
    counts = torch.bincount((other + drawn[1][:, 0]).argmax(-1), minlength=CODES)
    assert chi_square(counts, torch.softmax(other, -1)) > 1e-3


def test_weights_with_noise_held_are_a_softmax_and_forward_is_the_token() -> None:
    logits = torch.randn(2, 3, CODES, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens = torch.tensor([[0, 1, 2], [3, 2, 1]])
    uniform = noise(2 * 3 * CODES, 3).view(2, 3, CODES)
    soft = relaxed(logits, tokens, uniform, Sampling(temperature=0.8), SOFT)
    policy = (logits / 0.8).log_softmax(-1)
    held = gumbels(policy, tokens, uniform)
    expected = (((policy + held) / 0.7).exp()).float()
    torch.testing.assert_close(soft, expected / expected.sum(-1, keepdim=True))
    assert torch.equal(soft.argmax(-1), tokens)
    hard = relaxed(logits, tokens, uniform, Sampling(temperature=0.8), Relaxation(tau=0.7))
    torch.testing.assert_close(hard, torch.eye(CODES)[tokens])
    slope = torch.randn(hard.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((w * slope).sum(), logits)[0] for w in (soft, hard)]
    assert torch.equal(*gradients) and gradients[0].norm() > 0.1


def test_guidance_is_part_of_what_is_relaxed() -> None:
    cond, uncond = torch.randn(2, 1, 3, CODES, generator=torch.Generator().manual_seed(0)).unbind(0)
    tokens, uniform = torch.tensor([[0, 1, 2]]), noise(3 * CODES, 3).view(1, 3, CODES)
    both = relaxed(torch.cat([cond, uncond]), tokens, uniform, Sampling(guidance=3.0), SOFT)
    torch.testing.assert_close(both, relaxed(uncond + 3 * (cond - uncond), tokens, uniform, Sampling(), SOFT))


def test_codes_that_are_next_to_impossible_stay_finite() -> None:
    logits = torch.tensor([[[0.0, -2000.0, -90.0]]], requires_grad=True)
    for token in (0, 1, 2):
        weights = relaxed(logits, torch.tensor([[token]]), noise(3, 4).view(1, 1, 3), Sampling(), SOFT)
        [gradient] = torch.autograd.grad(weights[..., 0].sum(), logits)
        assert weights.isfinite().all() and gradient.isfinite().all()
        assert weights.argmax() == token


def test_what_cannot_be_relaxed() -> None:
    with pytest.raises(UserError, match=r"relaxation\.tau must be positive, got 0"):
        Relaxation(tau=0)
    with pytest.raises(UserError, match="drawn greedily: it has no probabilities to relax"):
        relaxed(
            torch.zeros(1, 1, 2), torch.zeros(1, 1).long(), torch.rand(1, 1, 2), Sampling(temperature=0), SOFT
        )
