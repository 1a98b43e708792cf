"""What is good: callables from finished episodes to one number each, or None for "could not be scored"."""

from triptych.rewards.answers import AnswerReward, FormatReward, LengthReward
from triptych.rewards.base import RewardFunction, RewardSet, Scores, load_reward, trl_reward
from triptych.rewards.edits import CycleReward, DirectionReward
from triptych.rewards.geneval import GenEvalReward
from triptych.rewards.image_text import ClipScore, HPSv2, PickScore
from triptych.rewards.judge import JudgeReward
from triptych.rewards.preservation import PreservationReward
from triptych.rewards.quiz import QuizReward
from triptych.rewards.reflection import ImprovementReward, VerdictReward
from triptych.rewards.remote import RemoteReward

__all__ = [
    "AnswerReward",
    "ClipScore",
    "CycleReward",
    "DirectionReward",
    "FormatReward",
    "GenEvalReward",
    "HPSv2",
    "ImprovementReward",
    "JudgeReward",
    "LengthReward",
    "PickScore",
    "PreservationReward",
    "QuizReward",
    "RemoteReward",
    "RewardFunction",
    "RewardSet",
    "Scores",
    "VerdictReward",
    "load_reward",
    "trl_reward",
]
