"""Objects from pixels: what a drawing of the embedded world shows, judged without knowing the prompt.

Segmentation by colour, connected components, comparison with templates. This room knows how shapes look
(renderer.py). It must not know prompts, questions or how detections are judged (evals/geneval.py does that),
and it never looks at the scene a picture was rendered from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from triptych.evals.geneval import Detection
from triptych.shapes.renderer import mask
from triptych.shapes.scenes import BACKGROUND, BACKGROUNDS, BASE_CANVAS, COLORS, KINDS, PALETTE

SPECK_SIDE = 6  # a component whose box is smaller on both axes is noise; at the base canvas
UNSURE_IOU = 0.78  # agreement with the best template at which confidence is UNSURE_CONFIDENCE
UNSURE_CONFIDENCE = 0.3  # GenEval's detection threshold: agreement below UNSURE_IOU is never counted
COLOR_RADIUS = 80.0  # RGB distance beyond which a component's mean colour has no name
FLAT_RADIUS = 32.0  # RGB distance within which a pixel has the colour of its part of the picture
BACKGROUND_RADIUS = 60.0  # RGB distance, about half of that between the two backgrounds
_EIGHT = np.ones((3, 3), dtype=np.int64)  # diagonal neighbours belong together: noise cuts thin parts
_PALETTE = np.array(list(PALETTE.values()), dtype=np.float32)  # [C, 3]


@dataclass(frozen=True, kw_only=True)
class _Bank:
    """Templates around one box size, as rows: kind of each, covered area, pixels [T, side * side]."""

    kinds: NDArray[np.int64]
    areas: NDArray[np.float32]
    pixels: NDArray[np.float32]
    side: int


def detect(image: NDArray[np.uint8]) -> list[Detection]:
    """The objects in a picture, uint8 [H, W, 3], most confident first.

    Every pixel takes the nearest of the seven colours and the picture's own background; each connected
    component of one colour becomes a detection of the kind whose template it agrees with best. Confidence is
    the agreement (intersection over union) mapped linearly: 1 at IoU 1, 0.3 at IoU 0.78, 0 below 0.69; so a
    half-drawn or merged shape is returned, but under GenEval's threshold of 0.3. `color` is None where the
    component's mean colour lies far from the whole palette.
    """
    parts = _components(_segment(image))
    found = [_describe(component, corner, color, image) for color, component, corner in parts]
    return sorted(found, key=lambda detection: -detection.confidence)


def background_drift(image: NDArray[np.uint8]) -> float:
    """Mean absolute difference of the picture's background from the world's, in [0, 1]; no reward sees it.

    Background is what no shape's colour claims, one pixel away from every shape. A picture without any such
    pixel counts as a whole.
    """
    return float(np.abs(_ground(image).astype(np.float64) - BACKGROUND).mean() / 255.0)


def background(image: NDArray[np.uint8]) -> str | None:
    """Which of BACKGROUNDS is nearest to nine tenths of what no shape claims and near its median, or None."""
    pixels, colors = _ground(image).astype(np.float32), np.array(list(BACKGROUNDS.values()))
    nearest = np.linalg.norm(pixels[:, None] - colors, axis=-1).argmin(axis=-1)
    best = np.bincount(nearest).argmax()
    far = np.linalg.norm(np.median(pixels, axis=0) - colors[best]) > BACKGROUND_RADIUS
    return None if far or (nearest == best).mean() < 0.9 else list(BACKGROUNDS)[best]


def quality(image: NDArray[np.uint8]) -> float:
    """How cleanly a picture is drawn, in [0, 1], whatever it shows: the least of three shares.

    The mean confidence of what is detected (1 where nothing is); 1 less the pixels in specks, of which
    SPECK_SIDE squared leave 0; and the share of pixels that have the one colour of their part of the picture.
    """
    labels, found = _segment(image), detect(image)
    specks = (labels < len(COLORS)).sum() - sum(part.sum() for _, part, _ in _components(labels))
    flat = np.linalg.norm(image - _centres(image)[labels], axis=-1) <= FLAT_RADIUS
    sure = float(np.mean([d.confidence for d in found])) if found else 1.0
    return min(sure, max(1.0 - float(specks) / _speck_side(labels) ** 2, 0.0), float(flat.mean()))


def _ground(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The background's pixels ``[N, 3]``, one away from every shape; all of a picture that has none."""
    region = ndimage.binary_erosion(_segment(image) == len(COLORS), structure=_EIGHT, border_value=1)
    return image[region] if region.any() else image.reshape(-1, 3)


