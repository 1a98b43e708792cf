"""UniGen-1.5's four stages (arXiv 2511.14760): each goes on from the run of the one before.

On the tiny world: pre-training from nothing, joint SFT, edit instruction alignment, unified RL. On public
parts (``public.unigen15.STAGE``) examples, tasks and rewards are yours, and settings the paper's where it
tells them: shares, alignment, RL. Batches and rates of the first two stages are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch

from triptych.errors import UserError
from triptych.evals.drawing import evaluate_rewards, read_answers
from triptych.evals.evaluation import Evaluation
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import UnifiedModel
from triptych.models.tiny import TinyUniGen
from triptych.recipes import shapes_world, starters
from triptych.recipes.base import Parts, Recipe, derived
from triptych.recipes.demo import DEMOS
from triptych.recipes.rewards import build_rewards
from triptych.rewards.base import RewardSet
from triptych.rewards.preservation import PreservationReward
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.text_to_image import TextToImage
from triptych.train.examples import examples_from
from triptych.train.loop import JobConfig
from triptych.train.optimizer import OptimizerConfig
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.train.supervised import SupervisedConfig, SupervisedLearner, evaluate_loss
from triptych.train.tasks import hold_out, read_tasks
from triptych.trajectory import Sample, Sampling, Task, Unmasking

PARTS = "Qwen/Qwen2.5-7B-Instruct + google/siglip2-so400m-patch16-naflex + showlab/magvitv2"
"""Public weights: language model, tower and codec; what joins them starts at random."""
TRAIN_TASKS = 2048
SLOW_ATTENTION = {"attention": 1e-4}
"""Qwen2.5 norms neither queries nor keys, and Muon steps as far for a small gradient as for a large one. At
the rate of the rest their products came to a standard deviation of 30 in 3,400 steps (Show-o's, which are
normed: 2); attention picked single columns, passed no gradient, and no relation of a prompt was learned."""


PRETRAINED = OptimizerConfig(
    kind="muon", lr=1e-3, muon_lr=0.02, group_lr=SLOW_ATTENTION, warmup=100, decay=0.3
)


@dataclass(frozen=True, kw_only=True)
class UnifiedConfig(PolicyConfig):
    """RL on drawings and edits under one reward of picture and text.

    Every step has as many tasks of each of ``kinds``. One with a ``source`` is an edit, whose ``target_text``
    is what rewards read; of others they read the prompt. ``preserve`` is the weight of the reward for what
    an edit should have left as it was: 0, as in the paper.
    """

    kinds: tuple[Literal["t2i", "edit"], ...] = ("t2i", "edit")
    preserve: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UserError(f"kinds must be t2i, edit or both, each once, got {self.kinds}")


@dataclass(frozen=True, kw_only=True)
class FilesConfig(SupervisedConfig):
    """Supervised training on ``data`` in ``shares``: see :func:`triptych.train.examples.examples_from`."""

    data: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)


# -- on the tiny world -----------------------------------------------------------------------------
def pretrain() -> Recipe:
    """Stage 1, from nothing: drawing, reading and text 3:2:1, as the paper has it; no editing yet."""
    made = derived(
        starters.showo(),
        "unigen15.pretrain",
        sizes=TinyUniGen(),
        steps=2300,
        read_share=1 / 3,
        more=dict(problem=1 / 12, rewrite=1 / 12),
        optimizer=PRETRAINED,
        evaluate_every=0,
    )
    return replace(made, finish=None)


def sft() -> Recipe:
    """Stage 2, joint SFT: editing comes in, as often as drawing; what is left of it is the starter.

    The paper has generation, understanding and text 3:4:1, and lets drawings and edits take turns in the
    first. Here both are in every batch, and shares are drawing 0.38, editing 0.38, reading 0.16 and text
    0.08: of what a tiny model has to learn in minutes, drawing what is asked takes longest.
    """
    made = derived(
        pretrain(),
        "unigen15.sft",
        model="runs/unigen15.pretrain",
        seed=1,
        steps=1500,
        read_share=0.16,
        read_first=0,
        edit_share=0.38,
        more=dict(problem=0.04, rewrite=0.04),
        optimizer=replace(PRETRAINED, warmup=20, decay=0.8),
        evaluate_every=500,
    )
    return replace(made, finish=starters.publish)


def align() -> Recipe:
    """Stage 3, edit instruction alignment: source and instruction in, what the edited picture shows out.

    The paper has that alone, for 500 steps at 1e-5. A tiny model that has never told what a picture shows
    needs a higher rate, and forgets by it: with nothing else in 300 steps, questions went from 94 to 45% and
    edits from 46 to 30%. So two thirds of a batch are what SFT had: drawing 0.2, editing 0.2, reading 0.25.
    """
    made = derived(
        sft(),
        "unigen15.align",
        model="starters/unigen",
        seed=2,
        steps=300,
        batch=64,
        micro_batch=64,
        read_share=0.25,
        edit_share=0.2,
        more=dict(describe=0.35),
        optimizer=OptimizerConfig(lr=1e-4, warmup=10, decay=1.0),
        evaluate_every=0,
    )
    return replace(made, build=_build_align, finish=None)


def rl() -> Recipe:
    """Stage 4, unified RL: drawings and edits in every step, one reward, strictly on-policy, no clipping.

    KL to the reference is 0.01 (k3), guidance off; ours are fewer decoding steps (8, the first 3 of which are
    learned from), fewer prompts, of whose eight drawings the four whose rewards spread most are learned from,
    and the demo's optimizer. ``--kinds t2i`` and ``--kinds edit`` are the
    paper's ablation.
    """
    config = UnifiedConfig(
        **vars(DEMOS["unigen"])
        | dict(
            model="runs/unigen15.align",
            rewards={"shared": 1.0},
            held_out=("preservation",),
            loss=PolicyLossConfig(objective="no_clip", kl_coef=0.01),
        )
    )
    return Recipe(name="unigen15.rl", config=config, build=_build_rl)


def _build_align(config: starters.StarterConfig) -> Parts:
    # Parts.model is none: the tower is frozen, as wherever a model is loaded
    evaluate = _evaluation(RolloutSettings(), config.evaluate_tasks)
    return replace(starters.build(config), model=None, evaluate=evaluate)


def _evaluation(settings: RolloutSettings, tasks: int) -> Callable[[UnifiedModel, int], Evaluation]:
    """The starters', and "described": the share of held-out edits described word for word."""
    judged, edits = shapes_world.evaluation(settings, tasks), shapes_world.edit_tasks(min(200, tasks))
    asked = [(edit.source, edit.prompt) for edit in edits if edit.source is not None]

    def evaluate(model: UnifiedModel, step: int) -> Evaluation:
        found, said = judged(model, step), read_answers(model, asked, settings)
        right = [text.strip() == edit.target_text for text, edit in zip(said, edits, strict=True)]
        heldout = {**found.summary["heldout"], "described": sum(right) / len(right)}
        return replace(found, summary={**found.summary, "heldout": heldout})

    return evaluate


