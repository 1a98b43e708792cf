"""Editing: the source and the instruction are the prompt."""

from collections.abc import Callable

import pytest
import torch

from tiny_models import picture, starter_showo, starter_unigen
from tiny_unirl import starter_unirl
from triptych.errors import UserError
from triptych.models.base import UnifiedModel
from triptych.scenarios.base import RolloutSettings, play
from triptych.scenarios.edit import Edit
from triptych.trajectory import Denoising, NoiseKey, Prompt, Sampling, Task, Unmasking

TASKS = [Task(id=f"t{i}", prompt=text, source=picture(i)) for i, text in enumerate(("draw", "a red circle"))]
MASKED = Sampling(guidance=2.0, source_guidance=1.5, unmask=Unmasking(steps=4))
SETTINGS = RolloutSettings(draw=MASKED)
DENOISED = Sampling(guidance=2.0, source_guidance=1.5, denoise=Denoising(steps=3))


@pytest.mark.parametrize(("build", "draw"), [(starter_unigen, MASKED), (starter_unirl, DENOISED)])
def test_a_task_s_source_and_instruction_are_drawn_from(
    build: Callable[[], UnifiedModel], draw: Sampling
) -> None:
    model = build()
    rollout = play(Edit(), model, TASKS, RolloutSettings(draw=draw), group=2, seed=3, step=1)
    prompts = [
        Prompt.of(task.source, task.prompt) for task in TASKS for _ in range(2) if task.source is not None
    ]
    names = [NoiseKey(3, 1, task.id, i, "image") for task in TASKS for i in range(2)]
    expected, found = model.generate_image(prompts, draw, names), rollout.segments["image"]
    for name, values in expected.tensors().items():
        assert torch.equal(found.tensors()[name], values)
    assert all(sample.completion is sample.pictures["image"] for sample in rollout.samples)


def test_what_cannot_be_edited_is_refused() -> None:
    with pytest.raises(UserError, match="showo cannot edit; it can draw, read"):
        play(Edit(), starter_showo(), TASKS, SETTINGS, seed=0, step=0)
    with pytest.raises(UserError, match="task bare has no source: an edit needs the picture to change"):
        play(Edit(), starter_unigen(), [Task(id="bare", prompt="draw")], SETTINGS, seed=0, step=0)
