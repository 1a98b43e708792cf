"""Detections from pixels: exact on rendered truth, tolerant of noise, strict on what is not a shape."""

import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from triptych.evals.geneval import Metadata, judge
from triptych.shapes.prompts import TAGS, test_prompts, train_prompt, train_prompt_of
from triptych.shapes.renderer import render
from triptych.shapes.scenes import BACKGROUND, BACKGROUNDS, COLORS, KINDS, SIZES, Scene, Shape, sample_scene
from triptych.shapes.verifier import background, background_drift, detect, quality


def right(scene: Scene, metadata: Metadata) -> bool:
    return judge(detect(render(scene)), metadata).correct


def one(kind: str, color: str = "red", size: int = 10, x: int = 8, y: int = 12) -> Scene:
    return Scene(shapes=(Shape(kind=kind, color=color, x=x, y=y, size=size),))


def share_right(scenes: int, tag: str, seed: int) -> float:
    rng = np.random.default_rng([seed, TAGS.index(tag)])
    prompts = [train_prompt_of(tag, rng) for _ in range(scenes)]
    return sum(right(sample_scene(metadata, rng), metadata) for metadata in prompts) / scenes


@pytest.mark.parametrize("tag", TAGS)
def test_rendered_truth_is_right(tag: str) -> None:
    assert share_right(100, tag, seed=0) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_rendered_truth_is_right_in_10000(tag: str) -> None:
    assert share_right(10_000, tag, seed=1) >= 0.999


def test_rendered_truth_of_the_test_prompts_is_right() -> None:
    rng = np.random.default_rng(0)
    assert all(right(sample_scene(m, rng), m) for m in test_prompts(180))


def test_confusion_of_kind_and_color_is_diagonal() -> None:
    kinds = np.zeros((len(KINDS), len(KINDS)), dtype=np.int64)
    colors = np.zeros((len(COLORS), len(COLORS)), dtype=np.int64)
    for i, kind in enumerate(KINDS):
        for j, color in enumerate(COLORS):
            for size in [*SIZES, 9, 11]:
                for x in (2, 5, 16):
                    (found,) = detect(render(one(kind, color, size, x)))
                    assert found.color is not None
                    assert (found.box, found.confidence) == ((x, 12, x + size, 12 + size), 1.0)
                    kinds[i, KINDS.index(found.label)] += 1
                    colors[j, COLORS.index(found.color)] += 1
    np.testing.assert_array_equal(kinds, 105 * np.eye(len(KINDS), dtype=np.int64))
    np.testing.assert_array_equal(colors, 90 * np.eye(len(COLORS), dtype=np.int64))


def twice(scene: Scene) -> Scene:
    """The same on a canvas of twice the side."""
    shapes = [replace(s, x=2 * s.x, y=2 * s.y, size=2 * s.size) for s in scene.shapes]
    return replace(scene, shapes=tuple(shapes), size=2 * scene.size)


def test_works_at_64_pixels() -> None:
    rng = np.random.default_rng(0)
    prompts = [train_prompt(rng) for _ in range(60)]
    assert all(right(twice(sample_scene(m, rng)), m) for m in prompts)


def jpeg(image: NDArray[np.float64]) -> NDArray[np.float64]:
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(buffer, "JPEG", quality=90, subsampling=0)
    return np.asarray(Image.open(buffer)).astype(np.float64)


@pytest.mark.parametrize("name", ["noise", "tint", "dark", "specks", "jpeg"])
def test_slight_damage_is_forgiven(name: str) -> None:
    rng = np.random.default_rng(0)
    damage = {
        "noise": lambda image: image + rng.normal(0, 30, image.shape),
        "tint": lambda image: image + np.array([25, -20, 20]),
        "dark": lambda image: 0.85 * image,
        "specks": lambda image: np.where(rng.random(image.shape[:2])[..., None] < 0.02, 255 - image, image),
        "jpeg": jpeg,
    }[name]
    correct = 0
    for _ in range(100):
        metadata = train_prompt(rng)
        image = damage(render(sample_scene(metadata, rng)).astype(np.float64))
        correct += judge(detect(np.clip(image, 0, 255).astype(np.uint8)), metadata).correct
    assert correct >= 98


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["upper half", "left half", "lower left quarter"])
def test_half_drawn_shapes_do_not_count(kind: str, size: int, part: str) -> None:
    image, half = render(one(kind, size=size)), size // 2
    rows = {"upper half": slice(12, 12 + half), "lower left quarter": slice(12 + half, 12 + size)}
    columns = slice(8, 8 + (size if part == "upper half" else half))
    image[rows.get(part, slice(12, 12 + size)), columns] = BACKGROUND
    assert all(found.confidence <= 0.3 for found in detect(image))


def test_two_colored_and_merged_shapes_do_not_count() -> None:
    image = render(one("square", "red"))
    image[12:22, 13:18] = render(one("square", "blue"))[12:22, 13:18]
    assert not any(found.confidence > 0.3 for found in detect(image))
    merged = Scene(shapes=(*one("circle", x=6).shapes, *one("circle", x=14).shapes))
    assert not any(found.confidence > 0.3 for found in detect(render(merged)))


