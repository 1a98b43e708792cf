"""Questions about pictures of the world, their canonical answers, and grading of free text.

One kind of question per GenEval tag (UniRL, arXiv 2505.23380). This room knows scenes and wording; answers
follow from what the picture shows, never from the prompt's own wording. It must not know any model or
tokenizer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product

import numpy as np

from triptych.evals.geneval import RELATIONS, Metadata, plural, relative_position
from triptych.evals.prompts import answer_to, phrase
from triptych.shapes.prompts import NUMBERS, QUESTIONS, TAGS, split, train_prompt
from triptych.shapes.scenes import COLORS, KINDS, Scene, Shape, sample_scene

TEST_SEED = 7_2025  # scenes of the test questions
THINK = "think first."
"""What a question about a picture ends with where a thought is wanted: without it, the answer alone is."""
WORDS = ("think", "first", ".", "from", "to", "top", "bottom", "i", "see")
"""What thoughts about pictures say beyond the words of prompts."""
_SINGULAR = {plural(kind): kind for kind in KINDS}
_COUNTS = {"a": 1, "an": 1} | {word: n for n, word in enumerate(NUMBERS)} | {str(n): n for n in range(10)}
_RELATION_WORDS = {relation.split()[0]: relation for relation in RELATIONS}
_FILLER = {"the", "is", "are", "of", "to", "on", "in", "it", "its", "there", "this"}
_FILLER |= {"image", "photo", "picture", "object", "objects", "item", "items", "main"}
# What a right answer must state, beyond which whatever it states must be true as well.
_REQUIRED = {
    "single_object": ("kind",),
    "two_object": ("kind",),
    "counting": ("kind", "count"),
    "colors": ("color",),
    "position": ("kind", "relation"),
    "color_attr": ("kind", "color"),
}


@dataclass(frozen=True, kw_only=True)
class _Group:
    """All shapes of one kind, or one noun phrase of an answer: None where the phrase does not say."""

    kind: str | None
    count: int | None
    color: str | None
    many: bool = False


def question_for(metadata: Metadata, scene: Scene) -> tuple[str, str]:
    """The tag's question and the canonical answer that the scene gives.

    Objects of two_object and color_attr come from left to right by their centres (from top to bottom where
    these are equal). In position the kinds come in the order of the relation itself: the left or upper one
    first, so that only "left of" and "above" occur; where both would be true, the longer offset decides
    (horizontal where equal). Raises ValueError where the scene shows fewer kinds than the question is about.
    """
    tag = metadata["tag"]
    if tag not in QUESTIONS:
        raise ValueError(f"no question for tag {tag!r}: the tags are {TAGS}")
    groups = _groups(scene)
    if tag in ("two_object", "position", "color_attr") and len(groups) != 2:
        raise ValueError(f"{tag} asks about two kinds of objects, the scene shows {len(groups)}")
    if tag == "position":
        return QUESTIONS[tag], _told_relation(groups)
    shown = [{"class": g[0].kind, "count": len(g), "color": g[0].color} for g in groups]
    return QUESTIONS[tag], answer_to({"tag": tag, "include": shown})


def thought_for(metadata: Metadata, scene: Scene) -> str:
    """What leads to the tag's answer: every shape with its colour, in the order that the answer needs.

    That is from left to right, and from top to bottom where the answer is that something is "above".
    """
    _, answer = question_for(metadata, scene)
    down = "above" in answer.split()
    shapes = sorted(scene.shapes, key=lambda shape: _centre([shape])[:: -1 if down else 1])
    way = "from top to bottom" if down else "from left to right"
    return f"{way} i see {' and '.join(phrase(shape.kind, 1, shape.color) for shape in shapes)}."


def answer_matches(answer: str, metadata: Metadata, scene: Scene) -> bool:
    """Whether free text answers the tag's question about the scene.

    Case, punctuation, articles, plurals and digits do not matter, nor does the order of two objects or which
    way a relation is told, as long as GenEval's rule holds between every pair of shapes. The answer must
    state what the tag asks for, and whatever else it states about count or colour must be true. Words that
    are neither the world's nor filler make it wrong, as does listing more than the scene shows. Of `metadata`
    only the tag is read.
    """
    parsed = _parse(answer)
    if parsed is None:
        return False
    said, relation = parsed
    tag = metadata["tag"]
    truth = {shapes[0].kind: shapes for shapes in _groups(scene)}
    if tag == "colors":
        found = len(said) == 1 and _states(tag, said[0], scene.shapes)
        return found and said[0].kind in (None, scene.shapes[0].kind)
    kinds = [group.kind for group in said]
    if Counter(kinds) != Counter(truth.keys()) or (relation is not None) != (tag == "position"):
        return False
    if not all(_states(tag, group, truth[group.kind or ""]) for group in said):
        return False
    return relation is None or _related(truth[kinds[0] or ""], truth[kinds[1] or ""], relation)


def train_question(rng: np.random.Generator) -> tuple[Scene, str, str, str]:
    """A scene of a training prompt with its (question, answer, tag)."""
    metadata = train_prompt(rng)
    scene = sample_scene(metadata, rng)
    return scene, *question_for(metadata, scene), metadata["tag"]


def test_questions(n: int = 300) -> list[tuple[Scene, str, str, str]]:
    """`n` fixed questions on scenes of held-out prompts, tags evenly: (scene, question, answer, tag).

    Tags with few held-out prompts use each several times, with a new scene every time.
    """
    questions = []
    for index in range(n):
        tag = TAGS[index % len(TAGS)]
        prompts = split(tag)[1]
        metadata = prompts[(index // len(TAGS)) % len(prompts)]
        scene = sample_scene(metadata, np.random.default_rng([TEST_SEED, index]))
        questions.append((scene, *question_for(metadata, scene), tag))
    return questions


def _groups(scene: Scene) -> list[tuple[Shape, ...]]:
    """The scene's shapes by kind, kinds from left to right by their mean centre, then top to bottom."""
    by_kind = sorted(scene.shapes, key=lambda shape: shape.kind)
    groups = [tuple(shapes) for _, shapes in groupby(by_kind, key=lambda shape: shape.kind)]
    return sorted(groups, key=_centre)


