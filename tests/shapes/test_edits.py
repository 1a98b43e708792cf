"""Edits: source and target differ by what the instruction says, and the verifier of drawings judges them."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest

from triptych.evals.geneval import MIRRORED, Detection, judge, relative_position
from triptych.shapes.edits import EDITS, UNDOABLE, WORDS, Edit, test_edits, train_edit
from triptych.shapes.prompts import combination_key, split, vocabulary
from triptych.shapes.renderer import render
from triptych.shapes.scenes import BACKGROUNDS, Scene
from triptych.shapes.verifier import detect

INK = {"ink": "black", "blueprint": "blue", "copper": "orange"}
Looks = Mapping[str, str]
"""Kind to colour of what is shown, and of the "background"."""


@cache
def train_edits(n: int, *categories: str) -> list[Edit]:
    rng = np.random.default_rng(0)
    return [train_edit(rng, categories or EDITS) for _ in range(n)]


def told(scene: Scene) -> str:
    return combination_key(
        {"include": [{"class": s.kind, "count": 1, "color": s.color} for s in scene.shapes]}
    )


def combinations(edit: Edit) -> set[str]:
    """Of the pictures of two objects, source and target; not of those that a style made."""
    scenes = [edit.source, *([edit.target] if edit.metadata["tag"] != "style" else [])]
    return {told(scene) for scene in scenes if len(scene.shapes) == 2}


def test_train_and_test_share_no_picture_of_two_objects() -> None:
    train, test = train_edits(900), test_edits(198)
    assert not set.union(*map(combinations, train)) & set.union(*map(combinations, test))
    assert Counter(e.metadata["tag"] for e in test) == dict.fromkeys(EDITS, 22)
    counts = Counter(e.metadata["tag"] for e in train)
    assert set(counts) == set(EDITS) and min(counts.values()) > 60
    assert test[:7] == test_edits(7), "held-out edits are fixed"
    assert len({(e.source, e.metadata["prompt"]) for e in test}) == 198


def test_no_training_description_is_a_held_out_prompt() -> None:
    held_out = {m["prompt"] for tag in ("colors", "position", "color_attr") for m in split(tag)[1]}
    tell = {e.description for e in train_edits(900)}
    assert {text.split(" on a ")[0] for text in tell}.isdisjoint(held_out)
    prompts = {m["prompt"] for tag in ("colors", "position", "color_attr") for m in split(tag)[0]}
    assert len(tell & prompts) > 100, "they are worded as prompts are"


def test_most_pictures_are_on_white() -> None:
    grays = Counter(e.metadata["tag"] for e in train_edits(900) if e.source.background == BACKGROUNDS["gray"])
    assert 30 < grays.pop("background") < 65
    assert set(grays) == {*EDITS} - {"background"} and 100 < sum(grays.values()) < 170


def look(scene: Scene) -> dict[str, str]:
    [ground] = [name for name, color in BACKGROUNDS.items() if color == scene.background]
    return {"background": ground} | {shape.kind: shape.color for shape in scene.shapes}


def followed(instruction: str, shown: Looks) -> dict[str, str]:
    """What is shown once an instruction has been followed, by its words alone; a move changes nothing."""
    done = dict(shown)
    for part in instruction.split(" and "):
        verb, *rest = part.split()
        if verb == "add":
            assert rest[2] not in done
            done[rest[2]] = rest[1]
        elif verb == "make":
            done[rest[1]] = rest[2]
            assert rest[1] in shown and shown[rest[1]] != rest[2]
        elif verb == "extract":
            done = {name: done[name] for name in ("background", rest[1])}
        elif verb == "remove":
            del done[rest[1]]
        elif verb == "replace":
            assert done.pop(rest[1]) == rest[4], "no edit changes kind and colour at once"
            assert rest[5] not in shown
            done[rest[5]] = rest[4]
        elif verb == "turn":
            done |= {name: INK[rest[-2]] for name in done if name != "background"}
        else:
            assert verb == "move"
    return done


@pytest.mark.parametrize("tag", EDITS)
def test_source_and_target_differ_by_the_instruction(tag: str) -> None:
    """Each instruction followed word by word; what it does not name keeps its place, kind and colour."""
    for edit in [*train_edits(30, tag), *test_edits(20, (tag,))]:
        source, target = edit.source, edit.target
        assert followed(edit.metadata["prompt"], look(source)) == look(target)
        assert (look(source) == look(target)) == (tag == "action")
        assert len(source.shapes) == (1 if tag == "add" else 2)
        places = [{(s.x, s.y, s.size) for s in scene.shapes} for scene in (source, target)]
        named = re.findall(r"the (\w+)", edit.metadata["prompt"].split(" of the ")[0])
        stay = [s for s in source.shapes if s.kind not in named or tag == "extract"]
        if tag == "action":
            moved(edit, *edit.metadata["prompt"].removeprefix("move the ").split(" ", 1))
        elif tag == "style":
            assert places[0] == places[1]
        else:
            assert {*stay} >= {*source.shapes} & {*target.shapes} != set() or tag == "hybrid"
            assert places[0] >= places[1] or tag == "add"
            assert (source.background == target.background) == (tag != "background")


def moved(edit: Edit, kind: str, where: str) -> None:
    """One shape stands elsewhere: where it was told to, and where it did not stand before."""
    relation, other = where.split(" the ")[0], where.split()[-1]
    before, after = ({s.kind: s for s in scene.shapes} for scene in (edit.source, edit.target))
    assert before[other] == after[other] and before[kind].size == after[kind].size
    assert relation not in relative_position(before[kind].box, before[other].box)
    assert relation in relative_position(after[kind].box, after[other].box)
    one, two = after[kind].box, after[other].box
    gaps = [max(one[i], two[i]) - min(one[i + 2], two[i + 2]) for i in (0, 1)]
    assert max(gaps) >= 4 and min(one) >= 2 and max(one) <= 30


@pytest.mark.parametrize("tag", EDITS)
def test_only_what_can_be_undone_has_a_way_back(tag: str) -> None:
    for edit in [*train_edits(30, tag), *test_edits(20, (tag,))]:
        assert (edit.reverse is not None) == (tag in UNDOABLE)
        if edit.reverse is None:
            continue
        assert followed(edit.reverse, look(edit.target)) == look(edit.source)
        if tag == "action":
            back = Edit(source=edit.target, target=edit.source, metadata={}, description="", reverse=None)
            moved(back, *edit.reverse.removeprefix("move the ").split(" ", 1))


def right(found: list[Detection], edit: Edit) -> bool:
    return judge(found, edit.metadata).correct


@pytest.mark.parametrize("tag", sorted({*EDITS} - {"background"}))
def test_the_rule_accepts_the_target_and_nothing_else(tag: str) -> None:
    """The untouched source, another edit's target and a target with one object too many are wrong."""
    edits = test_edits(20, (tag,))
    for edit, other in zip(edits, edits[1:] + edits[:1], strict=True):
        source, target, another = (detect(render(s)) for s in (edit.source, edit.target, other.target))
        assert right(target, edit) and not right(source, edit)
        if tag != "action":
            assert right(another, edit) == (shapes(other.target) == shapes(edit.target))
        assert not any(right([*target, one_more], edit) for one_more in target)


