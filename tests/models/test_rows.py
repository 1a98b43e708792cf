"""Rows of ids: padding, reading back, and texts as targets."""

import torch

from triptych.models import rows
from triptych.models.base import Example
from triptych.models.word_tokenizer import word_tokenizer
from triptych.trajectory import Prompt

TOKENIZER = word_tokenizer(["blue", "no", "red", "yes"], [])
CPU = torch.device("cpu")
BLUE, NO, RED, YES, END = 4, 5, 6, 7, 2


def test_rows_end_in_one_column_and_only_their_own_ids_count() -> None:
    ids, valid = rows.padded([[5, 6, 7], [8], []], 0, CPU)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 0, 0]]
    assert valid.tolist() == [[True] * 3, [False, False, True], [False] * 3]
    same, counted = rows.padded([[0, 5], [7, 0]], 0, CPU)
    assert same.tolist() == [[0, 5], [7, 0]] and bool(counted.all()), "an id that is the padding's counts too"


def test_words_have_no_begin_and_no_end() -> None:
    assert rows.words(TOKENIZER, "Red, yes") == [RED, TOKENIZER.unk_token_id, YES]
    assert rows.words(TOKENIZER, "") == []


def test_answers_are_recorded_with_their_end_and_counted_alike() -> None:
    examples = [Example(prompt=Prompt.of("a"), target=text) for text in ("red yes", "no")]
    segment = rows.answers(TOKENIZER, examples, END, CPU)
    assert segment.tokens.tolist() == [[RED, YES, END], [NO, END, 0]]
    assert segment.mask.tolist() == [[True, True, True], [True, True, False]]
    assert segment.context == (Prompt.of("a"),) * 2
    picture = Example(prompt=Prompt.of("a"), target=torch.zeros(2, 2, 3, dtype=torch.uint8))
    assert rows.answer_count(TOKENIZER, [*examples, picture]) == int(segment.mask.sum()) == 5
    assert rows.texts(TOKENIZER, segment) == ["red yes", "no"]


def test_ids_beyond_the_tokenizer_say_nothing() -> None:
    examples = [Example(prompt=Prompt.of("a"), target="red blue yes")]
    segment = rows.answers(TOKENIZER, examples, END, CPU)
    segment.tokens[0, 1] = len(TOKENIZER) + 3
    assert rows.texts(TOKENIZER, segment) == ["red yes"]
