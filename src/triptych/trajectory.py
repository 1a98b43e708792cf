"""The data that flows: prompts, tasks, segments of recorded actions, rollouts.

Every other room hands these objects on. This one knows no model, no kernel, no reward and no
scenario; it imports torch and nothing of ours but the error type.

Shape legend: B rows, A actions a row, N image tokens, S steps, H x W pixels.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from triptych.errors import UserError

Picture = Tensor
"""One image as data: uint8 ``[H, W, 3]``, RGB. What is fed back to a model is always this."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message: who speaks, and text and pictures in reading order."""

    role: str
    content: tuple[str | Picture, ...]


@dataclass(frozen=True)
class Prompt:
    """An interleaved list of text and pictures with roles ("user", "assistant", "system")."""

    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, *content: str | Picture) -> Self:
        """One user message, e.g. ``Prompt.of(picture, "What is this?")``."""
        return cls((Turn(role="user", content=content),))

    def replied(self, text: str) -> Self:
        """The same conversation, and the assistant's reply."""
        return replace(self, turns=(*self.turns, Turn(role="assistant", content=(text,))))

    @property
    def text(self) -> str:
        """All text of the prompt, for logs and reports."""
        return " ".join(part for turn in self.turns for part in turn.content if isinstance(part, str))

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in reading order."""
        return [part for turn in self.turns for part in turn.content if isinstance(part, Tensor)]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt plus what rewards and evaluation need to judge the outcome.

    ``id`` is unique in its set: groups and random draws are keyed by it. ``metadata`` follows
    GenEval's schema where the task is a drawing (tag, include, exclude, prompt); columns of a user's
    file that Triptych has no field for are kept in ``columns`` and reach TRL-style rewards.
    """

    id: str
    prompt: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    answer: str | None = None
    source: Picture | None = None
    target_text: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NoiseKey:
    """Names one row's random stream: every draw is a function of this key and its position alone."""

    seed: int
    step: int
    task: str
    sample: int
    segment: str = ""


