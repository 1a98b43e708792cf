"""The embedded world: scenes of flat coloured shapes, prompts and questions about them, an exact verifier.

It is data for the same code that trains the real thing, so it knows nothing of models, scenarios or training,
and needs numpy and scipy only.
"""

from triptych.shapes.prompts import (
    TAGS,
    combinations,
    screening_prompts,
    split,
    test_prompts,
    train_prompt,
    vocabulary,
)
from triptych.shapes.questions import answer_matches, question_for, test_questions, train_question
from triptych.shapes.renderer import render
from triptych.shapes.scenes import BACKGROUND, COLORS, KINDS, PALETTE, Scene, Shape, sample_scene
from triptych.shapes.verifier import background_drift, detect

__all__ = [
    "BACKGROUND",
    "COLORS",
    "KINDS",
    "PALETTE",
    "TAGS",
    "Scene",
    "Shape",
    "answer_matches",
    "background_drift",
    "combinations",
    "detect",
    "question_for",
    "render",
    "sample_scene",
    "screening_prompts",
    "split",
    "test_prompts",
    "test_questions",
    "train_prompt",
    "train_question",
    "vocabulary",
]
