"""Grades of edits: constructed right, half right and wrong pictures in every category."""

from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from triptych.evals.editing import CRITERIA, Grades, facts, grade, summarise_edits
from triptych.evals.geneval import Verdict
from triptych.evals.intervals import wilson
from triptych.recipes import shapes_world
from triptych.recipes.shapes_reasoning import picture_of
from triptych.shapes.edits import EDITS, Edit, test_edits
from triptych.shapes.scenes import BACKGROUNDS, COLORS, KINDS, Scene, Shape
from triptych.trajectory import Picture, Task

N = 27


def cases(category: str) -> list[tuple[Edit, Task]]:
    both = zip(test_edits(N), shapes_world.edit_tasks(N), strict=True)
    return [(edit, task) for edit, task in both if task.metadata["tag"] == category]


def graded(task: Task, drawing: Scene | Picture) -> Grades:
    [found] = shapes_world.grades([task], [picture_of(drawing) if isinstance(drawing, Scene) else drawing])
    return found


def without(scene: Scene, *gone: Shape) -> Scene:
    return replace(scene, shapes=tuple(s for s in scene.shapes if s not in gone))


def recolored(scene: Scene, shape: Shape, color: str) -> Scene:
    return replace(scene, shapes=tuple(replace(s, color=color) if s == shape else s for s in scene.shapes))


@pytest.mark.parametrize("category", EDITS)
def test_the_target_has_all_points_and_the_source_none(category: str) -> None:
    for edit, task in cases(category):
        assert astuple(graded(task, edit.target)) == (5, 5, 5)
        left = graded(task, edit.source)
        assert astuple(left) == (1, 1, 1) and left.overall == 1, "what follows nothing keeps nothing"


@pytest.mark.parametrize("category", EDITS)
def test_noise_loses_quality_and_nothing_asked(category: str) -> None:
    for i, (edit, task) in enumerate(cases(category)):
        target = picture_of(edit.target).numpy()
        noise = np.random.default_rng(i).normal(0, 24, target.shape)
        noisy = torch.from_numpy((target + noise).clip(0, 255).astype(np.uint8))
        found = graded(task, noisy)
        assert found.instruction == 5 and found.quality < 4
        specks = torch.from_numpy(target.copy())
        free = (target == target[0, 0]).all(-1)
        free[:, 3:] &= free[:, :-3]
        rows, columns = np.nonzero(free)
        order = np.random.default_rng(i).permutation(len(rows))[:8]
        specks[rows[order], columns[order]] = torch.tensor([24, 76, 232], dtype=torch.uint8)
        found = graded(task, specks)
        assert 3 < found.quality < 4.8, "8 specks of 36"


@pytest.mark.parametrize("category", sorted({*EDITS} - {"style"}))
def test_who_destroys_what_should_stay_loses_preservation(category: str) -> None:
    """An object that the edit leaves alone: gone, recoloured, or elsewhere."""
    seen = 0
    for edit, task in cases(category):
        kept = [s for s in edit.target.shapes if s in edit.source.shapes]
        assert kept or category == "hybrid"
        for shape in kept:
            seen += 1
            asked = 1 if category == "action" else 5  # nothing is left of what is not there
            gone, painted = (
                graded(task, without(edit.target, shape)),
                graded(task, recolored(edit.target, shape, next(c for c in COLORS if c != shape.color))),
            )
            assert gone.instruction == asked and gone.preservation <= 1 + 4 * 0.75
            assert painted.instruction == 5 and painted.preservation <= 1 + 4 * 0.75
            if category != "background":  # there one of two stays
                assert gone.preservation == 1 and painted.preservation < 3.5
    assert seen or category == "hybrid"


@pytest.mark.parametrize("category", sorted({*EDITS} - {"background"}))
def test_a_background_that_changes_and_an_object_too_many_lose_preservation(category: str) -> None:
    for edit, task in cases(category):
        [other] = {*BACKGROUNDS.values()} - {edit.target.background}
        assert graded(task, replace(edit.target, background=other)).preservation == 1
        new = next(k for k in KINDS if k not in {s.kind for s in (*edit.source.shapes, *edit.target.shapes)})
        extra = Shape(kind=new, color="green", x=0, y=0, size=8)
        if all(max(s.x, s.y) >= 12 for s in (*edit.target.shapes, *edit.source.shapes)):
            more = graded(task, replace(edit.target, shapes=(*edit.target.shapes, extra)))
            assert more.instruction == 5 and more.preservation < 4.5


def halves(edit: Edit) -> list[Scene]:
    """The source after the one or the other half of a hybrid edit, by the scenes alone."""
    parts = edit.metadata["prompt"].split(" and ")
    made = []
    for part, shape in zip(parts, edit.source.shapes, strict=True):
        [other] = {*edit.source.shapes} - {shape}
        assert f"the {shape.kind}" in part
        now = [s for s in edit.target.shapes if (s.x, s.y) == (shape.x, shape.y)]
        made.append(replace(edit.source, shapes=(other, *now)))
    return made


