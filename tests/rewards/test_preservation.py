import math
from typing import Any

import numpy as np
import pytest
import torch

from triptych.errors import UserError
from triptych.recipes import shapes_world
from triptych.recipes.rewards import find_reward
from triptych.rewards import PreservationReward
from triptych.rewards.preservation import kept_pixels, ssim
from triptych.shapes.edits import EDITS
from triptych.trajectory import Picture, Sample, Task


def noise(height: int, width: int, seed: int) -> Picture:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (height, width, 3), generator=draw, dtype=torch.uint8)


def edited(source: Picture, drawing: Picture | str, **columns: Any) -> Sample:
    task = Task(id="0", prompt="remove it", source=source, columns=columns)
    return Sample(task=task, texts={}, pictures={}, completion=drawing)


def test_ssim_is_the_formula_window_by_window() -> None:
    first = noise(9, 14, 0)
    second = (first.float() * 0.7 + noise(9, 14, 1).float() * 0.3).byte()
    x, y = (
        np.pad(p.numpy().astype(np.float64) / 255, ((5, 5), (5, 5), (0, 0)), mode="edge")
        for p in (first, second)
    )
    weights = np.array([[math.exp(-(i**2 + j**2) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    weights = (weights / weights.sum())[..., None]
    expected = np.empty((9, 14))
    for row in range(9):
        for column in range(14):
            a, b = (p[row : row + 11, column : column + 11] for p in (x, y))
            ma, mb = ((weights * p).sum((0, 1)) for p in (a, b))
            va, vb = (weights * (a - ma) ** 2).sum((0, 1)), (weights * (b - mb) ** 2).sum((0, 1))
            cov = (weights * (a - ma) * (b - mb)).sum((0, 1))
            value = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
            expected[row, column] = value.mean()
    torch.testing.assert_close(ssim(first, second).numpy(), expected.astype(np.float32), atol=1e-6, rtol=0)
    assert 0.5 < expected.mean() < 0.99


def test_the_region_may_change_and_all_else_counts() -> None:
    source, reward = noise(16, 16, 0), PreservationReward()
    inside, outside = source.clone(), source.clone()
    inside[4:8, 2:6] = 255 - inside[4:8, 2:6]
    outside[4:8, 2:7] = 255 - outside[4:8, 2:7]
    edit, keep = {"edit_region": [[2, 4, 6, 8]]}, {"kept_region": [[2, 4, 6, 8]]}
    assert reward([edited(source, inside, **edit)]) == [1.0]
    (over,) = reward([edited(source, outside, **edit)])
    assert over is not None and over < 1
    pixels = PreservationReward(weight=0)
    changed = ((outside.int() - source.int()).abs().amax(-1) > 16)[4:8, 6].sum().item()
    assert pixels([edited(source, outside, **edit)]) == pytest.approx([1 - changed / (256 - 16)])
    untouched = source.clone()
    untouched[0, 0] = 255 - untouched[0, 0]
    assert reward([edited(source, untouched, **keep)]) == [1.0]
    assert pixels([edited(source, inside, **keep)])[0] == pytest.approx(0, abs=0.3)
    nearly = (source.int() + 10).clamp(max=255).byte()
    assert pixels([edited(source, nearly, **edit)]) == [1.0]
    assert PreservationReward(weight=0, tolerance=9)([edited(source, nearly, **edit)])[0] < 0.1  # type: ignore[operator]


def test_features_are_the_users_to_choose_and_see_no_edit() -> None:
    source = noise(12, 12, 0)
    drawing = 255 - source

    def half(first: Picture, second: Picture) -> float:
        assert (first == source).all() and (second[3:5, 0:9] == source[3:5, 0:9]).all()
        assert (second[5:] == drawing[5:]).all()
        return 0.5

    found = PreservationReward(similar=half, weight=1)([edited(source, drawing, edit_region=[[0, 3, 9, 5]])])
    assert found == [0.5]


def test_what_cannot_be_compared_is_unscored() -> None:
    source = noise(8, 8, 0)
    reward, box = PreservationReward(), {"edit_region": [[0, 0, 2, 2]]}
    assert reward([edited(source, source), edited(source, "text", **box)]) == [None, None]
    assert reward([edited(source, noise(8, 9, 0), **box)]) == [None]
    assert reward([edited(source, source, edit_region=[[-3, -3, 99, 99]])]) == [None]
    assert reward([edited(source, source, edit_region=[])]) == [1.0]
    with pytest.raises(UserError, match="between 0 and 1, got 2"):
        PreservationReward(weight=2)


def test_the_worlds_edits_say_what_must_stay() -> None:
    reward = find_reward("preservation")
    kinds = set()
    for task in shapes_world.edit_tasks(18):
        kind = task.metadata["tag"]
        kinds.add(task.metadata["tag"])
        assert task.source is not None
        kept = kept_pixels(Sample(task=task, texts={}, pictures={}, completion=task.source))
        assert kept is not None
        ink = (task.source != task.source[0, 0]).any(-1)
        if kind in ("add", "background", "action"):  # the place is not said, or all of the ground changes
            assert (
                (ink & kept).any() and kept.float().mean() < 0.5 and (ink <= kept).all() == (kind != "action")
            )
        else:
            assert (ink & ~kept).any() and (ink & kept).any() == (kind not in ("style", "hybrid"))
        blank = task.source[0, 0].expand_as(task.source).clone()
        samples = [Sample(task=task, texts={}, pictures={}, completion=p) for p in (task.source, blank)]
        same, wiped = reward(samples)
        assert same == 1.0 and wiped is not None
        assert wiped < 0.95 or kind in ("style", "hybrid"), "there only the ground must stay"
    assert kinds == set(EDITS)
