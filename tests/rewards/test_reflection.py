"""Reflection: a verdict is judged against the judge's, and only a wrong drawing is worth changing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from triptych.evals.geneval import Verdict
from triptych.rewards import ImprovementReward, VerdictReward
from triptych.rewards.reflection import said_right
from triptych.scenarios.reflection import DRAWINGS, VERDICTS
from triptych.trajectory import Picture, Sample, Task


def judge(picture: Picture, metadata: Mapping[str, Any]) -> Verdict:
    """The first pixel is the score in percent; right from the limit that the metadata names."""
    score = int(picture[0, 0, 0]) / 100
    return Verdict(correct=score >= metadata["limit"], score=score, reason="")


def sample(
    first: int | None, second: int | None = None, verdict: str | None = None, limit: float = 1.0
) -> Sample:
    scores = {"first": first, "second": second}
    pictures = {
        name: torch.full((1, 1, 3), s, dtype=torch.uint8) for name, s in scores.items() if s is not None
    }
    task = Task(id="t", prompt="p", metadata={"include": [{}], "limit": limit})
    texts = {} if verdict is None else {"verdict": verdict}
    completion = ["", *pictures.values()][-1]
    return Sample(task=task, texts=texts, pictures=pictures, completion=completion)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("right", True),
        ("Right.", True),
        ("wrong: make the square red", False),
        ("<think> is it right </think><answer> wrong: add a ring </answer>", False),
        ("put the ring right of the square", None),
        ("rightly", None),
        ("", None),
    ],
)
def test_a_verdict_comes_first(text: str, right: bool | None) -> None:
    assert said_right(text) is right


@pytest.mark.parametrize(
    ("score", "verdict", "reward"),
    [
        (100, "right", 1.0),
        (100, "wrong: add a ring", 0.0),
        (50, "wrong: add a ring", 1.0),
        (50, "right", 0.0),
        (50, "a ring", 0.0),
        (100, "", 0.0),
        (100, None, None),
        (None, "right", None),
    ],
)
def test_verdicts(score: int | None, verdict: str | None, reward: float | None) -> None:
    assert VerdictReward(judge)([sample(score, verdict=verdict)]) == [reward]


def test_who_calls_all_alike_gets_a_half_where_both_kinds_count_alike() -> None:
    drawn, reward = (100, 50, 100, 100), VerdictReward(judge, balanced=True)
    for said in ("right", "wrong: add a ring"):
        found = reward([*(sample(score, verdict=said) for score in drawn), sample(100)])
        assert found[-1] is None and sum(found[:-1]) == pytest.approx(4 / 2)  # type: ignore[arg-type]
    right = reward([sample(score, verdict="right" if score == 100 else "wrong") for score in drawn])
    assert right == pytest.approx([2 / 3, 2.0, 2 / 3, 2 / 3]), "1 on average, the rare kind more"
    assert reward([sample(50, verdict="right")]) == [0.0] and reward([]) == []


def test_the_verdicts_of_all_turns_are_worth_their_mean() -> None:
    found = sample(50, 100, verdict="wrong: add a ring")
    for text, reward in (("right", 1.0), ("wrong", 0.5)):
        both = replace(found, texts={**found.texts, "second_verdict": text})
        assert VerdictReward(judge)([both]) == [reward]
    assert VerdictReward.pairs == tuple(zip(DRAWINGS, VERDICTS, strict=False)), "those of the scenario"


@pytest.mark.parametrize(
    ("first", "second", "limit", "reward"),
    [
        (50, 100, 1.0, 0.5),
        (50, 50, 1.0, 0.0),
        (50, 25, 1.0, -0.25),
        (100, 100, 1.0, 0.0),
        (100, 50, 1.0, -0.5),
        (50, 100, 0.5, 0.0),  # right already: that it could score more is no reason to change it
        (50, None, 1.0, 0.0),  # left as it is
        (None, 50, 1.0, None),
        (None, None, 1.0, None),
    ],
)
def test_improvement(first: int | None, second: int | None, limit: float, reward: float | None) -> None:
    assert ImprovementReward(judge)([sample(first, second, limit=limit)]) == [reward]


def test_what_has_no_include_is_unscored() -> None:
    plain = Sample(
        task=Task(id="t", prompt="p"),
        texts={"verdict": "right"},
        pictures=sample(1, 2).pictures,
        completion="right",
    )
    assert VerdictReward(judge)([plain]) == ImprovementReward(judge)([plain]) == [None]
