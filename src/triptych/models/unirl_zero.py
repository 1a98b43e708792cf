"""UniRL-Zero: a language expert that reads, a diffusion expert that draws, one policy (arXiv 2510.17937).

Qwen2.5-VL reads, and asks with learned queries what SANA or SD3 draws; weights, columns and positions are
:mod:`triptych.models.unirl_zero_network`'s, steps are drawn and scored by :mod:`triptych.kernels.flow`.

- A conversation is Qwen's chat, pictures in any turn: ``<|im_start|>user\\n<|vision_start|><|image_pad|>``
  ``<|vision_end|>{text}<|im_end|>\\n<|im_start|>assistant\\n``. Reading goes on with words, up to
  ``<|im_end|>``; drawing goes on with the queries, whose hidden states become the expert's captions.
- Guidance is ``u + s (c - u)``, or for edits ``u + s_I (i - u) + s (c - i)``, as
  :class:`~triptych.trajectory.Sampling` says, of velocities; all branches are one batch.

What the paper leaves open, and what we chose:

- What an edit is: a prompt that holds a picture, in whatever turn. It asks with the queries for editing, and
  the latent of its last picture is the source; so a model that is shown its own drawing draws that anew.
- Guidance: the null condition is captions of zeros, as in the public code. u has it and no source, i has it
  and the source's latent. An example that is ``unconditional`` has it too and keeps its source: edits train
  i, drawings train u.
- Noise levels to learn from are logit-normal, moved to high noise by the sampler's default shift.
- The language model sees pictures at their own shape; what is drawn, and a source's latent, is a square.
- No system prompt is put before a conversation that has none (Qwen's template would add one).
- Adapters go on the language model; what trains in full beside them, and is saved with them, is what
  ``LoraSettings.full`` names: "queries", "connector", "dm".

Shape legend: B rows, M queries, C caption width, A actions, c latent channels, h x w latent.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from triptych.errors import UserError
from triptych.kernels import flow
from triptych.kernels.noise import normals
from triptych.kernels.tokens import branches, guided
from triptych.models.base import Example, LossSum
from triptych.models.causal import Prefix
from triptych.models.latent_codec import AutoencoderCodec, LatentCodec, open_latent_codec
from triptych.models.packed import quick
from triptych.models.rows import distinct, mark, times, words
from triptych.models.unirl_zero_network import Columns, UniRLZeroLayout, UniRLZeroNetwork
from triptych.models.weights import open_tokenizer
from triptych.models.writing import BEGIN_TURN, END_TURN, WritingModel
from triptych.trajectory import (
    Denoising,
    FlowImageSegment,
    NoisedImageSegment,
    NoiseKey,
    Prompt,
    Sampling,
    Scores,
    Segment,
    TokenSegment,
    Unmasking,
)

IMAGE = "<|image_pad|>"
LOOK = f"<|vision_start|>{IMAGE}<|vision_end|>"
SCORED_AT_ONCE = 2**16
"""How many numbers of latents one forward may hold when steps are scored, if that is a step or more.

