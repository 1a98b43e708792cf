"""UniRL-Zero's six scenarios (arXiv 2510.17937): on a starter in minutes, and on public weights.

On a starter the tasks are the embedded world's, and so are the rewards. On public weights tasks and rewards
are yours (``--tasks my.jsonl --rewards my_reward.py:score 1``) and settings the paper's, where it has any:
group 8, ten steps, all but the last drawn, at noise level 0.7 and shift 3, guidance 3.5 inside the policy,
KL 0.01 for words and 4e-3 for drawings; to draw, the diffusion expert and what leads to it learn at 1e-5 and
the language expert is frozen; to think and draw, they learn at 3e-6 and it at 5e-7. Ours are: 5e-7 for words
alone, clipping at 1e-4 for drawings, texts of up to 512 tokens, and for adapters ten times the rates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from triptych.evals.drawing import evaluate_drawing, evaluate_rewards
from triptych.evals.evaluation import Evaluation
from triptych.evals.reading import evaluate_answers
from triptych.learn.advantages import AdvantageConfig
from triptych.learn.diffusion_nft import DiffusionNFTConfig
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models.base import LoraSettings, UnifiedModel
from triptych.recipes import shapes_reasoning, shapes_world
from triptych.recipes.base import Parts, Recipe
from triptych.recipes.demo import BRANCHES, DENOISED, PUBLIC_JANUS
from triptych.recipes.rewards import build_rewards
from triptych.rewards.answers import FormatReward
from triptych.rewards.base import RewardFunction, RewardSet
from triptych.rewards.edits import CycleReward
from triptych.rewards.geneval import GenEvalReward
from triptych.rewards.preservation import PreservationReward
from triptych.scenarios.base import RolloutSettings, Scenario
from triptych.scenarios.chain_of_thought import ChainOfThought
from triptych.scenarios.cycle_edit import CycleEdit
from triptych.scenarios.reasoning import MultimodalReasoning, TextReasoning
from triptych.scenarios.reflection import Reflection
from triptych.scenarios.text_to_image import TextToImage
from triptych.shapes.critiques import QUESTION
from triptych.shapes.edits import UNDOABLE
from triptych.train.nft import NFTConfig, NFTLearner
from triptych.train.optimizer import OptimizerConfig
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.train.tasks import hold_out, read_tasks
from triptych.trajectory import Denoising, Sample, Sampling, Task

PARTS = "Qwen/Qwen2.5-VL-3B-Instruct + Efficient-Large-Model/Sana_1600M_512px_diffusers"
"""Public weights; queries and connector start at random, so what draws is to be pre-trained first."""
SAVED = "models/unirl_zero"
"""Where adapters look for their base: parts put together and saved."""
TRAIN_TASKS = 2048
BESIDE: dict[str, RewardFunction] = {
    "format": FormatReward(segment="thought"),
    "first": GenEvalReward(shapes_world.verdict, dense=False, drawing="first"),
    "cycle": CycleReward(),
    "preservation": PreservationReward(),
}
"""What evaluations tell beside the official rule, where an episode has it."""


@dataclass(frozen=True, kw_only=True)
class ThoughtConfig(PolicyConfig):
    """With ``apart`` the drawing is credited with all rewards but "format": form is the thought's own."""

    apart: bool = False


@dataclass(frozen=True, kw_only=True)
class ReflectionConfig(PolicyConfig):
    """The model may look ``turns`` times, 1 to 3; ``question`` is what it is asked about its drawing."""

    turns: int = 1
    question: str = QUESTION


