"""UniGen's weights: a language model, a frozen tower that looks at pictures, and the folder that holds both.

Knows sizes, ids, patches and files. How a prompt becomes a row is :mod:`triptych.models.unigen`'s.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from triptych.errors import UserError
from triptych.models import canvas
from triptych.models.masked_network import MaskedLayout, MaskedNetwork
from triptych.models.patch_codec import projected, standardised
from triptych.models.weights import fill, known, read_config, read_state_dict
from triptych.trajectory import Picture

MODEL_TYPE = "unigen15"
FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class UniGenLayout(MaskedLayout):
    """Ids of words and marks, image codes, the mask; and how many patches of a picture are looked at.

    The defaults are those of Qwen2.5's 151,665 ids with nine marks, and of 384 x 384 pixels.
    """

    vocab_size: int = 159_867
    num_vq_tokens: int = 576
    max_num_patches: int = 256


class UniGenNetwork(MaskedNetwork):
    """All weights: ``llm.*``, ``mm_projector.*`` and ``vision_tower.*`` as UniGen v1 calls them, ``local.*``.

    The tower is frozen and, as v1 cuts it, ends before SigLIP2's last layer, without norm and pooling head.
    """

    layout: UniGenLayout
    base_model_prefix: ClassVar[str] = ""  # peft asks for it where a part's published names have changed

    def __init__(self, layout: UniGenLayout, llm: Qwen2ForCausalLM, tower: Siglip2VisionModel) -> None:
        super().__init__()
        self.layout = layout
        self.llm = llm
        self.vision_tower = tower.requires_grad_(False)
        tower.post_layernorm = nn.Identity()
        width, layers = llm.config.hidden_size, llm.config.num_hidden_layers
        self.mm_projector = nn.Sequential(
            nn.Linear(tower.config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.local = canvas.convolutions(width, layers) if layout.local else None
        self.processor = Siglip2ImageProcessorPil(
            patch_size=tower.config.patch_size, max_num_patches=layout.max_num_patches
        )

    @property
    def lm(self) -> Qwen2ForCausalLM:
        """The language model."""
        return self.llm

    def look(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Features of each picture, ``[rows x columns of its patches, D]``, at its own aspect ratio.

        It is resized to the largest multiple of a patch that keeps its shape and has at most
        ``max_num_patches``; shorter rows of patches are padded, and the padding is hidden and dropped.
        """
        found = self.processor([np.asarray(p) for p in pictures], input_data_format="channels_last")
        shapes = torch.from_numpy(np.asarray(found["spatial_shapes"]))
        lengths = shapes.prod(-1)
        used, weight = int(lengths.max()), self.vision_tower.embeddings.patch_embedding.weight
        pixels, mask = (np.stack(found[name])[:, :used] for name in ("pixel_values", "pixel_attention_mask"))
        hidden = self.vision_tower(
            pixel_values=torch.from_numpy(pixels).to(weight),
            pixel_attention_mask=torch.from_numpy(mask).to(weight.device),
            spatial_shapes=shapes,
        ).last_hidden_state
        features = self.mm_projector(hidden)
        return [row[:length] for row, length in zip(features, lengths.tolist(), strict=True)]

    # -- files -------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write ``config.json``, with both parts' own configs inside, and ``model.safetensors``."""
        about = {"model_type": MODEL_TYPE, **asdict(self.layout), "mask_token_id": self.layout.mask_id}
        parts = {"llm_config": self.llm.config, "vision_config": self.vision_tower.config}
        self.write(folder, about | {k: json.loads(c.to_json_string()) for k, c in parts.items()}, FILE)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        """Open a folder or a hub name; a missing, unknown or misshapen tensor is an error that names it."""
        about = read_config(folder)
        absent = [name for name in ("vocab_size", "llm_config", "vision_config") if name not in about]
        if absent:
            raise UserError(f"{folder}: config.json says nothing of {', '.join(absent)}")
        layout = UniGenLayout(**known(UniGenLayout, about))
        config = Qwen2Config.from_dict(about["llm_config"])
        config._name_or_path = str(folder)
        with torch.device("meta"):
            tower = Siglip2VisionModel(Siglip2VisionConfig.from_dict(about["vision_config"]))
            network = cls(layout, Qwen2ForCausalLM(config), tower)
        state = {key: value.to(dtype) for key, value in read_state_dict(folder, (FILE,)).items()}
        core = network.llm.model
        core.rotary_emb = type(core.rotary_emb)(config=config)  # computed, in no file
        fill(network, state, folder)
        return network


@torch.no_grad()
def grow(llm: Qwen2ForCausalLM, words: int, codebook: Tensor, layout: UniGenLayout) -> None:
    """Give embeddings and head the rows of ``layout``, all but the first ``words`` of them fresh.

    Fresh rows have the mean and spread of the old ones, coordinate by coordinate: drawn for marks and the
    mask, and projected from the codebook's own vectors for codes, so that alike codes start alike.
    """
    embed, head = llm.get_input_embeddings(), llm.lm_head
    for module in (embed, head):
        old = module.weight[:words]
        mean, spread = old.float().mean(0), old.float().std(0)
        fresh = torch.randn(layout.vocab_size - words, old.shape[1])
        codes = slice(layout.first_code - words, layout.mask_id - words)
        fresh[codes] = projected(standardised(codebook.float()), old.shape[1])
        module.weight = nn.Parameter(torch.cat([old, (mean + spread * fresh).to(old)]))
    embed.num_embeddings = head.out_features = llm.config.vocab_size = layout.vocab_size
    llm.config.tie_word_embeddings = False


def cut(tower: Siglip2VisionModel) -> None:
    """Take away SigLIP2's last layer and pooling head."""
    del tower.encoder.layers[-1:]
    if tower.use_head:
        del tower.head
    tower.use_head = tower.config.vision_use_head = False
    tower.config.num_hidden_layers -= 1
