import math

import pytest
import torch
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.train.optimizer import Average, Optimizer, OptimizerConfig, is_hidden_matrix


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape))


def test_every_parameter_is_in_exactly_one_group_of_one_optimizer() -> None:
    groups = {"text": [parameter(4, 4), parameter(4)], "image": [parameter(6, 4), parameter(40, 4)]}
    for kind in ("adamw", "muon"):
        made = Optimizer(groups, OptimizerConfig(kind=kind))  # type: ignore[arg-type]
        held = [p for part in made.parts for group in part.param_groups for p in group["params"]]
        assert sorted(map(id, held)) == sorted(id(p) for group in groups.values() for p in group)


def test_groups_that_would_not_train_are_errors() -> None:
    shared = parameter(2, 2)
    with pytest.raises(UserError, match="parameter group 'image' is empty"):
        Optimizer({"text": [shared], "image": []}, OptimizerConfig())
    with pytest.raises(UserError, match="'image' holds a parameter of another group"):
        Optimizer({"text": [shared], "image": [shared]}, OptimizerConfig())
    with pytest.raises(UserError, match=r"no parameter group 'vision'; this model has text, image"):
        groups = {"text": [shared], "image": [parameter(3)]}
        Optimizer(groups, OptimizerConfig(group_lr={"text": 1.0, "vision": 0.1}))


@pytest.mark.parametrize("name", ["lr", "muon_lr", "max_norm"])
def test_rates_must_be_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be positive, got 0"):
        OptimizerConfig(**{name: 0.0})


def test_groups_have_rates_of_their_own() -> None:
    groups = {"text": [parameter(2, 2)], "image": [parameter(2, 2), parameter(2)]}
    config = OptimizerConfig(kind="muon", lr=0.1, muon_lr=0.02, group_lr={"image": 0.3})
    made = Optimizer(groups, config)
    rates = {id(p): g["base"] for part in made.parts for g in part.param_groups for p in g["params"]}
    assert rates[id(groups["text"][0])] == pytest.approx(0.02)
    assert rates[id(groups["image"][0])] == pytest.approx(0.06), "three times the base, as asked"
    assert rates[id(groups["image"][1])] == pytest.approx(0.3)
    for group in groups.values():
        for p in group:
            p.grad = torch.ones_like(p)
    made.step(0.5)
    assert all(g["lr"] == g["base"] * 0.5 for part in made.parts for g in part.param_groups)
    assert groups["image"][1].tolist() == pytest.approx([0.85, 0.85]), "Adam's first step is the rate"


def test_muon_takes_hidden_matrices_alone() -> None:
    kinds = {
        "square": (parameter(8, 8), True),
        "wide": (parameter(8, 32), True),
        "embedding": (parameter(100, 8), False),
        "vector": (parameter(8), False),
        "convolution": (parameter(8, 3, 4, 4), False),
    }
    made = Optimizer({"model": [p for p, _ in kinds.values()]}, OptimizerConfig(kind="muon"))
    [muon] = [part for part in made.parts if isinstance(part, torch.optim.Muon)]
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    for name, (p, hidden) in kinds.items():
        assert is_hidden_matrix(p) == hidden == (id(p) in taken), name
    [only] = Optimizer({"model": [parameter(3)]}, made.config).parts
    assert isinstance(only, torch.optim.AdamW), "Muon with nothing to do is not made"


def test_states_are_fp32_and_small_steps_are_not_lost() -> None:
    # At a rate of 1e-4 a bf16 weight of 1 would never move: its neighbours are 1/128 away.
    p = parameter(3)
    made = Optimizer({"model": [p]}, OptimizerConfig(lr=1e-4))
    for _ in range(10):
        p.grad = torch.ones(3)
        made.step(1.0)
    torch.testing.assert_close(p.detach(), torch.full((3,), 1 - 1e-3), atol=1e-6, rtol=0)
    states = made.parts[0].state[p]
    assert all(v.dtype == torch.float32 for v in states.values() if isinstance(v, Tensor))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OptimizerConfig(), [1, 1, 1, 1, 1]),
        (OptimizerConfig(warmup=2), [1 / 2, 1, 1, 1, 1]),
        (OptimizerConfig(warmup=10), [0.1, 0.2, 0.3, 0.4, 0.5]),
        (OptimizerConfig(decay=0.4), [1, 1, 1, 1, 1 / 2]),
        (OptimizerConfig(decay=1.0), [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
        (OptimizerConfig(warmup=5, decay=1.0), [1 / 5, 8 / 25, 9 / 25, 8 / 25, 1 / 5]),
    ],
)
def test_the_schedule(config: OptimizerConfig, expected: list[float]) -> None:
    assert [config.rate(step, 5) for step in range(1, 6)] == pytest.approx(expected)


