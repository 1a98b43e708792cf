"""Evaluation by drawing: held-out prompts are drawn and judged, by GenEval's rule or by rewards.

Knows tasks, a scenario and a judge of pictures; which detector stands behind the judge is the caller's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from triptych.evals.collusion import Shares, imbalance
from triptych.evals.evaluation import Evaluation
from triptych.evals.geneval import Verdict, summarise
from triptych.evals.intervals import share
from triptych.evals.quiz import questions_of
from triptych.models.base import UnifiedModel
from triptych.rewards.base import RewardFunction, RewardSet
from triptych.rewards.geneval import Judge
from triptych.scenarios.base import RolloutSettings, Scenario, play
from triptych.trajectory import NoiseKey, Picture, Prompt, Sample, Sampling, Task

IsRight = Callable[[Task, Picture, str], bool]
"""Whether an answer about a picture says all that the task's prompt implies."""
EVALUATION_STEP = -1
"""The step in every evaluation's noise keys: the same drawings' noise before, during and after training."""


def play_held_out(
    model: UnifiedModel, scenario: Scenario, tasks: Sequence[Task], settings: RolloutSettings, group: int = 1
) -> Sequence[Sample]:
    """An evaluation's episodes, always with the same noise: ``group`` of every task, in the tasks' order."""
    return play(scenario, model, tasks, settings, group=group, seed=0, step=EVALUATION_STEP).samples


def _pictures(samples: Sequence[Sample]) -> list[Picture]:
    return [s.completion for s in samples if isinstance(s.completion, Tensor)]


def _about(task: Task) -> dict[str, Any]:
    about = {"task": task.id, "prompt": task.prompt, "tag": task.metadata.get("tag", "")}
    return about if task.source is None else {**about, "source": task.source}


def evaluate_drawing(
    model: UnifiedModel,
    scenario: Scenario,
    tasks: Sequence[Task],
    judge: Judge,
    settings: RolloutSettings,
    beside: Mapping[str, RewardFunction] | None = None,
) -> Evaluation:
    """One drawing a task, judged; summary: score (official), dense, macro, tags, n.

    ``beside`` are rewards whose means on the same episodes the summary has too, under "heldout".
    """
    samples = play_held_out(model, scenario, tasks, settings)
    pictures = _pictures(samples)
    verdicts = [judge(p, t.metadata) for p, t in zip(pictures, tasks, strict=True)]
    rows = [{**_about(t), **asdict(v)} for t, v in zip(tasks, verdicts, strict=True)]
    summary = table_of(verdicts, tasks, samples, beside or {})
    return Evaluation(summary=summary, pictures=pictures, rows=rows)


def table_of(
    verdicts: Sequence[Verdict],
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    beside: Mapping[str, RewardFunction],
) -> dict[str, Any]:
    """The summary of an evaluation from its verdicts, one a task."""
    table = summarise(verdicts, [{"tag": "all", **t.metadata} for t in tasks])
    overall, macro = table.pop("overall"), table.pop("macro")
    values = {name: [v for v in reward(samples) if v is not None] for name, reward in beside.items()}
    heldout = {name: sum(found) / len(found) for name, found in values.items() if found}
    return {
        "score": overall["score"],
        "low": overall["low"],
        "high": overall["high"],
        "dense": sum(v.score for v in verdicts) / len(verdicts),
        "macro": macro["score"],
        "n": len(tasks),
        "tags": table,
        **({"heldout": heldout} if beside else {}),
    }


def evaluate_rewards(
    model: UnifiedModel,
    scenario: Scenario,
    tasks: Sequence[Task],
    rewards: RewardSet,
    settings: RolloutSettings,
) -> Evaluation:
    """One episode a task; summary: score (mean total reward), n, heldout; a row for each that drew."""
    samples = play_held_out(model, scenario, tasks, settings)
    scores = replace(rewards).score(samples)  # an evaluation is no step that a reward has failed in
    scored = scores.total[scores.total.isfinite()]
    mean = {"score": float(scored.mean())} if len(scored) else {}
    heldout = {k: float(v.nanmean()) for k, v in scores.held_out.items() if v.isfinite().any()}
    rows = [
        {**_about(t), "score": float(total) if total.isfinite() else None}
        for t, s, total in zip(tasks, samples, scores.total, strict=True)
        if isinstance(s.completion, Tensor)
    ]
    summary = {**mean, "n": len(scored), "heldout": heldout}
    return Evaluation(summary=summary, pictures=_pictures(samples), rows=rows)


def diversity(
    model: UnifiedModel, scenario: Scenario, tasks: Sequence[Task], settings: RolloutSettings
) -> float:
    """Mean absolute pixel difference (0-1) between four drawings of one prompt: 0 if all are the same."""
    pictures = torch.stack(_pictures(play_held_out(model, scenario, tasks, settings, group=4)))
    sets = pictures.float().div(255).view(len(tasks), 4, -1)
    return float(torch.stack([torch.pdist(group, p=1).mean() for group in sets]).mean() / sets.shape[-1])


def read_answers(
    model: UnifiedModel, questions: Sequence[tuple[Picture, str]], settings: RolloutSettings
) -> list[str]:
    """The model's answers to questions about pictures, read greedily."""
    greedy = Sampling(temperature=0, max_tokens=settings.write.max_tokens)
    answers: list[str] = []
    for i in range(0, len(questions), settings.batch):
        part = questions[i : i + settings.batch]
        keys = [NoiseKey(0, EVALUATION_STEP, str(i + j), 0, "answer") for j in range(len(part))]
        answers += model.texts(model.generate_text([Prompt.of(p, q) for p, q in part], greedy, keys))
    return answers


def self_quiz(
    model: UnifiedModel,
    tasks: Sequence[Task],
    pictures: Sequence[Picture],
    drawn_right: Sequence[bool],
    is_right: IsRight,
    settings: RolloutSettings,
) -> Shares:
    """The model asked about its own drawings, ``pictures[i]`` of ``tasks[i]``, greedily.

    "self_reward": answers that are right. "judge": drawings that are, by whoever found ``drawn_right``.
    "shuffled_answers": answers that are right by their own prompt where the picture is another prompt's, with
    another answer to the same question: near chance for a model that looks, high for one that does not. And
    both halves of the :func:`~triptych.evals.collusion.imbalance`. Tasks need ``answer`` and a question.
    """
    own = range(len(tasks))
    others = [_other(tasks, i) for i in own]

    def answered(shown: Sequence[int | None]) -> list[bool]:
        asked = [(i, pictures[j]) for i, j in zip(own, shown, strict=True) if j is not None]
        answers = read_answers(model, [(p, questions_of(tasks[i])[0]) for i, p in asked], settings)
        return [is_right(tasks[i], p, answer) for (i, p), answer in zip(asked, answers, strict=True)]

    right, shuffled = answered(own), answered(others)
    return {
        "self_reward": share(sum(right), len(right)),
        "judge": share(sum(drawn_right), len(drawn_right)),
        "shuffled_answers": share(sum(shuffled), len(shuffled)),
        **imbalance(list(zip(drawn_right, right, strict=True))),
    }


def _other(tasks: Sequence[Task], i: int) -> int | None:
    """A task with another answer, of the same tag where there is one; None where all have the same."""
    different = [j for j, task in enumerate(tasks) if task.answer != tasks[i].answer]
    alike = [j for j in different if tasks[j].metadata.get("tag") == tasks[i].metadata.get("tag")]
    return next((found[i % len(found)] for found in (alike, different) if found), None)
