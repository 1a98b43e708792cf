"""Reflection: the model draws, looks at its drawing, and draws again what it finds wrong."""

from collections.abc import Mapping, Sequence

from triptych.errors import UserError
from triptych.rewards.reflection import said_right
from triptych.scenarios.base import Actor, Scenario
from triptych.trajectory import Prompt, Task

DRAWINGS = ("first", "second", "third", "fourth")
VERDICTS = ("verdict", "second_verdict", "third_verdict")


class Reflection(Scenario):
    """text -> image -> text -> image, up to three times (UniRL-Zero, scenario 6; our design).

    The model sees the prompt, its drawing and ``question``, and writes a verdict. Where that says "wrong", it
    draws again, with all of that and the verdict before it; else, also where it is no verdict, the row sits
    out of all that follows, and its last drawing is the completion. The first drawing is credited with what
    it is worth, verdicts with being right, later drawings with being better. ``turns`` is how often it may
    look again, 1 to 3.
    """

    needs = ("draw", "read", "edit")
    result = DRAWINGS
    credit: Mapping[str, tuple[str, ...]] = {
        "first": ("first",),
        **dict.fromkeys(VERDICTS, ("verdict",)),
        **dict.fromkeys(DRAWINGS[1:], ("improvement",)),
    }

    def __init__(self, question: str, turns: int = 1) -> None:
        if not 1 <= turns <= len(VERDICTS):
            raise UserError(f"turns of reflection must be 1 to {len(VERDICTS)}, got {turns}")
        self.question, self.turns = question, turns

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """A drawing, "first"; then for each turn a verdict and, where that finds fault, another drawing."""
        drawn = actor.draw("first", [Prompt.of(task.prompt) for task in tasks])
        active = [True] * len(tasks)
        for verdict, again in list(zip(VERDICTS, DRAWINGS[1:], strict=True))[: self.turns]:
            shown = [Prompt.of(t.prompt, p, self.question) for t, p in zip(tasks, drawn, strict=True)]
            said = actor.write(verdict, shown, active)
            active = [on and said_right(text) is False for on, text in zip(active, said, strict=True)]
            redraw = [prompt.replied(text) for prompt, text in zip(shown, said, strict=True)]
            drawn = actor.draw(again, redraw, active)
