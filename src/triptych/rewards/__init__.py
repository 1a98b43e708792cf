"""What is good: callables from finished episodes to one number each, or None for "could not be scored"."""

from triptych.rewards.answers import AnswerReward, FormatReward, LengthReward
from triptych.rewards.base import Reward, RewardSet, Scores, load_reward, trl_reward
from triptych.rewards.edits import CycleReward, DirectionReward, PreservationReward
from triptych.rewards.geneval import GenEvalReward
from triptych.rewards.reflection import ImprovementReward, VerdictReward

__all__ = [
    "AnswerReward",
    "CycleReward",
    "DirectionReward",
    "FormatReward",
    "GenEvalReward",
    "ImprovementReward",
    "LengthReward",
    "PreservationReward",
    "Reward",
    "RewardSet",
    "Scores",
    "VerdictReward",
    "load_reward",
    "trl_reward",
]
