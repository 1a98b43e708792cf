"""UniRL's self-improvement (arXiv 2505.23380): on a starter in minutes, and on public weights.

The model draws a prompt, is asked about its drawing, and is graded by what the prompt implies: its own answer
is the only reward, and no picture comes from outside. "sft" learns the right answer, and through a relaxed
drawing how to draw what is read right; "grpo" credits drawing and answer with the grade of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from triptych.evals.drawing import evaluate_rewards
from triptych.evals.evaluation import Evaluation
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import UnifiedModel
from triptych.recipes import demo, shapes_world
from triptych.recipes.base import Parts, Recipe
from triptych.recipes.rewards import build_rewards
from triptych.rewards.base import RewardSet
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.self_quiz import SelfQuiz
from triptych.train.optimizer import OptimizerConfig
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.train.self_supervised import SelfSupervisedConfig, SelfSupervisedLearner
from triptych.train.tasks import hold_out, read_tasks
from triptych.trajectory import Sampling, Task, Unmasking


@dataclass(frozen=True, kw_only=True)
class QuizConfig(PolicyConfig):
    """Rewards credit drawing and answer alike; with names in ``drawing`` or ``answer`` that one by those."""

    drawing: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()


ON_POLICY = PolicyLossConfig(objective="no_clip", kl_coef=0.01)
GREEDY = Sampling(temperature=0, max_tokens=16)


def _both(config: PolicyConfig, **sft: Any) -> dict[str, PolicyConfig]:
    """GRPO without an old policy, and SFT with settings of its own, whose quiz is answered greedily."""
    config = replace(config, rewards={"quiz": 1.0}, learn_from=0)
    asked = replace(config, rollout=replace(config.rollout, write=GREEDY), **sft)
    return {
        "grpo": QuizConfig(**vars(replace(config, loss=ON_POLICY))),
        "sft": SelfSupervisedConfig(**vars(asked)),
    }


# -- on a starter ----------------------------------------------------------------------------------
# By the demo's settings for drawings. Words learn here too, so all weights do, and by Adam; SFT has fewer
# episodes of more prompts, and a lower rate. docs/unirl.md tells how those of Janus were chosen.
SHOWO = replace(
    demo.DEMOS["showo"],
    steps=40,
    prompts=8,
    held_out=("geneval",),
    train=(),
    attention="eager",
    rollout=RolloutSettings(draw=Sampling(temperature=0.8, unmask=Unmasking(steps=8, trained=4))),
    optimizer=OptimizerConfig(lr=7e-4, eps=3e-5, warmup=5, decay=1.0),
)
JANUS = replace(
    demo.DEMOS["janus"],
    steps=64,
    prompts=16,
    held_out=("geneval",),
    optimizer=OptimizerConfig(lr=3e-4, warmup=5, decay=1.0),
)


def _starter(config: PolicyConfig, **grpo: Any) -> dict[str, PolicyConfig]:
    own = _both(config, prompts=16, group=4, optimizer=replace(config.optimizer, lr=2e-4))
    return {**own, "grpo": replace(own["grpo"], **grpo)}


STARTERS = {"showo": _starter(SHOWO), "janus": _starter(JANUS, learn_from=4)}

# -- on public weights: the paper's settings, where it has any -------------------------------------
PUBLIC_JANUS = replace(
    demo.PUBLIC_JANUS,
    tasks="quiz.jsonl",
    loss=PolicyLossConfig(),
    optimizer=OptimizerConfig(lr=1e-5, warmup=20),
)
UNMASK = Unmasking(steps=50, order="confidence", trained=4)
PUBLIC_SHOWO = replace(
    PUBLIC_JANUS,
    model="showlab/show-o-512x512",
    group=3,
    rollout=RolloutSettings(draw=Sampling(guidance=6.0, unmask=UNMASK), batch=32),
)
PUBLIC = {"showo": _both(PUBLIC_SHOWO), "janus": _both(PUBLIC_JANUS)}


def make(name: str) -> Recipe:
    """A recipe of this file by its name in SUMMARIES: ``[public.]unirl.MODEL.HOW``."""
    public, _, rest = name.rpartition("unirl.")
    model, how = rest.split(".")
    return Recipe(name=name, config=(PUBLIC if public else STARTERS)[model][how], build=build)


def build(config: QuizConfig | SelfSupervisedConfig) -> Parts:
    """Tasks of the world, or of a user's file, whose last tenth is held out and judged by the rewards."""
    rewards = build_rewards(config)
    if config.tasks == "shapes":
        tasks = shapes_world.quizzed(shapes_world.train_tasks())
        evaluate = shapes_world.evaluation(config.rollout, config.evaluate_tasks)
    else:
        tasks, held = hold_out(read_tasks(config.tasks), config.evaluate_tasks, config.tasks)
        evaluate = partial(_scored, held, rewards, config.rollout)
    learner: type[PolicyLearner] = SelfSupervisedLearner
    scenario = SelfQuiz()
    if isinstance(config, QuizConfig):
        learner, scenario = PolicyLearner, SelfQuiz(drawing=config.drawing, answer=config.answer)
    return Parts(
        learner=lambda m: learner(
            config, m, scenario, tasks, rewards, explain=shapes_world.explaining(config.tasks)
        ),
        evaluate=evaluate,
    )


def _scored(
    tasks: Sequence[Task], rewards: RewardSet, settings: RolloutSettings, model: UnifiedModel, step: int
) -> Evaluation:
    return evaluate_rewards(model, SelfQuiz(), tasks, rewards, settings)