def test_clipping_returns_the_norm_before() -> None:
    a, b = parameter(1), parameter(2, 2)
    made = Optimizer({"a": [a], "b": [b]}, OptimizerConfig(max_norm=0.5))
    a.grad, b.grad = torch.tensor([3.0]), torch.full((2, 2), 2.0)
    assert float(made.clip()) == pytest.approx(5.0)
    torch.testing.assert_close(a.grad, torch.tensor([0.3]))
    torch.testing.assert_close(b.grad, torch.full((2, 2), 0.2))
    made.zero_grad()
    assert a.grad is None and b.grad is None


def test_clipping_by_group_bounds_each_by_itself() -> None:
    a, b = parameter(1), parameter(2, 2)
    made = Optimizer({"a": [a], "b": [b]}, OptimizerConfig(max_norm=3.5, clip="group"))
    a.grad, b.grad = torch.tensor([3.0]), torch.full((2, 2), 2.0)
    assert made.norms() == pytest.approx({"a": 3.0, "b": 4.0})
    assert float(made.clip()) == pytest.approx(5.0), "what is returned is the norm of all"
    torch.testing.assert_close(a.grad, torch.tensor([3.0]))
    torch.testing.assert_close(b.grad, torch.full((2, 2), 1.75))
    b.grad = None  # a group that took no part
    assert made.norms() == pytest.approx({"a": 3.0, "b": 0.0}) and float(made.clip()) == pytest.approx(3.0)


def test_one_optimizer_with_rates_and_clipping_by_group_is_one_for_each_group() -> None:
    def weights() -> dict[str, list[nn.Parameter]]:
        generator = torch.Generator().manual_seed(0)
        return {n: [nn.Parameter(torch.randn(3, 4, generator=generator)) for _ in "12"] for n in "ab"}

    about = {"max_norm": 0.5, "clip": "group", "weight_decay": 0.1}
    together, apart, rates = weights(), weights(), {"a": 0.1, "b": 0.003}
    made = [Optimizer(together, OptimizerConfig(group_lr=rates, **about))]  # type: ignore[arg-type]
    own = [Optimizer({n: apart[n]}, OptimizerConfig(lr=rates[n], **about)) for n in "ab"]  # type: ignore[arg-type]
    for step in range(5):
        for found, optimizers in ((together, made), (apart, own)):
            generator = torch.Generator().manual_seed(step)
            for n, scale in (("a", 1.0), ("b", 100.0)):
                for p in found[n]:
                    p.grad = scale * torch.randn(3, 4, generator=generator)
            for optimizer in optimizers:
                optimizer.clip()
                optimizer.step(1.0)
    assert all(torch.equal(p, q) for n in "ab" for p, q in zip(together[n], apart[n], strict=True))


def test_an_average_of_a_line_has_a_closed_form() -> None:
    p = nn.Parameter(torch.zeros(1))
    average = Average([p], 0.9)
    for t in range(1, 21):
        p.data.fill_(t)
        average.update()
    expected = sum(0.1 * 0.9 ** (20 - t) * t for t in range(1, 21))
    assert float(average.values[0]) == pytest.approx(expected, rel=1e-6)


def test_swapping_twice_is_exact() -> None:
    odd = torch.tensor([math.pi, -0.0, 1e-42, torch.inf])
    p = nn.Parameter(odd.clone())
    average = Average([p], 0.5)
    average.values[0].fill_(1 / 3)
    average.swap()
    assert torch.equal(p.detach(), torch.full((4,), 1 / 3)) and torch.equal(average.values[0], odd)
    average.swap()
    assert torch.equal(p.detach().view(torch.int32), odd.view(torch.int32))


def test_the_cosine_falls_half_a_wave() -> None:
    config = OptimizerConfig(decay=1.0, schedule="cosine")
    expected = [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert [config.rate(step, 8) for step in range(1, 9)] == pytest.approx(expected)
    late = OptimizerConfig(decay=0.5, schedule="cosine", warmup=2)
    assert [late.rate(step, 8) for step in range(1, 9)] == pytest.approx([0.5, 1, 1, 1, *expected[::2]])
