"""Reasoning: one text a task, of the question, or of the picture and the question."""

import pytest

from tiny_models import picture, starter_janus
from triptych.errors import UserError
from triptych.scenarios.base import RolloutSettings, Scenario, play
from triptych.scenarios.reasoning import MultimodalReasoning, TextReasoning
from triptych.trajectory import Prompt, Sampling, Task

SETTINGS = RolloutSettings(write=Sampling(max_tokens=4))
BARE = Task(id="bare", prompt="is this red ?")
SHOWN = Task(id="shown", prompt="is this red ?", source=picture(1))


@pytest.mark.parametrize(
    ("scenario", "task", "prompt"),
    [
        (TextReasoning(), BARE, Prompt.of("is this red ?")),
        (MultimodalReasoning(), SHOWN, Prompt.of(picture(1), "is this red ?")),
    ],
)
def test_the_answer_to_the_question_is_the_completion(scenario: Scenario, task: Task, prompt: Prompt) -> None:
    rollout = play(scenario, starter_janus(), [task], SETTINGS, group=3, seed=1, step=1)
    segment = rollout.segments["answer"]
    assert list(rollout.segments) == ["answer"] and len(segment) == 3
    for context, sample in zip(segment.context, rollout.samples, strict=True):
        assert context.text == prompt.text and len(context.pictures) == len(prompt.pictures)
        assert all(a.equal(b) for a, b in zip(context.pictures, prompt.pictures, strict=True))
        assert sample.completion == sample.texts["answer"] and not sample.pictures


def test_a_question_about_a_picture_needs_one() -> None:
    with pytest.raises(UserError, match="task bare has no source: a question about a picture needs the pict"):
        play(MultimodalReasoning(), starter_janus(), [BARE], SETTINGS, seed=0, step=0)
