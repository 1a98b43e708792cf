"""Linear layers by oneDNN on the CPU: packed weights while a rollout lasts, and products with gradients.

PyTorch's general fp32 product is up to 2.5 times slower than oneDNN's on some processors, and packs the
weights anew at every call. Decoding multiplies a few rows by the same weights many times, so there they are
packed once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]


def packed(*modules: nn.Module, rows: int) -> AbstractContextManager[None]:
    """Inside, fp32 linear layers of ``modules`` on the CPU use packed copies, made for ``rows`` rows.

    No gradient passes. Layers, weights and hooks stay as they are; only what ``forward`` calls changes.
    """
    return _replaced(modules, lambda layer: _packed_forward(layer, rows))


def quick(*modules: nn.Module) -> AbstractContextManager[None]:
    """Inside, fp32 linear layers of ``modules`` on the CPU multiply by oneDNN, gradients included.

    Not around what is recomputed in the backward pass: by then the layers are as they were.
    """
    return _replaced(modules, lambda layer: lambda x: _Product.apply(x, layer.weight, layer.bias))


@contextmanager
def _replaced(modules: tuple[nn.Module, ...], make: Callable[[nn.Linear], Forward]) -> Iterator[None]:
    layers = [m for module in modules for m in module.modules() if type(m) is nn.Linear and _fits(m)]
    for layer in layers:
        layer.forward = make(layer)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _fits(layer: nn.Linear) -> bool:
    kind = (layer.weight.device.type, layer.weight.dtype)
    usual = torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available()
    return kind == ("cpu", torch.float32) and not usual


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _packed_forward(layer: nn.Linear, rows: int) -> Forward:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
    bias = None if layer.bias is None else layer.bias.detach()
    return lambda x: _multiply(x, weight, bias)


class _Product(torch.autograd.Function):
    """``x [..., I] @ weight [O, I].T + bias [O]``, differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (x, weight) = grads[0].contiguous(), ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        into_x, into_weight, into_bias = ctx.needs_input_grad
        return (
            _multiply(grad, weight.t().contiguous(), None) if into_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if into_weight else None,
            rows.sum(0) if into_bias else None,
        )