def shapes(scene: Scene) -> set[tuple[str, str]]:
    return {(shape.kind, shape.color) for shape in scene.shapes}


@pytest.mark.parametrize("tag", EDITS)
def test_the_description_tells_the_target(tag: str) -> None:
    """Every object once with its colour, in the order of metadata, and a background that is not white."""
    for edit in test_edits(20, (tag,)):
        text, _, ground = edit.description.removeprefix("a photo of ").partition(" on a ")
        assert ground == ("gray background" if look(edit.target)["background"] == "gray" else "")
        assert edit.metadata["background"] == look(edit.target)["background"]
        phrases = re.split(r" (?:and|left of|right of|above|below) ", text)
        assert {(p.split()[2], p.split()[1]) for p in phrases} == shapes(edit.target)
        if tag == "action":
            relation = text.removeprefix(phrases[0]).removesuffix(phrases[1]).strip()
            assert relation in edit.metadata["prompt"] and relation in MIRRORED
            assert phrases[0].split()[2] == edit.metadata["prompt"].split()[2]


@pytest.mark.parametrize("tag", EDITS)
def test_regions_hold_what_must_stay(tag: str) -> None:
    """What must stay is the same in both pictures, and no smaller than all shapes that stay."""
    for edit in test_edits(20, (tag,)):
        [(name, boxes)] = edit.regions.items()
        inside = np.zeros((32, 32), dtype=bool)
        for x0, y0, x1, y1 in np.array(boxes, dtype=int):
            inside[y0:y1, x0:x1] = True
        kept = inside if name == "kept_region" else ~inside
        before, after = render(edit.source), render(edit.target)
        assert (before == after)[kept].all()
        both = Scene(shapes=tuple(s for s in edit.source.shapes if s in edit.target.shapes))
        ink = (render(both) != both.background).any(-1)
        assert (ink <= kept).all() and (tag != "background" or (ink == kept).all())
        changed = (before != after).any(-1)
        assert changed.any() and not (changed & kept).any()


def test_few_words_are_new() -> None:
    edits = train_edits(900)
    said = {word for e in edits for word in f"{e.metadata['prompt']} {e.reverse or ''}".split()}
    assert said <= {*vocabulary(), *WORDS}
    assert {word for e in edits for word in e.description.split()} <= {*vocabulary(), *WORDS}
