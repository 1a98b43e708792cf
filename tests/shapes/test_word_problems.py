"""Word problems: the numbers in the question give the answer, and no training problem is a held-out one."""

import re
from collections import Counter

import numpy as np

from triptych.evals.answers import NUMBER_WORDS
from triptych.shapes.prompts import vocabulary
from triptych.shapes.word_problems import LONGER, SUMS, WORDS, WordProblem, test_problems, train_problem


def train_problems(n: int, longer: bool = False) -> list[WordProblem]:
    rng = np.random.default_rng(0)
    return [train_problem(rng, longer) for _ in range(n)]


def solved(problem: WordProblem) -> int:
    """From the question's own words, by its kind: an independent reading of the text."""
    first, *rest = [NUMBER_WORDS.index(w) for w in problem.question.split() if w in NUMBER_WORDS]
    if problem.tag in ("twice", "less"):
        return 2 * first + (rest[0] if problem.tag == "twice" else -rest[0])
    signs = {"add": [1], "plus": [1], "steps": [1, -1], "both": [1, -1, -1]}.get(
        problem.tag, [-1] * len(rest)
    )
    return first + sum(sign * number for sign, number in zip(signs, rest, strict=True))


def test_answer_and_thought_follow_from_the_question() -> None:
    longer = [*train_problems(300, longer=True), *test_problems(200, longer=True)]
    for problem in [*train_problems(300), *test_problems(210), *longer]:
        assert 0 < NUMBER_WORDS.index(problem.answer) == solved(problem) <= 10
        assert problem.thought.endswith(f"is {problem.answer}.")
        for a, sign, b, c in re.findall(r"(\w+) (plus|minus) (\w+) is (\w+)\.", problem.thought):
            x, y, z = (NUMBER_WORDS.index(word) for word in (a, b, c))
            assert z == (x + y if sign == "plus" else x - y)


def test_wording_and_that_held_out_problems_stay_what_they_are() -> None:
    asked = {p.tag: (p.question, p.thought) for p in test_problems(7)}
    assert asked["take"] == (
        "there are six yellow triangles. take three away. how many yellow triangles are left?",
        "six minus three is three.",
    )
    assert asked["steps"] == (
        "there are three purple circles and two green diamonds."
        " take two purple circles away. how many shapes are left?",
        "three plus two is five. five minus two is three.",
    )


def test_train_and_test_share_no_sum_of_the_same_things() -> None:
    train, test = train_problems(4000), test_problems(210)
    assert not {p.key for p in train} & {p.key for p in test}
    assert not {p.question for p in train} & {p.question for p in test}
    assert Counter(p.tag for p in test) == dict.fromkeys(SUMS, 30)
    assert len({p.question for p in test}) > 200
    assert test[:9] == test_problems(9) and train[:9] == train_problems(9)
    more = re.compile(r"more|fewer")
    two = {p.key for p in test if p.tag == "more"} | {p.key for p in train if p.tag == "fewer"}
    assert all(key.startswith("n minus m") and not more.search(key) for key in two), "the wording is no part"


def test_longer_problems_take_a_step_more_in_words_that_are_known() -> None:
    found = test_problems(400, longer=True)
    assert Counter(p.tag for p in found) == dict.fromkeys(LONGER, 100)
    assert {p.thought.count(".") for p in found if p.tag == "both"} == {3}
    assert {p.thought.count(".") for p in found if p.tag != "both"} == {2}
    said = set(re.findall(r"\w+", " ".join(p.question for p in found)))
    assert said <= {*vocabulary(), *WORDS}
    assert not {p.key for p in found} & {p.key for p in train_problems(4000, longer=True)}


def test_words() -> None:
    texts = [f"{p.question} {p.thought} {p.answer}" for p in train_problems(1500)]
    said = set(re.findall(r"\w+|[^\w\s]", " ".join(texts)))
    assert said <= {*vocabulary(), *WORDS} and set(WORDS) <= said
