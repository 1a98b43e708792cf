"""Running rewards so that a broken one neither stops nor silently steers a run.

A reward is any callable from finished samples to one number each. This room calls them, retries them, gives
up on those that hang, and adds the rest up. It must not know models, training or how a picture came about.
"""

import importlib.util
import inspect
import math
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from triptych.errors import UserError
from triptych.trajectory import Picture, Sample

RewardFunction = Callable[[Sequence[Sample]], Sequence[float | None]]
"""Samples to one number each, higher is better; None or NaN where a sample could not be scored.

It runs in a thread of its own and may be called again with only the samples that it left unscored.
"""


class SampleReward(ABC):
    """A reward that looks at each sample by itself."""

    @abstractmethod
    def score(self, sample: Sample) -> float | None:
        """What one sample is worth; None where it cannot be scored."""

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self.score(sample) for sample in samples]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What B samples are worth, fp32 ``[B]`` each, NaN where unscored.

    ``total`` is the weighted sum of the training rewards ``values``, NaN where any of them is. ``failures``
    counts unscored samples by reward, and ``causes`` has the last reason; both include held-out rewards.
    """

    values: dict[str, Tensor]
    total: Tensor
    held_out: dict[str, Tensor]
    failures: dict[str, int]
    causes: dict[str, str]


@dataclass(kw_only=True)
class RewardSet:
    """The rewards of a run: those that train, by name with a weight (1 if not given), and held-out ones.

    A reward that raises, hangs for ``timeout`` seconds, or returns None, NaN, infinity or the wrong number of
    values is called ``retries`` more times for the samples that it owes; they then stay NaN, never 0.
    Raises UserError for a name that does not fit, and from :meth:`score` once a training reward has scored
    nothing at all in ``max_failures`` steps in a row. Held-out rewards never stop a run.
    """

    rewards: Mapping[str, RewardFunction]
    weights: Mapping[str, float] = field(default_factory=dict)
    held_out: Mapping[str, RewardFunction] = field(default_factory=dict)
    retries: int = 1
    timeout: float = 60.0
    max_failures: int = 5
    broken: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.rewards:
            raise UserError("no reward to train on: name at least one")
        if unknown := sorted(set(self.weights) - set(self.rewards)):
            raise UserError(
                f"weight for unknown reward {unknown[0]!r}; the rewards are {sorted(self.rewards)}"
            )
        if both := sorted(set(self.rewards) & set(self.held_out)):
            raise UserError(
                f"reward {both[0]!r} is both trained on and held out: give one of them another name"
            )
        if self.retries < 0 or self.timeout <= 0 or self.max_failures < 1:
            raise UserError("rewards need retries >= 0, timeout > 0 (seconds) and max_failures >= 1")

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Call every reward on the B samples; see the class for what happens to one that fails."""
        called = {
            name: self._call(reward, samples) for name, reward in {**self.rewards, **self.held_out}.items()
        }
        scored = {name: value for name, (value, _) in called.items()}
        causes = {name: cause for name, (_, cause) in called.items() if cause}
        values = {name: scored[name] for name in self.rewards}
        for name, value in values.items():
            self._stop_if_broken(name, value, causes)
        weighted = [self.weights.get(name, 1.0) * value for name, value in values.items()]
        return Scores(
            values=values,
            total=torch.stack(weighted).sum(dim=0),
            held_out={name: scored[name] for name in self.held_out},
            failures={name: int(value.isnan().sum()) for name, value in scored.items()},
            causes=causes,
        )

    def _call(self, reward: RewardFunction, samples: Sequence[Sample]) -> tuple[Tensor, str | None]:
        """The samples' values, and why some of them are NaN."""
        values, cause = torch.full((len(samples),), torch.nan), None
        for _ in range(1 + self.retries):
            owed = values.isnan().nonzero().flatten().tolist()
            if not owed:
                break
            try:
                values[owed] = _in_time(reward, [samples[i] for i in owed], self.timeout)
                cause = "returned None, NaN or infinity"
            except _Failed as error:
                cause = str(error)
        return values, cause if values.isnan().any() else None

    def _stop_if_broken(self, name: str, values: Tensor, causes: Mapping[str, str]) -> None:
        nothing = len(values) > 0 and bool(values.isnan().all())
        self.broken[name] = self.broken.get(name, 0) + 1 if nothing else 0
        if self.broken[name] >= self.max_failures:
            raise UserError(
                f"reward {name!r} scored nothing in {self.max_failures} steps in a row; "
                f"the last cause: {causes[name]}"
            )


