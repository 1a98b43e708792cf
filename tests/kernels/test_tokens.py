from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from tiny_models import chi_square
from triptych.kernels.noise import uniforms
from triptych.kernels.tokens import (
    branches,
    guided,
    log_policy,
    sample,
    score,
    score_hidden,
)
from triptych.trajectory import NoiseKey, Sampling, Scores

B, A, D, V = 3, 7, 5, 11
PLAIN = Sampling()


def settings(temperature: float, guidance: float = 1.0, source_guidance: float | None = None) -> Sampling:
    return Sampling(temperature=temperature, guidance=guidance, source_guidance=source_guidance)


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(V, (B, A), generator=torch.Generator().manual_seed(seed))


# -- values ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_scores_equal_those_of_torch_distributions(temperature: float) -> None:
    logits, reference, taken = normal(B, A, V), normal(B, A, V, seed=1), tokens()
    found = score(logits, taken, settings(temperature), entropy=True, reference_logits=reference)
    policy, other = Categorical(logits=logits / temperature), Categorical(logits=reference / temperature)
    assert found.entropy is not None and found.kl is not None
    torch.testing.assert_close(found.logp, policy.log_prob(taken))
    torch.testing.assert_close(found.entropy, policy.entropy())
    torch.testing.assert_close(found.kl, kl_divergence(policy, other))
    assert not torch.allclose(found.kl, kl_divergence(other, policy), rtol=0.05)


def test_kl_to_itself_is_zero_and_is_not_negative_elsewhere() -> None:
    logits = normal(B, A, V)
    for other, low, high in ((logits, 0.0, 1e-7), (logits + normal(B, A, V, seed=2), 0.01, 100.0)):
        kl = score(logits, tokens(), PLAIN, reference_logits=other).kl
        assert kl is not None and bool(((kl >= low) & (kl <= high)).all())


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_is_u_plus_s_times_c_minus_u_conditional_rows_first(guidance: float) -> None:
    both = torch.tensor([[1.0, 2.0, 4.0], [0.5, 5.0, -1.0]])
    expected = [u + guidance * (c - u) for c, u in zip(*both.tolist(), strict=True)]
    assert guided(both, settings(0.7, guidance))[0].tolist() == pytest.approx(expected)
    policy = Categorical(logits=torch.tensor([expected]) / 0.7)
    torch.testing.assert_close(log_policy(both, settings(0.7, guidance)), policy.logits)


def test_guidance_one_takes_the_conditional_rows_alone() -> None:
    both = normal(2 * B, V)
    torch.testing.assert_close(log_policy(both[:B], PLAIN), log_policy(both, settings(1.0, 1.0 + 1e-7)))


def test_two_scales_mix_three_branches_conditional_then_source_then_unconditional() -> None:
    rows = torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, -2.0], [0.5, 5.0, -1.0]])
    expected = [u + 1.5 * (i - u) + 3.0 * (c - i) for c, i, u in zip(*rows.tolist(), strict=True)]
    assert guided(rows, settings(0.7, 3.0, 1.5))[0].tolist() == pytest.approx(expected)
    policy = Categorical(logits=torch.tensor([expected]) / 0.7)
    torch.testing.assert_close(log_policy(rows, settings(0.7, 3.0, 1.5)), policy.logits)
    scales = [(1.0, None), (3.0, None), (1.0, 1.0), (3.0, 3.0)]
    assert [branches(settings(1.0, *each)) for each in scales] == [1, 2, 3, 3]


