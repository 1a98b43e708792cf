"""Evaluation by drawing: held-out prompts are drawn and judged, by GenEval's rule or by rewards.

Knows tasks, a scenario and a judge of pictures; which detector stands behind the judge is the caller's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from triptych.evals.evaluation import Evaluation
from triptych.evals.geneval import Verdict, summarise
from triptych.models.base import UnifiedModel
from triptych.rewards.base import RewardFunction, RewardSet
from triptych.rewards.reflection import Judge
from triptych.scenarios.base import RolloutSettings, Scenario, play
from triptych.trajectory import NoiseKey, Picture, Prompt, Sample, Sampling, Task

EVALUATION_STEP = -1
"""The step in every evaluation's noise keys: the same drawings' noise before, during and after training."""


def evaluate_drawing(
    model: UnifiedModel,
    scenario: Scenario,
    tasks: Sequence[Task],
    judge: Judge,
    settings: RolloutSettings,
    *,
    seed: int = 0,
    beside: Mapping[str, RewardFunction] | None = None,
) -> Evaluation:
    """One drawing a task, always with the same noise; summary: score (official), dense, macro, tags, n.

    ``beside`` are rewards whose means on the same episodes the summary has too, under "heldout".
    """
    rollout = play(scenario, model, tasks, settings, seed=seed, step=EVALUATION_STEP)
    pictures = [s.completion for s in rollout.samples if isinstance(s.completion, torch.Tensor)]
    verdicts = [judge(p, t.metadata) for p, t in zip(pictures, tasks, strict=True)]
    rows = [
        {
            "task": t.id,
            "prompt": t.prompt,
            "tag": t.metadata["tag"],
            "correct": v.correct,
            "score": v.score,
            "reason": v.reason,
            **({} if t.source is None else {"source": t.source}),
        }
        for t, v in zip(tasks, verdicts, strict=True)
    ]
    summary = table_of(verdicts, tasks, rollout.samples, beside or {})
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
    *,
    seed: int = 0,
) -> Evaluation:
    """One episode a task, always with the same noise; summary: score (mean total reward), n, heldout."""
    rollout = play(scenario, model, tasks, settings, seed=seed, step=EVALUATION_STEP)
    scores = replace(rewards).score(rollout.samples)  # an evaluation is no step that a reward has failed in
    scored = scores.total[scores.total.isfinite()]
    heldout = {k: float(v.nanmean()) for k, v in scores.held_out.items() if v.isfinite().any()}
    rows = [
        {
            "task": t.id,
            "prompt": t.prompt,
            "tag": t.metadata.get("tag", ""),
            "score": float(total) if total.isfinite() else None,
        }
        for t, total in zip(tasks, scores.total, strict=True)
    ]
    drawn = [s.completion for s in rollout.samples if isinstance(s.completion, torch.Tensor)]
    shown = [b for b, s in enumerate(rollout.samples) if isinstance(s.completion, torch.Tensor)]
    return Evaluation(
        summary={
            **({"score": float(scored.mean())} if len(scored) else {}),
            "n": len(scored),
            "heldout": heldout,
        },
        pictures=drawn,
        rows=[rows[b] for b in shown],
    )


def diversity(
    model: UnifiedModel,
    scenario: Scenario,
    tasks: Sequence[Task],
    settings: RolloutSettings,
    *,
    samples: int = 4,
    seed: int = 0,
) -> float:
    """Mean absolute pixel difference (0-1) between drawings of one prompt: 0 if all are the same."""
    rollout = play(scenario, model, tasks, settings, group=samples, seed=seed, step=EVALUATION_STEP)
    pictures = torch.stack([s.completion for s in rollout.samples if isinstance(s.completion, torch.Tensor)])
    sets = pictures.float().div(255).view(len(tasks), samples, -1)
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
