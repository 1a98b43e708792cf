"""Evaluation by answering: held-out questions are played, and their answers judged right or wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from triptych.evals.drawing import play_held_out, table_of
from triptych.evals.evaluation import Evaluation
from triptych.evals.geneval import Verdict
from triptych.models.base import UnifiedModel
from triptych.rewards.base import RewardFunction
from triptych.scenarios.base import RolloutSettings, Scenario
from triptych.trajectory import Sample, Task


def evaluate_answers(
    model: UnifiedModel,
    scenario: Scenario,
    tasks: Sequence[Task],
    right: Callable[[Sequence[Sample]], Sequence[float | None]],
    settings: RolloutSettings,
    beside: Mapping[str, RewardFunction] | None = None,
) -> Evaluation:
    """One text a task, written greedily, and ``right`` where it scores 1; summary as of drawings.

    What cannot be scored counts as wrong. Tags are the tasks' own, "all" where they have none.
    """
    greedy = replace(settings, write=replace(settings.write, temperature=0.0))
    samples = play_held_out(model, scenario, tasks, greedy)
    verdicts = [Verdict(correct=score == 1, score=score or 0.0, reason="") for score in right(samples)]
    return Evaluation(summary=table_of(verdicts, tasks, samples, beside or {}))
