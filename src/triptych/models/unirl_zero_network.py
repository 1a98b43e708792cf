"""UniRL-Zero's weights: a language expert, a diffusion expert, what joins them, and the folder of it all.

    prompt + queries -> lm -> hidden states at the queries -> connector -> captions -> dm -> velocity

Knows columns, positions, modules and files. How a prompt becomes ids, and how steps are drawn and scored, is
for the model above (``models/unirl_zero.py``) and the kernel (``kernels/flow.py``) to say.

What the paper leaves open, and what we chose: queries come last, and their positions count on from the
prompt; they see all before them, one another by the language model's causal mask, and both ways in the
connector. The vision tower belongs to the group of the language model.

The folder: ``config.json``, the tokenizer's files, ``connector.safetensors`` (queries, connector, and the
layers that are ours in the expert), ``lm/`` in the layout of transformers, ``transformer/`` in that of
diffusers, so that each library opens its own part; and the codec (:mod:`triptych.models.latent_codec`).

Shape legend: B rows, P padded prompt length, M queries, D width of the language model, C caption width,
A actions, c latent channels, h x w latent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from triptych.errors import UserError
from triptych.models import causal
from triptych.models.causal import Decoder
from triptych.models.connector import Connector, ConnectorSizes
from triptych.models.diffusion import DiffusionExpert, expert_of
from triptych.models.rows import padded
from triptych.models.weights import INDEX, fill, open_part, opened, read_config, read_state_dict
from triptych.trajectory import Picture

MODEL_TYPE = "unirl_zero"
LM, DM = "lm", "transformer"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
FILES = {"lm.": f"{LM}/model.safetensors", "dm.model.": f"{DM}/{DIFFUSERS_FILE}", "": "connector.safetensors"}
HEAD, WORDS = "lm.lm_head.weight", "lm.model.language_model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class UniRLZeroLayout:
    """What ``config.json`` says beside the parts' own configs; the defaults are the public model's."""

    queries: int = 256
    connector: ConnectorSizes = ConnectorSizes()


@dataclass(frozen=True)
class Columns:
    """Prompts as the language model sees them, padded on the left.

    ``embeds [B, P, D]``, of which ``valid [B, P]`` count. ``places [3, B, P]`` holds the rotary positions
    (time, row, column) of each row's first, second, ... valid column; what follows counts on from the last.
    """

    embeds: Tensor
    valid: Tensor
    places: Tensor


class Queries(nn.Module):
    """What stands after a prompt to be drawn: ``draw [M, D]``, or for edits ``edit [M, D]``."""

    def __init__(self, count: int, width: int, spread: float) -> None:
        super().__init__()
        self.draw, self.edit = (nn.Parameter(spread * torch.randn(count, width)) for _ in range(2))

    def forward(self, edit: Tensor) -> Tensor:
        """``edit [B]`` bool -> ``[B, M, D]``."""
        return torch.where(edit[:, None, None], self.edit, self.draw)


class UniRLZeroNetwork(nn.Module):
    """All weights: ``lm.*``, ``connector.*``, ``queries.draw``, ``queries.edit``, ``dm.*``: four experts."""

    base_model_prefix: ClassVar[str] = ""  # peft asks for it where a part's published names have changed

    def __init__(
        self,
        lm: Qwen2_5_VLForConditionalGeneration,
        dm: DiffusionExpert,
        processor: Qwen2VLImageProcessorPil,
        layout: UniRLZeroLayout,
    ) -> None:
        super().__init__()
        text = lm.config.text_config
        self.layout = layout
        self.processor = processor
        self.lm = lm
        self.queries = Queries(layout.queries, text.hidden_size, text.initializer_range)
        self.connector = Connector(text.hidden_size, dm.captions, layout.connector)
        self.dm = dm

    @property
    def config(self) -> Qwen2_5_VLConfig:
        """The language model's."""
        return self.lm.config

    def get_input_embeddings(self) -> nn.Module:
        """Embeddings of the whole vocabulary."""
        return self.lm.get_input_embeddings()

    def set_attn_implementation(self, implementation: str) -> None:
        """Which attention kernel the language model and its vision tower use."""
        self.lm.set_attn_implementation(implementation)

    # -- prompts -----------------------------------------------------------------------------------
    def look(self, pictures: Sequence[Picture]) -> tuple[list[Tensor], Tensor]:
        """Features ``[n, D]`` of each picture at its own shape; how many patches (time, rows, columns)."""
        found = self.processor(
            [np.asarray(picture) for picture in pictures],
            input_data_format="channels_last",
            return_tensors="pt",
        )
        grids = found["image_grid_thw"]
        pixels = found["pixel_values"].to(self.get_input_embeddings().weight)
        features = self.lm.model.get_image_features(pixels, grids.to(pixels.device)).pooler_output
        return list(features), grids

    def columns(self, rows: Sequence[Sequence[int]], pictures: Sequence[Sequence[Picture]]) -> Columns:
        """Ids with one image token for each of a row's pictures, as columns. Rows may share a picture.

        An image token becomes as many columns as its picture has features. Two never stand side by side:
        there are vision marks around them. A row whose image tokens are not as many as its pictures is a
        :class:`UserError`: a prompt's text holds the mark of a picture.
        """
        mark = self.config.image_token_id
        if any(list(row).count(mark) != len(seen) for row, seen in zip(rows, pictures, strict=True)):
            raise UserError(
                "a prompt has another number of image tokens than of pictures: take them out of its text"
            )
        shown = {id(picture): picture for seen in pictures for picture in seen}
        features, grids = self.look(list(shown.values())) if shown else ([], torch.zeros(0, 3).long())
        number = {key: i for i, key in enumerate(shown)}
        order = [number[id(picture)] for seen in pictures for picture in seen]
        lengths = iter([len(features[i]) for i in order])
        wide = [[t for i in row for t in [i] * (next(lengths) if i == mark else 1)] for row in rows]
        ids, valid = padded(wide, self.config.text_config.pad_token_id or 0, self.lm.device)
        here = valid & (ids == mark)
        embeds: Tensor = self.get_input_embeddings()(ids)
        if order:
            joined = torch.cat([features[i] for i in order]).to(embeds)
            embeds = embeds.masked_scatter(here[..., None].expand_as(embeds), joined)
        return Columns(embeds, valid, self._places(ids, valid, here, grids[order]))

    def _places(self, ids: Tensor, valid: Tensor, seen: Tensor, grids: Tensor) -> Tensor:
        """Positions as the language model gives them, moved from where columns stand to where they count."""
        place, ahead = self.lm.model.get_rope_index(
            ids, seen.int(), grids.to(ids.device), attention_mask=valid
        )
        width, lengths = ids.shape[1], valid.sum(1, keepdim=True)
        count = torch.arange(width, device=ids.device).expand_as(ids)
        moved = place.gather(2, ((count + width - lengths) % width).expand_as(place))
        return torch.where(count < lengths, moved, count + ahead)

    # -- the language expert -----------------------------------------------------------------------
    def decoder(self, columns: Columns) -> Decoder:
        """The layers, for :mod:`triptych.models.causal`: it counts columns, and here counts become places."""
        core, last = self.lm.model.language_model, columns.places.shape[2] - 1

        def rotary(places: Tensor, embeds: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            inside = position_ids.clamp(max=last)
            found = places.gather(2, inside.expand(3, -1, -1)) + (position_ids - inside)
            return core.rotary_emb(embeds, found)

        turned = partial(rotary, columns.places)
        return Decoder(core.layers, turned, core.norm, lambda rows: partial(rotary, columns.places[:, rows]))

    def condition(self, columns: Columns, edit: Sequence[bool], *, recompute: bool = False) -> Tensor:
        """Captions ``[B, M, C]`` of prompts; rows in ``edit [B]`` ask with the queries for editing."""
        asked = self.queries(torch.tensor(list(edit), device=self.lm.device)).to(columns.embeds)
        hidden = causal.teacher_forced(
            self.decoder(columns),
            torch.cat([columns.embeds, asked], dim=1),
            torch.cat([columns.valid, columns.valid.new_ones(asked.shape[:2])], dim=1),
            recompute=recompute,
        )
        return self.connector(hidden[:, columns.embeds.shape[1] :], recompute)

    # -- files -------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write all parts; the head is left out where it is tied to the embeddings."""
        for name in (LM, DM):
            (folder / name).mkdir(parents=True, exist_ok=True)
        about = {"model_type": MODEL_TYPE, **asdict(self.layout)}
        (folder / "config.json").write_text(json.dumps(about, indent=1))
        self.config.save_pretrained(folder / LM)
        self.processor.save_pretrained(folder / LM)
        self.dm.model.save_config(folder / DM)
        rest = {key: value.contiguous() for key, value in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del rest[HEAD]
        for prefix, file in FILES.items():
            part = {key: rest.pop(key) for key in list(rest) if key.startswith(prefix)}
            named = {key.removeprefix(prefix): value for key, value in part.items()}
            save_file(named, folder / file, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        """Open what :meth:`save` wrote; a missing, unknown or misshapen tensor is an error that names it."""
        config = Qwen2_5_VLConfig.from_dict(read_config(folder, f"{LM}/config.json"))
        config._name_or_path = str(folder)
        dm_config, layout = read_config(folder, f"{DM}/config.json"), _layout(read_config(folder), folder)
        with torch.device("meta"):
            lm, dm = Qwen2_5_VLForConditionalGeneration(config), expert_of(dm_config, f"{folder}/{DM}")
            network = cls(lm, dm, _processor(folder, subfolder=LM), layout)
        state = {
            prefix + key: value.to(dtype)
            for prefix, file in FILES.items()
            for key, value in read_state_dict(folder, (file, file + INDEX)).items()
        }
        if config.tie_word_embeddings and WORDS in state:
            state[HEAD] = state[WORDS]
        fill(network, state, folder)
        lm.tie_weights()
        text, vision = lm.model.language_model, lm.model.visual  # what follows is computed, in no file
        text.rotary_emb = type(text.rotary_emb)(config=config.text_config)
        vision.rotary_pos_emb = type(vision.rotary_pos_emb)(config.vision_config)
        dm.restore()
        return network

    @classmethod
    def assemble(
        cls,
        qwen: str | Path,
        diffusion: str | Path,
        layout: UniRLZeroLayout = UniRLZeroLayout(),
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Self:
        """From a folder of Qwen2.5-VL and one of SANA or SD3 (``transformer/``); the rest is at random."""
        lm = open_part(Qwen2_5_VLForConditionalGeneration, qwen, dtype)
        name = f"{DM}/{DIFFUSERS_FILE}"
        state = read_state_dict(diffusion, (name, name + INDEX))
        config = read_config(diffusion, f"{DM}/config.json")
        with torch.device("meta"):
            blank = expert_of(config, diffusion)
        fill(blank.model, {key: value.to(dtype) for key, value in state.items()}, f"{diffusion}/{DM}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            dm = type(blank)(blank.model)
            dm.restore()
            network = cls(lm, dm, _processor(qwen), layout)
        for part in (network.queries, network.connector, network.dm):
            part.to(dtype)
        return network


def _processor(folder: str | Path, **how: str) -> Any:
    """How pictures become patches: a folder's ``preprocessor_config.json``."""
    return opened(Qwen2VLImageProcessorPil, folder, f"no picture processor at {folder}", **how)


def _layout(about: Mapping[str, Any], folder: str | Path) -> UniRLZeroLayout:
    try:
        return UniRLZeroLayout(queries=about["queries"], connector=ConnectorSizes(**about["connector"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: config.json does not describe a UniRL-Zero model ({error})") from None