# -- unified RL --------------------------------------------------------------------------------------
def _build_rl(config: UnifiedConfig) -> Parts:
    """Tasks of the world or of a user's file, of which a tenth of each kind is held out; rewards by name."""
    rewards = unified_rewards(config)
    if config.tasks == "shapes":
        made: Mapping[str, Callable[..., list[Task]]] = {
            "t2i": shapes_world.train_tasks,
            "edit": partial(shapes_world.edit_tasks, TRAIN_TASKS),
        }
        train = {str(kind): made[kind](seed=config.seed) for kind in config.kinds}
        evaluate = _evaluation(config.rollout, config.evaluate_tasks)
    else:
        train, held = _split(config)
        evaluate = partial(_scored, config, rewards, held)
    return Parts(
        learner=lambda m: PolicyLearner(
            config, m, TextToImage(), train, rewards, explain=shapes_world.explaining(config.tasks)
        ),
        evaluate=evaluate,
    )


def _split(config: UnifiedConfig) -> tuple[dict[str, list[Task]], dict[str, list[Task]]]:
    tasks = read_tasks(config.tasks)
    if bare := [t for t in tasks if t.source is not None and t.target_text is None]:
        raise UserError(f"{config.tasks}: task {bare[0].id} has a source, but no target_text to judge it by")
    both = {kind: [t for t in tasks if (t.source is not None) == (kind == "edit")] for kind in config.kinds}
    parts = {k: hold_out(t, config.evaluate_tasks, f"{config.tasks} ({k})") for k, t in both.items()}
    return {k: train for k, (train, _) in parts.items()}, {k: held for k, (_, held) in parts.items()}


