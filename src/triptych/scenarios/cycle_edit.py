"""Cycle editing: an edit is made, then unmade, and both legs are judged together."""

from collections.abc import Sequence

from triptych.errors import UserError
from triptych.scenarios.base import Actor, Scenario
from triptych.scenarios.edit import edit_prompt
from triptych.trajectory import Prompt, Task


class CycleEdit(Scenario):
    """image + text -> image -> image (UniRL-Zero, scenario 4, Cycle Edit RL).

    The picture x is edited into y as the prompt says, and y back into x' as the column "reverse" says. Both
    legs are credited with one advantage, that of all rewards together.
    """

    needs = ("draw", "edit")
    result = "edit"

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """Two drawings a task: "edit", then "back"."""
        reverses = [_reverse(task) for task in tasks]
        edited = actor.draw("edit", [edit_prompt(task) for task in tasks])
        actor.draw("back", [Prompt.of(y, text) for y, text in zip(edited, reverses, strict=True)])


def _reverse(task: Task) -> str:
    reverse = task.columns.get("reverse")
    if not isinstance(reverse, str):
        raise UserError(f"task {task.id} has no column reverse: a cycle needs the instruction that undoes it")
    return reverse
