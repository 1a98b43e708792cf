"""Prompts in GenEval's schema, and a split that shares no combination."""

from collections import Counter

import numpy as np
import pytest

from triptych.evals.geneval import Metadata
from triptych.shapes.edits import test_edits
from triptych.shapes.prompts import (
    TAGS,
    TRAIN_WEIGHTS,
    combination_key,
    parse,
    screening_prompts,
    split,
    test_prompts,
    train_prompt,
    vocabulary,
)
from triptych.shapes.questions import question_for
from triptych.shapes.scenes import KINDS, sample_scene


def every(tag: str) -> list[Metadata]:
    train, test = split(tag)
    return train + test


def find(tag: str, prompt: str) -> Metadata:
    return next(m for m in every(tag) if m["prompt"] == f"a photo of {prompt}")


@pytest.mark.parametrize(
    ("tag", "total"),
    [
        ("single_object", 6),
        ("two_object", 6 * 5),
        ("counting", 6 * 3 * (1 + 7)),
        ("colors", 6 * 7),
        ("position", 6 * 5 * 4 * (1 + 7 * 6 + 3 * 7 * 6)),
        ("color_attr", 6 * 5 * 7 * 6),
    ],
)
def test_number_of_prompts(tag: str, total: int) -> None:
    prompts = [m["prompt"] for m in every(tag)]
    assert len(prompts) == len(set(prompts)) == total


def test_schema_is_genevals() -> None:
    assert find("two_object", "a square and a circle") == {
        "tag": "two_object",
        "include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1}],
        "prompt": "a photo of a square and a circle",
    }
    assert find("counting", "three red crosses") == {
        "tag": "counting",
        "include": [{"class": "cross", "count": 3, "color": "red"}],
        "exclude": [{"class": "cross", "count": 4}],
        "prompt": "a photo of three red crosses",
    }
    # The placed object is first in the text and second in the list, as in the official file.
    assert find("position", "two orange squares above a blue ring") == {
        "tag": "position",
        "include": [
            {"class": "ring", "count": 1, "color": "blue"},
            {"class": "square", "count": 2, "color": "orange", "position": ["above", 0]},
        ],
        "exclude": [{"class": "square", "count": 3}],
        "prompt": "a photo of two orange squares above a blue ring",
    }
    assert find("colors", "an orange ring")["include"] == [{"class": "ring", "count": 1, "color": "orange"}]
    assert find("single_object", "a triangle")["include"] == [{"class": "triangle", "count": 1}]
    assert "exclude" not in find("position", "a square left of a circle")


def test_combination_key_ignores_order_and_mirroring() -> None:
    for tag, one, other in [
        ("two_object", "a square and a ring", "a ring and a square"),
        ("color_attr", "a red square and a blue ring", "a blue ring and a red square"),
        ("position", "a square above a ring", "a ring below a square"),
        ("position", "a red square right of two blue rings", "two blue rings left of a red square"),
    ]:
        assert combination_key(find(tag, one)) == combination_key(find(tag, other))
    for tag, one, other in [
        ("position", "a square above a ring", "a ring above a square"),
        ("position", "a square above a ring", "a square left of a ring"),
        ("color_attr", "a red square and a blue ring", "a blue square and a red ring"),
        ("counting", "two rings", "three rings"),
    ]:
        assert combination_key(find(tag, one)) != combination_key(find(tag, other))
    wordings = Counter(
        combination_key(m) for tag in ("two_object", "position", "color_attr") for m in every(tag)
    )
    assert set(wordings.values()) == {2}


def test_train_and_test_share_no_combination() -> None:
    train, held_out = set[str](), set[str]()
    for tag in TAGS:
        one, other = split(tag)
        assert len(one) + len(other) == len(every(tag))
        assert 0.28 <= len(other) / len(every(tag)) <= 0.34
        train |= {combination_key(m) for m in one}
        held_out |= {combination_key(m) for m in other}
    assert not train & held_out


def test_split_never_moves() -> None:
    # A changed split would put test prompts into the training of starters that exist.
    assert [m["prompt"] for m in split("single_object")[1]] == ["a photo of a ring", "a photo of a circle"]
    assert [m["prompt"] for m in split("color_attr")[1][:2]] == [
        "a photo of a black diamond and an orange triangle",
        "a photo of a green square and a purple circle",
    ]


def test_test_prompts_are_distinct_even_and_nested() -> None:
    prompts = test_prompts()
    tags = Counter(m["tag"] for m in prompts)
    assert len({m["prompt"] for m in prompts}) == 360
    assert [tags[tag] for tag in TAGS] == [2, 10, 44, 13, 146, 145]
    few = test_prompts(60)
    assert Counter(m["tag"] for m in few)["single_object"] == 2 and len(few) == 60
    assert {m["prompt"] for m in few} <= {m["prompt"] for m in prompts}
    assert len({combination_key(m) for m in prompts if m["tag"] == "color_attr"}) > 115
    with pytest.raises(ValueError, match="held out"):
        test_prompts(10**6)


@pytest.mark.parametrize("tag", TAGS)
def test_a_prompt_says_what_its_metadata_do_and_nothing_else(tag: str) -> None:
    for metadata in every(tag)[:: 1 + len(every(tag)) // 200]:
        for ground, end in (("white", ""), ("gray", " on a gray background")):
            said = parse(metadata["prompt"] + end)
            assert said["include"] == metadata["include"] and said["background"] == ground
            counts = {e["class"]: e["count"] for e in metadata["include"]}
            assert said["exclude"] == [{"class": k, "count": counts.get(k, 0) + 1} for k in KINDS]


def test_a_description_says_what_the_edited_picture_shows() -> None:
    for edit in test_edits(90):
        said = parse(edit.description)
        for key in ("include", "exclude", "background"):
            assert said[key] == edit.metadata[key]
    assert parse("a teddy bear")["include"] == []


def test_screening_prompts_are_neither_trained_on_nor_tested() -> None:
    chosen = screening_prompts(200)
    assert Counter(m["tag"] for m in chosen) == {"position": 100, "color_attr": 100}
    assert len({m["prompt"] for m in chosen}) == 200
    keys = {combination_key(m) for m in chosen}
    assert not keys & {combination_key(m) for m in test_prompts()}
    assert not keys & {combination_key(m) for tag in TAGS for m in split(tag)[0]}
    with pytest.raises(ValueError, match="left"):
        screening_prompts(10**6)


def test_train_prompts_follow_the_weights() -> None:
    rng = np.random.default_rng(0)
    drawn = [train_prompt(rng) for _ in range(4000)]
    tags = Counter(m["tag"] for m in drawn)
    for tag, weight in TRAIN_WEIGHTS.items():
        assert abs(tags[tag] / 4000 - weight) < 0.03
    held_out = {m["prompt"] for tag in TAGS for m in split(tag)[1]}
    assert not held_out & {m["prompt"] for m in drawn}
    counted = sum("exclude" in m for m in drawn if m["tag"] == "position") / tags["position"]
    assert abs(counted - 1 / 3) < 0.06


def test_vocabulary_covers_every_text() -> None:
    words = vocabulary()
    assert words == sorted(set(words)) and "?" in words
    texts = [m["prompt"] for tag in TAGS for m in every(tag)]
    rng = np.random.default_rng(0)
    for _ in range(200):
        metadata = train_prompt(rng)
        texts += question_for(metadata, sample_scene(metadata, rng))
    used = {word for text in texts for word in text.lower().replace("?", " ?").split()}
    assert used <= set(words)
    assert set(words) - used <= {"one"}


def test_unknown_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="no tag called"):
        split("style")
