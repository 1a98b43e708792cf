"""Critiques: half of the drawings are right by the rule, the others wrong, and the instruction mends them."""

import re
from collections import Counter

import numpy as np
import pytest

from triptych.evals.geneval import judge, plural
from triptych.shapes.critiques import FAULTS, WORDS, Critique, train_critique
from triptych.shapes.prompts import NUMBERS, split, vocabulary
from triptych.shapes.renderer import render
from triptych.shapes.scenes import COLORS, KINDS, Scene
from triptych.shapes.verifier import detect


def train_critiques(n: int) -> list[Critique]:
    rng = np.random.default_rng(0)
    return [train_critique(rng) for _ in range(n)]


def right(scene: Scene, critique: Critique) -> bool:
    return judge(detect(render(scene)), critique.metadata).correct


def things(scene: Scene) -> Counter[tuple[str, str]]:
    return Counter((shape.kind, shape.color) for shape in scene.shapes)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_rule_agrees_with_the_verdict(fault: str) -> None:
    found = [c for c in train_critiques(600) if c.fault == fault]
    assert len(found) > 90
    for critique in found:
        assert right(critique.target, critique)
        assert right(critique.drawn, critique) == (critique.text == "right") == (not critique.instruction)
        assert (critique.drawn == critique.target) == (critique.text == "right")
        assert critique.metadata["tag"] in FAULTS[fault]


def named(words: list[str]) -> list[tuple[str, str]]:
    """Of "three red crosses" or "the ring": so many (kind, colour), the colour empty where none is said."""
    count = max(NUMBERS.index(words[0]), 1) if words[0] in NUMBERS else 1
    [kind] = [k for k in KINDS if words[-1] in (k, plural(k))]
    return [(kind, words[1] if words[1] in COLORS else "")] * count


def test_following_the_instruction_gives_the_target() -> None:
    """Read from its words alone; a colour that it does not name may be any."""
    for critique in [c for c in train_critiques(500) if c.instruction]:
        verb, *rest = critique.instruction.split()
        before, after = things(critique.drawn), things(critique.target)
        gone, new = before - after, after - before
        if verb == "put":
            relation = critique.metadata["include"][1]["position"][0]
            assert not gone and not new and f" {relation} the " in critique.instruction
            continue
        middle = rest.index("with") if verb == "replace" else len(rest)
        lost = [*gone.elements()] if verb in ("make", "replace") else named(rest) * (verb == "remove")
        won = named(["the", rest[-1], rest[1]]) if verb == "make" else named(rest[middle + 1 :] or rest)
        won = (won * gone.total() if verb == "make" else won) * (verb != "remove")
        for changed, said in ((gone, lost), (new, won)):
            assert Counter(kind for kind, _ in said) == Counter(kind for kind, _ in changed.elements())
            assert all(color in ("", *(c for _, c in changed)) for _, color in said)
        if verb in ("make", "replace"):
            assert {kind for kind, _ in named(rest[:2])} == {kind for kind, _ in gone}


def test_balanced_and_of_the_training_split() -> None:
    train = train_critiques(1500)
    assert all(abs(n / 1500 - 0.2) < 0.04 for n in Counter(c.fault for c in train).values())
    assert abs(np.mean([c.text == "right" for c in train]) - 0.5) < 0.04
    held_out = {m["prompt"] for tags in FAULTS.values() for tag in tags for m in split(tag)[1]}
    assert not {c.metadata["prompt"] for c in train} & held_out
    assert train[:11] == train_critiques(11)


def test_prompts_do_not_tell_which_drawings_are_wrong() -> None:
    shares: dict[str, list[bool]] = {}
    for critique in train_critiques(1500):
        shares.setdefault(critique.metadata["tag"], []).append(critique.text == "right")
    assert all(abs(np.mean(rights) - 0.5) < 0.12 for rights in shares.values()), shares


def test_words() -> None:
    said = set(re.findall(r"\w+|[^\w\s]", " ".join(c.text for c in train_critiques(600))))
    assert said <= {*vocabulary(), *WORDS} and set(WORDS) <= said
