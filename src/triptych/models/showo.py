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

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from triptych.errors import UserError
from triptych.models import canvas, causal
from triptych.models.base import LoraSettings
from triptych.models.causal import Prefix
from triptych.models.magvit2 import MagViT2Codec
from triptych.models.masked_model import MaskedModel, open_codec
from triptych.models.masked_network import DRAW, MARKS, READ
from triptych.models.patch_codec import PatchCodec
from triptych.models.rows import padded, words
from triptych.models.showo_network import PAD, ShowoLayout, ShowoNetwork
from triptych.models.weights import open_tokenizer
from triptych.trajectory import Prompt, TokenSegment

PROMPT_COLUMNS = 129
PUBLIC_CODEC = "showlab/magvitv2"
PHI_LINEAR = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")


class ShowoModel(MaskedModel):
    """Show-o behind the :class:`~triptych.models.base.UnifiedModel` contract: reads and draws."""

    can: frozenset[str] = frozenset({"read", "draw", "relax"})
    name: ClassVar[str] = "showo"
    title: ClassVar[str] = "Show-o"
    network: ShowoNetwork

    def __init__(
        self, network: ShowoNetwork, tokenizer: PreTrainedTokenizerBase, codec: PatchCodec | MagViT2Codec
    ) -> None:
        super().__init__(network, tokenizer, codec)
        self.layout = network.layout
        if self.layout.w_clip_vit:
            self.can = self.can - {"read", "relax"}
        self.begin, self.end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)

    # -- drawing -----------------------------------------------------------------------------------
    def _asked(self, prompt: Prompt) -> list[int]:
        """The ids before the canvas."""
        if prompt.pictures:
            raise UserError("showo draws from text alone, and this prompt holds a picture")
        ids = [self.marks[DRAW], self.begin, *words(self.tokenizer, prompt.text), self.end]
        return ids if len(ids) <= PROMPT_COLUMNS else [*ids[: PROMPT_COLUMNS - 1], self.end]

    def _canvas_prefix(self, prompts: Sequence[Prompt]) -> Prefix:
        rows = [self._asked(prompt) for prompt in prompts]
        ids, valid = padded(rows, int(self.tokenizer.pad_token_id), self.device)
        return Prefix(self.network.decoder(), self.network.get_input_embeddings()(ids), valid)

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
        """Pictures' columns as embeddings ``[B, W, D]``, and which rows have one ``[B]``; W is 0 if none has.

        Of relaxed drawings, one in every row, the weights ``[N, K]`` mix the embeddings of the codes.
        """
        embed = self.network.lm.get_input_embeddings()
        has = torch.tensor([len(p.pictures) for p in prompts])
        if has.max() > 1:
            raise UserError(f"showo reads one picture a prompt, and this one holds {int(has.max())}")
        if not has.any():
            return embed(torch.zeros(len(prompts), 0, dtype=torch.long, device=self.device)), has.bool()
        if self.layout.w_clip_vit:
            raise UserError("this Show-o reads pictures through a CLIP tower, which is not part of its files")
        pictures = [p.pictures[0] for p in prompts if p.pictures]
        codes = torch.zeros(len(prompts), self.draw_tokens, dtype=torch.long, device=self.device)
        soft = pictures[0].is_floating_point()
        codes[has.bool()] = 0 if soft else self._encode(pictures)
        framed = self._framed(codes + self.layout.first_code)
        columns = embed(torch.cat([framed.new_full((len(framed), 1), self.marks[READ]), framed], dim=1))
        if soft:
            mixed = (
                torch.stack(pictures).to(embed.weight)
                @ embed.weight[self.layout.first_code : self.layout.mask_id]
            )
            columns = torch.cat([columns[:, :2], mixed, columns[:, -1:]], dim=1)
        return columns, has.bool()

    def _question(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures ``[B, W, D]`` and ids of what is said ``[B, P]``; which columns count ``[B, W + P]``."""
        seen, has = self._seen(prompts)
        rows = [self._said(prompt) for prompt in prompts]
        ids, valid = padded(rows, int(self.tokenizer.pad_token_id), self.device)
        whole = torch.cat([has.to(self.device)[:, None].expand(-1, seen.shape[1]), valid], dim=1)
        return seen, ids, whole

    def _look(self, seen: Tensor) -> tuple[causal.Decoder, Tensor, Tensor, Tensor]:
        """How a picture's columns are run: layers, embeddings, a mask that hides nothing, positions."""
        shape = seen.shape[:2]
        mask = canvas.open_mask(torch.ones(shape, dtype=torch.bool, device=seen.device), seen.dtype)
        place = torch.arange(shape[1], device=seen.device).expand(shape)
        return self.network.decoder(first=2), seen, mask, place

    def _answer_prefix(self, prompts: Sequence[Prompt], room: int) -> Prefix:
        seen, ids, valid = self._question(prompts)
        decoder = self.network.decoder()
        cache = causal.BufferCache(len(decoder.layers), valid.shape[1] + room)
        if seen.shape[1]:
            causal.run_layers(*self._look(seen), cache)
        return Prefix(decoder, self.network.get_input_embeddings()(ids), valid, past=cache)

    def _written(self, segment: TokenSegment) -> Tensor:
        seen, ids, valid = self._question(segment.context)
        embeds = self.network.get_input_embeddings()(torch.cat([ids, segment.tokens[:, :-1]], dim=1))
        valid = torch.cat([valid, segment.mask[:, :-1]], dim=1)
        again = self.recompute
        past = causal.remember(*self._look(seen), recompute=again)[1] if seen.shape[1] else None
        hidden = causal.teacher_forced(self.network.decoder(), embeds, valid, past, recompute=again)
        return hidden[:, ids.shape[1] - 1 :]

    # -- learning, files ---------------------------------------------------------------------------
    def add_lora(self, settings: LoraSettings) -> None:
        """As elsewhere; the default targets, which are Llama's names, mean Phi's linear layers here."""
        if settings.targets == LoraSettings().targets:
            settings = replace(settings, targets=PHI_LINEAR)
        super().add_lora(settings)

    @classmethod
    def _open(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        network = ShowoNetwork.load(folder, dtype)
        return cls(network, _open_tokenizer(folder, network.layout), open_codec(folder, PUBLIC_CODEC))


def _open_tokenizer(folder: str | Path, layout: ShowoLayout) -> PreTrainedTokenizerBase:
    """The folder's own, or the language model's with the marks added, in the public order."""
    inside = (Path(folder) / "tokenizer_config.json").exists()
    tokenizer = open_tokenizer(folder if inside else layout.llm_model_path)
    if not inside:
        tokenizer.add_special_tokens({"pad_token": PAD})
        tokenizer.add_tokens(list(MARKS), special_tokens=True)
    return tokenizer
