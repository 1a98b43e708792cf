"""Edits of a picture: source scene, instruction, and the exact scene that should come out.

ImgEdit's nine categories (arXiv 2505.20275) over pictures of two objects. This room knows the wording, the
schema and the train/test split of edits. It must not know how edits are judged: the metadata is GenEval's, of
the picture after the edit, so the verifier of drawings judges an edit too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from triptych.evals.geneval import RELATIONS, Metadata, relative_position
from triptych.evals.prompts import metadata_of, phrase
from triptych.shapes.prompts import ON_GRAY, combination_key, nothing_else, split
from triptych.shapes.renderer import runs
from triptych.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    KINDS,
    Box,
    Scene,
    Shape,
    placed,
    sample_scene,
)

EDITS = ("add", "adjust", "extract", "replace", "remove", "background", "style", "hybrid", "action")
REVERSES = {"add": "remove", "remove": "add", "replace": "replace", "adjust": "adjust"}
"""Simple edits of one object, and what undoes each."""
UNDOABLE = (*REVERSES, "background", "action")
"""The categories whose edits an instruction undoes; only these have a ``reverse``."""
STYLES = {"ink": "black", "blueprint": "blue", "copper": "orange"}
"""The colour that every shape takes in a style."""
_HYBRIDS = list(product(("adjust", "replace", "remove"), repeat=2))[:-1]  # not both are removed
GRAY_SHARE = 1 / 6  # of the sources, but half of those whose background is to change
_SAID = "add make remove replace the with extract keep only move swap put turn into all it everything to in"
_SAID += " on background gray white style ink blueprint copper picture larger smaller"
WORDS = tuple(_SAID.split())
"""What instructions may say beyond the words of prompts."""
TEST_SEED = 11_2025


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit. ``metadata`` is GenEval's, of the target; "prompt" is the instruction, "tag" the category.

    Besides, "background" names the target's, "white" or "gray". ``description`` tells the target as a prompt
    would; ``reverse`` is the instruction that makes the source of the target again, None
    for categories that are not :data:`UNDOABLE`.
    """

    source: Scene
    target: Scene
    metadata: Metadata
    description: str
    reverse: str | None

    @property
    def regions(self) -> dict[str, list[Box]]:
        """Boxes that say what must stay: all outside ``edit_region``, or what lies in ``kept_region``.

        The latter where something is added or moved, which no instruction says the place of, and where the
        background changes: then the boxes are one row high and hold the shapes' pixels alone.
        """
        before, after = set(self.source.shapes), set(self.target.shapes)
        if self.source.background != self.target.background:
            return {"kept_region": [box for shape in self.source.shapes for box in runs(shape)]}
        if self.metadata["tag"] in ("add", "action"):
            return {"kept_region": [shape.box for shape in before & after]}
        return {"edit_region": sorted({shape.box for shape in before ^ after})}


def train_edit(rng: np.random.Generator, categories: Sequence[str] = EDITS) -> Edit:
    """An edit of the training split, the ``categories`` evenly."""
    return _edit(categories[int(rng.integers(len(categories)))], "train", rng)


def test_edits(n: int = 200, categories: Sequence[str] = EDITS) -> list[Edit]:
    """`n` fixed held-out edits, ``categories`` evenly; no source is a picture that a training edit has.

    Nor is a target of two objects, unless a style made it. Pictures are told apart by (class, colour) pairs,
    as in the split of color_attr prompts, which it follows; no training edit's target is what a held-out
    prompt of colors or position asks for.
    """
    rngs = [np.random.default_rng([TEST_SEED, i]) for i in range(n)]
    return [_edit(categories[i % len(categories)], "test", rng) for i, rng in enumerate(rngs)]


@cache
def _pairs(part: str) -> tuple[list[Metadata], frozenset[str], frozenset[str]]:
    """The color_attr prompts of one part of the split, their combinations, and those no target may show."""
    pairs = split("color_attr")[part == "test"]
    held_out = [m for tag in ("colors", "position") for m in split(tag)[1] if part == "train"]
    return pairs, frozenset(map(combination_key, pairs)), frozenset(map(combination_key, held_out))


def _edit(tag: str, part: str, rng: np.random.Generator) -> Edit:
    pairs, known, barred = _pairs(part)
    while True:  # until it can be made, and its target is of this part
        gray = rng.random() < (1 / 2 if tag == "background" else GRAY_SHARE)
        ground = BACKGROUNDS["gray" if gray else "white"]
        scene = sample_scene(pairs[rng.integers(len(pairs))], rng, background=ground)
        edit = _MAKERS.get(tag, _simple)(tag, scene, rng)
        if edit is None or combination_key(edit.metadata) in barred:
            continue
        shapes = edit.target.shapes
        if tag == "style" or len(shapes) < 2 or combination_key({"include": _entries(*shapes)}) in known:
            return edit


