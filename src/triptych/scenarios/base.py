"""The stage of every scenario: an actor that acts through the model and keeps the record."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch

from triptych.errors import UserError
from triptych.models.base import UnifiedModel, to_pictures
from triptych.trajectory import (
    NoiseKey,
    Picture,
    Prompt,
    Rollout,
    Sample,
    Sampling,
    Segment,
    Task,
)

S = TypeVar("S", bound=Segment)
T = TypeVar("T", str, Picture)


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

    Row b's random draws depend on ``keys[b]`` and the segment's name alone. Rows that are not ``active [B]``
    (default: all are) sit out: they take no action, and their mask is false.
    """

    def __init__(self, model: UnifiedModel, keys: Sequence[NoiseKey], settings: RolloutSettings) -> None:
        self.model = model
        self.keys = keys
        self.settings = settings
        self.segments: dict[str, Segment] = {}
        self.texts: list[dict[str, str]] = [{} for _ in keys]
        self.pictures: list[dict[str, Picture]] = [{} for _ in keys]

    def draw(
        self, name: str, prompts: Sequence[Prompt], active: Sequence[bool] | None = None
    ) -> list[Picture]:
        """Draw one picture a row; returns them as recorded, uint8 ``[H, W, 3]``.

        For a row that sits out the picture that it drew last is returned: there must be one.
        """
        sampling, model = self.settings.draw, self.model
        model.require("draw")

        def draw(prompts: Sequence[Prompt], keys: Sequence[NoiseKey]) -> tuple[Segment, list[Picture]]:
            segment = model.generate_image(prompts, sampling, keys)
            return segment, list(to_pictures(model.decode(segment)))

        return self._act(name, prompts, active, draw, self.pictures)

    def write(self, name: str, prompts: Sequence[Prompt], active: Sequence[bool] | None = None) -> list[str]:
        """Write one text a row; for a row that sits out the text that it wrote last is returned."""
        sampling, model = self.settings.write, self.model
        model.require("read")

        def write(prompts: Sequence[Prompt], keys: Sequence[NoiseKey]) -> tuple[Segment, list[str]]:
            segment = model.generate_text(prompts, sampling, keys)
            return segment, model.texts(segment)

        return self._act(name, prompts, active, write, self.texts)

    def _act(
        self,
        name: str,
        prompts: Sequence[Prompt],
        active: Sequence[bool] | None,
        act: Callable[[Sequence[Prompt], Sequence[NoiseKey]], tuple[S, list[T]]],
        outcomes: Sequence[dict[str, T]],
    ) -> list[T]:
        """Act for the active rows in batches; record segment and each row's outcome; return the latest."""
        active = [True] * len(self.keys) if active is None else active
        for given, what in ((prompts, "prompts"), (active, "active rows")):
            assert len(given) == len(self.keys), f"{len(given)} {what} for {len(self.keys)} rows"
        assert name not in self.segments, f"two segments called {name!r}"
        rows = [b for b, acts in enumerate(active) if acts]
        batches = [rows[i : i + self.settings.batch] for i in range(0, len(rows), self.settings.batch)]
        parts = []
        # Where all sit out one acts for nothing: it tells what the segment's tensors look like.
        for batch in batches or [[0]]:
            keys = [replace(self.keys[b], segment=name) for b in batch]
            part, found = act([prompts[b] for b in batch], keys)
            parts.append(part)
            for b, outcome in zip(batch, found, strict=True):
                if active[b]:
                    outcomes[b][name] = outcome
        segment = type(parts[0]).cat(parts).to("cpu")
        self.segments[name] = segment if all(active) else segment.among(rows, prompts)
        assert all(outcomes), f"a row sits out of {name!r} that has nothing before it"
        return [list(row.values())[-1] for row in outcomes]


class Scenario(ABC):
    """A short program over a model.

    ``needs`` says what the model must be able to do: "read", "draw", "edit". ``result`` names the segment
    that is the episode's completion; of several it is the last that the episode had a part in. ``credit``
    maps a segment to the rewards that judge it; one that it does not name is credited with the total.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    result: ClassVar[str | tuple[str, ...]]
    credit: Mapping[str, tuple[str, ...]] = {}

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
    """Play ``group`` episodes of every task: rows are ordered by task, then by sample.

    Raises UserError for a model that cannot do what the scenario needs, before anything is drawn.
    """
    model.require(*scenario.needs)
    played = [task for task in tasks for _ in range(group)]
    actor = Actor(model, [NoiseKey(seed, step, t.id, b % group) for b, t in enumerate(played)], settings)
    scenario.rollout(actor, played)
    results = (scenario.result,) if isinstance(scenario.result, str) else scenario.result
    samples = []
    for task, texts, pictures in zip(played, actor.texts, actor.pictures, strict=True):
        outcomes: dict[str, str | Picture] = {**texts, **pictures}
        completion = [outcomes[name] for name in results if name in outcomes][-1]
        samples.append(Sample(task=task, texts=texts, pictures=pictures, completion=completion))
    groups = tuple(task.id for task in played)
    return Rollout(groups=groups, segments=actor.segments, samples=tuple(samples))
