"""From a scene to pixels: flat colours, hard edges, no antialiasing, so that equal scenes give equal bytes.

This room knows how each kind looks at a given size. It must not know prompts, judging or any randomness.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from triptych.shapes.scenes import PALETTE, Box, Scene, Shape


@lru_cache(maxsize=1024)
def mask(kind: str, size: int) -> NDArray[np.bool_]:
    """Which pixels of a [size, size] box a shape of `kind` covers; read-only, bool [size, size]."""
    centre = np.arange(size) - (size - 1) / 2
    y, x = centre[:, None], centre[None, :]
    disc = x**2 + y**2 <= (size / 2) ** 2
    if kind == "square":
        covered = np.ones((size, size), dtype=np.bool_)
    elif kind == "circle":
        covered = disc
    elif kind == "triangle":  # apex up; every second row is one pixel wider on both sides
        covered = np.abs(x) <= (np.arange(size)[:, None] // 2) + (0.5 if size % 2 else 1)
    elif kind == "diamond":
        covered = np.abs(x) + np.abs(y) <= size / 2
    elif kind == "ring":
        hole = x**2 + y**2 <= (size / 2 - max(2, round(size / 5))) ** 2 + 0.5
        covered = disc & ~hole
    elif kind == "cross":  # bars of about a third of the box, of its own parity so that they sit central
        bar = max(2, 2 * round(size / 6 - 0.2)) + size % 2
        covered = (np.abs(x) < bar / 2) | (np.abs(y) < bar / 2)
    else:
        raise ValueError(f"no shape called {kind!r}")
    covered.setflags(write=False)
    return covered


def runs(shape: Shape) -> list[Box]:
    """The pixels that a shape covers, as boxes of one row each: (x0, y0, x1, y0 + 1)."""
    ends = np.diff(np.pad(mask(shape.kind, shape.size), ((0, 0), (1, 1))).astype(np.int8), axis=1)
    pairs = zip(np.argwhere(ends == 1).tolist(), np.argwhere(ends == -1).tolist(), strict=True)
    x, y = shape.x, shape.y
    return [(x + left, y + row, x + right, y + row + 1) for (row, left), (_, right) in pairs]


def render(scene: Scene) -> NDArray[np.uint8]:
    """The scene as an RGB picture, uint8 [H, W, 3]."""
    image = np.empty((scene.size, scene.size, 3), dtype=np.uint8)
    image[:] = scene.background
    for shape in scene.shapes:
        box = image[shape.y : shape.y + shape.size, shape.x : shape.x + shape.size]
        box[mask(shape.kind, shape.size)] = PALETTE[shape.color]
    return image
