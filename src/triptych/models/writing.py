"""Writing after a prompt, learning to, and files: what models over one language model of transformers share.

The network has that model as ``lm``, with ``lm_head``. How a prompt becomes columns, and how pictures are
drawn, is for each model to say.

Shape legend: B rows, H columns run before, P padded prompt length, A actions, D width.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from triptych.errors import UserError
from triptych.kernels import tokens as kernel
from triptych.kernels.noise import uniforms
from triptych.models import causal
from triptych.models.base import Example, LossSum, UnifiedModel
from triptych.models.canvas import Decoder
from triptych.models.lora import adapters, open_adapter, save_adapter
from triptych.models.packed import packed
from triptych.models.rows import answers, texts
from triptych.trajectory import NoiseKey, Prompt, Sampling, Segment, TextSegment, TokenSegment

BEGIN_TURN, END_TURN = "<|im_start|>", "<|im_end|>"
"""Qwen's marks around what one speaker says."""


@dataclass(frozen=True)
class Prefix:
    """Left-padded prompts as embeddings ``[B, P, D]``, with the columns that count ``[B, H + P]``.

    ``decoder``: the layers that run them. ``seen [B, P]``: pictures' columns, which all of the prefix sees.
    ``past``: H columns run before.
    """

    decoder: Decoder
    embeds: Tensor
    valid: Tensor
    seen: Tensor | None = None
    past: causal.BufferCache | None = None


class WritingModel(UnifiedModel):
    """Writes with its language model; ``end`` is the id that ends a text."""

    title: ClassVar[str]
    end: int
    codec: Any

    def __init__(self, network: Any, tokenizer: PreTrainedTokenizerBase, codec: Any) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.codec = codec
        self.eval()

    @abstractmethod
    def _answer_prefix(self, prompts: Sequence[Prompt], room: int) -> Prefix:
        """What stands before an answer of up to ``room`` tokens."""

    @abstractmethod
    def _written(self, segment: TokenSegment) -> Tensor:
        """Hidden states ``[B, A, D]`` that predict a text's tokens: each one *before* its token."""

    @abstractmethod
    def _drawing_loss(self, examples: Sequence[Example]) -> LossSum:
        """The loss of pictures to draw."""

    # -- acting ------------------------------------------------------------------------------------
    @torch.no_grad()
    def generate_text(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> TextSegment:
        """Write answers: ``tokens [B, A]``, A the longest answer; the end token counts as an action."""
        if sampling.guidance != 1:
            raise UserError(f"{self.name} writes text without guidance; got guidance {sampling.guidance}")
        lm = self.network.lm
        with packed(lm.model, lm.lm_head, rows=len(prompts)):
            before = self._answer_prefix(prompts, sampling.max_tokens)
            written = causal.autoregress(
                before.decoder,
                before.embeds,
                before.valid,
                uniforms(keys, sampling.max_tokens).to(self.device),
                sampling,
                head=lm.lm_head,
                embed=self.network.get_input_embeddings(),
                end=self.end,
                past=before.past,
                seen=before.seen,
            )
        return TextSegment(name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(written))

    def texts(self, segment: TextSegment) -> list[str]:
        """The written strings, up to the end token."""
        return texts(self.tokenizer, segment)

    def _text_scores(self, segment: TokenSegment, need: frozenset[str]) -> kernel.TokenScores:
        other = None
        if "kl" in need:
            with self.reference():
                other = (self._written(segment), self.as_reference(self.network.lm.lm_head))
        return kernel.score_hidden(
            self._written(segment),
            self.network.lm.lm_head,
            segment.tokens,
            segment.sampling.temperature,
            entropy="entropy" in need,
            reference=other,
            vocabulary=self.network.get_input_embeddings().num_embeddings,
        )

    # -- learning ----------------------------------------------------------------------------------
    def supervised_loss(self, examples: Sequence[Example]) -> dict[str, LossSum]:
        """The loss of drawings ("draw"), and cross-entropy of answers with their end token ("read")."""
        losses = {}
        draws = [e for e in examples if isinstance(e.target, Tensor)]
        reads = [e for e in examples if isinstance(e.target, str)]
        if draws:
            losses["draw"] = self._drawing_loss(draws)
        if reads:
            losses["read"] = self._loss(answers(self.tokenizer, reads, self.end, self.device))
        return losses

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
        self.network.save(folder)
        self._save_codec(folder)

    def _save_codec(self, folder: Path) -> None:
        self.codec.save(folder)

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