# -- on a starter ----------------------------------------------------------------------------------
# Names no groups of parameters, for other starters take these settings too: --train dm connector leaves the
# language expert as it is. For words a score may be off by what sharp attention makes of rounding. Drawings
# alone keep to a tenth of their clip range; together with words the warning about clipped actions guards it.
STARTER = PolicyConfig(
    model="starters/unirl_zero",
    steps=60,
    prompts=16,
    group=8,
    learn_from=4,
    attention="eager",
    rollout=RolloutSettings(
        draw=Sampling(denoise=BRANCHES), write=Sampling(max_tokens=48), batch=DENOISED.rollout.batch
    ),
    draw_loss=DENOISED.loss,
    optimizer=DENOISED.optimizer,
    ratio_tolerance=1e-3,
    checkpoint_every=25,
)
WRITTEN = replace(STARTER, prompts=32, optimizer=replace(DENOISED.optimizer, lr=1e-4))
DRAWN = replace(STARTER, ratio_tolerance=1e-4)
NFT = NFTConfig(
    **vars(DRAWN)
    | {
        "train": DENOISED.train,
        "draw_loss": None,
        "rewards": DENOISED.rewards,
        "steps": 50,
        "learn_from": 0,
        "micro_batch": 64,
        "rollout": replace(STARTER.rollout, draw=Sampling(denoise=Denoising(noise="ode"))),
        "optimizer": replace(DENOISED.optimizer, lr=4e-4),
        "nft": DiffusionNFTConfig(times=3),
    }
)
ANSWER, THOUGHT = {"answer": 1.0, "format": 0.2}, {"geneval": 1.0, "format": 0.2}
CYCLE = {"geneval": 4.0, "cycle": 1.0}
REFLECTION = {"first": 1.0, "verdict": 1.0, "improvement": 1.0}

