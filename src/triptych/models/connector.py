"""The connector of UniRL-Zero: from what a language model says at its query positions to captions.

A bidirectional transformer without positions: a query is known by its learned content, so rearranging the
queries rearranges the captions and changes nothing else. Knows no language model and no diffusion expert.

Parts and sizes are those of the authors' public code (github.com/G-U-N/UniRL): 12 layers as wide as the
language model, 8 heads, RMS-norm before attention and SwiGLU and on q and k, SwiGLU of twice the width,
linear layers with biases, at the end one norm and one linear layer to the caption width.

Shape legend: B rows, M queries, D width of the language model, C caption width, H heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from triptych.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConnectorSizes:
    """Depth, heads, and how many times ``width`` SwiGLU is wide; the defaults are the public model's."""

    layers: int = 12
    heads: int = 8
    expand: float = 2.0


class Connector(nn.Module):
    """Hidden states ``[B, M, D]`` -> captions ``[B, M, C]``; every query sees every query."""

    def __init__(self, width: int, captions: int, sizes: ConnectorSizes) -> None:
        super().__init__()
        if width % sizes.heads:
            raise UserError(f"the connector's width {width} is no multiple of its {sizes.heads} heads")
        self.layers = nn.ModuleList(_Layer(width, sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.out = nn.Linear(width, captions)

    def forward(self, hidden: Tensor, recompute: bool = False) -> Tensor:
        """``[B, M, D]`` -> ``[B, M, C]``; with ``recompute`` layers run again in the backward pass."""
        for layer in self.layers:
            if recompute and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, use_reentrant=False)
            else:
                hidden = layer(hidden)
        return self.out(self.norm(hidden))


class _Layer(nn.Module):
    def __init__(self, width: int, sizes: ConnectorSizes) -> None:
        super().__init__()
        inner = int(width * sizes.expand)
        self.heads = sizes.heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.q_norm, self.k_norm = (nn.RMSNorm(width // sizes.heads, eps=1e-6) for _ in range(2))
        self.o = nn.Linear(width, width)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.gate, self.up = (nn.Linear(width, inner) for _ in range(2))
        self.down = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.attention_norm(hidden)
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        mixed = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        hidden = hidden + self.o(mixed.transpose(1, 2).flatten(2))
        x = self.mlp_norm(hidden)
        return hidden + self.down(silu(self.gate(x)) * self.up(x))
