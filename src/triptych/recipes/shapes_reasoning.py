"""What the embedded world asks that takes words: problems, questions, vague prompts, critiques.

Each as supervised examples, which :mod:`shapes_world` mixes into batches, and all but critiques as tasks too,
held out or of the training split. Thought and answer are written as
:func:`triptych.evals.answers.transcript` has them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from triptych.evals.answers import answer_of, transcript
from triptych.models.base import Example
from triptych.rewards.answers import AnswerReward, written
from triptych.shapes import critiques, questions, vague, word_problems
from triptych.shapes.edits import train_edit
from triptych.shapes.prompts import QUESTIONS
from triptych.shapes.renderer import render
from triptych.shapes.scenes import Scene, Shape, sample_scene
from triptych.shapes.verifier import detect
from triptych.trajectory import Picture, Prompt, Sample, Task

T = TypeVar("T")
WORDS = (*word_problems.WORDS, *questions.WORDS, *vague.WORDS, *critiques.WORDS)
"""What all of it says beyond the words of prompts; without the marks of blocks (``<think>`` and its like)."""


def picture_of(scene: Scene) -> Picture:
    """A rendered scene, uint8 ``[H, W, 3]``."""
    return torch.from_numpy(render(scene))


def scene_in(picture: Picture) -> Scene:
    """What the verifier sees in a picture, as a scene."""
    found = [(d, [int(x) for x in d.box]) for d in detect(picture.numpy())]
    shapes = [Shape(kind=d.label, color=d.color or "", x=b[0], y=b[1], size=b[2] - b[0]) for d, b in found]
    return Scene(shapes=tuple(shapes), size=len(picture))


# -- tasks -----------------------------------------------------------------------------------------
def problem_tasks(n: int = 210, seed: int | None = None, longer: bool = False) -> list[Task]:
    """Word problems, held out or with a ``seed`` of the training split: text in, text out.

    The ``longer`` ones take a step more than those that starters learn from examples.
    """
    test = partial(word_problems.test_problems, longer=longer)
    found = items(test, partial(word_problems.train_problem, longer=longer), n, seed)
    return [
        Task(
            id=name_of("problem", p.tag, i, seed), prompt=p.question, metadata={"tag": p.tag}, answer=p.answer
        )
        for i, p in enumerate(found)
    ]


def question_tasks(n: int = 300, seed: int | None = None) -> list[Task]:
    """Questions that want a thought, about ``source``: held out or with a ``seed`` of the training split."""
    found = items(questions.test_questions, questions.train_question, n, seed)
    return [
        Task(
            id=name_of("question", tag, i, seed),
            prompt=f"{question} {questions.THINK}",
            metadata={"tag": tag},
            answer=answer,
            source=picture_of(scene),
        )
        for i, (scene, question, answer, tag) in enumerate(found)
    ]


def vague_tasks(n: int = 200, seed: int | None = None) -> list[Task]:
    """Vague prompts to draw, held out or with a ``seed`` of the training split; metadata of the exact one."""
    found = items(vague.test_vague, vague.train_vague, n, seed)
    return [
        Task(id=name_of("vague", v.metadata["tag"], i, seed), prompt=v.prompt, metadata=v.metadata)
        for i, v in enumerate(found)
    ]


def items(
    test: Callable[[int], list[T]], train: Callable[[np.random.Generator], T], n: int, seed: int | None
) -> list[T]:
    """``n`` held-out items, or with a ``seed`` of the training split."""
    if seed is None:
        return test(n)
    rng = np.random.default_rng([seed, 6])
    return [train(rng) for _ in range(n)]


def name_of(kind: str, tag: str, index: int, seed: int | None) -> str:
    """A task's id."""
    return f"{kind}/{tag}/{index:04d}" if seed is None else f"train/{kind}/{index:05d}"


def right_answers(samples: Sequence[Sample]) -> list[float | None]:
    """1 or 0 for a task's answer: of a question about a picture any right wording, else as AnswerReward."""
    found = AnswerReward()(samples)
    for i, sample in enumerate(samples):
        task, text = sample.task, written(sample)
        asked = QUESTIONS.get(str(task.metadata.get("tag")))
        if task.source is not None and text is not None and asked and task.prompt.startswith(asked):
            right = questions.answer_matches(answer_of(text), task.metadata, scene_in(task.source))
            found[i] = float(right)
    return found


# -- examples --------------------------------------------------------------------------------------
def _problem(rng: np.random.Generator) -> Example:
    problem = word_problems.train_problem(rng)
    return Example(prompt=Prompt.of(problem.question), target=transcript(problem.thought, problem.answer))


def _question(rng: np.random.Generator) -> Example:
    scene, question, answer, tag = questions.train_question(rng)
    prompt = Prompt.of(picture_of(scene), f"{question} {questions.THINK}")
    return Example(prompt=prompt, target=transcript(questions.thought_for({"tag": tag}, scene), answer))


def _rewrite(rng: np.random.Generator) -> Example:
    asked = vague.train_vague(rng)
    return Example(prompt=Prompt.of(asked.prompt), target=_solved(asked))


def _vague(rng: np.random.Generator) -> Example:
    asked = vague.train_vague(rng)
    prompt = Prompt.of(asked.prompt)
    if rng.random() < 0.5:
        prompt = prompt.replied(_solved(asked))
    return Example(prompt=prompt, target=picture_of(sample_scene(asked.metadata, rng)))


def _solved(asked: vague.VaguePrompt) -> str:
    return transcript(asked.thought, str(asked.metadata["prompt"]))


def _critique(rng: np.random.Generator) -> Example:
    critique = critiques.train_critique(rng)
    return Example(prompt=_shown(critique), target=critique.text)


def _redraw(rng: np.random.Generator) -> Example:
    critique = critiques.train_critique(rng)
    return Example(prompt=_shown(critique).replied(critique.text), target=picture_of(critique.target))


def _describe(rng: np.random.Generator) -> Example:
    edit = train_edit(rng)
    return Example(
        prompt=Prompt.of(picture_of(edit.source), str(edit.metadata["prompt"])), target=edit.description
    )


def _shown(critique: critiques.Critique) -> Prompt:
    return Prompt.of(str(critique.metadata["prompt"]), picture_of(critique.drawn), critiques.QUESTION)


EXAMPLES: dict[str, Callable[[np.random.Generator], Example]] = {
    "problem": _problem,
    "question": _question,
    "rewrite": _rewrite,
    "vague": _vague,
    "critique": _critique,
    "redraw": _redraw,
    "describe": _describe,
}
"""Makers of one example each. Their random streams go by their order: append only.

Word problems; questions with a thought; the thought of a vague prompt; drawings of vague prompts, half of
them after the thought; verdicts on drawings; what is drawn after the verdict; what a picture shows after an
edit, told from source and instruction.
"""