# -- on public weights -----------------------------------------------------------------------------
PUBLIC = replace(
    PUBLIC_JANUS,  # batches and memory
    model=PARTS,
    rollout=RolloutSettings(draw=Sampling(guidance=3.5), write=Sampling(max_tokens=512), batch=32),
    draw_loss=PolicyLossConfig(clip_low=1e-4, clip_high=1e-4, kl_coef=4e-3, kl="exact"),
    optimizer=OptimizerConfig(lr=3e-6, group_lr={"lm": 5e-7}, warmup=20),
)
TO_READ = replace(PUBLIC, train=("lm",), optimizer=OptimizerConfig(lr=5e-7, warmup=20))
TO_DRAW = replace(
    PUBLIC,
    train=("dm", "connector", "queries"),
    optimizer=OptimizerConfig(lr=1e-5, warmup=20),
    ratio_tolerance=1e-5,
)
LM_LAYERS = LoraSettings().targets
DM_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One of the six: scenario, tasks of the world (n, and a seed for training ones), and settings."""

    scenario: Callable[[Any], Scenario]
    tasks: Callable[[int, int | None], list[Task]]
    starter: PolicyConfig
    public: PolicyConfig
    adapted: tuple[str, ...]


def _drawing_tasks(n: int, seed: int | None) -> list[Task]:
    return shapes_world.test_tasks(n) if seed is None else shapes_world.train_tasks(n, seed)


def _thinking(config: ThoughtConfig) -> Scenario:
    drawing = tuple(name for name in config.rewards if name != "format")
    return ChainOfThought({"image": drawing} if config.apart else None)


EPISODES = {
    "text": Episode(
        scenario=lambda config: TextReasoning(),
        tasks=partial(shapes_reasoning.problem_tasks, longer=True),
        starter=replace(WRITTEN, rewards=ANSWER),
        public=replace(TO_READ, rewards=ANSWER),
        adapted=LM_LAYERS,
    ),
    "multimodal": Episode(
        scenario=lambda config: MultimodalReasoning(),
        tasks=shapes_reasoning.question_tasks,
        starter=replace(WRITTEN, rewards=ANSWER),
        public=replace(TO_READ, rewards=ANSWER),
        adapted=LM_LAYERS,
    ),
    "t2i": Episode(
        scenario=lambda config: TextToImage(),
        tasks=_drawing_tasks,
        starter=replace(DRAWN, rewards=DENOISED.rewards, held_out=("background",)),
        public=TO_DRAW,
        adapted=DM_LAYERS,
    ),
    "cycle": Episode(
        scenario=lambda config: CycleEdit(),
        tasks=partial(shapes_world.edit_tasks, categories=UNDOABLE),
        starter=replace(DRAWN, rewards=CYCLE, held_out=("preservation",)),
        public=replace(TO_DRAW, rewards=CYCLE),
        adapted=DM_LAYERS,
    ),
    "cot": Episode(
        scenario=_thinking,
        tasks=shapes_reasoning.vague_tasks,
        starter=ThoughtConfig(**vars(STARTER) | {"rewards": THOUGHT}),
        public=ThoughtConfig(**vars(PUBLIC) | {"rewards": THOUGHT}),
        adapted=(*LM_LAYERS, *DM_LAYERS),
    ),
    "vague": Episode(  # not the paper's: what thinking before drawing is compared with
        scenario=lambda config: TextToImage(),
        tasks=shapes_reasoning.vague_tasks,
        starter=DRAWN,
        public=TO_DRAW,
        adapted=DM_LAYERS,
    ),
    "reflection": Episode(
        scenario=lambda config: Reflection(config.question, config.turns),
        tasks=_drawing_tasks,
        starter=ReflectionConfig(
            **vars(STARTER)
            | {
                "rewards": REFLECTION,
                "held_out": ("geneval",),
                "learn_from": 0,
                "advantage": AdvantageConfig(std="batch"),  # what a verdict is worth depends on the batch
            }
        ),
        public=ReflectionConfig(**vars(PUBLIC) | {"rewards": REFLECTION}),
        adapted=(*LM_LAYERS, *DM_LAYERS),
    ),
}
"""The paper's scenarios, in its order. Only the language expert's words depend on it in the first two."""


def make(name: str) -> Recipe:
    """A recipe of this file by its name in SUMMARIES: ``[public.]unirl_zero.EPISODE[.lora|.nft]``."""
    public, _, rest = name.rpartition("unirl_zero.")
    which, _, how = rest.partition(".")
    episode = EPISODES[which]
    config = NFT if how == "nft" else episode.public if public else episode.starter
    if how == "lora":
        config = _with_adapters(config, episode.adapted)
    learner = NFTLearner if how == "nft" else PolicyLearner
    return Recipe(name=name, config=config, build=partial(build, episode, learner=learner))


def _with_adapters(config: PolicyConfig, layers: tuple[str, ...]) -> PolicyConfig:
    """Adapters of rank 32; queries and connector train in full where drawings are learned from."""
    full = () if layers == LM_LAYERS else ("queries", "connector")
    rates = config.optimizer
    group_lr = {group: 10 * rate for group, rate in rates.group_lr.items()}
    return replace(
        config,
        model=SAVED,
        lora=LoraSettings(rank=32, alpha=64, targets=layers, full=full),
        optimizer=replace(rates, lr=10 * rates.lr, group_lr=group_lr),
    )


def build(episode: Episode, config: Any, learner: type[PolicyLearner] = PolicyLearner) -> Parts:
    """Tasks of the world or of a user's file, whose last tenth is held out; rewards by name."""
    scenario, rewards = episode.scenario(config), build_rewards(config)
    judge: Callable[[UnifiedModel, Sequence[Task]], Evaluation]
    if config.tasks == "shapes":
        train, held = episode.tasks(TRAIN_TASKS, config.seed), episode.tasks(config.evaluate_tasks, None)
        judge = partial(_judged, scenario, config.rollout)
    else:
        train, held = hold_out(read_tasks(config.tasks), config.evaluate_tasks, config.tasks)
        judge = partial(_scored, scenario, config.rollout, rewards)
    return Parts(
        learner=lambda m: learner(
            config, m, scenario, train, rewards, explain=shapes_world.explaining(config.tasks)
        ),
        evaluate=lambda model, step: judge(model, held),
    )


def _judged(
    scenario: Scenario, settings: RolloutSettings, model: UnifiedModel, tasks: Sequence[Task]
) -> Evaluation:
    """Held-out answers by the world's rule, or drawings by the official one."""
    if scenario.needs == ("read",):
        form = {"format": FormatReward()}
        return evaluate_answers(model, scenario, tasks, shapes_reasoning.right_answers, settings, form)
    return evaluate_drawing(model, scenario, tasks, shapes_world.verdict, settings, beside=BESIDE)


def _scored(
    scenario: Scenario,
    settings: RolloutSettings,
    rewards: RewardSet,
    model: UnifiedModel,
    tasks: Sequence[Task],
) -> Evaluation:
    """A user's held-out tasks: the share of answers that the first reward calls right, or the mean reward."""
    if scenario.needs == ("read",):
        first = next(iter(rewards.rewards))

        def right(samples: Sequence[Sample]) -> list[float | None]:
            found = replace(rewards).score(samples).values[first].tolist()
            return [None if value != value else value for value in found]

        return evaluate_answers(model, scenario, tasks, right, settings)
    return evaluate_rewards(model, scenario, tasks, rewards, settings)
