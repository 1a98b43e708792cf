"""Show-o's weights: the modules of the public checkpoint under its names, and the folder that holds them.

Knows sizes, ids and files. How a prompt becomes a row, and what is drawn, is :mod:`triptych.models.showo`'s.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PhiConfig, PhiForCausalLM

from triptych.errors import UserError
from triptych.models import canvas
from triptych.models.masked_network import MARKS, MaskedLayout, MaskedNetwork
from triptych.models.weights import fill, known, read_config, read_state_dict

PAD = "[PAD]"
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
class ShowoLayout(MaskedLayout):
    """What the public ``config.json`` says, under its names; the defaults are those of ``showlab/show-o``.

    ``llm_vocab_size`` counts the words; ids of [PAD] and nine marks follow, then image codes, then the mask.
    """

    vocab_size: int = 58498
    w_clip_vit: bool = False
    llm_vocab_size: int = 50295
    llm_model_path: str = "microsoft/phi-1_5"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_code != self.llm_vocab_size + 1 + len(MARKS):
            raise UserError(
                f"vocab_size {self.vocab_size} is not {self.llm_vocab_size} words + 10 marks"
                f" + {self.codebook_size} codes + 1 mask"
            )


class ShowoNetwork(MaskedNetwork):
    """All weights, under the public names: ``showo.*``, ``mm_projector.*`` with CLIP; ``local.*`` is ours."""

    layout: ShowoLayout

    def __init__(self, layout: ShowoLayout, config: PhiConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layout = layout
        self.showo = PhiForCausalLM(config)
        self.mm_projector: nn.Module | None = None
        self.local = None
        if layout.w_clip_vit:
            self.mm_projector = nn.Sequential(
                nn.Linear(CLIP_WIDTH, width), nn.GELU(), nn.Linear(width, width)
            )
        if layout.local:
            self.local = canvas.convolutions(width, config.num_hidden_layers)

    @property
    def lm(self) -> PhiForCausalLM:
        """The language model."""
        return self.showo

    # -- files -------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``pytorch_model.safetensors``."""
        about = {"_class_name": "Showo", **asdict(self.layout), "mask_token_id": self.layout.mask_id}
        about["llm_config"] = {name: getattr(self.config, name) for name in LLM_SIZES}
        self.write(folder, about, FILES[0])

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        """Open a folder or a hub name; a missing, unknown or misshapen tensor is an error that names it."""
        about = read_config(folder)
        layout, sizes = ShowoLayout(**known(ShowoLayout, about)), about.get("llm_config", {})
        state = {key: value.to(dtype) for key, value in read_state_dict(folder, FILES).items()}
        config = phi_config(layout, sizes, any(".q_layernorm." in key for key in state))
        config._name_or_path = str(folder)
        with torch.device("meta"):
            network = cls(layout, config)
        core = network.showo.model
        core.rotary_emb = type(core.rotary_emb)(config=config)  # computed, in no file
        fill(network, state, folder)
        return network


def phi_config(layout: ShowoLayout, sizes: Mapping[str, Any], qk_layernorm: bool = True) -> PhiConfig:
    """The language model's; transformers' own defaults are the sizes of phi-1.5."""
    act = "gelu_pytorch_tanh"  # phi's gelu_new as one operation
    return PhiConfig(vocab_size=layout.vocab_size, qk_layernorm=qk_layernorm, hidden_act=act, **sizes)
