"""Rewards by name: those of the embedded world, published models, services, and users' own from a file."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from triptych.errors import UserError
from triptych.evals.lexicon import Lexicon
from triptych.evals.prompts import CLASSES
from triptych.models.clip import CLIP_H, HPS, PICKSCORE, Clip
from triptych.recipes import shapes_reasoning, shapes_world
from triptych.rewards.answers import FormatReward, LengthReward
from triptych.rewards.base import RewardFunction, RewardSet, load_reward
from triptych.rewards.edits import CycleReward
from triptych.rewards.exchange import token_in
from triptych.rewards.geneval import GenEvalReward
from triptych.rewards.image_text import ClipScore, HPSv2, PickScore
from triptych.rewards.judge import JudgeReward
from triptych.rewards.preservation import PreservationReward
from triptych.rewards.quiz import QuizReward
from triptych.rewards.reflection import ImprovementReward, VerdictReward
from triptych.rewards.remote import RemoteReward
from triptych.shapes.scenes import KINDS
from triptych.train.policy import PolicyConfig

WORLD: dict[str, Callable[[], RewardFunction]] = {
    "geneval": lambda: GenEvalReward(shapes_world.verdict),
    "geneval_official": lambda: GenEvalReward(shapes_world.verdict, dense=False),
    "background": lambda: shapes_world.clean_background,
    "preservation": PreservationReward,
    "shared": lambda: shapes_world.shared,
    "exact": lambda: shapes_world.exact,
    "answer": lambda: shapes_reasoning.right_answers,
    "format": FormatReward,
    "length": lambda: LengthReward(longest=64, cache=16),
    "quiz": lambda: QuizReward(Lexicon((*KINDS, *CLASSES))),
    "verdict": lambda: VerdictReward(shapes_world.verdict, balanced=True),
    "improvement": lambda: ImprovementReward(shapes_world.verdict),
    "first": lambda: GenEvalReward(shapes_world.verdict, drawing="first"),
    "cycle": CycleReward,
}
PUBLISHED: dict[str, Callable[[str], RewardFunction]] = {
    "clip": lambda folder: ClipScore(Clip.open(folder or CLIP_H)),
    "pickscore": lambda folder: PickScore(Clip.open(folder or PICKSCORE, reader=folder or CLIP_H)),
    "hpsv2": lambda folder: HPSv2(Clip.open_hps(folder or HPS)),
    "judge": lambda address: _judge(address),
}
"""What "name" or "name=WHERE" opens: a folder or hub name, for a judge its address."""


def build_rewards(config: PolicyConfig) -> RewardSet:
    """The rewards that the settings name; an unknown name is an error that lists what there is."""
    return RewardSet(
        rewards={name: find_reward(name) for name in config.rewards},
        weights=config.rewards,
        held_out={name: find_reward(name) for name in config.held_out},
        timeout=config.reward_timeout,
    )


def find_reward(name: str) -> RewardFunction:
    """A reward of the world, of a published model or a service, or "path/to/file.py:function".

    A service must answer. UserError for what is not there.
    """
    if name in WORLD:
        return WORLD[name]()
    kind, _, where = name.partition("=")
    if kind in PUBLISHED:
        return PUBLISHED[kind](where)
    if name.startswith(("http://", "https://")):
        url, reward, options = _address(name, {"token_env"})
        remote = RemoteReward(url, reward, token=_token(options))
        remote.check()
        return remote
    if ":" not in name:
        raise UserError(
            f"no reward called {name!r}; there are {', '.join([*WORLD, *PUBLISHED])},"
            " http://host:port#name, or path/to/file.py:function"
        )
    return load_reward(name)


def _judge(address: str) -> JudgeReward:
    url, model, options = _address(address, {"token_env", "cache"})
    cache = Path(options["cache"]) if "cache" in options else None
    return JudgeReward(url, model, token=_token(options), cache=cache)


def _address(text: str, known: set[str]) -> tuple[str, str, dict[str, str]]:
    """The URL, the name and the options of ``http://host:port[/path][?option=value]#name``."""
    parts = urlsplit(text)
    options = dict(parse_qsl(parts.query))
    if parts.scheme not in ("http", "https") or not parts.netloc or not parts.fragment:
        raise UserError(f"{text!r} is no address: expected http://host:port#name")
    if unknown := sorted(set(options) - known):
        raise UserError(f"{text!r}: no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return parts._replace(query="", fragment="").geturl(), parts.fragment, options


def _token(options: dict[str, str]) -> str | None:
    return token_in(options["token_env"]) if "token_env" in options else None
