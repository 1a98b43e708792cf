"""The connector against its arithmetic written out in float64, and what follows from having no positions."""

import pytest
import torch
from torch import Tensor

from tiny_unirl import lively
from triptych.errors import UserError
from triptych.models.connector import Connector, ConnectorSizes


def connector(seed: int = 0) -> Connector:
    made: Connector = lively(Connector(12, 5, ConnectorSizes(layers=2, heads=3)), seed)
    return made


def hidden(seed: int = 1) -> Tensor:
    return torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(seed))


def written_out(module: Connector, x: Tensor) -> Tensor:
    """One row ``[M, D]`` -> ``[M, C]``, head by head and query by query."""
    weights = {name: value.double() for name, value in module.state_dict().items()}

    def linear(name: str, y: Tensor) -> Tensor:
        return y @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, y: Tensor) -> Tensor:
        return y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    x = x.double()
    for n in range(2):
        at = f"layers.{n}"
        y, heads = norm(f"{at}.attention_norm", x), []
        for h in (slice(0, 4), slice(4, 8), slice(8, 12)):
            q, k, v = (linear(f"{at}.{part}", y)[:, h] for part in "qkv")
            scores = norm(f"{at}.q_norm", q) @ norm(f"{at}.k_norm", k).T / 2
            heads.append(torch.softmax(scores, -1) @ v)
        x = x + linear(f"{at}.o", torch.cat(heads, -1))
        y = norm(f"{at}.mlp_norm", x)
        gate = linear(f"{at}.gate", y)
        x = x + linear(f"{at}.down", gate / (1 + (-gate).exp()) * linear(f"{at}.up", y))
    return linear("out", norm("norm", x))


def test_captions_are_the_arithmetic_written_out() -> None:
    module, x = connector(), hidden()
    captions = module(x)
    assert captions.shape == (2, 4, 5)
    for row, expected in zip(captions, x, strict=True):
        assert torch.allclose(row.double(), written_out(module, expected), atol=1e-5)


def test_rearranged_queries_give_the_same_captions_rearranged() -> None:
    module, x, order = connector(), hidden(), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(module(x[:, order]), module(x)[:, order], atol=1e-6)


@pytest.mark.parametrize("changed", range(4))
def test_every_query_sees_every_query_of_its_row_alone(changed: int) -> None:
    module, x = connector(), hidden()
    other = x.clone()
    other[0, changed] += 1
    moved = (module(other) - module(x)).abs().amax(-1)
    assert (moved[0] > 1e-3).all() and (moved[1] == 0).all()


def test_recomputing_changes_no_gradient() -> None:
    module, found = connector(), []
    for recompute in (False, True):
        x = hidden().requires_grad_()
        module(x, recompute).square().sum().backward()
        found.append([x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
        module.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_public_size() -> None:
    """Twelve layers beside Qwen2.5-VL-3B: 4 D^2 of attention and 3 x 2 D^2 of SwiGLU each, D = 2048."""
    with torch.device("meta"):
        module = Connector(2048, 2304, ConnectorSizes())
    matrices = sum(p.numel() for p in module.parameters() if p.ndim == 2)
    assert matrices == 12 * 10 * 2048**2 + 2048 * 2304
    assert {p.ndim for p in module.parameters()} == {1, 2} and module.layers[0].heads == 8


def test_heads_that_do_not_divide_the_width_are_named() -> None:
    with pytest.raises(UserError, match="width 12 is no multiple of its 5 heads"):
        Connector(12, 5, ConnectorSizes(heads=5))
