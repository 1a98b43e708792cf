"""Scenes to pixels: exact, flat, and few enough patches for a dictionary of 1024."""

import numpy as np
import pytest

from triptych.shapes.prompts import train_prompt
from triptych.shapes.renderer import mask, render
from triptych.shapes.scenes import BACKGROUND, KINDS, LATTICE, PALETTE, SIZES, Scene, Shape, sample_scene


def test_a_scene_has_one_picture() -> None:
    scene = sample_scene(train_prompt(np.random.default_rng(1)), np.random.default_rng(2))
    assert render(scene).tobytes() == render(scene).tobytes()


def test_a_square_covers_its_box_and_nothing_else() -> None:
    shape = Shape(kind="square", color="blue", x=4, y=6, size=10)
    expected = np.full((32, 32, 3), BACKGROUND, dtype=np.uint8)
    expected[6:16, 4:14] = PALETTE["blue"]
    np.testing.assert_array_equal(render(Scene(shapes=(shape,))), expected)


def test_background_and_canvas_are_the_scenes() -> None:
    image = render(Scene(shapes=(), background=(1, 2, 3), size=64))
    np.testing.assert_array_equal(image, np.broadcast_to(np.array([1, 2, 3], dtype=np.uint8), (64, 64, 3)))


@pytest.mark.parametrize("size", [*SIZES, 16, 20, 24])
def test_masks_reach_their_box_and_are_left_right_symmetric(size: int) -> None:
    for kind in KINDS:
        covered = mask(kind, size)
        assert covered.any(axis=0).all() and covered.any(axis=1).all(), kind
        np.testing.assert_array_equal(covered, covered[:, ::-1])
    assert not mask("ring", size)[size // 2, size // 2]
    assert mask("cross", size)[0].sum() < size / 2


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="hexagon"):
        mask("hexagon", 8)


def test_all_patches_fit_a_dictionary_of_1024() -> None:
    patches = {np.zeros((4, 4), dtype=np.bool_).tobytes()}
    for kind in KINDS:
        for size in SIZES:
            for x in range(0, 4, LATTICE):
                for y in range(0, 4, LATTICE):
                    canvas = np.zeros((16, 16), dtype=np.bool_)
                    canvas[y : y + size, x : x + size] = mask(kind, size)
                    blocks = canvas.reshape(4, 4, 4, 4).swapaxes(1, 2).reshape(16, 16)
                    patches |= {block.tobytes() for block in blocks}
    # Every covered pattern occurs in each colour; the empty one once.
    assert (len(patches) - 1) * len(PALETTE) + 1 == 1016
