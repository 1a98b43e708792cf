"""What masked-token models do alike, over one language model whose vocabulary ends in image codes and a mask.

Drawing is unmasking a canvas after a prompt, reading is writing after one. How a prompt becomes columns,
and which parts a model has, is for Show-o (:mod:`triptych.models.showo`) and UniGen
(:mod:`triptych.models.unigen`) to say; the policy is over image codes alone when drawing, and over the whole
vocabulary when writing.

Shape legend: B rows, R rows (B times the branches of guidance), P prefix length, N image tokens, A actions,
D width, K codes.
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import PreTrainedTokenizerBase

from triptych.errors import UserError
from triptych.kernels import masked as kernel
from triptych.kernels import tokens as token_kernel
from triptych.kernels.noise import uniforms
from triptych.kernels.relaxed import Relaxation, relaxed
from triptych.models import canvas
from triptych.models.base import Example, LossSum
from triptych.models.causal import Prefix
from triptych.models.magvit2 import MagViT2Codec
from triptych.models.masked_network import BEGIN_IMAGE, DRAW, END_IMAGE, READ, MaskedNetwork
from triptych.models.packed import packed
from triptych.models.patch_codec import PatchCodec
from triptych.models.rows import mark, times
from triptych.models.writing import WritingModel
from triptych.trajectory import (
    Denoising,
    MaskedImageSegment,
    NoiseKey,
    Picture,
    Prompt,
    Sampling,
    Scores,
    Segment,
    TokenSegment,
)

CODEC_FOLDER = "vq"


class MaskedModel(WritingModel):
    """Reads, and draws by unmasking, over a :class:`MaskedNetwork`."""

    experts: ClassVar[tuple[str, ...]] = ("model", "attention", "tokens")
    network: MaskedNetwork
    codec: PatchCodec | MagViT2Codec

    def __init__(
        self, network: MaskedNetwork, tokenizer: PreTrainedTokenizerBase, codec: PatchCodec | MagViT2Codec
    ) -> None:
        super().__init__(network, tokenizer, codec)
        layout = network.layout
        self.draw_tokens, self.codes = layout.num_vq_tokens, layout.codebook_size
        step = codec.patch if isinstance(codec, PatchCodec) else codec.sizes.downsampling
        self.image_size = isqrt(self.draw_tokens) * step
        if len(codec.codebook) != self.codes:
            raise UserError(f"the codec has {len(codec.codebook)} codes, the model {self.codes}")
        if len(tokenizer) != layout.first_code:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} ids, the model {layout.first_code} before its codes"
            )
        names = (BEGIN_IMAGE, END_IMAGE, DRAW, READ)
        self.marks = {name: mark(tokenizer, name, self.title) for name in names}

    @abstractmethod
    def _canvas_prefix(self, prompts: Sequence[Prompt]) -> Prefix:
        """What stands before a canvas."""

    def _expert(self, name: str) -> str:
        """Embeddings and head; queries and keys; all else."""
        if "embed_tokens." in name or "lm_head." in name:
            return "tokens"
        return "attention" if "q_proj." in name or "k_proj." in name else "model"

    # -- drawing -----------------------------------------------------------------------------------
    def _hidden(
        self, prompts: Sequence[Prompt], sampling: Sampling, blank: Sequence[bool] | None = None
    ) -> kernel.Hidden:
        """Hidden states of a canvas after these prompts, which are run here, once.

        With guidance, every row again after the empty prompt, and before that, with two scales, after its
        pictures alone. Rows in ``blank [B]`` have no text of their own.
        """
        network, branches = self.network, token_kernel.branches(sampling)
        bare, hide = [Prompt.of(*p.pictures) for p in prompts], blank or [False] * len(prompts)
        rows = [pictures if h else p for p, pictures, h in zip(prompts, bare, hide, strict=True)]
        rows += bare if branches == 3 else []
        rows += [Prompt.of("")] * len(prompts) if branches > 1 else []
        prefix, embed = self._shared(rows, self._canvas_prefix), network.get_input_embeddings()
        over, columns = network.decoder(first=1), self.draw_tokens + 2
        run = canvas.prepare(prefix, over, columns, recompute=self.recompute)

        def hidden(tokens: Tensor, masked: Tensor) -> Tensor:
            layout = network.layout
            drawn = torch.where(masked, layout.mask_id, tokens + layout.first_code)
            return run(embed(self._framed(drawn)).repeat(branches, 1, 1))[:, 1:-1]

        return hidden

    def _framed(self, ids: Tensor) -> Tensor:
        """Image tokens ``[B, N]`` between their marks."""
        ends = [ids.new_full((len(ids), 1), self.marks[name]) for name in (BEGIN_IMAGE, END_IMAGE)]
        return torch.cat([ends[0], ids, ends[1]], dim=1)

    @torch.no_grad()
    def generate_image(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> MaskedImageSegment:
        """Draw pictures in ``sampling.unmask.steps`` passes: ``tokens [B, N]`` in raster order."""
        if sampling.source_guidance is not None and "edit" not in self.can:
            raise UserError(f"source_guidance is for edits, and {self.name} cannot edit: leave it unset")
        if sampling.denoise != Denoising():
            raise UserError("denoise is for latents, and these are tokens: leave it at its default")
        noise = kernel.noise(keys, self.draw_tokens, sampling.unmask).to(self.device)
        head = self.network.code_head()
        rows = len(prompts) * (self.draw_tokens + 2) * token_kernel.branches(sampling)
        with packed(self._lm, head, rows=rows):
            drawn = kernel.unmask(self._hidden(prompts, sampling), head, noise, sampling)
        return MaskedImageSegment(
            name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(drawn)
        )

    def decode(self, segment: Segment) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [0, 1]."""
        if not isinstance(segment, MaskedImageSegment):
            raise UserError(f"{self.name} cannot make a picture of a {segment.kind} segment")
        return self.codec.decode(segment.tokens.to(self.device))

    def relax(self, segment: Segment, relaxation: Relaxation, keys: Sequence[NoiseKey]) -> Sequence[Picture]:
        """See :meth:`UnifiedModel.relax`: weights over codes, ``[N, K]`` each.

        One pass over the canvas of one of the S steps, any of them alike, by ``keys``: the tokens that were
        committed from then on are relaxed, those before stay what they are.
        """
        self.require("relax")
        assert isinstance(segment, MaskedImageSegment), f"{self.name} drew no {segment.kind} segment"
        segment = segment.to(self.device)
        draws = uniforms(keys, 1 + self.draw_tokens * self.codes).to(self.device)
        masked = segment.commit >= (draws[:, :1] * segment.sampling.unmask.steps).long()
        with self._quick(self._lm):
            hidden = self._hidden(segment.context, segment.sampling)(segment.tokens, masked)
            logits = self.network.code_head()(hidden)
        uniform = draws[:, 1:].view(*segment.tokens.shape, self.codes)
        weights = relaxed(logits, segment.tokens, uniform, segment.sampling, relaxation)
        hard = one_hot(segment.tokens, self.codes).to(weights)
        return tuple(torch.where(masked[..., None], weights, hard))

    # -- scoring -----------------------------------------------------------------------------------
    def forward(
        self,
        segment: Segment,
        need: frozenset[str],
        blank: Sequence[bool] | None = None,
    ) -> Scores:
        """See :meth:`UnifiedModel.score`. Rows in ``blank [B]`` are scored without their text."""
        segment = segment.to(self.device)
        with self._quick(self._lm):
            if isinstance(segment, MaskedImageSegment):
                return self._drawn_scores(segment, need, blank)
            assert isinstance(segment, TokenSegment), f"{self.name} drew no {segment.kind} segment"
            return self._token_scores(segment, need)

    def _drawn_scores(
        self, segment: MaskedImageSegment, need: frozenset[str], blank: Sequence[bool] | None
    ) -> Scores:
        about = (segment.context, segment.sampling, blank)
        other = None
        if "kl" in need:
            with self.reference():
                hidden, head = self._hidden(*about), self.network.code_head()
            other = (self.reference()(hidden), self.reference()(head))
        return kernel.score(
            segment,
            self._hidden(*about),
            self.network.code_head(),
            vocabulary=self.codes,
            entropy="entropy" in need,
            reference=other,
        )

    # -- learning ----------------------------------------------------------------------------------
    def _drawing_loss(self, examples: Sequence[Example], encoded: Tensor) -> LossSum:
        """Cross-entropy of hidden codes."""
        return self._loss(canvas.target(examples, encoded), blank=[e.unconditional for e in examples])

    def _drawing_count(self, examples: Sequence[Example]) -> int:
        """Codes that are hidden."""
        return int(kernel.hidden_count(times(examples), self.draw_tokens).sum()) if examples else 0

    def _save(self, folder: Path) -> None:
        self.network.save(folder)
        self.codec.save(folder if isinstance(self.codec, PatchCodec) else folder / CODEC_FOLDER)


def open_codec(folder: str | Path, otherwise: str | None = None) -> PatchCodec | MagViT2Codec:
    """A starter's dictionary, else MAGViT-v2: from the folder, or where it has none, from ``otherwise``."""
    if (Path(folder) / PatchCodec.FILE).exists():
        return PatchCodec.load(Path(folder))
    inside = Path(folder) / CODEC_FOLDER
    return MagViT2Codec.load(inside if inside.is_dir() or otherwise is None else otherwise)
