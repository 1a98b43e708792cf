"""Edits: what was to stay stayed, the way back leads back, and the change went the asked way."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_models import picture
from triptych.recipes import shapes_world
from triptych.recipes.rewards import find_reward
from triptych.recipes.shapes_reasoning import picture_of
from triptych.rewards import CycleReward, DirectionReward
from triptych.rewards.edits import feature_similarity, fitted, pixel_similarity
from triptych.shapes.edits import test_edits
from triptych.shapes.prompts import test_prompts
from triptych.shapes.scenes import BACKGROUNDS, Scene, Shape, sample_scene
from triptych.trajectory import Picture, Sample, Task


def edited(
    completion: Picture | str, source: Picture | None, back: Picture | None = None, **task: object
) -> Sample:
    pictures = {} if back is None else {"back": back}
    made = Task(id="t", prompt="p", source=source, **task)  # type: ignore[arg-type]
    return Sample(task=made, texts={}, pictures=pictures, completion=completion)


def test_the_way_back_is_compared_with_the_source() -> None:
    black, grey = torch.zeros(4, 4, 3, dtype=torch.uint8), torch.full((4, 4, 3), 51, dtype=torch.uint8)
    samples = [edited(grey, black, back) for back in (black, grey, None)] + [edited(grey, None, black)]
    assert CycleReward()(samples) == [1.0, pytest.approx(0.8), None, None]
    assert CycleReward(similarity=lambda a, b: 0.25)(samples[:1]) == [0.25]
    assert pixel_similarity(black, torch.full_like(black, 255)) == 0


def test_a_source_of_another_shape_is_compared_by_its_middle() -> None:
    wide = torch.zeros(8, 24, 3, dtype=torch.uint8)
    wide[:, 8:16] = picture(1, 8)
    assert torch.equal(fitted(wide, picture(2, 8)), picture(1, 8))
    assert CycleReward()([edited(wide, wide, picture(1, 8))]) == [1.0]


def mean_colour(pictures: Sequence[Picture]) -> Tensor:
    return torch.stack([p.float().mean((0, 1)) for p in pictures])


def test_features_are_compared_by_their_angle() -> None:
    red, dark, blue = (torch.zeros(2, 2, 3, dtype=torch.uint8) for _ in range(3))
    red[..., 0], dark[..., 0], blue[..., 2] = 200, 50, 200
    alike = feature_similarity(mean_colour)
    assert alike(red, dark) == pytest.approx(1.0) and alike(red, blue) == 0
    assert feature_similarity(lambda both: torch.tensor([[1.0], [-1.0]]))(red, blue) == 0


def test_the_change_goes_the_way_of_the_words() -> None:
    towards = {"a red one": [9.0, 0.0, 0.0], "a blue one": [0.0, 0.0, 9.0]}
    reward = DirectionReward(mean_colour, lambda texts: torch.tensor([towards[t] for t in texts]))
    red, blue = (torch.zeros(2, 2, 3, dtype=torch.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 200, 200
    words = {"target_text": "a blue one", "columns": {"source_text": "a red one"}}
    samples = [edited(blue, red, **words), edited(red, blue, **words)]
    assert reward(samples) == [pytest.approx(1.0), pytest.approx(-1.0)]
    lacking = [edited("text", red, **words), edited(blue, None, **words), edited(blue, red)]
    assert reward(lacking) == [None, None, None]


@pytest.mark.parametrize("name", ["geneval", "geneval_official", "shared", "exact"])
def test_edit_following_is_the_rule_of_drawings(name: str) -> None:
    """By metadata, or by the description alone: right after the edit and not before it, in every category."""
    about = zip(test_edits(27), shapes_world.edit_tasks(27), strict=True)
    for edit, task in about:
        assert task.source is not None
        pictures = (task.source, picture_of(edit.target))
        samples = [Sample(task=task, texts={}, pictures={}, completion=p) for p in pictures]
        if name in ("shared", "exact"):  # know neither task nor source
            bare = Task(id="t", prompt=task.columns["description"])
            samples = [replace(sample, task=bare) for sample in samples]
        before, after = find_reward(name)(samples)
        assert before is not None and before < 1 == after and (before == 0 or name in ("geneval", "shared"))


def test_shared_is_geneval_s_of_drawings_but_sees_what_nobody_asked_for() -> None:
    """Of drawings of another prompt the same score, less for what is too many; and the background."""
    metadatas, rng = test_prompts(120), np.random.default_rng(0)
    drawn = [picture_of(sample_scene(m, rng)) for m in [*metadatas[:60], *metadatas[:60]]]
    tasks = [Task(id="t", prompt=m["prompt"], metadata=m) for m in metadatas]
    samples = [Sample(task=t, texts={}, pictures={}, completion=p) for t, p in zip(tasks, drawn, strict=True)]
    shared, geneval = (find_reward(name)(samples) for name in ("shared", "geneval"))
    assert shared[:60] == geneval[:60] == [1.0] * 60
    assert all(s is not None and g is not None and s <= g for s, g in zip(shared, geneval, strict=True))
    assert len(set(shared)) > 4 and shared != geneval
    red = Task(id="t", prompt="a photo of a red ring")
    ring = Shape(kind="ring", color="red", x=4, y=4, size=10)
    gray = picture_of(Scene(shapes=(ring,), background=BACKGROUNDS["gray"]))
    others = [replace(samples[0], task=t, completion=gray) for t in (red, replace(red, prompt="a cat"))]
    said = replace(red, target_text="a photo of a red ring on a gray background")
    others += [replace(samples[0], task=said, completion=c) for c in (gray, "words")]
    assert find_reward("shared")(others) == [0.5, None, 1.0, None]