def unified_rewards(config: UnifiedConfig) -> RewardSet:
    """The rewards that the settings name, and with ``preserve`` that of preservation."""
    named = {**config.rewards, **({"preservation": config.preserve} if config.preserve else {})}
    held = tuple(name for name in config.held_out if name not in named)
    found = build_rewards(replace(config, rewards=named, held_out=held))
    if "preservation" not in named:
        return found
    return replace(found, rewards={**found.rewards, "preservation": preserved})


def preserved(samples: Sequence[Sample]) -> list[float | None]:
    """What edits left as it was; other drawings had nothing to leave, all get 1, and so no advantage."""
    found = PreservationReward()(samples)
    return [1.0 if s.task.source is None else value for s, value in zip(samples, found, strict=True)]


def _scored(
    config: UnifiedConfig,
    rewards: RewardSet,
    held: Mapping[str, Sequence[Task]],
    model: UnifiedModel,
    step: int,
) -> Evaluation:
    """The mean reward of a user's held-out tasks; "heldout" has that of each kind."""
    tasks = [task for kind in held.values() for task in kind]
    found = evaluate_rewards(model, TextToImage(), tasks, rewards, config.rollout)
    scores = {row["task"]: row["score"] for row in found.rows}
    means = {k: float(torch.tensor([scores[t.id] for t in kind]).nanmean()) for k, kind in held.items()}
    return replace(found, summary={**found.summary, "heldout": {**found.summary["heldout"], **means}})


# -- on public weights -----------------------------------------------------------------------------
SUPERVISED = FilesConfig(
    model=PARTS,
    steps=1000,
    batch=64,
    micro_batch=4,
    gradient_checkpointing=True,
    compute="bf16",
    data={"draw": "drawings.jsonl", "read": "questions.jsonl", "write": "texts.jsonl"},
    shares={"draw": 3, "read": 2, "write": 1},
    optimizer=OptimizerConfig(lr=1e-4, warmup=100, decay=1.0, schedule="cosine"),
    evaluate_tasks=100,
    checkpoint_every=100,
)
PUBLIC: dict[str, JobConfig] = {
    "pretrain": SUPERVISED,
    "sft": replace(
        SUPERVISED,
        model="runs/public.unigen15.pretrain",
        data={**SUPERVISED.data, "edit": "edits.jsonl"},
        shares={"draw": 1.5, "edit": 1.5, "read": 4, "write": 1},
        optimizer=replace(SUPERVISED.optimizer, lr=2e-5),
    ),
    "align": replace(
        SUPERVISED,
        model="runs/public.unigen15.sft",
        steps=500,
        data={"describe": "edits.jsonl"},
        shares={"describe": 1},
        optimizer=replace(SUPERVISED.optimizer, lr=1e-5, warmup=0),
    ),
    "rl": UnifiedConfig(
        model="runs/public.unigen15.align",
        tasks="tasks.jsonl",
        rewards={"clip": 1.0, "hpsv2": 1.0},
        steps=1500,
        prompts=32,
        group=8,
        micro_batch=4,
        gradient_checkpointing=True,
        rollout=RolloutSettings(draw=Sampling(unmask=Unmasking(steps=16)), batch=32),
        loss=PolicyLossConfig(objective="no_clip", kl_coef=0.01),
        optimizer=OptimizerConfig(lr=3e-6),
        ratio_tolerance=1e-3,
        reference_offload=True,
        evaluate_tasks=100,
    ),
}
"""Settings of the four stages. In SFT drawings and edits come in equal number, and so need not take turns."""


def public(stage: str) -> Recipe:
    """A stage on public parts, and on files of your own: "pretrain", "sft", "align" or "rl"."""
    build = _build_rl if stage == "rl" else _build_supervised
    return Recipe(name=f"public.unigen15.{stage}", config=PUBLIC[stage], build=build)


def _build_supervised(config: FilesConfig) -> Parts:
    examples, held = examples_from(
        config.data, config.shares, config.batch, config.seed, config.evaluate_tasks
    )
    return Parts(
        learner=lambda m: SupervisedLearner(config, m, examples),
        evaluate=lambda model, step: evaluate_loss(config, model, held),
    )