@dataclass(frozen=True, kw_only=True)
class Unmasking:
    """How masked tokens are committed in parallel ``steps``, and what of it counts as an action.

    ``order`` of commits: "random"; "common", random but the same for a group, so that what differs in it are
    the actions alone; or "confidence", the log-probability of the drawn token plus Gumbel noise of scale
    ``order_temperature``, annealed linearly to 0. ``estimator``: which actions are recorded
    (triptych.kernels.masked). ``trained``: how many of the steps are scored, the same ones for a whole
    group, 0 is all of them; and ``which``, the "first" or a "random" choice. The mask of "random_mask" is one
    that training has at any time, or with "first" at the times of those steps: it then hides more.
    """

    steps: int = 16
    order: Literal["random", "common", "confidence"] = "random"
    order_temperature: float = 1.0
    estimator: Literal["trajectory", "exact", "random_mask"] = "trajectory"
    trained: int = 0
    which: Literal["random", "first"] = "random"

    def __post_init__(self) -> None:
        if self.order not in ("random", "common", "confidence"):
            raise UserError(f"unmask.order must be random, common or confidence, got {self.order!r}")
        if self.which not in ("random", "first"):
            raise UserError(f"unmask.which must be random or first, got {self.which!r}")
        if self.steps < 1:
            raise UserError(f"unmask.steps must be at least 1, got {self.steps}")
        if not 0 <= self.trained <= self.steps:
            raise UserError(f"unmask.trained must lie between 0 (all) and {self.steps}, got {self.trained}")
        if not 0 <= self.order_temperature < math.inf:
            raise UserError(f"unmask.order_temperature must be 0 or positive, got {self.order_temperature}")


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """How a latent is denoised in ``steps``, and which of the steps are drawn and so are actions.

    ``noise`` is put back after a step by "flow" (Flow-GRPO), "dance" (DanceGRPO) or "cps"
    (coefficients-preserving), with strength ``level`` (above 0; for "cps" at most 1), as
    triptych.kernels.flow has it; "ode" puts back none, which leaves nothing to score. ``shift`` above 1 takes
    more of the steps at high noise. The last step is never drawn. A ``window`` of w steps draws those alone
    (MixGRPO, arXiv 2507.21802); 0 is all others. It begins at step ``first`` (of 0, 1, ...) and ``moves`` on
    by one every ``hold`` training steps, and round ("sliding"), or lies anywhere, anew for each group
    ("random"), or stays ("still"). ``start`` "shared" gives a group one starting noise: with a window its
    drawings branch from one path.
    """

    steps: int = 10
    noise: Literal["flow", "dance", "cps", "ode"] = "flow"
    level: float = 0.7
    shift: float = 3.0
    window: int = 0
    moves: Literal["sliding", "random", "still"] = "sliding"
    first: int = 0
    hold: int = 1
    start: Literal["own", "shared"] = "own"

    def __post_init__(self) -> None:
        if self.noise not in ("flow", "dance", "cps", "ode"):
            raise UserError(f"denoise.noise must be flow, dance, cps or ode, got {self.noise!r}")
        least = 1 if self.noise == "ode" else 2
        if self.steps < least:
            raise UserError(f"denoise.steps must be at least {least} with {self.noise!r}, got {self.steps}")
        if not 0 <= self.window < self.steps:
            last = self.steps - 1
            raise UserError(f"denoise.window must lie between 0 (all) and {last}, got {self.window}")
        most = 1.0 if self.noise == "cps" else math.inf
        if not (0 < self.level <= most and self.level < math.inf):
            bounds = "above 0 and at most 1" if self.noise == "cps" else "positive"
            raise UserError(f"denoise.level must be {bounds} with {self.noise!r}, got {self.level}")
        if not 0 < self.shift < math.inf:
            raise UserError(f"denoise.shift must be positive, got {self.shift}")
        if self.hold < 1:
            raise UserError(f"denoise.hold must be at least 1, got {self.hold}")
        if not 0 <= self.first < self.steps - (self.window or self.steps - 1):
            raise UserError(f"denoise.first must leave the window before the last step, got {self.first}")
        if self.noise == "ode" and (self.window or self.start == "shared"):
            raise UserError("denoise.noise 'ode' draws at no step: leave window and start at their defaults")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How actions are drawn. All of it is part of the policy, so all of it is recorded.

    ``temperature`` divides the logits; 0 means greedy, which leaves nothing to train on.
    ``guidance`` s mixes ``u + s (c - u)``; 1 is off. ``max_tokens`` bounds a text segment; ``unmask`` is for
    drawings of masked tokens, ``denoise`` for those of a latent.
    ``source_guidance`` s_I is for edits: ``u + s_I (i - u) + s (c - i)``, where i sees the source picture
    and no text; None is s_I = s, in two passes instead of three.
    Truncations (top-k, top-p) change the policy in a way that scoring cannot see; none is offered.
    """

    temperature: float = 1.0
    guidance: float = 1.0
    max_tokens: int = 32
    unmask: Unmasking = Unmasking()
    denoise: Denoising = Denoising()
    source_guidance: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 (greedy) or positive, got {self.temperature}")
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance must be 0 or positive, got {self.guidance}")
        if self.source_guidance is not None and not 0 <= self.source_guidance < math.inf:
            raise UserError(f"source_guidance must be 0 or positive, got {self.source_guidance}")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(frozen=True, kw_only=True)
class Segment(ABC):
    """Recorded actions of B rows: what was asked, what was done, and with which probability.

    ``logp [B, A]`` holds the log-probabilities as sampled, fp32; ``mask [B, A]`` is true where an
    action was really taken (a row that sat out is all false). Scoring a segment with the weights that
    sampled it returns ``logp``. ``lacks`` says what cannot be asked about such actions, and why.
    """

    name: str
    context: tuple[Prompt, ...]
    logp: Tensor
    mask: Tensor
    sampling: Sampling

    kind: ClassVar[str] = "segment"
    lacks: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        shape = (len(self.context), self.actions)
        self._check("logp", shape, torch.float32)
        self._check("mask", shape, torch.bool)
        for name, value in self.tensors().items():
            assert len(value) == len(self), f"{self.name}.{name} has {len(value)} rows, expected {len(self)}"

    def _check(self, field: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        value = getattr(self, field)
        assert value.shape == shape, f"{self.name}.{field} is {tuple(value.shape)}, expected {shape}"
        assert value.dtype == dtype, f"{self.name}.{field} is {value.dtype}, expected {dtype}"

    def __len__(self) -> int:
        return len(self.context)

    @property
    @abstractmethod
    def actions(self) -> int:
        """A: how many actions a row has room for."""

    def tensors(self) -> dict[str, Tensor]:
        """The recorded tensors by field name, each with leading dimension B."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _map(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {name: change(value) for name, value in self.tensors().items()}

    def rows(self, index: Sequence[int]) -> Self:
        """The given rows, in the given order."""
        keep = torch.as_tensor(list(index), dtype=torch.long)
        context = tuple(self.context[i] for i in keep.tolist())
        return replace(self, context=context, **self._map(lambda x: x[keep.to(x.device)]))

    def among(self, rows: Sequence[int], context: Sequence[Prompt]) -> Self:
        """The same actions as those of ``rows`` among all rows, whose prompts are ``context``.

        The other rows sat out: their mask is false and ``logp`` 0. What else stands there is copied from a
        row that acted, so that it can be scored like any.
        """
        place = {row: i for i, row in enumerate(rows)}
        whole = self.rows([place.get(b, 0) for b in range(len(context))])
        acted = torch.tensor([b in place for b in range(len(context))], device=self.mask.device)[:, None]
        logp = torch.where(acted, whole.logp, 0.0)
        return replace(whole, context=tuple(context), logp=logp, mask=whole.mask & acted)

    def to(self, device: torch.device | str) -> Self:
        """The same segment with its tensors on ``device``."""
        return replace(self, **self._map(lambda x: x.to(device)))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Rows of several segments of one kind, name and sampling; shorter ones are padded on the right."""
        first = parts[0]
        for part in parts:
            if (type(part), part.name, part.sampling) != (type(first), first.name, first.sampling):
                raise ValueError(
                    f"cannot join segment {part.name!r} to {first.name!r}: kind or settings differ"
                )
        joined: dict[str, Any] = {}
        for name in first.tensors():
            values = [part.tensors()[name] for part in parts]
            width = max(value.shape[1] for value in values)
            joined[name] = torch.cat([pad(value, (0, width - value.shape[1])) for value in values])
        return replace(first, context=tuple(p for part in parts for p in part.context), **joined)

    def save(self, path: Path) -> None:
        """Write ``path.safetensors`` and ``path.json``; :func:`load_segment` reads them back bit for bit."""
        tensors = {f"field.{name}": value.contiguous() for name, value in self.tensors().items()}
        pictures = [picture for prompt in self.context for picture in prompt.pictures]
        for i, picture in enumerate(pictures):
            tensors[f"picture.{i}"] = picture.clone(memory_format=torch.contiguous_format)
        context = [
            [(turn.role, [p if isinstance(p, str) else None for p in turn.content]) for turn in prompt.turns]
            for prompt in self.context
        ]
        about = {"kind": self.kind, "name": self.name, "sampling": asdict(self.sampling), "context": context}
        data, description = _files(path)
        save_file(tensors, data)
        description.write_text(json.dumps(about))


def _files(path: Path) -> tuple[Path, Path]:
    """Where a segment's tensors and its description lie; a dot in the name is no suffix."""
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


