"""Writing after a prompt, learning to, and files: what models over one language model of transformers share.

How a prompt becomes columns, and how pictures are drawn, is for each model to say.

Shape legend: B rows, H columns run before, P padded prompt length, A actions, D width.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from triptych.errors import UserError
from triptych.kernels import tokens as kernel
from triptych.kernels.noise import uniforms
from triptych.models import causal
from triptych.models.base import Example, LossSum, UnifiedModel, fit, from_pictures
from triptych.models.causal import Prefix
from triptych.models.lora import adapters, base_of, open_adapter, save_adapter
from triptych.models.packed import packed, quick
from triptych.models.rows import answer_count, answers, distinct, texts
from triptych.trajectory import (
    NoiseKey,
    Picture,
    Prompt,
    Sampling,
    Scores,
    Segment,
    TextSegment,
    TokenSegment,
)

BEGIN_TURN, END_TURN = "<|im_start|>", "<|im_end|>"
"""Qwen's marks around what one speaker says."""


class WritingModel(UnifiedModel):
    """Writes with its language model; ``end`` is the id that ends a text, ``image_size`` a drawing's side."""

    title: ClassVar[str]
    end: int
    image_size: int
    codec: Any

    def __init__(self, network: Any, tokenizer: PreTrainedTokenizerBase, codec: Any) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.codec = codec
        self.eval()

    @property
    def _lm(self) -> nn.Module:
        """The language model without its head."""
        return self.network.lm.model

    def _head(self, segment: TokenSegment | None = None) -> tuple[nn.Module, int]:
        """What makes logits of hidden states, and over how many tokens: words, if the segment is a text."""
        return self.network.lm.lm_head, self.network.get_input_embeddings().num_embeddings

    @abstractmethod
    def _answer_prefix(self, prompts: Sequence[Prompt], room: int) -> Prefix:
        """What stands before an answer of up to ``room`` tokens."""

    def _shared(self, prompts: Sequence[Prompt], make: Callable[[Sequence[Prompt]], Prefix]) -> Prefix:
        """What ``make`` makes of the prompts, each different one once."""
        different, rows = distinct(prompts)
        return replace(make(different), rows=None if rows is None else torch.tensor(rows, device=self.device))

    def _written(self, segment: TokenSegment) -> Tensor:
        """Hidden states ``[B, A, D]`` that predict a text's tokens: each one *before* its token."""
        before = self._shared(segment.context, lambda prompts: self._answer_prefix(prompts, 0))
        answer = self.network.get_input_embeddings()(segment.tokens[:, :-1])
        return causal.continued(before, answer, segment.mask[:, :-1], recompute=self.recompute)

    @abstractmethod
    def _drawing_loss(self, examples: Sequence[Example], encoded: Tensor) -> LossSum:
        """The loss of pictures to draw, whose codes or latents are ``encoded [B, ...]``."""

    @abstractmethod
    def _drawing_count(self, examples: Sequence[Example]) -> int:
        """How many elements that loss sums over."""

    def _encode(self, pictures: Sequence[Picture]) -> Tensor:
        """Codes or latents ``[B, ...]`` of pictures, cut to a square and resized where need be."""
        fitted = from_pictures([fit(picture, self.image_size) for picture in pictures])
        return self.codec.encode(fitted.to(self.device))

    # -- acting ------------------------------------------------------------------------------------
    @torch.no_grad()
    def generate_text(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> TextSegment:
        """Write answers: ``tokens [B, A]``, A the longest answer; the end token counts as an action."""
        if sampling.guidance != 1:
            raise UserError(f"{self.name} writes text without guidance; got guidance {sampling.guidance}")
        head, _ = self._head()
        with packed(self._lm, head, rows=len(prompts)):
            before = self._shared(prompts, lambda each: self._answer_prefix(each, sampling.max_tokens))
            written = causal.autoregress(
                before,
                uniforms(keys, sampling.max_tokens).to(self.device),
                sampling,
                head=head,
                embed=self.network.get_input_embeddings(),
                end=self.end,
            )
        return TextSegment(name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(written))

    def texts(self, segment: TextSegment) -> list[str]:
        """The written strings, up to the end token."""
        return texts(self.tokenizer, segment)

    # -- scoring -----------------------------------------------------------------------------------
    def _quick(self, *modules: nn.Module) -> AbstractContextManager[None]:
        """Quick products, but where layers run again for gradients: both runs must compute alike."""
        return quick(*([] if self.recompute else modules))

    def _token_scores(self, segment: TokenSegment, need: frozenset[str], **about: Any) -> Scores:
        """Scores of tokens that came one after another; ``about`` is for :meth:`_written`."""
        other = None
        if "kl" in need:
            with self.reference():
                other = (self._written(segment), self.reference()(self._head(segment)[0]))
        hidden, (head, vocabulary) = self._written(segment, **about), self._head(segment)
        return kernel.score_hidden(
            hidden,
            head,
            segment.tokens,
            segment.sampling,
            entropy="entropy" in need,
            reference=other,
            vocabulary=vocabulary,
        )

    # -- learning ----------------------------------------------------------------------------------
    def supervised_loss(self, examples: Sequence[Example]) -> dict[str, LossSum]:
        """The loss of drawings ("draw"), and cross-entropy of answers with their end token ("read")."""
        losses = {}
        reads = [e for e in examples if isinstance(e.target, str)]
        draws = [e for e in examples if isinstance(e.target, Tensor)]
        if pictures := [e.target for e in draws if isinstance(e.target, Tensor)]:
            losses["draw"] = self._drawing_loss(draws, self._encode(pictures))
        if reads:
            losses["read"] = self._loss(answers(self.tokenizer, reads, self.end, self.device))
        return losses

    def target_count(self, examples: Sequence[Example]) -> int:
        """Elements of drawings, and words to write with their end token."""
        drawn = self._drawing_count([e for e in examples if isinstance(e.target, Tensor)])
        return drawn + answer_count(self.tokenizer, examples)

    def _loss(self, segment: Segment, **about: Any) -> LossSum:
        logp = self(segment, frozenset({"logp"}), **about).logp
        return LossSum(-(logp * segment.mask).sum(), segment.mask.sum())

    # -- files -------------------------------------------------------------------------------------
    def save_pretrained(self, folder: Path) -> None:
        """Write the public layout, tokenizer and codec; with adapters that of peft (which names the base)."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        if adapters(self.network):
            return save_adapter(self.network, folder)
        self._save(folder)

    def _save(self, folder: Path) -> None:
        """Write weights and codec."""
        self.network.save(folder)
        self.codec.save(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Open a folder or a hub name; a missing, unknown or misshapen tensor is an error that names it."""
        if (base := base_of(Path(folder))) is None:
            return cls._open(folder, dtype)
        model = cls.from_pretrained(base, dtype=dtype)
        open_adapter(model.network, Path(folder))
        return model

    @classmethod
    @abstractmethod
    def _open(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        """Open a folder that holds the whole model."""
