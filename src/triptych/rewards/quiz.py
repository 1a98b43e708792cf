"""The answer in a self-quiz as a reward: one point for each thing that the prompt fixes and the quiz asks.

Text against GenEval's metadata. It must not know who answered, nor look at the drawing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from triptych.evals.answers import answer_of
from triptych.evals.geneval import MIRRORED, Metadata
from triptych.evals.lexicon import Lexicon, Said
from triptych.evals.prompts import CLASSES
from triptych.evals.quiz import questions_of
from triptych.rewards.answers import TextReward
from triptych.trajectory import Task

LEXICON = Lexicon(CLASSES)
"""GenEval's classes and colours, no synonyms."""
_UNASKED = {"single_object": {"color"}, "two_object": {"color"}, "counting": {"color"}, "position": {"color"}}
_UNASKED |= {"colors": {"object", "count"}}


def grade(answer: str, metadata: Metadata, lexicon: Lexicon = LEXICON) -> float:
    """The share of the prompt's slots that an answer gets right, in [0, 1] (UniRL, arXiv 2505.23380).

    Slots are: each class of object; each count above one; each colour; where two or more objects are
    coloured, which object has each colour; the relation, told either way round. The tag's question decides
    which of them count (colours of a counting prompt are not asked about); for any other tag all do. Each
    object and each colour named beyond as many as are asked for takes a point away. A number or relation that
    another one contradicts is wrong, and what is denied ("no dog") is not said.
    """
    include = metadata["include"]
    unasked = _UNASKED.get(metadata.get("tag", ""), set())
    names = frozenset(str(entry["class"]) for entry in include)
    said = _knowing(lexicon, names).read(answer_of(answer), names)
    slots, surplus = [], 0
    if "object" in unasked:
        surplus += len(said.objects - names)
    else:
        slots += [name in said.objects for name in names]
        surplus += max(0, len(said.objects) - len(names))
    if "count" not in unasked:
        slots += [_counts(said, e["class"], names) == {e["count"]} for e in include if e["count"] > 1]
    if "color" not in unasked and any("color" in entry for entry in include):
        found, more = _colors(said, include)
        slots, surplus = slots + found, surplus + more
    slots += [_placed(said, include, i) for i, entry in enumerate(include) if "position" in entry]
    if not slots and metadata.get("tag"):  # a "colors" prompt without a colour
        return grade(answer, {**metadata, "tag": ""}, lexicon)
    return max(0, sum(slots) - surplus) / max(1, len(slots))


@cache
def _knowing(lexicon: Lexicon, names: frozenset[str]) -> Lexicon:
    """The lexicon, and a task's own classes where it lacks them."""
    more = tuple(sorted(names - set(lexicon.objects)))
    return Lexicon((*lexicon.objects, *more), lexicon.colors, lexicon.synonyms) if more else lexicon


def _counts(said: Said, name: str, names: frozenset[str]) -> set[int]:
    """What an object's number is told to be; where none is told of it, any that is told of nothing asked."""
    told = [counts for about, counts in said.counts.items() if about not in names]
    return said.counts.get(name) or set().union(*told)


def _colors(said: Said, include: Sequence[Metadata]) -> tuple[list[bool], int]:
    """The slots of colours and of which object has which, and how many colours too many are named."""
    asked = defaultdict(set)
    for entry in include:
        if "color" in entry:
            asked[entry["class"]].add(entry["color"])
    all_asked, told = set().union(*asked.values()), set().union(*said.colors.values())
    slots = [color in told for color in all_asked]
    if len(asked) > 1:
        slots += [said.colors.get(name) == colors for name, colors in asked.items()]
    return slots, max(0, len(told) - len(all_asked))


def _placed(said: Said, include: Sequence[Metadata], index: int) -> bool:
    relation, other = include[index]["position"]
    right = {(include[index]["class"], relation), (include[other]["class"], MIRRORED[relation])}
    return bool(said.places) and said.places <= right


@dataclass(frozen=True)
class QuizReward(TextReward):
    """How much of its prompt an answer gets right, in [0, 1]: see :func:`grade`.

    ``lexicon`` has the words for objects that a task may not name, and the user's synonyms. None for a task
    without a question or ``include``.
    """

    lexicon: Lexicon = LEXICON

    def score_text(self, text: str, task: Task) -> float | None:
        if not task.metadata.get("include") or not questions_of(task):
            return None
        return grade(text, task.metadata, self.lexicon)