_NO_POINTS = "velocities are learned at noised points (triptych.kernels.flow.renoised)"
_NO_NOISE = "loss.ratio 'guard' and loss.objective 'dppo' are for denoising steps, and these are tokens"


@dataclass(frozen=True, kw_only=True)
class TokenSegment(Segment):
    """Actions that are choices from a vocabulary: ``tokens [B, A]`` int64."""

    lacks: ClassVar[Mapping[str, str]] = {
        "velocity": _NO_POINTS,
        **dict.fromkeys(("old_kl", "std", "step_size"), _NO_NOISE),
    }

    tokens: Tensor

    @property
    def actions(self) -> int:
        """A: one for each token."""
        return self.tokens.shape[1]


@dataclass(frozen=True, kw_only=True)
class TextSegment(TokenSegment):
    """Text tokens written one after another: ``tokens [B, A]`` int64; the mask ends with the end token."""

    kind: ClassVar[str] = "text"


@dataclass(frozen=True, kw_only=True)
class TokenImageSegment(TokenSegment):
    """Image tokens drawn one after another in raster order: ``tokens [B, N]`` int64."""

    kind: ClassVar[str] = "token_image"


@dataclass(frozen=True, kw_only=True)
class MaskedImageSegment(TokenSegment):
    """Image tokens committed in S parallel steps: ``tokens [B, N]`` int64.

    ``commit [B, N]`` is the step of each position and ``rank [B, N]`` its place in the order of commits
    (0 to N - 1, over all steps), so that every step's canvas can be rebuilt. ``trained [B, k]`` are the
    steps that are scored. ``draws [B, S, N]`` (estimator "exact"; else ``[B, 0, N]``) is what every position
    drew at every step. Actions, A = N: the committed tokens ("trajectory") or those under the mask
    ("random_mask"); A = S N + N: every draw, then the rank of every position ("exact").
    """

    kind: ClassVar[str] = "masked_image"

    commit: Tensor
    rank: Tensor
    trained: Tensor
    draws: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        positions = self.tokens.shape[1]
        for name in ("commit", "rank", "draws"):
            width = getattr(self, name).shape[-1]
            assert width == positions, f"{self.name}.{name} has {width} positions, expected {positions}"

    @property
    def actions(self) -> int:
        """A: N, or with every step's draws S N + N."""
        return self.tokens.shape[1] * (1 + self.draws.shape[1])


