"""Sampled scenes keep their promises: what is named, apart, on the canvas, and clearly related."""

from typing import Any

import numpy as np
import pytest

from triptych.evals.geneval import Detection, judge
from triptych.shapes.prompts import TAGS, split, train_prompt_of
from triptych.shapes.scenes import LATTICE, MARGIN, MINIMUM_GAP, SIZES, Scene, Shape, sample_scene


def truth(scene: Scene) -> list[Detection]:
    return [Detection(label=s.kind, confidence=1.0, box=s.box, color=s.color) for s in scene.shapes]


def gap(a: Shape, b: Shape) -> int:
    horizontal = max(a.x, b.x) - min(a.x + a.size, b.x + b.size)
    return max(horizontal, max(a.y, b.y) - min(a.y + a.size, b.y + b.size))


@pytest.mark.parametrize("tag", TAGS)
def test_scenes_satisfy_their_prompt(tag: str) -> None:
    rng = np.random.default_rng(TAGS.index(tag))
    for _ in range(60):
        metadata = train_prompt_of(tag, rng)
        scene = sample_scene(metadata, rng)
        assert judge(truth(scene), metadata).correct, metadata["prompt"]
        assert len(scene.shapes) == sum(entry["count"] for entry in metadata["include"])
        for index, shape in enumerate(scene.shapes):
            assert shape.size in SIZES
            assert min(shape.x, shape.y) >= MARGIN
            assert max(shape.x, shape.y) + shape.size <= scene.size - MARGIN
            assert shape.x % LATTICE == shape.y % LATTICE == 0
            assert all(gap(shape, other) >= MINIMUM_GAP for other in scene.shapes[:index])


def test_same_generator_same_scene_and_places_vary() -> None:
    metadata = train_prompt_of("colors", np.random.default_rng(0))
    assert sample_scene(metadata, np.random.default_rng(5)) == sample_scene(
        metadata, np.random.default_rng(5)
    )
    rng = np.random.default_rng(0)
    places = {(s.x, s.y, s.size) for s in (sample_scene(metadata, rng).shapes[0] for _ in range(6000))}
    assert len(places) == 11**2 + 10**2 + 9**2  # every place of every size


def test_open_colors_cover_the_palette() -> None:
    rng = np.random.default_rng(0)
    metadata = split("single_object")[0][0]
    assert len({sample_scene(metadata, rng).shapes[0].color for _ in range(200)}) == 7


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_relation_can_be_laid_out(relation: str, counts: tuple[int, int]) -> None:
    include = [{"class": "ring", "count": counts[0]}]
    include.append({"class": "cross", "count": counts[1], "position": [relation, 0]})
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert judge(truth(sample_scene({"include": include}, rng)), {"include": include}).correct


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"include": [{"class": "hexagon", "count": 1}]}, "hexagon"),
        ({"include": [{"class": "ring", "count": 1, "color": "pink"}]}, "pink"),
        ({"include": [{"class": "ring", "count": 5}]}, "5 shapes"),
        ({"include": []}, "0 shapes"),
        ({"include": [{"class": "ring", "count": 1}, {"class": "ring", "count": 1}]}, "twice"),
        ({"include": [{"class": "ring", "count": 2}], "exclude": [{"class": "ring", "count": 2}]}, "forbids"),
        (
            {
                "include": [
                    {"class": "ring", "count": 1},
                    {"class": "cross", "count": 3, "position": ["above", 0]},
                ]
            },
            "no layout",
        ),
    ],
)
def test_the_impossible_is_refused(metadata: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sample_scene(metadata, np.random.default_rng(0))
