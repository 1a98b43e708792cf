"""Text to image: the prompt is drawn, and the drawing is judged."""

from collections.abc import Sequence
from typing import ClassVar

from triptych.scenarios.base import Actor, Scenario
from triptych.trajectory import Prompt, Task


class TextToImage(Scenario):
    """text -> image (UniRL-Zero, scenario 3; UniGen-1.5's T2I reinforcement learning)."""

    needs: ClassVar[tuple[str, ...]] = ("draw",)
    result: ClassVar[str] = "image"

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """One drawing a task."""
        actor.draw("image", [Prompt.of(task.prompt) for task in tasks])
