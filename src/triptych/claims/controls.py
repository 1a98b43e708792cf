"""What reflection is compared with: second turns that a drawing's own verdict does not steer."""

from collections.abc import Sequence

from triptych.rewards.reflection import said_right
from triptych.scenarios.base import Actor, Scenario
from triptych.trajectory import Prompt, Task


class UnsteeredTurns(Scenario):
    """After a first drawing and its verdict: a second after "another" one's verdict, and a "plain" second.

    "another" is drawn where that other verdict is "wrong", "plain", which is the prompt drawn again, where
    the own one is. Verdicts are exchanged by half of all episodes: those of another task. ``question`` asks
    for them.
    """

    needs = ("draw", "read", "edit")
    result = ("first", "another", "plain")

    def __init__(self, question: str) -> None:
        self.question = question

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """Two second drawings of each first one."""
        asked = [Prompt.of(task.prompt) for task in tasks]
        drawn = actor.draw("first", asked)
        shown = [Prompt.of(t.prompt, p, self.question) for t, p in zip(tasks, drawn, strict=True)]
        said = actor.write("verdict", shown)
        others = said[len(said) // 2 :] + said[: len(said) // 2]
        redraw = [prompt.replied(text) for prompt, text in zip(shown, others, strict=True)]
        actor.draw("another", redraw, [said_right(text) is False for text in others])
        actor.draw("plain", asked, [said_right(text) is False for text in said])
