"""Word problems over the world's things: small sums, each with the thought that solves it.

This room knows the wording and the train/test split. It must not know pictures, nor how answers are graded.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

import numpy as np

from triptych.evals.answers import NUMBER_WORDS
from triptych.evals.geneval import plural
from triptych.shapes.prompts import is_held_out
from triptych.shapes.scenes import COLORS, KINDS

HIGHEST = 10
# Question, and the sum that answers it, worked from left to right. n > m and n > k; {a} and {b} are things.
SUMS = {
    "add": ("there are {n} {a} and {m} {b}. how many shapes are there?", "n plus m"),
    "take": ("there are {n} {a}. take {k} away. how many {a} are left?", "n minus k"),
    "more": ("there are {n} {a} and {m} {b}. how many more {a} than {b} are there?", "n minus m"),
    "fewer": ("there are {n} {a} and {m} {b}. how many fewer {b} than {a} are there?", "n minus m"),
    "plus": ("there are {n} {a}. there are {k} more {b} than {a}. how many {b} are there?", "n plus k"),
    "minus": ("there are {n} {a}. there are {k} fewer {b} than {a}. how many {b} are there?", "n minus k"),
    "steps": (
        "there are {n} {a} and {m} {b}. take {k} {a} away. how many shapes are left?",
        "n plus m minus k",
    ),
}
LONGER = {
    "both": (
        "there are {n} {a} and {m} {b}. take {k} {a} away. take {j} {b} away. how many shapes are left?",
        "n plus m minus k minus j",
    ),
    "again": (
        "there are {n} {a}. take {k} away. take {j} away. how many {a} are left?",
        "n minus k minus j",
    ),
    "twice": (
        "there are {n} {a}. there are {k} more {b} than {a}. how many shapes are there?",
        "n plus k plus n",
    ),
    "less": (
        "there are {n} {a}. there are {k} fewer {b} than {a}. how many shapes are there?",
        "n minus k plus n",
    ),
}
"""Sums of a step more, in the same words: no starter is shown how they go, so RL has something to find."""
_SAID = "there are shapes take away more fewer than plus minus is ."
WORDS = (*NUMBER_WORDS[1 : HIGHEST + 1], *_SAID.split())
"""What word problems say beyond the words of prompts."""
TEST_SEED = 12_2025


@dataclass(frozen=True, kw_only=True)
class WordProblem:
    """A question in words; ``thought`` works it out, ``answer`` is a number word, ``tag`` the kind of sum."""

    tag: str
    question: str
    thought: str
    answer: str
    key: str
    """The numbers, the things and the sum, whatever the wording: what the split goes by."""


def train_problem(rng: np.random.Generator, longer: bool = False) -> WordProblem:
    """A problem of the training split, the kinds of sums (or of the ``longer`` ones) evenly."""
    return _problem(str(rng.choice(list(LONGER if longer else SUMS))), False, rng)


def test_problems(n: int = 210, longer: bool = False) -> list[WordProblem]:
    """`n` fixed held-out problems, the kinds evenly; training asks no such sum of the same things."""
    tags = list(LONGER if longer else SUMS)
    return [_problem(tags[i % len(tags)], True, np.random.default_rng([TEST_SEED, i])) for i in range(n)]


def _problem(tag: str, held_out: bool, rng: np.random.Generator) -> WordProblem:
    text, formula = (SUMS | LONGER)[tag]
    fields = sorted({name for _, name, _, _ in Formatter().parse(text) if name})
    while True:  # until it is of this part of the split
        n = int(rng.integers(3, 7))
        m, k = (int(x) for x in rng.integers(2, min(n, 5), size=2))  # no total exceeds HIGHEST
        numbers = {"n": n, "m": m, "k": k}
        if tag in LONGER:
            numbers["j"] = int(rng.integers(1, m))
        a, b = (f"{rng.choice(COLORS)} {plural(str(kind))}" for kind in rng.choice(KINDS, 2, replace=False))
        said = {name: NUMBER_WORDS[value] for name, value in numbers.items()} | {"a": a, "b": b}
        key = f"{formula}: {', '.join(said[name] for name in fields)}"
        steps = _steps(formula, numbers)
        if is_held_out(key) == held_out and all(0 < after <= HIGHEST for *_, after in steps):
            word = NUMBER_WORDS
            told = [f"{word[before]} {sign} {word[n]} is {word[after]}." for before, sign, n, after in steps]
            question, answer = text.format(**said), word[steps[-1][-1]]
            return WordProblem(tag=tag, question=question, thought=" ".join(told), answer=answer, key=key)


def _steps(formula: str, numbers: dict[str, int]) -> list[tuple[int, str, int, int]]:
    """A sum step by step: what there was, "plus" or "minus", how many, what there is then."""
    first, *rest = formula.split()
    steps, before = [], numbers[first]
    for sign, name in zip(rest[::2], rest[1::2], strict=True):
        after = before + numbers[name] if sign == "plus" else before - numbers[name]
        steps.append((before, sign, numbers[name], after))
        before = after
    return steps
