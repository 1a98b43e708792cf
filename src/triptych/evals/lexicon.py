"""What a text says about objects, colours, numbers and places: answers and prompts in free wording.

Pure text, for any list of objects. Words that it does not know are passed over. It must not know what is
asked, nor what would be right.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

from triptych.evals.answers import NUMBER_WORDS
from triptych.evals.geneval import MIRRORED, plural
from triptych.evals.prompts import COLORS

_SIDES = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
_FRAMES = ("image", "picture", "photo", "scene", "frame")
_RELATIONS = {word: "above" for word in ("above", "over", "on top of", "atop")}
_RELATIONS |= {word: "below" for word in ("below", "under", "underneath", "beneath")}
_RELATIONS |= {
    f"{side}{more} of": relation
    for (side, relation), more in product(_SIDES.items(), ("", " side", " hand side"))
}
_NOT = ("no", "not", "zero", "without", "neither", "nor")
_STOPS = {",": "clause", "and": "clause", "while": "clause", ".": "sentence", ";": "sentence"}

Token = tuple[str, str]
"""What a word is ("object", "color", "count", "relation", "side", ...), and its one canonical spelling."""


@dataclass(frozen=True)
class Said:
    """Facts that a text states. ``counts`` and ``colors`` by object, under "" those told of none.

    ``places`` are (object, relation) pairs: one that is told to stand left of another, or on the left.
    """

    objects: set[str] = field(default_factory=set)
    counts: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    colors: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    places: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True)
class Lexicon:
    """Words for ``objects`` and ``colors``; ``synonyms`` are pairs of another word and the one it stands for.

    Objects are known in the singular and in the plural, right (knives) or plain (knifes).
    """

    objects: tuple[str, ...]
    colors: tuple[str, ...] = COLORS
    synonyms: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _words(self) -> dict[str, Token]:
        found: dict[str, Token] = {word: ("stop", end) for word, end in _STOPS.items()}
        found |= dict.fromkeys(_NOT, ("not", "")) | dict.fromkeys(("a", "an", "the"), ("article", ""))
        found |= dict.fromkeys(("pair", "couple"), ("count", "2"))
        found |= {word: ("relation", relation) for word, relation in _RELATIONS.items()}
        for side, relation in _SIDES.items():
            found[side] = ("side", relation)
            found |= {
                f"{side}{more} of the {x}": ("side", relation) for more in ("", " side") for x in _FRAMES
            }
        found |= {word: ("count", str(n)) for n, word in enumerate(NUMBER_WORDS) if n}
        found |= {color: ("color", color) for color in self.colors}
        for word, name in [*zip(self.objects, self.objects, strict=True), *self.synonyms]:
            if name in self.colors:
                found[word.lower()] = ("color", name)
            if name in self.objects:
                found |= dict.fromkeys(_forms(word.lower()), ("object", name))
                if word in self.colors:
                    found[word] = ("either", name)
        return found

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        known = sorted((re.escape(word) for word in self._words if word[0].isalnum()), key=len, reverse=True)
        return re.compile(rf"\b(?:{'|'.join(known)})\b|\w+|[,.;]")

    def tokens(self, text: str) -> list[Token]:
        """Every word of a text, the longest known ones first: "hot dog" is no dog."""
        plain = re.sub(r"n't\b", " not", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
        words = self._pattern.findall(" ".join(re.sub(r"[-_]", " ", plain).split()))
        number = re.compile(r"\d{1,4}").fullmatch
        return [self._words.get(w, ("count", str(int(w))) if number(w) else ("word", w)) for w in words]

    def key(self, text: str) -> tuple[str, ...]:
        """The same for texts that tell the same objects, colours, numbers and relation in any order.

        Coarse on purpose, for keeping sets apart: neither which object has which colour matters, nor which
        of the two is told to be where.
        """
        told = [(k, min(v, MIRRORED[v]) if k in ("relation", "side") else v) for k, v in self.tokens(text)]
        filler = {"of", *_FRAMES}  # "a picture of" is "a photo of"
        return tuple(sorted(v for k, v in told if k not in ("article", "stop") and v not in filler))

    def read(self, text: str, about: frozenset[str] = frozenset()) -> Said:
        """What a text says. A word for a colour and an object ("orange") is an object only in ``about``."""
        reader = _Reader()
        known = [token for token in self.tokens(text) if token[0] not in ("word", "article")]
        for i, (kind, value) in enumerate(known):
            rest = [k for k, _ in known[i + 1 :] if k != "color"]
            before_object = bool(rest) and rest[0] in ("object", "either")
            if kind == "either":
                kind = "object" if value in about and not before_object else "color"
            reader.take(kind, value, before_object)
        return reader.said


def _forms(noun: str) -> set[str]:
    return {noun, plural(noun), f"{noun}s", f"{noun}es"}


@dataclass
class _Reader:
    """Walks over tokens: what waits for its object, and which object was named last."""

    said: Said = field(default_factory=Said)
    denied: bool = False
    counts: set[int] = field(default_factory=set)
    colors: set[str] = field(default_factory=set)
    side: str = ""
    relation: tuple[str, str] | None = None
    clause: str = ""
    sentence: str = ""

    def take(self, kind: str, value: str, before_object: bool) -> None:
        """The next token; ``before_object``: an object follows, colours aside."""
        denied, self.denied = self.denied, kind == "not"
        if kind == "stop":
            self.clause, self.sentence = "", self.sentence if value == "clause" else ""
        elif denied or self.denied:
            return
        elif kind == "count":
            (self.counts if before_object else self.said.counts[""]).add(int(value))
        elif kind == "color":
            (self.colors if before_object else self.said.colors[self.sentence]).add(value)
        elif kind == "relation":
            self.relation = (self.sentence, value)
        elif kind == "side" and self.clause:
            self.said.places.add((self.clause, value))
        elif kind == "side":
            self.side = value
        else:
            self._object(value)

    def _object(self, name: str) -> None:
        said = self.said
        said.objects.add(name)
        said.counts[name] |= self.counts
        said.colors[name] |= self.colors
        if self.side:
            said.places.add((name, self.side))
        if self.relation:
            subject, relation = self.relation
            # "left of the cat is a dog" has no subject yet: the cat was named in between
            placed, other = (subject, name) if subject else (name, self.sentence)
            if other:
                said.places.update({(placed, relation), (other, MIRRORED[relation])})
                self.relation = None
        self.counts, self.colors, self.side = set(), set(), ""
        self.clause = self.sentence = name