def test_two_scales_fall_back_to_one_and_to_none() -> None:
    cond, source, uncond = normal(3 * B, V).chunk(3)
    three = torch.cat([cond, source, uncond])
    torch.testing.assert_close(log_policy(three, settings(1.0, 1.0, 1.0)), log_policy(cond, PLAIN))
    two = log_policy(torch.cat([cond, uncond]), settings(0.8, 3.0))
    torch.testing.assert_close(log_policy(three, settings(0.8, 3.0, 3.0)), two, atol=1e-5, rtol=1e-5)
    without = torch.cat([cond, uncond, uncond])  # no source picture: its rows are the unconditional ones
    for scale in (0.0, 1.5, 7.0):
        torch.testing.assert_close(log_policy(without, settings(0.8, 3.0, scale)), two, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(log_policy(three, settings(0.8, 3.0, 1.5)), two, atol=0.1)


def test_two_scales_are_drawn_scored_and_compared_alike() -> None:
    rows, other, taken = normal(3 * B, A, V), normal(3 * B, A, V, seed=1), tokens()
    about = settings(0.8, 3.0, 1.5)
    found = score(rows, taken, about, entropy=True, reference_logits=other)
    policy, reference = (Categorical(logits=guided(x, about) / 0.8) for x in (rows, other))
    torch.testing.assert_close(found.logp, policy.log_prob(taken))
    torch.testing.assert_close(found.kl, kl_divergence(policy, reference), atol=1e-5, rtol=1e-5)
    uniform = torch.rand(B, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = sample(rows[:, 0], uniform, about)
    torch.testing.assert_close(drawn.logp, score(rows[:, :1], drawn.tokens[:, None], about).logp[:, 0])
    greedy = sample(rows[:, 0], uniform, settings(0.0, 3.0, 1.5)).tokens
    assert torch.equal(greedy, guided(rows, about)[:, 0].argmax(-1))
    head, one, two = nn.Linear(D, V), normal(3 * B, A, D, seed=3), normal(3 * B, A, D, seed=4)
    whole = score(head(one), taken, about, reference_logits=head(two))
    for at_once in (1, 2**20):
        sizes = {"chunk_elements": at_once, "vocabulary": V}
        chunked = score_hidden(one, head, taken, about, reference=(two, head), **sizes)
        torch.testing.assert_close(chunked.logp, whole.logp)
        torch.testing.assert_close(chunked.kl, whole.kl)


def test_half_precision_logits_are_scored_in_full_precision() -> None:
    logits = normal(B, A, V).bfloat16()
    found = score(logits, tokens(), settings(0.9)).logp
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Categorical(logits=logits.float() / 0.9).log_prob(tokens()))


# -- drawing -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 1.0), (1.0, 0.6), (3.0, 1.5)])
def test_20000_draws_are_distributed_as_exp_score(guidance: float, temperature: float) -> None:
    n = 20_000
    rows = normal(1 if guidance == 1 else 2, V, scale=1.0)
    spread = rows.repeat_interleave(n, dim=0)
    keys = [NoiseKey(0, 0, "t", i) for i in range(n)]
    drawn = sample(spread, uniforms(keys, 1)[:, 0], settings(temperature, guidance))
    every = torch.arange(V)[None]
    scored = score(rows[:, None].expand(-1, V, -1), every, settings(temperature, guidance))
    probabilities = scored.logp[0].exp()
    assert chi_square(drawn.tokens.bincount(minlength=V), probabilities) > 1e-3
    assert chi_square(drawn.tokens.bincount(minlength=V), probabilities.roll(1)) < 1e-9
    torch.testing.assert_close(drawn.logp, probabilities.log()[drawn.tokens], atol=1e-6, rtol=0)


def test_a_draw_is_the_first_token_whose_cumulative_probability_exceeds_the_number() -> None:
    probabilities = torch.tensor([0.125, 0.5, 0.25, 0.125])
    numbers = [1e-12, 0.1249, 0.1251, 0.6249, 0.6251, 0.8749, 0.8751, 1 - 1e-12]
    drawn = sample(probabilities.log().expand(8, -1), torch.tensor(numbers, dtype=torch.float64), PLAIN)
    assert drawn.tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_tokens_with_probability_zero_are_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, -1e4, 0.3, -torch.inf, 0.1, -1e4, -torch.inf])
    least, most = 2.0**-53, 1 - 2.0**-53
    numbers = torch.tensor([least, 0.2, 0.5499, 0.5501, 0.9, most], dtype=torch.float64)
    for temperature in (0.3, 1.0):
        drawn = sample(logits.expand(6, -1), numbers, settings(temperature))
        assert set(drawn.tokens.tolist()) == {2, 4}
        assert bool(drawn.logp.isfinite().all())


