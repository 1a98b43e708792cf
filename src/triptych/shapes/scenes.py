"""Scenes of the embedded world: what stands where, as plain data, and how to draw one that fits a prompt.

This room knows kinds, colours, places and GenEval's relations. It must not know pixels (renderer.py does),
the wording of prompts (prompts.py does), nor any model or tensor library.

Places and sizes are whole multiples of LATTICE pixels (at 32 x 32) and boxes keep MINIMUM_GAP apart, so that
an aligned 4 x 4 patch never holds two colours and all patches of the world fit a dictionary of 1024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from triptych.evals.geneval import Box, Metadata, centre_offset

Color = tuple[int, int, int]

KINDS = ("square", "circle", "triangle", "diamond", "ring", "cross")
PALETTE: dict[str, Color] = {
    "red": (214, 24, 44),
    "orange": (255, 128, 0),
    "yellow": (255, 226, 28),
    "green": (20, 156, 64),
    "blue": (24, 76, 232),
    "purple": (150, 44, 190),
    "black": (20, 20, 24),
}
COLORS = tuple(PALETTE)
BACKGROUNDS: dict[str, Color] = {"white": (246, 245, 240), "gray": (168, 172, 178)}
BACKGROUND = BACKGROUNDS["white"]

BASE_CANVAS = 32
LATTICE = 2  # of places
SIZES = (8, 10, 12)  # sides of a shape's box
MARGIN = 2  # background kept along the canvas border
MINIMUM_GAP = 4  # background kept between two boxes, along at least one axis
MAX_SHAPES = 4
ATTEMPTS = 400  # random layouts before the prompt is called impossible
EASY_ATTEMPTS = 8  # of these with free sizes; afterwards every shape takes the smallest


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One flat-coloured shape; (x, y) is the top-left pixel of its square box, `size` its side."""

    kind: str
    color: str
    x: int
    y: int
    size: int

    @property
    def box(self) -> Box:
        """(x0, y0, x1, y1) in pixels, far edges exclusive."""
        return (self.x, self.y, self.x + self.size, self.y + self.size)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One to four shapes on a square canvas of `size` pixels; `background` is RGB, 0..255."""

    shapes: tuple[Shape, ...]
    background: Color = BACKGROUND
    size: int = BASE_CANVAS


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A shape still to be placed: the include entry it serves, its own (relation, target entry), and the
    relations in which later entries will stand to it."""

    kind: str
    color: str
    entry: int
    position: tuple[str, int] | None
    referred: tuple[str, ...]


def sample_scene(metadata: Metadata, rng: np.random.Generator, background: Color = BACKGROUND) -> Scene:
    """A random scene that satisfies `metadata` (GenEval's schema) and shows exactly what it names.

    Colours that the prompt leaves open are drawn anew for every shape; a relation is the one that describes
    the two places best, which keeps a distance to GenEval's limit.
    Raises ValueError where the metadata names what the world lacks, contradicts itself or cannot be laid out.
    """
    _check_metadata(metadata)
    for attempt in range(ATTEMPTS):
        sizes = SIZES if attempt < EASY_ATTEMPTS else SIZES[:1]
        shapes = _lay_out(_wanted(metadata, rng), sizes, rng)
        if shapes is not None:
            return Scene(shapes=shapes, background=background)
    raise ValueError(
        f"no layout found for {metadata.get('prompt', metadata)!r}: ask for fewer shapes or relations"
    )


def placed(shape: Shape, relation: str, other: Shape, rng: np.random.Generator) -> Shape | None:
    """`shape` at a random place of the base canvas, in that relation to `other`; None: no room is left."""
    want = _Wanted(kind=shape.kind, color=shape.color, entry=1, position=(relation, 0), referred=())
    place = _free_place([(0, other.box)], want, shape.size, rng)
    return replace(shape, x=place[0], y=place[1]) if place else None


