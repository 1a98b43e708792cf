"""CLIP: pictures and texts as vectors of one space, from a folder of transformers or open_clip's tensors.

Knows modules, files and the names of tensors. What a similarity is worth is for rewards to say.

Shape legend: B pictures or texts, D width of the shared space.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from triptych.models.weights import fill, open_part, opened, read_state_dict
from triptych.trajectory import Picture

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICKSCORE, HPS, HPS_FILE = "yuvalkirstain/PickScore_v1", "xswu/HPSv2", "HPS_v2.1_compressed.pt"
NAMES = (
    (r"^visual\.(class_embedding)$", r"vision_model.embeddings.\1"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # spelt like this there
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^visual\.transformer\.resblocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
    (r"^transformer\.resblocks\.(\d+)\.", r"text_model.encoder.layers.\1."),
    (r"(layers\.\d+)\.ln_", r"\1.layer_norm"),
    (r"(layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"(layers\.\d+\.mlp)\.c_fc\.", r"\1.fc1."),
    (r"(layers\.\d+\.mlp)\.c_proj\.", r"\1.fc2."),
)
"""What open_clip calls a tensor, as a pattern, and what transformers does; applied one after another."""
TRANSPOSED = {"visual.proj", "text_projection"}


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its picture processor and tokenizer.

    ``pad`` makes pictures square with black, as HPSv2 does; otherwise their middle is cut out.
    """

    model: CLIPModel
    processor: CLIPImageProcessorPil
    tokenizer: CLIPTokenizer
    pad: bool = False

    @classmethod
    def open(cls, folder: str | Path, reader: str | Path | None = None) -> Self:
        """A folder or hub name; ``reader`` is another one for tokenizer and picture processor.

        In fp32, on the GPU where there is one. UserError for what is missing or cannot be read.
        """
        model = open_part(CLIPModel, folder, torch.float32)
        return cls(_ready(model), *_readers(reader or folder))

    @classmethod
    def open_hps(cls, folder: str | Path = HPS, reader: str | Path = CLIP_H) -> Self:
        """HPSv2.1's tensors (:data:`HPS_FILE`, open_clip's layout); sizes and tokenizer are ``reader``'s.

        UserError for a tensor that is missing, unknown or misshapen, named as transformers calls it.
        """
        processor, tokenizer = _readers(reader)
        with torch.device("meta"):
            model = CLIPModel(_about(CLIPConfig, reader))
        fill(model, from_open_clip(read_state_dict(folder, [HPS_FILE])), f"{folder}/{HPS_FILE}")
        for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
            count = embeddings.position_embedding.num_embeddings  # the one buffer, which no file holds
            embeddings.position_ids = torch.arange(count)[None]
        return cls(_ready(model), processor, tokenizer, pad=True)

    @property
    def scale(self) -> float:
        """What the model multiplies cosines by: the inverse of its temperature."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def see(self, pictures: Sequence[Picture]) -> Tensor:
        """Directions of pictures of any size, fp32 ``[B, D]`` of length 1."""
        arrays = [picture.cpu().numpy() for picture in pictures]
        pixels = self.processor(
            [_squared(a) for a in arrays] if self.pad else arrays,
            input_data_format="channels_last",
            return_tensors="pt",
        )["pixel_values"]
        return _unit(self.model.get_image_features(pixels.to(self.model.logit_scale)).pooler_output)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Directions of texts, cut where the model's positions end, fp32 ``[B, D]`` of length 1."""
        most = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt"
        )["input_ids"]
        return _unit(self.model.get_text_features(ids.to(self.model.device)).pooler_output)


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors by the names that ``CLIPModel`` has for them, fp32; unknown names stay.

    Queries, keys and values lie in one tensor there, and projections are ``x @ W``.
    """
    renamed: dict[str, Tensor] = {}
    for old, value in state.items():
        name, tensor = old, value.float()
        for pattern, better in NAMES:
            name = re.sub(pattern, better, name)
        if ".in_proj_" in name:
            parts = zip("qkv", tensor.chunk(3), strict=False)  # with fewer parts, one will be missed
            renamed |= {name.replace("in_proj_", f"{p}_proj."): part.clone() for p, part in parts}
        else:
            renamed[name] = tensor.T.contiguous() if old in TRANSPOSED else tensor
    return renamed


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=-1)


def _squared(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The picture in the middle of a black square."""
    missing = [max(array.shape[:2]) - side for side in array.shape[:2]]
    return np.pad(array, [*((n // 2, n - n // 2) for n in missing), (0, 0)])


def _ready(model: CLIPModel) -> CLIPModel:
    return model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def _readers(folder: str | Path) -> tuple[CLIPImageProcessorPil, CLIPTokenizer]:
    return _about(CLIPImageProcessorPil, folder), _about(CLIPTokenizer, folder)


def _about(kind: Any, folder: str | Path) -> Any:
    return opened(kind, folder, f"no {kind.__name__} at {folder}")
