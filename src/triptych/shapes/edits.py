"""Edits of a picture: source scene, instruction, and the exact scene that should come out.

Four of ImgEdit's categories over pictures of two objects. This room knows the wording, the schema and the
train/test split of edits. It must not know pixels or how edits are judged: the metadata is GenEval's, of the
picture after the edit, so the verifier of drawings judges an edit too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from triptych.evals.geneval import Metadata
from triptych.evals.prompts import phrase
from triptych.shapes.prompts import combination_key, split
from triptych.shapes.scenes import COLORS, KINDS, Box, Scene, Shape, sample_scene

REVERSES = {"add": "remove", "remove": "add", "replace": "replace", "adjust": "adjust"}
"""Each kind of edit, and the kind that undoes it."""
EDITS = tuple(REVERSES)
_SAID = "add make remove replace the with extract keep only move swap put turn into all it everything to in"
_SAID += " on background gray white style ink blueprint copper picture larger smaller"
WORDS = tuple(_SAID.split())
"""What instructions say beyond the words of prompts."""
TEST_SEED = 11_2025


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit. ``metadata`` is GenEval's, of the target; its "prompt" is the instruction, "tag" the kind.

    ``reverse`` is the instruction that makes the source of the target again.
    """

    source: Scene
    target: Scene
    metadata: Metadata
    reverse: str

    @property
    def regions(self) -> dict[str, list[Box]]:
        """Boxes that say what must stay: all outside ``edit_region``, or what lies in ``kept_region``.

        The latter where something is added, which no instruction says the place of.
        """
        before, after = set(self.source.shapes), set(self.target.shapes)
        if before < after:
            return {"kept_region": [shape.box for shape in self.source.shapes]}
        return {"edit_region": sorted({shape.box for shape in before ^ after})}


def train_edit(rng: np.random.Generator) -> Edit:
    """An edit of the training split, the four kinds evenly."""
    return _edit(EDITS[rng.integers(len(EDITS))], "train", rng)


def test_edits(n: int = 200) -> list[Edit]:
    """`n` fixed held-out edits, kinds evenly; none has a picture of two objects that a training edit has.

    Pictures are told apart by (class, colour) pairs, as in the split of color_attr prompts, which it follows.
    """
    return [_edit(EDITS[i % len(EDITS)], "test", np.random.default_rng([TEST_SEED, i])) for i in range(n)]


test_edits.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it where it is imported


@cache
def _pairs(part: str) -> tuple[list[Metadata], frozenset[str]]:
    """The color_attr prompts of one part of the split, and their combinations."""
    pairs = split("color_attr")[part == "test"]
    return pairs, frozenset(map(combination_key, pairs))


def _edit(tag: str, part: str, rng: np.random.Generator) -> Edit:
    pairs, known = _pairs(part)
    while True:  # until source and target are of this part
        pair = pairs[rng.integers(len(pairs))]
        scene = sample_scene(pair, rng)
        kept, shape = scene.shapes
        if tag in ("add", "remove"):
            return _told(tag, scene, kept, *((None, shape) if tag == "add" else (shape, None)))
        others = [replace(shape, color=color) for color in COLORS]
        if tag == "replace":
            others = [replace(shape, kind=kind) for kind in KINDS]
        changed = [s for s in others if s != shape and _combination(kept, s) in known]
        if changed:
            return _told(tag, scene, kept, changed[rng.integers(len(changed))], shape)


def _told(tag: str, scene: Scene, kept: Shape, before: Shape | None, after: Shape | None) -> Edit:
    """The edit that turns ``before`` into ``after`` beside what is ``kept``."""
    source = [kept, *([before] if before else [])]
    target = [kept, *([after] if after else [])]
    gone = {shape.kind for shape in source} - {shape.kind for shape in target}
    exclude = [{"class": shape.kind, "count": 2} for shape in target]
    metadata = {
        "tag": tag,
        "include": _entries(*target),
        "exclude": exclude + [{"class": kind, "count": 1} for kind in gone],
        "prompt": _instruction(tag, before, after),
    }
    return Edit(
        source=replace(scene, shapes=tuple(source)),
        target=replace(scene, shapes=tuple(target)),
        metadata=metadata,
        reverse=_instruction(REVERSES[tag], after, before),
    )


def _instruction(tag: str, before: Shape | None, after: Shape | None) -> str:
    old = before.kind if before else ""
    new = phrase(after.kind, 1, after.color) if after else ""
    return {
        "add": f"add {new}",
        "remove": f"remove the {old}",
        "replace": f"replace the {old} with {new}",
        "adjust": f"make the {old} {after.color if after else ''}",
    }[tag]


def _combination(*shapes: Shape) -> str:
    return combination_key({"include": _entries(*shapes)})


def _entries(*shapes: Shape) -> list[dict[str, Any]]:
    return [{"class": shape.kind, "count": 1, "color": shape.color} for shape in shapes]
