"""Questions: canonical answers follow from the picture, and grading takes any right wording."""

import re
from collections import Counter

import numpy as np
import pytest

from triptych.shapes.prompts import QUESTIONS, TAGS, combination_key, split, train_prompt_of, vocabulary
from triptych.shapes.questions import (
    THINK,
    WORDS,
    answer_matches,
    question_for,
    test_questions,
    thought_for,
    train_question,
)
from triptych.shapes.scenes import KINDS, Scene, Shape, sample_scene


def scene(*shapes: tuple[str, str, int, int]) -> Scene:
    return Scene(shapes=tuple(Shape(kind=k, color=c, x=x, y=y, size=8) for k, c, x, y in shapes))


RING_THEN_SQUARE = scene(("square", "red", 20, 4), ("ring", "orange", 4, 6))
RING_OVER_SQUARE = scene(("square", "red", 6, 20), ("ring", "blue", 8, 4))
DIAGONAL = scene(("square", "red", 2, 2), ("ring", "blue", 16, 16))
TWO_CROSSES = scene(("cross", "red", 2, 2), ("cross", "blue", 16, 16))
ONE_OVER_ONE_BESIDE = scene(("cross", "red", 10, 2), ("cross", "red", 22, 20), ("ring", "blue", 10, 20))
TWO_OVER_ONE = scene(("cross", "red", 2, 2), ("cross", "red", 16, 2), ("ring", "blue", 10, 20))


@pytest.mark.parametrize(
    ("tag", "shown", "answer"),
    [
        ("single_object", scene(("ring", "red", 2, 2)), "ring"),
        ("colors", scene(("ring", "red", 2, 2)), "red"),
        ("counting", TWO_CROSSES, "two crosses"),
        ("two_object", RING_THEN_SQUARE, "a ring and a square"),
        ("color_attr", RING_THEN_SQUARE, "an orange ring and a red square"),
        ("position", RING_THEN_SQUARE, "a ring left of a square"),
        ("position", RING_OVER_SQUARE, "a ring above a square"),
        ("position", DIAGONAL, "a square left of a ring"),
        ("position", TWO_OVER_ONE, "two crosses above a ring"),
    ],
)
def test_canonical_answers(tag: str, shown: Scene, answer: str) -> None:
    assert question_for({"tag": tag}, shown) == (QUESTIONS[tag], answer)


@pytest.mark.parametrize(
    ("tag", "shown", "answer"),
    [
        ("single_object", scene(("ring", "red", 2, 2)), "The main item is a red Ring."),
        ("colors", scene(("ring", "red", 2, 2)), "It is red"),
        ("colors", scene(("ring", "red", 2, 2)), "a red ring"),
        ("counting", TWO_CROSSES, "There are 2 crosses!"),
        ("two_object", RING_THEN_SQUARE, "square and ring"),
        ("two_object", RING_THEN_SQUARE, "a red square and an orange ring"),
        ("color_attr", RING_THEN_SQUARE, "a red square and an orange ring"),
        ("position", RING_THEN_SQUARE, "the square is to the right of the ring"),
        ("position", DIAGONAL, "a square above a ring"),
        ("position", DIAGONAL, "a ring below a square"),
        ("position", TWO_OVER_ONE, "a ring below two crosses"),
    ],
)
def test_other_right_wordings_match(tag: str, shown: Scene, answer: str) -> None:
    assert answer_matches(answer, {"tag": tag}, shown)


@pytest.mark.parametrize(
    ("tag", "shown", "answer"),
    [
        ("single_object", scene(("ring", "red", 2, 2)), "a blue ring"),
        ("single_object", scene(("ring", "red", 2, 2)), "a ring and a square"),
        ("single_object", scene(("ring", "red", 2, 2)), "rings"),
        ("colors", scene(("ring", "red", 2, 2)), "blue"),
        ("colors", scene(("ring", "red", 2, 2)), "a red square"),
        ("colors", scene(("ring", "red", 2, 2)), "red and blue"),
        ("colors", scene(("ring", "red", 2, 2)), ""),
        ("counting", TWO_CROSSES, "three crosses"),
        ("counting", TWO_CROSSES, "crosses"),
        ("counting", TWO_CROSSES, "two"),
        ("counting", TWO_CROSSES, "two red crosses"),
        ("counting", TWO_CROSSES, "two rings"),
        ("two_object", RING_THEN_SQUARE, "a ring"),
        ("two_object", RING_THEN_SQUARE, "a ring and a cross"),
        ("two_object", RING_THEN_SQUARE, "a ring and a ring"),
        ("two_object", RING_THEN_SQUARE, "two rings and a square"),
        ("two_object", RING_THEN_SQUARE, "a ring and a square and a cross"),
        ("two_object", RING_THEN_SQUARE, "a ring left of a square"),
        ("color_attr", RING_THEN_SQUARE, "a red ring and an orange square"),
        ("color_attr", RING_THEN_SQUARE, "a ring and a square"),
        ("position", RING_THEN_SQUARE, "a square left of a ring"),
        ("position", RING_THEN_SQUARE, "a ring above a square"),
        ("position", RING_THEN_SQUARE, "a ring and a square"),
        ("position", RING_THEN_SQUARE, "a ring left of a square wobble"),
        ("position", TWO_OVER_ONE, "a cross above a ring"),
        ("position", TWO_OVER_ONE, "crosses above a ring"),
        ("position", TWO_OVER_ONE, "a ring above two crosses"),
        ("position", ONE_OVER_ONE_BESIDE, "two crosses above a ring"),
    ],
)
def test_wrong_answers_do_not(tag: str, shown: Scene, answer: str) -> None:
    assert not answer_matches(answer, {"tag": tag}, shown)