# -- one maker a category: from a scene of two objects, or None where it cannot be done there -------
def _simple(tag: str, scene: Scene, rng: np.random.Generator) -> Edit | None:
    kept, shape = scene.shapes
    before, after = (None, shape) if tag == "add" else (shape, _changed(tag, shape, scene, rng))
    instruction, reverse = _told(tag, before, after), _told(REVERSES[tag], after, before)
    source = replace(scene, shapes=(kept, *([before] if before else [])))
    target = replace(scene, shapes=(kept, *([after] if after else [])))
    return _made(tag, source, target, instruction, reverse)


def _extract(tag: str, scene: Scene, rng: np.random.Generator) -> Edit | None:
    kept, _ = scene.shapes
    return _made(tag, scene, replace(scene, shapes=(kept,)), f"extract the {kept.kind}")


def _background(tag: str, scene: Scene, rng: np.random.Generator) -> Edit | None:
    old = _ground(scene)
    new = "gray" if old == "white" else "white"
    told = [f"make the background {name}" for name in (new, old)]
    return _made(tag, scene, replace(scene, background=BACKGROUNDS[new]), *told)


def _style(tag: str, scene: Scene, rng: np.random.Generator) -> Edit | None:
    style = list(STYLES)[rng.integers(len(STYLES))]
    shapes = tuple(replace(shape, color=STYLES[style]) for shape in scene.shapes)
    return _made(tag, scene, replace(scene, shapes=shapes), f"turn the picture into {style} style")


def _hybrid(tag: str, scene: Scene, rng: np.random.Generator) -> Edit | None:
    tags = _HYBRIDS[rng.integers(len(_HYBRIDS))]
    after = [_changed(how, shape, scene, rng) for how, shape in zip(tags, scene.shapes, strict=True)]
    told = [_told(how, *change) for how, *change in zip(tags, scene.shapes, after, strict=True)]
    return _made(tag, scene, replace(scene, shapes=tuple(filter(None, after))), " and ".join(told))


def _action(tag: str, scene: Scene, rng: np.random.Generator) -> Edit | None:
    kept, shape = scene.shapes
    held = relative_position(shape.box, kept.box)
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    moved = None if relation in held else placed(shape, relation, kept, rng)
    back = moved and sorted(held - relative_position(moved.box, kept.box))
    if not moved or not back:
        return None
    told = [f"move the {shape.kind} {way} the {kept.kind}" for way in (relation, back[0])]
    return _made(tag, scene, replace(scene, shapes=(kept, moved)), told[0], told[1], relation)


_MAKERS: dict[str, Callable[[str, Scene, np.random.Generator], Edit | None]] = {
    "extract": _extract,
    "background": _background,
    "style": _style,
    "hybrid": _hybrid,
    "action": _action,
}


def _changed(tag: str, shape: Shape, scene: Scene, rng: np.random.Generator) -> Shape | None:
    """What a simple edit makes of a shape: it has another colour, a kind that is not there, or is gone."""
    there = {other.kind for other in scene.shapes}
    others: dict[str, Sequence[Shape | None]] = {
        "adjust": [replace(shape, color=color) for color in COLORS if color != shape.color],
        "replace": [replace(shape, kind=kind) for kind in KINDS if kind not in there],
        "remove": [None],
    }
    return others[tag][int(rng.integers(len(others[tag])))]


def _told(tag: str, before: Shape | None, after: Shape | None) -> str:
    old = before.kind if before else ""
    new = phrase(after.kind, 1, after.color) if after else ""
    return {
        "add": f"add {new}",
        "remove": f"remove the {old}",
        "replace": f"replace the {old} with {new}",
        "adjust": f"make the {old} {after.color if after else ''}",
    }[tag]


def _made(
    tag: str, source: Scene, target: Scene, instruction: str, reverse: str | None = None, relation: str = ""
) -> Edit:
    include, ground = _entries(*target.shapes), _ground(target)
    if relation:
        include[1]["position"] = [relation, 0]
    metadata = {"tag": tag, "include": include, "exclude": nothing_else(include), "background": ground}
    return Edit(
        source=source,
        target=target,
        metadata={**metadata, "prompt": instruction},
        description=metadata_of(tag, include)["prompt"] + ("" if ground == "white" else ON_GRAY),
        reverse=reverse,
    )


def _ground(scene: Scene) -> str:
    return next(name for name, color in BACKGROUNDS.items() if color == scene.background)


def _entries(*shapes: Shape) -> list[dict[str, Any]]:
    return [{"class": shape.kind, "count": 1, "color": shape.color} for shape in shapes]
