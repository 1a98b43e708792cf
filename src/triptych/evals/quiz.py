"""Prompts with a question about their drawing and its answer: how a quiz is made, written and read.

GenEval's six tags over any list of objects, colours and relations, apart from any given prompts (UniRL, arXiv
2505.23380). It must not know how an answer is graded.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.evals.geneval import RELATIONS
from triptych.evals.lexicon import Lexicon
from triptych.evals.prompts import QUESTIONS, TAGS, answer_to, metadata_of
from triptych.trajectory import Task

ATTEMPTS = 1000  # draws in a row that bring nothing new before a tag counts as used up
MAX_COUNT = 4  # as in GenEval
_UNCOLORED = "person"  # GenEval colours no people


def questions_of(task: Task) -> tuple[str, ...]:
    """The question in a task's metadata or columns: one text, or a list of wordings; () if there is none."""
    found = task.metadata.get("question", task.columns.get("question")) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def make_quiz(
    n: int,
    lexicon: Lexicon,
    *,
    excluded: Iterable[str] = (),
    seed: int = 0,
    variants: bool = False,
) -> list[dict[str, Any]]:
    """``n`` rows of tag, include, exclude, prompt, question, answer: tags evenly as long as each has more.

    A pure function of its arguments. No row tells the objects, colours, number and relation of another one
    or of an ``excluded`` prompt, in whatever order (:meth:`Lexicon.key`). The question is the tag's first
    wording, or with ``variants`` any. UserError where there are fewer than ``n``.
    """
    if len(lexicon.objects) < 2 or len(lexicon.colors) < 2:
        raise UserError("a quiz needs at least two objects and two colours")
    rng = random.Random(seed)
    taken = {lexicon.key(prompt) for prompt in excluded}
    rows: list[dict[str, Any]] = []
    tags = list(TAGS)
    while len(rows) < n and tags:
        for tag in tuple(tags):
            row = _fresh(tag, lexicon, taken, rng)
            if row is None:
                tags.remove(tag)
                continue
            wordings = QUESTIONS[tag] if variants else QUESTIONS[tag][:1]
            rows.append({**row, "question": rng.choice(wordings), "answer": answer_to(row)})
    if len(rows) < n:
        raise UserError(f"{n} prompts were asked for, {len(rows)} can be made: lower n or give more objects")
    return rows[:n]


def _fresh(
    tag: str, lexicon: Lexicon, taken: set[tuple[str, ...]], rng: random.Random
) -> dict[str, Any] | None:
    """A prompt that is not ``taken``, which then has it; None where there seems to be none left."""
    for _ in range(ATTEMPTS):
        include = _include(tag, lexicon, rng)
        if any(e["class"] in (_UNCOLORED, *lexicon.colors) and "color" in e for e in include):
            continue  # nor is there an orange orange
        metadata = metadata_of(tag, include)
        key = lexicon.key(metadata["prompt"])
        if key not in taken:
            taken.add(key)
            return metadata
    return None


def _include(tag: str, lexicon: Lexicon, rng: random.Random) -> list[dict[str, Any]]:
    names = rng.sample(lexicon.objects, 2 if tag in ("two_object", "position", "color_attr") else 1)
    count = rng.randint(2, MAX_COUNT) if tag == "counting" else 1
    entries: list[dict[str, Any]] = [{"class": name, "count": count} for name in names]
    if tag == "position":
        entries[1]["position"] = [rng.choice(RELATIONS), 0]
    if tag in ("colors", "color_attr"):
        for entry, color in zip(entries, rng.sample(lexicon.colors, len(entries)), strict=True):
            entry["color"] = color
    return entries


def read_objects(path: Path) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Classes and synonyms from a text file, a line each: ``couch: sofa, settee`` or just ``couch``."""
    objects, synonyms = [], []
    for line in _lines(path):
        name, _, others = (part.strip() for part in line.partition(":"))
        objects.append(name)
        synonyms += [(other.strip(), name) for other in others.split(",") if other.strip()]
    return tuple(dict.fromkeys(objects)), tuple(synonyms)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: field ``prompt`` of JSON lines, such as GenEval's metadata, or plain lines."""
    return [_prompt(line, f"{path}, line {i}") for i, line in enumerate(_lines(path), 1)]


def _prompt(line: str, where: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        prompt = json.loads(line).get("prompt")
    except ValueError as error:
        raise UserError(f"{where}: expected a JSON object or a plain prompt, found {error}") from None
    if not isinstance(prompt, str):
        raise UserError(f"{where}: field 'prompt': expected a text, found {prompt!r}")
    return prompt


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
