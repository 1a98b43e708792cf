"""The weights of masked-token models: what Show-o's and UniGen's networks share.

Knows ids, layers, heads and files; which modules hold the weights is the public layout's choice, and how a
prompt becomes columns the model's (:mod:`triptych.models.masked_model`).
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.models import canvas
from triptych.models.causal import Decoder

BEGIN_IMAGE, END_IMAGE, DRAW, READ = "<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>"
MARKS = (BEGIN_IMAGE, END_IMAGE, "<|sov|>", "<|eov|>", DRAW, READ, "<|t2v|>", "<|v2v|>", "<|lvg|>")


@dataclass(frozen=True, kw_only=True)
class MaskedLayout:
    """Which ids are words, codes and the mask, under the public names of Show-o's and UniGen's configs.

    ``local`` is our own: convolutions over the canvas, see :mod:`triptych.models.canvas`.
    """

    vocab_size: int
    codebook_size: int = 8192
    num_vq_tokens: int = 256
    local: bool = False

    def __post_init__(self) -> None:
        if isqrt(self.num_vq_tokens) ** 2 != self.num_vq_tokens:
            raise UserError(f"num_vq_tokens {self.num_vq_tokens} is no square")

    @property
    def first_code(self) -> int:
        """The id of image code 0."""
        return self.vocab_size - 1 - self.codebook_size

    @property
    def mask_id(self) -> int:
        """The id of a token that is hidden: the last one."""
        return self.vocab_size - 1


class MaskedNetwork(nn.Module, ABC):
    """All weights of such a model; which modules hold them is the public layout's choice."""

    layout: MaskedLayout
    local: nn.ModuleList | None

    @property
    @abstractmethod
    def lm(self) -> Any:
        """The causal language model of transformers, with its head."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the public layout."""

    @property
    def config(self) -> Any:
        """The language model's."""
        return self.lm.config

    def get_input_embeddings(self) -> nn.Module:
        """Embeddings of the whole vocabulary."""
        return self.lm.get_input_embeddings()

    def set_attn_implementation(self, implementation: str) -> None:
        """Which attention kernel the layers use."""
        self.lm.set_attn_implementation(implementation)

    def decoder(self, first: int | None = None) -> Decoder:
        """The layers; with ``first``, for columns of a picture whose tokens begin there: maybe local."""
        core = self.lm.model
        norm = core.norm if hasattr(core, "norm") else core.final_layernorm  # Phi's
        decoder = Decoder(core.layers, core.rotary_emb, norm)
        if first is None or self.local is None:
            return decoder
        return canvas.local_decoder(decoder, self.local, first)

    def code_head(self) -> nn.Module:
        """``lm_head`` for image codes alone: a layer over its rows, with its weights and their gradients."""
        head, codes = self.lm.lm_head, slice(self.layout.first_code, self.layout.mask_id)
        if type(head) is not nn.Linear:
            return _Some(head, codes)
        layer: Any = nn.Linear(1, 1, device="meta")
        del layer.weight, layer.bias
        layer.weight, layer.bias = head.weight[codes], None if head.bias is None else head.bias[codes]
        return cast(nn.Module, layer)

    def write(self, folder: Path, about: dict[str, Any], name: str) -> None:
        """Write ``about`` as ``config.json``, and all tensors as the safetensors file ``name``."""
        (folder / "config.json").write_text(json.dumps(about, indent=1))
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})


class _Some(nn.Module):
    """Some outputs of a head that an adapter lies over."""

    def __init__(self, head: nn.Module, outputs: slice) -> None:
        super().__init__()
        self.head, self.outputs = head, outputs

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        return logits[..., self.outputs]
