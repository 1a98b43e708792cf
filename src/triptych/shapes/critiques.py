"""Critiques: a prompt, a drawing of it that is right or wrong in one way, and what to say about it.

This room knows how to spoil a scene and how to say what would mend it. It must not know pixels, nor how
drawings are judged: that a spoilt one is wrong by the rule is for the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from triptych.evals.geneval import Metadata, plural
from triptych.evals.prompts import phrase
from triptych.shapes.prompts import split
from triptych.shapes.scenes import COLORS, KINDS, MAX_SHAPES, Scene, Shape, sample_scene

FAULTS = {
    "count": ("counting",),
    "color": ("colors", "color_attr"),
    "relation": ("position",),
    "missing": ("two_object", "color_attr"),
    "shape": ("single_object", "two_object", "counting", "colors", "color_attr"),
}
"""What may be wrong with a drawing, and in prompts of which tags."""
QUESTION = "is this right?"
RIGHT, WRONG = "right", "wrong"
WORDS = ("add", "make", "put", "remove", "replace", "the", "with", "wrong", ":")
"""What critiques say beyond the words of prompts."""


@dataclass(frozen=True, kw_only=True)
class Critique:
    """``drawn`` is to be ``metadata``'s scene; ``target`` is, and is ``drawn`` itself where that is right.

    ``instruction`` turns the one into the other, empty where nothing is to change. ``fault`` is a key of
    FAULTS, of right drawings too: prompts do not tell which drawings are wrong.
    """

    metadata: Metadata
    fault: str
    drawn: Scene
    target: Scene
    instruction: str

    @property
    def text(self) -> str:
        """The verdict first: "right", or "wrong: make the square red"."""
        return f"{WRONG}: {self.instruction}" if self.instruction else RIGHT


def train_critique(rng: np.random.Generator) -> Critique:
    """A critique of a training prompt's drawing: the faults evenly, half of the drawings right."""
    fault = str(rng.choice(list(FAULTS)))
    right = rng.random() < 0.5
    tags = FAULTS[fault]
    prompts, _ = split(tags[rng.integers(len(tags))])
    metadata = prompts[rng.integers(len(prompts))]
    target, drawn, instruction = _spoilt(fault, metadata, rng)
    if right:
        drawn, instruction = target, ""
    return Critique(metadata=metadata, fault=fault, drawn=drawn, target=target, instruction=instruction)


def _spoilt(fault: str, metadata: Metadata, rng: np.random.Generator) -> tuple[Scene, Scene, str]:
    """The right scene, one with the fault, and the instruction that leads from that back to the right one."""
    if fault == "count":
        return _miscounted(metadata, rng)
    scene, entries = sample_scene(metadata, rng), metadata["include"]
    if fault == "relation":
        reference, placed = entries
        relation = placed["position"][0]
        return scene, _mirrored(scene, relation), f"put {_the(placed)} {relation} {_the(reference)}"
    entry = entries[rng.integers(len(entries))]
    asked = phrase(entry["class"], entry["count"], entry.get("color"))
    if fault == "missing":
        return scene, _changed(scene, entry["class"], None), f"add {asked}"
    if fault == "color":
        change = {"color": _other(COLORS, [entry["color"]], rng)}
        return scene, _changed(scene, entry["class"], change), f"make {_the(entry)} {entry['color']}"
    wrong = _other(KINDS, [shape.kind for shape in scene.shapes], rng)
    drawn = _changed(scene, entry["class"], {"kind": wrong})
    return scene, drawn, f"replace {_the({**entry, 'class': wrong})} with {asked}"


def _miscounted(metadata: Metadata, rng: np.random.Generator) -> tuple[Scene, Scene, str]:
    """One shape too few or too many; the last to be placed is the one that is missing, or that must go."""
    [entry] = metadata["include"]
    one = phrase(entry["class"], 1, entry.get("color"))
    if entry["count"] == MAX_SHAPES or rng.random() < 0.5:
        scene = sample_scene(metadata, rng)
        return scene, _with(scene, scene.shapes[:-1]), f"add {one}"
    more = sample_scene({"include": [{**entry, "count": entry["count"] + 1}]}, rng)
    return _with(more, more.shapes[:-1]), more, f"remove {one}"


def _with(scene: Scene, shapes: Sequence[Shape]) -> Scene:
    return replace(scene, shapes=tuple(shapes))


def _changed(scene: Scene, kind: str, change: dict[str, Any] | None) -> Scene:
    """All shapes of one kind changed, or with None gone."""
    kept = [shape for shape in scene.shapes if change is not None or shape.kind != kind]
    return _with(scene, [replace(s, **(change or {})) if s.kind == kind else s for s in kept])


def _mirrored(scene: Scene, relation: str) -> Scene:
    """Left and right, or above and below, exchanged: it reverses the relation and keeps every gap."""
    axis = "y" if relation in ("above", "below") else "x"
    return _with(scene, [replace(s, **{axis: scene.size - getattr(s, axis) - s.size}) for s in scene.shapes])


def _the(entry: Metadata) -> str:
    kind = entry["class"]
    return f"the {kind if entry['count'] == 1 else plural(kind)}"


def _other(choices: Sequence[str], taken: Sequence[str], rng: np.random.Generator) -> str:
    left = [choice for choice in choices if choice not in taken]
    return left[rng.integers(len(left))]