With four times as many, activations of a small expert left a CPU's caches, and a row took half as long again.
"""


class UniRLZeroModel(WritingModel):
    """UniRL-Zero behind the :class:`~triptych.models.base.UnifiedModel` contract: reads, draws and edits."""

    can: frozenset[str] = frozenset({"read", "draw", "edit"})
    name: ClassVar[str] = "unirl_zero"
    title: ClassVar[str] = "UniRL-Zero"
    tower: ClassVar[str] = "lm.model.visual."
    experts: ClassVar[tuple[str, ...]] = ("lm", "connector", "queries", "dm")
    network: UniRLZeroNetwork
    codec: LatentCodec

    def __init__(
        self, network: UniRLZeroNetwork, tokenizer: PreTrainedTokenizerBase, codec: LatentCodec
    ) -> None:
        super().__init__(network, tokenizer, codec)
        self.end = mark(tokenizer, END_TURN, self.title)
        channels, side, self.captions = network.dm.channels, network.dm.side, network.dm.captions
        self.shape, self.image_size = (channels, side, side), side * codec.factor
        if codec.channels != channels:
            raise UserError(f"the codec has {codec.channels} channels, the diffusion expert {channels}")
        if mark(tokenizer, IMAGE, self.title) != network.config.image_token_id:
            raise UserError(f"the tokenizer and the model's config have different ids for {IMAGE}")

    # -- prompts -----------------------------------------------------------------------------------
    def _said(self, prompt: Prompt) -> str:
        """The conversation up to what comes next."""
        turns = [
            (turn.role, "".join(part if isinstance(part, str) else LOOK for part in turn.content))
            for turn in prompt.turns
        ]
        said = "".join(f"{BEGIN_TURN}{role}\n{text}{END_TURN}\n" for role, text in turns)
        return f"{said}{BEGIN_TURN}assistant\n"

    def _columns(self, prompts: Sequence[Prompt]) -> Columns:
        rows = [words(self.tokenizer, self._said(prompt)) for prompt in prompts]
        return self.network.columns(rows, [prompt.pictures for prompt in prompts])

    def _captions(self, prompts: Sequence[Prompt]) -> Tensor:
        """What the queries say after these prompts, ``[B, M, C]``."""
        different, rows = distinct(prompts)
        edit = [bool(prompt.pictures) for prompt in different]
        found = self.network.condition(self._columns(different), edit, recompute=self.recompute)
        return found if rows is None else found[rows]

    def _sources(self, prompts: Sequence[Prompt]) -> Tensor:
        """Latents ``[B, c, h, w]`` of the pictures to edit, 0 where there is none; rows may share one."""
        shown = {id(picture): picture for prompt in prompts for picture in prompt.pictures[-1:]}
        found = dict(zip(shown, self._encode(list(shown.values())), strict=True)) if shown else {}
        nothing = torch.zeros(self.shape, device=self.device)
        return torch.stack([found[id(p.pictures[-1])] if p.pictures else nothing for p in prompts])

    # -- drawing -----------------------------------------------------------------------------------
    def _velocity(self, prompts: Sequence[Prompt], sampling: Sampling) -> flow.Velocity:
        """The guided velocity after these prompts, which are run here, once."""
        told, source = self._captions(prompts), self._sources(prompts)
        null, nothing = torch.zeros_like(told), torch.zeros_like(source)
        seen = [(told, source), (null, source), (null, nothing)]  # c, i, u
        seen = {1: seen[:1], 2: seen[::2], 3: seen}[branches(sampling)]

        def velocity(x: Tensor, sigma: Tensor, step: Tensor) -> Tensor:
            steps = len(x) // len(prompts)  # when scored, several at once
            captions = torch.cat([c.repeat(steps, 1, 1) for c, _ in seen])
            sources = torch.cat([latent.repeat(steps, 1, 1, 1) for _, latent in seen])
            inputs = (x.repeat(len(seen), 1, 1, 1), sigma.repeat(len(seen)), captions, sources)
            return guided(self.network.dm(*inputs, recompute=self.recompute), sampling)

        return velocity

    @torch.no_grad()
    def generate_image(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> FlowImageSegment:
        """Draw pictures in ``sampling.denoise.steps`` steps: ``latents [B, S + 1, c, h, w]``."""
        if sampling.unmask != Unmasking() or sampling.temperature != 1:
            raise UserError(
                f"unmask and temperature are for tokens, and {self.name} draws latents: leave both unset"
            )
        denoise = sampling.denoise
        noise = flow.noise(keys, self.shape, denoise).to(self.device)
        with quick(self._lm, self.network.dm):
            drawn = flow.sample(self._velocity(prompts, sampling), noise, flow.schedule(denoise), denoise)
        return FlowImageSegment(
            name=keys[0].segment, context=tuple(prompts), sampling=sampling, **vars(drawn)
        )

    def decode(self, segment: Segment) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [0, 1]."""
        if not isinstance(segment, FlowImageSegment):
            raise UserError(f"{self.name} cannot make a picture of a {segment.kind} segment")
        return self.codec.decode(segment.latents[:, -1].to(self.device))

    # -- writing -----------------------------------------------------------------------------------
    def _answer_prefix(self, prompts: Sequence[Prompt], room: int) -> Prefix:
        columns = self._columns(prompts)
        return Prefix(self.network.decoder(columns), columns.embeds, columns.valid)

    # -- scoring -----------------------------------------------------------------------------------
    def forward(self, segment: Segment, need: frozenset[str]) -> Scores:
        """See :meth:`UnifiedModel.score`."""
        segment = segment.to(self.device)
        with self._quick(self._lm, self.network.dm):
            if isinstance(segment, FlowImageSegment):
                return self._drawn_scores(segment, need)
            if isinstance(segment, NoisedImageSegment):
                velocity = self._velocity(segment.context, segment.sampling)
                return Scores(velocity=flow.velocities(segment, velocity, at_once=self._at_once(segment)))
            assert isinstance(segment, TokenSegment), f"{self.name} drew no {segment.kind} segment"
            return self._token_scores(segment, need)

    def _drawn_scores(self, segment: FlowImageSegment, need: frozenset[str]) -> Scores:
        sampling, other = segment.sampling, None
        if "kl" in need:
            with self.reference():
                other = self.reference()(self._velocity(segment.context, sampling))
        velocity = self._velocity(segment.context, sampling)
        return flow.score(segment, velocity, reference=other, at_once=self._at_once(segment))

    def _at_once(self, segment: Segment) -> int:
        """How many steps of each row one forward takes."""
        rows = len(segment) * branches(segment.sampling)
        return max(1, SCORED_AT_ONCE // (rows * math.prod(self.shape)))

    # -- learning ----------------------------------------------------------------------------------
    def _drawing_loss(self, examples: Sequence[Example], encoded: Tensor) -> LossSum:
        """Flow matching: the mean squared error of the velocity, one element a drawing.

        Where an example has captions, that of the first queries' captions is added.
        """
        drawn = normals([e.key for e in examples], 1 + encoded[0].numel())[:, 1:]  # the first is the time's
        noise, sigma = drawn.to(encoded).view_as(encoded), noise_levels(examples).to(encoded)
        told = torch.tensor([not e.unconditional for e in examples], device=self.device)
        prompts = [e.prompt for e in examples]
        said = self._captions(prompts)
        velocity = self.network.dm(
            torch.lerp(encoded, noise, sigma[:, None, None, None]),
            sigma,
            said * told[:, None, None],
            self._sources(prompts),
            recompute=self.recompute,
        )
        errors = (velocity - (noise - encoded)).square().flatten(1).mean(1)
        for b, example in enumerate(examples):
            if (to := example.captions) is not None:
                errors[b] += (said[b, : len(to)].to(errors) - to.to(errors)).square().mean()
        return LossSum(errors.sum(), torch.tensor(len(errors), device=self.device))

    def _drawing_count(self, examples: Sequence[Example]) -> int:
        return len(examples)

    def _expert(self, name: str) -> str:
        return name.split(".")[0]

    # -- files -------------------------------------------------------------------------------------
    @classmethod
    def _open(cls, folder: str | Path, dtype: torch.dtype) -> Self:
        network = UniRLZeroNetwork.load(folder, dtype)
        return cls(network, open_tokenizer(folder), open_latent_codec(folder))

    @classmethod
    def from_parts(
        cls,
        qwen: str | Path,
        diffusion: str | Path,
        layout: UniRLZeroLayout | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Self:
        """A UniRL-Zero that is still to be trained: Qwen2.5-VL and SANA or SD3, folders or hub names.

        ``diffusion`` holds ``transformer/`` and ``vae/``. Queries and connector start at random, the source's
        way into the expert at zero; without a ``layout`` there are as many as in the public model.
        """
        network = UniRLZeroNetwork.assemble(
            qwen, diffusion, layout or UniRLZeroLayout(), dtype=dtype, seed=seed
        )
        return cls(network, open_tokenizer(qwen), AutoencoderCodec.load(diffusion, dtype))


def noise_levels(examples: Sequence[Example]) -> Tensor:
    """Sigmas ``[B]`` float64 to learn from: the nearer an example's time is to 0, the more noise."""
    return flow.shifted(torch.sigmoid(-torch.special.ndtri(times(examples))), Denoising.shift)