def test_noise_and_blank_pictures_show_nothing() -> None:
    rng = np.random.default_rng(0)
    assert detect(render(Scene(shapes=()))) == []
    for _ in range(20):
        noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert not any(found.confidence > 0.3 for found in detect(noise))


def test_an_unnamed_color_is_none() -> None:
    image = render(one("square"))
    image[12:22, 8:18] = (0, 150, 150)  # near green, yet not green
    (found,) = detect(image)
    assert (found.label, found.color) == ("square", None)


def scene_of(prompt: str) -> tuple[Metadata, Scene]:
    metadata = next(m for m in test_prompts(1000) if m["prompt"] == f"a photo of {prompt}")
    return metadata, sample_scene(metadata, np.random.default_rng(0))


def test_a_missing_shape_is_wrong() -> None:
    for tag in TAGS:
        metadata = next(m for m in test_prompts() if m["tag"] == tag)
        scene = sample_scene(metadata, np.random.default_rng(0))
        assert right(scene, metadata)
        for index in range(len(scene.shapes)):
            rest = scene.shapes[:index] + scene.shapes[index + 1 :]
            assert not right(replace(scene, shapes=rest), metadata)


def test_one_too_many_is_wrong_where_exclude_says_so() -> None:
    rng = np.random.default_rng(0)
    four = sample_scene({"include": [{"class": "diamond", "count": 4}]}, rng)
    two, three = ({"include": [{"class": "diamond", "count": n}]} for n in (2, 3))
    assert right(four, two) and right(four, three)
    assert not right(four, two | {"exclude": [{"class": "diamond", "count": 3}]})
    assert not right(four, three | {"exclude": [{"class": "diamond", "count": 4}]})
    assert not right(four, two | {"exclude": [{"class": "diamond", "count": 1}]})


def test_swapped_colors_are_wrong() -> None:
    rng = np.random.default_rng(0)
    for metadata in [m for m in test_prompts() if m["tag"] == "color_attr"][:20]:
        scene = sample_scene(metadata, rng)
        a, b = scene.shapes
        swapped = replace(scene, shapes=(replace(a, color=b.color), replace(b, color=a.color)))
        assert right(scene, metadata) and not right(swapped, metadata)


def test_a_reversed_relation_is_wrong() -> None:
    rng = np.random.default_rng(0)
    for metadata in [m for m in test_prompts() if m["tag"] == "position"][:30]:
        scene = sample_scene(metadata, rng)
        mirrored = replace(
            scene,
            shapes=tuple(replace(s, x=32 - s.x - s.size, y=32 - s.y - s.size) for s in scene.shapes),
        )
        assert right(scene, metadata) and not right(mirrored, metadata)


def test_background_drift_is_the_backgrounds_alone() -> None:
    scene = sample_scene(test_prompts()[30], np.random.default_rng(0))
    assert background_drift(render(scene)) == 0.0
    # Ten levels off in one of three channels, whatever is drawn.
    tinted = render(replace(scene, background=(BACKGROUND[0] - 30, BACKGROUND[1], BACKGROUND[2])))
    assert background_drift(tinted) == pytest.approx(10 / 255)
    assert judge(detect(tinted), test_prompts()[30]).correct  # which is why somebody has to look
    edge = np.full((32, 32, 3), BACKGROUND, dtype=np.uint8)
    edge[0] -= 32  # the canvas's last row counts like any other
    assert background_drift(edge) == pytest.approx(32 / 32 / 255)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_the_background_has_a_name_where_it_has_one_colour(name: str) -> None:
    rng, color = np.random.default_rng(0), np.array(BACKGROUNDS[name])
    [other] = {*BACKGROUNDS.values()} - {BACKGROUNDS[name]}
    for metadata in test_prompts(60):
        image = render(sample_scene(metadata, rng, background=BACKGROUNDS[name]))
        noisy = (image + rng.normal(0, 15, image.shape)).clip(0, 255).astype(np.uint8)
        assert background(image) == background(noisy) == name
        half = image.copy()
        half[:16][(half[:16] == color).all(-1)] = other
        assert background(half) is None
    assert background(np.full((32, 32, 3), (246, 150, 150), dtype=np.uint8)) is None


def test_quality_is_the_worst_of_form_specks_and_flatness() -> None:
    scenes = [sample_scene(m, np.random.default_rng(i)) for i, m in enumerate(test_prompts(60))]
    assert {quality(render(s)) for s in scenes} == {1.0}
    image = render(one("square", size=10))
    for specks in (3, 12, 40):
        dirty = image.copy()
        dirty.reshape(-1, 3)[2 : 2 + 6 * specks : 6] = (24, 76, 232)
        dirty[12:22, 8:18] = image[12:22, 8:18]
        n = int((dirty != image).any(-1).sum())
        assert quality(dirty) == max(1 - n / 36, 0)
    tinted = image.copy()
    tinted[25:29] = np.array(BACKGROUND) - 30  # nearest to the background still, but not its colour
    assert quality(tinted) == 1 - 4 / 32
    cut = image.copy()
    cut[12:16, 8:13] = BACKGROUND  # a fifth of a square
    [found] = detect(cut)
    assert quality(cut) == found.confidence < 0.5
