"""UniGen-1.5: one masked-token model that reads, draws, and edits as it draws (arXiv 2511.14760).

Qwen2.5 reads features of SigLIP2 through a projector and draws tokens of MAGViT-v2, all in one vocabulary:
words, nine marks, image codes, the mask. Weights and code of 1.5 are not public. Those of UniGen v1 (arXiv
2505.14682, apple/ml-unigen) are the code that this file follows; editing is as the paper of 1.5 tells it:

- drawing: ``<|im_start|><|t2i|>user\\n{prompt}<|im_end|>\\n<|im_start|>assistant\\n<|soi|>[N]<|eoi|>``;
- reading: ``<|im_start|><|mmu|><|soi|>[features]<|eoi|>user\\n{question}<|im_end|>\\n<|im_start|>assistant``
  and a new line, then the answer and ``<|im_end|>``; a system turn stands before all of it;
- editing is drawing with a picture in the prompt: features of the source, instruction, codes of the source;
- text is causal; a canvas sees all text and all of itself; pictures of a prompt are seen by all of it;
- guidance ``u + s (c - u)``, or for edits ``u + s_I (i - u) + s_T (c - i)``, as
  :class:`~triptych.trajectory.Sampling` says: the paper draws with 5, and edits with s_T = 3, s_I = 1.5.

What the paper leaves open, and what we chose:

- Marks and their names: the nine of v1, after the tokenizer's own ids; ``<|t2i|>`` also says "edit".
- Where an edit's parts stand: ``<|im_start|><|t2i|>user\\n<|soi|>[features]<|eoi|>{instruction}`` and then
  ``<|soi|>[codes]<|eoi|><|im_end|>...``. Of several sources all features come first, then all codes. Codes
  are those of a picture's middle square.
- What a source sees: one rule for reading and editing, in which every row of the prompt sees every column
  of its pictures, marks included, and the text before it. The prompt never sees the canvas (in v1 the rows of
  any picture see all), so it is run once for all steps. When reading, v1 stops one feature short.
- Guidance: c is the prompt, i its pictures with an empty text, u the empty prompt without any picture. An
  example that is ``unconditional`` loses its text and keeps its pictures: edits train i, drawings train u.
- Without a picture the prompt is that of v1's T2I, or for reading Qwen's chat without ``<|mmu|>``.
- Pictures of different aspect ratio have as many feature columns as patches, at most ``max_num_patches``
  (256: the processor's own default); shorter prompts are padded on the left. Positions count what is there.
- Features are those that v1 takes: hidden states before SigLIP2's last layer, unnormed.
- Prompts are not cut (v1 cuts at 128 tokens when it draws), and no system prompt is put before them. A
  conversation is drawn from all of its text.
- Pieces of a prompt are tokenised one by one, as in v1. Embeddings and head are never tied.
- New rows of embeddings and head: see :func:`~triptych.models.unigen_network.grow`.

Shape legend: B rows, R rows (B times the branches of guidance), P prefix length, N image tokens, A actions,
D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM, Siglip2VisionModel

from triptych.models.causal import Prefix
from triptych.models.magvit2 import MagViT2Codec
from triptych.models.masked_model import MaskedModel, open_codec
from triptych.models.masked_network import BEGIN_IMAGE, DRAW, END_IMAGE, MARKS, READ
from triptych.models.patch_codec import PatchCodec
from triptych.models.rows import mark, padded, words
from triptych.models.unigen_network import UniGenLayout, UniGenNetwork, cut, grow
from triptych.models.weights import open_part, open_tokenizer
from triptych.models.writing import BEGIN_TURN, END_TURN
from triptych.trajectory import Prompt

PIXELS = 384


@dataclass(frozen=True)
class _Look:
    """One picture as the model sees it: ``features [n, D]``, and its ``codes``, where it is to be edited."""

    features: Tensor
    codes: list[int]


class UniGenModel(MaskedModel):
    """UniGen-1.5 behind the :class:`~triptych.models.base.UnifiedModel` contract: reads, draws and edits."""

    can: frozenset[str] = frozenset({"read", "draw", "edit"})
    name: ClassVar[str] = "unigen"
    title: ClassVar[str] = "UniGen"
    tower: ClassVar[str] = "vision_tower."
    network: UniGenNetwork

    def __init__(
        self, network: UniGenNetwork, tokenizer: PreTrainedTokenizerBase, codec: PatchCodec | MagViT2Codec
    ) -> None:
        super().__init__(network, tokenizer, codec)
        self.layout = network.layout
        self.marks |= {name: mark(tokenizer, name, self.title) for name in (BEGIN_TURN, END_TURN)}
        self.end = self.marks[END_TURN]

    # -- prompts as columns --------------------------------------------------------------------------
    def _looks(self, prompts: Sequence[Prompt], codes: bool) -> Mapping[int, _Look]:
        """Every picture, by identity: the rows of a group and the branches of guidance share theirs."""
        pictures = {id(picture): picture for prompt in prompts for picture in prompt.pictures}
        if not pictures:
            return {}
        seen = list(pictures.values())
        drawn = self._encode(seen) + self.layout.first_code if codes else torch.zeros(len(seen), 0)
        looks = zip(self.network.look(seen), drawn.tolist(), strict=True)
        return dict(zip(pictures, (_Look(*each) for each in looks), strict=True))

    def _framed_ids(self, ids: Sequence[int]) -> list[int]:
        return [self.marks[BEGIN_IMAGE], *ids, self.marks[END_IMAGE]]

    def _features(self, prompt: Prompt, looks: Mapping[int, _Look]) -> list[int]:
        """Columns of all features: the mask's id holds their place, for no prompt has it."""
        lengths = [len(looks[id(picture)].features) for picture in prompt.pictures]
        return [i for length in lengths for i in self._framed_ids([self.layout.mask_id] * length)]

    def _to_draw(self, prompt: Prompt, looks: Mapping[int, _Look]) -> list[list[int]]:
        """Pieces of a row before a canvas: text, features, text, codes, text."""
        codes = [i for picture in prompt.pictures for i in self._framed_ids(looks[id(picture)].codes)]
        return [
            words(self.tokenizer, f"{BEGIN_TURN}{DRAW}user\n"),
            self._features(prompt, looks),
            words(self.tokenizer, prompt.text),
            codes,
            words(self.tokenizer, f"{END_TURN}\n{BEGIN_TURN}assistant\n"),
        ]

    def _to_read(self, prompt: Prompt, looks: Mapping[int, _Look]) -> list[list[int]]:
        """Pieces of a row before an answer: text, features, text."""
        before, after = "", ""
        for turn in prompt.turns:
            text = "\n".join(part for part in turn.content if isinstance(part, str))
            said = f"{turn.role}\n{text}{END_TURN}\n"
            if turn.role == "system" and not after:
                before += BEGIN_TURN + said
            else:
                after += (BEGIN_TURN if after else "") + said
        opening = f"{before}{BEGIN_TURN}{READ if prompt.pictures else ''}"
        closing = f"{after}{BEGIN_TURN if after else ''}assistant\n"
        return [
            words(self.tokenizer, opening),
            self._features(prompt, looks),
            words(self.tokenizer, closing),
        ]

    def _prefix(self, prompts: Sequence[Prompt], draw: bool) -> Prefix:
        looks = self._looks(prompts, codes=draw)
        pieces = [(self._to_draw if draw else self._to_read)(prompt, looks) for prompt in prompts]
        joined = [[i for piece in row for i in piece] for row in pieces]
        ids, valid = padded(joined, self.layout.mask_id, self.device)
        of_pictures = [[i % 2 for i, piece in enumerate(row) for _ in piece] for row in pieces]
        seen = padded(of_pictures, 0, self.device)[0].bool()
        embeds: Tensor = self.network.get_input_embeddings()(ids)
        features = [looks[id(picture)].features for prompt in prompts for picture in prompt.pictures]
        if features:
            place = (valid & (ids == self.layout.mask_id))[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(place, torch.cat(features).to(embeds))
        return Prefix(self.network.decoder(), embeds, valid, seen)

    def _canvas_prefix(self, prompts: Sequence[Prompt]) -> Prefix:
        return self._prefix(prompts, draw=True)

    def _answer_prefix(self, prompts: Sequence[Prompt], room: int) -> Prefix:
        return self._prefix(prompts, draw=False)

    # -- files -----------------------------------------------------------------------------------------
    @classmethod
    def _open(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        network = UniGenNetwork.load(folder, dtype)
        return cls(network, open_tokenizer(folder), open_codec(folder))

    @classmethod
    def from_parts(
        cls,
        qwen: str | Path,
        siglip: str | Path,
        magvit: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        pixels: int = PIXELS,
        max_num_patches: int = UniGenLayout.max_num_patches,
        seed: int = 0,
    ) -> Self:
        """A UniGen that is still to be trained: Qwen2.5, SigLIP2 and MAGViT-v2, folders or hub names.

        It draws squares of ``pixels``. The projector, and rows of marks, codes and mask, start at random.
        """
        codec, tokenizer = MagViT2Codec.load(magvit, dtype=dtype), open_tokenizer(qwen)
        known = len(tokenizer)
        tokenizer.add_tokens(list(MARKS), special_tokens=True)
        layout = UniGenLayout(
            vocab_size=len(tokenizer) + len(codec.codebook) + 1,
            codebook_size=len(codec.codebook),
            num_vq_tokens=(pixels // codec.sizes.downsampling) ** 2,
            max_num_patches=max_num_patches,
        )
        llm, tower = open_part(Qwen2ForCausalLM, qwen, dtype), open_part(Siglip2VisionModel, siglip, dtype)
        cut(tower)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            grow(llm, known, codec.codebook, layout)
            network = UniGenNetwork(layout, llm, tower)
        network.mm_projector.to(dtype)
        return cls(network, tokenizer, codec)
