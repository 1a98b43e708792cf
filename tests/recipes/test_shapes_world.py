"""The embedded world as data: what a prompt would tell a diffusion expert, caption by caption."""

import torch
from torch import Tensor

from triptych.recipes import shapes_world
from triptych.recipes.shapes_world import phrases
from triptych.shapes.prompts import parse

WIDTH = 4096
"""So wide that the codes of two words are as good as orthogonal."""


def said(text: str) -> Tensor:
    return phrases(parse(text), WIDTH)


def alike(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def test_what_belongs_together_stands_together() -> None:
    """Colours exchanged make other captions; a sum over both objects could not tell."""
    one, other = said("a red square and a blue ring"), said("a blue square and a red ring")
    torch.testing.assert_close(one.sum(0), other.sum(0))
    assert alike(one[0], said("a red square")[0]) > 0.999
    assert abs(alike(one[0], other[0]) - 2 / 3) < 0.05, "count and kind, but not the colour"
    assert abs(alike(one[0], one[1]) - 1 / 3) < 0.05, "nothing but the count"


def test_a_relation_is_said_of_both_and_means_the_same_from_either_side() -> None:
    one, other = said("a red square left of a blue ring"), said("a blue ring right of a red square")
    torch.testing.assert_close(one, other.flip(0))
    turned = said("a red square right of a blue ring")
    assert abs(alike(one[0], turned[0]) - 3 / 4) < 0.05
    assert abs(alike(one[0], one[1]) - 1 / 4) < 0.05, "left of the other, and right of it"


def test_one_object_leaves_the_second_caption_empty_and_counts_count() -> None:
    two = said("two red squares")
    assert not two[1].any() and abs(float(two[0].std()) - 3**0.5 / 2) < 0.05
    assert abs(alike(two[0], said("three red squares")[0]) - 2 / 3) < 0.05


def test_drawings_teach_captions_only_where_it_is_asked_for() -> None:
    plain, taught = (shapes_world.examples(12, 0.25, 0, captions=width)(3) for width in (0, 16))
    assert all(e.captions is None for e in plain)
    for before, after in zip(plain, taught, strict=True):
        assert before.key == after.key and before.time == after.time
        drawn = isinstance(after.target, Tensor)
        assert (after.captions is not None) == drawn
        if after.captions is not None:
            [text] = after.prompt.turns[0].content
            assert isinstance(text, str)
            torch.testing.assert_close(after.captions, phrases(parse(text), 16))
