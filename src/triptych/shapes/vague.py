"""Vague prompts: a scene told by hints, so that what to draw follows only from a short thought.

They are the world's own prompts in other words, so they inherit its split and its metadata. This room knows
hints. It must not know pictures or how drawings are judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triptych.evals.geneval import Metadata, plural
from triptych.evals.prompts import photo_of, phrase
from triptych.shapes.prompts import NUMBERS, test_prompts, train_prompt

COUNT_HINTS = {
    2: (("a face", "eyes"), ("a bicycle", "wheels")),
    3: (("a triangle", "corners"), ("a triangle", "sides")),
    4: (("a square", "corners"), ("a car", "wheels")),
}
COLOR_HINTS = {
    "red": ("blood", "a strawberry"),
    "orange": ("a carrot", "a pumpkin"),
    "yellow": ("a lemon", "the sun"),
    "green": ("grass", "a leaf"),
    "blue": ("the sky", "the sea"),
    "purple": ("a plum", "lavender"),
    "black": ("coal", "the night"),
}
_HINTS = [" ".join(hint) for hints in COUNT_HINTS.values() for hint in hints]
_HINTS += [hint for hints in COLOR_HINTS.values() for hint in hints]
WORDS = ("as", "has", "the", ",", ".", *sorted(set(" ".join(_HINTS).split())))
"""What vague prompts and their thoughts say, beyond (and in part among) the words of prompts."""
TEST_SEED = 1_2026


@dataclass(frozen=True, kw_only=True)
class VaguePrompt:
    """``prompt`` is vague, ``metadata`` (GenEval's) is of the scene it means, with the exact prompt."""

    prompt: str
    thought: str
    metadata: Metadata


def train_vague(rng: np.random.Generator) -> VaguePrompt:
    """A training prompt that names a colour or a count, made vague."""
    while True:
        metadata = train_prompt(rng)
        if _hideable(metadata):
            return _vague(metadata, rng)


def test_vague(n: int = 200) -> list[VaguePrompt]:
    """`n` fixed, distinct held-out prompts, made vague. Raises ValueError if `n` exceeds what there is."""
    held_out = [metadata for metadata in test_prompts() if _hideable(metadata)]
    if n > len(held_out):
        raise ValueError(f"{n} vague prompts asked for, {len(held_out)} are held out")
    order = np.random.default_rng(TEST_SEED).permutation(len(held_out))[:n]
    return [_vague(held_out[i], np.random.default_rng([TEST_SEED, i])) for i in order]


def _hideable(metadata: Metadata) -> bool:
    return any("color" in entry or entry["count"] > 1 for entry in metadata["include"])


def _vague(metadata: Metadata, rng: np.random.Generator) -> VaguePrompt:
    hidden = [_hidden(entry, rng) for entry in metadata["include"]]
    prompt = photo_of(metadata["include"], [hint for hint, _ in hidden])
    told = sorted(hidden, key=lambda pair: prompt.index(pair[0]))  # thought in the prompt's order
    thought = " ".join(fact for _, facts in told for fact in facts)
    return VaguePrompt(prompt=prompt, thought=thought, metadata=metadata)


def _hidden(entry: Metadata, rng: np.random.Generator) -> tuple[str, list[str]]:
    """An entry's phrase with hints for count and colour, and the facts that resolve them."""
    text, facts = phrase(entry["class"]), []
    if entry["count"] > 1:
        hints = COUNT_HINTS[entry["count"]]
        owner, parts = hints[rng.integers(len(hints))]
        text = f"as many {plural(entry['class'])} as {owner} has {parts}"
        facts.append(f"{owner} has {NUMBERS[entry['count']]} {parts}.")
    if "color" in entry:
        names = COLOR_HINTS[entry["color"]]
        name = names[rng.integers(len(names))]
        text += f"{',' if facts else ''} in the color of {name}"
        facts.append(f"{name} is {entry['color']}.")
    return text, facts
