"""Written answers: the form in which a model thinks and answers, and when an answer is that of the reference.

Pure functions of text. This room knows no world: what only a picture can decide is judged elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from triptych.errors import UserError

Rule = Callable[[str, str], bool]
"""Whether an answer is that of the reference: (answer, reference)."""

_MARK = re.compile(r"</?(?:think|answer)>")
_FORM = re.compile(r"\s*<think>(.+?)</think>\s*<answer>(.+?)</answer>\s*", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"(?<!\w)-?(?:\d[\d,]*)?\.?\d+(?:/\d+)?")
_CHOICE = re.compile(r"(?:the )?(?:answer|option|choice)?(?: is)?:?\s*\(?([a-z])(?:[).:,]|$)", re.IGNORECASE)
_LETTER = re.compile(r"\(?[A-Z]\)?\.?")
_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TEENS = ("thir", "four", "fif", "six", "seven", "eigh", "nine")
NUMBER_WORDS = (*_TO_TEN, "eleven", "twelve", *(f"{start}teen" for start in _TEENS), "twenty")
_DIGITS = {word: str(n) for n, word in enumerate(NUMBER_WORDS)}
_ARTICLES = {"a", "an", "the"}


def transcript(thought: str, answer: str) -> str:
    """A thought and its answer in the form that :func:`parts_of` reads (UniRL-Zero)."""
    return f"<think> {thought} </think><answer> {answer} </answer>"


def parts_of(text: str) -> tuple[str, str] | None:
    """(thought, answer) of one think block, one answer block and nothing else; None for any other text.

    Space around the blocks does not matter; a block of nothing but space is none.
    """
    found = _FORM.fullmatch(text)
    if found is None or any(_MARK.search(part) or not part.strip() for part in found.groups()):
        return None
    return found[1].strip(), found[2].strip()


def answer_of(text: str) -> str:
    """What stands in the last answer block, and the whole text where there is none."""
    return ([text, *_ANSWER.findall(text)])[-1].strip()


def same_answer(answer: str, reference: str) -> bool:
    """Whether two short texts say the same; what counts as the same depends on the reference.

    A capital letter ("B", "(B)") asks for that choice: "b", "(B) a ring", "the answer is B." A number asks
    for a text with that number in it and no other: digits or words up to twenty, "1,000", "-2.5", "3/4".
    "yes" or "no" asks for a text that begins with it and does not say the other. Any other reference asks
    for the same words: case, punctuation, articles, plurals and the spelling of numbers do not matter.
    """
    if _LETTER.fullmatch(reference.strip()):
        found = _CHOICE.match(answer.strip())
        return found is not None and found[1].upper() == reference.strip(" ().")
    if (number := _only_number(reference)) is not None:
        return _numbers(answer) == {number}
    said, meant = _words(answer), _words(reference)
    if meant in (["yes"], ["no"]):
        return said[:1] == meant and not {"yes", "no"} <= set(said)
    return said == meant


def mathematics() -> Rule:
    """The rule for mathematics in LaTeX or plain text: equal as expressions, by the package math-verify.

    Raises UserError where that is not installed. Its own time limits need the main thread, where rewards do
    not run, and are off: the limit for a reward's call is then the only one.
    """
    try:
        from math_verify import parse, verify
    except ImportError:
        raise UserError("grading mathematics needs math-verify: pip install 'triptych[math]'") from None

    def same(answer: str, reference: str) -> bool:
        meant, said = (parse(_delimited(text), parsing_timeout=None) for text in (reference, answer))
        return bool(verify(meant, said, timeout_seconds=None))

    return same


def _delimited(text: str) -> str:
    """LaTeX is looked for between its delimiters alone: where a text has none, it is LaTeX as a whole."""
    bare = "\\" in text and not re.search(r"\$|\\boxed|\\\(|\\\[", text)
    return f"${text}$" if bare else text


def _words(text: str) -> list[str]:
    words = [_DIGITS.get(word, word) for word in re.findall(r"\w+", text.lower())]
    return [_singular(word) for word in words if word not in _ARTICLES]


def _singular(word: str) -> str:
    """Without its plural ending: "crosses" -> "cross"; wrong for a few, but the same for both texts."""
    if re.search(r"(?:s|sh|ch|x|z)es$", word):
        return word[:-2]
    return word[:-1] if re.search(r"[^su]s$", word) and len(word) > 3 else word


def _numbers(text: str) -> set[Fraction]:
    """Every number that a text names."""
    digits = re.sub(r"[a-z]+", lambda word: _DIGITS.get(word[0], word[0]), text.lower())
    return {value for found in _NUMBER.findall(digits) if (value := _value(found)) is not None}


def _only_number(text: str) -> Fraction | None:
    word = text.strip().lower()
    return _value(_DIGITS.get(word, word))


def _value(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
