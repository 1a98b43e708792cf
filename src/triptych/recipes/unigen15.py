"""UniGen-1.5's four stages on the tiny world (METHODS 1): pre-training, joint SFT, alignment, unified RL."""

from dataclasses import replace

from triptych.models.tiny import TinyUniGen
from triptych.recipes import SUMMARIES, starters
from triptych.recipes.base import Recipe
from triptych.train.optimizer import OptimizerConfig


def pretrain() -> Recipe:
    """Stage 1, from nothing: drawing, reading and text 3:2:1, as the paper has it; no editing yet."""
    first = starters.showo()
    assert isinstance(first.config, starters.StarterConfig)
    config = replace(
        first.config,
        sizes=TinyUniGen(),
        steps=2300,
        read_share=1 / 3,
        more=dict(problem=1 / 12, rewrite=1 / 12),
        optimizer=OptimizerConfig(kind="muon", lr=1e-3, muon_lr=0.02, warmup=100, decay=0.3),
        evaluate_every=0,
    )
    name = "unigen15.pretrain"
    return replace(first, name=name, summary=SUMMARIES[name], config=config, finish=None)


def sft() -> Recipe:
    """Stage 2, joint SFT: editing comes in, as often as drawing; what is left of it is the starter.

    The paper has generation, understanding and text 3:4:1, and lets drawings and edits take turns in the
    first. Here both are in every batch, and shares are drawing 0.38, editing 0.38, reading 0.16 and text
    0.08: of what a tiny model has to learn in minutes, drawing what is asked takes longest.
    """
    first = pretrain()
    assert isinstance(first.config, starters.StarterConfig)
    config = replace(
        first.config,
        model="runs/unigen15.pretrain",
        seed=1,
        steps=1500,
        read_share=0.16,
        read_first=0,
        edit_share=0.38,
        more=dict(problem=0.04, rewrite=0.04),
        optimizer=replace(first.config.optimizer, warmup=20, decay=0.8),
        evaluate_every=500,
    )
    name = "unigen15.sft"
    return replace(first, name=name, summary=SUMMARIES[name], config=config, finish=starters.publish)
