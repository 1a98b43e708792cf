"""The stage of every scenario: an actor that acts through the model and keeps the record."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar, TypeVar

import torch

from triptych.errors import UserError
from triptych.models.base import UnifiedModel, to_pictures
from triptych.trajectory import NoiseKey, Picture, Prompt, Rollout, Sample, Sampling, Segment, Task

S = TypeVar("S", bound=Segment)


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How episodes are drawn: the policies' sampling, and how many rows the model handles at once."""

    draw: Sampling = Sampling()
    write: Sampling = Sampling()
    batch: int = 128

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"the rollout batch must be at least 1, got {self.batch}")


class Actor:
    """Acts for B rows at once and records every action under the segment's name.

    Row b's random draws depend on ``keys[b]`` and the segment's name alone.
    """

    def __init__(self, model: UnifiedModel, keys: Sequence[NoiseKey], settings: RolloutSettings) -> None:
        self.model = model
        self.keys = keys
        self.settings = settings
        self.segments: dict[str, Segment] = {}
        self.texts: dict[str, list[str]] = {}
        self.pictures: dict[str, list[Picture]] = {}

    def draw(self, name: str, prompts: Sequence[Prompt]) -> list[Picture]:
        """Draw one picture a row; returns them as recorded, uint8 ``[H, W, 3]``."""
        sampling, model = self.settings.draw, self.model
        model.require("draw")
        parts = [model.generate_image(p, sampling, k) for p, k in self._batches(name, prompts)]
        self.pictures[name] = [x for part in parts for x in to_pictures(model.decode(part))]
        self._record(name, parts)
        return self.pictures[name]

    def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Write one text a row."""
        sampling, model = self.settings.write, self.model
        model.require("read")
        parts = [model.generate_text(p, sampling, k) for p, k in self._batches(name, prompts)]
        self.texts[name] = [text for part in parts for text in model.texts(part)]
        self._record(name, parts)
        return self.texts[name]

    def _batches(
        self, name: str, prompts: Sequence[Prompt]
    ) -> list[tuple[tuple[Prompt, ...], tuple[NoiseKey, ...]]]:
        assert len(prompts) == len(self.keys), f"{len(prompts)} prompts for {len(self.keys)} rows"
        assert name not in self.segments, f"two segments called {name!r}"
        rows = iter([(p, replace(k, segment=name)) for p, k in zip(prompts, self.keys, strict=True)])
        batches = []
        while batch := tuple(islice(rows, self.settings.batch)):
            batches.append((tuple(p for p, _ in batch), tuple(k for _, k in batch)))
        return batches

    def _record(self, name: str, parts: Sequence[S]) -> None:
        self.segments[name] = type(parts[0]).cat(parts).to("cpu")


class Scenario(ABC):
    """A short program over a model.

    ``result`` names the segment that is the episode's completion. ``credit`` maps a segment to the
    rewards that judge it; a segment it does not name is credited with the total.
    """

    result: ClassVar[str]
    credit: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @abstractmethod
    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """Play one episode a task, through ``actor`` alone."""


@torch.no_grad()
def play(
    scenario: Scenario,
    model: UnifiedModel,
    tasks: Sequence[Task],
    settings: RolloutSettings,
    *,
    group: int = 1,
    seed: int,
    step: int,
) -> Rollout:
    """Play ``group`` episodes of every task: rows are ordered by task, then by sample."""
    rows = [(task, sample) for task in tasks for sample in range(group)]
    keys = [NoiseKey(seed, step, task.id, sample) for task, sample in rows]
    actor = Actor(model, keys, settings)
    row_tasks = [task for task, _ in rows]
    scenario.rollout(actor, row_tasks)
    outcomes: Mapping[str, Sequence[str | Picture]] = {**actor.texts, **actor.pictures}
    samples = tuple(
        Sample(
            task=task,
            texts={name: texts[b] for name, texts in actor.texts.items()},
            pictures={name: pictures[b] for name, pictures in actor.pictures.items()},
            completion=outcomes[scenario.result][b],
        )
        for b, task in enumerate(row_tasks)
    )
    return Rollout(groups=tuple(task.id for task in row_tasks), segments=actor.segments, samples=samples)
