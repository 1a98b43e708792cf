"""The graded answer: a table of answers, each with what it should be worth."""

from itertools import pairwise

import pytest

from tiny_models import picture
from triptych.evals.lexicon import Lexicon
from triptych.evals.prompts import CLASSES, TAGS, metadata_of
from triptych.evals.quiz import make_quiz
from triptych.recipes.rewards import find_reward
from triptych.rewards.quiz import QuizReward, grade
from triptych.trajectory import Sample, Task


def entry(
    name: str, count: int = 1, color: str | None = None, position: str | None = None
) -> dict[str, object]:
    more = {"color": color} if color else {}
    return {"class": name, "count": count, **more, **({"position": [position, 0]} if position else {})}


DOG = metadata_of("single_object", [entry("dog")])
BEAR = metadata_of("single_object", [entry("teddy bear")])
PAIR = metadata_of("two_object", [entry("bench"), entry("sports ball")])
CLOCKS = metadata_of("counting", [entry("clock", 2)])
KNIVES = metadata_of("counting", [entry("knife", 4)])
SHEEP = metadata_of("counting", [entry("sheep", 3)])
RINGS = metadata_of("counting", [entry("ring", 3, "red")])
RED = metadata_of("colors", [entry("dog", color="red")])
LEFT = metadata_of("position", [entry("cat"), entry("dog", position="left of")])
BELOW = metadata_of("position", [entry("circle", 2, "red"), entry("ring", 1, "blue", "below")])
BOTH = metadata_of("color_attr", [entry("dog", color="red"), entry("cat", color="blue")])
ORANGE = metadata_of("color_attr", [entry("orange", color="red"), entry("cat", color="orange")])
OWN = {"include": [entry("dog", 2, "red"), entry("cat", 1, None, "above")]}

TABLE = [
    # one object
    (DOG, "dog", 1),
    (DOG, "A dog.", 1),
    (DOG, "The main item in this image is a large brown DOG lying in the grass", 1),
    (DOG, "dogs", 1),
    (DOG, "<think> four legs </think><answer> a dog </answer>", 1),
    (DOG, "a cat", 0),
    (DOG, "a hot dog", 0),
    (DOG, "a dog and a cat", 0),  # one right, one too many
    (DOG, "there is no dog", 0),
    (DOG, "it isn't a cat. It's a dog", 1),
    (DOG, "", 0),
    (DOG, "?!", 0),
    (BEAR, "teddy-bears", 1),
    (BEAR, "a bear", 0),
    # two
    (PAIR, "a bench and a sports ball", 1),
    (PAIR, "Sports ball, benches", 1),
    (PAIR, "a bench", 1 / 2),
    (PAIR, "a bench and a dog", 1 / 2),
    (PAIR, "a bench, a sports ball and a dog", 1 / 2),
    (PAIR, "a bench, a sports ball, a dog, a cat and a cow", 0),
    # counts
    (CLOCKS, "two clocks", 1),
    (CLOCKS, "2 Clocks", 1),
    (CLOCKS, "there are two: one clock beside the other", 1 / 2),
    (CLOCKS, "a pair of clocks", 1),
    (CLOCKS, "clocks, two of them", 1),
    (CLOCKS, "two", 1 / 2),
    (CLOCKS, "three clocks", 1 / 2),
    (CLOCKS, "two or three clocks", 1 / 2),
    (CLOCKS, "clocks", 1 / 2),
    (CLOCKS, "two dogs", 1 / 2),
    (CLOCKS, "three dogs", 0),
    (KNIVES, "four knives", 1),
    (KNIVES, "four knifes", 1),
    (SHEEP, "three sheep", 1),
    (RINGS, "three rings", 1),  # the question asks for no colour
    (RINGS, "three red crosses", 1 / 2),
    # colours
    (RED, "red", 1),
    (RED, "The dog is red.", 1),
    (RED, "blue", 0),
    (RED, "red, blue and green", 0),
    (RED, "not red", 0),
    (RED, "a red cat", 0),
    (RED, "dog", 0),
    # places
    (LEFT, "a dog left of a cat", 1),
    (LEFT, "a cat right of a dog", 1),
    (LEFT, "a cat to the right of a dog", 1),
    (LEFT, "To the left of the cat is a dog", 1),
    (LEFT, "The dog is on the left and the cat is on the right.", 1),
    (LEFT, "on the left is a dog, on the right is a cat", 1),
    (LEFT, "a dog on the left-hand side of the image; a cat", 1),
    (LEFT, "a cat left of a dog", 2 / 3),
    (LEFT, "a dog right of a cat", 2 / 3),
    (LEFT, "a dog above a cat", 2 / 3),
    (LEFT, "a dog left of a cat, a dog right of a cat", 2 / 3),
    (LEFT, "a dog and a cat", 2 / 3),
    (LEFT, "a dog left of a bird", 1 / 3),
    (LEFT, "a dog", 1 / 3),
    (BELOW, "two circles above a ring", 1),
    (BELOW, "a ring under two circles", 1),
    (BELOW, "a circle above a ring", 3 / 4),
    # which has which
    (BOTH, "a red dog and a blue cat", 1),
    (BOTH, "blue cat, red dog", 1),
    (BOTH, "the dog is red and the cat is blue", 1),
    (BOTH, "a blue dog and a red cat", 4 / 6),
    (BOTH, "a red dog and a green cat", 4 / 6),
    (BOTH, "a dog and a cat", 2 / 6),
    (BOTH, "a red dog", 3 / 6),
    (BOTH, "red and blue", 2 / 6),
    (BOTH, "a red dog, a blue cat and a green bird", 4 / 6),
    (ORANGE, "a red orange and an orange cat", 1),
    (ORANGE, "an orange orange and a red cat", 4 / 6),
    # a tag of one's own: all that the prompt fixes
    (OWN, "a cat on top of two red dogs", 1),
    (OWN, "a cat and two dogs", 3 / 5),
]


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len(TABLE) >= 40 and {m.get("tag") for m, _, _ in TABLE} == {*TAGS, None}


