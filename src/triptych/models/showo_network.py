"""Show-o's weights: the modules of the public checkpoint under its names, and the folder that holds them.

Knows sizes, ids and files. How a prompt becomes a row, and what is drawn, is :mod:`triptych.models.showo`'s.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Any, Self, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM

from triptych.errors import UserError
from triptych.models import canvas
from triptych.models.weights import fill, find_file, read_state_dict

BEGIN_IMAGE, END_IMAGE, DRAW, READ = "<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>"
PAD = "[PAD]"
MARKS = (BEGIN_IMAGE, END_IMAGE, "<|sov|>", "<|eov|>", DRAW, READ, "<|t2v|>", "<|v2v|>", "<|lvg|>")
FILES = ("pytorch_model.safetensors", "pytorch_model.bin")
CLIP_WIDTH = 1024
LLM_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True, kw_only=True)
class ShowoLayout:
    """What the public ``config.json`` says, under its names; the defaults are those of ``showlab/show-o``.

    ``llm_vocab_size`` counts the words; ids of [PAD] and nine marks follow, then image codes, then the mask.
    """

    w_clip_vit: bool = False
    vocab_size: int = 58498
    llm_vocab_size: int = 50295
    llm_model_path: str = "microsoft/phi-1_5"
    codebook_size: int = 8192
    num_vq_tokens: int = 256
    local: bool = False

    def __post_init__(self) -> None:
        if self.vocab_size != self.first_code + self.codebook_size + 1:
            raise UserError(
                f"vocab_size {self.vocab_size} is not {self.llm_vocab_size} words + 10 marks"
                f" + {self.codebook_size} codes + 1 mask"
            )
        if isqrt(self.num_vq_tokens) ** 2 != self.num_vq_tokens:
            raise UserError(f"num_vq_tokens {self.num_vq_tokens} is no square")

    @property
    def first_code(self) -> int:
        """The id of image code 0."""
        return self.llm_vocab_size + 1 + len(MARKS)

    @property
    def mask_id(self) -> int:
        """The id of a token that is hidden: the last one."""
        return self.vocab_size - 1


class ShowoNetwork(nn.Module):
    """All weights, under the public names: ``showo.*``, ``mm_projector.*`` with CLIP; ``local.*`` is ours."""

    def __init__(self, layout: ShowoLayout, config: PhiConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layout = layout
        self.showo = PhiForCausalLM(config)
        self.mm_projector: nn.Module | None = None
        self.local: nn.ModuleList | None = None
        if layout.w_clip_vit:
            self.mm_projector = nn.Sequential(
                nn.Linear(CLIP_WIDTH, width), nn.GELU(), nn.Linear(width, width)
            )
        if layout.local:
            self.local = canvas.convolutions(width, config.num_hidden_layers)

    @property
    def config(self) -> PhiConfig:
        """The language model's."""
        return self.showo.config

    def get_input_embeddings(self) -> nn.Module:
        """Embeddings of the whole vocabulary."""
        embeddings: nn.Module = self.showo.get_input_embeddings()
        return embeddings

    def set_attn_implementation(self, implementation: str) -> None:
        """Which attention kernel the layers use."""
        self.showo.set_attn_implementation(implementation)

    def decoder(self, first: int | None = None) -> canvas.Decoder:
        """The layers; with ``first``, for columns of a picture whose tokens begin there: maybe local."""
        core = self.showo.model
        decoder = canvas.Decoder(core.layers, core.rotary_emb, core.final_layernorm)
        if first is None or self.local is None:
            return decoder
        return canvas.local_decoder(decoder, self.local, first)

    def code_head(self) -> nn.Module:
        """``lm_head`` for image codes alone: a layer over its rows, with its weights and their gradients."""
        head, codes = self.showo.lm_head, slice(self.layout.first_code, self.layout.mask_id)
        if type(head) is not nn.Linear:
            return _Some(head, codes)
        layer: Any = nn.Linear(1, 1, device="meta")
        del layer.weight, layer.bias
        layer.weight, layer.bias = head.weight[codes], head.bias[codes]
        return cast(nn.Module, layer)

    # -- files -------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``pytorch_model.safetensors``."""
        about = {"_class_name": "Showo", **asdict(self.layout), "mask_token_id": self.layout.mask_id}
        about["llm_config"] = {name: getattr(self.config, name) for name in LLM_SIZES}
        (folder / "config.json").write_text(json.dumps(about, indent=1))
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, folder / FILES[0], metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        """Open a folder or a hub name; a missing, unknown or misshapen tensor is an error that names it."""
        layout, sizes = read_layout(folder)
        state = {key: value.to(dtype) for key, value in read_state_dict(folder, FILES).items()}
        config = phi_config(layout, sizes, any(".q_layernorm." in key for key in state))
        config._name_or_path = str(folder)
        with torch.device("meta"):
            network = cls(layout, config)
        core = network.showo.model
        core.rotary_emb = type(core.rotary_emb)(config=config)  # computed, in no file
        fill(network, state, folder)
        return network


class _Some(nn.Module):
    """Some outputs of a head that an adapter lies over."""

    def __init__(self, head: nn.Module, outputs: slice) -> None:
        super().__init__()
        self.head, self.outputs = head, outputs

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        return logits[..., self.outputs]


def read_layout(folder: str | Path) -> tuple[ShowoLayout, Mapping[str, Any]]:
    """What ``config.json`` says of the model, and of its language model where that is not phi-1.5."""
    path = find_file(folder, ["config.json"])
    try:
        about: dict[str, Any] = dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a JSON object: {error}") from None
    known = {field.name: about[field.name] for field in fields(ShowoLayout) if field.name in about}
    return ShowoLayout(**known), about.get("llm_config", {})


def phi_config(layout: ShowoLayout, sizes: Mapping[str, Any], qk_layernorm: bool = True) -> PhiConfig:
    """The language model's; transformers' own defaults are the sizes of phi-1.5."""
    act = "gelu_pytorch_tanh"  # phi's gelu_new as one operation
    return PhiConfig(vocab_size=layout.vocab_size, qk_layernorm=qk_layernorm, hidden_act=act, **sizes)
