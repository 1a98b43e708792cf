"""The contract between a model and everything that acts through it.

Scenarios, rewards and the trainer see :class:`UnifiedModel` and no more; which tensors a segment holds
is between the model and its kernel. A model knows no scenario, no reward and no optimizer.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from PIL import Image
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.kernels.relaxed import Relaxation
from triptych.models.lora import LoraSettings, adapters, add_lora, load_adapter, without_adapters
from triptych.models.weights import quiet
from triptych.trajectory import NoiseKey, Picture, Prompt, Sampling, Scores, Segment, TextSegment


class Codec(Protocol):
    """Pictures to token ids and back: the seam between a drawing's tokens and its pixels."""

    @property
    def codebook(self) -> Tensor:
        """``[K, d]``: what each id stands for."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [0, 1] -> ids ``[B, N]`` int64, raster order."""
        ...

    def decode(self, ids: Tensor) -> Tensor:
        """ids ``[B, N]`` -> ``[B, 3, H, W]`` in [0, 1]."""
        ...

    def decode_soft(self, vectors: Tensor) -> Tensor:
        """As :meth:`decode`, of mixtures ``[B, N, d]`` of the codebook's rows, with gradients to them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Example:
    """One supervised pair: a prompt, and what should follow: text, or a picture to draw.

    ``unconditional`` hides the prompt the way guidance does: so a drawing model learns to be guided.
    Models that learn from masked or noised pictures take the randomness from ``key``, and how much is hidden
    from ``time`` in (0, 1), where 0 hides all; None draws that too. ``captions [n, C]`` are what a diffusion
    expert is to be told of the prompt: a model that asks by queries learns to say them with the first n.
    """

    prompt: Prompt
    target: str | Picture
    unconditional: bool = False
    key: NoiseKey = NoiseKey(0, 0, "", 0)
    time: float | None = None
    captions: Tensor | None = None


@dataclass(frozen=True)
class LossSum:
    """A sum of element losses and how many elements it has, so that any split adds up to the same mean."""

    total: Tensor
    count: Tensor


@dataclass
class _Reference:
    """A frozen copy of the network, kept out of the module tree: it is neither trained nor saved."""

    network: nn.Module
    device: torch.device
    idle: torch.device
    at_hand: bool = False


class UnifiedModel(nn.Module, ABC):
    """One policy that reads, draws and edits.

    ``network`` holds all weights. ``can`` says which of "read", "draw", "edit", "relax" the model does, which
    an instance may narrow where its files hold less; asking for another is an error. The model stays in eval
    mode for good: dropout in one of two passes would make the policy that is scored another one than the
    policy that acted. Layers whose names begin with ``tower`` never get adapters. ``captions``: how wide are
    those that its diffusion expert is told, 0 where it has none. ``experts`` are parts that may be trained
    apart.
    """

    can: frozenset[str] = frozenset()
    name: ClassVar[str] = "model"
    tower: ClassVar[str] = ""
    captions: int = 0
    experts: ClassVar[tuple[str, ...]] = ("model",)
    network: Any

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False
        self._frozen: list[_Reference] = []

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever ``mode`` asks for."""
        return super().train(False)

    # -- acting ------------------------------------------------------------------------------------
    @abstractmethod
    def generate_text(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> TextSegment:
        """Write one text a prompt; ``keys[b]`` decides row b's draws, whatever the batch."""

    @abstractmethod
    def generate_image(
        self, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[NoiseKey]
    ) -> Segment:
        """Draw one picture a prompt; ``keys[b]`` decides row b's draws, whatever the batch."""

    @abstractmethod
    def forward(self, segment: Segment, need: frozenset[str]) -> Scores:
        """What :meth:`score` computes; a forward of the module, so that wrappers see it."""

    def score(self, segment: Segment, need: frozenset[str], reference: bool = False) -> Scores:
        """Score recorded actions with the present weights, by the settings recorded in the segment.

        ``need`` names what to return, see :class:`~triptych.trajectory.Scores`. ``reference=True`` scores
        with the reference weights instead. What a kind of segment lacks is an error that says why.
        """
        known = [f.name for f in fields(Scores) if f.name not in segment.lacks]
        if unknown := sorted(need - set(known)):
            why = segment.lacks.get(unknown[0], f"a {segment.kind} segment has {', '.join(known)}")
            raise UserError(f"cannot score {unknown[0]} of segment {segment.name!r}: {why}")
        if segment.sampling.temperature == 0:
            raise UserError(f"segment {segment.name!r} was drawn greedily: it has no probabilities to score")
        if reference and need & {"kl", "reference_logp"}:
            raise UserError("a kl of the reference to itself is asked for: score it with the policy")
        if reference:
            with self.reference():
                found: Scores = self(segment, need)
                return found
        other = None
        if "reference_logp" in need:
            other = self.score(segment, frozenset({"logp"}), reference=True).logp
        with self._reference_at_hand() if "kl" in need else nullcontext():
            found = self(segment, need - {"reference_logp"})
        return replace(found, reference_logp=other)

    @abstractmethod
    def decode(self, segment: Segment) -> Tensor:
        """Pictures of a drawn segment: ``[B, 3, H, W]`` in [0, 1]."""

    @abstractmethod
    def texts(self, segment: TextSegment) -> list[str]:
        """The written strings, without special tokens."""

    def relax(self, segment: Segment, relaxation: Relaxation, keys: Sequence[NoiseKey]) -> Sequence[Picture]:
        """Drawings through which a gradient passes, one a row: for prompts, in place of recorded pictures.

        :meth:`supervised_loss` of such a prompt, alone or among others with one such picture each, has
        gradients in the logits that drew it. What is inside is the model's own affair: floating-point pixels,
        or weights over codes. ``keys[b]`` decides row b's noise. Raises UserError where "relax" is not in
        ``can`` (UniRL's end-to-end path, arXiv 2505.23380).
        """
        self.require("relax")
        raise NotImplementedError

    # -- learning ----------------------------------------------------------------------------------
    @abstractmethod
    def supervised_loss(self, examples: Sequence[Example]) -> dict[str, LossSum]:
        """Losses, summed, by kind of target, "draw" and "read": cross-entropy in nats a token.

        Of a drawing that is denoised: the mean squared error of the velocity, one element a drawing.
        """

    @abstractmethod
    def target_count(self, examples: Sequence[Example]) -> int:
        """How many elements :meth:`supervised_loss` would sum over, without computing anything."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by expert, of those that have some; each may have its own learning rate."""
        groups: dict[str, list[nn.Parameter]] = {expert: [] for expert in self.experts}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                groups[self._expert(name)].append(parameter)
        return {expert: found for expert, found in groups.items() if found}

    def _expert(self, name: str) -> str:
        """Which of ``experts`` the network's parameter of that name belongs to."""
        return self.experts[0]

    def train_only(self, names: Sequence[str]) -> None:
        """Freeze all other groups than ``names``, each of which must be there; raises UserError."""
        groups = self.parameter_groups()
        if unknown := [name for name in names if name not in groups]:
            raise UserError(
                f"{self.name} has no parameter group {unknown[0]!r} to train; it has {', '.join(groups)}"
            )
        for group, parameters in groups.items():
            for parameter in parameters:
                parameter.requires_grad_(group in names)

    def add_lora(self, settings: LoraSettings) -> None:
        """Put adapters on the network and freeze all else but ``settings.full``; needs the extra ``lora``."""
        add_lora(self.network, settings, self.tower)

    # -- the reference -----------------------------------------------------------------------------
    def keep_reference(self, offload: bool = False) -> None:
        """Remember the present weights as the reference policy.

        With adapters nothing is copied: the reference is the base, the adapter switched off. ``offload``
        keeps the copy in main memory except while it is used.
        """
        if adapters(self.network):
            return
        copy = deepcopy(self.network).requires_grad_(False)
        device = self.device
        self._frozen = [_Reference(copy, device, torch.device("cpu") if offload else device)]
        copy.to(self._frozen[0].idle)

    @contextmanager
    def _reference_at_hand(self) -> Iterator[None]:
        """Inside, an offloaded reference stays on the device, however often it is asked."""
        kept = self._frozen[0] if self._frozen else None
        if kept is None or kept.at_hand:
            yield
            return
        kept.network.to(kept.device)
        kept.at_hand = True
        try:
            yield
        finally:
            kept.at_hand = False
            kept.network.to(kept.idle)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model computes with the reference weights, without gradients.

        ``model.reference()(f)`` is ``f``, computing so whenever it is called.
        """
        with torch.no_grad():
            if adapters(self.network):
                with without_adapters(self.network):
                    yield
                return
            if not self._frozen:
                raise UserError("a KL to the reference is asked for, but no reference was kept")
            policy = self.network
            with self._reference_at_hand():
                self.network = self._frozen[0].network
                try:
                    yield
                finally:
                    self.network = policy

    # -- files -------------------------------------------------------------------------------------
    def load_weights(self, folder: Path) -> None:
        """Take over what :meth:`save_pretrained` wrote: all weights, or the adapter's where there is one."""
        if adapters(self.network):
            load_adapter(self.network, folder)
        else:
            self.network.load_state_dict(type(self).from_pretrained(folder).network.state_dict())

    def set_attention(self, implementation: str) -> None:
        """Which attention kernel the network uses: "sdpa", or "eager" (faster to train at short lengths)."""
        with quiet():
            self.network.set_attn_implementation(implementation)

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write the model in its public layout."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Open a folder in the public layout, or a hub name."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def require(self, *abilities: str) -> None:
        """Raise a clear error if the model lacks one of ``abilities``."""
        for ability in abilities:
            if ability not in self.can:
                raise UserError(f"{self.name} cannot {ability}; it can {', '.join(sorted(self.can))}")


def to_pictures(images: Tensor) -> Tensor:
    """``[B, 3, H, W]`` in [0, 1] -> uint8 ``[B, H, W, 3]``: the recorded form of a drawing."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def from_pictures(pictures: Sequence[Picture]) -> Tensor:
    """uint8 ``[H, W, 3]`` each -> ``[B, 3, H, W]`` fp32 in [0, 1]; floating-point ones keep their type."""
    return torch.stack(list(pictures)).permute(0, 3, 1, 2) / 255


def fit(picture: Picture, size: int) -> Picture:
    """The middle square of a picture, as the public code cuts it: the short side is resized first."""
    if picture.shape[:2] == (size, size):
        return picture
    image = Image.fromarray(picture.numpy())
    short = min(image.size)
    image = image.resize([int(size * side / short) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(size, size, 3)