def test_half_a_hybrid_lies_between() -> None:
    for edit, task in cases("hybrid"):
        for half in halves(edit):
            found = graded(task, half)
            assert 1 < found.instruction < 5 and 1 < found.overall < 5
            assert found.preservation == found.quality == found.instruction, "they do not exceed it"
        if edit.metadata["prompt"].count("make") == 2:
            assert [graded(task, half).instruction for half in halves(edit)] == [3, 3]


def test_half_of_one_thing_lies_between() -> None:
    """The right kind in the wrong colour, the old one still there, one of two in the style."""
    for edit, task in cases("add"):
        new = edit.target.shapes[1]
        wrong = recolored(edit.target, new, next(c for c in COLORS if c != new.color))
        assert graded(task, wrong).instruction == 3
    for edit, task in cases("replace"):
        new = edit.target.shapes[1]
        assert graded(task, without(edit.target, new)).instruction == pytest.approx(1 + 4 / 3)
        wrong = recolored(edit.target, new, next(c for c in COLORS if c != new.color))
        assert graded(task, wrong).instruction == pytest.approx(1 + 8 / 3)
    for edit, task in cases("style"):
        changed = [i for i in (0, 1) if edit.source.shapes[i] != edit.target.shapes[i]]
        one = (edit.target.shapes[0], edit.source.shapes[1])
        expected = 3 if len(changed) == 2 else 5 if changed == [0] else 1
        assert graded(task, replace(edit.source, shapes=one)).instruction == expected


def test_a_move_is_right_wherever_the_relation_holds_and_the_other_stays() -> None:
    for edit, task in cases("action"):
        kept, moved = edit.target.shapes
        for x in range(2, 30 - moved.size, 4):
            other = replace(edit.target, shapes=(kept, replace(moved, x=x)))
            apart = x + moved.size < kept.x or kept.x + kept.size < x
            if apart and shapes_world.verdict(picture_of(other), task.metadata).correct:
                assert astuple(graded(task, other)) == (5, 5, 5)
        swapped = graded(task, replace(edit.target, shapes=(replace(kept, x=moved.x, y=moved.y),)))
        assert swapped.instruction == 1


def test_facts_are_metadata_in_pieces() -> None:
    square, ring = {"class": "square", "count": 1}, {"class": "ring", "count": 2}
    red, placed = {**square, "color": "red"}, {**ring, "color": "blue", "position": ["above", 0]}
    metadata = {"include": [red, placed], "exclude": [ring, square], "background": "gray", "tag": "x"}
    assert facts(metadata) == [
        {"include": [square]},
        {"include": [red]},
        {"include": [ring]},
        {"include": [{**ring, "color": "blue"}]},
        {"include": [square, {**ring, "position": ["above", 0]}]},
        {"exclude": [ring]},
        {"exclude": [square]},
        {"background": "gray"},
    ]


def test_kept_pixels_are_weighed_by_objects_and_ground_apart() -> None:
    """Without a judge that finds anything lost: what the pixels alone say."""
    source = torch.full((10, 10, 3), 200, dtype=torch.uint8)
    source[2:4, 2:4] = 0
    task = Task(id="t", prompt="p", source=source, metadata={"exclude": [{"class": "a", "count": 1}]})

    def one(drawing: Picture, kept: torch.Tensor | None) -> Grades:
        def look(picture: Picture):  # type: ignore[no-untyped-def]
            right = Verdict(correct=picture is not source, score=1.0, reason="")
            return lambda metadata: right

        return grade(task, drawing, look, lambda p: 1.0, kept)

    everything = torch.ones(10, 10, dtype=torch.bool)
    drawing = source.clone()
    drawing[2, 2] = 90  # one of four pixels of ink
    assert one(drawing, everything).preservation == 4
    drawing = source.clone()
    drawing[9, :] = 210  # within the tolerance
    drawing[8, :] = 220  # 10 of 96 pixels of ground
    assert one(drawing, everything).preservation == pytest.approx(1 + 4 * 86 / 96)
    assert one(drawing, None).preservation == 5
    everything[8] = False
    assert one(drawing, everything).preservation == 5
    assert one(drawing[:9], everything).preservation == 1, "another size keeps nothing"


def test_macro_is_the_mean_of_categories_and_micro_that_of_samples() -> None:
    def grades_of(*values: float) -> Sequence[Grades]:
        return [Grades(instruction=v, preservation=v / 2, quality=1.0) for v in values]

    rows = summarise_edits(grades_of(5, 4, 2), ["add", "add", "style"])
    assert list(rows) == ["add", "style", "micro", "macro"]
    assert rows["add"]["n"] == 2 and rows["macro"]["n"] == 3
    for name, add, style in zip(CRITERIA, (4.5, 2.25, 1), (2, 1, 1), strict=True):
        assert rows["add"][name] == add and rows["style"][name] == style
        assert rows["macro"][name] == (add + style) / 2
        assert rows["micro"][name] == pytest.approx((2 * add + style) / 3)
    for row in rows.values():
        assert row["overall"] == pytest.approx(sum(row[name] for name in CRITERIA) / 3)
        assert 1 <= row["low"] <= row["overall"] <= row["high"] <= 5
    rows = summarise_edits([Grades(instruction=5, preservation=5, quality=5)] * 7, ["add"] * 7)
    low = pytest.approx(1 + 4 * wilson(7, 7).low)
    assert [row["low"] for row in rows.values()] == [low] * 3
