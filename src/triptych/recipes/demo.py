"""Text-to-image reinforcement learning on a starter: minutes on a laptop."""

from dataclasses import replace
from pathlib import Path

from triptych.errors import UserError
from triptych.evals.drawing import evaluate_rewards
from triptych.learn.policy_loss import PolicyLossConfig
from triptych.models import family
from triptych.models.base import LoraSettings
from triptych.recipes import shapes_world
from triptych.recipes.base import Parts, Recipe, derived
from triptych.recipes.rewards import build_rewards
from triptych.scenarios.base import RolloutSettings
from triptych.scenarios.text_to_image import TextToImage
from triptych.train.optimizer import OptimizerConfig
from triptych.train.policy import PolicyConfig, PolicyLearner
from triptych.train.tasks import hold_out, read_tasks
from triptych.trajectory import Denoising, Sampling, Unmasking

JANUS = PolicyConfig(
    model="starters/janus",
    steps=90,
    prompts=32,
    group=8,
    learn_from=4,
    rollout=RolloutSettings(batch=256),
    attention="eager",
    optimizer=OptimizerConfig(lr=6e-4, warmup=5, decay=1.0),
    # On the trained starter the mean error is 1e-7 and the largest of 16,384 actions up to 2e-4, of a
    # clip range of 0.2: attention there is sharper than in a random model, and amplifies rounding.
    ratio_tolerance=1e-3,
    checkpoint_every=25,
)
# What decides a masked drawing is in its first steps: the gradient of the others is noise. Adam amplifies
# noise, for it divides by its size; Muon turns a mean over steps, and finds what those have in common.
# Embeddings and head only get more random. By GenEval's rule more may be there than a prompt names, and what
# these models find first is to draw more; "exact" forbids it, and by itself is rare. See docs/masked.md.
MASKED = replace(
    JANUS,
    steps=50,
    prompts=16,
    train=("model", "attention"),
    rewards={"geneval": 0.5, "exact": 0.5},
    rollout=RolloutSettings(
        draw=Sampling(temperature=0.8, unmask=Unmasking(steps=8, trained=3, which="first", order="common")),
        batch=32,
    ),
    attention="sdpa",
    optimizer=OptimizerConfig(kind="muon", lr=3e-4, muon_lr=0.006, eps=3e-5, warmup=5, decay=1.0),
)
# A denoising step's ratio is a geometric mean over the latent's dimensions: it moves far less than a token's.
# Drawings of a group have one starting noise and one path to step 2; what is drawn in the four steps from
# there is all that differs, and all of it is learned from. By "geneval" alone exact drawings went from 47 to
# 10%: MASKED says why there are two rewards.
BRANCHES = Denoising(window=4, first=2, moves="still", start="shared")
DENOISED = replace(
    JANUS,
    model="starters/unirl_zero",
    steps=60,
    prompts=16,
    train=("dm", "connector"),
    rewards=MASKED.rewards,
    rollout=RolloutSettings(draw=Sampling(denoise=BRANCHES), batch=64),
    attention="sdpa",
    loss=PolicyLossConfig(clip_low=1e-3, clip_high=1e-3),
    optimizer=OptimizerConfig(lr=2e-4, warmup=5, decay=0.5),
    ratio_tolerance=1e-4,
)
DEMOS = {
    "janus": JANUS,
    "showo": replace(MASKED, model="starters/showo"),
    "unigen": replace(MASKED, model="starters/unigen", steps=48),
    "unirl_zero": DENOISED,
}
"""The demo's settings for each starter, and for models of its family."""
PUBLIC_JANUS = PolicyConfig(
    model="deepseek-community/Janus-Pro-1B",
    tasks="prompts.jsonl",
    steps=1000,
    prompts=8,
    group=8,
    micro_batch=4,
    gradient_checkpointing=True,
    rollout=RolloutSettings(draw=Sampling(guidance=5.0), batch=32),
    loss=PolicyLossConfig(kl_coef=0.01),
    optimizer=OptimizerConfig(lr=1e-6, warmup=20),
    ratio_tolerance=1e-3,
    reference_offload=True,
    evaluate_tasks=100,
)


def demo(model: str = "janus") -> Recipe:
    """GRPO on a starter: draw, verify, and learn from the group.

    ``model`` names a starter (a key of :data:`DEMOS`) or any other model, which then takes the place of its
    family's starter. The recipe is called "demo", or for other families than Janus "demo-NAME".
    """
    name, where = model, f"starters/{model}"
    if model not in DEMOS:
        if "/" not in model and not Path(model).exists():
            raise UserError(
                f"no starter called {model!r}; there are {', '.join(DEMOS)}, or a model's folder or hub name"
            )
        name, where = family(model).name, model
    return Recipe(
        name="demo" if name == "janus" else f"demo-{name}",
        config=replace(DEMOS[name], model=where),
        build=build_text_to_image,
    )


def build_text_to_image(config: PolicyConfig) -> Parts:
    """Drawing tasks of the embedded world or of a user's file, rewards by name, held-out evaluation."""
    tasks = shapes_world.train_tasks() if config.tasks == "shapes" else read_tasks(config.tasks)
    rewards = build_rewards(config)
    return Parts(
        learner=lambda model: PolicyLearner(
            config, model, TextToImage(), tasks, rewards, explain=shapes_world.explaining(config.tasks)
        ),
        evaluate=shapes_world.evaluation(config.rollout, config.evaluate_tasks),
    )


def build_from_file(config: PolicyConfig) -> Parts:
    """Drawing tasks of a user's file; the last tenth is held out, and judged by the same rewards."""
    rewards = build_rewards(config)
    tasks, held = hold_out(read_tasks(config.tasks), config.evaluate_tasks, config.tasks)
    return Parts(
        learner=lambda model: PolicyLearner(config, model, TextToImage(), tasks, rewards),
        evaluate=lambda model, step: evaluate_rewards(model, TextToImage(), held, rewards, config.rollout),
    )


def janus() -> Recipe:
    """Text-to-image RL on public Janus-Pro weights, prompts from a file, for one or more large GPUs.

    Settings follow T2I-R1's public Janus-Pro runs where the papers here are silent: group 8, lr 1e-6, KL 0.01
    (k3), guidance 5 inside the policy. Name the prompts and the reward: ``--tasks my.jsonl --rewards
    my_reward.py:score 1``.
    """
    return Recipe(name="janus", config=PUBLIC_JANUS, build=build_from_file)


def janus_lora() -> Recipe:
    """As :func:`janus`, with adapters on the language model instead of all weights: fits a smaller GPU."""
    rates = OptimizerConfig(lr=1e-5, warmup=20)
    return derived(janus(), "janus.lora", lora=LoraSettings(rank=32, alpha=64), optimizer=rates)
