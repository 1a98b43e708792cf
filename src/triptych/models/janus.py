"""Janus and Janus-Pro: one causal language model that reads pictures and draws them token by token.

Wraps transformers' ``JanusForConditionalGeneration`` and loads its public layout
(``deepseek-community/Janus-Pro-1B``, ``-7B``, ``Janus-1.3B``). Pictures are read through the SigLIP tower
and drawn as VQ token ids in raster order, each predicted by the hidden state *before* it. Guidance uses
an unconditional row that keeps the begin-of-sentence and begin-of-image tokens and pads the rest
(arXiv 2501.17811; conventions checked against the public code).

Shape legend: B rows, P padded prompt length, A actions, N image tokens, D width, K codes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerBase
from transformers.utils import cached_file

from triptych.errors import UserError
from triptych.kernels import tokens as kernel
from triptych.kernels.noise import uniforms
from triptych.kernels.relaxed import Relaxation, relaxed
from triptych.models import causal
from triptych.models.base import Codec, Example, LossSum, from_pictures
from triptych.models.causal import Prefix
from triptych.models.packed import packed
from triptych.models.patch_codec import PatchCodec
from triptych.models.rows import as_recorded, mark, padded
from triptych.models.weights import opening, quiet
from triptych.models.writing import WritingModel
from triptych.trajectory import (
    NoiseKey,
    Picture,
    Prompt,
    Sampling,
    Scores,
    Segment,
    TokenImageSegment,
    TokenSegment,
)

USER, ASSISTANT = "<|User|>", "<|Assistant|>"
BEGIN_IMAGE, IMAGE, END_IMAGE = "<begin_of_image>", "<image_placeholder>", "<end_of_image>"


class VQCodec:
    """The public VQ tokenizer: ids are found by cosine, as it was trained.

    transformers' ``encode`` compares unnormalised vectors, where the original normalises both sides; only
    the latter inverts ``decode``, which looks codes up normalised. Pixels inside are in [-1, 1]. Frozen.
    """

    def __init__(self, vq: Any) -> None:
        self.vq = vq.requires_grad_(False)

    @property
    def codebook(self) -> Tensor:
        """``[K, d]``, unit length, as ``decode`` uses it."""
        return nn.functional.normalize(self.vq.quantize.embedding.weight, dim=-1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] -> ids ``[B, N]``."""
        weight = self.vq.quant_conv.weight
        latent = self.vq.quant_conv(self.vq.encoder((images * 2 - 1).to(weight)))
        latent = nn.functional.normalize(latent.flatten(2).transpose(1, 2), dim=-1)
        return (latent @ self.codebook.T).argmax(-1)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids ``[B, N]`` -> ``[B, 3, H, W]`` in [0, 1]."""
        return self.decode_soft(self.codebook[ids]).float()

    def decode_soft(self, vectors: Tensor) -> Tensor:
        """Mixtures ``[B, N, d]`` of the codebook's rows -> ``[B, 3, H, W]`` in [0, 1], with gradients."""
        side = isqrt(vectors.shape[1])
        latent = vectors.to(self.vq.quant_conv.weight).transpose(1, 2).unflatten(2, (side, side)).contiguous()
        images: Tensor = self.vq.decoder(self.vq.post_quant_conv(latent))
        return (images / 2 + 0.5).clamp(0, 1)


