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
