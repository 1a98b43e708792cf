"""Editing: a source picture and an instruction are drawn anew, and the drawing is judged."""

from collections.abc import Sequence

from triptych.errors import UserError
from triptych.scenarios.base import Actor, Scenario
from triptych.trajectory import Prompt, Task


class Edit(Scenario):
    """image + text -> image, and nothing else: a task without a ``source`` is refused."""

    needs = ("draw", "edit")
    result = "image"

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """One drawing a task, whose ``source`` is the picture to edit."""
        actor.draw("image", [edit_prompt(task) for task in tasks])


def edit_prompt(task: Task) -> Prompt:
    """The picture to change, and what to change; UserError for a task without a ``source``."""
    if task.source is None:
        raise UserError(f"task {task.id} has no source: an edit needs the picture to change")
    return Prompt.of(task.source, task.prompt)
