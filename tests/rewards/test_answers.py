"""Rewards for what was written: right, in form, not too long, and unscored where they do not apply."""

import pytest
import torch

from triptych.errors import UserError
from triptych.evals.answers import transcript
from triptych.rewards import AnswerReward, FormatReward, LengthReward
from triptych.rewards.answers import count_words, written
from triptych.trajectory import Sample, Task

PICTURE = torch.zeros(2, 2, 3, dtype=torch.uint8)


def wrote(text: str, answer: str | None = "four", *, drew: bool = False, **more: str) -> Sample:
    """An episode of one text, and more by name, whose completion is the text, or a drawing."""
    pictures = {"image": PICTURE} if drew else {}
    task = Task(id="t", prompt="p", answer=answer)
    return Sample(
        task=task, texts={"text": text, **more}, pictures=pictures, completion=PICTURE if drew else text
    )


RIGHT, WRONG = transcript("two plus two is four.", "four"), transcript("is it four or five.", "five")


@pytest.mark.parametrize(
    ("sample", "segment", "text"),
    [
        (wrote("a"), "", "a"),
        (wrote("a", drew=True), "", "a"),
        (wrote("a", drew=True, verdict="b"), "", None),
        (wrote("a", drew=True, verdict="b"), "verdict", "b"),
        (wrote("a"), "verdict", None),
    ],
)
def test_which_text_is_judged(sample: Sample, segment: str, text: str | None) -> None:
    assert written(sample, segment) == text


def test_answers() -> None:
    samples = [wrote(RIGHT), wrote(WRONG), wrote("4"), wrote("four or five"), wrote(RIGHT, None)]
    assert AnswerReward()(samples) == [1.0, 0.0, 1.0, 0.0, None]
    assert AnswerReward(segment="verdict")([wrote(RIGHT), wrote("5", verdict="4")]) == [None, 1.0]
    longer = AnswerReward(rule=lambda answer, reference: len(answer) > len(reference))
    assert longer([wrote("fourteen"), wrote("4")]) == [1.0, 0.0]


def test_form() -> None:
    samples = [wrote(RIGHT), wrote(WRONG, None, drew=True), wrote("4"), wrote(RIGHT + "!")]
    assert FormatReward()(samples) == [1.0, 1.0, 0.0, 0.0]
    assert FormatReward()([wrote(RIGHT, drew=True, verdict="b")]) == [None], "which of two texts?"


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(0, 0.0), (12, 0.0), (13, -0.125), (16, -0.5), (19, -0.875), (20, -1.0), (21, -1.0), (99, -1.0)],
)
def test_length(length: int, penalty: float) -> None:
    assert LengthReward(longest=20, cache=8)([wrote("word " * length)]) == [penalty]


def test_length_in_a_unit_of_ones_own_and_where_there_is_no_text() -> None:
    letters = LengthReward(longest=4, cache=2, count=len, segment="text")
    nothing = Sample(task=Task(id="t", prompt="p"), texts={}, pictures={}, completion=PICTURE)
    assert letters([wrote("abc"), nothing]) == [-0.5, None]
    for cache in (0, 5):
        with pytest.raises(UserError, match="0 < cache <= longest"):
            LengthReward(longest=4, cache=cache)


def test_words_are_counted_as_a_word_level_tokenizer_does() -> None:
    assert count_words("<think> two, too. </think><answer> 2 </answer>") == 9