@dataclass(frozen=True, kw_only=True)
class FlowImageSegment(Segment):
    """A latent denoised in S steps: ``latents [B, S + 1, ...]`` fp32, from noise to the clean one.

    ``sigmas [B, S + 1]`` fp32 are the noise levels as used, the same in each row; scoring reads them here.
    ``trained [B, A]`` int64 are the steps that were drawn, ascending: the actions. ``means [B, A, ...]`` fp32
    are the centres that they were drawn around. ``logp`` is a mean over the latent's dimensions.
    """

    kind: ClassVar[str] = "flow_image"
    lacks: ClassVar[Mapping[str, str]] = {
        "velocity": _NO_POINTS,
        "reference_logp": "its log-probabilities are means over dimensions, from which k1, k2 and k3 estimate"
        " nothing: set loss.kl to 'exact', the closed form",
    }

    latents: Tensor
    sigmas: Tensor
    trained: Tensor
    means: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, points, *shape = self.latents.shape
        self._check("latents", (rows, points, *shape), torch.float32)
        self._check("sigmas", (rows, points), torch.float32)
        self._check("means", (rows, self.actions, *shape), torch.float32)

    @property
    def actions(self) -> int:
        """A: the steps that were drawn."""
        return self.trained.shape[1]


@dataclass(frozen=True, kw_only=True)
class NoisedImageSegment(Segment):
    """Finished latents ``clean [B, ...]``, noised afresh: points at which to learn a velocity.

    Nothing was drawn: A is the number of points a row, ``logp`` is 0. ``sigmas [B, A]`` fp32 in (0, 1],
    ``noise [B, A, ...]`` fp32. DiffusionNFT and flow matching learn at such points.
    """

    kind: ClassVar[str] = "noised_image"
    lacks: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("logp", "entropy", "kl", "reference_logp", "old_kl", "std", "step_size"),
        "it holds points at which to learn a velocity, and no actions",
    )

    clean: Tensor
    sigmas: Tensor
    noise: Tensor

    @property
    def actions(self) -> int:
        """A: the points."""
        return self.sigmas.shape[1]

    def noised(self) -> Tensor:
        """``(1 - sigma) clean + sigma noise``, ``[B, A, ...]``."""
        level = self.sigmas.view(*self.sigmas.shape, *[1] * (self.clean.ndim - 1))
        return (1 - level) * self.clean[:, None] + level * self.noise


