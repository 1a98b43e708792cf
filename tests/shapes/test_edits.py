"""Edits: source and target differ by what the instruction says, and the verifier of drawings judges them."""

from collections import Counter

import numpy as np
import pytest

from triptych.evals.geneval import Detection, judge
from triptych.shapes.edits import EDITS, WORDS, Edit, test_edits, train_edit
from triptych.shapes.prompts import combination_key, vocabulary
from triptych.shapes.renderer import render
from triptych.shapes.scenes import Scene
from triptych.shapes.verifier import detect


def train_edits(n: int) -> list[Edit]:
    rng = np.random.default_rng(0)
    return [train_edit(rng) for _ in range(n)]


def combinations(edit: Edit) -> set[str]:
    """Of the pictures of two objects, source and target."""
    scenes = [edit.source, edit.target]
    told = [[{"class": s.kind, "count": 1, "color": s.color} for s in scene.shapes] for scene in scenes]
    return {combination_key({"include": entries}) for entries in told if len(entries) == 2}


def test_train_and_test_share_no_picture_of_two_objects() -> None:
    train, test = train_edits(600), test_edits(200)
    assert not set.union(*map(combinations, train)) & set.union(*map(combinations, test))
    assert Counter(e.metadata["tag"] for e in test) == dict.fromkeys(EDITS, 50)
    assert set(Counter(e.metadata["tag"] for e in train)) == set(EDITS)
    assert test[:7] == test_edits(7), "held-out edits are fixed"
    assert len({(e.source, e.metadata["prompt"]) for e in test}) == 200


def test_the_instruction_says_what_changes_and_the_rest_stays() -> None:
    for edit in [*train_edits(100), *test_edits(100)]:
        before, after = set(edit.source.shapes), set(edit.target.shapes)
        [kept] = before & after
        gone, new = before - {kept}, after - {kept}
        verb, *rest = edit.metadata["prompt"].split()
        counts = {"add": (0, 1), "remove": (1, 0), "replace": (1, 1), "make": (1, 1)}
        assert (len(gone), len(new)) == counts[verb]
        if gone:
            assert rest[:2] == ["the", next(iter(gone)).kind] and kept.kind != rest[1]
        if new:
            [shape] = new
            said = {"make": [shape.color]}.get(verb, [shape.color, shape.kind])
            assert rest[-len(said) :] == said
        if gone and new:
            [old], [shape] = gone, new
            assert (old.x, old.y, old.size) == (shape.x, shape.y, shape.size)
            assert (old.color == shape.color) == (verb == "replace")
            assert (old.kind == shape.kind) == (verb == "make")


def right(found: list[Detection], edit: Edit) -> bool:
    return judge(found, edit.metadata).correct


def looks(scene: Scene) -> set[tuple[str, str]]:
    return {(shape.kind, shape.color) for shape in scene.shapes}


@pytest.mark.parametrize("tag", EDITS)
def test_the_rule_accepts_the_target_and_nothing_else(tag: str) -> None:
    """The untouched source, another edit's target and a target with one object too many are wrong."""
    edits = [e for e in test_edits(80) if e.metadata["tag"] == tag]
    for edit, other in zip(edits, edits[1:] + edits[:1], strict=True):
        source, target, another = (detect(render(s)) for s in (edit.source, edit.target, other.target))
        assert right(target, edit) and not right(source, edit)
        assert right(another, edit) == (looks(other.target) == looks(edit.target))
        assert not any(right([*target, one_more], edit) for one_more in target)


def followed(instruction: str, shown: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What is shown once an instruction has been followed, read from its words alone."""
    verb, *rest = instruction.split()
    if verb == "add":
        return shown | {(rest[2], rest[1])}
    [(_, color)] = changed = {s for s in shown if s[0] == rest[1]}
    others = shown - changed
    if verb == "remove":
        return others
    if verb == "replace":
        assert rest[4] == color, "no edit changes kind and colour at once"
    return others | {(rest[1], rest[2]) if verb == "make" else (rest[5], rest[4])}


@pytest.mark.parametrize("tag", EDITS)
def test_forward_then_reverse_is_the_source(tag: str) -> None:
    """By what the verifier sees in the pictures, each instruction followed word by word."""
    for edit in [e for e in [*train_edits(200), *test_edits(80)] if e.metadata["tag"] == tag]:
        seen, after = (
            {(d.label, str(d.color)) for d in detect(render(scene))} for scene in (edit.source, edit.target)
        )
        assert followed(edit.metadata["prompt"], seen) == after != seen
        assert followed(edit.reverse, after) == seen
        assert edit.reverse.split()[0] == {"add": "remove", "remove": "add", "adjust": "make"}.get(tag, tag)


def test_few_words_are_new() -> None:
    said = {word for e in train_edits(300) for word in e.metadata["prompt"].split()}
    assert said <= {*vocabulary(), *WORDS} and set(WORDS) <= said
