"""Models that look, that guess and that say nothing, asked about their own drawings."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from triptych.evals.drawing import self_quiz
from triptych.evals.prompts import QUESTIONS, metadata_of
from triptych.rewards.quiz import grade
from triptych.scenarios.base import RolloutSettings
from triptych.trajectory import Picture, Prompt, Task

ANIMALS = ("dog", "cat", "cow", "horse")


def drawing(animal: str) -> Picture:
    return torch.full((2, 2, 3), ANIMALS.index(animal), dtype=torch.uint8)


class Model:
    """Answers by a function of the picture; acts in batches as a real one does."""

    def __init__(self, answer: Callable[[Picture], str]) -> None:
        self.answer = answer

    def generate_text(self, prompts: Sequence[Prompt], *_: Any) -> Sequence[Prompt]:
        assert len(prompts) <= 3
        return prompts

    def texts(self, prompts: Sequence[Prompt]) -> list[str]:
        return [self.answer(prompt.pictures[0]) for prompt in prompts]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # the model draws 3 of 4 cats, cows and horses right, else a dog, and dogs always; one of those false
        # dogs is shown where a dog was asked for
        (lambda p: ANIMALS[int(p[0, 0, 0])], {"self_reward": 13, "judge": 13, "shuffled_answers": 1}),
        (lambda p: "a dog", {"self_reward": 4, "judge": 13, "shuffled_answers": 4}),
        (lambda p: "nothing", {"self_reward": 0, "judge": 13, "shuffled_answers": 0}),
    ],
)
def test_a_model_that_looks_and_one_that_guesses(
    answer: Callable[[Picture], str], expected: dict[str, int]
) -> None:
    wanted = [animal for animal in ANIMALS for _ in range(4)]
    drawn = [name if i % 4 else "dog" for i, name in enumerate(wanted)]
    question = {"question": QUESTIONS["single_object"][0]}
    tasks = [
        Task(
            id=f"{i}",
            prompt=name,
            metadata=metadata_of("single_object", [{"class": name, "count": 1}]),
            answer=name,
            columns=question,
        )
        for i, name in enumerate(wanted)
    ]
    found = self_quiz(
        Model(answer),  # type: ignore[arg-type]
        tasks,
        [drawing(name) for name in drawn],
        [a == b for a, b in zip(wanted, drawn, strict=True)],
        lambda task, picture, text: grade(text, task.metadata) == 1,
        RolloutSettings(batch=3),
    )
    assert {name: found[name]["score"] * 16 for name in expected} == expected
    assert found["judge"]["n"] == 16
