"""Reasoning: a question is answered in words, and the answer is judged."""

from collections.abc import Sequence

from triptych.errors import UserError
from triptych.scenarios.base import Actor, Scenario
from triptych.trajectory import Prompt, Task


class TextReasoning(Scenario):
    """text -> text (UniRL-Zero, scenario 1)."""

    needs = ("read",)
    result = "answer"

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """One text a task."""
        actor.write("answer", [Prompt.of(task.prompt) for task in tasks])


class MultimodalReasoning(Scenario):
    """image + text -> text (UniRL-Zero, scenario 2)."""

    needs = ("read",)
    result = "answer"

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """One text a task, whose ``source`` is the picture that is asked about."""
        actor.write("answer", [_question(task) for task in tasks])


def _question(task: Task) -> Prompt:
    if task.source is None:
        raise UserError(f"task {task.id} has no source: a question about a picture needs the picture")
    return Prompt.of(task.source, task.prompt)
