"""Thinking before drawing: the model writes what it means to draw, then draws after its own words."""

from collections.abc import Mapping, Sequence

from triptych.scenarios.base import Actor, Scenario
from triptych.trajectory import Prompt, Task


class ChainOfThought(Scenario):
    """text -> text -> image (UniRL-Zero, scenario 5).

    The whole transcript, ``<think>..</think><answer>..</answer>`` where the model keeps to the form, is what
    the drawing follows. By default one advantage, that of all rewards together, credits thought and drawing;
    ``credit`` gives either its own rewards.
    """

    needs = ("draw", "read")
    result = "image"

    def __init__(self, credit: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.credit = credit or {}

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """A text, "thought", then a drawing, "image"."""
        asked = [Prompt.of(task.prompt) for task in tasks]
        thoughts = actor.write("thought", asked)
        actor.draw("image", [p.replied(text) for p, text in zip(asked, thoughts, strict=True)])
