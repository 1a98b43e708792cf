"""Show-o: one language model that reads pictures and draws them by unmasking many tokens at once.

Wraps transformers' Phi and loads the public layout (``showlab/show-o``, ``showlab/show-o-512x512``; arXiv
2408.12528). One vocabulary holds words, marks, image codes and the mask. As in the public code:

- drawing: ``<|t2i|> bos text eos <|soi|> N tokens <|eoi|>``, the prompt cut to 129 columns. Text is causal;
  from ``<|soi|>`` on, every row sees all text and the whole canvas. The policy is over image codes alone;
- reading: ``<|mmu|> <|soi|> N tokens <|eoi|> bos USER: \\n{question} ASSISTANT:``, then the answer and eos.
  Up to ``<|eoi|>`` all columns see each other; what follows is causal. The policy is over the whole
  vocabulary: the public code does not exclude image codes either;
- guidance is relative to the empty prompt. Here it is ``u + s (c - u)``; the public scale w means
  ``(1 + w) c - w u``, so what is called guidance 5 there is ``guidance=6`` here.

Chosen here, where the public code is silent: a prompt without a picture is read without a picture's columns;
earlier answers of a conversation end with eos; queries and keys have layer norms if the file has them.
``-w-clip-vit`` opens and draws, but cannot read: its CLIP tower is no part of its files.

``local`` (see :mod:`triptych.models.canvas`), for drawing and reading, and ``llm_config``, the sizes of a
smaller language model, are our own entries of ``config.json``: starters have them, public folders do not.

Shape legend: B rows, N image tokens, A actions, D width, K codes, W columns of a picture that is read.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
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
from triptych.models.base import Example, LoraSettings, LossSum, Scores, UnifiedModel, from_pictures
from triptych.models.lora import adapters, open_adapter, save_adapter
from triptych.models.magvit2 import MagViT2Codec
from triptych.models.packed import packed, quick
from triptych.models.patch_codec import PatchCodec
from triptych.models.quiet import quiet
from triptych.models.rows import answer_count, answers, left_padded, texts, words
from triptych.models.showo_network import (
    BEGIN_IMAGE,
    DRAW,
    END_IMAGE,
    MARKS,
    PAD,
    READ,
    ShowoLayout,
    ShowoNetwork,
)
from triptych.trajectory import (
    MaskedImageSegment,
    NoiseKey,
    Picture,
    Prompt,
    Sampling,
    Segment,
    TextSegment,
)

PROMPT_COLUMNS = 129
CODEC_FOLDER, PUBLIC_CODEC = "vq", "showlab/magvitv2"
PHI_LINEAR = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")


class ShowoModel(UnifiedModel):
    """Show-o behind the :class:`~triptych.models.base.UnifiedModel` contract: reads and draws."""

    can: ClassVar[frozenset[str]] = frozenset({"read", "draw"})
    name: ClassVar[str] = "showo"

    def __init__(
        self, network: ShowoNetwork, tokenizer: PreTrainedTokenizerBase, codec: PatchCodec | MagViT2Codec
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.codec = codec
        self.eval()
        self.layout = layout = network.layout
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
        self.begin, self.end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)

    def _token(self, text: str) -> int:
        token = self.tokenizer.convert_tokens_to_ids(text)
        if not isinstance(token, int) or token == self.tokenizer.unk_token_id:
            raise UserError(f"the tokenizer has no {text!r}: this is not a Show-o tokenizer")
        return token

    # -- drawing -----------------------------------------------------------------------------------
    def _asked(self, prompt: Prompt) -> list[int]:
        """The ids before the canvas."""
        if prompt.pictures:
            raise UserError("showo draws from text alone, and this prompt holds a picture")
        ids = [self.marks[DRAW], self.begin, *words(self.tokenizer, prompt.text), self.end]
        return ids if len(ids) <= PROMPT_COLUMNS else [*ids[: PROMPT_COLUMNS - 1], self.end]

    def _hidden(
        self, prompts: Sequence[Prompt], guidance: float, blank: Sequence[bool] | None = None
    ) -> kernel.Hidden:
        """Hidden states of a canvas after these prompts, which are run here, once.

        With guidance, every row once more after the empty prompt; rows in ``blank [B]`` have no other.
        """
        network, empty = self.network, Prompt.of("")
        blank = blank or [False] * len(prompts)
        rows = [self._asked(empty if hide else p) for p, hide in zip(prompts, blank, strict=True)]
        branches = 1 if guidance == 1 else 2
        rows += [self._asked(empty)] * (len(prompts) * (branches - 1))
        ids, valid = (x.to(self.device) for x in left_padded(rows, int(self.tokenizer.pad_token_id)))
        embed = network.get_input_embeddings()
        run = canvas.prepare(
            network.decoder(),
            network.decoder(first=1),
            embed(ids),
            valid,
            self.draw_tokens + 2,
            recompute=self.recompute,
        )

        def hidden(tokens: Tensor, masked: Tensor) -> Tensor:
            drawn = torch.where(masked, self.layout.mask_id, tokens + self.layout.first_code)
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
        noise = kernel.noise(keys, self.draw_tokens, sampling.unmask).to(self.device)
        head = self.network.code_head()
        rows = len(prompts) * (self.draw_tokens + 2) * (1 if sampling.guidance == 1 else 2)
        with packed(self.network.showo.model, head, rows=rows):
            drawn = kernel.unmask(self._hidden(prompts, sampling.guidance), head, noise, sampling)
        return MaskedImageSegment(
            name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(drawn)
        )

    # -- reading -----------------------------------------------------------------------------------
    def _said(self, prompt: Prompt) -> list[int]:
        """The ids after a picture, up to the answer."""
        ids, end = [self.begin], self.tokenizer.eos_token
        said = ""
        for turn in prompt.turns:
            text = "\n".join(part for part in turn.content if isinstance(part, str))
            said += {"user": f"USER: \n{text} ", "assistant": f"ASSISTANT:{text}{end}", "system": f"{text} "}[
                turn.role
            ]
        return [*ids, *words(self.tokenizer, said + "ASSISTANT:")]

    def _seen(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Ids of pictures' columns ``[B, W]``, and which rows have one ``[B]``; W is 0 where none has."""
        has = torch.tensor([len(p.pictures) for p in prompts])
        if has.max() > 1:
            raise UserError(f"showo reads one picture a prompt, and this one holds {int(has.max())}")
        if not has.any():
            return torch.zeros(len(prompts), 0, dtype=torch.long, device=self.device), has.bool()
        if self.layout.w_clip_vit:
            raise UserError("this Show-o reads pictures through a CLIP tower, which is not part of its files")
        pictures = [p.pictures[0] for p in prompts if p.pictures]
        codes = torch.zeros(len(prompts), self.draw_tokens, dtype=torch.long, device=self.device)
        codes[has.bool()] = self._encode(pictures)
        framed = self._framed(codes + self.layout.first_code)
        return torch.cat([framed.new_full((len(framed), 1), self.marks[READ]), framed], dim=1), has.bool()

    def _encode(self, pictures: Sequence[Picture]) -> Tensor:
        """Codes ``[B, N]`` of pictures, cut to a square and resized where need be."""
        size = (self.image_size,) * 2
        fitted = [p if p.shape[:2] == size else _fit(p, self.image_size) for p in pictures]
        return self.codec.encode(from_pictures(fitted).to(self.device))

    def _question(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids of pictures ``[B, W]`` and of what is said ``[B, P]``; which columns count ``[B, W + P]``."""
        seen, has = self._seen(prompts)
        ids, valid = left_padded([self._said(p) for p in prompts], int(self.tokenizer.pad_token_id))
        valid = torch.cat([has[:, None].expand(-1, seen.shape[1]), valid], dim=1)
        return seen, ids.to(self.device), valid.to(self.device)

    def _look(self, seen: Tensor) -> tuple[canvas.Decoder, Tensor, Tensor, Tensor]:
        """How a picture's columns are run: layers, embeddings, a mask that hides nothing, positions."""
        embeds = self.network.get_input_embeddings()(seen)
        mask = canvas.open_mask(torch.ones_like(seen, dtype=torch.bool), embeds.dtype)
        place = torch.arange(seen.shape[1], device=seen.device).expand(seen.shape)
        return self.network.decoder(first=2), embeds, mask, place

    @torch.no_grad()
    def generate_text(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> TextSegment:
        """Write answers: ``tokens [B, A]``, A the longest answer; the end token counts as an action."""
        if sampling.guidance != 1:
            raise UserError(f"showo writes text without guidance; got guidance {sampling.guidance}")
        seen, ids, valid = self._question(prompts)
        decoder, head = self.network.decoder(), self.network.showo.lm_head
        cache = causal.BufferCache(len(decoder.layers), valid.shape[1] + sampling.max_tokens)
        with packed(self.network.showo.model, head, rows=len(prompts)):
            if seen.shape[1]:
                causal.run_layers(*self._look(seen), cache)
            written = causal.autoregress(
                decoder,
                self.network.get_input_embeddings()(ids),
                valid,
                uniforms(keys, sampling.max_tokens).to(self.device),
                sampling,
                head=head,
                embed=self.network.get_input_embeddings(),
                end=self.end,
                past=cache,
            )
        return TextSegment(name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(written))

    def _written(self, segment: Segment) -> Tensor:
        """Hidden states ``[B, A, D]`` that predict a text's tokens: each one *before* its token."""
        seen, ids, valid = self._question(segment.context)
        embeds = self.network.get_input_embeddings()(torch.cat([ids, segment.tokens[:, :-1]], dim=1))
        valid = torch.cat([valid, segment.mask[:, :-1]], dim=1)
        again = self.recompute
        past = canvas.remember(*self._look(seen), recompute=again) if seen.shape[1] else None
        hidden = causal.teacher_forced(self.network.decoder(), embeds, valid, past, recompute=again)
        return hidden[:, ids.shape[1] - 1 :]

    # -- scoring -----------------------------------------------------------------------------------
    def forward(
        self,
        segment: Segment,
        need: frozenset[str],
        reference: bool = False,
        blank: Sequence[bool] | None = None,
    ) -> Scores:
        """See :meth:`UnifiedModel.score`. Rows in ``blank [B]`` are scored without their prompt."""
        segment = segment.to(self.device)
        plain = self.recompute  # what is recomputed must be computed the same way twice
        with quick(*([] if plain else [self.network.showo.model])):
            if isinstance(segment, MaskedImageSegment):
                scores = self._drawn_scores(segment, need, blank)
            else:
                scores = self._text_scores(segment, need)
        return Scores(scores.logp, scores.entropy, scores.kl)

    def _drawn_scores(
        self, segment: MaskedImageSegment, need: frozenset[str], blank: Sequence[bool] | None
    ) -> token_kernel.TokenScores:
        about = (segment.context, segment.sampling.guidance, blank)
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

    def _text_scores(self, segment: Segment, need: frozenset[str]) -> token_kernel.TokenScores:
        other = None
        if "kl" in need:
            with self.reference():
                other = (self._written(segment), self.as_reference(self.network.showo.lm_head))
        return token_kernel.score_hidden(
            self._written(segment),
            self.network.showo.lm_head,
            segment.tokens,
            segment.sampling.temperature,
            entropy="entropy" in need,
            reference=other,
            vocabulary=self.layout.vocab_size,
        )

    def decode(self, segment: Segment) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [0, 1]."""
        if not isinstance(segment, MaskedImageSegment):
            raise UserError(f"showo cannot make a picture of a {segment.kind} segment")
        return self.codec.decode(segment.tokens.to(self.device))

    def texts(self, segment: TextSegment) -> list[str]:
        """The written strings, up to the end token."""
        return texts(self.tokenizer, segment)

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

    def add_lora(self, settings: LoraSettings) -> None:
        """As elsewhere; the default targets, which are Llama's names, mean Phi's linear layers here."""
        if settings.targets == LoraSettings().targets:
            settings = replace(settings, targets=PHI_LINEAR)
        super().add_lora(settings)

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
            model = cls.from_pretrained(
                json.loads(adapter.read_text())["base_model_name_or_path"], dtype=dtype
            )
            open_adapter(model.network, Path(folder))
            return model
        network = ShowoNetwork.load(folder, dtype)
        return cls(network, _open_tokenizer(folder, network.layout), _open_codec(folder))


def _open_codec(folder: str | Path) -> PatchCodec | MagViT2Codec:
    """A starter's dictionary, else MAGViT-v2: from the folder, or the public one."""
    if (Path(folder) / PatchCodec.FILE).exists():
        return PatchCodec.load(Path(folder))
    inside = Path(folder) / CODEC_FOLDER
    return MagViT2Codec.load(inside if inside.is_dir() else PUBLIC_CODEC)


def _open_tokenizer(folder: str | Path, layout: ShowoLayout) -> PreTrainedTokenizerBase:
    """The folder's own, or the language model's with the marks added, in the public order."""
    inside = (Path(folder) / "tokenizer_config.json").exists()
    source = folder if inside else layout.llm_model_path
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer at {source}: {str(error).splitlines()[0]}") from None
    if not inside:
        tokenizer.add_special_tokens({"pad_token": PAD})
        tokenizer.add_tokens(list(MARKS), special_tokens=True)
    return tokenizer


def _fit(picture: Picture, size: int) -> Picture:
    """The middle square of a picture, as the public code cuts it: the short side is resized first."""
    image = Image.fromarray(picture.numpy())
    short = min(image.size)
    image = image.resize([int(size * side / short) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(size, size, 3)
