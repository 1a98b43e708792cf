"""What is good: callables from finished episodes to one number each, or None for "could not be scored"."""

from triptych.rewards.base import Reward, RewardSet, Scores, load_reward, trl_reward
from triptych.rewards.geneval import GenEvalReward

__all__ = ["GenEvalReward", "Reward", "RewardSet", "Scores", "load_reward", "trl_reward"]