@pytest.mark.parametrize("tag", TAGS)
def test_canonical_answers_match_and_other_scenes_do_not(tag: str) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(25):
        metadata = train_prompt_of(tag, rng)
        shown = sample_scene(metadata, rng)
        rows.append((metadata, shown, question_for(metadata, shown)[1]))
    for metadata, shown, answer in rows:
        assert answer_matches(answer, metadata, shown)
        for _, other, canonical in rows:
            assert canonical != answer or answer_matches(answer, metadata, other)
            if tag != "position":
                same = sorted(canonical.split()) == sorted(answer.split())
                assert answer_matches(answer, metadata, other) == same


def test_the_position_answer_is_the_prompts_relation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        metadata = train_prompt_of("position", rng)
        shown = sample_scene(metadata, rng)
        reference, placed = (dict(entry) for entry in metadata["include"])
        for entry in (reference, placed):
            entry.pop("color", None)
        answer = question_for(metadata, shown)[1]
        relation = placed["position"][0]
        assert (relation in answer) == (relation in ("left of", "above")), (metadata["prompt"], answer)


@pytest.mark.parametrize(
    ("tag", "shown", "thought"),
    [
        ("colors", scene(("ring", "red", 2, 2)), "from left to right i see a red ring."),
        ("counting", TWO_CROSSES, "from left to right i see a red cross and a blue cross."),
        ("position", RING_THEN_SQUARE, "from left to right i see an orange ring and a red square."),
        ("position", RING_OVER_SQUARE, "from top to bottom i see a blue ring and a red square."),
    ],
)
def test_thoughts_name_what_is_seen_in_the_answers_order(tag: str, shown: Scene, thought: str) -> None:
    assert thought_for({"tag": tag}, shown) == thought


def test_thoughts_use_few_new_words_and_hold_the_answer() -> None:
    said: set[str] = set()
    for shown, _, answer, tag in test_questions(300):
        thought = thought_for({"tag": tag}, shown)
        said |= set(re.findall(r"\w+|[^\w\s]", f"{thought} {THINK}"))
        kinds = re.findall("|".join(KINDS), answer)
        order = list(dict.fromkeys(re.findall("|".join(KINDS), thought)))
        assert kinds == order[: len(kinds)] and thought.count("and") == len(shown.shapes) - 1
    assert said <= {*vocabulary(), *WORDS} and set(WORDS) <= said


def test_questions_about_the_wrong_scene_are_refused() -> None:
    with pytest.raises(ValueError, match="two kinds"):
        question_for({"tag": "two_object"}, TWO_CROSSES)
    with pytest.raises(ValueError, match="no relation"):
        question_for({"tag": "position"}, ONE_OVER_ONE_BESIDE)
    with pytest.raises(ValueError, match="no question"):
        question_for({"tag": "style"}, TWO_CROSSES)


def test_test_questions_are_fixed_even_and_held_out() -> None:
    questions = test_questions(60)
    assert questions == test_questions(60)
    assert set(Counter(row[3] for row in questions).values()) == {10}
    assert test_questions(12) == questions[:12]
    held_out = {combination_key(m) for m in split("counting")[1]}
    for shown, _, _, tag in questions:
        if tag == "counting":
            colors = {s.color for s in shown.shapes}
            kinds = [f"{len(shown.shapes)} {c} {shown.shapes[0].kind}" for c in ("any", *colors)]
            assert held_out & set(kinds)


def test_train_questions_have_a_matching_answer() -> None:
    rng = np.random.default_rng(0)
    rows = [train_question(rng) for _ in range(200)]
    assert {row[3] for row in rows} == set(TAGS)
    assert all(question == QUESTIONS[tag] for _, question, _, tag in rows)
    assert all(answer_matches(answer, {"tag": tag}, shown) for shown, _, answer, tag in rows)
