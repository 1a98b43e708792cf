"""Self-quiz: the model draws, is asked about its own drawing, and its answer says how good both were."""

from collections.abc import Sequence

from triptych.errors import UserError
from triptych.evals.quiz import questions_of
from triptych.scenarios.base import Actor, Scenario
from triptych.trajectory import Prompt, Task


class SelfQuiz(Scenario):
    """text -> image -> text (UniRL, arXiv 2505.23380): segments "image" and "answer".

    Both are credited with the sum of all rewards: the answer's reward reaches the drawing too. Where rewards
    are named for one of them, ``drawing`` or ``answer``, that segment is credited with those alone. Of
    several wordings of a task's question the samples of its group get one each, in turn.
    """

    needs = ("draw", "read")
    result = "image"

    def __init__(self, *, drawing: Sequence[str] = (), answer: Sequence[str] = ()) -> None:
        apart = {"image": tuple(drawing), "answer": tuple(answer)}
        self.credit = {k: names for k, names in apart.items() if names}

    def rollout(self, actor: Actor, tasks: Sequence[Task]) -> None:
        """One drawing and one answer a task, whose metadata or columns hold its ``question``."""
        questions = [_question(task, key.sample) for task, key in zip(tasks, actor.keys, strict=True)]
        pictures = actor.draw("image", [Prompt.of(task.prompt) for task in tasks])
        asked = zip(pictures, questions, strict=True)
        actor.write("answer", [Prompt.of(picture, question) for picture, question in asked])


def _question(task: Task, sample: int) -> str:
    wordings = questions_of(task)
    if not wordings:
        raise UserError(
            f"task {task.id} has no question: self-quiz asks one about the drawing; `triptych quiz` makes"
            " prompts that have theirs"
        )
    return wordings[sample % len(wordings)]
