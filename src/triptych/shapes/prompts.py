"""What the world can be asked to draw: GenEval's six kinds of prompts over shapes, and who trains on which.

This room knows the wording, GenEval's jsonl schema and the train/test split. It must not know pixels or how
prompts are judged. Metadata is shared and cached: treat every returned dict as read-only.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations, product, zip_longest
from typing import Any

import numpy as np

from triptych.evals.answers import NUMBER_WORDS
from triptych.evals.geneval import RELATIONS, Metadata, plural
from triptych.evals.lexicon import Lexicon
from triptych.evals.prompts import QUESTIONS as WORDINGS
from triptych.evals.prompts import TAGS, metadata_of, told_once
from triptych.shapes.scenes import COLORS, KINDS, MAX_SHAPES

NUMBERS = NUMBER_WORDS[: MAX_SHAPES + 1]
# Within a tag the variants (plain, coloured, counted) are split, and drawn, separately.
VARIANTS: dict[str, tuple[str, ...]] = {
    "single_object": ("plain",),
    "two_object": ("plain",),
    "counting": ("plain", "colored"),
    "colors": ("colored",),
    "position": ("plain", "colored", "counted"),
    "color_attr": ("colored",),
}
QUESTIONS = {tag: told[0] for tag, told in WORDINGS.items()}
"""The one wording of each tag's question that the world's models know."""
ON_GRAY = " on a gray background"
"""How a description ends where the background is not the white one of prompts."""
_LEXICON = Lexicon(KINDS, COLORS)
TEST_SHARE = 0.3  # of the combinations of every variant
# How often training draws each tag; the rich tags more often than those with a handful of combinations.
TRAIN_WEIGHTS = {
    "single_object": 0.05,
    "two_object": 0.10,
    "counting": 0.20,
    "colors": 0.08,
    "position": 0.30,
    "color_attr": 0.27,
}


def split(tag: str) -> tuple[list[Metadata], list[Metadata]]:
    """(train, test) prompts of a tag: they share no combination (see `combination_key`)."""
    return [m for train, _ in _splits(tag) for m in train], [m for _, test in _splits(tag) for m in test]


def combination_key(metadata: Metadata) -> str:
    """The (class, colour, relation, count) combination that a prompt asks for, whatever its wording.

    Insensitive to the order of two objects; a mirrored relation ("a above b", "b below a") is the same.
    """
    entries = [f"{e['count']} {e.get('color', 'any')} {e['class']}" for e in metadata["include"]]
    for index, entry in enumerate(metadata["include"]):
        if "position" in entry:
            relation, target = entry["position"]
            return told_once(entries[index], relation, entries[target])
    return " and ".join(sorted(entries))


def test_prompts(n: int = 360) -> list[Metadata]:
    """`n` distinct held-out prompts in a fixed order, tags as even as their number of prompts permits.

    A smaller `n` takes a subset of a larger one per tag. Raises ValueError if `n` exceeds what is held out.
    """
    held_out = {tag: _interleaved([test for _, test in _splits(tag)]) for tag in TAGS}
    total = sum(len(prompts) for prompts in held_out.values())
    if n > total:
        raise ValueError(f"{n} test prompts asked for, {total} are held out")
    shares = _even_shares(n, [len(held_out[tag]) for tag in TAGS])
    return [metadata for tag, share in zip(TAGS, shares, strict=True) for metadata in held_out[tag][:share]]


def screening_prompts(n: int = 200) -> list[Metadata]:
    """`n` held-out prompts to choose settings on, in no combination of training or of `test_prompts`.

    They are of the two tags that `test_prompts` does not use up, in equal parts: position and color_attr.
    Raises ValueError if `n` exceeds what is left.
    """
    used = {combination_key(metadata) for metadata in test_prompts()}

    def left(tag: str) -> list[Metadata]:
        return _interleaved([[m for m in test if combination_key(m) not in used] for _, test in _splits(tag)])

    groups = [left("position"), left("color_attr")]
    shares = _even_shares(n, [len(group) for group in groups])
    if sum(shares) < n:
        raise ValueError(f"{n} screening prompts asked for, {sum(shares)} are left")
    return [metadata for group, share in zip(groups, shares, strict=True) for metadata in group[:share]]


def nothing_else(include: Sequence[Metadata]) -> list[dict[str, Any]]:
    """The exclude clause by which a picture shows what ``include`` names and no more of any kind."""
    counts = {entry["class"]: entry["count"] for entry in include}
    return [{"class": kind, "count": counts.get(kind, 0) + 1} for kind in KINDS]


def parse(text: str) -> Metadata:
    """What a prompt or a description of the world says, from its words alone: GenEval's schema without a tag.

    A text tells all that there is: no other object, and a "background", white unless it says gray. Where it
    names none of the world's kinds, ``include`` is empty.
    """
    include: list[dict[str, Any]] = []
    said: dict[str, str] = {}
    for kind, value in _LEXICON.tokens(text):
        if kind == "object":
            include.append(_entry(value, int(said.pop("count", "1")), said.pop("color", None)))
        said[kind] = value
    if "relation" in said and len(include) > 1:  # the placed object is first in the text and last in the list
        include = [*include[1:], include[0] | {"position": [said["relation"], 0]}]
    ground = "gray" if text.endswith(ON_GRAY) else "white"
    return {"include": include, "exclude": nothing_else(include), "background": ground, "prompt": text}


def is_held_out(key: str) -> bool:
    """Whether a combination belongs to the test split, for data that no list enumerates: TEST_SHARE does."""
    return int(_digest(key)[:8], 16) < TEST_SHARE * 16**8


def train_prompt(rng: np.random.Generator) -> Metadata:
    """One training prompt: a tag by TRAIN_WEIGHTS, one of its variants, one of that variant's prompts."""
    tag = str(rng.choice(list(TRAIN_WEIGHTS), p=list(TRAIN_WEIGHTS.values())))
    return train_prompt_of(tag, rng)


