"""Vague prompts: the hints determine the exact prompt, and the split is that of prompts."""

import re

import numpy as np
import pytest

from triptych.shapes.prompts import NUMBERS, combination_key, vocabulary
from triptych.shapes.prompts import test_prompts as exact_prompts
from triptych.shapes.vague import COLOR_HINTS, COUNT_HINTS, WORDS, VaguePrompt, test_vague, train_vague


def train_prompts(n: int) -> list[VaguePrompt]:
    rng = np.random.default_rng(0)
    return [train_vague(rng) for _ in range(n)]


def clear(prompt: str) -> str:
    """The exact prompt, by putting each hint's meaning in its place."""
    for count, hints in COUNT_HINTS.items():
        for owner, parts in hints:
            prompt = re.sub(rf"as many (\w+) as {owner} has {parts},?", rf"{NUMBERS[count]} \1", prompt)
    for color, names in COLOR_HINTS.items():
        for name in names:
            prompt = re.sub(rf"(?:an? )?((?:\w+ )?\w+) in the color of {name}", rf"{color}<\1>", prompt)
    prompt = re.sub(r"(\w+)<(two|three|four) (\w+)>", r"\2 \1 \3", prompt)
    prompt = re.sub(r"\b([aeiou]\w+)<(\w+)>", r"an \1 \2", prompt)
    return re.sub(r"(\w+)<(\w+)>", r"a \1 \2", prompt)


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("as many circles as a triangle has corners, in the color of grass", "three green circles"),
        ("a ring in the color of a carrot above a cross in the color of coal",
         "an orange ring above a black cross"),
    ],
)  # fmt: skip
def test_the_reading_of_this_test(prompt: str, meant: str) -> None:
    assert clear(prompt) == meant


def test_hints_determine_the_exact_prompt_and_thoughts_say_so() -> None:
    for asked in [*train_prompts(400), *test_vague(200)]:
        exact = str(asked.metadata["prompt"])
        assert clear(asked.prompt) == exact != asked.prompt
        new = set(exact.split()) - set(asked.prompt.split()) - {"a", "an"}
        assert new and new <= set(re.findall(r"\w+", asked.thought)), "the thought names what the hints hide"


def test_the_thought_follows_the_prompts_order() -> None:
    [asked] = [v for v in test_vague(200) if v.prompt.endswith("a cross in the color of a plum right of a square in the color of the sea")]  # fmt: skip  # noqa: E501
    assert asked.thought == "a plum is purple. the sea is blue."


def test_train_and_test_are_disjoint_and_fixed() -> None:
    train, test = train_prompts(3000), test_vague(300)
    exact = {combination_key(m) for m in exact_prompts()}
    keys = [{combination_key(v.metadata) for v in part} for part in (train, test)]
    assert not keys[0] & keys[1] and not keys[0] & exact and keys[1] <= exact
    assert len({v.metadata["prompt"] for v in test}) == 300 and test[:20] == test_vague(20)
    with pytest.raises(ValueError, match="312 are held out"):
        test_vague(400)


def test_words() -> None:
    texts = [f"{v.prompt} {v.thought}" for v in train_prompts(1500)]
    said = set(re.findall(r"\w+|[^\w\s]", " ".join(texts)))
    assert said <= {*vocabulary(), *WORDS} and set(WORDS) <= said
