"""Written answers: reading the form, and when two short texts say the same."""

import sys
from types import ModuleType

import pytest

from triptych.errors import UserError
from triptych.evals.answers import NUMBER_WORDS, answer_of, mathematics, parts_of, same_answer, transcript

A, B = "<think> a </think>", "<answer> b </answer>"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (transcript("two plus two is four.", "four"), ("two plus two is four.", "four")),
        (f"\n{A}\n{B}\n", ("a", "b")),
        ("<think>a\n\na</think><answer>b</answer>", ("a\n\na", "b")),
        (f"{B}{A}", None),
        (A, None),
        (B, None),
        (f"so {A}{B}", None),
        (f"{A} so {B}", None),
        (f"{A}{B}.", None),
        (f"{A}{A}{B}", None),
        (f"{A}{B}{B}", None),
        (f"<think> {A} </think>{B}", None),
        (f"{A}<answer> <answer> b </answer>", None),
        (f"<think> </think>{B}", None),
        (f"{A}<answer></answer>", None),
        ("", None),
    ],
)
def test_parts(text: str, parts: tuple[str, str] | None) -> None:
    assert parts_of(text) == parts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"{A}{B}", "b"),
        (f"{B} or <answer> c </answer>", "c"),
        (" four ", "four"),
        ("<answer> cut off", "<answer> cut off"),
    ],
)
def test_answer_of(text: str, answer: str) -> None:
    assert answer_of(text) == answer


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        # numbers
        ("three", "3"),
        ("3", "three"),
        ("There are three circles.", "three"),
        ("3, that is three", "3"),
        ("$1,000.", "1000"),
        ("3.0", "3"),
        (".5", "1/2"),
        ("it is -2.50", "-2.5"),
        ("Fourteen", "14"),
        ("zero", "0"),
        # yes or no
        ("Yes, there is.", "yes"),
        ("NO", "no"),
        # choices
        ("b", "B"),
        ("(B) a ring", "B"),
        ("B. a ring", "(B)"),
        ("The answer is B.", "B"),
        ("A", "A"),
        # short texts
        ("A red Ring!", "red ring"),
        ("2 cross", "two crosses"),
        ("boxes and a dish", "the box and dishes"),
        ("a ring left of a square", "ring left of square"),
    ],
)
def test_the_same(answer: str, reference: str) -> None:
    assert same_answer(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("four", "3"),
        ("three or four", "3"),
        ("2-3", "3"),
        ("13", "3"),
        ("2", "-2"),
        ("", "3"),
        ("1/0", "1"),
        ("yes and no", "yes"),
        ("well, yes", "yes"),
        ("no", "yes"),
        ("a ring", "A"),
        ("C", "B"),
        ("A or B", "B"),
        ("", "B"),
        ("a blue ring", "red ring"),
        ("a ring right of a square", "a square right of a ring"),
        ("two crosses", "three crosses"),
        ("a ring and a square", "a ring"),
        ("", "a ring"),
    ],
)
def test_not_the_same(answer: str, reference: str) -> None:
    assert not same_answer(answer, reference)


def test_number_words_count() -> None:
    words = "zero one ten eleven twelve thirteen fifteen eighteen nineteen twenty"
    assert [NUMBER_WORDS.index(word) for word in words.split()] == [0, 1, 10, 11, 12, 13, 15, 18, 19, 20]
    assert len(NUMBER_WORDS) == 21


def test_mathematics_asks_the_library_without_its_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("math_verify")
    calls: list[tuple[object, ...]] = []
    library.parse = lambda text, parsing_timeout: [text, calls.append((text, parsing_timeout))][:1]  # type: ignore[attr-defined]
    library.verify = lambda gold, said, timeout_seconds: calls.append((gold, said, timeout_seconds)) or True  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "math_verify", library)
    assert mathematics()(r"so $\frac{1}{2}$", r"\frac12") is True
    assert calls == [
        (r"$\frac12$", None),
        (r"so $\frac{1}{2}$", None),
        ([r"$\frac12$"], [r"so $\frac{1}{2}$"], None),
    ]


def test_mathematics_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"pip install 'triptych\[math\]'"):
        mathematics()


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [(r"\frac{2}{4}", "1/2", True), ("$x + 1$", "$1 + x$", True), (r"\boxed{3}", "4", False)],
)
def test_mathematics_by_the_library_itself(answer: str, reference: str, same: bool) -> None:
    pytest.importorskip("math_verify")
    assert mathematics()(answer, reference) is same