def _centre(shapes: Sequence[Shape]) -> tuple[float, float]:
    x = sum(shape.x + shape.size / 2 for shape in shapes) / len(shapes)
    y = sum(shape.y + shape.size / 2 for shape in shapes) / len(shapes)
    return x, y


def _told_relation(groups: list[tuple[Shape, ...]]) -> str:
    (first, second), (x, y), (u, v) = groups, _centre(groups[0]), _centre(groups[1])
    upper, lower = (first, second) if y <= v else (second, first)
    told = [(abs(x - u), first, "left of", second), (abs(y - v), upper, "above", lower)]
    held = [row for row in told if _related(row[1], row[3], row[2])]
    if not held:
        raise ValueError("the two kinds of objects stand in no relation that holds for all of them")
    _, one, relation, other = max(held, key=lambda row: row[0])
    return f"{phrase(one[0].kind, len(one))} {relation} {phrase(other[0].kind, len(other))}"


def _related(shapes: Sequence[Shape], others: Sequence[Shape], relation: str) -> bool:
    return all(relation in relative_position(a.box, b.box) for a, b in product(shapes, others))


def _states(tag: str, said: _Group, shapes: Sequence[Shape]) -> bool:
    """Whether a phrase says what the tag asks for and nothing false."""
    required = _REQUIRED[tag]
    counted = "count" in required or (tag == "position" and len(shapes) > 1)
    if ("color" in required and said.color is None) or (counted and said.count is None):
        return False
    if said.many and len(shapes) == 1:
        return False
    true_color = said.color is None or all(shape.color == said.color for shape in shapes)
    return true_color and said.count in (None, len(shapes))


def _parse(answer: str) -> tuple[list[_Group], str | None] | None:
    """The noun phrases and the relation of an answer; None where it is not made of the world's words."""
    words = [word for word in re.findall(r"[a-z0-9]+", answer.lower()) if word not in _FILLER]
    joints = [i for i, word in enumerate(words) if word == "and" or word in _RELATION_WORDS]
    starts, stops = [0, *(i + 1 for i in joints)], [*joints, len(words)]
    phrases = [_parse_phrase(words[a:b]) for a, b in zip(starts, stops, strict=True)]
    relations = [_RELATION_WORDS[words[i]] for i in joints if words[i] != "and"]
    groups = [group for group in phrases if group is not None]
    if len(groups) < len(phrases) or len(joints) > 1:
        return None
    return groups, relations[0] if relations else None


def _parse_phrase(words: list[str]) -> _Group | None:
    """[count] [colour] [kind], at least one of them."""
    rest = list(words)
    count = _COUNTS[rest.pop(0)] if rest and rest[0] in _COUNTS else None
    color = rest.pop(0) if rest and rest[0] in COLORS else None
    noun = rest.pop(0) if rest else None
    kind = _SINGULAR.get(noun, noun) if noun else None
    if rest or not words or (kind is not None and kind not in KINDS):
        return None
    return _Group(kind=kind, count=count, color=color, many=noun in _SINGULAR)