def _centres(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The palette, and last the median of the picture's border: [C + 1, 3]."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    return np.vstack([_PALETTE, np.median(border, axis=0)]).astype(np.float32)


def _segment(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Per pixel the index of the nearest colour, len(COLORS) for background: [H, W]."""
    centres = _centres(image)
    squared = (centres**2).sum(axis=1) - 2.0 * image.astype(np.float32) @ centres.T
    return np.asarray(squared.argmin(axis=-1), dtype=np.int64)


def _speck_side(labels: NDArray[np.int64]) -> int:
    return SPECK_SIDE * max(labels.shape[0] // BASE_CANVAS, 1)


def _components(labels: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_], tuple[int, int]]]:
    """(colour index, component cut to its box, (x, y) of the box) of everything larger than a speck."""
    present = np.unique(labels)
    for color in present[present < len(COLORS)]:
        numbered, _ = ndimage.label(labels == color, structure=_EIGHT)
        for number, (rows, columns) in enumerate(ndimage.find_objects(numbered), start=1):
            if max(rows.stop - rows.start, columns.stop - columns.start) >= _speck_side(labels):
                yield int(color), numbered[rows, columns] == number, (columns.start, rows.start)


def _describe(
    component: NDArray[np.bool_], corner: tuple[int, int], color: int, image: NDArray[np.uint8]
) -> Detection:
    height, width = component.shape
    kind, agreement = _best_template(component)
    slope = (1.0 - UNSURE_CONFIDENCE) / (1.0 - UNSURE_IOU)
    confidence = float(np.clip(1.0 - slope * (1.0 - agreement), 0.0, 1.0))
    x, y = corner
    mean = image[y : y + height, x : x + width][component].mean(axis=0)
    named = float(np.linalg.norm(mean - _PALETTE[color])) <= COLOR_RADIUS
    box = (float(x), float(y), float(x + width), float(y + height))
    return Detection(label=kind, confidence=confidence, box=box, color=COLORS[color] if named else None)


def _best_template(component: NDArray[np.bool_]) -> tuple[str, float]:
    """The kind that agrees best with a component, and the intersection over union."""
    height, width = component.shape
    bank = _bank(max(height, width))
    canvas = np.zeros((bank.side, bank.side), dtype=np.float32)
    top, left = (bank.side - height) // 2, (bank.side - width) // 2
    canvas[top : top + height, left : left + width] = component
    shared = bank.pixels @ canvas.ravel()
    agreement = shared / (bank.areas + canvas.sum() - shared)
    best = int(agreement.argmax())
    return KINDS[bank.kinds[best]], float(agreement[best])


@lru_cache(maxsize=64)
def _bank(box: int) -> _Bank:
    """Every kind at box sizes `box` - 1, `box` and `box` + 1, at every place on a canvas of `box` + 2."""
    side = box + 2
    kinds, pixels = [], []
    for size in range(max(box - 1, 3), box + 2):
        for top in range(side - size + 1):
            for left in range(side - size + 1):
                for index, kind in enumerate(KINDS):
                    canvas = np.zeros((side, side), dtype=np.float32)
                    canvas[top : top + size, left : left + size] = mask(kind, size)
                    kinds.append(index)
                    pixels.append(canvas.ravel())
    rows = np.stack(pixels)
    return _Bank(kinds=np.array(kinds), areas=rows.sum(axis=1), pixels=rows, side=side)
