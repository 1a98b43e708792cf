"""Rewards by name: those of the embedded world, and users' own from a file."""

from collections.abc import Callable

from triptych.errors import UserError
from triptych.recipes import shapes_reasoning, shapes_world
from triptych.rewards.answers import FormatReward, LengthReward
from triptych.rewards.base import FunctionReward, RewardFunction, RewardSet, load_reward
from triptych.rewards.edits import CycleReward, PreservationReward
from triptych.rewards.geneval import GenEvalReward
from triptych.rewards.reflection import ImprovementReward, VerdictReward
from triptych.shapes.verifier import detect
from triptych.train.policy import PolicyConfig

WORLD: dict[str, Callable[[], RewardFunction]] = {
    "geneval": lambda: GenEvalReward(detect),
    "geneval_official": lambda: GenEvalReward(detect, dense=False, name="geneval_official"),
    "background": lambda: FunctionReward("background", shapes_world.clean_background),
    "answer": lambda: FunctionReward("answer", shapes_reasoning.right_answers),
    "format": FormatReward,
    "length": lambda: LengthReward(longest=64, cache=16),
    "verdict": lambda: VerdictReward(shapes_world.verdict),
    "improvement": lambda: ImprovementReward(shapes_world.verdict),
    "first": lambda: GenEvalReward(detect, drawing="first", name="first"),
    "preserved": lambda: PreservationReward(detect),
    "cycle": CycleReward,
}


def build_rewards(config: PolicyConfig) -> RewardSet:
    """The rewards that the settings name; an unknown name is an error that lists what there is."""
    return RewardSet(
        rewards={name: find_reward(name) for name in config.rewards},
        weights=config.rewards,
        held_out={name: find_reward(name) for name in config.held_out},
        timeout=config.reward_timeout,
    )


def find_reward(name: str) -> RewardFunction:
    """A reward of the world, or "path/to/file.py:function"."""
    if name in WORLD:
        return WORLD[name]()
    if ":" not in name:
        raise UserError(
            f"no reward called {name!r}; there are {', '.join(WORLD)}, or path/to/file.py:function"
        )
    return load_reward(name)