def test_greedy_takes_the_most_likely_guided_token_and_calls_it_certain() -> None:
    both = normal(2 * B, V)
    guided_rows = both[B:] + 5 * (both[:B] - both[B:])
    assert not torch.equal(guided_rows.argmax(-1), both[:B].argmax(-1))
    drawn = sample(both, torch.full((B,), 0.5).double(), settings(0.0, 5.0))
    assert torch.equal(drawn.tokens, guided_rows.argmax(-1))
    assert drawn.logp.tolist() == [0.0] * B


# -- from hidden states, in chunks -------------------------------------------------------------------
class Case:
    """Hidden states and two heads in float64, so that a difference is a mistake and not rounding."""

    def __init__(self, guidance: float) -> None:
        branches = 1 if guidance == 1 else 2
        self.sampling = settings(0.8, guidance)
        self.hidden = normal(branches * B, A, D, seed=3).double().requires_grad_()
        self.other = normal(branches * B, A, D, seed=4).double()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.head, self.reference_head = nn.Linear(D, V).double(), nn.Linear(D, V).double()

    def chunked(self, elements: int) -> Scores:
        return score_hidden(
            self.hidden,
            self.head,
            tokens(),
            self.sampling,
            entropy=True,
            reference=(self.other, self.reference_head),
            chunk_elements=elements,
            vocabulary=V,
        )

    def whole(self) -> Scores:
        return score(
            self.head(self.hidden),
            tokens(),
            self.sampling,
            entropy=True,
            reference_logits=self.reference_head(self.other),
        )

    def gradients(self, scores: Scores, weights: tuple[Tensor, ...]) -> list[Tensor]:
        parts = (scores.logp, scores.entropy, scores.kl)
        total = sum((w * p).sum() for w, p in zip(weights, parts, strict=True) if p is not None)
        assert isinstance(total, Tensor)
        return list(torch.autograd.grad(total, [self.hidden, *self.head.parameters()]))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("positions", [1, 2, 3, A])
def test_chunks_give_the_values_and_gradients_of_the_whole(guidance: float, positions: int) -> None:
    case = Case(guidance)
    chunked, whole = case.chunked(positions * case.hidden.shape[0] * V), case.whole()
    for name in ("logp", "entropy", "kl"):
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), atol=2e-6, rtol=1e-5)
    weights = tuple(normal(B, A, seed=6 + i) for i in range(3))
    for found, expected in zip(case.gradients(chunked, weights), case.gradients(whole, weights), strict=True):
        assert float(expected.abs().max()) > 0.1
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned, in elements."""

    largest = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return out


def test_neither_pass_holds_the_logits_of_all_positions() -> None:
    rows, positions, width, vocabulary, at_once = 2, 60, 8, 500, 3
    hidden = normal(rows, positions, width).requires_grad_()
    head = nn.Linear(width, vocabulary)
    taken = torch.randint(vocabulary, (rows, positions))

    def memory(elements: int) -> tuple[int, int]:
        """Elements kept between the passes, and those of the largest tensor of either pass."""
        kept: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
            return x

        with LargestTensor() as seen:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                found = score_hidden(
                    hidden, head, taken, PLAIN, entropy=True, chunk_elements=elements, vocabulary=vocabulary
                )
            between = sum(kept.values())
            assert found.entropy is not None
            (found.logp + found.entropy).sum().backward()
        return between, seen.largest

    all_logits, chunk = rows * positions * vocabulary, rows * at_once * vocabulary
    between, largest = memory(chunk)
    assert between < all_logits / 4 and largest <= max(chunk, head.weight.numel())
    between, largest = memory(all_logits)
    assert between >= all_logits and largest >= all_logits, "the measurement must see what it looks for"


def test_without_gradients_the_chunks_are_scored_alike() -> None:
    case = Case(3.0)
    with torch.no_grad():
        found = case.chunked(2 * case.hidden.shape[0] * V)
    torch.testing.assert_close(found.logp, case.whole().logp, atol=2e-6, rtol=1e-5)
    assert not found.logp.requires_grad