_KINDS: dict[str, type[Segment]] = {
    cls.kind: cls
    for cls in (TextSegment, TokenImageSegment, MaskedImageSegment, FlowImageSegment, NoisedImageSegment)
}


def load_segment(path: Path) -> Segment:
    """Read what :meth:`Segment.save` wrote."""
    data, description = _files(path)
    about, tensors = json.loads(description.read_text()), load_file(data)
    pictures = (tensors[f"picture.{i}"] for i in count())

    def turn(role: str, content: Sequence[str | None]) -> Turn:
        return Turn(role=role, content=tuple(next(pictures) if part is None else part for part in content))

    context = tuple(Prompt(tuple(turn(*each) for each in prompt)) for prompt in about["context"])
    recorded = {n.removeprefix("field."): t for n, t in tensors.items() if n.startswith("field.")}
    settings = about["sampling"]
    nested = {"unmask": Unmasking(**settings["unmask"]), "denoise": Denoising(**settings["denoise"])}
    sampling = Sampling(**{**settings, **nested})
    return _KINDS[about["kind"]](name=about["name"], context=context, sampling=sampling, **recorded)


@dataclass(frozen=True)
class Scores:
    """What a model's ``score`` of a segment was asked for, each ``[B, A]`` fp32; None where it was not.

    ``entropy`` and ``kl``, that to the reference, are exact and in nats (a dimension, of a denoising step);
    ``reference_logp`` is the reference's log-probability. Denoising steps alone have ``old_kl``, the
    divergence of the policy that acted from this one, ``mean (mu - mu_old)^2 / (2 std^2)`` (Flow-DPPO's D),
    and of each step the spread ``std`` and the length ``step_size``, which is -d; GRPO-Guard needs all three.
    Noised points alone have a ``velocity [B, A, ...]``.
    """

    logp: Tensor | None = None
    entropy: Tensor | None = None
    kl: Tensor | None = None
    reference_logp: Tensor | None = None
    old_kl: Tensor | None = None
    std: Tensor | None = None
    step_size: Tensor | None = None
    velocity: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One finished episode as a reward sees it.

    ``texts`` and ``pictures`` hold the outcome of every segment that the episode had a part in, by name;
    ``completion`` is the one that the scenario calls its result: a string, or a picture, uint8 ``[H, W, 3]``.
    """

    task: Task
    texts: Mapping[str, str]
    pictures: Mapping[str, Picture]
    completion: str | Picture

    def acted(self, segment: str) -> bool:
        """Whether the episode had a part in a segment, or sat out."""
        return segment in self.texts or segment in self.pictures


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What a scenario produced for B rows: segments by name, and one :class:`Sample` a row.

    ``groups[b]`` is the id that rows of one task at one step share; ``samples[b]`` what rewards see.
    """

    groups: tuple[str, ...]
    segments: Mapping[str, Segment]
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def rows(self, index: Sequence[int]) -> "Rollout":
        """The given rows, in the given order."""
        return Rollout(
            groups=tuple(self.groups[i] for i in index),
            segments={name: segment.rows(index) for name, segment in self.segments.items()},
            samples=tuple(self.samples[i] for i in index),
        )

    def acted(self) -> dict[str, int]:
        """How many rows had a part in each segment."""
        return {name: sum(sample.acted(name) for sample in self.samples) for name in self.segments}

    @classmethod
    def cat(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """Rows of several rollouts of one scenario, in order."""
        names = parts[0].segments
        return cls(
            groups=tuple(group for part in parts for group in part.groups),
            segments={n: type(s).cat([part.segments[n] for part in parts]) for n, s in names.items()},
            samples=tuple(sample for part in parts for sample in part.samples),
        )
