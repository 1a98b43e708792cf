"""Text to image, and image to image where a task has a source: the prompt is drawn, the drawing is judged."""

from collections.abc import Sequence

from triptych.scenarios.base import Actor, Scenario
from triptych.scenarios.edit import edit_prompt
from triptych.trajectory import Prompt, Task


class TextToImage(Scenario):
    """text -> image (UniRL-Zero, scenario 3), or image + text -> image (UniGen-1.5: editing is generation).

    Tasks of both kinds may share a batch; a model that cannot edit is refused those with a ``source``.
    """

    needs = ("draw",)
    result = "image"

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """One drawing a task."""
        if any(task.source is not None for task in tasks):
            actor.model.require("edit")
        actor.draw("image", [_prompt(task) for task in tasks])


def _prompt(task: Task) -> Prompt:
    return Prompt.of(task.prompt) if task.source is None else edit_prompt(task)
