"""GenEval's six kinds of prompts in words: what is drawn, how it is told, what is asked about the drawing.

Text and GenEval's jsonl schema alone, for any list of objects and colours; the embedded world words its own
with the same functions. It must not know pictures, models, nor how an answer is graded.
"""

from collections.abc import Sequence
from typing import Any

from triptych.evals.answers import NUMBER_WORDS
from triptych.evals.geneval import MIRRORED, Metadata, plural

_NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
    backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard,
    cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
    hair drier, toothbrush"""
CLASSES = tuple(name.strip() for name in _NAMES.split(","))
"""The 80 classes of COCO, by GenEval's names."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's."""
QUESTIONS: dict[str, tuple[str, ...]] = {
    "single_object": (
        "What is the main item in this image?",
        "What object does this picture show?",
        "Name the main object in the image.",
    ),
    "two_object": (
        "What are two items in this image?",
        "Which two objects does this picture show?",
        "Name the two objects in the image.",
    ),
    "counting": (
        "How many items in this image?",
        "How many objects are there, and what are they?",
        "Count the objects in the picture and name them.",
    ),
    "colors": (
        "What is the color of the object?",
        "Which color does the object have?",
        "Name the color of the main object.",
    ),
    "position": (
        "What are the objects and where is each of them?",
        "Which two objects are there, and how are they placed?",
        "Name both objects and say where one is relative to the other.",
    ),
    "color_attr": (
        "What are the two objects and their colors?",
        "Which two objects are there, and which color has each?",
        "Name both objects, each with its color.",
    ),
}
"""What each tag asks about a drawing (UniRL, arXiv 2505.23380), its first wording first."""
TAGS = tuple(QUESTIONS)


def phrase(kind: str, count: int = 1, color: str | None = None) -> str:
    """A noun phrase: "a square", "an orange ring", "three red crosses"."""
    noun = plural(kind) if count > 1 else kind
    told = f"{color} {noun}" if color else noun
    if count > 1:
        return f"{NUMBER_WORDS[count]} {told}"
    return f"an {told}" if told[0] in "aeiou" else f"a {told}"


def photo_of(include: Sequence[Metadata], phrases: Sequence[str]) -> str:
    """The prompt for include entries, each told by its own phrase."""
    text = " and ".join(phrases)
    if "position" in include[-1]:  # the placed object is last in the list and first in the text
        text = f"{phrases[1]} {include[1]['position'][0]} {phrases[0]}"
    return f"a photo of {text}"


def metadata_of(tag: str, include: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds the wording, and an exclude clause per counted class: counts are exact, as in GenEval."""
    exclude = [{"class": e["class"], "count": e["count"] + 1} for e in include if e["count"] > 1]
    phrases = [phrase(e["class"], e["count"], e.get("color")) for e in include]
    clauses = {"exclude": exclude} if exclude else {}
    return {"tag": tag, "include": include, **clauses, "prompt": photo_of(include, phrases)}


def told_once(placed: str, relation: str, other: str) -> str:
    """A relation told from the left or upper of two things: "b above a" for "a below b" too."""
    if relation in ("right of", "below"):
        placed, relation, other = other, MIRRORED[relation], placed
    return f"{placed} {relation} {other}"


def answer_to(metadata: Metadata) -> str:
    """The answer to the tag's question that follows from the prompt, in the form of the embedded world's.

    In position the left or upper object comes first, however the prompt tells it. Raises KeyError for a tag
    that is none of :data:`TAGS`.
    """
    include = metadata["include"]
    told = [phrase(e["class"], e["count"]) for e in include]
    if metadata["tag"] == "position":
        relation, other = include[-1]["position"]
        return told_once(told[-1], relation, told[other])
    colored = [phrase(e["class"], e["count"], e.get("color")) for e in include]
    answers = {
        "single_object": include[0]["class"],
        "two_object": " and ".join(told),
        "counting": told[0],
        "colors": include[0].get("color"),
        "color_attr": " and ".join(colored),
    }
    return str(answers[metadata["tag"]])
