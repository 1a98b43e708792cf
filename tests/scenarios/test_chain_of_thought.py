"""Thinking first: the drawing follows the whole transcript, and one advantage or two credit it."""

import pytest
import torch

from tiny_models import starter_janus
from tiny_runs import learner, redness
from tiny_unirl import starter_unirl
from triptych.scenarios.base import RolloutSettings, play
from triptych.scenarios.chain_of_thought import ChainOfThought
from triptych.trajectory import Denoising, NoiseKey, Prompt, Sample, Sampling, Task

DENOISED = RolloutSettings(draw=Sampling(denoise=Denoising(steps=3)), write=Sampling(max_tokens=4))
TASKS = [Task(id="a", prompt="a red circle"), Task(id="b", prompt="draw two blue square")]


def test_the_drawing_is_of_the_prompt_and_the_whole_text() -> None:
    for model, settings in (
        (starter_unirl(), DENOISED),
        (starter_janus(), RolloutSettings(write=DENOISED.write)),
    ):
        rollout = play(ChainOfThought(), model, TASKS, settings, group=2, seed=3, step=1)
        assert list(rollout.segments) == ["thought", "image"]
        prompts = [Prompt.of(s.task.prompt).replied(s.texts["thought"]) for s in rollout.samples]
        assert list(rollout.segments["image"].context) == prompts
        keys = [NoiseKey(3, 1, task.id, i, "image") for task in TASKS for i in range(2)]
        expected = model.generate_image(prompts, settings.draw, keys)
        assert torch.equal(rollout.segments["image"].logp, expected.logp)
        assert all(s.completion is s.pictures["image"] for s in rollout.samples)


def words(samples: list[Sample]) -> list[float]:
    return [float(len(s.texts["thought"].split())) for s in samples]


@pytest.mark.parametrize("apart", [False, True])
def test_one_advantage_for_both_or_one_for_each(apart: bool) -> None:
    credit = {"thought": ("words",), "image": ("red",)} if apart else None
    functions = {"words": words, "red": redness}
    made = learner(
        starter_unirl(),
        scenario=ChainOfThought(credit),
        functions=functions,  # type: ignore[arg-type]
        rollout=DENOISED,
    )
    found = made.collect(1)
    thought, image = (found.advantages[name].values for name in ("thought", "image"))
    assert torch.equal(thought, image) != apart and thought.any() and image.any()