class JanusModel(WritingModel):
    """Janus behind the :class:`~triptych.models.base.UnifiedModel` contract: reads and draws."""

    can: frozenset[str] = frozenset({"read", "draw", "relax"})
    name: ClassVar[str] = "janus"
    title: ClassVar[str] = "Janus"

    def __init__(
        self,
        network: JanusForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        codec: Codec | None = None,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__(network, tokenizer, codec if codec is not None else VQCodec(network.model.vqmodel))
        self.mean, self.std = tuple(mean), tuple(std)
        vision = network.config.vision_config
        self.image_size = int(vision.image_size)
        self.read_tokens = int(vision.num_image_tokens)
        self.draw_tokens = (self.image_size // int(vision.patch_size)) ** 2
        self.vocabulary = int(network.config.text_config.vocab_size)
        self.codes = int(network.config.vq_config.num_embeddings)
        self.begin_image, self.image = (mark(tokenizer, text, self.title) for text in (BEGIN_IMAGE, IMAGE))
        self.end = int(tokenizer.eos_token_id)

    # -- prompts -----------------------------------------------------------------------------------
    def _as_text(self, prompt: Prompt, draw: bool) -> str:
        picture = BEGIN_IMAGE + IMAGE * self.read_tokens + END_IMAGE
        said = []
        for turn in prompt.turns:
            parts = [part if isinstance(part, str) else picture for part in turn.content]
            speaker = {"user": f"{USER}: ", "assistant": f"{ASSISTANT}: ", "system": ""}[turn.role]
            said.append(speaker + "\n".join(parts))
        return "\n\n".join([*said, f"{ASSISTANT}:"]) + (BEGIN_IMAGE if draw else "")

    def _ids(self, prompts: Sequence[Prompt], draw: bool) -> tuple[Tensor, Tensor]:
        rows = [self.tokenizer(self._as_text(p, draw))["input_ids"] for p in prompts]
        return padded(rows, int(self.tokenizer.pad_token_id or 0), self.device)

    def _without_condition(self, ids: Tensor) -> Tensor:
        """The unconditional row: begin-of-sentence and begin-of-image stay, all else becomes padding."""
        stays = (ids == self.tokenizer.bos_token_id) | (ids == self.begin_image)
        return torch.where(stays, ids, int(self.tokenizer.pad_token_id or 0))

    def _prefix(
        self, prompts: Sequence[Prompt], draw: bool, guidance: float = 1.0, blank: Tensor | None = None
    ) -> Prefix:
        """With guidance, every row once more without its prompt; rows in ``blank [B]`` never have it."""
        ids, valid = self._ids(prompts, draw)
        embeds = self._with_pictures(ids, prompts)
        if guidance != 1 or blank is not None:
            uncond = self.network.get_input_embeddings()(self._without_condition(ids))
            if blank is not None:
                embeds = torch.where(blank[:, None, None], uncond, embeds)
            if guidance != 1:
                embeds, valid = torch.cat([embeds, uncond]), torch.cat([valid, valid])
        lm = self.network.model.language_model
        return Prefix(causal.Decoder(lm.layers, lm.rotary_emb, lm.norm), embeds, valid)

    def _drawing_prefix(self, prompts: Sequence[Prompt], guidance: float) -> Prefix:
        """Of each different prompt once; with guidance the unconditional rows follow."""
        before = self._shared(prompts, lambda each: self._prefix(each, True, guidance))
        if guidance == 1 or before.rows is None:
            return before
        return replace(before, rows=torch.cat([before.rows, before.rows + len(before.embeds) // 2]))

    def _answer_prefix(self, prompts: Sequence[Prompt], room: int) -> Prefix:
        return self._prefix(prompts, draw=False)

    def _with_pictures(self, ids: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        embeds: Tensor = self.network.get_input_embeddings()(ids)
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        if not pictures:
            return embeds
        if int((ids == self.image).sum()) != len(pictures) * self.read_tokens:
            raise UserError(f"a prompt's text holds {IMAGE}, which stands for a picture: take it out")
        core = self.network.model
        features = core.aligner(core.vision_model(self.pixels(pictures)).last_hidden_state)
        place = (ids == self.image)[..., None].expand_as(embeds)
        return embeds.masked_scatter(place, features.to(embeds.dtype))

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """What the tower sees, ``[B, 3, S, S]``: padded to a square, resized, normalised."""
        fitted = [p if p.shape[:2] == (self.image_size,) * 2 else self._fit(p) for p in pictures]
        images = from_pictures(fitted).to(self.device)
        mean = images.new_tensor(self.mean)[:, None, None]
        std = images.new_tensor(self.std)[:, None, None]
        return ((images - mean) / std).to(self.network.dtype)

    def _fit(self, picture: Picture) -> Picture:
        image = Image.fromarray(picture.numpy())
        scale = self.image_size / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (self.image_size,) * 2, tuple(int(255 * m) for m in self.mean))
        canvas.paste(image, ((self.image_size - image.width) // 2, (self.image_size - image.height) // 2))
        return torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).reshape(
            self.image_size, self.image_size, 3
        )

    # -- acting ------------------------------------------------------------------------------------
    def _embed_codes(self, ids: Tensor) -> Tensor:
        return self.network.prepare_embeddings_for_image_generation(ids)

    @property
    def _lm(self) -> nn.Module:
        return self.network.model.language_model

    def _head(self, segment: TokenSegment | None = None) -> tuple[nn.Module, int]:
        if isinstance(segment, TokenImageSegment):
            return self.network.model.generation_head, self.codes
        return self.network.lm_head, self.vocabulary

    @torch.no_grad()
    def generate_image(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> TokenImageSegment:
        """Draw pictures: ``tokens [B, N]`` in raster order."""
        before, core = self._drawing_prefix(prompts, sampling.guidance), self.network.model
        rows = len(prompts) * kernel.branches(sampling)
        with packed(self._lm, core.generation_head, core.generation_aligner, rows=rows):
            drawn = causal.autoregress(
                before,
                uniforms(keys, self.draw_tokens).to(self.device),
                sampling,
                head=core.generation_head,
                embed=self._embed_codes,
            )
        return TokenImageSegment(
            name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(drawn)
        )

    # -- scoring -----------------------------------------------------------------------------------
    def _written(self, segment: TokenSegment, blank: Tensor | None = None) -> Tensor:
        """Also of a drawing, then ``[B or 2B, A, D]``."""
        if not isinstance(segment, TokenImageSegment):
            return super()._written(segment)
        guidance, branches = segment.sampling.guidance, kernel.branches(segment.sampling)
        if blank is None:
            before = self._drawing_prefix(segment.context, guidance)
        else:
            before = self._prefix(segment.context, True, guidance, blank)
        drawn = self._embed_codes(segment.tokens)[:, :-1].repeat(branches, 1, 1)
        taken = segment.mask[:, :-1].repeat(branches, 1)
        return causal.continued(before, drawn, taken, recompute=self.recompute)

    def forward(self, segment: Segment, need: frozenset[str], blank: Tensor | None = None) -> Scores:
        """See :meth:`UnifiedModel.score`. Rows in ``blank [B]`` are scored without their prompt."""
        segment = segment.to(self.device)
        assert isinstance(segment, TokenSegment), f"janus drew no {segment.kind} segment"
        with self._quick(self._lm):
            return self._token_scores(segment, need, blank=blank)

    def decode(self, segment: Segment) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [0, 1]."""
        if not isinstance(segment, TokenImageSegment):
            raise UserError(f"janus cannot make a picture of a {segment.kind} segment")
        return self.codec.decode(segment.tokens.to(self.device))

    def relax(self, segment: Segment, relaxation: Relaxation, keys: Sequence[NoiseKey]) -> Sequence[Picture]:
        """See :meth:`UnifiedModel.relax`: pixels, ``[H, W, 3]`` each in 0 to 255 and not rounded.

        One teacher-forced pass over the drawing gives the logits of all N tokens; of a token's influence on
        the draws after it no gradient is taken. The weights mix the codebook, which is decoded.
        """
        assert isinstance(segment, TokenImageSegment), f"janus drew no {segment.kind} segment"
        tokens = segment.tokens.to(self.device)
        uniform = uniforms(keys, self.draw_tokens * self.codes).view(*tokens.shape, -1).to(self.device)
        with self._quick(self._lm):
            logits = self._head(segment)[0](self._written(segment))
        weights = relaxed(logits, tokens, uniform, segment.sampling, relaxation)
        images = self.codec.decode_soft(weights @ self.codec.codebook.to(weights))
        return tuple(255 * images.permute(0, 2, 3, 1))

    # -- learning ----------------------------------------------------------------------------------
    def _drawing_loss(self, examples: Sequence[Example], encoded: Tensor) -> LossSum:
        """Next-token cross-entropy of codes."""
        every = torch.ones_like(encoded, dtype=torch.bool)
        drawn = TokenImageSegment(**as_recorded(examples, encoded, every))
        return self._loss(drawn, blank=torch.tensor([e.unconditional for e in examples], device=self.device))

    def _drawing_count(self, examples: Sequence[Example]) -> int:
        return self.draw_tokens * len(examples)

    # -- files -------------------------------------------------------------------------------------
    def _save(self, folder: Path) -> None:
        with quiet():
            self.network.save_pretrained(folder)
        if isinstance(self.codec, PatchCodec):
            self.codec.save(folder)
        about: dict[str, Any] = {
            "image_mean": self.mean,
            "image_std": self.std,
            "image_processor_type": "JanusImageProcessor",
            "size": {"height": self.image_size, "width": self.image_size},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def _open(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        has_codec = (Path(folder) / PatchCodec.FILE).exists()
        with opening(f"cannot open {folder} as a Janus model"):
            network, info = JanusForConditionalGeneration.from_pretrained(
                folder,
                config=_config(folder),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are listed; they are an error below
            )
            tokenizer = AutoTokenizer.from_pretrained(folder)
        codec = PatchCodec.load(Path(folder)) if has_codec else None
        missing = [k for k in info["missing_keys"] if codec is None or ".vqmodel." not in k]
        misshapen = [f"{key} {tuple(found)}" for key, found, _ in info["mismatched_keys"]]
        wrong = sorted([*missing, *info["unexpected_keys"], *misshapen])
        if wrong:
            raise UserError(
                f"{folder}: {len(wrong)} tensors missing, unknown or misshapen: {', '.join(wrong[:5])}"
            )
        network.config.tie_word_embeddings = network.lm_head.weight is network.get_input_embeddings().weight
        if codec is not None:
            network.model.vqmodel = nn.Module()
        return cls(network, tokenizer, codec, **_normalisation(folder))


def _config(folder: str | Path) -> JanusConfig:
    """The folder's config. Published ones say nothing of tying, and their head is a tensor of its own."""
    config = JanusConfig.from_pretrained(folder)
    config.tie_word_embeddings = JanusConfig.get_config_dict(folder)[0].get("tie_word_embeddings", False)
    return config


def _normalisation(folder: str | Path) -> dict[str, Sequence[float]]:
    try:
        about = json.loads(Path(cached_file(folder, "preprocessor_config.json")).read_text())
    except OSError:
        return {}
    return {to: about[key] for to, key in (("mean", "image_mean"), ("std", "image_std")) if key in about}