class _Failed(Exception):
    """One call of a reward gave nothing that can be used; the message is the cause."""


def _in_time(reward: RewardFunction, samples: list[Sample], timeout: float) -> Tensor:
    """The reward's values, called in a daemon thread: one that hangs is abandoned, and dies with us."""
    outcome: list[Tensor | BaseException] = []

    def call() -> None:
        try:
            with torch.no_grad():
                outcome.append(_as_values(reward(samples), len(samples)))
        except BaseException as error:  # reported by the caller, SystemExit of a user's function included
            outcome.append(error)

    thread = threading.Thread(target=call, name="triptych-reward", daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise _Failed(f"no answer within {timeout:g} s")
    if isinstance(outcome[0], Tensor):
        return outcome[0]
    if isinstance(outcome[0], _Failed):
        raise outcome[0]
    raise _Failed(f"{type(outcome[0]).__name__}: {outcome[0]}") from outcome[0]


def _as_values(result: Sequence[float | None] | None, expected: int) -> Tensor:
    if result is None:
        raise _Failed(f"returned None instead of {expected} values")
    values = [math.nan if value is None else float(value) for value in result]
    if len(values) != expected:
        raise _Failed(f"returned {len(values)} values for {expected} samples")
    numbers = torch.tensor(values, dtype=torch.float32)
    return numbers.masked_fill(~numbers.isfinite(), torch.nan)


def trl_reward(function: Callable[..., Sequence[float | None]]) -> RewardFunction:
    """A reward from a function written for TRL: ``f(prompts, completions, **columns) -> list[float | None]``.

    Prompts and written completions are strings, drawn ones PIL images. Every other argument is a list with an
    entry a sample: the task's columns, metadata, ``answer`` and ``target_text``, None where a sample has no
    such key. A function without ``**columns`` gets only what it names.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def score(samples: Sequence[Sample]) -> Sequence[float | None]:
        arguments = _trl_columns(samples)
        arguments["prompts"] = [sample.task.prompt for sample in samples]
        arguments["completions"] = [_for_trl(sample.completion) for sample in samples]
        return function(**{k: v for k, v in arguments.items() if takes_all or k in parameters})

    return score


def _trl_columns(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    rows = [
        {"answer": s.task.answer, "target_text": s.task.target_text, **s.task.metadata, **s.task.columns}
        for s in samples
    ]
    return {key: [row.get(key) for row in rows] for row in rows for key in row}


def _for_trl(completion: str | Picture) -> str | Image.Image:
    return completion if isinstance(completion, str) else Image.fromarray(completion.cpu().numpy())


def load_reward(spec: str) -> RewardFunction:
    """A user's reward from ``"path/to/file.py:function"``; its code runs.

    A function with a parameter ``completions`` is taken as TRL's (:func:`trl_reward`), one with a single
    required parameter as a function of samples. UserError for anything else, and for what is not there.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise UserError(f"reward {spec!r}: expected path/to/file.py:function")
    if not Path(file).is_file():
        raise UserError(f"reward {spec!r}: no such file {file}")
    module = _import(Path(file), spec)
    function = getattr(module, name, None)
    if not callable(function):
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
        found = ", ".join(own) or "none"
        raise UserError(f"reward {spec!r}: {file} has no function {name}; it has {found}")
    parameters = inspect.signature(function).parameters.values()
    if any(p.name == "completions" for p in parameters):
        return trl_reward(function)
    required = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if len(required) != 1 or required[0].kind is required[0].KEYWORD_ONLY:
        shown = f"{name}{inspect.signature(function)}"
        expected = f"{name}(samples) or {name}(prompts, completions, **columns)"
        raise UserError(f"reward {spec!r}: expected {expected}, found {shown}")
    return cast(RewardFunction, function)


def _import(file: Path, spec: str) -> ModuleType:
    module_name = f"triptych_user_reward_{file.stem}"
    found = importlib.util.spec_from_file_location(module_name, file)
    assert found is not None and found.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module  # dataclasses and typing look a class's module up here
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UserError(
            f"reward {spec!r}: {file} failed to import: {type(error).__name__}: {error}"
        ) from error
    return module
