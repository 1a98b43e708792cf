"""Edits: what was to stay stayed, the way back leads back, and the change went the asked way."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tiny_models import picture
from triptych.recipes import shapes_world
from triptych.recipes.rewards import find_reward
from triptych.rewards import CycleReward, DirectionReward
from triptych.rewards.edits import feature_similarity, fitted, pixel_similarity
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


def test_edit_following_is_the_rule_of_drawings() -> None:
    for task in shapes_world.edit_tasks(4):
        assert task.source is not None
        [before] = find_reward("geneval")([edited(task.source, task.source, metadata=task.metadata)])
        assert before is not None and before < 1