def train_prompt_of(tag: str, rng: np.random.Generator) -> Metadata:
    """One training prompt of a tag: its variants evenly, then a variant's prompts evenly."""
    variants = _splits(tag)
    train, _ = variants[rng.integers(len(variants))]
    return train[rng.integers(len(train))]


def vocabulary() -> list[str]:
    """Every word of the world's prompts, questions and answers: lower case, "?" a word of its own, sorted."""
    texts = ["a photo of an and ?", " ".join(NUMBERS[1:]), *RELATIONS, *COLORS, *KINDS, *map(plural, KINDS)]
    texts += [question.lower().replace("?", " ?") for question in QUESTIONS.values()]
    return sorted({word for text in texts for word in text.split()})


@cache
def _splits(tag: str) -> list[tuple[list[Metadata], list[Metadata]]]:
    """(train, test) prompts of each of a tag's variants."""
    if tag not in VARIANTS:
        raise ValueError(f"no tag called {tag!r}: the tags are {TAGS}")
    return [_split(_all(tag, variant)) for variant in VARIANTS[tag]]


def _split(prompts: Iterator[Metadata]) -> tuple[list[Metadata], list[Metadata]]:
    """Test is the TEST_SHARE of combinations with the smallest hashes; both lists in prompt-hash order."""
    by_key: dict[str, list[Metadata]] = defaultdict(list)
    for metadata in prompts:
        by_key[combination_key(metadata)].append(metadata)
    keys = sorted(by_key, key=_digest)
    cut = math.ceil(TEST_SHARE * len(keys))
    # Ordered by the prompt, not the key: the first n prompts are then n combinations rather than n / 2 twice.
    test, train = (
        sorted((m for key in part for m in by_key[key]), key=lambda m: _digest(m["prompt"]))
        for part in (keys[:cut], keys[cut:])
    )
    return train, test


def _all(tag: str, variant: str) -> Iterator[Metadata]:
    if tag == "position":
        yield from _positions(variant)
    elif tag in ("two_object", "color_attr"):
        for (a, b), (c, d) in product(permutations(KINDS, 2), _color_pairs(variant)):
            yield metadata_of(tag, [_entry(a, 1, c), _entry(b, 1, d)])
    else:
        counts = range(2, MAX_SHAPES + 1) if tag == "counting" else (1,)
        colors = COLORS if variant == "colored" else (None,)
        for kind, count, color in product(KINDS, counts, colors):
            yield metadata_of(tag, [_entry(kind, count, color)])


def _positions(variant: str) -> Iterator[Metadata]:
    # Three against one would need three shapes in a row, for which the canvas has no room.
    counts = [(2, 1), (1, 2), (2, 2)] if variant == "counted" else [(1, 1)]
    parts = product(permutations(KINDS, 2), RELATIONS, counts, _color_pairs(variant))
    for (placed, reference), relation, (n, m), (c, d) in parts:
        position = [relation, 0]
        yield metadata_of(
            "position", [_entry(reference, m, d), _entry(placed, n, c) | {"position": position}]
        )


def _color_pairs(variant: str) -> list[tuple[str | None, str | None]]:
    return [(None, None)] if variant == "plain" else list(permutations(COLORS, 2))


def _entry(kind: str, count: int, color: str | None) -> dict[str, Any]:
    return {"class": kind, "count": count} | ({"color": color} if color else {})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _interleaved(groups: Sequence[Sequence[Metadata]]) -> list[Metadata]:
    """One of each group in turn until all are used up."""
    return [metadata for turn in zip_longest(*groups) for metadata in turn if metadata is not None]


def _even_shares(n: int, available: list[int]) -> list[int]:
    """Share out `n` as evenly as `available` permits: the scarcest first, what they lack to the others."""
    shares = [0] * len(available)
    order = sorted(range(len(available)), key=lambda i: available[i])
    for rank, index in enumerate(order):
        shares[index] = min(available[index], n // (len(order) - rank))
        n -= shares[index]
    return shares