@pytest.mark.parametrize(("metadata", "answer", "worth"), TABLE)
def test_what_answers_are_worth(metadata: dict[str, object], answer: str, worth: float) -> None:
    assert grade(answer, metadata) == pytest.approx(worth)


def test_a_user_s_words_count() -> None:
    couch = metadata_of("color_attr", [entry("couch", color="purple"), entry("dog", color="red")])
    lexicon = Lexicon(CLASSES, synonyms=(("sofa", "couch"), ("violet", "purple"), ("puppy", "dog")))
    assert grade("two violet sofas and red puppies", couch, lexicon) == 1
    assert grade("two violet sofas and red puppies", couch) == 1 / 6


@pytest.mark.parametrize("tag", TAGS)
def test_the_answer_that_comes_with_a_prompt_is_worth_everything(tag: str) -> None:
    rows = [row for row in make_quiz(120, Lexicon(CLASSES), seed=3) if row["tag"] == tag]
    assert len(rows) == 20 and all(grade(row["answer"], row) == 1 for row in rows)
    assert all(grade(a["answer"], b) < 1 for a, b in pairwise(rows) if a["answer"] != b["answer"])


def test_what_has_no_quiz_is_unscored() -> None:
    def sample(text: str | None = "a dog", **about: object) -> Sample:
        task = Task(id="t", prompt="p", **about)  # type: ignore[arg-type]
        return Sample(
            task=task, texts={} if text is None else {"answer": text}, pictures={}, completion=picture(0)
        )

    asked = {"question": "What is the main item in this image?"}
    samples = [
        sample(metadata=DOG, columns=asked),
        sample(metadata={**DOG, **asked}),
        sample("no", metadata=DOG, columns=asked),
        sample(metadata=DOG),
        sample(columns=asked),
        sample(None, metadata=DOG, columns=asked),
    ]
    for reward in (QuizReward(segment="answer"), find_reward("quiz")):
        assert reward(samples) == [1, 1, 0, None, None, None]
