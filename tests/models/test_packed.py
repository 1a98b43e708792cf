"""oneDNN's products against PyTorch's own, values and gradients, and that nothing of them stays behind."""

import torch
from torch import Tensor, nn

from triptych.models.packed import packed, quick


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 16, bias=False))


def gradients(net: nn.Sequential, x: Tensor, weight: Tensor) -> list[Tensor]:
    net.zero_grad()
    x.grad = None
    (net(x) * weight).sum().backward()
    assert x.grad is not None
    return [x.grad.clone(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def test_packed_weights_give_the_same_product() -> None:
    net, x = layers(), torch.randn(7, 3, 24)
    with torch.no_grad():
        expected = net(x)
        with packed(net, rows=21):
            assert "forward" in vars(net[0])
            found = net(x)
    assert (found - expected).abs().max() < 1e-5


def test_quick_products_have_the_same_values_and_gradients() -> None:
    net, x, weight = layers(), torch.randn(5, 6, 24, requires_grad=True), torch.randn(5, 6, 16)
    expected, plain = gradients(net, x, weight), net(x)
    with quick(net):
        found, fast = gradients(net, x, weight), net(x)
    assert (fast - plain).abs().max() < 1e-5
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_new_weights_count_and_nothing_stays_behind() -> None:
    net, x = layers(), torch.randn(2, 24)
    for manager in (packed(net, rows=2), quick(net)):
        with torch.no_grad():
            net[0].weight += 1.0
            with manager:
                inside = net(x)
            assert "forward" not in vars(net[0])
            assert (inside - net(x)).abs().max() < 1e-4


def test_one_inside_the_other_leaves_nothing_behind() -> None:
    net, x = layers(), torch.randn(2, 24)
    with torch.no_grad(), quick(net), packed(net, rows=2):
        net(x)
    assert "forward" not in vars(net[0])


def test_other_precisions_are_left_alone() -> None:
    net, x = layers().double(), torch.randn(2, 24, dtype=torch.float64)
    with quick(net), packed(net, rows=2):
        assert "forward" not in vars(net[0])
        assert net(x).dtype == torch.float64
