from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from triptych.models.word_tokenizer import word_tokenizer

SPECIAL = ["<|User|>", "<begin_of_image>"]
WORDS = ["red", "a", "circle", "?", "red", ","]


def made() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS, SPECIAL, spare=2)


def reloaded(folder: Path) -> PreTrainedTokenizerFast:
    made().save_pretrained(folder)
    again: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return again


@pytest.fixture(params=["made", "reloaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerFast:
    return made() if request.param == "made" else reloaded(tmp_path)


def test_ids_are_marks_then_special_then_sorted_words_then_spare_ones(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    expected = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        *SPECIAL,
        ",",
        "?",
        "a",
        "circle",
        "red",
        "<spare0>",
        "<spare1>",
    ]
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == expected
    marks = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert marks == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a red circle", [1, 8, 10, 9]),
        ("A  Red\n\ncircle?", [1, 8, 10, 9, 7]),
        ("a,red,", [1, 8, 6, 10, 6]),
        ("a purple redder", [1, 8, 3, 3]),
        ("", [1]),
        ("<|User|>: a<begin_of_image>", [1, 4, 3, 8, 5]),
        ("red<begin_of_image><begin_of_image>", [1, 10, 5, 5]),
    ],
)
def test_text_becomes_the_expected_ids(tokenizer: PreTrainedTokenizerFast, text: str, ids: list[int]) -> None:
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]


def test_ids_become_text_again_without_marks(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [1, 4, 8, 10, 9, 2, 0, 0]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a red circle"
    assert tokenizer("a red circle ?")["input_ids"][1:] == [8, 10, 9, 7]
    again = tokenizer.decode([8, 10, 9, 7])
    assert tokenizer(again, add_special_tokens=False)["input_ids"] == [8, 10, 9, 7]
