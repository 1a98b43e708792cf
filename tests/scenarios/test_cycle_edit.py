"""Cycle editing: the way back starts from the edited picture as it was recorded."""

import pytest
import torch

from tiny_models import picture, starter_janus
from tiny_runs import learner
from tiny_unirl import starter_unirl
from triptych.errors import UserError
from triptych.models.janus import JanusModel
from triptych.scenarios.base import RolloutSettings, play
from triptych.scenarios.cycle_edit import CycleEdit
from triptych.train.tasks import TaskStream
from triptych.trajectory import Denoising, NoiseKey, Prompt, Sampling, Task

DRAW = Sampling(denoise=Denoising(steps=3))
TASKS = [
    Task(id=f"t{i}", prompt="draw a circle", source=picture(i), columns={"reverse": "draw no circle"})
    for i in range(2)
]


def test_both_legs_are_drawn_each_from_what_came_before() -> None:
    model = starter_unirl()
    rollout = play(CycleEdit(), model, TASKS, RolloutSettings(draw=DRAW), group=2, seed=3, step=1)
    prompts = [Prompt.of(s.pictures["edit"], "draw no circle") for s in rollout.samples]
    keys = [NoiseKey(3, 1, task.id, i, "back") for task in TASKS for i in range(2)]
    expected = model.generate_image(prompts, DRAW, keys)
    assert torch.equal(rollout.segments["back"].tensors()["latents"], expected.latents)
    edits = rollout.segments["edit"].context
    assert [p.text for p in edits] == ["draw a circle"] * 4
    assert all(torch.equal(p.pictures[0], picture(i // 2)) for i, p in enumerate(edits))
    assert all(s.completion is s.pictures["edit"] for s in rollout.samples)


def test_one_advantage_credits_both_legs() -> None:
    made = learner(
        starter_unirl(),
        scenario=CycleEdit(),
        functions={
            "edited": lambda samples: [float(s.pictures["edit"][0, 0, 0]) for s in samples],
            "back": lambda samples: [float(s.pictures["back"][0, 0, 0]) for s in samples],
        },
        rollout=RolloutSettings(draw=DRAW),
        prompts=2,
    )
    made.stream = TaskStream(TASKS, 0)
    found = made.collect(1).advantages
    assert torch.equal(found["edit"].values, found["back"].values) and found["edit"].values.any()


def test_what_cannot_be_done_is_refused_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: object) -> None:
        raise AssertionError("something was drawn")

    janus = starter_janus()
    monkeypatch.setattr(JanusModel, "generate_image", drawn)
    with pytest.raises(UserError, match="janus cannot edit; it can draw, read"):
        play(CycleEdit(), janus, TASKS, RolloutSettings(), seed=0, step=0)
    bare = Task(id="bare", prompt="draw", source=picture(0))
    model = starter_unirl()
    monkeypatch.setattr(type(model), "generate_image", drawn)
    with pytest.raises(UserError, match="task bare has no column reverse"):
        play(CycleEdit(), model, [bare], RolloutSettings(), seed=0, step=0)
