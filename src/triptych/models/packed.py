"""Linear layers with weights packed for the CPU, while a rollout lasts.

Decoding multiplies a few rows by the same weights many times. oneDNN multiplies from weights that are laid
out for it once, which is 1.5 to 3 times as fast as the general product at such sizes; gradients do not
pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def packed(*modules: nn.Module, rows: int) -> Iterator[None]:
    """Inside, fp32 linear layers of ``modules`` on the CPU use packed copies, made for ``rows`` rows.

    The layers, their weights and their hooks stay as they are; only what their ``forward`` calls changes.
    """
    layers = [m for module in modules for m in module.modules() if type(m) is nn.Linear and _fits(m)]
    for layer in layers:
        layer.forward = _packed_forward(layer, rows)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _fits(layer: nn.Linear) -> bool:
    weight = layer.weight
    return torch.backends.mkldnn.is_available() and (weight.device.type, weight.dtype) == (
        "cpu",
        torch.float32,
    )


def _packed_forward(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
    bias = None if layer.bias is None else layer.bias.detach()

    def forward(x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product

    return forward