def _check_metadata(metadata: Metadata) -> None:
    include = metadata.get("include", [])
    kinds = [entry["class"] for entry in include]
    unknown = sorted({kind for kind in kinds if kind not in KINDS})
    unknown += sorted({e["color"] for e in include if "color" in e and e["color"] not in PALETTE})
    if unknown:
        raise ValueError(f"{unknown} not in the world: kinds are {KINDS}, colours {COLORS}")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"include names a class twice ({kinds}): use one entry with a count")
    total = sum(entry["count"] for entry in include)
    if not 1 <= total <= MAX_SHAPES:
        raise ValueError(f"{total} shapes asked for: a scene has 1 to {MAX_SHAPES}")
    counts = {entry["class"]: entry["count"] for entry in include}
    for entry in metadata.get("exclude", []):
        if counts.get(entry["class"], 0) >= entry["count"]:
            raise ValueError(f"exclude forbids {entry['count']} x {entry['class']}, which include asks for")


def _wanted(metadata: Metadata, rng: np.random.Generator) -> Iterator[_Wanted]:
    positions = [tuple(entry["position"]) if "position" in entry else None for entry in metadata["include"]]
    for index, entry in enumerate(metadata["include"]):
        referred = tuple(position[0] for position in positions if position and position[1] == index)
        for _ in range(entry["count"]):
            color = entry.get("color") or COLORS[rng.integers(len(COLORS))]
            position = positions[index]
            yield _Wanted(kind=entry["class"], color=color, entry=index, position=position, referred=referred)


def _lay_out(
    wanted: Iterator[_Wanted], sizes: Sequence[int], rng: np.random.Generator
) -> tuple[Shape, ...] | None:
    """Place the shapes one after the other, each uniformly over its free places; None where one has none."""
    taken: list[tuple[int, Box]] = []  # (entry, box)
    shapes = []
    for want in wanted:
        side = sizes[int(rng.integers(len(sizes)))]
        place = _free_place(taken, want, side, rng)
        if place is None:
            return None
        shapes.append(Shape(kind=want.kind, color=want.color, x=place[0], y=place[1], size=side))
        taken.append((want.entry, shapes[-1].box))
    return tuple(shapes)


def _free_place(
    taken: Sequence[tuple[int, Box]], want: _Wanted, side: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """The first top-left corner, in random order, that keeps the gaps and the relation."""
    relation, target = want.position or ("", -1)
    places = _places(side)
    for index in rng.permutation(len(places)):
        x, y = places[index]
        box = (x, y, x + side, y + side)
        open_place = all(_apart(box, other) for _, other in taken) and _leaves_room(box, want.referred)
        if open_place and all(_clearly(relation, box, other) for entry, other in taken if entry == target):
            return x, y
    return None


@cache
def _places(side: int) -> list[tuple[int, int]]:
    steps = range(MARGIN, BASE_CANVAS - MARGIN - side + 1, LATTICE)
    return [(x, y) for y in steps for x in steps]


def _apart(box: Box, other: Box) -> bool:
    horizontal = max(box[0], other[0]) - min(box[2], other[2])
    return horizontal >= MINIMUM_GAP or max(box[1], other[1]) - min(box[3], other[3]) >= MINIMUM_GAP


def _clearly(relation: str, box: Box, other: Box) -> bool:
    """The offset along the relation's axis is the longer one; with our gaps that includes GenEval's rule."""
    x, y = centre_offset(box, other)
    return {"left of": -x > abs(y), "right of": x > abs(y), "above": -y > abs(x), "below": y > abs(x)}[
        relation
    ]


def _leaves_room(box: Box, relations: Sequence[str]) -> bool:
    """Whether a smallest shape still fits beside `box` wherever one of `relations` will put it."""
    x0, y0, x1, y1 = box
    room = {"left of": x0, "right of": BASE_CANVAS - x1, "above": y0, "below": BASE_CANVAS - y1}
    return all(room[relation] >= MARGIN + SIZES[0] + MINIMUM_GAP for relation in relations)
