"""What claims are measured by: held-out tasks of the world, a scenario, and the score of every drawing.

A measure gives columns of scores ``[N, K]`` by name, NaN where there is nothing to score. Every model
gets the same tasks and the same noise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from triptych.claims.controls import UnsteeredTurns
from triptych.claims.verdicts import Scores
from triptych.evals.drawing import read_answers
from triptych.evals.quiz import questions_of
from triptych.models.base import UnifiedModel
from triptych.recipes import shapes_reasoning, shapes_world
from triptych.rewards.answers import count_words
from triptych.rewards.preservation import PreservationReward
from triptych.rewards.reflection import said_right
from triptych.scenarios.base import RolloutSettings, Scenario, play
from triptych.scenarios.chain_of_thought import ChainOfThought
from triptych.scenarios.edit import Edit
from triptych.scenarios.reasoning import MultimodalReasoning, TextReasoning
from triptych.scenarios.reflection import Reflection
from triptych.scenarios.text_to_image import TextToImage
from triptych.shapes.critiques import QUESTION
from triptych.trajectory import Sample, Task

Columns = Mapping[str, Scores]
HARD = 7
"""Words from which on an instruction is called hard: it names what goes and what comes."""
NOT_SHARES = ("thought_words", "reward_spread_of_hard")


@dataclass(frozen=True)
class Actor:
    """A model and how it acts, on N tasks, K times on each."""

    model: UnifiedModel
    settings: RolloutSettings
    tasks: int
    drawings: int

    def play(self, scenario: Scenario, tasks: Sequence[Task]) -> tuple[Sample, ...]:
        """Episodes, ordered by task; their noise is that of no training step."""
        return play(scenario, self.model, tasks, self.settings, group=self.drawings, seed=0, step=0).samples

    def column(self, values: Iterable[float | None]) -> Scores:
        """Scores ``[N, K]`` of the episodes in order."""
        return np.array([np.nan if v is None else float(v) for v in values]).reshape(-1, self.drawings)


@dataclass(frozen=True)
class Measure:
    """Columns by ``evaluate``, and how many tasks and drawings of each a verdict takes."""

    name: str
    evaluate: Callable[[Actor], Columns]
    tasks: int
    drawings: int


def right(sample: Sample, drawing: str = "") -> bool:
    """GenEval's official rule on an episode's completion, or on a drawing before it."""
    picture = sample.pictures[drawing] if drawing else sample.completion
    assert not isinstance(picture, str)
    return shapes_world.verdict(picture, sample.task.metadata).correct


def _generation(by: Actor) -> Columns:
    """Right by the official rule, and "exact": with nothing else on it."""
    samples = by.play(TextToImage(), shapes_world.test_tasks(by.tasks))
    return {"generation": by.column(map(right, samples)), "exact": by.column(shapes_world.exact(samples))}


def _quiz(by: Actor) -> Columns:
    """Drawings, and both halves of :func:`triptych.evals.collusion.imbalance`: low is good."""
    samples = by.play(TextToImage(), shapes_world.quizzed(shapes_world.test_tasks(by.tasks)))
    shown = [(s.pictures["image"], questions_of(s.task)[0]) for s in samples]
    answers = read_answers(by.model, shown, by.settings)
    read = [
        shapes_world.answered_right(s.task, s.pictures["image"], answer)
        for s, answer in zip(samples, answers, strict=True)
    ]
    both = list(zip(map(right, samples), read, strict=True))
    return {
        "generation": by.column(drawn for drawn, _ in both),
        "right_but_misread": by.column(not read if drawn else None for drawn, read in both),
        "read_but_misdrawn": by.column(not drawn if read else None for drawn, read in both),
    }


def _understanding(by: Actor) -> Columns:
    return {"understanding": by.column(shapes_world.understood(by.model, by.settings, by.tasks))}


def _editing(by: Actor) -> Columns:
    """Is done what was asked, is the rest kept, and how far the dense scores of a hard instruction differ.

    "edit_overall" is ImgEdit's mean grade, put from 1 to 5 on 0 to 1.
    """
    samples = by.play(Edit(), shapes_world.edit_tasks(by.tasks))
    graded = shapes_world.grades([s.task for s in samples], [s.pictures["image"] for s in samples])
    judged = [shapes_world.verdict(s.pictures["image"], s.task.metadata) for s in samples]
    hard = [len(s.task.prompt.split()) >= HARD for s in samples[:: by.drawings]]
    spread = by.column(v.score for v in judged).std(axis=1)
    return {
        "edit": by.column(v.correct for v in judged),
        "edit_overall": by.column((g.overall - 1) / 4 for g in graded),
        "preservation": by.column(PreservationReward()(samples)),
        "reward_spread_of_hard": np.where(hard, spread, np.nan)[:, None],
    }


def _vague(by: Actor) -> Columns:
    """Vague prompts drawn at once, and after a thought."""
    tasks = shapes_reasoning.vague_tasks(by.tasks)
    thinking = by.play(ChainOfThought(), tasks)
    return {
        "direct": by.column(map(right, by.play(TextToImage(), tasks))),
        "thinking": by.column(map(right, thinking)),
        "thought_words": by.column(count_words(s.texts["thought"]) for s in thinking),
    }


def _reflection(by: Actor) -> Columns:
    """Verdicts on first drawings, "kept" of the right ones of these and "repaired" of the wrong ones."""
    samples = by.play(Reflection(QUESTION), shapes_world.test_tasks(by.tasks))
    rows = [(right(s, "first"), said_right(s.texts["verdict"]), right(s)) for s in samples]
    return {
        "first": by.column(first for first, _, _ in rows),
        "last": by.column(last for _, _, last in rows),
        "verdict_on_right": by.column(said is True if first else None for first, said, _ in rows),
        "verdict_on_wrong": by.column(None if first else said is False for first, said, _ in rows),
        "repaired": by.column(None if first else last for first, _, last in rows),
        "kept": by.column(last if first else None for first, _, last in rows),
    }


def _controls(by: Actor) -> Columns:
    """What becomes of right and of wrong first drawings in second turns that own verdicts do not steer."""
    samples = by.play(UnsteeredTurns(QUESTION), shapes_world.test_tasks(by.tasks))
    columns = {}
    for turn in ("another", "plain"):
        rows = [(right(s, "first"), right(s, turn if s.acted(turn) else "first")) for s in samples]
        columns[f"repaired_by_{turn}"] = by.column(None if first else last for first, last in rows)
        columns[f"kept_by_{turn}"] = by.column(last if first else None for first, last in rows)
    return columns


def _answers(by: Actor, scenario: Scenario, tasks: Sequence[Task]) -> Columns:
    """Written greedily."""
    write = replace(by.settings.write, temperature=0.0)
    greedy = replace(by, settings=replace(by.settings, write=write))
    return {"answer": by.column(shapes_reasoning.right_answers(greedy.play(scenario, tasks)))}


def _problems(by: Actor) -> Columns:
    """Answers to sums of a step more than starters learn from examples, "taught" to those that they do.

    Distinct ones: the generator asks some of them again.
    """
    columns = {}
    for name, longer in (("answer", True), ("taught", False)):
        tasks = shapes_reasoning.problem_tasks(2 * by.tasks, longer=longer)
        found = {task.prompt: task for task in tasks}
        columns[name] = _answers(by, TextReasoning(), list(found.values())[: by.tasks])["answer"]
    return columns


def _questions(by: Actor) -> Columns:
    return _answers(by, MultimodalReasoning(), shapes_reasoning.question_tasks(by.tasks))


def _aside(by: Actor) -> Columns:
    """What else a model of UniRL-Zero's does, of which training may forget some: too few to judge by."""
    drawn = by.play(TextToImage(), shapes_world.test_tasks(by.tasks))
    clean = shapes_world.clean_background(drawn)
    problems = _answers(by, TextReasoning(), shapes_reasoning.problem_tasks(by.tasks))
    return {
        "drawings": by.column(map(right, drawn)),
        "background_drift": by.column(None if c is None else 1 - c for c in clean),
        "edits": by.column(map(right, by.play(Edit(), shapes_world.edit_tasks(by.tasks)))),
        "scenes_read": by.column(shapes_world.understood(by.model, by.settings, by.tasks)),
        "problems": problems["answer"],
    }


GENERATION = Measure("generation", _generation, 360, 3)
QUIZ = Measure("quiz", _quiz, 360, 2)
UNDERSTANDING = Measure("understanding", _understanding, 1000, 1)
EDITING = Measure("editing", _editing, 500, 2)
VAGUE = Measure("vague", _vague, 312, 3)
REFLECTION = Measure("reflection", _reflection, 360, 3)
CONTROLS = Measure("controls", _controls, 360, 3)
PROBLEMS = Measure("problems", _problems, 1000, 1)
QUESTIONS = Measure("questions", _questions, 1000, 1)
ASIDE = Measure("aside", _aside, 120, 1)
