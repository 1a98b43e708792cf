"""What masked-token models do alike, over one language model whose vocabulary ends in image codes and a mask.

Drawing is unmasking a canvas after a prompt, reading is writing after one. How a prompt becomes columns,
and which parts a model has, is for Show-o (:mod:`triptych.models.showo`) and UniGen
(:mod:`triptych.models.unigen`) to say; the policy is over image codes alone when drawing, and over the whole
vocabulary when writing.

Shape legend: B rows, R rows (B times the branches of guidance), P prefix length, N image tokens, A actions,
D width, K codes.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import ClassVar, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from triptych.errors import UserError
from triptych.kernels import masked as kernel
from triptych.kernels import tokens as token_kernel
from triptych.kernels.noise import uniforms
from triptych.models import canvas, causal
from triptych.models.base import Example, LossSum, Scores, UnifiedModel, from_pictures
from triptych.models.lora import adapters, open_adapter, save_adapter
from triptych.models.magvit2 import MagViT2Codec
from triptych.models.masked_network import BEGIN_IMAGE, DRAW, END_IMAGE, READ, MaskedNetwork
from triptych.models.packed import packed, quick
from triptych.models.patch_codec import PatchCodec
from triptych.models.quiet import quiet
from triptych.models.rows import answer_count, answers, texts
from triptych.trajectory import (
    Denoising,
    MaskedImageSegment,
    NoiseKey,
    Picture,
    Prompt,
    Sampling,
    Segment,
    TextSegment,
    TokenSegment,
)

CODEC_FOLDER = "vq"


@dataclass(frozen=True)
class Prefix:
    """Left-padded prompts as embeddings ``[R, P, D]``, with the columns that count ``[R, H + P]``.

    ``seen [R, P]``: pictures' columns, which all of the prefix sees. ``past``: H columns run before.
    """

    embeds: Tensor
    valid: Tensor
    seen: Tensor | None = None
    past: causal.BufferCache | None = None


class MaskedModel(UnifiedModel):
    """Reads, and draws by unmasking, over a :class:`MaskedNetwork`."""

    title: ClassVar[str]
    end: int

    def __init__(
        self, network: MaskedNetwork, tokenizer: PreTrainedTokenizerBase, codec: PatchCodec | MagViT2Codec
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.codec = codec
        self.eval()
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
        self.marks = {mark: self._token(mark) for mark in (BEGIN_IMAGE, END_IMAGE, DRAW, READ)}

    def _token(self, text: str) -> int:
        token = self.tokenizer.convert_tokens_to_ids(text)
        if not isinstance(token, int) or token == self.tokenizer.unk_token_id:
            raise UserError(f"the tokenizer has no {text!r}: this is not a {self.title} tokenizer")
        return token

    # -- what a model says of its prompts ------------------------------------------------------------
    @abstractmethod
    def _canvas_prefix(self, prompts: Sequence[Prompt]) -> Prefix:
        """What stands before a canvas."""

    @abstractmethod
    def _answer_prefix(self, prompts: Sequence[Prompt], room: int) -> Prefix:
        """What stands before an answer of up to ``room`` tokens."""

    @abstractmethod
    def _written(self, segment: TokenSegment) -> Tensor:
        """Hidden states ``[B, A, D]`` that predict a text's tokens: each one *before* its token."""

    # -- drawing -----------------------------------------------------------------------------------
    def _hidden(
        self, prompts: Sequence[Prompt], sampling: Sampling, blank: Sequence[bool] | None = None
    ) -> kernel.Hidden:
        """Hidden states of a canvas after these prompts, which are run here, once.

        With guidance, every row again after the empty prompt, and before that, with two scales, after its
        pictures alone. Rows in ``blank [B]`` have no text of their own.
        """
        network, branches = self.network, token_kernel.branches(sampling.guidance, sampling.source_guidance)
        bare, hide = [Prompt.of(*p.pictures) for p in prompts], blank or [False] * len(prompts)
        rows = [pictures if h else p for p, pictures, h in zip(prompts, bare, hide, strict=True)]
        rows += bare if branches == 3 else []
        rows += [Prompt.of("")] * len(prompts) if branches > 1 else []
        prefix, embed = self._canvas_prefix(rows), network.get_input_embeddings()
        run = canvas.prepare(
            network.decoder(),
            network.decoder(first=1),
            prefix.embeds,
            prefix.valid,
            self.draw_tokens + 2,
            seen=prefix.seen,
            recompute=self.recompute,
        )

        def hidden(tokens: Tensor, masked: Tensor) -> Tensor:
            layout = network.layout
            drawn = torch.where(masked, layout.mask_id, tokens + layout.first_code)
            return run(embed(self._framed(drawn)).repeat(branches, 1, 1))[:, 1:-1]

        return hidden

    def _framed(self, ids: Tensor) -> Tensor:
        """Image tokens ``[B, N]`` between their marks."""
        ends = [ids.new_full((len(ids), 1), self.marks[mark]) for mark in (BEGIN_IMAGE, END_IMAGE)]
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
        branches = token_kernel.branches(sampling.guidance, sampling.source_guidance)
        rows = len(prompts) * (self.draw_tokens + 2) * branches
        with packed(self.network.lm.model, head, rows=rows):
            drawn = kernel.unmask(self._hidden(prompts, sampling), head, noise, sampling)
        return MaskedImageSegment(
            name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(drawn)
        )

    def _encode(self, pictures: Sequence[Picture]) -> Tensor:
        """Codes ``[B, N]`` of pictures, cut to a square and resized where need be."""
        size = (self.image_size,) * 2
        fitted = [p if p.shape[:2] == size else fit(p, self.image_size) for p in pictures]
        return self.codec.encode(from_pictures(fitted).to(self.device))

    def decode(self, segment: Segment) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [0, 1]."""
        if not isinstance(segment, MaskedImageSegment):
            raise UserError(f"{self.name} cannot make a picture of a {segment.kind} segment")
        return self.codec.decode(segment.tokens.to(self.device))

    # -- writing -----------------------------------------------------------------------------------
    @torch.no_grad()
    def generate_text(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> TextSegment:
        """Write answers: ``tokens [B, A]``, A the longest answer; the end token counts as an action."""
        if sampling.guidance != 1:
            raise UserError(f"{self.name} writes text without guidance; got guidance {sampling.guidance}")
        head = self.network.lm.lm_head
        with packed(self.network.lm.model, head, rows=len(prompts)):
            before = self._answer_prefix(prompts, sampling.max_tokens)
            written = causal.autoregress(
                self.network.decoder(),
                before.embeds,
                before.valid,
                uniforms(keys, sampling.max_tokens).to(self.device),
                sampling,
                head=head,
                embed=self.network.get_input_embeddings(),
                end=self.end,
                past=before.past,
                seen=before.seen,
            )
        return TextSegment(name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(written))

    def texts(self, segment: TextSegment) -> list[str]:
        """The written strings, up to the end token."""
        return texts(self.tokenizer, segment)

    # -- scoring -----------------------------------------------------------------------------------
    def forward(
        self,
        segment: Segment,
        need: frozenset[str],
        reference: bool = False,
        blank: Sequence[bool] | None = None,
    ) -> Scores:
        """See :meth:`UnifiedModel.score`. Rows in ``blank [B]`` are scored without their text."""
        segment = segment.to(self.device)
        plain = self.recompute  # what is recomputed must be computed the same way twice
        with quick(*([] if plain else [self.network.lm.model])):
            if isinstance(segment, MaskedImageSegment):
                scores = self._drawn_scores(segment, need, blank)
            else:
                assert isinstance(segment, TokenSegment), f"{self.name} drew no {segment.kind} segment"
                scores = self._text_scores(segment, need)
        return Scores(scores.logp, scores.entropy, scores.kl)

    def _drawn_scores(
        self, segment: MaskedImageSegment, need: frozenset[str], blank: Sequence[bool] | None
    ) -> token_kernel.TokenScores:
        about = (segment.context, segment.sampling, blank)
        other = None
        if "kl" in need:
            with self.reference():
                hidden, head = self._hidden(*about), self.network.code_head()
            other = (self.as_reference(hidden), self.as_reference(head))
        return kernel.score(
            segment,
            self._hidden(*about),
            self.network.code_head(),
            vocabulary=self.codes,
            entropy="entropy" in need,
            reference=other,
        )

    def _text_scores(self, segment: TokenSegment, need: frozenset[str]) -> token_kernel.TokenScores:
        other = None
        if "kl" in need:
            with self.reference():
                other = (self._written(segment), self.as_reference(self.network.lm.lm_head))
        return token_kernel.score_hidden(
            self._written(segment),
            self.network.lm.lm_head,
            segment.tokens,
            segment.sampling.temperature,
            entropy="entropy" in need,
            reference=other,
            vocabulary=self.network.layout.vocab_size,
        )

    # -- learning ----------------------------------------------------------------------------------
    def supervised_loss(self, examples: Sequence[Example]) -> dict[str, LossSum]:
        """Cross-entropy of hidden codes ("draw", METHODS 1) and of answers with their end token ("read")."""
        losses = {}
        draws = [e for e in examples if isinstance(e.target, Tensor)]
        reads = [e for e in examples if isinstance(e.target, str)]
        if draws:
            ids = self._encode([e.target for e in draws if isinstance(e.target, Tensor)])
            losses["draw"] = self._loss(canvas.target(draws, ids), [e.unconditional for e in draws])
        if reads:
            losses["read"] = self._loss(answers(self.tokenizer, reads, self.end, self.device))
        return losses

    def target_count(self, examples: Sequence[Example]) -> int:
        """Codes that are hidden, and words to write with their end token."""
        draws = [e for e in examples if isinstance(e.target, Tensor)]
        hidden = int(canvas.mask_counts(draws, self.draw_tokens).sum()) if draws else 0
        return hidden + answer_count(self.tokenizer, examples)

    def _loss(self, segment: Segment, blank: Sequence[bool] | None = None) -> LossSum:
        logp = self(segment, frozenset({"logp"}), blank=blank).logp
        return LossSum(-(logp * segment.mask).sum(), segment.mask.sum())

    # -- files -------------------------------------------------------------------------------------
    def save_pretrained(self, folder: Path) -> None:
        """Write the public layout, tokenizer and codec; with adapters that of peft (which names the base)."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        if adapters(self.network):
            return save_adapter(self.network, folder)
        self.network.save(folder)
        self.codec.save(folder if isinstance(self.codec, PatchCodec) else folder / CODEC_FOLDER)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Open a folder or a hub name; a missing, unknown or misshapen tensor is an error that names it."""
        if (adapter := Path(folder) / "adapter_config.json").exists():
            base = json.loads(adapter.read_text())["base_model_name_or_path"]
            model = cls.from_pretrained(base, dtype=dtype)
            open_adapter(model.network, Path(folder))
            return model
        return cls._open(folder, dtype)

    @classmethod
    @abstractmethod
    def _open(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        """Open a folder that holds the whole model."""


def open_codec(folder: str | Path, otherwise: str | None = None) -> PatchCodec | MagViT2Codec:
    """A starter's dictionary, else MAGViT-v2: from the folder, or where it has none, from ``otherwise``."""
    if (Path(folder) / PatchCodec.FILE).exists():
        return PatchCodec.load(Path(folder))
    inside = Path(folder) / CODEC_FOLDER
    return MagViT2Codec.load(inside if inside.is_dir() or otherwise is None else otherwise)


def open_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name."""
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at {source}: {str(error).splitlines()[0]}") from None
    return tokenizer


def fit(picture: Picture, size: int) -> Picture:
    """The middle square of a picture, as the public code cuts it: the short side is resized first."""
    image = Image.fromarray(picture.numpy())
    short = min(image.size)
    image = image.resize([int(size * side / short) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(size, size, 3)
